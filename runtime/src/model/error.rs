//! What can go wrong between a model's folder and its logits.

use std::fmt;

use super::config::ConfigError;
use super::pages::PAGE_TOKENS;
use crate::weights::WeightsError;
use tessera_device::{CudaError, LaunchError, TensorError};

/// Why a model cannot be loaded or run.
#[derive(Debug)]
pub enum ModelError {
    Config(ConfigError),
    Weights(WeightsError),
    Tensor(TensorError),
    Launch(LaunchError),
    /// The GPU does not work, or an earlier launch on it failed.
    Device(CudaError),
    /// Tokens, sequences or sizes that the call cannot take.
    Input(String),
    /// The cache has no room for a request or for its tokens.
    Full(CacheFull),
    /// A checkpoint or setting that this version does not run.
    Unsupported(String),
}

impl fmt::Display for ModelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelError::Config(error) => error.fmt(f),
            ModelError::Weights(error) => error.fmt(f),
            ModelError::Tensor(error) => error.fmt(f),
            ModelError::Launch(error) => error.fmt(f),
            ModelError::Device(error) => error.fmt(f),
            ModelError::Full(error) => error.fmt(f),
            ModelError::Input(text) | ModelError::Unsupported(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for ModelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ModelError::Config(error) => Some(error),
            ModelError::Weights(error) => Some(error),
            ModelError::Tensor(error) => Some(error),
            ModelError::Launch(error) => Some(error),
            ModelError::Device(error) => Some(error),
            ModelError::Full(error) => Some(error),
            ModelError::Input(_) | ModelError::Unsupported(_) => None,
        }
    }
}

/// Why a cache takes no more. Other requests go on; when one of them ends there is room again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheFull {
    /// Every block of state belongs to a request.
    States { states: usize },
    /// A call needs more pages of entries than are free.
    Pages {
        needed: usize,
        free: usize,
        total: usize,
    },
}

impl fmt::Display for CacheFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheFull::States { states } => write!(
                f,
                "the cache has state for {states} requests, and all of them run; end one, or make a session for more sequences"
            ),
            CacheFull::Pages {
                needed,
                free,
                total,
            } => write!(
                f,
                "the call needs {needed} more pages of {PAGE_TOKENS} tokens, and {free} of the cache's {total} are free; end a request, or make a \
                 session with more pages"
            ),
        }
    }
}

impl std::error::Error for CacheFull {}

impl From<CacheFull> for ModelError {
    fn from(error: CacheFull) -> Self {
        ModelError::Full(error)
    }
}

impl From<ConfigError> for ModelError {
    fn from(error: ConfigError) -> Self {
        ModelError::Config(error)
    }
}

impl From<WeightsError> for ModelError {
    fn from(error: WeightsError) -> Self {
        ModelError::Weights(error)
    }
}

impl From<TensorError> for ModelError {
    fn from(error: TensorError) -> Self {
        ModelError::Tensor(error)
    }
}

impl From<LaunchError> for ModelError {
    fn from(error: LaunchError) -> Self {
        ModelError::Launch(error)
    }
}

impl From<CudaError> for ModelError {
    fn from(error: CudaError) -> Self {
        ModelError::Device(error)
    }
}
