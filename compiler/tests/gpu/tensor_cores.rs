//! What ptxas makes of every kernel that runs on tensor cores: no spill in its loops, no warning (products that wait for each other are one), and
//! registers and shared memory as they are written down in `tensor_cores.snap`; they may only get fewer.

use std::fmt::Write;
use std::path::Path;

use tessera_compiler::diag::Sink;
use tessera_compiler::driver;
use tessera_compiler::schedule;
use tessera_compiler::target::nvptx::SM_90A;

use crate::harness::compile_network;
use crate::kernels::sources;

/// Bytes of stack and spills, nearly all of them outside the loops over k, once for each item of the grid; of other kernels none. Fewer is better:
/// then pin fewer.
const SPILLS: [(&str, u32); 5] = [
    ("dsv4::attention_records::attention_records", 704),
    ("dsv4::attention_wide::attention_wide", 208),
    ("dsv4::experts_fp4::expert_up_fp4", 120),
    ("dsv4::experts_wide::expert_down_wide", 272),
    ("dsv4::experts_wide::expert_up_wide", 252),
];

#[test]
fn kernels_on_tensor_cores_assemble_as_written_down() {
    let map = sources();
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let kernels = driver::front(&files, &mut sink);
    let Some(kernels) = kernels else {
        panic!("{:#?}", sink.finish());
    };
    let mut table = String::new();
    let mut assembled = true;
    for kernel in &kernels {
        let network =
            schedule::network(kernel, &SM_90A).unwrap_or_else(|e| panic!("{}: {e}", kernel.name));
        let Ok(network) = network else { continue };
        let compiled = compile_network(&network)
            .unwrap_or_else(|d| panic!("{}: {}: {}", kernel.name, d.code, d.message));
        let Some(usage) = compiled.assemble() else {
            assembled = false;
            continue;
        };
        let spills = usage.spill_store_bytes + usage.spill_load_bytes + usage.stack_bytes;
        let pinned = SPILLS.iter().find(|(name, _)| *name == kernel.name);
        let most = pinned.map_or(0, |(_, bytes)| *bytes);
        assert!(spills <= most, "{}: {usage:?}", kernel.name);
        assert!(compiled.count("wgmma.mma_async") > 0, "{}", kernel.name);
        let generics: Vec<_> = (kernel.generics.iter())
            .map(|(name, value)| format!("{name} = {}", driver::manifest::generic(value)))
            .collect();
        writeln!(
            table,
            "{} ({}): {} threads, {} registers, {} bytes of shared memory",
            kernel.name,
            generics.join(", "),
            compiled.threads,
            usage.registers,
            compiled.shared_bytes,
        )
        .expect("a String takes all");
    }
    if assembled {
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu"));
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!("tensor_cores", table));
    }
}
