//! Checkpoints: safetensors files, mapped, checked against themselves and against the model's configuration.
//!
//! Needs: a folder with `model.safetensors`, or with shards and `model.safetensors.index.json`. Keeps: nothing a file
//! says is used before it was checked, so a [`Tensor`] has exactly the bytes that its shape and dtype ask for.
//! Knows nothing of devices: it hands out bytes of the mapped file.

mod checkpoint;
mod dtype;
mod error;
mod expected;
mod file;
mod header;
mod names;
mod write;

pub use checkpoint::Checkpoint;
pub use dtype::Dtype;
pub use error::{HeaderProblem, Mismatch, WeightsError};
pub use expected::{Draft, ExpectedTensor, bad_code, check, expected_tensors};
pub use file::{SafetensorsFile, Tensor};
pub use write::{TensorSpec, Writer};

#[cfg(test)]
mod tests;
