//! Where the elements of a tile lie in the registers of a group of warps.
//!
//! A layout writes the hardware's numbers (register, lane, warp) in mixed radix, and every digit moves one axis of the tile by its
//! stride: `coordinate[axis] = Σ digit · stride`. With digits of powers of two that is a linear map over bits; the mixed radix also
//! holds the tiles of 160 and 192 columns that tensor cores take. A digit without an axis means copies: threads that differ in it hold
//! the same element.
//!
//! Keeps: every element of the tile is held (checked by [`Layout::check`]); no register of a thread holds what another one of it does.
//! Source of the accumulator's layout: PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16", matrix D.

use std::fmt;

/// One digit of a hardware number, the fastest first in its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digit {
    pub count: u64,
    /// `None`: copies.
    pub axis: Option<usize>,
    pub stride: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    pub shape: Vec<u64>,
    /// All with an axis.
    pub registers: Vec<Digit>,
    /// Together 32.
    pub lanes: Vec<Digit>,
    pub warps: Vec<Digit>,
}

pub const LANES: u64 = 32;
/// Warps that issue one `wgmma` together.
pub const WARPS_PER_GROUP: u64 = 4;

const fn digit(count: u64, axis: usize, stride: u64) -> Digit {
    Digit {
        count,
        axis: Some(axis),
        stride,
    }
}

impl Layout {
    /// The accumulator of `wgmma` for a tile of `rows` x `columns` over `groups` warpgroups, each with `rows / groups` rows.
    /// `None` where rows don't come in 64s or columns in eights.
    pub fn accumulator(rows: u64, columns: u64, groups: u64) -> Option<Layout> {
        if !rows.is_multiple_of(64 * groups) || !columns.is_multiple_of(8) || columns == 0 {
            return None;
        }
        let layout = Layout {
            shape: vec![rows, columns],
            registers: vec![
                digit(2, 1, 1),
                digit(2, 0, 8),
                digit(columns / 8, 1, 8),
                digit(rows / (64 * groups), 0, 64),
            ],
            lanes: vec![digit(4, 1, 2), digit(8, 0, 1)],
            warps: vec![digit(4, 0, 16), digit(groups, 0, rows / groups)],
        };
        Some(layout.tidy())
    }

    /// Whether every 64 rows of a matrix lie in a warpgroup as `accumulator` has them.
    pub fn lies_as_sums(&self) -> bool {
        let &[rows, columns] = self.shape.as_slice() else {
            return false;
        };
        let groups = self.warps.iter().map(|d| d.count).product::<u64>() / WARPS_PER_GROUP;
        let sums = Layout::accumulator(rows, columns, groups.max(1));
        sums.is_some_and(|sums| self.lanes == sums.lanes && self.warps == sums.warps)
    }

    /// The left operand of `wgmma` in registers, of elements of 16 or 8 bits, for a tile of `rows` x `k` over `groups` warpgroups.
    /// Source: PTX ISA, "Register Fragments for wgmma.mma_async", matrix A.
    pub fn operand(rows: u64, k: u64, groups: u64, bits: u64) -> Option<Layout> {
        let run = 32 / bits;
        if !rows.is_multiple_of(64 * groups) || !k.is_multiple_of(8 * run) || k == 0 {
            return None;
        }
        let layout = Layout {
            shape: vec![rows, k],
            registers: vec![
                digit(run, 1, 1),
                digit(2, 0, 8),
                digit(2, 1, 4 * run),
                digit(k / (8 * run), 1, 8 * run),
                digit(rows / (64 * groups), 0, 64),
            ],
            lanes: vec![digit(4, 1, run), digit(8, 0, 1)],
            warps: vec![digit(4, 0, 16), digit(groups, 0, rows / groups)],
        };
        Some(layout.tidy())
    }

    /// A tile that streams between memory and registers: each thread holds runs of `run` neighbours of the last axis, neighbouring lanes
    /// neighbouring runs, so that a warp reads and writes memory without a gap. What is left of the last axis goes to the warps, then to
    /// registers; with `rows_to_warps` warps take rows first, which keeps a row within one warp. Lanes or warps too many hold copies.
    pub fn runs(shape: &[u64], run: u64, warps: u64, rows_to_warps: bool) -> Layout {
        Layout::dealt(shape, (run, LANES), warps, rows_to_warps)
    }

    /// As [`Layout::runs`] with rows to warps, for shared memory whose lines of `line` elements are swizzled by rows: lanes that access it together
    /// have a line of each row and then other rows, so that none meets another in a bank.
    pub fn lines(shape: &[u64], run: u64, line: u64, warps: u64) -> Layout {
        Layout::dealt(shape, (run, (line / run).max(1)), warps, true)
    }

    /// `along`: neighbours of the last axis in a thread, and the most lanes that go along it.
    fn dealt(shape: &[u64], along: (u64, u64), warps: u64, rows_to_warps: bool) -> Layout {
        let (run, most_lanes) = along;
        let mut left = shape.to_vec();
        // As many as divide both what is left of the axis and `most`.
        let mut take = |axis: usize, most: u64| {
            let taken = digit(gcd(left[axis], most), axis, shape[axis] / left[axis]);
            left[axis] /= taken.count;
            taken
        };
        let inner_first: Vec<usize> = (0..shape.len()).rev().collect();
        let outer_first: Vec<usize> = (0..shape.len()).collect();
        let mut registers = vec![];
        if let Some(&last) = inner_first.first() {
            registers.push(take(last, run));
        }
        let last = shape.len().wrapping_sub(1);
        let mut over = |total: u64, axes: &[usize], along_last: u64| {
            let mut digits: Vec<Digit> = vec![];
            let mut missing = total;
            for &axis in axes {
                let most = if axis == last { along_last } else { missing };
                let taken = take(axis, missing.min(most));
                missing /= taken.count;
                digits.push(taken);
            }
            digits.push(copies(missing));
            digits.retain(|d| d.count > 1);
            digits
        };
        let lanes = over(LANES, &inner_first, most_lanes);
        let warps = match rows_to_warps {
            true => over(warps, &outer_first, warps),
            false => over(warps, &inner_first, warps),
        };
        registers.extend(inner_first.iter().map(|&axis| take(axis, 0)));
        let layout = Layout {
            shape: shape.to_vec(),
            registers,
            lanes,
            warps,
        };
        layout.ordered()
    }

    /// Every thread holds all of the tile.
    pub fn everywhere(shape: &[u64], warps: u64) -> Layout {
        let layout = Layout {
            shape: shape.to_vec(),
            registers: (0..shape.len())
                .map(|axis| digit(shape[axis], axis, 1))
                .collect(),
            lanes: vec![copies(LANES)],
            warps: vec![copies(warps)],
        };
        layout.ordered()
    }

    /// With the registers numbered along the last axis first. Which thread holds what stays.
    pub(super) fn ordered(mut self) -> Layout {
        self.registers.retain(|d| d.count > 1);
        self.registers
            .sort_by_key(|d| (std::cmp::Reverse(d.axis), d.stride));
        let mut merged: Vec<Digit> = vec![];
        for d in self.registers {
            match merged.last_mut() {
                Some(last) if last.axis == d.axis && last.stride * last.count == d.stride => {
                    last.count *= d.count;
                }
                _ => merged.push(d),
            }
        }
        self.registers = merged;
        self
    }

    /// What lanes and what warps hold, in a form that is equal for equal layouts: a digit for each prime factor.
    pub fn threads(&self) -> [Vec<(Option<usize>, u64, u64)>; 2] {
        [&self.lanes, &self.warps].map(|digits| digits.iter().flat_map(primes).collect())
    }

    /// The register that adds this much to the coordinates.
    pub fn register_at(&self, offsets: &[u64]) -> Option<u64> {
        let mut rest = offsets.to_vec();
        let mut order: Vec<usize> = (0..self.registers.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.registers[i].stride));
        let mut values = vec![0; self.registers.len()];
        for i in order {
            let d = self.registers[i];
            let axis = d.axis?;
            values[i] = (rest[axis] / d.stride).min(d.count - 1);
            rest[axis] -= values[i] * d.stride;
        }
        let mut place = 1;
        let mut number = 0;
        for (d, value) in self.registers.iter().zip(values) {
            number += value * place;
            place *= d.count;
        }
        rest.iter().all(|&r| r == 0).then_some(number)
    }

    /// Whether the digits of each axis count through it without a gap.
    pub(super) fn holds_all(&self) -> bool {
        let digits = || {
            let all = self.registers.iter().chain(&self.lanes).chain(&self.warps);
            all.filter(|d| d.count > 1)
        };
        self.shape.iter().enumerate().all(|(axis, &extent)| {
            let mut own: Vec<&Digit> = digits().filter(|d| d.axis == Some(axis)).collect();
            own.sort_by_key(|d| d.stride);
            let end = own
                .iter()
                .try_fold(1, |next, d| (d.stride == next).then_some(next * d.count));
            end == Some(extent)
        })
    }

    /// Whether several threads hold the same element.
    pub fn has_copies(&self) -> bool {
        let mut threads = self.lanes.iter().chain(&self.warps);
        threads.any(|d| d.axis.is_none() && d.count > 1)
    }

    /// Whether every thread holds all of it.
    pub fn is_everywhere(&self) -> bool {
        let mut threads = self.lanes.iter().chain(&self.warps);
        threads.all(|d| d.axis.is_none() || d.count == 1)
    }

    /// Words of 32 bits that a thread's elements of so many bits take, where neighbours that fill a word share one.
    pub fn words(&self, bits: u64) -> u64 {
        let count = self.registers();
        match 32 / bits.clamp(4, 32) {
            sharing if sharing > 1 && self.run().is_multiple_of(sharing) => count / sharing,
            _ => count * bits.div_ceil(32),
        }
    }

    /// How many neighbours along the last axis stand in a row in a thread's registers.
    pub fn run(&self) -> u64 {
        match self.registers.first() {
            Some(d) if d.stride == 1 && d.axis == self.shape.len().checked_sub(1) => d.count,
            _ => 1,
        }
    }

    /// The layout of what is left when `axis` is folded away or does not matter: threads along it hold copies.
    pub fn without(&self, axis: usize) -> Layout {
        let mut shape = self.shape.clone();
        shape.remove(axis);
        let renumber = |a: usize| if a > axis { a - 1 } else { a };
        let keep = |digits: &[Digit]| -> Vec<Digit> {
            let each = digits.iter().map(|d| match d.axis {
                Some(a) if a == axis => Digit { axis: None, ..*d },
                Some(a) => Digit {
                    axis: Some(renumber(a)),
                    ..*d
                },
                None => *d,
            });
            each.collect()
        };
        let registers = keep(&self.registers);
        Layout {
            shape,
            registers: registers.into_iter().filter(|d| d.axis.is_some()).collect(),
            lanes: keep(&self.lanes),
            warps: keep(&self.warps),
        }
    }

    fn tidy(mut self) -> Layout {
        self.registers.retain(|d| d.count > 1);
        self.warps.retain(|d| d.count > 1);
        self
    }

    /// Registers of a thread.
    pub fn registers(&self) -> u64 {
        self.registers.iter().map(|d| d.count).product()
    }

    pub fn warps(&self) -> u64 {
        self.warps.iter().map(|d| d.count).product()
    }

    /// What register `number` adds to the coordinates.
    pub fn of_register(&self, number: u64) -> Vec<u64> {
        offsets(&self.registers, number, self.shape.len())
    }

    /// The coordinates of a register of a thread.
    pub fn coordinates(&self, register: u64, lane: u64, warp: u64) -> Vec<u64> {
        let rank = self.shape.len();
        let parts = [
            offsets(&self.registers, register, rank),
            offsets(&self.lanes, lane, rank),
            offsets(&self.warps, warp, rank),
        ];
        (0..rank)
            .map(|a| parts.iter().map(|p| p[a]).sum())
            .collect()
    }

    /// The register of `self.without(axis)` that holds what register `number` of `self` sees of it.
    pub fn register_without(&self, axis: usize, number: u64) -> u64 {
        let (mut rest, mut out, mut place) = (number, 0, 1);
        for d in &self.registers {
            let value = rest % d.count;
            rest /= d.count;
            if d.axis != Some(axis) {
                out += value * place;
                place *= d.count;
            }
        }
        out
    }

    /// Whether each element of the tile is held, and by no two registers of one thread.
    pub fn check(&self) -> Result<(), String> {
        let lanes: u64 = self.lanes.iter().map(|d| d.count).product();
        if lanes != LANES {
            return Err(format!("{lanes} lanes"));
        }
        let total: u64 = self.shape.iter().product();
        let mut held = vec![false; total as usize];
        for warp in 0..self.warps() {
            for lane in 0..LANES {
                let mut own = std::collections::BTreeSet::new();
                for register in 0..self.registers() {
                    let at = self.coordinates(register, lane, warp);
                    let mut number = 0;
                    for (&a, &extent) in at.iter().zip(&self.shape) {
                        if a >= extent {
                            return Err(format!("{at:?} lies outside {:?}", self.shape));
                        }
                        number = number * extent + a;
                    }
                    if !own.insert(number) {
                        return Err(format!("a thread holds {at:?} twice"));
                    }
                    held[number as usize] = true;
                }
            }
        }
        match held.iter().position(|h| !h) {
            Some(missing) => Err(format!("nobody holds element {missing}")),
            None => Ok(()),
        }
    }
}

const fn copies(count: u64) -> Digit {
    Digit {
        count,
        axis: None,
        stride: 0,
    }
}

pub fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Count, axis and stride of a digit for each prime factor of this one, the fastest first.
pub(super) fn primes(d: &Digit) -> Vec<(Option<usize>, u64, u64)> {
    let (mut left, mut stride, mut found) = (d.count, d.stride, vec![]);
    let mut factor = 2;
    while left > 1 {
        while left.is_multiple_of(factor) {
            let stride_here = if d.axis.is_some() { stride } else { 0 };
            found.push((d.axis, stride_here, factor));
            stride *= factor;
            left /= factor;
        }
        factor += 1;
    }
    found
}

fn offsets(digits: &[Digit], number: u64, rank: usize) -> Vec<u64> {
    let mut out = vec![0; rank];
    let mut rest = number;
    for d in digits {
        let value = rest % d.count;
        rest /= d.count;
        if let Some(axis) = d.axis {
            out[axis] += value * d.stride;
        }
    }
    out
}

/// `register [2:1·c, 2:8·r, 8:8·c] lane [4:2·c, 8:1·r] warp [4:16·r, 2:64·r]`: count, stride and axis of each digit, fastest first.
impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["r", "c", "d", "e"];
        let part = |f: &mut fmt::Formatter<'_>, name: &str, digits: &[Digit]| {
            write!(f, "{name} [")?;
            for (i, d) in digits.iter().enumerate() {
                let comma = if i > 0 { ", " } else { "" };
                match d.axis {
                    Some(a) => write!(f, "{comma}{}:{}·{}", d.count, d.stride, names[a.min(3)])?,
                    None => write!(f, "{comma}{}:copies", d.count)?,
                }
            }
            write!(f, "]")
        };
        part(f, "register", &self.registers)?;
        part(f, " lane", &self.lanes)?;
        part(f, " warp", &self.warps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn accumulators_hold_every_element_once(groups in 1u64..=2, blocks in 1u64..=2, eights in 1u64..=32) {
            let layout = Layout::accumulator(64 * groups * blocks, 8 * eights, groups).expect("in range");
            prop_assert_eq!(layout.check(), Ok(()));
            prop_assert_eq!(layout.registers() * LANES * layout.warps(), layout.shape.iter().product::<u64>());
            for axis in 0..2 {
                prop_assert_eq!(layout.without(axis).check(), Ok(()));
            }
        }

        #[test]
        fn operands_hold_every_element_once(groups in 1u64..=2, blocks in 1u64..=2, steps in 1u64..=16, narrow: bool) {
            let bits = if narrow { 8 } else { 16 };
            let layout = Layout::operand(64 * groups * blocks, steps * 256 / bits, groups, bits).expect("in range");
            prop_assert_eq!(layout.check(), Ok(()));
            prop_assert_eq!(layout.registers() * LANES * layout.warps(), layout.shape.iter().product::<u64>());
            prop_assert_eq!(layout.words(bits), 4 * blocks * steps);
        }

        #[test]
        fn runs_hold_every_element(
            rows in 1u64..=24, columns in 1u64..=96, shift in 0u32..=3, warps in 1u64..=8, rows_to_warps: bool,
        ) {
            let layout = Layout::runs(&[rows, columns << shift], 1 << shift, warps, rows_to_warps);
            prop_assert_eq!(layout.check(), Ok(()));
            prop_assert_eq!(layout.warps(), warps);
            prop_assert!(layout.run().is_multiple_of(1 << shift));
            for register in 0..layout.registers() {
                prop_assert_eq!(layout.register_at(&layout.of_register(register)), Some(register));
            }
            for axis in 0..2 {
                prop_assert_eq!(layout.without(axis).check(), Ok(()));
            }
            prop_assert_eq!(Layout::everywhere(&[rows, columns], warps).check(), Ok(()));
            let lines = Layout::lines(&[rows, columns << shift], 1 << shift, 4 << shift, warps);
            prop_assert_eq!(lines.check(), Ok(()));
        }

        #[test]
        fn a_register_of_the_slice_holds_the_same_coordinate(
            eights in 1u64..=32, axis in 0usize..2, register in 0u64..4096, lane in 0u64..32, warp in 0u64..8,
        ) {
            let layout = Layout::accumulator(256, 8 * eights, 2).expect("in range");
            let register = register % layout.registers();
            let slice = layout.without(axis);
            let whole = layout.coordinates(register, lane, warp);
            let part = slice.coordinates(layout.register_without(axis, register), lane, warp);
            prop_assert_eq!(whole[1 - axis], part[0]);
        }
    }

    #[test]
    fn lanes_that_store_together_share_lines_of_several_rows() {
        let layout = Layout::lines(&[64, 256], 16, 64, 4);
        assert_eq!(
            layout.to_string(),
            "register [16:1·c, 4:64·c, 2:32·r] lane [4:16·c, 8:1·r] warp [4:8·r]"
        );
    }

    #[test]
    fn the_accumulator_is_as_the_manual_draws_it() {
        let layout = Layout::accumulator(64, 16, 1).expect("in range");
        // Thread 5 of warp 2: row 32 + 1, columns 2 and 3; then eight rows below; then eight columns on.
        assert_eq!(layout.coordinates(0, 5, 2), [33, 2]);
        assert_eq!(layout.coordinates(1, 5, 2), [33, 3]);
        assert_eq!(layout.coordinates(2, 5, 2), [41, 2]);
        assert_eq!(layout.coordinates(4, 5, 2), [33, 10]);
        assert_eq!(
            layout.to_string(),
            "register [2:1·c, 2:8·r, 2:8·c] lane [4:2·c, 8:1·r] warp [4:16·r]"
        );
    }
}
