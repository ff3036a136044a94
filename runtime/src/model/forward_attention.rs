//! Attention in the forward pass: queries, keys and entries, the indexer's choice, the output.

use super::ModelError;
use super::config::LayerKind;
use super::cost::Section;
use super::kept::{Kept, Place};
use super::kernels::{
    AttentionArgs, AttentionRecordsArgs, CompressArgs, IndexScoresArgs, IndexScoresBf16Args,
    IndexScoresKeysArgs, IndexTopkArgs, IndexTopkFewArgs, IndexTopkRowArgs, StoreKeyE4m3Args,
    StoreRingArgs, TakeRowsArgs, WidenPickedArgs,
};
use super::kv_cache::{CompressorCache, LayerCache, Shared};
use super::ops::{Done, attention, linear, norm_rotate, on_gpu, part, rms, turn};
use super::parameters::{self, Inputs, Layer, Weights};
use super::quantised::WIDEST_NORM;
use tessera_artifact::DType;
use tessera_device::{Tensor, View, ViewMut};

/// Heads up to which the indexer's scores are made on tensor cores.
const MOST_INDEX_HEADS: usize = 64;
/// Tokens whose scores are made of keys as they are kept.
const MOST_FROM_KEYS: usize = 64;
/// Tokens from which attention reads keys as they are kept.
const FEWEST_FROM_RECORDS: usize = 16;
/// Codes and turned columns of a record that attention reads so.
const RECORD: [i64; 2] = [448, 64];
/// Keys of a block of scores, and of the pages that blocks are read from.
const KEYS_OF_A_BLOCK: usize = 128;
/// Pairs of entries up to which a place is found by counting.
const MOST_COMPARED: usize = 1 << 27;
/// Entries of a row that one block of a GPU ranks at once.
const MOST_IN_A_BLOCK: usize = 16384;

use super::forward::{Pass, wide};
use super::workspace::Rows;

/// Rows of sequences in pages.
struct Paged<'a> {
    /// `[N, D]`
    rows: View<'a>,
    table: View<'a>,
    per_page: i64,
}

/// Rows `[B, E, D]` of every sequence in their order: one page each.
fn in_order<'a>(rows: &'a Tensor, shared: &Shared<'a>) -> Result<Paged<'a>, ModelError> {
    let &[sequences, entries, width] = rows.shape() else {
        unreachable!("the cache makes them with three axes");
    };
    Ok(Paged {
        rows: rows.view().reshape(&[sequences * entries, width])?,
        table: shared.own,
        per_page: entries,
    })
}

/// `[B, R, ..]` of the rows of all rings, R `slots`.
fn rings(rows: &Tensor, slots: i64) -> Result<View<'_>, ModelError> {
    let shape = [rows.shape()[0] / slots, slots, rows.shape()[1]];
    Ok(rows.view().reshape(&shape)?)
}

/// The same, to be written.
fn rings_mut(rows: &mut Tensor, slots: i64) -> Result<ViewMut<'_>, ModelError> {
    let shape = [rows.shape()[0] / slots, slots, rows.shape()[1]];
    Ok(rows.view_mut()?.reshape(&shape)?)
}

/// Codes, turned columns and scales of records.
fn parts(kept: &Kept) -> Option<[&Tensor; 3]> {
    match kept {
        Kept::Records {
            codes,
            rope,
            scales,
        } => Some([codes, rope, scales]),
        _ => None,
    }
}

/// Those of a layer's window, and of its entries.
fn records(cache: &LayerCache) -> Option<[[&Tensor; 3]; 2]> {
    let own = parts(&cache.ring)?;
    // A layer without entries reads none of those named here.
    let entries = cache.main.as_ref().and_then(|main| parts(&main.entries));
    Some([own, entries.unwrap_or(own)])
}

impl Pass<'_, '_> {
    /// input [T, D] to output [T, D].
    pub(super) fn attention(
        &mut self,
        layer: &Layer,
        cache: &mut LayerCache,
        shared: &mut Shared,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let p = &layer.attn;
        let kind = layer.kind;
        let (heads, dim) = (c.num_attention_heads, c.head_dim);
        self.section(Section::Inputs);
        self.products(&p.inputs)?;
        let product = [t, p.inputs.linear.outputs];
        self.section(Section::Queries);

        // Queries [T, H, A]: low rank, norm, up, norm of each head, rotation.
        let w = &mut *self.w;
        let q_low = part(&w.projected, product, &p.wq_a)?;
        match (&p.wq_b.weights, &mut w.quantised) {
            // The same codes by one launch; nobody else reads what is quantised.
            (Weights::Codes(matrix), Some(quantised))
                if c.q_lora_rank <= WIDEST_NORM && !self.tracer.is_on() =>
            {
                let eps = c.rms_norm_eps as f32;
                (quantised.input).quantise_normed(k, q_low, &p.q_norm, eps)?;
                let y = w.q_raw.shaped_mut(&[t, heads * dim])?;
                quantised.input.product(k, matrix, t, y)?;
            }
            _ => {
                rms(k, q_low, &p.q_norm, &mut w.q_residual, c)?;
                self.tracer
                    .watch("attn.q_residual", || w.q_residual.rows_mut(t))?;
                linear(
                    k,
                    w.q_residual.shaped(&[t, 1, c.q_lora_rank])?,
                    &p.wq_b,
                    &mut w.q_raw,
                    &mut w.quantised,
                )?;
            }
        }
        let rope = match kind {
            LayerKind::Window => &w.rope_main,
            _ => &w.rope_compress,
        };
        norm_rotate(k, &w.q_raw, rope, &mut w.q, t, c)?;
        self.tracer.watch("attn.q", || w.q.rows_mut(t))?;

        // One key, also the value, per token [T, A]: into the window's ring.
        self.section(Section::Cache);
        let w = &mut *self.w;
        let rope = match kind {
            LayerKind::Window => &w.rope_main,
            _ => &w.rope_compress,
        };
        let kv_raw = part(&w.projected, product, &p.wkv)?;
        let slots = cache.slots as i64;
        if let Kept::Records {
            codes,
            rope: turned,
            scales,
        } = &mut cache.ring
        {
            let (codes, turned, scales) = (
                rings_mut(codes, slots)?,
                rings_mut(turned, slots)?,
                rings_mut(scales, slots)?,
            );
            k.store_key_e4m3(StoreKeyE4m3Args {
                x: kv_raw,
                norm: p.kv_norm.view(),
                cosine: rope.cosine.rows(t)?,
                sine: rope.sine.rows(t)?,
                pos: w.positions.rows(t)?,
                seq: w.sequences.rows(t)?,
                key: w.kv.rows_mut(t)?,
                codes,
                rope: turned,
                scales,
                eps: c.rms_norm_eps as f32,
            })?;
        } else {
            rms(k, kv_raw, &p.kv_norm, &mut w.kv_normed, c)?;
            turn(k, &mut w.kv_normed, rope, &mut w.kv, &[t, 1, dim], 1.0)?;
        }
        self.tracer.watch("attn.kv", || w.kv.rows_mut(t))?;
        // Where each sequence has one token, all that it reads is brought at once, when it is known which entries those are.
        let at_once = self.each_once && !self.tracer.is_on() && shared.widened.is_some();
        if !at_once {
            self.store_keys(cache, shared)?;
        }

        // Compressed entries of the blocks that these tokens close, and which of them each token sees.
        let closed = match kind {
            LayerKind::Window => 0,
            _ => self.longest / kind.ratio(),
        };
        if let (Some(compressor), Some(main)) = (&p.compressor, &mut cache.main) {
            self.compress(compressor, main, &p.inputs, shared.table, "comp")?;
            if !at_once {
                self.bring(main, shared, kind.ratio(), closed, "comp.kv")?;
            }
        }
        if let (Some(indexer), Some(index)) = (&p.indexer, &mut cache.index) {
            self.section(Section::Indexer);
            self.compress(&indexer.compressor, index, &p.inputs, shared.table, "idx")?;
            if !self.scores_keys(index) {
                self.bring(index, shared, kind.ratio(), closed, "idx.k")?;
            }
            self.pick(indexer, index, shared, kind, &p.inputs)?;
        }

        // core [T, H, A], turned back by each query's position.
        self.section(Section::Core);
        if at_once && self.reads_records(cache) {
            self.attend_to_records(p, cache, shared, kind)?;
        } else {
            self.attend_to_rows(p, cache, shared, kind, at_once)?;
        }
        let w = &mut *self.w;
        self.tracer.watch("attn.core", || w.core.rows_mut(t))?;
        let rope = match kind {
            LayerKind::Window => &w.rope_main,
            _ => &w.rope_compress,
        };
        turn(
            k,
            &mut w.core,
            rope,
            &mut w.core_derot,
            &[t, heads, dim],
            -1.0,
        )?;
        self.tracer.watch("attn.core_derot", || {
            w.core_derot.shaped_mut(&[t, heads * dim])
        })?;

        // Output: each group of heads to its own rank [T, G, R], all of them to [T, D].
        self.section(Section::Output);
        let w = &mut *self.w;
        let low = c.o_groups * c.o_lora_rank;
        linear(
            k,
            w.core_derot.shaped(&[t, c.o_groups, c.o_group_width()])?,
            &p.wo_a,
            &mut w.o_low,
            &mut w.quantised,
        )?;
        self.tracer
            .watch("attn.o_a", || w.o_low.shaped_mut(&[t, low]))?;
        linear(
            k,
            w.o_low.shaped(&[t, 1, low])?,
            &p.wo_b,
            &mut w.output,
            &mut w.quantised,
        )?;
        self.tracer.watch("attn.out", || w.output.rows_mut(t))
    }

    /// Whether attention reads the keys of a layer as the cache keeps them: of so many tokens that this is faster than bringing them to rows first.
    /// The bits are the same.
    fn reads_records(&self, cache: &LayerCache) -> bool {
        let is_wide = match &cache.ring {
            Kept::Records { codes, rope, .. } => {
                [codes, rope].map(|part| part.shape()[1]) == RECORD
            }
            _ => false,
        };
        is_wide
            && on_gpu(self.k)
            && self.t >= FEWEST_FROM_RECORDS
            && self.w.q.dtype() == DType::BF16
    }

    /// The core of attention, core [T, H, A], on the keys as the cache keeps them.
    fn attend_to_records(
        &mut self,
        p: &parameters::Attention,
        cache: &LayerCache,
        shared: &Shared,
        kind: LayerKind,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let slots = cache.slots as i64;
        let Some([own, entries]) = records(cache) else {
            let what = "attention reads records, and the layer's cache keeps none";
            return Err(ModelError::Input(what.into()));
        };
        let picks = match kind {
            LayerKind::CompressedSparse { .. } => &w.picks,
            _ => &w.no_picks,
        };
        k.attention_records(AttentionRecordsArgs {
            q: w.q.rows(t)?,
            ring_codes: rings(own[0], slots)?,
            ring_rope: rings(own[1], slots)?,
            ring_scales: rings(own[2], slots)?,
            codes: entries[0].view(),
            rope: entries[1].view(),
            scales: entries[2].view(),
            table: shared.table,
            picks: picks.rows(t)?,
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            sink: p.sink.view(),
            o: w.core.rows_mut(t)?,
            window: c.sliding_window as i64,
            ratio: kind.ratio() as i64,
            per_page: cache.main.as_ref().map_or(1, |main| main.per_page as i64),
            scale: (c.head_dim as f32).sqrt().recip(),
        })?;
        Ok(())
    }

    /// The same on rows, which are brought first where each sequence has one token.
    fn attend_to_rows(
        &mut self,
        p: &parameters::Attention,
        cache: &mut LayerCache,
        shared: &mut Shared,
        kind: LayerKind,
        at_once: bool,
    ) -> Done {
        let (c, k, t, dim) = (self.c, self.k, self.t, self.c.head_dim);
        if at_once {
            self.bring_picked(cache, shared, kind)?;
        }
        let w = &mut *self.w;
        let slots = cache.slots as i64;
        let (ring, entries) = match &shared.widened {
            Some(widened) => (widened.ring.view(), in_order(&widened.entries, shared)?),
            None => {
                let rows = cache.ring.rows()?;
                let ring = rows.reshape(&[rows.shape()[0] / slots, slots, dim as i64])?;
                let entries = match &cache.main {
                    Some(main) => Paged {
                        rows: main.entries.rows()?,
                        table: shared.table,
                        per_page: main.per_page as i64,
                    },
                    None => Paged {
                        rows: cache.no_entries.view(),
                        table: shared.own,
                        per_page: 1,
                    },
                };
                (ring, entries)
            }
        };
        let is_sparse = matches!(kind, LayerKind::CompressedSparse { .. });
        let picks = match is_sparse {
            true => &w.picks,
            false => &w.no_picks,
        };
        let picks = match &shared.widened {
            Some(widened) if at_once && is_sparse => widened.order.rows(t)?,
            _ => picks.rows(t)?,
        };
        let core = AttentionArgs {
            q: w.q.rows(t)?,
            ring,
            entries: entries.rows,
            table: entries.table,
            picks,
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            sink: p.sink.view(),
            o: w.core.rows_mut(t)?,
            window: c.sliding_window as i64,
            ratio: kind.ratio() as i64,
            per_page: entries.per_page,
            scale: (dim as f32).sqrt().recip(),
        };
        attention(k, core)
    }

    /// Puts keys where they are not yet, and those that attention reads where it reads them.
    fn store_keys(&mut self, cache: &mut LayerCache, shared: &mut Shared) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let (rows, pos, seq) = (w.kv.rows(t)?, w.positions.rows(t)?, w.sequences.rows(t)?);
        let at = shared.ring(cache, c.sliding_window, t);
        let Some(widened) = &mut shared.widened else {
            let ring = cache.ring.rows_mut()?;
            let slots = cache.slots as i64;
            let shape = [ring.shape()[0] / slots, slots, c.head_dim as i64];
            k.store_ring(StoreRingArgs {
                rows,
                pos,
                seq,
                ring: ring.reshape(&shape)?,
            })?;
            return Ok(());
        };
        if self.tracer.is_on() {
            // Another key may stand in the place of the one that was stored.
            k.store_ring(StoreRingArgs {
                rows,
                pos,
                seq,
                ring: widened.ring.view_mut()?,
            })?;
            let own = Place { window: 1, ..at };
            cache.ring.narrow(k, &own, &widened.ring)?;
        }
        cache.ring.widen(k, &at, &mut widened.ring)
    }

    /// The window's keys, and the entries of a layer of this kind that single tokens see, those that the indexer picked in the order of the
    /// picks, to where products read them.
    fn bring_picked(
        &mut self,
        cache: &mut LayerCache,
        shared: &mut Shared,
        kind: LayerKind,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let slots = cache.slots as i64;
        let (Some([own, entries]), Some(widened)) = (records(cache), &mut shared.widened) else {
            return Ok(());
        };
        let (picks, most) = match kind {
            LayerKind::Window => (&w.no_picks, 0),
            LayerKind::CompressedSparse { .. } => (&w.picks, c.index_topk),
            LayerKind::HeavilyCompressed { .. } => (&w.no_picks, self.longest / kind.ratio()),
        };
        k.widen_picked(WidenPickedArgs {
            ring_codes: rings(own[0], slots)?,
            ring_rope: rings(own[1], slots)?,
            ring_scales: rings(own[2], slots)?,
            codes: entries[0].view(),
            rope: entries[1].view(),
            scales: entries[2].view(),
            table: shared.table,
            picks: picks.rows(t)?,
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            ring: widened.ring.view_mut()?,
            picked: widened.entries.view_mut()?,
            per_page: cache.main.as_ref().map_or(1, |main| main.per_page as i64),
            window: c.sliding_window as i64,
            ratio: kind.ratio().max(1) as i64,
            most: most as i64,
        })?;
        Ok(())
    }

    /// Whether scores are made of keys as the cache keeps them: of few tokens, each of which widens them anew.
    fn scores_keys(&self, cache: &CompressorCache) -> bool {
        let is_few = self.t <= MOST_FROM_KEYS && self.c.index_n_heads <= MOST_INDEX_HEADS;
        let is_page = cache.per_page == KEYS_OF_A_BLOCK;
        let is_kept = matches!(cache.entries, Kept::IndexKeys { .. });
        is_few && is_page && is_kept && !self.tracer.is_on()
    }

    /// Entries, `closed` of each sequence at most, to where products read them; a trace may change them on the way.
    fn bring(
        &mut self,
        cache: &mut CompressorCache,
        shared: &mut Shared,
        ratio: usize,
        closed: usize,
        name: &str,
    ) -> Done {
        let k = self.k;
        let at = shared.entries(cache.per_page, ratio, closed);
        if let Some(widened) = &mut shared.widened {
            let rows = match name {
                "idx.k" => &mut widened.index,
                _ => &mut widened.entries,
            };
            cache.entries.widen(k, &at, rows)?;
            if self.tracer.is_on() {
                let shown = rows.view_mut()?.slice(1, 0..closed as i64)?;
                self.tracer.watch(name, move || Ok(shown))?;
                cache.entries.narrow(k, &at, rows)?;
            }
            return Ok(());
        }
        if !self.tracer.is_on() {
            return Ok(());
        }
        // Out of the pages.
        let sequences = shared.pages.sequences();
        let numbers: Vec<i32> = (0..sequences)
            .flat_map(|s| (0..closed).map(move |e| (s, e)))
            .map(|(s, e)| {
                let page = shared.pages.of(s).get(e / cache.per_page);
                page.map_or(0, |page| {
                    page * cache.per_page as i32 + (e % cache.per_page) as i32
                })
            })
            .collect();
        let width = cache.entries.rows()?.shape()[1];
        let device = k.library().device();
        let mut places = Tensor::zeros_on(device, DType::I32, &[numbers.len() as i64])?;
        places.write_start(&numbers)?;
        let shape = [sequences as i64, closed as i64, width];
        let mut shown = Tensor::zeros_on(device, DType::F32, &shape)?;
        k.take_rows(TakeRowsArgs {
            x: cache.entries.rows()?,
            rows: places.view(),
            y: shown.view_mut()?.reshape(&[numbers.len() as i64, width])?,
        })?;
        self.tracer.record(name, shown.view())
    }

    /// Puts the tokens' rows into the open blocks and writes the entries of those that close.
    fn compress(
        &mut self,
        p: &parameters::Compressor,
        cache: &mut CompressorCache,
        inputs: &Inputs,
        table: View,
        name: &str,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        // Both products lie side by side, in the rows as in the ring.
        let columns = p.wkv.start..p.wgate.end;
        k.store_ring(StoreRingArgs {
            rows: wide(&w.projected, &w.quantised, inputs, t, &columns)?,
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            ring: cache.open.rows.view_mut()?,
        })?;
        if w.quantised.is_some() {
            return self.close(p, cache, table, name);
        }
        k.compress(CompressArgs {
            keys: cache.open.keys()?,
            gates: cache.open.gates()?,
            ape: p.ape.view(),
            norm: p.norm.view(),
            f: self.frequencies.compress.view(),
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            table,
            entries: cache.entries.rows_mut()?,
            eps: c.rms_norm_eps as f32,
            per_page: cache.per_page as i64,
        })?;
        Ok(())
    }

    /// picks [T, topk]: the entries each token attends to.
    fn pick(
        &mut self,
        p: &parameters::Indexer,
        cache: &CompressorCache,
        shared: &Shared,
        kind: LayerKind,
        inputs: &Inputs,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let (heads, dim) = (c.index_n_heads, c.index_head_dim);
        let entries = self.longest / kind.ratio();
        let from_keys = self.scores_keys(cache);
        let w = &mut *self.w;
        let all = self.tracer.is_on();
        // Attention takes the picks of quantised models in the order of their scores.
        let ranked = w.quantised.is_some();
        if entries > c.index_topk || all || ranked {
            match (&p.wq_b.weights, &w.quantised) {
                // The codes of the query's rank are those of the last product.
                (Weights::Codes(matrix), Some(quantised)) => {
                    let y = w.index_q_raw.shaped_mut(&[t, heads * dim])?;
                    quantised.input.product(k, matrix, t, y)?;
                }
                _ => linear(
                    k,
                    w.q_residual.shaped(&[t, 1, c.q_lora_rank])?,
                    &p.wq_b,
                    &mut w.index_q_raw,
                    &mut w.quantised,
                )?,
            }
            let scale = (dim as f32).sqrt().recip();
            let head_scale = (heads as f32).sqrt().recip();
            match ranked {
                true => self.quantise_index(p, inputs, scale * head_scale)?,
                false => turn(
                    k,
                    &mut w.index_q_raw,
                    &w.rope_compress,
                    &mut w.index_q,
                    &[t, heads, dim],
                    1.0,
                )?,
            }
            let w = &mut *self.w;
            self.tracer.watch("idx.q", || w.index_q.rows_mut(t))?;
            let (pos, seq) = (w.positions.rows(t)?, w.sequences.rows(t)?);
            let q = w.index_q.rows(t)?;
            let scores = w.index_scores.shaped_mut(&[t, entries])?;
            let (ratio, all) = (kind.ratio() as i64, all as i64);
            match (&w.quantised, &shared.widened) {
                (Some(quantised), _) if from_keys => {
                    let Kept::IndexKeys { codes, scales } = &cache.entries else {
                        unreachable!("asked before");
                    };
                    k.index_scores_keys(IndexScoresKeysArgs {
                        q,
                        w: quantised.head_weights.rows(t)?,
                        codes: codes.view(),
                        scales: scales.view(),
                        table: shared.table,
                        pos,
                        seq,
                        scores,
                        ratio,
                        all,
                    })?;
                }
                // The scales are in the heads' weights.
                (Some(quantised), Some(widened)) if heads <= MOST_INDEX_HEADS => {
                    k.index_scores_bf16(IndexScoresBf16Args {
                        q,
                        w: quantised.head_weights.rows(t)?,
                        k: widened.index.view(),
                        pos,
                        seq,
                        scores,
                        ratio,
                        all,
                    })?;
                }
                (quantised, widened) => {
                    let keys = match widened {
                        Some(widened) => in_order(&widened.index, shared)?,
                        None => Paged {
                            rows: cache.entries.rows()?,
                            table: shared.table,
                            per_page: cache.per_page as i64,
                        },
                    };
                    let (weights, scale, head_scale) = match quantised {
                        Some(quantised) => (quantised.head_weights.rows(t)?, 1.0, 1.0),
                        None => {
                            let weights = wide(&w.projected, &None, inputs, t, &p.weights_proj)?;
                            self.tracer.record("idx.head_w", weights)?;
                            (weights, scale, head_scale)
                        }
                    };
                    k.index_scores(IndexScoresArgs {
                        q,
                        w: weights,
                        k: keys.rows,
                        table: keys.table,
                        per_page: keys.per_page,
                        pos,
                        seq,
                        scores,
                        ratio,
                        all,
                        scale,
                        head_scale,
                    })?;
                }
            }
            self.tracer
                .watch("idx.scores", || w.index_scores.shaped_mut(&[t, entries]))?;
        }
        // With few enough entries every one is picked, whatever its score.
        let w = &mut *self.w;
        let scores = w.index_scores.shaped(&[t, entries])?;
        let (pos, picks) = (w.positions.rows(t)?, w.picks.rows_mut(t)?);
        let (ratio, ranked) = (kind.ratio() as i64, ranked as i64);
        // The same picks from all three.
        match on_gpu(k) {
            true if t * entries * entries <= MOST_COMPARED => {
                k.index_topk_few(IndexTopkFewArgs {
                    scores,
                    pos,
                    picks,
                    ratio,
                    ranked,
                })?;
            }
            true if entries <= MOST_IN_A_BLOCK => k.index_topk_row(IndexTopkRowArgs {
                scores,
                pos,
                picks,
                ratio,
                ranked,
            })?,
            _ => k.index_topk(IndexTopkArgs {
                scores,
                pos,
                picks,
                ratio,
                ranked,
            })?,
        }
        self.tracer.watch("idx.topk", || w.picks.rows_mut(t))
    }
}
