//! Cases of a test or bench: every combination of its `any`s, with generics bound and inputs described.
//!
//! Needs: collected items. Keeps: names are resolved here, so that running cannot meet an unknown one; every mistake of a test is a
//! diagnostic at its line.

use std::collections::BTreeMap;

use tessera_artifact::{HostExpr, ParamMode, numeric};

use super::compare::Tolerance;
use super::data::Data;
use super::fill::{Distribution, seed_of_name};
use crate::diag::catalogue::testing as say;
use crate::diag::{Diagnostic, Sink};
use crate::sema::{Const, Evaluator, Instance, Program};
use crate::source::Span;
use crate::syntax::ast::{self, Expr, ExprKind, TestLine};
use crate::tile::ir::{self, GenericValue};

const MAX_CASES: usize = 10_000;

/// A test or bench with its lines resolved.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    pub title: String,
    /// Index of the kernel in the program.
    pub kernel: usize,
    pub span: Span,
    pub cases: Vec<Case>,
    pub fills: BTreeMap<String, (Distribution, u64)>,
    pub expects: Vec<Expect<'a>>,
    pub same: Vec<Same>,
    pub errors: Vec<(String, Span)>,
    pub targets: Vec<TestTarget>,
    /// `floor gbps = 2700`.
    pub floors: Vec<(String, f64)>,
}

#[derive(Clone, Debug)]
pub struct Case {
    /// `M = 257, N = 384`: the values of the `any`s, or of everything where there is one case.
    pub label: String,
    /// Of the instances that fix dims the first that takes these dims and has the generics given, as a launch would take it; else the one
    /// of the generics given and defaults.
    pub instance: Instance,
    /// The generics that the lines give.
    pub given: Vec<(String, GenericValue)>,
    /// Dims, `index` scalars and scalars.
    pub values: BTreeMap<String, Const>,
}

impl Case {
    /// The value of a dim.
    pub fn dim(&self, name: &str) -> Option<i64> {
        int(&self.values, name)
    }
}

fn int(values: &BTreeMap<String, Const>, name: &str) -> Option<i64> {
    match values.get(name) {
        Some(Const::Int(i)) => i64::try_from(*i).ok(),
        _ => None,
    }
}

#[derive(Clone, Debug)]
pub struct Expect<'a> {
    pub tensor: String,
    /// `None`: `zeros`.
    pub reference: Option<&'a ast::Reference>,
    pub reference_name: String,
    pub tolerance: Tolerance,
    pub span: Span,
}

/// Equal bits in every case.
#[derive(Clone, Debug)]
pub struct Same {
    pub tensor: String,
    /// Of the first axis; `None`: all.
    pub rows: Option<(usize, usize)>,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestTarget {
    Cpu,
    Sm90,
}

/// Resolves a test; `None` if anything is wrong, which is reported.
pub fn plan<'a>(
    program: &Program<'a>,
    kernel: usize,
    test: &'a ast::Test,
    sink: &mut Sink,
) -> Option<Plan<'a>> {
    let mut mine = Sink::default();
    let plan = Planner {
        program,
        kernel,
        test,
    }
    .plan(&mut mine);
    let good = !mine.has_errors();
    mine.finish().into_iter().for_each(|d| sink.report(d));
    plan.filter(|_| good)
}

struct Planner<'p, 'a> {
    program: &'p Program<'a>,
    kernel: usize,
    test: &'a ast::Test,
}

/// One `name = value` or `name = any(values)`.
struct Choice {
    name: String,
    values: Vec<(Const, Span)>,
    varies: bool,
}

impl<'a> Planner<'_, 'a> {
    fn plan(&self, sink: &mut Sink) -> Option<Plan<'a>> {
        let item = &self.program.kernels[self.kernel];
        let mut choices: Vec<Choice> = vec![];
        let mut plan = Plan {
            title: self.test.title.clone(),
            kernel: self.kernel,
            span: self.test.span,
            cases: vec![],
            fills: BTreeMap::new(),
            expects: vec![],
            same: vec![],
            errors: vec![],
            targets: vec![],
            floors: vec![],
        };
        for line in &self.test.lines {
            match line {
                TestLine::With(args, _) => {
                    args.iter()
                        .for_each(|arg| choices.extend(self.choice(arg, &choices, sink)));
                }
                TestLine::Fill {
                    tensor,
                    distribution,
                    attrs,
                    span,
                } => {
                    self.check_tensor(tensor, sink);
                    match self.fill(&tensor.name, distribution, attrs, *span, sink) {
                        Ok(fill) => {
                            plan.fills.insert(tensor.name.clone(), fill);
                        }
                        Err(d) => sink.report(*d),
                    }
                }
                TestLine::Expect {
                    tensor,
                    against,
                    attrs,
                    span,
                } => {
                    self.check_tensor(tensor, sink);
                    plan.expects
                        .extend(self.expect(tensor, against, attrs, *span, sink));
                }
                TestLine::ExpectSame { tensor, args, span } => {
                    self.check_tensor(tensor, sink);
                    plan.same.extend(self.same(tensor, args, *span, sink));
                }
                TestLine::ExpectError { text, span } => plan.errors.push((text.clone(), *span)),
                TestLine::Run(targets, _) => {
                    for target in targets {
                        match target.name.as_str() {
                            "cpu" => plan.targets.push(TestTarget::Cpu),
                            "sm90" | "sm_90a" => plan.targets.push(TestTarget::Sm90),
                            other => sink.report(say::unknown_target(target.span, other)),
                        }
                    }
                }
                TestLine::Floor(args, _) => {
                    for arg in args {
                        let value = self.number(&arg.value, sink);
                        match (&arg.name, value) {
                            (Some(name), Some(value)) => {
                                plan.floors.push((name.name.clone(), value))
                            }
                            _ => sink.report(say::wrong_argument(
                                arg.span,
                                "a floor is written `floor gbps = 2700;`",
                            )),
                        }
                    }
                }
                TestLine::Error(_) => {}
            }
        }
        if plan.targets.is_empty() {
            plan.targets.push(TestTarget::Cpu);
        }
        if sink.has_errors() {
            return None;
        }
        let count = choices
            .iter()
            .try_fold(1usize, |n, c| n.checked_mul(c.values.len()));
        match count {
            Some(n) if n <= MAX_CASES => {}
            n => {
                sink.report(say::too_many_cases(
                    self.test.span,
                    n.unwrap_or(usize::MAX),
                    MAX_CASES,
                ));
                return None;
            }
        }
        // What is wrong with instances is reported where they stand.
        let mut fixing = self.program.instances(self.kernel, &mut Sink::default());
        fixing.retain(|instance| !instance.dims.is_empty());
        let mut picked = vec![0; choices.len()];
        loop {
            plan.cases
                .extend(self.case(&choices, &picked, item.ast, &fixing, sink));
            let Some(last) = (0..choices.len())
                .rev()
                .find(|&i| picked[i] + 1 < choices[i].values.len())
            else {
                break;
            };
            picked[last] += 1;
            picked[last + 1..].fill(0);
        }
        Some(plan)
    }

    /// A `with` argument. `any` with no values would leave no case, which is a mistake.
    fn choice(&self, arg: &ast::Arg, before: &[Choice], sink: &mut Sink) -> Option<Choice> {
        let item = &self.program.kernels[self.kernel];
        let Some(name) = &arg.name else {
            sink.report(say::wrong_argument(
                arg.span,
                "`with` binds names: `with M = 3;`",
            ));
            return None;
        };
        if !self.known_names().contains(&name.name) {
            sink.report(say::unknown_argument(
                name.span,
                &name.name,
                &item.ast.name.name,
                &self.known_names(),
            ));
            return None;
        }
        if before.iter().any(|c| c.name == name.name) {
            sink.report(say::wrong_argument(
                arg.span,
                &format!("`{}` has a value already", name.name),
            ));
            return None;
        }
        let exprs: Vec<&Expr> = match any_of(&arg.value) {
            Some(args) => args.iter().map(|a| &a.value).collect(),
            None => vec![&arg.value],
        };
        if exprs.is_empty() {
            sink.report(say::wrong_argument(
                arg.span,
                "`any` needs a value at least",
            ));
            return None;
        }
        let evaluator = Evaluator::new(self.program, item.module);
        let values = exprs
            .into_iter()
            .map(|e| Some((evaluator.constant(e, sink)?, e.span)))
            .collect::<Option<Vec<_>>>()?;
        Some(Choice {
            name: name.name.clone(),
            varies: values.len() > 1,
            values,
        })
    }

    fn known_names(&self) -> Vec<String> {
        let k = self.program.kernels[self.kernel].ast;
        let mut names: Vec<String> = k.generics.iter().map(|g| g.name.name.clone()).collect();
        for clause in &k.clauses {
            if let ast::Clause::Dims(dims, _) = clause {
                names.extend(dims.iter().map(|d| d.name.name.clone()));
            }
        }
        let scalars = k
            .params
            .iter()
            .filter(|p| p.mode.is_none())
            .map(|p| p.name.name.clone());
        names.extend(scalars.collect::<Vec<_>>());
        names.dedup();
        names
    }

    fn tensors(&self) -> Vec<String> {
        let k = self.program.kernels[self.kernel].ast;
        let given = |m: &Option<ast::Mode>| {
            matches!(m, Some(ast::Mode::In | ast::Mode::Out | ast::Mode::InOut))
        };
        k.params
            .iter()
            .filter(|p| given(&p.mode))
            .map(|p| p.name.name.clone())
            .collect()
    }

    fn check_tensor(&self, tensor: &ast::Ident, sink: &mut Sink) {
        let tensors = self.tensors();
        if !tensors.contains(&tensor.name) {
            let kernel = &self.program.kernels[self.kernel].ast.name.name;
            sink.report(say::unknown_tensor(
                tensor.span,
                &tensor.name,
                kernel,
                &tensors,
            ));
        }
    }

    fn number(&self, e: &Expr, sink: &mut Sink) -> Option<f64> {
        let module = self.program.kernels[self.kernel].module;
        match Evaluator::new(self.program, module).constant(e, sink)? {
            Const::Int(i) => Some(i as f64),
            Const::Float(x) => Some(x),
            other => {
                sink.report(say::wrong_argument(
                    e.span,
                    &format!("a number is needed here, and this is {}", other.kind()),
                ));
                None
            }
        }
    }

    fn fill(
        &self,
        tensor: &str,
        distribution: &Expr,
        attrs: &[ast::Attr],
        _span: Span,
        sink: &mut Sink,
    ) -> Result<(Distribution, u64), Box<Diagnostic>> {
        let distribution = Distribution::parse(distribution, &|e| {
            // What is wrong with the number is reported by `parse` at its place.
            self.number(e, &mut Sink::default())
        })?;
        let mut seed = seed_of_name(tensor);
        for attr in attrs {
            match (attr.name.name.as_str(), &attr.args[..]) {
                ("seed", [arg]) => seed = self.number(&arg.value, sink).unwrap_or(0.0) as u64,
                (name, _) => {
                    return Err(Box::new(say::unknown_attribute(
                        attr.span,
                        name,
                        "`@seed(n)`",
                    )));
                }
            }
        }
        Ok((distribution, seed))
    }

    fn expect(
        &self,
        tensor: &ast::Ident,
        against: &ast::Ident,
        attrs: &[ast::Attr],
        span: Span,
        sink: &mut Sink,
    ) -> Option<Expect<'a>> {
        let item = &self.program.kernels[self.kernel];
        let reference = item
            .references
            .iter()
            .find(|r| r.name.name == against.name)
            .copied()
            // Another kernel's, with parameters of the same names.
            .or_else(|| self.program.reference(item.module, against));
        if reference.is_none() && against.name != "zeros" {
            let known: Vec<String> = item
                .references
                .iter()
                .map(|r| r.name.name.clone())
                .collect();
            sink.report(say::unknown_reference(
                against.span,
                &against.name,
                &item.ast.name.name,
                &known,
            ));
            return None;
        }
        let mut tolerance = Tolerance::default();
        for attr in attrs {
            let field = match attr.name.name.as_str() {
                "rel" => &mut tolerance.rel,
                "abs" => &mut tolerance.abs,
                "ulp" => &mut tolerance.ulp,
                "mismatch" => &mut tolerance.mismatch,
                other => {
                    sink.report(say::unknown_attribute(
                        attr.span,
                        other,
                        "`@rel(x)`, `@abs(x)`, `@ulp(n)` and `@mismatch(share)`",
                    ));
                    continue;
                }
            };
            match &attr.args[..] {
                [arg] => *field = self.number(&arg.value, sink)?,
                _ => sink.report(say::wrong_argument(attr.span, "a tolerance is one number")),
            }
        }
        Some(Expect {
            tensor: tensor.name.clone(),
            reference,
            reference_name: against.name.clone(),
            tolerance,
            span,
        })
    }

    fn same(
        &self,
        tensor: &ast::Ident,
        args: &[ast::Arg],
        span: Span,
        sink: &mut Sink,
    ) -> Option<Same> {
        let mut same = Same {
            tensor: tensor.name.clone(),
            rows: None,
            span,
        };
        for arg in args {
            match (&arg.name, &arg.range_end, &arg.value.kind) {
                (Some(name), Some((end, inclusive)), _) if name.name == "rows" => {
                    let first = self.number(&arg.value, sink)?;
                    let last = self.number(end, sink)? + *inclusive as u8 as f64;
                    if first < 0.0 || last < first {
                        sink.report(say::wrong_argument(arg.span, "these rows run backwards"));
                        return None;
                    }
                    same.rows = Some((first as usize, last as usize));
                }
                (None, None, ExprKind::Name(path))
                    if path.segments.len() == 1 && path.segments[0].name == "bitwise" => {}
                _ => sink.report(say::wrong_argument(
                    arg.span,
                    "`expect_same` is written `expect_same y, rows = 0..1, bitwise;`",
                )),
            }
        }
        Some(same)
    }

    fn case(
        &self,
        choices: &[Choice],
        picked: &[usize],
        kernel: &ast::Kernel,
        fixing: &[Instance],
        sink: &mut Sink,
    ) -> Option<Case> {
        let mut given: Vec<(String, GenericValue)> = vec![];
        let mut values = BTreeMap::new();
        let mut label = vec![];
        for (choice, &i) in choices.iter().zip(picked) {
            let (value, span) = &choice.values[i];
            if choice.varies || choices.iter().all(|c| !c.varies) {
                label.push(format!("{} = {value}", choice.name));
            }
            let generic = kernel.generics.iter().find(|g| g.name.name == choice.name);
            let Some(generic) = generic else {
                values.insert(choice.name.clone(), value.clone());
                continue;
            };
            let value = match (generic.kind, value) {
                (ast::GenericKind::Int, Const::Int(i)) if i64::try_from(*i).is_ok() => {
                    GenericValue::Int(*i as i64)
                }
                (ast::GenericKind::Bool, Const::Bool(b)) => GenericValue::Bool(*b),
                (ast::GenericKind::DType, Const::DType(d)) => GenericValue::DType(*d),
                (kind, other) => {
                    let expected = match kind {
                        ast::GenericKind::Int => "an integer",
                        ast::GenericKind::Bool => "a bool",
                        ast::GenericKind::DType => "a dtype",
                    };
                    sink.report(say::wrong_value(
                        *span,
                        &choice.name,
                        expected,
                        other.kind(),
                    ));
                    return None;
                }
            };
            given.push((choice.name.clone(), value));
        }
        let takes = |i: &Instance| (self.program).takes(self.kernel, i, &|name| int(&values, name));
        let taken = (fixing.iter()).find(|i| i.has(&given) && takes(i)).cloned();
        let instance = match taken {
            Some(instance) => instance,
            None => (self.program).bind(self.kernel, &given, self.test.span, sink)?,
        };
        Some(Case {
            label: label.join(", "),
            instance,
            given,
            values,
        })
    }
}

fn any_of(e: &Expr) -> Option<&[ast::Arg]> {
    match &e.kind {
        ExprKind::Call { callee, args } => match &callee.kind {
            ExprKind::Name(path) if path.segments.len() == 1 && path.segments[0].name == "any" => {
                Some(args)
            }
            _ => None,
        },
        _ => None,
    }
}

/// The arguments of one case, in order of the kernel's parameters.
#[derive(Clone, Debug)]
pub struct Inputs<D = Data> {
    pub params: Vec<Input<D>>,
    /// Dims and `index` scalars.
    pub dims: BTreeMap<String, i64>,
    pub scalars: BTreeMap<String, f64>,
}

#[derive(Clone, Debug)]
pub enum Input<D = Data> {
    Tensor {
        name: String,
        mode: ParamMode,
        data: D,
    },
    Scalar {
        name: String,
        dtype: tessera_artifact::DType,
        bits: u64,
    },
    Index {
        name: String,
        value: i64,
    },
    /// `scratch` and `flags`: whoever launches allocates them.
    Host,
}

/// Fills the inputs of one case.
///
/// # Errors
/// A name without a value, a value of the wrong kind, a shape that cannot be computed.
pub fn inputs(
    plan: &Plan<'_>,
    case: &Case,
    kernel: &ir::Kernel,
) -> Result<Inputs, Box<Diagnostic>> {
    inputs_by(plan, case, kernel, &|dtype, shape, contents| {
        Ok(match contents {
            None => Data::poison(dtype, shape),
            Some((distribution, seed)) => Data {
                dtype,
                bits: distribution.fill(dtype, shape, seed),
                shape: shape.to_vec(),
            },
        })
    })
}

/// What makes a tensor of a type, a shape and contents: a distribution with its seed, or whatever an output holds before a launch.
pub type Make<'m, D> = dyn Fn(tessera_artifact::DType, &[i64], Option<(&Distribution, u64)>) -> Result<D, Box<Diagnostic>>
    + 'm;

/// As [`inputs`], with tensors of any kind.
///
/// # Errors
/// As [`inputs`], and those of `make`.
pub fn inputs_by<D>(
    plan: &Plan<'_>,
    case: &Case,
    kernel: &ir::Kernel,
    make: &Make<'_, D>,
) -> Result<Inputs<D>, Box<Diagnostic>> {
    let missing: Vec<String> = needed_names(kernel)
        .into_iter()
        .filter(|n| !case.values.contains_key(n))
        .collect();
    if !missing.is_empty() {
        return Err(Box::new(say::no_value(plan.span, &missing, &kernel.name)));
    }
    let mut dims = BTreeMap::new();
    for dim in &kernel.dims {
        let value = match case.values.get(&dim.name) {
            Some(Const::Int(i)) if i64::try_from(*i).is_ok() => *i as i64,
            Some(other) => {
                return Err(Box::new(say::wrong_value(
                    plan.span,
                    &dim.name,
                    "an integer",
                    other.kind(),
                )));
            }
            None => dim.lo,
        };
        dims.insert(dim.name.clone(), value);
    }
    let mut scalars = BTreeMap::new();
    let mut params = vec![];
    for param in &kernel.params {
        let name = param.name.clone();
        params.push(match &param.kind {
            ir::ParamKind::Index => Input::Index {
                value: dims[&name],
                name,
            },
            ir::ParamKind::Scalar(dtype) => {
                let bits = scalar_bits(&case.values[&name], *dtype).ok_or_else(|| {
                    Box::new(say::wrong_value(
                        plan.span,
                        &name,
                        &format!("a {dtype}"),
                        case.values[&name].kind(),
                    ))
                })?;
                scalars.insert(name.clone(), numeric::to_f64(bits, *dtype));
                Input::Scalar {
                    name,
                    dtype: *dtype,
                    bits,
                }
            }
            ir::ParamKind::Tensor(t) if !t.mode.is_argument() => Input::Host,
            ir::ParamKind::Tensor(t) => {
                let shape = shape(plan, kernel, &t.shape, &dims)?;
                let given = plan.fills.get(&name);
                let contents = match given {
                    Some((distribution, seed)) => Some((distribution, *seed)),
                    None if t.mode == ParamMode::Out => None,
                    None => Some((&Distribution::DEFAULT, seed_of_name(&name))),
                };
                let data = make(t.dtype, &shape, contents)?;
                Input::Tensor {
                    name,
                    mode: t.mode,
                    data,
                }
            }
        });
    }
    Ok(Inputs {
        params,
        dims,
        scalars,
    })
}

/// Dims with one possible value need none.
fn needed_names(kernel: &ir::Kernel) -> Vec<String> {
    let dims = kernel
        .dims
        .iter()
        .filter(|d| d.lo != d.hi)
        .map(|d| d.name.clone());
    let scalars = kernel
        .params
        .iter()
        .filter(|p| matches!(p.kind, ir::ParamKind::Scalar(_)))
        .map(|p| p.name.clone());
    dims.chain(scalars).collect()
}

fn scalar_bits(value: &Const, dtype: tessera_artifact::DType) -> Option<u64> {
    use tessera_artifact::DType;
    match value {
        Const::Bool(b) if dtype == DType::Bool => Some(*b as u64),
        Const::Int(i) if dtype.is_float() => Some(numeric::from_f64(*i as f64, dtype)),
        Const::Int(i) if dtype.is_int() => Some(numeric::from_i128(*i, dtype)),
        Const::Float(x) if dtype.is_float() => Some(numeric::from_f64(*x, dtype)),
        _ => None,
    }
}

/// Elements of one test tensor at most; beyond, a slip in a size is likelier than a wish.
const MAX_ELEMENTS: i64 = 1 << 31;

fn shape(
    plan: &Plan<'_>,
    kernel: &ir::Kernel,
    shape: &[HostExpr],
    dims: &BTreeMap<String, i64>,
) -> Result<Vec<i64>, Box<Diagnostic>> {
    let extents = shape
        .iter()
        .map(|e| {
            e.eval_int(&|name| dims.get(name).copied(), &|_| None)
                .map_err(|why| {
                    Box::new(say::wrong_argument(
                        plan.span,
                        &format!("extent `{e}` of kernel `{}`: {why}", kernel.name),
                    ))
                })
        })
        .collect::<Result<Vec<i64>, _>>()?;
    let elements = extents
        .iter()
        .try_fold(1i64, |n, &e| n.checked_mul(e.max(0)));
    if extents.iter().any(|&e| e < 0) || elements.is_none_or(|n| n > MAX_ELEMENTS) {
        let what = format!(
            "a tensor of kernel `{}` would have shape {extents:?}",
            kernel.name
        );
        return Err(Box::new(say::wrong_argument(plan.span, &what)));
    }
    Ok(extents)
}
