//! Rectangles of tiles and tensors: where their elements are, copies between them.

use super::error::ErrorKind;
use super::memory::{Affine, Offsets, TileData};
use super::words::{self, Words};
use super::{Agent, Run};
use crate::source::Span;
use crate::tile::ir::*;
use crate::tile::verify::MAX_RANK;
use tessera_artifact::DType;

/// One axis of a view with its coordinates known.
#[derive(Clone, Debug)]
enum At {
    One(i64),
    Span(i64, usize),
    /// Gathered; below 0 is missing.
    List(Vec<i64>),
}

/// A view with its coordinates known.
pub struct Located {
    base: Base,
    axes: Vec<At>,
}

/// Extents and strides of what a view looks at.
pub struct Geometry {
    pub extents: Vec<u64>,
    pub strides: [i64; MAX_RANK],
    pub offset: i64,
}

/// One row of a copy: the elements along the last kept axis.
struct Row {
    /// Offset of coordinate 0 of that axis; `None`: an outer coordinate lies outside.
    start: Option<i64>,
    /// First coordinate along the last axis, step in memory, extent; a gather is one element at a time.
    from: i64,
    step: i64,
    extent: i64,
}

type Result<T> = std::result::Result<T, ErrorKind>;

impl Run<'_> {
    pub fn geometry(&self, base: Base) -> Geometry {
        match base {
            Base::Tile(t) => {
                let shape = &self.kernel.tile(t).shape;
                Geometry {
                    extents: shape.clone(),
                    strides: super::memory::row_major(shape),
                    offset: 0,
                }
            }
            Base::Param(p) => {
                let g = self.global(p);
                Geometry {
                    extents: g.shape.clone(),
                    strides: g.strides,
                    offset: g.offset,
                }
            }
        }
    }

    pub fn base_name(&self, base: Base) -> String {
        match base {
            Base::Tile(t) => self.kernel.tile(t).name.clone(),
            Base::Param(p) => self.kernel.param(p).name.clone(),
        }
    }

    // `span` is that of the op, whose places are found one inside the other.
    #[allow(clippy::only_used_in_recursion)]
    pub fn locate(
        &mut self,
        agent: &mut Agent,
        base: Base,
        slots: &[Slot],
        span: Span,
    ) -> Result<Located> {
        let mut axes = Vec::with_capacity(slots.len());
        let extents = self.geometry(base).extents;
        for (axis, slot) in slots.iter().enumerate() {
            axes.push(match slot {
                Slot::At(v) => At::One(agent.index(*v)),
                Slot::Span { start, len } => At::Span(agent.index(*start), *len as usize),
                Slot::Gather { index, len: _ } => {
                    let from = self.locate(agent, index.base, &index.slots, span)?;
                    let words = self.read_all(agent, &from)?;
                    let dtype = self.base_dtype(index.base);
                    let list = words::cast(Type::Scalar(dtype), Type::Index, &words);
                    let list: Vec<i64> = list.w64().iter().map(|&i| i as i64).collect();
                    if let Some(&index) = list.iter().find(|&&i| i >= extents[axis] as i64) {
                        let name = self.base_name(base);
                        return Err(ErrorKind::GatherPastEnd {
                            name,
                            axis,
                            index,
                            extent: extents[axis],
                        });
                    }
                    At::List(list)
                }
            });
        }
        Ok(Located { base, axes })
    }

    pub fn base_dtype(&self, base: Base) -> DType {
        match base {
            Base::Tile(t) => self.kernel.tile(t).dtype,
            Base::Param(p) => self.global(p).dtype,
        }
    }

    /// Every element in order; all must be inside.
    pub fn read_all(&mut self, agent: &mut Agent, view: &Located) -> Result<Words> {
        match self.all_offsets(view, false)? {
            Some(offsets) => self.read(agent, view.base, &offsets),
            None => Ok(Words::zeros(Type::Scalar(self.base_dtype(view.base)), 0)),
        }
    }

    /// Writes `values` in order; all must be inside.
    pub fn write_all(&mut self, agent: &mut Agent, view: &Located, values: &Words) -> Result<()> {
        match self.all_offsets(view, true)? {
            Some(offsets) => self.write(agent, view.base, &offsets, values, false),
            None => Ok(()),
        }
    }

    /// `None`: the view is empty.
    fn all_offsets(&self, view: &Located, write: bool) -> Result<Option<Offsets>> {
        let geometry = self.geometry(view.base);
        let shape = view.shape();
        if shape.contains(&0) {
            return Ok(None);
        }
        if view.axes.iter().any(|a| matches!(a, At::List(_))) {
            let points = points(&shape);
            let mut offsets = Vec::with_capacity(points.len());
            for point in points {
                self.inside(view, &geometry, &point, write)?;
                offsets.push(view.element(&geometry, &point).start.unwrap_or(0) as usize);
            }
            return Ok(Some(Offsets::Column(offsets)));
        }
        let first = vec![0; shape.len()];
        let last: Vec<usize> = shape.iter().map(|n| n - 1).collect();
        self.inside(view, &geometry, &first, write)?;
        self.inside(view, &geometry, &last, write)?;
        let mut affine = Affine::constant(geometry.offset);
        let mut kept = 0;
        for (at, stride) in view.axes.iter().zip(geometry.strides) {
            match at {
                At::One(i) => affine.base += i * stride,
                At::Span(start, _) => {
                    affine.base += start * stride;
                    affine.steps[kept] = stride;
                    kept += 1;
                }
                At::List(_) => unreachable!("taken above"),
            }
        }
        Ok(Some(Offsets::Affine(affine, shape)))
    }

    /// An error for the first coordinate of a row that lies outside.
    fn inside(
        &self,
        view: &Located,
        geometry: &Geometry,
        row: &[usize],
        write: bool,
    ) -> Result<()> {
        let mut kept = 0;
        for (axis, at) in view.axes.iter().enumerate() {
            let extent = geometry.extents[axis] as i64;
            let out = |index| ErrorKind::OutOfBounds {
                name: self.base_name(view.base),
                axis,
                index,
                extent: extent as u64,
                write,
            };
            let is_last = view.last_span() == Some(axis);
            match at {
                At::One(i) if *i < 0 || *i >= extent => return Err(out(*i)),
                At::One(_) => continue,
                At::Span(start, len) if is_last => {
                    if *start < 0 {
                        return Err(out(*start));
                    }
                    if start + *len as i64 > extent {
                        return Err(out((*start).max(extent)));
                    }
                }
                At::Span(start, _) => {
                    let i = start + row[kept] as i64;
                    if i < 0 || i >= extent {
                        return Err(out(i));
                    }
                }
                At::List(list) => {
                    if list[row[kept]] < 0 {
                        return Err(ErrorKind::Missing {
                            name: self.base_name(view.base),
                        });
                    }
                }
            }
            kept += 1;
        }
        Ok(())
    }

    pub fn copy(
        &mut self,
        agent: &mut Agent,
        dst: &View,
        src: &View,
        oob: Oob,
        span: Span,
    ) -> Result<()> {
        let view = self.locate(agent, dst.base, &dst.slots, span)?;
        let geometry = self.geometry(view.base);
        let ty = Type::Scalar(self.base_dtype(dst.base));
        self.copy_to(
            agent,
            Target {
                view,
                geometry,
                ty,
                fresh: None,
            },
            src,
            oob,
            span,
        )
        .map(|_| ())
    }

    /// A copy of a view as a tile of its own.
    pub fn copy_out(
        &mut self,
        agent: &mut Agent,
        src: &View,
        oob: Oob,
        dtype: DType,
        shape: &[u64],
        span: Span,
    ) -> Result<TileData> {
        let data = TileData::new(dtype, shape);
        let geometry = Geometry {
            extents: shape.to_vec(),
            strides: data.strides(),
            offset: 0,
        };
        let axes = shape.iter().map(|&n| At::Span(0, n as usize)).collect();
        // The base only names the view in errors, and this one is always inside.
        let view = Located {
            base: src.base,
            axes,
        };
        let ty = Type::Scalar(dtype);
        let fresh = self.copy_to(
            agent,
            Target {
                view,
                geometry,
                ty,
                fresh: Some(data),
            },
            src,
            oob,
            span,
        )?;
        Ok(fresh.unwrap_or_else(|| TileData::new(dtype, shape)))
    }

    fn copy_to(
        &mut self,
        agent: &mut Agent,
        mut to: Target,
        src: &View,
        oob: Oob,
        span: Span,
    ) -> Result<Option<TileData>> {
        let from = self.locate(agent, src.base, &src.slots, span)?;
        let from_ty = Type::Scalar(self.base_dtype(src.base));
        let from_geometry = self.geometry(src.base);
        let shape = to.view.shape();
        if shape.contains(&0) {
            return Ok(to.fresh);
        }
        // Both sides go by rows only if both are spans along the last axis; else by elements.
        let by_rows =
            to.view.last_span().is_some() && from.last_span().is_some() || shape.is_empty();
        let n = if by_rows {
            shape.last().copied().unwrap_or(1)
        } else {
            1
        };
        let outer: &[usize] = if by_rows {
            &shape[..shape.len().saturating_sub(1)]
        } else {
            &shape
        };
        for row in points(outer) {
            if matches!(oob, Oob::Never | Oob::Error) {
                self.inside(&from, &from_geometry, &row, false)?;
                self.inside(&to.view, &to.geometry, &row, true)?;
            }
            let place = |view: &Located, geometry: &Geometry| {
                if by_rows {
                    view.row(geometry, &row)
                } else {
                    view.element(geometry, &row)
                }
            };
            let (w, r) = (place(&to.view, &to.geometry), place(&from, &from_geometry));
            let Some(w_start) = w.start else { continue };
            // Elements lo..hi of the row that each side has.
            let (w_lo, w_hi) = w.valid(n);
            let (r_lo, r_hi) = if r.start.is_some() {
                r.valid(n)
            } else {
                (0, 0)
            };
            let (lo, hi) = (w_lo.max(r_lo), w_hi.min(r_hi));
            let run = |a: i64, b: i64| {
                Offsets::run(w_start + (w.from + a) * w.step, w.step, (b - a) as usize)
            };
            if oob == Oob::Zero {
                let holes = if lo >= hi {
                    [(w_lo, w_hi), (0, 0)]
                } else {
                    [(w_lo, lo), (hi, w_hi)]
                };
                for (a, b) in holes.into_iter().filter(|(a, b)| a < b) {
                    let zeros = Words::zeros(to.ty, (b - a) as usize);
                    self.write_target(agent, &mut to, &run(a, b), &zeros)?;
                }
            }
            if lo < hi {
                let start = r.start.unwrap_or(0) + (r.from + lo) * r.step;
                let mut values = self.read(
                    agent,
                    src.base,
                    &Offsets::run(start, r.step, (hi - lo) as usize),
                )?;
                if from_ty != to.ty {
                    values = words::cast(from_ty, to.ty, &values);
                }
                self.write_target(agent, &mut to, &run(lo, hi), &values)?;
            }
        }
        Ok(to.fresh)
    }

    fn write_target(
        &mut self,
        agent: &mut Agent,
        to: &mut Target,
        offsets: &Offsets,
        values: &Words,
    ) -> Result<()> {
        match &mut to.fresh {
            Some(data) => {
                data.write(offsets, values);
                Ok(())
            }
            None => self.write(agent, to.view.base, offsets, values, false),
        }
    }
}

/// Where a copy goes.
struct Target {
    view: Located,
    geometry: Geometry,
    ty: Type,
    /// A tile of its own instead of the view's base.
    fresh: Option<TileData>,
}

impl Row {
    /// The elements of `0..n` whose coordinate lies inside.
    fn valid(&self, n: usize) -> (i64, i64) {
        let lo = self.from.checked_neg().unwrap_or(i64::MAX).max(0);
        let hi = self.extent.saturating_sub(self.from).min(n as i64);
        (lo, hi.max(0))
    }
}

impl Located {
    pub fn shape(&self) -> Vec<usize> {
        let len = |a: &At| match a {
            At::One(_) => None,
            At::Span(_, len) => Some(*len),
            At::List(l) => Some(l.len()),
        };
        self.axes.iter().filter_map(len).collect()
    }

    /// The last kept axis, if it is a span.
    fn last_span(&self) -> Option<usize> {
        let last = self.axes.iter().rposition(|a| !matches!(a, At::One(_)))?;
        matches!(self.axes[last], At::Span(..)).then_some(last)
    }

    /// The row at these coordinates of the kept axes but the last, which is a span (or there is none).
    fn row(&self, geometry: &Geometry, outer: &[usize]) -> Row {
        let last = self.last_span();
        let mut start = Some(geometry.offset);
        let mut row = Row {
            start,
            from: 0,
            step: 0,
            extent: 1,
        };
        let mut kept = 0;
        for (axis, at) in self.axes.iter().enumerate() {
            let extent = geometry.extents[axis] as i64;
            let i = match at {
                At::One(i) => *i,
                At::Span(from, _) if last == Some(axis) => {
                    row.from = *from;
                    row.step = geometry.strides[axis];
                    row.extent = extent;
                    continue;
                }
                At::Span(from, _) => from.saturating_add(outer[kept] as i64),
                At::List(list) => list[outer[kept]],
            };
            kept += !matches!(at, At::One(_)) as usize;
            let inside = (0..extent).contains(&i);
            start = start
                .filter(|_| inside)
                .map(|s| s + i * geometry.strides[axis]);
        }
        row.start = start;
        row
    }

    /// One element as a row of length 1, by the coordinates of all kept axes.
    fn element(&self, geometry: &Geometry, at: &[usize]) -> Row {
        let mut start = Some(geometry.offset);
        let mut kept = 0;
        for (axis, a) in self.axes.iter().enumerate() {
            let i = match a {
                At::One(i) => *i,
                At::Span(from, _) => from.saturating_add(at[kept] as i64),
                At::List(list) => list[at[kept]],
            };
            kept += !matches!(a, At::One(_)) as usize;
            let inside = (0..geometry.extents[axis] as i64).contains(&i);
            start = start
                .filter(|_| inside)
                .map(|s| s + i * geometry.strides[axis]);
        }
        Row {
            start,
            from: 0,
            step: 0,
            extent: 1,
        }
    }
}

/// Every point of a box, last axis fastest; one empty point for no axis.
pub fn points(shape: &[usize]) -> Vec<Vec<usize>> {
    let total: usize = shape.iter().product();
    let mut out = Vec::with_capacity(total);
    let mut at = vec![0; shape.len()];
    for _ in 0..total {
        out.push(at.clone());
        for axis in (0..shape.len()).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    out
}
