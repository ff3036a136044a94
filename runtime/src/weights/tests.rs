use std::path::{Path, PathBuf};

use super::*;
use crate::model::config::Config;

const CASES: [&str; 5] = [
    "g1_mixed_tiny_mtp",
    "g2_real_head_r128",
    "g3_window_only",
    "g4_csa_select",
    "g5_hca_moe6",
];

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(case)
}

/// An empty folder that goes away with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path =
            std::env::temp_dir().join(format!("tessera-weights-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file with the given header text, then so many bytes of data.
fn file(header: &str, data: usize) -> Result<SafetensorsFile, WeightsError> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 7);
    SafetensorsFile::from_bytes(Path::new("test.safetensors"), bytes)
}

fn refusal(header: &str, data: usize) -> String {
    file(header, data).unwrap_err().to_string()
}

#[test]
fn golden_checkpoints_fit_their_configurations() {
    for case in CASES {
        let config = Config::read(&golden(case)).unwrap();
        let draft = check(&config, &Checkpoint::open(&golden(case)).unwrap()).unwrap();
        assert_eq!(draft == Draft::Mtp, case == "g1_mixed_tiny_mtp");
    }
}

#[test]
fn released_models_have_the_published_number_of_tensors() {
    for (config, count) in [(Config::flash(), 69_187), (Config::pro(), 145_116)] {
        let tensors = expected_tensors(&config);
        assert_eq!(tensors.len(), count);
        let shape = |name: &str| {
            tensors
                .iter()
                .find(|tensor| tensor.name == name)
                .unwrap()
                .shape
                .clone()
        };
        assert_eq!(shape("layers.3.attn.compressor.ape"), [128, 512]);
        assert_eq!(shape("layers.4.attn.indexer.compressor.ape"), [4, 256]);
        assert_eq!(shape("layers.0.ffn.gate.tid2eid"), [129_280, 6]);
        let (inter, hidden) = (config.moe_intermediate_size, config.hidden_size);
        assert_eq!(
            shape("layers.5.ffn.experts.7.w2.weight"),
            [hidden, inter / 2]
        );
        assert_eq!(
            shape("layers.5.ffn.experts.7.w2.scale"),
            [hidden, inter / 32]
        );
        assert_eq!(shape("mtp.0.e_proj.scale"), [hidden / 128, hidden / 128]);
    }
}

#[test]
fn another_configuration_shows_every_difference() {
    let text = std::fs::read_to_string(golden("g3_window_only").join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(&golden("g3_window_only")).unwrap();
    let changed = text
        .replace("\"q_lora_rank\": 24", "\"q_lora_rank\": 25")
        .replace("\"num_hash_layers\": 1", "\"num_hash_layers\": 0");
    let error = check(&Config::from_json(changed.as_bytes()).unwrap(), &checkpoint).unwrap_err();
    let WeightsError::Mismatch { mismatches, .. } = &error else {
        panic!("{error}")
    };
    // wq_a, q_norm and wq_b of two layers; a bias where a table was.
    assert_eq!(mismatches.len(), 8, "{error}");
    let message = error.to_string();
    assert!(message.contains(
        "`layers.0.attn.wq_a.weight` has shape [24, 48]; the configuration asks for [25, 48]"
    ));
    assert!(message.contains("`layers.0.ffn.gate.bias` [8] is missing"));
    assert!(
        message.contains("`layers.0.ffn.gate.tid2eid` belongs to no part of the configured model")
    );
}

#[test]
fn written_files_read_back() {
    let folder = Folder::new("round-trip");
    let path = folder.0.join("model.safetensors");
    let spec = |name: &str, dtype, shape: &[usize]| TensorSpec {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
    };
    let specs = vec![
        spec("a \"quoted\" ☃", Dtype::F32, &[2, 1]),
        spec("scalar", Dtype::I64, &[]),
        spec("nothing", Dtype::BF16, &[0, 3]),
        spec("bytes", Dtype::U8, &[3]),
    ];
    let mut writer = Writer::create(&path, specs).unwrap();
    let floats: Vec<u8> = [1.5f32, -0.25]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    assert!(writer.tensor("bytes", &[1, 2, 3]).is_err());
    assert!(writer.tensor("a \"quoted\" ☃", &floats[1..]).is_err());
    writer.tensor("a \"quoted\" ☃", &floats).unwrap();
    writer.tensor("scalar", &(-3i64).to_le_bytes()).unwrap();
    writer.tensor("nothing", &[]).unwrap();
    writer.tensor("bytes", &[1, 2, 3]).unwrap();
    assert!(writer.tensor("bytes", &[1, 2, 3]).is_err());
    writer.finish().unwrap();

    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    assert_eq!(
        checkpoint
            .tensor("a \"quoted\" ☃")
            .unwrap()
            .to_f32()
            .unwrap(),
        [1.5, -0.25]
    );
    let scalar = checkpoint.tensor("scalar").unwrap();
    assert_eq!(
        (scalar.to_i64().unwrap(), scalar.shape.len()),
        (vec![-3], 0)
    );
    assert!(checkpoint.tensor("nothing").unwrap().is_empty());
    assert_eq!(checkpoint.tensor("bytes").unwrap().bytes, [1, 2, 3]);
    assert!(checkpoint.tensor("bytes").unwrap().to_f64().is_err());
    assert!(
        checkpoint
            .tensor("no")
            .unwrap_err()
            .to_string()
            .ends_with("has no tensor `no`")
    );
}

#[test]
fn shards_are_one_checkpoint_and_the_index_is_not_trusted() {
    let folder = Folder::new("shards");
    let write = |file: &str, names: &[&str]| {
        let spec = |name: &&str| TensorSpec {
            name: name.to_string(),
            dtype: Dtype::U8,
            shape: vec![1],
        };
        let mut writer =
            Writer::create(&folder.0.join(file), names.iter().map(spec).collect()).unwrap();
        names
            .iter()
            .for_each(|name| writer.tensor(name, &[1]).unwrap());
        writer.finish().unwrap();
    };
    write("one.safetensors", &["a", "b"]);
    write("two.safetensors", &["c"]);
    let open = |map: &str| {
        let text = format!("{{\"metadata\": {{\"total_size\": 3}}, \"weight_map\": {map}}}");
        std::fs::write(folder.0.join("model.safetensors.index.json"), text).unwrap();
        Checkpoint::open(&folder.0)
    };
    let whole = r#"{"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}"#;
    let names: Vec<_> = open(whole)
        .unwrap()
        .tensors()
        .map(|tensor| tensor.name.to_string())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);

    let refused = |map: &str, piece: &str| {
        let error = open(map).unwrap_err().to_string();
        assert!(error.contains(piece), "{piece} in {error}");
    };
    refused(
        r#"{"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}"#,
        "`b` in one.safetensors is not in the index",
    );
    refused(
        r#"{"a": "one.safetensors", "b": "one.safetensors", "d": "two.safetensors"}"#,
        "two.safetensors has no tensor `d`",
    );
    refused(
        r#"{"a": "../one.safetensors"}"#,
        "no .safetensors file name",
    );
    refused(r#"{"a": "three.safetensors"}"#, "three.safetensors: ");
    refused(
        r#"{"a": "one.safetensors", "a": "one.safetensors"}"#,
        "names `a` twice",
    );
    refused("{}", "weight_map is empty");
    refused("[]", "not an index");
}

#[test]
fn headers_are_not_trusted() {
    let good =
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert_eq!(file(good, 8).unwrap().tensors().count(), 1);
    assert!(refusal(good, 7).contains("cut short"));
    assert!(refusal(good, 9).contains("the rest belongs to no tensor"));
    assert!(refusal(&good.replace("F32", "F33"), 8).contains("unknown dtype \"F33\""));
    assert!(refusal(&good.replace("[2]", "[3]"), 8).contains("do not hold F32 of shape [3]"));
    assert!(refusal(&good.replace("[2]", "[4294967296,4294967296]"), 8).contains("do not hold"));
    assert!(refusal(&good.replace("[2]", "[-2]"), 8).contains("not the JSON"));
    assert!(refusal(&good.replace("[2]", "[2,1,1,1,1,1,1,1,1]"), 8).contains("9 axes"));
    assert!(refusal(&good.replace("[0,8]", "[8,0]"), 8).contains("do not hold"));
    assert!(
        refusal(&good.replace("[0,8]", "[8,16]"), 16).contains("bytes 0 to 8 belong to no tensor")
    );
    let end = u64::MAX;
    assert!(
        refusal(&good.replace("[0,8]", &format!("[{},{end}]", end - 8)), 8).contains("can address")
    );
    let two = |offsets: &str, name: &str| {
        let second =
            format!(r#","{name}":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
        format!("{}{second}", &good[..good.len() - 1])
    };
    assert_eq!(file(&two("[8,16]", "b"), 16).unwrap().tensors().count(), 2);
    assert!(refusal(&two("[4,12]", "b"), 12).contains("inside the tensor that ends at 8"));
    assert!(refusal(&two("[8,16]", "a"), 16).contains("the name occurs twice"));
    assert!(refusal(r#"{"a":{"dtype":"F32"}}"#, 0).contains("missing field"));

    let bytes = |bytes: &[u8]| {
        SafetensorsFile::from_bytes(Path::new("x"), bytes.to_vec())
            .unwrap_err()
            .to_string()
    };
    assert!(bytes(b"").contains("needs at least 8"));
    assert!(
        bytes(&u64::MAX.to_le_bytes()).contains("claims a header of 18446744073709551615 bytes")
    );
    assert!(bytes(&9u64.to_le_bytes()).contains("claims a header of 9 bytes"));
}

#[test]
fn impossible_expert_numbers_are_refused() {
    let source = Checkpoint::open(&golden("g3_window_only")).unwrap();
    let config = Config::read(&golden("g3_window_only")).unwrap();
    for (bad, piece) in [
        ([0, 1, 8], "token 1 is sent to expert 8"),
        ([5, 2, 5], "twice to one expert: [5, 2, 5]"),
        ([-1, 1, 2], "expert -1"),
    ] {
        let folder = Folder::new("experts");
        let specs = source.tensors().map(|tensor| TensorSpec {
            name: tensor.name.into(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
        });
        let mut writer =
            Writer::create(&folder.0.join("model.safetensors"), specs.collect()).unwrap();
        for tensor in source.tensors() {
            let mut bytes = tensor.bytes.to_vec();
            if tensor.name == "layers.0.ffn.gate.tid2eid" {
                let row: Vec<u8> = bad.iter().flat_map(|id: &i32| id.to_le_bytes()).collect();
                bytes[12..24].copy_from_slice(&row);
            }
            writer.tensor(tensor.name, &bytes).unwrap();
        }
        writer.finish().unwrap();
        let error = check(&config, &Checkpoint::open(&folder.0).unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains(piece), "{piece} in {error}");
    }
}
