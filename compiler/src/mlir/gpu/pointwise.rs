//! Scalar ops, and maps: the elements dealt out over the threads.

use super::{Emit, Emitter, ParamPlace};
use crate::mlir::build::{AtomicOp, Elem, Val};
use crate::mlir::scalar::held_as;
use crate::tile::ir::*;
use tessera_artifact::DType;

/// Of loads from global memory in a loop, so many need not wait for each other.
const LOADS_AT_ONCE: u64 = 8;
/// More copies of a map's body than these many ops take too many registers.
const OPS_AT_ONCE: u64 = 128;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn map(&mut self, extents: &[u64], body: BlockId) -> Emit {
        let kernel = self.kernel;
        let total: u64 = extents.iter().product();
        if total == 0 {
            return Ok(());
        }
        if let Some(stream) = self.stream_of(body) {
            return self.map_into_slot(body, stream);
        }
        if let Some(layout) = self.map_layouts.get(&body).cloned() {
            return self.map_in_registers(&layout, body);
        }
        let block = kernel.block(body);
        let open = match self.copies_of_map(total, block) {
            Some(copies) => self.begin_even_share(total / self.threads as u64, copies),
            None => self.begin_share(total),
        };
        let point = self.point(open.iv, extents);
        for (&arg, at) in block.args.iter().zip(point) {
            self.values[arg.index()] = Some(at);
        }
        for &op in &block.ops {
            self.span = kernel.op(op).span;
            self.scalar_op(op)?;
        }
        self.end_share(open);
        Ok(())
    }

    /// How many copies of a map's body are worth having side by side.
    fn copies_of_map(&self, total: u64, block: &Block) -> Option<u32> {
        let threads = self.threads as u64;
        let loads = |&op: &OpId| matches!(self.kernel.op(op).kind, OpKind::LoadGlobal { .. });
        let worth =
            self.network.is_none() && total.is_multiple_of(threads) && block.ops.iter().any(loads);
        let copies = (total / threads)
            .min(LOADS_AT_ONCE)
            .min(OPS_AT_ONCE / block.ops.len().max(1) as u64);
        (worth && copies > 1).then_some(copies as u32)
    }

    /// One scalar op, load or store of this thread.
    pub(super) fn scalar_op(&mut self, id: OpId) -> Emit {
        let kernel = self.kernel;
        let op = kernel.op(id);
        let value = match &op.kind {
            OpKind::StoreTile { tile, index, value } => {
                let v = self.value(*value)?;
                if self.store_in_registers(*tile, index, v)? {
                    return Ok(());
                }
                let memory = self.tile(*tile)?;
                let index = self.values(index)?;
                let at = self.offset(&memory, &index);
                let value = self.value(*value)?;
                let owner = self.begin_owner();
                self.store(&memory, at, value);
                if let Some(owner) = owner {
                    self.b.end_if(owner);
                }
                return Ok(());
            }
            OpKind::StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter: _,
            } => {
                let owner = self.begin_owner();
                let open = self.begin_guard(*guard)?;
                let memory = self.tensor(*param)?;
                let index = self.values(index)?;
                let at = self.offset(&memory, &index);
                let value = self.value(*value)?;
                self.store(&memory, at, value);
                for open in open.into_iter().chain(owner) {
                    self.b.end_if(open);
                }
                return Ok(());
            }
            OpKind::Atomic {
                op,
                param,
                index,
                value,
                guard,
            } => {
                let owner = self.begin_owner();
                let open = self.begin_guard(*guard)?;
                self.atomic(*op, *param, index, *value)?;
                for open in open.into_iter().chain(owner) {
                    self.b.end_if(open);
                }
                return Ok(());
            }
            OpKind::LoadTile { tile, index } => match self.load_in_registers(*tile, index)? {
                Some(v) => v,
                None => {
                    if kernel.tile(*tile).space == Space::Slot {
                        self.load_from_slot(*tile, index)?
                    } else {
                        let index = self.values(index)?;
                        let memory = self.tile(*tile)?;
                        let at = self.offset(&memory, &index);
                        self.load(&memory, at)
                    }
                }
            },
            OpKind::LoadGlobal {
                param,
                index,
                guard,
            } => {
                let memory = self.tensor(*param)?;
                let index = self.values(index)?;
                let at = self.offset(&memory, &index);
                let guard = guard.map(|g| self.value(g)).transpose()?;
                self.load_guarded(&memory, at, guard)
            }
            kind => match op.result {
                Some(result) => self.pure_op(kind, kernel.ty(result))?,
                None => return Err(self.fault("an op without a result among scalar ops")),
            },
        };
        if let Some(result) = op.result {
            self.values[result.index()] = Some(value);
        }
        Ok(())
    }

    fn begin_guard(
        &mut self,
        guard: Option<ValueId>,
    ) -> Emit<Option<crate::mlir::build::OpenIf<'c>>> {
        let guard = guard.map(|g| self.value(g)).transpose()?;
        Ok(guard.map(|g| self.b.begin_if(g)))
    }

    fn pure_op(&mut self, kind: &OpKind, ty: Type) -> Emit<Val<'c>> {
        let kernel = self.kernel;
        let mut operands = Vec::new();
        kind.for_each_value(&mut |v| operands.push(v));
        let v = self.values(&operands)?;
        let operand_ty = |i: usize| kernel.ty(operands[i]);
        let out = match kind {
            OpKind::Const(c) => self.b.constant(*c, 1),
            OpKind::Scalar(param) => match &self.params[param.index()] {
                ParamPlace::Scalar(v) => *v,
                ParamPlace::Tensor { .. } => {
                    return Err(self.fault("a tensor used as a scalar"));
                }
            },
            OpKind::Dim(dim) => self.dims[dim.index()],
            OpKind::BlockIndex(axis) => self.block_index[*axis as usize],
            // Left by `expand_network_math`.
            OpKind::Unary(UnaryOp::Exp2, _) => {
                self.b
                    .intrinsic_value("llvm.nvvm.ex2.approx.ftz.f", &v, Elem::F32)
            }
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
            OpKind::Binary(op, ..) => {
                let r = self.b.binary_op(*op, v[0], v[1], ty);
                let r = self.lowered(r)?;
                if *op == BinaryOp::Mul {
                    self.note_scaled(r, [v[0], v[1]]);
                }
                r
            }
            OpKind::Fma(..) => {
                let r = self.b.fma_op(v[0], v[1], v[2], ty);
                self.lowered(r)?
            }
            OpKind::Compare(p, ..) => self.b.compare_op(*p, v[0], v[1], operand_ty(0)),
            OpKind::Select(..) => self.b.select(v[0], v[1], v[2]),
            // The hardware's conversion gives another NaN than the interpreter's, and else the same.
            OpKind::Cast(_, Type::Scalar(DType::BF16))
                if operand_ty(0) == Type::Scalar(DType::F32)
                    && (self.network.is_some() || self.here.is_some()) =>
            {
                let zero = self.b.f32(1, 0.0);
                let pair = self.b.round_pair_to_bf16(v[0], zero);
                let narrow = self.b.resize(pair, Elem::I16, false);
                self.noted.narrowed.push((narrow, v[0]));
                narrow
            }
            OpKind::Cast(_, Type::Scalar(DType::E4M3))
                if operand_ty(0) == Type::Scalar(DType::F32) && self.here.is_some() =>
            {
                let zero = self.b.f32(1, 0.0);
                let pair = self.b.round_pair_to_e4m3(v[0], zero);
                let narrow = self.b.resize(pair, Elem::I8, false);
                self.noted.narrowed.push((narrow, v[0]));
                narrow
            }
            OpKind::Cast(_, Type::Scalar(DType::F32))
                if let Some(wide) = self.widened_by_two(v[0]) =>
            {
                wide
            }
            OpKind::Cast(_, to) => {
                let r = self.b.cast(v[0], operand_ty(0), *to);
                let r = self.lowered(r)?;
                if operand_ty(0) == Type::Scalar(DType::UE8M0) && self.here.is_some() {
                    self.noted.powers.push((r, v[0]));
                }
                r
            }
            OpKind::Bitcast(_, to) => {
                let r = self.b.scalar_bitcast(v[0], operand_ty(0), *to);
                self.lowered(r)?
            }
            other => return Err(self.fault(format!("{other:?} among scalar ops"))),
        };
        debug_assert_eq!(out.elem, held_as(ty), "{kind:?}");
        Ok(out)
    }

    // ---- atomics ------------------------------------------------------------------------------------------

    fn atomic(&mut self, op: FoldOp, param: ParamId, index: &[ValueId], value: ValueId) -> Emit {
        let memory = self.tensor(param)?;
        if memory.packed || memory.elem().bits() < 16 {
            return Err(self.unsupported(format!("an atomic on {}", memory.dtype)));
        }
        let index = self.values(index)?;
        let at = self.offset(&memory, &index);
        let value = self.value(value)?;
        let p = self.b.gep(memory.base, at, memory.elem());
        match native_atomic(op, memory.dtype) {
            Some(native) => {
                self.b.atomic_relaxed(native, p, value);
                Ok(())
            }
            None => self.atomic_by_exchange(op, memory.dtype, p, value),
        }
    }

    /// Reads, folds, and stores if nobody else did meanwhile. For floats even where the hardware adds: its addition in global memory
    /// flushes subnormals.
    fn atomic_by_exchange(&mut self, op: FoldOp, dtype: DType, p: Val<'c>, value: Val<'c>) -> Emit {
        let elem = held_as(Type::Scalar(dtype));
        let int = elem.as_int();
        let start = self.b.load(p, (int, 1), int.bits() / 8, None);
        let open = self.b.begin_while(start);
        let old_bits = open.carried;
        let old = self.b.bitcast(old_bits, elem);
        let new = self.b.fold_op(op, old, value, dtype);
        let new = self.lowered(new)?;
        let new = self.b.bitcast(new, int);
        let (stored, found) = self.b.compare_exchange(p, old_bits, new);
        let yes = self.b.int(Elem::I1, 1, 1);
        let again = self.b.xori(stored, yes);
        self.b.end_while(open, again, found);
        Ok(())
    }
}

fn native_atomic(op: FoldOp, dtype: DType) -> Option<AtomicOp> {
    if !dtype.is_int() || dtype.bits() < 32 {
        return None;
    }
    match (op, dtype.is_signed_int()) {
        (FoldOp::Sum, _) => Some(AtomicOp::Add),
        (FoldOp::And, _) => Some(AtomicOp::And),
        (FoldOp::Or, _) => Some(AtomicOp::Or),
        (FoldOp::Max, true) => Some(AtomicOp::Max),
        (FoldOp::Max, false) => Some(AtomicOp::UMax),
        (FoldOp::Min, true) => Some(AtomicOp::Min),
        (FoldOp::Min, false) => Some(AtomicOp::UMin),
        (FoldOp::Prod, _) => None,
    }
}
