//! One GPU: its context, its memory, and whether it still works.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::{Arc, OnceLock};

use super::api::{self, Api, DevicePointer, Handle, Status};
use super::driver::DriverError;

/// Why a GPU cannot be used, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaError {
    Driver(DriverError),
    /// The kernels are for another architecture.
    Architecture {
        gpu: String,
        capability: (i32, i32),
    },
    OutOfMemory {
        bytes: usize,
    },
    /// A call failed.
    Call {
        what: &'static str,
        error: String,
    },
    /// An earlier failure left the GPU's context unusable; it says which.
    Broken(String),
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(why) => why.fmt(f),
            Self::Architecture {
                gpu,
                capability: (major, minor),
            } => write!(
                f,
                "{gpu} has compute capability {major}.{minor}, and the kernels are for 9.0 (H100, H200)"
            ),
            Self::OutOfMemory { bytes } => {
                write!(f, "the GPU has no memory for {bytes} bytes")
            }
            Self::Call { what, error } => write!(f, "{what}: {error}"),
            Self::Broken(why) => {
                write!(f, "the GPU cannot be used any more in this process: {why}")
            }
        }
    }
}

impl std::error::Error for CudaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Driver(why) => Some(why),
            _ => None,
        }
    }
}

/// The primary context of one GPU and a stream of our own. Lives as long as any memory on it.
pub(super) struct Context {
    pub api: &'static Api,
    pub ordinal: u32,
    pub name: String,
    pub multiprocessors: u32,
    /// What a block may have with the opt-in.
    pub shared_bytes: u32,
    context: Handle,
    pub stream: Handle,
    pub done: Handle,
    /// Why nothing works any more: a kernel that never ended, an access outside all memory.
    broken: OnceLock<String>,
}

// SAFETY: the driver's handles may be used from any thread; every use first makes the context the thread's own.
unsafe impl Send for Context {}
unsafe impl Sync for Context {}

impl Context {
    pub fn new(ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let api = Api::get().map_err(CudaError::Driver)?;
        let failed = |call: &'static str| {
            move |code: Status| CudaError::Driver(DriverError::Failed { call, code })
        };
        let mut device: c_int = 0;
        // SAFETY: writes one handle.
        status(unsafe { (api.device)(&raw mut device, ordinal as c_int) })
            .map_err(failed("cuDeviceGet"))?;
        let attribute = |which: c_int| {
            let mut value: c_int = 0;
            // SAFETY: writes one int.
            status(unsafe { (api.device_attribute)(&raw mut value, which, device) })
                .map_err(failed("cuDeviceGetAttribute"))?;
            Ok(value)
        };
        let mut name = [0u8; 256];
        // SAFETY: writes at most the given length, the closing zero included.
        status(unsafe { (api.device_name)(name.as_mut_ptr().cast(), name.len() as c_int, device) })
            .map_err(failed("cuDeviceGetName"))?;
        let name = std::ffi::CStr::from_bytes_until_nul(&name)
            .map_or("?".into(), std::ffi::CStr::to_string_lossy)
            .into_owned();
        let capability = (
            attribute(api::ATTRIBUTE_CAPABILITY_MAJOR)?,
            attribute(api::ATTRIBUTE_CAPABILITY_MINOR)?,
        );
        // Code for `sm_90a` runs on nothing else.
        if capability != (9, 0) {
            return Err(CudaError::Architecture {
                gpu: name,
                capability,
            });
        }
        let multiprocessors = attribute(api::ATTRIBUTE_MULTIPROCESSORS)?.unsigned_abs();
        let shared_bytes = attribute(api::ATTRIBUTE_SHARED_BYTES_OPT_IN)?.unsigned_abs();
        let (mut context, mut stream, mut done) = (
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        );
        // SAFETY: each writes one handle; the context is the thread's own before the stream and the event are made in it.
        unsafe {
            status((api.retain_context)(&raw mut context, device))
                .map_err(failed("cuDevicePrimaryCtxRetain"))?;
            status((api.set_context)(context)).map_err(failed("cuCtxSetCurrent"))?;
            status((api.create_stream)(
                &raw mut stream,
                api::STREAM_NON_BLOCKING,
            ))
            .map_err(failed("cuStreamCreate"))?;
            status((api.create_event)(&raw mut done, api::EVENT_DISABLE_TIMING))
                .map_err(failed("cuEventCreate"))?;
        }
        Ok(Arc::new(Context {
            api,
            ordinal,
            name,
            multiprocessors,
            shared_bytes,
            context,
            stream,
            done,
            broken: OnceLock::new(),
        }))
    }

    /// Makes the context this thread's own.
    pub fn enter(&self) -> Result<(), CudaError> {
        if let Some(why) = self.broken.get() {
            return Err(CudaError::Broken(why.clone()));
        }
        // SAFETY: the context lives as long as the process.
        self.check("cuCtxSetCurrent", unsafe {
            (self.api.set_context)(self.context)
        })
    }

    /// From now on every use fails with `why`.
    pub fn break_down(&self, why: &str) {
        // The first reason stays: later ones follow from it.
        let _ = self.broken.set(why.to_owned());
    }

    pub fn check(&self, what: &'static str, code: Status) -> Result<(), CudaError> {
        status(code).map_err(|code| CudaError::Call {
            what,
            error: self.api.name_of(code),
        })
    }

    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<CudaBuffer, CudaError> {
        self.enter()?;
        let mut address = 0;
        // Never empty, so that even an empty tensor has an address; whole words, since half bytes are stored by atomics on words.
        let size = bytes.max(1).next_multiple_of(16);
        // SAFETY: writes one address.
        match unsafe { (self.api.allocate)(&raw mut address, size) } {
            api::OUT_OF_MEMORY => return Err(CudaError::OutOfMemory { bytes }),
            code => self.check("cuMemAlloc", code)?,
        }
        Ok(CudaBuffer {
            context: Arc::clone(self),
            address,
            bytes,
        })
    }
}

fn status(code: Status) -> Result<(), Status> {
    match code {
        api::SUCCESS => Ok(()),
        code => Err(code),
    }
}

/// Memory of a CUDA device.
pub struct CudaBuffer {
    context: Arc<Context>,
    address: DevicePointer,
    bytes: usize,
}

impl CudaBuffer {
    pub fn ordinal(&self) -> u32 {
        self.context.ordinal
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn fill(&self, value: u8) -> Result<(), CudaError> {
        self.context.enter()?;
        // SAFETY: the buffer has that many bytes.
        let code = unsafe { (self.context.api.fill_bytes)(self.address, value, self.bytes) };
        self.context.check("cuMemsetD8", code)?;
        self.context.wait_for_copies()
    }

    /// `from` is no longer than the buffer.
    pub(crate) fn write(&self, from: &[u8]) -> Result<(), CudaError> {
        assert!(from.len() <= self.bytes, "a copy within the buffer");
        self.context.enter()?;
        // SAFETY: both sides have that many bytes.
        let code = unsafe {
            (self.context.api.to_device)(self.address, from.as_ptr().cast::<c_void>(), from.len())
        };
        self.context.check("cuMemcpyHtoD", code)?;
        self.context.wait_for_copies()
    }

    /// `to` is no longer than the buffer.
    pub(crate) fn read(&self, to: &mut [u8]) -> Result<(), CudaError> {
        assert!(to.len() <= self.bytes, "a copy within the buffer");
        self.context.enter()?;
        // SAFETY: both sides have that many bytes.
        let code = unsafe {
            (self.context.api.to_host)(to.as_mut_ptr().cast::<c_void>(), self.address, to.len())
        };
        self.context.check("cuMemcpyDtoH", code)
    }

    pub(crate) fn duplicate(&self) -> Result<Self, CudaError> {
        let copy = self.context.allocate(self.bytes)?;
        // SAFETY: both sides have that many bytes.
        let code =
            unsafe { (self.context.api.within_device)(copy.address, self.address, self.bytes) };
        self.context.check("cuMemcpyDtoD", code)?;
        self.context.wait_for_copies()?;
        Ok(copy)
    }
}

impl Context {
    /// Copies and fills run in another stream than kernels, and some of them only begin when the call returns.
    fn wait_for_copies(&self) -> Result<(), CudaError> {
        // SAFETY: takes nothing.
        self.check("cuCtxSynchronize", unsafe { (self.api.synchronize)() })
    }
}

impl Clone for CudaBuffer {
    /// A copy of the bytes. Panics when the GPU has no memory for it, as host memory does.
    fn clone(&self) -> Self {
        self.duplicate()
            .unwrap_or_else(|why| panic!("copying {} bytes on the GPU: {why}", self.bytes))
    }
}

impl Drop for CudaBuffer {
    fn drop(&mut self) {
        // In a broken context freeing fails, or waits for a kernel that never ends.
        if self.context.enter().is_ok() {
            // SAFETY: allocated by this driver, freed once; kernels that use it are over when a launch returns.
            let code = unsafe { (self.context.api.free)(self.address) };
            // Nothing can be done about a failure here, and the next launch meets it again.
            let _ = code;
        }
    }
}

impl fmt::Debug for CudaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CudaBuffer({} bytes on device {})",
            self.bytes, self.context.ordinal
        )
    }
}
