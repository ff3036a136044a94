//! Casts from and to bf16, e4m3, e5m2, e2m1 and ue8m0 become bit operations, for back ends that have no such instructions.
//!
//! Narrowing works on the bits of an f32 (or f64, so that it rounds once): a normal result adds half a unit and the last kept bit and
//! shifts; a subnormal one adds a power of two whose unit is the format's least value; then the code saturates and takes the sign.
//! Widening shifts the code into place and multiplies by the power of two between the biases, which is exact.
//!
//! Needs: nothing. Keeps: bits, by `tessera_artifact::numeric` on every code. Casts from 64-bit integers to ue8m0 stay (their value
//! need not fit an f64).

use super::rewrite::{Replacement, replace_ops};
use crate::tile::build::Builder;
use crate::tile::ir::*;
use tessera_artifact::DType;

pub fn expand_casts(kernel: &mut Kernel) {
    replace_ops(kernel, &mut |b, kind| {
        let OpKind::Cast(a, to) = *kind else {
            return None;
        };
        let (from, to) = (b.kernel.ty(a), to);
        let small = |ty| {
            matches!(
                ty,
                Type::Scalar(DType::BF16 | DType::E4M3 | DType::E5M2 | DType::E2M1 | DType::UE8M0)
            )
        };
        if !small(from) && !small(to) || from == to {
            return None;
        }
        // A small source is an f32 exactly; every other source keeps all it needs for one rounding.
        let value = match from {
            Type::Scalar(d) if small(from) => widen(b, a, d),
            _ => a,
        };
        let Type::Scalar(to_dtype) = to else {
            return Some(Replacement::Value(b.cast(value, to)));
        };
        if !small(to) {
            return Some(Replacement::Value(b.cast(value, to)));
        }
        let source = wide_source(b, value, to_dtype)?;
        Some(Replacement::Value(narrow(b, source, to_dtype)))
    });
}

/// The value as f32 or f64 from which one rounding gives the right code.
fn wide_source(b: &mut Builder, value: ValueId, to: DType) -> Option<ValueId> {
    let f32_type = Type::Scalar(DType::F32);
    let f64_type = Type::Scalar(DType::F64);
    match b.kernel.ty(value) {
        Type::Scalar(DType::F32 | DType::F64) => Some(value),
        Type::Scalar(DType::Tf32) => Some(b.bitcast(value, DType::F32)),
        Type::Scalar(
            DType::F16 | DType::I8 | DType::U8 | DType::I16 | DType::U16 | DType::Bool,
        ) => Some(b.cast(value, f32_type)),
        Type::Scalar(DType::I32 | DType::U32) => Some(b.cast(value, f64_type)),
        Type::Index | Type::Scalar(DType::I64 | DType::U64) => match to {
            // Beyond 2^20 these saturate, so clamping first changes nothing and makes the conversion exact.
            DType::E4M3 | DType::E5M2 | DType::E2M1 => {
                let ty = b.kernel.ty(value);
                let limit = |b: &mut Builder, x: i64| match ty {
                    Type::Scalar(d) => b.int(x as i128, d),
                    Type::Index => b.index(x),
                };
                let most = limit(b, 1 << 20);
                let mut clamped = b.min(value, most);
                if ty != Type::Scalar(DType::U64) {
                    let least = limit(b, -(1 << 20));
                    clamped = b.max(clamped, least);
                }
                Some(b.cast(clamped, f64_type))
            }
            DType::BF16 => Some(f64_to_odd(b, value)),
            _ => None,
        },
        _ => None,
    }
}

/// A 64-bit integer as f64 whose last bit is set where anything was lost, so that rounding it again is as if it were the only time.
fn f64_to_odd(b: &mut Builder, value: ValueId) -> ValueId {
    // The low 12 bits fold into one sticky bit; the 53 that remain are exact in f64.
    let (dtype, value) = match b.kernel.ty(value) {
        Type::Scalar(DType::U64) => (DType::U64, value),
        _ => (DType::I64, b.cast(value, Type::Scalar(DType::I64))),
    };
    let low_mask = b.int(0xfff, dtype);
    let zero = b.int(0, dtype);
    let sticky_bit = b.int(0x800, dtype);
    let low = b.and(value, low_mask);
    let high = b.binary(BinaryOp::Xor, value, low);
    let is_exact = b.compare(Predicate::Eq, low, zero);
    let with_sticky = b.or(high, sticky_bit);
    let folded = b.select(is_exact, high, with_sticky);
    // Small values are exact as they are.
    let limit = b.int(1 << 52, dtype);
    let mut small = b.compare(Predicate::Lt, value, limit);
    if dtype == DType::I64 {
        let least = b.int(-(1 << 52), dtype);
        let above = b.compare(Predicate::Gt, value, least);
        small = b.and(small, above);
    }
    let kept = b.select(small, value, folded);
    b.cast(kept, Type::Scalar(DType::F64))
}

/// The f32 of a code.
fn widen(b: &mut Builder, code: ValueId, from: DType) -> ValueId {
    let u32_type = Type::Scalar(DType::U32);
    let raw_type = if from == DType::BF16 {
        DType::U16
    } else {
        DType::U8
    };
    let raw = b.bitcast(code, raw_type);
    let bits = b.cast(raw, u32_type);
    let int = |b: &mut Builder, x: u32| b.int(x as i128, DType::U32);
    let shl = |b: &mut Builder, x, by: u32| {
        let by = int(b, by);
        b.binary(BinaryOp::Shl, x, by)
    };
    let masked = |b: &mut Builder, x, mask: u32| {
        let mask = int(b, mask);
        b.and(x, mask)
    };
    match from {
        DType::BF16 => {
            let bits = shl(b, bits, 16);
            b.bitcast(bits, DType::F32)
        }
        DType::UE8M0 => {
            let shifted = shl(b, bits, 23);
            let (zero, least, last, nan) = (
                int(b, 0),
                int(b, 0x0040_0000),
                int(b, 255),
                int(b, 0x7fc0_0000),
            );
            let is_zero = b.compare(Predicate::Eq, bits, zero);
            let is_nan = b.compare(Predicate::Eq, bits, last);
            let finite = b.select(is_zero, least, shifted);
            let bits = b.select(is_nan, nan, finite);
            b.bitcast(bits, DType::F32)
        }
        _ => {
            let f = Format::of(from);
            let magnitude = masked(b, bits, f.sign - 1);
            let placed = shl(b, magnitude, 23 - f.mantissa_bits);
            let placed = b.bitcast(placed, DType::F32);
            let scale = b.float(2f64.powi(127 - f.bias), DType::F32);
            let value = b.mul(placed, scale);
            let value = match from {
                DType::E4M3 => {
                    let (nan_code, nan) = (int(b, 0x7f), b.float(f64::NAN, DType::F32));
                    let is_nan = b.compare(Predicate::Eq, magnitude, nan_code);
                    b.select(is_nan, nan, value)
                }
                DType::E5M2 => {
                    let (inf_code, nan, inf) = (
                        int(b, 0x7c),
                        b.float(f64::NAN, DType::F32),
                        b.float(f64::INFINITY, DType::F32),
                    );
                    let is_nan = b.compare(Predicate::Gt, magnitude, inf_code);
                    let is_inf = b.compare(Predicate::Eq, magnitude, inf_code);
                    let finite = b.select(is_inf, inf, value);
                    b.select(is_nan, nan, finite)
                }
                _ => value,
            };
            let sign = masked(b, bits, f.sign);
            let sign = shl(b, sign, 32 - from.bits());
            let value = b.bitcast(value, DType::U32);
            let value = b.or(value, sign);
            b.bitcast(value, DType::F32)
        }
    }
}

/// A float format of at most 8 bits.
struct Format {
    mantissa_bits: u32,
    bias: i32,
    max_code: u32,
    nan: u32,
    sign: u32,
}

impl Format {
    fn of(dtype: DType) -> Format {
        let (mantissa_bits, bias, max_code, nan) = match dtype {
            DType::E4M3 => (3, 7, 0x7e, 0x7f),
            DType::E5M2 => (2, 15, 0x7b, 0x7f),
            _ => (1, 1, 7, 7),
        };
        Format {
            mantissa_bits,
            bias,
            max_code,
            nan,
            sign: 1 << (dtype.bits() - 1),
        }
    }
}

/// The bits of an f32 or f64 and what its type looks like.
struct Source {
    value: ValueId,
    bits: ValueId,
    int: DType,
    float: DType,
    mantissa_bits: u32,
    bias: i32,
}

fn narrow(b: &mut Builder, value: ValueId, to: DType) -> ValueId {
    let is_f64 = b.kernel.ty(value) == Type::Scalar(DType::F64);
    let (int, float, mantissa_bits, bias) = if is_f64 {
        (DType::U64, DType::F64, 52, 1023)
    } else {
        (DType::U32, DType::F32, 23, 127)
    };
    let bits = b.bitcast(value, int);
    let s = Source {
        value,
        bits,
        int,
        float,
        mantissa_bits,
        bias,
    };
    let code = match to {
        DType::BF16 => to_bf16(b, &s),
        DType::UE8M0 => to_ue8m0(b, &s),
        _ => to_small(b, &s, to),
    };
    let raw = if to == DType::BF16 {
        DType::U16
    } else {
        DType::U8
    };
    let code = b.cast(code, Type::Scalar(raw));
    b.bitcast(code, to)
}

impl Source {
    fn constant(&self, b: &mut Builder, x: u64) -> ValueId {
        b.int(x as i128, self.int)
    }

    fn shift(&self, b: &mut Builder, op: BinaryOp, x: ValueId, by: u32) -> ValueId {
        let by = self.constant(b, by as u64);
        b.binary(op, x, by)
    }

    fn sign_bit(&self) -> u64 {
        1 << (self.int.bits() - 1)
    }

    /// `bits` rounded to nearest even after `drop` low bits go.
    fn rounded(&self, b: &mut Builder, bits: ValueId, drop: u32) -> ValueId {
        let one = self.constant(b, 1);
        let half = self.constant(b, (1 << (drop - 1)) - 1);
        let last = self.shift(b, BinaryOp::Shr, bits, drop);
        let last = b.and(last, one);
        let sum = b.add(bits, half);
        let sum = b.add(sum, last);
        self.shift(b, BinaryOp::Shr, sum, drop)
    }

    fn magnitude(&self, b: &mut Builder) -> ValueId {
        let mask = self.constant(b, self.sign_bit() - 1);
        b.and(self.bits, mask)
    }

    /// The sign bit as the bit of weight `sign`.
    fn sign(&self, b: &mut Builder, sign: u32) -> ValueId {
        let mask = self.constant(b, self.sign_bit());
        let bit = b.and(self.bits, mask);
        self.shift(
            b,
            BinaryOp::Shr,
            bit,
            self.int.bits() - 1 - sign.trailing_zeros(),
        )
    }
}

/// bf16 has the exponents of f32. From f64 the value goes to f32 by rounding to odd first.
fn to_bf16(b: &mut Builder, s: &Source) -> ValueId {
    if s.float == DType::F64 {
        let odd = f64_to_f32_odd(b, s);
        let bits = b.bitcast(odd, DType::U32);
        let s = Source {
            value: odd,
            bits,
            int: DType::U32,
            float: DType::F32,
            mantissa_bits: 23,
            bias: 127,
        };
        return to_bf16(b, &s);
    }
    let code = s.rounded(b, s.bits, 16);
    let nan = s.constant(b, 0x7fc0);
    let is_nan = b.unary(UnaryOp::IsNan, s.value);
    b.select(is_nan, nan, code)
}

/// To f32 towards zero, the last bit set where anything was lost.
fn f64_to_f32_odd(b: &mut Builder, s: &Source) -> ValueId {
    let near = b.cast(s.value, Type::Scalar(DType::F32));
    let back = b.cast(near, Type::Scalar(DType::F64));
    let (a, c) = (b.unary(UnaryOp::Abs, back), b.unary(UnaryOp::Abs, s.value));
    let bits = b.bitcast(near, DType::U32);
    let one = b.int(1, DType::U32);
    let down = b.sub(bits, one);
    let too_large = b.compare(Predicate::Gt, a, c);
    let towards_zero = b.select(too_large, down, bits);
    let sticky = b.or(towards_zero, one);
    // NaN is not equal to itself, but its last bit may be set.
    let exact = b.compare(Predicate::Eq, back, s.value);
    let bits = b.select(exact, bits, sticky);
    b.bitcast(bits, DType::F32)
}

/// Up to the next power of two.
fn to_ue8m0(b: &mut Builder, s: &Source) -> ValueId {
    let least = b.float(2f64.powi(-127), s.float);
    let up = s.constant(b, (1 << s.mantissa_bits) - 1);
    let sum = b.add(s.bits, up);
    let field = s.shift(b, BinaryOp::Shr, sum, s.mantissa_bits);
    let excess = s.constant(b, (s.bias - 127) as u64);
    let field = b.sub(field, excess);
    let most = s.constant(b, 254);
    let (zero, nan) = (s.constant(b, 0), s.constant(b, 255));
    // Above the largest the field may pass 254; below the least (and below zero) it is nonsense and not taken.
    let clamped = b.min(field, most);
    let is_small = b.compare(Predicate::Le, s.value, least);
    let code = b.select(is_small, zero, clamped);
    let is_nan = b.unary(UnaryOp::IsNan, s.value);
    b.select(is_nan, nan, code)
}

fn to_small(b: &mut Builder, s: &Source, to: DType) -> ValueId {
    let f = Format::of(to);
    let magnitude = s.magnitude(b);
    let drop = s.mantissa_bits - f.mantissa_bits;
    let normal = s.rounded(b, magnitude, drop);
    let rebias = s.constant(b, ((s.bias - f.bias) as u64) << f.mantissa_bits);
    let normal = b.sub(normal, rebias);
    // Below the least normal number: adding 2^(mantissa bits) units of the least value rounds to such units.
    let unit = 1 - f.bias - f.mantissa_bits as i32;
    let anchor = b.float(2f64.powi(unit + s.mantissa_bits as i32), s.float);
    let absolute = b.bitcast(magnitude, s.float);
    let sum = b.add(absolute, anchor);
    let (sum, anchor_bits) = (b.bitcast(sum, s.int), b.bitcast(anchor, s.int));
    let subnormal = b.sub(sum, anchor_bits);
    let least_normal = s.constant(b, ((1 - f.bias + s.bias) as u64) << s.mantissa_bits);
    let is_normal = b.compare(Predicate::Ge, magnitude, least_normal);
    let code = b.select(is_normal, normal, subnormal);
    let most = s.constant(b, f.max_code as u64);
    let code = b.min(code, most);
    let sign = s.sign(b, f.sign);
    let code = b.or(code, sign);
    let nan = s.constant(b, f.nan as u64);
    let is_nan = b.unary(UnaryOp::IsNan, s.value);
    b.select(is_nan, nan, code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::interp::{Arg, Args, Buffer, Options, run};
    use crate::tile::verify;
    use tessera_artifact::{HostExpr, ParamMode, numeric};

    /// Sources: every code of a small type, else bits over all exponents and beside the ties of the target.
    fn inputs(from: DType, to: DType) -> Vec<u64> {
        if from.bits() <= 16 {
            return (0..1u64 << from.bits()).collect();
        }
        let mut list: Vec<u64> = (0..1u64 << 16)
            .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> (64 - from.bits()))
            .collect();
        if to.is_float() && to.bits() <= 16 {
            for code in 0..(1u64 << to.bits()) - 1 {
                let (a, b) = (numeric::to_f64(code, to), numeric::to_f64(code + 1, to));
                let tie = a + (b - a) / 2.0;
                let bits = numeric::from_f64(tie, from);
                list.extend([bits.wrapping_sub(1), bits, bits.wrapping_add(1)]);
                if from == DType::F64 {
                    list.extend([bits.wrapping_add(1 << 20), bits.wrapping_sub(1 << 20)]);
                }
            }
        }
        for shift in 0..from.bits() {
            list.extend([
                1u64 << shift,
                (1u64 << shift).wrapping_sub(1),
                (1u64 << shift).wrapping_neg(),
            ]);
        }
        let mask = u64::MAX >> (64 - from.bits());
        list.iter().map(|b| b & mask).collect()
    }

    #[test]
    fn equal_to_the_definition_on_all_codes() {
        let small = [
            DType::BF16,
            DType::E4M3,
            DType::E5M2,
            DType::E2M1,
            DType::UE8M0,
        ];
        for from in DType::ALL {
            for to in DType::ALL {
                let stays = to == DType::UE8M0 && matches!(from, DType::I64 | DType::U64);
                if stays || from == to || !small.contains(&from) && !small.contains(&to) {
                    continue;
                }
                let codes = inputs(from, to);
                let n = codes.len() as u64;
                let mut b = Builder::new("cast", Default::default());
                let px = b.tensor("x", ParamMode::In, from, vec![HostExpr::Int(n as i64)]);
                let po = b.tensor("o", ParamMode::Out, to, vec![HostExpr::Int(n as i64)]);
                b.map(&[n], |b, i| {
                    let x = b.load_global(px, i, None);
                    let r = b.cast(x, Type::Scalar(to));
                    b.store_global(po, i, r, None);
                });
                let mut kernel = b.finish();
                expand_casts(&mut kernel);
                verify::after("expand_casts", &kernel).unwrap();
                let left = kernel
                    .live_ops()
                    .into_iter()
                    .any(|op| match kernel.op(op).kind {
                        OpKind::Cast(a, Type::Scalar(d)) => {
                            small.contains(&d)
                                || matches!(kernel.ty(a), Type::Scalar(d) if small.contains(&d))
                        }
                        _ => false,
                    });
                assert!(!left, "{from} to {to} is not expanded");
                let mut x = Buffer::zeros(from, &[n]);
                for (i, &code) in codes.iter().enumerate() {
                    match from {
                        DType::E2M1 => numeric::write_e2m1(&mut x.bytes, i, code as u8),
                        _ => {
                            let w = from.bits() as usize / 8;
                            x.bytes[i * w..][..w].copy_from_slice(&code.to_le_bytes()[..w]);
                        }
                    }
                }
                let mut args = Args(vec![Arg::Tensor(x), Arg::Tensor(Buffer::zeros(to, &[n]))]);
                run(&kernel, &mut args, &Options::default()).unwrap();
                let Arg::Tensor(o) = &args.0[1] else { panic!() };
                let got = o.canonical_bits();
                for (i, &code) in codes.iter().enumerate() {
                    let mut expected = numeric::convert(code, from, to);
                    if to.is_float() && numeric::to_f64(expected, to).is_nan() {
                        expected = u64::MAX;
                    }
                    assert_eq!(got[i], expected, "{from} {code:#x} to {to}");
                }
            }
        }
    }
}
