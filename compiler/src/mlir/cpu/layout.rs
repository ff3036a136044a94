//! How the elements of a tile lie in memory: a plan as plain data.
//!
//! Row-major is the rule. A tile that is nothing but the B operand of `dot`s is laid out as panels, so that what fills it packs it.

use tessera_artifact::DType;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub shape: Vec<u64>,
    /// In elements, by axis.
    pub strides: Vec<i64>,
    /// Elements that the strides reach.
    pub elements: u64,
}

impl Layout {
    pub fn row_major(shape: &[u64]) -> Layout {
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as i64;
        }
        Layout {
            shape: shape.to_vec(),
            strides,
            elements: shape.iter().product(),
        }
    }

    /// Tiles keep one e2m1 code a byte.
    pub fn bytes(&self, dtype: DType) -> u64 {
        self.elements * dtype.bits().div_ceil(8) as u64
    }
}
