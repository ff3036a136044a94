//! NVIDIA GPUs as a device. The driver's library is looked up at run time: the program starts on a machine that has none.

mod api;
mod context;
mod device;
pub mod driver;

pub use context::{CudaBuffer, CudaError};
pub(crate) use device::CudaKernel;
pub use device::{CudaDevice, CudaOptions};
