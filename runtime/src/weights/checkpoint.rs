//! A model's weights: one file, or the shards of an index, seen as one set of tensors under their published names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::names::{Published, published};
use super::{SafetensorsFile, Tensor, WeightsError};

pub const SINGLE_FILE: &str = "model.safetensors";
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The index of the largest released model takes about 15 MB.
const MAX_INDEX_BYTES: u64 = 50_000_000;
const MAX_SHARDS: usize = 4096;
const MAX_EXPERTS: usize = 1024;

/// All the tensors of a model, by name.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the weights came from: the single file or the index.
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    places: BTreeMap<String, Place>,
}

/// Where a tensor is.
#[derive(Debug)]
struct Place {
    /// Index into `files`.
    file: usize,
    /// Its name there, or that of the tensor that it is a part of.
    stored: String,
    part: Option<MatrixOfMany>,
}

/// One matrix of a tensor that holds those of all experts.
#[derive(Debug)]
struct MatrixOfMany {
    /// How many matrices come before it.
    index: usize,
    shape: [usize; 2],
}

impl Checkpoint {
    /// Opens the weights in `folder`: `model.safetensors`, or the files of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`WeightsError`]: nothing there, unreadable, a file or the index contradicts itself or the other.
    pub fn open(folder: &Path) -> Result<Checkpoint, WeightsError> {
        let (single, index) = (folder.join(SINGLE_FILE), folder.join(INDEX_FILE));
        if single.exists() {
            let file = SafetensorsFile::open(&single)?;
            Checkpoint::over(single, vec![file])
        } else if index.exists() {
            Checkpoint::open_shards(folder, index)
        } else {
            Err(WeightsError::NoWeights {
                folder: folder.to_path_buf(),
            })
        }
    }

    fn open_shards(folder: &Path, index: PathBuf) -> Result<Checkpoint, WeightsError> {
        let weight_map = read_index(&index)?;
        let shards: BTreeSet<&str> = weight_map.iter().map(|(_, shard)| shard.as_str()).collect();
        let shards: Vec<&str> = shards.into_iter().collect();
        let files = shards
            .iter()
            .map(|shard| SafetensorsFile::open(&folder.join(shard)));
        let files = files.collect::<Result<Vec<_>, _>>()?;

        let mut problems = Vec::new();
        let mut owner = BTreeMap::new();
        for (name, shard) in &weight_map {
            let file = shards
                .binary_search(&shard.as_str())
                .expect("`shards` is sorted and was made from this map");
            if files[file].get(name).is_none() {
                problems.push(format!("{shard} has no tensor `{name}`"));
            }
            if owner.insert(name.clone(), file).is_some() {
                problems.push(format!("the index names `{name}` twice"));
            }
        }
        for (index, file) in files.iter().enumerate() {
            for tensor in file
                .tensors()
                .filter(|tensor| owner.get(tensor.name) != Some(&index))
            {
                problems.push(format!(
                    "`{}` in {} is not in the index",
                    tensor.name, shards[index]
                ));
            }
        }
        if problems.is_empty() {
            Checkpoint::over(index, files)
        } else {
            Err(WeightsError::Shards {
                path: index,
                problems,
            })
        }
    }

    /// All tensors of the files under their published names.
    fn over(path: PathBuf, files: Vec<SafetensorsFile>) -> Result<Checkpoint, WeightsError> {
        let mut places = BTreeMap::new();
        let mut problems = Vec::new();
        for (index, file) in files.iter().enumerate() {
            for tensor in file.tensors() {
                for (name, part) in parts(&tensor) {
                    let place = Place {
                        file: index,
                        stored: tensor.name.into(),
                        part,
                    };
                    if let Some(other) = places.insert(name.clone(), place) {
                        let (first, second) = (other.stored, tensor.name);
                        problems.push(format!("`{first}` and `{second}` are both `{name}`"));
                    }
                }
            }
        }
        match problems.is_empty() {
            true => Ok(Checkpoint {
                path,
                files,
                places,
            }),
            false => Err(WeightsError::Shards { path, problems }),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.places.keys().filter_map(|name| self.get(name))
    }

    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (name, place) = self.places.get_key_value(name)?;
        let stored = self.files[place.file].get(&place.stored)?;
        let Some(part) = &place.part else {
            return Some(Tensor { name, ..stored });
        };
        let bytes = part.shape.iter().product::<usize>() * stored.dtype.size();
        Some(Tensor {
            name,
            dtype: stored.dtype,
            shape: &part.shape,
            bytes: stored.bytes.get(part.index * bytes..)?.get(..bytes)?,
        })
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
}

/// The published names that a stored tensor has, and which part of it each is.
fn parts(tensor: &Tensor) -> Vec<(String, Option<MatrixOfMany>)> {
    let (at, matrices) = match published(tensor.name) {
        Published::One(name) => return vec![(name, None)],
        Published::Experts { at, matrices } => (at, matrices),
    };
    let &[experts, rows, columns] = tensor.shape else {
        // Not what it should be: it keeps its name, and the comparison with the configuration reports it.
        return vec![(tensor.name.into(), None)];
    };
    // More experts than any model has are no experts.
    if rows % matrices.len() != 0 || experts > MAX_EXPERTS {
        return vec![(tensor.name.into(), None)];
    }
    let shape = [rows / matrices.len(), columns];
    (0..experts)
        .flat_map(|expert| {
            let at = format!("{at}.{expert}");
            let parts = matrices.iter().enumerate();
            parts.map(move |(place, matrix)| {
                let index = expert * matrices.len() + place;
                let part = MatrixOfMany { index, shape };
                (format!("{at}.{matrix}.weight"), Some(part))
            })
        })
        .collect()
}

/// Tensor name and shard file name, as often as the index has them.
fn read_index(path: &Path) -> Result<Vec<(String, String)>, WeightsError> {
    let io_error = |source| WeightsError::Io {
        path: path.to_path_buf(),
        source,
    };
    let problem = |problem: String| WeightsError::Index {
        path: path.to_path_buf(),
        problem,
    };
    let length = std::fs::metadata(path).map_err(io_error)?.len();
    if length > MAX_INDEX_BYTES {
        return Err(problem(format!(
            "it has {length} bytes; an index has at most {MAX_INDEX_BYTES}"
        )));
    }
    let text = std::fs::read(path).map_err(io_error)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|source| problem(format!("not an index: {source}")))?;
    let weight_map = index.weight_map.0;
    if weight_map.is_empty() {
        return Err(problem("its weight_map is empty".into()));
    }
    for (name, shard) in &weight_map {
        // A name with a folder in it could reach files outside the model.
        let plain =
            Path::new(shard).file_name().and_then(|file| file.to_str()) == Some(shard.as_str());
        if !plain || !shard.ends_with(".safetensors") {
            return Err(problem(format!(
                "`{name}` is said to be in {shard:?}, which is no .safetensors file name"
            )));
        }
    }
    let shards = weight_map
        .iter()
        .map(|(_, shard)| shard)
        .collect::<BTreeSet<_>>()
        .len();
    if shards > MAX_SHARDS {
        return Err(problem(format!(
            "it names {shards} files; at most {MAX_SHARDS} are opened"
        )));
    }
    Ok(weight_map)
}

#[derive(serde::Deserialize)]
struct Index {
    #[serde(default, rename = "metadata")]
    _metadata: IgnoredAny,
    weight_map: Pairs,
}

/// A JSON object with repeated names kept.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of file names by tensor name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}
