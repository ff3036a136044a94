//! The rules of the tile IR: types, shapes, dominance, ownership of blocks, where each op may stand.
//!
//! A violation is a bug of the stage that made the IR, never of the user: [`after`] says which one, with the text. Bounds, reads of
//! unset tiles and races are not rules of the IR; `tile::analysis` proves them and the interpreter checks them.

use super::ir::*;
use super::print;
use super::scalar;
use super::visit::Access;
use std::fmt;
use tessera_artifact::{DType, ParamMode};

/// Axes of a map, tile or tensor at most.
pub const MAX_RANK: usize = 8;

#[derive(Clone, Debug)]
pub struct Violation {
    pub op: Option<OpId>,
    pub message: String,
}

/// IR that breaks a rule after a stage: a bug of that stage.
#[derive(Clone, Debug)]
pub struct Broken {
    pub stage: &'static str,
    pub violations: Vec<Violation>,
    /// The whole kernel.
    pub text: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "internal error: `{}` left tile IR that breaks its rules; please report it with this text",
            self.stage
        )?;
        for v in &self.violations {
            writeln!(f, "  {}", v.message)?;
        }
        f.write_str(&self.text)
    }
}

impl std::error::Error for Broken {}

/// Checks the IR that `stage` made.
pub fn after(stage: &'static str, kernel: &Kernel) -> Result<(), Broken> {
    verify(kernel).map_err(|violations| Broken {
        stage,
        violations,
        text: print::print(kernel),
    })
}

pub fn verify(kernel: &Kernel) -> Result<(), Vec<Violation>> {
    let mut v = Verifier {
        k: kernel,
        found: Vec::new(),
        visible: vec![false; kernel.values.len()],
        op_seen: vec![false; kernel.ops.len()],
        block_seen: vec![false; kernel.blocks.len()],
        at: None,
        role: None,
        roles: 0,
        tile_role: vec![None; kernel.tiles.len()],
    };
    v.declarations();
    if kernel.body.index() >= kernel.blocks.len() {
        v.fail("the body is no block of the kernel".into());
    } else {
        v.block(
            kernel.body,
            Place {
                top: true,
                in_map: false,
                in_items: false,
            },
        );
    }
    if v.found.is_empty() {
        Ok(())
    } else {
        Err(v.found)
    }
}

#[derive(Clone, Copy)]
struct Place {
    /// Directly in the body of the kernel.
    top: bool,
    in_map: bool,
    in_items: bool,
}

struct Verifier<'k> {
    k: &'k Kernel,
    found: Vec<Violation>,
    visible: Vec<bool>,
    op_seen: Vec<bool>,
    block_seen: Vec<bool>,
    at: Option<OpId>,
    /// Number of the role around the current op.
    role: Option<u32>,
    roles: u32,
    /// The role that uses each tile.
    tile_role: Vec<Option<Option<u32>>>,
}

impl Verifier<'_> {
    fn fail(&mut self, message: String) {
        let message = match self.at {
            Some(op) => format!("`{}`: {message}", print::op_text(self.k, op)),
            None => message,
        };
        self.found.push(Violation {
            op: self.at,
            message,
        });
    }

    fn need(&mut self, holds: bool, message: impl FnOnce() -> String) -> bool {
        if !holds {
            self.fail(message());
        }
        holds
    }

    // ---- declarations --------------------------------------------------------------------------------------

    fn declarations(&mut self) {
        let k = self.k;
        self.need((1..=3).contains(&k.launch.grid.len()), || {
            "a grid has one to three axes".into()
        });
        for t in &k.tiles {
            self.need(t.shape.len() <= MAX_RANK, || {
                format!("tile `{}` has more than {MAX_RANK} axes", t.name)
            });
            let elements = t.shape.iter().try_fold(1u64, |a, &b| a.checked_mul(b));
            self.need(elements.is_some_and(|e| e < 1 << 40), || {
                format!("tile `{}` is too large", t.name)
            });
        }
        for p in &k.params {
            if let ParamKind::Tensor(t) = &p.kind {
                self.need(t.shape.len() <= MAX_RANK, || {
                    format!("`{}` has more than {MAX_RANK} axes", p.name)
                });
            }
        }
        for d in &k.dims {
            self.need(d.lo <= d.hi && d.step >= 1, || {
                format!("dim `{}` has an empty range", d.name)
            });
            if let Some(p) = d.scalar {
                let is_index = k.params.get(p.index()).is_some_and(|p| p.kind_is_index());
                self.need(is_index, || {
                    format!("dim `{}` names a parameter that is no `index`", d.name)
                });
            }
        }
        for c in &k.channels {
            let parts = c.parts as u64;
            let divides =
                parts >= 1 && (parts == 1 || c.shape.first().is_some_and(|n| n % parts == 0));
            self.need(divides, || {
                format!("channel `{}` cannot be divided into {parts} parts", c.name)
            });
            self.need(c.slots != Some(0), || {
                format!("channel `{}` has no slot", c.name)
            });
            if let Some(r) = c.ring {
                let exists = k.channels.get(r.index()).is_some_and(|r| r.ring.is_none());
                self.need(exists, || {
                    format!("channel `{}` shares a ring that is not there", c.name)
                });
            }
        }
    }

    // ---- blocks ----------------------------------------------------------------------------------------------

    fn block(&mut self, id: BlockId, place: Place) {
        if id.index() >= self.k.blocks.len() {
            return self.fail(format!("{id:?} is no block of the kernel"));
        }
        if std::mem::replace(&mut self.block_seen[id.index()], true) {
            return self.fail(format!("{id:?} belongs to two ops"));
        }
        let block = self.k.block(id);
        for (i, &arg) in block.args.iter().enumerate() {
            let v = self.k.values.get(arg.index());
            let right = v.is_some_and(|v| v.def == Def::Arg(id, i as u32) && v.ty == Type::Index);
            if self.need(right, || {
                format!("argument {i} of {id:?} is not defined by it as an index")
            }) {
                self.visible[arg.index()] = true;
            }
        }
        let mut defined: Vec<ValueId> = block.args.clone();
        for &op in &block.ops {
            if op.index() >= self.k.ops.len() {
                self.fail(format!("{op:?} is no op of the kernel"));
                continue;
            }
            let outer = self.at.replace(op);
            self.op(op, place);
            self.at = outer;
            if let Some(v) = self
                .k
                .op(op)
                .result
                .filter(|v| v.index() < self.visible.len())
            {
                self.visible[v.index()] = true;
                defined.push(v);
            }
        }
        for v in defined {
            if let Some(seen) = self.visible.get_mut(v.index()) {
                *seen = false;
            }
        }
    }

    fn op(&mut self, id: OpId, place: Place) {
        let op = self.k.op(id);
        if std::mem::replace(&mut self.op_seen[id.index()], true) {
            return self.fail("stands in two places".into());
        }
        let mut undefined = Vec::new();
        op.kind.for_each_value(&mut |v| {
            if !self.visible.get(v.index()).copied().unwrap_or(false) {
                undefined.push(v);
            }
        });
        if !self.need(undefined.is_empty(), || {
            format!("{undefined:?} is used where it is not defined")
        }) {
            return;
        }
        if !self.ids_exist(&op.kind) {
            return;
        }
        self.result(id, op);
        self.placement(&op.kind, place);
        self.tiles_of_one_role(&op.kind);
        self.rules(&op.kind);
        self.inner_blocks(&op.kind, place);
    }

    fn ids_exist(&mut self, kind: &OpKind) -> bool {
        let (mut tiles, mut params) = (true, true);
        kind.for_each_tile(&mut |t, _| tiles &= t.index() < self.k.tiles.len());
        kind.for_each_tensor(&mut |p, _| {
            params &= self.k.params.get(p.index()).is_some_and(|p| p.is_tensor())
        });
        let others = match kind {
            OpKind::Dim(d) => d.index() < self.k.dims.len(),
            OpKind::Scalar(p) => self
                .k
                .params
                .get(p.index())
                .is_some_and(|p| matches!(p.kind, ParamKind::Scalar(_))),
            OpKind::Put { channel, .. } | OpKind::Get { channel, .. } => {
                channel.index() < self.k.channels.len()
            }
            _ => true,
        };
        self.need(tiles, || "names a tile that is not there".into())
            & self.need(params, || "names a parameter that is no tensor".into())
            & self.need(others, || "names something that is not there".into())
    }

    fn result(&mut self, id: OpId, op: &Op) {
        let k = self.k;
        let wanted = match &op.kind {
            OpKind::Scalar(p) => match k.param(*p).kind {
                ParamKind::Scalar(d) => Some(Type::Scalar(d)),
                _ => None,
            },
            OpKind::LoadTile { tile, .. } => Some(Type::Scalar(k.tile(*tile).dtype)),
            OpKind::LoadGlobal { param, .. } => k.tensor(*param).map(|t| Type::Scalar(t.dtype)),
            kind => scalar::result_type(kind, &|v| k.ty(v)),
        };
        match (wanted, op.result) {
            (None, None) => {}
            (Some(ty), Some(v)) => {
                let value = k.values.get(v.index());
                let right = value.is_some_and(|v| v.ty == ty && v.def == Def::Op(id));
                self.need(right, || {
                    format!("its result is not a {ty:?} defined by it")
                });
            }
            (Some(_), None) => self.fail("has no result".into()),
            (None, Some(_)) => self.fail("has a result".into()),
        }
    }

    fn placement(&mut self, kind: &OpKind, place: Place) {
        if place.in_map {
            self.need(kind.is_scalar(), || "only scalar ops stand in a map".into());
        }
        match kind {
            OpKind::Role { .. } => {
                self.need(place.top, || "a role stands at the top of the body".into());
            }
            OpKind::ForItems { .. } => {
                let right = self.k.launch.persistent && !place.in_items;
                self.need(right, || {
                    "a loop over items needs a persistent launch and is not nested".into()
                });
            }
            OpKind::BlockIndex(axis) => {
                self.need((*axis as usize) < self.k.launch.grid.len(), || {
                    "the grid has no such axis".into()
                });
                let right = !self.k.launch.persistent || place.in_items;
                self.need(right, || {
                    "in a persistent kernel items have coordinates, CTAs have none".into()
                });
            }
            OpKind::Put { .. } | OpKind::Get { .. } | OpKind::Release { .. } => {
                self.need(self.role.is_some(), || "stands in a role".into());
            }
            kind if place.top && self.roles > 0 => {
                self.need(kind.is_pure(), || "nothing but roles follows a role".into());
            }
            _ => {}
        }
    }

    fn tiles_of_one_role(&mut self, kind: &OpKind) {
        let mut shared = false;
        let role = self.role;
        kind.for_each_tile(&mut |t, _| {
            let owner = self.tile_role[t.index()].get_or_insert(role);
            shared |= *owner != role;
        });
        self.need(!shared, || "uses a tile of another role".into());
    }

    fn inner_blocks(&mut self, kind: &OpKind, place: Place) {
        let args = match kind {
            OpKind::Map { extents, .. } => extents.len(),
            OpKind::For { .. } | OpKind::Role { .. } => 1,
            OpKind::ForItems { .. } => self.k.launch.grid.len(),
            _ => 0,
        };
        let inner = Place {
            top: false,
            in_map: place.in_map || matches!(kind, OpKind::Map { .. }),
            in_items: place.in_items || matches!(kind, OpKind::ForItems { .. }),
        };
        let outer = self.role;
        if let OpKind::Role { .. } = kind {
            self.role = Some(self.roles);
            self.roles += 1;
        }
        for block in kind.blocks() {
            if let Some(b) = self.k.blocks.get(block.index()) {
                let found = b.args.len();
                self.need(found == args, || {
                    format!("its block has {found} arguments instead of {args}")
                });
            }
            self.block(block, inner);
        }
        self.role = outer;
    }

    // ---- one op ----------------------------------------------------------------------------------------------------

    fn rules(&mut self, kind: &OpKind) {
        use OpKind::*;
        let k = self.k;
        match kind {
            Const(c) => {
                if let super::ir::Const::Float(x, d) = c {
                    let exact = d.is_float()
                        && matches!(scalar::float(*x, *d), super::ir::Const::Float(y, _) if y.to_bits() == x.to_bits() || (x.is_nan() && y.is_nan()));
                    self.need(exact, || "a constant is not exact in its type".into());
                }
                if let super::ir::Const::Int(i, d) = c {
                    let exact = d.is_int()
                        && matches!(scalar::int(*i, *d), super::ir::Const::Int(j, _) if j == *i);
                    self.need(exact, || "a constant is not exact in its type".into());
                }
            }
            Scalar(_) | Dim(_) | BlockIndex(_) => {}
            Unary(op, a) => {
                let ty = k.ty(*a);
                let right = match op {
                    UnaryOp::Neg | UnaryOp::Abs => ty == Type::Index || is_arithmetic(ty),
                    UnaryOp::Not => ty == Type::BOOL || is_int(ty),
                    UnaryOp::IsNan => is_float(ty),
                    _ => is_float(ty) && is_arithmetic(ty),
                };
                self.need(right, || format!("no such op on {ty:?}"));
            }
            Binary(op, a, b) => self.binary(*op, k.ty(*a), k.ty(*b)),
            Fma(a, b, c) => {
                let ty = k.ty(*a);
                let right = ty == k.ty(*b) && ty == k.ty(*c) && is_float(ty) && is_arithmetic(ty);
                self.need(right, || "three floats of one type".into());
            }
            Compare(p, a, b) => {
                let ty = k.ty(*a);
                let equality = matches!(p, Predicate::Eq | Predicate::Ne);
                let right = ty == k.ty(*b)
                    && (ty == Type::Index || is_arithmetic(ty) || (equality && ty == Type::BOOL));
                self.need(right, || {
                    format!("cannot compare {ty:?} with {:?}", k.ty(*b))
                });
            }
            Select(c, a, b) => {
                self.need(k.ty(*c) == Type::BOOL && k.ty(*a) == k.ty(*b), || {
                    "a bool and two values of one type".into()
                });
            }
            Cast(a, ty) => {
                let float_to_index = *ty == Type::Index && is_float(k.ty(*a));
                self.need(!float_to_index, || {
                    "a float becomes an index by way of an integer".into()
                });
            }
            Bitcast(a, d) => {
                let right = matches!(k.ty(*a), Type::Scalar(from) if scalar::same_width(from, *d))
                    && *d != DType::Bool
                    && k.ty(*a) != Type::BOOL;
                self.need(right, || {
                    "a bitcast keeps the width and is not of bool".into()
                });
            }
            LoadTile { tile, index } => self.tile_index(*tile, index),
            StoreTile { tile, index, value } => {
                self.tile_index(*tile, index);
                let right = k.ty(*value) == Type::Scalar(k.tile(*tile).dtype);
                self.need(right, || "the value has another type than the tile".into());
                self.need(k.tile(*tile).space != Space::Slot, || {
                    "a slot is read only".into()
                });
            }
            LoadGlobal {
                param,
                index,
                guard,
            } => self.global_index(*param, index, *guard),
            StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter: _,
            } => {
                self.global_index(*param, index, *guard);
                self.stored_value(*param, *value);
            }
            Atomic {
                op,
                param,
                index,
                value,
                guard,
            } => {
                self.global_index(*param, index, *guard);
                self.stored_value(*param, *value);
                self.fold_type(*op, k.ty(*value));
                let mode = k.tensor(*param).map(|t| t.mode);
                self.need(mode != Some(ParamMode::Out), || {
                    "an atomic reads what it changes: not of an `out`".into()
                });
            }
            Map { extents, body: _ } => {
                self.need((1..=MAX_RANK).contains(&extents.len()), || {
                    format!("a map has 1 to {MAX_RANK} axes")
                });
                let points = extents.iter().try_fold(1u64, |a, &b| a.checked_mul(b));
                self.need(points.is_some_and(|p| p < 1 << 40), || {
                    "a map over too many points".into()
                });
            }
            Copy { dst, src, oob: _ } => {
                self.view(dst);
                self.view(src);
                self.need(dst.shape() == src.shape(), || {
                    format!("copies {:?} to {:?}", src.shape(), dst.shape())
                });
                self.need(dst.base != src.base, || {
                    "copies a tile or tensor to itself".into()
                });
                self.writable(dst.base);
                self.widens(self.base_dtype(src.base), self.base_dtype(dst.base));
            }
            Dot {
                acc,
                a,
                b,
                accumulate: _,
            } => self.dot(acc, a, b),
            Reduce {
                dst,
                src,
                axis,
                op,
                order,
            } => {
                let (d, s) = (k.tile(*dst), k.tile(*src));
                let mut shape = s.shape.clone();
                if self.need((*axis as usize) < shape.len(), || "no such axis".into()) {
                    shape.remove(*axis as usize);
                    self.need(d.shape == shape, || {
                        format!("the result has shape {shape:?}")
                    });
                }
                self.need(d.dtype == s.dtype, || {
                    "source and result have one type".into()
                });
                self.fold_type(*op, Type::Scalar(s.dtype));
                if let Order::Tree(w) = order {
                    self.need(w.is_power_of_two(), || {
                        "the width of a tree is a power of two".into()
                    });
                }
                self.need(dst != src, || "source and result are two tiles".into());
            }
            Scan { dst, src, axis, op } => {
                let (d, s) = (k.tile(*dst), k.tile(*src));
                self.need((*axis as usize) < s.shape.len(), || "no such axis".into());
                self.need(d.shape == s.shape && d.dtype == s.dtype, || {
                    "source and result are alike".into()
                });
                self.fold_type(*op, Type::Scalar(s.dtype));
                self.need(dst != src, || "source and result are two tiles".into());
            }
            TopK {
                values,
                indices,
                src,
                smallest: _,
            } => {
                let (v, i, s) = (k.tile(*values), k.tile(*indices), k.tile(*src));
                let right = !s.shape.is_empty()
                    && v.shape.len() == s.shape.len()
                    && v.shape[..s.shape.len() - 1] == s.shape[..s.shape.len() - 1]
                    && v.shape.last() <= s.shape.last();
                self.need(right, || "takes at most all of the last axis".into());
                self.need(i.shape == v.shape && i.dtype == DType::I32, || {
                    "indices are i32, as many as values".into()
                });
                self.need(v.dtype == s.dtype && s.dtype.has_arithmetic(), || {
                    "values have the type of the source".into()
                });
                let distinct = values != indices && values != src && indices != src;
                self.need(distinct, || "source and results are three tiles".into());
            }
            For { lo, hi, .. } => {
                self.need(k.ty(*lo) == Type::Index && k.ty(*hi) == Type::Index, || {
                    "loop bounds are index values".into()
                });
            }
            If { cond, .. } | Assert { cond, .. } | Assume { cond } => {
                self.need(k.ty(*cond) == Type::BOOL, || "a condition is a bool".into());
            }
            ForItems { .. } => {}
            Print { .. } => {}
            Role { copies, .. } => {
                self.need(*copies >= 1, || "a role has a copy".into());
            }
            Put {
                channel,
                src,
                oob: _,
            } => {
                let c = &k.channels[channel.index()];
                self.view(src);
                self.need(src.shape() == c.shape, || {
                    "the view has the shape of the channel".into()
                });
                self.widens(self.base_dtype(src.base), c.dtype);
            }
            Get { channel, tile } => {
                let (c, t) = (&k.channels[channel.index()], k.tile(*tile));
                let right = t.space == Space::Slot && t.shape == c.shape && t.dtype == c.dtype;
                self.need(right, || {
                    "binds a slot tile of the channel's shape and type".into()
                });
            }
            Release { tile, part } => {
                self.need(k.tile(*tile).space == Space::Slot, || {
                    "gives back a slot".into()
                });
                if let Some(part) = part {
                    let most = k.channels.iter().map(|c| c.parts).max().unwrap_or(0);
                    self.need(*part < most, || "no such part".into());
                }
            }
            Signal { param, index } => {
                self.global_index(*param, index, None);
                self.flag(*param);
            }
            Wait {
                param,
                index,
                at_least,
            } => {
                self.global_index(*param, index, None);
                self.flag(*param);
                self.need(k.ty(*at_least) == Type::Index, || {
                    "waits for an index value".into()
                });
            }
        }
        let mut written_slot = false;
        if !matches!(kind, Get { .. } | Release { .. }) {
            kind.for_each_tile(&mut |t, access| {
                written_slot |= access == Access::Write && k.tile(t).space == Space::Slot;
            });
        }
        self.need(!written_slot, || "a slot is read only".into());
    }

    fn binary(&mut self, op: BinaryOp, a: Type, b: Type) {
        use BinaryOp::*;
        let right = a == b
            && match op {
                Add | Sub | Mul | Div | Min | Max => a == Type::Index || is_arithmetic(a),
                Rem => a == Type::Index || is_int(a),
                And | Or | Xor => a == Type::Index || a == Type::BOOL || is_int(a),
                Shl | Shr => a == Type::Index || is_int(a),
                Pow => is_float(a) && is_arithmetic(a),
            };
        self.need(right, || format!("no such op on {a:?} and {b:?}"));
    }

    fn fold_type(&mut self, op: FoldOp, ty: Type) {
        let right = match op {
            FoldOp::Sum | FoldOp::Prod | FoldOp::Max | FoldOp::Min => is_arithmetic(ty),
            FoldOp::And | FoldOp::Or => ty == Type::BOOL || is_int(ty),
        };
        self.need(right, || format!("cannot fold {ty:?} like this"));
    }

    fn tile_index(&mut self, tile: TileId, index: &[ValueId]) {
        let rank = self.k.tile(tile).shape.len();
        self.need(index.len() == rank, || format!("the tile has {rank} axes"));
        self.indices(index);
    }

    fn global_index(&mut self, param: ParamId, index: &[ValueId], guard: Option<ValueId>) {
        let rank = self.k.tensor(param).map_or(0, |t| t.shape.len());
        self.need(index.len() == rank, || {
            format!("the tensor has {rank} axes")
        });
        self.indices(index);
        if let Some(g) = guard {
            self.need(self.k.ty(g) == Type::BOOL, || "a guard is a bool".into());
        }
    }

    fn indices(&mut self, index: &[ValueId]) {
        let right = index.iter().all(|&v| self.k.ty(v) == Type::Index);
        self.need(right, || "elements are chosen by index values".into());
    }

    fn stored_value(&mut self, param: ParamId, value: ValueId) {
        self.writable(Base::Param(param));
        let dtype = self.base_dtype(Base::Param(param));
        self.need(self.k.ty(value) == Type::Scalar(dtype), || {
            "the value has another type than the tensor".into()
        });
    }

    fn flag(&mut self, param: ParamId) {
        let right = self.k.tensor(param).is_some_and(|t| {
            t.mode == ParamMode::Flags && matches!(t.dtype, DType::I32 | DType::U32)
        });
        self.need(right, || {
            "signals and waits are of `flags` of i32 or u32".into()
        });
    }

    fn writable(&mut self, base: Base) {
        if let Base::Param(p) = base {
            let mode = self.k.tensor(p).map(|t| t.mode);
            self.need(mode != Some(ParamMode::In), || {
                "writes an `in` parameter".into()
            });
        }
    }

    fn base_dtype(&self, base: Base) -> DType {
        match base {
            Base::Tile(t) => self.k.tile(t).dtype,
            Base::Param(p) => self.k.tensor(p).map_or(DType::F32, |t| t.dtype),
        }
    }

    fn widens(&mut self, from: DType, to: DType) {
        self.need(from.widens_to(to), || {
            format!("{from} does not widen to {to}")
        });
    }

    fn view(&mut self, view: &View) {
        match view.base {
            Base::Tile(t) => {
                let shape = &self.k.tile(t).shape;
                if self.need(view.slots.len() == shape.len(), || {
                    format!("the tile has {} axes", shape.len())
                }) {
                    for (slot, &extent) in view.slots.iter().zip(shape) {
                        if let Slot::Span { len, .. } = slot {
                            self.need(*len <= extent, || {
                                format!("a span of {len} in an axis of {extent}")
                            });
                        }
                    }
                }
            }
            Base::Param(p) => {
                let rank = self.k.tensor(p).map_or(0, |t| t.shape.len());
                self.need(view.slots.len() == rank, || {
                    format!("the tensor has {rank} axes")
                });
            }
        }
        for slot in &view.slots {
            match slot {
                Slot::At(v) | Slot::Span { start: v, len: _ } => self.indices(&[*v]),
                Slot::Gather { index, len } => {
                    let flat = index
                        .slots
                        .iter()
                        .all(|s| !matches!(s, Slot::Gather { .. }));
                    self.need(flat && index.shape() == [*len], || {
                        "gathers by a vector of as many indices".into()
                    });
                    let dtype = self.base_dtype(index.base);
                    self.need(dtype.is_int(), || {
                        format!("gathers by {dtype}, which is no integer")
                    });
                    self.view(index);
                }
            }
        }
    }

    fn dot(&mut self, acc: &TileView, a: &Operand, b: &Operand) {
        for view in [acc, &a.view, &b.view] {
            self.view(&View {
                base: Base::Tile(view.tile),
                slots: view.slots.clone(),
            });
            let flat = view.slots.iter().all(|s| !matches!(s, Slot::Gather { .. }));
            self.need(flat, || "a dot takes rectangles".into());
        }
        let shape = |o: &Operand| {
            let mut s = o.view.shape();
            if o.transposed {
                s.reverse();
            }
            s
        };
        let (sa, sb, sc) = (shape(a), shape(b), acc.shape());
        let fits = sa.len() == 2 && sb.len() == 2 && sa[1] == sb[0] && sc == [sa[0], sb[1]];
        self.need(fits, || format!("{sa:?} times {sb:?} does not give {sc:?}"));
        let (da, db, dc) = (
            self.k.tile(a.view.tile).dtype,
            self.k.tile(b.view.tile).dtype,
            self.k.tile(acc.tile).dtype,
        );
        let small = |d| matches!(d, DType::E4M3 | DType::E5M2 | DType::E2M1);
        let types = match dc {
            DType::F64 => da == DType::F64 && db == DType::F64,
            DType::I32 => [da, db].iter().all(|d| matches!(d, DType::I8 | DType::U8)),
            DType::F32 => {
                (da == db && matches!(da, DType::F32 | DType::Tf32 | DType::BF16 | DType::F16))
                    || (small(da) && small(db))
            }
            _ => false,
        };
        self.need(types, || format!("{da} times {db} into {dc}"));
        self.need(acc.tile != a.view.tile && acc.tile != b.view.tile, || {
            "the accumulator is an operand".into()
        });
    }
}

impl Param {
    fn is_tensor(&self) -> bool {
        matches!(self.kind, ParamKind::Tensor(_))
    }

    fn kind_is_index(&self) -> bool {
        matches!(self.kind, ParamKind::Index)
    }
}

fn is_arithmetic(ty: Type) -> bool {
    matches!(ty, Type::Scalar(d) if d.has_arithmetic())
}

fn is_int(ty: Type) -> bool {
    matches!(ty, Type::Scalar(d) if d.is_int())
}

fn is_float(ty: Type) -> bool {
    matches!(ty, Type::Scalar(d) if d.is_float())
}
