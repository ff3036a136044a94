//! Roles whose iterations several warpgroups take in turn: all of them count the turns of the loop around the puts and gets, and each does its
//! own. Slots of rings come in the order of turns, so that nobody else sees a difference.
//!
//! Needs: a role that asks for turns. Keeps: each iteration is done once, in a loop that carries nothing from one to the next.

use super::{Plan, Ring, RolePlan};
use crate::schedule::layout::gcd;
use crate::tile::analysis::carried;
use crate::tile::ir::*;
use crate::tile::visit::Access;
use std::collections::BTreeSet;

/// The loop whose turns are taken: its body has all puts and gets of the role.
///
/// # Errors
/// What keeps the role from taking turns.
pub(super) fn turn_loop(kernel: &Kernel, role: BlockId) -> Result<BlockId, String> {
    let mut blocks = BTreeSet::new();
    let mut channels = BTreeSet::new();
    let mut fault = None;
    kernel.walk(role, &mut |block, op| match &kernel.op(op).kind {
        OpKind::Put { channel, .. } | OpKind::Get { channel, .. } => {
            blocks.insert(block);
            if !channels.insert(*channel) {
                fault = Some("puts or gets a channel twice in an iteration");
            }
        }
        OpKind::Dot { .. } | OpKind::Reduce { .. } => fault = Some("multiplies or folds"),
        OpKind::StoreGlobal { .. } | OpKind::Atomic { .. } => fault = Some("writes to a tensor"),
        OpKind::Copy { dst, .. } if matches!(dst.base, Base::Param(_)) => {
            fault = Some("writes to a tensor");
        }
        _ => {}
    });
    if let Some(fault) = fault {
        return Err(fault.to_owned());
    }
    let mut found = None;
    kernel.walk(role, &mut |_, op| {
        if let OpKind::For { body, .. } = kernel.op(op).kind
            && blocks.len() == 1
            && blocks.contains(&body)
        {
            found = Some(body);
        }
    });
    let Some(body) = found else {
        return Err("has puts and gets elsewhere than in one loop".to_owned());
    };
    let carried = match carried(kernel, body).first() {
        Some(&tile) => Some(tile),
        None => read_after(kernel, role, body),
    };
    match carried {
        Some(tile) => Err(format!(
            "carries `{}` from one iteration to the next",
            kernel.tile(tile).name
        )),
        None => Ok(body),
    }
}

/// A tile that a loop's body writes and something else of the role reads.
fn read_after(kernel: &Kernel, role: BlockId, body: BlockId) -> Option<TileId> {
    let (mut written, mut inside) = (BTreeSet::new(), BTreeSet::new());
    kernel.walk(body, &mut |_, op| {
        inside.insert(op);
        kernel.op(op).kind.for_each_tile(&mut |tile, access| {
            written.extend((access == Access::Write).then_some(tile));
        });
    });
    let mut found = None;
    kernel.walk(role, &mut |_, op| {
        kernel.op(op).kind.for_each_tile(&mut |tile, access| {
            if !inside.contains(&op) && access == Access::Read && written.contains(&tile) {
                found = Some(tile);
            }
        });
    });
    found
}

impl Plan {
    /// How many warpgroups take turns at a ring. Its slots are a multiple, so that each of them is always one warpgroup's: copies may land in
    /// another order than they were started, and who did not wait for the last use of a slot could take its parity for that of the next.
    pub(super) fn turns_at(&self, kernel: &Kernel, ring: &Ring) -> u32 {
        let uses = |role: &&RolePlan| {
            let mut found = false;
            kernel.walk(role.body, &mut |_, op| {
                if let OpKind::Put { channel, .. } | OpKind::Get { channel, .. } =
                    &kernel.op(op).kind
                {
                    found |= ring.channels.contains(channel);
                }
            });
            found
        };
        let users = self.roles.iter().filter(uses);
        users.map(|role| role.turns).fold(1, lcm)
    }

    /// How many copies there are of a tile in memory: each of the warpgroups that take turns has its own.
    pub fn copies_in_memory(&self, kernel: &Kernel, tile: TileId) -> u64 {
        let uses = |role: &&RolePlan| {
            let mut found = false;
            kernel.walk(role.body, &mut |_, op| {
                let note = &mut |t, _| found |= t == tile;
                kernel.op(op).kind.for_each_tile(note);
            });
            found
        };
        let mut turned = self.roles.iter().filter(|role| role.turns > 1);
        turned.find(uses).map_or(1, |role| role.turns.into())
    }
}

fn lcm(a: u32, b: u32) -> u32 {
    a / gcd(a.into(), b.into()) as u32 * b
}
