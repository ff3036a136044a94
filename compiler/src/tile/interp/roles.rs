//! Who runs when: CTAs, roles, items, channels, flags.
//!
//! Every agent is a stack of frames that goes on until it is done or must wait; who goes on next is drawn from the seed. A role
//! network is a Kahn network, so the order cannot change what it computes; that CTAs and items may come in any order is what
//! [`super::memory`] checks. Items of a persistent launch start from the tiles as they were before the first item, so that what one
//! leaves behind cannot reach the next.

use super::error::{ErrorKind, InterpError};
use super::map::Lanes;
use super::memory::{AgentId, Clock, Stamp, TileData};
use super::{Agent, Options, Run, Step};
use crate::tile::ir::*;

/// Where an agent is in one block.
pub struct Frame {
    block: BlockId,
    next: usize,
    kind: FrameKind,
    /// Slots bound in this block, given back at its end.
    bound: Vec<TileId>,
}

enum FrameKind {
    Once,
    For {
        i: i64,
        hi: i64,
    },
    Items {
        rest: Vec<i64>,
        before: Box<Snapshot>,
    },
}

/// What an item starts from.
struct Snapshot {
    tiles: Vec<Option<TileData>>,
    clock: Clock,
}

/// Who reads and writes each channel.
pub struct Network {
    roles: Vec<OpId>,
    /// Copies of roles that get from each channel.
    readers: Vec<usize>,
}

impl Network {
    pub fn of(kernel: &Kernel) -> Network {
        let is_role = |op: &OpId| matches!(kernel.op(*op).kind, OpKind::Role { .. });
        let roles: Vec<OpId> = kernel
            .block(kernel.body)
            .ops
            .iter()
            .copied()
            .filter(is_role)
            .collect();
        let mut readers = vec![0; kernel.channels.len()];
        for &role in &roles {
            let OpKind::Role { copies, body, .. } = &kernel.op(role).kind else {
                continue;
            };
            let mut gets = vec![false; kernel.channels.len()];
            kernel.walk(*body, &mut |_, op| {
                if let OpKind::Get { channel, .. } = &kernel.op(op).kind {
                    gets[channel.index()] = true;
                }
            });
            for (n, got) in readers.iter_mut().zip(gets) {
                *n += if got { *copies as usize } else { 0 };
            }
        }
        Network { roles, readers }
    }
}

/// One tile on its way through a channel.
struct Entry {
    data: TileData,
    stamp: Stamp,
    /// Readers that have not given it back.
    left: usize,
}

/// The channels of one CTA.
pub struct Cta {
    agents: Vec<Agent>,
    /// By channel, in the order of their puts.
    entries: Vec<Vec<Entry>>,
    /// By ring (its first channel): all puts in order.
    rings: Vec<Vec<(ChannelId, usize)>>,
}

type Result<T> = std::result::Result<T, ErrorKind>;

impl<'k> Run<'k> {
    pub fn launch(&mut self, options: &Options) -> std::result::Result<(), InterpError> {
        let total = self.grid.iter().product::<i64>();
        if total <= 0 {
            return Ok(());
        }
        let persistent = self.kernel.launch.persistent;
        let ctas = if persistent {
            total.min(options.persistent_ctas.max(1) as i64)
        } else {
            total
        };
        let mut order: Vec<i64> = (0..ctas).collect();
        if options.seed != 0 {
            for i in (1..order.len()).rev() {
                let j = self.random.below(i + 1);
                order.swap(i, j);
            }
        }
        // CTAs that wait for a flag of one that has not run yet.
        let mut waiting: Vec<Cta> = Vec::new();
        for cta in order {
            let items = if persistent {
                (cta..total).step_by(ctas as usize).collect()
            } else {
                Vec::new()
            };
            let mut cta = self.new_cta(cta, items);
            if !self.run_cta(&mut cta)? {
                waiting.push(cta);
            }
            self.wake(&mut waiting)?;
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let agents = waiting
            .iter()
            .flat_map(|c| c.agents.iter().map(move |a| (c, a)));
        let lines = agents
            .filter(|(_, a)| !a.frames.is_empty())
            .map(|(c, a)| self.waits_for(c, a))
            .collect();
        let span = waiting
            .iter()
            .flat_map(|c| &c.agents)
            .find_map(|a| self.current(a))
            .map(|op| self.kernel.op(op).span);
        Err(InterpError {
            kind: ErrorKind::Deadlock(lines),
            span: span.unwrap_or(self.kernel.span),
            place: String::new(),
        })
    }

    /// Runs waiting CTAs until none of them gets further.
    fn wake(&mut self, waiting: &mut Vec<Cta>) -> std::result::Result<(), InterpError> {
        loop {
            let before: usize = waiting.len();
            let signals = self.signals;
            let mut still = Vec::new();
            for mut cta in std::mem::take(waiting) {
                if !self.run_cta(&mut cta)? {
                    still.push(cta);
                }
            }
            *waiting = still;
            if waiting.is_empty() || (waiting.len() == before && self.signals == signals) {
                return Ok(());
            }
        }
    }

    fn new_cta(&mut self, linear: i64, items: Vec<i64>) -> Cta {
        let name = if self.kernel.launch.persistent
            || self.grid == [1, 1, 1] && self.network.roles.is_empty()
        {
            format!("CTA {linear}")
        } else {
            let at = self.unravel(linear);
            let axes = self.kernel.launch.grid.len();
            if axes == 1 {
                format!("CTA {linear}")
            } else {
                format!("CTA {:?}", &at[..axes])
            }
        };
        let k = self.kernel;
        let id = self.new_agent_id(name.clone());
        let agent = Agent {
            clock: Clock::new(id),
            name,
            block: if k.launch.persistent {
                [0; 3]
            } else {
                self.unravel(linear)
            },
            values: vec![0; k.values.len()],
            lanes: vec![Lanes::Outside; k.values.len()],
            tiles: vec![None; k.tiles.len()],
            frames: vec![Frame {
                block: k.body,
                next: 0,
                kind: FrameKind::Once,
                bound: Vec::new(),
            }],
            cursors: vec![0; k.channels.len()],
            held: Vec::new(),
            role: None,
            items,
        };
        Cta {
            agents: vec![agent],
            entries: k.channels.iter().map(|_| Vec::new()).collect(),
            rings: k.channels.iter().map(|_| Vec::new()).collect(),
        }
    }

    fn unravel(&self, linear: i64) -> [i64; 3] {
        let [a, b, _] = self.grid;
        [linear % a, linear / a % b, linear / a / b]
    }

    /// Whether every agent is done.
    fn run_cta(&mut self, cta: &mut Cta) -> std::result::Result<bool, InterpError> {
        loop {
            let mut progress = false;
            let mut order: Vec<usize> = (0..cta.agents.len()).collect();
            for i in (1..order.len()).rev() {
                let j = self.random.below(i + 1);
                order.swap(i, j);
            }
            for i in order {
                // An agent stands outside its CTA while it runs, so that both can be changed.
                let mut agent = std::mem::replace(&mut cta.agents[i], Agent::idle());
                let done = self.run_agent(&mut agent, cta);
                let moved = done.map_err(|kind| self.locate_error(&agent, kind))?;
                cta.agents[i] = agent;
                progress |= moved;
            }
            if cta.agents.iter().all(|a| a.frames.is_empty()) {
                return Ok(true);
            }
            if !progress {
                return Ok(false);
            }
        }
    }

    fn locate_error(&mut self, agent: &Agent, kind: ErrorKind) -> InterpError {
        let op = self.blame.take().or_else(|| self.current(agent));
        let span = op.map_or(self.kernel.span, |op| self.kernel.op(op).span);
        let place = self
            .agents
            .get(agent.clock.agent.0 as usize)
            .cloned()
            .unwrap_or_default();
        InterpError { kind, span, place }
    }

    /// The op an agent stands before.
    fn current(&self, agent: &Agent) -> Option<OpId> {
        let frame = agent.frames.last()?;
        self.kernel.block(frame.block).ops.get(frame.next).copied()
    }

    /// Goes on until the agent is done or must wait; whether anything happened.
    fn run_agent(&mut self, agent: &mut Agent, cta: &mut Cta) -> Result<bool> {
        let mut progress = false;
        // A role runs a drawn number of ops, so that roles interleave in many ways.
        let mut budget = if agent.role.is_some() {
            1 + self.random.below(16)
        } else {
            usize::MAX
        };
        while let Some(frame) = agent.frames.last() {
            let ops = &self.kernel.block(frame.block).ops;
            let Some(&op) = ops.get(frame.next) else {
                self.end_of_block(agent, cta)?;
                progress = true;
                continue;
            };
            if budget == 0 {
                return Ok(true);
            }
            match self.step(agent, cta, op)? {
                Step::Blocked => return Ok(progress),
                Step::Done => progress = true,
            }
            budget -= 1;
        }
        Ok(progress)
    }

    fn end_of_block(&mut self, agent: &mut Agent, cta: &mut Cta) -> Result<()> {
        let bound = match agent.frames.last_mut() {
            Some(frame) => std::mem::take(&mut frame.bound),
            None => return Ok(()),
        };
        for tile in bound {
            self.release(agent, cta, tile);
            self.poison(agent, tile, 0, 1);
        }
        let Some(frame) = agent.frames.last_mut() else {
            return Ok(());
        };
        let block = self.kernel.block(frame.block);
        match &mut frame.kind {
            FrameKind::Once => {
                agent.frames.pop();
            }
            FrameKind::For { i, hi } => {
                *i += 1;
                if *i < *hi {
                    frame.next = 0;
                    agent.values[block.args[0].index()] = *i as u64;
                } else {
                    agent.frames.pop();
                }
            }
            FrameKind::Items { rest, before } => match rest.pop() {
                Some(item) => {
                    agent.tiles = before.tiles.clone();
                    let clock = before.clock.clone();
                    frame.next = 0;
                    self.enter_item(agent, clock, item);
                }
                None => {
                    agent.tiles = before.tiles.clone();
                    agent.frames.pop();
                }
            },
        }
        Ok(())
    }

    fn enter_item(&mut self, agent: &mut Agent, before: Clock, item: i64) {
        let at = self.unravel(item);
        let axes = self.kernel.launch.grid.len();
        let id = self.new_agent_id(format!("{}, item {:?}", agent.name, &at[..axes]));
        agent.clock = before.renamed(id);
        agent.block = at;
        if let Some(frame) = agent.frames.last() {
            for (axis, arg) in self.kernel.block(frame.block).args.iter().enumerate() {
                agent.values[arg.index()] = at[axis] as u64;
            }
        }
    }

    fn enter(&self, agent: &mut Agent, block: BlockId, kind: FrameKind) {
        agent.frames.push(Frame {
            block,
            next: 0,
            kind,
            bound: Vec::new(),
        });
    }

    /// One op; on `Blocked` the agent has not moved.
    fn step(&mut self, agent: &mut Agent, cta: &mut Cta, id: OpId) -> Result<Step> {
        let k = self.kernel;
        // Past this op, whatever it enters.
        let advance = |agent: &mut Agent| {
            if let Some(frame) = agent.frames.last_mut() {
                frame.next += 1;
            }
        };
        match &k.op(id).kind {
            OpKind::For {
                lo,
                hi,
                kind: _,
                body,
            } => {
                let (lo, hi) = (agent.index(*lo), agent.index(*hi));
                advance(agent);
                if lo < hi {
                    agent.values[k.block(*body).args[0].index()] = lo as u64;
                    self.enter(agent, *body, FrameKind::For { i: lo, hi });
                }
            }
            OpKind::If {
                cond,
                then,
                otherwise,
            } => {
                let taken = if agent.values[cond.index()] != 0 {
                    Some(*then)
                } else {
                    *otherwise
                };
                advance(agent);
                if let Some(block) = taken {
                    self.enter(agent, block, FrameKind::Once);
                }
            }
            OpKind::ForItems { body } => {
                advance(agent);
                let mut rest = agent.items.clone();
                rest.reverse();
                if let Some(first) = rest.pop() {
                    let before = Snapshot {
                        tiles: agent.tiles.clone(),
                        clock: agent.clock.clone(),
                    };
                    let clock = before.clock.clone();
                    self.enter(
                        agent,
                        *body,
                        FrameKind::Items {
                            rest,
                            before: Box::new(before),
                        },
                    );
                    self.enter_item(agent, clock, first);
                }
            }
            OpKind::Role { .. } => self.start_roles(agent, cta),
            OpKind::Put { channel, src, oob } => {
                if !self.may_put(cta, *channel) {
                    return Ok(Step::Blocked);
                }
                self.put(agent, cta, *channel, src, *oob, id)?;
                advance(agent);
            }
            OpKind::Get { channel, tile } => {
                let sequence = agent.cursors[channel.index()];
                let Some(entry) = cta.entries[channel.index()].get(sequence) else {
                    return Ok(Step::Blocked);
                };
                agent.clock.acquire(&entry.stamp);
                agent.tiles[tile.index()] = Some(entry.data.clone());
                self.release(agent, cta, *tile);
                agent.cursors[channel.index()] += 1;
                agent.held.push((*tile, *channel, sequence));
                advance(agent);
                if let Some(frame) = agent.frames.last_mut() {
                    frame.bound.push(*tile);
                }
                self.trace_op(agent, id);
            }
            OpKind::Release { tile, part } => {
                match part {
                    None => {
                        self.release(agent, cta, *tile);
                        self.poison(agent, *tile, 0, 1);
                    }
                    Some(part) => {
                        let channel = agent
                            .held
                            .iter()
                            .find(|(t, ..)| t == tile)
                            .map(|(_, c, _)| *c);
                        let parts = channel.map_or(1, |c| k.channels[c.index()].parts);
                        self.poison(agent, *tile, *part, parts);
                    }
                }
                advance(agent);
            }
            OpKind::Signal { param, index } => {
                let offset = self.flag_offset(agent, *param, index, true)?;
                let stamp = agent.clock.release();
                let flag = self.global_mut(*param);
                let value = flag.words.get(offset) as u32;
                flag.words.set(offset, value.wrapping_add(1) as u64);
                flag.stamps.entry(offset).or_default().join(stamp);
                self.signals += 1;
                advance(agent);
            }
            OpKind::Wait {
                param,
                index,
                at_least,
            } => {
                let offset = self.flag_offset(agent, *param, index, false)?;
                let flag = self.global(*param);
                if (flag.words.get(offset) as u32 as i64) < agent.index(*at_least) {
                    return Ok(Step::Blocked);
                }
                if let Some(stamp) = flag.stamps.get(&offset) {
                    let stamp = stamp.clone();
                    agent.clock.acquire(&stamp);
                }
                advance(agent);
            }
            _ => {
                self.plain_op(agent, id)?;
                advance(agent);
            }
        }
        Ok(Step::Done)
    }

    /// Every copy of every role goes on from the common scalars; the CTA itself is done.
    fn start_roles(&mut self, agent: &mut Agent, cta: &mut Cta) {
        let roles = self.network.roles.clone();
        for (number, role) in roles.into_iter().enumerate() {
            let OpKind::Role {
                name, copies, body, ..
            } = &self.kernel.op(role).kind
            else {
                continue;
            };
            for copy in 0..*copies {
                let suffix = if *copies > 1 {
                    format!(" copy {copy}")
                } else {
                    String::new()
                };
                let name = format!("{}, role {name}{suffix}", agent.name);
                let id = self.new_agent_id(name.clone());
                let mut values = agent.values.clone();
                values[self.kernel.block(*body).args[0].index()] = copy as u64;
                cta.agents.push(Agent {
                    clock: agent.clock.renamed(id),
                    name,
                    block: agent.block,
                    values,
                    lanes: agent.lanes.clone(),
                    tiles: vec![None; self.kernel.tiles.len()],
                    frames: vec![Frame {
                        block: *body,
                        next: 0,
                        kind: FrameKind::Once,
                        bound: Vec::new(),
                    }],
                    cursors: agent.cursors.clone(),
                    held: Vec::new(),
                    role: Some((number, copy)),
                    items: agent.items.clone(),
                });
            }
        }
        agent.frames.clear();
    }

    // ---- channels --------------------------------------------------------------------------------------------

    fn ring(&self, channel: ChannelId) -> ChannelId {
        self.kernel.channels[channel.index()]
            .ring
            .unwrap_or(channel)
    }

    /// The slots of a ring go round: the one to fill next must have been given back by all its readers. A ring whose size planning
    /// is to choose is as large as it needs to be.
    fn may_put(&self, cta: &Cta, channel: ChannelId) -> bool {
        let ring = self.ring(channel);
        let Some(slots) = self.kernel.channels[ring.index()].slots else {
            return true;
        };
        let puts = &cta.rings[ring.index()];
        let Some(last) = puts.len().checked_sub(slots as usize) else {
            return true;
        };
        let (channel, sequence) = puts[last];
        cta.entries[channel.index()][sequence].left == 0
    }

    fn put(
        &mut self,
        agent: &mut Agent,
        cta: &mut Cta,
        channel: ChannelId,
        src: &View,
        oob: Oob,
        id: OpId,
    ) -> Result<()> {
        let c = &self.kernel.channels[channel.index()];
        let span = self.kernel.op(id).span;
        let data = self.copy_out(agent, src, oob, c.dtype, &c.shape, span)?;
        let entry = Entry {
            data,
            stamp: agent.clock.release(),
            left: self.network.readers[channel.index()],
        };
        let ring = self.ring(channel);
        let entries = &mut cta.entries[channel.index()];
        cta.rings[ring.index()].push((channel, entries.len()));
        entries.push(entry);
        Ok(())
    }

    /// Gives back the slot a tile is bound to, if it still is.
    fn release(&mut self, agent: &mut Agent, cta: &mut Cta, tile: TileId) {
        if let Some(i) = agent.held.iter().position(|(t, ..)| *t == tile) {
            let (_, channel, sequence) = agent.held.swap_remove(i);
            let entry = &mut cta.entries[channel.index()][sequence];
            entry.left = entry.left.saturating_sub(1);
            if entry.left == 0 {
                // Nobody reads it again: only its place in the order is needed.
                entry.data = TileData::new(entry.data.dtype, &[0]);
            }
        }
    }

    /// What was given back has no value any more.
    fn poison(&self, agent: &mut Agent, tile: TileId, part: u32, parts: u32) {
        let data = agent.tile(self.kernel, tile);
        let n = data.words.len() / parts.max(1) as usize;
        let start = n * part as usize;
        data.set.remove(start..(start + n).min(data.words.len()));
    }

    fn flag_offset(
        &self,
        agent: &Agent,
        param: ParamId,
        index: &[ValueId],
        write: bool,
    ) -> Result<usize> {
        let geometry = self.geometry(Base::Param(param));
        let mut offset = geometry.offset;
        for (axis, &v) in index.iter().enumerate() {
            let (i, extent) = (agent.index(v), geometry.extents[axis]);
            if i < 0 || i as u64 >= extent {
                let name = self.base_name(Base::Param(param));
                return Err(ErrorKind::OutOfBounds {
                    name,
                    axis,
                    index: i,
                    extent,
                    write,
                });
            }
            offset += i * geometry.strides[axis];
        }
        Ok(offset as usize)
    }

    /// One line of the report of a deadlock.
    fn waits_for(&self, cta: &Cta, agent: &Agent) -> String {
        let who = &self.agents[agent.clock.agent.0 as usize];
        let reason = match self.current(agent).map(|op| &self.kernel.op(op).kind) {
            Some(OpKind::Put { channel, .. }) => {
                let ring = self.ring(*channel);
                let slots = self.kernel.channels[ring.index()].slots.unwrap_or(0);
                let held = cta.entries.iter().flatten().filter(|e| e.left > 0).count();
                let name = &self.kernel.channels[channel.index()].name;
                format!("a free slot of `{name}` ({slots} slots; {held} tiles are not given back)")
            }
            Some(OpKind::Get { channel, .. }) => {
                let name = &self.kernel.channels[channel.index()].name;
                format!("tile {} of `{name}`", agent.cursors[channel.index()])
            }
            Some(OpKind::Wait {
                param,
                index,
                at_least,
            }) => {
                let at: Vec<i64> = index.iter().map(|&v| agent.index(v)).collect();
                let value = self
                    .flag_offset(agent, *param, index, false)
                    .map(|o| self.global(*param).words.get(o));
                let is = value.map_or(String::new(), |v| format!(" (it is {v})"));
                let name = self.base_name(Base::Param(*param));
                format!("`{name}`{at:?} >= {}{is}", agent.index(*at_least))
            }
            _ => "nothing".into(),
        };
        format!("{who} waits for {reason}")
    }
}

impl Agent {
    /// Stands in for one that is running.
    fn idle() -> Agent {
        Agent {
            clock: Clock::new(AgentId(0)),
            name: String::new(),
            block: [0; 3],
            values: Vec::new(),
            lanes: Vec::new(),
            tiles: Vec::new(),
            frames: Vec::new(),
            cursors: Vec::new(),
            held: Vec::new(),
            role: None,
            items: Vec::new(),
        }
    }
}
