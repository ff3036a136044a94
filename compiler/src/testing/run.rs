//! Runs a test: interpreter, every CPU variant this machine has, references, and the verdict.
//!
//! Each case runs in the interpreter on the kernel as written and on the kernel as rewritten for code, and as compiled code of
//! every variant, on one thread and on two, dense and with gaps between rows. All must have the same bits; the reference judges them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tessera_artifact::CpuVariant;
use tessera_device::{Device, cpu::features};

use super::data::Data;
use super::judge::{check_same, equal_bits, judge};
use super::launch::{Compiled, blame, interpret, launch, load, load_on};
use super::plan::{Case, Inputs, Plan, TestTarget, inputs};
use crate::diag::catalogue::testing as say;
use crate::diag::{Diagnostic, Sink};
use crate::driver::{self, Options};
use crate::schedule;
use crate::sema::Program;
use crate::source::SourceMap;
use crate::syntax::ast::File;
use crate::target::nvptx::SM_90A;
use crate::tile::{ir, pass};

/// The outcome of one test.
#[derive(Clone, Debug)]
pub struct Report {
    pub title: String,
    pub kernel: String,
    pub cases: usize,
    /// By expectation, the case that comes closest to its tolerance.
    pub closest: Option<(String, f64)>,
    /// Ways that ran besides the interpreter: `avx2`, …
    pub ways: Vec<String>,
    /// Errors: the test failed. Warnings besides.
    pub problems: Vec<Diagnostic>,
    /// Why targets were left out.
    pub skipped: Vec<String>,
    pub time: Duration,
}

impl Report {
    /// Of a test that has yet to run, in these ways.
    pub(super) fn of(
        program: &Program<'_>,
        kernel: usize,
        test: &crate::syntax::ast::Test,
        ways: Vec<String>,
    ) -> Report {
        Report {
            title: test.title.clone(),
            kernel: program.kernels[kernel].name.clone(),
            cases: 0,
            closest: None,
            ways,
            problems: vec![],
            skipped: vec![],
            time: Duration::ZERO,
        }
    }

    pub fn passed(&self) -> bool {
        !self
            .problems
            .iter()
            .any(|d| d.severity == crate::diag::Severity::Error)
    }
}

/// Which test of a file set: kernel, title, and which of those of the same title.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestId {
    pub kernel: String,
    pub title: String,
    pub nth: usize,
}

impl std::fmt::Display for TestId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kernel, self.title)?;
        if self.nth > 0 {
            write!(f, " ({})", self.nth + 1)?;
        }
        Ok(())
    }
}

/// The tests of parsed files, in order of the kernels.
pub fn list(program: &Program<'_>) -> Vec<TestId> {
    let mut ids: Vec<TestId> = vec![];
    for kernel in &program.kernels {
        for test in &kernel.tests {
            let same = |id: &&TestId| id.kernel == kernel.name && id.title == test.title;
            let nth = ids.iter().filter(same).count();
            ids.push(TestId {
                kernel: kernel.name.clone(),
                title: test.title.clone(),
                nth,
            });
        }
    }
    ids
}

/// All tests of a set of sources, for a harness that runs them one by one; problems of the text are errors.
///
/// # Errors
/// What is wrong with the text.
pub fn list_sources(map: &SourceMap) -> Result<Vec<TestId>, Vec<Diagnostic>> {
    let mut sink = Sink::default();
    let files = driver::parse(map, &mut sink);
    let ids = list(&Program::collect(&files, &mut sink));
    match sink.has_errors() {
        false => Ok(ids),
        true => Err(sink.finish()),
    }
}

/// Runs one test of a set of sources.
///
/// # Errors
/// What is wrong with the text, or no such test.
pub fn run_one(map: &SourceMap, id: &TestId, options: &Options) -> Result<Report, Vec<Diagnostic>> {
    let mut sink = Sink::default();
    let files: Vec<File> = driver::parse(map, &mut sink);
    let program = Program::collect(&files, &mut sink);
    if sink.has_errors() {
        return Err(sink.finish());
    }
    let kernel = program.kernels.iter().position(|k| k.name == id.kernel);
    let test = kernel.and_then(|k| {
        program.kernels[k]
            .tests
            .iter()
            .filter(|t| t.title == id.title)
            .nth(id.nth)
            .map(|t| (k, *t))
    });
    let Some((kernel, test)) = test else {
        return Err(sink.finish());
    };
    Ok(run(&program, kernel, test, options))
}

/// Runs a test of a program.
pub fn run<'a>(
    program: &Program<'a>,
    kernel: usize,
    test: &'a crate::syntax::ast::Test,
    options: &Options,
) -> Report {
    let ways = Ways {
        options,
        gpu: None,
        references: true,
    };
    run_ways(program, kernel, test, &ways)
}

/// How to run a test, besides in the interpreter.
pub struct Ways<'w> {
    pub options: &'w Options,
    /// A GPU, too.
    pub gpu: Option<&'w Device>,
    /// Have the references judge the interpreter's results. Without it, only that every way gives the same bits is examined.
    pub references: bool,
}

/// As [`run`], in the given ways.
pub fn run_ways<'a>(
    program: &Program<'a>,
    kernel: usize,
    test: &'a crate::syntax::ast::Test,
    ways: &Ways<'_>,
) -> Report {
    let start = Instant::now();
    let mut sink = Sink::default();
    let mut report = Report::of(program, kernel, test, vec![]);
    if let Some(plan) = super::plan::plan(program, kernel, test, &mut sink) {
        report.cases = plan.cases.len();
        if plan.expects.is_empty() && plan.same.is_empty() && plan.errors.is_empty() {
            sink.report(say::expects_nothing(plan.span, &plan.title));
        }
        run_plan(program, &plan, ways, &mut report, &mut sink);
    }
    report.problems = sink.finish();
    report.time = start.elapsed();
    report
}

/// One instance, ready to run every way.
struct Prepared {
    kernel: ir::Kernel,
    /// As the interpreter runs it: the meaning, and the same after the rewrites for code.
    meaning: ir::Kernel,
    optimised: ir::Kernel,
    /// As a network of roles for tensor cores, if there is one.
    network: Option<ir::Kernel>,
    compiled: Vec<Compiled>,
}

fn run_plan(
    program: &Program<'_>,
    plan: &Plan<'_>,
    ways: &Ways<'_>,
    report: &mut Report,
    sink: &mut Sink,
) {
    let mut prepared: Vec<(String, Option<Prepared>)> = vec![];
    let mut results: Vec<(&Case, Vec<BTreeMap<String, Data>>)> = vec![];
    let cpu = plan.targets.contains(&TestTarget::Cpu);
    if plan.targets.contains(&TestTarget::Sm90) && ways.gpu.is_none() {
        report
            .skipped
            .push("sm90: no GPU was asked for (`--device cuda`)".to_owned());
    }
    for case in &plan.cases {
        let key = format!("{:?} {:?}", case.instance.generics, case.instance.dims);
        if !prepared.iter().any(|(k, _)| *k == key) {
            let one = prepare(program, plan, case, ways, cpu, sink);
            prepared.push((key.clone(), one));
        }
        let Some((_, Some(instance))) = prepared.iter().find(|(k, _)| *k == key) else {
            return;
        };
        if report.ways.is_empty() {
            report.ways = instance
                .compiled
                .iter()
                .map(|one| one.way.clone())
                .collect();
        }
        match run_case(program, plan, case, instance, ways.references, report, sink) {
            Ok(Some(outputs)) => results.push((case, outputs)),
            Ok(None) => {}
            Err(d) => {
                sink.report(*d);
                // One failing case tells the story; the others would repeat it.
                return;
            }
        }
    }
    for same in &plan.same {
        for way in 0..results
            .iter()
            .map(|(_, ways)| ways.len())
            .max()
            .unwrap_or(0)
        {
            if let Err(d) = check_same(same, &results, way) {
                sink.report(*d);
            }
        }
    }
}

fn prepare(
    program: &Program<'_>,
    plan: &Plan<'_>,
    case: &Case,
    ways: &Ways<'_>,
    cpu: bool,
    sink: &mut Sink,
) -> Option<Prepared> {
    let options = ways.options;
    let kernel = driver::instance(program, plan.kernel, &case.instance, sink)?;
    let mut lowered =
        |lower: fn(&ir::Kernel) -> Result<ir::Kernel, Box<Diagnostic>>| match lower(&kernel) {
            Ok(lowered) => Some(lowered),
            Err(d) => {
                sink.report(*d);
                None
            }
        };
    let meaning = lowered(driver::expand)?;
    let optimised = lowered(driver::optimise_for_cpu)?;
    let network = match schedule::network(&kernel, &SM_90A) {
        Ok(network) => network.ok().map(|network| {
            let mut kernel = network.kernel;
            // What is one instruction on a GPU is arithmetic in the interpreter.
            pass::expand_math(&mut kernel);
            kernel
        }),
        Err(error) => {
            sink.report(say::internal(kernel.span, &kernel.name, &error.to_string()));
            return None;
        }
    };
    let mut compiled = vec![];
    if cpu {
        let variants: Vec<CpuVariant> = options
            .cpu
            .iter()
            .copied()
            .filter(|&v| features::is_supported(v))
            .collect();
        let options = Options {
            cpu: variants.clone(),
            ptx: false,
            ..options.clone()
        };
        let archive = driver::compile(std::slice::from_ref(&kernel), &options, sink)?;
        for variant in variants {
            for threads in [1, 2] {
                compiled.push(load(&archive, &kernel, variant, threads, sink)?);
            }
        }
    }
    if let Some(gpu) = ways.gpu {
        let fast = Options {
            cpu: vec![],
            ptx: true,
            ..options.clone()
        };
        let plain = Options {
            tensor_cores: false,
            ..fast.clone()
        };
        let kernels = std::slice::from_ref(&kernel);
        let archive = driver::compile(kernels, &fast, sink)?;
        let (has_plain, has_tensor_cores) = codes_of(&archive);
        if has_plain {
            let archive = driver::compile(kernels, &plain, sink)?;
            compiled.push(Compiled {
                way: gpu.to_string(),
                kernel: load_on(&archive, &kernel, gpu, sink)?,
                exact: true,
            });
        }
        if has_tensor_cores {
            compiled.push(Compiled {
                way: format!("{gpu}, tensor cores"),
                kernel: load_on(&archive, &kernel, gpu, sink)?,
                exact: false,
            });
        }
    }
    Some(Prepared {
        kernel,
        meaning,
        optimised,
        network,
        compiled,
    })
}

/// Whether an archive has plain code for GPUs, and code for tensor cores.
fn codes_of(archive: &[u8]) -> (bool, bool) {
    let Ok(archive) = tessera_artifact::Archive::read(archive) else {
        return (false, false);
    };
    let codes: Vec<bool> = (archive.manifest().kernels.iter())
        .flat_map(|k| &k.ptx)
        .map(|code| code.tensor_cores)
        .collect();
    (codes.contains(&false), codes.contains(&true))
}

/// The interpreter's outputs, and those of code with other sums; `None` where an expected error came.
fn run_case(
    program: &Program<'_>,
    plan: &Plan<'_>,
    case: &Case,
    instance: &Prepared,
    references: bool,
    report: &mut Report,
    sink: &mut Sink,
) -> Result<Option<Vec<BTreeMap<String, Data>>>, Box<Diagnostic>> {
    let inputs = inputs(plan, case, &instance.kernel)?;
    if !plan.errors.is_empty() {
        return expect_errors(plan, case, instance, &inputs).map(|()| None);
    }
    let stopped =
        |way: &str, what: &str| Box::new(say::run_failed(plan.span, way, &case.label, what));

    let meaning = interpret(&instance.meaning, &inputs, 0)
        .map_err(|e| blame(e, "the interpreter", &case.label))?;
    // Any order of CTAs and roles is right, so another must give the same.
    let shuffled = interpret(&instance.meaning, &inputs, 0x5EED)
        .map_err(|e| blame(e, "the interpreter", &case.label))?;
    equal_bits(
        plan,
        case,
        "the interpreter",
        &meaning,
        "the interpreter in another order",
        &shuffled,
    )?;
    let optimised = interpret(&instance.optimised, &inputs, 0)
        .map_err(|e| blame(e, "the rewritten kernel", &case.label))?;
    equal_bits(
        plan,
        case,
        "the interpreter",
        &meaning,
        "the rewritten kernel",
        &optimised,
    )?;
    if let Some(network) = &instance.network {
        // Roles in an order of the seed's: no order may change a bit, and none may get stuck.
        let network = interpret(network, &inputs, 0x5EED)
            .map_err(|e| blame(e, "the network of roles", &case.label))?;
        equal_bits(
            plan,
            case,
            "the interpreter",
            &meaning,
            "the network of roles",
            &network,
        )?;
    }
    let mut results = vec![];
    for Compiled { way, kernel, exact } in &instance.compiled {
        let outputs = launch(kernel, &inputs, 0).map_err(|e| stopped(way, &e.to_string()))?;
        if !exact {
            judge(program, plan, case, &inputs, &outputs, report, sink)?;
            results.push(outputs);
            continue;
        }
        equal_bits(
            plan,
            case,
            "the interpreter",
            &meaning,
            &format!("compiled code ({way})"),
            &outputs,
        )?;
    }
    if let Some(Compiled { way, kernel, exact }) = instance.compiled.first() {
        let outputs = launch(kernel, &inputs, 1).map_err(|e| stopped(way, &e.to_string()))?;
        match exact {
            true => equal_bits(
                plan,
                case,
                "the interpreter",
                &meaning,
                &format!("compiled code on strided tensors ({way})"),
                &outputs,
            )?,
            false => judge(program, plan, case, &inputs, &outputs, report, sink)?,
        }
    }
    if references {
        judge(program, plan, case, &inputs, &meaning, report, sink)?;
    }
    results.insert(0, meaning);
    Ok(Some(results))
}

fn expect_errors(
    plan: &Plan<'_>,
    case: &Case,
    instance: &Prepared,
    inputs: &Inputs,
) -> Result<(), Box<Diagnostic>> {
    let outcome = match instance.compiled.first() {
        Some(Compiled { kernel, .. }) => launch(kernel, inputs, 0).err().map(|e| e.to_string()),
        None => interpret(&instance.meaning, inputs, 0)
            .err()
            .map(|e| e.kind.to_string()),
    };
    for (text, span) in &plan.errors {
        if !outcome.as_ref().is_some_and(|found| found.contains(text)) {
            return Err(Box::new(say::error_expected(
                *span,
                text,
                &case.label,
                outcome.as_deref(),
            )));
        }
    }
    Ok(())
}
