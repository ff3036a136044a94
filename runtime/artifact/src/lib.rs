//! What compiler and runtime agree on: element types and their exact numerics, host expressions, the manifest of a kernel
//! and the launch ABI, and the `.tlk` archive that carries them. No LLVM, no CUDA.

mod archive;
mod dtype;
mod host_expr;
mod manifest;
pub mod numeric;

pub use archive::{Archive, ArchiveError, FORMAT_VERSION, write_archive};
pub use dtype::DType;
pub use host_expr::{BoundExpr, EvalError, HostExpr, HostOp, HostType};
pub use manifest::{
    ContractEntry, CpuCode, CpuVariant, DimEntry, KernelEntry, MAX_DIMS, MAX_PARAMS, MAX_RANK,
    Manifest, ManifestError, ParamEntry, ParamKind, ParamMode, PtxCode, Requirement, TensorMap,
};
