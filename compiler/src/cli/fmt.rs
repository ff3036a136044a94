//! `tlc fmt`: lays `.tl` files out in the one way. A file with syntax errors stays as it is.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::source::SourceMap;
use crate::syntax;

/// With `check`, names the files that would change and changes none.
pub(super) fn run(paths: &[PathBuf], check: bool, format: MessageFormat) -> ExitCode {
    let stdin = [Path::new("-")];
    let paths = if paths == stdin {
        paths.to_vec()
    } else {
        match files::find(paths) {
            Ok(found) => found,
            Err(code) => return code,
        }
    };
    let mut code = ExitCode::SUCCESS;
    for path in &paths {
        match one(path, check, format) {
            Ok(true) => {}
            Ok(false) => code = ExitCode::FAILURE,
            Err(stop) => return stop,
        }
    }
    code
}

/// Whether all is well with the file; an exit code if it can't be read or written.
fn one(path: &Path, check: bool, format: MessageFormat) -> Result<bool, ExitCode> {
    let stdin = path == Path::new("-");
    let text = if stdin {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|e| files::fault(Path::new("standard input"), &e.to_string()))?;
        text
    } else {
        files::read(path)?
    };
    let mut map = SourceMap::default();
    let id = map.add(
        if stdin {
            "<stdin>".to_owned()
        } else {
            path.display().to_string()
        },
        text,
    );
    let text = &map.file(id).text;
    let mut sink = Sink::default();
    let Some(formatted) = syntax::format(&mut sink, id, text) else {
        files::report(&sink.finish(), &map, format);
        return Ok(false);
    };
    let same = formatted == *text;
    if check {
        if !same {
            super::print(&format!("{}\n", map.file(id).name));
        }
        return Ok(same);
    }
    if stdin {
        super::print(&formatted);
    } else if !same {
        std::fs::write(path, formatted).map_err(|e| files::fault(path, &e.to_string()))?;
    }
    Ok(true)
}
