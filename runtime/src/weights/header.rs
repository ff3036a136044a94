//! The header of a safetensors file: eight bytes of length, then JSON `{name: {dtype, shape, data_offsets}}`.
//!
//! Keeps: the entries it returns have distinct names, known dtypes, lengths that equal shape times element size, and
//! together cover the data exactly, each byte once, in the order of the list.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Dtype, HeaderProblem};

/// All tensors of the largest released model in one file would take 22 MB.
const MAX_HEADER_BYTES: u64 = 32 << 20;
const MAX_RANK: usize = 8;

/// One tensor of a file; `begin` and `end` count from the first byte of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub begin: usize,
    pub end: usize,
}

/// Reads and checks the header of a whole file. The entries come in the order of their bytes.
pub(super) fn read(file: &[u8]) -> Result<Vec<Entry>, HeaderProblem> {
    let file_length = file.len() as u64;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(HeaderProblem::TooShort { file: file_length });
    };
    let stated = u64::from_le_bytes(*length);
    if stated > MAX_HEADER_BYTES || stated > rest.len() as u64 {
        return Err(HeaderProblem::Length {
            stated,
            file: file_length,
            limit: MAX_HEADER_BYTES,
        });
    }
    let (text, data) = rest.split_at(stated as usize);
    let header: Header = serde_json::from_slice(text).map_err(HeaderProblem::Json)?;

    let data_begin = file.len() - data.len();
    let mut entries = Vec::with_capacity(header.0.len());
    for (name, raw) in header.0 {
        entries.push(entry(name, raw, data_begin)?);
    }
    entries.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    check_names(&entries)?;
    check_cover(&entries, data_begin, data.len())?;
    Ok(entries)
}

fn entry(name: String, raw: RawEntry, data_begin: usize) -> Result<Entry, HeaderProblem> {
    let problem = |name: &str, what: String| HeaderProblem::Entry {
        name: name.into(),
        what,
    };
    let Some(dtype) = Dtype::from_name(&raw.dtype) else {
        return Err(problem(
            &name,
            format!("unknown dtype {:?}", shorten(&raw.dtype)),
        ));
    };
    if raw.shape.len() > MAX_RANK {
        return Err(problem(
            &name,
            format!("{} axes; at most {MAX_RANK} are read", raw.shape.len()),
        ));
    }
    let [begin, end] = raw.data_offsets;
    let bytes = raw
        .shape
        .iter()
        .try_fold(dtype.size() as u64, |product, &extent| {
            product.checked_mul(extent)
        });
    if bytes.is_none() || end.checked_sub(begin) != bytes {
        let what = format!(
            "bytes {begin} to {end} do not hold {dtype} of shape {:?}",
            raw.shape
        );
        return Err(problem(&name, what));
    }
    let in_file = |offset: u64| {
        usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(data_begin))
    };
    let shape = raw
        .shape
        .iter()
        .map(|&extent| usize::try_from(extent))
        .collect::<Result<Vec<_>, _>>();
    match (in_file(begin), in_file(end), shape) {
        (Some(begin), Some(end), Ok(shape)) => Ok(Entry {
            name,
            dtype,
            shape,
            begin,
            end,
        }),
        _ => Err(problem(
            &name,
            "offsets beyond what this machine can address".into(),
        )),
    }
}

fn check_names(entries: &[Entry]) -> Result<(), HeaderProblem> {
    let mut names: Vec<_> = entries.iter().map(|entry| entry.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(HeaderProblem::Entry {
            name: pair[0].into(),
            what: "the name occurs twice".into(),
        }),
        None => Ok(()),
    }
}

fn check_cover(
    entries: &[Entry],
    data_begin: usize,
    data_length: usize,
) -> Result<(), HeaderProblem> {
    let mut covered = data_begin;
    for entry in entries {
        if entry.begin != covered {
            let (begin, expected) = (
                (entry.begin - data_begin) as u64,
                (covered - data_begin) as u64,
            );
            return Err(HeaderProblem::Gap {
                name: entry.name.clone(),
                begin,
                expected,
            });
        }
        covered = entry.end;
    }
    let tensors = (covered - data_begin) as u64;
    if tensors != data_length as u64 {
        return Err(HeaderProblem::End {
            tensors,
            data: data_length as u64,
        });
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The JSON object, with repeated names kept (a map would hide them) and `__metadata__` dropped.
struct Header(Vec<(String, RawEntry)>);

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
