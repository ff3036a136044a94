//! The one layout of `.tl` text: printed from the tree, with every comment in its place.
//!
//! One element (statement, parameter, clause, test line) per line, four columns of indentation, at most [`WIDTH`] columns, at
//! most one blank line. What the author decides stays: blank lines, short blocks on one line, line breaks between the
//! constraints of a clause, redundant parentheses, the spelling of numbers. A comment inside an expression moves to the line
//! before it. Keeps: the tree (but for spans), and a second formatting changes nothing.

mod exprs;
mod lines;

use super::ast::*;
use super::lex;
use crate::diag::Sink;
use crate::source::FileId;
use exprs::Parts;
use lines::Lines;

pub const WIDTH: usize = 120;
const INDENT: usize = 4;
const DOC: &str = "///";

/// `None` if the text has errors; they are in the sink.
pub fn format(sink: &mut Sink, file: FileId, text: &str) -> Option<String> {
    let mut own = Sink::default();
    let tree = super::parse(&mut own, file, text);
    let errors = own.has_errors();
    for d in own.finish() {
        sink.report(d);
    }
    (!errors).then(|| print(&tree, text))
}

/// The tree as text. `text` is what it was parsed from, or empty for a tree that was made.
pub fn print(tree: &File, text: &str) -> String {
    let lexed = lex::lex(&mut Sink::default(), tree.span.file, text);
    let mut blanked = lexed.text;
    // Docs fill their lines; those of no item are comments.
    let is_comment = |doc: &Comment| {
        tree.comments
            .binary_search_by_key(&doc.span, |c| c.span)
            .is_ok()
    };
    for doc in lexed.docs.iter().filter(|doc| !is_comment(doc)) {
        let start = doc.span.start as usize;
        blanked.replace_range(start..start + DOC.len(), DOC);
    }
    let mut printer = Printer {
        blanked: &blanked,
        comments: tree.comments.iter().collect(),
        next_comment: 0,
        lines: Lines::default(),
        indent: 0,
        last_end: None,
    };
    printer.file(tree);
    printer.lines.finish()
}

struct Printer<'a> {
    /// The source with comments blanked, items' docs down to their slashes; empty for a tree without source.
    blanked: &'a str,
    comments: Vec<&'a Comment>,
    next_comment: usize,
    lines: Lines,
    indent: usize,
    /// Where in the source the last printed element ends; `None` at the start of a block.
    last_end: Option<usize>,
}

/// A top-level line or item, in source order.
enum Entry<'a> {
    Edition(u32),
    Module(&'a Path),
    Use(&'a Use),
    Item(&'a Item),
}

impl<'a> Printer<'a> {
    fn file(&mut self, tree: &'a File) {
        let mut entries: Vec<(usize, usize, Entry)> = vec![];
        if let Some((year, span)) = tree.edition {
            entries.push((span.start as usize, span.end as usize, Entry::Edition(year)));
        }
        if let Some(path) = &tree.module {
            entries.push((
                path.span.start as usize,
                path.span.end as usize,
                Entry::Module(path),
            ));
        }
        for u in &tree.uses {
            entries.push((u.span.start as usize, u.span.end as usize, Entry::Use(u)));
        }
        for item in &tree.items {
            let span = item_span(item);
            entries.push((span.start as usize, span.end as usize, Entry::Item(item)));
        }
        entries.sort_by_key(|e| e.0);
        let mut before: Option<bool> = None;
        for (start, end, entry) in entries {
            let large = matches!(
                entry,
                Entry::Item(
                    Item::Kernel(_) | Item::Function(_) | Item::Reference(_) | Item::Test(_)
                )
            );
            // Items of several lines stand apart even where the source has no blank line.
            if before.is_some_and(|b| b || large) {
                self.lines.want_blank();
            }
            before = Some(large);
            match entry {
                Entry::Edition(year) => self.simple(start, end, format!("edition {year};")),
                Entry::Module(path) => {
                    let mut parts = Parts::new(self.blanked);
                    parts.text("module ");
                    parts.path(path);
                    parts.text(";");
                    self.element(start, end, parts);
                }
                Entry::Use(u) => {
                    let mut parts = Parts::new(self.blanked);
                    parts.text("use ");
                    parts.path(&u.path);
                    parts.text("::{");
                    parts.list(&u.names, |p, n| p.text(&n.name));
                    parts.text("};");
                    self.element(start, end, parts);
                }
                Entry::Item(item) => self.item(item),
            }
        }
        self.comments_before(usize::MAX, usize::MAX);
    }

    // ---- elements and comments -------------------------------------------------------------------------------------------

    fn simple(&mut self, start: usize, end: usize, text: String) {
        let mut parts = Parts::new(self.blanked);
        parts.text(&text);
        self.element(start, end, parts);
    }

    /// One element on lines of its own: comments before and inside it, itself, the comment behind it.
    fn element(&mut self, start: usize, end: usize, parts: Parts) {
        self.comments_before(end, start);
        self.blank_before(start);
        self.line(parts);
        self.comments_behind(end);
    }

    fn line(&mut self, parts: Parts) {
        self.lines.push_wrapped(self.indent, parts);
    }

    /// A blank line where the source has one between the last element and `start`.
    fn blank_before(&mut self, start: usize) {
        if let Some(last) = self.last_end
            && last < start
            && has_blank_line(self.blanked.get(last..start).unwrap_or(""))
        {
            self.lines.want_blank();
        }
        self.last_end = Some(self.last_end.map_or(start, |l| l.max(start)));
    }

    /// Prints the comments that start before `end`, for an element that starts at `start`.
    fn comments_before(&mut self, end: usize, start: usize) {
        while let Some(&comment) = self.comments.get(self.next_comment) {
            let at = comment.span.start as usize;
            if at >= end {
                break;
            }
            self.next_comment += 1;
            self.blank_before(at.min(start));
            self.lines.push_comment(self.indent, &comment.text);
            self.last_end = Some(comment.span.end as usize);
        }
    }

    /// Prints the comments on the source line where an element ends, behind it.
    fn comments_behind(&mut self, end: usize) {
        self.last_end = Some(self.last_end.map_or(end, |l| l.max(end)));
        while let Some(&comment) = self.comments.get(self.next_comment) {
            let at = comment.span.start as usize;
            let between = self.blanked.get(end..at).unwrap_or("\n");
            // Behind a separator of the same element, and nothing else.
            if between.contains('\n')
                || between.contains(|c: char| !c.is_whitespace() && !",;".contains(c))
            {
                break;
            }
            self.next_comment += 1;
            self.lines.trail(&comment.text);
            self.last_end = Some(comment.span.end as usize);
        }
    }

    /// Whether a comment starts in this stretch of the source.
    fn has_comment(&self, start: usize, end: usize) -> bool {
        let rest = &self.comments[self.next_comment..];
        let first = rest.partition_point(|c| (c.span.start as usize) < start);
        rest.get(first)
            .is_some_and(|c| (c.span.start as usize) < end)
    }

    /// Behind the first `{` of this stretch of the source.
    fn behind_brace(&self, start: usize, end: usize) -> usize {
        let text = self.blanked.get(start..end).unwrap_or("");
        text.find('{').map_or(start, |n| start + n + 1)
    }

    /// Whether this stretch of the source is on one line.
    fn on_one_line(&self, start: usize, end: usize) -> bool {
        start < end
            && self
                .blanked
                .get(start..end)
                .is_some_and(|t| !t.contains('\n'))
    }

    // ---- items -----------------------------------------------------------------------------------------------------------

    /// The docs of an item that starts at `start`, below all comments up to the end of its head: between docs and keyword, where
    /// comments inside the head would go, they would stand above the docs the next time.
    fn docs(&mut self, start: usize, head_end: usize, docs: &[String]) {
        let first = self.first_doc(start);
        self.comments_before(head_end, first);
        self.blank_before(first);
        self.last_end = Some(start);
        for doc in docs {
            self.lines
                .push_comment(self.indent, format!("{DOC} {doc}").trim_end());
        }
        if !docs.is_empty() {
            self.lines.no_blank();
        }
    }

    /// Where the docs of the item that starts at `start` start.
    fn first_doc(&self, start: usize) -> usize {
        let mut first = start;
        while let Some(before) = self.blanked.get(..first)
            && let Some(rest) = before.trim_end().strip_suffix(DOC)
        {
            first = rest.len();
        }
        first
    }

    fn item(&mut self, item: &'a Item) {
        match item {
            Item::Const(c) => {
                let start = c.span.start as usize;
                self.docs(start, c.span.end as usize, &c.docs);
                let mut parts = Parts::new(self.blanked);
                parts.text(&format!("const {} = ", c.name.name));
                parts.expr(&c.value);
                parts.text(";");
                self.element(start, c.span.end as usize, parts);
            }
            Item::Function(f) => self.function(f),
            Item::Kernel(k) => self.kernel(k),
            Item::Instances(i) => self.instances(i),
            Item::Reference(r) => {
                let start = r.span.start as usize;
                self.docs(start, r.body.span.start as usize, &r.docs);
                let mut parts = Parts::new(self.blanked);
                parts.text(&format!("reference {} for {} ", r.name.name, r.kernel.name));
                self.headed_block(start, parts, &r.body);
            }
            Item::Test(t) => self.test("test", t),
            Item::Bench(t) => self.test("bench", t),
            Item::Error(_) => {}
        }
    }

    fn function(&mut self, f: &'a Function) {
        let start = f.span.start as usize;
        let mut parts = Parts::new(self.blanked);
        parts.text(&format!("fn {}", f.name.name));
        parts.generics(&f.generics);
        let name = f.name.span.end as usize;
        let last = f.params.last().map_or(name, |(_, t)| t.span.end as usize);
        let tail = |parts: &mut Parts<'a>| {
            if let Some(ty) = &f.result {
                parts.text(" -> ");
                parts.ty(ty);
            }
            parts.text(" ");
        };
        let mut one = parts.clone();
        one.text("(");
        one.list(&f.params, |p, (name, ty)| {
            p.text(&format!("{}: ", name.name));
            p.ty(ty);
        });
        one.text(")");
        tail(&mut one);
        let fits = self.indent + one.width() < WIDTH;
        if fits && !self.has_comment(name, last) {
            self.docs(start, f.body.span.start as usize, &f.docs);
            return self.headed_block(start, one, &f.body);
        }
        self.docs(start, name, &f.docs);
        parts.text("(");
        self.line(parts);
        self.indent += INDENT;
        self.last_end = None;
        for (name, ty) in &f.params {
            let mut parts = Parts::new(self.blanked);
            parts.text(&format!("{}: ", name.name));
            parts.ty(ty);
            parts.text(",");
            self.element(name.span.start as usize, ty.span.end as usize, parts);
        }
        self.indent -= INDENT;
        let mut close = Parts::new(self.blanked);
        close.text(")");
        tail(&mut close);
        self.last_end = None;
        self.headed_block(f.body.span.start as usize, close, &f.body);
    }

    fn kernel(&mut self, k: &'a Kernel) {
        let start = k.span.start as usize;
        self.docs(start, k.name.span.end as usize, &k.docs);
        let mut parts = Parts::new(self.blanked);
        parts.text(&format!("kernel {}", k.name.name));
        parts.generics(&k.generics);
        parts.text("(");
        if k.params.is_empty() {
            parts.text(")");
        }
        self.line(parts);
        self.last_end = None;
        if !k.params.is_empty() {
            self.indent += INDENT;
            for (p, (name, mode)) in k.params.iter().zip(param_columns(&k.params)) {
                let mut parts = Parts::new(self.blanked);
                parts.param(p, name, mode);
                parts.text(",");
                self.element(p.span.start as usize, p.span.end as usize, parts);
            }
            self.indent -= INDENT;
            self.close_paren(k);
        }
        let column = k.clauses.iter().map(clause_column).max().unwrap_or(0);
        for clause in &k.clauses {
            self.clause(clause, column);
        }
        let body = k.body.span.start as usize;
        self.comments_before(body, body);
        self.last_end = None;
        let open = Parts::new(self.blanked);
        self.block(open, &k.body, false);
    }

    /// The `)` behind the parameters on a line of its own.
    fn close_paren(&mut self, k: &'a Kernel) {
        let last = k.params.last().map_or(0, |p| p.span.end as usize);
        let at = self
            .blanked
            .get(last..)
            .and_then(|t| t.find(')'))
            .map_or(last, |n| last + n);
        self.indent += INDENT;
        self.comments_before(at, at);
        self.indent -= INDENT;
        let mut parts = Parts::new(self.blanked);
        parts.text(")");
        self.line(parts);
        self.last_end = None;
        if at > last {
            self.comments_behind(at + 1);
        }
    }

    /// `column`: where the lists of all clauses of the kernel start.
    fn clause(&mut self, clause: &'a Clause, column: usize) {
        let (word, span) = clause_word(clause);
        let word = &format!("{word:column$}");
        let (start, end) = (span.start as usize, span.end as usize);
        match clause {
            Clause::Where(list, _)
            | Clause::Requires(list, _)
            | Clause::Ensures(list, _)
            | Clause::Budget(list, _) => {
                let spans = list.iter().map(|c| c.span).collect();
                self.clause_list(word, span, spans, list, |p, c| p.constraint(c));
            }
            Clause::Dims(list, _) => {
                let spans = list.iter().map(|d| d.span).collect();
                self.clause_list(word, span, spans, list, |p, d| {
                    p.text(&format!("{} in ", d.name.name));
                    p.range(&d.range);
                    if let Some(step) = &d.step {
                        p.text(" step ");
                        p.expr(step);
                    }
                    p.attrs(&d.attrs);
                });
            }
            Clause::Launch(list, _) => {
                let spans = list.iter().map(|(n, _)| n.span).collect();
                self.clause_list(word, span, spans, list, |p, (name, args)| {
                    p.text(&name.name);
                    p.args(args);
                });
            }
            Clause::Deny(list, _) => {
                let mut parts = Parts::new(self.blanked);
                parts.text("deny(");
                parts.list(list, |p, n| p.text(&n.name));
                parts.text(")");
                self.element(start, end, parts);
            }
            Clause::Tune(dims, list, _) => self.tune(start, end, dims, list),
            Clause::Error(_) => {}
        }
    }

    /// `word a, b,` with the source's line breaks between the parts, and wrapped.
    fn clause_list<T>(
        &mut self,
        word: &str,
        whole: crate::source::Span,
        spans: Vec<crate::source::Span>,
        list: &'a [T],
        each: impl Fn(&mut Parts<'a>, &'a T),
    ) {
        let mut parts = Parts::new(self.blanked);
        parts.text(word);
        let mut line_start = whole.start as usize;
        let mut continued = false;
        for (i, item) in list.iter().enumerate() {
            each(&mut parts, item);
            let Some(next) = spans.get(i + 1).map(|s| s.start as usize) else {
                let end = whole.end as usize;
                return self.clause_line(line_start, end, parts, continued, word.len());
            };
            parts.text(",");
            let before = self.blanked.get(..next).unwrap_or("");
            let end = before
                .trim_end_matches(|c: char| c.is_whitespace() || c == ',')
                .len();
            if before[end..].contains('\n') || self.has_comment(line_start, next) {
                self.clause_line(line_start, end, parts, continued, word.len());
                continued = true;
                line_start = next;
                parts = Parts::new(self.blanked);
            } else {
                parts.break_or_space(0);
            }
        }
    }

    /// One line of a clause's list; lines after the first, and wrapped ones, start at the list's column.
    fn clause_line(
        &mut self,
        start: usize,
        end: usize,
        mut parts: Parts<'a>,
        continued: bool,
        column: usize,
    ) {
        if continued {
            self.indent += column;
            parts.hang = 0;
            self.element(start, end, parts);
            self.indent -= column;
        } else {
            parts.hang = column;
            self.element(start, end, parts);
        }
    }

    fn tune(&mut self, start: usize, end: usize, dims: &[Ident], list: &'a [(Ident, Vec<Expr>)]) {
        let names: Vec<&str> = dims.iter().map(|d| d.name.as_str()).collect();
        let head = match names.is_empty() {
            true => "tune {".to_owned(),
            false => format!("tune({}) {{", names.join(", ")),
        };
        let line = |p: &mut Parts<'a>, (name, values): &'a (Ident, Vec<Expr>)| {
            p.text(&format!("{} in {{", name.name));
            p.list(values, |p, v| p.expr(v));
            p.text("};");
        };
        let mut one = Parts::new(self.blanked);
        one.text(&head);
        for entry in list {
            one.text(" ");
            line(&mut one, entry);
        }
        one.text(" }");
        if one.width() <= WIDTH
            && !self.has_comment(start, end)
            && (self.on_one_line(start, end) || list.is_empty())
        {
            return self.element(start, end, one);
        }
        self.simple(start, self.behind_brace(start, end), head);
        self.indent += INDENT;
        self.last_end = None;
        for entry in list {
            let mut parts = Parts::new(self.blanked);
            line(&mut parts, entry);
            let entry_end = entry.1.last().map_or(entry.0.span.end, |e| e.span.end) as usize;
            // Behind the `}` of the set and the `;`.
            let close = self
                .blanked
                .get(entry_end..end)
                .and_then(|t| t.find(';'))
                .map_or(entry_end, |n| entry_end + n + 1);
            self.element(entry.0.span.start as usize, close, parts);
        }
        self.comments_before(end, end);
        self.indent -= INDENT;
        self.simple_close(end, "}");
    }

    fn instances(&mut self, i: &'a Instances) {
        let (start, end) = (i.span.start as usize, i.span.end as usize);
        let mut one = Parts::new(self.blanked);
        one.text(&format!("instances {} {{ ", i.kernel.name));
        one.list(&i.list, |p, (args, _)| p.args(args));
        one.text(" }");
        if one.width() <= WIDTH && self.on_one_line(start, end) && !self.has_comment(start, end) {
            return self.element(start, end, one);
        }
        let mut head = Parts::new(self.blanked);
        head.text(&format!("instances {} {{", i.kernel.name));
        self.element(start, self.behind_brace(start, end), head);
        self.indent += INDENT;
        self.last_end = None;
        let mut parts = Parts::new(self.blanked);
        let mut line_start = None;
        for (k, (args, span)) in i.list.iter().enumerate() {
            let first = *line_start.get_or_insert(span.start as usize);
            parts.args(args);
            parts.text(",");
            // The source's line breaks stay.
            let together = i.list.get(k + 1).is_some_and(|(_, next)| {
                self.on_one_line(span.start as usize, next.start as usize)
                    && !self.has_comment(first, next.start as usize)
            });
            if together {
                parts.break_or_space(0);
            } else {
                let done = std::mem::replace(&mut parts, Parts::new(self.blanked));
                self.element(first, span.end as usize, done);
                line_start = None;
            }
        }
        self.comments_before(end, end);
        self.indent -= INDENT;
        self.simple_close(end, "}");
    }

    fn test(&mut self, word: &str, t: &'a Test) {
        let (start, end) = (t.span.start as usize, t.span.end as usize);
        let head_end = self.behind_brace(t.kernel.span.end as usize, end);
        self.docs(start, head_end, &t.docs);
        let mut parts = Parts::new(self.blanked);
        parts.text(&format!(
            "{word} {} for {} {{",
            exprs::quoted(&t.title),
            t.kernel.name
        ));
        if t.lines.is_empty() && !self.has_comment(start, end) {
            parts.text("}");
            return self.element(start, end, parts);
        }
        let mut one = parts.clone();
        for line in &t.lines {
            one.text(" ");
            one.test_line(line);
        }
        one.text(" }");
        if self.indent + one.width() <= WIDTH
            && self.on_one_line(start, end)
            && !self.has_comment(start, end)
        {
            return self.element(start, end, one);
        }
        self.element(start, head_end, parts);
        self.indent += INDENT;
        self.last_end = None;
        for line in &t.lines {
            let mut parts = Parts::new(self.blanked);
            parts.test_line(line);
            let span = exprs::test_line_span(line);
            self.element(span.start as usize, span.end as usize, parts);
        }
        self.comments_before(end, end);
        self.indent -= INDENT;
        self.simple_close(end, "}");
    }

    // ---- blocks and statements -------------------------------------------------------------------------------------------

    /// A line of closing brackets, and the comment behind it.
    fn simple_close(&mut self, end: usize, text: &str) {
        let mut parts = Parts::new(self.blanked);
        parts.text(text);
        self.lines.no_blank();
        self.line(parts);
        self.comments_behind(end);
    }

    /// A head that starts at `start` and its block.
    fn headed_block(&mut self, start: usize, head: Parts<'a>, block: &'a Block) {
        let open = block.span.start as usize;
        self.comments_before(open.max(start), start);
        self.blank_before(start);
        self.block(head, block, true);
    }

    /// `head {`, statements, `}`; on one line if the source has it so and it fits.
    fn block(&mut self, head: Parts<'a>, block: &'a Block, may_be_one_line: bool) {
        if let Some(line) = self.one_line(&head, block, may_be_one_line) {
            self.line(line);
            self.comments_behind(block.span.end as usize);
            return;
        }
        self.open_block(head, block);
        self.simple_close(block.span.end as usize, "}");
    }

    /// The head and the whole block as one line.
    fn one_line(&self, head: &Parts<'a>, block: &'a Block, allowed: bool) -> Option<Parts<'a>> {
        let (start, end) = (block.span.start as usize, block.span.end as usize);
        if self.has_comment(start, end) {
            return None;
        }
        let mut line = head.clone();
        if block.stmts.is_empty() {
            line.text("{}");
            return Some(line);
        }
        if !allowed || !self.on_one_line(start, end) {
            return None;
        }
        line.text("{ ");
        self.inline_stmts(&mut line, block)?;
        line.text(" }");
        (self.indent + line.width() <= WIDTH).then_some(line)
    }

    fn inline_stmts(&self, line: &mut Parts<'a>, block: &'a Block) -> Option<()> {
        for (i, stmt) in block.stmts.iter().enumerate() {
            if i > 0 {
                line.text(" ");
            }
            self.inline_stmt(line, stmt)?;
        }
        Some(())
    }

    fn inline_stmt(&self, line: &mut Parts<'a>, stmt: &'a Stmt) -> Option<()> {
        if let StmtKind::If {
            cond,
            then,
            otherwise,
        } = &stmt.kind
        {
            line.text("if ");
            line.expr(cond);
            line.text(" ");
            self.inline_block(line, then)?;
            let Some(block) = otherwise else {
                return Some(());
            };
            line.text(" else ");
            return match else_if(block) {
                Some(nested) => self.inline_stmt(line, nested),
                None => self.inline_block(line, block),
            };
        }
        match line.stmt_head(stmt) {
            Some(block) => self.inline_block(line, block),
            None => Some(()),
        }
    }

    fn inline_block(&self, line: &mut Parts<'a>, block: &'a Block) -> Option<()> {
        if block.stmts.is_empty() {
            line.text("{}");
            return Some(());
        }
        line.text("{ ");
        self.inline_stmts(line, block)?;
        line.text(" }");
        Some(())
    }

    /// All of a block but its closing bracket.
    fn open_block(&mut self, mut head: Parts<'a>, block: &'a Block) {
        head.text("{");
        self.line(head);
        self.comments_behind(block.span.start as usize + 1);
        self.indent += INDENT;
        self.last_end = None;
        for stmt in &block.stmts {
            self.stmt(stmt);
        }
        self.comments_before(block.span.end as usize, block.span.end as usize);
        self.indent -= INDENT;
    }

    fn stmt(&mut self, stmt: &'a Stmt) {
        let (start, end) = (stmt.span.start as usize, stmt.span.end as usize);
        if let StmtKind::If { .. } = &stmt.kind {
            let mut line = Parts::new(self.blanked);
            if self.on_one_line(start, end)
                && !self.has_comment(start, end)
                && self.inline_stmt(&mut line, stmt).is_some()
                && self.indent + line.width() <= WIDTH
            {
                return self.element(start, end, line);
            }
            let cond_end = match &stmt.kind {
                StmtKind::If { then, .. } => then.span.start as usize,
                _ => end,
            };
            self.comments_before(cond_end, start);
            self.blank_before(start);
            return self.if_chain(Parts::new(self.blanked), stmt);
        }
        let mut parts = Parts::new(self.blanked);
        match parts.stmt_head(stmt) {
            Some(block) => self.headed_block(start, parts, block),
            None => self.element(start, end, parts),
        }
    }

    /// `if c {`, statements, `} else if d {`, …
    fn if_chain(&mut self, mut head: Parts<'a>, stmt: &'a Stmt) {
        let StmtKind::If {
            cond,
            then,
            otherwise,
        } = &stmt.kind
        else {
            return;
        };
        head.text("if ");
        head.expr(cond);
        head.text(" ");
        self.open_block(head, then);
        match otherwise {
            None => self.simple_close(then.span.end as usize, "}"),
            Some(block) => {
                let mut head = Parts::new(self.blanked);
                head.text("} else ");
                self.lines.no_blank();
                match else_if(block) {
                    Some(nested) => self.if_chain(head, nested),
                    None => {
                        self.open_block(head, block);
                        self.simple_close(block.span.end as usize, "}");
                    }
                }
            }
        }
    }
}

/// The `if` of an `else if`: the parser gives its block the span of that `if`, which starts at no `{`.
fn else_if(block: &Block) -> Option<&Stmt> {
    match block.stmts.as_slice() {
        [stmt] if matches!(stmt.kind, StmtKind::If { .. }) && stmt.span == block.span => Some(stmt),
        _ => None,
    }
}

fn item_span(item: &Item) -> crate::source::Span {
    match item {
        Item::Const(x) => x.span,
        Item::Function(x) => x.span,
        Item::Kernel(x) => x.span,
        Item::Instances(x) => x.span,
        Item::Reference(x) => x.span,
        Item::Test(x) | Item::Bench(x) => x.span,
        Item::Error(span) => *span,
    }
}

fn clause_word(clause: &Clause) -> (&'static str, crate::source::Span) {
    match clause {
        Clause::Where(_, s) => ("where", *s),
        Clause::Dims(_, s) => ("dims", *s),
        Clause::Launch(_, s) => ("launch", *s),
        Clause::Requires(_, s) => ("requires", *s),
        Clause::Ensures(_, s) => ("ensures", *s),
        Clause::Budget(_, s) => ("budget", *s),
        Clause::Deny(_, s) => ("deny", *s),
        Clause::Tune(_, _, s) => ("tune", *s),
        Clause::Error(s) => ("", *s),
    }
}

/// Width of the clause's word and the space behind it.
fn clause_column(clause: &Clause) -> usize {
    match clause {
        Clause::Deny(..) | Clause::Tune(..) | Clause::Error(_) => 0,
        _ => clause_word(clause).0.len() + 1,
    }
}

/// Widths of name and mode for each parameter: tensors in a row line up, and so do scalars.
fn param_columns(params: &[Param]) -> Vec<(usize, usize)> {
    let mut columns = vec![];
    for run in params.chunk_by(|a, b| a.mode.is_some() == b.mode.is_some()) {
        let name = run.iter().map(|p| p.name.name.len()).max();
        let mode = run
            .iter()
            .map(|p| p.mode.map_or(0, |m| exprs::mode_word(m).len()))
            .max();
        columns.extend(std::iter::repeat_n(
            (name.unwrap_or(0), mode.unwrap_or(0)),
            run.len(),
        ));
    }
    columns
}

fn has_blank_line(text: &str) -> bool {
    let mut lines = text.split('\n');
    lines.next();
    // The last piece is the beginning of the next element's line.
    let rest: Vec<&str> = lines.collect();
    rest.len() > 1 && rest[..rest.len() - 1].iter().any(|l| l.trim().is_empty())
}
