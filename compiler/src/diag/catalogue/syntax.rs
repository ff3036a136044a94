//! `TL00xx`: text and syntax.

use crate::diag::Diagnostic;
use crate::source::Span;

fn closer(opener: char) -> char {
    match opener {
        '(' => ')',
        '[' => ']',
        _ => '}',
    }
}

pub fn unclosed_comment(span: Span) -> Diagnostic {
    Diagnostic::error("TL0001", span, "this comment has no end").help("close it with `*/`")
}

pub fn unclosed_string(span: Span) -> Diagnostic {
    Diagnostic::error("TL0002", span, "this text has no closing `\"` on its line")
        .help("a text stays on one line: add the closing `\"`")
}

pub fn too_deep(span: Span, what: &str, limit: usize) -> Diagnostic {
    Diagnostic::error("TL0003", span, format!("more than {limit} {what}"))
        .help("name parts of it with `let`, or move parts to an `fn`")
}

pub fn unclosed_bracket(span: Span, opener: char) -> Diagnostic {
    Diagnostic::error("TL0004", span, format!("this `{opener}` is never closed"))
        .help(format!("add the matching `{}`", closer(opener)))
}

pub fn stray_closer(span: Span, closer: char) -> Diagnostic {
    Diagnostic::error("TL0005", span, format!("this `{closer}` closes nothing"))
        .help("remove it, or add the bracket that it should close")
}

/// Not what can stand here, and no likelier slip is known.
pub fn unexpected(span: Span, context: &str, expected: &str, found: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0010",
        span,
        format!("{context}: expected {expected}, found {found}"),
    )
}

pub fn missing_semicolon(span: Span) -> Diagnostic {
    Diagnostic::error("TL0011", span, "a `;` is missing here").suggest("add it", span, ";")
}

pub fn reserved_word(span: Span, word: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0012",
        span,
        format!("`{word}` is a word of the language and can't be a name"),
    )
    .suggest("choose another name", span, format!("{word}_"))
}

/// What is wrong with a number.
#[derive(Clone, Copy, Debug)]
pub enum NumberFault {
    Hex,
    TooLarge,
    Unit,
    FractionOfUnit,
}

pub fn bad_number(span: Span, text: &str, fault: NumberFault) -> Diagnostic {
    let d =
        |why: &str| Diagnostic::error("TL0013", span, format!("`{text}` is not a number: {why}"));
    match fault {
        NumberFault::Hex => d("hexadecimal digits must follow `0x`"),
        NumberFault::TooLarge => {
            d("it is too large").help("integers go up to 2^64 - 1, floats up to about 1.8e308")
        }
        NumberFault::FractionOfUnit => d("only whole numbers take a unit"),
        NumberFault::Unit => {
            let split = text
                .find(|c: char| !(c.is_ascii_digit() || c == '_' || c == '.'))
                .unwrap_or(text.len());
            let (number, unit) = text.split_at(split);
            let d = d(&format!("`{unit}` is not a unit"));
            match unit {
                "K" | "KB" | "kB" | "kb" | "Kb" | "k" | "Ki" => {
                    d.suggest("units are binary", span, format!("{number}KiB"))
                }
                "M" | "MB" | "mb" | "Mb" | "Mi" => {
                    d.suggest("units are binary", span, format!("{number}MiB"))
                }
                "G" | "GB" | "gb" | "Gb" | "Gi" => {
                    d.suggest("units are binary", span, format!("{number}GiB"))
                }
                "f" | "F" | "f32" | "f64" | "h" => d.suggest(
                    "a literal takes its type from its surroundings",
                    span,
                    if number.contains('.') {
                        number.to_string()
                    } else {
                        format!("{number}.0")
                    },
                ),
                "u" | "U" | "l" | "L" | "ul" | "UL" | "i32" | "i64" | "u32" | "u64" => d.suggest(
                    "a literal takes its type from its surroundings",
                    span,
                    number,
                ),
                _ => d.help(
                    "the units are `B`, `KiB`, `MiB` and `GiB`, written right behind the number",
                ),
            }
        }
    }
}

pub fn missing_shape(span: Span, name: &str, elem: &str) -> Diagnostic {
    Diagnostic::error("TL0014", span, format!("`{name}` has no shape")).suggest(
        "write the extents in brackets before the element type; one number is `let mut`",
        span,
        format!("[1] {elem}"),
    )
}

pub fn chained_comparison(span: Span) -> Diagnostic {
    Diagnostic::error("TL0015", span, "comparisons can't be chained").help("write `a < b && b < c`")
}

pub fn expression_too_deep(span: Span, limit: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0016",
        span,
        format!("this expression nests more than {limit} operations"),
    )
    .help("name parts of it with `let`")
}

pub fn unknown_kind(span: Span, found: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0017",
        span,
        format!("`{found}` is not a kind of generic parameter"),
    )
    .help("a generic parameter is `int`, `bool` or `dtype`")
}

pub fn bad_escape(span: Span, found: char) -> Diagnostic {
    Diagnostic::error("TL0018", span, format!("`\\{found}` is not an escape"))
        .help("the escapes are `\\\"`, `\\\\`, `\\n` and `\\t`")
}

pub fn text_too_long(span: Span, bytes: usize, limit: usize) -> Diagnostic {
    Diagnostic::error(
        "TL0006",
        span,
        format!("this file has {bytes} bytes; at most {limit} are read"),
    )
    .help("split it into modules")
}

/// The parser's limit on work or stack for one item.
pub fn too_involved(span: Span) -> Diagnostic {
    Diagnostic::error("TL0007", span, "this item is too involved to be read")
        .help("split it: name parts of expressions with `let`, or move parts to an `fn`")
}

pub fn several_loop_variables(span: Span) -> Diagnostic {
    Diagnostic::error("TL0019", span, "a loop over a range has one variable")
        .help("nest two loops, or write `map (i, j) in [M, N]` where iterations don't depend on each other")
}

pub fn unknown_edition(span: Span) -> Diagnostic {
    Diagnostic::error("TL0020", span, "this edition is not known").suggest(
        "the only edition is 2026",
        span,
        "2026",
    )
}

pub fn second_header(span: Span, what: &str) -> Diagnostic {
    Diagnostic::error("TL0021", span, format!("a file has one `{what}` line"))
        .help("remove this one")
}

pub fn use_without_names(span: Span, module: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0022",
        span,
        format!("this takes nothing from `{module}`"),
    )
    .help(format!("name what to use: `use {module}::{{name}};`"))
}

pub fn typed_const(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error(
        "TL0023",
        span,
        format!("the constant `{name}` takes no type"),
    )
    .help("constants are exact: integers or f64, rounded where they are used")
}

pub fn missing_mode(span: Span, name: &str) -> Diagnostic {
    Diagnostic::error("TL0024", span, format!("the tensor `{name}` has no mode"))
        .help("write `in`, `out`, `inout`, `scratch` or `flags` before its shape")
}
