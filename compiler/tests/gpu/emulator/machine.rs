//! Runs a program cluster by cluster, the next ones while the first waits or spins. Threads at the same instruction take it together,
//! those that are behind first; in programs whose threads part, warps and turns come in an order that the seed says. It is held to rules
//! that a GPU does not check: no access outside an allocation, no two threads at one byte of shared memory without an order between them
//! unless both read, no address that is not a multiple of the access, no access to global memory before the thread has waited for earlier
//! launches where the launch relies on that, nor an end; and to those of `copies`, `product` and `barrier`.

use super::alu;
use super::barrier::{ClusterBarrier, Mbarrier, Named};
use super::copies::{Bulk, Copies};
use super::order::{Memory, Order};
use super::product::Products;
use super::ptx::{Instruction, Kind, Program, Rmw, SHARED_BASE, Space, Ty};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const WARP: usize = 32;
pub const WARPGROUP: usize = 128;
/// Of all threads of a launch together: beyond it, it hangs.
const LIMIT: u64 = 20_000_000_000;
/// Threads that spin let the others go on after so many instructions, and blocks of a cluster those of others.
const TURN: u64 = 1_000_000;
/// After so many turns, on average, another warp is left behind, or none.
const LAZY: usize = 300;
/// Above it, an address of shared memory has the rank of the block in its cluster, one of the block's own too.
pub const RANK_SHIFT: u32 = 24;
/// Of one multiprocessor.
const REGISTERS: usize = 65536;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Ready,
    /// At an instruction that needs others.
    Blocked,
    Done,
}

pub struct Launch<'l> {
    pub program: &'l Program,
    pub ctas: u32,
    /// Besides what the program declares.
    pub shared_bytes: usize,
    pub params: &'l [u8],
    /// Start and length.
    pub allocations: &'l BTreeMap<u64, usize>,
    /// Blocks that run at the same time.
    pub at_once: u32,
    /// The program says that it waits for the launches before it.
    pub waits: bool,
    pub seed: u64,
}

/// A generator of no consequence but to be the same for the same seed.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

pub struct Cluster<'l> {
    pub launch: &'l Launch<'l>,
    /// The number of the first block.
    first: u32,
    /// Threads, and those of one block.
    pub n: usize,
    pub block: usize,
    /// Of each thread: its next instruction, and whether it can go on.
    pub at: Vec<usize>,
    pub state: Vec<State>,
    /// Whether the launches before this one are over as far as the thread can know.
    pub waited: Vec<bool>,
    /// Of each register, all threads.
    pub registers: Vec<u64>,
    /// Results of one instruction.
    results: Vec<u64>,
    /// Shared memory of a block, and from one block's to the next one's.
    pub shared_bytes: usize,
    pub shared_stride: usize,
    pub memory: Memory,
    pub order: Order,
    pub random: Random,
    /// Threads take turns in an order of the seed's.
    varied: bool,
    /// The warp that is left behind for now, if there is one of that number.
    lazy: usize,
    /// The allocation of the last access: start and end.
    allocation: (u64, u64),
    pub barriers: BTreeMap<usize, Mbarrier>,
    pub named: BTreeMap<(usize, u64), Named>,
    pub cluster_barrier: ClusterBarrier,
    /// Threads whose wait at an mbarrier has once ended too early.
    pub patient: BTreeSet<usize>,
    pub bulk: BTreeMap<usize, Bulk>,
    pub copies: BTreeMap<usize, Copies>,
    /// One for each warpgroup.
    pub products: Vec<Products>,
    /// Registers of the threads of each warp, and those that a block may still give out.
    pub register_count: Vec<usize>,
    pub register_pool: Vec<usize>,
    /// Instructions so far, and which was the last to write a register of a warpgroup; only where there are products.
    pub tick: u64,
    pub written: Vec<u64>,
}

/// A breach of the rules, and whose.
pub type Breach = (usize, String);

enum Turn {
    Done,
    /// It is over.
    Over,
    /// Nobody can go on.
    Blocked,
}

impl Launch<'_> {
    pub fn run(&self) -> Result<(), String> {
        let (bytes, program) = (self.params.len(), self.program);
        if bytes != program.param_bytes {
            return Err(format!(
                "{bytes} bytes of arguments for {}",
                program.param_bytes
            ));
        }
        if !self.ctas.is_multiple_of(program.cluster) {
            return Err(format!(
                "{} blocks in clusters of {}",
                self.ctas, program.cluster
            ));
        }
        let at_once = (self.at_once / program.cluster).max(1) as usize;
        let mut next = 0;
        let mut running: VecDeque<Cluster> = VecDeque::new();
        let mut steps = 0;
        loop {
            while running.len() < at_once && next < self.ctas {
                running.push_back(Cluster::new(self, next));
                next += program.cluster;
            }
            if running.is_empty() {
                return Ok(());
            }
            let mut moved = false;
            // The first for as long as it can, then the others.
            for place in 0..running.len() {
                match running[place].turn(&mut steps)? {
                    Turn::Done => {
                        running.remove(place);
                        moved = true;
                        break;
                    }
                    Turn::Over => moved = true,
                    Turn::Blocked => {}
                }
            }
            if !moved {
                let all: Vec<String> = running.iter().map(Cluster::waiting).collect();
                return Err(all.join("; "));
            }
            if steps > LIMIT {
                return Err(format!("not over after {LIMIT} instructions"));
            }
        }
    }
}

impl<'l> Cluster<'l> {
    fn new(launch: &'l Launch<'l>, first: u32) -> Self {
        let program = launch.program;
        let block = program.threads as usize;
        let blocks = program.cluster as usize;
        let n = block * blocks;
        let mut registers = vec![0xdead_beef_dead_beef; program.registers * n];
        for t in 0..n {
            let rank = (t / block) as u64;
            let special = [
                (t % block) as u64,
                u64::from(first) + rank,
                u64::from(launch.ctas),
                rank,
                u64::from(first / program.cluster),
                u64::from(launch.ctas / program.cluster),
                (t % WARP) as u64,
                rank,
            ];
            for (register, x) in special.into_iter().enumerate() {
                registers[register * n + t] = x;
            }
        }
        for &(register, x) in &program.constants {
            registers[register * n..][..n].fill(x);
        }
        for &(register, x) in &program.addresses {
            for t in 0..n {
                registers[register * n + t] = x | ((t / block) as u64) << RANK_SHIFT;
            }
        }
        let mut shared_bytes = launch.shared_bytes;
        if program.static_shared > 0 {
            shared_bytes += program.static_shared.next_multiple_of(1024);
        }
        let shared_stride = shared_bytes.next_multiple_of(1024);
        let warpgroups = n.div_ceil(WARPGROUP);
        let entry = (REGISTERS / block).min(255) / 8 * 8;
        let multiplies = program.multiplies();
        Cluster {
            launch,
            first,
            n,
            block,
            at: vec![0; n],
            state: vec![State::Ready; n],
            waited: vec![!launch.waits; n],
            registers,
            results: vec![0; n],
            shared_bytes,
            shared_stride,
            memory: Memory::new(shared_stride * blocks),
            order: Order::new(n),
            random: Random(launch.seed ^ u64::from(first)),
            varied: launch.seed != 0 && program.parts(),
            lazy: usize::MAX,
            allocation: (0, 0),
            barriers: BTreeMap::new(),
            named: BTreeMap::new(),
            cluster_barrier: ClusterBarrier::new(n),
            patient: BTreeSet::new(),
            bulk: BTreeMap::new(),
            copies: BTreeMap::new(),
            products: (0..warpgroups).map(|_| Products::default()).collect(),
            register_count: vec![entry; n.div_ceil(WARP)],
            register_pool: vec![0; blocks],
            tick: 0,
            written: vec![
                0;
                if multiplies {
                    program.registers * warpgroups
                } else {
                    0
                }
            ],
        }
    }

    fn turn(&mut self, steps: &mut u64) -> Result<Turn, String> {
        let end = *steps + TURN * self.n as u64;
        let mut spins = false;
        loop {
            if spins || (self.varied && self.random.below(4) == 0) {
                self.settle()?;
            }
            let Some((active, at, stop, turn)) = self.choose(spins) else {
                if self.settle()? {
                    continue;
                }
                return match self.state.iter().all(|s| *s == State::Done) {
                    true => self.finish().map(|()| Turn::Done),
                    false => Ok(Turn::Blocked),
                };
            };
            spins = !self.advance(active, at, stop, turn, steps)? && turn == TURN;
            if *steps > end {
                return Ok(Turn::Over);
            }
        }
    }

    /// Threads to go on, from which instruction and up to which, and how many; none if nobody can.
    fn choose(&mut self, spins: bool) -> Option<(Vec<usize>, usize, usize, u64)> {
        let ready = |t: &usize| self.state[*t] == State::Ready;
        if !self.varied {
            let places = || (0..self.n).filter(ready).map(|t| self.at[t]);
            let (behind, ahead) = (places().min()?, places().max()?);
            // Up to where others stand, to go on with them; those who spin are passed over for a turn.
            let (at, stop) = match spins {
                false => (behind, places().filter(|&a| a > behind).min()),
                true => (ahead, None),
            };
            let active = (0..self.n).filter(|&t| ready(&t) && self.at[t] == at);
            return Some((active.collect(), at, stop.unwrap_or(usize::MAX), TURN));
        }
        let warps = self.n.div_ceil(WARP);
        let of = |warp: usize| warp * WARP..((warp + 1) * WARP).min(self.n);
        let mut can: Vec<usize> = (0..warps).filter(|&w| of(w).any(|t| ready(&t))).collect();
        if can.is_empty() {
            return None;
        }
        // For a while one warp goes on only where no other can, so that those that nothing binds to it leave it far behind.
        if self.random.below(LAZY) == 0 {
            self.lazy = self.random.below(2 * warps);
        }
        let lazy = self.lazy;
        if can.iter().any(|&w| w != lazy) {
            can.retain(|&w| w != lazy);
        }
        let warp = can[self.random.below(can.len())];
        let alone = self.random.below(2) == 0;
        let turn = 1 + self.random.below(300) as u64;
        let ready = |t: &usize| self.state[*t] == State::Ready;
        let places = || of(warp).filter(ready).map(|t| self.at[t]);
        let at = places().min()?;
        let stop = places().filter(|&a| a > at).min();
        let within = if alone { of(warp) } else { 0..self.n };
        let left = |t: usize| t / WARP == lazy && warp != lazy;
        let active = (within.filter(|&t| ready(&t) && self.at[t] == at && !left(t))).collect();
        Some((active, at, stop.unwrap_or(usize::MAX), turn))
    }

    /// Runs threads together until they part, stop or reach `stop`; false if their turn was over first.
    fn advance(
        &mut self,
        active: Vec<usize>,
        mut at: usize,
        stop: usize,
        turn: u64,
        steps: &mut u64,
    ) -> Result<bool, String> {
        let program = self.launch.program;
        let groups = match self.written.is_empty() {
            true => vec![],
            false => self.groups(&active),
        };
        let mut left = turn;
        while at < stop && left > 0 {
            left -= 1;
            self.tick += 1;
            *steps += active.len() as u64;
            let i = program.code.get(at).ok_or("the code has no end")?;
            let (doing, not) = match i.guard {
                None => (None, vec![]),
                Some((predicate, wanted)) => {
                    let n = self.n;
                    let holds = |t: &usize| (self.registers[predicate * n + *t] & 1 == 1) == wanted;
                    let (doing, not): (Vec<_>, Vec<_>) = active.iter().partition(|t| holds(t));
                    (Some(doing), not)
                }
            };
            let doing = doing.as_ref().unwrap_or(&active);
            let (next, state) = match i.kind {
                Kind::Branch => (i.target, State::Ready),
                Kind::Return => (at, State::Done),
                Kind::Special(special) if program.specials[special].waits() => (at, State::Blocked),
                _ => {
                    let done = match i.kind {
                        _ if doing.is_empty() => Ok(()),
                        Kind::Special(special) => {
                            self.special(&program.specials[special], i, doing)
                        }
                        _ => self
                            .registers_are_free(i, &groups, doing)
                            .and_then(|()| self.execute(i, doing)),
                    };
                    if let Err(breach) = done {
                        let (thread, what) = breach;
                        return Err(self.blame(thread, i, &what));
                    }
                    at += 1;
                    continue;
                }
            };
            if doing.is_empty() {
                at += 1;
            } else if not.is_empty() && state == State::Ready {
                at = next;
            } else {
                for &t in doing {
                    (self.at[t], self.state[t]) = (next, state);
                }
                for &t in &not {
                    self.at[t] = at + 1;
                }
                let checked = match (state, i.kind) {
                    (State::Done, _) => self.end(doing),
                    (State::Blocked, Kind::Special(special)) => {
                        self.block(&program.specials[special], doing)
                    }
                    _ => Ok(()),
                };
                return match checked {
                    Ok(()) => Ok(true),
                    Err((thread, what)) => Err(self.blame(thread, i, &what)),
                };
            }
        }
        for &t in &active {
            self.at[t] = at;
        }
        Ok(left > 0)
    }

    pub fn blame(&self, thread: usize, i: &Instruction, what: &str) -> String {
        format!(
            "thread {} of CTA {}: `{}`: {what}",
            thread % self.block,
            self.first as usize + thread / self.block,
            i.text
        )
    }

    /// The warpgroups of these threads.
    fn groups(&self, threads: &[usize]) -> Vec<usize> {
        let mut groups: Vec<usize> = threads.iter().map(|t| t / WARPGROUP).collect();
        groups.dedup();
        groups
    }

    /// That no product under way has an ordinary instruction's registers.
    fn registers_are_free(
        &mut self,
        i: &Instruction,
        groups: &[usize],
        doing: &[usize],
    ) -> Result<(), Breach> {
        let groups_all = self.products.len();
        for &g in groups {
            let products = &self.products[g];
            if products.in_flight() {
                let taken = (i.from.iter().any(|r| products.sums.contains_key(r)))
                    || i.to.is_some_and(|r| products.holds(&r));
                if taken && doing.iter().any(|t| t / WARPGROUP == g) {
                    return Err((
                        g * WARPGROUP,
                        "a register of a product under way that nobody has waited for".to_owned(),
                    ));
                }
            }
            if let Some(to) = i.to {
                self.written[to * groups_all + g] = self.tick;
            }
        }
        Ok(())
    }

    /// Who waits where.
    fn waiting(&self) -> String {
        let done = self.state.iter().filter(|s| **s == State::Done).count();
        let mut places: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for t in (0..self.n).filter(|&t| self.state[t] == State::Blocked) {
            places
                .entry((t / self.block, self.at[t]))
                .or_default()
                .push(t);
        }
        let waiting: usize = places.values().map(Vec::len).sum();
        let lines: Vec<String> = (places.iter())
            .map(|((rank, at), threads)| {
                let i = &self.launch.program.code[*at];
                let [first, last] =
                    [threads[0], threads[threads.len() - 1]].map(|t| t % self.block);
                format!(
                    "threads {first}..={last} ({}) of CTA {} at `{}`{}",
                    threads.len(),
                    self.first as usize + rank,
                    i.text,
                    self.what_lacks(threads[0])
                )
            })
            .collect();
        format!(
            "{done} threads ended, and {waiting} wait for ever: {}",
            lines.join(", ")
        )
    }

    fn execute(&mut self, i: &Instruction, threads: &[usize]) -> Result<(), Breach> {
        use Ty::{F, Pred, S, U};
        // The same function; named here, it is compiled for its kind and type alone.
        macro_rules! compute {
            ($($kind:ident of $ty:pat => $as:expr,)*) => {
                match (i.kind, i.ty) {
                    $((Kind::$kind, $ty) => {
                        self.each(i, threads, |v| alu::compute(Kind::$kind, $as, &v))
                    })*
                    (kind, Pred) => {
                        self.each(i, threads, |v| Ok(alu::compute(kind, U(1), &v)? & 1))
                    }
                    (kind, ty) => self.each(i, threads, |v| alu::compute(kind, ty, &v)),
                }
            };
        }
        let bits = i.ty.bits();
        match i.kind {
            Kind::Fence => Ok(()),
            Kind::Unpack(_) | Kind::MulPairs => {
                self.each(i, threads, |v| alu::compute(i.kind, i.ty, &v))
            }
            Kind::Set(op) => match i.ty {
                U(32) => self.each(i, threads, |v| {
                    Ok(u64::from(alu::compare(op, U(32), v[0], v[1])))
                }),
                S(64) => self.each(i, threads, |v| {
                    Ok(u64::from(alu::compare(op, S(64), v[0], v[1])))
                }),
                F(32) => self.each(i, threads, |v| {
                    Ok(u64::from(alu::compare(op, F(32), v[0], v[1])))
                }),
                ty => self.each(i, threads, |v| {
                    Ok(u64::from(alu::compare(op, ty, v[0], v[1])))
                }),
            },
            Kind::Select => self.each(i, threads, |v| Ok(if v[2] & 1 == 1 { v[0] } else { v[1] })),
            Kind::Move => self.each(i, threads, |v| Ok(v[0] & alu::mask(bits))),
            Kind::Extract(from) => self.each(i, threads, |v| Ok(v[0] >> from & alu::mask(bits))),
            Kind::Insert(0) => self.each(i, threads, |v| Ok(v[1] & alu::mask(bits))),
            Kind::Insert(from) => {
                self.each(i, threads, |v| Ok(v[0] | (v[1] & alu::mask(bits)) << from))
            }
            Kind::Convert(from, round) => {
                self.each(i, threads, |v| alu::convert(i.ty, from, round, v[0]))
            }
            Kind::Load(space) => {
                let [address, ..] = i.from;
                self.access(i, threads, |cta, t| {
                    let address = cta.register(address, t).wrapping_add(i.offset);
                    let bits = cta.load(t, space, address, i, true)?;
                    Ok(Some(alu::extend(bits, i.ty)))
                })
            }
            Kind::Store(space) => {
                let [address, value, _] = i.from;
                self.access(i, threads, |cta, t| {
                    let address = cta.register(address, t).wrapping_add(i.offset);
                    let value = cta.register(value, t);
                    cta.store(t, space, address, i, value, true)?;
                    Ok(None)
                })
            }
            Kind::Atomic(op) => {
                let [address, value, _] = i.from;
                let space = space_of(&i.text);
                let kind = match op {
                    Rmw::Add => Kind::Add,
                    Rmw::And => Kind::And,
                    Rmw::Or => Kind::Or,
                    Rmw::Max => Kind::Max,
                    Rmw::Min => Kind::Min,
                };
                self.access(i, threads, |cta, t| {
                    let address = cta.register(address, t).wrapping_add(i.offset);
                    let old = cta.load(t, space, address, i, false)?;
                    let operands = [old, cta.register(value, t), 0];
                    let new = alu::compute(kind, i.ty, &operands)?;
                    cta.store(t, space, address, i, new, false)?;
                    Ok(i.to.map(|_| old))
                })
            }
            Kind::Exchange => {
                let [address, expected, new] = i.from;
                let space = space_of(&i.text);
                self.access(i, threads, |cta, t| {
                    let address = cta.register(address, t).wrapping_add(i.offset);
                    let old = cta.load(t, space, address, i, false)?;
                    if old == cta.register(expected, t) & alu::mask(bits) {
                        let new = cta.register(new, t);
                        cta.store(t, space, address, i, new, false)?;
                    }
                    Ok(Some(old))
                })
            }
            _ => compute! {
                Add of F(32) => F(32),
                Sub of F(32) => F(32),
                MulLow of F(32) => F(32),
                Fma of F(32) => F(32),
                Add of U(32) | S(32) => U(32),
                Add of U(64) | S(64) => U(64),
                MulLow of U(32) | S(32) => U(32),
                MulLow of U(64) | S(64) => U(64),
                MadLow of U(32) | S(32) => U(32),
                And of U(32) => U(32),
                And of U(64) => U(64),
                Or of U(32) => U(32),
                Or of U(64) => U(64),
                Xor of U(32) => U(32),
                Shl of U(32) => U(32),
                Shl of U(64) => U(64),
                Shr of U(32) => U(32),
                Shr of U(64) => U(64),
            },
        }
    }

    /// An instruction that touches nothing but registers.
    fn each(
        &mut self,
        i: &Instruction,
        threads: &[usize],
        of: impl Fn([u64; 3]) -> Result<u64, String>,
    ) -> Result<(), Breach> {
        let n = self.n;
        let to = i.to.ok_or((0, "no register for the result".to_owned()))?;
        let [a, b, c] = i.from.map(|r| &self.registers[r * n..][..n]);
        let results = &mut self.results[..n];
        if threads.len() == n {
            for t in 0..n {
                results[t] = of([a[t], b[t], c[t]]).map_err(|what| (t, what))?;
            }
            self.registers[to * n..][..n].copy_from_slice(results);
        } else {
            for &t in threads {
                results[t] = of([a[t], b[t], c[t]]).map_err(|what| (t, what))?;
            }
            for &t in threads {
                self.registers[to * n + t] = results[t];
            }
        }
        Ok(())
    }

    /// An instruction that touches memory.
    fn access(
        &mut self,
        i: &Instruction,
        threads: &[usize],
        of: impl Fn(&mut Self, usize) -> Result<Option<u64>, String>,
    ) -> Result<(), Breach> {
        let n = self.n;
        for &t in threads {
            let result = of(self, t).map_err(|what| (t, what))?;
            match (result, i.to) {
                (Some(result), Some(to)) => self.registers[to * n + t] = result,
                (None, None) => {}
                _ => return Err((t, "a result and no register, or none".to_owned())),
            }
        }
        Ok(())
    }

    pub fn register(&self, register: usize, thread: usize) -> u64 {
        self.registers[register * self.n + thread]
    }

    // ---- memory -------------------------------------------------------------------------------------------

    pub fn load(
        &mut self,
        thread: usize,
        space: Space,
        address: u64,
        i: &Instruction,
        plain: bool,
    ) -> Result<u64, String> {
        let bytes = i.ty.bits() as usize / 8;
        self.check(thread, space, address, i, false, plain)?;
        let raw = match space {
            Space::Param => &self.launch.params[address as usize..][..bytes],
            Space::Shared => &self.memory.bytes[self.shared(thread, address, bytes)?..][..bytes],
            // SAFETY: `check` found the bytes in an allocation, which lives through the launch.
            Space::Global => unsafe { std::slice::from_raw_parts(address as *const u8, bytes) },
        };
        Ok(match *raw {
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            [a] => u64::from(a),
            _ => u64::from_le_bytes(raw.try_into().map_err(|_| "an odd size")?),
        })
    }

    fn store(
        &mut self,
        thread: usize,
        space: Space,
        address: u64,
        i: &Instruction,
        value: u64,
        plain: bool,
    ) -> Result<(), String> {
        let bytes = i.ty.bits() as usize / 8;
        self.check(thread, space, address, i, true, plain)?;
        let raw = value.to_le_bytes();
        match space {
            Space::Param => return Err("a store to the arguments".to_owned()),
            Space::Shared => {
                let to = self.shared(thread, address, bytes)?;
                self.memory.bytes[to..to + bytes].copy_from_slice(&raw[..bytes]);
            }
            // SAFETY: as for loads; nobody else uses the allocation meanwhile.
            Space::Global => unsafe {
                std::ptr::copy_nonoverlapping(raw.as_ptr(), address as *mut u8, bytes);
            },
        }
        Ok(())
    }

    fn check(
        &mut self,
        thread: usize,
        space: Space,
        address: u64,
        i: &Instruction,
        write: bool,
        plain: bool,
    ) -> Result<(), String> {
        let bytes = u64::from(i.ty.bits() / 8);
        if !address.is_multiple_of(i.align) {
            return Err(format!(
                "address {address:#x} is no multiple of {}",
                i.align
            ));
        }
        let end = address.checked_add(bytes).ok_or("an address of -1")?;
        match space {
            Space::Param if end <= self.launch.params.len() as u64 => Ok(()),
            Space::Param => Err(format!("argument byte {address}")),
            Space::Shared => {
                let from = self.shared(thread, address, bytes as usize)?;
                let (order, bytes) = (&self.order, bytes as usize);
                match plain {
                    true => self.memory.touch(order, thread, from, bytes, write),
                    false => self.memory.atomic(order, thread, from, bytes),
                }
            }
            Space::Global => {
                self.has_waited(thread)?;
                self.global(address, bytes)
            }
        }
    }

    /// That the thread may touch what launches before this one wrote or read.
    pub fn has_waited(&self, thread: usize) -> Result<(), String> {
        match self.waited[thread] {
            true => Ok(()),
            false => Err("before griddepcontrol.wait".to_owned()),
        }
    }

    /// That the bytes are in an allocation.
    pub fn global(&mut self, address: u64, bytes: u64) -> Result<(), String> {
        let outside = || format!("global address {address:#x} is in no allocation");
        if !(self.allocation.0..self.allocation.1).contains(&address) {
            let below = self.launch.allocations.range(..=address).next_back();
            let (start, len) = below.ok_or_else(outside)?;
            self.allocation = (*start, *start + *len as u64);
        }
        match address
            .checked_add(bytes)
            .is_some_and(|end| end <= self.allocation.1)
        {
            true => Ok(()),
            false => Err(outside()),
        }
    }

    /// The place of a shared address of the thread's own block.
    pub fn shared(&self, thread: usize, address: u64, bytes: usize) -> Result<usize, String> {
        if address >> RANK_SHIFT != (thread / self.block) as u64 {
            return Err(format!(
                "the address {address:#x} of another block's shared memory"
            ));
        }
        self.cluster_shared(address, bytes)
    }

    /// The place of an address in the shared memory of the cluster's block that it names.
    pub fn cluster_shared(&self, address: u64, bytes: usize) -> Result<usize, String> {
        let rank = (address >> RANK_SHIFT) as usize;
        match rank < self.n / self.block {
            true => self.shared_of(rank, address & ((1 << RANK_SHIFT) - 1), bytes),
            false => Err(format!("the address {address:#x} of no block")),
        }
    }

    pub fn shared_of(&self, rank: usize, address: u64, bytes: usize) -> Result<usize, String> {
        let len = self.shared_bytes;
        let at = address.checked_sub(SHARED_BASE).map(|at| at as usize);
        match at.filter(|at| at + bytes <= len) {
            Some(at) => Ok(rank * self.shared_stride + at),
            None => Err(format!(
                "byte {} of {len} shared ones",
                address as i64 - SHARED_BASE as i64
            )),
        }
    }
}

fn space_of(text: &str) -> Space {
    if text.contains(".shared") {
        Space::Shared
    } else {
        Space::Global
    }
}
