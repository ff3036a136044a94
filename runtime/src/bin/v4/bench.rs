//! `v4 bench`: tokens per second of prefill and decode, and where the time goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tessera::model::{Logits, Model, Run};
use tessera_device::cpu::features;
use tessera_device::{Device, KernelTime};

use super::setup::Options;
use super::{CommandResult, Outcome, sweep};

/// Time by kernel.
type Profile = BTreeMap<String, KernelTime>;

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
    #[command(flatten)]
    sweep: sweep::Args,
    /// Tokens of the prompt, computed in one call.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens decoded after it, one by one.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    decode: u32,
    /// Sequences that run together.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    batch: u32,
    /// Times each is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Also show the time of every kernel.
    #[arg(long)]
    kernels: bool,
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let folder = match (&args.model, &args.sweep.preset) {
        (_, Some(preset)) => return sweep::run(&args.sweep, preset, options),
        (Some(folder), None) => folder,
        (None, None) => unreachable!("one of the two is required"),
    };
    let model = options.model(folder)?;
    let (prompt, decode, batch) = (
        args.prompt as usize,
        args.decode as usize,
        args.batch as usize,
    );
    let vocab = model.config().vocab_size as u32;
    // Any tokens do; these reach all of the vocabulary.
    let ids: Vec<u32> = (0..prompt.max(decode) as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) % vocab)
        .collect();
    let mut session = options.session(&model, batch, prompt + decode, batch * prompt)?;
    let (mut prefill_times, mut decode_times) = (Vec::new(), Vec::new());
    let mut profiles = (Profile::new(), Profile::new());
    // Measuring kernels costs time of its own, so that is a round that does not count.
    for repeat in 0..args.repeats + u32::from(args.kernels) {
        let profiled = repeat == args.repeats;
        if profiled {
            // Recorded steps show no kernels.
            session.replay_steps(false);
        }
        (0..batch).for_each(|sequence| session.reset(sequence));
        let mut step = |ids: &[u32]| -> Result<Duration, Box<dyn std::error::Error>> {
            let runs: Vec<Run> = (0..batch)
                .map(|sequence| Run {
                    sequence,
                    ids,
                    next_ids: None,
                })
                .collect();
            let start = Instant::now();
            model.forward(&mut session, &runs, Logits::Last, None)?;
            model.device().finish()?;
            Ok(start.elapsed())
        };
        start(&model, profiled);
        let prefill = step(&ids[..prompt])?;
        profiles.0 = stop(&model, profiled);
        start(&model, profiled);
        let mut total = Duration::ZERO;
        for id in &ids[..decode] {
            total += step(std::slice::from_ref(id))?;
        }
        profiles.1 = stop(&model, profiled);
        if !profiled {
            prefill_times.push(prefill);
            decode_times.push(total);
        }
    }
    let rate = |tokens: usize, mut times: Vec<Duration>| {
        times.sort();
        (tokens * batch) as f64 / times[times.len() / 2].as_secs_f64()
    };
    let (prefill_rate, decode_rate) = (rate(prompt, prefill_times), rate(decode, decode_times));
    if options.json {
        let table = |profile: &Profile| -> serde_json::Value {
            let rows = profile.iter().map(|(name, KernelTime { launches, time })| {
                (
                    name.to_string(),
                    json!({ "launches": launches, "seconds": time.as_secs_f64() }),
                )
            });
            serde_json::Value::Object(rows.collect())
        };
        println!(
            "{}",
            json!({
                "prompt": prompt, "decode": decode, "batch": batch,
                "device": model.kernels().library().device().to_string(), "variant": variant(&model),
                "weight_bytes": model.weight_bytes(),
                "prefill_tokens_per_s": prefill_rate, "decode_tokens_per_s": decode_rate,
                "prefill_kernels": table(&profiles.0), "decode_kernels": table(&profiles.1),
            })
        );
    } else {
        if args.kernels {
            print_profiles([&profiles.0, &profiles.1]);
        }
        let library = model.kernels().library();
        let instances: usize = library.kernels().map(|k| k.instances().count()).sum();
        let ran = match args.kernels {
            true => format!(
                ", {} of them ran",
                profiles
                    .0
                    .keys()
                    .chain(profiles.1.keys())
                    .collect::<BTreeSet<_>>()
                    .len()
            ),
            false => String::new(),
        };
        println!(
            "model    {}: {} layers, {:.1} MB of weights",
            folder.display(),
            model.config().layers.len(),
            model.weight_bytes() as f64 / 1e6
        );
        println!("device   {}, {}", library.device(), variant(&model));
        println!(
            "kernels  {} in {instances} instances{ran}",
            library.kernels().count()
        );
        println!("prefill  {prompt} tokens x {batch}: {prefill_rate:.1} tokens/s");
        println!("decode   {decode} tokens x {batch}: {decode_rate:.1} tokens/s");
    }
    Ok(Outcome::Fine)
}

fn start(model: &Model, profiled: bool) {
    if profiled {
        model.kernels().library().start_profile();
    }
}

fn stop(model: &Model, profiled: bool) -> Profile {
    match profiled {
        true => model.kernels().library().stop_profile(),
        false => Profile::new(),
    }
}

/// The instruction set of the kernels' code.
fn variant(model: &Model) -> &'static str {
    if let Device::Cuda(_) = model.device() {
        return "sm_90a";
    }
    let mut instances = model
        .kernels()
        .library()
        .kernels()
        .flat_map(|k| k.instances());
    let compiled = instances
        .next()
        .map(|entry| entry.cpu.iter().map(|code| code.variant));
    match compiled.map(|compiled| features::choose(compiled, None)) {
        Some(Ok(variant)) => features::name(variant),
        _ => "no code",
    }
}

/// Kernels by their time in both, one row each.
fn print_profiles(profiles: [&Profile; 2]) {
    let totals = profiles.map(|profile| profile.values().map(|k| k.time).sum::<Duration>());
    let names: BTreeSet<&String> = profiles.iter().flat_map(|p| p.keys()).collect();
    let share = |which: usize, name: &String| -> f64 {
        let time = profiles[which].get(name).map_or(Duration::ZERO, |k| k.time);
        time.as_secs_f64() / totals[which].as_secs_f64().max(1e-12)
    };
    let mut names: Vec<&String> = names.into_iter().collect();
    let both = |name: &String| share(0, name) + share(1, name);
    names.sort_by(|a, b| both(b).total_cmp(&both(a)));
    println!("{:<18} {:>30}   {:>30}", "", "prefill", "decode");
    let columns = format!("{:>9} {:>12} {:>7}", "launches", "ms", "share");
    println!("{:<18} {columns}   {columns}", "kernel");
    for name in names {
        let cell = |which: usize| match profiles[which].get(name) {
            Some(KernelTime { launches, time }) => format!(
                "{launches:>9} {:>12.3} {:>6.1}%",
                time.as_secs_f64() * 1e3,
                100.0 * share(which, name)
            ),
            None => format!("{:>30}", "-"),
        };
        let short = name.rsplit("::").next().unwrap_or(name);
        println!("{short:<18} {}   {}", cell(0), cell(1));
    }
    println!();
}
