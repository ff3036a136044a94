//! Short loops over maps become straight lines, so that their maps can become one and pass values without memory.
//!
//! A loop is unrolled if it makes a few trips, known now, and holds maps, scalar ops, and copies of read-only tensors into tiles that live and
//! die with the iteration; each trip gets tiles of its own for these. What is left are loops of one trip each, which `simplify` opens.
//!
//! Needs: `simplify` (bounds are constants). Keeps: bits, the order of all effects.

use super::clone::Cloner;
use crate::tile::ir::*;
use crate::tile::visit::Access;
use std::collections::BTreeSet;
use tessera_artifact::ParamMode;

/// More trips stay a loop.
const MAX_TRIPS: i64 = 8;
/// Ops of all trips: as many as one map may hold.
const MAX_OPS: usize = super::fuse_maps::MAX_OPS;
/// All tiles of all trips.
const MAX_BYTES: u64 = 16 << 10;

pub fn unroll(kernel: &mut Kernel) {
    unroll_in(kernel, kernel.body);
}

fn unroll_in(kernel: &mut Kernel, block: BlockId) {
    let mut out = Vec::new();
    for op in kernel.block(block).ops.clone() {
        for inner in kernel.op(op).kind.blocks() {
            unroll_in(kernel, inner);
        }
        let found = straight_line(kernel, op);
        match found {
            Some(line) => expand(kernel, op, &line, &mut out),
            None => out.push(op),
        }
    }
    kernel.blocks[block.index()].ops = out;
}

/// A loop that can be unrolled.
struct StraightLine {
    lo: i64,
    hi: i64,
    body: BlockId,
    /// Live and die with the iteration.
    own: BTreeSet<TileId>,
}

fn straight_line(kernel: &Kernel, op: OpId) -> Option<StraightLine> {
    let OpKind::For { lo, hi, body, .. } = kernel.op(op).kind else {
        return None;
    };
    let (lo, hi) = (kernel.const_index(lo)?, kernel.const_index(hi)?);
    let trips = hi.checked_sub(lo).filter(|t| (2..=MAX_TRIPS).contains(t))?;
    let (mut own, mut maps, mut ops) = (BTreeSet::new(), 0, 0);
    for &inner in &kernel.block(body).ops {
        match &kernel.op(inner).kind {
            OpKind::Map { body, .. } => {
                maps += 1;
                ops += kernel.block(*body).ops.len();
            }
            OpKind::Copy { dst, src, oob } => {
                own.insert(filled_tile(kernel, dst, src, *oob)?);
            }
            kind if kind.is_pure() || kind.is_load() => ops += 1,
            _ => return None,
        }
    }
    let bytes = |t: &Tile| t.elements().saturating_mul(t.dtype.bits() as u64) / 8;
    let bytes: u64 = own.iter().map(|&t| bytes(kernel.tile(t))).sum();
    let small = ops * trips as usize <= MAX_OPS && bytes.saturating_mul(trips as u64) <= MAX_BYTES;
    let private = own.iter().all(|&t| lives_in(kernel, t, body));
    (maps > 0 && small && private).then_some(StraightLine { lo, hi, body, own })
}

/// The tile that a copy fills whole from a tensor that nobody writes.
pub(super) fn filled_tile(kernel: &Kernel, dst: &View, src: &View, oob: Oob) -> Option<TileId> {
    let (Base::Tile(tile), Base::Param(param)) = (dst.base, src.base) else {
        return None;
    };
    let whole = dst.slots.iter().zip(&kernel.tile(tile).shape).all(|(slot, &extent)| {
        matches!(slot, Slot::Span { start, len } if *len == extent && kernel.const_index(*start) == Some(0))
    });
    let plain = src.slots.iter().all(|s| !matches!(s, Slot::Gather { .. }));
    let read_only = kernel
        .tensor(param)
        .is_some_and(|t| t.mode == ParamMode::In);
    (whole && plain && read_only && !matches!(oob, Oob::Skip | Oob::Error)).then_some(tile)
}

/// Whether the tile is touched in `body` only, first by the copy that fills it.
fn lives_in(kernel: &Kernel, tile: TileId, body: BlockId) -> bool {
    let touches = |from: BlockId| {
        let mut touches = Vec::new();
        kernel.walk(from, &mut |_, op| {
            kernel.op(op).kind.for_each_tile(&mut |t, access| {
                if t == tile {
                    touches.push((op, access));
                }
            });
        });
        touches
    };
    let here = touches(body);
    let first_fills = here.first().is_some_and(|&(op, access)| {
        access == Access::Write && matches!(kernel.op(op).kind, OpKind::Copy { .. })
    });
    first_fills && here.len() == touches(kernel.body).len()
}

/// Appends a loop of one trip for each trip.
fn expand(kernel: &mut Kernel, op: OpId, line: &StraightLine, out: &mut Vec<OpId>) {
    let span = kernel.op(op).span;
    let push = |kernel: &mut Kernel, kind: OpKind, out: &mut Vec<OpId>| {
        let new = OpId(kernel.ops.len() as u32);
        let result = matches!(kind, OpKind::Const(_)).then(|| {
            let value = ValueId(kernel.values.len() as u32);
            kernel.values.push(Value {
                ty: Type::Index,
                def: Def::Op(new),
                name: None,
            });
            value
        });
        kernel.ops.push(Op { kind, result, span });
        out.push(new);
        result
    };
    let mut bounds = Vec::new();
    for i in line.lo..=line.hi {
        bounds.extend(push(kernel, OpKind::Const(Const::Index(i)), out));
    }
    for pair in bounds.windows(2) {
        let mut cloner = Cloner::default();
        for &tile in &line.own {
            let new = TileId(kernel.tiles.len() as u32);
            kernel.tiles.push(kernel.tile(tile).clone());
            cloner.tiles.insert(tile, new);
        }
        let body = cloner.block(kernel, line.body);
        let kind = OpKind::For {
            lo: pair[0],
            hi: pair[1],
            kind: LoopKind::Sequential,
            body,
        };
        push(kernel, kind, out);
    }
}
