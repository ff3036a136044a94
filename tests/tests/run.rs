//! Runs every test item of `tests/run/*.tl` and `tests/peers/*.tl`, of the kernel library and of the examples in `docs`: interpreter, compiled code of every
//! variant this machine has, references. One test per item; what it needs of the compiler is what `tlc test` needs.
//! An example without a test must at least check.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use tessera_artifact::{Archive, CpuVariant};
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::diag::{Diagnostic, Sink};
use tessera_compiler::driver::{self, Options};
use tessera_compiler::embed;
use tessera_compiler::source::{FileId, SourceMap};
use tessera_compiler::testing::run;
use tessera_device::cpu::features;

fn main() {
    let arguments = Arguments::from_args();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // A file of `run/` or `peers/` is a program of its own; the library's modules use each other.
    let mut sets: Vec<SourceMap> = ["run", "peers"]
        .iter()
        .flat_map(|folder| tl_files(&root.join(folder)))
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
    trials.push(Trial::test(
        "a C program launches through the header",
        c_program,
    ));
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

/// Adds two vectors in C and provokes a refusal; needs the C compiler that Rust links with.
const C_PROGRAM: &str = r#"
#include <stdio.h>
#include "kernels.h"
int main(void) {
    float x[300], y[300], z[300];
    for (int i = 0; i < 300; i++) { x[i] = (float)i; y[i] = 0.5f; z[i] = -1.0f; }
    tessera_tensor tx = {x, {300}, {1}}, ty = {y, {300}, {1}}, tz = {z, {300}, {1}}, small = {z, {299}, {1}};
    static _Alignas(64) unsigned char scratch[RUN_VECTOR_ADD_VECTOR_ADD_T_F32_B_256_SCRATCH_BYTES + 64];
    const char *error = run_vector_add_vector_add_T_f32_B_256(&tx, &ty, &tz, scratch);
    if (error) { puts(error); return 1; }
    for (int i = 0; i < 300; i++) if (z[i] != (float)i + 0.5f) { printf("z[%d] = %f\n", i, z[i]); return 1; }
    error = run_vector_add_vector_add_T_f32_B_256(&tx, &ty, &small, scratch);
    puts(error ? error : "not refused");
    return 0;
}
"#;

fn c_program() -> Result<(), Failed> {
    let variant = CpuVariant::Avx2;
    if !features::is_supported(variant) {
        return Ok(());
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = load(&[root.join("run/vector_add.tl")]);
    let options = Options {
        cpu: vec![variant],
        ..Options::default()
    };
    let mut sink = Sink::default();
    let bytes =
        driver::build(&map, &options, &mut sink).ok_or_else(|| failed(&sink.finish(), &map))?;
    let archive = Archive::read(&bytes)?;

    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-program");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(
        directory.join("kernels.h"),
        embed::c_header(archive.manifest(), variant),
    )?;
    std::fs::write(
        directory.join("libkernels.a"),
        embed::static_library(&archive, variant),
    )?;
    std::fs::write(directory.join("main.c"), C_PROGRAM)?;
    let compiled = Command::new("cc")
        .args([
            "-std=c11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "main.c",
            "-L.",
            "-lkernels",
            "-o",
            "main",
        ])
        .current_dir(&directory)
        .output()?;
    if !compiled.status.success() {
        return Err(String::from_utf8_lossy(&compiled.stderr)
            .into_owned()
            .into());
    }
    let ran = Command::new(directory.join("main")).output()?;
    let said = String::from_utf8_lossy(&ran.stdout);
    match (ran.status.success(), &*said) {
        (true, "axis 0 of z is not N\n") => Ok(()),
        _ => Err(format!("{}: {said}", ran.status).into()),
    }
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
