//! A finished library's kernels against the references in their sources, and their speed: what `v4 selftest` shows.
//!
//! A crate of its own, so that the model's runtime does without the compiler.

use std::time::Duration;

use tessera_compiler::diag::Sink;
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::driver;
use tessera_compiler::sema::Program;
use tessera_compiler::source::SourceMap;
use tessera_compiler::testing::bench::{self, BenchOptions};
use tessera_compiler::testing::library;
use tessera_device::Library;

pub use tessera_compiler::testing::bench::Measurement;

/// What to run, and for how long.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only kernels whose name holds this text.
    pub filter: Option<String>,
    /// To measure each case of a bench; `None`: only the tests.
    pub benches: Option<Duration>,
    /// Tests at a time.
    pub threads: usize,
}

/// One test.
#[derive(Clone, Debug)]
pub struct Test {
    pub kernel: String,
    pub title: String,
    /// That ran, and that the library has no instance for.
    pub cases: usize,
    pub left_out: usize,
    pub passed: bool,
    /// Of what is allowed, the greatest error's share.
    pub error: Option<f64>,
    /// What is wrong, as `tlc test` says it.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Results {
    pub tests: Vec<Test>,
    pub benches: Vec<Measurement>,
    /// Of the sources or the benches.
    pub problems: Vec<String>,
}

impl Results {
    pub fn failed(&self) -> usize {
        self.tests.iter().filter(|test| !test.passed).count() + self.problems.len()
    }
}

/// Runs the tests and benches in `sources` (path and text of each file) with the kernels of `library`; `progress` is told of each.
pub fn selftest(
    library: &Library,
    sources: &[(&str, &str)],
    options: &Options,
    progress: &(dyn Fn() + Sync),
) -> Results {
    let mut map = SourceMap::default();
    for (path, text) in sources {
        map.add((*path).to_owned(), (*text).to_owned());
    }
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let mut program = Program::collect(&files, &mut sink);
    let filter = options.filter.as_deref().unwrap_or_default();
    for kernel in &mut program.kernels {
        if !kernel.name.contains(filter) {
            kernel.tests.clear();
            kernel.benches.clear();
        }
    }
    let reports = library::tests(&program, library, options.threads, &|_| progress());
    let words = |d: &_| render(d, &map, Format::Human { colour: false });
    let tests = (reports.iter())
        .map(|report| Test {
            kernel: report.kernel.clone(),
            title: report.title.clone(),
            cases: report.cases,
            left_out: report.skipped.len(),
            passed: report.passed(),
            error: report.closest.as_ref().map(|(_, share)| *share),
            problems: report.problems.iter().map(words).collect(),
        })
        .collect();

    let mut benches = Vec::new();
    if let Some(time) = options.benches {
        let how = BenchOptions {
            time,
            library: Some(library.clone()),
            ..BenchOptions::default()
        };
        // Of which CPU code is made; of none, since all is there.
        let nothing = driver::Options::default();
        for (id, kernel) in program.kernels.iter().enumerate() {
            for item in &kernel.benches {
                benches.extend(bench::run(&program, id, item, &nothing, &how, &mut sink));
                progress();
            }
        }
    }
    let problems = sink.finish().iter().map(words).collect();
    Results {
        tests,
        benches,
        problems,
    }
}
