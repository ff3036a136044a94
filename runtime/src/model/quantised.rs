//! What a quantised model's forward pass holds besides: activations as E4M3 codes, products that stay f32, rows of entries being closed.
//!
//! Activations are bf16 between modules; each product with codes quantises its input anew, in groups of 128 with power-of-two scales.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View, ViewMut};

use super::ModelError;
use super::codes::{Matrix, folds_experts, keeps_groups};
use super::config::{Config, WeightFormat};
use super::kernels::{
    GemmFp8Args, GemmFp8FewArgs, GemmFp864Args, Kernels, QuantiseE4m3Args, RmsnormE4m3Args,
    SwigluE4m3Args,
};
use super::ops::{FEW, RUN};
use super::workspace::{Rows, most_tiles};

/// The most rows that `gemm_fp8_few` takes; up to `FEW` there is `gemm_fp8_64`.
const FEWEST: usize = 32;

/// Inputs that share a scale.
const GROUP: usize = 128;
/// The widest rows that are normed and quantised by one kernel.
pub(super) const WIDEST_NORM: usize = 1536;
/// The scales of one group come in a row whose length is a multiple of this.
const SCALES_STEP: usize = 4;

/// Letters as in `workspace.rs`.
pub(super) struct Quantised {
    /// The input of the last product.
    pub input: Codes,
    /// `[T, columns]` f32: products of a block's input with the matrices that are not quantised.
    pub wide: Tensor,
    /// `[T, P, (2 + N) N]` f32: products of a hyper-connection in parts.
    pub mix: Tensor,
    /// `[T]` f32: factors of those products.
    pub factors: Tensor,
    /// `[T, P, E]` f32: products of the router in parts.
    pub gate: Tensor,
    /// `[T, J]`
    pub head_weights: Tensor,
    /// `[T, A]` and `[T, L]`: pooled rows of the blocks that tokens close.
    pub pooled: Tensor,
    pub index_pooled: Tensor,
    /// `[G R, K]` bf16: the weights of the layer in hand that many rows are multiplied with in bf16; only where codes are kept.
    pub group_weights: Option<Tensor>,
    /// `[T K, I]`; nothing where the experts take their rows by tiles.
    pub expert_h: Codes,
    /// Only where the experts' products run on tensor cores.
    pub tiles: Option<TileRows>,
    /// `[T]`: the shared expert's routing weights.
    ones: Tensor,
}

/// E4M3 codes of up to so many rows of several widths, with their scales.
pub(super) struct Codes {
    codes: Tensor,
    scales: Tensor,
}

/// Rows of the experts' tiles, one tile after the other: R in all.
pub(super) struct TileRows {
    /// `[R, D]` and `[R, I]`
    pub x: Codes,
    pub h: Codes,
    /// `[R]`: weights.
    pub route: Tensor,
    /// `[R, D]`: the experts' outputs.
    pub y: Tensor,
    /// `[T K]`: the row of every pair.
    pub place: Tensor,
}

impl TileRows {
    /// Of calls of up to so many tokens.
    fn new(device: &Device, c: &Config, tokens: usize) -> Result<TileRows, ModelError> {
        let all = |tokens| {
            let pairs = tokens * c.num_experts_per_tok;
            let rows = tile_rows(pairs, c.n_routed_experts);
            used_tiles(pairs, c.n_routed_experts, rows) * rows
        };
        let most = (0..=tokens).map(all).max().unwrap_or(0);
        Ok(TileRows {
            x: Codes::new(device, &[(most, c.hidden_size)])?,
            h: Codes::new(device, &[(most, c.moe_intermediate_size)])?,
            route: Tensor::zeros_on(device, DType::F32, &[most as i64])?,
            y: Tensor::zeros_on(device, DType::BF16, &[most as i64, c.hidden_size as i64])?,
            place: Tensor::zeros_on(
                device,
                DType::I32,
                &[(tokens * c.num_experts_per_tok) as i64],
            )?,
        })
    }
}

/// Rows of a tile from which weights are widened once for all of them.
pub(super) const WIDE: usize = 128;

/// Rows of a tile of the experts' products on tensor cores: the instances of `expert_up_fp4`, or `expert_up_wide`. A row's bits don't depend on it.
pub(super) fn tile_rows(pairs: usize, experts: usize) -> usize {
    match pairs.div_ceil(experts) {
        0..=4 => 8,
        5..=12 => 16,
        13..=32 => 32,
        // Of most experts one tile.
        33..=56 => 64,
        _ => WIDE,
    }
}

/// The most tiles that have rows.
pub(super) fn used_tiles(pairs: usize, experts: usize, rows: usize) -> usize {
    most_tiles(pairs, experts, rows).min(pairs.max(1))
}

/// The type of activations between modules.
pub(super) fn activation_dtype(config: &Config) -> DType {
    match config.weight_format {
        WeightFormat::Plain => DType::F32,
        WeightFormat::Fp8 { .. } => DType::BF16,
    }
}

impl Quantised {
    pub fn new(
        device: &Device,
        config: &Config,
        t: usize,
        columns: usize,
    ) -> Result<Quantised, ModelError> {
        let c = config;
        let (rows, inner) = (t as i64, c.moe_intermediate_size);
        let zeros = |dtype, shape: &[usize]| -> Result<Tensor, ModelError> {
            let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            Ok(Tensor::zeros_on(device, dtype, &shape)?)
        };
        let folded = folds_experts(device, c);
        let pairs = if folded { 0 } else { t * c.num_experts_per_tok };
        let widths = [
            (t, c.hidden_size),
            (t * c.hc_mult, c.hidden_size),
            (t, c.q_lora_rank),
            (t, c.o_groups * c.o_lora_rank),
            (t, inner),
        ];
        Ok(Quantised {
            input: Codes::new(device, &widths)?,
            wide: zeros(DType::F32, &[t, columns])?,
            mix: zeros(
                DType::F32,
                &[
                    t,
                    (c.hc_mult * c.hidden_size).div_ceil(RUN),
                    c.hc_coefficients(),
                ],
            )?,
            factors: zeros(DType::F32, &[t])?,
            gate: zeros(
                DType::F32,
                &[t, c.hidden_size.div_ceil(RUN), c.n_routed_experts],
            )?,
            head_weights: zeros(DType::BF16, &[t, c.index_n_heads])?,
            pooled: zeros(DType::BF16, &[t, c.head_dim])?,
            index_pooled: zeros(DType::BF16, &[t, c.index_head_dim])?,
            group_weights: (t > FEW && keeps_groups(device, c))
                .then(|| {
                    zeros(
                        DType::BF16,
                        &[c.o_groups * c.o_lora_rank, c.o_group_width()],
                    )
                })
                .transpose()?,
            expert_h: Codes::new(device, &[(pairs, inner)])?,
            tiles: folded.then(|| TileRows::new(device, c, t)).transpose()?,
            ones: Tensor::from_slice(&[rows], &vec![1.0f32; t])?.to_device(device)?,
        })
    }

    /// The shared expert's second half, y `[T, D]`: its activation, quantised, times its second matrix.
    pub fn shared(
        &mut self,
        k: &Kernels,
        [gate, up]: [View; 2],
        limit: f32,
        w2: &Matrix,
        y: &mut Tensor,
    ) -> Result<(), ModelError> {
        let (rows, width) = (gate.shape()[0] as usize, gate.shape()[1] as usize);
        let (q, s) = self.input.written(rows, width)?;
        k.swiglu_e4m3(SwigluE4m3Args {
            gate,
            up,
            weight: self.ones.rows(rows)?,
            q,
            s,
            limit,
        })?;
        self.input.product(k, w2, rows, y.rows_mut(rows)?)
    }
}

impl Codes {
    /// Room for any of these numbers of rows and widths, one at a time.
    fn new(device: &Device, sizes: &[(usize, usize)]) -> Result<Codes, ModelError> {
        let most = |size: &dyn Fn(usize, usize) -> usize| {
            sizes.iter().map(|&(r, w)| size(r, w)).max().unwrap_or(0) as i64
        };
        Ok(Codes {
            codes: Tensor::zeros_on(device, DType::E4M3, &[most(&|rows, width| rows * width)])?,
            scales: Tensor::zeros_on(
                device,
                DType::F32,
                &[most(&|rows, width| {
                    width.div_ceil(GROUP) * rows.next_multiple_of(SCALES_STEP)
                })],
            )?,
        })
    }

    /// `[rows, width]`
    pub fn codes(&self, rows: usize, width: usize) -> Result<View<'_>, ModelError> {
        self.codes.shaped(&[rows, width])
    }

    /// `[cdiv(width, 128), P]`, P at least `rows`.
    pub fn scales(&self, rows: usize, width: usize) -> Result<View<'_>, ModelError> {
        let shape = [width.div_ceil(GROUP), rows.next_multiple_of(SCALES_STEP)];
        self.scales.shaped(&shape)
    }

    /// Both, to be written.
    pub fn parts_mut(
        &mut self,
        rows: usize,
        width: usize,
    ) -> Result<(ViewMut<'_>, ViewMut<'_>), ModelError> {
        let shape = [width.div_ceil(GROUP), rows.next_multiple_of(SCALES_STEP)];
        Ok((
            self.codes.shaped_mut(&[rows, width])?,
            self.scales.shaped_mut(&shape)?,
        ))
    }

    /// Both, to be written by a kernel that quantises: of the scales as many columns as there are rows.
    pub fn written(
        &mut self,
        rows: usize,
        width: usize,
    ) -> Result<(ViewMut<'_>, ViewMut<'_>), ModelError> {
        let (codes, scales) = self.parts_mut(rows, width)?;
        Ok((codes, scales.slice(1, 0..rows as i64)?))
    }

    /// Quantises x `[M, K]` in groups of 128.
    pub fn quantise(&mut self, k: &Kernels, x: View) -> Result<(), ModelError> {
        let (q, s) = self.written(x.shape()[0] as usize, x.shape()[1] as usize)?;
        k.quantise_e4m3(QuantiseE4m3Args { x, q, s })?;
        Ok(())
    }

    /// Quantises rms(x `[M, K]`) · weight, K at most [`WIDEST_NORM`].
    pub fn quantise_normed(
        &mut self,
        k: &Kernels,
        x: View,
        weight: &Tensor,
        eps: f32,
    ) -> Result<(), ModelError> {
        let (q, s) = self.written(x.shape()[0] as usize, x.shape()[1] as usize)?;
        let w = weight.view();
        k.rmsnorm_e4m3(RmsnormE4m3Args { x, w, q, s, eps })?;
        Ok(())
    }

    /// y `[M, N]` = codes `[M, K]` · w^T.
    pub fn product(
        &self,
        k: &Kernels,
        w: &Matrix,
        rows: usize,
        y: ViewMut,
    ) -> Result<(), ModelError> {
        let width = w.codes.shape()[1] as usize;
        let (x, xs) = (self.codes(rows, width)?, self.scales(rows, width)?);
        let (w, ws) = (w.codes.view(), w.scales.view());
        if rows <= FEWEST {
            k.gemm_fp8_few(GemmFp8FewArgs { x, xs, w, ws, y })?;
        } else if rows <= FEW {
            k.gemm_fp8_64(GemmFp864Args { x, xs, w, ws, y })?;
        } else {
            k.gemm_fp8(GemmFp8Args { x, xs, w, ws, y })?;
        }
        Ok(())
    }
}
