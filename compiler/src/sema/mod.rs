//! Meaning: from syntax trees to the tile IR, one instance of one kernel at a time.
//!
//! [`Program::collect`] gathers the items of all files; [`Program::instances`] lists the sets of generic arguments a kernel is
//! asked for; [`elaborate`] binds one such set and lowers the body in one walk that resolves names, checks types and shapes
//! and emits ops. Since every generic has a value then, every tile shape is a number and no check is symbolic but those
//! about dims.
//!
//! Wrong code gets an error value that stays silent afterwards, so one run reports every problem.
//!
//! Needs: trees of `syntax::parse` (with error nodes). Keeps: ops in the order of the text.

mod constant;
mod evaluate;
mod header;
mod instances;
mod lower;
mod order;
mod program;
pub(crate) mod text;

pub use constant::{Const, FoldError};
pub use evaluate::{Evaluator, HostType, Static};
pub use instances::{Instance, Tuned, check_batches};
pub use program::{KernelItem, Program};

use crate::diag::{Severity, Sink};
use crate::syntax::ast::File;
use crate::tile::analysis::Ledger;
use crate::tile::ir;

/// Lowers one instance; `None` if anything in it is wrong (which is reported).
pub fn elaborate(
    program: &Program,
    kernel: usize,
    instance: &Instance,
    sink: &mut Sink,
) -> Option<ir::Kernel> {
    let mut mine = Sink::default();
    let k = lower::kernel(program, kernel, instance, &mut mine);
    let good = !mine.has_errors();
    // What is unused where something is wrong is mostly a consequence.
    for d in mine
        .iter()
        .filter(|d| good || d.severity == Severity::Error)
    {
        sink.report(d.clone());
    }
    good.then_some(k)
}

/// All kernels of all files, every instance, with tests and references checked for names. What `tlc check` does first.
pub fn program(files: &[File], sink: &mut Sink) -> Vec<ir::Kernel> {
    let program = Program::collect(files, sink);
    let mut kernels = vec![];
    for id in 0..program.kernels.len() {
        program.tuned(id, sink);
        let mut mine = vec![];
        for instance in program.instances(id, sink) {
            let kernel = elaborate(&program, id, &instance, sink);
            mine.extend(kernel.map(|kernel| (instance, kernel)));
        }
        check_batches(&mine, sink);
        if let Some((_, kernel)) = mine.first() {
            instances::check_tuned(kernel, program.kernels[id].ast, sink);
        }
        kernels.extend(mine.into_iter().map(|(_, kernel)| kernel));
    }
    kernels
}

/// The analyses on a finished kernel: bounds, and what else the IR must keep. Marks the copies that are proved to stay inside;
/// `None` if something is wrong, else the ledger of its accesses.
pub fn check(k: &mut ir::Kernel, sink: &mut Sink) -> Option<Ledger> {
    let mut mine = Sink::default();
    let ledger = crate::tile::analysis::check(k, &mut mine);
    let good = !mine.has_errors();
    for d in mine.iter() {
        sink.report(d.clone());
    }
    good.then_some(ledger)
}
