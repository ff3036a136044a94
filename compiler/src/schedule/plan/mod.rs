//! The plan of a network: warps and registers of roles, rings of channels, places of tiles, tensor maps.

mod rings;
mod roles;
mod turns;

pub(super) use rings::BOX_ROWS;
pub use rings::{piece_of_line, row_axis, step_of};
pub(super) use roles::{most_registers, row_bytes};

use super::ahead::Ahead;
use super::layout::{LANES, Layout, WARPS_PER_GROUP};
use super::registers::{Registers, is_whole_view};
use super::streams::Stream;
use crate::target::nvptx::GpuFacts;
use crate::tile::ir::*;
use roles::{Computing, computing, multiplies};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use tessera_artifact::{HostExpr, HostOp};

#[derive(Clone, Debug)]
pub struct Plan {
    pub roles: Vec<RolePlan>,
    pub rings: Vec<Ring>,
    /// By channel.
    pub slots: Vec<SlotPlace>,
    /// Tiles in registers.
    pub in_registers: Registers,
    /// Maps whose tiles are put as they are computed, by body: no thread holds its part of them.
    pub streamed: BTreeMap<BlockId, Stream>,
    /// Channels from registers to registers: the layout on both sides.
    pub handed: BTreeMap<ChannelId, Layout>,
    /// By `put`: its tensor map.
    pub maps: Vec<MapPlan>,
    pub map_of: BTreeMap<OpId, usize>,
    /// Copies from registers to a tensor that go through shared memory, and where each role's part of it starts.
    pub staged: BTreeMap<OpId, Staged>,
    /// Bytes of shared memory that rings and barriers take, from 0.
    pub shared_bytes: u64,
    pub threads: u32,
    /// Of a thread, before roles ask for more or fewer.
    pub entry_registers: u32,
    /// Steps of a loop whose products go ahead together.
    pub ahead: Option<Ahead>,
    /// CTAs that share channels.
    pub cluster: u32,
    /// Names for printing.
    tile_names: BTreeMap<TileId, String>,
    channel_names: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePlan {
    pub name: String,
    pub op: OpId,
    pub body: BlockId,
    pub first_warp: u32,
    pub warps: u32,
    /// Warpgroups that take iterations of `turn_loop` in turn, each with the role's whole code.
    pub turns: u32,
    pub turn_loop: Option<BlockId>,
    /// Registers that a thread's tiles and addresses take, by the plan's reckoning.
    pub needed: u32,
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
    pub fill: Fill,
    /// Warpgroups that give a slot back; warps, if threads read from it or no product makes them meet.
    pub readers: u32,
    pub by_warp: bool,
    /// Whether it is put in the innermost loops.
    pub each_step: bool,
    /// Each CTA of a cluster fills a part of the slots of all of them.
    pub shared: bool,
}

/// How a slot is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Bulk copies bring boxes of tensors.
    Boxes,
    /// The threads of a role start copies of 16 bytes of rows that a list names.
    Gathered { threads: u32 },
    /// So many warps store what they have in registers.
    Handed { warps: u32 },
    /// So many warps store a matrix that they have in registers as products read it.
    Stored { warps: u32 },
    /// So many warps copy a vector that they have in shared memory.
    Copied { warps: u32 },
}

impl Fill {
    /// Arrivals that make a slot full.
    pub fn arrivals(self) -> u32 {
        match self {
            Fill::Boxes => 1,
            Fill::Gathered { threads } => threads,
            Fill::Handed { warps } | Fill::Stored { warps } | Fill::Copied { warps } => warps,
        }
    }
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

/// A store of a box of 64 rows and 128 bytes by each warpgroup at a time, in turns from two places, or from one where its role has no more
/// than one box. (Boxes of a warp's 16 rows spare the warps waiting for each other, and are slower.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Staged {
    pub map: usize,
    /// Of the role's first warpgroup; the others follow.
    pub offset: u64,
    /// Of each warpgroup.
    pub places: u64,
    /// Of its first box.
    pub first: u64,
    /// Whether the stores of every block of the role have an even number of boxes, so that the next one's first place was not used last.
    pub in_pairs: bool,
    /// Whether all boxes of the role's stores, which follow one another, have places of their own: the store that has place 0 waits until all are free.
    pub apart: bool,
}

/// Places of a warpgroup for boxes that all have their own.
const MOST_PLACES: u64 = 4;

/// Of the box that a warpgroup stages.
pub const STAGED_ROWS: u64 = 64;
pub const STAGED_ROW_BYTES: u64 = 128;

/// A box of a tensor that one instruction brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPlan {
    pub param: ParamId,
    pub extents: Vec<u32>,
    pub swizzle: u32,
}

/// Of a role that asks for few, and the most that any may have.
const FEW_REGISTERS: u32 = 40;
const MOST_REGISTERS: u32 = 240;
/// The least that a role that starts copies gets by with, and how many less than they are reckoned to need others may have.
const FEWEST_REGISTERS: u32 = 24;
const SPARED_REGISTERS: u32 = 24;
/// Each has a named barrier of its own, and its warpgroups have the other half of the hardware's sixteen.
const MOST_ROLES: usize = 7;
/// Threads of a block that leave each enough registers at entry for products of 256 columns.
const WIDE_THREADS: u32 = 384;
/// Left over where several steps' products are on their way.
const AHEAD_REGISTERS: u32 = 24;

/// Plans a network; the reason if it cannot run on tensor cores.
///
/// # Errors
/// What stands in the way, in the user's terms.
pub fn plan(kernel: &Kernel, gpu: &GpuFacts) -> Result<Plan, String> {
    // What one role computes and another's products read as their left operand crosses from registers to registers, unless roles come to
    // lack fewer of them where it is read from shared memory.
    let handed = plan_with(kernel, gpu, false);
    let lacking = |plan: &Result<Plan, String>| plan.as_ref().map_or(u32::MAX, Plan::lacking);
    let has_matrix = |plan: &Plan| {
        let mut channels = plan.handed.keys();
        channels.any(|c| kernel.channels[c.index()].shape.len() > 1)
    };
    let helps = handed.as_ref().map_or(true, has_matrix);
    if lacking(&handed) == 0 || !helps {
        return handed;
    }
    let stored = plan_with(kernel, gpu, true);
    match lacking(&stored) < lacking(&handed) {
        true => stored,
        false => handed,
    }
}

/// `left_stored`: left operands too are read where roles that computed them stored them.
fn plan_with(kernel: &Kernel, gpu: &GpuFacts, left_stored: bool) -> Result<Plan, String> {
    let stored = &operands(kernel, left_stored);
    let mut roles: Vec<(OpId, String, BlockId, u32)> = vec![];
    for &op in &kernel.block(kernel.body).ops {
        match &kernel.op(op).kind {
            OpKind::Role {
                name, body, turns, ..
            } => roles.push((op, name.clone(), *body, *turns)),
            // Every role computes it for itself.
            OpKind::LoadGlobal { .. } => {}
            kind if kind.is_pure() => {}
            _ => return Err("something is done before its roles".to_owned()),
        }
    }
    if !(2..=MOST_ROLES).contains(&roles.len()) {
        return Err(format!(
            "it has {} roles, and not 2 to {MOST_ROLES}",
            roles.len()
        ));
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
        streamed: BTreeMap::new(),
        handed: BTreeMap::new(),
        maps: vec![],
        map_of: BTreeMap::new(),
        staged: BTreeMap::new(),
        shared_bytes: 0,
        threads: 0,
        entry_registers: 0,
        ahead: None,
        cluster: match kernel.channels.iter().any(|c| c.shared) {
            true => kernel.launch.cluster,
            false => 1,
        },
        tile_names: (0..kernel.tiles.len())
            .map(|i| (TileId(i as u32), kernel.tiles[i].name.clone()))
            .collect(),
        channel_names: kernel.channels.iter().map(|c| c.name.clone()).collect(),
    };
    let mut warp = 0;
    let mut puts = vec![vec![]; kernel.channels.len()];
    let mut readers = vec![0; kernel.channels.len()];
    let mut fills = vec![Fill::Boxes; kernel.channels.len()];
    let bodies: Vec<BlockId> = roles.iter().map(|(_, _, body, _)| *body).collect();
    let needs = plan.place_roles(kernel, &bodies, stored)?;
    for ((op, name, body, turns), (warps, needed)) in roles.into_iter().zip(needs) {
        let single = only_starts_copies(kernel, body);
        let turn_loop = match turns > 1 {
            true => {
                let found = turns::turn_loop(kernel, body);
                Some(found.map_err(|why| format!("role `{name}` takes turns, and {why}"))?)
            }
            false => None,
        };
        let mut gets = BTreeSet::new();
        kernel.walk(body, &mut |block, op| match &kernel.op(op).kind {
            OpKind::Put { channel, src, .. } => {
                puts[channel.index()].push((block, op));
                let warps = warps as u32;
                fills[channel.index()] = match src.base {
                    Base::Tile(_) if plan.handed.contains_key(channel) => Fill::Handed { warps },
                    Base::Tile(_) if kernel.channels[channel.index()].shape.len() > 1 => {
                        Fill::Stored { warps }
                    }
                    Base::Tile(_) => Fill::Copied { warps },
                    Base::Param(_) if gathers(src) => Fill::Gathered {
                        threads: warps * LANES as u32,
                    },
                    Base::Param(_) => Fill::Boxes,
                };
            }
            OpKind::Get { channel, .. } => {
                gets.insert(*channel);
            }
            _ => {}
        });
        for channel in gets {
            readers[channel.index()] += (warps / WARPS_PER_GROUP) as u32;
        }
        plan.roles.push(RolePlan {
            name,
            op,
            body,
            first_warp: warp as u32,
            warps: warps as u32 * turns,
            turns,
            turn_loop,
            needed: needed as u32,
            registers: None,
            single,
        });
        warp += warps * u64::from(turns);
    }
    plan.threads = (warp * LANES) as u32;
    if plan.threads > gpu.max_threads_per_block {
        return Err(format!("{} threads", plan.threads));
    }
    plan.share_registers(gpu, left_stored)?;

    let ends = Ends {
        puts,
        readers,
        fills,
    };
    plan.keep_budget(kernel)?;
    plan.place_slots(kernel, &ends)?;
    plan.keep_batches_alike(kernel)?;
    plan.with_rings(kernel, &ends, gpu)
}

/// By channel.
struct Ends {
    puts: Vec<Vec<(BlockId, OpId)>>,
    /// Warpgroups.
    readers: Vec<u32>,
    fills: Vec<Fill>,
}

/// Whether a view names rows by a list.
pub(super) fn gathers(view: &View) -> bool {
    view.slots.iter().any(|s| matches!(s, Slot::Gather { .. }))
}

/// What a role hands over in its registers (and whether it is all of a tile), and what it takes from others'.
fn handed_over(
    kernel: &Kernel,
    body: BlockId,
) -> (Vec<(ChannelId, TileId, bool)>, Vec<(ChannelId, TileId)>) {
    let mut from_tiles = vec![];
    kernel.walk(kernel.body, &mut |_, op| {
        if let OpKind::Put { channel, src, .. } = &kernel.op(op).kind
            && matches!(src.base, Base::Tile(_))
        {
            from_tiles.push(*channel);
        }
    });
    let (mut gives, mut takes) = (vec![], vec![]);
    kernel.walk(body, &mut |_, op| match &kernel.op(op).kind {
        OpKind::Put { channel, src, .. } => {
            if let Base::Tile(tile) = src.base {
                gives.push((*channel, tile, is_whole_view(kernel, src)));
            }
        }
        OpKind::Get { channel, tile } if from_tiles.contains(channel) => {
            takes.push((*channel, *tile));
        }
        _ => {}
    });
    (gives, takes)
}

/// Channels whose matrices products read where they lie: right operands, and left ones too if asked for.
fn operands(kernel: &Kernel, left: bool) -> BTreeSet<ChannelId> {
    let (mut tiles, mut found) = (BTreeSet::new(), BTreeSet::new());
    kernel.walk(kernel.body, &mut |_, op| {
        if let OpKind::Dot { a, b, .. } = &kernel.op(op).kind {
            tiles.insert(b.view.tile);
            tiles.extend(left.then_some(a.view.tile));
        }
    });
    kernel.walk(kernel.body, &mut |_, op| {
        if let OpKind::Get { channel, tile } = &kernel.op(op).kind
            && tiles.contains(tile)
        {
            found.insert(*channel);
        }
    });
    found
}

/// Whether a role does nothing but start copies from tensors.
fn only_starts_copies(kernel: &Kernel, body: BlockId) -> bool {
    let mut only = true;
    kernel.walk(body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        only &= match kind {
            OpKind::Put { src, .. } => matches!(src.base, Base::Param(_)) && !gathers(src),
            OpKind::For { .. } | OpKind::If { .. } | OpKind::ForItems { .. } => true,
            OpKind::LoadGlobal { .. } => true,
            kind => kind.is_pure(),
        };
    });
    only
}

/// Whether an extent is above 0 whatever a launch passes, or the grid is empty where it is not.
fn is_counted(kernel: &Kernel, e: &HostExpr) -> bool {
    match e {
        HostExpr::Int(i) => *i > 0,
        HostExpr::Dim(name) => {
            let dim = kernel.dims.iter().find(|d| d.name == *name);
            dim.is_some_and(|d| d.lo > 0) || kernel.launch.grid.contains(e)
        }
        HostExpr::Op(HostOp::Mul | HostOp::CeilDiv, parts) => {
            parts.iter().all(|part| is_counted(kernel, part))
        }
        _ => false,
    }
}

impl Plan {
    /// Whether steps may go ahead of each other: of one warpgroup, since where there are two, one computes while the other's products run; with
    /// slots for the steps in hand and as many that are being filled, and registers to spare, since what is on its way cannot be put aside.
    pub fn has_room_ahead(&self, kernel: &Kernel, ahead: Ahead, gpu: &GpuFacts) -> bool {
        let entry = gpu.registers_per_sm / self.threads;
        let slots = |ring: &Ring| ring.slots as usize >= 2 * ahead.flying || !ring.each_step;
        let registers =
            |role: &RolePlan| role.needed + AHEAD_REGISTERS <= role.registers.unwrap_or(entry);
        let products = self.roles.iter().filter(|r| multiplies(kernel, r.body));
        let alone = products.clone().map(|r| r.warps).sum::<u32>() == WARPS_PER_GROUP as u32;
        alone && self.rings.iter().all(slots) && products.clone().all(registers)
    }

    /// Whether all boxes can be made for whatever arguments a launch checks: their tensors say that they are aligned, and no extent is 0
    /// unless the grid is empty.
    pub fn takes_all(&self, kernel: &Kernel) -> bool {
        self.maps.iter().all(|map| {
            let tensor = kernel.tensor(map.param);
            tensor.is_some_and(|t| {
                let counted = |e| is_counted(kernel, e);
                t.contiguous && t.align >= 16 && t.shape.iter().all(counted)
            })
        })
    }

    pub fn channel_name(&self, channel: ChannelId) -> &str {
        &self.channel_names[channel.index()]
    }

    pub fn tile_name(&self, tile: TileId) -> &str {
        &self.tile_names[&tile]
    }

    /// Whether `budget regs` has what roles get, where they exchange registers, or else what they need.
    fn keep_budget(&self, kernel: &Kernel) -> Result<(), String> {
        let Some(limit) = kernel.budget.registers else {
            return Ok(());
        };
        let of = |r: &RolePlan| r.registers.unwrap_or(r.needed);
        match self.roles.iter().find(|r| of(r) > limit) {
            None => Ok(()),
            Some(role) => Err(format!(
                "role `{}` takes {} registers of a thread, and the budget is {limit}",
                role.name,
                of(role)
            )),
        }
    }

    /// Registers that roles need, by the plan's reckoning, and do not have.
    fn lacking(&self) -> u32 {
        let of = |r: &RolePlan| {
            r.needed
                .saturating_sub(r.registers.unwrap_or(self.entry_registers))
        };
        self.roles.iter().map(|r| r.warps * of(r)).sum()
    }

    /// Columns of one product instruction. ptxas asks for the registers of a wide one at the kernel's entry already, whatever `setmaxnreg`
    /// says later.
    pub fn most_columns(&self) -> u64 {
        match self.threads <= WIDE_THREADS {
            true => 256,
            false => 128,
        }
    }

    /// Warps of each role and the registers that a thread of it needs. A role that takes tiles from another's registers comes after it.
    fn place_roles(
        &mut self,
        kernel: &Kernel,
        bodies: &[BlockId],
        stored: &BTreeSet<ChannelId>,
    ) -> Result<Vec<(u64, u64)>, String> {
        let mut found: Vec<Option<(u64, u64)>> = vec![None; bodies.len()];
        let mut copied = stored.clone();
        while let Some(missing) = found.iter().position(Option::is_none) {
            let before = found.iter().flatten().count();
            for (i, &body) in bodies.iter().enumerate() {
                let (gives, takes) = handed_over(kernel, body);
                let known = takes.iter().all(|(channel, _)| {
                    self.handed.contains_key(channel) || copied.contains(channel)
                });
                if found[i].is_some() || !known {
                    continue;
                }
                if only_starts_copies(kernel, body) {
                    found[i] = Some((WARPS_PER_GROUP, 0));
                    continue;
                }
                let handed = takes.iter().filter_map(|(channel, tile)| {
                    let layout = self.handed.get(channel)?;
                    Some((*tile, layout.clone()))
                });
                let Computing {
                    warps,
                    registers,
                    streamed,
                    needed,
                } = computing(kernel, body, &handed.collect(), stored)?;
                for (channel, tile, whole) in gives {
                    let name = &kernel.channels[channel.index()].name;
                    let known = registers.tiles.get(&tile);
                    if known.is_some() && !whole {
                        return Err(format!(
                            "`{name}` is put from a part of a tile in registers"
                        ));
                    }
                    let (rank, bits) = (
                        kernel.tile(tile).shape.len(),
                        u64::from(kernel.tile(tile).dtype.bits()),
                    );
                    if rank == 2 && copied.contains(&channel) {
                        if known.is_none_or(|l| !(l.run() * bits).is_multiple_of(32)) {
                            return Err(format!(
                                "`{name}`, which a product reads, is put from a tile of which no thread has neighbours in its registers"
                            ));
                        }
                        continue;
                    }
                    let Some(layout) = known else {
                        if rank != 1 || bits < 8 {
                            return Err(format!("`{name}` is put from a tile in memory"));
                        }
                        copied.insert(channel);
                        continue;
                    };
                    let known = self.handed.insert(channel, layout.clone());
                    if known.is_some_and(|known| known != *layout) || copied.contains(&channel) {
                        return Err(format!("`{name}` is put from tiles that lie differently"));
                    }
                }
                self.in_registers.tiles.extend(registers.tiles);
                self.in_registers.maps.extend(registers.maps);
                self.streamed.extend(streamed);
                found[i] = Some((warps, needed));
            }
            if found.iter().flatten().count() == before {
                return Err(format!(
                    "role {missing} takes tiles from roles that take its own"
                ));
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Moves registers from roles that need few to those that need many. A block gets `threads * registers at entry` of them, and the sum
    /// after all moves may not exceed that: it hangs otherwise.
    fn share_registers(&mut self, gpu: &GpuFacts, evenly: bool) -> Result<(), String> {
        let entry =
            (gpu.registers_per_sm / self.threads / 8 * 8).min(gpu.max_registers_per_thread / 8 * 8);
        self.entry_registers = entry;
        if self.roles.iter().all(|r| r.needed <= entry) {
            return Ok(());
        }
        let warps = |i: usize| self.roles[i].warps;
        let total = entry * self.threads / gpu.threads_per_warp;
        let taken = |shares: &[u32]| (0..shares.len()).map(|i| shares[i] * warps(i)).sum::<u32>();
        let least = |few: u32| -> Vec<u32> {
            let of = |r: &RolePlan| match r.single {
                true => few,
                false => r.needed.next_multiple_of(8).max(few),
            };
            self.roles.iter().map(of).collect()
        };
        let mut shares = least(FEW_REGISTERS);
        if taken(&shares) > total {
            // Closer than is comfortable: those with most spare some, since what the others do between two waits is all latency; or, where left
            // operands are in shared memory already, those that lack fewest, the poorer of two first.
            shares = least(FEWEST_REGISTERS);
            while taken(&shares) > total {
                let lacks = |i: usize| i64::from(self.roles[i].needed) - i64::from(shares[i]);
                let next = (0..shares.len())
                    .filter(|&i| !self.roles[i].single && shares[i] > FEW_REGISTERS)
                    .filter(|&i| lacks(i) + 8 <= i64::from(SPARED_REGISTERS))
                    .min_by_key(|&i| match evenly {
                        true => (lacks(i), shares[i]),
                        false => (-i64::from(shares[i]), 0),
                    });
                let Some(next) = next else { break };
                shares[next] -= 8;
            }
        }
        if taken(&shares) > total {
            return Err(format!(
                "its roles need {} registers, and a block of {} threads has {}",
                taken(&shares) * gpu.threads_per_warp,
                self.threads,
                entry * self.threads
            ));
        }
        // What is left goes to those that compute, to the poorest first; of two as poor, to that which needs less.
        loop {
            let poorest = (0..shares.len())
                .filter(|&i| !self.roles[i].single && shares[i] + 8 <= MOST_REGISTERS)
                .filter(|&i| taken(&shares) + 8 * warps(i) <= total)
                .min_by_key(|&i| {
                    let needed = self.roles[i].needed;
                    (i64::from(shares[i]) - i64::from(needed), needed)
                });
            match poorest {
                Some(i) => shares[i] += 8,
                None => break,
            }
        }
        for (role, share) in self.roles.iter_mut().zip(shares) {
            role.registers = Some(share);
        }
        Ok(())
    }
}

impl RolePlan {
    /// Threads that do one iteration.
    pub fn threads_of_turn(&self) -> u32 {
        self.warps / self.turns * LANES as u32
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
            match (role.single, role.turns) {
                (true, _) => writeln!(f, ", one thread starts copies")?,
                (false, 1) => writeln!(f)?,
                (false, turns) => writeln!(f, ", {turns} warpgroups in turn")?,
            }
        }
        if self.cluster > 1 {
            writeln!(f, "{} blocks of a cluster share rings", self.cluster)?;
        }
        match self.ahead {
            Some(Ahead { steps, flying }) if steps == flying => {
                writeln!(f, "products of {steps} steps go ahead together")?;
            }
            Some(Ahead { steps, flying }) => {
                writeln!(f, "products of {steps} steps go ahead, {flying} at a time")?;
            }
            None => {}
        }
        for ring in &self.rings {
            let names: Vec<_> = ring
                .channels
                .iter()
                .map(|&c| self.channel_name(c))
                .collect();
            writeln!(
                f,
                "ring {}: {} slots of {} bytes, {} readers{}",
                names.join(" + "),
                ring.slots,
                ring.slot_bytes,
                ring.readers,
                if ring.shared { ", shared" } else { "" }
            )?;
        }
        for (tile, layout) in &self.in_registers.tiles {
            writeln!(
                f,
                "tile {}: {} registers, {layout}{}",
                self.tile_name(*tile),
                layout.registers(),
                match self.streamed.values().any(|s| s.tile == *tile) {
                    true => ", put as it is computed",
                    false => "",
                }
            )?;
        }
        writeln!(
            f,
            "shared memory: {} bytes for rings and barriers",
            self.shared_bytes
        )
    }
}
