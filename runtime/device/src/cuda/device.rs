//! Launches on a GPU: one at a time, each watched until it is over.
//!
//! Kernels read their arguments' words by value (the launch ABI of PTX). A launch returns when the kernel is done, so that a failed
//! check, a wild access or a hang is the error of the launch that caused it.

use std::ffi::{CStr, CString, c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tessera_artifact::{Archive, KernelEntry, PtxCode};

use super::api::{self, Handle};
use super::context::{Context, CudaBuffer, CudaError};
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
    /// `scratch` and `flags` parameters.
    arena: CudaBuffer,
    /// Tiles that shared memory does not hold.
    scratch: CudaBuffer,
    /// Two u64.
    error_record: CudaBuffer,
}

/// Code of one instance. The driver translates it at the first launch, since a program may never launch it.
pub(crate) struct CudaKernel {
    ptx: CString,
    code: PtxCode,
    function: OnceLock<Result<Function, String>>,
}

struct Function(Handle);

// SAFETY: the driver's handles may be used from any thread.
unsafe impl Send for Function {}
unsafe impl Sync for Function {}

/// Scratch memory of all CTAs of a launch together: beyond it, CTAs take several items each.
const SCRATCH_BYTES: u64 = 4 << 30;
/// How long a launch is waited for without sleeping: most kernels are done by then.
const SPIN: Duration = Duration::from_micros(200);

impl CudaDevice {
    /// # Errors
    /// [`CudaError`]: no driver, no such GPU, or one that the kernels are not for.
    pub fn new(options: CudaOptions) -> Result<Self, CudaError> {
        let context = Context::new(options.ordinal)?;
        let memory = Memory {
            request: Request::default(),
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
        &self.context.name
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
        let code = entry.ptx.as_ref()?;
        let Some(ptx) = archive.blob(code.blob) else {
            return Some(Err(format!("the archive has no blob {}", code.blob)));
        };
        Some(match CString::new(ptx) {
            Ok(ptx) => Ok(CudaKernel {
                ptx,
                code: code.clone(),
                function: OnceLock::new(),
            }),
            Err(_) => Err("its PTX is no text".to_owned()),
        })
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
        self.context.enter().map_err(failed)?;
        let function = self.function(kernel).map_err(|what| LaunchError::Device {
            kernel: name.to_owned(),
            what,
        })?;
        self.grow(arena, request.arena_bytes as u64, name)?;
        for part in &request.host_memory {
            let address = arena.address() + part.offset as u64;
            if part.zeroed && part.bytes > 0 {
                // SAFETY: the part lies in the arena; the same stream runs the kernel afterwards.
                let code = unsafe {
                    (self.context.api.fill_bytes_queued)(
                        address,
                        0,
                        part.bytes,
                        self.context.stream,
                    )
                };
                self.context
                    .check("cuMemsetD8Async", code)
                    .map_err(failed)?;
            }
            request.words[part.word] = address;
        }
        let ctas = self.ctas(kernel, function, request.ctas).map_err(failed)?;
        let scratch_bytes = kernel.code.scratch_bytes * u64::from(ctas);
        self.grow(scratch, scratch_bytes, name)?;
        request.words.push(error_record.address());
        request.words.push(scratch.address());
        let done = self
            .run(kernel, function, ctas, &mut request.words)
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

    /// CTAs to launch: one per item of the grid, or as many as run at the same time where each needs scratch memory.
    fn ctas(&self, kernel: &CudaKernel, function: Handle, items: i64) -> Result<u32, CudaError> {
        let mut most = i64::from(i32::MAX);
        if let Some(affordable) = SCRATCH_BYTES.checked_div(kernel.code.scratch_bytes) {
            let mut per_sm: c_int = 0;
            // SAFETY: writes one int.
            let code = unsafe {
                (self.context.api.occupancy)(
                    &raw mut per_sm,
                    function,
                    kernel.code.threads as c_int,
                    kernel.code.shared_bytes as usize,
                )
            };
            self.context
                .check("cuOccupancyMaxActiveBlocksPerMultiprocessor", code)?;
            let at_once = i64::from(per_sm.max(1)) * i64::from(self.context.multiprocessors);
            most = at_once.min(affordable.max(1) as i64);
        }
        Ok(items.min(most) as u32)
    }

    /// Whether the kernel ended in time.
    fn run(
        &self,
        kernel: &CudaKernel,
        function: Handle,
        ctas: u32,
        words: &mut [u64],
    ) -> Result<bool, CudaError> {
        let context = &self.context;
        let mut params = [words.as_mut_ptr().cast::<c_void>()];
        // SAFETY: `resolve` checked the arguments against the manifest whose code this is, and they are borrowed for the launch; the
        // one parameter is as many words as the launch ABI says.
        let code = unsafe {
            (context.api.launch)(
                function,
                ctas,
                1,
                1,
                kernel.code.threads,
                1,
                1,
                kernel.code.shared_bytes,
                context.stream,
                params.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        context.check("cuLaunchKernel", code)?;
        // SAFETY: both handles are of this context.
        let code = unsafe { (context.api.record_event)(context.done, context.stream) };
        context.check("cuEventRecord", code)?;
        let start = Instant::now();
        loop {
            // SAFETY: the event is of this context.
            match unsafe { (context.api.query_event)(context.done) } {
                api::SUCCESS => return Ok(true),
                api::NOT_READY if start.elapsed() > self.watchdog => return Ok(false),
                api::NOT_READY if start.elapsed() < SPIN => std::hint::spin_loop(),
                api::NOT_READY => std::thread::sleep(Duration::from_micros(50)),
                code => {
                    // What a kernel breaks stays broken for the whole context.
                    let error = context.api.name_of(code);
                    context.break_down(&format!("kernel `{}`: {error}", kernel.code.symbol));
                    return Err(CudaError::Call {
                        what: "while it ran",
                        error,
                    });
                }
            }
        }
    }

    fn function(&self, kernel: &CudaKernel) -> Result<Handle, String> {
        let function = kernel.function.get_or_init(|| self.translate(kernel));
        function.as_ref().map(|f| f.0).map_err(Clone::clone)
    }

    fn translate(&self, kernel: &CudaKernel) -> Result<Function, String> {
        let context = &self.context;
        let code = &kernel.code;
        if code.shared_bytes > context.shared_bytes {
            return Err(format!(
                "it needs {} bytes of shared memory, and a block of {} has {}",
                code.shared_bytes, context.name, context.shared_bytes
            ));
        }
        let mut log = vec![0u8; 8192];
        let mut options = [api::JIT_ERROR_LOG, api::JIT_ERROR_LOG_BYTES];
        let mut values = [
            log.as_mut_ptr().cast::<c_void>(),
            // The driver takes the number in the pointer's place.
            log.len() as *mut c_void,
        ];
        let mut module = std::ptr::null_mut();
        // SAFETY: the PTX ends with a zero; the log has the length given; one handle is written.
        let loaded = unsafe {
            (context.api.load_module)(
                &raw mut module,
                kernel.ptx.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if loaded != api::SUCCESS {
            let words = CStr::from_bytes_until_nul(&log).map_or("".into(), CStr::to_string_lossy);
            let error = context.api.name_of(loaded);
            return Err(format!(
                "the driver refuses its PTX: {error} {}",
                words.trim()
            ));
        }
        let symbol =
            CString::new(code.symbol.as_str()).map_err(|_| "its symbol is no name".to_owned())?;
        let mut function = std::ptr::null_mut();
        let failed = |why: CudaError| why.to_string();
        // SAFETY: the module is loaded and stays so; one handle is written.
        unsafe {
            let found = (context.api.function)(&raw mut function, module, symbol.as_ptr());
            context
                .check("cuModuleGetFunction", found)
                .map_err(failed)?;
            let set = (context.api.set_function_attribute)(
                function,
                api::FUNCTION_DYNAMIC_SHARED_BYTES,
                code.shared_bytes as c_int,
            );
            context.check("cuFuncSetAttribute", set).map_err(failed)?;
        }
        Ok(Function(function))
    }
}

impl fmt::Debug for CudaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CudaDevice")
            .field("ordinal", &self.ordinal())
            .field("name", &self.name())
            .finish()
    }
}
