//! The syntax tree: what the text says, nothing resolved.
//!
//! Names are unresolved [`Ident`]s, generics and dims unbound. Nodes that could not be parsed are `Error`s with their span; a
//! later stage skips them in silence, since the parser has already reported. Comments are kept beside the tree in [`File`].

use crate::source::Span;
use tessera_artifact::DType;

#[derive(Clone, Debug)]
pub struct File {
    pub edition: Option<(u32, Span)>,
    pub module: Option<Path>,
    pub uses: Vec<Use>,
    pub items: Vec<Item>,
    /// Only what other files use of it counts: no kernel of its own is asked for, no test, no bench.
    pub is_library: bool,
    /// `//` and `/* */` in source order (doc comments are on their items).
    pub comments: Vec<Comment>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Comment {
    pub text: String,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ident {
    pub name: String,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Path {
    pub segments: Vec<Ident>,
    pub span: Span,
}

/// `use dsv4::norm::{a, b};` brings functions and consts of another module into scope.
#[derive(Clone, Debug)]
pub struct Use {
    pub path: Path,
    pub names: Vec<Ident>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Item {
    Const(Const),
    Function(Function),
    Kernel(Kernel),
    Instances(Instances),
    Reference(Reference),
    Test(Test),
    Bench(Test),
    Error(Span),
}

#[derive(Clone, Debug)]
pub struct Const {
    pub docs: Vec<String>,
    pub name: Ident,
    pub value: Expr,
    pub span: Span,
}

/// Pure, inlined where called, generic over shapes and dtypes, never recursive.
#[derive(Clone, Debug)]
pub struct Function {
    pub docs: Vec<String>,
    pub name: Ident,
    pub generics: Vec<Generic>,
    pub params: Vec<(Ident, Type)>,
    pub result: Option<Type>,
    pub body: Block,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Kernel {
    pub docs: Vec<String>,
    pub name: Ident,
    pub generics: Vec<Generic>,
    pub params: Vec<Param>,
    pub clauses: Vec<Clause>,
    pub body: Block,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Generic {
    pub name: Ident,
    pub kind: GenericKind,
    pub default: Option<Expr>,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenericKind {
    Int,
    Bool,
    DType,
}

#[derive(Clone, Debug)]
pub struct Param {
    pub name: Ident,
    /// `None`: a scalar, whose `ty` has no shape.
    pub mode: Option<Mode>,
    pub ty: Type,
    pub attrs: Vec<Attr>,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    In,
    Out,
    InOut,
    /// Memory that the host allocates by the shape's formula and whose contents start undefined.
    Scratch,
    /// Counters for `signal` and `wait`, zeroed by the host before each launch.
    Flags,
}

/// `[M, K] T`, `shared [BM, BK] bf16`, `f32`, `index`.
#[derive(Clone, Debug)]
pub struct Type {
    pub space: Option<Space>,
    /// Empty for a scalar.
    pub shape: Vec<Expr>,
    pub elem: ElemType,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ElemType {
    DType(DType),
    /// A mathematical integer (dims, loop variables, positions).
    Index,
    /// A generic of kind `dtype`.
    Name(Ident),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    Shared,
    Reg,
    Global,
    Cluster,
}

/// `@name(args)`.
#[derive(Clone, Debug)]
pub struct Attr {
    pub name: Ident,
    pub args: Vec<Arg>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Clause {
    Where(Vec<Constraint>, Span),
    Dims(Vec<Dim>, Span),
    /// `grid(..)`, `persistent(..)`, `warps(..)`, `cluster(..)`, `raster(..)`.
    Launch(Vec<(Ident, Vec<Arg>)>, Span),
    Requires(Vec<Constraint>, Span),
    Ensures(Vec<Constraint>, Span),
    Budget(Vec<Constraint>, Span),
    /// `deny(convert_in_loop)`.
    Deny(Vec<Ident>, Span),
    /// `tune(N, K) { BM in {64, 128}; }`: dims, if any are named, and values to try.
    Tune(Vec<Ident>, Vec<(Ident, Vec<Expr>)>, Span),
    Error(Span),
}

/// `expr`, `expr in lo..hi`, `expr in {a, b}`, each with an optional message.
#[derive(Clone, Debug)]
pub struct Constraint {
    pub expr: Expr,
    pub membership: Option<Membership>,
    pub message: Option<String>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Membership {
    Range(Range),
    Set(Vec<Expr>),
}

#[derive(Clone, Debug)]
pub struct Range {
    pub lo: Expr,
    pub hi: Expr,
    /// `..=`.
    pub inclusive: bool,
    pub span: Span,
}

/// `M in 0..=1048576 step 8`; the bounds may use generics.
#[derive(Clone, Debug)]
pub struct Dim {
    pub name: Ident,
    pub range: Range,
    pub step: Option<Expr>,
    pub attrs: Vec<Attr>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Block {
    pub stmts: Vec<Stmt>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Stmt {
    pub kind: StmtKind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum StmtKind {
    /// `reg acc: [BM, BN] f32 = 0.0;`
    Tile {
        name: Ident,
        ty: Type,
        attrs: Vec<Attr>,
        init: Option<Expr>,
    },
    /// `let x = e;`, `let mut x = e;`, `let (v, i) = topk(s, K);`
    Let {
        mutable: bool,
        names: Vec<Ident>,
        ty: Option<Type>,
        value: Expr,
    },
    /// `pipeline k in 0..n @stages(3) { }`
    Pipeline {
        var: Ident,
        range: Range,
        attrs: Vec<Attr>,
        body: Block,
    },
    /// `for i in lo..hi { }`
    For {
        var: Ident,
        range: Range,
        attrs: Vec<Attr>,
        body: Block,
    },
    /// `for (t, g) in items { }` (the persistent launch space), `for it in list[n] { }` (a work list in memory).
    ForItems {
        vars: Vec<Ident>,
        items: Expr,
        attrs: Vec<Attr>,
        body: Block,
    },
    /// `map (i, j) in [M, N] { }`
    Map {
        vars: Vec<Ident>,
        extents: Vec<Expr>,
        attrs: Vec<Attr>,
        body: Block,
    },
    If {
        cond: Expr,
        then: Block,
        otherwise: Option<Block>,
    },
    Role {
        name: Ident,
        attrs: Vec<Attr>,
        body: Block,
    },
    Channel {
        name: Ident,
        ty: Type,
        attrs: Vec<Attr>,
    },
    Put {
        channel: Ident,
        value: Expr,
        attrs: Vec<Attr>,
    },
    /// `get ch as x;`
    Get {
        channel: Ident,
        name: Ident,
    },
    /// `release x;`, `release x[0 :+ 32];`
    Release {
        target: Expr,
    },
    /// `copy dst <- src @oob(zero);`
    Copy {
        dst: Expr,
        src: Expr,
        attrs: Vec<Attr>,
    },
    Assign {
        target: Expr,
        op: AssignOp,
        value: Expr,
        attrs: Vec<Attr>,
    },
    /// `scatter y[index(p[i]), j] = v;`: inside a map, indices from data; the author promises that they are distinct.
    Scatter {
        target: Expr,
        value: Expr,
        attrs: Vec<Attr>,
    },
    /// `atomic h[index(e)] += v;`
    Atomic {
        target: Expr,
        op: AssignOp,
        value: Expr,
        attrs: Vec<Attr>,
    },
    /// `signal f[i] after x, y;`
    Signal {
        flag: Expr,
        after: Vec<Ident>,
    },
    /// `wait f[i] >= n;`
    Wait {
        flag: Expr,
        at_least: Expr,
    },
    Assert {
        cond: Expr,
        message: Option<String>,
        assume: bool,
    },
    Print {
        args: Vec<Expr>,
    },
    Return {
        value: Option<Expr>,
    },
    /// `asm "…" reads(a) writes(b) …;` kept as text; no back end of this version lowers it.
    Asm {
        text: String,
        clauses: Vec<(Ident, Vec<Arg>)>,
    },
    Call(Expr),
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignOp {
    Set,
    Add,
    Sub,
    Mul,
    Div,
    Max,
    Min,
}

#[derive(Clone, Debug)]
pub struct Expr {
    pub kind: ExprKind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ExprKind {
    /// Units are applied already: `4KiB` is 4096.
    Int(i128),
    Float(f64),
    Str(String),
    Bool(bool),
    DType(DType),
    Name(Path),
    Unary(UnaryOp, Box<Expr>),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `c ? x : y`
    Select(Box<Expr>, Box<Expr>, Box<Expr>),
    /// `f(a, axis = 0)`; a dtype or `index` as callee is a conversion: `f32(x)`, `index(ids[t])`.
    Call {
        callee: Box<Expr>,
        args: Vec<Arg>,
    },
    /// `x.cast(T)`, `x.t()`
    Method {
        receiver: Box<Expr>,
        name: Ident,
        args: Vec<Arg>,
    },
    Index {
        base: Box<Expr>,
        slots: Vec<IndexSlot>,
    },
    /// `reduce sum(k in 0..K) { e }`, in references only.
    Reduce {
        op: Ident,
        var: Ident,
        range: Box<Range>,
        body: Box<Expr>,
    },
    Tuple(Vec<Expr>),
    Error,
}

#[derive(Clone, Debug)]
pub struct Arg {
    pub name: Option<Ident>,
    pub value: Expr,
    /// `expect_same d, rows = 0..1`
    pub range_end: Option<(Expr, bool)>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum IndexSlot {
    /// `i`
    At(Expr),
    /// `start :+ len`
    Span { start: Expr, len: Expr },
    /// `:`
    Full(Span),
    /// `gather idx[t, j :+ BN]`
    Gather(Expr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    Neg,
    Not,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    Rem,
    Shl,
    Shr,
    BitAnd,
    BitOr,
    BitXor,
    And,
    Or,
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// `instances k { (T = bf16, D = 512), … }`
#[derive(Clone, Debug)]
pub struct Instances {
    pub kernel: Ident,
    pub list: Vec<(Vec<Arg>, Span)>,
    pub span: Span,
}

/// The mathematical truth of a kernel, run in f64.
#[derive(Clone, Debug)]
pub struct Reference {
    pub docs: Vec<String>,
    pub name: Ident,
    pub kernel: Ident,
    pub body: Block,
    pub span: Span,
}

/// A `test` or a `bench`.
#[derive(Clone, Debug)]
pub struct Test {
    pub docs: Vec<String>,
    pub title: String,
    pub kernel: Ident,
    pub lines: Vec<TestLine>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum TestLine {
    /// `with M = 257, T = bf16;` binds dims, generics and scalars; `any(a, b)` runs each value.
    With(Vec<Arg>, Span),
    /// `fill a ~ normal(0, 1) @seed(1);`
    Fill {
        tensor: Ident,
        distribution: Expr,
        attrs: Vec<Attr>,
        span: Span,
    },
    /// `expect d against gemm_ref @rel(0.01) @abs(0.001);`
    Expect {
        tensor: Ident,
        against: Ident,
        attrs: Vec<Attr>,
        span: Span,
    },
    /// `expect_same d, rows = 0..1, bitwise;`: equal bits over every value of the `any`s.
    ExpectSame {
        tensor: Ident,
        args: Vec<Arg>,
        span: Span,
    },
    /// `expect_error "text";`: the launch is refused with a message that holds the text.
    ExpectError {
        text: String,
        span: Span,
    },
    /// `run cpu, sm90;`
    Run(Vec<Ident>, Span),
    /// `floor gbps = 2700;`
    Floor(Vec<Arg>, Span),
    Error(Span),
}
