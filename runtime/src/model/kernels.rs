//! The model's kernels: `kernels-src`, compiled when this crate was built, as one checked launch function each.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
