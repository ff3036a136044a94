//! Emission: tile IR becomes MLIR. Knows the tile IR and MLIR's dialects; nothing of syntax, LLVM passes or files.
//!
//! [`build`] and [`scalar`] are shared by the back ends; [`cpu`] emits native code, [`gpu`] code for NVIDIA GPUs.

pub mod build;
mod context;
pub mod cpu;
pub mod gpu;
pub mod scalar;

pub use context::{CodegenError, Lowering, MlirContext};
