//! Random programs: compiled code gives the interpreter's bits.
//!
//! `TESSERA_SOAK_FACTOR` multiplies how many; a failing program is shrunk to a small one.

use crate::harness::agree;
use proptest::prelude::*;
use tessera_compiler::tile::generate::{Features, program};
use tessera_compiler::tile::pass;

/// Of each of the three kinds, which run side by side.
const CASES: u32 = 100;

fn config() -> ProptestConfig {
    let factor = std::env::var("TESSERA_SOAK_FACTOR").ok();
    ProptestConfig {
        cases: CASES * factor.and_then(|n| n.parse().ok()).unwrap_or(1),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..ProptestConfig::default()
    }
}

fn check(choices: &[u8], features: Features) {
    let program = program(choices, features);
    let mut kernel = program.kernel;
    if let Err(e) = pass::pipeline_cpu(&mut kernel) {
        panic!("{e}");
    }
    agree(&kernel, &program.args, "a random program");
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn plain_programs(choices in proptest::collection::vec(any::<u8>(), 0..120)) {
        check(&choices, Features { transcendentals: false, tiny_floats: false, topk: true, roles: false, specials: true });
    }

    #[test]
    fn programs_with_functions_and_small_floats(choices in proptest::collection::vec(any::<u8>(), 0..120)) {
        check(&choices, Features { roles: false, ..Features::ALL });
    }

    #[test]
    fn programs_with_roles(choices in proptest::collection::vec(any::<u8>(), 0..120)) {
        // The first choice that asks for roles.
        let mut choices = choices;
        choices.insert(0, 5);
        check(&choices, Features::ALL);
    }
}
