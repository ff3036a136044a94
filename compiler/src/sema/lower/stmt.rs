//! Statements.

use super::expr::{default_type, scalar_dtype};
use super::tile::Node;
use super::view::Place;
use super::*;
use crate::syntax::ast::{AssignOp, Attr, Block, ElemType, Expr, ExprKind, Stmt, StmtKind};

impl Lower<'_, '_, '_> {
    /// The statements of a block, in the current scope.
    pub(super) fn block(&mut self, b: &Block) {
        for stmt in &b.stmts {
            self.stmt(stmt);
        }
    }

    pub(super) fn stmt(&mut self, s: &Stmt) {
        if self.in_map.is_some() {
            let allowed = matches!(
                s.kind,
                StmtKind::Let { mutable: false, .. }
                    | StmtKind::Assign { .. }
                    | StmtKind::Scatter { .. }
                    | StmtKind::Atomic { .. }
                    | StmtKind::Return { .. }
                    | StmtKind::Error
            );
            if !allowed {
                self.report(say::statement_in_map(s.span, statement_name(&s.kind)));
                return;
            }
        }
        let top = self.frames.len() == 1 && self.calls.is_empty();
        let may_follow_roles = matches!(
            s.kind,
            StmtKind::Role { .. }
                | StmtKind::Let { .. }
                | StmtKind::Channel { .. }
                | StmtKind::Error
        );
        if top && self.has_roles && !may_follow_roles {
            self.report(say::statement_after_role(s.span, statement_name(&s.kind)));
            return;
        }
        match &s.kind {
            StmtKind::Tile {
                name,
                ty,
                attrs,
                init,
            } => self.tile_decl(name, ty, attrs, init.as_ref()),
            StmtKind::Let {
                mutable,
                names,
                ty,
                value,
            } => self.let_stmt(*mutable, names, ty.as_ref(), value),
            StmtKind::Pipeline {
                var,
                range,
                attrs,
                body,
            } => {
                let stages = self.loop_attrs(attrs, true);
                self.for_stmt(var, range, ir::LoopKind::Pipeline { stages }, body, s.span);
            }
            StmtKind::For {
                var,
                range,
                attrs,
                body,
            } => {
                self.loop_attrs(attrs, false);
                self.for_stmt(var, range, ir::LoopKind::Sequential, body, s.span);
            }
            StmtKind::ForItems {
                vars,
                items,
                attrs,
                body,
            } => {
                self.loop_attrs(attrs, false);
                self.for_items(vars, items, body, s.span);
            }
            StmtKind::Map {
                vars,
                extents,
                attrs,
                body,
            } => self.map_stmt(vars, extents, attrs, body, s.span),
            StmtKind::If {
                cond,
                then,
                otherwise,
            } => self.if_stmt(cond, then, otherwise.as_ref(), s.span),
            StmtKind::Role { name, attrs, body } => self.role(name, attrs, body, s.span),
            StmtKind::Channel { name, ty, attrs } => self.channel(name, ty, attrs),
            StmtKind::Put {
                channel,
                value,
                attrs,
            } => self.put(channel, value, attrs, s.span),
            StmtKind::Get { channel, name } => self.get(channel, name, s.span),
            StmtKind::Release { target } => self.release(target, s.span),
            StmtKind::Copy { dst, src, attrs } => self.copy(dst, src, attrs, s.span),
            StmtKind::Assign {
                target,
                op,
                value,
                attrs,
            } => self.assign(target, *op, value, attrs, s.span),
            StmtKind::Scatter {
                target,
                value,
                attrs,
            } => self.scatter(target, value, attrs, s.span),
            StmtKind::Atomic {
                target,
                op,
                value,
                attrs,
            } => self.atomic(target, *op, value, attrs, s.span),
            StmtKind::Signal { flag, after } => {
                for name in after {
                    let path = ast::Path {
                        segments: vec![name.clone()],
                        span: name.span,
                    };
                    self.resolve(&path);
                }
                if let Some((param, index)) = self.flag_place(flag) {
                    self.effect(OpKind::Signal { param, index }, s.span);
                }
            }
            StmtKind::Wait { flag, at_least } => {
                let place = self.flag_place(flag);
                let at_least = self.index_expr(at_least);
                if let (Some((param, index)), Some(at_least)) = (place, at_least) {
                    let kind = OpKind::Wait {
                        param,
                        index,
                        at_least,
                    };
                    self.effect(kind, s.span);
                }
            }
            StmtKind::Assert {
                cond,
                message,
                assume,
            } => self.assert(cond, message.as_deref(), *assume, s.span),
            StmtKind::Print { args } => self.print(args, s.span),
            StmtKind::Return { .. } => {
                self.report(say::return_in_the_middle(s.span, !self.calls.is_empty()))
            }
            StmtKind::Asm { .. } => self.report(say::asm_not_lowered(s.span)),
            StmtKind::Call(e) => {
                let t = self.expr(e, None);
                if !matches!(t, Term::Error) {
                    self.report(say::value_unused(e.span));
                }
            }
            StmtKind::Error => {}
        }
    }

    // ---- declarations ---------------------------------------------------------------------------------

    pub(super) fn tile_shape(&mut self, shape: &[Expr]) -> Option<Vec<u64>> {
        if let Some(extra) = shape.get(crate::tile::verify::MAX_RANK) {
            self.report(say::too_many_axes(
                extra.span,
                crate::tile::verify::MAX_RANK,
            ));
            return None;
        }
        let mut out = vec![];
        let mut good = true;
        for e in shape {
            match self.static_int(e) {
                Some(n) if n >= 1 => out.push(n as u64),
                Some(n) => {
                    self.report(say::tile_extent_not_positive(e, n));
                    good = false;
                }
                None => good = false,
            }
        }
        // 2^32 elements of 64 bits are far past any memory a tile may lie in.
        if good
            && out
                .iter()
                .try_fold(1u64, |a, &b| a.checked_mul(b))
                .is_none_or(|n| n > 1 << 32)
        {
            let span = shape.first().map_or(self.k.span, |e| e.span);
            self.report(say::tile_too_large(span, &out));
            return None;
        }
        good.then_some(out)
    }

    fn tile_decl(&mut self, name: &Ident, ty: &ast::Type, attrs: &[Attr], init: Option<&Expr>) {
        self.check_attrs(
            attrs,
            "a tile",
            &[
                "layout", "align", "oob", "missing", "via", "vector", "order",
            ],
        );
        let space = match ty.space {
            Some(ast::Space::Shared) => ir::Space::Shared,
            Some(ast::Space::Cluster) => ir::Space::Cluster,
            Some(ast::Space::Global) => {
                self.report(say::global_tile(ty.span));
                ir::Space::Reg
            }
            Some(ast::Space::Reg) | None => ir::Space::Reg,
        };
        let shape = self.tile_shape(&ty.shape);
        if let ElemType::Name(n) = &ty.elem {
            self.used_generics.insert(n.name.clone());
        }
        let dtype = match &ty.elem {
            ElemType::Index => {
                self.report(say::tile_of_index(ty.span));
                None
            }
            _ => header::elem_dtype(ty, &self.cx, self.sink),
        };
        let (Some(shape), Some(dtype)) = (shape, dtype) else {
            if let Some(init) = init {
                self.expr(init, None);
            }
            self.declare(name, Binding::Error, None);
            return;
        };
        let tile = self.new_tile(&name.name, space, shape, dtype, name.span);
        let mut names = vec![];
        for e in &ty.shape {
            evaluate::names_in(e, &mut |n| names.push(n.to_string()));
        }
        self.shape_names.insert(tile, names);
        let oob = self.oob(attrs);
        if let Some(init) = init {
            self.owners.insert(tile, self.role);
            self.assign_tile(tile, init, oob, &name.name);
        }
        self.declare(
            name,
            Binding::Tile {
                tile,
                mutable: true,
            },
            Some("tile"),
        );
    }

    /// `tile = value` for a whole tile.
    fn assign_tile(&mut self, tile: TileId, value: &Expr, oob: Option<ir::Oob>, name: &str) {
        let (shape, dtype) = (self.k.tile(tile).shape.clone(), self.k.tile(tile).dtype);
        let term = match self.producer(value, Some(tile)) {
            Some(term) => term,
            None => self.expr(value, Some(Type::Scalar(dtype))),
        };
        if let Term::Tile(t) = &term
            && self.as_whole_tile(t) == Some(tile)
        {
            return; // written in place
        }
        let target = format!("`{name}`");
        if let Some(t) = self.fit(term, &shape, dtype, value, &target) {
            let dst = self.whole(tile, value.span);
            self.store(dst, t, AssignOp::Set, oob, value.span);
        }
    }

    fn let_stmt(&mut self, mutable: bool, names: &[Ident], ty: Option<&ast::Type>, value: &Expr) {
        let [name] = names else {
            if mutable {
                self.report(say::mutable_tuple(value.span));
            }
            let bindings = self.several(value, names);
            for (i, name) in names.iter().enumerate() {
                let b = match &bindings {
                    Some(two) => two[i].clone(),
                    None => Binding::Error,
                };
                // Both results must be named, so an unused one is no slip.
                self.declare(name, b, None);
            }
            return;
        };
        let want = match ty {
            None => None,
            Some(t) if !t.shape.is_empty() => {
                self.report(say::let_with_shape(t.span, &name.name));
                None
            }
            Some(t) => match &t.elem {
                ElemType::Index => Some(Type::Index),
                _ => {
                    if let ElemType::Name(n) = &t.elem {
                        self.used_generics.insert(n.name.clone());
                    }
                    header::elem_dtype(t, &self.cx, self.sink).map(Type::Scalar)
                }
            },
        };
        let term = self.expr(value, want);
        let binding = match term {
            Term::Error => Binding::Error,
            Term::Tile(t) => {
                if mutable {
                    self.report(say::mutable_tile(value.span, &name.name, &t.shape));
                    Binding::Error
                } else {
                    let dtype = t.dtype;
                    if let Some(want) = want
                        && want != Type::Scalar(dtype)
                    {
                        self.report(say::tile_where_scalar(value));
                    }
                    // A producer's temporary takes the name; anything else is stored under it.
                    let fresh = self.as_whole_tile(&t).filter(|&t| {
                        self.k.tile(t).name == "%tmp" && t.index() + 1 == self.k.tiles.len()
                    });
                    let tile = match fresh {
                        Some(tile) => {
                            self.k.tiles[tile.index()].name = name.name.clone();
                            self.k.tiles[tile.index()].span = name.span;
                            tile
                        }
                        None => {
                            let space = ir::Space::Reg;
                            let shape = t.shape.clone();
                            let tile = self.new_tile(&name.name, space, shape, dtype, name.span);
                            let dst = self.whole(tile, value.span);
                            self.store(dst, t, AssignOp::Set, None, value.span);
                            tile
                        }
                    };
                    Binding::Tile {
                        tile,
                        mutable: false,
                    }
                }
            }
            scalar if mutable => self.cell(name, scalar, want, value),
            Term::Const(c) => match want {
                // Without a type a constant stays one and adapts where it is used.
                None => Binding::Const(c),
                Some(Type::Index) => match c {
                    Const::Int(_) => Binding::Const(c),
                    _ => {
                        self.constant(&c, Type::Index, value);
                        Binding::Error
                    }
                },
                Some(ty) => match self.constant(&c, ty, value) {
                    Some(v) => Binding::Value(v),
                    None => Binding::Error,
                },
            },
            scalar => {
                let v = match want {
                    Some(ty) => self.coerce(scalar, ty, value, Some(&format!("`{}`", name.name))),
                    None => self.scalar(scalar, None, value),
                };
                match v {
                    Some(v) => {
                        self.name_value(v, &name.name);
                        Binding::Value(v)
                    }
                    None => Binding::Error,
                }
            }
        };
        self.declare(name, binding, Some("value"));
    }

    /// `let mut x = e;`
    fn cell(&mut self, name: &Ident, term: Term, want: Option<Type>, value: &Expr) -> Binding {
        let ty = match (&term, want) {
            (_, Some(ty)) => ty,
            (Term::Const(c), None) => match default_type(c, None) {
                Some(ty) => ty,
                None => {
                    self.report(say::constant_of_wrong_type(value.span, c, "a value"));
                    return Binding::Error;
                }
            },
            (t, None) => match self.term_type(t) {
                Some(ty) => ty,
                None => return Binding::Error,
            },
        };
        let Some(v) = self.coerce(term, ty, value, Some(&format!("`{}`", name.name))) else {
            return Binding::Error;
        };
        let dtype = scalar_dtype(ty);
        let tile = self.new_tile(&name.name, ir::Space::Reg, vec![], dtype, name.span);
        self.owners.insert(tile, self.role);
        self.set_cell(tile, v, value.span);
        Binding::Cell {
            tile,
            index: ty == Type::Index,
        }
    }

    fn set_cell(&mut self, tile: TileId, value: ValueId, span: Span) {
        let ty = Type::Scalar(self.k.tile(tile).dtype);
        let value = if self.k.ty(value) == ty {
            value
        } else {
            self.op(OpKind::Cast(value, ty), ty, span)
        };
        let index = vec![];
        self.effect(OpKind::StoreTile { tile, index, value }, span);
    }

    // ---- control ----------------------------------------------------------------------------------------

    fn for_stmt(
        &mut self,
        var: &Ident,
        range: &ast::Range,
        kind: ir::LoopKind,
        body: &Block,
        span: Span,
    ) {
        let lo = self.index_expr(&range.lo);
        let mut hi = self.index_expr(&range.hi);
        if range.inclusive
            && let Some(h) = hi
        {
            let one = self.index_const(1, range.hi.span);
            hi = Some(self.index_binary(ir::BinaryOp::Add, h, one, range.span));
        }
        let block = self.new_block();
        let v = self.block_arg(block, Some(&var.name));
        self.inside(block, |l| {
            l.declare(var, Binding::Value(v), None);
            l.block(body);
        });
        if let (Some(lo), Some(hi)) = (lo, hi) {
            let kind = OpKind::For {
                lo,
                hi,
                kind,
                body: block,
            };
            self.effect(kind, span);
        }
    }

    /// `items` of a persistent launch, or a work list in memory.
    fn for_items(&mut self, vars: &[Ident], items: &Expr, body: &Block, span: Span) {
        if let ExprKind::Name(path) = &items.kind
            && path_text(path) == "items"
        {
            if !self.k.launch.persistent {
                self.report(say::items_without_persistent(items.span));
            } else if self.in_items {
                self.report(say::items_nested(span));
            } else if vars.len() != self.k.launch.grid.len() {
                let axes = self.k.launch.grid.len();
                self.report(say::items_variables(span, vars.len(), axes));
            }
            let block = self.new_block();
            let args: Vec<ValueId> = vars
                .iter()
                .map(|v| self.block_arg(block, Some(&v.name)))
                .collect();
            let outer = std::mem::replace(&mut self.in_items, true);
            self.inside(block, |l| {
                for (name, v) in vars.iter().zip(args) {
                    l.declare(name, Binding::Value(v), None);
                }
                l.block(body);
            });
            self.in_items = outer;
            self.effect(OpKind::ForItems { body: block }, span);
            return;
        }
        self.work_list(vars, items, body, span);
    }

    /// `for it in list[n] { }`: the first `n` records of a tensor.
    fn work_list(&mut self, vars: &[Ident], items: &Expr, body: &Block, span: Span) {
        let list = match &items.kind {
            ExprKind::Index { base, slots } => match (self.base_of(base), slots.as_slice()) {
                (Some(Binding::Param(p)), [ast::IndexSlot::At(n)]) => Some((p, n)),
                (None | Some(Binding::Error), _) => return,
                _ => None,
            },
            _ => None,
        };
        let Some((param, n)) = list else {
            self.report(say::not_a_work_list(items.span));
            return;
        };
        if !self.readable(ir::Base::Param(param), items) {
            return;
        }
        let shape = self
            .k
            .tensor(param)
            .map(|t| t.shape.clone())
            .unwrap_or_default();
        let dtype = self.base_dtype(ir::Base::Param(param));
        let columns = match shape.as_slice() {
            [_] => Some(1),
            [_, tessera_artifact::HostExpr::Int(c)] => Some(*c as usize),
            [_, _] => None,
            _ => {
                self.report(say::work_list_rank(items.span, shape.len()));
                return;
            }
        };
        if !dtype.is_int() {
            self.report(say::work_list_dtype(items.span, dtype));
        }
        if vars.len() > 1 && columns != Some(vars.len()) {
            let text = self.base_shape_text(ir::Base::Param(param));
            self.report(say::work_list_variables(span, vars.len(), &text));
            return;
        }
        let lo = self.index_const(0, items.span);
        let Some(hi) = self.index_expr(n) else {
            return;
        };
        let block = self.new_block();
        let row = self.block_arg(block, None);
        self.inside(block, |l| {
            let base = ir::Base::Param(param);
            match (vars, shape.len()) {
                ([one], 2) => l.declare(one, Binding::Record { param, row }, None),
                ([one], _) => {
                    let v = l.load(base, vec![row], items.span);
                    l.name_value(v, &one.name);
                    l.declare(one, Binding::Value(v), None);
                }
                _ => {
                    for (i, name) in vars.iter().enumerate() {
                        let column = l.index_const(i as i64, name.span);
                        let v = l.load(base, vec![row, column], items.span);
                        l.name_value(v, &name.name);
                        l.declare(name, Binding::Value(v), None);
                    }
                }
            }
            l.block(body);
        });
        let kind = OpKind::For {
            lo,
            hi,
            kind: ir::LoopKind::Sequential,
            body: block,
        };
        self.effect(kind, span);
    }

    fn map_stmt(
        &mut self,
        vars: &[Ident],
        extents: &[Expr],
        attrs: &[Attr],
        body: &Block,
        span: Span,
    ) {
        self.check_attrs(attrs, "a map", &["vector", "unroll"]);
        if vars.len() != extents.len() {
            self.report(say::map_variables(span, vars.len(), extents.len()));
            return;
        }
        let Some(extents) = self.tile_shape(extents) else {
            // Go on with the body, so that its own mistakes show.
            let scope: Vec<_> = vars.to_vec();
            let block = self.new_block();
            let args: Vec<ValueId> = scope
                .iter()
                .map(|v| self.block_arg(block, Some(&v.name)))
                .collect();
            self.map_body(block, vars, args, body, span);
            return;
        };
        let block = self.new_block();
        let args: Vec<ValueId> = vars
            .iter()
            .map(|v| self.block_arg(block, Some(&v.name)))
            .collect();
        self.map_extents.insert(block, extents.clone());
        self.map_body(block, vars, args, body, span);
        let kind = OpKind::Map {
            extents,
            body: block,
        };
        self.effect(kind, span);
    }

    fn map_body(
        &mut self,
        block: BlockId,
        vars: &[Ident],
        args: Vec<ValueId>,
        body: &Block,
        span: Span,
    ) {
        self.inside(block, |l| {
            for (name, v) in vars.iter().zip(args) {
                l.declare(name, Binding::Value(v), None);
            }
            let outer = l.in_map.replace(span);
            l.block(body);
            l.in_map = outer;
        });
    }

    fn if_stmt(&mut self, cond: &Expr, then: &Block, otherwise: Option<&Block>, span: Span) {
        let c = self.expr(cond, Some(Type::BOOL));
        // Known while compiling: only the branch that is taken exists.
        if let Term::Const(Const::Bool(value)) = c {
            let taken = if value { Some(then) } else { otherwise };
            if let Some(taken) = taken {
                self.scopes.push(vec![]);
                self.block(taken);
                self.pop_scope();
            }
            return;
        }
        let c = match self.term_type(&c) {
            Some(ty) if ty != Type::BOOL => {
                self.report(say::condition_not_bool(cond, &expr::type_text(ty)));
                None
            }
            _ => self.coerce(c, Type::BOOL, cond, None),
        };
        let then_block = self.new_block();
        self.inside(then_block, |l| l.block(then));
        let otherwise = otherwise.map(|b| {
            let block = self.new_block();
            self.inside(block, |l| l.block(b));
            block
        });
        if let Some(cond) = c {
            let kind = OpKind::If {
                cond,
                then: then_block,
                otherwise,
            };
            self.effect(kind, span);
        }
    }

    fn assert(&mut self, cond: &Expr, message: Option<&str>, assume: bool, span: Span) {
        let text = super::super::text::expr(cond);
        match self.expr(cond, Some(Type::BOOL)) {
            Term::Const(Const::Bool(true)) | Term::Error => {}
            Term::Const(Const::Bool(false)) => self.report(say::assertion_never_holds(span, &text)),
            t => {
                let Some(cond) = self.coerce(t, Type::BOOL, cond, None) else {
                    return;
                };
                let kind = if assume {
                    OpKind::Assume { cond }
                } else {
                    let message = message.map_or(text, str::to_string);
                    OpKind::Assert { cond, message }
                };
                self.effect(kind, span);
            }
        }
    }

    fn print(&mut self, args: &[Expr], span: Span) {
        let mut text = String::new();
        let mut out = vec![];
        for (i, arg) in args.iter().enumerate() {
            match self.expr(arg, None) {
                Term::Error => return,
                Term::Const(Const::Str(s)) if i == 0 => text = s,
                Term::Const(Const::Str(_)) => self.report(say::print_text(arg.span)),
                Term::Tile(t) => out.push(ir::PrintArg::Tile(self.materialise(t, arg.span))),
                t => match self.scalar(t, None, arg) {
                    Some(v) => out.push(ir::PrintArg::Value(v)),
                    None => return,
                },
            }
        }
        self.effect(OpKind::Print { text, args: out }, span);
    }

    // ---- memory -----------------------------------------------------------------------------------------

    fn copy(&mut self, dst: &Expr, src: &Expr, attrs: &[Attr], span: Span) {
        self.check_attrs(
            attrs,
            "`copy`",
            &["oob", "missing", "via", "vector", "layout"],
        );
        let oob = self.oob(attrs);
        let place = self.place(dst);
        let term = self.expr(src, None);
        let view = match place {
            None => return,
            Some(Place::View(view)) => view,
            Some(Place::Element { .. }) => {
                self.report(say::copy_to_element(dst, src));
                return;
            }
        };
        if !self.writable(view.base, dst) {
            return;
        }
        if view
            .slots
            .iter()
            .any(|s| matches!(s, ir::Slot::Gather { .. }))
        {
            self.report(say::gather_as_destination(dst.span));
            return;
        }
        let (shape, dtype) = (view.shape(), self.base_dtype(view.base));
        match &term {
            Term::Error => return,
            Term::Tile(_) => {}
            _ => {
                self.report(say::copy_of_scalar(dst, src));
                return;
            }
        }
        let target = self.describe(dst, &shape);
        let Term::Tile(t) = &term else { return };
        if t.shape != shape {
            let d = say::copy_shapes(
                span,
                &target,
                dst.span,
                &self.describe(src, &t.shape),
                src.span,
            );
            self.report(d);
            return;
        }
        let name = format!("`{}`", super::super::text::expr(dst));
        let Some(t) = self.fit(term, &shape, dtype, src, &name) else {
            return;
        };
        let oob = match &t.node {
            Node::View(v) => {
                let v = v.clone();
                self.gather_oob(&v, oob, span).or(oob)
            }
            _ => oob,
        };
        self.store(view, t, AssignOp::Set, oob, span);
    }

    /// A gather must say what a missing row is; `None` for a view without one.
    pub(super) fn gather_oob(
        &mut self,
        v: &ir::View,
        oob: Option<ir::Oob>,
        span: Span,
    ) -> Option<ir::Oob> {
        let gathers = v.slots.iter().any(|s| matches!(s, ir::Slot::Gather { .. }));
        if gathers && oob.is_none() {
            self.report(say::gather_without_missing(span));
            return Some(ir::Oob::Zero);
        }
        gathers.then(|| oob.unwrap_or(ir::Oob::Zero))
    }

    pub(super) fn writable(&mut self, base: ir::Base, e: &Expr) -> bool {
        use tessera_artifact::ParamMode::*;
        match base {
            ir::Base::Tile(t) => {
                let root = root_name(e);
                let mutable = match root.and_then(|r| self.find_local(&r.name)) {
                    Some(Binding::Tile { mutable, .. }) => mutable,
                    _ => true,
                };
                if !mutable {
                    let tile = self.k.tile(t);
                    let d = say::assign_to_immutable(e.span, &tile.name, tile.span);
                    self.report(d);
                }
                mutable
            }
            ir::Base::Param(p) => match self.k.tensor(p).map(|t| t.mode) {
                Some(In) => {
                    let d = say::write_to_in(e.span, &self.k.param(p).name, self.k.param(p).span);
                    self.report(d);
                    false
                }
                Some(Flags) => {
                    let d = say::flags_are_no_tensor(e.span, &self.k.param(p).name);
                    self.report(d);
                    false
                }
                _ => true,
            },
        }
    }

    fn assign(&mut self, target: &Expr, op: AssignOp, value: &Expr, attrs: &[Attr], span: Span) {
        self.check_attrs(attrs, "an assignment", &["oob", "missing", "order"]);
        if let ExprKind::Name(path) = &target.kind {
            match self.resolve(path) {
                Binding::Cell { tile, index } => {
                    return self.assign_cell(tile, index, op, value, span);
                }
                Binding::Value(_) | Binding::Const(_) => {
                    self.expr(value, None);
                    self.report(say::assign_to_value(target.span, &path_text(path)));
                    return;
                }
                _ => {}
            }
        }
        let Some(place) = self.place(target) else {
            self.expr(value, None);
            return;
        };
        match place {
            Place::Element { base, index } => {
                self.assign_element(base, index, target, op, value, attrs, span)
            }
            Place::View(view) => self.assign_view(view, target, op, value, attrs, span),
        }
    }

    fn assign_cell(&mut self, tile: TileId, index: bool, op: AssignOp, value: &Expr, span: Span) {
        if self.in_map.is_some() {
            let name = self.k.tile(tile).name.clone();
            self.report(say::cell_in_map(span, &name));
            return;
        }
        let ty = if index {
            Type::Index
        } else {
            Type::Scalar(self.k.tile(tile).dtype)
        };
        let t = self.expr(value, Some(ty));
        let name = self.k.tile(tile).name.clone();
        let Some(v) = self.coerce(t, ty, value, Some(&format!("`{name}`"))) else {
            return;
        };
        let v = match tile::assign_op(op) {
            None => v,
            Some(op) => match self.read_cell(tile, index, span) {
                Term::Scalar(old) => self.op(OpKind::Binary(op, old, v), ty, span),
                _ => return,
            },
        };
        self.set_cell(tile, v, span);
    }

    #[allow(clippy::too_many_arguments)]
    fn assign_element(
        &mut self,
        base: ir::Base,
        index: Vec<ValueId>,
        target: &Expr,
        op: AssignOp,
        value: &Expr,
        attrs: &[Attr],
        span: Span,
    ) {
        let ty = Type::Scalar(self.base_dtype(base));
        let reads = op == AssignOp::Set || self.readable(base, target);
        let writes = self.writable(base, target);
        let guard = match (self.oob(attrs), base) {
            (None, _) => None,
            (Some(ir::Oob::Skip), _) => self.inside_guard(base, &index, span),
            (Some(_), _) => {
                self.report(say::element_oob(span));
                None
            }
        };
        // The value's own loads happen only where the element is stored.
        let t = self.guarded(guard, true, span, |l| l.expr(value, Some(ty)));
        let name = format!("`{}`", super::super::text::expr(target));
        let v = self.coerce(t, ty, value, Some(&name));
        if !self.arithmetic_target(ty, op, target) {
            return;
        }
        if let Some(v) = v
            && reads
            && writes
        {
            self.store_element(base, index, v, op, guard, span);
        }
    }

    /// `x += e` needs a dtype with arithmetic.
    fn arithmetic_target(&mut self, ty: Type, op: AssignOp, target: &Expr) -> bool {
        let good = match ty {
            Type::Index => true,
            Type::Scalar(d) => op == AssignOp::Set || d.has_arithmetic(),
        };
        if !good {
            self.report(say::operator_of_type(
                target,
                "this assignment",
                &expr::type_text(ty),
            ));
        }
        good
    }

    fn assign_view(
        &mut self,
        view: ir::View,
        target: &Expr,
        op: AssignOp,
        value: &Expr,
        attrs: &[Attr],
        span: Span,
    ) {
        if self.in_map.is_some() {
            self.report(say::tile_expression_in_map(target.span));
            return;
        }
        if !self.writable(view.base, target) {
            return;
        }
        if op != AssignOp::Set && !self.readable(view.base, target) {
            return;
        }
        let dtype = self.base_dtype(view.base);
        if !self.arithmetic_target(Type::Scalar(dtype), op, target) {
            return;
        }
        if op == AssignOp::Add
            && let Some(args) = Self::dot_args(value)
        {
            self.dot_accumulate(view, target, args, value);
            return;
        }
        let oob = self.oob(attrs);
        let whole = match view.base {
            ir::Base::Tile(tile) => {
                let Term::Tile(t) = self.view_term(view.clone()) else {
                    return;
                };
                self.as_whole_tile(&t)
                    .filter(|_| op == AssignOp::Set)
                    .map(|_| tile)
            }
            ir::Base::Param(_) => None,
        };
        if let Some(tile) = whole {
            // `x = sum(x, …)`-like producers never write their own operand (`destination`).
            let name = super::super::text::expr(target);
            self.assign_tile(tile, value, oob, &name);
            return;
        }
        let term = self.expr(value, Some(Type::Scalar(dtype)));
        if let Term::Tile(t) = &term
            && t.shape != view.shape()
        {
            let d = say::copy_shapes(
                span,
                &self.describe(target, &view.shape()),
                target.span,
                &self.describe(value, &t.shape),
                value.span,
            );
            self.report(d);
            return;
        }
        let name = format!("`{}`", super::super::text::expr(target));
        let shape = view.shape();
        if let Some(mut t) = self.fit(term, &shape, dtype, value, &name) {
            if op != AssignOp::Set && t.dtype != dtype {
                t.node = Node::Cast(Box::new(t.node), dtype);
                t.dtype = dtype;
            }
            self.store(view, t, op, oob, span);
        }
    }

    fn scatter(&mut self, target: &Expr, value: &Expr, attrs: &[Attr], span: Span) {
        self.check_attrs(attrs, "`scatter`", &["oob"]);
        let Some((param, index, guard)) = self.global_element(target, attrs, "scatter", span)
        else {
            return;
        };
        let ty = Type::Scalar(self.base_dtype(ir::Base::Param(param)));
        let t = self.guarded(guard, true, span, |l| l.expr(value, Some(ty)));
        if let Some(value) = self.coerce(t, ty, value, None) {
            let guard = self.and_guard(guard, span);
            let kind = OpKind::StoreGlobal {
                param,
                index,
                value,
                guard,
                scatter: true,
            };
            self.effect(kind, span);
        }
    }

    fn atomic(&mut self, target: &Expr, op: AssignOp, value: &Expr, attrs: &[Attr], span: Span) {
        self.check_attrs(attrs, "`atomic`", &["oob"]);
        if let ExprKind::Index { base, .. } = &target.kind
            && let Some(Binding::Param(p)) = self.base_of(base)
            && !self.readable(ir::Base::Param(p), target)
        {
            return;
        }
        let Some((param, index, guard)) = self.global_element(target, attrs, "atomic", span) else {
            return;
        };
        let op = match op {
            AssignOp::Add => ir::FoldOp::Sum,
            AssignOp::Max => ir::FoldOp::Max,
            AssignOp::Min => ir::FoldOp::Min,
            AssignOp::Set | AssignOp::Sub | AssignOp::Mul | AssignOp::Div => {
                self.report(say::atomic_operator(span));
                return;
            }
        };
        let ty = Type::Scalar(self.base_dtype(ir::Base::Param(param)));
        if !self.arithmetic_target(ty, AssignOp::Add, target) {
            return;
        }
        let t = self.guarded(guard, true, span, |l| l.expr(value, Some(ty)));
        if let Some(value) = self.coerce(t, ty, value, None) {
            let guard = self.and_guard(guard, span);
            let kind = OpKind::Atomic {
                op,
                param,
                index,
                value,
                guard,
            };
            self.effect(kind, span);
        }
    }

    /// The element of a tensor that `scatter` and `atomic` write, with the guard that `@oob(skip)` makes.
    fn global_element(
        &mut self,
        target: &Expr,
        attrs: &[Attr],
        what: &str,
        span: Span,
    ) -> Option<(ParamId, Vec<ValueId>, Option<ValueId>)> {
        match self.place(target)? {
            Place::Element {
                base: ir::Base::Param(param),
                index,
            } => {
                let base = ir::Base::Param(param);
                if !self.writable(base, target) {
                    return None;
                }
                let guard = match self.oob(attrs) {
                    None => None,
                    Some(ir::Oob::Skip) => self.inside_guard(base, &index, span),
                    Some(_) => {
                        self.report(say::element_oob(span));
                        None
                    }
                };
                Some((param, index, guard))
            }
            _ => {
                self.report(say::needs_tensor_element(target.span, what));
                None
            }
        }
    }

    // ---- attributes ---------------------------------------------------------------------------------------

    pub(super) fn check_attrs(&mut self, attrs: &[Attr], place: &str, known: &[&str]) {
        for a in attrs {
            if !known.contains(&a.name.name.as_str()) {
                self.report(say::unknown_attribute(a, place, known));
            }
        }
    }

    /// `@oob(zero)` or `@missing(zero)`.
    pub(super) fn oob(&mut self, attrs: &[Attr]) -> Option<ir::Oob> {
        let mut out = None;
        for a in attrs {
            if a.name.name != "oob" && a.name.name != "missing" {
                continue;
            }
            let word = match a.args.as_slice() {
                [one] if one.name.is_none() => match &one.value.kind {
                    ExprKind::Name(path) => path_text(path),
                    _ => String::new(),
                },
                _ => String::new(),
            };
            let value = match word.as_str() {
                "zero" => ir::Oob::Zero,
                "skip" => ir::Oob::Skip,
                "error" => ir::Oob::Error,
                _ => {
                    self.report(say::attribute_argument(a, "`zero`, `skip` or `error`"));
                    ir::Oob::Zero
                }
            };
            match out {
                Some(before) if before != value => self.report(say::two_oob_rules(a.span)),
                _ => out = Some(value),
            }
        }
        out
    }

    /// `@stages(n)`, `@order(ascending)` and others of loops.
    fn loop_attrs(&mut self, attrs: &[Attr], pipeline: bool) -> Option<u32> {
        let known: &[&str] = if pipeline {
            &["stages", "order", "unroll"]
        } else {
            &["order", "unroll"]
        };
        self.check_attrs(attrs, if pipeline { "`pipeline`" } else { "`for`" }, known);
        let mut stages = None;
        for a in attrs {
            match (a.name.name.as_str(), a.args.as_slice()) {
                ("stages", [n]) if pipeline => match self.static_int(&n.value) {
                    Some(n) if (1..=16).contains(&n) => stages = Some(n as u32),
                    Some(n) => self.report(say::stages_out_of_range(a.span, n)),
                    None => {}
                },
                ("stages", _) if pipeline => self.report(say::attribute_argument(a, "a number")),
                ("order", [o]) => {
                    // Loops are ascending; another order is not in the language.
                    if self
                        .order(&o.value)
                        .is_some_and(|o| o != ir::Order::Ascending)
                    {
                        self.report(say::loop_order(a.span));
                    }
                }
                _ => {}
            }
        }
        stages
    }
}

/// `x` of `x`, `x[i]`.
fn root_name(e: &Expr) -> Option<&Ident> {
    match &e.kind {
        ExprKind::Name(path) => match path.segments.as_slice() {
            [one] => Some(one),
            _ => None,
        },
        ExprKind::Index { base, .. } => root_name(base),
        _ => None,
    }
}

fn statement_name(kind: &StmtKind) -> &'static str {
    match kind {
        StmtKind::Tile { .. } => "a tile",
        StmtKind::Let { .. } => "`let mut`",
        StmtKind::Pipeline { .. } => "`pipeline`",
        StmtKind::For { .. } | StmtKind::ForItems { .. } => "`for`",
        StmtKind::Map { .. } => "`map`",
        StmtKind::If { .. } => "`if`",
        StmtKind::Role { .. } => "`role`",
        StmtKind::Channel { .. } => "`channel`",
        StmtKind::Put { .. } => "`put`",
        StmtKind::Get { .. } => "`get`",
        StmtKind::Release { .. } => "`release`",
        StmtKind::Copy { .. } => "`copy`",
        StmtKind::Assign { .. } => "an assignment",
        StmtKind::Scatter { .. } => "`scatter`",
        StmtKind::Atomic { .. } => "`atomic`",
        StmtKind::Signal { .. } => "`signal`",
        StmtKind::Wait { .. } => "`wait`",
        StmtKind::Assert { .. } => "`assert`",
        StmtKind::Print { .. } => "`print`",
        StmtKind::Return { .. } => "`return`",
        StmtKind::Asm { .. } => "`asm`",
        StmtKind::Call(_) => "a call",
        StmtKind::Error => "this",
    }
}
