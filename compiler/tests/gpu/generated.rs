//! Random networks of roles: on the emulated H100, with tensor cores and without, they give what their references say, and none gets stuck.
//!
//! All values are small integers, so that every order of sums gives the same bits. `TESSERA_SOAK_FACTOR` multiplies how many networks there are.

use crate::emulator;
use proptest::prelude::*;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use tessera_compiler::diag::Sink;
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::driver::{self, Options};
use tessera_compiler::sema::Program;
use tessera_compiler::source::SourceMap;
use tessera_compiler::testing::run::{Ways, run_ways};

const CASES: u32 = 24;

/// What a role does with what a stage's loop brings it.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// Products added to sums.
    Product,
    /// New sums, scaled by a vector that comes beside the operands.
    Scaled,
    /// The left operand comes once, before the loop.
    Held,
    /// The right operand by a role that computes it.
    Made { turns: u8 },
    /// Vectors, added to the sums.
    Vector,
    /// Operands that nothing reads.
    Skipped,
}

/// Iterations of a stage's loop.
#[derive(Clone, Copy, Debug)]
enum Trips {
    Fixed(u8),
    /// As many as there are blocks of k, or fewer.
    Blocks {
        less: u8,
    },
    /// What a list says for the rows in hand.
    Listed,
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    use_: Use,
    trips: Trips,
    /// Of the first channel; 0: as many as there is room for.
    slots: u8,
}

fn stage() -> impl Strategy<Value = Stage> {
    let use_ = prop_oneof![
        Just(Use::Product),
        Just(Use::Scaled),
        Just(Use::Held),
        (1u8..=3).prop_map(|turns| Use::Made { turns }),
        Just(Use::Vector),
        Just(Use::Skipped),
    ];
    let trips = prop_oneof![
        (0u8..7).prop_map(Trips::Fixed),
        (0u8..3).prop_map(|less| Trips::Blocks { less }),
        Just(Trips::Listed),
    ];
    (use_, trips, 0u8..4).prop_map(|(use_, trips, slots)| Stage { use_, trips, slots })
}

/// Parts of the program's text.
#[derive(Default)]
struct Text {
    channels: String,
    load: String,
    makers: String,
    sum: String,
    /// Terms of the reference's sum.
    terms: Vec<String>,
}

impl Text {
    fn stage(&mut self, s: usize, stage: &Stage, columns: u32) {
        let (trips, most) = match stage.trips {
            Trips::Fixed(n) => (n.to_string(), n.to_string()),
            Trips::Blocks { less } => {
                let n = format!("max(K / 64 - {less}, 0)");
                (n.clone(), n)
            }
            Trips::Listed => (
                "index(steps[block(0)])".to_owned(),
                "index(steps[m / 64])".to_owned(),
            ),
        };
        let slots = match (stage.slots, stage.use_) {
            (0, _) => String::new(),
            // Warpgroups that take turns at slots ask for as many, or a multiple.
            (n, Use::Made { turns }) => format!(" @slots({})", u32::from(n) * u32::from(turns)),
            (n, _) => format!(" @slots({n})"),
        };
        let left = format!("put left{s} <- a[block(0) * 64 :+ 64, k * 64 :+ 64] @oob(zero);");
        let right = format!("put right{s} <- x[0 :+ {columns}, k * 64 :+ 64] @oob(zero);");
        let vector = format!("put vector{s} <- v[k, 0 :+ {columns}] @oob(zero);");
        let channel = |out: &mut String, name: &str, shape: &str, slots: &str| {
            writeln!(out, "    channel {name}{s}: {shape}{slots};").unwrap();
        };
        let (tall, wide) = ("[64, 64] bf16", format!("[{columns}, 64] bf16"));
        let row = format!("[{columns}] f32");
        if !matches!(stage.use_, Use::Vector) {
            let held = matches!(stage.use_, Use::Held);
            channel(
                &mut self.channels,
                "left",
                tall,
                if held { "" } else { &slots },
            );
            channel(&mut self.channels, "right", &wide, &slots);
        }
        if matches!(stage.use_, Use::Vector | Use::Scaled) {
            channel(&mut self.channels, "vector", &row, &slots);
        }
        if matches!(stage.use_, Use::Made { .. }) {
            channel(&mut self.channels, "made", &wide, "");
        }
        let (before, puts) = match stage.use_ {
            Use::Product | Use::Made { .. } | Use::Skipped => (String::new(), left + " " + &right),
            Use::Scaled => (String::new(), format!("{left} {right} {vector}")),
            Use::Held => (left.replace("k * 64 :+", "0 :+"), right),
            Use::Vector => (String::new(), vector),
        };
        writeln!(
            self.load,
            "        {before} for k in 0..{trips} {{ {puts} }}"
        )
        .unwrap();
        if let Use::Made { turns } = stage.use_ {
            let turns = match turns {
                1 => String::new(),
                n => format!(" @turns({n})"),
            };
            write!(
                self.makers,
                "    role make{s}{turns} {{ for k in 0..{trips} {{
        get right{s} as r; reg w: {wide};
        map (n, i) in [{columns}, 64] {{ w[n, i] = (r[n, i] * 2.0).cast(bf16); }}
        put made{s} <- w;
    }} }}\n"
            )
            .unwrap();
        }
        let (before, body, factor) = match stage.use_ {
            Use::Product => (
                String::new(),
                format!("get left{s} as l; get right{s} as r; acc += dot(l, r.t());"),
                "1.0",
            ),
            Use::Made { .. } => (
                String::new(),
                format!("get left{s} as l; get made{s} as r; acc += dot(l, r.t());"),
                "2.0",
            ),
            Use::Scaled => (
                String::new(),
                format!(
                    "get left{s} as l; get right{s} as r; get vector{s} as f;
            reg part: [64, {columns}] f32;
            part = dot(l, r.t());
            map (m, n) in [64, {columns}] {{ acc[m, n] += part[m, n] * f[n]; }}"
                ),
                "v[min(k / 64, R - 1), n]",
            ),
            Use::Held => (
                format!("get left{s} as l;"),
                format!("get right{s} as r; acc += dot(l, r.t());"),
                "1.0",
            ),
            Use::Vector => (
                String::new(),
                format!(
                    "get vector{s} as f; map (m, n) in [64, {columns}] {{ acc[m, n] += f[n]; }}"
                ),
                "",
            ),
            Use::Skipped => (
                String::new(),
                format!("get left{s} as _l; get right{s} as _r;"),
                "0.0",
            ),
        };
        writeln!(
            self.sum,
            "        {before} for k in 0..{trips} {{ {body} }}"
        )
        .unwrap();
        let sum = match stage.use_ {
            Use::Vector => {
                format!("reduce sum(t in 0..R) {{ t < {most} ? v[t, n] : 0.0 }}")
            }
            // Rows of vectors past the last are zeros.
            Use::Scaled => format!(
                "reduce sum(k in 0..K) {{ k < {most} * 64 && k / 64 < R ? a[m, k] * x[n, k] * {factor} : 0.0 }}"
            ),
            Use::Held => format!(
                "reduce sum(k in 0..K) {{ k < {most} * 64 ? a[m, k % 64] * x[n, k] : 0.0 }}"
            ),
            _ => format!(
                "reduce sum(k in 0..K) {{ k < {most} * 64 ? {factor} * a[m, k] * x[n, k] : 0.0 }}"
            ),
        };
        self.terms.push(sum);
    }
}

fn program(stages: &[Stage], columns: u32, rows: [u32; 2], blocks: u32) -> String {
    let mut text = Text::default();
    for (s, stage) in stages.iter().enumerate() {
        text.stage(s, stage, columns);
    }
    let Text {
        channels,
        load,
        makers,
        sum,
        terms,
    } = text;
    // A product that is always there makes it a network.
    format!(
        "edition 2026;
module generated;
kernel network(
    a:     in  [M, K] bf16 @align(16),
    x:     in  [N, K] bf16 @align(16),
    v:     in  [R, N] f32 @align(16),
    steps: in  [cdiv(M, 64)] i32,
    c:     out [M, N] f32,
)
dims   M in 1..=4096, N in {columns}..={columns}, K in 64..=4096 step 64, R in 1..=64
launch grid(cdiv(M, 64))
{{
{channels}    channel first: [64, 64] bf16;
    channel second: [{columns}, 64] bf16;
    role load {{
        put first <- a[block(0) * 64 :+ 64, 0 :+ 64] @oob(zero); put second <- x[0 :+ {columns}, 0 :+ 64] @oob(zero);
{load}    }}
{makers}    role sum {{
        reg acc: [64, {columns}] f32 = 0.0;
        get first as p; get second as q;
        acc += dot(p, q.t());
{sum}        copy c[block(0) * 64 :+ 64, 0 :+ {columns}] <- acc @oob(skip);
    }}
}}
reference network_ref for network {{
    map (m, n) in [M, N] {{
        c[m, n] = {};
    }}
}}
test \"small integers\" for network {{
    with M = any({}, {}), N = {columns}, K = {}, R = 5;
    fill a ~ integers(-2, 2);
    fill x ~ integers(-2, 2);
    fill v ~ integers(-2, 2);
    fill steps ~ values(2, 0, 1, 5, 3);
    expect c against network_ref @abs(0);
}}
",
        std::iter::once("reduce sum(k in 0..64) { a[m, k] * x[n, k] }".to_owned())
            .chain(terms)
            .collect::<Vec<_>>()
            .join("\n            + "),
        rows[0],
        rows[1],
        blocks * 64,
    )
}

/// Networks that ran on tensor cores.
static PLANNED: AtomicUsize = AtomicUsize::new(0);
static ALL: AtomicUsize = AtomicUsize::new(0);

fn check(text: &str) -> Result<(), String> {
    let mut map = SourceMap::default();
    map.add("generated.tl".to_owned(), text.to_owned());
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let program = Program::collect(&files, &mut sink);
    let shown = |problems: Vec<_>| -> String {
        let all = problems
            .iter()
            .map(|d| render(d, &map, Format::Human { colour: false }));
        format!("{}\n{text}", all.collect::<Vec<_>>().join("\n"))
    };
    if sink.has_errors() {
        return Err(shown(sink.finish()));
    }
    let options = Options {
        cpu: vec![],
        threads: 1,
        ..Options::default()
    };
    let gpu = emulator::device();
    let ways = Ways {
        options: &options,
        gpu: Some(&gpu),
        references: false,
    };
    let report = run_ways(&program, 0, program.kernels[0].tests[0], &ways);
    let on_tensor_cores = report.ways.iter().any(|way| way.contains("tensor cores"));
    PLANNED.fetch_add(usize::from(on_tensor_cores), Ordering::Relaxed);
    ALL.fetch_add(1, Ordering::Relaxed);
    match report.passed() {
        true => Ok(()),
        false => Err(shown(report.problems)),
    }
}

#[test]
fn random_networks() {
    let factor = std::env::var("TESSERA_SOAK_FACTOR").ok();
    let cases = CASES * factor.and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    });
    let all = (
        prop::collection::vec(stage(), 0..4),
        prop::sample::select(vec![16u32, 64, 128]),
        [1u32..70, 64u32..330],
        1u32..8,
    );
    runner
        .run(&all, |(stages, columns, rows, blocks)| {
            check(&program(&stages, columns, rows, blocks)).map_err(TestCaseError::fail)
        })
        .unwrap_or_else(|e| panic!("{e}"));
    let (planned, all) = (PLANNED.load(Ordering::Relaxed), ALL.load(Ordering::Relaxed));
    assert!(2 * planned > all, "{planned} of {all} on tensor cores");
}
