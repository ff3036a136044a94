//! Which tiles lie in registers, and how: from those outwards whose layout is given.
//!
//! In a plain kernel a tile that is copied from or to a tensor is dealt out in runs of 16 bytes ([`Layout::runs`]); in a role of a network
//! the sums of products lie as the instruction leaves them. Maps that touch such a tile regularly run in the layout that follows, the
//! other tiles that they touch get theirs from it, and so do the results of folds. A tile that is used in any other way, that two ops want
//! in two layouts, or that would take too many registers stays in memory.
//!
//! Needs: a kernel after `tile::pass::pipeline_gpu`, or a network. Keeps: the program, which is not changed.

use super::access::{self, Access};
use super::fold;
use super::layout::{Layout, WARPS_PER_GROUP};
use super::plan::most_registers;
use crate::target::nvptx::GpuFacts;
use crate::tile::ir::*;
use std::collections::{BTreeMap, BTreeSet};

/// Layouts of tiles and of the maps that touch them. What is missing is in memory.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    pub tiles: BTreeMap<TileId, Layout>,
    /// By body.
    pub maps: BTreeMap<BlockId, Layout>,
    /// Whether folds come in the order that suits the layout, and not in that which the program states.
    pub any_order: bool,
}

/// Of a vector access.
const ACCESS_BITS: u64 = 128;
/// Of the lines in which operands lie in shared memory.
const LINE_BITS: u64 = 1024;
/// Left to the compiler of PTX for addresses and what maps compute on the way.
const KEPT_REGISTERS: u32 = 64;
/// What tiles get where a line is selected from, of the 64 registers of one of 1024 threads: its elements are held there in any case. (Where products
/// are computed, so many make code of a minute's compiling.)
const SELECTED_REGISTERS: u32 = 24;
/// Elements that a thread computes of a map that others compute as well: with more, threads that share them out are done sooner, and code that has
/// them one after another takes seconds to compile.
const REPEATED_ELEMENTS: u64 = 64;

/// Of a plain kernel.
pub fn infer(kernel: &Kernel, warps: u32, gpu: &GpuFacts) -> Registers {
    let threads = warps * gpu.threads_per_warp;
    let available = (gpu.registers_per_sm / threads).min(gpu.max_registers_per_thread);
    let selects = |&op: &OpId| matches!(kernel.op(op).kind, OpKind::TopK { .. });
    let least = match kernel.live_ops().iter().any(selects) {
        true => SELECTED_REGISTERS,
        false => 0,
    };
    let limit = u64::from(available.saturating_sub(KEPT_REGISTERS).max(least));
    let mut uses = Uses::default();
    uses.block(kernel, kernel.body);
    let Uses { mut memory, .. } = uses.clone();
    memory.extend(uses.sums.iter().chain(&uses.left));
    loop {
        let (tiles, maps) = assign(kernel, &uses, &memory, u64::from(warps));
        let victim = conflict(kernel, &uses, &tiles, &maps);
        let victim = victim.or_else(|| repeated(kernel, &uses, &tiles, &maps));
        let victim = victim.or_else(|| {
            let many = most_registers(kernel, kernel.body, &tiles) > limit;
            let largest = tiles.iter().max_by_key(|(_, l)| l.registers());
            largest.filter(|_| many).map(|(&t, _)| t)
        });
        match victim {
            Some(tile) => memory.insert(tile),
            None => {
                return Registers {
                    tiles,
                    maps,
                    any_order: false,
                };
            }
        };
    }
}

/// Of a role whose warpgroups are `groups`. Folds may come in any order. `handed`: layouts of tiles that another role hands over in its
/// registers. `None` if sums of products cannot lie in registers, or those tiles come from another number of warps.
pub fn infer_role(
    kernel: &Kernel,
    role: BlockId,
    groups: u64,
    handed: &BTreeMap<TileId, Layout>,
) -> Option<Registers> {
    if handed
        .values()
        .any(|l| l.warps() != groups * WARPS_PER_GROUP)
    {
        return None;
    }
    let mut uses = Uses {
        any_order: true,
        handed: handed.keys().copied().collect(),
        ..Uses::default()
    };
    uses.block(kernel, role);
    let mut seeds = handed.clone();
    for &tile in &uses.sums {
        let [rows, columns] = kernel.tile(tile).shape[..] else {
            return None;
        };
        seeds.insert(tile, Layout::accumulator(rows, columns, groups)?);
    }
    for &tile in &uses.left {
        let [rows, k] = kernel.tile(tile).shape[..] else {
            return None;
        };
        let bits = kernel.tile(tile).dtype.bits();
        let operand = Layout::operand(rows, k, groups, bits.into())?;
        // What is handed over is put in the operand's order as it is taken.
        let threads = operand.threads();
        let known = seeds.insert(tile, operand);
        if known.is_some_and(|known| known.threads() != threads) {
            return None;
        }
    }
    if uses.sums.is_empty() {
        // What is put into memory is stored in vectors, two side by side: what neighbours share is found once for both.
        for &tile in &uses.puts {
            let Tile { shape, dtype, .. } = kernel.tile(tile);
            if shape.len() == 2 {
                let bits = u64::from(dtype.bits());
                let (run, line) = (2 * ACCESS_BITS / bits, LINE_BITS / bits);
                let dealt = |run| Layout::lines(shape, run, line, groups * WARPS_PER_GROUP);
                // Shorter runs where warps would have nothing of their own.
                let mut runs = [run, run / 2, run / 4].into_iter();
                let run = runs.find(|&run| !dealt(run).has_copies());
                let layout = dealt(run.unwrap_or(2 * ACCESS_BITS / bits));
                seeds.entry(tile).or_insert(layout);
            }
        }
    }
    let Uses { mut memory, .. } = uses.clone();
    let slots = (0..kernel.tiles.len()).filter(|&t| kernel.tiles[t].space == Space::Slot);
    let slots = slots.map(|t| TileId(t as u32));
    memory.extend(slots.filter(|t| !handed.contains_key(t)));
    loop {
        if seeds.keys().any(|t| memory.contains(t)) {
            return None;
        }
        let (mut tiles, mut maps) = (seeds.clone(), BTreeMap::new());
        for beyond in [false, true] {
            spread(kernel, &uses, &memory, &mut tiles, &mut maps, beyond);
        }
        match conflict(kernel, &uses, &tiles, &maps) {
            Some(tile) => memory.insert(tile),
            None => {
                return Some(Registers {
                    tiles,
                    maps,
                    any_order: true,
                });
            }
        };
    }
}

#[derive(Clone, Debug)]
struct MapUse {
    body: BlockId,
    extents: Vec<u64>,
    /// `None`: not regular.
    accesses: Vec<(TileId, Option<Access>)>,
}

#[derive(Clone, Copy, Debug)]
struct FoldUse {
    dst: TileId,
    src: TileId,
    axis: usize,
    op: FoldOp,
    order: Order,
}

/// What touches tiles.
#[derive(Clone, Debug, Default)]
struct Uses {
    /// Used in a way that only memory serves.
    memory: BTreeSet<TileId>,
    maps: Vec<MapUse>,
    folds: Vec<FoldUse>,
    /// Copies of whole tiles.
    moves: Vec<(TileId, TileId)>,
    /// Copies of whole tiles from or to tensors, with the bits of an element there.
    streams: Vec<(TileId, u64)>,
    /// Touched by scalar code outside maps.
    scalars: BTreeSet<TileId>,
    /// Of products.
    sums: BTreeSet<TileId>,
    /// Left operands that lie in registers.
    left: BTreeSet<TileId>,
    /// What other roles hand over in registers.
    handed: BTreeSet<TileId>,
    /// What other roles get.
    puts: BTreeSet<TileId>,
    /// Whether folds may come in an order of their own.
    any_order: bool,
}

impl Uses {
    fn block(&mut self, kernel: &Kernel, block: BlockId) {
        for &op in &kernel.block(block).ops {
            match &kernel.op(op).kind {
                OpKind::Map { extents, body } => self.map(kernel, extents, *body),
                OpKind::Copy { dst, src, oob } => self.copy(kernel, dst, src, *oob),
                OpKind::Reduce {
                    dst,
                    src,
                    axis,
                    op,
                    order,
                } => self.folds.push(FoldUse {
                    dst: *dst,
                    src: *src,
                    axis: *axis as usize,
                    op: *op,
                    order: *order,
                }),
                OpKind::LoadTile { tile, index } | OpKind::StoreTile { tile, index, .. } => {
                    self.scalars.insert(*tile);
                    if index.iter().any(|&i| kernel.const_index(i).is_none()) {
                        self.memory.insert(*tile);
                    }
                }
                // To another role, in whatever layout it has.
                OpKind::Put { src, .. } if is_whole_view(kernel, src) => {
                    if let Base::Tile(tile) = src.base {
                        self.puts.insert(tile);
                    }
                }
                OpKind::Get { .. } => {}
                OpKind::Dot { acc, a, b, .. } => {
                    match is_whole(kernel, acc) {
                        true => self.sums.insert(acc.tile),
                        false => self.memory.insert(acc.tile),
                    };
                    let computed = kernel.tile(a.view.tile).space != Space::Slot
                        || self.handed.contains(&a.view.tile);
                    match computed && !a.transposed && is_whole(kernel, &a.view) {
                        true => self.left.insert(a.view.tile),
                        false => self.memory.insert(a.view.tile),
                    };
                    self.memory.insert(b.view.tile);
                }
                kind => {
                    kind.for_each_tile(&mut |tile, _| {
                        self.memory.insert(tile);
                    });
                    for inner in kind.blocks() {
                        self.block(kernel, inner);
                    }
                }
            }
        }
    }

    fn map(&mut self, kernel: &Kernel, extents: &[u64], body: BlockId) {
        let ops = kernel.block(body).ops.iter();
        let accesses = ops.filter_map(|&op| match &kernel.op(op).kind {
            OpKind::LoadTile { tile, index } | OpKind::StoreTile { tile, index, .. } => {
                Some((*tile, access::access(kernel, body, index)))
            }
            _ => None,
        });
        self.maps.push(MapUse {
            body,
            extents: extents.to_vec(),
            accesses: accesses.collect(),
        });
    }

    fn copy(&mut self, kernel: &Kernel, dst: &View, src: &View, oob: Oob) {
        let gathers = |v: &View| v.slots.iter().any(|s| matches!(s, Slot::Gather { .. }));
        // What a copy leaves as it is, or stops at, is seen element by element.
        let keeps = oob == Oob::Error || (oob == Oob::Skip && matches!(dst.base, Base::Tile(_)));
        let plain = !gathers(dst) && !gathers(src) && !keeps;
        let mut forget = |view: &View| {
            let mut bases = vec![view.base];
            bases.extend(view.slots.iter().filter_map(|s| match s {
                Slot::Gather { index, .. } => Some(index.base),
                _ => None,
            }));
            for base in bases {
                if let Base::Tile(tile) = base
                    && (base != view.base || !plain || !is_whole_view(kernel, view))
                {
                    self.memory.insert(tile);
                }
            }
        };
        forget(dst);
        forget(src);
        match (dst.base, src.base) {
            (Base::Tile(to), Base::Tile(from)) => self.moves.push((to, from)),
            (Base::Tile(tile), Base::Param(param)) | (Base::Param(param), Base::Tile(tile)) => {
                let bits = kernel.tensor(param).map_or(0, |t| t.dtype.bits());
                self.streams.push((tile, u64::from(bits)));
            }
            (Base::Param(_), Base::Param(_)) => {}
        }
    }

    /// Tiles whose layouts follow from this one's, and the other way round.
    fn connected(&self, tile: TileId) -> BTreeSet<TileId> {
        let mut found = BTreeSet::from([tile]);
        loop {
            let before = found.len();
            let mut join = |tiles: &[TileId]| {
                if tiles.iter().any(|t| found.contains(t)) {
                    found.extend(tiles);
                }
            };
            for map in &self.maps {
                let regular = map.accesses.iter().filter(|(_, a)| a.is_some());
                join(&regular.map(|(t, _)| *t).collect::<Vec<_>>());
            }
            for f in &self.folds {
                join(&[f.dst, f.src]);
            }
            for &(a, b) in &self.moves {
                join(&[a, b]);
            }
            if found.len() == before {
                return found;
            }
        }
    }

    /// The layout of a tile that is copied from or to a tensor.
    fn seed(&self, kernel: &Kernel, tile: TileId, warps: u64) -> Layout {
        let shape = &kernel.tile(tile).shape;
        let connected = self.connected(tile);
        let alike = |t: &TileId| connected.contains(t) && kernel.tile(*t).shape == *shape;
        let widest = self.streams.iter().filter(|(t, _)| alike(t));
        let widest = widest.map(|(_, bits)| *bits).max().unwrap_or(ACCESS_BITS);
        let scales = self.maps.iter().flat_map(|m| &m.accesses);
        let scales = scales.filter(|(t, _)| alike(t));
        let scales = scales.filter_map(|(_, a)| a.as_ref()?.last().map(|along| along.scale));
        let run = scales.max().unwrap_or(1).max(ACCESS_BITS / widest.max(1));
        let folds_rows = self.folds.iter().any(|f| {
            let from = &kernel.tile(f.src).shape;
            connected.contains(&f.src) && from.len() == shape.len() && f.axis + 1 == from.len()
        });
        Layout::runs(shape, run, warps, folds_rows)
    }
}

type Assigned = (BTreeMap<TileId, Layout>, BTreeMap<BlockId, Layout>);

/// Layouts from the largest tile that is copied, then of what is left.
fn assign(kernel: &Kernel, uses: &Uses, memory: &BTreeSet<TileId>, warps: u64) -> Assigned {
    let mut seeds: Vec<TileId> = uses.streams.iter().map(|(t, _)| *t).collect();
    seeds.sort_by_key(|t| (std::cmp::Reverse(kernel.tile(*t).elements()), *t));
    let mut tiles = BTreeMap::new();
    let mut maps = BTreeMap::new();
    for tile in seeds {
        if memory.contains(&tile) || tiles.contains_key(&tile) {
            continue;
        }
        tiles.insert(tile, uses.seed(kernel, tile, warps));
        spread(kernel, uses, memory, &mut tiles, &mut maps, false);
    }
    // Maps that go further than any tile known so far: one of an outer product, say.
    spread(kernel, uses, memory, &mut tiles, &mut maps, true);
    (tiles, maps)
}

fn spread(
    kernel: &Kernel,
    uses: &Uses,
    memory: &BTreeSet<TileId>,
    tiles: &mut BTreeMap<TileId, Layout>,
    maps: &mut BTreeMap<BlockId, Layout>,
    beyond: bool,
) {
    loop {
        let before = (tiles.len(), maps.len());
        for map in &uses.maps {
            if !maps.contains_key(&map.body)
                && let Some(layout) = layout_of_map(kernel, map, tiles, beyond)
            {
                maps.insert(map.body, layout);
            }
            let Some(own) = maps.get(&map.body) else {
                continue;
            };
            for (tile, access) in &map.accesses {
                let known = access.as_ref().and_then(|access| {
                    access::layout_of_tile(own, access, &kernel.tile(*tile).shape)
                });
                give(tiles, memory, *tile, known);
            }
        }
        for f in &uses.folds {
            let known = tiles.get(&f.src).map(|l| l.without(f.axis).ordered());
            give(tiles, memory, f.dst, known);
        }
        for &(a, b) in &uses.moves {
            for (from, to) in [(a, b), (b, a)] {
                let known = tiles.get(&from).cloned();
                give(tiles, memory, to, known);
            }
        }
        if (tiles.len(), maps.len()) == before {
            return;
        }
    }
}

fn give(
    tiles: &mut BTreeMap<TileId, Layout>,
    memory: &BTreeSet<TileId>,
    tile: TileId,
    layout: Option<Layout>,
) {
    if let Some(layout) = layout.filter(|_| !memory.contains(&tile)) {
        tiles.entry(tile).or_insert(layout);
    }
}

/// A map goes as the largest tile in registers that it touches and that has all of its axes, or `beyond` them.
fn layout_of_map(
    kernel: &Kernel,
    map: &MapUse,
    tiles: &BTreeMap<TileId, Layout>,
    beyond: bool,
) -> Option<Layout> {
    let has_all = |access: &Option<Access>| {
        let names = |x| access.iter().flatten().any(|along| along.axis == Some(x));
        (0..map.extents.len()).all(|x| map.extents[x] == 1 || names(x))
    };
    let mut touched: Vec<_> = (map.accesses.iter())
        .filter(|(t, access)| tiles.contains_key(t) && (beyond || has_all(access)))
        .collect();
    touched.sort_by_key(|(t, _)| (std::cmp::Reverse(kernel.tile(*t).elements()), *t));
    touched.into_iter().find_map(|(tile, access)| {
        access::layout_of_map(&tiles[tile], access.as_ref()?, &map.extents)
    })
}

/// A tile in registers that an op cannot touch there.
fn conflict(
    kernel: &Kernel,
    uses: &Uses,
    tiles: &BTreeMap<TileId, Layout>,
    maps: &BTreeMap<BlockId, Layout>,
) -> Option<TileId> {
    for map in &uses.maps {
        for (tile, access) in &map.accesses {
            let Some(layout) = tiles.get(tile) else {
                continue;
            };
            let fits = match (maps.get(&map.body), access) {
                (Some(own), Some(access)) => access::fits(own, access, layout),
                _ => false,
            };
            if !fits {
                return Some(*tile);
            }
        }
    }
    for f in &uses.folds {
        let dtype = kernel.tile(f.src).dtype;
        let Some(from) = tiles.get(&f.src) else {
            match tiles.contains_key(&f.dst) {
                true => return Some(f.dst),
                false => continue,
            }
        };
        if fold::plan(from, f.axis, f.op, dtype, f.order, uses.any_order).is_none() {
            return Some(f.src);
        }
        let to = tiles.get(&f.dst);
        if to.is_some_and(|to| to.threads() != from.without(f.axis).threads()) {
            return Some(f.dst);
        }
    }
    for (to, from) in &uses.moves {
        if let (Some(a), Some(b)) = (tiles.get(to), tiles.get(from))
            && a.threads() != b.threads()
        {
            return Some(*to);
        }
    }
    let mut scalars = uses.scalars.iter();
    let lost = scalars.find(|t| tiles.get(t).is_some_and(|l| !l.is_everywhere()));
    lost.copied()
}

/// A small tile in registers for whose sake a map over far more is computed several times over.
fn repeated(
    kernel: &Kernel,
    uses: &Uses,
    tiles: &BTreeMap<TileId, Layout>,
    maps: &BTreeMap<BlockId, Layout>,
) -> Option<TileId> {
    let far = |layout: &Layout| layout.has_copies() && layout.registers() > REPEATED_ELEMENTS;
    let map = uses
        .maps
        .iter()
        .find(|m| maps.get(&m.body).is_some_and(far))?;
    let touched = map.accesses.iter().map(|(tile, _)| *tile);
    let touched = touched.filter(|tile| tiles.contains_key(tile));
    touched.min_by_key(|&tile| (kernel.tile(tile).elements(), tile))
}

impl Registers {
    /// What each thread leaves for the others in a fold of a tile in registers; `None` of any other op.
    pub fn exchanged(&self, kernel: &Kernel, kind: &OpKind) -> Option<u64> {
        let &OpKind::Reduce {
            src,
            axis,
            op,
            order,
            ..
        } = kind
        else {
            return None;
        };
        let dtype = kernel.tile(src).dtype;
        let layout = self.tiles.get(&src)?;
        let plan = fold::plan(layout, axis as usize, op, dtype, order, self.any_order)?;
        Some(plan.exchanged)
    }

    /// Shared memory in which the warps of `threads` threads meet in a fold of a tile in registers; `None` of any other op.
    pub fn meeting_bytes(&self, kernel: &Kernel, kind: &OpKind, threads: u32) -> Option<u64> {
        let &OpKind::Reduce { src, .. } = kind else {
            return None;
        };
        let element = u64::from(kernel.tile(src).dtype.bits().div_ceil(8));
        Some(self.exchanged(kernel, kind)? * u64::from(threads) * element)
    }

    /// What each thread holds, by tile.
    pub fn print(&self, kernel: &Kernel) -> String {
        let lines = self.tiles.iter().map(|(&tile, layout)| {
            let (name, count) = (&kernel.tile(tile).name, layout.registers());
            format!("tile {name}: {count} registers, {layout}\n")
        });
        lines.collect()
    }
}

/// Whether a view is all of its tile.
pub fn is_whole(kernel: &Kernel, view: &TileView) -> bool {
    view.shape() == kernel.tile(view.tile).shape
        && view
            .slots
            .iter()
            .all(|s| matches!(s, Slot::Span { start, .. } if kernel.const_index(*start) == Some(0)))
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
