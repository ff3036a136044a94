//! A network of roles becomes one sequential program.
//!
//! Every role is a part with values of its own. Parts run in declaration order, each until it must wait for
//! a channel; loops that hold channel ops run together with those of the other parts that have the same bounds
//! and the other ends of their channels. A `put` becomes a copy to a tile of the channel, a `get` a name for it,
//! a `release` and the end of the block free it for the next `put`; so which tile holds what is known here, and
//! a channel takes as many tiles as are held at once. As a network computes the same in every order, this one
//! is as good as any.
//!
//! Needs: verified IR. Keeps: bits. Refuses (with the reason) a network that has no such order: loops whose bounds differ, tiles
//! that stay in a channel across iterations, a branch with an `else` whose sides do more with channels than put alike.

use super::clone::Cloner;
use super::copy_roles::copy_roles;
use super::{PassError, unsupported};
use crate::source::Span;
use crate::tile::analysis::roles::put_either_way;
use crate::tile::build::Builder;
use crate::tile::ir::*;
use std::collections::{BTreeSet, HashMap};
use tessera_artifact::ParamMode;

pub fn fuse_roles(kernel: &mut Kernel) -> Result<(), PassError> {
    copy_roles(kernel);
    let body = kernel.body;
    let is_role = |k: &Kernel, op: OpId| matches!(k.op(op).kind, OpKind::Role { .. });
    let ops = kernel.block(body).ops.clone();
    let roles: Vec<OpId> = ops
        .iter()
        .copied()
        .filter(|&op| is_role(kernel, op))
        .collect();
    if roles.is_empty() {
        return Ok(());
    }
    kernel.blocks[body.index()]
        .ops
        .retain(|op| !roles.contains(op));
    let taken = std::mem::replace(kernel, Builder::new("", kernel.span).finish());
    let channels = taken.channels.len();
    let mut f = Fusion {
        b: Builder::at_block(taken, body),
        renamed: HashMap::new(),
        parts: Vec::new(),
        queues: vec![Vec::new(); channels],
        pool: vec![Vec::new(); channels],
        readers: vec![0; channels],
    };
    let mut blocks = Vec::new();
    for role in roles {
        blocks.extend(f.clone_role(role));
    }
    let everyone = blocks.into_iter().enumerate().collect();
    let result = f.run(everyone, f.b.kernel.span);
    *kernel = f.b.finish();
    result
}

/// Channels that are put or got in a block and what is in it.
fn channels_of(k: &Kernel, block: BlockId) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    k.walk(block, &mut |_, op| {
        if let OpKind::Put { channel, .. } | OpKind::Get { channel, .. } = k.op(op).kind {
            found.insert(channel.index());
        }
    });
    found
}

/// One role.
struct Part {
    name: String,
    /// Channels that it puts into or gets from.
    uses: BTreeSet<usize>,
    /// Whether it gets from each channel, and the next entry of its queue.
    reads: Vec<bool>,
    cursors: Vec<usize>,
    /// Slot tiles and the entries they name now: channel, position.
    bound: HashMap<TileId, (ChannelId, usize)>,
}

/// A tile in a channel.
#[derive(Clone)]
struct Entry {
    tile: TileId,
    /// Readers that have not given it back.
    left: usize,
}

struct Fusion {
    b: Builder,
    /// Loop variables of the parts and those of the fused loops.
    renamed: HashMap<ValueId, ValueId>,
    parts: Vec<Part>,
    /// Everything ever put, by channel.
    queues: Vec<Vec<Entry>>,
    /// Tiles of each channel that nobody holds.
    pool: Vec<Vec<TileId>>,
    /// Parts that get from each channel.
    readers: Vec<usize>,
}

/// What the channels hold, relative to what each part has taken: equal before and after an iteration.
#[derive(PartialEq)]
struct State {
    waiting: Vec<Vec<usize>>,
    held: Vec<Vec<TileId>>,
}

impl Fusion {
    fn clone_role(&mut self, role: OpId) -> Option<BlockId> {
        let OpKind::Role { name, body, .. } = self.b.kernel.op(role).kind.clone() else {
            return None;
        };
        let mut gets = vec![false; self.readers.len()];
        let k = &self.b.kernel;
        k.walk(body, &mut |_, op| {
            if let OpKind::Get { channel, .. } = k.op(op).kind {
                gets[channel.index()] = true;
            }
        });
        let uses = channels_of(k, body);
        let block = Cloner::default().block(&mut self.b.kernel, body);
        let copy_id = self.b.block_arg(block, 0);
        let number = self.b.index(0);
        self.renamed.insert(copy_id, number);
        for (n, got) in self.readers.iter_mut().zip(&gets) {
            *n += *got as usize;
        }
        self.parts.push(Part {
            name,
            cursors: vec![0; self.readers.len()],
            uses,
            reads: gets,
            bound: HashMap::new(),
        });
        Some(block)
    }

    /// Runs blocks of several parts to their ends.
    fn run(&mut self, blocks: Vec<(usize, BlockId)>, span: Span) -> Result<(), PassError> {
        let mut next = vec![0; blocks.len()];
        let mut opened: Vec<Vec<TileId>> = vec![Vec::new(); blocks.len()];
        loop {
            let mut progress = false;
            for (i, &(part, block)) in blocks.iter().enumerate() {
                while let Some(&op) = self.b.kernel.block(block).ops.get(next[i]) {
                    if !self.emit(part, op, &mut opened[i])? {
                        break;
                    }
                    next[i] += 1;
                    progress = true;
                    if next[i] == self.b.kernel.block(block).ops.len() {
                        for tile in std::mem::take(&mut opened[i]) {
                            self.release(part, tile);
                        }
                    }
                }
            }
            let current =
                |f: &Self, i: usize| f.b.kernel.block(blocks[i].1).ops.get(next[i]).copied();
            let waiting: Vec<usize> = (0..blocks.len())
                .filter(|&i| current(self, i).is_some())
                .collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if progress {
                continue;
            }
            // Everyone stands before a loop or an empty channel: loops that pass tiles to each other go on together.
            let loops: Vec<(usize, OpId)> = waiting
                .iter()
                .filter_map(|&i| current(self, i).map(|op| (i, op)))
                .filter(|&(_, op)| self.is_structure(op))
                .collect();
            if loops.is_empty() {
                let names: Vec<&str> = waiting
                    .iter()
                    .map(|&i| self.parts[blocks[i].0].name.as_str())
                    .collect();
                let span = current(self, waiting[0]).map_or(span, |op| self.b.kernel.op(op).span);
                return Err(unsupported(
                    span,
                    format!(
                        "deadlock: the roles {} all wait for a tile",
                        names.join(", ")
                    ),
                ));
            }
            let together = self.next_loops(&loops, &blocks);
            let members = together
                .iter()
                .map(|&(i, op)| (blocks[i].0, op))
                .collect::<Vec<_>>();
            self.fuse_loops(&members)?;
            for (i, _) in together {
                next[i] += 1;
                if next[i] == self.b.kernel.block(blocks[i].1).ops.len() {
                    for tile in std::mem::take(&mut opened[i]) {
                        self.release(blocks[i].0, tile);
                    }
                }
            }
        }
    }

    /// Of the loops that parts stand before, with their positions: those with the same bounds that have both ends of all their channels.
    /// Where there are none, one that will fail to go on alone.
    fn next_loops(
        &self,
        loops: &[(usize, OpId)],
        blocks: &[(usize, BlockId)],
    ) -> Vec<(usize, OpId)> {
        let channels: Vec<BTreeSet<usize>> =
            loops.iter().map(|&(_, op)| self.channels_in(op)).collect();
        let mut found = vec![];
        for first in 0..loops.len() {
            let mut members = BTreeSet::from([first]);
            let mut passed = channels[first].clone();
            // Each that joins may bring channels of others.
            for _ in 0..loops.len() {
                for (other, (_, op)) in loops.iter().enumerate() {
                    let meets = !passed.is_disjoint(&channels[other]);
                    if meets && self.same_bounds(loops[first].1, *op) && members.insert(other) {
                        passed.extend(&channels[other]);
                    }
                }
            }
            let parts: BTreeSet<usize> = members.iter().map(|&m| blocks[loops[m].0].0).collect();
            let whole = (0..self.parts.len())
                .filter(|&p| !passed.is_disjoint(&self.parts[p].uses))
                .all(|p| parts.contains(&p));
            found = members.into_iter().map(|m| loops[m]).collect();
            if whole {
                break;
            }
        }
        found
    }

    /// Channels that are put or got in a loop.
    fn channels_in(&self, op: OpId) -> BTreeSet<usize> {
        let k = &self.b.kernel;
        let mut found = BTreeSet::new();
        for block in k.op(op).kind.blocks() {
            found.extend(channels_of(k, block));
        }
        found
    }

    /// A loop or branch with channel ops inside.
    fn is_structure(&self, op: OpId) -> bool {
        let k = &self.b.kernel;
        let mut found = false;
        for block in k.op(op).kind.blocks() {
            k.walk(block, &mut |_, inner| {
                found |= matches!(
                    k.op(inner).kind,
                    OpKind::Put { .. } | OpKind::Get { .. } | OpKind::Release { .. }
                );
            });
        }
        found
    }

    /// Moves one op to the end of the program; false: the part must wait.
    fn emit(&mut self, part: usize, op: OpId, opened: &mut Vec<TileId>) -> Result<bool, PassError> {
        if let Some(channels) = put_either_way(&self.b.kernel, &self.b.kernel.op(op).kind) {
            self.put_from_branch(part, op, &channels);
            return Ok(true);
        }
        if self.is_structure(op) {
            return Ok(false);
        }
        let span = self.b.kernel.op(op).span;
        match self.b.kernel.op(op).kind.clone() {
            OpKind::Put {
                channel,
                mut src,
                oob,
            } => {
                let mut kind = OpKind::Put {
                    channel,
                    src: src.clone(),
                    oob,
                };
                self.rename(part, &mut kind);
                if let OpKind::Put { src: renamed, .. } = kind {
                    src = renamed;
                }
                let tile = self.take_tile(channel);
                let outer = self.b.set_span(span);
                let dst = self.b.whole_view(tile);
                self.b.copy(dst, src, oob);
                self.b.set_span(outer);
                self.publish(channel, tile);
            }
            OpKind::Get { channel, tile } => {
                let at = self.parts[part].cursors[channel.index()];
                if at >= self.queues[channel.index()].len() {
                    return Ok(false);
                }
                self.release(part, tile);
                self.parts[part].cursors[channel.index()] += 1;
                self.parts[part].bound.insert(tile, (channel, at));
                opened.push(tile);
            }
            // Parts go with the whole: a freed part could hold nothing here.
            OpKind::Release { tile, part: None } => self.release(part, tile),
            OpKind::Release { .. } => {}
            _ => {
                self.rename_deep(part, op);
                let block = self.b.current();
                self.b.kernel.blocks[block.index()].ops.push(op);
            }
        }
        Ok(true)
    }

    /// A branch whose sides put into the same channels: both copy to the same tiles.
    fn put_from_branch(&mut self, part: usize, op: OpId, channels: &[ChannelId]) {
        let tiles: Vec<TileId> = channels.iter().map(|&c| self.take_tile(c)).collect();
        for block in self.b.kernel.op(op).kind.blocks() {
            let mut next = tiles.iter();
            for inner in self.b.kernel.block(block).ops.clone() {
                if let OpKind::Put { src, oob, .. } = self.b.kernel.op(inner).kind.clone()
                    && let Some(&tile) = next.next()
                {
                    let dst = self.b.whole_view(tile);
                    self.b.kernel.ops[inner.index()].kind = OpKind::Copy { dst, src, oob };
                }
            }
        }
        self.rename_deep(part, op);
        let block = self.b.current();
        self.b.kernel.blocks[block.index()].ops.push(op);
        for (&channel, tile) in channels.iter().zip(tiles) {
            self.publish(channel, tile);
        }
    }

    fn publish(&mut self, channel: ChannelId, tile: TileId) {
        let left = self.readers[channel.index()];
        self.queues[channel.index()].push(Entry { tile, left });
        if left == 0 {
            self.pool[channel.index()].push(tile);
        }
    }

    fn take_tile(&mut self, channel: ChannelId) -> TileId {
        if let Some(tile) = self.pool[channel.index()].pop() {
            return tile;
        }
        let c = self.b.kernel.channels[channel.index()].clone();
        self.b.kernel.tiles.push(Tile {
            name: c.name,
            space: Space::Shared,
            shape: c.shape,
            dtype: c.dtype,
            span: c.span,
        });
        TileId(self.b.kernel.tiles.len() as u32 - 1)
    }

    fn release(&mut self, part: usize, tile: TileId) {
        if let Some((channel, at)) = self.parts[part].bound.remove(&tile) {
            let entry = &mut self.queues[channel.index()][at];
            entry.left -= 1;
            if entry.left == 0 {
                self.pool[channel.index()].push(entry.tile);
            }
        }
    }

    fn rename(&self, part: usize, kind: &mut OpKind) {
        kind.for_each_value_mut(&mut |v| *v = self.resolve(*v));
        kind.for_each_tile_mut(&mut |t| {
            if let Some(&(channel, at)) = self.parts[part].bound.get(t) {
                *t = self.queues[channel.index()][at].tile;
            }
        });
    }

    fn rename_deep(&mut self, part: usize, op: OpId) {
        let mut kind = self.b.kernel.op(op).kind.clone();
        self.rename(part, &mut kind);
        for block in kind.blocks() {
            for inner in self.b.kernel.block(block).ops.clone() {
                self.rename_deep(part, inner);
            }
        }
        self.b.kernel.ops[op.index()].kind = kind;
    }

    fn resolve(&self, v: ValueId) -> ValueId {
        self.renamed.get(&v).copied().unwrap_or(v)
    }

    fn same_bounds(&self, a: OpId, b: OpId) -> bool {
        match (&self.b.kernel.op(a).kind, &self.b.kernel.op(b).kind) {
            (OpKind::For { lo, hi, .. }, OpKind::For { lo: l, hi: h, .. }) => {
                self.same_value(*lo, *l) && self.same_value(*hi, *h)
            }
            (OpKind::If { cond, .. }, OpKind::If { cond: c, .. }) => self.same_value(*cond, *c),
            (OpKind::ForItems { .. }, OpKind::ForItems { .. }) => true,
            _ => false,
        }
    }

    /// Whether two values are the same computation.
    fn same_value(&self, a: ValueId, b: ValueId) -> bool {
        let (a, b) = (self.resolve(a), self.resolve(b));
        if a == b {
            return true;
        }
        let (Some(x), Some(y)) = (self.b.kernel.def(a), self.b.kernel.def(b)) else {
            return false;
        };
        // What the launch only reads is the same for every role.
        let repeats = |kind: &OpKind| match kind {
            OpKind::LoadGlobal { param, .. } => {
                let tensor = self.b.kernel.tensor(*param);
                tensor.is_some_and(|t| t.mode == ParamMode::In)
            }
            _ => kind.is_pure(),
        };
        if !repeats(x) || !repeats(y) {
            return false;
        }
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let (mut x, mut y) = (x.clone(), y.clone());
        x.for_each_value_mut(&mut |v| left.push(std::mem::replace(v, ValueId(0))));
        y.for_each_value_mut(&mut |v| right.push(std::mem::replace(v, ValueId(0))));
        x == y
            && left
                .iter()
                .zip(&right)
                .all(|(&l, &r)| self.same_value(l, r))
    }

    /// One loop (or branch) for the loops of several parts.
    fn fuse_loops(&mut self, members: &[(usize, OpId)]) -> Result<(), PassError> {
        let (_, first) = members[0];
        let Op { mut kind, span, .. } = self.b.kernel.op(first).clone();
        if let OpKind::If {
            otherwise: Some(_), ..
        } = kind
        {
            return Err(unsupported(
                span,
                "a branch with an `else` whose sides do more with channels than put into the same ones",
            ));
        }
        kind.for_each_value_mut(&mut |v| *v = self.resolve(*v));
        let inner: Vec<(usize, BlockId)> = members
            .iter()
            .map(|&(part, op)| (part, self.b.kernel.op(op).kind.blocks()[0]))
            .collect();
        let args = self.b.kernel.block(inner[0].1).args.len();
        let body = self.b.block(&vec![Type::Index; args]);
        for &(_, block) in &inner {
            for i in 0..args {
                let (old, new) = (self.b.block_arg(block, i), self.b.block_arg(body, i));
                if let Some(name) = self.b.kernel.value(old).name.clone() {
                    self.b.name(new, name);
                }
                self.renamed.insert(old, new);
            }
        }
        let before = self.state();
        self.b.push(body);
        let result = self.run(inner, span);
        self.b.pop();
        result?;
        if self.state() != before {
            let message = "a tile stays in a channel from one iteration to the next: put and get it in the same iteration";
            return Err(unsupported(span, message));
        }
        match &mut kind {
            OpKind::For { body: b, .. }
            | OpKind::ForItems { body: b }
            | OpKind::If { then: b, .. } => *b = body,
            _ => {}
        }
        let outer = self.b.set_span(span);
        self.b.effect(kind);
        self.b.set_span(outer);
        Ok(())
    }

    fn state(&self) -> State {
        let ahead = |part: &Part| {
            let one = |c: usize| {
                if part.reads[c] {
                    self.queues[c].len() - part.cursors[c]
                } else {
                    0
                }
            };
            (0..self.queues.len()).map(one).collect()
        };
        let held = |queue: &Vec<Entry>| {
            queue
                .iter()
                .filter(|e| e.left > 0)
                .map(|e| e.tile)
                .collect()
        };
        State {
            waiting: self.parts.iter().map(ahead).collect(),
            held: self.queues.iter().map(held).collect(),
        }
    }
}
