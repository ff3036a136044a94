//! The example runs and prints what it says.

use std::process::Command;

#[test]
fn prints_the_rows_and_the_refusal() {
    let out = Command::new(env!("CARGO_BIN_EXE_embed"))
        .output()
        .expect("the example was built");
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&out.stdout),
        "[0.0900, 0.2447, 0.6652]\n\
         [0.3333, 0.3333, 0.3333]\n\
         kernel `embed::softmax`: axis 1 of `y` has 2 elements and needs 3 = N, with N = 3 (axis 1 of `x`) \
         (given x: f32[2, 3], y: f32[2, 2])\n"
    );
}
