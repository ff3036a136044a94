//! The functions of the CUDA driver, looked up once when the first GPU is asked for.
//!
//! Needs: nothing. Keeps: the library stays loaded for the life of the program. Source of names and signatures: `cuda.h`, the driver API.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use libloading::Library;

use super::driver::DriverError;

/// `CUresult`.
pub(super) type Status = c_uint;
pub(super) type DevicePointer = u64;
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: Status = 0;
pub(super) const OUT_OF_MEMORY: Status = 2;
pub(super) const NOT_READY: Status = 600;

pub(super) const ATTRIBUTE_MULTIPROCESSORS: c_int = 16;
pub(super) const ATTRIBUTE_CAPABILITY_MAJOR: c_int = 75;
pub(super) const ATTRIBUTE_CAPABILITY_MINOR: c_int = 76;
pub(super) const ATTRIBUTE_SHARED_BYTES_OPT_IN: c_int = 97;
pub(super) const FUNCTION_DYNAMIC_SHARED_BYTES: c_int = 8;
pub(super) const JIT_ERROR_LOG: c_int = 5;
pub(super) const JIT_ERROR_LOG_BYTES: c_int = 6;
/// Not ordered with the stream that programs share by default.
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
pub(super) const EVENT_DISABLE_TIMING: c_uint = 2;

macro_rules! functions {
    ($($name:ident = $symbol:literal($($arg:ident: $ty:ty),*);)*) => {
        pub(super) struct Api {
            $(pub $name: unsafe extern "C" fn($($ty),*) -> Status,)*
        }
        impl Api {
            fn look_up(find: &dyn Fn(&str) -> Result<*const c_void, DriverError>) -> Result<Self, DriverError> {
                Ok(Api {
                    // SAFETY: the signature is that of `cuda.h`, and the code stays where it is.
                    $($name: unsafe {
                        std::mem::transmute::<*const c_void, unsafe extern "C" fn($($ty),*) -> Status>(find($symbol)?)
                    },)*
                })
            }
        }
    };
}

functions! {
    init = "cuInit"(flags: c_uint);
    error_name = "cuGetErrorName"(status: Status, name: *mut *const c_char);
    device = "cuDeviceGet"(device: *mut c_int, ordinal: c_int);
    device_name = "cuDeviceGetName"(name: *mut c_char, len: c_int, device: c_int);
    device_attribute = "cuDeviceGetAttribute"(value: *mut c_int, attribute: c_int, device: c_int);
    retain_context = "cuDevicePrimaryCtxRetain"(context: *mut Handle, device: c_int);
    set_context = "cuCtxSetCurrent"(context: Handle);
    create_stream = "cuStreamCreate"(stream: *mut Handle, flags: c_uint);
    create_event = "cuEventCreate"(event: *mut Handle, flags: c_uint);
    record_event = "cuEventRecord"(event: Handle, stream: Handle);
    query_event = "cuEventQuery"(event: Handle);
    allocate = "cuMemAlloc_v2"(address: *mut DevicePointer, bytes: usize);
    free = "cuMemFree_v2"(address: DevicePointer);
    to_device = "cuMemcpyHtoD_v2"(to: DevicePointer, from: *const c_void, bytes: usize);
    to_host = "cuMemcpyDtoH_v2"(to: *mut c_void, from: DevicePointer, bytes: usize);
    within_device = "cuMemcpyDtoD_v2"(to: DevicePointer, from: DevicePointer, bytes: usize);
    fill_bytes = "cuMemsetD8_v2"(to: DevicePointer, value: u8, bytes: usize);
    fill_bytes_queued = "cuMemsetD8Async"(to: DevicePointer, value: u8, bytes: usize, stream: Handle);
    synchronize = "cuCtxSynchronize"();
    load_module = "cuModuleLoadDataEx"(
        module: *mut Handle, image: *const c_void, count: c_uint, options: *mut c_int, values: *mut *mut c_void
    );
    function = "cuModuleGetFunction"(function: *mut Handle, module: Handle, name: *const c_char);
    set_function_attribute = "cuFuncSetAttribute"(function: Handle, attribute: c_int, value: c_int);
    occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor"(
        blocks: *mut c_int, function: Handle, threads: c_int, shared_bytes: usize
    );
    launch = "cuLaunchKernel"(
        function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint,
        shared_bytes: c_uint, stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void
    );
}

impl Api {
    /// The driver, started.
    pub fn get() -> Result<&'static Api, DriverError> {
        static API: OnceLock<Result<Api, DriverError>> = OnceLock::new();
        let api = API.get_or_init(|| {
            let api = match super::driver::other_functions() {
                Some(look_up) => Api::look_up(&|name| {
                    look_up(name).ok_or_else(|| DriverError::NotInstalled(format!("no `{name}`")))
                })?,
                None => {
                    // SAFETY: the driver's library has no requirements on who loads it.
                    let library = unsafe { Library::new(super::driver::LIBRARY) };
                    let library = library.map_err(|e| super::driver::not_installed(&e))?;
                    let library: &'static Library = Box::leak(Box::new(library));
                    Api::look_up(&|name| {
                        // SAFETY: only the address is taken.
                        let symbol = unsafe { library.get::<*const c_void>(name) };
                        symbol
                            .map(|s| *s)
                            .map_err(|e| super::driver::not_installed(&e))
                    })?
                }
            };
            // SAFETY: takes no pointer; the flags must be 0.
            match unsafe { (api.init)(0) } {
                SUCCESS => Ok(api),
                code => Err(DriverError::Failed {
                    call: "cuInit",
                    code,
                }),
            }
        });
        api.as_ref().map_err(Clone::clone)
    }

    /// `CUDA_ERROR_ILLEGAL_ADDRESS`, or the number where the driver has no name for it.
    pub fn name_of(&self, status: Status) -> String {
        let mut name: *const c_char = std::ptr::null();
        // SAFETY: writes one pointer, to a string that lasts.
        let known = unsafe { (self.error_name)(status, &raw mut name) } == SUCCESS;
        if known && !name.is_null() {
            // SAFETY: the driver's string ends with a zero.
            unsafe { CStr::from_ptr(name) }
                .to_string_lossy()
                .into_owned()
        } else {
            format!("error {status}")
        }
    }
}
