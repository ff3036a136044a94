//! Expressions that the host evaluates before a launch: tensor extents, grid extents, ranges, `requires` conditions.
//!
//! They speak of dims and scalar parameters by name. Integers are mathematical (checked i64); `/` and `%` floor.

use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostExpr {
    Int(i64),
    Float(f64),
    Bool(bool),
    /// A dim or an `index` scalar.
    Dim(String),
    /// A scalar parameter of another type.
    Scalar(String),
    Op(HostOp, Vec<HostExpr>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostOp {
    Add,
    Sub,
    Mul,
    FloorDiv,
    CeilDiv,
    FloorMod,
    Min,
    Max,
    Neg,
    Not,
    And,
    Or,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// `[cond, then, else]`
    Select,
}

#[derive(Clone, Debug, PartialEq)]
pub enum EvalError {
    Unbound(String),
    DivisionByZero,
    Overflow,
    /// The expression mixes types; the compiler never writes such a one.
    Type,
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EvalError::Unbound(name) => write!(f, "`{name}` has no value"),
            EvalError::DivisionByZero => write!(f, "a divisor is 0"),
            EvalError::Overflow => write!(f, "a value does not fit 64 bits"),
            EvalError::Type => write!(f, "operands of different types"),
        }
    }
}

impl std::error::Error for EvalError {}

/// A value of a host expression.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Val {
    Int(i64),
    Float(f64),
    Bool(bool),
}

impl HostExpr {
    pub fn op(op: HostOp, args: impl Into<Vec<HostExpr>>) -> Self {
        HostExpr::Op(op, args.into())
    }

    pub fn dim(name: impl Into<String>) -> Self {
        HostExpr::Dim(name.into())
    }

    /// `dims` binds dims and `index` scalars, `scalars` the other scalar parameters (as f64, which holds f32, i32, bool exactly).
    pub fn eval_int(
        &self,
        dims: &dyn Fn(&str) -> Option<i64>,
        scalars: &dyn Fn(&str) -> Option<f64>,
    ) -> Result<i64, EvalError> {
        match self.eval(dims, scalars)? {
            Val::Int(i) => Ok(i),
            _ => Err(EvalError::Type),
        }
    }

    pub fn eval_bool(
        &self,
        dims: &dyn Fn(&str) -> Option<i64>,
        scalars: &dyn Fn(&str) -> Option<f64>,
    ) -> Result<bool, EvalError> {
        match self.eval(dims, scalars)? {
            Val::Bool(b) => Ok(b),
            _ => Err(EvalError::Type),
        }
    }

    fn eval(
        &self,
        dims: &dyn Fn(&str) -> Option<i64>,
        scalars: &dyn Fn(&str) -> Option<f64>,
    ) -> Result<Val, EvalError> {
        let (op, args) = match self {
            HostExpr::Int(i) => return Ok(Val::Int(*i)),
            HostExpr::Float(x) => return Ok(Val::Float(*x)),
            HostExpr::Bool(b) => return Ok(Val::Bool(*b)),
            HostExpr::Dim(name) => {
                return dims(name)
                    .map(Val::Int)
                    .ok_or_else(|| EvalError::Unbound(name.clone()));
            }
            HostExpr::Scalar(name) => {
                return scalars(name)
                    .map(Val::Float)
                    .ok_or_else(|| EvalError::Unbound(name.clone()));
            }
            HostExpr::Op(op, args) => (*op, args),
        };
        let vals = args
            .iter()
            .map(|a| a.eval(dims, scalars))
            .collect::<Result<Vec<_>, _>>()?;
        apply(op, &vals)
    }
}

fn apply(op: HostOp, vals: &[Val]) -> Result<Val, EvalError> {
    use HostOp::*;
    let int = |v: Option<i64>| v.map(Val::Int).ok_or(EvalError::Overflow);
    Ok(match (op, vals) {
        (Add, [Val::Int(a), Val::Int(b)]) => int(a.checked_add(*b))?,
        (Sub, [Val::Int(a), Val::Int(b)]) => int(a.checked_sub(*b))?,
        (Mul, [Val::Int(a), Val::Int(b)]) => int(a.checked_mul(*b))?,
        (FloorDiv | CeilDiv | FloorMod, [Val::Int(_), Val::Int(0)]) => {
            return Err(EvalError::DivisionByZero);
        }
        (FloorDiv, [Val::Int(a), Val::Int(b)]) => int(floor_div(*a, *b))?,
        (CeilDiv, [Val::Int(a), Val::Int(b)]) => int(a
            .checked_neg()
            .and_then(|n| floor_div(n, *b))
            .and_then(i64::checked_neg))?,
        (FloorMod, [Val::Int(a), Val::Int(b)]) => {
            int(floor_div(*a, *b).map(|q| a.wrapping_sub(q.wrapping_mul(*b))))?
        }
        (Min, [Val::Int(a), Val::Int(b)]) => Val::Int(*a.min(b)),
        (Max, [Val::Int(a), Val::Int(b)]) => Val::Int(*a.max(b)),
        (Neg, [Val::Int(a)]) => int(a.checked_neg())?,
        (Neg, [Val::Float(a)]) => Val::Float(-a),
        (Add, [Val::Float(a), Val::Float(b)]) => Val::Float(a + b),
        (Sub, [Val::Float(a), Val::Float(b)]) => Val::Float(a - b),
        (Mul, [Val::Float(a), Val::Float(b)]) => Val::Float(a * b),
        (Not, [Val::Bool(a)]) => Val::Bool(!a),
        (And, [Val::Bool(a), Val::Bool(b)]) => Val::Bool(*a && *b),
        (Or, [Val::Bool(a), Val::Bool(b)]) => Val::Bool(*a || *b),
        (Eq, [Val::Bool(a), Val::Bool(b)]) => Val::Bool(a == b),
        (Ne, [Val::Bool(a), Val::Bool(b)]) => Val::Bool(a != b),
        (Eq, [a, b]) => Val::Bool(compare(a, b)? == Some(std::cmp::Ordering::Equal)),
        (Ne, [a, b]) => Val::Bool(compare(a, b)? != Some(std::cmp::Ordering::Equal)),
        (Lt, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_lt())),
        (Le, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_le())),
        (Gt, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_gt())),
        (Ge, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_ge())),
        (Select, [Val::Bool(c), a, b]) => {
            if *c {
                *a
            } else {
                *b
            }
        }
        _ => return Err(EvalError::Type),
    })
}

fn compare(a: &Val, b: &Val) -> Result<Option<std::cmp::Ordering>, EvalError> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => Ok(Some(a.cmp(b))),
        (Val::Float(a), Val::Float(b)) => Ok(a.partial_cmp(b)),
        _ => Err(EvalError::Type),
    }
}

fn floor_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    Some(if (a % b != 0) && ((a < 0) != (b < 0)) {
        q - 1
    } else {
        q
    })
}

impl fmt::Display for HostExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostExpr::Int(i) => write!(f, "{i}"),
            HostExpr::Float(x) => write!(f, "{x:?}"),
            HostExpr::Bool(b) => write!(f, "{b}"),
            HostExpr::Dim(n) | HostExpr::Scalar(n) => f.write_str(n),
            HostExpr::Op(op, args) => {
                let infix = match op {
                    HostOp::Add => "+",
                    HostOp::Sub => "-",
                    HostOp::Mul => "*",
                    HostOp::FloorDiv => "/",
                    HostOp::FloorMod => "%",
                    HostOp::And => "&&",
                    HostOp::Or => "||",
                    HostOp::Eq => "==",
                    HostOp::Ne => "!=",
                    HostOp::Lt => "<",
                    HostOp::Le => "<=",
                    HostOp::Gt => ">",
                    HostOp::Ge => ">=",
                    HostOp::CeilDiv => return call(f, "cdiv", args),
                    HostOp::Min => return call(f, "min", args),
                    HostOp::Max => return call(f, "max", args),
                    HostOp::Neg => return write!(f, "-{}", args[0]),
                    HostOp::Not => return write!(f, "!{}", args[0]),
                    HostOp::Select => {
                        return write!(f, "({} ? {} : {})", args[0], args[1], args[2]);
                    }
                };
                write!(f, "({} {infix} {})", args[0], args[1])
            }
        }
    }
}

fn call(f: &mut fmt::Formatter<'_>, name: &str, args: &[HostExpr]) -> fmt::Result {
    write!(f, "{name}({}, {})", args[0], args[1])
}
