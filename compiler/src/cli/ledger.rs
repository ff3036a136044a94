//! The ledger of a kernel as text: what was proved, and how.

use crate::source::SourceMap;
use crate::tile::analysis::{Ledger, Proof};
use crate::tile::ir::Kernel;

/// What holds for each access of a kernel, and why: one line a reason.
pub(super) fn accesses(ledger: &Ledger, map: &SourceMap) -> String {
    let proofs = [
        (Proof::Proved, "proved from extents and loop bounds"),
        (
            Proof::ByDims,
            "proved from the dims' ranges, which a launch checks",
        ),
        (
            Proof::ByHostCheck,
            "proved from `requires`, which a launch checks",
        ),
        (Proof::Guarded, "guarded by a condition of the kernel"),
        (Proof::Asserted, "asserted"),
        (Proof::Oob, "masked, as `@oob` says"),
    ];
    let mut out = String::new();
    for (proof, words) in proofs {
        let entries: Vec<String> = (ledger.entries.iter())
            .filter(|e| e.proof == proof)
            .map(|e| {
                let file = map.file(e.span.file);
                format!("{} (line {})", e.what, file.line_col(e.span.start).0)
            })
            .collect();
        if !entries.is_empty() {
            out.push_str(&format!("  accesses  {}: {}\n", words, entries.join(", ")));
        }
    }
    out
}

/// The ledger of `tlc check -v`: every contract that was proved, every access with what makes it safe.
pub(super) fn ledger(kernel: &Kernel, ledger: &Ledger, map: &SourceMap) -> String {
    let entry = crate::driver::manifest::entry(kernel, "");
    let mut out = format!("kernel {}\n", entry.instance_name());
    for requirement in &entry.requires {
        out.push_str(&format!("  requires  {}\n", requirement.text));
    }
    for contract in &entry.contracts {
        out.push_str(&format!("  proved    {}\n", contract.text));
    }
    out.push_str(&accesses(ledger, map));
    out
}
