//! The lines of the output: wrapping, blank lines, comments behind code.

use super::WIDTH;
use super::exprs::Parts;

#[derive(Default)]
pub struct Lines {
    lines: Vec<Line>,
    /// A blank line goes before the next.
    blank: bool,
}

struct Line {
    indent: usize,
    text: String,
    /// Comments behind the code.
    trailing: String,
    blank_before: bool,
}

impl Lines {
    pub fn want_blank(&mut self) {
        self.blank = !self.lines.is_empty();
    }

    pub fn no_blank(&mut self) {
        self.blank = false;
    }

    fn push(&mut self, indent: usize, text: String) {
        self.lines.push(Line {
            indent,
            text,
            trailing: String::new(),
            blank_before: std::mem::take(&mut self.blank),
        });
    }

    /// A comment on lines of its own; further lines of it stay as they are.
    pub fn push_comment(&mut self, indent: usize, text: &str) {
        self.push(indent, text.to_string());
    }

    /// A comment behind the last line.
    pub fn trail(&mut self, text: &str) {
        let Some(line) = self.lines.last_mut() else {
            return self.push(0, text.to_string());
        };
        if !line.trailing.is_empty() {
            line.trailing.push(' ');
        }
        line.trailing.push_str(text);
    }

    /// Breaks where the line would get too long: at the outermost place, of those the last.
    pub fn push_wrapped(&mut self, indent: usize, parts: Parts) {
        let (pieces, hang) = (parts.pieces, parts.hang);
        let mut at = indent;
        let mut start = 0;
        loop {
            let mut width = at;
            let mut fits = start;
            while fits < pieces.len() {
                let space = fits > start && pieces[fits].space;
                width += space as usize + pieces[fits].text.chars().count();
                if width > WIDTH && fits > start {
                    break;
                }
                fits += 1;
            }
            let end = if fits == pieces.len() {
                fits
            } else {
                (start + 1..=fits)
                    .min_by_key(|&i| (pieces[i].depth, usize::MAX - i))
                    .unwrap_or(fits)
            };
            let mut text = String::new();
            for (i, piece) in pieces[start..end].iter().enumerate() {
                if i > 0 && piece.space {
                    text.push(' ');
                }
                text.push_str(&piece.text);
            }
            self.push(at, text.trim_end().to_string());
            if end == pieces.len() {
                return;
            }
            at = indent + hang;
            start = end;
        }
    }

    /// The text; comments behind neighbouring lines stand in one column.
    pub fn finish(self) -> String {
        let mut out = String::new();
        let mut i = 0;
        while i < self.lines.len() {
            let run = self.run_from(i);
            let column = self.column(i, run);
            for line in &self.lines[i..run] {
                if line.blank_before {
                    out.push('\n');
                }
                let mut text = format!("{:indent$}{}", "", line.text, indent = line.indent);
                if !line.trailing.is_empty() {
                    let width = text.chars().count();
                    let pad = column.saturating_sub(width).max(1);
                    text.extend(std::iter::repeat_n(' ', pad));
                    text.push_str(&line.trailing);
                }
                out.push_str(text.trim_end());
                out.push('\n');
            }
            i = run;
        }
        out
    }

    /// The end of the run of like lines that starts at `i`.
    fn run_from(&self, i: usize) -> usize {
        let joins = |line: &Line| !line.trailing.is_empty() && !line.trailing.contains('\n');
        if !joins(&self.lines[i]) {
            return i + 1;
        }
        let mut end = i + 1;
        while end < self.lines.len()
            && joins(&self.lines[end])
            && !self.lines[end].blank_before
            && self.lines[end].indent == self.lines[i].indent
        {
            end += 1;
        }
        end
    }

    /// The column of a run's comments; 0 where lining up would make a line too long.
    fn column(&self, start: usize, end: usize) -> usize {
        let width = |l: &Line| l.indent + l.text.chars().count();
        let run = &self.lines[start..end];
        let column = run.iter().map(width).max().unwrap_or(0) + 1;
        let longest = run
            .iter()
            .map(|l| l.trailing.chars().count())
            .max()
            .unwrap_or(0);
        if column + longest > WIDTH { 0 } else { column }
    }
}
