//! `tlc`, as a user runs it, on files in a folder of its own.
#![cfg(feature = "llvm")]

mod library;
mod tune;

use std::path::{Path, PathBuf};
use std::process::Command;

/// A new folder with these files.
fn folder(name: &str, files: &[(&str, &str)]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    for (path, text) in files {
        let path = folder.join(path);
        let parent = path.parent().expect("it lies in the folder");
        std::fs::create_dir_all(parent).expect("the target's folder can be written");
        std::fs::write(&path, text).expect("a new folder can be written");
    }
    folder
}

/// Whether a command succeeds, and what it says.
fn tlc(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tlc"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("tlc was built for this test");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}
