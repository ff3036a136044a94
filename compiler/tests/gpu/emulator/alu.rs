//! One instruction's arithmetic on the bits of its operands. NaNs that an operation makes have the one pattern that GPUs give.

use super::ptx::{Compare, Kind, Round, Ty};
use half::f16;
use std::cmp::Ordering;
use tessera_artifact::numeric;

pub fn mask(bits: u32) -> u64 {
    if bits >= 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    }
}

fn signed(x: u64, bits: u32) -> i64 {
    ((x << (64 - bits)) as i64) >> (64 - bits)
}

fn float(x: u64, ty: Ty) -> f64 {
    match ty.bits() {
        8 | 16 => f64::from(narrow(x, ty)),
        32 => f64::from(f32::from_bits(x as u32)),
        _ => f64::from_bits(x),
    }
}

/// The value of a float of 8 or 16 bits.
pub fn narrow(x: u64, ty: Ty) -> f32 {
    match ty {
        Ty::Bf16 => numeric::bf16_to_f32(x as u16),
        Ty::E4M3 => numeric::e4m3_to_f32(x as u8),
        Ty::E5M2 => numeric::e5m2_to_f32(x as u8),
        _ => numeric::f16_to_f32(x as u16),
    }
}

/// The nearest float of 8 (at most the largest finite one) or 16 bits.
fn round_to(x: f32, ty: Ty) -> u64 {
    match ty {
        Ty::Bf16 if x.is_nan() => 0x7fff,
        Ty::Bf16 => u64::from(numeric::f32_to_bf16(x)),
        Ty::E4M3 => u64::from(numeric::f32_to_e4m3(x)),
        Ty::E5M2 if x.is_infinite() => {
            if x > 0.0 {
                0x7b
            } else {
                0xfb
            }
        }
        Ty::E5M2 => u64::from(numeric::f32_to_e5m2(x)),
        _ if x.is_nan() => 0x7fff,
        _ => u64::from(f16::from_f32(x).to_bits()),
    }
}

/// The arithmetic of one type: `f32` results are rounded once, by `f32` operations.
#[inline(always)]
pub fn compute(kind: Kind, ty: Ty, v: &[u64]) -> Result<u64, String> {
    match ty {
        Ty::F(32) => match kind {
            // As exact as can be, with subnormals as the `.ftz` forms have them.
            Kind::Exp2 | Kind::Log2 | Kind::ApproxReciprocal | Kind::ApproxReciprocalSqrt => {
                let x = f64::from(flushed(f32::from_bits(v[0] as u32)));
                let y = match kind {
                    Kind::Exp2 => x.exp2(),
                    Kind::Log2 => x.log2(),
                    Kind::ApproxReciprocal => 1.0 / x,
                    _ => 1.0 / x.sqrt(),
                };
                Ok(canonical32(flushed(y as f32)))
            }
            Kind::Pack(to) => {
                let [high, low] = [v[0], v[1]].map(|x| round_to(f32::from_bits(x as u32), to));
                Ok(high << to.bits() | low)
            }
            kind => Ok(canonical32(f32_op(kind, v)?)),
        },
        Ty::F(64) => Ok(canonical64(f64_op(kind, v)?)),
        Ty::F(_) | Ty::Bf16 | Ty::E4M3 | Ty::E5M2 => match kind {
            Kind::Unpack(from) => {
                let part = |x: u64| round_to(narrow(x & mask(from.bits()), from), ty);
                Ok(part(v[0] >> from.bits()) << ty.bits() | part(v[0]))
            }
            Kind::MulPairs => {
                let product = |x: u64, y: u64| {
                    let [x, y] = [x, y].map(|v| f64::from(narrow(v & mask(ty.bits()), ty)));
                    round_to(toward_odd(x * y), ty)
                };
                let high = product(v[0] >> ty.bits(), v[1] >> ty.bits());
                Ok(high << ty.bits() | product(v[0], v[1]))
            }
            other => Err(format!("{other:?} of {ty:?}")),
        },
        _ => int_op(kind, ty, v),
    }
}

/// An f32 that rounds to a shorter float as this does: one that is not exact is odd.
fn toward_odd(x: f64) -> f32 {
    let near = x as f32;
    if x.is_nan() || f64::from(near) == x {
        return near;
    }
    let below = match f64::from(near).abs() > x.abs() {
        true => near.to_bits() - 1,
        false => near.to_bits(),
    };
    f32::from_bits(below | 1)
}

fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { x * 0.0 } else { x }
}

fn canonical32(x: f32) -> u64 {
    u64::from(if x.is_nan() { 0x7fff_ffff } else { x.to_bits() })
}

fn canonical64(x: f64) -> u64 {
    if x.is_nan() {
        0xfff8_0000_0000_0000
    } else {
        x.to_bits()
    }
}

macro_rules! float_op {
    ($name:ident, $ty:ty, $bits:ty) => {
        #[inline(always)]
        fn $name(kind: Kind, v: &[u64]) -> Result<$ty, String> {
            let x = |i: usize| <$ty>::from_bits(v[i] as $bits);
            // +0 is the greater zero; without `.NaN`, a NaN loses.
            let least = |a: $ty, b: $ty| match a.partial_cmp(&b) {
                _ if a.is_nan() => b,
                _ if b.is_nan() => a,
                Some(Ordering::Equal) if a.is_sign_negative() => a,
                Some(Ordering::Equal | Ordering::Greater) => b,
                _ => a,
            };
            let any_nan = || x(0).is_nan() || x(1).is_nan();
            Ok(match kind {
                Kind::Add => x(0) + x(1),
                Kind::Sub => x(0) - x(1),
                Kind::MulLow => x(0) * x(1),
                Kind::Div => x(0) / x(1),
                Kind::Fma => x(0).mul_add(x(1), x(2)),
                Kind::Sqrt => x(0).sqrt(),
                Kind::Reciprocal => 1.0 / x(0),
                Kind::Neg => -x(0),
                Kind::Abs => x(0).abs(),
                Kind::CopySign => x(1).copysign(x(0)),
                Kind::MinNan | Kind::MaxNan if any_nan() => <$ty>::NAN,
                Kind::Min | Kind::MinNan => least(x(0), x(1)),
                Kind::Max | Kind::MaxNan => -least(-x(0), -x(1)),
                other => return Err(format!("{other:?} of a float")),
            })
        }
    };
}
float_op!(f32_op, f32, u32);
float_op!(f64_op, f64, u64);

#[inline(always)]
fn int_op(kind: Kind, ty: Ty, v: &[u64]) -> Result<u64, String> {
    let bits = ty.bits();
    let is_signed = matches!(ty, Ty::S(_));
    let u = |i: usize| v[i] & mask(bits);
    let s = |i: usize| signed(v[i], bits);
    let wide = |i: usize| {
        if is_signed {
            i128::from(s(i))
        } else {
            i128::from(u(i))
        }
    };
    let divide = || (wide(1) != 0).then_some(()).ok_or("a division by 0");
    Ok(match kind {
        Kind::Add => u(0).wrapping_add(u(1)),
        Kind::Sub => u(0).wrapping_sub(u(1)),
        Kind::MulLow => u(0).wrapping_mul(u(1)),
        Kind::MulHigh => ((wide(0) * wide(1)) >> bits) as u64,
        Kind::MulWide => return Ok((wide(0) * wide(1)) as u64 & mask(2 * bits)),
        Kind::MadLow => u(0).wrapping_mul(u(1)).wrapping_add(u(2)),
        Kind::MadWide => {
            return Ok(((wide(0) * wide(1)) as u64).wrapping_add(v[2]) & mask(2 * bits));
        }
        Kind::Div => {
            divide()?;
            (wide(0) / wide(1)) as u64
        }
        Kind::Rem => {
            divide()?;
            (wide(0) % wide(1)) as u64
        }
        Kind::Min => wide(0).min(wide(1)) as u64,
        Kind::Max => wide(0).max(wide(1)) as u64,
        Kind::And => u(0) & u(1),
        Kind::Or => u(0) | u(1),
        Kind::Xor => u(0) ^ u(1),
        Kind::Not => !u(0),
        Kind::Neg => u(0).wrapping_neg(),
        Kind::Abs => s(0).unsigned_abs(),
        Kind::Shl => match v[1] as u32 {
            by if by >= bits => 0,
            by => u(0) << by,
        },
        Kind::Shr => {
            let by = (v[1] as u32).min(if is_signed { bits - 1 } else { bits });
            if is_signed {
                (s(0) >> by) as u64
            } else if by >= 64 {
                0
            } else {
                u(0) >> by
            }
        }
        Kind::PopCount => u64::from(u(0).count_ones()),
        Kind::LeadingZeros => u64::from(u(0).leading_zeros() - (64 - bits)),
        Kind::FunnelLeft => ((u(1) << 32 | u(0)) << (v[2] & 31)) >> 32,
        Kind::FunnelRight => (u(1) << 32 | u(0)) >> (v[2] & 31),
        Kind::Logic(table) => (0..bits).fold(0, |all, i| {
            let bit = |k: usize| v[k] >> i & 1;
            all | (u64::from(table) >> (bit(0) << 2 | bit(1) << 1 | bit(2)) & 1) << i
        }),
        Kind::Permute => (0..4).fold(0, |all, i| {
            let select = v[2] >> (4 * i) & 0xf;
            let byte = (u(1) << 32 | u(0)) >> (8 * (select & 7)) & 0xff;
            // The sign of the byte instead.
            let byte = match select & 8 {
                0 => byte,
                _ => 0xff * (byte >> 7),
            };
            all | byte << (8 * i)
        }),
        Kind::BitField => {
            let (from, len) = (v[1] as u32 & 0xff, v[2] as u32 & 0xff);
            let field = u(0).checked_shr(from).unwrap_or(0) & mask(len);
            match is_signed && len > 0 {
                true => signed(field, len) as u64,
                false => field,
            }
        }
        Kind::BitInsert(from, len) => {
            let field = mask(len).checked_shl(from).unwrap_or(0);
            u(1) & !field | u(0).checked_shl(from).unwrap_or(0) & field
        }
        other => return Err(format!("{other:?} of an integer")),
    } & mask(bits))
}

#[inline(always)]
pub fn compare(op: Compare, ty: Ty, a: u64, b: u64) -> bool {
    use Compare::*;
    let bits = ty.bits();
    let order = match ty {
        Ty::F(_) => float(a, ty).partial_cmp(&float(b, ty)),
        Ty::S(_) => Some(signed(a, bits).cmp(&signed(b, bits))),
        _ => Some((a & mask(bits)).cmp(&(b & mask(bits)))),
    };
    let (less, same, more, unordered) = match order {
        Some(Ordering::Less) => (true, false, false, false),
        Some(Ordering::Equal) => (false, true, false, false),
        Some(Ordering::Greater) => (false, false, true, false),
        None => (false, false, false, true),
    };
    match op {
        Eq => same,
        Ne => less | more,
        Lt => less,
        Le => less | same,
        Gt => more,
        Ge => more | same,
        Num => !unordered,
        Nan => unordered,
        Equ => same | unordered,
        Neu => !same,
        Ltu => less | unordered,
        Leu => !more,
        Gtu => more | unordered,
        Geu => !less,
    }
}

pub fn convert(to: Ty, from: Ty, round: Round, x: u64) -> Result<u64, String> {
    Ok(match (from, to) {
        (Ty::Bf16, Ty::F(32)) => canonical32(narrow(x, from)),
        (Ty::F(32), Ty::Bf16) if round == Round::Nearest => round_to(f32::from_bits(x as u32), to),
        (Ty::F(_), Ty::F(n)) if round == Round::Nearest => {
            let v = float(x, from);
            match n {
                16 if v.is_nan() => 0x7fff,
                16 if from.bits() == 32 => u64::from(f16::from_f32(v as f32).to_bits()),
                16 => return Err("f64 to f16".to_owned()),
                32 => canonical32(v as f32),
                _ => canonical64(v),
            }
        }
        (Ty::F(n), Ty::F(m)) if n == m => {
            let v = to_integer(float(x, from), round);
            if n == 32 {
                canonical32(v as f32)
            } else {
                canonical64(v)
            }
        }
        (Ty::F(_), Ty::S(n)) => {
            let v = to_integer(float(x, from), round);
            let (low, high) = (-(1i128 << (n - 1)), (1i128 << (n - 1)) - 1);
            (v as i128).clamp(low, high) as u64 & mask(n)
        }
        (Ty::F(_), Ty::U(n)) => {
            let v = to_integer(float(x, from), round);
            (v as i128).clamp(0, (1i128 << n) - 1) as u64
        }
        (Ty::S(n), Ty::F(32)) => canonical32(signed(x, n) as f32),
        (Ty::U(n), Ty::F(32)) => canonical32((x & mask(n)) as f32),
        (Ty::S(n), Ty::F(64)) => canonical64(signed(x, n) as f64),
        (Ty::U(n), Ty::F(64)) => canonical64((x & mask(n)) as f64),
        (Ty::S(n), Ty::S(m) | Ty::U(m)) => signed(x, n) as u64 & mask(m),
        (Ty::U(n), Ty::S(m) | Ty::U(m)) => x & mask(n) & mask(m),
        _ => return Err(format!("a conversion from {from:?} to {to:?}")),
    })
}

fn to_integer(v: f64, round: Round) -> f64 {
    match round {
        Round::Zero => v.trunc(),
        Round::Down => v.floor(),
        Round::Up => v.ceil(),
        Round::Even | Round::Nearest => v.round_ties_even(),
    }
}

/// What a load leaves in a wider register.
pub fn extend(x: u64, ty: Ty) -> u64 {
    match ty {
        Ty::S(n) => signed(x, n) as u64,
        ty => x & mask(ty.bits()),
    }
}

/// What the compiler makes of a code of e4m3 times a power of two, rounded to bf16: a product in f32 that is rounded, and one in bf16.
#[test]
fn a_product_in_bf16_is_the_rounded_one_for_every_code_and_power() {
    let packed = |v: [f32; 2]| {
        let bits = v.map(|x| u64::from(x.to_bits()));
        compute(Kind::Pack(Ty::Bf16), Ty::F(32), &bits).expect("two f32")
    };
    for code in 0..=255u8 {
        for power in 0..=255u8 {
            // The other half is another code.
            let codes = [code, code ^ 0x5b].map(numeric::e4m3_to_f32);
            let by = numeric::ue8m0_to_f32(power);
            let bits = match power {
                255 => 0x7fff,
                _ => (u64::from(power) << 7).max(0x40),
            };
            let product = [packed(codes), bits << 16 | bits];
            let product = compute(Kind::MulPairs, Ty::Bf16, &product).expect("two pairs");
            let rounded = packed(codes.map(|x| x * by));
            assert_eq!(product, rounded, "code {code:#x}, power {power:#x}");
        }
    }
}
