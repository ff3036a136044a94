//! What a sequence leaves behind for its next tokens, in two parts.
//!
//! **State of fixed size**, a block for each request: per layer a ring of the keys in the window and, where the layer compresses, rings of the
//! projected rows of the blocks that are still open. A ring has room for a whole call's tokens besides, so that a chunk is written before it is
//! read. **Compressed entries**, growing: one row per closed block, in pages that requests take as they grow (`pages.rs`). How rows are kept is
//! `kept.rs`'.
//!
//! Rows beyond a sequence's length are never read, so blocks and pages are reused as they are.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View};

use super::ModelError;
use super::batch::Batch;
use super::config::{Config, LayerKind};
use super::error::CacheFull;
use super::kept::{Kept, Place, fill_random};
use super::kernels::Kernels;
use super::pages::{PAGE_TOKENS, Pages, pages_of};
use super::parameters::PANEL;
use super::quantised::activation_dtype;

/// What a cache is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Requests that it holds at a time: blocks of state.
    pub sequences: usize,
    /// Tokens that each may have.
    pub context: usize,
    /// Tokens that one call may have.
    pub most_tokens: usize,
    /// Pages of entries, of [`PAGE_TOKENS`] tokens, that all requests share; `None`: as many as all of them can take.
    pub pages: Option<usize>,
}

/// What a cache takes, by what it is for: the first four as in a plan, the rest besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheBytes {
    pub sparse_entries: usize,
    pub index_keys: usize,
    pub heavy_entries: usize,
    pub window: usize,
    /// Pages end beyond the context.
    pub padding: usize,
    /// Rings have room for a call's tokens besides the window and the open blocks.
    pub call_rows: usize,
    pub open_blocks: usize,
    /// Of the draft module.
    pub draft: usize,
    /// Which pages belong to whom.
    pub tables: usize,
    /// Rows in bf16 that a call's products read, of one layer at a time.
    pub widened: usize,
}

impl CacheBytes {
    /// What a plan counts.
    pub fn payload(&self) -> usize {
        self.sparse_entries + self.index_keys + self.heavy_entries + self.window
    }
}

/// The caches of all layers for a fixed number of sequences.
pub struct KvCache {
    /// By sequence: its tokens, `None` where nobody has the block of state.
    lengths: Vec<Option<usize>>,
    room: Room,
    pages: Pages,
    pub(super) layers: Vec<LayerCache>,
    /// Of the multi-token-prediction block.
    pub(super) draft: Option<LayerCache>,
    /// `[B, 1]`: the numbers of the sequences, which are those of their rings.
    own: Tensor,
    /// `[B]`: position of each sequence's first token in the call, and after its last (0: not in it).
    first: Tensor,
    end: Tensor,
    bounds: [Vec<i32>; 2],
    widened: Option<Widened>,
}

/// One layer's part.
pub(super) struct LayerCache {
    /// `[B R, ..]`: the key of position p of sequence s in row s R + p % R.
    pub ring: Kept,
    /// R
    pub slots: usize,
    pub main: Option<CompressorCache>,
    /// Keys of the indexer.
    pub index: Option<CompressorCache>,
    /// `[0, head_dim]` for layers without entries.
    pub no_entries: Tensor,
}

/// One compressor's part; D is the width of its entries, C = D or 2 D that of its projections.
pub(super) struct CompressorCache {
    pub open: OpenRows,
    /// `[pages P, ..]`: entry e of a sequence in row e % P of its page number e / P.
    pub entries: Kept,
    /// P
    pub per_page: usize,
}

/// A ring of the projected rows of blocks that are still open.
pub(super) struct OpenRows {
    /// `[B, R, S + C]`: what the projections gave at position p, in slot p % R: the key's C columns from 0, the gate's from S. S is C, rounded
    /// up as the loader does where it stacks matrices.
    pub rows: Tensor,
    /// C
    columns: i64,
}

/// Rows of the layer in hand in bf16, where they are kept in fewer bytes.
pub(super) struct Widened {
    /// `[B, R, head_dim]`, as the ring.
    pub ring: Tensor,
    /// `[B, E, head_dim]` and `[B, E, index_head_dim]`: entries and keys in their order.
    pub entries: Tensor,
    pub index: Tensor,
    /// `[B, K]`: 0, …, K - 1 in every row, K the indexer's picks.
    pub order: Tensor,
}

/// All that belongs to no layer.
pub(super) struct Shared<'a> {
    pub table: View<'a>,
    pub pages: &'a Pages,
    pub own: View<'a>,
    pub first: View<'a>,
    pub end: View<'a>,
    pub widened: Option<&'a mut Widened>,
}

/// Layers, the draft block's part and the rest, to be borrowed apart.
pub(super) struct Parts<'a> {
    pub layers: &'a mut [LayerCache],
    pub draft: Option<&'a mut LayerCache>,
    pub shared: Shared<'a>,
}

impl KvCache {
    /// # Errors
    /// [`ModelError`]: a size outside the ranges, or no memory.
    pub fn new(device: &Device, config: &Config, room: Room) -> Result<KvCache, ModelError> {
        let Room {
            sequences, context, ..
        } = room;
        if context > config.max_position_embeddings {
            return Err(ModelError::Input(format!(
                "a context of {context} tokens; the model has positions up to {}",
                config.max_position_embeddings
            )));
        }
        let pages = room.pages.unwrap_or(sequences * pages_of(context));
        let shape = Shape {
            device,
            config,
            room,
            pages,
        };
        let layers: Vec<LayerCache> = config
            .layers
            .iter()
            .map(|&kind| LayerCache::new(kind, &shape))
            .collect::<Result<_, _>>()?;
        let draft = (config.num_nextn_predict_layers > 0)
            .then(|| LayerCache::new(LayerKind::Window, &shape))
            .transpose()?;
        let rows = sequences as i64;
        let mut own = Tensor::zeros_on(device, DType::I32, &[rows, 1])?;
        own.write_start(&(0..sequences as i32).collect::<Vec<_>>())?;
        let widened = (activation_dtype(config) != DType::F32)
            .then(|| Widened::new(&shape))
            .transpose()?;
        Ok(KvCache {
            lengths: vec![None; sequences],
            room,
            pages: Pages::new(device, sequences, context, pages)?,
            layers,
            draft,
            own,
            first: Tensor::zeros_on(device, DType::I32, &[rows])?,
            end: Tensor::zeros_on(device, DType::I32, &[rows])?,
            bounds: [vec![0; sequences], vec![0; sequences]],
            widened,
        })
    }

    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.room.context
    }

    /// Tokens that one call may have.
    pub fn most_tokens(&self) -> usize {
        self.room.most_tokens
    }

    /// Tokens that `sequence` has so far; `None` if there is no such sequence.
    pub fn length(&self, sequence: usize) -> Option<usize> {
        self.lengths.get(sequence).map(|length| length.unwrap_or(0))
    }

    /// Pages that no sequence has, and all.
    pub fn pages(&self) -> (usize, usize) {
        (self.pages.free(), self.pages.total())
    }

    /// Takes the first block of state that nobody has, for a new request.
    ///
    /// # Errors
    /// [`CacheFull::States`]
    pub fn start(&mut self) -> Result<usize, CacheFull> {
        let states = self.lengths.len();
        let found = self.lengths.iter().position(Option::is_none);
        let sequence = found.ok_or(CacheFull::States { states })?;
        self.lengths[sequence] = Some(0);
        Ok(sequence)
    }

    /// Takes back a request's block of state and its pages.
    pub fn reset(&mut self, sequence: usize) {
        if let Some(length) = self.lengths.get_mut(sequence) {
            *length = None;
            self.pages.release(sequence);
        }
    }

    /// Takes what the sequences of a call need to have so many tokens each (sequence, tokens).
    ///
    /// # Errors
    /// [`CacheFull::Pages`]; then nobody gets any.
    pub(super) fn reserve(&mut self, wanted: &[(usize, usize)]) -> Result<(), CacheFull> {
        self.pages.reserve(wanted)?;
        for &(sequence, _) in wanted {
            self.lengths[sequence].get_or_insert(0);
        }
        Ok(())
    }

    /// Tells the device of a call's sequences.
    pub(super) fn upload(&mut self, batch: &Batch) -> Result<(), ModelError> {
        self.pages.upload()?;
        let [first, end] = &mut self.bounds;
        first.fill(0);
        end.fill(0);
        for (&sequence, &position) in batch.sequences.iter().zip(&batch.positions) {
            let sequence = sequence as usize;
            if end[sequence] == 0 {
                first[sequence] = position;
            }
            end[sequence] = position + 1;
        }
        self.first.write_start(first)?;
        Ok(self.end.write_start(end)?)
    }

    pub(super) fn parts(&mut self) -> Parts<'_> {
        Parts {
            layers: &mut self.layers,
            draft: self.draft.as_mut(),
            shared: Shared {
                table: self.pages.table(),
                pages: &self.pages,
                own: self.own.view(),
                first: self.first.view(),
                end: self.end.view(),
                widened: self.widened.as_mut(),
            },
        }
    }

    pub(super) fn advance(&mut self, sequence: usize, tokens: usize) {
        *self.lengths[sequence].get_or_insert(0) += tokens;
    }

    /// Gives every sequence `length` tokens of random values (`random.tl`: of about ±1, by the tensor's place in the model and the seed),
    /// as if it had read them.
    ///
    /// # Errors
    /// [`ModelError`]: more tokens than the cache holds, or a refused launch.
    pub fn fill_random(&mut self, k: &Kernels, length: usize, seed: u32) -> Result<(), ModelError> {
        if length > self.room.context {
            return Err(ModelError::Input(format!(
                "{length} tokens for every sequence; the cache holds {}",
                self.room.context
            )));
        }
        let wanted: Vec<_> = (0..self.lengths.len()).map(|s| (s, length)).collect();
        self.reserve(&wanted)?;
        for (index, layer) in self.layers.iter_mut().chain(&mut self.draft).enumerate() {
            let name = |part: &str| format!("cache.{index}.{part}");
            layer.ring.fill_random(k, &name("ring"), seed)?;
            let compressors = [("main", &mut layer.main), ("index", &mut layer.index)];
            for (part, cache) in compressors {
                if let Some(cache) = cache {
                    fill_random(
                        k,
                        &mut cache.open.rows,
                        &name(&format!("{part}.open")),
                        seed,
                    )?;
                    cache.entries.fill_random(k, &name(part), seed)?;
                }
            }
        }
        self.lengths.fill(Some(length));
        Ok(())
    }

    /// Bytes of all tensors by what they are for.
    pub fn bytes_by_use(&self, config: &Config) -> CacheBytes {
        let mut sum = CacheBytes::default();
        for (layer, kind) in self.layers.iter().zip(&config.layers) {
            let used = layer.slots.min(config.sliding_window);
            let window = layer.ring.bytes() / layer.slots * used;
            sum.window += window;
            sum.call_rows += layer.ring.bytes() - window;
            let open = kind.ratio() * kind.blocks_per_entry();
            for c in [&layer.main, &layer.index].into_iter().flatten() {
                let (slots, bytes) = (c.open.rows.shape()[1] as usize, c.open.rows.byte_count());
                sum.open_blocks += bytes / slots * open;
                sum.call_rows += bytes / slots * (slots - open);
            }
            let mut entries = |cache: &Option<CompressorCache>| {
                let Some(cache) = cache else { return 0 };
                let rows = self.lengths.len() * (self.room.context / kind.ratio());
                let used = (rows * cache.entries.row_bytes()).min(cache.entries.bytes());
                sum.padding += cache.entries.bytes() - used;
                used
            };
            let (main, index) = (entries(&layer.main), entries(&layer.index));
            match kind {
                LayerKind::CompressedSparse { .. } => sum.sparse_entries += main,
                _ => sum.heavy_entries += main,
            }
            sum.index_keys += index;
        }
        sum.draft = self.draft.as_ref().map_or(0, LayerCache::bytes);
        let lists = [&self.own, &self.first, &self.end];
        sum.tables = self.pages.table_bytes();
        sum.tables += lists.map(Tensor::byte_count).iter().sum::<usize>();
        sum.widened = self.widened.as_ref().map_or(0, Widened::bytes);
        sum
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> usize {
        let layers = self.layers.iter().chain(&self.draft);
        let lists = [&self.own, &self.first, &self.end];
        layers.map(LayerCache::bytes).sum::<usize>()
            + lists.map(Tensor::byte_count).iter().sum::<usize>()
            + self.pages.table_bytes()
            + self.widened.as_ref().map_or(0, Widened::bytes)
    }

    /// All that a request could find of another.
    #[cfg(test)]
    pub(super) fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let layers = self.layers.iter_mut().chain(&mut self.draft);
        let mut tensors: Vec<_> = layers.flat_map(LayerCache::tensors_mut).collect();
        if let Some(Widened {
            ring,
            entries,
            index,
            ..
        }) = &mut self.widened
        {
            tensors.extend([ring, entries, index]);
        }
        tensors
    }
}

struct Shape<'a> {
    device: &'a Device,
    config: &'a Config,
    room: Room,
    pages: usize,
}

impl Shape<'_> {
    fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Tensor, ModelError> {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        Ok(Tensor::zeros_on(self.device, dtype, &shape)?)
    }

    fn most_tokens(&self) -> usize {
        self.room.most_tokens.min(self.room.context)
    }

    /// Of the window's rings.
    fn slots(&self) -> usize {
        let window = self.config.sliding_window;
        // A window beyond the context is never full, but the kernel asks for its slots.
        (window + self.most_tokens() - 1).min(self.room.context.max(window))
    }
}

impl LayerCache {
    fn new(kind: LayerKind, shape: &Shape<'_>) -> Result<LayerCache, ModelError> {
        let Shape { device, config, .. } = *shape;
        let slots = shape.slots();
        let main = kind.is_compressed().then(|| {
            let rows = |n| Kept::keys(device, config, n);
            CompressorCache::new(kind, config.head_dim, shape, &rows)
        });
        let is_sparse = matches!(kind, LayerKind::CompressedSparse { .. });
        let index = is_sparse.then(|| {
            let rows = |n| Kept::index_keys(device, config, n);
            CompressorCache::new(kind, config.index_head_dim, shape, &rows)
        });
        Ok(LayerCache {
            ring: Kept::keys(device, config, shape.room.sequences * slots)?,
            slots,
            main: main.transpose()?,
            index: index.transpose()?,
            no_entries: shape.zeros(activation_dtype(config), &[0, config.head_dim])?,
        })
    }

    fn bytes(&self) -> usize {
        let compressors = [&self.main, &self.index];
        self.ring.bytes()
            + compressors
                .into_iter()
                .flatten()
                .map(|c| c.open.rows.byte_count() + c.entries.bytes())
                .sum::<usize>()
    }

    #[cfg(test)]
    fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        let mut tensors = self.ring.tensors_mut();
        for cache in [&mut self.main, &mut self.index].into_iter().flatten() {
            tensors.push(&mut cache.open.rows);
            tensors.extend(cache.entries.tensors_mut());
        }
        tensors
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
        width: usize,
        shape: &Shape<'_>,
        kept: &dyn Fn(usize) -> Result<Kept, ModelError>,
    ) -> Result<CompressorCache, ModelError> {
        let (ratio, blocks) = (kind.ratio(), kind.blocks_per_entry());
        let slots = ratio * blocks + shape.most_tokens();
        let columns = blocks * width;
        let both = columns.next_multiple_of(PANEL as usize) + columns;
        // Where the ratio does not divide a page's tokens, a page holds the entry that ends in the next one too.
        let per_page = PAGE_TOKENS.div_ceil(ratio);
        Ok(CompressorCache {
            open: OpenRows {
                rows: shape.zeros(DType::F32, &[shape.room.sequences, slots, both])?,
                columns: columns as i64,
            },
            entries: kept(shape.pages * per_page)?,
            per_page,
        })
    }
}

impl Widened {
    fn new(shape: &Shape<'_>) -> Result<Widened, ModelError> {
        let Shape { config, room, .. } = *shape;
        let kinds = || config.layers.iter();
        let most = |of: &dyn Fn(&&LayerKind) -> bool| {
            let entries = kinds().filter(of).map(|kind| room.context / kind.ratio());
            entries.max().unwrap_or(0).max(1)
        };
        let is_sparse = |kind: &&LayerKind| matches!(kind, LayerKind::CompressedSparse { .. });
        let keys = most(&is_sparse);
        let picks = kinds().find(is_sparse).map_or(0, |_| config.index_topk);
        // All of a sequence's, or those that were picked.
        let entries = most(&|kind| kind.is_compressed()).max(picks);
        let mut order = shape.zeros(DType::I32, &[room.sequences, picks])?;
        let numbers = (0..room.sequences).flat_map(|_| 0..picks as i32);
        order.write_start(&numbers.collect::<Vec<_>>())?;
        let zeros = |rows, width| shape.zeros(DType::BF16, &[room.sequences, rows, width]);
        Ok(Widened {
            ring: zeros(shape.slots(), config.head_dim)?,
            entries: zeros(entries, config.head_dim)?,
            index: zeros(keys, config.index_head_dim)?,
            order,
        })
    }

    fn bytes(&self) -> usize {
        let tensors = [&self.ring, &self.entries, &self.index, &self.order];
        tensors.map(Tensor::byte_count).iter().sum()
    }
}

impl<'a> Shared<'a> {
    /// Rings: the rows that a call of so many tokens reads or writes.
    pub fn ring(&self, layer: &LayerCache, window: usize, tokens: usize) -> Place<'a> {
        Place {
            table: self.own,
            per_page: layer.slots as i64,
            first: self.first,
            end: self.end,
            window,
            ratio: 1,
            most: window - 1 + tokens,
        }
    }

    /// Entries, up to `most` of each sequence.
    pub fn entries(&self, per_page: usize, ratio: usize, most: usize) -> Place<'a> {
        Place {
            table: self.table,
            per_page: per_page as i64,
            first: self.first,
            end: self.end,
            window: 0,
            ratio,
            most,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::{KvFormat, plan};

    fn room(context: usize) -> Room {
        Room {
            sequences: 1,
            context,
            most_tokens: 1,
            pages: None,
        }
    }

    /// Entries, keys and windows take what the plan says for records, to the byte; all uses together are all that there is.
    #[test]
    fn allocated_bytes_are_the_planned_ones() {
        let device = Device::cpu().expect("a thread pool");
        for config in [Config::flash(), Config::pro()] {
            for context in [8 << 10, 32 << 10, 5000] {
                let cache = KvCache::new(&device, &config, room(context)).expect("memory");
                let bytes = cache.bytes_by_use(&config);
                let planned = plan("", &config, &[context as u64]);
                let kv = planned.contexts[0].kv.iter();
                let kv = kv
                    .clone()
                    .find(|kv| kv.format == KvFormat::of(&config))
                    .expect("a plan has every format");
                assert_eq!(bytes.sparse_entries as u64, kv.sparse_entries);
                assert_eq!(bytes.index_keys as u64, kv.index_keys);
                assert_eq!(bytes.heavy_entries as u64, kv.heavy_entries);
                assert_eq!(bytes.window as u64, kv.window);
                assert_eq!(bytes.payload() as u64, kv.total);
                assert_eq!(bytes.open_blocks as u64, kv.open_blocks);
                assert_eq!(bytes.draft as u64, kv.draft_window);
                assert_eq!(bytes.padding == 0, context % PAGE_TOKENS == 0);
                let besides = bytes.padding + bytes.call_rows + bytes.open_blocks + bytes.draft;
                assert_eq!(
                    bytes.payload() + besides + bytes.tables + bytes.widened,
                    cache.bytes()
                );
            }
        }
    }

    #[test]
    fn blocks_of_state_are_taken_and_come_back() {
        let device = Device::cpu().expect("a thread pool");
        let room = Room {
            sequences: 2,
            ..room(1024)
        };
        let config = Config {
            layers: vec![LayerKind::Window],
            ..Config::flash()
        };
        let mut cache = KvCache::new(&device, &config, room).expect("memory");
        assert_eq!(cache.start().expect("both are free"), 0);
        assert_eq!(cache.start().expect("one is free"), 1);
        let full = cache.start().unwrap_err();
        assert!(matches!(full, CacheFull::States { states: 2 }));
        cache.reset(0);
        assert_eq!(cache.start().expect("one came back"), 0);
    }
}
