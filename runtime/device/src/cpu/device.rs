//! Launches on the CPU: a block of CTAs per thread, scratch memory per thread.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tessera_artifact::{Archive, CpuVariant, KernelEntry};

use super::features::{self, UnsupportedCpu};
use super::loader::{self, CodeObject, LoadError};
use super::pool::Pool;
use crate::launch::{LaunchError, Request};
use crate::memory::HostBuffer;

/// Each default is what a program wants that has the machine for itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// `None`: as many as the machine runs at once.
    pub threads: Option<NonZeroUsize>,
    /// `None`: the best that the machine and the archive have.
    pub variant: Option<CpuVariant>,
}

/// The CPU with its threads. Launches from several threads take turns.
pub struct CpuDevice {
    pool: Pool,
    variant: Option<CpuVariant>,
    memory: Mutex<Memory>,
}

/// Kept from launch to launch.
struct Memory {
    request: Request,
    /// `scratch` and `flags` parameters.
    arena: HostBuffer,
    /// Of each thread, for tiles.
    scratch: Vec<HostBuffer>,
}

/// Compiled code of one instance.
pub(crate) struct CpuKernel {
    code: loader::Kernel,
    scratch_bytes: usize,
    traps: Vec<String>,
}

impl CpuDevice {
    /// # Errors
    /// The operating system's, if it refuses a thread.
    pub fn new(options: CpuOptions) -> std::io::Result<Self> {
        let threads = match options.threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        };
        let pool = Pool::new(threads)?;
        let scratch = (0..pool.threads())
            .map(|_| HostBuffer::zeroed(0))
            .collect::<Option<Vec<_>>>();
        let (Some(scratch), Some(arena)) = (scratch, HostBuffer::zeroed(0)) else {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        };
        Ok(CpuDevice {
            pool,
            variant: options.variant,
            memory: Mutex::new(Memory {
                request: Request::default(),
                arena,
                scratch,
            }),
        })
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The variant that launches are held to, if the options named one.
    pub fn variant(&self) -> Option<CpuVariant> {
        self.variant
    }

    /// The code of an instance, of the best variant that runs here; objects that several instances share are loaded once.
    pub(crate) fn load(
        &self,
        archive: &Archive<'_>,
        entry: &KernelEntry,
        objects: &mut Objects,
    ) -> Result<CpuKernel, CpuLoadError> {
        let variant = features::choose(entry.cpu.iter().map(|c| c.variant), self.variant)
            .map_err(CpuLoadError::NoCode)?;
        let code = (entry.cpu.iter().find(|c| c.variant == variant))
            .expect("`choose` returns one of those it was given");
        let object = objects
            .get(archive, code.blob)
            .map_err(CpuLoadError::Object)?;
        let function = object.kernel(&code.symbol).map_err(CpuLoadError::Object)?;
        Ok(CpuKernel {
            code: function,
            scratch_bytes: code.scratch_bytes as usize,
            traps: code.traps.clone(),
        })
    }

    /// Resolves a launch with `resolve`, which says which of `kernels` to run, and runs it to its end.
    pub(crate) fn launch<'k>(
        &self,
        name: &str,
        resolve: impl FnOnce(&mut Request) -> Result<&'k CpuKernel, LaunchError>,
    ) -> Result<(), LaunchError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let Memory {
            request,
            arena,
            scratch,
        } = &mut *memory;
        let kernel = resolve(request)?;
        if request.ctas == 0 {
            return Ok(());
        }
        let no_memory = |bytes: usize| LaunchError::Memory {
            kernel: name.to_owned(),
            bytes: bytes as u64,
        };
        if !arena.grow(request.arena_bytes) {
            return Err(no_memory(request.arena_bytes));
        }
        for part in &request.host_memory {
            let memory = &mut arena.as_mut_slice()[part.offset..part.offset + part.bytes];
            if part.zeroed {
                memory.fill(0);
            }
            request.words[part.word] = memory.as_mut_ptr() as u64;
        }
        if !scratch.iter_mut().all(|s| s.grow(kernel.scratch_bytes)) {
            return Err(no_memory(kernel.scratch_bytes));
        }
        let error_record = [AtomicU64::new(0), AtomicU64::new(0)];
        request.words.push(error_record.as_ptr() as u64);
        let scratch = ScratchTable(scratch);
        let words = &request.words[..];
        let threads = self.pool.threads() as i64;
        // A few pieces for each thread, so that one that is held up costs little.
        let chunk = (request.ctas - 1) / threads.saturating_mul(4) + 1;
        self.pool
            .run(request.ctas, chunk, &|begin, end, thread| {
                // SAFETY: `resolve` checked the arguments against the manifest whose code this is, and they are borrowed for the launch;
                // a thread number is in one thread's hands at a time, so its scratch memory is too, and it has the size it needs.
                unsafe { kernel.code.call(words, scratch.of(thread), begin, end) }
            })
            .map_err(|why| LaunchError::Pool {
                kernel: name.to_owned(),
                why,
            })?;
        match error_record[0].load(Ordering::Acquire) {
            0 => Ok(()),
            number => Err(LaunchError::Check {
                kernel: name.to_owned(),
                what: kernel
                    .traps
                    .get(number as usize - 1)
                    .cloned()
                    .unwrap_or_else(|| format!("check {number}")),
                block: crate::launch::coordinates(
                    error_record[1].load(Ordering::Acquire),
                    &request.grid,
                ),
            }),
        }
    }
}

impl std::fmt::Debug for CpuDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuDevice")
            .field("threads", &self.threads())
            .field("variant", &self.variant)
            .finish()
    }
}

/// The scratch memory of every thread, shared for a launch; each thread uses its own entry alone.
struct ScratchTable<'a>(&'a [HostBuffer]);

impl ScratchTable<'_> {
    fn of(&self, thread: usize) -> *mut u8 {
        self.0[thread].as_mut_ptr()
    }
}

/// Why an instance has no code here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum CpuLoadError {
    NoCode(UnsupportedCpu),
    Object(LoadError),
}

/// The objects of one archive that are loaded already, by blob.
#[derive(Default)]
pub(crate) struct Objects(std::collections::HashMap<u32, Arc<CodeObject>>);

impl Objects {
    fn get(&mut self, archive: &Archive<'_>, blob: u32) -> Result<Arc<CodeObject>, LoadError> {
        if let Some(object) = self.0.get(&blob) {
            return Ok(Arc::clone(object));
        }
        let bytes = archive
            .blob(blob)
            .ok_or_else(|| LoadError::Malformed(format!("the archive has no blob {blob}")))?;
        // The reader of ELF wants its header aligned, and an archive in `include_bytes!` need not be.
        let object = match (bytes.as_ptr() as usize).is_multiple_of(8) {
            true => CodeObject::load(bytes)?,
            false => {
                let mut copy = HostBuffer::zeroed(bytes.len())
                    .ok_or_else(|| LoadError::Memory("none for a copy of the object".into()))?;
                copy.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
                CodeObject::load(&copy.as_slice()[..bytes.len()])?
            }
        };
        let object = Arc::new(object);
        self.0.insert(blob, Arc::clone(&object));
        Ok(object)
    }
}
