//! The CPU as a device: loads compiled kernels and runs their CTAs on a pool of threads.

mod device;
pub mod features;
pub mod loader;

pub mod pool;

pub use device::{CpuDevice, CpuOptions};
pub(crate) use device::{CpuKernel, CpuLoadError, Objects};
