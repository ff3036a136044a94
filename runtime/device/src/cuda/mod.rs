//! NVIDIA GPUs as a device. The driver's library is looked up at run time: the program starts on a machine that has none.

pub mod driver;

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
