//! The tile IR: one instance of one kernel, every shape known, dims symbolic.
//!
//! A kernel is a tree of blocks of [`Op`]s over three kinds of things: **values** (scalars in SSA form: `index`, or an element
//! type), **tiles** (mutable arrays of static shape in a storage space) and **parameters** (tensors in global memory with
//! symbolic extents). State that lives across iterations is in tiles (a `let mut` scalar is a tile of rank 0), so loops carry no
//! values. Inside a [`OpKind::Map`] the same scalar ops run once per element; nothing else but scalar ops, loads and stores
//! stands there. Everything is in execution order; there is no implicit barrier or alias: two tiles never overlap.
//!
//! Meaning is defined by `tile::interp`. Numerics of each op are stated on it here.

use crate::source::Span;
use tessera_artifact::{DType, HostExpr};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident),*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);
        impl $name {
            pub fn index(self) -> usize { self.0 as usize }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}{}", stringify!($name), self.0)
            }
        }
    )*};
}

ids!(ValueId, OpId, BlockId, TileId, ParamId, DimId, ChannelId);

/// One instance of a kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// `module::name`.
    pub name: String,
    pub docs: String,
    pub generics: Vec<(String, GenericValue)>,
    pub dims: Vec<Dim>,
    pub params: Vec<Param>,
    pub requires: Vec<Requirement>,
    pub launch: Launch,
    pub contracts: Vec<Contract>,
    pub deny: Vec<String>,
    pub budget: Budget,
    pub tiles: Vec<Tile>,
    pub channels: Vec<Channel>,
    pub values: Vec<Value>,
    pub ops: Vec<Op>,
    pub blocks: Vec<Block>,
    pub body: BlockId,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum GenericValue {
    Int(i64),
    Bool(bool),
    DType(DType),
}

/// A symbolic extent, or an `index` scalar parameter with a range.
#[derive(Clone, Debug)]
pub struct Dim {
    pub name: String,
    pub lo: i64,
    pub hi: i64,
    pub step: i64,
    /// The `index` parameter that carries it, if it is one.
    pub scalar: Option<ParamId>,
    pub span: Span,
}

impl Dim {
    pub fn takes(&self, value: i64) -> bool {
        (self.lo..=self.hi).contains(&value) && value % self.step == 0
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    pub name: String,
    pub kind: ParamKind,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ParamKind {
    Tensor(Tensor),
    Scalar(DType),
    /// An `index` scalar; its value is `OpKind::Dim` of the dim of the same name.
    Index,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub mode: tessera_artifact::ParamMode,
    pub dtype: DType,
    pub shape: Vec<HostExpr>,
    pub align: u32,
    pub contiguous: bool,
}

#[derive(Clone, Debug)]
pub struct Requirement {
    pub cond: HostExpr,
    pub text: String,
    pub message: Option<String>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Launch {
    /// One to three extents over dims.
    pub grid: Vec<HostExpr>,
    /// `persistent(..)`: `items` loops run over this space; on a device a fixed share per CTA, results independent of the share.
    pub persistent: bool,
    /// A preference for GPUs.
    pub warps: Option<u32>,
    /// Items that are neighbours along the first axis and may share what they bring and compute, another preference for GPUs.
    pub cluster: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Contract {
    /// Same inputs, same bits, on one device.
    Deterministic(Span),
    /// What one output element sees does not depend on this dim.
    BatchInvariant(DimId, Span),
}

#[derive(Clone, Debug, Default)]
pub struct Budget {
    pub shared_bytes: Option<u64>,
    pub registers: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    Shared,
    Reg,
    Cluster,
    /// A view of a channel's slot, bound by `Get`.
    Slot,
}

#[derive(Clone, Debug)]
pub struct Tile {
    /// The user's name, or `%tmp` for one the compiler made.
    pub name: String,
    pub space: Space,
    /// Empty: one element.
    pub shape: Vec<u64>,
    pub dtype: DType,
    pub span: Span,
}

impl Tile {
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

#[derive(Clone, Debug)]
pub struct Channel {
    pub name: String,
    pub shape: Vec<u64>,
    pub dtype: DType,
    pub slots: Option<u32>,
    pub parts: u32,
    pub ring: Option<ChannelId>,
    /// Each CTA of a cluster puts its part of the rows, into the slots of all of them. Only the schedule makes such channels.
    pub shared: bool,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// A mathematical integer; i64 in every back end, overflow excluded by the ranges of dims.
    Index,
    Scalar(DType),
}

impl Type {
    pub const BOOL: Type = Type::Scalar(DType::Bool);
}

#[derive(Clone, Debug)]
pub struct Value {
    pub ty: Type,
    pub def: Def,
    /// The user's name where there is one.
    pub name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    Op(OpId),
    /// Argument of a block: the variable of a `For`, the variables of a `Map`.
    Arg(BlockId, u32),
}

#[derive(Clone, Debug, Default)]
pub struct Block {
    pub args: Vec<ValueId>,
    pub ops: Vec<OpId>,
}

#[derive(Clone, Debug)]
pub struct Op {
    pub kind: OpKind,
    /// Pure ops and loads have one.
    pub result: Option<ValueId>,
    pub span: Span,
}

#[derive(Clone, Debug, PartialEq)]
pub enum OpKind {
    // ---- pure scalars -----------------------------------------------------------------------
    Const(Const),
    /// A scalar parameter that is no `index`.
    Scalar(ParamId),
    Dim(DimId),
    /// Coordinate of the CTA on a grid axis; in a persistent kernel, of the item.
    BlockIndex(u8),
    Unary(UnaryOp, ValueId),
    Binary(BinaryOp, ValueId, ValueId),
    /// One rounding.
    Fma(ValueId, ValueId, ValueId),
    Compare(Predicate, ValueId, ValueId),
    /// Condition, then, else. Loads that only one side needs carry a guard and so never fault.
    Select(ValueId, ValueId, ValueId),
    /// Round to nearest even; e4m3, e5m2 and e2m1 saturate (NaN stays NaN in e4m3/e5m2; e2m1 has none: NaN gives +6); float to
    /// integer truncates and saturates, NaN gives 0; integers wrap; to `ue8m0` rounds up to the next power of two;
    /// `index` to float rounds once; to `Index` from an integer is exact; to bool: is it not 0; `tf32` is f32 everywhere but in `Dot`.
    /// Exactly: `tessera_artifact::numeric`.
    Cast(ValueId, Type),
    /// Same width, same bits. A code of e2m1 is the low half of a byte (`u8`), whose high half counts for nothing.
    Bitcast(ValueId, DType),
    LoadTile {
        tile: TileId,
        index: Vec<ValueId>,
    },
    /// Where `guard` is false nothing is read and the result is 0.
    LoadGlobal {
        param: ParamId,
        index: Vec<ValueId>,
        guard: Option<ValueId>,
    },

    // ---- effects on single elements ------------------------------------------------------------
    StoreTile {
        tile: TileId,
        index: Vec<ValueId>,
        value: ValueId,
    },
    /// `scatter`: the indices come from data; the interpreter reports two stores to one element in one launch.
    StoreGlobal {
        param: ParamId,
        index: Vec<ValueId>,
        value: ValueId,
        guard: Option<ValueId>,
        scatter: bool,
    },
    /// Read-modify-write; `result` is none.
    Atomic {
        op: FoldOp,
        param: ParamId,
        index: Vec<ValueId>,
        value: ValueId,
        guard: Option<ValueId>,
    },

    // ---- tile ops -----------------------------------------------------------------------------
    /// The body runs once for every point of `extents`; its block's arguments are the coordinates (index values), first axis
    /// slowest. No iteration sees another's stores.
    Map {
        extents: Vec<u64>,
        body: BlockId,
    },
    /// `dst` and `src` have equal shapes after `At` slots are dropped; elements widen exactly.
    Copy {
        dst: View,
        src: View,
        oob: Oob,
    },
    /// `acc[m, n] (+)= Σ_k a[m, k] · b[k, n]`; `acc` is f32 (f64 for f64 operands) or i32 (for 8-bit integers).
    /// f32 (and f64): `acc = fma(a, b, acc)`, k ascending. bf16: pairs ascending in k, within a pair first the odd k then the even one,
    /// each `acc = fma(a, b, acc)` in f32 with subnormal operands and results flushed to zero, round to nearest even
    /// (`vdpbf16ps`; the flush is of the rounded result, the old `acc` is flushed too); an odd last k pairs with zero. f16, e4m3, e5m2, e2m1: widened to f32 exactly, then as f32. tf32: operands
    /// rounded to 10 mantissa bits (nearest even), then as f32. Without `accumulate` acc starts at 0.
    Dot {
        acc: TileView,
        a: Operand,
        b: Operand,
        accumulate: bool,
    },
    /// Folds `src` along `axis` into `dst` (shape without that axis), starting from the op's identity.
    Reduce {
        dst: TileId,
        src: TileId,
        axis: u32,
        op: FoldOp,
        order: Order,
    },
    /// Inclusive, ascending along `axis`, starting from the op's identity as `Reduce` does; same shape, two tiles.
    Scan {
        dst: TileId,
        src: TileId,
        axis: u32,
        op: FoldOp,
    },
    /// The `k` first of `src` (rank 1 or along the last axis) in falling order (`smallest`: rising), equal values by rising index, NaN last;
    /// `k` is `values`' last extent. `indices` is i32.
    TopK {
        values: TileId,
        indices: TileId,
        src: TileId,
        smallest: bool,
    },

    // ---- control --------------------------------------------------------------------------------
    /// `lo..hi`, ascending. The body's block has one argument.
    For {
        lo: ValueId,
        hi: ValueId,
        kind: LoopKind,
        body: BlockId,
    },
    If {
        cond: ValueId,
        then: BlockId,
        otherwise: Option<BlockId>,
    },
    /// Runs for every item of the persistent launch space; its block's arguments are the coordinates.
    ForItems {
        body: BlockId,
    },
    Assert {
        cond: ValueId,
        message: String,
    },
    /// The author's promise: analyses take `cond` as a fact, the interpreter checks it, back ends emit nothing.
    Assume {
        cond: ValueId,
    },
    Print {
        text: String,
        args: Vec<PrintArg>,
    },

    // ---- roles and channels --------------------------------------------------------------------------
    /// All roles of a kernel stand next to each other at the top of its body (after common scalar ops). The block's argument
    /// is `copy_id`.
    Role {
        name: String,
        copies: u32,
        /// On tensor cores: so many warpgroups take the turns of the loop around its puts and gets, one after the other.
        turns: u32,
        body: BlockId,
    },
    /// Waits for a free slot, copies `src` into it, publishes it.
    Put {
        channel: ChannelId,
        src: View,
        oob: Oob,
    },
    /// Waits for the next full slot and binds it to `tile` (space `Slot`) until `Release` or the end of the block.
    Get {
        channel: ChannelId,
        tile: TileId,
    },
    /// Gives back part `part` (all of it: `None`) of the slot bound to `tile`.
    Release {
        tile: TileId,
        part: Option<u32>,
    },
    /// Release-store: `flag[index] += 1` after everything before it in program order.
    Signal {
        param: ParamId,
        index: Vec<ValueId>,
    },
    /// Acquire-load until `flag[index] >= at_least`.
    Wait {
        param: ParamId,
        index: Vec<ValueId>,
        at_least: ValueId,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum PrintArg {
    Value(ValueId),
    Tile(TileId),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Const {
    Index(i64),
    /// Rounded to the type already; held exactly.
    Float(f64, DType),
    Int(i128, DType),
    Bool(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnaryOp {
    Neg,
    /// Of bool or integer.
    Not,
    Abs,
    /// Correctly rounded.
    Sqrt,
    Floor,
    Ceil,
    /// To nearest, ties to even.
    RoundEven,
    /// The rest are expanded by `tile::pass::expand_math` before any back end or the interpreter runs them
    /// (f32; bf16 and f16 go through f32; f64 has no expansion and is an error outside references).
    Exp,
    Exp2,
    Log,
    Log2,
    Log1p,
    Sin,
    Cos,
    Tanh,
    /// `1 / sqrt(x)`, two roundings.
    Rsqrt,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `x > 20 ? x : log1p(exp(x))`
    Softplus,
    IsNan,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryOp {
    Add,
    Sub,
    Mul,
    /// Floats divide; integers and `index` floor.
    Div,
    /// Floor modulo; integers and `index` only.
    Rem,
    /// NaN propagates; max(+0, -0) = +0, min(+0, -0) = -0.
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    /// Arithmetic for signed integers.
    Shr,
    /// Expanded by `expand_math`.
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Predicate {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FoldOp {
    Sum,
    Prod,
    Max,
    Min,
    And,
    Or,
}

/// The order of a fold over n elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// `((identity + x0) + x1) + x2 …`; the identity of a float sum is +0.
    Ascending,
    /// Lane l of w (a power of two) folds elements l, l + w, l + 2w, … ascending, starting from its first (a lane past the end
    /// holds the identity); then halves: lane l takes lane l + w/2, then l + w/4, … down to 1.
    Tree(u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoopKind {
    Sequential,
    /// May overlap iterations; `stages` copies of the tiles declared in the body (`None`: planning chooses).
    Pipeline {
        stages: Option<u32>,
    },
}

/// What happens to elements outside their tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Oob {
    /// Proved to be inside.
    Never,
    /// Reads give 0, writes are dropped.
    Zero,
    /// Reads leave the destination as it is, writes are dropped.
    Skip,
    /// Stops the kernel with an error.
    Error,
}

/// A rectangle of a tensor or tile.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub base: Base,
    pub slots: Vec<Slot>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    Tile(TileId),
    Param(ParamId),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Slot {
    /// One coordinate; the axis is dropped from the view's shape.
    At(ValueId),
    Span {
        start: ValueId,
        len: u64,
    },
    /// Coordinates from an integer vector (a view of rank 1); one below 0, or at or past the extent, is missing (the interpreter
    /// reports the latter).
    Gather {
        index: Box<View>,
        len: u64,
    },
}

/// A rectangle of a tile.
#[derive(Clone, Debug, PartialEq)]
pub struct TileView {
    pub tile: TileId,
    pub slots: Vec<Slot>,
}

/// An operand of `dot`, of rank 2 after `At` slots are dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    pub view: TileView,
    pub transposed: bool,
}

impl Slot {
    // No container: a coordinate has no length.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> Option<u64> {
        match self {
            Slot::At(_) => None,
            Slot::Span { len, .. } | Slot::Gather { len, .. } => Some(*len),
        }
    }
}

impl View {
    /// The shape after `At` slots are dropped.
    pub fn shape(&self) -> Vec<u64> {
        self.slots.iter().filter_map(Slot::len).collect()
    }
}

impl TileView {
    pub fn shape(&self) -> Vec<u64> {
        self.slots.iter().filter_map(Slot::len).collect()
    }
}

impl Kernel {
    pub fn tile(&self, id: TileId) -> &Tile {
        &self.tiles[id.index()]
    }
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }
    pub fn ty(&self, id: ValueId) -> Type {
        self.values[id.index()].ty
    }
    pub fn op(&self, id: OpId) -> &Op {
        &self.ops[id.index()]
    }
    pub fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.index()]
    }
    pub fn param(&self, id: ParamId) -> &Param {
        &self.params[id.index()]
    }
    pub fn tensor(&self, id: ParamId) -> Option<&Tensor> {
        match &self.params[id.index()].kind {
            ParamKind::Tensor(t) => Some(t),
            _ => None,
        }
    }
    /// The op that defines a value, if it is no block argument.
    pub fn def(&self, id: ValueId) -> Option<&OpKind> {
        match self.values[id.index()].def {
            Def::Op(op) => Some(&self.ops[op.index()].kind),
            Def::Arg(..) => None,
        }
    }
}
