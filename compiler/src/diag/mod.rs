//! Diagnostics: what is wrong, where, with which values, and how to mend it.
//!
//! A stage builds a [`Diagnostic`] through the catalogue (`catalogue/*.rs`: one function per problem, which takes facts and
//! owns all wording) and reports it to the [`Sink`]. Rendering (`render.rs`) is human, short or JSON. Code ranges:
//! `TL00xx` text and syntax, `TL01xx` names and generics, `TL02xx` types and shapes, `TL03xx` bounds, `TL04xx` initialisation
//! and races, `TL05xx` contracts, `TL06xx` instances and dims, `TL07xx` roles and channels, `TL08xx` references, tests, benches,
//! `TL09xx` what a back end cannot lower, `TL10xx` found while running (interpreter).

pub mod catalogue;
pub mod render;

use crate::source::Span;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
}

/// A place in the source with a few words beside it. The first label of a diagnostic is the primary one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    pub span: Span,
    pub text: String,
}

/// A remedy; `edit` replaces the span by the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Help {
    pub text: String,
    pub edit: Option<(Span, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// `TL0312`; every code is in the error index (`docs/errors.md`).
    pub code: &'static str,
    pub severity: Severity,
    /// One line, lower case, no full stop; names the user's things.
    pub message: String,
    pub labels: Vec<Label>,
    /// The values that make it wrong.
    pub notes: Vec<String>,
    pub helps: Vec<Help>,
}

impl Diagnostic {
    pub fn error(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Diagnostic {
            code,
            severity: Severity::Error,
            message: message.into(),
            labels: vec![Label {
                span,
                text: String::new(),
            }],
            notes: vec![],
            helps: vec![],
        }
    }

    pub fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Diagnostic {
            severity: Severity::Warning,
            ..Self::error(code, span, message)
        }
    }

    /// The words beside the primary span.
    pub fn label(mut self, text: impl Into<String>) -> Self {
        self.labels[0].text = text.into();
        self
    }

    /// A further place that matters.
    pub fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.labels.push(Label {
            span,
            text: text.into(),
        });
        self
    }

    pub fn note(mut self, text: impl Into<String>) -> Self {
        self.notes.push(text.into());
        self
    }

    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.helps.push(Help {
            text: text.into(),
            edit: None,
        });
        self
    }

    pub fn suggest(
        mut self,
        text: impl Into<String>,
        span: Span,
        replacement: impl Into<String>,
    ) -> Self {
        self.helps.push(Help {
            text: text.into(),
            edit: Some((span, replacement.into())),
        });
        self
    }

    pub fn span(&self) -> Span {
        self.labels[0].span
    }
}

/// Most errors, and most warnings, of one run that are kept.
const MOST: usize = 500;

/// Collects the diagnostics of one run. Equal ones are kept once (an instance per generic value would repeat them), and no more than
/// anyone would read.
#[derive(Debug, Default)]
pub struct Sink {
    all: Vec<Diagnostic>,
}

impl Sink {
    pub fn report(&mut self, d: Diagnostic) {
        let alike = |x: &&Diagnostic| x.severity == d.severity;
        match self.all.iter().filter(alike).count() {
            n if n > MOST => {}
            _ if self.all.contains(&d) => {}
            n if n == MOST => {
                let last = catalogue::syntax::too_many(d.span(), d.severity, MOST);
                self.all.push(last);
            }
            _ => self.all.push(d),
        }
    }

    pub fn has_errors(&self) -> bool {
        self.all.iter().any(|d| d.severity == Severity::Error)
    }

    /// In source order.
    pub fn finish(mut self) -> Vec<Diagnostic> {
        self.all.sort_by_key(|d| d.span());
        self.all
    }

    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.all.iter()
    }
}
