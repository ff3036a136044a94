//! A copy of a block with values and blocks of its own.

use crate::tile::ir::*;
use std::collections::HashMap;

/// What the originals have become; tiles without an entry are shared.
#[derive(Default)]
pub struct Cloner {
    pub values: HashMap<ValueId, ValueId>,
    pub tiles: HashMap<TileId, TileId>,
}

impl Cloner {
    /// A copy of `block` that no op owns yet. Values from outside are mapped where `values` has them.
    pub fn block(&mut self, kernel: &mut Kernel, block: BlockId) -> BlockId {
        let copy = BlockId(kernel.blocks.len() as u32);
        kernel.blocks.push(Block::default());
        for (i, arg) in kernel.block(block).args.clone().into_iter().enumerate() {
            let new = self.value(kernel, arg, Def::Arg(copy, i as u32));
            kernel.blocks[copy.index()].args.push(new);
        }
        let ops = kernel.block(block).ops.clone();
        kernel.blocks[copy.index()].ops = self.ops(kernel, &ops);
        copy
    }

    /// Copies of ops that no block has yet.
    pub fn ops(&mut self, kernel: &mut Kernel, ops: &[OpId]) -> Vec<OpId> {
        let mut copies = Vec::new();
        for &op in ops {
            let Op {
                mut kind,
                result,
                span,
            } = kernel.op(op).clone();
            kind.for_each_value_mut(&mut |v| *v = self.values.get(v).copied().unwrap_or(*v));
            kind.for_each_tile_mut(&mut |t| *t = self.tiles.get(t).copied().unwrap_or(*t));
            match &mut kind {
                OpKind::Map { body, .. }
                | OpKind::For { body, .. }
                | OpKind::ForItems { body }
                | OpKind::Role { body, .. } => *body = self.block(kernel, *body),
                OpKind::If {
                    then, otherwise, ..
                } => {
                    *then = self.block(kernel, *then);
                    if let Some(otherwise) = otherwise {
                        *otherwise = self.block(kernel, *otherwise);
                    }
                }
                _ => {}
            }
            let new = OpId(kernel.ops.len() as u32);
            let result = result.map(|v| self.value(kernel, v, Def::Op(new)));
            kernel.ops.push(Op { kind, result, span });
            copies.push(new);
        }
        copies
    }

    /// A value like `old`, which stands for it from now on.
    pub fn value(&mut self, kernel: &mut Kernel, old: ValueId, def: Def) -> ValueId {
        let new = ValueId(kernel.values.len() as u32);
        let Value { ty, name, .. } = kernel.value(old).clone();
        kernel.values.push(Value { ty, def, name });
        self.values.insert(old, new);
        new
    }
}
