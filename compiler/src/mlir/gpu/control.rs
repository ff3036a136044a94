//! Control flow between tile ops, and the way out when a check fails.
//!
//! A failed check writes its number to the error record and its CTA ends, since all its threads fail alike. Elements that fail a check
//! one by one (in a copy that must stay inside) leave their number and are skipped.

use super::fold::WARP;
use super::{Emit, Emitter};
use crate::mlir::build::{AtomicOp, Elem, IntCompare, Val};
use crate::mlir::cpu::Trap;
use crate::tile::analysis::runs;
use crate::tile::ir::*;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn block(&mut self, block: BlockId) -> Emit {
        let kernel = self.kernel;
        for &op in &kernel.block(block).ops {
            self.op(block, op)?;
        }
        self.leave(block)
    }

    /// All threads of the CTA meet, or all of the role in hand.
    pub(super) fn barrier(&mut self) {
        match &self.network {
            Some(network) => {
                let id = match &network.turn {
                    Some(turn) => turn.barrier,
                    None => self.b.i32(network.role as i64 + 1),
                };
                self.b.named_barrier(id, self.threads);
            }
            None if self.threads == WARP => self.b.warp_barrier(),
            None => self.b.barrier(),
        }
        self.barriers_emitted += 1;
    }

    fn op(&mut self, block: BlockId, id: OpId) -> Emit {
        let kernel = self.kernel;
        let op = kernel.op(id);
        self.span = op.span;
        self.land(block, id)?;
        if self.barriers.contains(&id) {
            self.barrier();
        }
        match &op.kind {
            OpKind::Map { extents, body } => self.map(extents, *body),
            OpKind::Copy { dst, src, oob } => self.copy(id, dst, src, *oob),
            OpKind::Dot {
                acc,
                a,
                b,
                accumulate,
            } => match self.network {
                Some(_) => self.tensor_core_dot(id, acc, a, b, *accumulate),
                None => self.dot(acc, a, b, *accumulate),
            },
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
            } => self.top_k(*values, *indices, *src, *smallest),
            OpKind::For { lo, hi, body, .. } => self.for_loop(*lo, *hi, *body),
            OpKind::If {
                cond,
                then,
                otherwise,
            } => self.if_op(*cond, *then, *otherwise),
            OpKind::ForItems { body } if self.network.is_some() => self.items(*body),
            OpKind::ForItems { body } => {
                // What the launch hands out is one item after the other.
                for (axis, &arg) in kernel.block(*body).args.iter().enumerate() {
                    self.values[arg.index()] = Some(self.block_index[axis]);
                }
                self.block(*body)
            }
            OpKind::Assert { cond, message } => {
                let cond = self.value(*cond)?;
                match self.network {
                    // The other roles go on, so this one does too: what was found is reported, boxes reach nothing outside.
                    Some(_) => self.check_and_go_on(cond, message),
                    None => self.check(cond, message),
                }
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
            OpKind::Put { channel, src, .. } if self.network.is_some() => {
                self.put(id, *channel, src)
            }
            OpKind::Get { channel, tile } if self.network.is_some() => {
                self.get((block, id), *channel, *tile)
            }
            // Its products have been waited for; a slot goes back as a whole.
            OpKind::Release { part, .. } if self.network.is_some() => match part {
                None => self.release_read(block, id),
                Some(_) => Ok(()),
            },
            OpKind::Role { .. }
            | OpKind::Put { .. }
            | OpKind::Get { .. }
            | OpKind::Release { .. } => {
                Err(self.unsupported("roles and channels that were not fused"))
            }
            OpKind::StoreTile { .. } | OpKind::StoreGlobal { .. } | OpKind::Atomic { .. } => {
                self.once(id)
            }
            OpKind::Const(_)
            | OpKind::Scalar(_)
            | OpKind::Dim(_)
            | OpKind::BlockIndex(_)
            | OpKind::Unary(..)
            | OpKind::Binary(..)
            | OpKind::Fma(..)
            | OpKind::Compare(..)
            | OpKind::Select(..)
            | OpKind::Cast(..)
            | OpKind::Bitcast(..)
            | OpKind::LoadTile { .. }
            | OpKind::LoadGlobal { .. } => self.scalar_op(id),
        }
    }

    /// A store outside every map: by the first thread, or by each in memory of its own.
    fn once(&mut self, id: OpId) -> Emit {
        if let OpKind::StoreTile { tile, .. } = &self.kernel.op(id).kind
            && (self.plan.places[tile.index()] == super::Place::Private
                || self.layouts.contains_key(tile))
        {
            return self.scalar_op(id);
        }
        let first = self.is_first_thread();
        let open = self.b.begin_if(first);
        self.scalar_op(id)?;
        self.b.end_if(open);
        Ok(())
    }

    fn for_loop(&mut self, from: ValueId, to: ValueId, body: BlockId) -> Emit {
        let lo = self.value(from)?;
        let hi = self.value(to)?;
        let steady = self.begin_steady(body)?;
        if self.network.is_some() && multiplies(self.kernel, body) && runs(self.kernel, from, to) {
            // Sums that start as zeros do so in one place.
            let runs = self.b.cmpi(IntCompare::Slt, lo, hi);
            self.b.assume(runs);
        }
        let turn = self.network.as_ref().and_then(|n| n.turn_of(body));
        let (header, args) = self.b.new_block(1);
        let (inside, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        let first = turn.map_or(lo, |turn| self.first_turn(turn, lo));
        self.b.branch(header, &[first]);
        self.b.set_block(header);
        let more = self.b.cmpi(IntCompare::Slt, args[0], hi);
        self.b.cond_branch(more, inside, (after, &[]));
        self.b.set_block(inside);
        let variable = self.kernel.block(body).args[0];
        self.values[variable.index()] = Some(args[0]);
        self.block(body)?;
        if self.network.is_some()
            && multiplies(self.kernel, body)
            && may_be_unrolled(self.kernel, from, to)
        {
            // The next iteration's products too, which then follow in the same code.
            self.settle()?;
        }
        self.look_ahead(body)?;
        let next = self.b.add_const(args[0], turn.map_or(1, |t| t.turns));
        self.b.branch(header, &[next]);
        self.b.set_block(after);
        if let Some(turn) = turn {
            self.end_turns(turn, args[0], [lo, hi]);
        }
        if steady {
            self.end_steady()?;
        }
        Ok(())
    }

    fn if_op(&mut self, cond: ValueId, then: BlockId, otherwise: Option<BlockId>) -> Emit {
        let cond = self.value(cond)?;
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

    // ---- checks -------------------------------------------------------------------------------------------

    fn new_trap(&mut self, message: &str) -> Val<'c> {
        self.traps.push(Trap {
            message: message.to_owned(),
            span: self.span,
        });
        self.b.i64(self.traps.len() as i64)
    }

    /// Goes on where `cond`, the same in all threads, holds; else leaves the function with a new trap's number.
    pub(super) fn check(&mut self, cond: Val<'c>, message: &str) {
        let number = self.new_trap(message);
        let (ok, _) = self.b.new_block(0);
        let fail = self.fail;
        self.b.cond_branch(cond, ok, (fail, &[number]));
        self.b.set_block(ok);
    }

    /// Leaves a new trap's number where `cond` does not hold.
    fn check_and_go_on(&mut self, cond: Val<'c>, message: &str) {
        let mut open = self.b.begin_if(cond);
        self.b.otherwise(&mut open);
        self.report(message);
        self.b.end_if(open);
    }

    /// Leaves a new trap's number and goes on.
    pub(super) fn report(&mut self, message: &str) {
        let number = self.new_trap(message);
        self.record(number);
    }

    fn record(&mut self, number: Val<'c>) {
        let record = self.record;
        self.b.atomic_relaxed(AtomicOp::UMax, record, number);
        let second = self.b.offset(record, 8);
        self.b.store(self.cta, second, 8, None);
    }

    /// Writes the error record: the greatest trap number, and a CTA that met one.
    pub(super) fn fail_block(&mut self) {
        let fail = self.fail;
        self.b.set_block(fail);
        let number = self.b.block_argument(fail, 0);
        let first = self.is_first_thread();
        let open = self.b.begin_if(first);
        self.record(number);
        self.b.end_if(open);
        self.b.ret();
    }

    // ---- flags --------------------------------------------------------------------------------------------

    fn flag(&mut self, param: ParamId, index: &[ValueId]) -> Emit<(Val<'c>, Elem)> {
        let memory = self.tensor(param)?;
        let index = self.values(index)?;
        let at = self.offset(&memory, &index);
        let elem = memory.elem();
        Ok((self.b.gep(memory.base, at, elem), elem))
    }

    /// A barrier stands before it (see `sync`), so that the first thread publishes what all threads did.
    fn signal(&mut self, param: ParamId, index: &[ValueId]) -> Emit {
        let first = self.is_first_thread();
        let open = self.b.begin_if(first);
        let (at, elem) = self.flag(param, index)?;
        let one = self.b.int(elem, 1, 1);
        self.b.fence();
        self.b.atomic_relaxed(AtomicOp::Add, at, one);
        self.b.end_if(open);
        Ok(())
    }

    fn wait(&mut self, param: ParamId, index: &[ValueId], at_least: ValueId) -> Emit {
        let target = self.value(at_least)?;
        let first = self.is_first_thread();
        let open = self.b.begin_if(first);
        let (at, elem) = self.flag(param, index)?;
        let start = self.b.zero(elem, 1);
        let spin = self.b.begin_while(start);
        let now = self.b.load_acquire(at, elem);
        let wide = self.b.resize(now, target.elem, false);
        let again = self.b.cmpi(IntCompare::Slt, wide, target);
        self.b.end_while(spin, again, now);
        self.b.end_if(open);
        self.barrier();
        Ok(())
    }
}

/// Whether LLVM may unroll a loop.
fn may_be_unrolled(kernel: &Kernel, from: ValueId, to: ValueId) -> bool {
    let (lo, hi) = (kernel.const_index(from), kernel.const_index(to));
    lo.zip(hi)
        .is_some_and(|(lo, hi)| hi.saturating_sub(lo) <= 8)
}

/// Whether a block has products of its own.
fn multiplies(kernel: &Kernel, block: BlockId) -> bool {
    let product = |&op: &OpId| matches!(kernel.op(op).kind, OpKind::Dot { .. });
    kernel.block(block).ops.iter().any(product)
}
