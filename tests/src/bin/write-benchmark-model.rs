//! Writes the generated model that speed is measured on (272 M parameters, float32, 1.1 GB): `write-benchmark-model FOLDER`; with `bf16`
//! after the folder the same rounded to bf16, half as large.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use tessera::weights::Dtype;
use tessera_tests::random_model::{rewrite_model, write_benchmark_model};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (folder, format, rest) = (args.next(), args.next(), args.next());
    // `--help` is no folder.
    let folder = folder.filter(|name| !name.to_string_lossy().starts_with('-'));
    let is_bf16 = format.as_ref().is_some_and(|format| format == "bf16");
    let (Some(folder), None, true) = (folder, rest, format.is_none() || is_bf16) else {
        eprintln!("usage: write-benchmark-model FOLDER [bf16]");
        return ExitCode::from(2);
    };
    let written = match is_bf16 {
        true => write_bf16(Path::new(&folder)),
        false => write_benchmark_model(Path::new(&folder)),
    };
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write_bf16(folder: &Path) -> Result<(), Box<dyn Error>> {
    let wide = folder.join("float32");
    write_benchmark_model(&wide)?;
    rewrite_model(&wide, folder, 1, |_| Dtype::BF16)?;
    Ok(std::fs::remove_dir_all(&wide)?)
}
