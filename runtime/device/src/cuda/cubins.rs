//! What the driver made of PTX, kept on disk by content, so that the next program need not wait for it.
//!
//! The key is the hash of the PTX, the GPU's generation and the driver's version, so an entry is right for ever. Keeps: nothing here is
//! ever an error. An entry that was damaged, or that the driver refuses, is made again; a folder that cannot be written costs time.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use super::driver::{Function, Gpu};

/// A code's way into the GPU.
pub(super) struct Cubins {
    /// `None`: keep nothing.
    pub folder: Option<PathBuf>,
}

impl Cubins {
    /// Loads the entry `symbol` of the PTX, translated or kept from before.
    ///
    /// # Errors
    /// The driver's words about the PTX.
    pub fn load(
        &self,
        gpu: &dyn Gpu,
        ptx: &CStr,
        symbol: &CStr,
        shared_bytes: u32,
    ) -> Result<Function, String> {
        let Some(folder) = &self.folder else {
            return gpu.load(ptx.to_bytes_with_nul(), symbol, shared_bytes);
        };
        let path = folder.join(key(gpu, ptx));
        if let Some(cubin) = read(&path)
            && let Ok(function) = gpu.load(&cubin, symbol, shared_bytes)
        {
            return Ok(function);
        }
        // Without a translation to keep, the driver takes the text itself.
        let Ok(cubin) = gpu.translate(ptx) else {
            return gpu.load(ptx.to_bytes_with_nul(), symbol, shared_bytes);
        };
        let function = gpu.load(&cubin, symbol, shared_bytes)?;
        write(&path, &cubin);
        Ok(function)
    }
}

fn key(gpu: &dyn Gpu, ptx: &CStr) -> String {
    let facts = gpu.facts();
    let ((major, minor), (cuda, minor_cuda)) = (facts.compute_capability, facts.cuda);
    let mut hasher = blake3::Hasher::new();
    for number in [major, minor, cuda, minor_cuda] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(ptx.to_bytes());
    hasher.finalize().to_hex()[..40].to_owned()
}

/// A file is the BLAKE3 of the rest and the rest.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let (hash, cubin) = bytes.split_at_checked(32)?;
    if blake3::hash(cubin).as_bytes() != hash {
        return None;
    }
    bytes.drain(..32);
    Some(bytes)
}

/// Whole under another name and then renamed, since other programs may read it at any time.
fn write(path: &Path, cubin: &[u8]) {
    let temporary = path.with_extension(format!("{}", std::process::id()));
    let bytes = [blake3::hash(cubin).as_bytes(), cubin].concat();
    let written = path
        .parent()
        .is_some_and(|folder| std::fs::create_dir_all(folder).is_ok())
        && std::fs::write(&temporary, bytes).is_ok()
        && std::fs::rename(&temporary, path).is_ok();
    if !written {
        let _ = std::fs::remove_file(&temporary);
    }
}
