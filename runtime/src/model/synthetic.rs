//! Weights that no file holds: random values in the types of the released checkpoints, made on the device by kernels.
//!
//! A tensor's values depend on its name and the seed alone (`random.tl` has the law of a value). How they are spread is chosen so that
//! activations stay near 1 through any number of layers:
//! - a matrix with K inputs: deviation 1 / √K; in codes these fill the range of their type, and scales are three neighbouring powers of two;
//! - embeddings: deviation 1; norms and factors of hyper-connections: 0.5 to 1.5; biases of the router: within ±0.05, so that experts are
//!   chosen about equally often; what else is added: within ±1;
//! - tables of experts: different experts in every row.

use std::collections::BTreeMap;

use tessera_artifact::DType;
use tessera_device::ViewMut;

use super::ModelError;
use super::config::Config;
use super::kernels::{Kernels, RandomChoicesArgs, RandomScalesArgs, RandomValuesArgs};
use crate::weights::{Dtype, ExpectedTensor, expected_tensors};

pub struct Synthetic {
    seed: u32,
    experts: usize,
    tensors: BTreeMap<String, ExpectedTensor>,
}

/// Uniform values of this half width have a deviation of 1.
const UNIT: f32 = 1.732_050_8;
/// The largest codes.
const MOST_E4M3: f32 = 448.0;
const MOST_E2M1: f32 = 6.0;
/// A scale is 2^(n - 1), 2^n or 2^(n + 1): the root of their mean square over 2^n.
const SCALES: f32 = 1.322_876;

impl Synthetic {
    pub fn new(config: &Config, seed: u32) -> Synthetic {
        let tensors = expected_tensors(config).into_iter();
        Synthetic {
            seed,
            experts: config.n_routed_experts,
            tensors: tensors.map(|t| (t.name.clone(), t)).collect(),
        }
    }

    pub fn count(&self) -> usize {
        self.tensors.len()
    }

    /// A tensor's stored type, the first of those that a checkpoint may have, and its shape.
    pub fn stored(&self, name: &str) -> (Dtype, &[usize]) {
        let tensor = self.tensor(name);
        (tensor.dtypes[0], &tensor.shape)
    }

    /// The loader asks for what the configuration has.
    fn tensor(&self, name: &str) -> &ExpectedTensor {
        (self.tensors.get(name))
            .unwrap_or_else(|| panic!("`{name}` is no tensor of the configured model"))
    }

    /// Fills `to` `[R, C]`, or of rank 1, with the tensor's values.
    ///
    /// # Errors
    /// [`ModelError`]: a refused launch.
    pub fn fill(&self, k: &Kernels, name: &str, to: ViewMut) -> Result<(), ModelError> {
        let (tensor, seed) = (number(name), self.seed);
        let shape: Vec<i64> = to.shape().to_vec();
        let flat = [shape.iter().product::<i64>()];
        let inputs = shape.last().copied().unwrap_or(1).max(1) as f32;
        let (center, spread) = match to.dtype() {
            DType::I64 => {
                k.random_choices(RandomChoicesArgs {
                    y: to,
                    experts: self.experts as i64,
                    tensor,
                    seed,
                })?;
                return Ok(());
            }
            DType::UE8M0 => {
                let codes = self.tensor(&name.replace(".scale", ".weight"));
                let (most, inputs) = match codes.dtypes[0] {
                    Dtype::F8E4M3 => (MOST_E4M3, codes.shape[1]),
                    // Two codes to a byte.
                    _ => (MOST_E2M1, 2 * codes.shape[1]),
                };
                let deviation = most / UNIT * SCALES * (inputs as f32).sqrt();
                k.random_scales(RandomScalesArgs {
                    y: to.reshape(&flat)?,
                    exponent: -deviation.log2().round() as i32,
                    tensor,
                    seed,
                })?;
                return Ok(());
            }
            DType::E4M3 => (0.0, MOST_E4M3),
            DType::E2M1 => (0.0, MOST_E2M1),
            _ if name.ends_with("norm.weight") || name.ends_with("_scale") => (1.0, 0.5),
            _ if name.ends_with("gate.bias") => (0.0, 0.05),
            _ if name == "embed.weight" => (0.0, UNIT),
            _ if name.ends_with(".weight") || name.ends_with("_fn") => (0.0, UNIT / inputs.sqrt()),
            _ => (0.0, 1.0),
        };
        k.random_values(RandomValuesArgs {
            y: to.reshape(&flat)?,
            center,
            spread,
            tensor,
            seed,
        })?;
        Ok(())
    }
}

/// A tensor's number: the hash FNV-1a of its name.
pub(super) fn number(name: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(16_777_619);
    name.bytes().fold(2_166_136_261, step)
}
