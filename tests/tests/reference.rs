//! The float64 reference forward pass against the golden cases, which were computed by another implementation.

use tessera_tests::golden::{CASES, Case, Comparison};
use tessera_tests::reference::Reference;

fn assert_fine(case: &str, what: &str, comparisons: &[Comparison]) {
    assert!(
        !comparisons.is_empty(),
        "{case}, {what}: nothing was compared"
    );
    let wrong: Vec<String> = comparisons
        .iter()
        .filter(|c| !c.is_fine())
        .map(ToString::to_string)
        .collect();
    assert!(wrong.is_empty(), "{case}, {what}:\n{}", wrong.join("\n"));
}

#[test]
fn every_length_and_every_component_of_the_golden_cases() {
    for case in CASES {
        let case = Case::open(case).unwrap();
        let reference = Reference::open(&case.folder).unwrap();
        for &length in &case.lengths {
            let ids = case.ids(&format!("len{length}.input_ids")).unwrap();
            let next_ids = case.ids(&format!("len{length}.mtp.input_ids"));
            assert_eq!(
                next_ids.is_some(),
                reference.config.num_nextn_predict_layers > 0
            );
            let run = reference.run_batch(&ids, next_ids.as_deref());
            assert_fine(
                case.name,
                &format!("length {length}"),
                &case.compare_io(length, &run.tensors),
            );
            if Some(&length) == case.lengths.last() {
                assert_fine(case.name, "trace", &case.compare_trace(&run.tensors));
                // The goldens were chosen with gaps of at least 8e-5.
                assert!(run.gaps.smallest() > 7e-5, "{}: {:?}", case.name, run.gaps);
            }
        }
    }
}

/// A position sees nothing after it, so one pass over prompt and answer shows every step of greedy decoding.
#[test]
fn greedy_tokens_of_the_golden_cases() {
    for case in CASES {
        let case = Case::open(case).unwrap();
        let reference = Reference::open(&case.folder).unwrap();
        let vocab = reference.config.vocab_size;
        let (prompts, answers) = (
            case.ids("gen.prompt_ids").unwrap(),
            case.ids("gen.token_ids").unwrap(),
        );
        let step_logits = case.io.tensor("gen.step_logits").unwrap().to_f64().unwrap();
        for (row, (prompt, answer)) in prompts.iter().zip(&answers).enumerate() {
            let ids: Vec<u32> = prompt
                .iter()
                .chain(&answer[..answer.len() - 1])
                .copied()
                .collect();
            let logits = reference.run(&ids, None).tensors.remove("logits").unwrap();
            let steps = logits.data.chunks(vocab).skip(prompt.len() - 1);
            let golden = step_logits.chunks(vocab).skip(row * answer.len());
            for (step, ((logits, golden), &token)) in steps.zip(golden).zip(answer).enumerate() {
                let best = (0..vocab)
                    .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
                    .unwrap();
                assert_eq!(
                    best as u32, token,
                    "{}, sequence {row}, step {step}",
                    case.name
                );
                let error = logits
                    .iter()
                    .zip(golden)
                    .map(|(a, b)| (a - b).abs())
                    .fold(0.0, f64::max);
                assert!(
                    error <= 1e-4,
                    "{}, sequence {row}, step {step}: logits are {error:.1e} off",
                    case.name
                );
            }
        }
    }
}

/// The comparison itself: what is a little too far off, unequal or no number is reported, under its name.
#[test]
fn differences_from_a_golden_case_are_found() {
    let case = Case::open("g4_csa_select").unwrap();
    let reference = Reference::open(&case.folder).unwrap();
    let length = *case.lengths.last().unwrap();
    let ids = case.ids(&format!("len{length}.input_ids")).unwrap();
    let right = reference.run_batch(&ids, None).tensors;
    let wrong_names = |name: &str, change: fn(&mut Vec<f64>)| {
        let mut tensors = right.clone();
        change(&mut tensors.get_mut(name).unwrap().data);
        let all = case
            .compare_io(length, &tensors)
            .into_iter()
            .chain(case.compare_trace(&tensors));
        all.filter(|comparison| !comparison.is_fine())
            .map(|comparison| comparison.name)
            .collect::<Vec<_>>()
    };
    assert_eq!(wrong_names("logits", |_| ()), [""; 0]);
    assert_eq!(
        wrong_names("logits", |data| data[777] += 1.5e-4),
        ["logits"]
    );
    assert_eq!(
        wrong_names("hidden.1", |data| data[5] = f64::NAN),
        ["hidden.1"]
    );
    // Stored for some positions only; the last is one of them.
    assert_eq!(
        wrong_names("L1.attn.q", |data| *data.last_mut().unwrap() += 1e-3),
        ["L1.attn.q"]
    );
    assert_eq!(
        wrong_names("L1.attn.kv", |data| data[9] *= 1.01),
        ["L1.attn.kv"]
    );
    assert_eq!(
        wrong_names("L1.idx.topk", |data| *data.last_mut().unwrap() += 40.0),
        ["L1.idx.topk"]
    );
    assert_eq!(
        wrong_names("L1.comp.visible", |data| data[0] = 1.0),
        ["L1.comp.visible"]
    );
    assert_eq!(
        wrong_names("L1.gate.topk_idx", |data| data.swap(0, 1)),
        [""; 0]
    );
    assert_eq!(
        wrong_names("L1.gate.topk_idx", |data| data[1] = 8.0),
        ["L1.gate.topk_idx"]
    );
    assert_eq!(
        wrong_names("L1.gate.topk_w", |data| data[1] += 1e-3),
        ["L1.gate.topk_w"]
    );
}
