//! Control flow between tile ops, and the way out when a check fails.
//!
//! An entry function cannot return a status (see the launch ABI in `tessera_artifact::manifest`): a failed check writes its number to
//! the error record whose address is the last argument word, and the call returns, leaving the CTAs that follow undone.

use super::{Emit, Emitter, Trap, access::Form};
use crate::mlir::build::{AtomicOp, Elem, IntCompare, Val};
use crate::tile::ir::*;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn block(&mut self, block: BlockId) -> Emit {
        let kernel = self.kernel;
        for &op in &kernel.block(block).ops {
            self.op(op)?;
        }
        Ok(())
    }

    fn op(&mut self, id: OpId) -> Emit {
        let kernel = self.kernel;
        let op = kernel.op(id);
        self.span = op.span;
        match &op.kind {
            OpKind::Map { .. } if self.aliases.widening.contains(&id) => Ok(()),
            OpKind::Map { extents, body } => self.map(extents, *body),
            OpKind::Copy { dst, src, oob } if self.aliases.in_place.contains(&id) => {
                self.copy_in_place(dst, src, *oob)
            }
            OpKind::Copy { dst, src, oob } => self.copy(dst, src, *oob),
            OpKind::For {
                lo,
                hi,
                kind: _,
                body,
            } => self.for_loop(*lo, *hi, *body),
            OpKind::If {
                cond,
                then,
                otherwise,
            } => self.if_op(*cond, *then, *otherwise),
            OpKind::ForItems { body } => {
                // A CTA of the CPU is one item.
                for (axis, &arg) in kernel.block(*body).args.iter().enumerate() {
                    self.values[arg.index()] = Some(Form::Uniform(self.block_index[axis]));
                }
                self.block(*body)
            }
            OpKind::Assert { cond, message } => {
                let cond = self.uniform(*cond)?;
                self.check(cond, message);
                Ok(())
            }
            OpKind::Assume { cond: _ } => Ok(()),
            OpKind::Signal { param, index } => self.signal(*param, index),
            OpKind::Wait {
                param,
                index,
                at_least,
            } => self.wait(*param, index, *at_least),
            OpKind::Print { .. } => Err(self.unsupported("`print`")),
            OpKind::Role { .. }
            | OpKind::Put { .. }
            | OpKind::Get { .. }
            | OpKind::Release { .. } => {
                Err(self.unsupported("roles and channels that were not fused"))
            }
            OpKind::Dot {
                acc,
                a,
                b,
                accumulate,
            } => self.dot(acc, a, b, *accumulate),
            OpKind::Reduce {
                dst,
                src,
                axis,
                op,
                order,
            } => self.reduce(*dst, *src, *axis, *op, *order),
            OpKind::Scan { dst, src, axis, op } => self.scan(*dst, *src, *axis, *op),
            OpKind::TopK {
                values,
                indices,
                src,
                smallest,
            } => self.topk(*values, *indices, *src, *smallest),
            _ => {
                let result = self.scalar_op(id, 1)?;
                if let (Some(form), Some(value)) = (result, op.result) {
                    self.values[value.index()] = Some(form);
                }
                Ok(())
            }
        }
    }

    fn for_loop(&mut self, lo: ValueId, hi: ValueId, body: BlockId) -> Emit {
        let lo = self.uniform(lo)?;
        let hi = self.uniform(hi)?;
        let (header, args) = self.b.new_block(1);
        let (inside, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        self.b.branch(header, &[lo]);
        self.b.set_block(header);
        let more = self.b.cmpi(IntCompare::Slt, args[0], hi);
        self.b.cond_branch(more, inside, (after, &[]));
        self.b.set_block(inside);
        let variable = self.kernel.block(body).args[0];
        self.values[variable.index()] = Some(Form::Uniform(args[0]));
        self.block(body)?;
        let next = self.b.add_const(args[0], 1);
        self.b.branch(header, &[next]);
        self.b.set_block(after);
        Ok(())
    }

    fn if_op(&mut self, cond: ValueId, then: BlockId, otherwise: Option<BlockId>) -> Emit {
        let cond = self.uniform(cond)?;
        let (then_block, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        let else_block = match otherwise {
            Some(_) => self.b.new_block(0).0,
            None => after,
        };
        self.b.cond_branch(cond, then_block, (else_block, &[]));
        self.b.set_block(then_block);
        self.block(then)?;
        self.b.branch(after, &[]);
        if let Some(otherwise) = otherwise {
            self.b.set_block(else_block);
            self.block(otherwise)?;
            self.b.branch(after, &[]);
        }
        self.b.set_block(after);
        Ok(())
    }

    /// Goes on where `cond` holds; else leaves the function with a new trap's number.
    pub(super) fn check(&mut self, cond: Val<'c>, message: &str) {
        self.traps.push(Trap {
            message: message.to_owned(),
            span: self.span,
        });
        let number = self.b.i64(self.traps.len() as i64);
        let (ok, _) = self.b.new_block(0);
        let fail = self.fail;
        self.b.cond_branch(cond, ok, (fail, &[number]));
        self.b.set_block(ok);
    }

    /// Writes the error record: the greatest trap number, and a CTA that met one.
    pub(super) fn fail_block(&mut self, args: Val<'c>, record_word: i64, cta: Val<'c>) {
        let fail = self.fail;
        self.b.set_block(fail);
        let record = self.word(args, record_word, Elem::Ptr);
        let number = self.b.block_argument(fail, 0);
        self.b.atomic(AtomicOp::UMax, record, number);
        let second = self.b.offset(record, 8);
        self.b.store(cta, second, 8, None);
        self.b.ret();
    }

    // ---- flags --------------------------------------------------------------------------------------------

    fn flag(&mut self, param: ParamId, index: &[ValueId]) -> Emit<(Val<'c>, Elem)> {
        let memory = self.tensor(param)?;
        let index = index
            .iter()
            .map(|&i| self.form(i))
            .collect::<Emit<Vec<_>>>()?;
        let at = self.offset(&memory, &index, 1);
        let at = self.spread(at, 1);
        Ok((self.address(&memory, at), memory.elem))
    }

    fn signal(&mut self, param: ParamId, index: &[ValueId]) -> Emit {
        let (at, elem) = self.flag(param, index)?;
        let one = self.b.int(elem, 1, 1);
        self.b.atomic(AtomicOp::Add, at, one);
        Ok(())
    }

    fn wait(&mut self, param: ParamId, index: &[ValueId], at_least: ValueId) -> Emit {
        let (at, elem) = self.flag(param, index)?;
        let target = self.uniform(at_least)?;
        let (spin, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        self.b.branch(spin, &[]);
        self.b.set_block(spin);
        let zero = self.b.zero(elem, 1);
        let now = self.b.atomic(AtomicOp::Or, at, zero);
        let now = self.b.resize(now, target.elem, false);
        let reached = self.b.cmpi(IntCompare::Sge, now, target);
        self.b.cond_branch(reached, after, (spin, &[]));
        self.b.set_block(after);
        Ok(())
    }
}
