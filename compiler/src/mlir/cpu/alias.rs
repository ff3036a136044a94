//! Tiles that need no memory of their own: an analysis, its result plain data.
//!
//! - A tile that one `copy` fills from a tensor nobody writes, and that is only read afterwards in the same block, may be read where it lies in
//!   the tensor. Whether it does lie there as the tile would (inside, rows end to end) is asked when the copy is reached.
//! - A tile that is another one cast to f32, and nothing but an operand of `dot`, is widened by the product as it reads the other.
//!
//! Keeps: what is read. A tile that is shorter than a few vectors stays in registers instead.

use crate::tile::ir::*;
use crate::tile::visit::Access;
use std::collections::{BTreeMap, BTreeSet};
use tessera_artifact::{DType, ParamMode};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases {
    /// Copies whose tile may be read in the tensor.
    pub in_place: BTreeSet<OpId>,
    /// Maps that only widen: not emitted.
    pub widening: BTreeSet<OpId>,
    /// The tile that stands for a widened one.
    pub stands_for: BTreeMap<TileId, TileId>,
}

/// Smaller tiles are copied.
const LEAST_BYTES: u64 = 1024;

/// Where an op stands, from the kernel's body inwards: block and position in it.
type Path = Vec<(BlockId, usize)>;

struct Touch {
    op: OpId,
    path: Path,
    access: Access,
}

pub fn find(kernel: &Kernel) -> Aliases {
    let mut touches: Vec<Vec<Touch>> = kernel.tiles.iter().map(|_| Vec::new()).collect();
    collect(kernel, kernel.body, &mut Vec::new(), &mut touches);
    let mut found = Aliases::default();
    for (t, touches) in touches.iter().enumerate() {
        let tile = TileId(t as u32);
        let Some(writer) = only_writer(kernel, touches) else {
            continue;
        };
        if is_copy_in(kernel, tile, writer.op) {
            found.in_place.insert(writer.op);
        }
    }
    for (t, touched) in touches.iter().enumerate() {
        let tile = TileId(t as u32);
        let Some(writer) = only_writer(kernel, touched) else {
            continue;
        };
        let Some(source) = widened_source(kernel, tile, writer.op, &writer.path) else {
            continue;
        };
        let only_products = touched
            .iter()
            .filter(|touch| touch.access == Access::Read)
            .all(|touch| matches!(kernel.op(touch.op).kind, OpKind::Dot { .. }));
        // The source is written once, before the cast, in the block of the cast: so never between the cast and the products.
        let here = home(kernel, &writer.path);
        let steady = only_writer(kernel, &touches[source.index()]).is_some_and(|w| {
            let there = home(kernel, &w.path);
            there.len() == here.len() && precedes(there, here)
        });
        if only_products && steady {
            let op = owner(kernel, &writer.path);
            found.widening.insert(op);
            found.stands_for.insert(tile, source);
        }
    }
    found
}

fn collect(kernel: &Kernel, block: BlockId, path: &mut Path, touches: &mut [Vec<Touch>]) {
    for (at, &op) in kernel.block(block).ops.iter().enumerate() {
        path.push((block, at));
        let kind = &kernel.op(op).kind;
        kind.for_each_tile(&mut |tile, access| {
            touches[tile.index()].push(Touch {
                op,
                path: path.clone(),
                access,
            });
        });
        for inner in kind.blocks() {
            collect(kernel, inner, path, touches);
        }
        path.pop();
    }
}

/// The one op that writes the tile, if all others read it, later in the same block or deeper.
fn only_writer<'t>(kernel: &Kernel, touches: &'t [Touch]) -> Option<&'t Touch> {
    let mut writers = touches.iter().filter(|t| t.access == Access::Write);
    let writer = writers.next()?;
    let single = writers.next().is_none();
    let home = home(kernel, &writer.path);
    let later = touches
        .iter()
        .filter(|t| t.access == Access::Read)
        .all(|t| precedes(home, &t.path));
    (single && later).then_some(writer)
}

/// The path of the tile op: of the map, for an op in a map's body.
fn home<'p>(kernel: &Kernel, path: &'p [(BlockId, usize)]) -> &'p [(BlockId, usize)] {
    if let [outer @ .., (block, at), _] = path {
        let op = kernel.block(*block).ops[*at];
        if matches!(kernel.op(op).kind, OpKind::Map { .. }) {
            return &path[..outer.len() + 1];
        }
    }
    path
}

/// `a` stands in a block that `b` stands in too (perhaps deeper), before it.
fn precedes(a: &[(BlockId, usize)], b: &[(BlockId, usize)]) -> bool {
    let Some((&(block, at), outer)) = a.split_last() else {
        return false;
    };
    b.len() >= a.len()
        && outer == &b[..outer.len()]
        && b[outer.len()].0 == block
        && at < b[outer.len()].1
}

/// The op of the block that holds a map's body.
fn owner(kernel: &Kernel, path: &[(BlockId, usize)]) -> OpId {
    let (block, at) = path[path.len() - 2];
    kernel.block(block).ops[at]
}

/// A copy of a whole tile from a tensor that is only read, element for element.
fn is_copy_in(kernel: &Kernel, tile: TileId, op: OpId) -> bool {
    let OpKind::Copy { dst, src, oob } = &kernel.op(op).kind else {
        return false;
    };
    let t = kernel.tile(tile);
    let Base::Param(param) = src.base else {
        return false;
    };
    let Some(tensor) = kernel.tensor(param) else {
        return false;
    };
    let whole = dst.base == Base::Tile(tile)
        && dst.slots.iter().zip(&t.shape).all(|(slot, &extent)| {
            matches!(slot, Slot::Span { start, len } if *len == extent && kernel.const_index(*start) == Some(0))
        });
    let plain = src.slots.iter().all(|s| !matches!(s, Slot::Gather { .. }));
    whole
        && plain
        && *oob != Oob::Skip
        && tensor.mode == ParamMode::In
        && tensor.dtype == t.dtype
        && t.dtype.bits() >= 8
        && t.elements() * t.dtype.bits() as u64 / 8 >= LEAST_BYTES
}

/// The tile that `op`, a store in a map's body, casts to f32 element for element.
fn widened_source(
    kernel: &Kernel,
    tile: TileId,
    op: OpId,
    path: &[(BlockId, usize)],
) -> Option<TileId> {
    let OpKind::StoreTile { index, value, .. } = &kernel.op(op).kind else {
        return None;
    };
    let [.., (outer, at), (body, _)] = path else {
        return None;
    };
    let map = kernel.block(*outer).ops[*at];
    let OpKind::Map { extents, .. } = &kernel.op(map).kind else {
        return None;
    };
    let args = &kernel.block(*body).args;
    let OpKind::Cast(from, Type::Scalar(DType::F32)) = kernel.def(*value)? else {
        return None;
    };
    let OpKind::LoadTile {
        tile: source,
        index: source_index,
    } = kernel.def(*from)?
    else {
        return None;
    };
    let (t, s) = (kernel.tile(tile), kernel.tile(*source));
    let same = index == args && source_index == args && *extents == t.shape && t.shape == s.shape;
    let stores = kernel
        .block(*body)
        .ops
        .iter()
        .filter(|&&op| !kernel.op(op).kind.is_pure() && !kernel.op(op).kind.is_load())
        .count();
    (same && stores == 1 && t.dtype == DType::F32 && s.dtype.widens_to(DType::F32))
        .then_some(*source)
}
