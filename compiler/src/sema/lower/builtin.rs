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

const FOLDS: [(&str, ir::FoldOp, FoldAxis); 10] = [
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
enum FoldAxis {
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
    fn positional<'e, const N: usize>(
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

    /// `x / (1 + exp(-x))`.
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
        let negative = self.apply_unary(ir::UnaryOp::Neg, t.clone(), ty, e.span);
        let exp = self.apply_unary(ir::UnaryOp::Exp, negative, ty, e.span);
        let one = Term::Const(Const::Float(1.0));
        let sum = self.binary(BinaryOp::Add, (one, x), (exp, x), e);
        self.binary(BinaryOp::Div, (t, x), (sum, x), e)
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

    // ---- tiles made by one op --------------------------------------------------------------------------

    /// `dot`, folds and scans: written into `dst` if one is given and fits, else into a temporary. `None`: no such call.
    pub(super) fn producer(&mut self, e: &Expr, dst: Option<TileId>) -> Option<Term> {
        let ExprKind::Call { callee, args } = &e.kind else {
            return None;
        };
        let ExprKind::Name(path) = &callee.kind else {
            return None;
        };
        let [name] = path.segments.as_slice() else {
            return None;
        };
        let fold = FOLDS.iter().find(|(n, ..)| *n == name.name);
        if fold.is_none() && !matches!(name.name.as_str(), "dot" | "cumsum") {
            return None;
        }
        if self.in_map.is_some() {
            self.report(say::tile_call_in_map(e.span, &name.name));
            return Some(Term::Error);
        }
        let made = match (fold, name.name.as_str()) {
            (Some((_, op, axis)), _) => self.fold(name, *op, *axis, args, e, dst),
            (None, "dot") => self.dot_value(args, e, dst),
            _ => self.cumsum(args, e, dst),
        };
        Some(made.unwrap_or(Term::Error))
    }

    /// The tile that a producer writes: `dst` if shape and dtype are right and it is no operand.
    fn destination(
        &mut self,
        dst: Option<TileId>,
        shape: &[u64],
        dtype: DType,
        operands: &[TileId],
        span: Span,
    ) -> TileId {
        match dst {
            Some(t)
                if self.k.tile(t).shape == shape
                    && self.k.tile(t).dtype == dtype
                    && !operands.contains(&t) =>
            {
                t
            }
            _ => self.temporary(shape.to_vec(), dtype, span),
        }
    }

    fn fold(
        &mut self,
        name: &Ident,
        op: ir::FoldOp,
        axis: FoldAxis,
        args: &[Arg],
        e: &Expr,
        dst: Option<TileId>,
    ) -> Option<Term> {
        let (source, named) = self.split_args(name, args, &["axis", "order"], e)?;
        let t = self.tile_arg(source, &name.name)?;
        let logical = matches!(op, ir::FoldOp::And | ir::FoldOp::Or);
        if logical != (t.dtype == DType::Bool) || (!logical && !t.dtype.has_arithmetic()) {
            self.report(say::builtin_of_types(e, &name.name, t.dtype.name()));
            return None;
        }
        let rank = t.shape.len();
        let axis = match (axis, named[0]) {
            (FoldAxis::First, None) => 0,
            (FoldAxis::Last, None) => rank - 1,
            (FoldAxis::Given, None) if rank == 1 => 0,
            (FoldAxis::Given, None) => {
                self.report(say::axis_missing(e.span, &name.name, &t.shape));
                return None;
            }
            (FoldAxis::First | FoldAxis::Last, Some(arg)) => {
                self.report(say::unknown_named_argument_span(
                    arg.span, "axis", &name.name,
                ));
                return None;
            }
            (FoldAxis::Given, Some(arg)) => self.axis(arg, &t.shape)?,
        };
        let order = match named[1] {
            Some(arg) => self.order(&arg.value)?,
            None => ir::Order::Ascending,
        };
        let src = self.materialise(t.clone(), source.span);
        let mut shape = t.shape;
        shape.remove(axis);
        let dst = self.destination(dst, &shape, t.dtype, &[src], e.span);
        self.effect(
            OpKind::Reduce {
                dst,
                src,
                axis: axis as u32,
                op,
                order,
            },
            e.span,
        );
        Some(if shape.is_empty() {
            Term::Scalar(self.load(ir::Base::Tile(dst), vec![], e.span))
        } else {
            self.tile_term(dst, e.span)
        })
    }

    fn axis(&mut self, arg: &Arg, shape: &[u64]) -> Option<usize> {
        let axis = self.static_int(&arg.value)?;
        if axis < 0 || axis as usize >= shape.len() {
            self.report(say::no_such_axis(arg.value.span, axis, shape));
            return None;
        }
        Some(axis as usize)
    }

    pub(super) fn order(&mut self, e: &Expr) -> Option<ir::Order> {
        match &e.kind {
            ExprKind::Name(path) if path_text(path) == "ascending" => Some(ir::Order::Ascending),
            ExprKind::Call { callee, args } => match (&callee.kind, args.as_slice()) {
                (ExprKind::Name(path), [width]) if path_text(path) == "tree" => {
                    let w = self.static_int(&width.value)?;
                    if !(1..=1 << 16).contains(&w) || !(w as u64).is_power_of_two() {
                        self.report(say::tree_width(width.value.span, w));
                        return None;
                    }
                    Some(ir::Order::Tree(w as u32))
                }
                _ => {
                    self.report(say::unknown_order(e.span));
                    None
                }
            },
            _ => {
                self.report(say::unknown_order(e.span));
                None
            }
        }
    }

    fn cumsum(&mut self, args: &[Arg], e: &Expr, dst: Option<TileId>) -> Option<Term> {
        let name = callee_name(e)?;
        let (source, named) = self.split_args(name, args, &["axis"], e)?;
        let t = self.tile_arg(source, "cumsum")?;
        if !t.dtype.has_arithmetic() {
            self.report(say::builtin_of_types(e, "cumsum", t.dtype.name()));
            return None;
        }
        let axis = match named[0] {
            Some(arg) => self.axis(arg, &t.shape)?,
            None if t.shape.len() == 1 => 0,
            None => {
                self.report(say::axis_missing(e.span, "cumsum", &t.shape));
                return None;
            }
        };
        let src = self.materialise(t.clone(), source.span);
        let dst = self.destination(dst, &t.shape, t.dtype, &[src], e.span);
        let kind = OpKind::Scan {
            dst,
            src,
            axis: axis as u32,
            op: ir::FoldOp::Sum,
        };
        self.effect(kind, e.span);
        Some(self.tile_term(dst, e.span))
    }

    /// One positional argument and the named ones in the order of `names`.
    fn split_args<'e>(
        &mut self,
        name: &Ident,
        args: &'e [Arg],
        names: &[&str],
        e: &Expr,
    ) -> Option<(&'e Expr, Vec<Option<&'e Arg>>)> {
        let mut named: Vec<Option<&Arg>> = vec![None; names.len()];
        let mut positional = vec![];
        for a in args {
            match &a.name {
                None => positional.push(&a.value),
                Some(n) => match names.iter().position(|x| *x == n.name) {
                    Some(i) => named[i] = Some(a),
                    None => {
                        self.report(say::unknown_named_argument(n, &name.name, names));
                        return None;
                    }
                },
            }
        }
        match positional.as_slice() {
            [one] => Some((one, named)),
            _ => {
                let n = positional.len();
                self.report(say::wrong_number_of_arguments(e.span, &name.name, 1, n));
                None
            }
        }
    }

    fn tile_arg(&mut self, e: &Expr, function: &str) -> Option<TileExpr> {
        match self.expr(e, None) {
            Term::Tile(t) => Some(t),
            Term::Error => None,
            _ => {
                self.report(say::scalar_where_tile(e, function));
                None
            }
        }
    }

    // ---- dot -----------------------------------------------------------------------------------------------

    /// The arguments if `e` is a call of `dot`.
    pub(super) fn dot_args(e: &Expr) -> Option<&[Arg]> {
        match &e.kind {
            ExprKind::Call { callee, args } => match &callee.kind {
                ExprKind::Name(path) if path_text(path) == "dot" => Some(args),
                _ => None,
            },
            _ => None,
        }
    }

    fn dot_value(&mut self, args: &[Arg], e: &Expr, dst: Option<TileId>) -> Option<Term> {
        let (a, b, shape, dtype) = self.dot_operands(args, e)?;
        let operands = [a.view.tile, b.view.tile];
        let dst = self.destination(dst, &shape, dtype, &operands, e.span);
        let acc = self.whole_tile_view(dst, e.span);
        let kind = OpKind::Dot {
            acc,
            a,
            b,
            accumulate: false,
        };
        self.effect(kind, e.span);
        Some(self.tile_term(dst, e.span))
    }

    /// `acc += dot(a, b)`.
    pub(super) fn dot_accumulate(
        &mut self,
        acc: ir::View,
        target: &Expr,
        args: &[Arg],
        e: &Expr,
    ) -> Option<()> {
        let (a, b, shape, dtype) = self.dot_operands(args, e)?;
        let ir::Base::Tile(tile) = acc.base else {
            self.report(say::dot_into_global(target.span));
            return None;
        };
        if acc.shape() != shape {
            let d =
                say::dot_accumulator_shape(e.span, &self.describe(target, &acc.shape()), &shape);
            self.report(d);
            return None;
        }
        if self.k.tile(tile).dtype != dtype {
            let have = self.k.tile(tile).dtype;
            self.report(say::dot_accumulator_dtype(target, have, dtype));
            return None;
        }
        if a.view.tile == tile || b.view.tile == tile {
            self.report(say::dot_operand_is_accumulator(e.span));
            return None;
        }
        let kind = OpKind::Dot {
            acc: ir::TileView {
                tile,
                slots: acc.slots,
            },
            a,
            b,
            accumulate: true,
        };
        self.effect(kind, e.span);
        Some(())
    }

    fn whole_tile_view(&mut self, tile: TileId, span: Span) -> ir::TileView {
        ir::TileView {
            tile,
            slots: self.whole(tile, span).slots,
        }
    }

    /// Both operands, the shape of the product and the dtype it accumulates in.
    fn dot_operands(
        &mut self,
        args: &[Arg],
        e: &Expr,
    ) -> Option<(ir::Operand, ir::Operand, Vec<u64>, DType)> {
        let [a, b] = self.positional::<2>("dot", args, e)?;
        let x = self.dot_operand(a);
        let y = self.dot_operand(b);
        let (x, y) = (x?, y?);
        let (dx, dy) = (
            self.k.tile(x.view.tile).dtype,
            self.k.tile(y.view.tile).dtype,
        );
        if dx != dy {
            self.report(say::types_differ(e, a, dx.name(), b, dy.name()));
            return None;
        }
        let accumulator = match dx {
            DType::F64 => DType::F64,
            DType::I8 | DType::U8 => DType::I32,
            DType::UE8M0 | DType::Bool => {
                self.report(say::builtin_of_types(e, "dot", dx.name()));
                return None;
            }
            d if d.is_int() => {
                self.report(say::builtin_of_types(e, "dot", d.name()));
                return None;
            }
            _ => DType::F32,
        };
        let (xs, ys) = (operand_shape(&x), operand_shape(&y));
        if xs[1] != ys[0] {
            let (dx, dy) = (self.describe(a, &xs), self.describe(b, &ys));
            self.report(say::dot_inner_extents(
                e.span, &dx, a.span, xs[1], &dy, b.span, ys[0],
            ));
            return None;
        }
        Some((x, y, vec![xs[0], ys[1]], accumulator))
    }

    fn dot_operand(&mut self, e: &Expr) -> Option<ir::Operand> {
        let (inner, transposed) = match &e.kind {
            ExprKind::Method {
                receiver,
                name,
                args,
            } if name.name == "t" && args.is_empty() => (&**receiver, true),
            _ => (e, false),
        };
        let t = match self.expr(inner, None) {
            Term::Error => return None,
            Term::Tile(t) => t,
            _ => {
                self.report(say::scalar_where_tile(inner, "dot"));
                return None;
            }
        };
        if t.shape.len() != 2 {
            let d = say::dot_rank(e.span, &self.describe(inner, &t.shape));
            self.report(d);
            return None;
        }
        let view = match self.as_view(t, e.span) {
            ir::View {
                base: ir::Base::Tile(tile),
                slots,
            } if !slots.iter().any(|s| matches!(s, ir::Slot::Gather { .. })) => {
                ir::TileView { tile, slots }
            }
            ir::View {
                base: ir::Base::Param(_),
                ..
            } => {
                self.report(say::dot_of_global(inner));
                return None;
            }
            _ => {
                self.report(say::dot_of_gather(inner.span));
                return None;
            }
        };
        Some(ir::Operand { view, transposed })
    }

    // ---- several results --------------------------------------------------------------------------------

    /// `let (v, i) = topk(x, K);`: the two results as bindings.
    pub(super) fn several(&mut self, e: &Expr, names: &[Ident]) -> Option<[Binding; 2]> {
        let name = callee_name(e).filter(|n| matches!(n.name.as_str(), "topk" | "sort" | "argmax"));
        let (Some(name), ExprKind::Call { args, .. }) = (name, &e.kind) else {
            // Look for errors inside all the same.
            self.expr(e, None);
            self.report(say::one_result_for_several_names(e.span, names.len()));
            return None;
        };
        if names.len() != 2 {
            self.report(say::two_results(e.span, &name.name, names.len()));
            return None;
        }
        if self.in_map.is_some() {
            self.report(say::tile_call_in_map(e.span, &name.name));
            return None;
        }
        let mut smallest = false;
        let mut positional = vec![];
        for a in args {
            match &a.name {
                None => positional.push(&a.value),
                Some(n) if n.name == "smallest" && name.name != "argmax" => {
                    match self.expr(&a.value, None) {
                        Term::Const(Const::Bool(b)) => smallest = b,
                        Term::Error => return None,
                        _ => {
                            self.report(say::expected_condition(a.value.span));
                            return None;
                        }
                    }
                }
                Some(n) => {
                    let known: &[&str] = if name.name == "argmax" {
                        &[]
                    } else {
                        &["smallest"]
                    };
                    self.report(say::unknown_named_argument(n, &name.name, known));
                    return None;
                }
            }
        }
        let expected = if name.name == "topk" { 2 } else { 1 };
        if positional.len() != expected {
            let d = say::wrong_number_of_arguments(e.span, &name.name, expected, positional.len());
            self.report(d);
            return None;
        }
        let t = self.tile_arg(positional[0], &name.name)?;
        if !t.dtype.has_arithmetic() {
            self.report(say::builtin_of_types(e, &name.name, t.dtype.name()));
            return None;
        }
        let extent = *t.shape.last()?;
        let k = match name.name.as_str() {
            "topk" => {
                let k = self.static_int(positional[1])?;
                if k < 1 || k as u64 > extent {
                    self.report(say::topk_count(positional[1].span, k, &t.shape));
                    return None;
                }
                k as u64
            }
            "sort" => extent,
            _ => 1,
        };
        let src = self.materialise(t.clone(), positional[0].span);
        let mut shape = t.shape;
        let last = shape.len() - 1;
        shape[last] = k;
        let scalar = name.name == "argmax" && shape.len() == 1;
        let drop_axis = name.name == "argmax" && !scalar;
        let tile_name = |i: usize| {
            if name.name == "argmax" {
                "%tmp"
            } else {
                names[i].name.as_str()
            }
        };
        let values = self.new_tile(
            tile_name(0),
            ir::Space::Reg,
            shape.clone(),
            t.dtype,
            names[0].span,
        );
        let indices = self.new_tile(
            tile_name(1),
            ir::Space::Reg,
            shape.clone(),
            DType::I32,
            names[1].span,
        );
        let kind = OpKind::TopK {
            values,
            indices,
            src,
            smallest,
        };
        self.effect(kind, e.span);
        let mut out = vec![];
        for (tile, name) in [values, indices].into_iter().zip(names) {
            out.push(if scalar {
                let zero = self.index_const(0, e.span);
                let v = self.load(ir::Base::Tile(tile), vec![zero], e.span);
                self.name_value(v, &name.name);
                Binding::Value(v)
            } else if drop_axis {
                // `[R, 1]` as `[R]`.
                let zero = self.index_const(0, e.span);
                let mut view = self.whole(tile, e.span);
                view.slots[last] = ir::Slot::At(zero);
                let dtype = self.k.tile(tile).dtype;
                let flat = self.new_tile(
                    &name.name,
                    ir::Space::Reg,
                    shape[..last].to_vec(),
                    dtype,
                    name.span,
                );
                let dst = self.whole(flat, e.span);
                let oob = ir::Oob::Never;
                self.effect(
                    OpKind::Copy {
                        dst,
                        src: view,
                        oob,
                    },
                    e.span,
                );
                Binding::Tile {
                    tile: flat,
                    mutable: false,
                }
            } else {
                Binding::Tile {
                    tile,
                    mutable: false,
                }
            });
        }
        out.try_into().ok()
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

fn callee_name(e: &Expr) -> Option<&Ident> {
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

fn operand_shape(o: &ir::Operand) -> Vec<u64> {
    let mut shape = o.view.shape();
    if o.transposed {
        shape.reverse();
    }
    shape
}
