//! Wrong `.tl` programs and what is said about them: one test per file under `ui/`.
//!
//! The expected diagnostics stand in the file, behind the line they point at:
//!
//! ```text
//!     copy a[0:64] <- b;
//! //~        ^^^^ error[TL0037]: a part of a tensor is written `start :+ length`
//! //~ note: …
//! //~ help: write `0 :+ 64`: the length comes second, not the end => `0 :+ 64`
//! ```
//!
//! - Carets stand under the primary span; `|` marks a span of no width; a span that starts left of column 5 is `@line:column-column`;
//!   one that goes on in the next line ends in `...`.
//! - `label:` is the text beside the span, `also @line:column-column:` a further place, `=> …` what an edit puts there.
//! - Messages, labels, notes and helps are compared whole, and everything said must be expected.
//!
//! `TESSERA_BLESS=1 cargo test --release -p tessera-tests --test ui` writes what is said now into the files; read the difference.

use libtest_mimic::{Arguments, Failed, Trial};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use tessera_compiler::diag::{Diagnostic, Severity};
use tessera_compiler::source::{FileId, SourceFile, SourceMap, Span};
use tessera_tests::program::{diagnose, tl_files};

const MARK: &str = "//~";

fn main() {
    let arguments = Arguments::from_args();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("ui");
    let mut files = vec![];
    tl_files(&root, &mut files);
    let trials = files
        .into_iter()
        .map(|path| {
            let name = path
                .strip_prefix(&root)
                .expect("found under the root")
                .display()
                .to_string();
            Trial::test(name, move || run(path))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn run(path: PathBuf) -> Result<(), Failed> {
    let marked = std::fs::read_to_string(&path)?;
    let source: String = marked
        .split_inclusive('\n')
        .filter(|line| !line.starts_with(MARK))
        .collect();
    let name = path.file_name().expect("a file").to_string_lossy();
    let (map, diagnostics) = diagnose(&name, &source);
    if diagnostics.is_empty() {
        return Err("nothing is said about this program".into());
    }
    let said = mark(&map, &diagnostics);
    if said == marked {
        return Ok(());
    }
    if std::env::var_os("TESSERA_BLESS").is_some() {
        std::fs::write(&path, said)?;
        return Ok(());
    }
    let mut report = String::from("not as expected (- expected, + said):\n");
    for line in difference(&marked, &said) {
        let _ = writeln!(report, "{line}");
    }
    Err(report.into())
}

/// The source with each diagnostic behind the line it points at.
fn mark(map: &SourceMap, diagnostics: &[Diagnostic]) -> String {
    let file = map.file(FileId(0));
    let mut out = String::new();
    let lines = file.text.split_inclusive('\n').chain(
        // A diagnostic may point behind the last line break.
        (file.text.is_empty() || file.text.ends_with('\n')).then_some(""),
    );
    for (i, line) in lines.enumerate() {
        out.push_str(line);
        for d in diagnostics {
            if file.line_col(d.span().start).0 == i + 1 {
                if !out.is_empty() && !out.ends_with('\n') {
                    out.push('\n');
                }
                describe(&mut out, file, d);
            }
        }
    }
    out
}

fn describe(out: &mut String, file: &SourceFile, d: &Diagnostic) {
    let severity = match d.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let _ = writeln!(
        out,
        "{}{severity}[{}]: {}",
        pointer(file, d.span()),
        d.code,
        d.message
    );
    if !d.labels[0].text.is_empty() {
        let _ = writeln!(out, "{MARK} label: {}", d.labels[0].text);
    }
    for label in &d.labels[1..] {
        let _ = writeln!(
            out,
            "{MARK} also {}: {}",
            place(file, label.span),
            label.text
        );
    }
    for note in &d.notes {
        let _ = writeln!(out, "{MARK} note: {}", note.replace('\n', "\\n"));
    }
    for help in &d.helps {
        let _ = write!(out, "{MARK} help: {}", help.text.replace('\n', "\\n"));
        if let Some((_, text)) = &help.edit {
            let _ = write!(out, " => `{}`", text.replace('\n', "\\n"));
        }
        out.push('\n');
    }
}

fn pointer(file: &SourceFile, span: Span) -> String {
    let (line, column) = file.line_col(span.start);
    let (end_line, end_column) = file.line_col(span.end);
    if column <= MARK.len() + 1 {
        return format!("{MARK} {} ", place(file, span));
    }
    let blanks = " ".repeat(column - 1 - MARK.len());
    let carets = if end_line > line {
        let rest = file.text[span.start as usize..]
            .lines()
            .next()
            .unwrap_or("");
        format!("{}...", "^".repeat(rest.chars().count().max(1)))
    } else if end_column == column {
        "|".to_string()
    } else {
        "^".repeat(end_column - column)
    };
    format!("{MARK}{blanks}{carets} ")
}

fn place(file: &SourceFile, span: Span) -> String {
    let (line, column) = file.line_col(span.start);
    let (end_line, end_column) = file.line_col(span.end);
    if end_line > line {
        format!("@{line}:{column}-{end_line}:{end_column}")
    } else {
        format!("@{line}:{column}-{end_column}")
    }
}

/// Lines that differ: from the first to the last difference.
fn difference(expected: &str, said: &str) -> Vec<String> {
    let a: Vec<&str> = expected.lines().collect();
    let b: Vec<&str> = said.lines().collect();
    let head = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
    let tail = a[head..]
        .iter()
        .rev()
        .zip(b[head..].iter().rev())
        .take_while(|(x, y)| x == y)
        .count();
    let mut out = vec![];
    out.extend(a[head..a.len() - tail].iter().map(|l| format!("- {l}")));
    out.extend(b[head..b.len() - tail].iter().map(|l| format!("+ {l}")));
    out
}
