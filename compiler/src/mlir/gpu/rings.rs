//! Channels of a network as rings of slots: what is put and got, waited for and given back.
//!
//! The index of a ring runs through all items that a CTA takes, and the parity of its rounds tells one use of a slot from the next: a role
//! that puts waits for the slot to be empty, which it is at first, a role that gets waits for it to be full. Bulk copies fill slots with
//! boxes of tensors, or the threads of a role with what they have in registers.

use super::access::Memory;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::schedule::layout::Layout;
use crate::schedule::{
    Fill, Ring, RolePlan, STAGED_ROW_BYTES, STAGED_ROWS, SlotPlace, Stream, row_axis,
};
use crate::tile::ir::*;
use std::collections::BTreeMap;

const LANES: u32 = 32;
/// Of 16 bits, in the lines in which boxes are staged.
const BOX_COLUMNS: u64 = STAGED_ROW_BYTES / 2;

/// The next slot of a ring and the parity of the round, in variables that LLVM turns into registers.
pub(super) struct Cursor<'c> {
    pub slot: Val<'c>,
    pub parity: Val<'c>,
    /// Whether the slot was seen full before it is asked for, of a role that looks ahead.
    pub seen: Option<Val<'c>>,
    /// Channels of the ring put or got since it moved on.
    pub done: usize,
    /// How often the code so far moves the ring on.
    pub turns: usize,
}

/// A slot that a role holds.
#[derive(Clone, Copy)]
pub(super) struct Bound<'c> {
    pub ring: usize,
    /// Tells several slots of a ring that are held at a time from each other.
    pub turn: usize,
    pub slot: Val<'c>,
    /// Where the tile starts, i32.
    pub address: Val<'c>,
    pub block: BlockId,
}

/// Whether a block gets from a ring.
fn gets_of(kernel: &Kernel, block: BlockId, ring: &Ring) -> bool {
    (kernel.block(block).ops.iter()).any(|&op| match &kernel.op(op).kind {
        OpKind::Get { channel, .. } => ring.channels.contains(channel),
        _ => false,
    })
}

/// Whether a role waits for a ring's slots with no product on its way, and gains if it looks for them sooner: each step of a loop waits for its own
/// products, and no other steps' go ahead of these, as two warpgroups multiply.
pub(super) fn looks_ahead(kernel: &Kernel, role: &RolePlan, body: BlockId, ring: &Ring) -> bool {
    let new_sums = |&op: &OpId| {
        let kind = &kernel.op(op).kind;
        matches!(
            kind,
            OpKind::Dot {
                accumulate: false,
                ..
            }
        )
    };
    let mut found = false;
    kernel.walk(body, &mut |_, op| {
        if let OpKind::For { body, .. } = kernel.op(op).kind {
            found |= kernel.block(body).ops.iter().any(new_sums) && gets_of(kernel, body, ring);
        }
    });
    found && role.warps == 8 && role.turns == 1
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn barrier_of(&mut self, ring: &Ring, slot: Val<'c>, empty: bool) -> Emit<Val<'c>> {
        let shared = self.network()?.shared;
        let at = self.b.shl(slot, 3);
        let start = ring.barriers + if empty { 8 * ring.slots as u64 } else { 0 };
        let at = self.b.addi(at, shared);
        Ok(self.b.add_const(at, start as i64))
    }

    pub(super) fn slot_address(&mut self, place: SlotPlace, slot: Val<'c>) -> Emit<Val<'c>> {
        let shared = self.network()?.shared;
        let bytes = self.b.i32(place.stride as i64);
        let at = self.b.muli(slot, bytes);
        let at = self.b.addi(at, shared);
        Ok(self.b.add_const(at, place.offset as i64))
    }

    /// The ring of a channel and its next slot. The first of the ring's channels waits for the slot's barrier.
    pub(super) fn next_slot(
        &mut self,
        channel: ChannelId,
        empty: bool,
    ) -> Emit<(usize, Ring, Val<'c>, bool)> {
        let network = self.network()?;
        let number = network.plan.slots[channel.index()].ring;
        let ring = network.plan.rings[number].clone();
        let Cursor {
            slot,
            parity,
            seen,
            done,
            ..
        } = network.cursors[number];
        let at = self.b.load(slot, (Elem::I32, 1), 4, None);
        if done == 0 {
            let unseen = seen.map(|seen| {
                let seen = self.b.load(seen, (Elem::I32, 1), 4, None);
                let zero = self.b.i32(0);
                let unseen = self.b.cmpi(IntCompare::Eq, seen, zero);
                self.b.begin_if(unseen)
            });
            let round = self.b.load(parity, (Elem::I32, 1), 4, None);
            let barrier = self.barrier_of(&ring, at, empty)?;
            self.b.mbarrier_wait(barrier, round);
            if let Some(unseen) = unseen {
                self.b.end_if(unseen);
            }
        }
        Ok((number, ring, at, done == 0))
    }

    /// At the end of a loop's body that gets from a ring first thing: looks whether the next slot is full, while what is left to do with the sums of
    /// this one hides that the answer takes its time.
    pub(super) fn look_ahead(&mut self, body: BlockId) -> Emit {
        let Some(network) = &self.network else {
            return Ok(());
        };
        for number in 0..network.cursors.len() {
            let network = self.network()?;
            let ring = network.plan.rings[number].clone();
            let Cursor {
                slot, parity, seen, ..
            } = network.cursors[number];
            let Some(seen) = seen.filter(|_| gets_of(self.kernel, body, &ring)) else {
                continue;
            };
            let at = self.b.load(slot, (Elem::I32, 1), 4, None);
            let round = self.b.load(parity, (Elem::I32, 1), 4, None);
            let barrier = self.barrier_of(&ring, at, false)?;
            let full = self.b.mbarrier_test(barrier, round);
            self.b.store(full, seen, 4, None);
        }
        Ok(())
    }

    /// One of the ring's channels is done with the slot at hand; after the last one the ring moves on.
    pub(super) fn advance(&mut self, number: usize) {
        let network = self.network_mut();
        let ring = &network.plan.rings[number];
        let (channels, slots) = (ring.channels.len(), i64::from(ring.slots));
        let Cursor {
            slot,
            parity,
            seen,
            done,
            turns,
        } = &mut network.cursors[number];
        *done += 1;
        if *done < channels {
            return;
        }
        *done = 0;
        *turns += 1;
        let (slot, parity, seen) = (*slot, *parity, *seen);
        let turns = network.turn.map(|turn| turn.turns);
        let at = self.b.load(slot, (Elem::I32, 1), 4, None);
        let round = self.b.load(parity, (Elem::I32, 1), 4, None);
        let next = self.b.add_const(at, turns.unwrap_or(1));
        let end = self.b.i32(slots);
        let (past, wrapped) = match turns {
            Some(_) => (IntCompare::Sge, self.b.add_const(next, -slots)),
            None => (IntCompare::Eq, self.b.i32(0)),
        };
        let wraps = self.b.cmpi(past, next, end);
        let next = self.b.select(wraps, wrapped, next);
        let one = self.b.i32(1);
        let other = self.b.xori(round, one);
        let round = self.b.select(wraps, other, round);
        self.b.store(next, slot, 4, None);
        self.b.store(round, parity, 4, None);
        if let Some(seen) = seen {
            let zero = self.b.i32(0);
            self.b.store(zero, seen, 4, None);
        }
    }

    /// Where a thread's word of its first register lies in a slot, and how far it is to that of the next.
    fn own_words(&mut self, channel: ChannelId, slot: Val<'c>) -> Emit<(Val<'c>, u64)> {
        let place = self.network()?.plan.slots[channel.index()];
        let start = self.slot_address(place, slot)?;
        let own = self.b.resize(self.thread, Elem::I32, false);
        let own = self.b.shl(own, 2);
        let at = self.b.addi(start, own);
        Ok((self.b.shared_pointer(at), place.row_bytes))
    }

    /// Hands a tile in registers over to another role.
    fn put_registers(&mut self, channel: ChannelId, tile: TileId) -> Emit {
        let (number, ring, slot, _) = self.next_slot(channel, true)?;
        let (own, step) = self.own_words(channel, slot)?;
        for (i, &cell) in self.cells(tile)?.iter().enumerate() {
            let word = self.b.load(cell, (Elem::I32, 1), 4, None);
            let to = self.b.offset(own, (i as u64 * step) as i64);
            self.b.store(word, to, 4, None);
        }
        self.publish(number, &ring, slot)
    }

    /// Stores a matrix in registers where products read it.
    fn put_stored(&mut self, channel: ChannelId, tile: TileId) -> Emit {
        let stream = Stream { tile, channel };
        if self.network()?.plan.streamed.values().any(|s| *s == stream) {
            return self.put_streamed(stream);
        }
        let (number, ring, slot, _) = self.next_slot(channel, true)?;
        let place = self.network()?.plan.slots[channel.index()];
        let start = self.slot_address(place, slot)?;
        let Some(layout) = self.layout(tile) else {
            return Err(self.fault("a matrix is put that is not in registers"));
        };
        if self.lies_as_box(tile, &layout, place) {
            for column in (0..layout.shape[1]).step_by(BOX_COLUMNS as usize) {
                let part = self.part_of_box(tile, 0, column..column + BOX_COLUMNS)?;
                let block = column / BOX_COLUMNS * place.rows * place.row_bytes;
                let to = self.b.add_const(start, block as i64);
                self.write_halves_in_loop(&part, to);
            }
            return self.complete(number, &ring, slot);
        }
        let start = self.b.shared_pointer(start);
        let own = self.own_coordinates(&layout);
        let all: Vec<u64> = (0..layout.registers()).collect();
        self.store_words(place, start, tile, &all, &own)?;
        self.complete(number, &ring, slot)
    }

    /// Whether the sums of one warpgroup, of 16 bits, are stored in lines of 128 bytes, as in a box that is staged.
    fn lies_as_box(&self, tile: TileId, layout: &Layout, place: SlotPlace) -> bool {
        let &[rows, columns] = &layout.shape[..] else {
            return false;
        };
        let sums = Layout::accumulator(rows, columns, 1);
        let alike = sums.is_some_and(|l| l.lanes == layout.lanes && l.warps == layout.warps);
        let lines = (place.rows, place.row_bytes) == (STAGED_ROWS, STAGED_ROW_BYTES);
        let halves = self.kernel.tile(tile).dtype.bits() == 16 && self.sharing(tile) == 2;
        alike && lines && halves && rows == STAGED_ROWS && columns.is_multiple_of(BOX_COLUMNS)
    }

    /// Stores some of a thread's registers of a matrix, in whole runs, to the slot at `start`; `own`: the coordinates of register 0.
    pub(super) fn store_words(
        &mut self,
        place: SlotPlace,
        start: Val<'c>,
        tile: TileId,
        registers: &[u64],
        own: &[Val<'c>],
    ) -> Emit {
        let Some(layout) = self.layout(tile) else {
            return Err(self.fault("a matrix is put that is not in registers"));
        };
        let bits = u64::from(self.kernel.tile(tile).dtype.bits());
        let sharing = self.sharing(tile);
        // Words of 32 bits that lie one after the other in 16 bytes.
        let words = (layout.run() * bits / 32).min(4);
        let cells = self.cells(tile)?;
        for &register in registers.iter().step_by((words * sharing) as usize) {
            let element = layout.of_register(register);
            let (at, offsets) = ([own[0], own[1]], [element[0], element[1]]);
            let byte = self.byte_in_slot(place, bits, at, offsets);
            let to = self.b.gep(start, byte, Elem::I8);
            let mut all = self.b.zero(Elem::I32, words as u32);
            let first = (register / sharing) as usize;
            for (i, &cell) in cells[first..].iter().take(words as usize).enumerate() {
                let word = self.b.load(cell, (Elem::I32, 1), 4, None);
                all = match words {
                    1 => word,
                    _ => self.b.insert(word, all, i as u32),
                };
            }
            self.b.store(all, to, 4 * words as u32, None);
        }
        Ok(())
    }

    /// The threads have stored what they have of a matrix; after the ring's last channel the slot is full.
    pub(super) fn complete(&mut self, number: usize, ring: &Ring, slot: Val<'c>) -> Emit {
        if self.network()?.cursors[number].done + 1 < ring.channels.len() {
            self.advance(number);
            return Ok(());
        }
        // Threads wrote it all, and products see it otherwise.
        self.b.fence_async_shared();
        self.publish(number, ring, slot)
    }

    /// Hands a vector in shared memory over to another role.
    fn put_copied(&mut self, channel: ChannelId, tile: TileId, src: &View) -> Emit {
        let [
            Slot::Span {
                start: from_first,
                len,
            },
        ] = src.slots[..]
        else {
            return Err(self.fault("a vector is put that is no run of a tile"));
        };
        let from_first = self.value(from_first)?;
        let (number, ring, slot, _) = self.next_slot(channel, true)?;
        let place = self.network()?.plan.slots[channel.index()];
        let start = self.slot_address(place, slot)?;
        let to = Memory {
            base: self.b.shared_pointer(start),
            constant: false,
            ..self.tile(tile)?
        };
        let from = self.tile(tile)?;
        let open = self.begin_share(len);
        let at = self.b.addi(from_first, open.iv);
        let element = self.load(&from, at);
        self.store(&to, open.iv, element);
        self.end_share(open);
        self.publish(number, &ring, slot)
    }

    /// A thread of each warp says that the warp has filled its part of a slot.
    fn publish(&mut self, number: usize, ring: &Ring, slot: Val<'c>) -> Emit {
        let first = self.first_of_warp();
        let open = self.b.begin_if(first);
        let full = self.barrier_of(ring, slot, false)?;
        self.b.mbarrier_arrive(full);
        self.b.end_if(open);
        self.advance(number);
        Ok(())
    }

    /// Takes over what another role had in its registers; the slot goes back at once.
    fn get_registers(&mut self, channel: ChannelId, tile: TileId) -> Emit {
        let (number, _, slot, _) = self.next_slot(channel, false)?;
        let (own, step) = self.own_words(channel, slot)?;
        let given = self.network()?.plan.handed.get(&channel).cloned();
        let (Some(given), Some(taken)) = (given, self.layout(tile)) else {
            return Err(self.fault("a tile is taken from registers without a layout"));
        };
        let sharing = self.sharing(tile);
        for (i, &cell) in self.cells(tile)?.iter().enumerate() {
            // The same threads have the same elements, in an order of their own.
            let element = taken.of_register(i as u64 * sharing);
            let Some(register) = given.register_at(&element) else {
                return Err(self.fault("a tile is taken from registers that do not hold it"));
            };
            let from = self.b.offset(own, (register / sharing * step) as i64);
            let word = self.b.load(from, (Elem::I32, 1), 4, None);
            self.b.store(word, cell, 4, None);
        }
        self.give_back(number, slot, None)?;
        self.advance(number);
        Ok(())
    }

    /// Starts the copies of a box of a tensor into the next slot of a channel.
    pub(super) fn put(&mut self, op: OpId, channel: ChannelId, src: &View) -> Emit {
        let ring = self.network()?.plan.slots[channel.index()].ring;
        match (self.network()?.plan.rings[ring].fill, src.base) {
            (Fill::Handed { .. }, Base::Tile(tile)) => return self.put_registers(channel, tile),
            (Fill::Stored { .. }, Base::Tile(tile)) => return self.put_stored(channel, tile),
            (Fill::Copied { .. }, Base::Tile(tile)) => return self.put_copied(channel, tile, src),
            (Fill::Gathered { .. }, _) => return self.put_gathered(channel, src),
            _ => {}
        }
        let (number, ring, slot, first) = self.next_slot(channel, true)?;
        let single = self.network()?.plan.roles[self.network()?.role].single;
        if first && !single {
            // Nobody is a round behind who could take the parity of the slot for that of another one.
            self.barrier();
        }
        let open = match single {
            true => None,
            false => {
                let one = self.is_first_thread();
                Some(self.b.begin_if(one))
            }
        };
        self.start_boxes(op, channel, src, &ring, slot, first)?;
        if let Some(open) = open {
            self.b.end_if(open);
        }
        self.advance(number);
        Ok(())
    }

    /// One thread starts the copies of a box into a slot; for the `first` of the ring's channels it says how many bytes come in all.
    fn start_boxes(
        &mut self,
        op: OpId,
        channel: ChannelId,
        src: &View,
        ring: &Ring,
        slot: Val<'c>,
        first: bool,
    ) -> Emit {
        let full = self.barrier_of(ring, slot, false)?;
        if first {
            self.b.mbarrier_expect(full, ring.bytes);
        }
        let network = self.network()?;
        let place = network.plan.slots[channel.index()];
        let Some(&map) = network.plan.map_of.get(&op) else {
            return Err(self.fault("a `put` without a tensor map"));
        };
        let map = self.b.offset(network.maps, 128 * map as i64);
        let mut start = self.slot_address(place, slot)?;
        let mut at = Vec::new();
        for slot in src.slots.iter().rev() {
            let (Slot::At(v) | Slot::Span { start: v, .. }) = slot else {
                return Err(self.fault("a gathered `put` planned as a box"));
            };
            let v = self.value(*v)?;
            at.push(self.b.resize(v, Elem::I32, true));
        }
        let kernel = self.kernel;
        let mut to_all = None;
        if let (true, Some(axis)) = (kernel.channels[channel.index()].shared, row_axis(src)) {
            let cluster = self.cluster()?;
            let (part, rank) = (self.own_part(place)?, self.rank()?);
            start = self.b.addi(start, part);
            let first = self
                .b
                .mul_const(rank, place.rows as i64 / i64::from(cluster));
            let row = &mut at[src.slots.len() - 1 - axis];
            *row = self.b.addi(*row, first);
            to_all = Some(self.b.int(Elem::I16, 1, (1 << cluster) - 1));
        }
        let dtype = kernel.channels[channel.index()].dtype;
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
            self.b.tma_load(to, map, &box_at, full, to_all);
        }
        Ok(())
    }

    /// Binds a tile to the next slot of a channel, once it is full.
    pub(super) fn get(
        &mut self,
        (block, op): (BlockId, OpId),
        channel: ChannelId,
        tile: TileId,
    ) -> Emit {
        if self.network()?.plan.handed.contains_key(&channel) {
            return self.get_registers(channel, tile);
        }
        if self.network()?.flying.is_empty() && self.network()?.steady.is_none() {
            // What nothing reads any more goes back before the wait for another.
            self.release_read(block, op)?;
        }
        let (number, ring, slot, _) = self.next_slot(channel, false)?;
        if matches!(ring.fill, Fill::Gathered { .. }) && self.is_operand(tile) {
            // Threads brought it, and products see it otherwise.
            self.b.fence_async_shared();
        }
        let place = self.network()?.plan.slots[channel.index()];
        let address = self.slot_address(place, slot)?;
        let bound = Bound {
            ring: number,
            turn: self.network()?.cursors[number].turns,
            slot,
            address,
            block,
        };
        self.network_mut().bound.insert(tile, bound);
        self.advance(number);
        Ok(())
    }

    /// Whether products read a tile.
    fn is_operand(&self, tile: TileId) -> bool {
        let reads = |op: &OpId| match &self.kernel.op(*op).kind {
            OpKind::Dot { a, b, .. } => a.view.tile == tile || b.view.tile == tile,
            _ => false,
        };
        self.kernel.live_ops().iter().any(reads)
    }

    /// Where a bound tile starts, and how it lies.
    pub(super) fn slot_of(&self, tile: TileId) -> Emit<(&Bound<'c>, SlotPlace)> {
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
            Some(channel) => Ok((bound, network.plan.slots[channel.index()])),
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
    pub(super) fn give_back(&mut self, ring: usize, slot: Val<'c>, when: Option<Val<'c>>) -> Emit {
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
        if ring.shared {
            self.give_back_across(barrier)?;
        }
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
        let mut done: BTreeMap<(usize, usize), Val<'c>> = BTreeMap::new();
        network.bound.retain(|_, bound| {
            if bound.block == block {
                done.insert((bound.ring, bound.turn), bound.slot);
            }
            bound.block != block
        });
        if steady {
            return Ok(());
        }
        for ((ring, _), slot) in done {
            self.give_back(ring, slot, None)?;
        }
        Ok(())
    }

    /// Gives back the slots of `block` that neither products on their way nor `op` and what follows it reads.
    pub(super) fn release_read(&mut self, block: BlockId, op: OpId) -> Emit {
        let kernel = self.kernel;
        let ops = &kernel.block(block).ops;
        let from = ops.iter().position(|&o| o == op).unwrap_or(ops.len());
        let mut later: Vec<TileId> = vec![];
        let mut note = |op: OpId| match &kernel.op(op).kind {
            OpKind::Release { .. } => {}
            kind => kind.for_each_tile(&mut |t, _| later.push(t)),
        };
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
        let mut busy: Vec<(usize, usize)> = (network.bound.iter())
            .filter(|(tile, _)| later.contains(tile))
            .map(|(_, bound)| (bound.ring, bound.turn))
            .collect();
        // Of some slots another channel's part is still to be got.
        let cursors = network.cursors.iter().enumerate();
        busy.extend(
            cursors
                .filter(|(_, c)| c.done > 0)
                .map(|(ring, c)| (ring, c.turns)),
        );
        let mut done: BTreeMap<(usize, usize), Val<'c>> = BTreeMap::new();
        network.bound.retain(|_, bound| {
            let slot = (bound.ring, bound.turn);
            let free = bound.block == block && !busy.contains(&slot);
            if free {
                done.insert(slot, bound.slot);
            }
            !free
        });
        for ((ring, _), slot) in done {
            self.give_back(ring, slot, None)?;
        }
        Ok(())
    }
}
