//! Launches on a GPU: queued, or recorded to be queued together later.
//!
//! Kernels read their arguments' words by value (the launch ABI of PTX). A launch returns when it is queued; [`CudaDevice::finish`] waits
//! for all of them, as does whatever reads or frees memory, and reports a failed check, a wild access or a hang with the kernel's name.

use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tessera_artifact::{Archive, KernelEntry, PtxCode};

use super::context::{Context, CudaBuffer, CudaError};
use super::cubins::{Cubins, Loader};
use super::driver::{CallError, Function, Gpu, Mark};
use super::order::{Access, touched};
use super::queue::{Launched, MOST};
use super::timing::{Part, Timing};
use super::{installed, tensor_map};
use crate::launch::{LaunchError, Request};

/// Each default is what a program wants that has the GPU for itself.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    pub ordinal: u32,
    /// A kernel that runs longer is taken to hang. The GPU then cannot be used any more in this process.
    pub watchdog: Duration,
    /// Translated kernels that are kept from one program to the next; `None`: the driver translates.
    pub cubins: Option<Cubins>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions {
            ordinal: 0,
            watchdog: Duration::from_secs(30),
            cubins: None,
        }
    }
}

/// A GPU. Launches from several threads take turns.
pub struct CudaDevice {
    pub(super) context: Arc<Context>,
    loader: Loader,
    pub(super) memory: Mutex<Memory>,
    pub(super) timing: OnceLock<Timing>,
}

/// Kept from launch to launch.
pub(super) struct Memory {
    request: Request,
    /// The kernel's parameter: tensor maps, then the request's words.
    parameter: Vec<u64>,
    /// `scratch` and `flags` parameters. Recordings share it, and keep it when it is replaced by a larger one.
    pub(super) arena: Arc<CudaBuffer>,
    /// Tiles that shared memory does not hold; shared likewise.
    pub(super) scratch: Arc<CudaBuffer>,
}

/// The codes of one instance, never none; a launch takes the first that it can make the tensor maps of.
pub(crate) struct CudaKernel {
    codes: Vec<CudaCode>,
}

/// The driver translates it at the first launch, since a program may never launch it.
struct CudaCode {
    ptx: CString,
    code: Arc<PtxCode>,
    function: OnceLock<Result<Function, String>>,
}

/// A launch that needs only to be started.
struct Ready<'k> {
    code: &'k Arc<PtxCode>,
    function: Function,
    ctas: u32,
}

/// Scratch memory of all CTAs of a launch together: beyond it, CTAs take several items each.
const SCRATCH_BYTES: u64 = 4 << 30;

impl CudaDevice {
    /// # Errors
    /// [`CudaError`]: no driver, no such GPU, or one that the kernels are not for.
    pub fn new(options: CudaOptions) -> Result<Self, CudaError> {
        let gpu = installed::open(options.ordinal).map_err(CudaError::Driver)?;
        Self::on(gpu, options)
    }

    /// A device on a GPU of the caller's: an emulator.
    ///
    /// # Errors
    /// [`CudaError`]: the kernels are not for it, or it has no memory.
    pub fn on(gpu: Arc<dyn Gpu>, options: CudaOptions) -> Result<Self, CudaError> {
        let context = Context::new(gpu, options.ordinal, options.watchdog)?;
        let memory = Memory {
            request: Request::default(),
            parameter: vec![],
            arena: Arc::new(context.allocate(0)?),
            scratch: Arc::new(context.allocate(0)?),
        };
        Ok(CudaDevice {
            context,
            loader: Loader::new(options.cubins),
            memory: Mutex::new(memory),
            timing: OnceLock::new(),
        })
    }

    pub fn ordinal(&self) -> u32 {
        self.context.ordinal
    }

    /// `NVIDIA H100 80GB HBM3`
    pub fn name(&self) -> &str {
        &self.context.facts().name
    }

    /// Memory with unknown contents.
    ///
    /// # Errors
    /// [`CudaError`].
    pub(crate) fn allocate(&self, bytes: usize) -> Result<CudaBuffer, CudaError> {
        self.context.allocate(bytes)
    }

    /// `None` if the archive holds no PTX for the instance.
    pub(crate) fn load(
        &self,
        archive: &Archive<'_>,
        entry: &KernelEntry,
    ) -> Option<Result<CudaKernel, String>> {
        if entry.ptx.is_empty() {
            return None;
        }
        let codes = entry.ptx.iter().map(|code| {
            let ptx = archive.blob(code.blob);
            let ptx = ptx.ok_or_else(|| format!("the archive has no blob {}", code.blob))?;
            Ok(CudaCode {
                ptx: CString::new(ptx).map_err(|_| "its PTX is no text".to_owned())?,
                code: Arc::new(code.clone()),
                function: OnceLock::new(),
            })
        });
        let codes = codes.collect::<Result<_, String>>();
        Some(codes.map(|codes| CudaKernel { codes }))
    }

    /// Waits for every launch so far.
    ///
    /// # Errors
    /// The first failure that nobody was told of: a failed check, a hang, a fault.
    pub fn finish(&self) -> Result<(), CudaError> {
        self.context.finish().map(drop)
    }

    /// Resolves a launch with `resolve`, which says which kernel to run, and queues it: the mark behind it, if it runs and is not recorded.
    pub(crate) fn queue<'k>(
        &self,
        name: &Arc<str>,
        resolve: impl FnOnce(&mut Request) -> Result<&'k CudaKernel, LaunchError>,
    ) -> Result<Option<Mark>, LaunchError> {
        let mut memory = self.lock(name)?;
        let Some(ready) = self.prepare(&mut memory, name, resolve)? else {
            return Ok(None);
        };
        let failed = device_error(name);
        let gpu = self.context.gpu().map_err(failed)?;
        self.zero_flags(gpu, &memory)
            .and_then(|()| self.follow_launches(gpu, &ready, &memory))
            .and_then(|()| ready.start(gpu, &mut memory))
            .and_then(|()| (self.context.queue()).launched(ready.launched(name, &memory), gpu))
            .map_err(|why| failed(why.into()))
    }

    /// Where launches are recorded, says which of them come before the next work.
    fn follow(
        &self,
        gpu: &dyn Gpu,
        touches: impl FnOnce() -> Vec<Access>,
    ) -> Result<(), CallError> {
        match self.context.queue().recorded_before(touches) {
            Some(works) => gpu.follow(&works),
            None => Ok(()),
        }
    }

    fn follow_launches(
        &self,
        gpu: &dyn Gpu,
        ready: &Ready<'_>,
        memory: &Memory,
    ) -> Result<(), CallError> {
        let scratch = (ready.code.scratch_bytes > 0).then(|| {
            let start = memory.scratch.address();
            (start, start + memory.scratch.bytes() as u64)
        });
        self.follow(gpu, || touched(&memory.request, scratch))
    }

    fn zero_flags(&self, gpu: &dyn Gpu, memory: &Memory) -> Result<(), CallError> {
        for part in &memory.request.host_memory {
            if part.zeroed && part.bytes > 0 {
                let start = memory.arena.address() + part.offset as u64;
                let end = start + part.bytes as u64;
                self.follow(gpu, || {
                    vec![Access {
                        start,
                        end,
                        writes: true,
                    }]
                })?;
                // SAFETY: the part lies in the arena.
                unsafe { gpu.fill(start, 0, part.bytes) }?;
            }
        }
        Ok(())
    }

    /// Prepares a launch as [`queue`](Self::queue) does and runs it so many times, each with nothing of it in the cache: seconds on the
    /// GPU, with what a launch costs.
    pub(crate) fn time<'k>(
        &self,
        name: &Arc<str>,
        launches: usize,
        resolve: impl FnOnce(&mut Request) -> Result<&'k CudaKernel, LaunchError>,
    ) -> Result<Vec<f64>, LaunchError> {
        self.finish().map_err(launch_error(name))?;
        let mut memory = self.lock(name)?;
        let Some(ready) = self.prepare(&mut memory, name, resolve)? else {
            return Ok(vec![0.0; launches]);
        };
        (self.context.queue()).launched_unmarked(ready.launched(name, &memory));
        self.timed(name, launches, &mut |gpu, part| match part {
            Part::Before => self.zero_flags(gpu, &memory),
            Part::Timed => ready.start(gpu, &mut memory),
        })
    }

    /// # Errors
    /// Another thread records.
    fn lock(&self, name: &str) -> Result<MutexGuard<'_, Memory>, LaunchError> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let recording = self.context.queue().recording_thread();
        match recording.is_some_and(|thread| thread != std::thread::current().id()) {
            false => Ok(memory),
            true => Err(LaunchError::Device {
                kernel: name.to_owned(),
                what: "another thread records launches on this device".to_owned(),
            }),
        }
    }

    /// Everything of a launch but its start; `None` if there is nothing to run.
    fn prepare<'k>(
        &self,
        memory: &mut Memory,
        name: &str,
        resolve: impl FnOnce(&mut Request) -> Result<&'k CudaKernel, LaunchError>,
    ) -> Result<Option<Ready<'k>>, LaunchError> {
        let Memory {
            request,
            parameter,
            arena,
            scratch,
        } = memory;
        let kernel = resolve(request)?;
        if request.ctas == 0 {
            return Ok(None);
        }
        let failed = device_error(name);
        let refused = |what: String| LaunchError::Device {
            kernel: name.to_owned(),
            what,
        };
        let gpu = self.context.gpu().map_err(failed)?;
        self.grow(arena, request.arena_bytes as u64, name)?;
        for part in &request.host_memory {
            request.words[part.word] = arena.address() + part.offset as u64;
        }
        let code = kernel.choose(gpu, request, parameter).map_err(refused)?;
        let function = code.function(gpu, &self.loader).map_err(refused)?;
        let ctas = self.ctas(gpu, &code.code, function, request.ctas);
        let ctas = ctas.map_err(|why| failed(why.into()))?;
        self.grow(scratch, code.code.scratch_bytes * u64::from(ctas), name)?;
        let record = self.next_record(name)?;
        parameter.extend_from_slice(&request.words);
        parameter.push(record);
        parameter.push(scratch.address());
        Ok(Some(Ready {
            code: &code.code,
            function,
            ctas,
        }))
    }

    /// The address of the next launch's record.
    fn next_record(&self, name: &str) -> Result<u64, LaunchError> {
        if let Some(address) = self.context.queue().next_record() {
            return Ok(address);
        }
        self.finish().map_err(launch_error(name))?;
        let address = self.context.queue().next_record();
        address.ok_or_else(|| LaunchError::Device {
            kernel: name.to_owned(),
            what: format!("a recording has room for {MOST} launches"),
        })
    }

    fn grow(
        &self,
        buffer: &mut Arc<CudaBuffer>,
        bytes: u64,
        name: &str,
    ) -> Result<(), LaunchError> {
        if bytes <= buffer.bytes() as u64 {
            return Ok(());
        }
        if self.context.queue().recording_thread().is_some() {
            return Err(LaunchError::Device {
                kernel: name.to_owned(),
                what: format!(
                    "it needs {bytes} bytes of scratch memory while it is recorded; launch it once before"
                ),
            });
        }
        match self.context.allocate(bytes as usize) {
            Ok(larger) => *buffer = Arc::new(larger),
            Err(CudaError::OutOfMemory { .. }) => {
                return Err(LaunchError::Memory {
                    kernel: name.to_owned(),
                    bytes,
                });
            }
            Err(why) => {
                return Err(LaunchError::Device {
                    kernel: name.to_owned(),
                    what: why.to_string(),
                });
            }
        }
        Ok(())
    }

    /// CTAs to launch: one per item of the grid, or as many as run at the same time where they shall stay or each needs scratch memory;
    /// whole clusters.
    fn ctas(
        &self,
        gpu: &dyn Gpu,
        code: &PtxCode,
        function: Function,
        items: i64,
    ) -> Result<u32, CallError> {
        let cluster = i64::from(code.cluster);
        let mut most = i64::from(i32::MAX);
        if code.persistent || code.scratch_bytes > 0 {
            most = i64::from(self.at_once(gpu, code, function)?);
            if let Some(affordable) = SCRATCH_BYTES.checked_div(code.scratch_bytes) {
                most = most.min(affordable as i64);
            }
        }
        // Never less than one cluster.
        let most = (most - most % cluster).max(cluster);
        Ok((items / cluster).min(most / cluster) as u32 * code.cluster)
    }

    fn at_once(&self, gpu: &dyn Gpu, code: &PtxCode, function: Function) -> Result<u32, CallError> {
        let (threads, shared_bytes) = (code.threads, code.shared_bytes);
        if code.cluster > 1 {
            let clusters = gpu.clusters_at_once(function, threads, shared_bytes, code.cluster)?;
            return Ok(clusters * code.cluster);
        }
        let blocks = gpu.blocks_per_multiprocessor(function, threads, shared_bytes)?;
        Ok(blocks * gpu.facts().multiprocessors)
    }
}

impl Ready<'_> {
    fn launched(&self, name: &Arc<str>, memory: &Memory) -> Launched {
        Launched {
            kernel: Arc::clone(name),
            code: Arc::clone(self.code),
            grid: memory.request.grid,
        }
    }

    fn start(&self, gpu: &dyn Gpu, memory: &mut Memory) -> Result<(), CallError> {
        let code = self.code;
        // SAFETY: `resolve` checked the arguments against the manifest whose code this is, and they are borrowed for the launch; the
        // one parameter is as many words as the launch ABI says.
        unsafe {
            gpu.launch(
                self.function,
                self.ctas,
                code.threads,
                code.shared_bytes,
                &mut memory.parameter,
                code.waits,
            )
        }
    }
}

/// A failure of this launch or of one before it.
pub(crate) fn launch_error(kernel: &str) -> impl Fn(CudaError) -> LaunchError + Copy {
    let other = device_error(kernel);
    move |why| match why {
        CudaError::Launch(why) => *why,
        why => other(why),
    }
}

pub(super) fn device_error(kernel: &str) -> impl Fn(CudaError) -> LaunchError + Copy {
    move |why| LaunchError::Device {
        kernel: kernel.to_owned(),
        what: why.to_string(),
    }
}

impl CudaKernel {
    /// The first code whose tensor maps can be made, which are then in `parameter`.
    fn choose(
        &self,
        gpu: &dyn Gpu,
        request: &Request,
        parameter: &mut Vec<u64>,
    ) -> Result<&CudaCode, String> {
        let mut reasons = String::new();
        for code in &self.codes {
            match code.make_maps(gpu, request, parameter) {
                Ok(()) => return Ok(code),
                Err(why) => reasons = why,
            }
        }
        Err(format!(
            "none of its codes can run its grid or make its tensor maps of these arguments: {reasons}"
        ))
    }
}

impl CudaCode {
    fn make_maps(
        &self,
        gpu: &dyn Gpu,
        request: &Request,
        parameter: &mut Vec<u64>,
    ) -> Result<(), String> {
        parameter.clear();
        let (first, cluster) = (request.grid[0], i64::from(self.code.cluster));
        if first % cluster != 0 {
            return Err(format!(
                "the grid's first extent, {first}, is no multiple of its clusters of {cluster}"
            ));
        }
        for recipe in &self.code.tensor_maps {
            let param = recipe.param as usize;
            let tensor = request.tensors[param].as_ref();
            let tensor = tensor.expect("the manifest's check lets maps be of tensors only");
            let map = tensor_map::tiled(recipe, tensor, &request.words).and_then(|tiled| {
                let map = gpu.tensor_map(&tiled);
                map.map_err(|why| format!("{why} for {tiled:?}"))
            });
            let map = map.map_err(|why| format!("parameter {param}: {why}"))?;
            parameter.extend_from_slice(&map);
        }
        Ok(())
    }

    fn function(&self, gpu: &dyn Gpu, loader: &Loader) -> Result<Function, String> {
        let function = self
            .function
            .get_or_init(|| translated(gpu, loader, &self.ptx, &self.code));
        function.clone()
    }
}

fn translated(
    gpu: &dyn Gpu,
    loader: &Loader,
    ptx: &CStr,
    code: &PtxCode,
) -> Result<Function, String> {
    let facts = gpu.facts();
    if code.shared_bytes > facts.shared_bytes {
        return Err(format!(
            "it needs {} bytes of shared memory, and a block of {} has {}",
            code.shared_bytes, facts.name, facts.shared_bytes
        ));
    }
    let symbol =
        CString::new(code.symbol.as_str()).map_err(|_| "its symbol is no name".to_owned())?;
    loader
        .load(gpu, ptx, &symbol, code.shared_bytes)
        .map_err(|why| format!("the driver refuses its PTX: {why}"))
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice")
            .field("ordinal", &self.ordinal())
            .field("name", &self.name())
            .finish()
    }
}
