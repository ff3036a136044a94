//! The test harness: tests are data, this crate runs them.

pub mod components;
pub mod golden;
pub mod program;
pub mod random;
pub mod random_model;
pub mod reference;
