//! Damaged `.tl` programs: diagnostics, never a panic, a hang or much memory.
//!
//! Each case takes a program of this repository, damages it in one to eight places, and gives it to the parser and the formatter. What
//! the formatter prints must parse to the same tree and stay as it is when formatted again; every diagnostic must point into the text and
//! render.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use tessera_compiler::diag::Sink;
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::source::SourceMap;
use tessera_compiler::syntax;
use tessera_tests::program::{all_programs, diagnose, shape};
use tessera_tests::random::{Random, cases};

/// Far above what the longest file takes, far below what a user would call a hang.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Pieces of text that start, end or break something.
const PIECES: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "<",
    ">",
    ";",
    ",",
    ":",
    ":+",
    "::",
    "<-",
    "->",
    "=",
    "==",
    "..",
    "..=",
    "?",
    "\"",
    "\\",
    "/*",
    "*/",
    "//",
    "///",
    "#",
    "@",
    "~",
    "-",
    "!",
    "%",
    "&",
    "|",
    "^",
    ".",
    "é",
    "\u{0}",
    "\r\n",
    "\n\n",
    "\t",
    "0x",
    "1e",
    "1e999",
    "99999999999999999999999999999999999999999",
    "4KB",
    "kernel ",
    "fn ",
    "test ",
    "reference ",
    "const ",
    "use ",
    "map ",
    "for ",
    "if ",
    "else ",
    "copy ",
    "reg ",
    "let ",
    "reduce ",
    "gather ",
    "where ",
    "dims ",
    "pipeline ",
];

fn damage(random: &mut Random, text: &str, others: &[String]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..random.between(1, 8) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.between(1, 40)).min(bytes.len());
        match random.below(10) {
            // Another byte.
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            3 => bytes.truncate(at),
            4 => {
                let piece = random.pick(PIECES).repeat(random.between(1, 3));
                bytes.splice(at..at, piece.into_bytes());
            }
            // Deep nesting.
            5 => {
                let piece = random.pick(&[
                    "(",
                    "[",
                    "{",
                    "-",
                    "!",
                    "? ",
                    "1 + ",
                    "x ? ",
                    "if x { ",
                    "(-",
                    "f(",
                    "a[",
                    "} else if x { ",
                ]);
                bytes.splice(at..at, piece.repeat(random.between(2, 2000)).into_bytes());
            }
            // A stretch of another program.
            6 => {
                let other = others[random.below(others.len())].as_bytes();
                let from = random.below(other.len() + 1);
                let to = (from + random.between(1, 400)).min(other.len());
                bytes.splice(at..at, other[from..to].to_vec());
            }
            // Two words change places.
            7 => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let mut words: Vec<&str> = text.split_inclusive(' ').collect();
                if words.len() > 1 {
                    let (a, b) = (random.below(words.len()), random.below(words.len()));
                    words.swap(a, b);
                    bytes = words.concat().into_bytes();
                }
            }
            // A line goes.
            8 => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
                if !lines.is_empty() {
                    lines.remove(random.below(lines.len()));
                    bytes = lines.concat().into_bytes();
                }
            }
            _ => {
                let piece = random.pick(PIECES);
                bytes.splice(at..end, piece.bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What must hold of any text.
fn examine(text: &str) {
    let (map, diagnostics) = diagnose("damaged.tl", text);
    for d in &diagnostics {
        for label in &d.labels {
            assert!(
                text.get(label.span.range()).is_some(),
                "{} points at {:?}, outside of the text or inside a character",
                d.code,
                label.span
            );
        }
    }
    // Rendering takes the whole source each time: a few are enough.
    for d in diagnostics.iter().take(3) {
        for format in [Format::Human { colour: false }, Format::Short, Format::Json] {
            assert!(render(d, &map, format).contains(d.code));
        }
    }
    let mut map = SourceMap::default();
    let id = map.add("damaged.tl", text);
    let mut sink = Sink::default();
    if let Some(once) = syntax::format(&mut sink, id, text) {
        let twice = syntax::format(&mut sink, id, &once);
        assert_eq!(
            twice.as_deref(),
            Some(once.as_str()),
            "a second formatting differs"
        );
        let tree = |text: &str| shape(&syntax::parse(&mut Sink::default(), id, text));
        assert_eq!(tree(text), tree(&once), "formatting changes the tree");
    }
}

#[test]
fn damaged_programs_are_diagnosed_or_read() {
    let programs: Vec<String> = all_programs().into_iter().map(|(_, text)| text).collect();
    assert!(!programs.is_empty(), "there are programs to damage");
    for case in 0..cases(2000) {
        let mut random = Random::new(0x7e55_e7a0 + case as u64);
        let text = &programs[random.below(programs.len())];
        let damaged = damage(&mut random, text, &programs);
        let start = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| examine(&damaged)));
        let took = start.elapsed();
        assert!(took < TIME_LIMIT, "case {case} took {took:?}:\n{damaged}");
        if outcome.is_err() {
            let path = std::env::temp_dir().join(format!("tessera-hostile-{case}.tl"));
            let _ = std::fs::write(&path, &damaged);
            panic!("case {case} failed; its program is {}", path.display());
        }
    }
}

/// Shapes that grow without end, each in a form that a parser could take recursively or repeatedly.
#[test]
fn endless_shapes_are_refused_or_read_in_time() {
    let body = |inner: &str| {
        format!("kernel k(x: in [M] f32)\ndims M in 0..=4\nlaunch grid(M)\n{{\n{inner}\n}}\n")
    };
    let n = 100_000;
    let shapes = [
        "(".repeat(n),
        body(&format!("let a = {}1{};", "(".repeat(n), ")".repeat(n))),
        body(&format!("let a = {}1{};", "[".repeat(n), "]".repeat(n))),
        body(&format!("let a = {}1;", "- ".repeat(n))),
        body(&format!("let a = {}1;", "!".repeat(n))),
        body(&format!("let a = 1{};", " + 1".repeat(n))),
        body(&format!(
            "let a = {}1{};",
            "1 ? ".repeat(n),
            " : 1".repeat(n)
        )),
        body(&format!("let a = {}1;", "1 ? 1 : ".repeat(n))),
        body(&format!("let a = x{};", "[0]".repeat(n))),
        body(&format!("let a = x{};", ".t()".repeat(n))),
        body(&format!("let a = x{};", "()".repeat(n))),
        body(&format!("let a = f({});", "1, ".repeat(n))),
        body(&format!("if x {{ }}{}", " else if x { }".repeat(n))),
        body(&"if x { ".repeat(n)),
        body(&"let a = 1;\n".repeat(n)),
        body(&"let a = ;\n".repeat(2000)),
        body(&";".repeat(20_000)),
        body(&"x ".repeat(n)),
        body(&"}".repeat(n)),
        "kernel ".repeat(n),
        "const A = 1; ".repeat(20_000),
        "/// doc\n".repeat(n),
        "// comment\n".repeat(n),
        "\"".repeat(n),
        "/*".repeat(n),
        "é".repeat(20_000),
        "#".repeat(n),
        format!("const A = {};", "9".repeat(n)),
        format!("const A = 0.{}e1;", "9".repeat(n)),
        format!("const {} = 1;", "a".repeat(n)),
        format!("const A = {};", vec!["a"; n].join("::")),
        format!("kernel k<{}>(x: in [M] f32) {{ }}", "N: int, ".repeat(n)),
        format!("kernel k({}) {{ }}", "x: in [M] f32, ".repeat(n)),
        format!("kernel k({}) {{ }}", "x ".repeat(n)),
        format!("kernel k(x: in [M] f32) {} {{ }}", "where ".repeat(n)),
        format!(
            "kernel k(x: in [M] f32) where {} {{ }}",
            "N > 1, ".repeat(n)
        ),
        " ".repeat(n),
        "\n".repeat(n),
        String::new(),
        "\u{feff}const A = 1;".to_owned(),
    ];
    for (i, text) in shapes.iter().enumerate() {
        let start = Instant::now();
        let mut sink = Sink::default();
        syntax::format(&mut sink, Default::default(), text);
        let took = start.elapsed();
        assert!(
            took < TIME_LIMIT,
            "shape {i} took {took:?}: {:?}…",
            text.chars().take(60).collect::<String>()
        );
    }
}

/// Constants that name each other in a long chain, the last one first in the order of names and of the text.
#[test]
fn a_long_chain_of_constants_is_computed_in_time() {
    let n = 30_000;
    let chain = (0..n).map(|i| format!("const C{i:06} = C{:06} + 1;\n", i + 1));
    let text = format!("{}const C{n:06} = 0;\n", chain.collect::<String>());
    let start = Instant::now();
    let (_, said) = diagnose("chain.tl", &text);
    assert!(said.is_empty(), "{said:?}");
    assert!(start.elapsed() < TIME_LIMIT, "{:?}", start.elapsed());
}

/// Three hundred lines in a few milliseconds, so that an editor can check at every key.
#[test]
fn a_long_file_parses_in_time() {
    let (path, text) = all_programs()
        .into_iter()
        .filter(|(path, _)| path.components().any(|c| c.as_os_str() == "kernels-src"))
        .max_by_key(|(_, text)| text.len())
        .expect("there are kernels");
    let best = (0..10)
        .map(|_| {
            let start = Instant::now();
            syntax::parse(&mut Sink::default(), Default::default(), &text);
            start.elapsed()
        })
        .min()
        .expect("ten runs");
    let per_line = best / text.lines().count() as u32;
    // About 17 µs a line on an idle machine; the rest is room for busy ones.
    assert!(
        per_line < Duration::from_micros(100),
        "{}: {best:?} for {} lines",
        path.display(),
        text.lines().count()
    );
}
