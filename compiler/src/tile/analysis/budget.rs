//! `budget smem <= …`: the bytes of shared tiles and channel slots, with the sum shown.
//!
//! A tile that only the body of a pipeline uses counts once per stage. Back ends may reuse memory between tiles that never live at
//! the same time; the budget is the author's limit before that.

use crate::diag::Sink;
use crate::diag::catalogue::channels as say;
use crate::tile::ir::*;

pub fn check(k: &Kernel, sink: &mut Sink) {
    let Some(limit) = k.budget.shared_bytes else {
        return;
    };
    let mut total = 0;
    let mut parts = vec![];
    for (i, t) in k.tiles.iter().enumerate() {
        if t.space != Space::Shared {
            continue;
        }
        let bytes = t.dtype.bytes_for(t.elements());
        let stages = stages(k, TileId(i as u32));
        total += bytes * stages;
        let times = if stages > 1 {
            format!(" x {stages} stages")
        } else {
            String::new()
        };
        parts.push(format!(
            "`{}` {} {}{times} = {}",
            t.name,
            shape(&t.shape),
            t.dtype,
            kib(bytes * stages)
        ));
    }
    for c in &k.channels {
        let slots = if c.ring.is_some() {
            0
        } else {
            c.slots.unwrap_or(1) as u64
        };
        let bytes = c.dtype.bytes_for(c.shape.iter().product()) * slots;
        if bytes > 0 {
            total += bytes;
            parts.push(format!(
                "`{}` {} {} x {slots} slots = {}",
                c.name,
                shape(&c.shape),
                c.dtype,
                kib(bytes)
            ));
        }
    }
    if total > limit {
        sink.report(say::over_budget(
            k.span,
            &k.name,
            &kib(total),
            &kib(limit),
            &parts,
        ));
    }
}

/// Copies that a pipeline keeps of a tile.
fn stages(k: &Kernel, tile: TileId) -> u64 {
    let uses = |b: BlockId| count(k, b, tile);
    let all = uses(k.body);
    let mut out = 1;
    for op in &k.ops {
        if let OpKind::For {
            kind: LoopKind::Pipeline { stages },
            body,
            ..
        } = &op.kind
            && uses(*body) == all
        {
            out = out.max(stages.unwrap_or(1) as u64);
        }
    }
    out
}

fn count(k: &Kernel, b: BlockId, tile: TileId) -> usize {
    let mut n = 0;
    for &id in &k.block(b).ops {
        let kind = &k.op(id).kind;
        kind.for_each_tile(&mut |t, _| n += usize::from(t == tile));
        for inner in kind.blocks() {
            n += count(k, inner, tile);
        }
    }
    n
}

fn shape(extents: &[u64]) -> String {
    let extents: Vec<String> = extents.iter().map(u64::to_string).collect();
    format!("[{}]", extents.join(", "))
}

fn kib(bytes: u64) -> String {
    if bytes.is_multiple_of(1024) {
        format!("{} KiB", bytes / 1024)
    } else {
        format!("{bytes} B")
    }
}
