//! What an op mentions: values, blocks, tiles, parameters. One exhaustive match per question, so that a new op is a compile
//! error here and nowhere else.

use super::ir::*;

impl OpKind {
    /// Calls `f` on every value the op itself reads (not on those of its blocks), in textual order.
    pub fn for_each_value(&self, f: &mut dyn FnMut(ValueId)) {
        self.clone().for_each_value_mut(&mut |v| f(*v));
    }

    /// As [`OpKind::for_each_value`], to replace them.
    pub fn for_each_value_mut(&mut self, f: &mut dyn FnMut(&mut ValueId)) {
        use OpKind::*;
        match self {
            Const(_) | Scalar(_) | Dim(_) | BlockIndex(_) => {}
            Unary(_, a) | Cast(a, _) | Bitcast(a, _) => f(a),
            Binary(_, a, b) | Compare(_, a, b) => {
                f(a);
                f(b);
            }
            Fma(a, b, c) | Select(a, b, c) => {
                f(a);
                f(b);
                f(c);
            }
            LoadTile { tile: _, index } => index.iter_mut().for_each(f),
            LoadGlobal {
                param: _,
                index,
                guard,
            } => {
                index.iter_mut().for_each(&mut *f);
                guard.iter_mut().for_each(f);
            }
            StoreTile {
                tile: _,
                index,
                value,
            } => {
                index.iter_mut().for_each(&mut *f);
                f(value);
            }
            StoreGlobal {
                param: _,
                index,
                value,
                guard,
                scatter: _,
            }
            | Atomic {
                op: _,
                param: _,
                index,
                value,
                guard,
            } => {
                index.iter_mut().for_each(&mut *f);
                f(value);
                guard.iter_mut().for_each(f);
            }
            Map { .. }
            | Reduce { .. }
            | Scan { .. }
            | TopK { .. }
            | ForItems { .. }
            | Role { .. } => {}
            Copy { dst, src, oob: _ } => {
                slots_mut(&mut dst.slots, f);
                slots_mut(&mut src.slots, f);
            }
            Dot {
                acc,
                a,
                b,
                accumulate: _,
            } => {
                slots_mut(&mut acc.slots, f);
                slots_mut(&mut a.view.slots, f);
                slots_mut(&mut b.view.slots, f);
            }
            For { lo, hi, .. } => {
                f(lo);
                f(hi);
            }
            If { cond, .. } | Assert { cond, .. } | Assume { cond } => f(cond),
            Print { text: _, args } => {
                for arg in args {
                    if let PrintArg::Value(v) = arg {
                        f(v);
                    }
                }
            }
            Put {
                channel: _,
                src,
                oob: _,
            } => slots_mut(&mut src.slots, f),
            Get { .. } | Release { .. } => {}
            Signal { param: _, index } => index.iter_mut().for_each(f),
            Wait {
                param: _,
                index,
                at_least,
            } => {
                index.iter_mut().for_each(&mut *f);
                f(at_least);
            }
        }
    }

    /// The blocks that belong to the op, in order.
    pub fn blocks(&self) -> Vec<BlockId> {
        use OpKind::*;
        match self {
            Map { body, .. } | For { body, .. } | ForItems { body } | Role { body, .. } => {
                vec![*body]
            }
            If {
                then, otherwise, ..
            } => std::iter::once(*then).chain(*otherwise).collect(),
            _ => vec![],
        }
    }

    /// Has a result and no effect, and gives the same result whenever its operands are the same (so no loads).
    pub fn is_pure(&self) -> bool {
        use OpKind::*;
        matches!(
            self,
            Const(_)
                | Scalar(_)
                | Dim(_)
                | BlockIndex(_)
                | Unary(..)
                | Binary(..)
                | Fma(..)
                | Compare(..)
                | Select(..)
                | Cast(..)
                | Bitcast(..)
        )
    }

    pub fn is_load(&self) -> bool {
        matches!(self, OpKind::LoadTile { .. } | OpKind::LoadGlobal { .. })
    }

    /// May stand in the body of a `Map`.
    pub fn is_scalar(&self) -> bool {
        self.is_pure()
            || self.is_load()
            || matches!(
                self,
                OpKind::StoreTile { .. } | OpKind::StoreGlobal { .. } | OpKind::Atomic { .. }
            )
    }

    /// Calls `f` on every tile the op itself touches (not its blocks), with how. An element may be read and written by one op
    /// (`Dot` that accumulates): two calls.
    pub fn for_each_tile(&self, f: &mut dyn FnMut(TileId, Access)) {
        use OpKind::*;
        match self {
            LoadTile { tile, .. } => f(*tile, Access::Read),
            StoreTile { tile, .. } => f(*tile, Access::Write),
            Copy { dst, src, oob: _ } => {
                view_tiles(src, Access::Read, f);
                view_tiles(dst, Access::Write, f);
            }
            Dot {
                acc,
                a,
                b,
                accumulate,
            } => {
                for operand in [a, b] {
                    f(operand.view.tile, Access::Read);
                    slot_tiles(&operand.view.slots, f);
                }
                if *accumulate {
                    f(acc.tile, Access::Read);
                }
                f(acc.tile, Access::Write);
                slot_tiles(&acc.slots, f);
            }
            Reduce { dst, src, .. } | Scan { dst, src, .. } => {
                f(*src, Access::Read);
                f(*dst, Access::Write);
            }
            TopK {
                values,
                indices,
                src,
                smallest: _,
            } => {
                f(*src, Access::Read);
                f(*values, Access::Write);
                f(*indices, Access::Write);
            }
            Print { text: _, args } => {
                for arg in args {
                    if let PrintArg::Tile(t) = arg {
                        f(*t, Access::Read);
                    }
                }
            }
            Put {
                channel: _,
                src,
                oob: _,
            } => view_tiles(src, Access::Read, f),
            Get { channel: _, tile } => f(*tile, Access::Write),
            Release { tile, part: _ } => f(*tile, Access::Read),
            Const(_)
            | Scalar(_)
            | Dim(_)
            | BlockIndex(_)
            | Unary(..)
            | Binary(..)
            | Fma(..)
            | Compare(..)
            | Select(..)
            | Cast(..)
            | Bitcast(..)
            | LoadGlobal { .. }
            | StoreGlobal { .. }
            | Atomic { .. }
            | Map { .. }
            | For { .. }
            | If { .. }
            | ForItems { .. }
            | Assert { .. }
            | Assume { .. }
            | Role { .. }
            | Signal { .. }
            | Wait { .. } => {}
        }
    }

    /// Replaces every tile the op mentions.
    pub fn for_each_tile_mut(&mut self, f: &mut dyn FnMut(&mut TileId)) {
        use OpKind::*;
        match self {
            LoadTile { tile, .. }
            | StoreTile { tile, .. }
            | Get { tile, .. }
            | Release { tile, .. } => f(tile),
            Copy { dst, src, oob: _ } => {
                view_tiles_mut(src, f);
                view_tiles_mut(dst, f);
            }
            Dot {
                acc,
                a,
                b,
                accumulate: _,
            } => {
                for view in [acc, &mut a.view, &mut b.view] {
                    f(&mut view.tile);
                    slot_tiles_mut(&mut view.slots, f);
                }
            }
            Reduce { dst, src, .. } | Scan { dst, src, .. } => {
                f(src);
                f(dst);
            }
            TopK {
                values,
                indices,
                src,
                smallest: _,
            } => {
                f(src);
                f(values);
                f(indices);
            }
            Print { text: _, args } => {
                for arg in args {
                    if let PrintArg::Tile(t) = arg {
                        f(t);
                    }
                }
            }
            Put {
                channel: _,
                src,
                oob: _,
            } => view_tiles_mut(src, f),
            Const(_)
            | Scalar(_)
            | Dim(_)
            | BlockIndex(_)
            | Unary(..)
            | Binary(..)
            | Fma(..)
            | Compare(..)
            | Select(..)
            | Cast(..)
            | Bitcast(..)
            | LoadGlobal { .. }
            | StoreGlobal { .. }
            | Atomic { .. }
            | Map { .. }
            | For { .. }
            | If { .. }
            | ForItems { .. }
            | Assert { .. }
            | Assume { .. }
            | Role { .. }
            | Signal { .. }
            | Wait { .. } => {}
        }
    }

    /// Calls `f` on every tensor the op itself touches, with how. An `Atomic` and a `Signal` read and write.
    pub fn for_each_tensor(&self, f: &mut dyn FnMut(ParamId, Access)) {
        use OpKind::*;
        match self {
            LoadGlobal { param, .. } | Wait { param, .. } => f(*param, Access::Read),
            StoreGlobal { param, .. } => f(*param, Access::Write),
            Atomic { param, .. } | Signal { param, .. } => {
                f(*param, Access::Read);
                f(*param, Access::Write);
            }
            Copy { dst, src, oob: _ } => {
                view_params(src, Access::Read, f);
                view_params(dst, Access::Write, f);
            }
            Put {
                channel: _,
                src,
                oob: _,
            } => view_params(src, Access::Read, f),
            Dot {
                acc,
                a,
                b,
                accumulate: _,
            } => {
                for view in [acc, &a.view, &b.view] {
                    slot_params(&view.slots, f);
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

fn slots_mut(slots: &mut [Slot], f: &mut dyn FnMut(&mut ValueId)) {
    for slot in slots {
        match slot {
            Slot::At(v) | Slot::Span { start: v, len: _ } => f(v),
            Slot::Gather { index, len: _ } => slots_mut(&mut index.slots, f),
        }
    }
}

fn view_tiles(view: &View, access: Access, f: &mut dyn FnMut(TileId, Access)) {
    if let Base::Tile(t) = view.base {
        f(t, access);
    }
    slot_tiles(&view.slots, f);
}

fn slot_tiles(slots: &[Slot], f: &mut dyn FnMut(TileId, Access)) {
    for slot in slots {
        if let Slot::Gather { index, len: _ } = slot {
            view_tiles(index, Access::Read, f);
        }
    }
}

fn view_tiles_mut(view: &mut View, f: &mut dyn FnMut(&mut TileId)) {
    if let Base::Tile(t) = &mut view.base {
        f(t);
    }
    slot_tiles_mut(&mut view.slots, f);
}

fn slot_tiles_mut(slots: &mut [Slot], f: &mut dyn FnMut(&mut TileId)) {
    for slot in slots {
        if let Slot::Gather { index, len: _ } = slot {
            view_tiles_mut(index, f);
        }
    }
}

fn view_params(view: &View, access: Access, f: &mut dyn FnMut(ParamId, Access)) {
    if let Base::Param(p) = view.base {
        f(p, access);
    }
    slot_params(&view.slots, f);
}

fn slot_params(slots: &[Slot], f: &mut dyn FnMut(ParamId, Access)) {
    for slot in slots {
        if let Slot::Gather { index, len: _ } = slot {
            view_params(index, Access::Read, f);
        }
    }
}

impl Kernel {
    /// Every op below `block` in execution order (an op before those of its blocks), with the block it stands in.
    pub fn walk(&self, block: BlockId, f: &mut dyn FnMut(BlockId, OpId)) {
        for &op in &self.block(block).ops {
            f(block, op);
            for inner in self.op(op).kind.blocks() {
                self.walk(inner, f);
            }
        }
    }

    /// The ops of the whole kernel in execution order; ops that passes have unlinked are not among them.
    pub fn live_ops(&self) -> Vec<OpId> {
        let mut ops = Vec::new();
        self.walk(self.body, &mut |_, op| ops.push(op));
        ops
    }

    /// The constant a value is, if it is one.
    pub fn constant(&self, value: ValueId) -> Option<Const> {
        match self.def(value) {
            Some(OpKind::Const(c)) => Some(*c),
            _ => None,
        }
    }

    pub fn const_index(&self, value: ValueId) -> Option<i64> {
        match self.constant(value) {
            Some(Const::Index(i)) => Some(i),
            _ => None,
        }
    }
}
