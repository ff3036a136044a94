//! The tokens of one forward call: runs of consecutive tokens of any number of sequences, one after another.

use super::ModelError;
use super::kv_cache::KvCache;

/// Consecutive tokens of one sequence, going on where its cache ends.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Slot of the sequence in the cache.
    pub sequence: usize,
    pub ids: &'a [u32],
    /// For multi-token prediction: the token after each of `ids`; as long as `ids`.
    pub next_ids: Option<&'a [u32]>,
}

/// Token ids with their places, `[T]` each, as kernels read them.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub ids: Vec<i32>,
    /// Token t + 1 of each token's sequence, for multi-token prediction; empty without it.
    pub next_ids: Vec<i32>,
    pub positions: Vec<i32>,
    pub sequences: Vec<i32>,
    /// The last token of each run.
    pub last: Vec<i32>,
}

impl Batch {
    /// Fills the batch with `runs`; keeps the memory of the last one.
    ///
    /// # Errors
    /// [`ModelError::Input`]: an id outside the vocabulary, a sequence that is not there or comes twice, more tokens than the cache or
    /// the workspace holds.
    pub fn fill(
        &mut self,
        runs: &[Run],
        cache: &KvCache,
        vocab_size: usize,
        most_tokens: usize,
    ) -> Result<(), ModelError> {
        self.clear();
        let wants_next = runs.first().is_some_and(|run| run.next_ids.is_some());
        for run in runs {
            let length = cache.length(run.sequence).ok_or_else(|| {
                ModelError::Input(format!(
                    "sequence {} does not exist: the cache holds {}",
                    run.sequence,
                    cache.sequences()
                ))
            })?;
            if run.ids.is_empty() {
                return Err(ModelError::Input(format!(
                    "sequence {} comes without tokens",
                    run.sequence
                )));
            }
            if self.sequences.contains(&(run.sequence as i32)) {
                return Err(ModelError::Input(format!(
                    "sequence {} comes twice in one call",
                    run.sequence
                )));
            }
            let end = length + run.ids.len();
            if end > cache.context() {
                return Err(ModelError::Input(format!(
                    "sequence {} would have {end} tokens; the cache holds {} per sequence",
                    run.sequence,
                    cache.context()
                )));
            }
            if self.ids.len() + run.ids.len() > most_tokens {
                return Err(ModelError::Input(format!(
                    "more than {most_tokens} tokens in one call; use smaller chunks or a larger workspace"
                )));
            }
            push_ids(&mut self.ids, run.ids, vocab_size)?;
            match run.next_ids {
                Some(next) if wants_next && next.len() == run.ids.len() => {
                    push_ids(&mut self.next_ids, next, vocab_size)?;
                }
                None if !wants_next => {}
                _ => {
                    return Err(ModelError::Input(
                        "every run needs as many next tokens as tokens, or none does".into(),
                    ));
                }
            }
            self.positions.extend((length..end).map(|p| p as i32));
            self.sequences
                .extend(std::iter::repeat_n(run.sequence as i32, run.ids.len()));
            self.last.push(self.ids.len() as i32 - 1);
        }
        Ok(())
    }

    /// Fills a batch of single tokens up to `tokens` with idle sequences' next tokens (id 0). They leave nothing that is read: what they
    /// write lies past the ends of their sequences.
    pub fn fill_up(&mut self, tokens: usize, cache: &KvCache) {
        let idle = |sequence: &usize| !self.sequences.contains(&(*sequence as i32));
        let idle: Vec<usize> = (0..cache.sequences())
            .filter(idle)
            .take(tokens.saturating_sub(self.tokens()))
            .collect();
        for sequence in idle {
            // A full sequence takes no more tokens, so that its last one is as free.
            let end = cache.length(sequence).unwrap_or(0).min(cache.context() - 1);
            self.last.push(self.ids.len() as i32);
            self.ids.push(0);
            self.positions.push(end as i32);
            self.sequences.push(sequence as i32);
        }
    }

    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    fn clear(&mut self) {
        for list in [
            &mut self.ids,
            &mut self.next_ids,
            &mut self.positions,
            &mut self.sequences,
            &mut self.last,
        ] {
            list.clear();
        }
    }
}

fn push_ids(to: &mut Vec<i32>, ids: &[u32], vocab_size: usize) -> Result<(), ModelError> {
    if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(ModelError::Input(format!(
            "token {id} is not in the vocabulary of {vocab_size}"
        )));
    }
    to.extend(ids.iter().map(|&id| id as i32));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Config;
    use crate::model::kv_cache::Room;

    fn tiny() -> (Config, KvCache) {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/golden/g1_mixed_tiny_mtp"
        );
        let config = Config::read(std::path::Path::new(path)).unwrap();
        let device = tessera_device::Device::cpu().unwrap();
        let room = Room {
            sequences: 2,
            context: 10,
            most_tokens: 8,
            pages: None,
        };
        let cache = KvCache::new(&device, &config, room).unwrap();
        (config, cache)
    }

    fn run(sequence: usize, ids: &[u32]) -> Run<'_> {
        Run {
            sequence,
            ids,
            next_ids: None,
        }
    }

    #[test]
    fn runs_go_on_where_their_sequences_end() {
        let (config, mut cache) = tiny();
        cache.advance(1, 3);
        let mut batch = Batch::default();
        let runs = [run(1, &[5, 6]), run(0, &[7])];
        batch.fill(&runs, &cache, config.vocab_size, 8).unwrap();
        assert_eq!(batch.ids, [5, 6, 7]);
        assert_eq!(batch.positions, [3, 4, 0]);
        assert_eq!(batch.sequences, [1, 1, 0]);
        assert_eq!(batch.last, [1, 2]);
        cache.reset(1);
        batch
            .fill(&runs[..1], &cache, config.vocab_size, 8)
            .unwrap();
        assert_eq!(batch.positions, [0, 1]);
    }

    #[test]
    fn idle_sequences_fill_a_batch_up() {
        let (config, mut cache) = tiny();
        cache.advance(0, 10);
        let mut batch = Batch::default();
        batch
            .fill(&[run(1, &[5])], &cache, config.vocab_size, 8)
            .unwrap();
        batch.fill_up(2, &cache);
        assert_eq!(
            (&batch.ids[..], &batch.last[..]),
            (&[5, 0][..], &[0, 1][..])
        );
        assert_eq!(batch.sequences, [1, 0]);
        assert_eq!(batch.positions, [0, 9]);
    }

    #[test]
    fn tokens_that_do_not_fit_are_refused_with_their_values() {
        let (config, cache) = tiny();
        let next = Run {
            next_ids: Some(&[1]),
            ..run(0, &[1, 2])
        };
        let cases: [(&[Run], &str); 7] = [
            (
                &[run(2, &[1])],
                "sequence 2 does not exist: the cache holds 2",
            ),
            (&[run(0, &[])], "sequence 0 comes without tokens"),
            (&[run(0, &[1]), run(0, &[2])], "sequence 0 comes twice"),
            (
                &[run(0, &[1; 11])],
                "would have 11 tokens; the cache holds 10",
            ),
            (&[run(0, &[1; 9])], "more than 8 tokens in one call"),
            (
                &[run(0, &[128])],
                "token 128 is not in the vocabulary of 128",
            ),
            (&[next], "as many next tokens as tokens"),
        ];
        for (runs, expected) in cases {
            let error = Batch::default()
                .fill(runs, &cache, config.vocab_size, 8)
                .unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
