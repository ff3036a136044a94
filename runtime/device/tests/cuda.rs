//! The GPU as a device, as far as a machine without one can tell.

use tessera_device::cuda::driver::DriverError;
use tessera_device::cuda::find;
use tessera_device::{CudaError, CudaOptions, Device};

/// Asking for a GPU where there is none is an error that says what is missing, and the program goes on.
#[test]
fn a_missing_driver_or_gpu_is_an_error() {
    let beyond = CudaOptions {
        ordinal: 1 << 20,
        ..CudaOptions::default()
    };
    match (find(), Device::cuda_with(beyond)) {
        (Err(DriverError::NotInstalled), Err(CudaError::Driver(why))) => {
            assert!(why.to_string().starts_with("no CUDA driver: "), "{why}");
        }
        (_, Err(CudaError::Driver(why))) => {
            assert!(why.to_string().contains("cu"), "{why}");
        }
        (_, other) => panic!("device 2^20: {other:?}"),
    }
}
