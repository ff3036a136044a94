//! Constants fold, equal pure ops are computed once, what nobody uses goes.
//!
//! Also: an `if` on a constant becomes the side taken, a loop of one trip its body, a loop or map of none nothing; the variable of a
//! map axis of extent 1 is 0. Equal ops are shared from enclosing blocks inwards, never out of a branch.
//!
//! Needs: nothing. Keeps: bits and every effect, but a load (or an integer division) whose result is not used goes with its error.

use crate::tile::build::Builder;
use crate::tile::ir::*;
use std::collections::HashMap;

pub fn simplify(kernel: &mut Kernel) {
    share(kernel);
    remove_dead(kernel);
}

/// Folds and shares; dead ops stay.
fn share(kernel: &mut Kernel) {
    let body = kernel.body;
    let taken = std::mem::replace(kernel, Builder::new("", kernel.span).finish());
    let replaced = vec![None; taken.values.len()];
    let mut s = Sharing {
        b: Builder::at_block(taken, body),
        replaced,
        scopes: vec![HashMap::new()],
    };
    let ops = std::mem::take(&mut s.b.kernel.blocks[body.index()].ops);
    s.ops(&ops);
    *kernel = s.b.finish();
}

struct Sharing {
    b: Builder,
    replaced: Vec<Option<ValueId>>,
    /// What is computed already, by block from the body inwards.
    scopes: Vec<HashMap<String, ValueId>>,
}

impl Sharing {
    fn ops(&mut self, ops: &[OpId]) {
        for &op in ops {
            let mut kind = self.b.kernel.op(op).kind.clone();
            kind.for_each_value_mut(&mut |v| {
                *v = self
                    .replaced
                    .get(v.index())
                    .copied()
                    .flatten()
                    .unwrap_or(*v)
            });
            let span = self.b.set_span(self.b.kernel.op(op).span);
            self.op(op, kind);
            self.b.set_span(span);
        }
    }

    fn op(&mut self, op: OpId, kind: OpKind) {
        let result = self.b.kernel.op(op).result;
        if let (true, Some(old)) = (kind.is_pure(), result) {
            let known = match kind {
                OpKind::Const(_) => None,
                _ => self.b.known(&kind),
            };
            if let Some(new) = known {
                self.replace(old, new);
                return;
            }
            let key = key(&kind);
            if let Some(&new) = self.scopes.iter().rev().find_map(|s| s.get(&key)) {
                self.replace(old, new);
                return;
            }
            self.keep(op, kind);
            self.scopes
                .last_mut()
                .expect("the scope of the body stays")
                .insert(key, old);
            return;
        }
        match &kind {
            OpKind::If {
                cond,
                then,
                otherwise,
            } => {
                if let Some(Const::Bool(c)) = self.b.kernel.constant(*cond) {
                    let taken = if c { Some(*then) } else { *otherwise };
                    if let Some(block) = taken.filter(|&b| !self.binds_slots(b)) {
                        self.inline(block);
                        return;
                    } else if taken.is_none() {
                        return;
                    }
                }
            }
            OpKind::For { lo, hi, body, .. } => {
                if let (Some(first), Some(end)) = (
                    self.b.kernel.const_index(*lo),
                    self.b.kernel.const_index(*hi),
                ) {
                    if first >= end {
                        return;
                    }
                    if end - first == 1 && !self.binds_slots(*body) {
                        let arg = self.b.kernel.block(*body).args[0];
                        self.replace(arg, *lo);
                        self.inline(*body);
                        return;
                    }
                }
            }
            OpKind::Map { extents, body } => {
                if extents.contains(&0) {
                    return;
                }
                let args = self.b.kernel.block(*body).args.clone();
                for (arg, _) in args
                    .into_iter()
                    .zip(extents)
                    .filter(|(_, extent)| **extent == 1)
                {
                    let zero = self.b.index(0);
                    self.replace(arg, zero);
                }
            }
            _ => {}
        }
        let inner = kind.blocks();
        self.keep(op, kind);
        for block in inner {
            self.scopes.push(HashMap::new());
            self.b.push(block);
            let ops = std::mem::take(&mut self.b.kernel.blocks[block.index()].ops);
            self.ops(&ops);
            self.b.pop();
            self.scopes.pop();
        }
    }

    /// A `get` gives its slot back at the end of its block, so that block must stay one.
    fn binds_slots(&self, block: BlockId) -> bool {
        let k = &self.b.kernel;
        k.block(block)
            .ops
            .iter()
            .any(|&op| matches!(k.op(op).kind, OpKind::Get { .. }))
    }

    fn inline(&mut self, block: BlockId) {
        let ops = std::mem::take(&mut self.b.kernel.blocks[block.index()].ops);
        self.ops(&ops);
    }

    fn keep(&mut self, op: OpId, kind: OpKind) {
        let block = self.b.current();
        self.b.kernel.ops[op.index()].kind = kind;
        self.b.kernel.blocks[block.index()].ops.push(op);
    }

    fn replace(&mut self, old: ValueId, new: ValueId) {
        self.replaced[old.index()] = Some(new);
        if self.b.kernel.value(new).name.is_none() {
            self.b.kernel.values[new.index()].name = self.b.kernel.value(old).name.clone();
        }
    }
}

/// Equal for ops that give the same value.
fn key(kind: &OpKind) -> String {
    match kind {
        // -0.0 equals 0.0 and NaN does not equal itself, but their bits tell.
        OpKind::Const(Const::Float(x, d)) => format!("float {:x} {d}", x.to_bits()),
        OpKind::Binary(op, a, b) if commutes(*op) => {
            format!("{op:?} {:?} {:?}", a.min(b), a.max(b))
        }
        _ => format!("{kind:?}"),
    }
}

fn commutes(op: BinaryOp) -> bool {
    use BinaryOp::*;
    matches!(op, Add | Mul | Min | Max | And | Or | Xor)
}

/// Unlinks pure ops and loads whose results nobody uses, and maps, loops and branches that hold nothing any more.
fn remove_dead(kernel: &mut Kernel) {
    let mut uses = vec![0u32; kernel.values.len()];
    for op in kernel.live_ops() {
        kernel
            .op(op)
            .kind
            .for_each_value(&mut |v| uses[v.index()] += 1);
    }
    remove_dead_in(kernel, kernel.body, &mut uses);
}

fn remove_dead_in(kernel: &mut Kernel, block: BlockId, uses: &mut [u32]) {
    let mut kept = Vec::new();
    for op in std::mem::take(&mut kernel.blocks[block.index()].ops)
        .into_iter()
        .rev()
    {
        let kind = kernel.op(op).kind.clone();
        for inner in kind.blocks() {
            remove_dead_in(kernel, inner, uses);
        }
        let unused = kernel.op(op).result.is_some_and(|v| uses[v.index()] == 0);
        let is_empty = matches!(
            kind,
            OpKind::Map { .. } | OpKind::For { .. } | OpKind::If { .. }
        ) && kind
            .blocks()
            .iter()
            .all(|b| kernel.block(*b).ops.is_empty());
        if unused && (kind.is_pure() || kind.is_load()) || is_empty {
            kind.for_each_value(&mut |v| uses[v.index()] -= 1);
        } else {
            kept.push(op);
        }
    }
    kept.reverse();
    kernel.blocks[block.index()].ops = kept;
}
