//! `v4` as a program: what its commands print and write, and what they refuse.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tessera::weights::{Dtype, SafetensorsFile, TensorSpec, Writer};

const LOGITS_BOUND: f64 = 1e-4;
const HIDDEN_BOUND: f64 = 5e-4;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("tessera-v4-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(case)
}

fn v4<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_v4"))
        .args(arguments)
        .output()
        .expect("v4 starts")
}

/// What a run that must succeed printed.
fn printed<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> String {
    let output = v4(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// The message of a run that must be refused, with exit code 2.
fn refused<S: AsRef<std::ffi::OsStr>>(arguments: &[S]) -> String {
    let output = v4(arguments);
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).expect("text")
}

fn write_ids(path: &Path, name: &str, shape: &[usize], ids: &[i64]) {
    let spec = TensorSpec {
        name: name.into(),
        dtype: Dtype::I64,
        shape: shape.to_vec(),
    };
    let mut writer = Writer::create(path, vec![spec]).unwrap();
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    writer.tensor(name, &bytes).unwrap();
    writer.finish().unwrap();
}

fn largest_error(file: &SafetensorsFile, name: &str, expected: &[f64]) -> f64 {
    let found = file.tensor(name).unwrap().to_f64().unwrap();
    assert_eq!(found.len(), expected.len(), "{name}");
    let errors = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    errors.fold(
        0.0,
        |most: f64, error| if error <= most { most } else { error },
    )
}

#[test]
fn forward_writes_what_the_golden_case_holds() {
    let folder = Folder::new("forward");
    let case = golden("g1_mixed_tiny_mtp");
    let io = SafetensorsFile::open(&case.join("io.safetensors")).unwrap();
    let ids = io.tensor("len8.input_ids").unwrap();
    let [ids_file, dump, traced] =
        ["ids.safetensors", "dump.safetensors", "trace.safetensors"].map(|name| folder.at(name));
    write_ids(&ids_file, "input_ids", ids.shape, &ids.to_i64().unwrap());
    let (model, ids_text) = (case.to_str().unwrap(), ids_file.to_str().unwrap());
    let forward = |dump: &Path, more: &[&str]| {
        let start = [
            "forward",
            "--model",
            model,
            "--ids",
            ids_text,
            "--dump",
            dump.to_str().unwrap(),
        ];
        printed(&[&start, more].concat())
    };
    assert!(forward(&dump, &[]).starts_with("6 tensors in "));
    forward(&traced, &["--trace"]);

    let (dump, traced) = (
        SafetensorsFile::open(&dump).unwrap(),
        SafetensorsFile::open(&traced).unwrap(),
    );
    let names: Vec<String> = dump.tensors().map(|t| t.name.to_string()).collect();
    assert_eq!(
        names,
        [
            "head_collapsed",
            "hidden.0",
            "hidden.1",
            "hidden.2",
            "hidden.3",
            "logits"
        ]
    );
    for name in &names {
        let expected = io.tensor(&format!("len8.{name}")).unwrap();
        assert_eq!(dump.tensor(name).unwrap().shape, expected.shape, "{name}");
        let bound = if name == "logits" {
            LOGITS_BOUND
        } else {
            HIDDEN_BOUND
        };
        let error = largest_error(&dump, name, &expected.to_f64().unwrap());
        assert!(error <= bound, "{name}: {error:.1e}");
        let traced = traced.tensor(&name.replace("head_c", "head.c")).unwrap();
        assert_eq!(dump.tensor(name).unwrap().bytes, traced.bytes, "{name}");
    }
    assert!(traced.tensors().count() > 80);
    assert_eq!(traced.tensor("L1.attn.q").unwrap().shape[..2], [2, 8]);
    // Entries are by sequence, not by token.
    assert_eq!(traced.tensor("L1.comp.kv").unwrap().shape[..2], [2, 8 / 4]);
}

#[test]
fn forward_takes_ids_on_the_command_line_and_refuses_what_is_none() {
    let folder = Folder::new("ids");
    let case = golden("g3_window_only");
    let (model, dump) = (case.to_str().unwrap(), folder.at("dump.safetensors"));
    let dump = dump.to_str().unwrap();
    let file = |name: &str, tensor: &str, shape: &[usize], ids: &[i64]| {
        let path = folder.at(name);
        write_ids(&path, tensor, shape, ids);
        path.to_str().unwrap().to_string()
    };
    let with =
        |ids: &str| ["forward", "--model", model, "--ids", ids, "--dump", dump].map(String::from);
    let bytes = |ids: &str| {
        printed(&with(ids));
        std::fs::read(dump).unwrap()
    };
    let in_file = file("right.safetensors", "input_ids", &[1, 3], &[5, 0, 127]);
    assert_eq!(bytes("5,0 127"), bytes(&in_file));

    let cases = [
        ("5,six".to_string(), "`six` is no token id"),
        ("5,128".into(), "token 128 is not in the vocabulary of 128"),
        (file("name.safetensors", "ids", &[1, 1], &[5]), "input_ids"),
        (
            file("shape.safetensors", "input_ids", &[2], &[5, 6]),
            "it must be [B, S]",
        ),
        (
            file("empty.safetensors", "input_ids", &[1, 0], &[]),
            "`input_ids` is empty",
        ),
        (
            file("negative.safetensors", "input_ids", &[1, 1], &[-1]),
            "-1 is no token id",
        ),
        (
            folder.at("none.safetensors").to_str().unwrap().into(),
            "none.safetensors",
        ),
    ];
    for (ids, expected) in cases {
        let message = refused(&with(&ids));
        assert!(message.contains(expected), "{expected} in {message}");
    }
}

/// A copy of a golden case with some keys of its configuration replaced.
fn changed(folder: &Folder, case: &str, changes: Value) -> String {
    let from = golden(case);
    std::fs::copy(
        from.join("model.safetensors"),
        folder.at("model.safetensors"),
    )
    .unwrap();
    let text = std::fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(folder.at("config.json"), config.to_string()).unwrap();
    folder.0.to_str().unwrap().into()
}

fn generate(model: &str, more: &[&str]) -> Value {
    let start = ["--json", "generate", "--model", model, "--tokens", "24"];
    serde_json::from_str(&printed(&[&start, more].concat())).unwrap()
}

#[test]
fn generation_ends_after_an_end_of_sequence_token() {
    let case = golden("g1_mixed_tiny_mtp");
    let io = SafetensorsFile::open(&case.join("io.safetensors")).unwrap();
    let first = |name: &str| {
        let tensor = io.tensor(name).unwrap();
        tensor.to_i64().unwrap()[..tensor.shape[1]].to_vec()
    };
    let (prompt, answer) = (first("gen.prompt_ids"), first("gen.token_ids"));
    let prompt: Vec<String> = prompt.iter().map(i64::to_string).collect();
    let prompt = prompt.join(",");
    // A token that comes first in the middle of the answer, and one that never comes.
    let end = (5..answer.len())
        .find(|&i| !answer[..i].contains(&answer[i]))
        .expect("one");
    let never = (0..128).find(|id| !answer.contains(id)).expect("one");

    let folder = Folder::new("eos");
    let ids = ["--ids", &prompt];
    for (eos, length) in [
        (json!(answer[end]), end + 1),
        (json!([never, answer[end]]), end + 1),
        (json!(never), answer.len()),
        (Value::Null, answer.len()),
    ] {
        let model = changed(&folder, "g1_mixed_tiny_mtp", json!({ "eos_token_id": eos }));
        assert_eq!(
            generate(&model, &ids)["tokens"],
            json!(answer[..length]),
            "{eos}"
        );
        let on = generate(&model, &[ids[0], ids[1], "--ignore-eos"]);
        assert_eq!(on["tokens"], json!(answer), "{eos}");
    }
}

#[test]
fn a_tokenizer_makes_ids_of_text_and_text_of_ids() {
    let folder = Folder::new("tokenizer");
    let model = changed(
        &folder,
        "g1_mixed_tiny_mtp",
        json!({ "eos_token_id": null }),
    );
    let message = refused(&["generate", "--model", &model, "--prompt", "w1"]);
    assert!(
        message.contains("has no tokenizer.json; give the prompt's token ids with --ids"),
        "{message}"
    );

    let vocab: serde_json::Map<String, Value> =
        (0..128).map(|id| (format!("w{id}"), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    std::fs::write(folder.at("tokenizer.json"), tokenizer.to_string()).unwrap();
    let of_text = generate(&model, &["--prompt", "w11 w3  w29 unheard-of w7"]);
    let of_ids = generate(&model, &["--ids", "11,3,29,0,7"]);
    assert_eq!(of_text["tokens"], of_ids["tokens"]);
    let ids = of_ids["tokens"].as_array().unwrap().iter();
    let words: Vec<String> = ids.map(|id| format!("w{id}")).collect();
    assert_eq!(of_text["text"], json!(words.join(" ")));
    assert_eq!(of_text["text"], of_ids["text"]);

    let shown = printed(&[
        "generate",
        "--model",
        &model,
        "--ids",
        "11,3,29,0,7",
        "--tokens",
        "24",
    ]);
    assert_eq!(shown.trim_end(), words.join(" "));

    let message = refused(&["generate", "--model", &model, "--prompt", " "]);
    assert!(message.contains("the prompt has no tokens"), "{message}");
    let message = refused(&["generate", "--model", &model, "--chat", "w1"]);
    assert!(
        message.contains("has no token `<｜begin▁of▁sentence｜>`, which V4's chat format needs"),
        "{message}"
    );
    std::fs::write(folder.at("tokenizer.json"), "{}").unwrap();
    let message = refused(&["generate", "--model", &model, "--prompt", "w1"]);
    assert!(message.contains("tokenizer.json: "), "{message}");
}

#[test]
fn a_conversation_is_asked_in_the_models_own_format() {
    let folder = Folder::new("chat");
    let model = changed(
        &folder,
        "g1_mixed_tiny_mtp",
        json!({ "eos_token_id": null }),
    );
    let mut vocab: serde_json::Map<String, Value> =
        (0..120).map(|id| (format!("w{id}"), json!(id))).collect();
    let marks = [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<think>",
        "</think>",
    ];
    let mut added = Vec::new();
    for (id, mark) in (120..).zip(marks) {
        vocab.insert(mark.into(), json!(id));
        added.push(json!({
            "id": id, "content": mark, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
        }));
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    std::fs::write(folder.at("tokenizer.json"), tokenizer.to_string()).unwrap();
    let chat = generate(&model, &["--chat", "w11 w3", "--thinking", "on"]);
    let ids = generate(&model, &["--ids", "120,122,11,3,123,124"]);
    assert_eq!(chat["tokens"], ids["tokens"]);
    // A random model writes no answer of the format, or an unfinished one.
    assert!(chat["answer"]["finished"] == json!(false) || chat["no_answer"].is_string());
    assert!(ids["answer"].is_null());

    let turns = json!([
        { "role": "user", "content": "w1" },
        { "role": "assistant", "content": "w2", "reasoning_content": "w3" },
        { "role": "user", "content": "w4" },
    ]);
    let path = folder.at("turns.json");
    std::fs::write(&path, turns.to_string()).unwrap();
    let chat = generate(&model, &["--messages", path.to_str().unwrap()]);
    let ids = generate(&model, &["--ids", "120,122,1,123,125,2,121,122,4,123,125"]);
    assert_eq!(chat["tokens"], ids["tokens"]);
    std::fs::write(&path, "{}").unwrap();
    let message = refused(&[
        "generate",
        "--model",
        &model,
        "--messages",
        path.to_str().unwrap(),
    ]);
    assert!(
        message.contains("the messages: missing field `messages`"),
        "{message}"
    );
}

/// The same draws with one seed, others with another, whatever the chunks of the prompt.
#[test]
fn a_seed_settles_what_is_drawn() {
    let case = golden("g3_window_only");
    let model = case.to_str().unwrap();
    let draw = |seed: &str, chunk: &str| {
        let how = ["--temperature", "1.5", "--top-p", "0.9", "--ignore-eos"];
        let these = ["--ids", "3,1,4,1,5,9,2,6", "--seed", seed, "--chunk", chunk];
        generate(model, &[&how[..], &these].concat())["tokens"].clone()
    };
    assert_eq!(draw("1", "512"), draw("1", "3"));
    assert_ne!(draw("1", "512"), draw("2", "512"));
}

#[test]
fn verify_finds_weights_that_are_not_the_golden_ones() {
    let folder = Folder::new("verify");
    let model = changed(&folder, "g3_window_only", json!({}));
    for file in ["io.safetensors", "trace.safetensors"] {
        std::fs::copy(golden("g3_window_only").join(file), folder.at(file)).unwrap();
    }
    assert!(printed(&["verify", &model]).contains("all within bounds"));

    let weights = folder.at("model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let file = SafetensorsFile::open(&weights).unwrap();
    let sink = file
        .tensor("layers.1.attn.attn_sink")
        .unwrap()
        .bytes
        .to_vec();
    drop(file);
    let at = bytes
        .windows(sink.len())
        .position(|part| part == sink)
        .expect("its bytes");
    bytes[at..at + 4].copy_from_slice(&3.0f32.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    let output = v4(&["verify", &model]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("attn.core") && text.contains("WRONG"),
        "{text}"
    );
    assert!(text.contains("comparisons out of bounds"), "{text}");
}

#[test]
fn plan_prints_the_published_figures_and_refuses_other_names() {
    let text = printed(&["plan", "--config", "pro", "--context", "1M"]);
    for figure in ["1573.00", "48.85", "4.918", "9.625", "315.5", "0.265"] {
        assert!(text.contains(figure), "{figure} in\n{text}");
    }
    let json: Value =
        serde_json::from_str(&printed(&["--json", "plan", "--context", "8K,128K"])).unwrap();
    assert_eq!(json["contexts"][1]["context"], json!(131_072));
    let message = refused(&["plan", "--config", "/nonexistent"]);
    assert!(message.contains("/nonexistent"), "{message}");
}

#[test]
fn the_cpu_is_not_compared_with_itself() {
    let error = refused(&["compare", "--layers", "1"]);
    assert!(error.contains("`--device cuda`"), "{error}");
}

#[test]
fn bench_ends_with_a_table_of_what_ran() {
    let case = golden("g1_mixed_tiny_mtp");
    let model = case.to_str().unwrap();
    let sizes = [
        "--prompt",
        "20",
        "--decode",
        "3",
        "--batch",
        "2",
        "--repeats",
        "1",
    ];
    let text = printed(&[&["bench", "--model", model, "--kernels"], &sizes[..]].concat());
    let starts = [
        "model    ",
        "device   CPU, ",
        "kernels  ",
        "prefill  20 tokens x 2: ",
        "decode   3 tokens x 2: ",
    ];
    let lines: Vec<&str> = text.lines().collect();
    for (line, start) in lines[lines.len() - 5..].iter().zip(starts) {
        assert!(line.starts_with(start), "{start} in\n{text}");
    }
    for kernel in ["expert_up", "index_scores", "attention"] {
        assert!(
            lines.iter().any(|line| line.starts_with(kernel)),
            "{kernel} in\n{text}"
        );
    }
}

/// Alone, in batches, cut, launched and filled up as steps that a GPU replays: one request has one set of bits. The controls are trials
/// too: they are wrong if the comparison is blind.
#[test]
fn a_request_has_the_same_bits_beside_any_neighbours() {
    for case in ["g1_mixed_tiny_mtp", "g4_csa_select"] {
        let case = golden(case);
        let case = case.to_str().unwrap();
        let text = printed(&[
            "determinism",
            "--model",
            case,
            "--batches",
            "2,7",
            "--repeats",
            "1",
            "--json",
        ]);
        let found: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(found["fine"], json!(true), "{text}");
        let checks = found["checks"].as_array().unwrap();
        let named = |part: &str| {
            let names = checks.iter().filter_map(|check| check["name"].as_str());
            names.filter(|name| name.contains(part)).count()
        };
        assert_eq!(
            (named("alone"), named("one of"), named("control")),
            (2, 4, 2)
        );
        assert_eq!(named("replayed"), named("launched"));
    }
}

#[cfg(feature = "selftest")]
#[test]
fn selftest_runs_the_kernels_own_tests_and_benches() {
    let text = printed(&[
        "selftest",
        "--filter",
        "dsv4::rotary::rope_table",
        "--seconds",
        "0.01",
        "--json",
    ]);
    let found: Value = serde_json::from_str(&text).unwrap();
    let tests = found["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 1, "{text}");
    assert_eq!(
        (&tests[0]["passed"], &tests[0]["cases"]),
        (&json!(true), &json!(3))
    );
    let benches = found["benches"].as_array().unwrap();
    assert_eq!(benches.len(), 1, "{text}");
    assert!(benches[0]["median_s"].as_f64().unwrap() > 0.0);
    assert_eq!(found["problems"], json!([]));
}
