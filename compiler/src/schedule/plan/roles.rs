//! What a role that computes needs: warps, tiles in registers, and whether tensor cores take its products.

use crate::schedule::layout::{Layout, WARPS_PER_GROUP};
use crate::schedule::registers::{Registers, infer_role, is_whole};
use crate::schedule::streams::{Stream, streams};
use crate::schedule::tensor_core_bits;
use crate::tile::ir::*;
use std::collections::{BTreeMap, BTreeSet};

/// Left to the compiler of PTX for addresses and loop variables, beside fragments.
const SPARE_REGISTERS: u64 = 36;
/// Of a role that gathers rows, besides.
const GATHER_REGISTERS: u64 = 12;
/// Of a role that puts what it computes at once, besides.
const STREAM_REGISTERS: u64 = 4;

/// What a role that computes takes.
pub(super) struct Computing {
    pub warps: u64,
    /// What it keeps in registers.
    pub registers: Registers,
    /// What it does not, though it has a layout.
    pub streamed: BTreeMap<BlockId, Stream>,
    /// Registers that a thread needs.
    pub needed: u64,
}

/// `handed`: layouts of tiles that come from other roles' registers; `stored`: channels whose matrices products read where they lie.
pub(super) fn computing(
    kernel: &Kernel,
    body: BlockId,
    handed: &BTreeMap<TileId, Layout>,
    stored: &BTreeSet<ChannelId>,
) -> Result<Computing, String> {
    if let Some(tile) = slot_read_by_elements(kernel, body) {
        return Err(format!(
            "`{}` lies as tensor cores read it, and something else reads it",
            kernel.tile(tile).name
        ));
    }
    let mut fits = Ok(());
    kernel.walk(body, &mut |_, op| {
        if let (OpKind::Dot { a, b, .. }, true) = (&kernel.op(op).kind, fits.is_ok()) {
            fits = product_fits(kernel, a, b, handed);
        }
    });
    fits?;
    let groups: &[u64] = match multiplies(kernel, body) {
        true => &[2, 1],
        false => &[1],
    };
    for &groups in groups {
        let Some(kept) = infer_role(kernel, body, groups, handed) else {
            continue;
        };
        if let Some(tile) = folded_elsewhere(kernel, body, &kept) {
            return Err(format!("`{}` is folded in memory", kernel.tile(tile).name));
        }
        let streamed = streams(kernel, body, &kept, stored);
        let mut held = kept.tiles.clone();
        held.retain(|tile, _| streamed.values().all(|s| s.tile != *tile));
        let registers = most_registers(kernel, body, &held);
        let most = if groups == 2 { 232 } else { 255 };
        if registers + SPARE_REGISTERS > most {
            return Err(format!("its tiles take {registers} registers of a thread"));
        }
        let mut needed = registers + SPARE_REGISTERS + spare_to_gather(kernel, body);
        if !streamed.is_empty() {
            needed += STREAM_REGISTERS;
        }
        return Ok(Computing {
            warps: groups * WARPS_PER_GROUP,
            registers: kept,
            streamed,
            needed,
        });
    }
    Err(
        "its products' shapes are not those of a tensor core (rows in 64s, columns in eights)"
            .to_owned(),
    )
}

/// Whether a role has products.
pub(super) fn multiplies(kernel: &Kernel, body: BlockId) -> bool {
    let mut found = false;
    kernel.walk(body, &mut |_, op| {
        found |= matches!(kernel.op(op).kind, OpKind::Dot { .. });
    });
    found
}

/// What addresses of gathered rows take besides.
fn spare_to_gather(kernel: &Kernel, body: BlockId) -> u64 {
    let mut gathers = false;
    kernel.walk(body, &mut |_, op| {
        gathers |= matches!(&kernel.op(op).kind, OpKind::Put { src, .. } if super::gathers(src));
    });
    if gathers { GATHER_REGISTERS } else { 0 }
}

/// Whether `wgmma` takes the operands as they lie.
fn product_fits(
    kernel: &Kernel,
    a: &Operand,
    b: &Operand,
    handed: &BTreeMap<TileId, Layout>,
) -> Result<(), String> {
    let dtype = |o: &Operand| kernel.tile(o.view.tile).dtype;
    for operand in [a, b] {
        if tensor_core_bits(dtype(operand)).is_none() {
            return Err(format!("a product of {}", dtype(operand)));
        }
    }
    let mut k_bytes = Vec::new();
    for (operand, k_first, left) in [(a, a.transposed, true), (b, !b.transposed, false)] {
        let tile = kernel.tile(operand.view.tile);
        let name = &tile.name;
        let in_registers = tile.space != Space::Slot || handed.contains_key(&operand.view.tile);
        if left && in_registers && is_whole(kernel, &operand.view) {
            // In registers.
            k_bytes.push(tile.shape[1] * u64::from(tile.dtype.bits()) / 8);
            continue;
        }
        if tile.space != Space::Slot {
            return Err(format!(
                "`{name}`, which a product reads, is not brought from a tensor by one copy of its own"
            ));
        }
        let bytes = u64::from(tile.dtype.bits()) / 8;
        let (
            &[_, all_columns],
            &[
                Slot::Span {
                    start: row,
                    len: rows,
                },
                Slot::Span {
                    start: column,
                    len: columns,
                },
            ],
        ) = (tile.shape.as_slice(), operand.view.slots.as_slice())
        else {
            return Err(format!("a product reads a part of lower rank of `{name}`"));
        };
        let (Some(row), Some(column)) = (kernel.const_index(row), kernel.const_index(column))
        else {
            return Err(format!("a product reads a part of `{name}` that moves"));
        };
        let row_bytes = row_bytes(name, all_columns * bytes)?;
        if row % 8 != 0 || !(column as u64 * bytes).is_multiple_of(row_bytes) {
            return Err(format!(
                "a product reads a part of `{name}` that starts at [{row}, {column}]: rows start in eights, columns in {}s",
                row_bytes / bytes
            ));
        }
        if k_first && bytes == 1 {
            return Err(format!(
                "the summed axis of `{name}` does not lie along its rows, as it must for {}",
                tile.dtype
            ));
        }
        k_bytes.push(if k_first { rows } else { columns } * bytes);
    }
    if a.transposed {
        return Err("the left operand of a product is transposed".to_owned());
    }
    if dtype(a) != dtype(b) {
        return Err(format!("a product of {} and {}", dtype(a), dtype(b)));
    }
    match k_bytes[0].is_multiple_of(32) {
        true => Ok(()),
        false => Err(format!(
            "a product sums {} bytes of each row, and not a multiple of 32",
            k_bytes[0]
        )),
    }
}

/// Bytes of a row within one block of columns: the whole row, or as much as a swizzle spans.
pub fn row_bytes(name: &str, bytes: u64) -> Result<u64, String> {
    match bytes {
        32 => Ok(bytes),
        b if b.is_multiple_of(128) => Ok(128),
        b if b.is_multiple_of(64) => Ok(64),
        b => Err(format!(
            "a row of `{name}` has {b} bytes, and not 32 or a multiple of 64"
        )),
    }
}

/// A tile that is folded in memory.
fn folded_elsewhere(kernel: &Kernel, body: BlockId, kept: &Registers) -> Option<TileId> {
    let mut found = None;
    kernel.walk(body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        if let OpKind::Reduce { src, .. } = kind
            && kept.exchanged(kernel, kind).is_none()
        {
            found = Some(*src);
        }
    });
    found
}

/// A tile of a channel that anything but a product and the reading of single elements reads. Vectors may be copied on.
fn slot_read_by_elements(kernel: &Kernel, body: BlockId) -> Option<TileId> {
    let mut found = None;
    kernel.walk(body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        if !matches!(
            kind,
            OpKind::Dot { .. } | OpKind::Get { .. } | OpKind::Release { .. }
        ) {
            kind.for_each_tile(&mut |t, _| {
                let taken = match kind {
                    OpKind::LoadTile { .. } => true,
                    OpKind::Copy { .. } => kernel.tile(t).shape.len() == 1,
                    _ => false,
                };
                if kernel.tile(t).space == Space::Slot && !taken {
                    found = Some(t);
                }
            });
        }
    });
    found
}

/// Registers of a thread that tiles take at the op where they take most. A tile lives from its first op to its last; the last op of
/// one and the first of another may be the same, since maps go element by element. A product's left operand lives until its sums are touched: a
/// product in flight reads it.
pub fn most_registers(kernel: &Kernel, body: BlockId, fragments: &BTreeMap<TileId, Layout>) -> u64 {
    let mut walk = Lives::default();
    walk.block(kernel, body);
    let Lives {
        next,
        touches,
        products,
        loops,
    } = walk;
    let mut lives: BTreeMap<TileId, (usize, usize)> = BTreeMap::new();
    for &(tile, at) in &touches {
        lives.entry(tile).or_insert((at, at)).1 = at;
    }
    for &(at, left, sums) in &products {
        let waits = touches.iter().filter(|(t, to)| *t == sums && *to > at);
        let end = waits.map(|(_, to)| *to).min();
        if let (Some(life), Some(end)) = (lives.get_mut(&left), end) {
            life.1 = life.1.max(end);
        }
    }
    for life in lives.values_mut() {
        for &(from, to) in &loops {
            // Carried by the loop.
            if life.0 < from && life.1 >= from && life.1 < to {
                life.1 = to;
            }
        }
    }
    let registers = |t: &TileId| {
        let bits = u64::from(kernel.tile(*t).dtype.bits());
        fragments.get(t).map_or(0, |l| l.words(bits))
    };
    let at = |op: usize| {
        lives
            .iter()
            .filter(|(_, l)| l.0 <= op && op < l.1.max(l.0 + 1))
            .map(|(t, _)| registers(t))
            .sum()
    };
    (0..next).map(at).max().unwrap_or(0)
}

/// Ops in the order of the program, numbered; what is in a map has the map's number.
#[derive(Default)]
struct Lives {
    next: usize,
    touches: Vec<(TileId, usize)>,
    /// Number, left operand and sums.
    products: Vec<(usize, TileId, TileId)>,
    loops: Vec<(usize, usize)>,
}

impl Lives {
    fn block(&mut self, kernel: &Kernel, block: BlockId) {
        for &op in &kernel.block(block).ops {
            let here = self.next;
            self.next += 1;
            let kind = &kernel.op(op).kind;
            let is_map = matches!(kind, OpKind::Map { .. });
            kind.for_each_tile(&mut |t, _| self.touches.push((t, here)));
            if let OpKind::Dot { acc, a, .. } = kind {
                self.products.push((here, a.view.tile, acc.tile));
            }
            for inner in kind.blocks() {
                match is_map {
                    true => kernel.walk(inner, &mut |_, op| {
                        (kernel.op(op).kind)
                            .for_each_tile(&mut |t, _| self.touches.push((t, here)));
                    }),
                    false => self.block(kernel, inner),
                }
            }
            if matches!(kind, OpKind::For { .. } | OpKind::ForItems { .. }) {
                self.loops.push((here, self.next));
            }
        }
    }
}
