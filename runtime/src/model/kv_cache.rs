//! What a sequence leaves behind for its next tokens, in two parts.
//!
//! **State of fixed size**: per layer a ring of the keys in the window and, where the layer compresses, rings of the projected rows of
//! the blocks that are still open. A ring has room for a whole call's tokens besides, so that a chunk is written before it is read.
//! **Compressed entries**, growing: one row per closed block.
//!
//! Rows beyond a sequence's length are never read, so a slot is reused by setting its length to 0.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor};

use super::ModelError;
use super::config::{Config, LayerKind};
use super::kernels::{Kernels, RandomValuesArgs};
use super::quantised::activation_dtype;
use super::synthetic::number;

/// The caches of all layers for a fixed number of sequences.
pub struct KvCache {
    lengths: Vec<usize>,
    context: usize,
    most_tokens: usize,
    pub(super) layers: Vec<LayerCache>,
    /// Of the multi-token-prediction block.
    pub(super) draft: Option<LayerCache>,
}

/// One layer's part.
pub(super) struct LayerCache {
    /// `[B, R, head_dim]`: the key of position p in slot p % R.
    pub ring: Tensor,
    pub main: Option<CompressorCache>,
    /// Keys of the indexer.
    pub index: Option<CompressorCache>,
    /// `[B, 0, head_dim]` for layers without entries.
    pub no_entries: Tensor,
}

/// One compressor's part; D is the width of its entries, C = D or 2 D that of its projections.
pub(super) struct CompressorCache {
    /// `[B, R, C]`: what the key projection gave at position p, in slot p % R.
    pub keys: Tensor,
    /// The same of the gate projection.
    pub gates: Tensor,
    /// `[B, E, D]`: entry e of each sequence.
    pub entries: Tensor,
}

impl KvCache {
    /// Room for `sequences` of up to `context` tokens, at most `most_tokens` of them in one call.
    ///
    /// # Errors
    /// [`ModelError`]: a size outside the ranges, or no memory.
    pub fn new(
        device: &Device,
        config: &Config,
        sequences: usize,
        context: usize,
        most_tokens: usize,
    ) -> Result<KvCache, ModelError> {
        if context > config.max_position_embeddings {
            return Err(ModelError::Input(format!(
                "a context of {context} tokens; the model has positions up to {}",
                config.max_position_embeddings
            )));
        }
        let shape = Shape {
            device,
            sequences: sequences as i64,
            context,
            most_tokens: most_tokens.min(context),
        };
        let layers = config
            .layers
            .iter()
            .map(|&kind| LayerCache::new(config, kind, &shape))
            .collect::<Result<_, _>>()?;
        let draft = (config.num_nextn_predict_layers > 0)
            .then(|| LayerCache::new(config, LayerKind::Window, &shape))
            .transpose()?;
        Ok(KvCache {
            lengths: vec![0; sequences],
            context,
            most_tokens,
            layers,
            draft,
        })
    }

    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Tokens that one call may have.
    pub fn most_tokens(&self) -> usize {
        self.most_tokens
    }

    /// Tokens that `sequence` has so far; `None` if there is no such sequence.
    pub fn length(&self, sequence: usize) -> Option<usize> {
        self.lengths.get(sequence).copied()
    }

    /// Empties a slot for a new sequence.
    pub fn reset(&mut self, sequence: usize) {
        if let Some(length) = self.lengths.get_mut(sequence) {
            *length = 0;
        }
    }

    pub(super) fn advance(&mut self, sequence: usize, tokens: usize) {
        self.lengths[sequence] += tokens;
    }

    /// Gives every sequence `length` tokens of random values (`random.tl`: within ±1, by the tensor's place in the model and the seed),
    /// as if it had read them.
    ///
    /// # Errors
    /// [`ModelError`]: more tokens than the cache holds, or a refused launch.
    pub fn fill_random(&mut self, k: &Kernels, length: usize, seed: u32) -> Result<(), ModelError> {
        if length > self.context {
            return Err(ModelError::Input(format!(
                "{length} tokens for every sequence; the cache holds {}",
                self.context
            )));
        }
        for (index, layer) in self.layers.iter_mut().chain(&mut self.draft).enumerate() {
            for (part, tensor) in layer.tensors_mut().into_iter().enumerate() {
                let flat = [tensor.elements() as i64];
                k.random_values(RandomValuesArgs {
                    y: tensor.view_mut()?.reshape(&flat)?,
                    center: 0.0,
                    spread: 1.0,
                    tensor: number(&format!("cache.{index}.{part}")),
                    seed,
                })?;
            }
        }
        self.lengths.fill(length);
        Ok(())
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .chain(&self.draft)
            .map(LayerCache::bytes)
            .sum()
    }
}

struct Shape<'d> {
    device: &'d Device,
    sequences: i64,
    context: usize,
    most_tokens: usize,
}

impl Shape<'_> {
    fn zeros(&self, dtype: DType, shape: &[i64]) -> Result<Tensor, ModelError> {
        Ok(Tensor::zeros_on(self.device, dtype, shape)?)
    }
}

impl LayerCache {
    fn new(config: &Config, kind: LayerKind, shape: &Shape<'_>) -> Result<LayerCache, ModelError> {
        let width = config.head_dim as i64;
        let slots = (config.sliding_window + shape.most_tokens - 1).min(
            // A window beyond the context is never full, but the kernel asks for its slots.
            shape.context.max(config.sliding_window),
        );
        let keys = activation_dtype(config);
        let compressor = |width: usize| CompressorCache::new(kind, keys, width, shape);
        Ok(LayerCache {
            ring: shape.zeros(keys, &[shape.sequences, slots as i64, width])?,
            main: kind
                .is_compressed()
                .then(|| compressor(config.head_dim))
                .transpose()?,
            index: matches!(kind, LayerKind::CompressedSparse { .. })
                .then(|| compressor(config.index_head_dim))
                .transpose()?,
            no_entries: shape.zeros(keys, &[shape.sequences, 0, width])?,
        })
    }

    fn bytes(&self) -> usize {
        let compressors = [&self.main, &self.index];
        self.ring.byte_count()
            + compressors
                .into_iter()
                .flatten()
                .map(|c| c.keys.byte_count() + c.gates.byte_count() + c.entries.byte_count())
                .sum::<usize>()
    }

    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let compressors = [&mut self.main, &mut self.index].into_iter().flatten();
        let rows = compressors.flat_map(|c| [&mut c.keys, &mut c.gates, &mut c.entries]);
        std::iter::once(&mut self.ring).chain(rows).collect()
    }
}

impl CompressorCache {
    fn new(
        kind: LayerKind,
        entries: DType,
        width: usize,
        shape: &Shape<'_>,
    ) -> Result<CompressorCache, ModelError> {
        let (ratio, blocks) = (kind.ratio(), kind.blocks_per_entry());
        let slots = (ratio * blocks + shape.most_tokens) as i64;
        let columns = (blocks * width) as i64;
        let rows = || shape.zeros(DType::F32, &[shape.sequences, slots, columns]);
        Ok(CompressorCache {
            keys: rows()?,
            gates: rows()?,
            entries: shape.zeros(
                entries,
                &[
                    shape.sequences,
                    (shape.context / ratio) as i64,
                    width as i64,
                ],
            )?,
        })
    }
}
