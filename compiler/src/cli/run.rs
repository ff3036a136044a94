//! `tlc run`: one launch of one kernel with inputs from the command line.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::build::Compile;
use super::{MessageFormat, files};
use crate::diag::Sink;
use crate::driver;
use crate::sema::Program;
use crate::syntax::ast::Item;
use crate::testing::data::Data;
use crate::testing::launch::{compiled, interpret_traced, launch};
use crate::testing::plan::{inputs, plan};

#[derive(Args)]
pub(super) struct Run {
    #[command(flatten)]
    compile: Compile,
    /// Values of dims, generics and scalars, as in a test: M=3,T=bf16,eps=1e-6
    #[arg(long, default_value = "")]
    with: String,
    /// An input, as in a test: 'x ~ uniform(0, 1) @seed(7)'; may be repeated
    #[arg(long)]
    fill: Vec<String>,
    /// Run in the interpreter
    #[arg(long)]
    interpret: bool,
    /// Print the values of a tile each time it is written (runs in the interpreter); may be repeated
    #[arg(long, value_name = "TILE")]
    trace: Vec<String>,
    /// Print every element of the results
    #[arg(long)]
    all: bool,
    /// The file, or a directory to search
    file: PathBuf,
    /// The kernel
    kernel: String,
}

pub(super) fn run(arguments: &Run, format: MessageFormat) -> ExitCode {
    let (options, mut map) = match (
        arguments.compile.options(),
        files::load(
            std::slice::from_ref(&arguments.file),
            &arguments.compile.modules,
        ),
    ) {
        (Ok(options), Ok(map)) => (options, map),
        (Err(code), _) | (_, Err(code)) => return code,
    };
    let mut sink = Sink::default();
    let mut parsed = driver::parse(&map, &mut sink);
    // What the command line says is a test of one case, so that it means what it means there.
    let short = arguments
        .kernel
        .rsplit("::")
        .next()
        .unwrap_or(&arguments.kernel);
    let with = if arguments.with.is_empty() {
        String::new()
    } else {
        format!("with {};", arguments.with)
    };
    let fills: String = arguments
        .fill
        .iter()
        .map(|f| format!(" fill {f};"))
        .collect();
    let full = full_name(&parsed, &arguments.kernel);
    let module = full
        .rsplit_once("::")
        .map_or(String::new(), |(module, _)| format!("module {module}; "));
    let text = format!("{module}test \"run\" for {short} {{ {with}{fills} }}");
    let id = map.add("<command line>", text.clone());
    let command = crate::syntax::parse(&mut sink, id, &text);
    let test = command.items.iter().find_map(|item| {
        if let Item::Test(t) = item {
            Some(t.clone())
        } else {
            None
        }
    });
    parsed.push(command);
    let program = Program::collect(&parsed, &mut sink);
    let Some(kernel) = program.kernel(&full) else {
        if !sink.has_errors() {
            let known: Vec<&str> = program.kernels.iter().map(|k| k.name.as_str()).collect();
            eprintln!(
                "error: no kernel `{}`; there are {}",
                arguments.kernel,
                known.join(", ")
            );
        }
        files::report(&sink.finish(), &map, format);
        return ExitCode::FAILURE;
    };
    if let (Some(test), false) = (test, sink.has_errors()) {
        one_launch(
            arguments, &program, kernel, &test, &options, format, &mut sink,
        );
    }
    files::report(&sink.finish(), &map, format)
}

/// The kernel's name with its module, if there is such a kernel.
fn full_name(files: &[crate::syntax::ast::File], kernel: &str) -> String {
    let program = Program::collect(files, &mut Sink::default());
    program
        .kernel(kernel)
        .map_or_else(|| kernel.to_owned(), |id| program.kernels[id].name.clone())
}

fn one_launch<'a>(
    arguments: &Run,
    program: &Program<'a>,
    kernel: usize,
    test: &'a crate::syntax::ast::Test,
    options: &driver::Options,
    format: MessageFormat,
    sink: &mut Sink,
) -> Option<()> {
    let plan = plan(program, kernel, test, sink)?;
    for case in &plan.cases {
        let instance = driver::instance(program, kernel, &case.instance, sink)?;
        let mut report = |d: Box<crate::diag::Diagnostic>| {
            sink.report(*d);
        };
        let inputs = inputs(&plan, case, &instance).map_err(&mut report).ok()?;
        let start = std::time::Instant::now();
        let outputs = if arguments.interpret || !arguments.trace.is_empty() {
            let meaning = driver::expand(&instance).map_err(&mut report).ok()?;
            let mut trace = |place: &str, name: &str, shape: &[u64], values: &[Option<f64>]| {
                if arguments.trace.iter().any(|t| t == name) {
                    let values: Vec<String> = values
                        .iter()
                        .map(|v| v.map_or("_".to_owned(), |v| format!("{v}")))
                        .collect();
                    super::print(&format!(
                        "{place}: {name}{shape:?} = [{}]\n",
                        values.join(", ")
                    ));
                }
            };
            let (outputs, prints) = interpret_traced(&meaning, &inputs, &case.label, &mut trace)
                .map_err(&mut report)
                .ok()?;
            prints
                .iter()
                .for_each(|line| super::print(&format!("{line}\n")));
            outputs
        } else {
            let ready = compiled(&instance, options, sink)?;
            match launch(&ready, &inputs, 0) {
                Ok(outputs) => outputs,
                Err(error) => {
                    sink.report(crate::diag::catalogue::testing::run_failed(
                        plan.span,
                        "the launch",
                        &case.label,
                        &error.to_string(),
                    ));
                    return None;
                }
            }
        };
        let elapsed = start.elapsed();
        for (name, data) in &outputs {
            print(name, data, &case.label, arguments.all, format);
        }
        if format == MessageFormat::Human {
            super::print(&format!("{elapsed:.1?}\n"));
        }
    }
    Some(())
}

fn print(name: &str, data: &Data, case: &str, all: bool, format: MessageFormat) {
    const SHOWN: usize = 8;
    let values: Vec<f64> = (0..data.len()).map(|i| data.value(i)).collect();
    let shown = if all {
        values.len()
    } else {
        values.len().min(SHOWN)
    };
    if format == MessageFormat::Json {
        let line = json!({
            "tensor": name, "dtype": data.dtype.name(), "shape": data.shape, "case": case,
            "values": values[..shown].iter().map(|v| v.to_string()).collect::<Vec<_>>(),
        });
        return super::print(&format!("{line}\n"));
    }
    let finite = values.iter().copied().filter(|v| v.is_finite());
    let low = finite.clone().fold(f64::INFINITY, f64::min);
    let high = finite.clone().fold(f64::NEG_INFINITY, f64::max);
    let mean = finite.clone().sum::<f64>() / finite.clone().count().max(1) as f64;
    let odd = values.len() - finite.count();
    let list: Vec<String> = values[..shown].iter().map(|v| format!("{v}")).collect();
    let rest = if shown < values.len() { ", …" } else { "" };
    let odd = if odd > 0 {
        format!(", {odd} not finite")
    } else {
        String::new()
    };
    super::print(&format!(
        "{name}: {}{:?} from {low:.6} to {high:.6}, mean {mean:.6}{odd}\n  [{}{rest}]\n",
        data.dtype,
        data.shape,
        list.join(", ")
    ));
}
