//! `v4 generate`: tokens after a prompt, greedy or sampled.

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use tessera::model::sample::{Sampler, Sampling};
use tessera::model::tokenizer::Tokenizer;
use tessera::model::{Logits, Run};

use super::setup::{Options, parse_ids};
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The prompt's token ids as in 1,2,3.
    #[arg(
        long,
        value_name = "IDS",
        required_unless_present = "prompt",
        conflicts_with = "prompt"
    )]
    ids: Option<String>,
    /// The prompt as text, for models with a tokenizer.json.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// 0: always the most likely token.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Draw from the most likely tokens that make up this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f32,
    /// Of the random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Tokens of the prompt that are computed in one call.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Go on after an end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let tokenizer = Tokenizer::open(&args.model)?;
    let prompt = match (&args.ids, &args.prompt, &tokenizer) {
        (Some(ids), ..) => parse_ids(ids)?,
        (None, Some(text), Some(tokenizer)) => tokenizer.encode(text)?,
        (None, Some(_), None) => {
            return Err(format!(
                "{} has no tokenizer.json; give the prompt's token ids with --ids",
                args.model.display()
            )
            .into());
        }
        (None, None, _) => return Err("no prompt; give --ids or --prompt".into()),
    };
    if prompt.is_empty() {
        return Err("the prompt has no tokens".into());
    }
    let sampling = Sampling::new(args.temperature, args.top_p, args.seed)?;
    let model = options.model(&args.model)?;
    let chunk = (args.chunk as usize).min(prompt.len());
    let context = prompt.len() + args.tokens as usize;
    let mut session = options.session(&model, 1, context, chunk)?;
    let mut sampler = Sampler::new(model.device(), 1)?;

    let start = Instant::now();
    let mut next = 0;
    for ids in prompt.chunks(chunk) {
        let output = model.forward(&mut session, &[run_of(ids)], Logits::Last, None)?;
        next = sampler.choose(&model, output.logits, &sampling, &[0], &[0])?[0];
    }
    let prefill = start.elapsed();

    let start = Instant::now();
    let eos = &model.config().eos_token_ids;
    let mut tokens = vec![next];
    show(options, next)?;
    while tokens.len() < args.tokens as usize && (args.ignore_eos || !eos.contains(&next)) {
        let output = model.forward(&mut session, &[run_of(&[next])], Logits::Last, None)?;
        let position = tokens.len() as u32;
        next = sampler.choose(&model, output.logits, &sampling, &[0], &[position])?[0];
        tokens.push(next);
        show(options, next)?;
    }
    let decode = start.elapsed();
    let rate =
        |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let text = tokenizer.map(|t| t.decode(&tokens)).transpose()?;
    let (prefill, decode) = (rate(prompt.len(), prefill), rate(tokens.len() - 1, decode));
    if options.json {
        println!(
            "{}",
            json!({ "tokens": tokens, "text": text, "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode })
        );
    } else {
        println!();
        if let Some(text) = text {
            println!("{text}");
        }
        eprintln!("prefill {prefill:.1} tokens/s, decode {decode:.1} tokens/s");
    }
    Ok(Outcome::Fine)
}

fn run_of(ids: &[u32]) -> Run<'_> {
    Run {
        sequence: 0,
        ids,
        next_ids: None,
    }
}

fn show(options: &Options, token: u32) -> std::io::Result<()> {
    if options.json {
        return Ok(());
    }
    print!("{token} ");
    std::io::stdout().flush()
}
