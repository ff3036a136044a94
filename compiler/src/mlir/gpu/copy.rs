//! Copies between tensors and tiles: elements dealt out over the threads, each with its own guard where the rectangle may reach outside.
//!
//! Keeps: elements are moved bit by bit, or converted exactly.

use super::access::{Memory, Stride};
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::tile::ir::*;

/// One side of a copy.
struct Side<'c> {
    memory: Memory<'c>,
    /// What the fixed coordinates add to the offset.
    start: Val<'c>,
    /// Whether they lie inside; `None` where they cannot lie outside.
    inside: Option<Val<'c>>,
    axes: Vec<Axis<'c>>,
}

/// One axis of the rectangle, on one side of the copy.
struct Axis<'c> {
    coordinate: Coordinate<'c>,
    stride: Stride<'c>,
    /// The base's extent, where a coordinate may be at or past it.
    extent: Option<Val<'c>>,
}

enum Coordinate<'c> {
    From(Val<'c>),
    /// Element `start + step * i` of an index vector.
    Listed {
        memory: Memory<'c>,
        start: Val<'c>,
        step: Stride<'c>,
    },
}

impl<'c> Emitter<'_, 'c> {
    pub(super) fn copy(&mut self, id: OpId, dst: &View, src: &View, oob: Oob) -> Emit {
        let shape = src.shape();
        let total: u64 = shape.iter().product();
        if total == 0
            || self.store_staged(id, dst, src)?
            || self.copy_in_registers(dst, src, oob)?
        {
            return Ok(());
        }
        let to = self.side(dst, oob)?;
        let from = self.side(src, oob)?;
        let open = self.begin_share(total);
        let point = self.point(open.iv, &shape);
        let (to_at, to_inside) = self.locate(&to, &point);
        let (from_at, from_inside) = self.locate(&from, &point);
        let widened = (from.memory.dtype, to.memory.dtype);
        match oob {
            Oob::Error | Oob::Skip => {
                let inside = self.both(to_inside, from_inside);
                let mut guarded = inside.map(|i| self.b.begin_if(i));
                self.move_element(&to, to_at, &from, from_at)?;
                if let Some(mut open) = guarded.take() {
                    if oob == Oob::Error {
                        self.b.otherwise(&mut open);
                        self.report("a `copy` with `@oob(error)` reaches outside its tensor");
                    }
                    self.b.end_if(open);
                }
            }
            // Where all is inside, only gathered coordinates can be missing, and a missing row reads 0.
            Oob::Never | Oob::Zero => {
                let writing = to_inside.map(|i| self.b.begin_if(i));
                let v = self.load_guarded(&from.memory, from_at, from_inside);
                let v = self.convert(v, widened.0, widened.1)?;
                self.store(&to.memory, to_at, v);
                if let Some(writing) = writing {
                    self.b.end_if(writing);
                }
            }
        }
        self.end_share(open);
        Ok(())
    }

    fn move_element(
        &mut self,
        to: &Side<'c>,
        to_at: Val<'c>,
        from: &Side<'c>,
        from_at: Val<'c>,
    ) -> Emit {
        let v = self.load(&from.memory, from_at);
        let v = self.convert(v, from.memory.dtype, to.memory.dtype)?;
        self.store(&to.memory, to_at, v);
        Ok(())
    }

    fn convert(
        &mut self,
        v: Val<'c>,
        from: tessera_artifact::DType,
        to: tessera_artifact::DType,
    ) -> Emit<Val<'c>> {
        let v = self.b.cast(v, Type::Scalar(from), Type::Scalar(to));
        self.lowered(v)
    }

    fn both(&mut self, a: Option<Val<'c>>, b: Option<Val<'c>>) -> Option<Val<'c>> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.b.andi(a, b)),
            (a, b) => a.or(b),
        }
    }

    fn side(&mut self, view: &View, oob: Oob) -> Emit<Side<'c>> {
        let (memory, extents) = match view.base {
            Base::Tile(t) => {
                let extents: Vec<_> = (self.kernel.tile(t).shape.iter())
                    .map(|&e| self.b.i64(e as i64))
                    .collect();
                (self.tile(t)?, extents)
            }
            Base::Param(p) => (self.tensor(p)?, self.extents(p)),
        };
        // Spans of a tile are inside by construction; gathered rows of it need not be.
        let is_tensor = matches!(view.base, Base::Param(_));
        let mut side = Side {
            start: self.b.i64(0),
            memory,
            inside: None,
            axes: Vec::new(),
        };
        for (axis, slot) in view.slots.iter().enumerate() {
            let stride = side.memory.strides[axis];
            let extent = (is_tensor && oob != Oob::Never).then_some(extents[axis]);
            let (coordinate, extent) = match slot {
                Slot::At(v) => {
                    let at = self.value(*v)?;
                    let part = self.times(at, stride);
                    side.start = self.b.addi(side.start, part);
                    if let Some(extent) = extent {
                        // Unsigned: a negative coordinate is beyond every extent.
                        let inside = self.b.cmpi(IntCompare::Ult, at, extent);
                        side.inside = self.both(side.inside, Some(inside));
                    }
                    continue;
                }
                Slot::Span { start, len: _ } => (Coordinate::From(self.value(*start)?), extent),
                Slot::Gather { index, len: _ } => {
                    let (memory, start, step) = self.index_vector(index)?;
                    let listed = Coordinate::Listed {
                        memory,
                        start,
                        step,
                    };
                    // A missing one is no error of the rectangle: it is always looked for.
                    (listed, Some(extents[axis]))
                }
            };
            side.axes.push(Axis {
                coordinate,
                stride,
                extent,
            });
        }
        Ok(side)
    }

    /// A view of rank 1 as its first element and the distance to the next.
    fn index_vector(&mut self, view: &View) -> Emit<(Memory<'c>, Val<'c>, Stride<'c>)> {
        let memory = match view.base {
            Base::Tile(t) => self.tile(t)?,
            Base::Param(p) => self.tensor(p)?,
        };
        let mut first = self.b.i64(0);
        let mut step = None;
        for (slot, &stride) in view.slots.iter().zip(&memory.strides) {
            let at = match slot {
                Slot::At(v) => *v,
                Slot::Span { start, len: _ } => {
                    step = Some(stride);
                    *start
                }
                Slot::Gather { .. } => {
                    return Err(self.unsupported("a gather by gathered coordinates"));
                }
            };
            let at = self.value(at)?;
            let part = self.times(at, stride);
            first = self.b.addi(first, part);
        }
        match step {
            Some(step) => Ok((memory, first, step)),
            None => Err(self.fault("an index vector without an axis")),
        }
    }

    /// The offset of a point of the rectangle, and whether it is inside (`None`: certainly).
    fn locate(&mut self, side: &Side<'c>, point: &[Val<'c>]) -> (Val<'c>, Option<Val<'c>>) {
        let mut offset = side.start;
        let mut inside = side.inside;
        for (axis, &i) in side.axes.iter().zip(point) {
            let at = match &axis.coordinate {
                Coordinate::From(start) => self.b.addi(*start, i),
                Coordinate::Listed {
                    memory,
                    start,
                    step,
                } => {
                    let step = self.times(i, *step);
                    let at = self.b.addi(*start, step);
                    let listed = self.load(memory, at);
                    self.b
                        .resize(listed, Elem::I64, memory.dtype.is_signed_int())
                }
            };
            if let Some(extent) = axis.extent {
                let here = self.b.cmpi(IntCompare::Ult, at, extent);
                inside = self.both(inside, Some(here));
            }
            let part = self.times(at, axis.stride);
            offset = self.b.addi(offset, part);
        }
        (offset, inside)
    }
}
