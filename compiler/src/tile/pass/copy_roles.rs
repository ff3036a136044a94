//! A role in several copies becomes as many roles, each with tiles of its own and its number as a constant.
//!
//! Needs: verified IR. Keeps: what the network computes.

use super::clone::Cloner;
use crate::tile::ir::*;
use std::collections::BTreeSet;

pub fn copy_roles(kernel: &mut Kernel) {
    let mut all = Vec::new();
    for op in kernel.block(kernel.body).ops.clone() {
        let Op { kind, span, .. } = kernel.op(op).clone();
        match kind {
            OpKind::Role {
                name,
                copies,
                turns,
                body,
            } if copies > 1 => {
                for number in 0..copies {
                    let role = OpKind::Role {
                        name: format!("{name} copy {number}"),
                        copies: 1,
                        turns,
                        body: copy(kernel, body, i64::from(number)),
                    };
                    all.push(push(kernel, role, None, span));
                }
            }
            _ => all.push(op),
        }
    }
    kernel.blocks[kernel.body.index()].ops = all;
}

/// A copy of a role's body whose `copy_id` is `number`.
fn copy(kernel: &mut Kernel, body: BlockId, number: i64) -> BlockId {
    let mut used = BTreeSet::new();
    kernel.walk(body, &mut |_, op| {
        kernel.op(op).kind.for_each_tile(&mut |t, _| {
            used.insert(t);
        });
    });
    let mut cloner = Cloner::default();
    for t in used {
        let tile = kernel.tile(t).clone();
        cloner.tiles.insert(t, TileId(kernel.tiles.len() as u32));
        kernel.tiles.push(tile);
    }
    let block = cloner.block(kernel, body);
    // The value that the copy's ops name becomes the constant, and the block gets a new argument.
    let copy_id = kernel.block(block).args[0];
    let argument = cloner.value(kernel, copy_id, Def::Arg(block, 0));
    kernel.blocks[block.index()].args[0] = argument;
    let number = OpKind::Const(Const::Index(number));
    let span = kernel.span;
    let number = push(kernel, number, Some(copy_id), span);
    kernel.values[copy_id.index()].def = Def::Op(number);
    kernel.blocks[block.index()].ops.insert(0, number);
    block
}

fn push(
    kernel: &mut Kernel,
    kind: OpKind,
    result: Option<ValueId>,
    span: crate::source::Span,
) -> OpId {
    let op = OpId(kernel.ops.len() as u32);
    kernel.ops.push(Op { kind, result, span });
    op
}
