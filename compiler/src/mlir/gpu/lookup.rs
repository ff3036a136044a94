//! Codes of 4 bits widened four at a time: what a map makes of a code is looked up in a table of what it makes of the eight magnitudes.
//!
//! The hardware picks four bytes of eight by the low bits of four codes in one instruction. The table is made by the map's own ops, once for
//! all neighbours that share what else these ops use, so that it costs little beside them; a sign stays a sign, since nothing between the
//! code and the result tells it from its opposite.
//!
//! Needs: a map over registers in runs of four, that makes one float of 8 bits of one code of e2m1 by casts, negations, products with and
//! quotients by what does not change within a run. Keeps: the bits, but for the sign of a NaN.

use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Val};
use crate::schedule::access::access;
use crate::schedule::layout::Layout;
use crate::tile::ir::*;
use std::collections::BTreeSet;
use tessera_artifact::DType;

/// Elements that share a word of results.
pub(super) const RUN: u64 = 4;
/// Magnitudes that a code of e2m1 can have.
const MAGNITUDES: i64 = 8;

/// A map that looks codes up.
pub(super) struct Lookup {
    pub load: OpId,
    pub codes: TileId,
    pub store: OpId,
    pub results: TileId,
    /// Ops that the code goes through.
    pub chain: BTreeSet<OpId>,
}

/// What a map over registers makes of codes, if it can be looked up.
pub(super) fn lookup(kernel: &Kernel, layout: &Layout, body: BlockId) -> Option<Lookup> {
    let args = &kernel.block(body).args;
    let last = *args.last()?;
    let along = |index: &[ValueId]| {
        let access = access(kernel, body, index)?;
        let along = access.last()?;
        let whole = along.scale == 1 && along.offset.is_multiple_of(RUN);
        (along.axis == Some(args.len() - 1) && whole).then_some(())
    };
    if !layout.run().is_multiple_of(RUN) {
        return None;
    }
    let (mut loads, mut stores) = (vec![], vec![]);
    let ops = &kernel.block(body).ops;
    for &op in ops {
        match &kernel.op(op).kind {
            OpKind::LoadTile { tile, index } if kernel.tile(*tile).dtype == DType::E2M1 => {
                along(index)?;
                loads.push((op, *tile));
            }
            OpKind::StoreTile { tile, index, value } => {
                along(index)?;
                stores.push((op, *tile, *value));
            }
            OpKind::StoreGlobal { .. } | OpKind::Atomic { .. } => return None,
            _ => {}
        }
    }
    let (&[(load, codes)], &[(store, results, stored)]) = (&loads[..], &stores[..]) else {
        return None;
    };
    let dtype = kernel.tile(results).dtype;
    if !matches!(dtype, DType::E4M3 | DType::E5M2) {
        return None;
    }
    // Values with the sign of the code, and those that no run of four tells apart.
    let mut signed: BTreeSet<ValueId> = kernel.op(load).result.into_iter().collect();
    let mut changing = BTreeSet::from([last]);
    let mut chain = BTreeSet::new();
    for &op in ops {
        let Op { kind, result, .. } = kernel.op(op);
        let Some(result) = *result else { continue };
        if op == load {
            continue;
        }
        let steady = |v: &ValueId| !signed.contains(v) && !changing.contains(v);
        let odd = match kind {
            OpKind::Cast(v, Type::Scalar(to)) => signed.contains(v) && to.is_float(),
            OpKind::Unary(UnaryOp::Neg, v) => signed.contains(v),
            OpKind::Binary(BinaryOp::Mul, a, b) => {
                signed.contains(a) && steady(b) || steady(a) && signed.contains(b)
            }
            OpKind::Binary(BinaryOp::Div, a, b) => signed.contains(a) && steady(b),
            _ => false,
        };
        if odd {
            signed.insert(result);
            chain.insert(op);
            continue;
        }
        let (mut touches_code, mut changes) = (false, false);
        kind.for_each_value(&mut |v| {
            touches_code |= signed.contains(&v);
            changes |= changing.contains(&v);
        });
        if touches_code {
            return None;
        }
        if changes && !same_in_runs(kernel, body, kind) {
            changing.insert(result);
        }
    }
    signed.contains(&stored).then_some(Lookup {
        load,
        codes,
        store,
        results,
        chain,
    })
}

/// Whether an op that goes by the last coordinate gives neighbours in a run of four the same: it divides, or compares, by a multiple of four.
fn same_in_runs(kernel: &Kernel, body: BlockId, kind: &OpKind) -> bool {
    let (OpKind::Binary(BinaryOp::Div, at, by)
    | OpKind::Compare(Predicate::Lt | Predicate::Ge, at, by)) = kind
    else {
        return false;
    };
    let whole = |n: i64| n > 0 && n % RUN as i64 == 0;
    let from = access(kernel, body, &[*at]);
    let starts = from.is_some_and(|a| a[0].scale == 1 && a[0].offset.is_multiple_of(RUN));
    starts && kernel.const_index(*by).is_some_and(whole)
}

impl<'c> Emitter<'_, 'c> {
    /// The element in hand and the three after it.
    pub(super) fn look_up(&mut self, body: BlockId, lookup: &Lookup) -> Emit {
        let kernel = self.kernel;
        let (
            OpKind::LoadTile { index, .. },
            OpKind::StoreTile {
                index: to, value, ..
            },
        ) = (&kernel.op(lookup.load).kind, &kernel.op(lookup.store).kind)
        else {
            return Err(self.fault("a look-up of something else"));
        };
        let ops = &kernel.block(body).ops;
        let own = |op: &OpId| lookup.chain.contains(op);
        for &op in ops {
            if !own(&op) && op != lookup.load && op != lookup.store {
                self.span = kernel.op(op).span;
                self.scalar_op(op)?;
            }
        }
        let Some(codes) = self.codes_here(lookup.codes, index)? else {
            return Err(self.fault("codes that lie alone"));
        };
        let mut results = Vec::new();
        for magnitude in 0..MAGNITUDES {
            if let Some(code) = kernel.op(lookup.load).result {
                self.values[code.index()] = Some(self.b.int(Elem::I8, 1, magnitude));
            }
            for &op in ops.iter().filter(|op| own(op)) {
                self.span = kernel.op(op).span;
                self.scalar_op(op)?;
            }
            results.push(self.value(*value)?);
        }
        let dtype = kernel.tile(lookup.results).dtype;
        let (low, high) = results.split_at(results.len() / 2);
        let table = [self.word_of(dtype, low), self.word_of(dtype, high)];
        let word = self.b.look_up(table, codes);
        self.store_word(lookup.results, to, word)
    }

    /// The codes from the element in hand on.
    fn codes_here(&mut self, tile: TileId, index: &[ValueId]) -> Emit<Option<Val<'c>>> {
        match self.kernel.tile(tile).space {
            Space::Slot => self.codes_in_slot(tile, index),
            _ => self.codes_in_registers(tile, index),
        }
    }

    /// Whether the results and the codes of a map lie so that it can be emitted.
    pub(super) fn looks_up(&mut self, layout: &Layout, body: BlockId) -> Option<Lookup> {
        let found = lookup(self.kernel, layout, body)?;
        let shared =
            self.layouts.contains_key(&found.results) && self.sharing(found.results) == RUN;
        let codes = match self.kernel.tile(found.codes).space {
            Space::Slot => matches!(layout.run(), 4 | 8 | 16),
            _ => self.layouts.contains_key(&found.codes) && self.sharing(found.codes) > 1,
        };
        (shared && codes).then_some(found)
    }
}

impl<'c> crate::mlir::build::Builder<'c> {
    /// Four bytes of a table of eight, by the magnitudes of four codes; their signs go on top.
    fn look_up(&mut self, table: [Val<'c>; 2], codes: Val<'c>) -> Val<'c> {
        let permuted = "llvm.nvvm.prmt";
        let magnitudes = self.i32(0x7777);
        let magnitudes = self.andi(codes, magnitudes);
        let bytes = self.intrinsic_value(permuted, &[table[0], table[1], magnitudes], Elem::I32);
        // The sign of code i stands at bit 4 i + 3: in the upper halves of bytes as it is, in the lower ones after a shift.
        let moved = self.shl(codes, 4);
        let order = self.i32(0x1504);
        let signs = self.intrinsic_value(permuted, &[codes, moved, order], Elem::I32);
        let mask = self.i32(i64::from(0x8080_8080u32 as i32));
        let signs = self.andi(signs, mask);
        self.xori(bytes, signs)
    }
}
