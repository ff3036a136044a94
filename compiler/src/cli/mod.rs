//! The command line: arguments, files, exit codes. The only part of the compiler that prints or reads the environment.
//!
//! Exit codes: 0 all well, 1 the input or the machine has a fault that was reported, 2 the command line is wrong.

mod doctor;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

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
    match arguments.command {
        Command::Doctor => doctor::run(arguments.message_format),
    }
}

/// Prints to standard output. A reader that has gone away (`tlc … | head`) has seen all it wants.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
