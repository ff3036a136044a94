//! `tlc check`: reads `.tl` files and reports everything wrong with them; compiles nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::syntax;

pub(super) fn run(paths: &[PathBuf], format: MessageFormat) -> ExitCode {
    let map = match files::load(paths) {
        Ok(map) => map,
        Err(code) => return code,
    };
    let mut sink = Sink::default();
    for (id, file) in map.files() {
        syntax::parse(&mut sink, id, &file.text);
    }
    files::report(&sink.finish(), &map, format)
}
