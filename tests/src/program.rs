//! `.tl` programs as test data: finding them, what the compiler says about one, trees without places.

use std::path::{Path, PathBuf};

use tessera_compiler::diag::{Diagnostic, Sink};
use tessera_compiler::driver;
use tessera_compiler::source::SourceMap;
use tessera_compiler::syntax::{self, ast};

/// All that the front half says about a program of one file, in source order.
pub fn diagnose(name: &str, text: &str) -> (SourceMap, Vec<Diagnostic>) {
    let mut map = SourceMap::default();
    let id = map.add(name, text);
    let mut sink = Sink::default();
    let file = syntax::parse(&mut sink, id, text);
    // After a slip of syntax the meaning is a guess: what is said about it would be noise here.
    if !sink.has_errors() {
        driver::front(&[file], &mut sink);
    }
    (map, sink.finish())
}

/// The `.tl` files under a directory, in the order of their names.
pub fn tl_files(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap_or_else(|e| panic!("{}: {e}", directory.display()))
        .map(|entry| {
            entry
                .expect("a directory that is listed can be read")
                .path()
        })
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            tl_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "tl") {
            found.push(path);
        }
    }
}

/// Every `.tl` file of the repository with its text.
pub fn all_programs() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![];
    for folder in ["kernels-src", "tests", "examples"] {
        if root.join(folder).is_dir() {
            tl_files(&root.join(folder), &mut files);
        }
    }
    files
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path, text)
        })
        .collect()
}

/// The tree as text without spans and comments, so that trees from different layouts compare.
pub fn shape(tree: &ast::File) -> String {
    let mut tree = tree.clone();
    tree.comments.clear();
    let text = format!("{tree:?}");
    let digits = |c: char| c.is_ascii_digit();
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(i) = rest.find(digits) {
        let (before, number) = rest.split_at(i);
        out.push_str(before);
        let after = number.trim_start_matches(digits);
        // `12..34` is how spans print.
        match after.strip_prefix("..") {
            Some(end) if end.starts_with(digits) => {
                out.push('_');
                rest = end.trim_start_matches(digits);
            }
            _ => {
                out.push_str(&number[..number.len() - after.len()]);
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}
