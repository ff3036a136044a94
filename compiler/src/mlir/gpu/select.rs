//! `topk` of a long line: the k first are selected, and only they are sorted (`sort`).
//!
//! An element has a 32-bit rank that rises from the first to the last by value; equal ranks come by rising index. Selecting is a search for
//! the k-th rank. Each thread finds the first of as many parts of its elements as make k parts in all: the last of these and the first of all
//! bound the k-th. Then a step divides what is open into up to 256 bins, counts elements into them by atomics in shared memory, and
//! goes on with the bin that holds the k-th, until a bin is to be taken whole, holds few elements, or has one rank. Few elements are
//! compared with each other (`collect`); of many with one rank a second search of the same kind, along indices, finds those that make k.
//! Counts do not depend on the order of atomics, and the chosen are collected in any order, since they are sorted by rank and
//! index, which all differ.
//!
//! Needs: elements of at most 32 bits, bytes of shared memory beside the tiles (`work_bytes`). Keeps: one result, whatever the
//! number of threads.

use super::access::Memory;
use super::ops::{LaneFold, Shuffle};
use super::{Emit, Emitter};
use crate::mlir::build::{AtomicOp, Elem, FloatCompare, IntCompare, Val};
use crate::tile::ir::*;
use tessera_artifact::DType;

pub(super) const WARP: u64 = 32;
/// In lines of up to so many elements the elements before each are counted.
const SHORT: u64 = 256;
/// Elements of a thread that stay in registers; of longer lines all are read in each step.
const HELD: u64 = 32;
/// Keys of a thread in the network, which is code for each of them: of more results the elements before each are counted too.
const SORTED: u64 = 8;
/// Bits of a rank that a step of the search settles.
const BITS: u32 = 8;
const BINS: u64 = 1 << BITS;
/// Bytes of a step's counts. Steps take three such sides in turn: one is counted in and one cleared while others still read the third.
const SIDE: u64 = 4 * BINS;
const SIDES: u64 = 3;
/// Bytes of a number per warp.
const NUMBERS: u64 = 4 * WARP;
/// So many elements are no longer searched, but ranked among each other.
const FEW: u64 = 64;
/// Bytes of the numbers of keys in either array.
const COUNTERS: u64 = 16;

pub(super) fn takes(n: u64, k: u64, dtype: DType, threads: u32) -> bool {
    let columns = columns(threads);
    n > SHORT && dtype.bits() <= 32 && slots(k, columns) <= SORTED * columns
}

/// Keys that the network sorts, with `columns` threads.
pub(super) fn slots(k: u64, columns: u64) -> u64 {
    k.next_power_of_two().max(columns)
}

/// Threads that hold keys in the network: a power of two.
pub(super) fn columns(threads: u32) -> u64 {
    1 << threads.ilog2()
}

/// Whether a kernel selects: its threads mostly wait for each other then, and another CTA has to fill the gaps.
pub(super) fn selects(kernel: &Kernel, threads: u32) -> bool {
    let mut selects = false;
    kernel.walk(kernel.body, &mut |_, op| {
        if let OpKind::TopK { values, src, .. } = &kernel.op(op).kind {
            let last = |t: TileId| kernel.tile(t).shape.last().copied().unwrap_or(1);
            selects |= takes(last(*src), last(*values), kernel.tile(*src).dtype, threads);
        }
    });
    selects
}

/// Two arrays of keys, the sides of counts, two numbers per warp, the counters.
pub(super) fn work_bytes(n: u64, k: u64, dtype: DType, threads: u32) -> u64 {
    match takes(n, k, dtype, threads) {
        true => 16 * slots(k, columns(threads)) + SIDES * SIDE + 2 * NUMBERS + COUNTERS,
        false => 0,
    }
}

/// One line, with the memory to work in.
pub(super) struct Line<'c> {
    pub memory: Memory<'c>,
    dtype: DType,
    smallest: bool,
    pub n: u64,
    pub k: u64,
    /// The line's first element.
    pub start: Val<'c>,
    /// Its first results.
    pub out: Val<'c>,
    pub keys: [Val<'c>; 2],
    counts: Val<'c>,
    numbers: Val<'c>,
    pub counters: Val<'c>,
}

/// Rank and index of one of a thread's elements, both of 32 bits.
pub(super) type Element<'c> = (Val<'c>, Val<'c>);

/// What a search has left open: of the places from `first` to `first + width`, the `need` first elements. All are i32, places unsigned.
#[derive(Clone, Copy)]
struct Open<'c> {
    first: Val<'c>,
    width: Val<'c>,
    need: Val<'c>,
    /// Byte of the side to count in, which is clear.
    side: Val<'c>,
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn select_and_sort(
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
        let Some(work) = self.plan.work else {
            return Err(self.fault("no memory for the keys of `topk`"));
        };
        let memory = self.tile(src)?;
        let to = (self.tile(values)?, self.tile(indices)?);
        let mut next = work;
        let mut take = |e: &mut Self, bytes: u64| {
            next += bytes;
            e.b.offset(e.shared, (next - bytes) as i64)
        };
        let array = 8 * slots(k, columns(self.threads));
        let keys = [take(self, array), take(self, array)];
        let counts = take(self, SIDES * SIDE);
        let numbers = take(self, 2 * NUMBERS);
        let counters = take(self, COUNTERS);
        let lines = tile.elements() / n;
        // What follows from the thread's number, of each place of the network whose key it keeps, is found here and not kept for another
        // line or sort.
        let thread = self.thread;
        self.thread = self.b.hold_word(thread);
        let zero = self.b.i64(0);
        let mut line = Line {
            memory,
            dtype: tile.dtype,
            smallest,
            n,
            k,
            start: zero,
            out: zero,
            keys,
            counts,
            numbers,
            counters,
        };
        if lines == 1 {
            self.one_line(&line, &to);
            self.thread = thread;
            return Ok(());
        }
        let (header, number) = self.b.new_block(1);
        let (body, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        self.b.branch(header, &[zero]);
        self.b.set_block(header);
        let end = self.b.i64(lines as i64);
        let more = self.b.cmpi(IntCompare::Slt, number[0], end);
        self.b.cond_branch(more, body, (after, &[]));
        self.b.set_block(body);
        line.start = self.b.mul_const(number[0], n as i64);
        line.out = self.b.mul_const(number[0], k as i64);
        self.one_line(&line, &to);
        // The next line works in the same memory.
        self.barrier();
        let next = self.b.add_const(number[0], 1);
        self.b.branch(header, &[next]);
        self.b.set_block(after);
        self.thread = thread;
        Ok(())
    }

    fn one_line(&mut self, line: &Line<'c>, to: &(Memory<'c>, Memory<'c>)) {
        let threads = self.threads as u64;
        let held = (line.n <= HELD * threads).then(|| {
            let steps = line.n.div_ceil(threads);
            let elements = (0..steps).map(|step| self.own_element(line, step));
            elements.collect::<Vec<_>>()
        });
        if line.k == line.n {
            self.each(line, held.as_deref(), &[], |e, element, _| {
                let at = e.b.resize(element.1, Elem::I64, false);
                let key = e.key_of(element);
                e.put_key(line.keys[0], at, key);
                vec![]
            });
        } else {
            self.select(line, held.as_deref());
        }
        self.sort(line, to);
    }

    // ---- elements ----------------------------------------------------------------------------------------

    /// Element `step * threads + thread`; the rank of one past the end is the last, and its index is above all others.
    fn own_element(&mut self, line: &Line<'c>, step: u64) -> Element<'c> {
        let threads = self.threads as u64;
        let i = self.b.add_const(self.thread, (step * threads) as i64);
        let index = self.b.resize(i, Elem::I32, false);
        let rank = if (step + 1) * threads <= line.n {
            self.rank_at(line, i)
        } else {
            let n = self.b.i64(line.n as i64);
            let present = self.b.cmpi(IntCompare::Slt, i, n);
            let open = self.b.begin_choice(present);
            let rank = self.rank_at(line, i);
            self.b.otherwise_value(&open, rank);
            let last = self.b.int(Elem::I32, 1, -1);
            self.b.end_choice(open, last)
        };
        (rank, index)
    }

    /// Runs `body` for each of this thread's elements with values carried from one to the next.
    pub(super) fn each(
        &mut self,
        line: &Line<'c>,
        held: Option<&[Element<'c>]>,
        init: &[Val<'c>],
        mut body: impl FnMut(&mut Self, Element<'c>, &[Val<'c>]) -> Vec<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let Some(held) = held else {
            let hi = self.b.i64(line.n as i64);
            let step = self.threads as i64;
            let open = self.b.begin_for(self.thread, hi, step, init);
            let rank = self.rank_at(line, open.iv);
            let index = self.b.resize(open.iv, Elem::I32, false);
            let carried = open.carried.clone();
            let next = body(self, (rank, index), &carried);
            return self.b.end_for(open, &next);
        };
        let threads = self.threads as u64;
        let mut carried = init.to_vec();
        for (step, &element) in held.iter().enumerate() {
            if (step as u64 + 1) * threads <= line.n || !carried.is_empty() {
                carried = body(self, element, &carried);
                continue;
            }
            let n = self.b.int(Elem::I32, 1, line.n as i64);
            let present = self.b.cmpi(IntCompare::Ult, element.1, n);
            let open = self.b.begin_if(present);
            body(self, element, &[]);
            self.b.end_if(open);
        }
        carried
    }

    /// An unsigned number that is the smaller the earlier an element comes; the greatest for a NaN.
    pub(super) fn rank_at(&mut self, line: &Line<'c>, i: Val<'c>) -> Val<'c> {
        let at = self.b.addi(line.start, i);
        let v = self.load(&line.memory, at);
        let dtype = line.dtype;
        let top = i64::from(i32::MIN);
        if !dtype.is_float() {
            let signed = dtype.is_signed_int();
            let wide = self.b.resize(v, Elem::I32, signed);
            let flipped = if line.smallest { 0 } else { -1 } ^ if signed { top } else { 0 };
            let flipped = self.b.int(Elem::I32, 1, flipped);
            return self.b.xori(wide, flipped);
        }
        let v = self.b.widen(v, dtype);
        // -0 and +0 rank alike.
        let zero = self.b.f32(1, 0.0);
        let v = self.b.addf(v, zero);
        let bits = self.b.bitcast(v, Elem::I32);
        let sign = self.b.shift_right_signed(bits, 31);
        // Negative numbers rise as their bits fall, and lie below the others.
        let rank = if line.smallest {
            let top = self.b.int(Elem::I32, 1, top);
            let mask = self.b.ori(sign, top);
            self.b.xori(bits, mask)
        } else {
            let rest = self.b.int(Elem::I32, 1, i64::from(i32::MAX));
            let all = self.b.int(Elem::I32, 1, -1);
            let positive = self.b.xori(sign, all);
            let mask = self.b.andi(positive, rest);
            self.b.xori(bits, mask)
        };
        let nan = self.b.cmpf(FloatCompare::Uno, v, v);
        let last = self.b.int(Elem::I32, 1, -1);
        self.b.select(nan, last, rank)
    }

    // ---- selection ------------------------------------------------------------------------------------------

    pub(super) fn lane_in_warp(&mut self) -> (Val<'c>, Val<'c>) {
        let mask = self.b.i64(WARP as i64 - 1);
        let lane = self.b.andi(self.thread, mask);
        (lane, self.b.shr(self.thread, WARP.ilog2()))
    }

    /// Leaves the k first elements among the keys, in any order.
    fn select(&mut self, line: &Line<'c>, held: Option<&[Element<'c>]>) {
        let zero = self.b.i64(0);
        self.clear(line, zero);
        let first = self.is_first_thread();
        let open = self.b.begin_if(first);
        let nothing = self.b.zero(Elem::I32, 2);
        self.b.store(nothing, line.counters, 8, None);
        self.b.end_if(open);
        let open = self.bracket(line, held);
        let few = FEW.min(slots(line.k, columns(self.threads)));
        let (open, left) = self.search(line, held, open, None, few);

        // Elements whose keys lie before `end` are chosen: with all that are open where that makes k, else those before what is open.
        let wide = |e: &mut Self, v: Val<'c>| e.b.resize(v, Elem::I64, false);
        let last = self.b.addi(open.first, open.width);
        let last = wide(self, last);
        let behind = self.b.add_const(last, 1);
        let first = wide(self, open.first);
        let left = wide(self, left);
        let need = wide(self, open.need);
        let whole = self.b.cmpi(IntCompare::Eq, left, need);
        let end = self.b.select(whole, behind, first);
        let end = self.b.shl(end, 32);
        let candidates = self.b.select(whole, zero, left);
        let most = self.b.i64(few as i64);
        let many = self.b.cmpi(IntCompare::Sgt, candidates, most);
        let (ties, _) = self.b.new_block(0);
        let (known, arguments) = self.b.new_block(2);
        self.b.cond_branch(many, ties, (known, &[end, candidates]));
        self.b.set_block(ties);
        // So many have one rank: those up to some index make k.
        let along = Open {
            first: self.b.int(Elem::I32, 1, 0),
            width: self.b.int(Elem::I32, 1, line.n as i64 - 1),
            ..open
        };
        let (along, _) = self.search(line, held, along, Some(last), 0);
        let limit = self.b.addi(along.first, along.width);
        let limit = wide(self, limit);
        let behind = self.b.add_const(limit, 1);
        let rank = self.b.shl(last, 32);
        let end = self.b.addi(rank, behind);
        self.b.branch(known, &[end, zero]);
        self.b.set_block(known);
        let &[end, candidates] = &arguments[..] else {
            unreachable!("the block was made with two arguments")
        };
        self.collect(line, held, 0, (zero, end));
        let some = self.b.cmpi(IntCompare::Ne, candidates, zero);
        let (choosing, _) = self.b.new_block(0);
        let (chosen, _) = self.b.new_block(0);
        self.b.cond_branch(some, choosing, (chosen, &[]));
        self.b.set_block(choosing);
        let from = self.b.shl(first, 32);
        let width = wide(self, open.width);
        let width = self.b.shl(width, 32);
        let width = self.b.add_const(width, line.n as i64);
        self.collect(line, held, 1, (from, width));
        self.choose(line, candidates, need);
        self.b.branch(chosen, &[]);
        self.b.set_block(chosen);
    }

    /// Clears this side of the counts; seen after a barrier.
    fn clear(&mut self, line: &Line<'c>, side: Val<'c>) {
        let side = self.b.gep(line.counts, side, Elem::I8);
        let words = self.b.i64(BINS as i64 / 4);
        let open = self
            .b
            .begin_for(self.thread, words, self.threads as i64, &[]);
        let at = self.b.shl(open.iv, 4);
        let at = self.b.gep(side, at, Elem::I8);
        let nothing = self.b.zero(Elem::I32, 4);
        self.b.store(nothing, at, 16, None);
        self.b.end_for(open, &[]);
    }

    /// The first rank of all and one that the k-th does not exceed: the elements are dealt out into at least k parts, and each has its
    /// first by then.
    fn bracket(&mut self, line: &Line<'c>, held: Option<&[Element<'c>]>) -> Open<'c> {
        let threads = self.threads as u64;
        let parts = match held {
            Some(_) => line.k.div_ceil(threads) as usize,
            None => 1,
        };
        let last = self.b.int(Elem::I32, 1, -1);
        let mut turn = 0;
        let firsts = self.each(line, held, &vec![last; parts], |e, (rank, _), carried| {
            let mut carried = carried.to_vec();
            let part = &mut carried[turn % parts];
            *part = e.b.binary("arith.minui", *part, rank);
            turn += 1;
            carried
        });
        let fold = |e: &mut Self, op: &str| {
            let folded = (firsts[1..].iter()).fold(firsts[0], |a, &b| e.b.binary(op, a, b));
            e.b.resize(folded, Elem::I32, false)
        };
        let least = fold(self, "arith.minui");
        let bound = fold(self, "arith.maxui");
        let [first, bound] = self.over_threads(
            line,
            [
                (LaneFold::UnsignedMin, least),
                (LaneFold::UnsignedMax, bound),
            ],
        );
        let enough = parts as u64 * threads >= line.k && line.n >= threads;
        let bound = if enough { bound } else { last };
        Open {
            first,
            width: self.b.subi(bound, first),
            need: self.b.int(Elem::I32, 1, line.k as i64),
            side: self.b.int(Elem::I32, 1, 0),
        }
    }

    /// Folds numbers of each thread over all threads, once in a selection.
    fn over_threads<const N: usize>(
        &mut self,
        line: &Line<'c>,
        folds: [(LaneFold, Val<'c>); N],
    ) -> [Val<'c>; N] {
        let (lane, warp) = self.lane_in_warp();
        let zero = self.b.i64(0);
        let leads = self.b.cmpi(IntCompare::Eq, lane, zero);
        let folded = folds.map(|(how, v)| self.b.fold_lanes(how, v));
        let place = |e: &mut Self, i: usize, number: Val<'c>| {
            let numbers = e.b.offset(line.numbers, (i as u64 * NUMBERS) as i64);
            e.b.gep(numbers, number, Elem::I32)
        };
        let open = self.b.begin_if(leads);
        for (i, &v) in folded.iter().enumerate() {
            let at = place(self, i, warp);
            self.b.store(v, at, 4, None);
        }
        self.b.end_if(open);
        self.barrier();
        // Lanes beyond the warps take what another has.
        let last = self.b.i64(self.threads as i64 / WARP as i64 - 1);
        let from = self.b.min_signed(lane, last);
        let mut i = 0;
        folds.map(|(how, _)| {
            let at = place(self, i, from);
            i += 1;
            let v = self.b.load(at, (Elem::I32, 1), 4, None);
            self.b.fold_lanes(how, v)
        })
    }

    /// Narrows `open` until all elements in it are needed, or at most `few` are left, or it has one place. Elements stand at their ranks; if
    /// `ties` is given, only those of that rank count, at their indices. Gives the number of elements in the rest too.
    fn search(
        &mut self,
        line: &Line<'c>,
        held: Option<&[Element<'c>]>,
        open: Open<'c>,
        ties: Option<Val<'c>>,
        few: u64,
    ) -> (Open<'c>, Val<'c>) {
        let (step, arguments) = self.b.new_block_of(Elem::I32, 4);
        let (found, _) = self.b.new_block(0);
        self.b
            .branch(step, &[open.first, open.width, open.need, open.side]);
        self.b.set_block(step);
        let &[first, width, need, side] = &arguments[..] else {
            unreachable!("the block was made with four arguments")
        };
        let shift = self.shift(width);

        // Nobody reads the next side any more, and nobody counts in it before the barrier.
        let next_side = self.b.add_const(side, SIDE as i64);
        let end = self.b.int(Elem::I32, 1, (SIDES * SIDE) as i64);
        let wraps = self.b.cmpi(IntCompare::Eq, next_side, end);
        let none = self.b.int(Elem::I32, 1, 0);
        let next_side = self.b.select(wraps, none, next_side);
        let wide = |e: &mut Self, v: Val<'c>| e.b.resize(v, Elem::I64, false);
        let clearing = wide(self, next_side);
        self.clear(line, clearing);
        let side = wide(self, side);
        let counts = self.b.gep(line.counts, side, Elem::I8);
        let one = self.b.int(Elem::I32, 1, 1);
        // Held in the step: which elements count is not to be found before it, in a register for each.
        let ties = ties.map(|ties| {
            let ties = self.b.hold_word(ties);
            self.b.resize(ties, Elem::I32, false)
        });
        self.each(line, held, &[], |e, (rank, index), _| {
            let place = if ties.is_some() { index } else { rank };
            let from_first = e.b.subi(place, first);
            let mut inside = e.b.cmpi(IntCompare::Ule, from_first, width);
            if let Some(ties) = ties {
                let tie = e.b.cmpi(IntCompare::Eq, rank, ties);
                inside = e.b.andi(inside, tie);
            }
            let open = e.b.begin_if(inside);
            let bin = e.b.binary("arith.shrui", from_first, shift);
            let bin = e.b.resize(bin, Elem::I64, false);
            let at = e.b.gep(counts, bin, Elem::I32);
            e.b.atomic_relaxed(AtomicOp::Add, at, one);
            e.b.end_if(open);
            vec![]
        });
        self.barrier();

        let (bin, before, reached) = self.bin_of(counts, need);
        let moved = self.b.binary("arith.shli", bin, shift);
        let size = self.b.binary("arith.shli", one, shift);
        let most = self.b.add_const(size, -1);
        let rest = self.b.subi(width, moved);
        let next = Open {
            first: self.b.addi(first, moved),
            width: self.b.binary("arith.minui", rest, most),
            need: self.b.subi(need, before),
            side: next_side,
        };
        let left = self.b.subi(reached, before);
        let several = self.b.cmpi(IntCompare::Ne, next.width, none);
        let part = self.b.cmpi(IntCompare::Ne, left, next.need);
        let few = self.b.int(Elem::I32, 1, few as i64);
        let many = self.b.cmpi(IntCompare::Sgt, left, few);
        let more = self.b.andi(several, part);
        let more = self.b.andi(more, many);
        let (again, _) = self.b.new_block(0);
        self.b.cond_branch(more, again, (found, &[]));
        self.b.set_block(again);
        self.b
            .branch(step, &[next.first, next.width, next.need, next.side]);
        self.b.set_block(found);
        (next, left)
    }

    /// The least shift, or one more, that leaves of `width` no more than the number of a bin.
    fn shift(&mut self, width: Val<'c>) -> Val<'c> {
        // Its exponent as a float, which rounding may raise.
        let float = self.b.convert("arith.uitofp", width, Elem::F32);
        let bits = self.b.bitcast(float, Elem::I32);
        let exponent = self.b.shr(bits, 23);
        let shift = self.b.add_const(exponent, -(127 + i64::from(BITS) - 1));
        let none = self.b.int(Elem::I32, 1, 0);
        self.b.max_signed(shift, none)
    }

    /// The bin in which the count reaches `need`, the counts of those before it and of those up to it. Every warp finds them for itself.
    fn bin_of(&mut self, counts: Val<'c>, need: Val<'c>) -> (Val<'c>, Val<'c>, Val<'c>) {
        const OWN: u64 = BINS / WARP;
        let (lane, _) = self.lane_in_warp();
        let at = self.b.mul_const(lane, 4 * OWN as i64);
        let at = self.b.gep(counts, at, Elem::I8);
        let mut upto = vec![];
        for four in 0..OWN / 4 {
            let at = self.b.offset(at, 16 * four as i64);
            let four = self.b.load(at, (Elem::I32, 4), 16, None);
            for i in 0..4 {
                let v = self.b.extract(four, i);
                upto.push(match upto.last() {
                    Some(&before) => self.b.addi(before, v),
                    None => v,
                });
            }
        }
        let own = upto[OWN as usize - 1];
        let through = self.up_to_lane(own);
        let before = self.b.subi(through, own);
        let upto: Vec<_> = upto.iter().map(|&v| self.b.addi(before, v)).collect();
        let enough = self.b.cmpi(IntCompare::Uge, through, need);
        let not_yet = self.b.cmpi(IntCompare::Ult, before, need);
        let here = self.b.andi(enough, not_yet);
        let first = self.b.mul_const(lane, OWN as i64);
        let mut bin = self.b.resize(first, Elem::I32, false);
        let (mut skipped, mut reached) = (before, through);
        for &v in &upto {
            let below = self.b.cmpi(IntCompare::Ult, v, need);
            skipped = self.b.select(below, v, skipped);
            let one = self.b.resize(below, Elem::I32, false);
            bin = self.b.addi(bin, one);
        }
        for &v in upto.iter().rev() {
            let reaches = self.b.cmpi(IntCompare::Uge, v, need);
            reached = self.b.select(reaches, v, reached);
        }
        let none = self.b.int(Elem::I32, 1, 0);
        let mut tell = |v: Val<'c>| {
            let v = self.b.select(here, v, none);
            self.b.fold_lanes(LaneFold::UnsignedMax, v)
        };
        (tell(bin), tell(skipped), tell(reached))
    }

    /// The sum of the lanes up to this one.
    pub(super) fn up_to_lane(&mut self, v: Val<'c>) -> Val<'c> {
        let (lane, _) = self.lane_in_warp();
        let none = self.b.int(Elem::I32, 1, 0);
        let mut upto = v;
        for distance in [1, 2, 4, 8, 16] {
            let below = self.b.shuffle_lanes(Shuffle::Up, upto, distance);
            let has = self.b.i64(distance as i64);
            let has = self.b.cmpi(IntCompare::Sge, lane, has);
            let more = self.b.select(has, below, none);
            upto = self.b.addi(upto, more);
        }
        upto
    }
}
