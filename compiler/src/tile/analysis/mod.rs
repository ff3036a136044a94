//! Facts about a kernel, computed from its tile IR: [`bounds`] whether every access stays inside.
//!
//! Analyses report through the sink and change nothing, but that [`bounds`] marks the copies which it proved.

pub mod bounds;
mod example;
mod facts;
mod linear;

use super::ir::Kernel;
use crate::diag::Sink;

pub use bounds::{Entry, Ledger, Proof};
pub use example::Example;

/// All checks on one kernel; the ledger of its accesses for `tlc check -v`.
pub fn check(k: &mut Kernel, sink: &mut Sink) -> Ledger {
    bounds::check(k, sink)
}
