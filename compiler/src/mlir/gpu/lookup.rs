//! Codes of 4 bits widened four at a time: what a map makes of a code is looked up in a table of what it makes of the eight magnitudes.
//!
//! The hardware picks four bytes of eight by the low bits of four codes in one instruction. The table is a row of eight bytes that the map reads
//! at a code's magnitude, or is made by the map's own ops, once for all neighbours that share what else these ops use. A sign stays a sign: the
//! map puts it on top of what it read, or does nothing between the code and the result that tells a value from its opposite.
//!
//! Needs: a map over registers in runs of four, that makes one float of 8 bits of one code of e2m1. Keeps: the bits, but for the sign of a NaN.

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
    load: OpId,
    codes: TileId,
    store: OpId,
    results: TileId,
    /// Ops that the code goes through.
    chain: BTreeSet<OpId>,
    table: Table,
}

enum Table {
    /// By what the chain makes of each magnitude.
    Made,
    /// By a row of this tile; the index of the row.
    Read(TileId, Vec<ValueId>),
}

/// What a map over registers makes of codes, if it can be looked up.
fn lookup(kernel: &Kernel, layout: &Layout, body: BlockId) -> Option<Lookup> {
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
    // Values that follow from the code, and those that differ within a run of four.
    let code = kernel.op(load).result?;
    let mut following = BTreeSet::from([code]);
    let mut changing = BTreeSet::from([last]);
    let mut chain = BTreeSet::new();
    for &op in ops.iter().filter(|op| ![load, store].contains(op)) {
        let Op { kind, result, .. } = kernel.op(op);
        let Some(result) = *result else { continue };
        let (mut follows, mut changes) = (false, false);
        kind.for_each_value(&mut |v| {
            follows |= following.contains(&v);
            changes |= changing.contains(&v);
        });
        if follows {
            following.insert(result);
            chain.insert(op);
        } else if changes && !same_in_runs(kernel, body, kind) {
            changing.insert(result);
        }
    }
    let steady = |v: ValueId| !following.contains(&v) && !changing.contains(&v);
    let table = match read_at_magnitude(kernel, code, stored) {
        Some((tile, row)) if row.iter().all(|&v| steady(v)) => Table::Read(tile, row),
        _ => {
            let (mut odd, mut all) = (BTreeSet::from([code]), true);
            for &op in ops.iter().filter(|op| chain.contains(op)) {
                let Op { kind, result, .. } = kernel.op(op);
                let is_odd = keeps_sign(kind, &|v| odd.contains(&v), &steady);
                all &= is_odd;
                odd.extend(result.filter(|_| is_odd));
            }
            (all && odd.contains(&stored)).then_some(Table::Made)?
        }
    };
    Some(Lookup {
        load,
        codes,
        store,
        results,
        chain,
        table,
    })
}

/// Whether an op makes the opposite of the opposite.
fn keeps_sign(
    kind: &OpKind,
    odd: &dyn Fn(ValueId) -> bool,
    steady: &dyn Fn(ValueId) -> bool,
) -> bool {
    match *kind {
        OpKind::Cast(v, Type::Scalar(to)) => odd(v) && to.is_float(),
        OpKind::Unary(UnaryOp::Neg, v) => odd(v),
        OpKind::Binary(BinaryOp::Mul, a, b) => odd(a) && steady(b) || steady(a) && odd(b),
        OpKind::Binary(BinaryOp::Div, a, b) => odd(a) && steady(b),
        _ => false,
    }
}

/// The tile of rows of eight bytes, and the row, if `stored` is `(tile[row, c & 7] ^ ((c & 8) << 4)).bitcast(..)` with `c` the bits of `code`.
fn read_at_magnitude(
    kernel: &Kernel,
    code: ValueId,
    stored: ValueId,
) -> Option<(TileId, Vec<ValueId>)> {
    let masked = |v: ValueId, mask: i128| match kernel.def(v) {
        Some(&OpKind::Binary(BinaryOp::And, c, m)) => {
            matches!(kernel.def(c), Some(OpKind::Bitcast(bits, DType::U8)) if *bits == code)
                && constant(kernel, m) == Some(mask)
        }
        _ => false,
    };
    let &OpKind::Bitcast(bits, _) = kernel.def(stored)? else {
        return None;
    };
    let &OpKind::Binary(BinaryOp::Xor, byte, sign) = kernel.def(bits)? else {
        return None;
    };
    let &OpKind::Binary(BinaryOp::Shl, low, by) = kernel.def(sign)? else {
        return None;
    };
    let OpKind::LoadTile { tile, index } = kernel.def(byte)? else {
        return None;
    };
    let (&column, row) = index.split_last()?;
    let &OpKind::Cast(magnitude, Type::Index) = kernel.def(column)? else {
        return None;
    };
    let t = kernel.tile(*tile);
    let rows_of_eight = t.dtype == DType::U8 && t.shape.last() == Some(&8);
    let found = masked(low, 8) && constant(kernel, by) == Some(4) && masked(magnitude, 7);
    (found && rows_of_eight).then(|| (*tile, row.to_vec()))
}

fn constant(kernel: &Kernel, v: ValueId) -> Option<i128> {
    match kernel.def(v)? {
        OpKind::Const(Const::Int(i, _)) => Some(*i),
        _ => None,
    }
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
        let Some((codes, upper)) = self.codes_here(lookup.codes, index)? else {
            return Err(self.fault("codes that lie alone"));
        };
        let table = match &lookup.table {
            Table::Made => {
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
                [self.word_of(dtype, low), self.word_of(dtype, high)]
            }
            Table::Read(tile, row) => {
                let memory = self.tile(*tile)?;
                let mut index = self.values(row)?;
                index.push(self.b.i64(0));
                let at = self.offset(&memory, &index);
                let p = self.b.gep(memory.base, at, Elem::I8);
                let row = self.b.load(p, (Elem::I32, 2), MAGNITUDES as u32, None);
                [self.b.extract(row, 0), self.b.extract(row, 1)]
            }
        };
        let word = self.b.look_up(table, codes, upper);
        self.store_word(lookup.results, to, word)
    }

    /// An i32 that has the element in hand and the three after it, in its lower half or in its upper one.
    fn codes_here(&mut self, tile: TileId, index: &[ValueId]) -> Emit<Option<(Val<'c>, bool)>> {
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
            Space::Slot => layout.run().is_multiple_of(RUN),
            _ => self.layouts.contains_key(&found.codes) && self.sharing(found.codes) > 1,
        };
        let table = match &found.table {
            Table::Made => true,
            // A slot's rows are swizzled.
            Table::Read(tile, _) => {
                !self.layouts.contains_key(tile) && self.kernel.tile(*tile).space != Space::Slot
            }
        };
        (shared && codes && table).then_some(found)
    }
}

impl<'c> crate::mlir::build::Builder<'c> {
    /// Four bytes of a table of eight, by the magnitudes of four codes in a half of a word; their signs go on top. What both halves of a word
    /// need is the same value for both.
    fn look_up(&mut self, table: [Val<'c>; 2], codes: Val<'c>, upper: bool) -> Val<'c> {
        let permuted = "llvm.nvvm.prmt";
        let magnitudes = self.i32(0x7777_7777);
        let magnitudes = self.andi(codes, magnitudes);
        let magnitudes = self.shr(magnitudes, if upper { 16 } else { 0 });
        let bytes = self.intrinsic_value(permuted, &[table[0], table[1], magnitudes], Elem::I32);
        // The sign of code i stands at bit 4 i + 3: in the upper halves of bytes as it is, in the lower ones after a shift.
        let moved = self.shl(codes, 4);
        let order = self.i32(if upper { 0x3726 } else { 0x1504 });
        let signs = self.intrinsic_value(permuted, &[codes, moved, order], Elem::I32);
        let mask = self.i32(i64::from(0x8080_8080u32 as i32));
        let signs = self.andi(signs, mask);
        self.xori(bytes, signs)
    }
}
