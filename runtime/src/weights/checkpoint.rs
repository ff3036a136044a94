//! A model's weights: one file, or the shards of an index, seen as one set of tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{SafetensorsFile, Tensor, WeightsError};

pub const SINGLE_FILE: &str = "model.safetensors";
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// The index of the largest released model takes about 15 MB.
const MAX_INDEX_BYTES: u64 = 50_000_000;
const MAX_SHARDS: usize = 4096;

/// All the tensors of a model, by name.
#[derive(Debug)]
pub struct Checkpoint {
    /// Where the weights came from: the single file or the index.
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Name to index into `files`.
    owner: BTreeMap<String, usize>,
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
            let owner = file
                .tensors()
                .map(|tensor| (tensor.name.to_string(), 0))
                .collect();
            Ok(Checkpoint {
                path: single,
                files: vec![file],
                owner,
            })
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
            Ok(Checkpoint {
                path: index,
                files,
                owner,
            })
        } else {
            Err(WeightsError::Shards {
                path: index,
                problems,
            })
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.owner.keys().filter_map(|name| self.get(name))
    }

    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        self.owner
            .get(name)
            .and_then(|&file| self.files[file].get(name))
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
