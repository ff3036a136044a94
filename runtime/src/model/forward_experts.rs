//! Routed experts: pairs of a token and an expert in tiles of rows, products by what the weights are, and the sum with the shared expert.

use super::codes::{self, Folded};
use super::cost::Section;
use super::forward::Pass;
use super::kernels::{
    CombineArgs, CombinePlacesArgs, CountPairsArgs, ExpertDownArgs, ExpertDownCodesArgs,
    ExpertDownFp4Args, ExpertDownWideArgs, ExpertUpArgs, ExpertUpCodesArgs, ExpertUpFp4Args,
    ExpertUpWideArgs, GroupPairsArgs, GroupPairsFewArgs, RowsOfTilesArgs, SwigluArgs, TakeRowsArgs,
    TilesOfFewPairsArgs,
};
use super::ops::{Done, linear, no_workspace, part};
use super::parameters::{Experts, HcSite, Moe, Weights};
use super::quantised::{WIDE, tile_rows, used_tiles};
use super::workspace::{COUNTED_PAIRS, Rows, most_tiles, rows_per_tile};
use tessera_device::{DType, Tensor};

/// Pairs of a token and an expert that one warp groups.
const FEW_PAIRS: usize = 128;
/// Rows of the tiles into which `tiles_of_few_pairs` cuts them.
const FEW_ROWS: usize = 8;

/// How the call's pairs are cut: so many into at most so many tiles of so many rows.
#[derive(Clone, Copy)]
struct Cut {
    pairs: usize,
    rows: usize,
    tiles: usize,
}

impl Pass<'_, '_> {
    /// output [T, D] from input [T, D], the chosen experts [T, K] and their weights.
    pub(super) fn experts(&mut self, p: &Moe, next: Option<&HcSite>) -> Done {
        let (c, t) = (self.c, self.t);
        let pairs = t * c.num_experts_per_tok;
        let rows = match &p.w1 {
            Experts::Folded(_) => tile_rows(pairs, c.n_routed_experts),
            _ => rows_per_tile(t, self.w.quantised.is_some()),
        };
        let tiles = most_tiles(pairs, c.n_routed_experts, rows);
        let cut = Cut { pairs, rows, tiles };
        if !self.groups_in_tiles(cut) {
            self.group(cut)?;
        }
        self.section(Section::Experts);
        let in_tiles = matches!(p.w1, Experts::Folded(_));
        match (&p.w1, &p.w3, &p.w2) {
            (Experts::Panels(w1), Experts::Panels(w3), Experts::Panels(w2)) => {
                self.experts_of_panels([w1, w3, w2], cut)?;
            }
            (Experts::Codes(w1), Experts::Codes(w3), Experts::Codes(w2)) => {
                self.experts_of_codes([w1, w3, w2], cut)?;
            }
            (Experts::Folded(w1), Experts::Folded(w3), Experts::Folded(w2)) => {
                self.experts_in_tiles([w1, w3, w2], cut)?;
            }
            _ => unreachable!("all matrices of a layer's experts are loaded alike"),
        }
        self.shared_expert(p)?;
        // Few tokens' are added up on their way into the streams.
        self.apart = in_tiles && !self.tracer.is_on() && self.mixes_many(next).is_none();
        match self.apart {
            true => Ok(()),
            false => self.sum_of_experts(pairs),
        }
    }

    /// Whether one launch groups the pairs and makes the tiles' rows.
    fn groups_in_tiles(&self, Cut { pairs, rows, .. }: Cut) -> bool {
        let quantised = self.w.quantised.as_ref();
        pairs <= FEW_PAIRS && rows == FEW_ROWS && quantised.is_some_and(|q| q.tiles.is_some())
    }

    /// Pairs sorted by expert, cut into tiles of rows.
    fn group(&mut self, Cut { pairs, rows, tiles }: Cut) -> Done {
        let (c, k, w) = (self.c, self.k, &mut *self.w);
        let expert = w.experts.shaped(&[pairs])?;
        let pair = w.pair.rows_mut(pairs)?;
        let tile_expert = w.tile_expert.rows_mut(tiles)?;
        let tile_first = w.tile_first.rows_mut(tiles)?;
        let tile_end = w.tile_end.rows_mut(tiles)?;
        if pairs <= FEW_PAIRS {
            return Ok(k.group_pairs_few(GroupPairsFewArgs {
                expert,
                pair,
                tile_expert,
                tile_first,
                tile_end,
                tiles: w.tiles.view_mut()?,
                experts: c.n_routed_experts as i64,
                rows: rows as i64,
            })?);
        }
        k.count_pairs(CountPairsArgs {
            expert,
            count: w.expert_count.rows_mut(pairs.div_ceil(COUNTED_PAIRS))?,
        })?;
        Ok(k.group_pairs(GroupPairsArgs {
            expert,
            count: w.expert_count.rows(pairs.div_ceil(COUNTED_PAIRS))?,
            pair,
            tile_expert,
            tile_first,
            tile_end,
            tiles: w.tiles.view_mut()?,
            rows: rows as i64,
        })?)
    }

    /// expert_y [T K, D] by pair.
    fn experts_of_panels(&mut self, [w1, w3, w2]: [&Tensor; 3], cut: Cut) -> Done {
        let (c, k, t, w) = (self.c, self.k, self.t, &mut *self.w);
        let Cut { pairs, rows, tiles } = cut;
        let pair = w.pair.rows(pairs)?;
        let tile_expert = w.tile_expert.rows(tiles)?;
        let tile_first = w.tile_first.rows(tiles)?;
        let tile_end = w.tile_end.rows(tiles)?;
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
            weight: w.expert_weights.shaped(&[pairs])?,
            h: w.expert_h.rows_mut(pairs)?,
            choices: c.num_experts_per_tok as i64,
            rows: rows as i64,
            limit: c.swiglu_limit as f32,
        })?;
        Ok(k.expert_down(ExpertDownArgs {
            h: w.expert_h.rows(pairs)?,
            w2: w2.view(),
            pair,
            tile_expert,
            tile_first,
            tile_end,
            tiles: w.tiles.view(),
            y: w.expert_y.rows_mut(pairs)?,
            rows: rows as i64,
        })?)
    }

    /// expert_y [T K, D] by pair. The codes of the block's input are those of the last product.
    fn experts_of_codes(&mut self, [w1, w3, w2]: [&codes::Experts; 3], cut: Cut) -> Done {
        let (c, k, t, w) = (self.c, self.k, self.t, &mut *self.w);
        let Cut { pairs, rows, tiles } = cut;
        let (hidden, inter) = (c.hidden_size, c.moe_intermediate_size);
        let Some(quantised) = &mut w.quantised else {
            return Err(no_workspace());
        };
        let pair = w.pair.rows(pairs)?;
        let tile_expert = w.tile_expert.rows(tiles)?;
        let tile_first = w.tile_first.rows(tiles)?;
        let tile_end = w.tile_end.rows(tiles)?;
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
            weight: w.expert_weights.shaped(&[pairs])?,
            h,
            hs,
            choices: c.num_experts_per_tok as i64,
            rows: rows as i64,
            limit: c.swiglu_limit as f32,
        })?;
        Ok(k.expert_down_codes(ExpertDownCodesArgs {
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
        })?)
    }

    /// The tiles' y, by row of a tile, and the place of every pair. The codes of the block's input are those of the last product.
    fn experts_in_tiles(&mut self, [w1, w3, w2]: [&Folded; 3], cut: Cut) -> Done {
        let at_once = self.groups_in_tiles(cut);
        let (c, k, t, w) = (self.c, self.k, self.t, &mut *self.w);
        let Cut { pairs, rows, .. } = cut;
        let (hidden, inter) = (c.hidden_size, c.moe_intermediate_size);
        let Some(quantised) = &mut w.quantised else {
            return Err(no_workspace());
        };
        let Some(own) = &mut quantised.tiles else {
            return Err(no_workspace());
        };
        let used = used_tiles(pairs, c.n_routed_experts, rows);
        let all = used * rows;
        let (tile_x, tile_xs) = own.x.parts_mut(all, hidden)?;
        let (x, xs) = (
            quantised.input.codes(t, hidden)?,
            quantised.input.scales(t, hidden)?,
        );
        let weight = w.expert_weights.shaped(&[pairs])?;
        let (route, place) = (own.route.rows_mut(all)?, own.place.rows_mut(pairs)?);
        let choices = c.num_experts_per_tok as i64;
        match at_once {
            true => k.tiles_of_few_pairs(TilesOfFewPairsArgs {
                x,
                xs,
                weight,
                expert: w.experts.shaped(&[pairs])?,
                tile_x,
                tile_xs,
                route,
                place,
                tile_expert: w.tile_expert.rows_mut(used)?,
                tiles: w.tiles.view_mut()?,
                choices,
                experts: c.n_routed_experts as i64,
            })?,
            false => k.rows_of_tiles(RowsOfTilesArgs {
                x,
                xs,
                weight,
                pair: w.pair.rows(pairs)?,
                tile_first: w.tile_first.rows(used)?,
                tile_end: w.tile_end.rows(used)?,
                tiles: w.tiles.view(),
                tile_x,
                tile_xs,
                route,
                place,
                choices,
                rows: rows as i64,
            })?,
        }
        let tile_expert = w.tile_expert.rows(used)?;
        // The kernels for 128 rows take what the others take.
        macro_rules! halves {
            ($up:ident($up_args:ident), $down:ident($down_args:ident)) => {{
                let (h, hs) = own.h.parts_mut(all, inter)?;
                k.$up($up_args {
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
                    limit: c.swiglu_limit as f32,
                })?;
                k.$down($down_args {
                    h: own.h.codes(all, inter)?,
                    hs: own.h.scales(all, inter)?,
                    w2: w2.codes.view(),
                    f2: w2.steps.view(),
                    r2: w2.factors.view(),
                    tile_expert,
                    tiles: w.tiles.view(),
                    y: own.y.rows_mut(all)?,
                    rows: rows as i64,
                })?;
            }};
        }
        match rows {
            WIDE => halves!(
                expert_up_wide(ExpertUpWideArgs),
                expert_down_wide(ExpertDownWideArgs)
            ),
            _ => halves!(
                expert_up_fp4(ExpertUpFp4Args),
                expert_down_fp4(ExpertDownFp4Args)
            ),
        }
        Ok(())
    }

    /// shared_y [T, D] from the products of the block's input.
    fn shared_expert(&mut self, p: &Moe) -> Done {
        let (c, k, t, w) = (self.c, self.k, self.t, &mut *self.w);
        let product = [t, p.inputs.linear.outputs];
        let gate = part(&w.projected, product, &p.shared_w1)?;
        let up = part(&w.projected, product, &p.shared_w3)?;
        let limit = c.swiglu_limit as f32;
        if let (Some(quantised), Weights::Codes(w2)) = (&mut w.quantised, &p.shared_w2.weights) {
            return quantised.shared(k, [gate, up], limit, w2, &mut w.shared_y);
        }
        k.swiglu(SwigluArgs {
            gate,
            up,
            y: w.shared_h.rows_mut(t)?,
            limit,
        })?;
        let h = w.shared_h.shaped(&[t, 1, c.moe_intermediate_size])?;
        linear(k, h, &p.shared_w2, &mut w.shared_y, &mut None)
    }

    /// output [T, D], the sum of all.
    fn sum_of_experts(&mut self, pairs: usize) -> Done {
        let (c, k, t, w) = (self.c, self.k, self.t, &mut *self.w);
        let (hidden, choices) = (c.hidden_size, c.num_experts_per_tok);
        let tiles = w.quantised.as_ref().and_then(|q| q.tiles.as_ref());
        if let (Some(own), false) = (tiles, self.tracer.is_on()) {
            return Ok(k.combine_places(CombinePlacesArgs {
                y: own.y.view(),
                place: own.place.shaped(&[t, choices])?,
                shared_out: w.shared_y.rows(t)?,
                total: w.output.rows_mut(t)?,
            })?);
        }
        if let Some(own) = tiles {
            // Who watches sees them by pair; the sum is the same.
            let shape = [pairs as i64, hidden as i64];
            w.expert_y = Tensor::zeros_on(k.library().device(), DType::BF16, &shape)?;
            k.take_rows(TakeRowsArgs {
                x: own.y.view(),
                rows: own.place.rows(pairs)?,
                y: w.expert_y.view_mut()?,
            })?;
        }
        let shape = [t, choices, hidden];
        if self.tracer.is_on() {
            self.tracer
                .watch("moe.expert_out", || w.expert_y.shaped_mut(&shape))?;
            self.tracer.watch("moe.shared", || w.shared_y.rows_mut(t))?;
        }
        k.combine(CombineArgs {
            y: w.expert_y.shaped(&shape)?,
            shared_out: w.shared_y.rows(t)?,
            routed: w.routed.rows_mut(t)?,
            total: w.output.rows_mut(t)?,
        })?;
        if self.tracer.is_on() {
            self.tracer.record("moe.routed", w.routed.rows(t)?)?;
        }
        Ok(())
    }
}
