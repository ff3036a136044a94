//! Why a launch is refused, in the author's names.

use std::fmt;

use tessera_artifact::{DType, EvalError, HostExpr, KernelEntry, ParamKind, ParamMode};

use crate::cpu::features::UnsupportedCpu;
use crate::cpu::loader::LoadError;
use crate::cpu::pool::PoolError;
use crate::tensor::Place;

/// Why a launch did not run, or not to its end. Kernel code has run only with [`LaunchError::Check`], [`LaunchError::Pool`] and
/// [`LaunchError::Device`]; what it should have written is then undefined.
#[derive(Clone, Debug, PartialEq)]
pub enum LaunchError {
    UnknownKernel {
        name: String,
        known: Vec<String>,
    },
    /// Two modules have a kernel of this short name.
    AmbiguousKernel {
        name: String,
        candidates: Vec<String>,
    },
    ArgumentCount {
        kernel: String,
        found: usize,
        params: Vec<String>,
    },
    UnknownArgument {
        kernel: String,
        name: String,
        params: Vec<String>,
    },
    MissingArgument {
        kernel: String,
        name: String,
    },
    RepeatedArgument {
        kernel: String,
        name: String,
    },
    /// A tensor where a scalar belongs, a scalar of another type, a read-only tensor for `out`.
    ArgumentKind {
        kernel: String,
        param: String,
        found: String,
        expected: String,
    },
    /// A tensor in memory that the device cannot use.
    Place {
        kernel: String,
        param: String,
        found: Place,
        expected: Place,
    },
    /// A written tensor shares memory with another argument.
    Overlap {
        kernel: String,
        written: String,
        other: String,
    },
    /// A written tensor's own elements share memory.
    SelfOverlap {
        kernel: String,
        param: String,
        shape: Vec<i64>,
        strides: Vec<i64>,
    },
    /// No instance takes these arguments; for each, in order of the archive, why not.
    NoInstance {
        kernel: String,
        given: String,
        reasons: Vec<(String, String)>,
    },
    /// The archive holds no code that this device can run.
    NoCode {
        kernel: String,
        why: UnsupportedCpu,
    },
    NoPtx {
        kernel: String,
    },
    Load {
        kernel: String,
        why: LoadError,
    },
    Memory {
        kernel: String,
        bytes: u64,
    },
    Pool {
        kernel: String,
        why: PoolError,
    },
    /// An `assert`, or an access that may not leave its tensor, failed while the kernel ran.
    Check {
        kernel: String,
        what: String,
        /// `block(0)`, `block(1)`, `block(2)` of one that failed.
        block: [i64; 3],
    },
    /// The GPU or its driver reports an error.
    Device {
        kernel: String,
        what: String,
    },
}

impl fmt::Display for LaunchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use LaunchError::*;
        match self {
            UnknownKernel { name, known } if known.is_empty() => {
                write!(f, "no kernel `{name}`: the library is empty")
            }
            UnknownKernel { name, known } => {
                write!(f, "no kernel `{name}`; the library has {}", list(known))
            }
            AmbiguousKernel { name, candidates } => {
                write!(
                    f,
                    "`{name}` may be {}; give the whole name",
                    list(candidates)
                )
            }
            ArgumentCount {
                kernel,
                found,
                params,
            } => {
                write!(
                    f,
                    "kernel `{kernel}` takes {} arguments ({}), and {found} were given",
                    params.len(),
                    list(params)
                )
            }
            UnknownArgument {
                kernel,
                name,
                params,
            } => {
                write!(
                    f,
                    "kernel `{kernel}` has no parameter `{name}`; it takes {}",
                    list(params)
                )
            }
            MissingArgument { kernel, name } => {
                write!(f, "kernel `{kernel}` needs an argument for `{name}`")
            }
            RepeatedArgument { kernel, name } => {
                write!(f, "kernel `{kernel}` was given `{name}` twice")
            }
            ArgumentKind {
                kernel,
                param,
                found,
                expected,
            } => {
                write!(
                    f,
                    "kernel `{kernel}`: `{param}` is {expected}, and {found} was given"
                )
            }
            Place {
                kernel,
                param,
                found,
                expected,
            } => write!(
                f,
                "kernel `{kernel}` runs on {expected}, and `{param}` is in the memory of {found}; copy it there first"
            ),
            Overlap {
                kernel,
                written,
                other,
            } => write!(
                f,
                "kernel `{kernel}` writes `{written}`, whose memory overlaps that of `{other}`; give them memory of their own"
            ),
            SelfOverlap {
                kernel,
                param,
                shape,
                strides,
            } => write!(
                f,
                "kernel `{kernel}` writes `{param}`, whose elements overlap each other (shape {shape:?}, strides {strides:?}); copy it to a dense tensor"
            ),
            NoInstance {
                kernel,
                given,
                reasons,
            } => {
                if let [(_, reason)] = &reasons[..] {
                    return write!(f, "kernel `{kernel}`: {reason} (given {given})");
                }
                write!(
                    f,
                    "no instance of kernel `{kernel}` takes these arguments (given {given}):"
                )?;
                reasons
                    .iter()
                    .try_for_each(|(instance, reason)| write!(f, "\n  {instance}: {reason}"))
            }
            NoCode { kernel, why } => write!(
                f,
                "kernel `{kernel}` cannot run here: {why}; build the library with `--target` for this CPU"
            ),
            NoPtx { kernel } => {
                write!(
                    f,
                    "kernel `{kernel}` has no PTX in this library; build it with `tlc build --target sm_90a`"
                )
            }
            Load { kernel, why } => write!(f, "kernel `{kernel}`: {why}"),
            Memory { kernel, bytes } => write!(
                f,
                "kernel `{kernel}` needs {bytes} bytes of scratch memory, and there are none"
            ),
            Pool { kernel, why } => write!(f, "kernel `{kernel}`: {why}"),
            Check {
                kernel,
                what,
                block: [x, y, z],
            } => write!(
                f,
                "kernel `{kernel}` stopped: {what} (in block {x}, {y}, {z})"
            ),
            Device { kernel, what } => write!(f, "kernel `{kernel}`: {what}"),
        }
    }
}

impl std::error::Error for LaunchError {}

fn list(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|n| format!("`{n}`")).collect();
    quoted.join(", ")
}

/// Why one instance does not take the arguments. Small, so that trying many instances costs little; [`Refusal::describe`] has the words.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    DType {
        param: usize,
        found: DType,
    },
    Rank {
        param: usize,
        found: usize,
    },
    Extent {
        param: usize,
        axis: usize,
        found: i64,
        expected: i64,
    },
    Range {
        dim: usize,
        value: i64,
    },
    Step {
        dim: usize,
        value: i64,
    },
    Align {
        param: usize,
        address: u64,
    },
    Stride {
        param: usize,
        stride: i64,
    },
    Requirement {
        index: usize,
    },
    /// An expression of the manifest has no value.
    Eval {
        what: Part,
        why: EvalError,
    },
    Grid {
        axis: usize,
        value: i64,
    },
    /// More CTAs than can be counted, or a scratch parameter of impossible size.
    TooLarge {
        what: Part,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Shape { param: usize, axis: usize },
    Requirement(usize),
    Grid(usize),
    Scratch(usize),
}

impl Refusal {
    /// `dims` are the values that the arguments gave, by the order of the entry.
    pub(crate) fn describe(&self, entry: &KernelEntry, dims: &[i64]) -> String {
        let name = |param: usize| entry.params[param].name.as_str();
        match self {
            Refusal::DType { param, found } => {
                let expected = match &entry.params[*param].kind {
                    ParamKind::Tensor { dtype, .. } | ParamKind::Scalar { dtype } => dtype.name(),
                    ParamKind::Index => "index",
                };
                format!(
                    "`{}` holds {expected}, and a {found} argument was given",
                    name(*param)
                )
            }
            Refusal::Rank { param, found } => {
                let shape = shape(entry, *param);
                let axes: Vec<_> = shape.iter().map(|e| e.to_string()).collect();
                format!(
                    "`{}` has shape [{}], and a tensor of rank {found} was given",
                    name(*param),
                    axes.join(", ")
                )
            }
            Refusal::Extent {
                param,
                axis,
                found,
                expected,
            } => {
                let expr = &shape(entry, *param)[*axis];
                let meaning = match expr {
                    HostExpr::Int(_) => String::new(),
                    _ => format!(" = {expr}{}", with(expr, entry, dims)),
                };
                format!(
                    "axis {axis} of `{}` has {found} elements and needs {expected}{meaning}",
                    name(*param)
                )
            }
            Refusal::Range { dim, value } => {
                let d = &entry.dims[*dim];
                format!(
                    "{} is {value}{}, and it takes {}..={}",
                    d.name,
                    source(entry, *dim),
                    d.lo,
                    d.hi
                )
            }
            Refusal::Step { dim, value } => {
                let d = &entry.dims[*dim];
                format!(
                    "{} is {value}{}, and it must be a multiple of {}",
                    d.name,
                    source(entry, *dim),
                    d.step
                )
            }
            Refusal::Align { param, address } => {
                let align = match &entry.params[*param].kind {
                    ParamKind::Tensor { align, .. } => *align,
                    _ => 1,
                };
                let at = 1u64 << address.trailing_zeros().min(12);
                format!(
                    "`{}` must be aligned to {align} bytes (its start or a row is aligned to {at}); copy it to a tensor of its own",
                    name(*param)
                )
            }
            Refusal::Stride { param, stride } => format!(
                "the last axis of `{}` must be contiguous, and its stride is {stride}; copy it, or mark the parameter `@strided`",
                name(*param)
            ),
            Refusal::Requirement { index } => {
                let r = &entry.requires[*index];
                let message = r
                    .message
                    .as_ref()
                    .map_or(String::new(), |m| format!(" ({m})"));
                format!(
                    "it requires `{}`{}{message}",
                    r.text,
                    with(&r.cond, entry, dims)
                )
            }
            Refusal::Eval { what, why } => format!("{}: {why}", part(what, entry)),
            Refusal::Grid { axis, value } => {
                format!(
                    "grid extent {axis}, `{}`{}, is {value}",
                    entry.grid[*axis],
                    with(&entry.grid[*axis], entry, dims)
                )
            }
            Refusal::TooLarge { what } => format!("{} is too large", part(what, entry)),
        }
    }
}

fn part(part: &Part, entry: &KernelEntry) -> String {
    match part {
        Part::Shape { param, axis } => {
            format!(
                "axis {axis} of `{}`, `{}`",
                entry.params[*param].name,
                shape(entry, *param)[*axis]
            )
        }
        Part::Requirement(index) => format!("requirement `{}`", entry.requires[*index].text),
        Part::Grid(axis) => format!(
            "grid extent {axis}, `{}`",
            entry
                .grid
                .get(*axis)
                .map_or(String::new(), |e| e.to_string())
        ),
        Part::Scratch(param) => format!("the memory of `{}`", entry.params[*param].name),
    }
}

fn shape(entry: &KernelEntry, param: usize) -> &[HostExpr] {
    match &entry.params[param].kind {
        ParamKind::Tensor { shape, .. } => shape,
        _ => &[],
    }
}

/// ` with N = 7, K = 9`: the dims that an expression of more than one name mentions.
fn with(expr: &HostExpr, entry: &KernelEntry, dims: &[i64]) -> String {
    let mut names = Vec::new();
    expr.walk(&mut |e| {
        if let HostExpr::Dim(name) = e
            && !names.contains(&name)
        {
            names.push(name);
        }
    });
    if names.is_empty() {
        return String::new();
    }
    let values: Vec<_> = names
        .iter()
        .filter_map(|&name| {
            let dim = entry.dims.iter().position(|d| d.name == *name)?;
            Some(format!("{name} = {}{}", dims.get(dim)?, source(entry, dim)))
        })
        .collect();
    format!(", with {}", values.join(", "))
}

/// ` (axis 1 of `a`)`: where a dim takes its value from.
fn source(entry: &KernelEntry, dim: usize) -> String {
    let dim = &entry.dims[dim];
    if dim.scalar {
        return String::new();
    }
    for param in &entry.params {
        if let ParamKind::Tensor { shape, mode, .. } = &param.kind
            && !matches!(mode, ParamMode::Scratch | ParamMode::Flags)
            && let Some(axis) = shape
                .iter()
                .position(|e| matches!(e, HostExpr::Dim(n) if *n == dim.name))
        {
            return format!(" (axis {axis} of `{}`)", param.name);
        }
    }
    String::new()
}
