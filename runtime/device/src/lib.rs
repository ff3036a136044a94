//! Devices that run compiled kernels. Needs: a verified archive. Knows nothing of models, weights or the compiler.
//!
//! [`Library::load`] makes kernels of an archive on a [`Device`]; [`Kernel::launch`] checks shapes, types, strides, alignment,
//! ranges, requirements and overlap before it runs one.

pub mod cpu;
pub mod cuda;
pub mod launch;
mod library;
mod memory;
mod profile;
mod tensor;
mod timeline;

/// Element types, as the archive names them.
pub use tessera_artifact::DType;

pub use cpu::CpuOptions;
pub use cuda::{CudaError, CudaOptions};
pub use launch::{Arg, LaunchError, Scalar};
pub use library::{Device, Kernel, Library, LibraryError};
pub use profile::KernelTime;
pub use tensor::{
    Axes, Element, Place, Tensor, TensorError, View, ViewMut, dense_bytes, dense_strides,
};
pub use timeline::{Span, TimelineStart};
