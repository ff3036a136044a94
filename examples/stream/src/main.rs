//! Loads a DeepSeek-V4 checkpoint and prints the tokens after a prompt as they come: text where the folder has a tokenizer, ids where not.
//!
//! `stream DIR PROMPT [TOKENS]`; without a tokenizer the prompt is token ids as in 1,2,3.

use std::error::Error;
use std::io::Write;
use std::path::Path;

use tessera::model::kernels::Kernels;
use tessera::model::sample::{Sampler, Sampling};
use tessera::model::tokenizer::Tokenizer;
use tessera::model::{Logits, Model, Run};
use tessera_device::{CpuOptions, Device};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, prompt, most) = match &arguments[..] {
        [folder, prompt] => (folder, prompt, 64),
        [folder, prompt, most] => (folder, prompt, most.parse::<u32>()?),
        _ => return Err("usage: stream DIR PROMPT [TOKENS]".into()),
    };
    let folder = Path::new(folder);
    let tokenizer = Tokenizer::open(folder)?;
    let prompt = match &tokenizer {
        Some(tokenizer) => tokenizer.encode(prompt)?,
        None => prompt
            .split(',')
            .map(|id| id.trim().parse())
            .collect::<Result<_, _>>()
            .map_err(|_| "the folder has no tokenizer.json; give token ids as in 1,2,3")?,
    };

    // The kernels are in this program; loading them takes a device.
    let kernels = Kernels::load(&Device::cpu_with(CpuOptions::default())?)?;
    let model = Model::load(folder, kernels, &mut |_, _| {})?;
    let mut session = model.session(1, prompt.len() + most as usize, prompt.len())?;
    let mut sampler = Sampler::new(model.device(), 1)?;

    let mut text = tokenizer.as_ref().map(Tokenizer::stream);
    let mut ids = prompt;
    for position in 0..most {
        let run = Run {
            sequence: 0,
            ids: &ids,
            next_ids: None,
        };
        let output = model.forward(&mut session, &[run], Logits::Last, None)?;
        let next = sampler.choose(&model, output.logits, &Sampling::Greedy, &[0], &[position])?[0];
        if model.config().eos_token_ids.contains(&next) {
            break;
        }
        match &mut text {
            Some(text) => print!("{}", text.push(next)?),
            None => print!("{next} "),
        }
        std::io::stdout().flush()?;
        ids = vec![next];
    }
    println!();
    Ok(())
}
