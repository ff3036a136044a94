//! The weights of a model as float64, by their checkpoint names.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use tessera::model::config::{Config, WeightFormat};
use tessera::weights::{Checkpoint, check};

pub(super) struct Weights {
    floats: BTreeMap<String, Vec<f64>>,
    expert_ids: BTreeMap<String, Vec<i64>>,
}

impl Weights {
    pub fn read(folder: &Path, config: &Config) -> Result<Weights, Box<dyn Error>> {
        if config.weight_format != WeightFormat::Plain {
            return Err("the float64 reference reads unquantised weights only".into());
        }
        let checkpoint = Checkpoint::open(folder)?;
        check(config, &checkpoint)?;
        let mut weights = Weights {
            floats: BTreeMap::new(),
            expert_ids: BTreeMap::new(),
        };
        for tensor in checkpoint.tensors() {
            if tensor.name.ends_with(".tid2eid") {
                weights
                    .expert_ids
                    .insert(tensor.name.into(), tensor.to_i64()?);
            } else {
                weights.floats.insert(tensor.name.into(), tensor.to_f64()?);
            }
        }
        Ok(weights)
    }

    pub fn get(&self, name: &str) -> &[f64] {
        self.floats
            .get(name)
            .unwrap_or_else(|| panic!("`{name}` is not in the checkpoint"))
    }

    /// `[vocabulary, experts per token]`.
    pub fn expert_ids(&self, name: &str) -> &[i64] {
        self.expert_ids
            .get(name)
            .unwrap_or_else(|| panic!("`{name}` is not in the checkpoint"))
    }
}
