//! Text to tree. Never fails: what can't be read is an `Error` node, reported once, and the parser goes on behind it.
//!
//! `lex` cuts the file into items; the grammar reads each; the builder (`items`, `stmts`, `exprs`) turns the pairs into the tree.
//! Where an error production matched, the damaged text is read again on its own by the strict rule (`broken`), which tells where it
//! goes wrong and what could stand there.

mod broken;
mod exprs;
mod items;
mod slips;
mod stmts;

use super::ast::*;
use super::grammar::{Grammar, Rule};
use super::lex::{self, Lexed};
use crate::diag::{Sink, catalogue::syntax as problem};
use crate::source::{FileId, Span};
use pest::Parser;
use pest::iterators::Pair;
use std::num::NonZeroUsize;

/// Longest text that is read; spans hold 32 bits and no kernel file comes near.
const MAX_TEXT: usize = 1 << 20;
/// Calls of the generated parser for one item; beyond, the item is given up. Ordinary text takes about ten a byte. pest holds the
/// limit per process, so it is the same for every parse on every thread.
const MAX_CALLS: NonZeroUsize = NonZeroUsize::new(50_000_000).expect("not zero");

pub fn parse(sink: &mut Sink, file: FileId, text: &str) -> File {
    let span = Span::new(file, 0, text.len().min(u32::MAX as usize));
    let mut out = File {
        edition: None,
        module: None,
        uses: vec![],
        items: vec![],
        is_library: false,
        comments: vec![],
        span,
    };
    if text.len() > MAX_TEXT {
        sink.report(problem::text_too_long(
            Span::new(file, 0, 0),
            text.len(),
            MAX_TEXT,
        ));
        return out;
    }
    let Lexed {
        text: blanked,
        mut comments,
        docs,
        chunks,
        unmatched,
    } = lex::lex(sink, file, text);
    let mut docs = docs.into_iter().peekable();
    for chunk in &chunks {
        // Doc comments between the items before this chunk and its first word are in the chunk before it: by position they
        // belong to this one.
        let mut own: Vec<Comment> = vec![];
        while let Some(doc) = docs.next_if(|d| (d.span.start as usize) < chunk.start) {
            own.push(doc);
        }
        let source = &blanked[chunk.start..chunk.end];
        let mut builder = Builder {
            sink,
            file,
            source,
            base: chunk.start,
            unmatched: &unmatched,
            docs: vec![],
        };
        let attached = items::attached_docs(&blanked, own, chunk.start);
        comments.extend(attached.loose);
        builder.docs = attached.docs;
        if chunk.too_deep {
            out.items
                .push(Item::Error(builder.at(0, source.trim_end().len())));
        } else if !source.trim().is_empty() {
            builder.chunk(&mut out);
        }
        // Not taken: the item has no place for them.
        comments.extend(std::mem::take(&mut builder.docs));
    }
    comments.extend(docs);
    comments.sort_by_key(|c| c.span);
    out.comments = comments;
    out
}

/// Builds the tree of one item's text.
struct Builder<'a> {
    sink: &'a mut Sink,
    file: FileId,
    /// The item's text, comments blanked.
    source: &'a str,
    /// Offset of `source` in the file.
    base: usize,
    /// Offsets of brackets and quotes already reported, ascending.
    unmatched: &'a [usize],
    docs: Vec<Comment>,
}

impl<'a> Builder<'a> {
    /// A span from offsets in `source`.
    fn at(&self, start: usize, end: usize) -> Span {
        Span::new(self.file, self.base + start, self.base + end)
    }

    /// The pair's span without trailing blanks (rules that end in an optional part take them in).
    fn span(&self, pair: &Pair<Rule>) -> Span {
        let s = pair.as_span();
        self.at(s.start(), s.start() + s.as_str().trim_end().len())
    }

    fn chunk(&mut self, out: &mut File) {
        pest::set_call_limit(Some(MAX_CALLS));
        match Grammar::parse(Rule::entry, self.source) {
            Ok(pairs) => {
                for pair in pairs {
                    self.item(pair, out);
                }
            }
            // `broken_item` and `leftover` take any text, so only the limits on calls and stack end here.
            Err(_) => {
                let span = self.at(0, self.source.trim_end().len());
                self.sink.report(problem::too_involved(span));
                out.items.push(Item::Error(span));
            }
        }
    }

    /// Whether `lex` has already reported a bracket or quote within these offsets of `source`.
    fn reported(&self, start: usize, end: usize) -> bool {
        let range = self.base + start..self.base + end;
        let first = self.unmatched.partition_point(|&at| at < range.start);
        self.unmatched
            .get(first)
            .is_some_and(|at| range.contains(at))
    }

    fn take_docs(&mut self) -> Vec<String> {
        self.docs
            .drain(..)
            .map(|c| {
                let text = &c.text["///".len()..];
                text.strip_prefix(' ').unwrap_or(text).to_string()
            })
            .collect()
    }

    /// The children of a pair without keywords and punctuation.
    fn inner<'p>(&self, pair: Pair<'p, Rule>) -> Inner<'p> {
        Inner {
            pairs: pair
                .into_inner()
                .filter(|p| !is_mark(p.as_rule()))
                .collect::<Vec<_>>()
                .into_iter()
                .peekable(),
        }
    }
}

/// Children of a pair, taken in order.
struct Inner<'p> {
    pairs: std::iter::Peekable<std::vec::IntoIter<Pair<'p, Rule>>>,
}

impl<'p> Inner<'p> {
    fn next(&mut self) -> Option<Pair<'p, Rule>> {
        self.pairs.next()
    }

    fn next_if(&mut self, rule: Rule) -> Option<Pair<'p, Rule>> {
        self.pairs.next_if(|p| p.as_rule() == rule)
    }

    /// A child that the grammar demands.
    fn need(&mut self, rule: Rule) -> Pair<'p, Rule> {
        self.next_if(rule)
            .unwrap_or_else(|| panic!("the grammar demands a {rule:?} here"))
    }

    fn all(&mut self, rule: Rule) -> Vec<Pair<'p, Rule>> {
        std::iter::from_fn(|| self.next_if(rule)).collect()
    }
}

/// Keywords and punctuation carry nothing that the rule around them does not say.
fn is_mark(rule: Rule) -> bool {
    use Rule::*;
    matches!(
        rule,
        EOI | semicolon
            | colon
            | equals
            | arrow
            | arrow_type
            | at_least
            | tilde
            | open_paren
            | open_brace
            | question
            | no_semicolon
            | no_line_end
            | kw_kernel
            | kw_fn
            | kw_reference
            | kw_test
            | kw_const
            | kw_instances
            | kw_use
            | kw_module
            | kw_edition
            | kw_where
            | kw_dims
            | kw_launch
            | kw_requires
            | kw_ensures
            | kw_budget
            | kw_deny
            | kw_tune
            | kw_in
            | kw_step
            | kw_for
            | kw_with
            | kw_fill
            | kw_expect
            | kw_against
            | kw_expect_same
            | kw_expect_error
            | kw_run
            | kw_floor
            | kw_let
            | kw_pipeline
            | kw_map
            | kw_if
            | kw_else
            | kw_role
            | kw_channel
            | kw_put
            | kw_get
            | kw_as
            | kw_release
            | kw_copy
            | kw_scatter
            | kw_atomic
            | kw_signal
            | kw_after
            | kw_wait
            | kw_assert
            | kw_assume
            | kw_print
            | kw_return
            | kw_asm
            | kw_gather
            | kw_reduce
    )
}
