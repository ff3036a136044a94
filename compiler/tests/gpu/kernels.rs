//! Every kernel of the library and of `tests/run` lowers, and assembles without spills or local memory (but for what is pinned).

use crate::harness::compile;
use std::collections::BTreeMap;
use std::path::Path;
use tessera_compiler::diag::Sink;
use tessera_compiler::driver;
use tessera_compiler::schedule;
use tessera_compiler::source::SourceMap;
use tessera_compiler::target::nvptx::SM_90A;
use tessera_compiler::target::ptxas::Ptxas;

/// Every `.tl` file.
pub fn sources() -> SourceMap {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut map = SourceMap::default();
    for folder in ["kernels-src", "tests/run"] {
        let mut files: Vec<_> = std::fs::read_dir(root.join(folder))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "tl"))
            .collect();
        files.sort();
        for path in files {
            let text = std::fs::read_to_string(&path).unwrap();
            map.add(path.display().to_string(), text);
        }
    }
    map
}

/// Bytes of stack and spills that ptxas makes: around its own subroutines for division, in the plain code of `expert_up`,
/// `expert_up_fp4` and the selections, whose tiles or ranks nearly fill a thread's registers, and in that of `attention`, `gemm_fp8_few`
/// and `gemm_fp4_few`, where ptxas keeps to a number of registers of its own choice. Fewer is better: then pin fewer.
const SPILLS: [(&str, u32); 10] = [
    ("dsv4::attention::attention", 32),
    ("dsv4::experts::expert_up", 176),
    ("dsv4::experts_fp4::expert_up_fp4", 64),
    ("dsv4::gemm::gemm_fp8_few", 104),
    ("dsv4::gemm_fp4::gemm_fp4_few", 16),
    ("dsv4::hyper_connection::hc_head", 16),
    ("dsv4::hyper_connection::hc_pre", 112),
    ("dsv4::indexer::index_scores", 64),
    ("dsv4::indexer::index_topk", 1048),
    ("dsv4::indexer::index_topk_row", 40),
];

#[test]
fn every_kernel_assembles_without_spills() {
    let map = sources();
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let kernels = driver::front(&files, &mut sink);
    let Some(kernels) = kernels else {
        panic!("{:#?}", sink.finish());
    };
    assert!(kernels.len() > 40, "{} instances", kernels.len());
    let mut spills = BTreeMap::new();
    for kernel in &kernels {
        let network = schedule::network(kernel, &SM_90A).unwrap();
        if network.is_ok_and(|n| n.plan.takes_all(kernel)) {
            // There is no plain code of it.
            continue;
        }
        let kernel = driver::optimise_for_gpu(kernel).unwrap();
        let compiled = compile(&kernel)
            .unwrap_or_else(|d| panic!("{}: {}: {}", kernel.name, d.code, d.message));
        assert_eq!(compiled.count(".local"), 0, "{}", kernel.name);
        for approximate in [
            "ex2.approx",
            "lg2.approx",
            "sin.approx",
            "div.full",
            "div.approx",
            "sqrt.approx",
            ".ftz",
        ] {
            assert_eq!(
                compiled.count(approximate),
                0,
                "{}: {approximate}",
                kernel.name
            );
        }
        let bytes = compiled.assemble().map_or(0, |u| {
            u.spill_store_bytes + u.spill_load_bytes + u.stack_bytes
        });
        let most = spills.entry(kernel.name.clone()).or_insert(0);
        *most = bytes.max(*most);
    }
    if Ptxas::find(
        Path::new(env!("CARGO_MANIFEST_DIR")),
        std::env::var_os("PATH").as_deref(),
    )
    .is_some()
    {
        spills.retain(|_, bytes| *bytes > 0);
        let pinned = SPILLS.map(|(kernel, bytes)| (kernel.to_owned(), bytes));
        assert_eq!(spills, BTreeMap::from(pinned));
    }
}
