//! One GPU: its memory, and whether it still works.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::driver::{CallError, DriverError, Gpu, GpuFacts};

/// Why a GPU cannot be used, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaError {
    Driver(DriverError),
    /// The kernels are for another architecture.
    Architecture {
        gpu: String,
        capability: (u32, u32),
    },
    OutOfMemory {
        bytes: usize,
    },
    /// A call failed.
    Call(CallError),
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
            Self::Call(why) => why.fmt(f),
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
            Self::Call(why) => Some(why),
            _ => None,
        }
    }
}

impl From<CallError> for CudaError {
    fn from(why: CallError) -> Self {
        Self::Call(why)
    }
}

/// Lives as long as any memory of the GPU.
pub(super) struct Context {
    gpu: Arc<dyn Gpu>,
    pub ordinal: u32,
    /// Why nothing works any more: a kernel that never ended, an access outside all memory.
    broken: OnceLock<String>,
}

impl Context {
    pub fn new(gpu: Arc<dyn Gpu>, ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let facts = gpu.facts();
        // Code for `sm_90a` runs on nothing else.
        if facts.compute_capability != (9, 0) {
            return Err(CudaError::Architecture {
                gpu: facts.name.clone(),
                capability: facts.compute_capability,
            });
        }
        Ok(Arc::new(Context {
            gpu,
            ordinal,
            broken: OnceLock::new(),
        }))
    }

    pub fn facts(&self) -> &GpuFacts {
        self.gpu.facts()
    }

    /// The GPU, if it still works.
    pub fn gpu(&self) -> Result<&dyn Gpu, CudaError> {
        match self.broken.get() {
            Some(why) => Err(CudaError::Broken(why.clone())),
            None => Ok(&*self.gpu),
        }
    }

    /// From now on every use fails with `why`.
    pub fn break_down(&self, why: &str) {
        // The first reason stays: later ones follow from it.
        let _ = self.broken.set(why.to_owned());
    }

    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<CudaBuffer, CudaError> {
        // Never empty, so that even an empty tensor has an address; whole words, since half bytes are stored by atomics on words.
        let size = bytes.max(1).next_multiple_of(16);
        let address = self.gpu()?.allocate(size).map_err(|why| match why {
            CallError::OutOfMemory => CudaError::OutOfMemory { bytes },
            why => CudaError::Call(why),
        })?;
        Ok(CudaBuffer {
            context: Arc::clone(self),
            address,
            bytes,
        })
    }
}

/// Memory of a CUDA device.
pub struct CudaBuffer {
    context: Arc<Context>,
    address: u64,
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
        let gpu = self.context.gpu()?;
        // SAFETY: the buffer has that many bytes.
        unsafe { gpu.fill(self.address, value, self.bytes) }?;
        // Another device of this GPU has another queue.
        Ok(gpu.wait()?)
    }

    /// `from` is no longer than the buffer.
    pub(crate) fn write(&self, from: &[u8]) -> Result<(), CudaError> {
        assert!(from.len() <= self.bytes, "a copy within the buffer");
        // SAFETY: both sides have that many bytes.
        Ok(unsafe { self.context.gpu()?.copy_to_gpu(self.address, from) }?)
    }

    /// `to` is no longer than the buffer.
    pub(crate) fn read(&self, to: &mut [u8]) -> Result<(), CudaError> {
        assert!(to.len() <= self.bytes, "a copy within the buffer");
        // SAFETY: both sides have that many bytes.
        Ok(unsafe { self.context.gpu()?.copy_to_host(to, self.address) }?)
    }

    pub(crate) fn duplicate(&self) -> Result<Self, CudaError> {
        let copy = self.context.allocate(self.bytes)?;
        let gpu = self.context.gpu()?;
        // SAFETY: both sides have that many bytes.
        unsafe { gpu.copy_within(copy.address, self.address, self.bytes) }?;
        gpu.wait()?;
        Ok(copy)
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
        if let Ok(gpu) = self.context.gpu() {
            // SAFETY: allocated by this GPU, freed once; kernels that use it are over when a launch returns.
            let freed = unsafe { gpu.free(self.address) };
            // Nothing can be done about a failure here, and the next launch meets it again.
            let _ = freed;
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
