//! The forward pass in float64, written for being right: plain loops, whole sequences, no cache, no kernel.
//!
//! It says what every part of the model computes, under the names of the golden files, and is what random
//! configurations are checked against. Arithmetic is that of the float32 goldens: no FP8 or FP4 round trip, no
//! Hadamard transform (orthogonal, so without rounding it changes no score), routing weights wherever they are in the
//! formula. It shares the reading of `config.json` and of safetensors with the runtime, and nothing else.

mod array;
mod attention;
mod block;
mod compressor;
mod hyper_connection;
mod indexer;
mod math;
mod moe;
mod rope;
mod weights;

use std::error::Error;
use std::path::Path;

use tessera::model::config::{Config, LayerKind};

pub use array::{Array, Tensors};
use math::{linear, rms_norm_rows};
use weights::Weights;

/// A model whose weights are held as float64.
pub struct Reference {
    pub config: Config,
    weights: Weights,
}

/// All that one forward pass computed.
pub struct Run {
    /// Everything under the names of the golden files, without a batch axis: `logits` `[S, V]`, `hidden.N`, `L0.attn.q`, …
    pub tensors: Tensors,
    pub gaps: Gaps,
}

/// How close the discrete choices of a run were: a float32 implementation may choose differently where a gap is not
/// well above its noise. Infinite where nothing was rejected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gaps {
    /// Smallest difference between the last picked and the first rejected index score; where both are 0 in any arithmetic, the
    /// smallest other score.
    pub indexer: f64,
    /// The same for expert scores with their bias.
    pub router: f64,
}

impl Gaps {
    const NONE: Gaps = Gaps {
        indexer: f64::INFINITY,
        router: f64::INFINITY,
    };

    pub fn smallest(self) -> f64 {
        self.indexer.min(self.router)
    }

    fn and(self, other: Gaps) -> Gaps {
        Gaps {
            indexer: self.indexer.min(other.indexer),
            router: self.router.min(other.router),
        }
    }
}

/// A recorder of components under one layer's prefix.
struct Recorder<'a> {
    prefix: String,
    tensors: &'a mut Tensors,
    gaps: &'a mut Gaps,
}

impl Recorder<'_> {
    fn put(&mut self, name: &str, shape: &[usize], data: &[f64]) {
        self.tensors.insert(
            format!("{}{name}", self.prefix),
            Array::new(shape, data.to_vec()),
        );
    }
}

impl Reference {
    /// Reads `config.json` and the weights of a model folder; weights must be unquantised.
    ///
    /// # Errors
    /// What the readers of configurations and checkpoints report.
    pub fn open(folder: &Path) -> Result<Reference, Box<dyn Error>> {
        let config = Config::read(folder)?;
        let weights = Weights::read(folder, &config)?;
        Ok(Reference { config, weights })
    }

    /// Runs one sequence from position 0. With `next_ids`, the token after each position, also the draft module.
    ///
    /// # Panics
    /// If an id is outside the vocabulary, or the lengths differ: this is a tool for tests.
    pub fn run(&self, ids: &[u32], next_ids: Option<&[u32]>) -> Run {
        let config = &self.config;
        let (positions, hidden, streams) = (ids.len(), config.hidden_size, config.hc_mult);
        let (mut tensors, mut gaps) = (Tensors::new(), Gaps::NONE);

        let embedded = self.embed(ids);
        let mut x: Vec<f64> = embedded
            .chunks(hidden)
            .flat_map(|row| row.repeat(streams))
            .collect();
        for (index, kind) in config.layers.iter().enumerate() {
            let mut record = Recorder {
                prefix: format!("L{index}."),
                tensors: &mut tensors,
                gaps: &mut gaps,
            };
            let at = format!("layers.{index}");
            x = self.block(
                &at,
                *kind,
                config.is_hash_layer(index),
                &x,
                ids,
                &mut record,
            );
            record.prefix.clear();
            record.put(
                &format!("hidden.{index}"),
                &[positions, streams, hidden],
                &x,
            );
        }
        let (collapsed, normed, logits) = self.head("", "norm.weight", &x);
        let mut record = Recorder {
            prefix: String::new(),
            tensors: &mut tensors,
            gaps: &mut gaps,
        };
        for name in ["head_collapsed", "head.collapsed"] {
            record.put(name, &[positions, hidden], &collapsed);
        }
        record.put("head.norm", &[positions, hidden], &normed);
        record.put("logits", &[positions, config.vocab_size], &logits);
        for (name, compressed) in [
            ("rope.main.inv_freq", false),
            ("rope.compress.inv_freq", true),
        ] {
            let frequencies = rope::frequencies(config, compressed);
            record.put(name, &[frequencies.len()], &frequencies);
        }
        if let Some(next_ids) = next_ids {
            self.draft(&x, next_ids, &mut record);
        }
        Run { tensors, gaps }
    }

    /// Runs sequences of one length; every tensor gets a batch axis in front.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub fn run_batch(&self, ids: &[Vec<u32>], next_ids: Option<&[Vec<u32>]>) -> Run {
        let runs: Vec<Run> = ids
            .iter()
            .enumerate()
            .map(|(index, ids)| self.run(ids, next_ids.map(|next_ids| next_ids[index].as_slice())))
            .collect();
        let gaps = runs.iter().fold(Gaps::NONE, |gaps, run| gaps.and(run.gaps));
        let tensors = runs[0].tensors.keys().map(|name| {
            let rows: Vec<&Array> = runs.iter().map(|run| &run.tensors[name]).collect();
            // The rotary frequencies belong to the model, not to a sequence.
            let array = if name.starts_with("rope.") {
                rows[0].clone()
            } else {
                Array::stack(&rows)
            };
            (name.clone(), array)
        });
        Run {
            tensors: tensors.collect(),
            gaps,
        }
    }

    fn embed(&self, ids: &[u32]) -> Vec<f64> {
        let table = self.weights.get("embed.weight");
        let hidden = self.config.hidden_size;
        ids.iter()
            .flat_map(|&id| table[id as usize * hidden..][..hidden].iter().copied())
            .collect()
    }

    /// Residual streams `[S, N, D]` to their collapsed form, its norm, and the logits.
    fn head(&self, prefix: &str, norm: &str, x: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let collapsed = self.hc_head(prefix, x);
        let normed = rms_norm_rows(
            &collapsed,
            Some(self.weights.get(norm)),
            self.config.rms_norm_eps,
        );
        let logits = linear(
            &normed,
            self.weights.get("head.weight"),
            self.config.hidden_size,
        );
        (collapsed, normed, logits)
    }

    /// The multi-token-prediction block: from the streams after the last layer at `t` and the token at `t + 1`.
    fn draft(&self, x: &[f64], next_ids: &[u32], record: &mut Recorder) {
        let (positions, hidden, streams) =
            (next_ids.len(), self.config.hidden_size, self.config.hc_mult);
        assert_eq!(
            x.len(),
            positions * streams * hidden,
            "one next token per position"
        );
        let weight = |name: &str| self.weights.get(&format!("mtp.0.{name}.weight"));
        let norm =
            |x: &[f64], name: &str| rms_norm_rows(x, Some(weight(name)), self.config.rms_norm_eps);
        let from_token = linear(
            &norm(&self.embed(next_ids), "enorm"),
            weight("e_proj"),
            hidden,
        );
        let mut streams_in = linear(&norm(x, "hnorm"), weight("h_proj"), hidden);
        for (row, value) in streams_in.chunks_mut(hidden).enumerate() {
            let token = &from_token[row / streams * hidden..][..hidden];
            value
                .iter_mut()
                .zip(token)
                .for_each(|(value, token)| *value += token);
        }
        record.prefix = "mtp.".into();
        record.put("block_in", &[positions, streams, hidden], &streams_in);
        let out = self.block(
            "mtp.0",
            LayerKind::Window,
            false,
            &streams_in,
            next_ids,
            record,
        );
        record.put("block_out", &[positions, streams, hidden], &out);
        let (_, normed, logits) = self.head("mtp.0.", "mtp.0.norm.weight", &out);
        record.put("head_norm", &[positions, hidden], &normed);
        record.put("logits", &[positions, self.config.vocab_size], &logits);
    }
}
