//! Statements.

use super::expr::{default_type, scalar_dtype};
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
    pub(super) fn assign_tile(
        &mut self,
        tile: TileId,
        value: &Expr,
        oob: Option<ir::Oob>,
        name: &str,
    ) {
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

    pub(super) fn set_cell(&mut self, tile: TileId, value: ValueId, span: Span) {
        let ty = Type::Scalar(self.k.tile(tile).dtype);
        let value = if self.k.ty(value) == ty {
            value
        } else {
            self.op(OpKind::Cast(value, ty), ty, span)
        };
        let index = vec![];
        self.effect(OpKind::StoreTile { tile, index, value }, span);
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
pub(super) fn root_name(e: &Expr) -> Option<&Ident> {
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
