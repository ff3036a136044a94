//! The text of tile IR as words, quoted texts and marks, each with its line.

use super::{ParseError, Result};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Names, numbers, `%3`.
    Word(String),
    Text(String),
    Mark(&'static str),
    End,
}

const MARKS: [&str; 14] = [
    ":+", "<-", "+=", ">=", "{", "}", "[", "]", "(", ")", ",", "=", ":", ";",
];

pub(super) fn tokens(text: &str) -> Result<Vec<(Token, usize)>> {
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let error = |message: String| ParseError {
            line: number + 1,
            message,
        };
        let mut rest = line.trim_start();
        while !rest.is_empty() && !rest.starts_with("//") {
            if rest.starts_with('"') {
                let end = string_end(rest).ok_or_else(|| error("a string does not end".into()))?;
                let value = unescape(&rest[1..end])
                    .ok_or_else(|| error("an unknown escape in a string".into()))?;
                out.push((Token::Text(value), number + 1));
                rest = rest[end + 1..].trim_start();
                continue;
            }
            if let Some(mark) = MARKS.iter().find(|m| rest.starts_with(**m)) {
                out.push((Token::Mark(mark), number + 1));
                rest = rest[mark.len()..].trim_start();
                continue;
            }
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || "_%.-+".contains(c)))
                .unwrap_or(rest.len());
            if end == 0 {
                return Err(error(format!(
                    "unexpected `{}`",
                    rest.chars().next().unwrap_or(' ')
                )));
            }
            out.push((Token::Word(rest[..end].to_string()), number + 1));
            rest = rest[end..].trim_start();
        }
    }
    Ok(out)
}

/// Offset of the quote that closes the string at the start of `s`.
fn string_end(s: &str) -> Option<usize> {
    let mut escaped = false;
    s.char_indices().skip(1).find_map(|(i, c)| {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == '"' {
            return Some(i);
        }
        None
    })
}

/// What `{:?}` of a string writes.
fn unescape(s: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '0' => '\0',
            'u' => {
                let hex: String = chars.by_ref().skip(1).take_while(|&c| c != '}').collect();
                char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?
            }
            c @ ('\\' | '"' | '\'') => c,
            _ => return None,
        });
    }
    Some(out)
}
