//! The forward pass on the emulated H100: the same calls as on the CPU, and the same bits, launched and replayed.

use std::path::{Path, PathBuf};

use tessera::model::kernels::Kernels;
use tessera::model::{Logits, Model, Run, Session};
use tessera_device::Device;

#[allow(dead_code)]
#[path = "../../compiler/tests/gpu/emulator/mod.rs"]
mod emulator;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(case)
}

fn model(folder: &Path, device: &Device) -> Model {
    let kernels = Kernels::load(device).expect("the embedded archive loads");
    Model::load(folder, kernels, &mut |_, _| {}).expect("the case loads")
}

/// Bits of the logits of a call's tokens.
fn call(model: &Model, session: &mut Session, runs: &[(usize, &[u32])]) -> Vec<u32> {
    let runs: Vec<Run> = (runs.iter())
        .map(|&(sequence, ids)| Run {
            sequence,
            ids,
            next_ids: None,
        })
        .collect();
    let output = model
        .forward(session, &runs, Logits::All, None)
        .expect("the call runs");
    let logits = output.logits.to_vec::<f32>().expect("f32 logits");
    logits.into_iter().map(f32::to_bits).collect()
}

/// Three prompts, then steps of all three, which an idle sequence fills up, and of one, of which a GPU launches the first of its kind, records the second and replays the third.
fn calls(model: &Model) -> Vec<Vec<u32>> {
    let mut session = model.session(4, 16, 8).expect("a session");
    let prompts: [(usize, &[u32]); 3] = [(0, &[3, 1, 4, 1, 5]), (2, &[9, 2]), (3, &[6])];
    let mut bits = vec![call(model, &mut session, &prompts)];
    for id in 0..3 {
        let step: [(usize, &[u32]); 3] = [(2, &[6 + id]), (3, &[7 + id]), (0, &[5 + id])];
        bits.push(call(model, &mut session, &step));
        bits.push(call(model, &mut session, &[(0, &[8 + id])]));
    }
    // It starts as if it had filled up nothing.
    bits.push(call(model, &mut session, &[(1, &[3, 1])]));
    bits
}

#[test]
fn a_gpu_has_the_cpus_bits() {
    for case in ["g3_window_only", "g4_csa_select"] {
        let folder = golden(case);
        let expected = calls(&model(&folder, &Device::cpu().expect("a CPU")));
        let found = calls(&model(&folder, &emulator::device()));
        for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
            assert_eq!(expected.len(), found.len());
            let differing = expected.iter().zip(found).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 0, "{case}: call {number}, of {}", found.len());
        }
    }
}
