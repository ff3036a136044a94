//! Calls of the user's functions: inlined where they stand.

use super::*;
use crate::syntax::ast::{Arg, ElemType, Expr, ExprKind, Function, GenericKind, StmtKind};

impl<'p, 'a> Lower<'p, 'a, '_> {
    pub(super) fn user_call(&mut self, path: &ast::Path, args: &[Arg], e: &Expr) -> Term {
        let name = path_text(path);
        let (home, function) = match self.program.find(self.module, &path.segments) {
            Some((home, Entry::Function(f))) => (home, f),
            Some((_, other)) => {
                self.report(say::not_a_function(path.span, &name, other.kind()));
                return Term::Error;
            }
            None => {
                if path.segments.len() == 1 && self.find_local(&name).is_some() {
                    self.report(say::not_a_function(path.span, &name, "a value"));
                    return Term::Error;
                }
                let d = {
                    let known = builtin::builtin_names().chain(self.program.visible(self.module));
                    say::unknown_function(path.span, &name, nearest(&name, known))
                };
                self.report(d);
                return Term::Error;
            }
        };
        let running = |(m, n, _): &(usize, String, Span)| *m == home && *n == function.name.name;
        if self.calls.iter().any(running) {
            self.report(say::recursion(e.span, &name));
            return Term::Error;
        }
        self.inline(home, function, args, e).unwrap_or(Term::Error)
    }

    fn inline(&mut self, home: usize, f: &'a Function, args: &[Arg], e: &Expr) -> Option<Term> {
        let mut cx = Evaluator::new(self.program, home);
        let mut values: Vec<(&Expr, Term)> = vec![];
        let mut good = true;
        for a in args {
            match &a.name {
                None => {
                    let want = f
                        .params
                        .get(values.len())
                        .and_then(|(_, ty)| match &ty.elem {
                            ElemType::DType(d) => Some(Type::Scalar(*d)),
                            ElemType::Index => Some(Type::Index),
                            ElemType::Name(_) => None,
                        });
                    let t = self.expr(&a.value, want);
                    good &= !matches!(t, Term::Error);
                    values.push((&a.value, t));
                }
                // Named arguments bind generics that no parameter shows.
                Some(n) => match f.generics.iter().find(|g| g.name.name == n.name) {
                    Some(_) => match self.expr(&a.value, None) {
                        Term::Const(c) => cx.bind(&n.name, Static::Const(c)),
                        Term::Error => good = false,
                        _ => {
                            self.report(say::extent_not_constant(&a.value));
                            good = false;
                        }
                    },
                    None => {
                        let generics: Vec<&str> =
                            f.generics.iter().map(|g| g.name.name.as_str()).collect();
                        self.report(say::unknown_named_argument(n, &f.name.name, &generics));
                        good = false;
                    }
                },
            }
        }
        if values.len() != f.params.len() {
            let d =
                say::wrong_number_of_arguments(e.span, &f.name.name, f.params.len(), values.len());
            self.report(d);
            return None;
        }
        if !good {
            return None;
        }
        for ((name, ty), (arg, t)) in f.params.iter().zip(&values) {
            self.infer(f, ty, arg, t, &mut cx, &name.name)?;
        }
        for g in &f.generics {
            if cx.get(&g.name.name).is_none() {
                let default = g.default.as_ref().and_then(|d| cx.constant(d, self.sink));
                match default {
                    Some(c) => cx.bind(&g.name.name, Static::Const(c)),
                    None => {
                        self.report(say::generic_not_inferred(
                            e.span,
                            &f.name.name,
                            &g.name.name,
                        ));
                        return None;
                    }
                }
            }
            self.check_generic_kind(g, &cx, e.span)?;
        }
        // Bind the parameters with the callee's names, evaluated in the caller's scope.
        let mut bound = vec![];
        for ((name, ty), (arg, t)) in f.params.iter().zip(values) {
            bound.push((name, self.bind_argument(ty, arg, t, &cx)?));
        }
        let outer_cx = std::mem::replace(&mut self.cx, cx);
        let outer_module = std::mem::replace(&mut self.module, home);
        let outer_floor = std::mem::replace(&mut self.floor, self.scopes.len());
        self.calls.push((home, f.name.name.clone(), e.span));
        self.scopes.push(vec![]);
        for (name, binding) in bound {
            self.declare(name, binding, None);
        }
        let result = self.function_body(f);
        self.pop_scope();
        self.calls.pop();
        self.floor = outer_floor;
        self.module = outer_module;
        self.cx = outer_cx;
        result
    }

    fn check_generic_kind(&mut self, g: &ast::Generic, cx: &Evaluator, span: Span) -> Option<()> {
        let value = match cx.get(&g.name.name) {
            Some(Static::Const(c)) => c.clone(),
            _ => return None,
        };
        let good = matches!(
            (g.kind, &value),
            (GenericKind::Int, Const::Int(_))
                | (GenericKind::Bool, Const::Bool(_))
                | (GenericKind::DType, Const::DType(_))
        );
        if !good {
            self.report(say::generic_of_wrong_kind(span, g, &value));
            return None;
        }
        Some(())
    }

    /// Generics and free extent names of a parameter's type from the argument.
    fn infer(
        &mut self,
        f: &Function,
        ty: &ast::Type,
        arg: &Expr,
        t: &Term,
        cx: &mut Evaluator,
        param: &str,
    ) -> Option<()> {
        if let ElemType::Name(name) = &ty.elem {
            let dtype = match self.term_type(t) {
                Some(Type::Scalar(d)) => Some(d),
                Some(Type::Index) => None,
                None => match t {
                    Term::Const(Const::Float(_)) => Some(tessera_artifact::DType::F32),
                    Term::Const(Const::Bool(_)) => Some(tessera_artifact::DType::Bool),
                    _ => None,
                },
            };
            let known = f.generics.iter().any(|g| g.name.name == name.name);
            match (cx.get(&name.name), dtype) {
                (None, Some(d)) if known => {
                    // A constant adapts to what a later argument says; a typed argument decides.
                    if !matches!(t, Term::Const(_)) || f.params.len() == 1 {
                        cx.bind(&name.name, Static::Const(Const::DType(d)));
                    }
                }
                (Some(_), _) | (None, _) if known => {}
                _ => {
                    let near = None;
                    self.report(say::not_a_dtype(name, false, near));
                    return None;
                }
            }
        }
        let shape = match t {
            Term::Tile(t) => t.shape.clone(),
            _ => vec![],
        };
        if shape.len() != ty.shape.len() {
            self.report(say::argument_rank(
                arg.span,
                &f.name.name,
                param,
                ty.shape.len(),
                shape.len(),
            ));
            return None;
        }
        for (extent, actual) in ty.shape.iter().zip(shape) {
            if let ExprKind::Name(path) = &extent.kind
                && let [one] = path.segments.as_slice()
                && cx.get(&one.name).is_none()
                && self.program.find(self.module, &path.segments).is_none()
            {
                cx.bind(&one.name, Static::Const(Const::Int(actual as i128)));
                continue;
            }
            let expected = cx.constant_int(extent, self.sink)?;
            if expected != actual as i64 {
                let text = super::super::text::expr(extent);
                self.report(say::argument_extent(
                    arg.span,
                    &f.name.name,
                    param,
                    &text,
                    expected,
                    actual,
                ));
                return None;
            }
        }
        Some(())
    }

    fn bind_argument(
        &mut self,
        ty: &ast::Type,
        arg: &Expr,
        t: Term,
        cx: &Evaluator,
    ) -> Option<Binding> {
        let elem = match &ty.elem {
            ElemType::Index => Type::Index,
            _ => Type::Scalar(header::elem_dtype(ty, cx, self.sink)?),
        };
        match t {
            Term::Tile(t) => {
                let Type::Scalar(dtype) = elem else {
                    self.report(say::index_of_tile(arg.span));
                    return None;
                };
                let shape = t.shape.clone();
                let t = self.fit(Term::Tile(t), &shape, dtype, arg, "the parameter")?;
                let tile = if t.dtype == dtype {
                    self.materialise(t, arg.span)
                } else {
                    let tile = self.temporary(shape, dtype, arg.span);
                    let dst = self.whole(tile, arg.span);
                    self.store(dst, t, ast::AssignOp::Set, None, arg.span);
                    tile
                };
                Some(Binding::Tile {
                    tile,
                    mutable: false,
                })
            }
            Term::Const(c) => {
                // Keep constants constant, so that they can stand in extents; check that they fit the type.
                match (&c, elem) {
                    (Const::Int(_), Type::Index) => Some(Binding::Const(c)),
                    _ => Some(Binding::Value(self.constant(&c, elem, arg)?)),
                }
            }
            t => Some(Binding::Value(self.coerce(
                t,
                elem,
                arg,
                Some("the parameter"),
            )?)),
        }
    }

    /// The statements and the value of the `return` at the end.
    fn function_body(&mut self, f: &Function) -> Option<Term> {
        let Some((last, before)) = f.body.stmts.split_last() else {
            self.report(say::function_without_return(f.name.span, &f.name.name));
            return None;
        };
        for stmt in before {
            self.stmt(stmt);
        }
        let StmtKind::Return { value: Some(value) } = &last.kind else {
            self.stmt(last);
            self.report(say::function_without_return(f.name.span, &f.name.name));
            return None;
        };
        let want = f.result.as_ref().and_then(|r| match &r.elem {
            ElemType::Index => Some(Type::Index),
            _ => header::elem_dtype(r, &self.cx, self.sink).map(Type::Scalar),
        });
        let t = self.expr(value, want);
        let Some(result) = &f.result else {
            return Some(t);
        };
        let elem = want?;
        match (&t, result.shape.is_empty()) {
            (Term::Error, _) => None,
            (Term::Tile(tile), false) => {
                let mut shape = vec![];
                for extent in &result.shape {
                    shape.push(self.cx.constant_int(extent, self.sink)?.max(0) as u64);
                }
                let dtype = expr::scalar_dtype(elem);
                let _ = tile;
                let fitted = self.fit(t, &shape, dtype, value, "the result")?;
                // A view that widens keeps its dtype in `fit`; make the result's dtype real.
                let node = self.cast_node(fitted.node, fitted.dtype, dtype);
                Some(Term::Tile(TileExpr { node, dtype, shape }))
            }
            (Term::Tile(_), true) | (_, false) => {
                self.report(say::result_rank(value.span, &f.name.name));
                None
            }
            (Term::Const(Const::Int(_)), true) if elem == Type::Index => Some(t),
            (_, true) => {
                let v = self.coerce(t, elem, value, Some("the result"))?;
                Some(Term::Scalar(v))
            }
        }
    }
}
