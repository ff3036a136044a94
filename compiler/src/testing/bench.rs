//! Measures compiled kernels: medians over many launches, set against the machine's own speed of copying.
//!
//! Each case of a bench runs with its inputs filled as in a test. Bytes are those of its tensors, each once (`inout` twice), so a
//! kernel that reads only part of a tensor looks faster than it is; operations are those of its products.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tessera_artifact::{CpuVariant, ParamMode};
use tessera_device::cpu::{CpuDevice, CpuOptions, features};
use tessera_device::{Arg, Device, Library, Scalar, Tensor};

use super::count::dot_flops;
use super::plan::{Input, Inputs, inputs, plan};
use crate::diag::Sink;
use crate::diag::catalogue::testing as say;
use crate::driver::{self, Options};
use crate::sema::Program;
use crate::syntax::ast;

/// How long one case is measured, warm-up besides.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    pub threads: Option<NonZeroUsize>,
    pub variant: Option<CpuVariant>,
    pub time: Duration,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            threads: None,
            variant: None,
            time: Duration::from_millis(500),
        }
    }
}

/// One case, measured.
#[derive(Clone, Debug)]
pub struct Measurement {
    pub kernel: String,
    pub title: String,
    pub case: String,
    pub variant: CpuVariant,
    pub threads: usize,
    /// Seconds per launch: median, and the tenth and ninetieth of a hundred.
    pub median: f64,
    pub low: f64,
    pub high: f64,
    pub launches: usize,
    pub bytes: u64,
    /// Of products; `None` where control depends on data.
    pub flops: Option<u64>,
    /// Bytes per second that this machine copies with as many threads, reads and writes counted.
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

/// Measures every case of a bench; problems are in the sink.
pub fn run<'a>(
    program: &Program<'a>,
    kernel: usize,
    bench: &'a ast::Test,
    options: &Options,
    how: &BenchOptions,
    sink: &mut Sink,
) -> Vec<Measurement> {
    let Some(plan) = plan(program, kernel, bench, sink) else {
        return vec![];
    };
    let mut measured = vec![];
    for case in &plan.cases {
        let Some(instance) = driver::instance(program, kernel, &case.instance, sink) else {
            return measured;
        };
        let variant = match features::choose(options.cpu.iter().copied(), how.variant) {
            Ok(variant) => variant,
            Err(error) => {
                sink.report(say::run_failed(
                    plan.span,
                    "the bench",
                    &case.label,
                    &error.to_string(),
                ));
                return measured;
            }
        };
        let options = Options {
            cpu: vec![variant],
            ptx: false,
            ..options.clone()
        };
        let Some(archive) = driver::compile(std::slice::from_ref(&instance), &options, sink) else {
            return measured;
        };
        let one = inputs(&plan, case, &instance)
            .map_err(|d| *d)
            .and_then(|inputs| {
                let (times, threads) = measure(&archive, &instance.name, &inputs, variant, how)
                    .map_err(|what| say::run_failed(plan.span, "the bench", &case.label, &what))?;
                let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
                Ok(Measurement {
                    kernel: instance.name.clone(),
                    title: plan.title.clone(),
                    case: case.label.clone(),
                    variant,
                    threads,
                    median: at(0.5),
                    low: at(0.1),
                    high: at(0.9),
                    launches: times.len(),
                    bytes: bytes(&inputs),
                    flops: dot_flops(&instance, &inputs.dims),
                    copy_rate: copy_rate(threads),
                })
            });
        match one {
            Ok(one) => measured.push(one),
            Err(d) => {
                sink.report(d);
                return measured;
            }
        }
    }
    measured
}

fn bytes(inputs: &Inputs) -> u64 {
    (inputs.params.iter())
        .map(|input| match input {
            Input::Tensor { mode, data, .. } => {
                data.dtype.bytes_for(data.len() as u64)
                    * if *mode == ParamMode::InOut { 2 } else { 1 }
            }
            _ => 0,
        })
        .sum()
}

/// Seconds of each launch, rising, and the number of threads.
fn measure(
    archive: &[u8],
    name: &str,
    inputs: &Inputs,
    variant: CpuVariant,
    how: &BenchOptions,
) -> Result<(Vec<f64>, usize), String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let cpu = CpuDevice::new(CpuOptions {
        threads: how.threads,
        variant: Some(variant),
    })
    .map_err(|e| text(&e))?;
    let threads = cpu.threads();
    let device = Device::Cpu(std::sync::Arc::new(cpu));
    let library = Library::load(archive, &device).map_err(|e| text(&e))?;
    let kernel = library.kernel(name).map_err(|e| text(&e))?;
    let mut tensors: Vec<Option<Tensor>> = vec![];
    for input in &inputs.params {
        tensors.push(match input {
            Input::Tensor { data, .. } => Some(data.to_tensor().map_err(|e| text(&e))?),
            _ => None,
        });
    }
    let mut args = vec![];
    for (input, tensor) in inputs.params.iter().zip(&mut tensors) {
        match (input, tensor) {
            (Input::Tensor { .. }, Some(tensor)) => {
                args.push(Arg::TensorMut(tensor.view_mut().map_err(|e| text(&e))?))
            }
            (Input::Scalar { dtype, bits, .. }, _) => {
                let value = tessera_artifact::numeric::to_f64(*bits, *dtype);
                args.push(Arg::Scalar(Scalar {
                    dtype: *dtype,
                    bits: *bits,
                    value,
                }));
            }
            (Input::Index { value, .. }, _) => args.push(Arg::Index(*value)),
            _ => {}
        }
    }
    let launch = || -> Result<f64, String> {
        let start = Instant::now();
        kernel.launch(&args).map_err(|e| text(&e))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let start = Instant::now();
    while start.elapsed() < how.time / 5 {
        launch()?;
    }
    let mut times = vec![];
    let start = Instant::now();
    while start.elapsed() < how.time || times.len() < 3 {
        times.push(launch()?);
    }
    times.sort_by(f64::total_cmp);
    Ok((times, threads))
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
