//! Compiled CPU code against the interpreter, bit for bit.
#![cfg(feature = "llvm")]

mod copies;
mod differential;
mod dot;
mod folds;
mod harness;
mod scalars;
