//! Every pass alone and the pipelines whole, on generated programs and on written ones: the interpreter gives the same bits before
//! and after.

use super::*;
use crate::tile::generate::{Features, program, results};
use crate::tile::interp::{Arg, Args, Buffer, Options, run as interpret};
use crate::tile::ir::*;
use crate::tile::parse::parse;
use crate::tile::print::print;
use proptest::prelude::*;
use tessera_artifact::DType;

fn outcome(kernel: &Kernel, args: &Args, seed: u64) -> Vec<Vec<u64>> {
    let mut args = args.clone();
    let options = Options {
        seed,
        persistent_ctas: 1 + seed % 3,
    };
    interpret(kernel, &mut args, &options).unwrap_or_else(|e| panic!("{e}\n{}", print(kernel)));
    results(&args)
}

fn same_results(name: &str, before: &Kernel, after: &Kernel, args: &Args) {
    verify::after("the pass under test", after).unwrap_or_else(|b| panic!("{name}: {b}"));
    let (a, b) = (outcome(before, args, 0), outcome(after, args, 7));
    assert!(
        a == b,
        "{name} changes results\nbefore:\n{}\nafter:\n{}",
        print(before),
        print(after)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn generated_programs_keep_their_bits(choices in prop::collection::vec(any::<u8>(), 0..120)) {
        let program = program(&choices, Features::ALL);
        verify::after("the generator", &program.kernel).unwrap_or_else(|b| panic!("{b}"));
        // The text is a faithful copy.
        let text = print(&program.kernel);
        let again = parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        prop_assert_eq!(&print(&again), &text);
        let mut meaning = program.kernel.clone();
        pipeline_meaning(&mut meaning).unwrap_or_else(|e| panic!("{e}"));
        for (name, pass) in [
            pass!(legalize_small_floats), pass!(simplify), pass!(hoist), pass!(fuse_maps),
            pass!(forward_stores), pass!(dead_tiles), pass!(unroll), pass!(bring_ahead), ("fuse_roles", fuse_roles as Pass),
        ] {
            let mut after = meaning.clone();
            pass(&mut after).unwrap_or_else(|e| panic!("{name}: {e}\n{text}"));
            same_results(name, &meaning, &after, &program.args);
        }
        let mut after = program.kernel.clone();
        pipeline_code(&mut after).unwrap_or_else(|e| panic!("{e}\n{text}"));
        same_results("pipeline_code", &meaning, &after, &program.args);
        let mut after = program.kernel.clone();
        pipeline_cpu(&mut after).unwrap_or_else(|e| panic!("{e}\n{text}"));
        same_results("pipeline_cpu", &meaning, &after, &program.args);
        let mut after = program.kernel.clone();
        pipeline_gpu(&mut after).unwrap_or_else(|e| panic!("{e}\n{text}"));
        same_results("pipeline_gpu", &meaning, &after, &program.args);
    }
}

/// `TESSERA_SOAK_FACTOR` times as many where it is set.
fn cases() -> u32 {
    let factor = std::env::var("TESSERA_SOAK_FACTOR").ok();
    300 * factor.and_then(|v| v.parse().ok()).unwrap_or(1)
}

fn after(pass: fn(&mut Kernel), text: &str) -> String {
    let mut kernel = parse(text).unwrap();
    verify::after("the text", &kernel).unwrap_or_else(|b| panic!("{b}"));
    pass(&mut kernel);
    verify::after("the pass", &kernel).unwrap_or_else(|b| panic!("{b}"));
    print(&kernel)
}

/// The body of a kernel over `x` and `y` [8] f32 and two tiles.
fn kernel(body: &str) -> String {
    format!(
        r#"kernel "k" {{
  param p0 "x" in [8] f32 align 4
  param p1 "y" out [8] f32 align 4
  grid [1]
  tile t0 "a" reg [8] f32
  tile t1 "b" reg [8] f32
  body {{
{body}  }}
}}
"#
    )
}

#[test]
fn maps_fuse_and_tiles_vanish() {
    let text = kernel(
        "    map [8] (%0) {
      %1 = load p0[%0]
      %2 = add %1, %1
      store t0[%0] = %2
    }
    %3 = const f32 3.0
    map [8] (%4) {
      %5 = load t0[%4]
      %6 = mul %5, %3
      store t1[%4] = %6
    }
    map [8] (%7) {
      %8 = load t1[%7]
      store p1[%7] = %8
    }
",
    );
    let expected = kernel(
        "    %0 = const f32 3.0
    map [8] (%1) {
      %2 = load p0[%1]
      %3 = add %2, %2
      %4 = mul %3, %0
      store p1[%1] = %4
    }
",
    );
    assert_eq!(after(|k| pipeline_code(k).unwrap(), &text), expected);
}

#[test]
fn maps_that_read_neighbours_stay_apart() {
    let text = kernel(
        "    %0 = const index 7
    map [8] (%1) {
      %2 = load p0[%1]
      store t0[%1] = %2
    }
    map [8] (%3) {
      %4 = sub %0, %3
      %5 = load t0[%4]
      store p1[%3] = %5
    }
",
    );
    assert_eq!(after(|k| pipeline_code(k).unwrap(), &text), text);
}

#[test]
fn invariant_ops_leave_loops_but_not_branches() {
    let text = kernel(
        "    %0 = const index 0
    %1 = const index 4
    %2 = block 0
    for %0 to %1 (%3) {
      %4 = add %2, %1
      %5 = div %1, %2
      %6 = lt %4, %5
      if %6 {
        %7 = mul %4, %4
        %8 = lt %7, %1
        assert %8 \"m\"
      }
    }
",
    );
    let expected = text.replace(
        "    for %0 to %1 (%3) {\n      %4 = add %2, %1\n",
        "    %3 = add %2, %1\n    for %0 to %1 (%4) {\n",
    );
    let expected = expected
        .replace("lt %4, %5", "lt %3, %5")
        .replace("mul %4, %4", "mul %3, %3");
    assert_eq!(after(hoist, &text), expected);
}

#[test]
fn constants_branches_and_single_trips_fold() {
    let text = kernel(
        "    %0 = const index 0
    %1 = const index 1
    %2 = const index 2
    %3 = add %1, %1
    %4 = lt %3, %2
    if %4 {
      assert %4 \"never\"
    } else {
      for %1 to %2 (%5) {
        map [1] (%6) {
          %7 = add %5, %6
          %8 = load p0[%7]
          %9 = load p0[%1]
          store p1[%7] = %8
        }
      }
    }
",
    );
    let expected = kernel(
        "    %0 = const index 1
    map [1] (%1) {
      %2 = load p0[%0]
      store p1[%0] = %2
    }
",
    );
    assert_eq!(after(simplify, &text), expected);
}

const NETWORK: &str = include_str!("../interp/network.tile");

fn network_args() -> Args {
    let x: Vec<f64> = (0..60).map(|i| (i % 7) as f64 - 2.5).collect();
    Args(vec![
        Arg::Tensor(Buffer::from_f64(DType::F32, &[5, 3, 4], x)),
        Arg::Tensor(Buffer::zeros(DType::F32, &[5, 4])),
    ])
}

#[test]
fn networks_become_sequential() {
    let before = parse(NETWORK).unwrap();
    let mut after = before.clone();
    pipeline_code(&mut after).unwrap_or_else(|e| panic!("{e}"));
    same_results("pipeline_code", &before, &after, &network_args());
    assert!(!after.launch.persistent);
    for op in after.live_ops() {
        let kind = &after.op(op).kind;
        let is_network = matches!(
            kind,
            OpKind::Role { .. }
                | OpKind::Put { .. }
                | OpKind::Get { .. }
                | OpKind::Release { .. }
                | OpKind::ForItems { .. }
        );
        assert!(!is_network, "{kind:?}");
    }
    // One loop, one tile per channel: nothing is held longer than an iteration.
    let loops = after
        .live_ops()
        .into_iter()
        .filter(|&o| matches!(after.op(o).kind, OpKind::For { .. }))
        .count();
    assert_eq!(loops, 1);
    assert_eq!(after.tiles.iter().filter(|t| t.name == "in").count(), 1);
}

#[test]
fn networks_without_an_order_are_refused() {
    let fuse = |text: &str| {
        let mut kernel = parse(text).unwrap();
        verify::after("the text", &kernel).unwrap_or_else(|b| panic!("{b}"));
        fuse_roles(&mut kernel).expect_err(text).to_string()
    };
    let hungry = NETWORK.replace("          put c1 <- t4[%0 :+ 4] oob never\n", "");
    assert_eq!(
        fuse(&hungry),
        "deadlock: the roles sum copy 0, sum copy 1 all wait for a tile"
    );
    let ahead = NETWORK.replace(
        "          put c1 <- t4",
        "          put c1 <- t4[%0 :+ 4] oob never\n          put c1 <- t4",
    );
    assert!(fuse(&ahead).starts_with("a tile stays in a channel from one iteration to the next"));
    let shorter = NETWORK.replacen(
        "        for %0 to %1 (%7) {",
        "        for %0 to %6 (%7) {",
        1,
    );
    assert!(fuse(&shorter).contains("deadlock") || fuse(&shorter).contains("stays in a channel"));
}

#[test]
fn a_pipeline_of_two_stages_brings_its_tiles_ahead() {
    let text = kernel(
        "    %0 = const index 0
    %1 = const index 3
    for %0 to %1 pipeline stages 2 (%2) {
      %3 = add %2, %2
      copy t0[%0 :+ 8] <- p0[%3 :+ 8] oob zero
      copy p1[%0 :+ 8] <- t0[%0 :+ 8] oob never
    }
",
    );
    let expected = kernel(
        "    %0 = const index 0
    %1 = const index 3
    %2 = const bool true
    if %2 {
      %3 = add %0, %0
      copy t2[%0 :+ 8] <- p0[%3 :+ 8] oob zero
    }
    for %0 to %1 (%4) {
      %5 = add %4, %4
      map [8] (%6) {
        %7 = load t2[%6]
        store t0[%6] = %7
      }
      %8 = const index 1
      %9 = add %4, %8
      %10 = lt %9, %1
      if %10 {
        %11 = add %9, %9
        copy t2[%0 :+ 8] <- p0[%11 :+ 8] oob zero
      }
      copy p1[%0 :+ 8] <- t0[%0 :+ 8] oob never
    }
",
    );
    let tiles = "  tile t1 \"b\" reg [8] f32\n";
    let expected = expected.replace(tiles, &format!("{tiles}  tile t2 \"next a\" reg [8] f32\n"));
    assert_eq!(after(bring_ahead, &text), expected);
    // One stage, one trip.
    for (from, to) in [("stages 2", "stages 1"), ("const index 3", "const index 1")] {
        let text = text.replace(from, to);
        assert_eq!(after(bring_ahead, &text), text);
    }
}
