//! The loop over items of a persistent kernel becomes its grid: one CTA runs one item.
//!
//! Results do not depend on how many CTAs share the items, so this share is as good as any. What stands before the loop runs for
//! every item. Needs: no roles (`fuse_roles`), one loop over items at the top of the body and nothing after it that has an effect.
//! Keeps: bits.

use super::{PassError, unsupported};
use crate::tile::build::Builder;
use crate::tile::ir::*;
use std::collections::HashMap;

pub fn flatten_items(kernel: &mut Kernel) -> Result<(), PassError> {
    if !kernel.launch.persistent {
        return Ok(());
    }
    let body = kernel.body;
    let ops = kernel.block(body).ops.clone();
    let loops: Vec<usize> = (0..ops.len())
        .filter(|&i| matches!(kernel.op(ops[i]).kind, OpKind::ForItems { .. }))
        .collect();
    let [at] = loops[..] else {
        return Err(unsupported(
            kernel.span,
            "a persistent kernel needs one loop over its items, at the top of its body",
        ));
    };
    if let Some(&op) = ops[at + 1..]
        .iter()
        .find(|&&op| !kernel.op(op).kind.is_pure())
    {
        return Err(unsupported(
            kernel.op(op).span,
            "nothing can follow the loop over the items in compiled code",
        ));
    }
    let OpKind::ForItems { body: items } = kernel.op(ops[at]).kind else {
        return Ok(());
    };
    let inner = std::mem::take(&mut kernel.blocks[items.index()].ops);
    let args = kernel.block(items).args.clone();
    kernel.blocks[body.index()].ops.truncate(at);
    kernel.launch.persistent = false;
    let taken = std::mem::replace(kernel, Builder::new("", kernel.span).finish());
    let mut b = Builder::at_block(taken, body);
    let mut coordinates = HashMap::new();
    for (axis, &arg) in args.iter().enumerate() {
        let value = b.block_index(axis as u8);
        if let Some(name) = b.kernel.value(arg).name.clone() {
            b.name(value, name);
        }
        coordinates.insert(arg, value);
    }
    *kernel = b.finish();
    kernel.blocks[body.index()].ops.extend(inner);
    for op in kernel.live_ops() {
        kernel.ops[op.index()]
            .kind
            .for_each_value_mut(&mut |v| *v = coordinates.get(v).copied().unwrap_or(*v));
    }
    Ok(())
}
