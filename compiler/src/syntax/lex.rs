//! What has to be known before the grammar runs: where comments, strings and brackets are, and where each item starts.
//!
//! One pass over the bytes. Gives a copy of the text in which comments are blanks (every offset stays), the comments, and the
//! ranges of the items, each of which the grammar reads on its own: damage in one item can't reach the next. Reports what would
//! otherwise derail the grammar: brackets that don't match, text or comments without an end, nesting beyond [`MAX_NESTING`].
//!
//! Keeps: the grammar's recursion is bounded by what passes here, since every way to recurse is a bracket, a `?` or a run of
//! prefix operators.

use super::ast::Comment;
use crate::diag::{Sink, catalogue::syntax as problem};
use crate::source::{FileId, Span};

/// Deepest nesting of brackets, and of `?` within one bracket.
pub const MAX_NESTING: usize = 64;
/// Longest run of `-` and `!` before an operand.
const MAX_PREFIXES: usize = 16;

pub const ITEM_WORDS: [&str; 10] = [
    "kernel",
    "fn",
    "const",
    "reference",
    "test",
    "bench",
    "instances",
    "use",
    "module",
    "edition",
];

#[derive(Debug)]
pub struct Chunk {
    pub start: usize,
    pub end: usize,
    /// Nested too deep to be read; reported already.
    pub too_deep: bool,
}

#[derive(Debug)]
pub struct Lexed {
    pub text: String,
    pub comments: Vec<Comment>,
    /// `///` lines; the parser hands those in front of an item to it.
    pub docs: Vec<Comment>,
    pub chunks: Vec<Chunk>,
    /// Brackets already reported as unmatched: a statement that holds one needs no further report.
    pub unmatched: Vec<usize>,
}

struct Open {
    at: usize,
    bracket: u8,
    questions: usize,
}

struct Lexer<'a> {
    sink: &'a mut Sink,
    file: FileId,
    text: &'a str,
    out: Lexed,
    open: Vec<Open>,
    /// `?` outside of all brackets, since the last `;`.
    questions: usize,
    /// `?` in all open brackets.
    open_questions: usize,
    prefixes: usize,
}

pub fn lex(sink: &mut Sink, file: FileId, text: &str) -> Lexed {
    let mut lexer = Lexer {
        sink,
        file,
        text,
        out: Lexed {
            text: String::new(),
            comments: vec![],
            docs: vec![],
            chunks: vec![],
            unmatched: vec![],
        },
        open: vec![],
        questions: 0,
        open_questions: 0,
        prefixes: 0,
    };
    let blanked = lexer.run();
    lexer.out.text = blanked;
    lexer.out.unmatched.sort_unstable();
    lexer.out
}

impl Lexer<'_> {
    fn span(&self, start: usize, end: usize) -> Span {
        Span::new(self.file, start, end)
    }

    fn run(&mut self) -> String {
        let bytes = self.text.as_bytes();
        let mut blanked = Vec::with_capacity(bytes.len());
        let mut i = 0;
        while i < bytes.len() {
            let rest = &bytes[i..];
            let end = if rest.starts_with(b"//") {
                self.line_comment(i)
            } else if rest.starts_with(b"/*") {
                self.block_comment(i)
            } else if bytes[i] == b'#' {
                self.hash_comment(i)
            } else if !bytes[i].is_ascii() {
                self.foreign_character(i)
            } else if bytes[i] == b'"' {
                self.string(i)
            } else if bytes[i].is_ascii_alphabetic() || bytes[i] == b'_' {
                self.word(i)
            } else {
                self.symbol(i);
                i + 1
            };
            let comment = rest.starts_with(b"//") || rest.starts_with(b"/*") || bytes[i] == b'#';
            if comment {
                blanked.extend(
                    bytes[i..end]
                        .iter()
                        .map(|&b| if b == b'\n' { b'\n' } else { b' ' }),
                );
            } else if bytes[i] == b'"' && self.out.unmatched.last() == Some(&i) {
                // The grammar sees an empty text, not the brackets that were not counted.
                blanked.extend((i..end).map(|at| if at < i + 2 { b'"' } else { b' ' }));
            } else {
                blanked.extend_from_slice(&bytes[i..end]);
            }
            i = end;
        }
        self.close_all();
        self.end_chunk(bytes.len());
        String::from_utf8(blanked).expect(
            "only whole comments and texts, which start and end at characters, were replaced",
        )
    }

    fn line_comment(&mut self, start: usize) -> usize {
        let end = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |n| start + n);
        let text = self.text[start..end].trim_end();
        let comment = Comment {
            text: text.to_string(),
            span: self.span(start, start + text.len()),
        };
        if text.starts_with("///") && !text.starts_with("////") {
            self.out.docs.push(comment);
        } else {
            self.out.comments.push(comment);
        }
        end
    }

    /// A comment of other languages: reported, then left out like a comment of ours.
    fn hash_comment(&mut self, start: usize) -> usize {
        let end = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |n| start + n);
        let text = self.text[start..end].trim_end();
        let span = self.span(start, start + text.len());
        let mark = self.span(start, start + 1);
        self.sink.report(problem::hash_comment(span, mark));
        self.out.comments.push(Comment {
            text: text.to_string(),
            span,
        });
        end
    }

    fn foreign_character(&mut self, start: usize) -> usize {
        let c = self.text[start..]
            .chars()
            .next()
            .expect("a character starts here");
        let end = start + c.len_utf8();
        self.sink
            .report(problem::foreign_character(self.span(start, end), c));
        self.out.unmatched.push(start);
        end
    }

    fn block_comment(&mut self, start: usize) -> usize {
        let end = match self.text[start + 2..].find("*/") {
            Some(n) => start + 2 + n + 2,
            None => {
                self.sink
                    .report(problem::unclosed_comment(self.span(start, start + 2)));
                // It has swallowed the closing brackets.
                self.out.unmatched.extend(self.open.drain(..).map(|o| o.at));
                self.open_questions = 0;
                self.text.len()
            }
        };
        self.out.comments.push(Comment {
            text: self.text[start..end].to_string(),
            span: self.span(start, end),
        });
        end
    }

    fn string(&mut self, start: usize) -> usize {
        self.prefixes = 0;
        let bytes = self.text.as_bytes();
        let mut i = start + 1;
        while i < bytes.len() && bytes[i] != b'\n' {
            match bytes[i] {
                b'"' => return i + 1,
                b'\\' if bytes.get(i + 1).is_some_and(|&b| b != b'\n') => i += 2,
                _ => i += 1,
            }
        }
        // A `\` may have skipped into a character of several bytes.
        let mut end = i.min(bytes.len());
        while !self.text.is_char_boundary(end) {
            end += 1;
        }
        self.sink
            .report(problem::unclosed_string(self.span(start, end)));
        // It may have swallowed the ends of the brackets on its line.
        while self.open.pop_if(|open| open.bracket != b'{').is_some() {}
        self.open_questions = self.open.iter().map(|open| open.questions).sum();
        self.out.unmatched.push(start);
        end
    }

    fn word(&mut self, start: usize) -> usize {
        self.prefixes = 0;
        let bytes = self.text.as_bytes();
        let end = bytes[start..]
            .iter()
            .position(|b| !b.is_ascii_alphanumeric() && *b != b'_')
            .map_or(bytes.len(), |n| start + n);
        let first_in_line = start == 0 || bytes[start - 1] == b'\n';
        if (self.open.is_empty() || first_in_line) && ITEM_WORDS.contains(&&self.text[start..end]) {
            // `reference r for k`, `test "…" for k`: `for` isn't an item word, so an item word at depth 0 starts an item.
            self.close_all();
            self.end_chunk(start);
        }
        end
    }

    fn symbol(&mut self, i: usize) {
        let byte = self.text.as_bytes()[i];
        match byte {
            b'(' | b'[' | b'{' => {
                self.open.push(Open {
                    at: i,
                    bracket: byte,
                    questions: 0,
                });
                self.check_depth(i);
            }
            b')' | b']' | b'}' => self.close(i, byte),
            b'?' => {
                match self.open.last_mut() {
                    Some(open) => {
                        open.questions += 1;
                        self.open_questions += 1;
                    }
                    None => self.questions += 1,
                }
                self.check_depth(i);
            }
            b';' => match self.open.last_mut() {
                Some(open) => self.open_questions -= std::mem::take(&mut open.questions),
                None => self.questions = 0,
            },
            b'-' | b'!' => {
                self.prefixes += 1;
                if self.prefixes > MAX_PREFIXES {
                    self.too_deep(i, "operators before an operand", MAX_PREFIXES);
                }
                return;
            }
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            self.prefixes = 0;
        }
    }

    fn check_depth(&mut self, i: usize) {
        if self.open.len() > MAX_NESTING {
            self.too_deep(i, "brackets inside one another", MAX_NESTING);
        }
        if self.open_questions + self.questions > MAX_NESTING {
            self.too_deep(i, "`?` inside one another", MAX_NESTING);
        }
    }

    /// Reported once for an item, which is then not read at all.
    fn too_deep(&mut self, i: usize, what: &str, limit: usize) {
        if self.out.chunks.is_empty() {
            self.out.chunks.push(Chunk {
                start: 0,
                end: 0,
                too_deep: false,
            });
        }
        let span = self.span(i, i + 1);
        let chunk = self.out.chunks.last_mut().expect("pushed above if empty");
        if !chunk.too_deep {
            chunk.too_deep = true;
            self.sink.report(problem::too_deep(span, what, limit));
        }
    }

    fn close(&mut self, i: usize, byte: u8) {
        let opener = match byte {
            b')' => b'(',
            b']' => b'[',
            _ => b'{',
        };
        match self.open.iter().rposition(|o| o.bracket == opener) {
            // `( }`: the `(` lacks its end, unless the closer belongs to nothing inside the innermost `{`.
            Some(k) if !(byte != b'}' && self.open[k..].iter().any(|o| o.bracket == b'{')) => {
                for (i, open) in self.open.split_off(k).into_iter().enumerate() {
                    self.open_questions -= open.questions;
                    if i > 0 {
                        self.unclosed(open);
                    }
                }
            }
            _ => {
                self.out.unmatched.push(i);
                self.sink
                    .report(problem::stray_closer(self.span(i, i + 1), byte as char));
            }
        }
    }

    fn close_all(&mut self) {
        for open in std::mem::take(&mut self.open) {
            self.unclosed(open);
        }
        self.questions = 0;
        self.open_questions = 0;
    }

    fn unclosed(&mut self, open: Open) {
        self.out.unmatched.push(open.at);
        // Of nesting beyond the limit it is enough to say so.
        if self.out.chunks.last().is_some_and(|c| c.too_deep) {
            return;
        }
        self.sink.report(problem::unclosed_bracket(
            self.span(open.at, open.at + 1),
            open.bracket as char,
        ));
    }

    /// Ends the current chunk at `end` and starts the next there.
    fn end_chunk(&mut self, end: usize) {
        match self.out.chunks.last_mut() {
            Some(last) => last.end = end,
            None => self.out.chunks.push(Chunk {
                start: 0,
                end,
                too_deep: false,
            }),
        }
        if end < self.text.len() {
            self.out.chunks.push(Chunk {
                start: end,
                end,
                too_deep: false,
            });
        }
    }
}

/// Whether a text (without comments) is one bracketed group `( … )`: its first bracket closes at its end.
pub fn is_group(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'(') {
        return false;
    }
    let mut depth = 0;
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'"' => {
                i += 1;
                while i < bytes.len() && bytes[i] != b'"' {
                    i += 1 + (bytes[i] == b'\\') as usize;
                }
            }
            b'(' => depth += 1,
            b')' => {
                depth -= 1;
                if depth == 0 {
                    return i + 1 == bytes.len();
                }
            }
            _ => {}
        }
        i += 1;
    }
    false
}
