//! Tiles in registers: every thread works through the elements that its layout gives it.
//!
//! A register of a tile is a variable that LLVM keeps in a register, since every access names it outright.

use super::access::Memory;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::mlir::scalar::held_as;
use crate::schedule::layout::{Digit, Layout};
use crate::schedule::{Touch, touch};
use crate::tile::ir::*;

/// The element in hand while a map over registers is emitted.
pub(super) struct Here {
    layout: Layout,
    register: u64,
    extents: Vec<u64>,
    body: BlockId,
}

/// Whether two neighbours of 16 bits share a register.
fn is_paired(dtype: tessera_artifact::DType, layout: &Layout) -> bool {
    let neighbours = Digit {
        count: 2,
        axis: Some(layout.shape.len().wrapping_sub(1)),
        stride: 1,
    };
    dtype.bits() == 16 && layout.registers.first() == Some(&neighbours)
}

impl<'c> Emitter<'_, 'c> {
    /// The variables of a tile's registers.
    pub(super) fn cells(&mut self, tile: TileId) -> Emit<Vec<Val<'c>>> {
        let kernel = self.kernel;
        let Some(layout) = self.layout(tile) else {
            return Err(self.fault(format!(
                "tile `{}` is not in registers",
                kernel.tile(tile).name
            )));
        };
        if let Some(cells) = self.fragments.get(&tile) {
            return Ok(cells.clone());
        }
        let count = match is_paired(kernel.tile(tile).dtype, &layout) {
            true => layout.registers() / 2,
            false => layout.registers(),
        };
        let cells: Vec<_> = (0..count).map(|_| self.b.alloca(8)).collect();
        self.fragments.insert(tile, cells.clone());
        Ok(cells)
    }

    pub(super) fn layout(&self, tile: TileId) -> Option<Layout> {
        self.network.as_ref()?.plan.fragments.get(&tile).cloned()
    }

    fn element_type(&self, tile: TileId) -> Elem {
        held_as(Type::Scalar(self.kernel.tile(tile).dtype))
    }

    fn load_cell(&mut self, tile: TileId, register: u64) -> Emit<Val<'c>> {
        let elem = self.element_type(tile);
        let cells = self.cells(tile)?;
        if !self.paired(tile) {
            let cell = cells[register as usize];
            return Ok(self.b.load(cell, (elem, 1), elem.bits().div_ceil(8), None));
        }
        let pair = self
            .b
            .load(cells[register as usize / 2], (Elem::I32, 1), 4, None);
        let half = self.b.shr(pair, 16 * (register as u32 % 2));
        Ok(self.b.resize(half, elem, false))
    }

    fn paired(&self, tile: TileId) -> bool {
        let dtype = self.kernel.tile(tile).dtype;
        self.layout(tile)
            .is_some_and(|layout| is_paired(dtype, &layout))
    }

    /// Two halves of a register. The hardware rounds two f32 at once.
    fn pair(&mut self, tile: TileId, low: Val<'c>, high: Val<'c>) -> Val<'c> {
        let source = |v: Val<'c>| {
            let found = self.narrowed.iter().find(|(narrow, _)| narrow.raw == v.raw);
            found.map(|&(_, wide)| wide)
        };
        if self.kernel.tile(tile).dtype == tessera_artifact::DType::BF16
            && let (Some(low), Some(high)) = (source(low), source(high))
        {
            return self.b.round_pair_to_bf16(low, high);
        }
        let zero = self.b.zero(low.elem, 2);
        let pair = self.b.insert(low, zero, 0);
        let pair = self.b.insert(high, pair, 1);
        let pair = self.b.vector_bitcast(pair, Elem::I32);
        self.b.extract_only(pair)
    }

    fn store_cell(&mut self, tile: TileId, register: u64, value: Val<'c>) -> Emit {
        let elem = self.element_type(tile);
        let cells = self.cells(tile)?;
        if self.paired(tile) {
            // Registers come in order, so the low half is the one before.
            if register.is_multiple_of(2) {
                self.low_half = Some((tile, value));
                return Ok(());
            }
            let Some((_, low)) = self.low_half.take_if(|(t, _)| *t == tile) else {
                return Err(self.fault("half a register is stored alone"));
            };
            let pair = self.pair(tile, low, value);
            self.b.store(pair, cells[register as usize / 2], 4, None);
            return Ok(());
        }
        let cell = cells[register as usize];
        self.b.store(value, cell, elem.bits().div_ceil(8), None);
        Ok(())
    }

    /// The layout that a map runs in: that of the tiles in registers which it touches at its own coordinates.
    pub(super) fn layout_of_map(&self, extents: &[u64], body: BlockId) -> Option<Layout> {
        let accesses = crate::schedule::accesses(self.kernel, extents, body);
        accesses.into_iter().find_map(|(tile, touch)| match touch {
            Touch::Same => self.layout(tile),
            _ => None,
        })
    }

    pub(super) fn map_in_registers(
        &mut self,
        layout: &Layout,
        extents: &[u64],
        body: BlockId,
    ) -> Emit {
        let kernel = self.kernel;
        let base = self.own_coordinates(layout);
        let block = kernel.block(body);
        for register in 0..layout.registers() {
            let offsets = layout.of_register(register);
            for ((&arg, &at), offset) in block.args.iter().zip(&base).zip(offsets) {
                self.values[arg.index()] = Some(self.b.add_const(at, offset as i64));
            }
            self.here = Some(Here {
                layout: layout.clone(),
                register,
                extents: extents.to_vec(),
                body,
            });
            for &op in &block.ops {
                self.span = kernel.op(op).span;
                self.scalar_op(op)?;
            }
        }
        for (tile, _) in crate::schedule::accesses(kernel, extents, body) {
            if self.layout(tile).is_some() && self.element_type(tile) == Elem::F32 {
                self.changed.insert(tile);
            }
        }
        self.here = None;
        self.narrowed.clear();
        Ok(())
    }

    /// What the thread's number adds to the coordinates of its elements.
    pub(super) fn own_coordinates(&mut self, layout: &Layout) -> Vec<Val<'c>> {
        let mask = self.b.i64(31);
        let lane = self.b.andi(self.thread, mask);
        let warp = self.b.shift_right_signed(self.thread, 5);
        let mut at: Vec<Option<Val<'c>>> = vec![None; layout.shape.len()];
        for (number, digits) in [(lane, &layout.lanes), (warp, &layout.warps)] {
            let mut place = 1;
            for &Digit {
                count,
                axis,
                stride,
            } in digits
            {
                if let Some(axis) = axis.filter(|_| count > 1) {
                    let by = self.b.i64(place);
                    let digit = self.b.binary("arith.divui", number, by);
                    let count = self.b.i64(count as i64);
                    let digit = self.b.binary("arith.remui", digit, count);
                    let part = self.b.mul_const(digit, stride as i64);
                    at[axis] = Some(match at[axis] {
                        Some(sum) => self.b.addi(sum, part),
                        None => part,
                    });
                }
                place *= count as i64;
            }
        }
        let zero = self.b.i64(0);
        at.into_iter().map(|v| v.unwrap_or(zero)).collect()
    }

    /// The register that an access of the map in hand names, if its tile is in registers.
    fn register_here(&self, tile: TileId, index: &[ValueId]) -> Emit<Option<u64>> {
        if self.layout(tile).is_none() {
            return Ok(None);
        }
        let Some(here) = &self.here else {
            return Err(self.fault("a tile in registers is touched outside a map"));
        };
        match touch(self.kernel, here.body, &here.extents, tile, index) {
            Touch::Same => Ok(Some(here.register)),
            Touch::Along(axis) => Ok(Some(here.layout.register_without(1 - axis, here.register))),
            Touch::Elsewhere => Err(self.fault("a tile in registers is touched elsewhere")),
        }
    }

    pub(super) fn load_in_registers(
        &mut self,
        tile: TileId,
        index: &[ValueId],
    ) -> Emit<Option<Val<'c>>> {
        match self.register_here(tile, index)? {
            Some(register) => self.load_cell(tile, register).map(Some),
            None => Ok(None),
        }
    }

    /// Before products: what maps computed since the last ones is computed, and not put off until they run.
    pub(super) fn settle(&mut self) -> Emit {
        for tile in std::mem::take(&mut self.changed) {
            let cells = self.cells(tile)?;
            let values: Vec<_> = cells
                .iter()
                .map(|&c| self.b.load(c, (Elem::F32, 1), 4, None))
                .collect();
            let values = self.b.hold(&values);
            for (&cell, value) in cells.iter().zip(values) {
                self.b.store(value, cell, 4, None);
            }
        }
        Ok(())
    }

    /// Whether the tile is in registers; then it has the value.
    pub(super) fn store_in_registers(
        &mut self,
        tile: TileId,
        index: &[ValueId],
        value: Val<'c>,
    ) -> Emit<bool> {
        match self.register_here(tile, index)? {
            Some(register) => self.store_cell(tile, register, value).map(|()| true),
            None => Ok(false),
        }
    }

    /// A copy with a tile in registers on a side: element by element.
    pub(super) fn copy_in_registers(&mut self, dst: &View, src: &View, oob: Oob) -> Emit<bool> {
        let in_registers = |view: &View| match view.base {
            Base::Tile(t) => self.layout(t).map(|l| (t, l)),
            Base::Param(_) => None,
        };
        let (to, from) = (in_registers(dst), in_registers(src));
        let Some((_, layout)) = to.clone().or(from.clone()) else {
            return Ok(false);
        };
        let kernel = self.kernel;
        let base = self.own_coordinates(&layout);
        for register in 0..layout.registers() {
            let offsets = layout.of_register(register);
            let point: Vec<_> = (base.iter().zip(offsets))
                .map(|(&at, offset)| self.b.add_const(at, offset as i64))
                .collect();
            match (&to, &from) {
                (Some((to, _)), Some((from, _))) => {
                    let v = self.load_cell(*from, register)?;
                    let v = self.converted(v, kernel.tile(*from).dtype, kernel.tile(*to).dtype)?;
                    self.store_cell(*to, register, v)?;
                }
                (None, Some((from, _))) => {
                    let v = self.load_cell(*from, register)?;
                    let (memory, at, inside) = self.element_of(dst, oob, &point)?;
                    let v = self.converted(v, kernel.tile(*from).dtype, memory.dtype)?;
                    let open = inside.map(|i| self.b.begin_if(i));
                    self.store(&memory, at, v);
                    if let Some(open) = open {
                        self.b.end_if(open);
                    }
                }
                (Some((to, _)), None) => {
                    let (memory, at, inside) = self.element_of(src, oob, &point)?;
                    if oob == Oob::Skip {
                        return Err(self.unsupported("a copy to registers with `@oob(skip)`"));
                    }
                    let v = self.load_guarded(&memory, at, inside);
                    let v = self.converted(v, memory.dtype, kernel.tile(*to).dtype)?;
                    self.store_cell(*to, register, v)?;
                }
                (None, None) => {}
            }
        }
        Ok(true)
    }

    /// A vector where a channel brought it.
    pub(super) fn vector_in_slot(&mut self, tile: TileId) -> Emit<Memory<'c>> {
        let (address, _) = self.slot_of(tile)?;
        Ok(Memory {
            base: self.b.shared_pointer(address),
            dtype: self.kernel.tile(tile).dtype,
            strides: vec![super::access::Stride::Const(1)],
            packed: false,
        })
    }

    /// Element `point` of a view in memory: where it is, and whether inside.
    fn element_of(
        &mut self,
        view: &View,
        oob: Oob,
        point: &[Val<'c>],
    ) -> Emit<(Memory<'c>, Val<'c>, Option<Val<'c>>)> {
        let (memory, extents) = match view.base {
            Base::Tile(t) if self.kernel.tile(t).space == Space::Slot => {
                (self.vector_in_slot(t)?, vec![])
            }
            Base::Tile(t) => (self.tile(t)?, vec![]),
            Base::Param(p) => (self.tensor(p)?, self.extents(p)),
        };
        let mut next = point.iter();
        let mut inside: Option<Val<'c>> = None;
        let mut index = Vec::new();
        for (axis, slot) in view.slots.iter().enumerate() {
            let at = match slot {
                Slot::At(v) => self.value(*v)?,
                Slot::Span { start, .. } => {
                    let start = self.value(*start)?;
                    let Some(&i) = next.next() else {
                        return Err(self.fault("a copy of unlike ranks"));
                    };
                    self.b.addi(start, i)
                }
                Slot::Gather { .. } => return Err(self.unsupported("a gather to registers")),
            };
            if let (Base::Param(_), true) = (view.base, oob != Oob::Never) {
                let here = self.b.cmpi(IntCompare::Ult, at, extents[axis]);
                inside = Some(match inside {
                    Some(before) => self.b.andi(before, here),
                    None => here,
                });
            }
            index.push(at);
        }
        let at = self.offset(&memory, &index);
        Ok((memory, at, inside))
    }

    fn converted(
        &mut self,
        v: Val<'c>,
        from: tessera_artifact::DType,
        to: tessera_artifact::DType,
    ) -> Emit<Val<'c>> {
        let v = self.b.cast(v, Type::Scalar(from), Type::Scalar(to));
        self.lowered(v)
    }
}
