//! Rewrites of the tile IR, one per file; each keeps the bits of every result (tested: the interpreter before = after).
//!
//! [`pipeline_meaning`] is what the interpreter needs; [`pipeline_code`], for every back end, contains it and goes on;
//! [`pipeline_cpu`] and [`pipeline_gpu`] go on from there.

mod bring_ahead;
pub(crate) mod clone;
mod copy_roles;
mod dead_channels;
mod dead_tiles;
mod expand_math;
mod flatten_items;
mod fuse_maps;
mod fuse_roles;
mod hoist;
mod legalize_small_floats;
mod rewrite;
mod simplify;
mod unroll;

pub use bring_ahead::bring_ahead;
pub use copy_roles::copy_roles;
pub use dead_channels::dead_channels;
pub use dead_tiles::dead_tiles;
pub use expand_math::{expand_math, expand_network_math};
pub use flatten_items::flatten_items;
pub use fuse_maps::{forward_stores, fuse_maps};
pub use fuse_roles::fuse_roles;
pub use hoist::hoist;
pub use legalize_small_floats::legalize_small_floats;
pub use simplify::simplify;
pub use unroll::unroll;

use super::ir::Kernel;
use super::verify::{self, Broken};
use crate::source::Span;
use std::fmt;

/// Why a pipeline stopped.
#[derive(Clone, Debug)]
pub enum PassError {
    /// A bug in a pass.
    Broken(Box<Broken>),
    /// A program this way of compiling cannot take, in the user's terms.
    Unsupported { span: Span, message: String },
}

impl fmt::Display for PassError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PassError::Broken(b) => b.fmt(f),
            PassError::Unsupported { message, .. } => f.write_str(message),
        }
    }
}

impl std::error::Error for PassError {}

fn unsupported(span: Span, message: impl Into<String>) -> PassError {
    PassError::Unsupported {
        span,
        message: message.into(),
    }
}

type Pass = fn(&mut Kernel) -> Result<(), PassError>;

/// Runs passes in order with the verifier after each.
fn run(kernel: &mut Kernel, passes: &[(&'static str, Pass)]) -> Result<(), PassError> {
    for (name, pass) in passes {
        pass(kernel)?;
        verify::after(name, kernel).map_err(|b| PassError::Broken(Box::new(b)))?;
    }
    Ok(())
}

/// A pass that always succeeds, as an entry of a list.
macro_rules! pass {
    ($name:ident) => {
        (
            stringify!($name),
            (|kernel: &mut Kernel| {
                $name(kernel);
                Ok(())
            }) as Pass,
        )
    };
}

/// Transcendentals become arithmetic: after this a kernel has its meaning (`interp`) and nothing else has changed.
pub fn pipeline_meaning(kernel: &mut Kernel) -> Result<(), PassError> {
    run(kernel, &[pass!(expand_math)])
}

/// What the emitters take, for CPUs and GPUs alike: no roles, no items, maps fused.
pub fn pipeline_code(kernel: &mut Kernel) -> Result<(), PassError> {
    run(kernel, CODE)
}

/// What the schedule takes: roles and items stay, the rest as in [`pipeline_code`].
pub fn pipeline_network(kernel: &mut Kernel) -> Result<(), PassError> {
    run(kernel, &[pass!(copy_roles)])?;
    run(kernel, &CODE[SEQUENTIAL..MATH])?;
    run(kernel, &[pass!(expand_network_math)])?;
    run(kernel, &CODE[MATH + 1..])
}

/// The first passes of [`CODE`], which make one sequential program of roles and items.
const SEQUENTIAL: usize = 2;
/// Where `expand_math` stands.
const MATH: usize = 3;

const CODE: &[(&str, Pass)] = &[
    ("fuse_roles", fuse_roles),
    ("flatten_items", flatten_items),
    pass!(legalize_small_floats),
    pass!(expand_math),
    pass!(simplify),
    pass!(hoist),
    pass!(fuse_maps),
    // Equal coordinates of maps that have become one are one value again.
    pass!(simplify),
    pass!(forward_stores),
    pass!(dead_tiles),
    pass!(simplify),
    pass!(dead_channels),
];

/// What the CPU emitter takes: its tiles lie in memory or in registers as LLVM sees fit, so the fewer maps, the better.
pub fn pipeline_cpu(kernel: &mut Kernel) -> Result<(), PassError> {
    run(kernel, CODE)?;
    run(kernel, UNROLLED)
}

/// What the plain GPU emitter takes: the fewer maps, the more of what they pass on stays in registers.
pub fn pipeline_gpu(kernel: &mut Kernel) -> Result<(), PassError> {
    run(kernel, &CODE[..SEQUENTIAL])?;
    run(kernel, &[pass!(bring_ahead)])?;
    run(kernel, &CODE[SEQUENTIAL..])?;
    run(kernel, UNROLLED)
}

const UNROLLED: &[(&str, Pass)] = &[
    pass!(unroll),
    pass!(simplify),
    pass!(fuse_maps),
    pass!(simplify),
    pass!(forward_stores),
    pass!(dead_tiles),
    pass!(simplify),
];

#[cfg(test)]
mod tests;
