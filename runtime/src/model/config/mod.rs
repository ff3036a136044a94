//! The model configuration: HF `config.json` as typed fields, every one inside a stated range.
//!
//! Needs: the keys of the published checkpoints (`compress_ratios`), or those a library saves (`layer_types` and
//! `compress_rates`); both may be there if they agree. Keeps: a [`Config`] can only be made by reading, so whoever
//! holds one may rely on [`RANGES`] and on every rule of `read.rs` without looking again.
//! Keys that do not change what the model computes are ignored.

mod error;
mod ranges;
mod read;

use std::path::Path;

pub use error::{ConfigError, Problem};
pub use ranges::{Allowed, RANGES, Range};

/// What the keys of one layer are, besides the sliding window that every layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerKind {
    /// The sliding window only (ratio 0, `sliding_attention`).
    Window,
    /// Overlapping blocks of `ratio` tokens, of whose entries an indexer picks a few (`compressed_sparse_attention`).
    CompressedSparse { ratio: usize },
    /// Blocks of `ratio` tokens, all attended (`heavily_compressed_attention`).
    HeavilyCompressed { ratio: usize },
}

impl LayerKind {
    /// Tokens per compressed entry; 0 where nothing is compressed.
    pub fn ratio(self) -> usize {
        match self {
            LayerKind::Window => 0,
            LayerKind::CompressedSparse { ratio } | LayerKind::HeavilyCompressed { ratio } => ratio,
        }
    }

    pub fn is_compressed(self) -> bool {
        self != LayerKind::Window
    }

    /// How many blocks of tokens one entry is pooled from: 2 where blocks overlap. The compressor's projections are
    /// this many times as wide as an entry.
    pub fn blocks_per_entry(self) -> usize {
        match self {
            LayerKind::Window => 0,
            LayerKind::CompressedSparse { .. } => 2,
            LayerKind::HeavilyCompressed { .. } => 1,
        }
    }

    /// The word used for this kind in `layer_types`.
    pub fn type_name(self) -> &'static str {
        match self {
            LayerKind::Window => "sliding_attention",
            LayerKind::CompressedSparse { .. } => "compressed_sparse_attention",
            LayerKind::HeavilyCompressed { .. } => "heavily_compressed_attention",
        }
    }
}

/// YaRN scaling of the rotary frequencies, used by the layers that compress.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub original_max_position_embeddings: usize,
}

/// How the checkpoint stores the weights of linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// f32, bf16 or f16, no scales.
    Plain,
    /// E4M3 with one scale per 128 x 128 tile; routed experts apart.
    Fp8 { experts: ExpertFormat },
}

/// How a checkpoint with FP8 linears stores its routed experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertFormat {
    /// Two E2M1 codes in a byte, one scale per 32 inputs of an output row.
    Fp4,
    /// As the other linears.
    Fp8,
}

/// A DeepSeek-V4 configuration. Field names are the keys of `config.json`; ranges in [`RANGES`].
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_nextn_predict_layers: usize,
    pub num_attention_heads: usize,
    pub head_dim: usize,
    /// Rotated dims at the end of each head, also of the indexer's.
    pub qk_rope_head_dim: usize,
    pub q_lora_rank: usize,
    pub o_groups: usize,
    /// Per group.
    pub o_lora_rank: usize,
    pub sliding_window: usize,
    /// One per main layer; the layers of the draft module see the window only.
    pub layers: Vec<LayerKind>,
    pub index_n_heads: usize,
    pub index_head_dim: usize,
    pub index_topk: usize,
    pub n_routed_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    /// The first so many layers pick experts by token id.
    pub num_hash_layers: usize,
    pub routed_scaling_factor: f64,
    pub swiglu_limit: f64,
    pub hc_mult: usize,
    pub hc_sinkhorn_iters: usize,
    pub hc_eps: f64,
    pub rms_norm_eps: f64,
    /// Of the layers that see the window only.
    pub rope_theta: f64,
    /// Of the layers that compress.
    pub compress_rope_theta: f64,
    /// Also of the layers that compress; `None` for `"rope_scaling": null`.
    pub yarn: Option<Yarn>,
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    /// Any of these ends generation.
    pub eos_token_ids: Vec<u32>,
    pub weight_format: WeightFormat,
}

/// Published configurations take about 2 KB.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

impl Config {
    /// Reads `config.json` from a model's folder, or the file at `path` itself.
    ///
    /// # Errors
    /// [`ConfigError`]: not readable, not JSON, or all the problems with its values at once.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let path = if path.is_dir() {
            path.join("config.json")
        } else {
            path.to_path_buf()
        };
        let io_error = |source| ConfigError::Read {
            path: path.clone(),
            source,
        };
        let length = std::fs::metadata(&path).map_err(io_error)?.len();
        if length > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLong {
                path,
                length,
                limit: MAX_CONFIG_BYTES,
            });
        }
        let text = std::fs::read(&path).map_err(io_error)?;
        Config::from_json(&text).map_err(|error| error.in_file(&path))
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// [`ConfigError`]: not JSON, or all the problems with its values at once.
    pub fn from_json(text: &[u8]) -> Result<Config, ConfigError> {
        let value: serde_json::Value = serde_json::from_slice(text)
            .map_err(|source| ConfigError::Json { path: None, source })?;
        read::config(&value)
    }

    /// DeepSeek-V4-Flash: 284 B parameters, 13 B active.
    pub fn flash() -> Config {
        let text = include_bytes!("../builtin/flash.json");
        Config::from_json(text)
            .expect("flash.json is part of the source and read by the unit tests")
    }

    /// DeepSeek-V4-Pro: 1.6 T parameters, 49 B active.
    pub fn pro() -> Config {
        let text = include_bytes!("../builtin/pro.json");
        Config::from_json(text).expect("pro.json is part of the source and read by the unit tests")
    }

    /// Flash at an eighth to a quarter of its width and half its depth: the dimensions of heads, window, entries and streams are the released ones.
    /// For comparisons of devices, of which one is slow.
    pub fn narrow() -> Config {
        let text = include_bytes!("../builtin/narrow.json");
        Config::from_json(text)
            .expect("narrow.json is part of the source and read by the unit tests")
    }

    /// The model of the first `count` layers, without the draft module.
    pub fn first_layers(&self, count: usize) -> Config {
        let layers: Vec<LayerKind> = self.layers.iter().copied().take(count).collect();
        Config {
            num_hidden_layers: layers.len(),
            num_hash_layers: self.num_hash_layers.min(layers.len()),
            num_nextn_predict_layers: 0,
            layers,
            ..self.clone()
        }
    }

    /// Width of one output group: `heads * head_dim / o_groups`.
    pub fn o_group_width(&self) -> usize {
        self.num_attention_heads * self.head_dim / self.o_groups
    }

    /// Coefficients of one hyper-connection site: `N` pre, `N` post, `N * N` comb.
    pub fn hc_coefficients(&self) -> usize {
        self.hc_mult * (2 + self.hc_mult)
    }

    /// Whether layer `index` picks experts by token id.
    pub fn is_hash_layer(&self, index: usize) -> bool {
        index < self.num_hash_layers
    }
}

#[cfg(test)]
mod tests;
