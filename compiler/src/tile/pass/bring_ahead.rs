//! What a pipeline of at least two stages copies from tensors into tiles in registers at the start of an iteration is brought one iteration
//! ahead, into tiles of its own: it is on its way while the iteration before it computes.
//!
//! Brought so are copies of whole tiles from tensors that the launch only reads, before anything but scalar arithmetic is done in the iteration.
//!
//! Needs: nothing. Keeps: bits, the order of all effects.

use super::clone::Cloner;
use super::unroll::filled_tile;
use crate::tile::build::Builder;
use crate::tile::ir::*;
use std::collections::HashMap;

pub fn bring_ahead(kernel: &mut Kernel) {
    bring_in(kernel, kernel.body);
}

fn bring_in(kernel: &mut Kernel, block: BlockId) {
    for op in std::mem::take(&mut kernel.blocks[block.index()].ops) {
        for inner in kernel.op(op).kind.blocks() {
            bring_in(kernel, inner);
        }
        if let Some(iterations) = Iterations::of(kernel, op) {
            iterations.fetch(kernel, block, iterations.lo);
            iterations.take(kernel, op);
        }
        kernel.blocks[block.index()].ops.push(op);
    }
}

/// A loop and what its iterations start with.
struct Iterations {
    lo: ValueId,
    hi: ValueId,
    body: BlockId,
    variable: ValueId,
    /// Scalar arithmetic and copies, the last one a copy.
    head: Vec<OpId>,
    /// Where each tile that the copies fill is brought ahead.
    next: HashMap<TileId, TileId>,
    /// These tiles, in the order of the copies.
    tiles: Vec<TileId>,
}

impl Iterations {
    fn of(kernel: &mut Kernel, op: OpId) -> Option<Iterations> {
        let OpKind::For { lo, hi, kind, body } = kernel.op(op).kind else {
            return None;
        };
        let LoopKind::Pipeline { stages: Some(2..) } = kind else {
            return None;
        };
        if let (Some(lo), Some(hi)) = (kernel.const_index(lo), kernel.const_index(hi))
            && hi.saturating_sub(lo) < 2
        {
            return None;
        }
        let (mut end, mut tiles) = (0, Vec::new());
        let ops = &kernel.block(body).ops;
        for (i, &op) in ops.iter().enumerate() {
            match &kernel.op(op).kind {
                OpKind::Copy { dst, src, oob } => match filled_tile(kernel, dst, src, *oob) {
                    Some(tile)
                        if kernel.tile(tile).space == Space::Reg && !tiles.contains(&tile) =>
                    {
                        tiles.push(tile);
                        end = i + 1;
                    }
                    _ => break,
                },
                kind if kind.is_pure() => {}
                _ => break,
            }
        }
        let head = ops[..end].to_vec();
        let &variable = kernel.block(body).args.first()?;
        let mut next = HashMap::new();
        for &tile in &tiles {
            let mut ahead = kernel.tile(tile).clone();
            ahead.name = format!("next {}", ahead.name);
            next.insert(tile, TileId(kernel.tiles.len() as u32));
            kernel.tiles.push(ahead);
        }
        (!tiles.is_empty()).then_some(Iterations {
            lo,
            hi,
            body,
            variable,
            head,
            next,
            tiles,
        })
    }

    /// Appends to `block` the copies of iteration `at`, if there is one, ahead of it.
    fn fetch(&self, kernel: &mut Kernel, block: BlockId, at: ValueId) {
        let then = build(kernel, block, |b| {
            let cond = b.compare(Predicate::Lt, at, self.hi);
            let then = b.block(&[]);
            let otherwise = None;
            b.effect(OpKind::If {
                cond,
                then,
                otherwise,
            });
            then
        });
        let mut cloner = Cloner {
            values: HashMap::from([(self.variable, at)]),
            tiles: self.next.clone(),
        };
        let copies = cloner.ops(kernel, &self.head);
        kernel.blocks[then.index()].ops = copies;
    }

    /// Each iteration takes what was brought ahead for it, and fetches what the next one takes.
    fn take(&self, kernel: &mut Kernel, op: OpId) {
        if let OpKind::For { kind, .. } = &mut kernel.ops[op.index()].kind {
            *kind = LoopKind::Sequential;
        }
        let mut ops = std::mem::take(&mut kernel.blocks[self.body.index()].ops);
        let rest = ops.split_off(self.head.len());
        ops.retain(|&op| !matches!(kernel.op(op).kind, OpKind::Copy { .. }));
        kernel.blocks[self.body.index()].ops = ops;
        let following = build(kernel, self.body, |b| {
            for tile in &self.tiles {
                let shape = b.kernel.tile(*tile).shape.clone();
                b.map(&shape, |b, at| {
                    let v = b.load_tile(self.next[tile], at);
                    b.store_tile(*tile, at, v);
                });
            }
            let one = b.index(1);
            b.add(self.variable, one)
        });
        self.fetch(kernel, self.body, following);
        kernel.blocks[self.body.index()].ops.extend(rest);
    }
}

/// Appends to `block`.
fn build<T>(kernel: &mut Kernel, block: BlockId, f: impl FnOnce(&mut Builder) -> T) -> T {
    let span = kernel.span;
    let taken = std::mem::replace(kernel, Builder::new("", span).finish());
    let mut b = Builder::at_block(taken, block);
    let result = f(&mut b);
    *kernel = b.finish();
    result
}
