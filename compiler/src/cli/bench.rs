//! `tlc bench`: measures the benches of `.tl` files on this machine's CPU or GPU.

use std::io::BufRead;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::build::Compile;
use super::test::{DeviceKind, first_gpu};
use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::driver;
use crate::sema::Program;
use crate::testing::bench::{self, BenchOptions, Machine, Measurement, Prepared};

#[derive(Args)]
pub(super) struct Bench {
    #[command(flatten)]
    compile: Compile,
    /// Only benches whose kernel or title holds this text
    #[arg(long, short)]
    filter: Option<String>,
    /// What to measure on; `cuda`: the first GPU
    #[arg(long, value_enum, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    /// With `--device cuda`: a kernel that runs longer is taken to hang
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    watchdog: u64,
    /// Threads to run on (default: one per core)
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Seconds to measure each case
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Measure when told to: each case prints a line of JSON when it is ready; then a line `N` on standard input launches N times and
    /// prints a line with the result, a line `next` goes on to the next case, and the end of the input ends it all
    #[arg(long)]
    step: bool,
    /// Try the values of each kernel's `tune` clause on its benches, and write what wins beside the source, by the dims that are no batch
    #[arg(long, conflicts_with = "step")]
    tune: bool,
    /// With `--tune`: choose the fastest, even if its outputs have other bits than those of today
    #[arg(long, requires = "tune")]
    any_bits: bool,
    /// Files, or directories to search
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Bench, format: MessageFormat) -> ExitCode {
    let (options, map) = match (
        arguments.compile.options(),
        files::load(&arguments.files, &arguments.compile.modules),
    ) {
        (Ok(options), Ok(map)) => (options, map),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let Ok(time) = Duration::try_from_secs_f64(arguments.seconds) else {
        eprintln!("error: `--seconds` must be a positive number");
        return ExitCode::from(super::USAGE_OR_IO);
    };
    let gpu = match arguments.device {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda => match first_gpu(arguments.watchdog) {
            Ok(device) => Some(device),
            Err(code) => return code,
        },
    };
    let how = BenchOptions {
        threads: arguments.threads,
        variant: None,
        time,
        gpu,
        library: None,
    };
    let mut sink = Sink::default();
    let parsed = driver::parse(&map, &mut sink);
    let program = Program::collect(&parsed, &mut sink);
    if sink.has_errors() {
        return files::report(&sink.finish(), &map, format);
    }
    let wanted = |kernel: &str, title: &str| {
        (arguments.filter.as_ref())
            .is_none_or(|p| kernel.contains(p.as_str()) || title.contains(p.as_str()))
    };
    if arguments.tune {
        return super::tune::run(
            &program,
            &map,
            &wanted,
            arguments.any_bits,
            (&options, &how),
            format,
        );
    }
    if format != MessageFormat::Json && !arguments.step {
        super::print(&format!(
            "{:58} {:>10} {:>15} {:>9} {:>7} {:>9}\n",
            "bench", "median", "10 % .. 90 %", "GB/s", "copy", "GFLOP/s"
        ));
    }
    let mut told = std::io::stdin().lock().lines();
    let mut work = |case: Prepared| -> Result<bool, String> {
        if arguments.step {
            return step(case, &mut told);
        }
        print(&case.measure(how.time)?, format);
        Ok(true)
    };
    'all: for (id, kernel) in program.kernels.iter().enumerate() {
        for item in &kernel.benches {
            if wanted(&kernel.name, &item.title)
                && !bench::each(&program, id, item, &options, &how, &mut sink, &mut work)
            {
                break 'all;
            }
        }
    }
    files::report(&sink.finish(), &map, format)
}

/// One case, launched when a line says so; false when there are no more lines.
fn step(
    mut case: Prepared,
    told: &mut dyn Iterator<Item = std::io::Result<String>>,
) -> Result<bool, String> {
    let ready =
        json!({ "ready": { "kernel": case.kernel, "bench": case.title, "case": case.case } });
    super::print(&format!("{ready}\n"));
    for line in told {
        let line = line.map_err(|e| format!("standard input: {e}"))?;
        if line.trim() == "next" {
            return Ok(true);
        }
        let launches = line
            .trim()
            .parse::<usize>()
            .ok()
            .filter(|n| (1..=200).contains(n));
        let launches = launches.ok_or_else(|| {
            format!("`{line}` is neither `next` nor a number of launches from 1 to 200")
        })?;
        let (times, empty) = case.launch(launches)?;
        super::print(&format!("{}\n", as_json(&case.summary(times, empty))));
    }
    Ok(false)
}

fn as_json(one: &Measurement) -> Value {
    let mut line = json!({
        "kernel": one.kernel, "bench": one.title, "case": one.case, "median_s": one.median, "low_s": one.low, "high_s": one.high,
        "empty_s": one.empty, "launches": one.launches, "bytes": one.bytes, "flops": one.flops, "bytes_per_s": one.bytes_per_second(),
        "flops_per_s": one.flops_per_second(), "copy_bytes_per_s": one.copy_rate,
    });
    match &one.machine {
        Machine::Cpu { variant, threads } => {
            line["variant"] = json!(variant.name());
            line["threads"] = json!(threads);
        }
        Machine::Gpu { name } => line["device"] = json!(name),
    }
    line
}

fn print(one: &Measurement, format: MessageFormat) {
    let rate = one.bytes_per_second();
    if format == MessageFormat::Json {
        return super::print(&format!("{}\n", as_json(one)));
    }
    let short = one.kernel.rsplit("::").next().unwrap_or(&one.kernel);
    let on = match &one.machine {
        Machine::Cpu { variant, threads } => format!("({variant}, {threads}T)"),
        Machine::Gpu { .. } => one.case.clone(),
    };
    let name: String = format!("{short}: {} {on}", one.title)
        .chars()
        .take(58)
        .collect();
    let spread = format!("{}..{}", seconds(one.low), seconds(one.high));
    let flops = one
        .flops_per_second()
        .map_or(String::new(), |f| format!("{:.1}", f / 1e9));
    super::print(&format!(
        "{name:58} {:>10} {spread:>15} {:>9.2} {:>5.0} % {flops:>9}\n",
        seconds(one.median),
        rate / 1e9,
        100.0 * rate / one.copy_rate
    ));
    if one.empty > 0.0 {
        super::print(&format!(
            "    net of an empty launch, {}; {} launches; copy {:.0} GB/s\n",
            seconds(one.empty),
            one.launches,
            one.copy_rate / 1e9
        ));
    }
}

pub(super) fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-6 => format!("{:.0}ns", s * 1e9),
        s if s < 1e-3 => format!("{:.2}µs", s * 1e6),
        s if s < 1.0 => format!("{:.2}ms", s * 1e3),
        s => format!("{s:.2}s"),
    }
}
