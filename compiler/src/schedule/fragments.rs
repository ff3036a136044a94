//! Which tiles of a role lie in registers, and how: from the accumulators of products outwards.
//!
//! A map that touches a tile at its own coordinates runs in that tile's layout, so the other tiles that it touches so get the same, and
//! vectors along one of its axes the layout without the other axis. A fold's result has its source's layout without the folded axis.
//! A tile that is used in any other way stays in memory.

use super::layout::Layout;
use crate::tile::ir::*;
use std::collections::BTreeMap;

/// How a map touches a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// At the map's own coordinates.
    Same,
    /// A vector, at the coordinate of this axis of a map of two.
    Along(usize),
    Elsewhere,
}

/// How `index` in a map over `block`'s arguments touches a tile of `shape`.
pub fn touch(
    kernel: &Kernel,
    block: BlockId,
    extents: &[u64],
    tile: TileId,
    index: &[ValueId],
) -> Touch {
    let args = &kernel.block(block).args;
    let shape = &kernel.tile(tile).shape;
    if index == args.as_slice() && shape == extents {
        return Touch::Same;
    }
    if let ([at], [extent], 2) = (index, shape.as_slice(), args.len())
        && let Some(axis) = args.iter().position(|a| a == at)
        && extents[axis] == *extent
    {
        return Touch::Along(axis);
    }
    Touch::Elsewhere
}

/// Every access of a map's body to a tile.
pub fn accesses(kernel: &Kernel, extents: &[u64], body: BlockId) -> Vec<(TileId, Touch)> {
    let ops = kernel.block(body).ops.iter();
    ops.filter_map(|&op| match &kernel.op(op).kind {
        OpKind::LoadTile { tile, index } | OpKind::StoreTile { tile, index, .. } => {
            Some((*tile, touch(kernel, body, extents, *tile, index)))
        }
        _ => None,
    })
    .collect()
}

/// The layouts of a role's tiles, whose warpgroups are `groups`. `None` if an accumulator cannot have one.
pub fn infer(kernel: &Kernel, role: BlockId, groups: u64) -> Option<BTreeMap<TileId, Layout>> {
    let mut memory: Vec<bool> = kernel
        .tiles
        .iter()
        .map(|t| t.space == Space::Slot)
        .collect();
    let mut layouts: BTreeMap<TileId, Layout> = BTreeMap::new();
    let mut possible = true;
    kernel.walk(role, &mut |_, op| match &kernel.op(op).kind {
        OpKind::Map { extents, body } => {
            for (tile, touch) in accesses(kernel, extents, *body) {
                memory[tile.index()] |= touch == Touch::Elsewhere;
            }
        }
        // Inside a map: seen there.
        OpKind::LoadTile { .. } | OpKind::StoreTile { .. } => {}
        OpKind::Dot { acc, a, b, .. } => {
            let tile = kernel.tile(acc.tile);
            possible &= is_whole(kernel, acc);
            let layout = match tile.shape[..] {
                [rows, columns] => Layout::accumulator(rows, columns, groups),
                _ => None,
            };
            match layout {
                Some(layout) => {
                    layouts.insert(acc.tile, layout);
                }
                None => possible = false,
            }
            for operand in [a, b] {
                memory[operand.view.tile.index()] = true;
            }
        }
        OpKind::Reduce { .. } => {}
        OpKind::Copy { dst, src, .. } => {
            for (view, other) in [(dst, src), (src, dst)] {
                if let Base::Tile(tile) = view.base {
                    let plain = view
                        .slots
                        .iter()
                        .chain(&other.slots)
                        .all(|s| !matches!(s, Slot::Gather { .. }));
                    let whole = plain
                        && view.slots.len() == view.shape().len()
                        && view.shape() == kernel.tile(tile).shape;
                    memory[tile.index()] |= !whole;
                }
            }
        }
        kind => kind.for_each_tile(&mut |tile, _| memory[tile.index()] = true),
    });
    // Scalar loads and stores of tiles outside maps.
    scalar_uses(kernel, role, &mut memory);
    let seeds = layouts;
    if !possible || seeds.keys().any(|t| memory[t.index()]) {
        return None;
    }
    // A tile that two ops want in two layouts stays in memory.
    loop {
        let layouts = spread(kernel, role, &memory, seeds.clone());
        match conflict(kernel, role, &layouts, &seeds) {
            None => return Some(layouts),
            Some(tile) if seeds.contains_key(&tile) => return None,
            Some(tile) => memory[tile.index()] = true,
        }
    }
}

/// From the seeds to all tiles that have to lie as they do.
fn spread(
    kernel: &Kernel,
    role: BlockId,
    memory: &[bool],
    mut layouts: BTreeMap<TileId, Layout>,
) -> BTreeMap<TileId, Layout> {
    loop {
        let before = layouts.len();
        kernel.walk(role, &mut |_, op| match &kernel.op(op).kind {
            OpKind::Map { extents, body } => {
                let accesses = accesses(kernel, extents, *body);
                let own = accesses.iter().find_map(|(t, touch)| {
                    (*touch == Touch::Same)
                        .then(|| layouts.get(t).cloned())
                        .flatten()
                });
                let Some(own) = own else { return };
                for (tile, touch) in accesses {
                    if memory[tile.index()] || layouts.contains_key(&tile) {
                        continue;
                    }
                    match touch {
                        Touch::Same => layouts.insert(tile, own.clone()),
                        Touch::Along(axis) => layouts.insert(tile, own.without(1 - axis)),
                        Touch::Elsewhere => None,
                    };
                }
            }
            OpKind::Reduce { dst, src, axis, .. } => {
                let known = layouts.get(src).map(|l| l.without(*axis as usize));
                if let (Some(layout), false, false) =
                    (known, memory[dst.index()], layouts.contains_key(dst))
                {
                    layouts.insert(*dst, layout);
                }
            }
            OpKind::Copy { dst, src, .. } => {
                if let (Base::Tile(d), Base::Tile(s)) = (dst.base, src.base) {
                    for (from, to) in [(s, d), (d, s)] {
                        let known = layouts.get(&from).cloned();
                        if let (Some(layout), false, false) =
                            (known, memory[to.index()], layouts.contains_key(&to))
                        {
                            layouts.insert(to, layout);
                        }
                    }
                }
            }
            _ => {}
        });
        if layouts.len() == before {
            return layouts;
        }
    }
}

/// A tile in registers whose layout is not that of an op that touches it.
fn conflict(
    kernel: &Kernel,
    role: BlockId,
    layouts: &BTreeMap<TileId, Layout>,
    seeds: &BTreeMap<TileId, Layout>,
) -> Option<TileId> {
    let mut found = None;
    kernel.walk(role, &mut |_, op| match &kernel.op(op).kind {
        OpKind::Map { extents, body } => {
            let accesses = accesses(kernel, extents, *body);
            let same = || {
                accesses
                    .iter()
                    .filter(|(t, touch)| *touch == Touch::Same && layouts.contains_key(t))
            };
            let own = same()
                .find(|(t, _)| seeds.contains_key(t))
                .or_else(|| same().next());
            let own = own.map(|(t, _)| &layouts[t]);
            for (tile, touch) in &accesses {
                let Some(layout) = layouts.get(tile) else {
                    continue;
                };
                let fits = match touch {
                    Touch::Same => own == Some(layout),
                    Touch::Along(axis) => own.is_some_and(|own| own.without(1 - axis) == *layout),
                    Touch::Elsewhere => false,
                };
                if !fits {
                    found = Some(*tile);
                }
            }
        }
        OpKind::Copy { dst, src, .. } => {
            if let (Base::Tile(d), Base::Tile(s)) = (dst.base, src.base)
                && let (Some(to), Some(from)) = (layouts.get(&d), layouts.get(&s))
                && to != from
            {
                found = Some(if seeds.contains_key(&d) { s } else { d });
            }
        }
        _ => {}
    });
    found
}

fn scalar_uses(kernel: &Kernel, block: BlockId, memory: &mut [bool]) {
    for &op in &kernel.block(block).ops {
        match &kernel.op(op).kind {
            OpKind::LoadTile { tile, .. } | OpKind::StoreTile { tile, .. } => {
                memory[tile.index()] = true
            }
            OpKind::Map { .. } => {}
            kind => {
                for inner in kind.blocks() {
                    scalar_uses(kernel, inner, memory);
                }
            }
        }
    }
}

/// Whether a view of a tile is all of it, axis by axis.
pub fn is_whole_view(kernel: &Kernel, view: &View) -> bool {
    let Base::Tile(tile) = view.base else {
        return false;
    };
    view.shape() == kernel.tile(tile).shape
        && view
            .slots
            .iter()
            .all(|s| matches!(s, Slot::Span { start, .. } if kernel.const_index(*start) == Some(0)))
}

/// Whether a view is all of its tile.
pub fn is_whole(kernel: &Kernel, view: &TileView) -> bool {
    view.shape() == kernel.tile(view.tile).shape
        && view
            .slots
            .iter()
            .all(|s| matches!(s, Slot::Span { start, .. } if kernel.const_index(*start) == Some(0)))
}
