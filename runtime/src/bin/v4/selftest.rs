//! `v4 selftest`: every kernel of the library that has code for the device, against the reference in its source, and how fast it is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use tessera::model::kernels::SOURCES;
use tessera_selftest::{Measurement, Results, Test, selftest};

use super::setup::{self, progress_bar};
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// Only kernels whose name holds this text.
    #[arg(long, short)]
    filter: Option<String>,
    /// Seconds to measure each case of a bench.
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
    /// Only the tests.
    #[arg(long)]
    no_benches: bool,
}

pub fn run(args: &Args, options: &setup::Options) -> CommandResult {
    let time = Duration::try_from_secs_f64(args.seconds)
        .map_err(|_| "`--seconds` must be a positive number")?;
    let kernels = options.kernels()?;
    let library = kernels.library();
    let how = tessera_selftest::Options {
        filter: args.filter.clone(),
        benches: (!args.no_benches).then_some(time),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let bar = progress_bar("tests and benches");
    let results = selftest(library, SOURCES, &how, &|| bar.inc(1));
    bar.finish_and_clear();
    let device = library.device().to_string();
    match options.json {
        true => print_json(&device, &results),
        false => print_table(&device, &results),
    }
    Ok(match results.failed() {
        0 => Outcome::Fine,
        _ => Outcome::Failed,
    })
}

/// The tests of one kernel together.
#[derive(Default)]
struct Verdict {
    passed: usize,
    all: usize,
    /// Of what is allowed, the greatest error's share.
    error: Option<f64>,
}

fn verdicts(tests: &[Test]) -> BTreeMap<&str, Verdict> {
    let mut verdicts: BTreeMap<&str, Verdict> = BTreeMap::new();
    for test in tests.iter().filter(|test| test.cases > 0) {
        let verdict = verdicts.entry(&test.kernel).or_default();
        verdict.passed += usize::from(test.passed);
        verdict.all += 1;
        if let Some(error) = test.error {
            verdict.error = Some(verdict.error.map_or(error, |worst| worst.max(error)));
        }
    }
    verdicts
}

fn print_table(device: &str, results: &Results) {
    let columns = format!(
        "{:>10} {:>8} {:>9} {:>7}",
        "µs", "GB/s", "TFLOP/s", "of copy"
    );
    println!(
        "{:<52} {:>7} {:>6} {columns}",
        "kernel: shape", "tests", "error"
    );
    for (kernel, verdict) in verdicts(&results.tests) {
        let short = kernel.rsplit("::").next().unwrap_or(kernel);
        let error = verdict.error.map(|share| format!("{share:.2}"));
        let tests = format!("{}/{}", verdict.passed, verdict.all);
        println!("{short:<52} {tests:>7} {:>6}", error.unwrap_or_default());
        for one in results.benches.iter().filter(|one| one.kernel == kernel) {
            print_measurement(one);
        }
    }
    println!(
        "error: the greatest, as a share of what the test allows; of copy: bytes per second over those of a copy"
    );
    let all = results.tests.iter().flat_map(|test| &test.problems);
    all.chain(&results.problems)
        .for_each(|text| print!("{text}"));
    let sum = |of: fn(&Test) -> usize| results.tests.iter().map(of).sum::<usize>();
    println!(
        "{device}: {} tests in {} cases, {} failed; {} cases left out, whose instances the library does not have",
        sum(|test| usize::from(test.cases > 0)),
        sum(|test| test.cases),
        results.failed(),
        sum(|test| test.left_out),
    );
}

fn print_measurement(one: &Measurement) {
    let shape: String = format!("  {} {}", one.title, one.case)
        .chars()
        .take(52)
        .collect();
    let flops = one
        .flops_per_second()
        .map(|rate| format!("{:.2}", rate / 1e12));
    println!(
        "{shape:<52} {:>14} {:>10.2} {:>8.1} {:>9} {:>6.0}%",
        "",
        one.median * 1e6,
        one.bytes_per_second() / 1e9,
        flops.unwrap_or_default(),
        100.0 * one.bytes_per_second() / one.copy_rate
    );
}

fn print_json(device: &str, results: &Results) {
    let tests: Vec<_> = (results.tests.iter())
        .map(|test| {
            json!({
                "kernel": test.kernel, "test": test.title, "cases": test.cases, "left_out": test.left_out, "passed": test.passed,
                "share_of_tolerance": test.error, "problems": test.problems,
            })
        })
        .collect();
    let benches: Vec<_> = (results.benches.iter())
        .map(|one| {
            json!({
                "kernel": one.kernel, "bench": one.title, "case": one.case, "median_s": one.median, "low_s": one.low,
                "high_s": one.high, "empty_s": one.empty, "launches": one.launches, "bytes": one.bytes, "flops": one.flops,
                "copy_bytes_per_s": one.copy_rate,
            })
        })
        .collect();
    println!(
        "{}",
        json!({ "device": device, "tests": tests, "benches": benches, "problems": results.problems })
    );
}
