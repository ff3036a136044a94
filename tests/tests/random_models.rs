//! The generator of random models: everything it makes is a valid model, and between them the cases cover the ranges.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tessera::model::config::{Config, LayerKind};
use tessera::weights::expected_tensors;
use tessera_tests::random_model::{benchmark_config, prepare_case, random_case};

const CASES: u64 = 40;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        Folder(std::env::temp_dir().join(format!("tessera-random-{}-{name}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(number: u64) -> Config {
    Config::from_json(random_case(number, 0).config.to_string().as_bytes()).unwrap()
}

#[test]
fn the_cases_cover_the_ranges() {
    let configs: Vec<Config> = (0..CASES).map(config).collect();
    let some = |what: &str, test: &dyn Fn(&Config) -> bool| {
        assert!(configs.iter().any(test), "no case with {what}");
    };
    let has = |config: &Config, test: fn(LayerKind) -> bool| {
        config.layers.iter().any(|layer| test(*layer))
    };
    some("all three kinds of layer", &|c| {
        has(c, |k| k == LayerKind::Window)
            && has(c, |k| matches!(k, LayerKind::CompressedSparse { .. }))
            && has(c, |k| matches!(k, LayerKind::HeavilyCompressed { .. }))
    });
    some("an odd heavy ratio", &|c| {
        has(
            c,
            |k| matches!(k, LayerKind::HeavilyCompressed { ratio } if ratio % 2 == 1),
        )
    });
    some("an odd sparse ratio", &|c| {
        has(
            c,
            |k| matches!(k, LayerKind::CompressedSparse { ratio } if ratio % 2 == 1),
        )
    });
    some("a window of 1", &|c| c.sliding_window == 1);
    some("every expert picked", &|c| {
        c.num_experts_per_tok == c.n_routed_experts && c.n_routed_experts > 6
    });
    some("one expert", &|c| c.n_routed_experts == 1);
    some("every entry picked", &|c| {
        c.index_topk == 2048 && has(c, |k| matches!(k, LayerKind::CompressedSparse { .. }))
    });
    some("one entry picked", &|c| c.index_topk == 1);
    some("few index heads", &|c| {
        c.index_n_heads < 5 && has(c, |k| matches!(k, LayerKind::CompressedSparse { .. }))
    });
    some("few index heads and few picks", &|c| {
        c.index_n_heads < 5
            && c.index_topk < 10
            && has(c, |k| matches!(k, LayerKind::CompressedSparse { .. }))
    });
    some("many index heads", &|c| {
        c.index_n_heads > 16 && has(c, |k| matches!(k, LayerKind::CompressedSparse { .. }))
    });
    some("a window of more than one block of keys", &|c| {
        c.sliding_window > 64
    });
    some("hundreds of experts", &|c| {
        c.n_routed_experts > 256 && c.num_experts_per_tok > 8
    });
    some("one residual stream", &|c| c.hc_mult == 1);
    some("eight residual streams", &|c| c.hc_mult == 8);
    some("one Sinkhorn step", &|c| c.hc_sinkhorn_iters == 1);
    some("only rotated dims", &|c| c.head_dim == c.qk_rope_head_dim);
    some("the widest head", &|c| c.head_dim == 512);
    some("an odd hidden size", &|c| c.hidden_size % 2 == 1);
    some("an odd head", &|c| c.head_dim % 2 == 1);
    some("an odd index width", &|c| c.index_head_dim % 2 == 1);
    some("several output groups", &|c| {
        c.o_groups > 1 && c.num_attention_heads > c.o_groups
    });
    some("a draft module", &|c| c.num_nextn_predict_layers == 1);
    some("no scaling of the rotary table", &|c| c.yarn.is_none());
    some("hash layers only", &|c| {
        c.num_hash_layers == c.num_hidden_layers
    });
    some("no hash layer", &|c| c.num_hash_layers == 0);
    let batches: BTreeSet<usize> = (0..CASES)
        .map(|number| random_case(number, 0).ids.len())
        .collect();
    assert_eq!(batches, BTreeSet::from([1, 2, 3]));
}

#[test]
fn the_reference_runs_the_cases_and_nothing_in_them_is_degenerate() {
    for number in 0..CASES {
        let folder = Folder::new(&number.to_string());
        let (case, run) = prepare_case(number, &folder.0).unwrap();
        assert_eq!(case, random_case(number, case.seed / 1000));
        for (name, array) in &run.tensors {
            assert!(
                array
                    .data
                    .iter()
                    .all(|value| value.is_finite() && value.abs() < 1e3),
                "case {number}: {name}"
            );
        }
        let logits = &run.tensors["logits"].data;
        let mean = logits.iter().sum::<f64>() / logits.len() as f64;
        let deviation =
            (logits.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / logits.len() as f64).sqrt();
        assert!(
            (0.5..6.0).contains(&deviation),
            "case {number}: logits with a standard deviation of {deviation}"
        );
    }
}

#[test]
fn the_benchmark_model_has_its_published_size() {
    let config = Config::from_json(benchmark_config().to_string().as_bytes()).unwrap();
    let tensors = expected_tensors(&config);
    let parameters: usize = tensors
        .iter()
        .filter(|tensor| !tensor.name.ends_with("tid2eid"))
        .map(|tensor| tensor.shape.iter().product::<usize>())
        .sum();
    assert_eq!((parameters + 500_000) / 1_000_000, 272, "{parameters}");
}
