//! Steps of the forward pass whose kernels follow from the types of weights and activations.

use std::mem::swap;

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View};

use super::ModelError;
use super::config::Config;
use super::kernels::{
    AttentionArgs, AttentionWideArgs, GemmGroupsArgs, GemmGroupsCodesFewArgs, GemmGroupsFewArgs,
    HcMixArgs, Kernels, LinearArgs, NormRotateArgs, NormRotateBf16Args, RmsnormArgs,
    RmsnormBf16Args, RotateArgs, RotateBf16Args,
};
use super::parameters::{Linear, Part, Weights};
use super::quantised::Quantised;
use super::workspace::{Rope, Rows};

pub(super) type Done = Result<(), ModelError>;

/// Rows up to which the kernel for few rows is used.
pub(super) const FEW: usize = 64;
/// Columns of a head that `attention_wide` takes.
const WIDEST_HEAD: i64 = 512;
/// Of k in a part of a hyper-connection's products.
pub(super) const RUN: usize = 512;
/// The widest rows that the norm holds in registers.
const WIDEST: usize = 7168;

/// y `[M, G, N]` = x `[M, G, K]` · w^T.
pub(super) fn linear(
    k: &Kernels,
    x: View,
    w: &Linear,
    y: &mut Tensor,
    quantised: &mut Option<Quantised>,
) -> Done {
    let [rows, groups, inputs] = [0, 1, 2].map(|axis| x.shape()[axis]);
    let y = y.shaped_mut(&[rows as usize, groups as usize, w.outputs])?;
    match &w.weights {
        Weights::Panels(panels) => k.linear(LinearArgs {
            x,
            w: panels.view(),
            y,
        })?,
        Weights::Rows(weights) => {
            let w = weights.view();
            match rows as usize {
                0..=FEW => k.gemm_groups_few(GemmGroupsFewArgs { x, w, y })?,
                _ => k.gemm_groups(GemmGroupsArgs { x, w, y })?,
            }
        }
        Weights::GroupCodes(matrix) => {
            let shape = [groups, w.outputs as i64, inputs];
            if rows as usize <= FEW {
                return Ok(k.gemm_groups_codes_few(GemmGroupsCodesFewArgs {
                    x,
                    w: matrix.codes.view().reshape(&shape)?,
                    ws: matrix.scales.view(),
                    y,
                })?);
            }
            let Some(wide) = quantised.as_mut().and_then(|q| q.group_weights.as_mut()) else {
                return Err(no_workspace());
            };
            matrix.widen(
                k,
                wide.shaped_mut(&[(shape[0] * shape[1]) as usize, inputs as usize])?,
            )?;
            let w = wide.shaped(&shape.map(|n| n as usize))?;
            k.gemm_groups(GemmGroupsArgs { x, w, y })?;
        }
        Weights::Parts(_) => {
            unreachable!("only hyper-connections have weights in parts, and ask `mix` for products")
        }
        Weights::Codes(matrix) => {
            let Some(quantised) = quantised else {
                return Err(no_workspace());
            };
            quantised.input.quantise(k, x.reshape(&[rows, inputs])?)?;
            let y = y.reshape(&[rows, w.outputs as i64])?;
            quantised.input.product(k, matrix, rows as usize, y)?;
        }
    }
    Ok(())
}

/// The parts `[T, P, M]` of a site's products with x `[T, K]` in bf16; their number P is that of runs of 512 in K.
pub(super) fn mix<'a>(
    k: &Kernels,
    x: View,
    w: &Tensor,
    parts: &'a mut Tensor,
) -> Result<View<'a>, ModelError> {
    let shape = parts_shape(x, w);
    k.hc_mix(HcMixArgs {
        x,
        w: w.view(),
        parts: parts.shaped_mut(&shape)?,
    })?;
    parts.shaped(&shape)
}

pub(super) fn parts_shape(x: View, w: &Tensor) -> [usize; 3] {
    let [rows, columns] = [x.shape()[0] as usize, x.shape()[1] as usize];
    [rows, columns.div_ceil(RUN), w.shape()[1] as usize]
}

/// Whether the kernels run on a GPU, where some steps have kernels of their own.
pub(super) fn on_gpu(k: &Kernels) -> bool {
    let library = k.library();
    matches!(library.device(), Device::Cuda(_))
}

/// On a GPU tensor cores take heads in bf16.
pub(super) fn attention(k: &Kernels, args: AttentionArgs) -> Done {
    let dim = args.q.shape()[2];
    let wide = args.q.dtype() == DType::BF16 && dim % 8 == 0 && dim <= WIDEST_HEAD;
    if !wide || !on_gpu(k) {
        k.attention(args)?;
        return Ok(());
    }
    let AttentionArgs {
        q,
        ring,
        entries,
        table,
        picks,
        pos,
        seq,
        sink,
        o,
        window,
        ratio,
        per_page,
        scale,
    } = args;
    k.attention_wide(AttentionWideArgs {
        q,
        ring,
        entries,
        table,
        picks,
        pos,
        seq,
        sink,
        o,
        window,
        ratio,
        per_page,
        scale,
    })?;
    Ok(())
}

/// The columns of one matrix in a stacked product `[T, N]`.
pub(super) fn part<'a>(
    product: &'a Tensor,
    shape: [usize; 2],
    part: &Part,
) -> Result<View<'a>, ModelError> {
    Ok(product.shaped(&shape)?.slice(1, part.clone())?)
}

/// y `[R, D]` = rms(x `[R, D]`) · weight.
pub(super) fn rms(k: &Kernels, x: View, weight: &Tensor, y: &mut Tensor, c: &Config) -> Done {
    let shape = [x.shape()[0] as usize, x.shape()[1] as usize];
    let (w, y, eps) = (weight.view(), y.shaped_mut(&shape)?, c.rms_norm_eps as f32);
    match x.dtype() {
        DType::BF16 if shape[1] <= WIDEST => k.rmsnorm_bf16(RmsnormBf16Args { x, w, y, eps })?,
        _ => k.rmsnorm(RmsnormArgs { x, w, y, eps })?,
    }
    Ok(())
}

/// y `[T, H, A]`: each head of x normalised, its last dims turned.
pub(super) fn norm_rotate(
    k: &Kernels,
    x: &Tensor,
    rope: &Rope,
    y: &mut Tensor,
    t: usize,
    c: &Config,
) -> Done {
    let (cosine, sine) = (rope.cosine.rows(t)?, rope.sine.rows(t)?);
    let (x, y, eps) = (x.rows(t)?, y.rows_mut(t)?, c.rms_norm_eps as f32);
    match x.dtype() {
        DType::BF16 => k.norm_rotate_bf16(NormRotateBf16Args {
            x,
            cosine,
            sine,
            y,
            eps,
        })?,
        _ => k.norm_rotate(NormRotateArgs {
            x,
            cosine,
            sine,
            y,
            eps,
        })?,
    }
    Ok(())
}

/// y `[T, H, A]`: the last dims of x turned by `sign` times the position. x may hold anything afterwards.
pub(super) fn turn(
    k: &Kernels,
    x: &mut Tensor,
    rope: &Rope,
    y: &mut Tensor,
    shape: &[usize; 3],
    sign: f32,
) -> Done {
    let t = shape[0];
    let (cosine, sine) = (rope.cosine.rows(t)?, rope.sine.rows(t)?);
    match x.dtype() {
        DType::BF16 => {
            k.rotate_bf16(RotateBf16Args {
                x: x.shaped_mut(shape)?,
                cosine,
                sine,
                sign,
            })?;
            swap(x, y);
        }
        _ => k.rotate(RotateArgs {
            x: x.shaped(shape)?,
            cosine,
            sine,
            y: y.shaped_mut(shape)?,
            sign,
        })?,
    }
    Ok(())
}

pub(super) fn no_workspace() -> ModelError {
    ModelError::Input("the session has no workspace for quantised products".into())
}
