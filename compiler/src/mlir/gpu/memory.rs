//! Where each tile of a kernel lives on a GPU: a plan as plain data.
//!
//! One element that only scalar code touches is kept by every thread for itself, and what a plan puts there lies in registers. All other tiles lie in the CTA's shared memory; tiles
//! whose lives do not overlap share bytes. A life runs from a tile's first op to its last in the innermost block that holds all of
//! them: a tile that a loop's body both makes and uses dies with the iteration. When the tiles do not fit, the largest go to the CTA's
//! part of a global scratch buffer, until the rest does.
//!
//! Needs: tiles are written before they are read in every iteration of the block that holds them (checked before). Keeps: two tiles
//! that are alive together never share bytes. That threads may be at different ops is the business of [`super::sync`].

use super::select;
use crate::schedule::{Plan, Registers};
use crate::tile::analysis::carried;
use crate::tile::ir::{BlockId, Kernel, OpKind, Order, Space, TileId};
use std::collections::BTreeMap;
use tessera_artifact::DType;

/// Of every tile: no vector access of ours is wider.
const ALIGN: u64 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Never used.
    Nowhere,
    /// In registers of each thread.
    Private,
    /// At this byte of the CTA's shared memory.
    Shared(u64),
    /// At this byte of the CTA's global scratch.
    Scratch(u64),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// By tile.
    pub places: Vec<Place>,
    bytes: Vec<u64>,
    /// What one op at a time needs beside its tiles (lanes of tree folds too wide for one warp, keys of a sort): at this byte of shared
    /// memory.
    pub work: Option<u64>,
    pub shared_bytes: u64,
    /// Per CTA.
    pub scratch_bytes: u64,
}

/// First and last op, as positions in execution order; an op that holds blocks spans them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Life {
    first: u32,
    last: u32,
}

impl Life {
    fn overlaps(self, other: Life) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Bytes of a tile: one e2m1 code a byte, and at least one byte.
pub fn tile_bytes(elements: u64, dtype: DType) -> u64 {
    (elements * dtype.bits().div_ceil(8) as u64).max(1)
}

/// From one copy of a tile to the next, where several warpgroups have one each.
pub fn copy_bytes(elements: u64, dtype: DType) -> u64 {
    tile_bytes(elements, dtype).next_multiple_of(ALIGN)
}

/// Tiles in `shared_limit` bytes of shared memory, for a CTA of so many threads.
pub fn plan(
    kernel: &Kernel,
    network: Option<&Plan>,
    registers: &Registers,
    threads: u32,
    shared_limit: u64,
) -> MemoryPlan {
    let mut lives = lives(kernel);
    for tile in registers.tiles.keys() {
        lives[tile.index()] = None;
    }
    let reserved = network.map_or(0, |n| n.shared_bytes);
    if network.is_some() {
        for (t, life) in lives.iter_mut().enumerate() {
            let tile = TileId(t as u32);
            // Roles run side by side.
            *life = life.map(|_| Life {
                first: 0,
                last: u32::MAX,
            });
            if kernel.tile(tile).space == Space::Slot {
                *life = None;
            }
        }
    }
    let shared_limit = shared_limit - reserved;
    let private = private_tiles(kernel);
    let bytes: Vec<u64> = kernel
        .tiles
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let tile = TileId(i as u32);
            let copies = network.map_or(1, |n| n.copies_in_memory(kernel, tile));
            match copies {
                1 => tile_bytes(t.elements(), t.dtype),
                _ => copies * copy_bytes(t.elements(), t.dtype),
            }
        })
        .collect();
    let work_bytes = work_bytes(kernel, registers, threads).next_multiple_of(ALIGN);
    let mut shared: Vec<(usize, Life)> = Vec::new();
    let mut places = vec![Place::Nowhere; kernel.tiles.len()];
    for (t, life) in lives.iter().enumerate() {
        match life {
            None => {}
            Some(_) if private[t] => places[t] = Place::Private,
            Some(life) => shared.push((t, *life)),
        }
    }
    // Largest first: small ones then fill the holes.
    shared.sort_by_key(|&(t, _)| (std::cmp::Reverse(bytes[t]), t));
    let mut scratch: Vec<(usize, Life)> = Vec::new();
    let (offsets, shared_bytes) = loop {
        let (offsets, total) = pack(&shared, &bytes);
        if total + work_bytes <= shared_limit || shared.is_empty() {
            break (offsets, total);
        }
        scratch.push(shared.remove(0));
    };
    for (&(t, _), offset) in shared.iter().zip(offsets) {
        places[t] = Place::Shared(reserved + offset);
    }
    let (offsets, scratch_bytes) = pack(&scratch, &bytes);
    for (&(t, _), offset) in scratch.iter().zip(offsets) {
        places[t] = Place::Scratch(offset);
    }
    MemoryPlan {
        places,
        bytes,
        work: (work_bytes > 0).then_some(reserved + shared_bytes),
        shared_bytes: reserved + shared_bytes + work_bytes,
        // Whole cache lines, so that CTAs do not share one.
        scratch_bytes: scratch_bytes.next_multiple_of(128),
    }
}

impl MemoryPlan {
    /// Tiles in shared memory and in scratch: name, place, bytes.
    pub fn in_memory(&self, kernel: &Kernel) -> Vec<(String, Place, u64)> {
        let all = kernel.tiles.iter().zip(&self.places).zip(&self.bytes);
        all.filter(|((_, place), _)| matches!(place, Place::Shared(_) | Place::Scratch(_)))
            .map(|((tile, &place), &bytes)| (tile.name.clone(), place, bytes))
            .collect()
    }

    /// Whether two tiles have bytes in common that more than one thread sees.
    pub fn overlap(&self, a: TileId, b: TileId) -> bool {
        let (a, b) = (a.index(), b.index());
        let (p, q) = match (self.places[a], self.places[b]) {
            (Place::Shared(p), Place::Shared(q)) | (Place::Scratch(p), Place::Scratch(q)) => (p, q),
            _ => return false,
        };
        p < q + self.bytes[b] && q < p + self.bytes[a]
    }
}

/// Each in turn at the lowest free offset. Gives the offsets and the end.
fn pack(tiles: &[(usize, Life)], bytes: &[u64]) -> (Vec<u64>, u64) {
    let mut placed: Vec<(u64, u64, Life)> = Vec::new();
    let mut offsets = Vec::new();
    for &(t, life) in tiles {
        let mut taken: Vec<(u64, u64)> = placed
            .iter()
            .filter(|(_, _, other)| life.overlaps(*other))
            .map(|&(from, to, _)| (from, to))
            .collect();
        taken.sort_unstable();
        let mut offset = 0;
        for (from, to) in taken {
            if offset + bytes[t] <= from {
                break;
            }
            offset = offset.max(to.next_multiple_of(ALIGN));
        }
        placed.push((offset, offset + bytes[t], life));
        offsets.push(offset);
    }
    let end = placed.iter().map(|&(_, to, _)| to).max().unwrap_or(0);
    (offsets, end.next_multiple_of(ALIGN))
}

/// Tiles of one element that only scalar code reads and writes, with no store inside a map.
fn private_tiles(kernel: &Kernel) -> Vec<bool> {
    let mut private: Vec<bool> = kernel.tiles.iter().map(|t| t.elements() == 1).collect();
    fn walk(kernel: &Kernel, block: BlockId, in_map: bool, private: &mut [bool]) {
        for &op in &kernel.block(block).ops {
            let kind = &kernel.op(op).kind;
            let scalar = match kind {
                OpKind::LoadTile { .. } => true,
                OpKind::StoreTile { .. } => !in_map,
                _ => false,
            };
            if !scalar {
                kind.for_each_tile(&mut |t, _| private[t.index()] = false);
            }
            let in_map = in_map || matches!(kind, OpKind::Map { .. });
            for inner in kind.blocks() {
                walk(kernel, inner, in_map, private);
            }
        }
    }
    walk(kernel, kernel.body, false, &mut private);
    private
}

/// What the neediest op needs beside its tiles.
fn work_bytes(kernel: &Kernel, registers: &Registers, threads: u32) -> u64 {
    let mut most = 0;
    kernel.walk(kernel.body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        let bytes = match kind {
            OpKind::Reduce { src, order, .. } => {
                match (registers.meeting_bytes(kernel, kind, threads), order) {
                    (Some(bytes), _) => bytes,
                    (None, Order::Tree(lanes)) if *lanes > 32 => {
                        tile_bytes(u64::from(*lanes), kernel.tile(*src).dtype)
                    }
                    (None, _) => 0,
                }
            }
            OpKind::TopK { values, src, .. } => {
                let last = |t: TileId| kernel.tile(t).shape.last().copied().unwrap_or(1);
                select::work_bytes(last(*src), last(*values), kernel.tile(*src).dtype, threads)
            }
            _ => 0,
        };
        most = most.max(bytes);
    });
    most
}

/// The lives of all tiles that are used.
fn lives(kernel: &Kernel) -> Vec<Option<Life>> {
    let mut lives = vec![None; kernel.tiles.len()];
    walk_lives(kernel, kernel.body, &mut 0, &mut lives);
    lives
}

/// Walks a block and gives the tiles that it touches. The first block to leave with a tile sets its life; an outer block sets it
/// anew where more than that one op of its own touches the tile.
fn walk_lives(
    kernel: &Kernel,
    block: BlockId,
    next: &mut u32,
    lives: &mut [Option<Life>],
) -> Vec<TileId> {
    struct Seen {
        life: Life,
        ops: u32,
        direct: bool,
    }
    let mut seen: BTreeMap<TileId, Seen> = BTreeMap::new();
    for &op in &kernel.block(block).ops {
        let first = *next;
        *next += 1;
        let kind = &kernel.op(op).kind;
        let mut tiles: BTreeMap<TileId, bool> = BTreeMap::new();
        for inner in kind.blocks() {
            for tile in walk_lives(kernel, inner, next, lives) {
                // In both arms of an `if`: neither arm's life is enough.
                let both = tiles.contains_key(&tile);
                tiles.insert(tile, both);
            }
        }
        kind.for_each_tile(&mut |tile, _| {
            tiles.insert(tile, true);
        });
        // What an iteration may read before it writes it, an earlier one wrote: it lives through the loop.
        if let OpKind::For { body, .. } | OpKind::ForItems { body } = kind {
            for tile in carried(kernel, *body) {
                tiles.insert(tile, true);
            }
        }
        // A map is one op: the order of its iterations is free, so all it touches lives through it.
        let is_map = matches!(kind, OpKind::Map { .. });
        let life = Life {
            first,
            last: *next - 1,
        };
        for (tile, direct) in tiles {
            let entry = seen.entry(tile).or_insert(Seen {
                life,
                ops: 0,
                direct: false,
            });
            entry.life.last = life.last;
            entry.ops += 1;
            entry.direct |= direct || is_map;
        }
    }
    for (tile, seen) in &seen {
        if seen.direct || seen.ops > 1 {
            lives[tile.index()] = Some(seen.life);
        }
    }
    seen.into_keys().collect()
}
