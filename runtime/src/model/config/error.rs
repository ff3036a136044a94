//! What can be wrong with a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no [`Config`](super::Config).
#[derive(Debug)]
pub enum ConfigError {
    Read {
        path: PathBuf,
        source: io::Error,
    },
    TooLong {
        path: PathBuf,
        length: u64,
        limit: u64,
    },
    Json {
        path: Option<PathBuf>,
        source: serde_json::Error,
    },
    /// The text is JSON, but not a configuration; all that was found.
    Invalid {
        path: Option<PathBuf>,
        problems: Vec<Problem>,
    },
}

/// One thing that is wrong with the values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    Missing {
        key: String,
        expected: String,
    },
    WrongType {
        key: String,
        value: String,
        expected: String,
    },
    OutOfRange {
        key: String,
        value: String,
        expected: String,
    },
    Unsupported {
        key: String,
        value: String,
        supported: String,
    },
    /// Values that are fine alone and do not fit together.
    Conflict {
        values: Vec<(String, String)>,
        rule: String,
    },
}

impl ConfigError {
    pub(super) fn in_file(self, file: &Path) -> ConfigError {
        let path = Some(file.to_path_buf());
        match self {
            ConfigError::Json { source, .. } => ConfigError::Json { path, source },
            ConfigError::Invalid { problems, .. } => ConfigError::Invalid { path, problems },
            other => other,
        }
    }

    /// The problems with the values; empty where the text could not be read at all.
    pub fn problems(&self) -> &[Problem] {
        match self {
            ConfigError::Invalid { problems, .. } => problems,
            ConfigError::Read { .. } | ConfigError::TooLong { .. } | ConfigError::Json { .. } => {
                &[]
            }
        }
    }
}

fn name(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(
        || "the model configuration".into(),
        |path| path.display().to_string(),
    )
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::Read { path, source } => {
                write!(f, "cannot read {}: {source}", path.display())
            }
            ConfigError::TooLong {
                path,
                length,
                limit,
            } => {
                write!(
                    f,
                    "{} has {length} bytes; a model configuration has at most {limit}",
                    path.display()
                )
            }
            ConfigError::Json { path, source } => {
                write!(f, "{} is not valid JSON: {source}", name(path))
            }
            ConfigError::Invalid { path, problems } => {
                let plural = if problems.len() == 1 {
                    "problem"
                } else {
                    "problems"
                };
                write!(f, "{} has {} {plural}:", name(path), problems.len())?;
                problems
                    .iter()
                    .try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Read { source, .. } => Some(source),
            ConfigError::Json { source, .. } => Some(source),
            ConfigError::TooLong { .. } | ConfigError::Invalid { .. } => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Missing { key, expected } => {
                write!(f, "`{key}` is missing; it must be {expected}")
            }
            Problem::WrongType {
                key,
                value,
                expected,
            }
            | Problem::OutOfRange {
                key,
                value,
                expected,
            } => {
                write!(f, "`{key}` is {value}; it must be {expected}")
            }
            Problem::Unsupported {
                key,
                value,
                supported,
            } => {
                write!(f, "`{key}` is {value}; only {supported} is supported")
            }
            Problem::Conflict { values, rule } => {
                for (i, (key, value)) in values.iter().enumerate() {
                    write!(f, "{}`{key}` is {value}", if i == 0 { "" } else { ", " })?;
                }
                write!(f, "; {rule}")
            }
        }
    }
}
