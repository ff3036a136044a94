//! `tlc build`: `.tl` files to an archive, or the text of a stage.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use tessera_artifact::CpuVariant;

use super::{MessageFormat, facts, files};
use crate::diag::Sink;
use crate::driver::{self, Dump, Options};
use crate::embed;
use crate::target::ptxas::Ptxas;
use crate::tile::analysis::Ledger;
use crate::tile::ir::Kernel;

/// Options of every command that compiles.
#[derive(Args)]
pub(super) struct Compile {
    /// What to make code for: avx2, avx512, avx512bf16, cpu (all three), sm_90a
    #[arg(long, value_delimiter = ',', default_value = "cpu")]
    target: Vec<String>,
    /// Compile so many kernels at a time (default: one per core)
    #[arg(long)]
    jobs: Option<usize>,
    /// Where compiled kernels are kept (default: $XDG_CACHE_HOME/tessera)
    #[arg(long)]
    cache: Option<PathBuf>,
    /// Compile every kernel, whatever is kept
    #[arg(long)]
    no_cache: bool,
    #[command(flatten)]
    pub(super) modules: files::Modules,
}

impl Compile {
    pub(super) fn options(&self) -> Result<Options, ExitCode> {
        let mut options = Options {
            cpu: vec![],
            ptx: false,
            ..Options::default()
        };
        for target in &self.target {
            match (target.as_str(), CpuVariant::from_name(target)) {
                ("cpu", _) => options.cpu.extend(CpuVariant::ALL),
                ("sm_90a" | "ptx", _) => options.ptx = true,
                (_, Some(variant)) => options.cpu.push(variant),
                (other, None) => {
                    eprintln!(
                        "error: no target `{other}`; there are avx2, avx512, avx512bf16, cpu and sm_90a"
                    );
                    return Err(ExitCode::from(super::USAGE_OR_IO));
                }
            }
        }
        options.cpu.sort();
        options.cpu.dedup();
        options.threads = self.jobs.unwrap_or(options.threads).max(1);
        options.cache = if self.no_cache {
            None
        } else {
            self.cache.clone().or_else(default_cache)
        };
        Ok(options)
    }
}

/// `$XDG_CACHE_HOME/tessera`, or `~/.cache/tessera`.
fn default_cache() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute());
    base.or_else(home).map(|base| base.join("tessera"))
}

/// A stage to print instead of building.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Emit {
    /// The syntax tree
    Ast,
    /// The tile IR as elaborated
    Tile,
    /// The tile IR after every rewrite for CPUs
    TileOpt,
    /// The network of roles that runs on tensor cores, as tile IR
    Network,
    /// How it runs there: warps, rings, layouts, boxes; or why the kernel does not
    Plan,
    /// MLIR as emitted
    Mlir,
    /// MLIR in the `llvm` dialect
    Llvm,
    /// Assembly of the first CPU target
    Asm,
    /// PTX
    Ptx,
    /// The archive's manifest as JSON
    Manifest,
    /// A C header with a launch function for every instance (of one CPU target)
    Header,
    /// A static library with the code of one CPU target, for C
    Lib,
    /// The Rust module that `build.rs` scripts embed
    Rust,
}

#[derive(Args)]
pub(super) struct Build {
    #[command(flatten)]
    compile: Compile,
    /// The archive to write; `-`: standard output. For `--target sm_90a` alone, `-` and a file `.ptx` get the PTX
    #[arg(short, long, required_unless_present = "emit")]
    output: Option<PathBuf>,
    /// Print a stage instead, to the output or to standard output
    #[arg(long, value_enum)]
    emit: Option<Emit>,
    /// Only kernels whose name holds this text
    #[arg(long)]
    kernel: Option<String>,
    /// Say how long it took, and of code for GPUs what it takes: registers, spills, shared memory by tile, stages, roles, barriers, guards
    #[arg(short, long)]
    verbose: bool,
    /// Files, or directories to search
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

impl Build {
    /// The stage to print, which the output's name may say too.
    fn stage(&self, options: &Options) -> Option<Emit> {
        let is_text =
            |path: &Path| path == Path::new(STDOUT) || path.extension().is_some_and(|e| e == "ptx");
        let ptx = options.ptx && options.cpu.is_empty();
        let named = ptx && self.output.as_deref().is_some_and(is_text);
        self.emit.or(named.then_some(Emit::Ptx))
    }
}

pub(super) fn run(arguments: &Build, format: MessageFormat) -> ExitCode {
    let (options, map) = match (
        arguments.compile.options(),
        files::load(&arguments.files, &arguments.compile.modules),
    ) {
        (Ok(options), Ok(map)) => (options, map),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let emit = arguments.stage(&options);
    if matches!(emit, Some(Emit::Header | Emit::Lib)) && options.cpu.len() != 1 {
        eprintln!("error: C code is of one CPU target; name it: `--target avx2`");
        return ExitCode::from(super::USAGE_OR_IO);
    }
    let start = Instant::now();
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    if emit == Some(Emit::Ast) {
        let text = files
            .iter()
            .map(|f| format!("{f:#?}\n"))
            .collect::<String>();
        let written = write(arguments.output.as_deref(), text.as_bytes());
        return worst(files::report(&sink.finish(), &map, format), written);
    }
    let checked = driver::front_with_ledgers(&files, &mut sink).map(|all| {
        let wanted = |k: &Kernel| {
            (arguments.kernel.as_ref()).is_none_or(|part| k.name.contains(part.as_str()))
        };
        all.into_iter().filter(|(k, _)| wanted(k)).unzip()
    });
    let (kernels, ledgers): (Option<Vec<Kernel>>, Vec<Ledger>) = match checked {
        Some((kernels, ledgers)) => (Some(kernels), ledgers),
        None => (None, vec![]),
    };
    let front = start.elapsed();
    let mut bytes = None;
    if let Some(kernels) = &kernels {
        bytes = match emit {
            None | Some(Emit::Manifest | Emit::Header | Emit::Lib | Emit::Rust) => {
                driver::compile(kernels, &options, &mut sink)
            }
            Some(stage) => dump(kernels, stage, &options, &mut sink),
        };
    }
    let bytes = bytes.map(|bytes| describe(emit, bytes, &options));
    if arguments.verbose {
        let count = kernels.as_ref().map_or(0, Vec::len);
        eprintln!(
            "{count} instances: text to tile IR {front:.1?}, code {:.1?}",
            start.elapsed() - front
        );
    }
    if let (true, true, Some(kernels)) = (arguments.verbose, options.ptx, &kernels) {
        describe_codes(kernels, &ledgers, &options, &mut sink);
    }
    let code = files::report(&sink.finish(), &map, format);
    match bytes {
        Some(bytes) => worst(code, write(arguments.output.as_deref(), &bytes)),
        None => code,
    }
}

/// What the code for GPUs is like, on standard error, beside what is written.
fn describe_codes(kernels: &[Kernel], ledgers: &[Ledger], options: &Options, sink: &mut Sink) {
    let here = std::env::current_dir().unwrap_or_default();
    let ptxas = Ptxas::find(&here, std::env::var_os("PATH").as_deref());
    let all: Vec<&Kernel> = kernels.iter().collect();
    let codes = driver::facts(&all, ptxas.as_ref(), options.threads);
    for ((kernel, ledger), codes) in kernels.iter().zip(ledgers).zip(codes) {
        match codes {
            Ok(codes) => eprint!("{}", facts::facts(kernel, ledger, &codes)),
            Err(d) => sink.report(*d),
        }
    }
}

fn describe(emit: Option<Emit>, bytes: Vec<u8>, options: &Options) -> Vec<u8> {
    let from_archive = matches!(
        emit,
        Some(Emit::Manifest | Emit::Header | Emit::Lib | Emit::Rust)
    );
    if !from_archive {
        return bytes;
    }
    let archive = tessera_artifact::Archive::read(&bytes)
        .expect("the driver writes archives that can be read");
    let variant = options.cpu.first().copied().unwrap_or(CpuVariant::Avx2);
    match emit {
        Some(Emit::Header) => embed::c_header(archive.manifest(), variant).into_bytes(),
        Some(Emit::Lib) => embed::static_library(&archive, variant),
        Some(Emit::Rust) => {
            embed::rust_module(archive.manifest(), "library.tlk", "::tessera_device").into_bytes()
        }
        _ => {
            let mut json =
                serde_json::to_vec_pretty(archive.manifest()).expect("a manifest has a JSON form");
            json.push(b'\n');
            json
        }
    }
}

fn dump(kernels: &[Kernel], stage: Emit, options: &Options, sink: &mut Sink) -> Option<Vec<u8>> {
    let stage = match stage {
        Emit::Tile => Dump::Tile,
        Emit::TileOpt => Dump::TileOptimised,
        Emit::Network => Dump::Network,
        Emit::Plan => Dump::Plan,
        Emit::Mlir => Dump::Mlir,
        Emit::Llvm => Dump::Llvm,
        Emit::Ptx => Dump::Ptx,
        _ => Dump::Assembly,
    };
    let variant = options.cpu.first().copied().unwrap_or(CpuVariant::Avx2);
    let mut text = String::new();
    for kernel in kernels {
        match driver::dump(kernel, stage, variant) {
            Ok(one) => text.push_str(&one),
            Err(d) => sink.report(*d),
        }
        text.push('\n');
    }
    Some(text.into_bytes())
}

/// Standard output, as the name of a file.
const STDOUT: &str = "-";

/// To the file, or to standard output where there is none.
pub(super) fn write(output: Option<&Path>, bytes: &[u8]) -> ExitCode {
    match output.filter(|path| *path != Path::new(STDOUT)) {
        Some(path) => match std::fs::write(path, bytes) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => files::fault(path, &error.to_string()),
        },
        None => {
            super::print_bytes(bytes);
            ExitCode::SUCCESS
        }
    }
}

/// The failure of the two, if there is one.
pub(super) fn worst(a: ExitCode, b: ExitCode) -> ExitCode {
    if a == ExitCode::SUCCESS { b } else { a }
}
