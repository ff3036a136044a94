//! The frame of passes that replace ops one by one.

use crate::tile::build::Builder;
use crate::tile::ir::*;

/// Offers every op to `f` in execution order, its operands replaced already. Where `f` gives a value, that takes the place of the
/// op's result and the op is gone; what `f` built before it stays.
pub fn replace_ops(
    kernel: &mut Kernel,
    f: &mut dyn FnMut(&mut Builder, &OpKind) -> Option<Replacement>,
) {
    let body = kernel.body;
    let taken = std::mem::replace(kernel, Builder::new("", kernel.span).finish());
    let mut replaced: Vec<Option<ValueId>> = vec![None; taken.values.len()];
    let mut b = Builder::at_block(taken, body);
    block(&mut b, body, &mut replaced, f);
    *kernel = b.finish();
}

pub enum Replacement {
    Value(ValueId),
}

fn block(
    b: &mut Builder,
    id: BlockId,
    replaced: &mut [Option<ValueId>],
    f: &mut dyn FnMut(&mut Builder, &OpKind) -> Option<Replacement>,
) {
    let ops = std::mem::take(&mut b.kernel.blocks[id.index()].ops);
    for op in ops {
        let mut kind = b.kernel.op(op).kind.clone();
        kind.for_each_value_mut(&mut |v| {
            if let Some(Some(new)) = replaced.get(v.index()) {
                *v = *new;
            }
        });
        let span = b.set_span(b.kernel.op(op).span);
        let replacement = f(b, &kind);
        b.set_span(span);
        match (replacement, b.kernel.op(op).result) {
            (Some(Replacement::Value(new)), Some(old)) => {
                replaced[old.index()] = Some(new);
                if b.kernel.value(new).name.is_none() {
                    b.kernel.values[new.index()].name = b.kernel.value(old).name.clone();
                }
            }
            (Some(_), None) => {}
            (None, _) => {
                let inner = kind.blocks();
                b.kernel.ops[op.index()].kind = kind;
                b.kernel.blocks[id.index()].ops.push(op);
                for inner in inner {
                    b.push(inner);
                    block(b, inner, replaced, f);
                    b.pop();
                }
            }
        }
    }
}
