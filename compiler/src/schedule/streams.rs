//! Tiles that are put as they are computed: no thread ever holds its part of one.
//!
//! What maps make of a tile that only goes to shared memory, and would take many registers and much code, is computed a run of neighbours at a
//! time, in loops over what else of the tile a thread has, each run stored before the next one is begun.
//!
//! Needs: a role of a network, with layouts. Keeps: every element's value, which depends on its coordinates alone.

use super::access;
use super::layout::Layout;
use super::registers::{Registers, is_whole_view};
use crate::tile::ir::*;
use std::collections::{BTreeMap, BTreeSet};
use tessera_artifact::DType;

/// Registers of a tile that is held until it is put.
const MOST_HELD: u64 = 32;

/// Where what a map computes is put at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub tile: TileId,
    pub channel: ChannelId,
}

/// The bodies of a role's maps that compute tiles which are put as they are computed. `stored`: channels whose matrices are stored where products
/// read them.
pub fn streams(
    kernel: &Kernel,
    role: BlockId,
    kept: &Registers,
    stored: &BTreeSet<ChannelId>,
) -> BTreeMap<BlockId, Stream> {
    let mut found = BTreeMap::new();
    kernel.walk(role, &mut |block, op| {
        let OpKind::Put { channel, src, .. } = &kernel.op(op).kind else {
            return;
        };
        let Base::Tile(tile) = src.base else { return };
        let many = |l: &Layout| l.words(kernel.tile(tile).dtype.bits().into()) > MOST_HELD;
        if !stored.contains(channel)
            || !is_whole_view(kernel, src)
            || !kept.tiles.get(&tile).is_some_and(many)
        {
            return;
        }
        let ops = (kernel.block(block).ops.iter()).take_while(|&&o| o != op);
        let maps: Vec<BlockId> = ops
            .filter_map(|&o| match kernel.op(o).kind {
                OpKind::Map { body, .. } => makes_part_of(kernel, body, tile, kept).then_some(body),
                _ => None,
            })
            .collect();
        if touches(kernel, tile) == maps.len() + 1 {
            let stream = Stream {
                tile,
                channel: *channel,
            };
            found.extend(maps.into_iter().map(|body| (body, stream)));
        }
    });
    found
}

/// Whether a map computes a part of a tile, element by element in the tile's layout, from nothing that is in registers.
fn makes_part_of(kernel: &Kernel, body: BlockId, tile: TileId, kept: &Registers) -> bool {
    let (Some(layout), Some(own)) = (kept.tiles.get(&tile), kept.maps.get(&body)) else {
        return false;
    };
    let runs = |l: &Layout| l.registers.first().is_some_and(|d| d.count == l.run());
    let fits = runs(layout) && runs(own) && own.run() == layout.run() && !own.has_copies();
    let mut stores = 0;
    let mut taken = |op: &OpId| match &kernel.op(*op).kind {
        OpKind::StoreTile { tile: t, index, .. } => {
            stores += 1;
            let along = access::access(kernel, body, index).is_some_and(|access| {
                (access.iter().enumerate()).all(|(i, a)| a.axis == Some(i) && a.scale == 1)
            });
            *t == tile && along
        }
        // Codes of 4 bits are looked up by words of what is held.
        OpKind::LoadTile { tile: t, .. } => {
            !kept.tiles.contains_key(t) && kernel.tile(*t).dtype != DType::E2M1
        }
        kind => kind.is_pure(),
    };
    let all = kernel.block(body).ops.iter().all(&mut taken);
    fits && all && stores == 1
}

/// How many ops name a tile.
fn touches(kernel: &Kernel, tile: TileId) -> usize {
    let mut count = 0;
    kernel.walk(kernel.body, &mut |_, op| {
        (kernel.op(op).kind).for_each_tile(&mut |t, _| count += usize::from(t == tile));
    });
    count
}
