//! `tlc bench --tune`, as a user runs it: what it writes beside the source, and what a bench runs then.

use super::{folder, tlc};
use std::path::Path;

/// `WASTE` costs time and no bits, `WIDTH` changes the order of sums and so bits; `MOST` splits the batches; benches fill tensors of f32.
const SUMS: &str = r#"edition 2026;
module docs::sums;

kernel sums<T: dtype = f32, WASTE: int = 400, WIDTH: int = 16, MOST: int = 4096>(
    x: in  [R, C] T,
    y: out [R] f32,
)
dims    R in 0..=MOST, C in 0..=65536
where   WASTE != 3
launch  grid(R)
ensures det(bitwise), batch_invariant(R)
tune(C) { WASTE in {1, 3, 400}; WIDTH in {2, 16}; }
{
    reg lanes: [WIDTH] f32;
    for again in 0..WASTE {
        map i in [WIDTH] { lanes[i] = 0.0; }
        for c in 0..cdiv(C, WIDTH) {
            reg part: [WIDTH] T;
            copy part <- x[block(0), c * WIDTH :+ WIDTH] @oob(zero);
            map i in [WIDTH] { lanes[i] += f32(part[i]) + f32(again) * 0.0; }
        }
    }
    y[block(0)] = sum(lanes);
}

instances sums { (T = bf16), (MOST = 1), (MOST = 4096) }

bench "one" for sums { with R = 1, C = 4096; }
bench "some" for sums { with R = 8, C = 4096; }
bench "short" for sums { with R = 8, C = 1024; }
"#;

/// The instances of the file of choices, without comments.
fn chosen(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("sums.tuned.tl")).expect("choices were written");
    let lines = text
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('('));
    lines
        .map(|line| line.trim_end_matches(',').to_owned())
        .collect()
}

#[test]
fn the_fastest_of_the_same_bits_is_written_for_every_batch() {
    let folder = folder("tune-same-bits", &[("sums.tl", SUMS)]);
    let (good, said) = tlc(
        &folder,
        &["bench", "--tune", "--seconds", "0.02", "sums.tl"],
    );
    assert!(good, "{said}");
    assert_eq!(
        chosen(&folder),
        [
            "(C = 4096, T = f32, WASTE = 1, WIDTH = 16, MOST = 1)",
            "(C = 4096, T = f32, WASTE = 1, WIDTH = 16, MOST = 4096)",
            "(C = 1024, T = f32, WASTE = 1, WIDTH = 16, MOST = 1)",
            "(C = 1024, T = f32, WASTE = 1, WIDTH = 16, MOST = 4096)",
        ],
        "{said}"
    );
    // `where` rules WASTE = 3 out, and other orders of a sum have other bits.
    assert!(!said.contains("WASTE = 3"), "{said}");
    assert!(said.contains("other bits"), "{said}");
    // It is laid out, checks with its source, and is what a build and a bench of the source take.
    let checks = [["fmt", "--check", "."], ["check", "-v", "sums.tl"]];
    for arguments in checks {
        let (good, said) = tlc(&folder, &arguments);
        assert!(good, "{arguments:?}: {said}");
    }
    let (good, said) = tlc(
        &folder,
        &["build", "sums.tl", "--emit", "manifest", "-o", "-"],
    );
    assert!(good, "{said}");
    assert!(said.contains("1024"), "{said}");
}

#[test]
fn tuning_one_bench_leaves_the_choices_for_other_dims() {
    let folder = folder("tune-again", &[("sums.tl", SUMS)]);
    let other = "edition 2026;\nmodule docs::sums;\n\ninstances sums {\n    // by hand\n    (C = 64, WASTE = 1, MOST = 4096),\n}\n";
    std::fs::write(folder.join("sums.tuned.tl"), other).expect("a new folder can be written");
    let (good, said) = tlc(
        &folder,
        &[
            "bench",
            "--tune",
            "--seconds",
            "0.02",
            "--filter",
            "short",
            "sums.tl",
        ],
    );
    assert!(good, "{said}");
    assert_eq!(
        chosen(&folder),
        [
            "(C = 64, WASTE = 1, MOST = 4096)",
            "(C = 1024, T = f32, WASTE = 1, WIDTH = 16, MOST = 1)",
            "(C = 1024, T = f32, WASTE = 1, WIDTH = 16, MOST = 4096)",
        ],
        "{said}"
    );
    let text = std::fs::read_to_string(folder.join("sums.tuned.tl")).expect("choices were written");
    assert!(text.contains("// by hand"), "{text}");
}

#[test]
fn a_file_without_anything_to_tune_says_so() {
    let folder = folder("tune-nothing", &[("sums.tl", SUMS)]);
    let (good, said) = tlc(
        &folder,
        &["bench", "--tune", "--filter", "no such bench", "sums.tl"],
    );
    assert!(!good, "{said}");
    assert!(said.contains("nothing to tune"), "{said}");
    assert!(!folder.join("sums.tuned.tl").exists());
}
