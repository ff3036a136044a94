//! What compiler and runtime agree on: element types and their exact numerics, host expressions, the manifest of a kernel
//! and the launch ABI, and the `.tlk` archive that carries them. No LLVM, no CUDA.

mod dtype;
mod host_expr;
mod manifest;

pub use dtype::DType;
pub use host_expr::{EvalError, HostExpr, HostOp};
pub use manifest::{
    ContractEntry, CpuCode, CpuVariant, DimEntry, KernelEntry, Manifest, ParamEntry, ParamKind,
    ParamMode, PtxCode, Requirement,
};
