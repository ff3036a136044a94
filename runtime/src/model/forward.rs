//! The forward pass: plain calls one after another, each with its shapes.
//!
//! Tokens of all sequences stand in one list (T of them) with their positions and sequences beside them, so prefill, chunks and decode
//! are one code path, and a token's bits don't depend on what else is in the call. Letters as in `workspace.rs`.
//! On a GPU each call of a kernel is queued; between the first and the last the host reads nothing back.
//!
//! Needs: parameters, a cache, a workspace. Keeps: after an error the cache's lengths are as before the call.

use std::mem::swap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::ModelError;
use super::batch::{Batch, Run};
use super::config::{Config, LayerKind};
use super::kernels::{
    AttentionArgs, CombineArgs, CompressArgs, CountPairsArgs, EmbedArgs, ExpertDownArgs,
    ExpertUpArgs, GroupPairsArgs, HcHeadArgs, HcPostArgs, HcPreArgs, IndexScoresArgs,
    IndexTopkArgs, Kernels, LinearArgs, MtpMergeArgs, NormRotateArgs, RmsnormArgs, RopeTableArgs,
    RotateArgs, RouteArgs, RouteByTableArgs, StoreRingArgs, SwigluArgs, TakeRowsArgs,
};
use super::kv_cache::{CompressorCache, KvCache, LayerCache};
use super::parameters::{self, Choice, DraftBlock, HcSite, Layer, Linear, Moe, Parameters, Part};
use super::rope::Frequencies;
use super::steps::Steps;
use super::trace::{Trace, Tracer};
use super::workspace::{DraftWorkspace, Rows, Workspace, most_tiles, rows_per_tile};
use crate::weights::Checkpoint;
use tessera_device::{Device, Tensor, View};

/// A loaded model.
pub struct Model {
    /// Tells the sessions of one model from those of another.
    number: u64,
    config: Config,
    kernels: Kernels,
    parameters: Parameters,
    frequencies: Frequencies,
}

/// Memory of the calls of one caller; made by [`Model::session`].
pub struct Session {
    /// The model's number.
    model: u64,
    steps: Steps,
    cache: KvCache,
    batch: Batch,
    workspace: Workspace,
}

/// Which tokens of a call get logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    All,
    /// The last token of every run.
    Last,
}

/// What a call computed; borrowed from the session until its next call.
pub struct Output<'a> {
    /// `[rows, V]`
    pub logits: View<'a>,
    /// `[T, V]`: of the multi-token-prediction block, if next tokens were given.
    pub draft_logits: Option<View<'a>>,
}

impl Model {
    /// Reads the model in `folder`: `config.json` and its safetensors.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn load(
        folder: &Path,
        kernels: Kernels,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Model, ModelError> {
        let config = Config::read(folder)?;
        let checkpoint = Checkpoint::open(folder)?;
        let parameters = Parameters::load(&config, &checkpoint, &kernels, progress)?;
        let frequencies = Frequencies::new(&config, &kernels)?;
        static LOADED: AtomicU64 = AtomicU64::new(0);
        Ok(Model {
            number: LOADED.fetch_add(1, Ordering::Relaxed),
            config,
            kernels,
            parameters,
            frequencies,
        })
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    pub fn kernels(&self) -> &Kernels {
        &self.kernels
    }

    /// What the model runs on.
    pub fn device(&self) -> &Device {
        self.kernels.library().device()
    }

    /// What the weights take in memory.
    pub fn weight_bytes(&self) -> usize {
        self.parameters.bytes
    }

    /// Whether the checkpoint holds a multi-token-prediction block.
    pub fn has_draft(&self) -> bool {
        self.parameters.draft.is_some()
    }

    /// `[F]`: rotary frequencies of window-only layers and of those that compress.
    pub fn rope_frequencies(&self) -> (View<'_>, View<'_>) {
        (
            self.frequencies.main.view(),
            self.frequencies.compress.view(),
        )
    }

    /// Memory for `sequences` of up to `context` tokens each, at most `most_tokens` in one call.
    ///
    /// # Errors
    /// [`ModelError`]: a size out of range, or no memory.
    pub fn session(
        &self,
        sequences: usize,
        context: usize,
        most_tokens: usize,
    ) -> Result<Session, ModelError> {
        if sequences == 0 || context == 0 || most_tokens == 0 {
            return Err(ModelError::Input(
                "a session needs at least one sequence, one token of context and one token per call".into(),
            ));
        }
        Ok(Session {
            model: self.number,
            steps: Steps::new(self.device()),
            cache: KvCache::new(self.device(), &self.config, sequences, context, most_tokens)?,
            batch: Batch::default(),
            workspace: Workspace::new(
                self.device(),
                &self.config,
                most_tokens,
                context,
                self.parameters.most_columns(),
                self.has_draft(),
            )?,
        })
    }

    /// Runs the next tokens of some sequences.
    ///
    /// # Errors
    /// [`ModelError::Input`] for tokens the session cannot take; a launch that was refused; what the trace reports.
    pub fn forward<'s>(
        &self,
        session: &'s mut Session,
        runs: &[Run],
        logits: Logits,
        trace: Option<&mut dyn Trace>,
    ) -> Result<Output<'s>, ModelError> {
        let Session {
            model,
            steps,
            cache,
            batch,
            workspace,
        } = session;
        if *model != self.number {
            return Err(ModelError::Input(
                "the session is another model's; ask this one for a session".into(),
            ));
        }
        batch.fill(runs, cache, self.config.vocab_size, workspace.most_tokens)?;
        let draft = match (batch.next_ids.is_empty(), &self.parameters.draft) {
            (true, _) => None,
            (false, Some(draft)) => Some(draft),
            (false, None) => {
                return Err(ModelError::Input(
                    "next tokens were given, and the model has no multi-token-prediction block"
                        .into(),
                ));
            }
        };
        let rows = match logits {
            Logits::All => batch.tokens(),
            Logits::Last => batch.last.len(),
        };
        let mut longest = longest(batch);
        // One token of each sequence, and nothing that the host looks at on the way.
        let is_step = batch.tokens() == runs.len() && draft.is_none() && trace.is_none();
        let (sequences, context, most) =
            (cache.sequences(), cache.context(), workspace.most_tokens);
        let shape = (steps.on && is_step)
            .then(|| Steps::shape(runs.len(), longest, sequences, context, most))
            .flatten();
        if let Some(shape) = shape {
            batch.fill_up(shape.tokens, cache);
            longest = shape.longest;
        }
        // Copying all rows costs little and keeps the streams for the draft block.
        let all: Vec<i32>;
        let picked = match logits {
            Logits::All => {
                all = (0..batch.tokens() as i32).collect();
                &all
            }
            Logits::Last => &batch.last,
        };
        workspace.upload(batch, picked)?;
        let mut pass = Pass {
            c: &self.config,
            k: &self.kernels,
            frequencies: &self.frequencies,
            w: &mut *workspace,
            t: batch.tokens(),
            longest,
            tracer: Tracer::new(trace),
        };
        let mut launch = || pass.run(&self.parameters, cache, picked.len());
        match shape {
            Some(shape) => steps.run(self.device(), shape, &mut launch)?,
            None => launch()?,
        }
        if let Some(draft) = draft {
            pass.draft(&self.parameters, draft, cache)?;
        }
        for run in runs {
            cache.advance(run.sequence, run.ids.len());
        }
        let draft_logits = match (&draft, &workspace.draft) {
            (Some(_), Some(w)) => Some(w.logits.rows(batch.tokens())?),
            _ => None,
        };
        Ok(Output {
            logits: workspace.logits.rows(rows)?,
            draft_logits,
        })
    }
}

impl Session {
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Whether steps of one token per sequence are recorded and replayed. At first they are on a GPU; a CPU, which cannot record, only
    /// fills them up as if it did.
    pub fn replay_steps(&mut self, on: bool) {
        self.steps.on = on;
    }

    /// Empties a sequence's slot.
    pub fn reset(&mut self, sequence: usize) {
        self.cache.reset(sequence);
    }
}

/// The largest number of tokens that a sequence of the batch has after the call.
fn longest(batch: &Batch) -> usize {
    batch.positions.iter().max().map_or(0, |&p| p as usize + 1)
}

/// One call under way.
struct Pass<'a, 't> {
    c: &'a Config,
    k: &'a Kernels,
    frequencies: &'a Frequencies,
    w: &'a mut Workspace,
    /// Tokens.
    t: usize,
    longest: usize,
    tracer: Tracer<'t>,
}

type Done = Result<(), ModelError>;

impl Pass<'_, '_> {
    fn run(&mut self, p: &Parameters, cache: &mut KvCache, picked: usize) -> Done {
        let t = self.t;
        self.rope_tables()?;
        // X [T, N, D]: the embedding in every stream.
        self.k.embed(EmbedArgs {
            ids: self.w.ids.rows(t)?,
            table: p.embed.view(),
            x: self.w.x.rows_mut(t)?,
        })?;
        for (index, (layer, cache)) in p.layers.iter().zip(&mut cache.layers).enumerate() {
            self.tracer.enter(|| format!("L{index}."));
            self.block(layer, cache)?;
            self.tracer.enter(String::new);
            if self.tracer.is_on() {
                self.tracer
                    .record(&format!("hidden.{index}"), self.w.x.rows(t)?)?;
            }
        }
        self.head(p, picked)
    }

    fn rope_tables(&mut self) -> Done {
        let (k, t) = (self.k, self.t);
        let tables = [
            (&self.frequencies.main, &mut self.w.rope_main),
            (&self.frequencies.compress, &mut self.w.rope_compress),
        ];
        for (f, rope) in tables {
            // cos, sin [T, F]
            k.rope_table(RopeTableArgs {
                pos: self.w.positions.rows(t)?,
                f: f.view(),
                cosine: rope.cosine.rows_mut(t)?,
                sine: rope.sine.rows_mut(t)?,
            })?;
        }
        Ok(())
    }

    /// X <- hc(attention), X <- hc(experts).
    fn block(&mut self, layer: &Layer, cache: &mut LayerCache) -> Done {
        self.hc_pre(&layer.attn_hc, &layer.attn_norm, "attn")?;
        self.attention(layer, cache)?;
        self.hc_post()?;
        self.hc_pre(&layer.ffn_hc, &layer.ffn_norm, "ffn")?;
        self.moe(&layer.moe)?;
        self.hc_post()
    }

    /// input [T, D] = rms(Σ_j pre_j X_j), with post [T, N] and comb [T, N, N] for `hc_post`.
    fn hc_pre(&mut self, site: &HcSite, norm: &Tensor, name: &str) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let streams = [t, 1, c.hc_mult * c.hidden_size];
        linear(k, w.x.shaped(&streams)?, &site.mix, &mut w.mix)?;
        k.hc_pre(HcPreArgs {
            x: w.x.rows(t)?,
            mix: w.mix.rows(t)?,
            base: site.base.view(),
            scale: site.scale.view(),
            pre: w.pre.rows_mut(t)?,
            post: w.post.rows_mut(t)?,
            comb: w.comb.rows_mut(t)?,
            y: w.collapsed.rows_mut(t)?,
            norm_eps: c.rms_norm_eps as f32,
            eps: c.hc_eps as f32,
            iters: c.hc_sinkhorn_iters as i64,
        })?;
        rms(k, w.collapsed.rows(t)?, norm, &mut w.input, c)?;
        if self.tracer.is_on() {
            let w = &*self.w;
            for (value, tensor) in [
                ("pre", &w.pre),
                ("post", &w.post),
                ("comb", &w.comb),
                ("collapsed", &w.collapsed),
            ] {
                self.tracer
                    .record(&format!("{name}_hc.{value}"), tensor.rows(t)?)?;
            }
            self.tracer
                .record(&format!("{name}.in"), w.input.rows(t)?)?;
        }
        Ok(())
    }

    /// X_k = post_k · output + Σ_j comb[j, k] X_j.
    fn hc_post(&mut self) -> Done {
        let (k, t) = (self.k, self.t);
        let w = &mut *self.w;
        k.hc_post(HcPostArgs {
            f: w.output.rows(t)?,
            x: w.x.rows(t)?,
            post: w.post.rows(t)?,
            comb: w.comb.rows(t)?,
            y: w.x_next.rows_mut(t)?,
        })?;
        swap(&mut w.x, &mut w.x_next);
        Ok(())
    }

    /// input [T, D] to output [T, D].
    fn attention(&mut self, layer: &Layer, cache: &mut LayerCache) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let p = &layer.attn;
        let kind = layer.kind;
        let (heads, dim) = (c.num_attention_heads, c.head_dim);

        // All products with the input, side by side.
        let w = &mut *self.w;
        linear(
            k,
            w.input.shaped(&[t, 1, c.hidden_size])?,
            &p.inputs,
            &mut w.projected,
        )?;
        let product = [t, p.inputs.outputs];

        // Queries [T, H, A]: low rank, norm, up, norm of each head, rotation.
        let q_low = part(&w.projected, product, &p.wq_a)?;
        rms(k, q_low, &p.q_norm, &mut w.q_residual, c)?;
        linear(
            k,
            w.q_residual.shaped(&[t, 1, c.q_lora_rank])?,
            &p.wq_b,
            &mut w.q_raw,
        )?;
        let rope = match kind {
            LayerKind::Window => &w.rope_main,
            _ => &w.rope_compress,
        };
        k.norm_rotate(NormRotateArgs {
            x: w.q_raw.rows(t)?,
            cosine: rope.cosine.rows(t)?,
            sine: rope.sine.rows(t)?,
            y: w.q.rows_mut(t)?,
            eps: c.rms_norm_eps as f32,
        })?;

        // One key, also the value, per token [T, A]: into the window's ring.
        let kv_raw = part(&w.projected, product, &p.wkv)?;
        rms(k, kv_raw, &p.kv_norm, &mut w.kv_normed, c)?;
        k.rotate(RotateArgs {
            x: w.kv_normed.shaped(&[t, 1, dim])?,
            cosine: rope.cosine.rows(t)?,
            sine: rope.sine.rows(t)?,
            y: w.kv.shaped_mut(&[t, 1, dim])?,
            sign: 1.0,
        })?;
        k.store_ring(StoreRingArgs {
            rows: w.kv.rows(t)?,
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            ring: cache.ring.view_mut()?,
        })?;

        // Compressed entries of the blocks that these tokens close, and which of them each token sees.
        if let (Some(compressor), Some(main)) = (&p.compressor, &mut cache.main) {
            self.compress(compressor, main, product)?;
        }
        if let (Some(indexer), Some(index)) = (&p.indexer, &mut cache.index) {
            self.compress(&indexer.compressor, index, product)?;
            self.pick(indexer, index, kind, product)?;
        }

        // core [T, H, A], turned back by each query's position.
        let w = &mut *self.w;
        let entries = cache
            .main
            .as_ref()
            .map_or(&cache.no_entries, |main| &main.entries);
        let picks = match kind {
            LayerKind::CompressedSparse { .. } => &w.picks,
            _ => &w.no_picks,
        };
        k.attention(AttentionArgs {
            q: w.q.rows(t)?,
            ring: cache.ring.view(),
            entries: entries.view(),
            picks: picks.rows(t)?,
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            sink: p.sink.view(),
            o: w.core.rows_mut(t)?,
            window: c.sliding_window as i64,
            ratio: kind.ratio() as i64,
            scale: (dim as f32).sqrt().recip(),
        })?;
        let rope = match kind {
            LayerKind::Window => &w.rope_main,
            _ => &w.rope_compress,
        };
        k.rotate(RotateArgs {
            x: w.core.rows(t)?,
            cosine: rope.cosine.rows(t)?,
            sine: rope.sine.rows(t)?,
            y: w.core_derot.rows_mut(t)?,
            sign: -1.0,
        })?;

        // Output: each group of heads to its own rank [T, G, R], all of them to [T, D].
        linear(
            k,
            w.core_derot.shaped(&[t, c.o_groups, c.o_group_width()])?,
            &p.wo_a,
            &mut w.o_low,
        )?;
        linear(
            k,
            w.o_low.shaped(&[t, 1, c.o_groups * c.o_lora_rank])?,
            &p.wo_b,
            &mut w.output,
        )?;
        if self.tracer.is_on() {
            self.trace_attention(layer, cache, heads * dim)?;
        }
        Ok(())
    }

    /// Puts the tokens' rows into the open blocks and writes the entries of those that close.
    fn compress(
        &mut self,
        p: &parameters::Compressor,
        cache: &mut CompressorCache,
        product: [usize; 2],
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let rings = [(&p.wkv, &mut cache.keys), (&p.wgate, &mut cache.gates)];
        for (columns, ring) in rings {
            k.store_ring(StoreRingArgs {
                rows: part(&w.projected, product, columns)?,
                pos: w.positions.rows(t)?,
                seq: w.sequences.rows(t)?,
                ring: ring.view_mut()?,
            })?;
        }
        k.compress(CompressArgs {
            keys: cache.keys.view(),
            gates: cache.gates.view(),
            ape: p.ape.view(),
            norm: p.norm.view(),
            f: self.frequencies.compress.view(),
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            entries: cache.entries.view_mut()?,
            eps: c.rms_norm_eps as f32,
        })?;
        Ok(())
    }

    /// picks [T, topk]: the entries each token attends to.
    fn pick(
        &mut self,
        p: &parameters::Indexer,
        cache: &CompressorCache,
        kind: LayerKind,
        product: [usize; 2],
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let (heads, dim) = (c.index_n_heads, c.index_head_dim);
        let entries = self.longest / kind.ratio();
        let w = &mut *self.w;
        let all = self.tracer.is_on();
        if entries > c.index_topk || all {
            linear(
                k,
                w.q_residual.shaped(&[t, 1, c.q_lora_rank])?,
                &p.wq_b,
                &mut w.index_q_raw,
            )?;
            k.rotate(RotateArgs {
                x: w.index_q_raw.rows(t)?,
                cosine: w.rope_compress.cosine.rows(t)?,
                sine: w.rope_compress.sine.rows(t)?,
                y: w.index_q.rows_mut(t)?,
                sign: 1.0,
            })?;
            k.index_scores(IndexScoresArgs {
                q: w.index_q.rows(t)?,
                w: part(&w.projected, product, &p.weights_proj)?,
                k: cache.entries.view(),
                pos: w.positions.rows(t)?,
                seq: w.sequences.rows(t)?,
                scores: w.index_scores.shaped_mut(&[t, entries])?,
                ratio: kind.ratio() as i64,
                all: all as i64,
                scale: (dim as f32).sqrt().recip(),
                head_scale: (heads as f32).sqrt().recip(),
            })?;
        }
        // With few enough entries every one is picked, whatever its score.
        k.index_topk(IndexTopkArgs {
            scores: w.index_scores.shaped(&[t, entries])?,
            pos: w.positions.rows(t)?,
            picks: w.picks.rows_mut(t)?,
            ratio: kind.ratio() as i64,
        })?;
        Ok(())
    }

    /// input [T, D] to output [T, D].
    fn moe(&mut self, p: &Moe) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let (hidden, inter, choices) = (
            c.hidden_size,
            c.moe_intermediate_size,
            c.num_experts_per_tok,
        );
        let input = [t, 1, hidden];

        // All products with the input, side by side.
        linear(k, w.input.shaped(&input)?, &p.inputs, &mut w.projected)?;
        let product = [t, p.inputs.outputs];

        // Chosen experts [T, K] in ascending order, their weights [T, K].
        let scale = c.routed_scaling_factor as f32;
        match &p.choice {
            Choice::Scored { bias } => k.route(RouteArgs {
                logits: part(&w.projected, product, &p.gate)?,
                bias: bias.view(),
                scores: w.gate_scores.rows_mut(t)?,
                experts: w.experts.rows_mut(t)?,
                weights: w.expert_weights.rows_mut(t)?,
                route_scale: scale,
            })?,
            Choice::Table { experts } => k.route_by_table(RouteByTableArgs {
                logits: part(&w.projected, product, &p.gate)?,
                ids: w.ids.rows(t)?,
                table: experts.view(),
                scores: w.gate_scores.rows_mut(t)?,
                experts: w.experts.rows_mut(t)?,
                weights: w.expert_weights.rows_mut(t)?,
                route_scale: scale,
            })?,
        }

        // Pairs sorted by expert, cut into tiles of rows.
        let pairs = t * choices;
        let rows = rows_per_tile(t);
        let tiles = most_tiles(pairs, c.n_routed_experts, rows);
        k.count_pairs(CountPairsArgs {
            expert: w.experts.shaped(&[pairs])?,
            count: w.expert_count.view_mut()?,
        })?;
        k.group_pairs(GroupPairsArgs {
            expert: w.experts.shaped(&[pairs])?,
            count: w.expert_count.view(),
            pair: w.pair.rows_mut(pairs)?,
            tile_expert: w.tile_expert.rows_mut(tiles)?,
            tile_first: w.tile_first.rows_mut(tiles)?,
            tile_end: w.tile_end.rows_mut(tiles)?,
            tiles: w.tiles.view_mut()?,
            rows: rows as i64,
        })?;

        // Routed experts: h [T K, I] by sorted row, y [T K, D] by pair.
        let limit = c.swiglu_limit as f32;
        k.expert_up(ExpertUpArgs {
            x: w.input.rows(t)?,
            w1: p.w1.view(),
            w3: p.w3.view(),
            pair: w.pair.rows(pairs)?,
            tile_expert: w.tile_expert.rows(tiles)?,
            tile_first: w.tile_first.rows(tiles)?,
            tile_end: w.tile_end.rows(tiles)?,
            tiles: w.tiles.view(),
            weight: w.expert_weights.shaped(&[pairs])?,
            h: w.expert_h.rows_mut(pairs)?,
            choices: choices as i64,
            rows: rows as i64,
            limit,
        })?;
        k.expert_down(ExpertDownArgs {
            h: w.expert_h.rows(pairs)?,
            w2: p.w2.view(),
            pair: w.pair.rows(pairs)?,
            tile_expert: w.tile_expert.rows(tiles)?,
            tile_first: w.tile_first.rows(tiles)?,
            tile_end: w.tile_end.rows(tiles)?,
            tiles: w.tiles.view(),
            y: w.expert_y.rows_mut(pairs)?,
            rows: rows as i64,
        })?;

        // The shared expert [T, D], and the sum of all.
        k.swiglu(SwigluArgs {
            gate: part(&w.projected, product, &p.shared_w1)?,
            up: part(&w.projected, product, &p.shared_w3)?,
            y: w.shared_h.rows_mut(t)?,
            limit,
        })?;
        linear(
            k,
            w.shared_h.shaped(&[t, 1, inter])?,
            &p.shared_w2,
            &mut w.shared_y,
        )?;
        k.combine(CombineArgs {
            y: w.expert_y.shaped(&[t, choices, hidden])?,
            shared_out: w.shared_y.rows(t)?,
            routed: w.routed.rows_mut(t)?,
            total: w.output.rows_mut(t)?,
        })?;
        if self.tracer.is_on() {
            let w = &*self.w;
            let logits = part(&w.projected, product, &p.gate)?;
            self.tracer.record("gate.logits", logits)?;
            for (name, tensor) in [
                ("gate.scores", &w.gate_scores),
                ("gate.topk_idx", &w.experts),
                ("gate.topk_w", &w.expert_weights),
                ("moe.routed", &w.routed),
                ("moe.shared", &w.shared_y),
                ("moe.out", &w.output),
            ] {
                self.tracer.record(name, tensor.rows(t)?)?;
            }
        }
        Ok(())
    }

    /// logits [rows, V] of the picked tokens.
    fn head(&mut self, p: &Parameters, rows: usize) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let width = c.hc_mult * c.hidden_size;
        k.take_rows(TakeRowsArgs {
            x: w.x.shaped(&[t, width])?,
            rows: w.picked.rows(rows)?,
            y: w.head_x.shaped_mut(&[rows, width])?,
        })?;
        collapse(c, k, &p.hc_head, w, rows)?;
        rms(
            k,
            w.head_collapsed.rows(rows)?,
            &p.norm,
            &mut w.head_norm,
            c,
        )?;
        linear(
            k,
            w.head_norm.shaped(&[rows, 1, c.hidden_size])?,
            &p.head,
            &mut w.logits,
        )?;
        self.tracer
            .record("head.collapsed", w.head_collapsed.rows(rows)?)?;
        self.tracer.record("head.norm", w.head_norm.rows(rows)?)?;
        self.tracer.record("logits", w.logits.rows(rows)?)
    }

    /// draft logits [T, V]: one more block over the streams and the next token's embedding, its own head norm, the shared head.
    fn draft(&mut self, p: &Parameters, draft: &DraftBlock, cache: &mut KvCache) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let (n, hidden) = (c.hc_mult, c.hidden_size);
        let Some(cache) = &mut cache.draft else {
            return Err(ModelError::Input("the session has no draft cache".into()));
        };
        let Some(mut d) = self.w.draft.take() else {
            return Err(ModelError::Input(
                "the session has no draft workspace".into(),
            ));
        };
        self.tracer.enter(|| "mtp.".into());
        let done = self.draft_block(p, draft, cache, &mut d, [t, n, hidden]);
        let last = match done {
            Ok(()) => linear(
                k,
                self.w.head_norm.shaped(&[t, 1, hidden])?,
                &p.head,
                &mut d.logits,
            )
            .and_then(|()| {
                self.tracer.record("head_norm", self.w.head_norm.rows(t)?)?;
                self.tracer.record("logits", d.logits.rows(t)?)
            }),
            Err(error) => Err(error),
        };
        self.w.draft = Some(d);
        last
    }

    fn draft_block(
        &mut self,
        p: &Parameters,
        draft: &DraftBlock,
        cache: &mut LayerCache,
        d: &mut DraftWorkspace,
        [t, n, hidden]: [usize; 3],
    ) -> Done {
        let (c, k) = (self.c, self.k);
        let w = &mut *self.w;
        // X = e_proj(rms(embedding)) in every stream + h_proj(rms(X)) stream by stream.
        k.embed(EmbedArgs {
            ids: w.next_ids.rows(t)?,
            table: p.embed.view(),
            x: d.embedded.rows_mut(t)?,
        })?;
        rms(
            k,
            d.embedded.shaped(&[t, hidden])?,
            &draft.enorm,
            &mut d.e,
            c,
        )?;
        linear(
            k,
            d.e.shaped(&[t, 1, hidden])?,
            &draft.e_proj,
            &mut d.e_proj,
        )?;
        let eps = c.rms_norm_eps as f32;
        k.rmsnorm(RmsnormArgs {
            x: w.x.shaped(&[t * n, hidden])?,
            w: draft.hnorm.view(),
            y: d.h.shaped_mut(&[t * n, hidden])?,
            eps,
        })?;
        linear(
            k,
            d.h.shaped(&[t * n, 1, hidden])?,
            &draft.h_proj,
            &mut d.h_proj,
        )?;
        k.mtp_merge(MtpMergeArgs {
            e: d.e_proj.rows(t)?,
            h: d.h_proj.rows(t)?,
            x: w.x.rows_mut(t)?,
        })?;
        self.tracer.record("block_in", w.x.rows(t)?)?;
        self.block(&draft.layer, cache)?;
        let w = &mut *self.w;
        self.tracer.record("block_out", w.x.rows(t)?)?;
        swap(&mut w.x, &mut w.head_x);
        let collapsed = collapse(c, k, &draft.hc_head, w, t);
        swap(&mut w.x, &mut w.head_x);
        collapsed?;
        rms(
            k,
            w.head_collapsed.rows(t)?,
            &draft.norm,
            &mut w.head_norm,
            c,
        )
    }

    fn trace_attention(&mut self, layer: &Layer, cache: &LayerCache, width: usize) -> Done {
        let (c, t) = (self.c, self.t);
        let product = [t, layer.attn.inputs.outputs];
        let w = &*self.w;
        for (name, tensor) in [
            ("attn.q_residual", &w.q_residual),
            ("attn.q", &w.q),
            ("attn.kv", &w.kv),
            ("attn.core", &w.core),
        ] {
            self.tracer.record(name, tensor.rows(t)?)?;
        }
        self.tracer
            .record("attn.core_derot", w.core_derot.shaped(&[t, width])?)?;
        let low = [t, c.o_groups * c.o_lora_rank];
        self.tracer.record("attn.o_a", w.o_low.shaped(&low)?)?;
        self.tracer.record("attn.out", w.output.rows(t)?)?;
        if let Some(main) = &cache.main {
            let closed = (self.longest / layer.kind.ratio()) as i64;
            self.tracer
                .record("comp.kv", main.entries.view().slice(1, 0..closed)?)?;
            if let (Some(index), Some(p)) = (&cache.index, &layer.attn.indexer) {
                self.tracer.record("idx.q", w.index_q.rows(t)?)?;
                self.tracer
                    .record("idx.k", index.entries.view().slice(1, 0..closed)?)?;
                let weights = part(&w.projected, product, &p.weights_proj)?;
                self.tracer.record("idx.head_w", weights)?;
                self.tracer
                    .record("idx.scores", w.index_scores.shaped(&[t, closed as usize])?)?;
                self.tracer.record("idx.topk", w.picks.rows(t)?)?;
            }
        }
        Ok(())
    }
}

/// head_collapsed [rows, D] = hc_head(head_x [rows, N, D]).
fn collapse(c: &Config, k: &Kernels, site: &HcSite, w: &mut Workspace, rows: usize) -> Done {
    let streams = [rows, 1, c.hc_mult * c.hidden_size];
    linear(k, w.head_x.shaped(&streams)?, &site.mix, &mut w.head_mix)?;
    k.hc_head(HcHeadArgs {
        x: w.head_x.rows(rows)?,
        mix: w.head_mix.rows(rows)?,
        base: site.base.view(),
        scale: site.scale.view(),
        y: w.head_collapsed.rows_mut(rows)?,
        norm_eps: c.rms_norm_eps as f32,
        eps: c.hc_eps as f32,
    })?;
    Ok(())
}

/// y [M, G, N] = x [M, G, K] · w^T.
fn linear(k: &Kernels, x: View, w: &Linear, y: &mut Tensor) -> Done {
    let (rows, groups) = (x.shape()[0] as usize, x.shape()[1] as usize);
    k.linear(LinearArgs {
        x,
        w: w.panels(),
        y: y.shaped_mut(&[rows, groups, w.outputs])?,
    })?;
    Ok(())
}

/// The columns of one matrix in a stacked product `[T, N]`.
fn part<'a>(product: &'a Tensor, shape: [usize; 2], part: &Part) -> Result<View<'a>, ModelError> {
    Ok(product.shaped(&shape)?.slice(1, part.clone())?)
}

/// y [R, D] = rms(x [R, D]) · weight.
fn rms(k: &Kernels, x: View, weight: &Tensor, y: &mut Tensor, c: &Config) -> Done {
    let rows = x.shape()[0] as usize;
    k.rmsnorm(RmsnormArgs {
        x,
        w: weight.view(),
        y: y.rows_mut(rows)?,
        eps: c.rms_norm_eps as f32,
    })?;
    Ok(())
}
