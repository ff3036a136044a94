//! Launches on a GPU: one at a time, each watched until it is over.
//!
//! Kernels read their arguments' words by value (the launch ABI of PTX). A launch returns when the kernel is done, so that a failed
//! check, a wild access or a hang is the error of the launch that caused it.

use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tessera_artifact::{Archive, KernelEntry, PtxCode};

use super::context::{Context, CudaBuffer, CudaError};
use super::driver::{CallError, Function, Gpu};
use super::{installed, tensor_map};
use crate::launch::{LaunchError, Request};

/// Each default is what a program wants that has the GPU for itself.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    pub ordinal: u32,
    /// A kernel that runs longer is taken to hang. The GPU then cannot be used any more in this process.
    pub watchdog: Duration,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions {
            ordinal: 0,
            watchdog: Duration::from_secs(30),
        }
    }
}

/// A GPU. Launches from several threads take turns.
pub struct CudaDevice {
    context: Arc<Context>,
    watchdog: Duration,
    memory: Mutex<Memory>,
}

/// Kept from launch to launch.
struct Memory {
    request: Request,
    /// The kernel's parameter: tensor maps, then the request's words.
    parameter: Vec<u64>,
    /// `scratch` and `flags` parameters.
    arena: CudaBuffer,
    /// Tiles that shared memory does not hold.
    scratch: CudaBuffer,
    /// Two u64.
    error_record: CudaBuffer,
}

/// The codes of one instance, never none; a launch takes the first that it can make the tensor maps of.
pub(crate) struct CudaKernel {
    codes: Vec<CudaCode>,
}

/// The driver translates it at the first launch, since a program may never launch it.
struct CudaCode {
    ptx: CString,
    code: PtxCode,
    function: OnceLock<Result<Function, String>>,
}

/// Scratch memory of all CTAs of a launch together: beyond it, CTAs take several items each.
const SCRATCH_BYTES: u64 = 4 << 30;
/// How long a launch is waited for without sleeping: most kernels are done by then.
const SPIN: Duration = Duration::from_micros(200);

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
        let context = Context::new(gpu, options.ordinal)?;
        let memory = Memory {
            request: Request::default(),
            parameter: vec![],
            arena: context.allocate(0)?,
            scratch: context.allocate(0)?,
            error_record: context.allocate(16)?,
        };
        memory.error_record.fill(0)?;
        Ok(CudaDevice {
            context,
            watchdog: options.watchdog,
            memory: Mutex::new(memory),
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
                code: code.clone(),
                function: OnceLock::new(),
            })
        });
        let codes = codes.collect::<Result<_, String>>();
        Some(codes.map(|codes| CudaKernel { codes }))
    }

    /// Resolves a launch with `resolve`, which says which kernel to run, and runs it to its end.
    pub(crate) fn launch<'k>(
        &self,
        name: &str,
        resolve: impl FnOnce(&mut Request) -> Result<&'k CudaKernel, LaunchError>,
    ) -> Result<(), LaunchError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory {
            request,
            parameter,
            arena,
            scratch,
            error_record,
        } = &mut *memory;
        let kernel = resolve(request)?;
        if request.ctas == 0 {
            return Ok(());
        }
        let failed = |why: CudaError| LaunchError::Device {
            kernel: name.to_owned(),
            what: why.to_string(),
        };
        let gpu = self.context.gpu().map_err(failed)?;
        let refused = |what: String| LaunchError::Device {
            kernel: name.to_owned(),
            what,
        };
        self.grow(arena, request.arena_bytes as u64, name)?;
        for part in &request.host_memory {
            let address = arena.address() + part.offset as u64;
            if part.zeroed && part.bytes > 0 {
                // SAFETY: the part lies in the arena.
                let filled = unsafe { gpu.fill(address, 0, part.bytes) };
                filled.map_err(|why| failed(why.into()))?;
            }
            request.words[part.word] = address;
        }
        let kernel = kernel.choose(gpu, request, parameter).map_err(refused)?;
        let function = kernel.function(gpu).map_err(refused)?;
        let ctas = self.ctas(gpu, &kernel.code, function, request.ctas);
        let ctas = ctas.map_err(|why| failed(why.into()))?;
        let scratch_bytes = kernel.code.scratch_bytes * u64::from(ctas);
        self.grow(scratch, scratch_bytes, name)?;
        parameter.extend_from_slice(&request.words);
        parameter.push(error_record.address());
        parameter.push(scratch.address());
        let done = self
            .run(gpu, &kernel.code, function, ctas, parameter)
            .map_err(failed)?;
        if !done {
            let seconds = self.watchdog.as_secs_f64();
            let what = format!("it has not ended after {seconds} s");
            self.context.break_down(&format!("kernel `{name}`: {what}"));
            return Err(LaunchError::Device {
                kernel: name.to_owned(),
                what,
            });
        }
        let mut record = [0u8; 16];
        error_record.read(&mut record).map_err(failed)?;
        let word = |i: usize| {
            u64::from_le_bytes(record[8 * i..8 * i + 8].try_into().expect("eight bytes"))
        };
        match word(0) {
            0 => Ok(()),
            number => {
                error_record.fill(0).map_err(failed)?;
                Err(LaunchError::Check {
                    kernel: name.to_owned(),
                    what: (kernel.code.traps.get(number as usize - 1).cloned())
                        .unwrap_or_else(|| format!("check {number}")),
                    block: crate::launch::coordinates(word(1), &request.grid),
                })
            }
        }
    }

    fn grow(&self, buffer: &mut CudaBuffer, bytes: u64, name: &str) -> Result<(), LaunchError> {
        if bytes <= buffer.bytes() as u64 {
            return Ok(());
        }
        match self.context.allocate(bytes as usize) {
            Ok(larger) => *buffer = larger,
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
        let clusters = items / cluster + i64::from(items % cluster != 0);
        Ok(clusters.min(most / cluster) as u32 * code.cluster)
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

    /// Whether the kernel ended in time.
    fn run(
        &self,
        gpu: &dyn Gpu,
        code: &PtxCode,
        function: Function,
        ctas: u32,
        words: &mut [u64],
    ) -> Result<bool, CudaError> {
        // SAFETY: `resolve` checked the arguments against the manifest whose code this is, and they are borrowed for the launch; the
        // one parameter is as many words as the launch ABI says.
        unsafe { gpu.launch(function, ctas, code.threads, code.shared_bytes, words) }?;
        let start = Instant::now();
        loop {
            match gpu.is_done() {
                Ok(true) => return Ok(true),
                Ok(false) if start.elapsed() > self.watchdog => return Ok(false),
                Ok(false) if start.elapsed() < SPIN => std::hint::spin_loop(),
                Ok(false) => std::thread::sleep(Duration::from_micros(50)),
                Err(why) => {
                    // What a kernel breaks stays broken for the whole context.
                    self.context
                        .break_down(&format!("kernel `{}`: {why}", code.symbol));
                    return Err(CudaError::Call(why));
                }
            }
        }
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
            "none of its codes can make its tensor maps of these arguments: {reasons}"
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

    fn function(&self, gpu: &dyn Gpu) -> Result<Function, String> {
        let function = self
            .function
            .get_or_init(|| translate(gpu, &self.ptx, &self.code));
        function.clone()
    }
}

fn translate(gpu: &dyn Gpu, ptx: &CStr, code: &PtxCode) -> Result<Function, String> {
    let facts = gpu.facts();
    if code.shared_bytes > facts.shared_bytes {
        return Err(format!(
            "it needs {} bytes of shared memory, and a block of {} has {}",
            code.shared_bytes, facts.name, facts.shared_bytes
        ));
    }
    let symbol =
        CString::new(code.symbol.as_str()).map_err(|_| "its symbol is no name".to_owned())?;
    gpu.load(ptx, &symbol, code.shared_bytes)
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
