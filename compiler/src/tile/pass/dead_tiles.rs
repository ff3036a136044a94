//! Tiles that nobody reads are no longer written.
//!
//! Needs: nothing. Keeps: bits. A copy that must stop on what is out of bounds stays for its error.

use crate::tile::ir::*;
use crate::tile::visit::Access;

pub fn dead_tiles(kernel: &mut Kernel) {
    loop {
        let mut read = vec![false; kernel.tiles.len()];
        for op in kernel.live_ops() {
            let kind = &kernel.op(op).kind;
            let own_accumulator = match kind {
                OpKind::Dot { acc, .. } => Some(acc.tile),
                _ => None,
            };
            kind.for_each_tile(&mut |t, access| {
                read[t.index()] |= access == Access::Read && own_accumulator != Some(t);
            });
        }
        if !remove_writes(kernel, kernel.body, &read) {
            return;
        }
    }
}

/// Whether anything went.
fn remove_writes(kernel: &mut Kernel, block: BlockId, read: &[bool]) -> bool {
    let ops = std::mem::take(&mut kernel.blocks[block.index()].ops);
    let before = ops.len();
    let kept: Vec<OpId> = ops
        .into_iter()
        .filter(|&op| !only_writes_unread(&kernel.op(op).kind, read))
        .collect();
    let mut changed = kept.len() < before;
    for &op in &kept {
        for inner in kernel.op(op).kind.blocks() {
            changed |= remove_writes(kernel, inner, read);
        }
    }
    kernel.blocks[block.index()].ops = kept;
    changed
}

fn only_writes_unread(kind: &OpKind, read: &[bool]) -> bool {
    let dead = |t: &TileId| !read[t.index()];
    match kind {
        OpKind::StoreTile { tile, .. } => dead(tile),
        OpKind::Copy {
            dst: View {
                base: Base::Tile(t),
                ..
            },
            oob,
            ..
        } => dead(t) && *oob != Oob::Error,
        OpKind::Dot { acc, .. } => dead(&acc.tile),
        OpKind::Reduce { dst, .. } | OpKind::Scan { dst, .. } => dead(dst),
        OpKind::TopK {
            values, indices, ..
        } => dead(values) && dead(indices),
        _ => false,
    }
}
