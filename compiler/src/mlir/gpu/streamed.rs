//! Matrices that are stored where products read them as they are computed: loops over what a thread has of one, a few runs of neighbours in each
//! turn, so that they take as few registers and as little code as these. The first map of one waits for the slot, the `put` says that it is full.

use super::{Emit, Emitter};
use crate::mlir::build::Val;
use crate::schedule::access;
use crate::schedule::layout::Layout;
use crate::schedule::{Ring, Stream};
use crate::tile::ir::*;
use std::ops::Range;

/// Elements of a thread in one turn of the loops: many, since a turn begins with a wait for what it loads, and more code is slower again.
const AT_ONCE: u64 = 96;

/// A slot that is being filled.
#[derive(Clone)]
pub(super) struct Filling<'c> {
    number: usize,
    ring: Ring,
    slot: Val<'c>,
    /// Where the tile starts.
    start: Val<'c>,
}

impl<'c> Emitter<'_, 'c> {
    /// What a map computes that is put at once.
    pub(super) fn stream_of(&self, body: BlockId) -> Option<Stream> {
        let plan = &self.network.as_ref()?.plan;
        plan.streamed.get(&body).copied()
    }

    /// Whether the map in hand is one.
    pub(super) fn stores_at_once(&self) -> bool {
        let here = self.here.as_ref();
        here.is_some_and(|here| self.stream_of(here.body).is_some())
    }

    fn filling(&mut self, stream: Stream) -> Emit<Filling<'c>> {
        if let Some(filling) = self.network()?.filling.get(&stream.tile) {
            return Ok(filling.clone());
        }
        let (number, ring, slot, _) = self.next_slot(stream.channel, true)?;
        let place = self.network()?.plan.slots[stream.channel.index()];
        let start = self.slot_address(place, slot)?;
        let filling = Filling {
            number,
            ring,
            slot,
            start: self.b.shared_pointer(start),
        };
        let network = self.network_mut();
        network.filling.insert(stream.tile, filling.clone());
        Ok(filling)
    }

    /// Computes a map's elements and stores them where they are put.
    pub(super) fn map_into_slot(&mut self, body: BlockId, stream: Stream) -> Emit {
        let kernel = self.kernel;
        let tile = stream.tile;
        let start = self.filling(stream)?.start;
        let place = self.network()?.plan.slots[stream.channel.index()];
        let stored = kernel.block(body).ops.iter().find_map(|&op| {
            let OpKind::StoreTile { index, .. } = &kernel.op(op).kind else {
                return None;
            };
            access::access(kernel, body, index)
        });
        let (Some(own), Some(held), Some(stored)) = (
            self.map_layouts.get(&body).cloned(),
            self.layout(tile),
            stored,
        ) else {
            return Err(self.fault("a matrix is put that is not in registers"));
        };
        // Some runs are taken together: those of the last digits.
        let mut looped = own.registers.clone();
        let run = looped.remove(0).count;
        let mut together: Vec<u64> = (0..run).collect();
        let mut step = own.registers();
        for digit in looped.iter_mut().rev() {
            step /= digit.count;
            let few = (1..=AT_ONCE / together.len() as u64).rev();
            let few = few.into_iter().find(|n| digit.count.is_multiple_of(*n));
            let few = few.unwrap_or(1);
            together = (0..few)
                .flat_map(|i| together.iter().map(move |r| i * step + r))
                .collect();
            (digit.count, digit.stride) = (digit.count / few, digit.stride * few);
            if digit.count > 1 {
                break;
            }
        }
        looped.retain(|digit| digit.count > 1);
        let registers: Option<Vec<u64>> = (together.iter())
            .map(|&r| access::register(&own, &stored, &held, r))
            .collect();
        let Some(registers) = registers else {
            return Err(self.fault("a tile in registers is touched elsewhere"));
        };
        let mut at = self.own_coordinates(&own);
        self.cells(tile)?;
        let mut open = vec![];
        for digit in looped.iter().rev() {
            let (zero, end) = (self.b.i64(0), self.b.i64(digit.count as i64));
            let turn = self.b.begin_rolled_for(zero, end, 1, &[]);
            if let Some(axis) = digit.axis {
                let moved = self.b.mul_const(turn.iv, digit.stride as i64);
                at[axis] = self.b.addi(at[axis], moved);
            }
            open.push(turn);
        }
        self.runs_in_turn(&own, body, run as usize, &together, &at, &mut |e, part| {
            e.store_words(place, start, tile, &registers[part], &at)
        })?;
        for turn in open.into_iter().rev() {
            self.b.end_for(turn, &[]);
        }
        Ok(())
    }

    /// A map over runs of registers, each stored when it is computed. What a run loads is loaded before the run in front of it is stored: no load
    /// moves to before a store later on.
    fn runs_in_turn(
        &mut self,
        own: &Layout,
        body: BlockId,
        run: usize,
        registers: &[u64],
        at: &[Val<'c>],
        store: &mut dyn FnMut(&mut Self, Range<usize>) -> Emit,
    ) -> Emit {
        let ops = &self.kernel.block(body).ops;
        let loads = |&op: &OpId| matches!(self.kernel.op(op).kind, OpKind::LoadTile { .. });
        let (loading, rest) = ops.split_at(ops.iter().rposition(loads).map_or(0, |last| last + 1));
        let results: Vec<ValueId> = (loading.iter())
            .filter_map(|&op| self.kernel.op(op).result)
            .collect();
        let parts = (0..registers.len() / run).map(|i| i * run..(i + 1) * run);
        let mut loaded: Option<(Range<usize>, Vec<Option<Val<'c>>>)> = None;
        for part in parts.map(Some).chain([None]) {
            let next = match part {
                Some(part) => {
                    let mut values = vec![];
                    for &register in &registers[part.clone()] {
                        self.begin_element(own, body, register, at, None);
                        self.scalar_ops(loading)?;
                        values.extend(results.iter().map(|r| self.values[r.index()]));
                    }
                    Some((part, values))
                }
                None => None,
            };
            let Some((part, values)) = std::mem::replace(&mut loaded, next) else {
                continue;
            };
            let mut values = values.into_iter();
            for &register in &registers[part.clone()] {
                self.begin_element(own, body, register, at, None);
                for (result, value) in results.iter().zip(values.by_ref()) {
                    self.values[result.index()] = value;
                }
                self.scalar_ops(rest)?;
            }
            store(self, part)?;
        }
        self.end_elements();
        Ok(())
    }

    /// What maps stored of a tile is all of it.
    pub(super) fn put_streamed(&mut self, stream: Stream) -> Emit {
        let Filling {
            number, ring, slot, ..
        } = self.filling(stream)?;
        self.network_mut().filling.remove(&stream.tile);
        self.complete(number, &ring, slot)
    }
}
