//! Expressions: precedence climbing over the grammar's flat lists, names, numbers, types.

use super::*;
use pest::pratt_parser::{Assoc, Op, PrattParser};
use std::sync::LazyLock;

/// Deepest tree of one expression; later stages recurse over it.
const MAX_DEPTH: usize = 200;

/// The depth of an expression that was given up and reported; what is around it is given up in silence.
const TOO_DEEP: usize = usize::MAX;

static PRATT: LazyLock<PrattParser<Rule>> = LazyLock::new(|| {
    PrattParser::new()
        .op(Op::infix(Rule::op_or, Assoc::Left))
        .op(Op::infix(Rule::op_and, Assoc::Left))
        .op(Op::infix(Rule::op_cmp, Assoc::Left))
        .op(Op::infix(Rule::op_bit_or, Assoc::Left))
        .op(Op::infix(Rule::op_bit_xor, Assoc::Left))
        .op(Op::infix(Rule::op_bit_and, Assoc::Left))
        .op(Op::infix(Rule::op_shift, Assoc::Left))
        .op(Op::infix(Rule::op_add, Assoc::Left))
        .op(Op::infix(Rule::op_mul, Assoc::Left))
        .op(Op::prefix(Rule::neg) | Op::prefix(Rule::not))
        .op(Op::postfix(Rule::args) | Op::postfix(Rule::index) | Op::postfix(Rule::method))
});

/// Words with a meaning of their own wherever they stand.
const RESERVED: [&str; 55] = [
    "kernel",
    "fn",
    "const",
    "reference",
    "test",
    "bench",
    "instances",
    "use",
    "module",
    "edition",
    "where",
    "dims",
    "launch",
    "requires",
    "ensures",
    "budget",
    "deny",
    "tune",
    "let",
    "mut",
    "shared",
    "reg",
    "global",
    "channel",
    "role",
    "put",
    "get",
    "release",
    "copy",
    "scatter",
    "atomic",
    "signal",
    "wait",
    "print",
    "assert",
    "assume",
    "return",
    "asm",
    "for",
    "map",
    "pipeline",
    "if",
    "else",
    "in",
    "as",
    "gather",
    "reduce",
    "true",
    "false",
    "and",
    "or",
    "not",
    "while",
    "struct",
    "inout",
];

pub fn is_reserved(word: &str) -> bool {
    RESERVED.contains(&word) || dtype(word).is_some()
}

pub fn dtype(word: &str) -> Option<tessera_artifact::DType> {
    tessera_artifact::DType::ALL
        .into_iter()
        .find(|d| d.name() == word)
}

/// A tree with its depth, so that the limit is kept while it grows.
struct Node {
    expr: Expr,
    depth: usize,
}

impl Builder<'_> {
    /// A name that the user gives; reserved words are reported and then used as they are.
    pub fn name(&mut self, pair: Pair<Rule>) -> Ident {
        let span = self.span(&pair);
        if is_reserved(pair.as_str()) {
            self.sink
                .report(problem::reserved_word(span, pair.as_str()));
        }
        Ident {
            name: pair.as_str().to_string(),
            span,
        }
    }

    /// A word in a place where only certain words have a meaning; a later stage judges it.
    pub fn word(&mut self, pair: Pair<Rule>) -> Ident {
        Ident {
            name: pair.as_str().to_string(),
            span: self.span(&pair),
        }
    }

    pub fn path(&mut self, pair: Pair<Rule>) -> Path {
        let span = self.span(&pair);
        let segments = self.inner(pair).pairs.map(|p| self.name(p)).collect();
        Path { segments, span }
    }

    pub fn expr(&mut self, pair: Pair<Rule>) -> Expr {
        self.node(pair).expr
    }

    pub fn exprs(&mut self, pairs: Vec<Pair<Rule>>) -> Vec<Expr> {
        pairs.into_iter().map(|p| self.expr(p)).collect()
    }

    /// `flat (? expr : flat)*`, nested from the right.
    fn node(&mut self, pair: Pair<Rule>) -> Node {
        if matches!(pair.as_rule(), Rule::flat | Rule::flat_small) {
            return self.flat(pair);
        }
        let mut parts: Vec<Node> = self.inner(pair).pairs.map(|p| self.node(p)).collect();
        let mut last = parts.pop().expect("the grammar demands one");
        while parts.len() >= 2 {
            let then = parts.pop().expect("two are left");
            let cond = parts.pop().expect("one is left");
            let span = cond.expr.span.to(last.expr.span);
            let depth = cond.depth.max(then.depth).max(last.depth);
            last = self.grow(depth, span, || {
                ExprKind::Select(
                    Box::new(cond.expr),
                    Box::new(then.expr),
                    Box::new(last.expr),
                )
            });
        }
        last
    }

    /// A node over children of this depth.
    fn grow(&mut self, depth: usize, span: Span, kind: impl FnOnce() -> ExprKind) -> Node {
        if depth >= MAX_DEPTH {
            if depth != TOO_DEEP {
                self.sink
                    .report(problem::expression_too_deep(span, MAX_DEPTH));
            }
            return Node {
                expr: Expr {
                    kind: ExprKind::Error,
                    span,
                },
                depth: TOO_DEEP,
            };
        }
        Node {
            expr: Expr { kind: kind(), span },
            depth: depth + 1,
        }
    }

    fn flat(&mut self, pair: Pair<Rule>) -> Node {
        // The closures of the Pratt parser share the builder one at a time.
        let this = std::cell::RefCell::new(self);
        PRATT
            .map_primary(|p| this.borrow_mut().primary(p))
            .map_prefix(|op, operand| this.borrow_mut().prefix(op, operand))
            .map_postfix(|operand, op| this.borrow_mut().postfix(operand, op))
            .map_infix(|a, op, b| this.borrow_mut().infix(a, op, b))
            .parse(pair.into_inner())
    }

    fn prefix(&mut self, op: Pair<Rule>, operand: Node) -> Node {
        let span = self.span(&op).to(operand.expr.span);
        let kind = match op.as_rule() {
            Rule::neg => UnaryOp::Neg,
            _ => UnaryOp::Not,
        };
        self.grow(operand.depth, span, || {
            ExprKind::Unary(kind, Box::new(operand.expr))
        })
    }

    fn infix(&mut self, a: Node, op: Pair<Rule>, b: Node) -> Node {
        let kind = binary_op(op.as_str());
        let chained = matches!(&a.expr.kind, ExprKind::Binary(k, ..) if is_comparison(*k));
        if is_comparison(kind) && chained && !self.in_parens(a.expr.span) {
            let span = self.span(&op);
            self.sink.report(problem::chained_comparison(span));
        }
        let span = a.expr.span.to(b.expr.span);
        self.grow(a.depth.max(b.depth), span, || {
            ExprKind::Binary(kind, Box::new(a.expr), Box::new(b.expr))
        })
    }

    /// The text of a span of this item.
    pub fn text_of(&self, span: Span) -> &str {
        &self.source[span.start as usize - self.base..span.end as usize - self.base]
    }

    /// Whether the text of the span is one bracketed group.
    fn in_parens(&self, span: Span) -> bool {
        lex::is_group(self.text_of(span))
    }

    fn postfix(&mut self, operand: Node, op: Pair<Rule>) -> Node {
        let span = operand.expr.span.to(self.span(&op));
        let base = Box::new(operand.expr);
        match op.as_rule() {
            Rule::args => {
                let (args, depth) = self.args_with_depth(op);
                self.grow(depth.max(operand.depth), span, || ExprKind::Call {
                    callee: base,
                    args,
                })
            }
            Rule::index => {
                let (slots, depth) = self.slots(op);
                self.grow(depth.max(operand.depth), span, || ExprKind::Index {
                    base,
                    slots,
                })
            }
            _ => {
                let mut inner = self.inner(op);
                let name = inner.need(Rule::word);
                let name = self.word(name);
                let (args, depth) = match inner.next_if(Rule::args) {
                    Some(p) => self.args_with_depth(p),
                    None => (vec![], 0),
                };
                self.grow(depth.max(operand.depth), span, || ExprKind::Method {
                    receiver: base,
                    name,
                    args,
                })
            }
        }
    }

    fn primary(&mut self, pair: Pair<Rule>) -> Node {
        let span = self.span(&pair);
        let leaf = |kind| Node {
            expr: Expr { kind, span },
            depth: 1,
        };
        match pair.as_rule() {
            Rule::number => leaf(self.number(pair)),
            Rule::string => leaf(ExprKind::Str(self.string(pair))),
            Rule::path => leaf(self.path_expr(pair)),
            Rule::paren => {
                let mut inner = self.inner(pair);
                let exprs = inner.all(Rule::expr);
                let last_comma = inner.next_if(Rule::last_comma).is_some();
                let mut parts: Vec<Node> = exprs.into_iter().map(|p| self.node(p)).collect();
                if parts.len() == 1 && !last_comma {
                    // The span takes the brackets in: so they are seen in messages and kept by the formatter.
                    let mut only = parts.remove(0);
                    only.expr.span = span;
                    return only;
                }
                let depth = parts.iter().map(|p| p.depth).max().unwrap_or(0);
                self.grow(depth, span, || {
                    ExprKind::Tuple(parts.into_iter().map(|p| p.expr).collect())
                })
            }
            Rule::reduce_e => {
                let mut inner = self.inner(pair);
                let op = self.word(inner.need(Rule::word));
                let var = inner.need(Rule::word);
                let var = self.name(var);
                let range = self.range(inner.need(Rule::range));
                let body = self.node(inner.need(Rule::expr));
                self.grow(body.depth, span, || ExprKind::Reduce {
                    op,
                    var,
                    range: Box::new(range),
                    body: Box::new(body.expr),
                })
            }
            rule => unreachable!("the grammar has no primary {rule:?}"),
        }
    }

    fn path_expr(&mut self, pair: Pair<Rule>) -> ExprKind {
        // A rule that ends in a repetition takes the blanks behind it in.
        match pair.as_str().trim_end() {
            "true" => ExprKind::Bool(true),
            "false" => ExprKind::Bool(false),
            word => match dtype(word) {
                Some(d) => ExprKind::DType(d),
                None => ExprKind::Name(self.path(pair)),
            },
        }
    }

    pub fn args(&mut self, pair: Pair<Rule>) -> Vec<Arg> {
        self.args_with_depth(pair).0
    }

    fn args_with_depth(&mut self, pair: Pair<Rule>) -> (Vec<Arg>, usize) {
        let mut depth = 0;
        let args = self
            .inner(pair)
            .pairs
            .map(|p| {
                let (arg, d) = self.arg(p);
                depth = depth.max(d);
                arg
            })
            .collect();
        (args, depth)
    }

    pub fn arg(&mut self, pair: Pair<Rule>) -> (Arg, usize) {
        let span = self.span(&pair);
        let mut inner = self.inner(pair);
        let name = inner.next_if(Rule::arg_name).map(|p| {
            let word = self.inner(p).need(Rule::word);
            self.word(word)
        });
        let value = self.node(inner.need(Rule::expr));
        let mut depth = value.depth;
        let range_end = inner.next_if(Rule::range_op).map(|op| {
            let inclusive = op.as_str() == "..=";
            let end = self.node(inner.need(Rule::expr));
            depth = depth.max(end.depth);
            (end.expr, inclusive)
        });
        let arg = Arg {
            name,
            value: value.expr,
            range_end,
            span,
        };
        (arg, depth)
    }

    fn slots(&mut self, pair: Pair<Rule>) -> (Vec<IndexSlot>, usize) {
        let mut depth = 0;
        let mut slots = vec![];
        for p in self.inner(pair).pairs {
            slots.push(match p.as_rule() {
                Rule::full => IndexSlot::Full(self.span(&p)),
                Rule::gather => {
                    let node = self.node(self.inner(p).need(Rule::expr));
                    depth = depth.max(node.depth);
                    IndexSlot::Gather(node.expr)
                }
                _ => {
                    let mut inner = self.inner(p);
                    let start = self.node(inner.need(Rule::expr));
                    depth = depth.max(start.depth);
                    match inner.next_if(Rule::span_op) {
                        None => IndexSlot::At(start.expr),
                        Some(_) => {
                            let len = self.node(inner.need(Rule::expr));
                            depth = depth.max(len.depth);
                            IndexSlot::Span {
                                start: start.expr,
                                len: len.expr,
                            }
                        }
                    }
                }
            });
        }
        (slots, depth)
    }

    /// `name` or `name[slots]`.
    pub fn place(&mut self, pair: Pair<Rule>) -> Expr {
        let span = self.span(&pair);
        let mut inner = self.inner(pair);
        let name = inner.need(Rule::word);
        let name = self.name(name);
        let base = Expr {
            span: name.span,
            kind: ExprKind::Name(Path {
                span: name.span,
                segments: vec![name],
            }),
        };
        match inner.next_if(Rule::index) {
            None => base,
            Some(index) => {
                let (slots, _) = self.slots(index);
                Expr {
                    kind: ExprKind::Index {
                        base: Box::new(base),
                        slots,
                    },
                    span,
                }
            }
        }
    }

    pub fn range(&mut self, pair: Pair<Rule>) -> Range {
        let span = self.span(&pair);
        let mut inner = self.inner(pair);
        let lo = self.expr(inner.need(Rule::expr));
        let inclusive = inner.need(Rule::range_op).as_str() == "..=";
        let hi = self.expr(inner.need(Rule::expr));
        Range {
            lo,
            hi,
            inclusive,
            span,
        }
    }

    pub fn ty(&mut self, pair: Pair<Rule>) -> Type {
        let span = self.span(&pair);
        let mut inner = self.inner(pair);
        let space = inner.next_if(Rule::space).map(space);
        let shape = match inner.next_if(Rule::shape) {
            Some(p) => self.shape(p),
            None => vec![],
        };
        let elem = inner.need(Rule::word);
        let elem = match (dtype(elem.as_str()), elem.as_str()) {
            (Some(d), _) => ElemType::DType(d),
            (None, "index") => ElemType::Index,
            _ => ElemType::Name(self.name(elem)),
        };
        Type {
            space,
            shape,
            elem,
            span,
        }
    }

    pub fn shape(&mut self, pair: Pair<Rule>) -> Vec<Expr> {
        let inner = self.inner(pair);
        inner.pairs.map(|p| self.expr(p)).collect()
    }

    pub fn attrs(&mut self, inner: &mut Inner) -> Vec<Attr> {
        let mut attrs = vec![];
        while let Some(pair) = inner.next_if(Rule::attr) {
            let span = self.span(&pair);
            let mut inner = self.inner(pair);
            let name = inner.need(Rule::word);
            let name = self.word(name);
            let args = match inner.next_if(Rule::args) {
                Some(p) => self.args(p),
                None => vec![],
            };
            attrs.push(Attr { name, args, span });
        }
        attrs
    }

    pub fn string(&mut self, pair: Pair<Rule>) -> String {
        let text = pair.as_str();
        let body = &text[1..text.len() - 1];
        let mut out = String::with_capacity(body.len());
        let mut chars = body.char_indices();
        while let Some((i, c)) = chars.next() {
            if c != '\\' {
                out.push(c);
                continue;
            }
            let (_, escaped) = chars.next().expect("the grammar lets no text end in `\\`");
            match escaped {
                '"' | '\\' => out.push(escaped),
                'n' => out.push('\n'),
                't' => out.push('\t'),
                other => {
                    let start = pair.as_span().start() + 1 + i;
                    let span = self.at(start, start + 1 + other.len_utf8());
                    self.sink.report(problem::bad_escape(span, other));
                }
            }
        }
        out
    }

    pub fn number(&mut self, pair: Pair<Rule>) -> ExprKind {
        let span = self.span(&pair);
        number(pair.as_str()).unwrap_or_else(|why| {
            self.sink
                .report(problem::bad_number(span, pair.as_str(), why));
            ExprKind::Error
        })
    }
}

pub fn space(pair: Pair<Rule>) -> Space {
    match pair.as_str() {
        "shared" => Space::Shared,
        "reg" => Space::Reg,
        "global" => Space::Global,
        _ => Space::Cluster,
    }
}

fn is_comparison(op: BinaryOp) -> bool {
    use BinaryOp::*;
    matches!(op, Eq | Ne | Lt | Le | Gt | Ge)
}

fn binary_op(text: &str) -> BinaryOp {
    use BinaryOp::*;
    match text {
        "+" => Add,
        "-" => Sub,
        "*" => Mul,
        "/" => Div,
        "%" => Rem,
        "<<" => Shl,
        ">>" => Shr,
        "&" => BitAnd,
        "|" => BitOr,
        "^" => BitXor,
        "&&" => And,
        "||" => Or,
        "==" => Eq,
        "!=" => Ne,
        "<" => Lt,
        "<=" => Le,
        ">" => Gt,
        ">=" => Ge,
        other => unreachable!("the grammar has no operator `{other}`"),
    }
}

/// The value of a number token, unit applied.
fn number(text: &str) -> Result<ExprKind, problem::NumberFault> {
    use problem::NumberFault::*;
    let digits: String;
    if let Some(hex) = text.strip_prefix("0x") {
        digits = hex.replace('_', "");
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Hex);
        }
        return i128::from_str_radix(&digits, 16)
            .ok()
            .filter(|v| *v <= u64::MAX as i128)
            .map(ExprKind::Int)
            .ok_or(TooLarge);
    }
    let bytes = text.as_bytes();
    let run = |mut i: usize| {
        while bytes
            .get(i)
            .is_some_and(|b| b.is_ascii_digit() || *b == b'_')
        {
            i += 1;
        }
        i
    };
    let mut end = run(0);
    let mut float = false;
    if bytes.get(end) == Some(&b'.') {
        float = true;
        end = run(end + 1);
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = matches!(bytes.get(end + 1), Some(b'+' | b'-')) as usize;
        let exponent = end + 1 + sign;
        if bytes.get(exponent).is_some_and(|b| b.is_ascii_digit()) {
            float = true;
            end = run(exponent);
        }
    }
    let (value, unit) = text.split_at(end);
    digits = value.replace('_', "");
    let factor: i128 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(Unit),
    };
    if float {
        if !unit.is_empty() {
            return Err(FractionOfUnit);
        }
        let value: f64 = digits.parse().map_err(|_| Hex)?;
        return if value.is_finite() {
            Ok(ExprKind::Float(value))
        } else {
            Err(TooLarge)
        };
    }
    let value: i128 = digits.parse().map_err(|_| TooLarge)?;
    value
        .checked_mul(factor)
        .filter(|v| *v <= u64::MAX as i128)
        .map(ExprKind::Int)
        .ok_or(TooLarge)
}
