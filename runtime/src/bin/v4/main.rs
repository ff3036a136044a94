//! `v4`: DeepSeek-V4 models on the command line.

mod bench;
mod compare;
mod determinism;
mod forward;
mod generate;
mod plan;
#[cfg(feature = "selftest")]
mod selftest;
mod setup;
mod sweep;
mod sweep_report;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs, checks and measures DeepSeek-V4 models.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    options: setup::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Checks a model against its stored expected values; exit code 1 where one is out of bounds.
    Verify(verify::Args),
    /// Compares a model on the device with the same on the CPU, step by step and block by block; exit code 1 where one is out of bounds.
    Compare(compare::Args),
    /// Computes the logits of token sequences and writes them to a safetensors file.
    Forward(forward::Args),
    /// Checks that a request's bits do not depend on what runs beside it; exit code 1 where they do.
    Determinism(determinism::Args),
    /// Generates tokens after a prompt.
    Generate(generate::Args),
    /// Measures prefill and decode speed.
    Bench(bench::Args),
    /// Shows what a configuration costs: weights, cache, operations.
    Plan(plan::Args),
    /// Runs the kernels' own tests and benches on the device; exit code 1 where a result is wrong.
    #[cfg(feature = "selftest")]
    Selftest(selftest::Args),
}

/// What a command ends with, besides errors.
enum Outcome {
    Fine,
    /// The command did its work and found something wrong.
    Failed,
}

type CommandResult = Result<Outcome, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Command::Verify(args) => verify::run(args, &cli.options),
        Command::Compare(args) => compare::run(args, &cli.options),
        Command::Determinism(args) => determinism::run(args, &cli.options),
        Command::Forward(args) => forward::run(args, &cli.options),
        Command::Generate(args) => generate::run(args, &cli.options),
        Command::Bench(args) => bench::run(args, &cli.options),
        Command::Plan(args) => plan::run(args, &cli.options),
        #[cfg(feature = "selftest")]
        Command::Selftest(args) => selftest::run(args, &cli.options),
    };
    match result {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Err(error) => {
            eprintln!("v4: {error}");
            ExitCode::from(2)
        }
    }
}
