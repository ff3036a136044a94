//! The walk over a kernel body: [`stmt`] statements, [`expr`] scalars and operators, [`view`] indexing and rectangles,
//! [`tile`] tile-valued expressions, [`builtin`] built-in functions, [`role`] roles and channels.

mod builtin;
mod call;
mod control;
mod dot;
mod expr;
mod fold;
mod memory;
mod role;
mod stmt;
mod tile;
mod view;

pub use builtin::is_builtin;

use super::constant::{self, Const};
use super::evaluate::{self, Evaluator, Static};
use super::header;
use super::instances::Instance;
use super::program::{Entry, Program, nearest, path_text};
use crate::diag::catalogue::sema as say;
use crate::diag::{Diagnostic, Severity, Sink};
use crate::source::Span;
use crate::syntax::ast::{self, Ident};
use crate::tile::ir::{
    self, BlockId, ChannelId, Def, Kernel, OpKind, ParamId, TileId, Type, ValueId,
};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use tessera_artifact::DType;
use tile::TileExpr;

/// What a name stands for.
#[derive(Clone, Debug)]
enum Binding {
    /// Reported already; its uses stay silent.
    Error,
    Const(Const),
    Value(ValueId),
    /// `let mut`: a tile of rank 0. `index` cells are held as i64.
    Cell {
        tile: TileId,
        index: bool,
    },
    Tile {
        tile: TileId,
        mutable: bool,
    },
    Param(ParamId),
    Channel(ChannelId),
    /// A record of a work list: row `row` of the tensor.
    Record {
        param: ParamId,
        row: ValueId,
    },
}

/// The value of an expression.
#[derive(Clone, Debug)]
enum Term {
    Error,
    Const(Const),
    Scalar(ValueId),
    /// Elementwise over a shape; nothing is computed until it is stored somewhere.
    Tile(TileExpr),
}

struct Named {
    name: String,
    binding: Binding,
    span: Span,
    /// What to call it in a warning if nothing uses it.
    warn: Option<&'static str>,
    used: Cell<bool>,
}

/// One block that is being filled.
struct Frame {
    block: BlockId,
    /// Cheap pure ops that need no second copy in the blocks inside this one.
    known: Vec<(OpKind, ValueId)>,
}

struct Lower<'p, 'a, 's> {
    program: &'p Program<'a>,
    cx: Evaluator<'p, 'a>,
    module: usize,
    sink: &'s mut Sink,
    k: Kernel,
    frames: Vec<Frame>,
    scopes: Vec<Vec<Named>>,
    /// Scopes below this one belong to the caller of the function being inlined.
    floor: usize,
    /// The map we are in; tile-valued expressions and statements are errors there.
    in_map: Option<Span>,
    /// Loads happen only where this holds.
    guard: Option<ValueId>,
    /// Functions being inlined: module, name, call.
    calls: Vec<(usize, String, Span)>,
    /// Inside `role`: the span of its name.
    role: Option<Span>,
    has_roles: bool,
    in_items: bool,
    /// The role that first used a tile; `None`: the top of the kernel.
    owners: BTreeMap<TileId, Option<Span>>,
    used_generics: BTreeSet<String>,
    /// Names in the extents of a tile's declaration, for messages.
    shape_names: BTreeMap<TileId, Vec<String>>,
    /// The channel behind each tile that `get` bound.
    slots: BTreeMap<TileId, ChannelId>,
    /// Extents of the maps whose bodies are being filled.
    map_extents: BTreeMap<BlockId, Vec<u64>>,
}

pub(super) fn kernel(
    program: &Program,
    kernel: usize,
    instance: &Instance,
    sink: &mut Sink,
) -> Kernel {
    let (k, cx) = header::build(program, kernel, instance, sink);
    let item = &program.kernels[kernel];
    let mut lower = Lower {
        program,
        cx,
        module: item.module,
        sink,
        k,
        frames: vec![],
        scopes: vec![vec![]],
        floor: 0,
        in_map: None,
        guard: None,
        calls: vec![],
        role: None,
        has_roles: false,
        in_items: false,
        owners: BTreeMap::new(),
        used_generics: BTreeSet::new(),
        shape_names: BTreeMap::new(),
        slots: BTreeMap::new(),
        map_extents: BTreeMap::new(),
    };
    let body = lower.new_block();
    lower.k.body = body;
    lower.frames.push(Frame {
        block: body,
        known: vec![],
    });
    lower.bind_params();
    lower.block(&item.ast.body);
    lower.pop_scope();
    let used = lower.used_generics;
    header::unused_generics(item.ast, &|n| used.contains(n), lower.sink);
    lower.k
}

impl<'p, 'a, 's> Lower<'p, 'a, 's> {
    fn bind_params(&mut self) {
        let params: Vec<_> = self
            .k
            .params
            .iter()
            .enumerate()
            .map(|(i, p)| (ParamId(i as u32), p.name.clone(), p.kind.clone(), p.span))
            .collect();
        for (id, name, kind, span) in params {
            let binding = match kind {
                ir::ParamKind::Tensor(_) => Binding::Param(id),
                ir::ParamKind::Scalar(dtype) => {
                    let v = self.pure(OpKind::Scalar(id), Type::Scalar(dtype), span);
                    self.name_value(v, &name);
                    Binding::Value(v)
                }
                // Found as a dim.
                ir::ParamKind::Index => continue,
            };
            self.declare_text(name, span, binding, Some("parameter"));
        }
        // Scalars that nothing reads leave no op behind: see `finish` of the dead-value pass; dims come on demand.
        self.scopes.push(vec![]);
    }

    // ---- diagnostics -----------------------------------------------------------------------------

    /// Reports, with the call if the place is inside an inlined function.
    fn report(&mut self, d: Diagnostic) {
        let d = match self.calls.last() {
            Some((_, name, span)) if d.severity == Severity::Error => {
                d.also(*span, format!("in this call of `{name}`"))
            }
            _ => d,
        };
        self.sink.report(d);
    }

    // ---- emission ----------------------------------------------------------------------------------

    fn new_block(&mut self) -> BlockId {
        self.k.blocks.push(ir::Block::default());
        BlockId(self.k.blocks.len() as u32 - 1)
    }

    fn block_arg(&mut self, block: BlockId, name: Option<&str>) -> ValueId {
        let n = self.k.blocks[block.index()].args.len() as u32;
        self.k.values.push(ir::Value {
            ty: Type::Index,
            def: Def::Arg(block, n),
            name: name.map(str::to_string),
        });
        let v = ValueId(self.k.values.len() as u32 - 1);
        self.k.blocks[block.index()].args.push(v);
        v
    }

    /// Runs `f` with `block` as the current one and a scope of its own.
    fn inside<R>(&mut self, block: BlockId, f: impl FnOnce(&mut Self) -> R) -> R {
        self.frames.push(Frame {
            block,
            known: vec![],
        });
        self.scopes.push(vec![]);
        let r = f(self);
        self.pop_scope();
        self.frames.pop();
        r
    }

    fn push_op(&mut self, kind: OpKind, result: Option<ValueId>, span: Span) -> ir::OpId {
        self.k.ops.push(ir::Op { kind, result, span });
        let id = ir::OpId(self.k.ops.len() as u32 - 1);
        let block = self.current_block();
        self.k.blocks[block.index()].ops.push(id);
        id
    }

    fn current_block(&self) -> BlockId {
        // The kernel's own frame is never popped.
        self.frames.last().expect("the kernel's frame").block
    }

    fn effect(&mut self, kind: OpKind, span: Span) {
        self.push_op(kind, None, span);
    }

    fn op(&mut self, kind: OpKind, ty: Type, span: Span) -> ValueId {
        let v = ValueId(self.k.values.len() as u32);
        self.k.values.push(ir::Value {
            ty,
            def: Def::Op(ir::OpId(self.k.ops.len() as u32)),
            name: None,
        });
        self.push_op(kind, Some(v), span);
        v
    }

    /// An op that need not be repeated where an equal one is in reach.
    fn pure(&mut self, kind: OpKind, ty: Type, span: Span) -> ValueId {
        // 0.0 == -0.0 and NaN != NaN, so floats would need their own comparison; they are not worth it.
        if matches!(kind, OpKind::Const(ir::Const::Float(..))) {
            return self.op(kind, ty, span);
        }
        for frame in self.frames.iter().rev() {
            if let Some((_, v)) = frame.known.iter().find(|(k, _)| *k == kind) {
                return *v;
            }
        }
        let v = self.op(kind.clone(), ty, span);
        if let Some(frame) = self.frames.last_mut() {
            frame.known.push((kind, v));
        }
        v
    }

    fn index_const(&mut self, i: i64, span: Span) -> ValueId {
        self.pure(OpKind::Const(ir::Const::Index(i)), Type::Index, span)
    }

    fn bool_const(&mut self, b: bool, span: Span) -> ValueId {
        self.pure(OpKind::Const(ir::Const::Bool(b)), Type::BOOL, span)
    }

    fn const_index(&self, v: ValueId) -> Option<i64> {
        match self.k.def(v) {
            Some(OpKind::Const(ir::Const::Index(i))) => Some(*i),
            _ => None,
        }
    }

    /// Index arithmetic with the constant cases folded, so that views of constant place stay readable.
    fn index_binary(&mut self, op: ir::BinaryOp, a: ValueId, b: ValueId, span: Span) -> ValueId {
        use ir::BinaryOp::*;
        match (op, self.const_index(a), self.const_index(b)) {
            (Add | Sub, _, Some(0)) => return a,
            (Add, Some(0), _) => return b,
            (Mul | Div, _, Some(1)) => return a,
            (Mul, Some(1), _) => return b,
            (Mul, _, Some(0)) => return b,
            (Mul, Some(0), _) => return a,
            (Add, Some(x), Some(y)) if x.checked_add(y).is_some() => {
                return self.index_const(x + y, span);
            }
            (Mul, Some(x), Some(y)) if x.checked_mul(y).is_some() => {
                return self.index_const(x * y, span);
            }
            _ => {}
        }
        self.pure(OpKind::Binary(op, a, b), Type::Index, span)
    }

    fn name_value(&mut self, v: ValueId, name: &str) {
        let slot = &mut self.k.values[v.index()].name;
        if slot.is_none() {
            *slot = Some(name.to_string());
        }
    }

    fn new_tile(
        &mut self,
        name: &str,
        space: ir::Space,
        shape: Vec<u64>,
        dtype: DType,
        span: Span,
    ) -> TileId {
        self.k.tiles.push(ir::Tile {
            name: name.to_string(),
            space,
            shape,
            dtype,
            span,
        });
        TileId(self.k.tiles.len() as u32 - 1)
    }

    fn temporary(&mut self, shape: Vec<u64>, dtype: DType, span: Span) -> TileId {
        self.new_tile("%tmp", ir::Space::Reg, shape, dtype, span)
    }

    // ---- names --------------------------------------------------------------------------------------

    fn declare(&mut self, name: &Ident, binding: Binding, warn: Option<&'static str>) {
        let scope = self.scopes.last().expect("a scope is open");
        if let Some(before) = scope.iter().find(|n| n.name == name.name) {
            let d = say::duplicate_name(name, before.span, "name");
            self.report(d);
        }
        self.declare_text(name.name.clone(), name.span, binding, warn);
    }

    fn declare_text(
        &mut self,
        name: String,
        span: Span,
        binding: Binding,
        warn: Option<&'static str>,
    ) {
        let warn = warn.filter(|_| !name.starts_with('_') && self.calls.is_empty());
        self.scopes
            .last_mut()
            .expect("a scope is open")
            .push(Named {
                name,
                binding,
                span,
                warn,
                used: Cell::new(false),
            });
    }

    fn pop_scope(&mut self) {
        for named in self.scopes.pop().into_iter().flatten() {
            if let Some(kind) = named.warn
                && !named.used.get()
                && !matches!(named.binding, Binding::Error)
            {
                self.sink
                    .report(say::unused_name(named.span, &named.name, kind));
            }
        }
    }

    fn find_local(&self, name: &str) -> Option<Binding> {
        let scopes = self.scopes[self.floor..].iter().rev();
        for scope in scopes {
            if let Some(named) = scope.iter().rev().find(|n| n.name == name) {
                named.used.set(true);
                return Some(named.binding.clone());
            }
        }
        None
    }

    /// A tile belongs to the role that uses it first.
    fn of_this_role(&mut self, b: Binding, span: Span) -> Binding {
        let (Binding::Tile { tile, .. } | Binding::Cell { tile, .. }) = b else {
            return b;
        };
        if *self.owners.entry(tile).or_insert(self.role) == self.role {
            return b;
        }
        let t = self.k.tile(tile);
        let d = say::tile_of_two_roles(span, &t.name, t.span);
        self.report(d);
        Binding::Error
    }

    /// What a path stands for; an unknown name is reported.
    fn resolve(&mut self, path: &ast::Path) -> Binding {
        if let [one] = path.segments.as_slice() {
            if let Some(b) = self.find_local(&one.name) {
                return self.of_this_role(b, path.span);
            }
            match self.cx.get(&one.name) {
                Some(Static::Const(c)) => {
                    self.used_generics.insert(one.name.clone());
                    return Binding::Const(c.clone());
                }
                Some(Static::Host(..)) if self.calls.is_empty() => {
                    if let Some(id) = self.k.dims.iter().position(|d| d.name == one.name) {
                        let d = &self.k.dims[id];
                        if d.lo == d.hi {
                            return Binding::Const(Const::Int(d.lo as i128));
                        }
                        let kind = OpKind::Dim(ir::DimId(id as u32));
                        let v = self.pure(kind, Type::Index, path.span);
                        self.name_value(v, &one.name);
                        return Binding::Value(v);
                    }
                }
                Some(Static::Error) => return Binding::Error,
                _ => {}
            }
            if let Some(x) = constant::builtin_constant(&one.name) {
                return Binding::Const(Const::Float(x));
            }
        }
        match self.program.find(self.module, &path.segments) {
            Some((home, Entry::Const(c))) => match self.program.constant(home, c) {
                Static::Const(c) => Binding::Const(c),
                _ => Binding::Error,
            },
            Some((_, other)) => {
                let name = path_text(path);
                self.report(say::item_is_no_value(path.span, &name, other.kind()));
                Binding::Error
            }
            None => {
                let name = path_text(path);
                let d = {
                    let locals = self.scopes[self.floor..].iter().flatten();
                    let known = locals
                        .map(|n| n.name.as_str())
                        .chain(self.k.dims.iter().map(|d| d.name.as_str()))
                        .chain(self.k.generics.iter().map(|(n, _)| n.as_str()))
                        .chain(self.program.visible(self.module))
                        .chain(constant::BUILTIN_CONSTANTS);
                    say::unknown_name(path.span, &name, nearest(&name, known))
                };
                self.report(d);
                // One report for each name is enough.
                self.scopes[self.floor].push(Named {
                    name,
                    binding: Binding::Error,
                    span: path.span,
                    warn: None,
                    used: Cell::new(true),
                });
                Binding::Error
            }
        }
    }

    /// An integer known while compiling, for extents, lengths and attributes.
    fn static_int(&mut self, e: &ast::Expr) -> Option<i64> {
        match self.expr(e, Some(Type::Index)) {
            Term::Const(Const::Int(i)) if i64::try_from(i).is_ok() => Some(i as i64),
            Term::Error => None,
            Term::Const(c) => {
                self.report(say::expected_integer(e.span, c.kind()));
                None
            }
            _ => {
                self.report(say::extent_not_constant(e));
                None
            }
        }
    }

    fn bound_generics(&self) -> &[(String, ir::GenericValue)] {
        &self.k.generics
    }
}
