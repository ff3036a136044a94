//! Matrix products: a register-tiled micro-kernel over packed operands.
//!
//! `rows x vectors` accumulators stay in registers while k runs; each step loads the vectors of B's row, broadcasts one element of A per
//! row, and fuses. k ascends for every output element, whatever is blocked, so the bits do not depend on the blocking or the variant.
//! Operands that the micro-kernel cannot read as they lie (another type, B with n not contiguous) are packed first: A as `[m, k]`, B as panels
//! `[n / width, k, width]`.
//!
//! Where B runs along k and A has few rows, the product is turned: `cᵀ = bᵀ · aᵀ`, so that the lanes run over the few rows and what was B is
//! broadcast as it lies. A narrow B that few rows multiply is widened in registers rather than packed.
//!
//! bf16 sums in pairs, odd k first, with subnormals flushed. With `vdpbf16ps` that is one instruction on operands packed pair by pair; without,
//! both operands are widened with the k of each pair swapped, and the f32 micro-kernel runs with the processor's flush modes on.

use super::access::{Form, Memory, Stride};
use super::layout::Layout;
use super::memory::MemoryPlan;
use super::pointwise::segments;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Scope, Val};
use crate::target::cpu::CpuFacts;
use crate::tile::ir::*;
use std::collections::BTreeMap;
use tessera_artifact::DType;

/// A rectangle of a tile, two axes.
#[derive(Clone)]
struct Matrix<'c> {
    /// Its type may be narrower than the tile's, if another tile stands for it.
    memory: Memory<'c>,
    /// Element (0, 0).
    at: Val<'c>,
    strides: [i64; 2],
    extents: [u64; 2],
}

impl Matrix<'_> {
    fn turned(self) -> Self {
        let ([s0, s1], [e0, e1]) = (self.strides, self.extents);
        Matrix {
            strides: [s1, s0],
            extents: [e1, e0],
            ..self
        }
    }
}

/// Up to this many rows count as few.
const FEW_ROWS: u64 = 8;
const MANY_ROWS: u64 = 24;

/// Whether the product is better computed turned.
fn turn(m: u64, b_strides: [i64; 2]) -> bool {
    m <= FEW_ROWS && b_strides[0] == 1 && b_strides[1] != 1
}

/// What the micro-kernel computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    F32,
    F64,
    I32,
    /// f32 on swapped pairs of bf16 with subnormals flushed.
    FlushedPairs,
    /// `vdpbf16ps`.
    DotPairs,
}

impl Arithmetic {
    fn of(operand: DType, facts: &CpuFacts) -> Arithmetic {
        match operand {
            DType::F64 => Arithmetic::F64,
            DType::BF16 if facts.has_bf16_dot => Arithmetic::DotPairs,
            DType::BF16 => Arithmetic::FlushedPairs,
            d if d.is_float() => Arithmetic::F32,
            _ => Arithmetic::I32,
        }
    }

    /// Element of the accumulators.
    fn elem(self) -> Elem {
        match self {
            Arithmetic::F64 => Elem::F64,
            Arithmetic::I32 => Elem::I32,
            _ => Elem::F32,
        }
    }

    /// Element of packed operands; a pair of bf16 is an i32.
    fn packed(self) -> Elem {
        match self {
            Arithmetic::DotPairs => Elem::I32,
            other => other.elem(),
        }
    }

    fn pairs(self) -> bool {
        matches!(self, Arithmetic::FlushedPairs | Arithmetic::DotPairs)
    }

    /// Steps of the micro-kernel's loop.
    fn steps(self, k: u64) -> u64 {
        match self {
            Arithmetic::DotPairs => k.div_ceil(2),
            Arithmetic::FlushedPairs => k.next_multiple_of(2),
            _ => k,
        }
    }
}

/// Extents of a product and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocking {
    pub m: u64,
    pub n: u64,
    pub steps: u64,
    pub rows: u64,
    /// Lanes of one vector.
    pub lanes: u32,
    /// Vectors of one row of accumulators.
    pub vectors: u32,
    pub arithmetic: Arithmetic,
}

impl Blocking {
    fn new(m: u64, n: u64, k: u64, arithmetic: Arithmetic, facts: &CpuFacts) -> Blocking {
        let full = facts.lanes(arithmetic.elem().bits() / 8);
        let lanes = full.min(1 << n.max(1).ilog2());
        let per_row = (n / lanes as u64).max(1) as u32;
        let wide = facts.vector_registers >= 32;
        let most_vectors = match m {
            0 | 1 => 8,
            2 | 3 => 4,
            _ => 2,
        };
        let vectors = most_vectors.min(1 << per_row.ilog2());
        // Latency times throughput of a fused operation is eight to ten: at least that many accumulators, and registers left for operands.
        let (least, most) = match (vectors, wide) {
            (1, false) => (8, 12),
            (1, true) => (12, 24),
            (2, false) => (4, 6),
            (2, true) => (8, 12),
            (4, false) => (2, 3),
            (4, true) => (4, 6),
            (_, _) => (1, 1),
        };
        Blocking {
            m,
            n,
            steps: arithmetic.steps(k),
            rows: best_rows(m, vectors as u64, least, most),
            lanes,
            vectors,
            arithmetic,
        }
    }

    /// Columns of one panel.
    fn width(&self) -> u64 {
        (self.lanes * self.vectors) as u64
    }
}

/// Accumulators that hide the latency of a fused operation, some to spare: a step late once is made good.
const ACCUMULATORS: u64 = 10;

/// The count between `least` and `most` that takes the fewest steps for `m` rows, the greater one among equals.
fn best_rows(m: u64, vectors: u64, least: u64, most: u64) -> u64 {
    if m <= most {
        return m;
    }
    let block = |rows: u64| match rows {
        0 => 0,
        rows => (rows * vectors).max(ACCUMULATORS),
    };
    (least..=most)
        .min_by_key(|&rows| {
            let steps = m / rows * block(rows) + block(m % rows);
            (steps, std::cmp::Reverse(rows))
        })
        .unwrap_or(least)
}

/// How an operand reaches the micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    /// As it lies, widened in registers if it is narrow.
    InPlace,
    Packed,
}

fn feed_a(dtype: DType, arithmetic: Arithmetic, strides: [i64; 2], k: u64) -> Feed {
    match arithmetic {
        Arithmetic::F32 if dtype == DType::F32 => Feed::InPlace,
        Arithmetic::F64 => Feed::InPlace,
        // Pairs are read as they lie.
        Arithmetic::DotPairs if strides[1] == 1 && k.is_multiple_of(2) && strides[0] % 2 == 0 => {
            Feed::InPlace
        }
        _ => Feed::Packed,
    }
}

fn feed_b(dtype: DType, blocking: &Blocking, strides: [i64; 2], k: u64) -> Feed {
    let few = blocking.m <= FEW_ROWS;
    // Many rows pass over B: its panels then pay for being packed, as rows far apart fall into few cache sets.
    let far = blocking.m >= MANY_ROWS && strides[0] > blocking.width() as i64;
    match blocking.arithmetic {
        _ if strides[1] != 1 || far => Feed::Packed,
        Arithmetic::F32 if dtype == DType::F32 || few => Feed::InPlace,
        Arithmetic::F64 => Feed::InPlace,
        Arithmetic::I32 if few => Feed::InPlace,
        Arithmetic::FlushedPairs if few && k.is_multiple_of(2) => Feed::InPlace,
        _ => Feed::Packed,
    }
}

/// Slots for packed operands, shared by all products of a kernel: added to the memory plan before emission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PackSlots {
    pub a: Option<usize>,
    pub b: Option<usize>,
}

pub(super) fn plan_packing(
    kernel: &Kernel,
    facts: &CpuFacts,
    layouts: &[Layout],
    stands_for: &BTreeMap<TileId, TileId>,
    plan: &mut MemoryPlan,
) -> PackSlots {
    let (mut a_bytes, mut b_bytes) = (0, 0);
    for op in kernel.live_ops() {
        let OpKind::Dot { a, b, .. } = &kernel.op(op).kind else {
            continue;
        };
        let dtype = kernel.tile(a.view.tile).dtype;
        let arithmetic = Arithmetic::of(dtype, facts);
        let (Some((a_shape, a_strides)), Some((b_shape, b_strides))) =
            (operand_axes(a, layouts), operand_axes(b, layouts))
        else {
            continue;
        };
        let ([m, k], [_, n]) = (a_shape, b_shape);
        let turned = turn(m, b_strides);
        let [m, n] = if turned { [n, m] } else { [m, n] };
        let (a_strides, b_strides) = match turned {
            true => (flip(b_strides), flip(a_strides)),
            false => (a_strides, b_strides),
        };
        // A narrower tile may stand for an operand: f32 in place is then not certain.
        let bytes = arithmetic.steps(k) * (arithmetic.packed().bits() / 8) as u64;
        let narrow = [a, b].iter().any(|o| stands_for.contains_key(&o.view.tile));
        if narrow || feed_a(dtype, arithmetic, a_strides, k) == Feed::Packed {
            a_bytes = a_bytes.max(m * bytes);
        }
        let blocking = Blocking::new(m, n, k, arithmetic, facts);
        if narrow || feed_b(dtype, &blocking, b_strides, k) == Feed::Packed {
            b_bytes = b_bytes.max(n * bytes);
        }
    }
    let mut slot = |bytes: u64| (bytes > 0).then(|| plan.add_slot(bytes));
    PackSlots {
        a: slot(a_bytes),
        b: slot(b_bytes),
    }
}

fn flip([x, y]: [i64; 2]) -> [i64; 2] {
    [y, x]
}

/// Extents and strides of an operand's two axes, after transposition.
fn operand_axes(o: &Operand, layouts: &[Layout]) -> Option<([u64; 2], [i64; 2])> {
    let strides = &layouts[o.view.tile.index()].strides;
    let axes: Vec<_> = o
        .view
        .slots
        .iter()
        .zip(strides)
        .filter_map(|(slot, &stride)| Some((slot.len()?, stride)))
        .collect();
    let [(e0, s0), (e1, s1)] = axes[..] else {
        return None;
    };
    Some(match o.transposed {
        false => ([e0, e1], [s0, s1]),
        true => ([e1, e0], [s1, s0]),
    })
}

/// An operand where the micro-kernel finds it.
#[derive(Clone, Copy)]
struct Fed<'c> {
    base: Val<'c>,
    scope: Option<Scope>,
    /// Elements (pairs, for `DotPairs`) from row to row, and from k to k.
    strides: [i64; 2],
    at: Val<'c>,
    /// What lies there, if it is not yet what the micro-kernel takes.
    narrow: Option<DType>,
    elem: Elem,
    /// B only: cut in panels.
    panels: bool,
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn dot(
        &mut self,
        acc: &TileView,
        a: &Operand,
        b: &Operand,
        accumulate: bool,
    ) -> Emit {
        let declared = self.kernel.tile(a.view.tile).dtype;
        let mut c = self.matrix(acc, false)?;
        let mut a = self.matrix(&a.view, a.transposed)?;
        let mut b = self.matrix(&b.view, b.transposed)?;
        if turn(a.extents[0], b.strides) {
            (a, b, c) = (b.turned(), a.turned(), c.turned());
        }
        let [m, k] = a.extents;
        let n = b.extents[1];
        if m == 0 || n == 0 {
            return Ok(());
        }
        let arithmetic = Arithmetic::of(declared, &self.machine);
        let blocking = Blocking::new(m, n, k, arithmetic, &self.machine);
        let fed_a = match feed_a(a.memory.dtype, arithmetic, a.strides, k) {
            Feed::InPlace => self.in_place(&a, arithmetic),
            Feed::Packed => self.pack_a(&a, &blocking)?,
        };
        let fed_b = match feed_b(b.memory.dtype, &blocking, b.strides, k) {
            Feed::InPlace => self.in_place(&b, arithmetic),
            Feed::Packed => self.pack_b(&b, &blocking)?,
        };
        let modes = (arithmetic == Arithmetic::FlushedPairs).then(|| self.begin_flush());
        self.blocks(&blocking, &c, &fed_a, &fed_b, accumulate)?;
        if let Some(old) = modes {
            self.end_flush(old);
        }
        Ok(())
    }

    fn matrix(&mut self, view: &TileView, transposed: bool) -> Emit<Matrix<'c>> {
        let stand_in = self.aliases.stands_for.get(&view.tile);
        let memory = self.tile(*stand_in.unwrap_or(&view.tile))?;
        let mut at = self.b.i64(0);
        let mut axes = Vec::new();
        for (slot, stride) in view.slots.iter().zip(memory.strides.clone()) {
            let Stride::Const(stride) = stride else {
                return Err(self.fault("a tile with strides that are not fixed"));
            };
            let start = match slot {
                Slot::At(v) => *v,
                Slot::Span { start, len } => {
                    axes.push((stride, *len));
                    *start
                }
                Slot::Gather { .. } => return Err(self.unsupported("a gather inside `dot`")),
            };
            let start = self.uniform(start)?;
            let part = self.b.mul_const(start, stride);
            at = self.b.addi(at, part);
        }
        let [(s0, e0), (s1, e1)] = axes[..] else {
            return Err(self.fault("an operand of `dot` has not two axes"));
        };
        let (strides, extents) = match transposed {
            false => ([s0, s1], [e0, e1]),
            true => ([s1, s0], [e1, e0]),
        };
        Ok(Matrix {
            memory,
            at,
            strides,
            extents,
        })
    }

    fn in_place(&mut self, x: &Matrix<'c>, arithmetic: Arithmetic) -> Fed<'c> {
        let (at, strides) = match arithmetic {
            Arithmetic::DotPairs => (self.b.shift_right_signed(x.at, 1), [x.strides[0] / 2, 1]),
            _ => (x.at, x.strides),
        };
        let elem = arithmetic.packed();
        let narrow = match arithmetic {
            Arithmetic::F32 => x.memory.dtype != DType::F32,
            Arithmetic::I32 | Arithmetic::FlushedPairs => x.memory.elem != elem,
            Arithmetic::F64 | Arithmetic::DotPairs => false,
        };
        Fed {
            base: x.memory.base,
            scope: x.memory.scope,
            strides,
            at,
            narrow: narrow.then_some(x.memory.dtype),
            elem: if narrow { x.memory.elem } else { elem },
            panels: false,
        }
    }

    // ---- packing --------------------------------------------------------------------------------------------

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
    fn convert_operand(
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
    fn pack_a(&mut self, a: &Matrix<'c>, blocking: &Blocking) -> Emit<Fed<'c>> {
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
    fn pack_b(&mut self, b: &Matrix<'c>, blocking: &Blocking) -> Emit<Fed<'c>> {
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

    fn transpose_8x8(&mut self, rows: Vec<Val<'c>>) -> Vec<Val<'c>> {
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

    // ---- blocks and the micro-kernel ---------------------------------------------------------------------------

    fn blocks(
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
    fn columns(
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
    fn begin_flush(&mut self) -> Val<'c> {
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

    fn end_flush(&mut self, old: Val<'c>) {
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
