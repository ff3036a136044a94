//! What `test`, `bench` and `reference` items mean: inputs, the mathematical truth in f64, comparison, measurement.

pub mod fill;
pub mod reference;
