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
        match self {
            HostExpr::Int(i) => Ok(Val::Int(*i)),
            HostExpr::Float(x) => Ok(Val::Float(*x)),
            HostExpr::Bool(b) => Ok(Val::Bool(*b)),
            HostExpr::Dim(name) => dims(name)
                .map(Val::Int)
                .ok_or_else(|| EvalError::Unbound(name.clone())),
            HostExpr::Scalar(name) => scalars(name)
                .map(Val::Float)
                .ok_or_else(|| EvalError::Unbound(name.clone())),
            HostExpr::Op(op, args) => operate(*op, args, &|arg| arg.eval(dims, scalars)),
        }
    }

    /// The same expression over slots instead of names, for launches: `dim` and `scalar` give a name its slot.
    ///
    /// # Errors
    /// [`EvalError::Unbound`] for a name without a slot.
    pub fn bind(
        &self,
        dim: &dyn Fn(&str) -> Option<usize>,
        scalar: &dyn Fn(&str) -> Option<usize>,
    ) -> Result<BoundExpr, EvalError> {
        Ok(BoundExpr(match self {
            HostExpr::Int(i) => Bound::Const(Val::Int(*i)),
            HostExpr::Float(x) => Bound::Const(Val::Float(*x)),
            HostExpr::Bool(b) => Bound::Const(Val::Bool(*b)),
            HostExpr::Dim(name) => {
                Bound::Dim(dim(name).ok_or_else(|| EvalError::Unbound(name.clone()))?)
            }
            HostExpr::Scalar(name) => {
                Bound::Scalar(scalar(name).ok_or_else(|| EvalError::Unbound(name.clone()))?)
            }
            HostExpr::Op(op, args) => Bound::Op(
                *op,
                args.iter()
                    .map(|arg| arg.bind(dim, scalar))
                    .collect::<Result<_, _>>()?,
            ),
        }))
    }

    /// How many operations enclose each other.
    pub fn depth(&self) -> usize {
        match self {
            HostExpr::Op(_, args) => 1 + args.iter().map(HostExpr::depth).max().unwrap_or(0),
            _ => 0,
        }
    }

    /// Calls `visit` for this expression and all below it.
    pub fn walk<'e>(&'e self, visit: &mut dyn FnMut(&'e HostExpr)) {
        visit(self);
        if let HostExpr::Op(_, args) = self {
            args.iter().for_each(|arg| arg.walk(visit));
        }
    }

    /// The type of the value, or `None` where an operation has operands that it does not take.
    pub fn ty(&self) -> Option<HostType> {
        use HostOp::*;
        use HostType::*;
        let (op, args) = match self {
            HostExpr::Int(_) | HostExpr::Dim(_) => return Some(Int),
            HostExpr::Float(_) | HostExpr::Scalar(_) => return Some(Float),
            HostExpr::Bool(_) => return Some(Bool),
            HostExpr::Op(op, args) => (*op, args),
        };
        let args = args.iter().map(HostExpr::ty).collect::<Option<Vec<_>>>()?;
        match (op, &args[..]) {
            (Add | Sub | Mul | FloorDiv | CeilDiv | FloorMod | Min | Max, [Int, Int])
            | (Neg, [Int]) => Some(Int),
            (Add | Sub | Mul | Min | Max, [Float, Float]) | (Neg, [Float]) => Some(Float),
            (And | Or | Eq | Ne, [Bool, Bool]) | (Not, [Bool]) => Some(Bool),
            (Eq | Ne | Lt | Le | Gt | Ge, [Int | Float, Int | Float]) => Some(Bool),
            (Select, [Bool, a, b]) if a == b => Some(*a),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostType {
    Int,
    Float,
    Bool,
}

/// A [`HostExpr`] whose names are slots; evaluating it allocates nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundExpr(Bound);

#[derive(Clone, Debug, PartialEq)]
enum Bound {
    Const(Val),
    Dim(usize),
    Scalar(usize),
    Op(HostOp, Vec<BoundExpr>),
}

impl BoundExpr {
    /// `dims` and `scalars` hold the values by slot.
    pub fn eval_int(&self, dims: &[i64], scalars: &[f64]) -> Result<i64, EvalError> {
        match self.eval(dims, scalars)? {
            Val::Int(i) => Ok(i),
            _ => Err(EvalError::Type),
        }
    }

    pub fn eval_bool(&self, dims: &[i64], scalars: &[f64]) -> Result<bool, EvalError> {
        match self.eval(dims, scalars)? {
            Val::Bool(b) => Ok(b),
            _ => Err(EvalError::Type),
        }
    }

    /// The slot of an expression that is just a dim.
    pub fn as_dim(&self) -> Option<usize> {
        match self.0 {
            Bound::Dim(slot) => Some(slot),
            _ => None,
        }
    }

    fn eval(&self, dims: &[i64], scalars: &[f64]) -> Result<Val, EvalError> {
        match &self.0 {
            Bound::Const(value) => Ok(*value),
            Bound::Dim(slot) => dims
                .get(*slot)
                .copied()
                .map(Val::Int)
                .ok_or(EvalError::Type),
            Bound::Scalar(slot) => scalars
                .get(*slot)
                .copied()
                .map(Val::Float)
                .ok_or(EvalError::Type),
            Bound::Op(op, args) => operate(*op, args, &|arg| arg.eval(dims, scalars)),
        }
    }
}

/// `&&`, `||` and `?:` evaluate only what they need, so that they can guard a division.
fn operate<E>(
    op: HostOp,
    args: &[E],
    eval: &dyn Fn(&E) -> Result<Val, EvalError>,
) -> Result<Val, EvalError> {
    match (op, args) {
        (HostOp::And | HostOp::Or, [a, b]) => match eval(a)? {
            Val::Bool(decided) if decided == (op == HostOp::Or) => Ok(Val::Bool(decided)),
            Val::Bool(_) => eval(b),
            _ => Err(EvalError::Type),
        },
        (HostOp::Select, [cond, then, otherwise]) => match eval(cond)? {
            Val::Bool(true) => eval(then),
            Val::Bool(false) => eval(otherwise),
            _ => Err(EvalError::Type),
        },
        (_, [a]) => apply(op, &[eval(a)?]),
        (_, [a, b]) => apply(op, &[eval(a)?, eval(b)?]),
        _ => Err(EvalError::Type),
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
        (CeilDiv, [Val::Int(a), Val::Int(b)]) => int(ceil_div(*a, *b))?,
        (FloorMod, [Val::Int(a), Val::Int(b)]) => {
            int(floor_div(*a, *b).map(|q| a.wrapping_sub(q.wrapping_mul(*b))))?
        }
        (Min, [Val::Int(a), Val::Int(b)]) => Val::Int(*a.min(b)),
        (Max, [Val::Int(a), Val::Int(b)]) => Val::Int(*a.max(b)),
        (Neg, [Val::Int(a)]) => int(a.checked_neg())?,
        (Min, [Val::Float(a), Val::Float(b)]) => Val::Float(a.min(*b)),
        (Max, [Val::Float(a), Val::Float(b)]) => Val::Float(a.max(*b)),
        (Neg, [Val::Float(a)]) => Val::Float(-a),
        (Add, [Val::Float(a), Val::Float(b)]) => Val::Float(a + b),
        (Sub, [Val::Float(a), Val::Float(b)]) => Val::Float(a - b),
        (Mul, [Val::Float(a), Val::Float(b)]) => Val::Float(a * b),
        (Not, [Val::Bool(a)]) => Val::Bool(!a),
        (Eq, [Val::Bool(a), Val::Bool(b)]) => Val::Bool(a == b),
        (Ne, [Val::Bool(a), Val::Bool(b)]) => Val::Bool(a != b),
        (Eq, [a, b]) => Val::Bool(compare(a, b)? == Some(std::cmp::Ordering::Equal)),
        (Ne, [a, b]) => Val::Bool(compare(a, b)? != Some(std::cmp::Ordering::Equal)),
        (Lt, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_lt())),
        (Le, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_le())),
        (Gt, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_gt())),
        (Ge, [a, b]) => Val::Bool(compare(a, b)?.is_some_and(|o| o.is_ge())),
        _ => return Err(EvalError::Type),
    })
}

fn compare(a: &Val, b: &Val) -> Result<Option<std::cmp::Ordering>, EvalError> {
    match (a, b) {
        (Val::Int(a), Val::Int(b)) => Ok(Some(a.cmp(b))),
        (Val::Float(a), Val::Float(b)) => Ok(a.partial_cmp(b)),
        // Scalars of every type arrive as f64.
        (Val::Float(a), Val::Int(b)) => Ok(a.partial_cmp(&(*b as f64))),
        (Val::Int(a), Val::Float(b)) => Ok((*a as f64).partial_cmp(b)),
        _ => Err(EvalError::Type),
    }
}

fn ceil_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    Some(if (a % b != 0) && ((a < 0) == (b < 0)) {
        q + 1
    } else {
        q
    })
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
                    HostOp::Neg => return write!(f, "-{}", Arg(args, 0)),
                    HostOp::Not => return write!(f, "!{}", Arg(args, 0)),
                    HostOp::Select => {
                        return write!(
                            f,
                            "({} ? {} : {})",
                            Arg(args, 0),
                            Arg(args, 1),
                            Arg(args, 2)
                        );
                    }
                };
                write!(f, "({} {infix} {})", Arg(args, 0), Arg(args, 1))
            }
        }
    }
}

fn call(f: &mut fmt::Formatter<'_>, name: &str, args: &[HostExpr]) -> fmt::Result {
    write!(f, "{name}({}, {})", Arg(args, 0), Arg(args, 1))
}

/// An operand that may be missing: a manifest is printed before it is checked.
struct Arg<'e>(&'e [HostExpr], usize);

impl fmt::Display for Arg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(self.1) {
            Some(arg) => arg.fmt(f),
            None => f.write_str("?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dim(name: &str) -> HostExpr {
        HostExpr::dim(name)
    }

    fn both(e: &HostExpr, n: i64, eps: f64) -> Result<i64, EvalError> {
        let by_name = e.eval_int(&|name| (name == "N").then_some(n), &|name| {
            (name == "eps").then_some(eps)
        });
        let bound = e
            .bind(&|name| (name == "N").then_some(0), &|name| {
                (name == "eps").then_some(0)
            })
            .unwrap();
        assert_eq!(by_name, bound.eval_int(&[n], &[eps]));
        by_name
    }

    #[test]
    fn division_floors_and_ceils() {
        for (n, floor, ceil, modulo) in [(7, 3, 4, 1), (-7, -4, -3, 1), (8, 4, 4, 0), (0, 0, 0, 0)]
        {
            let two = || [dim("N"), HostExpr::Int(2)];
            assert_eq!(
                both(&HostExpr::op(HostOp::FloorDiv, two()), n, 0.0),
                Ok(floor)
            );
            assert_eq!(
                both(&HostExpr::op(HostOp::CeilDiv, two()), n, 0.0),
                Ok(ceil)
            );
            assert_eq!(
                both(&HostExpr::op(HostOp::FloorMod, two()), n, 0.0),
                Ok(modulo)
            );
        }
    }

    #[test]
    fn overflow_and_division_by_zero_are_errors() {
        let by = |op, a: HostExpr, b: i64| HostExpr::op(op, [a, HostExpr::Int(b)]);
        assert_eq!(
            both(&by(HostOp::Mul, dim("N"), i64::MAX), 2, 0.0),
            Err(EvalError::Overflow)
        );
        assert_eq!(
            both(&by(HostOp::FloorDiv, dim("N"), 0), 2, 0.0),
            Err(EvalError::DivisionByZero)
        );
        assert_eq!(
            both(&by(HostOp::FloorDiv, dim("N"), -1), i64::MIN, 0.0),
            Err(EvalError::Overflow)
        );
        assert_eq!(
            both(&by(HostOp::CeilDiv, dim("N"), 3), i64::MIN, 0.0),
            Ok(i64::MIN / 3)
        );
    }

    #[test]
    fn a_select_guards_a_division() {
        let cond = HostExpr::op(HostOp::Gt, [dim("N"), HostExpr::Int(0)]);
        let safe = HostExpr::op(
            HostOp::Select,
            [
                cond,
                HostExpr::op(HostOp::FloorDiv, [HostExpr::Int(8), dim("N")]),
                HostExpr::Int(0),
            ],
        );
        assert_eq!(both(&safe, 0, 0.0), Ok(0));
        assert_eq!(both(&safe, 3, 0.0), Ok(2));
    }

    #[test]
    fn a_scalar_compares_with_an_integer() {
        let e = HostExpr::op(
            HostOp::Gt,
            [HostExpr::Scalar("eps".into()), HostExpr::Int(0)],
        );
        assert_eq!(e.ty(), Some(HostType::Bool));
        assert_eq!(e.eval_bool(&|_| None, &|_| Some(0.5)), Ok(true));
        assert_eq!(e.eval_bool(&|_| None, &|_| Some(f64::NAN)), Ok(false));
    }
}
