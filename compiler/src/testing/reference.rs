//! Runs `reference` blocks: plain mathematics over f64, independent of the tile IR and of every back end.
//!
//! Needs: values for dims, generics and scalars, and the inputs. Keeps: casts to floats change nothing, so the result is the truth
//! that rounding is measured against; integers (indices, elements of integer tensors) are exact. Loops ascend; `c ? x : y`, `&&` and
//! `||` evaluate only what they need. A reference is resolved to slots once and then evaluated, since some have many million steps.

use std::collections::{BTreeMap, HashMap};

use tessera_artifact::DType;

use crate::diag::Diagnostic;
use crate::diag::catalogue::testing as say;
use crate::source::Span;
use crate::syntax::ast::{self, AssignOp, BinaryOp, Expr, ExprKind, IndexSlot, StmtKind, UnaryOp};

/// Evaluations of one reference; a few minutes.
const MAX_STEPS: u64 = 20_000_000_000;

/// A value known before the reference runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known {
    Int(i128),
    Float(f64),
    Bool(bool),
    DType(DType),
}

/// A tensor as the reference sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<i64>,
    pub data: Vec<f64>,
    /// Elements read as integers.
    pub integer: bool,
}

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// Runs `block` over `arrays`, which it reads and writes. `known` gives dims, generics, scalars and constants.
///
/// # Errors
/// A diagnostic: a name that nothing has, an index outside its tensor, a statement that no reference may hold.
pub fn run(
    block: &ast::Block,
    known: &dyn Fn(&str) -> Option<Known>,
    arrays: &mut BTreeMap<String, Array>,
) -> Result<()> {
    let mut resolver = Resolver {
        known,
        scopes: vec![HashMap::new()],
        arrays: Vec::new(),
        locals: Vec::new(),
        scalars: 0,
    };
    for (i, name) in arrays.keys().enumerate() {
        resolver.arrays.push(name.clone());
        resolver.scopes[0].insert(name.clone(), Slot::Array(i));
    }
    let body = resolver.block(block)?;
    let names = std::mem::take(&mut resolver.arrays);
    let mut machine = Machine {
        scalars: vec![Value::Int(0); resolver.scalars],
        arrays: names
            .iter()
            .map(|name| arrays.remove(name).expect("the names are the map's"))
            .collect(),
        locals: resolver.locals,
        steps: 0,
        names,
    };
    let outcome = machine.stmts(&body);
    for (name, array) in machine.names.into_iter().zip(machine.arrays) {
        arrays.insert(name, array);
    }
    outcome
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
}

impl Value {
    fn kind(self) -> &'static str {
        match self {
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Bool(_) => "a condition",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Scalar(usize),
    Array(usize),
    Local(usize),
}

/// A local array: declared with a shape, or grown by assignment.
#[derive(Debug)]
struct Local {
    name: String,
    elements: HashMap<Vec<i64>, f64>,
    /// What a declaration gave every element.
    initial: Option<f64>,
}

// ---- resolved form -------------------------------------------------------------------------------------------------------

struct Node {
    kind: Kind,
    span: Span,
}

enum Kind {
    Value(Value),
    Scalar(usize),
    Element {
        array: usize,
        index: Vec<Node>,
    },
    LocalElement {
        local: usize,
        index: Vec<Node>,
    },
    Unary(UnaryOp, Box<Node>),
    Binary(BinaryOp, Box<Node>, Box<Node>),
    Select(Box<Node>, Box<Node>, Box<Node>),
    /// A function of numbers.
    Call(Function, Vec<Node>),
    ToFloat(Box<Node>),
    ToInt(Box<Node>),
    Reduce {
        op: Fold,
        slot: usize,
        lo: Box<Node>,
        hi: Box<Node>,
        inclusive: bool,
        body: Box<Node>,
    },
    Dot(Row, Row),
}

/// A one-dimensional view of an array: all coordinates fixed but one.
struct Row {
    array: usize,
    index: Vec<Option<Node>>,
    start: Option<Box<Node>>,
    len: Option<Box<Node>>,
    span: Span,
}

enum Step {
    Set {
        slot: usize,
        value: Node,
    },
    Store {
        target: Target,
        op: AssignOp,
        value: Node,
        span: Span,
    },
    Loop {
        slots: Vec<(usize, Node, Node, bool)>,
        body: Vec<Step>,
    },
    If {
        cond: Node,
        then: Vec<Step>,
        otherwise: Vec<Step>,
    },
    Declare {
        local: usize,
        initial: Option<Node>,
    },
    Assert {
        cond: Node,
        message: String,
        span: Span,
    },
}

enum Target {
    Scalar(usize),
    Element { array: usize, index: Vec<Node> },
    Local { local: usize, index: Vec<Node> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fold {
    Sum,
    Prod,
    Max,
    Min,
    All,
    Any,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Function {
    Exp,
    Exp2,
    Log,
    Log2,
    Log1p,
    Sin,
    Cos,
    Tanh,
    Sqrt,
    Rsqrt,
    Sigmoid,
    Softplus,
    Silu,
    Abs,
    Floor,
    Ceil,
    Round,
    IsNan,
    Pow,
    Min,
    Max,
    Clamp,
    Fma,
    Cdiv,
}

impl Function {
    fn of(name: &str) -> Option<(Function, usize)> {
        use Function::*;
        Some(match name {
            "exp" => (Exp, 1),
            "exp2" => (Exp2, 1),
            "log" => (Log, 1),
            "log2" => (Log2, 1),
            "log1p" => (Log1p, 1),
            "sin" => (Sin, 1),
            "cos" => (Cos, 1),
            "tanh" => (Tanh, 1),
            "sqrt" => (Sqrt, 1),
            "rsqrt" => (Rsqrt, 1),
            "sigmoid" => (Sigmoid, 1),
            "softplus" => (Softplus, 1),
            "silu" => (Silu, 1),
            "abs" => (Abs, 1),
            "floor" => (Floor, 1),
            "ceil" => (Ceil, 1),
            "round" => (Round, 1),
            "is_nan" => (IsNan, 1),
            "pow" => (Pow, 2),
            "min" => (Min, 2),
            "max" => (Max, 2),
            "cdiv" => (Cdiv, 2),
            "clamp" => (Clamp, 3),
            "fma" => (Fma, 3),
            _ => return None,
        })
    }
}

// ---- resolving -------------------------------------------------------------------------------------------------------------

struct Resolver<'k> {
    known: &'k dyn Fn(&str) -> Option<Known>,
    scopes: Vec<HashMap<String, Slot>>,
    arrays: Vec<String>,
    locals: Vec<Local>,
    scalars: usize,
}

impl Resolver<'_> {
    fn find(&self, name: &str) -> Option<Slot> {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.get(name).copied())
    }

    fn bind_scalar(&mut self, name: &str) -> usize {
        let slot = self.scalars;
        self.scalars += 1;
        self.scopes
            .last_mut()
            .expect("the outermost scope stays")
            .insert(name.to_owned(), Slot::Scalar(slot));
        slot
    }

    fn local(&mut self, name: &str) -> usize {
        self.locals.push(Local {
            name: name.to_owned(),
            elements: HashMap::new(),
            initial: None,
        });
        self.locals.len() - 1
    }

    fn block(&mut self, block: &ast::Block) -> Result<Vec<Step>> {
        self.scopes.push(HashMap::new());
        let steps = block.stmts.iter().map(|stmt| self.stmt(stmt)).collect();
        self.scopes.pop();
        steps
    }

    fn stmt(&mut self, stmt: &ast::Stmt) -> Result<Step> {
        Ok(match &stmt.kind {
            StmtKind::Let { names, value, .. } => {
                let [name] = &names[..] else {
                    return Err(Box::new(say::not_in_a_reference(
                        stmt.span,
                        "a `let` of several names",
                    )));
                };
                let value = self.expr(value)?;
                Step::Set {
                    slot: self.bind_scalar(&name.name),
                    value,
                }
            }
            StmtKind::Tile { name, ty, init, .. } => {
                let initial = init.as_ref().map(|e| self.expr(e)).transpose()?;
                for extent in &ty.shape {
                    self.expr(extent)?;
                }
                let local = self.local(&name.name);
                self.scopes
                    .last_mut()
                    .expect("the outermost scope stays")
                    .insert(name.name.clone(), Slot::Local(local));
                Step::Declare { local, initial }
            }
            StmtKind::Assign {
                target, op, value, ..
            }
            | StmtKind::Atomic {
                target, op, value, ..
            } => self.assign(target, *op, value, stmt.span)?,
            StmtKind::Scatter { target, value, .. } => {
                self.assign(target, AssignOp::Set, value, stmt.span)?
            }
            StmtKind::Map {
                vars,
                extents,
                body,
                ..
            } => {
                let zero = |span| Node {
                    kind: Kind::Value(Value::Int(0)),
                    span,
                };
                let bounds = extents
                    .iter()
                    .map(|e| Ok((zero(e.span), self.expr(e)?, false)))
                    .collect::<Result<Vec<_>>>()?;
                self.looping(vars, bounds, body)?
            }
            StmtKind::For {
                var, range, body, ..
            } => {
                let bounds = vec![(
                    self.expr(&range.lo)?,
                    self.expr(&range.hi)?,
                    range.inclusive,
                )];
                self.looping(std::slice::from_ref(var), bounds, body)?
            }
            StmtKind::If {
                cond,
                then,
                otherwise,
            } => Step::If {
                cond: self.expr(cond)?,
                then: self.block(then)?,
                otherwise: otherwise.as_ref().map_or(Ok(vec![]), |b| self.block(b))?,
            },
            StmtKind::Assert {
                cond,
                message,
                assume: false,
            } => Step::Assert {
                cond: self.expr(cond)?,
                message: message
                    .clone()
                    .unwrap_or_else(|| "assertion failed".to_owned()),
                span: stmt.span,
            },
            other => {
                return Err(Box::new(say::not_in_a_reference(
                    stmt.span,
                    statement_name(other),
                )));
            }
        })
    }

    fn looping(
        &mut self,
        vars: &[ast::Ident],
        bounds: Vec<(Node, Node, bool)>,
        body: &ast::Block,
    ) -> Result<Step> {
        self.scopes.push(HashMap::new());
        let slots = vars
            .iter()
            .zip(bounds)
            .map(|(var, (lo, hi, inclusive))| (self.bind_scalar(&var.name), lo, hi, inclusive))
            .collect();
        let body = self.block(body);
        self.scopes.pop();
        Ok(Step::Loop { slots, body: body? })
    }

    fn assign(&mut self, target: &Expr, op: AssignOp, value: &Expr, span: Span) -> Result<Step> {
        let value = self.expr(value)?;
        let (name, slots) = match &target.kind {
            ExprKind::Name(path) => (path, None),
            ExprKind::Index { base, slots } => match &base.kind {
                ExprKind::Name(path) => (path, Some(slots)),
                _ => {
                    return Err(Box::new(say::not_in_a_reference(
                        target.span,
                        "this target",
                    )));
                }
            },
            _ => {
                return Err(Box::new(say::not_in_a_reference(
                    target.span,
                    "this target",
                )));
            }
        };
        let name = single(name)?;
        let found = self.find(name);
        let target = match (found, slots) {
            (Some(Slot::Scalar(slot)), None) => Target::Scalar(slot),
            (Some(Slot::Array(array)), Some(slots)) => Target::Element {
                array,
                index: self.index(slots)?,
            },
            (Some(Slot::Local(local)), Some(slots)) => Target::Local {
                local,
                index: self.index(slots)?,
            },
            // A name that is only ever assigned by element is a local array of the whole reference.
            (None, Some(slots)) if (self.known)(name).is_none() => {
                let local = self.local(name);
                self.scopes[0].insert(name.to_owned(), Slot::Local(local));
                Target::Local {
                    local,
                    index: self.index(slots)?,
                }
            }
            (None, _) => return Err(Box::new(say::unknown_name(target.span, name))),
            (Some(_), _) => {
                return Err(Box::new(say::reference_type(
                    target.span,
                    "an element",
                    "a whole",
                )));
            }
        };
        Ok(Step::Store {
            target,
            op,
            value,
            span,
        })
    }

    fn index(&mut self, slots: &[IndexSlot]) -> Result<Vec<Node>> {
        slots
            .iter()
            .map(|slot| match slot {
                IndexSlot::At(e) => self.expr(e),
                IndexSlot::Span { start, .. } => Err(Box::new(say::not_in_a_reference(
                    start.span,
                    "a slice outside `dotv`",
                ))),
                IndexSlot::Full(span) => Err(Box::new(say::not_in_a_reference(
                    *span,
                    "a slice outside `dotv`",
                ))),
                IndexSlot::Gather(e) => Err(Box::new(say::not_in_a_reference(e.span, "a gather"))),
            })
            .collect()
    }

    fn expr(&mut self, e: &Expr) -> Result<Node> {
        let kind = match &e.kind {
            ExprKind::Int(i) => Kind::Value(Value::Int(*i)),
            ExprKind::Float(x) => Kind::Value(Value::Float(*x)),
            ExprKind::Bool(b) => Kind::Value(Value::Bool(*b)),
            ExprKind::Name(path) => self.name(path, e.span)?,
            ExprKind::Unary(op, a) => Kind::Unary(*op, self.boxed(a)?),
            ExprKind::Binary(op, a, b) => Kind::Binary(*op, self.boxed(a)?, self.boxed(b)?),
            ExprKind::Select(c, a, b) => {
                Kind::Select(self.boxed(c)?, self.boxed(a)?, self.boxed(b)?)
            }
            ExprKind::Index { base, slots } => self.element(base, slots, e.span)?,
            ExprKind::Call { callee, args } => self.call(callee, args, e.span)?,
            ExprKind::Method {
                receiver,
                name,
                args,
            } => self.method(receiver, &name.name, args, e.span)?,
            ExprKind::Reduce {
                op,
                var,
                range,
                body,
            } => {
                let (lo, hi) = (self.boxed(&range.lo)?, self.boxed(&range.hi)?);
                self.scopes.push(HashMap::new());
                let slot = self.bind_scalar(&var.name);
                let body = self.boxed(body);
                self.scopes.pop();
                let op = match op.name.as_str() {
                    "sum" => Fold::Sum,
                    "prod" => Fold::Prod,
                    "max" | "maxof" => Fold::Max,
                    "min" | "minof" => Fold::Min,
                    "all" => Fold::All,
                    "any" => Fold::Any,
                    other => {
                        let what =
                            format!("`reduce {other}` (sum, prod, max, min, all and any do)");
                        return Err(Box::new(say::not_in_a_reference(e.span, &what)));
                    }
                };
                Kind::Reduce {
                    op,
                    slot,
                    lo,
                    hi,
                    inclusive: range.inclusive,
                    body: body?,
                }
            }
            ExprKind::Str(_) | ExprKind::DType(_) | ExprKind::Tuple(_) | ExprKind::Error => {
                return Err(Box::new(say::reference_type(e.span, "a number", "none")));
            }
        };
        Ok(Node { kind, span: e.span })
    }

    fn boxed(&mut self, e: &Expr) -> Result<Box<Node>> {
        self.expr(e).map(Box::new)
    }

    fn name(&mut self, path: &ast::Path, span: Span) -> Result<Kind> {
        let text = path
            .segments
            .iter()
            .map(|s| s.name.as_str())
            .collect::<Vec<_>>()
            .join("::");
        match self.find(&text) {
            Some(Slot::Scalar(slot)) => return Ok(Kind::Scalar(slot)),
            Some(Slot::Array(array)) => {
                return Ok(Kind::Element {
                    array,
                    index: vec![],
                });
            }
            Some(Slot::Local(local)) => {
                return Ok(Kind::LocalElement {
                    local,
                    index: vec![],
                });
            }
            None => {}
        }
        Ok(Kind::Value(match (self.known)(&text) {
            Some(Known::Int(i)) => Value::Int(i),
            Some(Known::Float(x)) => Value::Float(x),
            Some(Known::Bool(b)) => Value::Bool(b),
            Some(Known::DType(_)) => {
                return Err(Box::new(say::reference_type(span, "a number", "a dtype")));
            }
            None => return Err(Box::new(say::unknown_name(span, &text))),
        }))
    }

    fn element(&mut self, base: &Expr, slots: &[IndexSlot], span: Span) -> Result<Kind> {
        let ExprKind::Name(path) = &base.kind else {
            return Err(Box::new(say::not_in_a_reference(
                span,
                "an index into this",
            )));
        };
        let name = single(path)?;
        match self.find(name) {
            Some(Slot::Array(array)) => Ok(Kind::Element {
                array,
                index: self.index(slots)?,
            }),
            Some(Slot::Local(local)) => Ok(Kind::LocalElement {
                local,
                index: self.index(slots)?,
            }),
            Some(Slot::Scalar(_)) => Err(Box::new(say::reference_type(
                base.span, "a tensor", "a number",
            ))),
            None => Err(Box::new(say::unknown_name(base.span, name))),
        }
    }

    fn call(&mut self, callee: &Expr, args: &[ast::Arg], span: Span) -> Result<Kind> {
        let name = match &callee.kind {
            ExprKind::DType(dtype) => return self.convert(*dtype, args, span),
            ExprKind::Name(path) => path
                .segments
                .iter()
                .map(|s| s.name.as_str())
                .collect::<Vec<_>>()
                .join("::"),
            _ => return Err(Box::new(say::not_in_a_reference(span, "this call"))),
        };
        if let Some(Known::DType(dtype)) = (self.known)(&name) {
            return self.convert(dtype, args, span);
        }
        let values: Vec<&Expr> = args.iter().map(|a| &a.value).collect();
        match (name.as_str(), &values[..]) {
            ("index", [x]) => Ok(Kind::ToInt(self.boxed(x)?)),
            ("dotv", [a, b]) => Ok(Kind::Dot(self.row(a)?, self.row(b)?)),
            ("bits", [x]) => match self.dtype(x) {
                Some(dtype) => Ok(Kind::Value(Value::Int(dtype.bits() as i128))),
                None => Err(Box::new(say::reference_type(x.span, "a dtype", "none"))),
            },
            _ => {
                let Some((function, arity)) = Function::of(&name) else {
                    return Err(Box::new(say::unknown_name(callee.span, &name)));
                };
                // `min` and `max` take any number from two on.
                let fits = values.len() == arity
                    || (matches!(function, Function::Min | Function::Max) && values.len() > 2);
                if !fits {
                    let what = format!(
                        "`{name}` takes {arity} arguments, and {} are given",
                        values.len()
                    );
                    return Err(Box::new(say::reference_arithmetic(span, &what)));
                }
                let args = values
                    .into_iter()
                    .map(|a| self.expr(a))
                    .collect::<Result<_>>()?;
                Ok(Kind::Call(function, args))
            }
        }
    }

    fn dtype(&self, e: &Expr) -> Option<DType> {
        match &e.kind {
            ExprKind::DType(dtype) => Some(*dtype),
            ExprKind::Name(path) => match (self.known)(single(path).ok()?) {
                Some(Known::DType(dtype)) => Some(dtype),
                _ => None,
            },
            _ => None,
        }
    }

    fn convert(&mut self, dtype: DType, args: &[ast::Arg], span: Span) -> Result<Kind> {
        let [arg] = args else {
            return Err(Box::new(say::reference_arithmetic(
                span,
                &format!("`{dtype}(…)` converts one number"),
            )));
        };
        let value = self.boxed(&arg.value)?;
        Ok(if dtype.is_float() {
            Kind::ToFloat(value)
        } else {
            Kind::ToInt(value)
        })
    }

    fn method(
        &mut self,
        receiver: &Expr,
        name: &str,
        args: &[ast::Arg],
        span: Span,
    ) -> Result<Kind> {
        match (name, args) {
            ("cast", [arg]) => match self.dtype(&arg.value) {
                Some(dtype) if dtype.is_float() => Ok(Kind::ToFloat(self.boxed(receiver)?)),
                Some(_) => Ok(Kind::ToInt(self.boxed(receiver)?)),
                None => Err(Box::new(say::reference_type(
                    arg.value.span,
                    "a dtype",
                    "none",
                ))),
            },
            _ => Err(Box::new(say::not_in_a_reference(
                span,
                &format!("`.{name}(…)`"),
            ))),
        }
    }

    fn row(&mut self, e: &Expr) -> Result<Row> {
        let wrong = || {
            Box::new(say::reference_type(
                e.span,
                "a row of a tensor, as in `q[i, :]`,",
                "none",
            ))
        };
        let (base, slots): (&Expr, &[IndexSlot]) = match &e.kind {
            ExprKind::Index { base, slots } => (base, slots),
            ExprKind::Name(_) => (e, &[]),
            _ => return Err(wrong()),
        };
        let ExprKind::Name(path) = &base.kind else {
            return Err(wrong());
        };
        let Some(Slot::Array(array)) = self.find(single(path)?) else {
            return Err(wrong());
        };
        let mut row = Row {
            array,
            index: vec![],
            start: None,
            len: None,
            span: e.span,
        };
        if slots.is_empty() {
            row.index.push(None);
        }
        for slot in slots {
            match slot {
                IndexSlot::At(e) => row.index.push(Some(self.expr(e)?)),
                IndexSlot::Full(_) => row.index.push(None),
                IndexSlot::Span { start, len } => {
                    row.index.push(None);
                    row.start = Some(self.boxed(start)?);
                    row.len = Some(self.boxed(len)?);
                }
                IndexSlot::Gather(_) => return Err(wrong()),
            }
        }
        match row.index.iter().filter(|i| i.is_none()).count() {
            1 => Ok(row),
            _ => Err(wrong()),
        }
    }
}

fn single(path: &ast::Path) -> Result<&str> {
    match &path.segments[..] {
        [one] => Ok(&one.name),
        _ => Err(Box::new(say::not_in_a_reference(path.span, "a path"))),
    }
}

fn statement_name(kind: &StmtKind) -> &'static str {
    match kind {
        StmtKind::Pipeline { .. } => "`pipeline`",
        StmtKind::ForItems { .. } => "a loop over items",
        StmtKind::Role { .. } => "`role`",
        StmtKind::Channel { .. } => "`channel`",
        StmtKind::Put { .. } => "`put`",
        StmtKind::Get { .. } => "`get`",
        StmtKind::Release { .. } => "`release`",
        StmtKind::Copy { .. } => "`copy`",
        StmtKind::Signal { .. } => "`signal`",
        StmtKind::Wait { .. } => "`wait`",
        StmtKind::Assert { .. } => "`assume`",
        StmtKind::Print { .. } => "`print`",
        StmtKind::Return { .. } => "`return`",
        StmtKind::Asm { .. } => "`asm`",
        _ => "this statement",
    }
}

// ---- running ---------------------------------------------------------------------------------------------------------------

struct Machine {
    scalars: Vec<Value>,
    arrays: Vec<Array>,
    names: Vec<String>,
    locals: Vec<Local>,
    steps: u64,
}

impl Machine {
    fn stmts(&mut self, steps: &[Step]) -> Result<()> {
        steps.iter().try_for_each(|step| self.step(step))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::Set { slot, value } => self.scalars[*slot] = self.eval(value)?,
            Step::Store {
                target,
                op,
                value,
                span,
            } => self.store(target, *op, value, *span)?,
            Step::Loop { slots, body } => self.run_loop(slots, body)?,
            Step::If {
                cond,
                then,
                otherwise,
            } => {
                let branch = if self.cond(cond)? { then } else { otherwise };
                self.stmts(branch)?;
            }
            Step::Declare { local, initial } => {
                let initial = initial.as_ref().map(|e| self.float(e)).transpose()?;
                self.locals[*local].elements.clear();
                self.locals[*local].initial = initial;
            }
            Step::Assert {
                cond,
                message,
                span,
            } => {
                if !self.cond(cond)? {
                    return Err(Box::new(say::reference_arithmetic(*span, message)));
                }
            }
        }
        Ok(())
    }

    /// All bounds are evaluated before the first iteration of the outermost, as in `map (i, j) in [M, N]`.
    fn run_loop(&mut self, slots: &[(usize, Node, Node, bool)], body: &[Step]) -> Result<()> {
        let Some(((slot, lo, hi, inclusive), inner)) = slots.split_first() else {
            return self.stmts(body);
        };
        let (lo, hi) = (self.int(lo)?, self.int(hi)? + *inclusive as i128);
        let mut i = lo;
        while i < hi {
            self.scalars[*slot] = Value::Int(i);
            self.run_loop(inner, body)?;
            i += 1;
        }
        Ok(())
    }

    fn store(&mut self, target: &Target, op: AssignOp, value: &Node, span: Span) -> Result<()> {
        let value = self.eval(value)?;
        match target {
            Target::Scalar(slot) => {
                let old = self.scalars[*slot];
                let arithmetic = |op| {
                    binary(op, old, value)
                        .map_err(|what| Box::new(say::reference_arithmetic(span, &what)))
                };
                self.scalars[*slot] = match op {
                    AssignOp::Set => value,
                    AssignOp::Add => arithmetic(BinaryOp::Add)?,
                    AssignOp::Sub => arithmetic(BinaryOp::Sub)?,
                    AssignOp::Mul => arithmetic(BinaryOp::Mul)?,
                    AssignOp::Div => arithmetic(BinaryOp::Div)?,
                    AssignOp::Max | AssignOp::Min => match (old, value) {
                        (Value::Int(a), Value::Int(b)) => Value::Int(if op == AssignOp::Max {
                            a.max(b)
                        } else {
                            a.min(b)
                        }),
                        _ => Value::Float(assign(op, to_float(old, span)?, to_float(value, span)?)),
                    },
                };
            }
            Target::Element { array, index } => {
                let at = self.offset(*array, index, span)?;
                let new = to_float(value, span)?;
                let old = self.arrays[*array].data[at];
                self.arrays[*array].data[at] = assign(op, old, new);
            }
            Target::Local { local, index } => {
                let at = self.coordinates(index)?;
                let new = to_float(value, span)?;
                let new = match op {
                    AssignOp::Set => new,
                    _ => assign(op, self.local(*local, &at, span)?, new),
                };
                self.locals[*local].elements.insert(at, new);
            }
        }
        Ok(())
    }

    fn coordinates(&mut self, index: &[Node]) -> Result<Vec<i64>> {
        index
            .iter()
            .map(|i| self.int(i).map(|i| i as i64))
            .collect()
    }

    fn local(&self, local: usize, at: &[i64], span: Span) -> Result<f64> {
        let local = &self.locals[local];
        match local.elements.get(at).copied().or(local.initial) {
            Some(x) => Ok(x),
            None => Err(Box::new(say::never_assigned(span, &local.name, at))),
        }
    }

    fn offset(&mut self, array: usize, index: &[Node], span: Span) -> Result<usize> {
        let rank = self.arrays[array].shape.len();
        if index.len() != rank {
            return Err(Box::new(say::reference_rank(
                span,
                &self.names[array],
                index.len(),
                rank,
            )));
        }
        let mut at = 0usize;
        for (axis, node) in index.iter().enumerate() {
            let i = self.int(node)?;
            let extent = self.arrays[array].shape[axis];
            if i < 0 || i >= extent as i128 {
                return Err(Box::new(say::reference_index(
                    node.span,
                    &self.names[array],
                    axis,
                    i as i64,
                    extent,
                )));
            }
            at = at * extent as usize + i as usize;
        }
        Ok(at)
    }

    fn int(&mut self, node: &Node) -> Result<i128> {
        match self.eval(node)? {
            Value::Int(i) => Ok(i),
            other => Err(Box::new(
                say::reference_type(node.span, "an integer", other.kind())
                    .help("convert with `index(…)`"),
            )),
        }
    }

    fn float(&mut self, node: &Node) -> Result<f64> {
        let value = self.eval(node)?;
        to_float(value, node.span)
    }

    fn cond(&mut self, node: &Node) -> Result<bool> {
        match self.eval(node)? {
            Value::Bool(b) => Ok(b),
            other => Err(Box::new(say::reference_type(
                node.span,
                "a condition",
                other.kind(),
            ))),
        }
    }

    fn eval(&mut self, node: &Node) -> Result<Value> {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(Box::new(say::reference_steps(node.span, MAX_STEPS)));
        }
        Ok(match &node.kind {
            Kind::Value(value) => *value,
            Kind::Scalar(slot) => self.scalars[*slot],
            Kind::Element { array, index } => {
                let at = self.offset(*array, index, node.span)?;
                let array = &self.arrays[*array];
                match array.integer {
                    true => Value::Int(array.data[at] as i128),
                    false => Value::Float(array.data[at]),
                }
            }
            Kind::LocalElement { local, index } => {
                let at = self.coordinates(index)?;
                Value::Float(self.local(*local, &at, node.span)?)
            }
            Kind::Unary(op, a) => match (op, self.eval(a)?) {
                (UnaryOp::Neg, Value::Int(i)) => Value::Int(-i),
                (UnaryOp::Neg, Value::Float(x)) => Value::Float(-x),
                (UnaryOp::Not, Value::Bool(b)) => Value::Bool(!b),
                (UnaryOp::Not, Value::Int(i)) => Value::Int(!i),
                (_, other) => {
                    return Err(Box::new(say::reference_type(
                        a.span,
                        "another type",
                        other.kind(),
                    )));
                }
            },
            Kind::Binary(BinaryOp::And, a, b) => Value::Bool(self.cond(a)? && self.cond(b)?),
            Kind::Binary(BinaryOp::Or, a, b) => Value::Bool(self.cond(a)? || self.cond(b)?),
            Kind::Binary(op, a, b) => {
                let (a, b) = (self.eval(a)?, self.eval(b)?);
                binary(*op, a, b)
                    .map_err(|what| Box::new(say::reference_arithmetic(node.span, &what)))?
            }
            Kind::Select(c, a, b) => match self.cond(c)? {
                true => self.eval(a)?,
                false => self.eval(b)?,
            },
            Kind::Call(function, args) => self.call(*function, args, node.span)?,
            Kind::ToFloat(a) => Value::Float(self.float(a)?),
            Kind::ToInt(a) => match self.eval(a)? {
                Value::Int(i) => Value::Int(i),
                Value::Bool(b) => Value::Int(b as i128),
                // Saturates and takes NaN to 0, as casts do.
                Value::Float(x) => Value::Int(x.trunc() as i128),
            },
            Kind::Reduce {
                op,
                slot,
                lo,
                hi,
                inclusive,
                body,
            } => self.reduce(*op, *slot, (lo, hi, *inclusive), body)?,
            Kind::Dot(a, b) => Value::Float(self.dot(a, b, node.span)?),
        })
    }

    fn reduce(
        &mut self,
        op: Fold,
        slot: usize,
        (lo, hi, inclusive): (&Node, &Node, bool),
        body: &Node,
    ) -> Result<Value> {
        let (lo, hi) = (self.int(lo)?, self.int(hi)? + inclusive as i128);
        if matches!(op, Fold::All | Fold::Any) {
            let stop = op == Fold::Any;
            let mut i = lo;
            while i < hi {
                self.scalars[slot] = Value::Int(i);
                if self.cond(body)? == stop {
                    return Ok(Value::Bool(stop));
                }
                i += 1;
            }
            return Ok(Value::Bool(!stop));
        }
        let mut total = match op {
            Fold::Sum => 0.0,
            Fold::Prod => 1.0,
            Fold::Max => f64::NEG_INFINITY,
            _ => f64::INFINITY,
        };
        // What the additions lost so far: references judge kernels, so they sum better than kernels do (Neumaier).
        let mut lost = 0.0;
        let mut i = lo;
        while i < hi {
            self.scalars[slot] = Value::Int(i);
            let x = self.float(body)?;
            match op {
                Fold::Sum => {
                    let sum: f64 = total + x;
                    if sum.is_finite() {
                        lost += if f64::abs(total) >= x.abs() {
                            (total - sum) + x
                        } else {
                            (x - sum) + total
                        };
                    }
                    total = sum;
                }
                Fold::Prod => total *= x,
                Fold::Max => total = max(total, x),
                _ => total = min(total, x),
            }
            i += 1;
        }
        Ok(Value::Float(total + lost))
    }

    fn dot(&mut self, a: &Row, b: &Row, span: Span) -> Result<f64> {
        let (a_at, a_step, a_len) = self.row(a)?;
        let (b_at, b_step, b_len) = self.row(b)?;
        if a_len != b_len {
            let what = format!("the rows have {a_len} and {b_len} elements");
            return Err(Box::new(say::reference_arithmetic(span, &what)));
        }
        self.steps += a_len as u64;
        let (x, y) = (&self.arrays[a.array].data, &self.arrays[b.array].data);
        Ok((0..a_len)
            .map(|i| x[a_at + i * a_step] * y[b_at + i * b_step])
            .sum())
    }

    /// Offset of the first element, step and length.
    fn row(&mut self, row: &Row) -> Result<(usize, usize, usize)> {
        let shape = self.arrays[row.array].shape.clone();
        if row.index.len() != shape.len() {
            return Err(Box::new(say::reference_rank(
                row.span,
                &self.names[row.array],
                row.index.len(),
                shape.len(),
            )));
        }
        let (mut at, mut step, mut len) = (0usize, 1usize, 0usize);
        for (axis, (index, &extent)) in row.index.iter().zip(&shape).enumerate() {
            let (first, last) = match index {
                Some(node) => {
                    let i = self.int(node)?;
                    (i, i)
                }
                None => {
                    let start = row.start.as_ref().map_or(Ok(0), |e| self.int(e))?;
                    let count = row
                        .len
                        .as_ref()
                        .map_or(Ok(extent as i128), |e| self.int(e))?;
                    len = count.max(0) as usize;
                    step = shape[axis + 1..].iter().product::<i64>() as usize;
                    (start, start + count.max(1) - 1)
                }
            };
            if len > 0 || index.is_some() {
                for i in [first, last] {
                    if i < 0 || i >= extent as i128 {
                        return Err(Box::new(say::reference_index(
                            row.span,
                            &self.names[row.array],
                            axis,
                            i as i64,
                            extent,
                        )));
                    }
                }
            }
            at = at * extent as usize + first as usize;
        }
        Ok((at, step, len))
    }

    fn call(&mut self, function: Function, args: &[Node], span: Span) -> Result<Value> {
        use Function::*;
        if matches!(function, Min | Max | Clamp | Abs | Cdiv) {
            let values = args
                .iter()
                .map(|a| self.eval(a))
                .collect::<Result<Vec<_>>>()?;
            if values.iter().all(|v| matches!(v, Value::Int(_))) {
                let ints: Vec<i128> = values
                    .iter()
                    .map(|v| if let Value::Int(i) = v { *i } else { 0 })
                    .collect();
                return Ok(Value::Int(match (function, &ints[..]) {
                    (Min, all) => all.iter().copied().min().unwrap_or(0),
                    (Max, all) => all.iter().copied().max().unwrap_or(0),
                    (Abs, [a]) => a.abs(),
                    (Clamp, [x, lo, hi]) => (*x).max(*lo).min(*hi),
                    (_, [_, 0]) => {
                        return Err(Box::new(say::reference_arithmetic(
                            span,
                            "the divisor is 0",
                        )));
                    }
                    (_, [a, b]) => -floor_div(-a, *b),
                    _ => 0,
                }));
            }
            let x = values
                .into_iter()
                .map(|v| to_float(v, span))
                .collect::<Result<Vec<_>>>()?;
            return Ok(Value::Float(match (function, &x[..]) {
                (Min, all) => all.iter().copied().reduce(min).unwrap_or(0.0),
                (Max, all) => all.iter().copied().reduce(max).unwrap_or(0.0),
                (Clamp, [x, lo, hi]) => min(max(*x, *lo), *hi),
                (Cdiv, [a, b]) => (a / b).ceil(),
                (_, all) => all[0].abs(),
            }));
        }
        let x = args
            .iter()
            .map(|a| self.float(a))
            .collect::<Result<Vec<_>>>()?;
        let a = x[0];
        Ok(Value::Float(match function {
            Exp => a.exp(),
            Exp2 => a.exp2(),
            Log => a.ln(),
            Log2 => a.log2(),
            Log1p => a.ln_1p(),
            Sin => a.sin(),
            Cos => a.cos(),
            Tanh => a.tanh(),
            Sqrt => a.sqrt(),
            Rsqrt => 1.0 / a.sqrt(),
            Sigmoid => 1.0 / (1.0 + (-a).exp()),
            Softplus => a.max(0.0) + (-a.abs()).exp().ln_1p(),
            Silu => a / (1.0 + (-a).exp()),
            Floor => a.floor(),
            Ceil => a.ceil(),
            Round => a.round_ties_even(),
            IsNan => return Ok(Value::Bool(a.is_nan())),
            Pow => a.powf(x[1]),
            Fma => a.mul_add(x[1], x[2]),
            Min | Max | Clamp | Abs | Cdiv => unreachable!("above"),
        }))
    }
}

fn to_float(value: Value, span: Span) -> Result<f64> {
    match value {
        Value::Float(x) => Ok(x),
        Value::Int(i) => Ok(i as f64),
        Value::Bool(_) => Err(Box::new(
            say::reference_type(span, "a number", "a condition").help("write `c ? 1.0 : 0.0`"),
        )),
    }
}

fn max(a: f64, b: f64) -> f64 {
    tessera_artifact::numeric::max_f64(a, b)
}

fn min(a: f64, b: f64) -> f64 {
    tessera_artifact::numeric::min_f64(a, b)
}

fn assign(op: AssignOp, old: f64, new: f64) -> f64 {
    match op {
        AssignOp::Set => new,
        AssignOp::Add => old + new,
        AssignOp::Sub => old - new,
        AssignOp::Mul => old * new,
        AssignOp::Div => old / new,
        AssignOp::Max => max(old, new),
        AssignOp::Min => min(old, new),
    }
}

fn floor_div(a: i128, b: i128) -> i128 {
    let q = a / b;
    if a % b != 0 && (a < 0) != (b < 0) {
        q - 1
    } else {
        q
    }
}

fn binary(op: BinaryOp, a: Value, b: Value) -> std::result::Result<Value, String> {
    use BinaryOp::*;
    use Value::{Bool, Float, Int};
    let overflow = || "this overflows 128 bits".to_owned();
    Ok(match (op, a, b) {
        (Add, Int(a), Int(b)) => Int(a.checked_add(b).ok_or_else(overflow)?),
        (Sub, Int(a), Int(b)) => Int(a.checked_sub(b).ok_or_else(overflow)?),
        (Mul, Int(a), Int(b)) => Int(a.checked_mul(b).ok_or_else(overflow)?),
        (Div | Rem, Int(_), Int(0)) => return Err("the divisor is 0".to_owned()),
        (Div, Int(a), Int(b)) => Int(floor_div(a, b)),
        (Rem, Int(a), Int(b)) => Int(a - floor_div(a, b) * b),
        (Shl | Shr, Int(_), Int(n)) if !(0..=63).contains(&n) => {
            return Err(format!("a shift by {n}"));
        }
        (Shl, Int(a), Int(n)) => Int(a.checked_mul(1 << n).ok_or_else(overflow)?),
        (Shr, Int(a), Int(n)) => Int(a >> n),
        (BitAnd, Int(a), Int(b)) => Int(a & b),
        (BitOr, Int(a), Int(b)) => Int(a | b),
        (BitXor, Int(a), Int(b)) => Int(a ^ b),
        (BitAnd, Bool(a), Bool(b)) => Bool(a & b),
        (BitOr, Bool(a), Bool(b)) => Bool(a | b),
        (BitXor | Ne, Bool(a), Bool(b)) => Bool(a != b),
        (Eq, Bool(a), Bool(b)) => Bool(a == b),
        (Eq, Int(a), Int(b)) => Bool(a == b),
        (Ne, Int(a), Int(b)) => Bool(a != b),
        (Lt, Int(a), Int(b)) => Bool(a < b),
        (Le, Int(a), Int(b)) => Bool(a <= b),
        (Gt, Int(a), Int(b)) => Bool(a > b),
        (Ge, Int(a), Int(b)) => Bool(a >= b),
        (_, Int(_) | Float(_), Int(_) | Float(_)) => {
            let x = if let Int(i) = a {
                i as f64
            } else if let Float(x) = a {
                x
            } else {
                0.0
            };
            let y = if let Int(i) = b {
                i as f64
            } else if let Float(y) = b {
                y
            } else {
                0.0
            };
            match op {
                Add => Float(x + y),
                Sub => Float(x - y),
                Mul => Float(x * y),
                Div => Float(x / y),
                Rem => Float(x - (x / y).floor() * y),
                Eq => Bool(x == y),
                Ne => Bool(x != y),
                Lt => Bool(x < y),
                Le => Bool(x <= y),
                Gt => Bool(x > y),
                Ge => Bool(x >= y),
                _ => return Err("this operator takes integers".to_owned()),
            }
        }
        _ => {
            return Err(format!(
                "{} and {} do not go together here",
                a.kind(),
                b.kind()
            ));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Sink;
    use crate::source::FileId;
    use crate::syntax;

    /// Runs the body of a reference with `N` and `scale` known and arrays `x`, `y` (and `i` of integers).
    fn eval(body: &str, x: &[f64], y: usize) -> std::result::Result<Vec<f64>, String> {
        let text = format!("reference r for k {{ {body} }}");
        let mut sink = Sink::default();
        let file = syntax::parse(&mut sink, FileId(0), &text);
        assert!(!sink.has_errors(), "{:?}", sink.finish());
        let Some(ast::Item::Reference(r)) = file.items.first() else {
            panic!("no reference in {text}")
        };
        let array = |data: Vec<f64>, integer| Array {
            shape: vec![data.len() as i64],
            data,
            integer,
        };
        let mut arrays = BTreeMap::new();
        arrays.insert("x".to_owned(), array(x.to_vec(), false));
        arrays.insert("i".to_owned(), array(vec![2.0, 0.0, 1.0], true));
        arrays.insert("y".to_owned(), array(vec![f64::NAN; y], false));
        let n = x.len() as i128;
        let known = move |name: &str| match name {
            "N" => Some(Known::Int(n)),
            "scale" => Some(Known::Float(0.5)),
            "T" => Some(Known::DType(DType::BF16)),
            _ => None,
        };
        run(&r.body, &known, &mut arrays).map_err(|d| d.message)?;
        Ok(arrays.remove("y").unwrap().data)
    }

    #[test]
    fn sums_gathers_and_locals() {
        assert_eq!(
            eval(
                "map j in [N] { y[j] = reduce sum(k in 0..j + 1) { x[k] }; }",
                &[1.0, 2.0, 4.0],
                3
            )
            .unwrap(),
            [1.0, 3.0, 7.0]
        );
        assert_eq!(
            eval(
                "map j in [N] { y[j] = x[index(i[j])] * scale; }",
                &[1.0, 2.0, 4.0],
                3
            )
            .unwrap(),
            [2.0, 0.5, 1.0]
        );
        let rows =
            "reg v: [N] f64; for j in 0..N { v[j] = x[N - 1 - j]; } for j in 0..N { y[j] = v[j]; }";
        assert_eq!(eval(rows, &[1.0, 2.0], 2).unwrap(), [2.0, 1.0]);
        let grown = "map j in [N] { w[j] = x[j] + 1.0; } y[0] = w[1];";
        assert_eq!(eval(grown, &[1.0, 2.0], 1).unwrap(), [3.0]);
        let cells = "let mut s = 0.0; let mut m = x[0]; for j in 0..N { s += x[j]; m max= x[j]; } y[0] = s; y[1] = m;";
        assert_eq!(eval(cells, &[1.0, 5.0, 4.0], 2).unwrap(), [10.0, 5.0]);
        assert_eq!(
            eval("y[0] = dotv(x[:], x[:]);", &[1.0, 2.0, 3.0], 1).unwrap(),
            [14.0]
        );
    }

    #[test]
    fn integers_floor_and_casts_are_ignored() {
        assert_eq!(
            eval(
                "y[0] = f64(-7 / 2); y[1] = f64(-7 % 4); y[2] = f64(cdiv(7, 2));",
                &[],
                3
            )
            .unwrap(),
            [-4.0, 1.0, 4.0]
        );
        assert_eq!(
            eval("y[0] = (x[0] / 3.0).cast(T); y[1] = T(x[0]);", &[1.0], 2).unwrap(),
            [1.0 / 3.0, 1.0]
        );
        assert_eq!(
            eval(
                "y[0] = f64(x[0].cast(i32)); y[1] = f64(index(x[1]));",
                &[1.7, -1.7],
                2
            )
            .unwrap(),
            [1.0, -1.0]
        );
    }

    #[test]
    fn only_the_side_that_is_taken_is_read() {
        assert_eq!(
            eval(
                "map j in [3] { y[j] = j < N ? x[j] : -1.0; }",
                &[1.0, 2.0],
                3
            )
            .unwrap(),
            [1.0, 2.0, -1.0]
        );
        assert_eq!(
            eval("y[0] = 0 < N && x[0] > 5.0 ? 1.0 : 0.0;", &[], 1).unwrap(),
            [0.0]
        );
    }

    #[test]
    fn sums_keep_what_f64_addition_loses() {
        assert_eq!(
            eval(
                "y[0] = reduce sum(k in 0..N) { x[k] };",
                &[1.0, 1e100, 1.0, -1e100],
                1
            )
            .unwrap(),
            [2.0]
        );
        let infinite = eval(
            "y[0] = reduce sum(k in 0..N) { x[k] };",
            &[1.0, f64::INFINITY],
            1,
        )
        .unwrap();
        assert_eq!(infinite, [f64::INFINITY]);
    }

    #[test]
    fn mistakes_are_errors() {
        assert_eq!(
            eval("y[0] = x[3];", &[1.0], 1).unwrap_err(),
            "index 3 is outside axis 0 of `x`"
        );
        assert_eq!(
            eval("y[0] = z;", &[1.0], 1).unwrap_err(),
            "`z` is not known in this reference"
        );
        assert_eq!(
            eval("y[0] = x[0, 0];", &[1.0], 1).unwrap_err(),
            "`x` has 1 axes and is indexed with 2"
        );
        assert_eq!(
            eval("y[0] = f64(1 / (N - 1));", &[1.0], 1).unwrap_err(),
            "the divisor is 0"
        );
        assert_eq!(
            eval("y[x[0]] = 1.0;", &[0.0], 1).unwrap_err(),
            "an integer is needed here, and this is a number"
        );
        assert_eq!(
            eval("reg v: [4] f64; y[0] = v[2];", &[], 1).unwrap_err(),
            "`v[2]` is read before it is assigned"
        );
        assert_eq!(
            eval("copy y <- x;", &[], 1).unwrap_err(),
            "`copy` cannot stand in a reference"
        );
        assert_eq!(
            eval("y[0] = exp(1.0, 2.0);", &[], 1).unwrap_err(),
            "`exp` takes 1 arguments, and 2 are given"
        );
    }
}
