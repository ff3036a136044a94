//! One GPU: its memory, the launches under way, and whether it still works.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::driver::{CallError, DriverError, Gpu, GpuFacts, STAGED_BYTES};
use super::queue::{MOST, Queue, RECORD_BYTES};
use crate::launch::LaunchError;

/// Why a GPU cannot be used, or no longer.
#[derive(Clone, Debug, PartialEq)]
pub enum CudaError {
    Driver(DriverError),
    /// The kernels are for another architecture.
    Architecture {
        gpu: String,
        capability: (u32, u32),
    },
    OutOfMemory {
        bytes: usize,
        /// Of all the GPU's bytes, those that nobody has.
        free: u64,
        total: u64,
    },
    /// A launch failed that was queued before.
    Launch(Box<LaunchError>),
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
            Self::OutOfMemory { bytes, free, total } => write!(
                f,
                "the GPU has no memory for {bytes} bytes: {free} of its {total} are free; ask for less (a shorter context, fewer \
                 sequences, fewer tokens in a call), or end what else uses the GPU"
            ),
            Self::Launch(why) => why.fmt(f),
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
            Self::Launch(why) => Some(why),
            _ => None,
        }
    }
}

impl From<CallError> for CudaError {
    fn from(why: CallError) -> Self {
        Self::Call(why)
    }
}

impl From<LaunchError> for CudaError {
    fn from(why: LaunchError) -> Self {
        Self::Launch(Box::new(why))
    }
}

/// Lives as long as any memory of the GPU.
pub(super) struct Context {
    gpu: Arc<dyn Gpu>,
    pub ordinal: u32,
    /// A kernel that runs longer is taken to hang.
    pub watchdog: Duration,
    queue: Mutex<Queue>,
    /// Of the queue.
    records: u64,
    /// Why nothing works any more: a kernel that never ended, an access outside all memory.
    broken: OnceLock<String>,
}

impl Context {
    pub fn new(
        gpu: Arc<dyn Gpu>,
        ordinal: u32,
        watchdog: Duration,
    ) -> Result<Arc<Self>, CudaError> {
        let facts = gpu.facts();
        // Code for `sm_90a` runs on nothing else.
        if facts.compute_capability != (9, 0) {
            return Err(CudaError::Architecture {
                gpu: facts.name.clone(),
                capability: facts.compute_capability,
            });
        }
        let bytes = MOST * RECORD_BYTES;
        let records = allocate(&*gpu, bytes)?;
        // SAFETY: so many bytes were allocated.
        unsafe { gpu.fill(records, 0, bytes) }?;
        gpu.wait()?;
        Ok(Arc::new(Context {
            gpu,
            ordinal,
            watchdog,
            queue: Mutex::new(Queue::new(records)),
            records,
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

    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for every launch so far; failures wait for [`finish`](Self::finish).
    pub fn see_out(&self) -> Result<&dyn Gpu, CudaError> {
        let gpu = self.gpu()?;
        match self.queue().see_out(gpu, self.watchdog) {
            Ok(()) => Ok(gpu),
            Err(why) => {
                self.break_down(&why);
                self.gpu()
            }
        }
    }

    /// Waits for every launch so far.
    ///
    /// # Errors
    /// The first failure that nobody was told of.
    pub fn finish(&self) -> Result<&dyn Gpu, CudaError> {
        let seen = self.see_out();
        match self.queue().take_failure() {
            Some(failure) => Err(failure.into()),
            None => seen,
        }
    }

    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<CudaBuffer, CudaError> {
        Ok(CudaBuffer {
            address: allocate(self.gpu()?, bytes)?,
            context: Arc::clone(self),
            bytes,
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Ok(gpu) = self.see_out() {
            // SAFETY: allocated by `new`; no launch is under way.
            let freed = unsafe { gpu.free(self.records) };
            let _ = freed;
        }
    }
}

fn allocate(gpu: &dyn Gpu, bytes: usize) -> Result<u64, CudaError> {
    // Never empty, so that even an empty tensor has an address; whole words, since half bytes are stored by atomics on words.
    let size = bytes.max(1).next_multiple_of(16);
    gpu.allocate(size).map_err(|why| match why {
        CallError::OutOfMemory => {
            let (free, total) = gpu.free_memory().unwrap_or_default();
            CudaError::OutOfMemory { bytes, free, total }
        }
        why => CudaError::Call(why),
    })
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
        let gpu = self.context.finish()?;
        // SAFETY: the buffer has that many bytes.
        unsafe { gpu.fill(self.address, value, self.bytes) }?;
        // Another device of this GPU has another queue.
        Ok(gpu.wait()?)
    }

    /// Copies to the buffer's start, behind the launches so far. `from` is no longer than the buffer.
    pub(crate) fn write(&self, from: &[u8]) -> Result<(), CudaError> {
        assert!(from.len() <= self.bytes, "a copy within the buffer");
        // The driver may wait for the queue in order to copy much, and knows no watchdog.
        let gpu = match from.len() <= STAGED_BYTES {
            true => self.context.gpu()?,
            false => self.context.finish()?,
        };
        // SAFETY: both sides have that many bytes.
        Ok(unsafe { gpu.copy_to_gpu(self.address, from) }?)
    }

    /// Copies from an address within the buffer, after the launches so far.
    pub(crate) fn read_at(&self, address: u64, to: &mut [u8]) -> Result<(), CudaError> {
        let start = address.checked_sub(self.address);
        let end = start.and_then(|start| start.checked_add(to.len() as u64));
        assert!(
            end.is_some_and(|end| end <= self.bytes as u64),
            "a copy within the buffer"
        );
        let gpu = self.context.finish()?;
        // SAFETY: both sides have that many bytes.
        Ok(unsafe { gpu.copy_to_host(to, address) }?)
    }

    /// Copies to an address within the buffer, after the launches so far.
    pub(crate) fn write_at(&self, address: u64, from: &[u8]) -> Result<(), CudaError> {
        let start = address.checked_sub(self.address);
        let end = start.and_then(|start| start.checked_add(from.len() as u64));
        assert!(
            end.is_some_and(|end| end <= self.bytes as u64),
            "a copy within the buffer"
        );
        let gpu = self.context.finish()?;
        // SAFETY: both sides have that many bytes.
        Ok(unsafe { gpu.copy_to_gpu(address, from) }?)
    }

    pub(crate) fn read(&self, to: &mut [u8]) -> Result<(), CudaError> {
        self.read_at(self.address, to)
    }

    pub(crate) fn duplicate(&self) -> Result<Self, CudaError> {
        let copy = self.context.allocate(self.bytes)?;
        let gpu = self.context.finish()?;
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
        if let Ok(gpu) = self.context.see_out() {
            // SAFETY: allocated by this GPU, freed once; kernels that use it are over.
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
