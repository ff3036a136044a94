//! Model folders made from a seed: configurations from all over the stated ranges, and weights that leave no part of
//! the model without effect.
//!
//! [`prepare_case`] is small enough for the float64 reference; [`write_benchmark_model`] is the one that speeds are
//! measured on. Weights are float32 under their published names.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use serde_json::{Value, json};
use tessera::model::config::{Allowed, Config, RANGES};
use tessera::weights::{
    Dtype, ExpectedTensor, SafetensorsFile, Tensor, TensorSpec, Writer, expected_tensors,
};

use crate::random::Random;
use crate::reference::{Reference, Run};

/// A configuration, the seed of its weights, and what to run on it.
#[derive(Debug, Clone, PartialEq)]
pub struct RandomCase {
    /// The text of `config.json`.
    pub config: Value,
    pub seed: u64,
    /// `[B, S]`.
    pub ids: Vec<Vec<u32>>,
    /// Tokens for the draft module, `[B, S]`; the draft module is configured if they are there.
    pub next_ids: Option<Vec<Vec<u32>>>,
}

/// What the layers of one case have in common; rotated so that a few dozen cases cover everything.
const FLAVOURS: usize = 12;

/// Choices closer than this could fall either way in float32; the golden cases keep the same distance.
const SMALLEST_GAP: f64 = 8e-5;
const ATTEMPTS: u64 = 64;

/// Writes the model of case `number` into `folder` and runs the reference on it. Of the seeds that belong to the number
/// the first is taken where every choice of experts and entries is clear, so float32 must choose the same.
///
/// # Errors
/// As [`write_model`]; no such seed.
pub fn prepare_case(number: u64, folder: &Path) -> Result<(RandomCase, Run), Box<dyn Error>> {
    prepare(folder, |attempt| random_case(number, attempt))
        .map_err(|error| format!("case {number}: {error}").into())
}

/// The same for any cases that differ in weights and tokens, by attempt.
///
/// # Errors
/// As [`prepare_case`].
pub fn prepare(
    folder: &Path,
    case_of: impl Fn(u64) -> RandomCase,
) -> Result<(RandomCase, Run), Box<dyn Error>> {
    for attempt in 0..ATTEMPTS {
        let case = case_of(attempt);
        write_model(folder, &case.config, case.seed)?;
        let run = Reference::open(folder)?.run_batch(&case.ids, case.next_ids.as_deref());
        if run.gaps.smallest() >= SMALLEST_GAP {
            return Ok((case, run));
        }
    }
    Err(format!("no clear choices with {ATTEMPTS} seeds").into())
}

/// A case: equal arguments give equal cases. Small: hidden at most 200, at most 4 layers. The configuration follows
/// from `number` alone, weights and tokens from `attempt` too.
pub fn random_case(number: u64, attempt: u64) -> RandomCase {
    let mut random = Random::new(number ^ 0x7465_7373_6572_6100);
    let flavour = (number % FLAVOURS as u64) as usize;
    let layers = if flavour == 6 {
        4
    } else {
        random.between(1, 4)
    };
    let sparse_ratio = if flavour == 6 {
        [2, 3, 5, 7][number as usize / FLAVOURS % 4]
    } else {
        4
    };
    let ratios: Vec<usize> = (0..layers)
        .map(|layer| match (layer + flavour + random.below(2)) % 3 {
            0 => 0,
            1 => sparse_ratio,
            _ => heavy_ratio(&mut random, sparse_ratio),
        })
        .collect();
    let draft = flavour % 2;
    let (long, wide) = (flavour == 10, flavour == 11);
    let experts = match flavour {
        3 => random.between(7, 16),
        11 => random.between(100, 400),
        _ => random.between(1, 12),
    };
    let topk = match flavour {
        3 => experts,
        11 => random.between(9, 16),
        _ => random.between(1, experts.min(6)),
    };
    let groups = random.between(1, 4);
    let heads = groups * random.between(1, if wide { 7 } else { 3 });
    let rope = 2 * random.between(1, 16);
    let head_dim = match flavour {
        4 => rope.max(16),
        8 => 512,
        _ => (rope + random.between(0, 80)).max(16),
    };
    let mut compress_ratios = ratios.clone();
    compress_ratios.extend(vec![0; draft]);
    let vocab = random.between(2, if wide { 1000 } else { 150 });
    let rope_scaling = match flavour {
        7 => Value::Null,
        _ => json!({
            "type": "yarn",
            "factor": random.between(1, 16),
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": random.pick(&[64, 4096, 65536]),
        }),
    };
    let config = json!({
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": vocab,
        "hidden_size": random.between(16, 200),
        "moe_intermediate_size": random.between(1, 70),
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": draft,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "head_dim": head_dim,
        "qk_rope_head_dim": rope,
        "q_lora_rank": random.between(8, 60),
        "o_groups": groups,
        "o_lora_rank": random.between(1, 40),
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": topk,
        "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": true,
        "routed_scaling_factor": 0.5 + random.below(30) as f64 / 10.0,
        "swiglu_limit": random.pick(&[0.5, 1.5, 10.0]),
        "hidden_act": "silu",
        "num_hash_layers": random.between(0, layers),
        "sliding_window": match flavour {
            1 => 1,
            10 => random.between(65, 200),
            _ => random.between(1, 40),
        },
        "compress_ratios": compress_ratios,
        "compress_rates": { "compressed_sparse_attention": sparse_ratio },
        // With few heads many scores are exactly 0, and which of them to pick is a matter of the tie rule alone.
        "index_n_heads": match flavour {
            2 => random.between(1, 4),
            11 => random.between(17, 70),
            _ => random.between(8, 12),
        },
        "index_head_dim": (rope + random.between(0, 30)).max(8),
        "index_topk": match flavour {
            2 => random.pick(&[3, 2048]),
            10 => random.between(17, 40),
            _ => random.between(1, 9),
        },
        "hc_mult": if flavour == 5 { 1 } else { random.between(1, 8) },
        "hc_sinkhorn_iters": random.between(1, 24),
        "hc_eps": 1e-6,
        "rms_norm_eps": random.pick(&[1e-6, 1e-5]),
        "rope_theta": 10000.0,
        "compress_rope_theta": random.pick(&[40000.0, 160000.0]),
        "rope_scaling": rope_scaling,
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    });
    let (batch, length) = match (long, wide) {
        (true, _) => (random.between(1, 2), random.between(261, 300)),
        (_, true) => (random.between(1, 3), random.between(5, 12)),
        _ => (random.between(1, 3), random.between(1, 75)),
    };
    let seed = number + 1000 * attempt;
    let mut random = random.stream(&format!("ids {seed}"));
    let mut ids = || -> Vec<Vec<u32>> {
        (0..batch)
            .map(|_| (0..length).map(|_| random.below(vocab) as u32).collect())
            .collect()
    };
    RandomCase {
        config,
        seed,
        ids: ids(),
        next_ids: (draft > 0).then(ids),
    }
}

/// A small model with one key of the configuration at the end of its range; which one, and how to make others fit. Lists every key
/// of [`RANGES`] at both ends, but for lists and for keys with one value.
pub fn range_ends() -> Vec<(String, Value)> {
    let mut cases = Vec::new();
    for range in RANGES {
        let ends = match range.allowed {
            Allowed::Integer { min, max, .. } if min == max => continue,
            Allowed::Integer { min, max, .. } => [json!(min), json!(max)],
            Allowed::Real { min, max } => [json!(min), json!(max)],
        };
        for end in ends {
            let mut config = small_config();
            let mut set = |key: &str, value: Value| match key.split_once('.') {
                Some((outer, inner)) => config[outer][inner] = value,
                None => config[key] = value,
            };
            let large = end.as_f64().is_some_and(|end| end > 20.0);
            match range.key {
                "compress_ratios" => set("compress_ratios", json!([0, 4, end])),
                "compress_rates.compressed_sparse_attention" => {
                    set("compress_ratios", json!([0, end, 7]));
                    set(range.key, end.clone());
                }
                key => set(key, end.clone()),
            }
            match range.key {
                "num_hidden_layers" if large => {
                    let ratios = [0, 4, 3].iter().cycle().take(256);
                    set("compress_ratios", ratios.copied().collect());
                }
                "num_hidden_layers" => set("compress_ratios", json!([4])),
                "num_hash_layers" if large => {
                    set("num_hidden_layers", json!(256));
                    set("compress_ratios", vec![0; 256].into());
                }
                "num_nextn_predict_layers" if end == json!(1) => {
                    set("compress_ratios", json!([0, 4, 3, 0]));
                }
                // The rotary dims are part of a head, and of an index head where there is one.
                "qk_rope_head_dim" if large => {
                    set("head_dim", end.clone());
                    set("compress_ratios", json!([0, 9, 3]));
                }
                "o_groups" => set("num_attention_heads", end.clone()),
                "num_attention_heads" if !large => set("o_groups", end.clone()),
                "num_experts_per_tok" => set("n_routed_experts", json!(16)),
                "n_routed_experts" if !large => set("num_experts_per_tok", json!(1)),
                "rope_scaling.beta_fast" if !large => set("rope_scaling.beta_slow", end.clone()),
                "rope_scaling.beta_slow" if large => set("rope_scaling.beta_fast", end.clone()),
                _ => {}
            }
            if range.key == "num_hidden_layers" && !large {
                set("num_hash_layers", json!(0));
            }
            cases.push((format!("{} = {end}", range.key), config));
        }
    }
    cases
}

/// Tokens for a configuration of [`range_ends`].
pub fn range_end_case(config: &Value, attempt: u64) -> RandomCase {
    let seed = 7 + attempt;
    let random = Random::new(seed);
    let (vocab, context) = ("vocab_size", "max_position_embeddings");
    let vocab = config[vocab].as_u64().expect("a vocabulary") as usize;
    let length = config[context].as_u64().map_or(9, |most| most.min(9));
    let ids = |name: &str| {
        let mut random = random.stream(name);
        vec![(0..length).map(|_| random.below(vocab) as u32).collect()]
    };
    let has_draft = config["num_nextn_predict_layers"] == json!(1);
    RandomCase {
        config: config.clone(),
        seed,
        ids: ids("ids"),
        next_ids: has_draft.then(|| ids("next ids")),
    }
}

fn small_config() -> Value {
    json!({
        "model_type": "deepseek_v4",
        "vocab_size": 50,
        "hidden_size": 20,
        "moe_intermediate_size": 6,
        "num_hidden_layers": 3,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": 2,
        "head_dim": 17,
        "qk_rope_head_dim": 4,
        "q_lora_rank": 10,
        "o_groups": 2,
        "o_lora_rank": 5,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "num_hash_layers": 1,
        "sliding_window": 3,
        "compress_ratios": [0, 4, 3],
        "compress_rates": { "compressed_sparse_attention": 4 },
        "index_n_heads": 9,
        "index_head_dim": 9,
        "index_topk": 1,
        "hc_mult": 2,
        "hc_sinkhorn_iters": 5,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0,
        "rope_scaling": {
            "type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
            "original_max_position_embeddings": 4096,
        },
        "max_position_embeddings": 64,
        "eos_token_id": 1,
    })
}

/// Any ratio but the overlapped one, odd ones among them.
fn heavy_ratio(random: &mut Random, sparse_ratio: usize) -> usize {
    let ratio = random.between(2, 33);
    if ratio == sparse_ratio {
        ratio + 1
    } else {
        ratio
    }
}

/// The configuration that CPU speed is measured on: 272 M parameters in 8 layers.
pub fn benchmark_config() -> Value {
    json!({
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": 8192,
        "hidden_size": 1024,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 8,
        "num_nextn_predict_layers": 0,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 512,
        "qk_rope_head_dim": 64,
        "q_lora_rank": 256,
        "o_groups": 2,
        "o_lora_rank": 256,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": true,
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "hidden_act": "silu",
        "num_hash_layers": 3,
        "sliding_window": 128,
        "compress_ratios": [0, 0, 4, 128, 4, 128, 4, 128],
        "index_n_heads": 8,
        "index_head_dim": 128,
        "index_topk": 128,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0,
        "rope_scaling": {
            "type": "yarn", "rope_type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
            "original_max_position_embeddings": 65536,
        },
        "max_position_embeddings": 1048576,
        "attention_bias": false,
        "tie_word_embeddings": false,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
    })
}

/// Writes the model of [`benchmark_config`], about 1.1 GB.
///
/// # Errors
/// As [`write_model`].
pub fn write_benchmark_model(folder: &Path) -> Result<(), Box<dyn Error>> {
    write_model(folder, &benchmark_config(), 1)
}

/// Writes `config.json` and `model.safetensors` into `folder`, which is made if it isn't there. The weights are drawn
/// tensor by tensor from `seed` and the tensor's name.
///
/// # Errors
/// A configuration outside the ranges; files that cannot be written.
pub fn write_model(folder: &Path, config: &Value, seed: u64) -> Result<(), Box<dyn Error>> {
    let text = serde_json::to_string_pretty(config)?;
    let typed = Config::from_json(text.as_bytes())?;
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), text)?;

    let random = Random::new(seed);
    let tensors = expected_tensors(&typed);
    let specs = tensors.iter().map(|tensor| TensorSpec {
        name: tensor.name.clone(),
        // Both integer types occur in checkpoints.
        dtype: if is_expert_table(tensor) {
            [Dtype::I64, Dtype::I32][(seed % 2) as usize]
        } else {
            Dtype::F32
        },
        shape: tensor.shape.clone(),
    });
    let specs: Vec<TensorSpec> = specs.collect();
    let mut writer = Writer::create(&folder.join("model.safetensors"), specs.clone())?;
    for (tensor, spec) in tensors.iter().zip(&specs) {
        let mut random = random.stream(&tensor.name);
        let bytes = if is_expert_table(tensor) {
            expert_table(tensor, typed.n_routed_experts, spec.dtype, &mut random)
        } else {
            let (mean, deviation) = distribution(tensor);
            let count: usize = tensor.shape.iter().product();
            (0..count)
                .flat_map(|_| (mean + random.spread(deviation)).to_le_bytes())
                .collect()
        };
        writer.tensor(&tensor.name, &bytes)?;
    }
    writer.finish()?;
    Ok(())
}

/// Writes the model in `from` again into `to`, float tensors in the type that `dtype_of` gives each (f32 or bf16, values unchanged
/// if they fit), over `shards` files with an index if there is more than one.
///
/// # Errors
/// Files that cannot be read or written.
pub fn rewrite_model(
    from: &Path,
    to: &Path,
    shards: usize,
    dtype_of: impl Fn(&str) -> Dtype,
) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(to)?;
    std::fs::copy(from.join("config.json"), to.join("config.json"))?;
    let file = SafetensorsFile::open(&from.join("model.safetensors"))?;
    let tensors: Vec<_> = file.tensors().collect();
    let mut weight_map = BTreeMap::new();
    for shard in 0..shards {
        let name = match shards {
            1 => "model.safetensors".into(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let here = || tensors.iter().skip(shard).step_by(shards);
        let dtype = |tensor: &Tensor| match tensor.dtype {
            Dtype::F32 | Dtype::BF16 => dtype_of(tensor.name),
            other => other,
        };
        let specs = here().map(|tensor| TensorSpec {
            name: tensor.name.into(),
            dtype: dtype(tensor),
            shape: tensor.shape.to_vec(),
        });
        let mut writer = Writer::create(&to.join(&name), specs.collect())?;
        for tensor in here() {
            let bytes: Vec<u8> = match (tensor.dtype, dtype(tensor)) {
                (a, b) if a == b => tensor.bytes.to_vec(),
                (_, Dtype::BF16) => {
                    let values = tensor.to_f32()?.into_iter().map(half::bf16::from_f32);
                    values.flat_map(half::bf16::to_le_bytes).collect()
                }
                _ => {
                    let values = tensor.to_f32()?.into_iter();
                    values.flat_map(f32::to_le_bytes).collect()
                }
            };
            writer.tensor(tensor.name, &bytes)?;
            weight_map.insert(tensor.name.to_string(), name.clone());
        }
        writer.finish()?;
    }
    if shards > 1 {
        let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
        std::fs::write(to.join("model.safetensors.index.json"), index.to_string())?;
    }
    Ok(())
}

fn is_expert_table(tensor: &ExpectedTensor) -> bool {
    tensor.name.ends_with(".tid2eid")
}

/// Rows of distinct experts.
fn expert_table(
    tensor: &ExpectedTensor,
    experts: usize,
    dtype: Dtype,
    random: &mut Random,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..tensor.shape[0] {
        // A partial Fisher-Yates shuffle, with only the touched places stored.
        let mut moved = BTreeMap::new();
        for place in 0..tensor.shape[1] {
            let from = random.between(place, experts - 1);
            let expert = *moved.get(&from).unwrap_or(&from);
            let here = *moved.get(&place).unwrap_or(&place);
            moved.insert(from, here);
            match dtype {
                Dtype::I64 => bytes.extend((expert as i64).to_le_bytes()),
                _ => bytes.extend((expert as i32).to_le_bytes()),
            }
        }
    }
    bytes
}

/// Mean and standard deviation of a tensor's values: nothing is zero, nothing saturates, and logits have a standard
/// deviation of about 2.
fn distribution(tensor: &ExpectedTensor) -> (f32, f32) {
    let is = |end: &str| tensor.name.ends_with(end);
    let inputs = *tensor.shape.last().unwrap_or(&1) as f32;
    let by_inputs = |gain: f32| (0.0, gain / inputs.sqrt());
    match () {
        () if is("norm.weight") => (1.0, 0.2),
        () if is("hc_attn_scale") || is("hc_ffn_scale") || is("hc_head_scale") => (0.8, 0.2),
        () if is("_base") || is(".attn_sink") => (0.0, 0.5),
        () if is(".ape") => (0.0, 0.7),
        () if is(".gate.bias") => (0.0, 0.1),
        () if is("embed.weight") => (0.0, 1.0),
        () if is("head.weight") => by_inputs(2.0),
        () if is("gate.weight") || is("weights_proj.weight") => by_inputs(1.0),
        () => by_inputs(1.2),
    }
}
