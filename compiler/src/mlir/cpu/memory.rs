//! Where each tile of a kernel lives: a plan as plain data.
//!
//! A tiny tile gets a place on the stack, which LLVM turns into registers where it can. Every other tile gets a slot of the
//! thread's scratch memory; tiles whose lives do not overlap share one. A life runs from a tile's first op to its last in the innermost
//! block that holds all of them: a tile that a loop's body both makes and uses dies with the iteration, one that is also used
//! outside lives through the whole loop.
//!
//! Needs: tiles are written before they are read in every iteration of the block that holds them (checked before). Keeps: two
//! tiles that are alive together never share bytes. Slots, not bytes, are shared, so one alias scope per slot is true.

use super::layout::Layout;
use crate::tile::analysis::carried;
use crate::tile::ir::{BlockId, Kernel, OpKind, TileId};
use std::collections::BTreeMap;

/// Up to this size a tile is kept on the stack.
const STACK_TILE_BYTES: u64 = 256;
/// All stack tiles of a kernel together.
const STACK_BYTES: u64 = 8 << 10;
pub const SLOT_ALIGN: u64 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Never used.
    Nowhere,
    Stack {
        bytes: u64,
    },
    Slot(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRange {
    pub offset: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, Default)]
pub struct MemoryPlan {
    /// By tile.
    pub places: Vec<Place>,
    pub slots: Vec<SlotRange>,
    /// What one thread needs.
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

/// `layouts` by tile. A tile that another stands for has no place, and its uses keep that one alive.
pub fn plan(
    kernel: &Kernel,
    layouts: &[Layout],
    stands_for: &BTreeMap<TileId, TileId>,
) -> MemoryPlan {
    let lives = lives(kernel, stands_for);
    let bytes = |t: usize| layouts[t].bytes(kernel.tiles[t].dtype);
    let mut places = vec![Place::Nowhere; kernel.tiles.len()];
    let mut on_stack = 0;
    let mut rest = Vec::new();
    for (t, life) in lives.iter().enumerate() {
        let Some(life) = *life else { continue };
        let size = bytes(t);
        if size <= STACK_TILE_BYTES && on_stack + size <= STACK_BYTES {
            on_stack += size;
            places[t] = Place::Stack { bytes: size.max(1) };
        } else {
            rest.push((t, life, size));
        }
    }
    // Largest first: a slot then never grows.
    rest.sort_by_key(|&(t, _, size)| (std::cmp::Reverse(size), t));
    let mut slots: Vec<(u64, Vec<Life>)> = Vec::new();
    for (t, life, size) in rest {
        let free = slots
            .iter()
            .position(|(_, taken)| !taken.iter().any(|&other| life.overlaps(other)));
        let slot = free.unwrap_or_else(|| {
            slots.push((size.next_multiple_of(SLOT_ALIGN), Vec::new()));
            slots.len() - 1
        });
        slots[slot].1.push(life);
        places[t] = Place::Slot(slot);
    }
    let mut plan = MemoryPlan {
        places,
        ..MemoryPlan::default()
    };
    for (bytes, _) in slots {
        plan.add_slot(bytes);
    }
    plan
}

impl MemoryPlan {
    /// A buffer of its own.
    pub fn add_slot(&mut self, bytes: u64) -> usize {
        let bytes = bytes.next_multiple_of(SLOT_ALIGN);
        self.slots.push(SlotRange {
            offset: self.scratch_bytes,
            bytes,
        });
        // Slots of a power of two apart would fall into the same cache sets.
        self.scratch_bytes += bytes + SLOT_ALIGN;
        self.slots.len() - 1
    }
}

/// The lives of all tiles that are used.
fn lives(kernel: &Kernel, stands_for: &BTreeMap<TileId, TileId>) -> Vec<Option<Life>> {
    let mut lives = vec![None; kernel.tiles.len()];
    walk(kernel, kernel.body, stands_for, &mut 0, &mut lives);
    lives
}

/// Walks a block and gives the tiles that it touches. The first block to leave with a tile sets its life; an outer block sets it
/// anew where more than that one op of its own touches the tile.
fn walk(
    kernel: &Kernel,
    block: BlockId,
    stands_for: &BTreeMap<TileId, TileId>,
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
            for tile in walk(kernel, inner, stands_for, next, lives) {
                // In both arms of an `if`: neither arm's life is enough.
                tiles
                    .entry(tile)
                    .and_modify(|both| *both = true)
                    .or_insert(false);
            }
        }
        kind.for_each_tile(&mut |tile, _| {
            tiles.insert(*stands_for.get(&tile).unwrap_or(&tile), true);
        });
        // What an iteration may read before it writes it, an earlier one wrote: it lives through the loop.
        if let OpKind::For { body, .. } | OpKind::ForItems { body } = kind {
            for tile in carried(kernel, *body) {
                tiles.insert(*stands_for.get(&tile).unwrap_or(&tile), true);
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
