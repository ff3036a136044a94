//! A trace that records every value and puts stored ones in the place of those computed.

use std::collections::BTreeMap;

use half::bf16;
use tessera_artifact::DType;
use tessera_device::{Tensor, View, ViewMut};

use crate::model::{ModelError, Trace};
use crate::weights;

/// What a step recorded, and what stood there afterwards.
pub(super) struct Seen {
    pub values: Vec<f64>,
    pub replaced: Vec<f64>,
}

pub(super) fn get<'a>(
    seen: &'a BTreeMap<String, Seen>,
    name: &str,
) -> Result<&'a Seen, ModelError> {
    seen.get(name).ok_or_else(|| {
        ModelError::Input(format!("the forward pass records nothing called `{name}`"))
    })
}

/// A stored value that takes a computed one's place.
pub(super) struct StoredValue {
    pub values: Vec<f64>,
    /// The tokens of the call that it has, in its order; `None`: all of what is computed.
    pub tokens: Option<Vec<usize>>,
}

impl StoredValue {
    /// One decode step of `[B, N, …]`.
    pub fn step(mut self, batch: usize, steps: usize, step: usize) -> StoredValue {
        let width = self.values.len() / (batch * steps).max(1);
        self.values = (0..batch)
            .flat_map(|b| self.values[(b * steps + step) * width..][..width].to_vec())
            .collect();
        self
    }

    /// Puts the values among those computed; `None` where they don't fit.
    fn put(&self, to: &mut [f64]) -> Option<()> {
        match &self.tokens {
            None if to.len() == self.values.len() => to.copy_from_slice(&self.values),
            None => return None,
            Some(tokens) => {
                let width = self.values.len() / tokens.len().max(1);
                for (row, &token) in self.values.chunks(width.max(1)).zip(tokens) {
                    to.get_mut(token * width..)?
                        .get_mut(..row.len())?
                        .copy_from_slice(row);
                }
            }
        }
        Some(())
    }
}

pub(super) fn stored(tensor: &weights::Tensor) -> Result<StoredValue, ModelError> {
    Ok(StoredValue {
        values: values_of(tensor)?,
        tokens: None,
    })
}

/// Records everything, and puts stored values in the place of computed ones.
#[derive(Default)]
pub(super) struct Forced {
    pub values: BTreeMap<String, StoredValue>,
    pub seen: BTreeMap<String, Seen>,
}

impl Trace for Forced {
    fn record(&mut self, name: &str, value: View) -> Result<(), ModelError> {
        let values = widened(&value)?;
        let seen = Seen {
            replaced: values.clone(),
            values,
        };
        self.seen.insert(name.into(), seen);
        Ok(())
    }

    fn replace(&mut self, name: &str, mut value: ViewMut) -> Result<(), ModelError> {
        let (Some(stored), Some(seen)) = (self.values.get(name), self.seen.get_mut(name)) else {
            return Ok(());
        };
        stored.put(&mut seen.replaced).ok_or_else(|| {
            ModelError::Input(format!(
                "the stored values of `{name}` are {}, and the model computes {}",
                stored.values.len(),
                seen.values.len()
            ))
        })?;
        let replaced = seen.replaced.iter();
        let tensor = match value.dtype() {
            DType::BF16 => {
                let values: Vec<bf16> = replaced.map(|&v| bf16::from_f64(v)).collect();
                Tensor::from_slice(value.shape(), &values)?
            }
            DType::I32 => {
                let values: Vec<i32> = replaced.map(|&v| v as i32).collect();
                Tensor::from_slice(value.shape(), &values)?
            }
            _ => {
                let values: Vec<f32> = replaced.map(|&v| v as f32).collect();
                Tensor::from_slice(value.shape(), &values)?
            }
        };
        Ok(value.copy_from(&tensor.view())?)
    }
}

pub(super) fn widened(value: &View) -> Result<Vec<f64>, ModelError> {
    Ok(match value.dtype() {
        DType::I32 => value.to_vec::<i32>()?.into_iter().map(f64::from).collect(),
        DType::BF16 => value.to_vec::<bf16>()?.into_iter().map(f64::from).collect(),
        _ => value.to_vec::<f32>()?.into_iter().map(f64::from).collect(),
    })
}

pub(super) fn values_of(tensor: &weights::Tensor) -> Result<Vec<f64>, ModelError> {
    Ok(match tensor.dtype {
        weights::Dtype::I32 | weights::Dtype::I64 => {
            tensor.to_i64()?.iter().map(|&v| v as f64).collect()
        }
        _ => tensor.to_f64()?,
    })
}
