//! Writes the generated model that speed is measured on (272 M parameters, float32, 1.1 GB): `write-benchmark-model FOLDER`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(folder), None) = (args.next(), args.next()) else {
        eprintln!("usage: write-benchmark-model FOLDER");
        return ExitCode::from(2);
    };
    match tessera_tests::random_model::write_benchmark_model(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
