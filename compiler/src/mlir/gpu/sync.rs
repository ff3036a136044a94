//! Which ops need a barrier before them.
//!
//! Threads of a CTA run a tile op side by side and are free to be at different ops. A barrier is needed before an op that touches what
//! an earlier op touched since the last barrier, if one of the two writes and it may have been another thread. Tiles that share bytes
//! touch each other; so do a loop's last ops and its first.
//!
//! Needs: a memory plan. Keeps: the program's meaning; a barrier stands only where all threads come by, since branches and loops
//! between tile ops are the same for all of them.

use super::memory::{MemoryPlan, Place};
use super::overlap::may_meet;
use crate::schedule::Registers;
use crate::tile::ir::*;
use crate::tile::visit::Access;
use std::collections::BTreeSet;
use tessera_artifact::ParamMode;

/// What is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Location {
    Tile(TileId),
    Param(ParamId),
    /// What one op at a time has beside its tiles.
    Work,
}

/// Which threads touch it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Threads {
    /// Any of them any element.
    Any,
    /// The first.
    First,
    /// Element e of the tile by the thread that the e-th iteration of a loop over all its elements falls to.
    Own,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Touch {
    location: Location,
    write: bool,
    threads: Threads,
    /// The copy that writes a tensor.
    store: Option<OpId>,
}

/// The ops with a barrier before them.
pub fn barriers(
    kernel: &Kernel,
    plan: &MemoryPlan,
    registers: &Registers,
    network: bool,
) -> BTreeSet<OpId> {
    let mut analysis = Analysis {
        kernel,
        plan,
        registers,
        network,
        before: BTreeSet::new(),
    };
    // A CTA takes one item of the grid after the other: its body is the body of a loop. Items may run side by side, so between them
    // only the CTA's own memory matters.
    let own = |touch: &Touch| !matches!(touch.location, Location::Param(_));
    analysis.repeated(kernel.body, &Pending::new(), &own);
    analysis.before
}

struct Analysis<'k> {
    kernel: &'k Kernel,
    plan: &'k MemoryPlan,
    registers: &'k Registers,
    /// Maps over tiles in registers go in those tiles' order, so no thread has elements of its own in memory.
    network: bool,
    before: BTreeSet<OpId>,
}

/// Since the last barrier.
type Pending = BTreeSet<Touch>;

impl Analysis<'_> {
    /// A loop's body: what is pending at its end is so at its start, where `matters` says so.
    fn repeated(
        &mut self,
        body: BlockId,
        entry: &Pending,
        matters: &dyn Fn(&Touch) -> bool,
    ) -> Pending {
        let mut start = entry.clone();
        loop {
            let mut end = self.block(body, start.clone());
            end.retain(matters);
            if end.is_subset(&start) {
                return start;
            }
            start.extend(end);
        }
    }

    /// What only its first trip has to wait for, a loop waits for before it.
    fn for_loop(&mut self, id: OpId, body: BlockId, pending: &Pending) -> Pending {
        let before = self.before.clone();
        let alone_end = self.repeated(body, &Pending::new(), &|_| true);
        let alone = std::mem::replace(&mut self.before, before);
        let end = self.repeated(body, pending, &|_| true);
        if self.before.contains(&id) || self.before != alone {
            self.before = alone;
            self.before.insert(id);
            return alone_end;
        }
        end
    }

    fn block(&mut self, block: BlockId, mut pending: Pending) -> Pending {
        let kernel = self.kernel;
        for &op in &kernel.block(block).ops {
            pending = self.op(op, pending);
        }
        pending
    }

    fn op(&mut self, id: OpId, mut pending: Pending) -> Pending {
        let kernel = self.kernel;
        match &kernel.op(id).kind {
            OpKind::For { body, .. } => self.for_loop(id, *body, &pending),
            OpKind::If {
                then, otherwise, ..
            } => {
                let mut end = self.block(*then, pending.clone());
                match otherwise {
                    Some(block) => end.extend(self.block(*block, pending)),
                    None => end.extend(pending),
                }
                end
            }
            OpKind::ForItems { body } | OpKind::Role { body, .. } => self.block(*body, pending),
            // What the CTA did must be done before the flag says so.
            OpKind::Signal { .. } => {
                self.before.insert(id);
                Pending::new()
            }
            // The emitter puts a barrier behind the wait.
            OpKind::Wait { .. } => Pending::new(),
            _ => {
                let touches = self.touches(id);
                if self.before.contains(&id) || self.conflict(&pending, &touches) {
                    self.before.insert(id);
                    pending.clear();
                }
                pending.extend(touches);
                pending
            }
        }
    }

    fn conflict(&self, pending: &Pending, touches: &Pending) -> bool {
        touches
            .iter()
            .any(|new| pending.iter().any(|old| self.pair(*old, *new)))
    }

    fn pair(&self, old: Touch, new: Touch) -> bool {
        if !old.write && !new.write {
            return false;
        }
        let meet = match (old.location, new.location) {
            (Location::Tile(a), Location::Tile(b)) => self.plan.overlap(a, b),
            (a, b) => a == b,
        };
        let meet = meet
            && match (old.store, new.store) {
                (Some(a), Some(b)) => may_meet(self.kernel, a, b),
                _ => true,
            };
        let same_thread = match (old.threads, new.threads) {
            (Threads::First, Threads::First) => true,
            (Threads::Own, Threads::Own) => old.location == new.location,
            _ => false,
        };
        meet && !same_thread
    }

    /// Everything an op touches, its blocks included, that more than one thread sees and somebody writes.
    fn touches(&self, id: OpId) -> Pending {
        let kernel = self.kernel;
        let kind = &kernel.op(id).kind;
        let mut touches = Pending::new();
        match kind {
            OpKind::Map { extents, body } => {
                let block = kernel.block(*body);
                for &op in &block.ops {
                    self.add(op, &mut touches, Threads::Any, &|kind, tile| match kind {
                        OpKind::LoadTile { index, .. } | OpKind::StoreTile { index, .. }
                            if !self.network
                                && !self.registers.maps.contains_key(body)
                                && *index == block.args
                                && kernel.tile(tile).shape == *extents =>
                        {
                            Threads::Own
                        }
                        _ => Threads::Any,
                    });
                }
            }
            OpKind::Copy { dst, src, .. } => {
                self.add(id, &mut touches, Threads::Any, &|_, tile| {
                    let whole = dst.base == Base::Tile(tile)
                        && dst.shape() == kernel.tile(tile).shape
                        && dst.slots.iter().all(|s| match s {
                            Slot::Span { start, .. } => kernel.const_index(*start) == Some(0),
                            _ => false,
                        });
                    let from_registers =
                        matches!(src.base, Base::Tile(t) if self.registers.tiles.contains_key(&t));
                    if whole && !self.network && !from_registers {
                        Threads::Own
                    } else {
                        Threads::Any
                    }
                })
            }
            OpKind::StoreTile { .. } | OpKind::StoreGlobal { .. } | OpKind::Atomic { .. } => {
                self.add(id, &mut touches, Threads::First, &|_, _| Threads::First);
            }
            OpKind::TopK { .. } | OpKind::Reduce { .. } if self.works_in_memory(kind) => {
                self.add(id, &mut touches, Threads::Any, &|_, _| Threads::Any);
                touches.insert(Touch {
                    location: Location::Work,
                    write: true,
                    threads: Threads::Any,
                    store: None,
                });
            }
            _ => self.add(id, &mut touches, Threads::Any, &|_, _| Threads::Any),
        }
        touches
    }

    /// Whether threads leave something for each other in memory beside the tiles.
    fn works_in_memory(&self, kind: &OpKind) -> bool {
        match (self.registers.exchanged(self.kernel, kind), kind) {
            (Some(values), _) => values > 0,
            (None, OpKind::Reduce { order, .. }) => {
                matches!(order, Order::Tree(lanes) if *lanes > 32)
            }
            (None, kind) => matches!(kind, OpKind::TopK { .. }),
        }
    }

    fn add(
        &self,
        id: OpId,
        touches: &mut Pending,
        tensors: Threads,
        threads: &dyn Fn(&OpKind, TileId) -> Threads,
    ) {
        let kind = &self.kernel.op(id).kind;
        kind.for_each_tile(&mut |tile, access| {
            if matches!(
                self.plan.places[tile.index()],
                Place::Shared(_) | Place::Scratch(_)
            ) {
                touches.insert(Touch {
                    location: Location::Tile(tile),
                    write: access == Access::Write,
                    threads: threads(kind, tile),
                    store: None,
                });
            }
        });
        kind.for_each_tensor(&mut |param, access| {
            let written = self
                .kernel
                .tensor(param)
                .is_some_and(|t| t.mode != ParamMode::In);
            if written {
                touches.insert(Touch {
                    location: Location::Param(param),
                    write: access == Access::Write,
                    threads: tensors,
                    store: (access == Access::Write && matches!(kind, OpKind::Copy { .. }))
                        .then_some(id),
                });
            }
        });
    }
}
