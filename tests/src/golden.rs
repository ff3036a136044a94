//! The golden cases of `tests/golden`: opening them, and comparing what an implementation computed with them.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};

use tessera::weights::{SafetensorsFile, Tensor};

use crate::reference::{Array, Tensors};

pub const CASES: [&str; 5] = [
    "g1_mixed_tiny_mtp",
    "g2_real_head_r128",
    "g3_window_only",
    "g4_csa_select",
    "g5_hca_moe6",
];

/// One folder of `tests/golden`.
pub struct Case {
    pub name: &'static str,
    pub folder: PathBuf,
    pub io: SafetensorsFile,
    pub trace: SafetensorsFile,
    /// Lengths of the stored sequences, rising; the trace is of the last.
    pub lengths: Vec<usize>,
}

impl Case {
    /// # Errors
    /// What the reader of safetensors reports.
    pub fn open(name: &'static str) -> Result<Case, Box<dyn Error>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("golden")
            .join(name);
        let io = SafetensorsFile::open(&folder.join("io.safetensors"))?;
        let trace = SafetensorsFile::open(&folder.join("trace.safetensors"))?;
        let length = |name: &str| {
            name.strip_prefix("len")?
                .strip_suffix(".logits")?
                .parse()
                .ok()
        };
        let lengths: BTreeSet<usize> = io
            .tensors()
            .filter_map(|tensor| length(tensor.name))
            .collect();
        Ok(Case {
            name,
            folder,
            io,
            trace,
            lengths: lengths.into_iter().collect(),
        })
    }

    /// Token ids `[B, S]` of the io file, if they are there.
    pub fn ids(&self, name: &str) -> Option<Vec<Vec<u32>>> {
        let tensor = self.io.get(name)?;
        let ids = tensor.to_i64().expect("token ids are integers");
        let rows = ids.chunks(tensor.shape[1]);
        Some(
            rows.map(|row| {
                row.iter()
                    .map(|&id| u32::try_from(id).expect("token ids fit"))
                    .collect()
            })
            .collect(),
        )
    }

    /// Compares end-to-end tensors (`logits`, `hidden.N`, …) with those stored for `length`.
    pub fn compare_io(&self, length: usize, found: &Tensors) -> Vec<Comparison> {
        let prefix = format!("len{length}.");
        let stored = self
            .io
            .tensors()
            .filter_map(|tensor| Some((tensor.name.strip_prefix(&prefix)?, tensor)));
        stored
            .filter(|(name, _)| !name.ends_with("input_ids"))
            .map(|(name, tensor)| {
                compare_floats(name, &tensor, find(found, name), end_to_end_bound(name))
            })
            .collect()
    }

    /// Compares components with the trace.
    pub fn compare_trace(&self, found: &Tensors) -> Vec<Comparison> {
        let rows: Vec<usize> = self.trace.get("rows").map_or_else(Vec::new, |rows| {
            rows.to_i64()
                .expect("rows are integers")
                .into_iter()
                .map(|row| row as usize)
                .collect()
        });
        self.trace
            .tensors()
            .filter(|tensor| tensor.name != "rows")
            .map(|tensor| match tensor.name.strip_suffix("@rows") {
                Some(name) => {
                    compare_component(name, &tensor, &take_rows(find(found, name), &rows))
                }
                None => compare_component(tensor.name, &tensor, find(found, tensor.name)),
            })
            .collect()
    }
}

/// One tensor beside its golden value.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub name: String,
    pub error: f64,
    pub bound: f64,
}

impl Comparison {
    pub fn is_fine(&self) -> bool {
        // Not `error > bound`: a NaN is not fine.
        self.error <= self.bound
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: error {:.3e}, at most {:.3e}",
            self.name, self.error, self.bound
        )
    }
}

/// The bounds of `golden/README.md`: noise between evaluation orders is at least five times smaller, the effect of
/// the smallest mistakes tried there larger.
fn end_to_end_bound(name: &str) -> f64 {
    if name.ends_with("logits") { 1e-4 } else { 5e-4 }
}

/// Of the largest magnitude in a tensor.
pub(crate) const COMPONENT_BOUND: f64 = 2e-5;

fn find<'a>(found: &'a Tensors, name: &str) -> &'a Array {
    found
        .get(name)
        .unwrap_or_else(|| panic!("nothing was computed under the golden name `{name}`"))
}

/// The second axis reduced to `rows`.
fn take_rows(array: &Array, rows: &[usize]) -> Array {
    let width: usize = array.shape[2..].iter().product();
    let mut shape = array.shape.clone();
    shape[1] = rows.len();
    let sequences = array.data.chunks(array.shape[1] * width);
    let data = sequences.flat_map(|sequence| {
        rows.iter()
            .flat_map(|row| &sequence[row * width..][..width])
    });
    Array::new(&shape, data.copied().collect())
}

fn compare_component(name: &str, expected: &Tensor, found: &Array) -> Comparison {
    let exact = |error: usize| Comparison {
        name: name.into(),
        error: error as f64,
        bound: 0.0,
    };
    assert_eq!(found.shape, expected.shape, "{name}");
    let width = *expected.shape.last().expect("components have axes");
    if name.ends_with("comp.visible") || name.ends_with("topk_idx") || name.ends_with("idx.topk") {
        let expected = expected.to_i64().expect("these are integers");
        let is_set = !name.ends_with("comp.visible");
        let wrong =
            expected
                .chunks(width)
                .zip(found.data.chunks(width))
                .filter(|(expected, found)| {
                    let mut expected = expected.to_vec();
                    let mut found: Vec<i64> = found.iter().map(|value| *value as i64).collect();
                    if is_set {
                        expected.sort_unstable();
                        found.sort_unstable();
                    }
                    expected != found
                });
        return exact(wrong.count());
    }
    let expected_values = expected.to_f64().expect("the others are floats");
    let largest = expected_values
        .iter()
        .fold(0.0f64, |largest, value| largest.max(value.abs()));
    if name.ends_with("gate.topk_w") {
        // In no particular order: rising weights are compared. That they belong to the right experts follows from
        // the scores and from the routed sum.
        let sorted = |values: &[f64]| {
            let mut values = values.to_vec();
            values
                .chunks_mut(width)
                .for_each(|row| row.sort_by(f64::total_cmp));
            values
        };
        let error = largest_error(&sorted(&expected_values), &sorted(&found.data));
        return Comparison {
            name: name.into(),
            error,
            bound: COMPONENT_BOUND * largest,
        };
    }
    compare_floats(name, expected, found, COMPONENT_BOUND * largest)
}

fn compare_floats(name: &str, expected: &Tensor, found: &Array, bound: f64) -> Comparison {
    assert_eq!(found.shape, expected.shape, "{name}");
    let expected = expected.to_f64().expect("floats");
    Comparison {
        name: name.into(),
        error: largest_error(&expected, &found.data),
        bound,
    }
}

/// NaN if any value is.
pub(crate) fn largest_error(expected: &[f64], found: &[f64]) -> f64 {
    let errors = expected
        .iter()
        .zip(found)
        .map(|(expected, found)| (expected - found).abs());
    errors.fold(0.0, |largest: f64, error| {
        if largest.is_nan() || error <= largest {
            largest
        } else {
            error
        }
    })
}
