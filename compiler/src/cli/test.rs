//! `tlc test`: runs the tests of `.tl` files.

use std::path::PathBuf;
use std::process::ExitCode;

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tessera_device::{CudaOptions, Device};

use super::build::Compile;
use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::diag::render::{Format, render};
use crate::driver;
use crate::sema::Program;
use crate::source::SourceMap;
use crate::testing::run::{self, Report};

#[derive(Args)]
pub(super) struct Test {
    #[command(flatten)]
    compile: Compile,
    /// Only tests whose kernel or title holds this text
    #[arg(long, short)]
    filter: Option<String>,
    /// Where compiled code runs, to be compared with the interpreter; `cuda`: the first GPU instead of the CPU
    #[arg(long, value_enum, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    /// With `--device cuda`: a kernel that runs longer is taken to hang
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    watchdog: u64,
    /// Files, or directories to search
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DeviceKind {
    Cpu,
    Cuda,
}

/// The first GPU, on which a kernel that runs longer than so many seconds is taken to hang.
pub(super) fn first_gpu(watchdog: u64) -> Result<Device, ExitCode> {
    let options = CudaOptions {
        watchdog: Duration::from_secs(watchdog),
        ..CudaOptions::default()
    };
    Device::cuda_with(options).map_err(|why| {
        eprintln!("error: {why}");
        ExitCode::FAILURE
    })
}

pub(super) fn run(arguments: &Test, format: MessageFormat) -> ExitCode {
    let (mut options, map) = match (
        arguments.compile.options(),
        files::load(&arguments.files, &arguments.compile.modules),
    ) {
        (Ok(options), Ok(map)) => (options, map),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let mut gpu = None;
    if arguments.device == DeviceKind::Cuda {
        options.cpu.clear();
        match first_gpu(arguments.watchdog) {
            Ok(device) => gpu = Some(device),
            Err(code) => return code,
        }
    }
    let mut sink = Sink::default();
    let parsed = driver::parse(&map, &mut sink);
    let program = Program::collect(&parsed, &mut sink);
    if sink.has_errors() {
        return files::report(&sink.finish(), &map, format);
    }
    let ways = run::Ways {
        options: &options,
        gpu: gpu.as_ref(),
        references: true,
    };
    let (mut passed, mut failed) = (0, 0);
    let wanted = |kernel: &str, title: &str| {
        arguments
            .filter
            .as_ref()
            .is_none_or(|part| kernel.contains(part.as_str()) || title.contains(part.as_str()))
    };
    for (id, kernel) in program.kernels.iter().enumerate() {
        for test in kernel
            .tests
            .iter()
            .filter(|t| wanted(&kernel.name, &t.title))
        {
            let report = run::run_ways(&program, id, test, &ways);
            *(if report.passed() {
                &mut passed
            } else {
                &mut failed
            }) += 1;
            print(&report, &map, format);
        }
    }
    if format != MessageFormat::Json {
        super::print(&format!("{passed} passed, {failed} failed\n"));
    }
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print(report: &Report, map: &SourceMap, format: MessageFormat) {
    let verdict = if report.passed() { "ok" } else { "FAILED" };
    let text = match format {
        MessageFormat::Json => {
            let problems: Vec<serde_json::Value> = (report.problems.iter())
                .map(|d| serde_json::from_str(&render(d, map, Format::Json)).unwrap_or_default())
                .collect();
            let closest = report
                .closest
                .as_ref()
                .map(|(tensor, share)| json!({ "tensor": tensor, "share_of_tolerance": share }));
            let line = json!({
                "kernel": report.kernel, "test": report.title, "passed": report.passed(), "cases": report.cases,
                "ways": report.ways, "closest": closest, "skipped": report.skipped, "seconds": report.time.as_secs_f64(),
                "problems": problems,
            });
            format!("{line}\n")
        }
        _ => {
            let closest = match &report.closest {
                Some((tensor, share)) => format!("{tensor} at {:.2} of its tolerance", share),
                None => String::new(),
            };
            let name = format!("{}: {}", report.kernel, report.title);
            let cases = format!(
                "{} case{}",
                report.cases,
                if report.cases == 1 { "" } else { "s" }
            );
            let mut text = format!(
                "{verdict:6} {name:70} {cases:>9} {:>8.1?}  {closest}\n",
                report.time
            );
            for reason in &report.skipped {
                text.push_str(&format!("       left out {reason}\n"));
            }
            let format = if format == MessageFormat::Short {
                Format::Short
            } else {
                Format::Human { colour: false }
            };
            report
                .problems
                .iter()
                .for_each(|d| text.push_str(&render(d, map, format)));
            text
        }
    };
    super::print(&text);
}
