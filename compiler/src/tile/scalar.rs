//! The value of a pure scalar op on constants: one definition for folding in [`super::build`] and `pass::simplify`, and what the
//! interpreter's columns are tested against.
//!
//! Transcendentals have no value here (`pass::expand_math` gives them one). An op that has none (division by 0, a shift past the
//! width, an `index` that leaves i64, a NaN whose bits the hardware chooses) does not fold: the interpreter reports it where it runs.

use super::ir::*;
use tessera_artifact::{DType, numeric};

/// The type of a constant.
pub fn type_of(c: Const) -> Type {
    match c {
        Const::Index(_) => Type::Index,
        Const::Float(_, d) | Const::Int(_, d) => Type::Scalar(d),
        Const::Bool(_) => Type::BOOL,
    }
}

/// `x` rounded to `dtype` once.
pub fn float(x: f64, dtype: DType) -> Const {
    Const::Float(numeric::to_f64(numeric::from_f64(x, dtype), dtype), dtype)
}

/// `i` wrapped to `dtype`.
pub fn int(i: i128, dtype: DType) -> Const {
    Const::Int(numeric::to_i128(numeric::from_i128(i, dtype), dtype), dtype)
}

/// The element whose bits are 0 (in ue8m0 that is 2^-127).
pub fn zero(dtype: DType) -> Const {
    match dtype {
        DType::Bool => Const::Bool(false),
        d if d.is_float() => float(0.0, d),
        d => Const::Int(0, d),
    }
}

/// The bits of a constant as an element of its type (`index`: i64).
pub fn to_bits(c: Const) -> u64 {
    match c {
        Const::Index(i) => i as u64,
        Const::Float(x, d) => numeric::from_f64(x, d),
        Const::Int(i, d) => numeric::from_i128(i, d),
        Const::Bool(b) => b as u64,
    }
}

pub fn from_bits(bits: u64, ty: Type) -> Const {
    match ty {
        Type::Index => Const::Index(bits as i64),
        Type::Scalar(DType::Bool) => Const::Bool(bits & 1 != 0),
        Type::Scalar(d) if d.is_float() => Const::Float(numeric::to_f64(bits, d), d),
        Type::Scalar(d) => Const::Int(numeric::to_i128(bits, d), d),
    }
}

/// The type of a pure op's result; `None` for an op that is not pure or whose type does not follow from its operands.
pub fn result_type(kind: &OpKind, ty: &dyn Fn(ValueId) -> Type) -> Option<Type> {
    Some(match kind {
        OpKind::Const(c) => type_of(*c),
        OpKind::Dim(_) | OpKind::BlockIndex(_) => Type::Index,
        OpKind::Unary(UnaryOp::IsNan, _) | OpKind::Compare(..) => Type::BOOL,
        OpKind::Unary(_, a) | OpKind::Binary(_, a, _) | OpKind::Fma(a, ..) => ty(*a),
        OpKind::Select(_, a, _) => ty(*a),
        OpKind::Cast(_, ty) => *ty,
        OpKind::Bitcast(_, d) => Type::Scalar(*d),
        _ => return None,
    })
}

/// The constant that a pure op gives on constant operands, if it has one.
pub fn fold(kind: &OpKind, get: &dyn Fn(ValueId) -> Option<Const>) -> Option<Const> {
    match *kind {
        OpKind::Unary(op, a) => unary(op, get(a)?),
        OpKind::Binary(op, a, b) => binary(op, get(a)?, get(b)?),
        OpKind::Fma(a, b, c) => fma(get(a)?, get(b)?, get(c)?),
        OpKind::Compare(p, a, b) => compare(p, get(a)?, get(b)?).map(Const::Bool),
        OpKind::Select(c, a, b) => match get(c)? {
            Const::Bool(true) => get(a),
            Const::Bool(false) => get(b),
            _ => None,
        },
        OpKind::Cast(a, ty) => cast(get(a)?, ty),
        OpKind::Bitcast(a, d) => bitcast(get(a)?, d),
        _ => None,
    }
}

pub fn unary(op: UnaryOp, a: Const) -> Option<Const> {
    use UnaryOp::*;
    match a {
        Const::Index(i) => match op {
            Neg => i.checked_neg().map(Const::Index),
            Abs => i.checked_abs().map(Const::Index),
            _ => None,
        },
        Const::Bool(b) => (op == Not).then_some(Const::Bool(!b)),
        Const::Int(i, d) => match op {
            Neg => Some(int(-i, d)),
            Not => Some(int(!i, d)),
            Abs => Some(int(i.abs(), d)),
            _ => None,
        },
        Const::Float(x, d) => match op {
            IsNan => Some(Const::Bool(x.is_nan())),
            _ if x.is_nan() || !d.has_arithmetic() => None,
            Neg => Some(Const::Float(-x, d)),
            Abs => Some(Const::Float(x.abs(), d)),
            Floor => Some(Const::Float(x.floor(), d)),
            Ceil => Some(Const::Float(x.ceil(), d)),
            RoundEven => Some(Const::Float(x.round_ties_even(), d)),
            Sqrt if x < 0.0 => None,
            Sqrt if d == DType::F64 => Some(Const::Float(x.sqrt(), d)),
            Sqrt => Some(from_f32((x as f32).sqrt(), d)),
            _ => None,
        },
    }
}

pub fn binary(op: BinaryOp, a: Const, b: Const) -> Option<Const> {
    match (a, b) {
        (Const::Index(a), Const::Index(b)) => index_binary(op, a, b).map(Const::Index),
        (Const::Bool(a), Const::Bool(b)) => match op {
            BinaryOp::And => Some(Const::Bool(a & b)),
            BinaryOp::Or => Some(Const::Bool(a | b)),
            BinaryOp::Xor => Some(Const::Bool(a ^ b)),
            _ => None,
        },
        (Const::Int(a, d), Const::Int(b, e)) if d == e => {
            int_binary(op, a, b, d.bits()).map(|i| int(i, d))
        }
        (Const::Float(a, d), Const::Float(b, e)) if d == e => {
            let c = float_binary(op, a, b, d)?;
            matches!(c, Const::Float(x, _) if !x.is_nan()).then_some(c)
        }
        _ => None,
    }
}

/// `/` and `%` floor; `None` where the result leaves i64 or the divisor is 0.
pub fn index_binary(op: BinaryOp, a: i64, b: i64) -> Option<i64> {
    use BinaryOp::*;
    match op {
        Add => a.checked_add(b),
        Sub => a.checked_sub(b),
        Mul => a.checked_mul(b),
        Div => floor_div(a as i128, b as i128).and_then(|q| q.try_into().ok()),
        Rem => floor_div(a as i128, b as i128).map(|q| (a as i128 - q * b as i128) as i64),
        Min => Some(a.min(b)),
        Max => Some(a.max(b)),
        And => Some(a & b),
        Or => Some(a | b),
        Xor => Some(a ^ b),
        Shl => u32::try_from(b)
            .ok()
            .filter(|&s| s < 64)
            .and_then(|s| a.checked_mul(1i64.checked_shl(s)?)),
        Shr => u32::try_from(b).ok().filter(|&s| s < 64).map(|s| a >> s),
        Pow => None,
    }
}

/// Before wrapping.
fn int_binary(op: BinaryOp, a: i128, b: i128, bits: u32) -> Option<i128> {
    use BinaryOp::*;
    let shift = || u32::try_from(b).ok().filter(|&s| s < bits);
    match op {
        Add => Some(a + b),
        Sub => Some(a - b),
        Mul => Some(a.wrapping_mul(b)),
        Div => floor_div(a, b),
        Rem => floor_div(a, b).map(|q| a - q * b),
        Min => Some(a.min(b)),
        Max => Some(a.max(b)),
        And => Some(a & b),
        Or => Some(a | b),
        Xor => Some(a ^ b),
        Shl => shift().map(|s| a.wrapping_shl(s)),
        Shr => shift().map(|s| a >> s),
        Pow => None,
    }
}

fn floor_div(a: i128, b: i128) -> Option<i128> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && ((a < 0) != (b < 0)) {
        q - 1
    } else {
        q
    })
}

fn float_binary(op: BinaryOp, a: f64, b: f64, d: DType) -> Option<Const> {
    use BinaryOp::*;
    if a.is_nan() || b.is_nan() || !d.has_arithmetic() {
        return None;
    }
    match op {
        Min => return Some(Const::Float(numeric::min_f64(a, b), d)),
        Max => return Some(Const::Float(numeric::max_f64(a, b), d)),
        _ => {}
    }
    if d == DType::F64 {
        let x = match op {
            Add => a + b,
            Sub => a - b,
            Mul => a * b,
            Div => a / b,
            _ => return None,
        };
        return Some(Const::Float(x, d));
    }
    let (a, b) = (a as f32, b as f32);
    let x = match op {
        Add => a + b,
        Sub => a - b,
        Mul => a * b,
        Div => a / b,
        _ => return None,
    };
    Some(from_f32(x, d))
}

fn fma(a: Const, b: Const, c: Const) -> Option<Const> {
    let (Const::Float(a, d), Const::Float(b, _), Const::Float(c, _)) = (a, b, c) else {
        return None;
    };
    let result = match d {
        DType::F64 => Const::Float(a.mul_add(b, c), d),
        _ if d.has_arithmetic() => from_f32((a as f32).mul_add(b as f32, c as f32), d),
        _ => return None,
    };
    matches!(result, Const::Float(x, _) if !x.is_nan()).then_some(result)
}

/// One rounding of an f32 result to a float type that computes in f32; nothing for f32 and tf32 themselves.
fn from_f32(x: f32, d: DType) -> Const {
    match d {
        DType::F32 | DType::Tf32 => Const::Float(x as f64, d),
        _ => float(x as f64, d),
    }
}

pub fn compare(p: Predicate, a: Const, b: Const) -> Option<bool> {
    let order = match (a, b) {
        (Const::Index(a), Const::Index(b)) => Some(a.cmp(&b)),
        (Const::Bool(a), Const::Bool(b)) => Some(a.cmp(&b)),
        (Const::Int(a, d), Const::Int(b, e)) if d == e => Some(a.cmp(&b)),
        (Const::Float(a, d), Const::Float(b, e)) if d == e => a.partial_cmp(&b),
        _ => return None,
    };
    Some(holds(p, order))
}

/// `None`: one is NaN; then only `Ne` holds.
pub fn holds(p: Predicate, order: Option<std::cmp::Ordering>) -> bool {
    use Predicate::*;
    match order {
        None => p == Ne,
        Some(o) => match p {
            Eq => o.is_eq(),
            Ne => o.is_ne(),
            Lt => o.is_lt(),
            Le => o.is_le(),
            Gt => o.is_gt(),
            Ge => o.is_ge(),
        },
    }
}

pub fn cast(a: Const, ty: Type) -> Option<Const> {
    if matches!(a, Const::Float(x, _) if x.is_nan())
        && matches!(ty, Type::Scalar(d) if d.is_float())
    {
        return None;
    }
    let d = match ty {
        Type::Index => {
            return match a {
                Const::Index(i) => Some(Const::Index(i)),
                Const::Int(i, _) => i.try_into().ok().map(Const::Index),
                Const::Bool(b) => Some(Const::Index(b as i64)),
                Const::Float(..) => None,
            };
        }
        Type::Scalar(d) => d,
    };
    let bits = match a {
        Const::Index(i) => numeric::from_i128(i as i128, d),
        Const::Int(i, _) => numeric::from_i128(i, d),
        Const::Bool(b) => numeric::from_i128(b as i128, d),
        Const::Float(x, _) => numeric::from_f64(x, d),
    };
    Some(from_bits(bits, ty))
}

fn bitcast(a: Const, d: DType) -> Option<Const> {
    let Type::Scalar(from) = type_of(a) else {
        return None;
    };
    if !same_width(from, d) {
        return None;
    }
    let mask = u64::MAX >> (64 - d.bits());
    let result = from_bits(to_bits(a) & mask, Type::Scalar(d));
    // A NaN constant has no payload to keep.
    let has_nan = |c| matches!(c, Const::Float(x, _) if x.is_nan());
    (!has_nan(a) && !has_nan(result)).then_some(result)
}

/// What a bitcast may go between. A code of e2m1 is the low half of a byte, whose high half counts for nothing.
pub fn same_width(a: DType, b: DType) -> bool {
    let byte = |d: DType| if d == DType::E2M1 { 8 } else { d.bits() };
    byte(a) == byte(b)
}
