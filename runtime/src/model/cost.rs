//! What the parts of a forward pass cost at the least: bytes that have to come from memory or go there, operations of matrix products.
//!
//! Bytes are those of the released formats, each once: codes with their scales, cache entries as records of 584 bytes, the indexer's keys
//! of 68. Of routed experts those count that so many tokens choose on average when all are chosen alike. What a call computes on the way
//! counts only where it must be written because it is the model's state: residual streams and cache.
//!
//! Needs: a configuration. Keeps: knows nothing of how anything is computed.

use std::fmt;

use super::config::{Config, ExpertFormat, LayerKind, WeightFormat};
use super::plan::KvFormat;

/// A part of a forward pass; all but the first and the last are of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Embedding,
    /// Both sites: mixing streams to a block's input, and the block's output back.
    HyperConnections,
    /// Products of attention's input: query rank, key, compressors.
    Inputs,
    Queries,
    /// The key, and entries of blocks that are closed.
    Cache,
    Indexer,
    Core,
    Output,
    /// The router and the shared expert's first product.
    Router,
    /// Routed experts and the rest of the shared one.
    Experts,
    Head,
}

/// Where in the model a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Outside,
    Layer(usize),
}

/// What a section costs at the least.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    pub bytes: f64,
    /// Of products with weights.
    pub linear_flops: f64,
    /// Of products with keys.
    pub attention_flops: f64,
}

/// The tokens of a call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub sequences: usize,
    /// Of each sequence.
    pub tokens: usize,
    /// Tokens that each sequence has afterwards.
    pub context: usize,
    /// Rows that get logits.
    pub logits: usize,
}

/// In the order in which they run first.
pub const SECTIONS: [Section; 11] = [
    Section::Embedding,
    Section::HyperConnections,
    Section::Inputs,
    Section::Queries,
    Section::Cache,
    Section::Indexer,
    Section::Core,
    Section::Output,
    Section::Router,
    Section::Experts,
    Section::Head,
];

impl Section {
    pub fn name(self) -> &'static str {
        match self {
            Section::Embedding => "embedding",
            Section::HyperConnections => "hyper-connections",
            Section::Inputs => "attention inputs",
            Section::Queries => "queries",
            Section::Cache => "cache",
            Section::Indexer => "indexer",
            Section::Core => "attention",
            Section::Output => "attention output",
            Section::Router => "router",
            Section::Experts => "experts",
            Section::Head => "head",
        }
    }

    pub fn of_name(name: &str) -> Option<Section> {
        SECTIONS.into_iter().find(|section| section.name() == name)
    }
}

impl fmt::Display for Place {
    /// As it stands before a section's name: `L3 `.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Outside => Ok(()),
            Place::Layer(index) => write!(f, "L{index} "),
        }
    }
}

/// What `section` of a layer of this kind costs, or of the model for the embedding and the head.
pub fn cost(c: &Config, kind: LayerKind, section: Section, call: &Call) -> Cost {
    let t = (call.sequences * call.tokens) as f64;
    let hidden = c.hidden_size as f64;
    let streams = (c.hc_mult * c.hidden_size) as f64;
    let heads = (c.num_attention_heads * c.head_dim) as f64;
    let (rank, low) = (c.q_lora_rank as f64, (c.o_groups * c.o_lora_rank) as f64);
    let inter = c.moe_intermediate_size as f64;
    let ratio = kind.ratio().max(1) as f64;
    let is_sparse = matches!(kind, LayerKind::CompressedSparse { .. });
    let (entry, key) = (
        KvFormat::Fp8Fp4.entry(c) as f64,
        KvFormat::Fp8Fp4.index_key(c) as f64,
    );
    // Entries that a token sees, on average over the call's tokens.
    let seen = call.context as f64 - (call.tokens as f64 - 1.0) / 2.0;
    let window = (c.sliding_window as f64).min(seen);
    let entries = match kind {
        LayerKind::Window => 0.0,
        _ => (seen / ratio).floor(),
    };
    let attended = match is_sparse {
        true => entries.min(c.index_topk as f64),
        false => entries,
    };
    let index_heads = (c.index_n_heads * c.index_head_dim) as f64;
    // Columns of the compressors' two products, main and the indexer's.
    let compressed = |width: usize| (2 * kind.blocks_per_entry() * width) as f64;
    let main_columns = compressed(c.head_dim);
    let index_columns = match is_sparse {
        true => compressed(c.index_head_dim) + c.index_n_heads as f64,
        false => 0.0,
    };
    let coded = |parameters: f64| parameters * code_bytes(c);
    let float = |parameters: f64| parameters * float_bytes(c);
    let of = |bytes: f64, linear_flops: f64| Cost {
        bytes,
        linear_flops,
        attention_flops: 0.0,
    };
    match section {
        Section::Embedding => of(float(t * hidden) + 2.0 * t * streams, 0.0),
        Section::HyperConnections => {
            let mix = 2.0 * c.hc_coefficients() as f64 * streams;
            // Streams are read and written at each of two sites.
            of(4.0 * mix + 2.0 * 4.0 * t * streams, 2.0 * t * mix)
        }
        Section::Inputs => {
            let codes = hidden * (rank + c.head_dim as f64);
            let floats = hidden * (main_columns + index_columns);
            of(coded(codes) + float(floats), 2.0 * t * (codes + floats))
        }
        Section::Queries => of(coded(rank * heads), 2.0 * t * rank * heads),
        Section::Cache => of(t * (entry + 4.0 * main_columns + entry / ratio), 0.0),
        Section::Indexer if is_sparse => Cost {
            bytes: coded(rank * index_heads)
                + call.sequences as f64 * (call.context as f64 / ratio) * key
                + t * (4.0 * index_columns + key / ratio),
            linear_flops: 2.0 * t * rank * index_heads,
            attention_flops: 2.0 * t * index_heads * entries,
        },
        Section::Indexer => Cost::default(),
        Section::Core => Cost {
            // Many tokens of a sequence share what they read; then all of it is read once.
            bytes: entry
                * (call.sequences as f64)
                * ((call.tokens as f64 * (window + attended)).min(
                    call.tokens as f64
                        + c.sliding_window as f64
                        + match kind {
                            LayerKind::Window => 0.0,
                            _ => call.context as f64 / ratio,
                        },
                )),
            linear_flops: 0.0,
            attention_flops: 4.0 * t * heads * (window + attended),
        },
        Section::Output => {
            let group = heads * c.o_lora_rank as f64;
            let weights = group + low * hidden;
            of(coded(weights), 2.0 * t * weights)
        }
        Section::Router => {
            let (gate, shared) = (hidden * c.n_routed_experts as f64, 2.0 * hidden * inter);
            of(float(gate) + coded(shared), 2.0 * t * (gate + shared))
        }
        Section::Experts => {
            let (one, shared) = (3.0 * hidden * inter, hidden * inter);
            let experts = c.n_routed_experts as f64;
            let chosen = c.num_experts_per_tok as f64;
            let touched = experts * (1.0 - (1.0 - chosen / experts).powf(t));
            of(
                touched * one * expert_bytes(c) + coded(shared),
                2.0 * t * (chosen * one + shared),
            )
        }
        Section::Head => {
            let (rows, vocabulary) = (call.logits as f64, c.vocab_size as f64);
            of(
                float(vocabulary * hidden) + 4.0 * rows * vocabulary,
                2.0 * rows * vocabulary * hidden,
            )
        }
    }
}

/// Bytes of a parameter of a linear layer, with its share of a scale.
fn code_bytes(c: &Config) -> f64 {
    match c.weight_format {
        WeightFormat::Plain => 4.0,
        WeightFormat::Fp8 { .. } => 1.0 + 1.0 / (128.0 * 128.0),
    }
}

/// Of a matrix that is never quantised.
fn float_bytes(c: &Config) -> f64 {
    match c.weight_format {
        WeightFormat::Plain => 4.0,
        WeightFormat::Fp8 { .. } => 2.0,
    }
}

fn expert_bytes(c: &Config) -> f64 {
    match c.weight_format {
        WeightFormat::Fp8 {
            experts: ExpertFormat::Fp4,
        } => 0.5 + 1.0 / 32.0,
        _ => code_bytes(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All sections of a step, with each layer of the configuration.
    fn step(c: &Config, call: &Call) -> Cost {
        let outside = [Section::Embedding, Section::Head].map(|s| (LayerKind::Window, s));
        let inside = c.layers.iter().flat_map(|&kind| {
            let sections = SECTIONS.into_iter();
            sections
                .filter(|s| !matches!(s, Section::Embedding | Section::Head))
                .map(move |s| (kind, s))
        });
        let mut sum = Cost::default();
        for (kind, section) in outside.into_iter().chain(inside) {
            let one = cost(c, kind, section, call);
            sum.bytes += one.bytes;
            sum.linear_flops += one.linear_flops;
            sum.attention_flops += one.attention_flops;
        }
        sum
    }

    /// The published operations of a decoding step: 26.5 G in the matrices of Flash, of which the products of the hyper-connections are a
    /// small part, and 2.3 G with keys and 0.7 G of the indexer after 8K.
    #[test]
    fn operations_of_a_step_are_the_published_ones() {
        let call = Call {
            sequences: 1,
            tokens: 1,
            context: 8 << 10,
            logits: 1,
        };
        let flash = step(&Config::flash(), &call);
        assert_eq!(format!("{:.1}", flash.linear_flops / 1e9), "26.5");
        assert_eq!(format!("{:.1}", flash.attention_flops / 1e9), "3.0");
    }

    #[test]
    fn a_step_of_one_token_reads_each_chosen_expert_once() {
        let c = Config::flash();
        let call = Call {
            sequences: 1,
            tokens: 1,
            context: 4096,
            logits: 1,
        };
        let experts = cost(&c, LayerKind::Window, Section::Experts, &call);
        let one = 3.0 * 4096.0 * 2048.0;
        let expected = 6.0 * one * (0.5 + 1.0 / 32.0) + 4096.0 * 2048.0 * (1.0 + 1.0 / 16384.0);
        assert!((experts.bytes / expected - 1.0).abs() < 1e-9);
        // A whole batch of many tokens reads all of them, and no more.
        let many = Call {
            tokens: 4096,
            ..call
        };
        let all = cost(&c, LayerKind::Window, Section::Experts, &many);
        assert!((all.bytes / (expected + 250.0 * one * (0.5 + 1.0 / 32.0)) - 1.0).abs() < 1e-6);
    }
}
