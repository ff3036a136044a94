//! Tests and benches with the kernels of a finished library, against their references: nothing is compiled.
//!
//! Keeps: an instance that the library lacks, or has no code of for its device, is left out and counted as such.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tessera_device::{Kernel, Library};

use super::data::Data;
use super::judge::{check_same, judge};
use super::launch::launch;
use super::plan::{Case, Plan, inputs, plan};
use super::run::Report;
use crate::diag::catalogue::testing as say;
use crate::diag::{Diagnostic, Sink};
use crate::driver;
use crate::sema::Program;
use crate::syntax::ast;
use crate::tile::ir;

/// The library's code of this very instance.
pub fn kernel_of(library: &Library, instance: &ir::Kernel) -> Option<Kernel> {
    let generics: Vec<(String, String)> = (instance.generics.iter())
        .map(|(name, value)| (name.clone(), driver::manifest::generic(value)))
        .collect();
    library.instance(&instance.name, &generics)
}

/// Runs all tests of a program, several at a time, with one launch at a time; `progress` is told of each. Tests of which the library has
/// no instance have no cases.
pub fn tests(
    program: &Program<'_>,
    library: &Library,
    threads: usize,
    progress: &(dyn Fn(&Report) + Sync),
) -> Vec<Report> {
    let all: Vec<(usize, &ast::Test)> = (program.kernels.iter().enumerate())
        .flat_map(|(kernel, item)| item.tests.iter().map(move |test| (kernel, *test)))
        .collect();
    let next = AtomicUsize::new(0);
    let launching = Mutex::new(());
    let done: Mutex<BTreeMap<usize, Report>> = Mutex::default();
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(kernel, test)) = all.get(at) else {
                return;
            };
            let report = run(program, kernel, test, library, &launching);
            progress(&report);
            (done.lock().unwrap_or_else(PoisonError::into_inner)).insert(at, report);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_values().collect()
}

fn run<'a>(
    program: &Program<'a>,
    kernel: usize,
    test: &'a ast::Test,
    library: &Library,
    launching: &Mutex<()>,
) -> Report {
    let start = Instant::now();
    let mut sink = Sink::default();
    let mut report = Report::of(program, kernel, test, vec![library.device().to_string()]);
    if let Some(plan) = plan(program, kernel, test, &mut sink)
        && let Err(d) = run_cases(program, &plan, library, launching, &mut report, &mut sink)
    {
        sink.report(*d);
    }
    report.problems = sink.finish();
    report.time = start.elapsed();
    report
}

fn run_cases(
    program: &Program<'_>,
    plan: &Plan<'_>,
    library: &Library,
    launching: &Mutex<()>,
    report: &mut Report,
    sink: &mut Sink,
) -> Result<(), Box<Diagnostic>> {
    let mut results: Vec<(&Case, Vec<BTreeMap<String, Data>>)> = vec![];
    for case in &plan.cases {
        let Some(instance) = driver::instance(program, plan.kernel, &case.instance, sink) else {
            return Ok(());
        };
        let Some(kernel) = kernel_of(library, &instance) else {
            report.skipped.push(case.label.clone());
            continue;
        };
        report.cases += 1;
        let inputs = inputs(plan, case, &instance)?;
        let launched = {
            // A failure is then the launch's own.
            let _alone = launching.lock().unwrap_or_else(PoisonError::into_inner);
            launch(&kernel, &inputs, 0).map_err(|why| why.to_string())
        };
        if !plan.errors.is_empty() {
            let found = launched.err();
            for (text, span) in &plan.errors {
                if !found.as_ref().is_some_and(|found| found.contains(text)) {
                    let found = found.as_deref();
                    let d = say::error_expected(*span, text, &case.label, found);
                    return Err(Box::new(d));
                }
            }
            continue;
        }
        let way = report.ways[0].clone();
        let outputs = launched
            .map_err(|what| Box::new(say::run_failed(plan.span, &way, &case.label, &what)))?;
        judge(program, plan, case, &inputs, &outputs, report, sink)?;
        results.push((case, vec![outputs]));
    }
    (plan.same.iter()).try_for_each(|same| check_same(same, &results, 0))
}
