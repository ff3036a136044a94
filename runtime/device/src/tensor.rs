//! Tensors: typed, strided views of memory that kernels read and write.
//!
//! A [`Tensor`] owns its memory (64-byte aligned) or shares read-only bytes with others (a mapped file); [`View`] and [`ViewMut`]
//! borrow it and may be rectangles of it. Strides count elements and may be anything for a `View`; whether they suit a kernel is the
//! launch's business. Nothing here does arithmetic on elements: that is kernels' work.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use half::{bf16, f16};
use tessera_artifact::{DType, MAX_RANK};

use crate::memory::HostBuffer;

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

    fn without(mut self, axis: usize) -> Self {
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

/// A dense tensor that owns its memory or shares bytes that nobody changes.
#[derive(Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Axes,
    strides: Axes,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    Host(HostBuffer),
    Shared {
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        offset: usize,
        len: usize,
    },
    Cuda(crate::cuda::CudaBuffer),
}

impl Tensor {
    /// All bytes zero.
    ///
    /// # Errors
    /// [`TensorError`] for a shape that has no such tensor, or when there is no memory.
    pub fn zeros(dtype: DType, shape: &[i64]) -> Result<Self, TensorError> {
        let bytes = dense_bytes(dtype, shape)?;
        let buffer = HostBuffer::zeroed(bytes).ok_or(TensorError::OutOfMemory { bytes })?;
        Self::over(dtype, shape, Storage::Host(buffer))
    }

    /// A copy of `bytes`, laid out as a dense tensor (little-endian, as safetensors do).
    pub fn from_bytes(dtype: DType, shape: &[i64], bytes: &[u8]) -> Result<Self, TensorError> {
        let mut tensor = Self::zeros(dtype, shape)?;
        tensor.check_bytes(bytes.len())?;
        tensor.bytes_mut()?.copy_from_slice(bytes);
        Ok(tensor)
    }

    pub fn from_slice<T: Element>(shape: &[i64], values: &[T]) -> Result<Self, TensorError> {
        Self::from_bytes(T::DTYPE, shape, as_bytes(values))
    }

    /// Shares `len` bytes from `offset`, which nobody may change while they are shared (a mapped file, a static). Where their address
    /// does not suit the element type they are copied instead.
    pub fn from_shared(
        dtype: DType,
        shape: &[i64],
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
        offset: usize,
        len: usize,
    ) -> Result<Self, TensorError> {
        let expected = dense_bytes(dtype, shape)?;
        let found = (*bytes)
            .as_ref()
            .get(offset..)
            .and_then(|rest| rest.get(..len))
            .map_or(0, <[u8]>::len);
        if found != expected || found != len {
            return Err(TensorError::ByteCount {
                dtype,
                shape: shape.to_vec(),
                found,
                expected,
            });
        }
        let part = &(*bytes).as_ref()[offset..offset + len];
        if !(part.as_ptr() as usize).is_multiple_of(dtype.bits().div_ceil(8) as usize) {
            return Self::from_bytes(dtype, shape, part);
        }
        Self::over(dtype, shape, Storage::Shared { bytes, offset, len })
    }

    pub(crate) fn from_cuda(
        dtype: DType,
        shape: &[i64],
        buffer: crate::cuda::CudaBuffer,
    ) -> Result<Self, TensorError> {
        let bytes = dense_bytes(dtype, shape)?;
        if buffer.bytes() < bytes {
            return Err(TensorError::ByteCount {
                dtype,
                shape: shape.to_vec(),
                found: buffer.bytes(),
                expected: bytes,
            });
        }
        Self::over(dtype, shape, Storage::Cuda(buffer))
    }

    /// A copy in memory that `device` uses; of a tensor that is there already, too.
    ///
    /// # Errors
    /// No memory there, or a device that does not work.
    pub fn to_device(&self, device: &crate::Device) -> Result<Self, TensorError> {
        match (&self.storage, device) {
            (_, crate::Device::Cpu(_)) => self.to_host(),
            (Storage::Cuda(buffer), crate::Device::Cuda(gpu))
                if buffer.ordinal() == gpu.ordinal() =>
            {
                let copy = buffer.duplicate().map_err(TensorError::Device)?;
                Self::from_cuda(self.dtype, &self.shape, copy)
            }
            (Storage::Cuda(_), crate::Device::Cuda(_)) => self.to_host()?.to_device(device),
            (_, crate::Device::Cuda(gpu)) => {
                let bytes = self.bytes()?;
                let buffer = gpu.allocate(bytes.len()).map_err(TensorError::Device)?;
                buffer.write(bytes).map_err(TensorError::Device)?;
                Self::from_cuda(self.dtype, &self.shape, buffer)
            }
        }
    }

    /// A copy in the host's memory; of a tensor that is there already, too.
    ///
    /// # Errors
    /// No memory, or a device that does not work.
    pub fn to_host(&self) -> Result<Self, TensorError> {
        match &self.storage {
            Storage::Cuda(buffer) => {
                let mut copy = Self::zeros(self.dtype, &self.shape)?;
                buffer
                    .read(copy.bytes_mut()?)
                    .map_err(TensorError::Device)?;
                Ok(copy)
            }
            Storage::Host(_) | Storage::Shared { .. } => {
                Self::from_bytes(self.dtype, &self.shape, self.bytes()?)
            }
        }
    }

    /// All bytes zero, in memory that `device` uses.
    ///
    /// # Errors
    /// As [`Tensor::zeros`], or a device that does not work.
    pub fn zeros_on(
        device: &crate::Device,
        dtype: DType,
        shape: &[i64],
    ) -> Result<Self, TensorError> {
        match device {
            crate::Device::Cpu(_) => Self::zeros(dtype, shape),
            crate::Device::Cuda(gpu) => {
                let buffer = gpu
                    .allocate(dense_bytes(dtype, shape)?)
                    .map_err(TensorError::Device)?;
                buffer.fill(0).map_err(TensorError::Device)?;
                Self::from_cuda(dtype, shape, buffer)
            }
        }
    }

    /// As [`Tensor::from_bytes`], in memory that `device` uses.
    ///
    /// # Errors
    /// As [`Tensor::from_bytes`], or a device that does not work.
    pub fn from_bytes_on(
        device: &crate::Device,
        dtype: DType,
        shape: &[i64],
        bytes: &[u8],
    ) -> Result<Self, TensorError> {
        let crate::Device::Cuda(gpu) = device else {
            return Self::from_bytes(dtype, shape, bytes);
        };
        let expected = dense_bytes(dtype, shape)?;
        let buffer = gpu.allocate(expected).map_err(TensorError::Device)?;
        let tensor = Self::from_cuda(dtype, shape, buffer)?;
        tensor.check_bytes(bytes.len())?;
        if let Storage::Cuda(buffer) = &tensor.storage {
            buffer.write(bytes).map_err(TensorError::Device)?;
        }
        Ok(tensor)
    }

    /// Overwrites the first elements; on a GPU behind the launches that are queued, without waiting for them if the values are few.
    ///
    /// # Errors
    /// Another element type, more values than elements, or a device that does not work.
    pub fn write_start<T: Element>(&mut self, values: &[T]) -> Result<(), TensorError> {
        check_type::<T>(self.dtype)?;
        if values.len() > self.elements() {
            return Err(TensorError::ByteCount {
                dtype: self.dtype,
                shape: self.shape.to_vec(),
                found: size_of_val(values),
                expected: self.byte_count(),
            });
        }
        match &self.storage {
            Storage::Cuda(buffer) => buffer.write(as_bytes(values)).map_err(TensorError::Device),
            Storage::Host(_) | Storage::Shared { .. } => {
                self.as_mut_slice::<T>()?[..values.len()].copy_from_slice(values);
                Ok(())
            }
        }
    }

    fn over(dtype: DType, shape: &[i64], storage: Storage) -> Result<Self, TensorError> {
        Ok(Tensor {
            dtype,
            shape: Axes::new(shape)?,
            strides: dense_strides(dtype, shape)?,
            storage,
        })
    }

    fn check_bytes(&self, found: usize) -> Result<(), TensorError> {
        let expected = self.byte_count();
        match found == expected {
            true => Ok(()),
            false => Err(TensorError::ByteCount {
                dtype: self.dtype,
                shape: self.shape.to_vec(),
                found,
                expected,
            }),
        }
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    pub fn byte_count(&self) -> usize {
        dense_bytes(self.dtype, &self.shape).expect("checked when the tensor was made")
    }

    pub fn place(&self) -> Place {
        match &self.storage {
            Storage::Host(_) | Storage::Shared { .. } => Place::Host,
            Storage::Cuda(buffer) => Place::Cuda(buffer.ordinal()),
        }
    }

    /// # Errors
    /// [`TensorError::NotOnHost`].
    pub fn bytes(&self) -> Result<&[u8], TensorError> {
        match &self.storage {
            Storage::Host(buffer) => Ok(&buffer.as_slice()[..self.byte_count()]),
            Storage::Shared { bytes, offset, len } => {
                Ok(&(**bytes).as_ref()[*offset..offset + len])
            }
            Storage::Cuda(_) => Err(TensorError::NotOnHost),
        }
    }

    /// The bytes, to change them. A tensor that shared its bytes gets a copy of its own first.
    ///
    /// # Errors
    /// [`TensorError::NotOnHost`], or no memory for the copy.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], TensorError> {
        self.own()?;
        let len = self.byte_count();
        match &mut self.storage {
            Storage::Host(buffer) => Ok(&mut buffer.as_mut_slice()[..len]),
            _ => Err(TensorError::NotOnHost),
        }
    }

    fn own(&mut self) -> Result<(), TensorError> {
        if let Storage::Shared { bytes, offset, len } = &self.storage {
            let mut buffer =
                HostBuffer::zeroed(*len).ok_or(TensorError::OutOfMemory { bytes: *len })?;
            buffer.as_mut_slice()[..*len]
                .copy_from_slice(&(**bytes).as_ref()[*offset..offset + len]);
            self.storage = Storage::Host(buffer);
        }
        Ok(())
    }

    /// # Errors
    /// [`TensorError::WrongType`], [`TensorError::NotOnHost`].
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        check_type::<T>(self.dtype)?;
        let bytes = self.bytes()?;
        // SAFETY: the memory is aligned for the element type (own buffers, and `from_shared` looks), and any bits are a value.
        Ok(unsafe {
            std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>())
        })
    }

    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        check_type::<T>(self.dtype)?;
        let bytes = self.bytes_mut()?;
        // SAFETY: as in `as_slice`; the borrow is unique.
        Ok(unsafe {
            std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<T>())
        })
    }

    /// The same bytes with other extents.
    pub fn reshape(mut self, shape: &[i64]) -> Result<Self, TensorError> {
        if dense_bytes(self.dtype, shape)? != self.byte_count() {
            return Err(TensorError::Reshape {
                from: self.shape.to_vec(),
                to: shape.to_vec(),
            });
        }
        self.shape = Axes::new(shape)?;
        self.strides = dense_strides(self.dtype, shape)?;
        Ok(self)
    }

    /// All of it, to read.
    pub fn view(&self) -> View<'_> {
        let (address, of) = match &self.storage {
            Storage::Host(buffer) => (buffer.as_slice().as_ptr() as u64, None),
            Storage::Shared { bytes, offset, .. } => {
                ((**bytes).as_ref()[*offset..].as_ptr() as u64, None)
            }
            Storage::Cuda(buffer) => (buffer.address(), Some(buffer)),
        };
        View {
            raw: Raw {
                address,
                place: self.place(),
                dtype: self.dtype,
                shape: self.shape,
                strides: self.strides,
            },
            of,
        }
    }

    /// All of it, to write. A tensor that shared its bytes gets a copy of its own first.
    ///
    /// # Errors
    /// No memory for that copy.
    pub fn view_mut(&mut self) -> Result<ViewMut<'_>, TensorError> {
        self.own()?;
        let (place, dtype, shape, strides) = (self.place(), self.dtype, self.shape, self.strides);
        let (address, of) = match &mut self.storage {
            Storage::Host(buffer) => (buffer.as_mut_slice().as_mut_ptr() as u64, None),
            Storage::Cuda(buffer) => (buffer.address(), Some(&*buffer)),
            Storage::Shared { .. } => unreachable!("owned above"),
        };
        Ok(ViewMut {
            raw: Raw {
                address,
                place,
                dtype,
                shape,
                strides,
            },
            of,
        })
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Tensor({} {:?} on {})",
            self.dtype,
            self.shape,
            self.place()
        )
    }
}

fn as_bytes<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: elements are plain numbers without padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) }
}

fn check_type<T: Element>(found: DType) -> Result<(), TensorError> {
    // Bool is one byte, 0 or 1; reading it as u8 is fine. So are the 8-bit formats, whose bits are then seen.
    let fits = found == T::DTYPE
        || (T::DTYPE == DType::U8 && found.bits() == 8)
        || (T::DTYPE == DType::F32 && found == DType::Tf32);
    match fits {
        true => Ok(()),
        false => Err(TensorError::WrongType {
            found,
            expected: T::DTYPE,
        }),
    }
}

/// What a view is made of, without its borrow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub address: u64,
    pub place: Place,
    pub dtype: DType,
    pub shape: Axes,
    pub strides: Axes,
}

impl Raw {
    fn check_axis(&self, axis: usize) -> Result<(), TensorError> {
        match axis < self.shape.len() {
            true => Ok(()),
            false => Err(TensorError::NoSuchAxis {
                axis,
                rank: self.shape.len(),
            }),
        }
    }

    fn moved(mut self, axis: usize, by: i64) -> Result<Self, TensorError> {
        let bits = by as i128 * self.strides[axis] as i128 * self.dtype.bits() as i128;
        if bits % 8 != 0 {
            return Err(TensorError::HalfByte { start: by });
        }
        self.address = self.address.wrapping_add((bits / 8) as u64);
        Ok(self)
    }

    fn slice(self, axis: usize, range: Range<i64>) -> Result<Self, TensorError> {
        self.check_axis(axis)?;
        let extent = self.shape[axis];
        if range.start < 0 || range.end < range.start || range.end > extent {
            return Err(TensorError::Slice {
                axis,
                start: range.start,
                end: range.end,
                extent,
            });
        }
        let mut raw = self.moved(axis, range.start)?;
        raw.shape[axis] = range.end - range.start;
        Ok(raw)
    }

    fn select(self, axis: usize, index: i64) -> Result<Self, TensorError> {
        let mut raw = self.slice(axis, index..index.saturating_add(1))?;
        raw.shape = raw.shape.without(axis);
        raw.strides = raw.strides.without(axis);
        Ok(raw)
    }

    fn is_dense(&self) -> bool {
        dense_strides(self.dtype, &self.shape).is_ok_and(|dense| {
            (0..self.shape.len()).all(|i| self.shape[i] == 1 || self.strides[i] == dense[i])
        }) || self.shape.contains(&0)
    }

    fn reshape(mut self, shape: &[i64]) -> Result<Self, TensorError> {
        if !self.is_dense() {
            return Err(TensorError::NotContiguous {
                shape: self.shape.to_vec(),
                strides: self.strides.to_vec(),
            });
        }
        if dense_bytes(self.dtype, shape)? != dense_bytes(self.dtype, &self.shape)? {
            return Err(TensorError::Reshape {
                from: self.shape.to_vec(),
                to: shape.to_vec(),
            });
        }
        self.shape = Axes::new(shape)?;
        self.strides = dense_strides(self.dtype, shape)?;
        Ok(self)
    }

    fn permuted(mut self, order: &[usize]) -> Result<Self, TensorError> {
        let (shape, strides) = (self.shape, self.strides);
        let mut seen = [false; MAX_RANK];
        for (to, &from) in order.iter().enumerate() {
            self.check_axis(from)?;
            if to >= shape.len() || std::mem::replace(&mut seen[from], true) {
                return Err(TensorError::NoSuchAxis {
                    axis: from,
                    rank: shape.len(),
                });
            }
            self.shape[to] = shape[from];
            self.strides[to] = strides[from];
        }
        match order.len() == shape.len() {
            true => Ok(self),
            false => Err(TensorError::Rank { rank: order.len() }),
        }
    }

    /// The bytes from the first to the last of its elements: where they start, counted from its address, and how many they are.
    fn span(&self) -> (i64, usize) {
        let bits = i64::from(self.dtype.bits());
        let (mut low, mut high) = (0i64, 0i64);
        for (&extent, &stride) in self.shape.iter().zip(self.strides.iter()) {
            let reach = (extent - 1).max(0) * stride;
            low += reach.min(0);
            high += reach.max(0);
        }
        let (first, end) = (
            (low * bits).div_euclid(8),
            ((high + 1) * bits + 7).div_euclid(8),
        );
        let bytes = match self.shape.contains(&0) {
            true => 0,
            false => (end - first) as usize,
        };
        (first, bytes)
    }

    /// The same tensor in a copy of the bytes from its first to its last, which the second part holds.
    fn on_host(
        mut self,
        buffer: &crate::cuda::CudaBuffer,
    ) -> Result<(Raw, HostBuffer), TensorError> {
        let (first, bytes) = self.span();
        let mut copy = HostBuffer::zeroed(bytes).ok_or(TensorError::OutOfMemory { bytes })?;
        if bytes > 0 {
            let from = self.address.wrapping_add_signed(first);
            let to = &mut copy.as_mut_slice()[..bytes];
            buffer.read_at(from, to).map_err(TensorError::Device)?;
        }
        self.address = (copy.as_slice().as_ptr() as u64).wrapping_add_signed(-first);
        self.place = Place::Host;
        Ok((self, copy))
    }

    /// Calls `visit` with the address of the start of each innermost row and its length.
    fn each_row(&self, visit: &mut dyn FnMut(u64, usize)) {
        let Some((&row, outer)) = self.shape.split_last() else {
            return visit(self.address, 1);
        };
        if self.shape.contains(&0) {
            return;
        }
        let mut at = [0i64; MAX_RANK];
        loop {
            let offset: i64 = (0..outer.len()).map(|i| at[i] * self.strides[i]).sum();
            visit(
                self.address
                    .wrapping_add_signed(offset * self.dtype.bits() as i64 / 8),
                row as usize,
            );
            let Some(axis) = (0..outer.len()).rev().find(|&i| at[i] + 1 < outer[i]) else {
                return;
            };
            at[axis] += 1;
            at[axis + 1..].fill(0);
        }
    }
}

macro_rules! view_methods {
    () => {
        pub fn dtype(&self) -> DType {
            self.raw.dtype
        }

        pub fn shape(&self) -> &[i64] {
            &self.raw.shape
        }

        /// In elements, one per axis.
        pub fn strides(&self) -> &[i64] {
            &self.raw.strides
        }

        pub fn place(&self) -> Place {
            self.raw.place
        }

        /// The address of the first element.
        pub fn address(&self) -> u64 {
            self.raw.address
        }

        pub fn elements(&self) -> usize {
            self.raw.shape.iter().product::<i64>() as usize
        }

        /// Elements `range` of `axis`.
        pub fn slice(self, axis: usize, range: Range<i64>) -> Result<Self, TensorError> {
            Ok(Self {
                raw: self.raw.slice(axis, range)?,
                of: self.of,
            })
        }

        /// Element `index` of `axis`, which is dropped.
        pub fn select(self, axis: usize, index: i64) -> Result<Self, TensorError> {
            Ok(Self {
                raw: self.raw.select(axis, index)?,
                of: self.of,
            })
        }

        /// Other extents over the same dense elements.
        pub fn reshape(self, shape: &[i64]) -> Result<Self, TensorError> {
            Ok(Self {
                raw: self.raw.reshape(shape)?,
                of: self.of,
            })
        }

        /// Axis `i` of the result is axis `order[i]`.
        pub fn permute(self, order: &[usize]) -> Result<Self, TensorError> {
            Ok(Self {
                raw: self.raw.permuted(order)?,
                of: self.of,
            })
        }

        /// No gaps between the elements.
        pub fn is_dense(&self) -> bool {
            self.raw.is_dense()
        }

        /// A dense copy in the host's memory.
        ///
        /// # Errors
        /// No memory, 4-bit elements that are not in order of memory, or a device that does not work.
        pub fn to_tensor(&self) -> Result<Tensor, TensorError> {
            let copied;
            let raw = match self.of {
                None => &self.raw,
                Some(buffer) => {
                    copied = self.raw.on_host(buffer)?;
                    &copied.0
                }
            };
            let mut tensor = Tensor::zeros(raw.dtype, &raw.shape)?;
            let inner = raw.strides.last().copied().unwrap_or(1);
            if raw.dtype.bits() < 8 && inner != 1 && raw.shape.last() != Some(&1) {
                return Err(TensorError::NotContiguous {
                    shape: raw.shape.to_vec(),
                    strides: raw.strides.to_vec(),
                });
            }
            let element = raw.dtype.bits().div_ceil(8) as usize;
            let out = tensor.bytes_mut()?;
            let mut at = 0;
            raw.each_row(&mut |address, row| {
                let source = address as *const u8;
                if inner == 1 {
                    let bytes = raw.dtype.bytes_for(row as u64) as usize;
                    // SAFETY: a row of a live view; `out` is dense in the same order of rows.
                    out[at..at + bytes]
                        .copy_from_slice(unsafe { std::slice::from_raw_parts(source, bytes) });
                    at += bytes;
                } else {
                    for i in 0..row as i64 {
                        // SAFETY: an element of a live view.
                        let from = unsafe {
                            std::slice::from_raw_parts(
                                source.offset((i * inner) as isize * element as isize),
                                element,
                            )
                        };
                        out[at..at + element].copy_from_slice(from);
                        at += element;
                    }
                }
            });
            Ok(tensor)
        }

        /// The elements in order, in the host's memory.
        pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
            Ok(self.to_tensor()?.as_slice::<T>()?.to_vec())
        }
    };
}

/// A rectangle of a tensor, to read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(crate) raw: Raw,
    /// The GPU's memory that it is in; `None`: the host's.
    of: Option<&'a crate::cuda::CudaBuffer>,
}

// SAFETY: a shared borrow of bytes.
unsafe impl Send for View<'_> {}
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    view_methods!();

    /// A dense view of a slice.
    pub fn over<T: Element>(values: &'a [T], shape: &[i64]) -> Result<Self, TensorError> {
        let (expected, found) = (dense_bytes(T::DTYPE, shape)?, size_of_val(values));
        if expected != found {
            return Err(TensorError::ByteCount {
                dtype: T::DTYPE,
                shape: shape.to_vec(),
                found,
                expected,
            });
        }
        Ok(View {
            raw: raw_over::<T>(values.as_ptr() as u64, shape)?,
            of: None,
        })
    }

    /// # Errors
    /// [`TensorError::NotContiguous`], [`TensorError::WrongType`], [`TensorError::NotOnHost`].
    pub fn as_slice<T: Element>(&self) -> Result<&'a [T], TensorError> {
        check_type::<T>(self.raw.dtype)?;
        if self.raw.place != Place::Host {
            return Err(TensorError::NotOnHost);
        }
        if !self.raw.is_dense() {
            return Err(TensorError::NotContiguous {
                shape: self.raw.shape.to_vec(),
                strides: self.raw.strides.to_vec(),
            });
        }
        if !(self.raw.address as usize).is_multiple_of(align_of::<T>()) {
            return Err(TensorError::Unaligned {
                dtype: self.raw.dtype,
            });
        }
        // SAFETY: dense, aligned, borrowed for 'a, and any bits are a value.
        Ok(unsafe { std::slice::from_raw_parts(self.raw.address as *const T, self.elements()) })
    }

    /// The view over raw memory, for callers with memory of their own.
    ///
    /// # Safety
    /// Every element that shape and strides reach from `address` can be read for `'a`, and nothing writes it meanwhile.
    pub unsafe fn from_raw(
        address: *const u8,
        dtype: DType,
        shape: &[i64],
        strides: &[i64],
    ) -> Result<Self, TensorError> {
        Ok(View {
            raw: raw_parts(address as u64, dtype, shape, strides)?,
            of: None,
        })
    }
}

/// A rectangle of a tensor, to write.
pub struct ViewMut<'a> {
    pub(crate) raw: Raw,
    of: Option<&'a crate::cuda::CudaBuffer>,
}

// SAFETY: a unique borrow of bytes.
unsafe impl Send for ViewMut<'_> {}
unsafe impl Sync for ViewMut<'_> {}

impl<'a> ViewMut<'a> {
    view_methods!();

    /// A dense view of a slice.
    pub fn over<T: Element>(values: &'a mut [T], shape: &[i64]) -> Result<Self, TensorError> {
        let (expected, found) = (dense_bytes(T::DTYPE, shape)?, size_of_val(values));
        if expected != found {
            return Err(TensorError::ByteCount {
                dtype: T::DTYPE,
                shape: shape.to_vec(),
                found,
                expected,
            });
        }
        Ok(ViewMut {
            raw: raw_over::<T>(values.as_mut_ptr() as u64, shape)?,
            of: None,
        })
    }

    /// The same view for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut {
            raw: self.raw,
            of: self.of,
        }
    }

    pub fn as_view(&self) -> View<'_> {
        View {
            raw: self.raw,
            of: self.of,
        }
    }

    /// Elements `..at` and `at..` of `axis`, both writable.
    pub fn split_at(self, axis: usize, at: i64) -> Result<(ViewMut<'a>, ViewMut<'a>), TensorError> {
        self.raw.check_axis(axis)?;
        let first = self.raw.slice(axis, 0..at)?;
        let second = self.raw.slice(axis, at..self.raw.shape[axis])?;
        Ok((
            ViewMut {
                raw: first,
                of: self.of,
            },
            ViewMut {
                raw: second,
                of: self.of,
            },
        ))
    }

    /// Overwrites every element by those of a tensor of the same type and shape.
    pub fn copy_from(&mut self, source: &View<'_>) -> Result<(), TensorError> {
        if source.raw.dtype != self.raw.dtype {
            return Err(TensorError::WrongType {
                found: source.raw.dtype,
                expected: self.raw.dtype,
            });
        }
        if source.shape() != self.shape() {
            return Err(TensorError::Reshape {
                from: source.shape().to_vec(),
                to: self.shape().to_vec(),
            });
        }
        if let Some(buffer) = self.of {
            // Through the host: what lies between the view's elements is written as it was.
            let (raw, copy) = self.raw.on_host(buffer)?;
            let (first, bytes) = self.raw.span();
            let mut on_host = ViewMut { raw, of: None };
            on_host.copy_from(source)?;
            let address = self.raw.address.wrapping_add_signed(first);
            return buffer
                .write_at(address, &copy.as_slice()[..bytes])
                .map_err(TensorError::Device);
        }
        let inner = self.raw.strides.last().copied().unwrap_or(1);
        if inner != 1 && self.raw.dtype.bits() < 8 {
            return Err(TensorError::NotContiguous {
                shape: self.raw.shape.to_vec(),
                strides: self.raw.strides.to_vec(),
            });
        }
        let dense = source.to_tensor()?;
        let bytes = dense.bytes()?;
        let element = self.raw.dtype.bits().div_ceil(8) as usize;
        let mut at = 0;
        self.raw.each_row(&mut |address, row| {
            let target = address as *mut u8;
            let (run, count) = match inner == 1 {
                true => (self.raw.dtype.bytes_for(row as u64) as usize, 1),
                false => (element, row as i64),
            };
            for i in 0..count {
                // SAFETY: elements of a live, uniquely borrowed view; `bytes` is dense in the same order.
                unsafe {
                    let to = target.offset((i * inner) as isize * element as isize);
                    std::ptr::copy_nonoverlapping(bytes[at..at + run].as_ptr(), to, run);
                }
                at += run;
            }
        });
        Ok(())
    }

    /// The view over raw memory, for callers with memory of their own.
    ///
    /// # Safety
    /// Every element that shape and strides reach from `address` can be read and written for `'a`, by nobody else.
    pub unsafe fn from_raw(
        address: *mut u8,
        dtype: DType,
        shape: &[i64],
        strides: &[i64],
    ) -> Result<Self, TensorError> {
        Ok(ViewMut {
            raw: raw_parts(address as u64, dtype, shape, strides)?,
            of: None,
        })
    }
}

fn raw_over<T: Element>(address: u64, shape: &[i64]) -> Result<Raw, TensorError> {
    Ok(Raw {
        address,
        place: Place::Host,
        dtype: T::DTYPE,
        shape: Axes::new(shape)?,
        strides: dense_strides(T::DTYPE, shape)?,
    })
}

fn raw_parts(
    address: u64,
    dtype: DType,
    shape: &[i64],
    strides: &[i64],
) -> Result<Raw, TensorError> {
    if shape.iter().any(|&n| n < 0) {
        return Err(TensorError::NegativeExtent {
            shape: shape.to_vec(),
        });
    }
    if shape.len() != strides.len() {
        return Err(TensorError::Rank {
            rank: strides.len(),
        });
    }
    Ok(Raw {
        address,
        place: Place::Host,
        dtype,
        shape: Axes::new(shape)?,
        strides: Axes::new(strides)?,
    })
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "View({} {:?} strides {:?})",
            self.raw.dtype, self.raw.shape, self.raw.strides
        )
    }
}

impl fmt::Debug for ViewMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ViewMut({} {:?} strides {:?})",
            self.raw.dtype, self.raw.shape, self.raw.strides
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_selections_see_the_right_elements() {
        let t = Tensor::from_slice(&[2, 3, 4], &(0..24).collect::<Vec<i32>>()).unwrap();
        let v = t.view().slice(2, 1..3).unwrap().select(1, 2).unwrap();
        assert_eq!((v.shape(), v.strides()), (&[2, 2][..], &[12, 1][..]));
        assert_eq!(v.to_vec::<i32>().unwrap(), [9, 10, 21, 22]);
        let turned = t.view().permute(&[2, 0, 1]).unwrap().select(0, 3).unwrap();
        assert_eq!(turned.to_vec::<i32>().unwrap(), [3, 7, 11, 15, 19, 23]);
        let across = t.view().select(0, 0).unwrap().permute(&[1, 0]).unwrap();
        assert_eq!(
            across.to_vec::<i32>().unwrap(),
            [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
        );
    }

    #[test]
    fn wrong_rectangles_are_errors() {
        let t = Tensor::zeros(DType::F32, &[2, 3]).unwrap();
        assert_eq!(
            t.view().slice(1, 2..4).unwrap_err(),
            TensorError::Slice {
                axis: 1,
                start: 2,
                end: 4,
                extent: 3
            }
        );
        assert_eq!(
            t.view().slice(2, 0..1).unwrap_err(),
            TensorError::NoSuchAxis { axis: 2, rank: 2 }
        );
        assert!(t.view().select(0, i64::MAX).is_err());
        assert!(t.view().slice(1, 0..2).unwrap().reshape(&[4]).is_err());
        assert!(t.view().permute(&[0, 0]).is_err());
        assert!(t.as_slice::<i32>().is_err());
        assert!(Tensor::zeros(DType::F32, &[1 << 40, 1 << 40]).is_err());
        assert!(Tensor::zeros(DType::F32, &[-1]).is_err());
        assert!(Tensor::zeros(DType::F32, &[1; 9]).is_err());
    }

    #[test]
    fn memory_is_aligned_and_zero() {
        for n in [0, 1, 63, 65] {
            let t = Tensor::zeros(DType::U8, &[n]).unwrap();
            assert_eq!(t.view().address() % 64, 0);
            assert!(t.bytes().unwrap().iter().all(|&b| b == 0));
            assert_eq!(t.byte_count(), n as usize);
        }
    }

    #[test]
    fn four_bit_rows_start_at_whole_bytes() {
        let t = Tensor::zeros(DType::E2M1, &[3, 5]).unwrap();
        assert_eq!((t.byte_count(), t.view().strides()), (9, &[6, 1][..]));
        assert_eq!(
            t.view().slice(1, 1..3).unwrap_err(),
            TensorError::HalfByte { start: 1 }
        );
        assert_eq!(
            t.view()
                .slice(1, 2..4)
                .unwrap()
                .to_tensor()
                .unwrap()
                .byte_count(),
            3
        );
        assert_eq!(Tensor::zeros(DType::E2M1, &[5]).unwrap().byte_count(), 3);
    }

    #[test]
    fn shared_bytes_are_copied_before_they_are_written() {
        let bytes: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(vec![1u8; 16]);
        let mut t = Tensor::from_shared(DType::U8, &[8], bytes.clone(), 4, 8).unwrap();
        t.as_mut_slice::<u8>().unwrap().fill(9);
        assert_eq!((*bytes).as_ref(), [1u8; 16]);
        assert!(Tensor::from_shared(DType::U8, &[8], bytes.clone(), 12, 8).is_err());
        assert!(Tensor::from_shared(DType::U8, &[8], bytes, usize::MAX, 8).is_err());
    }

    #[test]
    fn writes_go_through_split_views() {
        let mut t = Tensor::zeros(DType::I32, &[2, 4]).unwrap();
        let (mut left, mut right) = t.view_mut().unwrap().split_at(1, 1).unwrap();
        left.copy_from(&View::over(&[1, 2], &[2, 1]).unwrap())
            .unwrap();
        right
            .copy_from(&View::over(&[3, 4, 5, 6, 7, 8], &[2, 3]).unwrap())
            .unwrap();
        assert_eq!(t.as_slice::<i32>().unwrap(), [1, 3, 4, 5, 2, 6, 7, 8]);
    }
}
