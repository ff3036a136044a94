//! Running a golden case of a quantised model: components from stored inputs, single blocks, the whole model.
//!
//! Values that the files hold are put in the place of those computed, as far as a step asks for: so a component, or a block, is computed
//! from what the other implementation fed it with, and its error is its own. The bounds are those of `case.json`.
//!
//! Needs: `io.safetensors`, `trace.safetensors` and `case.json` beside the model.

mod names;

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use serde_json::Value;
use tessera_device::{Device, View};

use self::names::{
    LAST_STREAM, REPLACED, block_border, prefixes, ratio, recorded_name, stored_border,
};
use super::Check;
use super::forced::{Forced, Seen, StoredValue, get, stored, values_of, widened};
use super::measures::{
    by_number, by_sequence, closing, differing_bits, differing_sets, largest, relative_error,
    reordered, taken, tokens_at,
};
use crate::model::{Logits, Model, ModelError, Run, Session, Trace};
use crate::weights::{self, SafetensorsFile};

pub(super) fn verify(
    model: &Model,
    folder: &Path,
    io: SafetensorsFile,
    trace: SafetensorsFile,
    progress: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>, ModelError> {
    let path = folder.join("case.json");
    let text = std::fs::read(&path)
        .map_err(|error| ModelError::Input(format!("{}: {error}", path.display())))?;
    let bounds: Value = serde_json::from_slice(&text)
        .map_err(|error| ModelError::Input(format!("{}: {error}", path.display())))?;
    let mut case = Case {
        model,
        io,
        trace,
        bounds,
        checks: Vec::new(),
        progress,
    };
    case.components()?;
    for run in 0.. {
        if case.io.get(&format!("r{run}.input_ids")).is_none() {
            break;
        }
        case.blocks(run)?;
        case.chained(run)?;
        case.ways(run)?;
    }
    Ok(case.checks)
}

struct Case<'a> {
    model: &'a Model,
    io: SafetensorsFile,
    trace: SafetensorsFile,
    bounds: Value,
    checks: Vec<Check>,
    progress: &'a mut dyn FnMut(&Check),
}

/// Token ids of one stored run, `[B][P + N]`.
struct Ids {
    ids: Vec<Vec<u32>>,
    next: Option<Vec<Vec<u32>>>,
    prompt: usize,
}

impl Ids {
    fn batch(&self) -> usize {
        self.ids.len()
    }

    fn length(&self) -> usize {
        self.ids.first().map_or(0, Vec::len)
    }

    fn runs(&self, from: usize, to: usize) -> Vec<Run<'_>> {
        (0..self.batch())
            .map(|sequence| Run {
                sequence,
                ids: &self.ids[sequence][from..to],
                next_ids: self.next.as_ref().map(|next| &next[sequence][from..to]),
            })
            .collect()
    }
}

/// Looks at every value and keeps none.
struct Onlooker;

impl Trace for Onlooker {
    fn record(&mut self, _: &str, _: View) -> Result<(), ModelError> {
        Ok(())
    }
}

impl Case<'_> {
    /// Every stored component of the first run's prefill, computed from the stored components before it.
    fn components(&mut self) -> Result<(), ModelError> {
        let ids = self.ids(0)?;
        let (batch, prompt) = (ids.batch(), ids.prompt);
        let mut session = self.session(&ids)?;
        let config = self.model.config();
        let mut forced = Forced::default();
        for tensor in self.io.tensors() {
            if let Some(name) = block_border(tensor.name, "r0.prefill.", config) {
                border(&mut forced, &tensor, name, stored(&tensor)?);
            }
        }
        for prefix in prefixes(config) {
            let rows = self.rows(&prefix)?;
            for tensor in self.trace.tensors() {
                let Some(name) = tensor.name.strip_prefix(&prefix) else {
                    continue;
                };
                let (base, thinned) = match name.strip_suffix("@rows") {
                    Some(base) => (base, true),
                    None => (name, false),
                };
                if !REPLACED.contains(&base) {
                    continue;
                }
                let mut value = stored(&tensor)?;
                let at = tokens_at(&rows, batch, prompt);
                if base == "moe.expert_out" {
                    // Stored in an order of its own; ours is by expert.
                    let picks = self.picks(&prefix)?;
                    let theirs = match thinned {
                        true => taken(&picks.0, &at, batch * prompt),
                        false => picks.0,
                    };
                    value.values = by_number(&value.values, &theirs, picks.1);
                }
                if thinned {
                    value.tokens = Some(at);
                } else if base.ends_with("pooled") {
                    let closing = closing(ratio(config, &prefix), prompt);
                    value.tokens = Some(tokens_at(&closing, batch, prompt));
                }
                forced
                    .values
                    .insert(format!("{prefix}{}", recorded_name(base)), value);
            }
        }
        let runs = ids.runs(0, prompt);
        self.model
            .forward(&mut session, &runs, Logits::All, Some(&mut forced))?;
        for prefix in prefixes(config) {
            self.compare_components(&prefix, &forced.seen, batch, prompt)?;
        }
        Ok(())
    }

    fn compare_components(
        &mut self,
        prefix: &str,
        seen: &BTreeMap<String, Seen>,
        batch: usize,
        prompt: usize,
    ) -> Result<(), ModelError> {
        let rows = self.rows(prefix)?;
        let names: Vec<String> = self
            .trace
            .tensors()
            .filter_map(|tensor| Some(tensor.name.strip_prefix(prefix)?.to_string()))
            .filter(|name| {
                !["decode.", "cache."].iter().any(|p| name.starts_with(p))
                    && !name.ends_with(".gap")
                    && name != "rows"
            })
            .collect();
        for name in names {
            let (base, thinned) = match name.strip_suffix("@rows") {
                Some(base) => (base, true),
                None => (&name[..], false),
            };
            let tensor = self.trace.tensor(&format!("{prefix}{name}"))?;
            let mut expected = values_of(&tensor)?;
            let tokens = batch * prompt;
            let of = |name: &str| get(seen, &format!("{prefix}{name}"));
            let mut found = of(recorded_name(base))?.values.clone();
            if base.ends_with("pooled") {
                let closing = closing(ratio(self.model.config(), prefix), prompt);
                found = taken(&found, &tokens_at(&closing, batch, prompt), tokens);
            } else if base.ends_with("_hc.mix") {
                self.scale_mix(base, prefix, seen, &mut found)?;
            } else if base == "idx.scores" {
                // Entries that are not visible hold anything.
                let width = found.len() / tokens;
                let ratio = ratio(self.model.config(), prefix);
                for (token, row) in found.chunks_mut(width.max(1)).enumerate() {
                    let closed = (token % prompt + 1) / ratio;
                    row[closed.min(width)..].fill(f64::NEG_INFINITY);
                }
            }
            let at = tokens_at(&rows, batch, prompt);
            if thinned {
                found = taken(&found, &at, tokens);
            } else if self.is_fed_in_part(base, prefix) {
                expected = taken(&expected, &at, tokens);
                found = taken(&found, &at, tokens);
            }
            let last = tensor.shape.last().copied().unwrap_or(1);
            if base == "idx.topk" || base == "gate.topk_idx" {
                let wrong = differing_sets(&expected, &found, expected.len() / last.max(1));
                self.check(
                    format!("{prefix}{base} (tokens with other picks)"),
                    wrong as f64,
                    0.0,
                );
                continue;
            }
            if base == "gate.topk_w" || base == "moe.expert_out" {
                // Stored in an order of its own; ours is by expert.
                let (picks, choices) = self.picks(prefix)?;
                let theirs = taken(&picks, &at, tokens);
                found = reordered(&found, &theirs, choices);
            }
            // The file has no bound for the attention's input, which is computed as the experts' is.
            let bounded = if base == "attn.in" { "ffn.in" } else { base };
            let bound = self.bounds["component_bounds"][bounded][self.accumulator()].clone();
            let is_bf16 = tensor.dtype == weights::Dtype::BF16;
            self.compare(
                &format!("{prefix}{base}"),
                &bound,
                &expected,
                &found,
                is_bf16,
                0,
            )?;
        }
        Ok(())
    }

    /// The stored picks of experts, and how many a token has.
    fn picks(&self, prefix: &str) -> Result<(Vec<f64>, usize), ModelError> {
        let picks = self.trace.tensor(&format!("{prefix}gate.topk_idx"))?;
        let values = picks.to_i64()?.iter().map(|&v| v as f64).collect();
        Ok((values, picks.shape.last().copied().unwrap_or(1)))
    }

    /// Whether a value that is stored of all tokens is computed of queries that are stored of some. With the sums of tensor cores only those
    /// tokens' scores have a bound: the others' come from queries of which one code in a hundred may be another.
    fn is_fed_in_part(&self, base: &str, prefix: &str) -> bool {
        matches!(base, "idx.scores" | "idx.topk")
            && self.accumulator() == "short_accumulator"
            && self.trace.get(&format!("{prefix}idx.q@rows")).is_some()
    }

    /// The pass records plain products; the files hold them times the inverse root mean square of the streams.
    fn scale_mix(
        &self,
        base: &str,
        prefix: &str,
        seen: &BTreeMap<String, Seen>,
        mix: &mut [f64],
    ) -> Result<(), ModelError> {
        let config = self.model.config();
        let of = |name: String| get(seen, &name).map(|seen| &seen.replaced);
        let streams = match (base, prefix) {
            ("ffn_hc.mix", _) => of(format!("{prefix}mid"))?,
            (_, "mtp.") => of("mtp.block_in".into())?,
            _ => match prefix[1..prefix.len() - 1].parse::<usize>() {
                Ok(0) => of("embedded".into())?,
                Ok(layer) => of(format!("hidden.{}", layer - 1))?,
                Err(_) => return Err(ModelError::Input(format!("no layer `{prefix}`"))),
            },
        };
        let width = config.hc_mult * config.hidden_size;
        for (mix, streams) in mix
            .chunks_mut(config.hc_coefficients())
            .zip(streams.chunks(width))
        {
            let squares: f64 = streams.iter().map(|v| v * v).sum();
            let factor = (squares / width as f64 + config.rms_norm_eps)
                .sqrt()
                .recip();
            mix.iter_mut().for_each(|value| *value *= factor);
        }
        Ok(())
    }

    /// Every block from its stored input: the prefill at once, then token by token, with a cache of its own.
    fn blocks(&mut self, run: usize) -> Result<(), ModelError> {
        let ids = self.ids(run)?;
        let mut session = self.session(&ids)?;
        let mut steps: BTreeMap<String, Vec<Vec<f64>>> = BTreeMap::new();
        for (phase, from, to) in phases(&ids) {
            let prefix = format!("r{run}.{phase}.");
            if self.io.tensors().all(|t| !t.name.starts_with(&prefix)) {
                continue;
            }
            let step = (from >= ids.prompt).then(|| from - ids.prompt);
            let mut forced = Forced::default();
            for tensor in self.io.tensors() {
                if let Some(name) = block_border(tensor.name, &prefix, self.model.config()) {
                    let mut value = stored(&tensor)?;
                    if let Some(step) = step {
                        value = value.step(ids.batch(), ids.length() - ids.prompt, step);
                    }
                    border(&mut forced, &tensor, name, value);
                }
            }
            let runs = ids.runs(from, to);
            let output = self
                .model
                .forward(&mut session, &runs, Logits::All, Some(&mut forced))?;
            let logits = widened(&output.logits)?;
            let draft = output.draft_logits.as_ref().map(widened).transpose()?;
            let mut keep = |name: &str, values: Vec<f64>| {
                let steps = steps.entry(format!("{prefix}{name}")).or_default();
                steps.push(values);
            };
            keep("logits", logits);
            if let Some(draft) = draft {
                keep("mtp.logits", draft);
            }
            for (name, seen) in forced.seen {
                if let Some(name) = stored_border(&name) {
                    keep(&name, seen.values);
                }
            }
        }
        for (name, steps) in steps {
            let Some(tensor) = self.io.get(&name).filter(|_| self.is_fed(&name)) else {
                continue;
            };
            let is_bf16 = tensor.dtype == weights::Dtype::BF16;
            let expected = values_of(&tensor)?;
            let found = by_sequence(&steps, ids.batch());
            let tokens = tensor.shape.iter().take(2).product();
            let bound = self.bounds["bounds"][&name][self.accumulator()].clone();
            self.compare(&name, &bound, &expected, &found, is_bf16, tokens)?;
        }
        Ok(())
    }

    /// Whether the value that a border of blocks is computed from is stored, too.
    fn is_fed(&self, name: &str) -> bool {
        let mut parts = name.splitn(3, '.').skip(2);
        let Some(border) = parts.next() else {
            return false;
        };
        let before = match border {
            "stream.0" => return true,
            "mtp.out" => "mtp.in".to_string(),
            "mtp.logits" => "mtp.out".to_string(),
            _ => match border.strip_prefix("stream.").map(str::parse::<usize>) {
                Some(Ok(layer)) => format!("stream.{}", layer - 1),
                // `logits` and `mtp.in` follow from the last streams.
                _ => format!("stream.{}", self.model.config().layers.len()),
            },
        };
        let start = &name[..name.len() - border.len()];
        let stored = |border: &str| self.io.get(&format!("{start}{border}")).is_some();
        stored(&before) || !border.starts_with("stream.") && stored(LAST_STREAM)
    }

    /// The whole model from token ids: weak, since one value on the other side of a rounding boundary moves all that follow.
    fn chained(&mut self, run: usize) -> Result<(), ModelError> {
        if run > 0 || self.bounds.get("chained").is_none() {
            return Ok(());
        }
        let ids = self.ids(run)?;
        let mut session = self.session(&ids)?;
        let mut found: BTreeMap<&str, Vec<Vec<f64>>> = BTreeMap::new();
        for (phase, from, to) in phases(&ids) {
            let runs = ids.runs(from, to);
            let output = self.model.forward(&mut session, &runs, Logits::All, None)?;
            found
                .entry(phase)
                .or_default()
                .push(widened(&output.logits)?);
        }
        for (phase, steps) in found {
            let name = format!("r{run}.{phase}.logits");
            let expected = values_of(&self.io.tensor(&name)?)?;
            let found = by_sequence(&steps, ids.batch());
            let vocabulary = self.model.config().vocab_size;
            let (mut cosine, mut same, mut tokens) = (1.0f64, 0.0, 0.0);
            for (e, f) in expected.chunks(vocabulary).zip(found.chunks(vocabulary)) {
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                // Not `min`, which would pass over a NaN.
                let c = dot(e, f) / (dot(e, e) * dot(f, f)).sqrt();
                cosine = if c >= cosine { cosine } else { c };
                same += f64::from(u8::from(largest(e) == largest(f)));
                tokens += 1.0;
            }
            // The file bounds components and blocks. Of whole models it has what variants of its own gave; the worst of them is taken.
            let worst = &self.bounds["chained"]["short14"][phase];
            let (cosine_min, argmax_min) = (
                number(&worst["cosine_min"], "chained.short14.cosine_min")?,
                number(&worst["same_argmax"], "chained.short14.same_argmax")?,
            );
            self.check(
                format!("chained.{phase}.logits (1 - least cosine)"),
                1.0 - cosine,
                1.0 - cosine_min,
            );
            self.check(
                format!("chained.{phase}.logits (other largest)"),
                1.0 - same / tokens,
                1.0 - argmax_min,
            );
        }
        Ok(())
    }

    /// The same bits whether sequences come whole, in chunks, token by token or alone.
    fn ways(&mut self, run: usize) -> Result<(), ModelError> {
        let ids = self.ids(run)?;
        let length = ids.length();
        let whole = self.feed(&ids, length, None)?;
        for (way, chunk, trace) in [
            ("in chunks of 7", super::CHUNK, None),
            ("token by token", 1, None),
            // Kernels that do several steps at once leave out what a trace asks for.
            ("watched in chunks of 7", super::CHUNK, Some(&mut Onlooker)),
        ] {
            let fed = self.feed(&ids, chunk, trace)?;
            self.check(
                format!("r{run} {way} (bits that differ)"),
                differing_bits(&whole, &fed) as f64,
                0.0,
            );
        }
        if ids.batch() > 1 {
            let mut alone = Vec::new();
            for sequence in 0..ids.batch() {
                let one = Ids {
                    ids: vec![ids.ids[sequence].clone()],
                    next: ids.next.as_ref().map(|next| vec![next[sequence].clone()]),
                    prompt: ids.prompt,
                };
                alone.extend(self.feed(&one, length, None)?);
            }
            self.check(
                format!("r{run} one sequence at a time (bits that differ)"),
                differing_bits(&whole, &alone) as f64,
                0.0,
            );
        }
        Ok(())
    }

    /// All logits, `chunk` tokens of each sequence at a time, by sequence.
    fn feed(
        &self,
        ids: &Ids,
        chunk: usize,
        mut trace: Option<&mut Onlooker>,
    ) -> Result<Vec<f64>, ModelError> {
        let length = ids.length();
        let most = ids.batch() * chunk.min(length);
        let mut session = self.model.session(ids.batch(), length, most)?;
        let mut steps = Vec::new();
        let mut drafts = Vec::new();
        for from in (0..length).step_by(chunk) {
            let runs = ids.runs(from, (from + chunk).min(length));
            let trace = trace.as_mut().map(|t| &mut **t as &mut dyn Trace);
            let output = (self.model).forward(&mut session, &runs, Logits::All, trace)?;
            steps.push(widened(&output.logits)?);
            if let Some(draft) = &output.draft_logits {
                drafts.push(widened(draft)?);
            }
        }
        // A sequence's logits, then its draft's.
        let (logits, drafts) = (
            by_sequence(&steps, ids.batch()),
            by_sequence(&drafts, ids.batch()),
        );
        let parts = |values: &[f64], b: usize| {
            let width = values.len() / ids.batch();
            values[b * width..][..width].to_vec()
        };
        Ok((0..ids.batch())
            .flat_map(|b| [parts(&logits, b), parts(&drafts, b)].concat())
            .collect())
    }

    /// Positions that thinned components of a block are stored for.
    fn rows(&self, prefix: &str) -> Result<Vec<usize>, ModelError> {
        let Some(rows) = self.trace.get(&format!("{prefix}rows")) else {
            return Ok(Vec::new());
        };
        let prompt = self.ids(0)?.prompt;
        let rows = rows.to_i64()?.into_iter().map(|row| {
            let row = usize::try_from(row).ok().filter(|&row| row < prompt);
            row.ok_or_else(|| {
                ModelError::Input(format!(
                    "`{prefix}rows` names a token beyond the prompt of {prompt}"
                ))
            })
        });
        rows.collect()
    }

    fn ids(&self, run: usize) -> Result<Ids, ModelError> {
        let read = |name: &str| -> Result<Option<Vec<Vec<u32>>>, ModelError> {
            let Some(tensor) = self.io.get(name) else {
                return Ok(None);
            };
            let width = tensor.shape.last().copied().unwrap_or(0).max(1);
            let ids = tensor.to_i64()?;
            let ids: Option<Vec<u32>> = ids.iter().map(|&id| u32::try_from(id).ok()).collect();
            let ids = ids.ok_or_else(|| {
                ModelError::Input(format!("`{name}` holds a number that is no token"))
            })?;
            Ok(Some(ids.chunks(width).map(<[u32]>::to_vec).collect()))
        };
        let name = format!("r{run}.input_ids");
        let ids = read(&name)?
            .ok_or_else(|| ModelError::Input(format!("io.safetensors has no `{name}`")))?;
        let next = match self.model.has_draft() {
            true => read(&format!("r{run}.mtp_ids"))?,
            false => None,
        };
        let prefix = format!("r{run}.prefill.");
        let prefill = self.io.tensors().find(|t| t.name.starts_with(&prefix));
        let prompt = prefill.and_then(|t| t.shape.get(1).copied());
        let prompt = prompt.ok_or_else(|| {
            ModelError::Input(format!("io.safetensors has nothing called `{prefix}…`"))
        })?;
        let lengths = ids.iter().chain(next.iter().flatten()).map(Vec::len);
        let rows = next.as_ref().map_or(ids.len(), Vec::len);
        let length = ids.first().map_or(0, Vec::len);
        if prompt == 0
            || rows != ids.len()
            || lengths.into_iter().any(|n| n != length || n < prompt)
        {
            return Err(ModelError::Input(format!(
                "`{name}`, its shifted ids and `{prefix}…` are not of the same sequences"
            )));
        }
        Ok(Ids { ids, next, prompt })
    }

    /// Whose bounds hold: tensor cores keep about 14 bits of a sum of FP8 products.
    fn accumulator(&self) -> &'static str {
        match self.model.device() {
            Device::Cpu(_) => "float32",
            Device::Cuda(_) => "short_accumulator",
        }
    }

    fn session(&self, ids: &Ids) -> Result<Session, ModelError> {
        let most = ids.batch() * ids.prompt.max(1);
        self.model.session(ids.batch(), ids.length().max(1), most)
    }

    /// By the bound's own measures: share of equal bits, relative error, share of equal bits of the median token.
    fn compare(
        &mut self,
        name: &str,
        bound: &Value,
        expected: &[f64],
        found: &[f64],
        is_bf16: bool,
        tokens: usize,
    ) -> Result<(), ModelError> {
        if !bound.is_object() {
            return Err(ModelError::Input(format!(
                "case.json has no bound for `{name}`"
            )));
        }
        let fits = expected.len() == found.len();
        let found: Vec<f64> = match is_bf16 {
            true => found.iter().map(|&v| bf16::from_f64(v).to_f64()).collect(),
            false => found.to_vec(),
        };
        let same = |e: &[f64], f: &[f64]| -> f64 {
            let equal = e.iter().zip(f).filter(|(e, f)| e.to_bits() == f.to_bits());
            equal.count() as f64 / e.len().max(1) as f64
        };
        if let Some(least) = bound.get("same_min") {
            let least = number(least, name)?;
            let share = if fits { same(expected, &found) } else { 0.0 };
            self.check(format!("{name} (other bits)"), 1.0 - share, 1.0 - least);
        }
        if let Some(most) = bound.get("rms_max") {
            let most = number(most, name)?;
            let error = if fits {
                relative_error(expected, &found)
            } else {
                f64::INFINITY
            };
            self.check(format!("{name} (relative error)"), error, most);
        }
        if let (Some(least), true) = (bound.get("median_token_min"), tokens > 0) {
            let least = number(least, name)?;
            let width = (expected.len() / tokens).max(1);
            let mut shares: Vec<f64> = expected
                .chunks(width)
                .zip(found.chunks(width))
                .map(|(e, f)| same(e, f))
                .collect();
            shares.sort_by(f64::total_cmp);
            let median = shares.get(shares.len() / 2).copied().unwrap_or(0.0);
            self.check(
                format!("{name} (other bits, median token)"),
                1.0 - median,
                1.0 - least,
            );
        }
        Ok(())
    }

    fn check(&mut self, name: String, error: f64, bound: f64) {
        // Bounds are decimal fractions; what is taken from 1 is not.
        let bound = if bound > 0.0 { bound + 1e-12 } else { bound };
        let check = Check { name, error, bound };
        (self.progress)(&check);
        self.checks.push(check);
    }
}

/// A stored border of blocks; that which the head is fed with comes before a layer's output.
fn border(forced: &mut Forced, tensor: &weights::Tensor, name: String, value: StoredValue) {
    if tensor.name.ends_with(LAST_STREAM) {
        forced.values.insert(name, value);
    } else {
        forced.values.entry(name).or_insert(value);
    }
}

/// The prefill, then each decode step: its name and its positions.
fn phases(ids: &Ids) -> impl Iterator<Item = (&'static str, usize, usize)> {
    let steps = (ids.prompt..ids.length()).map(|p| ("decode", p, p + 1));
    std::iter::once(("prefill", 0, ids.prompt)).chain(steps)
}

fn number(value: &Value, name: &str) -> Result<f64, ModelError> {
    value
        .as_f64()
        .ok_or_else(|| ModelError::Input(format!("case.json has no number for `{name}`")))
}
