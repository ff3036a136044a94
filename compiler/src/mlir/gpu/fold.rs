//! Folds along an axis of a tile, in the order that the program declares, and scans.
//!
//! Ascending: a thread per result element, one source element after the other. A tree of up to 32 lanes: the lanes are lanes of a warp, and
//! the halves meet by shuffles. A wider tree: lanes in shared memory, dealt out over all threads.

use super::access::Memory;
use super::ops::Shuffle;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::mlir::scalar::held_as;
use crate::tile::ir::*;
use tessera_artifact::DType;

pub(super) const WARP: u32 = 32;

/// The source seen as `outer x n x inner`.
struct Lines<'c> {
    memory: Memory<'c>,
    dtype: DType,
    op: FoldOp,
    outer: u64,
    n: u64,
    inner: u64,
}

impl<'c> Lines<'c> {
    fn count(&self) -> u64 {
        self.outer * self.inner
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
        if self.fold_in_registers(dst, src, axis as usize, op, order)? {
            return Ok(());
        }
        let lines = self.lines(src, axis, op)?;
        let to = self.tile(dst)?;
        if lines.count() == 0 {
            return Ok(());
        }
        match order {
            Order::Ascending => self.ascending(&lines, &to),
            Order::Tree(lanes) if lanes <= WARP => self.tree_in_warp(&lines, &to, lanes),
            Order::Tree(lanes) => self.tree_in_memory(&lines, &to, lanes),
        }
    }

    fn lines(&mut self, src: TileId, axis: u32, op: FoldOp) -> Emit<Lines<'c>> {
        let tile = self.kernel.tile(src);
        let axis = axis as usize;
        Ok(Lines {
            memory: self.tile(src)?,
            dtype: tile.dtype,
            op,
            outer: tile.shape[..axis].iter().product(),
            n: tile.shape[axis],
            inner: tile.shape[axis + 1..].iter().product(),
        })
    }

    /// Where line `number` starts.
    fn line_start(&mut self, lines: &Lines<'c>, number: Val<'c>) -> Val<'c> {
        if lines.inner == 1 {
            return self.b.mul_const(number, lines.n as i64);
        }
        let point = self.point(number, &[lines.outer, lines.inner]);
        let outer = self.b.mul_const(point[0], (lines.n * lines.inner) as i64);
        self.b.addi(outer, point[1])
    }

    fn element(&mut self, lines: &Lines<'c>, start: Val<'c>, i: Val<'c>) -> Val<'c> {
        let step = self.b.mul_const(i, lines.inner as i64);
        let at = self.b.addi(start, step);
        self.load(&lines.memory, at)
    }

    fn combine(&mut self, lines: &Lines<'c>, a: Val<'c>, b: Val<'c>) -> Emit<Val<'c>> {
        let r = self.b.fold_op(lines.op, a, b, lines.dtype);
        self.lowered(r)
    }

    fn ascending(&mut self, lines: &Lines<'c>, to: &Memory<'c>) -> Emit {
        let share = self.begin_share(lines.count());
        let start = self.line_start(lines, share.iv);
        let identity = self.b.fold_identity(lines.op, lines.dtype, 1);
        let (lo, hi) = (self.b.i64(0), self.b.i64(lines.n as i64));
        let open = self.b.begin_for(lo, hi, 1, &[identity]);
        let x = self.element(lines, start, open.iv);
        let next = self.combine(lines, open.carried[0], x)?;
        let folded = self.b.end_for(open, &[next])[0];
        self.store(to, share.iv, folded);
        self.end_share(share);
        Ok(())
    }

    /// One lane of a tree: its elements ascending, from its first on.
    fn lane(
        &mut self,
        lines: &Lines<'c>,
        start: Val<'c>,
        lane: Val<'c>,
        lanes: u32,
    ) -> Emit<Val<'c>> {
        let identity = self.b.fold_identity(lines.op, lines.dtype, 1);
        let n = self.b.i64(lines.n as i64);
        let first = if lines.n >= lanes as u64 {
            self.element(lines, start, lane)
        } else {
            let present = self.b.cmpi(IntCompare::Slt, lane, n);
            let open = self.b.begin_choice(present);
            let x = self.element(lines, start, lane);
            self.b.otherwise_value(&open, x);
            self.b.end_choice(open, identity)
        };
        let from = self.b.add_const(lane, lanes as i64);
        let open = self.b.begin_for(from, n, lanes as i64, &[first]);
        let x = self.element(lines, start, open.iv);
        let next = self.combine(lines, open.carried[0], x)?;
        Ok(self.b.end_for(open, &[next])[0])
    }

    /// `threads / lanes` lines at a time. Every lane of a warp comes to every shuffle: a line too many is folded and dropped.
    fn tree_in_warp(&mut self, lines: &Lines<'c>, to: &Memory<'c>, lanes: u32) -> Emit {
        let at_once = self.threads as u64 / lanes as u64;
        let point = self.point(self.thread, &[at_once, lanes as u64]);
        let (group, lane) = (point[0], point[1]);
        let (lo, hi) = (self.b.i64(0), self.b.i64(lines.count() as i64));
        let open = self.b.begin_for(lo, hi, at_once as i64, &[]);
        let number = self.b.addi(open.iv, group);
        let last = self.b.i64(lines.count() as i64 - 1);
        let line = self.b.min_signed(number, last);
        let start = self.line_start(lines, line);
        let mut folded = self.lane(lines, start, lane, lanes)?;
        let mut half = lanes / 2;
        while half > 0 {
            let other = self.shuffled(Shuffle::Down, folded, half);
            folded = self.combine(lines, folded, other)?;
            half /= 2;
        }
        let zero = self.b.i64(0);
        let leads = self.b.cmpi(IntCompare::Eq, lane, zero);
        let wanted = self.b.cmpi(IntCompare::Slt, number, hi);
        let writes = self.b.andi(leads, wanted);
        let writing = self.b.begin_if(writes);
        self.store(to, line, folded);
        self.b.end_if(writing);
        self.b.end_for(open, &[]);
        Ok(())
    }

    /// A value of any width from another lane, as words of 32 bits.
    pub(super) fn shuffled(&mut self, how: Shuffle, v: Val<'c>, distance: u32) -> Val<'c> {
        let bits = self.b.bitcast(v, v.elem.as_int());
        let moved = if bits.elem == Elem::I64 {
            let low = self.b.resize(bits, Elem::I32, false);
            let high = self.b.shr(bits, 32);
            let high = self.b.resize(high, Elem::I32, false);
            let low = self.b.shuffle_lanes(how, low, distance);
            let high = self.b.shuffle_lanes(how, high, distance);
            let low = self.b.resize(low, Elem::I64, false);
            let high = self.b.resize(high, Elem::I64, false);
            let high = self.b.shl(high, 32);
            self.b.ori(low, high)
        } else {
            let wide = self.b.resize(bits, Elem::I32, false);
            let wide = self.b.shuffle_lanes(how, wide, distance);
            self.b.resize(wide, bits.elem, false)
        };
        self.b.bitcast(moved, v.elem)
    }

    /// One line at a time; all threads meet after every step.
    fn tree_in_memory(&mut self, lines: &Lines<'c>, to: &Memory<'c>, lanes: u32) -> Emit {
        let Some(offset) = self.plan.work else {
            return Err(self.fault("no memory for the lanes of a fold"));
        };
        let memory = Memory {
            base: self.b.offset(self.shared, offset as i64),
            dtype: lines.dtype,
            strides: Vec::new(),
            packed: false,
            constant: false,
        };
        let (lo, hi) = (self.b.i64(0), self.b.i64(lines.count() as i64));
        let open = self.b.begin_for(lo, hi, 1, &[]);
        let start = self.line_start(lines, open.iv);
        let share = self.begin_share(lanes as u64);
        let folded = self.lane(lines, start, share.iv, lanes)?;
        self.store(&memory, share.iv, folded);
        self.end_share(share);
        let mut half = lanes / 2;
        while half > 0 {
            self.barrier();
            let share = self.begin_share(half as u64);
            let a = self.load(&memory, share.iv);
            let above = self.b.add_const(share.iv, half as i64);
            let b = self.load(&memory, above);
            let folded = self.combine(lines, a, b)?;
            self.store(&memory, share.iv, folded);
            self.end_share(share);
            half /= 2;
        }
        // The first thread made the last step; the next line's lanes must not overtake it.
        let first = self.is_first_thread();
        let writing = self.b.begin_if(first);
        let zero = self.b.i64(0);
        let folded = self.load(&memory, zero);
        self.store(to, open.iv, folded);
        self.b.end_if(writing);
        self.barrier();
        self.b.end_for(open, &[]);
        Ok(())
    }

    /// A thread per line, ascending.
    pub(super) fn scan(&mut self, dst: TileId, src: TileId, axis: u32, op: FoldOp) -> Emit {
        let lines = self.lines(src, axis, op)?;
        let to = self.tile(dst)?;
        if lines.count() == 0 {
            return Ok(());
        }
        let share = self.begin_share(lines.count());
        let start = self.line_start(&lines, share.iv);
        let identity = self.b.fold_identity(op, lines.dtype, 1);
        debug_assert_eq!(identity.elem, held_as(Type::Scalar(lines.dtype)));
        let (lo, hi) = (self.b.i64(0), self.b.i64(lines.n as i64));
        let open = self.b.begin_for(lo, hi, 1, &[identity]);
        let x = self.element(&lines, start, open.iv);
        let next = self.combine(&lines, open.carried[0], x)?;
        let step = self.b.mul_const(open.iv, lines.inner as i64);
        let at = self.b.addi(start, step);
        self.store(&to, at, next);
        self.b.end_for(open, &[next]);
        self.end_share(share);
        Ok(())
    }
}
