//! A plain program becomes a network of two roles: `load`, which brings operands of products into shared memory, and `compute`, which
//! does the rest.
//!
//! Every tile that one copy fills from a tensor and that only products read crosses as a channel, and with it the short vectors that are
//! copied beside it, such as scales: the compute role reads them where they arrive, if scalar code or irregular maps do, and copies them
//! on otherwise. A matrix from which maps compute an operand crosses too. Both roles keep the loops and branches around it, so their puts and gets balance by construction. What the
//! program computes stays the same: the interpreter runs the network to the same bits.
//!
//! Needs: a kernel without roles whose products a tensor core can do. `None`: nothing crosses, or the way to a copy depends on what the
//! compute role computes.

use super::access::access;
use super::registers::is_whole_view;
use crate::tile::ir::*;
use crate::tile::pass::clone::Cloner;
use crate::tile::visit::Access;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A tile that crosses.
struct Crossing {
    copy: OpId,
    tile: TileId,
    channel: ChannelId,
    /// A vector that maps read: `tile` stands between the channel and what the copy fills.
    between: bool,
}

pub fn split(kernel: &Kernel) -> Option<Kernel> {
    let mut kernel = kernel.clone();
    let crossings = crossings(&mut kernel)?;
    let at: HashMap<OpId, &Crossing> = crossings.iter().map(|c| (c.copy, c)).collect();

    // The loader: the way to the copies, and nothing else.
    let mut loader = Loader {
        at: &at,
        cloner: Cloner::default(),
    };
    let body = kernel.body;
    let load = loader.block(&mut kernel, body)?;

    // The rest stays where it is, with gets in the place of the copies.
    for crossing in &crossings {
        let get = OpKind::Get {
            channel: crossing.channel,
            tile: crossing.tile,
        };
        let copy = &mut kernel.ops[crossing.copy.index()].kind;
        match (crossing.between, copy) {
            (true, OpKind::Copy { dst, src, oob }) => {
                *src = View {
                    base: Base::Tile(crossing.tile),
                    slots: dst.slots.clone(),
                };
                *oob = Oob::Never;
                insert_before(&mut kernel, crossing.copy, get);
            }
            (_, copy) => {
                *copy = get;
                kernel.tiles[crossing.tile.index()].space = Space::Slot;
            }
        }
    }
    let compute = BlockId(kernel.blocks.len() as u32);
    let ops = std::mem::take(&mut kernel.blocks[body.index()].ops);
    kernel.blocks.push(Block { args: vec![], ops });
    for (name, block) in [("load", load), ("compute", compute)] {
        role(&mut kernel, name, block);
    }
    // Scalar ops of the loader that only the other role needs.
    crate::tile::pass::simplify(&mut kernel);
    Some(kernel)
}

fn insert_before(kernel: &mut Kernel, op: OpId, kind: OpKind) {
    let new = OpId(kernel.ops.len() as u32);
    let span = kernel.op(op).span;
    kernel.ops.push(Op {
        kind,
        result: None,
        span,
    });
    for block in &mut kernel.blocks {
        if let Some(at) = block.ops.iter().position(|&o| o == op) {
            block.ops.insert(at, new);
            return;
        }
    }
}

fn role(kernel: &mut Kernel, name: &str, body: BlockId) {
    let copy_id = ValueId(kernel.values.len() as u32);
    kernel.values.push(Value {
        ty: Type::Index,
        def: Def::Arg(body, 0),
        name: None,
    });
    kernel.blocks[body.index()].args = vec![copy_id];
    let op = OpId(kernel.ops.len() as u32);
    kernel.ops.push(Op {
        kind: OpKind::Role {
            name: name.to_owned(),
            copies: 1,
            turns: 1,
            body,
        },
        result: None,
        span: kernel.span,
    });
    let top = kernel.body;
    kernel.blocks[top.index()].ops.push(op);
}

/// The tiles that cross, each with a channel of its own.
fn crossings(kernel: &mut Kernel) -> Option<Vec<Crossing>> {
    #[derive(Default)]
    struct Uses {
        writes: Vec<OpId>,
        others: bool,
        dots: usize,
        /// Reads of single elements.
        elements: usize,
    }
    let mut uses: BTreeMap<TileId, Uses> = BTreeMap::new();
    let mut blocks: HashMap<OpId, BlockId> = HashMap::new();
    let mut order = Vec::new();
    kernel.walk(kernel.body, &mut |block, op| {
        blocks.insert(op, block);
        order.push(op);
        let kind = &kernel.op(op).kind;
        let operands: Vec<TileId> = match kind {
            OpKind::Dot { acc, a, b, .. } => [a, b]
                .into_iter()
                .filter(|o| tensor_core_type(kernel, o.view.tile, acc.tile))
                .map(|o| o.view.tile)
                .collect(),
            _ => vec![],
        };
        kind.for_each_tile(&mut |tile, access| {
            let entry = uses.entry(tile).or_default();
            if operands.contains(&tile) {
                entry.dots += 1;
            } else if access == Access::Write && matches!(kind, OpKind::Copy { .. }) {
                entry.writes.push(op);
            } else if matches!(kind, OpKind::LoadTile { .. }) {
                entry.elements += 1;
            } else {
                entry.others = true;
            }
        });
    });
    let mut crossings = Vec::new();
    let mut elements = Vec::new();
    for &op in &order {
        let OpKind::Copy { dst, src, oob } = &kernel.op(op).kind else {
            continue;
        };
        let (Base::Tile(tile), Base::Param(_)) = (dst.base, src.base) else {
            continue;
        };
        let u = &uses[&tile];
        let alone = u.writes == [op] && !u.others;
        let gathered = src.slots.iter().any(|s| matches!(s, Slot::Gather { .. }));
        let filled = is_whole_view(kernel, dst) && matches!(oob, Oob::Never | Oob::Zero);
        if alone && filled && !gathered && read_in_its_block(kernel, blocks[&op], op, tile) {
            match (u.dots, u.elements) {
                (1.., 0) => crossings.push((op, tile)),
                (0, 1..) if kernel.tile(tile).shape.len() == 2 => elements.push((op, tile)),
                _ => {}
            }
        }
    }
    if crossings.is_empty() {
        return None;
    }
    // A tile from which an operand is computed, beside the other operand.
    let blocks_of_operands: BTreeSet<BlockId> =
        crossings.iter().map(|(op, _)| blocks[op]).collect();
    elements.retain(|(op, tile)| {
        blocks_of_operands.contains(&blocks[op]) && fits_a_slot(kernel, *op, *tile)
    });
    crossings.extend(elements);
    let beside: BTreeSet<BlockId> = crossings.iter().map(|(op, _)| blocks[op]).collect();
    let mut between = BTreeSet::new();
    for &op in &order {
        if let Some(tile) = short_vector(kernel, op)
            && beside.contains(&blocks[&op])
        {
            let in_place =
                uses[&tile].writes == [op] && read_in_place(kernel, blocks[&op], op, tile);
            if !in_place {
                between.insert(op);
            }
            crossings.push((op, tile));
        }
    }
    // In the order of the program: what is put together is got together.
    crossings.sort_by_key(|(op, _)| order.iter().position(|o| o == op));
    let channel = |kernel: &mut Kernel, copy: OpId, tile: TileId| {
        let t = kernel.tile(tile).clone();
        kernel.channels.push(Channel {
            name: t.name,
            shape: t.shape,
            dtype: t.dtype,
            slots: None,
            parts: 1,
            ring: None,
            shared: false,
            span: kernel.op(copy).span,
        });
        ChannelId(kernel.channels.len() as u32 - 1)
    };
    Some(
        (crossings.into_iter())
            .map(|(copy, filled)| {
                let between = between.contains(&copy);
                let tile = match between {
                    true => {
                        let mut between = kernel.tile(filled).clone();
                        between.space = Space::Slot;
                        kernel.tiles.push(between);
                        TileId(kernel.tiles.len() as u32 - 1)
                    }
                    false => filled,
                };
                Crossing {
                    copy,
                    tile,
                    channel: channel(kernel, copy, tile),
                    between,
                }
            })
            .collect(),
    )
}

/// Whether boxes of a tensor can fill a tile: they convert nothing.
fn comes_in_boxes(kernel: &Kernel, from: ParamId, tile: &Tile) -> bool {
    let is_input = |from: &Tensor| from.mode == tessera_artifact::ParamMode::In;
    let tensor = kernel.tensor(from);
    tensor.is_some_and(|from| is_input(from) && from.contiguous && from.dtype == tile.dtype)
}

/// Whether a matrix that an op copies from a tensor can come as boxes.
fn fits_a_slot(kernel: &Kernel, op: OpId, tile: TileId) -> bool {
    let OpKind::Copy { src, .. } = &kernel.op(op).kind else {
        return false;
    };
    let t = kernel.tile(tile);
    let row_bytes = t.shape[1] * u64::from(t.dtype.bits()) / 8;
    let rows = t.shape[0];
    let Base::Param(p) = src.base else {
        return false;
    };
    comes_in_boxes(kernel, p, t)
        && row_bytes > 0
        && super::plan::row_bytes(&t.name, row_bytes).is_ok()
        && rows.is_multiple_of(8)
        && rows <= super::plan::BOX_ROWS
        && src.slots.len() >= 2
        && matches!(src.slots.last(), Some(Slot::Span { len, .. }) if *len == t.shape[1])
        && super::starts_aligned(kernel, src, t.dtype)
}

/// The vector that an op copies from a tensor, if it is short enough for a box, and it and where it starts are multiples of 16 bytes.
fn short_vector(kernel: &Kernel, op: OpId) -> Option<TileId> {
    let OpKind::Copy { dst, src, oob } = &kernel.op(op).kind else {
        return None;
    };
    let (Base::Tile(tile), Base::Param(p)) = (dst.base, src.base) else {
        return None;
    };
    let t = kernel.tile(tile);
    let bytes = t.elements() * u64::from(t.dtype.bits()) / 8;
    let last = matches!(src.slots.last(), Some(Slot::Span { .. }));
    let gathered = src.slots.iter().any(|s| matches!(s, Slot::Gather { .. }));
    let fits = t.shape.len() == 1
        && t.elements() <= 256
        && t.dtype.bits() >= 8
        && bytes.is_multiple_of(16)
        && is_whole_view(kernel, dst)
        && last
        && super::starts_aligned(kernel, src, t.dtype)
        && !gathered
        && comes_in_boxes(kernel, p, t)
        && matches!(oob, Oob::Never | Oob::Zero);
    fits.then_some(tile)
}

/// Whether `tile` is read where it arrives: by single elements, after `copy` in its block or below, and somewhere by scalar code or by a
/// map that does not go along it (one that does keeps it in registers).
fn read_in_place(kernel: &Kernel, block: BlockId, copy: OpId, tile: TileId) -> bool {
    let mut maps = BTreeSet::new();
    let (mut by_elements, mut regular) = (true, true);
    kernel.walk(kernel.body, &mut |block, op| {
        let kind = &kernel.op(op).kind;
        match kind {
            OpKind::Map { body, .. } => {
                maps.insert(*body);
            }
            OpKind::LoadTile { tile: t, index } if *t == tile => {
                regular &= maps.contains(&block) && access(kernel, block, index).is_some();
            }
            kind if op != copy => kind.for_each_tile(&mut |t, _| by_elements &= t != tile),
            _ => {}
        }
    });
    by_elements && !regular && read_in_its_block(kernel, block, copy, tile)
}

/// Whether a product may run on tensor cores as far as its types go: its operands' and f32 sums.
fn tensor_core_type(kernel: &Kernel, operand: TileId, acc: TileId) -> bool {
    use tessera_artifact::DType;
    let sums = kernel.tile(acc).dtype == DType::F32;
    sums && super::tensor_core_bits(kernel.tile(operand).dtype).is_some()
}

/// Whether every use of `tile` stands after `copy` in its block, or in blocks below.
fn read_in_its_block(kernel: &Kernel, block: BlockId, copy: OpId, tile: TileId) -> bool {
    let (mut inside, mut all) = (0, 0);
    let count = |op: OpId, n: &mut usize| {
        kernel.op(op).kind.for_each_tile(&mut |t, _| {
            *n += usize::from(t == tile);
        });
    };
    let ops = &kernel.block(block).ops;
    let from = ops.iter().position(|&op| op == copy).unwrap_or(0);
    for &op in &ops[from..] {
        count(op, &mut inside);
        for inner in kernel.op(op).kind.blocks() {
            kernel.walk(inner, &mut |_, op| count(op, &mut inside));
        }
    }
    kernel.walk(kernel.body, &mut |_, op| count(op, &mut all));
    inside == all
}

struct Loader<'a> {
    at: &'a HashMap<OpId, &'a Crossing>,
    cloner: Cloner,
}

impl Loader<'_> {
    /// The part of a block that the loader runs. `None` if it needs what only the other role has.
    fn block(&mut self, kernel: &mut Kernel, block: BlockId) -> Option<BlockId> {
        let copy = BlockId(kernel.blocks.len() as u32);
        kernel.blocks.push(Block::default());
        for (i, arg) in kernel.block(block).args.clone().into_iter().enumerate() {
            let new = self.cloner.value(kernel, arg, Def::Arg(copy, i as u32));
            kernel.blocks[copy.index()].args.push(new);
        }
        for op in kernel.block(block).ops.clone() {
            if !self.wanted(kernel, op) {
                continue;
            }
            let Op {
                mut kind,
                result,
                span,
            } = kernel.op(op).clone();
            if let Some(crossing) = self.at.get(&op) {
                let OpKind::Copy { src, oob, .. } = kind else {
                    return None;
                };
                kind = OpKind::Put {
                    channel: crossing.channel,
                    src,
                    oob,
                };
            }
            let mut known = true;
            kind.for_each_value_mut(&mut |v| match self.cloner.values.get(v) {
                Some(new) => *v = *new,
                None => known = false,
            });
            // A scalar that cannot be had here is not made here; whoever needs it fails.
            if !known && result.is_some() {
                continue;
            }
            if !known {
                return None;
            }
            match &mut kind {
                OpKind::For { body, .. } | OpKind::ForItems { body } => {
                    *body = self.block(kernel, *body)?;
                }
                OpKind::If {
                    then, otherwise, ..
                } => {
                    *then = self.block(kernel, *then)?;
                    if let Some(otherwise) = otherwise {
                        *otherwise = self.block(kernel, *otherwise)?;
                    }
                }
                _ => {}
            }
            let new = OpId(kernel.ops.len() as u32);
            let result = result.map(|v| self.cloner.value(kernel, v, Def::Op(new)));
            kernel.ops.push(Op { kind, result, span });
            kernel.blocks[copy.index()].ops.push(new);
        }
        Some(copy)
    }

    fn wanted(&self, kernel: &Kernel, op: OpId) -> bool {
        let kind = &kernel.op(op).kind;
        let inner: BTreeSet<OpId> = {
            let mut inner = BTreeSet::new();
            for block in kind.blocks() {
                kernel.walk(block, &mut |_, op| {
                    inner.insert(op);
                });
            }
            inner
        };
        // Tensors that the launch writes are read by one role only.
        let readable = |p: ParamId| {
            (kernel.tensor(p)).is_some_and(|t| t.mode == tessera_artifact::ParamMode::In)
        };
        kind.is_pure()
            || matches!(kind, OpKind::LoadGlobal { param, .. } if readable(*param))
            || self.at.contains_key(&op)
            || inner.iter().any(|op| self.at.contains_key(op))
    }
}
