//! Values by lane, and memory accesses in terms of them.
//!
//! A value inside a vectorised loop has a [`Form`]: the same in all lanes, an `index` that grows evenly with the lane, or a vector.
//! An access whose offset is even with step 1 is one vector load or store; with step 0 a scalar one; else a gather or scatter.

use super::Emitter;
use crate::mlir::build::{Elem, IntCompare, Scope, Val};
use crate::mlir::scalar::held_as;
use crate::target::cpu::CACHE_LINE_BYTES;
use crate::tile::ir::Type;
use tessera_artifact::DType;

#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'c> {
    /// The same in every lane.
    Uniform(Val<'c>),
    /// An `index`: lane l holds `base + step * l`. `multiple` is known to divide `base`.
    Affine {
        base: Val<'c>,
        step: i64,
        multiple: i64,
    },
    /// A vector.
    Varying(Val<'c>),
}

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
    pub elem: Elem,
    /// In elements.
    pub strides: Vec<Stride<'c>>,
    pub scope: Option<Scope>,
    /// Two e2m1 codes to a byte.
    pub packed: bool,
    /// Stores of whole cache lines go past the caches; they are aligned.
    pub streamed: bool,
}

impl Memory<'_> {
    pub fn element_bytes(&self) -> u32 {
        self.elem.bits() / 8
    }
}

impl<'c> Emitter<'_, 'c> {
    // ---- forms ----------------------------------------------------------------------------------------

    /// The value as a vector of `lanes` (a scalar for one lane).
    pub(super) fn spread(&mut self, form: Form<'c>, lanes: u32) -> Val<'c> {
        match form {
            Form::Uniform(v) => self.b.broadcast(v, lanes),
            Form::Varying(v) => v,
            Form::Affine { base, step, .. } => {
                if lanes == 1 {
                    return base;
                }
                let base = self.b.broadcast(base, lanes);
                let lane = self.b.iota(lanes);
                let grown = self.b.mul_const(lane, step);
                self.b.addi(base, grown)
            }
        }
    }

    pub(super) fn form_of(&self, v: Val<'c>) -> Form<'c> {
        if v.lanes == 1 {
            Form::Uniform(v)
        } else {
            Form::Varying(v)
        }
    }

    pub(super) fn add_forms(&mut self, a: Form<'c>, b: Form<'c>, lanes: u32) -> Form<'c> {
        use Form::*;
        match (a, b) {
            (Uniform(a), Uniform(b)) => Uniform(self.b.addi(a, b)),
            (Affine { base, step, .. }, Uniform(u)) | (Uniform(u), Affine { base, step, .. }) => {
                Affine {
                    base: self.b.addi(base, u),
                    step,
                    multiple: 1,
                }
            }
            (
                Affine {
                    base: x,
                    step: s,
                    multiple: m,
                },
                Affine {
                    base: y,
                    step: t,
                    multiple: n,
                },
            ) => Affine {
                base: self.b.addi(x, y),
                step: s + t,
                multiple: gcd(m, n),
            },
            (a, b) => {
                let a = self.spread(a, lanes);
                let b = self.spread(b, lanes);
                Varying(self.b.addi(a, b))
            }
        }
    }

    pub(super) fn scale_form(&mut self, a: Form<'c>, by: i64) -> Form<'c> {
        match a {
            Form::Uniform(v) => Form::Uniform(self.b.mul_const(v, by)),
            Form::Varying(v) => Form::Varying(self.b.mul_const(v, by)),
            Form::Affine {
                base,
                step,
                multiple,
            } => Form::Affine {
                base: self.b.mul_const(base, by),
                step: step * by,
                multiple: multiple.saturating_mul(by.abs()).max(1),
            },
        }
    }

    // ---- offsets --------------------------------------------------------------------------------------

    /// The element that `index` names, counted from the base.
    pub(super) fn offset(
        &mut self,
        memory: &Memory<'c>,
        index: &[Form<'c>],
        lanes: u32,
    ) -> Form<'c> {
        let mut total: Option<Form<'c>> = None;
        for (&at, stride) in index.iter().zip(&memory.strides) {
            let part = match *stride {
                Stride::Const(0) => continue,
                Stride::Const(s) => self.scale_form(at, s),
                Stride::Dynamic(s) => match at {
                    Form::Uniform(v) => Form::Uniform(self.b.muli(v, s)),
                    at => {
                        let at = self.spread(at, lanes);
                        let s = self.b.broadcast(s, lanes);
                        Form::Varying(self.b.muli(at, s))
                    }
                },
            };
            total = Some(match total {
                None => part,
                Some(sum) => self.add_forms(sum, part, lanes),
            });
        }
        match total {
            Some(form) => form,
            None => Form::Uniform(self.b.i64(0)),
        }
    }

    pub(super) fn address(&mut self, memory: &Memory<'c>, offset: Val<'c>) -> Val<'c> {
        self.b.gep(memory.base, offset, memory.elem)
    }

    // ---- loads ----------------------------------------------------------------------------------------

    /// Elements as `held_as` holds them; 0 where the guard is false, and nothing is read there.
    pub(super) fn load(
        &mut self,
        memory: &Memory<'c>,
        offset: Form<'c>,
        guard: Option<Form<'c>>,
        lanes: u32,
    ) -> Form<'c> {
        let uniform_access =
            matches!(offset, Form::Uniform(_)) && matches!(guard, None | Some(Form::Uniform(_)));
        let width = if uniform_access { 1 } else { lanes };
        let raw = if memory.packed {
            self.load_packed(memory, offset, guard, width)
        } else {
            self.load_plain(memory, offset, guard, width)
        };
        let held = self.b.from_stored(raw, memory.dtype);
        self.form_of(held)
    }

    fn load_plain(
        &mut self,
        memory: &Memory<'c>,
        offset: Form<'c>,
        guard: Option<Form<'c>>,
        lanes: u32,
    ) -> Val<'c> {
        let align = memory.element_bytes();
        let ty = (memory.elem, lanes);
        let contiguous = match offset {
            Form::Uniform(at) if lanes == 1 => Some(at),
            Form::Affine { base, step: 1, .. } => Some(base),
            Form::Affine { base, .. } if lanes == 1 => Some(base),
            _ => None,
        };
        match (contiguous, guard) {
            (Some(at), None) => {
                let p = self.address(memory, at);
                self.b.load(p, ty, align, memory.scope)
            }
            (Some(at), Some(Form::Uniform(g))) => {
                // Where the guard is false, zeros on the stack are read instead. They lie in no scope.
                let p = self.address(memory, at);
                let zeros = self.zeros();
                let p = self.b.select(g, p, zeros);
                self.b.load(p, ty, align, None)
            }
            (Some(at), Some(g)) => {
                let p = self.address(memory, at);
                let mask = self.spread(g, lanes);
                self.b.masked_load(p, mask, memory.elem, align)
            }
            (None, guard) => {
                let at = self.spread(offset, lanes);
                let p = self.b.gep(memory.base, at, memory.elem);
                let mask = match guard {
                    Some(g) => self.spread(g, lanes),
                    None => self.b.int(Elem::I1, lanes, 1),
                };
                self.b.gather(p, mask, memory.elem, align)
            }
        }
    }

    /// One e2m1 code a lane, from two to a byte.
    fn load_packed(
        &mut self,
        memory: &Memory<'c>,
        offset: Form<'c>,
        guard: Option<Form<'c>>,
        lanes: u32,
    ) -> Val<'c> {
        if let (Form::Affine { base, step: 1, .. }, None) = (offset, guard)
            && lanes >= 4
        {
            return self.load_packed_run(memory, base, lanes);
        }
        let bytes = Memory {
            packed: false,
            ..memory.clone()
        };
        let at = self.spread(offset, lanes);
        let one = self.b.int(Elem::I64, lanes, 1);
        let odd = self.b.andi(at, one);
        let byte_at = self.b.shift_right_signed(at, 1);
        let byte = self.load_plain(&bytes, self.form_of(byte_at), guard, lanes);
        let shift = self.b.resize(odd, Elem::I8, false);
        let shift = self.b.shl(shift, 2);
        let shifted = self.b.binary("arith.shrui", byte, shift);
        let mask = self.b.int(Elem::I8, lanes, 0xf);
        self.b.andi(shifted, mask)
    }

    /// Neighbouring codes: the bytes that hold the even number of them, shifted by one code where the first is a high half.
    fn load_packed_run(&mut self, memory: &Memory<'c>, base: Val<'c>, lanes: u32) -> Val<'c> {
        let first = self.b.shift_right_signed(base, 1);
        let p = self.b.gep(memory.base, first, Elem::I8);
        let bytes = self.b.load(p, (Elem::I8, lanes / 2), 1, memory.scope);
        let nibble = self.b.int(Elem::I8, lanes / 2, 0xf);
        let low = self.b.andi(bytes, nibble);
        let high = self.b.shr(bytes, 4);
        let half = (lanes / 2) as i64;
        let zip: Vec<i64> = (0..half).flat_map(|i| [i, i + half]).collect();
        let from_even = self.b.shuffle(low, high, &zip);
        // The last code's byte is read by itself: a byte after it may belong to nobody.
        let last = self.b.add_const(base, lanes as i64 - 1);
        let last = self.b.shift_right_signed(last, 1);
        let p = self.b.gep(memory.base, last, Elem::I8);
        let last = self.b.load(p, (Elem::I8, 1), 1, memory.scope);
        let one_nibble = self.b.int(Elem::I8, 1, 0xf);
        let last = self.b.andi(last, one_nibble);
        let last = self.b.broadcast(last, lanes);
        let shifted: Vec<i64> = (1..=lanes as i64).collect();
        let from_odd = self.b.shuffle(from_even, last, &shifted);
        let odd = self.b.resize(base, Elem::I1, false);
        self.b.select(odd, from_odd, from_even)
    }

    /// Zeros for a guarded vector load, made once per CTA function.
    fn zeros(&mut self) -> Val<'c> {
        if let Some(zeros) = self.zeros {
            return zeros;
        }
        const BYTES: u64 = 512;
        let zeros = self.b.alloca(BYTES);
        let here = self.b.block();
        self.b.set_block(self.b.entry());
        let lanes = 64;
        let zero = self.b.zero(Elem::I8, lanes);
        for at in (0..BYTES as i64).step_by(lanes as usize) {
            let p = self.b.offset(zeros, at);
            self.b.store(zero, p, lanes, None);
        }
        self.b.set_block(here);
        self.zeros = Some(zeros);
        zeros
    }

    // ---- stores ---------------------------------------------------------------------------------------

    /// Stores a value as `held_as` holds it, in the lanes where the guard holds.
    pub(super) fn store(
        &mut self,
        memory: &Memory<'c>,
        offset: Form<'c>,
        value: Form<'c>,
        guard: Option<Form<'c>>,
        lanes: u32,
    ) {
        let value = self.spread(value, lanes);
        let value = self.b.to_stored(value, memory.dtype);
        if let Some(Form::Uniform(g)) = guard {
            let open = self.b.begin_if(g);
            self.store_lanes(memory, offset, value, None, lanes);
            self.b.end_if(open);
        } else {
            self.store_lanes(memory, offset, value, guard, lanes);
        }
    }

    fn store_lanes(
        &mut self,
        memory: &Memory<'c>,
        offset: Form<'c>,
        value: Val<'c>,
        guard: Option<Form<'c>>,
        lanes: u32,
    ) {
        if memory.packed {
            return self.store_packed(memory, offset, value, guard, lanes);
        }
        let align = memory.element_bytes();
        let contiguous = match offset {
            Form::Uniform(at) if lanes == 1 => Some(at),
            Form::Affine { base, step, .. } if step == 1 || lanes == 1 => Some(base),
            _ => None,
        };
        match (contiguous, guard) {
            (Some(at), None) => {
                let p = self.address(memory, at);
                if memory.streamed {
                    self.b
                        .store_streaming(value, p, CACHE_LINE_BYTES, memory.scope);
                } else {
                    self.b.store(value, p, align, memory.scope);
                }
            }
            (Some(at), Some(g)) => {
                let p = self.address(memory, at);
                let mask = self.spread(g, lanes);
                self.b.masked_store(value, p, mask, align);
            }
            (None, guard) => {
                let at = self.spread(offset, lanes);
                let p = self.b.gep(memory.base, at, memory.elem);
                let mask = match guard {
                    Some(g) => self.spread(g, lanes),
                    None => self.b.int(Elem::I1, lanes, 1),
                };
                self.b.scatter(value, p, mask, align);
            }
        }
    }

    /// Read, modify, write of half a byte, lane after lane.
    fn store_packed(
        &mut self,
        memory: &Memory<'c>,
        offset: Form<'c>,
        value: Val<'c>,
        guard: Option<Form<'c>>,
        lanes: u32,
    ) {
        if let (Form::Affine { base, step: 1, .. }, None) = (offset, guard)
            && lanes >= 4
        {
            return self.store_packed_run(memory, base, value);
        }
        let at = self.spread(offset, lanes);
        let mask = guard.map(|g| self.spread(g, lanes));
        for lane in 0..lanes {
            let at = self.b.extract(at, lane);
            let code = self.b.extract(value, lane);
            let guard = mask.map(|m| self.b.extract(m, lane));
            let open = guard.map(|g| self.b.begin_if(g));
            self.store_nibble(memory, at, code);
            if let Some(open) = open {
                self.b.end_if(open);
            }
        }
    }

    /// Neighbouring codes, an even number: whole bytes, or half a byte at each end.
    fn store_packed_run(&mut self, memory: &Memory<'c>, base: Val<'c>, value: Val<'c>) {
        let lanes = value.lanes as i64;
        let odd = self.b.resize(base, Elem::I1, false);
        let mut open = self.b.begin_if(odd);
        let first = self.b.extract(value, 0);
        self.store_nibble(memory, base, first);
        let inner = self.b.add_const(base, 1);
        self.store_bytes(memory, inner, value, 1, lanes - 1);
        let last_at = self.b.add_const(base, lanes - 1);
        let last = self.b.extract(value, lanes as u32 - 1);
        self.store_nibble(memory, last_at, last);
        self.b.otherwise(&mut open);
        self.store_bytes(memory, base, value, 0, lanes);
        self.b.end_if(open);
    }

    /// Lanes `from..to` of the codes as whole bytes, the first at the even position `at`.
    fn store_bytes(
        &mut self,
        memory: &Memory<'c>,
        at: Val<'c>,
        value: Val<'c>,
        from: i64,
        to: i64,
    ) {
        let low: Vec<i64> = (from..to).step_by(2).collect();
        let high: Vec<i64> = (from + 1..to).step_by(2).collect();
        let nibble = self.b.int(Elem::I8, value.lanes, 0xf);
        let codes = self.b.andi(value, nibble);
        let shifted = self.b.shl(codes, 4);
        let low = self.b.shuffle(codes, codes, &low);
        let high = self.b.shuffle(shifted, shifted, &high);
        let bytes = self.b.ori(low, high);
        let byte_at = self.b.shift_right_signed(at, 1);
        let p = self.b.gep(memory.base, byte_at, Elem::I8);
        self.b.store(bytes, p, 1, memory.scope);
    }

    pub(super) fn store_nibble(&mut self, memory: &Memory<'c>, at: Val<'c>, code: Val<'c>) {
        let byte_at = self.b.shift_right_signed(at, 1);
        let p = self.b.gep(memory.base, byte_at, Elem::I8);
        let old = self.b.load(p, (Elem::I8, 1), 1, memory.scope);
        let one = self.b.i64(1);
        let odd = self.b.andi(at, one);
        let shift = self.b.resize(odd, Elem::I8, false);
        let shift = self.b.shl(shift, 2);
        let nibble = self.b.int(Elem::I8, 1, 0xf);
        let code = self.b.andi(code, nibble);
        let placed = self.b.binary("arith.shli", code, shift);
        let hole = self.b.binary("arith.shli", nibble, shift);
        let all = self.b.int(Elem::I8, 1, -1);
        let keep = self.b.xori(hole, all);
        let kept = self.b.andi(old, keep);
        let new = self.b.ori(kept, placed);
        self.b.store(new, p, 1, memory.scope);
    }

    // ---- comparisons of evenly growing indices --------------------------------------------------------

    /// `base + step * lane` against a uniform value, in 32-bit lanes: the distance is clamped to where no lane can reach.
    pub(super) fn compare_affine(
        &mut self,
        predicate: IntCompare,
        (base, step): (Val<'c>, i64),
        against: Val<'c>,
        lanes: u32,
    ) -> Val<'c> {
        const FAR: i64 = 1 << 30;
        let distance = self.b.subi(against, base);
        let far = self.b.i64(FAR);
        let near = self.b.i64(-FAR);
        let distance = self.b.min_signed(distance, far);
        let distance = self.b.max_signed(distance, near);
        let distance = self.b.resize(distance, Elem::I32, true);
        let distance = self.b.broadcast(distance, lanes);
        let steps: Vec<i32> = (0..lanes as i32).map(|l| l * step as i32).collect();
        let lane = self.b.table_i32(&steps);
        self.b.cmpi(predicate, lane, distance)
    }

    /// The zero of a type.
    pub(super) fn zero_of(&mut self, dtype: DType) -> Form<'c> {
        let elem = held_as(Type::Scalar(dtype));
        Form::Uniform(self.b.zero(elem, 1))
    }
}

pub(super) fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 {
        a.abs().max(1)
    } else {
        gcd(b, a % b)
    }
}
