//! `tlc bench`: measures the benches of `.tl` files on this machine's CPU.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::build::Compile;
use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::driver;
use crate::sema::Program;
use crate::testing::bench::{self, BenchOptions, Measurement};

#[derive(Args)]
pub(super) struct Bench {
    #[command(flatten)]
    compile: Compile,
    /// Only benches whose kernel or title holds this text
    #[arg(long, short)]
    filter: Option<String>,
    /// Threads to run on (default: one per core)
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Seconds to measure each case
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Files, or directories to search
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Bench, format: MessageFormat) -> ExitCode {
    let (options, map) = match (arguments.compile.options(), files::load(&arguments.files)) {
        (Ok(options), Ok(map)) => (options, map),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let Ok(time) = Duration::try_from_secs_f64(arguments.seconds) else {
        eprintln!("error: `--seconds` must be a positive number");
        return ExitCode::from(super::USAGE_OR_IO);
    };
    let how = BenchOptions {
        threads: arguments.threads,
        variant: None,
        time,
    };
    let mut sink = Sink::default();
    let parsed = driver::parse(&map, &mut sink);
    let program = Program::collect(&parsed, &mut sink);
    if sink.has_errors() {
        return files::report(&sink.finish(), &map, format);
    }
    if format != MessageFormat::Json {
        super::print(&format!(
            "{:58} {:>10} {:>15} {:>9} {:>7} {:>9}\n",
            "bench", "median", "10 % .. 90 %", "GB/s", "copy", "GFLOP/s"
        ));
    }
    for (id, kernel) in program.kernels.iter().enumerate() {
        for item in &kernel.benches {
            let wanted = arguments.filter.as_ref().is_none_or(|p| {
                kernel.name.contains(p.as_str()) || item.title.contains(p.as_str())
            });
            if wanted {
                for one in bench::run(&program, id, item, &options, &how, &mut sink) {
                    print(&one, format);
                }
            }
        }
    }
    files::report(&sink.finish(), &map, format)
}

fn print(one: &Measurement, format: MessageFormat) {
    let rate = one.bytes_per_second();
    if format == MessageFormat::Json {
        let line = json!({
            "kernel": one.kernel, "bench": one.title, "case": one.case, "variant": one.variant.name(), "threads": one.threads,
            "median_s": one.median, "low_s": one.low, "high_s": one.high, "launches": one.launches, "bytes": one.bytes,
            "flops": one.flops, "bytes_per_s": rate, "flops_per_s": one.flops_per_second(), "copy_bytes_per_s": one.copy_rate,
        });
        return super::print(&format!("{line}\n"));
    }
    let short = one.kernel.rsplit("::").next().unwrap_or(&one.kernel);
    let name: String = format!("{short}: {} ({}, {}T)", one.title, one.variant, one.threads)
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
}

fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-6 => format!("{:.0}ns", s * 1e9),
        s if s < 1e-3 => format!("{:.2}µs", s * 1e6),
        s if s < 1.0 => format!("{:.2}ms", s * 1e3),
        s => format!("{s:.2}s"),
    }
}
