//! Statements that move elements: copies, assignments to elements and views, scatters, atomics.

use super::stmt::root_name;
use super::tile::Node;
use super::view::Place;
use super::*;
use crate::syntax::ast::{AssignOp, Attr, Expr, ExprKind};

impl Lower<'_, '_, '_> {
    pub(super) fn copy(&mut self, dst: &Expr, src: &Expr, attrs: &[Attr], span: Span) {
        self.check_attrs(
            attrs,
            "`copy`",
            &["oob", "missing", "via", "vector", "layout"],
        );
        let oob = self.oob(attrs);
        let place = self.place(dst);
        let term = self.expr(src, None);
        let view = match place {
            None => return,
            Some(Place::View(view)) => view,
            Some(Place::Element { .. }) => {
                self.report(say::copy_to_element(dst, src));
                return;
            }
        };
        if !self.writable(view.base, dst) {
            return;
        }
        if view
            .slots
            .iter()
            .any(|s| matches!(s, ir::Slot::Gather { .. }))
        {
            self.report(say::gather_as_destination(dst.span));
            return;
        }
        let (shape, dtype) = (view.shape(), self.base_dtype(view.base));
        match &term {
            Term::Error => return,
            Term::Tile(_) => {}
            _ => {
                self.report(say::copy_of_scalar(dst, src));
                return;
            }
        }
        let target = self.describe(dst, &shape);
        let Term::Tile(t) = &term else { return };
        if t.shape != shape {
            let d = say::copy_shapes(
                span,
                &target,
                dst.span,
                &self.describe(src, &t.shape),
                src.span,
            );
            self.report(d);
            return;
        }
        let name = format!("`{}`", super::super::text::expr(dst));
        let Some(t) = self.fit(term, &shape, dtype, src, &name) else {
            return;
        };
        let oob = match &t.node {
            Node::View(v) => {
                let v = v.clone();
                self.gather_oob(&v, oob, span).or(oob)
            }
            _ => oob,
        };
        self.store(view, t, AssignOp::Set, oob, span);
    }

    /// A gather must say what a missing row is; `None` for a view without one.
    pub(super) fn gather_oob(
        &mut self,
        v: &ir::View,
        oob: Option<ir::Oob>,
        span: Span,
    ) -> Option<ir::Oob> {
        let gathers = v.slots.iter().any(|s| matches!(s, ir::Slot::Gather { .. }));
        if gathers && oob.is_none() {
            self.report(say::gather_without_missing(span));
            return Some(ir::Oob::Zero);
        }
        gathers.then(|| oob.unwrap_or(ir::Oob::Zero))
    }

    pub(super) fn writable(&mut self, base: ir::Base, e: &Expr) -> bool {
        use tessera_artifact::ParamMode::*;
        match base {
            ir::Base::Tile(t) => {
                let root = root_name(e);
                let mutable = match root.and_then(|r| self.find_local(&r.name)) {
                    Some(Binding::Tile { mutable, .. }) => mutable,
                    _ => true,
                };
                if !mutable {
                    let tile = self.k.tile(t);
                    let d = say::assign_to_immutable(e.span, &tile.name, tile.span);
                    self.report(d);
                }
                mutable
            }
            ir::Base::Param(p) => match self.k.tensor(p).map(|t| t.mode) {
                Some(In) => {
                    let d = say::write_to_in(e.span, &self.k.param(p).name, self.k.param(p).span);
                    self.report(d);
                    false
                }
                Some(Flags) => {
                    let d = say::flags_are_no_tensor(e.span, &self.k.param(p).name);
                    self.report(d);
                    false
                }
                _ => true,
            },
        }
    }

    pub(super) fn assign(
        &mut self,
        target: &Expr,
        op: AssignOp,
        value: &Expr,
        attrs: &[Attr],
        span: Span,
    ) {
        self.check_attrs(attrs, "an assignment", &["oob", "missing", "order"]);
        if let ExprKind::Name(path) = &target.kind {
            match self.resolve(path) {
                Binding::Cell { tile, index } => {
                    return self.assign_cell(tile, index, op, value, span);
                }
                Binding::Value(_) | Binding::Const(_) => {
                    self.expr(value, None);
                    self.report(say::assign_to_value(target.span, &path_text(path)));
                    return;
                }
                _ => {}
            }
        }
        let Some(place) = self.place(target) else {
            self.expr(value, None);
            return;
        };
        match place {
            Place::Element { base, index } => {
                self.assign_element(base, index, target, op, value, attrs, span)
            }
            Place::View(view) => self.assign_view(view, target, op, value, attrs, span),
        }
    }

    fn assign_cell(&mut self, tile: TileId, index: bool, op: AssignOp, value: &Expr, span: Span) {
        if self.in_map.is_some() {
            let name = self.k.tile(tile).name.clone();
            self.report(say::cell_in_map(span, &name));
            return;
        }
        let ty = if index {
            Type::Index
        } else {
            Type::Scalar(self.k.tile(tile).dtype)
        };
        let t = self.expr(value, Some(ty));
        let name = self.k.tile(tile).name.clone();
        let Some(v) = self.coerce(t, ty, value, Some(&format!("`{name}`"))) else {
            return;
        };
        let v = match tile::assign_op(op) {
            None => v,
            Some(op) => match self.read_cell(tile, index, span) {
                Term::Scalar(old) => self.op(OpKind::Binary(op, old, v), ty, span),
                _ => return,
            },
        };
        self.set_cell(tile, v, span);
    }

    #[allow(clippy::too_many_arguments)]
    fn assign_element(
        &mut self,
        base: ir::Base,
        index: Vec<ValueId>,
        target: &Expr,
        op: AssignOp,
        value: &Expr,
        attrs: &[Attr],
        span: Span,
    ) {
        let ty = Type::Scalar(self.base_dtype(base));
        let reads = op == AssignOp::Set || self.readable(base, target);
        let writes = self.writable(base, target);
        let guard = match (self.oob(attrs), base) {
            (None, _) => None,
            (Some(ir::Oob::Skip), _) => self.inside_guard(base, &index, span),
            (Some(_), _) => {
                self.report(say::element_oob(span));
                None
            }
        };
        // The value's own loads happen only where the element is stored.
        let t = self.guarded(guard, true, span, |l| l.expr(value, Some(ty)));
        let name = format!("`{}`", super::super::text::expr(target));
        let v = self.coerce(t, ty, value, Some(&name));
        if !self.arithmetic_target(ty, op, target) {
            return;
        }
        if let Some(v) = v
            && reads
            && writes
        {
            self.store_element(base, index, v, op, guard, span);
        }
    }

    /// `x += e` needs a dtype with arithmetic.
    fn arithmetic_target(&mut self, ty: Type, op: AssignOp, target: &Expr) -> bool {
        let good = match ty {
            Type::Index => true,
            Type::Scalar(d) => op == AssignOp::Set || d.has_arithmetic(),
        };
        if !good {
            self.report(say::operator_of_type(
                target,
                "this assignment",
                &expr::type_text(ty),
            ));
        }
        good
    }

    fn assign_view(
        &mut self,
        view: ir::View,
        target: &Expr,
        op: AssignOp,
        value: &Expr,
        attrs: &[Attr],
        span: Span,
    ) {
        if self.in_map.is_some() {
            self.report(say::tile_expression_in_map(target.span));
            return;
        }
        if !self.writable(view.base, target) {
            return;
        }
        if op != AssignOp::Set && !self.readable(view.base, target) {
            return;
        }
        let dtype = self.base_dtype(view.base);
        if !self.arithmetic_target(Type::Scalar(dtype), op, target) {
            return;
        }
        if op == AssignOp::Add
            && let Some(args) = Self::dot_args(value)
        {
            self.dot_accumulate(view, target, args, value);
            return;
        }
        let oob = self.oob(attrs);
        let whole = match view.base {
            ir::Base::Tile(tile) => {
                let Term::Tile(t) = self.view_term(view.clone()) else {
                    return;
                };
                self.as_whole_tile(&t)
                    .filter(|_| op == AssignOp::Set)
                    .map(|_| tile)
            }
            ir::Base::Param(_) => None,
        };
        if let Some(tile) = whole {
            // `x = sum(x, …)`-like producers never write their own operand (`destination`).
            let name = super::super::text::expr(target);
            self.assign_tile(tile, value, oob, &name);
            return;
        }
        let term = self.expr(value, Some(Type::Scalar(dtype)));
        if let Term::Tile(t) = &term
            && t.shape != view.shape()
        {
            let d = say::copy_shapes(
                span,
                &self.describe(target, &view.shape()),
                target.span,
                &self.describe(value, &t.shape),
                value.span,
            );
            self.report(d);
            return;
        }
        let name = format!("`{}`", super::super::text::expr(target));
        let shape = view.shape();
        if let Some(mut t) = self.fit(term, &shape, dtype, value, &name) {
            if op != AssignOp::Set && t.dtype != dtype {
                t.node = Node::Cast(Box::new(t.node), dtype);
                t.dtype = dtype;
            }
            self.store(view, t, op, oob, span);
        }
    }

    pub(super) fn scatter(&mut self, target: &Expr, value: &Expr, attrs: &[Attr], span: Span) {
        self.check_attrs(attrs, "`scatter`", &["oob"]);
        let Some((param, index, guard)) = self.global_element(target, attrs, "scatter", span)
        else {
            return;
        };
        let ty = Type::Scalar(self.base_dtype(ir::Base::Param(param)));
        let t = self.guarded(guard, true, span, |l| l.expr(value, Some(ty)));
        if let Some(value) = self.coerce(t, ty, value, None) {
            let guard = self.and_guard(guard, span);
            let kind = OpKind::StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter: true,
            };
            self.effect(kind, span);
        }
    }

    pub(super) fn atomic(
        &mut self,
        target: &Expr,
        op: AssignOp,
        value: &Expr,
        attrs: &[Attr],
        span: Span,
    ) {
        self.check_attrs(attrs, "`atomic`", &["oob"]);
        if let ExprKind::Index { base, .. } = &target.kind
            && let Some(Binding::Param(p)) = self.base_of(base)
            && !self.readable(ir::Base::Param(p), target)
        {
            return;
        }
        let Some((param, index, guard)) = self.global_element(target, attrs, "atomic", span) else {
            return;
        };
        let op = match op {
            AssignOp::Add => ir::FoldOp::Sum,
            AssignOp::Max => ir::FoldOp::Max,
            AssignOp::Min => ir::FoldOp::Min,
            AssignOp::Set | AssignOp::Sub | AssignOp::Mul | AssignOp::Div => {
                self.report(say::atomic_operator(span));
                return;
            }
        };
        let ty = Type::Scalar(self.base_dtype(ir::Base::Param(param)));
        if !self.arithmetic_target(ty, AssignOp::Add, target) {
            return;
        }
        let t = self.guarded(guard, true, span, |l| l.expr(value, Some(ty)));
        if let Some(value) = self.coerce(t, ty, value, None) {
            let guard = self.and_guard(guard, span);
            let kind = OpKind::Atomic {
                op,
                param,
                index,
                value,
                guard,
            };
            self.effect(kind, span);
        }
    }

    /// The element of a tensor that `scatter` and `atomic` write, with the guard that `@oob(skip)` makes.
    fn global_element(
        &mut self,
        target: &Expr,
        attrs: &[Attr],
        what: &str,
        span: Span,
    ) -> Option<(ParamId, Vec<ValueId>, Option<ValueId>)> {
        match self.place(target)? {
            Place::Element {
                base: ir::Base::Param(param),
                index,
            } => {
                let base = ir::Base::Param(param);
                if !self.writable(base, target) {
                    return None;
                }
                let guard = match self.oob(attrs) {
                    None => None,
                    Some(ir::Oob::Skip) => self.inside_guard(base, &index, span),
                    Some(_) => {
                        self.report(say::element_oob(span));
                        None
                    }
                };
                Some((param, index, guard))
            }
            _ => {
                self.report(say::needs_tensor_element(target.span, what));
                None
            }
        }
    }
}
