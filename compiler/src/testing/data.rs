//! Tensors of a test as codes, one `u64` each, and their ways to interpreter, devices and references.

use tessera_artifact::{DType, numeric};
use tessera_device::{Tensor, TensorError, dense_strides};

use super::fill::Distribution;
use super::reference::Array;
use crate::tile::interp;

/// A dense tensor, every element as the bits of its code.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    pub dtype: DType,
    pub shape: Vec<i64>,
    pub bits: Vec<u64>,
}

impl Data {
    /// What an output holds before a launch, so that an element nobody writes is seen: NaN, or an unlikely integer.
    pub fn poison(dtype: DType, shape: &[i64]) -> Data {
        let bits = match dtype {
            DType::Bool => 1,
            d if d.is_float() => numeric::from_f64(f64::NAN, d),
            d => numeric::from_i128(0x5A5A_5A5A_5A5A_5A5A, d),
        };
        Data {
            dtype,
            shape: shape.to_vec(),
            bits: vec![bits; count(shape)],
        }
    }

    pub fn len(&self) -> usize {
        self.bits.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    pub fn value(&self, i: usize) -> f64 {
        numeric::to_f64(self.bits[i], self.dtype)
    }

    /// The coordinates of element `i`.
    pub fn coordinates(&self, mut i: usize) -> Vec<usize> {
        let mut at = vec![0; self.shape.len()];
        for (axis, &extent) in self.shape.iter().enumerate().rev() {
            at[axis] = i % extent.max(1) as usize;
            i /= extent.max(1) as usize;
        }
        at
    }

    /// Elements whose bits differ; NaNs are alike, since their bits have no meaning.
    pub fn differences(&self, other: &Data) -> Vec<usize> {
        let nan = |bits: u64| self.dtype.is_float() && numeric::to_f64(bits, self.dtype).is_nan();
        (0..self.len())
            .filter(|&i| {
                let (a, b) = (self.bits[i], other.bits[i]);
                a != b && !(nan(a) && nan(b))
            })
            .collect()
    }

    /// Rows `first..last` of the first axis, as bits.
    pub fn rows(&self, first: usize, last: usize) -> Option<&[u64]> {
        let row = count(self.shape.get(1..)?);
        self.bits.get(first * row..last * row)
    }

    /// Dense bytes as devices hold them: rows of e2m1 start at whole bytes.
    fn to_bytes(&self) -> Vec<u8> {
        match self.dtype {
            DType::E2M1 => {
                let row = self.shape.last().map_or(1, |&n| n.max(1) as usize);
                self.bits
                    .chunks(row)
                    .flat_map(|row| {
                        row.chunks(2).map(|pair| {
                            pair[0] as u8 | (pair.get(1).copied().unwrap_or(0) as u8) << 4
                        })
                    })
                    .collect()
            }
            dtype => {
                let bytes = (dtype.bits() / 8) as usize;
                self.bits
                    .iter()
                    .flat_map(|b| b.to_le_bytes().into_iter().take(bytes))
                    .collect()
            }
        }
    }

    fn read_bytes(&mut self, bytes: &[u8]) {
        match self.dtype {
            DType::E2M1 => {
                let row = self.shape.last().map_or(1, |&n| n.max(1) as usize);
                let row_bytes = row.div_ceil(2);
                for (i, bits) in self.bits.iter_mut().enumerate() {
                    *bits = numeric::read_e2m1(&bytes[i / row * row_bytes..], i % row) as u64;
                }
            }
            dtype => {
                let width = (dtype.bits() / 8) as usize;
                for (bits, code) in self.bits.iter_mut().zip(bytes.chunks_exact(width)) {
                    let mut word = [0; 8];
                    word[..width].copy_from_slice(code);
                    *bits = u64::from_le_bytes(word);
                }
            }
        }
    }

    /// # Errors
    /// No memory.
    pub fn to_tensor(&self) -> Result<Tensor, TensorError> {
        Tensor::from_bytes(self.dtype, &self.shape, &self.to_bytes())
    }

    /// A tensor for measurements: large random ones repeat a block, since to make each element would take longer than to measure.
    ///
    /// # Errors
    /// No memory.
    pub fn quick(
        dtype: DType,
        shape: &[i64],
        contents: Option<(&Distribution, u64)>,
    ) -> Result<Tensor, TensorError> {
        // Even, for two e2m1 codes to a byte, and no multiple of what rows are long.
        const BLOCK: usize = (1 << 20) + 6;
        let ordered = |d: &Distribution| {
            use Distribution::*;
            matches!(d, Iota | Permutation | Values(_))
        };
        let odd_rows = dtype == DType::E2M1 && shape.last().is_some_and(|n| n % 2 == 1);
        let make = |shape: &[i64]| match contents {
            None => Data::poison(dtype, shape),
            Some((distribution, seed)) => Data {
                dtype,
                bits: distribution.fill(dtype, shape, seed),
                shape: shape.to_vec(),
            },
        };
        if count(shape) <= BLOCK || odd_rows || contents.is_some_and(|(d, _)| ordered(d)) {
            return make(shape).to_tensor();
        }
        let block = make(&[BLOCK as i64]).to_bytes();
        let mut bytes = vec![0; dtype.bytes_for(count(shape) as u64) as usize];
        for part in bytes.chunks_mut(block.len()) {
            part.copy_from_slice(&block[..part.len()]);
        }
        Tensor::from_bytes(dtype, shape, &bytes)
    }

    /// Takes the elements of a tensor of the same shape.
    pub fn read_tensor(&mut self, tensor: &Tensor) {
        let bytes = tensor.bytes().expect("tests read tensors on the host");
        self.read_bytes(bytes);
    }

    pub fn to_buffer(&self) -> interp::Buffer {
        let strides = dense_strides(self.dtype, &self.shape)
            .expect("the tensor exists, so its size was checked");
        interp::Buffer {
            dtype: self.dtype,
            shape: self.shape.iter().map(|&n| n as u64).collect(),
            strides: strides.to_vec(),
            offset: 0,
            bytes: self.to_bytes(),
        }
    }

    /// Takes the elements of a buffer made by [`Data::to_buffer`].
    pub fn read_buffer(&mut self, buffer: &interp::Buffer) {
        self.read_bytes(&buffer.bytes);
    }

    pub fn to_array(&self) -> Array {
        let integer = !self.dtype.is_float();
        Array {
            shape: self.shape.clone(),
            data: (0..self.len()).map(|i| self.value(i)).collect(),
            integer,
        }
    }
}

fn count(shape: &[i64]) -> usize {
    shape.iter().product::<i64>() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_survives_the_way_to_a_device_and_back() {
        for dtype in DType::ALL {
            for shape in [&[3i64, 5][..], &[7], &[], &[0, 4]] {
                let n = count(shape);
                let mask = if dtype.bits() == 64 {
                    u64::MAX
                } else {
                    (1 << dtype.bits()) - 1
                };
                let bits = (0..n as u64)
                    .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15)) & mask)
                    .collect();
                let data = Data {
                    dtype,
                    shape: shape.to_vec(),
                    bits,
                };
                let mut back = Data::poison(dtype, shape);
                back.read_tensor(&data.to_tensor().unwrap());
                assert_eq!(back, data);
                let mut back = Data::poison(dtype, shape);
                back.read_buffer(&data.to_buffer());
                assert_eq!(back, data);
            }
        }
    }

    #[test]
    fn nans_are_alike() {
        let data = |bits: Vec<u64>| Data {
            dtype: DType::F32,
            shape: vec![bits.len() as i64],
            bits,
        };
        assert_eq!(
            data(vec![0x7FC0_0000, 0]).differences(&data(vec![0xFFC0_0001, 0x8000_0000])),
            [1]
        );
    }
}
