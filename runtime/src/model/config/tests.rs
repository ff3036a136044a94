use super::*;
use serde_json::{Value, json};

fn golden(case: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(case)
        .join("config.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn read(value: &Value) -> Result<Config, ConfigError> {
    Config::from_json(value.to_string().as_bytes())
}

/// The message for a g1 configuration with some keys replaced (null: removed).
fn message(changes: Value) -> String {
    let mut value = golden("g1_mixed_tiny_mtp");
    for (key, change) in changes.as_object().unwrap() {
        match change {
            Value::Null => drop(value.as_object_mut().unwrap().remove(key)),
            change => value[key] = change.clone(),
        }
    }
    read(&value).unwrap_err().to_string()
}

#[test]
fn golden_and_published_configurations_are_read() {
    use LayerKind::{CompressedSparse, HeavilyCompressed, Window};
    let g1 = read(&golden("g1_mixed_tiny_mtp")).unwrap();
    let (sparse, heavy) = (
        CompressedSparse { ratio: 4 },
        HeavilyCompressed { ratio: 16 },
    );
    assert_eq!(g1.layers, [Window, sparse, heavy, sparse]);
    assert_eq!(
        (g1.num_nextn_predict_layers, g1.eos_token_ids.as_slice()),
        (1, [1].as_slice())
    );
    for case in [
        "g2_real_head_r128",
        "g3_window_only",
        "g4_csa_select",
        "g5_hca_moe6",
    ] {
        assert_eq!(
            read(&golden(case)).unwrap().weight_format,
            WeightFormat::Plain
        );
    }
    let (flash, pro) = (Config::flash(), Config::pro());
    let count = |config: &Config, ratio| {
        config
            .layers
            .iter()
            .filter(|layer| layer.ratio() == ratio)
            .count()
    };
    assert_eq!([0, 4, 128].map(|ratio| count(&flash, ratio)), [2, 21, 20]);
    assert_eq!([0, 4, 128].map(|ratio| count(&pro, ratio)), [0, 30, 31]);
    assert_eq!(
        flash.weight_format,
        WeightFormat::Fp8 {
            experts: ExpertFormat::Fp4
        }
    );
}

#[test]
fn ratios_and_types_say_the_same() {
    let whole = golden("g1_mixed_tiny_mtp");
    let without = |key: &str| {
        let mut value = whole.clone();
        value.as_object_mut().unwrap().remove(key);
        read(&value).unwrap().layers
    };
    let layers = read(&whole).unwrap().layers;
    assert_eq!(without("compress_ratios"), layers);
    assert_eq!(without("layer_types"), layers);
    assert_eq!(without("compress_rates"), layers);
}

#[test]
fn every_range_is_read_and_enforced() {
    let whole = golden("g1_mixed_tiny_mtp");
    for range in RANGES {
        let below = match range.allowed {
            Allowed::Integer { min: 0, .. } => json!(-1),
            Allowed::Integer { min, .. } => json!(min - 1),
            Allowed::Real { .. } => json!(-1.0),
        };
        let above = match range.allowed {
            Allowed::Integer { max, .. } => json!(max + 1),
            Allowed::Real { max, .. } => json!(max * 2.0),
        };
        for wrong in [below, above, json!("8"), json!([8]), json!(8.5e300)] {
            let mut value = whole.clone();
            match range.key.split_once('.') {
                Some((outer, inner)) => value[outer][inner] = wrong.clone(),
                None if range.key == "compress_ratios" => {
                    // One below the least ratio is 1; 0 is the window.
                    value[range.key][1] = wrong.clone();
                }
                None => value[range.key] = wrong.clone(),
            }
            let error = read(&value).unwrap_err();
            let named = error
                .problems()
                .iter()
                .any(|problem| problem.to_string().contains(range.key));
            assert!(named, "{} = {wrong}: {error}", range.key);
        }
    }
}

#[test]
fn all_problems_are_listed_at_once() {
    let message = message(json!({
        "hidden_size": 8, "head_dim": 15, "vocab_size": null, "swiglu_limit": "ten", "hidden_act": "gelu",
        "o_groups": 3, "num_experts_per_tok": 9,
    }));
    assert_eq!(
        message,
        "the model configuration has 7 problems:
  `hidden_act` is \"gelu\"; only \"silu\" is supported
  `vocab_size` is missing; it must be an integer from 2 to 262144
  `hidden_size` is 8; it must be an integer from 16 to 16384
  `head_dim` is 15; it must be an integer from 16 to 512
  `swiglu_limit` is \"ten\"; it must be a number from 0.001 to 1000000.0
  `o_groups` is 3, `num_attention_heads` is 4; `o_groups` must divide `num_attention_heads`
  `num_experts_per_tok` is 9, `n_routed_experts` is 8; `num_experts_per_tok` must be at most `n_routed_experts`"
    );
}

#[test]
fn layer_lists_that_do_not_fit_are_refused() {
    let has = |changes: Value, piece: &str| {
        let message = message(changes);
        assert!(message.contains(piece), "{piece} in {message}");
    };
    has(
        json!({"compress_ratios": [0, 4, 16]}),
        "the length of compress_ratios` is 3",
    );
    has(
        json!({"compress_ratios": [0, 4, 16, 4, 4]}),
        "`compress_ratios[4]` is 4; only 0 (the window)",
    );
    has(
        json!({"compress_ratios": [0, 4, 1, 4, 0]}),
        "`compress_ratios[2]` is 1; it must be 0 or an integer from 2",
    );
    has(
        json!({"compress_ratios": [0, 4, 32, 4, 0]}),
        "`compress_ratios[2]` is 32, `layer_types[2]` is",
    );
    has(
        json!({"compress_ratios": [0, 4, 4, 4, 0]}),
        "this type has ratio 16 (`compress_rates`)",
    );
    has(
        json!({"compress_ratios": 4}),
        "`compress_ratios` is 4; it must be a list",
    );
    has(
        json!({"layer_types": ["sliding_attention"]}),
        "the length of layer_types` is 1",
    );
    has(
        json!({"layer_types": [1, "full", "sliding_attention", null]}),
        "`layer_types[1]` is \"full\"",
    );
    has(
        json!({"compress_ratios": null, "layer_types": null}),
        "`compress_ratios` is missing",
    );
}

#[test]
fn other_rope_and_other_quantisation_are_refused() {
    let has = |changes: Value, piece: &str| {
        let message = message(changes);
        assert!(message.contains(piece), "{piece} in {message}");
    };
    has(json!({"rope_scaling": null}), "`rope_scaling` is missing");
    has(
        json!({"rope_scaling": {"type": "linear", "factor": 2}}),
        "`rope_scaling.type` is \"linear\"",
    );
    has(json!({"rope_scaling": 3}), "`rope_scaling` is 3");
    has(
        json!({"quantization_config": {"quant_method": "gptq"}}),
        "`quantization_config.quant_method` is \"gptq\"",
    );
    has(
        json!({"quantization_config": {"weight_block_size": [32, 32]}}),
        "only [128, 128] is supported",
    );
    has(
        json!({"expert_dtype": "int4"}),
        "`expert_dtype` is \"int4\"",
    );
    has(
        json!({"model_type": "deepseek_v41"}),
        "only \"deepseek_v4\" is supported",
    );
    has(
        json!({"eos_token_id": [1, 128]}),
        "`eos_token_id` is 128; it must be an integer from 0 to 127",
    );
    // No scaling is fine where the key says so.
    let mut value = golden("g3_window_only");
    value["rope_scaling"] = Value::Null;
    assert_eq!(read(&value).unwrap().yarn, None);
}

#[test]
fn text_that_is_no_configuration_is_refused() {
    assert!(matches!(
        Config::from_json(b"{"),
        Err(ConfigError::Json { .. })
    ));
    assert!(
        Config::from_json(b"[]")
            .unwrap_err()
            .to_string()
            .contains("an object with the keys")
    );
    assert!(matches!(
        Config::from_json(&[b'['; 100_000]),
        Err(ConfigError::Json { .. })
    ));
    assert!(matches!(
        Config::read(Path::new("/nonexistent")),
        Err(ConfigError::Read { .. })
    ));
}
