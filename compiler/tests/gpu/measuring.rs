//! Benches on a GPU, as far as an emulated one can tell: that they run, and what they say they did.

use crate::emulator;
use std::time::Duration;
use tessera_compiler::diag::Sink;
use tessera_compiler::driver::{self, Options};
use tessera_compiler::sema::Program;
use tessera_compiler::source::SourceMap;
use tessera_compiler::testing::bench::{self, BenchOptions, Machine};

const TEXT: &str = "edition 2026;
module m;
kernel twice<N: int = 64>(x: in [M, N] f32, y: inout [M, N] f32)
dims   M in 0..=4096
launch grid(M)
{
    let i = block(0);
    map (j) in [N] { y[i, j] = x[i, j] + y[i, j]; }
}
bench \"two sizes\" for twice { with M = any(3, 1200); }
";

#[test]
fn a_bench_runs_on_a_gpu() {
    let mut map = SourceMap::default();
    map.add("twice.tl".to_owned(), TEXT.to_owned());
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let program = Program::collect(&files, &mut sink);
    let how = BenchOptions {
        time: Duration::from_millis(20),
        gpu: Some(emulator::device()),
        ..BenchOptions::default()
    };
    let item = program.kernels[0].benches[0];
    let measured = bench::run(&program, 0, item, &Options::default(), &how, &mut sink);
    assert!(!sink.has_errors(), "{:#?}", sink.finish());
    assert_eq!(measured.len(), 2);
    for (one, rows) in measured.iter().zip([3, 1200]) {
        assert_eq!(one.bytes, 3 * 4 * rows * 64);
        assert!(one.launches >= 3 && one.low <= one.median && one.median <= one.high);
        assert!(one.empty > 0.0 && one.copy_rate > 0.0);
        let name = "emulated H100".to_owned();
        assert_eq!(one.machine, Machine::Gpu { name });
        assert!(one.case.contains(&format!("M = {rows}")), "{}", one.case);
    }
}
