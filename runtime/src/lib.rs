//! Loads compiled Tessera kernels and runs the DeepSeek-V4 forward pass.

pub mod chat;
pub mod determinism;
pub mod model;
pub mod verify;
pub mod weights;
