//! The CUDA device.

/// Memory of a CUDA device.
#[derive(Clone)]
pub enum CudaBuffer {}

impl CudaBuffer {
    pub fn ordinal(&self) -> u32 {
        match *self {}
    }
    pub fn address(&self) -> u64 {
        match *self {}
    }
    pub fn bytes(&self) -> usize {
        match *self {}
    }
}
