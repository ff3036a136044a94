//! `tlc bench --tune`: tries the values of `tune` clauses, and writes what wins beside the source, as instances that fix dims.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::ProgressBar;
use serde_json::json;

use super::bench::seconds;
use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::driver::{Options, manifest::generic};
use crate::sema::{Instance, Program};
use crate::source::{SourceMap, Span, choices};
use crate::syntax::{self, ast};
use crate::testing::bench::{BenchOptions, Machine};
use crate::testing::tune::{MARGIN, Measured, Outcome, Tuner, Values};

/// Tunes every kernel that has a `tune` clause and benches that are `wanted`; `any_bits` as of [`Tuner`].
pub(super) fn run(
    program: &Program<'_>,
    map: &SourceMap,
    wanted: &dyn Fn(&str, &str) -> bool,
    any_bits: bool,
    (options, how): (&Options, &BenchOptions),
    format: MessageFormat,
) -> ExitCode {
    let mut sink = Sink::default();
    let bar = ProgressBar::no_length();
    let mut found: Vec<(usize, Vec<Outcome>)> = vec![];
    for (kernel, item) in program.kernels.iter().enumerate() {
        let tuner = Tuner {
            program,
            kernel,
            options,
            how,
            any_bits,
            progress: &|what, done, all| {
                bar.set_length(all as u64);
                bar.set_position(done as u64);
                bar.set_message(format!("{}: {what}", item.name));
            },
        };
        let mine = |bench: &ast::Test| wanted(&item.name, &bench.title);
        let outcomes = tuner.run(&mine, &mut sink);
        for outcome in &outcomes {
            bar.suspend(|| print(&item.name, outcome, any_bits, format));
        }
        if !outcomes.is_empty() {
            found.push((kernel, outcomes));
        }
    }
    bar.finish_and_clear();
    if found.is_empty() && !sink.has_errors() {
        eprintln!(
            "error: nothing to tune: no kernel here has a `tune {{ .. }}` clause, and benches among those asked for with dims besides the batch"
        );
        return ExitCode::FAILURE;
    }
    if let Err(code) = write(program, map, &found, &mut sink) {
        return code;
    }
    files::report(&sink.finish(), map, format)
}

fn list<'v>(values: impl Iterator<Item = (&'v String, String)>) -> String {
    let pairs: Vec<String> = values.map(|(n, v)| format!("{n} = {v}")).collect();
    pairs.join(", ")
}

fn dims_text(dims: &[(String, i64)]) -> String {
    list(dims.iter().map(|(n, v)| (n, v.to_string())))
}

fn values_text(values: &Values) -> String {
    match values.is_empty() {
        true => "dims known".to_owned(),
        false => list(values.iter().map(|(n, v)| (n, generic(v)))),
    }
}

fn print(kernel: &str, outcome: &Outcome, any_bits: bool, format: MessageFormat) {
    if format == MessageFormat::Json {
        let of = |values: &Values| -> BTreeMap<String, String> {
            values
                .iter()
                .map(|(n, v)| (n.clone(), generic(v)))
                .collect()
        };
        let measured: Vec<_> = (outcome.measured.iter())
            .map(|m| json!({ "values": of(&m.values), "seconds": m.times, "ratio": m.ratio, "same_bits": m.same_bits }))
            .collect();
        let left: Vec<_> = (outcome.left.iter())
            .map(|(values, why)| json!({ "values": of(values), "why": why }))
            .collect();
        let dims: BTreeMap<_, _> = outcome.dims.iter().cloned().collect();
        let line = json!({ "tune": {
            "kernel": kernel, "dims": dims, "benches": outcome.base, "measured": measured, "left": left,
            "choice": outcome.choice().map(|m| of(&m.values)), "machine": machine(&outcome.machine),
        } });
        return super::print(&format!("{line}\n"));
    }
    let mut text = format!("{kernel}, {}\n", dims_text(&outcome.dims));
    for (title, time) in &outcome.base {
        let _ = writeln!(text, "    {:>9}  as it is: {title}", seconds(*time));
    }
    for one in &outcome.measured {
        let times: Vec<String> = one.times.iter().map(|&t| seconds(t)).collect();
        let bits = if one.same_bits { "" } else { "; other bits" };
        let _ = writeln!(
            text,
            "    {:>9.3}  {}: {}{bits}",
            one.ratio,
            values_text(&one.values),
            times.join(", ")
        );
    }
    for (values, why) in &outcome.left {
        let _ = writeln!(text, "         --  {}: {why}", values_text(values));
    }
    let _ = match outcome.choice() {
        Some(one) => writeln!(text, "    chosen: {}", values_text(&one.values)),
        None if outcome.measured.is_empty() && outcome.left.is_empty() => writeln!(
            text,
            "    nothing to try: `where` allows none of the values, or they would leave some batches to other instances"
        ),
        None => writeln!(
            text,
            "    nothing chosen: none{} takes less than {:.2} of the time and is slower on no bench",
            if any_bits { "" } else { " of the same bits" },
            1.0 - MARGIN
        ),
    };
    super::print(&text);
}

fn machine(machine: &Machine) -> String {
    match machine {
        Machine::Cpu { variant, threads } => format!("{variant}, {threads} threads"),
        Machine::Gpu { name } => name.clone(),
    }
}

/// Instances that share their dims, and the comment above them.
struct Group {
    kernel: usize,
    dims: Vec<(String, i64)>,
    comment: String,
    lines: Vec<String>,
}

/// Writes a file of choices beside each source that has any; what was chosen for other dims or kernels stays.
fn write(
    program: &Program<'_>,
    map: &SourceMap,
    found: &[(usize, Vec<Outcome>)],
    sink: &mut Sink,
) -> Result<(), ExitCode> {
    let source = |kernel: usize| map.file(program.kernels[kernel].ast.span.file).name.clone();
    let mut written: BTreeMap<PathBuf, Vec<Group>> = BTreeMap::new();
    for (kernel, _) in found {
        written
            .entry(choices(Path::new(&source(*kernel))))
            .or_default();
    }
    for (path, groups) in &mut written {
        for kernel in 0..program.kernels.len() {
            if choices(Path::new(&source(kernel))) != *path {
                continue;
            }
            let outcomes = found
                .iter()
                .filter(|(k, _)| *k == kernel)
                .flat_map(|(_, o)| o);
            let outcomes: Vec<&Outcome> = outcomes.collect();
            for instance in program.instances(kernel, sink) {
                let here = Path::new(&map.file(instance.span.file).name) == path.as_path();
                if here
                    && !outcomes
                        .iter()
                        .any(|o| o.replaces(program, kernel, &instance))
                {
                    keep(groups, kernel, &instance, map);
                }
            }
            for outcome in outcomes {
                groups.extend(
                    outcome
                        .choice()
                        .map(|choice| group(kernel, outcome, choice)),
                );
            }
        }
    }
    for (path, groups) in written {
        let Some(first) = groups.first() else {
            if path.exists() {
                std::fs::remove_file(&path).map_err(|e| files::fault(&path, &e.to_string()))?;
            }
            continue;
        };
        let text = text(program, &source(first.kernel), &groups, sink);
        std::fs::write(&path, text).map_err(|e| files::fault(&path, &e.to_string()))?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}

fn keep(groups: &mut Vec<Group>, kernel: usize, instance: &Instance, map: &SourceMap) {
    let line = map.text(instance.span).to_owned();
    let same = |g: &&mut Group| g.kernel == kernel && g.dims == instance.dims;
    match groups.iter_mut().find(same) {
        Some(group) => group.lines.push(line),
        None => groups.push(Group {
            kernel,
            dims: instance.dims.clone(),
            comment: comment_above(map, instance.span),
            lines: vec![line],
        }),
    }
}

/// The `//` lines right above.
fn comment_above(map: &SourceMap, span: Span) -> String {
    let before = map
        .file(span.file)
        .text
        .get(..span.start as usize)
        .unwrap_or("");
    let mut lines: Vec<&str> = (before.lines().rev())
        .skip(usize::from(!before.ends_with('\n')))
        .map(str::trim)
        .take_while(|line| line.starts_with("//"))
        .collect();
    lines.reverse();
    lines.join("\n")
}

fn group(kernel: usize, outcome: &Outcome, choice: &Measured) -> Group {
    let times: Vec<String> = (outcome.base.iter().zip(&choice.times))
        .map(|((_, base), time)| format!("{} where it took {}", seconds(*time), seconds(*base)))
        .collect();
    let bits = if choice.same_bits {
        "the same bits"
    } else {
        "other bits"
    };
    let line = |instance: &Instance| {
        let dims = dims_text(&instance.dims);
        match instance.generics.is_empty() {
            true => format!("({dims})"),
            false => format!("({dims}, {})", values_text(&instance.generics)),
        }
    };
    Group {
        kernel,
        dims: outcome.dims.clone(),
        comment: format!(
            "// {}; {bits}; {}",
            times.join(", "),
            machine(&outcome.machine)
        ),
        lines: choice.instances.iter().map(line).collect(),
    }
}

fn text(program: &Program<'_>, source: &str, groups: &[Group], sink: &mut Sink) -> String {
    let name = Path::new(source)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut text = String::from("edition 2026;\n");
    if let Some((module, _)) = program.kernels[groups[0].kernel].name.rsplit_once("::") {
        let _ = writeln!(text, "module {module};");
    }
    let _ = writeln!(
        text,
        "\n// Made by `tlc bench --tune` from {name}: with these dims a launch takes these instances before the others."
    );
    let mut kernels: Vec<usize> = groups.iter().map(|g| g.kernel).collect();
    kernels.dedup();
    for kernel in kernels {
        let _ = writeln!(
            text,
            "\ninstances {} {{",
            program.kernels[kernel].ast.name.name
        );
        for group in groups.iter().filter(|g| g.kernel == kernel) {
            for line in group.comment.lines() {
                let _ = writeln!(text, "    {line}");
            }
            for line in &group.lines {
                let _ = writeln!(text, "    {line},");
            }
        }
        text.push_str("}\n");
    }
    let mut map = SourceMap::default();
    let id = map.add("", text.as_str());
    syntax::format(sink, id, &text).unwrap_or(text)
}
