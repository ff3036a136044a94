//! Runs every test item of `tests/run/*.tl` and of the kernel library: interpreter, compiled code of every variant this machine has,
//! references. One test per item; what it needs of the compiler is what `tlc test` needs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tessera_compiler::diag::Diagnostic;
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::driver::Options;
use tessera_compiler::source::SourceMap;
use tessera_compiler::testing::run;

fn main() {
    let arguments = Arguments::from_args();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // A file of `run/` is a program of its own; the library's modules use each other.
    let mut sets: Vec<Vec<PathBuf>> = tl_files(&root.join("run"))
        .into_iter()
        .map(|f| vec![f])
        .collect();
    sets.push(tl_files(&root.join("../kernels-src")));

    let mut trials = vec![];
    for files in sets {
        let map = Arc::new(load(&files));
        match run::list_sources(&map) {
            Ok(ids) => trials.extend(ids.into_iter().map(|id| {
                let map = Arc::clone(&map);
                Trial::test(id.to_string(), move || {
                    let options = Options {
                        cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("tessera-cache")),
                        // The harness runs tests on threads already.
                        threads: 1,
                        ..Options::default()
                    };
                    let report =
                        run::run_one(&map, &id, &options).map_err(|all| failed(&all, &map))?;
                    if report.passed() {
                        Ok(())
                    } else {
                        Err(failed(&report.problems, &map))
                    }
                })
            })),
            Err(problems) => {
                let name = files[0].display().to_string();
                trials.push(Trial::test(name, move || Err(failed(&problems, &map))));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn tl_files(directory: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|e| e.expect("a directory can be read to its end").path())
        .collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "tl"));
    files.sort();
    assert!(
        !files.is_empty(),
        "{} holds no .tl file",
        directory.display()
    );
    files
}

fn load(files: &[PathBuf]) -> SourceMap {
    let mut map = SourceMap::default();
    for file in files {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        map.add(file.display().to_string(), text);
    }
    map
}

fn failed(problems: &[Diagnostic], map: &SourceMap) -> Failed {
    let text: Vec<String> = problems
        .iter()
        .map(|d| render(d, map, Format::Human { colour: false }))
        .collect();
    format!("\n{}", text.join("\n")).into()
}
