//! Products ahead of what is done with their sums: a loop of a role takes several steps at a time, and starts the products of all before it
//! touches the sums of the first.
//!
//! A step that starts a product, waits for it, and adds its sums to others leaves the tensor cores idle while it does the latter, and itself idle
//! while they work. Of several steps in one iteration the products follow one another, and each step's sums are touched while later ones are on
//! their way: all of them, or only the next one where slots or registers are short. What is left of the trips is done one by one in a loop of its
//! own, so that the order of all sums stays.
//!
//! Needs: a network. Keeps: bits, the order of effects and, channel by channel, of gets. More slots of a ring are held at a time: it must have
//! them.

use super::registers::is_whole;
use crate::tile::build::Builder;
use crate::tile::ir::*;
use crate::tile::pass::clone::Cloner;
use crate::tile::visit::Access;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tessera_artifact::ParamMode;

/// Steps that an iteration takes, and how many of them have products on their way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    pub steps: usize,
    pub flying: usize,
}

/// The network with several steps at a time; `None`: no loop gains by it.
pub fn ahead(kernel: &Kernel, wanted: Ahead) -> Option<Kernel> {
    let mut kernel = kernel.clone();
    let mut loops = vec![];
    kernel.walk(kernel.body, &mut |block, op| {
        if let OpKind::For { body, .. } = kernel.op(op).kind
            && let Some(parts) = parts(&kernel, body)
        {
            loops.push((block, op, parts));
        }
    });
    if loops.is_empty() {
        return None;
    }
    for (block, op, parts) in loops {
        kernel = expand(kernel, block, op, &parts, wanted);
    }
    crate::tile::pass::simplify(&mut kernel);
    Some(kernel)
}

/// A loop's body in two parts.
struct Parts {
    /// By op of the body: whether it touches what products have summed, or has effects that others see.
    late: Vec<bool>,
    /// Tiles that live and die with the step.
    own: BTreeSet<TileId>,
}

fn parts(kernel: &Kernel, body: BlockId) -> Option<Parts> {
    let ops = &kernel.block(body).ops;
    let touches: Vec<Vec<(TileId, Access)>> = ops.iter().map(|&op| touched(kernel, op)).collect();
    let mut late = vec![];
    let mut late_values = BTreeSet::new();
    let mut late_tiles: BTreeMap<TileId, bool> = BTreeMap::new();
    let mut sums = BTreeSet::new();
    for (&op, touches) in ops.iter().zip(&touches) {
        let kind = &kernel.op(op).kind;
        match kind {
            OpKind::For { .. } | OpKind::ForItems { .. } | OpKind::If { .. } => return None,
            OpKind::Put { .. } | OpKind::Release { .. } => return None,
            OpKind::Signal { .. } | OpKind::Wait { .. } | OpKind::Print { .. } => return None,
            OpKind::Dot {
                accumulate: true, ..
            } => return None,
            _ => {}
        }
        let mut after = has_effects(kernel, op);
        kind.for_each_value(&mut |v| after |= late_values.contains(&v));
        for inner in kind.blocks() {
            kernel.walk(inner, &mut |_, op| {
                (kernel.op(op).kind).for_each_value(&mut |v| after |= late_values.contains(&v));
            });
        }
        let product = matches!(kind, OpKind::Dot { .. });
        for (tile, access) in touches {
            let written = *access == Access::Write;
            after |= sums.contains(tile) && !product;
            after |= late_tiles.get(tile).is_some_and(|w| *w || written);
        }
        late.push(after);
        if after {
            late_values.extend(kernel.op(op).result);
            for (tile, access) in touches {
                *late_tiles.entry(*tile).or_default() |= *access == Access::Write;
            }
        } else if let OpKind::Dot { acc, .. } = kind {
            sums.insert(acc.tile);
        }
    }
    if sums.is_empty() {
        return None;
    }
    let own = own_tiles(kernel, body, &touches);
    // What stays one tile for all steps: nothing that one part writes and the other touches.
    for (i, touches) in touches.iter().enumerate() {
        for (tile, access) in touches.iter().filter(|(t, _)| !own.contains(t)) {
            let written = *access == Access::Write;
            if !late[i] && (written || late_tiles.get(tile) == Some(&true)) {
                return None;
            }
        }
    }
    Some(Parts { late, own })
}

/// All tiles that an op and what is in it touches.
fn touched(kernel: &Kernel, op: OpId) -> Vec<(TileId, Access)> {
    let mut found = vec![];
    let mut note = |op: OpId| {
        (kernel.op(op).kind).for_each_tile(&mut |t, access| found.push((t, access)));
    };
    note(op);
    for inner in kernel.op(op).kind.blocks() {
        kernel.walk(inner, &mut |_, op| note(op));
    }
    found
}

/// Whether an op, or one in it, writes tensors, reads ones that are written, or may stop the kernel.
fn has_effects(kernel: &Kernel, op: OpId) -> bool {
    let written = |param: ParamId| (kernel.tensor(param)).is_none_or(|t| t.mode != ParamMode::In);
    let one = |op: OpId| match &kernel.op(op).kind {
        OpKind::StoreGlobal { .. } | OpKind::Atomic { .. } | OpKind::Assert { .. } => true,
        OpKind::LoadGlobal { param, .. } => written(*param),
        OpKind::Copy { dst, src, .. } => {
            let of = |view: &View| matches!(view.base, Base::Param(p) if written(p));
            of(dst) || of(src)
        }
        _ => false,
    };
    let mut found = one(op);
    for inner in kernel.op(op).kind.blocks() {
        kernel.walk(inner, &mut |_, op| found |= one(op));
    }
    found
}

/// Tiles that only `body` touches, and first by an op that makes all of them.
fn own_tiles(
    kernel: &Kernel,
    body: BlockId,
    touches: &[Vec<(TileId, Access)>],
) -> BTreeSet<TileId> {
    let mut elsewhere: BTreeMap<TileId, usize> = BTreeMap::new();
    kernel.walk(kernel.body, &mut |_, op| {
        (kernel.op(op).kind).for_each_tile(&mut |t, _| *elsewhere.entry(t).or_default() += 1);
    });
    for (tile, _) in touches.iter().flatten() {
        *elsewhere.entry(*tile).or_default() -= 1;
    }
    let mut own = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (&op, touches) in kernel.block(body).ops.iter().zip(touches) {
        let made = made_whole(kernel, op);
        for (tile, _) in touches {
            if seen.insert(*tile) && made == Some(*tile) && elsewhere[tile] == 0 {
                own.insert(*tile);
            }
        }
    }
    own
}

/// The tile that an op makes, all of it, without looking at what was in it.
fn made_whole(kernel: &Kernel, op: OpId) -> Option<TileId> {
    match &kernel.op(op).kind {
        OpKind::Get { tile, .. } => Some(*tile),
        OpKind::Dot {
            acc,
            accumulate: false,
            ..
        } => is_whole(kernel, acc).then_some(acc.tile),
        OpKind::Copy { dst, src, oob } => {
            let whole = super::registers::is_whole_view(kernel, dst);
            let plain = matches!(oob, Oob::Never | Oob::Zero) && dst.base != src.base;
            match dst.base {
                Base::Tile(tile) if whole && plain => Some(tile),
                _ => None,
            }
        }
        OpKind::Map { extents, body } => {
            let mut stores = vec![];
            let mut read = BTreeSet::new();
            kernel.walk(*body, &mut |_, op| match &kernel.op(op).kind {
                OpKind::StoreTile { tile, index, .. } => stores.push((*tile, index)),
                kind => kind.for_each_tile(&mut |t, _| {
                    read.insert(t);
                }),
            });
            let &[(tile, index)] = &stores[..] else {
                return None;
            };
            let whole = *extents == kernel.tile(tile).shape
                && *index == kernel.block(*body).args
                && !read.contains(&tile);
            whole.then_some(tile)
        }
        _ => None,
    }
}

/// Puts two loops in the place of one: several steps at a time, then the rest.
fn expand(mut kernel: Kernel, block: BlockId, op: OpId, parts: &Parts, wanted: Ahead) -> Kernel {
    let Op { kind, span, .. } = kernel.op(op).clone();
    let OpKind::For {
        lo, hi, kind, body, ..
    } = kind
    else {
        return kernel;
    };
    // What comes before the loops is built in a block of its own.
    let before = BlockId(kernel.blocks.len() as u32);
    kernel.blocks.push(Block::default());
    let mut b = Builder::at_block(kernel, before);
    b.set_span(span);
    let (zero, many) = (b.index(0), b.index(wanted.steps as i64));
    let trips = b.sub(hi, lo);
    let trips = b.max(trips, zero);
    let whole = b.div(trips, many);
    let done = b.mul(whole, many);
    let rest = b.add(lo, done);
    let arg = b.kernel.block(body).args[0];
    let inside = b.nested(&[Type::Index], |b, args| {
        let step = b.mul(args[0], many);
        let first = b.add(lo, step);
        let mut all: Vec<[Vec<OpId>; 2]> = vec![];
        let mut made: Vec<HashMap<TileId, TileId>> = vec![];
        for i in 0..wanted.steps {
            let offset = b.index(i as i64);
            let number = b.add(first, offset);
            let mut cloner = Cloner::default();
            cloner.values.insert(arg, number);
            for &tile in &parts.own {
                let copy = b.kernel.tile(tile).clone();
                // What a step that is done had in registers, the next one has. A slot is given back once nothing reads its tile any more.
                let free =
                    (made.len().checked_sub(wanted.flying)).filter(|_| copy.space != Space::Slot);
                let new = free.and_then(|step: usize| made[step].get(&tile).copied());
                let new = new.unwrap_or_else(|| {
                    b.kernel.tiles.push(copy);
                    TileId(b.kernel.tiles.len() as u32 - 1)
                });
                cloner.tiles.insert(tile, new);
            }
            made.push(cloner.tiles.clone());
            let ops = b.kernel.block(body).ops.clone();
            let ops = cloner.ops(&mut b.kernel, &ops);
            let mut halves = [vec![], vec![]];
            for (op, &is_late) in ops.into_iter().zip(&parts.late) {
                halves[usize::from(is_late)].push(op);
            }
            all.push(halves);
        }
        let here = b.current();
        let ops = &mut b.kernel.blocks[here.index()].ops;
        for i in 0..wanted.steps + wanted.flying - 1 {
            if let Some([early, _]) = all.get(i) {
                ops.extend(early);
            }
            if let Some([_, late]) = all.get((i + 1).wrapping_sub(wanted.flying)) {
                ops.extend(late);
            }
        }
    });
    b.effect(OpKind::For {
        lo: zero,
        hi: whole,
        kind,
        body: inside,
    });
    b.effect(OpKind::For {
        lo: rest,
        hi,
        kind,
        body,
    });
    let mut kernel = b.finish();
    let new = std::mem::take(&mut kernel.blocks[before.index()].ops);
    let ops = &mut kernel.blocks[block.index()].ops;
    if let Some(at) = ops.iter().position(|&o| o == op) {
        ops.splice(at..=at, new);
    }
    kernel
}
