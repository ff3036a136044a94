//! Transcendentals of f32 become arithmetic and bit operations: one definition for the interpreter and CPU code.
//!
//! bf16 and f16 go through f32 (one more rounding). f64 has no expansion; semantic analysis rejects it, and the verifier of back
//! ends would. Errors below hold against f64 over a sweep of all exponents (checked by the tests; those of the last row add up what each op may
//! lose, where the result's ulp is half as large as its operands');
//! NaN gives NaN everywhere.
//!
//! | op | method | ulp | specials |
//! | --- | --- | --- | --- |
//! | `exp`, `exp2` | f32: x = n + f, polynomial in f, scaled by 2^n in two exact steps, so subnormal results round once | 1 | overflow inf, underflow 0 |
//! | `log`, `log2`, `log1p` | f64: mantissa in [2/3, 4/3), series of atanh | 0.51 | log(0) = -inf, below 0 NaN |
//! | `sin`, `cos` | f64: two-step reduction by pi/2, for \|x\| <= 2^30 | 0.51 | beyond 2^30 and inf: NaN |
//! | `tanh` | f64: (e^2x - 1) / (e^2x + 1), below 2^-8 a series | 0.51 | ±1 |
//! | `pow` | f64: 2^(y log2 x) | 0.51 | as IEEE `pow` |
//! | `rsqrt`, `sigmoid`, `softplus` | as their definitions on the op, in f32 | 1.5, 3.3, 2.3 | |
//!
//! Needs: nothing. Keeps: every other op.

use super::rewrite::{Replacement, replace_ops};
use crate::tile::build::Builder;
use crate::tile::ir::*;
use tessera_artifact::DType;

const F32: Type = Type::Scalar(DType::F32);
const F64: Type = Type::Scalar(DType::F64);

pub fn expand_math(kernel: &mut Kernel) {
    expand_all_but(kernel, |_, _| false);
}

/// What the network of a GPU keeps: `exp2` of f32 is one instruction there, whose error (2 ulp, subnormal results 0) is within what the order
/// of its sums leaves open anyway.
pub fn expand_network_math(kernel: &mut Kernel) {
    expand_all_but(kernel, |op, ty| op == UnaryOp::Exp2 && ty == F32);
}

fn expand_all_but(kernel: &mut Kernel, keeps: fn(UnaryOp, Type) -> bool) {
    replace_ops(kernel, &mut |b, kind| {
        let (first, second) = match *kind {
            OpKind::Unary(op, a) if keeps(op, b.kernel.ty(a)) => return None,
            OpKind::Unary(op, a) if is_transcendental(op) => (a, None),
            OpKind::Binary(BinaryOp::Pow, a, exponent) => (a, Some(exponent)),
            _ => return None,
        };
        let ty = b.kernel.ty(first);
        if ty == F64 || ty == Type::Index {
            return None;
        }
        let x = b.cast(first, F32);
        let result = match (kind, second) {
            (_, Some(y)) => {
                let y = b.cast(y, F32);
                pow(b, x, y)
            }
            (OpKind::Unary(op, _), _) => unary(b, *op, x),
            _ => return None,
        };
        Some(Replacement::Value(b.cast(result, ty)))
    });
}

fn is_transcendental(op: UnaryOp) -> bool {
    use UnaryOp::*;
    match op {
        Exp | Exp2 | Log | Log2 | Log1p | Sin | Cos | Tanh | Rsqrt | Sigmoid | Softplus => true,
        Neg | Not | Abs | Sqrt | Floor | Ceil | RoundEven | IsNan => false,
    }
}

fn unary(b: &mut Builder, op: UnaryOp, x: ValueId) -> ValueId {
    match op {
        UnaryOp::Exp => exp(b, x),
        UnaryOp::Exp2 => exp2(b, x),
        UnaryOp::Log | UnaryOp::Log2 | UnaryOp::Log1p => log(b, op, x),
        UnaryOp::Sin | UnaryOp::Cos => sin_cos(b, op == UnaryOp::Cos, x),
        UnaryOp::Tanh => tanh(b, x),
        UnaryOp::Rsqrt => {
            let (one, root) = (f32(b, 1.0), b.unary(UnaryOp::Sqrt, x));
            b.div(one, root)
        }
        UnaryOp::Sigmoid => {
            let (one, negated) = (f32(b, 1.0), b.unary(UnaryOp::Neg, x));
            let sum = one_plus_exp(b, negated);
            b.div(one, sum)
        }
        UnaryOp::Softplus => {
            let limit = f32(b, 20.0);
            let is_large = b.compare(Predicate::Gt, x, limit);
            let e = exp(b, x);
            let l = log(b, UnaryOp::Log1p, e);
            b.select(is_large, x, l)
        }
        _ => unreachable!("only transcendentals come here"),
    }
}

fn f32(b: &mut Builder, x: f64) -> ValueId {
    b.float(x, DType::F32)
}

fn f64(b: &mut Builder, x: f64) -> ValueId {
    b.float(x, DType::F64)
}

/// `c[0] + x (c[1] + x (…))`, one fma per step.
fn horner(b: &mut Builder, x: ValueId, dtype: DType, c: &[f64]) -> ValueId {
    let mut sum = b.float(c[c.len() - 1], dtype);
    for &c in c.iter().rev().skip(1) {
        let c = b.float(c, dtype);
        sum = b.fma(sum, x, c);
    }
    sum
}

/// `scale^k / k!` for k up to n: the series of `e^(scale x)`.
fn exponential_series(scale: f64, n: usize) -> Vec<f64> {
    let mut term = 1.0;
    (0..=n)
        .map(|k| {
            if k > 0 {
                term *= scale / k as f64;
            }
            term
        })
        .collect()
}

// ---- exp ---------------------------------------------------------------------------------------------------

/// 1.5 * 2^23: adding it to a small f32 rounds to an integer, which then stands in the low bits.
const ROUNDER: f64 = 12_582_912.0;

fn exp2(b: &mut Builder, x: ValueId) -> ValueId {
    let x = clamp(b, x, -200.0, 200.0);
    let (n, bits) = round_to_int(b, x);
    let f = b.sub(x, n);
    let p = horner(
        b,
        f,
        DType::F32,
        &exponential_series(std::f64::consts::LN_2, 7),
    );
    scale(b, p, bits)
}

fn exp(b: &mut Builder, x: ValueId) -> ValueId {
    let x = clamp(b, x, -110.0, 100.0);
    let log2e = f32(b, std::f64::consts::LOG2_E);
    let turns = b.mul(x, log2e);
    let (n, bits) = round_to_int(b, turns);
    let p = exp_of_rest(b, x, n);
    scale(b, p, bits)
}

/// `exp(x - n ln 2)` for what is below 0.35, with ln 2 in two parts.
fn exp_of_rest(b: &mut Builder, x: ValueId, n: ValueId) -> ValueId {
    let high = std::f64::consts::LN_2 as f32;
    let low = std::f64::consts::LN_2 - high as f64;
    let (high, low) = (f32(b, -(high as f64)), f32(b, -low));
    let r = b.fma(n, high, x);
    let r = b.fma(n, low, r);
    horner(b, r, DType::F32, &exponential_series(1.0, 7))
}

/// `1 + exp(x)`, in fewer steps: an exponential below 2^-124 would not count beside 1, so the half of it is a normal float, made by one
/// product, and the sum overflows where the exponential does.
fn one_plus_exp(b: &mut Builder, x: ValueId) -> ValueId {
    let x = clamp(b, x, -86.0, 89.0);
    let log2e = f32(b, std::f64::consts::LOG2_E);
    let turns = b.mul(x, log2e);
    let rounder = f32(b, ROUNDER);
    let sum = b.add(turns, rounder);
    let n = b.sub(sum, rounder);
    let p = exp_of_rest(b, x, n);
    // The low bits of the sum are n; what stands above them leaves through the top of the shift.
    let (bits, shift) = (b.bitcast(sum, DType::I32), b.int(23, DType::I32));
    let power = b.binary(BinaryOp::Shl, bits, shift);
    let half = b.int(0.5f32.to_bits().into(), DType::I32);
    let power = b.add(power, half);
    let power = b.bitcast(power, DType::F32);
    let (half, two, one) = (b.mul(p, power), f32(b, 2.0), f32(b, 1.0));
    b.fma(half, two, one)
}

/// NaN stays.
fn clamp(b: &mut Builder, x: ValueId, lo: f64, hi: f64) -> ValueId {
    let (lo, hi) = (f32(b, lo), f32(b, hi));
    let x = b.max(x, lo);
    b.min(x, hi)
}

/// The nearest integer of `|x| < 2^22` as f32 and as i32.
fn round_to_int(b: &mut Builder, x: ValueId) -> (ValueId, ValueId) {
    let rounder = f32(b, ROUNDER);
    let sum = b.add(x, rounder);
    let n = b.sub(sum, rounder);
    let (sum, base) = (b.bitcast(sum, DType::I32), b.bitcast(rounder, DType::I32));
    (n, b.sub(sum, base))
}

/// `p * 2^n` for p near 1 and |n| <= 250, in two steps of which only the last may round.
fn scale(b: &mut Builder, p: ValueId, n: ValueId) -> ValueId {
    let one = b.int(1, DType::I32);
    let half = b.binary(BinaryOp::Shr, n, one);
    let rest = b.sub(n, half);
    let power = |b: &mut Builder, n| {
        let (bias, shift) = (b.int(127, DType::I32), b.int(23, DType::I32));
        let field = b.add(n, bias);
        let bits = b.binary(BinaryOp::Shl, field, shift);
        b.bitcast(bits, DType::F32)
    };
    let (first, second) = (power(b, half), power(b, rest));
    let p = b.mul(p, first);
    b.mul(p, second)
}

/// 1.5 * 2^52, as [`ROUNDER`] for f64.
const ROUNDER_F64: f64 = 6_755_399_441_055_744.0;

/// The nearest integer of `|x| < 2^51` as f64, and a u64 whose low bits are its low bits.
fn round_to_int_f64(b: &mut Builder, x: ValueId) -> (ValueId, ValueId) {
    let rounder = f64(b, ROUNDER_F64);
    let sum = b.add(x, rounder);
    (b.sub(sum, rounder), b.bitcast(sum, DType::U64))
}

/// `2^x` in f64 to about 1e-14, for |x| <= 1000.
fn exp2_f64(b: &mut Builder, x: ValueId) -> ValueId {
    let (n, bits) = round_to_int_f64(b, x);
    let f = b.sub(x, n);
    let p = horner(
        b,
        f,
        DType::F64,
        &exponential_series(std::f64::consts::LN_2, 11),
    );
    // The low bits of `bits` are n; what stands above them leaves through the top of the shift.
    let (bias, shift) = (b.int(1023, DType::U64), b.int(52, DType::U64));
    let field = b.add(bits, bias);
    let power = b.binary(BinaryOp::Shl, field, shift);
    let power = b.bitcast(power, DType::F64);
    b.mul(p, power)
}

// ---- log ---------------------------------------------------------------------------------------------------

/// The exponent e (as f64) and `log_e(m)` of a positive f64 `x = m 2^e`, m in [2/3, 4/3).
fn log_parts(b: &mut Builder, x: ValueId) -> (ValueId, ValueId) {
    // Bits of 2/3 move to those of 1, so that the field steps where m would reach 4/3.
    let offset = 1f64.to_bits() - (2.0f64 / 3.0).to_bits();
    let bits = b.bitcast(x, DType::U64);
    let (offset, shift) = (b.int(offset as i128, DType::U64), b.int(52, DType::U64));
    let moved = b.add(bits, offset);
    let field = b.binary(BinaryOp::Shr, moved, shift);
    let whole = b.binary(BinaryOp::Shl, field, shift);
    let one_bits = b.int(1f64.to_bits() as i128, DType::U64);
    let m = b.sub(bits, whole);
    let m = b.add(m, one_bits);
    let m = b.bitcast(m, DType::F64);
    // The field as a float: it stands in the low bits of 2^52.
    let anchor_bits = b.int((2f64.powi(52)).to_bits() as i128, DType::U64);
    let e = b.or(field, anchor_bits);
    let e = b.bitcast(e, DType::F64);
    let anchor = f64(b, 2f64.powi(52) + 1023.0);
    let e = b.sub(e, anchor);
    // log m = 2 atanh(s), s = (m - 1) / (m + 1), |s| <= 1/5.
    let one = f64(b, 1.0);
    let (numerator, denominator) = (b.sub(m, one), b.add(m, one));
    let s = b.div(numerator, denominator);
    let z = b.mul(s, s);
    let series: Vec<f64> = (0..9).map(|k| 2.0 / (2 * k + 1) as f64).collect();
    let p = horner(b, z, DType::F64, &series);
    (e, b.mul(s, p))
}

fn log(b: &mut Builder, op: UnaryOp, x: ValueId) -> ValueId {
    let wide = b.cast(x, F64);
    let (one, zero) = (f64(b, 1.0), f64(b, 0.0));
    let argument = if op == UnaryOp::Log1p {
        b.add(one, wide)
    } else {
        wide
    };
    let (e, log_m) = log_parts(b, argument);
    let mut result = match op {
        UnaryOp::Log2 => {
            let log2e = f64(b, std::f64::consts::LOG2_E);
            b.fma(log_m, log2e, e)
        }
        _ => {
            let ln2 = f64(b, std::f64::consts::LN_2);
            b.fma(e, ln2, log_m)
        }
    };
    if op == UnaryOp::Log1p {
        // What `1 + x` lost, to first order.
        let kept = b.sub(argument, one);
        let lost = b.sub(wide, kept);
        let correction = b.div(lost, argument);
        result = b.add(result, correction);
    }
    let infinity = f64(b, f64::INFINITY);
    let minus_infinity = f64(b, f64::NEG_INFINITY);
    let nan = f64(b, f64::NAN);
    let is_infinite = b.compare(Predicate::Eq, argument, infinity);
    let is_zero = b.compare(Predicate::Eq, argument, zero);
    let is_valid = b.compare(Predicate::Ge, argument, zero);
    let result = b.select(is_infinite, infinity, result);
    let result = b.select(is_zero, minus_infinity, result);
    // NaN compares false here too.
    let result = b.select(is_valid, result, nan);
    let result = b.cast(result, F32);
    if op != UnaryOp::Log1p {
        return result;
    }
    // The sign of zero, which `1 + x` forgets.
    let zero = f32(b, 0.0);
    let is_zero = b.compare(Predicate::Eq, x, zero);
    b.select(is_zero, x, result)
}

// ---- the rest ---------------------------------------------------------------------------------------------

fn sin_cos(b: &mut Builder, cos: bool, x: ValueId) -> ValueId {
    use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};
    let wide = b.cast(x, F64);
    let turns = f64(b, FRAC_2_PI);
    let turns = b.mul(wide, turns);
    let (n, bits) = round_to_int_f64(b, turns);
    // pi/2 = high + low; the product with high is exact inside the fma.
    let (high, low) = (f64(b, -FRAC_PI_2), f64(b, -6.123_233_995_736_766e-17));
    let r = b.fma(n, high, wide);
    let r = b.fma(n, low, r);
    let z = b.mul(r, r);
    let alternating = |first: usize| -> Vec<f64> {
        let mut factorial = 1.0;
        let mut terms = Vec::new();
        for k in 1..=14usize {
            factorial *= k as f64;
            if k >= first && (k - first).is_multiple_of(2) {
                let sign = if (k / 2) % 2 == 0 { 1.0 } else { -1.0 };
                terms.push(sign / factorial);
            }
        }
        terms
    };
    let (odd_terms, mut even_terms) = (alternating(1), alternating(2));
    even_terms.insert(0, 1.0);
    let odd = horner(b, z, DType::F64, &odd_terms);
    let odd = b.mul(r, odd);
    let even = horner(b, z, DType::F64, &even_terms);
    let one = b.int(1, DType::U64);
    let quadrant = if cos { b.add(bits, one) } else { bits };
    let parity = b.and(quadrant, one);
    let zero = b.int(0, DType::U64);
    let is_odd_quadrant = b.compare(Predicate::Ne, parity, zero);
    let value = b.select(is_odd_quadrant, even, odd);
    let two = b.int(2, DType::U64);
    let flip = b.and(quadrant, two);
    let top = b.int(62, DType::U64);
    let flip = b.binary(BinaryOp::Shl, flip, top);
    let value = b.bitcast(value, DType::U64);
    let value = b.binary(BinaryOp::Xor, value, flip);
    let value = b.bitcast(value, DType::F64);
    let absolute = b.unary(UnaryOp::Abs, wide);
    let limit = f64(b, 2f64.powi(30));
    let in_range = b.compare(Predicate::Le, absolute, limit);
    let nan = f64(b, f64::NAN);
    let value = b.select(in_range, value, nan);
    b.cast(value, F32)
}

fn tanh(b: &mut Builder, x: ValueId) -> ValueId {
    let wide = b.cast(x, F64);
    // Beyond 20 the result is 1 in f32.
    let (lo, hi) = (f64(b, -20.0), f64(b, 20.0));
    let clamped = b.max(wide, lo);
    let clamped = b.min(clamped, hi);
    let factor = f64(b, 2.0 * std::f64::consts::LOG2_E);
    let turns = b.mul(clamped, factor);
    let e = exp2_f64(b, turns);
    let one = f64(b, 1.0);
    let (numerator, denominator) = (b.sub(e, one), b.add(e, one));
    let quotient = b.div(numerator, denominator);
    // Near 0 the difference cancels: x - x^3/3 + 2 x^5/15.
    let z = b.mul(wide, wide);
    let p = horner(b, z, DType::F64, &[1.0, -1.0 / 3.0, 2.0 / 15.0]);
    let series = b.mul(wide, p);
    let absolute = b.unary(UnaryOp::Abs, wide);
    let limit = f64(b, 2f64.powi(-8));
    let is_small = b.compare(Predicate::Lt, absolute, limit);
    let result = b.select(is_small, series, quotient);
    b.cast(result, F32)
}

/// As IEEE `pow`: `x^0 = 1^y = 1` for every other operand, a negative x needs an integer y.
fn pow(b: &mut Builder, x: ValueId, y: ValueId) -> ValueId {
    let (wide_x, wide_y) = (b.cast(x, F64), b.cast(y, F64));
    let (zero, one) = (f64(b, 0.0), f64(b, 1.0));
    let (infinity, nan) = (f64(b, f64::INFINITY), f64(b, f64::NAN));
    let base = b.unary(UnaryOp::Abs, wide_x);
    let (e, log_m) = log_parts(b, base);
    let log2e = f64(b, std::f64::consts::LOG2_E);
    let log2 = b.fma(log_m, log2e, e);
    let product = b.mul(wide_y, log2);
    // f32 overflows and underflows long before.
    let (lo, hi) = (f64(b, -400.0), f64(b, 400.0));
    let product = b.max(product, lo);
    let product = b.min(product, hi);
    let power = exp2_f64(b, product);
    // |x| is 0 or infinite: the result is 0 or infinite by the sign of y.
    let is_zero = b.compare(Predicate::Eq, base, zero);
    let is_infinite = b.compare(Predicate::Eq, base, infinity);
    let y_negative = b.compare(Predicate::Lt, wide_y, zero);
    let of_zero = b.select(y_negative, infinity, zero);
    let of_infinity = b.select(y_negative, zero, infinity);
    let power = b.select(is_zero, of_zero, power);
    let power = b.select(is_infinite, of_infinity, power);
    // y is infinite: by whether |x| is above 1.
    let absolute_y = b.unary(UnaryOp::Abs, wide_y);
    let y_infinite = b.compare(Predicate::Eq, absolute_y, infinity);
    let above = b.compare(Predicate::Gt, base, one);
    let grows = b.binary(BinaryOp::Xor, above, y_negative);
    let of_infinite_y = b.select(grows, infinity, zero);
    let is_one = b.compare(Predicate::Eq, base, one);
    let of_infinite_y = b.select(is_one, one, of_infinite_y);
    let power = b.select(y_infinite, of_infinite_y, power);
    // A negative base: the sign of an odd y, NaN for what is no integer. Above 2^53 every y is even.
    let floor = b.unary(UnaryOp::Floor, wide_y);
    let is_integer = b.compare(Predicate::Eq, floor, wide_y);
    let half = f64(b, 0.5);
    let halved = b.mul(wide_y, half);
    let halved_floor = b.unary(UnaryOp::Floor, halved);
    let is_even = b.compare(Predicate::Eq, halved_floor, halved);
    let not_even = b.unary(UnaryOp::Not, is_even);
    let is_odd = b.and(is_integer, not_even);
    let negated = b.unary(UnaryOp::Neg, power);
    let x_bits = b.bitcast(x, DType::I32);
    let zero_bits = b.int(0, DType::I32);
    let x_negative = b.compare(Predicate::Lt, x_bits, zero_bits);
    let flips = b.and(x_negative, is_odd);
    let signed = b.select(flips, negated, power);
    let below_zero = b.compare(Predicate::Lt, wide_x, zero);
    let not_integer = b.unary(UnaryOp::Not, is_integer);
    let invalid = b.and(below_zero, not_integer);
    let finite_base = b.compare(Predicate::Lt, base, infinity);
    let invalid = b.and(invalid, finite_base);
    let result = b.select(invalid, nan, signed);
    let x_nan = b.unary(UnaryOp::IsNan, wide_x);
    let y_nan = b.unary(UnaryOp::IsNan, wide_y);
    let any_nan = b.or(x_nan, y_nan);
    let result = b.select(any_nan, nan, result);
    let y_zero = b.compare(Predicate::Eq, wide_y, zero);
    let x_one = b.compare(Predicate::Eq, wide_x, one);
    let always_one = b.or(y_zero, x_one);
    let result = b.select(always_one, one, result);
    b.cast(result, F32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::interp::{Arg, Args, Buffer, Options, run};
    use crate::tile::verify;
    use tessera_artifact::{HostExpr, ParamMode};

    /// `op` on every x (and y), through the expansion and the interpreter.
    fn apply(
        dtype: DType,
        op: impl Fn(&mut Builder, ValueId, ValueId) -> ValueId,
        x: &[f64],
        y: &[f64],
    ) -> Vec<f64> {
        let mut b = Builder::new("math", Default::default());
        b.dim("N", 1, 1 << 30, 1);
        let shape = || vec![HostExpr::dim("N")];
        let px = b.tensor("x", ParamMode::In, dtype, shape());
        let py = b.tensor("y", ParamMode::In, dtype, shape());
        let po = b.tensor("o", ParamMode::Out, dtype, shape());
        b.grid(vec![HostExpr::Int(x.len() as i64 / 4096)]);
        assert_eq!(x.len() % 4096, 0);
        let (at, block) = (b.block_index(0), b.index(4096));
        let start = b.mul(at, block);
        b.map(&[4096], |b, i| {
            let i = b.add(start, i[0]);
            let (x, y) = (b.load_global(px, &[i], None), b.load_global(py, &[i], None));
            let r = op(b, x, y);
            b.store_global(po, &[i], r, None);
        });
        let mut kernel = b.finish();
        expand_math(&mut kernel);
        verify::after("expand_math", &kernel).unwrap();
        let n = x.len() as u64;
        let tensor = |v: &[f64]| Arg::Tensor(Buffer::from_f64(dtype, &[n], v.iter().copied()));
        let mut args = Args(vec![
            tensor(x),
            tensor(y),
            Arg::Tensor(Buffer::zeros(dtype, &[n])),
        ]);
        run(&kernel, &mut args, &Options::default()).unwrap();
        match &args.0[2] {
            Arg::Tensor(b) => b.to_f64(),
            other => panic!("{other:?}"),
        }
    }

    /// A million f32 over all exponents and signs, the specials among them.
    fn sweep() -> Vec<f64> {
        let mut out: Vec<f64> = (0..1u64 << 20)
            .map(|i| f32::from_bits((i * 4093 + (i >> 7)) as u32) as f64)
            .collect();
        let specials = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            1e-45,
            -1e-45,
            88.7,
            88.8,
            -87.4,
            -103.9,
            128.0,
        ];
        out[..specials.len()].copy_from_slice(&specials.map(|x| x as f32 as f64));
        out
    }

    /// Dense around where the functions turn.
    fn dense(lo: f64, hi: f64) -> Vec<f64> {
        (0..1u64 << 18)
            .map(|i| (lo + (hi - lo) * i as f64 / (1u64 << 18) as f64) as f32 as f64)
            .collect()
    }

    fn ulps(got: f64, exact: f64) -> f64 {
        let rounded = exact as f32;
        if exact.is_nan() || rounded.is_infinite() || exact == 0.0 {
            let same = got == rounded as f64 || (got.is_nan() && exact.is_nan());
            // The last finite value is within an ulp of what rounds to infinity.
            let close = rounded.is_infinite()
                && got.abs() == f32::MAX as f64
                && exact.abs() < f32::MAX as f64 * (1.0 + 1e-6);
            return if same || close { 0.0 } else { f64::INFINITY };
        }
        if got.is_infinite() && exact.abs() > f32::MAX as f64 * (1.0 - 1e-6) {
            return 0.0;
        }
        let exponent = (exact.abs().log2().floor() as i32).max(-126);
        (got - exact).abs() / 2f64.powi(exponent - 23)
    }

    fn worst(op: UnaryOp, reference: impl Fn(f64) -> f64, x: Vec<f64>) -> f64 {
        let got = apply(DType::F32, |b, x, _| b.unary(op, x), &x, &x);
        let mut worst = (0.0, 0.0, 0.0);
        for (&x, &got) in x.iter().zip(&got) {
            let error = ulps(got, reference(x));
            if error > worst.0 {
                worst = (error, x, got);
            }
        }
        println!(
            "{op:?}: {} ulp at {:e} ({:e}, exactly {:e})",
            worst.0,
            worst.1,
            worst.2,
            reference(worst.1)
        );
        worst.0
    }

    /// The bounds of the module's table.
    #[test]
    fn errors_are_within_their_bounds() {
        use UnaryOp::*;
        let in_range = |f: fn(f64) -> f64| {
            move |x: f64| {
                if x.abs() <= 2f64.powi(30) {
                    f(x)
                } else {
                    f64::NAN
                }
            }
        };
        let cases: [(UnaryOp, Box<dyn Fn(f64) -> f64>, f64, (f64, f64)); 11] = [
            (Exp, Box::new(f64::exp), 1.0, (-104.0, 89.0)),
            (Exp2, Box::new(f64::exp2), 1.0, (-150.0, 128.0)),
            (Log, Box::new(f64::ln), 0.51, (0.0, 3.0)),
            (Log2, Box::new(f64::log2), 0.51, (0.0, 3.0)),
            (Log1p, Box::new(f64::ln_1p), 0.51, (-1.0, 1.0)),
            (Sin, Box::new(in_range(f64::sin)), 0.51, (-1e6, 1e6)),
            (Cos, Box::new(in_range(f64::cos)), 0.51, (-10.0, 10.0)),
            (Tanh, Box::new(f64::tanh), 0.51, (-10.0, 10.0)),
            (Rsqrt, Box::new(|x: f64| 1.0 / x.sqrt()), 1.5, (0.0, 10.0)),
            // Where the exponential overflows the quotient is 0.
            (
                Sigmoid,
                Box::new(|x: f64| {
                    if (-x).exp() as f32 == f32::INFINITY {
                        0.0
                    } else {
                        1.0 / (1.0 + (-x).exp())
                    }
                }),
                3.3,
                (-88.0, 20.0),
            ),
            (
                Softplus,
                Box::new(|x: f64| if x > 20.0 { x } else { x.exp().ln_1p() }),
                2.3,
                (-20.0, 21.0),
            ),
        ];
        for (op, reference, bound, (lo, hi)) in cases {
            for x in [sweep(), dense(lo, hi)] {
                let error = worst(op, &reference, x);
                assert!(error <= bound, "{op:?}: {error} ulp");
            }
        }
    }

    #[test]
    fn pow_is_accurate_and_knows_its_specials() {
        let mut x = dense(0.0, 4.0);
        let mut y: Vec<f64> = (0..x.len())
            .map(|i| ((i * 7919) % 4001) as f64 / 50.0 - 40.0)
            .map(|y| y as f32 as f64)
            .collect();
        let list = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            2.0,
            -2.0,
            0.5,
            -0.5,
            3.0,
            -3.0,
            1e30,
            -1e30,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        for (i, &a) in list.iter().enumerate() {
            for (j, &c) in list.iter().enumerate() {
                x[i * list.len() + j] = a as f32 as f64;
                y[i * list.len() + j] = c as f32 as f64;
            }
        }
        let got = apply(DType::F32, |b, x, y| b.binary(BinaryOp::Pow, x, y), &x, &y);
        for ((&x, &y), &got) in x.iter().zip(&y).zip(&got) {
            let exact = x.powf(y);
            assert!(
                ulps(got, exact) <= 0.51,
                "{x:e} ^ {y:e} = {exact:e}, got {got:e}"
            );
            if exact == 0.0 {
                assert_eq!(
                    got.is_sign_negative(),
                    exact.is_sign_negative(),
                    "{x:e} ^ {y:e}"
                );
            }
        }
    }

    #[test]
    fn zeros_keep_their_sign() {
        let mut x = vec![-0.0; 4096];
        x[1] = 0.0;
        for op in [UnaryOp::Sin, UnaryOp::Tanh, UnaryOp::Log1p] {
            let got = apply(DType::F32, |b, x, _| b.unary(op, x), &x, &x);
            assert!(
                got[0].is_sign_negative() && got[1].is_sign_positive(),
                "{op:?}"
            );
        }
    }

    #[test]
    fn bf16_rounds_once_more() {
        let x: Vec<f64> = (0..4096).map(|i| i as f64 / 256.0 - 8.0).collect();
        let got = apply(DType::BF16, |b, x, _| b.unary(UnaryOp::Exp, x), &x, &x);
        for (&x, &got) in x.iter().zip(&got) {
            let rounded = |x: f64| {
                tessera_artifact::numeric::bf16_to_f32(tessera_artifact::numeric::f32_to_bf16(
                    x as f32,
                )) as f64
            };
            let exact = rounded(x).exp();
            assert!((got - exact).abs() <= exact * 2f64.powi(-8), "{x}");
        }
    }
}
