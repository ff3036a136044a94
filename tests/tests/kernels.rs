//! What every kernel of the library comes with: a reference, tests of all that it writes against it, and a bench.

use std::collections::BTreeSet;

use tessera_compiler::diag::Sink;
use tessera_compiler::source::SourceMap;
use tessera_compiler::syntax::ast::{Mode, TestLine};
use tessera_compiler::{driver, sema::Program};
use tessera_tests::program::all_programs;

#[test]
fn every_kernel_of_the_library_has_a_reference_tests_and_a_bench() {
    let mut map = SourceMap::default();
    for (path, text) in all_programs() {
        if path
            .components()
            .any(|part| part.as_os_str() == "kernels-src")
        {
            let name = path.file_name().expect("a file");
            map.add(name.to_string_lossy(), text);
        }
    }
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let program = Program::collect(&files, &mut sink);
    assert!(!sink.has_errors());
    assert!(program.kernels.len() >= 30, "{}", program.kernels.len());

    // A kernel may be held to another one's reference.
    let references: BTreeSet<_> = (program.kernels.iter())
        .flat_map(|kernel| &kernel.references)
        .map(|reference| reference.name.name.clone())
        .collect();
    let mut missing = vec![];
    for kernel in &program.kernels {
        if kernel.benches.is_empty() {
            missing.push(format!("{}: a bench", kernel.name));
        }
        for param in &kernel.ast.params {
            if !matches!(param.mode, Some(Mode::Out | Mode::InOut)) {
                continue;
            }
            let is_held = kernel
                .tests
                .iter()
                .flat_map(|test| &test.lines)
                .any(|line| {
                    matches!(line, TestLine::Expect { tensor, against, .. }
                    if tensor.name == param.name.name && references.contains(&against.name))
                });
            if !is_held {
                missing.push(format!(
                    "{}: a test of `{}` against a reference",
                    kernel.name, param.name.name
                ));
            }
        }
    }
    assert!(missing.is_empty(), "missing:\n{}", missing.join("\n"));
}
