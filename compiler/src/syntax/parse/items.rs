//! Items, parameters, clauses, test lines.

use super::*;

pub struct Attached {
    pub docs: Vec<Comment>,
    /// Doc comments that stand in front of no item; kept as comments.
    pub loose: Vec<Comment>,
}

/// Of the doc comments since the last item, those with only blanks up to the item's first word at `start`.
pub fn attached_docs(blanked: &str, docs: Vec<Comment>, start: usize) -> Attached {
    let mut first = docs.len();
    let mut next = start;
    while first > 0
        && blanked[docs[first - 1].span.end as usize..next]
            .trim()
            .is_empty()
    {
        first -= 1;
        next = docs[first].span.start as usize;
    }
    let mut loose = docs;
    let docs = loose.split_off(first);
    Attached { docs, loose }
}

impl Builder<'_> {
    pub fn item(&mut self, pair: Pair<Rule>, out: &mut File) {
        let rule = pair.as_rule();
        let span = self.span(&pair);
        match rule {
            Rule::EOI => return,
            Rule::leftover => return self.report_leftover(&pair, out),
            Rule::broken_item => {
                self.report_broken_item(&pair);
                for p in self.inner(pair).pairs {
                    if p.as_rule() == Rule::block && self.has_statements() {
                        self.block(p);
                    }
                }
                out.items.push(Item::Error(span));
                return;
            }
            _ => self.check_end(&pair),
        }
        let is_bench = rule == Rule::test && stmts::starts_with_word(pair.as_str(), "bench");
        let mut inner = self.inner(pair);
        let inner = &mut inner;
        match rule {
            Rule::edition => {
                let number = inner.need(Rule::number);
                let number_span = self.span(&number);
                match self.number(number) {
                    ExprKind::Int(2026) => {}
                    ExprKind::Error => return,
                    _ => self.sink.report(problem::unknown_edition(number_span)),
                }
                if out.edition.is_some() {
                    self.sink.report(problem::second_header(span, "edition"));
                }
                out.edition = Some((2026, span));
            }
            Rule::module => {
                let path = self.path(inner.need(Rule::path));
                if out.module.is_some() {
                    self.sink.report(problem::second_header(span, "module"));
                }
                out.module = Some(path);
            }
            Rule::use_decl => self.use_decl(inner, span, out),
            Rule::const_item => {
                let docs = self.take_docs();
                let name = self.need_name(inner);
                if let Some(ty) = inner.next_if(Rule::ty) {
                    let ty = self.span(&ty);
                    self.sink.report(problem::typed_const(ty, &name.name));
                }
                let value = self.need_expr(inner);
                out.items.push(Item::Const(Const {
                    docs,
                    name,
                    value,
                    span,
                }));
            }
            Rule::function => {
                let item = self.function(inner, span);
                out.items.push(Item::Function(item));
            }
            Rule::kernel => {
                let item = self.kernel(inner, span);
                out.items.push(Item::Kernel(item));
            }
            Rule::instances => {
                let kernel = self.need_name(inner);
                let list = inner
                    .all(Rule::instance)
                    .into_iter()
                    .map(|p| {
                        let span = self.span(&p);
                        let args = self.inner(p).need(Rule::args);
                        (self.args(args), span)
                    })
                    .collect();
                out.items
                    .push(Item::Instances(Instances { kernel, list, span }));
            }
            Rule::reference => {
                let docs = self.take_docs();
                let item = Reference {
                    docs,
                    name: self.need_name(inner),
                    kernel: self.need_name(inner),
                    body: self.need_block(inner),
                    span,
                };
                out.items.push(Item::Reference(item));
            }
            Rule::test => {
                inner.next_if(Rule::kw_bench);
                let docs = self.take_docs();
                let title = self.string(inner.need(Rule::string));
                let kernel = self.need_name(inner);
                let mut lines = vec![];
                while let Some(p) = inner.next() {
                    lines.push(self.test_line(p));
                }
                let test = Test {
                    docs,
                    title,
                    kernel,
                    lines,
                    span,
                };
                out.items.push(if is_bench {
                    Item::Bench(test)
                } else {
                    Item::Test(test)
                });
            }
            rule => unreachable!("the grammar has no item {rule:?}"),
        }
    }

    /// Whether this item's block holds statements.
    fn has_statements(&self) -> bool {
        ["kernel", "fn", "reference"]
            .iter()
            .any(|w| stmts::starts_with_word(self.source.trim_start(), w))
    }

    fn use_decl(&mut self, inner: &mut Inner, span: Span, out: &mut File) {
        let mut path = self.path(inner.need(Rule::path));
        let names = match inner.next_if(Rule::use_names) {
            Some(p) => self.inner(p).pairs.map(|p| self.name(p)).collect(),
            None if path.segments.len() > 1 => {
                let last = path.segments.pop().expect("more than one");
                let before = path.segments.last().expect("more than one").span;
                path.span = path.span.to(before);
                path.span.end = before.end;
                vec![last]
            }
            None => {
                self.sink.report(problem::use_without_names(
                    path.span,
                    &path.segments[0].name,
                ));
                return;
            }
        };
        out.uses.push(Use { path, names, span });
    }

    fn function(&mut self, inner: &mut Inner, span: Span) -> Function {
        let docs = self.take_docs();
        let name = self.need_name(inner);
        let generics = self.generics(inner);
        let list = inner.need(Rule::fn_params);
        let mut params = vec![];
        for p in self.inner(list).pairs {
            if p.as_rule() == Rule::broken_param {
                self.report_broken_param(&p, false);
                continue;
            }
            let mut inner = self.inner(p);
            let name = self.need_name(&mut inner);
            params.push((name, self.ty(inner.need(Rule::ty))));
        }
        Function {
            docs,
            name,
            generics,
            params,
            result: inner.next_if(Rule::ty).map(|p| self.ty(p)),
            body: self.need_block(inner),
            span,
        }
    }

    fn kernel(&mut self, inner: &mut Inner, span: Span) -> Kernel {
        let docs = self.take_docs();
        let name = self.need_name(inner);
        let generics = self.generics(inner);
        let list = inner.need(Rule::params);
        let mut params = vec![];
        for p in self.inner(list).pairs {
            params.extend(self.param(p));
        }
        let mut clauses = vec![];
        while inner
            .pairs
            .peek()
            .is_some_and(|p| p.as_rule() != Rule::block)
        {
            let pair = inner.next().expect("peeked");
            clauses.push(self.clause(pair));
        }
        Kernel {
            docs,
            name,
            generics,
            params,
            clauses,
            body: self.need_block(inner),
            span,
        }
    }

    fn generics(&mut self, inner: &mut Inner) -> Vec<Generic> {
        let Some(list) = inner.next_if(Rule::generics) else {
            return vec![];
        };
        let mut generics = vec![];
        for p in self.inner(list).pairs {
            if p.as_rule() == Rule::broken_generic {
                self.report_broken_generic(&p);
                continue;
            }
            let span = self.span(&p);
            let mut inner = self.inner(p);
            let name = self.need_name(&mut inner);
            let kind = inner.need(Rule::word);
            let kind = match kind.as_str() {
                "int" => GenericKind::Int,
                "bool" => GenericKind::Bool,
                "dtype" => GenericKind::DType,
                other => {
                    let span = self.span(&kind);
                    self.sink.report(problem::unknown_kind(span, other));
                    GenericKind::Int
                }
            };
            let default = inner.next().map(|p| self.expr(p));
            generics.push(Generic {
                name,
                kind,
                default,
                span,
            });
        }
        generics
    }

    fn param(&mut self, pair: Pair<Rule>) -> Option<Param> {
        if pair.as_rule() == Rule::broken_param {
            self.report_broken_param(&pair, true);
            return None;
        }
        let span = self.span(&pair);
        let mut inner = self.inner(pair);
        let name = self.need_name(&mut inner);
        let mode = inner.next_if(Rule::mode).map(|p| match p.as_str() {
            "in" => Mode::In,
            "out" => Mode::Out,
            "inout" => Mode::InOut,
            "scratch" => Mode::Scratch,
            _ => Mode::Flags,
        });
        let elem = inner.need(Rule::ty);
        let ty = self.ty(elem.clone());
        let attrs = self.attrs(&mut inner);
        match mode {
            Some(mode) if ty.shape.is_empty() => {
                let between = Span {
                    start: name.span.end,
                    end: ty.span.start,
                    ..span
                };
                self.sink.report(problem::scalar_with_mode(
                    ty.span,
                    between,
                    &name.name,
                    mode_word(mode),
                    elem.as_str().trim(),
                ));
            }
            None if !ty.shape.is_empty() => {
                self.sink.report(problem::missing_mode(ty.span, &name.name))
            }
            _ => {}
        }
        Some(Param {
            name,
            mode,
            ty,
            attrs,
            span,
        })
    }

    fn clause(&mut self, pair: Pair<Rule>) -> Clause {
        let span = self.span(&pair);
        let rule = pair.as_rule();
        if rule == Rule::broken_clause {
            self.report_broken_clause(&pair);
            return Clause::Error(span);
        }
        let mut inner = self.inner(pair);
        match rule {
            Rule::dims_c => Clause::Dims(inner.pairs.map(|p| self.dim(p)).collect(), span),
            Rule::launch_c => {
                Clause::Launch(inner.pairs.map(|p| self.launch_item(p)).collect(), span)
            }
            Rule::deny_c => Clause::Deny(inner.pairs.map(|p| self.word(p)).collect(), span),
            Rule::tune_c => {
                let dims = inner.all(Rule::tune_dims).into_iter().next();
                let dims = dims.map_or(vec![], |p| {
                    self.inner(p).pairs.map(|p| self.word(p)).collect()
                });
                let mut lines = vec![];
                for p in inner.all(Rule::tune_line) {
                    self.check_end(&p);
                    let mut inner = self.inner(p);
                    let name = self.need_name(&mut inner);
                    let set = inner.need(Rule::set);
                    lines.push((name, self.shape(set)));
                }
                Clause::Tune(dims, lines, span)
            }
            _ => {
                let list = inner.pairs.map(|p| self.constraint(p)).collect();
                match rule {
                    Rule::where_c => Clause::Where(list, span),
                    Rule::requires_c => Clause::Requires(list, span),
                    Rule::ensures_c => Clause::Ensures(list, span),
                    _ => Clause::Budget(list, span),
                }
            }
        }
    }

    fn constraint(&mut self, pair: Pair<Rule>) -> Constraint {
        let span = self.span(&pair);
        let mut inner = self.inner(pair);
        let expr = self.need_expr(&mut inner);
        let membership = if let Some(p) = inner.next_if(Rule::range) {
            Some(Membership::Range(self.range(p)))
        } else {
            inner
                .next_if(Rule::set)
                .map(|p| Membership::Set(self.shape(p)))
        };
        let message = inner.next_if(Rule::string).map(|p| self.string(p));
        Constraint {
            expr,
            membership,
            message,
            span,
        }
    }

    fn dim(&mut self, pair: Pair<Rule>) -> Dim {
        let span = self.span(&pair);
        let mut inner = self.inner(pair);
        Dim {
            name: self.need_name(&mut inner),
            range: self.range(inner.need(Rule::range)),
            step: inner.next_if(Rule::expr).map(|p| self.expr(p)),
            attrs: self.attrs(&mut inner),
            span,
        }
    }

    pub fn launch_item(&mut self, pair: Pair<Rule>) -> (Ident, Vec<Arg>) {
        let mut inner = self.inner(pair);
        let name = self.word(inner.need(Rule::word));
        (name, self.args(inner.need(Rule::args)))
    }

    fn test_line(&mut self, pair: Pair<Rule>) -> TestLine {
        let span = self.span(&pair);
        let rule = pair.as_rule();
        if rule == Rule::broken_line {
            self.report_broken_line(&pair);
            return TestLine::Error(span);
        }
        self.check_end(&pair);
        let mut inner = self.inner(pair);
        match rule {
            Rule::t_fill => TestLine::Fill {
                tensor: self.need_name(&mut inner),
                distribution: self.need_expr(&mut inner),
                attrs: self.attrs(&mut inner),
                span,
            },
            Rule::t_expect => TestLine::Expect {
                tensor: self.need_name(&mut inner),
                against: self.need_name(&mut inner),
                attrs: self.attrs(&mut inner),
                span,
            },
            Rule::t_same => TestLine::ExpectSame {
                tensor: self.need_name(&mut inner),
                args: inner
                    .all(Rule::arg)
                    .into_iter()
                    .map(|p| self.arg(p).0)
                    .collect(),
                span,
            },
            Rule::t_error => TestLine::ExpectError {
                text: self.string(inner.need(Rule::string)),
                span,
            },
            Rule::t_run => TestLine::Run(
                inner
                    .pairs
                    .filter(|p| p.as_rule() == Rule::word)
                    .map(|p| self.word(p))
                    .collect(),
                span,
            ),
            _ => {
                let args = inner
                    .all(Rule::arg)
                    .into_iter()
                    .map(|p| self.arg(p).0)
                    .collect();
                if rule == Rule::t_with {
                    TestLine::With(args, span)
                } else {
                    TestLine::Floor(args, span)
                }
            }
        }
    }
}

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::In => "in",
        Mode::Out => "out",
        Mode::InOut => "inout",
        Mode::Scratch => "scratch",
        Mode::Flags => "flags",
    }
}
