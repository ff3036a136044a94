//! What a sequence leaves behind for its next tokens, in two parts.
//!
//! **State of fixed size**: per layer a ring of the keys in the window and, where the layer compresses, rings of the projected rows of
//! the blocks that are still open. A ring has room for a whole call's tokens besides, so that a chunk is written before it is read.
//! **Compressed entries**, growing: one row per closed block.
//!
//! Rows beyond a sequence's length are never read, so a slot is reused by setting its length to 0.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View};

use super::ModelError;
use super::config::{Config, LayerKind};
use super::kernels::{Kernels, RandomValuesArgs};
use super::parameters::PANEL;
use super::quantised::activation_dtype;
use super::synthetic::number;

/// What a cache takes, by what it is for: the first four as in a plan, the rest besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheBytes {
    pub sparse_entries: usize,
    pub index_keys: usize,
    pub heavy_entries: usize,
    pub window: usize,
    /// Rings have room for a call's tokens besides the window and the open blocks.
    pub call_rows: usize,
    pub open_blocks: usize,
    /// Of the draft module.
    pub draft: usize,
}

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
    pub open: OpenRows,
    /// `[B, E, D]`: entry e of each sequence.
    pub entries: Tensor,
}

/// A ring of the projected rows of blocks that are still open.
pub(super) struct OpenRows {
    /// `[B, R, S + C]`: what the projections gave at position p, in slot p % R: the key's C columns from 0, the gate's from S. S is C, rounded
    /// up as the loader does where it stacks matrices.
    pub rows: Tensor,
    /// C
    columns: i64,
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

    /// Bytes of all tensors by what they are for.
    pub fn bytes_by_use(&self, config: &Config) -> CacheBytes {
        let mut sum = CacheBytes::default();
        for (layer, kind) in self.layers.iter().zip(&config.layers) {
            let slots = layer.ring.shape()[1] as usize;
            let used = slots.min(config.sliding_window);
            sum.window += layer.ring.byte_count() / slots * used;
            sum.call_rows += layer.ring.byte_count() / slots * (slots - used);
            let open = kind.ratio() * kind.blocks_per_entry();
            for c in [&layer.main, &layer.index].into_iter().flatten() {
                let (slots, bytes) = (c.open.rows.shape()[1] as usize, c.open.rows.byte_count());
                sum.open_blocks += bytes / slots * open;
                sum.call_rows += bytes / slots * (slots - open);
            }
            let entries = |c: &Option<CompressorCache>| {
                c.as_ref().map_or(0, |cache| cache.entries.byte_count())
            };
            match kind {
                LayerKind::CompressedSparse { .. } => sum.sparse_entries += entries(&layer.main),
                _ => sum.heavy_entries += entries(&layer.main),
            }
            sum.index_keys += entries(&layer.index);
        }
        sum.draft = self.draft.as_ref().map_or(0, LayerCache::bytes);
        sum
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
                .map(|c| c.open.rows.byte_count() + c.entries.byte_count())
                .sum::<usize>()
    }

    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let compressors = [&mut self.main, &mut self.index].into_iter().flatten();
        let rows = compressors.flat_map(|c| [&mut c.open.rows, &mut c.entries]);
        std::iter::once(&mut self.ring).chain(rows).collect()
    }
}

impl OpenRows {
    /// `[B, R, C]`
    pub fn keys(&self) -> Result<View<'_>, ModelError> {
        Ok(self.rows.view().slice(2, 0..self.columns)?)
    }

    /// `[B, R, C]`
    pub fn gates(&self) -> Result<View<'_>, ModelError> {
        let end = self.rows.shape()[2];
        Ok(self.rows.view().slice(2, end - self.columns..end)?)
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
        let columns = blocks * width;
        let both = (columns.next_multiple_of(PANEL as usize) + columns) as i64;
        Ok(CompressorCache {
            open: OpenRows {
                rows: shape.zeros(DType::F32, &[shape.sequences, slots, both])?,
                columns: columns as i64,
            },
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::{KvFormat, plan};

    /// Entries, keys and windows take what the plan says for bf16, to the byte; all uses together are all that there is.
    #[test]
    fn allocated_bytes_are_the_planned_ones() {
        let device = Device::cpu().expect("a thread pool");
        for config in [Config::flash(), Config::pro()] {
            for context in [8 << 10, 32 << 10] {
                let cache = KvCache::new(&device, &config, 1, context, 1).expect("memory");
                let bytes = cache.bytes_by_use(&config);
                let planned = plan("", &config, &[context as u64]);
                let kv = planned.contexts[0].kv.iter();
                let kv = kv
                    .clone()
                    .find(|kv| kv.format == KvFormat::Bf16)
                    .expect("a plan has every format");
                assert_eq!(bytes.sparse_entries as u64, kv.sparse_entries);
                assert_eq!(bytes.index_keys as u64, kv.index_keys);
                assert_eq!(bytes.heavy_entries as u64, kv.heavy_entries);
                assert_eq!(bytes.window as u64, kv.window);
                assert_eq!(bytes.open_blocks as u64, kv.open_blocks);
                let payload =
                    bytes.sparse_entries + bytes.index_keys + bytes.heavy_entries + bytes.window;
                assert_eq!(
                    payload + bytes.call_rows + bytes.open_blocks + bytes.draft,
                    cache.bytes()
                );
            }
        }
    }
}
