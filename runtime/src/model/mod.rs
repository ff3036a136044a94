//! The DeepSeek-V4 model: its configuration, what it costs, and its forward pass.

pub mod config;
pub mod plan;
