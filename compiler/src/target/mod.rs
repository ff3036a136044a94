//! Targets: facts about them as data, and the way from MLIR's `llvm` dialect to machine code.
//!
//! The facts need no LLVM, so scheduling may use them in every build. Knows nothing of tiles; never asks the machine it runs on.

pub mod cpu;
#[cfg(feature = "llvm")]
pub mod llvm;
pub mod nvptx;
pub mod ptxas;
#[cfg(all(test, feature = "llvm"))]
mod tests;
