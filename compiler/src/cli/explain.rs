//! `tlc explain`: what the compiler knows of each kernel and what it made of it: proofs, memory, code; or what an error code means.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tessera_artifact::CpuVariant;

use super::build::Compile;
use super::{MessageFormat, USAGE_OR_IO, files, ledger};
use crate::diag::Sink;
use crate::driver;
use crate::driver::manifest;
use crate::schedule::picture::Picture;
use crate::schedule::{self, Plain};
use crate::source::SourceMap;
use crate::target::nvptx::SM_90A;
use crate::tile::analysis::Ledger;
use crate::tile::ir::{Kernel, Space};

#[derive(Args)]
pub(super) struct Explain {
    #[command(flatten)]
    compile: Compile,
    /// Only kernels whose name holds this text
    #[arg(long, short)]
    kernel: Option<String>,
    /// Also draw every kernel that runs on tensor cores, roles and layouts, as an SVG file in this folder
    #[arg(long, value_name = "FOLDER")]
    svg: Option<PathBuf>,
    /// Files, or directories to search; or one error code, such as TL0301
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(super) fn run(arguments: &Explain, format: MessageFormat) -> ExitCode {
    if let [word] = &arguments.files[..]
        && let Some(code) = word.to_str().filter(|w| is_code(w))
    {
        return explain_code(code);
    }
    let (options, map) = match (
        arguments.compile.options(),
        files::load(&arguments.files, &arguments.compile.modules),
    ) {
        (Ok(options), Ok(map)) => (options, map),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let mut sink = Sink::default();
    let parsed = driver::parse(&map, &mut sink);
    let Some(kernels) = driver::front_with_ledgers(&parsed, &mut sink) else {
        return files::report(&sink.finish(), &map, format);
    };
    for (kernel, ledger) in &kernels {
        if arguments
            .kernel
            .as_ref()
            .is_none_or(|part| kernel.name.contains(part.as_str()))
        {
            super::print(&explain(kernel, ledger, &map));
            match picture(kernel, &mut sink) {
                Some(Ok(picture)) => {
                    super::print(&picture.to_string());
                    if let Some(folder) = &arguments.svg
                        && let Err(code) = draw(folder, &picture)
                    {
                        return code;
                    }
                }
                Some(Err(why)) => super::print(&format!("  no roles  {why}\n")),
                None => {}
            }
            let variants = options.cpu.iter().copied();
            super::print(&code(kernel, variants, &options, &mut sink));
        }
    }
    files::report(&sink.finish(), &map, format)
}

fn explain(kernel: &Kernel, ledger: &Ledger, map: &SourceMap) -> String {
    let entry = manifest::entry(kernel, "");
    let list = |items: Vec<String>| items.join(", ");
    let mut out = format!("kernel {}\n", entry.instance_name());
    out.push_str(&format!(
        "  grid      ({})\n",
        list(entry.grid.iter().map(ToString::to_string).collect())
    ));
    for dim in &entry.dims {
        let step = if dim.step == 1 {
            String::new()
        } else {
            format!(" step {}", dim.step)
        };
        out.push_str(&format!(
            "  dim       {} in {}..={}{step}\n",
            dim.name, dim.lo, dim.hi
        ));
    }
    for requirement in &entry.requires {
        out.push_str(&format!("  requires  {}\n", requirement.text));
    }
    for contract in &entry.contracts {
        out.push_str(&format!("  proved    {}\n", contract.text));
    }
    for (space, word) in [(Space::Shared, "shared"), (Space::Reg, "reg")] {
        let tiles = kernel
            .tiles
            .iter()
            .filter(|t| t.space == space && !t.name.starts_with('%'));
        let named: Vec<String> = tiles
            .map(|t| format!("{}: {:?} {}", t.name, t.shape, t.dtype))
            .collect();
        if !named.is_empty() {
            out.push_str(&format!("  {word:9} {}\n", list(named)));
        }
    }
    out.push_str(&ledger::accesses(ledger, map));
    out
}

/// Roles and layouts of a kernel that runs on tensor cores, or why it does not; `None`: reported.
fn picture(kernel: &Kernel, sink: &mut Sink) -> Option<Result<Picture, Plain>> {
    match schedule::network(kernel, &SM_90A) {
        Ok(Ok(network)) => {
            let title = manifest::entry(kernel, "").instance_name();
            Some(Ok(Picture::new(&title, &network)))
        }
        Ok(Err(why)) => Some(Err(why)),
        Err(error) => {
            sink.report(driver::internal(kernel, &error.to_string()));
            None
        }
    }
}

/// Writes a picture to `folder`, under the instance's name in letters and digits.
fn draw(folder: &Path, picture: &Picture) -> Result<(), ExitCode> {
    let words = (picture.title).split(|c: char| !c.is_ascii_alphanumeric());
    let name: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let path = folder.join(format!("{}.svg", name.join("_")));
    let written =
        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, picture.svg()));
    written.map_err(|error| {
        eprintln!("error: cannot write `{}`: {error}", path.display());
        ExitCode::from(USAGE_OR_IO)
    })
}

fn code(
    kernel: &Kernel,
    variants: impl Iterator<Item = CpuVariant>,
    options: &driver::Options,
    sink: &mut Sink,
) -> String {
    let mut out = String::new();
    for variant in variants {
        let options = driver::Options {
            cpu: vec![variant],
            ptx: false,
            ..options.clone()
        };
        let Some(archive) = driver::compile(std::slice::from_ref(kernel), &options, sink) else {
            return out;
        };
        let archive = tessera_artifact::Archive::read(&archive)
            .expect("the driver writes archives that can be read");
        for code in &archive.manifest().kernels[0].cpu {
            let bytes = archive.blob(code.blob).map_or(0, <[u8]>::len);
            out.push_str(&format!(
                "  {:9} {bytes} bytes of code, {} bytes of scratch memory a thread, {} checks while it runs\n",
                variant.name(),
                code.scratch_bytes,
                code.traps.len()
            ));
        }
    }
    out
}

/// The index is part of the program, so that its pages are those of this compiler.
const INDEX: &str = include_str!("../../../docs/errors.md");

fn is_code(word: &str) -> bool {
    (word.strip_prefix("TL")).is_some_and(|n| n.len() == 4 && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Prints the page of one error code.
fn explain_code(code: &str) -> ExitCode {
    let page = INDEX.split("\n## ").find(|page| {
        page.strip_prefix(code)
            .is_some_and(|rest| rest.starts_with(':'))
    });
    match page {
        Some(page) => {
            super::print(&format!("{}\n", page.trim_end()));
            ExitCode::SUCCESS
        }
        None => {
            eprintln!(
                "error: `{code}` is not an error code of this compiler: they are listed in docs/errors.md"
            );
            ExitCode::from(USAGE_OR_IO)
        }
    }
}
