//! Random networks of roles, and random loops that become some: on the emulated H100, with tensor cores and without, they give what their references say,
//! and none gets stuck.
//!
//! All values are small integers, so that every order of sums gives the same bits. `TESSERA_SOAK_FACTOR` multiplies how many networks there are.

use crate::emulator;
use proptest::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use tessera_compiler::diag::Sink;
use tessera_compiler::diag::render::{Format, render};
use tessera_compiler::driver::{self, Options};
use tessera_compiler::sema::Program;
use tessera_compiler::source::SourceMap;
use tessera_compiler::testing::run::{Ways, run_ways};

/// Of each kind.
const CASES: u32 = 12;

/// What a role does with what a stage's loop brings it.
#[derive(Clone, Copy, Debug)]
enum Use {
    /// Products added to sums.
    Product,
    /// New sums, scaled by a vector that comes beside the operands, which may go back before that.
    Scaled { released: bool },
    /// The left operand comes once, before the loop.
    Held,
    /// As `Held`, twice over.
    Nested,
    /// Two products, each with operands of its own.
    Twice,
    /// The right operand by a role that computes it.
    Made { turns: u8 },
    /// Vectors, added to the sums.
    Vector,
    /// Operands that nothing reads.
    Skipped,
    /// A left operand that nothing reads, beside a right one for the product with the first rows.
    HalfRead,
    /// Rows of the right operand that a list names, some of which are not there.
    Gathered,
    /// Sums by another role.
    Handed,
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
    /// Of the stage's channels; 0: as many as there is room for.
    slots: u8,
}

/// What all stages share.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Of a block.
    rows: u32,
    columns: u32,
    /// Two roles add up half of the columns each.
    split: bool,
    /// Operands of 8 bits.
    narrow: bool,
    /// Rows in all, of two cases.
    all: [u32; 2],
    /// Blocks of k.
    blocks: u32,
}

fn stage() -> impl Strategy<Value = Stage> {
    let use_ = prop_oneof![
        Just(Use::Product),
        any::<bool>().prop_map(|released| Use::Scaled { released }),
        Just(Use::Held),
        Just(Use::Nested),
        Just(Use::Twice),
        (1u8..=3).prop_map(|turns| Use::Made { turns }),
        Just(Use::Vector),
        Just(Use::Skipped),
        Just(Use::HalfRead),
        Just(Use::Gathered),
        Just(Use::Handed),
    ];
    let trips = prop_oneof![
        (0u8..7).prop_map(Trips::Fixed),
        (0u8..3).prop_map(|less| Trips::Blocks { less }),
        Just(Trips::Listed),
    ];
    (use_, trips, 0u8..4).prop_map(|(use_, trips, slots)| Stage { use_, trips, slots })
}

fn sizes() -> impl Strategy<Value = Sizes> {
    (
        prop::sample::select(vec![64u32, 128]),
        prop::sample::select(vec![16u32, 64, 128]),
        any::<[bool; 2]>(),
        [1u32..70, 64u32..330],
        1u32..8,
    )
        .prop_map(|(rows, columns, [split, narrow], all, blocks)| Sizes {
            rows,
            columns,
            split,
            narrow,
            all,
            blocks,
        })
}

impl Stage {
    /// How often its loop runs, in the kernel and for an element of the reference.
    fn trips(&self, rows: u32) -> (String, String) {
        match self.trips {
            Trips::Fixed(n) => (n.to_string(), n.to_string()),
            Trips::Blocks { less } => {
                let n = format!("max(K / 64 - {less}, 0)");
                (n.clone(), n)
            }
            Trips::Listed => (
                "index(steps[block(0)])".to_owned(),
                format!("index(steps[m / {rows}])"),
            ),
        }
    }

    /// What it adds to an element.
    fn term(&self, rows: u32) -> String {
        let (_, most) = self.trips(rows);
        let sum =
            |term: &str| format!("reduce sum(k in 0..K) {{ k < {most} * 64 ? {term} : 0.0 }}");
        match self.use_ {
            Use::Product | Use::Handed => sum("a[m, k] * x[n, k]"),
            Use::Gathered => sum("(picks[n] >= 0 ? a[m, k] * x[max(index(picks[n]), 0), k] : 0.0)"),
            Use::Made { .. } => sum("2.0 * a[m, k] * x[n, k]"),
            // Rows of vectors past the last are zeros.
            Use::Scaled { .. } => {
                sum("(k / 64 < R ? v[min(k / 64, R - 1), n] : 0.0) * a[m, k] * x[n, k]")
            }
            Use::Held | Use::HalfRead => sum("a[m, k % 64] * x[n, k]"),
            Use::Nested => sum("2.0 * a[m, k % 64] * x[n, k]"),
            Use::Twice => sum("a[m, k] * (x[n, k] + x[n, k % 64])"),
            Use::Vector => format!("reduce sum(t in 0..R) {{ t < {most} ? v[t, n] : 0.0 }}"),
            Use::Skipped => "0.0".to_owned(),
        }
    }

    /// As a loop of a program without roles, of which the schedule makes them.
    fn plain(&self, s: usize, sizes: &Sizes) -> String {
        let Sizes { rows, columns, .. } = *sizes;
        let (trips, _) = self.trips(rows);
        // Without overlap in mind, sometimes.
        let keyword = if self.slots == 1 { "for" } else { "pipeline" };
        let over = |body: String| format!("{keyword} k in 0..{trips} {{ {body} }}");
        let left = |name: &str, k: &str| {
            format!(
                "shared {name}: [{rows}, 64] bf16; copy {name} <- a[block(0) * {rows} :+ {rows}, {k} :+ 64] @oob(zero);"
            )
        };
        let right = |name: &str, which: &str, k: &str| {
            format!(
                "shared {name}: [{columns}, 64] bf16; copy {name} <- x[{which}, {k} :+ 64] @oob(zero);"
            )
        };
        let (all, at) = (format!("0 :+ {columns}"), "k * 64");
        let both = format!("{} {}", left("l", at), right("r", &all, at));
        let product = |l: &str, r: &str| format!("acc += dot({l}, {r}.t());");
        let each =
            |what: &str| format!("map (m, n) in [{rows}, {columns}] {{ acc[m, n] += {what}; }}");
        let vector = format!("reg f: [{columns}] f32; copy f <- v[k, 0 :+ {columns}] @oob(zero);");
        let held = format!("held{s}");
        let with_held = format!(
            "{} {}",
            left(&held, "0"),
            over(format!("{} {}", right("r", &all, at), product(&held, "r")))
        );
        match self.use_ {
            Use::Product | Use::Handed => over(format!("{both} {}", product("l", "r"))),
            Use::Scaled { .. } => over(format!(
                "{both} {vector} reg part: [{rows}, {columns}] f32; part = dot(l, r.t()); {}",
                each("part[m, n] * f[n]")
            )),
            Use::Held => with_held,
            Use::Nested => format!("for j in 0..2 {{ {with_held} }}"),
            Use::Twice => over(format!(
                "{both} {} {} {}",
                product("l", "r"),
                right("r2", &all, "0"),
                product("l", "r2")
            )),
            // Here the left operand is what is computed.
            Use::Made { .. } => over(format!(
                "{both} reg w: [{rows}, 64] bf16; map (m, i) in [{rows}, 64] {{ w[m, i] = (f32(l[m, i]) * 2.0).cast(bf16); }} {}",
                product("w", "r")
            )),
            Use::Vector => over(format!("{vector} {}", each("f[n]"))),
            Use::Skipped => String::new(),
            Use::HalfRead => over(format!(
                "{} {}",
                right("r", &all, at),
                product("first", "r")
            )),
            Use::Gathered => format!(
                "shared list{s}: [{columns}] i32; map n in [{columns}] {{ list{s}[n] = picks[n]; }} {}",
                over(format!(
                    "{} {} {}",
                    left("l", at),
                    right("r", &format!("gather list{s}"), at),
                    product("l", "r")
                ))
            ),
        }
    }
}

/// Parts of the program's text.
#[derive(Default)]
struct Text {
    channels: String,
    load: String,
    makers: String,
    sum: String,
}

impl Text {
    fn stage(&mut self, s: usize, stage: &Stage, sizes: &Sizes) {
        let Sizes { rows, columns, .. } = *sizes;
        let (trips, _) = stage.trips(rows);
        let slots = match (stage.slots, stage.use_) {
            (0, _) => String::new(),
            // Warpgroups that take turns at slots ask for as many, or a multiple.
            (n, Use::Made { turns }) => format!(" @slots({})", u32::from(n) * u32::from(turns)),
            // What one iteration holds at a time.
            (n, Use::Twice) => format!(" @slots({})", 2 * n),
            (n, _) => format!(" @slots({n})"),
        };
        let vector = matches!(stage.use_, Use::Vector | Use::Scaled { .. });
        let matrices = !matches!(stage.use_, Use::Vector);
        let (tall, wide) = (
            format!("[{rows}, 64] bf16"),
            format!("[{columns}, 64] bf16"),
        );
        let mut channel = |name: &str, shape: &str, slots: &str| {
            self.channels += &format!("    channel {name}{s}: {shape}{slots};\n");
        };
        if matrices {
            let held = matches!(stage.use_, Use::Held | Use::Nested);
            channel("left", &tall, if held { "" } else { &slots });
            channel("right", &wide, &slots);
        }
        if vector {
            channel("vector", &format!("[{columns}] f32"), &slots);
        }
        if matches!(stage.use_, Use::Made { .. }) {
            channel("made", &wide, "");
        }
        if matches!(stage.use_, Use::Handed) {
            channel("sums", &format!("[{rows}, {columns}] f32"), "");
        }
        let left =
            format!("put left{s} <- a[block(0) * {rows} :+ {rows}, k * 64 :+ 64] @oob(zero);");
        let first = left.replace("k * 64 :+", "0 :+");
        let right = format!("put right{s} <- x[0 :+ {columns}, k * 64 :+ 64] @oob(zero);");
        let vectors = format!("put vector{s} <- v[k, 0 :+ {columns}] @oob(zero);");
        let again = right.replace("k * 64 :+", "0 :+");
        let over = |body: String| format!("for k in 0..{trips} {{ {body} }}");
        let puts = match stage.use_ {
            Use::Product | Use::Made { .. } | Use::Skipped | Use::HalfRead | Use::Handed => {
                over(format!("{left} {right}"))
            }
            Use::Gathered => {
                let rows =
                    right.replace(&format!("x[0 :+ {columns}"), &format!("x[gather list{s}"));
                format!(
                    "shared list{s}: [{columns}] i32; map n in [{columns}] {{ list{s}[n] = picks[n]; }} {}",
                    over(format!("{left} {rows}"))
                )
            }
            Use::Scaled { .. } => over(format!("{left} {right} {vectors}")),
            Use::Held => format!("{first} {}", over(right)),
            Use::Nested => format!("for j in 0..2 {{ {first} {} }}", over(right)),
            Use::Twice => over(format!("{left} {right} {left} {again}")),
            Use::Vector => over(vectors),
        };
        self.load += &format!("        {puts}\n");
        if let Use::Made { turns } = stage.use_ {
            let turns = match turns {
                1 => String::new(),
                n => format!(" @turns({n})"),
            };
            let body = over(format!(
                "get right{s} as r; reg w: {wide};
        map (n, i) in [{columns}, 64] {{ w[n, i] = (f32(r[n, i]) * 2.0).cast(bf16); }}
        put made{s} <- w;"
            ));
            self.makers += &format!("    role make{s}{turns} {{ {body} }}\n");
        }
        if matches!(stage.use_, Use::Handed) {
            let body = over(format!(
                "get left{s} as l; get right{s} as r; reg w: [{rows}, {columns}] f32; w = dot(l, r.t()); put sums{s} <- w;"
            ));
            self.makers += &format!("    role help{s} {{ {body} }}\n");
        }
        // The columns of the role in hand.
        let (own, part) = match sizes.split {
            true => (columns / 2, format!("[n0 :+ {}, :]", columns / 2)),
            false => (columns, String::new()),
        };
        let n = if sizes.split { "n0 + n" } else { "n" };
        let product = |l: &str, r: &str| format!("acc += dot({l}, {r}{part}.t());");
        let each = |what: &str| format!("map (m, n) in [{rows}, {own}] {{ acc[m, n] += {what}; }}");
        let got = format!("get left{s} as l; get right{s} as r;");
        let held = format!("held{s}");
        let body = match stage.use_ {
            Use::Product | Use::Gathered => over(format!("{got} {}", product("l", "r"))),
            Use::Handed => over(format!("get sums{s} as w; {}", each("w[m, n]"))),
            Use::Made { .. } => over(format!(
                "get left{s} as l; get made{s} as r; {}",
                product("l", "r")
            )),
            Use::Scaled { released } => over(format!(
                "{got} get vector{s} as f; reg part: [{rows}, {own}] f32; part = dot(l, r{part}.t()); {} {}",
                if released {
                    "release l; release r;"
                } else {
                    ""
                },
                each(&format!("part[m, n] * f[{n}]"))
            )),
            Use::Held | Use::Nested => {
                let inner = over(format!("get right{s} as r; {}", product(&held, "r")));
                let all = format!("get left{s} as {held}; {inner}");
                match stage.use_ {
                    Use::Nested => format!("for j in 0..2 {{ {all} }}"),
                    _ => all,
                }
            }
            Use::Twice => over(format!(
                "{got} {} get left{s} as l2; get right{s} as r2; {}",
                product("l", "r"),
                product("l2", "r2")
            )),
            Use::Vector => over(format!("get vector{s} as f; {}", each(&format!("f[{n}]")))),
            Use::Skipped => over(format!("get left{s} as _l; get right{s} as _r;")),
            Use::HalfRead => over(format!(
                "get left{s} as _l; get right{s} as r; {}",
                product("p", "r")
            )),
        };
        self.sum += &format!("        {body}\n");
    }
}

/// A network of roles.
fn with_roles(stages: &[Stage], sizes: &Sizes) -> String {
    let mut text = Text::default();
    for (s, stage) in stages.iter().enumerate() {
        let mut stage = *stage;
        // All columns are one role's there.
        if sizes.split && matches!(stage.use_, Use::Handed) {
            stage.use_ = Use::Product;
        }
        text.stage(s, &stage, sizes);
    }
    let Text {
        channels,
        load,
        makers,
        sum,
    } = text;
    let Sizes {
        rows,
        columns,
        split,
        ..
    } = *sizes;
    let (copies, n0, own, part) = match split {
        true => (
            " @copies(2)",
            format!("let n0 = copy_id * {};", columns / 2),
            columns / 2,
            format!("[n0 :+ {}, :]", columns / 2),
        ),
        false => ("", "let n0 = 0;".to_owned(), columns, String::new()),
    };
    // A product that is always there makes it a network.
    let body = format!(
        "{channels}    channel first: [{rows}, 64] bf16;
    channel second: [{columns}, 64] bf16;
    role load {{
        put first <- a[block(0) * {rows} :+ {rows}, 0 :+ 64] @oob(zero); put second <- x[0 :+ {columns}, 0 :+ 64] @oob(zero);
{load}    }}
{makers}    role sum{copies} {{
        {n0}
        reg acc: [{rows}, {own}] f32 = 0.0;
        get first as p; get second as q;
        acc += dot(p, q{part}.t());
{sum}        copy c[block(0) * {rows} :+ {rows}, n0 :+ {own}] <- acc @oob(skip);
    }}"
    );
    program(&body, stages, sizes)
}

/// The same sums without roles.
fn without_roles(stages: &[Stage], sizes: &Sizes) -> String {
    let Sizes { rows, columns, .. } = *sizes;
    let loops: Vec<String> = (stages.iter().enumerate())
        .map(|(s, stage)| stage.plain(s, sizes))
        .collect();
    let body = format!(
        "    reg acc: [{rows}, {columns}] f32 = 0.0;
    shared first: [{rows}, 64] bf16; copy first <- a[block(0) * {rows} :+ {rows}, 0 :+ 64] @oob(zero);
    shared second: [{columns}, 64] bf16; copy second <- x[0 :+ {columns}, 0 :+ 64] @oob(zero);
    acc += dot(first, second.t());
    {}
    copy c[block(0) * {rows} :+ {rows}, 0 :+ {columns}] <- acc @oob(skip);",
        loops.join("\n    ")
    );
    program(&body, stages, sizes)
}

/// A kernel with this body, its reference and its test.
fn program(body: &str, stages: &[Stage], sizes: &Sizes) -> String {
    let Sizes {
        rows,
        columns,
        all,
        blocks,
        narrow,
        ..
    } = *sizes;
    let terms: Vec<String> =
        std::iter::once("reduce sum(k in 0..64) { a[m, k] * x[n, k] }".to_owned())
            .chain(stages.iter().map(|stage| stage.term(rows)))
            .collect();
    let text = format!(
        "edition 2026;
module generated;
kernel network(
    a:     in  [M, K] bf16 @align(16),
    x:     in  [N, K] bf16 @align(16),
    v:     in  [R, N] f32 @align(16),
    steps: in  [cdiv(M, {rows})] i32,
    picks: in  [N] i32,
    c:     out [M, N] f32,
)
dims   M in 1..=4096, N in {columns}..={columns}, K in 64..=4096 step 64, R in 1..=64
launch grid(cdiv(M, {rows}))
{{
{body}
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
    fill picks ~ values(3, -1, 15, 0, 7);
    expect c against network_ref @abs(0);
}}
",
        terms.join("\n            + "),
        all[0],
        all[1],
        blocks * 64,
    );
    match narrow {
        true => text.replace("bf16", "e4m3"),
        false => text,
    }
}

/// Whether it ran on tensor cores, if it gave what it should.
fn check(text: &str) -> Result<bool, String> {
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
    match report.passed() {
        true => Ok(report.ways.iter().any(|way| way.contains("tensor cores"))),
        false => Err(shown(report.problems)),
    }
}

fn all_pass(program: fn(&[Stage], &Sizes) -> String) {
    let factor = std::env::var("TESSERA_SOAK_FACTOR").ok();
    let cases = CASES * factor.and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 60,
        ..ProptestConfig::default()
    });
    let any = (prop::collection::vec(stage(), 0..4), sizes());
    let [planned, all] = [const { AtomicUsize::new(0) }; 2];
    let outcome = runner.run(&any, |(stages, sizes)| {
        let on_tensor_cores = check(&program(&stages, &sizes)).map_err(TestCaseError::fail)?;
        planned.fetch_add(usize::from(on_tensor_cores), Ordering::Relaxed);
        all.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let failure = outcome.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(failure.is_empty(), "{failure}");
    let (planned, all) = (planned.into_inner(), all.into_inner());
    assert!(2 * planned > all, "{planned} of {all} on tensor cores");
}

#[test]
fn random_networks() {
    all_pass(with_roles);
}

#[test]
fn random_loops() {
    all_pass(without_roles);
}
