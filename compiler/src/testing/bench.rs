//! Measures compiled kernels: medians over many launches, set against the machine's own speed of copying.
//!
//! Each case of a bench runs with its inputs filled as in a test (large random ones repeat). On a GPU times are the GPU's own, with
//! nothing in the cache before a launch, net of what an empty launch takes. Bytes are those of its tensors, each once (`inout` twice), so a
//! kernel that reads only part of a tensor looks faster than it is; operations are those of its products.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tessera_artifact::{CpuVariant, DType, ParamMode};
use tessera_device::cpu::{CpuDevice, CpuOptions, features};
use tessera_device::{Arg, Device, Kernel, Library, Scalar, Tensor};

use super::count::dot_flops;
use super::data::Data;
use super::library::kernel_of;
use super::plan::{Case, Input, Inputs, Plan, inputs_by, plan};
use crate::diag::catalogue::testing as say;
use crate::diag::{Diagnostic, Sink};
use crate::driver::{self, Options};
use crate::sema::Program;
use crate::syntax::ast;
use crate::tile::ir;

/// How long one case is measured, warm-up besides, and on what.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    pub threads: Option<NonZeroUsize>,
    pub variant: Option<CpuVariant>,
    pub time: Duration,
    /// Instead of the CPU.
    pub gpu: Option<Device>,
    /// Its kernels on its device, instead of compiling any; cases of instances that it lacks are left out.
    pub library: Option<Library>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            threads: None,
            variant: None,
            time: Duration::from_millis(500),
            gpu: None,
            library: None,
        }
    }
}

/// What a case was measured on.
#[derive(Clone, Debug, PartialEq)]
pub enum Machine {
    Cpu { variant: CpuVariant, threads: usize },
    Gpu { name: String },
}

/// One case, measured.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub kernel: String,
    pub title: String,
    pub case: String,
    pub machine: Machine,
    /// Seconds per launch: median, and the tenth and ninetieth of a hundred; net of `empty`.
    pub median: f64,
    pub low: f64,
    pub high: f64,
    /// What a launch takes that does nothing; 0 on CPUs, where it is not taken off.
    pub empty: f64,
    pub launches: usize,
    pub bytes: u64,
    /// Of products; `None` where control depends on data.
    pub flops: Option<u64>,
    /// Bytes per second that this machine copies (on a CPU with as many threads), reads and writes counted.
    pub copy_rate: f64,
}

impl Measurement {
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.median
    }

    pub fn flops_per_second(&self) -> Option<f64> {
        self.flops
            .filter(|&f| f > 0)
            .map(|f| f as f64 / self.median)
    }
}

/// A case that is compiled, filled and ready to be measured.
pub struct Prepared {
    pub kernel: String,
    pub title: String,
    pub case: String,
    machine: Machine,
    device: Device,
    code: Kernel,
    inputs: Inputs<Tensor>,
    flops: Option<u64>,
    copy_rate: f64,
}

/// Measures every case of a bench; problems are in the sink.
pub fn run<'a>(
    program: &Program<'a>,
    kernel: usize,
    bench: &'a ast::Test,
    options: &Options,
    how: &BenchOptions,
    sink: &mut Sink,
) -> Vec<Measurement> {
    let mut measured = vec![];
    each(program, kernel, bench, options, how, sink, &mut |case| {
        measured.push(case.measure(how.time)?);
        Ok(true)
    });
    measured
}

/// Calls `work` with every case of a bench, one at a time, until it says no; whether it has not. Problems are in the sink, and end it too.
pub fn each<'a>(
    program: &Program<'a>,
    kernel: usize,
    bench: &'a ast::Test,
    options: &Options,
    how: &BenchOptions,
    sink: &mut Sink,
    work: &mut dyn FnMut(Prepared) -> Result<bool, String>,
) -> bool {
    let Some(plan) = plan(program, kernel, bench, sink) else {
        return true;
    };
    for case in &plan.cases {
        let Some(prepared) = prepare(program, &plan, case, options, how, sink) else {
            return true;
        };
        let Some(prepared) = prepared else {
            continue;
        };
        let failed = |what: String| say::run_failed(plan.span, "the bench", &case.label, &what);
        match prepared.and_then(|prepared| work(prepared).map_err(failed)) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(d) => {
                sink.report(d);
                return true;
            }
        }
    }
    true
}

/// `None` if the sink knows why; the second, if the library lacks the instance.
fn prepare(
    program: &Program<'_>,
    plan: &Plan<'_>,
    case: &Case,
    options: &Options,
    how: &BenchOptions,
    sink: &mut Sink,
) -> Option<Option<Result<Prepared, Diagnostic>>> {
    let instance = driver::instance(program, plan.kernel, &case.instance, sink)?;
    let (device, machine) = match machine(options, how) {
        Ok(found) => found,
        Err(why) => return Some(Some(Err(failed(plan, case, &why)))),
    };
    let code = match &how.library {
        Some(library) => match kernel_of(library, &instance) {
            Some(kernel) => Ok(kernel),
            None => return Some(None),
        },
        None => compiled(&instance, options, &machine, &device, sink)?,
    };
    let prepared = match code {
        Ok(code) => filled(plan, case, &instance, code, device, machine),
        Err(why) => Err(failed(plan, case, &why)),
    };
    Some(Some(prepared))
}

pub(super) fn failed(plan: &Plan<'_>, case: &Case, what: &dyn std::fmt::Display) -> Diagnostic {
    say::run_failed(plan.span, "the bench", &case.label, &what.to_string())
}

/// A case of this instance with its inputs.
pub(super) fn filled(
    plan: &Plan<'_>,
    case: &Case,
    instance: &ir::Kernel,
    code: Kernel,
    device: Device,
    machine: Machine,
) -> Result<Prepared, Diagnostic> {
    let failed = |what: &dyn std::fmt::Display| failed(plan, case, what);
    let tensor = |dtype: DType, shape: &[i64], contents: Option<(&_, u64)>| {
        Data::quick(dtype, shape, contents)
            .and_then(|tensor| match &device {
                Device::Cpu(_) => Ok(tensor),
                Device::Cuda(_) => tensor.to_device(&device),
            })
            .map_err(|e| Box::new(failed(&e)))
    };
    let inputs = inputs_by(plan, case, instance, &tensor).map_err(|d| *d)?;
    let copy_rate = match (&machine, &device) {
        (Machine::Gpu { .. }, Device::Cuda(gpu)) => {
            let (times, bytes) = gpu.time_copy(21).map_err(|e| failed(&e))?;
            let empty = gpu.time_empty(21).map_err(|e| failed(&e))?;
            bytes as f64 / (median(times) - median(empty))
        }
        (Machine::Cpu { threads, .. }, _) => copy_rate(*threads),
        (Machine::Gpu { .. }, Device::Cpu(_)) => unreachable!("`machine` pairs them"),
    };
    Ok(Prepared {
        kernel: instance.name.clone(),
        title: plan.title.clone(),
        case: case.label.clone(),
        machine,
        code,
        flops: dot_flops(instance, &inputs.dims),
        inputs,
        copy_rate,
        device: device.clone(),
    })
}

/// Code of this instance for the machine; `None` if the sink knows why there is none.
fn compiled(
    instance: &ir::Kernel,
    options: &Options,
    machine: &Machine,
    device: &Device,
    sink: &mut Sink,
) -> Option<Result<Kernel, String>> {
    let archive = archive(instance, options, machine, sink)?;
    Some(loaded(&archive, instance, device))
}

/// An archive of this instance for the machine alone; `None` if the sink knows why there is none.
pub(super) fn archive(
    instance: &ir::Kernel,
    options: &Options,
    machine: &Machine,
    sink: &mut Sink,
) -> Option<Vec<u8>> {
    let options = match machine {
        Machine::Cpu { variant, .. } => Options {
            cpu: vec![*variant],
            ptx: false,
            ..options.clone()
        },
        Machine::Gpu { .. } => Options {
            cpu: vec![],
            ptx: true,
            ..options.clone()
        },
    };
    driver::compile(std::slice::from_ref(instance), &options, sink)
}

/// The kernel of an archive of this instance.
pub(super) fn loaded(
    archive: &[u8],
    instance: &ir::Kernel,
    device: &Device,
) -> Result<Kernel, String> {
    let library = Library::load(archive, device).map_err(|e| e.to_string())?;
    let kernel = library.kernel(&instance.name).map_err(|e| e.to_string())?;
    Ok(kernel.clone())
}

pub(super) fn machine(options: &Options, how: &BenchOptions) -> Result<(Device, Machine), String> {
    if let Some(device) = &how.gpu {
        let name = device.to_string();
        return Ok((device.clone(), Machine::Gpu { name }));
    }
    if let Some(library) = &how.library {
        let device = library.device().clone();
        let machine = match &device {
            Device::Cpu(cpu) => Machine::Cpu {
                variant: features::choose(options.cpu.iter().copied(), None)
                    .map_err(|why| why.to_string())?,
                threads: cpu.threads(),
            },
            Device::Cuda(_) => Machine::Gpu {
                name: device.to_string(),
            },
        };
        return Ok((device, machine));
    }
    let variant = features::choose(options.cpu.iter().copied(), how.variant);
    let variant = variant.map_err(|e| e.to_string())?;
    let cpu = CpuDevice::new(CpuOptions {
        threads: how.threads,
        variant: Some(variant),
    })
    .map_err(|e| e.to_string())?;
    let threads = cpu.threads();
    let device = Device::Cpu(std::sync::Arc::new(cpu));
    Ok((device, Machine::Cpu { variant, threads }))
}

impl Prepared {
    /// Launches other code from now on.
    pub(super) fn set_code(&mut self, code: Kernel) {
        self.code = code;
    }

    /// What the kernel has written, on the host.
    ///
    /// # Errors
    /// The copy's, as text.
    pub(super) fn outputs(&self) -> Result<Vec<Tensor>, String> {
        let written = self.inputs.params.iter().filter_map(|input| match input {
            Input::Tensor {
                mode: ParamMode::Out,
                data,
                ..
            } => Some(data),
            _ => None,
        });
        let copies = written.map(|data| match &self.device {
            Device::Cpu(_) => data.view().to_tensor(),
            Device::Cuda(_) => data.to_host(),
        });
        copies.collect::<Result<_, _>>().map_err(|e| e.to_string())
    }

    /// Seconds of so many launches, and of one that does nothing (0 on CPUs).
    ///
    /// # Errors
    /// The launch's, as text.
    pub fn launch(&mut self, launches: usize) -> Result<(Vec<f64>, f64), String> {
        let text = |e: &dyn std::fmt::Display| e.to_string();
        let mut args = vec![];
        for input in &mut self.inputs.params {
            match input {
                Input::Tensor { data, .. } => {
                    args.push(Arg::TensorMut(data.view_mut().map_err(|e| text(&e))?))
                }
                Input::Scalar { dtype, bits, .. } => {
                    let value = tessera_artifact::numeric::to_f64(*bits, *dtype);
                    args.push(Arg::Scalar(Scalar {
                        dtype: *dtype,
                        bits: *bits,
                        value,
                    }));
                }
                Input::Index { value, .. } => args.push(Arg::Index(*value)),
                Input::Host => {}
            }
        }
        let times = self.code.time(&args, launches).map_err(|e| text(&e))?;
        let empty = match &self.device {
            Device::Cuda(gpu) => median(gpu.time_empty(launches.max(5)).map_err(|e| text(&e))?),
            Device::Cpu(_) => 0.0,
        };
        Ok((times, empty))
    }

    /// Launches for a while.
    ///
    /// # Errors
    /// The launch's, as text.
    pub fn measure(mut self, time: Duration) -> Result<Measurement, String> {
        let start = Instant::now();
        let mut one = f64::INFINITY;
        while start.elapsed() < time / 5 || one.is_infinite() {
            let begun = Instant::now();
            self.launch(1)?;
            one = one.min(begun.elapsed().as_secs_f64());
        }
        // A few at a time, so that a GPU's queue is never empty.
        let batch = ((time.as_secs_f64() / 10.0 / one) as usize).clamp(1, 20);
        let (mut times, mut empties) = (vec![], vec![]);
        let start = Instant::now();
        while start.elapsed() < time || times.len() < 3 {
            let (more, empty) = self.launch(batch)?;
            times.extend(more);
            empties.push(empty);
        }
        Ok(self.summary(times, median(empties)))
    }

    /// What so many launches have shown.
    pub fn summary(&self, mut times: Vec<f64>, empty: f64) -> Measurement {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        // Shorter than nothing is nothing that can be told.
        let net = |share: f64| (at(share) - empty).max(1e-9);
        Measurement {
            kernel: self.kernel.clone(),
            title: self.title.clone(),
            case: self.case.clone(),
            machine: self.machine.clone(),
            median: net(0.5),
            low: net(0.1),
            high: net(0.9),
            empty,
            launches: times.len(),
            bytes: bytes(&self.inputs),
            flops: self.flops,
            copy_rate: self.copy_rate,
        }
    }
}

fn bytes(inputs: &Inputs<Tensor>) -> u64 {
    (inputs.params.iter())
        .map(|input| match input {
            Input::Tensor { mode, data, .. } => {
                let elements = data.shape().iter().product::<i64>() as u64;
                data.dtype().bytes_for(elements) * if *mode == ParamMode::InOut { 2 } else { 1 }
            }
            _ => 0,
        })
        .sum()
}

/// The middle one; 0 of none.
pub(super) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(0.0)
}

/// Measured once for each number of threads: blocks far larger than the caches, the best of several passes.
fn copy_rate(threads: usize) -> f64 {
    static RATES: [OnceLock<f64>; 257] = [const { OnceLock::new() }; 257];
    *RATES[threads.min(256)].get_or_init(|| {
        const BYTES: usize = 128 << 20;
        let source = vec![1u8; BYTES];
        let mut target = vec![0u8; BYTES];
        let chunk = BYTES.div_ceil(threads.max(1));
        let mut best = f64::INFINITY;
        for _ in 0..7 {
            let start = Instant::now();
            std::thread::scope(|scope| {
                for (to, from) in target.chunks_mut(chunk).zip(source.chunks(chunk)) {
                    scope.spawn(|| to.copy_from_slice(from));
                }
            });
            best = best.min(start.elapsed().as_secs_f64());
        }
        2.0 * BYTES as f64 / best
    })
}
