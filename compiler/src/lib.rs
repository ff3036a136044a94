//! The Tessera compiler. The modules in the order of the way through it.

pub mod diag;
pub mod source;
pub mod syntax;
pub mod tile;
