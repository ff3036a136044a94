//! Views: rectangles of a tensor's memory, to read or to write, whose strides may be anything.

use std::fmt;
use std::ops::Range;

use tessera_artifact::{DType, MAX_RANK};

use super::shape::{Axes, Element, Place, TensorError, dense_bytes, dense_strides};
use super::{Tensor, check_type};
use crate::memory::HostBuffer;

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
    pub(super) fn check_axis(&self, axis: usize) -> Result<(), TensorError> {
        match axis < self.shape.len() {
            true => Ok(()),
            false => Err(TensorError::NoSuchAxis {
                axis,
                rank: self.shape.len(),
            }),
        }
    }

    pub(super) fn moved(mut self, axis: usize, by: i64) -> Result<Self, TensorError> {
        let bits = by as i128 * self.strides[axis] as i128 * self.dtype.bits() as i128;
        if bits % 8 != 0 {
            return Err(TensorError::HalfByte { start: by });
        }
        self.address = self.address.wrapping_add((bits / 8) as u64);
        Ok(self)
    }

    pub(super) fn slice(self, axis: usize, range: Range<i64>) -> Result<Self, TensorError> {
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

    pub(super) fn select(self, axis: usize, index: i64) -> Result<Self, TensorError> {
        let mut raw = self.slice(axis, index..index.saturating_add(1))?;
        raw.shape = raw.shape.without(axis);
        raw.strides = raw.strides.without(axis);
        Ok(raw)
    }

    pub(super) fn is_dense(&self) -> bool {
        dense_strides(self.dtype, &self.shape).is_ok_and(|dense| {
            (0..self.shape.len()).all(|i| self.shape[i] == 1 || self.strides[i] == dense[i])
        }) || self.shape.contains(&0)
    }

    pub(super) fn reshape(mut self, shape: &[i64]) -> Result<Self, TensorError> {
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

    pub(super) fn permuted(mut self, order: &[usize]) -> Result<Self, TensorError> {
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
    pub(super) fn span(&self) -> (i64, usize) {
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
    pub(super) fn on_host(
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
    pub(super) fn each_row(&self, visit: &mut dyn FnMut(u64, usize)) {
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
    pub(super) of: Option<&'a crate::cuda::CudaBuffer>,
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
    pub(super) of: Option<&'a crate::cuda::CudaBuffer>,
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
