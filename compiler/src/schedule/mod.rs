//! How a kernel runs on a GPU with tensor cores: decided here as a [`Plan`] that prints, emitted by `mlir::gpu` as it says.
//!
//! A plain program with products is split into a network of roles over channels ([`split`]); a network that an author wrote is taken as
//! it is. The plan then gives every role its warps, every channel its ring of slots in shared memory, every tile of a computing role its
//! layout in registers or its bytes in shared memory, and every copy that crosses a tensor map.
//!
//! Needs: a kernel after `tile::pass::pipeline_network`. Keeps: the program; what cannot be planned runs as the plain kernel instead.

pub mod access;
mod ahead;
mod cluster;
pub mod fold;
pub mod layout;
pub mod picture;
mod plan;
mod registers;
mod split;
mod streams;

use ahead::Ahead;
pub use plan::{
    Fill, MapPlan, Plan, Ring, RolePlan, STAGED_ROW_BYTES, STAGED_ROWS, SlotPlace, Staged,
    piece_of_line, plan, row_axis, step_of,
};
pub use registers::{Registers, infer as infer_registers};
pub use split::split;
pub use streams::Stream;

use crate::target::nvptx::GpuFacts;
use crate::tile::analysis::power_of_two;
use crate::tile::ir::{Kernel, OpKind, Slot, View};
use crate::tile::pass::{self, PassError};
use std::fmt;
use tessera_artifact::DType;

/// A kernel as a network, and how it runs.
#[derive(Clone, Debug)]
pub struct Network {
    pub kernel: Kernel,
    pub plan: Plan,
}

impl Network {
    /// The same where the CTAs of a cluster share what they can, for launches whose grid has whole clusters; `None` if nothing is shared.
    pub fn in_clusters(&self, gpu: &GpuFacts) -> Result<Option<Network>, PassError> {
        let Some(kernel) = cluster::share(&self.kernel) else {
            return Ok(None);
        };
        crate::tile::verify::after("share", &kernel).map_err(|b| PassError::Broken(Box::new(b)))?;
        let Ok(mut plan) = plan(&kernel, gpu) else {
            return Ok(None);
        };
        plan.ahead = self.plan.ahead;
        let fits = (plan.ahead).is_none_or(|ahead| plan.has_room_ahead(&kernel, ahead, gpu));
        Ok(fits.then_some(Network { kernel, plan }))
    }
}

/// Why a kernel runs without tensor cores.
#[derive(Clone, Debug)]
pub enum Plain {
    /// Nothing in it is for them.
    NoProducts,
    /// It has products or roles, and this stands in the way.
    Because(String),
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plain::NoProducts => {
                f.write_str("no product reads tiles of 16 or 8 bits that copies bring from tensors")
            }
            Plain::Because(why) => f.write_str(why),
        }
    }
}

/// The network of a kernel, or why it has none.
///
/// # Errors
/// A fault of a pass.
pub fn network(kernel: &Kernel, gpu: &GpuFacts) -> Result<Result<Network, Plain>, PassError> {
    let mut kernel = kernel.clone();
    let has = |kernel: &Kernel, wanted: fn(&OpKind) -> bool| {
        kernel
            .live_ops()
            .iter()
            .any(|&op| wanted(&kernel.op(op).kind))
    };
    if !has(&kernel, |k| matches!(k, OpKind::Dot { .. })) {
        return Ok(Err(Plain::NoProducts));
    }
    pass::pipeline_network(&mut kernel)?;
    if !has(&kernel, |k| matches!(k, OpKind::Role { .. })) {
        kernel = match split(&kernel) {
            Some(network) => network,
            None => return Ok(Err(Plain::NoProducts)),
        };
        crate::tile::verify::after("split", &kernel).map_err(|b| PassError::Broken(Box::new(b)))?;
    }
    for wanted in AT_A_TIME {
        let Some(several) = ahead::ahead(&kernel, wanted) else {
            break;
        };
        crate::tile::verify::after("ahead", &several)
            .map_err(|b| PassError::Broken(Box::new(b)))?;
        if let Ok(mut plan) = plan(&several, gpu)
            && plan.has_room_ahead(&several, wanted, gpu)
        {
            plan.ahead = Some(wanted);
            let kernel = several;
            return Ok(Ok(Network { kernel, plan }));
        }
    }
    Ok(match plan(&kernel, gpu) {
        Ok(plan) => Ok(Network { kernel, plan }),
        Err(why) => Err(Plain::Because(why)),
    })
}

/// Steps of a loop whose products may go ahead together, most first.
const AT_A_TIME: [Ahead; 3] = [
    Ahead {
        steps: 4,
        flying: 4,
    },
    Ahead {
        steps: 4,
        flying: 2,
    },
    Ahead {
        steps: 2,
        flying: 2,
    },
];

/// Bits of an operand of a tensor core with f32 sums; `None`: no such operand. (tf32 tiles are stored as f32 and rounded when multiplied,
/// which tensor cores don't do.)
pub fn tensor_core_bits(dtype: DType) -> Option<u32> {
    match dtype {
        DType::BF16 | DType::F16 => Some(16),
        DType::E4M3 | DType::E5M2 => Some(8),
        _ => None,
    }
}

/// Whether a view starts at whole 16 bytes of its rows: boxes do, or the hardware stops the kernel.
fn starts_aligned(kernel: &Kernel, view: &View, dtype: DType) -> bool {
    let Some(Slot::At(start) | Slot::Span { start, .. }) = view.slots.last() else {
        return false;
    };
    (power_of_two(kernel, *start) * u64::from(dtype.bits())).is_multiple_of(128)
}
