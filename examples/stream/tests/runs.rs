//! The example streams a quantised model's answer, and says what it needs.

use std::path::Path;
use std::process::{Command, Output};

fn stream(arguments: &[&str]) -> Output {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/quant/q2_h_mtp");
    Command::new(env!("CARGO_BIN_EXE_stream"))
        .arg(model)
        .args(arguments)
        .output()
        .expect("the example was built")
}

#[test]
fn streams_ids_where_there_is_no_tokenizer() {
    let ids = |arguments: &[&str]| -> Vec<u32> {
        let out = stream(arguments);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        let text = String::from_utf8(out.stdout).expect("text");
        text.split_whitespace()
            .map(|id| id.parse().expect("an id"))
            .collect()
    };
    let long = ids(&["11,3,29,7", "12"]);
    assert!(!long.is_empty() && long.len() <= 12, "{long:?}");
    assert!(long.iter().all(|&id| id < 192));
    assert_eq!(ids(&["11, 3, 29, 7", "1"]), long[..1]);
}

#[test]
fn refuses_text_without_a_tokenizer() {
    let out = stream(&["once upon a time"]);
    assert!(!out.status.success());
    let message = String::from_utf8_lossy(&out.stderr);
    assert!(message.contains("no tokenizer.json"), "{message}");
}
