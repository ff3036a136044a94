//! JSON to [`Config`], with every problem found in one go.
//!
//! Each `Reader` method reports what is wrong and returns `None`; rules between fields are looked at only where the
//! fields themselves are fine, so that one mistake is reported once.

use serde_json::{Map, Value};

use super::ranges::{Allowed, range_of};
use super::{Config, ConfigError, ExpertFormat, LayerKind, Problem, WeightFormat, Yarn};

/// Keys that must hold one value, because the others would compute something else. Missing keys mean this value.
const FIXED: &[(&str, Fixed)] = &[
    ("model_type", Fixed::Text("deepseek_v4")),
    ("scoring_func", Fixed::Text("sqrtsoftplus")),
    ("topk_method", Fixed::Text("noaux_tc")),
    ("hidden_act", Fixed::Text("silu")),
    ("norm_topk_prob", Fixed::Bool(true)),
    ("attention_bias", Fixed::Bool(false)),
    ("tie_word_embeddings", Fixed::Bool(false)),
];

const QUANTIZATION_FIXED: &[(&str, Fixed)] = &[
    ("quantization_config.quant_method", Fixed::Text("fp8")),
    ("quantization_config.fmt", Fixed::Text("e4m3")),
    ("quantization_config.scale_fmt", Fixed::Text("ue8m0")),
];

/// Layers of the draft module may be listed after the main ones; more than this many is no V4 model.
const MAX_DRAFT_ENTRIES: usize = 16;

enum Fixed {
    Text(&'static str),
    Bool(bool),
}

pub(super) fn config(value: &Value) -> Result<Config, ConfigError> {
    let mut reader = Reader {
        root: value,
        problems: Vec::new(),
    };
    let config = match value {
        Value::Object(_) => reader.config(),
        other => {
            reader.wrong_type(
                "the whole text",
                other,
                "an object with the keys of a model configuration",
            );
            None
        }
    };
    match config {
        Some(config) if reader.problems.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid {
            path: None,
            problems: reader.problems,
        }),
    }
}

struct Reader<'a> {
    root: &'a Value,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn config(&mut self) -> Option<Config> {
        self.fixed(FIXED);
        self.integer("num_key_value_heads");
        self.integer("n_shared_experts");
        // Read everything before giving up on anything: `?` only after the last report.
        let vocab_size = self.integer("vocab_size");
        let hidden_size = self.integer("hidden_size");
        let num_hidden_layers = self.integer("num_hidden_layers");
        let num_nextn_predict_layers = self.integer("num_nextn_predict_layers");
        let num_attention_heads = self.integer("num_attention_heads");
        let head_dim = self.integer("head_dim");
        let qk_rope_head_dim = self.integer("qk_rope_head_dim");
        let q_lora_rank = self.integer("q_lora_rank");
        let o_groups = self.integer("o_groups");
        let o_lora_rank = self.integer("o_lora_rank");
        let sliding_window = self.integer("sliding_window");
        let index_n_heads = self.integer("index_n_heads");
        let index_head_dim = self.integer("index_head_dim");
        let index_topk = self.integer("index_topk");
        let n_routed_experts = self.integer("n_routed_experts");
        let num_experts_per_tok = self.integer("num_experts_per_tok");
        let moe_intermediate_size = self.integer("moe_intermediate_size");
        let num_hash_layers = self.integer("num_hash_layers");
        let routed_scaling_factor = self.real("routed_scaling_factor");
        let swiglu_limit = self.real("swiglu_limit");
        let hc_mult = self.integer("hc_mult");
        let hc_sinkhorn_iters = self.integer("hc_sinkhorn_iters");
        let hc_eps = self.real("hc_eps");
        let rms_norm_eps = self.real("rms_norm_eps");
        let rope_theta = self.real("rope_theta");
        let compress_rope_theta = self.real("compress_rope_theta");
        let yarn = self.yarn();
        let max_position_embeddings = self.integer("max_position_embeddings");
        let layers = self.layers(num_hidden_layers, num_nextn_predict_layers);
        let bos_token_id = self.token_ids("bos_token_id", vocab_size);
        let eos_token_ids = self.token_ids("eos_token_id", vocab_size);
        let weight_format = self.weight_format();

        self.at_most(
            ("qk_rope_head_dim", qk_rope_head_dim),
            ("head_dim", head_dim),
        );
        let has_indexer = layers
            .iter()
            .flatten()
            .any(|layer| matches!(layer, LayerKind::CompressedSparse { .. }));
        if has_indexer {
            self.at_most(
                ("qk_rope_head_dim", qk_rope_head_dim),
                ("index_head_dim", index_head_dim),
            );
        }
        self.divides(
            ("o_groups", o_groups),
            ("num_attention_heads", num_attention_heads),
        );
        self.at_most(
            ("num_experts_per_tok", num_experts_per_tok),
            ("n_routed_experts", n_routed_experts),
        );
        self.at_most(
            ("num_hash_layers", num_hash_layers),
            ("num_hidden_layers", num_hidden_layers),
        );

        Some(Config {
            vocab_size: vocab_size?,
            hidden_size: hidden_size?,
            num_hidden_layers: num_hidden_layers?,
            num_nextn_predict_layers: num_nextn_predict_layers?,
            num_attention_heads: num_attention_heads?,
            head_dim: head_dim?,
            qk_rope_head_dim: qk_rope_head_dim?,
            q_lora_rank: q_lora_rank?,
            o_groups: o_groups?,
            o_lora_rank: o_lora_rank?,
            sliding_window: sliding_window?,
            layers: layers?,
            index_n_heads: index_n_heads?,
            index_head_dim: index_head_dim?,
            index_topk: index_topk?,
            n_routed_experts: n_routed_experts?,
            num_experts_per_tok: num_experts_per_tok?,
            moe_intermediate_size: moe_intermediate_size?,
            num_hash_layers: num_hash_layers?,
            routed_scaling_factor: routed_scaling_factor?,
            swiglu_limit: swiglu_limit?,
            hc_mult: hc_mult?,
            hc_sinkhorn_iters: hc_sinkhorn_iters?,
            hc_eps: hc_eps?,
            rms_norm_eps: rms_norm_eps?,
            rope_theta: rope_theta?,
            compress_rope_theta: compress_rope_theta?,
            yarn: yarn?,
            max_position_embeddings: max_position_embeddings?,
            bos_token_id: bos_token_id?.first().copied(),
            eos_token_ids: eos_token_ids?,
            weight_format: weight_format?,
        })
    }

    // One key at a time.

    /// The value at a dotted path; `null` counts as absent.
    fn find(&self, key: &str) -> Option<&'a Value> {
        let mut value = self.root;
        for part in key.split('.') {
            value = value.get(part)?;
        }
        if value.is_null() { None } else { Some(value) }
    }

    fn integer(&mut self, key: &'static str) -> Option<usize> {
        let range = range_of(key);
        let Some(value) = self.find(key) else {
            if range.default.is_none() {
                self.missing(key, range.allowed);
            }
            return range.default.map(|default| default as usize);
        };
        self.integer_value(key, value, range.allowed)
    }

    fn integer_value(&mut self, key: &str, value: &Value, allowed: Allowed) -> Option<usize> {
        match value.as_u64() {
            Some(number) if allowed.holds_integer(number) => usize::try_from(number).ok(),
            _ if value.is_i64() || value.is_u64() => {
                self.problems.push(Problem::OutOfRange {
                    key: key.into(),
                    value: shown(value),
                    expected: allowed.to_string(),
                });
                None
            }
            _ => {
                self.wrong_type(key, value, &allowed.to_string());
                None
            }
        }
    }

    fn real(&mut self, key: &'static str) -> Option<f64> {
        let range = range_of(key);
        let Some(value) = self.find(key) else {
            if range.default.is_none() {
                self.missing(key, range.allowed);
            }
            return range.default;
        };
        let Some(number) = value.as_f64() else {
            self.wrong_type(key, value, &range.allowed.to_string());
            return None;
        };
        if !range.allowed.holds_real(number) {
            self.problems.push(Problem::OutOfRange {
                key: key.into(),
                value: shown(value),
                expected: range.allowed.to_string(),
            });
            return None;
        }
        Some(number)
    }

    fn fixed(&mut self, table: &[(&str, Fixed)]) {
        for (key, fixed) in table {
            let Some(value) = self.find(key) else {
                continue;
            };
            let supported = match fixed {
                Fixed::Text(text) => Value::from(*text),
                Fixed::Bool(bool) => Value::from(*bool),
            };
            if *value != supported {
                self.unsupported(key, value, &shown(&supported));
            }
        }
    }

    /// One id or a list of them, below the vocabulary's size.
    fn token_ids(&mut self, key: &str, vocab_size: Option<usize>) -> Option<Vec<u32>> {
        let Some(value) = self.find(key) else {
            return Some(Vec::new());
        };
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        let max = vocab_size.map_or(u64::from(u32::MAX), |size| size as u64 - 1);
        let allowed = Allowed::Integer {
            min: 0,
            max,
            multiple_of: 1,
        };
        let ids: Vec<_> = values
            .iter()
            .map(|value| self.integer_value(key, value, allowed))
            .collect();
        ids.into_iter()
            .map(|id| id.and_then(|id| u32::try_from(id).ok()))
            .collect()
    }

    // Groups of keys.

    fn yarn(&mut self) -> Option<Option<Yarn>> {
        match self.root.get("rope_scaling") {
            None => {
                self.problems.push(Problem::Missing {
                    key: "rope_scaling".into(),
                    expected: "an object with YaRN's constants, or null for no scaling".into(),
                });
                return None;
            }
            Some(Value::Null) => return Some(None),
            Some(Value::Object(_)) => {}
            Some(other) => {
                self.wrong_type(
                    "rope_scaling",
                    other,
                    "an object with YaRN's constants, or null for no scaling",
                );
                return None;
            }
        }
        for key in ["rope_scaling.rope_type", "rope_scaling.type"] {
            if let Some(value) = self
                .find(key)
                .filter(|value| value.as_str() != Some("yarn"))
            {
                self.unsupported(key, value, "\"yarn\"");
            }
        }
        if self
            .find("rope_scaling.rope_type")
            .or(self.find("rope_scaling.type"))
            .is_none()
        {
            self.problems.push(Problem::Missing {
                key: "rope_scaling.type".into(),
                expected: "\"yarn\"".into(),
            });
        }
        for key in [
            "rope_scaling.attention_factor",
            "rope_scaling.mscale",
            "rope_scaling.mscale_all_dim",
        ] {
            if let Some(value) = self.find(key).filter(|value| value.as_f64() != Some(1.0)) {
                self.unsupported(key, value, "1, which V4 uses,");
            }
        }
        let factor = self.real("rope_scaling.factor");
        let beta_fast = self.real("rope_scaling.beta_fast");
        let beta_slow = self.real("rope_scaling.beta_slow");
        let original = self.integer("rope_scaling.original_max_position_embeddings");
        if let (Some(fast), Some(slow)) = (beta_fast, beta_slow)
            && fast < slow
        {
            self.conflict(
                &[
                    ("rope_scaling.beta_fast", &fast),
                    ("rope_scaling.beta_slow", &slow),
                ],
                "beta_fast must be at least beta_slow",
            );
        }
        Some(Some(Yarn {
            factor: factor?,
            beta_fast: beta_fast?,
            beta_slow: beta_slow?,
            original_max_position_embeddings: original?,
        }))
    }

    fn weight_format(&mut self) -> Option<WeightFormat> {
        let experts = match self
            .find("expert_dtype")
            .map(|value| (value, value.as_str()))
        {
            None | Some((_, Some("fp8"))) => ExpertFormat::Fp8,
            Some((_, Some("fp4"))) => ExpertFormat::Fp4,
            Some((value, _)) => {
                self.unsupported("expert_dtype", value, "\"fp4\" or \"fp8\"");
                return None;
            }
        };
        match self.find("quantization_config") {
            None => return Some(WeightFormat::Plain),
            Some(Value::Object(_)) => {}
            Some(other) => {
                self.wrong_type("quantization_config", other, "an object or null");
                return None;
            }
        }
        self.fixed(QUANTIZATION_FIXED);
        let block = "quantization_config.weight_block_size";
        if let Some(value) = self
            .find(block)
            .filter(|value| **value != serde_json::json!([128, 128]))
        {
            self.unsupported(block, value, "[128, 128]");
        }
        Some(WeightFormat::Fp8 { experts })
    }

    /// The kind of every main layer, from `compress_ratios`, from `layer_types` and `compress_rates`, or from both.
    fn layers(&mut self, count: Option<usize>, drafts: Option<usize>) -> Option<Vec<LayerKind>> {
        let before = self.problems.len();
        let sparse_ratio = self.integer("compress_rates.compressed_sparse_attention");
        let heavy_ratio = self.integer("compress_rates.heavily_compressed_attention");
        let ratios = self.ratios(count, drafts);
        let types = self.layer_types(count);
        if self.problems.len() > before || count.is_none() || drafts.is_none() {
            return None;
        }
        let (sparse_ratio, heavy_ratio) = (sparse_ratio?, heavy_ratio?);
        let by_type = |name: &str| match name {
            "sliding_attention" => LayerKind::Window,
            "compressed_sparse_attention" => LayerKind::CompressedSparse {
                ratio: sparse_ratio,
            },
            _ => LayerKind::HeavilyCompressed { ratio: heavy_ratio },
        };
        let by_ratio = |ratio: usize| match ratio {
            0 => LayerKind::Window,
            ratio if ratio == sparse_ratio => LayerKind::CompressedSparse { ratio },
            ratio => LayerKind::HeavilyCompressed { ratio },
        };
        match (ratios, types) {
            (None, None) => {
                self.problems.push(Problem::Missing {
                    key: "compress_ratios".into(),
                    expected: "a list with one ratio per layer (or `layer_types` a list of names)"
                        .into(),
                });
                None
            }
            (Some(ratios), None) => Some(ratios.into_iter().map(by_ratio).collect()),
            (None, Some(types)) => Some(types.into_iter().map(by_type).collect()),
            (Some(ratios), Some(types)) => self.agreed_layers(&ratios, &types, by_type),
        }
    }

    fn agreed_layers(
        &mut self,
        ratios: &[usize],
        types: &[&str],
        by_type: impl Fn(&str) -> LayerKind,
    ) -> Option<Vec<LayerKind>> {
        // Without stated rates the ratio list decides how long the heavy blocks are.
        let heavy_is_stated = self
            .find("compress_rates.heavily_compressed_attention")
            .is_some();
        let mut layers = Vec::with_capacity(types.len());
        for (index, (&ratio, &name)) in ratios.iter().zip(types).enumerate() {
            let mut layer = by_type(name);
            if let (LayerKind::HeavilyCompressed { .. }, false, 1..) =
                (layer, heavy_is_stated, ratio)
            {
                layer = LayerKind::HeavilyCompressed { ratio };
            }
            if layer.ratio() != ratio {
                self.conflict(
                    &[
                        (&format!("compress_ratios[{index}]"), &ratio),
                        (&format!("layer_types[{index}]"), &format!("\"{name}\"")),
                    ],
                    &format!("this type has ratio {} (`compress_rates`)", layer.ratio()),
                );
            }
            layers.push(layer);
        }
        Some(layers)
    }

    fn ratios(&mut self, count: Option<usize>, drafts: Option<usize>) -> Option<Vec<usize>> {
        let key = "compress_ratios";
        let values = self.list(key, "a list with one ratio per layer")?;
        let allowed = range_of(key).allowed;
        let mut ratios = Vec::new();
        for (index, value) in values.iter().enumerate() {
            if value.as_u64() == Some(0) {
                ratios.push(0);
            } else if value
                .as_u64()
                .is_some_and(|ratio| allowed.holds_integer(ratio))
            {
                ratios.extend(value.as_u64().map(|ratio| ratio as usize));
            } else {
                self.problems.push(Problem::OutOfRange {
                    key: format!("{key}[{index}]"),
                    value: shown(value),
                    expected: format!("0 or {allowed}"),
                });
            }
        }
        let (count, drafts) = (count?, drafts?);
        if values.len() < count || values.len() > count + drafts.max(MAX_DRAFT_ENTRIES) {
            self.conflict(
                &[
                    ("the length of compress_ratios", &values.len()),
                    ("num_hidden_layers", &count),
                    ("num_nextn_predict_layers", &drafts),
                ],
                "there must be one ratio per layer, then one per draft layer",
            );
            return None;
        }
        for (index, ratio) in ratios
            .iter()
            .enumerate()
            .skip(count)
            .filter(|(_, ratio)| **ratio != 0)
        {
            self.problems.push(Problem::Unsupported {
                key: format!("{key}[{index}]"),
                value: ratio.to_string(),
                supported: "0 (the window) for a draft layer".into(),
            });
        }
        ratios.truncate(count);
        Some(ratios)
    }

    fn layer_types(&mut self, count: Option<usize>) -> Option<Vec<&'a str>> {
        let key = "layer_types";
        let values = self.list(key, "a list with one name per layer")?;
        const NAMES: [&str; 3] = [
            "sliding_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ];
        let mut names = Vec::new();
        for (index, value) in values.iter().enumerate() {
            match value.as_str().filter(|name| NAMES.contains(name)) {
                Some(name) => names.push(name),
                None => self.unsupported(
                    &format!("{key}[{index}]"),
                    value,
                    &format!("one of {NAMES:?}"),
                ),
            }
        }
        let count = count?;
        if values.len() != count {
            self.conflict(
                &[
                    ("the length of layer_types", &values.len()),
                    ("num_hidden_layers", &count),
                ],
                "there must be one type per layer",
            );
        }
        Some(names)
    }

    fn list(&mut self, key: &str, expected: &str) -> Option<&'a [Value]> {
        match self.find(key)? {
            Value::Array(values) => Some(values),
            other => {
                self.wrong_type(key, other, expected);
                None
            }
        }
    }

    // Rules between two fields.

    fn at_most(&mut self, small: (&str, Option<usize>), large: (&str, Option<usize>)) {
        if let (Some(a), Some(b)) = (small.1, large.1)
            && a > b
        {
            let rule = format!("`{}` must be at most `{}`", small.0, large.0);
            self.conflict(&[(small.0, &a), (large.0, &b)], &rule);
        }
    }

    fn divides(&mut self, divisor: (&str, Option<usize>), number: (&str, Option<usize>)) {
        if let (Some(a), Some(b)) = (divisor.1, number.1)
            && b % a != 0
        {
            let rule = format!("`{}` must divide `{}`", divisor.0, number.0);
            self.conflict(&[(divisor.0, &a), (number.0, &b)], &rule);
        }
    }

    // Reports.

    fn missing(&mut self, key: &str, allowed: Allowed) {
        self.problems.push(Problem::Missing {
            key: key.into(),
            expected: allowed.to_string(),
        });
    }

    fn wrong_type(&mut self, key: &str, value: &Value, expected: &str) {
        self.problems.push(Problem::WrongType {
            key: key.into(),
            value: shown(value),
            expected: expected.into(),
        });
    }

    fn unsupported(&mut self, key: &str, value: &Value, supported: &str) {
        self.problems.push(Problem::Unsupported {
            key: key.into(),
            value: shown(value),
            supported: supported.into(),
        });
    }

    fn conflict(&mut self, values: &[(&str, &dyn ToString)], rule: &str) {
        let values = values
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        self.problems.push(Problem::Conflict {
            values,
            rule: rule.into(),
        });
    }
}

/// A value as it stands in the text, cut where it would fill the screen.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Object(map) => return format!("an object with {} keys", Map::len(map)),
        Value::Array(list) if list.len() > 8 => return format!("a list of {}", list.len()),
        other => other.to_string(),
    };
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}
