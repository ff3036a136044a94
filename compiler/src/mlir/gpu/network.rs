//! A network of roles, as its [`Plan`] says: each role is a run of warps with code of its own, channels are rings of slots in shared
//! memory, and a pair of barriers for each slot says when it is full and when it is empty.
//!
//! Rings are emitted by `rings`, the wait for products by `flying`.

use super::flying::{Flying, Steady};
use super::rings::{Bound, Cursor};
use super::streamed::Filling;
use super::turns::Turn;
use super::{Emit, Emitter, known_extent};
use crate::mlir::build::{Elem, IntCompare, OpenIf, Val};
use crate::schedule::{Fill, Plan};
use crate::tile::ir::*;
use std::collections::BTreeMap;

pub(super) struct Network<'c> {
    pub plan: Plan,
    /// Where shared memory starts, i32.
    pub shared: Val<'c>,
    /// Where the tensor maps are.
    pub maps: Val<'c>,
    pub grid: Vec<Val<'c>>,
    /// Of the CTA in its cluster, i64.
    pub rank: Val<'c>,
    /// The role in hand.
    pub role: usize,
    /// Of the warpgroup, where several take turns.
    pub turn: Option<Turn<'c>>,
    /// Of each ring, for the role in hand.
    pub cursors: Vec<Cursor<'c>>,
    /// Tiles bound to slots.
    pub bound: BTreeMap<TileId, Bound<'c>>,
    pub steady: Option<Steady<'c>>,
    /// Slots of tiles that are put as they are computed.
    pub filling: BTreeMap<TileId, Filling<'c>>,
    /// Products on their way, of the block in hand, in the order of their groups.
    pub flying: Vec<Flying<'c>>,
}

const LANES: u32 = 32;
/// Rows of tiles of the grid that run next to each other, so that the operands they share stay in the L2 cache.
const RASTER: i64 = 16;
/// Of a CTA whose threads have registers for what follows from one item to the next.
const FEW_THREADS: u32 = 384;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn network(&self) -> Emit<&Network<'c>> {
        match &self.network {
            Some(network) => Ok(network),
            None => Err(self.fault("roles without a plan")),
        }
    }

    pub(super) fn network_mut(&mut self) -> &mut Network<'c> {
        self.network
            .as_mut()
            .expect("only reached from the emission of a network")
    }

    /// All roles, in a function whose arguments are unpacked: barriers first, then every warp goes to its role.
    pub(super) fn roles(&mut self, plan: Plan, maps: Val<'c>, grid: Vec<Val<'c>>) -> Emit {
        let shared = self.b.shared_address(super::SHARED);
        let warp = self.b.shift_right_signed(self.thread, 5);
        let warp = self.b.resize(warp, Elem::I32, false);
        let warp = self.b.of_first_lane(warp);
        self.make_ready(&plan, shared, maps, warp);
        self.await_launches();
        let in_clusters = plan.cluster > 1;
        match in_clusters {
            true => self.b.cluster_barrier(),
            false => self.b.barrier(),
        }
        let rank = self.b.special_register("nvvm.read.ptx.sreg.ctaid.x");
        let mask = self.b.i64(i64::from(plan.cluster) - 1);
        let rank = self.b.andi(rank, mask);

        let roles = plan.roles.clone();
        self.network = Some(Network {
            plan,
            shared,
            maps,
            grid,
            rank,
            role: 0,
            turn: None,
            cursors: vec![],
            bound: BTreeMap::new(),
            steady: None,
            filling: BTreeMap::new(),
            flying: vec![],
        });
        let tid = self.thread;
        let (exit, _) = self.b.new_block(0);
        for (i, role) in roles.iter().enumerate() {
            let (inside, _) = self.b.new_block(0);
            let (others, _) = self.b.new_block(0);
            let end = self.b.i32((role.first_warp + role.warps) as i64);
            let mine = self.b.cmpi(IntCompare::Ult, warp, end);
            self.b.cond_branch(mine, inside, (others, &[]));
            self.b.set_block(inside);
            let first = self.b.i32(i64::from(role.first_warp));
            let own = self.b.subi(warp, first);
            self.group = self.b.shr(own, 2);
            self.thread = self.b.add_const(tid, -((role.first_warp * LANES) as i64));
            self.threads = role.warps * LANES;
            self.network_mut().role = i;
            if role.turns > 1 {
                self.own_turn(role)?;
            }
            self.role(role, exit)?;
            self.network_mut().turn = None;
            self.b.set_block(others);
        }
        self.b.branch(exit, &[]);
        self.b.set_block(exit);
        if in_clusters {
            self.b.cluster_barrier();
        }
        self.b.ret();
        Ok(())
    }

    /// A warp for each tensor map and for each slot of a ring: what copies need first is on its way while barriers are made, and nobody runs through
    /// the code of them all, none of which is in the cache.
    fn make_ready(&mut self, plan: &Plan, shared: Val<'c>, maps: Val<'c>, warp: Val<'c>) {
        let warps = plan.threads / LANES;
        let lane = self.b.i64(i64::from(LANES) - 1);
        let lane = self.b.andi(self.thread, lane);
        let zero = self.b.i64(0);
        let one = self.b.cmpi(IntCompare::Eq, lane, zero);
        let one = self.b.begin_if(one);
        let fetched = plan.maps.len() as u32;
        let map = self.b.resize(warp, Elem::I64, false);
        let map = self.b.mul_const(map, 128);
        let map = self.b.gep(maps, map, Elem::I8);
        for before in (0..fetched).step_by(warps as usize) {
            let open = self.among_first(warp, fetched - before);
            let map = self.b.offset(map, 128 * i64::from(before));
            self.b.fetch_tensor_map(map);
            self.b.end_if(open);
        }
        let own = self.b.shl(warp, 3);
        let own = self.b.addi(shared, own);
        for ring in &plan.rings {
            for before in (0..ring.slots).step_by(warps as usize) {
                let open = self.among_first(warp, ring.slots - before);
                let full = ring.barriers as i64 + 8 * i64::from(before);
                let full = self.b.add_const(own, full);
                self.b.mbarrier_init(full, ring.fill.arrivals());
                let empty = self.b.add_const(full, 8 * i64::from(ring.slots));
                let all = if ring.shared { plan.cluster } else { 1 };
                self.b.mbarrier_init(empty, ring.readers * all);
                self.b.end_if(open);
            }
        }
        self.b.fence_mbarrier_init();
        self.b.end_if(one);
    }

    fn among_first(&mut self, warp: Val<'c>, count: u32) -> OpenIf<'c> {
        let count = self.b.i32(count.into());
        let among = self.b.cmpi(IntCompare::Ult, warp, count);
        self.b.begin_if(among)
    }

    fn role(
        &mut self,
        role: &crate::schedule::RolePlan,
        exit: melior::ir::BlockRef<'c, 'c>,
    ) -> Emit {
        let kernel = self.kernel;
        if let Some(registers) = role.registers {
            let entry = self.network()?.plan.entry_registers;
            if registers != entry {
                self.b.set_registers(registers, registers > entry);
            }
        }
        if role.single {
            let first = self.is_first_thread();
            let (one, _) = self.b.new_block(0);
            self.b.cond_branch(first, one, (exit, &[]));
            self.b.set_block(one);
        }
        let OpKind::Role { body, .. } = kernel.op(role.op).kind else {
            return Err(self.fault("a role's plan without a role"));
        };
        let mut puts = Vec::new();
        kernel.walk(body, &mut |_, op| {
            if let OpKind::Put { channel, .. } = kernel.op(op).kind {
                puts.push(channel);
            }
        });
        let rings = self.network()?.plan.rings.clone();
        let mut cursors = Vec::new();
        for ring in rings {
            let puts = ring.channels.iter().any(|c| puts.contains(c));
            let (slot, parity) = (self.b.alloca(4), self.b.alloca(4));
            let first = match self.network()?.turn {
                Some(turn) => turn.own,
                None => self.b.i32(0),
            };
            self.b.store(first, slot, 4, None);
            // A fresh barrier is in round 0, and the one before it is over.
            let start = self.b.i32(i64::from(puts));
            self.b.store(start, parity, 4, None);
            let ahead = super::rings::looks_ahead(kernel, role, body, &ring);
            let seen = ahead.then(|| {
                let seen = self.b.alloca(4);
                let zero = self.b.i32(0);
                self.b.store(zero, seen, 4, None);
                seen
            });
            cursors.push(Cursor {
                slot,
                parity,
                seen,
                done: 0,
                turns: 0,
            });
        }
        self.network_mut().cursors = cursors;
        let has_items = {
            let mut found = false;
            kernel.walk(body, &mut |_, op| {
                found |= matches!(kernel.op(op).kind, OpKind::ForItems { .. })
            });
            found
        };
        if has_items {
            self.shared_scalars()?;
            self.block(body)?;
        } else {
            self.items(body)?;
        }
        self.end_staged(body)?;
        let plan = &self.network()?.plan;
        let gathers = puts.iter().any(|c| {
            let ring = &plan.rings[plan.slots[c.index()].ring];
            matches!(ring.fill, Fill::Gathered { .. })
        });
        if gathers {
            self.b.wait_for_copies();
        }
        self.b.branch(exit, &[]);
        Ok(())
    }

    /// What stands before the roles, each of which computes it for itself.
    fn shared_scalars(&mut self) -> Emit {
        let kernel = self.kernel;
        for &op in &kernel.block(kernel.body).ops {
            if kernel.op(op).result.is_some() {
                self.scalar_op(op)?;
            }
        }
        Ok(())
    }

    /// `body` for every item that falls to this CTA.
    pub(super) fn items(&mut self, body: BlockId) -> Emit {
        // A cluster takes items that are neighbours along the first axis, each of its CTAs one.
        let mut grid = self.network()?.grid.clone();
        let (rank, cluster) = (self.network()?.rank, i64::from(self.cluster()?));
        let mut first = self.b.special_register("nvvm.read.ptx.sreg.ctaid.x");
        let mut step = self.b.special_register("nvvm.read.ptx.sreg.nctaid.x");
        for extent in [&mut grid[0], &mut first, &mut step] {
            *extent = self.b.shift_right_signed(*extent, cluster.trailing_zeros());
        }
        let total = self.b.muli(grid[0], grid[1]);
        let total = self.b.muli(total, grid[2]);
        let spare = self.network()?.plan.threads <= FEW_THREADS;
        let only = known_extent(self.kernel, 0)
            .map(|extent| extent / cluster)
            .filter(|extent| (1..=RASTER / cluster).contains(extent));
        let carried = self.kernel.launch.grid.len() == 2 && spare && only.is_none();
        let (header, header_args) = self.b.new_block(if carried { 3 } else { 1 });
        let (inside, _) = self.b.new_block(0);
        let (after, _) = self.b.new_block(0);
        let zero = self.b.i64(0);
        let start = [first, zero, first];
        self.b.branch(header, &start[..header_args.len()]);
        self.b.set_block(header);
        let item = header_args[0];
        let more = self.b.cmpi(IntCompare::Slt, item, total);
        self.b.cond_branch(more, inside, (after, &[]));
        self.b.set_block(inside);
        let mut band = None;
        if let &[_, number, rest] = &header_args[..] {
            band = Some(self.in_band(number, rest, &grid, RASTER / cluster));
        }
        self.block_index = self.raster(item, &grid, RASTER / cluster, band, only);
        self.cta = item;
        for own in [&mut self.block_index[0], &mut self.cta] {
            *own = self.b.mul_const(*own, cluster);
            *own = self.b.addi(*own, rank);
        }
        for (axis, &arg) in self.kernel.block(body).args.iter().enumerate().take(3) {
            if matches!(self.kernel.value(arg).ty, Type::Index) && self.kernel.launch.persistent {
                self.values[arg.index()] = Some(self.block_index[axis]);
            }
        }
        self.shared_scalars()?;
        self.block(body)?;
        let mut next = vec![self.b.addi(item, step)];
        if let Some((number, inside)) = band {
            next.extend([number, self.b.addi(inside, step)]);
        }
        self.b.branch(header, &next);
        self.b.set_block(after);
        Ok(())
    }

    /// Which band of so many rows of the grid an item is in, and where, from a band before it and how far it is from its start: items of a CTA are a few
    /// bands apart at most, and a division takes longer.
    fn in_band(
        &mut self,
        number: Val<'c>,
        rest: Val<'c>,
        grid: &[Val<'c>],
        rows: i64,
    ) -> (Val<'c>, Val<'c>) {
        let band = self.b.mul_const(grid[1], rows);
        let (look, args) = self.b.new_block(2);
        let (past, _) = self.b.new_block(0);
        let (found, _) = self.b.new_block(0);
        self.b.branch(look, &[number, rest]);
        self.b.set_block(look);
        let within = self.b.cmpi(IntCompare::Ult, args[1], band);
        self.b.cond_branch(within, found, (past, &[]));
        self.b.set_block(past);
        let number = self.b.add_const(args[0], 1);
        let rest = self.b.subi(args[1], band);
        self.b.branch(look, &[number, rest]);
        self.b.set_block(found);
        (args[0], args[1])
    }

    /// Coordinates of the item in hand. Results don't depend on the order of items, so neighbours in time are neighbours in the grid:
    /// so many rows of it at a time, column after column. `band`: which band it is in, and where, if that is known; `only`: the rows there are, where one band is known to hold them.
    fn raster(
        &mut self,
        cta: Val<'c>,
        grid: &[Val<'c>],
        rows: i64,
        band: Option<(Val<'c>, Val<'c>)>,
        only: Option<i64>,
    ) -> [Val<'c>; 3] {
        let zero = self.b.i64(0);
        if self.kernel.launch.grid.len() <= 1 {
            return [cta, zero, zero];
        }
        let plane = self.b.muli(grid[0], grid[1]);
        let (rest, third) = match self.kernel.launch.grid.len() {
            2 => (cta, zero),
            _ => (
                self.b.binary("arith.remui", cta, plane),
                self.b.binary("arith.divui", cta, plane),
            ),
        };
        if let Some(extent) = only {
            let extent = self.b.i64(extent);
            let first = self.b.binary("arith.remui", rest, extent);
            let second = self.b.binary("arith.divui", rest, extent);
            return [first, second, third];
        }
        let most = self.b.i64(rows);
        let (number, inside) = band.unwrap_or_else(|| {
            let band = self.b.muli(most, grid[1]);
            (
                self.b.binary("arith.divui", rest, band),
                self.b.binary("arith.remui", rest, band),
            )
        });
        let start = self.b.muli(number, most);
        let left = self.b.subi(grid[0], start);
        // All bands but the last are as high as can be, by a power of two.
        let (whole, _) = self.b.new_block(0);
        let (last, _) = self.b.new_block(0);
        let (both, place) = self.b.new_block(2);
        let is_whole = self.b.cmpi(IntCompare::Uge, left, most);
        self.b.cond_branch(is_whole, whole, (last, &[]));
        self.b.set_block(whole);
        let mask = self.b.i64(rows - 1);
        let row = self.b.andi(inside, mask);
        let second = self.b.shift_right_signed(inside, rows.trailing_zeros());
        self.b.branch(both, &[row, second]);
        self.b.set_block(last);
        let row = self.b.binary("arith.remui", inside, left);
        let second = self.b.binary("arith.divui", inside, left);
        self.b.branch(both, &[row, second]);
        self.b.set_block(both);
        let first = self.b.addi(start, place[0]);
        [first, place[1], third]
    }
}
