//! Elements of what a channel brought, read by threads: vectors lie as they are, matrices in blocks of columns and swizzled as products
//! read them.

use super::access::{Memory, Stride};
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Val};
use crate::mlir::scalar::stored_as;
use crate::schedule::SlotPlace;
use crate::schedule::access::access;
use crate::schedule::layout::gcd;
use crate::tile::ir::*;
use tessera_artifact::DType;

impl<'c> Emitter<'_, 'c> {
    /// A vector where a channel brought it.
    pub(super) fn vector_in_slot(&mut self, tile: TileId) -> Emit<Memory<'c>> {
        let address = self.slot_of(tile)?.0.address;
        let dtype = self.kernel.tile(tile).dtype;
        Ok(Memory {
            base: self.b.shared_pointer(address),
            dtype,
            strides: vec![Stride::Const(1)],
            packed: dtype.bits() == 4,
            constant: false,
        })
    }

    pub(super) fn load_from_slot(&mut self, tile: TileId, index: &[ValueId]) -> Emit<Val<'c>> {
        if let Some(run) = self.run_in_slot(tile, index) {
            return self.load_of_run(tile, index, run);
        }
        let index = self.values(index)?;
        let memory = self.vector_in_slot(tile)?;
        let at = match index[..] {
            [at] => at,
            [row, column] => self.place_in_slot(tile, row, column)?,
            _ => return Err(self.fault("a slot of more than two axes")),
        };
        Ok(self.load(&memory, at))
    }

    /// Neighbours in a row of a matrix that the map in hand reads one after the other, if its last axis goes along the row; they lie in one
    /// part of 16 bytes. Longer ones come in words of 64 bits.
    fn run_in_slot(&self, tile: TileId, index: &[ValueId]) -> Option<u64> {
        // Of a word of 32 bits the hardware's conversion reads either half.
        let word = match self.kernel.tile(tile).dtype {
            DType::E4M3 => 32,
            _ => 64,
        };
        self.run_within(tile, index, word)
    }

    /// That of at most so many bits.
    fn run_within(&self, tile: TileId, index: &[ValueId], most: u64) -> Option<u64> {
        let here = self.here.as_ref()?;
        let bits = u64::from(self.kernel.tile(tile).dtype.bits());
        let run = gcd(here.layout.run(), most / bits);
        let word = run * bits;
        let [_, last] = access(self.kernel, here.body, index)?[..] else {
            return None;
        };
        let along = last.axis == here.layout.shape.len().checked_sub(1) && last.scale == 1;
        let whole = along && last.offset.is_multiple_of(run);
        (whole && run > 1 && word >= 8 && word.is_power_of_two()).then_some(run)
    }

    /// The element in hand of a run that is loaded at its first.
    fn load_of_run(&mut self, tile: TileId, index: &[ValueId], run: u64) -> Emit<Val<'c>> {
        let dtype = self.kernel.tile(tile).dtype;
        let all = self.run_at(tile, index, run)?;
        let part = self.part_of_run(run);
        let own = self.b.shr(all, part * dtype.bits());
        if dtype.bits() < 8 {
            let own = self.b.resize(own, Elem::I8, false);
            let mask = self.b.int(Elem::I8, 1, 0xf);
            return Ok(self.b.andi(own, mask));
        }
        let own = self.b.resize(own, stored_as(dtype).as_int(), false);
        let own = self.b.bitcast(own, stored_as(dtype));
        let own = self.b.from_stored(own, dtype);
        self.note_pair(dtype, own, all, part);
        Ok(own)
    }

    /// An i32 with four codes of 4 bits from the element in hand on, in its lower half or in its upper one, if they come in runs of four at least.
    pub(super) fn codes_in_slot(
        &mut self,
        tile: TileId,
        index: &[ValueId],
    ) -> Emit<Option<(Val<'c>, bool)>> {
        let Some(run) = self
            .run_in_slot(tile, index)
            .filter(|run| run.is_multiple_of(4))
        else {
            return Ok(None);
        };
        let part = self.part_of_run(run);
        let run = self.run_at(tile, index, run)?;
        let word = self.b.shr(run, part / 8 * 32);
        Ok(Some((self.b.resize(word, Elem::I32, false), part % 8 >= 4)))
    }

    /// The number of the element in hand in its run.
    fn part_of_run(&self, run: u64) -> u32 {
        self.here.as_ref().map_or(0, |h| h.register % run) as u32
    }

    /// Whether a thread of the role in hand has registers for four more words; where it stores what it computes at once, it has.
    fn has_spare_words(&self) -> Emit<bool> {
        let network = self.network()?;
        if self.stores_at_once() {
            return Ok(true);
        }
        let role = &network.plan.roles[network.role];
        let own = role.registers.unwrap_or(network.plan.entry_registers);
        Ok(role.needed + 4 <= own)
    }

    /// The run of the element in hand. 16 bytes are loaded at once where registers allow, else 8: lanes that read 8 bytes in 16 meet in a bank.
    fn run_at(&mut self, tile: TileId, index: &[ValueId], run: u64) -> Emit<Val<'c>> {
        let bits = self.kernel.tile(tile).dtype.bits();
        let word = match run as u32 * bits {
            8 => Elem::I8,
            16 => Elem::I16,
            32 => Elem::I32,
            _ => Elem::I64,
        };
        let most = if self.has_spare_words()? { 128 } else { 64 };
        let runs = [most, 64].map(|most| self.run_within(tile, index, most));
        let words = runs.into_iter().flatten().next().unwrap_or(run) / run;
        let part = self.part_of_run(words * run);
        if part == 0 {
            let memory = self.vector_in_slot(tile)?;
            let (_, place) = self.slot_of(tile)?;
            let (at, offsets) = self.split_index(index)?;
            let byte = self.byte_in_slot(place, u64::from(bits), at, offsets);
            let p = self.b.gep(memory.base, byte, Elem::I8);
            let lanes = words as u32;
            let all = self.b.load(p, (word, lanes), lanes * word.bits() / 8, None);
            let all = (0..lanes).map(|lane| self.b.extract(all, lane)).collect();
            self.slot_runs.insert(tile, all);
        }
        let all = self.slot_runs.get(&tile);
        match all.and_then(|all| all.get((u64::from(part) / run) as usize)) {
            Some(&word) => Ok(word),
            None => Err(self.fault("a run of a slot that was not loaded")),
        }
    }

    /// The coordinates that an access to a matrix names in the element in hand: what differs from thread to thread, and what is known besides.
    fn split_index(&self, index: &[ValueId]) -> Emit<([Val<'c>; 2], [u64; 2])> {
        let &[row, column] = index else {
            return Err(self.fault("a run of a slot of other than two axes"));
        };
        let mut split = ([self.value(row)?, self.value(column)?], [0; 2]);
        let Some(here) = &self.here else {
            return Ok(split);
        };
        let offsets = here.layout.of_register(here.register);
        let access = access(self.kernel, here.body, index).unwrap_or_default();
        for (i, along) in access.iter().enumerate() {
            if let (Some(axis), 1) = (along.axis, along.scale) {
                split.0[i] = here.base[axis];
                split.1[i] = offsets[axis] + along.offset;
            }
        }
        Ok(split)
    }

    /// The number of an element, as if the slot were a vector. The hardware's swizzle exchanges 16 bytes of a row with others of it by
    /// the number of the 128 bytes that they lie in. Source: CUDA C++ Programming Guide, "TMA Swizzle".
    fn place_in_slot(&mut self, tile: TileId, row: Val<'c>, column: Val<'c>) -> Emit<Val<'c>> {
        let (_, place) = self.slot_of(tile)?;
        let bits = i64::from(self.kernel.tile(tile).dtype.bits());
        let byte = self.byte_in_slot(place, bits as u64, [row, column], [0; 2]);
        if bits < 8 {
            let one = self.b.i64(1);
            let odd = self.b.andi(column, one);
            let first = self.b.mul_const(byte, 8 / bits);
            return Ok(self.b.addi(first, odd));
        }
        Ok(self.b.shift_right_signed(byte, (bits / 8).trailing_zeros()))
    }

    /// Where an element starts in a slot, which is `offsets` behind `at`; of two codes of 4 bits in a byte, the byte. Whole blocks of columns and
    /// whole eights of rows, after which the swizzle begins anew, move it by a number that is known: loops that store what they compute, whose
    /// registers are few, keep so one address for many. (Others are no faster so, and some 2 % slower.)
    pub(super) fn byte_in_slot(
        &mut self,
        place: SlotPlace,
        bits: u64,
        at: [Val<'c>; 2],
        offsets: [u64; 2],
    ) -> Val<'c> {
        let anew = [8, place.row_bytes * 8 / bits];
        let [rows, columns] = match self.stores_at_once() {
            true => [0, 1].map(|i| offsets[i] / anew[i] * anew[i]),
            false => [0; 2],
        };
        let row = self.b.add_const(at[0], (offsets[0] - rows) as i64);
        let column = self.b.add_const(at[1], (offsets[1] - columns) as i64);
        let known = rows * place.row_bytes + columns / anew[1] * place.rows * place.row_bytes;
        let row_bytes = place.row_bytes as i64;
        let in_bits = self.b.mul_const(column, bits as i64);
        let bytes = self.b.shift_right_signed(in_bits, 3);
        let mask = self.b.i64(row_bytes - 1);
        let within = self.b.andi(bytes, mask);
        let block = self.b.shift_right_signed(bytes, row_bytes.trailing_zeros());
        let block = self.b.mul_const(block, place.rows as i64 * row_bytes);
        let line = self.b.mul_const(row, row_bytes);
        let mut line = self.b.addi(line, within);
        if row_bytes > 16 {
            let turn = self.b.shift_right_signed(line, 7);
            let parts = self.b.i64(row_bytes / 16 - 1);
            let turn = self.b.andi(turn, parts);
            let turn = self.b.shl(turn, 4);
            line = self.b.xori(line, turn);
        }
        let byte = self.b.addi(block, line);
        self.b.add_const(byte, known as i64)
    }
}
