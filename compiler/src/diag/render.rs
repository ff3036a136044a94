//! Diagnostics as text: for people, one line each, or JSON.
//!
//! Gives strings and prints nothing. Spans are clamped to the text, so that a wrong one in a diagnostic never hides its message.

use super::{Diagnostic, Help, Severity};
use crate::source::{SourceFile, SourceMap, Span};
use annotate_snippets::{AnnotationKind, Group, Level, Patch, Renderer, Snippet};
use serde_json::{Value, json};
use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The source with the places marked, notes, helps, edits.
    Human { colour: bool },
    /// `file:line:col: error[TL0001]: message`
    Short,
    /// One object per line.
    Json,
}

/// Ends in a line break.
pub fn render(d: &Diagnostic, map: &SourceMap, format: Format) -> String {
    let mut text = match format {
        Format::Human { colour } => human(d, map, colour),
        Format::Short => short(d, map),
        Format::Json => json(d, map).to_string(),
    };
    text.push('\n');
    text
}

fn severity(d: &Diagnostic) -> &'static str {
    match d.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

fn short(d: &Diagnostic, map: &SourceMap) -> String {
    let file = map.file(d.span().file);
    let (line, column) = file.line_col(d.span().start);
    format!(
        "{}:{line}:{column}: {}[{}]: {}",
        file.name,
        severity(d),
        d.code,
        d.message
    )
}

fn json(d: &Diagnostic, map: &SourceMap) -> Value {
    let place = |span: Span| {
        let file = map.file(span.file);
        let (line, column) = file.line_col(span.start);
        let (end_line, end_column) = file.line_col(span.end);
        json!({
            "file": file.name, "start": span.start, "end": span.end,
            "line": line, "column": column, "end_line": end_line, "end_column": end_column,
        })
    };
    let spans: Vec<Value> = d
        .labels
        .iter()
        .enumerate()
        .map(|(i, label)| {
            let mut value = place(label.span);
            value["label"] = json!(label.text);
            value["primary"] = json!(i == 0);
            value
        })
        .collect();
    let helps: Vec<Value> = d
        .helps
        .iter()
        .map(|help| {
            let edit = help.edit.as_ref().map(|(span, text)| {
                let mut value = place(*span);
                value["text"] = json!(text);
                value
            });
            json!({ "text": help.text, "edit": edit })
        })
        .collect();
    json!({
        "code": d.code, "severity": severity(d), "message": d.message,
        "spans": spans, "notes": d.notes, "helps": helps,
    })
}

fn human(d: &Diagnostic, map: &SourceMap, colour: bool) -> String {
    let level = match d.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut main = Group::with_title(level.primary_title(&d.message).id(d.code));
    // One snippet per file, the primary label's first.
    let mut files: Vec<_> = d.labels.iter().map(|l| l.span.file).collect();
    files.dedup();
    for (i, id) in files.iter().enumerate() {
        if files[..i].contains(id) {
            continue;
        }
        let file = map.file(*id);
        let marks = d
            .labels
            .iter()
            .enumerate()
            .filter(|(_, l)| l.span.file == *id);
        main = main.element(
            Snippet::source(&file.text)
                .path(&file.name)
                .annotations(marks.map(|(k, label)| {
                    let kind = if k == 0 {
                        AnnotationKind::Primary
                    } else {
                        AnnotationKind::Context
                    };
                    let text = (!label.text.is_empty()).then_some(label.text.as_str());
                    kind.span(clamp(file, label.span)).label(text)
                })),
        );
    }
    for note in &d.notes {
        main = main.element(Level::NOTE.message(note));
    }
    let mut groups = vec![];
    let mut edits = vec![];
    for help in &d.helps {
        match &help.edit {
            None => main = main.element(Level::HELP.message(&help.text)),
            Some((span, text)) => edits.push(edit_group(help, map.file(span.file), *span, text)),
        }
    }
    groups.push(main);
    groups.extend(edits);
    let renderer = if colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let mut text = renderer.render(&groups);
    text.push('\n');
    text
}

/// The line as it would be after the edit.
fn edit_group<'a>(help: &'a Help, file: &'a SourceFile, span: Span, text: &'a str) -> Group<'a> {
    Group::with_title(Level::HELP.secondary_title(&help.text)).element(
        Snippet::source(&file.text)
            .path(&file.name)
            .patch(Patch::new(clamp(file, span), text)),
    )
}

/// The span within the text and at characters.
fn clamp(file: &SourceFile, span: Span) -> Range<usize> {
    let text = &file.text;
    let at = |offset: u32| {
        let mut i = (offset as usize).min(text.len());
        while !text.is_char_boundary(i) {
            i -= 1;
        }
        i
    };
    let (start, end) = (at(span.start), at(span.end));
    start..end.max(start)
}
