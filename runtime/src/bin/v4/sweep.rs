//! `v4 bench --preset`: a released model's dimensions with random weights, decoding after contexts that nobody read and reading prompts in
//! chunks, with the time of every launch.
//!
//! Layers are the first of the released configuration, in its order; the draft module is left out. A context is a cache of random entries.
//! Each step of decoding chooses its tokens on the device; the next step feeds others, so that tokens differ.
//!
//! Needs: a device. Keeps: everything that it prints is measured or computed here.

use std::path::PathBuf;
use std::time::Instant;

use tessera::model::cost::Call;
use tessera::model::sample::{Sampler, Sampling};
use tessera::model::{Logits, Model, ModelError, Run, Session};
use tessera_device::{Device, Span};

use super::setup::{Options, released};
use super::sweep_report::{Measured, Report, Spread, trace_events};
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Instead of a model's folder: `flash` or `pro`, with random weights made on the device.
    #[arg(long, value_name = "NAME", value_parser = ["flash", "pro"])]
    pub preset: Option<String>,
    /// With --preset: layers, the first of the released model.
    #[arg(long, default_value_t = 4, value_name = "N")]
    layers: usize,
    /// With --preset: sequences that decode together.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1,8,64",
        value_name = "N,…"
    )]
    batches: Vec<usize>,
    /// With --preset: tokens that each sequence has before it decodes, as in 4K.
    #[arg(long, value_delimiter = ',', default_value = "4K,64K", value_name = "N,…", value_parser = tessera::model::plan::parse_context)]
    contexts: Vec<u64>,
    /// With --preset: tokens of prompts that are read, as in 16K.
    #[arg(long, value_delimiter = ',', default_value = "4K,16K", value_name = "N,…", value_parser = tessera::model::plan::parse_context)]
    prompts: Vec<u64>,
    /// With --preset: tokens of one call while a prompt is read.
    #[arg(long, default_value_t = 4096, value_name = "TOKENS")]
    chunk: usize,
    /// With --preset: steps of decoding in a round.
    #[arg(long, default_value_t = 16, value_name = "N")]
    steps: usize,
    /// With --preset: rounds that are measured; the median counts.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// With --preset: of the random weights.
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// With --preset: every launch of one round of each measurement, as a Chrome trace.
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
}

pub fn run(args: &Args, name: &str, options: &Options) -> CommandResult {
    let (whole, config) = released(name, args.layers)?;
    if args.rounds == 0 || args.steps == 0 || args.chunk == 0 || args.batches.contains(&0) {
        return Err("--rounds, --steps, --chunk and --batches must be at least 1".into());
    }
    let model = options.synthetic(config, args.seed)?;
    model.device().finish()?;
    let mut report = Report::new(&model, name, &whole, copy_speed(model.device())?);
    if !options.json {
        report.print_head();
    }
    let mut events = Vec::new();
    let decodes = (args.contexts.iter()).flat_map(|&c| args.batches.iter().map(move |&b| (c, b)));
    for (context, batch) in decodes {
        let what = format!("decode, batch {batch}, context {context}");
        match decode(&model, args, options, batch, context as usize) {
            Ok((measured, spans)) => {
                trace_events(&what, &spans, &mut events);
                report.add(&model, what, measured, &spans, options.json);
            }
            Err(why) => report.failed(what, &why, options.json)?,
        }
    }
    for &prompt in &args.prompts {
        let what = format!("prefill, {prompt} tokens in chunks of {}", args.chunk);
        match prefill(&model, args, options, prompt as usize) {
            Ok((measured, spans)) => {
                trace_events(&what, &spans, &mut events);
                report.add(&model, what, measured, &spans, options.json);
            }
            Err(why) => report.failed(what, &why, options.json)?,
        }
    }
    if let Some(path) = &args.trace {
        std::fs::write(
            path,
            serde_json::to_vec(&serde_json::json!({ "traceEvents": events }))?,
        )?;
    }
    report.finish(options.json);
    Ok(Outcome::Fine)
}

/// Bytes per second that a copy reads and writes; on a CPU nobody asks.
fn copy_speed(device: &Device) -> Result<Option<f64>, ModelError> {
    let Device::Cuda(gpu) = device else {
        return Ok(None);
    };
    let (mut seconds, bytes) = gpu.time_copy(9)?;
    seconds.sort_by(f64::total_cmp);
    Ok(Some(bytes as f64 / seconds[seconds.len() / 2]))
}

/// Any tokens do; these reach all of the vocabulary.
fn token(model: &Model, number: usize) -> u32 {
    (number as u32).wrapping_mul(2_654_435_761) % model.config().vocab_size as u32
}

fn decode(
    model: &Model,
    args: &Args,
    options: &Options,
    batch: usize,
    context: usize,
) -> Result<(Measured, Vec<Span>), ModelError> {
    // Two steps before: the first launches everything once, the second is recorded. One after: the timeline.
    let steps = 2 + args.rounds * args.steps + 1;
    let most = model.config().max_position_embeddings;
    let room = (context + steps).min(most);
    let start = room.saturating_sub(steps).min(context);
    let mut session = options.session(model, batch, room, batch)?;
    session.fill_random(model, start, args.seed)?;
    let mut sampler = Sampler::new(model.device(), batch)?;
    let (requests, positions) = (vec![0; batch], vec![0; batch]);
    let mut fed = 0;
    let mut step = |session: &mut Session| -> Result<(), ModelError> {
        let ids: Vec<u32> = (0..batch).map(|s| token(model, fed + s)).collect();
        fed += batch;
        let runs: Vec<Run> = (0..batch).map(|s| run_of(s, &ids[s..=s])).collect();
        let output = model.forward(session, &runs, Logits::Last, None)?;
        sampler.choose(
            model,
            output.logits,
            &Sampling::Greedy,
            &requests,
            &positions,
        )?;
        Ok(())
    };
    step(&mut session)?;
    step(&mut session)?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        let from = Instant::now();
        for _ in 0..args.steps {
            step(&mut session)?;
        }
        model.device().finish()?;
        rounds.push(from.elapsed().as_secs_f64() / args.steps as f64);
    }
    session.replay_steps(false);
    let spans = timeline(model, || step(&mut session))?;
    let call = Call {
        sequences: batch,
        tokens: 1,
        context: start + steps,
        logits: batch,
    };
    let measured = Measured {
        seconds: Spread::of(rounds),
        tokens: batch,
        calls: vec![call],
        cache_bytes: session.cache().bytes(),
    };
    Ok((measured, spans))
}

fn prefill(
    model: &Model,
    args: &Args,
    options: &Options,
    prompt: usize,
) -> Result<(Measured, Vec<Span>), ModelError> {
    let chunk = args.chunk.min(prompt);
    let mut session = options.session(model, 1, prompt, chunk)?;
    let ids: Vec<u32> = (0..prompt).map(|at| token(model, at)).collect();
    let read = |session: &mut Session| -> Result<(), ModelError> {
        session.reset(0);
        for ids in ids.chunks(chunk) {
            model.forward(session, &[run_of(0, ids)], Logits::Last, None)?;
        }
        model.device().finish()?;
        Ok(())
    };
    read(&mut session)?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        let from = Instant::now();
        read(&mut session)?;
        rounds.push(from.elapsed().as_secs_f64());
    }
    let spans = timeline(model, || read(&mut session))?;
    let calls = (0..prompt).step_by(chunk).map(|from| {
        let tokens = chunk.min(prompt - from);
        Call {
            sequences: 1,
            tokens,
            context: from + tokens,
            logits: 1,
        }
    });
    let measured = Measured {
        seconds: Spread::of(rounds),
        tokens: prompt,
        calls: calls.collect(),
        cache_bytes: session.cache().bytes(),
    };
    Ok((measured, spans))
}

fn run_of(sequence: usize, ids: &[u32]) -> Run<'_> {
    Run {
        sequence,
        ids,
        next_ids: None,
    }
}

fn timeline(
    model: &Model,
    work: impl FnOnce() -> Result<(), ModelError>,
) -> Result<Vec<Span>, ModelError> {
    let library = model.kernels().library();
    let start = library.start_timeline()?;
    let worked = work();
    let spans = library.stop_timeline(start)?;
    worked.map(|()| spans)
}
