//! What `tlc build -v` says of each kernel's code for GPUs: registers and spills as ptxas counts them, roles, stages, shared memory by
//! tile, barriers, and what is still checked while it runs.

use std::fmt::Write;

use crate::driver::CodeFacts;
use crate::mlir::gpu::Place;
use crate::tile::analysis::{Ledger, Proof};
use crate::tile::ir::Kernel;

pub(super) fn facts(kernel: &Kernel, ledger: &Ledger, codes: &[CodeFacts]) -> String {
    let entry = crate::driver::manifest::entry(kernel, "");
    let mut out = format!("kernel {}\n", entry.instance_name());
    let _ = writeln!(out, "  guards    {}", guards(ledger));
    for code in codes {
        let what = match code.plan {
            Some(_) => "tensor cores",
            None => "plain",
        };
        let _ = writeln!(
            out,
            "  code      {what}: {} threads, {}",
            code.threads,
            registers(code)
        );
        if let Some(plan) = &code.plan {
            for line in plan.to_string().lines() {
                let _ = writeln!(out, "    {line}");
            }
        }
        let _ = writeln!(out, "    shared  {}", shared(code));
        let _ = writeln!(out, "    barriers {}", barriers(code));
        if code.traps > 0 {
            let _ = writeln!(out, "    checks  {} while it runs", code.traps);
        }
    }
    out
}

/// What no proof took away: of so many accesses.
fn guards(ledger: &Ledger) -> String {
    let left = [
        (Proof::Oob, "masked as `@oob` says"),
        (Proof::Guarded, "under a condition"),
        (Proof::Asserted, "asserted"),
    ];
    let left: Vec<String> = left
        .into_iter()
        .map(|(proof, words)| (ledger.count(proof), words))
        .filter(|&(count, _)| count > 0)
        .map(|(count, words)| format!("{count} {words}"))
        .collect();
    let all = ledger.entries.len();
    match left.is_empty() {
        true => format!("none left of {all} accesses"),
        false => format!("{} of {all} accesses", left.join(", ")),
    }
}

fn registers(code: &CodeFacts) -> String {
    let (symbol, report) = match &code.assembled {
        None => return "registers unknown: no ptxas (`make setup` installs one)".to_owned(),
        Some((_, Err(why))) => return format!("registers unknown: {why}"),
        Some((symbol, Ok(report))) => (symbol, report),
    };
    let Some(usage) = report.functions.get(symbol) else {
        return "registers unknown: ptxas does not say".to_owned();
    };
    let spilled = usage.spill_store_bytes + usage.spill_load_bytes;
    let mut text = format!("{} registers, ", usage.registers);
    match spilled {
        0 => text.push_str("no spills"),
        _ => {
            let _ = write!(
                text,
                "spills {} bytes out and {} in",
                usage.spill_store_bytes, usage.spill_load_bytes
            );
        }
    }
    if usage.stack_bytes > 0 {
        let _ = write!(text, ", {} bytes of stack", usage.stack_bytes);
    }
    for warning in &report.warnings {
        let _ = write!(text, "; {warning}");
    }
    text
}

fn shared(code: &CodeFacts) -> String {
    let named = |want: fn(&Place) -> bool| -> Vec<String> {
        (code.tiles.iter())
            .filter(|(_, place, _)| want(place))
            .map(|(name, _, bytes)| format!("{name} {bytes}"))
            .collect()
    };
    let mut parts = named(|place| matches!(place, Place::Shared(_)));
    if let Some(plan) = &code.plan {
        parts.insert(0, format!("rings {}", plan.shared_bytes));
    }
    let mut text = format!("{} bytes", code.shared_bytes);
    if !parts.is_empty() {
        let _ = write!(text, ": {}", parts.join(", "));
    }
    let scratch = named(|place| matches!(place, Place::Scratch(_)));
    if !scratch.is_empty() {
        let _ = write!(
            text,
            "; in scratch memory {} bytes: {}",
            code.scratch_bytes,
            scratch.join(", ")
        );
    }
    text
}

/// Of all threads, and those of rings, of which a slot has two.
fn barriers(code: &CodeFacts) -> String {
    match &code.plan {
        None => format!("{}", code.barriers),
        Some(plan) => {
            let slots: u32 = plan.rings.iter().map(|ring| ring.slots).sum();
            format!("{} and {} of rings", code.barriers, 2 * slots)
        }
    }
}
