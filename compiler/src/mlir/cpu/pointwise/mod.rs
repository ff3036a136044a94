//! Maps, and the scalar ops inside and outside of them.
//!
//! A map becomes a nest of loops, its last axis in vector lanes. Ops that depend on outer axes only stand outside the inner loops. Axes
//! whose every use is an address that runs on across them are joined to one, so that `[256, 3]` is as good as `[768]`.

mod planning;

use super::access::{Form, Memory, gcd};
use super::{Emit, Emitter};
use crate::mlir::build::{AtomicOp, Elem, FloatCompare, IntCompare, Val};
use crate::mlir::scalar::held_as;
use crate::tile::ir::*;
use planning::join_axes;
use std::collections::{BTreeSet, HashMap};
use tessera_artifact::DType;

/// A loop of the nest.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// Which coordinate runs over it.
    coordinate: usize,
    extent: i64,
}

/// A map, planned.
struct Nest {
    args: Vec<ValueId>,
    axes: Vec<Axis>,
    /// Ops by the innermost loop that they depend on; 0 is before all of them.
    levels: Vec<Vec<OpId>>,
    lanes: u32,
    guards: Guards,
}

/// Guards of the innermost body that are decided once per vector.
#[derive(Clone, Debug, Default)]
struct Guards {
    values: Vec<ValueId>,
    /// What makes them, within the body.
    ops: Vec<OpId>,
    /// What is true where they are.
    known: BTreeSet<ValueId>,
    /// Accesses that the hardware masks; others go element by element where a guard fails.
    maskable: bool,
}

/// How a value depends on the coordinates of a map.
#[derive(Clone, Debug)]
struct Dependence {
    /// One bit per coordinate.
    on: u32,
    /// Of an `index` that is a sum of multiples of coordinates and of something fixed: the factors.
    linear: Option<Vec<i64>>,
}

/// What a map's body says about its coordinates.
struct Analysis {
    values: HashMap<ValueId, Dependence>,
    /// Factors of each coordinate in each part of each address.
    addresses: Vec<Vec<i64>>,
    /// Coordinates used for more than addresses; one bit each.
    pinned: u32,
    /// Level-free effects and loads that must stay in the innermost loop.
    stored_tiles: Vec<TileId>,
    stored_params: Vec<ParamId>,
    has_atomic: bool,
    ops: usize,
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn map(&mut self, extents: &[u64], body: BlockId) -> Emit {
        if extents.contains(&0) {
            return Ok(());
        }
        let analysis = self.analyse(extents.len(), body);
        let args = self.kernel.block(body).args.clone();
        let zero = self.b.i64(0);
        for &arg in &args {
            self.values[arg.index()] = Some(Form::Uniform(zero));
        }
        let axes = join_axes(extents, &analysis);
        // The innermost loop that an op depends on, counted from outside; 0 is before all of them.
        let mut levels: Vec<Vec<OpId>> = vec![Vec::new(); axes.len() + 1];
        for &op in &self.kernel.block(body).ops {
            levels[self.level(op, &axes, &analysis)].push(op);
        }
        let lanes = self.lanes_for(&axes, &analysis);
        let guards = match axes.last() {
            Some(axis) if lanes > 1 => {
                self.peelable(&levels[axes.len()], 1 << axis.coordinate, &analysis)
            }
            _ => Guards::default(),
        };
        let nest = Nest {
            args,
            axes,
            levels,
            lanes,
            guards,
        };
        let limits = self.clamping(body, &nest, &analysis);
        let Some(plain) = self.all_plain(&limits)? else {
            return self.map_level(&nest, 0);
        };
        let mut open = self.b.begin_if(plain);
        self.plain = limits;
        self.map_level(&nest, 0)?;
        self.plain = BTreeSet::new();
        self.b.otherwise(&mut open);
        self.map_level(&nest, 0)?;
        self.b.end_if(open);
        Ok(())
    }

    /// What a map takes minima and maxima with that is the same at all its points and not known before: where it is neither NaN nor
    /// zero, one instruction does what else takes five.
    fn clamping(&self, body: BlockId, nest: &Nest, a: &Analysis) -> BTreeSet<ValueId> {
        let mut limits = BTreeSet::new();
        if nest.lanes == 1 {
            return limits;
        }
        for &op in &self.kernel.block(body).ops {
            let OpKind::Binary(BinaryOp::Min | BinaryOp::Max, x, y) = self.kernel.op(op).kind
            else {
                continue;
            };
            if !matches!(self.kernel.ty(x), Type::Scalar(DType::F32 | DType::F64)) {
                continue;
            }
            let outside =
                |v: &ValueId| !a.values.contains_key(v) && self.kernel.constant(*v).is_none();
            limits.extend([x, y].into_iter().filter(outside));
        }
        limits
    }

    /// Whether all of these values are neither NaN nor zero; `None` for no values.
    fn all_plain(&mut self, values: &BTreeSet<ValueId>) -> Emit<Option<Val<'c>>> {
        let mut all: Option<Val<'c>> = None;
        for &value in values {
            let v = self.uniform(value)?;
            let zero = self.b.zero(v.elem, 1);
            let less = self.b.cmpf(FloatCompare::Olt, v, zero);
            let more = self.b.cmpf(FloatCompare::Ogt, v, zero);
            let plain = self.b.ori(less, more);
            all = Some(match all {
                Some(a) => self.b.andi(a, plain),
                None => plain,
            });
        }
        Ok(all)
    }

    /// Minimum or maximum of `v` and a `limit` that is neither NaN nor zero: so `v` where it is NaN, and no two zeros are to be told
    /// apart. The form that is one instruction.
    fn limited(&mut self, op: BinaryOp, limit: Val<'c>, v: Val<'c>) -> Val<'c> {
        let beyond = match op {
            BinaryOp::Min => FloatCompare::Olt,
            _ => FloatCompare::Ogt,
        };
        let stops = self.b.cmpf(beyond, limit, v);
        self.b.select(stops, limit, v)
    }

    fn map_level(&mut self, nest: &Nest, level: usize) -> Emit {
        self.map_body(&nest.levels[level], 1)?;
        let Some(&axis) = nest.axes.get(level) else {
            return Ok(());
        };
        let coordinate = nest.args[axis.coordinate];
        if level + 1 < nest.axes.len() {
            return self.repeat(0, axis.extent, 1, |e, at| {
                e.values[coordinate.index()] = Some(Form::Uniform(at));
                e.map_level(nest, level + 1)
            });
        }
        let mut done = 0;
        for (width, upto) in segments(axis.extent, nest.lanes) {
            let many = upto - done > width as i64;
            let multiple = match many || done > 0 {
                true => gcd(done, width as i64),
                false => 1 << 40,
            };
            self.repeat(done, upto, width as i64, |e, base| {
                e.vector_step(nest, coordinate, base, width, multiple)
            })?;
            done = upto;
        }
        Ok(())
    }

    /// The innermost body for the lanes `base .. base + width` of the last axis.
    fn vector_step(
        &mut self,
        nest: &Nest,
        coordinate: ValueId,
        base: Val<'c>,
        width: u32,
        multiple: i64,
    ) -> Emit {
        let ops = &nest.levels[nest.axes.len()];
        let lanes = |base| match width {
            1 => Form::Uniform(base),
            _ => Form::Affine {
                base,
                step: 1,
                multiple,
            },
        };
        if width == 1 || nest.guards.values.is_empty() {
            self.values[coordinate.index()] = Some(lanes(base));
            return self.map_body(ops, width);
        }
        // A guard that holds at both ends holds between them: then the body runs without masks.
        let mut all: Option<Val<'c>> = None;
        let last = self.b.add_const(base, width as i64 - 1);
        for end in [base, last] {
            self.values[coordinate.index()] = Some(Form::Uniform(end));
            self.map_body(&nest.guards.ops, 1)?;
            for &guard in &nest.guards.values {
                let holds = self.uniform(guard)?;
                all = Some(match all {
                    Some(a) => self.b.andi(a, holds),
                    None => holds,
                });
            }
        }
        let Some(all) = all else {
            return Err(self.fault("guards without a condition"));
        };
        let mut open = self.b.begin_if(all);
        self.values[coordinate.index()] = Some(lanes(base));
        let yes = self.b.int(Elem::I1, 1, 1);
        for &known in &nest.guards.known {
            self.values[known.index()] = Some(Form::Uniform(yes));
        }
        let known = std::mem::replace(&mut self.known, nest.guards.known.clone());
        self.map_body(ops, width)?;
        self.known = known;
        self.b.otherwise(&mut open);
        if nest.guards.maskable {
            self.values[coordinate.index()] = Some(lanes(base));
            self.map_body(ops, width)?;
        } else {
            self.repeat(0, width as i64, 1, |e, lane| {
                let at = e.b.addi(base, lane);
                e.values[coordinate.index()] = Some(Form::Uniform(at));
                e.map_body(ops, 1)
            })?;
        }
        self.b.end_if(open);
        Ok(())
    }

    fn map_body(&mut self, ops: &[OpId], lanes: u32) -> Emit {
        for &op in ops {
            self.span = self.kernel.op(op).span;
            if let Some(result) = self.kernel.op(op).result
                && self.known.contains(&result)
            {
                continue;
            }
            let result = self.scalar_op(op, lanes)?;
            if let (Some(form), Some(value)) = (result, self.kernel.op(op).result) {
                self.values[value.index()] = Some(form);
            }
        }
        Ok(())
    }

    // ---- scalar ops ------------------------------------------------------------------------------------------

    /// Emits a pure op, load, store or atomic for `lanes` lanes.
    pub(super) fn scalar_op(&mut self, id: OpId, lanes: u32) -> Emit<Option<Form<'c>>> {
        let kernel = self.kernel;
        let op = kernel.op(id);
        match &op.kind {
            OpKind::StoreTile { tile, index, value } => {
                let memory = self.tile(*tile)?;
                let at = self.offset_of(&memory, index, lanes)?;
                let value = self.form(*value)?;
                self.store(&memory, at, value, None, lanes);
                Ok(None)
            }
            OpKind::StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter: _,
            } => {
                let memory = self.tensor(*param)?;
                let at = self.offset_of(&memory, index, lanes)?;
                let value = self.form(*value)?;
                let guard = self.guard(*guard)?;
                self.store(&memory, at, value, guard, lanes);
                Ok(None)
            }
            OpKind::Atomic {
                op,
                param,
                index,
                value,
                guard,
            } => {
                self.atomic(*op, *param, index, *value, *guard)?;
                Ok(None)
            }
            OpKind::LoadTile { tile, index } => {
                let memory = self.tile(*tile)?;
                let at = self.offset_of(&memory, index, lanes)?;
                Ok(Some(self.load(&memory, at, None, lanes)))
            }
            OpKind::LoadGlobal {
                param,
                index,
                guard,
            } => {
                let memory = self.tensor(*param)?;
                let at = self.offset_of(&memory, index, lanes)?;
                let guard = self.guard(*guard)?;
                Ok(Some(self.load(&memory, at, guard, lanes)))
            }
            kind => {
                let Some(result) = op.result else {
                    return Err(self.fault("an op without a result among scalar ops"));
                };
                self.pure_op(kind, result, lanes).map(Some)
            }
        }
    }

    /// The guard, unless it is known to hold.
    fn guard(&self, guard: Option<ValueId>) -> Emit<Option<Form<'c>>> {
        let open = guard.filter(|g| !self.known.contains(g));
        open.map(|g| self.form(g)).transpose()
    }

    fn offset_of(&mut self, memory: &Memory<'c>, index: &[ValueId], lanes: u32) -> Emit<Form<'c>> {
        let index = index
            .iter()
            .map(|&i| self.form(i))
            .collect::<Emit<Vec<_>>>()?;
        Ok(self.offset(memory, &index, lanes))
    }

    fn pure_op(&mut self, kind: &OpKind, result: ValueId, lanes: u32) -> Emit<Form<'c>> {
        let kernel = self.kernel;
        let ty = kernel.ty(result);
        if let Some(form) = self.affine_op(kind, ty)? {
            return Ok(form);
        }
        // Operands that are the same in all lanes make a result that is.
        let mut operands = Vec::new();
        kind.for_each_value(&mut |v| operands.push(v));
        let mut forms = Vec::with_capacity(operands.len());
        for v in &operands {
            forms.push(self.form(*v)?);
        }
        let lanes = match forms.iter().all(|f| matches!(f, Form::Uniform(_))) {
            true => 1,
            false => lanes,
        };
        if let (OpKind::Compare(p, x, _), [a, b]) = (kind, &forms[..])
            && kernel.ty(*x) == Type::Index
            && let Some(mask) = self.compare_index(*p, *a, *b, lanes)
        {
            return Ok(Form::Varying(mask));
        }
        let v: Vec<_> = forms.into_iter().map(|f| self.spread(f, lanes)).collect();
        let operand_ty = |i: usize| kernel.ty(operands[i]);
        let out = match kind {
            OpKind::Const(c) => self.b.constant(*c, 1),
            OpKind::Scalar(param) => match &self.params[param.index()] {
                super::ParamPlace::Scalar(v) => *v,
                _ => return Err(self.fault("a tensor used as a scalar")),
            },
            OpKind::Dim(dim) => self.dims[dim.index()],
            OpKind::BlockIndex(axis) => self.block_index[*axis as usize],
            OpKind::Unary(op, _) => {
                let r = self.b.unary_op(*op, v[0], operand_ty(0));
                self.lowered(r)?
            }
            OpKind::Binary(op @ (BinaryOp::Div | BinaryOp::Rem), _, y)
                if ty == Type::Index && kernel.const_index(*y).is_some_and(|c| c > 0) =>
            {
                let by = kernel.const_index(*y).unwrap_or(1);
                let (q, r) = self.b.floor_div_const(v[0], by);
                if *op == BinaryOp::Div { q } else { r }
            }
            OpKind::Binary(op @ (BinaryOp::Min | BinaryOp::Max), x, _)
                if self.plain.contains(x) =>
            {
                self.limited(*op, v[0], v[1])
            }
            OpKind::Binary(op @ (BinaryOp::Min | BinaryOp::Max), _, y)
                if self.plain.contains(y) =>
            {
                self.limited(*op, v[1], v[0])
            }
            OpKind::Binary(op, ..) => {
                let r = self.b.binary_op(*op, v[0], v[1], ty);
                self.lowered(r)?
            }
            OpKind::Fma(..) => {
                let r = self.b.fma_op(v[0], v[1], v[2], ty);
                self.lowered(r)?
            }
            OpKind::Compare(p, ..) => self.b.compare_op(*p, v[0], v[1], operand_ty(0)),
            OpKind::Select(..) => self.b.select(v[0], v[1], v[2]),
            OpKind::Cast(_, to) => {
                let r = self.b.cast(v[0], operand_ty(0), *to);
                self.lowered(r)?
            }
            OpKind::Bitcast(_, to) => {
                let r = self.b.scalar_bitcast(v[0], operand_ty(0), *to);
                self.lowered(r)?
            }
            other => return Err(self.fault(format!("{other:?} among scalar ops"))),
        };
        debug_assert_eq!(out.elem, held_as(ty), "{kind:?}");
        Ok(self.form_of(out))
    }

    /// Index arithmetic that keeps the lanes evenly spaced.
    fn affine_op(&mut self, kind: &OpKind, ty: Type) -> Emit<Option<Form<'c>>> {
        let OpKind::Binary(op, x, y) = kind else {
            return Ok(None);
        };
        if ty != Type::Index {
            return Ok(None);
        }
        let (a, b) = (self.form(*x)?, self.form(*y)?);
        if !matches!(a, Form::Affine { .. }) && !matches!(b, Form::Affine { .. }) {
            return Ok(None);
        }
        if matches!(a, Form::Varying(_)) || matches!(b, Form::Varying(_)) {
            return Ok(None);
        }
        let constants = (self.kernel.const_index(*x), self.kernel.const_index(*y));
        Ok(match (op, constants) {
            (BinaryOp::Add, (_, Some(c))) => Some(self.shift_form(a, c)),
            (BinaryOp::Add, (Some(c), _)) => Some(self.shift_form(b, c)),
            (BinaryOp::Sub, (_, Some(c))) => Some(self.shift_form(a, -c)),
            (BinaryOp::Add, _) => Some(self.add_forms(a, b, 1)),
            (BinaryOp::Sub, _) => {
                let negated = self.scale_form(b, -1);
                Some(self.add_forms(a, negated, 1))
            }
            (BinaryOp::Mul, (_, Some(c))) => Some(self.scale_form(a, c)),
            (BinaryOp::Mul, (Some(c), _)) => Some(self.scale_form(b, c)),
            (BinaryOp::Div | BinaryOp::Rem, (_, Some(c))) if c > 0 => self.divide_affine(*op, a, c),
            _ => None,
        })
    }

    fn shift_form(&mut self, a: Form<'c>, by: i64) -> Form<'c> {
        match a {
            Form::Affine {
                base,
                step,
                multiple,
            } => Form::Affine {
                base: self.b.add_const(base, by),
                step,
                multiple: gcd(multiple, by),
            },
            Form::Uniform(v) => Form::Uniform(self.b.add_const(v, by)),
            Form::Varying(v) => Form::Varying(self.b.add_const(v, by)),
        }
    }

    /// Quotient and modulo of evenly spaced lanes where all of them lie between two multiples of the divisor, or on multiples.
    fn divide_affine(&mut self, op: BinaryOp, a: Form<'c>, by: i64) -> Option<Form<'c>> {
        let Form::Affine {
            base,
            step,
            multiple,
        } = a
        else {
            return None;
        };
        let is_div = op == BinaryOp::Div;
        if step % by == 0 {
            let (q, r) = self.b.floor_div_const(base, by);
            return Some(match is_div {
                true => Form::Affine {
                    base: q,
                    step: step / by,
                    multiple: 1,
                },
                false => Form::Uniform(r),
            });
        }
        // The widest vector in use: what holds for it holds for the narrower ones of the rest.
        let reach = step * (self.machine.lanes(4) as i64 * 2);
        if step > 0 && by % reach == 0 && multiple % reach == 0 {
            let (q, r) = self.b.floor_div_const(base, by);
            return Some(match is_div {
                true => Form::Uniform(q),
                false => Form::Affine {
                    base: r,
                    step,
                    multiple: reach,
                },
            });
        }
        None
    }

    fn compare_index(
        &mut self,
        p: Predicate,
        a: Form<'c>,
        b: Form<'c>,
        lanes: u32,
    ) -> Option<Val<'c>> {
        let signed = |p| match p {
            Predicate::Eq => IntCompare::Eq,
            Predicate::Ne => IntCompare::Ne,
            Predicate::Lt => IntCompare::Slt,
            Predicate::Le => IntCompare::Sle,
            Predicate::Gt => IntCompare::Sgt,
            Predicate::Ge => IntCompare::Sge,
        };
        let swapped = |p| match p {
            Predicate::Lt => Predicate::Gt,
            Predicate::Le => Predicate::Ge,
            Predicate::Gt => Predicate::Lt,
            Predicate::Ge => Predicate::Le,
            p => p,
        };
        const FAR: i64 = 1 << 20;
        match (a, b) {
            (Form::Affine { base, step, .. }, Form::Uniform(u)) if step.abs() < FAR => {
                Some(self.compare_affine(signed(p), (base, step), u, lanes))
            }
            (Form::Uniform(u), Form::Affine { base, step, .. }) if step.abs() < FAR => {
                Some(self.compare_affine(signed(swapped(p)), (base, step), u, lanes))
            }
            _ => None,
        }
    }

    // ---- atomics ------------------------------------------------------------------------------------------------

    fn atomic(
        &mut self,
        op: FoldOp,
        param: ParamId,
        index: &[ValueId],
        value: ValueId,
        guard: Option<ValueId>,
    ) -> Emit {
        let memory = self.tensor(param)?;
        let dtype = memory.dtype;
        let atomic = match (op, dtype.is_float(), dtype.is_signed_int()) {
            (FoldOp::Sum, true, _) => AtomicOp::FAdd,
            (FoldOp::Sum, ..) => AtomicOp::Add,
            (FoldOp::And, ..) => AtomicOp::And,
            (FoldOp::Or, ..) => AtomicOp::Or,
            (FoldOp::Max, false, true) => AtomicOp::Max,
            (FoldOp::Min, false, true) => AtomicOp::Min,
            (FoldOp::Max, false, false) => AtomicOp::UMax,
            (FoldOp::Min, false, false) => AtomicOp::UMin,
            _ => return Err(self.unsupported(format!("an atomic `{op:?}` of {dtype}"))),
        };
        if memory.packed || dtype.is_float() && !memory.elem.is_float() {
            return Err(self.unsupported(format!("an atomic `{op:?}` of {dtype}")));
        }
        let at = self.offset_of(&memory, index, 1)?;
        let at = self.spread(at, 1);
        let value = self.form(value)?;
        let value = self.spread(value, 1);
        let value = self.b.to_stored(value, dtype);
        let guard = guard.map(|g| self.uniform(g)).transpose()?;
        let open = guard.map(|g| self.b.begin_if(g));
        let p = self.address(&memory, at);
        self.b.atomic(atomic, p, value);
        if let Some(open) = open {
            self.b.end_if(open);
        }
        Ok(())
    }
}

/// Vector widths that cover an extent: full vectors, one narrower one, single elements.
pub(super) fn segments(extent: i64, lanes: u32) -> Vec<(u32, i64)> {
    let mut out = Vec::new();
    let mut done = extent / lanes as i64 * lanes as i64;
    if done > 0 {
        out.push((lanes, done));
    }
    let mut width = lanes / 2;
    // One narrower vector for the rest, then single elements: few copies of the body.
    while width >= 2 && out.len() < 2 {
        if extent - done >= width as i64 {
            done += width as i64;
            out.push((width, done));
        }
        width /= 2;
    }
    if done < extent {
        out.push((1, extent));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_cover_the_extent_once() {
        for extent in 1..200 {
            for lanes in [1, 2, 4, 8, 16, 32] {
                let mut done = 0;
                for (width, upto) in segments(extent, lanes) {
                    assert!(upto > done && (upto - done) % width as i64 == 0);
                    done = upto;
                }
                assert_eq!(done, extent, "{lanes} lanes");
            }
        }
    }
}
