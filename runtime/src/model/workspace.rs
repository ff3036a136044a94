//! Memory for the intermediate values of one call, planned once on the device for the most tokens a call may have.
//!
//! Every tensor's first axis is tokens (or token pairs); a call uses the first rows. Nothing is allocated per call.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View, ViewMut};

use super::ModelError;
use super::batch::Batch;
use super::codes::folds_experts;
use super::config::{Config, LayerKind, WeightFormat};
use super::quantised::{Quantised, activation_dtype};

/// Pairs that the kernels count at a time, `RUN` in `experts.tl`.
pub(super) const COUNTED_PAIRS: usize = 256;

/// Rows of the first axis that a call uses.
pub(super) trait Rows {
    /// The first `n` rows.
    fn rows(&self, n: usize) -> Result<View<'_>, ModelError>;
    fn rows_mut(&mut self, n: usize) -> Result<ViewMut<'_>, ModelError>;
    /// The first elements as a dense tensor of this shape.
    fn shaped(&self, shape: &[usize]) -> Result<View<'_>, ModelError>;
    fn shaped_mut(&mut self, shape: &[usize]) -> Result<ViewMut<'_>, ModelError>;
}

impl Rows for Tensor {
    fn rows(&self, n: usize) -> Result<View<'_>, ModelError> {
        Ok(self.view().slice(0, 0..n as i64)?)
    }

    fn rows_mut(&mut self, n: usize) -> Result<ViewMut<'_>, ModelError> {
        Ok(self.view_mut()?.slice(0, 0..n as i64)?)
    }

    fn shaped(&self, shape: &[usize]) -> Result<View<'_>, ModelError> {
        let (flat, shape, rank) = (self.elements() as i64, extents(shape), shape.len());
        let used = shape.iter().product();
        Ok(self
            .view()
            .reshape(&[flat])?
            .slice(0, 0..used)?
            .reshape(&shape[..rank])?)
    }

    fn shaped_mut(&mut self, shape: &[usize]) -> Result<ViewMut<'_>, ModelError> {
        let (flat, shape, rank) = (self.elements() as i64, extents(shape), shape.len());
        let used = shape.iter().product();
        Ok(self
            .view_mut()?
            .reshape(&[flat])?
            .slice(0, 0..used)?
            .reshape(&shape[..rank])?)
    }
}

/// Extents in place, those past the rank 1.
fn extents(shape: &[usize]) -> [i64; 4] {
    let mut extents = [1; 4];
    for (to, &from) in extents.iter_mut().zip(shape) {
        *to = from as i64;
    }
    extents
}

/// Letters: T tokens, D hidden, N streams, H heads, A head dim, Q query rank, G groups, R rank of a group, E experts, K chosen, I width of an
/// expert, V vocabulary, F half the rotary dims, J index heads, L index head dim. Streams, inputs and outputs of modules are bf16 in quantised
/// models and f32 in others; what a router, a softmax or a norm computes inside is f32 in both.
pub(super) struct Workspace {
    pub most_tokens: usize,
    pub ids: Tensor,
    pub next_ids: Tensor,
    pub positions: Tensor,
    pub sequences: Tensor,
    /// `[T]`: the rows that get logits.
    pub picked: Tensor,
    pub rope_main: Rope,
    pub rope_compress: Rope,

    /// `[T, N, D]`, the residual streams, and where a block writes the next.
    pub x: Tensor,
    pub x_next: Tensor,
    /// `[T, (2 + N) N]`
    pub mix: Tensor,
    pub pre: Tensor,
    pub post: Tensor,
    pub comb: Tensor,
    /// `[T, D]`: a block's input before and after its norm, and its output.
    pub collapsed: Tensor,
    pub input: Tensor,
    pub output: Tensor,

    /// `[T, columns]`: the stacked products of a block's input.
    pub projected: Tensor,
    /// `[T, Q]`
    pub q_residual: Tensor,
    /// `[T, H, A]`
    pub q_raw: Tensor,
    pub q: Tensor,
    /// `[T, A]`
    pub kv_normed: Tensor,
    pub kv: Tensor,
    /// `[T, J, L]`
    pub index_q_raw: Tensor,
    pub index_q: Tensor,
    /// `[T, most entries]`
    pub index_scores: Tensor,
    /// `[T, index_topk]`
    pub picks: Tensor,
    /// `[T, 0]`
    pub no_picks: Tensor,
    /// `[T, H, A]`
    pub core: Tensor,
    pub core_derot: Tensor,
    /// `[T, G, R]`
    pub o_low: Tensor,

    /// `[T, E]`
    pub gate_scores: Tensor,
    /// `[T, K]`
    pub experts: Tensor,
    pub expert_weights: Tensor,
    /// `[runs of T K, E]`
    pub expert_count: Tensor,
    /// `[T K]`
    pub pair: Tensor,
    /// One row for every tile of rows.
    pub tile_expert: Tensor,
    pub tile_first: Tensor,
    pub tile_end: Tensor,
    /// `[1]`
    pub tiles: Tensor,
    /// `[T K, I]`; no row where it is quantised.
    pub expert_h: Tensor,
    /// `[T K, D]`; no row where experts run in tiles, except for who traces.
    pub expert_y: Tensor,
    /// `[T, I]`
    pub shared_h: Tensor,
    /// `[T, D]`
    pub shared_y: Tensor,
    pub routed: Tensor,

    /// `[T, N, D]`: streams of the rows that get logits.
    pub head_x: Tensor,
    pub head_mix: Tensor,
    pub head_collapsed: Tensor,
    pub head_norm: Tensor,
    /// `[T, V]`
    pub logits: Tensor,
    /// Only with a draft block.
    pub draft: Option<DraftWorkspace>,
    /// Only in quantised models.
    pub quantised: Option<Quantised>,
}

pub(super) struct DraftWorkspace {
    /// `[T, 1, D]`: the next token's embedding, normed, projected.
    pub embedded: Tensor,
    pub e: Tensor,
    pub e_proj: Tensor,
    /// `[T, N, D]`
    pub h: Tensor,
    pub h_proj: Tensor,
    /// `[T, V]`
    pub logits: Tensor,
}

/// `[T, F]` cosines and sines of one set of frequencies.
pub(super) struct Rope {
    pub cosine: Tensor,
    pub sine: Tensor,
}

/// Rows of one tile of the experts' products: the instances of `expert_up` and `expert_down`, and of those on codes.
pub(super) fn rows_per_tile(tokens: usize, quantised: bool) -> usize {
    match (tokens, quantised) {
        (0..=1, false) => 1,
        (0..=32, _) => 8,
        (_, false) => 64,
        (_, true) => 32,
    }
}

/// The most tiles that `pairs` pairs of `experts` experts make.
pub(super) fn most_tiles(pairs: usize, experts: usize, rows: usize) -> usize {
    pairs.div_ceil(rows) + experts
}

impl Workspace {
    /// All that the host knows of a call: its tokens, and which rows get logits.
    pub fn upload(&mut self, batch: &Batch, picked: &[i32]) -> Result<(), ModelError> {
        self.ids.write_start(&batch.ids)?;
        self.next_ids.write_start(&batch.next_ids)?;
        self.positions.write_start(&batch.positions)?;
        self.sequences.write_start(&batch.sequences)?;
        Ok(self.picked.write_start(picked)?)
    }

    /// `context` bounds the compressed entries that a query may see, `most_columns` the stacked products of the model's layers.
    pub fn new(
        device: &Device,
        config: &Config,
        most_tokens: usize,
        context: usize,
        most_columns: usize,
        with_draft: bool,
    ) -> Result<Workspace, ModelError> {
        let c = config;
        let t = most_tokens;
        let floats = |shape: &[usize]| -> Result<Tensor, ModelError> {
            let shape = &extents(shape)[..shape.len()];
            Ok(Tensor::zeros_on(device, DType::F32, shape)?)
        };
        let activation = activation_dtype(config);
        let activations = |shape: &[usize]| -> Result<Tensor, ModelError> {
            let shape = &extents(shape)[..shape.len()];
            Ok(Tensor::zeros_on(device, activation, shape)?)
        };
        let ints = |shape: &[usize]| -> Result<Tensor, ModelError> {
            let shape = &extents(shape)[..shape.len()];
            Ok(Tensor::zeros_on(device, DType::I32, shape)?)
        };
        let rope = || -> Result<Rope, ModelError> {
            let shape = [t, c.qk_rope_head_dim / 2];
            Ok(Rope {
                cosine: floats(&shape)?,
                sine: floats(&shape)?,
            })
        };
        let (d, n, pairs) = (c.hidden_size, c.hc_mult, t * c.num_experts_per_tok);
        let by_pair = |unused: bool| if unused { 0 } else { pairs };
        let is_quantised = c.weight_format != WeightFormat::Plain;
        let heads = [t, c.num_attention_heads, c.head_dim];
        let sparse = |kind: &&LayerKind| matches!(kind, LayerKind::CompressedSparse { .. });
        let has_index = c.layers.iter().any(|kind| sparse(&kind));
        let entries = c.layers.iter().filter(sparse).map(|k| context / k.ratio());
        let index = |width: usize| if has_index { width } else { 0 };
        let tiles = [1, 8, 32, 64]
            .map(|rows| most_tiles(pairs, c.n_routed_experts, rows))
            .into_iter()
            .max()
            .expect("four candidates");
        let draft = with_draft.then(|| -> Result<DraftWorkspace, ModelError> {
            Ok(DraftWorkspace {
                embedded: activations(&[t, 1, d])?,
                e: activations(&[t, d])?,
                e_proj: activations(&[t, d])?,
                h: activations(&[t, n, d])?,
                h_proj: activations(&[t, n, d])?,
                logits: floats(&[t, c.vocab_size])?,
            })
        });
        Ok(Workspace {
            most_tokens,
            ids: ints(&[t])?,
            next_ids: ints(&[t])?,
            positions: ints(&[t])?,
            sequences: ints(&[t])?,
            picked: ints(&[t])?,
            rope_main: rope()?,
            rope_compress: rope()?,
            x: activations(&[t, n, d])?,
            x_next: activations(&[t, n, d])?,
            mix: floats(&[t, c.hc_coefficients()])?,
            pre: floats(&[t, n])?,
            post: floats(&[t, n])?,
            comb: floats(&[t, n, n])?,
            collapsed: activations(&[t, d])?,
            input: activations(&[t, d])?,
            output: activations(&[t, d])?,
            projected: activations(&[t, most_columns])?,
            q_residual: activations(&[t, c.q_lora_rank])?,
            q_raw: activations(&heads)?,
            q: activations(&heads)?,
            kv_normed: activations(&[t, c.head_dim])?,
            kv: activations(&[t, c.head_dim])?,
            index_q_raw: activations(&[t, index(c.index_n_heads), c.index_head_dim])?,
            index_q: activations(&[t, index(c.index_n_heads), c.index_head_dim])?,
            index_scores: floats(&[t, entries.max().unwrap_or(0)])?,
            picks: ints(&[t, index(c.index_topk)])?,
            no_picks: ints(&[t, 0])?,
            core: activations(&heads)?,
            core_derot: activations(&heads)?,
            o_low: activations(&[t, c.o_groups, c.o_lora_rank])?,
            gate_scores: floats(&[t, c.n_routed_experts])?,
            experts: ints(&[t, c.num_experts_per_tok])?,
            expert_weights: floats(&[t, c.num_experts_per_tok])?,
            expert_count: ints(&[pairs.div_ceil(COUNTED_PAIRS), c.n_routed_experts])?,
            pair: ints(&[pairs])?,
            tile_expert: ints(&[tiles])?,
            tile_first: ints(&[tiles])?,
            tile_end: ints(&[tiles])?,
            tiles: ints(&[1])?,
            expert_h: floats(&[by_pair(is_quantised), c.moe_intermediate_size])?,
            expert_y: activations(&[by_pair(folds_experts(device, c)), d])?,
            shared_h: floats(&[t, c.moe_intermediate_size])?,
            shared_y: activations(&[t, d])?,
            routed: floats(&[t, d])?,
            head_x: activations(&[t, n, d])?,
            head_mix: floats(&[t, n])?,
            head_collapsed: activations(&[t, d])?,
            head_norm: activations(&[t, d])?,
            logits: floats(&[t, c.vocab_size])?,
            draft: draft.transpose()?,
            quantised: match c.weight_format {
                WeightFormat::Plain => None,
                WeightFormat::Fp8 { .. } => Some(Quantised::new(device, c, t, most_columns)?),
            },
        })
    }
}
