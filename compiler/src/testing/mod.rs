//! What `test`, `bench` and `reference` items mean: inputs, the mathematical truth in f64, comparison, measurement.
//!
//! [`plan`] makes cases of a test's lines, [`fill`] and [`data`] their inputs, [`reference`] the truth, [`compare`] the verdict on a
//! tensor; [`run`] runs a test through interpreter and compiled code (each by [`launch`]), [`library`] through the kernels of a finished
//! library, [`bench`] measures, [`tune`] chooses by it, [`count`] says how much work a launch is.

pub mod bench;
pub mod compare;
pub mod count;
pub mod data;
pub mod fill;
mod judge;
pub mod launch;
pub mod library;
pub mod plan;
pub mod reference;
pub mod run;
pub mod tune;
