//! `tlc check`: reads `.tl` files and reports everything wrong with them, up to what the tile IR can prove; makes no code.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::driver;

pub(super) fn run(paths: &[PathBuf], format: MessageFormat) -> ExitCode {
    let map = match files::load(paths) {
        Ok(map) => map,
        Err(code) => return code,
    };
    let mut sink = Sink::default();
    let trees = driver::parse(&map, &mut sink);
    // After a slip of syntax the meaning is a guess: what followed from it would bury what is wrong.
    if !sink.has_errors() {
        driver::front(&trees, &mut sink);
    }
    files::report(&sink.finish(), &map, format)
}
