//! Rows that a cache keeps: as they are, as records, or as keys of the indexer.
//!
//! Models with float32 activations keep their rows. Quantised ones have rounded keys and entries to what fewer bytes hold: **records** of 584 bytes (448
//! codes of e4m3, a power of two for each 64 of them, 64 rotary dims in bf16, a byte to fill up), and **index keys** of 68 (128 codes of e2m1, a power of
//! two for each 32, in one word). Codes, rotary dims and scales are tensors of their own, each of whole rows: so every part of a record is at a multiple of
//! its own size, and a page is a run of rows in each of them.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View, ViewMut};

use super::ModelError;
use super::config::Config;
use super::kernels::{
    Kernels, NarrowIndexKeysArgs, NarrowRecordsArgs, RandomScalesArgs, RandomValuesArgs,
    WidenIndexKeysArgs, WidenRecordsArgs,
};
use super::quantised::activation_dtype;
use super::synthetic::number;

/// Channels of a record that share a scale.
const RECORD_GROUP: usize = 64;
/// Scales of a record come in whole words of so many bytes.
const SCALE_WORD: usize = 8;

/// `[N, ..]` each.
pub(super) enum Kept {
    Rows(Tensor),
    Records {
        codes: Tensor,
        rope: Tensor,
        scales: Tensor,
    },
    IndexKeys {
        codes: Tensor,
        scales: Tensor,
    },
}

/// Which rows of which sequences are meant: as `records.tl` has it.
pub(super) struct Place<'a> {
    /// `[B, L]`
    pub table: View<'a>,
    pub per_page: i64,
    /// `[B]`, i32
    pub first: View<'a>,
    pub end: View<'a>,
    pub window: usize,
    pub ratio: usize,
    pub most: usize,
}

impl Kept {
    /// Keys of attention.
    pub fn keys(device: &Device, config: &Config, rows: usize) -> Result<Kept, ModelError> {
        let (width, rope) = (config.head_dim, config.qk_rope_head_dim);
        let zeros =
            |dtype, width: usize| Tensor::zeros_on(device, dtype, &[rows as i64, width as i64]);
        if activation_dtype(config) == DType::F32 {
            return Ok(Kept::Rows(zeros(DType::F32, width)?));
        }
        let codes = width.saturating_sub(rope);
        let scales = codes.div_ceil(RECORD_GROUP).next_multiple_of(SCALE_WORD);
        Ok(Kept::Records {
            codes: zeros(DType::E4M3, codes)?,
            rope: zeros(DType::BF16, rope)?,
            scales: zeros(DType::UE8M0, scales)?,
        })
    }

    /// Keys of the indexer.
    pub fn index_keys(device: &Device, config: &Config, rows: usize) -> Result<Kept, ModelError> {
        let width = config.index_head_dim;
        let zeros =
            |dtype, width: usize| Tensor::zeros_on(device, dtype, &[rows as i64, width as i64]);
        if activation_dtype(config) == DType::F32 {
            return Ok(Kept::Rows(zeros(DType::F32, width)?));
        }
        Ok(Kept::IndexKeys {
            codes: zeros(DType::E2M1, width)?,
            scales: Tensor::zeros_on(device, DType::I32, &[rows as i64])?,
        })
    }

    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Kept::Rows(rows) => vec![rows],
            Kept::Records {
                codes,
                rope,
                scales,
            } => vec![codes, rope, scales],
            Kept::IndexKeys { codes, scales } => vec![codes, scales],
        }
    }

    pub fn tensors_mut(&mut self) -> Vec<&mut Tensor> {
        match self {
            Kept::Rows(rows) => vec![rows],
            Kept::Records {
                codes,
                rope,
                scales,
            } => vec![codes, rope, scales],
            Kept::IndexKeys { codes, scales } => vec![codes, scales],
        }
    }

    pub fn bytes(&self) -> usize {
        self.tensors().into_iter().map(Tensor::byte_count).sum()
    }

    /// Of one row.
    pub fn row_bytes(&self) -> usize {
        let rows = self.tensors()[0].shape()[0].max(1) as usize;
        self.bytes() / rows
    }

    /// The rows themselves, `[N, D]`.
    ///
    /// # Errors
    /// They are kept otherwise, which is a bug of the caller.
    pub fn rows(&self) -> Result<View<'_>, ModelError> {
        match self {
            Kept::Rows(rows) => Ok(rows.view()),
            _ => Err(kept_otherwise()),
        }
    }

    /// As [`rows`](Self::rows).
    pub fn rows_mut(&mut self) -> Result<ViewMut<'_>, ModelError> {
        match self {
            Kept::Rows(rows) => Ok(rows.view_mut()?),
            _ => Err(kept_otherwise()),
        }
    }

    /// Rows back in bf16, to `y` `[B, E, D]`.
    pub fn widen(&self, k: &Kernels, at: &Place, y: &mut Tensor) -> Result<(), ModelError> {
        let most = (at.most as i64).min(y.shape()[1]);
        match self {
            Kept::Rows(_) => return Err(kept_otherwise()),
            Kept::Records {
                codes,
                rope,
                scales,
            } => k.widen_records(WidenRecordsArgs {
                codes: codes.view(),
                rope: rope.view(),
                scales: scales.view(),
                table: at.table,
                first: at.first,
                end: at.end,
                y: y.view_mut()?,
                per_page: at.per_page,
                window: at.window as i64,
                ratio: at.ratio as i64,
                most,
            })?,
            Kept::IndexKeys { codes, scales } => k.widen_index_keys(WidenIndexKeysArgs {
                codes: codes.view(),
                scales: scales.view(),
                table: at.table,
                end: at.end,
                y: y.view_mut()?,
                per_page: at.per_page,
                ratio: at.ratio as i64,
                most,
            })?,
        }
        Ok(())
    }

    /// The inverse, for values that are put in the place of those kept.
    pub fn narrow(&mut self, k: &Kernels, at: &Place, x: &Tensor) -> Result<(), ModelError> {
        let most = (at.most as i64).min(x.shape()[1]);
        match self {
            Kept::Rows(_) => return Err(kept_otherwise()),
            Kept::Records {
                codes,
                rope,
                scales,
            } => k.narrow_records(NarrowRecordsArgs {
                x: x.view(),
                table: at.table,
                first: at.first,
                end: at.end,
                codes: codes.view_mut()?,
                rope: rope.view_mut()?,
                scales: scales.view_mut()?,
                per_page: at.per_page,
                window: at.window as i64,
                ratio: at.ratio as i64,
                most,
            })?,
            Kept::IndexKeys { codes, scales } => k.narrow_index_keys(NarrowIndexKeysArgs {
                x: x.view(),
                table: at.table,
                end: at.end,
                codes: codes.view_mut()?,
                scales: scales.view_mut()?,
                per_page: at.per_page,
                ratio: at.ratio as i64,
                most,
            })?,
        }
        Ok(())
    }

    /// Random values of about ±1 everywhere; what they are follows from the name and the seed.
    pub fn fill_random(&mut self, k: &Kernels, name: &str, seed: u32) -> Result<(), ModelError> {
        for (part, tensor) in self.tensors_mut().into_iter().enumerate() {
            fill_random(k, tensor, &format!("{name}.{part}"), seed)?;
        }
        Ok(())
    }
}

/// Of the largest code times the largest of three scales.
const RECORD_EXPONENT: i32 = -9;
/// 2^-4, from which two more powers follow.
const KEY_SCALE: u8 = 123;
const MOST_E4M3: f32 = 448.0;
const MOST_E2M1: f32 = 6.0;

pub(super) fn fill_random(
    k: &Kernels,
    tensor: &mut Tensor,
    name: &str,
    seed: u32,
) -> Result<(), ModelError> {
    let flat = [tensor.elements() as i64];
    let (tensor_number, dtype) = (number(name), tensor.dtype());
    if dtype == DType::I32 {
        // Four scales a word.
        let scales =
            |i: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|g| KEY_SCALE + ((i + g) % 3) as u8));
        let words: Vec<i32> = (0..tensor.elements()).map(scales).collect();
        return Ok(tensor.write_start(&words)?);
    }
    let y = tensor.view_mut()?.reshape(&flat)?;
    if dtype == DType::UE8M0 {
        k.random_scales(RandomScalesArgs {
            y,
            exponent: RECORD_EXPONENT,
            tensor: tensor_number,
            seed,
        })?;
        return Ok(());
    }
    let spread = match dtype {
        DType::E4M3 => MOST_E4M3,
        DType::E2M1 => MOST_E2M1,
        _ => 1.0,
    };
    k.random_values(RandomValuesArgs {
        y,
        center: 0.0,
        spread,
        tensor: tensor_number,
        seed,
    })?;
    Ok(())
}

fn kept_otherwise() -> ModelError {
    ModelError::Input("the cache keeps these rows in another form than the model asks for".into())
}
