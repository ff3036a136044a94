//! Runs a program CTA by CTA. Threads at the same instruction take it together, those that are behind first; any order would do. It is held
//! to rules that a GPU does not check: no access outside an allocation, no two threads at one byte of shared memory between barriers unless
//! both read, every thread at the same barrier, no address that is not a multiple of the access.

use super::alu;
use super::ptx::{CTA, CTAS, Instruction, Kind, Program, Rmw, Space, THREAD, Ty};
use std::collections::BTreeMap;

const WARP: usize = 32;
/// Of all threads of a launch together: beyond it, it hangs.
const LIMIT: u64 = 20_000_000_000;
/// Threads that spin let the others go on after so many instructions.
const TURN: u64 = 1_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    Barrier,
    Shuffle,
    Done,
}

/// Who touched a byte of shared memory, and after which barrier.
#[derive(Clone, Copy, Default)]
struct Touched {
    epoch: u32,
    /// Thread + 1.
    writer: u16,
    /// Thread + 1; `u16::MAX`: several.
    reader: u16,
}

pub struct Launch<'l> {
    pub program: &'l Program,
    pub ctas: u32,
    pub shared_bytes: usize,
    pub params: &'l [u8],
    /// Start and length.
    pub allocations: &'l BTreeMap<u64, usize>,
}

struct Cta<'l> {
    launch: &'l Launch<'l>,
    number: u32,
    /// Of each thread: its next instruction, and whether it can go on.
    at: Vec<usize>,
    state: Vec<State>,
    /// Of each register, all threads.
    registers: Vec<u64>,
    /// Results of one instruction.
    results: Vec<u64>,
    shared: Vec<u8>,
    touched: Vec<Touched>,
    epoch: u32,
    /// The allocation of the last access: start and end.
    allocation: (u64, u64),
}

/// A breach of the rules, and whose.
type Breach = (usize, String);

impl Launch<'_> {
    pub fn run(&self) -> Result<(), String> {
        let bytes = self.params.len();
        if bytes != self.program.param_bytes {
            return Err(format!(
                "{bytes} bytes of arguments for {}",
                self.program.param_bytes
            ));
        }
        let mut steps = 0;
        for number in 0..self.ctas {
            Cta::new(self, number).run(&mut steps)?;
        }
        Ok(())
    }
}

impl<'l> Cta<'l> {
    fn new(launch: &'l Launch<'l>, number: u32) -> Self {
        let program = launch.program;
        let n = program.threads as usize;
        let mut registers = vec![0xdead_beef_dead_beef; program.registers * n];
        for thread in 0..n {
            registers[THREAD * n + thread] = thread as u64;
        }
        registers[CTA * n..][..n].fill(u64::from(number));
        registers[CTAS * n..][..n].fill(u64::from(launch.ctas));
        for &(register, x) in &program.constants {
            registers[register * n..][..n].fill(x);
        }
        Cta {
            launch,
            number,
            at: vec![0; n],
            state: vec![State::Ready; n],
            registers,
            results: vec![0; n],
            shared: vec![0xa5; launch.shared_bytes],
            touched: vec![Touched::default(); launch.shared_bytes],
            epoch: 1,
            allocation: (0, 0),
        }
    }

    fn run(&mut self, steps: &mut u64) -> Result<(), String> {
        let mut spins = false;
        loop {
            let ready = || {
                let places = self.at.iter().zip(&self.state);
                places.filter(|p| *p.1 == State::Ready).map(|p| *p.0)
            };
            let (behind, ahead) = (ready().min(), ready().max());
            let (Some(behind), Some(ahead)) = (behind, ahead) else {
                let moved = self.shuffle()? | self.meet()?;
                if self.state.iter().all(|s| *s == State::Done) {
                    return Ok(());
                }
                if !moved {
                    return Err("threads wait for each other for ever".to_owned());
                }
                continue;
            };
            // Up to where others stand, to go on with them; those who spin are passed over for a turn.
            let (at, stop) = match spins {
                false => (behind, ready().filter(|&a| a > behind).min()),
                true => (ahead, None),
            };
            let active: Vec<usize> = (0..self.at.len())
                .filter(|&t| self.state[t] == State::Ready && self.at[t] == at)
                .collect();
            spins = !self.advance(active, at, stop.unwrap_or(usize::MAX), steps)?;
            if *steps > LIMIT {
                return Err(format!("not over after {LIMIT} instructions"));
            }
        }
    }

    /// Runs threads together until they part, stop or reach `stop`; false if their turn was over first.
    fn advance(
        &mut self,
        active: Vec<usize>,
        mut at: usize,
        stop: usize,
        steps: &mut u64,
    ) -> Result<bool, String> {
        let program = self.launch.program;
        let mut left = TURN;
        while at < stop && left > 0 {
            left -= 1;
            *steps += active.len() as u64;
            let i = program.code.get(at).ok_or("the code has no end")?;
            let (doing, not) = match i.guard {
                None => (None, vec![]),
                Some((predicate, wanted)) => {
                    let n = self.at.len();
                    let holds = |t: &usize| (self.registers[predicate * n + *t] & 1 == 1) == wanted;
                    let (doing, not): (Vec<_>, Vec<_>) = active.iter().partition(|t| holds(t));
                    (Some(doing), not)
                }
            };
            let doing = doing.as_ref().unwrap_or(&active);
            let (next, state) = match i.kind {
                Kind::Branch => (i.target, State::Ready),
                Kind::Return => (at, State::Done),
                Kind::Barrier => (at, State::Barrier),
                Kind::ShuffleDown => (at, State::Shuffle),
                _ => {
                    self.execute(i, doing).map_err(|(thread, what)| {
                        format!(
                            "thread {thread} of CTA {}: `{}`: {what}",
                            self.number, i.text
                        )
                    })?;
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
                return Ok(true);
            }
        }
        for &t in &active {
            self.at[t] = at;
        }
        Ok(left > 0)
    }

    /// All threads of the CTA at one barrier: on they go.
    fn meet(&mut self) -> Result<bool, String> {
        let count = |state| self.state.iter().filter(|s| **s == state).count();
        let (waiting, done) = (count(State::Barrier), count(State::Done));
        if waiting == 0 || waiting + done < self.state.len() {
            return Ok(false);
        }
        if done > 0 {
            return Err(format!(
                "{done} threads ended, and {waiting} wait at a barrier"
            ));
        }
        if self.at.iter().any(|&at| at != self.at[0]) {
            return Err("threads wait at different barriers".to_owned());
        }
        for (at, state) in self.at.iter_mut().zip(&mut self.state) {
            *at += 1;
            *state = State::Ready;
        }
        self.epoch += 1;
        Ok(true)
    }

    /// Warps whose threads are all at one shuffle exchange their values.
    fn shuffle(&mut self) -> Result<bool, String> {
        let n = self.at.len();
        let mut any = false;
        for first in (0..n).step_by(WARP) {
            if (self.state[first..first + WARP].iter()).any(|s| *s != State::Shuffle) {
                continue;
            }
            let at = self.at[first];
            if self.at[first..first + WARP].iter().any(|&a| a != at) {
                return Err("threads of a warp wait at different shuffles".to_owned());
            }
            any = true;
            let i = &self.launch.program.code[at];
            let to = i.to.ok_or_else(|| format!("`{}`", i.text))?;
            let [value, distance, _] = i.from;
            let values = self.registers[value * n + first..][..WARP].to_vec();
            for lane in 0..WARP {
                let from = lane + self.registers[distance * n + first + lane] as usize;
                // Past the end a lane keeps its own.
                let value = values.get(from).unwrap_or(&values[lane]) & 0xffff_ffff;
                self.registers[to * n + first + lane] = value;
                self.at[first + lane] += 1;
                self.state[first + lane] = State::Ready;
            }
        }
        Ok(any)
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
        let n = self.at.len();
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
        let n = self.at.len();
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

    fn register(&self, register: usize, thread: usize) -> u64 {
        self.registers[register * self.at.len() + thread]
    }

    // ---- memory -------------------------------------------------------------------------------------------

    fn load(
        &mut self,
        thread: usize,
        space: Space,
        address: u64,
        i: &Instruction,
        plain: bool,
    ) -> Result<u64, String> {
        let bytes = i.ty.bits() as usize / 8;
        self.check(thread, space, address, i, false, plain)?;
        let from = address as usize;
        let raw = match space {
            Space::Param => &self.launch.params[from..from + bytes],
            Space::Shared => &self.shared[from..from + bytes],
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
        let to = address as usize;
        let raw = value.to_le_bytes();
        match space {
            Space::Param => return Err("a store to the arguments".to_owned()),
            Space::Shared => self.shared[to..to + bytes].copy_from_slice(&raw[..bytes]),
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
            Space::Shared if end > self.shared.len() as u64 => {
                let len = self.shared.len();
                Err(format!("byte {address} of {len} shared ones"))
            }
            Space::Shared if plain => self.touch(thread, address as usize, bytes as usize, write),
            Space::Shared => Ok(()),
            Space::Global => {
                if !(self.allocation.0..self.allocation.1).contains(&address) {
                    let below = self.launch.allocations.range(..=address).next_back();
                    let outside = || format!("global address {address:#x} is in no allocation");
                    let (start, len) = below.ok_or_else(outside)?;
                    self.allocation = (*start, *start + *len as u64);
                }
                match end <= self.allocation.1 {
                    true => Ok(()),
                    false => Err(format!("global address {address:#x} is in no allocation")),
                }
            }
        }
    }

    fn touch(
        &mut self,
        thread: usize,
        from: usize,
        bytes: usize,
        write: bool,
    ) -> Result<(), String> {
        let me = thread as u16 + 1;
        let touched = &mut self.touched[from..from + bytes];
        let known = |byte: &Touched| {
            byte.epoch == self.epoch && byte.writer == 0 && [me, u16::MAX].contains(&byte.reader)
        };
        // The usual case: it reads again what threads only read.
        if !write && touched.iter().all(known) {
            return Ok(());
        }
        for (i, byte) in touched.iter_mut().enumerate() {
            if byte.epoch != self.epoch {
                *byte = Touched {
                    epoch: self.epoch,
                    ..Touched::default()
                };
            }
            let other_wrote = byte.writer != 0 && byte.writer != me;
            let other_read = byte.reader != 0 && byte.reader != me;
            if other_wrote || (write && other_read) {
                return Err(format!(
                    "shared byte {} without a barrier since thread {} {} it",
                    from + i,
                    i32::from(if other_wrote {
                        byte.writer
                    } else {
                        byte.reader
                    }) - 1,
                    if other_wrote { "wrote" } else { "read" },
                ));
            }
            if write {
                byte.writer = me;
            } else {
                byte.reader = if byte.reader == 0 || byte.reader == me {
                    me
                } else {
                    u16::MAX
                };
            }
        }
        Ok(())
    }
}

fn space_of(text: &str) -> Space {
    if text.contains(".shared") {
        Space::Shared
    } else {
        Space::Global
    }
}
