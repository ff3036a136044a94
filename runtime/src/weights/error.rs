//! What can be wrong with a checkpoint.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Dtype;

/// Why a checkpoint cannot be used.
#[derive(Debug)]
pub enum WeightsError {
    Io {
        path: PathBuf,
        source: io::Error,
    },
    /// The folder has neither of the two files that may hold the weights.
    NoWeights {
        folder: PathBuf,
    },
    /// A safetensors file that contradicts itself.
    Header {
        path: PathBuf,
        problem: HeaderProblem,
    },
    /// `model.safetensors.index.json` is not what it should be.
    Index {
        path: PathBuf,
        problem: String,
    },
    /// The index and the files it names disagree.
    Shards {
        path: PathBuf,
        problems: Vec<String>,
    },
    /// The tensors are not those of the configured model; all differences.
    Mismatch {
        path: PathBuf,
        mismatches: Vec<Mismatch>,
    },
    /// A tensor was asked for that the file does not have.
    NoSuchTensor {
        path: PathBuf,
        name: String,
    },
    /// A tensor has no reading as the numbers asked for.
    Dtype {
        name: String,
        dtype: Dtype,
        wanted: &'static str,
    },
    /// Tensors were given to a writer out of order or with the wrong length.
    Write {
        path: PathBuf,
        problem: String,
    },
}

/// What is wrong with one safetensors file.
#[derive(Debug)]
pub enum HeaderProblem {
    /// No room for the eight bytes that give the header's length.
    TooShort {
        file: u64,
    },
    /// The header's stated length is beyond the file or beyond any sensible header.
    Length {
        stated: u64,
        file: u64,
        limit: u64,
    },
    Json(serde_json::Error),
    /// One entry of the header.
    Entry {
        name: String,
        what: String,
    },
    /// Two tensors share bytes, or bytes belong to no tensor.
    Gap {
        name: String,
        begin: u64,
        expected: u64,
    },
    /// The tensors end elsewhere than the file.
    End {
        tensors: u64,
        data: u64,
    },
}

/// One difference between a checkpoint and its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mismatch {
    Missing {
        name: String,
        shape: Vec<usize>,
    },
    Unexpected {
        name: String,
    },
    Shape {
        name: String,
        found: Vec<usize>,
        expected: Vec<usize>,
    },
    Dtype {
        name: String,
        found: Dtype,
        allowed: Vec<Dtype>,
    },
    /// Names, shape and dtype are right, and a value in the tensor is impossible.
    Value {
        name: String,
        what: String,
    },
}

/// How many of a long list of problems are printed; the whole list stays in the error.
const SHOWN: usize = 20;

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    items
        .iter()
        .take(SHOWN)
        .try_for_each(|item| write!(f, "\n  {item}"))?;
    if items.len() > SHOWN {
        write!(f, "\n  and {} more", items.len() - SHOWN)
    } else {
        Ok(())
    }
}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightsError::Io { path, source } => write!(f, "{}: {source}", path.display()),
            WeightsError::NoWeights { folder } => write!(
                f,
                "{} has neither model.safetensors nor model.safetensors.index.json",
                folder.display()
            ),
            WeightsError::Header { path, problem } => {
                write!(
                    f,
                    "{} is not a valid safetensors file: {problem}",
                    path.display()
                )
            }
            WeightsError::Index { path, problem } => write!(f, "{}: {problem}", path.display()),
            WeightsError::Shards { path, problems } => {
                write!(f, "{} does not fit the files it names:", path.display())?;
                list(f, problems)
            }
            WeightsError::Mismatch { path, mismatches } => {
                let count = mismatches.len();
                write!(
                    f,
                    "the weights in {} differ from config.json in {count} places:",
                    path.display()
                )?;
                list(f, mismatches)
            }
            WeightsError::NoSuchTensor { path, name } => {
                write!(f, "{} has no tensor `{name}`", path.display())
            }
            WeightsError::Dtype {
                name,
                dtype,
                wanted,
            } => {
                write!(
                    f,
                    "tensor `{name}` is {dtype}; it cannot be read as {wanted}"
                )
            }
            WeightsError::Write { path, problem } => {
                write!(f, "writing {}: {problem}", path.display())
            }
        }
    }
}

impl std::error::Error for WeightsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            WeightsError::Io { source, .. } => Some(source),
            WeightsError::Header {
                problem: HeaderProblem::Json(source),
                ..
            } => Some(source),
            _ => None,
        }
    }
}

impl fmt::Display for HeaderProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeaderProblem::TooShort { file } => {
                write!(f, "it has {file} bytes and needs at least 8")
            }
            HeaderProblem::Length {
                stated,
                file,
                limit,
            } => {
                write!(
                    f,
                    "it claims a header of {stated} bytes, has {file} bytes, and a header has at most {limit}"
                )
            }
            HeaderProblem::Json(source) => {
                write!(f, "its header is not the JSON it should be: {source}")
            }
            HeaderProblem::Entry { name, what } => write!(f, "tensor `{name}`: {what}"),
            HeaderProblem::Gap {
                name,
                begin,
                expected,
            } if begin < expected => {
                write!(
                    f,
                    "tensor `{name}` begins at byte {begin}, inside the tensor that ends at {expected}"
                )
            }
            HeaderProblem::Gap {
                name,
                begin,
                expected,
            } => {
                write!(
                    f,
                    "tensor `{name}` begins at byte {begin}, and bytes {expected} to {begin} belong to no tensor"
                )
            }
            HeaderProblem::End { tensors, data } if tensors > data => {
                write!(
                    f,
                    "its tensors take {tensors} bytes and it has {data}: the file is cut short"
                )
            }
            HeaderProblem::End { tensors, data } => {
                write!(
                    f,
                    "its tensors take {tensors} bytes and it has {data}: the rest belongs to no tensor"
                )
            }
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Missing { name, shape } => write!(f, "`{name}` {shape:?} is missing"),
            Mismatch::Unexpected { name } => {
                write!(f, "`{name}` belongs to no part of the configured model")
            }
            Mismatch::Shape {
                name,
                found,
                expected,
            } => {
                write!(
                    f,
                    "`{name}` has shape {found:?}; the configuration asks for {expected:?}"
                )
            }
            Mismatch::Dtype {
                name,
                found,
                allowed,
            } => {
                let allowed: Vec<_> = allowed.iter().map(|dtype| dtype.name()).collect();
                write!(f, "`{name}` is {found}; it can be {}", allowed.join(" or "))
            }
            Mismatch::Value { name, what } => write!(f, "`{name}`: {what}"),
        }
    }
}
