//! Source files, byte spans and the line table; which files belong together.

use std::fmt;
use std::path::{Path, PathBuf};

/// What ends the name of a file of choices.
const CHOICES: &str = "tuned.tl";

/// The file of choices for a source's kernels, which `tlc bench --tune` writes: `gemm.tuned.tl` beside `gemm.tl`; itself, if it is one.
pub fn choices(source: &Path) -> PathBuf {
    match source.to_string_lossy().ends_with(&format!(".{CHOICES}")) {
        true => source.to_owned(),
        false => source.with_extension(CHOICES),
    }
}

/// These sources, and the files of choices beside them that are not among them.
pub fn with_choices(mut sources: Vec<PathBuf>) -> Vec<PathBuf> {
    for at in 0..sources.len() {
        let choices = choices(&sources[at]);
        if !sources.contains(&choices) && choices.exists() {
            sources.push(choices);
        }
    }
    sources
}

/// Index of a file in a [`SourceMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FileId(pub u32);

/// A half-open byte range `start..end` of one file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Span {
    pub file: FileId,
    pub start: u32,
    pub end: u32,
}

impl Span {
    pub fn new(file: FileId, start: usize, end: usize) -> Self {
        Span {
            file,
            start: start as u32,
            end: end as u32,
        }
    }

    /// The smallest span that holds both; they must be of one file.
    pub fn to(self, other: Span) -> Span {
        Span {
            file: self.file,
            start: self.start.min(other.start),
            end: self.end.max(other.end),
        }
    }

    pub fn range(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// One source text with the offsets at which its lines start.
#[derive(Debug)]
pub struct SourceFile {
    /// As the user named it; used in messages only, never in hashes.
    pub name: String,
    pub text: String,
    /// Of a folder of `--lib`: there for those that use it.
    pub is_library: bool,
    line_starts: Vec<u32>,
}

impl SourceFile {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(i, _)| i as u32 + 1))
            .collect();
        SourceFile {
            name: name.into(),
            text,
            is_library: false,
            line_starts,
        }
    }

    /// Line and column, both from 1; the column counts characters.
    pub fn line_col(&self, offset: u32) -> (usize, usize) {
        let line = self.line_starts.partition_point(|&s| s <= offset) - 1;
        let start = self.line_starts[line] as usize;
        let end = (offset as usize).min(self.text.len());
        (
            line + 1,
            self.text
                .get(start..end)
                .map_or(1, |t| t.chars().count() + 1),
        )
    }
}

/// All files of one run of the compiler, in the order they were added.
#[derive(Debug, Default)]
pub struct SourceMap {
    files: Vec<SourceFile>,
}

impl SourceMap {
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> FileId {
        self.files.push(SourceFile::new(name, text));
        FileId(self.files.len() as u32 - 1)
    }

    /// Adds a file that is there for those that use it.
    pub fn add_library(&mut self, name: impl Into<String>, text: impl Into<String>) -> FileId {
        let id = self.add(name, text);
        self.files[id.0 as usize].is_library = true;
        id
    }

    pub fn file(&self, id: FileId) -> &SourceFile {
        &self.files[id.0 as usize]
    }

    pub fn files(&self) -> impl Iterator<Item = (FileId, &SourceFile)> {
        self.files
            .iter()
            .enumerate()
            .map(|(i, f)| (FileId(i as u32), f))
    }

    pub fn text(&self, span: Span) -> &str {
        self.file(span.file).text.get(span.range()).unwrap_or("")
    }
}
