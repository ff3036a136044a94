//! The command line: arguments, files, exit codes. The only part of the compiler that prints or reads the environment.
//!
//! Exit codes: 0 all well, 1 the input or the machine has a fault that was reported, 2 the command line is wrong or a file can't
//! be read or written.

#[cfg(feature = "llvm")]
mod bench;
#[cfg(feature = "llvm")]
mod build;
mod check;
mod doctor;
#[cfg(feature = "llvm")]
mod explain;
#[cfg(feature = "llvm")]
mod facts;
mod files;
mod fmt;
mod ledger;
#[cfg(feature = "llvm")]
mod run;
#[cfg(feature = "llvm")]
mod test;
#[cfg(feature = "llvm")]
mod tune;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

/// clap's own code for a wrong command line, and ours for files that can't be read or written.
pub(crate) const USAGE_OR_IO: u8 = 2;

#[derive(Parser)]
#[command(name = "tlc", version, about = "The compiler of Tessera's kernel language", long_about = None)]
struct Arguments {
    /// How to print what there is to say
    #[arg(long, global = true, value_enum, default_value_t = MessageFormat::Human)]
    message_format: MessageFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile .tl files to an archive
    #[cfg(feature = "llvm")]
    Build(build::Build),
    /// Measure the benches in .tl files on this machine's CPU
    #[cfg(feature = "llvm")]
    Bench(bench::Bench),
    /// Say what is known of each kernel: proofs, memory, code
    #[cfg(feature = "llvm")]
    Explain(explain::Explain),
    /// Run one kernel once, with inputs from the command line
    #[cfg(feature = "llvm")]
    Run(run::Run),
    /// Run the tests in .tl files
    #[cfg(feature = "llvm")]
    Test(test::Test),
    /// Report everything that is wrong with .tl files
    Check {
        /// Print what was proved of each kernel, and how
        #[arg(long, short)]
        verbose: bool,
        #[command(flatten)]
        modules: files::Modules,
        /// Files, or directories to search
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Lay .tl files out in the one way
    Fmt {
        /// Change nothing; name the files that would change and fail if there are any
        #[arg(long)]
        check: bool,
        /// Files, or directories to search; `-` for standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Say what this machine has and lacks, and what to do about it
    Doctor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MessageFormat {
    /// For people
    Human,
    /// One line each
    Short,
    /// One JSON object a line
    Json,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let format = arguments.message_format;
    match arguments.command {
        #[cfg(feature = "llvm")]
        Command::Bench(arguments) => bench::run(&arguments, format),
        #[cfg(feature = "llvm")]
        Command::Build(arguments) => build::run(&arguments, format),
        #[cfg(feature = "llvm")]
        Command::Explain(arguments) => explain::run(&arguments, format),
        #[cfg(feature = "llvm")]
        Command::Run(arguments) => run::run(&arguments, format),
        #[cfg(feature = "llvm")]
        Command::Test(arguments) => test::run(&arguments, format),
        Command::Check {
            verbose,
            modules,
            files,
        } => check::run(&files, &modules, verbose, format),
        Command::Fmt { check, files } => fmt::run(&files, check, format),
        Command::Doctor => doctor::run(format),
    }
}

/// Prints to standard output. A reader that has gone away (`tlc … | head`) has seen all it wants.
pub(crate) fn print(text: &str) {
    print_bytes(text.as_bytes());
}

pub(crate) fn print_bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}
