//! Running a golden case: a small model beside what another implementation computed with it.
//!
//! Needs: a folder with `config.json`, `model.safetensors`, `io.safetensors` and `trace.safetensors`. Every stored length runs whole, in
//! chunks of 7, token by token and one sequence at a time; the last three must have the bits of the first.
//! The bounds are those of the files' own README: five times the noise between evaluation orders.

pub mod devices;
mod forced;
mod measures;
mod quantised;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tessera_artifact::DType;
use tessera_device::{Tensor, View};

use crate::model::config::LayerKind;
use crate::model::kernels::GreedyArgs;
use crate::model::{Logits, Model, ModelError, Run, Session, Trace};
use crate::weights::SafetensorsFile;

/// One comparison; exact ones count what differs and have the bound 0.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Check {
    pub name: String,
    pub error: f64,
    pub bound: f64,
}

impl Check {
    pub fn is_fine(&self) -> bool {
        // Not `error > bound`: a NaN is not fine.
        self.error <= self.bound
    }
}

const LOGITS_BOUND: f64 = 1e-4;
const HIDDEN_BOUND: f64 = 5e-4;
/// Of the largest magnitude in the tensor.
const COMPONENT_BOUND: f64 = 2e-5;
const CHUNK: usize = 7;

/// Runs everything that the case in `folder` stores, and reports each comparison to `progress`.
///
/// # Errors
/// [`ModelError`]: a file that is not there or not as it should be, or a call that failed. Wrong numbers are no error but a check that
/// is not fine.
pub fn verify(
    model: &Model,
    folder: &Path,
    progress: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>, ModelError> {
    let io = SafetensorsFile::open(&folder.join("io.safetensors"))?;
    let trace = SafetensorsFile::open(&folder.join("trace.safetensors"))?;
    if io.get("r0.input_ids").is_some() {
        return quantised::verify(model, folder, io, trace, progress);
    }
    let mut case = Case {
        model,
        io,
        trace,
        checks: Vec::new(),
        progress,
    };
    let lengths = case.lengths();
    for &length in &lengths {
        case.length(length, Some(&length) == lengths.last())?;
    }
    case.frequencies()?;
    case.greedy()?;
    Ok(case.checks)
}

struct Case<'a> {
    model: &'a Model,
    io: SafetensorsFile,
    trace: SafetensorsFile,
    checks: Vec<Check>,
    progress: &'a mut dyn FnMut(&Check),
}

/// What one way of feeding a set of sequences gave, `[B, S, V]` each.
#[derive(Default, PartialEq)]
struct Fed {
    logits: Vec<f32>,
    draft: Vec<f32>,
}

impl Case<'_> {
    /// Lengths of the stored sequences, rising; the trace is of the last.
    fn lengths(&self) -> Vec<usize> {
        let length = |name: &str| {
            name.strip_prefix("len")?
                .strip_suffix(".logits")?
                .parse()
                .ok()
        };
        let lengths: BTreeSet<usize> = self.io.tensors().filter_map(|t| length(t.name)).collect();
        lengths.into_iter().collect()
    }

    fn length(&mut self, length: usize, traced: bool) -> Result<(), ModelError> {
        let at = format!("len{length}.");
        let ids = self.ids(&format!("{at}input_ids"))?;
        let next = match self.io.get(&format!("{at}mtp.input_ids")) {
            Some(_) if self.model.has_draft() => Some(self.ids(&format!("{at}mtp.input_ids"))?),
            _ => None,
        };
        let next = next.as_deref();

        let mut seen = Recorder::default();
        let whole = self.feed(&ids, next, length, Some(&mut seen))?;
        seen.values
            .insert("mtp.logits".into(), widened(&whole.draft));
        let stored: Vec<String> = self
            .io
            .tensors()
            .filter(|t| t.name.starts_with(&at) && !t.name.ends_with("input_ids"))
            .map(|t| t.name.to_string())
            .collect();
        for name in stored {
            let found = match &name[at.len()..] {
                "head_collapsed" => "head.collapsed",
                other => other,
            };
            let bound = match found.ends_with("logits") {
                true => LOGITS_BOUND,
                false => HIDDEN_BOUND,
            };
            let expected = self.io.tensor(&name)?.to_f64()?;
            self.compare(name.clone(), &expected, seen.get(found)?, bound);
        }
        if traced {
            self.components(&ids, seen)?;
        }

        for (way, chunk) in [("in chunks of 7", CHUNK), ("token by token", 1)] {
            let fed = self.feed(&ids, next, chunk, None)?;
            self.same_bits(format!("{at}{way}"), &whole, &fed);
        }
        if ids.len() > 1 {
            let mut alone = Fed::default();
            for (row, sequence) in ids.iter().enumerate() {
                let next = next.map(|next| &next[row..row + 1]);
                let fed = self.feed(std::slice::from_ref(sequence), next, length, None)?;
                alone.logits.extend(fed.logits);
                alone.draft.extend(fed.draft);
            }
            self.same_bits(format!("{at}one sequence at a time"), &whole, &alone);
        }
        Ok(())
    }

    /// All sequences together, `chunk` tokens of each at a time.
    fn feed(
        &self,
        ids: &[Vec<u32>],
        next: Option<&[Vec<u32>]>,
        chunk: usize,
        mut trace: Option<&mut Recorder>,
    ) -> Result<Fed, ModelError> {
        let length = ids.first().map_or(0, Vec::len);
        let vocab = self.model.config().vocab_size;
        let most = ids.len() * chunk.min(length).max(1);
        let mut session = self.model.session(ids.len(), length.max(1), most)?;
        let mut fed = Fed::default();
        fed.logits.resize(ids.len() * length * vocab, 0.0);
        if next.is_some() {
            fed.draft.resize(fed.logits.len(), 0.0);
        }
        for start in (0..length).step_by(chunk) {
            let end = (start + chunk).min(length);
            let runs: Vec<Run> = (0..ids.len())
                .map(|sequence| Run {
                    sequence,
                    ids: &ids[sequence][start..end],
                    next_ids: next.map(|next| &next[sequence][start..end]),
                })
                .collect();
            let trace = trace.as_deref_mut().map(|trace| trace as &mut dyn Trace);
            let output = self
                .model
                .forward(&mut session, &runs, Logits::All, trace)?;
            let place = |to: &mut [f32], from: &[f32]| {
                for (row, values) in from.chunks((end - start) * vocab).enumerate() {
                    to[(row * length + start) * vocab..][..values.len()].copy_from_slice(values);
                }
            };
            place(&mut fed.logits, &output.logits.to_vec::<f32>()?);
            if let Some(draft) = output.draft_logits {
                place(&mut fed.draft, &draft.to_vec::<f32>()?);
            }
        }
        Ok(fed)
    }

    fn components(&mut self, ids: &[Vec<u32>], mut seen: Recorder) -> Result<(), ModelError> {
        let length = ids.first().map_or(0, Vec::len);
        self.derive(&mut seen, ids.len(), length)?;
        let rows: Option<Vec<usize>> = match self.trace.get("rows") {
            Some(rows) => Some(rows.to_i64()?.iter().map(|&row| row as usize).collect()),
            None => None,
        };
        let names: Vec<String> = self
            .trace
            .tensors()
            .filter(|t| t.name != "rows" && !t.name.starts_with("rope."))
            .map(|t| t.name.to_string())
            .collect();
        for name in names {
            let stored = self.trace.tensor(&name)?;
            let (base, thinned) = match name.strip_suffix("@rows") {
                Some(base) => (base, true),
                None => (&name[..], false),
            };
            let all = seen.get(base)?;
            let taken;
            let found = match (&rows, thinned) {
                (Some(rows), true) => {
                    let width = all.len() / (ids.len() * length).max(1);
                    taken = take_rows(all, rows, length, width);
                    &taken
                }
                _ => all,
            };
            let width = stored.shape.last().copied().unwrap_or(1).max(1);
            if base.ends_with("topk_idx")
                || base.ends_with("idx.topk")
                || base.ends_with("comp.visible")
            {
                let expected: Vec<f64> = stored.to_i64()?.iter().map(|&v| v as f64).collect();
                let tokens = expected.len() / width;
                let wrong = match base.ends_with("comp.visible") {
                    true => differing_rows(&expected, found, tokens, |row| row.to_vec()),
                    false => differing_rows(&expected, found, tokens, as_set),
                };
                self.check(name.clone(), wrong as f64, 0.0);
                continue;
            }
            let expected = stored.to_f64()?;
            let largest = expected.iter().fold(0.0f64, |most, v| most.max(v.abs()));
            let bound = COMPONENT_BOUND * largest;
            if base.ends_with("gate.topk_w") {
                // In no particular order; that each belongs to its expert follows from the scores and the routed sum.
                let found = sorted_rows(found, width);
                self.compare(name.clone(), &sorted_rows(&expected, width), &found, bound);
            } else {
                self.compare(name.clone(), &expected, found, bound);
            }
        }
        Ok(())
    }

    /// Golden components that follow from what the pass records: head weights with their factor, which entries are visible.
    fn derive(&self, seen: &mut Recorder, batch: usize, length: usize) -> Result<(), ModelError> {
        let config = self.model.config();
        for (index, kind) in config.layers.iter().enumerate() {
            let entries = match kind {
                LayerKind::Window => continue,
                _ => length / kind.ratio(),
            };
            let mut visible = vec![0.0; batch * length * entries];
            let rows = visible.chunks_mut(entries.max(1));
            match kind {
                LayerKind::CompressedSparse { .. } => {
                    let factor = (config.index_n_heads as f64).sqrt().recip();
                    if let Some(weights) = seen.values.get_mut(&format!("L{index}.idx.head_w")) {
                        weights.iter_mut().for_each(|w| *w *= factor);
                    }
                    let picks = seen.get(&format!("L{index}.idx.topk"))?;
                    for (row, picks) in rows.zip(picks.chunks(config.index_topk)) {
                        for &pick in picks.iter().filter(|&&pick| pick >= 0.0) {
                            row[pick as usize] = 1.0;
                        }
                    }
                }
                _ => {
                    for (token, row) in rows.enumerate() {
                        let closed = (token % length + 1) / kind.ratio();
                        row[..closed].fill(1.0);
                    }
                }
            }
            seen.values
                .insert(format!("L{index}.comp.visible"), visible);
        }
        Ok(())
    }

    fn frequencies(&mut self) -> Result<(), ModelError> {
        let (main, compress) = self.model.rope_frequencies();
        let found = [
            ("rope.main.inv_freq", main.to_vec::<f32>()?),
            ("rope.compress.inv_freq", compress.to_vec::<f32>()?),
        ];
        for (name, found) in found {
            let Some(stored) = self.trace.get(name) else {
                continue;
            };
            let expected = stored.to_f64()?;
            // Relative, since they fall over many decades: two roundings of the other implementation.
            let error = expected
                .iter()
                .zip(&found)
                .map(|(e, &f)| ((e - f64::from(f)) / e).abs())
                .fold(0.0, nan_max);
            self.check(format!("{name} (relative)"), error, 3e-7);
        }
        Ok(())
    }

    /// Greedy decoding after the stored prompts, one token at a time.
    fn greedy(&mut self) -> Result<(), ModelError> {
        let prompts = self.ids("gen.prompt_ids")?;
        let answers = self.ids("gen.token_ids")?;
        let golden = self.io.tensor("gen.step_logits")?.to_f64()?;
        let steps = answers.first().map_or(0, Vec::len);
        let vocab = self.model.config().vocab_size;
        let prompt = prompts.first().map_or(0, Vec::len);
        let mut session =
            self.model
                .session(prompts.len(), prompt + steps, prompts.len() * prompt.max(1))?;
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
        let mut worst = 0.0;
        for step in 0..steps {
            let runs: Vec<Run> = (0..prompts.len())
                .map(|sequence| Run {
                    sequence,
                    ids: match step {
                        0 => &prompts[sequence],
                        _ => &tokens[sequence][step - 1..],
                    },
                    next_ids: None,
                })
                .collect();
            let (chosen, logits) = greedy_step(self.model, &mut session, &runs)?;
            for (sequence, id) in chosen.into_iter().enumerate() {
                tokens[sequence].push(id);
                let expected = &golden[(sequence * steps + step) * vocab..][..vocab];
                let found = widened(&logits[sequence * vocab..][..vocab]);
                worst = nan_max(worst, largest_error(expected, &found));
            }
        }
        let wrong = answers
            .iter()
            .flatten()
            .zip(tokens.iter().flatten())
            .filter(|(a, b)| a != b)
            .count();
        self.check(
            "gen.token_ids (tokens that differ)".into(),
            wrong as f64,
            0.0,
        );
        self.check("gen.step_logits".into(), worst, LOGITS_BOUND);
        Ok(())
    }

    fn ids(&self, name: &str) -> Result<Vec<Vec<u32>>, ModelError> {
        let tensor = self.io.tensor(name)?;
        let width = tensor.shape.last().copied().unwrap_or(0).max(1);
        let ids = tensor
            .to_i64()?
            .into_iter()
            .map(|id| {
                u32::try_from(id).map_err(|_| {
                    ModelError::Input(format!("`{name}` holds {id}, which is no token"))
                })
            })
            .collect::<Result<Vec<u32>, _>>()?;
        Ok(ids.chunks(width).map(<[u32]>::to_vec).collect())
    }

    fn same_bits(&mut self, name: String, whole: &Fed, other: &Fed) {
        let differing = |a: &[f32], b: &[f32]| {
            let pairs = a.iter().zip(b);
            pairs.filter(|(a, b)| a.to_bits() != b.to_bits()).count() + a.len().abs_diff(b.len())
        };
        let count = differing(&whole.logits, &other.logits) + differing(&whole.draft, &other.draft);
        self.check(format!("{name} (bits that differ)"), count as f64, 0.0);
    }

    fn compare(&mut self, name: String, expected: &[f64], found: &[f64], bound: f64) {
        let error = match expected.len() == found.len() {
            true => largest_error(expected, found),
            false => f64::INFINITY,
        };
        self.check(name, error, bound);
    }

    fn check(&mut self, name: String, error: f64, bound: f64) {
        let check = Check { name, error, bound };
        (self.progress)(&check);
        self.checks.push(check);
    }
}

/// One call for greedy decoding: the chosen token of every run and the logits `[runs, V]`.
///
/// # Errors
/// [`ModelError`].
pub fn greedy_step(
    model: &Model,
    session: &mut Session,
    runs: &[Run],
) -> Result<(Vec<u32>, Vec<f32>), ModelError> {
    let output = model.forward(session, runs, Logits::Last, None)?;
    let mut chosen = Tensor::zeros_on(model.device(), DType::I32, &[runs.len() as i64])?;
    model.kernels().greedy(GreedyArgs {
        logits: output.logits,
        id: chosen.view_mut()?,
    })?;
    let ids = chosen.view().to_vec::<i32>()?.into_iter();
    let ids = ids.map(|id| id as u32);
    Ok((ids.collect(), output.logits.to_vec::<f32>()?))
}

/// Keeps all that a forward pass records.
#[derive(Default)]
struct Recorder {
    values: BTreeMap<String, Vec<f64>>,
}

impl Recorder {
    fn get(&self, name: &str) -> Result<&Vec<f64>, ModelError> {
        self.values.get(name).ok_or_else(|| {
            ModelError::Input(format!("the forward pass records nothing called `{name}`"))
        })
    }
}

impl Trace for Recorder {
    fn record(&mut self, name: &str, value: View) -> Result<(), ModelError> {
        let values = match value.dtype() {
            DType::I32 => value.to_vec::<i32>()?.into_iter().map(f64::from).collect(),
            _ => widened(&value.to_vec::<f32>()?),
        };
        self.values.insert(name.into(), values);
        Ok(())
    }
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn nan_max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

/// NaN if any value is.
fn largest_error(expected: &[f64], found: &[f64]) -> f64 {
    let errors = expected.iter().zip(found).map(|(e, f)| (e - f).abs());
    errors.fold(0.0, nan_max)
}

/// Of `[B, length, width]` the positions `rows`.
fn take_rows(all: &[f64], rows: &[usize], length: usize, width: usize) -> Vec<f64> {
    all.chunks(length * width)
        .flat_map(|sequence| {
            rows.iter()
                .flat_map(|row| &sequence[row * width..][..width])
        })
        .copied()
        .collect()
}

fn sorted_rows(values: &[f64], width: usize) -> Vec<f64> {
    let mut values = values.to_vec();
    values
        .chunks_mut(width)
        .for_each(|row| row.sort_by(f64::total_cmp));
    values
}

/// A row of numbers as a set; -1 is none.
fn as_set(row: &[f64]) -> Vec<f64> {
    let mut row: Vec<f64> = row.iter().copied().filter(|&v| v >= 0.0).collect();
    row.sort_by(f64::total_cmp);
    row
}

/// How many of `tokens` rows differ in a form of theirs; the rows of the two may have other widths.
fn differing_rows(
    expected: &[f64],
    found: &[f64],
    tokens: usize,
    form: fn(&[f64]) -> Vec<f64>,
) -> usize {
    if tokens == 0 {
        return found.len();
    }
    let rows = |values: &[f64]| -> Vec<Vec<f64>> {
        values
            .chunks((values.len() / tokens).max(1))
            .map(form)
            .collect()
    };
    let (expected, found) = (rows(expected), rows(found));
    let pairs = expected.iter().zip(&found);
    pairs.filter(|(e, f)| e != f).count() + expected.len().abs_diff(found.len())
}
