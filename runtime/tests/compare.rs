//! The comparison of devices, with one device that is both: equal models agree in every bit, others do not.

use tessera::model::config::Config;
use tessera::model::kernels::Kernels;
use tessera::model::{Model, ModelError};
use tessera::verify::Check;
use tessera::verify::devices::{Trial, compare};
use tessera_device::{CpuOptions, Device};

fn model(layers: usize, seed: u32) -> Model {
    let device = Device::cpu_with(CpuOptions::default()).unwrap();
    let kernels = Kernels::load(&device).unwrap();
    Model::synthetic(
        Config::narrow().first_layers(layers),
        seed,
        kernels,
        &mut |_, _| {},
    )
    .unwrap()
}

const TRIAL: Trial = Trial {
    prompt: 133,
    chunk: 50,
    decode: 4,
    seed: 7,
};

fn checks(a: &Model, b: &Model) -> Result<Vec<Check>, ModelError> {
    let mut calls = 0;
    let checks = compare(a, b, &TRIAL, &mut || calls += 1);
    assert!(checks.is_err() || calls == TRIAL.calls());
    checks
}

#[test]
fn a_model_agrees_with_itself_and_with_no_other() {
    let (first, second) = (model(4, 1), model(4, 2));
    let same = checks(&first, &first).unwrap();
    for phase in ["prefill", "decode"] {
        // Both attention sites of every kind of layer, experts, blocks.
        for name in [
            "L2.idx.topk",
            "L3.comp.kv",
            "L0.moe.shared",
            "block.hidden.3",
            "logits",
        ] {
            let name = format!("{phase}.{name}");
            assert!(
                same.iter().any(|check| check.name == name),
                "nothing compares `{name}`"
            );
        }
    }
    for check in &same {
        assert_eq!(check.error, 0.0, "{}", check.name);
    }
    let other = checks(&first, &second).unwrap();
    for kind in ["attn.q", "attn.kv", "comp.kv", "moe.shared", "gate.logits"] {
        let name = format!("prefill.L2.{kind}");
        let name = name.replace("L2.comp", "L3.comp");
        let check = other.iter().find(|check| check.name == name).unwrap();
        assert!(!check.is_fine(), "{name}: {}", check.error);
    }
}

#[test]
fn what_cannot_be_compared_is_said() {
    let refused = |a: &Model, b: &Model| checks(a, b).unwrap_err().to_string();
    assert_eq!(
        refused(&model(1, 1), &model(2, 1)),
        "the two models have different configurations"
    );
}
