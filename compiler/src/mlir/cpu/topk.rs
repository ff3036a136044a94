//! The first k of each row in order: by value, equal values by index, NaN last.
//!
//! An element of up to 32 bits becomes one signed 64-bit key, its order above its index, so that keys differ and every way to sort gives the
//! same result. Few of a row are picked in passes over it, the least key above the last one; more of them by a bitonic sort. Elements of 64
//! bits have no room for the index: each counts the elements before it.

use super::access::{Form, Memory};
use super::memory::MemoryPlan;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, FloatCompare, IntCompare, Scope, Val};
use crate::tile::ir::*;
use tessera_artifact::DType;

/// Keys in one vector.
const LANES: u32 = 8;
/// Up to this many are picked in passes.
const PASSES: u64 = 16;

/// The slot for a row's keys, shared by all sorts of a kernel.
pub(super) fn plan_keys(kernel: &Kernel, plan: &mut MemoryPlan) -> Option<usize> {
    let mut keys = 0;
    for op in kernel.live_ops() {
        if let OpKind::TopK { src, .. } = &kernel.op(op).kind {
            let n = kernel.tile(*src).shape.last().copied().unwrap_or(1);
            keys = keys.max(padded(n));
        }
    }
    (keys > 0).then(|| plan.add_slot(keys * 8))
}

fn padded(n: u64) -> u64 {
    n.next_power_of_two().max(LANES as u64)
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn topk(
        &mut self,
        values: TileId,
        indices: TileId,
        src: TileId,
        smallest: bool,
    ) -> Emit {
        let dtype = self.kernel.tile(src).dtype;
        let shape = &self.kernel.tile(src).shape;
        let n = shape.last().copied().unwrap_or(1);
        let rows: u64 = shape[..shape.len() - 1].iter().product();
        let k = self.kernel.tile(values).shape.last().copied().unwrap_or(1);
        if rows == 0 || n == 0 || k == 0 {
            return Ok(());
        }
        let row = TopK {
            from: self.row_major(src)?,
            values: self.row_major(values)?,
            indices: self.row_major(indices)?,
            dtype,
            n: n as i64,
            k: k as i64,
            smallest,
        };
        self.repeat_rolled(0, rows as i64, 1, |e, r| {
            let start = e.b.mul_const(r, row.n);
            let out = e.b.mul_const(r, row.k);
            if dtype.bits() > 32 {
                return e.rank_by_counting(&row, start, out);
            }
            let keys = e.key_slot()?;
            e.make_keys(&row, &keys, start)?;
            if k <= PASSES {
                e.pick_in_passes(&row, &keys, (start, out))
            } else {
                e.sort_keys(&keys, padded(n) as i64)?;
                e.repeat_rolled(0, row.k, 1, |e, place| {
                    let key = e.load_key(&keys, place, 1);
                    e.deliver(&row, key, (start, out), place);
                    Ok(())
                })
            }
        })
    }

    fn key_slot(&mut self) -> Emit<Memory<'c>> {
        let Some(slot) = self.key_slot else {
            return Err(self.fault("no memory was planned for a sort"));
        };
        let offset = self.memory.slots[slot].offset as i64;
        Ok(Memory {
            base: self.b.offset(self.scratch, offset),
            dtype: DType::I64,
            elem: Elem::I64,
            strides: Vec::new(),
            scope: Some(Scope(self.slot_scope_base() + slot as u32)),
            packed: false,
            streamed: false,
        })
    }

    fn load_key(&mut self, keys: &Memory<'c>, at: Val<'c>, lanes: u32) -> Val<'c> {
        let p = self.b.gep(keys.base, at, Elem::I64);
        self.b.load(p, (Elem::I64, lanes), 8, keys.scope)
    }

    fn store_key(&mut self, keys: &Memory<'c>, at: Val<'c>, v: Val<'c>) {
        let p = self.b.gep(keys.base, at, Elem::I64);
        self.b.store(v, p, 8, keys.scope);
    }

    // ---- keys ------------------------------------------------------------------------------------------------

    fn make_keys(&mut self, row: &TopK<'c>, keys: &Memory<'c>, start: Val<'c>) -> Emit {
        let mut done = 0;
        for (width, upto) in super::pointwise::segments(row.n, LANES) {
            self.repeat_rolled(done, upto, width as i64, |e, i| {
                let at = e.b.addi(start, i);
                let form = match width {
                    1 => Form::Uniform(at),
                    _ => Form::Affine {
                        base: at,
                        step: 1,
                        multiple: 1,
                    },
                };
                let v = e.load(&row.from, form, None, width);
                let v = e.spread(v, width);
                let order = e.order_of(row, v)?;
                let high = e.b.resize(order, Elem::I64, true);
                let high = e.b.shl(high, 32);
                let index = match width {
                    1 => i,
                    _ => {
                        let lane = e.b.iota(width);
                        let first = e.b.broadcast(i, width);
                        e.b.addi(first, lane)
                    }
                };
                // Numbered from 1, so that no key is the least number there is.
                let index = e.b.add_const(index, 1);
                let key = e.b.ori(high, index);
                e.store_key(keys, i, key);
                Ok(())
            })?;
            done = upto;
        }
        let last = self.b.int(Elem::I64, 1, i64::MAX);
        self.repeat_rolled(row.n, padded(row.n as u64) as i64, 1, |e, i| {
            e.store_key(keys, i, last);
            Ok(())
        })
    }

    /// A signed 32-bit number that rises in the order wanted.
    fn order_of(&mut self, row: &TopK<'c>, v: Val<'c>) -> Emit<Val<'c>> {
        let lanes = v.lanes;
        let all = self.b.int(Elem::I32, lanes, -1);
        if row.dtype.is_float() {
            let wide = self.b.widen(v, row.dtype);
            // -0 and +0 are equal.
            let zero = self.b.f32(lanes, 0.0);
            let wide = self.b.addf(wide, zero);
            let bits = self.b.bitcast(wide, Elem::I32);
            let sign = self.b.shift_right_signed(bits, 31);
            let magnitude = self.b.int(Elem::I32, lanes, 0x7fff_ffff);
            let flip = self.b.andi(sign, magnitude);
            let rising = self.b.xori(bits, flip);
            let order = match row.smallest {
                true => rising,
                false => self.b.xori(rising, all),
            };
            let is_nan = self.b.cmpf(FloatCompare::Uno, wide, wide);
            return Ok(self.b.select(is_nan, magnitude, order));
        }
        let signed = row.dtype.is_signed_int();
        let wide = self.b.resize(v, Elem::I32, signed);
        let rising = match row.dtype {
            DType::U32 => {
                let top = self.b.int(Elem::I32, lanes, i32::MIN as i64);
                self.b.xori(wide, top)
            }
            _ => wide,
        };
        Ok(match row.smallest {
            true => rising,
            false => self.b.xori(rising, all),
        })
    }

    /// Writes the element that a key names to place `place` of the results.
    fn deliver(
        &mut self,
        row: &TopK<'c>,
        key: Val<'c>,
        (start, out): (Val<'c>, Val<'c>),
        place: Val<'c>,
    ) {
        let low = self.b.i64(0xffff_ffff);
        let index = self.b.andi(key, low);
        let index = self.b.add_const(index, -1);
        self.deliver_index(row, index, (start, out), place);
    }

    fn deliver_index(
        &mut self,
        row: &TopK<'c>,
        index: Val<'c>,
        (start, out): (Val<'c>, Val<'c>),
        place: Val<'c>,
    ) {
        let at = self.b.addi(start, index);
        let v = self.load(&row.from, Form::Uniform(at), None, 1);
        let to = self.b.addi(out, place);
        self.store(&row.values, Form::Uniform(to), v, None, 1);
        let index = self.b.resize(index, Elem::I32, false);
        self.store(
            &row.indices,
            Form::Uniform(to),
            Form::Uniform(index),
            None,
            1,
        );
    }

    // ---- a few, in passes --------------------------------------------------------------------------------------

    fn pick_in_passes(
        &mut self,
        row: &TopK<'c>,
        keys: &Memory<'c>,
        (start, out): (Val<'c>, Val<'c>),
    ) -> Emit {
        let (zero, k) = (self.b.i64(0), self.b.i64(row.k));
        let none = self.b.i64(i64::MIN);
        let open = self.b.begin_rolled_for(zero, k, 1, &[none]);
        let last = self.b.broadcast(open.carried[0], LANES);
        let beyond = self.b.int(Elem::I64, LANES, i64::MAX);
        let end = self.b.i64(padded(row.n as u64) as i64);
        let pass = self.b.begin_rolled_for(zero, end, LANES as i64, &[beyond]);
        let v = self.load_key(keys, pass.iv, LANES);
        let later = self.b.cmpi(IntCompare::Sgt, v, last);
        let v = self.b.select(later, v, beyond);
        let least = self.b.min_signed(pass.carried[0], v);
        let mut least = self.b.end_for(pass, &[least])[0];
        while least.lanes > 1 {
            let half = least.lanes / 2;
            let low = self.b.slice(least, 0, half);
            let high = self.b.slice(least, half, half);
            least = self.b.min_signed(low, high);
        }
        self.deliver(row, least, (start, out), open.iv);
        self.b.end_for(open, &[least]);
        Ok(())
    }

    // ---- a bitonic sort ------------------------------------------------------------------------------------------

    /// Sorts `n` keys, a power of two, rising. Blocks of eight in registers; then runs of `2^s` are merged for rising s: the two halves
    /// of a run are compared crosswise, then at falling distances.
    fn sort_keys(&mut self, keys: &Memory<'c>, n: i64) -> Emit {
        self.repeat_rolled(0, n, LANES as i64, |e, i| {
            let v = e.load_key(keys, i, LANES);
            let v = e.merge_lanes(v, &[1, 3, 1, 7, 2, 1]);
            e.store_key(keys, i, v);
            Ok(())
        })?;
        let stages = n.ilog2() as i64;
        if stages <= 3 {
            return Ok(());
        }
        let (first, end) = (self.b.i64(4), self.b.i64(stages + 1));
        let open = self.b.begin_rolled_for(first, end, 1, &[]);
        let s = open.iv;
        let one = self.b.i64(1);
        let half_bits = self.b.subi(s, one);
        let run = self.b.binary("arith.shli", one, s);
        let half = self.b.binary("arith.shli", one, half_bits);
        let half_mask = self.b.add_const(half, -1);
        self.repeat_rolled(0, n / 2, LANES as i64, |e, p| {
            let block = e.b.binary("arith.shrsi", p, half_bits);
            let base = e.b.binary("arith.shli", block, s);
            let within = e.b.andi(p, half_mask);
            let low_at = e.b.addi(base, within);
            let last = e.b.addi(base, run);
            let last = e.b.add_const(last, -(LANES as i64));
            let high_at = e.b.subi(last, within);
            let low = e.load_key(keys, low_at, LANES);
            let high = e.load_key(keys, high_at, LANES);
            let back: Vec<i64> = (0..LANES as i64).rev().collect();
            let high = e.b.shuffle(high, high, &back);
            let less = e.b.min_signed(low, high);
            let more = e.b.max_signed(low, high);
            let more = e.b.shuffle(more, more, &back);
            e.store_key(keys, low_at, less);
            e.store_key(keys, high_at, more);
            Ok(())
        })?;
        // Distances 2^t for t = s - 2 down to 3.
        let (zero, count) = (self.b.i64(0), self.b.add_const(s, -4));
        let distances = self.b.begin_rolled_for(zero, count, 1, &[]);
        let t = self.b.add_const(s, -2);
        let t = self.b.subi(t, distances.iv);
        let t_next = self.b.add_const(t, 1);
        let distance = self.b.binary("arith.shli", one, t);
        let mask = self.b.add_const(distance, -1);
        self.repeat_rolled(0, n / 2, LANES as i64, |e, p| {
            let block = e.b.binary("arith.shrsi", p, t);
            let base = e.b.binary("arith.shli", block, t_next);
            let within = e.b.andi(p, mask);
            let low_at = e.b.addi(base, within);
            let high_at = e.b.addi(low_at, distance);
            let low = e.load_key(keys, low_at, LANES);
            let high = e.load_key(keys, high_at, LANES);
            let less = e.b.min_signed(low, high);
            let more = e.b.max_signed(low, high);
            e.store_key(keys, low_at, less);
            e.store_key(keys, high_at, more);
            Ok(())
        })?;
        self.b.end_for(distances, &[]);
        self.repeat_rolled(0, n, LANES as i64, |e, i| {
            let v = e.load_key(keys, i, LANES);
            let v = e.merge_lanes(v, &[4, 2, 1]);
            e.store_key(keys, i, v);
            Ok(())
        })?;
        self.b.end_for(open, &[]);
        Ok(())
    }

    /// Steps within a vector: each lane is compared with lane `l ^ x`, the lower lane keeping the lesser.
    fn merge_lanes(&mut self, mut v: Val<'c>, steps: &[i64]) -> Val<'c> {
        for &x in steps {
            let other: Vec<i64> = (0..LANES as i64).map(|l| l ^ x).collect();
            let swapped = self.b.shuffle(v, v, &other);
            let less = self.b.min_signed(v, swapped);
            let more = self.b.max_signed(v, swapped);
            let pick: Vec<i64> = (0..LANES as i64)
                .map(|l| if l < l ^ x { l } else { l + LANES as i64 })
                .collect();
            v = self.b.shuffle(less, more, &pick);
        }
        v
    }

    // ---- 64-bit elements --------------------------------------------------------------------------------------------

    fn rank_by_counting(&mut self, row: &TopK<'c>, start: Val<'c>, out: Val<'c>) -> Emit {
        let ty = Type::Scalar(row.dtype);
        let (zero, n, k) = (self.b.i64(0), self.b.i64(row.n), self.b.i64(row.k));
        let open = self.b.begin_rolled_for(zero, n, 1, &[]);
        let i = open.iv;
        let x = self.row_element(row, start, i);
        let counting = self.b.begin_rolled_for(zero, n, 1, &[zero]);
        let j = counting.iv;
        let y = self.row_element(row, start, j);
        let p = if row.smallest {
            Predicate::Lt
        } else {
            Predicate::Gt
        };
        let mut before = self.b.compare_op(p, y, x, ty);
        let mut alike = self.b.compare_op(Predicate::Eq, y, x, ty);
        if row.dtype.is_float() {
            let nan_x = self.b.cmpf(FloatCompare::Uno, x, x);
            let nan_y = self.b.cmpf(FloatCompare::Uno, y, y);
            let both = self.b.andi(nan_x, nan_y);
            alike = self.b.ori(alike, both);
            let yes = self.b.int(Elem::I1, 1, 1);
            let number = self.b.xori(nan_y, yes);
            let ahead = self.b.andi(nan_x, number);
            before = self.b.ori(before, ahead);
        }
        let earlier = self.b.cmpi(IntCompare::Slt, j, i);
        let tie = self.b.andi(alike, earlier);
        let before = self.b.ori(before, tie);
        let one = self.b.resize(before, Elem::I64, false);
        let count = self.b.addi(counting.carried[0], one);
        let rank = self.b.end_for(counting, &[count])[0];
        let chosen = self.b.cmpi(IntCompare::Slt, rank, k);
        let keep = self.b.begin_if(chosen);
        self.deliver_index(row, i, (start, out), rank);
        self.b.end_if(keep);
        self.b.end_for(open, &[]);
        Ok(())
    }

    fn row_element(&mut self, row: &TopK<'c>, start: Val<'c>, i: Val<'c>) -> Val<'c> {
        let at = self.b.addi(start, i);
        let v = self.load(&row.from, Form::Uniform(at), None, 1);
        self.spread(v, 1)
    }
}

struct TopK<'c> {
    from: Memory<'c>,
    values: Memory<'c>,
    indices: Memory<'c>,
    dtype: DType,
    n: i64,
    k: i64,
    smallest: bool,
}
