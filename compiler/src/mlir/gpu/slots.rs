//! Elements of what a channel brought, read by threads: vectors lie as they are, matrices in blocks of columns and swizzled as products
//! read them.

use super::access::{Memory, Stride};
use super::{Emit, Emitter};
use crate::mlir::build::Val;
use crate::tile::ir::*;

impl<'c> Emitter<'_, 'c> {
    /// A vector where a channel brought it.
    pub(super) fn vector_in_slot(&mut self, tile: TileId) -> Emit<Memory<'c>> {
        let (address, _) = self.slot_of(tile)?;
        let dtype = self.kernel.tile(tile).dtype;
        Ok(Memory {
            base: self.b.shared_pointer(address),
            dtype,
            strides: vec![Stride::Const(1)],
            packed: dtype.bits() == 4,
            constant: false,
        })
    }

    pub(super) fn load_from_slot(&mut self, tile: TileId, index: &[Val<'c>]) -> Emit<Val<'c>> {
        let memory = self.vector_in_slot(tile)?;
        let at = match *index {
            [at] => at,
            [row, column] => self.place_in_slot(tile, row, column)?,
            _ => return Err(self.fault("a slot of more than two axes")),
        };
        Ok(self.load(&memory, at))
    }

    /// The number of an element, as if the slot were a vector. The hardware's swizzle exchanges 16 bytes of a row with others of it by
    /// the number of the 128 bytes that they lie in. Source: CUDA C++ Programming Guide, "TMA Swizzle".
    fn place_in_slot(&mut self, tile: TileId, row: Val<'c>, column: Val<'c>) -> Emit<Val<'c>> {
        let (_, place) = self.slot_of(tile)?;
        let bits = i64::from(self.kernel.tile(tile).dtype.bits());
        let row_bytes = place.row_bytes as i64;
        let in_bits = self.b.mul_const(column, bits);
        let bytes = self.b.shift_right_signed(in_bits, 3);
        let mask = self.b.i64(row_bytes - 1);
        let within = self.b.andi(bytes, mask);
        let block = self.b.shift_right_signed(bytes, row_bytes.trailing_zeros());
        let block = self.b.mul_const(block, place.rows as i64 * row_bytes);
        let line = self.b.mul_const(row, row_bytes);
        let line = self.b.addi(line, within);
        let turn = self.b.shift_right_signed(line, 7);
        let parts = self.b.i64(row_bytes / 16 - 1);
        let turn = self.b.andi(turn, parts);
        let turn = self.b.shl(turn, 4);
        let line = self.b.xori(line, turn);
        let byte = self.b.addi(block, line);
        if bits < 8 {
            let one = self.b.i64(1);
            let odd = self.b.andi(column, one);
            let first = self.b.mul_const(byte, 8 / bits);
            return Ok(self.b.addi(first, odd));
        }
        Ok(self.b.shift_right_signed(byte, (bits / 8).trailing_zeros()))
    }
}
