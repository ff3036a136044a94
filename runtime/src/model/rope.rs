//! The rotary frequencies of a configuration: the constants that `rope_frequencies` is launched with.

use std::f64::consts::PI;

use tessera_artifact::DType;
use tessera_device::Tensor;

use super::ModelError;
use super::config::Config;
use super::kernels::{Kernels, RopeFrequenciesArgs};

/// `[F]` each, F half the rotary dims.
pub(super) struct Frequencies {
    /// Of layers that see the window only.
    pub main: Tensor,
    /// Of layers that compress: another base, scaled by YaRN.
    pub compress: Tensor,
}

impl Frequencies {
    pub fn new(config: &Config, kernels: &Kernels) -> Result<Frequencies, ModelError> {
        let main = Scaling::none();
        let compress = match &config.yarn {
            None => Scaling::none(),
            Some(yarn) => {
                let dims = config.qk_rope_head_dim as f64;
                let base = config.compress_rope_theta;
                // The pair that makes `turns` turns over the original context.
                let pair = |turns: f64| {
                    dims * (yarn.original_max_position_embeddings as f64 / (turns * 2.0 * PI)).ln()
                        / (2.0 * base.ln())
                };
                let lo = pair(yarn.beta_fast).floor().max(0.0);
                let hi = pair(yarn.beta_slow).ceil().min(dims - 1.0);
                Scaling {
                    factor: yarn.factor,
                    lo,
                    // As the inference code: no division by zero where both ends meet.
                    hi: if hi == lo { lo + 0.001 } else { hi },
                }
            }
        };
        Ok(Frequencies {
            main: frequencies(config, kernels, config.rope_theta, &main)?,
            compress: frequencies(config, kernels, config.compress_rope_theta, &compress)?,
        })
    }
}

struct Scaling {
    factor: f64,
    lo: f64,
    hi: f64,
}

impl Scaling {
    fn none() -> Scaling {
        Scaling {
            factor: 1.0,
            lo: 0.0,
            hi: 1.0,
        }
    }
}

fn frequencies(
    config: &Config,
    kernels: &Kernels,
    base: f64,
    scaling: &Scaling,
) -> Result<Tensor, ModelError> {
    let dims = config.qk_rope_head_dim;
    let device = kernels.library().device();
    let mut f = Tensor::zeros_on(device, DType::F32, &[dims as i64 / 2])?;
    let ratio = base.powf(-2.0 / dims as f64);
    kernels.rope_frequencies(RopeFrequenciesArgs {
        f: f.view_mut()?,
        ratio,
        factor: scaling.factor,
        lo: scaling.lo,
        hi: scaling.hi,
    })?;
    Ok(f)
}
