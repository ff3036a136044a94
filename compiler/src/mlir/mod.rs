//! Emission: scheduled tile IR becomes MLIR. Knows the `Plan` and MLIR's dialects; nothing of syntax, LLVM passes or files.

mod context;

pub use context::{CodegenError, Lowering, MlirContext};
