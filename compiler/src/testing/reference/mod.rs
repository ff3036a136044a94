//! Runs `reference` blocks: plain mathematics over f64, independent of the tile IR and of every back end.
//!
//! Needs: values for dims, generics and scalars, and the inputs. Keeps: casts to floats change nothing, so the result is the truth
//! that rounding is measured against; integers (indices, elements of integer tensors) are exact. Loops ascend; `c ? x : y`, `&&` and
//! `||` evaluate only what they need. A reference is resolved to slots once and then evaluated, since some have many million steps.

mod machine;
mod resolve;

use crate::diag::Diagnostic;
use crate::diag::catalogue::testing as say;
use crate::source::Span;
use crate::syntax::ast::{self, AssignOp, BinaryOp, Expr, ExprKind, IndexSlot, StmtKind, UnaryOp};
use machine::Machine;
use resolve::{Function, Resolver};
use std::collections::{BTreeMap, HashMap};
use tessera_artifact::DType;

/// Evaluations of one reference; a few minutes.
const MAX_STEPS: u64 = 20_000_000_000;

/// A value known before the reference runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Known {
    Int(i128),
    Float(f64),
    Bool(bool),
    DType(DType),
}

/// A tensor as the reference sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<i64>,
    pub data: Vec<f64>,
    /// Elements read as integers.
    pub integer: bool,
}

type Result<T> = std::result::Result<T, Box<Diagnostic>>;

/// Runs `block` over `arrays`, which it reads and writes. `known` gives dims, generics, scalars and constants.
///
/// # Errors
/// A diagnostic: a name that nothing has, an index outside its tensor, a statement that no reference may hold.
pub fn run(
    block: &ast::Block,
    known: &dyn Fn(&str) -> Option<Known>,
    arrays: &mut BTreeMap<String, Array>,
) -> Result<()> {
    let mut resolver = Resolver {
        known,
        scopes: vec![HashMap::new()],
        arrays: Vec::new(),
        locals: Vec::new(),
        scalars: 0,
    };
    for (i, name) in arrays.keys().enumerate() {
        resolver.arrays.push(name.clone());
        resolver.scopes[0].insert(name.clone(), Slot::Array(i));
    }
    let body = resolver.block(block)?;
    let names = std::mem::take(&mut resolver.arrays);
    let mut machine = Machine {
        scalars: vec![Value::Int(0); resolver.scalars],
        arrays: names
            .iter()
            .map(|name| arrays.remove(name).expect("the names are the map's"))
            .collect(),
        locals: resolver.locals,
        steps: 0,
        names,
    };
    let outcome = machine.stmts(&body);
    for (name, array) in machine.names.into_iter().zip(machine.arrays) {
        arrays.insert(name, array);
    }
    outcome
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Int(i128),
    Float(f64),
    Bool(bool),
}

impl Value {
    fn kind(self) -> &'static str {
        match self {
            Value::Int(_) => "an integer",
            Value::Float(_) => "a number",
            Value::Bool(_) => "a condition",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Slot {
    Scalar(usize),
    Array(usize),
    Local(usize),
}

/// A local array: declared with a shape, or grown by assignment.
#[derive(Debug)]
struct Local {
    name: String,
    elements: HashMap<Vec<i64>, f64>,
    /// What a declaration gave every element.
    initial: Option<f64>,
}

// ---- resolved form -------------------------------------------------------------------------------------------------------

struct Node {
    kind: Kind,
    span: Span,
}

enum Kind {
    Value(Value),
    Scalar(usize),
    Element {
        array: usize,
        index: Vec<Node>,
    },
    LocalElement {
        local: usize,
        index: Vec<Node>,
    },
    Unary(UnaryOp, Box<Node>),
    Binary(BinaryOp, Box<Node>, Box<Node>),
    Select(Box<Node>, Box<Node>, Box<Node>),
    /// A function of numbers.
    Call(Function, Vec<Node>),
    ToFloat(Box<Node>),
    ToInt(Box<Node>),
    Reduce {
        op: Fold,
        slot: usize,
        lo: Box<Node>,
        hi: Box<Node>,
        inclusive: bool,
        body: Box<Node>,
    },
    Dot(Row, Row),
}

/// A one-dimensional view of an array: all coordinates fixed but one.
struct Row {
    array: usize,
    index: Vec<Option<Node>>,
    start: Option<Box<Node>>,
    len: Option<Box<Node>>,
    span: Span,
}

enum Step {
    Set {
        slot: usize,
        value: Node,
    },
    Store {
        target: Target,
        op: AssignOp,
        value: Node,
        span: Span,
    },
    Loop {
        slots: Vec<(usize, Node, Node, bool)>,
        body: Vec<Step>,
    },
    If {
        cond: Node,
        then: Vec<Step>,
        otherwise: Vec<Step>,
    },
    Declare {
        local: usize,
        initial: Option<Node>,
    },
    Assert {
        cond: Node,
        message: String,
        span: Span,
    },
}

enum Target {
    Scalar(usize),
    Element { array: usize, index: Vec<Node> },
    Local { local: usize, index: Vec<Node> },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fold {
    Sum,
    Prod,
    Max,
    Min,
    All,
    Any,
}

// ---- resolving -------------------------------------------------------------------------------------------------------------

// ---- running ---------------------------------------------------------------------------------------------------------------

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::Sink;
    use crate::source::FileId;
    use crate::syntax;

    /// Runs the body of a reference with `N` and `scale` known and arrays `x`, `y` (and `i` of integers).
    fn eval(body: &str, x: &[f64], y: usize) -> std::result::Result<Vec<f64>, String> {
        let text = format!("reference r for k {{ {body} }}");
        let mut sink = Sink::default();
        let file = syntax::parse(&mut sink, FileId(0), &text);
        assert!(!sink.has_errors(), "{:?}", sink.finish());
        let Some(ast::Item::Reference(r)) = file.items.first() else {
            panic!("no reference in {text}")
        };
        let array = |data: Vec<f64>, integer| Array {
            shape: vec![data.len() as i64],
            data,
            integer,
        };
        let mut arrays = BTreeMap::new();
        arrays.insert("x".to_owned(), array(x.to_vec(), false));
        arrays.insert("i".to_owned(), array(vec![2.0, 0.0, 1.0], true));
        arrays.insert("y".to_owned(), array(vec![f64::NAN; y], false));
        let n = x.len() as i128;
        let known = move |name: &str| match name {
            "N" => Some(Known::Int(n)),
            "scale" => Some(Known::Float(0.5)),
            "T" => Some(Known::DType(DType::BF16)),
            _ => None,
        };
        run(&r.body, &known, &mut arrays).map_err(|d| d.message)?;
        Ok(arrays.remove("y").unwrap().data)
    }

    #[test]
    fn sums_gathers_and_locals() {
        assert_eq!(
            eval(
                "map j in [N] { y[j] = reduce sum(k in 0..j + 1) { x[k] }; }",
                &[1.0, 2.0, 4.0],
                3
            )
            .unwrap(),
            [1.0, 3.0, 7.0]
        );
        assert_eq!(
            eval(
                "map j in [N] { y[j] = x[index(i[j])] * scale; }",
                &[1.0, 2.0, 4.0],
                3
            )
            .unwrap(),
            [2.0, 0.5, 1.0]
        );
        let rows =
            "reg v: [N] f64; for j in 0..N { v[j] = x[N - 1 - j]; } for j in 0..N { y[j] = v[j]; }";
        assert_eq!(eval(rows, &[1.0, 2.0], 2).unwrap(), [2.0, 1.0]);
        let grown = "map j in [N] { w[j] = x[j] + 1.0; } y[0] = w[1];";
        assert_eq!(eval(grown, &[1.0, 2.0], 1).unwrap(), [3.0]);
        let cells = "let mut s = 0.0; let mut m = x[0]; for j in 0..N { s += x[j]; m max= x[j]; } y[0] = s; y[1] = m;";
        assert_eq!(eval(cells, &[1.0, 5.0, 4.0], 2).unwrap(), [10.0, 5.0]);
        assert_eq!(
            eval("y[0] = dotv(x[:], x[:]);", &[1.0, 2.0, 3.0], 1).unwrap(),
            [14.0]
        );
    }

    #[test]
    fn integers_floor_and_casts_are_ignored() {
        assert_eq!(
            eval(
                "y[0] = f64(-7 / 2); y[1] = f64(-7 % 4); y[2] = f64(cdiv(7, 2));",
                &[],
                3
            )
            .unwrap(),
            [-4.0, 1.0, 4.0]
        );
        assert_eq!(
            eval("y[0] = (x[0] / 3.0).cast(T); y[1] = T(x[0]);", &[1.0], 2).unwrap(),
            [1.0 / 3.0, 1.0]
        );
        assert_eq!(
            eval(
                "y[0] = f64(x[0].cast(i32)); y[1] = f64(index(x[1]));",
                &[1.7, -1.7],
                2
            )
            .unwrap(),
            [1.0, -1.0]
        );
    }

    #[test]
    fn only_the_side_that_is_taken_is_read() {
        assert_eq!(
            eval(
                "map j in [3] { y[j] = j < N ? x[j] : -1.0; }",
                &[1.0, 2.0],
                3
            )
            .unwrap(),
            [1.0, 2.0, -1.0]
        );
        assert_eq!(
            eval("y[0] = 0 < N && x[0] > 5.0 ? 1.0 : 0.0;", &[], 1).unwrap(),
            [0.0]
        );
    }

    #[test]
    fn sums_keep_what_f64_addition_loses() {
        assert_eq!(
            eval(
                "y[0] = reduce sum(k in 0..N) { x[k] };",
                &[1.0, 1e100, 1.0, -1e100],
                1
            )
            .unwrap(),
            [2.0]
        );
        let infinite = eval(
            "y[0] = reduce sum(k in 0..N) { x[k] };",
            &[1.0, f64::INFINITY],
            1,
        )
        .unwrap();
        assert_eq!(infinite, [f64::INFINITY]);
    }

    #[test]
    fn mistakes_are_errors() {
        assert_eq!(
            eval("y[0] = x[3];", &[1.0], 1).unwrap_err(),
            "index 3 is outside axis 0 of `x`"
        );
        assert_eq!(
            eval("y[0] = z;", &[1.0], 1).unwrap_err(),
            "`z` is not known in this reference"
        );
        assert_eq!(
            eval("y[0] = x[0, 0];", &[1.0], 1).unwrap_err(),
            "`x` has 1 axes and is indexed with 2"
        );
        assert_eq!(
            eval("y[0] = f64(1 / (N - 1));", &[1.0], 1).unwrap_err(),
            "the divisor is 0"
        );
        assert_eq!(
            eval("y[x[0]] = 1.0;", &[0.0], 1).unwrap_err(),
            "an integer is needed here, and this is a number"
        );
        assert_eq!(
            eval("reg v: [4] f64; y[0] = v[2];", &[], 1).unwrap_err(),
            "`v[2]` is read before it is assigned"
        );
        assert_eq!(
            eval("copy y <- x;", &[], 1).unwrap_err(),
            "`copy` cannot stand in a reference"
        );
        assert_eq!(
            eval("y[0] = exp(1.0, 2.0);", &[], 1).unwrap_err(),
            "`exp` takes 1 arguments, and 2 are given"
        );
    }
}
