//! Gives the compiler a hash of its own sources: part of the key under which compiled kernels are cached.

use std::path::{Path, PathBuf};

fn main() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut files = vec![];
    for directory in [root.join("src"), root.join("../runtime/artifact/src")] {
        println!("cargo:rerun-if-changed={}", directory.display());
        walk(&directory, &mut files);
    }
    files.sort();
    let mut hash = Fnv::default();
    for file in files {
        let name = file
            .strip_prefix(&root)
            .unwrap_or(&file)
            .to_string_lossy()
            .into_owned();
        hash.update(name.as_bytes());
        hash.update(&std::fs::read(&file).unwrap_or_default());
    }
    println!(
        "cargo:rustc-env=TESSERA_COMPILER_HASH={}-{:032x}",
        env!("CARGO_PKG_VERSION"),
        hash.0
    );
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => walk(&path, files),
            false => files.push(path),
        }
    }
}

/// FNV-1a, 128 bits: no dependency, and nobody attacks this hash.
struct Fnv(u128);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv {
    fn update(&mut self, bytes: &[u8]) {
        for part in [&(bytes.len() as u64).to_le_bytes()[..], bytes] {
            for &byte in part {
                self.0 =
                    (self.0 ^ byte as u128).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
            }
        }
    }
}
