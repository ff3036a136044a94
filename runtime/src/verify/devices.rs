//! One model on two devices: what each step computes from equal inputs, and what each block does.
//!
//! The reference reads a prompt in chunks, then token by token, and every value that it names is kept for the length of a call. The other
//! device runs the call twice, each time with a cache of its own:
//! - **components**: every value is replaced by the reference's once it has been compared, so that each step is fed with equal inputs and its
//!   error is its own. Picks must be the same;
//! - **blocks**: only the streams between blocks, and the picks of experts and entries, are the reference's. A block's error is that of all its
//!   steps one after another, and of a cache that the other device filled by itself.
//!
//! # Bounds
//! All are relative errors, root mean square over root mean square, of a value over all tokens of a phase (prompt, single tokens).
//!
//! Components, by what lies between a value and its inputs:
//! - sums in f32: 5e-6, some forty units in the last place, for sums of up to 16 K products in another order;
//! - one rounding to bf16 after such sums: 1e-3. A value lands on the other side of a rounding boundary with a probability of its error over its
//!   unit, 5e-6 over 2^-8, and is then off by 2^-8: √(5e-6 · 2^-8) = 1.4e-4, some seven times less;
//! - sums of FP8 products on tensor cores, of which some 14 bits are kept within 128 of k: an error of 2^-13 before the rounding to bf16, √(2^-13 · 2^-8) =
//!   7e-4 after it: 3e-3, and 4e-3 where the head's norm rounds three times more;
//! - the same and a rounding to e4m3 (`attn.kv`, the products between the halves of an expert): a difference d becomes a step of s with probability
//!   d / s, so an error of δ becomes √(δ s), s = 2^-3 of the value at most: √(7e-4 / 8) = 9e-3: 1e-2, and 1.2e-2 for an expert of two such products;
//! - the same and a rounding to e2m1, whose steps are up to a half (`idx.q`): √(7e-4 / 2) = 2e-2: 4e-2; from sums in f32 (`idx.k`) 2e-2.
//!
//! These are the bounds that the golden cases have for sums of about 14 bits.
//!
//! Blocks: the law √(δ s) again, with the mean of s, 0.07 of a value, from rounding to rounding. Queries 3e-3 → 1.5e-2; with keys of 1.5e-2 the attention 2.5e-2,
//! its output, quantised once more, 4.2e-2; of that some 0.7 reach the experts' input, 3e-2 → 4.6e-2 → times √2 for the product of two 6.5e-2 → 6.8e-2. Streams
//! hold about 0.7 of each, 5.5e-2 together: **6e-2**. A single token, where roundings may all fall badly, with the largest s, 2^-3: **0.15**.

use std::collections::BTreeMap;

use super::Check;
use super::forced::{Forced, Seen, StoredValue};
use crate::determinism::Random;
use crate::model::config::{Config, LayerKind, WeightFormat};
use crate::model::{Logits, Model, ModelError, Run};

/// What is run.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Tokens of the prompt, which comes in chunks.
    pub prompt: usize,
    pub chunk: usize,
    /// Tokens that come one by one.
    pub decode: usize,
    pub seed: u64,
}

impl Trial {
    pub fn calls(&self) -> usize {
        self.prompt.div_ceil(self.chunk.max(1)) + self.decode
    }
}

/// Of blocks, and of a block's single token.
const BLOCK: f64 = 6e-2;
const TOKEN: f64 = 0.15;

/// Runs `trial` with random tokens on both devices, and calls `progress` after each call.
///
/// # Errors
/// [`ModelError`]: models of other configurations or of a form that has no bounds, a trial that they have no room for, a call that failed.
pub fn compare(
    reference: &Model,
    other: &Model,
    trial: &Trial,
    progress: &mut dyn FnMut(),
) -> Result<Vec<Check>, ModelError> {
    let config = reference.config();
    if config != other.config() {
        return Err(ModelError::Input(
            "the two models have different configurations".into(),
        ));
    }
    if config.weight_format == WeightFormat::Plain {
        return Err(ModelError::Input(
            "the bounds are those of quantised products, and this model has none; `v4 verify` compares plain models".into(),
        ));
    }
    if trial.prompt == 0 || trial.chunk == 0 {
        return Err(ModelError::Input(format!(
            "a prompt of {} tokens in chunks of {}; both must be at least 1",
            trial.prompt, trial.chunk
        )));
    }
    let length = trial.prompt + trial.decode;
    let most = trial.chunk.min(trial.prompt);
    let ids = Random(trial.seed).ids(length, config.vocab_size);
    let mut own = reference.session(1, length, most)?;
    let mut components = other.session(1, length, most)?;
    let mut blocks = other.session(1, length, most)?;
    let mut tallies = BTreeMap::new();
    let mut from = 0;
    while from < length {
        let (phase, to) = match from < trial.prompt {
            true => ("prefill", (from + trial.chunk).min(trial.prompt)),
            false => ("decode", from + 1),
        };
        let run = [Run {
            sequence: 0,
            ids: &ids[from..to],
            next_ids: None,
        }];
        let mut expected = Forced::default();
        reference.forward(&mut own, &run, Logits::All, Some(&mut expected))?;
        let expected = expected.seen;
        let call = Call {
            config,
            phase,
            from,
            to,
        };

        let mut fed = Forced::with(&expected, |_| true);
        other.forward(&mut components, &run, Logits::All, Some(&mut fed))?;
        call.components(&expected, &fed.seen, &mut tallies);

        let mut fed = Forced::with(&expected, |name| is_stream(name) || is_pick(name));
        other.forward(&mut blocks, &run, Logits::All, Some(&mut fed))?;
        call.blocks(&expected, &fed.seen, &mut tallies);
        from = to;
        progress();
    }
    Ok(tallies.into_values().map(Tally::check).collect())
}

impl Forced {
    /// Puts what another pass recorded in the place of what is computed.
    fn with(seen: &BTreeMap<String, Seen>, takes: impl Fn(&str) -> bool) -> Forced {
        let values = seen.iter().filter(|(name, _)| takes(name));
        Forced {
            values: values
                .map(|(name, seen)| {
                    let value = StoredValue {
                        values: seen.values.clone(),
                        tokens: None,
                    };
                    (name.clone(), value)
                })
                .collect(),
            seen: BTreeMap::new(),
        }
    }
}

fn is_stream(name: &str) -> bool {
    name == "embedded" || name.starts_with("hidden.")
}

fn is_pick(name: &str) -> bool {
    name.ends_with("idx.topk") || name.ends_with("gate.topk_idx") || name.ends_with("gate.topk_w")
}

/// One call's tokens, `from..to` of the sequence.
struct Call<'a> {
    config: &'a Config,
    phase: &'static str,
    from: usize,
    to: usize,
}

impl Call<'_> {
    fn components(
        &self,
        expected: &BTreeMap<String, Seen>,
        found: &BTreeMap<String, Seen>,
        tallies: &mut BTreeMap<String, Tally>,
    ) {
        let mut names: Vec<&String> = expected.keys().chain(found.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let base = name.split_once('.').map_or(&name[..], |(part, rest)| {
                match part.strip_prefix('L') {
                    Some(_) => rest,
                    None => name,
                }
            });
            let Some(measure) = measure_of(base) else {
                continue;
            };
            let full = format!("{}.{name}", self.phase);
            let tally = (tallies.entry(full.clone())).or_insert_with(|| Tally::new(full, measure));
            let (Some(e), Some(f)) = (expected.get(name), found.get(name)) else {
                // Recorded on one of the devices only.
                tally.broken = true;
                continue;
            };
            let tokens = self.to - self.from;
            let (mut e, mut f) = (e.values.clone(), f.values.clone());
            self.keep_defined(name, base, &mut e, &mut f);
            tally.add(&e, &f, tokens);
        }
    }

    fn blocks(
        &self,
        expected: &BTreeMap<String, Seen>,
        found: &BTreeMap<String, Seen>,
        tallies: &mut BTreeMap<String, Tally>,
    ) {
        for (name, e) in (expected.iter()).filter(|(name, _)| name.starts_with("hidden.")) {
            for (what, measure) in [
                ("block", Measure::Error(BLOCK)),
                ("block, worst token", Measure::WorstToken(TOKEN)),
            ] {
                let full = format!("{}.{what}.{name}", self.phase);
                let tally =
                    (tallies.entry(full.clone())).or_insert_with(|| Tally::new(full, measure));
                match found.get(name) {
                    Some(f) => tally.add(&e.values, &f.values, self.to - self.from),
                    None => tally.broken = true,
                }
            }
        }
    }

    /// Leaves the numbers that a step defines: rows of the tokens that close a block, entries that are closed in this call, scores of entries
    /// that a token sees. The others hold anything.
    fn keep_defined(&self, name: &str, base: &str, e: &mut Vec<f64>, f: &mut Vec<f64>) {
        let tokens = self.to - self.from;
        let layer = (name.strip_prefix('L').and_then(|n| n.split_once('.')))
            .and_then(|(layer, _)| layer.parse::<usize>().ok());
        let kind = layer.and_then(|layer| self.config.layers.get(layer));
        let ratio = kind.copied().map_or(1, LayerKind::ratio).max(1);
        match base {
            "comp.pooled" | "idx.pooled" => {
                let closes =
                    |row: usize| row < tokens && (self.from + row + 1).is_multiple_of(ratio);
                for values in [e, f] {
                    let width = (values.len() / tokens).max(1);
                    let mut index = 0;
                    values.retain(|_| {
                        index += 1;
                        closes((index - 1) / width)
                    });
                }
            }
            "comp.kv" | "idx.k" => {
                let width = match base {
                    "idx.k" => self.config.index_head_dim,
                    _ => self.config.head_dim,
                };
                let closed = self.from / ratio * width..self.to / ratio * width;
                for values in [e, f] {
                    *values = values.get(closed.clone()).unwrap_or(&[]).to_vec();
                }
            }
            "idx.scores" => {
                for values in [e, f] {
                    let width = (values.len() / tokens).max(1);
                    for (row, scores) in values.chunks_mut(width).enumerate() {
                        let seen = ((self.from + row + 1) / ratio).min(scores.len());
                        scores[seen..].fill(0.0);
                    }
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone, Copy)]
enum Measure {
    /// Relative error of all tokens.
    Error(f64),
    /// The largest relative error of a token's numbers.
    WorstToken(f64),
    /// Share of the tokens of which a number is another.
    OtherTokens(f64),
}

/// How a component is compared; `None` for those that others contain.
fn measure_of(base: &str) -> Option<Measure> {
    Some(match base {
        "embedded" => Measure::OtherTokens(0.0),
        // Of equal scores.
        "idx.topk" => Measure::OtherTokens(0.0),
        // Scores in f32, off by 5e-6: of tokens whose last pick and first rejected expert lie so close there is less than one in a thousand.
        "gate.topk_idx" => Measure::OtherTokens(1e-3),
        "gate.topk_w" | "moe.routed" | "head.collapsed" => return None,
        "attn.q_residual" | "attn.out" => Measure::Error(3e-3),
        "attn.q" => Measure::Error(4e-3),
        "attn.kv" => Measure::Error(1e-2),
        "idx.q" => Measure::Error(4e-2),
        "idx.k" => Measure::Error(2e-2),
        "moe.expert_out" => Measure::Error(1e-2),
        "moe.shared" => Measure::Error(1.2e-2),
        "gate.logits" | "gate.scores" => Measure::Error(5e-6),
        _ => match base.split_once("_hc.") {
            Some((_, "mix" | "pre" | "post" | "comb")) => Measure::Error(5e-6),
            // What is rounded to bf16 once.
            _ => Measure::Error(1e-3),
        },
    })
}

/// One comparison, over calls.
struct Tally {
    name: String,
    measure: Measure,
    /// Squares of the differences, and of the expected numbers.
    error: f64,
    size: f64,
    worst: f64,
    other_tokens: usize,
    tokens: usize,
    /// The two have not the same numbers to compare.
    broken: bool,
}

impl Tally {
    fn new(name: String, measure: Measure) -> Tally {
        Tally {
            name,
            measure,
            error: 0.0,
            size: 0.0,
            worst: 0.0,
            other_tokens: 0,
            tokens: 0,
            broken: false,
        }
    }

    fn add(&mut self, expected: &[f64], found: &[f64], tokens: usize) {
        self.broken |= expected.len() != found.len();
        self.tokens += tokens;
        let width = expected.len().div_ceil(tokens.max(1)).max(1);
        for (e, f) in expected.chunks(width).zip(found.chunks(width)) {
            let (mut error, mut size) = (0.0, 0.0);
            for (e, f) in e.iter().zip(f) {
                // Equal infinities differ by nothing.
                if e != f {
                    error += (e - f) * (e - f);
                }
                size += e * e;
            }
            self.error += error;
            self.size += size;
            let token = match error == 0.0 {
                true => 0.0,
                false => (error / size).sqrt(),
            };
            // Not `max`, which would pass over a NaN.
            self.worst = if token <= self.worst {
                self.worst
            } else {
                token
            };
            self.other_tokens += usize::from(error != 0.0);
        }
    }

    fn check(self) -> Check {
        let (error, bound) = match self.measure {
            Measure::Error(bound) if self.error == 0.0 => (0.0, bound),
            Measure::Error(bound) => ((self.error / self.size).sqrt(), bound),
            Measure::WorstToken(bound) => (self.worst, bound),
            Measure::OtherTokens(bound) => {
                (self.other_tokens as f64 / self.tokens.max(1) as f64, bound)
            }
        };
        Check {
            name: self.name,
            error: if self.broken { f64::INFINITY } else { error },
            bound,
        }
    }
}
