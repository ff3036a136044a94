//! `v4 determinism`: whether a request's bits depend on what runs beside it.

use std::path::PathBuf;

use serde_json::json;
use tessera::determinism::{Trial, determinism};

use super::setup::{Options, progress_bar, released};
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the model.
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "preset",
        conflicts_with = "preset"
    )]
    model: Option<PathBuf>,
    /// Instead of a model's folder: `flash` or `pro`, with random weights made on the device.
    #[arg(long, value_name = "NAME", value_parser = ["flash", "pro"])]
    preset: Option<String>,
    /// With --preset: layers, the first of the released model.
    #[arg(long, default_value_t = 4, value_name = "N")]
    layers: usize,
    /// Tokens of the request that come in chunks.
    #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens of the request that come one by one.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    decode: u32,
    /// Requests that share a session.
    #[arg(long, value_delimiter = ',', default_value = "2,3,8,64", value_parser = clap::value_parser!(u32).range(2..=4096))]
    batches: Vec<u32>,
    /// How often each is tried, with other neighbours and cuts.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Of the random numbers.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let model = match (&args.model, &args.preset) {
        (Some(folder), _) => options.model(folder)?,
        (None, preset) => {
            let (_, config) = released(preset.as_deref().unwrap_or("flash"), args.layers)?;
            options.synthetic(config, args.seed as u32)?
        }
    };
    let trial = Trial {
        prompt: args.prompt as usize,
        decode: args.decode as usize,
        batches: args.batches.iter().map(|&n| n as usize).collect(),
        repeats: args.repeats as usize,
        seed: args.seed,
    };
    let bar = progress_bar("trials");
    let checks = determinism(&model, &trial, &mut |_| bar.inc(1));
    bar.finish_and_clear();
    let checks = checks?;
    let wrong = checks.iter().filter(|check| !check.is_fine()).count();
    if options.json {
        let device = model.device().to_string();
        println!(
            "{}",
            json!({ "device": device, "fine": wrong == 0, "checks": checks })
        );
    } else {
        for check in &checks {
            let verdict = if check.is_fine() { "ok" } else { "WRONG" };
            println!("{verdict:6} {:<48} {} differ", check.name, check.error);
        }
        println!(
            "{} trials on {}, {wrong} wrong",
            checks.len(),
            model.device()
        );
    }
    Ok(match wrong {
        0 => Outcome::Fine,
        _ => Outcome::Failed,
    })
}
