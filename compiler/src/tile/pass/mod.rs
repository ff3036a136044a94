//! Rewrites of the tile IR, one per file; each keeps the bits of every result (tested: the interpreter before = after).
//!
//! [`pipeline_meaning`] is what the interpreter and every back end need; [`pipeline_cpu`] and [`pipeline_gpu`] go on from there.

mod expand_casts;
mod expand_math;
mod legalize_small_floats;
mod rewrite;

pub use expand_casts::expand_casts;
pub use expand_math::expand_math;
pub use legalize_small_floats::legalize_small_floats;

use super::ir::Kernel;
use super::verify::{self, Broken};

/// Runs passes in order with the verifier after each.
fn run(kernel: &mut Kernel, passes: &[(&'static str, fn(&mut Kernel))]) -> Result<(), Broken> {
    for (name, pass) in passes {
        pass(kernel);
        verify::after(name, kernel)?;
    }
    Ok(())
}

/// Transcendentals become arithmetic: after this a kernel has its meaning (`interp`) and nothing else has changed.
pub fn pipeline_meaning(kernel: &mut Kernel) -> Result<(), Broken> {
    run(kernel, &[("expand_math", expand_math)])
}
