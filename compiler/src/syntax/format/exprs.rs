//! One element as pieces between which a line may break: expressions, types, attributes, statement heads, test lines.

use crate::source::Span;
use crate::syntax::ast::*;
use crate::syntax::lex;

#[derive(Clone)]
pub struct Piece {
    pub text: String,
    /// Nesting of the break before it: outer ones are broken first.
    pub depth: usize,
    /// A space stands before it where the line doesn't break.
    pub space: bool,
}

#[derive(Clone)]
pub struct Parts<'a> {
    pub pieces: Vec<Piece>,
    /// The source with comments blanked, or nothing.
    source: &'a str,
    depth: usize,
    /// Further lines are indented by this much.
    pub hang: usize,
}

/// Binding strength; a child that binds less than its place demands gets parentheses.
mod strength {
    pub const ANY: u8 = 0;
    pub const OR: u8 = 1;
    pub const COMPARE: u8 = 3;
    pub const ADD: u8 = 8;
    pub const UNARY: u8 = 10;
    pub const POSTFIX: u8 = 11;
    pub const ATOM: u8 = 12;
}
use strength::*;

impl<'a> Parts<'a> {
    pub fn new(source: &'a str) -> Self {
        Parts {
            pieces: vec![Piece {
                text: String::new(),
                depth: 0,
                space: false,
            }],
            source,
            depth: 0,
            hang: super::INDENT,
        }
    }

    pub fn text(&mut self, text: &str) {
        self.pieces
            .last_mut()
            .expect("made with one piece, and none is removed")
            .text
            .push_str(text);
    }

    pub fn break_or_space(&mut self, depth: usize) {
        self.pieces.push(Piece {
            text: String::new(),
            depth: self.depth + depth,
            space: true,
        });
    }

    fn break_or_nothing(&mut self) {
        self.pieces.push(Piece {
            text: String::new(),
            depth: self.depth,
            space: false,
        });
    }

    pub fn width(&self) -> usize {
        let text: usize = self.pieces.iter().map(|p| p.text.chars().count()).sum();
        text + self.pieces.iter().skip(1).filter(|p| p.space).count()
    }

    /// `a, b, c`
    pub fn list<T>(&mut self, list: &'a [T], each: impl Fn(&mut Self, &'a T)) {
        self.depth += 1;
        for (i, item) in list.iter().enumerate() {
            if i > 0 {
                self.text(",");
                self.break_or_space(0);
            }
            each(self, item);
        }
        self.depth -= 1;
    }

    fn source_of(&self, span: Span) -> &'a str {
        self.source.get(span.range()).unwrap_or("")
    }

    // ---- expressions -----------------------------------------------------------------------------------------------------

    pub fn path(&mut self, path: &Path) {
        for (i, segment) in path.segments.iter().enumerate() {
            if i > 0 {
                self.text("::");
            }
            self.text(&segment.name);
        }
    }

    pub fn expr(&mut self, e: &'a Expr) {
        self.expr_in(e, ANY);
    }

    /// The expression in a place that demands this strength.
    fn expr_in(&mut self, e: &'a Expr, demanded: u8) {
        // Parentheses of the source stay, needed or not.
        let written =
            lex::is_group(self.source_of(e.span)) && !matches!(e.kind, ExprKind::Tuple(_));
        if written || strength_of(e) < demanded {
            self.text("(");
            self.depth += 1;
            self.bare_expr(e);
            self.depth -= 1;
            self.text(")");
        } else {
            self.bare_expr(e);
        }
    }

    fn bare_expr(&mut self, e: &'a Expr) {
        match &e.kind {
            ExprKind::Int(value) => self.number(e.span, format!("{value}")),
            ExprKind::Float(value) => self.number(e.span, format!("{value:?}")),
            ExprKind::Str(text) => self.text(&quoted(text)),
            ExprKind::Bool(value) => self.text(if *value { "true" } else { "false" }),
            ExprKind::DType(d) => self.text(d.name()),
            ExprKind::Name(path) => self.path(path),
            ExprKind::Unary(op, operand) => {
                self.text(match op {
                    UnaryOp::Neg => "-",
                    UnaryOp::Not => "!",
                });
                self.expr_in(operand, UNARY);
            }
            ExprKind::Binary(op, a, b) => {
                let (sign, own) = binary(*op);
                // Comparisons don't chain; all others group from the left.
                let left = if own == COMPARE { own + 1 } else { own };
                self.depth += own as usize;
                self.expr_in(a, left);
                self.break_or_space(0);
                self.text(sign);
                self.text(" ");
                self.expr_in(b, own + 1);
                self.depth -= own as usize;
            }
            ExprKind::Select(c, a, b) => {
                self.expr_in(c, OR);
                self.break_or_space(0);
                self.text("? ");
                self.expr(a);
                self.break_or_space(0);
                self.text(": ");
                self.expr(b);
            }
            ExprKind::Call { callee, args } => {
                self.expr_in(callee, POSTFIX);
                self.args(args);
            }
            ExprKind::Method {
                receiver,
                name,
                args,
            } => {
                self.expr_in(receiver, POSTFIX);
                self.text(".");
                self.text(&name.name);
                if !args.is_empty() || self.has_parens(name.span) {
                    self.args(args);
                }
            }
            ExprKind::Index { base, slots } => {
                self.expr_in(base, POSTFIX);
                self.text("[");
                self.list(slots, |p, slot| p.slot(slot));
                self.text("]");
            }
            ExprKind::Reduce {
                op,
                var,
                range,
                body,
            } => {
                self.text(&format!("reduce {}({} in ", op.name, var.name));
                self.range(range);
                self.text(") {");
                self.depth += 1;
                self.break_or_space(0);
                self.expr(body);
                self.depth -= 1;
                self.text(" }");
            }
            ExprKind::Tuple(parts) => {
                self.text("(");
                self.list(parts, |p, e| p.expr(e));
                if parts.len() == 1 {
                    self.text(",");
                }
                self.text(")");
            }
            ExprKind::Error => {
                let text = self.source_of(e.span);
                self.text(text);
            }
        }
    }

    /// A number as the source has it (`227KiB`, `0xff`), or by its value.
    fn number(&mut self, span: Span, value: String) {
        let written = self
            .source_of(span)
            .trim_matches(['(', ')', ' ', '\t', '\r', '\n']);
        if written.starts_with(|c: char| c.is_ascii_digit()) {
            self.text(written);
        } else {
            self.text(&value);
        }
    }

    /// `x.t()` against `role.product`: the tree holds both alike.
    fn has_parens(&self, name: Span) -> bool {
        let rest = self.source.get(name.end as usize..).unwrap_or("");
        self.source.is_empty() || rest.trim_start().starts_with('(')
    }

    fn slot(&mut self, slot: &'a IndexSlot) {
        match slot {
            IndexSlot::At(e) => self.expr(e),
            IndexSlot::Span { start, len } => {
                self.expr(start);
                self.text(" :+ ");
                self.expr(len);
            }
            IndexSlot::Full(_) => self.text(":"),
            IndexSlot::Gather(e) => {
                self.text("gather ");
                self.expr(e);
            }
        }
    }

    pub fn args(&mut self, args: &'a [Arg]) {
        self.text("(");
        if args.len() > 1 {
            self.depth += 1;
            self.break_or_nothing();
            self.depth -= 1;
        }
        self.list(args, |p, a| p.arg(a));
        self.text(")");
    }

    fn arg(&mut self, arg: &'a Arg) {
        if let Some(name) = &arg.name {
            self.text(&format!("{} = ", name.name));
        }
        self.expr(&arg.value);
        if let Some((end, inclusive)) = &arg.range_end {
            self.text(if *inclusive { "..=" } else { ".." });
            self.expr(end);
        }
    }

    pub fn range(&mut self, range: &'a Range) {
        self.expr(&range.lo);
        self.text(if range.inclusive { "..=" } else { ".." });
        self.expr(&range.hi);
    }

    // ---- types, parameters, constraints ----------------------------------------------------------------------------------

    pub fn ty(&mut self, ty: &'a Type) {
        if let Some(space) = ty.space {
            self.text(space_word(space));
            self.text(" ");
        }
        self.ty_without_space(ty);
    }

    fn ty_without_space(&mut self, ty: &'a Type) {
        if !ty.shape.is_empty() {
            self.text("[");
            self.list(&ty.shape, |p, e| p.expr(e));
            self.text("] ");
        }
        match &ty.elem {
            ElemType::DType(d) => self.text(d.name()),
            ElemType::Index => self.text("index"),
            ElemType::Name(name) => self.text(&name.name),
        }
    }

    pub fn attrs(&mut self, attrs: &'a [Attr]) {
        for attr in attrs {
            self.break_or_space(0);
            self.text("@");
            self.text(&attr.name.name);
            if !attr.args.is_empty() {
                self.args(&attr.args);
            }
        }
    }

    pub fn generics(&mut self, generics: &'a [Generic]) {
        if generics.is_empty() {
            return;
        }
        self.text("<");
        self.list(generics, |p, g| {
            let kind = match g.kind {
                GenericKind::Int => "int",
                GenericKind::Bool => "bool",
                GenericKind::DType => "dtype",
            };
            p.text(&format!("{}: {kind}", g.name.name));
            if let Some(default) = &g.default {
                p.text(" = ");
                // `>` would end the list.
                p.expr_in(default, ADD);
            }
        });
        self.text(">");
    }

    /// The columns are the widths of names and modes to line up with.
    pub fn param(&mut self, p: &'a Param, name_column: usize, mode_column: usize) {
        self.text(&format!(
            "{:width$}",
            format!("{}:", p.name.name),
            width = name_column + 2
        ));
        if let Some(mode) = p.mode {
            self.text(&format!("{:mode_column$} ", mode_word(mode)));
        }
        self.ty(&p.ty);
        self.attrs(&p.attrs);
    }

    pub fn constraint(&mut self, c: &'a Constraint) {
        self.depth += 1;
        self.expr(&c.expr);
        match &c.membership {
            None => {}
            Some(Membership::Range(range)) => {
                self.text(" in ");
                self.range(range);
            }
            Some(Membership::Set(set)) => {
                self.text(" in {");
                self.list(set, |p, e| p.expr(e));
                self.text("}");
            }
        }
        if let Some(message) = &c.message {
            self.break_or_space(0);
            self.text(&quoted(message));
        }
        self.depth -= 1;
    }

    // ---- statements ------------------------------------------------------------------------------------------------------

    /// The statement, or all of it up to its block.
    pub fn stmt_head(&mut self, stmt: &'a Stmt) -> Option<&'a Block> {
        match &stmt.kind {
            StmtKind::Pipeline {
                var,
                range,
                attrs,
                body,
            } => {
                self.text(&format!("pipeline {} in ", var.name));
                self.range(range);
                return self.block_after(attrs, body);
            }
            StmtKind::For {
                var,
                range,
                attrs,
                body,
            } => {
                self.text(&format!("for {} in ", var.name));
                self.range(range);
                return self.block_after(attrs, body);
            }
            StmtKind::ForItems {
                vars,
                items,
                attrs,
                body,
            } => {
                self.text("for ");
                self.names(vars);
                self.text(" in ");
                self.expr(items);
                return self.block_after(attrs, body);
            }
            StmtKind::Map {
                vars,
                extents,
                attrs,
                body,
            } => {
                self.text("map ");
                self.names(vars);
                self.text(" in [");
                self.list(extents, |p, e| p.expr(e));
                self.text("]");
                return self.block_after(attrs, body);
            }
            StmtKind::Role { name, attrs, body } => {
                self.text(&format!("role {}", name.name));
                return self.block_after(attrs, body);
            }
            StmtKind::If { cond, then, .. } => {
                self.text("if ");
                self.expr(cond);
                self.text(" ");
                return Some(then);
            }
            StmtKind::Tile {
                name,
                ty,
                attrs,
                init,
            } => {
                self.text(ty.space.map_or("reg", space_word));
                self.text(&format!(" {}: ", name.name));
                self.ty_without_space(ty);
                self.attrs(attrs);
                if let Some(init) = init {
                    self.text(" =");
                    self.value(init);
                }
            }
            StmtKind::Let {
                mutable,
                names,
                ty,
                value,
            } => {
                self.text(if *mutable { "let mut " } else { "let " });
                self.names(names);
                if let Some(ty) = ty {
                    self.text(": ");
                    self.ty(ty);
                }
                self.text(" =");
                self.value(value);
            }
            StmtKind::Channel { name, ty, attrs } => {
                self.text(&format!("channel {}: ", name.name));
                self.ty(ty);
                self.attrs(attrs);
            }
            StmtKind::Put {
                channel,
                value,
                attrs,
            } => {
                self.text(&format!("put {} <-", channel.name));
                self.value(value);
                self.attrs(attrs);
            }
            StmtKind::Get { channel, name } => {
                self.text(&format!("get {} as {}", channel.name, name.name));
            }
            StmtKind::Release { target } => {
                self.text("release ");
                self.expr(target);
            }
            StmtKind::Copy { dst, src, attrs } => {
                self.text("copy ");
                self.target(dst);
                self.text(" <-");
                self.value(src);
                self.attrs(attrs);
            }
            StmtKind::Assign {
                target,
                op,
                value,
                attrs,
            } => self.assignment("", target, *op, value, attrs),
            StmtKind::Scatter {
                target,
                value,
                attrs,
            } => self.assignment("scatter ", target, AssignOp::Set, value, attrs),
            StmtKind::Atomic {
                target,
                op,
                value,
                attrs,
            } => self.assignment("atomic ", target, *op, value, attrs),
            StmtKind::Signal { flag, after } => {
                self.text("signal ");
                self.expr(flag);
                if !after.is_empty() {
                    self.text(" after ");
                    self.list(after, |p, n| p.text(&n.name));
                }
            }
            StmtKind::Wait { flag, at_least } => {
                self.text("wait ");
                self.expr(flag);
                self.text(" >= ");
                self.expr(at_least);
            }
            StmtKind::Assert {
                cond,
                message,
                assume,
            } => {
                self.text(if *assume { "assume " } else { "assert " });
                self.expr(cond);
                if let Some(message) = message {
                    self.text(",");
                    self.break_or_space(0);
                    self.text(&quoted(message));
                }
            }
            StmtKind::Print { args } => {
                self.text("print ");
                self.list(args, |p, e| p.expr(e));
            }
            StmtKind::Return { value } => {
                self.text("return");
                if let Some(value) = value {
                    self.value(value);
                }
            }
            StmtKind::Asm { text, clauses } => {
                self.text(&format!("asm {}", quoted(text)));
                for (name, args) in clauses {
                    self.break_or_space(0);
                    self.text(&name.name);
                    self.args(args);
                }
            }
            StmtKind::Call(e) => self.expr(e),
            StmtKind::Error => {
                let text = self.source_of(stmt.span);
                self.text(text);
                return None;
            }
        }
        self.text(";");
        None
    }

    fn block_after(&mut self, attrs: &'a [Attr], body: &'a Block) -> Option<&'a Block> {
        self.attrs(attrs);
        self.text(" ");
        Some(body)
    }

    /// A right-hand side; the break before it is the last resort.
    fn value(&mut self, value: &'a Expr) {
        self.text(" ");
        self.nested(value);
    }

    fn nested(&mut self, e: &'a Expr) {
        self.depth += 1;
        self.expr(e);
        self.depth -= 1;
    }

    /// What is written to: broken only if nothing else can be.
    fn target(&mut self, e: &'a Expr) {
        const LAST: usize = 1000;
        self.depth += LAST;
        self.expr(e);
        self.depth -= LAST;
    }

    fn assignment(
        &mut self,
        word: &str,
        target: &'a Expr,
        op: AssignOp,
        value: &'a Expr,
        attrs: &'a [Attr],
    ) {
        self.text(word);
        self.target(target);
        self.text(match op {
            AssignOp::Set => " =",
            AssignOp::Add => " +=",
            AssignOp::Sub => " -=",
            AssignOp::Mul => " *=",
            AssignOp::Div => " /=",
            AssignOp::Max => " max=",
            AssignOp::Min => " min=",
        });
        self.value(value);
        self.attrs(attrs);
    }

    /// `i` or `(i, j)`
    fn names(&mut self, names: &'a [Ident]) {
        match names {
            [one] => self.text(&one.name),
            _ => {
                self.text("(");
                self.list(names, |p, n| p.text(&n.name));
                self.text(")");
            }
        }
    }

    pub fn test_line(&mut self, line: &'a TestLine) {
        match line {
            TestLine::With(args, _) => {
                self.text("with ");
                self.list(args, |p, a| p.arg(a));
            }
            TestLine::Fill {
                tensor,
                distribution,
                attrs,
                ..
            } => {
                self.text(&format!("fill {} ~ ", tensor.name));
                self.expr(distribution);
                self.attrs(attrs);
            }
            TestLine::Expect {
                tensor,
                against,
                attrs,
                ..
            } => {
                self.text(&format!("expect {} against {}", tensor.name, against.name));
                self.attrs(attrs);
            }
            TestLine::ExpectSame { tensor, args, .. } => {
                self.text(&format!("expect_same {}", tensor.name));
                for arg in args {
                    self.text(",");
                    self.break_or_space(0);
                    self.arg(arg);
                }
            }
            TestLine::ExpectError { text, .. } => {
                self.text(&format!("expect_error {}", quoted(text)));
            }
            TestLine::Run(targets, _) => {
                self.text("run ");
                self.list(targets, |p, n| p.text(&n.name));
            }
            TestLine::Floor(args, _) => {
                self.text("floor ");
                self.list(args, |p, a| p.arg(a));
            }
            TestLine::Error(span) => {
                let text = self.source_of(*span);
                return self.text(text);
            }
        }
        self.text(";");
    }
}

pub fn test_line_span(line: &TestLine) -> Span {
    match line {
        TestLine::With(_, span)
        | TestLine::Fill { span, .. }
        | TestLine::Expect { span, .. }
        | TestLine::ExpectSame { span, .. }
        | TestLine::ExpectError { span, .. }
        | TestLine::Run(_, span)
        | TestLine::Floor(_, span)
        | TestLine::Error(span) => *span,
    }
}

pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

pub fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::In => "in",
        Mode::Out => "out",
        Mode::InOut => "inout",
        Mode::Scratch => "scratch",
        Mode::Flags => "flags",
    }
}

fn space_word(space: Space) -> &'static str {
    match space {
        Space::Shared => "shared",
        Space::Reg => "reg",
        Space::Global => "global",
        Space::Cluster => "cluster",
    }
}

fn strength_of(e: &Expr) -> u8 {
    match &e.kind {
        ExprKind::Select(..) => ANY,
        ExprKind::Binary(op, ..) => binary(*op).1,
        ExprKind::Unary(..) => UNARY,
        ExprKind::Call { .. } | ExprKind::Method { .. } | ExprKind::Index { .. } => POSTFIX,
        _ => ATOM,
    }
}

fn binary(op: BinaryOp) -> (&'static str, u8) {
    match op {
        BinaryOp::Or => ("||", OR),
        BinaryOp::And => ("&&", 2),
        BinaryOp::Eq => ("==", COMPARE),
        BinaryOp::Ne => ("!=", COMPARE),
        BinaryOp::Lt => ("<", COMPARE),
        BinaryOp::Le => ("<=", COMPARE),
        BinaryOp::Gt => (">", COMPARE),
        BinaryOp::Ge => (">=", COMPARE),
        BinaryOp::BitOr => ("|", 4),
        BinaryOp::BitXor => ("^", 5),
        BinaryOp::BitAnd => ("&", 6),
        BinaryOp::Shl => ("<<", 7),
        BinaryOp::Shr => (">>", 7),
        BinaryOp::Add => ("+", ADD),
        BinaryOp::Sub => ("-", ADD),
        BinaryOp::Mul => ("*", 9),
        BinaryOp::Div => ("/", 9),
        BinaryOp::Rem => ("%", 9),
    }
}
