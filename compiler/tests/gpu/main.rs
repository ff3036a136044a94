//! Tile kernels through the GPU back end: to PTX, and on through ptxas where there is one.
#![cfg(feature = "llvm")]

mod harness;
mod kernels;
mod lowering;
