//! Expressions outside kernel bodies: constants, and what the host computes before a launch.
//!
//! An expression over generics and constants folds to a [`Const`]; one that speaks of dims or scalar parameters becomes a
//! [`HostExpr`]. Shapes, ranges, launch extents, `where` and `requires` all go through here.

use super::constant::{self, Const, FoldError, builtin_constant};
use super::program::{Entry, Program, nearest, path_text};
use crate::diag::Sink;
use crate::diag::catalogue::sema as say;
use crate::syntax::ast::{self, BinaryOp, Constraint, Expr, ExprKind, Membership, UnaryOp};
use crate::tile::ir::GenericValue;
use std::collections::BTreeMap;
use tessera_artifact::{HostExpr, HostOp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostType {
    Int,
    /// Every scalar parameter that is no `index`: the host compares them as f64.
    Float,
    Bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Static {
    /// Reported already.
    Error,
    Const(Const),
    Host(HostExpr, HostType),
}

/// The names in reach and the program around them.
pub struct Evaluator<'p, 'a> {
    program: &'p Program<'a>,
    module: usize,
    names: BTreeMap<String, Static>,
}

impl<'p, 'a> Evaluator<'p, 'a> {
    pub fn new(program: &'p Program<'a>, module: usize) -> Self {
        Evaluator {
            program,
            module,
            names: BTreeMap::new(),
        }
    }

    pub fn with_generics(mut self, generics: &[(String, GenericValue)]) -> Self {
        for (name, value) in generics {
            self.names
                .insert(name.clone(), Static::Const(generic_const(value)));
        }
        self
    }

    pub fn bind(&mut self, name: &str, value: Static) {
        self.names.insert(name.to_string(), value);
    }

    pub fn get(&self, name: &str) -> Option<&Static> {
        self.names.get(name)
    }

    /// A value known while compiling.
    pub fn constant(&self, e: &Expr, sink: &mut Sink) -> Option<Const> {
        match self.eval(e, sink) {
            Static::Const(c) => Some(c),
            Static::Error => None,
            Static::Host(..) => {
                sink.report(say::not_constant(e, &self.launch_names(e)));
                None
            }
        }
    }

    pub fn constant_int(&self, e: &Expr, sink: &mut Sink) -> Option<i64> {
        match self.constant(e, sink)? {
            Const::Int(i) => match i64::try_from(i) {
                Ok(i) => Some(i),
                Err(_) => {
                    sink.report(say::constant_overflows(e.span));
                    None
                }
            },
            other => {
                sink.report(say::expected_integer(e.span, other.kind()));
                None
            }
        }
    }

    /// An integer of the host.
    pub fn host_int(&self, e: &Expr, sink: &mut Sink) -> Option<HostExpr> {
        match self.eval(e, sink) {
            Static::Error => None,
            Static::Host(h, HostType::Int) => Some(h),
            Static::Const(Const::Int(i)) => match i64::try_from(i) {
                Ok(i) => Some(HostExpr::Int(i)),
                Err(_) => {
                    sink.report(say::constant_overflows(e.span));
                    None
                }
            },
            Static::Const(c) => {
                sink.report(say::expected_integer(e.span, c.kind()));
                None
            }
            Static::Host(_, ty) => {
                let kind = if ty == HostType::Bool {
                    "a bool"
                } else {
                    "a scalar that is no `index`"
                };
                sink.report(say::expected_integer(e.span, kind));
                None
            }
        }
    }

    /// Whether a constraint over generics holds.
    pub fn constraint(&self, c: &Constraint, sink: &mut Sink) -> Option<bool> {
        match self.condition(c, sink)? {
            HostExpr::Bool(b) => Some(b),
            _ => {
                sink.report(say::not_constant(&c.expr, &self.launch_names(&c.expr)));
                None
            }
        }
    }

    /// A constraint as a host condition; `Bool` if it is known already.
    pub fn condition(&self, c: &Constraint, sink: &mut Sink) -> Option<HostExpr> {
        let value = self.eval(&c.expr, sink);
        let result = match &c.membership {
            None => value,
            Some(Membership::Range(r)) => {
                let lo = self.eval(&r.lo, sink);
                let hi = self.eval(&r.hi, sink);
                let below = if r.inclusive {
                    BinaryOp::Le
                } else {
                    BinaryOp::Lt
                };
                let lower = self.binary(BinaryOp::Ge, value.clone(), lo, &c.expr, sink);
                let upper = self.binary(below, value, hi, &c.expr, sink);
                self.binary(BinaryOp::And, lower, upper, &c.expr, sink)
            }
            Some(Membership::Set(set)) => {
                let mut any = Static::Const(Const::Bool(false));
                for item in set {
                    let item = self.eval(item, sink);
                    let equal = self.binary(BinaryOp::Eq, value.clone(), item, &c.expr, sink);
                    any = self.binary(BinaryOp::Or, any, equal, &c.expr, sink);
                }
                any
            }
        };
        match result {
            Static::Error => None,
            Static::Const(Const::Bool(b)) => Some(HostExpr::Bool(b)),
            Static::Host(h, HostType::Bool) => Some(h),
            _ => {
                sink.report(say::expected_condition(c.span));
                None
            }
        }
    }

    pub fn eval(&self, e: &Expr, sink: &mut Sink) -> Static {
        match &e.kind {
            ExprKind::Int(i) => Static::Const(Const::Int(*i)),
            ExprKind::Float(x) => Static::Const(Const::Float(*x)),
            ExprKind::Str(s) => Static::Const(Const::Str(s.clone())),
            ExprKind::Bool(b) => Static::Const(Const::Bool(*b)),
            ExprKind::DType(d) => Static::Const(Const::DType(*d)),
            ExprKind::Error => Static::Error,
            ExprKind::Name(path) => self.name(path, sink),
            ExprKind::Unary(op, a) => {
                let a = self.eval(a, sink);
                self.unary(*op, a, e, sink)
            }
            ExprKind::Binary(op, a, b) => {
                let a = self.eval(a, sink);
                let b = self.eval(b, sink);
                self.binary(*op, a, b, e, sink)
            }
            ExprKind::Select(c, a, b) => match self.eval(c, sink) {
                Static::Error => Static::Error,
                Static::Const(Const::Bool(c)) => self.eval(if c { a } else { b }, sink),
                Static::Host(c, HostType::Bool) => {
                    let a = self.eval(a, sink);
                    let b = self.eval(b, sink);
                    match (host(a), host(b)) {
                        (Some((a, ta)), Some((b, tb))) if ta == tb => {
                            Static::Host(HostExpr::op(HostOp::Select, [c, a, b]), ta)
                        }
                        _ => Static::Error,
                    }
                }
                _ => {
                    sink.report(say::expected_condition(c.span));
                    Static::Error
                }
            },
            ExprKind::Call { callee, args } => self.call(callee, args, e, sink),
            ExprKind::Method { .. }
            | ExprKind::Index { .. }
            | ExprKind::Reduce { .. }
            | ExprKind::Tuple(_) => {
                sink.report(say::not_a_host_expression(e.span));
                Static::Error
            }
        }
    }

    fn name(&self, path: &ast::Path, sink: &mut Sink) -> Static {
        if let [one] = path.segments.as_slice() {
            if let Some(value) = self.names.get(&one.name) {
                return value.clone();
            }
            if let Some(value) = builtin_constant(&one.name) {
                return Static::Const(Const::Float(value));
            }
        }
        match self.program.find(self.module, &path.segments) {
            Some((home, Entry::Const(c))) => self.program.constant(home, c),
            Some((_, other)) => {
                sink.report(say::item_is_no_value(
                    path.span,
                    &path_text(path),
                    other.kind(),
                ));
                Static::Error
            }
            None => {
                let name = path_text(path);
                let known = self.names.keys().map(String::as_str);
                let known = known
                    .chain(self.program.visible(self.module))
                    .chain(constant::BUILTIN_CONSTANTS);
                sink.report(say::unknown_name(path.span, &name, nearest(&name, known)));
                Static::Error
            }
        }
    }

    fn unary(&self, op: UnaryOp, a: Static, e: &Expr, sink: &mut Sink) -> Static {
        match (op, a) {
            (_, Static::Error) => Static::Error,
            (op, Static::Const(c)) => folded(constant::unary(op, &c), e, sink),
            (UnaryOp::Neg, Static::Host(h, ty)) if ty != HostType::Bool => {
                Static::Host(HostExpr::op(HostOp::Neg, [h]), ty)
            }
            (UnaryOp::Not, Static::Host(h, HostType::Bool)) => {
                Static::Host(HostExpr::op(HostOp::Not, [h]), HostType::Bool)
            }
            _ => {
                sink.report(say::host_types_differ(e));
                Static::Error
            }
        }
    }

    fn binary(&self, op: BinaryOp, a: Static, b: Static, e: &Expr, sink: &mut Sink) -> Static {
        use BinaryOp::*;
        if a == Static::Error || b == Static::Error {
            return Static::Error;
        }
        if let (Static::Const(a), Static::Const(b)) = (&a, &b) {
            return folded(constant::binary(op, a, b), e, sink);
        }
        // `true && c` and the like, which range and set constraints build.
        match (op, &a, &b) {
            (And, Static::Const(Const::Bool(true)), _)
            | (Or, Static::Const(Const::Bool(false)), _) => return b,
            (And, _, Static::Const(Const::Bool(true)))
            | (Or, _, Static::Const(Const::Bool(false))) => return a,
            (And, Static::Const(Const::Bool(false)), _)
            | (Or, Static::Const(Const::Bool(true)), _) => return a,
            (And, _, Static::Const(Const::Bool(false)))
            | (Or, _, Static::Const(Const::Bool(true))) => return b,
            _ => {}
        }
        let (Some((mut x, mut tx)), Some((mut y, mut ty))) = (host(a), host(b)) else {
            sink.report(say::host_types_differ(e));
            return Static::Error;
        };
        // The host holds a scalar parameter of any type as f64, so an integer beside it becomes one.
        if let (HostExpr::Int(i), HostType::Float) = (&x, ty) {
            (x, tx) = (HostExpr::Float(*i as f64), HostType::Float);
        }
        if let (HostExpr::Int(i), HostType::Float) = (&y, tx) {
            (y, ty) = (HostExpr::Float(*i as f64), HostType::Float);
        }
        let (host_op, operands, result) = match op {
            Add => (HostOp::Add, HostType::Int, None),
            Sub => (HostOp::Sub, HostType::Int, None),
            Mul => (HostOp::Mul, HostType::Int, None),
            Div => (HostOp::FloorDiv, HostType::Int, None),
            Rem => (HostOp::FloorMod, HostType::Int, None),
            And => (HostOp::And, HostType::Bool, None),
            Or => (HostOp::Or, HostType::Bool, None),
            Eq => (HostOp::Eq, tx, Some(HostType::Bool)),
            Ne => (HostOp::Ne, tx, Some(HostType::Bool)),
            Lt => (HostOp::Lt, tx, Some(HostType::Bool)),
            Le => (HostOp::Le, tx, Some(HostType::Bool)),
            Gt => (HostOp::Gt, tx, Some(HostType::Bool)),
            Ge => (HostOp::Ge, tx, Some(HostType::Bool)),
            Shl | Shr | BitAnd | BitOr | BitXor => {
                sink.report(say::not_a_host_expression(e.span));
                return Static::Error;
            }
        };
        let floats = matches!(op, Add | Sub | Mul) && tx == HostType::Float;
        if tx != ty || (tx != operands && !floats) {
            sink.report(say::host_types_differ(e));
            return Static::Error;
        }
        Static::Host(HostExpr::op(host_op, [x, y]), result.unwrap_or(tx))
    }

    fn call(&self, callee: &Expr, args: &[ast::Arg], e: &Expr, sink: &mut Sink) -> Static {
        let values: Vec<Static> = args.iter().map(|a| self.eval(&a.value, sink)).collect();
        if values.contains(&Static::Error) {
            return Static::Error;
        }
        let name = match &callee.kind {
            ExprKind::Name(path) => path_text(path),
            // `f32(H)` of a constant is that constant as a float.
            ExprKind::DType(d) => {
                return match values.as_slice() {
                    [Static::Const(Const::Int(i))] if d.is_float() => {
                        Static::Const(Const::Float(constant::round_to(*i as f64, *d)))
                    }
                    [Static::Const(Const::Float(x))] if d.is_float() => {
                        Static::Const(Const::Float(constant::round_to(*x, *d)))
                    }
                    [Static::Const(Const::Int(i))] if d.is_int() => Static::Const(Const::Int(*i)),
                    _ => {
                        sink.report(say::not_a_host_expression(e.span));
                        Static::Error
                    }
                };
            }
            _ => {
                sink.report(say::not_a_host_expression(e.span));
                return Static::Error;
            }
        };
        let constants: Option<Vec<Const>> = values
            .iter()
            .map(|v| match v {
                Static::Const(c) => Some(c.clone()),
                _ => None,
            })
            .collect();
        if name == "index" && values.len() == 1 {
            return values[0].clone();
        }
        if let Some(constants) = &constants
            && let Some(result) = constant::call(&name, constants)
        {
            return folded(result, e, sink);
        }
        let op = match name.as_str() {
            "cdiv" => HostOp::CeilDiv,
            "min" => HostOp::Min,
            "max" => HostOp::Max,
            _ => {
                sink.report(say::not_a_host_expression(e.span));
                return Static::Error;
            }
        };
        let operands: Vec<_> = values.into_iter().filter_map(host).collect();
        match <[(HostExpr, HostType); 2]>::try_from(operands) {
            Ok([(a, HostType::Int), (b, HostType::Int)]) => {
                Static::Host(HostExpr::op(op, [a, b]), HostType::Int)
            }
            _ => {
                sink.report(say::host_types_differ(e));
                Static::Error
            }
        }
    }

    /// The dims and scalars that `e` speaks of.
    fn launch_names(&self, e: &Expr) -> Vec<String> {
        let mut names = vec![];
        names_in(e, &mut |name| {
            if matches!(self.names.get(name), Some(Static::Host(..)))
                && !names.contains(&name.to_string())
            {
                names.push(name.to_string());
            }
        });
        names
    }
}

pub fn generic_const(value: &GenericValue) -> Const {
    match value {
        GenericValue::Int(i) => Const::Int(*i as i128),
        GenericValue::Bool(b) => Const::Bool(*b),
        GenericValue::DType(d) => Const::DType(*d),
    }
}

fn folded(result: Result<Const, FoldError>, e: &Expr, sink: &mut Sink) -> Static {
    match result {
        Ok(c) => Static::Const(c),
        Err(error) => {
            sink.report(say::cannot_fold(e, error));
            Static::Error
        }
    }
}

fn host(v: Static) -> Option<(HostExpr, HostType)> {
    match v {
        Static::Host(h, ty) => Some((h, ty)),
        Static::Const(Const::Int(i)) => {
            Some((HostExpr::Int(i64::try_from(i).ok()?), HostType::Int))
        }
        Static::Const(Const::Float(x)) => Some((HostExpr::Float(x), HostType::Float)),
        Static::Const(Const::Bool(b)) => Some((HostExpr::Bool(b), HostType::Bool)),
        _ => None,
    }
}

/// The values of the names and of the compared sides in a constraint, as `BM = 100`, `BM % 64 = 36`.
pub(super) fn values_in(c: &Constraint, cx: &Evaluator) -> Vec<String> {
    let mut out: Vec<String> = vec![];
    let mut quiet = Sink::default();
    let mut names = vec![];
    names_in(&c.expr, &mut |n| names.push(n.to_string()));
    for name in names {
        if let Some(Static::Const(v)) = cx.get(&name) {
            let text = format!("{name} = {v}");
            if !out.contains(&text) {
                out.push(text);
            }
        }
    }
    let mut side = |e: &Expr| {
        if matches!(e.kind, ExprKind::Binary(..) | ExprKind::Call { .. })
            && let Static::Const(v) = cx.eval(e, &mut quiet)
            && !matches!(v, Const::Bool(_))
        {
            out.push(format!("{} = {v}", super::text::expr(e)));
        }
    };
    match &c.expr.kind {
        ExprKind::Binary(_, a, b) if c.membership.is_none() => {
            side(a);
            side(b);
        }
        _ => side(&c.expr),
    }
    out
}

/// Every single-segment name in an expression, in order.
pub(super) fn names_in(e: &Expr, f: &mut dyn FnMut(&str)) {
    paths_in(e, &mut |path| {
        if let [one] = path.segments.as_slice() {
            f(&one.name);
        }
    });
}

/// Every name of a value in an expression, in order.
pub(super) fn paths_in(e: &Expr, f: &mut dyn FnMut(&ast::Path)) {
    match &e.kind {
        ExprKind::Name(path) => f(path),
        ExprKind::Unary(_, a) => paths_in(a, f),
        ExprKind::Binary(_, a, b) => {
            paths_in(a, f);
            paths_in(b, f);
        }
        ExprKind::Select(c, a, b) => {
            paths_in(c, f);
            paths_in(a, f);
            paths_in(b, f);
        }
        ExprKind::Call { args, .. } => args.iter().for_each(|a| paths_in(&a.value, f)),
        ExprKind::Method { receiver, args, .. } => {
            paths_in(receiver, f);
            args.iter().for_each(|a| paths_in(&a.value, f));
        }
        ExprKind::Index { base, slots } => {
            paths_in(base, f);
            for slot in slots {
                match slot {
                    ast::IndexSlot::At(e) | ast::IndexSlot::Gather(e) => paths_in(e, f),
                    ast::IndexSlot::Span { start, len } => {
                        paths_in(start, f);
                        paths_in(len, f);
                    }
                    ast::IndexSlot::Full(_) => {}
                }
            }
        }
        ExprKind::Reduce { range, body, .. } => {
            paths_in(&range.lo, f);
            paths_in(&range.hi, f);
            paths_in(body, f);
        }
        ExprKind::Tuple(items) => items.iter().for_each(|i| paths_in(i, f)),
        ExprKind::Int(_)
        | ExprKind::Float(_)
        | ExprKind::Str(_)
        | ExprKind::Bool(_)
        | ExprKind::DType(_)
        | ExprKind::Error => {}
    }
}
