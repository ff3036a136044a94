//! The driver that is installed, through `cudarc`: it finds the library at run time, so that nothing of CUDA is needed to build, and the
//! program starts on a machine that has none.
//!
//! Needs: nothing. Keeps: the library stays loaded for the life of the program.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError as Failure};
use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUevent_flags, CUfunction_attribute, CUjit_option,
    CUresult,
};

use tessera_artifact::DType;

use super::driver::{
    CallError, Driver, DriverError, Function, Gpu, GpuFacts, MAP_RANK, MAP_WORDS, Mark, Recording,
    STAGED_BYTES, TiledTensor,
};

/// Asks the driver what there is, without a context on any GPU.
///
/// # Errors
/// [`DriverError`]: none installed, or it does not work.
pub fn find() -> Result<Driver, DriverError> {
    start()?;
    let count = result::device::get_count().map_err(no_driver("cuDeviceGetCount"))?;
    Ok(Driver {
        cuda: version()?,
        gpus: (0..count)
            .map(|ordinal| facts(device(ordinal)?))
            .collect::<Result<_, _>>()?,
    })
}

/// The primary context of one GPU and a stream of our own in it. They are left to the end of the process: a kernel that hangs would keep
/// whoever destroys them waiting.
struct Installed {
    facts: GpuFacts,
    context: sys::CUcontext,
    stream: sys::CUstream,
    marks: Mutex<Marks>,
    /// Launches are written down.
    is_recording: AtomicBool,
    /// What is written down now.
    recorder: Mutex<Recorder>,
    /// By number; `None` once they are forgotten.
    recordings: Mutex<Vec<Option<sys::CUgraphExec>>>,
}

/// The works of a recording, and whether the next one follows launches and nothing else.
#[derive(Default)]
struct Recorder {
    works: Vec<Work>,
    follows_launches: bool,
}

/// A work as the driver knows it.
struct Work {
    node: sys::CUgraphNode,
    is_launch: bool,
}

/// Events are made once and used again.
#[derive(Default)]
struct Marks {
    events: Vec<sys::CUevent>,
    used: usize,
}

// SAFETY: the driver's handles may be used from any thread; every use first makes the context the thread's own.
unsafe impl Send for Installed {}
unsafe impl Sync for Installed {}

/// Opens a GPU.
///
/// # Errors
/// [`DriverError`]: no driver, no such GPU, or it does not work.
pub(super) fn open(ordinal: u32) -> Result<Arc<dyn Gpu>, DriverError> {
    start()?;
    // A number beyond any GPU's is one that no GPU has.
    let device = device(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
    let facts = facts(device)?;
    // SAFETY: the device is the driver's.
    let context = unsafe { result::primary_ctx::retain(device) };
    let context = context.map_err(no_driver("cuDevicePrimaryCtxRetain"))?;
    // SAFETY: retained above, never released.
    unsafe { result::ctx::set_current(context) }.map_err(no_driver("cuCtxSetCurrent"))?;
    // Not ordered with the stream that programs share by default.
    let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
        .map_err(no_driver("cuStreamCreate"))?;
    Ok(Arc::new(Installed {
        facts,
        context,
        stream,
        marks: Mutex::default(),
        is_recording: AtomicBool::new(false),
        recorder: Mutex::default(),
        recordings: Mutex::default(),
    }))
}

/// The driver, looked up and started once. Before this says yes nothing else may be called: `cudarc` panics without the library.
fn start() -> Result<(), DriverError> {
    static STARTED: OnceLock<Result<(), DriverError>> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        // SAFETY: the driver's library has no requirements on who loads it.
        if !unsafe { sys::is_culib_present() } {
            return Err(DriverError::NotInstalled);
        }
        result::init().map_err(no_driver("cuInit"))
    });
    started.clone()
}

fn no_driver(call: &'static str) -> impl Fn(Failure) -> DriverError {
    move |failure| DriverError::Failed {
        call,
        code: failure.0 as u32,
    }
}

fn device(ordinal: i32) -> Result<sys::CUdevice, DriverError> {
    result::device::get(ordinal).map_err(no_driver("cuDeviceGet"))
}

fn version() -> Result<(u32, u32), DriverError> {
    let mut version = 0;
    // SAFETY: writes one int.
    let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
    asked.map_err(no_driver("cuDriverGetVersion"))?;
    let version = version.unsigned_abs();
    Ok((version / 1000, version % 1000 / 10))
}

fn facts(device: sys::CUdevice) -> Result<GpuFacts, DriverError> {
    let number = |which| {
        // SAFETY: the device is the driver's.
        let value = unsafe { result::device::get_attribute(device, which) };
        value
            .map(i32::unsigned_abs)
            .map_err(no_driver("cuDeviceGetAttribute"))
    };
    Ok(GpuFacts {
        name: result::device::get_name(device).map_err(no_driver("cuDeviceGetName"))?,
        compute_capability: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: number(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        cache_bytes: number(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        cuda: version()?,
    })
}

fn failed(call: &'static str) -> impl Fn(Failure) -> CallError {
    move |failure| match failure.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => CallError::OutOfMemory,
        _ => CallError::Failed {
            call,
            error: name_of(failure),
        },
    }
}

/// `CUDA_ERROR_ILLEGAL_ADDRESS`, or the number where the driver has no name for it.
fn name_of(failure: Failure) -> String {
    match failure.error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", failure.0 as u32),
    }
}

/// What the driver says about code that it refuses.
struct Log(Vec<u8>);

impl Log {
    fn new() -> Self {
        Log(vec![0; 8192])
    }

    fn options(&mut self) -> ([CUjit_option; 2], [*mut c_void; 2]) {
        let options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The driver takes the number in the pointer's place.
        let length = self.0.len() as *mut c_void;
        (options, [self.0.as_mut_ptr().cast::<c_void>(), length])
    }

    fn says(&self, failure: Failure) -> String {
        let words = CStr::from_bytes_until_nul(&self.0).map_or("".into(), CStr::to_string_lossy);
        format!("{} {}", name_of(failure), words.trim())
    }
}

impl Installed {
    /// Makes the context this thread's own.
    fn enter(&self) -> Result<(), CallError> {
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("cuCtxSetCurrent"))
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the node of what was recorded last, if anything is recorded.
    fn note_recorded(&self, is_launch: bool) -> Result<(), CallError> {
        if !self.is_recording.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut last, mut count) = (std::ptr::null(), 0);
        // SAFETY: all that is asked for is written; the nodes are read before the next call that may change them.
        let last = unsafe {
            sys::cuStreamGetCaptureInfo_v2(
                self.stream,
                &raw mut status,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                &raw mut last,
                &raw mut count,
            )
            .result()
            .map_err(failed("cuStreamGetCaptureInfo"))?;
            (count == 1).then(|| *last)
        };
        let Some(last) = last else {
            return Err(CallError::Failed {
                call: "cuStreamGetCaptureInfo",
                error: format!("{count} nodes were recorded last"),
            });
        };
        let mut recorder = self.recorder();
        recorder.works.push(Work {
            node: last,
            is_launch,
        });
        recorder.follows_launches = false;
        Ok(())
    }

    /// Whether the driver's graphs know launches that start early.
    fn records_early(&self) -> bool {
        self.facts.cuda >= (12, 3)
    }
}

// SAFETY of the calls below: the handles are this context's, which is the thread's own after `enter`; addresses and lengths are as the
// caller of each function promises.
impl Gpu for Installed {
    fn facts(&self) -> &GpuFacts {
        &self.facts
    }

    fn free_memory(&self) -> Result<(u64, u64), CallError> {
        self.enter()?;
        let (free, total) = result::mem_get_info().map_err(failed("cuMemGetInfo"))?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CallError> {
        self.enter()?;
        unsafe { result::malloc_sync(bytes) }.map_err(failed("cuMemAlloc"))
    }

    unsafe fn free(&self, address: u64) -> Result<(), CallError> {
        self.enter()?;
        unsafe { result::free_sync(address) }.map_err(failed("cuMemFree"))
    }

    unsafe fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<(), CallError> {
        self.enter()?;
        unsafe { result::memset_d8_async(address, value, bytes, self.stream) }
            .map_err(failed("cuMemsetD8Async"))?;
        self.note_recorded(false)
    }

    unsafe fn copy_to_gpu(&self, to: u64, from: &[u8]) -> Result<(), CallError> {
        self.enter()?;
        unsafe { result::memcpy_htod_async(to, from, self.stream) }
            .map_err(failed("cuMemcpyHtoDAsync"))?;
        // Little goes into the command itself. Where the GPU reads pages of the host, more is read when the copy's turn comes.
        match from.len() <= STAGED_BYTES {
            true => Ok(()),
            false => self.wait(),
        }
    }

    unsafe fn copy_to_host(&self, to: &mut [u8], from: u64) -> Result<(), CallError> {
        self.enter()?;
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.wait()
    }

    unsafe fn copy_within(&self, to: u64, from: u64, bytes: usize) -> Result<(), CallError> {
        self.enter()?;
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) }
            .map_err(failed("cuMemcpyDtoDAsync"))?;
        self.note_recorded(false)
    }

    fn wait(&self) -> Result<(), CallError> {
        self.enter()?;
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("cuStreamSynchronize"))
    }

    fn load(&self, code: &[u8], symbol: &CStr, shared_bytes: u32) -> Result<Function, String> {
        let words = |why: CallError| why.to_string();
        self.enter().map_err(words)?;
        let mut log = Log::new();
        let (mut options, mut values) = log.options();
        let mut module = std::ptr::null_mut();
        // SAFETY: code knows its length, and PTX ends with a zero; the log has the length given; one handle is written.
        let loaded = unsafe {
            sys::cuModuleLoadDataEx(
                &raw mut module,
                code.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        loaded.result().map_err(|failure| log.says(failure))?;
        let found = unsafe { result::module::get_function(module, symbol.to_owned()) };
        let function = found
            .map_err(failed("cuModuleGetFunction"))
            .map_err(words)?;
        let which = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        unsafe { result::function::set_function_attribute(function, which, shared_bytes as i32) }
            .map_err(failed("cuFuncSetAttribute"))
            .map_err(words)?;
        Ok(Function(function.expose_provenance()))
    }

    fn blocks_per_multiprocessor(
        &self,
        function: Function,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, CallError> {
        self.enter()?;
        let blocks = unsafe {
            result::occupancy::max_active_block_per_multiprocessor(
                handle(function),
                threads as i32,
                shared_bytes as usize,
            )
        };
        blocks
            .map(i32::unsigned_abs)
            .map_err(failed("cuOccupancyMaxActiveBlocksPerMultiprocessor"))
    }

    fn clusters_at_once(
        &self,
        function: Function,
        threads: u32,
        shared_bytes: u32,
        cluster: u32,
    ) -> Result<u32, CallError> {
        self.enter()?;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: Default::default(),
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 {
                    x: cluster,
                    y: 1,
                    z: 1,
                },
            },
        };
        let config = sys::CUlaunchConfig {
            attrs: &raw mut attribute,
            numAttrs: 1,
            ..along_x(cluster, threads, shared_bytes, self.stream)
        };
        let mut clusters = 0;
        // SAFETY: writes one int; the attribute lives as long as the call.
        unsafe {
            sys::cuOccupancyMaxActiveClusters(
                &raw mut clusters,
                handle(function),
                &raw const config,
            )
        }
        .result()
        .map_err(failed("cuOccupancyMaxActiveClusters"))?;
        Ok(clusters.unsigned_abs())
    }

    fn tensor_map(&self, tensor: &TiledTensor) -> Result<[u64; MAP_WORDS], CallError> {
        // The driver wants its maps aligned.
        let mut map = sys::CUtensorMap {
            opaque: [0; MAP_WORDS],
        };
        // SAFETY: every array has as many numbers as axes or more; the address is not followed.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                element(tensor.dtype),
                tensor.rank as u32,
                std::ptr::with_exposed_provenance_mut(tensor.address as usize),
                tensor.extents.as_ptr(),
                tensor.strides[1..].as_ptr(),
                tensor.boxes.as_ptr(),
                [1; MAP_RANK].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                match tensor.swizzle {
                    32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
                    64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
                    128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                    _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
                },
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(failed("cuTensorMapEncodeTiled"))?;
        Ok(map.opaque)
    }

    unsafe fn launch(
        &self,
        function: Function,
        blocks: u32,
        threads: u32,
        shared_bytes: u32,
        words: &mut [u64],
        waits: bool,
    ) -> Result<(), CallError> {
        self.enter()?;
        let mut params = [words.as_mut_ptr().cast::<c_void>()];
        // What is launched now has a mark behind it, and nothing to gain.
        let is_recording = self.is_recording.load(Ordering::Relaxed);
        let early =
            is_recording && waits && self.records_early() && self.recorder().follows_launches;
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: Default::default(),
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            attrs: &raw mut attribute,
            numAttrs: u32::from(early),
            ..along_x(blocks, threads, shared_bytes, self.stream)
        };
        // SAFETY: the attribute and the parameter live as long as the call, which copies both.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                handle(function),
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(failed("cuLaunchKernelEx"))?;
        self.note_recorded(true)
    }

    fn is_done(&self) -> Result<bool, CallError> {
        self.enter()?;
        match unsafe { sys::cuStreamQuery(self.stream) }.result() {
            Ok(()) => Ok(true),
            Err(Failure(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(failure) => Err(failed("while it ran")(failure)),
        }
    }

    fn mark(&self) -> Result<Mark, CallError> {
        self.enter()?;
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.used == marks.events.len() {
            let event = result::event::create(CUevent_flags::CU_EVENT_DEFAULT);
            marks.events.push(event.map_err(failed("cuEventCreate"))?);
        }
        let event = marks.events[marks.used];
        unsafe { result::event::record(event, self.stream) }.map_err(failed("cuEventRecord"))?;
        marks.used += 1;
        Ok(Mark(marks.used - 1))
    }

    fn has_passed(&self, mark: Mark) -> Result<bool, CallError> {
        self.enter()?;
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(&event) = marks.events[..marks.used].get(mark.0) else {
            return Ok(true);
        };
        match unsafe { result::event::query(event) } {
            Ok(()) => Ok(true),
            Err(Failure(CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(failure) => Err(failed("while it ran")(failure)),
        }
    }

    fn seconds_between(&self, from: Mark, to: Mark) -> Result<f64, CallError> {
        self.enter()?;
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let event = |mark: Mark| {
            let event = marks.events[..marks.used].get(mark.0).copied();
            event.ok_or_else(|| CallError::Failed {
                call: "a mark",
                error: "it was forgotten".to_owned(),
            })
        };
        let milliseconds = unsafe { result::event::elapsed(event(from)?, event(to)?) };
        let milliseconds = milliseconds.map_err(failed("cuEventElapsedTime"))?;
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn forget_marks(&self) {
        self.marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .used = 0;
    }

    fn start_recording(&self) -> Result<(), CallError> {
        self.enter()?;
        // Code may be loaded meanwhile, and other threads may do as they like.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        unsafe { result::stream::begin_capture(self.stream, mode) }
            .map_err(failed("cuStreamBeginCapture"))?;
        *self.recorder() = Recorder::default();
        self.is_recording.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn follow(&self, works: &[usize]) -> Result<(), CallError> {
        self.enter()?;
        let mut recorder = self.recorder();
        let mut nodes: Vec<_> = works
            .iter()
            .map(|&number| recorder.works[number].node)
            .collect();
        let flags =
            sys::CUstreamUpdateCaptureDependencies_flags::CU_STREAM_SET_CAPTURE_DEPENDENCIES;
        // SAFETY: the nodes are of the graph that this stream records.
        unsafe {
            sys::cuStreamUpdateCaptureDependencies(
                self.stream,
                nodes.as_mut_ptr(),
                nodes.len(),
                flags as u32,
            )
        }
        .result()
        .map_err(failed("cuStreamUpdateCaptureDependencies"))?;
        recorder.follows_launches =
            !works.is_empty() && works.iter().all(|&number| recorder.works[number].is_launch);
        Ok(())
    }

    fn end_recording(&self) -> Result<Recording, CallError> {
        self.is_recording.store(false, Ordering::Relaxed);
        self.enter()?;
        let graph = unsafe { result::stream::end_capture(self.stream) }
            .map_err(failed("cuStreamEndCapture"))?;
        let flags = sys::CUgraphInstantiate_flags(0);
        let made = unsafe { result::graph::instantiate(graph, flags) }
            .map_err(failed("cuGraphInstantiate"));
        // What was made of it needs it no more.
        unsafe { result::graph::destroy(graph) }.map_err(failed("cuGraphDestroy"))?;
        let mut recordings = (self.recordings.lock()).unwrap_or_else(PoisonError::into_inner);
        recordings.push(Some(made?));
        Ok(Recording(recordings.len() - 1))
    }

    unsafe fn replay(&self, recording: Recording) -> Result<(), CallError> {
        self.enter()?;
        let recordings = (self.recordings.lock()).unwrap_or_else(PoisonError::into_inner);
        let Some(Some(made)) = recordings.get(recording.0) else {
            return Err(CallError::Failed {
                call: "a recording",
                error: "it was forgotten".to_owned(),
            });
        };
        unsafe { result::graph::launch(*made, self.stream) }.map_err(failed("cuGraphLaunch"))
    }

    fn forget_recording(&self, recording: Recording) {
        let mut recordings = (self.recordings.lock()).unwrap_or_else(PoisonError::into_inner);
        let made = recordings.get_mut(recording.0).and_then(Option::take);
        if let (Ok(()), Some(made)) = (self.enter(), made) {
            // Nothing can be done about a failure.
            let _ = unsafe { result::graph::exec_destroy(made) };
        }
    }
}

/// What the elements are matters for their width only.
fn element(dtype: DType) -> sys::CUtensorMapDataType {
    use sys::CUtensorMapDataType::*;
    match dtype {
        DType::BF16 => CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::F32 | DType::Tf32 => CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::F64 => CU_TENSOR_MAP_DATA_TYPE_FLOAT64,
        other => match other.bits() {
            64 => CU_TENSOR_MAP_DATA_TYPE_UINT64,
            32 => CU_TENSOR_MAP_DATA_TYPE_UINT32,
            16 => CU_TENSOR_MAP_DATA_TYPE_UINT16,
            _ => CU_TENSOR_MAP_DATA_TYPE_UINT8,
        },
    }
}

fn handle(function: Function) -> sys::CUfunction {
    std::ptr::with_exposed_provenance_mut(function.0)
}

/// A launch whose blocks and threads lie along one axis, without attributes.
fn along_x(
    blocks: u32,
    threads: u32,
    shared_bytes: u32,
    stream: sys::CUstream,
) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared_bytes,
        hStream: stream,
        attrs: std::ptr::null_mut(),
        numAttrs: 0,
    }
}
