//! Tests of requests that come and go: what one leaves behind, no other finds.

use std::path::Path;

use tessera_device::Device;

use super::error::CacheFull;
use super::kernels::Kernels;
use super::pages::PAGE_TOKENS;
use super::{Logits, Model, ModelError, Room, Run, Session};

/// One case of rows as they are, one of records.
const CASES: [&str; 2] = ["g4_csa_select", "quant/q1_w_c_h"];

/// Tokens that cross from a page to the next while they come one by one.
const PROMPT: usize = PAGE_TOKENS - 2;
const TOKENS: usize = PAGE_TOKENS + 6;

fn model(case: &str) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let device = Device::cpu().expect("a thread pool");
    let kernels = Kernels::load(&device).expect("this crate's own archive");
    Model::load(&path.join(case), kernels, &mut |_, _| {}).expect("a golden case")
}

fn session(model: &Model, sequences: usize, pages: usize) -> Session {
    let room = Room {
        sequences,
        context: 2 * PAGE_TOKENS,
        most_tokens: PROMPT,
        pages: Some(pages),
    };
    model.session_in(room).expect("memory")
}

fn ids(model: &Model, count: usize, from: usize) -> Vec<u32> {
    let id = |i| ((i * 7919 + from * 104_729 + i * i) % model.config().vocab_size) as u32;
    (0..count).map(id).collect()
}

/// Bits of the last token's logits of every call: the prompt whole, then one token after the other.
fn read(
    model: &Model,
    session: &mut Session,
    sequence: usize,
    ids: &[u32],
) -> Result<Vec<u32>, ModelError> {
    let (prompt, rest) = ids.split_at(PROMPT.min(ids.len()));
    let mut bits = vec![];
    for ids in std::iter::once(prompt).chain(rest.chunks(1)) {
        let run = Run {
            sequence,
            ids,
            next_ids: None,
        };
        let output = model.forward(session, &[run], Logits::Last, None)?;
        let logits = output.logits.to_vec::<f32>()?;
        bits.extend(logits.into_iter().map(f32::to_bits));
    }
    Ok(bits)
}

#[test]
fn a_request_finds_nothing_of_those_before_it() {
    for case in CASES {
        let model = model(case);
        let mine = ids(&model, TOKENS, 1);
        let expected = read(&model, &mut session(&model, 1, 2), 0, &mine).expect("room");

        // Other requests have had its state and its pages, the other way round, and all that they left is not a number.
        let mut used = session(&model, 2, 3);
        for (sequence, tokens) in [(1, TOKENS), (0, 40)] {
            let others = ids(&model, tokens, 2 + sequence);
            read(&model, &mut used, sequence, &others).expect("room");
        }
        (0..2).for_each(|sequence| used.reset(sequence));
        for tensor in used.cache_mut().tensors_mut() {
            tensor.bytes_mut().expect("memory of the CPU").fill(0xff);
        }
        let sequence = used.start().expect("both are free");
        let found = read(&model, &mut used, sequence, &mine).expect("room");
        assert!(found == expected, "{case}: other bits in used memory");

        // The same beside a request that goes on, in the pages of one that ended between two calls of it.
        let mut shared = session(&model, 2, 4);
        let other = ids(&model, TOKENS, 5);
        read(&model, &mut shared, 0, &other[..30]).expect("room");
        read(&model, &mut shared, 1, &other).expect("room");
        shared.reset(1);
        let found = read(&model, &mut shared, 1, &mine).expect("room");
        assert!(found == expected, "{case}: other bits in another's pages");
    }
}

#[test]
fn too_few_pages_are_an_error_after_which_others_go_on() {
    for case in CASES {
        let model = model(case);
        let mine = ids(&model, TOKENS, 1);
        let mut session = session(&model, 2, 2);
        let other = ids(&model, 20, 2);
        let before = read(&model, &mut session, 0, &other).expect("room");
        let full = read(&model, &mut session, 1, &mine).unwrap_err();
        let ModelError::Full(CacheFull::Pages {
            needed: 1,
            free: 0,
            total: 2,
        }) = full
        else {
            panic!("{full}");
        };
        let text = full.to_string();
        assert!(
            text.contains("needs 1 more pages of 512 tokens")
                && text.contains("0 of the cache's 2"),
            "{text}"
        );
        // What was read until then stays, and there is room again when the other ends.
        assert_eq!(session.cache().length(1), Some(PAGE_TOKENS));
        session.reset(0);
        let run = Run {
            sequence: 1,
            ids: &mine[PAGE_TOKENS..],
            next_ids: None,
        };
        let output = model.forward(&mut session, &[run], Logits::Last, None);
        let last = output.expect("a page is free").logits.to_vec::<f32>();
        let last: Vec<u32> = last
            .expect("memory of the CPU")
            .into_iter()
            .map(f32::to_bits)
            .collect();
        let mut fresh = self::session(&model, 1, 2);
        let expected = read(&model, &mut fresh, 0, &mine).expect("room");
        assert!(
            expected.ends_with(&last),
            "{case}: other bits after an error"
        );
        // One state and one page are free.
        let again = session.start().expect("a state is free");
        session.reset(1);
        let after = read(&model, &mut session, again, &other).expect("room");
        assert!(before == after, "{case}: other bits in a freed state");
    }
}
