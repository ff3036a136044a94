//! Broken configurations and checkpoints: an error or a valid model, never a panic, a hang or much memory.
//!
//! Each case takes the files of a small valid model, breaks one of them in one to three places, and reads it all as
//! the runtime would: configuration, plan, weights, index, the comparison of both, every tensor.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tessera::model::config::Config;
use tessera::model::plan::plan;
use tessera::weights::{Checkpoint, SafetensorsFile, TensorSpec, Writer, check};
use tessera_tests::random::{Random, cases};
use tessera_tests::random_model::write_model;

/// The system's allocator, counting what is in use, so that the test can say how much it was at most.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `alloc` above with this layout, that is from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Memory is counted for the whole process, so the tests of this file take turns.
static TURN: Mutex<()> = Mutex::new(());

fn take_turn() -> MutexGuard<'static, ()> {
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    PEAK.store(IN_USE.load(Ordering::Relaxed), Ordering::Relaxed);
    turn
}

const MOST_MEMORY: usize = 1 << 30;
const MOST_TIME: Duration = Duration::from_secs(20);
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path =
            std::env::temp_dir().join(format!("tessera-hostile-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A model with one layer of each kind and a draft module, in about 60 KB.
fn small_model(folder: &Folder) {
    let config = json!({
        "model_type": "deepseek_v4", "vocab_size": 9, "hidden_size": 16, "moe_intermediate_size": 3,
        "num_hidden_layers": 3, "num_nextn_predict_layers": 1, "num_attention_heads": 2, "head_dim": 16,
        "qk_rope_head_dim": 4, "q_lora_rank": 8, "o_groups": 2, "o_lora_rank": 3, "sliding_window": 5,
        "compress_ratios": [0, 4, 7, 0], "index_n_heads": 2, "index_head_dim": 8, "index_topk": 3,
        "n_routed_experts": 3, "num_experts_per_tok": 2, "num_hash_layers": 1, "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0, "hc_mult": 2, "hc_sinkhorn_iters": 3, "hc_eps": 1e-6, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "compress_rope_theta": 160000.0, "max_position_embeddings": 64, "eos_token_id": [1, 2],
        "rope_scaling": { "type": "yarn", "factor": 4, "beta_fast": 32, "beta_slow": 1,
            "original_max_position_embeddings": 64 },
    });
    write_model(&folder.0, &config, 5).unwrap();
}

/// Reads the model in `folder` as far as it goes.
fn read_all(folder: &Path) -> Result<(), String> {
    let config = Config::read(folder).map_err(|error| error.to_string());
    if let Ok(config) = &config {
        let text = plan("this model", config, &[1, 8192, 1 << 20]).to_string();
        assert!(text.contains("this model"));
    }
    // Weights are looked at even if the configuration is bad.
    let checkpoint = Checkpoint::open(folder).map_err(|error| error.to_string())?;
    for tensor in checkpoint.tensors() {
        let elements: usize = tensor.shape.iter().product();
        assert_eq!(
            elements * tensor.dtype.size(),
            tensor.bytes.len(),
            "{}",
            tensor.name
        );
        assert_eq!(elements, tensor.len());
        // One of them reads every type that the model can have; the other must refuse, not fail.
        let _ = (tensor.to_f64(), tensor.to_f32(), tensor.to_i64());
    }
    check(&config?, &checkpoint).map_err(|error| error.to_string())?;
    Ok(())
}

/// Runs `count` cases of breaking `file`; returns how many were still valid.
fn run_cases(
    name: &str,
    folder: &Folder,
    file: &str,
    count: usize,
    damage: fn(&mut Random, &[u8]) -> Vec<u8>,
) -> usize {
    let path = folder.file(file);
    let whole = std::fs::read(&path).unwrap();
    assert_eq!(read_all(&folder.0), Ok(()), "the unbroken model");
    let mut valid = 0;
    for case in 0..count {
        let mut random = Random::new(case as u64).stream(name);
        let mut broken = whole.clone();
        for _ in 0..random.between(1, 3) {
            broken = damage(&mut random, &broken);
        }
        // A new file: the old one may still be mapped.
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, &broken).unwrap();
        let start = Instant::now();
        match read_all(&folder.0) {
            Ok(()) => valid += 1,
            Err(message) => {
                assert!(
                    !message.is_empty() && message.len() < 20_000,
                    "{name} {case}: {} bytes",
                    message.len()
                );
            }
        }
        assert!(
            start.elapsed() < MOST_TIME,
            "{name} {case} took {:?}",
            start.elapsed()
        );
        let peak = PEAK.load(Ordering::Relaxed);
        assert!(peak < MOST_MEMORY, "{name} {case}: {peak} bytes in use");
    }
    std::fs::write(&path, whole).unwrap();
    valid
}

/// Most cases must break something, and some must not: otherwise the damage is too small or too large to test anything.
fn assert_mixed(name: &str, valid: usize, count: usize) {
    assert!(
        valid > 0 && valid < count / 2,
        "{name}: {valid} of {count} were still valid"
    );
}

#[test]
fn broken_configurations() {
    let _turn = take_turn();
    let (folder, count) = (Folder::new("config"), cases(400));
    small_model(&folder);
    let bytes = run_cases("config bytes", &folder, CONFIG, count / 2, damage_bytes);
    let values = run_cases("config values", &folder, CONFIG, count / 2, damage_json);
    assert_mixed("config", bytes + values, count);
}

#[test]
fn broken_safetensors_files() {
    let _turn = take_turn();
    let (folder, count) = (Folder::new("weights"), cases(400));
    small_model(&folder);
    let bytes = run_cases(
        "weight bytes",
        &folder,
        WEIGHTS,
        count / 2,
        damage_header_bytes,
    );
    let values = run_cases(
        "weight values",
        &folder,
        WEIGHTS,
        count / 2,
        damage_header_json,
    );
    assert_mixed("weights", bytes + values, count);
}

#[test]
fn broken_indices() {
    let _turn = take_turn();
    let (folder, count) = (Folder::new("index"), cases(200));
    small_model(&folder);
    split(&folder);
    let bytes = run_cases("index bytes", &folder, INDEX, count / 2, damage_bytes);
    let values = run_cases("index values", &folder, INDEX, count / 2, damage_json);
    assert_mixed("index", bytes + values, count);
}

/// The largest configuration that the ranges allow, beside a checkpoint that has none of it.
#[test]
fn the_largest_configuration_is_refused_in_reasonable_time() {
    let _turn = take_turn();
    let folder = Folder::new("largest");
    small_model(&folder);
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(folder.file(CONFIG)).unwrap()).unwrap();
    for (key, value) in [
        ("num_hidden_layers", 256),
        ("n_routed_experts", 1024),
        ("hidden_size", 16_384),
        ("vocab_size", 262_144),
    ] {
        config[key] = value.into();
    }
    config["compress_ratios"] = vec![1024; 256].into();
    config["quantization_config"] = json!({ "quant_method": "fp8" });
    std::fs::write(folder.file(CONFIG), config.to_string()).unwrap();
    let start = Instant::now();
    let message = read_all(&folder.0).unwrap_err();
    assert!(
        message.contains("differ from config.json") && message.len() < 20_000,
        "{message}"
    );
    assert!(start.elapsed() < MOST_TIME, "{:?}", start.elapsed());
    let peak = PEAK.load(Ordering::Relaxed);
    assert!(peak < MOST_MEMORY, "{peak} bytes in use");
}

/// Lists and names without end inside the header's allowed length.
#[test]
fn long_headers_do_not_fill_the_memory() {
    let _turn = take_turn();
    let entry = r#""x":{"dtype":"F32","shape":[],"data_offsets":[0,0]},"#;
    let repeated = |piece: &str, bytes: usize| piece.repeat(bytes / piece.len());
    let bytes = 30 << 20;
    for text in [
        format!("{{{}", repeated(entry, bytes)),
        format!(
            r#"{{"x":{{"dtype":"F32","shape":[{}0]}}}}"#,
            repeated("0,", bytes)
        ),
        format!(r#"{{"x":{{"dtype":"{}"}}}}"#, repeated("F", bytes)),
        repeated("[", bytes),
        repeated("{\"a\":", bytes),
    ] {
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.as_bytes());
        drop(text);
        let error = SafetensorsFile::from_bytes(Path::new("long"), file)
            .unwrap_err()
            .to_string();
        assert!(error.len() < 1000, "{} bytes", error.len());
        let peak = PEAK.load(Ordering::Relaxed);
        assert!(peak < MOST_MEMORY, "{peak} bytes in use");
    }
}

/// Replaces the single file by two shards and an index.
fn split(folder: &Folder) {
    let whole = SafetensorsFile::open(&folder.file(WEIGHTS)).unwrap();
    let mut weight_map = serde_json::Map::new();
    for part in 0..2 {
        let name = format!("model-{part}.safetensors");
        let tensors: Vec<_> = whole
            .tensors()
            .enumerate()
            .filter(|(i, _)| i % 2 == part)
            .map(|(_, t)| t)
            .collect();
        let specs = tensors.iter().map(|tensor| TensorSpec {
            name: tensor.name.into(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
        });
        let mut writer = Writer::create(&folder.file(&name), specs.collect()).unwrap();
        for tensor in &tensors {
            writer.tensor(tensor.name, tensor.bytes).unwrap();
            weight_map.insert(tensor.name.into(), name.clone().into());
        }
        writer.finish().unwrap();
    }
    drop(whole);
    std::fs::remove_file(folder.file(WEIGHTS)).unwrap();
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": weight_map });
    std::fs::write(folder.file(INDEX), index.to_string()).unwrap();
}

// Ways to break things.

fn damage_bytes(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    damage_before(random, bytes, bytes.len())
}

/// In the first `end` bytes, or the file cut anywhere.
fn damage_before(random: &mut Random, bytes: &[u8], end: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.is_empty() {
        return bytes;
    }
    let at = random.below(end.clamp(1, bytes.len()));
    match random.below(6) {
        0 => bytes[at] ^= 1 << random.below(8),
        1 => bytes[at] = random.pick(b"0123456789-+.eE[]{}\",:\\ \n\0\xff"),
        2 => drop(bytes.remove(at)),
        3 => bytes.insert(at, random.next_u64() as u8),
        4 => {
            // A piece twice: repeated keys, longer numbers.
            let piece = bytes[at..(at + random.between(1, 40)).min(bytes.len())].to_vec();
            bytes.splice(at..at, piece);
        }
        _ => bytes.truncate(random.below(bytes.len())),
    }
    bytes
}

fn damage_json(random: &mut Random, bytes: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else {
        return damage_bytes(random, bytes);
    };
    damage_value(random, &mut value);
    value.to_string().into_bytes()
}

fn damage_header_bytes(random: &mut Random, file: &[u8]) -> Vec<u8> {
    let header = file
        .first_chunk::<8>()
        .map_or(0, |length| u64::from_le_bytes(*length));
    damage_before(
        random,
        file,
        usize::try_from(header)
            .unwrap_or(usize::MAX)
            .saturating_add(8),
    )
}

/// Changes a value of the header and writes the right length before it.
fn damage_header_json(random: &mut Random, file: &[u8]) -> Vec<u8> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return file.to_vec();
    };
    let length = u64::from_le_bytes(*length) as usize;
    let (Some(text), Some(data)) = (rest.get(..length), rest.get(length..)) else {
        return file.to_vec();
    };
    let text = damage_json(random, text);
    [&(text.len() as u64).to_le_bytes()[..], &text, data].concat()
}

/// Somewhere in a tree of values: another value, a value gone, two exchanged.
fn damage_value(random: &mut Random, value: &mut Value) {
    match value {
        Value::Object(map) if !map.is_empty() && random.below(8) > 0 => {
            let keys: Vec<String> = map.keys().cloned().collect();
            let (key, other) = (
                &keys[random.below(keys.len())],
                &keys[random.below(keys.len())],
            );
            match random.below(8) {
                0 => drop(map.remove(key)),
                1 => {
                    let (one, two) = (map[key].clone(), map[other].clone());
                    map[key] = two;
                    map[other] = one;
                }
                2 => {
                    let moved = map.remove(key).expect("the key is one of the map's");
                    map.insert(format!("{key}x"), moved);
                }
                _ => damage_value(random, &mut map[key]),
            }
        }
        Value::Array(values) if !values.is_empty() && random.below(8) > 0 => {
            let at = random.below(values.len());
            match random.below(4) {
                0 => drop(values.remove(at)),
                1 => values.insert(at, values[at].clone()),
                _ => damage_value(random, &mut values[at]),
            }
        }
        _ => *value = strange_value(random, value),
    }
}

fn strange_value(random: &mut Random, old: &Value) -> Value {
    let near = old
        .as_i64()
        .map(|number| json!(number + random.pick(&[-2, -1, 1, 2, 64])));
    let strange = [
        near.unwrap_or(Value::Null),
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(random.below(300)),
        json!(random.below(300) * 8),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1u64 << 62),
        json!(1e308),
        json!(0.5),
        json!(-1e-300),
        json!(""),
        json!("F8_E4M3"),
        json!("../../etc/passwd"),
        json!("\u{0}\u{ffff}☃"),
        json!("x".repeat(5000)),
        json!([]),
        json!(vec![0; 3000]),
        json!([[[[[[[[[[[[1]]]]]]]]]]]]),
        json!({}),
        json!({ "a": { "b": null } }),
    ];
    let weights = random.below(2 * strange.len());
    strange[if weights >= strange.len() {
        random.below(7)
    } else {
        weights
    }]
    .clone()
}
