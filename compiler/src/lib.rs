//! The Tessera compiler. The modules in the order of the way through it.

pub mod cli;
pub mod diag;
pub mod driver;
pub mod embed;
#[cfg(feature = "llvm")]
pub mod mlir;
pub mod schedule;
pub mod sema;
pub mod source;
pub mod syntax;
pub mod target;
pub mod testing;
pub mod tile;
