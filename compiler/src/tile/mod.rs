//! The middle of the compiler: see [`ir`].

pub mod ir;
