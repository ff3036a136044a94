//! The loops over blocks and the micro-kernel: accumulators in registers while k ascends, and the modes that it runs in.

use super::*;

impl<'c> Emitter<'_, 'c> {
    // ---- blocks and the micro-kernel ---------------------------------------------------------------------------

    pub(super) fn blocks(
        &mut self,
        blocking: &Blocking,
        c: &Matrix<'c>,
        a: &Fed<'c>,
        b: &Fed<'c>,
        accumulate: bool,
    ) -> Emit {
        let n = blocking.n as i64;
        let width = blocking.width() as i64;
        let whole = n / width * width;
        // Whole panels, then what is left of the columns in vectors of falling width.
        let row_of = |panel_width: i64| if b.panels { panel_width } else { b.strides[0] };
        self.repeat_rolled(0, whole, width, |e, column| {
            let b_at = match b.panels {
                true => e.b.mul_const(column, blocking.steps as i64),
                false => e.b.addi(b.at, column),
            };
            let shape = (blocking.vectors, blocking.lanes);
            e.columns(
                blocking,
                c,
                a,
                b,
                (b_at, row_of(width)),
                column,
                shape,
                accumulate,
            )
        })?;
        let rest = n - whole;
        let mut done = 0;
        while done < rest {
            let lanes = blocking.lanes.min(1 << (rest - done).ilog2());
            let vectors = ((rest - done) / lanes as i64).min(blocking.vectors as i64) as u32;
            let column = self.b.i64(whole + done);
            let b_at = match b.panels {
                true => self.b.i64(whole * blocking.steps as i64 + done),
                false => self.b.addi(b.at, column),
            };
            self.columns(
                blocking,
                c,
                a,
                b,
                (b_at, row_of(rest)),
                column,
                (vectors, lanes),
                accumulate,
            )?;
            done += (vectors * lanes) as i64;
        }
        Ok(())
    }

    /// All rows of some columns.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn columns(
        &mut self,
        blocking: &Blocking,
        c: &Matrix<'c>,
        a: &Fed<'c>,
        b: &Fed<'c>,
        (b_at, b_row): (Val<'c>, i64),
        column: Val<'c>,
        (vectors, lanes): (u32, u32),
        accumulate: bool,
    ) -> Emit {
        let (m, rows) = (blocking.m as i64, blocking.rows as i64);
        let whole = m / rows * rows;
        for (count, start, end) in [(rows, 0, whole), (m - whole, whole, m)] {
            if count == 0 {
                continue;
            }
            self.repeat_rolled(start, end, count, |e, row| {
                let micro = Micro {
                    arithmetic: blocking.arithmetic,
                    rows: count,
                    vectors,
                    lanes,
                    steps: blocking.steps as i64,
                    accumulate,
                };
                let c_row = e.b.mul_const(row, c.strides[0]);
                let c_column = e.b.mul_const(column, c.strides[1]);
                let c_at = e.b.addi(c_row, c_column);
                let c_at = e.b.addi(c.at, c_at);
                let a_row = e.b.mul_const(row, a.strides[0]);
                let a_at = e.b.addi(a.at, a_row);
                e.micro_kernel(&micro, (c, c_at), (a, a_at), (b, b_at, b_row))
            })?;
        }
        Ok(())
    }

    fn micro_kernel(
        &mut self,
        micro: &Micro,
        (c, c_at): (&Matrix<'c>, Val<'c>),
        (a, a_at): (&Fed<'c>, Val<'c>),
        (b, b_at, b_row): (&Fed<'c>, Val<'c>, i64),
    ) -> Emit {
        let arithmetic = micro.arithmetic;
        let (rows, vectors) = (micro.rows as usize, micro.vectors as usize);
        let init = match micro.accumulate {
            true => self.load_accumulators(micro, c, c_at),
            false => vec![self.b.zero(arithmetic.elem(), micro.lanes); rows * vectors],
        };
        let init = self.between_modes(arithmetic, init);
        let a_base = self.b.gep(a.base, a_at, a.elem);
        let b_base = self.b.gep(b.base, b_at, b.elem);
        let (zero, steps) = (self.b.i64(0), self.b.i64(micro.steps));
        let open = self.b.begin_for(zero, steps, 1, &init);
        let a_step = self.b.mul_const(open.iv, a.strides[1]);
        let a_now = self.b.gep(a_base, a_step, a.elem);
        // The k of a pair change places: in packed operands already, in B as it lies here.
        let b_k = match b.narrow.is_some() && arithmetic == Arithmetic::FlushedPairs {
            true => {
                let one = self.b.i64(1);
                self.b.xori(open.iv, one)
            }
            false => open.iv,
        };
        let b_step = self.b.mul_const(b_k, b_row);
        let b_now = self.b.gep(b_base, b_step, b.elem);
        let mut next = open.carried.clone();
        if rows <= vectors {
            // Few rows: their elements stay in registers while B's vectors pass.
            let mut column = Vec::with_capacity(rows);
            for r in 0..rows {
                column.push(self.broadcast_a(micro, a, a_now, r));
            }
            for v in 0..vectors {
                let y = self.vector_b(micro, b, b_now, v)?;
                for (r, &x) in column.iter().enumerate() {
                    let at = r * vectors + v;
                    next[at] = self.multiply_add(arithmetic, x, y, open.carried[at]);
                }
            }
        } else {
            let mut row = Vec::with_capacity(vectors);
            for v in 0..vectors {
                row.push(self.vector_b(micro, b, b_now, v)?);
            }
            for r in 0..rows {
                let x = self.broadcast_a(micro, a, a_now, r);
                for (v, &y) in row.iter().enumerate() {
                    let at = r * vectors + v;
                    next[at] = self.multiply_add(arithmetic, x, y, open.carried[at]);
                }
            }
        }
        let sums = self.b.end_for(open, &next);
        let sums = self.between_modes(arithmetic, sums);
        self.store_accumulators(micro, c, c_at, sums);
        Ok(())
    }

    fn broadcast_a(&mut self, micro: &Micro, a: &Fed<'c>, now: Val<'c>, row: usize) -> Val<'c> {
        let bytes = a.elem.bits() / 8;
        let p = self.b.offset(now, row as i64 * a.strides[0] * bytes as i64);
        let x = self.b.load(p, (a.elem, 1), bytes, a.scope);
        self.b.broadcast(x, micro.lanes)
    }

    fn vector_b(
        &mut self,
        micro: &Micro,
        b: &Fed<'c>,
        now: Val<'c>,
        vector: usize,
    ) -> Emit<Val<'c>> {
        let bytes = b.elem.bits() / 8;
        let p = self
            .b
            .offset(now, vector as i64 * (micro.lanes * bytes) as i64);
        let y = self.b.load(p, (b.elem, micro.lanes), bytes, b.scope);
        match b.narrow {
            Some(dtype) => self.convert_operand(y, dtype, micro.arithmetic),
            None => Ok(y),
        }
    }

    // ---- accumulators in memory ------------------------------------------------------------------------------------

    /// The address of a vector of accumulators, or of one of its lanes.
    fn accumulator(&mut self, c: &Matrix<'c>, base: Val<'c>, row: usize, column: usize) -> Val<'c> {
        let elements = row as i64 * c.strides[0] + column as i64 * c.strides[1];
        let bytes = (c.memory.elem.bits() / 8) as i64;
        self.b.offset(base, elements * bytes)
    }

    /// A turned block of eight by eight: its columns are contiguous.
    fn is_turned_square(micro: &Micro, c: &Matrix<'c>) -> bool {
        c.strides[0] == 1 && (micro.rows, micro.lanes, micro.vectors) == (8, 8, 1)
    }

    fn load_accumulators(&mut self, micro: &Micro, c: &Matrix<'c>, at: Val<'c>) -> Vec<Val<'c>> {
        let (elem, lanes) = (micro.arithmetic.elem(), micro.lanes);
        let align = elem.bits() / 8;
        let base = self.b.gep(c.memory.base, at, elem);
        let (rows, vectors) = (micro.rows as usize, micro.vectors as usize);
        if Self::is_turned_square(micro, c) {
            let columns = (0..8)
                .map(|column| {
                    let p = self.accumulator(c, base, 0, column);
                    self.b.load(p, (elem, 8), align, c.memory.scope)
                })
                .collect();
            return self.transpose_8x8(columns);
        }
        let mut out = Vec::with_capacity(rows * vectors);
        for r in 0..rows {
            for v in 0..vectors {
                let first = v * lanes as usize;
                if c.strides[1] == 1 || lanes == 1 {
                    let p = self.accumulator(c, base, r, first);
                    out.push(self.b.load(p, (elem, lanes), align, c.memory.scope));
                    continue;
                }
                let mut sum = self.b.zero(elem, lanes);
                for lane in 0..lanes {
                    let p = self.accumulator(c, base, r, first + lane as usize);
                    let x = self.b.load(p, (elem, 1), align, c.memory.scope);
                    sum = self.b.insert(x, sum, lane);
                }
                out.push(sum);
            }
        }
        out
    }

    fn store_accumulators(
        &mut self,
        micro: &Micro,
        c: &Matrix<'c>,
        at: Val<'c>,
        sums: Vec<Val<'c>>,
    ) {
        let elem = micro.arithmetic.elem();
        let align = elem.bits() / 8;
        let base = self.b.gep(c.memory.base, at, elem);
        if Self::is_turned_square(micro, c) {
            for (column, v) in self.transpose_8x8(sums).into_iter().enumerate() {
                let p = self.accumulator(c, base, 0, column);
                self.b.store(v, p, align, c.memory.scope);
            }
            return;
        }
        for (i, sum) in sums.into_iter().enumerate() {
            let (r, v) = (i / micro.vectors as usize, i % micro.vectors as usize);
            let first = v * micro.lanes as usize;
            if c.strides[1] == 1 || micro.lanes == 1 {
                let p = self.accumulator(c, base, r, first);
                self.b.store(sum, p, align, c.memory.scope);
                continue;
            }
            for lane in 0..micro.lanes {
                let p = self.accumulator(c, base, r, first + lane as usize);
                let x = self.b.extract(sum, lane);
                self.b.store(x, p, align, c.memory.scope);
            }
        }
    }

    fn multiply_add(
        &mut self,
        arithmetic: Arithmetic,
        x: Val<'c>,
        y: Val<'c>,
        acc: Val<'c>,
    ) -> Val<'c> {
        match arithmetic {
            Arithmetic::I32 => {
                let product = self.b.muli(x, y);
                self.b.addi(acc, product)
            }
            Arithmetic::DotPairs => self.dot_pairs(x, y, acc),
            _ => self.b.fma(x, y, acc),
        }
    }

    /// `vdpbf16ps` on vectors of pairs; a narrow vector takes the instruction's lowest lanes.
    fn dot_pairs(&mut self, x: Val<'c>, y: Val<'c>, acc: Val<'c>) -> Val<'c> {
        let lanes = acc.lanes;
        let (x, y, acc) = (
            self.b.widen_lanes(x, 16),
            self.b.widen_lanes(y, 16),
            self.b.widen_lanes(acc, 16),
        );
        let x = self.b.vector_bitcast(x, Elem::BF16);
        let y = self.b.vector_bitcast(y, Elem::BF16);
        let sum = self
            .b
            .value("x86vector.avx512.dot", &[acc, x, y], (Elem::F32, 16), &[]);
        self.b.slice(sum, 0, lanes)
    }

    // ---- flush modes --------------------------------------------------------------------------------------------

    /// Makes the processor treat subnormal operands and results as zeros; gives where the old modes are kept.
    pub(super) fn begin_flush(&mut self) -> Val<'c> {
        const FLUSH_AND_DENORMALS_ARE_ZERO: i64 = 0x8040;
        let old = self.b.alloca(4);
        let new = self.b.alloca(4);
        self.mode_register("llvm.x86.sse.stmxcsr", old);
        let modes = self.b.load(old, (Elem::I32, 1), 4, None);
        let bits = self.b.int(Elem::I32, 1, FLUSH_AND_DENORMALS_ARE_ZERO);
        let modes = self.b.ori(modes, bits);
        self.b.store(modes, new, 4, None);
        self.mode_register("llvm.x86.sse.ldmxcsr", new);
        old
    }

    /// Keeps LLVM from moving arithmetic across a change of modes, or from doing it itself.
    fn between_modes(&mut self, arithmetic: Arithmetic, values: Vec<Val<'c>>) -> Vec<Val<'c>> {
        match arithmetic {
            Arithmetic::FlushedPairs => values.into_iter().map(|v| self.b.pin(v)).collect(),
            _ => values,
        }
    }

    pub(super) fn end_flush(&mut self, old: Val<'c>) {
        self.mode_register("llvm.x86.sse.ldmxcsr", old);
    }

    fn mode_register(&mut self, intrinsic: &str, place: Val<'c>) {
        self.b.intrinsic_call(intrinsic, &[place]);
    }
}

/// One instance of the micro-kernel.
struct Micro {
    arithmetic: Arithmetic,
    rows: i64,
    vectors: u32,
    lanes: u32,
    steps: i64,
    accumulate: bool,
}
