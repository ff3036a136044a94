//! `topk` of a long line: the k first are selected, and only they are sorted.
//!
//! An element has a 32-bit key that rises with its rank by value; equal keys rank by rising index. Selecting is a search for the k-th
//! key, bit by bit of what the greatest and the least candidate leave open: each step counts the keys that reach a middle, every thread over
//! elements it holds in registers. Among elements equal to the k-th key a second search finds the index that makes k of them. Both depend on
//! the data in nothing but the number of steps, of which there are never more than bits in a key and an index. The chosen go to shared
//! memory as 64-bit keys, value above index, so all differ, and meet in a bitonic network: partners in one warp by shuffles, in one
//! thread directly, others through shared memory.
//!
//! Needs: elements of at most 32 bits, bytes of shared memory beside the tiles (`work_bytes`). Keeps: one result, whatever the
//! number of threads.

use super::access::Memory;
use super::ops::{LaneFold, Shuffle};
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, FloatCompare, IntCompare, Val};
use crate::tile::ir::*;
use tessera_artifact::DType;

const WARP: u64 = 32;
/// In lines of up to so many elements the elements before each are counted.
const SHORT: u64 = 256;
/// Elements of a thread that stay in registers; of longer lines all are read in each step.
const HELD: u64 = 32;
/// Keys of a thread in the network, which is code for each of them: of more results the elements before each are counted too.
const SORTED: u64 = 8;
/// Bytes of a count per warp.
const COUNTS: u64 = 4 * WARP;

pub(super) fn takes(n: u64, k: u64, dtype: DType, threads: u32) -> bool {
    let columns = columns(threads);
    n > SHORT && dtype.bits() <= 32 && slots(k, columns) <= SORTED * columns
}

/// Keys that the network sorts, with `columns` threads.
fn slots(k: u64, columns: u64) -> u64 {
    k.next_power_of_two().max(columns)
}

/// Threads that hold keys in the network: a power of two.
fn columns(threads: u32) -> u64 {
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

/// Two arrays of keys, three of a count per warp.
pub(super) fn work_bytes(n: u64, k: u64, dtype: DType, threads: u32) -> u64 {
    match takes(n, k, dtype, threads) {
        true => 16 * slots(k, columns(threads)) + 3 * COUNTS,
        false => 0,
    }
}

/// One line, with the memory to work in.
struct Line<'c> {
    memory: Memory<'c>,
    dtype: DType,
    smallest: bool,
    n: u64,
    k: u64,
    /// The line's first element.
    start: Val<'c>,
    /// Its first results.
    out: Val<'c>,
    keys: [Val<'c>; 2],
    counts: Val<'c>,
}

/// Key and index of one of a thread's elements, both of 32 bits.
type Element<'c> = (Val<'c>, Val<'c>);

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
        let array = 8 * slots(k, columns(self.threads));
        let at = |e: &mut Self, offset: u64| e.b.offset(e.shared, (work + offset) as i64);
        let keys = [at(self, 0), at(self, array)];
        let counts = at(self, 2 * array);
        let lines = tile.elements() / n;
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
        };
        if lines == 1 {
            self.one_line(&line, &to);
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
                e.put_key(line, at, element);
                vec![]
            });
        } else {
            self.select(line, held.as_deref());
        }
        self.sort(line, to);
    }

    // ---- elements ----------------------------------------------------------------------------------------

    /// Element `step * threads + thread`; the key of one past the end is the lowest, and its index is above all others.
    fn own_element(&mut self, line: &Line<'c>, step: u64) -> Element<'c> {
        let threads = self.threads as u64;
        let i = self.b.add_const(self.thread, (step * threads) as i64);
        let index = self.b.resize(i, Elem::I32, false);
        let key = if (step + 1) * threads <= line.n {
            self.key_at(line, i)
        } else {
            let n = self.b.i64(line.n as i64);
            let present = self.b.cmpi(IntCompare::Slt, i, n);
            let open = self.b.begin_choice(present);
            let key = self.key_at(line, i);
            self.b.otherwise_value(&open, key);
            let lowest = self.b.int(Elem::I32, 1, 0);
            self.b.end_choice(open, lowest)
        };
        (key, index)
    }

    /// Runs `body` for each of this thread's elements with values carried from one to the next.
    fn each(
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
            let key = self.key_at(line, open.iv);
            let index = self.b.resize(open.iv, Elem::I32, false);
            let carried = open.carried.clone();
            let next = body(self, (key, index), &carried);
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

    /// An unsigned number that is the greater the earlier an element ranks; 0 for a NaN.
    fn key_at(&mut self, line: &Line<'c>, i: Val<'c>) -> Val<'c> {
        let at = self.b.addi(line.start, i);
        let v = self.load(&line.memory, at);
        let dtype = line.dtype;
        let flip = |e: &mut Self, key: Val<'c>| {
            if !line.smallest {
                return key;
            }
            let all = e.b.int(Elem::I32, 1, -1);
            e.b.xori(key, all)
        };
        let top = self.b.int(Elem::I32, 1, i32::MIN as i64);
        if !dtype.is_float() {
            let signed = dtype.is_signed_int();
            let wide = self.b.resize(v, Elem::I32, signed);
            let key = if signed { self.b.xori(wide, top) } else { wide };
            return flip(self, key);
        }
        let v = self.b.widen(v, dtype);
        // -0 and +0 rank alike.
        let zero = self.b.f32(1, 0.0);
        let v = self.b.addf(v, zero);
        let bits = self.b.bitcast(v, Elem::I32);
        let sign = self.b.shift_right_signed(bits, 31);
        let mask = self.b.ori(sign, top);
        let key = self.b.xori(bits, mask);
        let key = flip(self, key);
        let nan = self.b.cmpf(FloatCompare::Uno, v, v);
        let last = self.b.int(Elem::I32, 1, 0);
        self.b.select(nan, last, key)
    }

    // ---- selection ------------------------------------------------------------------------------------------

    fn lane_in_warp(&mut self) -> (Val<'c>, Val<'c>) {
        let mask = self.b.i64(WARP as i64 - 1);
        let lane = self.b.andi(self.thread, mask);
        (lane, self.b.shr(self.thread, WARP.ilog2()))
    }

    /// Folds one number per thread over all threads. `side`: byte of the counts to use, other than that of the fold before.
    fn over_threads(
        &mut self,
        line: &Line<'c>,
        how: LaneFold,
        v: Val<'c>,
        side: Val<'c>,
    ) -> Val<'c> {
        let (lane, warp) = self.lane_in_warp();
        let v = self.b.fold_lanes(how, v);
        let zero = self.b.i64(0);
        let leads = self.b.cmpi(IntCompare::Eq, lane, zero);
        let counts = self.b.gep(line.counts, side, Elem::I8);
        let writing = self.b.begin_if(leads);
        let at = self.b.gep(counts, warp, Elem::I32);
        self.b.store(v, at, 4, None);
        self.b.end_if(writing);
        self.barrier();
        let identity = match how {
            LaneFold::UnsignedMin => -1,
            LaneFold::SignedMin => i64::from(i32::MAX),
            LaneFold::SignedMax => i64::from(i32::MIN),
            LaneFold::Sum | LaneFold::UnsignedMax => 0,
        };
        let warps = self.b.i64(self.threads as i64 / WARP as i64);
        let present = self.b.cmpi(IntCompare::Slt, lane, warps);
        let v = self.count_if(present, counts, lane, identity);
        self.b.fold_lanes(how, v)
    }

    fn count_if(
        &mut self,
        wanted: Val<'c>,
        counts: Val<'c>,
        number: Val<'c>,
        identity: i64,
    ) -> Val<'c> {
        let open = self.b.begin_choice(wanted);
        let at = self.b.gep(counts, number, Elem::I32);
        let v = self.b.load(at, (Elem::I32, 1), 4, None);
        self.b.otherwise_value(&open, v);
        let identity = self.b.int(Elem::I32, 1, identity);
        self.b.end_choice(open, identity)
    }

    /// The other of the two sides that folds take in turn.
    fn other_side(&mut self, side: Val<'c>) -> Val<'c> {
        let bit = self.b.i64(COUNTS as i64);
        self.b.xori(side, bit)
    }

    /// How many elements `test` holds for, of all threads, as an i64.
    fn count(
        &mut self,
        line: &Line<'c>,
        held: Option<&[Element<'c>]>,
        side: Val<'c>,
        mut test: impl FnMut(&mut Self, Element<'c>) -> Val<'c>,
    ) -> Val<'c> {
        let none = self.b.int(Elem::I32, 1, 0);
        let mine = self.each(line, held, &[none], |e, element, carried| {
            let yes = test(e, element);
            let one = e.b.resize(yes, Elem::I32, false);
            vec![e.b.addi(carried[0], one)]
        })[0];
        let all = self.over_threads(line, LaneFold::Sum, mine, side);
        self.b.resize(all, Elem::I64, false)
    }

    /// Leaves the k first elements among the keys, in any order.
    fn select(&mut self, line: &Line<'c>, held: Option<&[Element<'c>]>) {
        let k = self.b.i64(line.k as i64);
        let n = self.b.i64(line.n as i64);
        let (lo, hi) = self.bracket(line, held);

        // The greatest `lo` that at least k keys reach: `reached` of them, if not n.
        let side = self.b.i64(0);
        let (header, open) = self.b.new_block(4);
        let (body, _) = self.b.new_block(0);
        let (found, _) = self.b.new_block(0);
        self.b.branch(header, &[lo, hi, n, side]);
        self.b.set_block(header);
        let &[lo, hi, reached, side] = &open[..] else {
            unreachable!("the block was made with four arguments")
        };
        let more = self.b.cmpi(IntCompare::Slt, lo, hi);
        self.b.cond_branch(more, body, (found, &[]));
        self.b.set_block(body);
        let width = self.b.subi(hi, lo);
        let width = self.b.add_const(width, 1);
        let half = self.b.shr(width, 1);
        let middle = self.b.addi(lo, half);
        let key = self.b.resize(middle, Elem::I32, false);
        let count = self.count(line, held, side, |e, (x, _)| {
            e.b.cmpi(IntCompare::Uge, x, key)
        });
        let enough = self.b.cmpi(IntCompare::Sge, count, k);
        let exact = self.b.cmpi(IntCompare::Eq, count, k);
        let below = self.b.add_const(middle, -1);
        let next_lo = self.b.select(enough, middle, lo);
        let next_hi = self.b.select(enough, hi, below);
        let next_hi = self.b.select(exact, middle, next_hi);
        let next_reached = self.b.select(enough, count, reached);
        let next_side = self.other_side(side);
        self.b
            .branch(header, &[next_lo, next_hi, next_reached, next_side]);
        self.b.set_block(found);
        let threshold = self.b.resize(lo, Elem::I32, false);

        // Of the elements equal to it, those before index `limit` make k.
        let done = self.b.cmpi(IntCompare::Eq, reached, k);
        let zero = self.b.i64(0);
        let first = self.b.select(done, n, zero);
        let (header, open) = self.b.new_block(3);
        let (body, _) = self.b.new_block(0);
        let (found, _) = self.b.new_block(0);
        self.b.branch(header, &[first, n, side]);
        self.b.set_block(header);
        let &[lo, hi, side] = &open[..] else {
            unreachable!("the block was made with three arguments")
        };
        let more = self.b.cmpi(IntCompare::Slt, lo, hi);
        self.b.cond_branch(more, body, (found, &[]));
        self.b.set_block(body);
        let sum = self.b.addi(lo, hi);
        let middle = self.b.shr(sum, 1);
        let limit = self.b.resize(middle, Elem::I32, false);
        let count = self.count(line, held, side, |e, element| {
            e.chosen(element, threshold, limit)
        });
        let enough = self.b.cmpi(IntCompare::Sge, count, k);
        let above = self.b.add_const(middle, 1);
        let next_lo = self.b.select(enough, lo, above);
        let next_hi = self.b.select(enough, middle, hi);
        let next_side = self.other_side(side);
        self.b.branch(header, &[next_lo, next_hi, next_side]);
        self.b.set_block(found);
        let limit = self.b.resize(lo, Elem::I32, false);
        self.gather(line, held, threshold, limit);
    }

    /// Two keys between which the k-th lies: of the greatest of each thread, the least and the greatest. With k above the number of threads
    /// the least says nothing.
    fn bracket(&mut self, line: &Line<'c>, held: Option<&[Element<'c>]>) -> (Val<'c>, Val<'c>) {
        let lowest = self.b.int(Elem::I32, 1, 0);
        let mine = self.each(line, held, &[lowest], |e, (key, _), carried| {
            vec![e.b.binary("arith.maxui", carried[0], key)]
        })[0];
        let (first, second) = (self.b.i64(0), self.b.i64(COUNTS as i64));
        let hi = self.over_threads(line, LaneFold::UnsignedMax, mine, second);
        let hi = self.b.resize(hi, Elem::I64, false);
        let threads = self.threads as u64;
        if line.k > threads || line.n < threads {
            // The search goes on with the first side.
            return (first, hi);
        }
        // A third side, for the search goes on with the first.
        let third = self.b.i64(2 * COUNTS as i64);
        let lo = self.over_threads(line, LaneFold::UnsignedMin, mine, third);
        (self.b.resize(lo, Elem::I64, false), hi)
    }

    fn chosen(&mut self, (key, index): Element<'c>, threshold: Val<'c>, limit: Val<'c>) -> Val<'c> {
        let above = self.b.cmpi(IntCompare::Ugt, key, threshold);
        let equal = self.b.cmpi(IntCompare::Eq, key, threshold);
        let before = self.b.cmpi(IntCompare::Ult, index, limit);
        let tie = self.b.andi(equal, before);
        self.b.ori(above, tie)
    }

    /// The chosen elements side by side, those of a thread after those of the threads before it.
    fn gather(
        &mut self,
        line: &Line<'c>,
        held: Option<&[Element<'c>]>,
        threshold: Val<'c>,
        limit: Val<'c>,
    ) {
        let none = self.b.int(Elem::I32, 1, 0);
        let mine = self.each(line, held, &[none], |e, element, carried| {
            let yes = e.chosen(element, threshold, limit);
            let one = e.b.resize(yes, Elem::I32, false);
            vec![e.b.addi(carried[0], one)]
        })[0];
        let (lane, warp) = self.lane_in_warp();
        let mut upto = mine;
        for distance in [1, 2, 4, 8, 16] {
            let below = self.b.shuffle_lanes(Shuffle::Up, upto, distance);
            let has = self.b.i64(distance as i64);
            let has = self.b.cmpi(IntCompare::Sge, lane, has);
            let more = self.b.select(has, below, none);
            upto = self.b.addi(upto, more);
        }
        let last = self.b.i64(WARP as i64 - 1);
        let last = self.b.cmpi(IntCompare::Eq, lane, last);
        // The third side: the last fold may still be read.
        let counts = self.b.offset(line.counts, 2 * COUNTS as i64);
        let writing = self.b.begin_if(last);
        let at = self.b.gep(counts, warp, Elem::I32);
        self.b.store(upto, at, 4, None);
        self.b.end_if(writing);
        self.barrier();
        let earlier = self.b.cmpi(IntCompare::Slt, lane, warp);
        let before = self.count_if(earlier, counts, lane, 0);
        let before = self.b.fold_lanes(LaneFold::Sum, before);
        let before = self.b.addi(before, upto);
        let first = self.b.subi(before, mine);
        self.each(line, held, &[first], |e, element, carried| {
            let yes = e.chosen(element, threshold, limit);
            let open = e.b.begin_if(yes);
            let at = e.b.resize(carried[0], Elem::I64, false);
            e.put_key(line, at, element);
            e.b.end_if(open);
            let one = e.b.resize(yes, Elem::I32, false);
            vec![e.b.addi(carried[0], one)]
        });
    }

    // ---- sorting --------------------------------------------------------------------------------------------

    /// Value above index, the smaller index the greater, so that all keys differ and none is 0.
    fn put_key(&mut self, line: &Line<'c>, at: Val<'c>, (key, index): Element<'c>) {
        let all = self.b.int(Elem::I32, 1, -1);
        let low = self.b.xori(index, all);
        let low = self.b.resize(low, Elem::I64, false);
        let high = self.b.resize(key, Elem::I64, false);
        let high = self.b.shl(high, 32);
        let key = self.b.ori(high, low);
        let at = self.b.gep(line.keys[0], at, Elem::I64);
        self.b.store(key, at, 8, None);
    }

    /// Sorts the k keys that lie in the first array and delivers what they stand for.
    fn sort(&mut self, line: &Line<'c>, to: &(Memory<'c>, Memory<'c>)) {
        let columns = columns(self.threads);
        let slots = slots(line.k, columns);
        let mask = self.b.i64(columns as i64 - 1);
        // Threads that are too many do as another one does, and write nothing.
        let column = self.b.andi(self.thread, mask);
        let bound = self.b.i64(columns as i64);
        let works = (columns < self.threads as u64)
            .then(|| self.b.cmpi(IntCompare::Slt, self.thread, bound));
        let places: Vec<_> = (0..slots / columns)
            .map(|r| self.b.add_const(column, (r * columns) as i64))
            .collect();
        let k = self.b.i64(line.k as i64);
        for &place in &places[(line.k / columns) as usize..] {
            let empty = self.b.cmpi(IntCompare::Sge, place, k);
            let writes = match works {
                Some(works) => self.b.andi(empty, works),
                None => empty,
            };
            let open = self.b.begin_if(writes);
            let at = self.b.gep(line.keys[0], place, Elem::I64);
            let lowest = self.b.i64(0);
            self.b.store(lowest, at, 8, None);
            self.b.end_if(open);
        }
        self.barrier();
        let mut keys: Vec<_> = places
            .iter()
            .map(|&place| self.key_in(line.keys[0], place))
            .collect();
        let mut side = 1;
        let mut run = 2;
        while run <= line.k.next_power_of_two() {
            let mut distance = run / 2;
            while distance > 0 {
                let others = if distance >= columns {
                    let by = (distance / columns) as usize;
                    (0..keys.len()).map(|r| keys[r ^ by]).collect()
                } else if distance >= WARP {
                    let through = line.keys[side];
                    side ^= 1;
                    self.through_memory(through, &places, &keys, distance, works)
                } else {
                    let shuffle = |&key| self.shuffled(Shuffle::Xor, key, distance as u32);
                    keys.iter().map(shuffle).collect::<Vec<_>>()
                };
                for (r, other) in others.into_iter().enumerate() {
                    let first = self.takes_the_greater(places[r], run, distance);
                    let greater = self.b.cmpi(IntCompare::Ugt, keys[r], other);
                    let keeps = self.b.cmpi(IntCompare::Eq, greater, first);
                    keys[r] = self.b.select(keeps, keys[r], other);
                }
                distance /= 2;
            }
            run *= 2;
        }
        for (&place, key) in places.iter().zip(keys) {
            let wanted = self.b.cmpi(IntCompare::Slt, place, k);
            let writes = match works {
                Some(works) => self.b.andi(wanted, works),
                None => wanted,
            };
            let open = self.b.begin_if(writes);
            let low = self.b.resize(key, Elem::I32, false);
            let all = self.b.int(Elem::I32, 1, -1);
            let index = self.b.xori(low, all);
            let wide = self.b.resize(index, Elem::I64, false);
            let from = self.b.addi(line.start, wide);
            let value = self.load(&line.memory, from);
            let at = self.b.addi(line.out, place);
            self.store(&to.0, at, value);
            self.store(&to.1, at, index);
            self.b.end_if(open);
        }
    }

    /// Whether the lower of two partners, or the place itself if it is the upper one, gets the greater key: runs rise and fall in turn.
    fn takes_the_greater(&mut self, place: Val<'c>, run: u64, distance: u64) -> Val<'c> {
        let bit = |e: &mut Self, bit: u64| {
            let mask = e.b.i64(bit as i64);
            let v = e.b.andi(place, mask);
            let zero = e.b.i64(0);
            e.b.cmpi(IntCompare::Eq, v, zero)
        };
        let lower = bit(self, distance);
        let falling = bit(self, run);
        self.b.cmpi(IntCompare::Eq, lower, falling)
    }

    fn key_in(&mut self, array: Val<'c>, place: Val<'c>) -> Val<'c> {
        let at = self.b.gep(array, place, Elem::I64);
        self.b.load(at, (Elem::I64, 1), 8, None)
    }

    /// The partners' keys. The two arrays are taken in turn, so that one barrier a step is enough.
    fn through_memory(
        &mut self,
        array: Val<'c>,
        places: &[Val<'c>],
        keys: &[Val<'c>],
        distance: u64,
        works: Option<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let open = works.map(|works| self.b.begin_if(works));
        for (&place, &key) in places.iter().zip(keys) {
            let at = self.b.gep(array, place, Elem::I64);
            self.b.store(key, at, 8, None);
        }
        if let Some(open) = open {
            self.b.end_if(open);
        }
        self.barrier();
        let bit = self.b.i64(distance as i64);
        (places.iter())
            .map(|&place| {
                let partner = self.b.xori(place, bit);
                self.key_in(array, partner)
            })
            .collect()
    }
}
