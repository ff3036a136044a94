//! Folds of tiles in registers, as `schedule::fold` has planned them: a thread's own elements, lanes by shuffles, warps through shared
//! memory. Every thread that needs the result has it in the end.

use super::access::Memory;
use super::ops::{LaneFold, Shuffle};
use super::{Emit, Emitter};
use crate::mlir::build::Val;
use crate::schedule::fold::{self, Step, WarpDigit};
use crate::tile::ir::*;
use std::collections::BTreeMap;
use tessera_artifact::DType;

/// What a thread holds of a fold: by coordinates of the result, by coordinate along the folded axis.
type Held<'c> = BTreeMap<Vec<u64>, BTreeMap<u64, Val<'c>>>;

/// A fold that one instruction makes over all lanes of a warp: one whose order does not show.
fn lane_fold(op: FoldOp, dtype: DType) -> Option<LaneFold> {
    match (op, dtype) {
        (FoldOp::Sum, DType::I32 | DType::U32) => Some(LaneFold::Sum),
        (FoldOp::Min, DType::I32) => Some(LaneFold::SignedMin),
        (FoldOp::Max, DType::I32) => Some(LaneFold::SignedMax),
        (FoldOp::Min, DType::U32) => Some(LaneFold::UnsignedMin),
        (FoldOp::Max, DType::U32) => Some(LaneFold::UnsignedMax),
        _ => None,
    }
}

/// What comes after steps in which every lane of a warp meets every other one.
fn after_all_lanes(steps: &[Step]) -> Option<&[Step]> {
    let lanes = steps.iter().map_while(|step| match step {
        Step::Lanes(distance) => Some(*distance),
        _ => None,
    });
    let mut met: Vec<u32> = lanes.take(5).collect();
    met.sort_unstable();
    (met == [1, 2, 4, 8, 16]).then(|| &steps[5..])
}

impl<'c> Emitter<'_, 'c> {
    /// Whether the tile is in registers; then it is folded.
    pub(super) fn fold_in_registers(
        &mut self,
        dst: TileId,
        src: TileId,
        axis: usize,
        op: FoldOp,
        order: Order,
    ) -> Emit<bool> {
        let Some(layout) = self.layout(src) else {
            return Ok(false);
        };
        let dtype = self.kernel.tile(src).dtype;
        let Some(plan) = fold::plan(&layout, axis, op, dtype, order, self.network.is_some()) else {
            return Err(self.fault("a fold of registers in an order that they do not have"));
        };
        let mut held: Held<'c> = BTreeMap::new();
        self.b.contract = self.network.is_some();
        let whole_warp = lane_fold(op, dtype);
        let mut steps = &plan.steps[..];
        while let Some((step, rest)) = steps.split_first() {
            if let (Some(how), Some(rest)) = (whole_warp, after_all_lanes(steps)) {
                for v in held.values_mut().flat_map(BTreeMap::values_mut) {
                    *v = self.b.fold_lanes(how, *v);
                }
                steps = rest;
                continue;
            }
            steps = rest;
            match step {
                Step::Registers {
                    modulo,
                    from_identity,
                } => {
                    let mut own: Vec<(u64, u64)> = (0..layout.registers())
                        .map(|r| (layout.of_register(r)[axis], r))
                        .collect();
                    own.sort_unstable();
                    for (at, register) in own {
                        let mut result = layout.of_register(register);
                        result.remove(axis);
                        let x = self.load_cell(src, register)?;
                        let line = held.entry(result).or_default();
                        let before = line.get(&(at % modulo)).copied();
                        let before = match before {
                            None if *from_identity => Some(self.b.fold_identity(op, dtype, 1)),
                            before => before,
                        };
                        let folded = match before {
                            Some(before) => self.folded(op, dtype, before, x)?,
                            None => x,
                        };
                        line.insert(at % modulo, folded);
                    }
                }
                Step::Pairs(distance) => {
                    for line in held.values_mut() {
                        let upper: Vec<u64> = line
                            .keys()
                            .copied()
                            .filter(|at| at & distance != 0)
                            .collect();
                        for at in upper {
                            let (Some(b), Some(&a)) =
                                (line.remove(&at), line.get(&(at - distance)))
                            else {
                                return Err(self.fault("half a pair of a fold"));
                            };
                            line.insert(at - distance, self.folded(op, dtype, a, b)?);
                        }
                    }
                }
                Step::Lanes(distance) => {
                    for v in held.values_mut().flat_map(BTreeMap::values_mut) {
                        let other = self.shuffled(Shuffle::Xor, *v, *distance);
                        *v = self.folded(op, dtype, *v, other)?;
                    }
                }
                Step::Identity => {
                    for v in held.values_mut().flat_map(BTreeMap::values_mut) {
                        let identity = self.b.fold_identity(op, dtype, 1);
                        *v = self.folded(op, dtype, *v, identity)?;
                    }
                }
                Step::Warps(digits) => self.meet_in_warps(&mut held, digits, op, dtype)?,
            }
        }
        self.b.contract = false;
        let mut results = vec![];
        for (at, line) in held {
            let mut values = line.into_values();
            match (values.next(), values.next()) {
                (Some(value), None) => results.push((at, value)),
                _ => return Err(self.fault("a fold that leaves more than its result")),
            }
        }
        self.store_results(dst, &layout.without(axis), results)?;
        Ok(true)
    }

    fn folded(&mut self, op: FoldOp, dtype: DType, a: Val<'c>, b: Val<'c>) -> Emit<Val<'c>> {
        let r = self.b.fold_op(op, a, b, dtype);
        self.lowered(r)
    }

    /// Every thread leaves its values in shared memory and takes those of the warps that differ from its own in the digits.
    fn meet_in_warps(
        &mut self,
        held: &mut Held<'c>,
        digits: &[WarpDigit],
        op: FoldOp,
        dtype: DType,
    ) -> Emit {
        let Some(offset) = self.plan.work else {
            return Err(self.fault("no memory where the warps of a fold meet"));
        };
        let memory = Memory {
            base: self.b.offset(self.shared, offset as i64),
            dtype,
            strides: vec![],
            packed: false,
            constant: false,
        };
        let threads = i64::from(self.threads);
        let values = || held.values().flat_map(BTreeMap::values).copied();
        for (i, v) in values().collect::<Vec<_>>().into_iter().enumerate() {
            let at = self.b.add_const(self.thread, i as i64 * threads);
            self.store(&memory, at, v);
        }
        self.barrier();
        // The thread of the same lane whose warp has 0 in all the digits.
        let warp = self.b.shift_right_signed(self.thread, 5);
        let mut first = self.thread;
        for d in digits {
            let digit = self.digit(warp, d.place, d.count);
            let part = self.b.mul_const(digit, 32 * d.place as i64);
            first = self.b.subi(first, part);
        }
        for (i, v) in held.values_mut().flat_map(BTreeMap::values_mut).enumerate() {
            let mut met = vec![];
            for number in 0..digits.iter().map(|d| d.count).product() {
                // The last digit is the fastest, so that the first pairs halves.
                let (mut rest, mut warps) = (number, 0);
                for d in digits.iter().rev() {
                    warps += rest % d.count * d.place;
                    rest /= d.count;
                }
                let at = self
                    .b
                    .add_const(first, i as i64 * threads + 32 * warps as i64);
                met.push(self.load(&memory, at));
            }
            for d in digits {
                let part = met.len() / d.count as usize;
                let rest = met.split_off(part);
                for other in rest.chunks(part) {
                    for (a, &b) in met.iter_mut().zip(other) {
                        *a = self.folded(op, dtype, *a, b)?;
                    }
                }
            }
            *v = met[0];
        }
        Ok(())
    }

    fn store_results(
        &mut self,
        dst: TileId,
        layout: &crate::schedule::layout::Layout,
        results: Vec<(Vec<u64>, Val<'c>)>,
    ) -> Emit {
        if let Some(own) = self.layout(dst) {
            for (at, value) in results {
                let Some(register) = own.register_at(&at) else {
                    return Err(self.fault("a fold's result where its tile has no register"));
                };
                self.store_cell(dst, register, value)?;
            }
            return self.finish_all();
        }
        let memory = self.tile(dst)?;
        let base = self.own_coordinates(layout);
        let owner = self.owner(layout);
        let open = owner.map(|owner| self.b.begin_if(owner));
        for (at, value) in results {
            let index: Vec<_> = (base.iter().zip(at))
                .map(|(&base, at)| self.b.add_const(base, at as i64))
                .collect();
            let at = self.offset(&memory, &index);
            self.store(&memory, at, value);
        }
        if let Some(open) = open {
            self.b.end_if(open);
        }
        Ok(())
    }
}
