//! Arguments of a run and their check against the kernel: what the host does before a launch.

use super::error::{ErrorKind, InterpError};
use super::memory::row_major;
use super::words::Words;
use crate::tile::ir::*;
use tessera_artifact::{DType, HostExpr, ParamMode};

/// A tensor in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    pub dtype: DType,
    pub shape: Vec<u64>,
    /// In elements.
    pub strides: Vec<i64>,
    /// Element of `bytes` at which coordinate 0 lies.
    pub offset: u64,
    /// Little-endian; e2m1 packed.
    pub bytes: Vec<u8>,
}

impl Buffer {
    /// Row-major, all zero.
    pub fn zeros(dtype: DType, shape: &[u64]) -> Buffer {
        let elements = shape.iter().product();
        Buffer {
            dtype,
            shape: shape.to_vec(),
            strides: row_major(shape)[..shape.len()].to_vec(),
            offset: 0,
            bytes: vec![0; dtype.bytes_for(elements) as usize],
        }
    }

    /// Row-major, each element rounded once.
    pub fn from_f64(dtype: DType, shape: &[u64], values: impl IntoIterator<Item = f64>) -> Buffer {
        let mut buffer = Buffer::zeros(dtype, shape);
        let mut words = Words::from_bytes(dtype, &buffer.bytes);
        for (i, x) in values.into_iter().enumerate().take(words.len()) {
            words.set(i, tessera_artifact::numeric::from_f64(x, dtype));
        }
        words.to_bytes(dtype, &mut buffer.bytes);
        buffer
    }

    /// Every element of the storage in order, gaps too (integers above 2^53 round).
    pub fn to_f64(&self) -> Vec<f64> {
        let words = Words::from_bytes(self.dtype, &self.bytes);
        let n = if self.dtype == DType::E2M1 {
            self.elements_in_storage()
        } else {
            words.len()
        };
        (0..n)
            .map(|i| tessera_artifact::numeric::to_f64(words.get(i), self.dtype))
            .collect()
    }

    /// The bits of every element of the storage, NaNs made alike (their bits are not part of a program's meaning).
    pub fn canonical_bits(&self) -> Vec<u64> {
        let words = Words::from_bytes(self.dtype, &self.bytes);
        let nan = |bits| {
            self.dtype.is_float() && tessera_artifact::numeric::to_f64(bits, self.dtype).is_nan()
        };
        (0..words.len())
            .map(|i| words.get(i))
            .map(|bits| if nan(bits) { u64::MAX } else { bits })
            .collect()
    }

    fn elements_in_storage(&self) -> usize {
        let end: i64 = self
            .shape
            .iter()
            .zip(&self.strides)
            .map(|(&n, &s)| (n as i64 - 1) * s.max(0))
            .sum();
        (self.offset as i64 + end + 1) as usize
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    Tensor(Buffer),
    /// The bits of a scalar of the parameter's type.
    Scalar(u64),
    Index(i64),
    /// A `scratch` or `flags` tensor that the interpreter allocates.
    Absent,
}

impl Arg {
    pub fn f32(x: f32) -> Arg {
        Arg::Scalar(x.to_bits() as u64)
    }
}

/// One argument for every parameter, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Args(pub Vec<Arg>);

/// What a launch is for these arguments.
pub struct Bound {
    /// By `DimId`.
    pub dims: Vec<i64>,
    pub grid: Vec<i64>,
}

fn bad(kernel: &Kernel, message: String) -> InterpError {
    InterpError {
        kind: ErrorKind::Arguments(message),
        span: kernel.span,
        place: String::new(),
    }
}

/// Finds the dims, allocates what is absent, checks shapes, ranges and requirements.
pub fn bind(kernel: &Kernel, args: &mut Args) -> Result<Bound, InterpError> {
    if args.0.len() != kernel.params.len() {
        let (has, needs) = (args.0.len(), kernel.params.len());
        return Err(bad(
            kernel,
            format!("`{}` takes {needs} arguments, {has} are given", kernel.name),
        ));
    }
    let mut dims = Vec::new();
    for dim in &kernel.dims {
        let value = dim_value(kernel, dim, args)?;
        if value < dim.lo || value > dim.hi || value % dim.step != 0 {
            let Dim {
                name, lo, hi, step, ..
            } = dim;
            return Err(bad(
                kernel,
                format!("{name} = {value} is not in {lo}..={hi} step {step}"),
            ));
        }
        dims.push(value);
    }
    let dim = |name: &str| {
        kernel
            .dims
            .iter()
            .position(|d| d.name == name)
            .map(|i| dims[i])
    };
    let scalar = |name: &str| {
        let i = kernel.params.iter().position(|p| p.name == name)?;
        match (&kernel.params[i].kind, &args.0[i]) {
            (ParamKind::Scalar(d), Arg::Scalar(bits)) => {
                Some(tessera_artifact::numeric::to_f64(*bits, *d))
            }
            _ => None,
        }
    };
    let int = |e: &HostExpr| {
        e.eval_int(&dim, &scalar)
            .map_err(|err| bad(kernel, format!("`{e}`: {err}")))
    };
    let mut shapes = Vec::new();
    for param in &kernel.params {
        shapes.push(match &param.kind {
            ParamKind::Tensor(t) => Some(t.shape.iter().map(&int).collect::<Result<Vec<_>, _>>()?),
            _ => None,
        });
    }
    let grid = kernel
        .launch
        .grid
        .iter()
        .map(&int)
        .collect::<Result<Vec<_>, _>>()?;
    for r in &kernel.requires {
        match r.cond.eval_bool(&dim, &scalar) {
            Ok(true) => {}
            Ok(false) => {
                let reason = r
                    .message
                    .as_ref()
                    .map_or(String::new(), |m| format!(": {m}"));
                return Err(bad(kernel, format!("`{}` does not hold{reason}", r.text)));
            }
            Err(e) => return Err(bad(kernel, format!("`{}`: {e}", r.text))),
        }
    }
    for ((param, shape), arg) in kernel.params.iter().zip(&shapes).zip(&mut args.0) {
        check_argument(kernel, param, shape.as_deref(), arg)?;
    }
    if let Some(g) = grid.iter().find(|&&g| g < 0) {
        return Err(bad(kernel, format!("a grid extent is {g}")));
    }
    Ok(Bound { dims, grid })
}

fn dim_value(kernel: &Kernel, dim: &Dim, args: &Args) -> Result<i64, InterpError> {
    if let Some(p) = dim.scalar {
        return match args.0[p.index()] {
            Arg::Index(i) => Ok(i),
            _ => Err(bad(kernel, format!("`{}` takes an index", dim.name))),
        };
    }
    for (param, arg) in kernel.params.iter().zip(&args.0) {
        if let (ParamKind::Tensor(t), Arg::Tensor(b)) = (&param.kind, arg) {
            for (e, &n) in t.shape.iter().zip(&b.shape) {
                if matches!(e, HostExpr::Dim(name) if *name == dim.name) {
                    return Ok(n as i64);
                }
            }
        }
    }
    if dim.lo == dim.hi {
        return Ok(dim.lo);
    }
    Err(bad(
        kernel,
        format!("no argument gives dim `{}` a value", dim.name),
    ))
}

fn check_argument(
    kernel: &Kernel,
    param: &Param,
    shape: Option<&[i64]>,
    arg: &mut Arg,
) -> Result<(), InterpError> {
    let name = &param.name;
    match (&param.kind, shape) {
        (ParamKind::Tensor(t), Some(shape)) => {
            if let Some(n) = shape.iter().find(|&&n| n < 0) {
                return Err(bad(kernel, format!("`{name}` has an extent of {n}")));
            }
            let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
            if *arg == Arg::Absent && matches!(t.mode, ParamMode::Scratch | ParamMode::Flags) {
                *arg = Arg::Tensor(Buffer::zeros(t.dtype, &shape));
            }
            let Arg::Tensor(b) = arg else {
                return Err(bad(kernel, format!("`{name}` takes a tensor")));
            };
            if b.dtype != t.dtype {
                return Err(bad(
                    kernel,
                    format!(
                        "`{name}` has elements of {} instead of {}",
                        b.dtype, t.dtype
                    ),
                ));
            }
            if b.shape != shape {
                return Err(bad(
                    kernel,
                    format!("`{name}` has shape {:?} instead of {shape:?}", b.shape),
                ));
            }
            check_storage(b).map_err(|m| bad(kernel, format!("`{name}` {m}")))
        }
        (ParamKind::Scalar(d), _) => match arg {
            Arg::Scalar(_) => Ok(()),
            _ => Err(bad(kernel, format!("`{name}` takes a scalar of {d}"))),
        },
        (ParamKind::Index, _) => match arg {
            Arg::Index(_) => Ok(()),
            _ => Err(bad(kernel, format!("`{name}` takes an index"))),
        },
        (ParamKind::Tensor(_), None) => Ok(()),
    }
}

fn check_storage(b: &Buffer) -> Result<(), String> {
    if b.strides.len() != b.shape.len() {
        return Err(format!(
            "has {} strides for {} axes",
            b.strides.len(),
            b.shape.len()
        ));
    }
    if b.shape.contains(&0) {
        return Ok(());
    }
    let (mut lo, mut hi) = (b.offset as i128, b.offset as i128);
    for (&n, &s) in b.shape.iter().zip(&b.strides) {
        let reach = (n as i128 - 1) * s as i128;
        if reach < 0 { lo += reach } else { hi += reach }
    }
    let held = b.bytes.len() as i128 * 8 / b.dtype.bits() as i128;
    if lo < 0 || hi >= held {
        return Err(format!(
            "reaches elements {lo}..={hi} of a storage of {held}"
        ));
    }
    Ok(())
}
