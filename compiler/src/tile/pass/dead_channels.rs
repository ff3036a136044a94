//! Channels that no role uses any more go: those of loops that never run.
//!
//! Needs: nothing. Keeps: bits; a channel stays whose slots another one takes.

use crate::tile::ir::*;

pub fn dead_channels(kernel: &mut Kernel) {
    let mut used = vec![false; kernel.channels.len()];
    for op in kernel.live_ops() {
        if let OpKind::Put { channel, .. } | OpKind::Get { channel, .. } = kernel.op(op).kind {
            used[channel.index()] = true;
            if let Some(ring) = kernel.channels[channel.index()].ring {
                used[ring.index()] = true;
            }
        }
    }
    let mut numbers = vec![];
    let mut next = 0;
    for &used in &used {
        numbers.push(ChannelId(next));
        next += u32::from(used);
    }
    for op in &mut kernel.ops {
        if let OpKind::Put { channel, .. } | OpKind::Get { channel, .. } = &mut op.kind {
            *channel = numbers[channel.index()];
        }
    }
    let mut used = used.into_iter();
    kernel.channels.retain(|_| used.next().unwrap_or(true));
    for channel in &mut kernel.channels {
        channel.ring = channel.ring.map(|ring| numbers[ring.index()]);
    }
}
