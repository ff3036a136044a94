//! The manifest: everything the host must know to check and launch a kernel.
//!
//! # Launch ABI of CPU code
//! `extern "C" fn(args: *const u64, scratch: *mut u8, cta_begin: i64, cta_end: i64)` runs the CTAs `cta_begin..cta_end` of the
//! linearised grid (`cta = block(0) + grid[0] * (block(1) + grid[1] * block(2))`). `args` holds, one 64-bit word each:
//! for every parameter in order: a tensor gives its address and then one stride per axis in elements (signed); a scalar gives its
//! bits in the low end of the word (`index`, i64 whole); then the value of every dim in the order of `dims` (an `index` scalar is a parameter, not a dim);
//! then the grid extents (3 words, missing axes 1); then the address of the error record: two u64, zero before the launch. Code that meets a
//! failed check writes the check's number from 1 (the greatest stays) and a CTA that met it, and leaves the CTAs that follow undone.
//! `scratch` is `scratch_bytes` of 64-byte aligned memory that belongs to the calling thread for the call.
//!
//! # Launch ABI of PTX
//! One kernel parameter by value, 64-byte aligned where it has tensor maps, else 8-byte: first the maps of [`PtxCode::tensor_maps`], 128
//! bytes each, in order; then the same words; and after them the address of scratch memory, `scratch_bytes` for each CTA of the launch.
//! The launch is one-dimensional, CTAs of `threads` threads with `shared_bytes` of dynamic shared memory. It may have fewer CTAs than the
//! grid has items (then all of them must run at once): CTA c runs the items c, c + CTAs, and so on, ascending. A failed check ends its CTA; the
//! others go on. The CTAs of a cluster run items that are neighbours along the first axis of the grid.
//!
//! A launch takes the first of an instance's PTX codes whose clusters fill the first axis of the grid and whose tensor maps can be made for the
//! arguments.

use crate::{DType, HostExpr, HostType};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Hash of the compiler that wrote it.
    pub compiler: String,
    /// One entry per instance; a launch by kernel name takes the first whose dims and requirements hold.
    pub kernels: Vec<KernelEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelEntry {
    /// `dsv4::norm::rmsnorm`: module path and kernel name.
    pub name: String,
    /// Generic arguments in declaration order as text: `[("T", "bf16"), ("H", "4096")]`.
    pub generics: Vec<(String, String)>,
    pub docs: String,
    pub params: Vec<ParamEntry>,
    pub dims: Vec<DimEntry>,
    pub requires: Vec<Requirement>,
    /// One to three extents; an extent of 0 launches nothing.
    pub grid: Vec<HostExpr>,
    pub contracts: Vec<ContractEntry>,
    pub cpu: Vec<CpuCode>,
    /// The fastest first; the last one, if it has no tensor maps, takes whatever the instance takes.
    pub ptx: Vec<PtxCode>,
    /// Content key: canonical program, generics, targets, compiler.
    pub key: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParamEntry {
    pub name: String,
    pub kind: ParamKind,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamKind {
    Tensor {
        mode: ParamMode,
        dtype: DType,
        /// Over dims and `index` scalars. A dim takes its value from the first extent that is just its name.
        shape: Vec<HostExpr>,
        /// Bytes; the start of the tensor and of every row is a multiple. At least the element's own (1 for half bytes).
        align: u32,
        /// The last axis has stride 1 (always, unless the author wrote `@strided`).
        contiguous: bool,
    },
    Scalar {
        dtype: DType,
    },
    /// A mathematical integer, passed as i64.
    Index,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamMode {
    In,
    Out,
    InOut,
    /// Allocated by the host for the launch, contents undefined.
    Scratch,
    /// Allocated by the host for the launch, zeroed.
    Flags,
}

/// A dim or an `index` scalar with its inclusive range.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DimEntry {
    pub name: String,
    pub lo: i64,
    pub hi: i64,
    pub step: i64,
    /// An `index` scalar parameter of this name carries the value; it takes no word among the dims.
    pub scalar: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Requirement {
    pub cond: HostExpr,
    /// As the author wrote it, for the message.
    pub text: String,
    pub message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContractEntry {
    /// `det(bitwise)`, `batch_invariant(M)`: proved when compiled.
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CpuVariant {
    /// x86-64-v3.
    Avx2,
    /// x86-64-v4.
    Avx512,
    /// x86-64-v4 with the bf16 dot product.
    Avx512Bf16,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpuCode {
    pub variant: CpuVariant,
    /// Index of the archive's blob: a relocatable ELF object.
    pub blob: u32,
    pub symbol: String,
    /// Per thread.
    pub scratch_bytes: u64,
    /// What each number in the error record means; the first is number 1.
    pub traps: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PtxCode {
    /// Index of the archive's blob: PTX text.
    pub blob: u32,
    pub symbol: String,
    pub threads: u32,
    /// Dynamic shared memory per CTA.
    pub shared_bytes: u32,
    /// Global scratch per CTA for tiles that exceed shared memory.
    pub scratch_bytes: u64,
    /// What the launch makes of the arguments, in order of the parameter.
    pub tensor_maps: Vec<TensorMap>,
    /// At most as many CTAs as run at the same time, each taking several items; else one CTA for each item.
    pub persistent: bool,
    /// CTAs of a cluster, as the PTX says too: a grid's first axis is a multiple of it. 1: no clusters.
    pub cluster: u32,
    /// Every thread waits by itself (`griddepcontrol.wait`) until the launches before it are over, before it touches global memory: a launch
    /// may start while the one before it is under way.
    pub waits: bool,
    /// Its products' sums are the hardware's: near those of other code for the instance, not the same.
    pub tensor_cores: bool,
    /// What each number in the error record means; the first is number 1.
    pub traps: Vec<String>,
}

/// Boxes of a tensor that the tensor memory accelerator copies to and from shared memory. Element type, shape and strides are the
/// argument's; what a box reads outside the tensor is zero, what it writes there is dropped. Two e2m1 codes count as one byte.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorMap {
    /// Index into the kernel's parameters.
    pub param: u32,
    /// Of the box: one per axis of the tensor, outermost first; for e2m1 the last is in bytes.
    pub extents: Vec<u32>,
    /// How shared memory is permuted: within groups of so many bytes (32, 64, 128), or 0 for not at all.
    pub swizzle: u32,
}

impl CpuVariant {
    pub const ALL: [CpuVariant; 3] = [CpuVariant::Avx2, CpuVariant::Avx512, CpuVariant::Avx512Bf16];

    pub fn name(self) -> &'static str {
        match self {
            CpuVariant::Avx2 => "avx2",
            CpuVariant::Avx512 => "avx512",
            CpuVariant::Avx512Bf16 => "avx512bf16",
        }
    }

    pub fn from_name(name: &str) -> Option<CpuVariant> {
        CpuVariant::ALL.into_iter().find(|v| v.name() == name)
    }
}

impl fmt::Display for CpuVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl ParamMode {
    /// The host gives the memory; the others it allocates for the launch.
    pub fn is_argument(self) -> bool {
        matches!(self, ParamMode::In | ParamMode::Out | ParamMode::InOut)
    }

    pub fn is_written(self) -> bool {
        matches!(self, ParamMode::Out | ParamMode::InOut)
    }
}

impl KernelEntry {
    /// `rmsnorm` of `dsv4::norm::rmsnorm`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit("::").next().unwrap_or(&self.name)
    }

    /// `rmsnorm<T = bf16, H = 4096>`: how messages name the instance.
    pub fn instance_name(&self) -> String {
        match self.generics.is_empty() {
            true => self.name.clone(),
            false => {
                let list: Vec<_> = self
                    .generics
                    .iter()
                    .map(|(name, value)| format!("{name} = {value}"))
                    .collect();
                format!("{}<{}>", self.name, list.join(", "))
            }
        }
    }
}

/// A manifest that no launch may use: what is wrong, in which kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct ManifestError {
    /// The instance; empty where it has no name.
    pub kernel: String,
    pub what: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel `{}`: {}", self.kernel, self.what)
    }
}

impl std::error::Error for ManifestError {}

pub const MAX_RANK: usize = 8;
pub const MAX_PARAMS: usize = 64;
pub const MAX_DIMS: usize = 64;
pub const MAX_EXPR_DEPTH: usize = 32;
pub const MAX_ALIGN: u32 = 4096;
pub const MAX_THREADS: u32 = 1024;
/// CTAs of a cluster on every GPU that has clusters.
pub const MAX_CLUSTER: u32 = 8;
/// Shared memory that a block may have.
const MAX_SHARED_BYTES: u64 = 227 * 1024;
/// Scratch memory of one thread, or of one CTA.
pub const MAX_SCRATCH_BYTES: u64 = 1 << 32;

impl Manifest {
    /// Checks that every entry can be launched: names resolve, types fit, blobs exist, sizes are sane. `blobs` is how many the archive has.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self, blobs: usize) -> Result<(), ManifestError> {
        for kernel in &self.kernels {
            kernel.check(blobs).map_err(|what| ManifestError {
                kernel: kernel.instance_name(),
                what,
            })?;
        }
        self.check_instances()
    }

    /// Instances of one kernel are launched with the same arguments, so they differ only in what generics may change.
    fn check_instances(&self) -> Result<(), ManifestError> {
        let mut first_of = std::collections::BTreeMap::<&str, &KernelEntry>::new();
        for kernel in &self.kernels {
            let first = *first_of.entry(&kernel.name).or_insert(kernel);
            let same = first.params.len() == kernel.params.len()
                && first.params.iter().zip(&kernel.params).all(|(a, b)| {
                    a.name == b.name
                        && match (&a.kind, &b.kind) {
                            (
                                ParamKind::Tensor { mode: m, .. },
                                ParamKind::Tensor { mode: n, .. },
                            ) => m == n,
                            (ParamKind::Scalar { .. }, ParamKind::Scalar { .. }) => true,
                            (ParamKind::Index, ParamKind::Index) => true,
                            _ => false,
                        }
                });
            if !same {
                let what = format!(
                    "its parameters differ from those of `{}`",
                    first.instance_name()
                );
                return Err(ManifestError {
                    kernel: kernel.instance_name(),
                    what,
                });
            }
        }
        Ok(())
    }
}

impl KernelEntry {
    fn check(&self, blobs: usize) -> Result<(), String> {
        if self.name.is_empty() {
            return Err("it has no name".into());
        }
        if self.params.len() > MAX_PARAMS || self.dims.len() > MAX_DIMS {
            return Err(format!(
                "more than {MAX_PARAMS} parameters or {MAX_DIMS} dims"
            ));
        }
        check_unique("parameter", self.params.iter().map(|p| &p.name))?;
        check_unique("dim", self.dims.iter().map(|d| &d.name))?;
        for dim in &self.dims {
            if dim.step < 1 || dim.lo > dim.hi {
                return Err(format!(
                    "dim `{}` has range {}..={} step {}",
                    dim.name, dim.lo, dim.hi, dim.step
                ));
            }
            self.check_dim_source(dim)?;
        }
        for param in &self.params {
            self.check_param(param)?;
        }
        if !(1..=3).contains(&self.grid.len()) {
            return Err(format!("its grid has {} extents", self.grid.len()));
        }
        for extent in &self.grid {
            self.check_expr("a grid extent", extent, HostType::Int)?;
        }
        for requirement in &self.requires {
            self.check_expr("a requirement", &requirement.cond, HostType::Bool)?;
        }
        self.check_code(blobs)
    }

    /// A dim takes its value from an extent that is just its name, or from the `index` parameter of that name.
    fn check_dim_source(&self, dim: &DimEntry) -> Result<(), String> {
        let found = self.params.iter().any(|p| match &p.kind {
            ParamKind::Tensor { mode, shape, .. } => {
                !dim.scalar
                    && mode.is_argument()
                    && shape
                        .iter()
                        .any(|e| matches!(e, HostExpr::Dim(n) if *n == dim.name))
            }
            ParamKind::Index => dim.scalar && p.name == dim.name,
            ParamKind::Scalar { .. } => false,
        });
        match found {
            true => Ok(()),
            false => Err(format!(
                "no parameter gives the value of dim `{}`",
                dim.name
            )),
        }
    }

    fn check_param(&self, param: &ParamEntry) -> Result<(), String> {
        match &param.kind {
            ParamKind::Tensor {
                dtype,
                shape,
                align,
                ..
            } => {
                let name = &param.name;
                if shape.len() > MAX_RANK {
                    return Err(format!(
                        "`{name}` has rank {}, more than {MAX_RANK}",
                        shape.len()
                    ));
                }
                let element = dtype.bits().div_ceil(8);
                if !align.is_power_of_two() || *align < element || *align > MAX_ALIGN {
                    return Err(format!("`{name}` ({dtype}) is aligned to {align} bytes"));
                }
                shape.iter().try_for_each(|e| {
                    self.check_expr(&format!("the shape of `{name}`"), e, HostType::Int)
                })
            }
            ParamKind::Index if !self.dims.iter().any(|d| d.scalar && d.name == param.name) => {
                Err(format!("`{}` has no range among the dims", param.name))
            }
            ParamKind::Index | ParamKind::Scalar { .. } => Ok(()),
        }
    }

    fn check_expr(&self, what: &str, expr: &HostExpr, ty: HostType) -> Result<(), String> {
        if expr.depth() > MAX_EXPR_DEPTH {
            return Err(format!(
                "{what} nests more than {MAX_EXPR_DEPTH} operations"
            ));
        }
        if expr.ty() != Some(ty) {
            return Err(format!("{what}, `{expr}`, has the wrong type"));
        }
        let mut problem = None;
        expr.walk(&mut |e| match e {
            HostExpr::Dim(n) if !self.dims.iter().any(|d| d.name == *n) => {
                problem = Some(format!("{what} mentions `{n}`, which is no dim"));
            }
            HostExpr::Scalar(n)
                if !self
                    .params
                    .iter()
                    .any(|p| p.name == *n && matches!(p.kind, ParamKind::Scalar { .. })) =>
            {
                problem = Some(format!(
                    "{what} mentions `{n}`, which is no scalar parameter"
                ));
            }
            HostExpr::Float(x) if !x.is_finite() => problem = Some(format!("{what} holds {x}")),
            _ => {}
        });
        problem.map_or(Ok(()), Err)
    }

    fn check_code(&self, blobs: usize) -> Result<(), String> {
        let blob = |index: u32| match (index as usize) < blobs {
            true => Ok(()),
            false => Err(format!(
                "its code is blob {index}, and the archive has {blobs}"
            )),
        };
        for (i, code) in self.cpu.iter().enumerate() {
            blob(code.blob)?;
            if code.symbol.is_empty() || code.scratch_bytes > MAX_SCRATCH_BYTES {
                return Err(format!(
                    "its {} code has no symbol, or {} bytes of scratch memory",
                    code.variant, code.scratch_bytes
                ));
            }
            if self.cpu[..i]
                .iter()
                .any(|other| other.variant == code.variant)
            {
                return Err(format!("it has {} code twice", code.variant));
            }
        }
        for code in &self.ptx {
            blob(code.blob)?;
            if code.symbol.is_empty()
                || !(1..=MAX_THREADS).contains(&code.threads)
                || code.scratch_bytes > MAX_SCRATCH_BYTES
                || !(1..=MAX_CLUSTER).contains(&code.cluster)
            {
                return Err(format!(
                    "its PTX has no symbol, {} threads, {} bytes of scratch memory, or clusters of {}",
                    code.threads, code.scratch_bytes, code.cluster
                ));
            }
            for map in &code.tensor_maps {
                self.check_tensor_map(map)?;
            }
        }
        Ok(())
    }

    /// What can be known of a tensor map before a launch.
    fn check_tensor_map(&self, map: &TensorMap) -> Result<(), String> {
        let param = self.params.get(map.param as usize);
        let Some(ParamEntry {
            name,
            kind: ParamKind::Tensor { dtype, shape, .. },
        }) = param
        else {
            return Err(format!(
                "a tensor map is of parameter {}, which is no tensor",
                map.param
            ));
        };
        let extents = &map.extents;
        let wrong = |what: &str| {
            Err(format!(
                "the tensor map of `{name}`, boxes of {extents:?} with swizzle {}: {what}",
                map.swizzle
            ))
        };
        let Some(&innermost) = extents.last() else {
            return wrong("a scalar has none");
        };
        if extents.len() != shape.len() || extents.len() > 5 {
            return wrong(&format!(
                "the tensor has rank {}, and a map at most 5",
                shape.len()
            ));
        }
        if extents.iter().any(|n| !(1..=256).contains(n)) {
            return wrong("an extent is outside of 1..=256");
        }
        if !matches!(map.swizzle, 0 | 32 | 64 | 128) {
            return wrong("swizzles are 0, 32, 64 and 128 bytes");
        }
        let element = u64::from(dtype.bits().max(8) / 8);
        let row = u64::from(innermost) * element;
        if !row.is_multiple_of(16) || (map.swizzle != 0 && row > u64::from(map.swizzle)) {
            return wrong(&format!(
                "a row has {row} bytes, no multiple of 16 or more than a swizzle permutes"
            ));
        }
        let rest = extents.iter().map(|&n| u64::from(n)).product::<u64>() * element;
        if rest > MAX_SHARED_BYTES {
            return wrong(&format!(
                "it has {rest} bytes, and shared memory {MAX_SHARED_BYTES}"
            ));
        }
        Ok(())
    }
}

fn check_unique<'n>(what: &str, names: impl Iterator<Item = &'n String>) -> Result<(), String> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if name.is_empty() || !seen.insert(name) {
            return Err(format!(
                "two {what}s are named `{name}`, or one has no name"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `y[n] += a * x[n]`, blocks of 64.
    pub(crate) fn axpy() -> KernelEntry {
        let tensor = |name: &str, mode| ParamEntry {
            name: name.into(),
            kind: ParamKind::Tensor {
                mode,
                dtype: DType::F32,
                shape: vec![HostExpr::dim("N")],
                align: 4,
                contiguous: true,
            },
        };
        KernelEntry {
            name: "blas::axpy".into(),
            generics: vec![("B".into(), "64".into())],
            docs: "y += a x".into(),
            params: vec![
                tensor("x", ParamMode::In),
                tensor("y", ParamMode::InOut),
                ParamEntry {
                    name: "a".into(),
                    kind: ParamKind::Scalar { dtype: DType::F32 },
                },
            ],
            dims: vec![DimEntry {
                name: "N".into(),
                lo: 0,
                hi: 1 << 40,
                step: 1,
                scalar: false,
            }],
            requires: vec![Requirement {
                cond: HostExpr::op(
                    crate::HostOp::Gt,
                    [HostExpr::Scalar("a".into()), HostExpr::Float(0.0)],
                ),
                text: "a > 0.0".into(),
                message: None,
            }],
            grid: vec![HostExpr::op(
                crate::HostOp::CeilDiv,
                [HostExpr::dim("N"), HostExpr::Int(64)],
            )],
            contracts: vec![ContractEntry {
                text: "det(bitwise)".into(),
            }],
            cpu: vec![CpuCode {
                variant: CpuVariant::Avx2,
                blob: 0,
                symbol: "axpy".into(),
                scratch_bytes: 0,
                traps: vec![],
            }],
            ptx: vec![PtxCode {
                blob: 1,
                symbol: "axpy".into(),
                threads: 128,
                shared_bytes: 0,
                scratch_bytes: 0,
                tensor_maps: vec![TensorMap {
                    param: 0,
                    extents: vec![64],
                    swizzle: 0,
                }],
                persistent: false,
                waits: true,
                tensor_cores: false,
                cluster: 1,
                traps: vec![],
            }],
            key: "k".into(),
        }
    }

    fn refused(change: impl FnOnce(&mut KernelEntry)) -> String {
        let mut kernel = axpy();
        change(&mut kernel);
        Manifest {
            compiler: String::new(),
            kernels: vec![kernel],
        }
        .check(2)
        .unwrap_err()
        .to_string()
    }

    #[test]
    fn contradictions_are_named() {
        assert_eq!(
            refused(|k| k.cpu[0].blob = 2),
            "kernel `blas::axpy<B = 64>`: its code is blob 2, and the archive has 2"
        );
        assert!(
            refused(|k| k.dims[0].step = 0).contains("dim `N` has range 0..=1099511627776 step 0")
        );
        assert!(
            refused(|k| k.dims[0].name = "M".into())
                .contains("no parameter gives the value of dim `M`")
        );
        assert!(refused(|k| k.grid.clear()).contains("its grid has 0 extents"));
        assert!(
            refused(|k| k.grid[0] = HostExpr::dim("K")).contains("mentions `K`, which is no dim")
        );
        assert!(refused(|k| k.grid[0] = HostExpr::Bool(true)).contains("has the wrong type"));
        assert!(
            refused(|k| k.params[1].name = "x".into()).contains("two parameters are named `x`")
        );
        assert!(refused(|k| k.ptx[0].threads = 0).contains("0 threads"));
        assert!(refused(|k| k.ptx[0].cluster = 0).contains("clusters of 0"));
    }

    #[test]
    fn tensor_maps_that_no_launch_could_make_are_refused() {
        let refused = |change: fn(&mut TensorMap), why: &str| {
            let found = refused(|k| change(&mut k.ptx[0].tensor_maps[0]));
            assert!(found.contains(why), "{found}");
        };
        refused(|m| m.param = 2, "parameter 2, which is no tensor");
        refused(|m| m.extents = vec![], "a scalar has none");
        refused(|m| m.extents = vec![1, 64], "the tensor has rank 1");
        refused(|m| m.extents = vec![260], "outside of 1..=256");
        refused(|m| m.extents = vec![5], "a row has 20 bytes");
        refused(|m| m.swizzle = 128, "a row has 256 bytes");
        refused(|m| m.swizzle = 16, "swizzles are 0, 32, 64 and 128");
    }

    #[test]
    fn instances_of_one_kernel_take_the_same_arguments() {
        let mut other = axpy();
        other.params.swap(0, 1);
        let manifest = Manifest {
            compiler: String::new(),
            kernels: vec![axpy(), other],
        };
        assert!(
            manifest
                .check(2)
                .unwrap_err()
                .what
                .contains("its parameters differ")
        );
    }
}
