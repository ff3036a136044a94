//! `topk`. In a short line, or one of 64-bit elements, the place of an element is the number of elements that come before it, so every
//! thread places its share; of a long line the first k are selected and then sorted (`select`).

use super::access::Memory;
use super::select;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, FloatCompare, IntCompare, Val};
use crate::tile::ir::*;
use tessera_artifact::DType;

/// One line of the source.
struct Line<'c> {
    memory: Memory<'c>,
    dtype: DType,
    start: Val<'c>,
    smallest: bool,
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn top_k(
        &mut self,
        values: TileId,
        indices: TileId,
        src: TileId,
        smallest: bool,
    ) -> Emit {
        let kernel = self.kernel;
        let tile = kernel.tile(src);
        let (Some(&n), Some(&k)) = (tile.shape.last(), kernel.tile(values).shape.last()) else {
            return Err(self.fault("`topk` of a tile without an axis"));
        };
        let total = tile.elements();
        if total == 0 || k == 0 {
            return Ok(());
        }
        if select::takes(n, k, tile.dtype, self.threads) {
            return self.select_and_sort(values, indices, src, smallest);
        }
        let values = self.tile(values)?;
        let indices = self.tile(indices)?;
        let memory = self.tile(src)?;
        let share = self.begin_share(total);
        let point = self.point(share.iv, &[total / n, n]);
        let (number, i) = (point[0], point[1]);
        let line = Line {
            memory,
            dtype: tile.dtype,
            start: self.b.mul_const(number, n as i64),
            smallest,
        };
        let x = self.load(&line.memory, share.iv);
        let x_key = self.key(x, line.dtype);
        let (lo, hi) = (self.b.i64(0), self.b.i64(n as i64));
        let none = self.b.i64(0);
        let open = self.b.begin_for(lo, hi, 1, &[none]);
        let at = self.b.addi(line.start, open.iv);
        let y = self.load(&line.memory, at);
        let y_key = self.key(y, line.dtype);
        let before = self.comes_before(&line, (y_key, open.iv), (x_key, i));
        let more = self.b.resize(before, Elem::I64, false);
        let rank = self.b.addi(open.carried[0], more);
        let rank = self.b.end_for(open, &[rank])[0];
        let k_value = self.b.i64(k as i64);
        let chosen = self.b.cmpi(IntCompare::Slt, rank, k_value);
        let writing = self.b.begin_if(chosen);
        let to = self.b.mul_const(number, k as i64);
        let to = self.b.addi(to, rank);
        self.store(&values, to, x);
        let index = self.b.resize(i, Elem::I32, false);
        self.store(&indices, to, index);
        self.b.end_if(writing);
        self.end_share(share);
        Ok(())
    }

    /// The element in the type that it is compared in.
    fn key(&mut self, v: Val<'c>, dtype: DType) -> Val<'c> {
        match dtype {
            DType::F64 => v,
            d if d.is_float() => self.b.widen(v, d),
            DType::Bool => self.b.resize(v, Elem::I32, false),
            _ => v,
        }
    }

    /// Whether element (y, j) stands before (x, i): the greater (or smaller) first, equal ones by rising index, NaN last.
    fn comes_before(
        &mut self,
        line: &Line<'c>,
        (y, j): (Val<'c>, Val<'c>),
        (x, i): (Val<'c>, Val<'c>),
    ) -> Val<'c> {
        let earlier = self.b.cmpi(IntCompare::Slt, j, i);
        if !y.elem.is_float() {
            let signed = line.dtype.is_signed_int();
            let first = match (line.smallest, signed) {
                (false, true) => IntCompare::Sgt,
                (false, false) => IntCompare::Ugt,
                (true, true) => IntCompare::Slt,
                (true, false) => IntCompare::Ult,
            };
            let wins = self.b.cmpi(first, y, x);
            let same = self.b.cmpi(IntCompare::Eq, y, x);
            let tie = self.b.andi(same, earlier);
            return self.b.ori(wins, tie);
        }
        let first = if line.smallest {
            FloatCompare::Olt
        } else {
            FloatCompare::Ogt
        };
        let wins = self.b.cmpf(first, y, x);
        let same = self.b.cmpf(FloatCompare::Oeq, y, x);
        let y_nan = self.b.cmpf(FloatCompare::Uno, y, y);
        let x_nan = self.b.cmpf(FloatCompare::Uno, x, x);
        let both_nan = self.b.andi(y_nan, x_nan);
        let same = self.b.ori(same, both_nan);
        let tie = self.b.andi(same, earlier);
        let yes = self.b.int(Elem::I1, 1, 1);
        let y_number = self.b.xori(y_nan, yes);
        let only_x_nan = self.b.andi(x_nan, y_number);
        let wins = self.b.ori(wins, only_x_nan);
        self.b.ori(wins, tie)
    }
}
