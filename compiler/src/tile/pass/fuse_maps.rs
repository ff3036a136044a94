//! Adjacent maps over the same space become one, and values pass from stores to loads without memory.
//!
//! Two maps fuse if every tile or tensor that one writes and the other touches is touched by both at the same coordinates, which
//! name each map axis: then no point of the second needs another point of the first. Scalar ops between them move up.
//! [`forward_stores`] then replaces a load of what was just stored or loaded by the value; `dead_tiles` removes what nobody reads any more.
//!
//! Needs: `simplify` (equal coordinates are one value). Keeps: bits, the order of effects of each point.

use crate::tile::ir::*;
use crate::tile::visit::Access;
use std::collections::HashMap;

/// A map body larger than this takes no more, so that its values still have registers.
pub(super) const MAX_OPS: usize = 400;

pub fn fuse_maps(kernel: &mut Kernel) {
    fuse_in(kernel, kernel.body);
}

fn fuse_in(kernel: &mut Kernel, block: BlockId) {
    let mut out: Vec<OpId> = Vec::new();
    // Where the last map stands in `out`; after it come only ops that may move above it.
    let mut last_map: Option<usize> = None;
    for op in std::mem::take(&mut kernel.blocks[block.index()].ops) {
        let kind = kernel.op(op).kind.clone();
        if let OpKind::Map { extents, body } = &kind {
            if let Some(at) = last_map
                && let OpKind::Map {
                    extents: first_extents,
                    body: first,
                } = kernel.op(out[at]).kind.clone()
                && first_extents == *extents
                && can_fuse(kernel, extents, first, *body)
            {
                append(kernel, first, *body);
                let map = out.remove(at);
                out.push(map);
                last_map = Some(out.len() - 1);
                continue;
            }
            last_map = Some(out.len());
            out.push(op);
            continue;
        }
        for inner in kind.blocks() {
            fuse_in(kernel, inner);
        }
        if last_map.is_some_and(|at| !may_move_above(kernel, &kind, out[at])) {
            last_map = None;
        }
        out.push(op);
    }
    kernel.blocks[block.index()].ops = out;
}

/// A scalar op that reads nothing the map writes, or a copy into a tile that the map does not touch either.
fn may_move_above(kernel: &Kernel, kind: &OpKind, map: OpId) -> bool {
    let (mut written, mut touched) = (Vec::new(), Vec::new());
    for inner in kernel.op(map).kind.blocks() {
        for &op in &kernel.block(inner).ops {
            if let Some(a) = access(&kernel.op(op).kind) {
                touched.push(a.base);
                if a.write {
                    written.push(a.base);
                }
            }
        }
    }
    match kind {
        OpKind::LoadTile { tile, .. } => !written.contains(&Base::Tile(*tile)),
        OpKind::LoadGlobal { param, .. } => !written.contains(&Base::Param(*param)),
        OpKind::Copy { dst, src, oob } => {
            let reads_written = |base| written.contains(&base);
            let gathers = |view: &View| view.slots.iter().any(|s| matches!(s, Slot::Gather { .. }));
            matches!(dst.base, Base::Tile(_))
                && !touched.contains(&dst.base)
                && !reads_written(src.base)
                && !gathers(dst)
                && !gathers(src)
                && *oob != Oob::Error
        }
        kind => kind.is_pure(),
    }
}

struct ElementAccess<'k> {
    base: Base,
    index: &'k [ValueId],
    write: bool,
    /// Its coordinates say nothing about which points touch one element.
    atomic: bool,
}

fn access(kind: &OpKind) -> Option<ElementAccess<'_>> {
    let make = |base, index, write, atomic| {
        Some(ElementAccess {
            base,
            index,
            write,
            atomic,
        })
    };
    match kind {
        OpKind::LoadTile { tile, index } => make(Base::Tile(*tile), index, false, false),
        OpKind::StoreTile { tile, index, .. } => make(Base::Tile(*tile), index, true, false),
        OpKind::LoadGlobal { param, index, .. } => make(Base::Param(*param), index, false, false),
        OpKind::StoreGlobal {
            param,
            index,
            scatter,
            ..
        } => make(Base::Param(*param), index, true, *scatter),
        OpKind::Atomic { param, index, .. } => make(Base::Param(*param), index, true, true),
        _ => None,
    }
}

fn can_fuse(kernel: &Kernel, extents: &[u64], first: BlockId, second: BlockId) -> bool {
    if kernel.block(first).ops.len() + kernel.block(second).ops.len() > MAX_OPS {
        return false;
    }
    let mut numbers = Numbers::default();
    numbers.body(kernel, first);
    numbers.body(kernel, second);
    let accesses = |block: BlockId| {
        kernel
            .block(block)
            .ops
            .iter()
            .filter_map(|&op| access(&kernel.op(op).kind))
    };
    let names_axes = |index: &[u32]| {
        (0..extents.len())
            .filter(|&axis| extents[axis] > 1)
            .all(|axis| index.contains(&numbers.argument(axis)))
    };
    accesses(first).all(|a| {
        accesses(second)
            .filter(|b| b.base == a.base && (a.write || b.write))
            .all(|b| {
                let (i, j) = (numbers.of(a.index), numbers.of(b.index));
                !a.atomic && !b.atomic && i == j && names_axes(&i)
            })
    })
}

/// Numbers for values such that equal numbers are equal values at one point, across two maps over one space.
#[derive(Default)]
struct Numbers {
    by_key: HashMap<String, u32>,
    by_value: HashMap<ValueId, u32>,
}

impl Numbers {
    fn number(&mut self, key: String) -> u32 {
        let next = self.by_key.len() as u32;
        *self.by_key.entry(key).or_insert(next)
    }

    fn body(&mut self, kernel: &Kernel, body: BlockId) {
        for (axis, &arg) in kernel.block(body).args.iter().enumerate() {
            let n = self.number(format!("axis {axis}"));
            self.by_value.insert(arg, n);
        }
        for &op in &kernel.block(body).ops {
            let op = kernel.op(op);
            let Some(result) = op.result else { continue };
            let mut kind = op.kind.clone();
            kind.for_each_value_mut(&mut |v| {
                *v = ValueId(self.get(*v));
            });
            let key = if kind.is_pure() {
                format!("{kind:?}")
            } else {
                format!("load {result:?}")
            };
            let n = self.number(key);
            self.by_value.insert(result, n);
        }
    }

    fn argument(&self, axis: usize) -> u32 {
        self.by_key
            .get(&format!("axis {axis}"))
            .copied()
            .unwrap_or(u32::MAX)
    }

    fn of(&self, index: &[ValueId]) -> Vec<u32> {
        index.iter().map(|&v| self.get(v)).collect()
    }

    /// What comes from outside stands for itself, far above all numbers.
    fn get(&self, v: ValueId) -> u32 {
        self.by_value.get(&v).copied().unwrap_or(u32::MAX - v.0)
    }
}

/// Appends the ops of `second` to `first`, on its arguments.
fn append(kernel: &mut Kernel, first: BlockId, second: BlockId) {
    let to = kernel.block(first).args.clone();
    let from = kernel.block(second).args.clone();
    let ops = std::mem::take(&mut kernel.blocks[second.index()].ops);
    for &op in &ops {
        kernel.ops[op.index()].kind.for_each_value_mut(&mut |v| {
            if let Some(axis) = from.iter().position(|a| a == v) {
                *v = to[axis];
            }
        });
    }
    kernel.blocks[first.index()].ops.extend(ops);
}

/// In every block: a load of an element that was stored or loaded before, with nothing in between that may have changed it, is the
/// value.
pub fn forward_stores(kernel: &mut Kernel) {
    let mut replaced = HashMap::new();
    forward_in(kernel, kernel.body, &mut replaced);
}

struct Held {
    base: Base,
    index: Vec<ValueId>,
    guard: Option<ValueId>,
    value: ValueId,
}

fn forward_in(kernel: &mut Kernel, block: BlockId, replaced: &mut HashMap<ValueId, ValueId>) {
    let mut held: Vec<Held> = Vec::new();
    let mut kept = Vec::new();
    for op in std::mem::take(&mut kernel.blocks[block.index()].ops) {
        kernel.ops[op.index()]
            .kind
            .for_each_value_mut(&mut |v| *v = replaced.get(v).copied().unwrap_or(*v));
        let kind = kernel.op(op).kind.clone();
        let load = match &kind {
            OpKind::LoadTile { tile, index } => Some((Base::Tile(*tile), index, None)),
            OpKind::LoadGlobal {
                param,
                index,
                guard,
            } => Some((Base::Param(*param), index, *guard)),
            _ => None,
        };
        if let (Some((base, index, guard)), Some(result)) = (load, kernel.op(op).result) {
            let known = held
                .iter()
                .find(|h| h.base == base && h.index == *index && h.guard == guard);
            if let Some(h) = known {
                replaced.insert(result, h.value);
                continue;
            }
            held.push(Held {
                base,
                index: index.clone(),
                guard,
                value: result,
            });
            kept.push(op);
            continue;
        }
        for inner in kind.blocks() {
            forward_in(kernel, inner, replaced);
        }
        forget_written(kernel, op, &mut held);
        if let OpKind::StoreTile { tile, index, value } = &kind {
            held.push(Held {
                base: Base::Tile(*tile),
                index: index.clone(),
                guard: None,
                value: *value,
            });
        }
        kept.push(op);
    }
    kernel.blocks[block.index()].ops = kept;
}

/// Drops what an op or anything in its blocks may write. A wait lets the writes of others be seen.
fn forget_written(kernel: &Kernel, op: OpId, held: &mut Vec<Held>) {
    let mut forget = |kind: &OpKind| {
        if matches!(kind, OpKind::Wait { .. }) {
            held.retain(|h| matches!(h.base, Base::Tile(_)));
        }
        kind.for_each_tile(&mut |t, a| {
            if a == Access::Write || matches!(kind, OpKind::Release { .. }) {
                held.retain(|h| h.base != Base::Tile(t));
            }
        });
        kind.for_each_tensor(&mut |p, a| {
            if a == Access::Write {
                held.retain(|h| h.base != Base::Param(p));
            }
        });
    };
    forget(&kernel.op(op).kind);
    for inner in kernel.op(op).kind.blocks() {
        kernel.walk(inner, &mut |_, op| forget(&kernel.op(op).kind));
    }
}
