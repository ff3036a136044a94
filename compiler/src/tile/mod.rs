//! The middle of the compiler: see [`ir`].
//!
//! [`build`] makes kernels, [`visit`] walks them, [`print`] and [`parse`] are their text, [`verify`] their rules, [`scalar`] the
//! value of a scalar op on constants.

pub mod analysis;
pub mod build;
#[doc(hidden)]
pub mod generate;
pub mod interp;
pub mod ir;
pub mod parse;
pub mod pass;
pub mod print;
pub mod scalar;
pub mod verify;
pub mod visit;
