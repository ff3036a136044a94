//! The test harness: tests are data, this crate runs them.

pub mod golden;
pub mod reference;
