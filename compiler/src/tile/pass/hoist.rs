//! Scalar ops that do not depend on the iteration leave loops and maps.
//!
//! Needs: nothing. Keeps: bits. Only ops that cannot fail move, as the loop may run zero times: no division by or shift by what is
//! not a fit constant, no loads. Nothing leaves a branch or a role.

use crate::tile::ir::*;
use std::collections::HashSet;

pub fn hoist(kernel: &mut Kernel) {
    hoist_in(kernel, kernel.body);
}

fn hoist_in(kernel: &mut Kernel, block: BlockId) {
    let mut ops = Vec::new();
    for op in std::mem::take(&mut kernel.blocks[block.index()].ops) {
        // From the inside out, so that an op may leave several loops.
        for inner in kernel.op(op).kind.blocks() {
            hoist_in(kernel, inner);
        }
        if let OpKind::For { body, .. } | OpKind::Map { body, .. } | OpKind::ForItems { body } =
            kernel.op(op).kind
        {
            ops.extend(take_invariant(kernel, body));
        }
        ops.push(op);
    }
    kernel.blocks[block.index()].ops = ops;
}

fn take_invariant(kernel: &mut Kernel, body: BlockId) -> Vec<OpId> {
    let mut varying: HashSet<ValueId> = kernel.block(body).args.iter().copied().collect();
    let (mut moved, mut kept) = (Vec::new(), Vec::new());
    for op in std::mem::take(&mut kernel.blocks[body.index()].ops) {
        let kind = &kernel.op(op).kind;
        let mut varies = !cannot_fail(kernel, kind);
        kind.for_each_value(&mut |v| varies |= varying.contains(&v));
        if varies {
            varying.extend(kernel.op(op).result);
            kept.push(op);
        } else {
            moved.push(op);
        }
    }
    kernel.blocks[body.index()].ops = kept;
    moved
}

fn cannot_fail(kernel: &Kernel, kind: &OpKind) -> bool {
    match kind {
        // In a persistent kernel it is the coordinate of the item.
        OpKind::BlockIndex(_) => !kernel.launch.persistent,
        OpKind::Binary(BinaryOp::Div | BinaryOp::Rem, a, divisor) => {
            match kernel.constant(*divisor) {
                Some(Const::Index(i)) => i > 0,
                Some(Const::Int(i, _)) => i > 0,
                _ => matches!(kernel.ty(*a), Type::Scalar(d) if d.is_float()),
            }
        }
        OpKind::Binary(BinaryOp::Shl | BinaryOp::Shr, a, by) => {
            match (kernel.constant(*by), kernel.ty(*a)) {
                (Some(Const::Int(i, d)), _) => (0..d.bits() as i128).contains(&i),
                (Some(Const::Index(i)), _) => {
                    matches!(kind, OpKind::Binary(BinaryOp::Shr, ..)) && (0..64).contains(&i)
                }
                _ => false,
            }
        }
        kind => kind.is_pure(),
    }
}
