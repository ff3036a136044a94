//! A network of roles, as its [`Plan`] says: each role is a run of warps with code of its own, channels are rings of slots in shared
//! memory, and a pair of barriers for each slot says when it is full and when it is empty.
//!
//! The index of a ring runs through all items that a CTA takes, and the parity of its rounds tells one use of a slot from the next: a role
//! that puts waits for the slot to be empty, which it is at first, a role that gets waits for it to be full.
//!
//! Products stay on their way until something touches their sums: only then they are waited for, and the slots that they read are given
//! back. A loop whose accumulators nothing else touches waits, in every iteration, for the products of the one before.

use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::schedule::{Plan, Ring, SlotPlace};
use crate::tile::ir::*;
use std::collections::BTreeMap;

pub(super) struct Network<'c> {
    pub plan: Plan,
    /// Where shared memory starts, i32.
    pub shared: Val<'c>,
    /// Where the tensor maps are.
    pub maps: Val<'c>,
    grid: Vec<Val<'c>>,
    /// 0 at run time.
    pub zero: Val<'c>,
    /// The role in hand.
    pub role: usize,
    /// Of each ring, for the role in hand.
    cursors: Vec<Cursor<'c>>,
    /// Tiles bound to slots.
    bound: BTreeMap<TileId, Bound<'c>>,
    steady: Option<Steady<'c>>,
    /// Products on their way, of the block in hand, in the order of their groups.
    flying: Vec<Flying<'c>>,
}

/// A `dot` whose sums nobody has waited for.
struct Flying<'c> {
    acc: TileId,
    op: OpId,
    /// Words of operands in registers.
    left: Vec<Val<'c>>,
}

/// The next slot of a ring and the parity of the round, in variables that LLVM turns into registers.
struct Cursor<'c> {
    slot: Val<'c>,
    parity: Val<'c>,
    /// Channels of the ring put or got since it moved on.
    done: usize,
}

/// A slot that a role holds.
#[derive(Clone, Copy)]
struct Bound<'c> {
    ring: usize,
    slot: Val<'c>,
    /// Where the tile starts, i32.
    address: Val<'c>,
    block: BlockId,
}

/// A loop whose products stay on their way from one iteration to the next.
struct Steady<'c> {
    body: BlockId,
    last: OpId,
    accs: Vec<TileId>,
    /// Rings, and of each the slot that the products on their way read; -1: none.
    held: Vec<(usize, Val<'c>)>,
}

const LANES: u32 = 32;
/// Rows of tiles of the grid that run next to each other, so that the operands they share stay in the L2 cache.
const RASTER: i64 = 16;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn network(&self) -> Emit<&Network<'c>> {
        match &self.network {
            Some(network) => Ok(network),
            None => Err(self.fault("roles without a plan")),
        }
    }

    fn network_mut(&mut self) -> &mut Network<'c> {
        self.network
            .as_mut()
            .expect("only reached from the emission of a network")
    }

    /// All roles, in a function whose arguments are unpacked: barriers first, then every warp goes to its role.
    pub(super) fn roles(&mut self, plan: Plan, maps: Val<'c>, grid: Vec<Val<'c>>) -> Emit {
        let shared = self.b.shared_address(super::SHARED);
        let warp = self.b.shift_right_signed(self.thread, 5);
        let warp = self.b.resize(warp, Elem::I32, false);
        let warp = self.b.of_first_lane(warp);
        let first = self.is_first_thread();
        let open = self.b.begin_if(first);
        for ring in &plan.rings {
            for slot in 0..ring.slots as u64 {
                let full = self.b.add_const(shared, (ring.barriers + 8 * slot) as i64);
                self.b.mbarrier_init(full, 1);
                let empty = ring.barriers + 8 * (ring.slots as u64 + slot);
                let empty = self.b.add_const(shared, empty as i64);
                self.b.mbarrier_init(empty, ring.readers);
            }
        }
        self.b.fence_mbarrier_init();
        self.b.end_if(open);
        self.b.barrier();

        let roles = plan.roles.clone();
        let high = self.b.shift_right_signed(grid[0], 62);
        let zero = self.b.resize(high, Elem::I32, false);
        self.network = Some(Network {
            plan,
            shared,
            maps,
            grid,
            zero,
            role: 0,
            cursors: vec![],
            bound: BTreeMap::new(),
            steady: None,
            flying: vec![],
        });
        let tid = self.thread;
        let (exit, _) = self.b.new_block(0);
        for (i, role) in roles.iter().enumerate() {
            let (inside, _) = self.b.new_block(0);
            let (others, _) = self.b.new_block(0);
            let end = self.b.i32((role.first_warp + role.warps) as i64);
            let mine = self.b.cmpi(IntCompare::Ult, warp, end);
            self.b.cond_branch(mine, inside, (others, &[]));
            self.b.set_block(inside);
            let first = self.b.i32(i64::from(role.first_warp));
            let own = self.b.subi(warp, first);
            self.group = self.b.shr(own, 2);
            self.thread = self.b.add_const(tid, -((role.first_warp * LANES) as i64));
            self.threads = role.warps * LANES;
            self.network_mut().role = i;
            self.role(role, exit)?;
            self.b.set_block(others);
        }
        self.b.branch(exit, &[]);
        self.b.set_block(exit);
        self.b.ret();
        Ok(())
    }

    fn role(
        &mut self,
        role: &crate::schedule::RolePlan,
        exit: melior::ir::BlockRef<'c, 'c>,
    ) -> Emit {
        let kernel = self.kernel;
        if let Some(registers) = role.registers {
            self.b.set_registers(registers, !role.single);
        }
        if role.single {
            let first = self.is_first_thread();
            let (one, _) = self.b.new_block(0);
            self.b.cond_branch(first, one, (exit, &[]));
            self.b.set_block(one);
        }
        let OpKind::Role { body, .. } = kernel.op(role.op).kind else {
            return Err(self.fault("a role's plan without a role"));
        };
        let mut puts = Vec::new();
        kernel.walk(body, &mut |_, op| {
            if let OpKind::Put { channel, .. } = kernel.op(op).kind {
                puts.push(channel);
            }
        });
        let rings = self.network()?.plan.rings.clone();
        let mut cursors = Vec::new();
        for ring in rings {
            let puts = ring.channels.iter().any(|c| puts.contains(c));
            let (slot, parity) = (self.b.alloca(4), self.b.alloca(4));
            let zero = self.b.i32(0);
            self.b.store(zero, slot, 4, None);
            // A fresh barrier is in round 0, and the one before it is over.
            let start = self.b.i32(i64::from(puts));
            self.b.store(start, parity, 4, None);
            cursors.push(Cursor {
                slot,
                parity,
                done: 0,
            });
        }
        self.network_mut().cursors = cursors;
        let has_items = {
            let mut found = false;
            kernel.walk(body, &mut |_, op| {
                found |= matches!(kernel.op(op).kind, OpKind::ForItems { .. })
            });
            found
        };
        if has_items {
            self.block(body)?;
        } else {
            self.items(body)?;
        }
        self.end_staged(body)?;
        self.b.branch(exit, &[]);
        Ok(())
    }

    /// `body` for every item that falls to this CTA.
    pub(super) fn items(&mut self, body: BlockId) -> Emit {
        let grid = self.network()?.grid.clone();
        let first = self.b.special_register("nvvm.read.ptx.sreg.ctaid.x");
        let step = self.b.special_register("nvvm.read.ptx.sreg.nctaid.x");
        let total = self.b.muli(grid[0], grid[1]);
        let total = self.b.muli(total, grid[2]);
        let (header, header_args) = self.b.new_block(1);
        let (inside, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        self.b.branch(header, &[first]);
        self.b.set_block(header);
        self.cta = header_args[0];
        let more = self.b.cmpi(IntCompare::Slt, self.cta, total);
        self.b.cond_branch(more, inside, (after, &[]));
        self.b.set_block(inside);
        self.block_index = self.raster(&grid);
        for (axis, &arg) in self.kernel.block(body).args.iter().enumerate().take(3) {
            if matches!(self.kernel.value(arg).ty, Type::Index) && self.kernel.launch.persistent {
                self.values[arg.index()] = Some(self.block_index[axis]);
            }
        }
        self.block(body)?;
        let next = self.b.addi(header_args[0], step);
        self.b.branch(header, &[next]);
        self.b.set_block(after);
        Ok(())
    }

    /// Coordinates of the item in hand. Results don't depend on the order of items, so neighbours in time are neighbours in the grid:
    /// `RASTER` rows of it at a time, column after column.
    fn raster(&mut self, grid: &[Val<'c>]) -> [Val<'c>; 3] {
        let zero = self.b.i64(0);
        let cta = self.cta;
        if self.kernel.launch.grid.len() <= 1 {
            return [cta, zero, zero];
        }
        let plane = self.b.muli(grid[0], grid[1]);
        let (rest, third) = match self.kernel.launch.grid.len() {
            2 => (cta, zero),
            _ => (
                self.b.binary("arith.remui", cta, plane),
                self.b.binary("arith.divui", cta, plane),
            ),
        };
        let rows = self.b.i64(RASTER);
        let band = self.b.muli(rows, grid[1]);
        let number = self.b.binary("arith.divui", rest, band);
        let inside = self.b.binary("arith.remui", rest, band);
        let start = self.b.muli(number, rows);
        let left = self.b.subi(grid[0], start);
        let height = self.b.binary("arith.minui", left, rows);
        let row = self.b.binary("arith.remui", inside, height);
        let first = self.b.addi(start, row);
        let second = self.b.binary("arith.divui", inside, height);
        [first, second, third]
    }

    // ---- channels -----------------------------------------------------------------------------------------

    fn barrier_of(&mut self, ring: &Ring, slot: Val<'c>, empty: bool) -> Emit<Val<'c>> {
        let shared = self.network()?.shared;
        let at = self.b.shl(slot, 3);
        let start = ring.barriers + if empty { 8 * ring.slots as u64 } else { 0 };
        let at = self.b.addi(at, shared);
        Ok(self.b.add_const(at, start as i64))
    }

    fn slot_address(&mut self, place: SlotPlace, slot: Val<'c>) -> Emit<Val<'c>> {
        let shared = self.network()?.shared;
        let bytes = self.b.i32(place.stride as i64);
        let at = self.b.muli(slot, bytes);
        let at = self.b.addi(at, shared);
        Ok(self.b.add_const(at, place.offset as i64))
    }

    /// The ring of a channel and its next slot. The first of the ring's channels waits for the slot's barrier.
    fn next_slot(&mut self, channel: ChannelId, empty: bool) -> Emit<(usize, Ring, Val<'c>, bool)> {
        let network = self.network()?;
        let number = network.plan.slots[channel.index()].ring;
        let ring = network.plan.rings[number].clone();
        let Cursor { slot, parity, done } = network.cursors[number];
        let at = self.b.load(slot, (Elem::I32, 1), 4, None);
        if done == 0 {
            let round = self.b.load(parity, (Elem::I32, 1), 4, None);
            let barrier = self.barrier_of(&ring, at, empty)?;
            self.b.mbarrier_wait(barrier, round);
        }
        Ok((number, ring, at, done == 0))
    }

    /// One of the ring's channels is done with the slot at hand; after the last one the ring moves on.
    fn advance(&mut self, number: usize) {
        let network = self.network_mut();
        let ring = &network.plan.rings[number];
        let (channels, slots) = (ring.channels.len(), ring.slots);
        let Cursor { slot, parity, done } = &mut network.cursors[number];
        *done += 1;
        if *done < channels {
            return;
        }
        *done = 0;
        let (slot, parity) = (*slot, *parity);
        let at = self.b.load(slot, (Elem::I32, 1), 4, None);
        let round = self.b.load(parity, (Elem::I32, 1), 4, None);
        let next = self.b.add_const(at, 1);
        let end = self.b.i32(slots as i64);
        let wraps = self.b.cmpi(IntCompare::Eq, next, end);
        let zero = self.b.i32(0);
        let next = self.b.select(wraps, zero, next);
        let one = self.b.i32(1);
        let other = self.b.xori(round, one);
        let round = self.b.select(wraps, other, round);
        self.b.store(next, slot, 4, None);
        self.b.store(round, parity, 4, None);
    }

    /// Starts the copies of a box of a tensor into the next slot of a channel.
    pub(super) fn put(&mut self, op: OpId, channel: ChannelId, src: &View) -> Emit {
        let (number, ring, slot, first) = self.next_slot(channel, true)?;
        let full = self.barrier_of(&ring, slot, false)?;
        if first {
            self.b.mbarrier_expect(full, ring.bytes);
        }
        let network = self.network()?;
        let place = network.plan.slots[channel.index()];
        let Some(&map) = network.plan.map_of.get(&op) else {
            return Err(self.fault("a `put` without a tensor map"));
        };
        let map = self.b.offset(network.maps, 128 * map as i64);
        let start = self.slot_address(place, slot)?;
        let mut at = Vec::new();
        for slot in src.slots.iter().rev() {
            let (Slot::At(v) | Slot::Span { start: v, .. }) = slot else {
                return Err(self.fault("a gathered `put` planned as a box"));
            };
            let v = self.value(*v)?;
            at.push(self.b.resize(v, Elem::I32, true));
        }
        let dtype = self.kernel.channels[channel.index()].dtype;
        let columns = match dtype.bits() {
            // Two codes to a byte, and boxes are counted in bytes.
            4 => {
                let one = self.b.i32(1);
                at[0] = self.b.binary("arith.shrsi", at[0], one);
                place.row_bytes
            }
            bits => place.row_bytes * 8 / u64::from(bits),
        };
        for block in 0..place.blocks {
            let to = self
                .b
                .add_const(start, (block * place.rows * place.row_bytes) as i64);
            let mut box_at = at.clone();
            box_at[0] = self.b.add_const(at[0], (block * columns) as i64);
            self.b.tma_load(to, map, &box_at, full);
        }
        self.advance(number);
        Ok(())
    }

    /// Binds a tile to the next slot of a channel, once it is full.
    pub(super) fn get(&mut self, block: BlockId, channel: ChannelId, tile: TileId) -> Emit {
        let (number, _, slot, _) = self.next_slot(channel, false)?;
        let place = self.network()?.plan.slots[channel.index()];
        let address = self.slot_address(place, slot)?;
        let bound = Bound {
            ring: number,
            slot,
            address,
            block,
        };
        self.network_mut().bound.insert(tile, bound);
        self.advance(number);
        Ok(())
    }

    /// Where a bound tile starts, and how it lies.
    pub(super) fn slot_of(&self, tile: TileId) -> Emit<(Val<'c>, crate::schedule::SlotPlace)> {
        let network = self.network()?;
        let Some(bound) = network.bound.get(&tile) else {
            return Err(self.fault("a slot is read that is not held"));
        };
        let ring = &network.plan.rings[bound.ring];
        let channel = ring.channels.iter().find(|c| {
            let mut same = false;
            self.kernel.walk(self.kernel.body, &mut |_, op| {
                same |= self.kernel.op(op).kind == OpKind::Get { channel: **c, tile };
            });
            same
        });
        match channel {
            Some(channel) => Ok((bound.address, network.plan.slots[channel.index()])),
            None => Err(self.fault("a slot of no channel")),
        }
    }

    /// The first lane of each warp, after all of its lanes have read what they had to.
    fn first_of_warp(&mut self) -> Val<'c> {
        self.b.warp_barrier();
        let mask = self.b.i64(i64::from(LANES) - 1);
        let lane = self.b.andi(self.thread, mask);
        let zero = self.b.i64(0);
        self.b.cmpi(IntCompare::Eq, lane, zero)
    }

    /// One thread of each warpgroup (or warp) says that it is done with a slot, where `when` holds.
    fn give_back(&mut self, ring: usize, slot: Val<'c>, when: Option<Val<'c>>) -> Emit {
        let ring = self.network()?.plan.rings[ring].clone();
        let mut one = match ring.by_warp {
            true => self.first_of_warp(),
            false => self.first_of_group(),
        };
        if let Some(when) = when {
            one = self.b.andi(one, when);
        }
        let open = self.b.begin_if(one);
        let barrier = self.barrier_of(&ring, slot, true)?;
        self.b.mbarrier_arrive(barrier);
        self.b.end_if(open);
        Ok(())
    }

    /// At the end of a block: gives back the slots that were got in it.
    pub(super) fn leave(&mut self, block: BlockId) -> Emit {
        let Some(network) = &self.network else {
            return Ok(());
        };
        let steady = network.steady.as_ref().is_some_and(|s| s.body == block);
        let flying = network.flying.len();
        self.land_first(flying)?;
        let network = self.network_mut();
        let mut rings: BTreeMap<usize, Val<'c>> = BTreeMap::new();
        network.bound.retain(|_, bound| {
            if bound.block == block {
                rings.insert(bound.ring, bound.slot);
            }
            bound.block != block
        });
        if steady {
            return Ok(());
        }
        for (ring, slot) in rings {
            self.give_back(ring, slot, None)?;
        }
        Ok(())
    }

    /// Gives back the slots of `block` that neither products on their way nor `op` and what follows it reads.
    fn release_read(&mut self, block: BlockId, op: OpId) -> Emit {
        let kernel = self.kernel;
        let ops = &kernel.block(block).ops;
        let from = ops.iter().position(|&o| o == op).unwrap_or(ops.len());
        let mut later: Vec<TileId> = vec![];
        let mut note = |op: OpId| kernel.op(op).kind.for_each_tile(&mut |t, _| later.push(t));
        for flying in &self.network()?.flying {
            note(flying.op);
        }
        for &op in &ops[from..] {
            note(op);
            for inner in kernel.op(op).kind.blocks() {
                kernel.walk(inner, &mut |_, op| note(op));
            }
        }
        let network = self.network_mut();
        let busy: Vec<usize> = (network.bound.iter())
            .filter(|(tile, _)| later.contains(tile))
            .map(|(_, bound)| bound.ring)
            .collect();
        let mut rings: BTreeMap<usize, Val<'c>> = BTreeMap::new();
        network.bound.retain(|_, bound| {
            let done = bound.block == block && !busy.contains(&bound.ring);
            if done {
                rings.insert(bound.ring, bound.slot);
            }
            !done
        });
        for (ring, slot) in rings {
            self.give_back(ring, slot, None)?;
        }
        Ok(())
    }

    // ---- products on their way -----------------------------------------------------------------------------

    /// Starts a loop whose products may stay on their way from one iteration to the next, if `body` is one.
    pub(super) fn begin_steady(&mut self, body: BlockId) -> Emit<bool> {
        let Some(network) = &self.network else {
            return Ok(false);
        };
        let Some((last, accs)) = steady_products(self.kernel, body) else {
            return Ok(false);
        };
        let mut rings: Vec<usize> = Vec::new();
        for &op in &self.kernel.block(body).ops {
            if let OpKind::Get { channel, .. } = self.kernel.op(op).kind {
                let ring = network.plan.slots[channel.index()].ring;
                if !rings.contains(&ring) {
                    rings.push(ring);
                }
            }
        }
        let none = self.b.i32(-1);
        let mut held = Vec::new();
        for ring in rings {
            let slot = self.b.alloca(4);
            self.b.store(none, slot, 4, None);
            held.push((ring, slot));
        }
        self.network_mut().steady = Some(Steady {
            body,
            last,
            accs,
            held,
        });
        Ok(true)
    }

    /// After the loop: waits for its last products and gives back what they read.
    pub(super) fn end_steady(&mut self) -> Emit {
        let Some(steady) = self.network_mut().steady.take() else {
            return Ok(());
        };
        self.await_products(0, &steady.accs)?;
        for &(ring, variable) in &steady.held {
            let slot = self.b.load(variable, (Elem::I32, 1), 4, None);
            let zero = self.b.i32(0);
            let some = self.b.cmpi(IntCompare::Sge, slot, zero);
            self.give_back(ring, slot, Some(some))?;
        }
        Ok(())
    }

    /// Before `op` of `block` runs: waits for the products whose sums it touches, and before anything that branches for all.
    pub(super) fn land(&mut self, block: BlockId, op: OpId) -> Emit {
        let kernel = self.kernel;
        let Some(network) = self.network.as_ref().filter(|n| !n.flying.is_empty()) else {
            return Ok(());
        };
        let flying = &network.flying;
        let kind = &kernel.op(op).kind;
        let landed = match kind {
            // Sums follow each other on the tensor cores.
            OpKind::Dot { .. } => 0,
            OpKind::Get { channel, .. } => {
                let number = network.plan.slots[channel.index()].ring;
                let ring = &network.plan.rings[number];
                let held = network.bound.values().filter(|b| b.ring == number);
                let full = held.count() >= ring.channels.len() * ring.slots as usize;
                // The slot that comes next is one that they read.
                if full { flying.len() } else { 0 }
            }
            OpKind::For { .. } | OpKind::ForItems { .. } | OpKind::If { .. } => flying.len(),
            _ => {
                let mut touched = vec![];
                kind.for_each_tile(&mut |t, _| touched.push(t));
                for inner in kind.blocks() {
                    kernel.walk(inner, &mut |_, op| {
                        (kernel.op(op).kind).for_each_tile(&mut |t, _| touched.push(t));
                    });
                }
                let last = flying.iter().rposition(|f| touched.contains(&f.acc));
                last.map_or(0, |last| last + 1)
            }
        };
        self.land_first(landed)?;
        match landed {
            0 => Ok(()),
            _ => self.release_read(block, op),
        }
    }

    /// Waits for as many of the products on their way, the oldest first.
    fn land_first(&mut self, count: usize) -> Emit {
        let network = self.network_mut();
        let landed: Vec<Flying> = network.flying.drain(..count).collect();
        let left = network.flying.len() as u32;
        let accs: Vec<TileId> = landed.iter().map(|f| f.acc).collect();
        self.await_products(left, &accs)?;
        let words: Vec<_> = landed.into_iter().flat_map(|f| f.left).collect();
        if !words.is_empty() {
            self.b.keep_words(&words);
        }
        Ok(())
    }

    /// After the products of `op` have been issued: lets them go on.
    pub(super) fn after_products(&mut self, op: OpId, acc: TileId, left: Vec<Val<'c>>) -> Emit {
        let steady = self.network()?.steady.as_ref();
        let Some(steady) = steady.filter(|s| s.accs.contains(&acc)) else {
            self.b.wgmma_commit();
            let flying = &mut self.network_mut().flying;
            flying.push(Flying { acc, op, left });
            return Ok(());
        };
        if steady.last != op {
            return Ok(());
        }
        let held = steady.held.clone();
        self.b.wgmma_commit();
        self.b.wgmma_wait(1);
        for (ring, variable) in held {
            let before = self.b.load(variable, (Elem::I32, 1), 4, None);
            let zero = self.b.i32(0);
            let some = self.b.cmpi(IntCompare::Sge, before, zero);
            self.give_back(ring, before, Some(some))?;
            let now = self
                .network()?
                .bound
                .values()
                .find(|b| b.ring == ring)
                .map(|b| b.slot);
            let Some(now) = now else {
                return Err(self.fault("a product that reads no slot"));
            };
            self.b.store(now, variable, 4, None);
        }
        Ok(())
    }
}

/// The last product of a loop's body and the accumulators, if nothing else in the body touches these, and products read nothing but
/// slots that the body gets.
fn steady_products(kernel: &Kernel, body: BlockId) -> Option<(OpId, Vec<TileId>)> {
    let ops = &kernel.block(body).ops;
    let mut accs = Vec::new();
    let mut got = Vec::new();
    let mut last = None;
    for &op in ops {
        match &kernel.op(op).kind {
            OpKind::Get { tile, .. } => got.push(*tile),
            OpKind::Dot {
                acc,
                a,
                b,
                accumulate: true,
            } => {
                if ![a, b].iter().all(|o| got.contains(&o.view.tile)) {
                    return None;
                }
                accs.push(acc.tile);
                last = Some(op);
            }
            OpKind::Dot { .. } => return None,
            OpKind::Release { .. } | OpKind::Put { .. } => return None,
            _ => {}
        }
    }
    let last = last?;
    let mut others = false;
    for &op in ops {
        if matches!(kernel.op(op).kind, OpKind::Dot { .. }) {
            continue;
        }
        let mut touch = |op: OpId| {
            kernel
                .op(op)
                .kind
                .for_each_tile(&mut |t, _| others |= accs.contains(&t));
        };
        touch(op);
        let mut nested_products = false;
        for inner in kernel.op(op).kind.blocks() {
            kernel.walk(inner, &mut |_, op| {
                touch(op);
                nested_products |= matches!(kernel.op(op).kind, OpKind::Dot { .. });
            });
        }
        others |= nested_products;
    }
    (!others).then_some((last, accs))
}
