//! What a map's body says about its coordinates, and how its loops follow from that: which ops stand outside of which, which guards are decided
//! once for a vector, which axes are joined.

use super::{Analysis, Axis, Dependence, Guards};
use crate::mlir::cpu::Emitter;
use crate::mlir::cpu::access::{Memory, Stride};
use crate::tile::ir::*;
use std::collections::{BTreeSet, HashMap};

impl Emitter<'_, '_> {
    pub(super) fn analyse(&self, coordinates: usize, body: BlockId) -> Analysis {
        let kernel = self.kernel;
        let block = kernel.block(body);
        let mut a = Analysis {
            values: HashMap::new(),
            addresses: Vec::new(),
            pinned: 0,
            stored_tiles: Vec::new(),
            stored_params: Vec::new(),
            has_atomic: false,
            ops: block.ops.len(),
        };
        for (i, &arg) in block.args.iter().enumerate() {
            let mut linear = vec![0; coordinates];
            linear[i] = 1;
            a.values.insert(
                arg,
                Dependence {
                    on: 1 << i,
                    linear: Some(linear),
                },
            );
        }
        for &op in &block.ops {
            let op = kernel.op(op);
            let dependence = self.dependence(&op.kind, op.result, coordinates, &mut a);
            if let Some(result) = op.result {
                a.values.insert(result, dependence);
            }
        }
        a
    }

    fn dependence(
        &self,
        kind: &OpKind,
        result: Option<ValueId>,
        coordinates: usize,
        a: &mut Analysis,
    ) -> Dependence {
        let kernel = self.kernel;
        let fixed = || Dependence {
            on: 0,
            linear: Some(vec![0; coordinates]),
        };
        let get = |a: &Analysis, v: ValueId| a.values.get(&v).cloned().unwrap_or_else(fixed);
        let mut on = 0;
        kind.for_each_value(&mut |v| on |= get(a, v).on);
        let is_index = result.is_some_and(|r| kernel.ty(r) == Type::Index);
        let combine = |x: &Dependence, y: &Dependence, f: &dyn Fn(i64, i64) -> i64| {
            let (x, y) = (x.linear.as_ref()?, y.linear.as_ref()?);
            Some(x.iter().zip(y).map(|(&x, &y)| f(x, y)).collect())
        };
        let linear: Option<Vec<i64>> = match kind {
            OpKind::Binary(op, x, y) if is_index => {
                let (dx, dy) = (get(a, *x), get(a, *y));
                match op {
                    BinaryOp::Add => combine(&dx, &dy, &|x, y| x + y),
                    BinaryOp::Sub => combine(&dx, &dy, &|x, y| x - y),
                    BinaryOp::Mul => match (kernel.const_index(*x), kernel.const_index(*y)) {
                        (_, Some(by)) => combine(&dx, &dy, &|x, _| x * by),
                        (Some(by), _) => combine(&dx, &dy, &|_, y| y * by),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        };
        match kind {
            OpKind::LoadTile { tile, index } => {
                let memory = self.tiles[tile.index()].as_ref();
                self.note_address(memory, index, coordinates, a);
            }
            OpKind::StoreTile { tile, index, .. } => {
                a.stored_tiles.push(*tile);
                let memory = self.tiles[tile.index()].as_ref();
                self.note_address(memory, index, coordinates, a);
            }
            OpKind::LoadGlobal { param, index, .. } => {
                let memory = self.tensor(*param).ok();
                self.note_address(memory.as_ref(), index, coordinates, a);
            }
            OpKind::StoreGlobal { param, index, .. } => {
                a.stored_params.push(*param);
                let memory = self.tensor(*param).ok();
                self.note_address(memory.as_ref(), index, coordinates, a);
            }
            OpKind::Atomic { param, index, .. } => {
                a.stored_params.push(*param);
                a.has_atomic = true;
                let memory = self.tensor(*param).ok();
                self.note_address(memory.as_ref(), index, coordinates, a);
            }
            // A linear combination is judged where it is used.
            _ if linear.is_some() => {}
            _ => {
                let mut pinned = 0;
                kind.for_each_value(&mut |v| {
                    if kernel.ty(v) == Type::Index {
                        pinned |= get(a, v).on;
                    }
                });
                a.pinned |= pinned;
            }
        }
        let linear = if on == 0 {
            Some(vec![0; coordinates])
        } else {
            linear
        };
        Dependence { on, linear }
    }

    fn note_address(
        &self,
        memory: Option<&Memory<'_>>,
        index: &[ValueId],
        coordinates: usize,
        a: &mut Analysis,
    ) {
        let Some(memory) = memory else { return };
        let mut fixed_part = vec![0; coordinates];
        for (&i, stride) in index.iter().zip(&memory.strides) {
            let Some(d) = a.values.get(&i) else { continue };
            let Some(linear) = &d.linear else {
                a.pinned |= d.on;
                continue;
            };
            match stride {
                Stride::Const(s) => {
                    for (sum, f) in fixed_part.iter_mut().zip(linear) {
                        *sum += f * s;
                    }
                }
                Stride::Dynamic(_) => a.addresses.push(linear.clone()),
            }
        }
        a.addresses.push(fixed_part);
    }

    /// Where in the nest an op stands.
    pub(super) fn level(&self, op: OpId, axes: &[Axis], a: &Analysis) -> usize {
        let kind = &self.kernel.op(op).kind;
        let innermost = axes.len();
        let fixed_here = match kind {
            OpKind::LoadTile { tile, .. } => a.stored_tiles.contains(tile),
            OpKind::LoadGlobal { param, .. } => a.stored_params.contains(param),
            kind => !kind.is_pure(),
        };
        if fixed_here {
            return innermost;
        }
        let Some(result) = self.kernel.op(op).result else {
            return innermost;
        };
        let on = a.values.get(&result).map_or(0, |d| d.on);
        (0..axes.len())
            .rev()
            .find(|&i| on & (1 << axes[i].coordinate) != 0)
            .map_or(0, |i| i + 1)
    }

    /// Guards that can be decided for a whole vector: `and`s of comparisons that change at most once along the last axis (`axis`: its
    /// bit), with the ops that make them.
    pub(super) fn peelable(&self, ops: &[OpId], axis: u32, a: &Analysis) -> Guards {
        let mut guards = Guards {
            maskable: true,
            ..Guards::default()
        };
        for &op in ops {
            let (guard, param) = match &self.kernel.op(op).kind {
                OpKind::LoadGlobal { guard, param, .. } => (*guard, *param),
                OpKind::StoreGlobal { guard, param, .. } => (*guard, *param),
                _ => continue,
            };
            let Some(guard) = guard else { continue };
            if a.values.get(&guard).is_none_or(|d| d.on & axis == 0)
                || guards.values.contains(&guard)
            {
                continue;
            }
            let bits = self.kernel.tensor(param).map_or(0, |t| t.dtype.bits());
            guards.maskable &= bits >= 32;
            let mut parts = Vec::new();
            if self.is_monotone(guard, axis, a, &mut parts) {
                guards.values.push(guard);
                guards.known.extend(parts);
            }
        }
        // Everything the guards are made of, in order.
        let mut wanted: BTreeSet<ValueId> = guards.values.iter().copied().collect();
        for &op in ops.iter().rev() {
            let op_ref = self.kernel.op(op);
            if op_ref.result.is_some_and(|r| wanted.contains(&r)) {
                op_ref.kind.for_each_value(&mut |v| {
                    wanted.insert(v);
                });
                guards.ops.push(op);
            }
        }
        guards.ops.reverse();
        guards
    }

    fn is_monotone(&self, v: ValueId, axis: u32, a: &Analysis, parts: &mut Vec<ValueId>) -> bool {
        let Some(d) = a.values.get(&v) else {
            return true;
        };
        if d.on & axis == 0 {
            return true;
        }
        parts.push(v);
        match self.kernel.def(v) {
            Some(OpKind::Binary(BinaryOp::And, x, y)) => {
                self.is_monotone(*x, axis, a, parts) && self.is_monotone(*y, axis, a, parts)
            }
            Some(OpKind::Compare(p, x, y)) => {
                let linear = |v: &ValueId| {
                    a.values
                        .get(v)
                        .is_none_or(|d| d.linear.is_some() || d.on & axis == 0)
                };
                !matches!(p, Predicate::Eq | Predicate::Ne)
                    && self.kernel.ty(*x) == Type::Index
                    && linear(x)
                    && linear(y)
            }
            _ => false,
        }
    }

    pub(super) fn lanes_for(&self, axes: &[Axis], a: &Analysis) -> u32 {
        let Some(last) = axes.last() else { return 1 };
        if a.has_atomic {
            return 1;
        }
        // Two registers of f32 for each value: independent chains without a longer body.
        let wide = self.machine.lanes(4) * 2;
        let mut lanes = wide;
        while lanes as i64 > last.extent {
            lanes /= 2;
        }
        lanes.max(1)
    }
}

/// The loops of a map: extents of 1 dropped, neighbours joined where every address runs on from one to the other.
pub(super) fn join_axes(extents: &[u64], a: &Analysis) -> Vec<Axis> {
    let mut axes: Vec<Axis> = Vec::new();
    for (coordinate, &extent) in extents.iter().enumerate().filter(|&(_, &e)| e > 1) {
        let inner = Axis {
            coordinate,
            extent: extent as i64,
        };
        match axes.last() {
            Some(&outer) if can_join(outer, inner, a) => {
                axes.pop();
                axes.push(Axis {
                    coordinate,
                    extent: outer.extent * inner.extent,
                });
            }
            _ => axes.push(inner),
        }
    }
    axes
}

/// `outer` may be one coordinate or several joined ones, whose last coordinate then stands for them all.
fn can_join(outer: Axis, inner: Axis, a: &Analysis) -> bool {
    let both = (1 << outer.coordinate) | (1 << inner.coordinate);
    a.ops > 0
        && a.pinned & both == 0
        && a.addresses
            .iter()
            .all(|f| f[outer.coordinate] == f[inner.coordinate] * inner.extent)
}
