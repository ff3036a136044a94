//! A tensor of numbers with its shape.

use std::collections::BTreeMap;

/// Row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

/// Tensors by golden name.
pub type Tensors = BTreeMap<String, Array>;

impl Array {
    pub fn new(shape: &[usize], data: Vec<f64>) -> Array {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "{shape:?}");
        Array {
            shape: shape.to_vec(),
            data,
        }
    }

    /// One array per sequence to one with a batch axis in front.
    pub fn stack(rows: &[&Array]) -> Array {
        let mut shape = vec![rows.len()];
        shape.extend(&rows[0].shape);
        Array::new(
            &shape,
            rows.iter()
                .flat_map(|row| row.data.iter().copied())
                .collect(),
        )
    }
}
