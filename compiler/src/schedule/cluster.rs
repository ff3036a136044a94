//! What the CTAs of a cluster share: neighbours along the first axis of the grid that would bring or compute the same, each do a part of it for
//! all of them.
//!
//! The program says what each item of the grid does, and a channel is shared where what is put in it cannot depend on the item's place along the
//! first axis. Then each CTA puts its part of the rows into the slots of all: a box that the hardware brings to all of them, or what the role that
//! computes it row by row makes of the rows that only it brings. Nobody else sees a difference, so bits stay.
//!
//! Needs: a network whose launch asks for clusters. Keeps: what every slot holds when it is full. The CTAs of a cluster must take items that
//! differ along the first axis only.

use super::plan::{gathers, operands};
use crate::tile::build::Builder;
use crate::tile::ir::*;
use crate::tile::visit::Access;
use std::collections::{BTreeMap, BTreeSet};
use tessera_artifact::ParamMode;

/// Rows in which the hardware's swizzle repeats.
const SWIZZLED_ROWS: u64 = 8;

/// The network of a CTA that shares; `None`: there is nothing to share.
pub fn share(kernel: &Kernel) -> Option<Kernel> {
    if kernel.launch.cluster < 2 || kernel.launch.persistent {
        return None;
    }
    let own = Own::of(kernel);
    let mut kernel = kernel.clone();
    let roles: Vec<BlockId> = (kernel.block(kernel.body).ops.iter())
        .filter_map(|&op| match kernel.op(op).kind {
            OpKind::Role { body, .. } => Some(body),
            _ => None,
        })
        .collect();
    let mut parted = BTreeSet::new();
    for &role in &roles {
        if let Some(parts) = parts(&kernel, role, &own) {
            parted.extend(parts.gets.iter().copied());
            kernel = part(kernel, role, &parts);
        }
    }
    for channel in boxes(&kernel, &own) {
        if !parted.contains(&channel) {
            kernel.channels[channel.index()].shared = true;
        }
    }
    kernel.channels.iter().any(|c| c.shared).then_some(kernel)
}

/// What may differ from one CTA of a cluster to the next.
#[derive(Default)]
struct Own {
    values: BTreeSet<ValueId>,
    tiles: BTreeSet<TileId>,
    channels: BTreeSet<ChannelId>,
    /// Blocks that may run another number of times.
    blocks: BTreeSet<BlockId>,
}

impl Own {
    fn of(kernel: &Kernel) -> Own {
        let mut own = Own::default();
        loop {
            let before = own.size();
            kernel.walk(kernel.body, &mut |block, op| own.note(kernel, block, op));
            if own.size() == before {
                return own;
            }
        }
    }

    fn size(&self) -> [usize; 4] {
        [
            self.values.len(),
            self.tiles.len(),
            self.channels.len(),
            self.blocks.len(),
        ]
    }

    fn note(&mut self, kernel: &Kernel, block: BlockId, op: OpId) {
        let Op { kind, result, .. } = kernel.op(op);
        let written = |param: ParamId| {
            kernel
                .tensor(param)
                .is_some_and(|t| t.mode != ParamMode::In)
        };
        let mut differs = self.blocks.contains(&block);
        kind.for_each_value(&mut |v| differs |= self.values.contains(&v));
        kind.for_each_tile(&mut |t, access| {
            differs |= access == Access::Read && self.tiles.contains(&t);
        });
        kind.for_each_tensor(&mut |param, access| {
            differs |= access == Access::Read && written(param);
        });
        differs |= match kind {
            OpKind::BlockIndex(axis) => *axis == 0,
            OpKind::ForItems { .. } | OpKind::Atomic { .. } => true,
            OpKind::Get { channel, .. } => self.channels.contains(channel),
            _ => false,
        };
        if !differs {
            return;
        }
        self.values.extend(*result);
        self.blocks.extend(kind.blocks());
        for inner in kind.blocks() {
            self.values.extend(&kernel.block(inner).args);
        }
        kind.for_each_tile(&mut |t, access| {
            if access == Access::Write {
                self.tiles.insert(t);
            }
        });
        // One that CTAs get another number of times is no less their own than one that they put so.
        if let OpKind::Put { channel, .. } = kind {
            self.channels.insert(*channel);
        }
        if let (OpKind::Get { channel, .. }, true) = (kind, self.blocks.contains(&block)) {
            self.channels.insert(*channel);
        }
    }
}

/// Channels of matrices that boxes bring, the same in all CTAs.
fn boxes(kernel: &Kernel, own: &Own) -> Vec<ChannelId> {
    let by_boxes = |channel: ChannelId| {
        let mut all = true;
        for_each_put(kernel, channel, &mut |_, src| {
            all &= matches!(src.base, Base::Param(_)) && !gathers(src);
            all &= src.slots.iter().filter(|s| is_span(s)).count() == 2;
        });
        all
    };
    let cluster = u64::from(kernel.launch.cluster);
    let ids = (0..kernel.channels.len()).map(|i| ChannelId(i as u32));
    ids.filter(|&id| {
        let shape = &kernel.channels[id.index()].shape;
        let whole = shape.len() == 2 && shape[0].is_multiple_of(cluster * SWIZZLED_ROWS);
        whole && !own.channels.contains(&id) && by_boxes(id)
    })
    .collect()
}

fn is_span(slot: &Slot) -> bool {
    matches!(slot, Slot::Span { .. })
}

fn for_each_put(kernel: &Kernel, channel: ChannelId, f: &mut dyn FnMut(OpId, &View)) {
    kernel.walk(kernel.body, &mut |_, op| match &kernel.op(op).kind {
        OpKind::Put {
            channel: c, src, ..
        } if *c == channel => f(op, src),
        _ => {}
    });
}

/// A role that makes matrices row by row, and so can make a part of their rows of the same part of what it gets.
struct Parts {
    rows: u64,
    /// All that it gets, which nobody else does, and all that it puts.
    gets: BTreeSet<ChannelId>,
    puts: BTreeSet<ChannelId>,
    /// Its own tiles and those of slots.
    tiles: BTreeSet<TileId>,
    maps: Vec<OpId>,
}

fn parts(kernel: &Kernel, role: BlockId, own: &Own) -> Option<Parts> {
    let read = operands(kernel, false);
    let (mut gets, mut puts, mut tiles) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut maps, mut inside) = (vec![], BTreeSet::new());
    let mut fits = true;
    kernel.walk(role, &mut |block, op| {
        inside.insert(op);
        let kind = &kernel.op(op).kind;
        kind.for_each_tile(&mut |t, _| {
            tiles.insert(t);
        });
        fits &= !own.blocks.contains(&block);
        fits &= match kind {
            OpKind::Get { channel, .. } => gets.insert(*channel),
            OpKind::Put { channel, src, .. } => {
                puts.insert(*channel)
                    && matches!(src.base, Base::Tile(_))
                    && src.slots.iter().all(is_span)
                    && read.contains(channel)
            }
            OpKind::Map { .. } => {
                maps.push(op);
                true
            }
            OpKind::For { .. } | OpKind::If { .. } => true,
            OpKind::LoadTile { .. } | OpKind::StoreTile { .. } => true,
            OpKind::Release { part: None, .. } => true,
            kind => kind.is_pure(),
        };
    });
    let rows = kernel.channels[puts.first()?.index()].shape[0];
    let cluster = u64::from(kernel.launch.cluster);
    fits &= rows.is_multiple_of(cluster * SWIZZLED_ROWS) && !gets.is_empty();
    let mut of_rows = |shape: &[u64]| fits &= shape.len() == 2 && shape[0] == rows;
    for channel in gets.iter().chain(&puts) {
        of_rows(&kernel.channels[channel.index()].shape);
    }
    for tile in &tiles {
        of_rows(&kernel.tile(*tile).shape);
    }
    fits &= gets.iter().chain(&puts).all(|c| !own.channels.contains(c));
    fits &= gets.iter().all(|&channel| {
        let mut from_tensors = true;
        for_each_put(kernel, channel, &mut |_, src| {
            let leads = src.slots.iter().find(|s| !matches!(s, Slot::At(_)));
            let along = leads.is_some_and(|s| match s {
                Slot::Span { len, .. } => *len == rows,
                Slot::Gather { index, .. } => index.slots.iter().all(is_span),
                Slot::At(_) => false,
            });
            from_tensors &= matches!(src.base, Base::Param(_)) && along;
        });
        from_tensors
    });
    // Nobody else gets what it gets, nor touches its tiles.
    kernel.walk(kernel.body, &mut |_, op| {
        if inside.contains(&op) {
            return;
        }
        let kind = &kernel.op(op).kind;
        fits &= !matches!(kind, OpKind::Get { channel, .. } if gets.contains(channel));
        kind.for_each_tile(&mut |t, _| fits &= !tiles.contains(&t));
    });
    fits &= maps.iter().all(|&map| row_by_row(kernel, map, rows));
    fits.then_some(Parts {
        rows,
        gets,
        puts,
        tiles,
        maps,
    })
}

/// Whether a map's first axis is the row of all that it touches, and nothing else.
fn row_by_row(kernel: &Kernel, map: OpId, rows: u64) -> bool {
    let OpKind::Map { extents, body } = &kernel.op(map).kind else {
        return false;
    };
    let row = kernel.block(*body).args[0];
    let mut fits = extents[0] == rows;
    kernel.walk(*body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        let mut uses = 0;
        kind.for_each_value(&mut |v| uses += usize::from(v == row));
        let wanted = match kind {
            OpKind::LoadTile { index, .. } | OpKind::StoreTile { index, .. } => {
                fits &= index.first() == Some(&row);
                1
            }
            _ => 0,
        };
        fits &= uses == wanted;
    });
    fits
}

/// The kernel whose role makes the CTA's part of the rows only.
fn part(mut kernel: Kernel, role: BlockId, parts: &Parts) -> Kernel {
    let cluster = u64::from(kernel.launch.cluster);
    let rows = parts.rows / cluster;
    for &map in &parts.maps {
        if let OpKind::Map { extents, .. } = &mut kernel.ops[map.index()].kind {
            extents[0] = rows;
        }
    }
    for tile in &parts.tiles {
        kernel.tiles[tile.index()].shape[0] = rows;
    }
    for channel in &parts.gets {
        let channel = &mut kernel.channels[channel.index()];
        channel.shape[0] = rows;
        // In the same bytes.
        channel.slots = channel.slots.map(|slots| slots * cluster as u32);
    }
    let mut own_puts = vec![];
    kernel.walk(role, &mut |_, op| {
        if matches!(kernel.op(op).kind, OpKind::Put { .. }) {
            own_puts.push(op);
        }
    });
    for op in own_puts {
        if let OpKind::Put { src, .. } = &mut kernel.ops[op.index()].kind
            && let Some(Slot::Span { len, .. }) = src.slots.first_mut()
        {
            *len = rows;
        }
    }
    for channel in &parts.puts {
        kernel.channels[channel.index()].shared = true;
    }
    let mut puts: BTreeMap<OpId, BlockId> = BTreeMap::new();
    kernel.walk(kernel.body, &mut |block, op| {
        if let OpKind::Put { channel, .. } = &kernel.op(op).kind
            && parts.gets.contains(channel)
        {
            puts.insert(op, block);
        }
    });
    for (op, block) in puts {
        kernel = put_part(kernel, block, op, rows);
    }
    kernel
}

/// A put of the CTA's part of the rows that it put before.
fn put_part(mut kernel: Kernel, block: BlockId, op: OpId, rows: u64) -> Kernel {
    let cluster = i64::from(kernel.launch.cluster);
    // What comes before it is built in a block of its own.
    let before = BlockId(kernel.blocks.len() as u32);
    let span = kernel.op(op).span;
    kernel.blocks.push(Block::default());
    let mut b = Builder::at_block(kernel, before);
    b.set_span(span);
    let item = b.block_index(0);
    let (many, each) = (b.index(cluster), b.index(rows as i64));
    let rank = b.rem(item, many);
    let first = b.mul(rank, each);
    let mut kind = b.kernel.op(op).kind.clone();
    if let OpKind::Put { src, .. } = &mut kind
        && let Some(slot) = (src.slots.iter_mut()).find(|s| !matches!(s, Slot::At(_)))
    {
        match slot {
            Slot::Gather { index, len } => {
                *len = rows;
                if let [Slot::Span { start, len }] = index.slots.as_mut_slice() {
                    *start = b.add(*start, first);
                    *len = rows;
                }
            }
            Slot::Span { start, len } => {
                *start = b.add(*start, first);
                *len = rows;
            }
            Slot::At(_) => {}
        }
    }
    let mut kernel = b.finish();
    kernel.ops[op.index()].kind = kind;
    let new = std::mem::take(&mut kernel.blocks[before.index()].ops);
    let ops = &mut kernel.blocks[block.index()].ops;
    if let Some(at) = ops.iter().position(|&o| o == op) {
        ops.splice(at..at, new);
    }
    kernel
}
