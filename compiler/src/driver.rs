//! The spine: from text to an archive, every stage called once, in order.
//!
//! Needs: sources in memory; the core does no I/O but for the cache directory that the options may name. Keeps: the same text and
//! options give the same bytes; one run reports every problem of the text. Kernels are independent below the tile IR, so they
//! compile on several threads, each with an MLIR context of its own.

#[cfg(feature = "llvm")]
mod cache;
pub mod manifest;

use std::path::PathBuf;

use tessera_artifact::CpuVariant;

use crate::diag::{Diagnostic, Sink, catalogue};
use crate::sema::{self, Program};
use crate::source::SourceMap;
use crate::syntax::{self, ast};
#[cfg(feature = "llvm")]
use crate::tile;
use crate::tile::analysis::Ledger;
use crate::tile::{ir, pass, verify};

/// What to make of the sources, and with what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Variants to make CPU code for.
    pub cpu: Vec<CpuVariant>,
    /// Make PTX for sm_90a.
    pub ptx: bool,
    /// Of that, code with tensor cores besides the plain code, where a kernel has products for them.
    pub tensor_cores: bool,
    /// Keeps compiled kernels by content, so that an unchanged one is not compiled again; `None`: compile always.
    pub cache: Option<PathBuf>,
    /// Kernels to compile at a time.
    pub threads: usize,
}

impl Default for Options {
    /// Every CPU variant, no PTX, no cache, all the machine's threads.
    fn default() -> Self {
        Options {
            cpu: CpuVariant::ALL.to_vec(),
            ptx: false,
            tensor_cores: true,
            cache: None,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// All files as trees; problems are in the sink.
pub fn parse(map: &SourceMap, sink: &mut Sink) -> Vec<ast::File> {
    map.files()
        .map(|(id, file)| ast::File {
            is_library: file.is_library,
            ..syntax::parse(sink, id, &file.text)
        })
        .collect()
}

/// Every instance of every kernel as checked tile IR; below this line the program is well formed. `None` if anything is wrong.
pub fn front(files: &[ast::File], sink: &mut Sink) -> Option<Vec<ir::Kernel>> {
    let kernels = front_with_ledgers(files, sink)?;
    Some(kernels.into_iter().map(|(kernel, _)| kernel).collect())
}

/// As [`front`], with how each access was proved.
pub fn front_with_ledgers(
    files: &[ast::File],
    sink: &mut Sink,
) -> Option<Vec<(ir::Kernel, Ledger)>> {
    let mut checked = vec![];
    for mut kernel in sema::program(files, sink) {
        let ledger = check(&mut kernel, sink);
        checked.extend(ledger.map(|ledger| (kernel, ledger)));
    }
    (!sink.has_errors()).then_some(checked)
}

/// One instance, for tests and benches, which may ask for others than the file lists.
pub fn instance(
    program: &Program,
    kernel: usize,
    instance: &sema::Instance,
    sink: &mut Sink,
) -> Option<ir::Kernel> {
    let mut kernel = sema::elaborate(program, kernel, instance, sink)?;
    check(&mut kernel, sink).map(|_| kernel)
}

fn check(kernel: &mut ir::Kernel, sink: &mut Sink) -> Option<Ledger> {
    if let Err(broken) = verify::after("elaboration", kernel) {
        sink.report(internal(kernel, &broken.to_string()));
        return None;
    }
    sema::check(kernel, sink)
}

/// The meaning of a kernel: what the interpreter runs.
///
/// # Errors
/// A fault of a pass.
pub fn expand(kernel: &ir::Kernel) -> Result<ir::Kernel, Box<Diagnostic>> {
    rewritten(kernel, pass::pipeline_meaning)
}

/// The rewrites before code, the same for CPUs and GPUs; the interpreter gives the same bits before and after.
///
/// # Errors
/// A fault of a pass, or a network of roles that has no sequential order.
pub fn optimise(kernel: &ir::Kernel) -> Result<ir::Kernel, Box<Diagnostic>> {
    rewritten(kernel, pass::pipeline_code)
}

/// All rewrites before plain code for GPUs.
///
/// # Errors
/// As of [`optimise`].
pub fn optimise_for_gpu(kernel: &ir::Kernel) -> Result<ir::Kernel, Box<Diagnostic>> {
    rewritten(kernel, pass::pipeline_gpu)
}

/// All rewrites before code for CPUs.
///
/// # Errors
/// As of [`optimise`].
pub fn optimise_for_cpu(kernel: &ir::Kernel) -> Result<ir::Kernel, Box<Diagnostic>> {
    rewritten(kernel, pass::pipeline_cpu)
}

fn rewritten(
    kernel: &ir::Kernel,
    pipeline: fn(&mut ir::Kernel) -> Result<(), pass::PassError>,
) -> Result<ir::Kernel, Box<Diagnostic>> {
    let mut kernel = kernel.clone();
    match pipeline(&mut kernel) {
        Ok(()) => Ok(kernel),
        Err(pass::PassError::Broken(broken)) => {
            Err(Box::new(internal(&kernel, &broken.to_string())))
        }
        Err(pass::PassError::Unsupported { span, message }) => Err(Box::new(
            catalogue::testing::no_sequence(span, &kernel.name, &message),
        )),
    }
}

/// A fault of the compiler, at the kernel that showed it.
pub(crate) fn internal(kernel: &ir::Kernel, what: &str) -> Diagnostic {
    catalogue::testing::internal(kernel.span, &kernel.name, what)
}

/// The canonical text of a kernel: what its content key is made of.
#[cfg(feature = "llvm")]
fn canonical(kernel: &ir::Kernel) -> String {
    tile::print::print(kernel)
}

/// As in a build with LLVM, but that there is no code: a fault at each kernel.
#[cfg(not(feature = "llvm"))]
pub fn compile(kernels: &[ir::Kernel], _options: &Options, sink: &mut Sink) -> Option<Vec<u8>> {
    for kernel in kernels {
        sink.report(internal(kernel, "this build of the compiler makes no code"));
    }
    None
}

#[cfg(feature = "llvm")]
pub use native::{CodeFacts, Dump, build, compile, dump, facts};

#[cfg(feature = "llvm")]
mod native {
    use std::collections::BTreeSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::mlir::cpu::variant_of_code;
    use crate::mlir::{self, CodegenError, Lowering, MlirContext};
    use crate::schedule::{self, Network, Plain, Plan};
    use crate::target::ptxas::{Ptxas, Report};
    use crate::target::{self, nvptx::SM_90A};
    use tessera_artifact::{CpuCode, KernelEntry, Manifest, PtxCode, TensorMap, write_archive};

    /// Text in, archive out; `None` if the sink has errors.
    pub fn build(map: &SourceMap, options: &Options, sink: &mut Sink) -> Option<Vec<u8>> {
        let files = parse(map, sink);
        let kernels = front(&files, sink)?;
        compile(&kernels, options, sink)
    }

    /// Code for every kernel, packed.
    pub fn compile(kernels: &[ir::Kernel], options: &Options, sink: &mut Sink) -> Option<Vec<u8>> {
        let found = in_parallel(options.threads, kernels.len(), |k, _| {
            match options.ptx && options.tensor_cores {
                true => self::networks(&kernels[k]),
                false => Ok(Err(Plain::NoProducts)),
            }
        });
        let mut jobs: Vec<(usize, Target)> = vec![];
        let mut networks: Vec<Vec<Network>> = vec![];
        for (k, (kernel, found)) in kernels.iter().zip(found).enumerate() {
            match found {
                Ok(found) => networks.push(found.unwrap_or_default()),
                Err(fault) => {
                    sink.report(*fault);
                    return None;
                }
            }
            let cpu = options.cpu.iter().map(|&v| variant_of_code(kernel, v));
            let cpu: BTreeSet<_> = cpu.collect();
            let cpu = cpu.into_iter().map(Target::Cpu);
            // The faster first: a launch takes the first that it can.
            let fast = (0..networks[k].len()).map(Target::TensorCores);
            let all = (networks[k].last()).is_some_and(|n| n.plan.takes_all(kernel));
            let plain = (options.ptx && !all).then_some(Target::Sm90a);
            let gpu = fast.chain(plain);
            jobs.extend(cpu.chain(gpu).map(|target| (k, target)));
        }
        // The longest first, so that no thread is left with one when the others are done.
        jobs.sort_by_key(|&(k, _)| std::cmp::Reverse(kernels[k].live_ops().len()));
        let results = in_parallel(options.threads, jobs.len(), |job, mlir| {
            let (kernel, target) = jobs[job];
            cache::through(
                options.cache.as_deref(),
                &cache::key(&canonical(&kernels[kernel]), &target.name()),
                || code(&kernels[kernel], &networks[kernel], target, mlir),
            )
        });

        let mut manifest = Manifest {
            compiler: cache::compiler_hash(),
            kernels: vec![],
        };
        manifest.kernels = kernels
            .iter()
            .map(|k| manifest::entry(k, &cache::key(&canonical(k), "")))
            .collect();
        let mut blobs: Vec<Vec<u8>> = vec![];
        for (&(k, target), result) in jobs.iter().zip(results) {
            let code = match result {
                Ok(code) => code,
                Err(d) => {
                    sink.report(*d);
                    continue;
                }
            };
            let mut attach = |target| {
                attach(&mut manifest.kernels[k], target, code.clone(), &mut blobs);
            };
            let Target::Cpu(made) = target else {
                attach(target);
                continue;
            };
            let alike = |&v: &CpuVariant| variant_of_code(&kernels[k], v) == made;
            let variants = options.cpu.iter().copied().filter(alike);
            variants.map(Target::Cpu).for_each(attach);
        }
        if sink.has_errors() {
            return None;
        }
        match write_archive(&manifest, &blobs) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                sink.report(internal(&kernels[0], &error.to_string()));
                None
            }
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Target {
        Cpu(CpuVariant),
        Sm90a,
        /// One of the kernel's networks.
        TensorCores(usize),
    }

    impl Target {
        fn name(self) -> String {
            match self {
                Target::Cpu(variant) => variant.name().to_owned(),
                Target::Sm90a => "sm_90a".to_owned(),
                Target::TensorCores(number) => format!("sm_90a, tensor cores, {number}"),
            }
        }
    }

    /// Compiled code of one kernel for one target, and what a launch must know of it.
    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    pub(super) struct Code {
        pub symbol: String,
        pub threads: u32,
        pub shared_bytes: u32,
        pub scratch_bytes: u64,
        pub tensor_maps: Vec<TensorMap>,
        pub persistent: bool,
        pub cluster: u32,
        pub tensor_cores: bool,
        pub traps: Vec<String>,
        #[serde(skip)]
        pub bytes: Vec<u8>,
    }

    fn code(
        kernel: &ir::Kernel,
        networks: &[Network],
        target: Target,
        mlir: &MlirContext,
    ) -> Result<Code, Box<Diagnostic>> {
        match target {
            Target::Cpu(variant) => cpu_code(kernel, variant, mlir),
            Target::TensorCores(number) => {
                let network = &networks[number];
                gpu_code(&network.kernel, Some(&network.plan), mlir)
            }
            Target::Sm90a => gpu_code(&optimise_for_gpu(kernel)?, None, mlir),
        }
    }

    /// The networks of a kernel, the faster first: the last takes whatever boxes can be made for, one whose clusters share only grids of whole
    /// clusters.
    fn networks(kernel: &ir::Kernel) -> Result<Result<Vec<Network>, Plain>, Box<Diagnostic>> {
        let fault = |error: pass::PassError| Box::new(internal(kernel, &error.to_string()));
        let network = match schedule::network(kernel, &SM_90A).map_err(fault)? {
            Ok(network) => network,
            Err(why) => return Ok(Err(why)),
        };
        let shared = network.in_clusters(&SM_90A).map_err(fault)?;
        Ok(Ok(shared.into_iter().chain([network]).collect()))
    }

    /// Without a plan the same arithmetic as on CPUs, so that the bits are equal; `threads`, shared and scratch memory are of a CTA.
    fn gpu_code(
        kernel: &ir::Kernel,
        plan: Option<&Plan>,
        mlir: &MlirContext,
    ) -> Result<Code, Box<Diagnostic>> {
        let (emitted, ptx) = gpu_text(kernel, plan, mlir)?;
        let maps = plan.map_or(&[][..], |plan| &plan.maps);
        Ok(Code {
            symbol: emitted.symbol,
            threads: emitted.threads,
            shared_bytes: emitted.shared_bytes,
            scratch_bytes: emitted.scratch_bytes,
            tensor_maps: (maps.iter())
                .map(|map| TensorMap {
                    param: map.param.index() as u32,
                    extents: map.extents.clone(),
                    swizzle: map.swizzle,
                })
                .collect(),
            persistent: plan.is_some(),
            cluster: plan.map_or(1, |plan| plan.cluster),
            tensor_cores: plan.is_some(),
            traps: emitted.traps.into_iter().map(|t| t.message).collect(),
            bytes: ptx.into_bytes(),
        })
    }

    fn gpu_text<'c>(
        kernel: &ir::Kernel,
        plan: Option<&Plan>,
        mlir: &'c MlirContext,
    ) -> Result<(mlir::gpu::Emitted<'c>, String), Box<Diagnostic>> {
        let mut emitted = mlir::gpu::emit(mlir.melior(), kernel, plan, &SM_90A)?;
        let fault = |error: CodegenError| Box::new(internal(kernel, &error.to_string()));
        mlir.lower(&mut emitted.module, Lowering::Nvptx)
            .map_err(fault)?;
        let ptx = target::llvm::ptx(mlir, &emitted.module, &SM_90A).map_err(fault)?;
        Ok((emitted, ptx))
    }

    /// What is to be said of one code of a kernel for GPUs.
    #[derive(Clone, Debug)]
    pub struct CodeFacts {
        /// Roles and rings; `None`: plain code.
        pub plan: Option<Plan>,
        pub threads: u32,
        pub shared_bytes: u32,
        pub scratch_bytes: u64,
        /// In shared memory and in scratch: name, place, bytes.
        pub tiles: Vec<(String, mlir::gpu::Place, u64)>,
        pub barriers: usize,
        /// Checks while it runs.
        pub traps: usize,
        /// What ptxas says, if there is one, and of which function.
        pub assembled: Option<(String, Result<Report, String>)>,
    }

    /// The codes of each kernel for GPUs, the faster first.
    pub fn facts(
        kernels: &[&ir::Kernel],
        ptxas: Option<&Ptxas>,
        threads: usize,
    ) -> Vec<Result<Vec<CodeFacts>, Box<Diagnostic>>> {
        in_parallel(threads, kernels.len(), |at, mlir| {
            let kernel = kernels[at];
            let networks = networks(kernel)?.unwrap_or_default();
            let mut codes = vec![];
            for Network { kernel, plan } in &networks {
                codes.push(code_facts(kernel, Some(plan), ptxas, mlir)?);
            }
            if !(networks.last()).is_some_and(|n| n.plan.takes_all(kernel)) {
                codes.push(code_facts(&optimise_for_gpu(kernel)?, None, ptxas, mlir)?);
            }
            Ok(codes)
        })
    }

    fn code_facts(
        kernel: &ir::Kernel,
        plan: Option<&Plan>,
        ptxas: Option<&Ptxas>,
        mlir: &MlirContext,
    ) -> Result<CodeFacts, Box<Diagnostic>> {
        let (emitted, ptx) = gpu_text(kernel, plan, mlir)?;
        let report = ptxas.map(|ptxas| ptxas.assemble(&ptx, SM_90A.arch));
        let report = report.map(|made| match made {
            Ok(assembled) => Ok(assembled.report),
            Err(why) => Err(why.to_string()),
        });
        Ok(CodeFacts {
            plan: plan.cloned(),
            threads: emitted.threads,
            shared_bytes: emitted.shared_bytes,
            scratch_bytes: emitted.scratch_bytes,
            tiles: emitted.tiles,
            barriers: emitted.barriers,
            traps: emitted.traps.len(),
            assembled: report.map(|report| (emitted.symbol, report)),
        })
    }

    fn cpu_code(
        kernel: &ir::Kernel,
        variant: CpuVariant,
        mlir: &MlirContext,
    ) -> Result<Code, Box<Diagnostic>> {
        let kernel = optimise_for_cpu(kernel)?;
        let mut emitted = mlir::cpu::emit(mlir.melior(), &kernel, variant)?;
        let fault = |error: CodegenError| Box::new(internal(&kernel, &error.to_string()));
        mlir.lower(&mut emitted.module, Lowering::Cpu)
            .map_err(fault)?;
        let bytes = target::llvm::cpu_object(mlir, &emitted.module, variant).map_err(fault)?;
        Ok(Code {
            symbol: emitted.symbol,
            threads: 1,
            shared_bytes: 0,
            scratch_bytes: emitted.scratch_bytes,
            tensor_maps: vec![],
            persistent: false,
            cluster: 1,
            tensor_cores: false,
            traps: emitted.traps.into_iter().map(|t| t.message).collect(),
            bytes,
        })
    }

    fn attach(entry: &mut KernelEntry, target: Target, code: Code, blobs: &mut Vec<Vec<u8>>) {
        // Equal code is kept once.
        let blob = blobs
            .iter()
            .position(|b| *b == code.bytes)
            .unwrap_or_else(|| {
                blobs.push(code.bytes);
                blobs.len() - 1
            }) as u32;
        let Code {
            symbol,
            threads,
            shared_bytes,
            scratch_bytes,
            tensor_maps,
            persistent,
            cluster,
            tensor_cores,
            traps,
            ..
        } = code;
        match target {
            Target::Cpu(variant) => entry.cpu.push(CpuCode {
                variant,
                blob,
                symbol,
                scratch_bytes,
                traps,
            }),
            Target::Sm90a | Target::TensorCores(_) => entry.ptx.push(PtxCode {
                blob,
                symbol,
                threads,
                shared_bytes,
                scratch_bytes,
                tensor_maps,
                persistent,
                cluster,
                waits: true,
                tensor_cores,
                traps,
            }),
        }
    }

    /// Runs `work` for every job on `threads` threads, each with its own context; results in order of the jobs.
    fn in_parallel<R: Send>(
        threads: usize,
        jobs: usize,
        work: impl Fn(usize, &MlirContext) -> R + Sync,
    ) -> Vec<R> {
        let next = AtomicUsize::new(0);
        let done: Mutex<Vec<Option<R>>> = Mutex::new((0..jobs).map(|_| None).collect());
        let worker = || {
            // Made only by a thread that gets something to do, and only then: a context takes milliseconds.
            let mlir = std::cell::OnceCell::new();
            loop {
                let job = next.fetch_add(1, Ordering::Relaxed);
                if job >= jobs {
                    return;
                }
                let result = work(job, mlir.get_or_init(MlirContext::new));
                done.lock()
                    .expect("workers do not panic with the lock held")[job] = Some(result);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.min(jobs).max(1) {
                scope.spawn(worker);
            }
            worker();
        });
        let done = done
            .into_inner()
            .expect("workers do not panic with the lock held");
        done.into_iter()
            .map(|result| result.expect("every job was taken by a worker"))
            .collect()
    }

    /// A stage whose text `--emit` prints.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Dump {
        Tile,
        TileOptimised,
        Network,
        Plan,
        Mlir,
        Llvm,
        Assembly,
        Ptx,
    }

    /// The text of one stage for one kernel.
    ///
    /// # Errors
    /// The stage's own.
    pub fn dump(
        kernel: &ir::Kernel,
        stage: Dump,
        variant: CpuVariant,
    ) -> Result<String, Box<Diagnostic>> {
        let text = match stage {
            Dump::Tile => return Ok(tile::print::print(kernel)),
            Dump::TileOptimised => return Ok(tile::print::print(&optimise_for_cpu(kernel)?)),
            Dump::Network | Dump::Plan | Dump::Ptx => {
                let networks = networks(kernel)?;
                match (&networks, stage) {
                    (Ok(networks), Dump::Network) => {
                        let texts = networks.iter().map(|n| tile::print::print(&n.kernel));
                        return Ok(texts.collect::<Vec<_>>().join("\n"));
                    }
                    (Ok(networks), Dump::Plan) => {
                        let texts = networks.iter();
                        let texts = texts.map(|n| format!("kernel {}\n{}", kernel.name, n.plan));
                        return Ok(texts.collect::<Vec<_>>().join("\n"));
                    }
                    (Err(why), Dump::Network | Dump::Plan) => {
                        let mut text = format!("kernel {}\nno tensor cores: {why}\n", kernel.name);
                        if stage == Dump::Plan {
                            let plain = optimise_for_gpu(kernel)?;
                            text += &mlir::gpu::registers(&plain, &SM_90A)?.print(&plain);
                        }
                        return Ok(text);
                    }
                    _ => {}
                }
                let networks = networks.unwrap_or_default();
                let targets = match networks.len() {
                    0 => vec![Target::Sm90a],
                    n => (0..n).map(Target::TensorCores).collect(),
                };
                let mut text = String::new();
                for target in targets {
                    let code = code(kernel, &networks, target, &MlirContext::new())?;
                    text += &String::from_utf8_lossy(&code.bytes);
                }
                return Ok(text);
            }
            other => other,
        };
        let kernel = optimise_for_cpu(kernel)?;
        let mlir = MlirContext::new();
        let mut emitted = mlir::cpu::emit(mlir.melior(), &kernel, variant)?;
        let fault = |error: CodegenError| Box::new(internal(&kernel, &error.to_string()));
        if text == Dump::Mlir {
            return Ok(emitted.module.as_operation().to_string());
        }
        mlir.lower(&mut emitted.module, Lowering::Cpu)
            .map_err(fault)?;
        match text {
            Dump::Llvm => Ok(emitted.module.as_operation().to_string()),
            _ => target::llvm::cpu_assembly(&mlir, &emitted.module, variant).map_err(fault),
        }
    }
}
