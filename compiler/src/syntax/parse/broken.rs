//! What stood in an error production: where it goes wrong, what could stand there, and the likelier slips.

use super::*;

impl Builder<'_> {
    pub fn report_leftover(&mut self, pair: &Pair<Rule>, out: &mut File) {
        let span = self.span(pair);
        out.items.push(Item::Error(span));
        let start = pair.as_span().start();
        if !self.reported(start, pair.as_span().end()) {
            let (at, found) = self.found(start);
            self.sink.report(problem::unexpected(
                at,
                "between items",
                EXPECTED_ITEM,
                &found,
            ));
        }
    }

    pub fn report_broken_item(&mut self, pair: &Pair<Rule>) {
        self.report_fault(pair, Rule::only_item, "in this item");
    }

    pub fn report_broken_param(&mut self, pair: &Pair<Rule>, _kernel: bool) {
        self.report_fault(pair, Rule::only_param, "in this parameter");
    }

    pub fn report_broken_clause(&mut self, pair: &Pair<Rule>) {
        self.report_fault(pair, Rule::only_clause, "in this clause");
    }

    pub fn report_broken_line(&mut self, pair: &Pair<Rule>) {
        self.report_fault(pair, Rule::only_line, "in this line");
    }

    pub fn report_broken_stmt(&mut self, pair: &Pair<Rule>) {
        self.report_fault(pair, Rule::only_stmt, "in this statement");
    }

    /// Reads the text of the pair again by the strict rule and reports the first fault.
    fn report_fault(&mut self, pair: &Pair<Rule>, strict: Rule, context: &str) {
        let s = pair.as_span();
        if self.reported(s.start(), s.end()) {
            return;
        }
        let (at, expected) = match Grammar::parse(strict, s.as_str()) {
            Err(e) => {
                let offset = match e.location {
                    pest::error::InputLocation::Pos(p) => p,
                    pest::error::InputLocation::Span((p, _)) => p,
                };
                let expected = match &e.variant {
                    pest::error::ErrorVariant::ParsingError { positives, .. } => {
                        expected(positives)
                    }
                    _ => "something else".to_string(),
                };
                (s.start() + offset, expected)
            }
            Ok(_) => (s.start(), "something else".to_string()),
        };
        let (span, found) = self.found(at);
        self.sink
            .report(problem::unexpected(span, context, &expected, &found));
    }

    /// The token at or after this offset.
    fn found(&self, at: usize) -> (Span, String) {
        let rest = &self.source[at..];
        let start = at + (rest.len() - rest.trim_start().len());
        let rest = &self.source[start..];
        let Some(first) = rest.chars().next() else {
            let end = self.source.trim_end().len();
            return (self.at(end, end), "the end".to_string());
        };
        let len = if first.is_ascii_alphanumeric() || first == '_' {
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        (self.at(start, start + len), format!("`{}`", &rest[..len]))
    }
}

const EXPECTED_ITEM: &str = "`kernel`, `fn`, `const`, `instances`, `reference`, `test`, `bench`, `use`, `module` or `edition`";

/// The rules that could have gone on, in the user's words.
fn expected(rules: &[Rule]) -> String {
    let mut words: Vec<&str> = vec![];
    for rule in rules {
        let word = match rule {
            Rule::semicolon | Rule::no_semicolon => "`;`",
            Rule::word => "a name",
            Rule::arrow => "`<-`",
            _ => "something else",
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    words.join(" or ")
}
