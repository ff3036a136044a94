//! Scalars and operators: literals, names, arithmetic, comparisons, selects, conversions.

use super::tile::{Node, TileExpr};
use super::view::Place;
use super::*;
use crate::syntax::ast::{BinaryOp, Expr, ExprKind, UnaryOp};
use crate::tile::scalar::same_width;
use tessera_artifact::DType;

impl Lower<'_, '_, '_> {
    /// `want`: the type that the place around expects, for constants that have none of their own.
    pub(super) fn expr(&mut self, e: &Expr, want: Option<Type>) -> Term {
        match &e.kind {
            ExprKind::Int(i) => Term::Const(Const::Int(*i)),
            ExprKind::Float(x) => Term::Const(Const::Float(*x)),
            ExprKind::Bool(b) => Term::Const(Const::Bool(*b)),
            ExprKind::Str(s) => Term::Const(Const::Str(s.clone())),
            ExprKind::DType(d) => Term::Const(Const::DType(*d)),
            ExprKind::Error => Term::Error,
            ExprKind::Name(path) => self.name(path, e),
            ExprKind::Unary(op, a) => {
                let term = self.expr(a, want);
                self.unary(*op, term, e)
            }
            ExprKind::Binary(op, a, b) => self.binary_expr(*op, a, b, e, want),
            ExprKind::Select(c, a, b) => self.select(c, a, b, e, want),
            ExprKind::Call { callee, args } => self.call(callee, args, e, want),
            ExprKind::Method {
                receiver,
                name,
                args,
            } => self.method(receiver, name, args, e),
            ExprKind::Index { .. } => self.index(e),
            ExprKind::Reduce { .. } => {
                self.report(say::reduce_outside_reference(e.span));
                Term::Error
            }
            ExprKind::Tuple(_) => {
                self.report(say::tuple_value(e.span));
                Term::Error
            }
        }
    }

    fn name(&mut self, path: &ast::Path, e: &Expr) -> Term {
        match self.resolve(path) {
            Binding::Error => Term::Error,
            Binding::Const(c) => Term::Const(c),
            Binding::Value(v) => Term::Scalar(v),
            Binding::Cell { tile, index } => self.read_cell(tile, index, e.span),
            Binding::Tile { tile, .. } => {
                if self.in_map.is_some() {
                    let shape = self.k.tile(tile).shape.clone();
                    self.report(say::tile_in_map(e.span, &path_text(path), &shape));
                    return Term::Error;
                }
                self.tile_term(tile, e.span)
            }
            Binding::Param(_) => match self.place(e) {
                Some(Place::View(v)) => self.view_expr(v, e),
                _ => Term::Error,
            },
            Binding::Channel(_) => {
                self.report(say::channel_is_no_value(e.span, &path_text(path)));
                Term::Error
            }
            Binding::Record { .. } => {
                self.report(say::record_index(e.span));
                Term::Error
            }
        }
    }

    pub(super) fn read_cell(&mut self, tile: TileId, index: bool, span: Span) -> Term {
        let v = self.load(ir::Base::Tile(tile), vec![], span);
        Term::Scalar(if index {
            self.op(OpKind::Cast(v, Type::Index), Type::Index, span)
        } else {
            v
        })
    }

    fn index(&mut self, e: &Expr) -> Term {
        match self.place(e) {
            None => Term::Error,
            Some(Place::Element { base, index }) => {
                if !self.readable(base, e) {
                    return Term::Error;
                }
                Term::Scalar(self.load(base, index, e.span))
            }
            Some(Place::View(v)) => self.view_expr(v, e),
        }
    }

    fn view_expr(&mut self, v: ir::View, e: &Expr) -> Term {
        if self.in_map.is_some() {
            self.report(say::tile_expression_in_map(e.span));
            return Term::Error;
        }
        if !self.readable(v.base, e) {
            return Term::Error;
        }
        self.view_term(v)
    }

    /// Out parameters and flags are not read.
    pub(super) fn readable(&mut self, base: ir::Base, e: &Expr) -> bool {
        use tessera_artifact::ParamMode::*;
        let ir::Base::Param(p) = base else {
            return true;
        };
        match self.k.tensor(p).map(|t| t.mode) {
            Some(Out) => {
                let d = say::read_of_out(e.span, &self.k.param(p).name, self.k.param(p).span);
                self.report(d);
                false
            }
            Some(Flags) => {
                let d = say::flags_are_no_tensor(e.span, &self.k.param(p).name);
                self.report(d);
                false
            }
            _ => true,
        }
    }

    /// The element type; constants have none yet.
    pub(super) fn term_type(&self, t: &Term) -> Option<Type> {
        match t {
            Term::Scalar(v) => Some(self.k.ty(*v)),
            Term::Tile(t) => Some(Type::Scalar(t.dtype)),
            Term::Error | Term::Const(_) => None,
        }
    }

    // ---- constants into types ---------------------------------------------------------------------

    /// A constant as a value of `ty`; an error about `e` if it is none.
    pub(super) fn constant(&mut self, c: &Const, ty: Type, e: &Expr) -> Option<ValueId> {
        let span = e.span;
        let kind = match (c, ty) {
            (Const::Int(i), Type::Index) => match i64::try_from(*i) {
                Ok(i) => return Some(self.index_const(i, span)),
                Err(_) => {
                    self.report(say::constant_overflows(span));
                    return None;
                }
            },
            (Const::Int(i), Type::Scalar(d)) if d.is_int() => {
                let (lo, hi) = int_range(d);
                if *i < lo || *i > hi {
                    self.report(say::literal_out_of_range(span, *i, d, lo, hi));
                    return None;
                }
                ir::Const::Int(*i, d)
            }
            (Const::Float(x), Type::Scalar(d)) if d.is_float() => {
                ir::Const::Float(constant::round_to(*x, d), d)
            }
            (Const::Bool(b), Type::Scalar(DType::Bool)) => ir::Const::Bool(*b),
            (Const::Int(i), Type::Scalar(d)) if d.is_float() => {
                self.report(say::integer_where_float(e, *i, d));
                return None;
            }
            _ => {
                self.report(say::constant_of_wrong_type(span, c, &type_text(ty)));
                return None;
            }
        };
        Some(self.pure(OpKind::Const(kind), ty, span))
    }

    /// A scalar of its own type: constants take the default of their kind, or what is wanted.
    pub(super) fn scalar(&mut self, t: Term, want: Option<Type>, e: &Expr) -> Option<ValueId> {
        match t {
            Term::Error => None,
            Term::Scalar(v) => Some(v),
            Term::Const(c) => {
                // A dtype or a text is no scalar of any type; `constant` says so.
                let ty = default_type(&c, want).unwrap_or(Type::Index);
                self.constant(&c, ty, e)
            }
            Term::Tile(_) => {
                self.report(say::tile_where_scalar(e));
                None
            }
        }
    }

    /// A scalar of type `ty`: widening where exact, else an error.
    pub(super) fn coerce(
        &mut self,
        t: Term,
        ty: Type,
        e: &Expr,
        target: Option<&str>,
    ) -> Option<ValueId> {
        match t {
            Term::Error => None,
            Term::Const(c) => self.constant(&c, ty, e),
            Term::Tile(_) => {
                self.report(say::tile_where_scalar(e));
                None
            }
            Term::Scalar(v) => {
                let from = self.k.ty(v);
                match (from, ty) {
                    (a, b) if a == b => Some(v),
                    (Type::Scalar(a), Type::Scalar(b)) if a.widens_to(b) => {
                        Some(self.op(OpKind::Cast(v, ty), ty, e.span))
                    }
                    (Type::Scalar(a), Type::Scalar(b)) => {
                        self.report(say::needs_cast(e, a, b, target.unwrap_or("this place")));
                        None
                    }
                    _ => {
                        self.report(say::needs_conversion(e, &type_text(from), &type_text(ty)));
                        None
                    }
                }
            }
        }
    }

    /// An `index` value.
    pub(super) fn index_expr(&mut self, e: &Expr) -> Option<ValueId> {
        let t = self.expr(e, Some(Type::Index));
        self.coerce(t, Type::Index, e, None)
    }

    // ---- operators ------------------------------------------------------------------------------------

    fn unary(&mut self, op: UnaryOp, a: Term, e: &Expr) -> Term {
        match a {
            Term::Error => Term::Error,
            Term::Const(c) => match constant::unary(op, &c) {
                Ok(c) => Term::Const(c),
                Err(error) => {
                    self.report(say::cannot_fold(e, error));
                    Term::Error
                }
            },
            other => {
                let Some(ty) = self.term_type(&other) else {
                    return Term::Error;
                };
                let (op, good) = match (op, ty) {
                    (UnaryOp::Neg, Type::Index) => (ir::UnaryOp::Neg, true),
                    (UnaryOp::Neg, Type::Scalar(d)) => (ir::UnaryOp::Neg, d.has_arithmetic()),
                    (UnaryOp::Not, Type::Scalar(d)) => {
                        (ir::UnaryOp::Not, d == DType::Bool || d.is_int())
                    }
                    (UnaryOp::Not, Type::Index) => (ir::UnaryOp::Not, false),
                };
                if !good {
                    let sign = if op == ir::UnaryOp::Neg { "-" } else { "!" };
                    self.report(say::operator_of_type(e, sign, &type_text(ty)));
                    return Term::Error;
                }
                self.apply_unary(op, other, ty, e.span)
            }
        }
    }

    /// `result`: the element type of the result.
    pub(super) fn apply_unary(
        &mut self,
        op: ir::UnaryOp,
        a: Term,
        result: Type,
        span: Span,
    ) -> Term {
        match a {
            Term::Scalar(v) => Term::Scalar(self.op(OpKind::Unary(op, v), result, span)),
            Term::Tile(t) => {
                let dtype = scalar_dtype(result);
                Term::Tile(TileExpr {
                    node: Node::Unary(op, Box::new(t.node), dtype),
                    dtype,
                    shape: t.shape,
                })
            }
            _ => Term::Error,
        }
    }

    fn binary_expr(
        &mut self,
        op: BinaryOp,
        a: &Expr,
        b: &Expr,
        e: &Expr,
        want: Option<Type>,
    ) -> Term {
        let compares = matches!(
            op,
            BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge
        );
        let want = want.filter(|_| !compares);
        let ta = self.expr(a, want);
        // `i < n && x[i] > 0.0` reads x[i] only where i < n.
        let guard = match (op, &ta) {
            (BinaryOp::And | BinaryOp::Or, Term::Scalar(v)) if self.k.ty(*v) == Type::BOOL => {
                Some(*v)
            }
            (BinaryOp::And, Term::Const(Const::Bool(false))) => return ta,
            (BinaryOp::Or, Term::Const(Const::Bool(true))) => return ta,
            _ => None,
        };
        let want = self.term_type(&ta).or(want);
        let tb = self.guarded(guard, op == BinaryOp::And, e.span, |l| l.expr(b, want));
        self.binary(op, (ta, a), (tb, b), e)
    }

    pub(super) fn binary(
        &mut self,
        op: BinaryOp,
        (ta, a): (Term, &Expr),
        (tb, b): (Term, &Expr),
        e: &Expr,
    ) -> Term {
        if let (Term::Const(x), Term::Const(y)) = (&ta, &tb) {
            return match constant::binary(op, x, y) {
                Ok(c) => Term::Const(c),
                Err(error) => {
                    self.report(say::cannot_fold_operands(e, error, x, y));
                    Term::Error
                }
            };
        }
        let Some((ta, tb, ty)) = self.unify((ta, a), (tb, b), e) else {
            return Term::Error;
        };
        use BinaryOp::*;
        let arithmetic = match ty {
            Type::Index => true,
            Type::Scalar(d) => d.has_arithmetic(),
        };
        let integer = match ty {
            Type::Index => true,
            Type::Scalar(d) => d.is_int(),
        };
        let boolean = ty == Type::BOOL;
        let machine_integer = integer && ty != Type::Index;
        let (op, good) = match op {
            Add => (Ok(ir::BinaryOp::Add), arithmetic),
            Sub => (Ok(ir::BinaryOp::Sub), arithmetic),
            Mul => (Ok(ir::BinaryOp::Mul), arithmetic),
            Div => (Ok(ir::BinaryOp::Div), arithmetic),
            Rem => (Ok(ir::BinaryOp::Rem), integer),
            Shl => (Ok(ir::BinaryOp::Shl), machine_integer),
            Shr => (Ok(ir::BinaryOp::Shr), machine_integer),
            BitAnd => (Ok(ir::BinaryOp::And), machine_integer || boolean),
            BitOr => (Ok(ir::BinaryOp::Or), machine_integer || boolean),
            BitXor => (Ok(ir::BinaryOp::Xor), machine_integer || boolean),
            And => (Ok(ir::BinaryOp::And), boolean),
            Or => (Ok(ir::BinaryOp::Or), boolean),
            Eq => (Err(ir::Predicate::Eq), arithmetic || boolean),
            Ne => (Err(ir::Predicate::Ne), arithmetic || boolean),
            Lt => (Err(ir::Predicate::Lt), arithmetic),
            Le => (Err(ir::Predicate::Le), arithmetic),
            Gt => (Err(ir::Predicate::Gt), arithmetic),
            Ge => (Err(ir::Predicate::Ge), arithmetic),
        };
        if !good {
            let sign = match &e.kind {
                ExprKind::Binary(op, ..) => super::super::text::binary_op(*op),
                _ => "this operator",
            };
            self.report(say::operator_of_type(e, sign, &type_text(ty)));
            return Term::Error;
        }
        match op {
            Ok(op) => {
                if matches!(op, ir::BinaryOp::Div | ir::BinaryOp::Rem)
                    && integer
                    && self.is_zero(&tb)
                {
                    self.report(say::cannot_fold(e, constant::FoldError::DivisionByZero));
                    return Term::Error;
                }
                self.apply_binary(op, ta, tb, ty, e)
            }
            Err(predicate) => self.apply_compare(predicate, ta, tb, e),
        }
    }

    fn is_zero(&self, t: &Term) -> bool {
        match t {
            Term::Scalar(v) => matches!(
                self.k.def(*v),
                Some(OpKind::Const(ir::Const::Index(0) | ir::Const::Int(0, _)))
            ),
            _ => false,
        }
    }

    /// Gives both sides one element type: constants take the other's; anything else must agree already.
    pub(super) fn unify(
        &mut self,
        (ta, a): (Term, &Expr),
        (tb, b): (Term, &Expr),
        e: &Expr,
    ) -> Option<(Term, Term, Type)> {
        if matches!(ta, Term::Error) || matches!(tb, Term::Error) {
            return None;
        }
        let (ta, tb) = match (self.term_type(&ta), self.term_type(&tb)) {
            (Some(_), Some(_)) => (ta, tb),
            (Some(ty), None) => {
                let v = self.coerce(tb, ty, b, None)?;
                (ta, Term::Scalar(v))
            }
            (None, Some(ty)) => {
                let v = self.coerce(ta, ty, a, None)?;
                (Term::Scalar(v), tb)
            }
            (None, None) => {
                let v = self.scalar(ta, None, a)?;
                let ty = self.k.ty(v);
                let w = self.coerce(tb, ty, b, None)?;
                (Term::Scalar(v), Term::Scalar(w))
            }
        };
        let (x, y) = (self.term_type(&ta)?, self.term_type(&tb)?);
        if x != y {
            self.report(say::types_differ(e, a, &type_text(x), b, &type_text(y)));
            return None;
        }
        if let (Term::Tile(s), Term::Tile(t)) = (&ta, &tb)
            && s.shape != t.shape
        {
            let (s, t) = (self.describe(a, &s.shape), self.describe(b, &t.shape));
            self.report(say::operand_shapes_differ(e.span, &s, a.span, &t, b.span));
            return None;
        }
        Some((ta, tb, x))
    }

    pub(super) fn apply_binary(
        &mut self,
        op: ir::BinaryOp,
        a: Term,
        b: Term,
        ty: Type,
        e: &Expr,
    ) -> Term {
        if let (Term::Scalar(a), Term::Scalar(b)) = (&a, &b) {
            return Term::Scalar(if ty == Type::Index {
                self.index_binary(op, *a, *b, e.span)
            } else {
                self.op(OpKind::Binary(op, *a, *b), ty, e.span)
            });
        }
        let dtype = scalar_dtype(ty);
        match self.nodes([a, b]) {
            Some((shape, [a, b])) => Term::Tile(TileExpr {
                shape,
                dtype,
                node: Node::Binary(op, a, b, dtype),
            }),
            None => Term::Error,
        }
    }

    fn apply_compare(&mut self, p: ir::Predicate, a: Term, b: Term, e: &Expr) -> Term {
        if let (Term::Scalar(a), Term::Scalar(b)) = (&a, &b) {
            return Term::Scalar(self.pure(OpKind::Compare(p, *a, *b), Type::BOOL, e.span));
        }
        match self.nodes([a, b]) {
            Some((shape, [a, b])) => Term::Tile(TileExpr {
                shape,
                dtype: DType::Bool,
                node: Node::Compare(p, a, b),
            }),
            None => Term::Error,
        }
    }

    /// Operands of one elementwise op; at least one is a tile, and tiles have equal shapes.
    pub(super) fn nodes<const N: usize>(
        &mut self,
        terms: [Term; N],
    ) -> Option<(Vec<u64>, [Box<Node>; N])> {
        let shape = terms.iter().find_map(|t| match t {
            Term::Tile(t) => Some(t.shape.clone()),
            _ => None,
        })?;
        let nodes = terms.map(|t| match t {
            Term::Tile(t) => Some(Box::new(t.node)),
            Term::Scalar(v) => Some(Box::new(self.scalar_node(v))),
            Term::Error | Term::Const(_) => None,
        });
        let mut out = vec![];
        for n in nodes {
            out.push(n?);
        }
        Some((shape, out.try_into().ok()?))
    }

    fn select(&mut self, c: &Expr, a: &Expr, b: &Expr, e: &Expr, want: Option<Type>) -> Term {
        let cond = self.expr(c, Some(Type::BOOL));
        if let Term::Const(Const::Bool(value)) = cond {
            return self.expr(if value { a } else { b }, want);
        }
        let cond_type = self.term_type(&cond);
        let good = match cond_type {
            Some(ty) => ty == Type::BOOL,
            None => matches!(cond, Term::Error),
        };
        if !good {
            let kind = match (&cond, cond_type) {
                (Term::Const(c), _) => c.kind().to_string(),
                (_, Some(ty)) => type_text(ty),
                _ => String::new(),
            };
            self.report(say::condition_not_bool(c, &kind));
        }
        let guard = match &cond {
            Term::Scalar(v) if good => Some(*v),
            _ => None,
        };
        let ta = self.guarded(guard, true, e.span, |l| l.expr(a, want));
        let want = self.term_type(&ta).or(want);
        let tb = self.guarded(guard, false, e.span, |l| l.expr(b, want));
        // `c ? 1 : 0` takes the wanted type, else the default of its kind.
        let ta = match (&ta, self.term_type(&tb)) {
            (Term::Const(x), None) => {
                let ty = match default_type(x, want) {
                    Some(ty) => ty,
                    None => {
                        self.report(say::constant_of_wrong_type(a.span, x, "a value"));
                        return Term::Error;
                    }
                };
                match self.constant(x, ty, a) {
                    Some(v) => Term::Scalar(v),
                    None => return Term::Error,
                }
            }
            _ => ta,
        };
        let Some((ta, tb, ty)) = self.unify((ta, a), (tb, b), e) else {
            return Term::Error;
        };
        match (&cond, &ta, &tb) {
            (Term::Error, ..) => Term::Error,
            _ if !good => Term::Error,
            (Term::Scalar(c), Term::Scalar(a), Term::Scalar(b)) => {
                Term::Scalar(self.op(OpKind::Select(*c, *a, *b), ty, e.span))
            }
            _ => {
                let side = if matches!(ta, Term::Tile(_)) {
                    (&ta, a)
                } else {
                    (&tb, b)
                };
                if let (Term::Tile(m), Term::Tile(t)) = (&cond, side.0)
                    && m.shape != t.shape
                {
                    let side = side.1;
                    let (s, t) = (self.describe(c, &m.shape), self.describe(side, &t.shape));
                    self.report(say::operand_shapes_differ(
                        e.span, &s, c.span, &t, side.span,
                    ));
                    return Term::Error;
                }
                if ty == Type::Index {
                    self.report(say::operator_of_type(e, "? :", "index"));
                    return Term::Error;
                }
                let dtype = scalar_dtype(ty);
                match self.nodes([cond, ta, tb]) {
                    Some((shape, [c, a, b])) => Term::Tile(TileExpr {
                        shape,
                        dtype,
                        node: Node::Select(c, a, b, dtype),
                    }),
                    None => Term::Error,
                }
            }
        }
    }

    // ---- conversions ------------------------------------------------------------------------------------

    /// `f32(x)`, `index(x)`, `x.cast(T)`.
    pub(super) fn convert(&mut self, t: Term, to: Type, e: &Expr, arg: &Expr) -> Term {
        let from = match (&t, to) {
            (Term::Error, _) => return Term::Error,
            (Term::Const(c), _) => {
                let c = match (c, to) {
                    (Const::Int(_), Type::Index) => return Term::Const(c.clone()),
                    (Const::Int(i), Type::Scalar(d)) if d.is_float() => Const::Float(*i as f64),
                    (Const::Float(x), Type::Scalar(d)) if d.is_int() => {
                        let (lo, hi) = int_range(d);
                        Const::Int((x.trunc() as i128).clamp(lo, hi))
                    }
                    (Const::Bool(b), Type::Scalar(d)) if d.is_int() => Const::Int(*b as i128),
                    (Const::Bool(b), Type::Scalar(d)) if d.is_float() => {
                        Const::Float(*b as u8 as f64)
                    }
                    _ => c.clone(),
                };
                return match self.constant(&c, to, arg) {
                    Some(v) => Term::Scalar(v),
                    None => Term::Error,
                };
            }
            _ => match self.term_type(&t) {
                Some(from) => from,
                None => return Term::Error,
            },
        };
        if from == to {
            return t;
        }
        let good = match (from, to) {
            (Type::Scalar(d), Type::Index) => d.is_int(),
            (Type::Index, Type::Scalar(d)) => d != DType::Bool,
            (_, Type::Scalar(DType::Bool)) => false,
            _ => true,
        };
        if !good {
            self.report(say::no_conversion(e, &type_text(from), &type_text(to)));
            return Term::Error;
        }
        match t {
            Term::Scalar(v) => Term::Scalar(self.pure(OpKind::Cast(v, to), to, e.span)),
            Term::Tile(t) => match to {
                Type::Index => {
                    self.report(say::index_of_tile(e.span));
                    Term::Error
                }
                Type::Scalar(d) => Term::Tile(TileExpr {
                    node: Node::Cast(Box::new(t.node), d),
                    dtype: d,
                    shape: t.shape,
                }),
            },
            other => other,
        }
    }

    fn method(&mut self, receiver: &Expr, name: &Ident, args: &[ast::Arg], e: &Expr) -> Term {
        match name.name.as_str() {
            "cast" | "bitcast" => {
                let t = self.expr(receiver, None);
                let [arg] = args else {
                    self.report(say::method_argument(name, "one dtype"));
                    return Term::Error;
                };
                let to = match self.expr(&arg.value, None) {
                    Term::Const(Const::DType(d)) => d,
                    Term::Error => return Term::Error,
                    _ => {
                        self.report(say::method_argument(name, "a dtype"));
                        return Term::Error;
                    }
                };
                if name.name == "cast" {
                    self.convert(t, Type::Scalar(to), e, receiver)
                } else {
                    self.bitcast(t, to, e, receiver)
                }
            }
            "t" => {
                self.report(say::transpose_outside_dot(e.span));
                Term::Error
            }
            other => {
                let near = nearest(other, ["cast", "bitcast", "t"].into_iter());
                self.report(say::unknown_method(name, near));
                Term::Error
            }
        }
    }

    fn bitcast(&mut self, t: Term, to: DType, e: &Expr, receiver: &Expr) -> Term {
        let t = match t {
            Term::Const(_) => match self.scalar(t, None, receiver) {
                Some(v) => Term::Scalar(v),
                None => return Term::Error,
            },
            t => t,
        };
        match (self.term_type(&t), t) {
            (Some(Type::Scalar(from)), _) if !same_width(from, to) => {
                self.report(say::bitcast_width(e, from, to));
                Term::Error
            }
            (Some(Type::Index), _) => {
                self.report(say::no_conversion(e, "index", to.name()));
                Term::Error
            }
            (_, Term::Scalar(v)) => {
                Term::Scalar(self.op(OpKind::Bitcast(v, to), Type::Scalar(to), e.span))
            }
            (_, Term::Tile(t)) => Term::Tile(TileExpr {
                node: Node::Bitcast(Box::new(t.node), to),
                dtype: to,
                shape: t.shape,
            }),
            _ => Term::Error,
        }
    }
}

pub(super) fn type_text(ty: Type) -> String {
    match ty {
        Type::Index => "index".to_string(),
        Type::Scalar(d) => d.name().to_string(),
    }
}

/// Tile expressions never hold `index` elements, so the fallback is not seen.
pub(super) fn scalar_dtype(ty: Type) -> DType {
    match ty {
        Type::Scalar(d) => d,
        Type::Index => DType::I64,
    }
}

pub(super) fn default_type(c: &Const, want: Option<Type>) -> Option<Type> {
    Some(match (c, want) {
        (Const::Int(_), Some(Type::Scalar(d))) if d.is_int() => Type::Scalar(d),
        (Const::Int(_), _) => Type::Index,
        (Const::Float(_), Some(Type::Scalar(d))) if d.is_float() => Type::Scalar(d),
        (Const::Float(_), _) => Type::Scalar(DType::F32),
        (Const::Bool(_), _) => Type::BOOL,
        (Const::DType(_) | Const::Str(_), _) => return None,
    })
}

pub(super) fn int_range(d: DType) -> (i128, i128) {
    let bits = d.bits();
    if d.is_signed_int() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    }
}
