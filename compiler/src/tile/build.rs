//! Makes tile IR: declarations, then ops in execution order into the block on top of a stack.
//!
//! ```
//! use tessera_compiler::tile::{build::Builder, ir::*};
//! use tessera_artifact::{DType, HostExpr, ParamMode};
//! let mut b = Builder::new("scale", Default::default());
//! let n = b.dim("N", 0, 1 << 20, 1);
//! let x = b.tensor("x", ParamMode::InOut, DType::F32, vec![HostExpr::dim("N")]);
//! b.grid(vec![HostExpr::dim("N")]);
//! let i = b.block_index(0);
//! let v = b.load_global(x, &[i], None);
//! let two = b.float(2.0, DType::F32);
//! let v = b.mul(v, two);
//! b.store_global(x, &[i], v, None);
//! let kernel = b.finish();
//! # let _ = n;
//! ```
//!
//! Scalar ops on constants fold at once by [`super::scalar`] (so that `kernel.const_index` sees through index arithmetic), with
//! the neutral elements of `index` arithmetic; nothing else is rewritten. Keeps: every effect, in the order it was asked for.
//! Operand types must agree ([`super::verify`] reports where they do not; the builder takes the left one's).

use super::ir::*;
use super::scalar;
use crate::source::Span;
use tessera_artifact::{DType, HostExpr, ParamMode};

pub struct Builder {
    /// What is built so far; may be read and its declarations edited at any time.
    pub kernel: Kernel,
    stack: Vec<BlockId>,
    span: Span,
    /// Constants, dims and scalars already made, by the block they stand in.
    leaves: Vec<(BlockId, OpKind, ValueId)>,
}

impl Builder {
    /// An empty kernel with a grid of one CTA; ops go to its body.
    pub fn new(name: impl Into<String>, span: Span) -> Builder {
        let kernel = Kernel {
            name: name.into(),
            docs: String::new(),
            generics: Vec::new(),
            dims: Vec::new(),
            params: Vec::new(),
            requires: Vec::new(),
            launch: Launch {
                grid: vec![HostExpr::Int(1)],
                persistent: false,
                warps: None,
                cluster: 1,
            },
            contracts: Vec::new(),
            deny: Vec::new(),
            budget: Budget::default(),
            tiles: Vec::new(),
            channels: Vec::new(),
            values: Vec::new(),
            ops: Vec::new(),
            blocks: vec![Block::default()],
            body: BlockId(0),
            span,
        };
        Builder {
            kernel,
            stack: vec![BlockId(0)],
            span,
            leaves: Vec::new(),
        }
    }

    /// Goes on at the end of `block` of a finished kernel (for passes that make new code).
    pub fn at_block(kernel: Kernel, block: BlockId) -> Builder {
        let span = kernel.span;
        Builder {
            kernel,
            stack: vec![block],
            span,
            leaves: Vec::new(),
        }
    }

    pub fn finish(self) -> Kernel {
        debug_assert_eq!(self.stack.len(), 1, "every pushed block is popped");
        self.kernel
    }

    /// The span of the ops and declarations that follow; gives the one before, to restore it.
    pub fn set_span(&mut self, span: Span) -> Span {
        std::mem::replace(&mut self.span, span)
    }

    pub fn span(&self) -> Span {
        self.span
    }

    // ---- declarations -----------------------------------------------------------------------------

    pub fn dim(&mut self, name: impl Into<String>, lo: i64, hi: i64, step: i64) -> DimId {
        self.push_dim(Dim {
            name: name.into(),
            lo,
            hi,
            step,
            scalar: None,
            span: self.span,
        })
    }

    pub fn push_dim(&mut self, dim: Dim) -> DimId {
        self.kernel.dims.push(dim);
        DimId(self.kernel.dims.len() as u32 - 1)
    }

    pub fn param(&mut self, name: impl Into<String>, kind: ParamKind) -> ParamId {
        self.kernel.params.push(Param {
            name: name.into(),
            kind,
            span: self.span,
        });
        ParamId(self.kernel.params.len() as u32 - 1)
    }

    /// A tensor with a contiguous last axis and no more than its element's alignment.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        mode: ParamMode,
        dtype: DType,
        shape: Vec<HostExpr>,
    ) -> ParamId {
        let align = dtype.bits().div_ceil(8);
        self.param(
            name,
            ParamKind::Tensor(Tensor {
                mode,
                dtype,
                shape,
                align,
                contiguous: true,
            }),
        )
    }

    /// An `index` scalar parameter with its range, and its dim.
    pub fn index_param(&mut self, name: impl Into<String>, lo: i64, hi: i64) -> DimId {
        let name = name.into();
        let param = self.param(name.clone(), ParamKind::Index);
        self.push_dim(Dim {
            name,
            lo,
            hi,
            step: 1,
            scalar: Some(param),
            span: self.span,
        })
    }

    pub fn grid(&mut self, grid: Vec<HostExpr>) {
        self.kernel.launch.grid = grid;
    }

    pub fn tile(
        &mut self,
        name: impl Into<String>,
        space: Space,
        dtype: DType,
        shape: &[u64],
    ) -> TileId {
        self.kernel.tiles.push(Tile {
            name: name.into(),
            space,
            shape: shape.to_vec(),
            dtype,
            span: self.span,
        });
        TileId(self.kernel.tiles.len() as u32 - 1)
    }

    /// A tile that the user did not name.
    pub fn temp(&mut self, dtype: DType, shape: &[u64]) -> TileId {
        self.tile("%tmp", Space::Reg, dtype, shape)
    }

    pub fn channel(&mut self, channel: Channel) -> ChannelId {
        self.kernel.channels.push(channel);
        ChannelId(self.kernel.channels.len() as u32 - 1)
    }

    // ---- blocks -------------------------------------------------------------------------------------

    /// A block that no op owns yet.
    pub fn block(&mut self, args: &[Type]) -> BlockId {
        let id = BlockId(self.kernel.blocks.len() as u32);
        let mut block = Block::default();
        for (i, &ty) in args.iter().enumerate() {
            self.kernel.values.push(Value {
                ty,
                def: Def::Arg(id, i as u32),
                name: None,
            });
            block
                .args
                .push(ValueId(self.kernel.values.len() as u32 - 1));
        }
        self.kernel.blocks.push(block);
        id
    }

    pub fn block_arg(&self, block: BlockId, i: usize) -> ValueId {
        self.kernel.block(block).args[i]
    }

    /// Ops go to the end of `block` until the matching [`Builder::pop`].
    pub fn push(&mut self, block: BlockId) {
        self.stack.push(block);
    }

    pub fn pop(&mut self) -> BlockId {
        debug_assert!(
            self.stack.len() > 1,
            "the body of the kernel is never popped"
        );
        let block = self
            .stack
            .pop()
            .expect("the stack holds the body of the kernel");
        self.leaves.retain(|(b, ..)| *b != block);
        block
    }

    pub fn current(&self) -> BlockId {
        *self
            .stack
            .last()
            .expect("the stack holds the body of the kernel")
    }

    /// Fills a new block by `f`.
    pub fn nested(&mut self, args: &[Type], f: impl FnOnce(&mut Builder, &[ValueId])) -> BlockId {
        let block = self.block(args);
        let values = self.kernel.block(block).args.clone();
        self.push(block);
        f(self, &values);
        self.pop();
        block
    }

    /// Names a value after the user's variable.
    pub fn name(&mut self, value: ValueId, name: impl Into<String>) {
        self.kernel.values[value.index()].name = Some(name.into());
    }

    // ---- ops -----------------------------------------------------------------------------------------

    /// Appends an op without a result.
    pub fn effect(&mut self, kind: OpKind) -> OpId {
        self.append(kind, None)
    }

    /// Appends an op with a result of type `ty`; folds nothing.
    pub fn value(&mut self, kind: OpKind, ty: Type) -> ValueId {
        let value = ValueId(self.kernel.values.len() as u32);
        let op = OpId(self.kernel.ops.len() as u32);
        self.kernel.values.push(Value {
            ty,
            def: Def::Op(op),
            name: None,
        });
        self.append(kind, Some(value));
        value
    }

    fn append(&mut self, kind: OpKind, result: Option<ValueId>) -> OpId {
        let op = OpId(self.kernel.ops.len() as u32);
        self.kernel.ops.push(Op {
            kind,
            result,
            span: self.span,
        });
        let block = self.current();
        self.kernel.blocks[block.index()].ops.push(op);
        op
    }

    /// An op without operands: one per enclosing block is enough.
    fn leaf(&mut self, kind: OpKind, ty: Type) -> ValueId {
        let bits = |k: &OpKind| match k {
            OpKind::Const(Const::Float(x, d)) => Some((x.to_bits(), *d)),
            _ => None,
        };
        let found = self.leaves.iter().find(|(block, k, _)| {
            *k == kind && bits(k) == bits(&kind) && self.stack.contains(block)
        });
        if let Some((.., value)) = found {
            return *value;
        }
        let value = self.value(kind.clone(), ty);
        self.leaves.push((self.current(), kind, value));
        value
    }

    pub fn constant(&mut self, c: Const) -> ValueId {
        self.leaf(OpKind::Const(c), scalar::type_of(c))
    }

    pub fn index(&mut self, i: i64) -> ValueId {
        self.constant(Const::Index(i))
    }

    /// Rounds `x` to `dtype` once.
    pub fn float(&mut self, x: f64, dtype: DType) -> ValueId {
        self.constant(scalar::float(x, dtype))
    }

    /// Wraps `i` to `dtype`.
    pub fn int(&mut self, i: i128, dtype: DType) -> ValueId {
        self.constant(scalar::int(i, dtype))
    }

    pub fn bool(&mut self, b: bool) -> ValueId {
        self.constant(Const::Bool(b))
    }

    /// 0 of any element type.
    pub fn zero(&mut self, dtype: DType) -> ValueId {
        self.constant(scalar::zero(dtype))
    }

    /// The value of a dim; a constant where its range is one number.
    pub fn dim_value(&mut self, dim: DimId) -> ValueId {
        let d = &self.kernel.dims[dim.index()];
        if d.lo == d.hi {
            let i = d.lo;
            return self.index(i);
        }
        self.leaf(OpKind::Dim(dim), Type::Index)
    }

    /// The value of a scalar parameter that is no `index`.
    pub fn scalar(&mut self, param: ParamId) -> ValueId {
        let ty = match self.kernel.param(param).kind {
            ParamKind::Scalar(dtype) => Type::Scalar(dtype),
            _ => Type::Index,
        };
        self.leaf(OpKind::Scalar(param), ty)
    }

    pub fn block_index(&mut self, axis: u8) -> ValueId {
        self.leaf(OpKind::BlockIndex(axis), Type::Index)
    }

    /// A pure scalar op, folded where its operands are constants; the result type follows from the operands.
    pub fn pure(&mut self, kind: OpKind) -> ValueId {
        if let Some(value) = self.known(&kind) {
            return value;
        }
        let ty = scalar::result_type(&kind, &|v| self.kernel.ty(v))
            .expect("callers pass pure ops with operands");
        self.value(kind, ty)
    }

    /// What a pure op gives without being computed: one of its operands or a constant.
    pub fn known(&mut self, kind: &OpKind) -> Option<ValueId> {
        if let Some(value) = self.neutral(kind) {
            return Some(value);
        }
        let c = scalar::fold(kind, &|v| self.kernel.constant(v))?;
        Some(self.constant(c))
    }

    /// `x + 0`, `x * 1`, `x / 1` … of `index` values.
    fn neutral(&mut self, kind: &OpKind) -> Option<ValueId> {
        use BinaryOp::*;
        let OpKind::Binary(op, a, b) = *kind else {
            return None;
        };
        match (op, self.kernel.const_index(a), self.kernel.const_index(b)) {
            (Add, Some(0), _) | (Mul, Some(1), _) => Some(b),
            (Add | Sub, _, Some(0)) | (Mul | Div, _, Some(1)) => Some(a),
            (Mul, Some(0), _) => Some(a),
            (Mul, _, Some(0)) => Some(b),
            (Rem, _, Some(1)) => Some(self.index(0)),
            (Sub, None, None) if a == b && self.kernel.ty(a) == Type::Index => Some(self.index(0)),
            (Min | Max, ..) if a == b && self.kernel.ty(a) == Type::Index => Some(a),
            _ => None,
        }
    }

    pub fn unary(&mut self, op: UnaryOp, a: ValueId) -> ValueId {
        self.pure(OpKind::Unary(op, a))
    }

    pub fn binary(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        self.pure(OpKind::Binary(op, a, b))
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Add, a, b)
    }

    pub fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Sub, a, b)
    }

    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Mul, a, b)
    }

    pub fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Div, a, b)
    }

    pub fn rem(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Rem, a, b)
    }

    pub fn min(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Min, a, b)
    }

    pub fn max(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Max, a, b)
    }

    pub fn and(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::And, a, b)
    }

    pub fn or(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Or, a, b)
    }

    /// `cdiv(a, b)` of `index` values, `b > 0`: `-((-a) / b)`, as `/` floors.
    pub fn cdiv(&mut self, a: ValueId, b: ValueId) -> ValueId {
        let negated = self.unary(UnaryOp::Neg, a);
        let quotient = self.div(negated, b);
        self.unary(UnaryOp::Neg, quotient)
    }

    pub fn fma(&mut self, a: ValueId, b: ValueId, c: ValueId) -> ValueId {
        self.pure(OpKind::Fma(a, b, c))
    }

    pub fn compare(&mut self, predicate: Predicate, a: ValueId, b: ValueId) -> ValueId {
        self.pure(OpKind::Compare(predicate, a, b))
    }

    pub fn select(&mut self, cond: ValueId, then: ValueId, otherwise: ValueId) -> ValueId {
        match self.kernel.constant(cond) {
            Some(Const::Bool(true)) => then,
            Some(Const::Bool(false)) => otherwise,
            _ => self.pure(OpKind::Select(cond, then, otherwise)),
        }
    }

    /// Nothing where the value has the type already.
    pub fn cast(&mut self, a: ValueId, ty: Type) -> ValueId {
        if self.kernel.ty(a) == ty {
            return a;
        }
        self.pure(OpKind::Cast(a, ty))
    }

    pub fn bitcast(&mut self, a: ValueId, dtype: DType) -> ValueId {
        if self.kernel.ty(a) == Type::Scalar(dtype) {
            return a;
        }
        self.pure(OpKind::Bitcast(a, dtype))
    }

    // ---- memory -----------------------------------------------------------------------------------------

    pub fn load_tile(&mut self, tile: TileId, index: &[ValueId]) -> ValueId {
        let ty = Type::Scalar(self.kernel.tile(tile).dtype);
        self.value(
            OpKind::LoadTile {
                tile,
                index: index.to_vec(),
            },
            ty,
        )
    }

    pub fn store_tile(&mut self, tile: TileId, index: &[ValueId], value: ValueId) -> OpId {
        self.effect(OpKind::StoreTile {
            tile,
            index: index.to_vec(),
            value,
        })
    }

    pub fn load_global(
        &mut self,
        param: ParamId,
        index: &[ValueId],
        guard: Option<ValueId>,
    ) -> ValueId {
        let dtype = self.kernel.tensor(param).map_or(DType::F32, |t| t.dtype);
        self.value(
            OpKind::LoadGlobal {
                param,
                index: index.to_vec(),
                guard,
            },
            Type::Scalar(dtype),
        )
    }

    pub fn store_global(
        &mut self,
        param: ParamId,
        index: &[ValueId],
        value: ValueId,
        guard: Option<ValueId>,
    ) -> OpId {
        self.effect(OpKind::StoreGlobal {
            param,
            index: index.to_vec(),
            value,
            guard,
            scatter: false,
        })
    }

    // ---- tile ops and control -----------------------------------------------------------------------------

    /// `f` gets the coordinates.
    pub fn map(&mut self, extents: &[u64], f: impl FnOnce(&mut Builder, &[ValueId])) -> OpId {
        let body = self.nested(&vec![Type::Index; extents.len()], f);
        self.effect(OpKind::Map {
            extents: extents.to_vec(),
            body,
        })
    }

    /// Sets every element of a tile to one value.
    pub fn fill(&mut self, tile: TileId, value: ValueId) -> OpId {
        let shape = self.kernel.tile(tile).shape.clone();
        if shape.is_empty() {
            return self.store_tile(tile, &[], value);
        }
        self.map(&shape, |b, at| {
            b.store_tile(tile, at, value);
        })
    }

    pub fn copy(&mut self, dst: View, src: View, oob: Oob) -> OpId {
        self.effect(OpKind::Copy { dst, src, oob })
    }

    pub fn dot(&mut self, acc: TileView, a: Operand, b: Operand, accumulate: bool) -> OpId {
        self.effect(OpKind::Dot {
            acc,
            a,
            b,
            accumulate,
        })
    }

    /// `f` gets the loop variable.
    pub fn for_loop(
        &mut self,
        lo: ValueId,
        hi: ValueId,
        kind: LoopKind,
        f: impl FnOnce(&mut Builder, ValueId),
    ) -> OpId {
        let body = self.nested(&[Type::Index], |b, args| f(b, args[0]));
        self.effect(OpKind::For { lo, hi, kind, body })
    }

    pub fn if_then(&mut self, cond: ValueId, f: impl FnOnce(&mut Builder)) -> OpId {
        let then = self.nested(&[], |b, _| f(b));
        self.effect(OpKind::If {
            cond,
            then,
            otherwise: None,
        })
    }

    pub fn if_else(
        &mut self,
        cond: ValueId,
        then: impl FnOnce(&mut Builder),
        otherwise: impl FnOnce(&mut Builder),
    ) -> OpId {
        let then = self.nested(&[], |b, _| then(b));
        let otherwise = Some(self.nested(&[], |b, _| otherwise(b)));
        self.effect(OpKind::If {
            cond,
            then,
            otherwise,
        })
    }

    /// `f` gets the coordinates of the item: one per grid axis.
    pub fn for_items(&mut self, f: impl FnOnce(&mut Builder, &[ValueId])) -> OpId {
        let body = self.nested(&vec![Type::Index; self.kernel.launch.grid.len()], f);
        self.effect(OpKind::ForItems { body })
    }

    /// `f` gets `copy_id`.
    pub fn role(
        &mut self,
        name: impl Into<String>,
        copies: u32,
        f: impl FnOnce(&mut Builder, ValueId),
    ) -> OpId {
        let body = self.nested(&[Type::Index], |b, args| f(b, args[0]));
        self.effect(OpKind::Role {
            name: name.into(),
            copies,
            turns: 1,
            body,
        })
    }

    pub fn assert(&mut self, cond: ValueId, message: impl Into<String>) -> OpId {
        self.effect(OpKind::Assert {
            cond,
            message: message.into(),
        })
    }

    // ---- views --------------------------------------------------------------------------------------------

    /// All of a tile.
    pub fn whole(&mut self, tile: TileId) -> TileView {
        let zero = self.index(0);
        let slots = self
            .kernel
            .tile(tile)
            .shape
            .iter()
            .map(|&len| Slot::Span { start: zero, len })
            .collect();
        TileView { tile, slots }
    }

    /// All of a tile, for `copy` and `put`.
    pub fn whole_view(&mut self, tile: TileId) -> View {
        let TileView { tile, slots } = self.whole(tile);
        View {
            base: Base::Tile(tile),
            slots,
        }
    }

    /// All of a tile as an operand of `dot`.
    pub fn operand(&mut self, tile: TileId, transposed: bool) -> Operand {
        Operand {
            view: self.whole(tile),
            transposed,
        }
    }
}
