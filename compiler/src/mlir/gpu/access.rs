//! Memory accesses of one thread, and how elements are dealt out over threads.

use super::Emitter;
use crate::mlir::build::{AtomicOp, Elem, IntCompare, OpenFor, Val};
use crate::mlir::scalar::{held_as, stored_as};
use crate::tile::ir::Type;
use tessera_artifact::DType;

#[derive(Clone, Copy, Debug)]
pub(super) enum Stride<'c> {
    Const(i64),
    Dynamic(Val<'c>),
}

/// A tensor or tile in memory.
#[derive(Clone, Debug)]
pub(super) struct Memory<'c> {
    pub base: Val<'c>,
    pub dtype: DType,
    /// In elements.
    pub strides: Vec<Stride<'c>>,
    /// Two e2m1 codes to a byte.
    pub packed: bool,
    /// Nobody writes it during the launch, and loads may move.
    pub constant: bool,
}

impl Memory<'_> {
    pub fn elem(&self) -> Elem {
        stored_as(self.dtype)
    }
}

pub(super) fn row_major<'c>(shape: &[u64]) -> Vec<Stride<'c>> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as i64;
    }
    strides.into_iter().map(Stride::Const).collect()
}

impl<'c> Emitter<'_, 'c> {
    // ---- threads --------------------------------------------------------------------------------------

    /// Opens a loop over this thread's share of `total` things: number `thread`, `thread + threads`, and so on.
    pub(super) fn begin_share(&mut self, total: u64) -> OpenFor<'c> {
        let hi = self.b.i64(total as i64);
        let step = self.threads as i64;
        self.b.begin_for(self.thread, hi, step, &[])
    }

    /// The same where each thread has `steps` things, with `copies` of the body: what is loaded in one need not wait for another.
    pub(super) fn begin_even_share(&mut self, steps: u64, copies: u32) -> OpenFor<'c> {
        let (lo, hi) = (self.b.i64(0), self.b.i64(steps as i64));
        let mut open = self.b.begin_for(lo, hi, 1, &[]);
        open.copies = Some(copies);
        let before = self.b.mul_const(open.iv, self.threads as i64);
        open.iv = self.b.addi(before, self.thread);
        open
    }

    pub(super) fn end_share(&mut self, open: OpenFor<'c>) {
        self.b.end_for(open, &[]);
    }

    /// Whether this is the thread that does what needs doing once.
    pub(super) fn is_first_thread(&mut self) -> Val<'c> {
        let zero = self.b.i64(0);
        self.b.cmpi(IntCompare::Eq, self.thread, zero)
    }

    /// The point of `extents` with this number, last axis fastest.
    pub(super) fn point(&mut self, number: Val<'c>, extents: &[u64]) -> Vec<Val<'c>> {
        // Division of short integers is much faster.
        let total: u64 = extents.iter().product();
        let elem = if total < 1 << 31 {
            Elem::I32
        } else {
            Elem::I64
        };
        let mut rest = self.b.resize(number, elem, false);
        let mut point = Vec::with_capacity(extents.len());
        for (axis, &extent) in extents.iter().enumerate().rev() {
            let at = if axis == 0 {
                rest
            } else if extent == 1 {
                self.b.zero(elem, 1)
            } else {
                let by = self.b.int(elem, 1, extent as i64);
                let at = self.b.binary("arith.remui", rest, by);
                rest = self.b.binary("arith.divui", rest, by);
                at
            };
            point.push(self.b.resize(at, Elem::I64, false));
        }
        point.reverse();
        point
    }

    // ---- offsets --------------------------------------------------------------------------------------

    pub(super) fn times(&mut self, v: Val<'c>, stride: Stride<'c>) -> Val<'c> {
        match stride {
            Stride::Const(s) => self.b.mul_const(v, s),
            Stride::Dynamic(s) => self.b.muli(v, s),
        }
    }

    /// The element that `index` names, counted from the base.
    pub(super) fn offset(&mut self, memory: &Memory<'c>, index: &[Val<'c>]) -> Val<'c> {
        let mut total: Option<Val<'c>> = None;
        for (&at, &stride) in index.iter().zip(&memory.strides) {
            let part = self.times(at, stride);
            total = Some(match total {
                Some(total) => self.b.addi(total, part),
                None => part,
            });
        }
        match total {
            Some(total) => total,
            None => self.b.i64(0),
        }
    }

    // ---- loads and stores -----------------------------------------------------------------------------

    /// The element as `held_as` holds it.
    pub(super) fn load(&mut self, memory: &Memory<'c>, at: Val<'c>) -> Val<'c> {
        let elem = memory.elem();
        if memory.packed {
            let byte_at = self.b.shift_right_signed(at, 1);
            let p = self.b.gep(memory.base, byte_at, Elem::I8);
            let byte = self.b.load(p, (Elem::I8, 1), 1, None);
            let one = self.b.i64(1);
            let odd = self.b.andi(at, one);
            let shift = self.b.resize(odd, Elem::I8, false);
            let shift = self.b.shl(shift, 2);
            let shifted = self.b.binary("arith.shrui", byte, shift);
            let mask = self.b.int(Elem::I8, 1, 0xf);
            return self.b.andi(shifted, mask);
        }
        let p = self.b.gep(memory.base, at, elem);
        let align = elem.bits() / 8;
        let v = match memory.constant {
            true => self.b.load_invariant(p, (elem, 1), align),
            false => self.b.load(p, (elem, 1), align, None),
        };
        self.b.from_stored(v, memory.dtype)
    }

    /// 0 where the guard does not hold; then nothing is read.
    pub(super) fn load_guarded(
        &mut self,
        memory: &Memory<'c>,
        at: Val<'c>,
        guard: Option<Val<'c>>,
    ) -> Val<'c> {
        let Some(guard) = guard else {
            return self.load(memory, at);
        };
        let open = self.b.begin_choice(guard);
        let v = self.load(memory, at);
        self.b.otherwise_value(&open, v);
        let zero = self.b.zero(held_as(Type::Scalar(memory.dtype)), 1);
        self.b.end_choice(open, zero)
    }

    pub(super) fn store(&mut self, memory: &Memory<'c>, at: Val<'c>, value: Val<'c>) {
        if memory.packed {
            return self.store_half_byte(memory, at, value);
        }
        let elem = memory.elem();
        let value = self.b.to_stored(value, memory.dtype);
        let p = self.b.gep(memory.base, at, elem);
        self.b.store(value, p, elem.bits() / 8, None);
    }

    /// The other half of the byte may be another thread's: clear ours, then set ours, each for all threads at once.
    fn store_half_byte(&mut self, memory: &Memory<'c>, at: Val<'c>, code: Val<'c>) {
        let byte_at = self.b.shift_right_signed(at, 1);
        let p = self.b.gep(memory.base, byte_at, Elem::I8);
        let address = self.b.pointer_bits(p);
        let three = self.b.i64(3);
        let in_word = self.b.andi(address, three);
        let negated = self.b.i64(0);
        let negated = self.b.subi(negated, in_word);
        // The word that holds the byte: memory of a GPU is given out in longer pieces.
        let word = self.b.gep(p, negated, Elem::I8);
        let one = self.b.i64(1);
        let odd = self.b.andi(at, one);
        let shift = self.b.shl(in_word, 3);
        let half = self.b.shl(odd, 2);
        let shift = self.b.addi(shift, half);
        let shift = self.b.resize(shift, Elem::I32, false);
        let mask = self.b.int(Elem::I32, 1, 0xf);
        let code = self.b.resize(code, Elem::I32, false);
        let code = self.b.andi(code, mask);
        let code = self.b.binary("arith.shli", code, shift);
        let hole = self.b.binary("arith.shli", mask, shift);
        let all = self.b.int(Elem::I32, 1, -1);
        let keep = self.b.xori(hole, all);
        self.b.atomic_relaxed(AtomicOp::And, word, keep);
        self.b.atomic_relaxed(AtomicOp::Or, word, code);
    }
}
