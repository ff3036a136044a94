//! `tlc check`: reads `.tl` files and reports everything wrong with them, up to what the tile IR can prove; makes no code.
//! `-v` prints the ledger of what was proved and how.

use std::path::PathBuf;
use std::process::ExitCode;

use super::{MessageFormat, files, ledger};
use crate::diag::Sink;
use crate::driver;

pub(super) fn run(
    paths: &[PathBuf],
    modules: &files::Modules,
    verbose: bool,
    format: MessageFormat,
) -> ExitCode {
    let map = match files::load(paths, modules) {
        Ok(map) => map,
        Err(code) => return code,
    };
    let mut sink = Sink::default();
    let trees = driver::parse(&map, &mut sink);
    // After a slip of syntax the meaning is a guess: what followed from it would bury what is wrong.
    if !sink.has_errors()
        && let Some(kernels) = driver::front_with_ledgers(&trees, &mut sink)
        && verbose
    {
        for (kernel, proofs) in &kernels {
            super::print(&ledger::ledger(kernel, proofs, &map));
        }
    }
    files::report(&sink.finish(), &map, format)
}
