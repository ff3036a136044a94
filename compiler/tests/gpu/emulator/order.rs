//! What happened before what, and who touched which byte of shared memory: the rules that a GPU does not check.
//!
//! An agent is a thread, or one that works for it: the copies that complete at a barrier, the matrix products of a warpgroup. Each access
//! is stamped with the time, which rises with every release (an arrival, a barrier); a clock holds, for each agent, up to when its
//! accesses are known to be over. Accesses to a byte of which one writes must be ordered so, but for atomics among themselves. Async accesses
//! must besides have a proxy fence between them and ordinary writes before them; clocks hold that too.

use std::collections::BTreeMap;
use std::rc::Rc;

pub type Agent = usize;
pub type Time = u32;

/// Async work reads and writes units of so many bytes.
pub const CHUNK: usize = 8;
const WARP: usize = 32;
/// The least that an atomic touches.
const WORD: usize = 4;

/// Accesses of agent `a` before `seen[a]` are over; those before `fenced[a]` are seen by the async proxy too.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    seen: Vec<Time>,
    fenced: Vec<Time>,
    /// The least of all threads.
    seen_floor: Time,
    fenced_floor: Time,
}

fn at(times: &[Time], agent: Agent) -> Time {
    times.get(agent).copied().unwrap_or(0)
}

fn raise(times: &mut Vec<Time>, agent: Agent, to: Time) {
    if times.len() <= agent {
        times.resize(agent + 1, 0);
    }
    times[agent] = times[agent].max(to);
}

fn join(times: &mut Vec<Time>, other: &[Time]) {
    if times.len() < other.len() {
        times.resize(other.len(), 0);
    }
    for (a, b) in times.iter_mut().zip(other) {
        *a = (*a).max(*b);
    }
}

impl Clock {
    pub fn join(&mut self, other: &Clock) {
        join(&mut self.seen, &other.seen);
        join(&mut self.fenced, &other.fenced);
    }

    pub fn raise(&mut self, agent: Agent, time: Time) {
        raise(&mut self.seen, agent, time);
    }

    fn settle(mut self, threads: usize) -> Rc<Clock> {
        let floor = |times: &[Time]| match times.get(..threads) {
            Some(all) => all.iter().copied().min().unwrap_or(0),
            None => 0,
        };
        (self.seen_floor, self.fenced_floor) = (floor(&self.seen), floor(&self.fenced));
        Rc::new(self)
    }
}

/// The clocks of all threads.
pub struct Order {
    pub time: Time,
    threads: usize,
    base: Vec<Rc<Clock>>,
    /// What a thread's own entry is, which `base` may not have.
    own: Vec<Time>,
    own_fenced: Vec<Time>,
    agents: usize,
    /// The last join, which the next thread often wants too.
    last: Option<[Rc<Clock>; 3]>,
}

impl Order {
    pub fn new(threads: usize) -> Self {
        Order {
            time: 1,
            threads,
            base: vec![Rc::default(); threads],
            own: vec![1; threads],
            own_fenced: vec![0; threads],
            agents: threads,
            last: None,
        }
    }

    pub fn agent(&mut self) -> Agent {
        self.agents += 1;
        self.agents - 1
    }

    /// What these threads know, and that what they did is over.
    pub fn release(&mut self, threads: &[usize]) -> Clock {
        self.time += 1;
        let mut clock = Clock::default();
        let mut joined: Option<&Rc<Clock>> = None;
        for &t in threads {
            let base = &self.base[t];
            if !joined.is_some_and(|j| Rc::ptr_eq(j, base)) {
                clock.join(base);
                joined = Some(base);
            }
        }
        for &t in threads {
            self.own[t] = self.time;
            raise(&mut clock.seen, t, self.time);
            raise(&mut clock.fenced, t, self.own_fenced[t]);
        }
        clock
    }

    pub fn share(&self, clock: Clock) -> Rc<Clock> {
        clock.settle(self.threads)
    }

    pub fn acquire(&mut self, thread: usize, clock: &Rc<Clock>) {
        let base = &self.base[thread];
        if Rc::ptr_eq(base, clock) {
            return;
        }
        let known = (self.last.as_ref())
            .filter(|[a, b, _]| Rc::ptr_eq(a, base) && Rc::ptr_eq(b, clock))
            .map(|[.., joined]| joined.clone());
        let joined = known.unwrap_or_else(|| {
            let mut joined = Clock::clone(base);
            joined.join(clock);
            let joined = joined.settle(self.threads);
            self.last = Some([base.clone(), clock.clone(), joined.clone()]);
            joined
        });
        self.base[thread] = joined;
    }

    /// As [`acquire`](Self::acquire), of a clock that holds all that the thread knew.
    pub fn adopt(&mut self, thread: usize, clock: &Rc<Clock>) {
        self.base[thread] = clock.clone();
    }

    /// From here on the async proxy sees all that each of these threads knows of.
    pub fn fence(&mut self, threads: &[usize]) {
        self.time += 1;
        let mut last: Option<[Rc<Clock>; 2]> = None;
        for &t in threads {
            let base = &self.base[t];
            let known = last.as_ref().filter(|[before, _]| Rc::ptr_eq(before, base));
            let fenced = known.map_or_else(
                || {
                    let mut all = Clock::clone(base);
                    join(&mut all.fenced, &base.seen);
                    all.settle(self.threads)
                },
                |[_, fenced]| fenced.clone(),
            );
            last = Some([base.clone(), fenced.clone()]);
            self.base[t] = fenced;
            self.own[t] = self.time;
            self.own_fenced[t] = self.time;
        }
    }

    /// The thread knows that the agent's accesses before then are over.
    pub fn learn(&mut self, thread: usize, agent: Agent, time: Time) {
        let mut clock = Clock::clone(&self.base[thread]);
        clock.raise(agent, time);
        self.base[thread] = Rc::new(clock);
    }

    pub fn knows(&self, thread: usize, agent: Agent, access: Time) -> bool {
        self.seen(thread, agent, access)
    }

    fn seen(&self, thread: usize, agent: Agent, access: Time) -> bool {
        agent == thread || at(&self.base[thread].seen, agent) > access
    }

    fn fenced(&self, thread: usize, agent: Agent, access: Time) -> bool {
        match agent == thread {
            true => self.own_fenced[thread] > access,
            false => at(&self.base[thread].fenced, agent) > access,
        }
    }
}

/// A byte's last ordinary accesses. Agents are counted from 1; 0: none.
#[derive(Clone, Copy, Default)]
struct Byte {
    writer: u16,
    /// `MANY`: `read` is a place in `Memory::many`.
    reader: u16,
    wrote: Time,
    read: Time,
}

const MANY: u16 = u16::MAX;

/// A chunk's last async accesses.
#[derive(Clone, Default)]
struct Chunk {
    /// Being written: what is there is nothing yet.
    in_flight: bool,
    writer: u16,
    wrote: Time,
    readers: Vec<(u16, Time)>,
    is_barrier: bool,
    /// Whether `Memory::atomics` knows of any here.
    atomics: bool,
}

/// Shared memory of all blocks of a cluster, one behind the other.
pub struct Memory {
    pub bytes: Vec<u8>,
    ordinary: Vec<Byte>,
    chunks: Vec<Chunk>,
    /// For each warp: when it last read, and which of its threads.
    many: Vec<Vec<(Time, u32)>>,
    free: Vec<usize>,
    /// When each thread, counted from 1, last did an atomic at a word, since the last ordinary write there.
    atomics: BTreeMap<(usize, u16), Time>,
}

impl Chunk {
    fn is_no_barrier(&self, number: usize) -> Result<(), String> {
        match self.is_barrier {
            true => Err(format!(
                "shared byte {} is part of a barrier",
                number * CHUNK
            )),
            false => Ok(()),
        }
    }
}

impl Memory {
    pub fn new(bytes: usize) -> Self {
        Memory {
            bytes: vec![0xa5; bytes],
            ordinary: vec![Byte::default(); bytes],
            chunks: vec![Chunk::default(); bytes.div_ceil(CHUNK)],
            many: vec![],
            free: vec![],
            atomics: BTreeMap::new(),
        }
    }

    /// An ordinary access by a thread.
    pub fn touch(
        &mut self,
        order: &Order,
        thread: usize,
        from: usize,
        bytes: usize,
        write: bool,
    ) -> Result<(), String> {
        for chunk in from / CHUNK..(from + bytes).div_ceil(CHUNK) {
            let c = &self.chunks[chunk];
            c.is_no_barrier(chunk)?;
            if c.writer != 0 || !c.readers.is_empty() {
                async_conflict(c, order, thread, write, chunk)?;
            }
        }
        self.atomics_are_over(order, thread, from, bytes, write)?;
        let floor = order.base[thread].seen_floor;
        let now = order.time;
        let me = thread as u16 + 1;
        for place in from..from + bytes {
            let byte = self.ordinary[place];
            if byte.writer != 0 && byte.writer != me && byte.wrote >= floor {
                let other = usize::from(byte.writer) - 1;
                if !order.seen(thread, other, byte.wrote) {
                    return Err(unordered(place, other, "wrote"));
                }
            }
            if write {
                self.readers_are_over(order, thread, place)?;
                self.forget_readers(place);
                let byte = &mut self.ordinary[place];
                (byte.writer, byte.wrote) = (me, now);
            } else if byte.reader != me || byte.read != now {
                self.add_reader(order, thread, place);
            }
        }
        Ok(())
    }

    /// An atomic by a thread: in order with ordinary accesses of others, in no order with their atomics.
    pub fn atomic(
        &mut self,
        order: &Order,
        thread: usize,
        from: usize,
        bytes: usize,
    ) -> Result<(), String> {
        for chunk in from / CHUNK..(from + bytes).div_ceil(CHUNK) {
            let c = &mut self.chunks[chunk];
            c.is_no_barrier(chunk)?;
            async_conflict(c, order, thread, true, chunk)?;
            c.atomics = true;
        }
        for place in from..from + bytes {
            let byte = self.ordinary[place];
            if byte.writer != 0 {
                let other = usize::from(byte.writer) - 1;
                if !order.seen(thread, other, byte.wrote) {
                    return Err(unordered(place, other, "wrote"));
                }
            }
            self.readers_are_over(order, thread, place)?;
        }
        for word in (from..from + bytes).step_by(WORD) {
            let key = (word, thread as u16 + 1);
            self.atomics.insert(key, order.time);
        }
        Ok(())
    }

    /// When others did atomics at these bytes: place, agent, time.
    fn atomics_at(&self, from: usize, bytes: usize) -> impl Iterator<Item = (usize, Agent, Time)> {
        let chunks = &self.chunks[from / CHUNK..(from + bytes).div_ceil(CHUNK)];
        let words = match chunks.iter().any(|c| c.atomics) {
            true => (from & !(WORD - 1), 0)..(from + bytes, 0),
            false => (0, 0)..(0, 0),
        };
        let all = self.atomics.range(words);
        all.map(|(&(place, agent), &time)| (place, usize::from(agent) - 1, time))
    }

    /// That others' atomics at these bytes are over; a write takes their place.
    fn atomics_are_over(
        &mut self,
        order: &Order,
        thread: usize,
        from: usize,
        bytes: usize,
        write: bool,
    ) -> Result<(), String> {
        let mut over = vec![];
        for (place, other, time) in self.atomics_at(from, bytes) {
            if !order.seen(thread, other, time) {
                return Err(unordered(place, other, "did an atomic at"));
            }
            over.push((place, other as u16 + 1));
        }
        if write && from.is_multiple_of(WORD) && bytes.is_multiple_of(WORD) {
            for key in over {
                self.atomics.remove(&key);
            }
        }
        Ok(())
    }

    /// Whether the eight bytes are a barrier from now on.
    pub fn set_barrier(&mut self, at: usize, is: bool) {
        self.chunks[at / CHUNK].is_barrier = is;
    }

    /// That no thread may still read the byte.
    fn readers_are_over(&self, order: &Order, thread: usize, place: usize) -> Result<(), String> {
        let byte = self.ordinary[place];
        let floor = order.base[thread].seen_floor;
        match byte.reader {
            0 => {}
            MANY => {
                for (warp, &(time, mask)) in self.many[byte.read as usize].iter().enumerate() {
                    if mask == 0 || time < floor {
                        continue;
                    }
                    for lane in (0..WARP).filter(|lane| mask >> lane & 1 == 1) {
                        let other = warp * WARP + lane;
                        if !order.seen(thread, other, time) {
                            return Err(unordered(place, other, "read"));
                        }
                    }
                }
            }
            reader => {
                let other = usize::from(reader) - 1;
                if byte.read >= floor && !order.seen(thread, other, byte.read) {
                    return Err(unordered(place, other, "read"));
                }
            }
        }
        Ok(())
    }

    fn forget_readers(&mut self, place: usize) {
        let byte = &mut self.ordinary[place];
        if byte.reader == MANY {
            self.free.push(byte.read as usize);
        }
        (byte.reader, byte.read) = (0, 0);
    }

    fn add_reader(&mut self, order: &Order, thread: usize, place: usize) {
        let byte = self.ordinary[place];
        let (me, now) = (thread as u16 + 1, order.time);
        if byte.reader == MANY {
            let entry = &mut self.many[byte.read as usize][thread / WARP];
            match entry.0 == now {
                true => entry.1 |= 1 << (thread % WARP),
                false => *entry = (now, 1 << (thread % WARP)),
            }
            return;
        }
        if byte.reader == 0
            || byte.reader == me
            || byte.read < order.base[thread].seen_floor
            || order.seen(thread, usize::from(byte.reader) - 1, byte.read)
        {
            let byte = &mut self.ordinary[place];
            (byte.reader, byte.read) = (me, now);
            return;
        }
        let warps = order.threads.div_ceil(WARP);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.many.push(vec![]);
            self.many.len() - 1
        });
        let entry = &mut self.many[slot];
        entry.clear();
        entry.resize(warps, (0, 0));
        let other = usize::from(byte.reader) - 1;
        entry[other / WARP] = (byte.read, 1 << (other % WARP));
        let mine = &mut entry[thread / WARP];
        match mine.0 == now {
            true => mine.1 |= 1 << (thread % WARP),
            false => *mine = (now, 1 << (thread % WARP)),
        }
        let byte = &mut self.ordinary[place];
        (byte.reader, byte.read) = (MANY, slot as Time);
    }

    /// Async work that `thread` starts will read these bytes.
    pub fn async_read(
        &mut self,
        order: &Order,
        thread: usize,
        agent: Agent,
        from: usize,
        bytes: usize,
    ) -> Result<(), String> {
        self.ordinary_is_over(order, thread, from, bytes, false)?;
        for chunk in from / CHUNK..(from + bytes).div_ceil(CHUNK) {
            let c = &mut self.chunks[chunk];
            async_conflict(c, order, thread, false, chunk)?;
            c.readers.retain(|&(other, time)| {
                let other = usize::from(other) - 1;
                other != agent && !order.seen(thread, other, time)
            });
            c.readers.push((agent as u16 + 1, order.time));
        }
        Ok(())
    }

    /// Async work that `thread` starts will write these bytes; until it lands they hold nothing.
    pub fn async_write(
        &mut self,
        order: &Order,
        thread: usize,
        agent: Agent,
        from: usize,
        bytes: usize,
        ordinary_proxy: bool,
    ) -> Result<(), String> {
        if ordinary_proxy {
            // As an ordinary write by the thread, for now.
            self.touch(order, thread, from, bytes, true)?;
        } else {
            self.ordinary_is_over(order, thread, from, bytes, true)?;
        }
        for chunk in from / CHUNK..(from + bytes).div_ceil(CHUNK) {
            let c = &mut self.chunks[chunk];
            async_conflict(c, order, thread, true, chunk)?;
            c.in_flight = true;
            (c.writer, c.wrote) = (agent as u16 + 1, order.time);
            c.readers.clear();
        }
        for place in from..from + bytes {
            self.forget_readers(place);
            self.ordinary[place] = Byte::default();
        }
        self.bytes[from..from + bytes].fill(0xee);
        Ok(())
    }

    /// The bytes are there, written by `agent` as of now; by a thread as an ordinary write where `ordinary` names it.
    pub fn land(
        &mut self,
        order: &Order,
        agent: Agent,
        ordinary: Option<usize>,
        to: usize,
        data: &[u8],
    ) {
        self.bytes[to..to + data.len()].copy_from_slice(data);
        for c in &mut self.chunks[to / CHUNK..(to + data.len()).div_ceil(CHUNK)] {
            c.in_flight = false;
            (c.writer, c.wrote) = match ordinary {
                Some(_) => (0, 0),
                None => (agent as u16 + 1, order.time),
            };
        }
        if let Some(thread) = ordinary {
            for byte in &mut self.ordinary[to..to + data.len()] {
                (byte.writer, byte.wrote) = (thread as u16 + 1, order.time);
            }
        }
    }

    /// Ordinary writes are seen by the async proxy; for a write, ordinary reads are over too.
    fn ordinary_is_over(
        &self,
        order: &Order,
        thread: usize,
        from: usize,
        bytes: usize,
        write: bool,
    ) -> Result<(), String> {
        let clock = &order.base[thread];
        for (place, other, time) in self.atomics_at(from, bytes) {
            if !order.seen(thread, other, time) || !order.fenced(thread, other, time) {
                return Err(unordered(place, other, "did an atomic at"));
            }
        }
        for place in from..from + bytes {
            let byte = self.ordinary[place];
            if byte.writer != 0 && byte.wrote >= clock.fenced_floor {
                let other = usize::from(byte.writer) - 1;
                if !order.seen(thread, other, byte.wrote) {
                    return Err(unordered(place, other, "wrote"));
                }
                if !order.fenced(thread, other, byte.wrote) {
                    return Err(format!(
                        "shared byte {place}, which thread {other} wrote, without fence.proxy.async between"
                    ));
                }
            }
            if write {
                self.readers_are_over(order, thread, place)?;
            }
        }
        Ok(())
    }
}

fn async_conflict(
    c: &Chunk,
    order: &Order,
    thread: usize,
    write: bool,
    chunk: usize,
) -> Result<(), String> {
    let place = chunk * CHUNK;
    if c.in_flight {
        return Err(format!(
            "shared bytes {place}.. while an asynchronous copy to them is under way that nobody has waited for"
        ));
    }
    if c.writer != 0 && !order.seen(thread, usize::from(c.writer) - 1, c.wrote) {
        return Err(format!(
            "shared bytes {place}.. without waiting for the asynchronous copy that wrote them"
        ));
    }
    if write {
        let open =
            |&&(agent, time): &&(u16, Time)| !order.seen(thread, usize::from(agent) - 1, time);
        if c.readers.iter().find(open).is_some() {
            return Err(format!(
                "shared bytes {place}.. without waiting for the asynchronous work that reads them"
            ));
        }
    }
    Ok(())
}

fn unordered(place: usize, other: usize, did: &str) -> String {
    format!("shared byte {place} without a barrier since thread {other} {did} it")
}
