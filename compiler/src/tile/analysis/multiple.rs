//! A power of two that every value an index takes is a multiple of, from how it is computed.

use crate::tile::ir::*;
use std::collections::BTreeMap;

/// Larger powers of two are not told apart.
const MOST: u64 = 1 << 32;

/// At most 2^32, also where the value is always 0.
pub fn power_of_two(kernel: &Kernel, value: ValueId) -> u64 {
    of(kernel, value, &mut BTreeMap::new())
}

/// `known`: values are shared, so that walking all ways to them could take for ever.
fn of(kernel: &Kernel, value: ValueId, known: &mut BTreeMap<ValueId, u64>) -> u64 {
    if let Some(&power) = known.get(&value) {
        return power;
    }
    let power = match (kernel.const_index(value), kernel.value(value).def) {
        (Some(constant), _) => lowest_bit(constant),
        (None, Def::Op(op)) => match kernel.op(op).kind {
            OpKind::Dim(dim) => {
                let dim = &kernel.dims[dim.index()];
                lowest_bit(dim.lo).min(lowest_bit(dim.step))
            }
            OpKind::Binary(BinaryOp::Mul, a, b) => {
                (of(kernel, a, known) * of(kernel, b, known)).min(MOST)
            }
            OpKind::Binary(
                BinaryOp::Add | BinaryOp::Sub | BinaryOp::Min | BinaryOp::Max | BinaryOp::Rem,
                a,
                b,
            )
            | OpKind::Select(_, a, b) => of(kernel, a, known).min(of(kernel, b, known)),
            _ => 1,
        },
        // The variable of a loop moves on by one.
        (None, Def::Arg(..)) => 1,
    };
    known.insert(value, power);
    power
}

fn lowest_bit(n: i64) -> u64 {
    match n {
        0 => MOST,
        n => (1 << n.trailing_zeros()).min(MOST),
    }
}
