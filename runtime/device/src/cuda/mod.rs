//! NVIDIA GPUs as a device. The driver's library is looked up at run time: the program starts on a machine that has none.
//!
//! [`driver`] says what is asked of a driver, `installed` is the machine's own, `context` holds memory and whether the GPU still works,
//! `tensor_map` describes tensors to it, `device` launches,
//! `timing` takes the time of it.

mod context;
mod device;
pub mod driver;
mod installed;
mod tensor_map;
mod timing;

pub use context::{CudaBuffer, CudaError};
pub(crate) use device::CudaKernel;
pub use device::{CudaDevice, CudaOptions};
pub use installed::find;
