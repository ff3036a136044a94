//! What `test`, `bench` and `reference` items mean: inputs, the mathematical truth in f64, comparison, measurement.
//!
//! [`plan`] makes cases of a test's lines, [`fill`] and [`data`] their inputs, [`reference`] the truth, [`compare`] the verdict on a
//! tensor; [`run`] runs a test through interpreter and compiled code (each by [`launch`]), [`bench`] measures, [`count`] says how much work a launch is.

#[cfg(feature = "llvm")]
pub mod bench;
pub mod compare;
pub mod count;
pub mod data;
pub mod fill;
#[cfg(feature = "llvm")]
mod judge;
#[cfg(feature = "llvm")]
pub mod launch;
pub mod plan;
pub mod reference;
#[cfg(feature = "llvm")]
pub mod run;
