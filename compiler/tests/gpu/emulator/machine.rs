//! Runs a program CTA by CTA, thread after thread up to the next barrier, and holds it to rules that a GPU does not check: no access
//! outside an allocation, no two threads at one byte of shared memory between barriers unless both read, every thread at the same
//! barrier, no address that is not a multiple of the access.

use super::alu;
use super::ptx::{Instruction, Kind, Operand, Program, Rmw, Space, Ty};
use std::collections::BTreeMap;

const WARP: usize = 32;
/// Of all threads of a launch together: beyond it, it hangs.
const LIMIT: u64 = 20_000_000_000;
/// A thread that spins lets the others go on after so many instructions.
const TURN: u64 = 1_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    Barrier,
    Shuffle,
    Done,
}

struct Thread {
    at: usize,
    registers: Vec<u64>,
    state: State,
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
    threads: Vec<Thread>,
    shared: Vec<u8>,
    touched: Vec<Touched>,
    epoch: u32,
}

impl Launch<'_> {
    pub fn run(&self) -> Result<u64, String> {
        let words = self.params.len();
        if words < self.program.param_bytes {
            return Err(format!(
                "{words} bytes of arguments for {}",
                self.program.param_bytes
            ));
        }
        let mut steps = 0;
        for number in 0..self.ctas {
            let threads = (0..self.program.threads)
                .map(|_| Thread {
                    at: 0,
                    registers: vec![0xdead_beef_dead_beef; self.program.registers],
                    state: State::Ready,
                })
                .collect();
            let mut cta = Cta {
                launch: self,
                number,
                threads,
                shared: vec![0xa5; self.shared_bytes],
                touched: vec![Touched::default(); self.shared_bytes],
                epoch: 1,
            };
            cta.run(&mut steps)?;
        }
        Ok(steps)
    }
}

impl Cta<'_> {
    fn run(&mut self, steps: &mut u64) -> Result<(), String> {
        loop {
            let mut moved = false;
            for thread in 0..self.threads.len() {
                if self.threads[thread].state == State::Ready {
                    moved = true;
                    self.turn(thread, steps)?;
                }
            }
            moved |= self.shuffle()?;
            moved |= self.meet()?;
            if self.threads.iter().all(|t| t.state == State::Done) {
                return Ok(());
            }
            if !moved {
                return Err("threads wait for each other for ever".to_owned());
            }
            if *steps > LIMIT {
                return Err(format!("not over after {LIMIT} instructions"));
            }
        }
    }

    fn turn(&mut self, thread: usize, steps: &mut u64) -> Result<(), String> {
        let program = self.launch.program;
        let mut left = TURN;
        while self.threads[thread].state == State::Ready && left > 0 {
            left -= 1;
            *steps += 1;
            let at = self.threads[thread].at;
            let Some(instruction) = program.code.get(at) else {
                return Err("the code has no end".to_owned());
            };
            self.step(thread, instruction).map_err(|what| {
                format!(
                    "thread {thread} of CTA {}: `{}`: {what}",
                    self.number, instruction.text
                )
            })?;
        }
        Ok(())
    }

    /// All threads of the CTA at one barrier: on they go.
    fn meet(&mut self) -> Result<bool, String> {
        let waiting = self
            .threads
            .iter()
            .filter(|t| t.state == State::Barrier)
            .count();
        let done = self
            .threads
            .iter()
            .filter(|t| t.state == State::Done)
            .count();
        if waiting == 0 || waiting + done < self.threads.len() {
            return Ok(false);
        }
        if done > 0 {
            return Err(format!(
                "{done} threads ended, and {waiting} wait at a barrier"
            ));
        }
        let at = self.threads[0].at;
        if self.threads.iter().any(|t| t.at != at) {
            return Err("threads wait at different barriers".to_owned());
        }
        for thread in &mut self.threads {
            thread.at += 1;
            thread.state = State::Ready;
        }
        self.epoch += 1;
        Ok(true)
    }

    /// Warps whose threads are all at one shuffle exchange their values.
    fn shuffle(&mut self) -> Result<bool, String> {
        let mut any = false;
        for first in (0..self.threads.len()).step_by(WARP) {
            let warp = &self.threads[first..first + WARP];
            if warp.iter().any(|t| t.state != State::Shuffle) {
                continue;
            }
            let at = warp[0].at;
            if warp.iter().any(|t| t.at != at) {
                return Err("threads of a warp wait at different shuffles".to_owned());
            }
            any = true;
            let instruction = &self.launch.program.code[at];
            let &[Operand::Register(to), value, distance, ..] = &instruction.operands[..] else {
                return Err(format!("`{}`", instruction.text));
            };
            let values: Vec<u64> = (first..first + WARP).map(|t| self.read(t, value)).collect();
            for lane in 0..WARP {
                let from = lane + self.read(first + lane, distance) as usize;
                // Past the end a lane keeps its own.
                let value = values.get(from).unwrap_or(&values[lane]) & 0xffff_ffff;
                let thread = &mut self.threads[first + lane];
                thread.registers[to] = value;
                thread.at += 1;
                thread.state = State::Ready;
            }
        }
        Ok(any)
    }

    fn read(&self, thread: usize, operand: Operand) -> u64 {
        match operand {
            Operand::Register(r) => self.threads[thread].registers[r],
            Operand::Immediate(x) => x,
            Operand::Thread => thread as u64,
            Operand::Cta => u64::from(self.number),
            Operand::Ctas => u64::from(self.launch.ctas),
            Operand::Memory { base, offset } => {
                let base = base.map_or(0, |b| self.threads[thread].registers[b]);
                base.wrapping_add(offset as u64)
            }
            Operand::Label(_) => 0,
        }
    }

    fn step(&mut self, thread: usize, i: &Instruction) -> Result<(), String> {
        let go = match i.guard {
            Some((predicate, wanted)) => {
                (self.threads[thread].registers[predicate] & 1 == 1) == wanted
            }
            None => true,
        };
        if !go {
            self.threads[thread].at += 1;
            return Ok(());
        }
        let v = |n: usize| match i.operands.get(n) {
            Some(&operand) => self.read(thread, operand),
            None => 0,
        };
        let mut next = self.threads[thread].at + 1;
        let mut result = None;
        match i.kind {
            Kind::Branch => match i.operands.first() {
                Some(Operand::Label(label)) => next = *label,
                _ => return Err("no label".to_owned()),
            },
            Kind::Return => {
                self.threads[thread].state = State::Done;
                return Ok(());
            }
            Kind::Barrier => {
                self.threads[thread].state = State::Barrier;
                return Ok(());
            }
            Kind::ShuffleDown => {
                self.threads[thread].state = State::Shuffle;
                return Ok(());
            }
            Kind::Fence => {}
            Kind::Set(op) => result = Some(u64::from(alu::compare(op, i.ty, v(1), v(2)))),
            Kind::Select => result = Some(if v(3) & 1 == 1 { v(1) } else { v(2) }),
            Kind::Move => result = Some(v(1) & alu::mask(i.ty.bits())),
            Kind::Convert(from, round) => result = Some(alu::convert(i.ty, from, round, v(1))?),
            Kind::Load(space) => {
                let bits = self.load(thread, space, v(1), i.ty, true)?;
                result = Some(alu::extend(bits, i.ty));
            }
            Kind::Store(space) => self.store(thread, space, v(0), i.ty, v(1), true)?,
            Kind::Atomic(op) => {
                let (address, value) = match i.operands.len() {
                    2 => (v(0), v(1)),
                    _ => (v(1), v(2)),
                };
                let space = space_of(&i.text);
                let old = self.load(thread, space, address, i.ty, false)?;
                let kind = match op {
                    Rmw::Add => Kind::Add,
                    Rmw::And => Kind::And,
                    Rmw::Or => Kind::Or,
                    Rmw::Max => Kind::Max,
                    Rmw::Min => Kind::Min,
                };
                let new = alu::compute(kind, i.ty, &[old, value])?;
                self.store(thread, space, address, i.ty, new, false)?;
                if i.operands.len() > 2 {
                    result = Some(old);
                }
            }
            Kind::Exchange => {
                let (address, expected, new) = (v(1), v(2), v(3));
                let space = space_of(&i.text);
                let old = self.load(thread, space, address, i.ty, false)?;
                if old == expected & alu::mask(i.ty.bits()) {
                    self.store(thread, space, address, i.ty, new, false)?;
                }
                result = Some(old);
            }
            kind if i.ty == Ty::Pred => {
                result = Some(alu::compute(kind, Ty::U(1), &[v(1), v(2)])? & 1);
            }
            kind => result = Some(alu::compute(kind, i.ty, &[v(1), v(2), v(3)])?),
        }
        let thread = &mut self.threads[thread];
        thread.at = next;
        if let Some(result) = result {
            match i.operands.first() {
                Some(&Operand::Register(to)) => thread.registers[to] = result,
                _ => return Err("no register for the result".to_owned()),
            }
        }
        Ok(())
    }

    // ---- memory -------------------------------------------------------------------------------------------

    fn load(
        &mut self,
        thread: usize,
        space: Space,
        address: u64,
        ty: Ty,
        plain: bool,
    ) -> Result<u64, String> {
        let bytes = ty.bits() as usize / 8;
        self.check(thread, space, address, bytes, false, plain)?;
        let mut raw = [0u8; 8];
        match space {
            Space::Param => {
                let from = address as usize;
                raw[..bytes].copy_from_slice(&self.launch.params[from..from + bytes]);
            }
            Space::Shared => {
                let from = address as usize;
                raw[..bytes].copy_from_slice(&self.shared[from..from + bytes]);
            }
            // SAFETY: `check` found the bytes in an allocation, which lives through the launch.
            Space::Global => unsafe {
                std::ptr::copy_nonoverlapping(address as *const u8, raw.as_mut_ptr(), bytes);
            },
        }
        Ok(u64::from_le_bytes(raw))
    }

    fn store(
        &mut self,
        thread: usize,
        space: Space,
        address: u64,
        ty: Ty,
        value: u64,
        plain: bool,
    ) -> Result<(), String> {
        let bytes = ty.bits() as usize / 8;
        self.check(thread, space, address, bytes, true, plain)?;
        let raw = value.to_le_bytes();
        match space {
            Space::Param => return Err("a store to the arguments".to_owned()),
            Space::Shared => {
                let to = address as usize;
                self.shared[to..to + bytes].copy_from_slice(&raw[..bytes]);
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
        bytes: usize,
        write: bool,
        plain: bool,
    ) -> Result<(), String> {
        if !address.is_multiple_of(bytes as u64) {
            return Err(format!("address {address:#x} is no multiple of {bytes}"));
        }
        let inside = |len: usize| {
            address
                .checked_add(bytes as u64)
                .is_some_and(|e| e <= len as u64)
        };
        match space {
            Space::Param => match inside(self.launch.params.len()) {
                true => Ok(()),
                false => Err(format!("argument byte {address}")),
            },
            Space::Shared => {
                if !inside(self.shared.len()) {
                    return Err(format!(
                        "byte {address} of {} shared ones",
                        self.shared.len()
                    ));
                }
                match plain {
                    true => self.touch(thread, address as usize, bytes, write),
                    false => Ok(()),
                }
            }
            Space::Global => {
                let below = self.launch.allocations.range(..=address).next_back();
                let found =
                    below.is_some_and(|(start, len)| address - start + bytes as u64 <= *len as u64);
                match found {
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
        for (i, byte) in self.touched[from..from + bytes].iter_mut().enumerate() {
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
