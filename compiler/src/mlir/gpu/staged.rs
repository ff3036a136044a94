//! Copies from accumulators to a tensor: each warpgroup writes 64 rows of 128 bytes to shared memory, swizzled so that no two lanes meet
//! in a bank, and one of its threads sends them off as a box that the hardware clips to the tensor. Boxes have a place each, if shared memory holds
//! these, or two places take turns, so that one is written while the other is sent.

use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::schedule::layout::WARPS_PER_GROUP;
use crate::schedule::{STAGED_ROW_BYTES, STAGED_ROWS};

const PLACE_BYTES: u64 = STAGED_ROWS * STAGED_ROW_BYTES;
use crate::tile::ir::*;

/// The first of the named barriers at which a warpgroup meets; those before are the roles'.
pub(super) const GROUP_BARRIERS: i64 = 8;
const GROUP: u32 = 128;

impl<'c> Emitter<'_, 'c> {
    /// Whether the copy is one that goes by boxes; then it is done.
    pub(super) fn store_staged(&mut self, op: OpId, dst: &View, src: &View) -> Emit<bool> {
        let staged = self
            .network
            .as_ref()
            .and_then(|n| n.plan.staged.get(&op).copied());
        let (Some(staged), Base::Tile(tile)) = (staged, src.base) else {
            return Ok(false);
        };
        let kernel = self.kernel;
        let bits = u64::from(kernel.tile(tile).dtype.bits());
        let &[rows, columns] = kernel.tile(tile).shape.as_slice() else {
            return Err(self.fault("a staged copy of no matrix"));
        };
        let groups = u64::from(self.threads / GROUP);
        let own_rows = rows / groups;
        let box_columns = STAGED_ROW_BYTES * 8 / bits;
        let group = self.group;
        let network = self.network()?;
        let first = i64::from(network.plan.roles[network.role].first_warp) / WARPS_PER_GROUP as i64;
        let barrier = self.b.add_const(group, GROUP_BARRIERS + first);
        let network = self.network()?;
        let (shared, maps) = (network.shared, network.maps);
        let map = self.b.offset(maps, 128 * staged.map as i64);
        let stage = self
            .b
            .mul_const(group, (staged.places * PLACE_BYTES) as i64);
        let stage = self.b.addi(stage, shared);
        let stage = self.b.add_const(stage, staged.offset as i64);
        let own = self.b.mul_const(group, own_rows as i64);
        let one = self.first_of_group();

        if staged.apart {
            let first = staged.first;
            if first == 0 {
                let open = self.b.begin_if(one);
                self.b.tma_store_wait(0, true);
                self.b.end_if(open);
                self.b.named_barrier(barrier, GROUP);
            }
            let boxes: Vec<(u64, u64)> = (0..own_rows)
                .step_by(STAGED_ROWS as usize)
                .flat_map(|row| {
                    (0..columns)
                        .step_by(box_columns as usize)
                        .map(move |c| (row, c))
                })
                .collect();
            let places = (first..).map(|place| (place * PLACE_BYTES) as i64);
            let places: Vec<_> = places
                .take(boxes.len())
                .map(|at| self.b.add_const(stage, at))
                .collect();
            for (&(row, column), &to) in boxes.iter().zip(&places) {
                let part = self.part_of_box(tile, row, column..column + box_columns)?;
                self.write_box(bits, &part, to);
            }
            self.b.fence_async_shared();
            self.b.named_barrier(barrier, GROUP);
            let open = self.b.begin_if(one);
            for (&(row, column), &to) in boxes.iter().zip(&places) {
                let at = self.box_at(dst, own, row, column)?;
                self.b.tma_store(map, &at, to);
            }
            self.b.tma_store_commit();
            self.b.end_if(open);
            return Ok(true);
        }
        let mut number = staged.first;
        for row in (0..own_rows).step_by(STAGED_ROWS as usize) {
            for column in (0..columns).step_by(box_columns as usize) {
                let place = number % staged.places;
                // The last store from this place has read it; with two, the one after may be on its way.
                let left =
                    u32::from(staged.places == 2 && (number > staged.first || staged.in_pairs));
                let open = self.b.begin_if(one);
                self.b.tma_store_wait(left, true);
                self.b.end_if(open);
                self.b.named_barrier(barrier, GROUP);
                let to = self.b.add_const(stage, (place * PLACE_BYTES) as i64);
                let part = self.part_of_box(tile, row, column..column + box_columns)?;
                self.write_box(bits, &part, to);
                self.b.fence_async_shared();
                self.b.named_barrier(barrier, GROUP);
                let open = self.b.begin_if(one);
                let at = self.box_at(dst, own, row, column)?;
                self.b.tma_store(map, &at, to);
                self.b.tma_store_commit();
                self.b.end_if(open);
                number += 1;
            }
        }
        Ok(true)
    }

    fn write_box(&mut self, bits: u64, part: &[Val<'c>], to: Val<'c>) {
        match bits {
            8 => self.write_pairs(Elem::I8, part, to),
            16 => self.write_halves(part, to),
            _ => self.write_pairs(Elem::F32, part, to),
        }
    }

    /// The registers of a thread's part of 64 rows, by eights of columns, in these by eights of rows; of 16 bits, neighbours share one.
    pub(super) fn part_of_box(
        &mut self,
        tile: TileId,
        row: u64,
        columns: std::ops::Range<u64>,
    ) -> Emit<Vec<Val<'c>>> {
        let cells = self.cells(tile)?;
        let (Some(layout), sharing) = (self.layout(tile), self.sharing(tile)) else {
            return Err(self.fault("a staged copy of a tile in memory"));
        };
        let mut part = vec![];
        for column in columns.step_by(8) {
            for row in [row, row + 8] {
                for column in (column..column + 2).step_by(sharing as usize) {
                    let register = layout.register_at(&[row, column]);
                    let cell = register.and_then(|r| cells.get((r / sharing) as usize));
                    match cell {
                        Some(&cell) => part.push(cell),
                        None => return Err(self.fault("a staged copy of another layout")),
                    }
                }
            }
        }
        Ok(part)
    }

    /// At the end of a role: the stores that are on their way still read shared memory.
    pub(super) fn end_staged(&mut self, body: BlockId) -> Emit {
        let kernel = self.kernel;
        let mut any = false;
        let plan = &self.network()?.plan;
        kernel.walk(body, &mut |_, op| any |= plan.staged.contains_key(&op));
        if any {
            let one = self.first_of_group();
            let open = self.b.begin_if(one);
            self.b.tma_store_wait(0, false);
            self.b.end_if(open);
        }
        Ok(())
    }

    /// Whether this is the thread of its warpgroup that does what needs doing once.
    pub(super) fn first_of_group(&mut self) -> Val<'c> {
        let mask = self.b.i64(i64::from(GROUP) - 1);
        let in_group = self.b.andi(self.thread, mask);
        let zero = self.b.i64(0);
        self.b.cmpi(IntCompare::Eq, in_group, zero)
    }

    /// Where a box starts in its tensor, innermost axis first.
    fn box_at(&mut self, dst: &View, own: Val<'c>, row: u64, column: u64) -> Emit<Vec<Val<'c>>> {
        let mut at = Vec::new();
        let mut spans = 0;
        for slot in dst.slots.iter().rev() {
            let v = match slot {
                Slot::At(v) | Slot::Span { start: v, .. } => self.value(*v)?,
                Slot::Gather { .. } => return Err(self.fault("a gathered copy planned as a box")),
            };
            let mut v = self.b.resize(v, Elem::I32, true);
            if matches!(slot, Slot::Span { .. }) {
                if spans == 0 {
                    v = self.b.add_const(v, column as i64);
                } else {
                    v = self.b.addi(v, own);
                    v = self.b.add_const(v, row as i64);
                }
                spans += 1;
            }
            at.push(v);
        }
        Ok(at)
    }

    fn lane_and_warp(&mut self) -> (Val<'c>, Val<'c>) {
        let thread = self.b.resize(self.thread, Elem::I32, false);
        let mask = self.b.i32(31);
        let lane = self.b.andi(thread, mask);
        let warp = self.b.shr(thread, 5);
        let three = self.b.i32(3);
        let warp = self.b.andi(warp, three);
        (lane, warp)
    }

    /// The address of the 16 bytes with this number in a row, as the 128-byte swizzle places them.
    fn swizzled(&mut self, to: Val<'c>, row: Val<'c>, number: Val<'c>) -> Val<'c> {
        let seven = self.b.i32(7);
        let turn = self.b.andi(row, seven);
        let number = self.b.xori(number, turn);
        let at = self.b.shl(number, 4);
        let line = self.b.shl(row, 7);
        let at = self.b.addi(at, line);
        self.b.addi(at, to)
    }

    /// 64 columns of 16 bits: four 8x8 matrices in one instruction.
    fn write_halves(&mut self, cells: &[Val<'c>], to: Val<'c>) {
        let (row, half) = self.row_and_half();
        for (i, four) in cells.chunks(4).enumerate() {
            let number = self.b.add_const(half, 2 * i as i64);
            let at = self.swizzled(to, row, number);
            self.write_four(four, at);
        }
    }

    /// The same to a place at a multiple of 128, where registers are short: the first address alone is kept, and the others follow from it.
    pub(super) fn write_halves_in_loop(&mut self, cells: &[Val<'c>], to: Val<'c>) {
        let (row, half) = self.row_and_half();
        let first = self.swizzled(to, row, half);
        let first = self.b.hold_address(first);
        for (i, four) in cells.chunks(4).enumerate() {
            let number = self.b.i32(32 * i as i64);
            let at = self.b.xori(first, number);
            self.write_four(four, at);
        }
    }

    /// The row whose address a lane names for four matrices, and which of two columns of them.
    fn row_and_half(&mut self) -> (Val<'c>, Val<'c>) {
        let (lane, warp) = self.lane_and_warp();
        let fifteen = self.b.i32(15);
        let row = self.b.andi(lane, fifteen);
        let base = self.b.shl(warp, 4);
        (self.b.addi(row, base), self.b.shr(lane, 4))
    }

    fn write_four(&mut self, cells: &[Val<'c>], at: Val<'c>) {
        let words: Vec<_> = (cells.iter())
            .map(|&pair| self.b.load(pair, (Elem::I32, 1), 4, None))
            .collect();
        self.b.store_matrices(at, &words);
    }

    /// Columns of 8 or 32 bits, two neighbours at a time.
    fn write_pairs(&mut self, elem: Elem, cells: &[Val<'c>], to: Val<'c>) {
        let bytes = elem.bits() / 8;
        let (lane, warp) = self.lane_and_warp();
        let base = self.b.shl(warp, 4);
        let row = self.b.shr(lane, 2);
        let row = self.b.addi(row, base);
        // A lane's pair of each eight columns starts at this byte.
        let three = self.b.i32(3);
        let pair = self.b.andi(lane, three);
        let byte = self.b.mul_const(pair, i64::from(2 * bytes));
        let part = self.b.shr(byte, 4);
        let fifteen = self.b.i32(15);
        let within = self.b.andi(byte, fifteen);
        for (i, pair) in cells.chunks(2).enumerate() {
            let eight = i as i64 / 2 * 8 * i64::from(bytes);
            let row = self.b.add_const(row, 8 * (i as i64 % 2));
            let number = self.b.add_const(part, eight / 16);
            let at = self.swizzled(to, row, number);
            let at = self.b.addi(at, within);
            let at = self.b.add_const(at, eight % 16);
            let zero = self.b.zero(elem, 2);
            let low = self.b.load(pair[0], (elem, 1), bytes, None);
            let high = self.b.load(pair[1], (elem, 1), bytes, None);
            let v = self.b.insert(low, zero, 0);
            let v = self.b.insert(high, v, 1);
            let p = self.b.shared_pointer(at);
            self.b.store(v, p, 2 * bytes, None);
        }
    }
}
