//! Warpgroups that take the iterations of a role's loop in turn: of `n`, each goes on by `n` iterations and `n` slots at a time.

use super::memory::{Place, copy_bytes};
use super::network::Network;
use super::staged::GROUP_BARRIERS;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Val};
use crate::schedule::RolePlan;
use crate::tile::ir::*;
use std::collections::BTreeSet;

/// Of the warpgroup in hand.
#[derive(Clone, Copy)]
pub(super) struct Turn<'c> {
    /// A variable, i64: iterations until its own.
    until: Val<'c>,
    /// Its number, i32, also of its first slot in every ring.
    pub own: Val<'c>,
    pub turns: i64,
    body: BlockId,
    /// Where its threads meet.
    pub barrier: Val<'c>,
}

impl<'c> Network<'c> {
    /// Whether iterations of `body` are taken in turn.
    pub(super) fn turn_of(&self, body: BlockId) -> Option<Turn<'c>> {
        self.turn.filter(|turn| turn.body == body)
    }
}

impl<'c> Emitter<'_, 'c> {
    /// A warpgroup stands for the whole role: with threads, a barrier and tiles in memory of its own.
    pub(super) fn own_turn(&mut self, role: &RolePlan) -> Emit {
        let Some(body) = role.turn_loop else {
            return Err(self.fault("a role takes turns of no loop"));
        };
        let own = self.group;
        self.threads = role.threads_of_turn();
        let mask = self.b.i64(i64::from(self.threads) - 1);
        self.thread = self.b.andi(self.thread, mask);
        self.group = self.b.i32(0);
        let first = i64::from(role.first_warp * 32 / self.threads);
        let barrier = self.b.add_const(own, GROUP_BARRIERS + first);
        let until = self.b.alloca(8);
        let number = self.b.resize(own, Elem::I64, false);
        self.b.store(number, until, 8, None);
        let kernel = self.kernel;
        let mut tiles = BTreeSet::new();
        kernel.walk(role.body, &mut |_, op| {
            let note = &mut |tile, _| {
                tiles.insert(tile);
            };
            kernel.op(op).kind.for_each_tile(note);
        });
        // What is private is each thread's own already.
        tiles.retain(|tile| self.plan.places[tile.index()] != Place::Private);
        for tile in tiles {
            let bytes = copy_bytes(kernel.tile(tile).elements(), kernel.tile(tile).dtype);
            let far = self.b.mul_const(own, bytes as i64);
            if let Some(memory) = &mut self.tiles[tile.index()] {
                memory.base = self.b.gep(memory.base, far, Elem::I8);
            }
        }
        self.network_mut().turn = Some(Turn {
            until,
            own,
            turns: role.turns.into(),
            body,
            barrier,
        });
        Ok(())
    }

    /// The first iteration of a loop from `lo` that is the warpgroup's own.
    pub(super) fn first_turn(&mut self, turn: Turn<'c>, lo: Val<'c>) -> Val<'c> {
        let until = self.b.load(turn.until, (Elem::I64, 1), 8, None);
        self.b.addi(lo, until)
    }

    /// After the loop: how far the warpgroup's next iteration, which would have been `next`, lies in the loop's next run.
    pub(super) fn end_turns(&mut self, turn: Turn<'c>, next: Val<'c>, [lo, hi]: [Val<'c>; 2]) {
        let end = self.b.binary("arith.maxsi", lo, hi);
        let until = self.b.subi(next, end);
        self.b.store(until, turn.until, 8, None);
    }
}
