//! The plan of a network: warps and registers of roles, rings of channels, places of tiles, tensor maps.

use super::layout::{LANES, Layout, WARPS_PER_GROUP};
use super::registers::{Registers, infer_role, is_whole};
use super::starts_aligned;
use crate::target::nvptx::GpuFacts;
use crate::tile::ir::*;
use std::collections::BTreeMap;
use std::fmt;
use tessera_artifact::{DType, HostExpr, HostOp};

#[derive(Clone, Debug)]
pub struct Plan {
    pub roles: Vec<RolePlan>,
    pub rings: Vec<Ring>,
    /// By channel.
    pub slots: Vec<SlotPlace>,
    /// Tiles in registers.
    pub in_registers: Registers,
    /// By `put`: its tensor map.
    pub maps: Vec<MapPlan>,
    pub map_of: BTreeMap<OpId, usize>,
    /// Copies from registers to a tensor that go through shared memory, and where each role's part of it starts.
    pub staged: BTreeMap<OpId, Staged>,
    /// Bytes of shared memory that rings and barriers take, from 0.
    pub shared_bytes: u64,
    pub threads: u32,
    /// Names for printing.
    tile_names: BTreeMap<TileId, String>,
    channel_names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePlan {
    pub name: String,
    pub op: OpId,
    pub first_warp: u32,
    pub warps: u32,
    /// Registers of a thread from `setmaxnreg`; `None`: as at entry.
    pub registers: Option<u32>,
    /// One thread does all there is to do: it only starts bulk copies.
    pub single: bool,
}

/// Slots that channels put and get together share a pair of barriers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    pub channels: Vec<ChannelId>,
    pub slots: u32,
    pub slot_bytes: u64,
    /// `slots` barriers that say full, then as many that say empty.
    pub barriers: u64,
    /// Bytes that arrive in a slot.
    pub bytes: u64,
    /// Warpgroups that give a slot back; warps, if threads read vectors from it.
    pub readers: u32,
    pub by_warp: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotPlace {
    pub ring: usize,
    /// Of the first slot, and from each to the next.
    pub offset: u64,
    pub stride: u64,
    pub rows: u64,
    /// Bytes of a row within one block of columns; also the swizzle.
    pub row_bytes: u64,
    /// Blocks of columns, one after the other.
    pub blocks: u64,
}

/// A store of a box of 64 rows and 128 bytes by each warpgroup at a time, in turns from two places. (Boxes of a warp's 16 rows spare
/// the warps waiting for each other, and are slower.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    pub map: usize,
    /// Of the role's first warpgroup; the others follow.
    pub offset: u64,
}

/// Bytes that a warpgroup stages stores in.
pub const STAGE_BYTES: u64 = 2 * STAGED_ROWS * STAGED_ROW_BYTES;
pub const STAGED_ROWS: u64 = 64;
pub const STAGED_ROW_BYTES: u64 = 128;

/// A box of a tensor that one instruction brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPlan {
    pub param: ParamId,
    pub extents: Vec<u32>,
    pub swizzle: u32,
}

const SLOT_ALIGN: u64 = 1024;
const VECTOR_ALIGN: u64 = 128;
const MOST_SLOTS: u32 = 16;
/// Bytes of the two barriers of a slot.
const SLOT_BARRIERS: u64 = 16;
const BOX_ROWS: u64 = 256;
/// Left to the compiler of PTX for addresses and loop variables, beside fragments.
const SPARE_REGISTERS: u64 = 36;

/// Plans a network; the reason if it cannot run on tensor cores.
///
/// # Errors
/// What stands in the way, in the user's terms.
pub fn plan(kernel: &Kernel, gpu: &GpuFacts) -> Result<Plan, String> {
    let top = &kernel.block(kernel.body).ops;
    let roles: Vec<(OpId, String, BlockId)> = (top.iter())
        .filter_map(|&op| match &kernel.op(op).kind {
            OpKind::Role {
                name,
                copies: 1,
                body,
            } => Some((op, name.clone(), *body)),
            _ => None,
        })
        .collect();
    let all = top
        .iter()
        .filter(|&&op| matches!(kernel.op(op).kind, OpKind::Role { .. }))
        .count();
    if roles.len() != all || all < 2 {
        return Err("roles in copies are not planned yet".to_owned());
    }
    for op in kernel.live_ops() {
        match kernel.op(op).kind {
            OpKind::Print { .. } => {
                return Err("a `print` stands in it".to_owned());
            }
            OpKind::Copy {
                oob: Oob::Error, ..
            } => return Err("a copy with `@oob(error)` stands in it".to_owned()),
            OpKind::Signal { .. } | OpKind::Wait { .. } => {
                return Err("flags stand in it".to_owned());
            }
            OpKind::TopK { .. } | OpKind::Scan { .. } => {
                return Err("scans and top-k between products are not planned yet".to_owned());
            }
            _ => {}
        }
    }
    let mut plan = Plan {
        roles: vec![],
        rings: vec![],
        slots: vec![],
        in_registers: Registers {
            any_order: true,
            ..Registers::default()
        },
        maps: vec![],
        map_of: BTreeMap::new(),
        staged: BTreeMap::new(),
        shared_bytes: 0,
        threads: 0,
        tile_names: (0..kernel.tiles.len())
            .map(|i| (TileId(i as u32), kernel.tiles[i].name.clone()))
            .collect(),
        channel_names: kernel.channels.iter().map(|c| c.name.clone()).collect(),
    };
    let mut warp = 0;
    let mut most_needed = 0;
    let mut puts = vec![vec![]; kernel.channels.len()];
    let mut readers = vec![0; kernel.channels.len()];
    for (op, name, body) in roles {
        let single = only_starts_copies(kernel, body);
        let (warps, registers, needed) = match single {
            true => (WARPS_PER_GROUP, Registers::default(), 0),
            false => computing(kernel, body)?,
        };
        most_needed = most_needed.max(needed);
        plan.in_registers.tiles.extend(registers.tiles);
        plan.in_registers.maps.extend(registers.maps);
        kernel.walk(body, &mut |block, op| match &kernel.op(op).kind {
            OpKind::Put { channel, .. } => puts[channel.index()].push((block, op)),
            OpKind::Get { channel, .. } => {
                readers[channel.index()] += (warps / WARPS_PER_GROUP) as u32
            }
            _ => {}
        });
        plan.roles.push(RolePlan {
            name,
            op,
            first_warp: warp as u32,
            warps: warps as u32,
            registers: None,
            single,
        });
        warp += warps;
    }
    plan.threads = (warp * LANES) as u32;
    if plan.threads > gpu.max_threads_per_block {
        return Err(format!("{} threads", plan.threads));
    }
    plan.share_registers(most_needed, gpu);

    plan.place_slots(kernel, &puts)?;
    let stage_bytes = plan.stage_stores(kernel);
    plan.keep_batches_alike(kernel)?;
    plan.make_rings(kernel, &puts, &readers, stage_bytes, gpu)?;
    Ok(plan)
}

/// Whether a role does nothing but start copies from tensors.
fn only_starts_copies(kernel: &Kernel, body: BlockId) -> bool {
    let mut only = true;
    kernel.walk(body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        only &= match kind {
            OpKind::Put { src, .. } => matches!(src.base, Base::Param(_)),
            OpKind::For { .. } | OpKind::If { .. } | OpKind::ForItems { .. } => true,
            OpKind::LoadGlobal { .. } => true,
            kind => kind.is_pure(),
        };
    });
    only
}

/// Warps of a role that computes, what it keeps in registers, and how many a thread of it needs.
fn computing(kernel: &Kernel, body: BlockId) -> Result<(u64, Registers, u64), String> {
    if let Some(tile) = slot_read_by_elements(kernel, body) {
        return Err(format!(
            "`{}` lies as tensor cores read it, and something else reads it",
            kernel.tile(tile).name
        ));
    }
    let mut fits = Ok(());
    kernel.walk(body, &mut |_, op| {
        if let (OpKind::Dot { a, b, .. }, true) = (&kernel.op(op).kind, fits.is_ok()) {
            fits = product_fits(kernel, a, b);
        }
    });
    fits?;
    for groups in [2, 1] {
        let Some(kept) = infer_role(kernel, body, groups) else {
            continue;
        };
        if let Some(tile) = folded_elsewhere(kernel, body, &kept) {
            return Err(format!(
                "a fold of `{}` is not one of a warp's registers",
                kernel.tile(tile).name
            ));
        }
        let registers = most_registers(kernel, body, &kept.tiles);
        let most = if groups == 2 { 232 } else { 255 };
        if registers + SPARE_REGISTERS > most {
            return Err(format!("its tiles take {registers} registers of a thread"));
        }
        return Ok((groups * WARPS_PER_GROUP, kept, registers + SPARE_REGISTERS));
    }
    Err(
        "its products' shapes are not those of a tensor core (rows in 64s, columns in eights)"
            .to_owned(),
    )
}

/// Whether `wgmma` takes the operands as they lie.
fn product_fits(kernel: &Kernel, a: &Operand, b: &Operand) -> Result<(), String> {
    let mut k_bytes = Vec::new();
    for (operand, k_first, left) in [(a, a.transposed, true), (b, !b.transposed, false)] {
        let tile = kernel.tile(operand.view.tile);
        let name = &tile.name;
        if left && tile.space != Space::Slot && is_whole(kernel, &operand.view) {
            // In registers.
            k_bytes.push(tile.shape[1] * u64::from(tile.dtype.bits()) / 8);
            continue;
        }
        if tile.space != Space::Slot {
            return Err(format!(
                "`{name}`, which a product reads, is not brought from a tensor by one copy of its own"
            ));
        }
        let bytes = u64::from(tile.dtype.bits()) / 8;
        let (
            &[_, all_columns],
            &[
                Slot::Span {
                    start: row,
                    len: rows,
                },
                Slot::Span {
                    start: column,
                    len: columns,
                },
            ],
        ) = (tile.shape.as_slice(), operand.view.slots.as_slice())
        else {
            return Err(format!("a product reads a part of lower rank of `{name}`"));
        };
        let (Some(row), Some(column)) = (kernel.const_index(row), kernel.const_index(column))
        else {
            return Err(format!("a product reads a part of `{name}` that moves"));
        };
        let row_bytes = row_bytes(name, all_columns * bytes)?;
        if row % 8 != 0 || !(column as u64 * bytes).is_multiple_of(row_bytes) {
            return Err(format!(
                "a product reads a part of `{name}` that starts at [{row}, {column}]: rows start in eights, columns in {}s",
                row_bytes / bytes
            ));
        }
        if k_first && bytes == 1 {
            return Err(format!(
                "the summed axis of `{name}` does not lie along its rows, as it must for {}",
                tile.dtype
            ));
        }
        k_bytes.push(if k_first { rows } else { columns } * bytes);
    }
    let dtype = |o: &Operand| kernel.tile(o.view.tile).dtype;
    if a.transposed {
        return Err("the left operand of a product is transposed".to_owned());
    }
    if dtype(a) != dtype(b) {
        return Err(format!("a product of {} and {}", dtype(a), dtype(b)));
    }
    if super::tensor_core_bits(dtype(a)).is_none() {
        return Err(format!("a product of {}", dtype(a)));
    }
    match k_bytes[0].is_multiple_of(32) {
        true => Ok(()),
        false => Err(format!(
            "a product sums {} bytes of each row, and not a multiple of 32",
            k_bytes[0]
        )),
    }
}

/// Bytes of a row within one block of columns: the whole row, or as much as a swizzle spans.
fn row_bytes(name: &str, bytes: u64) -> Result<u64, String> {
    match bytes {
        32 | 64 => Ok(bytes),
        b if b.is_multiple_of(128) => Ok(128),
        b => Err(format!(
            "a row of `{name}` has {b} bytes, and not 32, 64 or a multiple of 128"
        )),
    }
}

/// A tile that is folded in memory, or in registers of several warps.
fn folded_elsewhere(kernel: &Kernel, body: BlockId, kept: &Registers) -> Option<TileId> {
    let mut found = None;
    kernel.walk(body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        if let OpKind::Reduce { src, .. } = kind
            && kept.exchanged(kernel, kind) != Some(0)
        {
            found = Some(*src);
        }
    });
    found
}

/// A tile of a channel that anything but a product and the reading of single elements reads. Vectors may be copied on.
fn slot_read_by_elements(kernel: &Kernel, body: BlockId) -> Option<TileId> {
    let mut found = None;
    kernel.walk(body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        if !matches!(
            kind,
            OpKind::Dot { .. } | OpKind::Get { .. } | OpKind::Release { .. }
        ) {
            kind.for_each_tile(&mut |t, _| {
                let taken = match kind {
                    OpKind::LoadTile { .. } => true,
                    OpKind::Copy { .. } => kernel.tile(t).shape.len() == 1,
                    _ => false,
                };
                if kernel.tile(t).space == Space::Slot && !taken {
                    found = Some(t);
                }
            });
        }
    });
    found
}

/// Registers of a thread that tiles take at the op where they take most. A tile lives from its first op to its last; the last op of
/// one and the first of another may be the same, since maps go element by element.
pub(super) fn most_registers(
    kernel: &Kernel,
    body: BlockId,
    fragments: &BTreeMap<TileId, Layout>,
) -> u64 {
    let mut lives: BTreeMap<TileId, (usize, usize)> = BTreeMap::new();
    let mut loops: Vec<(usize, usize)> = vec![];
    let mut next = 0;
    walk_lives(kernel, body, &mut next, &mut lives, &mut loops);
    for life in lives.values_mut() {
        for &(from, to) in &loops {
            // Carried by the loop.
            if life.0 < from && life.1 >= from && life.1 < to {
                life.1 = to;
            }
        }
    }
    let registers = |t: &TileId| {
        let bits = u64::from(kernel.tile(*t).dtype.bits());
        fragments.get(t).map_or(0, |l| l.words(bits))
    };
    let at = |op: usize| {
        lives
            .iter()
            .filter(|(_, l)| l.0 <= op && op < l.1.max(l.0 + 1))
            .map(|(t, _)| registers(t))
            .sum()
    };
    (0..next).map(at).max().unwrap_or(0)
}

fn walk_lives(
    kernel: &Kernel,
    block: BlockId,
    next: &mut usize,
    lives: &mut BTreeMap<TileId, (usize, usize)>,
    loops: &mut Vec<(usize, usize)>,
) {
    for &op in &kernel.block(block).ops {
        let here = *next;
        *next += 1;
        let kind = &kernel.op(op).kind;
        let is_map = matches!(kind, OpKind::Map { .. });
        kind.for_each_tile(&mut |t, _| {
            lives.entry(t).or_insert((here, here)).1 = here;
        });
        for inner in kind.blocks() {
            match is_map {
                true => kernel.walk(inner, &mut |_, op| {
                    kernel.op(op).kind.for_each_tile(&mut |t, _| {
                        lives.entry(t).or_insert((here, here)).1 = here;
                    });
                }),
                false => walk_lives(kernel, inner, next, lives, loops),
            }
        }
        if matches!(kind, OpKind::For { .. } | OpKind::ForItems { .. }) {
            loops.push((here, *next));
        }
    }
}

impl Plan {
    /// Moves registers from roles that only start copies to those that compute. A block gets `threads * registers at entry` of them,
    /// and the sum after all moves may not exceed that: it hangs otherwise.
    fn share_registers(&mut self, needed: u64, gpu: &GpuFacts) {
        let computing: u32 = self
            .roles
            .iter()
            .filter(|r| !r.single)
            .map(|r| r.warps)
            .sum();
        let starting: u32 = self
            .roles
            .iter()
            .filter(|r| r.single)
            .map(|r| r.warps)
            .sum();
        let lanes = gpu.threads_per_warp;
        let entry =
            (gpu.registers_per_sm / self.threads / 8 * 8).min(gpu.max_registers_per_thread / 8 * 8);
        if starting == 0 || needed <= u64::from(entry) {
            return;
        }
        let few = 40;
        let left = entry * self.threads - few * starting * lanes;
        let many = (left / (computing * lanes) / 8 * 8).min(240);
        for role in &mut self.roles {
            role.registers = Some(if role.single { few } else { many });
        }
    }

    fn place_slots(
        &mut self,
        kernel: &Kernel,
        puts: &[Vec<(BlockId, OpId)>],
    ) -> Result<(), String> {
        for (channel, puts) in kernel.channels.iter().zip(puts) {
            let name = &channel.name;
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
            let row_bytes = if vector {
                bytes
            } else {
                row_bytes(name, bytes)?
            };
            if !vector && !rows.is_multiple_of(8) || rows > BOX_ROWS || columns % 2 == 1 && channel.dtype.bits() < 8 {
                return Err(format!("`{name}` has {rows} rows of {}", channel.dtype));
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
                let Base::Param(param) = src.base else {
                    return Err(format!("`{name}` is put from a tile"));
                };
                let swizzle = if vector { 0 } else { row_bytes };
                let map = map_of(src, param, row_bytes, swizzle, channel.dtype).ok_or_else(|| {
                    format!("the rows of `{name}` do not lie along two axes of a tensor, the last one of them its own last")
                })?;
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

    /// Copies from accumulators' layouts to tensors go by boxes where a box can be named. Gives the bytes that all roles stage in.
    fn stage_stores(&mut self, kernel: &Kernel) -> u64 {
        let mut bytes = 0;
        for role in 0..self.roles.len() {
            let OpKind::Role { body, .. } = kernel.op(self.roles[role].op).kind else {
                continue;
            };
            let mut found = Vec::new();
            kernel.walk(body, &mut |_, op| {
                if let OpKind::Copy { dst, src, .. } = &kernel.op(op).kind
                    && let (Base::Param(param), Base::Tile(tile)) = (dst.base, src.base)
                    && let Some(map) = self.store_map(kernel, dst, param, tile)
                {
                    found.push((op, map));
                }
            });
            for (op, map) in &found {
                let at = self.map_number(map.clone());
                let staged = Staged {
                    map: at,
                    offset: bytes,
                };
                self.staged.insert(*op, staged);
            }
            if !found.is_empty() {
                bytes += STAGE_BYTES * u64::from(self.roles[role].warps) / WARPS_PER_GROUP;
            }
        }
        bytes
    }

    fn store_map(
        &self,
        kernel: &Kernel,
        dst: &View,
        param: ParamId,
        tile: TileId,
    ) -> Option<MapPlan> {
        let dtype = kernel.tile(tile).dtype;
        let layout = self.in_registers.tiles.get(&tile)?;
        let wide = matches!(dtype.bits(), 16 | 32) && kernel.tensor(param)?.dtype == dtype;
        let &[_, columns] = kernel.tile(tile).shape.as_slice() else {
            return None;
        };
        let box_columns = STAGED_ROW_BYTES * 8 / dtype.bits() as u64;
        let accumulator = layout.warps.iter().all(|d| d.axis == Some(0));
        if !wide || !accumulator || !columns.is_multiple_of(box_columns) {
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
        let rows = dst
            .slots
            .iter()
            .position(|s| matches!(s, Slot::Span { .. }))?;
        map.extents[rows] = STAGED_ROWS as u32;
        (spans == 2).then_some(map)
    }

    /// Whether a box can be made may not depend on a dim that results don't depend on: plain code has other bits.
    fn keep_batches_alike(&self, kernel: &Kernel) -> Result<(), String> {
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
        puts: &[Vec<(BlockId, OpId)>],
        readers: &[u32],
        stage_bytes: u64,
        gpu: &GpuFacts,
    ) -> Result<(), String> {
        let together = |a: usize, b: usize| {
            let (&[(block_a, _)], &[(block_b, _)]) = (puts[a].as_slice(), puts[b].as_slice())
            else {
                return false;
            };
            block_a == block_b
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
                    barriers: 0,
                    bytes: 0,
                    readers: reading,
                });
                self.rings.len() - 1
            });
            let place = &mut self.slots[channel];
            place.ring = ring;
            let ring = &mut self.rings[ring];
            ring.bytes += place.rows * place.row_bytes * place.blocks;
            ring.slot_bytes += place.stride;
            ring.by_warp |= read_by_threads(kernel, ChannelId(channel as u32));
            ring.channels.push(ChannelId(channel as u32));
        }
        // Whole slots first to those that have few.
        let taken = shared_tiles(kernel, &self.in_registers.tiles) + stage_bytes + VECTOR_ALIGN;
        let most = gpu.max_shared_bytes_per_block as u64;
        let limit = most.checked_sub(taken).ok_or_else(|| {
            format!("its tiles in memory take {taken} bytes of the {most} of shared memory")
        })?;
        let mut left = limit;
        for ring in &mut self.rings {
            let wished = kernel.channels[ring.channels[0].index()].slots.unwrap_or(1);
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
        loop {
            let open = |r: &Ring| {
                // What is put once for many of another ring is one ahead with two.
                let most = match deepest == Some(depth(r)) {
                    true => MOST_SLOTS,
                    false => 2,
                };
                kernel.channels[r.channels[0].index()].slots.is_none()
                    && r.slots < most
                    && r.slot_bytes + SLOT_BARRIERS <= left
            };
            let next = (0..self.rings.len())
                .filter(|&i| open(&self.rings[i]))
                .min_by_key(|&i| self.rings[i].slots);
            let Some(next) = next else { break };
            left -= self.rings[next].slot_bytes + SLOT_BARRIERS;
            self.rings[next].slots += 1;
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

/// What a role's tiles in shared memory take, without sharing bytes.
fn shared_tiles(kernel: &Kernel, fragments: &BTreeMap<TileId, Layout>) -> u64 {
    let mut used = vec![false; kernel.tiles.len()];
    for op in kernel.live_ops() {
        kernel
            .op(op)
            .kind
            .for_each_tile(&mut |t, _| used[t.index()] = true);
    }
    let tiles = kernel.tiles.iter().enumerate().filter(|(i, t)| {
        used[*i] && t.space != Space::Slot && !fragments.contains_key(&TileId(*i as u32))
    });
    tiles
        .map(|(_, t)| {
            (t.elements() * t.dtype.bits() as u64)
                .div_ceil(8)
                .next_multiple_of(128)
        })
        .sum()
}

/// Whether threads read elements of what a channel brings, and not only products.
fn read_by_threads(kernel: &Kernel, channel: ChannelId) -> bool {
    let mut tiles = vec![];
    let mut read = false;
    kernel.walk(kernel.body, &mut |_, op| match &kernel.op(op).kind {
        OpKind::Get { channel: c, tile } if *c == channel => tiles.push(*tile),
        OpKind::Dot { .. } | OpKind::Release { .. } => {}
        kind => kind.for_each_tile(&mut |t, _| read |= tiles.contains(&t)),
    });
    read
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
                if dtype.bits() < 8 { row_bytes as u32 } else { elements as u32 }
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

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for role in &self.roles {
            write!(
                f,
                "role {}: warps {}..{}",
                role.name,
                role.first_warp,
                role.first_warp + role.warps
            )?;
            if let Some(registers) = role.registers {
                write!(f, ", {registers} registers")?;
            }
            writeln!(
                f,
                "{}",
                if role.single {
                    ", one thread starts copies"
                } else {
                    ""
                }
            )?;
        }
        for ring in &self.rings {
            let names: Vec<_> = ring
                .channels
                .iter()
                .map(|c| self.channel_names[c.index()].as_str())
                .collect();
            writeln!(
                f,
                "ring {}: {} slots of {} bytes, {} readers",
                names.join(" + "),
                ring.slots,
                ring.slot_bytes,
                ring.readers
            )?;
        }
        for (tile, layout) in &self.in_registers.tiles {
            writeln!(
                f,
                "tile {}: {} registers, {layout}",
                self.tile_names[tile],
                layout.registers()
            )?;
        }
        writeln!(
            f,
            "shared memory: {} bytes for rings and barriers",
            self.shared_bytes
        )
    }
}
