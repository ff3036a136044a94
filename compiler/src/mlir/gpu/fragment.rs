//! Tiles in registers: every thread works through the elements that its layout gives it.
//!
//! A register of a tile is a variable that LLVM keeps in a register, since every access names it outright. Neighbours of 16, 8 or 4
//! bits share one.

use super::access::Memory;
use super::pairs::Noted;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, OpenIf, Val};
use crate::mlir::scalar::held_as;
use crate::schedule::access::{access, register};
use crate::schedule::layout::{Digit, Layout};
use crate::tile::ir::*;
use tessera_artifact::DType;

/// The element in hand while a map over registers is emitted.
pub(super) struct Here<'c> {
    pub(super) layout: Layout,
    /// The coordinates of the thread's first element.
    pub(super) base: Vec<Val<'c>>,
    pub(super) register: u64,
    pub(super) body: BlockId,
    /// Whether this thread is the one that writes to memory what several hold; `None`: no two hold the same.
    owner: Option<Val<'c>>,
}

/// Neighbours that will share a register, until all are there.
pub(super) struct Unfinished<'c> {
    tile: TileId,
    cell: usize,
    parts: Vec<Option<Val<'c>>>,
}

/// How many neighbours share a register.
pub(super) fn sharing(dtype: DType, layout: &Layout) -> u64 {
    let count = match dtype {
        DType::Bool => 1,
        dtype => 32 / u64::from(dtype.bits().clamp(4, 32)),
    };
    match layout.run().is_multiple_of(count) {
        true => count,
        false => 1,
    }
}

/// Whether a map writes what is summed up.
fn makes_addends(kernel: &Kernel, body: BlockId) -> bool {
    let summed = |tile: TileId| {
        kernel.live_ops().iter().any(|&op| {
            matches!(kernel.op(op).kind, OpKind::Reduce { src, op: FoldOp::Sum, .. } if src == tile)
        })
    };
    let ops = &kernel.block(body).ops;
    ops.iter()
        .any(|&op| matches!(kernel.op(op).kind, OpKind::StoreTile { tile, .. } if summed(tile)))
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
        let count = layout.registers() / sharing(kernel.tile(tile).dtype, &layout);
        let cells: Vec<_> = (0..count).map(|_| self.b.alloca(8)).collect();
        self.fragments.insert(tile, cells.clone());
        Ok(cells)
    }

    pub(super) fn layout(&self, tile: TileId) -> Option<Layout> {
        self.layouts.get(&tile).cloned()
    }

    fn element_type(&self, tile: TileId) -> Elem {
        held_as(Type::Scalar(self.kernel.tile(tile).dtype))
    }

    /// How many neighbours of a tile share a register.
    pub(super) fn sharing(&self, tile: TileId) -> u64 {
        let layout = self.layouts.get(&tile);
        layout.map_or(1, |l| sharing(self.kernel.tile(tile).dtype, l))
    }

    pub(super) fn load_cell(&mut self, tile: TileId, register: u64) -> Emit<Val<'c>> {
        let elem = self.element_type(tile);
        let cells = self.cells(tile)?;
        let sharing = self.sharing(tile);
        if sharing == 1 {
            let cell = cells[register as usize];
            return Ok(self.b.load(cell, (elem, 1), elem.bits().div_ceil(8), None));
        }
        let (cell, part) = ((register / sharing) as usize, register % sharing);
        let unfinished = (self.unfinished.iter()).find(|u| u.tile == tile && u.cell == cell);
        if let Some(value) = unfinished.and_then(|u| u.parts[part as usize]) {
            return Ok(value);
        }
        let all = self.b.load(cells[cell], (Elem::I32, 1), 4, None);
        let bits = 32 / sharing as u32;
        let own = self.b.shr(all, bits * part as u32);
        let own = self.masked(own, bits);
        let own = self.b.resize(own, elem, false);
        self.note_pair(self.kernel.tile(tile).dtype, own, all, part as u32);
        Ok(own)
    }

    /// An i32 with four codes of 4 bits from the element in hand on, in its lower half or in its upper one, if neighbours share a register.
    pub(super) fn codes_in_registers(
        &mut self,
        tile: TileId,
        index: &[ValueId],
    ) -> Emit<Option<(Val<'c>, bool)>> {
        let sharing = self.sharing(tile);
        let Some(register) = self.register_here(tile, index)?.filter(|_| sharing > 1) else {
            return Ok(None);
        };
        let cell = self.cells(tile)?[(register / sharing) as usize];
        let all = self.b.load(cell, (Elem::I32, 1), 4, None);
        Ok(Some((all, register % sharing >= 4)))
    }

    /// The low half of a byte, for codes of 4 bits; others fill their element.
    pub(super) fn masked(&mut self, v: Val<'c>, bits: u32) -> Val<'c> {
        if bits >= 8 {
            return v;
        }
        let mask = self.b.int(v.elem, 1, 0xf);
        self.b.andi(v, mask)
    }

    pub(super) fn store_cell(&mut self, tile: TileId, register: u64, value: Val<'c>) -> Emit {
        let elem = self.element_type(tile);
        let cells = self.cells(tile)?;
        let sharing = self.sharing(tile);
        if sharing == 1 {
            let cell = cells[register as usize];
            self.b.store(value, cell, elem.bits().div_ceil(8), None);
            return Ok(());
        }
        let (cell, part) = ((register / sharing) as usize, (register % sharing) as usize);
        let found = (self.unfinished.iter()).position(|u| u.tile == tile && u.cell == cell);
        let at = found.unwrap_or_else(|| {
            self.unfinished.push(Unfinished {
                tile,
                cell,
                parts: vec![None; sharing as usize],
            });
            self.unfinished.len() - 1
        });
        self.unfinished[at].parts[part] = Some(value);
        if self.unfinished[at].parts.iter().all(Option::is_some) {
            let done = self.unfinished.remove(at);
            self.finish(done)?;
        }
        Ok(())
    }

    /// Sets the register that the neighbours from the element in hand on share, which are all that a map stores of them.
    pub(super) fn store_word(&mut self, tile: TileId, index: &[ValueId], word: Val<'c>) -> Emit {
        let sharing = self.sharing(tile);
        let Some(register) = self.register_here(tile, index)? else {
            return Err(self.fault("a word of a tile in memory"));
        };
        let cell = self.cells(tile)?[(register / sharing) as usize];
        self.b.store(word, cell, 4, None);
        Ok(())
    }

    /// Writes what is there of shared registers.
    pub(super) fn finish_all(&mut self) -> Emit {
        for unfinished in std::mem::take(&mut self.unfinished) {
            self.finish(unfinished)?;
        }
        Ok(())
    }

    fn finish(&mut self, unfinished: Unfinished<'c>) -> Emit {
        let Unfinished { tile, cell, parts } = unfinished;
        let cell = self.cells(tile)?[cell];
        let all = parts.iter().copied().collect::<Option<Vec<_>>>();
        let word = match all {
            Some(parts) => self.word_of(self.kernel.tile(tile).dtype, &parts),
            None => {
                let bits = 32 / parts.len() as u32;
                let mut word = self.b.load(cell, (Elem::I32, 1), 4, None);
                for (i, part) in parts.into_iter().enumerate() {
                    let Some(part) = part else { continue };
                    let hole = !(((1i64 << bits) - 1) << (i as u32 * bits));
                    let hole = self.b.i32(i64::from(hole as i32));
                    let part = self.masked(part, bits);
                    let part = self.b.resize(part, Elem::I32, false);
                    let part = self.b.shl(part, i as u32 * bits);
                    let kept = self.b.andi(word, hole);
                    word = self.b.ori(kept, part);
                }
                word
            }
        };
        self.b.store(word, cell, 4, None);
        Ok(())
    }

    pub(super) fn map_in_registers(&mut self, layout: &Layout, body: BlockId) -> Emit {
        let base = self.own_coordinates(layout);
        let all: Vec<u64> = (0..layout.registers()).collect();
        self.map_registers(layout, body, &all, &base)
    }

    /// A map over some of a layout's registers, in whole runs, from the coordinates `base` on.
    pub(super) fn map_registers(
        &mut self,
        layout: &Layout,
        body: BlockId,
        registers: &[u64],
        base: &[Val<'c>],
    ) -> Emit {
        let kernel = self.kernel;
        let owner = self.owner(layout);
        let block = kernel.block(body);
        self.b.contract = self.network.is_some() && makes_addends(kernel, body);
        let lookup = self.looks_up(layout, body);
        let step = lookup.as_ref().map_or(1, |_| super::lookup::RUN);
        for &register in registers.iter().step_by(step as usize) {
            self.begin_element(layout, body, register, base, owner);
            if let Some(lookup) = &lookup {
                self.look_up(body, lookup)?;
                continue;
            }
            self.scalar_ops(&block.ops)?;
        }
        self.b.contract = false;
        self.finish_all()?;
        for &op in &block.ops {
            if let OpKind::LoadTile { tile, .. } | OpKind::StoreTile { tile, .. } =
                kernel.op(op).kind
                && self.layouts.contains_key(&tile)
                && self.element_type(tile) == Elem::F32
            {
                self.changed.insert(tile);
            }
        }
        self.end_elements();
        Ok(())
    }

    /// What follows is of one element of a map over registers.
    pub(super) fn begin_element(
        &mut self,
        layout: &Layout,
        body: BlockId,
        register: u64,
        base: &[Val<'c>],
        owner: Option<Val<'c>>,
    ) {
        let offsets = layout.of_register(register);
        for ((&arg, &at), offset) in (self.kernel.block(body).args.iter().zip(base)).zip(offsets) {
            self.values[arg.index()] = Some(self.b.add_const(at, offset as i64));
        }
        self.here = Some(Here {
            layout: layout.clone(),
            base: base.to_vec(),
            register,
            body,
            owner,
        });
    }

    pub(super) fn scalar_ops(&mut self, ops: &[OpId]) -> Emit {
        for &op in ops {
            self.span = self.kernel.op(op).span;
            self.scalar_op(op)?;
        }
        Ok(())
    }

    pub(super) fn end_elements(&mut self) {
        self.here = None;
        self.slot_runs.clear();
        self.noted = Noted::default();
    }

    /// The numbers of the thread's lane and warp.
    fn own_numbers(&mut self) -> [Val<'c>; 2] {
        let mask = self.b.i64(31);
        let lane = self.b.andi(self.thread, mask);
        let warp = self.b.shift_right_signed(self.thread, 5);
        [lane, warp]
    }

    pub(super) fn digit(&mut self, number: Val<'c>, place: u64, count: u64) -> Val<'c> {
        let by = self.b.i64(place as i64);
        let digit = self.b.binary("arith.divui", number, by);
        let count = self.b.i64(count as i64);
        self.b.binary("arith.remui", digit, count)
    }

    /// What the thread's number adds to the coordinates of its elements.
    pub(super) fn own_coordinates(&mut self, layout: &Layout) -> Vec<Val<'c>> {
        let [lane, warp] = self.own_numbers();
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
                    let digit = self.digit(number, place, count);
                    let part = self.b.mul_const(digit, stride as i64);
                    at[axis] = Some(match at[axis] {
                        Some(sum) => self.b.addi(sum, part),
                        None => part,
                    });
                }
                place *= count;
            }
        }
        let zero = self.b.i64(0);
        at.into_iter().map(|v| v.unwrap_or(zero)).collect()
    }

    /// Whether this thread is the first of those that hold the same elements; `None`: it is the only one.
    pub(super) fn owner(&mut self, layout: &Layout) -> Option<Val<'c>> {
        if !layout.has_copies() {
            return None;
        }
        let [lane, warp] = self.own_numbers();
        let mut sum = self.b.i64(0);
        for (number, digits) in [(lane, &layout.lanes), (warp, &layout.warps)] {
            let mut place = 1;
            for d in digits {
                if d.axis.is_none() && d.count > 1 {
                    let digit = self.digit(number, place, d.count);
                    sum = self.b.ori(sum, digit);
                }
                place *= d.count;
            }
        }
        let zero = self.b.i64(0);
        Some(self.b.cmpi(IntCompare::Eq, sum, zero))
    }

    /// Opens what only one of the threads that hold the same does.
    pub(super) fn begin_owner(&mut self) -> Option<OpenIf<'c>> {
        let owner = self.here.as_ref().and_then(|here| here.owner);
        owner.map(|owner| self.b.begin_if(owner))
    }

    /// The register that an access names, if its tile is in registers: in a map of the element in hand, outside by constants.
    fn register_here(&self, tile: TileId, index: &[ValueId]) -> Emit<Option<u64>> {
        let Some(layout) = self.layouts.get(&tile) else {
            return Ok(None);
        };
        let kernel = self.kernel;
        let found = match &self.here {
            Some(here) => access(kernel, here.body, index)
                .and_then(|access| register(&here.layout, &access, layout, here.register)),
            None => {
                let at = index.iter().map(|&i| kernel.const_index(i));
                let at = at.map(|i| u64::try_from(i?).ok());
                let at: Option<Vec<u64>> = at.collect();
                at.and_then(|at| layout.register_at(&at))
            }
        };
        match found {
            Some(register) => Ok(Some(register)),
            None => Err(self.fault("a tile in registers is touched elsewhere")),
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
        let Some(register) = self.register_here(tile, index)? else {
            return Ok(false);
        };
        self.store_cell(tile, register, value)?;
        if self.here.is_none() {
            self.finish_all()?;
        }
        Ok(true)
    }

    /// A copy with a tile in registers on a side: in vectors where memory allows, else element by element.
    pub(super) fn copy_in_registers(&mut self, dst: &View, src: &View, oob: Oob) -> Emit<bool> {
        let in_registers = |view: &View| match view.base {
            Base::Tile(t) => self.layout(t).map(|l| (t, l)),
            Base::Param(_) => None,
        };
        let (to, from) = (in_registers(dst), in_registers(src));
        let Some((_, layout)) = to.clone().or(from.clone()) else {
            return Ok(false);
        };
        if let Some(vectors) = self.vectors(dst, src, oob)? {
            let mut open = self.b.begin_if(vectors.possible);
            self.copy_vectors(&vectors)?;
            self.b.otherwise(&mut open);
            self.copy_elements(dst, src, oob, &layout)?;
            self.b.end_if(open);
            return Ok(true);
        }
        self.copy_elements(dst, src, oob, &layout)?;
        Ok(true)
    }

    fn copy_elements(&mut self, dst: &View, src: &View, oob: Oob, layout: &Layout) -> Emit {
        let kernel = self.kernel;
        let in_registers = |view: &View| match view.base {
            Base::Tile(t) => self.layouts.contains_key(&t).then_some(t),
            Base::Param(_) => None,
        };
        let (to, from) = (in_registers(dst), in_registers(src));
        let base = self.own_coordinates(layout);
        let owner = self.owner(layout);
        for register in 0..layout.registers() {
            let offsets = layout.of_register(register);
            let point: Vec<_> = (base.iter().zip(offsets))
                .map(|(&at, offset)| self.b.add_const(at, offset as i64))
                .collect();
            match (to, from) {
                (Some(to), Some(from)) => {
                    let v = self.load_cell(from, register)?;
                    let v = self.converted(v, kernel.tile(from).dtype, kernel.tile(to).dtype)?;
                    self.store_cell(to, register, v)?;
                }
                (None, Some(from)) => {
                    let v = self.load_cell(from, register)?;
                    let (memory, at, inside) = self.element_of(dst, oob, &point)?;
                    let v = self.converted(v, kernel.tile(from).dtype, memory.dtype)?;
                    let writes = match (inside, owner) {
                        (Some(a), Some(b)) => Some(self.b.andi(a, b)),
                        (a, b) => a.or(b),
                    };
                    let open = writes.map(|w| self.b.begin_if(w));
                    self.store(&memory, at, v);
                    if let Some(open) = open {
                        self.b.end_if(open);
                    }
                }
                (Some(to), None) => {
                    let (memory, at, inside) = self.element_of(src, oob, &point)?;
                    if oob == Oob::Skip {
                        return Err(self.unsupported("a copy to registers with `@oob(skip)`"));
                    }
                    let v = self.load_guarded(&memory, at, inside);
                    let v = self.converted(v, memory.dtype, kernel.tile(to).dtype)?;
                    self.store_cell(to, register, v)?;
                }
                (None, None) => {}
            }
        }
        self.finish_all()
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

    pub(super) fn converted(&mut self, v: Val<'c>, from: DType, to: DType) -> Emit<Val<'c>> {
        let v = self.b.cast(v, Type::Scalar(from), Type::Scalar(to));
        self.lowered(v)
    }
}
