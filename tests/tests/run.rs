//! Runs every test item of `tests/run/*.tl`, of the kernel library and of the examples in `docs`: interpreter, compiled code of every
//! variant this machine has, references. One test per item; what it needs of the compiler is what `tlc test` needs.
//! An example without a test must at least check.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::diag::{Diagnostic, Sink};
use tessera_compiler::driver::{self, Options};
use tessera_compiler::source::{FileId, SourceMap};
use tessera_compiler::testing::run;

fn main() {
    let arguments = Arguments::from_args();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // A file of `run/` is a program of its own; the library's modules use each other.
    let mut sets: Vec<SourceMap> = tl_files(&root.join("run"))
        .into_iter()
        .map(|f| load(&[f]))
        .collect();
    sets.push(load(&tl_files(&root.join("../kernels-src"))));
    for page in ["language.md", "tutorial.md"] {
        sets.extend(examples(&root.join("../docs").join(page)));
    }

    let mut trials = vec![];
    for map in sets {
        let map = Arc::new(map);
        let name = map.file(FileId(0)).name.clone();
        let mut sink = Sink::default();
        let trees = driver::parse(&map, &mut sink);
        driver::front(&trees, &mut sink);
        let problems = sink.finish();
        {
            let map = Arc::clone(&map);
            trials.push(Trial::test(
                format!("{name}: nothing to report"),
                move || {
                    if problems.is_empty() {
                        Ok(())
                    } else {
                        Err(failed(&problems, &map))
                    }
                },
            ));
        }
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
                trials.push(Trial::test(name, move || Err(failed(&problems, &map))));
            }
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// The `tl` blocks of a page, each a program of its own.
fn examples(page: &Path) -> Vec<SourceMap> {
    let text = std::fs::read_to_string(page).unwrap_or_else(|e| panic!("{}: {e}", page.display()));
    let name = page
        .file_name()
        .expect("a page has a name")
        .to_string_lossy()
        .into_owned();
    let mut found = vec![];
    for (at, _) in text.match_indices("```tl\n") {
        let block = &text[at + 6..];
        let end = block
            .find("```")
            .unwrap_or_else(|| panic!("{name}: a block does not end"));
        let mut map = SourceMap::default();
        map.add(
            format!("{name}:{}", text[..at].lines().count() + 1),
            &block[..end],
        );
        found.push(map);
    }
    assert!(!found.is_empty(), "{name} holds no example");
    found
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
