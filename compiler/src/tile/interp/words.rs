//! Columns of elements as raw words of their width, and the scalar ops on whole columns.
//!
//! An element is its bits (`numeric` gives the encoding; e2m1 and bool take a byte, `index` is an i64). Every op is one loop over a
//! column, compiled once more for AVX2 and FMA, so that `fma` is one instruction and not a call.

use crate::tile::ir::{BinaryOp, Predicate, Type, UnaryOp};
use tessera_artifact::{DType, numeric};

#[derive(Clone, Debug, PartialEq)]
pub enum Words {
    W8(Vec<u8>),
    W16(Vec<u16>),
    W32(Vec<u32>),
    W64(Vec<u64>),
}

/// Evaluates `$body` with `$v` bound to the vector inside, whatever its width.
macro_rules! each_width {
    ($words:expr, $v:ident => $body:expr) => {
        match $words {
            Words::W8($v) => $body,
            Words::W16($v) => $body,
            Words::W32($v) => $body,
            Words::W64($v) => $body,
        }
    };
}

/// Evaluates `$body` with both vectors, which have one width by the verifier's typing.
macro_rules! both_widths {
    ($a:expr, $b:expr, $x:ident, $y:ident => $body:expr) => {
        match ($a, $b) {
            (Words::W8($x), Words::W8($y)) => $body,
            (Words::W16($x), Words::W16($y)) => $body,
            (Words::W32($x), Words::W32($y)) => $body,
            (Words::W64($x), Words::W64($y)) => $body,
            _ => unreachable!("columns of one type have one width"),
        }
    };
}
pub(super) use both_widths;

/// Bytes of one element in memory here.
pub fn width(ty: Type) -> usize {
    match ty {
        Type::Index => 8,
        Type::Scalar(d) => (d.bits() as usize).div_ceil(8),
    }
}

/// What an op has against one of its lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    DivisionByZero,
    ShiftPastWidth,
    IndexOverflow,
    /// Not expanded before the interpreter.
    Unexpanded,
}

impl Words {
    pub fn zeros(ty: Type, n: usize) -> Words {
        match width(ty) {
            1 => Words::W8(vec![0; n]),
            2 => Words::W16(vec![0; n]),
            4 => Words::W32(vec![0; n]),
            _ => Words::W64(vec![0; n]),
        }
    }

    pub fn splat(ty: Type, n: usize, bits: u64) -> Words {
        match width(ty) {
            1 => Words::W8(vec![bits as u8; n]),
            2 => Words::W16(vec![bits as u16; n]),
            4 => Words::W32(vec![bits as u32; n]),
            _ => Words::W64(vec![bits; n]),
        }
    }

    pub fn len(&self) -> usize {
        each_width!(self, v => v.len())
    }

    pub fn get(&self, i: usize) -> u64 {
        match self {
            Words::W8(v) => u64::from(v[i]),
            Words::W16(v) => u64::from(v[i]),
            Words::W32(v) => u64::from(v[i]),
            Words::W64(v) => v[i],
        }
    }

    pub fn set(&mut self, i: usize, bits: u64) {
        match self {
            Words::W8(v) => v[i] = bits as u8,
            Words::W16(v) => v[i] = bits as u16,
            Words::W32(v) => v[i] = bits as u32,
            Words::W64(v) => v[i] = bits,
        }
    }

    pub fn w8(&self) -> &[u8] {
        match self {
            Words::W8(v) => v,
            _ => unreachable!("bools are bytes"),
        }
    }

    fn w32(&self) -> &[u32] {
        match self {
            Words::W32(v) => v,
            _ => unreachable!("f32 is 32 bits wide"),
        }
    }

    pub fn w64(&self) -> &[u64] {
        match self {
            Words::W64(v) => v,
            _ => unreachable!("an index is 64 bits wide"),
        }
    }

    /// Elements of `dtype` from memory; e2m1 is packed there.
    pub fn from_bytes(dtype: DType, bytes: &[u8]) -> Words {
        match dtype.bits() {
            4 => Words::W8(
                (0..2 * bytes.len())
                    .map(|i| numeric::read_e2m1(bytes, i))
                    .collect(),
            ),
            8 => Words::W8(bytes.to_vec()),
            16 => Words::W16(
                bytes
                    .chunks_exact(2)
                    .map(|b| u16::from_le_bytes([b[0], b[1]]))
                    .collect(),
            ),
            32 => Words::W32(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| u32::from_le_bytes(*b))
                    .collect(),
            ),
            _ => Words::W64(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| u64::from_le_bytes(*b))
                    .collect(),
            ),
        }
    }

    /// The reverse of [`Words::from_bytes`].
    pub fn to_bytes(&self, dtype: DType, bytes: &mut [u8]) {
        match self {
            Words::W8(v) if dtype == DType::E2M1 => {
                v.iter()
                    .enumerate()
                    .for_each(|(i, &c)| numeric::write_e2m1(bytes, i, c));
            }
            Words::W8(v) => bytes.copy_from_slice(v),
            Words::W16(v) => bytes
                .as_chunks_mut()
                .0
                .iter_mut()
                .zip(v)
                .for_each(|(b, x)| *b = x.to_le_bytes()),
            Words::W32(v) => bytes
                .as_chunks_mut()
                .0
                .iter_mut()
                .zip(v)
                .for_each(|(b, x)| *b = x.to_le_bytes()),
            Words::W64(v) => bytes
                .as_chunks_mut()
                .0
                .iter_mut()
                .zip(v)
                .for_each(|(b, x)| *b = x.to_le_bytes()),
        }
    }
}

/// Compiles a function a second time with AVX2, FMA and F16C, and takes that one where the machine has them.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn vector($($arg: $ty),*) $(-> $ret)? {
                    plain($($arg),*)
                }
                if $crate::tile::interp::words::has_avx2() {
                    // SAFETY: the features were found on this machine.
                    return unsafe { vector($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    };
}
pub(super) use vectorised;

#[cfg(target_arch = "x86_64")]
pub fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

// ---- floats ------------------------------------------------------------------------------------------------

#[inline(always)]
fn zip32(a: &[u32], b: &[u32], f: impl Fn(f32, f32) -> f32) -> Vec<u32> {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f(f32::from_bits(x), f32::from_bits(y)).to_bits())
        .collect()
}

#[inline(always)]
fn zip64(a: &[u64], b: &[u64], f: impl Fn(f64, f64) -> f64) -> Vec<u64> {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| f(f64::from_bits(x), f64::from_bits(y)).to_bits())
        .collect()
}

/// Without branches: NaN propagates, equal zeros take the sign rule of `numeric::max_f32`.
#[inline(always)]
fn max32(x: f32, y: f32) -> f32 {
    let ordered = if x > y { x } else { y };
    let equal = f32::from_bits(x.to_bits() & y.to_bits());
    let value = if x == y { equal } else { ordered };
    if x.is_nan() || y.is_nan() {
        f32::NAN
    } else {
        value
    }
}

#[inline(always)]
fn min32(x: f32, y: f32) -> f32 {
    let ordered = if x < y { x } else { y };
    let equal = f32::from_bits(x.to_bits() | y.to_bits());
    let value = if x == y { equal } else { ordered };
    if x.is_nan() || y.is_nan() {
        f32::NAN
    } else {
        value
    }
}

vectorised! {
    fn binary_f32(op: BinaryOp, a: &[u32], b: &[u32]) -> Option<Vec<u32>> {
        Some(match op {
            BinaryOp::Add => zip32(a, b, |x, y| x + y),
            BinaryOp::Sub => zip32(a, b, |x, y| x - y),
            BinaryOp::Mul => zip32(a, b, |x, y| x * y),
            BinaryOp::Div => zip32(a, b, |x, y| x / y),
            BinaryOp::Min => zip32(a, b, min32),
            BinaryOp::Max => zip32(a, b, max32),
            _ => return None,
        })
    }
}

vectorised! {
    fn binary_f64(op: BinaryOp, a: &[u64], b: &[u64]) -> Option<Vec<u64>> {
        Some(match op {
            BinaryOp::Add => zip64(a, b, |x, y| x + y),
            BinaryOp::Sub => zip64(a, b, |x, y| x - y),
            BinaryOp::Mul => zip64(a, b, |x, y| x * y),
            BinaryOp::Div => zip64(a, b, |x, y| x / y),
            BinaryOp::Min => zip64(a, b, numeric::min_f64),
            BinaryOp::Max => zip64(a, b, numeric::max_f64),
            _ => return None,
        })
    }
}

vectorised! {
    fn fma_f32(a: &[u32], b: &[u32], c: &[u32]) -> Vec<u32> {
        a.iter().zip(b).zip(c)
            .map(|((&x, &y), &z)| f32::from_bits(x).mul_add(f32::from_bits(y), f32::from_bits(z)).to_bits())
            .collect()
    }
}

vectorised! {
    fn fma_f64(a: &[u64], b: &[u64], c: &[u64]) -> Vec<u64> {
        a.iter().zip(b).zip(c)
            .map(|((&x, &y), &z)| f64::from_bits(x).mul_add(f64::from_bits(y), f64::from_bits(z)).to_bits())
            .collect()
    }
}

vectorised! {
    fn unary_f32(op: UnaryOp, a: &[u32]) -> Option<Vec<u32>> {
        #[inline(always)]
        fn each(a: &[u32], f: impl Fn(f32) -> f32) -> Vec<u32> {
            a.iter().map(|&x| f(f32::from_bits(x)).to_bits()).collect()
        }
        Some(match op {
            UnaryOp::Neg => a.iter().map(|&x| x ^ (1 << 31)).collect(),
            UnaryOp::Abs => a.iter().map(|&x| x & !(1 << 31)).collect(),
            UnaryOp::Sqrt => each(a, f32::sqrt),
            UnaryOp::Floor => each(a, f32::floor),
            UnaryOp::Ceil => each(a, f32::ceil),
            UnaryOp::RoundEven => each(a, f32::round_ties_even),
            _ => return None,
        })
    }
}

vectorised! {
    fn unary_f64(op: UnaryOp, a: &[u64]) -> Option<Vec<u64>> {
        #[inline(always)]
        fn each(a: &[u64], f: impl Fn(f64) -> f64) -> Vec<u64> {
            a.iter().map(|&x| f(f64::from_bits(x)).to_bits()).collect()
        }
        Some(match op {
            UnaryOp::Neg => a.iter().map(|&x| x ^ (1 << 63)).collect(),
            UnaryOp::Abs => a.iter().map(|&x| x & !(1 << 63)).collect(),
            UnaryOp::Sqrt => each(a, f64::sqrt),
            UnaryOp::Floor => each(a, f64::floor),
            UnaryOp::Ceil => each(a, f64::ceil),
            UnaryOp::RoundEven => each(a, f64::round_ties_even),
            _ => return None,
        })
    }
}

#[inline(always)]
fn relation<T: PartialOrd>(
    p: Predicate,
    a: impl Iterator<Item = T>,
    b: impl Iterator<Item = T>,
) -> Vec<u8> {
    let ab = a.zip(b);
    match p {
        Predicate::Eq => ab.map(|(x, y)| (x == y) as u8).collect(),
        Predicate::Ne => ab.map(|(x, y)| (x != y) as u8).collect(),
        Predicate::Lt => ab.map(|(x, y)| (x < y) as u8).collect(),
        Predicate::Le => ab.map(|(x, y)| (x <= y) as u8).collect(),
        Predicate::Gt => ab.map(|(x, y)| (x > y) as u8).collect(),
        Predicate::Ge => ab.map(|(x, y)| (x >= y) as u8).collect(),
    }
}

vectorised! {
    fn compare_f32(p: Predicate, a: &[u32], b: &[u32]) -> Vec<u8> {
        relation(p, a.iter().map(|&x| f32::from_bits(x)), b.iter().map(|&y| f32::from_bits(y)))
    }
}

// ---- integers ----------------------------------------------------------------------------------------------

/// Floor division of any integer type by what is not 0, without overflow traps.
macro_rules! floor_ops {
    ($name:ident, $ty:ty) => {
        mod $name {
            pub fn div(a: $ty, b: $ty) -> $ty {
                let q = a.wrapping_div(b);
                #[allow(unused_comparisons)]
                if a.wrapping_rem(b) != 0 && ((a < 0) != (b < 0)) {
                    q.wrapping_sub(1)
                } else {
                    q
                }
            }
            pub fn rem(a: $ty, b: $ty) -> $ty {
                let r = a.wrapping_rem(b);
                #[allow(unused_comparisons)]
                if r != 0 && ((r < 0) != (b < 0)) {
                    r.wrapping_add(b)
                } else {
                    r
                }
            }
        }
    };
}
floor_ops!(floor_i8, i8);
floor_ops!(floor_i16, i16);
floor_ops!(floor_i32, i32);
floor_ops!(floor_i64, i64);
floor_ops!(floor_u8, u8);
floor_ops!(floor_u16, u16);
floor_ops!(floor_u32, u32);
floor_ops!(floor_u64, u64);

macro_rules! int_binary {
    ($op:expr, $a:expr, $b:expr, $ty:ty, $raw:ty, $floor:ident) => {{
        let (a, b) = ($a, $b);
        let zip = |f: fn($ty, $ty) -> $ty| -> Vec<$raw> {
            a.iter()
                .zip(b)
                .map(|(&x, &y)| f(x as $ty, y as $ty) as $raw)
                .collect()
        };
        let shift_ok = || b.iter().all(|&s| (s as u64) < <$ty>::BITS as u64);
        match $op {
            BinaryOp::Add => Ok(a.iter().zip(b).map(|(&x, &y)| x.wrapping_add(y)).collect()),
            BinaryOp::Sub => Ok(a.iter().zip(b).map(|(&x, &y)| x.wrapping_sub(y)).collect()),
            BinaryOp::Mul => Ok(a.iter().zip(b).map(|(&x, &y)| x.wrapping_mul(y)).collect()),
            BinaryOp::And => Ok(a.iter().zip(b).map(|(&x, &y)| x & y).collect()),
            BinaryOp::Or => Ok(a.iter().zip(b).map(|(&x, &y)| x | y).collect()),
            BinaryOp::Xor => Ok(a.iter().zip(b).map(|(&x, &y)| x ^ y).collect()),
            BinaryOp::Min => Ok(zip(|x, y| x.min(y))),
            BinaryOp::Max => Ok(zip(|x, y| x.max(y))),
            BinaryOp::Div | BinaryOp::Rem if b.contains(&0) => Err(Fault::DivisionByZero),
            BinaryOp::Div => Ok(zip($floor::div)),
            BinaryOp::Rem => Ok(zip($floor::rem)),
            BinaryOp::Shl | BinaryOp::Shr if !shift_ok() => Err(Fault::ShiftPastWidth),
            BinaryOp::Shl => Ok(zip(|x, y| x.wrapping_shl(y as u32))),
            BinaryOp::Shr => Ok(zip(|x, y| x.wrapping_shr(y as u32))),
            BinaryOp::Pow => Err(Fault::Unexpanded),
        }
    }};
}

fn binary_int(op: BinaryOp, d: DType, a: &Words, b: &Words) -> Result<Words, Fault> {
    let signed = d.is_signed_int();
    Ok(match (a, b) {
        (Words::W8(a), Words::W8(b)) if signed => {
            Words::W8(int_binary!(op, a, b, i8, u8, floor_i8)?)
        }
        (Words::W8(a), Words::W8(b)) => Words::W8(int_binary!(op, a, b, u8, u8, floor_u8)?),
        (Words::W16(a), Words::W16(b)) if signed => {
            Words::W16(int_binary!(op, a, b, i16, u16, floor_i16)?)
        }
        (Words::W16(a), Words::W16(b)) => Words::W16(int_binary!(op, a, b, u16, u16, floor_u16)?),
        (Words::W32(a), Words::W32(b)) if signed => {
            Words::W32(int_binary!(op, a, b, i32, u32, floor_i32)?)
        }
        (Words::W32(a), Words::W32(b)) => Words::W32(int_binary!(op, a, b, u32, u32, floor_u32)?),
        (Words::W64(a), Words::W64(b)) if signed => {
            Words::W64(int_binary!(op, a, b, i64, u64, floor_i64)?)
        }
        (Words::W64(a), Words::W64(b)) => Words::W64(int_binary!(op, a, b, u64, u64, floor_u64)?),
        _ => unreachable!("columns of one type have one width"),
    })
}

/// `index` arithmetic: mathematical, so leaving i64 is a fault.
pub fn index_op(op: BinaryOp, a: i64, b: i64) -> Result<i64, Fault> {
    crate::tile::scalar::index_binary(op, a, b).ok_or(match op {
        BinaryOp::Div | BinaryOp::Rem if b == 0 => Fault::DivisionByZero,
        BinaryOp::Shl | BinaryOp::Shr if !(0..64).contains(&b) => Fault::ShiftPastWidth,
        BinaryOp::Pow => Fault::Unexpanded,
        _ => Fault::IndexOverflow,
    })
}

fn binary_index(op: BinaryOp, a: &[u64], b: &[u64]) -> Result<Vec<u64>, Fault> {
    a.iter()
        .zip(b)
        .map(|(&x, &y)| index_op(op, x as i64, y as i64).map(|z| z as u64))
        .collect()
}

// ---- any type ------------------------------------------------------------------------------------------------

/// bf16 and f16 compute in f32 and round once.
fn through_f32(d: DType) -> bool {
    matches!(d, DType::BF16 | DType::F16)
}

const F32: Type = Type::Scalar(DType::F32);

pub fn binary(op: BinaryOp, ty: Type, a: &Words, b: &Words) -> Result<Words, Fault> {
    let d = match ty {
        Type::Index => return Ok(Words::W64(binary_index(op, a.w64(), b.w64())?)),
        Type::Scalar(d) => d,
    };
    match d {
        DType::F64 => binary_f64(op, a.w64(), b.w64())
            .map(Words::W64)
            .ok_or(Fault::Unexpanded),
        DType::F32 | DType::Tf32 => binary_f32(op, a.w32(), b.w32())
            .map(Words::W32)
            .ok_or(Fault::Unexpanded),
        _ if through_f32(d) => {
            let (a, b) = (cast(ty, F32, a), cast(ty, F32, b));
            Ok(cast(F32, ty, &binary(op, F32, &a, &b)?))
        }
        _ => binary_int(op, d, a, b),
    }
}

pub fn unary(op: UnaryOp, ty: Type, a: &Words) -> Result<Words, Fault> {
    if op == UnaryOp::IsNan {
        let Type::Scalar(d) = ty else {
            return Ok(Words::zeros(Type::BOOL, a.len()));
        };
        return Ok(Words::W8(match a {
            Words::W32(v) => v
                .iter()
                .map(|&x| f32::from_bits(x).is_nan() as u8)
                .collect(),
            _ => (0..a.len())
                .map(|i| numeric::to_f64(a.get(i), d).is_nan() as u8)
                .collect(),
        }));
    }
    let d = match ty {
        Type::Index => {
            let f = |x: i64| match op {
                UnaryOp::Neg => x.checked_neg(),
                _ => x.checked_abs(),
            };
            let v: Option<Vec<u64>> = a
                .w64()
                .iter()
                .map(|&x| f(x as i64).map(|y| y as u64))
                .collect();
            return v.map(Words::W64).ok_or(Fault::IndexOverflow);
        }
        Type::Scalar(d) => d,
    };
    match d {
        DType::F64 => unary_f64(op, a.w64())
            .map(Words::W64)
            .ok_or(Fault::Unexpanded),
        DType::F32 | DType::Tf32 => unary_f32(op, a.w32())
            .map(Words::W32)
            .ok_or(Fault::Unexpanded),
        _ if through_f32(d) => Ok(cast(F32, ty, &unary(op, F32, &cast(ty, F32, a))?)),
        DType::Bool => Ok(Words::W8(a.w8().iter().map(|&x| x ^ 1).collect())),
        _ => {
            let zero = Words::zeros(ty, a.len());
            match op {
                UnaryOp::Neg => binary_int(BinaryOp::Sub, d, &zero, a),
                UnaryOp::Not => Ok(match a {
                    Words::W8(v) => Words::W8(v.iter().map(|x| !x).collect()),
                    Words::W16(v) => Words::W16(v.iter().map(|x| !x).collect()),
                    Words::W32(v) => Words::W32(v.iter().map(|x| !x).collect()),
                    Words::W64(v) => Words::W64(v.iter().map(|x| !x).collect()),
                }),
                UnaryOp::Abs if d.is_signed_int() => {
                    let negated = binary_int(BinaryOp::Sub, d, &zero, a)?;
                    // The lowest value is its own negation, so it wraps to itself.
                    binary_int(BinaryOp::Max, d, a, &negated)
                }
                UnaryOp::Abs => Ok(a.clone()),
                _ => Err(Fault::Unexpanded),
            }
        }
    }
}

pub fn fma(ty: Type, a: &Words, b: &Words, c: &Words) -> Words {
    match ty {
        Type::Scalar(DType::F64) => Words::W64(fma_f64(a.w64(), b.w64(), c.w64())),
        Type::Scalar(DType::F32 | DType::Tf32) => Words::W32(fma_f32(a.w32(), b.w32(), c.w32())),
        _ => {
            let wide = |x| cast(ty, F32, x);
            cast(F32, ty, &fma(F32, &wide(a), &wide(b), &wide(c)))
        }
    }
}

pub fn compare(p: Predicate, ty: Type, a: &Words, b: &Words) -> Words {
    let d = match ty {
        Type::Index => DType::I64,
        Type::Scalar(d) => d,
    };
    macro_rules! signed {
        ($a:expr, $b:expr, $ty:ty) => {
            relation(
                p,
                $a.iter().map(|&x| x as $ty),
                $b.iter().map(|&y| y as $ty),
            )
        };
    }
    Words::W8(match (a, b) {
        _ if through_f32(d) => return compare(p, F32, &cast(ty, F32, a), &cast(ty, F32, b)),
        (Words::W32(a), Words::W32(b)) if d.is_float() => compare_f32(p, a, b),
        (Words::W64(a), Words::W64(b)) if d.is_float() => relation(
            p,
            a.iter().map(|&x| f64::from_bits(x)),
            b.iter().map(|&y| f64::from_bits(y)),
        ),
        (Words::W8(a), Words::W8(b)) if d.is_signed_int() => signed!(a, b, i8),
        (Words::W16(a), Words::W16(b)) if d.is_signed_int() => signed!(a, b, i16),
        (Words::W32(a), Words::W32(b)) if d.is_signed_int() => signed!(a, b, i32),
        (Words::W64(a), Words::W64(b)) if d.is_signed_int() => signed!(a, b, i64),
        _ => both_widths!(a, b, x, y => relation(p, x.iter().copied(), y.iter().copied())),
    })
}

pub fn select(cond: &[u8], a: &Words, b: &Words) -> Words {
    #[inline(always)]
    fn pick<T: Copy>(c: &[u8], a: &[T], b: &[T]) -> Vec<T> {
        c.iter()
            .zip(a)
            .zip(b)
            .map(|((&c, &x), &y)| if c != 0 { x } else { y })
            .collect()
    }
    match (a, b) {
        (Words::W8(x), Words::W8(y)) => Words::W8(pick(cond, x, y)),
        (Words::W16(x), Words::W16(y)) => Words::W16(pick(cond, x, y)),
        (Words::W32(x), Words::W32(y)) => Words::W32(pick(cond, x, y)),
        (Words::W64(x), Words::W64(y)) => Words::W64(pick(cond, x, y)),
        _ => unreachable!("columns of one type have one width"),
    }
}

/// `index` in range is the caller's to check for casts to it from u64.
pub fn cast(from: Type, to: Type, a: &Words) -> Words {
    if from == to {
        return a.clone();
    }
    let plain = |ty| match ty {
        Type::Index => DType::I64,
        Type::Scalar(d) => d,
    };
    let (f, t) = (plain(from), plain(to));
    let f32_of = |x: f32| x.to_bits();
    match (f, t, a) {
        (DType::BF16, DType::F32 | DType::Tf32, Words::W16(v)) => {
            Words::W32(v.iter().map(|&x| (x as u32) << 16).collect())
        }
        (DType::F32, DType::BF16, Words::W32(v)) => Words::W16(
            v.iter()
                .map(|&x| numeric::f32_to_bf16(f32::from_bits(x)))
                .collect(),
        ),
        (DType::F16, DType::F32 | DType::Tf32, Words::W16(v)) => {
            Words::W32(v.iter().map(|&x| f32_of(numeric::f16_to_f32(x))).collect())
        }
        (DType::F32, DType::F16, Words::W32(v)) => Words::W16(
            v.iter()
                .map(|&x| numeric::f32_to_f16(f32::from_bits(x)))
                .collect(),
        ),
        (DType::Tf32, DType::F32, _) | (DType::F32, DType::Tf32, _) => a.clone(),
        (DType::F32, DType::F64, Words::W32(v)) => Words::W64(
            v.iter()
                .map(|&x| (f32::from_bits(x) as f64).to_bits())
                .collect(),
        ),
        (DType::F64, DType::F32, Words::W64(v)) => Words::W32(
            v.iter()
                .map(|&x| f32_of(f64::from_bits(x) as f32))
                .collect(),
        ),
        (DType::I64, DType::F32, Words::W64(v)) => {
            Words::W32(v.iter().map(|&x| f32_of(x as i64 as f32)).collect())
        }
        (DType::I32, DType::F32, Words::W32(v)) => {
            Words::W32(v.iter().map(|&x| f32_of(x as i32 as f32)).collect())
        }
        (DType::F32, DType::I32, Words::W32(v)) => {
            Words::W32(v.iter().map(|&x| f32::from_bits(x) as i32 as u32).collect())
        }
        (DType::I32, DType::I64, Words::W32(v)) => {
            Words::W64(v.iter().map(|&x| x as i32 as i64 as u64).collect())
        }
        (DType::I64, DType::I32 | DType::U32, Words::W64(v)) => {
            Words::W32(v.iter().map(|&x| x as u32).collect())
        }
        // Formats of one byte have few values: a table.
        (_, DType::F32, Words::W8(v)) if v.len() > 64 => {
            let table: Vec<u32> = (0..256).map(|c| numeric::convert(c, f, t) as u32).collect();
            Words::W32(v.iter().map(|&c| table[c as usize]).collect())
        }
        _ => {
            let mut out = Words::zeros(to, a.len());
            for i in 0..a.len() {
                out.set(i, numeric::convert(a.get(i), f, t));
            }
            out
        }
    }
}

/// Elements of any float type as f32, for `dot`: exact but for f64.
pub fn to_f32(dtype: DType, a: &Words) -> Vec<f32> {
    match cast(Type::Scalar(dtype), F32, a) {
        Words::W32(v) => v.into_iter().map(f32::from_bits).collect(),
        _ => unreachable!("f32 is 32 bits wide"),
    }
}
