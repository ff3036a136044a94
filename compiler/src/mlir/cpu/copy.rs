//! Copies between tensors and tiles.
//!
//! One check asks whether the rectangle lies inside; if it does, loops of fixed extents run. If not, the destination is zeroed where
//! the program asks for it and loops over the part that lies inside run, so that no element carries a mask. Elements widen on the way.
//! Gathered coordinates are looked up once per row.
//!
//! Keeps: elements are moved bit by bit, or converted exactly.

use super::access::{Form, Memory, Stride};
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::target::cpu::CACHE_LINE_BYTES;
use crate::tile::ir::*;

const OUTSIDE: &str = "a `copy` with `@oob(error)` reaches outside its tensor";

/// One axis of the rectangle, on one side of the copy.
#[derive(Clone, Debug)]
enum Along<'c> {
    Span {
        start: Val<'c>,
        stride: Stride<'c>,
        /// The tensor's extent; a tile's spans are inside by construction.
        extent: Option<Val<'c>>,
    },
    Gather {
        /// Element 0 of the index vector, and its type.
        index: Memory<'c>,
        first: Val<'c>,
        step: Stride<'c>,
        stride: Stride<'c>,
        extent: Option<Val<'c>>,
    },
}

/// One side of a copy.
#[derive(Clone, Debug)]
struct Side<'c> {
    memory: Memory<'c>,
    /// The tensor; `None` for a tile.
    param: Option<ParamId>,
    /// What the fixed coordinates add.
    fixed: Vec<(Val<'c>, Stride<'c>, Option<Val<'c>>)>,
    axes: Vec<Along<'c>>,
}

/// Bounds of one axis of the rectangle.
#[derive(Clone, Copy, Debug)]
enum Bounds<'c> {
    Whole(u64),
    Part { lo: Val<'c>, hi: Val<'c> },
}

/// What happens to one element, at given offsets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    Move,
    Zero,
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn copy(&mut self, dst: &View, src: &View, oob: Oob) -> Emit {
        let shape = src.shape();
        if shape.contains(&0) {
            return Ok(());
        }
        let to = self.side(dst)?;
        let from = self.side(src)?;
        if oob == Oob::Never {
            return self.rectangle(&shape, &to, &from, oob);
        }
        let from_parts = self.clip(&from, &shape);
        let to_parts = self.clip(&to, &shape);
        let inside = match (
            self.inside(&from_parts, &shape),
            self.inside(&to_parts, &shape),
        ) {
            (Some(a), Some(b)) => Some(self.b.andi(a, b)),
            (a, b) => a.or(b),
        };
        let places = [inside, self.at_inside(&from), self.at_inside(&to)];
        let inside = places
            .into_iter()
            .flatten()
            .reduce(|x, y| self.b.andi(x, y));
        if oob == Oob::Error {
            let present = match self.gathers_present(&shape, &from) {
                Some(p) => Some(p),
                None => self.gathers_present(&shape, &to),
            };
            for cond in [inside, present].into_iter().flatten() {
                self.check(
                    cond,
                    "a `copy` with `@oob(error)` reaches outside its tensor",
                );
            }
            return self.rectangle(&shape, &to, &from, oob);
        }
        let Some(inside) = inside else {
            return self.rectangle(&shape, &to, &from, oob);
        };
        let mut open = self.b.begin_if(inside);
        self.rectangle(&shape, &to, &from, oob)?;
        self.b.otherwise(&mut open);
        let to_at = self.at_inside(&to);
        if oob == Oob::Zero {
            let bounds = self.bounds(&shape, &[&to_parts], to_at);
            self.nest(&bounds, &to, None, oob)?;
        }
        let from_at = self.at_inside(&from);
        let at = match (from_at, to_at) {
            (Some(a), Some(b)) => Some(self.b.andi(a, b)),
            (a, b) => a.or(b),
        };
        let bounds = self.bounds(&shape, &[&from_parts, &to_parts], at);
        self.nest(&bounds, &to, Some(&from), oob)?;
        self.b.end_if(open);
        Ok(())
    }

    /// A copy into a tile that may be read in the tensor instead: from here on the tile is where its elements are found.
    pub(super) fn copy_in_place(&mut self, dst: &View, src: &View, oob: Oob) -> Emit {
        let (Base::Tile(tile), shape) = (dst.base, src.shape()) else {
            return Err(self.fault("a tile that is no tile is read in place"));
        };
        let from = self.side(src)?;
        let own = self.tile(tile)?;
        let mut conditions: Vec<Val<'c>> = Vec::new();
        for ((along, &len), stride) in from.axes.iter().zip(&shape).zip(&own.strides) {
            let (Along::Span { stride: found, .. }, Stride::Const(wanted)) = (along, *stride)
            else {
                return self.copy(dst, src, oob);
            };
            match *found {
                _ if len == 1 => {}
                Stride::Const(s) if s == wanted => {}
                Stride::Const(_) => return self.copy(dst, src, oob),
                Stride::Dynamic(s) => {
                    let wanted = self.b.i64(wanted);
                    conditions.push(self.b.cmpi(IntCompare::Eq, s, wanted));
                }
            }
        }
        if oob != Oob::Never {
            let parts = self.clip(&from, &shape);
            let inside = [self.inside(&parts, &shape), self.at_inside(&from)];
            for cond in inside.into_iter().flatten() {
                match oob {
                    Oob::Error => self.check(cond, OUTSIDE),
                    _ => conditions.push(cond),
                }
            }
        }
        let mut at = self.fixed_offset(&from);
        for along in &from.axes {
            let zero = self.b.i64(0);
            at = self.step(Some(along), zero, at).0;
        }
        let there = self.address(&from.memory, at);
        let cond = conditions.into_iter().reduce(|a, b| self.b.andi(a, b));
        let base = match cond {
            None => there,
            Some(cond) => {
                let no = self.b.int(Elem::I1, 1, 1);
                let copied = self.b.xori(cond, no);
                let open = self.b.begin_if(copied);
                if oob == Oob::Error {
                    let to = self.side(dst)?;
                    self.rectangle(&shape, &to, &from, oob)?;
                } else {
                    self.copy(dst, src, oob)?;
                }
                self.b.end_if(open);
                self.b.select(cond, there, own.base)
            }
        };
        let scope = match (own.scope, from.memory.scope) {
            (Some(a), Some(b)) => Some(self.b.join_scopes(a, b)),
            _ => None,
        };
        self.tiles[tile.index()] = Some(Memory { base, scope, ..own });
        Ok(())
    }

    /// All of the rectangle, known to lie inside (but for gathered coordinates).
    fn rectangle(&mut self, shape: &[u64], to: &Side<'c>, from: &Side<'c>, oob: Oob) -> Emit {
        let bounds: Vec<_> = shape.iter().map(|&len| Bounds::Whole(len)).collect();
        self.nest(&bounds, to, Some(from), oob)
    }

    // ---- sides ------------------------------------------------------------------------------------------

    fn side(&mut self, view: &View) -> Emit<Side<'c>> {
        let (memory, param, extents) = match view.base {
            Base::Tile(t) => (self.tile(t)?, None, None),
            Base::Param(p) => (self.tensor(p)?, Some(p), Some(self.extents(p))),
        };
        let mut side = Side {
            memory,
            param,
            fixed: Vec::new(),
            axes: Vec::new(),
        };
        for (axis, slot) in view.slots.iter().enumerate() {
            let stride = side.memory.strides[axis];
            let extent = extents.as_ref().map(|e| e[axis]);
            match slot {
                Slot::At(v) => side.fixed.push((self.uniform(*v)?, stride, extent)),
                Slot::Span { start, len: _ } => side.axes.push(Along::Span {
                    start: self.uniform(*start)?,
                    stride,
                    extent,
                }),
                Slot::Gather { index, len: _ } => {
                    let index_side = self.side(index)?;
                    let first = self.fixed_offset(&index_side);
                    let (first, step) = match index_side.axes.first() {
                        Some(Along::Span { start, stride, .. }) => {
                            let at = self.times(*start, *stride);
                            (self.b.addi(first, at), *stride)
                        }
                        _ => return Err(self.unsupported("a gather by gathered coordinates")),
                    };
                    side.axes.push(Along::Gather {
                        index: index_side.memory,
                        first,
                        step,
                        stride,
                        extent,
                    });
                }
            }
        }
        Ok(side)
    }

    fn times(&mut self, v: Val<'c>, stride: Stride<'c>) -> Val<'c> {
        match stride {
            Stride::Const(s) => self.b.mul_const(v, s),
            Stride::Dynamic(s) => self.b.muli(v, s),
        }
    }

    /// Offset of the rectangle's first element, before gathered coordinates.
    fn fixed_offset(&mut self, side: &Side<'c>) -> Val<'c> {
        let mut sum = self.b.i64(0);
        for &(at, stride, _) in &side.fixed {
            let part = self.times(at, stride);
            sum = self.b.addi(sum, part);
        }
        sum
    }

    // ---- clipping -----------------------------------------------------------------------------------------

    /// The part of each axis that lies inside; `None` where nothing can lie outside.
    fn clip(&mut self, side: &Side<'c>, shape: &[u64]) -> Vec<Option<(Val<'c>, Val<'c>)>> {
        let mut parts = Vec::new();
        for (along, &len) in side.axes.iter().zip(shape) {
            parts.push(match along {
                Along::Span {
                    start,
                    extent: Some(extent),
                    ..
                } => {
                    let zero = self.b.i64(0);
                    let len = self.b.i64(len as i64);
                    let before = self.b.subi(zero, *start);
                    let lo = self.b.max_signed(before, zero);
                    let rest = self.b.subi(*extent, *start);
                    let hi = self.b.min_signed(rest, len);
                    Some((lo, hi))
                }
                _ => None,
            });
        }
        parts
    }

    fn inside(&mut self, parts: &[Option<(Val<'c>, Val<'c>)>], shape: &[u64]) -> Option<Val<'c>> {
        let mut all: Option<Val<'c>> = None;
        for (part, &len) in parts.iter().zip(shape) {
            let Some((lo, hi)) = *part else { continue };
            let zero = self.b.i64(0);
            let len = self.b.i64(len as i64);
            let first = self.b.cmpi(IntCompare::Eq, lo, zero);
            let last = self.b.cmpi(IntCompare::Eq, hi, len);
            let both = self.b.andi(first, last);
            all = Some(match all {
                Some(a) => self.b.andi(a, both),
                None => both,
            });
        }
        all
    }

    /// Whether the fixed coordinates lie inside.
    fn at_inside(&mut self, side: &Side<'c>) -> Option<Val<'c>> {
        let mut all: Option<Val<'c>> = None;
        for &(at, _, extent) in &side.fixed {
            let Some(extent) = extent else { continue };
            // Unsigned: a negative coordinate is beyond every extent.
            let inside = self.b.cmpi(IntCompare::Ult, at, extent);
            all = Some(match all {
                Some(a) => self.b.andi(a, inside),
                None => inside,
            });
        }
        all
    }

    /// The loops' bounds: the intersection of the parts, empty where `unless` does not hold.
    fn bounds(
        &mut self,
        shape: &[u64],
        sides: &[&Vec<Option<(Val<'c>, Val<'c>)>>],
        when: Option<Val<'c>>,
    ) -> Vec<Bounds<'c>> {
        let mut bounds: Vec<Bounds<'c>> = Vec::new();
        for (axis, &len) in shape.iter().enumerate() {
            let mut found: Option<(Val<'c>, Val<'c>)> = None;
            for part in sides.iter().filter_map(|side| side[axis]) {
                found = Some(match found {
                    None => part,
                    Some((lo, hi)) => {
                        (self.b.max_signed(lo, part.0), self.b.min_signed(hi, part.1))
                    }
                });
            }
            bounds.push(match found {
                Some((lo, hi)) => Bounds::Part { lo, hi },
                None => Bounds::Whole(len),
            });
        }
        if let Some(cond) = when {
            // A rectangle of rank 0 still has one element to leave out.
            let zero = self.b.i64(0);
            match bounds.first_mut() {
                Some(first) => {
                    let (lo, hi) = match *first {
                        Bounds::Whole(len) => (zero, self.b.i64(len as i64)),
                        Bounds::Part { lo, hi } => (lo, hi),
                    };
                    let hi = self.b.select(cond, hi, zero);
                    *first = Bounds::Part { lo, hi };
                }
                None => {
                    let one = self.b.i64(1);
                    let hi = self.b.select(cond, one, zero);
                    bounds.push(Bounds::Part { lo: zero, hi });
                }
            }
        }
        bounds
    }

    /// Whether every gathered coordinate is present.
    fn gathers_present(&mut self, shape: &[u64], side: &Side<'c>) -> Option<Val<'c>> {
        let mut all: Option<Val<'c>> = None;
        for (along, &len) in side.axes.iter().zip(shape) {
            let Along::Gather {
                extent: Some(extent),
                ..
            } = along
            else {
                continue;
            };
            let (lo, hi) = (self.b.i64(0), self.b.i64(len as i64));
            let yes = self.b.int(Elem::I1, 1, 1);
            let open = self.b.begin_rolled_for(lo, hi, 1, &[yes]);
            let at = self.gathered(along, open.iv)?;
            let present = self.b.cmpi(IntCompare::Ult, at, *extent);
            let so_far = self.b.andi(open.carried[0], present);
            let present = self.b.end_for(open, &[so_far])[0];
            all = Some(match all {
                Some(a) => self.b.andi(a, present),
                None => present,
            });
        }
        all
    }

    /// The coordinate that element `i` of the index vector holds.
    fn gathered(&mut self, along: &Along<'c>, i: Val<'c>) -> Option<Val<'c>> {
        let Along::Gather {
            index, first, step, ..
        } = along
        else {
            return None;
        };
        let at = self.times(i, *step);
        let at = self.b.addi(*first, at);
        let form = self.load(index, Form::Uniform(at), None, 1);
        let v = self.spread(form, 1);
        Some(self.b.resize(v, Elem::I64, index.dtype.is_signed_int()))
    }

    // ---- loops ------------------------------------------------------------------------------------------------

    /// Moves (or zeroes, without a source) the elements within `bounds`.
    fn nest(
        &mut self,
        bounds: &[Bounds<'c>],
        to: &Side<'c>,
        from: Option<&Side<'c>>,
        oob: Oob,
    ) -> Emit {
        let to_at = self.fixed_offset(to);
        let from_at = match from {
            Some(from) => self.fixed_offset(from),
            None => to_at,
        };
        let action = if from.is_some() {
            Action::Move
        } else {
            Action::Zero
        };
        let cx = Nest {
            to,
            from: from.unwrap_or(to),
            oob,
        };
        self.nest_axis(bounds, &cx, 0, to_at, from_at, action)
    }

    fn nest_axis(
        &mut self,
        bounds: &[Bounds<'c>],
        cx: &Nest<'_, 'c>,
        axis: usize,
        to_at: Val<'c>,
        from_at: Val<'c>,
        action: Action,
    ) -> Emit {
        let Some(&bound) = bounds.get(axis) else {
            self.element(cx, Form::Uniform(to_at), Form::Uniform(from_at), action, 1);
            return Ok(());
        };
        let to = cx.to.axes.get(axis);
        let from = cx.from.axes.get(axis);
        if axis + 1 == bounds.len()
            && let (Some(Along::Span { .. }), Some(Along::Span { .. })) = (to, from)
        {
            return self.row(bound, cx, axis, to_at, from_at, action);
        }
        let (lo, hi) = self.limits(bound);
        let single = matches!(bound, Bounds::Whole(1));
        let open = (!single).then(|| self.b.begin_rolled_for(lo, hi, 1, &[]));
        let i = open.as_ref().map_or(lo, |open| open.iv);
        let (to_next, to_present) = self.step(to, i, to_at);
        let (from_next, from_present) = match action {
            Action::Move => self.step(from, i, from_at),
            Action::Zero => (from_at, None),
        };
        let mut writing = to_present.map(|p| self.b.begin_if(p));
        match from_present {
            Some(present) => {
                let mut reading = self.b.begin_if(present);
                self.nest_axis(bounds, cx, axis + 1, to_next, from_next, action)?;
                if cx.oob != Oob::Skip {
                    self.b.otherwise(&mut reading);
                    self.nest_axis(bounds, cx, axis + 1, to_next, from_next, Action::Zero)?;
                }
                self.b.end_if(reading);
            }
            None => self.nest_axis(bounds, cx, axis + 1, to_next, from_next, action)?,
        }
        if let Some(writing) = writing.take() {
            self.b.end_if(writing);
        }
        if let Some(open) = open {
            self.b.end_for(open, &[]);
        }
        Ok(())
    }

    fn limits(&mut self, bound: Bounds<'c>) -> (Val<'c>, Val<'c>) {
        match bound {
            Bounds::Whole(len) => (self.b.i64(0), self.b.i64(len as i64)),
            Bounds::Part { lo, hi } => (lo, hi),
        }
    }

    /// The offset at coordinate `i` of an axis, and for a gathered coordinate whether it is present.
    fn step(
        &mut self,
        along: Option<&Along<'c>>,
        i: Val<'c>,
        at: Val<'c>,
    ) -> (Val<'c>, Option<Val<'c>>) {
        match along {
            None => (at, None),
            Some(Along::Span { start, stride, .. }) => {
                let coordinate = self.b.addi(*start, i);
                let part = self.times(coordinate, *stride);
                (self.b.addi(at, part), None)
            }
            Some(gather @ Along::Gather { stride, extent, .. }) => {
                let coordinate = self.gathered(gather, i).unwrap_or(i);
                let present = extent.map(|extent| self.b.cmpi(IntCompare::Ult, coordinate, extent));
                let part = self.times(coordinate, *stride);
                (self.b.addi(at, part), present)
            }
        }
    }

    /// The innermost axis, in vector lanes.
    fn row(
        &mut self,
        bound: Bounds<'c>,
        cx: &Nest<'_, 'c>,
        axis: usize,
        to_at: Val<'c>,
        from_at: Val<'c>,
        action: Action,
    ) -> Emit {
        let zero = self.b.i64(0);
        let (to_at, _) = self.step(cx.to.axes.get(axis), zero, to_at);
        let (from_at, _) = match action {
            Action::Move => self.step(cx.from.axes.get(axis), zero, from_at),
            Action::Zero => (from_at, None),
        };
        match bound {
            Bounds::Whole(len) => {
                let Some(cond) = self.may_stream(cx.to, axis, len, to_at) else {
                    self.whole_row(len, cx, axis, (to_at, from_at), action);
                    return Ok(());
                };
                let mut open = self.b.begin_if(cond);
                let mut to = cx.to.clone();
                to.memory.streamed = true;
                let streamed = Nest { to: &to, ..*cx };
                self.whole_row(len, &streamed, axis, (to_at, from_at), action);
                self.b.otherwise(&mut open);
                self.whole_row(len, cx, axis, (to_at, from_at), action);
                self.b.end_if(open);
            }
            Bounds::Part { lo, hi } => {
                self.part_of_row((lo, hi), cx, axis, (to_at, from_at), action)
            }
        }
        Ok(())
    }

    /// Whether a row of `len` elements at `at` goes past the caches; `None` where it never does. Only whole lines do.
    fn may_stream(&mut self, to: &Side<'c>, axis: usize, len: u64, at: Val<'c>) -> Option<Val<'c>> {
        let large = self.streams.large(to.param?)?;
        let bytes = len * to.memory.element_bytes() as u64;
        let neighbours = matches!(
            to.axes.get(axis),
            Some(Along::Span {
                stride: Stride::Const(1),
                ..
            })
        );
        if to.memory.packed || !neighbours || !bytes.is_multiple_of(CACHE_LINE_BYTES as u64) {
            return None;
        }
        let p = self.address(&to.memory, at);
        let p = self.b.address_bits(p);
        let within = self.b.i64(CACHE_LINE_BYTES as i64 - 1);
        let within = self.b.andi(p, within);
        let zero = self.b.i64(0);
        let aligned = self.b.cmpi(IntCompare::Eq, within, zero);
        Some(self.b.andi(large, aligned))
    }

    fn row_lanes(&self, cx: &Nest<'_, 'c>) -> u32 {
        let bits = cx.to.memory.elem.bits().max(cx.from.memory.elem.bits());
        (self.machine.vector_bytes * 16 / bits).min(64)
    }

    /// Moves the elements `i .. i + width` of a row.
    fn row_step(
        &mut self,
        cx: &Nest<'_, 'c>,
        axis: usize,
        (to_at, from_at): (Val<'c>, Val<'c>),
        i: Val<'c>,
        width: u32,
        action: Action,
    ) {
        let at = |e: &mut Self, side: &Side<'c>, base: Val<'c>| {
            let Some(Along::Span { stride, .. }) = side.axes.get(axis) else {
                return Form::Uniform(base);
            };
            e.along(base, i, *stride, width)
        };
        let to = at(self, cx.to, to_at);
        let from = at(self, cx.from, from_at);
        self.element(cx, to, from, action, width);
    }

    fn whole_row(
        &mut self,
        len: u64,
        cx: &Nest<'_, 'c>,
        axis: usize,
        at: (Val<'c>, Val<'c>),
        action: Action,
    ) {
        let mut done = 0;
        for (width, upto) in super::pointwise::segments(len as i64, self.row_lanes(cx)) {
            let many = upto - done > width as i64;
            let start = self.b.i64(done);
            let open = many.then(|| {
                let end = self.b.i64(upto);
                self.b.begin_rolled_for(start, end, width as i64, &[])
            });
            let i = open.as_ref().map_or(start, |open| open.iv);
            self.row_step(cx, axis, at, i, width, action);
            if let Some(open) = open {
                self.b.end_for(open, &[]);
            }
            done = upto;
        }
    }

    fn part_of_row(
        &mut self,
        (lo, hi): (Val<'c>, Val<'c>),
        cx: &Nest<'_, 'c>,
        axis: usize,
        at: (Val<'c>, Val<'c>),
        action: Action,
    ) {
        let lanes = self.row_lanes(cx);
        // A tile that lies wholly past the end ends before it begins.
        let within = self.b.cmpi(IntCompare::Sgt, hi, lo);
        let hi = self.b.select(within, hi, lo);
        let length = self.b.subi(hi, lo);
        let mask = self.b.i64(!(lanes as i64 - 1));
        let even = self.b.andi(length, mask);
        let main_end = self.b.addi(lo, even);
        for (width, start, end) in [(lanes, lo, main_end), (1, main_end, hi)] {
            let open = self.b.begin_rolled_for(start, end, width as i64, &[]);
            self.row_step(cx, axis, at, open.iv, width, action);
            self.b.end_for(open, &[]);
        }
    }

    /// Offsets of `width` neighbours from element `i` of an axis.
    fn along(&mut self, base: Val<'c>, i: Val<'c>, stride: Stride<'c>, width: u32) -> Form<'c> {
        let part = self.times(i, stride);
        let base = self.b.addi(base, part);
        match (width, stride) {
            (1, _) => Form::Uniform(base),
            (_, Stride::Const(step)) => Form::Affine {
                base,
                step,
                multiple: 1,
            },
            (_, Stride::Dynamic(step)) => {
                let lane = self.b.iota(width);
                let step = self.b.broadcast(step, width);
                let grown = self.b.muli(lane, step);
                let base = self.b.broadcast(base, width);
                Form::Varying(self.b.addi(base, grown))
            }
        }
    }

    fn element(
        &mut self,
        cx: &Nest<'_, 'c>,
        to: Form<'c>,
        from: Form<'c>,
        action: Action,
        lanes: u32,
    ) {
        let (to_dtype, from_dtype) = (cx.to.memory.dtype, cx.from.memory.dtype);
        let value = match action {
            Action::Zero => self.zero_of(to_dtype),
            Action::Move => {
                let v = self.load(&cx.from.memory, from, None, lanes);
                match v {
                    v if from_dtype == to_dtype => v,
                    v => {
                        let v = self.spread(v, lanes);
                        let v = self
                            .b
                            .cast(v, Type::Scalar(from_dtype), Type::Scalar(to_dtype))
                            .expect("the verifier lets a copy only widen");
                        self.form_of(v)
                    }
                }
            }
        };
        self.store(&cx.to.memory, to, value, None, lanes);
    }
}

#[derive(Clone, Copy)]
struct Nest<'a, 'c> {
    to: &'a Side<'c>,
    from: &'a Side<'c>,
    oob: Oob,
}
