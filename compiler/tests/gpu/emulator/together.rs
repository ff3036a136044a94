//! The instructions of `hopper`, one by one: those of single threads, and those that a warp's threads take together.

use super::hopper::{LaneFold, Shuffle, Special, Vote};
use super::machine::{Breach, Cluster, RANK_SHIFT, State, WARP};
use super::ptx::Instruction;

impl Cluster<'_> {
    /// What waits for nobody.
    pub fn special(
        &mut self,
        special: &Special,
        i: &Instruction,
        doing: &[usize],
    ) -> Result<(), Breach> {
        match special {
            Special::ProxyFence => {
                self.order.fence(doing);
                self.barriers_are_fenced(doing);
            }
            Special::GridLaunch => {}
            Special::GridWait => {
                for &t in doing {
                    self.waited[t] = true;
                }
            }
            Special::BarrierInitFence => self.barriers_are_fenced(doing),
            Special::ClusterArrive { release } => self.cluster_arrive(*release, doing)?,
            Special::BarrierArrive {
                at,
                count,
                expect,
                cluster,
            } => {
                self.arrive(*at, *count, *expect, *cluster, doing)?;
                // The state that it gives is for waits that are not supported.
            }
            _ => {
                for &t in doing {
                    self.alone(special, i, t)?;
                }
            }
        }
        Ok(())
    }

    fn alone(&mut self, special: &Special, i: &Instruction, t: usize) -> Result<(), Breach> {
        let value = |cluster: &Self, register: usize| cluster.register(register, t);
        match special {
            Special::MapShared { address, rank } => {
                let (address, rank) = (value(self, *address), value(self, *rank) as u32 as usize);
                let own = (t / self.block) as u64;
                if rank >= self.n / self.block || address >> RANK_SHIFT != own {
                    return Err((
                        t,
                        format!("address {address:#x} in block {rank} of the cluster"),
                    ));
                }
                let to = i.to.ok_or((t, "no register for the result".to_owned()))?;
                let place = address & ((1 << RANK_SHIFT) - 1);
                self.registers[to * self.n + t] = place | (rank as u64) << RANK_SHIFT;
                Ok(())
            }
            Special::BarrierInit { at, count } => self.init(*at, value(self, *count), t),
            Special::BarrierInvalidate { at } => self.invalidate(*at, t),
            Special::BarrierExpect { at, bytes } => self.expect_at(*at, value(self, *bytes), t),
            Special::BarrierWait { at, parity, .. } => {
                let over = self.phase_is_over(*at, t, value(self, *parity))?;
                let to = i.to.ok_or((t, "no register for the result".to_owned()))?;
                self.registers[to * self.n + t] = u64::from(over);
                Ok(())
            }
            Special::TensorLoad {
                to,
                from,
                barrier,
                multicast,
            } => self.tensor_load(*to, from, *barrier, *multicast, t),
            Special::TensorStore { to, from } => self.tensor_store(to, *from, t),
            Special::BulkLoad {
                to,
                from,
                bytes,
                barrier,
                multicast,
            } => self.bulk_load(*to, *from, value(self, *bytes), *barrier, *multicast, t),
            Special::BulkStore { to, from, bytes } => {
                self.bulk_store(*to, *from, value(self, *bytes), t)
            }
            Special::BulkCommit => {
                self.bulk_commit(t);
                Ok(())
            }
            Special::BulkWait { left, read } => self.bulk_wait(t, *left, *read),
            Special::Copy {
                to,
                from,
                bytes,
                source_bytes,
            } => self.copy(*to, *from, *bytes, *source_bytes, t),
            Special::CopyCommit => {
                self.copy_commit(t);
                Ok(())
            }
            Special::CopyWait { left } => self.copy_wait(t, *left),
            Special::CopyArrive { at, extra } => self.arrive_later(*at, t, *extra),
            Special::PrefetchMap { map } => self.map(*map, t).map(|_| ()),
            other => Err((t, format!("{other:?} is none of a thread alone"))),
        }
    }

    /// Threads that end.
    pub fn end(&mut self, doing: &[usize]) -> Result<(), Breach> {
        for &t in doing {
            self.nothing_left(t)?;
            self.has_waited(t).map_err(|what| (t, what))?;
            if self.products[t / 128].in_flight() {
                return Err((t, "it ends before its products are done".to_owned()));
            }
        }
        self.cluster_meets();
        Ok(())
    }

    /// What a warp's threads take together; those who go on, none if some are not there yet.
    pub fn together(
        &mut self,
        special: &Special,
        i: &Instruction,
        first: usize,
        here: &[usize],
    ) -> Result<Vec<usize>, Breach> {
        let mask = match special {
            Special::WarpBarrier { mask }
            | Special::Shuffle { mask, .. }
            | Special::Vote { mask, .. }
            | Special::LaneFold { mask, .. }
            | Special::Elect { mask, .. } => self.register(*mask, here[0]) as u32,
            _ => u32::MAX,
        };
        let lanes: Vec<usize> = (0..WARP)
            .filter(|lane| mask >> lane & 1 == 1)
            .map(|l| first + l)
            .collect();
        if !lanes.contains(&here[0]) {
            return Err((here[0], format!("the mask {mask:#x} is without it")));
        }
        if !lanes.iter().all(|t| here.contains(t)) {
            return Ok(vec![]);
        }
        let n = self.n;
        let to = i.to;
        let row = |cluster: &Self, register: usize| -> Vec<u64> {
            cluster.registers[register * n + first..][..WARP].to_vec()
        };
        let mut used: Vec<usize> = vec![];
        match special {
            Special::WarpBarrier { .. } => {
                let clock = self.order.release(&lanes);
                let clock = self.order.share(clock);
                for &t in &lanes {
                    self.order.adopt(t, &clock);
                }
            }
            Special::Shuffle {
                how,
                within,
                value,
                by,
                clamp,
                ..
            } => {
                used.push(*value);
                let (values, by, clamp) = (row(self, *value), row(self, *by), row(self, *clamp));
                for &t in &lanes {
                    let lane = t - first;
                    let (by, c) = (by[lane] as usize & 31, clamp[lane] as usize);
                    let (limit, segment) = (c & 31, c >> 8 & 31);
                    let (low, high) = (lane & segment, (lane & segment) | (limit & !segment));
                    let (from, good) = match how {
                        Shuffle::Up => (
                            lane.wrapping_sub(by),
                            lane >= low + by.min(32) && by <= lane,
                        ),
                        Shuffle::Down => (lane + by, lane + by <= high),
                        Shuffle::Butterfly => (lane ^ by, lane ^ by <= high),
                        Shuffle::Index => (low | (by & !segment), low | (by & !segment) <= high),
                    };
                    // Past the end a lane keeps its own.
                    let from = if good { from } else { lane };
                    if !lanes.contains(&(first + from)) {
                        return Err((t, format!("it asks lane {from}, which is not in the mask")));
                    }
                    if let Some(to) = to {
                        self.registers[to * n + t] = values[from] & 0xffff_ffff;
                    }
                    if let Some(within) = within {
                        self.registers[within * n + t] = u64::from(good);
                    }
                }
            }
            Special::Vote { how, value, .. } => {
                let values = row(self, *value);
                let votes = || lanes.iter().map(|t| values[t - first] & 1);
                let result = match how {
                    Vote::Any => u64::from(votes().any(|v| v == 1)),
                    Vote::All => u64::from(votes().all(|v| v == 1)),
                    Vote::Ballot => lanes
                        .iter()
                        .map(|t| (values[t - first] & 1) << (t - first))
                        .sum(),
                };
                let to = to.ok_or((first, "no register for the result".to_owned()))?;
                for &t in &lanes {
                    self.registers[to * n + t] = result;
                }
            }
            Special::LaneFold { how, value, .. } => {
                let values = row(self, *value);
                let values = lanes.iter().map(|t| values[t - first] as u32);
                let result = match how {
                    LaneFold::Sum => values.fold(0, u32::wrapping_add),
                    LaneFold::SignedMin => {
                        values.min_by_key(|&v| v as i32).unwrap_or(i32::MAX as u32)
                    }
                    LaneFold::SignedMax => {
                        values.max_by_key(|&v| v as i32).unwrap_or(i32::MIN as u32)
                    }
                    LaneFold::UnsignedMin => values.min().unwrap_or(u32::MAX),
                    LaneFold::UnsignedMax => values.max().unwrap_or(0),
                };
                let to = to.ok_or((first, "no register for the result".to_owned()))?;
                for &t in &lanes {
                    self.registers[to * n + t] = u64::from(result);
                }
            }
            Special::Elect { leads, .. } => {
                // Any one, but always the same.
                let leader = lanes[self.launch.seed as usize % lanes.len()];
                for &t in &lanes {
                    self.registers[leads * n + t] = u64::from(t == leader);
                    if let Some(to) = to {
                        self.registers[to * n + t] = (leader - first) as u64;
                    }
                }
            }
            Special::LoadMatrix {
                to,
                from,
                transposed,
            } => {
                for (m, to) in to.iter().enumerate() {
                    let mut rows = [[0u8; 16]; 8];
                    for (r, row) in rows.iter_mut().enumerate() {
                        let t = first + 8 * m + r;
                        let at = self.matrix_row(*from, t)?;
                        let touched = self.memory.touch(&self.order, t, at, 16, false);
                        touched.map_err(|what| (t, what))?;
                        row.copy_from_slice(&self.memory.bytes[at..at + 16]);
                    }
                    for lane in 0..WARP {
                        let part = |half: usize| {
                            let (r, c) = match transposed {
                                false => (lane / 4, lane % 4 * 2 + half),
                                true => (lane % 4 * 2 + half, lane / 4),
                            };
                            u64::from(u16::from_le_bytes([rows[r][2 * c], rows[r][2 * c + 1]]))
                        };
                        self.registers[to * n + first + lane] = part(0) | part(1) << 16;
                    }
                }
            }
            Special::StoreMatrix {
                to,
                from,
                transposed,
            } => {
                used.extend(from);
                for (m, from) in from.iter().enumerate() {
                    let values = row(self, *from);
                    let mut rows = [[0u8; 16]; 8];
                    for (lane, value) in values.iter().enumerate() {
                        for half in 0..2 {
                            let (r, c) = match transposed {
                                false => (lane / 4, lane % 4 * 2 + half),
                                true => (lane % 4 * 2 + half, lane / 4),
                            };
                            let part = (value >> (16 * half)) as u16;
                            rows[r][2 * c..2 * c + 2].copy_from_slice(&part.to_le_bytes());
                        }
                    }
                    for (r, row) in rows.iter().enumerate() {
                        let t = first + 8 * m + r;
                        let at = self.matrix_row(*to, t)?;
                        let touched = self.memory.touch(&self.order, t, at, 16, true);
                        touched.map_err(|what| (t, what))?;
                        self.memory.bytes[at..at + 16].copy_from_slice(row);
                    }
                }
            }
            other => return Err((first, format!("{other:?} is none of a warp"))),
        }
        self.take_note(special, to, &used, first)?;
        debug_assert!(lanes.iter().all(|&t| self.state[t] == State::Blocked));
        Ok(lanes)
    }

    /// Registers that a warp's instruction has read and written, against the products under way.
    fn take_note(
        &mut self,
        special: &Special,
        to: Option<usize>,
        used: &[usize],
        first: usize,
    ) -> Result<(), Breach> {
        if self.written.is_empty() {
            return Ok(());
        }
        let g = first / 128;
        let mut written: Vec<usize> = to.into_iter().collect();
        if let Special::LoadMatrix { to, .. } = special {
            written.extend(to);
        }
        let products = &self.products[g];
        let busy = used.iter().any(|r| products.sums.contains_key(r))
            || written.iter().any(|r| products.holds(r));
        if busy {
            let what = "a register of a product under way that nobody has waited for";
            return Err((first, what.to_owned()));
        }
        let groups = self.products.len();
        for register in written {
            self.written[register * groups + g] = self.tick;
        }
        Ok(())
    }

    fn matrix_row(&self, place: super::hopper::Place, t: usize) -> Result<usize, Breach> {
        let address = self.address(place, t);
        if !address.is_multiple_of(16) {
            return Err((t, format!("address {address:#x} is no multiple of 16")));
        }
        self.shared(t, address, 16).map_err(|what| (t, what))
    }
}
