//! The tests of every `.tl` file on an emulated GPU: the PTX must give the interpreter's bits, with no race in shared memory and no
//! access outside its memory.

use crate::emulator;
use crate::kernels::sources;
use tessera_compiler::diag::Sink;
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::driver::{self, Options};
use tessera_compiler::sema::Program;
use tessera_compiler::testing::run::run_on;

#[test]
fn every_kernel_test_gives_the_interpreters_bits() {
    let gpu = emulator::device();
    let map = sources();
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let program = Program::collect(&files, &mut sink);
    assert!(!sink.has_errors());
    let options = Options {
        cpu: vec![],
        ..Options::default()
    };
    let only = std::env::var("ONLY").unwrap_or_default();
    let (mut run, mut failed) = (0, vec![]);
    for (id, kernel) in program.kernels.iter().enumerate() {
        for test in &kernel.tests {
            let name = format!("{}: {}", kernel.name, test.title);
            if !name.contains(&only) {
                continue;
            }
            let report = run_on(&program, id, test, &options, Some(&gpu));
            run += 1;
            println!("{name}: {:.1?}", report.time);
            if !report.passed() {
                let problems: Vec<_> = (report.problems.iter())
                    .map(|d| render(d, &map, Format::Human { colour: false }))
                    .collect();
                failed.push(format!("{name}\n{}", problems.join("\n")));
            }
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {run} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
    assert!(run >= 40 || !only.is_empty(), "{run} tests");
}
