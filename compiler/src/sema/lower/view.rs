//! Indexing: elements, rectangles, gathers; loads with their guards.

use super::*;
use crate::syntax::ast::{Expr, ExprKind, IndexSlot};
use tessera_artifact::HostExpr;

/// What `base[slots]` names.
pub(super) enum Place {
    Element { base: ir::Base, index: Vec<ValueId> },
    View(ir::View),
}

impl Lower<'_, '_, '_> {
    /// The tile or tensor that an indexed expression is based on.
    pub(super) fn base_of(&mut self, e: &Expr) -> Option<Binding> {
        match &e.kind {
            ExprKind::Name(path) => Some(self.resolve(path)),
            ExprKind::Error => None,
            _ => {
                self.report(say::index_of_expression(e.span));
                None
            }
        }
    }

    /// `base[slots]`, or a bare name as the whole of it. Cells, channels and values are no places.
    pub(super) fn place(&mut self, e: &Expr) -> Option<Place> {
        let (base_expr, slots) = match &e.kind {
            ExprKind::Index { base, slots } => (&**base, Some(slots)),
            _ => (e, None),
        };
        let base = match self.base_of(base_expr)? {
            Binding::Error => return None,
            Binding::Tile { tile, .. } => ir::Base::Tile(tile),
            Binding::Cell { tile, .. } if slots.is_none() => ir::Base::Tile(tile),
            Binding::Param(param) => ir::Base::Param(param),
            Binding::Record { param, row } => return self.record_place(param, row, slots, e),
            Binding::Const(_) | Binding::Value(_) | Binding::Channel(_) | Binding::Cell { .. } => {
                let name = super::super::text::expr(base_expr);
                self.report(say::cannot_index(base_expr.span, &name));
                return None;
            }
        };
        let rank = self.rank(base);
        let Some(slots) = slots else {
            let full: Vec<IndexSlot> = (0..rank).map(|_| IndexSlot::Full(e.span)).collect();
            return self.slots(base, &full, e);
        };
        if slots.len() != rank {
            let name = super::super::text::expr(base_expr);
            let shape = self.base_shape_text(base);
            self.report(say::wrong_number_of_indices(
                e.span,
                &name,
                &shape,
                rank,
                slots.len(),
            ));
            return None;
        }
        self.slots(base, slots, e)
    }

    fn record_place(
        &mut self,
        param: ParamId,
        row: ValueId,
        slots: Option<&Vec<IndexSlot>>,
        e: &Expr,
    ) -> Option<Place> {
        let Some([IndexSlot::At(i)]) = slots.map(Vec::as_slice) else {
            self.report(say::record_index(e.span));
            return None;
        };
        let i = self.index_expr(i)?;
        Some(Place::Element {
            base: ir::Base::Param(param),
            index: vec![row, i],
        })
    }

    fn rank(&self, base: ir::Base) -> usize {
        match base {
            ir::Base::Tile(t) => self.k.tile(t).shape.len(),
            ir::Base::Param(p) => self.k.tensor(p).map_or(0, |t| t.shape.len()),
        }
    }

    pub(super) fn base_shape_text(&self, base: ir::Base) -> String {
        match base {
            ir::Base::Tile(t) => tile::shape_text(&self.k.tile(t).shape),
            ir::Base::Param(p) => {
                let extents = self.k.tensor(p).map(|t| &t.shape).into_iter().flatten();
                let extents: Vec<String> = extents.map(host_text).collect();
                format!("[{}]", extents.join(", "))
            }
        }
    }

    fn extent(&self, base: ir::Base, axis: usize) -> HostExpr {
        match base {
            ir::Base::Tile(t) => HostExpr::Int(self.k.tile(t).shape[axis] as i64),
            ir::Base::Param(p) => match self.k.tensor(p).and_then(|t| t.shape.get(axis)) {
                Some(e) => e.clone(),
                None => HostExpr::Int(1),
            },
        }
    }

    /// An extent of generics and of dims whose range holds one value.
    fn static_extent(&self, base: ir::Base, axis: usize) -> Option<i64> {
        let only_value = |name: &str| {
            let d = self.k.dims.iter().find(|d| d.name == name)?;
            (d.lo == d.hi).then_some(d.lo)
        };
        self.extent(base, axis)
            .eval_int(&only_value, &|_| None)
            .ok()
    }

    fn slots(&mut self, base: ir::Base, slots: &[IndexSlot], e: &Expr) -> Option<Place> {
        let mut out = vec![];
        let mut good = true;
        for (axis, slot) in slots.iter().enumerate() {
            match self.slot(base, axis, slot, e) {
                Some(s) => out.push(s),
                None => good = false,
            }
        }
        if !good {
            return None;
        }
        let at: Option<Vec<ValueId>> = out
            .iter()
            .map(|s| match s {
                ir::Slot::At(v) => Some(*v),
                _ => None,
            })
            .collect();
        Some(match at {
            Some(index) => Place::Element { base, index },
            None => Place::View(ir::View { base, slots: out }),
        })
    }

    fn slot(
        &mut self,
        base: ir::Base,
        axis: usize,
        slot: &IndexSlot,
        e: &Expr,
    ) -> Option<ir::Slot> {
        match slot {
            IndexSlot::At(i) => self.index_expr(i).map(ir::Slot::At),
            IndexSlot::Span { start, len } => {
                let start = self.index_expr(start);
                let length = self.static_int(len)?;
                if length < 1 {
                    self.report(say::span_not_positive(len.span, length));
                    return None;
                }
                if let (Some(start), HostExpr::Int(extent)) = (start, self.extent(base, axis))
                    && matches!(base, ir::Base::Tile(_))
                    && (length > extent
                        || self
                            .const_index(start)
                            .is_some_and(|s| s < 0 || s + length > extent))
                {
                    let shape = self.base_shape_text(base);
                    let from = self.const_index(start);
                    self.report(say::span_past_tile(len.span, from, length, axis, &shape));
                    return None;
                }
                Some(ir::Slot::Span {
                    start: start?,
                    len: length as u64,
                })
            }
            IndexSlot::Full(span) => {
                let Some(extent) = self.static_extent(base, axis) else {
                    let extent = host_text(&self.extent(base, axis));
                    self.report(say::full_slot_of_dim(*span, &extent, axis));
                    return None;
                };
                Some(ir::Slot::Span {
                    start: self.index_const(0, *span),
                    len: extent.max(0) as u64,
                })
            }
            IndexSlot::Gather(index) => {
                let term = self.expr(index, None);
                let t = match term {
                    Term::Error => return None,
                    Term::Tile(t) if t.shape.len() == 1 && t.dtype.is_int() => t,
                    _ => {
                        self.report(say::gather_index(index.span));
                        return None;
                    }
                };
                if matches!(base, ir::Base::Tile(_)) && self.in_map.is_some() {
                    self.report(say::tile_expression_in_map(e.span));
                    return None;
                }
                let len = t.shape[0];
                let view = self.as_view(t, index.span);
                Some(ir::Slot::Gather {
                    index: Box::new(view),
                    len,
                })
            }
        }
    }

    /// The value of one element, read where the current guard holds.
    pub(super) fn load(&mut self, base: ir::Base, mut index: Vec<ValueId>, span: Span) -> ValueId {
        let ty = Type::Scalar(self.base_dtype(base));
        let kind = match base {
            ir::Base::Param(param) => OpKind::LoadGlobal {
                param,
                index,
                guard: self.guard,
            },
            ir::Base::Tile(tile) => {
                if let Some(guard) = self.guard {
                    // Tiles have no guarded load: where the guard is false element 0 is read and not used.
                    let shape = self.k.tile(tile).shape.clone();
                    for (i, extent) in index.iter_mut().zip(shape) {
                        if !self.inside_by_form(*i, extent) {
                            let zero = self.index_const(0, span);
                            *i = self.op(OpKind::Select(guard, *i, zero), Type::Index, span);
                        }
                    }
                }
                OpKind::LoadTile { tile, index }
            }
        };
        self.op(kind, ty, span)
    }

    /// A constant below the extent, or a variable of a map over no more than it.
    fn inside_by_form(&self, v: ValueId, extent: u64) -> bool {
        if let Some(i) = self.const_index(v) {
            return i >= 0 && (i as u64) < extent;
        }
        match self.k.value(v).def {
            Def::Arg(block, n) => self
                .map_extents
                .get(&block)
                .and_then(|e| e.get(n as usize))
                .is_some_and(|&e| e <= extent),
            Def::Op(_) => false,
        }
    }

    /// Runs `f` with `cond` (or its opposite) added to the guard.
    pub(super) fn guarded<R>(
        &mut self,
        cond: Option<ValueId>,
        positive: bool,
        span: Span,
        f: impl FnOnce(&mut Self) -> R,
    ) -> R {
        let before = self.guard;
        // The guard is only built if something reads under it.
        let mark = self.k.ops.len();
        if let Some(cond) = cond {
            let cond = if positive {
                cond
            } else {
                self.pure(OpKind::Unary(ir::UnaryOp::Not, cond), Type::BOOL, span)
            };
            self.guard = match before {
                None => Some(cond),
                Some(outer) => Some(self.pure(
                    OpKind::Binary(ir::BinaryOp::And, outer, cond),
                    Type::BOOL,
                    span,
                )),
            };
        }
        let built = (self.k.ops.len(), self.k.values.len());
        let r = f(self);
        self.guard = before;
        if built == (self.k.ops.len(), self.k.values.len()) {
            self.take_back(mark);
        }
        r
    }

    /// Takes back the newest ops of the current block, from `mark` on, which nothing uses.
    fn take_back(&mut self, mark: usize) {
        let Some(first) = self.k.ops[mark..].iter().find_map(|op| op.result) else {
            return;
        };
        self.k.ops.truncate(mark);
        self.k.values.truncate(first.index());
        let block = self.current_block();
        let ops = &mut self.k.blocks[block.index()].ops;
        ops.retain(|op| op.index() < mark);
        if let Some(frame) = self.frames.last_mut() {
            frame.known.retain(|(_, v)| *v < first);
        }
    }

    pub(super) fn and_guard(&mut self, extra: Option<ValueId>, span: Span) -> Option<ValueId> {
        match (self.guard, extra) {
            (Some(a), Some(b)) => {
                Some(self.pure(OpKind::Binary(ir::BinaryOp::And, a, b), Type::BOOL, span))
            }
            (a, b) => a.or(b),
        }
    }

    /// `0 <= i && i < extent` for every axis: what `@oob(skip)` on an element assignment means.
    pub(super) fn inside_guard(
        &mut self,
        base: ir::Base,
        index: &[ValueId],
        span: Span,
    ) -> Option<ValueId> {
        let mut guard = None;
        for (axis, &i) in index.iter().enumerate() {
            let extent = self.extent(base, axis);
            let extent = self.host_value(&extent, span);
            let zero = self.index_const(0, span);
            let below = self.pure(
                OpKind::Compare(ir::Predicate::Ge, i, zero),
                Type::BOOL,
                span,
            );
            let above = self.pure(
                OpKind::Compare(ir::Predicate::Lt, i, extent),
                Type::BOOL,
                span,
            );
            let both = self.pure(
                OpKind::Binary(ir::BinaryOp::And, below, above),
                Type::BOOL,
                span,
            );
            guard = Some(match guard {
                None => both,
                Some(g) => self.pure(OpKind::Binary(ir::BinaryOp::And, g, both), Type::BOOL, span),
            });
        }
        guard
    }

    /// A host integer expression as index arithmetic.
    pub(super) fn host_value(&mut self, e: &HostExpr, span: Span) -> ValueId {
        use tessera_artifact::HostOp::*;
        match e {
            HostExpr::Int(i) => self.index_const(*i, span),
            HostExpr::Dim(name) => match self.k.dims.iter().position(|d| d.name == *name) {
                Some(id) => self.pure(OpKind::Dim(ir::DimId(id as u32)), Type::Index, span),
                None => self.index_const(0, span),
            },
            HostExpr::Op(op, args) => {
                let args: Vec<ValueId> = args.iter().map(|a| self.host_value(a, span)).collect();
                let binary = match op {
                    Add => ir::BinaryOp::Add,
                    Sub => ir::BinaryOp::Sub,
                    Mul => ir::BinaryOp::Mul,
                    FloorDiv => ir::BinaryOp::Div,
                    FloorMod => ir::BinaryOp::Rem,
                    Min => ir::BinaryOp::Min,
                    Max => ir::BinaryOp::Max,
                    CeilDiv => return self.ceil_div(args[0], args[1], span),
                    Neg => {
                        let zero = self.index_const(0, span);
                        return self.index_binary(ir::BinaryOp::Sub, zero, args[0], span);
                    }
                    And | Or => {
                        let op = if *op == And {
                            ir::BinaryOp::And
                        } else {
                            ir::BinaryOp::Or
                        };
                        return self.pure(OpKind::Binary(op, args[0], args[1]), Type::BOOL, span);
                    }
                    Not => {
                        return self.pure(
                            OpKind::Unary(ir::UnaryOp::Not, args[0]),
                            Type::BOOL,
                            span,
                        );
                    }
                    Select => {
                        let kind = OpKind::Select(args[0], args[1], args[2]);
                        return self.pure(kind, Type::Index, span);
                    }
                    Eq | Ne | Lt | Le | Gt | Ge => {
                        let predicate = match op {
                            Eq => ir::Predicate::Eq,
                            Ne => ir::Predicate::Ne,
                            Lt => ir::Predicate::Lt,
                            Le => ir::Predicate::Le,
                            Gt => ir::Predicate::Gt,
                            _ => ir::Predicate::Ge,
                        };
                        let kind = OpKind::Compare(predicate, args[0], args[1]);
                        return self.pure(kind, Type::BOOL, span);
                    }
                };
                self.index_binary(binary, args[0], args[1], span)
            }
            HostExpr::Bool(b) => self.bool_const(*b, span),
            // Shapes are integers over dims and `index` scalars (`host_int` sees to it).
            HostExpr::Float(_) | HostExpr::Scalar(_) => self.index_const(0, span),
        }
    }

    /// `cdiv(a, b)` as `(a + (b - 1)) / b`, which floors; `b` is positive.
    pub(super) fn ceil_div(&mut self, a: ValueId, b: ValueId, span: Span) -> ValueId {
        let b_minus_1 = match self.const_index(b) {
            Some(b) => self.index_const(b - 1, span),
            None => {
                let one = self.index_const(1, span);
                self.index_binary(ir::BinaryOp::Sub, b, one, span)
            }
        };
        let sum = self.index_binary(ir::BinaryOp::Add, a, b_minus_1, span);
        self.index_binary(ir::BinaryOp::Div, sum, b, span)
    }
}

/// A host expression without the outermost parentheses.
pub(super) fn host_text(e: &HostExpr) -> String {
    let text = e.to_string();
    match (e, text.strip_prefix('('), text.strip_suffix(')')) {
        (HostExpr::Op(..), Some(_), Some(_)) => text[1..text.len() - 1].to_string(),
        _ => text,
    }
}
