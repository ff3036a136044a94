//! Verdicts of a test: whether two ways gave the same bits, what the references say, whether rows are alike in every batch.

use std::collections::BTreeMap;

use super::compare::{Verdict, compare};
use super::data::Data;
use super::plan::{Case, Expect, Input, Inputs, Plan};
use super::reference::{self, Known};
use super::run::Report;
use crate::diag::catalogue::testing as say;
use crate::diag::{Diagnostic, Sink};
use crate::sema::{Const, Evaluator, Program};
use crate::syntax::ast;

pub(super) fn equal_bits(
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
pub(super) fn judge(
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

pub(super) fn check_same(
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
