//! Folds, scans and top-k of whole tiles. Each step is one op of the element type on a column (`words::binary`).

use super::words::{self, Fault, Words};
use crate::tile::ir::{BinaryOp, FoldOp, Order, Type};
use tessera_artifact::{DType, numeric};

/// What a fold starts from.
pub fn identity(op: FoldOp, d: DType) -> u64 {
    let extreme = |float: f64, int: i128| {
        if d.is_float() {
            numeric::from_f64(float, d)
        } else {
            numeric::from_i128(int, d)
        }
    };
    let bits = d.bits().min(64);
    let (least, greatest) = if d.is_signed_int() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    };
    match op {
        FoldOp::Sum => 0,
        FoldOp::Prod => extreme(1.0, 1),
        FoldOp::Max => extreme(f64::NEG_INFINITY, least),
        FoldOp::Min => extreme(f64::INFINITY, greatest),
        FoldOp::Or => 0,
        FoldOp::And if d == DType::Bool => 1,
        FoldOp::And => {
            greatest as u64 & (u64::MAX >> (64 - bits))
                | if d.is_signed_int() {
                    1 << (bits - 1)
                } else {
                    0
                }
        }
    }
}

pub fn step_op(op: FoldOp) -> BinaryOp {
    match op {
        FoldOp::Sum => BinaryOp::Add,
        FoldOp::Prod => BinaryOp::Mul,
        FoldOp::Max => BinaryOp::Max,
        FoldOp::Min => BinaryOp::Min,
        FoldOp::And => BinaryOp::And,
        FoldOp::Or => BinaryOp::Or,
    }
}

fn step(op: FoldOp, d: DType, a: &Words, b: &Words) -> Result<Words, Fault> {
    if d == DType::Bool {
        let zip = |f: fn(u8, u8) -> u8| a.w8().iter().zip(b.w8()).map(|(&x, &y)| f(x, y)).collect();
        return Ok(Words::W8(if op == FoldOp::And {
            zip(|x, y| x & y)
        } else {
            zip(|x, y| x | y)
        }));
    }
    words::binary(step_op(op), Type::Scalar(d), a, b)
}

/// The tile seen from the folded axis: `[outer, n, inner]`, turned to `n` columns of `outer * inner`.
pub struct Axis {
    pub outer: usize,
    pub n: usize,
    pub inner: usize,
}

impl Axis {
    pub fn of(shape: &[u64], axis: usize) -> Axis {
        let product = |s: &[u64]| s.iter().product::<u64>() as usize;
        Axis {
            outer: product(&shape[..axis]),
            n: shape[axis] as usize,
            inner: product(&shape[axis + 1..]),
        }
    }

    fn columns(&self, d: DType, src: &Words) -> Vec<Words> {
        let ty = Type::Scalar(d);
        let mut out = vec![Words::zeros(ty, self.outer * self.inner); self.n];
        for (k, column) in out.iter_mut().enumerate() {
            for o in 0..self.outer {
                for i in 0..self.inner {
                    column.set(
                        o * self.inner + i,
                        src.get((o * self.n + k) * self.inner + i),
                    );
                }
            }
        }
        out
    }
}

pub fn reduce(
    op: FoldOp,
    order: Order,
    d: DType,
    axis: &Axis,
    src: &Words,
) -> Result<Words, Fault> {
    let columns = axis.columns(d, src);
    let start = Words::splat(Type::Scalar(d), axis.outer * axis.inner, identity(op, d));
    match order {
        Order::Ascending => columns
            .iter()
            .try_fold(start, |acc, x| step(op, d, &acc, x)),
        Order::Tree(w) => {
            let w = w as usize;
            let mut lanes = Vec::with_capacity(w);
            for l in 0..w {
                let mut own = columns.iter().skip(l).step_by(w);
                let first = own.next().unwrap_or(&start).clone();
                lanes.push(own.try_fold(first, |acc, x| step(op, d, &acc, x))?);
            }
            let mut half = w / 2;
            while half > 0 {
                for l in 0..half {
                    lanes[l] = step(op, d, &lanes[l], &lanes[l + half])?;
                }
                half /= 2;
            }
            Ok(lanes.swap_remove(0))
        }
    }
}

pub fn scan(op: FoldOp, d: DType, axis: &Axis, src: &Words) -> Result<Words, Fault> {
    let mut out = Words::zeros(Type::Scalar(d), src.len());
    let mut acc = Words::splat(Type::Scalar(d), axis.outer * axis.inner, identity(op, d));
    for (k, column) in axis.columns(d, src).iter().enumerate() {
        acc = step(op, d, &acc, column)?;
        for o in 0..axis.outer {
            for i in 0..axis.inner {
                out.set(
                    (o * axis.n + k) * axis.inner + i,
                    acc.get(o * axis.inner + i),
                );
            }
        }
    }
    Ok(out)
}

/// Values and indices of the `k` first of every row of `n`.
pub fn topk(d: DType, n: usize, k: usize, smallest: bool, src: &Words) -> (Words, Words) {
    let rows = src.len().checked_div(n).unwrap_or(0);
    let mut values = Words::zeros(Type::Scalar(d), rows * k);
    let mut indices = Vec::with_capacity(rows * k);
    let mut order: Vec<usize> = Vec::new();
    for row in 0..rows {
        let at = |i: usize| src.get(row * n + i);
        order.clear();
        order.extend(0..n);
        // Stable: equal values stay in rising order of their indices.
        order.sort_by(|&i, &j| {
            let (a, b) = (at(i), at(j));
            if d.is_float() {
                let (a, b) = (numeric::to_f64(a, d), numeric::to_f64(b, d));
                let by_value = a
                    .partial_cmp(&b)
                    .map(|o| if smallest { o } else { o.reverse() });
                by_value.unwrap_or(a.is_nan().cmp(&b.is_nan()))
            } else {
                let o = numeric::to_i128(a, d).cmp(&numeric::to_i128(b, d));
                if smallest { o } else { o.reverse() }
            }
        });
        for (slot, &i) in order.iter().take(k).enumerate() {
            values.set(row * k + slot, at(i));
            indices.push(i as u32);
        }
    }
    (values, Words::W32(indices))
}
