//! Components of a forward pass beside those of the float64 reference, in the order in which they are computed: the first that
//! differs is where a fault lies.

use std::collections::BTreeSet;

use tessera::model::config::Config;
use tessera::model::{ModelError, Trace};
use tessera_artifact::DType;
use tessera_device::View;

use crate::golden::{COMPONENT_BOUND, Comparison, largest_error};
use crate::reference::Tensors;

/// Layers of the deepest golden model.
const GOLDEN_LAYERS: f64 = 4.0;

/// Keeps all that a forward pass records.
#[derive(Debug, Default)]
pub struct Recorded {
    values: Vec<(String, Vec<f64>)>,
}

impl Trace for Recorded {
    fn record(&mut self, name: &str, value: View) -> Result<(), ModelError> {
        let values = match value.dtype() {
            DType::I32 => value.to_vec::<i32>()?.into_iter().map(f64::from).collect(),
            _ => value.to_vec::<f32>()?.into_iter().map(f64::from).collect(),
        };
        self.values.push((name.into(), values));
        Ok(())
    }
}

impl Recorded {
    /// Every component of the reference, for one call with `tokens` tokens in all. Choices of experts and of entries are compared as
    /// sets, exactly.
    ///
    /// # Panics
    /// If the pass records nothing under one of the reference's names.
    pub fn compare(&self, config: &Config, reference: &Tensors, tokens: usize) -> Vec<Comparison> {
        let mut left: BTreeSet<&str> = reference.keys().map(String::as_str).collect();
        // Frequencies belong to the model; which entries are visible follows from the picks and the positions.
        left.retain(|name| {
            !name.starts_with("rope.")
                && !name.ends_with("comp.visible")
                && *name != "head_collapsed"
        });
        // The bound is for the few layers of the golden models. Each layer adds roundings of its own, which sum like a random walk.
        let depth = (config.layers.len() as f64 / GOLDEN_LAYERS).max(1.0);
        let mut comparisons = Vec::new();
        for (name, found) in &self.values {
            let Some(expected) = reference.get(name) else {
                continue;
            };
            left.remove(name.as_str());
            let expected = &expected.data;
            if name.ends_with("topk_idx") || name.ends_with("idx.topk") {
                let wrong = differing_sets(expected, found, tokens);
                comparisons.push(Comparison {
                    name: name.clone(),
                    error: wrong as f64,
                    bound: 0.0,
                });
                continue;
            }
            let (expected, found) = if name.ends_with("gate.topk_w") {
                // In no particular order; that each belongs to its expert follows from the scores and the routed sum.
                (sorted_rows(expected, tokens), sorted_rows(found, tokens))
            } else if name.ends_with("idx.head_w") {
                let factor = (config.index_n_heads as f64).sqrt().recip();
                (
                    expected.clone(),
                    found.iter().map(|weight| weight * factor).collect(),
                )
            } else {
                (expected.clone(), found.clone())
            };
            let largest = expected.iter().fold(0.0f64, |most, v| most.max(v.abs()));
            comparisons.push(Comparison {
                name: name.clone(),
                error: match expected.len() == found.len() {
                    true => largest_error(&expected, &found),
                    false => f64::INFINITY,
                },
                bound: COMPONENT_BOUND * largest * depth.sqrt(),
            });
        }
        assert!(left.is_empty(), "the forward pass does not record {left:?}");
        comparisons
    }
}

fn rows(values: &[f64], tokens: usize) -> impl Iterator<Item = &[f64]> {
    values.chunks((values.len() / tokens.max(1)).max(1))
}

fn sorted_rows(values: &[f64], tokens: usize) -> Vec<f64> {
    rows(values, tokens)
        .flat_map(|row| {
            let mut row = row.to_vec();
            row.sort_by(f64::total_cmp);
            row
        })
        .collect()
}

/// Tokens whose numbers (-1: none) are not the same, in whatever order. Rows of the two may have other widths.
fn differing_sets(expected: &[f64], found: &[f64], tokens: usize) -> usize {
    let sets = |values: &[f64]| -> Vec<BTreeSet<i64>> {
        let mut sets: Vec<BTreeSet<i64>> = rows(values, tokens)
            .map(|row| row.iter().map(|&v| v as i64).filter(|&v| v >= 0).collect())
            .collect();
        sets.resize(tokens, BTreeSet::new());
        sets
    };
    let (expected, found) = (sets(expected), sets(found));
    expected.iter().zip(&found).filter(|(e, f)| e != f).count()
}
