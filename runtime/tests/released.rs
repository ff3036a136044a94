//! Checkpoints in the released layouts: FP8 experts, the library's names, draft blocks of the other kind, and what must be refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tessera::model::kernels::Kernels;
use tessera::model::{Logits, Model, ModelError, Run};
use tessera::weights::{Checkpoint, Draft, Dtype, SafetensorsFile, TensorSpec, Writer};
use tessera_device::{CpuOptions, Device};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let name = format!("tessera-released-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const Q1: &str = "quant/q1_w_c_h";
const Q2: &str = "quant/q2_h_mtp";

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(case)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(case: &str) -> Tensors {
    let checkpoint = Checkpoint::open(&golden(case)).unwrap();
    let all = checkpoint.tensors();
    all.map(|t| (t.name.into(), (t.dtype, t.shape.to_vec(), t.bytes.to_vec())))
        .collect()
}

/// A copy of a golden model with other tensors and other values in its configuration; `null` takes a key away.
fn write(folder: &Folder, case: &str, tensors: &Tensors, changes: Value) {
    let text = std::fs::read(golden(case).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(folder.0.join("config.json"), config.to_string()).unwrap();
    write_tensors(&folder.0.join("model.safetensors"), tensors);
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let specs = tensors.iter().map(|(name, (dtype, shape, _))| TensorSpec {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
    });
    let mut writer = Writer::create(path, specs.collect()).unwrap();
    for (name, (_, _, bytes)) in tensors {
        writer.tensor(name, bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn load(folder: &Path) -> Result<Model, ModelError> {
    let device = Device::cpu_with(CpuOptions::default()).unwrap();
    Model::load(folder, Kernels::load(&device).unwrap(), &mut |_, _| {})
}

fn refused(folder: &Folder) -> String {
    match load(&folder.0) {
        Ok(_) => panic!("the model loads"),
        Err(error) => error.to_string(),
    }
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let mut session = model.session(1, ids.len(), ids.len()).unwrap();
    let run = Run {
        sequence: 0,
        ids,
        next_ids: None,
    };
    let output = model
        .forward(&mut session, &[run], Logits::All, None)
        .unwrap();
    output.logits.to_vec::<f32>().unwrap()
}

const IDS: [u32; 9] = [11, 3, 29, 7, 200, 150, 31, 8, 99];

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match exponent {
        0 => mantissa / 8.0 * 2.0f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0f32.powi(exponent - 7),
    };
    if code >= 128 { -size } else { size }
}

/// An FP4 expert matrix `[N, K]` as E4M3 with one scale for each 128 x 128, as the official converter widens it: exactly.
fn widen(shape: &[usize], codes: &[u8], scales: &[u8]) -> (Vec<u8>, Vec<f32>, [usize; 2]) {
    let (rows, columns) = (shape[0], shape[1] * 2);
    let tiles = [rows.div_ceil(128), columns.div_ceil(128)];
    let scale = |n: usize, k: usize| i32::from(scales[n * columns / 32 + k / 32]) - 127;
    let mut tile_scales = vec![i32::MIN; tiles[0] * tiles[1]];
    for n in 0..rows {
        for k in (0..columns).step_by(32) {
            let tile = &mut tile_scales[n / 128 * tiles[1] + k / 128];
            *tile = (*tile).max(scale(n, k) - 6);
        }
    }
    let by_value: BTreeMap<u32, u8> = (0..=255u8)
        .filter(|code| code & 127 != 127)
        .map(|code| (e4m3(code).to_bits(), code))
        .collect();
    let widened = (0..rows * columns).map(|i| {
        let (n, k) = (i / columns, i % columns);
        let code = codes[i / 2] >> (i % 2 * 4) & 15;
        let sign = if code >= 8 { -1.0 } else { 1.0 };
        let spread = scale(n, k) - tile_scales[n / 128 * tiles[1] + k / 128];
        let value = sign * E2M1[usize::from(code & 7)] * 2.0f32.powi(spread);
        *by_value.get(&value.to_bits()).expect("exact in E4M3")
    });
    let widened = widened.collect();
    let tile_scales = tile_scales.iter().map(|&s| 2.0f32.powi(s)).collect();
    (widened, tile_scales, tiles)
}

#[test]
fn experts_in_fp8_compute_what_the_same_experts_in_fp4_do() {
    let folder = Folder::new("base");
    let mut all = tensors(Q1);
    let names: Vec<String> = all
        .keys()
        .filter(|name| name.contains(".experts.") && name.ends_with(".weight"))
        .cloned()
        .collect();
    assert_eq!(names.len(), 3 * 3 * 8);
    for name in names {
        let scale = name.replace(".weight", ".scale");
        let (_, shape, codes) = all[&name].clone();
        let (codes, scales, tiles) = widen(&shape, &codes, &all[&scale].2);
        all.insert(name, (Dtype::F8E4M3, vec![shape[0], shape[1] * 2], codes));
        let bytes = scales.iter().flat_map(|s| s.to_le_bytes()).collect();
        all.insert(scale, (Dtype::F32, tiles.to_vec(), bytes));
    }
    write(&folder, Q1, &all, json!({ "expert_dtype": "fp8" }));
    let fp8 = logits(&load(&folder.0).unwrap(), &IDS);
    let fp4 = logits(&load(&golden(Q1)).unwrap(), &IDS);
    // Weights are equal; sums of 128 instead of 32 products are rounded in other places, and a code of an activation may move.
    let (mut error, mut size) = (0.0, 0.0);
    for (a, b) in fp8.iter().zip(&fp4) {
        error += f64::from(a - b).powi(2);
        size += f64::from(*b).powi(2);
    }
    let error = (error / size).sqrt();
    assert!(error < 0.02, "{error}");
}

/// Under the names of the `transformers` library, experts stacked.
#[test]
fn names_of_the_library_are_the_same_checkpoint() {
    let folder = Folder::new("names");
    let case = "g4_csa_select";
    let published = tensors(case);
    let mut renamed = Tensors::new();
    let mut stacks: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
    for (name, value) in &published {
        if let Some((at, expert)) = name.split_once(".experts.") {
            let (expert, matrix) = expert.split_once('.').unwrap();
            let stack = match matrix {
                "w2.weight" => "down_proj",
                _ => "gate_up_proj",
            };
            let at = at.replace(".ffn", ".mlp");
            let place = expert.parse::<usize>().unwrap() * 2 + usize::from(matrix == "w3.weight");
            let stack = stacks
                .entry(format!("model.{at}.experts.{stack}"))
                .or_default();
            stack.push((name.clone(), place));
            continue;
        }
        let mut other = format!("model.{name}");
        for (ours, theirs) in [
            (".attn.indexer.compressor.", ".attn.compressor.indexer."),
            (".attn.indexer.wq_b", ".attn.compressor.indexer.wq_b"),
            (
                ".attn.indexer.weights_proj",
                ".attn.compressor.indexer.scorer.weights_proj",
            ),
            ("compressor.wkv", "compressor.kv_proj"),
            ("compressor.wgate", "compressor.gate_proj"),
            ("compressor.norm", "compressor.kv_norm"),
            ("compressor.ape", "compressor.position_bias"),
            ("indexer.wkv", "indexer.kv_proj"),
            ("indexer.wgate", "indexer.gate_proj"),
            ("indexer.norm", "indexer.kv_norm"),
            ("indexer.ape", "indexer.position_bias"),
            ("wq_a", "q_a_proj"),
            ("q_norm", "q_a_norm"),
            ("wq_b", "q_b_proj"),
            (".wkv", ".kv_proj"),
            ("wo_a", "o_a_proj"),
            ("wo_b", "o_b_proj"),
            ("attn_sink", "sinks"),
            ("hc_attn_", "attn_hc."),
            ("hc_ffn_", "ffn_hc."),
            ("hc_head_", "hc_head.hc_"),
            ("attn_norm", "input_layernorm"),
            ("ffn_norm", "post_attention_layernorm"),
            (".attn.", ".self_attn."),
            (".ffn.", ".mlp."),
            ("gate.bias", "gate.e_score_correction_bias"),
            ("shared_experts.w1", "shared_experts.gate_proj"),
            ("shared_experts.w2", "shared_experts.down_proj"),
            ("shared_experts.w3", "shared_experts.up_proj"),
            ("model.embed.", "model.embed_tokens."),
            ("model.head.", "lm_head."),
        ] {
            other = other.replace(ours, theirs);
        }
        renamed.insert(other, value.clone());
    }
    for (name, mut parts) in stacks {
        parts.sort_by_key(|(_, place)| *place);
        let (dtype, shape, _) = published[&parts[0].0].clone();
        let experts = parts.iter().map(|(_, place)| place / 2).max().unwrap() + 1;
        let rows = shape[0] * parts.len() / experts;
        let bytes = parts.iter().flat_map(|(name, _)| published[name].2.clone());
        renamed.insert(
            name,
            (dtype, vec![experts, rows, shape[1]], bytes.collect()),
        );
    }
    assert!(renamed.keys().all(|name| !published.contains_key(name)));
    write(&folder, case, &renamed, json!({}));
    let checkpoint = Checkpoint::open(&folder.0).unwrap();
    let found: Tensors = checkpoint
        .tensors()
        .map(|t| (t.name.into(), (t.dtype, t.shape.to_vec(), t.bytes.to_vec())))
        .collect();
    assert!(found == published);
    load(&folder.0).unwrap();
}

#[test]
fn a_name_twice_is_refused() {
    let folder = Folder::new("twice");
    let mut all = tensors("g3_window_only");
    let norm = all["norm.weight"].clone();
    all.insert("model.norm.weight".into(), norm);
    write(&folder, "g3_window_only", &all, json!({}));
    let message = refused(&folder);
    assert!(
        message.contains("`model.norm.weight` and `norm.weight` are both `norm.weight`"),
        "{message}"
    );
}

#[test]
fn draft_blocks_of_the_other_kind_are_left_out() {
    let folder = Folder::new("dspark");
    let mut all = tensors(Q2);
    let hidden = 256;
    let weight = (
        Dtype::F8E4M3,
        vec![hidden, 3 * hidden],
        vec![0; 3 * hidden * hidden],
    );
    all.insert("mtp.0.main_proj.weight".into(), weight);
    all.insert(
        "mtp.0.main_proj.scale".into(),
        (Dtype::F8E8M0, vec![2, 6], vec![127; 12]),
    );
    write(&folder, Q2, &all, json!({}));
    let (model, other) = (load(&folder.0).unwrap(), load(&golden(Q2)).unwrap());
    assert_eq!(model.draft_kind(), Draft::OtherKind);
    assert!(!model.has_draft());
    assert_eq!(other.draft_kind(), Draft::Mtp);
    let ids = IDS.map(|id| id % 192);
    assert_eq!(logits(&model, &ids), logits(&other, &ids));
}

#[test]
fn what_does_not_fit_the_released_layout_is_named() {
    let folder = Folder::new("layout");
    let mut all = tensors(Q1);
    let widened = |bytes: &[u8]| -> Vec<u8> {
        let words = bytes.chunks(2);
        words.flat_map(|word| [0, 0, word[0], word[1]]).collect()
    };
    let norm = all.get_mut("layers.0.attn.q_norm.weight").unwrap();
    *norm = (Dtype::F32, norm.1.clone(), widened(&norm.2));
    let weight = all.get_mut("layers.1.attn.wkv.weight").unwrap();
    weight.0 = Dtype::I8;
    let scale = all.get_mut("layers.1.attn.wq_a.scale").unwrap();
    (scale.1, scale.2) = (vec![2, 2], vec![127; 4]);
    all.remove("layers.2.ffn.experts.3.w2.scale");
    let extra = all["norm.weight"].clone();
    all.insert("layers.2.attn.indexer.norm.weight".into(), extra);
    write(&folder, Q1, &all, json!({}));
    let message = refused(&folder);
    for part in [
        "5 places",
        "`layers.0.attn.q_norm.weight` is F32",
        "`layers.1.attn.wkv.weight` is I8",
        "`layers.1.attn.wq_a.scale` has shape [2, 2]; the configuration asks for [1, 2]",
        "`layers.2.ffn.experts.3.w2.scale` [256, 4] is missing",
        "`layers.2.attn.indexer.norm.weight` belongs to no part",
    ] {
        assert!(message.contains(part), "{part} in\n{message}");
    }
}

/// Damage that no header shows: codes that are no numbers.
#[test]
fn codes_that_are_no_numbers_are_found() {
    let all = tensors(Q1);
    for (name, at, code) in [
        ("layers.1.attn.wq_b.weight", 777, 0xff),
        ("layers.0.ffn.experts.5.w3.scale", 100, 0xff),
        ("layers.2.attn.wo_a.weight", 0, 0x7f),
        ("layers.0.attn.wkv.scale", 3, 0xff),
    ] {
        let folder = Folder::new("codes");
        let mut broken = all.clone();
        broken.get_mut(name).unwrap().2[at] = code;
        write(&folder, Q1, &broken, json!({}));
        let message = refused(&folder);
        let expected =
            format!("`{name}`: element {at} has the code {code:#04x}, which is no number");
        assert!(message.contains(&expected), "{message}");
    }
}

#[test]
fn shards_that_are_cut_short_are_refused() {
    let folder = Folder::new("cut");
    for file in std::fs::read_dir(golden(Q2)).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, folder.0.join(path.file_name().unwrap())).unwrap();
    }
    load(&folder.0).unwrap();
    let shard = folder.0.join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 100, 7, 0] {
        std::fs::remove_file(&shard).unwrap();
        std::fs::write(&shard, &bytes[..length]).unwrap();
        let message = refused(&folder);
        assert!(
            message.contains("model-00002-of-00002.safetensors is not a valid safetensors file"),
            "{message}"
        );
    }
    std::fs::remove_file(&shard).unwrap();
    assert!(refused(&folder).contains("model-00002-of-00002.safetensors"));
}

#[test]
fn sizes_that_no_quantised_kernel_has_are_refused() {
    let folder = Folder::new("sizes");
    let all = tensors(Q1);
    // Neither changes a tensor; a window of another size is fine.
    write(
        &folder,
        Q1,
        &all,
        json!({ "qk_rope_head_dim": 32, "sliding_window": 64 }),
    );
    let message = refused(&folder);
    assert!(
        message.contains("`qk_rope_head_dim` is 32 and must be 64"),
        "{message}"
    );
    write(&folder, Q1, &all, json!({ "quantization_config": null }));
    let message = refused(&folder);
    assert!(
        message
            .contains("`quantization_config`: config.json has none, and the weights are quantised"),
        "{message}"
    );
}

/// A session takes what fits and goes on after it refused what does not.
#[test]
fn tokens_that_do_not_fit_leave_the_session_as_it_was() {
    let model = load(&golden(Q1)).unwrap();
    let whole = logits(&model, &IDS);
    let mut session = model.session(1, IDS.len(), IDS.len()).unwrap();
    let mut feed = |ids: &[u32]| {
        let run = Run {
            sequence: 0,
            ids,
            next_ids: None,
        };
        let output = model.forward(&mut session, &[run], Logits::Last, None);
        output
            .map(|output| output.logits.to_vec::<f32>().unwrap())
            .map_err(|error| error.to_string())
    };
    feed(&IDS[..5]).unwrap();
    let message = feed(&[256]).unwrap_err();
    assert!(
        message.contains("token 256 is not in the vocabulary of 256"),
        "{message}"
    );
    let message = feed(&[1; 5]).unwrap_err();
    assert!(
        message.contains("would have 10 tokens; the cache holds 9"),
        "{message}"
    );
    let last = feed(&IDS[5..]).unwrap();
    assert_eq!(last, whole[whole.len() - last.len()..]);
}

/// `v4 verify` finds a single scale that is twice what it should be.
#[test]
fn verify_finds_a_wrong_scale() {
    let folder = Folder::new("verify");
    let mut all = tensors(Q1);
    all.get_mut("layers.1.attn.wkv.scale").unwrap().2[1] += 1;
    write(&folder, Q1, &all, json!({}));
    for file in ["io.safetensors", "trace.safetensors", "case.json"] {
        std::fs::copy(golden(Q1).join(file), folder.0.join(file)).unwrap();
    }
    let model = load(&folder.0).unwrap();
    let checks = tessera::verify::verify(&model, &folder.0, &mut |_| {}).unwrap();
    let wrong: Vec<&str> = checks
        .iter()
        .filter(|check| !check.is_fine())
        .map(|check| check.name.as_str())
        .collect();
    assert!(wrong.contains(&"L1.attn.kv (other bits)"), "{wrong:?}");
    // What does not follow from that matrix is fine: components are computed from stored values.
    assert!(
        !wrong
            .iter()
            .any(|name| name.starts_with("L0.") || name.starts_with("L1.attn.out")),
        "{wrong:?}"
    );
}

/// Files beside the model that are not of this model: an error with the tensor's name.
#[test]
fn verify_refuses_values_that_do_not_fit_the_model() {
    let folder = Folder::new("values");
    for file in std::fs::read_dir(golden(Q2)).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, folder.0.join(path.file_name().unwrap())).unwrap();
    }
    let model = load(&folder.0).unwrap();
    type Change = fn(&mut Tensors);
    let cases: [(&str, Change, &str); 4] = [
        (
            "trace.safetensors",
            |all| all.get_mut("mtp.rows").unwrap().2[..8].copy_from_slice(&9999i64.to_le_bytes()),
            "`mtp.rows` names a token beyond the prompt of 131",
        ),
        (
            "trace.safetensors",
            |all| {
                let kv = all.get_mut("mtp.attn.kv").unwrap();
                kv.1[1] = 130;
                kv.2.truncate(2 * 130 * 512 * 2);
            },
            "the stored values of `mtp.attn.kv` are 133120, and the model computes 134144",
        ),
        (
            "io.safetensors",
            |all| {
                let ids = all.get_mut("r0.mtp_ids").unwrap();
                ids.1 = vec![1, 143];
                ids.2.truncate(143 * 8);
            },
            "are not of the same sequences",
        ),
        (
            "io.safetensors",
            |all| {
                all.get_mut("r1.input_ids").unwrap().2[..8].copy_from_slice(&(-1i64).to_le_bytes())
            },
            "`r1.input_ids` holds a number that is no token",
        ),
    ];
    for (file, change, expected) in cases {
        let path = folder.0.join(file);
        let good = std::fs::read(&path).unwrap();
        let mut all: Tensors = SafetensorsFile::open(&path)
            .unwrap()
            .tensors()
            .map(|t| (t.name.into(), (t.dtype, t.shape.to_vec(), t.bytes.to_vec())))
            .collect();
        change(&mut all);
        std::fs::remove_file(&path).unwrap();
        write_tensors(&path, &all);
        let error = tessera::verify::verify(&model, &folder.0, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, good).unwrap();
    }
}
