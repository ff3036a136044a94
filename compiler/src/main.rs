//! `tlc`; see `tessera_compiler::cli`.

fn main() -> std::process::ExitCode {
    tessera_compiler::cli::main()
}
