//! Operands moved to where, and how, the micro-kernel reads them: A as `[m, k]`, B as panels.
//!
//! Keeps: values; conversions are exact.

use super::*;

impl<'c> Emitter<'_, 'c> {
    fn pack_slot(&mut self, slot: Option<usize>, elem: Elem) -> Emit<Memory<'c>> {
        let Some(slot) = slot else {
            return Err(self.fault("no memory was planned for a packed operand"));
        };
        let offset = self.memory.slots[slot].offset as i64;
        Ok(Memory {
            base: self.b.offset(self.scratch, offset),
            dtype: DType::F32,
            elem,
            strides: Vec::new(),
            scope: Some(Scope(self.slot_scope_base() + slot as u32)),
            packed: false,
            streamed: false,
        })
    }

    /// An element as the micro-kernel takes it.
    pub(super) fn convert_operand(
        &mut self,
        v: Val<'c>,
        dtype: DType,
        arithmetic: Arithmetic,
    ) -> Emit<Val<'c>> {
        let to = match arithmetic {
            Arithmetic::I32 => return Ok(self.b.resize(v, Elem::I32, dtype.is_signed_int())),
            Arithmetic::F64 => DType::F64,
            _ => DType::F32,
        };
        if dtype == DType::Tf32 {
            return Ok(self.b.round_to_tf32(v));
        }
        let r = self.b.cast(v, Type::Scalar(dtype), Type::Scalar(to));
        self.lowered(r)
    }

    /// A as `[m, steps]`.
    pub(super) fn pack_a(&mut self, a: &Matrix<'c>, blocking: &Blocking) -> Emit<Fed<'c>> {
        let slot = self.pack_slot(self.pack_slots.a, blocking.arithmetic.packed())?;
        let steps = blocking.steps as i64;
        let [m, k] = a.extents;
        let fed = Fed {
            base: slot.base,
            scope: slot.scope,
            strides: [steps, 1],
            at: self.b.i64(0),
            narrow: None,
            elem: slot.elem,
            panels: false,
        };
        if blocking.arithmetic.pairs() {
            self.repeat_rolled(0, m as i64, 1, |e, row| {
                let from = e.b.mul_const(row, a.strides[0]);
                let from = e.b.addi(a.at, from);
                let to = e.b.mul_const(row, steps);
                e.pack_pairs(a, &slot, blocking.arithmetic, k, (from, a.strides[1]), to)
            })?;
            return Ok(fed);
        }
        let lanes = self.machine.lanes(4);
        self.repeat_rolled(0, m as i64, 1, |e, row| {
            let from = e.b.mul_const(row, a.strides[0]);
            let from = e.b.addi(a.at, from);
            let to = e.b.mul_const(row, steps);
            let mut done = 0;
            for (width, upto) in segments(k as i64, lanes) {
                e.repeat_rolled(done, upto, width as i64, |e, i| {
                    let v = e.load_strided(&a.memory, from, i, a.strides[1], width);
                    let v = e.convert_operand(v, a.memory.dtype, blocking.arithmetic)?;
                    let at = e.b.addi(to, i);
                    e.store_packed_vector(&slot, at, v);
                    Ok(())
                })?;
                done = upto;
            }
            Ok(())
        })?;
        Ok(fed)
    }

    fn load_strided(
        &mut self,
        memory: &Memory<'c>,
        base: Val<'c>,
        i: Val<'c>,
        stride: i64,
        width: u32,
    ) -> Val<'c> {
        let part = self.b.mul_const(i, stride);
        let at = self.b.addi(base, part);
        let form = match width {
            1 => Form::Uniform(at),
            _ => Form::Affine {
                base: at,
                step: stride,
                multiple: 1,
            },
        };
        let v = self.load(memory, form, None, width);
        self.spread(v, width)
    }

    fn store_packed_vector(&mut self, slot: &Memory<'c>, at: Val<'c>, v: Val<'c>) {
        let p = self.b.gep(slot.base, at, slot.elem);
        self.b.store(v, p, slot.elem.bits() / 8, slot.scope);
    }

    /// One vector of k, as pairs: swapped and widened, or two bf16 to an i32. `from` is element k = 0 and the step.
    fn pack_pairs(
        &mut self,
        x: &Matrix<'c>,
        slot: &Memory<'c>,
        arithmetic: Arithmetic,
        k: u64,
        (from, step): (Val<'c>, i64),
        to: Val<'c>,
    ) -> Emit {
        let lanes = self.machine.lanes(4);
        let pairs = (k / 2) as i64;
        let mut done = 0;
        for (width, upto) in segments(pairs, lanes / 2) {
            self.repeat_rolled(done, upto, width as i64, |e, p| {
                let i = e.b.mul_const(p, 2);
                let v = e.load_strided(&x.memory, from, i, step, 2 * width);
                match arithmetic {
                    Arithmetic::DotPairs => {
                        let v = e.b.vector_bitcast(v, Elem::I32);
                        let v = if width == 1 { e.b.extract_only(v) } else { v };
                        let at = e.b.addi(to, p);
                        e.store_packed_vector(slot, at, v);
                    }
                    _ => {
                        let swap: Vec<i64> = (0..2 * width as i64).map(|l| l ^ 1).collect();
                        let v = e.b.shuffle(v, v, &swap);
                        let v = e.convert_operand(v, x.memory.dtype, arithmetic)?;
                        let at = e.b.addi(to, i);
                        e.store_packed_vector(slot, at, v);
                    }
                }
                Ok(())
            })?;
            done = upto;
        }
        if k % 2 == 1 {
            // The odd k of the last pair is zero.
            let last = self.b.i64(k as i64 - 1);
            let v = self.load_strided(&x.memory, from, last, step, 1);
            match arithmetic {
                Arithmetic::DotPairs => {
                    let v = self.b.resize(v, Elem::I32, false);
                    let at = self.b.add_const(to, pairs);
                    self.store_packed_vector(slot, at, v);
                }
                _ => {
                    let v = self.convert_operand(v, x.memory.dtype, arithmetic)?;
                    let at = self.b.add_const(to, k as i64 - 1);
                    let zero = self.b.zero(Elem::F32, 1);
                    self.store_packed_vector(slot, at, zero);
                    let at = self.b.add_const(to, k as i64);
                    self.store_packed_vector(slot, at, v);
                }
            }
        }
        Ok(())
    }

    /// B as panels of `width` columns, the last one as narrow as it is.
    pub(super) fn pack_b(&mut self, b: &Matrix<'c>, blocking: &Blocking) -> Emit<Fed<'c>> {
        let slot = self.pack_slot(self.pack_slots.b, blocking.arithmetic.packed())?;
        let n = b.extents[1] as i64;
        let width = blocking.width() as i64;
        let whole = n / width * width;
        let steps = blocking.steps as i64;
        self.repeat_rolled(0, whole, width, |e, column| {
            let to = e.b.mul_const(column, steps);
            e.pack_panel(b, &slot, blocking, column, width, to)
        })?;
        if whole < n {
            let column = self.b.i64(whole);
            let to = self.b.i64(whole * steps);
            self.pack_panel(b, &slot, blocking, column, n - whole, to)?;
        }
        Ok(Fed {
            base: slot.base,
            scope: slot.scope,
            strides: [0, 0],
            at: self.b.i64(0),
            narrow: None,
            elem: slot.elem,
            panels: true,
        })
    }

    fn pack_panel(
        &mut self,
        b: &Matrix<'c>,
        slot: &Memory<'c>,
        blocking: &Blocking,
        column: Val<'c>,
        width: i64,
        to: Val<'c>,
    ) -> Emit {
        let arithmetic = blocking.arithmetic;
        let k = b.extents[0];
        let from = self.b.mul_const(column, b.strides[1]);
        let from = self.b.addi(b.at, from);
        if b.strides[1] == 1 {
            return self.pack_rows(b, slot, arithmetic, from, width, to);
        }
        // Columns lie in memory as runs of k: blocks of eight by eight are transposed in registers.
        let block = 8;
        let units = match arithmetic {
            Arithmetic::DotPairs => k as i64 / 2,
            _ => k as i64,
        };
        let regular = b.strides[0] == 1 && self.transposable(arithmetic, b.memory.dtype);
        let whole_columns = if regular { width / block * block } else { 0 };
        let whole_units = if regular { units / block * block } else { 0 };
        self.repeat_rolled(0, whole_columns, block, |e, j| {
            e.repeat_rolled(0, whole_units, block, |e, u| {
                e.pack_block(b, slot, arithmetic, (from, to), (j, u), width)
            })
        })?;
        // What is left, element after element.
        let rest = |e: &mut Self, columns: (i64, i64), units: (i64, i64)| {
            e.repeat_rolled(units.0, units.1, 1, |e, u| {
                e.repeat_rolled(columns.0, columns.1, 1, |e, j| {
                    e.pack_unit(b, slot, arithmetic, (from, to), (j, u), width)
                })
            })
        };
        let all_units = blocking.steps as i64;
        rest(self, (0, whole_columns), (whole_units, all_units))?;
        rest(self, (whole_columns, width), (0, all_units))
    }

    fn transposable(&self, arithmetic: Arithmetic, dtype: DType) -> bool {
        match arithmetic {
            Arithmetic::F64 => false,
            Arithmetic::I32 => true,
            _ => dtype != DType::F64,
        }
    }

    /// Rows of k that are contiguous in n.
    fn pack_rows(
        &mut self,
        b: &Matrix<'c>,
        slot: &Memory<'c>,
        arithmetic: Arithmetic,
        from: Val<'c>,
        width: i64,
        to: Val<'c>,
    ) -> Emit {
        let k = b.extents[0] as i64;
        let lanes = self.machine.lanes(4) * 2;
        let mut done = 0;
        for (w, upto) in segments(width, lanes) {
            let (start, end) = (done, upto);
            match arithmetic {
                Arithmetic::DotPairs => {
                    self.repeat_rolled(0, k / 2, 1, |e, p| {
                        e.repeat_rolled(start, end, w as i64, |e, j| {
                            let even_row = e.b.mul_const(p, 2 * b.strides[0]);
                            let even_at = e.b.addi(from, even_row);
                            let odd_at = e.b.add_const(even_at, b.strides[0]);
                            let even = e.load_strided(&b.memory, even_at, j, 1, w);
                            let odd = e.load_strided(&b.memory, odd_at, j, 1, w);
                            let row = e.b.mul_const(p, width);
                            let at = e.b.addi(to, row);
                            let at = e.b.addi(at, j);
                            e.store_pair(slot, at, even, odd);
                            Ok(())
                        })
                    })?;
                    if k % 2 == 1 {
                        self.repeat_rolled(start, end, w as i64, |e, j| {
                            let even_at = e.b.add_const(from, (k - 1) * b.strides[0]);
                            let even = e.load_strided(&b.memory, even_at, j, 1, w);
                            let odd = e.b.zero(Elem::I16, w);
                            let at = e.b.add_const(to, k / 2 * width);
                            let at = e.b.addi(at, j);
                            e.store_pair(slot, at, even, odd);
                            Ok(())
                        })?;
                    }
                }
                _ => {
                    let swap = arithmetic.pairs();
                    self.repeat_rolled(0, k, 1, |e, row| {
                        // The k of a pair change places.
                        let place = match swap {
                            true => {
                                let one = e.b.i64(1);
                                e.b.xori(row, one)
                            }
                            false => row,
                        };
                        let source = e.b.mul_const(row, b.strides[0]);
                        let source = e.b.addi(from, source);
                        let target = e.b.mul_const(place, width);
                        let target = e.b.addi(to, target);
                        e.repeat_rolled(start, end, w as i64, |e, j| {
                            let v = e.load_strided(&b.memory, source, j, 1, w);
                            let v = e.convert_operand(v, b.memory.dtype, arithmetic)?;
                            let at = e.b.addi(target, j);
                            e.store_packed_vector(slot, at, v);
                            Ok(())
                        })
                    })?;
                    if swap && k % 2 == 1 {
                        self.repeat_rolled(start, end, w as i64, |e, j| {
                            let at = e.b.add_const(to, (k - 1) * width);
                            let at = e.b.addi(at, j);
                            let zero = e.b.zero(Elem::F32, w);
                            e.store_packed_vector(slot, at, zero);
                            Ok(())
                        })?;
                    }
                }
            }
            done = upto;
        }
        Ok(())
    }

    /// Two rows of bf16, as pairs.
    fn store_pair(&mut self, slot: &Memory<'c>, at: Val<'c>, even: Val<'c>, odd: Val<'c>) {
        let low = self.b.resize(even, Elem::I32, false);
        let high = self.b.resize(odd, Elem::I32, false);
        let high = self.b.shl(high, 16);
        let pair = self.b.ori(low, high);
        self.store_packed_vector(slot, at, pair);
    }

    /// Eight columns by eight steps, transposed in registers.
    fn pack_block(
        &mut self,
        b: &Matrix<'c>,
        slot: &Memory<'c>,
        arithmetic: Arithmetic,
        (from, to): (Val<'c>, Val<'c>),
        (j, u): (Val<'c>, Val<'c>),
        width: i64,
    ) -> Emit {
        let per_unit = if arithmetic == Arithmetic::DotPairs {
            2
        } else {
            1
        };
        let mut rows = Vec::new();
        for r in 0..8 {
            let column = self.b.add_const(j, r);
            let start = self.b.mul_const(column, b.strides[1]);
            let start = self.b.addi(from, start);
            let i = self.b.mul_const(u, per_unit);
            let v = self.load_strided(&b.memory, start, i, 1, 8 * per_unit as u32);
            rows.push(match arithmetic {
                Arithmetic::DotPairs => self.b.vector_bitcast(v, Elem::I32),
                _ => self.convert_operand(v, b.memory.dtype, arithmetic)?,
            });
        }
        let columns = self.transpose_8x8(rows);
        for (s, v) in columns.into_iter().enumerate() {
            let place = match arithmetic {
                Arithmetic::FlushedPairs => s ^ 1,
                _ => s,
            };
            let step = self.b.add_const(u, place as i64);
            let at = self.b.mul_const(step, width);
            let at = self.b.addi(to, at);
            let at = self.b.addi(at, j);
            self.store_packed_vector(slot, at, v);
        }
        Ok(())
    }

    pub(super) fn transpose_8x8(&mut self, rows: Vec<Val<'c>>) -> Vec<Val<'c>> {
        let low: [i64; 8] = [0, 8, 1, 9, 4, 12, 5, 13];
        let high: [i64; 8] = [2, 10, 3, 11, 6, 14, 7, 15];
        let pairs_low: [i64; 8] = [0, 1, 8, 9, 4, 5, 12, 13];
        let pairs_high: [i64; 8] = [2, 3, 10, 11, 6, 7, 14, 15];
        let halves_low: [i64; 8] = [0, 1, 2, 3, 8, 9, 10, 11];
        let halves_high: [i64; 8] = [4, 5, 6, 7, 12, 13, 14, 15];
        let mut s = |a: Val<'c>, b: Val<'c>, mask: &[i64; 8]| self.b.shuffle(a, b, mask);
        let mut t = Vec::new();
        for r in (0..8).step_by(2) {
            t.push(s(rows[r], rows[r + 1], &low));
            t.push(s(rows[r], rows[r + 1], &high));
        }
        // t: (0,1) low, high, (2,3) low, high, …
        let mut q = Vec::new();
        for g in [0, 4] {
            q.push(s(t[g], t[g + 2], &pairs_low));
            q.push(s(t[g], t[g + 2], &pairs_high));
            q.push(s(t[g + 1], t[g + 3], &pairs_low));
            q.push(s(t[g + 1], t[g + 3], &pairs_high));
        }
        let mut out: Vec<Val<'c>> = (0..4).map(|i| s(q[i], q[i + 4], &halves_low)).collect();
        out.extend(
            (0..4)
                .map(|i| s(q[i], q[i + 4], &halves_high))
                .collect::<Vec<_>>(),
        );
        out
    }

    /// One step of one column; zero past the last k.
    fn pack_unit(
        &mut self,
        b: &Matrix<'c>,
        slot: &Memory<'c>,
        arithmetic: Arithmetic,
        (from, to): (Val<'c>, Val<'c>),
        (j, u): (Val<'c>, Val<'c>),
        width: i64,
    ) -> Emit {
        let k = b.extents[0] as i64;
        let column = self.b.mul_const(j, b.strides[1]);
        let start = self.b.addi(from, column);
        let value = match arithmetic {
            Arithmetic::DotPairs => {
                let even_k = self.b.mul_const(u, 2);
                let odd_k = self.b.add_const(even_k, 1);
                let even = self.load_strided(&b.memory, start, even_k, b.strides[0], 1);
                let odd = self.load_or_zero(b, start, odd_k, k);
                let low = self.b.resize(even, Elem::I32, false);
                let high = self.b.resize(odd, Elem::I32, false);
                let high = self.b.shl(high, 16);
                self.b.ori(low, high)
            }
            _ => {
                let v = match arithmetic {
                    Arithmetic::FlushedPairs => {
                        let one = self.b.i64(1);
                        let row = self.b.xori(u, one);
                        self.load_or_zero(b, start, row, k)
                    }
                    _ => self.load_strided(&b.memory, start, u, b.strides[0], 1),
                };
                self.convert_operand(v, b.memory.dtype, arithmetic)?
            }
        };
        let at = self.b.mul_const(u, width);
        let at = self.b.addi(to, at);
        let at = self.b.addi(at, j);
        self.store_packed_vector(slot, at, value);
        Ok(())
    }

    fn load_or_zero(&mut self, b: &Matrix<'c>, start: Val<'c>, row: Val<'c>, k: i64) -> Val<'c> {
        let extent = self.b.i64(k);
        let inside = self
            .b
            .cmpi(crate::mlir::build::IntCompare::Slt, row, extent);
        let at = self.b.mul_const(row, b.strides[0]);
        let at = self.b.addi(start, at);
        let v = self.load(&b.memory, Form::Uniform(at), Some(Form::Uniform(inside)), 1);
        self.spread(v, 1)
    }
}
