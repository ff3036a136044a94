//! The usual slips: habits from C, Rust, Python, TileLang and Triton that aren't this language. Each gets a message of its own
//! with the remedy; where the remedy is mechanical, as an edit.

use super::broken::Fault;
use super::*;

/// Tokens of a stretch of blanked text as byte ranges; only coarse enough to recognise slips.
pub struct Tokens<'a> {
    text: &'a str,
    list: Vec<(usize, usize)>,
}

const SYMBOLS: [&str; 31] = [
    "..=", "<<=", ">>=", "max=", "min=", "<-", "->", ":+", "::", "..", "==", "!=", "<=", ">=",
    "&&", "||", "<<", ">>", "+=", "-=", "*=", "/=", ":=", "++", "--", "**", "//", "%=", "|=", "&=",
    "^=",
];

pub fn tokens(text: &str) -> Tokens<'_> {
    let mut list = vec![];
    let mut i = 0;
    loop {
        i += text[i..].len() - text[i..].trim_start().len();
        let Some(len) = first_token(&text[i..]) else {
            return Tokens { text, list };
        };
        list.push((i, i + len));
        i += len;
    }
}

/// Length of the token that the text starts with; `None` at its end.
pub fn first_token(text: &str) -> Option<usize> {
    let c = text.chars().next()?;
    Some(if c.is_ascii_alphanumeric() || c == '_' {
        word_length(text)
    } else if c == '"' {
        let bytes = text.as_bytes();
        let mut end = 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += 1 + (bytes[end] == b'\\') as usize;
        }
        let mut end = (end + 1).min(text.len());
        while !text.is_char_boundary(end) {
            end += 1;
        }
        end
    } else {
        SYMBOLS
            .iter()
            .find(|s| text.starts_with(**s))
            .map_or(c.len_utf8(), |s| s.len())
    })
}

/// A word or a number; `1.5` is one, `0..n` and `x.t` are not.
fn word_length(text: &str) -> usize {
    let len = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    let Some(fraction) = text[len..].strip_prefix('.') else {
        return len;
    };
    let is_number = text.starts_with(|c: char| c.is_ascii_digit());
    if is_number && fraction.starts_with(|c: char| c.is_ascii_digit()) {
        len + 1
            + fraction
                .find(|c: char| !c.is_ascii_alphanumeric())
                .unwrap_or(fraction.len())
    } else {
        len
    }
}

impl<'a> Tokens<'a> {
    /// The text of token `k`; empty past the end.
    pub fn text(&self, k: usize) -> &'a str {
        self.list.get(k).map_or("", |&(s, e)| &self.text[s..e])
    }

    fn range(&self, k: usize) -> (usize, usize) {
        self.list
            .get(k)
            .copied()
            .unwrap_or((self.text.len(), self.text.len()))
    }

    /// The token at or after this offset.
    fn index_at(&self, at: usize) -> usize {
        self.list.partition_point(|&(_, e)| e <= at)
    }

    /// How the innermost bracket around this offset goes on, in words; empty outside of brackets.
    pub fn closers_at(&self, at: usize) -> &'static str {
        let mut open = vec![];
        let found = self.index_at(at);
        for k in 0..found {
            match self.text(k) {
                b @ ("(" | "[" | "{") => open.push(b),
                ")" | "]" | "}" => {
                    open.pop();
                }
                _ => {}
            }
        }
        match (open.last(), self.text(found)) {
            (Some(&"("), ",") => "`)`",
            (Some(&"["), ",") => "`]`",
            (Some(&"("), _) => "`,` or `)`",
            (Some(&"["), _) => "`,` or `]`",
            _ => "",
        }
    }

    /// The token that closes the bracket at `k`, if any.
    fn matching(&self, k: usize) -> Option<usize> {
        let mut depth = 0;
        for j in k..self.list.len() {
            match self.text(j) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth -= 1;
                    if depth == 0 {
                        return Some(j);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// The text from token `a` to before token `b`.
    fn slice(&self, a: usize, b: usize) -> &'a str {
        if a >= b {
            return "";
        }
        &self.text[self.range(a).0..self.range(b - 1).1]
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// Element types of other languages.
fn is_foreign_type(text: &str) -> bool {
    matches!(
        text,
        "int"
            | "float"
            | "double"
            | "half"
            | "auto"
            | "var"
            | "const"
            | "unsigned"
            | "long"
            | "size_t"
            | "uint32_t"
            | "int32_t"
    ) || exprs::dtype(text).is_some()
}

impl Builder<'_> {
    fn token_span(&self, fault: &Fault, from: usize, to: usize) -> Span {
        self.at(
            fault.start + fault.tokens.range(from).0,
            fault.start + fault.tokens.range(to).1,
        )
    }

    pub fn stmt_slip(&self, fault: &Fault) -> Option<crate::diag::Diagnostic> {
        let t = &fault.tokens;
        let one = |k: usize| self.token_span(fault, k, k);
        match (t.text(0), t.text(1), t.text(2)) {
            (";", ..) => return Some(problem::stray_semicolon(one(0))),
            ("{", ..) => return Some(problem::bare_block(one(0))),
            ("while", ..) => return Some(problem::no_while(one(0))),
            ("else", ..) => return Some(problem::else_without_if(one(0))),
            (name, "++" | "--", _) if is_word(name) => {
                let op = &t.text(1)[..1];
                return Some(problem::increment(self.token_span(fault, 0, 1), name, op));
            }
            ("++" | "--", name, _) if is_word(name) => {
                let op = &t.text(0)[..1];
                return Some(problem::increment(self.token_span(fault, 0, 1), name, op));
            }
            (ty, name, "=" | ";" | "[") if is_foreign_type(ty) && is_word(name) => {
                return Some(problem::c_declaration(one(0), ty, name));
            }
            (keyword, "=" | "+=" | "-=" | "*=" | "/=", _) if exprs::is_reserved(keyword) => {
                if keyword == "let" {
                    return Some(problem::unexpected(
                        one(1),
                        "a name",
                        "`=`",
                        &problem::form_of_stmt("let"),
                    ));
                }
                return Some(problem::reserved_word(one(0), keyword));
            }
            ("for", "(", _)
                if t.matching(1)
                    .is_some_and(|end| t.slice(1, end).contains(';')) =>
            {
                let end = t.matching(1).expect("checked");
                return Some(self.c_loop(fault, end));
            }
            ("for" | "pipeline", var, "=") if is_word(var) => {
                return Some(problem::loop_with_equals(one(2)));
            }
            ("map" | "for", a, ",") if is_word(a) => {
                if let Some(k) = (1..t.list.len()).find(|&k| t.text(k) == "in") {
                    return Some(problem::loose_variables(
                        self.token_span(fault, 1, k - 1),
                        t.slice(1, k),
                    ));
                }
            }
            ("reg" | "shared" | "global" | "cluster", name, ":")
                if is_word(name) && t.text(3) != "[" && is_word(t.text(4)) =>
            {
                return Some(problem::missing_shape_brackets(one(3), name, t.text(3)));
            }
            ("reg" | "shared" | "global" | "cluster", name, "[") if is_word(name) => {
                return Some(self.tile_without_colon(fault));
            }
            (name, _, _) if is_word(name) && !exprs::is_reserved(name) => {
                // `a <- b;`, `a[..] <- b;`
                let arrow = match t.text(1) {
                    "[" => t.matching(1).map_or(usize::MAX, |k| k + 1),
                    _ => 1,
                };
                match t.text(arrow) {
                    "<-" => return Some(problem::arrow_without_copy(one(arrow), one(0))),
                    "==" => return Some(problem::comparison_as_statement(one(arrow))),
                    _ => {}
                }
            }
            _ => {}
        }
        if let Some(k) = self.wrong_arrow(t, fault.at) {
            return Some(problem::wrong_arrow(one(k), t.text(0), t.text(k)));
        }
        if matches!(t.text(0), "map" | "for" | "pipeline")
            && let Some(d) = self.loop_slip(fault)
        {
            return Some(d);
        }
        self.expr_slip(fault)
    }

    /// `=`, `<=`, `<`, `:=` where a copy or put has its arrow.
    fn wrong_arrow(&self, t: &Tokens, at: usize) -> Option<usize> {
        if !matches!(t.text(0), "copy" | "put") {
            return None;
        }
        let k = match t.text(2) {
            "[" => t.matching(2)? + 1,
            _ => 2,
        };
        (t.range(k).0 == at && matches!(t.text(k), "=" | "<=" | "<" | ":=" | "->" | "," | "+="))
            .then_some(k)
    }

    /// `for (int i = 0; i < n; i++)`
    fn c_loop(&self, fault: &Fault, end: usize) -> crate::diag::Diagnostic {
        let t = &fault.tokens;
        let span = self.token_span(fault, 1, end);
        let mut k = 2;
        while is_foreign_type(t.text(k)) {
            k += 1;
        }
        let first = (k..end).find(|&j| t.text(j) == ";");
        let second = first.and_then(|f| (f + 1..end).find(|&j| t.text(j) == ";"));
        let rewrite = match (first, second) {
            (Some(f), Some(s))
                if is_word(t.text(k))
                    && t.text(k + 1) == "="
                    && t.text(f + 1) == t.text(k)
                    && matches!(t.text(f + 2), "<" | "<=" | "!=") =>
            {
                let dots = if t.text(f + 2) == "<=" { "..=" } else { ".." };
                Some(format!(
                    "{} in {}{dots}{}",
                    t.text(k),
                    t.slice(k + 2, f),
                    t.slice(f + 3, s)
                ))
            }
            _ => None,
        };
        problem::c_loop(span, rewrite)
    }

    /// `reg acc[4]: f32`, `reg acc [4] f32`
    fn tile_without_colon(&self, fault: &Fault) -> crate::diag::Diagnostic {
        let t = &fault.tokens;
        let name = t.text(1);
        let close = t.matching(2);
        let after = close.map_or("", |k| t.text(k + 1));
        let span = self.token_span(fault, 1, close.unwrap_or(2));
        let shape = close.map_or("[..]", |k| t.slice(2, k + 1));
        let rewrite = if after == ":" {
            let k = close.expect("a token follows it");
            return problem::tile_without_colon(
                self.token_span(fault, 1, k + 1),
                format!("{name}: {shape}"),
            );
        } else {
            format!("{name}: {shape}")
        };
        problem::tile_without_colon(span, rewrite)
    }

    fn loop_slip(&self, fault: &Fault) -> Option<crate::diag::Diagnostic> {
        let t = &fault.tokens;
        let k = (1..t.list.len()).find(|&k| t.text(k) == "in")?;
        let is_map = t.text(0) == "map";
        if t.text(k + 1) == "range" && t.text(k + 2) == "(" {
            let end = t.matching(k + 2)?;
            return Some(problem::python_range(
                self.token_span(fault, k + 1, end),
                t.slice(k + 3, end),
                is_map,
            ));
        }
        if is_map && t.text(k + 1) != "[" {
            let dots = (k + 1..t.list.len()).find(|&j| matches!(t.text(j), ".." | "..="));
            let end = (k + 1..t.list.len())
                .find(|&j| matches!(t.text(j), "{" | "@"))
                .unwrap_or(t.list.len());
            let zero = t.text(k + 1) == "0" && dots == Some(k + 2) && t.text(k + 2) == "..";
            return Some(problem::map_over_range(
                self.token_span(fault, k + 1, end.max(k + 2) - 1),
                zero.then(|| format!("[{}]", t.slice(k + 3, end))),
            ));
        }
        if !is_map && t.text(k + 1) == "[" {
            let end = t.matching(k + 1)?;
            let one = !t.slice(k + 2, end).contains(',');
            return Some(problem::for_over_shape(
                self.token_span(fault, k + 1, end),
                one.then(|| format!("0..{}", t.slice(k + 2, end))),
            ));
        }
        None
    }

    /// Slips that can stand in any expression.
    pub fn expr_slip(&self, fault: &Fault) -> Option<crate::diag::Diagnostic> {
        let t = &fault.tokens;
        let at = t.index_at(fault.at);
        let one = |k: usize| self.token_span(fault, k, k);
        if let Some(d) = self.slice_slip(fault) {
            return Some(d);
        }
        // The fault is found at the slip or just behind it.
        for k in at.saturating_sub(1)..=at {
            let before = if k == 0 { "" } else { t.text(k - 1) };
            let operand_before = is_word(before)
                || before.ends_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, ')' | ']'));
            match t.text(k) {
                "as" if operand_before && t.text(0) != "get" => {
                    return Some(problem::as_cast(
                        self.token_span(fault, k, k + 1),
                        before,
                        t.text(k + 1),
                    ));
                }
                word @ ("and" | "or") if operand_before => {
                    return Some(problem::word_operator(one(k), word));
                }
                "not" => return Some(problem::word_operator(one(k), "not")),
                "if" if k > 0 && operand_before => return Some(problem::python_select(one(k))),
                "&" if !operand_before => {
                    let last = k + (t.text(k + 1) == "mut") as usize;
                    return Some(problem::reference(self.token_span(fault, k, last)));
                }
                "*" if !operand_before && k > 0 && is_word(t.text(k + 1)) && before != "*" => {
                    return Some(problem::reference(one(k)));
                }
                "**" => return Some(problem::power(one(k))),
                "'" => return Some(problem::single_quotes(one(k))),
                "%=" | "|=" | "&=" | "^=" | ":=" | "<<=" | ">>=" => {
                    return Some(problem::no_such_assignment(one(k), t.text(k), t.text(0)));
                }
                "B" | "KiB" | "MiB" | "GiB" if before.starts_with(|c: char| c.is_ascii_digit()) => {
                    return Some(problem::loose_unit(
                        self.token_span(fault, k - 1, k),
                        before,
                        t.text(k),
                    ));
                }
                "." if k > 0 && before.bytes().all(|b| b.is_ascii_digit()) => {
                    return Some(problem::float_without_fraction(
                        self.token_span(fault, k - 1, k),
                        before,
                    ));
                }
                "." if t.text(k + 1).starts_with(|c: char| c.is_ascii_digit()) => {
                    return Some(problem::float_without_integer(
                        self.token_span(fault, k, k + 1),
                        t.text(k + 1),
                    ));
                }
                _ => {}
            }
        }
        None
    }

    /// `a[0:64]`, `a[0..64]`, `a[:64]`: ranges of other languages in an index.
    fn slice_slip(&self, fault: &Fault) -> Option<crate::diag::Diagnostic> {
        let t = &fault.tokens;
        let at = t.index_at(fault.at);
        // The slot that holds the fault: back to `[` or `,` at this depth.
        let mut depth = 0;
        let mut start = None;
        for k in (0..at.min(t.list.len())).rev() {
            match t.text(k) {
                ")" | "]" | "}" => depth += 1,
                "(" | "{" if depth == 0 => return None,
                "(" | "{" => depth -= 1,
                "[" if depth > 0 => depth -= 1,
                "[" | "," if depth == 0 => {
                    start = Some(k + 1);
                    break;
                }
                _ => {}
            }
        }
        let start = start?;
        let mut end = start;
        let mut colon = None;
        let mut depth = 0;
        while end < t.list.len() {
            match t.text(end) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" | "," if depth == 0 => break,
                ")" | "]" | "}" => depth -= 1,
                "?" if depth == 0 => return None,
                ":" | ".." | "..=" if depth == 0 && colon.is_none() => colon = Some(end),
                ";" => return None,
                _ => {}
            }
            end += 1;
        }
        let colon = colon?;
        if !matches!(t.text(end), "]" | ",") || end == start + 1 {
            return None;
        }
        let lo = t.slice(start, colon);
        let hi = t.slice(colon + 1, end);
        let rewrite = match (lo, hi) {
            (_, "") => None,
            ("" | "0", hi) => Some(format!("0 :+ {hi}")),
            // `m0 : m0 + 64`
            (lo, hi) => match hi.strip_prefix(lo).map(str::trim_start) {
                Some(rest) if rest.starts_with('+') => {
                    Some(format!("{lo} :+ {}", rest[1..].trim()))
                }
                _ => match (lo.parse::<i64>(), hi.parse::<i64>()) {
                    (Ok(l), Ok(h)) if h > l => Some(format!("{l} :+ {}", h - l)),
                    _ => Some(format!("{lo} :+ {hi} - {lo}")),
                },
            },
        };
        Some(problem::slice(
            self.token_span(fault, start, end - 1),
            rewrite,
        ))
    }

    pub fn param_slip(&self, fault: &Fault, of_kernel: bool) -> Option<crate::diag::Diagnostic> {
        let t = &fault.tokens;
        let modes = ["in", "out", "inout", "scratch", "flags"];
        if !of_kernel && t.text(1) == ":" && modes.contains(&t.text(2)) {
            let mode = self.token_span(fault, 2, 2);
            return Some(problem::mode_in_function(mode, t.text(0), t.text(2)));
        }
        let one = |k: usize| self.token_span(fault, k, k);
        // `out M f32`
        if t.text(1) == ":"
            && modes.contains(&t.text(2))
            && is_word(t.text(3))
            && is_word(t.text(4))
        {
            return Some(problem::missing_shape_brackets(
                one(3),
                t.text(0),
                t.text(3),
            ));
        }
        // `a: input [M] f32`
        if of_kernel
            && t.text(1) == ":"
            && is_word(t.text(2))
            && !modes.contains(&t.text(2))
            && t.text(3) == "["
        {
            return Some(problem::unknown_mode(one(2), t.text(2)));
        }
        // `in a: [M] f32`
        if modes.contains(&t.text(0)) && is_word(t.text(1)) && t.text(2) == ":" {
            return Some(problem::mode_before_name(one(0), t.text(1), t.text(0)));
        }
        // `float* a`, `int n`
        if is_foreign_type(t.text(0)) && t.text(1) != ":" {
            return Some(problem::c_parameter(self.token_span(
                fault,
                0,
                t.list.len() - 1,
            )));
        }
        if t.text(1) != ":" && is_word(t.text(0)) && is_word(t.text(1)) {
            let (_, end) = fault.tokens.range(0);
            let at = self.at(fault.start + end, fault.start + end);
            return Some(problem::missing_colon(at, t.text(0)));
        }
        self.expr_slip(fault)
    }
}
