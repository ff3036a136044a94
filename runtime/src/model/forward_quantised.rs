//! The steps of a quantised model's forward pass that have other kernels: mixing, entries, the indexer's operands.

use std::mem::swap;

use super::forward::Pass;
use super::kept::Kept;
use super::kernels::{
    CloseE2m1Args, CloseE4m3Args, HcCollapseArgs, HcCombArgs, HcPostBf16Args, HcPostMixArgs,
    HcPostPlacesArgs, HcPreBf16Args, IndexQueriesArgs, PoolArgs, SumPartsArgs,
};
use super::kv_cache::CompressorCache;
use super::ops::{Done, RUN, mix, no_workspace, on_gpu, part, parts_shape, rms};
use super::parameters::{Compressor, HcSite, Indexer, Inputs, Weights};
use super::workspace::Rows;
use tessera_device::{Tensor, View};

/// From so many elements of a stream on `hc_post_mix` takes less time than two launches: its CTAs have 64 tokens and 512 columns, and with fewer
/// of them most multiprocessors have no work.
const MIXED_AT_ONCE: usize = 1 << 21;

impl Pass<'_, '_> {
    /// As `hc_pre`, on bf16 streams: the products in parts, and the norm with the rest.
    pub fn hc_pre_bf16(
        &mut self,
        site: &HcSite,
        weights: &Tensor,
        norm: &Tensor,
        name: &str,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let Some(quantised) = &mut w.quantised else {
            return Err(no_workspace());
        };
        let x = w.x.shaped(&[t, c.hc_mult * c.hidden_size])?;
        let parts = match std::mem::take(&mut self.mixed) {
            true => quantised.mix.shaped(&parts_shape(x, weights))?,
            false => mix(k, x, weights, &mut quantised.mix)?,
        };
        if self.tracer.is_on() {
            k.sum_parts(SumPartsArgs {
                parts,
                y: w.mix.rows_mut(t)?,
            })?;
            self.tracer
                .watch(&format!("{name}_hc.mix"), || w.mix.rows_mut(t))?;
        }
        let (codes, scales) = quantised.input.written(t, c.hidden_size)?;
        k.hc_pre_bf16(HcPreBf16Args {
            x: w.x.rows(t)?,
            parts,
            base: site.base.view(),
            scale: site.scale.view(),
            w: norm.view(),
            r: quantised.factors.rows_mut(t)?,
            pre: w.pre.rows_mut(t)?,
            y: w.input.rows_mut(t)?,
            q: codes,
            s: scales,
            norm_eps: c.rms_norm_eps as f32,
            eps: c.hc_eps as f32,
        })?;
        // Nobody waits for it before the block's output: a recorded step runs it beside the block.
        k.hc_comb(HcCombArgs {
            parts,
            r: quantised.factors.rows(t)?,
            base: site.base.view(),
            scale: site.scale.view(),
            post: w.post.rows_mut(t)?,
            comb: w.comb.rows_mut(t)?,
            eps: c.hc_eps as f32,
            iters: c.hc_sinkhorn_iters as i64,
        })?;
        if self.tracer.is_on() {
            k.hc_collapse(HcCollapseArgs {
                x: w.x.rows(t)?,
                pre: w.pre.rows(t)?,
                collapsed: w.collapsed.rows_mut(t)?,
            })?;
            self.watch_hc(name)?;
            // Of what a trace put in the place of the collapsed streams; otherwise the same bits again.
            let w = &mut *self.w;
            rms(k, w.collapsed.rows(t)?, norm, &mut w.input, c)?;
        }
        let w = &mut *self.w;
        self.tracer
            .watch(&format!("{name}.in"), || w.input.rows_mut(t))
    }

    /// The weights of the next site, if many tokens' new streams are multiplied with them before they leave the GPU's multiprocessors: not
    /// where a trace may put others in their place.
    pub fn mixes_many<'a>(&self, next: Option<&'a HcSite>) -> Option<&'a Tensor> {
        let enough = self.t * self.c.hidden_size >= MIXED_AT_ONCE;
        let together = enough && self.c.hidden_size.is_multiple_of(RUN) && !self.tracer.is_on();
        match &next?.mix.weights {
            Weights::Parts(weights) if together && on_gpu(self.k) => Some(weights),
            _ => None,
        }
    }

    /// As `hc_post`, on bf16 streams.
    pub fn hc_post_bf16(&mut self, next: Option<&HcSite>) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let many = self.mixes_many(next);
        let w = &mut *self.w;
        let Some(quantised) = &mut w.quantised else {
            return Err(no_workspace());
        };
        let (f, x) = (w.output.rows(t)?, w.x.rows(t)?);
        let (post, comb, y) = (w.post.rows(t)?, w.comb.rows(t)?, w.x_next.rows_mut(t)?);
        match (many, &quantised.tiles, std::mem::take(&mut self.apart)) {
            (Some(weights), _, false) => {
                let columns = weights.shape()[1] as usize;
                let shape = [t, c.hc_mult, c.hidden_size / RUN, columns];
                k.hc_post_mix(HcPostMixArgs {
                    f,
                    x,
                    post,
                    comb,
                    w: weights.view(),
                    y,
                    parts: quantised.mix.shaped_mut(&shape)?,
                })?;
                self.mixed = true;
            }
            (_, Some(own), true) => k.hc_post_places(HcPostPlacesArgs {
                given: own.y.view(),
                place: own.place.shaped(&[t, c.num_experts_per_tok])?,
                shared_out: w.shared_y.rows(t)?,
                x,
                post,
                comb,
                y,
            })?,
            (_, None, true) => return Err(no_workspace()),
            (None, _, false) => k.hc_post_bf16(HcPostBf16Args {
                f,
                x,
                post,
                comb,
                y,
            })?,
        }
        swap(&mut w.x, &mut w.x_next);
        Ok(())
    }

    /// Writes the entries of the blocks that tokens close: pooled rows, normed, turned, rounded to what their cache keeps.
    pub fn close(
        &mut self,
        p: &Compressor,
        cache: &mut CompressorCache,
        table: View,
        name: &str,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let Some(quantised) = &mut w.quantised else {
            return Err(no_workspace());
        };
        let is_index = name == "idx";
        let pooled = match is_index {
            true => &mut quantised.index_pooled,
            false => &mut quantised.pooled,
        };
        k.pool(PoolArgs {
            keys: cache.open.keys()?,
            gates: cache.open.gates()?,
            ape: p.ape.view(),
            pos: w.positions.rows(t)?,
            seq: w.sequences.rows(t)?,
            pooled: pooled.rows_mut(t)?,
        })?;
        self.tracer
            .watch(&format!("{name}.pooled"), || pooled.rows_mut(t))?;
        let (pooled, norm) = (pooled.rows(t)?, p.norm.view());
        let (pos, seq) = (w.positions.rows(t)?, w.sequences.rows(t)?);
        let (f, eps) = (self.frequencies.compress.view(), c.rms_norm_eps as f32);
        let ratio = p.ape.shape()[0];
        let per_page = cache.per_page as i64;
        match &mut cache.entries {
            Kept::IndexKeys { codes, scales } => k.close_e2m1(CloseE2m1Args {
                pooled,
                norm,
                f,
                pos,
                seq,
                table,
                codes: codes.view_mut()?,
                scales: scales.view_mut()?,
                eps,
                ratio,
                per_page,
            })?,
            Kept::Records {
                codes,
                rope,
                scales,
            } => k.close_e4m3(CloseE4m3Args {
                pooled,
                norm,
                f,
                pos,
                seq,
                table,
                codes: codes.view_mut()?,
                rope: rope.view_mut()?,
                scales: scales.view_mut()?,
                eps,
                ratio,
                per_page,
            })?,
            Kept::Rows(_) => return Err(no_workspace()),
        }
        Ok(())
    }

    /// index_q [T, J, L], turned, transformed and rounded to FP4, and head_weights [T, J] with all scales.
    pub fn quantise_index(&mut self, p: &Indexer, inputs: &Inputs, scale: f32) -> Done {
        let (k, t) = (self.k, self.t);
        let w = &mut *self.w;
        let (Some(quantised), Some(wide)) = (&mut w.quantised, &inputs.wide) else {
            return Err(no_workspace());
        };
        let weights = &mut quantised.head_weights;
        k.index_queries(IndexQueriesArgs {
            x: w.index_q_raw.rows_mut(t)?,
            cosine: w.rope_compress.cosine.rows(t)?,
            sine: w.rope_compress.sine.rows(t)?,
            products: part(&quantised.wide, [t, wide.outputs], &p.weights_proj)?,
            weights: weights.rows_mut(t)?,
            scale,
        })?;
        swap(&mut w.index_q, &mut w.index_q_raw);
        self.tracer.watch("idx.head_w", || weights.rows_mut(t))
    }
}
