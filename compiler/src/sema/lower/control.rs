//! Loops, maps, branches, and what is said about conditions.

use super::*;
use crate::syntax::ast::{Attr, Block, Expr, ExprKind};

impl Lower<'_, '_, '_> {
    pub(super) fn for_stmt(
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
    pub(super) fn for_items(&mut self, vars: &[Ident], items: &Expr, body: &Block, span: Span) {
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

    pub(super) fn map_stmt(
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

    pub(super) fn if_stmt(
        &mut self,
        cond: &Expr,
        then: &Block,
        otherwise: Option<&Block>,
        span: Span,
    ) {
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

    pub(super) fn assert(&mut self, cond: &Expr, message: Option<&str>, assume: bool, span: Span) {
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

    pub(super) fn print(&mut self, args: &[Expr], span: Span) {
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
}
