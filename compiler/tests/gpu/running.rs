//! The tests of every `.tl` file on an emulated GPU: the PTX must give the interpreter's bits, with no race in shared memory and no
//! access outside its memory. (The references judge the interpreter elsewhere: the tests of `tests/run` and `kernels-src` on CPUs.)

use crate::emulator;
use crate::kernels::sources;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tessera_compiler::diag::Sink;
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::driver::{self, Options};
use tessera_compiler::sema::Program;
use tessera_compiler::testing::run::{Ways, run_ways};

#[test]
fn every_kernel_test_gives_the_interpreters_bits() {
    let map = sources();
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let program = Program::collect(&files, &mut sink);
    assert!(!sink.has_errors());
    let options = Options {
        cpu: vec![],
        threads: 1,
        ..Options::default()
    };
    let only = std::env::var("ONLY").unwrap_or_default();
    let tests: Vec<_> = (program.kernels.iter().enumerate())
        .flat_map(|(id, kernel)| kernel.tests.iter().map(move |test| (id, *test)))
        .map(|(id, test)| {
            (
                format!("{}: {}", program.kernels[id].name, test.title),
                id,
                test,
            )
        })
        .filter(|(name, ..)| name.contains(&only))
        .collect();

    let next = AtomicUsize::new(0);
    let failed = Mutex::new(vec![]);
    let worker = || {
        let gpu = emulator::device();
        let ways = Ways {
            options: &options,
            gpu: Some(&gpu),
            references: false,
        };
        while let Some((name, id, test)) = tests.get(next.fetch_add(1, Ordering::Relaxed)) {
            let report = run_ways(&program, *id, test, &ways);
            println!("{name}: {:.1?}", report.time);
            if !report.passed() {
                let problems: Vec<_> = (report.problems.iter())
                    .map(|d| render(d, &map, Format::Human { colour: false }))
                    .collect();
                let mut failed = failed.lock().expect("no worker panics with it");
                failed.push(format!("{name}\n{}", problems.join("\n")));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    let failed = failed.into_inner().expect("no worker panics with it");
    assert!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        tests.len(),
        failed.join("\n")
    );
    assert!(
        tests.len() >= 40 || !only.is_empty(),
        "{} tests",
        tests.len()
    );
}
