//! The published names of tensors that a checkpoint has under the names of the `transformers` library.
//!
//! Published names stay what they are. Sources: the official conversion script; the library's conversion table for `deepseek_v4`.

/// What a stored tensor holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Published {
    One(String),
    /// Matrices of all routed experts, `[E, rows, columns]`: those that lie one above the other, in order.
    Experts {
        /// `layers.3.ffn.experts`
        at: String,
        /// `w1` and `w3`, or `w2`
        matrices: &'static [&'static str],
    },
}

/// The published name or names of a tensor.
pub(super) fn published(stored: &str) -> Published {
    let mut words: Vec<&str> = stored.split('.').collect();
    if words.first() == Some(&"model") && words.len() > 1 {
        words.remove(0);
    }
    let stacked = words.iter().position(|&word| word == "experts");
    if let Some(at) = stacked
        && let Some(matrices) = match words.get(at + 1) {
            Some(&"gate_up_proj") => Some(&["w1", "w3"][..]),
            Some(&"down_proj") => Some(&["w2"][..]),
            _ => None,
        }
        && matches!(words[at + 2..], [] | ["weight"])
    {
        return Published::Experts {
            at: renamed(&words[..=at]),
            matrices,
        };
    }
    Published::One(renamed(&words))
}

fn renamed(words: &[&str]) -> String {
    // `compressor.indexer.…` holds the indexer and the indexer's own compressor.
    let nested = words
        .windows(2)
        .position(|pair| pair == ["compressor", "indexer"]);
    let own = ["kv_proj", "gate_proj", "position_bias", "kv_norm"];
    let mut names: Vec<String> = Vec::new();
    for (index, &word) in words.iter().enumerate() {
        let in_compressor = words[..index].contains(&"compressor");
        let in_attention = words[..index]
            .iter()
            .any(|w| *w == "self_attn" || *w == "attn");
        let name = match word {
            "compressor" if nested == Some(index) => continue,
            "indexer" if nested == Some(index.wrapping_sub(1)) => {
                match words.get(index + 1).is_some_and(|next| own.contains(next)) {
                    true => "indexer.compressor",
                    false => "indexer",
                }
            }
            "scorer" if nested.is_some() => continue,
            "self_attn" => "attn",
            "mlp" => "ffn",
            "embed_tokens" => "embed",
            "lm_head" => "head",
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" => "ffn_norm",
            "q_a_proj" => "wq_a",
            "q_a_norm" | "q_a_layernorm" => "q_norm",
            "q_b_proj" => "wq_b",
            "kv_proj" => "wkv",
            "kv_norm" if in_compressor => "norm",
            "o_a_proj" => "wo_a",
            "o_b_proj" => "wo_b",
            "sinks" if in_attention => "attn_sink",
            "position_bias" => "ape",
            "gate_proj" if in_compressor => "wgate",
            "gate_proj" => "w1",
            "down_proj" => "w2",
            "up_proj" => "w3",
            "e_score_correction_bias" => "bias",
            "weight_scale_inv" => "scale",
            "attn_hc" | "ffn_hc" => {
                names.push(format!("hc_{}", &word[..word.len() - 3]));
                continue;
            }
            "hc_head" => {
                names.push(word.into());
                continue;
            }
            other => other,
        };
        match names.last_mut() {
            // `attn_hc.fn` is `hc_attn_fn`, `hc_head.hc_fn` is `hc_head_fn`.
            Some(last) if last.starts_with("hc_") => {
                last.push('_');
                last.push_str(name.strip_prefix("hc_").unwrap_or(name));
            }
            _ => names.push(name.into()),
        }
    }
    names.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Config;
    use crate::weights::expected_tensors;

    #[test]
    fn published_names_stay() {
        for tensor in expected_tensors(&Config::flash()) {
            assert_eq!(published(&tensor.name), Published::One(tensor.name));
        }
    }

    #[test]
    fn names_of_the_library_become_published_ones() {
        for (stored, expected) in [
            ("model.embed_tokens.weight", "embed.weight"),
            ("lm_head.weight", "head.weight"),
            ("model.norm.weight", "norm.weight"),
            ("model.hc_head.hc_base", "hc_head_base"),
            ("model.layers.3.attn_hc.fn", "layers.3.hc_attn_fn"),
            ("model.layers.3.ffn_hc.scale", "layers.3.hc_ffn_scale"),
            (
                "model.layers.3.input_layernorm.weight",
                "layers.3.attn_norm.weight",
            ),
            ("model.layers.3.self_attn.sinks", "layers.3.attn.attn_sink"),
            (
                "model.layers.3.self_attn.q_a_norm.weight",
                "layers.3.attn.q_norm.weight",
            ),
            (
                "model.layers.3.self_attn.kv_norm.weight",
                "layers.3.attn.kv_norm.weight",
            ),
            (
                "model.layers.3.self_attn.o_b_proj.weight_scale_inv",
                "layers.3.attn.wo_b.scale",
            ),
            (
                "model.layers.3.self_attn.compressor.gate_proj.weight",
                "layers.3.attn.compressor.wgate.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.kv_norm.weight",
                "layers.3.attn.compressor.norm.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.position_bias",
                "layers.3.attn.indexer.compressor.ape",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.kv_norm.weight",
                "layers.3.attn.indexer.compressor.norm.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.q_b_proj.weight",
                "layers.3.attn.indexer.wq_b.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.scorer.weights_proj.weight",
                "layers.3.attn.indexer.weights_proj.weight",
            ),
            (
                "model.layers.3.mlp.gate.e_score_correction_bias",
                "layers.3.ffn.gate.bias",
            ),
            (
                "model.layers.3.mlp.shared_experts.up_proj.weight",
                "layers.3.ffn.shared_experts.w3.weight",
            ),
            (
                "model.layers.3.mlp.experts.5.gate_proj.weight",
                "layers.3.ffn.experts.5.w1.weight",
            ),
        ] {
            assert_eq!(published(stored), Published::One(expected.into()));
        }
        for (stored, matrices) in [("gate_up_proj", &["w1", "w3"][..]), ("down_proj", &["w2"])] {
            assert_eq!(
                published(&format!("model.layers.3.mlp.experts.{stored}")),
                Published::Experts {
                    at: "layers.3.ffn.experts".into(),
                    matrices
                }
            );
        }
    }
}
