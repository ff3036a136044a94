//! Attention in the forward pass: queries, keys and entries, the indexer's choice, the output.

use super::config::LayerKind;
use super::cost::Section;
use super::kernels::{
    AttentionArgs, CompressArgs, IndexScoresArgs, IndexScoresBf16Args, IndexTopkArgs,
    StoreKeyE4m3Args, StoreRingArgs,
};
use super::kv_cache::{CompressorCache, LayerCache};
use super::ops::{Done, attention, linear, norm_rotate, part, rms, turn};
use super::parameters::{self, Inputs, Layer, Weights};

/// Heads up to which the indexer's scores are made on tensor cores.
const MOST_INDEX_HEADS: usize = 64;

use super::forward::{Pass, wide};
use super::workspace::Rows;

impl Pass<'_, '_> {
    /// input [T, D] to output [T, D].
    pub(super) fn attention(&mut self, layer: &Layer, cache: &mut LayerCache) -> Done {
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
        if w.quantised.is_some() {
            k.store_key_e4m3(StoreKeyE4m3Args {
                x: kv_raw,
                norm: p.kv_norm.view(),
                cosine: rope.cosine.rows(t)?,
                sine: rope.sine.rows(t)?,
                pos: w.positions.rows(t)?,
                seq: w.sequences.rows(t)?,
                key: w.kv.rows_mut(t)?,
                ring: cache.ring.view_mut()?,
                eps: c.rms_norm_eps as f32,
            })?;
        } else {
            rms(k, kv_raw, &p.kv_norm, &mut w.kv_normed, c)?;
            turn(k, &mut w.kv_normed, rope, &mut w.kv, &[t, 1, dim], 1.0)?;
        }
        self.tracer.watch("attn.kv", || w.kv.rows_mut(t))?;
        if w.quantised.is_none() || self.tracer.is_on() {
            k.store_ring(StoreRingArgs {
                rows: w.kv.rows(t)?,
                pos: w.positions.rows(t)?,
                seq: w.sequences.rows(t)?,
                ring: cache.ring.view_mut()?,
            })?;
        }

        // Compressed entries of the blocks that these tokens close, and which of them each token sees.
        let closed = match kind {
            LayerKind::Window => 0,
            _ => (self.longest / kind.ratio()) as i64,
        };
        if let (Some(compressor), Some(main)) = (&p.compressor, &mut cache.main) {
            self.compress(compressor, main, &p.inputs, "comp")?;
            self.tracer.watch("comp.kv", || {
                Ok(main.entries.view_mut()?.slice(1, 0..closed)?)
            })?;
        }
        if let (Some(indexer), Some(index)) = (&p.indexer, &mut cache.index) {
            self.section(Section::Indexer);
            self.compress(&indexer.compressor, index, &p.inputs, "idx")?;
            self.tracer.watch("idx.k", || {
                Ok(index.entries.view_mut()?.slice(1, 0..closed)?)
            })?;
            self.pick(indexer, index, kind, &p.inputs)?;
        }

        // core [T, H, A], turned back by each query's position.
        self.section(Section::Core);
        let w = &mut *self.w;
        let entries = cache
            .main
            .as_ref()
            .map_or(&cache.no_entries, |main| &main.entries);
        let picks = match kind {
            LayerKind::CompressedSparse { .. } => &w.picks,
            _ => &w.no_picks,
        };
        let core = AttentionArgs {
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
        };
        attention(k, core)?;
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

    /// Puts the tokens' rows into the open blocks and writes the entries of those that close.
    fn compress(
        &mut self,
        p: &parameters::Compressor,
        cache: &mut CompressorCache,
        inputs: &Inputs,
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
            return self.close(p, cache, name);
        }
        k.compress(CompressArgs {
            keys: cache.open.keys()?,
            gates: cache.open.gates()?,
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
        inputs: &Inputs,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let (heads, dim) = (c.index_n_heads, c.index_head_dim);
        let entries = self.longest / kind.ratio();
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
            turn(
                k,
                &mut w.index_q_raw,
                &w.rope_compress,
                &mut w.index_q,
                &[t, heads, dim],
                1.0,
            )?;
            let scale = (dim as f32).sqrt().recip();
            let head_scale = (heads as f32).sqrt().recip();
            if ranked {
                self.quantise_index(p, inputs, scale * head_scale)?;
            }
            let w = &mut *self.w;
            self.tracer.watch("idx.q", || w.index_q.rows_mut(t))?;
            let (pos, seq) = (w.positions.rows(t)?, w.sequences.rows(t)?);
            let (q, keys) = (w.index_q.rows(t)?, cache.entries.view());
            let scores = w.index_scores.shaped_mut(&[t, entries])?;
            let (ratio, all) = (kind.ratio() as i64, all as i64);
            match &w.quantised {
                // The scales are in the heads' weights.
                Some(quantised) if heads <= MOST_INDEX_HEADS => {
                    k.index_scores_bf16(IndexScoresBf16Args {
                        q,
                        w: quantised.head_weights.rows(t)?,
                        k: keys,
                        pos,
                        seq,
                        scores,
                        ratio,
                        all,
                    })?;
                }
                quantised => {
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
                        k: keys,
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
        k.index_topk(IndexTopkArgs {
            scores: w.index_scores.shaped(&[t, entries])?,
            pos: w.positions.rows(t)?,
            picks: w.picks.rows_mut(t)?,
            ratio: kind.ratio() as i64,
            ranked: ranked as i64,
        })?;
        self.tracer.watch("idx.topk", || w.picks.rows_mut(t))
    }
}
