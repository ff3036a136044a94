//! `map`: its scalar ops on columns of lanes.
//!
//! The space is cut into boxes of about [`LANES`] points (all of the inner axes, a range of one, a point of the outer ones). In a
//! box every value is one number for all lanes, an affine function of the coordinates, or a column; so index arithmetic, guards
//! that hold everywhere and contiguous accesses cost next to nothing per lane.

use super::error::ErrorKind;
use super::fold;
use super::memory::{Affine, Offsets};
use super::words::{self, Fault, Words};
use super::{Agent, Run, fault_kind};
use crate::tile::ir::*;
use crate::tile::verify::MAX_RANK;
use crate::tile::visit::Access;
use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

/// Points per box, about.
const LANES: usize = 2048;

/// One value in a box of lanes.
#[derive(Clone, Debug, Default)]
pub enum Lanes {
    /// Not defined in this map.
    #[default]
    Outside,
    Uniform(u64),
    Affine(Affine),
    Column(Words),
}

/// What is known of a map before it runs.
pub struct MapFacts {
    /// Tiles and tensors whose accesses by different points could meet.
    tracked: Vec<Base>,
}

/// Who touched each element in this map: the point, or `NONE`, or `MANY`.
struct Tracker {
    writers: Vec<u32>,
    readers: Vec<u32>,
}

const NONE: u32 = u32::MAX;
const MANY: u32 = u32::MAX - 1;

struct Box_ {
    dims: Vec<usize>,
    lanes: usize,
    /// Number of each lane's point in the whole map, made when first needed.
    points: Affine,
}

type Result<T> = std::result::Result<T, ErrorKind>;

impl MapFacts {
    /// Accesses of one base by different points cannot meet if all take the same coordinates and each map axis is one of them.
    pub fn of(kernel: &Kernel, extents: &[u64], body: BlockId) -> MapFacts {
        let block = kernel.block(body);
        let mut indices: Vec<(Base, &[ValueId])> = Vec::new();
        let mut written: Vec<Base> = Vec::new();
        for &op in &block.ops {
            let kind = &kernel.op(op).kind;
            let (base, index) = match kind {
                OpKind::LoadTile { tile, index } | OpKind::StoreTile { tile, index, .. } => {
                    (Base::Tile(*tile), index)
                }
                OpKind::LoadGlobal { param, index, .. }
                | OpKind::StoreGlobal { param, index, .. } => (Base::Param(*param), index),
                _ => continue,
            };
            let stores = matches!(kind, OpKind::StoreTile { .. } | OpKind::StoreGlobal { .. });
            if stores && !written.contains(&base) {
                written.push(base);
            }
            indices.push((base, index));
        }
        let apart = |base: &Base| {
            let mut own = indices.iter().filter(|(b, _)| b == base).map(|(_, i)| *i);
            let first = own.next().unwrap_or(&[]);
            own.all(|i| i == first)
                && block
                    .args
                    .iter()
                    .zip(extents)
                    .all(|(arg, &extent)| extent == 1 || first.contains(arg))
        };
        let tracked = written.into_iter().filter(|b| !apart(b)).collect();
        MapFacts { tracked }
    }
}

impl Run<'_> {
    pub fn map(
        &mut self,
        agent: &mut Agent,
        extents: &[u64],
        body: BlockId,
        facts: &Rc<MapFacts>,
    ) -> std::result::Result<(), (OpId, ErrorKind)> {
        if extents.contains(&0) {
            return Ok(());
        }
        let mut trackers: HashMap<Base, Tracker> = HashMap::new();
        for &base in &facts.tracked {
            let n = match base {
                Base::Tile(t) => self.kernel.tile(t).elements() as usize,
                Base::Param(p) => self.global(p).words.len(),
            };
            trackers.insert(
                base,
                Tracker {
                    writers: vec![NONE; n],
                    readers: vec![NONE; n],
                },
            );
        }
        let extents: Vec<usize> = extents.iter().map(|&e| e as usize).collect();
        let (split, rows) = cut(&extents);
        let mut origin = vec![0usize; extents.len()];
        loop {
            let mut dims: Vec<usize> = extents.clone();
            dims[..split].fill(1);
            dims[split] = rows.min(extents[split] - origin[split]);
            self.run_box(agent, body, &extents, &origin, dims, &mut trackers)?;
            // The next box.
            origin[split] += rows;
            let mut axis = split;
            while origin[axis] >= extents[axis] {
                origin[axis] = 0;
                if axis == 0 {
                    self.forget(agent, body);
                    return Ok(());
                }
                axis -= 1;
                origin[axis] += 1;
            }
        }
    }

    /// Values of the map are not visible after it.
    fn forget(&self, agent: &mut Agent, body: BlockId) {
        let block = self.kernel.block(body);
        let results = block.ops.iter().filter_map(|&op| self.kernel.op(op).result);
        for v in results.chain(block.args.iter().copied()) {
            agent.lanes[v.index()] = Lanes::Outside;
        }
    }

    fn run_box(
        &mut self,
        agent: &mut Agent,
        body: BlockId,
        extents: &[usize],
        origin: &[usize],
        dims: Vec<usize>,
        trackers: &mut HashMap<Base, Tracker>,
    ) -> std::result::Result<(), (OpId, ErrorKind)> {
        let kernel = self.kernel;
        let block = kernel.block(body);
        let mut points = Affine::constant(0);
        let mut stride = 1i64;
        for axis in (0..extents.len()).rev() {
            points.base += origin[axis] as i64 * stride;
            points.steps[axis] = stride;
            stride *= extents[axis] as i64;
        }
        for (axis, &arg) in block.args.iter().enumerate() {
            let mut at = Affine::constant(origin[axis] as i64);
            at.steps[axis] = 1;
            agent.lanes[arg.index()] = if dims[axis] == 1 {
                Lanes::Uniform(origin[axis] as u64)
            } else {
                Lanes::Affine(at)
            };
        }
        let lanes = dims.iter().product();
        let b = Box_ {
            dims,
            lanes,
            points,
        };
        self.element_ops += (lanes * block.ops.len()) as u64;
        for &id in &block.ops {
            let op = kernel.op(id);
            let value = self
                .lane_op(agent, &op.kind, &b, trackers)
                .map_err(|kind| (id, kind))?;
            if let (Some(v), Some(value)) = (op.result, value) {
                agent.lanes[v.index()] = value;
            }
        }
        Ok(())
    }

    fn lane_op(
        &mut self,
        agent: &mut Agent,
        kind: &OpKind,
        b: &Box_,
        trackers: &mut HashMap<Base, Tracker>,
    ) -> Result<Option<Lanes>> {
        match kind {
            OpKind::LoadTile { tile, index } => {
                let base = Base::Tile(*tile);
                self.load(agent, base, index, None, b, trackers).map(Some)
            }
            OpKind::LoadGlobal {
                param,
                index,
                guard,
            } => self
                .load(agent, Base::Param(*param), index, *guard, b, trackers)
                .map(Some),
            OpKind::StoreTile { tile, index, value } => {
                let base = Base::Tile(*tile);
                self.store(agent, base, index, *value, None, false, b, trackers)
                    .map(|()| None)
            }
            OpKind::StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter,
            } => {
                let base = Base::Param(*param);
                self.store(agent, base, index, *value, *guard, *scatter, b, trackers)
                    .map(|()| None)
            }
            OpKind::Atomic {
                op,
                param,
                index,
                value,
                guard,
            } => self
                .atomic(agent, *op, *param, index, *value, *guard, b)
                .map(|()| None),
            kind => self.pure(agent, kind, b).map(Some),
        }
    }

    /// A scalar op outside maps: one lane.
    pub fn single(&mut self, agent: &mut Agent, kind: &OpKind) -> Result<Option<u64>> {
        let b = Box_ {
            dims: Vec::new(),
            lanes: 1,
            points: Affine::constant(0),
        };
        Ok(self
            .lane_op(agent, kind, &b, &mut HashMap::new())?
            .map(|lanes| match lanes {
                Lanes::Uniform(bits) => bits,
                Lanes::Column(words) => words.get(0),
                Lanes::Affine(a) => a.base as u64,
                Lanes::Outside => 0,
            }))
    }

    /// A pure op on lanes.
    fn pure(&self, agent: &Agent, kind: &OpKind, b: &Box_) -> Result<Lanes> {
        if let Some(lanes) = self.cheap(agent, kind, b)? {
            return Ok(lanes);
        }
        let mut uniform = true;
        kind.for_each_value(&mut |v| uniform &= matches!(&*agent.lanes_of(v), Lanes::Uniform(_)));
        // One lane speaks for all where every operand is the same in all.
        let n = if uniform { 1 } else { b.lanes };
        let column = |v: ValueId| agent.column(v, self.kernel.ty(v), n, &b.dims);
        let ty = |v: ValueId| self.kernel.ty(v);
        let fault = |r: std::result::Result<Words, Fault>| r.map_err(fault_kind);
        let words = match kind {
            OpKind::Unary(op, a) => fault(words::unary(*op, ty(*a), &column(*a)))?,
            OpKind::Binary(op, x, y) if ty(*x) == Type::BOOL => {
                bool_op(*op, &column(*x), &column(*y))
            }
            OpKind::Binary(op, x, y) => {
                fault(words::binary(*op, ty(*x), &column(*x), &column(*y)))?
            }
            OpKind::Fma(x, y, z) => words::fma(ty(*x), &column(*x), &column(*y), &column(*z)),
            OpKind::Compare(p, x, y) => words::compare(*p, ty(*x), &column(*x), &column(*y)),
            OpKind::Select(c, x, y) => words::select(column(*c).w8(), &column(*x), &column(*y)),
            OpKind::Cast(a, to) => {
                let words = column(*a);
                if *to == Type::Index && ty(*a) == Type::Scalar(tessera_artifact::DType::U64) {
                    let too_large = words.w64().iter().any(|&x| x > i64::MAX as u64);
                    if too_large {
                        return Err(ErrorKind::IndexOverflow);
                    }
                }
                words::cast(ty(*a), *to, &words)
            }
            OpKind::Bitcast(a, tessera_artifact::DType::E2M1) => {
                Words::W8(column(*a).w8().iter().map(|c| c & 0xf).collect())
            }
            OpKind::Bitcast(a, _) => column(*a).into_owned(),
            _ => return Err(ErrorKind::Unsupported(format!("{kind:?} in a map"))),
        };
        Ok(if n == 1 && (uniform || b.lanes == 1) {
            Lanes::Uniform(words.get(0))
        } else {
            Lanes::Column(words)
        })
    }

    /// Leaves, and `index` arithmetic that stays affine or uniform.
    fn cheap(&self, agent: &Agent, kind: &OpKind, b: &Box_) -> Result<Option<Lanes>> {
        let affine = |v: ValueId| -> Option<Affine> {
            if self.kernel.ty(v) != Type::Index {
                return None;
            }
            match &*agent.lanes_of(v) {
                Lanes::Uniform(x) => Some(Affine::constant(*x as i64)),
                Lanes::Affine(a) => Some(*a),
                _ => None,
            }
        };
        let lanes = |a: Affine| {
            if a.steps == [0; MAX_RANK] {
                Lanes::Uniform(a.base as u64)
            } else {
                Lanes::Affine(a)
            }
        };
        Ok(match *kind {
            OpKind::Const(_) | OpKind::Scalar(_) | OpKind::Dim(_) | OpKind::BlockIndex(_) => {
                Some(Lanes::Uniform(self.leaf(agent, kind)?))
            }
            OpKind::Binary(op, x, y) => {
                let (Some(x), Some(y)) = (affine(x), affine(y)) else {
                    return Ok(None);
                };
                let result = match op {
                    BinaryOp::Add => x.zip(&y, i64::checked_add),
                    BinaryOp::Sub => x.zip(&y, i64::checked_sub),
                    BinaryOp::Mul if y.steps == [0; MAX_RANK] => x.map(|s| s.checked_mul(y.base)),
                    BinaryOp::Mul if x.steps == [0; MAX_RANK] => y.map(|s| s.checked_mul(x.base)),
                    BinaryOp::Div | BinaryOp::Rem if y.steps == [0; MAX_RANK] && y.base > 0 => {
                        let ((lo, hi), d) = (x.range(&b.dims), y.base as i128);
                        if lo.div_euclid(d) != hi.div_euclid(d) {
                            return Ok(None);
                        }
                        let quotient = lo.div_euclid(d) as i64;
                        if op == BinaryOp::Div {
                            Some(Affine::constant(quotient))
                        } else {
                            x.map(Some).map(|mut r| {
                                r.base -= quotient * y.base;
                                r
                            })
                        }
                    }
                    _ => return Ok(None),
                };
                let fits = result.filter(|r| {
                    let (lo, hi) = r.range(&b.dims);
                    lo >= i64::MIN as i128 && hi <= i64::MAX as i128
                });
                Some(lanes(fits.ok_or(ErrorKind::IndexOverflow)?))
            }
            OpKind::Compare(p, x, y) => {
                let (Some(x), Some(y)) = (affine(x), affine(y)) else {
                    return Ok(None);
                };
                let ((x_lo, x_hi), (y_lo, y_hi)) = (x.range(&b.dims), y.range(&b.dims));
                let always = match p {
                    Predicate::Lt if x_hi < y_lo => Some(true),
                    Predicate::Lt if x_lo >= y_hi => Some(false),
                    Predicate::Le if x_hi <= y_lo => Some(true),
                    Predicate::Le if x_lo > y_hi => Some(false),
                    Predicate::Gt if x_lo > y_hi => Some(true),
                    Predicate::Gt if x_hi <= y_lo => Some(false),
                    Predicate::Ge if x_lo >= y_hi => Some(true),
                    Predicate::Ge if x_hi < y_lo => Some(false),
                    _ => None,
                };
                always.map(|c| Lanes::Uniform(c as u64))
            }
            OpKind::Select(c, x, y) => match &*agent.lanes_of(c) {
                Lanes::Uniform(1) => Some(agent.lanes_of(x).into_owned()),
                Lanes::Uniform(_) => Some(agent.lanes_of(y).into_owned()),
                _ => None,
            },
            _ => None,
        })
    }

    /// Where the lanes' elements are; `None`: no lane touches memory.
    fn offsets(
        &self,
        agent: &Agent,
        base: Base,
        index: &[ValueId],
        guard: Option<ValueId>,
        write: bool,
        b: &Box_,
    ) -> Result<Option<Offsets>> {
        let geometry = self.geometry(base);
        let out = |axis: usize, index: i64| ErrorKind::OutOfBounds {
            name: self.base_name(base),
            axis,
            index,
            extent: geometry.extents[axis],
            write,
        };
        let mask = match guard.map(|g| agent.lanes_of(g)) {
            None | Some(Cow::Owned(Lanes::Uniform(1)) | Cow::Borrowed(Lanes::Uniform(1))) => None,
            Some(Cow::Owned(Lanes::Uniform(_)) | Cow::Borrowed(Lanes::Uniform(_))) => {
                return Ok(None);
            }
            Some(g) => match &*g {
                Lanes::Column(words) => Some(words.w8().to_vec()),
                _ => return Err(ErrorKind::Unsupported("a guard that is no bool".into())),
            },
        };
        let columns = index
            .iter()
            .any(|&v| matches!(&*agent.lanes_of(v), Lanes::Column(_)));
        if mask.is_none() && !columns {
            let mut total = Affine::constant(geometry.offset);
            for (axis, &v) in index.iter().enumerate() {
                let at = match &*agent.lanes_of(v) {
                    Lanes::Affine(a) => *a,
                    Lanes::Uniform(x) => Affine::constant(*x as i64),
                    _ => return Err(ErrorKind::Unsupported("an index without a value".into())),
                };
                let (lo, hi) = at.range(&b.dims);
                if lo < 0 || hi >= geometry.extents[axis] as i128 {
                    return Err(out(axis, if lo < 0 { lo } else { hi } as i64));
                }
                let stride = geometry.strides[axis];
                // Inside the extents, so inside the storage: no overflow.
                total.base += at.base * stride;
                for (to, step) in total.steps.iter_mut().zip(at.steps).take(b.dims.len()) {
                    *to += step.wrapping_mul(stride);
                }
            }
            return Ok(Some(Offsets::Affine(total, b.dims.clone())));
        }
        let mut offsets = vec![geometry.offset as usize; b.lanes];
        for (axis, &v) in index.iter().enumerate() {
            let column = agent.column(v, Type::Index, b.lanes, &b.dims);
            let (extent, stride) = (geometry.extents[axis], geometry.strides[axis]);
            let mut outside = false;
            match &mask {
                None => {
                    for (o, &i) in offsets.iter_mut().zip(column.w64()) {
                        outside |= i >= extent;
                        *o = o.wrapping_add((i as i64).wrapping_mul(stride) as usize);
                    }
                }
                Some(mask) => {
                    for ((o, &i), &m) in offsets.iter_mut().zip(column.w64()).zip(mask) {
                        outside |= m != 0 && i >= extent;
                        *o = o.wrapping_add((i as i64).wrapping_mul(stride) as usize);
                    }
                }
            }
            if outside {
                let held = |lane: &usize| mask.as_ref().is_none_or(|m| m[*lane] != 0);
                let lane = (0..b.lanes).filter(held).find(|&l| column.get(l) >= extent);
                return Err(out(axis, lane.map_or(0, |l| column.get(l) as i64)));
            }
        }
        Ok(Some(match mask {
            None => Offsets::Column(offsets),
            Some(mask) => Offsets::Masked(offsets, mask),
        }))
    }

    fn track(
        &self,
        base: Base,
        offsets: &Offsets,
        access: Access,
        b: &Box_,
        trackers: &mut HashMap<Base, Tracker>,
    ) -> Result<()> {
        let Some(tracker) = trackers.get_mut(&base) else {
            return Ok(());
        };
        let points = b.points.column(&b.dims);
        offsets
            .for_each(|lane, o| {
                let point = points[lane] as u32;
                let (writer, reader) = (tracker.writers[o], tracker.readers[o]);
                let others = |who: u32| who != NONE && who != point;
                if others(writer) || (access == Access::Write && others(reader)) {
                    return Err(o);
                }
                match access {
                    Access::Write => tracker.writers[o] = point,
                    Access::Read => {
                        tracker.readers[o] = if reader == NONE || reader == point {
                            point
                        } else {
                            MANY
                        }
                    }
                }
                Ok(())
            })
            .map_err(|o| ErrorKind::MapRace {
                name: self.base_name(base),
                element: self.coordinates(base, o),
            })
    }

    #[allow(clippy::too_many_arguments)]
    fn load(
        &mut self,
        agent: &mut Agent,
        base: Base,
        index: &[ValueId],
        guard: Option<ValueId>,
        b: &Box_,
        trackers: &mut HashMap<Base, Tracker>,
    ) -> Result<Lanes> {
        let Some(offsets) = self.offsets(agent, base, index, guard, false, b)? else {
            return Ok(Lanes::Uniform(0));
        };
        self.track(base, &offsets, Access::Read, b, trackers)?;
        // One element for all lanes is read once.
        if let Offsets::Affine(a, _) = &offsets
            && a.steps == [0; MAX_RANK]
        {
            let one = Offsets::run(a.base, 0, 1);
            return Ok(Lanes::Uniform(self.read(agent, base, &one)?.get(0)));
        }
        Ok(Lanes::Column(self.read(agent, base, &offsets)?))
    }

    #[allow(clippy::too_many_arguments)]
    fn store(
        &mut self,
        agent: &mut Agent,
        base: Base,
        index: &[ValueId],
        value: ValueId,
        guard: Option<ValueId>,
        scatter: bool,
        b: &Box_,
        trackers: &mut HashMap<Base, Tracker>,
    ) -> Result<()> {
        let Some(offsets) = self.offsets(agent, base, index, guard, true, b)? else {
            return Ok(());
        };
        // A collision of scatters has its own error.
        if !scatter {
            self.track(base, &offsets, Access::Write, b, trackers)?;
        }
        let values = agent
            .column(value, self.kernel.ty(value), b.lanes, &b.dims)
            .into_owned();
        self.write(agent, base, &offsets, &values, scatter)
    }

    #[allow(clippy::too_many_arguments)]
    fn atomic(
        &mut self,
        agent: &mut Agent,
        op: FoldOp,
        param: ParamId,
        index: &[ValueId],
        value: ValueId,
        guard: Option<ValueId>,
        b: &Box_,
    ) -> Result<()> {
        let base = Base::Param(param);
        let Some(offsets) = self.offsets(agent, base, index, guard, true, b)? else {
            return Ok(());
        };
        let ty = self.kernel.ty(value);
        let values = agent.column(value, ty, b.lanes, &b.dims).into_owned();
        let mut touched = Vec::new();
        let done: std::result::Result<(), ()> = offsets.for_each(|lane, o| {
            touched.push((lane, o));
            Ok(())
        });
        debug_assert!(done.is_ok());
        for (lane, o) in touched {
            self.update(agent, param, o, |old| {
                let (old, new) = (
                    Words::splat(ty, 1, old),
                    Words::splat(ty, 1, values.get(lane)),
                );
                let result = match ty {
                    Type::BOOL => Ok(bool_op(fold::step_op(op), &old, &new)),
                    _ => words::binary(fold::step_op(op), ty, &old, &new),
                };
                result.map_or(0, |w| w.get(0))
            })?;
        }
        Ok(())
    }
}

fn bool_op(op: BinaryOp, a: &Words, b: &Words) -> Words {
    let zip = |f: fn(u8, u8) -> u8| {
        Words::W8(a.w8().iter().zip(b.w8()).map(|(&x, &y)| f(x, y)).collect())
    };
    match op {
        BinaryOp::And => zip(|x, y| x & y),
        BinaryOp::Or => zip(|x, y| x | y),
        _ => zip(|x, y| x ^ y),
    }
}

/// The axis that boxes cut, and how much of it one takes; inner axes are whole, outer ones single points.
fn cut(extents: &[usize]) -> (usize, usize) {
    let mut inner = 1;
    for axis in (0..extents.len()).rev() {
        if axis == 0 || inner * extents[axis] > LANES {
            return (axis, (LANES / inner).max(1));
        }
        inner *= extents[axis];
    }
    (0, 1)
}

impl Agent {
    pub fn lanes_of(&self, v: ValueId) -> Cow<'_, Lanes> {
        match &self.lanes[v.index()] {
            Lanes::Outside => Cow::Owned(Lanes::Uniform(self.values[v.index()])),
            lanes => Cow::Borrowed(lanes),
        }
    }

    /// The value in `n` lanes of a box (`n` is 1 for what all lanes share).
    pub fn column(&self, v: ValueId, ty: Type, n: usize, dims: &[usize]) -> Cow<'_, Words> {
        match &self.lanes[v.index()] {
            Lanes::Outside => Cow::Owned(Words::splat(ty, n, self.values[v.index()])),
            Lanes::Uniform(bits) => Cow::Owned(Words::splat(ty, n, *bits)),
            Lanes::Affine(a) => Cow::Owned(Words::W64(a.column(dims))),
            Lanes::Column(words) => Cow::Borrowed(words),
        }
    }
}
