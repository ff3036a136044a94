//! `dot` on tensor cores: the right operand from a slot of a channel, the left one from a slot or from registers, sums in registers.
//!
//! A warpgroup multiplies 64 rows by up to 256 columns in one instruction, over 32 bytes of k; instructions follow in rising k.

use super::hopper::{Left, Wgmma};
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Val};
use crate::schedule::SlotPlace;
use crate::tile::ir::*;
use tessera_artifact::DType;

/// Bytes of k in one instruction.
const K_BYTES: u64 = 32;

/// The left operand: in a slot, with the lower half of its descriptor, or the words of a thread's registers.
enum LeftPart<'c> {
    Shared(Side<'c>, Val<'c>),
    Registers(Vec<Val<'c>>),
}

/// An operand: rows of the product (its columns for `b`) by k, in blocks of columns as it lies in a slot.
struct Side<'c> {
    /// Where the part that the product reads starts in slot 0, i32.
    start: Val<'c>,
    slot: Val<'c>,
    place: SlotPlace,
    /// k runs along a row; otherwise rows follow k.
    k_along_row: bool,
    /// Rows of the product, or its columns.
    outer: u64,
    k: u64,
    element_bytes: u64,
}

impl Side<'_> {
    /// From one block of columns to the next.
    fn block_bytes(&self) -> u64 {
        self.place.rows * self.place.row_bytes
    }
}

impl<'c> Emitter<'_, 'c> {
    /// Issues the products of one `dot`; gives its accumulator.
    pub(super) fn tensor_core_dot(
        &mut self,
        op: OpId,
        acc: &TileView,
        a: &Operand,
        b: &Operand,
        accumulate: bool,
    ) -> Emit {
        let tile = self.kernel.tile(a.view.tile);
        let dtype = tile.dtype;
        let element_bytes = u64::from(dtype.bits()) / 8;
        let operand = match dtype {
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::E4M3 => "e4m3",
            DType::E5M2 => "e5m2",
            _ => return Err(self.fault("a product that tensor cores don't do")),
        };
        let k_step = K_BYTES / element_bytes;
        let groups = u64::from(self.threads / 128);
        let right = self.operand_in_slot(b, !b.transposed)?;
        let right_start = self.descriptor_start(&right, right.start)?;
        let left = match self.layouts.contains_key(&a.view.tile) {
            true => LeftPart::Registers(self.words(a.view.tile)?),
            false => {
                let left = self.operand_in_slot(a, a.transposed)?;
                // The warpgroup's own rows.
                let rows = left.outer / groups;
                let own = self
                    .b
                    .mul_const(self.group, (rows * left.place.row_bytes) as i64);
                let own = self.b.addi(left.start, own);
                let start = self.descriptor_start(&left, own)?;
                LeftPart::Shared(left, start)
            }
        };
        let (rows, steps) = match &left {
            LeftPart::Shared(left, _) => (left.outer / groups, left.k / k_step),
            LeftPart::Registers(_) => (tile.shape[0] / groups, tile.shape[1] / k_step),
        };
        let columns = right.outer;
        let most = self.network()?.plan.most_columns();
        let cells = self.cells(acc.tile)?;

        self.settle()?;
        self.b.wgmma_fence();
        for row in (0..rows).step_by(64) {
            let mut column = 0;
            while column < columns {
                let wide = (columns - column).min(most);
                let first = ((row / 64) * (columns / 2) + column / 2) as usize;
                let part = first..first + (wide / 2) as usize;
                // New sums too name the registers' old values, so that they stay in the same registers.
                let mut sums: Vec<Val<'c>> = (part.clone())
                    .map(|i| self.b.load(cells[i], (Elem::F32, 1), 4, None))
                    .collect();
                for step in 0..steps {
                    let k = step * k_step;
                    let from_a = match &left {
                        LeftPart::Shared(left, start) => {
                            Left::Shared(self.descriptor(left, *start, row, k))
                        }
                        LeftPart::Registers(words) => {
                            let at = 4 * (row / 64 * steps + step) as usize;
                            let four = words.get(at..at + 4).and_then(|w| w.try_into().ok());
                            match four {
                                Some(four) => Left::Registers(four),
                                None => return Err(self.fault("an operand of too few registers")),
                            }
                        }
                    };
                    let from_b = self.descriptor(&right, right_start, column, k);
                    let product = Wgmma {
                        operand,
                        k: k_step as u32,
                        starts: !accumulate && step == 0,
                        b_by_rows: (element_bytes == 2).then_some(!right.k_along_row),
                    };
                    sums = self.b.wgmma(product, &sums, from_a, from_b);
                }
                for (i, sum) in part.zip(sums) {
                    self.b.store(sum, cells[i], 4, None);
                }
                column += wide;
            }
        }
        let words = match left {
            LeftPart::Shared(..) => vec![],
            LeftPart::Registers(words) => words,
        };
        self.after_products(op, acc.tile, words)
    }

    /// The words of a left operand in registers, as they are now.
    fn words(&mut self, tile: TileId) -> Emit<Vec<Val<'c>>> {
        let cells = self.cells(tile)?;
        Ok(cells
            .iter()
            .map(|&cell| self.b.load(cell, (Elem::I32, 1), 4, None))
            .collect())
    }

    fn operand_in_slot(&mut self, operand: &Operand, k_first: bool) -> Emit<Side<'c>> {
        let tile = operand.view.tile;
        let (bound, place) = self.slot_of(tile)?;
        let slot = bound.slot;
        let dtype = self.kernel.tile(tile).dtype;
        let element_bytes = dtype.bits() as u64 / 8;
        let &[
            Slot::Span {
                start: row,
                len: rows,
            },
            Slot::Span {
                start: column,
                len: columns,
            },
        ] = operand.view.slots.as_slice()
        else {
            return Err(self.fault("a product of a part of lower rank was planned"));
        };
        let (Some(row), Some(column)) = (
            self.kernel.const_index(row),
            self.kernel.const_index(column),
        ) else {
            return Err(self.fault("a product of a part that moves was planned"));
        };
        // Rows start in eights and columns in whole blocks, as planned: the swizzle stays where it is.
        let block_columns = place.row_bytes / element_bytes;
        let offset = column as u64 / block_columns * place.rows * place.row_bytes
            + row as u64 * place.row_bytes;
        let shared = self.network()?.shared;
        let start = self.b.add_const(shared, (place.offset + offset) as i64);
        let (outer, k) = if k_first {
            (columns, rows)
        } else {
            (rows, columns)
        };
        Ok(Side {
            start,
            slot,
            place,
            k_along_row: !k_first,
            outer,
            k,
            element_bytes,
        })
    }

    /// The matrix descriptor of the part that starts at `outer` and `k`; `start`: the lower half of that of the whole. Every part's
    /// distance is added there: shared memory ends before the field of the address does. Source: PTX ISA, "Matrix Descriptor Format" of
    /// wgmma.
    fn descriptor(&mut self, side: &Side<'c>, start: Val<'c>, outer: u64, k: u64) -> Val<'c> {
        let SlotPlace { row_bytes, .. } = side.place;
        let block_columns = row_bytes / side.element_bytes;
        let block = side.block_bytes();
        let offset = match side.k_along_row {
            true => {
                k / block_columns * block
                    + k % block_columns * side.element_bytes
                    + outer * row_bytes
            }
            // Blocks of columns are `block` apart; eight rows of k are one period of the swizzle.
            false => outer / block_columns * block + k * row_bytes,
        };
        let swizzle: u64 = match row_bytes {
            128 => 1,
            64 => 2,
            _ => 3,
        };
        let low = self.b.add_const(start, (offset / 16) as i64);
        let low = self.b.resize(low, Elem::I64, false);
        let high = self
            .b
            .i64((swizzle << 62 | (8 * row_bytes / 16) << 32) as i64);
        self.b.ori(low, high)
    }

    /// The lower half of the descriptor of what starts at `address` in slot 0, moved to the slot at hand: what does not change from step to step
    /// is computed once, before the loop.
    fn descriptor_start(&mut self, side: &Side<'c>, address: Val<'c>) -> Emit<Val<'c>> {
        let leading = match side.k_along_row {
            true => 1,
            false => side.block_bytes() / 16,
        };
        let four = self.b.i32(4);
        let mut at = self.b.binary("arith.shrui", address, four);
        if self.cluster()? > 1 {
            // In a cluster an address names its CTA too, above the bits that a descriptor has for it.
            let field = self.b.i32(0x3fff);
            at = self.b.andi(at, field);
        }
        let leading = self.b.i32((leading << 16) as i64);
        let first = self.b.ori(at, leading);
        let moved = self.b.mul_const(side.slot, (side.place.stride / 16) as i64);
        Ok(self.b.addi(first, moved))
    }

    /// Waits until at most `left` groups of products of this warpgroup are on their way, and takes the sums of `accs`, which are no longer.
    pub(super) fn await_products(&mut self, left: u32, accs: &[TileId]) -> Emit {
        for &acc in accs {
            let cells = self.cells(acc)?;
            let sums: Vec<_> = cells
                .iter()
                .map(|&c| self.b.load(c, (Elem::F32, 1), 4, None))
                .collect();
            let sums = self.b.wgmma_wait_for(left, &sums);
            for (cell, sum) in cells.iter().zip(sums) {
                self.b.store(sum, *cell, 4, None);
            }
        }
        Ok(())
    }
}
