//! What the CTAs of a cluster share: of boxes that neighbours along the first axis of the grid would each bring, each brings a part for all.
//!
//! The program says what each item of the grid does, and a channel is shared where what is put in it cannot depend on the item's place along the
//! first axis. Nobody who gets from it sees a difference, so bits stay. (What roles compute could be shared in the same way, and is not: widened
//! keys that two CTAs made for each other took longer than each making its own, see the page on performance.)
//!
//! Needs: a network whose launch asks for clusters. Keeps: what every slot holds when it is full. The CTAs of a cluster must take items that
//! differ along the first axis only.

use super::plan::gathers;
use crate::tile::ir::*;
use crate::tile::visit::Access;
use std::collections::BTreeSet;
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
    for channel in boxes(&kernel, &own) {
        kernel.channels[channel.index()].shared = true;
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
    let mut otherwise = own.channels.clone();
    kernel.walk(kernel.body, &mut |_, op| {
        if let OpKind::Put { channel, src, .. } = &kernel.op(op).kind {
            let spans = (src.slots.iter()).filter(|s| matches!(s, Slot::Span { .. }));
            if !matches!(src.base, Base::Param(_)) || gathers(src) || spans.count() != 2 {
                otherwise.insert(*channel);
            }
        }
    });
    let rows = u64::from(kernel.launch.cluster) * SWIZZLED_ROWS;
    let ids = (0..kernel.channels.len()).map(|i| ChannelId(i as u32));
    ids.filter(|id| {
        let shape = &kernel.channels[id.index()].shape;
        shape.len() == 2 && shape[0].is_multiple_of(rows) && !otherwise.contains(id)
    })
    .collect()
}
