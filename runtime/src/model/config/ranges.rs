//! The stated range of every field: one table, used by the reader and by its messages.

use std::fmt;

/// What one key may hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Allowed {
    Integer {
        min: u64,
        max: u64,
        multiple_of: u64,
    },
    Real {
        min: f64,
        max: f64,
    },
}

/// One line of [`RANGES`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Path of the key in `config.json`.
    pub key: &'static str,
    pub allowed: Allowed,
    /// Taken where the key is missing; `None`: the key must be there.
    pub default: Option<f64>,
}

const fn integer(key: &'static str, min: u64, max: u64) -> Range {
    Range {
        key,
        allowed: Allowed::Integer {
            min,
            max,
            multiple_of: 1,
        },
        default: None,
    }
}

const fn even(key: &'static str, min: u64, max: u64) -> Range {
    Range {
        key,
        allowed: Allowed::Integer {
            min,
            max,
            multiple_of: 2,
        },
        default: None,
    }
}

const fn real(key: &'static str, min: f64, max: f64) -> Range {
    Range {
        key,
        allowed: Allowed::Real { min, max },
        default: None,
    }
}

const fn or(range: Range, default: f64) -> Range {
    Range {
        default: Some(default),
        ..range
    }
}

/// Every numeric key that is read, with what it may hold. `compress_ratios` stands for each of its entries other than 0.
pub const RANGES: &[Range] = &[
    integer("vocab_size", 2, 262_144),
    integer("hidden_size", 16, 16_384),
    integer("num_hidden_layers", 1, 256),
    or(integer("num_nextn_predict_layers", 0, 1), 0.0),
    integer("num_attention_heads", 1, 256),
    or(integer("num_key_value_heads", 1, 1), 1.0),
    integer("head_dim", 16, 512),
    even("qk_rope_head_dim", 2, 512),
    integer("q_lora_rank", 8, 16_384),
    integer("o_groups", 1, 256),
    integer("o_lora_rank", 1, 16_384),
    integer("sliding_window", 1, 1024),
    integer("compress_ratios", 2, 1024),
    or(
        integer("compress_rates.compressed_sparse_attention", 2, 1024),
        4.0,
    ),
    or(
        integer("compress_rates.heavily_compressed_attention", 2, 1024),
        128.0,
    ),
    integer("index_n_heads", 1, 128),
    integer("index_head_dim", 8, 256),
    integer("index_topk", 1, 2048),
    integer("n_routed_experts", 1, 1024),
    or(integer("n_shared_experts", 1, 1), 1.0),
    integer("num_experts_per_tok", 1, 16),
    integer("moe_intermediate_size", 1, 65_536),
    integer("num_hash_layers", 0, 256),
    real("routed_scaling_factor", 1e-3, 1e3),
    real("swiglu_limit", 1e-3, 1e6),
    integer("hc_mult", 1, 8),
    integer("hc_sinkhorn_iters", 1, 64),
    real("hc_eps", 1e-12, 1e-2),
    real("rms_norm_eps", 1e-20, 1e-2),
    real("rope_theta", 2.0, 1e12),
    real("compress_rope_theta", 2.0, 1e12),
    real("rope_scaling.factor", 1.0, 1e4),
    real("rope_scaling.beta_fast", 1e-3, 1e6),
    real("rope_scaling.beta_slow", 1e-3, 1e6),
    integer(
        "rope_scaling.original_max_position_embeddings",
        1,
        16_777_216,
    ),
    integer("max_position_embeddings", 1, 2_097_152),
];

/// The table's line for `key`.
pub(super) fn range_of(key: &str) -> &'static Range {
    RANGES
        .iter()
        .find(|range| range.key == key)
        .expect("keys come from this module's callers, whose tests read them all")
}

impl Allowed {
    /// Whether an integer lies in the range.
    pub fn holds_integer(self, value: u64) -> bool {
        match self {
            Allowed::Integer {
                min,
                max,
                multiple_of,
            } => (min..=max).contains(&value) && value.is_multiple_of(multiple_of),
            Allowed::Real { min, max } => (min..=max).contains(&(value as f64)),
        }
    }

    /// Whether a number lies in the range.
    pub fn holds_real(self, value: f64) -> bool {
        match self {
            Allowed::Integer { .. } => {
                value >= 0.0 && value.fract() == 0.0 && self.holds_integer(value as u64)
            }
            Allowed::Real { min, max } => (min..=max).contains(&value),
        }
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Allowed::Integer { min, max, .. } if min == max => write!(f, "{min}"),
            Allowed::Integer {
                min,
                max,
                multiple_of: 1,
            } => write!(f, "an integer from {min} to {max}"),
            Allowed::Integer {
                min,
                max,
                multiple_of: 2,
            } => write!(f, "an even integer from {min} to {max}"),
            Allowed::Integer {
                min,
                max,
                multiple_of,
            } => {
                write!(f, "a multiple of {multiple_of} from {min} to {max}")
            }
            Allowed::Real { min, max } => write!(f, "a number from {min:?} to {max:?}"),
        }
    }
}
