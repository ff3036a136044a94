//! The tests of a library's sources with its compiled kernels: what `v4 selftest` runs, here on the emulated H100 and on the CPU.

use tessera_artifact::CpuVariant;
use tessera_compiler::diag::Sink;
use tessera_compiler::driver::{self, Options};
use tessera_compiler::sema::Program;
use tessera_compiler::source::SourceMap;
use tessera_compiler::testing::library;
use tessera_compiler::testing::run::Report;
use tessera_device::{Device, Library};

use crate::emulator;

const TEXT: &str = "
edition 2026;
module m;
kernel add<C: int = 1>(x: in [M, 64] f32, y: out [M, 64] f32)
dims M in 0..=4096
launch grid(M)
{
    let i = block(0);
    map j in [64] { y[i, j] = x[i, j] + f32(C); }
}
instances add { (C = 1), (C = 2) }
reference add_ref for add { map (i, j) in [M, 64] { y[i, j] = x[i, j] + f64(C); } }
reference other_ref for add { map (i, j) in [M, 64] { y[i, j] = x[i, j]; } }
test \"right\" for add { with M = any(0, 3), C = any(1, 2); expect y against add_ref @abs(1e-5); }
test \"wrong\" for add { with M = 3, C = 1; expect y against other_ref @abs(1e-5); }
test \"partly there\" for add { with M = 3, C = any(2, 3); expect y against add_ref @abs(1e-5); }
";

fn reports(device: &Device, options: &Options) -> Vec<Report> {
    let mut map = SourceMap::default();
    map.add("add.tl".to_owned(), TEXT.to_owned());
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let archive = driver::build(&map, options, &mut sink);
    let program = Program::collect(&files, &mut sink);
    assert!(!sink.has_errors(), "{:#?}", sink.finish());
    let library = Library::load(&archive.unwrap(), device).unwrap();
    library::tests(&program, &library, 2, &|_| {})
}

#[test]
fn a_library_runs_its_own_tests() {
    let gpu = Options {
        cpu: vec![],
        ptx: true,
        ..Options::default()
    };
    let cpu = Options {
        cpu: vec![CpuVariant::Avx2],
        ..Options::default()
    };
    for (device, options) in [(emulator::device(), gpu), (Device::cpu().unwrap(), cpu)] {
        let reports = reports(&device, &options);
        let found: Vec<_> = (reports.iter())
            .map(|r| (&r.title[..], r.passed(), r.cases, r.skipped.len()))
            .collect();
        assert_eq!(
            found,
            [
                ("right", true, 4, 0),
                ("wrong", false, 1, 0),
                ("partly there", true, 1, 1)
            ],
            "{:#?}",
            reports[0].problems
        );
    }
}
