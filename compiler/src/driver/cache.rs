//! Compiled kernels by content: an unchanged kernel is not compiled again.
//!
//! The key is the hash of the canonical program, the target and the compiler, so an entry is right for ever and nothing is ever
//! invalidated. A cache that cannot be read or written costs time and is otherwise no error; an entry that was damaged is ignored.

use std::path::Path;

use super::native::Code;
use crate::diag::Diagnostic;

/// The compiler's version, its sources' hash and the version of LLVM it is linked with.
pub fn compiler_hash() -> String {
    format!(
        "{}-llvm{}",
        env!("TESSERA_COMPILER_HASH"),
        crate::target::llvm::version()
    )
}

pub fn key(program: &str, target: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [&compiler_hash(), target, program] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..40].to_owned()
}

/// The code of `key`: from the cache, or made and put there.
pub fn through(
    directory: Option<&Path>,
    key: &str,
    make: impl FnOnce() -> Result<Code, Box<Diagnostic>>,
) -> Result<Code, Box<Diagnostic>> {
    let Some(directory) = directory else {
        return make();
    };
    let path = directory.join(&key[..2]).join(key);
    if let Some(code) = std::fs::read(&path).ok().and_then(|bytes| decode(&bytes)) {
        return Ok(code);
    }
    let code = make()?;
    // Written whole under another name and then renamed, since other compilers may read it at any time.
    let temporary = path.with_extension(format!("{}", std::process::id()));
    let stored = path
        .parent()
        .is_some_and(|p| std::fs::create_dir_all(p).is_ok())
        && std::fs::write(&temporary, encode(&code)).is_ok()
        && std::fs::rename(&temporary, &path).is_ok();
    if !stored {
        let _ = std::fs::remove_file(&temporary);
    }
    Ok(code)
}

/// BLAKE3 of the rest, length of the description, the description as JSON, the code.
fn encode(code: &Code) -> Vec<u8> {
    let description = serde_json::to_vec(code).expect("names and numbers have a JSON form");
    let mut rest = (description.len() as u64).to_le_bytes().to_vec();
    rest.extend_from_slice(&description);
    rest.extend_from_slice(&code.bytes);
    [blake3::hash(&rest).as_bytes(), &rest[..]].concat()
}

fn decode(bytes: &[u8]) -> Option<Code> {
    let (hash, rest) = bytes.split_at_checked(32)?;
    if blake3::hash(rest).as_bytes() != hash {
        return None;
    }
    let (length, rest) = rest.split_at_checked(8)?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    let (description, code) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    Some(Code {
        bytes: code.to_vec(),
        ..serde_json::from_slice(description).ok()?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code() -> Code {
        Code {
            symbol: "k".into(),
            threads: 1,
            shared_bytes: 0,
            scratch_bytes: 64,
            tensor_maps: vec![],
            persistent: false,
            cluster: 1,
            tensor_cores: false,
            traps: vec!["t".into()],
            bytes: vec![1, 2, 3],
        }
    }

    #[test]
    fn keys_depend_on_every_part() {
        let all = [
            key("a", "x"),
            key("b", "x"),
            key("a", "y"),
            key("ax", ""),
            key("", "ax"),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a != b));
        }
    }

    #[test]
    fn entries_come_back_and_damaged_ones_do_not() {
        let bytes = encode(&code());
        assert_eq!(decode(&bytes), Some(code()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 4;
            assert_eq!(decode(&damaged), None);
            assert_eq!(decode(&bytes[..at]), None);
        }
    }

    #[test]
    fn a_kernel_is_made_once_and_a_bad_directory_is_no_error() {
        let directory = std::env::temp_dir().join(format!("tessera-cache-{}", std::process::id()));
        let key = key("p", "t");
        assert_eq!(through(Some(&directory), &key, || Ok(code())), Ok(code()));
        assert_eq!(
            through(Some(&directory), &key, || panic!("it is in the cache")),
            Ok(code())
        );
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(
            through(Some(Path::new("/dev/null/x")), &key, || Ok(code())),
            Ok(code())
        );
    }
}
