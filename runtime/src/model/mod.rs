//! The DeepSeek-V4 model: its configuration, what it costs, and its forward pass.

pub mod batch;
pub mod codes;
pub mod config;
pub mod cost;
mod error;
pub mod forward;
mod forward_attention;
mod forward_draft;
mod forward_experts;
mod forward_quantised;
mod kept;
pub mod kernels;
pub mod kv_cache;
mod ops;
pub mod pages;
pub mod parameters;
pub mod plan;
mod quantised;
#[cfg(test)]
mod requests;
mod rope;
pub mod sample;
mod steps;
mod synthetic;
pub mod tokenizer;
pub mod trace;
mod workspace;

pub use batch::Run;
pub use error::{CacheFull, ModelError};
pub use forward::{Logits, Model, Output, Session};
pub use kv_cache::Room;
pub use trace::Trace;
