//! Translated kernels kept on disk by content, so that the next program need not wait for the translation.
//!
//! The driver translates PTX when it loads it, and does not hand out what it made; what its linker (`cuLinkAddData`) makes is compiled as
//! one unit of several, where `setmaxnreg` is ignored and products are serialised: kernels on tensor cores then take three times as long.
//! So `ptxas` makes what is kept, on machines that have one; on others the driver translates, and has a cache of its own.
//!
//! The key is the hash of the PTX, the GPU's generation and the assembler's version, so an entry is right for ever. Keeps: nothing here is
//! ever an error. An entry that was damaged, or that the driver refuses, is made again; a folder that cannot be written costs time.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::driver::{Function, Gpu};

/// Where translated kernels are kept, and what translates them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cubins {
    pub folder: PathBuf,
    /// The program `ptxas` of a CUDA toolkit.
    pub ptxas: PathBuf,
}

/// A code's way into the GPU.
pub(super) struct Loader {
    /// `None`: the driver translates.
    cubins: Option<Cubins>,
    /// What the assembler says of itself; nothing if it does not run.
    version: OnceLock<Vec<u8>>,
}

impl Loader {
    pub fn new(cubins: Option<Cubins>) -> Self {
        Loader {
            cubins,
            version: OnceLock::new(),
        }
    }

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
        let cubin = self.cubins.as_ref().and_then(|cubins| {
            let path = cubins.folder.join(self.key(cubins, gpu, ptx)?);
            let load = |cubin: &[u8]| gpu.load(cubin, symbol, shared_bytes).ok();
            if let Some(function) = read(&path).as_deref().and_then(load) {
                return Some(function);
            }
            let made = assemble(&cubins.ptxas, gpu.facts().compute_capability, ptx)?;
            let function = load(&made)?;
            write(&path, &made);
            Some(function)
        });
        match cubin {
            Some(function) => Ok(function),
            None => gpu.load(ptx.to_bytes_with_nul(), symbol, shared_bytes),
        }
    }

    /// `None` without a program that runs.
    fn key(&self, cubins: &Cubins, gpu: &dyn Gpu, ptx: &CStr) -> Option<String> {
        let version = self.version.get_or_init(|| {
            let ran = Command::new(&cubins.ptxas).arg("--version").output();
            ran.map(|output| output.stdout).unwrap_or_default()
        });
        let (major, minor) = gpu.facts().compute_capability;
        let mut hasher = blake3::Hasher::new();
        for number in [major, minor, version.len() as u32] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(version);
        hasher.update(ptx.to_bytes());
        (!version.is_empty()).then(|| hasher.finalize().to_hex()[..40].to_owned())
    }
}

fn assemble(ptxas: &Path, (major, minor): (u32, u32), ptx: &CStr) -> Option<Vec<u8>> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("tessera-{}-{number}", std::process::id());
    let text = std::env::temp_dir().join(format!("{name}.ptx"));
    let code = text.with_extension("cubin");
    let made = std::fs::write(&text, ptx.to_bytes()).is_ok()
        && Command::new(ptxas)
            .arg(format!("-arch=sm_{major}{minor}a"))
            .arg("-o")
            .args([&code, &text])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    let cubin = made.then(|| std::fs::read(&code).ok()).flatten();
    for file in [&text, &code] {
        // It may not be there, and it is in a folder that is emptied.
        let _ = std::fs::remove_file(file);
    }
    cubin
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
    let temporary = path.with_extension(std::process::id().to_string());
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
