//! Values known while compiling: exact integers, f64, bool, dtypes. They are rounded where they are used.

use crate::syntax::ast::{BinaryOp, UnaryOp};
use tessera_artifact::DType;

#[derive(Clone, Debug, PartialEq)]
pub enum Const {
    Int(i128),
    Float(f64),
    Bool(bool),
    DType(DType),
    Str(String),
}

/// Why a constant expression has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoldError {
    DivisionByZero,
    Overflow,
    Types,
    Shift,
}

impl Const {
    /// "an integer", for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Const::Int(_) => "an integer",
            Const::Float(_) => "a float",
            Const::Bool(_) => "a bool",
            Const::DType(_) => "a dtype",
            Const::Str(_) => "a text",
        }
    }
}

impl std::fmt::Display for Const {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Const::Int(i) => write!(f, "{i}"),
            Const::Float(x) => write!(f, "{x:?}"),
            Const::Bool(b) => write!(f, "{b}"),
            Const::DType(d) => write!(f, "{d}"),
            Const::Str(s) => write!(f, "{s:?}"),
        }
    }
}

/// The constants that every module has.
pub fn builtin_constant(name: &str) -> Option<f64> {
    Some(match name {
        "LOG2E" => std::f64::consts::LOG2_E,
        "LN2" => std::f64::consts::LN_2,
        "PI" => std::f64::consts::PI,
        "INF" => f64::INFINITY,
        "NAN" => f64::NAN,
        "LOWEST" => f32::MIN as f64,
        _ => return None,
    })
}

pub const BUILTIN_CONSTANTS: [&str; 6] = ["LOG2E", "LN2", "PI", "INF", "NAN", "LOWEST"];

pub fn unary(op: UnaryOp, a: &Const) -> Result<Const, FoldError> {
    Ok(match (op, a) {
        (UnaryOp::Neg, Const::Int(i)) => Const::Int(i.checked_neg().ok_or(FoldError::Overflow)?),
        (UnaryOp::Neg, Const::Float(x)) => Const::Float(-x),
        (UnaryOp::Not, Const::Bool(b)) => Const::Bool(!b),
        _ => return Err(FoldError::Types),
    })
}

pub fn binary(op: BinaryOp, a: &Const, b: &Const) -> Result<Const, FoldError> {
    use BinaryOp::*;
    match (a, b) {
        (Const::Int(a), Const::Int(b)) => int_binary(op, *a, *b),
        (Const::Float(a), Const::Float(b)) => Ok(match op {
            Add => Const::Float(a + b),
            Sub => Const::Float(a - b),
            Mul => Const::Float(a * b),
            Div => Const::Float(a / b),
            Eq => Const::Bool(a == b),
            Ne => Const::Bool(a != b),
            Lt => Const::Bool(a < b),
            Le => Const::Bool(a <= b),
            Gt => Const::Bool(a > b),
            Ge => Const::Bool(a >= b),
            _ => return Err(FoldError::Types),
        }),
        (Const::Bool(a), Const::Bool(b)) => Ok(Const::Bool(match op {
            And | BitAnd => *a && *b,
            Or | BitOr => *a || *b,
            BitXor | Ne => a != b,
            Eq => a == b,
            _ => return Err(FoldError::Types),
        })),
        (Const::DType(a), Const::DType(b)) => Ok(Const::Bool(match op {
            Eq => a == b,
            Ne => a != b,
            _ => return Err(FoldError::Types),
        })),
        _ => Err(FoldError::Types),
    }
}

fn int_binary(op: BinaryOp, a: i128, b: i128) -> Result<Const, FoldError> {
    use BinaryOp::*;
    let int = |v: Option<i128>| v.map(Const::Int).ok_or(FoldError::Overflow);
    Ok(match op {
        Add => int(a.checked_add(b))?,
        Sub => int(a.checked_sub(b))?,
        Mul => int(a.checked_mul(b))?,
        Div | Rem if b == 0 => return Err(FoldError::DivisionByZero),
        Div => int(floor_div(a, b))?,
        Rem => Const::Int(a.wrapping_sub(floor_div(a, b).ok_or(FoldError::Overflow)? * b)),
        Shl | Shr if !(0..64).contains(&b) => return Err(FoldError::Shift),
        Shl => int(a.checked_mul(1 << b))?,
        Shr => Const::Int(a >> b),
        BitAnd => Const::Int(a & b),
        BitOr => Const::Int(a | b),
        BitXor => Const::Int(a ^ b),
        Eq => Const::Bool(a == b),
        Ne => Const::Bool(a != b),
        Lt => Const::Bool(a < b),
        Le => Const::Bool(a <= b),
        Gt => Const::Bool(a > b),
        Ge => Const::Bool(a >= b),
        And | Or => return Err(FoldError::Types),
    })
}

fn floor_div(a: i128, b: i128) -> Option<i128> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) {
        q - 1
    } else {
        q
    })
}

/// Built-in functions of constants; `None`: not such a function, or not of these arguments.
pub fn call(name: &str, args: &[Const]) -> Option<Result<Const, FoldError>> {
    use Const::*;
    Some(Ok(match (name, args) {
        ("cdiv", [Int(_), Int(0)]) => return Some(Err(FoldError::DivisionByZero)),
        ("cdiv", [Int(a), Int(b)]) => match a
            .checked_neg()
            .and_then(|n| floor_div(n, *b))
            .and_then(i128::checked_neg)
        {
            Some(q) => Int(q),
            None => return Some(Err(FoldError::Overflow)),
        },
        ("min", [Int(a), Int(b)]) => Int(*a.min(b)),
        ("max", [Int(a), Int(b)]) => Int(*a.max(b)),
        ("min", [Float(a), Float(b)]) => Float(a.min(*b)),
        ("max", [Float(a), Float(b)]) => Float(a.max(*b)),
        ("abs", [Int(a)]) => match a.checked_abs() {
            Some(a) => Int(a),
            None => return Some(Err(FoldError::Overflow)),
        },
        ("abs", [Float(a)]) => Float(a.abs()),
        ("bits", [DType(d)]) => Int(d.bits() as i128),
        ("sqrt", [Float(a)]) => Float(a.sqrt()),
        ("rsqrt", [Float(a)]) => Float(1.0 / a.sqrt()),
        ("exp", [Float(a)]) => Float(a.exp()),
        ("exp2", [Float(a)]) => Float(a.exp2()),
        ("log", [Float(a)]) => Float(a.ln()),
        ("log2", [Float(a)]) => Float(a.log2()),
        ("pow", [Float(a), Float(b)]) => Float(a.powf(*b)),
        ("floor", [Float(a)]) => Float(a.floor()),
        ("ceil", [Float(a)]) => Float(a.ceil()),
        _ => return None,
    }))
}

/// The value of `x` after rounding to a float dtype: to nearest even; 8- and 4-bit floats saturate; `ue8m0` rounds up.
pub fn round_to(x: f64, dtype: DType) -> f64 {
    // (stored mantissa bits, exponent of the smallest normal, largest finite value, has infinity)
    let (mantissa, min_exponent, max, infinite): (i32, i32, f64, bool) = match dtype {
        DType::F64 => return x,
        DType::F32 | DType::Tf32 => return x as f32 as f64,
        DType::BF16 => (7, -126, 3.3895313892515355e38, true),
        DType::F16 => (10, -14, 65504.0, true),
        DType::E4M3 => (3, -6, 448.0, false),
        DType::E5M2 => (2, -14, 57344.0, false),
        DType::E2M1 => (1, 0, 6.0, false),
        DType::UE8M0 => {
            return if x.is_nan() || x <= 0.0 {
                f64::NAN
            } else {
                2f64.powi((x.log2().ceil() as i32).clamp(-127, 127))
            };
        }
        _ => return x,
    };
    if x.is_nan() {
        return if dtype == DType::E2M1 { 6.0 } else { x };
    }
    if x == 0.0 {
        return x;
    }
    let saturated = |x: f64| {
        if infinite {
            f64::INFINITY.copysign(x)
        } else {
            max.copysign(x)
        }
    };
    if x.is_infinite() {
        return saturated(x);
    }
    let exponent = ((x.abs().to_bits() >> 52) as i32 - 1023).max(min_exponent);
    let ulp = 2f64.powi(exponent - mantissa);
    let rounded = (x / ulp).round_ties_even() * ulp;
    if rounded.abs() > max {
        saturated(x)
    } else {
        rounded
    }
}
