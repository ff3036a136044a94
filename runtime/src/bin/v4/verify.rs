//! `v4 verify DIR`: a golden case, with a table of the worst errors.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;
use tessera::verify::{Check, verify};

use super::setup::{Options, progress_bar};
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// Folders with config.json, model.safetensors, io.safetensors and trace.safetensors.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Show every comparison, not only the worst of each kind.
    #[arg(long, short)]
    verbose: bool,
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let mut all_fine = true;
    let mut cases = Vec::new();
    for folder in &args.folders {
        let model = options.model(folder)?;
        let bar = progress_bar("checks");
        let checks = verify(&model, folder, &mut |_| bar.inc(1));
        bar.finish_and_clear();
        let checks = checks?;
        let wrong = checks.iter().filter(|check| !check.is_fine()).count();
        all_fine &= wrong == 0;
        if options.json {
            cases.push(json!({ "case": folder, "fine": wrong == 0, "checks": checks }));
        } else {
            print_case(&folder.display().to_string(), &checks, wrong, args.verbose);
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&cases)?);
    }
    Ok(match all_fine {
        true => Outcome::Fine,
        false => Outcome::Failed,
    })
}

pub fn print_case(name: &str, checks: &[Check], wrong: usize, verbose: bool) {
    println!("{name}");
    println!(
        "  {:<46} {:>10} {:>10} {:>6}",
        "worst of", "error", "bound", "checks"
    );
    let mut kinds: BTreeMap<String, Vec<&Check>> = BTreeMap::new();
    for check in checks {
        let kind = match verbose {
            true => check.name.clone(),
            false => kind_of(&check.name),
        };
        kinds.entry(kind).or_default().push(check);
    }
    for (kind, checks) in kinds {
        let Some(worst) = checks.iter().max_by(|a, b| share(a).total_cmp(&share(b))) else {
            continue;
        };
        let mark = if worst.is_fine() { "" } else { "  WRONG" };
        println!(
            "  {kind:<46} {:>10.2e} {:>10.2e} {:>6}{mark}",
            worst.error,
            worst.bound,
            checks.len()
        );
    }
    match wrong {
        0 => println!("  {} comparisons, all within bounds", checks.len()),
        _ => println!("  {wrong} of {} comparisons out of bounds", checks.len()),
    }
}

/// Error over bound, so that comparisons of unlike sizes can be ranked; NaN ranks first.
fn share(check: &Check) -> f64 {
    match check.bound > 0.0 {
        true => check.error / check.bound,
        false => check.error,
    }
}

/// A name without its length or layer: `len8.hidden.1` and `L0.attn.q@rows` become `hidden` and `attn.q`.
fn kind_of(name: &str) -> String {
    let name = name.strip_suffix("@rows").unwrap_or(name);
    let numbered = |part: &str, letters: &str| {
        part.strip_prefix(letters)
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let parts: Vec<&str> = name
        .split('.')
        .filter(|part| !numbered(part, "len") && !numbered(part, "L") && !numbered(part, ""))
        .collect();
    parts.join(".")
}
