//! Tile kernels through the GPU back end: to PTX, on through ptxas where there is one, and on an emulated GPU.
#![cfg(feature = "llvm")]

mod emulator;
mod few_rows;
mod generated;
mod harness;
mod hyper_connection;
mod kernels;
mod launches;
mod library;
mod lowering;
mod measuring;
mod queue;
mod records;
mod running;
mod tensor_cores;
