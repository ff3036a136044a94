//! Folds and scans in the declared order.
//!
//! A tile is `[outer, n, inner]` around the folded axis. With an inner axis the lanes run over it and each lane folds for itself. Along the
//! last axis, `tree(w)` is a vector of w lanes, folded in halves at the end; `ascending` is a chain of single operations, several rows
//! at once so that their latencies overlap. Where every order gives the same bits (integers, min, max, and, or), `ascending` runs as a
//! tree.
//!
//! A fold over nothing is the identity. `ascending` starts from the identity, a tree's lanes each from their first element.

use super::access::{Form, Memory};
use super::pointwise::segments;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Val};
use crate::mlir::scalar::held_as;
use crate::tile::ir::*;
use tessera_artifact::DType;

/// Loops of up to this many steps are left to LLVM to unroll.
const FEW_STEPS: i64 = 4;
/// Chains of single operations that run side by side.
const ROWS: u64 = 8;
/// A wider tree folds through memory.
const MAX_TREE_LANES: u64 = 64;

#[derive(Clone, Copy)]
struct Fold {
    op: FoldOp,
    dtype: DType,
    outer: u64,
    n: u64,
    inner: u64,
    /// The first element is added to the identity: a sum then never gives -0.
    from_identity: bool,
}

impl Fold {
    fn of(op: FoldOp, dtype: DType, shape: &[u64], axis: u32) -> Fold {
        let axis = axis as usize;
        Fold {
            op,
            dtype,
            outer: shape[..axis].iter().product(),
            n: shape[axis],
            inner: shape[axis + 1..].iter().product(),
            from_identity: op == FoldOp::Sum && dtype.is_float(),
        }
    }

    /// Any order gives the same bits.
    fn is_exact(&self) -> bool {
        !self.dtype.is_float() || matches!(self.op, FoldOp::Max | FoldOp::Min)
    }

    fn elem(&self) -> Elem {
        held_as(Type::Scalar(self.dtype))
    }
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn reduce(
        &mut self,
        dst: TileId,
        src: TileId,
        axis: u32,
        op: FoldOp,
        order: Order,
    ) -> Emit {
        let tile = self.kernel.tile(src);
        let mut f = Fold::of(op, tile.dtype, &tile.shape, axis);
        f.from_identity &= order == Order::Ascending;
        let (from, to) = (self.row_major(src)?, self.row_major(dst)?);
        if f.outer == 0 || f.inner == 0 {
            return Ok(());
        }
        let order = match order {
            Order::Ascending if f.is_exact() && f.inner == 1 && f.n > 1 => {
                let lanes = self.machine.lanes(4) * 2;
                Order::Tree(lanes.min(f.n.next_power_of_two() as u32 / 2).max(1))
            }
            order => order,
        };
        match order {
            _ if f.n == 0 => self.fold_nothing(f, &to),
            Order::Ascending if f.inner == 1 => self.fold_rows(f, &from, &to),
            Order::Ascending => self.fold_columns(f, &from, &to),
            Order::Tree(1) if f.inner == 1 => self.fold_rows(f, &from, &to),
            Order::Tree(w) if f.inner == 1 && w as u64 <= MAX_TREE_LANES => {
                self.fold_tree(f, w, &from, &to)
            }
            Order::Tree(w) => self.fold_tree_in_memory(f, w as u64, &from, &to),
        }
    }

    pub(super) fn row_major(&self, tile: TileId) -> Emit<Memory<'c>> {
        let t = self.kernel.tile(tile);
        if self.layouts[tile.index()] != super::layout::Layout::row_major(&t.shape) {
            return Err(self.fault(format!(
                "tile `{}` is folded but laid out for `dot`",
                t.name
            )));
        }
        self.tile(tile)
    }

    fn combine(&mut self, f: Fold, a: Val<'c>, b: Val<'c>) -> Emit<Val<'c>> {
        let r = self.b.fold_op(f.op, a, b, f.dtype);
        self.lowered(r)
    }

    /// The first element of a fold.
    fn load_first(&mut self, f: Fold, m: &Memory<'c>, at: Val<'c>, lanes: u32) -> Emit<Val<'c>> {
        let x = self.load_at(m, at, lanes);
        if !f.from_identity {
            return Ok(x);
        }
        let identity = self.b.fold_identity(f.op, f.dtype, lanes);
        self.combine(f, identity, x)
    }

    fn load_at(&mut self, m: &Memory<'c>, at: Val<'c>, lanes: u32) -> Val<'c> {
        let form = match lanes {
            1 => Form::Uniform(at),
            _ => Form::Affine {
                base: at,
                step: 1,
                multiple: 1,
            },
        };
        let v = self.load(m, form, None, lanes);
        self.spread(v, lanes)
    }

    fn store_at(&mut self, m: &Memory<'c>, at: Val<'c>, v: Val<'c>) {
        let form = match v.lanes {
            1 => Form::Uniform(at),
            _ => Form::Affine {
                base: at,
                step: 1,
                multiple: 1,
            },
        };
        let value = self.form_of(v);
        self.store(m, form, value, None, v.lanes);
    }

    /// Runs `body` for `0..count` (at a position that is a constant where there is only one), each time from a fresh block state.
    pub(super) fn repeat(
        &mut self,
        from: i64,
        to: i64,
        step: i64,
        body: impl FnOnce(&mut Self, Val<'c>) -> Emit,
    ) -> Emit {
        // A few steps may be unrolled, so that stack tiles become registers.
        let rolled = (to - from) / step > FEW_STEPS;
        self.steps(rolled, (from, to, step), body)
    }

    /// As [`Emitter::repeat`], never unrolled.
    pub(super) fn repeat_rolled(
        &mut self,
        from: i64,
        to: i64,
        step: i64,
        body: impl FnOnce(&mut Self, Val<'c>) -> Emit,
    ) -> Emit {
        self.steps(true, (from, to, step), body)
    }

    fn steps(
        &mut self,
        rolled: bool,
        (from, to, step): (i64, i64, i64),
        body: impl FnOnce(&mut Self, Val<'c>) -> Emit,
    ) -> Emit {
        if to <= from {
            return Ok(());
        }
        let lo = self.b.i64(from);
        if to - from <= step {
            return body(self, lo);
        }
        let hi = self.b.i64(to);
        let open = match rolled {
            true => self.b.begin_rolled_for(lo, hi, step, &[]),
            false => self.b.begin_for(lo, hi, step, &[]),
        };
        body(self, open.iv)?;
        self.b.end_for(open, &[]);
        Ok(())
    }

    fn fold_nothing(&mut self, f: Fold, to: &Memory<'c>) -> Emit {
        self.repeat(0, (f.outer * f.inner) as i64, 1, |e, i| {
            let v = e.b.fold_identity(f.op, f.dtype, 1);
            e.store_at(to, i, v);
            Ok(())
        })
    }

    // ---- lanes over the inner axis -----------------------------------------------------------------------

    /// Lanes for a vector over the inner axis: enough registers to hide an addition's latency.
    fn column_lanes(&self, f: Fold) -> u32 {
        let mut lanes = self.machine.lanes(4) * 4;
        while lanes as u64 > f.inner {
            lanes /= 2;
        }
        lanes.max(1)
    }

    fn fold_columns(&mut self, f: Fold, from: &Memory<'c>, to: &Memory<'c>) -> Emit {
        let (n, inner) = (f.n as i64, f.inner as i64);
        let lanes = self.column_lanes(f);
        self.repeat(0, f.outer as i64, 1, |e, o| {
            let src_row = e.b.mul_const(o, n * inner);
            let dst_row = e.b.mul_const(o, inner);
            let mut done = 0;
            for (width, upto) in segments(inner, lanes) {
                e.repeat(done, upto, width as i64, |e, i| {
                    let first = e.b.addi(src_row, i);
                    let acc = e.load_first(f, from, first, width)?;
                    let (one, end) = (e.b.i64(1), e.b.i64(n));
                    let open = e.b.begin_for(one, end, 1, &[acc]);
                    let at = e.b.mul_const(open.iv, inner);
                    let at = e.b.addi(first, at);
                    let x = e.load_at(from, at, width);
                    let next = e.combine(f, open.carried[0], x)?;
                    let acc = e.b.end_for(open, &[next])[0];
                    let at = e.b.addi(dst_row, i);
                    e.store_at(to, at, acc);
                    Ok(())
                })?;
                done = upto;
            }
            Ok(())
        })
    }

    // ---- along the last axis --------------------------------------------------------------------------------

    /// Chains of single operations, a few rows side by side.
    fn fold_rows(&mut self, f: Fold, from: &Memory<'c>, to: &Memory<'c>) -> Emit {
        let n = f.n as i64;
        let mut done = 0;
        for (rows, upto) in [(ROWS, f.outer / ROWS * ROWS), (1, f.outer)] {
            self.repeat(done, upto as i64, rows as i64, |e, row| {
                let first = e.b.mul_const(row, n);
                let starts: Vec<_> = (0..rows as i64)
                    .map(|r| e.b.add_const(first, r * n))
                    .collect();
                let init = starts
                    .iter()
                    .map(|&s| e.load_first(f, from, s, 1))
                    .collect::<Emit<Vec<_>>>()?;
                let (one, end) = (e.b.i64(1), e.b.i64(n));
                let open = e.b.begin_rolled_for(one, end, 1, &init);
                let mut next = Vec::new();
                for (r, &start) in starts.iter().enumerate() {
                    let at = e.b.addi(start, open.iv);
                    let x = e.load_at(from, at, 1);
                    next.push(e.combine(f, open.carried[r], x)?);
                }
                let sums = e.b.end_for(open, &next);
                for (r, sum) in sums.into_iter().enumerate() {
                    let at = e.b.add_const(row, r as i64);
                    e.store_at(to, at, sum);
                }
                Ok(())
            })?;
            done = upto as i64;
        }
        Ok(())
    }

    /// A vector of `w` lanes per row; several rows side by side where a row is but a register or two.
    fn fold_tree(&mut self, f: Fold, w: u32, from: &Memory<'c>, to: &Memory<'c>) -> Emit {
        let registers = (w * f.elem().bits().max(32)).div_ceil(self.machine.vector_bytes * 8);
        let rows = (4 / registers.max(1)).max(1) as u64;
        let mut done = 0;
        for (rows, upto) in [(rows, f.outer / rows * rows), (1, f.outer)] {
            self.repeat(done, upto as i64, rows as i64, |e, row| {
                e.tree_rows(f, w, from, to, row, rows)
            })?;
            done = upto as i64;
        }
        Ok(())
    }

    fn tree_rows(
        &mut self,
        f: Fold,
        w: u32,
        from: &Memory<'c>,
        to: &Memory<'c>,
        row: Val<'c>,
        rows: u64,
    ) -> Emit {
        let n = f.n as i64;
        let first = self.b.mul_const(row, n);
        let starts: Vec<_> = (0..rows as i64)
            .map(|r| self.b.add_const(first, r * n))
            .collect();
        let whole = f.n / w as u64 * w as u64;
        let rest = (f.n - whole) as u32;
        let mut sums = Vec::new();
        if whole == 0 {
            for &start in &starts {
                let identity = self.b.fold_identity(f.op, f.dtype, w);
                sums.push(self.load_some(from, start, rest, identity));
            }
        } else {
            let init: Vec<_> = starts.iter().map(|&s| self.load_at(from, s, w)).collect();
            sums = init;
            if whole > w as u64 {
                let (lo, hi) = (self.b.i64(w as i64), self.b.i64(whole as i64));
                let open = self.b.begin_for(lo, hi, w as i64, &sums);
                let mut next = Vec::new();
                for (r, &start) in starts.iter().enumerate() {
                    let at = self.b.addi(start, open.iv);
                    let x = self.load_at(from, at, w);
                    next.push(self.combine(f, open.carried[r], x)?);
                }
                sums = self.b.end_for(open, &next);
            }
            if rest > 0 {
                for (sum, &start) in sums.iter_mut().zip(&starts) {
                    let at = self.b.add_const(start, whole as i64);
                    let x = self.load_some(from, at, rest, *sum);
                    let folded = self.combine(f, *sum, x)?;
                    let mask = self.first_lanes(rest, w);
                    *sum = self.b.select(mask, folded, *sum);
                }
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let total = self.halve(f, sum)?;
            let at = self.b.add_const(row, r as i64);
            self.store_at(to, at, total);
        }
        Ok(())
    }

    /// True in the first `count` of `lanes`.
    fn first_lanes(&mut self, count: u32, lanes: u32) -> Val<'c> {
        let lane: Vec<i32> = (0..lanes as i32).collect();
        let lane = self.b.table_i32(&lane);
        let count = self.b.int(Elem::I32, lanes, count as i64);
        self.b
            .cmpi(crate::mlir::build::IntCompare::Ult, lane, count)
    }

    /// `count` elements in the first lanes of `otherwise`, read one power of two after another.
    fn load_some(
        &mut self,
        m: &Memory<'c>,
        at: Val<'c>,
        count: u32,
        otherwise: Val<'c>,
    ) -> Val<'c> {
        let mut v = otherwise;
        let mut done = 0;
        while done < count {
            let width = 1 << (count - done).ilog2();
            let from = self.b.add_const(at, done as i64);
            let part = self.load_at(m, from, width);
            for lane in 0..width {
                let x = self.b.extract(part, lane);
                v = self.b.insert(x, v, done + lane);
            }
            done += width;
        }
        v
    }

    /// Lane l takes lane l + w/2, then l + w/4, … down to one.
    fn halve(&mut self, f: Fold, mut v: Val<'c>) -> Emit<Val<'c>> {
        while v.lanes > 1 {
            let half = v.lanes / 2;
            let low = self.b.slice(v, 0, half);
            let high = self.b.slice(v, half, half);
            v = self.combine(f, low, high)?;
        }
        Ok(v)
    }

    /// Any tree, its lanes in a buffer on the stack: `[w, width]`, where `width` lanes run over the inner axis.
    fn fold_tree_in_memory(&mut self, f: Fold, w: u64, from: &Memory<'c>, to: &Memory<'c>) -> Emit {
        let (n, inner) = (f.n as i64, f.inner as i64);
        let lanes = self.column_lanes(f).min(self.machine.lanes(4));
        // Lanes past the end hold the identity, and folding it changes nothing but the sign of a zero: they are kept.
        let used = w.min(f.n) as i64;
        let elem_bytes = (from.elem.bits() / 8) as u64;
        const STACK: u64 = 16 << 10;
        if w * lanes as u64 * elem_bytes > STACK {
            return Err(self.unsupported(format!("a fold in `tree({w})`")));
        }
        let buffer = Memory {
            base: self.b.alloca(w * lanes as u64 * elem_bytes),
            strides: Vec::new(),
            scope: None,
            ..from.clone()
        };
        self.repeat(0, f.outer as i64, 1, |e, o| {
            let src_row = e.b.mul_const(o, n * inner);
            let dst_row = e.b.mul_const(o, inner);
            let mut done = 0;
            for (width, upto) in segments(inner, lanes) {
                e.repeat(done, upto, width as i64, |e, i| {
                    let first = e.b.addi(src_row, i);
                    e.repeat(0, used, 1, |e, lane| {
                        let start = e.b.mul_const(lane, inner);
                        let start = e.b.addi(first, start);
                        let acc = e.load_at(from, start, width);
                        let second = e.b.add_const(lane, w as i64);
                        let end = e.b.i64(n);
                        let open = e.b.begin_rolled_for(second, end, w as i64, &[acc]);
                        let at = e.b.mul_const(open.iv, inner);
                        let at = e.b.addi(first, at);
                        let x = e.load_at(from, at, width);
                        let next = e.combine(f, open.carried[0], x)?;
                        let acc = e.b.end_for(open, &[next])[0];
                        let at = e.b.mul_const(lane, width as i64);
                        e.store_at(&buffer, at, acc);
                        Ok(())
                    })?;
                    e.repeat(used, w as i64, 1, |e, lane| {
                        let identity = e.b.fold_identity(f.op, f.dtype, width);
                        let at = e.b.mul_const(lane, width as i64);
                        e.store_at(&buffer, at, identity);
                        Ok(())
                    })?;
                    let mut half = w as i64 / 2;
                    while half >= 1 {
                        e.repeat(0, half, 1, |e, lane| {
                            let low_at = e.b.mul_const(lane, width as i64);
                            let high_at = e.b.add_const(low_at, half * width as i64);
                            let low = e.load_at(&buffer, low_at, width);
                            let high = e.load_at(&buffer, high_at, width);
                            let v = e.combine(f, low, high)?;
                            e.store_at(&buffer, low_at, v);
                            Ok(())
                        })?;
                        half /= 2;
                    }
                    let zero = e.b.i64(0);
                    let total = e.load_at(&buffer, zero, width);
                    let at = e.b.addi(dst_row, i);
                    e.store_at(to, at, total);
                    Ok(())
                })?;
                done = upto;
            }
            Ok(())
        })
    }

    // ---- scans ---------------------------------------------------------------------------------------------------

    pub(super) fn scan(&mut self, dst: TileId, src: TileId, axis: u32, op: FoldOp) -> Emit {
        let tile = self.kernel.tile(src);
        let f = Fold::of(op, tile.dtype, &tile.shape, axis);
        let (from, to) = (self.row_major(src)?, self.row_major(dst)?);
        if f.outer == 0 || f.inner == 0 || f.n == 0 {
            return Ok(());
        }
        if f.inner > 1 {
            self.scan_columns(f, &from, &to)
        } else {
            self.scan_rows(f, &from, &to)
        }
    }

    fn scan_columns(&mut self, f: Fold, from: &Memory<'c>, to: &Memory<'c>) -> Emit {
        let (n, inner) = (f.n as i64, f.inner as i64);
        let lanes = self.column_lanes(f);
        self.repeat(0, f.outer as i64, 1, |e, o| {
            let row = e.b.mul_const(o, n * inner);
            let mut done = 0;
            for (width, upto) in segments(inner, lanes) {
                e.repeat(done, upto, width as i64, |e, i| {
                    let first = e.b.addi(row, i);
                    let acc = e.load_first(f, from, first, width)?;
                    e.store_at(to, first, acc);
                    let (one, end) = (e.b.i64(1), e.b.i64(n));
                    let open = e.b.begin_for(one, end, 1, &[acc]);
                    let at = e.b.mul_const(open.iv, inner);
                    let at = e.b.addi(first, at);
                    let x = e.load_at(from, at, width);
                    let next = e.combine(f, open.carried[0], x)?;
                    e.store_at(to, at, next);
                    e.b.end_for(open, &[next]);
                    Ok(())
                })?;
                done = upto;
            }
            Ok(())
        })
    }

    fn scan_rows(&mut self, f: Fold, from: &Memory<'c>, to: &Memory<'c>) -> Emit {
        let n = f.n as i64;
        let mut done = 0;
        for (rows, upto) in [(ROWS, f.outer / ROWS * ROWS), (1, f.outer)] {
            self.repeat(done, upto as i64, rows as i64, |e, row| {
                let first = e.b.mul_const(row, n);
                let mut starts = Vec::new();
                let mut init = Vec::new();
                for r in 0..rows as i64 {
                    let start = e.b.add_const(first, r * n);
                    let x = e.load_first(f, from, start, 1)?;
                    e.store_at(to, start, x);
                    starts.push(start);
                    init.push(x);
                }
                let (one, end) = (e.b.i64(1), e.b.i64(n));
                let open = e.b.begin_rolled_for(one, end, 1, &init);
                let mut next = Vec::new();
                for (r, &start) in starts.iter().enumerate() {
                    let at = e.b.addi(start, open.iv);
                    let x = e.load_at(from, at, 1);
                    let sum = e.combine(f, open.carried[r], x)?;
                    e.store_at(to, at, sum);
                    next.push(sum);
                }
                e.b.end_for(open, &next);
                Ok(())
            })?;
            done = upto as i64;
        }
        Ok(())
    }
}
