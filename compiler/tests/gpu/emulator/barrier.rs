//! Where threads meet: named barriers, the cluster's, and mbarriers with their phases.
//!
//! An mbarrier's asynchronous arrivals and bytes come as late as they may: when somebody looks whether the phase is over, and only all
//! together, when nothing else of it is missing.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::copies::Flight;
use super::hopper::{Place, Special};
use super::machine::{Breach, Cluster, State, WARP, WARPGROUP};
use super::order::{Agent, Clock, Time};
use super::ptx::{Instruction, Kind};

#[derive(Default)]
pub struct Named {
    expected: usize,
    arrived: usize,
    waiting: Vec<usize>,
    clock: Clock,
}

pub struct ClusterBarrier {
    phase: u64,
    /// The phase that a thread has arrived in, from 1.
    arrived: Vec<u64>,
    clock: Clock,
    done: Rc<Clock>,
}

impl ClusterBarrier {
    pub fn new(threads: usize) -> Self {
        ClusterBarrier {
            phase: 1,
            arrived: vec![0; threads],
            clock: Clock::default(),
            done: Rc::default(),
        }
    }
}

pub struct Mbarrier {
    count: i64,
    /// Arrivals and bytes that the phase lacks.
    pending: i64,
    bytes: i64,
    phase: u64,
    clock: Clock,
    done: Rc<Clock>,
    /// Of threads that wait for it: how many of its phases they know to be over.
    seen: BTreeMap<usize, u64>,
    /// Writes what comes to the barrier.
    pub agent: Agent,
    pub flights: Vec<Flight>,
    /// Who initialised it, when, and whether the async proxy sees it.
    by: usize,
    initialised: Time,
    fenced: bool,
}

impl<'l> Cluster<'l> {
    pub fn address(&self, place: Place, thread: usize) -> u64 {
        self.register(place.base, thread).wrapping_add(place.offset)
    }

    /// Those threads have just come to an instruction that waits.
    pub fn block(&mut self, special: &Special, doing: &[usize]) -> Result<(), Breach> {
        let Special::Barrier { id, count, sync } = special else {
            return Ok(());
        };
        let clock = self.order.release(doing);
        for &t in doing {
            let rank = t / self.block;
            let id = self.register(*id, t);
            let expected =
                count.map_or(self.block as u64, |count| self.register(count, t)) as u32 as usize;
            if id > 15 || expected == 0 || !expected.is_multiple_of(WARP) || expected > self.block {
                return Err((t, format!("barrier {id} for {expected} threads")));
            }
            let barrier = self.named.entry((rank, id)).or_default();
            if barrier.arrived > 0 && barrier.expected != expected {
                return Err((
                    t,
                    format!(
                        "barrier {id} is for {} threads and for {expected}",
                        barrier.expected
                    ),
                ));
            }
            barrier.expected = expected;
            barrier.clock.join(&clock);
            barrier.arrived += 1;
            if *sync {
                barrier.waiting.push(t);
            } else {
                self.at[t] += 1;
                self.state[t] = State::Ready;
            }
            if barrier.arrived == expected {
                let barrier = std::mem::take(barrier);
                let clock = self.order.share(barrier.clock);
                let program = self.launch.program;
                for &t in &barrier.waiting {
                    let warp = t - t % WARP..t - t % WARP + WARP;
                    let aligned = program.code[self.at[t]].text.contains("bar.sync")
                        || program.code[self.at[t]].text.contains(".aligned");
                    let together =
                        |u: usize| barrier.waiting.contains(&u) && self.at[u] == self.at[t];
                    if aligned && t % WARP == 0 && !warp.clone().all(together) {
                        return Err((t, "threads of a warp wait at different barriers".to_owned()));
                    }
                }
                for &t in &barrier.waiting {
                    self.order.adopt(t, &clock);
                    self.go_on(t);
                }
            }
        }
        Ok(())
    }

    pub fn go_on(&mut self, thread: usize) {
        self.at[thread] += 1;
        self.state[thread] = State::Ready;
    }

    /// Lets those go on for whom the others are there; whether there were any.
    pub fn settle(&mut self) -> Result<bool, String> {
        let mut moved = false;
        for group in (0..self.n).step_by(WARPGROUP) {
            let threads: Vec<usize> = (group..(group + WARPGROUP).min(self.n)).collect();
            let at = self.at[group];
            let all = |t: &usize| self.state[*t] == State::Blocked && self.at[*t] == at;
            if threads.len() == WARPGROUP && threads.iter().all(all) {
                let i = &self.launch.program.code[at];
                if let Some(special) = self.special_at(at)
                    && special.takes_a_warpgroup()
                {
                    let done = self.warpgroup(special, &threads);
                    if done.map_err(|(t, what)| self.blame(t, i, &what))? {
                        threads.iter().for_each(|&t| self.go_on(t));
                        moved = true;
                    }
                    continue;
                }
            }
            for first in (group..group + threads.len()).step_by(WARP) {
                moved |= self.settle_warp(first)?;
            }
        }
        Ok(moved)
    }

    fn special_at(&self, at: usize) -> Option<&'l Special> {
        let program = self.launch.program;
        match program.code[at].kind {
            Kind::Special(special) => Some(&program.specials[special]),
            _ => None,
        }
    }

    fn settle_warp(&mut self, first: usize) -> Result<bool, String> {
        let lanes = first..(first + WARP).min(self.n);
        let mut places: Vec<usize> = (lanes.clone())
            .filter(|&t| self.state[t] == State::Blocked)
            .map(|t| self.at[t])
            .collect();
        places.sort_unstable();
        places.dedup();
        let mut moved = false;
        for at in places {
            let i = &self.launch.program.code[at];
            let Some(special) = self.special_at(at) else {
                continue;
            };
            let here: Vec<usize> = (lanes.clone())
                .filter(|&t| self.state[t] == State::Blocked && self.at[t] == at)
                .collect();
            let done = self.warp(special, i, first, &here);
            let done = done.map_err(|(t, what)| self.blame(t, i, &what))?;
            for &t in &done {
                self.go_on(t);
            }
            moved |= !done.is_empty();
        }
        Ok(moved)
    }

    /// Threads of a warp that wait at one instruction: which of them go on.
    fn warp(
        &mut self,
        special: &Special,
        i: &Instruction,
        first: usize,
        here: &[usize],
    ) -> Result<Vec<usize>, Breach> {
        match special {
            Special::BarrierWait { at, parity, .. } => {
                let mut done = vec![];
                for &t in here {
                    let parity = self.register(*parity, t);
                    // Whoever waits is sent away once, as the hardware may do after a while, and copies come after that.
                    let early = self.is_under_way(*at, t)? && self.patient.insert(t);
                    let over = !early && self.phase_is_over(*at, t, parity)?;
                    if over || early || self.patient.insert(t) {
                        if over {
                            self.patient.remove(&t);
                        }
                        let to = i.to.ok_or((t, "no register for the result".to_owned()))?;
                        self.registers[to * self.n + t] = u64::from(over);
                        done.push(t);
                    }
                }
                Ok(done)
            }
            Special::ClusterWait => {
                let mut done = vec![];
                for &t in here {
                    match self.cluster_barrier.arrived[t] {
                        0 => return Err((t, "it has not arrived before".to_owned())),
                        phase if phase < self.cluster_barrier.phase => {
                            self.cluster_barrier.arrived[t] = 0;
                            let clock = self.cluster_barrier.done.clone();
                            self.order.acquire(t, &clock);
                            done.push(t);
                        }
                        _ => {}
                    }
                }
                Ok(done)
            }
            Special::Barrier { .. } => Ok(vec![]),
            special if special.takes_a_warpgroup() => Ok(vec![]),
            special => self.together(special, i, first, here),
        }
    }

    // ---- the cluster's barrier ----------------------------------------------------------------------------

    pub fn cluster_arrive(&mut self, release: bool, doing: &[usize]) -> Result<(), Breach> {
        if release {
            let clock = self.order.release(doing);
            self.cluster_barrier.clock.join(&clock);
        }
        for &t in doing {
            if self.cluster_barrier.arrived[t] != 0 {
                return Err((t, "it has arrived and not waited".to_owned()));
            }
            self.cluster_barrier.arrived[t] = self.cluster_barrier.phase;
        }
        self.cluster_meets();
        Ok(())
    }

    /// Threads that have ended count as there.
    pub fn cluster_meets(&mut self) {
        let barrier = &mut self.cluster_barrier;
        let (arrived, state) = (&barrier.arrived, &self.state);
        let there = |t: usize| arrived[t] == barrier.phase || state[t] == State::Done;
        if (0..self.n).all(there) && arrived.contains(&barrier.phase) {
            barrier.phase += 1;
            barrier.done = self.order.share(barrier.clock.clone());
        }
    }

    // ---- mbarriers ----------------------------------------------------------------------------------------

    fn barrier_at(&self, place: Place, thread: usize, cluster: bool) -> Result<usize, Breach> {
        let address = self.address(place, thread);
        let at = match cluster {
            true => self.cluster_shared(address, 8),
            false => self.shared(thread, address, 8),
        };
        let at = at.map_err(|what| (thread, what))?;
        match address.is_multiple_of(8) {
            true => Ok(at),
            false => Err((thread, format!("address {address:#x} is no multiple of 8"))),
        }
    }

    pub fn init(&mut self, place: Place, count: u64, thread: usize) -> Result<(), Breach> {
        let at = self.barrier_at(place, thread, false)?;
        if self.barriers.contains_key(&at) {
            return Err((thread, "there is a barrier already".to_owned()));
        }
        let count = i64::from(count as u32);
        if !(1..1 << 20).contains(&count) {
            return Err((thread, format!("a barrier for {count} arrivals")));
        }
        let touched = self.memory.touch(&self.order, thread, at, 8, true);
        touched.map_err(|what| (thread, what))?;
        self.memory.set_barrier(at, true);
        let barrier = Mbarrier {
            count,
            pending: count,
            bytes: 0,
            phase: 0,
            clock: Clock::default(),
            done: Rc::default(),
            seen: BTreeMap::new(),
            agent: self.order.agent(),
            flights: vec![],
            by: thread,
            initialised: self.order.time,
            fenced: false,
        };
        self.barriers.insert(at, barrier);
        Ok(())
    }

    pub fn invalidate(&mut self, place: Place, thread: usize) -> Result<(), Breach> {
        let at = self.barrier_at(place, thread, false)?;
        self.known(at, thread, false)?;
        if !self.barriers[&at].flights.is_empty() {
            return Err((thread, "copies to it are under way".to_owned()));
        }
        self.barriers.remove(&at);
        self.memory.set_barrier(at, false);
        Ok(())
    }

    /// That the thread may count on the barrier's being initialised.
    pub fn known(&self, at: usize, thread: usize, asynchronous: bool) -> Result<(), Breach> {
        let barrier = self
            .barriers
            .get(&at)
            .ok_or((thread, format!("no barrier is at shared byte {at}")))?;
        if !self.order.knows(thread, barrier.by, barrier.initialised) {
            return Err((
                thread,
                format!(
                    "the barrier at shared byte {at} may not be initialised yet: no barrier since"
                ),
            ));
        }
        if asynchronous && !barrier.fenced {
            return Err((
                thread,
                format!(
                    "the barrier at shared byte {at} was initialised without fence.mbarrier_init after it"
                ),
            ));
        }
        Ok(())
    }

    pub fn barriers_are_fenced(&mut self, doing: &[usize]) {
        for barrier in self.barriers.values_mut() {
            barrier.fenced |= doing.contains(&barrier.by);
        }
    }

    pub fn arrive(
        &mut self,
        place: Place,
        count: Option<usize>,
        expect: Option<usize>,
        cluster: bool,
        doing: &[usize],
    ) -> Result<(), Breach> {
        let clock = self.order.release(doing);
        for &t in doing {
            let at = self.barrier_at(place, t, cluster)?;
            self.known(at, t, false)?;
            if let Some(expect) = expect {
                let bytes = i64::from(self.register(expect, t) as u32);
                self.expect(at, bytes);
            }
            let count = count.map_or(1, |count| i64::from(self.register(count, t) as u32));
            self.arrive_at(at, t, count, &clock)?;
        }
        Ok(())
    }

    pub fn expect(&mut self, at: usize, bytes: i64) {
        if let Some(barrier) = self.barriers.get_mut(&at) {
            barrier.bytes += bytes;
        }
    }

    pub fn expect_at(&mut self, place: Place, bytes: u64, thread: usize) -> Result<(), Breach> {
        let at = self.barrier_at(place, thread, false)?;
        self.known(at, thread, false)?;
        self.expect(at, i64::from(bytes as u32));
        Ok(())
    }

    fn arrive_at(
        &mut self,
        at: usize,
        thread: usize,
        count: i64,
        clock: &Clock,
    ) -> Result<(), Breach> {
        if self.barriers[&at].pending == 0 {
            // Only copies are missing: they come in time.
            self.look(at, thread)?;
        }
        let barrier = self.barriers.get_mut(&at).expect("`known` has found it");
        barrier.pending -= count;
        barrier.clock.join(clock);
        if barrier.pending < 0 {
            return Err((
                thread,
                format!(
                    "more than the {} arrivals of the barrier at shared byte {at}",
                    barrier.count
                ),
            ));
        }
        if barrier.flights.is_empty() {
            self.look(at, thread)?;
        }
        Ok(())
    }

    /// An arrival that comes when the thread's copies so far are done.
    pub fn arrive_later(&mut self, place: Place, thread: usize, extra: bool) -> Result<(), Breach> {
        let at = self.barrier_at(place, thread, false)?;
        self.known(at, thread, false)?;
        let serial = self.copies_so_far(thread);
        let barrier = self.barriers.get_mut(&at).expect("`known` has found it");
        barrier.pending += i64::from(extra);
        barrier.flights.push(Flight::Copies { thread, serial });
        Ok(())
    }

    pub fn phase_is_over(
        &mut self,
        place: Place,
        thread: usize,
        parity: u64,
    ) -> Result<bool, Breach> {
        let at = self.barrier_at(place, thread, false)?;
        self.known(at, thread, false)?;
        self.look(at, thread)?;
        let barrier = self.barriers.get_mut(&at).expect("`known` has found it");
        let over = barrier.phase % 2 != parity & 1;
        if over {
            barrier.seen.insert(thread, barrier.phase);
            let clock = barrier.done.clone();
            self.order.acquire(thread, &clock);
        }
        Ok(over)
    }

    fn is_under_way(&self, place: Place, thread: usize) -> Result<bool, Breach> {
        let at = self.barrier_at(place, thread, false)?;
        Ok(self
            .barriers
            .get(&at)
            .is_some_and(|b| !b.flights.is_empty()))
    }

    /// Ends the phase if what it lacks is under way.
    fn look(&mut self, at: usize, thread: usize) -> Result<(), Breach> {
        let barrier = &self.barriers[&at];
        let arrivals = barrier.flights.iter().filter(|f| f.bytes() == 0).count() as i64;
        let bytes: i64 = barrier.flights.iter().map(Flight::bytes).sum();
        if barrier.pending != arrivals || barrier.bytes > bytes {
            return Ok(());
        }
        if barrier.bytes < bytes {
            return Err((
                thread,
                format!(
                    "{bytes} bytes come to the barrier at shared byte {at}, which expects {}",
                    barrier.bytes
                ),
            ));
        }
        // A parity tells a phase only from the next one.
        if let Some((late, seen)) = (barrier.seen.iter()).find(|(_, seen)| **seen < barrier.phase) {
            return Err((
                *late,
                format!(
                    "phase {} of the barrier at shared byte {at} ends, and this thread has seen the end of {seen} alone",
                    barrier.phase
                ),
            ));
        }
        let mut flights =
            std::mem::take(&mut self.barriers.get_mut(&at).expect("it is there").flights);
        let agent = self.barriers[&at].agent;
        while !flights.is_empty() {
            let next = self.random.below(flights.len());
            let clock = self
                .land(flights.swap_remove(next), agent)
                .map_err(|what| (thread, what))?;
            self.barriers
                .get_mut(&at)
                .expect("it is there")
                .clock
                .join(&clock);
        }
        let barrier = self.barriers.get_mut(&at).expect("it is there");
        barrier.phase += 1;
        barrier.pending = barrier.count;
        barrier.bytes = 0;
        barrier.done = self.order.share(barrier.clock.clone());
        Ok(())
    }

    /// For who waits for ever: what is missing.
    pub fn what_lacks(&self, thread: usize) -> String {
        let Some(special) = self.special_at(self.at[thread]) else {
            return String::new();
        };
        match special {
            Special::BarrierWait { at, parity, .. } => {
                let parity = self.register(*parity, thread) & 1;
                let Ok(at) = self.barrier_at(*at, thread, false) else {
                    return String::new();
                };
                let Some(b) = self.barriers.get(&at) else {
                    return String::new();
                };
                format!(
                    " for the end of a phase of parity {parity} of the barrier at shared byte {at}, which is in phase {} and lacks {} of {} arrivals and {} bytes, {} copies under way",
                    b.phase,
                    b.pending,
                    b.count,
                    b.bytes,
                    b.flights.len()
                )
            }
            Special::SetRegisters { .. } => {
                format!(
                    ", {} registers left",
                    self.register_pool[thread / self.block]
                )
            }
            _ => String::new(),
        }
    }
}
