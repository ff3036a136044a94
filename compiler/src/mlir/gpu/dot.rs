//! `dot`: a block of result elements per thread, k ascending for each.
//!
//! A thread's rows and columns lie apart by as many as there are blocks, so that neighbouring threads read neighbouring columns. How many
//! elements a thread takes changes nothing about any of them.

use super::access::{Memory, Stride};
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::tile::ir::*;
use tessera_artifact::DType;

/// An operand or the accumulator: element (row, column) is at `start + row * row_stride + column * column_stride`.
struct Matrix<'c> {
    memory: Memory<'c>,
    start: Val<'c>,
    row_stride: Stride<'c>,
    column_stride: Stride<'c>,
    rows: u64,
    columns: u64,
}

/// Result elements of a thread: so many rows by so many columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    rows: u64,
    columns: u64,
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn dot(
        &mut self,
        acc: &TileView,
        a: &Operand,
        b: &Operand,
        accumulate: bool,
    ) -> Emit {
        let acc = self.matrix(acc, false)?;
        let a = self.matrix(&a.view, a.transposed)?;
        let b = self.matrix(&b.view, b.transposed)?;
        if acc.rows * acc.columns == 0 {
            return Ok(());
        }
        let block = block_of(acc.rows, acc.columns, self.threads as u64);
        let (row_step, column_step) = (acc.rows / block.rows, acc.columns / block.columns);
        let share = self.begin_share(row_step * column_step);
        let point = self.point(share.iv, &[row_step, column_step]);
        let rows: Vec<_> = (0..block.rows)
            .map(|i| self.b.add_const(point[0], (i * row_step) as i64))
            .collect();
        let columns: Vec<_> = (0..block.columns)
            .map(|j| self.b.add_const(point[1], (j * column_step) as i64))
            .collect();
        let places: Vec<_> = rows
            .iter()
            .flat_map(|&r| columns.iter().map(move |&c| (r, c)))
            .collect();
        let mut sums = Vec::new();
        for &(r, c) in &places {
            sums.push(match accumulate {
                true => self.matrix_element(&acc, r, c),
                false => {
                    let elem = acc.memory.elem();
                    self.b.zero(elem, 1)
                }
            });
        }
        let sums = match a.memory.dtype {
            DType::BF16 => self.sum_in_pairs(&a, &b, &rows, &columns, sums),
            _ => self.sum_ascending(&a, &b, &rows, &columns, sums),
        };
        for (&(r, c), sum) in places.iter().zip(sums) {
            let at = self.matrix_at(&acc, r, c);
            self.store(&acc.memory, at, sum);
        }
        self.end_share(share);
        Ok(())
    }

    fn matrix(&mut self, view: &TileView, transposed: bool) -> Emit<Matrix<'c>> {
        let memory = self.tile(view.tile)?;
        let mut start = self.b.i64(0);
        let mut axes = Vec::new();
        for (slot, &stride) in view.slots.iter().zip(&memory.strides) {
            let at = match slot {
                Slot::At(v) => *v,
                Slot::Span { start, len } => {
                    axes.push((stride, *len));
                    *start
                }
                Slot::Gather { .. } => return Err(self.unsupported("a `dot` of gathered rows")),
            };
            let at = self.value(at)?;
            let part = self.times(at, stride);
            start = self.b.addi(start, part);
        }
        if transposed {
            axes.reverse();
        }
        let &[(row_stride, rows), (column_stride, columns)] = &axes[..] else {
            return Err(self.fault("an operand of `dot` that is no matrix"));
        };
        Ok(Matrix {
            memory,
            start,
            row_stride,
            column_stride,
            rows,
            columns,
        })
    }

    fn matrix_at(&mut self, m: &Matrix<'c>, row: Val<'c>, column: Val<'c>) -> Val<'c> {
        let row = self.times(row, m.row_stride);
        let column = self.times(column, m.column_stride);
        let at = self.b.addi(m.start, row);
        self.b.addi(at, column)
    }

    fn matrix_element(&mut self, m: &Matrix<'c>, row: Val<'c>, column: Val<'c>) -> Val<'c> {
        let at = self.matrix_at(m, row, column);
        self.load(&m.memory, at)
    }

    /// Column k of `a` at `rows`, row k of `b` at `columns`, as `dot` multiplies them.
    fn operands(
        &mut self,
        a: &Matrix<'c>,
        b: &Matrix<'c>,
        rows: &[Val<'c>],
        columns: &[Val<'c>],
        k: Val<'c>,
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        let mut left = Vec::new();
        for &r in rows {
            let v = self.matrix_element(a, r, k);
            left.push(self.factor(v, a.memory.dtype));
        }
        let mut right = Vec::new();
        for &c in columns {
            let v = self.matrix_element(b, k, c);
            right.push(self.factor(v, b.memory.dtype));
        }
        (left, right)
    }

    fn factor(&mut self, v: Val<'c>, dtype: DType) -> Val<'c> {
        match dtype {
            DType::F64 | DType::F32 => v,
            DType::Tf32 => self.b.round_to_tf32(v),
            DType::BF16 => {
                let wide = self.b.widen(v, dtype);
                self.flush(wide)
            }
            DType::I8 => self.b.resize(v, Elem::I32, true),
            DType::U8 => self.b.resize(v, Elem::I32, false),
            narrow => self.b.widen(v, narrow),
        }
    }

    /// A subnormal f32 becomes the zero of its sign.
    fn flush(&mut self, v: Val<'c>) -> Val<'c> {
        let bits = self.b.bitcast(v, Elem::I32);
        let exponent = self.b.int(Elem::I32, 1, 0x7f80_0000);
        let exponent = self.b.andi(bits, exponent);
        let zero = self.b.zero(Elem::I32, 1);
        let small = self.b.cmpi(IntCompare::Eq, exponent, zero);
        let sign = self.b.int(Elem::I32, 1, 0x8000_0000);
        let sign = self.b.andi(bits, sign);
        let flushed = self.b.select(small, sign, bits);
        self.b.bitcast(flushed, Elem::F32)
    }

    fn multiply_add(&mut self, x: Val<'c>, y: Val<'c>, sum: Val<'c>) -> Val<'c> {
        if sum.elem.is_float() {
            return self.b.fma(x, y, sum);
        }
        let product = self.b.muli(x, y);
        self.b.addi(product, sum)
    }

    fn sum_ascending(
        &mut self,
        a: &Matrix<'c>,
        b: &Matrix<'c>,
        rows: &[Val<'c>],
        columns: &[Val<'c>],
        sums: Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let (lo, hi) = (self.b.i64(0), self.b.i64(a.columns as i64));
        let open = self.b.begin_for(lo, hi, 1, &sums);
        let (left, right) = self.operands(a, b, rows, columns, open.iv);
        let carried = open.carried.clone();
        let mut next = Vec::new();
        for (i, &sum) in carried.iter().enumerate() {
            let (x, y) = (left[i / columns.len()], right[i % columns.len()]);
            next.push(self.multiply_add(x, y, sum));
        }
        self.b.end_for(open, &next)
    }

    /// bf16: pairs ascending, within a pair first the odd k then the even one, subnormals flushed at every step.
    fn sum_in_pairs(
        &mut self,
        a: &Matrix<'c>,
        b: &Matrix<'c>,
        rows: &[Val<'c>],
        columns: &[Val<'c>],
        sums: Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let sums: Vec<_> = sums.into_iter().map(|s| self.flush(s)).collect();
        let even = a.columns & !1;
        let (lo, hi) = (self.b.i64(0), self.b.i64(even as i64));
        let open = self.b.begin_for(lo, hi, 2, &sums);
        let odd = self.b.add_const(open.iv, 1);
        let (odd_left, odd_right) = self.operands(a, b, rows, columns, odd);
        let (left, right) = self.operands(a, b, rows, columns, open.iv);
        let carried = open.carried.clone();
        let mut next = Vec::new();
        for (i, &sum) in carried.iter().enumerate() {
            let (row, column) = (i / columns.len(), i % columns.len());
            let sum = self.b.fma(odd_left[row], odd_right[column], sum);
            let sum = self.flush(sum);
            let sum = self.b.fma(left[row], right[column], sum);
            next.push(self.flush(sum));
        }
        let mut sums = self.b.end_for(open, &next);
        if even < a.columns {
            // The last k pairs with zero.
            let zero = self.b.f32(1, 0.0);
            let (left, right) = self.operands(a, b, rows, columns, hi);
            for (i, sum) in sums.iter_mut().enumerate() {
                let (row, column) = (i / columns.len(), i % columns.len());
                let partial = self.b.fma(zero, zero, *sum);
                let partial = self.b.fma(left[row], right[column], partial);
                *sum = self.flush(partial);
            }
        }
        sums
    }
}

/// The largest block of up to 4 by 4 that leaves something to do for every thread.
fn block_of(rows: u64, columns: u64, threads: u64) -> Block {
    let mut best = Block {
        rows: 1,
        columns: 1,
    };
    for r in [1, 2, 4] {
        for c in [1, 2, 4] {
            let fits = rows.is_multiple_of(r) && columns.is_multiple_of(c);
            let busy = (rows / r) * (columns / c) >= threads;
            if fits && busy && r * c > best.rows * best.columns {
                best = Block {
                    rows: r,
                    columns: c,
                };
            }
        }
    }
    best
}
