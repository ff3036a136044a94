//! Which instances each kernel has: sets of generic arguments, and dims that an instance takes one value of.
//!
//! Keeps: instances that fix dims come first, those that fix more before those that fix fewer, else in the order of the text; whoever
//! fixes dims takes every batch that the others take with these dims, so that the code of a row does not depend on its batch.

use super::constant::Const;
use super::evaluate::{self, Evaluator};
use super::header;
use super::program::{Program, nearest};
use crate::diag::Sink;
use crate::diag::catalogue::sema as say;
use crate::source::Span;
use crate::syntax::ast::{self, Clause, GenericKind};
use crate::tile::ir::{self, Contract, GenericValue};
use tessera_artifact::HostExpr;

/// One set of generic arguments of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// In declaration order.
    pub generics: Vec<(String, GenericValue)>,
    /// Dims that it takes one value of, in declaration order.
    pub dims: Vec<(String, i64)>,
    /// Where it is asked for.
    pub span: Span,
}

impl Instance {
    /// Whether its generics are these, as far as they are given.
    pub fn has(&self, given: &[(String, GenericValue)]) -> bool {
        given.iter().all(|one| self.generics.contains(one))
    }
}

/// What a kernel's `tune` clauses list.
#[derive(Clone, Debug, Default)]
pub struct Tuned {
    /// The dims that a choice depends on; none: all that do not change with the batch.
    pub dims: Vec<String>,
    /// Generics with the values to try.
    pub values: Vec<(String, Vec<GenericValue>)>,
}

/// Of the values that `tune` lists: each is compiled and measured.
const MOST_COMBINATIONS: usize = 1000;

impl Program<'_> {
    /// The instances that the text asks for: the `instances` blocks, and the one of all defaults where these list only such as fix dims.
    pub fn instances(&self, kernel: usize, sink: &mut Sink) -> Vec<Instance> {
        let k = &self.kernels[kernel];
        let mut out: Vec<Instance> = vec![];
        if k.is_library && k.instances.is_empty() {
            return out;
        }
        for (args, span) in k.instances.iter().flat_map(|i| &i.list) {
            let Some(instance) = self.instance(kernel, args, *span, sink) else {
                continue;
            };
            let same = |o: &&Instance| o.generics == instance.generics && o.dims == instance.dims;
            match out.iter().find(same) {
                Some(first) => sink.report(say::duplicate_instance(*span, first.span)),
                None => out.push(instance),
            }
        }
        let lists_general = k.instances.iter().flat_map(|i| &i.list).any(|(args, _)| {
            !(args.iter()).any(|a| a.name.as_ref().is_some_and(|n| is_dim(k.ast, &n.name)))
        });
        let has_defaults = k.ast.generics.iter().all(|g| g.default.is_some());
        if k.instances.is_empty() || (!lists_general && has_defaults) {
            out.extend(self.bind(kernel, &[], k.ast.name.span, sink));
        }
        out.sort_by_key(|instance| std::cmp::Reverse(instance.dims.len()));
        out
    }

    fn instance(
        &self,
        kernel: usize,
        args: &[ast::Arg],
        span: Span,
        sink: &mut Sink,
    ) -> Option<Instance> {
        let k = &self.kernels[kernel];
        let mut given: Vec<(String, GenericValue)> = vec![];
        let mut dims: Vec<(String, i64)> = vec![];
        let mut good = true;
        for arg in args {
            let Some(name) = &arg.name else {
                sink.report(say::instance_argument_without_name(arg.span, k.ast));
                good = false;
                continue;
            };
            let before = given
                .iter()
                .map(|(n, _)| n)
                .chain(dims.iter().map(|(n, _)| n));
            if before.into_iter().any(|n| *n == name.name) {
                sink.report(say::generic_given_twice(name));
                good = false;
                continue;
            }
            let cx = Evaluator::new(self, k.module);
            if let Some(generic) = k.ast.generics.iter().find(|g| g.name.name == name.name) {
                let value = cx.constant(&arg.value, sink);
                match value.and_then(|v| generic_value(v, generic, arg.value.span, sink)) {
                    Some(v) => given.push((name.name.clone(), v)),
                    None => good = false,
                }
            } else if is_dim(k.ast, &name.name) {
                match cx.constant_int(&arg.value, sink) {
                    Some(v) => dims.push((name.name.clone(), v)),
                    None => good = false,
                }
            } else {
                sink.report(say::unknown_generic(name, k.ast));
                good = false;
            }
        }
        dims.sort_by_key(|(name, _)| dim_names(k.ast).position(|n| n == name));
        let instance = self.bind(kernel, &given, span, sink)?;
        good.then_some(Instance { dims, ..instance })
    }

    /// What the kernel's `tune` clauses list, if it has any; what is wrong with them is reported.
    pub fn tuned(&self, kernel: usize, sink: &mut Sink) -> Option<Tuned> {
        let k = &self.kernels[kernel];
        let cx = Evaluator::new(self, k.module);
        let mut out: Option<Tuned> = None;
        for clause in &k.ast.clauses {
            let Clause::Tune(dims, lines, span) = clause else {
                continue;
            };
            let out = out.get_or_insert_default();
            for dim in dims {
                match is_dim(k.ast, &dim.name) {
                    true if out.dims.contains(&dim.name) => {
                        sink.report(say::generic_given_twice(dim))
                    }
                    true => out.dims.push(dim.name.clone()),
                    false => {
                        let near = nearest(&dim.name, dim_names(k.ast));
                        sink.report(say::contract_of_no_dim(dim.span, &dim.name, near));
                    }
                }
            }
            for (name, values) in lines {
                let Some(generic) = k.ast.generics.iter().find(|g| g.name.name == name.name) else {
                    sink.report(say::unknown_generic(name, k.ast));
                    continue;
                };
                if out.values.iter().any(|(n, _)| *n == name.name) {
                    sink.report(say::generic_given_twice(name));
                    continue;
                }
                let mut distinct: Vec<GenericValue> = vec![];
                for value in values {
                    let found = cx.constant(value, sink);
                    let found = found.and_then(|v| generic_value(v, generic, value.span, sink));
                    distinct.extend(found.filter(|v| !distinct.contains(v)));
                }
                out.values.push((name.name.clone(), distinct));
            }
            let counts = out.values.iter().map(|(_, values)| values.len().max(1));
            let count = counts.fold(1usize, |n, more| n.saturating_mul(more));
            if count > MOST_COMBINATIONS {
                sink.report(say::too_many_combinations(*span, count, MOST_COMBINATIONS));
                return None;
            }
        }
        out
    }

    /// Whether the ranges of an instance take these dims.
    pub fn takes(
        &self,
        kernel: usize,
        instance: &Instance,
        value: &dyn Fn(&str) -> Option<i64>,
    ) -> bool {
        let (k, _) = header::build(self, kernel, instance, &mut Sink::default());
        let fixes = |d: &ir::Dim| instance.dims.iter().any(|(name, _)| *name == d.name);
        (k.dims.iter()).all(|d| value(&d.name).map_or(!fixes(d), |v| d.takes(v)))
    }

    /// The parameters of an instance.
    pub fn params(&self, kernel: usize, instance: &Instance) -> Vec<ir::Param> {
        header::build(self, kernel, instance, &mut Sink::default())
            .0
            .params
    }

    /// Names of a kernel's dims.
    pub fn dim_names(&self, kernel: usize) -> impl Iterator<Item = &str> {
        dim_names(self.kernels[kernel].ast)
    }

    /// Names of the dims that change with the batch: those of `batch_invariant(..)`, and those that `requires` sets beside such a one.
    pub fn batch_dims(&self, kernel: usize, instance: &Instance) -> Vec<String> {
        let (k, _) = header::build(self, kernel, instance, &mut Sink::default());
        batch_dims(&k).iter().map(|d| d.name.clone()).collect()
    }

    /// Completes `given` by the defaults and checks kinds and `where` clauses.
    pub fn bind(
        &self,
        kernel: usize,
        given: &[(String, GenericValue)],
        span: Span,
        sink: &mut Sink,
    ) -> Option<Instance> {
        let k = &self.kernels[kernel];
        let mut generics: Vec<(String, GenericValue)> = vec![];
        let mut missing = vec![];
        let mut good = true;
        for g in &k.ast.generics {
            let name = &g.name.name;
            if let Some((_, value)) = given.iter().find(|(n, _)| n == name) {
                generics.push((name.clone(), value.clone()));
                continue;
            }
            let Some(default) = &g.default else {
                missing.push(name.as_str());
                continue;
            };
            // A default may use the generics before it.
            let value = Evaluator::new(self, k.module)
                .with_generics(&generics)
                .constant(default, sink)
                .and_then(|v| generic_value(v, g, default.span, sink));
            match value {
                Some(v) => generics.push((name.clone(), v)),
                None => good = false,
            }
        }
        if !missing.is_empty() {
            sink.report(say::generic_without_value(span, k.ast, &missing));
            return None;
        }
        let instance = Instance {
            generics,
            dims: vec![],
            span,
        };
        (good && self.check_where(kernel, &instance, sink)).then_some(instance)
    }

    fn check_where(&self, kernel: usize, instance: &Instance, sink: &mut Sink) -> bool {
        let k = &self.kernels[kernel];
        let mut good = true;
        for clause in &k.ast.clauses {
            let ast::Clause::Where(constraints, _) = clause else {
                continue;
            };
            for c in constraints {
                let mut cx = Evaluator::new(self, k.module).with_generics(&instance.generics);
                super::header::bind_launch_names(k.ast, &mut cx);
                match cx.constraint(c, sink) {
                    Some(true) => {}
                    Some(false) => {
                        let values = evaluate::values_in(c, &cx);
                        sink.report(say::where_fails(c, instance, &values));
                        good = false;
                    }
                    None => good = false,
                }
            }
        }
        good
    }
}

fn generic_value(
    value: Const,
    generic: &ast::Generic,
    span: Span,
    sink: &mut Sink,
) -> Option<GenericValue> {
    Some(match (generic.kind, value) {
        (GenericKind::Int, Const::Int(i)) if i64::try_from(i).is_ok() => {
            GenericValue::Int(i as i64)
        }
        (GenericKind::Bool, Const::Bool(b)) => GenericValue::Bool(b),
        (GenericKind::DType, Const::DType(d)) => GenericValue::DType(d),
        (_, value) => {
            sink.report(say::generic_of_wrong_kind(span, generic, &value));
            return None;
        }
    })
}

fn dim_names(kernel: &ast::Kernel) -> impl Iterator<Item = &str> {
    let lists = kernel.clauses.iter().filter_map(|clause| match clause {
        Clause::Dims(list, _) => Some(list),
        _ => None,
    });
    lists.flatten().map(|d| d.name.name.as_str())
}

fn is_dim(kernel: &ast::Kernel, name: &str) -> bool {
    dim_names(kernel).any(|n| n == name)
}

/// The dims that change with the batch: those of `batch_invariant(..)`, and those that `requires` sets beside such a one (`P >= M`).
pub(super) fn batch_dims(k: &ir::Kernel) -> Vec<&ir::Dim> {
    let mut found: Vec<&ir::Dim> = (k.contracts.iter())
        .filter_map(|contract| match contract {
            Contract::BatchInvariant(dim, _) => k.dims.get(dim.0 as usize),
            Contract::Deterministic(_) => None,
        })
        .collect();
    let related: Vec<Vec<&str>> = k.requires.iter().map(|r| dims_in(&r.cond)).collect();
    loop {
        let reaches = |names: &&Vec<&str>| found.iter().any(|d| names.contains(&d.name.as_str()));
        let names: Vec<&str> = related.iter().filter(reaches).flatten().copied().collect();
        let more = (k.dims.iter())
            .find(|d| names.contains(&d.name.as_str()) && found.iter().all(|f| f.name != d.name));
        match more {
            Some(dim) => found.push(dim),
            None => return found,
        }
    }
}

fn dims_in(e: &HostExpr) -> Vec<&str> {
    let mut names = vec![];
    e.walk(&mut |part| {
        if let HostExpr::Dim(name) = part {
            names.push(name.as_str());
        }
    });
    names
}

/// Reports dims in `tune` clauses that change with the batch.
pub(super) fn check_tuned(kernel: &ir::Kernel, ast: &ast::Kernel, sink: &mut Sink) {
    let batch = batch_dims(kernel);
    for clause in &ast.clauses {
        let Clause::Tune(dims, ..) = clause else {
            continue;
        };
        for dim in dims
            .iter()
            .filter(|d| batch.iter().any(|b| b.name == d.name))
        {
            sink.report(say::fixed_batch(dim.span, &dim.name));
        }
    }
}

/// Reports instances that fix dims and leave some batches of these dims to instances that do not.
pub fn check_batches(all: &[(Instance, ir::Kernel)], sink: &mut Sink) {
    for (at, (instance, kernel)) in all.iter().enumerate() {
        let first = all
            .iter()
            .position(|(other, _)| other.dims == instance.dims);
        if instance.dims.is_empty() || first != Some(at) {
            continue;
        }
        let fixes_the_same = |other: &Instance| other.dims == instance.dims;
        for batch in batch_dims(kernel) {
            let ranges = |wanted: bool| {
                (all.iter())
                    .filter(move |(i, _)| {
                        if wanted {
                            i.dims.is_empty()
                        } else {
                            fixes_the_same(i)
                        }
                    })
                    .filter(|(_, k)| k.dims.iter().all(|d| takes_fixed(d, instance)))
                    .filter_map(|(_, k)| k.dims.iter().find(|d| d.name == batch.name))
            };
            let have: Vec<&ir::Dim> = ranges(false).collect();
            if let Some(left) = ranges(true).find_map(|want| first_left(want, &have)) {
                sink.report(say::batches_left(instance, &batch.name, left));
            }
        }
    }
}

fn takes_fixed(dim: &ir::Dim, instance: &Instance) -> bool {
    let fixed = instance.dims.iter().find(|(name, _)| *name == dim.name);
    fixed.is_none_or(|(_, value)| dim.takes(*value))
}

/// The first value of one range that is in none of the others.
fn first_left(want: &ir::Dim, have: &[&ir::Dim]) -> Option<i64> {
    let mut at = want.lo;
    while at <= want.hi {
        let takes = |h: &&&ir::Dim| h.takes(at) && want.step % h.step == 0;
        let reaches = have.iter().filter(takes).map(|h| h.hi).max();
        let Some(reaches) = reaches else {
            return Some(at);
        };
        at = (reaches.div_euclid(want.step) + 1) * want.step;
    }
    None
}
