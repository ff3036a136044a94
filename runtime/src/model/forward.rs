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
use super::config::Config;
use super::cost::{Place, Section};
use super::kernels::{
    EmbedArgs, GemmPartsArgs, HcHeadArgs, HcHeadBf16Args, HcPostArgs, HcPreArgs, Kernels,
    RopeTableArgs, RouteArgs, RouteByTableArgs, SumPartsArgs, TakeRowsArgs,
};
use super::kv_cache::{KvCache, LayerCache, Parts, Room, Shared};
use super::ops::{Done, RUN, linear, mix, part, rms};
use super::parameters::{Choice, Gate, HcSite, Inputs, Layer, Moe, Parameters, Part, Weights};
use super::quantised::Quantised;
use super::rope::Frequencies;
use super::steps::Steps;
use super::trace::{Trace, Tracer};
use super::workspace::{Rows, Workspace};
use crate::weights::{Checkpoint, Draft};
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
        Model::over(config, kernels, parameters)
    }

    /// A model of this configuration with random weights, made on the device (`synthetic.rs`).
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn synthetic(
        config: Config,
        seed: u32,
        kernels: Kernels,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Model, ModelError> {
        let parameters = Parameters::synthetic(&config, seed, &kernels, progress)?;
        Model::over(config, kernels, parameters)
    }

    fn over(config: Config, kernels: Kernels, parameters: Parameters) -> Result<Model, ModelError> {
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

    /// What the checkpoint has under `mtp.`: of the two kinds of draft modules only one is run.
    pub fn draft_kind(&self) -> Draft {
        self.parameters.draft_kind
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
        self.session_in(Room {
            sequences,
            context,
            most_tokens,
            pages: None,
        })
    }

    /// The same, with room as it says: sequences may share fewer pages of entries than all of them could take.
    ///
    /// # Errors
    /// As [`session`](Self::session).
    pub fn session_in(&self, room: Room) -> Result<Session, ModelError> {
        let Room {
            sequences,
            context,
            most_tokens,
            ..
        } = room;
        if sequences == 0 || context == 0 || most_tokens == 0 {
            return Err(ModelError::Input(
                "a session needs at least one sequence, one token of context and one token per call".into(),
            ));
        }
        Ok(Session {
            model: self.number,
            steps: Steps::new(self.device()),
            cache: KvCache::new(self.device(), &self.config, room)?,
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
    /// [`ModelError::Input`] for tokens the session cannot take; [`ModelError::Full`] where its pages do not suffice; a launch that was refused; what the trace reports.
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
        let wanted: Vec<_> = runs
            .iter()
            .map(|run| {
                let length = cache.length(run.sequence).unwrap_or(0);
                (run.sequence, length + run.ids.len())
            })
            .collect();
        cache.reserve(&wanted)?;
        cache.upload(batch)?;
        workspace.upload(batch, picked)?;
        let mut pass = Pass {
            c: &self.config,
            k: &self.kernels,
            frequencies: &self.frequencies,
            w: &mut *workspace,
            t: batch.tokens(),
            longest,
            each_once: runs.iter().all(|run| run.ids.len() == 1),
            tracer: Tracer::new(trace),
            place: Place::Outside,
            mixed: false,
            apart: false,
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

    #[cfg(test)]
    pub(super) fn cache_mut(&mut self) -> &mut KvCache {
        &mut self.cache
    }

    /// Whether steps of one token per sequence are recorded and replayed. At first they are on a GPU; a CPU, which cannot record, only
    /// fills them up as if it did.
    pub fn replay_steps(&mut self, on: bool) {
        self.steps.on = on;
    }

    /// Takes a block of state for a new request: the number of its sequence.
    ///
    /// # Errors
    /// [`ModelError::Full`]
    pub fn start(&mut self) -> Result<usize, ModelError> {
        Ok(self.cache.start()?)
    }

    /// Ends a sequence's request: its state and its pages are free.
    pub fn reset(&mut self, sequence: usize) {
        self.cache.reset(sequence);
    }

    /// Gives every sequence `length` tokens of random keys and values, as if it had read them: to measure without reading.
    ///
    /// # Errors
    /// As [`KvCache::fill_random`].
    pub fn fill_random(
        &mut self,
        model: &Model,
        length: usize,
        seed: u32,
    ) -> Result<(), ModelError> {
        self.cache.fill_random(&model.kernels, length, seed)
    }
}

/// The largest number of tokens that a sequence of the batch has after the call.
fn longest(batch: &Batch) -> usize {
    batch.positions.iter().max().map_or(0, |&p| p as usize + 1)
}

/// One call under way.
pub(super) struct Pass<'a, 't> {
    pub c: &'a Config,
    pub k: &'a Kernels,
    pub frequencies: &'a Frequencies,
    pub w: &'a mut Workspace,
    /// Tokens.
    pub t: usize,
    pub longest: usize,
    /// No sequence has more than one token.
    pub each_once: bool,
    pub tracer: Tracer<'t>,
    pub place: Place,
    /// The streams' products for the next site were made with the streams.
    pub mixed: bool,
    /// The experts' outputs are still to be added up, with the shared one's.
    pub apart: bool,
}

impl Pass<'_, '_> {
    /// Says what the next launches are for.
    pub(super) fn section(&self, section: Section) {
        let library = self.k.library();
        library.section(|| format!("{}{}", self.place, section.name()));
    }

    fn run(&mut self, p: &Parameters, cache: &mut KvCache, picked: usize) -> Done {
        let t = self.t;
        self.section(Section::Embedding);
        self.rope_tables()?;
        // X [T, N, D]: the embedding in every stream.
        self.k.embed(EmbedArgs {
            ids: self.w.ids.rows(t)?,
            table: p.embed.view(),
            x: self.w.x.rows_mut(t)?,
        })?;
        self.tracer.watch("embedded", || self.w.x.rows_mut(t))?;
        let Parts {
            layers, mut shared, ..
        } = cache.parts();
        for (index, (layer, cache)) in p.layers.iter().zip(layers).enumerate() {
            self.tracer.enter(|| format!("L{index}."));
            self.place = Place::Layer(index);
            let next = p.layers.get(index + 1).map(|layer| &layer.attn_hc);
            self.block(layer, cache, &mut shared, next)?;
            self.place = Place::Outside;
            self.tracer.enter(String::new);
            if self.tracer.is_on() {
                self.tracer
                    .watch(&format!("hidden.{index}"), || self.w.x.rows_mut(t))?;
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

    /// X <- hc(attention), X <- hc(experts); `next`: the site that takes X then.
    pub(super) fn block(
        &mut self,
        layer: &Layer,
        cache: &mut LayerCache,
        shared: &mut Shared,
        next: Option<&HcSite>,
    ) -> Done {
        self.section(Section::HyperConnections);
        self.hc_pre(&layer.attn_hc, &layer.attn_norm, "attn")?;
        self.attention(layer, cache, shared)?;
        self.section(Section::HyperConnections);
        self.hc_post(Some(&layer.ffn_hc))?;
        let t = self.t;
        self.tracer.watch("mid", || self.w.x.rows_mut(t))?;
        self.hc_pre(&layer.ffn_hc, &layer.ffn_norm, "ffn")?;
        self.moe(&layer.moe, next)?;
        self.section(Section::HyperConnections);
        self.hc_post(next)
    }

    /// input [T, D] = rms(Σ_j pre_j X_j), with post [T, N] and comb [T, N, N] for `hc_post`.
    pub(super) fn hc_pre(&mut self, site: &HcSite, norm: &Tensor, name: &str) -> Done {
        if let Weights::Parts(weights) = &site.mix.weights {
            return self.hc_pre_bf16(site, weights, norm, name);
        }
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let streams = [t, 1, c.hc_mult * c.hidden_size];
        linear(k, w.x.shaped(&streams)?, &site.mix, &mut w.mix, &mut None)?;
        self.tracer
            .watch(&format!("{name}_hc.mix"), || w.mix.rows_mut(t))?;
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
        self.watch_hc(name)?;
        let w = &mut *self.w;
        rms(k, w.collapsed.rows(t)?, norm, &mut w.input, c)?;
        self.tracer
            .watch(&format!("{name}.in"), || w.input.rows_mut(t))
    }

    pub(super) fn watch_hc(&mut self, name: &str) -> Done {
        if !self.tracer.is_on() {
            return Ok(());
        }
        let (w, t) = (&mut *self.w, self.t);
        for (value, tensor) in [
            ("pre", &mut w.pre),
            ("post", &mut w.post),
            ("comb", &mut w.comb),
            ("collapsed", &mut w.collapsed),
        ] {
            self.tracer
                .watch(&format!("{name}_hc.{value}"), || tensor.rows_mut(t))?;
        }
        Ok(())
    }

    /// X_k = post_k · output + Σ_j comb[j, k] X_j; `next`: the site that takes X.
    fn hc_post(&mut self, next: Option<&HcSite>) -> Done {
        if self.w.quantised.is_some() {
            return self.hc_post_bf16(next);
        }
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

    /// All products with the input [T, D], side by side.
    pub(super) fn products(&mut self, inputs: &Inputs) -> Done {
        let w = &mut *self.w;
        let x = w.input.shaped(&[self.t, 1, self.c.hidden_size])?;
        match (&inputs.linear.weights, &mut w.quantised) {
            // `hc_pre_bf16` left the codes of the input, for which a trace may have put another one.
            (Weights::Codes(matrix), Some(quantised)) if !self.tracer.is_on() => {
                let y = w.projected.shaped_mut(&[self.t, inputs.linear.outputs])?;
                quantised.input.product(self.k, matrix, self.t, y)?;
            }
            _ => linear(
                self.k,
                x,
                &inputs.linear,
                &mut w.projected,
                &mut w.quantised,
            )?,
        }
        if let (Some(wide), Some(quantised)) = (&inputs.wide, &mut w.quantised) {
            linear(self.k, x, wide, &mut quantised.wide, &mut None)?;
        }
        Ok(())
    }

    /// input [T, D] to output [T, D], or to what `hc_post` adds up to it; `next`: the site that takes the streams behind it.
    fn moe(&mut self, p: &Moe, next: Option<&HcSite>) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let hidden = c.hidden_size;
        self.section(Section::Router);
        self.products(&p.inputs)?;

        // Chosen experts [T, K] in ascending order, their weights [T, K].
        let w = &mut *self.w;
        let scale = c.routed_scaling_factor as f32;
        let experts = c.n_routed_experts;
        let logits = match (&p.gate, &mut w.quantised) {
            (Gate::Rows(weights), Some(quantised)) => {
                let shape = [t, hidden.div_ceil(RUN), experts];
                k.gemm_parts(GemmPartsArgs {
                    x: w.input.rows(t)?,
                    w: weights.view(),
                    parts: quantised.gate.shaped_mut(&shape)?,
                })?;
                let parts = quantised.gate.shaped(&shape)?;
                if self.tracer.is_on() {
                    k.sum_parts(SumPartsArgs {
                        parts,
                        y: w.gate_scores.rows_mut(t)?,
                    })?;
                    self.tracer.record("gate.logits", w.gate_scores.rows(t)?)?;
                }
                parts
            }
            (Gate::Columns(columns), _) => {
                let product = w.projected.shaped(&[t, 1, p.inputs.linear.outputs])?;
                let logits = product.slice(2, columns.clone())?;
                self.tracer.record("gate.logits", logits.select(1, 0)?)?;
                logits
            }
            (Gate::Rows(_), None) => {
                unreachable!("a session of a quantised model has its workspace")
            }
        };
        match &p.choice {
            Choice::Scored { bias } => k.route(RouteArgs {
                logits,
                bias: bias.view(),
                scores: w.gate_scores.rows_mut(t)?,
                experts: w.experts.rows_mut(t)?,
                weights: w.expert_weights.rows_mut(t)?,
                route_scale: scale,
            })?,
            Choice::Table { experts } => k.route_by_table(RouteByTableArgs {
                logits,
                ids: w.ids.rows(t)?,
                table: experts.view(),
                scores: w.gate_scores.rows_mut(t)?,
                experts: w.experts.rows_mut(t)?,
                weights: w.expert_weights.rows_mut(t)?,
                route_scale: scale,
            })?,
        }

        self.tracer
            .watch("gate.topk_idx", || w.experts.rows_mut(t))?;
        self.tracer
            .watch("gate.topk_w", || w.expert_weights.rows_mut(t))?;

        self.experts(p, next)?;
        if self.tracer.is_on() {
            let w = &mut *self.w;
            self.tracer.record("gate.scores", w.gate_scores.rows(t)?)?;
            self.tracer.watch("moe.out", || w.output.rows_mut(t))?;
        }
        Ok(())
    }

    /// logits [rows, V] of the picked tokens.
    fn head(&mut self, p: &Parameters, rows: usize) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let width = c.hc_mult * c.hidden_size;
        k.library().section(|| Section::Head.name().into());
        k.take_rows(TakeRowsArgs {
            x: w.x.shaped(&[t, width])?,
            rows: w.picked.rows(rows)?,
            y: w.head_x.shaped_mut(&[rows, width])?,
        })?;
        collapse(c, k, &p.hc_head, &p.norm, w, rows)?;
        linear(
            k,
            w.head_norm.shaped(&[rows, 1, c.hidden_size])?,
            &p.head,
            &mut w.logits,
            &mut None,
        )?;
        self.tracer
            .record("head.collapsed", w.head_collapsed.rows(rows)?)?;
        self.tracer.record("head.norm", w.head_norm.rows(rows)?)?;
        self.tracer.record("logits", w.logits.rows(rows)?)
    }
}

/// The columns of a matrix that is never quantised in the products with a block's input.
pub(super) fn wide<'a>(
    projected: &'a Tensor,
    quantised: &'a Option<Quantised>,
    inputs: &Inputs,
    t: usize,
    columns: &Part,
) -> Result<View<'a>, ModelError> {
    match (&inputs.wide, quantised) {
        (Some(wide), Some(quantised)) => part(&quantised.wide, [t, wide.outputs], columns),
        _ => part(projected, [t, inputs.linear.outputs], columns),
    }
}

/// head_collapsed [rows, D] = hc_head(head_x [rows, N, D]), head_norm [rows, D] = rms(head_collapsed).
pub(super) fn collapse(
    c: &Config,
    k: &Kernels,
    site: &HcSite,
    norm: &Tensor,
    w: &mut Workspace,
    rows: usize,
) -> Done {
    let (norm_eps, eps) = (c.rms_norm_eps as f32, c.hc_eps as f32);
    if let (Weights::Parts(weights), Some(quantised)) = (&site.mix.weights, &mut w.quantised) {
        let x = w.head_x.shaped(&[rows, c.hc_mult * c.hidden_size])?;
        let parts = mix(k, x, weights, &mut quantised.mix)?;
        k.hc_head_bf16(HcHeadBf16Args {
            x: w.head_x.rows(rows)?,
            parts,
            base: site.base.view(),
            scale: site.scale.view(),
            w: norm.view(),
            collapsed: w.head_collapsed.rows_mut(rows)?,
            y: w.head_norm.rows_mut(rows)?,
            norm_eps,
            eps,
        })?;
        return Ok(());
    }
    let streams = [rows, 1, c.hc_mult * c.hidden_size];
    linear(
        k,
        w.head_x.shaped(&streams)?,
        &site.mix,
        &mut w.head_mix,
        &mut None,
    )?;
    k.hc_head(HcHeadArgs {
        x: w.head_x.rows(rows)?,
        mix: w.head_mix.rows(rows)?,
        base: site.base.view(),
        scale: site.scale.view(),
        y: w.head_collapsed.rows_mut(rows)?,
        norm_eps,
        eps,
    })?;
    rms(k, w.head_collapsed.rows(rows)?, norm, &mut w.head_norm, c)
}
