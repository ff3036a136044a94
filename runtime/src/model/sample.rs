//! Choosing tokens from logits: the most likely one, or a draw with temperature and nucleus.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View};

use super::kernels::{GreedyArgs, SampleArgs};
use super::{Model, ModelError};

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    Greedy,
    Random {
        temperature: f32,
        top_p: f32,
        seed: u64,
    },
}

impl Sampling {
    /// Greedy for `temperature` 0.
    ///
    /// # Errors
    /// [`ModelError::Input`]: a temperature below 0, or `top_p` outside (0, 1].
    pub fn new(temperature: f32, top_p: f32, seed: u64) -> Result<Sampling, ModelError> {
        if !(temperature >= 0.0 && temperature.is_finite()) {
            return Err(ModelError::Input(format!(
                "a temperature of {temperature}; it must be 0 or more"
            )));
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return Err(ModelError::Input(format!(
                "a top-p of {top_p}; it must be above 0 and at most 1"
            )));
        }
        Ok(match temperature == 0.0 {
            true => Sampling::Greedy,
            false => Sampling::Random {
                temperature,
                top_p,
                seed,
            },
        })
    }
}

/// Memory for choosing up to so many tokens at once.
pub struct Sampler {
    requests: Tensor,
    positions: Tensor,
    chosen: Tensor,
    ids: Vec<u32>,
}

impl Sampler {
    /// # Errors
    /// No memory.
    pub fn new(device: &Device, most_rows: usize) -> Result<Sampler, ModelError> {
        let ints = || Tensor::zeros_on(device, DType::I32, &[most_rows as i64]);
        Ok(Sampler {
            requests: ints()?,
            positions: ints()?,
            chosen: ints()?,
            ids: Vec::new(),
        })
    }

    /// One token for every row of `logits` `[rows, V]`. A random draw depends on the seed, the row's `request` and `position` and its
    /// logits, on nothing else.
    ///
    /// # Errors
    /// [`ModelError`]: more rows than planned, or a refused launch.
    pub fn choose(
        &mut self,
        model: &Model,
        logits: View,
        sampling: &Sampling,
        requests: &[u32],
        positions: &[u32],
    ) -> Result<&[u32], ModelError> {
        let rows = logits.shape()[0];
        let most = self.chosen.shape()[0];
        if rows > most || requests.len() != rows as usize || positions.len() != rows as usize {
            return Err(ModelError::Input(format!(
                "{rows} rows of logits with {} requests and {} positions; this sampler takes up to {most} rows",
                requests.len(),
                positions.len()
            )));
        }
        let chosen = self.chosen.view_mut()?.slice(0, 0..rows)?;
        match *sampling {
            Sampling::Greedy => model.kernels().greedy(GreedyArgs { logits, id: chosen })?,
            Sampling::Random {
                temperature,
                top_p,
                seed,
            } => {
                let as_stored = |values: &[u32]| values.iter().map(|&v| v as i32).collect();
                let (requests, positions): (Vec<i32>, Vec<i32>) =
                    (as_stored(requests), as_stored(positions));
                self.requests.write_start(&requests)?;
                self.positions.write_start(&positions)?;
                model.kernels().sample(SampleArgs {
                    logits,
                    request: self.requests.view().slice(0, 0..rows)?,
                    position: self.positions.view().slice(0, 0..rows)?,
                    id: chosen,
                    temperature,
                    top_p,
                    seed0: seed as u32,
                    seed1: (seed >> 32) as u32,
                })?;
            }
        }
        let chosen = self.chosen.view().slice(0, 0..rows)?.to_vec::<i32>()?;
        self.ids.clear();
        self.ids.extend(chosen.into_iter().map(|id| id as u32));
        Ok(&self.ids)
    }
}
