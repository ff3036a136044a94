//! What the commands on `.tl` files share: reading them, and printing diagnostics.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{MessageFormat, USAGE_OR_IO};
use crate::diag::render::{self, Format};
use crate::diag::{Diagnostic, Severity};
use crate::source::{SourceMap, with_choices};

/// The files named, and all `.tl` files under the directories named, in the order of their names.
pub(super) fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, ExitCode> {
    let mut found = vec![];
    for path in paths {
        if path.is_dir() {
            let before = found.len();
            walk(path, &mut found).map_err(|e| fault(path, &e.to_string()))?;
            if found.len() == before {
                return Err(fault(path, "holds no .tl file"));
            }
        } else {
            found.push(path.clone());
        }
    }
    Ok(found)
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        // A link to a directory could lead round in a circle.
        if path.is_dir() && !path.is_symlink() {
            walk(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "tl") {
            found.push(path);
        }
    }
    Ok(())
}

pub(super) fn read(path: &Path) -> Result<String, ExitCode> {
    let bytes = std::fs::read(path).map_err(|e| fault(path, &e.to_string()))?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        fault(
            path,
            &format!("is not UTF-8 text: byte {at} starts no character"),
        )
    })
}

/// Folders of modules that the files named may use.
#[derive(clap::Args)]
pub(super) struct Modules {
    /// Files or folders with modules that the files named may `use`; nothing in them is compiled, tested or measured by itself
    #[arg(long = "lib", value_name = "FOLDER")]
    folders: Vec<PathBuf>,
}

/// Reads all files named (see [`find`]) into one map, and the choices beside them; those of the library after them.
pub(super) fn load(paths: &[PathBuf], modules: &Modules) -> Result<SourceMap, ExitCode> {
    let mut map = SourceMap::default();
    let named = with_choices(find(paths)?);
    let whole = |path: &PathBuf| path.canonicalize().ok();
    let known: Vec<_> = named.iter().map(whole).collect();
    let library = find(&modules.folders)?;
    for path in &named {
        let text = read(path)?;
        map.add(path.display().to_string(), text);
    }
    for path in library.iter().filter(|path| !known.contains(&whole(path))) {
        let text = read(path)?;
        map.add_library(path.display().to_string(), text);
    }
    Ok(map)
}

/// Says what is wrong with a path.
pub(super) fn fault(path: &Path, what: &str) -> ExitCode {
    eprintln!("error: {}: {what}", path.display());
    ExitCode::from(USAGE_OR_IO)
}

/// Prints diagnostics: JSON to standard output, for a program; the others to standard error. Fails if one is an error.
pub(super) fn report(
    diagnostics: &[Diagnostic],
    map: &SourceMap,
    format: MessageFormat,
) -> ExitCode {
    let mut err = std::io::stderr().lock();
    let format = match format {
        MessageFormat::Json => Format::Json,
        MessageFormat::Short => Format::Short,
        MessageFormat::Human => Format::Human {
            colour: err.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        },
    };
    let text: String = diagnostics
        .iter()
        .map(|d| render::render(d, map, format))
        .collect();
    let errors = diagnostics
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .count();
    match format {
        Format::Json => super::print(&text),
        // A closed standard error leaves nobody to tell.
        _ => drop(err.write_all(text.as_bytes())),
    }
    if let (Format::Human { .. }, 1..) = (format, errors) {
        let _ = writeln!(err, "{errors} error{}", if errors == 1 { "" } else { "s" });
    }
    if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
