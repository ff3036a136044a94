//! The `.tlk` archive: one manifest and the blobs it speaks of (objects, PTX).
//!
//! Needs: a manifest that holds together ([`Manifest::check`]). Keeps: equal input gives equal bytes; a reader borrows every blob from
//! the given bytes (`include_bytes!`, a mapped file) and trusts nothing: lengths before use, then hashes, then the manifest's sense.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 8 | magic `\x89TLK\r\n\x1a\n` (a text-mode transfer breaks it, as in PNG) |
//! | 8 | 4 | format version |
//! | 12 | 4 | number of blobs |
//! | 16 | 8 | length of the file |
//! | 24 | 8 | length of the manifest |
//! | 32 | 32 | BLAKE3 of the manifest |
//! | 64 | 40 each | length and BLAKE3 of each blob |
//! | … | … | the manifest (JSON), then the blobs, each at a multiple of 64, zeros between |
//!
//! Integers are little-endian.

use crate::{Manifest, ManifestError};
use std::fmt;
use std::ops::Range;

/// Rises with every change of the layout above or of the manifest's or launch ABI's meaning.
pub const FORMAT_VERSION: u32 = 3;

const MAGIC: [u8; 8] = *b"\x89TLK\r\n\x1a\n";
const HEADER_BYTES: usize = 64;
const ENTRY_BYTES: usize = 40;
const ALIGN: usize = 64;

/// Why bytes are no archive that this version can use.
#[derive(Clone, Debug, PartialEq)]
pub enum ArchiveError {
    /// The bytes do not start as an archive does.
    NotAnArchive,
    /// Written by another version of the format.
    Version { found: u32, expected: u32 },
    /// Shorter or longer than the header says.
    Length { found: u64, expected: u64 },
    /// Lengths in the header that contradict each other.
    Header(&'static str),
    /// Bytes that changed after they were written.
    Hash { part: String },
    /// The manifest is not the JSON that this version reads.
    Json(String),
    /// The manifest contradicts itself or the archive.
    Manifest(ManifestError),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnArchive => write!(
                f,
                "not a `.tlk` archive: the first 8 bytes are others; build one with `tlc build FILES -o library.tlk`"
            ),
            Self::Version { found, expected } => {
                let older = if found < expected {
                    "the compiler that wrote it is older"
                } else {
                    "this program is older"
                };
                write!(
                    f,
                    "the archive has format version {found}, and this program reads version {expected}: {older}; build both with the same version of Tessera"
                )
            }
            Self::Length { found, expected } => write!(
                f,
                "the archive has {found} bytes where its header says {expected}: it was cut short or something was appended; build or copy it again"
            ),
            Self::Header(what) => write!(
                f,
                "the archive's header is damaged: {what}; build or copy it again"
            ),
            Self::Hash { part } => write!(
                f,
                "the archive is damaged: the bytes of {part} do not match their hash; build or copy it again"
            ),
            Self::Json(why) => write!(
                f,
                "the archive's manifest cannot be read: {why}; build it again with this version of Tessera"
            ),
            Self::Manifest(why) => write!(f, "the archive's manifest is wrong: {why}"),
        }
    }
}

impl std::error::Error for ArchiveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Manifest(why) => Some(why),
            _ => None,
        }
    }
}

/// A checked archive over borrowed bytes.
#[derive(Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    manifest: Manifest,
    blobs: Vec<Range<usize>>,
}

impl<'a> Archive<'a> {
    /// Checks lengths, hashes and the manifest's sense.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing of the archive has been used.
    pub fn read(bytes: &'a [u8]) -> Result<Self, ArchiveError> {
        if bytes.get(..MAGIC.len()) != Some(&MAGIC[..]) {
            return Err(ArchiveError::NotAnArchive);
        }
        // The version comes before every other field, so that a later format may change them all.
        let version = match bytes.get(8..12) {
            Some(b) => u32::from_le_bytes(b.try_into().expect("four bytes")),
            None => {
                return Err(ArchiveError::Length {
                    found: bytes.len() as u64,
                    expected: HEADER_BYTES as u64,
                });
            }
        };
        if version != FORMAT_VERSION {
            return Err(ArchiveError::Version {
                found: version,
                expected: FORMAT_VERSION,
            });
        }
        if bytes.len() < HEADER_BYTES {
            return Err(ArchiveError::Length {
                found: bytes.len() as u64,
                expected: HEADER_BYTES as u64,
            });
        }
        let blob_count = u32::from_le_bytes(bytes[12..16].try_into().expect("four bytes")) as usize;
        let file_bytes = word(bytes, 16);
        if file_bytes != bytes.len() as u64 {
            return Err(ArchiveError::Length {
                found: bytes.len() as u64,
                expected: file_bytes,
            });
        }
        let table = blob_count
            .checked_mul(ENTRY_BYTES)
            .and_then(|n| n.checked_add(HEADER_BYTES))
            .filter(|&end| end <= bytes.len())
            .ok_or(ArchiveError::Header(
                "it lists more blobs than the file can hold",
            ))?;

        let mut places = Places { bytes, at: table };
        let manifest = places.next(word(bytes, 24), 1)?;
        check_hash(bytes, manifest.clone(), &bytes[32..64], || {
            "the manifest".to_owned()
        })?;
        let mut blobs = Vec::with_capacity(blob_count);
        for i in 0..blob_count {
            let entry = HEADER_BYTES + i * ENTRY_BYTES;
            let blob = places.next(word(bytes, entry), ALIGN)?;
            check_hash(
                bytes,
                blob.clone(),
                &bytes[entry + 8..entry + ENTRY_BYTES],
                || format!("blob {i}"),
            )?;
            blobs.push(blob);
        }
        if places.at != bytes.len() {
            return Err(ArchiveError::Header("the parts do not fill the file"));
        }

        let manifest: Manifest = serde_json::from_slice(&bytes[manifest])
            .map_err(|e| ArchiveError::Json(e.to_string()))?;
        manifest.check(blob_count).map_err(ArchiveError::Manifest)?;
        Ok(Archive {
            bytes,
            manifest,
            blobs,
        })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn into_manifest(self) -> Manifest {
        self.manifest
    }

    /// The bytes of blob `index`; every index in the manifest has one.
    pub fn blob(&self, index: u32) -> Option<&'a [u8]> {
        self.blobs
            .get(index as usize)
            .map(|place| &self.bytes[place.clone()])
    }

    pub fn blobs(&self) -> impl Iterator<Item = &'a [u8]> {
        self.blobs.iter().map(|place| &self.bytes[place.clone()])
    }
}

/// The bytes of an archive.
///
/// # Errors
/// [`ArchiveError::Manifest`] for a manifest that no reader would take.
pub fn write_archive(
    manifest: &Manifest,
    blobs: &[impl AsRef<[u8]>],
) -> Result<Vec<u8>, ArchiveError> {
    manifest
        .check(blobs.len())
        .map_err(ArchiveError::Manifest)?;
    let json = serde_json::to_vec(manifest).map_err(|e| ArchiveError::Json(e.to_string()))?;

    let mut out = Vec::new();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    out.extend_from_slice(&(blobs.len() as u32).to_le_bytes());
    out.extend_from_slice(&0u64.to_le_bytes()); // the file's length, below
    out.extend_from_slice(&(json.len() as u64).to_le_bytes());
    out.extend_from_slice(blake3::hash(&json).as_bytes());
    for blob in blobs {
        out.extend_from_slice(&(blob.as_ref().len() as u64).to_le_bytes());
        out.extend_from_slice(blake3::hash(blob.as_ref()).as_bytes());
    }
    out.extend_from_slice(&json);
    for blob in blobs {
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        out.extend_from_slice(blob.as_ref());
    }
    let file_bytes = out.len() as u64;
    out[16..24].copy_from_slice(&file_bytes.to_le_bytes());
    Ok(out)
}

/// Lays the parts behind each other, as the writer did.
struct Places<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Places<'_> {
    fn next(&mut self, len: u64, align: usize) -> Result<Range<usize>, ArchiveError> {
        const PAST: ArchiveError = ArchiveError::Header("a part reaches past the end of the file");
        let start = self.at.checked_next_multiple_of(align).ok_or(PAST)?;
        let end = usize::try_from(len)
            .ok()
            .and_then(|len| start.checked_add(len))
            .filter(|&end| end <= self.bytes.len())
            .ok_or(PAST)?;
        if self.bytes[self.at..start].iter().any(|&b| b != 0) {
            return Err(ArchiveError::Header("there are bytes between its parts"));
        }
        self.at = end;
        Ok(start..end)
    }
}

/// The caller has checked that `at + 8` lies inside.
fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn check_hash(
    bytes: &[u8],
    place: Range<usize>,
    hash: &[u8],
    part: impl Fn() -> String,
) -> Result<(), ArchiveError> {
    match blake3::hash(&bytes[place]).as_bytes() == hash {
        true => Ok(()),
        false => Err(ArchiveError::Hash { part: part() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::axpy;
    use crate::{HostExpr, HostOp};

    fn sample() -> (Manifest, Vec<Vec<u8>>) {
        (
            Manifest {
                compiler: "c0".into(),
                kernels: vec![axpy()],
            },
            vec![b"object".to_vec(), b".version 8.6".to_vec()],
        )
    }

    #[test]
    fn reads_what_was_written() {
        let (manifest, blobs) = sample();
        let bytes = write_archive(&manifest, &blobs).unwrap();
        assert_eq!(bytes, write_archive(&manifest, &blobs).unwrap());
        let archive = Archive::read(&bytes).unwrap();
        assert_eq!(archive.manifest(), &manifest);
        assert_eq!(archive.blob(0), Some(&b"object"[..]));
        assert_eq!(archive.blob(1), Some(&b".version 8.6"[..]));
        assert_eq!(archive.blob(2), None);
    }

    #[test]
    fn an_empty_archive_is_one() {
        let bytes = write_archive(&Manifest::default(), &[] as &[Vec<u8>]).unwrap();
        assert!(Archive::read(&bytes).unwrap().manifest().kernels.is_empty());
    }

    #[test]
    fn another_version_names_both() {
        let (manifest, blobs) = sample();
        let mut bytes = write_archive(&manifest, &blobs).unwrap();
        bytes[8] = 7;
        let error = Archive::read(&bytes).unwrap_err();
        assert_eq!(
            error,
            ArchiveError::Version {
                found: 7,
                expected: FORMAT_VERSION
            }
        );
        assert_eq!(
            error.to_string(),
            "the archive has format version 7, and this program reads version 3: this program is older; build both with the same version of Tessera"
        );
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        let (manifest, blobs) = sample();
        let good = write_archive(&manifest, &blobs).unwrap();
        for at in [24, 64, 104] {
            for length in [u64::MAX, u64::MAX - 63, i64::MAX as u64, good.len() as u64] {
                let mut bytes = good.clone();
                bytes[at..at + 8].copy_from_slice(&length.to_le_bytes());
                assert!(
                    matches!(Archive::read(&bytes), Err(ArchiveError::Header(_))),
                    "{at} {length}"
                );
            }
        }
        let mut bytes = good.clone();
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            Archive::read(&bytes),
            Err(ArchiveError::Header(_))
        ));
    }

    /// No changed byte, cut or appended tail goes unseen, and none of them panics.
    #[test]
    fn a_thousand_mutations_are_refused() {
        let (manifest, blobs) = sample();
        let good = write_archive(&manifest, &blobs).unwrap();
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut random = move |n: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for case in 0..mutations() {
            let mut bytes = good.clone();
            match random(4) {
                0 => {
                    let at = random(bytes.len());
                    bytes[at] ^= 1 << random(8);
                }
                1 => bytes.truncate(random(good.len())),
                2 => bytes.extend((0..1 + random(80)).map(|_| random(256) as u8)),
                _ => {
                    let (at, len) = (random(good.len()), 1 + random(16));
                    for b in bytes.iter_mut().skip(at).take(len) {
                        *b = random(256) as u8;
                    }
                }
            }
            assert_eq!(
                Archive::read(&bytes).is_ok(),
                bytes == good,
                "mutation {case}"
            );
        }
    }

    /// A manifest with a right hash may still be hostile: mutations of its text, hashed again.
    #[test]
    fn a_thousand_mutated_manifests_never_panic() {
        let (manifest, _) = sample();
        let json = serde_json::to_vec(&manifest).unwrap();
        let mut state = 42u64;
        let mut random = move |n: usize| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        let mut refused = 0;
        for _ in 0..mutations() {
            let mut text = json.clone();
            for _ in 0..1 + random(3) {
                let at = random(text.len());
                text[at] = b"0123456789{}[],:\"-.eE abct"[random(25)];
            }
            if let Ok(manifest) = serde_json::from_slice::<Manifest>(&text) {
                refused += manifest.check(2).is_err() as usize;
            } else {
                refused += 1;
            }
        }
        assert!(refused > mutations() / 4, "{refused}");
    }

    fn mutations() -> usize {
        let factor = std::env::var("TESSERA_SOAK_FACTOR").ok();
        1000 * factor.and_then(|n| n.parse().ok()).unwrap_or(1)
    }

    #[test]
    fn a_deep_expression_is_refused_by_writer_and_reader() {
        let (mut manifest, blobs) = sample();
        let mut deep = HostExpr::dim("N");
        for _ in 0..200 {
            deep = HostExpr::op(HostOp::Add, [deep, HostExpr::Int(1)]);
        }
        manifest.kernels[0].grid = vec![deep];
        assert!(matches!(
            write_archive(&manifest, &blobs),
            Err(ArchiveError::Manifest(_))
        ));
        let json = serde_json::to_vec(&manifest).unwrap();
        assert!(serde_json::from_slice::<Manifest>(&json).is_err());
    }
}
