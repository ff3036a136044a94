//! Statements.

use super::*;

impl Builder<'_> {
    pub fn block(&mut self, pair: Pair<Rule>) -> Block {
        let span = self.span(&pair);
        let mut stmts = vec![];
        let mut after_broken = false;
        let mut after_if = false;
        for p in self.inner(pair).pairs {
            let broken_else =
                p.as_rule() == Rule::broken_stmt && starts_with_word(p.as_str(), "else");
            let stmt = if broken_else && after_broken {
                // The `if` in front of it is reported.
                self.broken_stmt_body(p)
            } else if broken_else
                && after_if
                && !self.reported(p.as_span().start(), p.as_span().end())
            {
                let start = p.as_span().start();
                let span = self.at(start, start + "else".len());
                self.sink.report(problem::else_without_block(span));
                self.broken_stmt_body(p)
            } else {
                self.stmt(p)
            };
            after_broken = matches!(stmt.kind, StmtKind::Error);
            after_if = matches!(stmt.kind, StmtKind::If { .. });
            stmts.push(stmt);
        }
        Block { stmts, span }
    }

    fn stmt(&mut self, pair: Pair<Rule>) -> Stmt {
        let span = self.span(&pair);
        if pair.as_rule() == Rule::broken_stmt {
            self.report_broken_stmt(&pair);
            return self.broken_stmt_body(pair);
        }
        self.check_end(&pair);
        Stmt {
            kind: self.stmt_kind(pair),
            span,
        }
    }

    /// Problems inside the block of a statement whose head is damaged are reported too.
    fn broken_stmt_body(&mut self, pair: Pair<Rule>) -> Stmt {
        let span = self.span(&pair);
        for p in self.inner(pair).pairs {
            if p.as_rule() == Rule::block {
                self.block(p);
            }
        }
        Stmt {
            kind: StmtKind::Error,
            span,
        }
    }

    /// Reports a forgotten `;`: the grammar has a mark where it went on without one.
    pub fn check_end(&mut self, pair: &Pair<Rule>) {
        let Some(mark) = pair
            .clone()
            .into_inner()
            .find(|p| matches!(p.as_rule(), Rule::no_semicolon | Rule::no_line_end))
        else {
            return;
        };
        let start = pair.as_span().start();
        let before = self.source[..mark.as_span().start()].trim_end();
        if !self.reported(start, mark.as_span().start()) {
            let span = self.at(before.len(), before.len());
            self.sink.report(problem::missing_semicolon(span));
        }
    }

    fn stmt_kind(&mut self, pair: Pair<Rule>) -> StmtKind {
        let rule = pair.as_rule();
        let whole = pair.clone();
        let mut inner = self.inner(pair);
        let inner = &mut inner;
        match rule {
            Rule::let_s => {
                let mutable = inner.next_if(Rule::kw_mut).is_some();
                let names = self.names(inner);
                let ty = inner.next_if(Rule::ty).map(|p| self.ty(p));
                let value = self.need_expr(inner);
                StmtKind::Let {
                    mutable,
                    names,
                    ty,
                    value,
                }
            }
            Rule::tile_s => {
                let space = exprs::space(inner.need(Rule::space));
                let name = self.need_name(inner);
                let pair = inner.need(Rule::ty);
                let mut ty = self.ty(pair.clone());
                if ty.shape.is_empty() {
                    self.sink.report(problem::missing_shape(
                        ty.span,
                        &name.name,
                        pair.as_str().trim(),
                    ));
                    return StmtKind::Error;
                }
                ty.space = Some(space);
                let attrs = self.attrs(inner);
                let init = inner.next_if(Rule::expr).map(|p| self.expr(p));
                StmtKind::Tile {
                    name,
                    ty,
                    attrs,
                    init,
                }
            }
            Rule::pipeline_s => StmtKind::Pipeline {
                var: self.need_name(inner),
                range: self.range(inner.need(Rule::range)),
                attrs: self.attrs(inner),
                body: self.need_block(inner),
            },
            Rule::for_s => self.for_stmt(inner),
            Rule::map_s => StmtKind::Map {
                vars: self.names(inner),
                extents: self.shape(inner.need(Rule::shape)),
                attrs: self.attrs(inner),
                body: self.need_block(inner),
            },
            Rule::if_s => self.if_stmt(inner),
            Rule::role_s => StmtKind::Role {
                name: self.need_name(inner),
                attrs: self.attrs(inner),
                body: self.need_block(inner),
            },
            Rule::channel_s => StmtKind::Channel {
                name: self.need_name(inner),
                ty: self.ty(inner.need(Rule::ty)),
                attrs: self.attrs(inner),
            },
            Rule::put_s => StmtKind::Put {
                channel: self.need_name(inner),
                value: self.need_expr(inner),
                attrs: self.attrs(inner),
            },
            Rule::get_s => StmtKind::Get {
                channel: self.need_name(inner),
                name: self.need_name(inner),
            },
            Rule::release_s => StmtKind::Release {
                target: self.need_place(inner),
            },
            Rule::copy_s => StmtKind::Copy {
                dst: self.need_place(inner),
                src: self.need_expr(inner),
                attrs: self.attrs(inner),
            },
            Rule::scatter_s => StmtKind::Scatter {
                target: self.need_place(inner),
                value: self.need_expr(inner),
                attrs: self.attrs(inner),
            },
            Rule::atomic_s => StmtKind::Atomic {
                target: self.need_place(inner),
                op: assign_op(inner.need(Rule::assign_op).as_str()),
                value: self.need_expr(inner),
                attrs: self.attrs(inner),
            },
            Rule::assign_s => StmtKind::Assign {
                target: self.need_place(inner),
                op: assign_op(inner.need(Rule::assign_op).as_str()),
                value: self.need_expr(inner),
                attrs: self.attrs(inner),
            },
            Rule::signal_s => StmtKind::Signal {
                flag: self.need_place(inner),
                after: inner
                    .all(Rule::word)
                    .into_iter()
                    .map(|p| self.name(p))
                    .collect(),
            },
            Rule::wait_s => StmtKind::Wait {
                flag: self.need_place(inner),
                at_least: self.need_expr(inner),
            },
            Rule::assert_s | Rule::assume_s => StmtKind::Assert {
                cond: self.need_expr(inner),
                message: inner.next_if(Rule::string).map(|p| self.string(p)),
                assume: rule == Rule::assume_s,
            },
            Rule::print_s => StmtKind::Print {
                args: self.exprs(inner.all(Rule::expr)),
            },
            Rule::return_s => StmtKind::Return {
                value: inner.next_if(Rule::expr).map(|p| self.expr(p)),
            },
            Rule::asm_s => StmtKind::Asm {
                text: self.string(inner.need(Rule::string)),
                clauses: inner
                    .all(Rule::launch_item)
                    .into_iter()
                    .map(|p| self.launch_item(p))
                    .collect(),
            },
            Rule::call_s => {
                let span = self.span(&whole);
                let path = inner.need(Rule::path);
                let callee_span = self.span(&path);
                let path = self.path(path);
                let args = inner.need(Rule::args);
                let span = callee_span.to(self.span(&args).to(Span {
                    end: callee_span.end,
                    ..span
                }));
                StmtKind::Call(Expr {
                    kind: ExprKind::Call {
                        callee: Box::new(Expr {
                            kind: ExprKind::Name(path),
                            span: callee_span,
                        }),
                        args: self.args(args),
                    },
                    span,
                })
            }
            rule => unreachable!("the grammar has no statement {rule:?}"),
        }
    }

    fn for_stmt(&mut self, inner: &mut Inner) -> StmtKind {
        let mut vars = self.names(inner);
        let lo = self.need_expr(inner);
        let Some(op) = inner.next_if(Rule::range_op) else {
            if let ExprKind::Call { callee, args } = &lo.kind
                && self.text_of(callee.span) == "range"
            {
                let args: Vec<&str> = args.iter().map(|a| self.text_of(a.span)).collect();
                let problem = problem::python_range(lo.span, &args.join(","), false);
                self.sink.report(problem);
            }
            return StmtKind::ForItems {
                vars,
                items: lo,
                attrs: self.attrs(inner),
                body: self.need_block(inner),
            };
        };
        let hi = self.need_expr(inner);
        let range = Range {
            span: lo.span.to(hi.span),
            lo,
            hi,
            inclusive: op.as_str() == "..=",
        };
        if vars.len() > 1 {
            self.sink
                .report(problem::several_loop_variables(vars[1].span));
        }
        StmtKind::For {
            var: vars.swap_remove(0),
            range,
            attrs: self.attrs(inner),
            body: self.need_block(inner),
        }
    }

    /// `else if` chains are flat in the grammar and nested in the tree.
    fn if_stmt(&mut self, inner: &mut Inner) -> StmtKind {
        let mut arms = vec![];
        while let Some(cond) = inner.next_if(Rule::expr) {
            let cond = self.expr(cond);
            arms.push((cond, self.need_block(inner)));
        }
        let mut otherwise = inner.next_if(Rule::block).map(|p| self.block(p));
        if arms.len() > lex::MAX_NESTING {
            let span = arms[lex::MAX_NESTING].0.span;
            self.sink.report(problem::too_deep(
                span,
                "`else if` in a row",
                lex::MAX_NESTING,
            ));
            return StmtKind::Error;
        }
        loop {
            let (cond, then) = arms.pop().expect("the grammar demands one arm");
            let end = otherwise.as_ref().map_or(then.span, |b| b.span);
            let span = cond.span.to(end);
            let kind = StmtKind::If {
                cond,
                then,
                otherwise,
            };
            if arms.is_empty() {
                return kind;
            }
            otherwise = Some(Block {
                stmts: vec![Stmt { kind, span }],
                span,
            });
        }
    }

    fn names(&mut self, inner: &mut Inner) -> Vec<Ident> {
        let pair = inner.need(Rule::names);
        self.inner(pair).pairs.map(|p| self.name(p)).collect()
    }

    pub fn need_name(&mut self, inner: &mut Inner) -> Ident {
        self.name(inner.need(Rule::word))
    }

    pub fn need_expr(&mut self, inner: &mut Inner) -> Expr {
        self.expr(inner.need(Rule::expr))
    }

    fn need_place(&mut self, inner: &mut Inner) -> Expr {
        self.place(inner.need(Rule::place))
    }

    pub fn need_block(&mut self, inner: &mut Inner) -> Block {
        self.block(inner.need(Rule::block))
    }
}

pub fn starts_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
}

fn assign_op(text: &str) -> AssignOp {
    match text {
        "=" => AssignOp::Set,
        "+=" => AssignOp::Add,
        "-=" => AssignOp::Sub,
        "*=" => AssignOp::Mul,
        "/=" => AssignOp::Div,
        "max=" => AssignOp::Max,
        "min=" => AssignOp::Min,
        other => unreachable!("the grammar has no assignment `{other}`"),
    }
}
