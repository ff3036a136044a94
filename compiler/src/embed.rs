//! Compiled kernels inside a Rust program: what a `build.rs` calls.
//!
//! ```no_run
//! // in build.rs
//! tessera_compiler::embed::Build::new().dir("kernels").out("library").compile().unwrap_or_else(|e| panic!("{e}"));
//! ```
//! writes `library.tlk` and `library.rs` to `OUT_DIR`; `include!(concat!(env!("OUT_DIR"), "/library.rs"));` in a module of the program
//! then has `Kernels` with one launch function per kernel. The finished program holds no compiler.
//!
//! With `TESSERA_ARCHIVE` set to a ready archive that is embedded instead, so that a program also builds where LLVM isn't installed.

mod header;
mod rust;

pub use header::{c_header, static_library};
pub use rust::rust_module;

use std::fmt;
use std::path::{Path, PathBuf};

use tessera_artifact::{Archive, ArchiveError, CpuVariant};

use crate::diag::Sink;
use crate::diag::render::{Format, render};
use crate::driver::Options;
use crate::source::{SourceMap, with_choices};

/// Names a ready archive to embed instead of compiling.
pub const ARCHIVE_VARIABLE: &str = "TESSERA_ARCHIVE";

/// What to compile, from a build script. Each method returns the changed value.
#[derive(Clone, Debug)]
pub struct Build {
    paths: Vec<PathBuf>,
    out: String,
    options: Options,
    runtime: String,
}

/// Why there is no library; its text is meant for the output of a build script.
#[derive(Debug)]
pub enum EmbedError {
    /// Not called from a build script.
    NoOutDir,
    File {
        path: PathBuf,
        why: std::io::Error,
    },
    NoSources,
    /// The kernels are wrong; the text is what `tlc` would print.
    Compile(String),
    Archive {
        path: PathBuf,
        why: ArchiveError,
    },
    /// This build of the compiler makes no code.
    NoCodegen,
}

impl fmt::Display for EmbedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOutDir => write!(f, "`OUT_DIR` is not set: call this from a build script"),
            Self::File { path, why } => write!(f, "{}: {why}", path.display()),
            Self::NoSources => write!(
                f,
                "no `.tl` file to compile: name some with `.file(..)` or `.dir(..)`"
            ),
            Self::Compile(text) => write!(f, "the kernels do not compile:\n{text}"),
            Self::Archive { path, why } => write!(f, "{}: {why}", path.display()),
            Self::NoCodegen => write!(
                f,
                "this build of the compiler makes no code: build with the feature `llvm`, or set {ARCHIVE_VARIABLE} to an archive that `tlc build` wrote"
            ),
        }
    }
}

impl std::error::Error for EmbedError {}

impl Default for Build {
    fn default() -> Self {
        Self::new()
    }
}

impl Build {
    /// Nothing to compile yet; code for every CPU variant, compiled kernels kept beside the build's other outputs.
    pub fn new() -> Self {
        Build {
            paths: vec![],
            out: "library".to_owned(),
            options: Options::default(),
            runtime: "::tessera_device".to_owned(),
        }
    }

    /// Every `.tl` file under a directory.
    pub fn dir(self, path: impl AsRef<Path>) -> Self {
        self.file(path)
    }

    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.paths.push(path.as_ref().to_owned());
        self
    }

    /// The name of the two files, without extension; `library` if not called.
    pub fn out(mut self, name: &str) -> Self {
        self.out = name.to_owned();
        self
    }

    /// The CPU variants to make code for, all if not called.
    pub fn cpu(mut self, variants: &[CpuVariant]) -> Self {
        self.options.cpu = variants.to_vec();
        self
    }

    /// PTX for sm_90a besides.
    pub fn ptx(mut self) -> Self {
        self.options.ptx = true;
        self
    }

    /// The path under which the program knows `tessera-device`; `::tessera_device` if not called.
    pub fn runtime(mut self, path: &str) -> Self {
        self.runtime = path.to_owned();
        self
    }

    /// Compiles, and writes both files to `OUT_DIR`.
    ///
    /// # Errors
    /// [`EmbedError`]; warnings about the kernels become warnings of the build.
    pub fn compile(mut self) -> Result<(), EmbedError> {
        println!("cargo:rerun-if-env-changed={ARCHIVE_VARIABLE}");
        let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or(EmbedError::NoOutDir)?);
        if self.options.cache.is_none() {
            self.options.cache = Some(shared_cache(&out_dir));
        }
        let archive = match std::env::var_os(ARCHIVE_VARIABLE) {
            Some(path) if !path.is_empty() => self.ready(Path::new(&path))?,
            _ => self.archive()?,
        };
        let read = Archive::read(&archive).map_err(|why| EmbedError::Archive {
            path: out_dir.clone(),
            why,
        })?;
        let mut module = rust_module(read.manifest(), &format!("{}.tlk", self.out), &self.runtime);
        module.push_str(&self.sources()?);
        for (extension, bytes) in [("tlk", &archive[..]), ("rs", module.as_bytes())] {
            let path = out_dir.join(format!("{}.{extension}", self.out));
            std::fs::write(&path, bytes).map_err(|why| EmbedError::File { path, why })?;
        }
        Ok(())
    }

    /// The sources, for programs that run their tests.
    fn sources(&self) -> Result<String, EmbedError> {
        let mut text = "\n/// The sources: each file's path and text.\n#[allow(dead_code)]\npub static SOURCES: &[(&str, &str)] = &[\n".to_owned();
        for file in self.files()? {
            let whole = file.canonicalize().map_err(|why| EmbedError::File {
                path: file.clone(),
                why,
            })?;
            let name = file.display().to_string();
            text.push_str(&format!("    ({name:?}, include_str!({whole:?})),\n"));
        }
        text.push_str("];\n");
        Ok(text)
    }

    fn ready(&self, path: &Path) -> Result<Vec<u8>, EmbedError> {
        println!("cargo:rerun-if-changed={}", path.display());
        let bytes = std::fs::read(path).map_err(|why| EmbedError::File {
            path: path.to_owned(),
            why,
        })?;
        Archive::read(&bytes).map_err(|why| EmbedError::Archive {
            path: path.to_owned(),
            why,
        })?;
        Ok(bytes)
    }

    /// All source files, with the choices beside them.
    fn files(&self) -> Result<Vec<PathBuf>, EmbedError> {
        let mut all = vec![];
        for path in &self.paths {
            all.extend(sources(path)?);
        }
        Ok(with_choices(all))
    }

    fn archive(&self) -> Result<Vec<u8>, EmbedError> {
        let mut map = SourceMap::default();
        for path in &self.paths {
            println!("cargo:rerun-if-changed={}", path.display());
        }
        for file in self.files()? {
            println!("cargo:rerun-if-changed={}", file.display());
            let text = std::fs::read_to_string(&file).map_err(|why| EmbedError::File {
                path: file.clone(),
                why,
            })?;
            map.add(file.display().to_string(), text);
        }
        if map.files().next().is_none() {
            return Err(EmbedError::NoSources);
        }
        let mut sink = Sink::default();
        let archive = build(&map, &self.options, &mut sink)?;
        let diagnostics = sink.finish();
        match archive {
            Some(archive) => {
                for warning in &diagnostics {
                    println!(
                        "cargo:warning={}",
                        render(warning, &map, Format::Short).trim_end()
                    );
                }
                Ok(archive)
            }
            None => {
                let text: Vec<String> = diagnostics
                    .iter()
                    .map(|d| render(d, &map, Format::Human { colour: false }))
                    .collect();
                Err(EmbedError::Compile(text.join("\n")))
            }
        }
    }
}

#[cfg(feature = "llvm")]
fn build(
    map: &SourceMap,
    options: &Options,
    sink: &mut Sink,
) -> Result<Option<Vec<u8>>, EmbedError> {
    Ok(crate::driver::build(map, options, sink))
}

#[cfg(not(feature = "llvm"))]
fn build(_: &SourceMap, _: &Options, _: &mut Sink) -> Result<Option<Vec<u8>>, EmbedError> {
    Err(EmbedError::NoCodegen)
}

/// A file itself, or all `.tl` files under a directory in the order of their names.
fn sources(path: &Path) -> Result<Vec<PathBuf>, EmbedError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |why| EmbedError::File { path, why }
    };
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
        .map_err(fail(path))?;
    entries.sort();
    let mut found = vec![];
    for entry in entries {
        if entry.is_dir() && !entry.is_symlink() {
            found.extend(sources(&entry)?);
        } else if entry.extension().is_some_and(|e| e == "tl") {
            found.push(entry);
        }
    }
    Ok(found)
}

/// One cache for every crate of a target directory: `target/tessera-cache` beside `target/release/build/crate-hash/out`.
fn shared_cache(out_dir: &Path) -> PathBuf {
    match out_dir.ancestors().nth(4) {
        Some(target) if out_dir.ends_with("out") => target.join("tessera-cache"),
        _ => out_dir.join("tessera-cache"),
    }
}
