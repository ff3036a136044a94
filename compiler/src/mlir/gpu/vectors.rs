//! Copies between a tensor and a tile in registers by vectors of up to 16 bytes: a run of neighbours that a thread holds is one access.
//!
//! Whether memory allows it, an address that is a multiple of the vector and an edge that no vector crosses, is a question of the launch:
//! it is asked once for each copy, of values that all threads share, and the elements' way stands beside the vectors'.

use super::access::{Memory, Stride};
use super::ops::Shuffle;
use super::{Emit, Emitter};
use crate::mlir::build::{Elem, IntCompare, Val};
use crate::schedule::layout::{Digit, Layout};
use crate::schedule::step_of;
use crate::tile::analysis::power_of_two;
use crate::tile::ir::*;
use std::collections::BTreeMap;

/// Of one access.
const MOST_BYTES: u64 = 16;

/// A copy that may go by vectors.
pub(super) struct Vectors<'c> {
    tile: TileId,
    layout: Layout,
    memory: Memory<'c>,
    /// From the tensor to the tile.
    loads: bool,
    /// Elements of a vector; where lanes exchange words, of a part of one.
    run: u64,
    /// Four lanes that hold the parts of four vectors exchange them, so that each stores one: by register, from one of the four to the next.
    exchanged: Option<u64>,
    /// By axis of the tile, the coordinate in the tensor where the view starts.
    starts: Vec<Val<'c>>,
    strides: Vec<Stride<'c>>,
    /// Of the tensor, where the view may reach outside.
    extents: Option<Vec<Val<'c>>>,
    /// What the fixed coordinates add to the offset, and whether they lie inside.
    fixed: Val<'c>,
    fixed_inside: Option<Val<'c>>,
    /// Whether memory allows it.
    pub possible: Val<'c>,
}

impl<'c> Emitter<'_, 'c> {
    /// `None`: the tile has no runs along a contiguous axis.
    pub(super) fn vectors(
        &mut self,
        dst: &View,
        src: &View,
        oob: Oob,
    ) -> Emit<Option<Vectors<'c>>> {
        let (tile, param, view, loads) = match (dst.base, src.base) {
            (Base::Tile(tile), Base::Param(param)) => (tile, param, src, true),
            (Base::Param(param), Base::Tile(tile)) => (tile, param, dst, false),
            _ => return Ok(None),
        };
        let (Some(layout), Some(Slot::Span { .. })) = (self.layout(tile), view.slots.last()) else {
            return Ok(None);
        };
        let memory = self.tensor(param)?;
        let bits = bits_in(&memory);
        let run = longest(layout.run(), bits);
        if run * bits < 16 || run == 1 || !matches!(memory.strides.last(), Some(Stride::Const(1))) {
            return Ok(None);
        }
        let all_extents = self.extents(param);
        let (mut starts, mut strides, mut extents) = (vec![], vec![], vec![]);
        let mut fixed = self.b.i64(0);
        let mut fixed_inside: Option<Val<'c>> = None;
        for (axis, slot) in view.slots.iter().enumerate() {
            let stride = memory.strides[axis];
            match slot {
                Slot::At(v) => {
                    let at = self.value(*v)?;
                    let part = self.times(at, stride);
                    fixed = self.b.addi(fixed, part);
                    if oob != Oob::Never {
                        let here = self.b.cmpi(IntCompare::Ult, at, all_extents[axis]);
                        fixed_inside = Some(match fixed_inside {
                            Some(before) => self.b.andi(before, here),
                            None => here,
                        });
                    }
                }
                Slot::Span { start, .. } => {
                    starts.push(self.value(*start)?);
                    strides.push(stride);
                    extents.push(all_extents[axis]);
                }
                Slot::Gather { .. } => return Ok(None),
            }
        }
        let extents = (oob != Oob::Never).then_some(extents);
        let possible = match self.in_whole_parts(view, param, run, run * bits / 8) {
            true => self.b.int(Elem::I1, 1, 1),
            false => self.allowed(&memory, run, &layout, fixed, &starts, &strides, &extents),
        };
        let exchanged = match loads {
            true => None,
            false => self.exchanges(view, param, &layout, bits, run),
        };
        Ok(Some(Vectors {
            tile,
            layout,
            memory,
            loads,
            run,
            exchanged,
            starts,
            strides,
            extents,
            fixed,
            fixed_inside,
            possible,
        }))
    }

    /// Whether it is known that every run of so many elements starts at a multiple of `bytes`, and that none crosses the tensor's edge.
    fn in_whole_parts(&self, view: &View, param: ParamId, run: u64, bytes: u64) -> bool {
        let (Some(tensor), Some(Slot::Span { start, .. })) =
            (self.kernel.tensor(param), view.slots.last())
        else {
            return false;
        };
        // Of the start and every row.
        u64::from(tensor.align).is_multiple_of(bytes)
            && power_of_two(self.kernel, *start).is_multiple_of(run)
            && (tensor.shape.last()).is_some_and(|e| step_of(self.kernel, e).is_multiple_of(run))
    }

    /// Whether every vector is aligned, and none crosses the tensor's edge.
    #[allow(clippy::too_many_arguments, reason = "the parts of one copy")]
    fn allowed(
        &mut self,
        memory: &Memory<'c>,
        run: u64,
        layout: &Layout,
        fixed: Val<'c>,
        starts: &[Val<'c>],
        strides: &[Stride<'c>],
        extents: &Option<Vec<Val<'c>>>,
    ) -> Val<'c> {
        // In elements: all of these have to be multiples of a vector.
        let mut elements = fixed;
        for (axis, (&start, &stride)) in starts.iter().zip(strides).enumerate() {
            let part = self.times(start, stride);
            elements = self.b.ori(elements, part);
            if axis + 1 < starts.len() && layout.shape[axis] > 1 {
                let one = self.b.i64(1);
                let step = self.times(one, stride);
                elements = self.b.ori(elements, step);
            }
        }
        if let Some(extents) = extents {
            let last = extents.len() - 1;
            elements = self.b.ori(elements, extents[last]);
        }
        let mask = self.b.i64(run as i64 - 1);
        let elements = self.b.andi(elements, mask);
        let address = self.b.pointer_bits(memory.base);
        let bytes = run * bits_in(memory) / 8;
        let mask = self.b.i64(bytes as i64 - 1);
        let address = self.b.andi(address, mask);
        let off = self.b.ori(elements, address);
        let zero = self.b.i64(0);
        self.b.cmpi(IntCompare::Eq, off, zero)
    }

    /// Whether four lanes side by side hold neighbouring words of four rows of 16 bytes, at places that are known to be multiples of them: by register,
    /// from one such row to the next.
    fn exchanges(
        &self,
        view: &View,
        param: ParamId,
        layout: &Layout,
        bits: u64,
        run: u64,
    ) -> Option<u64> {
        let last = layout.shape.len() - 1;
        let whole = 4 * run;
        let lanes = Digit {
            count: 4,
            axis: Some(last),
            stride: run,
        };
        let aligned = self.in_whole_parts(view, param, whole, MOST_BYTES);
        if !aligned || run * bits != 32 || layout.lanes.first() != Some(&lanes) {
            return None;
        }
        let mut step = 1;
        for digit in &layout.registers {
            if digit.axis == Some(last) && digit.stride == whole {
                return digit.count.is_multiple_of(4).then_some(step);
            }
            step *= digit.count;
        }
        None
    }

    /// All accesses of the copy; loads come before anything is done with what they bring.
    pub(super) fn copy_vectors(&mut self, v: &Vectors<'c>) -> Emit {
        let own = self.own_coordinates(&v.layout);
        let mut first: Vec<_> = (own.iter().zip(&v.starts))
            .map(|(&own, &start)| self.b.addi(own, start))
            .collect();
        let last = v.layout.shape.len() - 1;
        let mut parts = 1;
        if v.exchanged.is_some() {
            // From a part of every row to the whole of one.
            parts = 4;
            let mask = self.b.i64(3);
            let lane = self.b.andi(self.thread, mask);
            let moved = self.b.mul_const(lane, 3 * v.run as i64);
            first[last] = self.b.addi(first[last], moved);
        }
        let owner = match v.loads {
            true => None,
            false => self.owner(&v.layout),
        };
        let mut rows: BTreeMap<Vec<u64>, (Val<'c>, Option<Val<'c>>)> = BTreeMap::new();
        let mut brought = vec![];
        for register in (0..v.layout.registers()).step_by(v.run as usize) {
            if (v.exchanged).is_some_and(|step| !(register / step).is_multiple_of(parts)) {
                continue;
            }
            let offsets = v.layout.of_register(register);
            let row = offsets[..last].to_vec();
            let (start, inside) = match rows.get(&row) {
                Some(&known) => known,
                None => {
                    let made = self.row(v, &first, &row);
                    rows.insert(row, made);
                    made
                }
            };
            let at = self
                .b
                .offset(start, (offsets[last] * bits_in(&v.memory) / 8) as i64);
            let inside = match &v.extents {
                Some(extents) => {
                    let column = self.b.add_const(first[last], offsets[last] as i64);
                    let here = self.b.cmpi(IntCompare::Ult, column, extents[last]);
                    Some(match inside {
                        Some(row) => self.b.andi(row, here),
                        None => here,
                    })
                }
                None => None,
            };
            if v.loads {
                brought.push((register, self.load_words(v, at, inside)));
                continue;
            }
            let words = match v.exchanged {
                Some(step) => self.exchange(v, register, step)?,
                None => self.words_of(v, register)?,
            };
            let writes = match (inside, owner) {
                (Some(a), Some(b)) => Some(self.b.andi(a, b)),
                (a, b) => a.or(b),
            };
            let open = writes.map(|w| self.b.begin_if(w));
            let bytes = (parts * v.run * bits_in(&v.memory) / 8) as u32;
            self.b.store(words, at, bytes, None);
            if let Some(open) = open {
                self.b.end_if(open);
            }
        }
        for (register, words) in brought {
            self.take_words(v, register, words)?;
        }
        self.finish_all()
    }

    /// The words that four lanes have of the row of 16 bytes that falls to this one. Each of four words changes places with those whose lane and
    /// number differ in one bit, then in the other.
    fn exchange(&mut self, v: &Vectors<'c>, register: u64, step: u64) -> Emit<Val<'c>> {
        let mut words = vec![];
        for part in 0..4 {
            words.push(self.words_of(v, register + part * step)?);
        }
        for bit in [1, 2] {
            let mask = self.b.i64(bit as i64);
            let own = self.b.andi(self.thread, mask);
            let zero = self.b.i64(0);
            let upper = self.b.cmpi(IntCompare::Ne, own, zero);
            for low in (0..4).filter(|part| part & bit == 0) {
                let (a, b) = (words[low], words[low | bit]);
                let given = self.b.select(upper, a, b);
                let got = self.shuffled(Shuffle::Xor, given, bit as u32);
                words[low] = self.b.select(upper, got, a);
                words[low | bit] = self.b.select(upper, b, got);
            }
        }
        let mut all = self.b.zero(Elem::I32, 4);
        for (part, word) in words.into_iter().enumerate() {
            all = self.b.insert(word, all, part as u32);
        }
        Ok(all)
    }

    /// Where a row of the tile starts for this thread, and whether it lies inside.
    fn row(
        &mut self,
        v: &Vectors<'c>,
        first: &[Val<'c>],
        row: &[u64],
    ) -> (Val<'c>, Option<Val<'c>>) {
        let last = first.len() - 1;
        let mut at = self.b.addi(v.fixed, first[last]);
        let mut inside = v.fixed_inside;
        for (axis, &offset) in row.iter().enumerate() {
            let coordinate = self.b.add_const(first[axis], offset as i64);
            let part = self.times(coordinate, v.strides[axis]);
            at = self.b.addi(at, part);
            if let Some(extents) = &v.extents {
                let here = self.b.cmpi(IntCompare::Ult, coordinate, extents[axis]);
                inside = Some(match inside {
                    Some(before) => self.b.andi(before, here),
                    None => here,
                });
            }
        }
        let (at, elem) = match v.memory.packed {
            true => (self.b.shift_right_signed(at, 1), Elem::I8),
            false => (at, v.memory.elem()),
        };
        (self.b.gep(v.memory.base, at, elem), inside)
    }

    fn load_words(&mut self, v: &Vectors<'c>, at: Val<'c>, inside: Option<Val<'c>>) -> Val<'c> {
        let words = words(v);
        let bytes = (v.run * bits_in(&v.memory) / 8) as u32;
        let load = |e: &mut Self| match v.memory.constant {
            true => e.b.load_invariant(at, words, bytes),
            false => e.b.load(at, words, bytes, None),
        };
        let Some(inside) = inside else {
            return load(self);
        };
        let open = self.b.begin_choice(inside);
        let loaded = load(self);
        self.b.otherwise_value(&open, loaded);
        let zero = self.b.zero(words.0, words.1);
        self.b.end_choice(open, zero)
    }

    /// The registers that share words as memory does.
    fn shares_words(&self, v: &Vectors<'c>) -> bool {
        let dtype = self.kernel.tile(v.tile).dtype;
        let sharing = self.sharing(v.tile);
        dtype == v.memory.dtype
            && sharing * bits_in(&v.memory) == 32
            && v.run.is_multiple_of(sharing)
    }

    fn take_words(&mut self, v: &Vectors<'c>, register: u64, words: Val<'c>) -> Emit {
        let (tile, dtype) = (v.tile, self.kernel.tile(v.tile).dtype);
        if self.shares_words(v) && words.elem == Elem::I32 {
            let cells = self.cells(tile)?;
            let first = (register / self.sharing(tile)) as usize;
            for i in 0..words.lanes {
                let word = self.b.extract(words, i);
                self.b.store(word, cells[first + i as usize], 4, None);
            }
            return Ok(());
        }
        let bits = bits_in(&v.memory) as u32;
        for i in 0..v.run as u32 {
            let per_word = words.elem.bits() / bits;
            let word = self.b.extract(words, i / per_word);
            let stored = match v.memory.packed {
                true => {
                    let code = self.b.shr(word, bits * (i % per_word));
                    let code = self.b.resize(code, Elem::I8, false);
                    let mask = self.b.int(Elem::I8, 1, 0xf);
                    self.b.andi(code, mask)
                }
                false => {
                    let part = self.b.shr(word, bits * (i % per_word));
                    let part = self.b.resize(part, v.memory.elem().as_int(), false);
                    self.b.bitcast(part, v.memory.elem())
                }
            };
            let value = self.b.from_stored(stored, v.memory.dtype);
            let value = self.converted(value, v.memory.dtype, dtype)?;
            self.store_cell(tile, register + u64::from(i), value)?;
        }
        Ok(())
    }

    fn words_of(&mut self, v: &Vectors<'c>, register: u64) -> Emit<Val<'c>> {
        let (elem, lanes) = words(v);
        let mut words = self.b.zero(elem, lanes);
        if self.shares_words(v) && elem == Elem::I32 {
            let cells = self.cells(v.tile)?;
            let first = (register / self.sharing(v.tile)) as usize;
            for i in 0..lanes {
                let word = self
                    .b
                    .load(cells[first + i as usize], (Elem::I32, 1), 4, None);
                words = self.set_word(words, word, i);
            }
            return Ok(words);
        }
        let dtype = self.kernel.tile(v.tile).dtype;
        let bits = bits_in(&v.memory) as u32;
        let per_word = elem.bits() / bits;
        for w in 0..lanes {
            let mut word: Option<Val<'c>> = None;
            for i in 0..per_word {
                let register = register + u64::from(w * per_word + i);
                let value = self.load_cell(v.tile, register)?;
                let value = self.converted(value, dtype, v.memory.dtype)?;
                let value = self.b.to_stored(value, v.memory.dtype);
                let value = self.b.bitcast(value, value.elem.as_int());
                let mut part = self.b.resize(value, elem, false);
                if v.memory.packed {
                    let mask = self.b.int(elem, 1, 0xf);
                    part = self.b.andi(part, mask);
                }
                let part = self.b.shl(part, bits * i);
                word = Some(match word {
                    Some(before) => self.b.ori(before, part),
                    None => part,
                });
            }
            if let Some(word) = word {
                words = self.set_word(words, word, w);
            }
        }
        Ok(words)
    }

    fn set_word(&mut self, words: Val<'c>, word: Val<'c>, at: u32) -> Val<'c> {
        match words.lanes {
            1 => word,
            _ => self.b.insert(word, words, at),
        }
    }
}

/// Bits of an element in memory.
fn bits_in(memory: &Memory<'_>) -> u64 {
    match memory.packed {
        true => 4,
        false => u64::from(memory.elem().bits()),
    }
}

/// The longest vector in a run, in elements: a power of two of at most 16 bytes.
fn longest(run: u64, bits: u64) -> u64 {
    let most = MOST_BYTES * 8 / bits;
    (1 << run.trailing_zeros()).min(most)
}

/// The words of a vector: of 64 bits for longer elements, else of 32, or of as many as there are.
fn words(v: &Vectors<'_>) -> (Elem, u32) {
    let bits = (v.run * bits_in(&v.memory)) as u32;
    match (bits_in(&v.memory), bits) {
        (64, _) => (Elem::I64, bits / 64),
        (_, 16) => (Elem::I16, 1),
        _ => (Elem::I32, bits / 32),
    }
}
