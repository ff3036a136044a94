//! NVIDIA GPUs as a device. The driver's library is looked up at run time: the program starts on a machine that has none.
//!
//! [`driver`] says what is asked of a driver, `installed` is the machine's own, `context` holds memory and whether the GPU still works,
//! `tensor_map` describes tensors to it, `device` queues launches, `queue` knows which are under way, `cubins` keeps translated code on disk, `recording` keeps some to be
//! queued again together, `timing` takes their time.

mod context;
mod cubins;
mod device;
pub mod driver;
mod installed;
mod order;
mod queue;
mod recording;
mod tensor_map;
mod timing;

pub use context::{CudaBuffer, CudaError};
pub use cubins::Cubins;
pub use device::{CudaDevice, CudaOptions};
pub(crate) use device::{CudaKernel, launch_error};
pub(crate) use driver::Mark;
pub use installed::find;
pub use recording::CudaRecording;
