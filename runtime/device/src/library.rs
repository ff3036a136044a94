//! A library: the kernels of one archive, ready to launch on one device.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tessera_artifact::{Archive, ArchiveError, KernelEntry};

use crate::cpu::{CpuDevice, CpuKernel, CpuLoadError, CpuOptions, Objects};
use crate::cuda::driver::Gpu;
use crate::cuda::{CudaDevice, CudaError, CudaKernel, CudaOptions, launch_error};
use crate::launch::{Arg, LaunchError, Request, Signature, argument_names, describe_all};
use crate::profile::{KernelTime, Profiler};
use crate::tensor::Place;
use crate::timeline::End;

/// What kernels run on. Cheap to clone; clones share threads, memory and context.
#[derive(Clone, Debug)]
pub enum Device {
    Cpu(Arc<CpuDevice>),
    Cuda(Arc<CudaDevice>),
}

impl Device {
    /// The CPU with all its threads and its best instructions.
    ///
    /// # Errors
    /// The operating system's, if it refuses a thread.
    pub fn cpu() -> std::io::Result<Self> {
        Self::cpu_with(CpuOptions::default())
    }

    pub fn cpu_with(options: CpuOptions) -> std::io::Result<Self> {
        Ok(Device::Cpu(Arc::new(CpuDevice::new(options)?)))
    }

    /// The first GPU.
    ///
    /// # Errors
    /// [`CudaError`]: no driver, no GPU, or one that the kernels are not for.
    pub fn cuda() -> Result<Self, CudaError> {
        Self::cuda_with(CudaOptions::default())
    }

    pub fn cuda_with(options: CudaOptions) -> Result<Self, CudaError> {
        Ok(Device::Cuda(Arc::new(CudaDevice::new(options)?)))
    }

    /// A GPU of the caller's: an emulator.
    ///
    /// # Errors
    /// As [`Device::cuda`].
    pub fn cuda_on(gpu: Arc<dyn Gpu>, options: CudaOptions) -> Result<Self, CudaError> {
        Ok(Device::Cuda(Arc::new(CudaDevice::on(gpu, options)?)))
    }

    /// Waits for all that is queued; on a CPU nothing is.
    ///
    /// # Errors
    /// The first failure of a queued launch that nobody was told of.
    pub fn finish(&self) -> Result<(), CudaError> {
        match self {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(gpu) => gpu.finish(),
        }
    }

    /// Where tensors must be for this device to use them.
    pub fn place(&self) -> Place {
        match self {
            Device::Cpu(_) => Place::Host,
            Device::Cuda(gpu) => Place::Cuda(gpu.ordinal()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu(cpu) => write!(f, "CPU, {} threads", cpu.threads()),
            Device::Cuda(gpu) => f.write_str(gpu.name()),
        }
    }
}

/// Why an archive did not become a library.
#[derive(Clone, Debug, PartialEq)]
pub enum LibraryError {
    Archive(ArchiveError),
    /// The code of a kernel cannot be loaded.
    Code {
        kernel: String,
        what: String,
    },
    /// The library lacks a kernel that the program was built for.
    MissingKernel {
        name: String,
    },
    /// A kernel's parameters are not those that the program was built for.
    OtherParameters {
        name: String,
        expected: Vec<String>,
        found: Vec<String>,
    },
}

impl fmt::Display for LibraryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(why) => why.fmt(f),
            Self::Code { kernel, what } => write!(f, "kernel `{kernel}`: {what}"),
            Self::MissingKernel { name } => write!(
                f,
                "the library has no kernel `{name}`, which this program needs; build it again"
            ),
            Self::OtherParameters {
                name,
                expected,
                found,
            } => write!(
                f,
                "kernel `{name}` takes ({}), and this program was built for ({}); build both again",
                found.join(", "),
                expected.join(", ")
            ),
        }
    }
}

impl std::error::Error for LibraryError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Archive(why) => Some(why),
            _ => None,
        }
    }
}

impl From<ArchiveError> for LibraryError {
    fn from(why: ArchiveError) -> Self {
        Self::Archive(why)
    }
}

/// Every kernel of an archive.
#[derive(Clone, Debug)]
pub struct Library {
    pub(crate) device: Device,
    kernels: BTreeMap<String, Kernel>,
    pub(crate) profiler: Arc<Profiler>,
}

/// One kernel with its instances; a launch takes the first instance that takes its arguments.
#[derive(Clone)]
pub struct Kernel(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    device: Device,
    instances: Vec<Arc<Instance>>,
    profiler: Arc<Profiler>,
}

struct Instance {
    entry: KernelEntry,
    signature: Signature,
    code: Code,
}

impl Instance {
    fn has_code(&self) -> bool {
        !matches!(self.code, Code::None(_))
    }
}

enum Code {
    Cpu(CpuKernel),
    Cuda(CudaKernel),
    /// Kept until the launch, since a program may never launch it.
    None(LaunchError),
}

impl Code {
    fn cuda(&self) -> Result<&CudaKernel, LaunchError> {
        match self {
            Code::Cuda(kernel) => Ok(kernel),
            Code::None(why) => Err(why.clone()),
            Code::Cpu(_) => unreachable!("a library's code is for its device"),
        }
    }
}

impl Library {
    /// Checks the archive and loads the code that suits the device. `bytes` are needed no more afterwards.
    ///
    /// # Errors
    /// [`LibraryError`]. A kernel without code for this device is an error only when it is launched.
    pub fn load(bytes: &[u8], device: &Device) -> Result<Self, LibraryError> {
        let archive = Archive::read(bytes)?;
        let mut objects = Objects::default();
        let mut families: BTreeMap<String, Vec<Arc<Instance>>> = BTreeMap::new();
        for entry in &archive.manifest().kernels {
            let code = load_code(&archive, entry, device, &mut objects)?;
            let instance = Instance {
                entry: entry.clone(),
                signature: Signature::new(entry),
                code,
            };
            families
                .entry(entry.name.clone())
                .or_default()
                .push(Arc::new(instance));
        }
        let profiler = Arc::new(Profiler::default());
        let kernels = families
            .into_iter()
            .map(|(name, instances)| {
                (
                    name.clone(),
                    Kernel(Arc::new(Inner {
                        name: Arc::from(name),
                        device: device.clone(),
                        instances,
                        profiler: profiler.clone(),
                    })),
                )
            })
            .collect();
        Ok(Library {
            device: device.clone(),
            kernels,
            profiler,
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// By its whole name, or by its last part where only one kernel has it.
    ///
    /// # Errors
    /// [`LaunchError::UnknownKernel`], [`LaunchError::AmbiguousKernel`].
    pub fn kernel(&self, name: &str) -> Result<&Kernel, LaunchError> {
        if let Some(kernel) = self.kernels.get(name) {
            return Ok(kernel);
        }
        let candidates: Vec<&Kernel> = self
            .kernels
            .values()
            .filter(|k| k.0.name.rsplit("::").next() == Some(name))
            .collect();
        match candidates[..] {
            [kernel] => Ok(kernel),
            [] => Err(LaunchError::UnknownKernel {
                name: name.to_owned(),
                known: self.kernels.keys().cloned().collect(),
            }),
            _ => Err(LaunchError::AmbiguousKernel {
                name: name.to_owned(),
                candidates: candidates.iter().map(|k| k.0.name.to_string()).collect(),
            }),
        }
    }

    /// The kernel of this whole name, if it takes exactly these arguments: what generated launch functions ask for when they load.
    ///
    /// # Errors
    /// [`LibraryError::MissingKernel`], [`LibraryError::OtherParameters`].
    pub fn expect_kernel(&self, name: &str, params: &[&str]) -> Result<Kernel, LibraryError> {
        let kernel = self
            .kernels
            .get(name)
            .ok_or_else(|| LibraryError::MissingKernel {
                name: name.to_owned(),
            })?;
        let found = kernel.argument_names();
        match found == params {
            true => Ok(kernel.clone()),
            false => Err(LibraryError::OtherParameters {
                name: name.to_owned(),
                expected: params.iter().map(|p| (*p).to_owned()).collect(),
                found,
            }),
        }
    }

    /// The one instance of the kernel of this whole name with these generic arguments, if it is there and this device has code for it.
    pub fn instance(&self, name: &str, generics: &[(String, String)]) -> Option<Kernel> {
        let kernel = &*self.kernels.get(name)?.0;
        let instances = kernel.instances.iter();
        let mut mine = instances.filter(|i| i.entry.generics == generics && i.has_code());
        Some(Kernel(Arc::new(Inner {
            name: Arc::clone(&kernel.name),
            device: kernel.device.clone(),
            instances: vec![Arc::clone(mine.next()?)],
            profiler: Arc::clone(&kernel.profiler),
        })))
    }

    /// Starts measuring the launches of this library's kernels.
    pub fn start_profile(&self) {
        self.profiler.start();
    }

    /// Stops measuring: what was launched since the start, by kernel name.
    pub fn stop_profile(&self) -> BTreeMap<String, KernelTime> {
        self.profiler.stop()
    }

    /// In order of their names.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }
}

fn load_code(
    archive: &Archive<'_>,
    entry: &KernelEntry,
    device: &Device,
    objects: &mut Objects,
) -> Result<Code, LibraryError> {
    match device {
        Device::Cpu(cpu) => match cpu.load(archive, entry, objects) {
            Ok(kernel) => Ok(Code::Cpu(kernel)),
            Err(CpuLoadError::NoCode(why)) => Ok(Code::None(LaunchError::NoCode {
                kernel: entry.name.clone(),
                why,
            })),
            Err(CpuLoadError::Object(why)) => Err(LibraryError::Code {
                kernel: entry.instance_name(),
                what: why.to_string(),
            }),
        },
        Device::Cuda(gpu) => match gpu.load(archive, entry) {
            Some(Ok(kernel)) => Ok(Code::Cuda(kernel)),
            Some(Err(what)) => Err(LibraryError::Code {
                kernel: entry.instance_name(),
                what,
            }),
            None => Ok(Code::None(LaunchError::NoPtx {
                kernel: entry.name.clone(),
            })),
        },
    }
}

impl Kernel {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// The manifest entries of its instances, in order of the archive.
    pub fn instances(&self) -> impl Iterator<Item = &KernelEntry> {
        self.0.instances.iter().map(|i| &i.entry)
    }

    /// The parameters that the caller gives, in order (all but `scratch` and `flags`).
    pub fn argument_names(&self) -> Vec<String> {
        argument_names(&self.0.instances[0].entry)
    }

    /// Runs the first instance that takes the arguments, which are in order of [`Kernel::argument_names`]; returns when the kernel
    /// is done.
    ///
    /// # Errors
    /// [`LaunchError`]; a refused launch has run nothing and written nothing. On a GPU also the failure of an earlier launch that was queued.
    pub fn launch(&self, args: &[Arg<'_>]) -> Result<(), LaunchError> {
        self.queue(args)?;
        match &self.0.device {
            Device::Cpu(_) => Ok(()),
            Device::Cuda(gpu) => gpu.finish().map_err(launch_error(&self.0.name)),
        }
    }

    /// As [`Kernel::launch`], but on a GPU it returns when the launch is queued behind those before it. Whatever reads the results waits for
    /// them ([`View::to_tensor`](crate::View::to_tensor), [`Device::finish`]) and reports a check that failed in the kernel.
    ///
    /// # Errors
    /// [`LaunchError`]; a refused launch has run nothing and written nothing.
    pub fn queue(&self, args: &[Arg<'_>]) -> Result<(), LaunchError> {
        let inner = &*self.0;
        // A family is never empty, and instances agree on everything that this looks at.
        let first = &inner.instances[0];
        first
            .signature
            .check_arguments(&first.entry, args, inner.device.place())?;
        match &inner.device {
            Device::Cpu(cpu) => {
                let start = inner.profiler.timeline.is_on().then(Instant::now);
                let launched = inner.profiler.time(&inner.name, || {
                    cpu.launch(&inner.name, |request| {
                        match &inner.pick(args, request)?.code {
                            Code::Cpu(kernel) => Ok(kernel),
                            Code::None(why) => Err(why.clone()),
                            Code::Cuda(_) => unreachable!("a library's code is for its device"),
                        }
                    })
                });
                if let Some(start) = start {
                    inner
                        .profiler
                        .timeline
                        .note(&inner.name, End::Took(start.elapsed()));
                }
                launched
            }
            // Measured, a launch runs alone and from an empty cache, and its time is the GPU's own.
            Device::Cuda(_) if inner.profiler.is_on() => {
                let seconds = self.time(args, 1)?.into_iter().sum();
                inner
                    .profiler
                    .add(&inner.name, Duration::from_secs_f64(seconds));
                Ok(())
            }
            Device::Cuda(gpu) => {
                let mark = gpu.queue(&inner.name, |request| {
                    inner.pick(args, request)?.code.cuda()
                })?;
                if let (Some(mark), true) = (mark, inner.profiler.timeline.is_on()) {
                    inner.profiler.timeline.note(&inner.name, End::Passes(mark));
                }
                Ok(())
            }
        }
    }

    /// Launches so many times and measures each: seconds. On a GPU it is the GPU's own time, from when it turns to the launch until it is
    /// done ([`CudaDevice::time_empty`] says what of that any launch costs), with nothing in the cache; on a CPU the wall clock's.
    ///
    /// # Errors
    /// As [`Kernel::launch`]; a failed check is that of any of the launches.
    pub fn time(&self, args: &[Arg<'_>], launches: usize) -> Result<Vec<f64>, LaunchError> {
        let inner = &*self.0;
        let first = &inner.instances[0];
        first
            .signature
            .check_arguments(&first.entry, args, inner.device.place())?;
        match &inner.device {
            Device::Cpu(_) => (0..launches)
                .map(|_| {
                    let start = Instant::now();
                    self.launch(args)?;
                    Ok(start.elapsed().as_secs_f64())
                })
                .collect(),
            Device::Cuda(gpu) => gpu.time(&inner.name, launches, |request| {
                inner.pick(args, request)?.code.cuda()
            }),
        }
    }

    /// As [`Kernel::launch`], with each argument named.
    ///
    /// # Errors
    /// Besides those of `launch`: an unknown, missing or repeated name.
    pub fn launch_named(&self, args: Vec<(&str, Arg<'_>)>) -> Result<(), LaunchError> {
        let params = self.argument_names();
        let kernel = || self.0.name.to_string();
        let mut placed: Vec<Option<Arg<'_>>> = params.iter().map(|_| None).collect();
        for (name, arg) in args {
            let Some(at) = params.iter().position(|p| p == name) else {
                return Err(LaunchError::UnknownArgument {
                    kernel: kernel(),
                    name: name.to_owned(),
                    params,
                });
            };
            if placed[at].replace(arg).is_some() {
                return Err(LaunchError::RepeatedArgument {
                    kernel: kernel(),
                    name: name.to_owned(),
                });
            }
        }
        let ordered = (placed.into_iter().zip(&params))
            .map(|(arg, name)| {
                arg.ok_or_else(|| LaunchError::MissingArgument {
                    kernel: kernel(),
                    name: name.clone(),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.launch(&ordered)
    }
}

impl Inner {
    fn pick(&self, args: &[Arg<'_>], request: &mut Request) -> Result<&Instance, LaunchError> {
        (self.instances.iter())
            .find(|instance| instance.signature.resolve(args, request).is_ok())
            .map(|instance| &**instance)
            .ok_or_else(|| self.explain(args))
    }

    /// Slow and wordy; only for a launch that nothing takes.
    fn explain(&self, args: &[Arg<'_>]) -> LaunchError {
        let reasons = (self.instances.iter())
            .filter_map(|i| {
                let refusal = i.signature.resolve(args, &mut Request::default()).err()?;
                let dims = i.signature.dims_for_message(args);
                Some((i.entry.instance_name(), refusal.describe(&i.entry, &dims)))
            })
            .collect();
        LaunchError::NoInstance {
            kernel: self.name.to_string(),
            given: describe_all(&self.instances[0].entry, args),
            reasons,
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Kernel({}, {} instances)",
            self.0.name,
            self.0.instances.len()
        )
    }
}
