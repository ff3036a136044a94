//! `v4 bench`: tokens per second of prefill and decode, and where the time goes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;
use tessera::model::{Logits, Model, Run};
use tessera_device::KernelTime;

use super::setup::Options;
use super::{CommandResult, Outcome};

/// Time by kernel.
type Profile = BTreeMap<String, KernelTime>;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
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
    let model = options.model(&args.model)?;
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
    let mut session = model.session(batch, prompt + decode, batch * prompt)?;
    let (mut prefill_times, mut decode_times) = (Vec::new(), Vec::new());
    let mut profiles = (Profile::new(), Profile::new());
    for repeat in 0..args.repeats {
        (0..batch).for_each(|sequence| session.reset(sequence));
        let profiled = args.kernels && repeat + 1 == args.repeats;
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
            Ok(start.elapsed())
        };
        start(&model, profiled);
        prefill_times.push(step(&ids[..prompt])?);
        profiles.0 = stop(&model, profiled);
        start(&model, profiled);
        let mut total = Duration::ZERO;
        for id in &ids[..decode] {
            total += step(std::slice::from_ref(id))?;
        }
        decode_times.push(total);
        profiles.1 = stop(&model, profiled);
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
                "prefill_tokens_per_s": prefill_rate, "decode_tokens_per_s": decode_rate,
                "prefill_kernels": table(&profiles.0), "decode_kernels": table(&profiles.1),
            })
        );
    } else {
        println!("prefill of {prompt} tokens x {batch}: {prefill_rate:.1} tokens/s");
        println!("decode of {decode} tokens x {batch}:  {decode_rate:.1} tokens/s");
        if args.kernels {
            print_profile("prefill", &profiles.0);
            print_profile("decode", &profiles.1);
        }
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

fn print_profile(what: &str, profile: &Profile) {
    let total: Duration = profile.values().map(|kernel| kernel.time).sum();
    let mut rows: Vec<_> = profile.iter().collect();
    rows.sort_by_key(|(_, kernel)| std::cmp::Reverse(kernel.time));
    println!(
        "\n{what:<20} {:>9} {:>12} {:>9} {:>7}",
        "launches", "ms", "us each", "share"
    );
    for (name, KernelTime { launches, time }) in rows {
        let name = name.rsplit("::").next().unwrap_or(name);
        println!(
            "{name:<20} {launches:>9} {:>12.3} {:>9.1} {:>6.1}%",
            time.as_secs_f64() * 1e3,
            time.as_secs_f64() * 1e6 / (*launches).max(1) as f64,
            100.0 * time.as_secs_f64() / total.as_secs_f64().max(1e-12)
        );
    }
}
