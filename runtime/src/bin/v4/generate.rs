//! `v4 generate`: tokens after a prompt or in answer to a conversation, greedy or sampled.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;
use tessera::chat::{Answer, Conversation, Thinking};
use tessera::model::sample::{Sampler, Sampling};
use tessera::model::tokenizer::{TextStream, Tokenizer};
use tessera::model::{Logits, Run};

use super::setup::{Options, parse_ids};
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    #[command(flatten)]
    prompt: Prompt,
    /// With --chat or --messages: whether the model reasons first.
    #[arg(long, value_enum, default_value_t = ThinkingKind::Off)]
    thinking: ThinkingKind,
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

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Prompt {
    /// The prompt's token ids as in 1,2,3.
    #[arg(long, value_name = "IDS")]
    ids: Option<String>,
    /// The prompt as text that the model goes on with, for models with a tokenizer.json.
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A question, in the model's chat format.
    #[arg(long, value_name = "TEXT")]
    chat: Option<String>,
    /// A conversation in the model's chat format: a JSON list of messages, or an object of `messages` and `tools`.
    #[arg(long, value_name = "FILE.json")]
    messages: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ThinkingKind {
    Off,
    On,
    /// Asked for the greatest effort.
    Max,
}

impl ThinkingKind {
    fn thinking(self) -> Thinking {
        match self {
            ThinkingKind::Off => Thinking::Off,
            ThinkingKind::On => Thinking::On,
            ThinkingKind::Max => Thinking::Max,
        }
    }
}

impl Args {
    fn prompt(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>, Box<dyn Error>> {
        if let Some(ids) = &self.prompt.ids {
            return Ok(parse_ids(ids)?);
        }
        let Some(tokenizer) = tokenizer else {
            return Err(format!(
                "{} has no tokenizer.json; give the prompt's token ids with --ids",
                self.model.display()
            )
            .into());
        };
        let conversation = match (
            &self.prompt.prompt,
            &self.prompt.chat,
            &self.prompt.messages,
        ) {
            (Some(text), ..) => return Ok(tokenizer.encode(text)?),
            (_, Some(question), _) => Conversation::of(question),
            (.., Some(path)) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|why| format!("{}: {why}", path.display()))?;
                Conversation::from_json(&text)?
            }
            _ => return Err("no prompt; give --ids, --prompt, --chat or --messages".into()),
        };
        let prompt = conversation.prompt(self.thinking.thinking())?;
        Ok(tokenizer.encode_chat(&prompt)?)
    }

    fn is_chat(&self) -> bool {
        self.prompt.chat.is_some() || self.prompt.messages.is_some()
    }
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let tokenizer = Tokenizer::open(&args.model)?;
    let prompt = args.prompt(tokenizer.as_ref())?;
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
    let mut text = tokenizer.as_ref().map(Tokenizer::stream);
    show(options, text.as_mut(), next)?;
    while tokens.len() < args.tokens as usize && (args.ignore_eos || !eos.contains(&next)) {
        let output = model.forward(&mut session, &[run_of(&[next])], Logits::Last, None)?;
        let position = tokens.len() as u32;
        next = sampler.choose(&model, output.logits, &sampling, &[0], &[position])?[0];
        tokens.push(next);
        show(options, text.as_mut(), next)?;
    }
    let decode = start.elapsed();
    let rate =
        |tokens: usize, time: std::time::Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    let (prefill, decode) = (rate(prompt.len(), prefill), rate(tokens.len() - 1, decode));
    if options.json {
        let text = tokenizer.as_ref().map(|t| t.decode(&tokens)).transpose()?;
        let mut result = json!({ "tokens": tokens, "text": text, "prefill_tokens_per_s": prefill, "decode_tokens_per_s": decode });
        if let (Some(tokenizer), true) = (&tokenizer, args.is_chat()) {
            let text = tokenizer.decode_chat(&tokens)?;
            match Answer::parse(&text, args.thinking.thinking()) {
                Ok(answer) => result["answer"] = json!(answer),
                // The model is free to write anything.
                Err(why) => result["no_answer"] = json!(why.to_string()),
            }
        }
        println!("{result}");
    } else {
        println!();
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

/// A token as it comes: its text where there is a tokenizer, else its id.
fn show(
    options: &Options,
    text: Option<&mut TextStream>,
    token: u32,
) -> Result<(), Box<dyn Error>> {
    if options.json {
        return Ok(());
    }
    match text {
        Some(text) => print!("{}", text.push(token)?),
        None => print!("{token} "),
    }
    Ok(std::io::stdout().flush()?)
}
