//! Built-in functions: elementwise ones, index arithmetic, and those that make tiles (`dot`, folds, scans, top-k).

use super::expr::{scalar_dtype, type_text};
use super::tile::{Node, TileExpr};
use super::view::Place;
use super::*;
use crate::syntax::ast::{Arg, BinaryOp, Expr, ExprKind};
use tessera_artifact::DType;

const FLOAT_UNARY: [(&str, ir::UnaryOp); 16] = [
    ("exp", ir::UnaryOp::Exp),
    ("exp2", ir::UnaryOp::Exp2),
    ("log", ir::UnaryOp::Log),
    ("log2", ir::UnaryOp::Log2),
    ("log1p", ir::UnaryOp::Log1p),
    ("sin", ir::UnaryOp::Sin),
    ("cos", ir::UnaryOp::Cos),
    ("tanh", ir::UnaryOp::Tanh),
    ("sqrt", ir::UnaryOp::Sqrt),
    ("rsqrt", ir::UnaryOp::Rsqrt),
    ("sigmoid", ir::UnaryOp::Sigmoid),
    ("softplus", ir::UnaryOp::Softplus),
    ("floor", ir::UnaryOp::Floor),
    ("ceil", ir::UnaryOp::Ceil),
    ("round", ir::UnaryOp::RoundEven),
    ("is_nan", ir::UnaryOp::IsNan),
];

pub(super) const FOLDS: [(&str, ir::FoldOp, FoldAxis); 10] = [
    ("sum", ir::FoldOp::Sum, FoldAxis::Given),
    ("prod", ir::FoldOp::Prod, FoldAxis::Given),
    ("maxof", ir::FoldOp::Max, FoldAxis::Given),
    ("minof", ir::FoldOp::Min, FoldAxis::Given),
    ("all", ir::FoldOp::And, FoldAxis::Given),
    ("any", ir::FoldOp::Or, FoldAxis::Given),
    ("rowsum", ir::FoldOp::Sum, FoldAxis::Last),
    ("rowmax", ir::FoldOp::Max, FoldAxis::Last),
    ("colsum", ir::FoldOp::Sum, FoldAxis::First),
    ("colmax", ir::FoldOp::Max, FoldAxis::First),
];

const OTHERS: [&str; 18] = [
    "abs", "min", "max", "clamp", "pow", "fma", "silu", "cdiv", "bits", "index", "block", "cumsum",
    "dot", "topk", "sort", "argmax", "take", "copy_id",
];

#[derive(Clone, Copy, PartialEq)]
pub(super) enum FoldAxis {
    Given,
    First,
    Last,
}

pub fn is_builtin(name: &str) -> bool {
    builtin_names().any(|n| n == name)
}

pub(super) fn builtin_names<'n>() -> impl Iterator<Item = &'n str> {
    FLOAT_UNARY
        .iter()
        .map(|(n, _)| *n)
        .chain(FOLDS.iter().map(|(n, ..)| *n))
        .chain(OTHERS)
}

impl Lower<'_, '_, '_> {
    pub(super) fn call(
        &mut self,
        callee: &Expr,
        args: &[Arg],
        e: &Expr,
        want: Option<Type>,
    ) -> Term {
        let path = match &callee.kind {
            ExprKind::DType(d) => return self.conversion_call(Type::Scalar(*d), args, e),
            ExprKind::Name(path) => path,
            ExprKind::Error => return Term::Error,
            _ => {
                self.report(say::not_callable(callee.span));
                return Term::Error;
            }
        };
        let [one] = path.segments.as_slice() else {
            return self.user_call(path, args, e);
        };
        if let Some(made) = self.producer(e, None) {
            return made;
        }
        match one.name.as_str() {
            "index" => self.conversion_call(Type::Index, args, e),
            "block" => self.block_call(args, e),
            "cdiv" => self.cdiv_call(args, e),
            "min" | "max" | "pow" => self.pair_call(one, args, e, want),
            "clamp" => self.clamp_call(args, e, want),
            "fma" => self.fma_call(args, e, want),
            "abs" => self.abs_call(args, e, want),
            "silu" => self.silu_call(args, e, want),
            "bits" => self.bits_call(args, e),
            "take" => self.take_call(args, e),
            "topk" | "sort" | "argmax" => {
                self.report(say::several_results(e.span, &one.name));
                Term::Error
            }
            name => {
                if let Some((_, op)) = FLOAT_UNARY.iter().find(|(n, _)| *n == name) {
                    return self.float_unary_call(one, *op, args, e, want);
                }
                // `T(x)` with a generic dtype is a conversion.
                if let Some(Static::Const(Const::DType(d))) = self.cx.get(name) {
                    let d = *d;
                    self.used_generics.insert(name.to_string());
                    return self.conversion_call(Type::Scalar(d), args, e);
                }
                self.user_call(path, args, e)
            }
        }
    }

    // ---- arguments ------------------------------------------------------------------------------------

    /// Exactly `N` positional arguments.
    pub(super) fn positional<'e, const N: usize>(
        &mut self,
        name: &str,
        args: &'e [Arg],
        e: &Expr,
    ) -> Option<[&'e Expr; N]> {
        if let Some(named) = args.iter().find_map(|a| a.name.as_ref()) {
            self.report(say::unknown_named_argument(named, name, &[]));
            return None;
        }
        let values: Vec<&Expr> = args.iter().map(|a| &a.value).collect();
        let n = values.len();
        match values.try_into() {
            Ok(values) => Some(values),
            Err(_) => {
                self.report(say::wrong_number_of_arguments(e.span, name, N, n));
                None
            }
        }
    }

    fn conversion_call(&mut self, to: Type, args: &[Arg], e: &Expr) -> Term {
        match self.positional::<1>(&type_text(to), args, e) {
            Some([x]) => {
                let t = self.expr(x, None);
                self.convert(t, to, e, x)
            }
            None => Term::Error,
        }
    }

    fn block_call(&mut self, args: &[Arg], e: &Expr) -> Term {
        let Some([axis]) = self.positional::<1>("block", args, e) else {
            return Term::Error;
        };
        let Some(axis) = self.static_int(axis) else {
            return Term::Error;
        };
        let axes = self.k.launch.grid.len();
        if axis < 0 || axis as usize >= axes {
            self.report(say::no_such_grid_axis(e.span, axis, axes));
            return Term::Error;
        }
        if self.k.launch.persistent && !self.in_items {
            self.report(say::block_of_persistent(e.span));
            return Term::Error;
        }
        Term::Scalar(self.pure(OpKind::BlockIndex(axis as u8), Type::Index, e.span))
    }

    fn cdiv_call(&mut self, args: &[Arg], e: &Expr) -> Term {
        let Some([a, b]) = self.positional::<2>("cdiv", args, e) else {
            return Term::Error;
        };
        let ta = self.expr(a, Some(Type::Index));
        let tb = self.expr(b, Some(Type::Index));
        if let (Term::Const(x), Term::Const(y)) = (&ta, &tb) {
            return self.fold_call("cdiv", &[x.clone(), y.clone()], e);
        }
        let x = self.coerce(ta, Type::Index, a, None);
        let y = self.coerce(tb, Type::Index, b, None);
        match (x, y) {
            (Some(x), Some(y)) => Term::Scalar(self.ceil_div(x, y, e.span)),
            _ => Term::Error,
        }
    }

    fn fold_call(&mut self, name: &str, args: &[Const], e: &Expr) -> Term {
        match constant::call(name, args) {
            Some(Ok(c)) => Term::Const(c),
            Some(Err(error)) => {
                self.report(say::cannot_fold(e, error));
                Term::Error
            }
            None => {
                let kinds: Vec<&str> = args.iter().map(Const::kind).collect();
                self.report(say::builtin_of_types(e, name, &kinds.join(" and ")));
                Term::Error
            }
        }
    }

    fn pair_call(&mut self, name: &Ident, args: &[Arg], e: &Expr, want: Option<Type>) -> Term {
        let Some([a, b]) = self.positional::<2>(&name.name, args, e) else {
            return Term::Error;
        };
        let ta = self.expr(a, want);
        let want = self.term_type(&ta).or(want);
        let tb = self.expr(b, want);
        self.pair(&name.name, (ta, a), (tb, b), e)
    }

    fn pair(
        &mut self,
        name: &str,
        (ta, a): (Term, &Expr),
        (tb, b): (Term, &Expr),
        e: &Expr,
    ) -> Term {
        if let (Term::Const(x), Term::Const(y)) = (&ta, &tb) {
            return self.fold_call(name, &[x.clone(), y.clone()], e);
        }
        let op = match name {
            "min" => ir::BinaryOp::Min,
            "max" => ir::BinaryOp::Max,
            _ => ir::BinaryOp::Pow,
        };
        let Some((ta, tb, ty)) = self.unify((ta, a), (tb, b), e) else {
            return Term::Error;
        };
        let good = match ty {
            Type::Index => op != ir::BinaryOp::Pow,
            Type::Scalar(d) if op == ir::BinaryOp::Pow => d.is_float() && d.has_arithmetic(),
            Type::Scalar(d) => d.has_arithmetic(),
        };
        if !good {
            self.report(say::builtin_of_types(e, name, &type_text(ty)));
            return Term::Error;
        }
        self.apply_binary(op, ta, tb, ty, e)
    }

    fn clamp_call(&mut self, args: &[Arg], e: &Expr, want: Option<Type>) -> Term {
        let Some([x, lo, hi]) = self.positional::<3>("clamp", args, e) else {
            return Term::Error;
        };
        let tx = self.expr(x, want);
        let want = self.term_type(&tx).or(want);
        let tlo = self.expr(lo, want);
        let thi = self.expr(hi, want);
        let at_least = self.pair("max", (tx, x), (tlo, lo), e);
        self.pair("min", (at_least, x), (thi, hi), e)
    }

    fn fma_call(&mut self, args: &[Arg], e: &Expr, want: Option<Type>) -> Term {
        let Some([a, b, c]) = self.positional::<3>("fma", args, e) else {
            return Term::Error;
        };
        let ta = self.expr(a, want);
        let want = self.term_type(&ta).or(want);
        let tb = self.expr(b, want);
        let Some((ta, tb, ty)) = self.unify((ta, a), (tb, b), e) else {
            return Term::Error;
        };
        let tc = self.expr(c, Some(ty));
        // The third operand must agree in type with the product, in shape with its tiles.
        let against = if matches!(ta, Term::Tile(_)) {
            (ta.clone(), a)
        } else {
            (tb.clone(), b)
        };
        let Some((_, tc, ty)) = self.unify(against, (tc, c), e) else {
            return Term::Error;
        };
        if !matches!(ty, Type::Scalar(d) if d.is_float() && d.has_arithmetic()) {
            self.report(say::builtin_of_types(e, "fma", &type_text(ty)));
            return Term::Error;
        }
        if let (Term::Scalar(a), Term::Scalar(b), Term::Scalar(c)) = (&ta, &tb, &tc) {
            return Term::Scalar(self.op(OpKind::Fma(*a, *b, *c), ty, e.span));
        }
        let dtype = scalar_dtype(ty);
        match self.nodes([ta, tb, tc]) {
            Some((shape, abc)) => Term::Tile(TileExpr {
                shape,
                dtype,
                node: Node::Fma(abc, dtype),
            }),
            None => Term::Error,
        }
    }

    fn abs_call(&mut self, args: &[Arg], e: &Expr, want: Option<Type>) -> Term {
        let Some([x]) = self.positional::<1>("abs", args, e) else {
            return Term::Error;
        };
        let t = self.expr(x, want);
        if let Term::Const(c) = &t {
            return self.fold_call("abs", std::slice::from_ref(c), e);
        }
        match self.term_type(&t) {
            None => Term::Error,
            Some(Type::Scalar(d)) if !d.has_arithmetic() => {
                self.report(say::builtin_of_types(e, "abs", d.name()));
                Term::Error
            }
            Some(ty) => self.apply_unary(ir::UnaryOp::Abs, t, ty, e.span),
        }
    }

    fn float_unary_call(
        &mut self,
        name: &Ident,
        op: ir::UnaryOp,
        args: &[Arg],
        e: &Expr,
        want: Option<Type>,
    ) -> Term {
        let Some([x]) = self.positional::<1>(&name.name, args, e) else {
            return Term::Error;
        };
        let t = self.expr(x, want.filter(|_| op != ir::UnaryOp::IsNan));
        let t = match t {
            Term::Const(c) => match constant::call(&name.name, std::slice::from_ref(&c)) {
                Some(Ok(c)) => return Term::Const(c),
                _ => match c {
                    Const::Float(_) => match self.scalar(Term::Const(c), want, x) {
                        Some(v) => Term::Scalar(v),
                        None => return Term::Error,
                    },
                    Const::Int(i) => {
                        self.report(say::integer_where_float(x, i, DType::F32));
                        return Term::Error;
                    }
                    _ => return self.fold_call(&name.name, &[c], e),
                },
            },
            t => t,
        };
        match self.term_type(&t) {
            None => Term::Error,
            Some(Type::Scalar(d)) if d.is_float() && d.has_arithmetic() => {
                let result = if op == ir::UnaryOp::IsNan {
                    Type::BOOL
                } else {
                    Type::Scalar(d)
                };
                self.apply_unary(op, t, result, e.span)
            }
            Some(ty) => {
                self.report(say::builtin_of_types(e, &name.name, &type_text(ty)));
                Term::Error
            }
        }
    }

    /// `x * sigmoid(x)`.
    fn silu_call(&mut self, args: &[Arg], e: &Expr, want: Option<Type>) -> Term {
        let Some([x]) = self.positional::<1>("silu", args, e) else {
            return Term::Error;
        };
        let t = self.expr(x, want);
        let t = match t {
            Term::Const(_) => match self.scalar(t, want, x) {
                Some(v) => Term::Scalar(v),
                None => return Term::Error,
            },
            t => t,
        };
        match self.term_type(&t) {
            None => return Term::Error,
            Some(Type::Scalar(d)) if d.is_float() && d.has_arithmetic() => {}
            Some(ty) => {
                self.report(say::builtin_of_types(e, "silu", &type_text(ty)));
                return Term::Error;
            }
        }
        let Some(ty) = self.term_type(&t) else {
            return Term::Error;
        };
        let sigmoid = self.apply_unary(ir::UnaryOp::Sigmoid, t.clone(), ty, e.span);
        self.binary(BinaryOp::Mul, (t, x), (sigmoid, x), e)
    }

    fn bits_call(&mut self, args: &[Arg], e: &Expr) -> Term {
        let Some([x]) = self.positional::<1>("bits", args, e) else {
            return Term::Error;
        };
        match self.expr(x, None) {
            Term::Error => Term::Error,
            Term::Const(c) => self.fold_call("bits", &[c], e),
            _ => {
                self.report(say::builtin_of_types(
                    e,
                    "bits",
                    "a value; it takes a dtype",
                ));
                Term::Error
            }
        }
    }

    /// Elements of the flags of a `signal` or `wait`.
    pub(super) fn flag_place(&mut self, e: &Expr) -> Option<(ParamId, Vec<ValueId>)> {
        match self.place(e)? {
            Place::Element {
                base: ir::Base::Param(param),
                index,
            } if self
                .k
                .tensor(param)
                .is_some_and(|t| t.mode == tessera_artifact::ParamMode::Flags) =>
            {
                Some((param, index))
            }
            _ => {
                self.report(say::not_a_flag(e.span));
                None
            }
        }
    }
}

pub(super) fn callee_name(e: &Expr) -> Option<&Ident> {
    match &e.kind {
        ExprKind::Call { callee, .. } => match &callee.kind {
            ExprKind::Name(path) => match path.segments.as_slice() {
                [one] => Some(one),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}
