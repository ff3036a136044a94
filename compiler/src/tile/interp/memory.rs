//! Tiles and tensors as the interpreter holds them: elements, which of them are set, who wrote and read them.

use super::words::{Words, both_widths};
use crate::tile::ir::Type;
use crate::tile::verify::MAX_RANK;
use std::collections::HashMap;
use tessera_artifact::{DType, ParamMode};

/// An integer that depends affinely on the coordinates of a box of lanes (the last axis fastest).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    pub base: i64,
    pub steps: [i64; MAX_RANK],
}

impl Affine {
    pub fn constant(base: i64) -> Affine {
        Affine {
            base,
            steps: [0; MAX_RANK],
        }
    }

    /// Least and greatest value over the box, which is not empty.
    pub fn range(&self, dims: &[usize]) -> (i128, i128) {
        let (mut lo, mut hi) = (self.base as i128, self.base as i128);
        for (&step, &n) in self.steps.iter().zip(dims) {
            let reach = step as i128 * (n as i128 - 1);
            if reach < 0 { lo += reach } else { hi += reach }
        }
        (lo, hi)
    }

    pub fn map(&self, f: impl Fn(i64) -> Option<i64>) -> Option<Affine> {
        let mut steps = [0; MAX_RANK];
        for (to, &from) in steps.iter_mut().zip(&self.steps) {
            *to = f(from)?;
        }
        Some(Affine {
            base: f(self.base)?,
            steps,
        })
    }

    pub fn zip(&self, other: &Affine, f: impl Fn(i64, i64) -> Option<i64>) -> Option<Affine> {
        let mut steps = [0; MAX_RANK];
        for (i, to) in steps.iter_mut().enumerate() {
            *to = f(self.steps[i], other.steps[i])?;
        }
        Some(Affine {
            base: f(self.base, other.base)?,
            steps,
        })
    }

    /// Calls `f(first lane, value there, step, lanes)` for the longest runs of lanes whose values are equally spaced.
    pub fn for_each_run<E>(
        &self,
        dims: &[usize],
        mut f: impl FnMut(usize, i64, i64, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        if dims.contains(&0) {
            return Ok(());
        }
        let (mut rank, mut len, mut step) = (dims.len(), 1, 0);
        while rank > 0 {
            let (n, s) = (dims[rank - 1], self.steps[rank - 1]);
            if n != 1 {
                if len == 1 {
                    step = s;
                } else if s != step * len as i64 {
                    break;
                }
                len *= n;
            }
            rank -= 1;
        }
        let mut at = [0usize; MAX_RANK];
        let (mut lane, mut value) = (0, self.base);
        loop {
            f(lane, value, step, len)?;
            lane += len;
            let mut axis = rank;
            loop {
                if axis == 0 {
                    return Ok(());
                }
                axis -= 1;
                at[axis] += 1;
                value += self.steps[axis];
                if at[axis] < dims[axis] {
                    break;
                }
                value -= self.steps[axis] * at[axis] as i64;
                at[axis] = 0;
            }
        }
    }

    pub fn column(&self, dims: &[usize]) -> Vec<u64> {
        let mut out = Vec::with_capacity(dims.iter().product());
        let done: Result<(), ()> = self.for_each_run(dims, |_, value, step, len| {
            out.extend((0..len as i64).map(|i| (value + i * step) as u64));
            Ok(())
        });
        debug_assert!(done.is_ok());
        out
    }
}

/// Where in memory the lanes' elements are; all inside.
#[derive(Clone, Debug)]
pub enum Offsets {
    Affine(Affine, Vec<usize>),
    Column(Vec<usize>),
    /// Lanes where the mask is 0 touch nothing; their offset means nothing.
    Masked(Vec<usize>, Vec<u8>),
}

impl Offsets {
    /// `len` elements from `start`, `step` apart.
    pub fn run(start: i64, step: i64, len: usize) -> Offsets {
        let mut steps = [0; MAX_RANK];
        steps[0] = step;
        Offsets::Affine(Affine { base: start, steps }, vec![len])
    }

    pub fn lanes(&self) -> usize {
        match self {
            Offsets::Affine(_, dims) => dims.iter().product(),
            Offsets::Column(o) | Offsets::Masked(o, _) => o.len(),
        }
    }

    /// Calls `f(lane, offset)` for every lane that touches memory.
    pub fn for_each<E>(&self, mut f: impl FnMut(usize, usize) -> Result<(), E>) -> Result<(), E> {
        match self {
            Offsets::Affine(a, dims) => a.for_each_run(dims, |lane, value, step, len| {
                (0..len).try_for_each(|i| f(lane + i, (value + i as i64 * step) as usize))
            }),
            Offsets::Column(o) => o.iter().enumerate().try_for_each(|(lane, &o)| f(lane, o)),
            Offsets::Masked(o, mask) => o
                .iter()
                .zip(mask)
                .enumerate()
                .filter(|(_, (_, m))| **m != 0)
                .try_for_each(|(lane, (&o, _))| f(lane, o)),
        }
    }
}

/// Elements at `offsets`; masked lanes give 0.
pub fn gather(memory: &Words, ty: Type, offsets: &Offsets) -> Words {
    match offsets {
        Offsets::Affine(affine, dims) => {
            let mut out = Words::zeros(ty, offsets.lanes());
            both_widths!(&mut out, memory, to, from => {
                let done: Result<(), ()> = affine.for_each_run(dims, |lane, value, step, len| {
                    let value = value as usize;
                    match step {
                        1 => to[lane..lane + len].copy_from_slice(&from[value..value + len]),
                        0 => to[lane..lane + len].fill(from[value]),
                        _ => {
                            for (i, x) in to[lane..lane + len].iter_mut().enumerate() {
                                *x = from[(value as i64 + i as i64 * step) as usize];
                            }
                        }
                    }
                    Ok(())
                });
                debug_assert!(done.is_ok());
            });
            out
        }
        Offsets::Column(o) => match memory {
            Words::W8(m) => Words::W8(o.iter().map(|&o| m[o]).collect()),
            Words::W16(m) => Words::W16(o.iter().map(|&o| m[o]).collect()),
            Words::W32(m) => Words::W32(o.iter().map(|&o| m[o]).collect()),
            Words::W64(m) => Words::W64(o.iter().map(|&o| m[o]).collect()),
        },
        Offsets::Masked(o, mask) => {
            let mut out = Words::zeros(ty, o.len());
            both_widths!(&mut out, memory, to, from => {
                for ((x, &o), &m) in to.iter_mut().zip(o).zip(mask) {
                    if m != 0 {
                        *x = from[o];
                    }
                }
            });
            out
        }
    }
}

pub fn scatter(memory: &mut Words, offsets: &Offsets, values: &Words) {
    both_widths!(memory, values, to, from => {
        match offsets {
            Offsets::Affine(affine, dims) => {
                let done: Result<(), ()> = affine.for_each_run(dims, |lane, value, step, len| {
                    let start = value as usize;
                    if step == 1 {
                        to[start..start + len].copy_from_slice(&from[lane..lane + len]);
                    } else {
                        for i in 0..len {
                            to[(value + i as i64 * step) as usize] = from[lane + i];
                        }
                    }
                    Ok(())
                });
                debug_assert!(done.is_ok());
            }
            Offsets::Column(o) => o.iter().zip(from).for_each(|(&o, &x)| to[o] = x),
            Offsets::Masked(o, mask) => {
                for ((&o, &x), &m) in o.iter().zip(from).zip(mask) {
                    if m != 0 {
                        to[o] = x;
                    }
                }
            }
        }
    });
}

/// Which elements have a value.
#[derive(Clone, Debug)]
pub struct Set {
    set: Vec<u8>,
    missing: usize,
}

impl Set {
    pub fn new(n: usize, set: bool) -> Set {
        Set {
            set: vec![set as u8; n],
            missing: if set { 0 } else { n },
        }
    }

    /// The first of the elements that has no value.
    fn check(&self, offsets: &Offsets) -> Result<(), usize> {
        if self.missing == 0 {
            return Ok(());
        }
        if let Offsets::Affine(a, dims) = offsets {
            return a.for_each_run(dims, |_, value, step, len| {
                let start = value as usize;
                if step == 1 && !self.set[start..start + len].contains(&0) {
                    return Ok(());
                }
                let at = |i: usize| (value + i as i64 * step) as usize;
                (0..len)
                    .map(at)
                    .find(|&o| self.set[o] == 0)
                    .map_or(Ok(()), Err)
            });
        }
        offsets.for_each(|_, o| if self.set[o] == 0 { Err(o) } else { Ok(()) })
    }

    fn add(&mut self, offsets: &Offsets) {
        if self.missing == 0 {
            return;
        }
        let mut found = 0;
        let done: Result<(), ()> = match offsets {
            Offsets::Affine(a, dims) => a.for_each_run(dims, |_, value, step, len| {
                let start = value as usize;
                if step == 1 {
                    let run = &mut self.set[start..start + len];
                    found += run.iter().filter(|&&s| s == 0).count();
                    run.fill(1);
                } else {
                    for i in 0..len {
                        let s = &mut self.set[(value + i as i64 * step) as usize];
                        found += (*s == 0) as usize;
                        *s = 1;
                    }
                }
                Ok(())
            }),
            _ => offsets.for_each(|_, o| {
                found += (self.set[o] == 0) as usize;
                self.set[o] = 1;
                Ok(())
            }),
        };
        debug_assert!(done.is_ok());
        self.missing -= found;
    }

    /// Takes the values of a range away again.
    pub fn remove(&mut self, range: std::ops::Range<usize>) {
        let run = &mut self.set[range];
        self.missing += run.iter().filter(|&&s| s != 0).count();
        run.fill(0);
    }
}

/// One tile of one agent.
#[derive(Clone, Debug)]
pub struct TileData {
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub words: Words,
    pub set: Set,
}

impl TileData {
    pub fn new(dtype: DType, shape: &[u64]) -> TileData {
        let n = shape.iter().product::<u64>() as usize;
        TileData {
            dtype,
            shape: shape.to_vec(),
            words: Words::zeros(Type::Scalar(dtype), n),
            set: Set::new(n, false),
        }
    }

    pub fn strides(&self) -> [i64; MAX_RANK] {
        row_major(&self.shape)
    }

    /// `Err`: the first element without a value.
    pub fn read(&self, offsets: &Offsets) -> Result<Words, usize> {
        self.set.check(offsets)?;
        Ok(gather(&self.words, Type::Scalar(self.dtype), offsets))
    }

    pub fn write(&mut self, offsets: &Offsets, values: &Words) {
        self.set.add(offsets);
        scatter(&mut self.words, offsets, values);
    }

    /// All elements in order.
    pub fn all(&self) -> Offsets {
        Offsets::run(0, 1, self.words.len())
    }

    /// Values for traces and prints; `None` where there is none.
    pub fn values(&self) -> Vec<Option<f64>> {
        let value = |i| tessera_artifact::numeric::to_f64(self.words.get(i), self.dtype);
        (0..self.words.len())
            .map(|i| (self.set.set[i] != 0).then(|| value(i)))
            .collect()
    }
}

pub fn row_major(shape: &[u64]) -> [i64; MAX_RANK] {
    let mut strides = [0; MAX_RANK];
    let mut step = 1;
    for axis in (0..shape.len()).rev() {
        strides[axis] = step;
        step *= shape[axis] as i64;
    }
    strides
}

/// The coordinates of element `offset` (relative to the first) of a tensor with these strides.
pub fn coordinates(offset: i64, shape: &[u64], strides: &[i64]) -> Vec<i64> {
    let mut axes: Vec<usize> = (0..shape.len()).filter(|&a| shape[a] > 1).collect();
    axes.sort_by_key(|&a| std::cmp::Reverse(strides[a].abs()));
    let mut at = vec![0; shape.len()];
    // A negative stride counts from the other end.
    let mut rest = offset
        - axes
            .iter()
            .map(|&a| {
                if strides[a] < 0 {
                    strides[a] * (shape[a] as i64 - 1)
                } else {
                    0
                }
            })
            .sum::<i64>();
    for &a in &axes {
        let step = strides[a].abs().max(1);
        at[a] = (rest / step).min(shape[a] as i64 - 1);
        rest -= at[a] * step;
        if strides[a] < 0 {
            at[a] = shape[a] as i64 - 1 - at[a];
        }
    }
    at
}

// ---- who did what -----------------------------------------------------------------------------------------

/// One thread of control whose memory accesses have an order: a CTA, a role of it, an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AgentId(pub u32);

/// What an agent has done and what it knows others have done: a sparse vector clock.
#[derive(Clone, Debug)]
pub struct Clock {
    pub agent: AgentId,
    pub now: u32,
    known: HashMap<u32, u32>,
}

impl Clock {
    pub fn new(agent: AgentId) -> Clock {
        Clock {
            agent,
            now: 1,
            known: HashMap::new(),
        }
    }

    /// Everything before here is visible to who acquires the result.
    pub fn release(&mut self) -> Stamp {
        let mut seen = self.known.clone();
        seen.insert(self.agent.0, self.now);
        self.now += 1;
        Stamp(seen)
    }

    pub fn acquire(&mut self, stamp: &Stamp) {
        for (&agent, &time) in &stamp.0 {
            let known = self.known.entry(agent).or_insert(0);
            *known = (*known).max(time);
        }
    }

    /// As another agent that has seen only what this one has seen of others by `base`.
    pub fn renamed(&self, agent: AgentId) -> Clock {
        Clock {
            agent,
            now: 1,
            known: self.known.clone(),
        }
    }

    fn has_seen(&self, event: Event) -> bool {
        event.agent == self.agent.0
            || self
                .known
                .get(&event.agent)
                .is_some_and(|&t| t >= event.time)
    }
}

/// What a release makes visible.
#[derive(Clone, Debug, Default)]
pub struct Stamp(HashMap<u32, u32>);

impl Stamp {
    pub fn join(&mut self, other: Stamp) {
        for (agent, time) in other.0 {
            let known = self.0.entry(agent).or_insert(0);
            *known = (*known).max(time);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Event {
    agent: u32,
    time: u32,
}

const NOBODY: Event = Event {
    agent: u32::MAX,
    time: 0,
};

/// Agent of an event for the report; `None`: more than one.
pub type Culprit = AgentId;

/// What is wrong with an access to a tensor element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Conflict {
    Unset,
    /// Another agent wrote it, and nothing orders the two.
    Written(Culprit),
    /// Another agent read it, and nothing orders the two.
    Read(Culprit),
    /// Scattered to before in this launch.
    Scattered(Culprit),
}

/// One tensor argument.
#[derive(Clone, Debug)]
pub struct Global {
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub strides: [i64; MAX_RANK],
    /// Element of the storage at which coordinate 0 lies.
    pub offset: i64,
    pub words: Words,
    set: Set,
    /// Per element of the storage, for tensors the kernel writes.
    writers: Vec<Event>,
    /// The last read of each element; only for tensors that are both read and written.
    readers: Vec<Event>,
    /// Reads by several agents, where the last one does not cover the ones before.
    more_readers: HashMap<usize, Vec<Event>>,
    atomic: Vec<u8>,
    scattered: Vec<u8>,
    /// Release stamps of the elements of `flags`.
    pub stamps: HashMap<usize, Stamp>,
}

/// How the kernel uses a tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    pub read: bool,
    pub written: bool,
    pub atomic: bool,
    pub scattered: bool,
}

impl Global {
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        mode: ParamMode,
        dtype: DType,
        shape: &[u64],
        strides: &[i64],
        offset: i64,
        words: Words,
        how: Use,
    ) -> Global {
        let n = words.len();
        let mut all = [0; MAX_RANK];
        all[..strides.len()].copy_from_slice(strides);
        let if_used = |used: bool| if used { n } else { 0 };
        Global {
            dtype,
            shape: shape.to_vec(),
            strides: all,
            offset,
            words,
            set: Set::new(n, !matches!(mode, ParamMode::Out | ParamMode::Scratch)),
            writers: vec![NOBODY; if_used(how.written)],
            readers: vec![NOBODY; if_used(how.written && how.read)],
            more_readers: HashMap::new(),
            atomic: vec![0; if_used(how.atomic)],
            scattered: vec![0; if_used(how.scattered)],
            stamps: HashMap::new(),
        }
    }

    pub fn read(&mut self, clock: &Clock, offsets: &Offsets) -> Result<Words, (usize, Conflict)> {
        self.set.check(offsets).map_err(|o| (o, Conflict::Unset))?;
        if !self.writers.is_empty() {
            offsets.for_each(|_, o| self.note_read(clock, o).map_err(|c| (o, c)))?;
        }
        Ok(gather(&self.words, Type::Scalar(self.dtype), offsets))
    }

    pub fn write(
        &mut self,
        clock: &Clock,
        offsets: &Offsets,
        values: &Words,
        scattered: bool,
    ) -> Result<(), (usize, Conflict)> {
        offsets.for_each(|_, o| self.note_write(clock, o, scattered).map_err(|c| (o, c)))?;
        self.set.add(offsets);
        scatter(&mut self.words, offsets, values);
        Ok(())
    }

    /// One atomic update; `f` gives the new bits.
    pub fn update(
        &mut self,
        clock: &Clock,
        offset: usize,
        f: impl FnOnce(u64) -> u64,
    ) -> Result<(), (usize, Conflict)> {
        let one = Offsets::Column(vec![offset]);
        self.set.check(&one).map_err(|o| (o, Conflict::Unset))?;
        let before = self.writers[offset];
        let others_atomic = self.atomic[offset] != 0;
        if before != NOBODY && !others_atomic && !clock.has_seen(before) {
            return Err((offset, Conflict::Written(AgentId(before.agent))));
        }
        self.note_readers_seen(clock, offset)
            .map_err(|c| (offset, c))?;
        self.atomic[offset] = 1;
        self.writers[offset] = Event {
            agent: clock.agent.0,
            time: clock.now,
        };
        let bits = f(self.words.get(offset));
        self.words.set(offset, bits);
        Ok(())
    }

    fn note_read(&mut self, clock: &Clock, o: usize) -> Result<(), Conflict> {
        let writer = self.writers[o];
        if writer != NOBODY && !clock.has_seen(writer) {
            return Err(Conflict::Written(AgentId(writer.agent)));
        }
        let me = Event {
            agent: clock.agent.0,
            time: clock.now,
        };
        if let Some(last) = self.readers.get_mut(o) {
            if *last != NOBODY && last.agent != me.agent && !clock.has_seen(*last) {
                self.more_readers.entry(o).or_default().push(*last);
            }
            *last = me;
        }
        Ok(())
    }

    fn note_readers_seen(&mut self, clock: &Clock, o: usize) -> Result<(), Conflict> {
        let Some(&last) = self.readers.get(o) else {
            return Ok(());
        };
        let earlier = self.more_readers.get(&o).into_iter().flatten();
        let unseen = earlier
            .chain([&last])
            .find(|&&r| r != NOBODY && !clock.has_seen(r));
        unseen.map_or(Ok(()), |r| Err(Conflict::Read(AgentId(r.agent))))
    }

    fn note_write(&mut self, clock: &Clock, o: usize, scattered: bool) -> Result<(), Conflict> {
        let writer = self.writers[o];
        if scattered && std::mem::replace(&mut self.scattered[o], 1) != 0 {
            return Err(Conflict::Scattered(AgentId(writer.agent)));
        }
        if writer != NOBODY && writer.agent != clock.agent.0 && !clock.has_seen(writer) {
            return Err(Conflict::Written(AgentId(writer.agent)));
        }
        self.note_readers_seen(clock, o)?;
        if let Some(a) = self.atomic.get_mut(o) {
            *a = 0;
        }
        self.writers[o] = Event {
            agent: clock.agent.0,
            time: clock.now,
        };
        Ok(())
    }

    /// The coordinates of an element of the storage.
    pub fn coordinates(&self, offset: usize) -> Vec<i64> {
        coordinates(offset as i64 - self.offset, &self.shape, &self.strides)
    }
}
