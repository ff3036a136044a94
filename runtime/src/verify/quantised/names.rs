//! What the files and the forward pass call the same value.

use crate::model::config::{Config, LayerKind};

/// Components whose stored values take the place of the computed ones.
pub(super) const REPLACED: [&str; 26] = [
    "attn_hc.pre",
    "attn_hc.post",
    "attn_hc.comb",
    "attn_hc.collapsed",
    "attn.in",
    "attn.qr",
    "attn.q",
    "attn.kv",
    "comp.pooled",
    "comp.kv",
    "idx.pooled",
    "idx.k",
    "idx.q",
    "idx.head_w",
    "attn.core",
    "attn.core_derot",
    "attn.o_a",
    "attn.out",
    "mid",
    "ffn_hc.pre",
    "ffn_hc.post",
    "ffn_hc.comb",
    "ffn_hc.collapsed",
    "ffn.in",
    "moe.expert_out",
    "moe.shared",
];

/// The forward pass's name of a stored component.
pub(super) fn recorded_name(stored: &str) -> &str {
    match stored {
        "attn.qr" => "attn.q_residual",
        "ffn.out" => "moe.out",
        other => other,
    }
}

/// The streams before the head and the draft block, in cases that hold fewer layers than the model they were made with.
pub(super) const LAST_STREAM: &str = "last_stream";

/// The forward pass's name of a stored block border, if the tensor is one of this phase.
pub(super) fn block_border(name: &str, prefix: &str, config: &Config) -> Option<String> {
    match name.strip_prefix(prefix)? {
        LAST_STREAM => Some(format!("hidden.{}", config.layers.len() - 1)),
        "mtp.in" => Some("mtp.block_in".into()),
        "mtp.out" => Some("mtp.block_out".into()),
        name => match name.strip_prefix("stream.")?.parse::<usize>().ok()? {
            0 => Some("embedded".into()),
            layer if layer <= config.layers.len() => Some(format!("hidden.{}", layer - 1)),
            _ => None,
        },
    }
}

/// The other way round.
pub(super) fn stored_border(name: &str) -> Option<String> {
    match name {
        "embedded" => Some("stream.0".into()),
        "mtp.block_in" => Some("mtp.in".into()),
        "mtp.block_out" => Some("mtp.out".into()),
        name => {
            let layer: usize = name.strip_prefix("hidden.")?.parse().ok()?;
            Some(format!("stream.{}", layer + 1))
        }
    }
}

pub(super) fn prefixes(config: &Config) -> Vec<String> {
    let layers = (0..config.layers.len()).map(|layer| format!("L{layer}."));
    layers.chain(["mtp.".to_string()]).collect()
}

/// Tokens per entry in a traced layer, 1 where there are none.
pub(super) fn ratio(config: &Config, prefix: &str) -> usize {
    let layer = prefix
        .strip_prefix('L')
        .and_then(|rest| rest.strip_suffix('.'))
        .and_then(|layer| layer.parse::<usize>().ok());
    let kind = layer.and_then(|layer| config.layers.get(layer));
    kind.copied().map_or(1, LayerKind::ratio).max(1)
}
