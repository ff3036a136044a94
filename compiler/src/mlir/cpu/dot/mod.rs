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

mod blocking;
mod micro;
mod packing;

use super::access::{Form, Memory, Stride};
use super::layout::Layout;
use super::memory::MemoryPlan;
use super::pointwise::segments;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Scope, Val};
use crate::target::cpu::CpuFacts;
use crate::tile::ir::*;
use blocking::{Arithmetic, Blocking, Feed, feed_a, feed_b, turn};
use std::collections::BTreeMap;
use tessera_artifact::{CpuVariant, DType};

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

/// The variant whose code of `kernel` is that of `variant`: only products of bf16 tell AVX-512 with `vdpbf16ps` from AVX-512.
pub fn variant_of_code(kernel: &Kernel, variant: CpuVariant) -> CpuVariant {
    let without = match variant {
        CpuVariant::Avx512Bf16 => CpuVariant::Avx512,
        other => return other,
    };
    let [with, plain] = [variant, without].map(CpuFacts::of);
    let differs = |&op: &OpId| match &kernel.op(op).kind {
        OpKind::Dot { a, .. } => {
            let operand = kernel.tile(a.view.tile).dtype;
            Arithmetic::of(operand, &with) != Arithmetic::of(operand, &plain)
        }
        _ => false,
    };
    match kernel.live_ops().iter().any(differs) {
        true => variant,
        false => without,
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
}
