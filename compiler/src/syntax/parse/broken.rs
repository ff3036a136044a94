//! What stood in an error production: where it goes wrong and what could stand there.
//!
//! The damaged text is read again by the strict rule; the generated parser then tells the furthest place it reached and the rules
//! that could have gone on. `slips` looks first for one of the usual slips; else those rules become words here.

use super::slips::{Tokens, first_token, tokens};
use super::*;

/// A damaged stretch of the source, as offsets in the item's text.
pub struct Fault<'a> {
    /// Of the damaged text in the item.
    pub start: usize,
    /// Of the fault in the damaged text.
    pub at: usize,
    pub tokens: Tokens<'a>,
    pub expected: String,
}

impl Builder<'_> {
    /// Text behind an item that starts no item. Only the first piece and words of other languages are reported: the rest follows
    /// from what was said, often an extra `}`.
    pub fn report_leftover(&mut self, pair: &Pair<Rule>, out: &mut File) {
        let span = self.span(pair);
        let start = pair.as_span().start();
        let first = !matches!(out.items.last(), Some(Item::Error(_)));
        out.items.push(Item::Error(span));
        if self.reported(0, self.source.len()) {
            return;
        }
        let (at, found) = self.found(start);
        if let Some(d) = problem::foreign_item(at, tokens(pair.as_str()).text(0)) {
            self.sink.report(d);
        } else if first {
            self.sink.report(problem::between_items(at, &found));
        }
    }

    pub fn report_broken_generic(&mut self, pair: &Pair<Rule>) {
        if let Some(fault) = self.fault(pair, Rule::only_generic) {
            self.report_generic(&fault, problem::form_of_generic());
        }
    }

    pub fn report_broken_item(&mut self, pair: &Pair<Rule>) {
        let Some(fault) = self.fault(pair, Rule::only_item) else {
            return;
        };
        let first = fault.tokens.text(0);
        let (at, _) = self.found(fault.start);
        let slip = match first {
            "const" => self.expr_slip(&fault),
            _ => problem::foreign_item(at, first),
        };
        if let Some(d) = slip {
            self.sink.report(d);
        } else if lex::ITEM_WORDS.contains(&first) {
            self.report_generic(&fault, problem::form_of_item(first));
        } else {
            let (at, found) = self.found(fault.start);
            self.sink.report(problem::between_items(at, &found));
        }
    }

    pub fn report_broken_param(&mut self, pair: &Pair<Rule>, of_kernel: bool) {
        let strict = if of_kernel {
            Rule::only_param
        } else {
            Rule::only_fn_param
        };
        let Some(fault) = self.fault(pair, strict) else {
            return;
        };
        match self.param_slip(&fault, of_kernel) {
            Some(d) => self.sink.report(d),
            None => self.report_generic(&fault, problem::form_of_param(of_kernel)),
        }
    }

    pub fn report_broken_clause(&mut self, pair: &Pair<Rule>) {
        let Some(fault) = self.fault(pair, Rule::only_clause) else {
            return;
        };
        match self.expr_slip(&fault) {
            Some(d) => self.sink.report(d),
            None => self.report_generic(&fault, problem::form_of_clause(fault.tokens.text(0))),
        }
    }

    pub fn report_broken_line(&mut self, pair: &Pair<Rule>) {
        let Some(fault) = self.fault(pair, Rule::only_line) else {
            return;
        };
        let first = fault.tokens.text(0);
        match (self.expr_slip(&fault), problem::form_of_line(first)) {
            (Some(d), _) => self.sink.report(d),
            (None, Some(form)) => self.report_generic(&fault, form),
            (None, None) => {
                let (at, found) = self.found(fault.start);
                self.sink.report(problem::not_a_test_line(at, &found));
            }
        }
    }

    pub fn report_broken_stmt(&mut self, pair: &Pair<Rule>) {
        let Some(fault) = self.fault(pair, Rule::only_stmt) else {
            return;
        };
        match self.stmt_slip(&fault) {
            Some(d) => self.sink.report(d),
            None => self.report_generic(&fault, problem::form_of_stmt(fault.tokens.text(0))),
        }
    }

    /// Reads the text of the pair again by the strict rule. `None` if what is wrong has been reported.
    fn fault<'p>(&self, pair: &Pair<'p, Rule>, strict: Rule) -> Option<Fault<'p>> {
        let s = pair.as_span();
        if self.reported(s.start(), s.end()) {
            return None;
        }
        let text = s.as_str();
        // The strict rules contain the error productions of what is inside, so that only the head decides.
        let (at, rules) = match Grammar::parse(strict, text) {
            Err(e) => {
                let at = match e.location {
                    pest::error::InputLocation::Pos(p) => p,
                    pest::error::InputLocation::Span((p, _)) => p,
                };
                match e.variant {
                    pest::error::ErrorVariant::ParsingError { positives, .. } => (at, positives),
                    pest::error::ErrorVariant::CustomError { .. } => (at, vec![]),
                }
            }
            // Right by itself: what follows it is wrong.
            Ok(_) => (text.trim_end().len(), vec![]),
        };
        let at = at + (text[at..].len() - text[at..].trim_start().len());
        let tokens = tokens(text);
        let expected = expected(&rules, &tokens, at);
        Some(Fault {
            start: s.start(),
            at,
            tokens,
            expected,
        })
    }

    fn report_generic(&mut self, fault: &Fault, form: String) {
        let (span, found) = self.found(fault.start + fault.at);
        let word = found.trim_matches('`');
        let d = if fault.expected == NAME && exprs::is_reserved(word) {
            problem::reserved_word(span, word)
        } else if fault.expected == EXPRESSION {
            problem::unexpected(span, EXPRESSION, &found, problem::FORM_OF_EXPRESSION)
        } else {
            problem::unexpected(span, &fault.expected, &found, &form)
        };
        self.sink.report(d);
    }

    /// The token at or after this offset.
    pub fn found(&self, at: usize) -> (Span, String) {
        let rest = &self.source[at..];
        let start = at + (rest.len() - rest.trim_start().len());
        let rest = &self.source[start..];
        match first_token(rest) {
            None => {
                let end = self.source.trim_end().len();
                (self.at(end, end), problem::END.to_string())
            }
            Some(len) => (self.at(start, start + len), problem::quoted(&rest[..len])),
        }
    }
}

const NAME: &str = "a name";
const EXPRESSION: &str = "an expression";

/// The rules that could have gone on, in the user's words. Operators and attributes, which can always go on, are named only where
/// nothing else can.
fn expected(rules: &[Rule], tokens: &Tokens, at: usize) -> String {
    let has = |list: &[Rule]| list.iter().any(|r| rules.contains(r));
    let mut words: Vec<&str> = vec![];
    let operand = has(&[Rule::number, Rule::path, Rule::expr, Rule::flat, Rule::neg]);
    let operator = has(&[Rule::op_add, Rule::op_mul]);
    let closers = tokens.closers_at(at);
    if operand {
        words.push(EXPRESSION);
    }
    let mut add = |rules: &[Rule], word| {
        if has(rules) {
            words.push(word);
        }
    };
    if operator && !closers.is_empty() {
        return closers.to_string();
    }
    if !operand {
        add(&[Rule::word, Rule::names, Rule::place], NAME);
    }
    add(&[Rule::kw_in], "`in`");
    add(&[Rule::kw_as], "`as`");
    add(&[Rule::kw_for], "`for`");
    add(&[Rule::kw_against], "`against`");
    add(&[Rule::arrow], "`<-`");
    add(&[Rule::at_least], "`>=`");
    add(&[Rule::tilde], "`~`");
    add(&[Rule::assign_op], "`=`");
    add(&[Rule::equals], "`=`");
    add(&[Rule::range_op], "`..`");
    if !operand {
        add(&[Rule::colon], "`:`");
        add(&[Rule::open_paren], "`(`");
        if !operator {
            add(&[Rule::args], "`(`");
            add(&[Rule::shape], "`[`");
            add(&[Rule::string], "a text in `\"`");
        }
    }
    add(&[Rule::block, Rule::set, Rule::open_brace], "`{`");
    add(
        &[Rule::semicolon, Rule::no_semicolon, Rule::no_line_end],
        "`;`",
    );
    if has(&[Rule::clause_word]) {
        words.extend(["`,`", "the next clause"]);
    }
    if words.is_empty() {
        words = match (operator, closers) {
            (_, closers) if !closers.is_empty() => vec![closers],
            _ if has(&[Rule::attr]) => vec!["an attribute or the end"],
            (true, _) => vec!["an operator"],
            _ => vec!["something else"],
        };
    }
    words.dedup();
    match words.as_slice() {
        [one] => one.to_string(),
        [init @ .., last] => format!("{} or {last}", init.join(", ")),
        [] => unreachable!("filled above"),
    }
}
