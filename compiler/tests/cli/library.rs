//! `--lib`: modules that the files named may use, of which nothing runs or is compiled by itself.

use super::{folder, tlc};
use std::path::PathBuf;

const SHARED: &str = r#"edition 2026;
module docs::common;

fn twice(x: f32) -> f32 { return x + x; }

/// Needs a value of `N`, which nobody gives: nothing asks for this kernel.
kernel other<N: int>(x: inout [R, N] f32)
dims   R in 0..=64
launch grid(R)
{ map i in [N] { x[block(0), i] = twice(x[block(0), i]); } }

test "of the library" for other { with R = 1, N = 4; }
"#;

const USER: &str = r#"edition 2026;
module docs::user;
use docs::common::{twice};

kernel doubled(x: in [R] f32, y: out [R] f32)
dims   R in 0..=64
launch grid(R)
{ y[block(0)] = twice(x[block(0)]); }

reference doubled_ref for doubled { map i in [R] { y[i] = 2.0 * x[i]; } }

test "doubles" for doubled {
    with R = 5;
    expect y against doubled_ref @abs(0);
}
"#;

fn files(name: &str) -> PathBuf {
    folder(name, &[("user.tl", USER), ("modules/common.tl", SHARED)])
}

#[test]
fn what_a_file_uses_is_found_and_nothing_else_of_it_runs() {
    let folder = files("library-used");
    let (good, said) = tlc(&folder, &["test", "user.tl", "--lib", "modules"]);
    assert!(good && said.contains("1 passed"), "{said}");
    assert!(!said.contains("of the library"), "{said}");
    let (good, said) = tlc(
        &folder,
        &[
            "build", "user.tl", "--lib", "modules", "--emit", "manifest", "-o", "-",
        ],
    );
    assert!(good && said.contains("docs::user::doubled"), "{said}");
    assert!(!said.contains("docs::common::other"), "{said}");
}

#[test]
fn a_file_that_is_named_too_is_no_library() {
    let folder = files("library-named");
    let (good, said) = tlc(
        &folder,
        &["check", "user.tl", "modules/common.tl", "--lib", "modules"],
    );
    assert!(!good && said.contains("TL0601"), "{said}");
}

#[test]
fn without_it_the_module_is_missed() {
    let folder = files("library-missed");
    let (good, said) = tlc(&folder, &["check", "user.tl"]);
    assert!(
        !good && said.contains("TL0103") && said.contains("--lib"),
        "{said}"
    );
    let (good, said) = tlc(&folder, &["check", "user.tl", "--lib", "nowhere"]);
    assert!(!good && said.contains("nowhere"), "{said}");
}
