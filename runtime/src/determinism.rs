//! Whether a request's bits depend on what runs beside it: alone, among neighbours that come and go, its prompt whole or cut, its tokens
//! launched or replayed, again and again.
//!
//! The logits of every token of one request, of the prompt and after it, are compared with those that the request has alone. Controls
//! show that the comparison sees what it is there to see: a changed token, and a cache that was not emptied, must change bits.

use crate::model::{Logits, Model, ModelError, Run, Session};
use crate::verify::Check;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Tokens of the request that come in chunks, and those that come one by one.
    pub prompt: usize,
    pub decode: usize,
    /// Requests that share a session.
    pub batches: Vec<usize>,
    /// How often each is tried, with other neighbours and cuts.
    pub repeats: usize,
    pub seed: u64,
}

impl Default for Trial {
    fn default() -> Self {
        Trial {
            prompt: 45,
            decode: 24,
            batches: vec![2, 3, 8, 64],
            repeats: 2,
            seed: 1,
        }
    }
}

/// Most tokens of a neighbour in one call.
const NEIGHBOUR_CHUNK: usize = 5;

/// Tries all of it, and reports each comparison to `progress`: how many numbers differ, of which none may.
///
/// # Errors
/// [`ModelError`]: a call that failed, or a trial that the model has no room for.
pub fn determinism(
    model: &Model,
    trial: &Trial,
    progress: &mut dyn FnMut(&Check),
) -> Result<Vec<Check>, ModelError> {
    let mut random = Random(trial.seed);
    let vocab = model.config().vocab_size;
    let ids = random.ids(trial.prompt + trial.decode, vocab);
    let mut checks = Vec::new();
    let mut report = |name: String, error: usize| {
        let check = Check {
            name,
            error: error as f64,
            bound: 0.0,
        };
        progress(&check);
        checks.push(check);
    };
    let alone = |ids: &[u32], replay: bool| -> Result<Vec<u32>, ModelError> {
        let mut session = session(model, 1, trial, replay)?;
        whole(model, &mut session, ids, trial.prompt)
    };
    let expected = alone(&ids, false)?;
    for repeat in 0..trial.repeats {
        for (replay, how) in [(false, "launched"), (true, "replayed")] {
            let found = alone(&ids, replay)?;
            report(
                format!("alone, {how}, time {}", repeat + 2),
                differing(&expected, &found),
            );
            for &batch in [1].iter().chain(&trial.batches) {
                let mut session = session(model, batch, trial, replay)?;
                let found = among(model, &mut session, &ids, trial.prompt, &mut random)?;
                let beside = match batch {
                    1 => "prompt cut".to_owned(),
                    _ => format!("one of {batch}, prompt cut"),
                };
                report(format!("{beside}, {how}"), differing(&expected, &found));
            }
        }
    }

    let mut other = ids.clone();
    other[0] = (other[0] + 1) % vocab as u32;
    let changed = alone(&other, true)?;
    report(
        "control: another first token changes nothing".into(),
        usize::from(differing(&expected, &changed) == 0),
    );
    let mut session = session(model, 1, trial, true)?;
    // One token of another request stays in the cache.
    let one = [other[0]];
    model.forward(&mut session, &[run(0, &one)], Logits::Last, None)?;
    let behind = whole(model, &mut session, &ids[..ids.len() - 1], trial.prompt)?;
    report(
        "control: a cache that was not emptied changes nothing".into(),
        usize::from(differing(&expected[..behind.len()], &behind) == 0),
    );
    Ok(checks)
}

fn session(
    model: &Model,
    sequences: usize,
    trial: &Trial,
    replay: bool,
) -> Result<Session, ModelError> {
    let context = trial.prompt + trial.decode;
    let most = trial.prompt.max(1) + sequences * NEIGHBOUR_CHUNK;
    let mut session = model.session(sequences, context, most)?;
    session.replay_steps(replay);
    Ok(session)
}

fn run(sequence: usize, ids: &[u32]) -> Run<'_> {
    Run {
        sequence,
        ids,
        next_ids: None,
    }
}

/// Bits of the logits of all tokens: the prompt at once, then one by one, in a session of one sequence.
fn whole(
    model: &Model,
    session: &mut Session,
    ids: &[u32],
    prompt: usize,
) -> Result<Vec<u32>, ModelError> {
    let mut bits = Vec::new();
    let (prompt, rest) = ids.split_at(prompt.min(ids.len()));
    let parts = std::iter::once(prompt).chain(rest.chunks(1));
    for part in parts.filter(|part| !part.is_empty()) {
        let output = model.forward(session, &[run(0, part)], Logits::All, None)?;
        let logits = output.logits.to_vec::<f32>()?;
        bits.extend(logits.into_iter().map(f32::to_bits));
    }
    Ok(bits)
}

/// The same in a slot of a session whose other slots belong to neighbours: each call takes some of them with some tokens; who has no room
/// left starts anew.
fn among(
    model: &Model,
    session: &mut Session,
    ids: &[u32],
    prompt: usize,
    random: &mut Random,
) -> Result<Vec<u32>, ModelError> {
    let vocab = model.config().vocab_size;
    let (sequences, context) = (session.cache().sequences(), session.cache().context());
    let mine = random.below(sequences);
    let mut bits = Vec::new();
    let mut done = 0;
    // Neighbours first, so that the request finds used slots beside it.
    let mut starts_in = usize::from(sequences > 1) * 2;
    while done < ids.len() {
        let decoding = done >= prompt;
        let mut parts: Vec<(usize, Vec<u32>)> = Vec::new();
        for sequence in (0..sequences).filter(|&sequence| sequence != mine) {
            let most = if decoding { 1 } else { NEIGHBOUR_CHUNK };
            let tokens = random.below(most + 1);
            let length = session.cache().length(sequence).unwrap_or(0);
            if length + tokens > context {
                session.reset(sequence);
            }
            if tokens > 0 {
                parts.push((sequence, random.ids(tokens, vocab)));
            }
        }
        let own = match (starts_in, decoding) {
            (1.., _) => 0,
            (0, true) => 1,
            (0, false) => 1 + random.below(prompt - done),
        };
        starts_in = starts_in.saturating_sub(1);
        if own > 0 {
            let at = random.below(parts.len() + 1);
            parts.insert(at, (mine, ids[done..done + own].to_vec()));
        }
        if parts.is_empty() {
            continue;
        }
        let runs: Vec<Run> = parts.iter().map(|(s, ids)| run(*s, ids)).collect();
        let before = (parts.iter().take_while(|(s, _)| *s != mine))
            .map(|(_, ids)| ids.len())
            .sum::<usize>();
        let output = model.forward(session, &runs, Logits::All, None)?;
        let rows = (before as i64)..(before + own) as i64;
        let logits = match own {
            0 => Vec::new(),
            _ => output.logits.slice(0, rows)?.to_vec::<f32>()?,
        };
        bits.extend(logits.into_iter().map(f32::to_bits));
        done += own;
    }
    Ok(bits)
}

fn differing(expected: &[u32], found: &[u32]) -> usize {
    let pairs = expected.iter().zip(found);
    pairs.filter(|(a, b)| a != b).count() + expected.len().abs_diff(found.len())
}

/// SplitMix64.
pub(crate) struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0, …, n - 1; n is not 0.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn ids(&mut self, count: usize, vocab: usize) -> Vec<u32> {
        (0..count).map(|_| self.below(vocab) as u32).collect()
    }
}
