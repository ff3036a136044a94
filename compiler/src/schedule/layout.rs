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
            layout.check().unwrap();
            prop_assert_eq!(layout.registers() * LANES * layout.warps(), layout.shape.iter().product::<u64>());
            for axis in 0..2 {
                layout.without(axis).check().unwrap();
            }
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
    fn the_accumulator_is_as_the_manual_draws_it() {
        let layout = Layout::accumulator(64, 16, 1).expect("in range");
        // Thread 5 of warp 2: row 32 + 1, columns 2 and 3; then eight rows below; then eight columns on.
        assert_eq!(layout.coordinates(0, 5, 2), [33, 2]);
        assert_eq!(layout.coordinates(1, 5, 2), [33, 3]);
        assert_eq!(layout.coordinates(2, 5, 2), [41, 2]);
        assert_eq!(layout.coordinates(4, 5, 2), [33, 10]);
        assert_eq!(
            layout.to_string(),
            "register [2:1·c, 2:8·r, 2:8·c] lane [4:2·c, 8:1·r] warp [4:16·r, 1:64·r]"
        );
    }
}
