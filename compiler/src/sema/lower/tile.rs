//! Tile-valued expressions: a tree over one shape, stored by one `Map` however many operators it has.

use super::*;
use crate::syntax::ast::{AssignOp, Expr};
use tessera_artifact::DType;

/// An elementwise expression; nothing is computed until [`Lower::store`] writes it somewhere.
#[derive(Clone, Debug)]
pub(super) struct TileExpr {
    pub shape: Vec<u64>,
    pub dtype: DType,
    pub node: Node,
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    View(ir::View),
    Scalar(ValueId),
    Const(ir::Const),
    Unary(ir::UnaryOp, Box<Node>, DType),
    Binary(ir::BinaryOp, Box<Node>, Box<Node>, DType),
    Fma([Box<Node>; 3], DType),
    Compare(ir::Predicate, Box<Node>, Box<Node>),
    Select(Box<Node>, Box<Node>, Box<Node>, DType),
    Cast(Box<Node>, DType),
    Bitcast(Box<Node>, DType),
}

impl Node {
    fn children(&self) -> Vec<&Node> {
        match self {
            Node::View(_) | Node::Scalar(_) | Node::Const(_) => vec![],
            Node::Unary(_, a, _) | Node::Cast(a, _) | Node::Bitcast(a, _) => vec![a],
            Node::Binary(_, a, b, _) | Node::Compare(_, a, b) => vec![a, b],
            Node::Fma(abc, _) => abc.iter().map(|n| &**n).collect(),
            Node::Select(a, b, c, _) => vec![a, b, c],
        }
    }

    fn children_mut(&mut self) -> Vec<&mut Node> {
        match self {
            Node::View(_) | Node::Scalar(_) | Node::Const(_) => vec![],
            Node::Unary(_, a, _) | Node::Cast(a, _) | Node::Bitcast(a, _) => vec![a],
            Node::Binary(_, a, b, _) | Node::Compare(_, a, b) => vec![a, b],
            Node::Fma(abc, _) => abc.iter_mut().map(|n| &mut **n).collect(),
            Node::Select(a, b, c, _) => vec![a, b, c],
        }
    }

    /// Whether an element of `dst` may be read at another place than it is written.
    fn reads_elsewhere(&self, dst: &ir::View) -> bool {
        match self {
            Node::View(v) => v.base == dst.base && v != dst,
            _ => self.children().iter().any(|c| c.reads_elsewhere(dst)),
        }
    }
}

impl Lower<'_, '_, '_> {
    /// The whole of a tile.
    pub(super) fn whole(&mut self, tile: TileId, span: Span) -> ir::View {
        let shape = self.k.tile(tile).shape.clone();
        let slots = shape
            .iter()
            .map(|&len| ir::Slot::Span {
                start: self.index_const(0, span),
                len,
            })
            .collect();
        ir::View {
            base: ir::Base::Tile(tile),
            slots,
        }
    }

    pub(super) fn tile_term(&mut self, tile: TileId, span: Span) -> Term {
        let view = self.whole(tile, span);
        self.view_term(view)
    }

    pub(super) fn view_term(&self, view: ir::View) -> Term {
        Term::Tile(TileExpr {
            shape: view.shape(),
            dtype: self.base_dtype(view.base),
            node: Node::View(view),
        })
    }

    pub(super) fn base_dtype(&self, base: ir::Base) -> DType {
        match base {
            ir::Base::Tile(t) => self.k.tile(t).dtype,
            ir::Base::Param(p) => self.k.tensor(p).map_or(DType::F32, |t| t.dtype),
        }
    }

    /// The tile if the expression is all of one.
    pub(super) fn as_whole_tile(&self, e: &TileExpr) -> Option<TileId> {
        match &e.node {
            Node::View(ir::View {
                base: ir::Base::Tile(t),
                slots,
            }) => {
                let shape = &self.k.tile(*t).shape;
                let whole = slots.len() == shape.len()
                    && slots.iter().zip(shape).all(|(s, n)| match s {
                        ir::Slot::Span { start, len } => {
                            len == n && self.const_index(*start) == Some(0)
                        }
                        _ => false,
                    });
                whole.then_some(*t)
            }
            _ => None,
        }
    }

    /// A tile that holds the expression: itself, or a temporary.
    pub(super) fn materialise(&mut self, e: TileExpr, span: Span) -> TileId {
        if let Some(tile) = self.as_whole_tile(&e) {
            return tile;
        }
        let tile = self.temporary(e.shape.clone(), e.dtype, span);
        let dst = self.whole(tile, span);
        self.store(dst, e, AssignOp::Set, None, span);
        tile
    }

    /// A view to copy from: the expression's own, or that of a temporary.
    pub(super) fn as_view(&mut self, e: TileExpr, span: Span) -> ir::View {
        if let Node::View(v) = e.node {
            return v;
        }
        let tile = self.materialise(e, span);
        self.whole(tile, span)
    }

    /// `dst op= e`; shapes and dtypes agree already (see [`Lower::fit`]). `oob`: what happens to elements of global views
    /// that are outside.
    pub(super) fn store(
        &mut self,
        dst: ir::View,
        mut e: TileExpr,
        op: AssignOp,
        oob: Option<ir::Oob>,
        span: Span,
    ) {
        if op == AssignOp::Set
            && let Node::View(src) = &e.node
        {
            if *src == dst {
                return;
            }
            // Parts of one tile or tensor: all is read before anything is written.
            if src.base == dst.base {
                let through = self.temporary(e.shape.clone(), e.dtype, span);
                let through = self.whole(through, span);
                let kind = OpKind::Copy {
                    dst: through.clone(),
                    src: src.clone(),
                    oob: oob.unwrap_or(ir::Oob::Never),
                };
                self.effect(kind, span);
                e.node = Node::View(through);
                return self.store(dst, e, op, oob, span);
            }
            let kind = OpKind::Copy {
                dst,
                src: src.clone(),
                oob: oob.unwrap_or(ir::Oob::Never),
            };
            self.effect(kind, span);
            return;
        }
        self.bring_in(&mut e.node, oob, span);
        let is_global = matches!(dst.base, ir::Base::Param(_));
        if (is_global && op == AssignOp::Set) || e.node.reads_elsewhere(&dst) {
            let dtype = if is_global {
                self.base_dtype(dst.base)
            } else {
                e.dtype
            };
            let node = self.cast_node(e.node, e.dtype, dtype);
            let tile = self.temporary(e.shape.clone(), dtype, span);
            let whole = self.whole(tile, span);
            self.map_store(&whole, &e.shape, &node, dtype, AssignOp::Set, span);
            let Term::Tile(copy) = self.view_term(whole) else {
                return;
            };
            self.store(dst, copy, op, oob, span);
            return;
        }
        self.map_store(&dst, &e.shape, &e.node, e.dtype, op, span);
    }

    /// Global views of which parts may be outside, and gathers, are copied into temporaries first.
    fn bring_in(&mut self, node: &mut Node, oob: Option<ir::Oob>, span: Span) {
        let view = match node {
            Node::View(v) => v,
            _ => {
                for child in node.children_mut() {
                    self.bring_in(child, oob, span);
                }
                return;
            }
        };
        let gathers = view
            .slots
            .iter()
            .any(|s| matches!(s, ir::Slot::Gather { .. }));
        let global = matches!(view.base, ir::Base::Param(_));
        if gathers || (global && oob.is_some()) {
            let tile = self.temporary(view.shape(), self.base_dtype(view.base), span);
            let dst = self.whole(tile, span);
            let src = std::mem::replace(view, dst.clone());
            let oob = oob.unwrap_or(ir::Oob::Never);
            self.effect(OpKind::Copy { dst, src, oob }, span);
        }
    }

    fn map_store(
        &mut self,
        dst: &ir::View,
        shape: &[u64],
        node: &Node,
        dtype: DType,
        op: AssignOp,
        span: Span,
    ) {
        let body = self.new_block();
        let coords: Vec<ValueId> = shape.iter().map(|_| self.block_arg(body, None)).collect();
        self.inside(body, |l| {
            let mut value = l.element(node, &coords, span);
            let target = l.base_dtype(dst.base);
            if dtype != target {
                value = l.op(
                    OpKind::Cast(value, Type::Scalar(target)),
                    Type::Scalar(target),
                    span,
                );
            }
            let index = l.view_index(dst, &coords, span);
            l.store_element(dst.base, index, value, op, None, span);
        });
        self.effect(
            OpKind::Map {
                extents: shape.to_vec(),
                body,
            },
            span,
        );
    }

    /// `base[index] op= value` with types that agree.
    pub(super) fn store_element(
        &mut self,
        base: ir::Base,
        index: Vec<ValueId>,
        value: ValueId,
        op: AssignOp,
        guard: Option<ValueId>,
        span: Span,
    ) {
        let ty = Type::Scalar(self.base_dtype(base));
        let guard = self.and_guard(guard, span);
        let value = match assign_op(op) {
            None => value,
            Some(op) => {
                let kind = match base {
                    ir::Base::Tile(tile) => OpKind::LoadTile {
                        tile,
                        index: index.clone(),
                    },
                    ir::Base::Param(param) => OpKind::LoadGlobal {
                        param,
                        index: index.clone(),
                        guard,
                    },
                };
                let old = self.op(kind, ty, span);
                self.op(OpKind::Binary(op, old, value), ty, span)
            }
        };
        let kind = match base {
            ir::Base::Tile(tile) => OpKind::StoreTile { tile, index, value },
            ir::Base::Param(param) => OpKind::StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter: false,
            },
        };
        self.effect(kind, span);
    }

    fn view_index(&mut self, view: &ir::View, coords: &[ValueId], span: Span) -> Vec<ValueId> {
        let mut coords = coords.iter();
        view.slots
            .iter()
            .map(|slot| match slot {
                ir::Slot::At(v) => *v,
                ir::Slot::Span { start, .. } => match coords.next() {
                    Some(c) => self.index_binary(ir::BinaryOp::Add, *start, *c, span),
                    None => *start,
                },
                // `bring_in` has replaced gathers.
                ir::Slot::Gather { .. } => self.index_const(0, span),
            })
            .collect()
    }

    fn element(&mut self, node: &Node, coords: &[ValueId], span: Span) -> ValueId {
        match node {
            Node::Scalar(v) => *v,
            Node::Const(c) => {
                let ty = match c {
                    ir::Const::Index(_) => Type::Index,
                    ir::Const::Float(_, d) | ir::Const::Int(_, d) => Type::Scalar(*d),
                    ir::Const::Bool(_) => Type::BOOL,
                };
                self.pure(OpKind::Const(*c), ty, span)
            }
            Node::View(view) => {
                let index = self.view_index(view, coords, span);
                self.load(view.base, index, span)
            }
            Node::Unary(op, a, dtype) => {
                let a = self.element(a, coords, span);
                self.op(OpKind::Unary(*op, a), Type::Scalar(*dtype), span)
            }
            Node::Binary(op, a, b, dtype) => {
                let a = self.element(a, coords, span);
                let b = self.element(b, coords, span);
                self.op(OpKind::Binary(*op, a, b), Type::Scalar(*dtype), span)
            }
            Node::Fma([a, b, c], dtype) => {
                let a = self.element(a, coords, span);
                let b = self.element(b, coords, span);
                let c = self.element(c, coords, span);
                self.op(OpKind::Fma(a, b, c), Type::Scalar(*dtype), span)
            }
            Node::Compare(p, a, b) => {
                let a = self.element(a, coords, span);
                let b = self.element(b, coords, span);
                self.op(OpKind::Compare(*p, a, b), Type::BOOL, span)
            }
            Node::Select(c, a, b, dtype) => {
                let c = self.element(c, coords, span);
                let a = self.guarded(Some(c), true, span, |l| l.element(a, coords, span));
                let b = self.guarded(Some(c), false, span, |l| l.element(b, coords, span));
                self.op(OpKind::Select(c, a, b), Type::Scalar(*dtype), span)
            }
            Node::Cast(a, dtype) => {
                let a = self.element(a, coords, span);
                let ty = Type::Scalar(*dtype);
                self.op(OpKind::Cast(a, ty), ty, span)
            }
            Node::Bitcast(a, dtype) => {
                let a = self.element(a, coords, span);
                self.op(OpKind::Bitcast(a, *dtype), Type::Scalar(*dtype), span)
            }
        }
    }

    pub(super) fn cast_node(&self, node: Node, from: DType, to: DType) -> Node {
        if from == to {
            node
        } else {
            Node::Cast(Box::new(node), to)
        }
    }

    /// Makes a term of shape `shape` and dtype `dtype` for an assignment: scalars fill, values widen where that is exact;
    /// else an error about `e`.
    pub(super) fn fit(
        &mut self,
        term: Term,
        shape: &[u64],
        dtype: DType,
        e: &Expr,
        target: &str,
    ) -> Option<TileExpr> {
        match term {
            Term::Error => None,
            Term::Tile(t) => {
                if t.shape != shape {
                    let mine = self.describe(e, &t.shape);
                    let d = say::shapes_differ(e.span, &mine, target, shape);
                    self.report(d);
                    return None;
                }
                if !t.dtype.widens_to(dtype) {
                    let d = say::needs_cast(e, t.dtype, dtype, target);
                    self.report(d);
                    return None;
                }
                // A plain view widens while it is copied.
                if matches!(t.node, Node::View(_)) {
                    return Some(t);
                }
                let node = self.cast_node(t.node, t.dtype, dtype);
                Some(TileExpr { node, dtype, ..t })
            }
            scalar => {
                let v = self.coerce(scalar, Type::Scalar(dtype), e, Some(target))?;
                Some(TileExpr {
                    shape: shape.to_vec(),
                    dtype,
                    node: self.scalar_node(v),
                })
            }
        }
    }

    /// A scalar inside a tile expression; constants stay readable in the map that uses them.
    pub(super) fn scalar_node(&self, v: ValueId) -> Node {
        match self.k.def(v) {
            Some(OpKind::Const(c)) => Node::Const(*c),
            _ => Node::Scalar(v),
        }
    }

    /// "`sa` is [128, 64] (BM = 128, BK = 64)".
    pub(super) fn describe(&self, e: &Expr, shape: &[u64]) -> String {
        let mut names: Vec<String> = vec![];
        evaluate::names_in(e, &mut |name| {
            names.push(name.to_string());
            let local = self.scopes[self.floor..].iter().rev().flatten();
            let tile = local
                .filter(|n| n.name == name)
                .find_map(|n| match n.binding {
                    Binding::Tile { tile, .. } => Some(tile),
                    _ => None,
                });
            if let Some(tile) = tile
                && let Some(shape_names) = self.shape_names.get(&tile)
            {
                names.extend(shape_names.iter().cloned());
            }
        });
        let bound = super::super::header::generics_text(&names, self.bound_generics());
        format!(
            "`{}` is {}{bound}",
            super::super::text::expr(e),
            shape_text(shape)
        )
    }
}

/// `[128, 64]`.
pub(super) fn shape_text(shape: &[u64]) -> String {
    let extents: Vec<String> = shape.iter().map(u64::to_string).collect();
    format!("[{}]", extents.join(", "))
}

pub(super) fn assign_op(op: AssignOp) -> Option<ir::BinaryOp> {
    match op {
        AssignOp::Set => None,
        AssignOp::Add => Some(ir::BinaryOp::Add),
        AssignOp::Sub => Some(ir::BinaryOp::Sub),
        AssignOp::Mul => Some(ir::BinaryOp::Mul),
        AssignOp::Div => Some(ir::BinaryOp::Div),
        AssignOp::Max => Some(ir::BinaryOp::Max),
        AssignOp::Min => Some(ir::BinaryOp::Min),
    }
}
