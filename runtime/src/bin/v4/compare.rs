//! `v4 compare`: a model on `--device` beside the same model on the CPU.

use std::path::PathBuf;

use serde_json::json;
use tessera::model::Model;
use tessera::model::config::Config;
use tessera::verify::devices::{Trial, compare};

use super::setup::{DeviceKind, Options, progress_bar};
use super::verify::print_case;
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the model; a narrow form of Flash with random weights by default.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Without --model: layers, the first of the narrow form's 22.
    #[arg(long, default_value_t = 22, value_name = "N", conflicts_with = "model", value_parser = clap::value_parser!(u32).range(1..=22))]
    layers: u32,
    /// Tokens of the prompt; more than 2048 make the indexer choose.
    #[arg(long, default_value_t = 2112, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that come one by one after it.
    #[arg(long, default_value_t = 200)]
    decode: u32,
    /// Tokens of the prompt in one call.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Of the random tokens, and of random weights.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Show every comparison, not only the worst of each kind.
    #[arg(long, short)]
    verbose: bool,
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    if options.is_cpu() {
        return Err(
            "the CPU is what other devices are compared with; name one: `--device cuda`".into(),
        );
    }
    let load = |options: &Options| -> Result<Model, Box<dyn std::error::Error>> {
        match &args.model {
            Some(folder) => options.model(folder),
            None => {
                let config = Config::narrow().first_layers(args.layers as usize);
                options.synthetic(config, args.seed)
            }
        }
    };
    let reference = load(&options.on(DeviceKind::Cpu))?;
    let other = load(options)?;
    let trial = Trial {
        prompt: args.prompt as usize,
        chunk: args.chunk as usize,
        decode: args.decode as usize,
        seed: u64::from(args.seed),
    };
    let bar = progress_bar("calls");
    bar.set_length(trial.calls() as u64);
    let checks = compare(&reference, &other, &trial, &mut || bar.inc(1));
    bar.finish_and_clear();
    let checks = checks?;
    let wrong = checks.iter().filter(|check| !check.is_fine()).count();
    let devices = [reference.device(), other.device()].map(ToString::to_string);
    if options.json {
        println!(
            "{}",
            json!({ "devices": devices, "fine": wrong == 0, "checks": checks })
        );
    } else {
        let title = format!("{} against {}", devices[1], devices[0]);
        print_case(&title, &checks, wrong, args.verbose);
    }
    Ok(match wrong {
        0 => Outcome::Fine,
        _ => Outcome::Failed,
    })
}
