//! What a selection (`select`) has found, as keys in shared memory: rank above index, so that all differ.
//!
//! Needs: the search's end, counters that are 0. Keeps: which keys there are; they lie as warps come, and are sorted afterwards.

use super::Emitter;
use super::ops::LaneFold;
use super::select::{Element, Line, WARP};
use crate::mlir::build::{AtomicOp, Elem, IntCompare, Val};

impl<'c> Emitter<'_, 'c> {
    /// Puts the keys from `range.0` on, `range.1` behind it at most, side by side into one of the arrays: those of a thread, those of a warp,
    /// warps as they come.
    pub(super) fn collect(
        &mut self,
        line: &Line<'c>,
        held: Option<&[Element<'c>]>,
        array: usize,
        range: (Val<'c>, Val<'c>),
    ) {
        let counter = self.b.offset(line.counters, 4 * array as i64);
        let wanted = |e: &mut Self, element: Element<'c>| {
            let key = e.key_of(element);
            let from_first = e.b.subi(key, range.0);
            (e.b.cmpi(IntCompare::Ult, from_first, range.1), key)
        };
        if held.is_none() {
            let one = self.b.int(Elem::I32, 1, 1);
            self.each(line, None, &[], |e, element, _| {
                let (yes, key) = wanted(e, element);
                let open = e.b.begin_if(yes);
                let at = e.b.atomic_relaxed(AtomicOp::Add, counter, one);
                let at = e.b.resize(at, Elem::I64, false);
                e.put_key(line.keys[array], at, key);
                e.b.end_if(open);
                vec![]
            });
            return;
        }
        // A bit for each element that is wanted: there are few, and the registers that hold them have no numbers.
        let none = self.b.int(Elem::I32, 1, 0);
        let mut bit = 1;
        let all = self.each(line, held, &[none], |e, element, carried| {
            let (yes, _) = wanted(e, element);
            let own = e.b.int(Elem::I32, 1, i64::from(bit));
            bit = i32::wrapping_shl(bit, 1);
            let own = e.b.select(yes, own, none);
            vec![e.b.ori(carried[0], own)]
        })[0];
        let mine = self.b.unary("llvm.intr.ctpop", all);
        let upto = self.up_to_lane(mine);
        let (lane, _) = self.lane_in_warp();
        let last = self.b.i64(WARP as i64 - 1);
        let leads = self.b.cmpi(IntCompare::Eq, lane, last);
        let open = self.b.begin_choice(leads);
        let before = self.b.atomic_relaxed(AtomicOp::Add, counter, upto);
        self.b.otherwise_value(&open, before);
        let before = self.b.end_choice(open, none);
        let before = self.b.fold_lanes(LaneFold::UnsignedMax, before);
        let before = self.b.addi(before, upto);
        let first = self.b.subi(before, mine);

        let (next, arguments) = self.b.new_block_of(Elem::I32, 2);
        let (put, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        self.b.branch(next, &[all, first]);
        self.b.set_block(next);
        let (left, at) = (arguments[0], arguments[1]);
        let some = self.b.cmpi(IntCompare::Ne, left, none);
        self.b.cond_branch(some, put, (after, &[]));
        self.b.set_block(put);
        let step = self.b.trailing_zeros(left);
        let step = self.b.resize(step, Elem::I64, false);
        let i = self.b.mul_const(step, self.threads as i64);
        let i = self.b.addi(i, self.thread);
        let rank = self.rank_at(line, i);
        let index = self.b.resize(i, Elem::I32, false);
        let key = self.key_of((rank, index));
        let place = self.b.resize(at, Elem::I64, false);
        self.put_key(line.keys[array], place, key);
        let without = self.b.add_const(left, -1);
        let left = self.b.andi(left, without);
        let at = self.b.add_const(at, 1);
        self.b.branch(next, &[left, at]);
        self.b.set_block(after);
    }

    /// Of `left` keys in the second array the `need` first, to the end of the first array: each is compared with all of them.
    pub(super) fn choose(&mut self, line: &Line<'c>, left: Val<'c>, need: Val<'c>) {
        self.barrier();
        let own = self
            .b
            .begin_for(self.thread, left, self.threads as i64, &[]);
        let key = self.key_in(line.keys[1], own.iv);
        let zero = self.b.i64(0);
        let mut all = self.b.begin_for(zero, left, 1, &[zero]);
        all.copies = Some(4);
        let other = self.key_in(line.keys[1], all.iv);
        let before = self.b.cmpi(IntCompare::Ult, other, key);
        let before = self.b.resize(before, Elem::I64, false);
        let before = self.b.addi(all.carried[0], before);
        let before = self.b.end_for(all, &[before])[0];
        let needed = self.b.cmpi(IntCompare::Slt, before, need);
        let writing = self.b.begin_if(needed);
        let k = self.b.i64(line.k as i64);
        let at = self.b.subi(k, need);
        let at = self.b.addi(at, before);
        self.put_key(line.keys[0], at, key);
        self.b.end_if(writing);
        self.b.end_for(own, &[]);
    }

    /// Rank above index, so that all keys differ.
    pub(super) fn key_of(&mut self, (rank, index): Element<'c>) -> Val<'c> {
        let low = self.b.resize(index, Elem::I64, false);
        let high = self.b.resize(rank, Elem::I64, false);
        let high = self.b.shl(high, 32);
        self.b.ori(high, low)
    }

    pub(super) fn put_key(&mut self, array: Val<'c>, at: Val<'c>, key: Val<'c>) {
        let at = self.b.gep(array, at, Elem::I64);
        self.b.store(key, at, 8, None);
    }
}
