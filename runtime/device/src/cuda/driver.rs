//! What devices ask of a GPU's driver. Ours is [`installed`](super::installed); tests put an emulator in its place.
//!
//! Keeps: only plain numbers and strings cross this border, no type of the CUDA API.

use std::ffi::CStr;
use std::fmt;

use tessera_artifact::DType;

/// A working driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA it supports, as (major, minor).
    pub cuda: (u32, u32),
    pub gpus: Vec<GpuFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuFacts {
    /// `NVIDIA H100 80GB HBM3`
    pub name: String,
    /// (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    pub multiprocessors: u32,
    /// Shared memory that a block may have with the opt-in.
    pub shared_bytes: u32,
    /// Of the second-level cache.
    pub cache_bytes: u32,
    /// The newest CUDA that its driver supports, as (major, minor).
    pub cuda: (u32, u32),
}

/// Why there is no driver or no GPU to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DriverError {
    NotInstalled,
    /// The library is there, but a call failed with this `CUresult`.
    Failed {
        call: &'static str,
        code: u32,
    },
}

impl fmt::Display for DriverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => {
                f.write_str("no CUDA driver: the library libcuda.so.1 is not installed")
            }
            Self::Failed { call, code: 100 } => write!(f, "the CUDA driver finds no GPU ({call})"),
            Self::Failed { call, code: 101 } => {
                write!(f, "there is no GPU of that number ({call})")
            }
            Self::Failed { call, code } => {
                write!(f, "the CUDA driver does not work: {call} gave error {code}")
            }
        }
    }
}

impl std::error::Error for DriverError {}

/// A call on a GPU that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    OutOfMemory,
    Failed {
        call: &'static str,
        /// `CUDA_ERROR_ILLEGAL_ADDRESS`
        error: String,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("the GPU has no memory left"),
            Self::Failed { call, error } => write!(f, "{call}: {error}"),
        }
    }
}

impl std::error::Error for CallError {}

/// A kernel's entry in loaded code, as the driver knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function(pub usize);

/// So much is copied to the GPU without waiting for what was asked for before.
pub const STAGED_BYTES: usize = 64 << 10;

/// Axes that a tensor map can have.
pub const MAP_RANK: usize = 5;
/// A tensor map is so many words of the kernel's parameter.
pub const MAP_WORDS: usize = 16;

/// A tensor in global memory as the tensor memory accelerator is told of it. Axes are counted from the innermost; those from `rank` on do
/// not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TiledTensor {
    pub address: u64,
    /// Of whole bytes.
    pub dtype: DType,
    pub rank: usize,
    /// In elements.
    pub extents: [u64; MAP_RANK],
    /// In bytes; that of axis 0 does not count, since its elements lie side by side.
    pub strides: [u64; MAP_RANK],
    /// Elements of a box.
    pub boxes: [u32; MAP_RANK],
    /// 0, 32, 64 or 128 bytes.
    pub swizzle: u32,
}

/// A point in the queue of work whose time is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub usize);

/// Work that was written down instead of queued, to be queued as often as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recording(pub usize);

/// One GPU with one queue of work: launches, fills and copies run in the order in which they were asked for; a copy to the host and
/// [`Gpu::wait`] return when all of it is done. Addresses are the GPU's own.
pub trait Gpu: Send + Sync {
    fn facts(&self) -> &GpuFacts;

    /// Bytes that nobody has, of how many.
    ///
    /// # Errors
    /// [`CallError`]
    fn free_memory(&self) -> Result<(u64, u64), CallError>;

    /// Memory with unknown contents; at least 16-byte aligned.
    ///
    /// # Errors
    /// [`CallError::OutOfMemory`] among others.
    fn allocate(&self, bytes: usize) -> Result<u64, CallError>;

    /// # Errors
    /// [`CallError`]
    ///
    /// # Safety
    /// Allocated here, not freed yet, and used by no work in the queue.
    unsafe fn free(&self, address: u64) -> Result<(), CallError>;

    /// Sets bytes, some time later.
    ///
    /// # Errors
    /// [`CallError`]
    ///
    /// # Safety
    /// The bytes lie in one allocation.
    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<(), CallError>;

    /// Copies bytes, some time later; `from` is needed no more when it returns.
    ///
    /// # Errors
    /// [`CallError`]
    ///
    /// # Safety
    /// The bytes lie in one allocation.
    unsafe fn copy_to_gpu(&self, to: u64, from: &[u8]) -> Result<(), CallError>;

    /// # Errors
    /// [`CallError`]
    ///
    /// # Safety
    /// The bytes lie in one allocation.
    unsafe fn copy_to_host(&self, to: &mut [u8], from: u64) -> Result<(), CallError>;

    /// Copies bytes, some time later.
    ///
    /// # Errors
    /// [`CallError`]
    ///
    /// # Safety
    /// Both ranges lie in allocations.
    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize) -> Result<(), CallError>;

    /// # Errors
    /// [`CallError`], of the work that was waited for too.
    fn wait(&self) -> Result<(), CallError>;

    /// Loads translated code, or PTX with the zero at its end, and finds the entry `symbol`, whose blocks get `shared_bytes` of dynamic
    /// shared memory. It stays loaded.
    ///
    /// # Errors
    /// The driver's words.
    fn load(&self, code: &[u8], symbol: &CStr, shared_bytes: u32) -> Result<Function, String>;

    /// Blocks that run on one multiprocessor at the same time.
    ///
    /// # Errors
    /// [`CallError`]
    fn blocks_per_multiprocessor(
        &self,
        function: Function,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, CallError>;

    /// Clusters of `cluster` blocks that run on the whole GPU at the same time.
    ///
    /// # Errors
    /// [`CallError`]
    fn clusters_at_once(
        &self,
        function: Function,
        threads: u32,
        shared_bytes: u32,
        cluster: u32,
    ) -> Result<u32, CallError>;

    /// The map with which kernels copy boxes of the tensor to and from shared memory: zeros are read outside of it, and nothing written.
    ///
    /// # Errors
    /// [`CallError`]: the hardware cannot do it.
    fn tensor_map(&self, tensor: &TiledTensor) -> Result<[u64; MAP_WORDS], CallError>;

    /// Starts `blocks` blocks of `threads` threads, in clusters if the function asks for them. `words` are the function's one parameter.
    /// `waits`: the function itself waits for what was asked for before, so that a launch that is recorded behind one other may start
    /// while that is under way.
    ///
    /// # Errors
    /// [`CallError`]
    ///
    /// # Safety
    /// The function is of this GPU and takes so many words; with them it touches only memory that is there until the work is done, and
    /// it waits if that is said.
    unsafe fn launch(
        &self,
        function: Function,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        words: &mut [u64],
        waits: bool,
    ) -> Result<(), CallError>;

    /// Whether all work in the queue is done.
    ///
    /// # Errors
    /// [`CallError`]: the work failed.
    fn is_done(&self) -> Result<bool, CallError>;

    /// Takes the time when all that was asked for before is done.
    ///
    /// # Errors
    /// [`CallError`]
    fn mark(&self) -> Result<Mark, CallError>;

    /// Whether all that was asked for before the mark is done.
    ///
    /// # Errors
    /// [`CallError`]: the work failed.
    fn has_passed(&self, mark: Mark) -> Result<bool, CallError>;

    /// Between two marks that the work has passed.
    ///
    /// # Errors
    /// [`CallError`]: it has not, or they were forgotten.
    fn seconds_between(&self, from: Mark, to: Mark) -> Result<f64, CallError>;

    /// All marks so far are of no more use.
    fn forget_marks(&self);

    /// From here on launches, fills and copies within the GPU are written down and not queued; nothing else may be asked for but loading.
    ///
    /// # Errors
    /// [`CallError`]
    fn start_recording(&self) -> Result<(), CallError>;

    /// Says of the next launch, fill or copy of a recording that it comes behind these of it, counted from 0, and is free to run beside all
    /// others. If it is not said, it comes behind the one before.
    ///
    /// # Errors
    /// [`CallError`]
    fn follow(&self, works: &[usize]) -> Result<(), CallError>;

    /// Ends what [`Gpu::start_recording`] began, also after a failure.
    ///
    /// # Errors
    /// [`CallError`]: something cannot be recorded. Nothing is recorded then, and work is queued again.
    fn end_recording(&self) -> Result<Recording, CallError>;

    /// Queues all of it.
    ///
    /// # Errors
    /// [`CallError`]
    ///
    /// # Safety
    /// As of each call that was recorded, now.
    unsafe fn replay(&self, recording: Recording) -> Result<(), CallError>;

    /// It is replayed no more.
    fn forget_recording(&self, recording: Recording);
}
