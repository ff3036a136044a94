//! Tensors: typed, strided views of memory that kernels read and write.
//!
//! A [`Tensor`] owns its memory (64-byte aligned) or shares read-only bytes with others (a mapped file); [`View`] and [`ViewMut`]
//! borrow it and may be rectangles of it. Strides count elements and may be anything for a `View`; whether they suit a kernel is the
//! launch's business. Nothing here does arithmetic on elements: that is kernels' work.

use std::fmt;
use std::sync::Arc;

use tessera_artifact::DType;

use crate::memory::HostBuffer;

mod shape;
mod view;

pub use shape::{Axes, Element, Place, TensorError, dense_bytes, dense_strides};
pub(crate) use view::Raw;
pub use view::{View, ViewMut};

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
