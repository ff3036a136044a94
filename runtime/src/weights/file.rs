//! One safetensors file, mapped into memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;

use super::header::{self, Entry};
use super::{Dtype, WeightsError};

/// A file whose header was checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: Bytes,
    /// In the order of their bytes.
    entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
}

#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// One tensor of a file: its bytes are row-major, little-endian, and as many as shape and dtype ask for. They may lie
/// at any address.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

impl SafetensorsFile {
    /// Maps and checks the file at `path`. It must not be changed while it is open.
    ///
    /// # Errors
    /// [`WeightsError::Io`] or [`WeightsError::Header`].
    pub fn open(path: &Path) -> Result<SafetensorsFile, WeightsError> {
        let io_error = |source| WeightsError::Io {
            path: path.to_path_buf(),
            source,
        };
        let file = File::open(path).map_err(io_error)?;
        let metadata = file.metadata().map_err(io_error)?;
        if !metadata.is_file() {
            return Err(io_error(std::io::Error::other("not a file")));
        }
        if metadata.len() == 0 {
            // An empty file cannot be mapped everywhere.
            return SafetensorsFile::new(path, Bytes::Owned(Vec::new()));
        }
        // SAFETY: the map is read-only and private to this value. Another process cutting the file short would be a
        // bus error, as with every mapped file; that is the caller's side of the bargain, stated above.
        let map = unsafe { Mmap::map(&file) }.map_err(io_error)?;
        SafetensorsFile::new(path, Bytes::Mapped(map))
    }

    /// Checks the bytes of a whole file; `path` is for messages.
    ///
    /// # Errors
    /// [`WeightsError::Header`].
    pub fn from_bytes(path: &Path, bytes: Vec<u8>) -> Result<SafetensorsFile, WeightsError> {
        SafetensorsFile::new(path, Bytes::Owned(bytes))
    }

    fn new(path: &Path, bytes: Bytes) -> Result<SafetensorsFile, WeightsError> {
        let path = path.to_path_buf();
        let entries = header::read(bytes.as_slice()).map_err(|problem| WeightsError::Header {
            path: path.clone(),
            problem,
        })?;
        let by_name = entries
            .iter()
            .enumerate()
            .map(|(index, entry)| (entry.name.clone(), index))
            .collect();
        Ok(SafetensorsFile {
            path,
            bytes,
            entries,
            by_name,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of their bytes.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.entries.iter().map(|entry| self.view(entry))
    }

    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.by_name
            .get(name)
            .map(|&index| self.view(&self.entries[index]))
    }

    /// As [`get`](Self::get), for a tensor that must be there.
    ///
    /// # Errors
    /// [`WeightsError::NoSuchTensor`].
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        self.get(name).ok_or_else(|| WeightsError::NoSuchTensor {
            path: self.path.clone(),
            name: name.into(),
        })
    }

    fn view<'a>(&'a self, entry: &'a Entry) -> Tensor<'a> {
        Tensor {
            name: &entry.name,
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: &self.bytes.as_slice()[entry.begin..entry.end],
        }
    }
}

impl Tensor<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements of a float tensor, exactly.
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] for anything but F64, F32, BF16, F16.
    pub fn to_f64(&self) -> Result<Vec<f64>, WeightsError> {
        Ok(match self.dtype {
            Dtype::F64 => self.chunks(f64::from_le_bytes),
            Dtype::F32 => self.chunks(|bytes| f64::from(f32::from_le_bytes(bytes))),
            Dtype::BF16 => self.chunks(|bytes| bf16::from_le_bytes(bytes).to_f64()),
            Dtype::F16 => self.chunks(|bytes| f16::from_le_bytes(bytes).to_f64()),
            _ => return Err(self.unreadable_as("floating-point numbers")),
        })
    }

    /// The elements of a float tensor no wider than f32, exactly.
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] for anything but F32, BF16, F16.
    pub fn to_f32(&self) -> Result<Vec<f32>, WeightsError> {
        Ok(match self.dtype {
            Dtype::F32 => self.chunks(f32::from_le_bytes),
            Dtype::BF16 => self.chunks(|bytes| bf16::from_le_bytes(bytes).to_f32()),
            Dtype::F16 => self.chunks(|bytes| f16::from_le_bytes(bytes).to_f32()),
            _ => return Err(self.unreadable_as("32-bit floating-point numbers")),
        })
    }

    /// The elements of a signed integer tensor, or of one of bytes.
    ///
    /// # Errors
    /// [`WeightsError::Dtype`] for anything but I64, I32, I16, I8, U8.
    pub fn to_i64(&self) -> Result<Vec<i64>, WeightsError> {
        Ok(match self.dtype {
            Dtype::I64 => self.chunks(i64::from_le_bytes),
            Dtype::I32 => self.chunks(|bytes| i64::from(i32::from_le_bytes(bytes))),
            Dtype::I16 => self.chunks(|bytes| i64::from(i16::from_le_bytes(bytes))),
            Dtype::I8 => self.chunks(|bytes| i64::from(i8::from_le_bytes(bytes))),
            Dtype::U8 => self.chunks(|[byte]: [u8; 1]| i64::from(byte)),
            _ => return Err(self.unreadable_as("integers")),
        })
    }

    fn chunks<const N: usize, T>(&self, read: impl Fn([u8; N]) -> T) -> Vec<T> {
        debug_assert_eq!(N, self.dtype.size());
        self.bytes
            .as_chunks::<N>()
            .0
            .iter()
            .map(|chunk| read(*chunk))
            .collect()
    }

    fn unreadable_as(&self, wanted: &'static str) -> WeightsError {
        WeightsError::Dtype {
            name: self.name.into(),
            dtype: self.dtype,
            wanted,
        }
    }
}
