//! The steps of a quantised model's forward pass that have other kernels: entries, the indexer's operands, experts.

use super::ModelError;
use super::forward::Pass;
use super::kept::Kept;
use super::kernels::{
    CloseE2m1Args, CloseE4m3Args, ExpertDownArgs, ExpertDownCodesArgs, ExpertDownFp4Args,
    ExpertUpArgs, ExpertUpCodesArgs, ExpertUpFp4Args, HadamardE2m1Args, HcPreBf16Args,
    HeadWeightsArgs, PoolArgs, RowsOfTilesArgs, SumPartsArgs, SwigluArgs,
};
use super::kv_cache::CompressorCache;
use super::ops::{Done, linear, mix, part, rms};
use super::parameters::{Compressor, Experts, HcSite, Indexer, Inputs, Moe, Weights};
use super::quantised::used_tiles;
use super::workspace::Rows;
use tessera_device::{Tensor, View};

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
        let parts = mix(k, x, weights, &mut quantised.mix)?;
        if self.tracer.is_on() {
            k.sum_parts(SumPartsArgs {
                parts,
                y: w.mix.rows_mut(t)?,
            })?;
            self.tracer
                .watch(&format!("{name}_hc.mix"), || w.mix.rows_mut(t))?;
        }
        k.hc_pre_bf16(HcPreBf16Args {
            x: w.x.rows(t)?,
            parts,
            base: site.base.view(),
            scale: site.scale.view(),
            w: norm.view(),
            pre: w.pre.rows_mut(t)?,
            post: w.post.rows_mut(t)?,
            comb: w.comb.rows_mut(t)?,
            collapsed: w.collapsed.rows_mut(t)?,
            y: w.input.rows_mut(t)?,
            norm_eps: c.rms_norm_eps as f32,
            eps: c.hc_eps as f32,
            iters: c.hc_sinkhorn_iters as i64,
        })?;
        if self.tracer.is_on() {
            self.watch_hc(name)?;
            // Of what a trace put in the place of the collapsed streams; otherwise the same bits again.
            let w = &mut *self.w;
            rms(k, w.collapsed.rows(t)?, norm, &mut w.input, c)?;
        }
        let w = &mut *self.w;
        self.tracer
            .watch(&format!("{name}.in"), || w.input.rows_mut(t))
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

    /// index_q [T, J, L] transformed and rounded to FP4, head_weights [T, J] with all scales.
    pub fn quantise_index(&mut self, p: &Indexer, inputs: &Inputs, scale: f32) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        k.hadamard_e2m1(HadamardE2m1Args {
            x: w.index_q
                .shaped_mut(&[t * c.index_n_heads, c.index_head_dim])?,
        })?;
        let (Some(quantised), Some(wide)) = (&mut w.quantised, &inputs.wide) else {
            return Err(no_workspace());
        };
        let weights = &mut quantised.head_weights;
        k.head_weights(HeadWeightsArgs {
            x: part(&quantised.wide, [t, wide.outputs], &p.weights_proj)?,
            y: weights.rows_mut(t)?,
            scale,
        })?;
        self.tracer.watch("idx.head_w", || weights.rows_mut(t))
    }

    /// Routed experts, expert_y [T K, D] by pair, and the shared one, shared_y [T, D].
    pub fn experts(&mut self, p: &Moe, pairs: usize, rows: usize, tiles: usize) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let w = &mut *self.w;
        let (hidden, inter) = (c.hidden_size, c.moe_intermediate_size);
        let choices = c.num_experts_per_tok as i64;
        let limit = c.swiglu_limit as f32;
        let product = [t, p.inputs.linear.outputs];
        let pair = w.pair.rows(pairs)?;
        let tile_expert = w.tile_expert.rows(tiles)?;
        let tile_first = w.tile_first.rows(tiles)?;
        let tile_end = w.tile_end.rows(tiles)?;
        let weight = w.expert_weights.shaped(&[pairs])?;
        let gate = part(&w.projected, product, &p.shared_w1)?;
        let up = part(&w.projected, product, &p.shared_w3)?;
        match (&p.w1, &p.w3, &p.w2) {
            (Experts::Panels(w1), Experts::Panels(w3), Experts::Panels(w2)) => {
                // h [T K, I] by sorted row
                k.expert_up(ExpertUpArgs {
                    x: w.input.rows(t)?,
                    w1: w1.view(),
                    w3: w3.view(),
                    pair,
                    tile_expert,
                    tile_first,
                    tile_end,
                    tiles: w.tiles.view(),
                    weight,
                    h: w.expert_h.rows_mut(pairs)?,
                    choices,
                    rows: rows as i64,
                    limit,
                })?;
                k.expert_down(ExpertDownArgs {
                    h: w.expert_h.rows(pairs)?,
                    w2: w2.view(),
                    pair,
                    tile_expert,
                    tile_first,
                    tile_end,
                    tiles: w.tiles.view(),
                    y: w.expert_y.rows_mut(pairs)?,
                    rows: rows as i64,
                })?;
                k.swiglu(SwigluArgs {
                    gate,
                    up,
                    y: w.shared_h.rows_mut(t)?,
                    limit,
                })?;
                linear(
                    k,
                    w.shared_h.shaped(&[t, 1, inter])?,
                    &p.shared_w2,
                    &mut w.shared_y,
                    &mut None,
                )
            }
            (Experts::Codes(w1), Experts::Codes(w3), Experts::Codes(w2)) => {
                let (Some(quantised), Weights::Codes(shared_w2)) =
                    (&mut w.quantised, &p.shared_w2.weights)
                else {
                    return Err(no_workspace());
                };
                // The codes of the block's input are those of the last product.
                let (h, hs) = quantised.expert_h.parts_mut(pairs, inter)?;
                k.expert_up_codes(ExpertUpCodesArgs {
                    x: quantised.input.codes(t, hidden)?,
                    xs: quantised.input.scales(t, hidden)?,
                    w1: w1.codes.view(),
                    s1: w1.scales.view(),
                    w3: w3.codes.view(),
                    s3: w3.scales.view(),
                    pair,
                    tile_expert,
                    tile_first,
                    tile_end,
                    tiles: w.tiles.view(),
                    weight,
                    h,
                    hs,
                    choices,
                    rows: rows as i64,
                    limit,
                })?;
                k.expert_down_codes(ExpertDownCodesArgs {
                    h: quantised.expert_h.codes(pairs, inter)?,
                    hs: quantised.expert_h.scales(pairs, inter)?,
                    w2: w2.codes.view(),
                    s2: w2.scales.view(),
                    pair,
                    tile_expert,
                    tile_first,
                    tile_end,
                    tiles: w.tiles.view(),
                    y: w.expert_y.rows_mut(pairs)?,
                    rows: rows as i64,
                })?;
                quantised.shared(k, [gate, up], limit, shared_w2, &mut w.shared_y)
            }
            (Experts::Folded(w1), Experts::Folded(w3), Experts::Folded(w2)) => {
                let (Some(quantised), Weights::Codes(shared_w2)) =
                    (&mut w.quantised, &p.shared_w2.weights)
                else {
                    return Err(no_workspace());
                };
                let Some(own) = &mut quantised.tiles else {
                    return Err(no_workspace());
                };
                let used = used_tiles(pairs, c.n_routed_experts, rows);
                let all = used * rows;
                let tile_expert = w.tile_expert.rows(used)?;
                let (tile_x, tile_xs) = own.x.parts_mut(all, hidden)?;
                k.rows_of_tiles(RowsOfTilesArgs {
                    x: quantised.input.codes(t, hidden)?,
                    xs: quantised.input.scales(t, hidden)?,
                    weight,
                    pair,
                    tile_first: w.tile_first.rows(used)?,
                    tile_end: w.tile_end.rows(used)?,
                    tiles: w.tiles.view(),
                    tile_x,
                    tile_xs,
                    route: own.route.rows_mut(all)?,
                    to: own.to.rows_mut(all)?,
                    choices,
                    rows: rows as i64,
                })?;
                let (h, hs) = own.h.parts_mut(all, inter)?;
                k.expert_up_fp4(ExpertUpFp4Args {
                    x: own.x.codes(all, hidden)?,
                    xs: own.x.scales(all, hidden)?,
                    w1: w1.codes.view(),
                    f1: w1.steps.view(),
                    r1: w1.factors.view(),
                    w3: w3.codes.view(),
                    f3: w3.steps.view(),
                    r3: w3.factors.view(),
                    tile_expert,
                    tiles: w.tiles.view(),
                    route: own.route.rows(all)?,
                    h,
                    hs,
                    rows: rows as i64,
                    limit,
                })?;
                k.expert_down_fp4(ExpertDownFp4Args {
                    h: own.h.codes(all, inter)?,
                    hs: own.h.scales(all, inter)?,
                    w2: w2.codes.view(),
                    f2: w2.steps.view(),
                    r2: w2.factors.view(),
                    tile_expert,
                    tiles: w.tiles.view(),
                    to: own.to.rows(all)?,
                    y: w.expert_y.rows_mut(pairs)?,
                    rows: rows as i64,
                })?;
                quantised.shared(k, [gate, up], limit, shared_w2, &mut w.shared_y)
            }
            _ => unreachable!("all matrices of a layer's experts are loaded alike"),
        }
    }
}

fn no_workspace() -> ModelError {
    ModelError::Input("the session has no workspace for quantised products".into())
}
