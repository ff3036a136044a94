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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::build::Builder;

    #[test]
    fn powers_follow_the_arithmetic() {
        let mut b = Builder::new("k", Default::default());
        let even = b.dim("E", 0, 1 << 20, 8);
        let odd = b.dim("O", 4, 1 << 20, 6);
        let (even, odd) = (b.dim_value(even), b.dim_value(odd));
        let block = b.block_index(0);
        let twelve = b.index(12);
        let by_twelve = b.mul(block, twelve);
        let sum = b.add(by_twelve, even);
        let product = b.mul(by_twelve, odd);
        let rest = b.rem(even, twelve);
        let less = b.min(by_twelve, odd);
        let zero = b.index(0);
        let kernel = b.finish();
        let of = |v| power_of_two(&kernel, v);
        assert_eq!([of(even), of(odd), of(block)], [8, 2, 1]);
        assert_eq!([of(by_twelve), of(sum), of(product)], [4, 4, 8]);
        assert_eq!([of(rest), of(less), of(zero)], [4, 2, MOST]);
    }

    /// Each sum of two has two ways to the next.
    #[test]
    fn shared_values_are_walked_once() {
        let mut b = Builder::new("k", Default::default());
        let mut v = b.block_index(0);
        for _ in 0..80 {
            v = b.mul(v, v);
        }
        let kernel = b.finish();
        assert_eq!(power_of_two(&kernel, v), 1);
    }
}
