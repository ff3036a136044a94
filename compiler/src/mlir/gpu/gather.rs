//! Rows that a list names, brought into a slot of a channel by the threads of a role, each in pieces of 16 bytes that arrive by themselves.
//!
//! Eight lanes bring a line of 128 bytes of a row (four one of 64, and one a row that is a piece), and each thread the same piece of every line of
//! its rows: a row is looked up once, and its address is computed once. Rows that the list does not name, or that lie outside the tensor,
//! become zeros.

use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::schedule::{SlotPlace, piece_of_line};
use crate::tile::ir::*;

/// Bytes after which the hardware's swizzle moves on.
const SWIZZLED: u64 = 128;

impl<'c> Emitter<'_, 'c> {
    /// Starts the copies into the slot at `start`; `full` hears of the thread's when they have arrived.
    fn copy_rows(&mut self, src: &View, place: SlotPlace, start: Val<'c>, full: Val<'c>) -> Emit {
        let [
            others @ ..,
            Slot::Gather { index, .. },
            Slot::Span { start: first, .. },
        ] = src.slots.as_slice()
        else {
            return Err(self.fault("rows that are not gathered as planned"));
        };
        let (Base::Param(param), Base::Tile(list)) = (src.base, index.base) else {
            return Err(self.fault("rows that are not gathered as planned"));
        };
        let (memory, extents) = (self.tensor(param)?, self.extents(param));
        let listed = self.tile(list)?;
        let [
            Slot::Span {
                start: listed_from, ..
            },
        ] = index.slots[..]
        else {
            return Err(self.fault("rows that are not gathered as planned"));
        };
        let listed_from = self.value(listed_from)?;
        let bytes = u64::from(memory.dtype.bits()) / 8;
        let rank = src.slots.len();

        // The thread's piece of a line, and its first row. The swizzle turns pieces by the row's number in eights, which is the same for
        // all rows of the thread.
        let line = place.row_bytes;
        let piece_bytes = piece_of_line(line);
        let lanes = line / piece_bytes;
        let at_once = (u64::from(self.threads) / lanes).min(place.rows);
        let mask = self.b.i64(lanes as i64 - 1);
        let piece = self.b.andi(self.thread, mask);
        let row = self
            .b
            .shift_right_signed(self.thread, lanes.trailing_zeros());
        let turn = match lanes {
            1 => mask,
            _ => {
                let period = self
                    .b
                    .shift_right_signed(row, (SWIZZLED / line).trailing_zeros());
                self.b.andi(period, mask)
            }
        };
        let turned = self.b.xori(piece, turn);
        let turned = self.b.mul_const(turned, piece_bytes as i64);
        let to = self.b.mul_const(row, line as i64);
        let to = self.b.addi(to, turned);
        let to = self.b.resize(to, Elem::I32, false);
        let to = self.b.addi(start, to);

        let first = self.value(*first)?;
        let column = self.b.mul_const(piece, (piece_bytes / bytes) as i64);
        let column = self.b.addi(first, column);
        let mut offset = column;
        let mut inside = None;
        for (axis, slot) in others.iter().enumerate() {
            let Slot::At(v) = slot else {
                return Err(self.fault("rows that are not gathered as planned"));
            };
            let at = self.value(*v)?;
            let here = self.b.cmpi(IntCompare::Ult, at, extents[axis]);
            inside = Some(match inside {
                Some(inside) => self.b.andi(inside, here),
                None => here,
            });
            let part = self.times(at, memory.strides[axis]);
            offset = self.b.addi(offset, part);
        }
        let base = self.b.gep(memory.base, offset, memory.elem());
        let whole = self.b.i32(piece_bytes as i64);
        let (zero, none) = (self.b.i64(0), self.b.i32(0));
        let line_elements = (line / bytes) as i64;
        // Where there are more threads than rows, those left over have none.
        let spare = (at_once * lanes < u64::from(self.threads)).then(|| {
            let end = self.b.i64(at_once as i64);
            let has_row = self.b.cmpi(IntCompare::Ult, row, end);
            self.b.begin_if(has_row)
        });
        for pass in 0..place.rows / at_once {
            let at = self.b.add_const(row, (pass * at_once) as i64);
            let at = self.b.addi(listed_from, at);
            let number = self.load(&listed, at);
            let number = self.b.resize(number, Elem::I64, true);
            let mut here = self.b.cmpi(IntCompare::Ult, number, extents[rank - 2]);
            if let Some(inside) = inside {
                here = self.b.andi(here, inside);
            }
            let number = self.b.select(here, number, zero);
            let far = self.times(number, memory.strides[rank - 2]);
            let from = self.b.gep(base, far, memory.elem());
            let size = self.b.select(here, whole, none);
            for block in 0..place.blocks {
                let column = self.b.add_const(column, block as i64 * line_elements);
                let there = self.b.cmpi(IntCompare::Ult, column, extents[rank - 1]);
                let size = self.b.select(there, size, none);
                let from = self
                    .b
                    .offset(from, block as i64 * line_elements * bytes as i64);
                let to = self
                    .b
                    .add_const(to, ((pass * at_once + block * place.rows) * line) as i64);
                self.b.copy_async(to, from, size, piece_bytes);
            }
        }
        if let Some(spare) = spare {
            self.b.end_if(spare);
        }
        self.b.arrive_when_copied(full);
        Ok(())
    }

    /// The next slot of a channel, filled with gathered rows.
    pub(super) fn put_gathered(&mut self, channel: ChannelId, src: &View) -> Emit {
        let (number, ring, slot, _) = self.next_slot(channel, true)?;
        let full = self.barrier_of(&ring, slot, false)?;
        let place = self.network()?.plan.slots[channel.index()];
        let start = self.slot_address(place, slot)?;
        self.copy_rows(src, place, start, full)?;
        self.advance(number);
        Ok(())
    }
}
