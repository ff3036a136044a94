//! Runs a test: interpreter, every CPU variant this machine has, references, and the verdict.
//!
//! Each case runs in the interpreter on the kernel as written and on the kernel as rewritten for code, and as compiled code of
//! every variant, on one thread and on two, dense and with gaps between rows. All must have the same bits; the reference judges them.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use tessera_artifact::{CpuVariant, ParamMode};
use tessera_device::{
    Arg, CpuOptions, Device, Kernel, LaunchError, Library, Place, Scalar, Tensor, TensorError,
    ViewMut, cpu::features,
};

use super::compare::{Verdict, compare};
use super::data::Data;
use super::plan::{Case, Expect, Input, Inputs, Plan, TestTarget, inputs};
use super::reference::{self, Known};
use crate::diag::catalogue::testing as say;
use crate::diag::{Diagnostic, Sink};
use crate::driver::{self, Options};
use crate::schedule;
use crate::sema::{Const, Evaluator, Program};
use crate::source::SourceMap;
use crate::syntax::ast::{self, File};
use crate::target::nvptx::SM_90A;
use crate::tile::{interp, ir};

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
    let mut report = Report {
        title: test.title.clone(),
        kernel: program.kernels[kernel].name.clone(),
        cases: 0,
        closest: None,
        ways: vec![],
        problems: vec![],
        skipped: vec![],
        time: Duration::ZERO,
    };
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

struct Compiled {
    /// `avx2, 1 thread`
    way: String,
    kernel: Kernel,
    /// Held to the interpreter's bits; otherwise to the references.
    exact: bool,
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
        let key = format!("{:?}", case.instance.generics);
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
        Ok(network) => network.ok().map(|network| network.kernel),
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
        let archive = driver::compile(std::slice::from_ref(&kernel), &plain, sink)?;
        compiled.push(Compiled {
            way: gpu.to_string(),
            kernel: load_on(&archive, &kernel, gpu, sink)?,
            exact: true,
        });
        let archive = match options.tensor_cores {
            true => driver::compile(std::slice::from_ref(&kernel), &fast, sink)?,
            false => archive,
        };
        if has_tensor_cores(&archive) {
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

fn has_tensor_cores(archive: &[u8]) -> bool {
    tessera_artifact::Archive::read(archive).is_ok_and(|archive| {
        let kernels = archive.manifest().kernels.iter();
        kernels.flat_map(|k| &k.ptx).any(|code| code.tensor_cores)
    })
}

fn load(
    archive: &[u8],
    kernel: &ir::Kernel,
    variant: CpuVariant,
    threads: usize,
    sink: &mut Sink,
) -> Option<Compiled> {
    let mut fault = |what: String| {
        sink.report(say::internal(kernel.span, &kernel.name, &what));
        None
    };
    let device = match Device::cpu_with(CpuOptions {
        threads: NonZeroUsize::new(threads),
        variant: Some(variant),
    }) {
        Ok(device) => device,
        Err(error) => return fault(format!("no threads: {error}")),
    };
    let way = format!(
        "{variant}, {threads} thread{}",
        if threads == 1 { "" } else { "s" }
    );
    load_on(archive, kernel, &device, sink).map(|kernel| Compiled {
        way,
        kernel,
        exact: true,
    })
}

fn load_on(
    archive: &[u8],
    kernel: &ir::Kernel,
    device: &Device,
    sink: &mut Sink,
) -> Option<Kernel> {
    let loaded = Library::load(archive, device)
        .map_err(|error| error.to_string())
        .and_then(|library| match library.kernel(&kernel.name) {
            Ok(loaded) => Ok(loaded.clone()),
            Err(error) => Err(error.to_string()),
        });
    match loaded {
        Ok(loaded) => Some(loaded),
        Err(what) => {
            sink.report(say::internal(kernel.span, &kernel.name, &what));
            None
        }
    }
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
    if let Some(Compiled { way, kernel, .. }) = instance.compiled.first() {
        let outputs = launch(kernel, &inputs, 1).map_err(|e| stopped(way, &e.to_string()))?;
        equal_bits(
            plan,
            case,
            "the interpreter",
            &meaning,
            &format!("compiled code on strided tensors ({way})"),
            &outputs,
        )?;
    }
    if references {
        judge(program, plan, case, &inputs, &meaning, report, sink)?;
    }
    results.insert(0, meaning);
    Ok(Some(results))
}

fn blame(error: interp::InterpError, way: &str, case: &str) -> Box<Diagnostic> {
    let place = if error.place.is_empty() {
        String::new()
    } else {
        format!(" in {}", error.place)
    };
    Box::new(say::run_failed(
        error.span,
        way,
        case,
        &format!("{}{place}", error.kind),
    ))
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

/// The written tensors after a run in the interpreter.
fn interpret(
    kernel: &ir::Kernel,
    inputs: &Inputs,
    seed: u64,
) -> Result<BTreeMap<String, Data>, interp::InterpError> {
    let mut args = arguments(inputs);
    interp::run(
        kernel,
        &mut args,
        &interp::Options {
            seed,
            ..interp::Options::default()
        },
    )?;
    Ok(outputs(inputs, &args))
}

fn arguments(inputs: &Inputs) -> interp::Args {
    interp::Args(
        (inputs.params.iter())
            .map(|input| match input {
                Input::Tensor { data, .. } => interp::Arg::Tensor(data.to_buffer()),
                Input::Scalar { bits, .. } => interp::Arg::Scalar(*bits),
                Input::Index { value, .. } => interp::Arg::Index(*value),
                Input::Host => interp::Arg::Absent,
            })
            .collect(),
    )
}

fn outputs(inputs: &Inputs, args: &interp::Args) -> BTreeMap<String, Data> {
    let mut outputs = BTreeMap::new();
    for (input, arg) in inputs.params.iter().zip(&args.0) {
        if let (Input::Tensor { name, mode, data }, interp::Arg::Tensor(buffer)) = (input, arg)
            && mode.is_written()
        {
            let mut data = data.clone();
            data.read_buffer(buffer);
            outputs.insert(name.clone(), data);
        }
    }
    outputs
}

/// As a test runs it in the interpreter, with a call for every tile that is written; the lines that it printed besides.
///
/// # Errors
/// What the interpreter found, at its place.
pub fn interpret_traced(
    kernel: &ir::Kernel,
    inputs: &Inputs,
    case: &str,
    trace: &mut dyn FnMut(&str, &str, &[u64], &[Option<f64>]),
) -> Result<(BTreeMap<String, Data>, Vec<String>), Box<Diagnostic>> {
    let mut args = arguments(inputs);
    let mut each = |event: &interp::TraceEvent<'_>| {
        trace(&event.place, event.name, event.shape, &event.values)
    };
    let report = interp::run_traced(kernel, &mut args, &interp::Options::default(), &mut each)
        .map_err(|error| blame(error, "the interpreter", case))?;
    Ok((outputs(inputs, &args), report.prints))
}

/// The kernel as compiled code of the best variant, on all threads.
pub fn compiled(kernel: &ir::Kernel, options: &Options, sink: &mut Sink) -> Option<Kernel> {
    let variant = match features::choose(options.cpu.iter().copied(), None) {
        Ok(variant) => variant,
        Err(error) => {
            sink.report(say::run_failed(
                kernel.span,
                "compiled code",
                "",
                &error.to_string(),
            ));
            return None;
        }
    };
    let options = Options {
        cpu: vec![variant],
        ptx: false,
        ..options.clone()
    };
    let archive = driver::compile(std::slice::from_ref(kernel), &options, sink)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    load(&archive, kernel, variant, threads, sink).map(|one| one.kernel)
}

/// A tensor of a launch, perhaps with unused columns at the end of its rows.
struct Held {
    name: String,
    mode: ParamMode,
    tensor: Tensor,
    shape: Vec<i64>,
}

/// The written tensors after a launch of compiled code. `gap`: how many times 4096 bits lie unused at the end of each row.
///
/// # Errors
/// The launch's.
pub fn launch(
    kernel: &Kernel,
    inputs: &Inputs,
    gap: i64,
) -> Result<BTreeMap<String, Data>, LaunchError> {
    let no_memory = |why: TensorError| LaunchError::Device {
        kernel: kernel.name().to_owned(),
        what: why.to_string(),
    };
    let mut held: Vec<Option<Held>> = vec![];
    for input in &inputs.params {
        held.push(match input {
            Input::Tensor { name, mode, data } => {
                let mut held = hold(name, *mode, data, gap).map_err(no_memory)?;
                if kernel.device().place() != Place::Host {
                    held.tensor = held.tensor.to_device(kernel.device()).map_err(no_memory)?;
                }
                Some(held)
            }
            _ => None,
        });
    }
    let mut args: Vec<Arg<'_>> = vec![];
    for (input, held) in inputs.params.iter().zip(&mut held) {
        match (input, held) {
            (Input::Tensor { mode, .. }, Some(held)) => {
                let view = rectangle(held).map_err(no_memory)?;
                args.push(if mode.is_written() {
                    view.into()
                } else {
                    Arg::TensorMut(view)
                });
            }
            (Input::Scalar { dtype, bits, .. }, _) => {
                let value = tessera_artifact::numeric::to_f64(*bits, *dtype);
                args.push(Arg::Scalar(Scalar {
                    dtype: *dtype,
                    bits: *bits,
                    value,
                }));
            }
            (Input::Index { value, .. }, _) => args.push(Arg::Index(*value)),
            _ => {}
        }
    }
    kernel.launch(&args)?;
    drop(args);
    let mut outputs = BTreeMap::new();
    for (input, held) in inputs.params.iter().zip(held) {
        if let (Input::Tensor { data, .. }, Some(mut held)) = (input, held)
            && held.mode.is_written()
        {
            if held.tensor.place() != Place::Host {
                held.tensor = held.tensor.to_host().map_err(no_memory)?;
            }
            let dense = rectangle(&mut held)
                .and_then(|v| v.to_tensor())
                .map_err(no_memory)?;
            let mut data = data.clone();
            data.read_tensor(&dense);
            outputs.insert(held.name, data);
        }
    }
    Ok(outputs)
}

fn hold(name: &str, mode: ParamMode, data: &Data, gap: i64) -> Result<Held, TensorError> {
    let mut wide = data.shape.clone();
    if let (Some(last), true) = (wide.last_mut(), data.shape.len() > 1) {
        *last += gap * 4096 / data.dtype.bits() as i64;
        // Rows stay aligned to whatever the parameter asks for.
        if gap > 0 {
            let step = 4096 / data.dtype.bits() as i64;
            *last = (*last + step - 1) / step * step;
        }
    }
    let mut held = Held {
        name: name.to_owned(),
        mode,
        tensor: Tensor::zeros(data.dtype, &wide)?,
        shape: data.shape.clone(),
    };
    let dense = data.to_tensor()?;
    rectangle(&mut held)?.copy_from(&dense.view())?;
    Ok(held)
}

/// The tensor that the kernel sees.
fn rectangle(held: &mut Held) -> Result<ViewMut<'_>, TensorError> {
    let view = held.tensor.view_mut()?;
    match held.shape.last() {
        Some(&extent) => view.slice(held.shape.len() - 1, 0..extent),
        None => Ok(view),
    }
}

fn equal_bits(
    plan: &Plan<'_>,
    case: &Case,
    one: &str,
    a: &BTreeMap<String, Data>,
    other: &str,
    b: &BTreeMap<String, Data>,
) -> Result<(), Box<Diagnostic>> {
    for (name, x) in a {
        let y = &b[name];
        let differences = x.differences(y);
        if let Some(&i) = differences.first() {
            let fact = format!(
                "{} of {} elements differ; the first is {name}{:?}: {} ({:#x}) and {} ({:#x})",
                differences.len(),
                x.len(),
                x.coordinates(i),
                x.value(i),
                x.bits[i],
                y.value(i),
                y.bits[i]
            );
            return Err(Box::new(say::ways_differ(
                plan.span,
                name,
                one,
                other,
                &case.label,
                fact,
            )));
        }
    }
    Ok(())
}

/// Compares with the references; every expectation that fails is reported.
fn judge(
    program: &Program<'_>,
    plan: &Plan<'_>,
    case: &Case,
    inputs: &Inputs,
    outputs: &BTreeMap<String, Data>,
    report: &mut Report,
    sink: &mut Sink,
) -> Result<(), Box<Diagnostic>> {
    let mut truths: Vec<(&str, BTreeMap<String, reference::Array>)> = vec![];
    let mut failed = None;
    for expect in &plan.expects {
        let Some(got) = outputs.get(&expect.tensor) else {
            return Err(Box::new(say::wrong_argument(
                expect.span,
                &format!(
                    "`{}` is an input; only what a kernel writes can be expected",
                    expect.tensor
                ),
            )));
        };
        let name = expect.reference_name.as_str();
        if !truths.iter().any(|(n, _)| *n == name) {
            truths.push((name, truth(program, plan, case, expect, inputs)?));
        }
        let truth = truths
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, arrays)| arrays);
        let zeros = vec![0.0; got.len()];
        let want = truth
            .and_then(|arrays| arrays.get(&expect.tensor))
            .map_or(&zeros, |a| &a.data);
        let verdict = compare(got, want, &expect.tolerance);
        if let Some(worst) = &verdict.worst
            && report
                .closest
                .as_ref()
                .is_none_or(|(_, share)| worst.share > *share)
        {
            report.closest = Some((expect.tensor.clone(), worst.share));
        }
        if !verdict.passed {
            failed = Some(Box::new(say::not_as_expected(
                expect.span,
                &expect.tensor,
                name,
                &case.label,
                facts(&expect.tensor, &verdict),
            )));
            if let Some(d) = &failed {
                sink.report((**d).clone());
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn facts(tensor: &str, verdict: &Verdict) -> Vec<String> {
    let mut facts = vec![format!(
        "{} of {} elements are too far off",
        verdict.wrong, verdict.elements
    )];
    if let Some(w) = &verdict.worst {
        let place: Vec<String> = w.at.iter().map(|i| i.to_string()).collect();
        facts.push(format!(
            "the worst is {tensor}[{}]: {:e} instead of {:e}, off by {:.3e}, {:.3} times what is allowed",
            place.join(", "),
            w.got,
            w.want,
            w.error,
            w.share
        ));
    }
    if verdict.off_by_one > 0 {
        facts.push(format!(
            "{} elements are off by one code",
            verdict.off_by_one
        ));
    }
    facts
}

/// The reference's tensors for these inputs; empty for `zeros`.
fn truth(
    program: &Program<'_>,
    plan: &Plan<'_>,
    case: &Case,
    expect: &Expect<'_>,
    inputs: &Inputs,
) -> Result<BTreeMap<String, reference::Array>, Box<Diagnostic>> {
    let mut arrays = BTreeMap::new();
    let Some(reference) = expect.reference else {
        return Ok(arrays);
    };
    for input in &inputs.params {
        if let Input::Tensor { name, data, .. } = input {
            arrays.insert(name.clone(), data.to_array());
        }
    }
    let module = program.kernels[plan.kernel].module;
    let known = |name: &str| -> Option<Known> {
        if let Some(&dim) = inputs.dims.get(name) {
            return Some(Known::Int(dim as i128));
        }
        if let Some(&scalar) = inputs.scalars.get(name) {
            return Some(Known::Float(scalar));
        }
        constant(program, module, name, case).and_then(|c| match c {
            Const::Int(i) => Some(Known::Int(i)),
            Const::Float(x) => Some(Known::Float(x)),
            Const::Bool(b) => Some(Known::Bool(b)),
            Const::DType(d) => Some(Known::DType(d)),
            Const::Str(_) => None,
        })
    };
    reference::run(&reference.body, &known, &mut arrays)?;
    Ok(arrays)
}

/// A generic, a constant of the module or a built-in one.
fn constant(program: &Program<'_>, module: usize, name: &str, case: &Case) -> Option<Const> {
    let span = crate::source::Span::default();
    let segments = name
        .split("::")
        .map(|s| ast::Ident {
            name: s.to_owned(),
            span,
        })
        .collect();
    let path = ast::Path { segments, span };
    let e = ast::Expr {
        kind: ast::ExprKind::Name(path),
        span,
    };
    let evaluator = Evaluator::new(program, module).with_generics(&case.instance.generics);
    evaluator.constant(&e, &mut Sink::default())
}

fn check_same(
    same: &super::plan::Same,
    results: &[(&Case, Vec<BTreeMap<String, Data>>)],
    way: usize,
) -> Result<(), Box<Diagnostic>> {
    let mut first: Option<(&Case, &[u64])> = None;
    for (case, outputs) in results {
        let Some(data) = outputs.get(way).and_then(|o| o.get(&same.tensor)) else {
            continue;
        };
        let bits = match same.rows {
            None => &data.bits[..],
            Some((from, to)) => data.rows(from, to).ok_or_else(|| {
                let extent = data.shape.first().copied().unwrap_or(0);
                Box::new(say::rows_missing(
                    same.span,
                    &same.tensor,
                    (from, to),
                    extent,
                    &case.label,
                ))
            })?,
        };
        let Some((other, expected)) = first else {
            first = Some((case, bits));
            continue;
        };
        if bits.len() != expected.len() {
            let fact = format!(
                "they have {} and {} elements there",
                expected.len(),
                bits.len()
            );
            return Err(Box::new(say::bits_depend(
                same.span,
                &same.tensor,
                &other.label,
                &case.label,
                fact,
            )));
        }
        let slice = |bits: &[u64]| Data {
            dtype: data.dtype,
            shape: vec![bits.len() as i64],
            bits: bits.to_vec(),
        };
        if let Some(&i) = slice(expected).differences(&slice(bits)).first() {
            let fact = format!(
                "element {i} there has bits {:#x} and {:#x}",
                expected[i], bits[i]
            );
            return Err(Box::new(say::bits_depend(
                same.span,
                &same.tensor,
                &other.label,
                &case.label,
                fact,
            )));
        }
    }
    Ok(())
}
