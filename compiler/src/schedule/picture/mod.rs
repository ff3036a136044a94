//! Pictures of a network for people: its roles with the rings between them, and where the elements of its tiles lie in registers.
//!
//! Needs: a network with its plan. Keeps: shows what the plan says and decides nothing; the same network gives the same text and the same
//! bytes of SVG.

mod svg;
mod text;

use super::Network;
use super::layout::{LANES, Layout};
use crate::tile::ir::{BlockId, ChannelId, OpKind};
use std::collections::{BTreeMap, BTreeSet};

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Picture {
    pub title: String,
    pub roles: Vec<RoleBox>,
    pub rings: Vec<RingArrow>,
    pub tiles: Vec<TileGrid>,
}

#[derive(Clone, Debug)]
pub struct RoleBox {
    pub name: String,
    /// Warps, and what is special about them.
    pub facts: String,
}

/// A ring, from the role that fills its slots to those that read them.
#[derive(Clone, Debug)]
pub struct RingArrow {
    pub channels: Vec<String>,
    pub slots: u32,
    pub slot_bytes: u64,
    pub from: usize,
    pub to: Vec<usize>,
}

/// Tiles of one shape that lie alike.
#[derive(Clone, Debug)]
pub struct TileGrid {
    pub names: Vec<String>,
    pub layout: Layout,
}

/// Who holds an element: the first thread of those that do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Owner {
    warp: u64,
    lane: u64,
    register: u64,
}

impl Owner {
    fn thread(self) -> u64 {
        self.warp * LANES + self.lane
    }
}

impl Picture {
    pub fn new(title: &str, network: &Network) -> Picture {
        let plan = &network.plan;
        let roles: Vec<RoleBox> = (plan.roles.iter())
            .map(|role| {
                let mut facts = format!(
                    "warps {}..{}",
                    role.first_warp,
                    role.first_warp + role.warps
                );
                if let Some(registers) = role.registers {
                    facts.push_str(&format!(", {registers} registers a thread"));
                }
                if role.turns > 1 {
                    facts.push_str(&format!(", {} warpgroups in turn", role.turns));
                }
                if role.single {
                    facts.push_str(", one thread starts copies");
                }
                RoleBox {
                    name: role.name.clone(),
                    facts,
                }
            })
            .collect();
        let uses: Vec<Uses> = (plan.roles.iter())
            .map(|role| Uses::of(network, role.body))
            .collect();
        let who = |pick: fn(&Uses) -> &BTreeSet<ChannelId>, channels: &[ChannelId]| -> Vec<usize> {
            let has = |u: &Uses| channels.iter().any(|c| pick(u).contains(c));
            (0..uses.len()).filter(|&i| has(&uses[i])).collect()
        };
        let mut rings = vec![];
        for ring in &plan.rings {
            for from in who(|u| &u.puts, &ring.channels) {
                rings.push(RingArrow {
                    channels: (ring.channels.iter())
                        .map(|&c| plan.channel_name(c).to_owned())
                        .collect(),
                    slots: ring.slots,
                    slot_bytes: ring.slot_bytes,
                    from,
                    to: who(|u| &u.gets, &ring.channels),
                });
            }
        }
        let mut tiles: Vec<TileGrid> = vec![];
        // What the compiler made for itself lies as what it was made from.
        let named = |&(tile, _): &(&_, _)| !plan.tile_name(*tile).starts_with('%');
        for (&tile, layout) in plan.in_registers.tiles.iter().filter(named) {
            let name = plan.tile_name(tile).to_owned();
            match tiles.iter_mut().find(|t| t.layout == *layout) {
                Some(same) => same.names.push(name),
                None => tiles.push(TileGrid {
                    names: vec![name],
                    layout: layout.clone(),
                }),
            }
        }
        Picture {
            title: title.to_owned(),
            roles,
            rings,
            tiles,
        }
    }
}

/// Channels that a role fills and reads.
struct Uses {
    puts: BTreeSet<ChannelId>,
    gets: BTreeSet<ChannelId>,
}

impl Uses {
    fn of(network: &Network, role: BlockId) -> Uses {
        let kernel = &network.kernel;
        let (mut puts, mut gets) = (BTreeSet::new(), BTreeSet::new());
        kernel.walk(role, &mut |_, op| match &kernel.op(op).kind {
            OpKind::Put { channel, .. } => {
                puts.insert(*channel);
            }
            OpKind::Get { channel, .. } => {
                gets.insert(*channel);
            }
            _ => {}
        });
        Uses { puts, gets }
    }
}

impl TileGrid {
    /// `acc, w [64, 32]`
    fn heading(&self) -> String {
        let shape: Vec<String> = self.layout.shape.iter().map(u64::to_string).collect();
        let mut names = self.names.clone();
        names.sort_unstable();
        names.dedup();
        format!("{} [{}]", names.join(", "), shape.join(", "))
    }

    /// Rows and columns of the last two axes, at 0 of the others; a vector is one row.
    fn extents(&self) -> (u64, u64) {
        match self.layout.shape[..] {
            [] => (1, 1),
            [columns] => (1, columns),
            [.., rows, columns] => (rows, columns),
        }
    }

    /// Who holds what, by row and column.
    fn owners(&self) -> BTreeMap<(u64, u64), Owner> {
        let mut owners = BTreeMap::new();
        for warp in 0..self.layout.warps() {
            for lane in 0..LANES {
                for register in 0..self.layout.registers() {
                    let place = self.layout.coordinates(register, lane, warp);
                    let (outer, at) = place.split_at(place.len().saturating_sub(2));
                    if outer.iter().any(|&x| x > 0) {
                        continue;
                    }
                    let key = match *at {
                        [] => (0, 0),
                        [column] => (0, column),
                        [row, column, ..] => (row, column),
                    };
                    let owner = Owner {
                        warp,
                        lane,
                        register,
                    };
                    owners.entry(key).or_insert(owner);
                }
            }
        }
        owners
    }

    /// What the picture doesn't show of who else holds an element.
    fn copies(&self) -> &'static str {
        match (self.layout.is_everywhere(), self.layout.has_copies()) {
            (true, _) => "; every thread holds all of it",
            (_, true) => ", of copies the first thread's",
            _ => "",
        }
    }
}

/// 0 and the powers of two below an extent, counted in units: with what they add, layouts over bits are told in full.
fn basis(extent: u64, unit: u64) -> Vec<u64> {
    let powers = std::iter::successors(Some(unit), |&at| at.checked_mul(2));
    std::iter::once(0)
        .chain(powers.take_while(|&at| at < extent))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(layout: Layout) -> TileGrid {
        TileGrid {
            names: vec!["acc".into()],
            layout,
        }
    }

    #[test]
    fn every_element_has_an_owner_that_holds_it() {
        let layout = Layout::accumulator(128, 24, 2).expect("in range");
        let owners = grid(layout.clone()).owners();
        assert_eq!(owners.len(), 128 * 24);
        for (&(row, column), owner) in &owners {
            let at = layout.coordinates(owner.register, owner.lane, owner.warp);
            assert_eq!(at, [row, column]);
        }
    }

    #[test]
    fn a_basis_ends_before_the_extent() {
        assert_eq!(basis(1, 1), [0]);
        assert_eq!(basis(10, 2), [0, 2, 4, 8]);
        assert_eq!(basis(160, 1).last(), Some(&128));
    }
}
