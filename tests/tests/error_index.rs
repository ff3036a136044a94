//! The error index, `docs/errors.md`: every code of the catalogue stands there, none else, and each example causes its code.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tessera_tests::program::diagnose;

/// What an example without an item of its own stands in.
const HEAD: &str = "kernel k<N: int = 4>(x: in [M, N] f32, y: out [M, N] f32, scale: f32)\ndims M in 0..=64\nlaunch grid(M)\n{\n";

const ITEM_WORDS: [&str; 11] = [
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
    "// file",
];

/// Input that nobody wants in a document, and faults of the compiler.
const WITHOUT_EXAMPLE: [&str; 6] = ["TL0006", "TL0007", "TL0008", "TL0882", "TL0991", "TL0999"];

/// Codes whose stage `diagnose` does not run.
fn is_found_later(code: &str) -> bool {
    ["TL085", "TL086", "TL088", "TL09", "TL10"]
        .iter()
        .any(|later| code.starts_with(later))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Code to example, as the index has them.
fn index() -> BTreeMap<String, Option<String>> {
    let text = std::fs::read_to_string(root().join("docs/errors.md")).expect("the index is there");
    let mut index = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let code = section[..6].to_owned();
        let example = section
            .split_once("```tl\n")
            .and_then(|(_, rest)| rest.split_once("```"))
            .map(|(example, _)| example.to_owned());
        assert!(
            index.insert(code.clone(), example).is_none(),
            "{code} stands twice in the index"
        );
    }
    index
}

/// The codes that stand in the sources of the catalogue.
fn catalogue() -> Vec<String> {
    let mut codes = vec![];
    let mut folders = vec![root().join("compiler/src/diag/catalogue")];
    let mut files = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("the catalogue is there") {
            let path = entry.expect("a listed file").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a source file");
        for (i, _) in text.match_indices("\"TL") {
            let code = &text[i + 1..i + 7];
            assert!(
                code[2..].bytes().all(|b| b.is_ascii_digit()) && &text[i + 7..i + 8] == "\"",
                "{}: `{code}` is not a code",
                path.display()
            );
            codes.push(code.to_owned());
        }
    }
    codes.sort();
    codes.dedup();
    codes
}

#[test]
fn the_index_holds_the_codes_of_the_catalogue_and_none_else() {
    let indexed: Vec<String> = index().into_keys().collect();
    assert_eq!(
        indexed,
        catalogue(),
        "left: docs/errors.md, right: compiler/src/diag/catalogue"
    );
}

#[test]
fn each_example_causes_its_code() {
    let mut wrong = vec![];
    for (code, example) in index() {
        let Some(example) = example else {
            if !WITHOUT_EXAMPLE.contains(&code.as_str()) {
                wrong.push(format!("{code} has no example"));
            }
            continue;
        };
        if is_found_later(&code) {
            continue;
        }
        let text = if ITEM_WORDS.iter().any(|w| example.starts_with(w)) {
            example
        } else {
            format!("{HEAD}{example}}}\n")
        };
        let (_, diagnostics) = diagnose("example.tl", &text);
        let said: Vec<&str> = diagnostics.iter().map(|d| d.code).collect();
        if !said.contains(&code.as_str()) {
            wrong.push(format!("{code}: its example causes {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_problem_comes_with_a_remedy() {
    for (code, example) in index() {
        let Some(example) = example else { continue };
        let text = if ITEM_WORDS.iter().any(|w| example.starts_with(w)) {
            example
        } else {
            format!("{HEAD}{example}}}\n")
        };
        for d in diagnose("example.tl", &text).1 {
            assert!(
                !d.helps.is_empty() || !d.notes.is_empty(),
                "{code}: nothing tells what to do about `{}`",
                d.message
            );
        }
    }
}
