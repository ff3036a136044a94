//! The CPU as a device: loads compiled kernels and runs their CTAs on a pool of threads.

pub mod features;
pub mod loader;
pub mod pool;
