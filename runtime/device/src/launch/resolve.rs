//! One instance's checks in compiled form, and a launch resolved against it.

use tessera_artifact::{BoundExpr, DType, KernelEntry, MAX_DIMS, MAX_PARAMS, ParamKind, ParamMode};

use super::error::{LaunchError, Part, Refusal};
use super::overlap::{overlap, overlaps_itself};
use super::{Arg, Scalar};
use crate::memory::ALIGN;
use crate::tensor::{Axes, Place, dense_bytes, dense_strides};

/// The launch checks of one instance; names are slots.
#[derive(Debug)]
pub(crate) struct Signature {
    params: Vec<Param>,
    dims: Vec<Dim>,
    requires: Vec<BoundExpr>,
    grid: Vec<BoundExpr>,
}

#[derive(Debug)]
struct Param {
    /// The argument's position among those the caller gives; `None` for memory that the host allocates.
    argument: Option<usize>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Tensor {
        mode: ParamMode,
        dtype: DType,
        shape: Vec<BoundExpr>,
        align: u32,
        contiguous: bool,
    },
    Scalar {
        dtype: DType,
        slot: usize,
    },
    Index,
}

#[derive(Debug)]
struct Dim {
    lo: i64,
    hi: i64,
    step: i64,
    source: Source,
    /// Takes a word among the dims.
    passed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    Extent { argument: usize, axis: usize },
    Index { argument: usize },
}

/// Memory that the host allocates for one launch.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostMemory {
    /// Index into the words, where the address goes.
    pub word: usize,
    /// From the start of the arena.
    pub offset: usize,
    pub bytes: usize,
    pub zeroed: bool,
}

/// Where a tensor's address stands among the words, its strides behind it, and what they do not say: what tensor maps are made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorWords {
    pub word: usize,
    pub dtype: DType,
    pub shape: Axes,
    /// The kernel may write it.
    pub writes: bool,
}

/// A resolved launch: reused from launch to launch so that it allocates only at first.
#[derive(Debug, Default)]
pub(crate) struct Request {
    pub words: Vec<u64>,
    /// One for each parameter; `None` for scalars.
    pub tensors: Vec<Option<TensorWords>>,
    pub grid: [i64; 3],
    pub ctas: i64,
    pub host_memory: Vec<HostMemory>,
    pub arena_bytes: usize,
}

impl Signature {
    /// `entry` has passed the manifest's check, so every name resolves.
    pub fn new(entry: &KernelEntry) -> Self {
        let dim_slot = |name: &str| entry.dims.iter().position(|d| d.name == name);
        let scalar_slot = |name: &str| {
            entry
                .params
                .iter()
                .filter(|p| matches!(p.kind, ParamKind::Scalar { .. }))
                .position(|p| p.name == name)
        };
        let bind = |e: &tessera_artifact::HostExpr| {
            e.bind(&dim_slot, &scalar_slot)
                .expect("the manifest's check resolves every name")
        };
        let mut arguments = 0;
        let mut params: Vec<Param> = Vec::new();
        for p in &entry.params {
            let kind = match &p.kind {
                ParamKind::Tensor {
                    mode,
                    dtype,
                    shape,
                    align,
                    contiguous,
                } => Kind::Tensor {
                    mode: *mode,
                    dtype: *dtype,
                    shape: shape.iter().map(bind).collect(),
                    align: *align,
                    contiguous: *contiguous,
                },
                ParamKind::Scalar { dtype } => Kind::Scalar {
                    dtype: *dtype,
                    slot: scalar_slot(&p.name).expect("a scalar is one of the scalars"),
                },
                ParamKind::Index => Kind::Index,
            };
            let given = !matches!(&kind, Kind::Tensor { mode, .. } if !mode.is_argument());
            let argument = given.then_some(arguments);
            arguments += given as usize;
            params.push(Param { argument, kind });
        }
        let dims = (entry.dims.iter().enumerate())
            .map(|(slot, d)| Dim {
                lo: d.lo,
                hi: d.hi,
                step: d.step,
                source: dim_source(entry, &params, slot),
                passed: !d.scalar,
            })
            .collect();
        Signature {
            params,
            dims,
            requires: entry.requires.iter().map(|r| bind(&r.cond)).collect(),
            grid: entry.grid.iter().map(bind).collect(),
        }
    }

    /// How many arguments the caller gives.
    pub fn arguments(&self) -> usize {
        self.params.iter().filter(|p| p.argument.is_some()).count()
    }

    /// Checks that are the same for every instance: number, kind and place of the arguments, overlap of what is written.
    pub fn check_arguments(
        &self,
        entry: &KernelEntry,
        args: &[Arg<'_>],
        place: Place,
    ) -> Result<(), LaunchError> {
        let kernel = || entry.name.clone();
        if args.len() != self.arguments() {
            return Err(LaunchError::ArgumentCount {
                kernel: kernel(),
                found: args.len(),
                params: argument_names(entry),
            });
        }
        for (param, p) in self.params.iter().zip(&entry.params) {
            let Some(at) = param.argument else { continue };
            let arg = &args[at];
            let fits = match &param.kind {
                Kind::Tensor { mode, .. } if mode.is_written() => matches!(arg, Arg::TensorMut(_)),
                Kind::Tensor { .. } => matches!(arg, Arg::Tensor(_) | Arg::TensorMut(_)),
                Kind::Scalar { .. } => matches!(arg, Arg::Scalar(_)),
                Kind::Index => matches!(arg, Arg::Index(_)),
            };
            if !fits {
                return Err(LaunchError::ArgumentKind {
                    kernel: kernel(),
                    param: p.name.clone(),
                    found: describe(arg),
                    expected: expected(&param.kind),
                });
            }
            if let Some(raw) = arg.tensor()
                && raw.place != place
            {
                return Err(LaunchError::Place {
                    kernel: kernel(),
                    param: p.name.clone(),
                    found: raw.place,
                    expected: place,
                });
            }
        }
        self.check_overlap(entry, args)
    }

    fn check_overlap(&self, entry: &KernelEntry, args: &[Arg<'_>]) -> Result<(), LaunchError> {
        for (i, param) in self.params.iter().enumerate() {
            let written = matches!(&param.kind, Kind::Tensor { mode, .. } if mode.is_written());
            let Some(raw) = param
                .argument
                .filter(|_| written)
                .and_then(|at| args[at].tensor())
            else {
                continue;
            };
            if overlaps_itself(raw) {
                return Err(LaunchError::SelfOverlap {
                    kernel: entry.name.clone(),
                    param: entry.params[i].name.clone(),
                    shape: raw.shape.to_vec(),
                    strides: raw.strides.to_vec(),
                });
            }
            for (j, other) in self.params.iter().enumerate() {
                let Some(other_raw) = other.argument.and_then(|at| args[at].tensor()) else {
                    continue;
                };
                if i != j && overlap(raw, other_raw) {
                    return Err(LaunchError::Overlap {
                        kernel: entry.name.clone(),
                        written: entry.params[i].name.clone(),
                        other: entry.params[j].name.clone(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Does this instance take the arguments? If so, `request` holds the launch. `check_arguments` has passed.
    pub fn resolve(&self, args: &[Arg<'_>], request: &mut Request) -> Result<(), Refusal> {
        let mut dims = [0i64; MAX_DIMS];
        let mut scalars = [0f64; MAX_PARAMS];
        let dims = &mut dims[..self.dims.len()];
        self.check_types(args, &mut scalars)?;
        self.read_dims(args, dims)?;
        self.check_tensors(args, dims, &scalars)?;
        for (index, requirement) in self.requires.iter().enumerate() {
            match requirement.eval_bool(dims, &scalars) {
                Ok(true) => {}
                Ok(false) => return Err(Refusal::Requirement { index }),
                Err(why) => {
                    return Err(Refusal::Eval {
                        what: Part::Requirement(index),
                        why,
                    });
                }
            }
        }
        self.grid(dims, &scalars, request)?;
        self.words(args, dims, &scalars, request)
    }

    /// The dims that the arguments give, as far as they do, for messages.
    pub fn dims_for_message(&self, args: &[Arg<'_>]) -> Vec<i64> {
        (self.dims.iter())
            .map(|d| match d.source {
                Source::Extent { argument, axis } => args
                    .get(argument)
                    .and_then(Arg::tensor)
                    .and_then(|raw| raw.shape.get(axis).copied())
                    .unwrap_or(0),
                Source::Index { argument } => match args.get(argument) {
                    Some(Arg::Index(value)) => *value,
                    _ => 0,
                },
            })
            .collect()
    }

    fn check_types(&self, args: &[Arg<'_>], scalars: &mut [f64]) -> Result<(), Refusal> {
        for (i, param) in self.params.iter().enumerate() {
            let Some(at) = param.argument else { continue };
            match (&param.kind, &args[at]) {
                (Kind::Scalar { dtype, slot }, Arg::Scalar(scalar)) => {
                    if scalar.dtype != *dtype {
                        return Err(Refusal::DType {
                            param: i,
                            found: scalar.dtype,
                        });
                    }
                    scalars[*slot] = scalar.value;
                }
                (Kind::Tensor { dtype, shape, .. }, arg) => {
                    let Some(raw) = arg.tensor() else { continue };
                    if raw.dtype != *dtype {
                        return Err(Refusal::DType {
                            param: i,
                            found: raw.dtype,
                        });
                    }
                    if raw.shape.len() != shape.len() {
                        return Err(Refusal::Rank {
                            param: i,
                            found: raw.shape.len(),
                        });
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read_dims(&self, args: &[Arg<'_>], dims: &mut [i64]) -> Result<(), Refusal> {
        for (slot, dim) in self.dims.iter().enumerate() {
            let value = match dim.source {
                // The rank was checked.
                Source::Extent { argument, axis } => {
                    args[argument].tensor().map_or(0, |raw| raw.shape[axis])
                }
                Source::Index { argument } => match args[argument] {
                    Arg::Index(value) => value,
                    _ => 0,
                },
            };
            dims[slot] = value;
            if value < dim.lo || value > dim.hi {
                return Err(Refusal::Range { dim: slot, value });
            }
            if dim.step != 1 && value % dim.step != 0 {
                return Err(Refusal::Step { dim: slot, value });
            }
        }
        Ok(())
    }

    fn check_tensors(
        &self,
        args: &[Arg<'_>],
        dims: &[i64],
        scalars: &[f64],
    ) -> Result<(), Refusal> {
        for (i, param) in self.params.iter().enumerate() {
            let (
                Some(at),
                Kind::Tensor {
                    dtype,
                    shape,
                    align,
                    contiguous,
                    ..
                },
            ) = (param.argument, &param.kind)
            else {
                continue;
            };
            let Some(raw) = args[at].tensor() else {
                continue;
            };
            for (axis, extent) in shape.iter().enumerate() {
                let expected = match extent.as_dim() {
                    Some(slot) => dims[slot],
                    None => extent
                        .eval_int(dims, scalars)
                        .map_err(|why| Refusal::Eval {
                            what: Part::Shape { param: i, axis },
                            why,
                        })?,
                };
                if raw.shape[axis] != expected {
                    return Err(Refusal::Extent {
                        param: i,
                        axis,
                        found: raw.shape[axis],
                        expected,
                    });
                }
            }
            if raw.shape.contains(&0) {
                continue;
            }
            let rank = raw.shape.len();
            if *contiguous && rank > 0 && raw.shape[rank - 1] != 1 && raw.strides[rank - 1] != 1 {
                return Err(Refusal::Stride {
                    param: i,
                    stride: raw.strides[rank - 1],
                });
            }
            if *align > 1 {
                // The start and every row: what vector loads and tensor maps count on.
                let mut low_bits = raw.address;
                for axis in 0..rank.saturating_sub(1) {
                    if raw.shape[axis] > 1 {
                        low_bits |=
                            (raw.strides[axis] as u64).wrapping_mul(dtype.bits() as u64) / 8;
                    }
                }
                if low_bits % *align as u64 != 0 {
                    return Err(Refusal::Align {
                        param: i,
                        address: low_bits,
                    });
                }
            }
        }
        Ok(())
    }

    fn grid(&self, dims: &[i64], scalars: &[f64], request: &mut Request) -> Result<(), Refusal> {
        request.grid = [1; 3];
        let mut ctas = 1i64;
        for (axis, extent) in self.grid.iter().enumerate() {
            let value = extent
                .eval_int(dims, scalars)
                .map_err(|why| Refusal::Eval {
                    what: Part::Grid(axis),
                    why,
                })?;
            if value < 0 {
                return Err(Refusal::Grid { axis, value });
            }
            request.grid[axis] = value;
            ctas = ctas.checked_mul(value).ok_or(Refusal::TooLarge {
                what: Part::Grid(axis),
            })?;
        }
        request.ctas = if request.grid.contains(&0) { 0 } else { ctas };
        Ok(())
    }

    fn words(
        &self,
        args: &[Arg<'_>],
        dims: &[i64],
        scalars: &[f64],
        request: &mut Request,
    ) -> Result<(), Refusal> {
        request.words.clear();
        request.tensors.clear();
        request.host_memory.clear();
        request.arena_bytes = 0;
        for (i, param) in self.params.iter().enumerate() {
            let word = request.words.len();
            let mut tensor = None;
            match (&param.kind, param.argument.map(|at| &args[at])) {
                (Kind::Tensor { dtype, .. }, Some(arg)) => {
                    let raw = arg.tensor().expect("`check_arguments` compared the kinds");
                    tensor = Some((*dtype, raw.shape));
                    request.words.push(raw.address);
                    request.words.extend(raw.strides.iter().map(|&s| s as u64));
                }
                (
                    Kind::Tensor {
                        mode, dtype, shape, ..
                    },
                    None,
                ) => {
                    let zeroed = *mode == ParamMode::Flags;
                    let extents = self.host_extents(i, shape, dims, scalars)?;
                    let too_large = |_| Refusal::TooLarge {
                        what: Part::Scratch(i),
                    };
                    let bytes = dense_bytes(*dtype, &extents).map_err(too_large)?;
                    let strides = dense_strides(*dtype, &extents).map_err(too_large)?;
                    let offset = request.arena_bytes.next_multiple_of(ALIGN);
                    request.arena_bytes = offset.checked_add(bytes).ok_or(Refusal::TooLarge {
                        what: Part::Scratch(i),
                    })?;
                    tensor = Some((*dtype, extents));
                    request.host_memory.push(HostMemory {
                        word,
                        offset,
                        bytes,
                        zeroed,
                    });
                    request.words.push(0);
                    request.words.extend(strides.iter().map(|&s| s as u64));
                }
                (Kind::Scalar { .. }, Some(Arg::Scalar(Scalar { bits, .. }))) => {
                    request.words.push(*bits)
                }
                (Kind::Index, Some(Arg::Index(value))) => request.words.push(*value as u64),
                _ => unreachable!("`check_arguments` compared the kinds"),
            }
            let writes =
                !matches!(&param.kind, Kind::Tensor { mode, .. } if *mode == ParamMode::In);
            let tensor = tensor.map(|(dtype, shape)| TensorWords {
                word,
                dtype,
                shape,
                writes,
            });
            request.tensors.push(tensor);
        }
        let passed = self.dims.iter().zip(dims).filter(|(dim, _)| dim.passed);
        request.words.extend(passed.map(|(_, &value)| value as u64));
        request.words.extend(request.grid.iter().map(|&n| n as u64));
        Ok(())
    }

    fn host_extents(
        &self,
        param: usize,
        shape: &[BoundExpr],
        dims: &[i64],
        scalars: &[f64],
    ) -> Result<Axes, Refusal> {
        let mut extents = Axes::new(&[0; tessera_artifact::MAX_RANK][..shape.len()])
            .expect("the manifest's check bounds the rank");
        for (axis, extent) in shape.iter().enumerate() {
            extents[axis] = extent
                .eval_int(dims, scalars)
                .map_err(|why| Refusal::Eval {
                    what: Part::Shape { param, axis },
                    why,
                })?;
        }
        Ok(extents)
    }
}

/// The first extent that is just the dim's name, or the `index` parameter of that name.
fn dim_source(entry: &KernelEntry, params: &[Param], slot: usize) -> Source {
    for (param, p) in params.iter().zip(&entry.params) {
        let Some(argument) = param.argument else {
            continue;
        };
        match &param.kind {
            Kind::Index if p.name == entry.dims[slot].name => return Source::Index { argument },
            Kind::Tensor { shape, .. } if !entry.dims[slot].scalar => {
                if let Some(axis) = shape.iter().position(|e| e.as_dim() == Some(slot)) {
                    return Source::Extent { argument, axis };
                }
            }
            _ => {}
        }
    }
    unreachable!("the manifest's check finds a source for every dim")
}

/// The names of the parameters that the caller gives, in order.
pub(crate) fn argument_names(entry: &KernelEntry) -> Vec<String> {
    (entry.params.iter())
        .filter(|p| !matches!(&p.kind, ParamKind::Tensor { mode, .. } if !mode.is_argument()))
        .map(|p| p.name.clone())
        .collect()
}

fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Tensor {
            mode: ParamMode::Out,
            dtype,
            ..
        } => format!("an `out` tensor of {dtype}"),
        Kind::Tensor {
            mode: ParamMode::InOut,
            dtype,
            ..
        } => format!("an `inout` tensor of {dtype}"),
        Kind::Tensor { dtype, .. } => format!("a tensor of {dtype}"),
        Kind::Scalar { dtype, .. } => format!("a scalar of type {dtype}"),
        Kind::Index => "an index".to_owned(),
    }
}

fn describe(arg: &Arg<'_>) -> String {
    match arg {
        Arg::Tensor(view) => format!(
            "a read-only {} tensor of shape {:?}",
            view.dtype(),
            view.shape()
        ),
        Arg::TensorMut(view) => format!("a {} tensor of shape {:?}", view.dtype(), view.shape()),
        Arg::Index(value) => format!("the index {value}"),
        Arg::Scalar(scalar) => format!("the {} scalar {}", scalar.dtype, scalar.value),
    }
}

/// `x: bf16[3, 4096], eps: 1e-6`: the arguments, for the message of a launch that no instance takes.
pub(crate) fn describe_all(entry: &KernelEntry, args: &[Arg<'_>]) -> String {
    let parts: Vec<String> = (argument_names(entry).iter().zip(args))
        .map(|(name, arg)| match arg {
            Arg::Index(value) => format!("{name} = {value}"),
            Arg::Scalar(scalar) => format!("{name} = {}", scalar.value),
            _ => {
                let raw = arg.tensor().expect("the other kinds are tensors");
                format!("{name}: {}{:?}", raw.dtype, raw.shape)
            }
        })
        .collect();
    parts.join(", ")
}
