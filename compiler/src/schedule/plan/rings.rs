//! Where what crosses lies: slots and rings of channels, boxes of tensors, the bytes in which stores are staged.

use super::{
    Ends, Fill, MOST_PLACES, MapPlan, Plan, Ring, STAGED_ROW_BYTES, STAGED_ROWS, SlotPlace, Staged,
};
use crate::schedule::layout::{LANES, WARPS_PER_GROUP};
use crate::schedule::starts_aligned;
use crate::target::nvptx::GpuFacts;
use crate::tile::analysis::power_of_two;
use crate::tile::ir::*;
use std::collections::BTreeMap;
use tessera_artifact::{DType, HostExpr, HostOp};

const SLOT_ALIGN: u64 = 1024;
const VECTOR_ALIGN: u64 = 128;
const MOST_SLOTS: u32 = 16;
/// Bytes of the two barriers of a slot.
const SLOT_BARRIERS: u64 = 16;
/// The most bytes that a thread's copy brings.
const PIECE: u64 = 16;

/// What a thread brings of a line of a gathered row: all of it, if it is short.
pub fn piece_of_line(line: u64) -> u64 {
    line.min(PIECE)
}

/// The hardware's limit on each axis of a box.
pub const BOX_ROWS: u64 = 256;

impl Plan {
    pub(super) fn place_slots(&mut self, kernel: &Kernel, ends: &Ends) -> Result<(), String> {
        for (number, (channel, puts)) in kernel.channels.iter().zip(&ends.puts).enumerate() {
            let name = &channel.name;
            let fill = ends.fills[number];
            if let Some(layout) = self.handed.get(&ChannelId(number as u32)) {
                // A word of every thread for each of its registers.
                let (threads, registers) = (
                    layout.warps() * LANES,
                    layout.words(channel.dtype.bits().into()),
                );
                self.slots.push(SlotPlace {
                    ring: 0,
                    offset: 0,
                    stride: bytes_in_slot(4 * threads * registers, channel.shape.len() == 1),
                    rows: registers,
                    row_bytes: 4 * threads,
                    blocks: 1,
                });
                continue;
            }
            let (rows, columns) = match *channel.shape.as_slice() {
                [rows, columns] => (rows, columns),
                [columns] => (1, columns),
                _ => {
                    return Err(format!(
                        "channel `{name}` holds neither vectors nor matrices"
                    ));
                }
            };
            let vector = channel.shape.len() == 1;
            let bytes = (columns * channel.dtype.bits() as u64).div_ceil(8);
            let is_piece = matches!(fill, Fill::Gathered { .. }) && matches!(bytes, 8 | PIECE);
            let row_bytes = if vector || is_piece {
                bytes
            } else {
                super::roles::row_bytes(name, bytes)?
            };
            if !vector && !rows.is_multiple_of(8)
                || rows > BOX_ROWS
                || columns % 2 == 1 && channel.dtype.bits() < 8
            {
                return Err(format!("`{name}` has {rows} rows of {}", channel.dtype));
            }
            if vector && matches!(fill, Fill::Boxes) && columns > BOX_ROWS {
                return Err(format!(
                    "`{name}` has {columns} elements, and a copy brings {BOX_ROWS} of a vector at most"
                ));
            }
            self.slots.push(SlotPlace {
                ring: 0,
                offset: 0,
                stride: bytes_in_slot(rows * bytes, vector),
                rows,
                row_bytes,
                blocks: bytes / row_bytes,
            });
            for &(_, op) in puts {
                let OpKind::Put { src, .. } = &kernel.op(op).kind else {
                    continue;
                };
                let (Base::Param(param), Fill::Boxes | Fill::Gathered { .. }) = (src.base, fill)
                else {
                    continue;
                };
                if kernel
                    .tensor(param)
                    .is_some_and(|t| t.dtype != channel.dtype)
                {
                    return Err(format!(
                        "`{name}` holds {}, and what is put into it is converted",
                        channel.dtype
                    ));
                }
                if let Fill::Gathered { threads } = fill {
                    can_gather(kernel, src, param, u64::from(threads), row_bytes)
                        .map_err(|why| format!("`{name}` is gathered, and {why}"))?;
                    continue;
                }
                let swizzle = if vector { 0 } else { row_bytes };
                let mut map = map_of(src, param, row_bytes, swizzle, channel.dtype).ok_or_else(|| {
                    format!("the rows of `{name}` do not lie along two axes of a tensor, the last one of them its own last")
                })?;
                if let (true, Some(rows)) = (channel.shared, row_axis(src)) {
                    map.extents[rows] /= self.cluster;
                }
                if !starts_aligned(kernel, src, channel.dtype) {
                    return Err(format!(
                        "`{name}` is copied from a column that may be none of whole 16 bytes"
                    ));
                }
                let at = self.map_number(map);
                self.map_of.insert(op, at);
            }
        }
        Ok(())
    }

    /// The plan with its rings, and what stores are staged in: first for boxes that all have places of their own, if three slots are left of what
    /// every step takes, then for two places of a warpgroup, or none.
    pub(super) fn with_rings(
        mut self,
        kernel: &Kernel,
        ends: &Ends,
        gpu: &GpuFacts,
    ) -> Result<Plan, String> {
        let starved = |plan: &Plan, least: u32| {
            let asked = |r: &Ring| kernel.channels[r.channels[0].index()].slots.is_some();
            let few = |r: &Ring| r.each_step && r.slots < least && !asked(r);
            plan.rings.iter().any(few)
        };
        let (mut apart, mut direct) = (self.clone(), self.clone());
        let bytes = apart.stage_stores(kernel, true);
        apart.keep_batches_alike(kernel)?;
        if apart.make_rings(kernel, ends, bytes, gpu).is_ok() && !starved(&apart, 3) {
            return Ok(apart);
        }
        let bytes = self.stage_stores(kernel, false);
        self.make_rings(kernel, ends, bytes, gpu)?;
        if bytes > 0 && starved(&self, 2) {
            // A second slot is worth more than stores through shared memory.
            direct.make_rings(kernel, ends, 0, gpu)?;
            if !starved(&direct, 2) {
                return Ok(direct);
            }
        }
        Ok(self)
    }

    /// Copies from accumulators' layouts to tensors go by boxes where a box can be named. Gives the bytes that all roles stage in. `apart`: boxes of
    /// one block have a place each, if they are few.
    fn stage_stores(&mut self, kernel: &Kernel, apart: bool) -> u64 {
        let mut bytes = 0;
        for role in 0..self.roles.len() {
            let OpKind::Role { body, .. } = kernel.op(self.roles[role].op).kind else {
                continue;
            };
            let mut found = Vec::new();
            let groups = u64::from(self.roles[role].warps) / WARPS_PER_GROUP;
            // Of each block.
            let mut so_far: BTreeMap<BlockId, u64> = BTreeMap::new();
            kernel.walk(body, &mut |block, op| {
                if let OpKind::Copy { dst, src, .. } = &kernel.op(op).kind
                    && let (Base::Param(param), Base::Tile(tile)) = (dst.base, src.base)
                    && let Some((map, boxes)) = self.store_map(kernel, dst, param, tile)
                {
                    let before = so_far.entry(block).or_default();
                    found.push((op, map, *before));
                    *before += boxes / groups;
                }
            });
            let most = so_far.values().max().copied();
            let few = so_far.len() == 1 && most <= Some(MOST_PLACES);
            let apart = apart && few && !sums_go_on(kernel, body);
            let places = match most {
                Some(most) if apart => most,
                most if found.len() > 1 || most > Some(1) => 2,
                _ => 1,
            };
            let in_pairs = so_far.values().all(|boxes| boxes.is_multiple_of(2));
            for (op, map, before) in &found {
                let at = self.map_number(map.clone());
                let staged = Staged {
                    map: at,
                    offset: bytes,
                    places,
                    first: match in_pairs {
                        _ if apart => *before,
                        true => before % 2,
                        false => 0,
                    },
                    in_pairs,
                    apart,
                };
                self.staged.insert(*op, staged);
            }
            if !found.is_empty() {
                bytes += places * STAGED_ROWS * STAGED_ROW_BYTES * groups;
            }
        }
        bytes
    }

    /// The boxes that a tile is stored by, and how many of them it takes.
    fn store_map(
        &self,
        kernel: &Kernel,
        dst: &View,
        param: ParamId,
        tile: TileId,
    ) -> Option<(MapPlan, u64)> {
        let dtype = kernel.tile(tile).dtype;
        let layout = self.in_registers.tiles.get(&tile)?;
        let whole = matches!(dtype.bits(), 8 | 16 | 32) && kernel.tensor(param)?.dtype == dtype;
        let &[tile_rows, columns] = kernel.tile(tile).shape.as_slice() else {
            return None;
        };
        let box_columns = STAGED_ROW_BYTES * 8 / dtype.bits() as u64;
        if !whole || !layout.lies_as_sums() || !columns.is_multiple_of(box_columns) {
            return None;
        }
        if !starts_aligned(kernel, dst, dtype) {
            return None;
        }
        let mut map = map_of(dst, param, STAGED_ROW_BYTES, STAGED_ROW_BYTES, dtype)?;
        let spans = dst
            .slots
            .iter()
            .filter(|s| matches!(s, Slot::Span { .. }))
            .count();
        map.extents[row_axis(dst)?] = STAGED_ROWS as u32;
        let boxes = (tile_rows / STAGED_ROWS) * (columns / box_columns);
        (spans == 2).then_some((map, boxes))
    }

    /// Whether a box can be made may not depend on a dim that results don't depend on: plain code has other bits.
    pub(super) fn keep_batches_alike(&self, kernel: &Kernel) -> Result<(), String> {
        for map in &self.maps {
            let Some(tensor) = kernel.tensor(map.param) else {
                continue;
            };
            let bits = i64::from(tensor.dtype.bits());
            for contract in &kernel.contracts {
                let Contract::BatchInvariant(dim, _) = contract else {
                    continue;
                };
                let dim = &kernel.dims[dim.index()].name;
                let inner = &tensor.shape[1.min(tensor.shape.len())..];
                if let Some(extent) = inner
                    .iter()
                    .find(|e| mentions(e, dim) && bits * factor(e) % 128 != 0)
                {
                    return Err(format!(
                        "rows of `{}` are {extent} elements, which is a multiple of 16 bytes for some `{dim}` only",
                        kernel.param(map.param).name
                    ));
                }
            }
        }
        Ok(())
    }

    fn map_number(&mut self, map: MapPlan) -> usize {
        let known = self.maps.iter().position(|m| *m == map);
        known.unwrap_or_else(|| {
            self.maps.push(map);
            self.maps.len() - 1
        })
    }

    /// Channels that are put one right after the other in one block, and got so, share a ring.
    fn make_rings(
        &mut self,
        kernel: &Kernel,
        ends: &Ends,
        stage_bytes: u64,
        gpu: &GpuFacts,
    ) -> Result<(), String> {
        let Ends {
            puts,
            readers,
            fills,
        } = ends;
        let together = |a: usize, b: usize| {
            let (&[(block_a, put_a)], &[(block_b, put_b)]) =
                (puts[a].as_slice(), puts[b].as_slice())
            else {
                return false;
            };
            block_a == block_b
                && put_together(kernel, block_a, put_a, put_b)
                && fills[a] == fills[b]
                && matches!(fills[a], Fill::Boxes | Fill::Stored { .. })
                && readers[a] == readers[b]
                && kernel.channels[a].slots == kernel.channels[b].slots
                && got_together(kernel, a, b)
        };
        for (channel, &reading) in readers.iter().enumerate() {
            let found = self
                .rings
                .iter()
                .position(|r| together(r.channels[0].index(), channel));
            let ring = found.unwrap_or_else(|| {
                self.rings.push(Ring {
                    channels: vec![],
                    slots: 0,
                    slot_bytes: 0,
                    by_warp: false,
                    each_step: false,
                    shared: false,
                    barriers: 0,
                    bytes: 0,
                    fill: fills[channel],
                    readers: reading,
                });
                self.rings.len() - 1
            });
            let place = &mut self.slots[channel];
            place.ring = ring;
            let ring = &mut self.rings[ring];
            ring.bytes += place.rows * place.row_bytes * place.blocks;
            ring.slot_bytes += place.stride;
            ring.shared |= kernel.channels[channel].shared;
            let handed = matches!(ring.fill, Fill::Handed { .. });
            ring.by_warp |= handed || given_by_warps(kernel, ChannelId(channel as u32));
            ring.channels.push(ChannelId(channel as u32));
        }
        // Whole slots first to those that have few.
        let taken =
            self.shared_tiles(kernel) + self.meeting_bytes(kernel)? + stage_bytes + VECTOR_ALIGN;
        let most = gpu.max_shared_bytes_per_block as u64;
        let limit = most.checked_sub(taken).ok_or_else(|| {
            format!("its tiles in memory take {taken} bytes of the {most} of shared memory")
        })?;
        let mut left = limit;
        let turns: Vec<u32> = self
            .rings
            .iter()
            .map(|r| self.turns_at(kernel, r))
            .collect();
        for (ring, &turns) in self.rings.iter_mut().zip(&turns) {
            let first = &kernel.channels[ring.channels[0].index()];
            let wished = first.slots.unwrap_or(turns);
            if !wished.is_multiple_of(turns) {
                return Err(format!(
                    "`{}` has {wished} slots, and {turns} warpgroups take them in turn",
                    first.name
                ));
            }
            ring.slots = wished;
            let bytes = (ring.slot_bytes + SLOT_BARRIERS) * wished as u64;
            left = left.checked_sub(bytes).ok_or_else(|| {
                format!("its channels take more than the {limit} bytes of shared memory")
            })?;
        }
        let depths = loop_depths(kernel);
        let depth = |r: &Ring| {
            let first = puts[r.channels[0].index()].first();
            first.map_or(0, |(block, _)| depths[block])
        };
        let deepest = self.rings.iter().map(depth).max();
        let each_step: Vec<bool> = (self.rings.iter().map(|r| deepest == Some(depth(r)))).collect();
        for (ring, each_step) in self.rings.iter_mut().zip(each_step) {
            ring.each_step = each_step;
        }
        loop {
            let open = |i: usize| {
                let r = &self.rings[i];
                // What is put once for many of another ring is one ahead with two, and so is what comes from registers.
                let most = match r.each_step && !matches!(r.fill, Fill::Handed { .. }) {
                    true => MOST_SLOTS,
                    false => 2,
                };
                kernel.channels[r.channels[0].index()].slots.is_none()
                    && r.slots + turns[i] <= most
                    && (r.slot_bytes + SLOT_BARRIERS) * u64::from(turns[i]) <= left
            };
            let next = (0..self.rings.len())
                .filter(|&i| open(i))
                .min_by_key(|&i| self.rings[i].slots + u32::from(!self.rings[i].each_step));
            let Some(next) = next else { break };
            left -= (self.rings[next].slot_bytes + SLOT_BARRIERS) * u64::from(turns[next]);
            self.rings[next].slots += turns[next];
        }
        let mut offset = stage_bytes;
        // Matrices first: their swizzle asks for whole kilobytes.
        for vector in [false, true] {
            for (place, channel) in self.slots.iter_mut().zip(&kernel.channels) {
                if (channel.shape.len() == 1) == vector {
                    place.offset = offset;
                    offset += place.stride * u64::from(self.rings[place.ring].slots);
                }
            }
        }
        for ring in &mut self.rings {
            if ring.by_warp {
                ring.readers *= WARPS_PER_GROUP as u32;
            }
        }
        for ring in &mut self.rings {
            ring.barriers = offset;
            offset += SLOT_BARRIERS * ring.slots as u64;
        }
        self.shared_bytes = offset.next_multiple_of(128);
        Ok(())
    }
}

/// Whether a role has products that add to sums from one step to the next: these stay on their way, and hold a slot more.
fn sums_go_on(kernel: &Kernel, body: BlockId) -> bool {
    let mut found = false;
    kernel.walk(body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        found |= matches!(
            kind,
            OpKind::Dot {
                accumulate: true,
                ..
            }
        );
    });
    found
}

/// Whether threads can bring gathered rows in pieces, whole lines by neighbouring lanes.
fn can_gather(
    kernel: &Kernel,
    src: &View,
    param: ParamId,
    threads: u64,
    line: u64,
) -> Result<(), String> {
    let piece = piece_of_line(line);
    let tensor = kernel.tensor(param).filter(|t| t.contiguous);
    let Some(tensor) = tensor.filter(|t| u64::from(t.align).is_multiple_of(piece)) else {
        return Err(format!(
            "its rows may not be at whole {piece} bytes (`@align({piece})` says that they are)"
        ));
    };
    let [
        others @ ..,
        Slot::Gather {
            index,
            len: index_len,
        },
        Slot::Span { start, len },
    ] = src.slots.as_slice()
    else {
        return Err("not rows of its last axis".to_owned());
    };
    let listed = match index.base {
        Base::Tile(t) => kernel.tile(t).dtype == DType::I32,
        Base::Param(_) => false,
    };
    if !listed || others.iter().any(|s| !matches!(s, Slot::At(_))) {
        return Err("not by a tile of i32 along one axis".to_owned());
    }
    let bits = u64::from(tensor.dtype.bits());
    let inner = power_of_two(kernel, *start) * bits;
    let extent = tensor.shape.last().map_or(1, |e| step_of(kernel, e)) * bits;
    if !inner.is_multiple_of(8 * piece) || !extent.is_multiple_of(8 * piece) {
        return Err(format!(
            "its rows do not start or end at whole {piece} bytes"
        ));
    }
    let lines = (len * bits).is_multiple_of(8 * line);
    let at_once = threads * piece / line;
    let dealt = index_len.is_multiple_of(at_once) || *index_len < at_once;
    match bits >= 8 && lines && dealt {
        true => Ok(()),
        false => Err(format!(
            "{index_len} rows of {len} elements are not dealt out to {threads} threads"
        )),
    }
}

/// A number that every value of an extent is a multiple of, with the steps of dims.
pub fn step_of(kernel: &Kernel, e: &HostExpr) -> u64 {
    match e {
        HostExpr::Dim(name) => {
            let dim = kernel.dims.iter().find(|d| d.name == *name);
            dim.map_or(1, |d| match d.lo % d.step.max(1) {
                _ if d.lo == d.hi => d.lo.max(1) as u64,
                0 => d.step.max(1) as u64,
                _ => 1,
            })
        }
        e => factor(e) as u64,
    }
}

impl Plan {
    /// What the roles' tiles in shared memory take, without sharing bytes.
    fn shared_tiles(&self, kernel: &Kernel) -> u64 {
        let mut used = vec![false; kernel.tiles.len()];
        for op in kernel.live_ops() {
            let kind = &kernel.op(op).kind;
            kind.for_each_tile(&mut |t, _| used[t.index()] = true);
        }
        let ids = (0..kernel.tiles.len()).map(|i| TileId(i as u32));
        let in_memory = ids.filter(|&id| {
            let in_registers = self.in_registers.tiles.contains_key(&id);
            used[id.index()] && kernel.tile(id).space != Space::Slot && !in_registers
        });
        let bytes = |id: TileId| {
            let tile = kernel.tile(id);
            let bytes = (tile.elements() * u64::from(tile.dtype.bits())).div_ceil(8);
            bytes.next_multiple_of(128) * self.copies_in_memory(kernel, id)
        };
        in_memory.map(bytes).sum()
    }

    /// Where the warps of one role meet in folds.
    fn meeting_bytes(&self, kernel: &Kernel) -> Result<u64, String> {
        let mut most = vec![];
        for role in &self.roles {
            let OpKind::Role { body, .. } = kernel.op(role.op).kind else {
                continue;
            };
            let mut bytes = 0;
            kernel.walk(body, &mut |_, op| {
                let kind = &kernel.op(op).kind;
                let own = (self.in_registers).meeting_bytes(kernel, kind, self.threads);
                bytes = bytes.max(own.unwrap_or(0));
            });
            most.extend((bytes > 0).then_some(bytes));
        }
        match most[..] {
            [] => Ok(0),
            [bytes] => Ok(bytes),
            _ => Err("several roles have folds in which their warps meet".to_owned()),
        }
    }
}

/// Whether each warp gives back by itself what a channel brings: threads read elements of it, or a get has no product beside it that
/// reads the tile. A product makes the warps of its warpgroup meet; without one, a warp that gives a slot back for all of them could be
/// rounds ahead of another, which would then wait for a use of the slot that is long over.
fn given_by_warps(kernel: &Kernel, channel: ChannelId) -> bool {
    let mut tiles = vec![];
    let mut by_warps = false;
    kernel.walk(kernel.body, &mut |block, op| match &kernel.op(op).kind {
        OpKind::Get { channel: c, tile } if *c == channel => {
            tiles.push(*tile);
            by_warps |= !kernel.block(block).ops.iter().any(|&op| {
                matches!(&kernel.op(op).kind, OpKind::Dot { a, b, .. }
                    if a.view.tile == *tile || b.view.tile == *tile)
            });
        }
        OpKind::Dot { .. } | OpKind::Release { .. } => {}
        kind => kind.for_each_tile(&mut |t, _| by_warps |= tiles.contains(&t)),
    });
    by_warps
}

/// Loops around each block.
fn loop_depths(kernel: &Kernel) -> BTreeMap<BlockId, u32> {
    let mut depths = BTreeMap::new();
    let mut open = vec![(kernel.body, 0)];
    while let Some((block, depth)) = open.pop() {
        depths.insert(block, depth);
        for &op in &kernel.block(block).ops {
            let kind = &kernel.op(op).kind;
            let inside = depth + u32::from(matches!(kind, OpKind::For { .. }));
            open.extend(kind.blocks().into_iter().map(|b| (b, inside)));
        }
    }
    depths
}

/// Whether nothing lets others go on between two puts in a block. Who gets the first of them would wait for the second,
/// which may itself come only after that get.
fn put_together(kernel: &Kernel, block: BlockId, a: OpId, b: OpId) -> bool {
    let ops = &kernel.block(block).ops;
    let place = |put: OpId| ops.iter().position(|&op| op == put);
    let (Some(a), Some(b)) = (place(a), place(b)) else {
        return false;
    };
    ops[a.min(b) + 1..a.max(b)].iter().all(|&op| {
        let kind = &kernel.op(op).kind;
        let mut meets = matches!(kind, OpKind::Get { .. });
        for inner in kind.blocks() {
            kernel.walk(inner, &mut |_, op| {
                meets |= matches!(kernel.op(op).kind, OpKind::Put { .. } | OpKind::Get { .. });
            });
        }
        !meets
    })
}

/// Whether two channels are got in the same blocks, each once.
fn got_together(kernel: &Kernel, a: usize, b: usize) -> bool {
    let mut gets: [Vec<BlockId>; 2] = [vec![], vec![]];
    kernel.walk(kernel.body, &mut |block, op| {
        if let OpKind::Get { channel, .. } = kernel.op(op).kind {
            for (list, wanted) in gets.iter_mut().zip([a, b]) {
                if channel.index() == wanted {
                    list.push(block);
                }
            }
        }
    });
    gets[0] == gets[1]
}

fn mentions(e: &HostExpr, dim: &str) -> bool {
    match e {
        HostExpr::Dim(name) => name == dim,
        HostExpr::Op(_, operands) => operands.iter().any(|o| mentions(o, dim)),
        _ => false,
    }
}

/// A number that every value of an extent is a multiple of.
fn factor(e: &HostExpr) -> i64 {
    match e {
        HostExpr::Int(i) => (*i).max(1),
        HostExpr::Op(HostOp::Mul, operands) => operands.iter().map(factor).product(),
        _ => 1,
    }
}

/// The axis of a tensor along which the rows of a matrix lie.
pub fn row_axis(view: &View) -> Option<usize> {
    let is_span = |s: &Slot| matches!(s, Slot::Span { .. });
    view.slots.iter().position(is_span)
}

/// Bytes from one slot to the next.
fn bytes_in_slot(bytes: u64, vector: bool) -> u64 {
    bytes.next_multiple_of(if vector { VECTOR_ALIGN } else { SLOT_ALIGN })
}

fn map_of(
    view: &View,
    param: ParamId,
    row_bytes: u64,
    swizzle: u64,
    dtype: DType,
) -> Option<MapPlan> {
    let rank = view.slots.len();
    let mut extents = Vec::new();
    for (axis, slot) in view.slots.iter().enumerate() {
        extents.push(match slot {
            Slot::At(_) => 1,
            Slot::Span { len, .. } if axis + 1 == rank => {
                let elements = row_bytes * 8 / dtype.bits() as u64;
                if !len.is_multiple_of(elements) {
                    return None;
                }
                // Boxes of codes of 4 bits are counted in bytes.
                if dtype.bits() < 8 {
                    row_bytes as u32
                } else {
                    elements as u32
                }
            }
            Slot::Span { len, .. } => *len as u32,
            Slot::Gather { .. } => return None,
        });
    }
    let last = matches!(view.slots.last(), Some(Slot::Span { .. }));
    (last && rank <= 5).then_some(MapPlan {
        param,
        extents,
        swizzle: swizzle as u32,
    })
}
