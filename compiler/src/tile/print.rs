//! The text of a kernel, for dumps, tests and reports of our own bugs; [`super::parse`] reads it back.
//!
//! Values are numbered in the order they are printed, so that a kernel whose passes have left holes prints as one that was built
//! that way: print, parse, print again gives the same text. Spans are not printed.

use super::ir::*;
use std::fmt::Write;
use tessera_artifact::{DType, HostExpr, HostOp, ParamMode};

/// The text of the whole kernel.
pub fn print(kernel: &Kernel) -> String {
    let mut p = Printer {
        kernel,
        out: String::new(),
        numbers: vec![None; kernel.values.len()],
        next: 0,
        depth: 0,
    };
    p.kernel();
    p.out
}

/// One op on one line (its blocks as `{ … }`), values by their ids: for messages.
pub fn op_text(kernel: &Kernel, op: OpId) -> String {
    let numbers = (0..kernel.values.len() as u32).map(Some).collect();
    let mut p = Printer {
        kernel,
        out: String::new(),
        numbers,
        next: 0,
        depth: 0,
    };
    p.op_head(kernel.op(op));
    p.out
}

pub(super) fn unary_name(op: UnaryOp) -> &'static str {
    use UnaryOp::*;
    match op {
        Neg => "neg",
        Not => "not",
        Abs => "abs",
        Sqrt => "sqrt",
        Floor => "floor",
        Ceil => "ceil",
        RoundEven => "round",
        Exp => "exp",
        Exp2 => "exp2",
        Log => "log",
        Log2 => "log2",
        Log1p => "log1p",
        Sin => "sin",
        Cos => "cos",
        Tanh => "tanh",
        Rsqrt => "rsqrt",
        Sigmoid => "sigmoid",
        Softplus => "softplus",
        IsNan => "is_nan",
    }
}

pub(super) const UNARY: [UnaryOp; 19] = {
    use UnaryOp::*;
    [
        Neg, Not, Abs, Sqrt, Floor, Ceil, RoundEven, Exp, Exp2, Log, Log2, Log1p, Sin, Cos, Tanh,
        Rsqrt, Sigmoid, Softplus, IsNan,
    ]
};

pub(super) fn binary_name(op: BinaryOp) -> &'static str {
    use BinaryOp::*;
    match op {
        Add => "add",
        Sub => "sub",
        Mul => "mul",
        Div => "div",
        Rem => "rem",
        Min => "min",
        Max => "max",
        And => "and",
        Or => "or",
        Xor => "xor",
        Shl => "shl",
        Shr => "shr",
        Pow => "pow",
    }
}

pub(super) const BINARY: [BinaryOp; 13] = {
    use BinaryOp::*;
    [
        Add, Sub, Mul, Div, Rem, Min, Max, And, Or, Xor, Shl, Shr, Pow,
    ]
};

pub(super) fn predicate_name(p: Predicate) -> &'static str {
    use Predicate::*;
    match p {
        Eq => "eq",
        Ne => "ne",
        Lt => "lt",
        Le => "le",
        Gt => "gt",
        Ge => "ge",
    }
}

pub(super) const PREDICATES: [Predicate; 6] = {
    use Predicate::*;
    [Eq, Ne, Lt, Le, Gt, Ge]
};

pub(super) fn fold_name(op: FoldOp) -> &'static str {
    use FoldOp::*;
    match op {
        Sum => "sum",
        Prod => "prod",
        Max => "max",
        Min => "min",
        And => "and",
        Or => "or",
    }
}

pub(super) const FOLDS: [FoldOp; 6] = {
    use FoldOp::*;
    [Sum, Prod, Max, Min, And, Or]
};

pub(super) fn oob_name(oob: Oob) -> &'static str {
    match oob {
        Oob::Never => "never",
        Oob::Zero => "zero",
        Oob::Skip => "skip",
        Oob::Error => "error",
    }
}

pub(super) fn space_name(space: Space) -> &'static str {
    match space {
        Space::Shared => "shared",
        Space::Reg => "reg",
        Space::Cluster => "cluster",
        Space::Slot => "slot",
    }
}

pub(super) fn mode_name(mode: ParamMode) -> &'static str {
    match mode {
        ParamMode::In => "in",
        ParamMode::Out => "out",
        ParamMode::InOut => "inout",
        ParamMode::Scratch => "scratch",
        ParamMode::Flags => "flags",
    }
}

pub(super) fn host_op_name(op: HostOp) -> &'static str {
    use HostOp::*;
    match op {
        Add => "add",
        Sub => "sub",
        Mul => "mul",
        FloorDiv => "div",
        CeilDiv => "cdiv",
        FloorMod => "mod",
        Min => "min",
        Max => "max",
        Neg => "neg",
        Not => "not",
        And => "and",
        Or => "or",
        Eq => "eq",
        Ne => "ne",
        Lt => "lt",
        Le => "le",
        Gt => "gt",
        Ge => "ge",
        Select => "select",
    }
}

pub(super) const HOST_OPS: [HostOp; 19] = {
    use HostOp::*;
    [
        Add, Sub, Mul, FloorDiv, CeilDiv, FloorMod, Min, Max, Neg, Not, And, Or, Eq, Ne, Lt, Le,
        Gt, Ge, Select,
    ]
};

struct Printer<'k> {
    kernel: &'k Kernel,
    out: String,
    numbers: Vec<Option<u32>>,
    next: u32,
    depth: usize,
}

macro_rules! put {
    ($p:expr, $($arg:tt)*) => {
        $p.out.write_fmt(format_args!($($arg)*)).expect("writing to a string cannot fail")
    };
}

impl Printer<'_> {
    fn line(&mut self) {
        self.out.push('\n');
        for _ in 0..self.depth {
            self.out.push_str("  ");
        }
    }

    fn kernel(&mut self) {
        let k = self.kernel;
        put!(self, "kernel {:?} {{", k.name);
        self.depth = 1;
        if !k.docs.is_empty() {
            self.line();
            put!(self, "docs {:?}", k.docs);
        }
        for (name, value) in &k.generics {
            self.line();
            match value {
                GenericValue::Int(i) => put!(self, "generic {name:?} = int {i}"),
                GenericValue::Bool(b) => put!(self, "generic {name:?} = bool {b}"),
                GenericValue::DType(d) => put!(self, "generic {name:?} = dtype {d}"),
            };
        }
        for (i, dim) in k.dims.iter().enumerate() {
            self.line();
            put!(
                self,
                "dim d{i} {:?} {} to {} step {}",
                dim.name,
                dim.lo,
                dim.hi,
                dim.step
            );
            if let Some(p) = dim.scalar {
                put!(self, " scalar p{}", p.0);
            }
        }
        for (i, param) in k.params.iter().enumerate() {
            self.line();
            put!(self, "param p{i} {:?} ", param.name);
            match &param.kind {
                ParamKind::Scalar(d) => put!(self, "scalar {d}"),
                ParamKind::Index => put!(self, "index"),
                ParamKind::Tensor(t) => {
                    put!(self, "{} [", mode_name(t.mode));
                    self.host_list(&t.shape);
                    put!(self, "] {} align {}", t.dtype, t.align);
                    if !t.contiguous {
                        put!(self, " strided");
                    }
                }
            }
        }
        for r in &k.requires {
            self.line();
            put!(self, "require ");
            self.host(&r.cond);
            put!(self, " {:?}", r.text);
            if let Some(m) = &r.message {
                put!(self, " message {m:?}");
            }
        }
        self.line();
        put!(self, "grid [");
        self.host_list(&k.launch.grid);
        put!(self, "]");
        if k.launch.persistent {
            put!(self, " persistent");
        }
        if let Some(w) = k.launch.warps {
            put!(self, " warps {w}");
        }
        if k.launch.cluster > 1 {
            put!(self, " cluster {}", k.launch.cluster);
        }
        for c in &k.contracts {
            self.line();
            match c {
                Contract::Deterministic(_) => put!(self, "contract deterministic"),
                Contract::BatchInvariant(d, _) => put!(self, "contract batch_invariant d{}", d.0),
            };
        }
        for d in &k.deny {
            self.line();
            put!(self, "deny {d:?}");
        }
        if let Some(b) = k.budget.shared_bytes {
            self.line();
            put!(self, "budget shared {b}");
        }
        if let Some(r) = k.budget.registers {
            self.line();
            put!(self, "budget registers {r}");
        }
        for (i, t) in k.tiles.iter().enumerate() {
            self.line();
            put!(
                self,
                "tile t{i} {:?} {} {:?} {}",
                t.name,
                space_name(t.space),
                t.shape,
                t.dtype
            );
        }
        for (i, c) in k.channels.iter().enumerate() {
            self.line();
            put!(
                self,
                "channel c{i} {:?} {:?} {} parts {}",
                c.name,
                c.shape,
                c.dtype,
                c.parts
            );
            if let Some(s) = c.slots {
                put!(self, " slots {s}");
            }
            if let Some(r) = c.ring {
                put!(self, " ring c{}", r.0);
            }
            if c.shared {
                put!(self, " shared");
            }
        }
        self.line();
        put!(self, "body");
        self.block(k.body);
        self.depth = 0;
        self.line();
        self.out.push_str("}\n");
    }

    fn host_list(&mut self, exprs: &[HostExpr]) {
        for (i, e) in exprs.iter().enumerate() {
            if i > 0 {
                put!(self, ", ");
            }
            self.host(e);
        }
    }

    fn host(&mut self, e: &HostExpr) {
        match e {
            HostExpr::Int(i) => put!(self, "{i}"),
            HostExpr::Float(x) => put!(self, "float {x:?}"),
            HostExpr::Bool(b) => put!(self, "{b}"),
            HostExpr::Dim(n) => put!(self, "dim {n:?}"),
            HostExpr::Scalar(n) => put!(self, "scalar {n:?}"),
            HostExpr::Op(op, args) => {
                put!(self, "{}(", host_op_name(*op));
                self.host_list(args);
                put!(self, ")");
            }
        };
    }

    fn define(&mut self, v: ValueId) {
        if self.numbers[v.index()].is_none() {
            self.numbers[v.index()] = Some(self.next);
            self.next += 1;
        }
        self.use_value(v);
        if let Some(name) = &self.kernel.value(v).name {
            put!(self, " {name:?}");
        }
    }

    fn use_value(&mut self, v: ValueId) {
        match self.numbers.get(v.index()).copied().flatten() {
            Some(n) => put!(self, "%{n}"),
            // Only in a kernel that the verifier rejects.
            None => put!(self, "%undefined_{}", v.0),
        };
    }

    fn values(&mut self, vs: &[ValueId]) {
        for (i, v) in vs.iter().enumerate() {
            if i > 0 {
                put!(self, ", ");
            }
            self.use_value(*v);
        }
    }

    /// ` (args) { ops }`
    fn block(&mut self, id: BlockId) {
        let block = self.kernel.block(id);
        if !block.args.is_empty() {
            put!(self, " (");
            for (i, &a) in block.args.iter().enumerate() {
                if i > 0 {
                    put!(self, ", ");
                }
                self.define(a);
            }
            put!(self, ")");
        }
        put!(self, " {{");
        self.depth += 1;
        for &op in &block.ops {
            self.line();
            self.op(op);
        }
        self.depth -= 1;
        self.line();
        put!(self, "}}");
    }

    fn op(&mut self, id: OpId) {
        let op = self.kernel.op(id);
        self.op_head(op);
        for (i, b) in op.kind.blocks().into_iter().enumerate() {
            if i > 0 {
                put!(self, " else");
            }
            self.block(b);
        }
    }

    fn element(&mut self, base: char, id: u32, index: &[ValueId]) {
        put!(self, "{base}{id}[");
        self.values(index);
        put!(self, "]");
    }

    fn guard(&mut self, guard: Option<ValueId>) {
        if let Some(g) = guard {
            put!(self, " if ");
            self.use_value(g);
        }
    }

    fn view(&mut self, base: Base, slots: &[Slot]) {
        match base {
            Base::Tile(t) => put!(self, "t{}[", t.0),
            Base::Param(p) => put!(self, "p{}[", p.0),
        };
        for (i, slot) in slots.iter().enumerate() {
            if i > 0 {
                put!(self, ", ");
            }
            match slot {
                Slot::At(v) => self.use_value(*v),
                Slot::Span { start, len } => {
                    self.use_value(*start);
                    put!(self, " :+ {len}");
                }
                Slot::Gather { index, len } => {
                    put!(self, "gather ");
                    self.view(index.base, &index.slots);
                    put!(self, " :+ {len}");
                }
            }
        }
        put!(self, "]");
    }

    fn op_head(&mut self, op: &Op) {
        use OpKind::*;
        if let Some(v) = op.result {
            self.define(v);
            put!(self, " = ");
        }
        match &op.kind {
            Const(c) => {
                match c {
                    super::ir::Const::Index(i) => put!(self, "const index {i}"),
                    super::ir::Const::Float(x, DType::F64) => put!(self, "const f64 {x:?}"),
                    // Every narrower float is an f32, whose shortest decimal says it exactly.
                    super::ir::Const::Float(x, d) => put!(self, "const {d} {:?}", *x as f32),
                    super::ir::Const::Int(i, d) => put!(self, "const {d} {i}"),
                    super::ir::Const::Bool(b) => put!(self, "const bool {b}"),
                };
            }
            Scalar(p) => {
                put!(self, "scalar p{}", p.0);
            }
            Dim(d) => {
                put!(self, "dim d{}", d.0);
            }
            BlockIndex(axis) => {
                put!(self, "block {axis}");
            }
            Unary(o, a) => {
                put!(self, "{} ", unary_name(*o));
                self.use_value(*a);
            }
            Binary(o, a, b) => {
                put!(self, "{} ", binary_name(*o));
                self.values(&[*a, *b]);
            }
            Fma(a, b, c) => {
                put!(self, "fma ");
                self.values(&[*a, *b, *c]);
            }
            Compare(p, a, b) => {
                put!(self, "{} ", predicate_name(*p));
                self.values(&[*a, *b]);
            }
            Select(c, a, b) => {
                put!(self, "select ");
                self.values(&[*c, *a, *b]);
            }
            Cast(a, ty) => {
                put!(self, "cast ");
                self.use_value(*a);
                match ty {
                    Type::Index => put!(self, " to index"),
                    Type::Scalar(d) => put!(self, " to {d}"),
                };
            }
            Bitcast(a, d) => {
                put!(self, "bitcast ");
                self.use_value(*a);
                put!(self, " to {d}");
            }
            LoadTile { tile, index } => {
                put!(self, "load ");
                self.element('t', tile.0, index);
            }
            LoadGlobal {
                param,
                index,
                guard,
            } => {
                put!(self, "load ");
                self.element('p', param.0, index);
                self.guard(*guard);
            }
            StoreTile { tile, index, value } => {
                put!(self, "store ");
                self.element('t', tile.0, index);
                put!(self, " = ");
                self.use_value(*value);
            }
            StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter,
            } => {
                put!(self, "{} ", if *scatter { "scatter" } else { "store" });
                self.element('p', param.0, index);
                put!(self, " = ");
                self.use_value(*value);
                self.guard(*guard);
            }
            Atomic {
                op,
                param,
                index,
                value,
                guard,
            } => {
                put!(self, "atomic {} ", fold_name(*op));
                self.element('p', param.0, index);
                put!(self, " = ");
                self.use_value(*value);
                self.guard(*guard);
            }
            Map { extents, body: _ } => {
                put!(self, "map {extents:?}");
            }
            Copy { dst, src, oob } => {
                put!(self, "copy ");
                self.view(dst.base, &dst.slots);
                put!(self, " <- ");
                self.view(src.base, &src.slots);
                put!(self, " oob {}", oob_name(*oob));
            }
            Dot {
                acc,
                a,
                b,
                accumulate,
            } => {
                put!(self, "dot ");
                self.view(Base::Tile(acc.tile), &acc.slots);
                put!(self, " {} ", if *accumulate { "+=" } else { "=" });
                for (i, o) in [a, b].into_iter().enumerate() {
                    if i > 0 {
                        put!(self, ", ");
                    }
                    self.view(Base::Tile(o.view.tile), &o.view.slots);
                    if o.transposed {
                        put!(self, " transposed");
                    }
                }
            }
            Reduce {
                dst,
                src,
                axis,
                op,
                order,
            } => {
                put!(
                    self,
                    "reduce t{} = {} t{} axis {axis} ",
                    dst.0,
                    fold_name(*op),
                    src.0
                );
                match order {
                    Order::Ascending => put!(self, "ascending"),
                    Order::Tree(w) => put!(self, "tree {w}"),
                };
            }
            Scan { dst, src, axis, op } => {
                put!(
                    self,
                    "scan t{} = {} t{} axis {axis}",
                    dst.0,
                    fold_name(*op),
                    src.0
                );
            }
            TopK {
                values,
                indices,
                src,
                smallest,
            } => {
                let which = if *smallest { "smallest" } else { "largest" };
                put!(
                    self,
                    "topk t{}, t{} = {which} t{}",
                    values.0,
                    indices.0,
                    src.0
                );
            }
            For {
                lo,
                hi,
                kind,
                body: _,
            } => {
                put!(self, "for ");
                self.use_value(*lo);
                put!(self, " to ");
                self.use_value(*hi);
                match kind {
                    LoopKind::Sequential => {}
                    LoopKind::Pipeline { stages: None } => put!(self, " pipeline"),
                    LoopKind::Pipeline { stages: Some(s) } => put!(self, " pipeline stages {s}"),
                };
            }
            If { cond, .. } => {
                put!(self, "if ");
                self.use_value(*cond);
            }
            ForItems { body: _ } => {
                put!(self, "items");
            }
            Assert { cond, message } => {
                put!(self, "assert ");
                self.use_value(*cond);
                put!(self, " {message:?}");
            }
            Assume { cond } => {
                put!(self, "assume ");
                self.use_value(*cond);
            }
            Print { text, args } => {
                put!(self, "print {text:?}");
                for arg in args {
                    put!(self, ", ");
                    match arg {
                        PrintArg::Value(v) => self.use_value(*v),
                        PrintArg::Tile(t) => {
                            put!(self, "t{}", t.0);
                        }
                    }
                }
            }
            Role {
                name,
                copies,
                turns,
                body: _,
            } => {
                put!(self, "role {name:?} copies {copies}");
                if *turns > 1 {
                    put!(self, " turns {turns}");
                }
            }
            Put { channel, src, oob } => {
                put!(self, "put c{} <- ", channel.0);
                self.view(src.base, &src.slots);
                put!(self, " oob {}", oob_name(*oob));
            }
            Get { channel, tile } => {
                put!(self, "get c{} as t{}", channel.0, tile.0);
            }
            Release { tile, part } => {
                put!(self, "release t{}", tile.0);
                if let Some(p) = part {
                    put!(self, " part {p}");
                }
            }
            Signal { param, index } => {
                put!(self, "signal ");
                self.element('p', param.0, index);
            }
            Wait {
                param,
                index,
                at_least,
            } => {
                put!(self, "wait ");
                self.element('p', param.0, index);
                put!(self, " >= ");
                self.use_value(*at_least);
            }
        }
    }
}
