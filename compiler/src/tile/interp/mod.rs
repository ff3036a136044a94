//! The reference interpreter: it defines what a tile program means.
//!
//! Every back end must give its bits (NaNs aside, whose bits have no meaning). It runs CTAs, roles and items in an order drawn from
//! a seed, because no order may matter, and reports what a program may not do: [`ErrorKind`].
//!
//! Needs: IR that [`super::verify`] accepts, after `pass::expand_math` (an op that pass removes is an error here). Keeps nothing
//! between runs.
//!
//! [`args`]: arguments and the host's checks. [`words`]: columns and scalar ops. [`memory`]: tiles, tensors, who touched what.
//! [`map`]: lanes. [`view`]: copies. [`dot`], [`fold`]: the products and folds. [`roles`]: channels, order, deadlock.

mod args;
mod dot;
mod error;
mod fold;
mod map;
mod memory;
mod roles;
mod view;
mod words;

#[cfg(test)]
mod tests;

pub use args::{Arg, Args, Buffer};
pub use error::{ErrorKind, InterpError};

use super::ir::*;
use crate::source::Span;
use map::{Lanes, MapFacts};
use memory::{AgentId, Clock, Conflict, Global, Offsets, TileData, Use};
use roles::Frame;
use std::collections::HashMap;
use std::rc::Rc;
use tessera_artifact::DType;
use words::{Fault, Words};

#[derive(Clone, Debug)]
pub struct Options {
    /// Order of CTAs and roles; 0: CTAs in order.
    pub seed: u64,
    /// CTAs that share the items of a persistent kernel (results may not depend on it).
    pub persistent_ctas: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            seed: 0,
            persistent_ctas: 3,
        }
    }
}

/// What a run did besides changing its arguments.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Lines of `print`.
    pub prints: Vec<String>,
    /// Scalar ops run in maps, times lanes.
    pub element_ops: u64,
}

/// A tile that an op has just written.
pub struct TraceEvent<'a> {
    pub place: String,
    pub op: OpId,
    pub span: Span,
    pub tile: TileId,
    pub name: &'a str,
    pub shape: &'a [u64],
    /// In order; `None`: no value yet.
    pub values: Vec<Option<f64>>,
}

/// Runs the whole launch; on success the arguments that the kernel writes hold its results.
pub fn run(kernel: &Kernel, args: &mut Args, options: &Options) -> Result<Report, InterpError> {
    run_inner(kernel, args, options, None)
}

/// As [`run`], with a call after every op that writes a tile.
pub fn run_traced(
    kernel: &Kernel,
    args: &mut Args,
    options: &Options,
    trace: &mut dyn FnMut(&TraceEvent),
) -> Result<Report, InterpError> {
    run_inner(kernel, args, options, Some(trace))
}

fn run_inner<'a>(
    kernel: &'a Kernel,
    args: &mut Args,
    options: &Options,
    trace: Option<&'a mut dyn FnMut(&TraceEvent)>,
) -> Result<Report, InterpError> {
    let bound = args::bind(kernel, args)?;
    let mut grid = [1i64; 3];
    grid[..bound.grid.len()].copy_from_slice(&bound.grid);
    let uses = uses(kernel);
    let globals = kernel
        .params
        .iter()
        .zip(&args.0)
        .zip(&uses)
        .map(|((param, arg), how)| match (&param.kind, arg) {
            (ParamKind::Tensor(t), Arg::Tensor(b)) => {
                let words = Words::from_bytes(b.dtype, &b.bytes);
                Some(Global::new(
                    t.mode,
                    b.dtype,
                    &b.shape,
                    &b.strides,
                    b.offset as i64,
                    words,
                    *how,
                ))
            }
            _ => None,
        });
    let scalars = args.0.iter().map(|a| match a {
        Arg::Scalar(bits) => *bits,
        _ => 0,
    });
    let mut run = Run {
        kernel,
        globals: globals.collect(),
        dims: bound.dims,
        scalars: scalars.collect(),
        grid,
        agents: Vec::new(),
        facts: HashMap::new(),
        network: roles::Network::of(kernel),
        random: Random(options.seed),
        report: Report::default(),
        element_ops: 0,
        signals: 0,
        blame: None,
        trace,
    };
    run.launch(options)?;
    run.report.element_ops = run.element_ops;
    for ((arg, global), how) in args.0.iter_mut().zip(&run.globals).zip(&uses) {
        if let (Arg::Tensor(b), Some(g)) = (arg, global)
            && how.written
        {
            g.words.to_bytes(b.dtype, &mut b.bytes);
        }
    }
    Ok(run.report)
}

/// What the kernel does with each parameter.
fn uses(kernel: &Kernel) -> Vec<Use> {
    let mut uses = vec![Use::default(); kernel.params.len()];
    for op in kernel.live_ops() {
        let kind = &kernel.op(op).kind;
        // Flags have their own order.
        if let OpKind::Signal { param, .. } = kind {
            uses[param.index()].written = true;
            continue;
        }
        kind.for_each_tensor(&mut |p, access| match access {
            super::visit::Access::Read => uses[p.index()].read = true,
            super::visit::Access::Write => uses[p.index()].written = true,
        });
        match kind {
            OpKind::Atomic { param, .. } => uses[param.index()].atomic = true,
            OpKind::StoreGlobal {
                param,
                scatter: true,
                ..
            } => uses[param.index()].scattered = true,
            _ => {}
        }
    }
    uses
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One launch.
struct Run<'k> {
    kernel: &'k Kernel,
    globals: Vec<Option<Global>>,
    dims: Vec<i64>,
    scalars: Vec<u64>,
    grid: [i64; 3],
    /// What each agent is called.
    agents: Vec<String>,
    facts: HashMap<BlockId, Rc<MapFacts>>,
    network: roles::Network,
    random: Random,
    report: Report,
    element_ops: u64,
    /// How many there have been.
    signals: u64,
    /// The op inside a map that failed.
    blame: Option<OpId>,
    trace: Option<&'k mut dyn FnMut(&TraceEvent)>,
}

/// One thread of control: a CTA without roles, or a copy of a role of one.
struct Agent {
    clock: Clock,
    /// `CTA 3, role load`, without the item.
    name: String,
    /// Coordinates of the CTA, or of the item.
    block: [i64; 3],
    /// Bits of the scalars defined so far, by value.
    values: Vec<u64>,
    /// Values inside the current map.
    lanes: Vec<Lanes>,
    tiles: Vec<Option<TileData>>,
    frames: Vec<Frame>,
    /// Next tile to get, by channel.
    cursors: Vec<usize>,
    /// Slots held: tile, channel, sequence number.
    held: Vec<(TileId, ChannelId, usize)>,
    /// Number of the role, its copy.
    role: Option<(usize, u32)>,
    /// Linear coordinates of the items of this CTA, ascending.
    items: Vec<i64>,
}

fn fault_kind(fault: Fault) -> ErrorKind {
    match fault {
        Fault::DivisionByZero => ErrorKind::DivisionByZero,
        Fault::ShiftPastWidth => ErrorKind::ShiftPastWidth,
        Fault::IndexOverflow => ErrorKind::IndexOverflow,
        Fault::Unexpanded => {
            ErrorKind::Unsupported("the op has no arithmetic meaning before `expand_math`".into())
        }
    }
}

/// What became of one op.
enum Step {
    Done,
    /// Nothing happened; the reason, for the report of a deadlock.
    Blocked,
}

impl Agent {
    fn index(&self, v: ValueId) -> i64 {
        self.values[v.index()] as i64
    }

    fn tile(&mut self, kernel: &Kernel, t: TileId) -> &mut TileData {
        let tile = kernel.tile(t);
        self.tiles[t.index()].get_or_insert_with(|| TileData::new(tile.dtype, &tile.shape))
    }
}

impl<'k> Run<'k> {
    fn new_agent_id(&mut self, name: String) -> AgentId {
        self.agents.push(name);
        AgentId(self.agents.len() as u32 - 1)
    }

    fn global(&self, p: ParamId) -> &Global {
        self.globals[p.index()]
            .as_ref()
            .expect("the verifier lets only tensors be accessed, and binding checked them")
    }

    fn global_mut(&mut self, p: ParamId) -> &mut Global {
        self.globals[p.index()]
            .as_mut()
            .expect("the verifier lets only tensors be accessed, and binding checked them")
    }

    fn coordinates(&self, base: Base, offset: usize) -> Vec<i64> {
        match base {
            Base::Tile(t) => {
                let shape = &self.kernel.tile(t).shape;
                memory::coordinates(offset as i64, shape, &memory::row_major(shape))
            }
            Base::Param(p) => self.global(p).coordinates(offset),
        }
    }

    fn conflict(
        &self,
        p: ParamId,
        wrote_now: bool,
        (offset, conflict): (usize, Conflict),
    ) -> ErrorKind {
        let name = self.kernel.param(p).name.clone();
        let element = self.coordinates(Base::Param(p), offset);
        let who = |a: AgentId| {
            self.agents
                .get(a.0 as usize)
                .cloned()
                .unwrap_or_else(|| "another CTA".into())
        };
        match conflict {
            Conflict::Unset => ErrorKind::Uninitialised { name, element },
            Conflict::Written(a) => ErrorKind::Race {
                name,
                element,
                wrote_now,
                other: who(a),
                other_wrote: true,
            },
            Conflict::Read(a) => ErrorKind::Race {
                name,
                element,
                wrote_now,
                other: who(a),
                other_wrote: false,
            },
            Conflict::Scattered(a) => ErrorKind::ScatterCollision {
                name,
                element,
                other: who(a),
            },
        }
    }

    fn read(
        &mut self,
        agent: &mut Agent,
        base: Base,
        offsets: &Offsets,
    ) -> Result<Words, ErrorKind> {
        match base {
            Base::Tile(t) => {
                agent
                    .tile(self.kernel, t)
                    .read(offsets)
                    .map_err(|o| ErrorKind::Uninitialised {
                        name: self.kernel.tile(t).name.clone(),
                        element: self.coordinates(base, o),
                    })
            }
            Base::Param(p) => {
                let result = self.global_mut(p).read(&agent.clock, offsets);
                result.map_err(|c| self.conflict(p, false, c))
            }
        }
    }

    fn write(
        &mut self,
        agent: &mut Agent,
        base: Base,
        offsets: &Offsets,
        values: &Words,
        scatter: bool,
    ) -> Result<(), ErrorKind> {
        match base {
            Base::Tile(t) => {
                agent.tile(self.kernel, t).write(offsets, values);
                Ok(())
            }
            Base::Param(p) => {
                let result = self
                    .global_mut(p)
                    .write(&agent.clock, offsets, values, scatter);
                result.map_err(|c| self.conflict(p, true, c))
            }
        }
    }

    fn update(
        &mut self,
        agent: &Agent,
        p: ParamId,
        offset: usize,
        f: impl FnOnce(u64) -> u64,
    ) -> Result<(), ErrorKind> {
        let result = self.global_mut(p).update(&agent.clock, offset, f);
        result.map_err(|c| self.conflict(p, true, c))
    }

    /// A pure op without operands.
    fn leaf(&self, agent: &Agent, kind: &OpKind) -> Result<u64, ErrorKind> {
        Ok(match kind {
            OpKind::Const(c) => super::scalar::to_bits(*c),
            OpKind::Scalar(p) => self.scalars[p.index()],
            OpKind::Dim(d) => self.dims[d.index()] as u64,
            OpKind::BlockIndex(axis) => agent.block[*axis as usize] as u64,
            other => return Err(ErrorKind::Unsupported(format!("{other:?} is no leaf"))),
        })
    }

    /// One op that neither enters a block nor waits.
    fn plain_op(&mut self, agent: &mut Agent, id: OpId) -> Result<(), ErrorKind> {
        let op = self.kernel.op(id);
        match &op.kind {
            OpKind::Map { extents, body } => {
                let kernel = self.kernel;
                let facts = self
                    .facts
                    .entry(*body)
                    .or_insert_with(|| Rc::new(MapFacts::of(kernel, extents, *body)));
                let facts = facts.clone();
                // The op inside the map is the one to blame.
                self.map(agent, extents, *body, &facts)
                    .map_err(|(inner, kind)| {
                        self.blame = Some(inner);
                        kind
                    })?;
            }
            OpKind::Copy { dst, src, oob } => self.copy(agent, dst, src, *oob, op.span)?,
            OpKind::Dot {
                acc,
                a,
                b,
                accumulate,
            } => self.dot(agent, acc, a, b, *accumulate, op.span)?,
            OpKind::Reduce {
                dst,
                src,
                axis,
                op,
                order,
            } => {
                let (words, d, axis) = self.fold_source(agent, *src, *axis)?;
                let result = fold::reduce(*op, *order, d, &axis, &words).map_err(fault_kind)?;
                self.write_tile(agent, *dst, &result);
            }
            OpKind::Scan { dst, src, axis, op } => {
                let (words, d, axis) = self.fold_source(agent, *src, *axis)?;
                let result = fold::scan(*op, d, &axis, &words).map_err(fault_kind)?;
                self.write_tile(agent, *dst, &result);
            }
            OpKind::TopK {
                values,
                indices,
                src,
                smallest,
            } => {
                let shape = &self.kernel.tile(*src).shape;
                let (n, k) = (
                    shape.last().copied(),
                    self.kernel.tile(*values).shape.last().copied(),
                );
                let (words, d, _) = self.fold_source(agent, *src, 0)?;
                let (n, k) = (n.unwrap_or(1) as usize, k.unwrap_or(1) as usize);
                let (v, i) = fold::topk(d, n, k, *smallest, &words);
                self.write_tile(agent, *values, &v);
                self.write_tile(agent, *indices, &i);
            }
            OpKind::Assert { cond, message } => {
                if agent.values[cond.index()] == 0 {
                    return Err(ErrorKind::Assert(message.clone()));
                }
            }
            OpKind::Assume { cond } => {
                if agent.values[cond.index()] == 0 {
                    return Err(ErrorKind::Assume);
                }
            }
            OpKind::Print { text, args } => self.print(agent, text, args),
            _ => {
                if let (Some(v), Some(bits)) = (op.result, self.single(agent, &op.kind)?) {
                    agent.values[v.index()] = bits;
                }
            }
        }
        self.trace_op(agent, id);
        Ok(())
    }

    fn fold_source(
        &mut self,
        agent: &mut Agent,
        src: TileId,
        axis: u32,
    ) -> Result<(Words, DType, fold::Axis), ErrorKind> {
        let tile = self.kernel.tile(src);
        let all = agent.tile(self.kernel, src).all();
        let words = self.read(agent, Base::Tile(src), &all)?;
        Ok((
            words,
            tile.dtype,
            fold::Axis::of(&tile.shape, axis as usize),
        ))
    }

    fn write_tile(&mut self, agent: &mut Agent, tile: TileId, words: &Words) {
        let data = agent.tile(self.kernel, tile);
        let all = data.all();
        data.write(&all, words);
    }

    fn dot(
        &mut self,
        agent: &mut Agent,
        acc: &TileView,
        a: &Operand,
        b: &Operand,
        accumulate: bool,
        span: Span,
    ) -> Result<(), ErrorKind> {
        let k = self.kernel;
        let (dtype, out) = (k.tile(a.view.tile).dtype, k.tile(acc.tile).dtype);
        let (left, left_shape) = self.operand(agent, a, span)?;
        let (right, right_shape) = self.operand(agent, b, span)?;
        let (m, n, depth) = (left_shape[0], right_shape[1], left_shape[1]);
        let acc_view = self.locate(agent, Base::Tile(acc.tile), &acc.slots, span)?;
        let ty = Type::Scalar(out);
        let start = if accumulate {
            self.read_all(agent, &acc_view)?
        } else {
            Words::zeros(ty, m * n)
        };
        let b_dtype = k.tile(b.view.tile).dtype;
        let result = match (out, start) {
            (DType::F64, Words::W64(c)) => {
                let f64s = |w: &Words| {
                    w.w64()
                        .iter()
                        .map(|&x| f64::from_bits(x))
                        .collect::<Vec<_>>()
                };
                let mut c: Vec<f64> = c.into_iter().map(f64::from_bits).collect();
                dot::dot_f64(&mut c, &f64s(&left), &f64s(&right), m, n, depth);
                Words::W64(c.into_iter().map(f64::to_bits).collect())
            }
            (DType::I32, Words::W32(c)) => {
                let i32s = |d: DType, w: &Words| -> Vec<i32> {
                    w.w8()
                        .iter()
                        .map(|&x| {
                            if d == DType::I8 {
                                x as i8 as i32
                            } else {
                                x as i32
                            }
                        })
                        .collect()
                };
                let mut c: Vec<i32> = c.into_iter().map(|x| x as i32).collect();
                dot::dot_i32(
                    &mut c,
                    &i32s(dtype, &left),
                    &i32s(b_dtype, &right),
                    m,
                    n,
                    depth,
                );
                Words::W32(c.into_iter().map(|x| x as u32).collect())
            }
            (_, Words::W32(c)) => {
                let mut c: Vec<f32> = c.into_iter().map(f32::from_bits).collect();
                let (mut x, mut y) = (words::to_f32(dtype, &left), words::to_f32(b_dtype, &right));
                match dtype {
                    DType::BF16 => dot::dot_bf16(&mut c, &x, &y, m, n, depth),
                    _ => {
                        if dtype == DType::Tf32 {
                            for v in x.iter_mut().chain(&mut y) {
                                *v = tessera_artifact::numeric::round_tf32(*v);
                            }
                        }
                        dot::dot_f32(&mut c, &x, &y, m, n, depth);
                    }
                }
                Words::W32(c.into_iter().map(f32::to_bits).collect())
            }
            _ => return Err(ErrorKind::Unsupported(format!("a dot into {out}"))),
        };
        self.write_all(agent, &acc_view, &result)
    }

    /// An operand as a row-major matrix, turned over where it is transposed.
    fn operand(
        &mut self,
        agent: &mut Agent,
        o: &Operand,
        span: Span,
    ) -> Result<(Words, Vec<usize>), ErrorKind> {
        let view = self.locate(agent, Base::Tile(o.view.tile), &o.view.slots, span)?;
        let (words, mut shape) = (self.read_all(agent, &view)?, view.shape());
        if !o.transposed {
            return Ok((words, shape));
        }
        let (rows, columns) = (shape[0], shape[1]);
        shape.reverse();
        let mut steps = [0; super::verify::MAX_RANK];
        (steps[0], steps[1]) = (1, columns as i64);
        let turned = Offsets::Affine(memory::Affine { base: 0, steps }, vec![columns, rows]);
        let ty = Type::Scalar(self.kernel.tile(o.view.tile).dtype);
        Ok((memory::gather(&words, ty, &turned), shape))
    }

    fn print(&mut self, agent: &mut Agent, text: &str, args: &[PrintArg]) {
        let mut line = format!("{}: {text}", self.agents[agent.clock.agent.0 as usize]);
        for arg in args {
            line.push(' ');
            match arg {
                PrintArg::Value(v) => {
                    let c = super::scalar::from_bits(agent.values[v.index()], self.kernel.ty(*v));
                    line += &match c {
                        Const::Index(i) => i.to_string(),
                        Const::Float(x, _) => format!("{x}"),
                        Const::Int(i, _) => i.to_string(),
                        Const::Bool(b) => b.to_string(),
                    };
                }
                PrintArg::Tile(t) => {
                    let values = agent.tile(self.kernel, *t).values();
                    let words: Vec<String> = values
                        .into_iter()
                        .map(|v| v.map_or("?".into(), |x| x.to_string()))
                        .collect();
                    line += &format!("[{}]", words.join(", "));
                }
            }
        }
        self.report.prints.push(line);
    }

    fn trace_op(&mut self, agent: &mut Agent, id: OpId) {
        let Some(trace) = &mut self.trace else {
            return;
        };
        let kernel = self.kernel;
        let mut written = Vec::new();
        let mut note = |kind: &OpKind| {
            kind.for_each_tile(&mut |t, access| {
                if access == super::visit::Access::Write && !written.contains(&t) {
                    written.push(t);
                }
            });
        };
        let op = kernel.op(id);
        note(&op.kind);
        if let OpKind::Map { body, .. } = &op.kind {
            kernel
                .block(*body)
                .ops
                .iter()
                .for_each(|&inner| note(&kernel.op(inner).kind));
        }
        for tile in written {
            let place = self.agents[agent.clock.agent.0 as usize].clone();
            let data = agent.tile(kernel, tile);
            trace(&TraceEvent {
                place,
                op: id,
                span: op.span,
                tile,
                name: &kernel.tile(tile).name,
                shape: &kernel.tile(tile).shape,
                values: data.values(),
            });
        }
    }
}
