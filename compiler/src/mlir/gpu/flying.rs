//! Products on their way: they stay so until something touches their sums; only then they are waited for, and the slots that they read
//! are given back. A loop whose accumulators nothing else touches waits, in every iteration, for the products of the one before.

use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::tile::ir::*;
use std::collections::BTreeMap;

/// A `dot` whose sums nobody has waited for.
pub(super) struct Flying<'c> {
    pub acc: TileId,
    pub op: OpId,
    /// Words of operands in registers.
    pub left: Vec<Val<'c>>,
}

/// A loop whose products stay on their way from one iteration to the next.
pub(super) struct Steady<'c> {
    pub body: BlockId,
    pub last: OpId,
    pub accs: Vec<TileId>,
    /// Rings, and of each the slot that the products on their way read; -1: none.
    pub held: Vec<(usize, Val<'c>)>,
}

impl<'c> Emitter<'_, 'c> {
    /// Starts a loop whose products may stay on their way from one iteration to the next, if `body` is one.
    pub(super) fn begin_steady(&mut self, body: BlockId) -> Emit<bool> {
        let Some(network) = &self.network else {
            return Ok(false);
        };
        let Some((last, accs)) = steady_products(self.kernel, body) else {
            return Ok(false);
        };
        // Rings, and how many channels of each are got.
        let mut rings: BTreeMap<usize, usize> = BTreeMap::new();
        for &op in &self.kernel.block(body).ops {
            if let OpKind::Get { channel, .. } = self.kernel.op(op).kind {
                *rings
                    .entry(network.plan.slots[channel.index()].ring)
                    .or_default() += 1;
            }
        }
        // One slot of each is held while the next one is got.
        let held_alone = |(ring, gets): (&usize, &usize)| {
            let ring = &network.plan.rings[*ring];
            *gets == ring.channels.len() && ring.slots > 1
        };
        if !rings.iter().all(held_alone) {
            return Ok(false);
        }
        let none = self.b.i32(-1);
        let mut held = Vec::new();
        for ring in rings.into_keys() {
            let slot = self.b.alloca(4);
            self.b.store(none, slot, 4, None);
            held.push((ring, slot));
        }
        self.network_mut().steady = Some(Steady {
            body,
            last,
            accs,
            held,
        });
        Ok(true)
    }

    /// After the loop: waits for its last products and gives back what they read.
    pub(super) fn end_steady(&mut self) -> Emit {
        let Some(steady) = self.network_mut().steady.take() else {
            return Ok(());
        };
        self.await_products(0, &steady.accs)?;
        for &(ring, variable) in &steady.held {
            let slot = self.b.load(variable, (Elem::I32, 1), 4, None);
            let zero = self.b.i32(0);
            let some = self.b.cmpi(IntCompare::Sge, slot, zero);
            self.give_back(ring, slot, Some(some))?;
        }
        Ok(())
    }

    /// Before `op` of `block` runs: waits for the products whose sums it touches, and before anything that branches for all.
    pub(super) fn land(&mut self, block: BlockId, op: OpId) -> Emit {
        let kernel = self.kernel;
        let Some(network) = self.network.as_ref().filter(|n| !n.flying.is_empty()) else {
            return Ok(());
        };
        let flying = &network.flying;
        let kind = &kernel.op(op).kind;
        let landed = match kind {
            // Sums follow each other on the tensor cores.
            OpKind::Dot { .. } => 0,
            OpKind::Get { channel, .. } => {
                let number = network.plan.slots[channel.index()].ring;
                let ring = &network.plan.rings[number];
                let held = network.bound.values().filter(|b| b.ring == number);
                let full = held.count() >= ring.channels.len() * ring.slots as usize;
                // The slot that comes next is one that they read.
                if full { flying.len() } else { 0 }
            }
            OpKind::For { .. } | OpKind::ForItems { .. } | OpKind::If { .. } => flying.len(),
            OpKind::Release { tile, part: None } => {
                let reads = |f: &Flying| {
                    let mut read = false;
                    (kernel.op(f.op).kind).for_each_tile(&mut |t, _| read |= t == *tile);
                    read
                };
                flying.iter().rposition(reads).map_or(0, |last| last + 1)
            }
            _ => {
                let mut touched = vec![];
                kind.for_each_tile(&mut |t, _| touched.push(t));
                for inner in kind.blocks() {
                    kernel.walk(inner, &mut |_, op| {
                        (kernel.op(op).kind).for_each_tile(&mut |t, _| touched.push(t));
                    });
                }
                let last = flying.iter().rposition(|f| touched.contains(&f.acc));
                last.map_or(0, |last| last + 1)
            }
        };
        self.land_first(landed)?;
        match landed {
            0 => Ok(()),
            _ => self.release_read(block, op),
        }
    }

    /// Waits for as many of the products on their way, the oldest first.
    pub(super) fn land_first(&mut self, count: usize) -> Emit {
        let network = self.network_mut();
        let landed: Vec<Flying> = network.flying.drain(..count).collect();
        let left = network.flying.len() as u32;
        let accs: Vec<TileId> = landed.iter().map(|f| f.acc).collect();
        self.await_products(left, &accs)?;
        let words: Vec<_> = landed.into_iter().flat_map(|f| f.left).collect();
        if !words.is_empty() {
            self.b.keep_words(&words);
        }
        Ok(())
    }

    /// After the products of `op` have been issued: lets them go on.
    pub(super) fn after_products(&mut self, op: OpId, acc: TileId, left: Vec<Val<'c>>) -> Emit {
        let steady = self.network()?.steady.as_ref();
        let Some(steady) = steady.filter(|s| s.accs.contains(&acc)) else {
            self.b.wgmma_commit();
            let flying = &mut self.network_mut().flying;
            flying.push(Flying { acc, op, left });
            return Ok(());
        };
        if steady.last != op {
            return Ok(());
        }
        let held = steady.held.clone();
        self.b.wgmma_commit();
        self.b.wgmma_wait(1);
        for (ring, variable) in held {
            let before = self.b.load(variable, (Elem::I32, 1), 4, None);
            let zero = self.b.i32(0);
            let some = self.b.cmpi(IntCompare::Sge, before, zero);
            self.give_back(ring, before, Some(some))?;
            let now = self
                .network()?
                .bound
                .values()
                .find(|b| b.ring == ring)
                .map(|b| b.slot);
            let Some(now) = now else {
                return Err(self.fault("a product that reads no slot"));
            };
            self.b.store(now, variable, 4, None);
        }
        Ok(())
    }
}

/// The last product of a loop's body and the accumulators, if nothing else in the body touches these, and products read nothing but
/// slots that the body gets.
fn steady_products(kernel: &Kernel, body: BlockId) -> Option<(OpId, Vec<TileId>)> {
    let ops = &kernel.block(body).ops;
    let mut accs = Vec::new();
    let mut got = Vec::new();
    let mut last = None;
    for &op in ops {
        match &kernel.op(op).kind {
            OpKind::Get { tile, .. } => got.push(*tile),
            OpKind::Dot {
                acc,
                a,
                b,
                accumulate: true,
            } => {
                if ![a, b].iter().all(|o| got.contains(&o.view.tile)) {
                    return None;
                }
                accs.push(acc.tile);
                last = Some(op);
            }
            OpKind::Dot { .. } => return None,
            OpKind::Release { .. } | OpKind::Put { .. } => return None,
            _ => {}
        }
    }
    let last = last?;
    let mut others = false;
    for &op in ops {
        if matches!(kernel.op(op).kind, OpKind::Dot { .. }) {
            continue;
        }
        let mut touch = |op: OpId| {
            kernel
                .op(op)
                .kind
                .for_each_tile(&mut |t, _| others |= accs.contains(&t));
        };
        touch(op);
        let mut nested_products = false;
        for inner in kernel.op(op).kind.blocks() {
            kernel.walk(inner, &mut |_, op| {
                touch(op);
                nested_products |= matches!(kernel.op(op).kind, OpKind::Dot { .. });
            });
        }
        others |= nested_products;
    }
    (!others).then_some((last, accs))
}
