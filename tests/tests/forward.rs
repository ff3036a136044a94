//! The forward pass, end to end: kernels that the compiler made of `kernels-src`, on the CPU.
//!
//! Golden cases run through the library function behind `v4 verify`. Random models over the stated ranges are held to the f64
//! reference, and to themselves: a ragged batch, cut into chunks, token by token, on one thread and on two, has the same bits.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use tessera::model::config::Config;
use tessera::model::kernels::Kernels;
use tessera::model::{Logits, Model, Run, Session, Trace};
use tessera::verify::verify;
use tessera::weights::Dtype;
use tessera_device::{CpuOptions, Device, View};
use tessera_tests::components::Recorded;
use tessera_tests::random::cases;
use tessera_tests::random_model::{
    RandomCase, prepare, prepare_case, range_end_case, range_ends, rewrite_model,
};
use tessera_tests::reference::Run as Reference;

const RANDOM_MODELS: usize = 40;

fn kernels(threads: usize) -> Kernels {
    let options = CpuOptions {
        threads: NonZeroUsize::new(threads),
        ..CpuOptions::default()
    };
    Kernels::load(&Device::cpu_with(options).expect("a CPU device"))
        .expect("the embedded archive loads")
}

fn golden(case: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(case);
    let model = Model::load(&folder, kernels(2), &mut |_, _| {}).expect("the case loads");
    let checks = verify(&model, &folder, &mut |_| {}).expect("the case runs");
    assert!(checks.len() > 20, "only {} comparisons", checks.len());
    let wrong: Vec<String> = checks
        .iter()
        .filter(|check| !check.is_fine())
        .map(|check| {
            format!(
                "{}: error {:.3e}, at most {:.3e}",
                check.name, check.error, check.bound
            )
        })
        .collect();
    assert!(wrong.is_empty(), "{case}:\n{}", wrong.join("\n"));
}

#[test]
fn golden_g1_mixed_tiny_mtp() {
    golden("g1_mixed_tiny_mtp");
}

#[test]
fn golden_quantised_window_sparse_heavy() {
    golden("quant/q1_w_c_h");
}

#[test]
fn golden_quantised_heavy_and_draft() {
    golden("quant/q2_h_mtp");
}

#[test]
fn golden_g2_real_head_r128() {
    golden("g2_real_head_r128");
}

#[test]
fn golden_g3_window_only() {
    golden("g3_window_only");
}

#[test]
fn golden_g4_csa_select() {
    golden("g4_csa_select");
}

#[test]
fn golden_g5_hca_moe6() {
    golden("g5_hca_moe6");
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What one way of feeding sequences gave: `[V]` of every token, sequence by sequence.
struct Fed {
    logits: Vec<Vec<f32>>,
    /// Of the draft module; empty without one.
    draft: Vec<Vec<f32>>,
}

/// Sequences of token ids, and the tokens after them for the draft module.
#[derive(Clone)]
struct Prompts {
    ids: Vec<Vec<u32>>,
    next_ids: Option<Vec<Vec<u32>>>,
}

/// Feeds every sequence in steps of `step(sequence, round)` tokens.
fn feed(
    model: &Model,
    prompts: &Prompts,
    step: impl Fn(usize, usize) -> usize,
    mut trace: Option<&mut Recorded>,
) -> Fed {
    let ids = &prompts.ids;
    let context = ids.iter().map(Vec::len).max().expect("sequences");
    let most = ids.iter().map(Vec::len).sum();
    let mut session: Session = model.session(ids.len(), context, most).expect("a session");
    let mut fed = Fed {
        logits: vec![Vec::new(); ids.len()],
        draft: vec![Vec::new(); ids.len()],
    };
    let mut done = vec![0; ids.len()];
    let vocab = model.config().vocab_size;
    for round in 0.. {
        let mut runs = Vec::new();
        for (sequence, tokens) in ids.iter().enumerate() {
            let end = (done[sequence] + step(sequence, round)).min(tokens.len());
            if end > done[sequence] {
                let part = done[sequence]..end;
                runs.push(Run {
                    sequence,
                    ids: &tokens[part.clone()],
                    next_ids: prompts
                        .next_ids
                        .as_ref()
                        .map(|next| &next[sequence][part.clone()]),
                });
                done[sequence] = end;
            }
        }
        if runs.is_empty() {
            break;
        }
        let trace = trace.as_deref_mut().map(|trace| trace as &mut dyn Trace);
        let output = model
            .forward(&mut session, &runs, Logits::All, trace)
            .expect("the call runs");
        let split = |rows: View, to: &mut [Vec<f32>]| {
            let mut rows = rows.as_slice::<f32>().expect("f32 logits").chunks(vocab);
            for run in &runs {
                let of_run = rows.by_ref().take(run.ids.len());
                to[run.sequence].extend(of_run.flatten());
            }
            assert_eq!(rows.len(), 0, "a row of logits for every token");
        };
        split(output.logits, &mut fed.logits);
        if let Some(draft) = output.draft_logits {
            split(draft, &mut fed.draft);
        }
    }
    fed
}

fn assert_same_bits(what: &str, one: &Fed, other: &Fed) {
    for (one, other) in [(&one.logits, &other.logits), (&one.draft, &other.draft)] {
        assert_eq!(one.len(), other.len(), "{what}");
        for (sequence, (a, b)) in one.iter().zip(other).enumerate() {
            assert_eq!(a.len(), b.len(), "{what}: sequence {sequence}");
            let mut pairs = a.iter().zip(b);
            let first = pairs.position(|(x, y)| x.to_bits() != y.to_bits());
            assert_eq!(
                first, None,
                "{what}: logits of sequence {sequence} differ there first"
            );
        }
    }
}

/// Every component and the logits against the reference.
fn assert_near_reference(
    name: &str,
    case: &RandomCase,
    reference: &Reference,
    recorded: &Recorded,
    config: &Config,
) {
    let tokens = case.ids.iter().map(Vec::len).sum();
    let comparisons = recorded.compare(config, &reference.tensors, tokens);
    let wrong: Vec<String> = comparisons
        .iter()
        .filter(|comparison| !comparison.is_fine())
        .map(ToString::to_string)
        .collect();
    assert!(
        wrong.is_empty(),
        "{name}, in the order of computation:\n{}\ngaps {:?}\n{:#}",
        wrong.join("\n"),
        reference.gaps,
        case.config
    );
}

#[test]
fn random_models_agree_with_the_reference() {
    for number in 0..cases(RANDOM_MODELS) as u64 {
        let folder = Folder(
            std::env::temp_dir().join(format!("tessera-forward-{}-{number}", std::process::id())),
        );
        let (case, reference) = prepare_case(number, &folder.0).expect("a random model");
        let model = Model::load(&folder.0, kernels(2), &mut |_, _| {})
            .unwrap_or_else(|error| panic!("model {number}: {error}\n{:#}", case.config));
        let prompts = Prompts {
            ids: case.ids.clone(),
            next_ids: case.next_ids.clone(),
        };

        let mut recorded = Recorded::default();
        let all = |_, _| usize::MAX / 2;
        let whole = feed(&model, &prompts, all, Some(&mut recorded));
        let name = format!("model {number}");
        assert_near_reference(&name, &case, &reference, &recorded, model.config());

        // Sequences of different lengths in one call, cut differently each.
        let shorten = |ids: &[Vec<u32>]| -> Vec<Vec<u32>> {
            let cut =
                |(b, ids): (usize, &Vec<u32>)| ids[..ids.len() - b.min(ids.len() - 1)].to_vec();
            ids.iter().enumerate().map(cut).collect()
        };
        let ragged = Prompts {
            ids: shorten(&prompts.ids),
            next_ids: prompts.next_ids.as_deref().map(shorten),
        };
        let vocab = model.config().vocab_size;
        let start = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
            let lengths = ragged.ids.iter().map(|ids| ids.len() * vocab);
            let cut = |(row, length): (&Vec<f32>, usize)| row[..length.min(row.len())].to_vec();
            rows.iter().zip(lengths).map(cut).collect()
        };
        let expected = Fed {
            logits: start(&whole.logits),
            draft: start(&whole.draft),
        };
        let same = |how: &str, prompts: &Prompts, step: &dyn Fn(usize, usize) -> usize| {
            let fed = feed(&model, prompts, step, None);
            assert_same_bits(&format!("model {number}, {how}"), &expected, &fed);
        };
        same("shorter", &ragged, &all);
        same("in chunks", &ragged, &|sequence, round| {
            1 + (5 * sequence + 3 * round) % 7
        });
        same("token by token", &ragged, &|_, _| 1);

        let alone = Model::load(&folder.0, kernels(1), &mut |_, _| {}).expect("it loaded before");
        let fed = feed(&alone, &prompts, all, None);
        assert_same_bits(&format!("model {number}, one thread"), &whole, &fed);
    }
}

/// One small model for each end of every range of the configuration.
#[test]
fn the_ends_of_every_range_agree_with_the_reference() {
    for (number, (name, config)) in range_ends().into_iter().enumerate() {
        let folder = Folder(
            std::env::temp_dir().join(format!("tessera-ends-{}-{number}", std::process::id())),
        );
        let (case, reference) = prepare(&folder.0, |attempt| range_end_case(&config, attempt))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let model = Model::load(&folder.0, kernels(2), &mut |_, _| {})
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let prompts = Prompts {
            ids: case.ids.clone(),
            next_ids: case.next_ids.clone(),
        };
        let mut recorded = Recorded::default();
        let whole = feed(&model, &prompts, |_, _| usize::MAX / 2, Some(&mut recorded));
        assert_near_reference(&name, &case, &reference, &recorded, model.config());
        let tokens = feed(&model, &prompts, |_, _| 1, None);
        assert_same_bits(&format!("{name}, token by token"), &whole, &tokens);
    }
}

/// Weights that are stored as bf16 stay so; the result has the bits that their widened values give. In one file or in shards.
#[test]
fn weights_in_bf16_give_the_bits_of_widened_ones() {
    for number in [0, 3, 5, 8, 11] {
        let at = |name: &str| {
            let process = std::process::id();
            Folder(std::env::temp_dir().join(format!("tessera-bf16-{process}-{number}-{name}")))
        };
        let [first, narrow, wide, mixed] = ["first", "narrow", "wide", "mixed"].map(at);
        let (case, _) = prepare_case(number, &first.0).expect("a random model");
        let prompts = Prompts {
            ids: case.ids.clone(),
            next_ids: case.next_ids.clone(),
        };
        let all = |dtype: Dtype| move |_: &str| dtype;
        // Neighbours in a stack and experts of one layer in different types.
        let by_name = |name: &str| match name.bytes().map(usize::from).sum::<usize>() % 3 {
            0 => Dtype::F32,
            _ => Dtype::BF16,
        };
        rewrite_model(&first.0, &narrow.0, 1, all(Dtype::BF16)).expect("written");
        rewrite_model(&narrow.0, &wide.0, 1, all(Dtype::F32)).expect("written");
        rewrite_model(&narrow.0, &mixed.0, 3, by_name).expect("written");
        let run = |folder: &Folder| {
            let model = Model::load(&folder.0, kernels(2), &mut |_, _| {}).expect("a model");
            let bytes = model.weight_bytes();
            (bytes, feed(&model, &prompts, |_, _| usize::MAX / 2, None))
        };
        let (wide_bytes, widened) = run(&wide);
        let (narrow_bytes, stored) = run(&narrow);
        let (mixed_bytes, of_both) = run(&mixed);
        assert_same_bits(&format!("model {number}, bf16"), &widened, &stored);
        assert_same_bits(&format!("model {number}, both types"), &widened, &of_both);
        // All but the vectors and the expert tables.
        assert!(
            narrow_bytes * 10 < wide_bytes * 6
                && narrow_bytes < mixed_bytes
                && mixed_bytes < wide_bytes,
            "model {number}: {narrow_bytes}, {mixed_bytes}, {wide_bytes} bytes"
        );
    }
}

/// The comparison itself: what is a little too far off is reported under its name, and so is another choice.
#[test]
fn differences_from_the_reference_are_found() {
    let folder =
        Folder(std::env::temp_dir().join(format!("tessera-differences-{}", std::process::id())));
    let (case, reference) = prepare_case(12, &folder.0).expect("a random model");
    let model = Model::load(&folder.0, kernels(2), &mut |_, _| {}).expect("the model loads");
    let prompts = Prompts {
        ids: case.ids.clone(),
        next_ids: case.next_ids.clone(),
    };
    let mut recorded = Recorded::default();
    feed(&model, &prompts, |_, _| usize::MAX / 2, Some(&mut recorded));
    let tokens = case.ids.iter().map(Vec::len).sum();
    let wrong_names = |name: &str, change: &dyn Fn(&mut Vec<f64>)| -> Vec<String> {
        let mut tensors = reference.tensors.clone();
        change(&mut tensors.get_mut(name).expect(name).data);
        let comparisons = recorded.compare(model.config(), &tensors, tokens);
        let wrong = comparisons.into_iter().filter(|c| !c.is_fine());
        wrong.map(|c| c.name).collect()
    };
    assert_eq!(wrong_names("logits", &|_| ()), [""; 0]);
    for name in ["logits", "L0.attn.kv", "L0.ffn_hc.comb", "L0.gate.topk_w"] {
        let off = |data: &mut Vec<f64>| *data.last_mut().expect("values") += 1e-3;
        assert_eq!(wrong_names(name, &off), [name]);
    }
    assert_eq!(
        wrong_names("hidden.0", &|data| data[5] = f64::NAN),
        ["hidden.0"]
    );
    assert_eq!(
        wrong_names("L0.attn.q", &|data| data.truncate(7)),
        ["L0.attn.q"]
    );
    let chosen = "L0.gate.topk_idx";
    assert_eq!(wrong_names(chosen, &|data| data[0] = 99.0), [chosen]);
}
