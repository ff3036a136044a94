//! NVIDIA's assembler: finds it, runs it, reads what it reports.
//!
//! Needs: a ptxas that knows the architecture (`make setup` installs one). Used for checks and for cubins made ahead of time; PTX alone
//! needs none.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

/// A ptxas program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ptxas {
    program: PathBuf,
}

/// What came out of one run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assembled {
    pub cubin: Vec<u8>,
    pub report: Report,
}

/// What ptxas says of the code.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// By function name.
    pub functions: BTreeMap<String, Usage>,
    /// Warnings and losses of performance (`C7510`: wgmma serialised), as ptxas words them.
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub registers: u32,
    pub stack_bytes: u32,
    pub spill_store_bytes: u32,
    pub spill_load_bytes: u32,
    pub barriers: u32,
    /// Static; dynamic shared memory is the launch's.
    pub shared_bytes: u32,
}

#[derive(Debug)]
pub enum PtxasError {
    /// It could not be started, or a temporary file could not be written.
    Io {
        what: String,
        source: std::io::Error,
    },
    /// It refused the PTX; its own words.
    Refused(String),
}

impl fmt::Display for PtxasError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::Refused(words) => write!(f, "ptxas refused the code: {words}"),
        }
    }
}

impl std::error::Error for PtxasError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Refused(_) => None,
        }
    }
}

impl Ptxas {
    /// `.venv/bin/ptxas` in `start` or a folder above it, where `make setup` puts it; otherwise the first in `path`, a list as in `PATH`.
    pub fn find(start: &Path, path: Option<&OsStr>) -> Option<Self> {
        let in_venv = start
            .ancestors()
            .map(|folder| folder.join(".venv/bin/ptxas"));
        let on_path = path
            .into_iter()
            .flat_map(std::env::split_paths)
            .map(|folder| folder.join("ptxas"));
        in_venv
            .chain(on_path)
            .find(|program| program.is_file())
            .map(|program| Self { program })
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// `V13.5.37`, or nothing if the program does not run.
    pub fn version(&self) -> Option<String> {
        let output = Command::new(&self.program).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.split([' ', '\n']).find(|word| {
            word.starts_with('V') && word[1..].starts_with(|c: char| c.is_ascii_digit())
        });
        version.map(str::to_owned)
    }

    /// Assembles PTX for `arch` (`sm_90a`).
    ///
    /// # Errors
    /// [`PtxasError::Refused`] carries ptxas's words.
    pub fn assemble(&self, ptx: &str, arch: &str) -> Result<Assembled, PtxasError> {
        let files = TemporaryFiles::new();
        let io = |what: &str| {
            let what = what.to_owned();
            move |source| PtxasError::Io { what, source }
        };
        std::fs::write(&files.ptx, ptx).map_err(io("writing a temporary file for ptxas"))?;
        let output = Command::new(&self.program)
            .arg(format!("-arch={arch}"))
            .arg("-v")
            .arg("-o")
            .args([&files.cubin, &files.ptx])
            .output()
            .map_err(io(&format!("starting {}", self.program.display())))?;
        // ptxas says some things on one and some on the other.
        let words = [output.stdout, output.stderr].concat();
        let words = String::from_utf8_lossy(&words);
        if !output.status.success() {
            return Err(PtxasError::Refused(words.trim().to_owned()));
        }
        let cubin = std::fs::read(&files.cubin).map_err(io("reading what ptxas wrote"))?;
        Ok(Assembled {
            cubin,
            report: parse_report(&words),
        })
    }
}

/// Reads the words of `ptxas -v`.
pub fn parse_report(words: &str) -> Report {
    let mut report = Report::default();
    let mut current: Option<String> = None;
    for line in words.lines() {
        let said = line.split_once(" : ").map_or(line, |(_, said)| said).trim();
        if let Some(name) = said.strip_prefix("Function properties for ") {
            report.functions.entry(name.to_owned()).or_default();
            current = Some(name.to_owned());
        } else if said.starts_with("Compiling entry function") {
            // '...' for '...': the lines that follow are of this function.
            current = said.split('\'').nth(1).map(str::to_owned);
        } else if line.contains("warning")
            || said.starts_with("(C7")
            || said.contains("Potential Performance Loss")
        {
            report.warnings.push(said.to_owned());
        } else if let Some(usage) = current
            .as_ref()
            .map(|name| report.functions.entry(name.clone()).or_default())
        {
            for part in said.split(',').map(str::trim) {
                read_usage(part, usage);
            }
        }
    }
    report
}

/// `Used 10 registers`, `0 bytes spill stores`, `used 1 barriers`, `4096 bytes smem`.
fn read_usage(part: &str, usage: &mut Usage) {
    let part = part.trim_start_matches("Used ").trim_start_matches("used ");
    let Some((number, what)) = part.split_once(' ') else {
        return;
    };
    let Ok(number) = number.parse() else { return };
    match what {
        "registers" => usage.registers = number,
        "bytes stack frame" => usage.stack_bytes = number,
        "bytes spill stores" => usage.spill_store_bytes = number,
        "bytes spill loads" => usage.spill_load_bytes = number,
        "barriers" => usage.barriers = number,
        "bytes smem" => usage.shared_bytes = number,
        _ => {}
    }
}

/// ptxas reads and writes files; these go when the run is over.
struct TemporaryFiles {
    ptx: PathBuf,
    cubin: PathBuf,
}

impl TemporaryFiles {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let stem = format!(
            "tessera-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let folder = std::env::temp_dir();
        Self {
            ptx: folder.join(format!("{stem}.ptx")),
            cubin: folder.join(format!("{stem}.cubin")),
        }
    }
}

impl Drop for TemporaryFiles {
    fn drop(&mut self) {
        for file in [&self.ptx, &self.cubin] {
            // Perhaps never written; otherwise a file is left in the folder for temporary files, which does no harm.
            let _ = std::fs::remove_file(file);
        }
    }
}
