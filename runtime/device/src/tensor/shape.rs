//! What tensors and views have in common: extents and strides, element types, places, and what can be wrong with them.

use std::fmt;
use std::ops::Deref;

use half::{bf16, f16};
use tessera_artifact::{DType, MAX_RANK};

/// A short list of extents, strides or coordinates, kept in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Axes {
    len: u8,
    values: [i64; MAX_RANK],
}

impl Axes {
    /// # Errors
    /// [`TensorError::Rank`] for more than eight.
    pub fn new(values: &[i64]) -> Result<Self, TensorError> {
        if values.len() > MAX_RANK {
            return Err(TensorError::Rank { rank: values.len() });
        }
        let mut axes = Axes {
            len: values.len() as u8,
            values: [0; MAX_RANK],
        };
        axes.values[..values.len()].copy_from_slice(values);
        Ok(axes)
    }

    pub(super) fn without(mut self, axis: usize) -> Self {
        self.values.copy_within(axis + 1.., axis);
        self.values[MAX_RANK - 1] = 0;
        self.len -= 1;
        self
    }
}

impl Deref for Axes {
    type Target = [i64];
    fn deref(&self) -> &[i64] {
        &self.values[..self.len as usize]
    }
}

impl std::ops::DerefMut for Axes {
    fn deref_mut(&mut self) -> &mut [i64] {
        &mut self.values[..self.len as usize]
    }
}

impl fmt::Debug for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

/// Why a tensor or view cannot be made.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorError {
    Rank {
        rank: usize,
    },
    NegativeExtent {
        shape: Vec<i64>,
    },
    /// More bytes than an address can count, or than there are.
    TooLarge {
        dtype: DType,
        shape: Vec<i64>,
    },
    OutOfMemory {
        bytes: usize,
    },
    ByteCount {
        dtype: DType,
        shape: Vec<i64>,
        found: usize,
        expected: usize,
    },
    WrongType {
        found: DType,
        expected: DType,
    },
    NoSuchAxis {
        axis: usize,
        rank: usize,
    },
    Slice {
        axis: usize,
        start: i64,
        end: i64,
        extent: i64,
    },
    /// A slice of 4-bit elements that starts inside a byte.
    HalfByte {
        start: i64,
    },
    Reshape {
        from: Vec<i64>,
        to: Vec<i64>,
    },
    NotContiguous {
        shape: Vec<i64>,
        strides: Vec<i64>,
    },
    /// The address does not suit the element type.
    Unaligned {
        dtype: DType,
    },
    /// The operation needs memory of the host.
    NotOnHost,
    /// The GPU refused an allocation or a copy.
    Device(crate::cuda::CudaError),
}

impl fmt::Display for TensorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use TensorError::*;
        match self {
            Rank { rank } => write!(
                f,
                "a tensor of rank {rank}; at most {MAX_RANK} axes are supported"
            ),
            NegativeExtent { shape } => write!(f, "shape {shape:?} has a negative extent"),
            TooLarge { dtype, shape } => write!(
                f,
                "a {dtype} tensor of shape {shape:?} does not fit an address space"
            ),
            OutOfMemory { bytes } => write!(f, "no memory for a tensor of {bytes} bytes"),
            ByteCount {
                dtype,
                shape,
                found,
                expected,
            } => {
                write!(
                    f,
                    "a {dtype} tensor of shape {shape:?} takes {expected} bytes, and {found} were given"
                )
            }
            WrongType { found, expected } => write!(f, "the tensor holds {found}, not {expected}"),
            NoSuchAxis { axis, rank } => write!(f, "no axis {axis} in a tensor of rank {rank}"),
            Slice {
                axis,
                start,
                end,
                extent,
            } => {
                write!(
                    f,
                    "slice {start}..{end} of axis {axis}, which has {extent} elements"
                )
            }
            HalfByte { start } => write!(
                f,
                "a slice of e2m1 elements must start at an even element, not at {start}"
            ),
            Reshape { from, to } => write!(
                f,
                "shape {from:?} cannot be seen as {to:?}: the numbers of elements differ"
            ),
            NotContiguous { shape, strides } => {
                write!(
                    f,
                    "a tensor of shape {shape:?} with strides {strides:?} has gaps; copy it to a dense one first"
                )
            }
            Unaligned { dtype } => write!(
                f,
                "the memory is not aligned for {dtype}; copy it to a tensor of its own"
            ),
            NotOnHost => write!(
                f,
                "the tensor lives on the device; copy it to the host first"
            ),
            Device(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for TensorError {}

/// Where memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Host,
    /// Memory of the CUDA device with this ordinal.
    Cuda(u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Host => write!(f, "the host"),
            Place::Cuda(ordinal) => write!(f, "CUDA device {ordinal}"),
        }
    }
}

/// A Rust type that is the element type of tensors.
///
/// # Safety
/// Any bits are a value of the type, and it has the size of `DTYPE`.
pub unsafe trait Element: Copy + Default + 'static {
    const DTYPE: DType;
}

macro_rules! elements {
    ($($ty:ty => $dtype:ident),*) => {$(
        // SAFETY: plain numbers of that width.
        unsafe impl Element for $ty {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements!(f64 => F64, f32 => F32, bf16 => BF16, f16 => F16, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
          u8 => U8, u16 => U16, u32 => U32, u64 => U64);

/// The strides of a dense tensor. Rows of e2m1 start at whole bytes.
pub fn dense_strides(dtype: DType, shape: &[i64]) -> Result<Axes, TensorError> {
    let too_large = || TensorError::TooLarge {
        dtype,
        shape: shape.to_vec(),
    };
    let mut strides = Axes::new(shape)?;
    let mut next = 1i64;
    for axis in (0..shape.len()).rev() {
        strides[axis] = next;
        // A tensor without elements has strides all the same.
        let extent = match dtype == DType::E2M1 && axis + 1 == shape.len() {
            true => shape[axis]
                .checked_add(shape[axis] & 1)
                .ok_or_else(too_large)?,
            false => shape[axis],
        };
        next = next.checked_mul(extent.max(1)).ok_or_else(too_large)?;
    }
    Ok(strides)
}

/// The bytes of a dense tensor.
pub fn dense_bytes(dtype: DType, shape: &[i64]) -> Result<usize, TensorError> {
    if shape.iter().any(|&n| n < 0) {
        return Err(TensorError::NegativeExtent {
            shape: shape.to_vec(),
        });
    }
    let strides = dense_strides(dtype, shape)?;
    let too_large = || TensorError::TooLarge {
        dtype,
        shape: shape.to_vec(),
    };
    let elements = match shape.first() {
        None => 1,
        _ if shape.contains(&0) => 0,
        Some(_) if shape.len() == 1 => shape[0],
        Some(&n) => strides[0].checked_mul(n).ok_or_else(too_large)?,
    };
    let bits = (elements as u64)
        .checked_mul(dtype.bits() as u64)
        .filter(|&b| b < 1 << 50)
        .ok_or_else(too_large)?;
    Ok(bits.div_ceil(8) as usize)
}
