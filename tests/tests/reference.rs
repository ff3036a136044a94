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
