//! How a map touches a tile, and what that says of where the two lie.
//!
//! An access is regular if every axis of the tile is named by one axis of the map, scaled and moved (`t[2 * i + 1]`), or by a constant, and
//! no axis of the map twice. Then the layout of the map and that of the tile determine each other: a digit of the map moves the tile by
//! its stride times the scale; what lies between two multiples of the scale, and beyond the map's extent, is in the same thread's registers.

use super::layout::{Digit, Layout};
use crate::tile::ir::*;

/// `scale * axis + offset`, by axis of the tile; no axis: a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Along {
    pub axis: Option<usize>,
    pub scale: u64,
    pub offset: u64,
}

/// By axis of the tile.
pub type Access = Vec<Along>;

/// What `index` names in a map over `body`'s arguments; `None` where it is not regular.
pub fn access(kernel: &Kernel, body: BlockId, index: &[ValueId]) -> Option<Access> {
    let args = &kernel.block(body).args;
    let found: Access = (index.iter())
        .map(|&v| {
            let (axis, scale, offset) = affine(kernel, args, v)?;
            Some(Along {
                axis: axis.filter(|_| scale != 0),
                scale: u64::try_from(scale).ok()?,
                offset: u64::try_from(offset).ok()?,
            })
        })
        .collect::<Option<_>>()?;
    let named: Vec<usize> = found.iter().filter_map(|a| a.axis).collect();
    let once = (1..named.len()).all(|i| !named[..i].contains(&named[i]));
    once.then_some(found)
}

fn affine(kernel: &Kernel, args: &[ValueId], v: ValueId) -> Option<(Option<usize>, i64, i64)> {
    if let Some(axis) = args.iter().position(|a| *a == v) {
        return Some((Some(axis), 1, 0));
    }
    if let Some(c) = kernel.const_index(v) {
        return Some((None, 0, c));
    }
    let OpKind::Binary(op, x, y) = kernel.def(v)? else {
        return None;
    };
    let ((a, s, o), (b, t, p)) = (affine(kernel, args, *x)?, affine(kernel, args, *y)?);
    let one = |a: Option<usize>, b: Option<usize>| match (a, b) {
        (Some(a), Some(b)) if a != b => None,
        (a, b) => Some(a.or(b)),
    };
    match op {
        BinaryOp::Add => Some((one(a, b)?, s.checked_add(t)?, o.checked_add(p)?)),
        BinaryOp::Sub => Some((one(a, b)?, s.checked_sub(t)?, o.checked_sub(p)?)),
        BinaryOp::Mul if b.is_none() => Some((a, s.checked_mul(p)?, o.checked_mul(p)?)),
        BinaryOp::Mul if a.is_none() => Some((b, t.checked_mul(o)?, p.checked_mul(o)?)),
        _ => None,
    }
}

/// Digits of a map, as those of a tile that it touches so.
fn digits_of_tile(digits: &[Digit], access: &Access) -> Vec<Digit> {
    let tile_digit = |d: &Digit| match access.iter().position(|a| a.axis == d.axis) {
        Some(axis) if d.axis.is_some() => Digit {
            axis: Some(axis),
            stride: d.stride * access[axis].scale,
            ..*d
        },
        _ => Digit {
            axis: None,
            stride: 0,
            ..*d
        },
    };
    digits.iter().map(tile_digit).collect()
}

/// The layout of a tile of `shape` that a map in layout `map` touches so. `None` if no layout suits.
pub fn layout_of_tile(map: &Layout, access: &Access, shape: &[u64]) -> Option<Layout> {
    let mut registers = digits_of_tile(&map.registers, access);
    registers.retain(|d| d.axis.is_some());
    for (axis, along) in access.iter().enumerate() {
        let covered = match along.axis {
            Some(x) => {
                registers.push(Digit {
                    count: along.scale,
                    axis: Some(axis),
                    stride: 1,
                });
                along.scale * map.shape[x]
            }
            None => 1,
        };
        if !shape[axis].is_multiple_of(covered) {
            return None;
        }
        registers.push(Digit {
            count: shape[axis] / covered,
            axis: Some(axis),
            stride: covered,
        });
    }
    let layout = Layout {
        shape: shape.to_vec(),
        registers,
        lanes: digits_of_tile(&map.lanes, access),
        warps: digits_of_tile(&map.warps, access),
    };
    Some(layout.ordered())
}

/// The layout of a map over `extents` that touches a tile in layout `tile` so; axes of the map that the tile does not have go to registers.
pub fn layout_of_map(tile: &Layout, access: &Access, extents: &[u64]) -> Option<Layout> {
    // The part of a digit that lies in the map, or `Err` where a digit of threads lies outside.
    let map_digit = |d: &Digit| -> Result<Option<Digit>, ()> {
        let Some(axis) = d.axis else {
            return Ok(Some(*d));
        };
        let Along {
            axis: Some(x),
            scale,
            ..
        } = access[axis]
        else {
            return Err(());
        };
        let (from, to) = (d.stride.max(scale), d.stride * d.count);
        let to = to.min(scale * extents[x]);
        if from >= to {
            return Err(());
        }
        let whole = from.is_multiple_of(d.stride) && from.is_multiple_of(scale);
        if !whole || !to.is_multiple_of(from) {
            return Err(());
        }
        Ok(Some(Digit {
            count: to / from,
            axis: Some(x),
            stride: from / scale,
        }))
    };
    let threads = |digits: &[Digit]| -> Option<Vec<Digit>> {
        let each = digits.iter().map(|d| {
            let found = map_digit(d).ok()??;
            (found.count == d.count).then_some(found)
        });
        each.collect()
    };
    let mut registers: Vec<Digit> = (tile.registers.iter())
        .filter_map(|d| map_digit(d).ok()?)
        .collect();
    for (x, &extent) in extents.iter().enumerate() {
        if access.iter().all(|a| a.axis != Some(x)) {
            registers.push(Digit {
                count: extent,
                axis: Some(x),
                stride: 1,
            });
        }
    }
    let layout = Layout {
        shape: extents.to_vec(),
        registers,
        lanes: threads(&tile.lanes)?,
        warps: threads(&tile.warps)?,
    };
    let layout = layout.ordered();
    (layout.holds_all() && fits(&layout, access, tile)).then_some(layout)
}

/// Whether every thread of a map in layout `map` finds what it touches so in registers of its own.
pub fn fits(map: &Layout, access: &Access, tile: &Layout) -> bool {
    let wanted = Layout {
        shape: tile.shape.clone(),
        registers: vec![],
        lanes: digits_of_tile(&map.lanes, access),
        warps: digits_of_tile(&map.warps, access),
    };
    wanted.threads() == tile.threads()
        && (0..map.registers()).all(|r| register(map, access, tile, r).is_some())
}

/// The register of the tile that register `number` of the map touches so.
pub fn register(map: &Layout, access: &Access, tile: &Layout, number: u64) -> Option<u64> {
    let at = map.of_register(number);
    let offsets: Vec<u64> = (access.iter())
        .map(|a| a.offset + a.axis.map_or(0, |x| a.scale * at[x]))
        .collect();
    tile.register_at(&offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn along(axis: usize, scale: u64, offset: u64) -> Along {
        Along {
            axis: Some(axis),
            scale,
            offset,
        }
    }

    #[test]
    fn a_map_over_runs_has_a_thread_for_each_run() {
        let tile = Layout::runs(&[1024], 8, 4, false);
        let map = layout_of_map(&tile, &vec![along(0, 8, 3)], &[128]).expect("runs of eight");
        assert_eq!(map.to_string(), "register [] lane [32:1·r] warp [4:32·r]");
        assert_eq!(register(&map, &vec![along(0, 8, 3)], &tile, 0), Some(3));
        let back = layout_of_tile(&map, &vec![along(0, 8, 3)], &[1024]).expect("a layout");
        assert_eq!(back.threads(), tile.threads());
    }

    #[test]
    fn runs_shorter_than_the_scale_are_no_map() {
        let tile = Layout::runs(&[1024], 4, 4, false);
        assert_eq!(layout_of_map(&tile, &vec![along(0, 8, 0)], &[128]), None);
    }

    #[test]
    fn a_vector_along_one_axis_has_copies_in_the_other() {
        let map = Layout::runs(&[8, 128], 8, 4, true);
        let vector = layout_of_tile(&map, &vec![along(0, 1, 0)], &[8]).expect("a layout");
        assert_eq!(vector.threads(), map.without(1).threads());
        assert!(fits(&map, &vec![along(0, 1, 0)], &vector));
        // Another thread's column.
        let columns = Layout::runs(&[128], 8, 4, false);
        assert!(!fits(&map, &vec![along(1, 1, 64)], &columns));
    }
}
