//! The manifest: everything the host must know to check and launch a kernel.
//!
//! # Launch ABI of CPU code
//! `extern "C" fn(args: *const u64, scratch: *mut u8, cta_begin: i64, cta_end: i64)` runs the CTAs `cta_begin..cta_end` of the
//! linearised grid (`cta = block(0) + grid[0] * (block(1) + grid[1] * block(2))`). `args` holds, one 64-bit word each:
//! for every parameter in order: a tensor gives its address and then one stride per axis in elements (signed); a scalar gives its
//! bits in the low end of the word (`index`, i64 whole); then the value of every dim in the order of `dims` (an `index` scalar is a parameter, not a dim);
//! then the grid extents (3 words, missing axes 1).
//! `scratch` is `scratch_bytes` of 64-byte aligned memory that belongs to the calling thread for the call.
//!
//! # Launch ABI of PTX
//! One kernel parameter: the same words by value as one array (`.param .align 8 .b8 args[8 * n]`); the launch is
//! `grid[0] x grid[1] x grid[2]` CTAs of `threads` threads with `shared_bytes` of dynamic shared memory.

use crate::{DType, HostExpr};
use serde::{Deserialize, Serialize};

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
    pub ptx: Option<PtxCode>,
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
        /// Bytes; at least the element's own.
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
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PtxCode {
    /// Index of the archive's blob: PTX text.
    pub blob: u32,
    pub symbol: String,
    pub threads: u32,
    /// Dynamic shared memory per CTA.
    pub shared_bytes: u32,
    /// Global scratch per CTA for tiles that exceed shared memory; the address is one more word after the grid extents.
    pub scratch_bytes: u64,
}
