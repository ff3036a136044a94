//! Exact conversions between element types: what `Cast` in the tile IR means, for the interpreter, constant folding, test data
//! and the loaders. The compiler's generated code does the same by bit operations and is tested against this.
//!
//! An element is given by its bits in the low end of a `u64` (e2m1: one code, not packed; bool: 0 or 1). Rules:
//! - to a float: one rounding to nearest, ties to even; e4m3, e5m2 and e2m1 saturate, infinities too; f16, bf16, f32 overflow to
//!   infinity; NaN becomes the positive quiet NaN (e2m1 has none: +6);
//! - to `ue8m0`: up to the next power of two; zero and negative numbers give the smallest, what is above the largest the largest;
//! - tf32 is f32 everywhere but in `dot`, which rounds its operands by [`round_tf32`];
//! - float to integer: truncated, then saturated, NaN gives 0; integer to integer wraps; to bool: is it not 0 (NaN is not).

use crate::DType;

/// A float format of at most 16 bits.
struct Format {
    mantissa_bits: u32,
    bias: i32,
    /// Code of the largest finite value.
    max_code: u32,
    /// What overflow gives.
    overflow: u32,
    nan: u32,
    sign: u32,
}

const BF16: Format = Format {
    mantissa_bits: 7,
    bias: 127,
    max_code: 0x7f7f,
    overflow: 0x7f80,
    nan: 0x7fc0,
    sign: 0x8000,
};
const F16: Format = Format {
    mantissa_bits: 10,
    bias: 15,
    max_code: 0x7bff,
    overflow: 0x7c00,
    nan: 0x7e00,
    sign: 0x8000,
};
const E4M3: Format = Format {
    mantissa_bits: 3,
    bias: 7,
    max_code: 0x7e,
    overflow: 0x7e,
    nan: 0x7f,
    sign: 0x80,
};
const E5M2: Format = Format {
    mantissa_bits: 2,
    bias: 15,
    max_code: 0x7b,
    overflow: 0x7b,
    nan: 0x7f,
    sign: 0x80,
};
const E2M1: Format = Format {
    mantissa_bits: 1,
    bias: 1,
    max_code: 0x7,
    overflow: 0x7,
    nan: 0x7,
    sign: 0x8,
};

impl Format {
    fn encode(&self, x: f64) -> u32 {
        if x.is_nan() {
            return self.nan;
        }
        let sign = if x.is_sign_negative() { self.sign } else { 0 };
        let bits = x.to_bits() & (u64::MAX >> 1);
        let exponent = (bits >> 52) as i32 - 1023;
        // A subnormal f64 is far below half the least value of every format here.
        if exponent == -1023 {
            return sign;
        }
        if exponent == 1024 {
            return sign | self.overflow;
        }
        let lowest = 1 - self.bias;
        let quantum = exponent.max(lowest) - self.mantissa_bits as i32;
        let mantissa = (bits & ((1 << 52) - 1)) | (1 << 52);
        let shift = quantum - (exponent - 52);
        let units = if shift >= 64 {
            0
        } else {
            round_shift(mantissa, shift as u32)
        };
        // The exponent field starts at 1 for normal numbers; a carry out of the mantissa lands in it.
        let base = if exponent >= lowest {
            ((exponent + self.bias) as i64 - 1) << self.mantissa_bits
        } else {
            0
        };
        let code = base + units as i64;
        sign | if code > self.max_code as i64 {
            self.overflow
        } else {
            code as u32
        }
    }

    /// Finite codes only; callers take infinities and NaN before.
    fn decode(&self, code: u32) -> f64 {
        let negative = code & self.sign != 0;
        let code = code & (self.sign - 1);
        let field = (code >> self.mantissa_bits) as i32;
        let mantissa = (code & ((1 << self.mantissa_bits) - 1)) as f64;
        let one = (1 << self.mantissa_bits) as f64;
        let magnitude = if field == 0 {
            mantissa / one * power_of_two(1 - self.bias)
        } else {
            (one + mantissa) / one * power_of_two(field - self.bias)
        };
        if negative { -magnitude } else { magnitude }
    }
}

/// `round(x / 2^shift)`, ties to even; `0 < shift < 64`.
fn round_shift(x: u64, shift: u32) -> u64 {
    let half = 1u64 << (shift - 1);
    let rest = x & ((half << 1).wrapping_sub(1));
    let whole = x.checked_shr(shift).unwrap_or(0);
    whole + (rest > half || (rest == half && whole & 1 == 1)) as u64
}

/// 2^e for the exponents of a normal f64.
fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

pub fn bf16_to_f32(code: u16) -> f32 {
    f32::from_bits((code as u32) << 16)
}

pub fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return BF16.nan as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

pub fn f16_to_f32(code: u16) -> f32 {
    let (field, mantissa) = ((code >> 10) & 0x1f, (code & 0x3ff) as u32);
    if field == 0x1f {
        let bits = ((code as u32 & 0x8000) << 16) | 0x7f80_0000 | (mantissa << 13);
        return f32::from_bits(bits);
    }
    F16.decode(code as u32) as f32
}

pub fn f32_to_f16(x: f32) -> u16 {
    F16.encode(x as f64) as u16
}

pub fn e4m3_to_f32(code: u8) -> f32 {
    if code & 0x7f == 0x7f {
        f32::NAN
    } else {
        E4M3.decode(code as u32) as f32
    }
}

pub fn f32_to_e4m3(x: f32) -> u8 {
    E4M3.encode(x as f64) as u8
}

pub fn e5m2_to_f32(code: u8) -> f32 {
    f16_to_f32((code as u16) << 8)
}

pub fn f32_to_e5m2(x: f32) -> u8 {
    E5M2.encode(x as f64) as u8
}

/// `code` is 0 to 15.
pub fn e2m1_to_f32(code: u8) -> f32 {
    E2M1.decode(code as u32) as f32
}

pub fn f32_to_e2m1(x: f32) -> u8 {
    if x.is_nan() {
        E2M1.nan as u8
    } else {
        E2M1.encode(x as f64) as u8
    }
}

pub fn ue8m0_to_f32(code: u8) -> f32 {
    match code {
        255 => f32::NAN,
        0 => f32::from_bits(0x0040_0000),
        _ => f32::from_bits((code as u32) << 23),
    }
}

pub fn f32_to_ue8m0(x: f32) -> u8 {
    f64_to_ue8m0(x as f64)
}

fn f64_to_ue8m0(x: f64) -> u8 {
    if x.is_nan() {
        return 255;
    }
    if x <= power_of_two(-127) {
        return 0;
    }
    let bits = x.to_bits();
    let exponent = (bits >> 52) as i32 - 1023 + (bits & ((1 << 52) - 1) != 0) as i32;
    (exponent + 127).min(254) as u8
}

/// To 10 mantissa bits, ties to even; may round up to infinity.
pub fn round_tf32(x: f32) -> f32 {
    if x.is_nan() {
        return f32::NAN;
    }
    let bits = x.to_bits();
    if bits & 0x7f80_0000 == 0x7f80_0000 {
        return x;
    }
    f32::from_bits((bits + 0xfff + ((bits >> 13) & 1)) & !0x1fff)
}

/// The value of a float element.
pub fn to_f64(bits: u64, dtype: DType) -> f64 {
    match dtype {
        DType::F64 => f64::from_bits(bits),
        DType::F32 | DType::Tf32 => f32::from_bits(bits as u32) as f64,
        DType::BF16 => bf16_to_f32(bits as u16) as f64,
        DType::F16 => f16_to_f32(bits as u16) as f64,
        DType::E4M3 => e4m3_to_f32(bits as u8) as f64,
        DType::E5M2 => e5m2_to_f32(bits as u8) as f64,
        DType::E2M1 => e2m1_to_f32(bits as u8 & 0xf) as f64,
        DType::UE8M0 => ue8m0_to_f32(bits as u8) as f64,
        _ => to_i128(bits, dtype) as f64,
    }
}

/// The element of `dtype` for `x`, rounded once.
pub fn from_f64(x: f64, dtype: DType) -> u64 {
    match dtype {
        DType::F64 if x.is_nan() => f64::NAN.to_bits(),
        DType::F32 | DType::Tf32 if x.is_nan() => f32::NAN.to_bits() as u64,
        DType::F64 => x.to_bits(),
        DType::F32 | DType::Tf32 => (x as f32).to_bits() as u64,
        DType::BF16 => BF16.encode(x) as u64,
        DType::F16 => F16.encode(x) as u64,
        DType::E4M3 => E4M3.encode(x) as u64,
        DType::E5M2 => E5M2.encode(x) as u64,
        DType::E2M1 => E2M1.encode(x) as u64,
        DType::UE8M0 => f64_to_ue8m0(x) as u64,
        DType::I8 => x as i8 as u8 as u64,
        DType::I16 => x as i16 as u16 as u64,
        DType::I32 => x as i32 as u32 as u64,
        DType::I64 => x as i64 as u64,
        DType::U8 => x as u8 as u64,
        DType::U16 => x as u16 as u64,
        DType::U32 => x as u32 as u64,
        DType::U64 => x as u64,
        DType::Bool => (x != 0.0) as u64,
    }
}

/// The value of an integer or bool element.
pub fn to_i128(bits: u64, dtype: DType) -> i128 {
    match dtype {
        DType::I8 => bits as i8 as i128,
        DType::I16 => bits as i16 as i128,
        DType::I32 => bits as i32 as i128,
        DType::I64 => bits as i64 as i128,
        DType::U8 => bits as u8 as i128,
        DType::U16 => bits as u16 as i128,
        DType::U32 => bits as u32 as i128,
        DType::Bool => (bits & 1) as i128,
        DType::U64 => bits as i128,
        // Floats truncate as in a conversion to i64.
        _ => to_f64(bits, dtype) as i64 as i128,
    }
}

/// The element of `dtype` for `i`: wrapped, or rounded once.
pub fn from_i128(i: i128, dtype: DType) -> u64 {
    match dtype {
        DType::Bool => (i != 0) as u64,
        DType::F64 => (i as f64).to_bits(),
        DType::F32 | DType::Tf32 => (i as f32).to_bits() as u64,
        d if d.is_float() => from_f64(i128_to_f64_odd(i), d),
        d => i as u64 & (u64::MAX >> (64 - d.bits())),
    }
}

/// To f64 by truncation with a sticky last bit, so that one more rounding (to at most 51 bits) is as if it were the only one.
fn i128_to_f64_odd(i: i128) -> f64 {
    let magnitude = i.unsigned_abs();
    let excess = (128 - magnitude.leading_zeros()).saturating_sub(53);
    let kept = magnitude >> excess << excess;
    let x = kept as f64;
    let x = if kept != magnitude {
        f64::from_bits(x.to_bits() | 1)
    } else {
        x
    };
    if i < 0 { -x } else { x }
}

/// One conversion between any two element types. Equal types keep their bits.
pub fn convert(bits: u64, from: DType, to: DType) -> u64 {
    if from == to {
        bits
    } else if from.is_float() {
        from_f64(to_f64(bits, from), to)
    } else {
        from_i128(to_i128(bits, from), to)
    }
}

/// `max(+0, -0) = +0`; NaN propagates.
pub fn max_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        f32::NAN
    } else if a == b {
        f32::from_bits(a.to_bits() & b.to_bits())
    } else if a > b {
        a
    } else {
        b
    }
}

/// `min(+0, -0) = -0`; NaN propagates.
pub fn min_f32(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() {
        f32::NAN
    } else if a == b {
        f32::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

/// As [`max_f32`].
pub fn max_f64(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a == b {
        f64::from_bits(a.to_bits() & b.to_bits())
    } else if a > b {
        a
    } else {
        b
    }
}

/// As [`min_f32`].
pub fn min_f64(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else if a == b {
        f64::from_bits(a.to_bits() | b.to_bits())
    } else if a < b {
        a
    } else {
        b
    }
}

/// Code `i` of packed e2m1: element 2i is the low nibble.
pub fn read_e2m1(packed: &[u8], i: usize) -> u8 {
    packed[i / 2] >> (4 * (i % 2)) & 0xf
}

pub fn write_e2m1(packed: &mut [u8], i: usize, code: u8) {
    let shift = 4 * (i % 2);
    let byte = &mut packed[i / 2];
    *byte = *byte & !(0xf << shift) | (code & 0xf) << shift;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every code of a small format decodes and encodes to itself.
    #[test]
    fn codes_round_trip() {
        for (dtype, count) in [
            (DType::BF16, 1 << 16),
            (DType::F16, 1 << 16),
            (DType::E4M3, 256),
            (DType::E5M2, 256),
            (DType::E2M1, 16),
            (DType::UE8M0, 256),
        ] {
            for code in 0..count {
                let x = to_f64(code, dtype);
                // Infinities saturate in e5m2, NaN has one code.
                if x.is_nan() || x.is_infinite() {
                    continue;
                }
                assert_eq!(from_f64(x, dtype), code, "{dtype} code {code:#x} = {x}");
            }
        }
    }

    /// Rounding against the definition: the nearest of the two neighbours, the even code on a tie.
    #[test]
    fn rounding_is_to_nearest_even() {
        for (dtype, max_code) in [
            (DType::BF16, 0x7f7f),
            (DType::F16, 0x7bff),
            (DType::E4M3, 0x7e),
            (DType::E5M2, 0x7b),
            (DType::E2M1, 7),
        ] {
            for code in 0..max_code {
                let (low, high) = (to_f64(code, dtype), to_f64(code + 1, dtype));
                let middle = low + (high - low) / 2.0;
                let even = code + (code & 1);
                assert_eq!(from_f64(middle, dtype), even, "{dtype} tie after {code:#x}");
                assert_eq!(from_f64(middle.next_down(), dtype), code);
                assert_eq!(from_f64(middle.next_up(), dtype), code + 1);
                let sign = 1 << (dtype.bits() - 1);
                assert_eq!(from_f64(-middle, dtype), even | sign);
                // f32 sees the same ties (its spacing is finer than every format here).
                if middle as f32 as f64 == middle && middle as f32 != 0.0 {
                    let x = middle as f32;
                    assert_eq!(from_f64(x.next_up() as f64, dtype), code + 1);
                    assert_eq!(convert(x.to_bits() as u64, DType::F32, dtype), even);
                }
            }
        }
    }

    #[test]
    fn bf16_shortcut_agrees() {
        for i in 0..(1u64 << 20) {
            let bits = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32;
            let x = f32::from_bits(bits);
            assert_eq!(f32_to_bf16(x) as u32, BF16.encode(x as f64), "{x:e}");
        }
    }

    #[test]
    fn specials() {
        let inf = f64::INFINITY;
        assert_eq!(from_f64(inf, DType::E4M3), 0x7e);
        assert_eq!(from_f64(-1e30, DType::E4M3), 0xfe);
        assert_eq!(from_f64(f64::NAN, DType::E4M3), 0x7f);
        assert_eq!(from_f64(inf, DType::E5M2), 0x7b);
        assert_eq!(from_f64(f64::NAN, DType::E2M1), 7);
        assert_eq!(from_f64(-inf, DType::E2M1), 15);
        assert_eq!(from_f64(-0.0, DType::E2M1), 8);
        assert_eq!(from_f64(65520.0, DType::F16), 0x7c00);
        assert_eq!(from_f64(65519.9, DType::F16), 0x7bff);
        assert_eq!(from_f64(0.0, DType::UE8M0), 0);
        assert_eq!(from_f64(-3.0, DType::UE8M0), 0);
        assert_eq!(from_f64(1.0, DType::UE8M0), 127);
        assert_eq!(from_f64(1.0000001, DType::UE8M0), 128);
        assert_eq!(from_f64(inf, DType::UE8M0), 254);
        assert_eq!(from_f64(f64::NAN, DType::UE8M0), 255);
        assert_eq!(from_f64(-1.9, DType::I32) as u32 as i32, -1);
        assert_eq!(from_f64(1e20, DType::I32), i32::MAX as u64);
        assert_eq!(from_f64(f64::NAN, DType::U8), 0);
        assert_eq!(from_f64(-5.0, DType::U8), 0);
        assert_eq!(from_i128(-1, DType::U16), 0xffff);
        assert_eq!(from_i128(300, DType::I8), 44);
        assert_eq!(f32_to_f16(f32::from_bits(1)), 0);
        assert_eq!(max_f32(0.0, -0.0).to_bits(), 0);
        assert_eq!(min_f32(0.0, -0.0).to_bits(), 1 << 31);
        assert!(max_f32(f32::NAN, 1.0).is_nan());
    }

    /// Integers and f64 that lie a hair beside a tie of the narrow type are rounded once.
    #[test]
    fn no_double_rounding() {
        let tie = (1i128 << 60) + (1 << 52);
        assert_eq!(
            from_i128(tie, DType::BF16),
            from_f64(2f64.powi(60), DType::BF16)
        );
        assert_eq!(
            from_i128(tie + 1, DType::BF16),
            from_f64(2f64.powi(60), DType::BF16) + 1
        );
        assert_eq!(
            from_i128(-(tie + 1), DType::BF16),
            0x8000 | (from_f64(2f64.powi(60), DType::BF16) + 1)
        );
        assert_eq!(round_tf32(1.0 + 2f32.powi(-11)), 1.0);
        assert_eq!(round_tf32(1.0 + 3.0 * 2f32.powi(-11)), 1.0 + 2f32.powi(-9));
        assert_eq!(
            round_tf32((1.0 + 2f32.powi(-11)).next_up()),
            1.0 + 2f32.powi(-10)
        );
        assert_eq!(
            from_f64(1.0 + 2f64.powi(-11) + 2f64.powi(-45), DType::F16),
            0x3c01
        );
    }

    #[test]
    fn nibbles() {
        let mut packed = [0u8; 2];
        for i in 0..4 {
            write_e2m1(&mut packed, i, i as u8 + 9);
        }
        assert_eq!(packed, [0xa9, 0xcb]);
        assert_eq!([0, 1, 2, 3].map(|i| read_e2m1(&packed, i)), [9, 10, 11, 12]);
    }
}
