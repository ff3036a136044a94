//! Facts about a kernel, computed from its tile IR: [`bounds`] whether every access stays inside, `init` whether what is read was
//! written, `races` whether writes can meet, [`contracts`] whether `ensures` holds.
//!
//! Analyses report through the sink and change nothing, but that [`bounds`] marks the copies which it proved.

pub mod bounds;
mod budget;
pub mod contracts;
mod example;
mod facts;
mod forms;
mod init;
mod linear;
mod multiple;
mod races;
pub mod roles;
#[cfg(test)]
mod tests;

use super::ir::{Kernel, ValueId};
use crate::diag::Sink;
use crate::diag::catalogue::channels;

pub use bounds::{Entry, Ledger, Proof};
pub use example::Example;
pub use init::carried;
pub use multiple::power_of_two;

/// All checks on one kernel; the ledger of its accesses for `tlc check -v`.
pub fn check(k: &mut Kernel, sink: &mut Sink) -> Ledger {
    let ledger = bounds::check(k, sink);
    init::check(k, sink);
    races::check(k, sink);
    roles::check(k, sink);
    budget::check(k, sink);
    if k.deny.iter().any(|d| d == "in_kernel_checks") {
        for e in ledger.entries.iter().filter(|e| e.proof == Proof::Oob) {
            sink.report(channels::checked_in_kernel(e.span, &e.what));
        }
    }
    if !sink.has_errors() {
        contracts::check(k, sink);
    }
    ledger
}

/// Whether a loop from `lo` to `hi` runs at least once in whatever launch.
pub fn runs(kernel: &Kernel, lo: ValueId, hi: ValueId) -> bool {
    let mut forms = forms::Forms::new(kernel);
    let (lo, hi) = (forms.form(lo), forms.form(hi));
    let more = hi.sub(&lo).and_then(|trips| trips.plus(-1));
    more.is_some_and(|more| forms.facts.interval(&more).0 >= 0)
}
