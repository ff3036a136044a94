//! The plan of a network: warps and registers of roles, rings of channels, places of tiles, tensor maps.

mod rings;
mod roles;

pub(super) use rings::BOX_ROWS;
pub(super) use roles::{most_registers, row_bytes};

use super::layout::{LANES, WARPS_PER_GROUP};
use super::registers::Registers;
use crate::target::nvptx::GpuFacts;
use crate::tile::ir::*;
use roles::computing;
use std::collections::BTreeMap;
use std::fmt;

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
