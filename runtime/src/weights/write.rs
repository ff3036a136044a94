//! Writing safetensors: the header first, then the tensors one after another, so that a file never has to fit in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{Dtype, WeightsError};

/// Name, dtype and shape of a tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }
}

/// A file being written. Tensors are given with [`tensor`](Self::tensor) in the order they were declared.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
    specs: Vec<TensorSpec>,
    written: usize,
}

impl Writer {
    /// Creates the file and writes its header.
    ///
    /// # Errors
    /// [`WeightsError::Io`]; [`WeightsError::Write`] where two tensors have one name.
    pub fn create(path: &Path, specs: Vec<TensorSpec>) -> Result<Writer, WeightsError> {
        let io_error = |source| WeightsError::Io {
            path: path.to_path_buf(),
            source,
        };
        let mut header = Map::new();
        let mut offset = 0;
        for spec in &specs {
            let end = offset + spec.bytes();
            let entry = json!({ "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, end] });
            if header.insert(spec.name.clone(), entry).is_some() {
                let problem = format!("two tensors are called `{}`", spec.name);
                return Err(WeightsError::Write {
                    path: path.to_path_buf(),
                    problem,
                });
            }
            offset = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        // Spaces up to a multiple of eight, so that the data is aligned.
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = BufWriter::new(File::create(path).map_err(io_error)?);
        out.write_all(&(header.len() as u64).to_le_bytes())
            .map_err(io_error)?;
        out.write_all(&header).map_err(io_error)?;
        Ok(Writer {
            path: path.to_path_buf(),
            out,
            specs,
            written: 0,
        })
    }

    /// Writes the next tensor: little-endian, row-major.
    ///
    /// # Errors
    /// [`WeightsError::Write`] if `name` is not the next one or `bytes` has another length than declared.
    pub fn tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), WeightsError> {
        let problem = match self.specs.get(self.written) {
            Some(spec) if spec.name == name && spec.bytes() == bytes.len() => None,
            Some(spec) if spec.name == name => Some(format!(
                "`{name}` has {} bytes and was declared with {}",
                bytes.len(),
                spec.bytes()
            )),
            Some(spec) => Some(format!("got `{name}` where `{}` comes next", spec.name)),
            None => Some(format!("got `{name}` after the last tensor")),
        };
        if let Some(problem) = problem {
            return Err(WeightsError::Write {
                path: self.path.clone(),
                problem,
            });
        }
        self.written += 1;
        self.out
            .write_all(bytes)
            .map_err(|source| WeightsError::Io {
                path: self.path.clone(),
                source,
            })
    }

    /// Flushes the file.
    ///
    /// # Errors
    /// [`WeightsError::Write`] if tensors are missing, [`WeightsError::Io`].
    pub fn finish(mut self) -> Result<(), WeightsError> {
        if let Some(spec) = self.specs.get(self.written) {
            let problem = format!("`{}` was declared and not written", spec.name);
            return Err(WeightsError::Write {
                path: self.path,
                problem,
            });
        }
        self.out.flush().map_err(|source| WeightsError::Io {
            path: self.path.clone(),
            source,
        })
    }
}
