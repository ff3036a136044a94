//! The interpreter on small programs in the text form: results and every kind of report.

use super::*;
use crate::tile::{parse::parse, scalar, verify::verify};
use tessera_artifact::numeric;

fn kernel(text: &str) -> Kernel {
    let kernel = parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    verify(&kernel).unwrap_or_else(|v| panic!("{v:?}"));
    kernel
}

fn tensor(dtype: DType, shape: &[u64], values: impl IntoIterator<Item = f64>) -> Arg {
    Arg::Tensor(Buffer::from_f64(dtype, shape, values))
}

fn zeros(dtype: DType, shape: &[u64]) -> Arg {
    Arg::Tensor(Buffer::zeros(dtype, shape))
}

fn values(args: &Args, i: usize) -> Vec<f64> {
    match &args.0[i] {
        Arg::Tensor(b) => b.to_f64(),
        other => panic!("{other:?}"),
    }
}

fn ok(text: &str, args: Vec<Arg>) -> Args {
    let kernel = kernel(text);
    let mut first = None;
    for seed in 0..4 {
        let mut args = Args(args.clone());
        run(
            &kernel,
            &mut args,
            &Options {
                seed,
                persistent_ctas: 1 + seed,
            },
        )
        .unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let first = first.get_or_insert_with(|| args.clone());
        assert_eq!(*first, args, "seed {seed} gives another result");
    }
    first.unwrap()
}

fn fails(text: &str, args: Vec<Arg>) -> String {
    run(&kernel(text), &mut Args(args), &Options::default())
        .expect_err(text)
        .to_string()
}

#[test]
fn ragged_copy_map_and_strides() {
    let text = r#"kernel "k" {
      dim d0 "M" 0 to 100 step 1
      param p0 "x" in [dim "M", 3] f32 align 4
      param p1 "y" out [dim "M", 3] bf16 align 2
      grid [cdiv(dim "M", 4)]
      tile t0 "x" reg [4, 3] f32
      tile t1 "y" reg [4, 3] bf16
      body {
        %0 = block 0
        %1 = const index 4
        %2 = mul %0, %1
        %3 = const index 0
        copy t0[%3 :+ 4, %3 :+ 3] <- p0[%2 :+ 4, %3 :+ 3] oob zero
        map [4, 3] (%4, %5) {
          %6 = load t0[%4, %5]
          %7 = add %6, %6
          %8 = cast %5 to f32
          %9 = add %7, %8
          %10 = cast %9 to bf16
          store t1[%4, %5] = %10
        }
        copy p1[%2 :+ 4, %3 :+ 3] <- t1[%3 :+ 4, %3 :+ 3] oob skip
      }
    }"#;
    for m in [0u64, 1, 4, 7] {
        let n = 3 * m as usize;
        let args = ok(
            text,
            vec![
                tensor(DType::F32, &[m, 3], (0..n).map(|i| i as f64)),
                zeros(DType::BF16, &[m, 3]),
            ],
        );
        let expected: Vec<f64> = (0..n).map(|i| 2.0 * i as f64 + (i % 3) as f64).collect();
        assert_eq!(values(&args, 1), expected);
    }
    // The same rows four elements apart, from element 1 on.
    let mut strided = Buffer::from_f64(DType::F32, &[12], (0..12).map(|i| i as f64));
    (strided.shape, strided.strides, strided.offset) = (vec![2, 3], vec![5, 1], 1);
    let args = ok(
        text,
        vec![Arg::Tensor(strided), zeros(DType::BF16, &[2, 3])],
    );
    assert_eq!(values(&args, 1), [2.0, 5.0, 8.0, 12.0, 15.0, 18.0]);
}

#[test]
fn folds_scans_topk() {
    let text = r#"kernel "k" {
      param p0 "x" in [2, 5] f32 align 4
      param p1 "o" out [8, 5] f32 align 4
      tile t0 "x" reg [2, 5] f32
      tile t1 "r" reg [2] f32
      tile t2 "c" reg [5] f32
      tile t3 "s" reg [2, 5] f32
      tile t4 "v" reg [2, 3] f32
      tile t5 "i" reg [2, 3] i32
      body {
        %0 = const index 0
        %1 = const index 1
        %2 = const index 2
        %4 = const index 4
        %6 = const index 6
        copy t0[%0 :+ 2, %0 :+ 5] <- p0[%0 :+ 2, %0 :+ 5] oob never
        reduce t1 = sum t0 axis 1 ascending
        copy p1[%0, %0 :+ 2] <- t1[%0 :+ 2] oob never
        reduce t1 = sum t0 axis 1 tree 4
        copy p1[%0, %2 :+ 2] <- t1[%0 :+ 2] oob never
        reduce t2 = max t0 axis 0 ascending
        copy p1[%1, %0 :+ 5] <- t2[%0 :+ 5] oob never
        scan t3 = sum t0 axis 1
        copy p1[%2 :+ 2, %0 :+ 5] <- t3[%0 :+ 2, %0 :+ 5] oob never
        topk t4, t5 = largest t0
        copy p1[%4 :+ 2, %0 :+ 3] <- t4[%0 :+ 2, %0 :+ 3] oob never
        map [2, 3] (%10, %11) {
          %12 = load t5[%10, %11]
          %13 = cast %12 to f32
          %14 = add %10, %6
          store p1[%14, %11] = %13
        }
      }
    }"#;
    let (big, nan) = (2f64.powi(24), f64::NAN);
    let x = [big, 1.0, 1.0, -big, 1.0, 3.0, nan, 3.0, 7.0, -0.0];
    let args = ok(
        text,
        vec![tensor(DType::F32, &[2, 5], x), zeros(DType::F32, &[8, 5])],
    );
    let o = values(&args, 1);
    // Ascending loses both ones beside 2^24; the tree adds lanes (0, 4), 1, 2, 3 as ((x0 + x4) + x2) + (x1 + x3).
    assert_eq!(o[0], 1.0);
    assert_eq!(
        o[2],
        (((big + 1.0) as f32 as f64 + 1.0) as f32 + (1.0f32 - big as f32)) as f64
    );
    assert!(o[1].is_nan() && o[3].is_nan());
    assert_eq!([o[5], o[7], o[8], o[9]], [big, 3.0, 7.0, 1.0]);
    assert!(o[6].is_nan());
    assert_eq!(o[10..15], [big, big, big, 0.0, 1.0]);
    assert_eq!(o[20..23], [big, 1.0, 1.0]);
    assert_eq!(o[25..28], [7.0, 3.0, 3.0]);
    assert_eq!(o[30..33], [0.0, 1.0, 2.0]);
    assert_eq!(o[35..38], [3.0, 0.0, 2.0]);
}

#[test]
fn dots_of_every_type() {
    for (dtype, out) in [
        (DType::F32, DType::F32),
        (DType::Tf32, DType::F32),
        (DType::BF16, DType::F32),
        (DType::F16, DType::F32),
        (DType::E4M3, DType::F32),
        (DType::E5M2, DType::F32),
        (DType::E2M1, DType::F32),
        (DType::F64, DType::F64),
        (DType::I8, DType::I32),
        (DType::U8, DType::I32),
    ] {
        let text = format!(
            r#"kernel "k" {{
          param p0 "a" in [3, 5] {dtype} align 8
          param p1 "b" in [4, 5] {dtype} align 8
          param p2 "c" inout [3, 4] {out} align 8
          tile t0 "a" shared [3, 5] {dtype}
          tile t1 "b" shared [4, 5] {dtype}
          tile t2 "c" reg [3, 4] {out}
          body {{
            %0 = const index 0
            copy t0[%0 :+ 3, %0 :+ 5] <- p0[%0 :+ 3, %0 :+ 5] oob never
            copy t1[%0 :+ 4, %0 :+ 5] <- p1[%0 :+ 4, %0 :+ 5] oob never
            copy t2[%0 :+ 3, %0 :+ 4] <- p2[%0 :+ 3, %0 :+ 4] oob never
            dot t2[%0 :+ 3, %0 :+ 4] += t0[%0 :+ 3, %0 :+ 5], t1[%0 :+ 4, %0 :+ 5] transposed
            copy p2[%0 :+ 3, %0 :+ 4] <- t2[%0 :+ 3, %0 :+ 4] oob never
          }}
        }}"#
        );
        // Small integers: exact in every order and type.
        let a: Vec<f64> = (0..15).map(|i| (i % 4) as f64).collect();
        let b: Vec<f64> = (0..20).map(|i| (i % 3) as f64).collect();
        let c: Vec<f64> = (0..12).map(|i| i as f64).collect();
        let args = ok(
            &text,
            vec![
                tensor(dtype, &[3, 5], a.clone()),
                tensor(dtype, &[4, 5], b.clone()),
                tensor(out, &[3, 4], c.clone()),
            ],
        );
        let product = |i: usize, j: usize| (0..5).map(|k| a[i * 5 + k] * b[j * 5 + k]).sum::<f64>();
        let expected: Vec<f64> = (0..12).map(|e| c[e] + product(e / 4, e % 4)).collect();
        assert_eq!(values(&args, 2), expected, "{dtype}");
    }
}

#[test]
fn gather_rows_and_missing_ones() {
    let text = |oob: &str| {
        format!(
            r#"kernel "k" {{
      param p0 "x" in [4, 2] f32 align 4
      param p1 "idx" in [3] i32 align 4
      param p2 "y" out [3, 2] f32 align 4
      tile t0 "t" reg [3, 2] f32
      body {{
        %0 = const index 0
        %1 = const f32 9.0
        map [3, 2] (%2, %3) {{
          store t0[%2, %3] = %1
        }}
        copy t0[%0 :+ 3, %0 :+ 2] <- p0[gather p1[%0 :+ 3] :+ 3, %0 :+ 2] oob {oob}
        copy p2[%0 :+ 3, %0 :+ 2] <- t0[%0 :+ 3, %0 :+ 2] oob never
      }}
    }}"#
        )
    };
    let args = |idx: [f64; 3]| {
        vec![
            tensor(DType::F32, &[4, 2], (0..8).map(|i| i as f64)),
            tensor(DType::I32, &[3], idx),
            zeros(DType::F32, &[3, 2]),
        ]
    };
    assert_eq!(
        values(&ok(&text("zero"), args([2.0, -1.0, 0.0])), 2),
        [4.0, 5.0, 0.0, 0.0, 0.0, 1.0]
    );
    assert_eq!(
        values(&ok(&text("skip"), args([2.0, -1.0, 0.0])), 2),
        [4.0, 5.0, 9.0, 9.0, 0.0, 1.0]
    );
    assert!(fails(&text("never"), args([2.0, -1.0, 0.0])).contains("is missing"));
    let past = fails(&text("zero"), args([2.0, 4.0, 0.0]));
    assert_eq!(
        past,
        "a gather index of `x` is 4, but axis 0 has 4 elements (below 0 is missing) (CTA 0)"
    );
}

/// A body over x [N] f32, y [N] f32 (`inout`), a tile t0 [8] f32, with %0 = block 0 and %1 = 0 defined.
fn small(body: &str, grid: u32) -> String {
    format!(
        r#"kernel "k" {{
      dim d0 "N" 0 to 1000 step 1
      param p0 "x" in [dim "N"] f32 align 4
      param p1 "y" inout [dim "N"] f32 align 4
      param p2 "o" out [dim "N"] f32 align 4
      param p3 "f" flags [4] i32 align 4
      param p4 "i" in [dim "N"] i32 align 4
      grid [{grid}]
      tile t0 "t" reg [8] f32
      tile t1 "u" reg [8] f32
      body {{
        %0 = block 0
        %1 = const index 0
        {body}
      }}
    }}"#
    )
}

fn small_args(n: u64) -> Vec<Arg> {
    vec![
        tensor(DType::F32, &[n], (0..n).map(|i| i as f64)),
        zeros(DType::F32, &[n]),
        zeros(DType::F32, &[n]),
        Arg::Absent,
        tensor(DType::I32, &[n], (0..n).map(|i| (i / 2) as f64)),
    ]
}

#[test]
fn reports() {
    for (body, grid, message) in [
        (
            "%2 = load t0[%1]",
            1,
            "reads `t`[0] before it has a value (CTA 0)",
        ),
        (
            "%2 = load p2[%1]",
            1,
            "reads `o`[0] before it has a value (CTA 0)",
        ),
        (
            "%2 = const index 8\n %3 = load p0[%2]",
            1,
            "reads `x` at 8 of axis 0, whose extent is 8 (CTA 0)",
        ),
        (
            "map [9] (%2) {\n %3 = load p0[%2]\n }",
            1,
            "reads `x` at 8 of axis 0, whose extent is 8 (CTA 0)",
        ),
        (
            "%2 = const bool false\n assert %2 \"no\"",
            1,
            "assertion failed: no (CTA 0)",
        ),
        (
            "%2 = const bool false\n assume %2",
            1,
            "an `assume` does not hold (CTA 0)",
        ),
        ("%2 = div %1, %0", 1, "a divisor is 0 (CTA 0)"),
        (
            "%2 = const i32 1\n %3 = const i32 32\n %4 = shl %2, %3",
            1,
            "a shift is negative or not less than the width (CTA 0)",
        ),
        (
            "%2 = const index 9223372036854775807\n %3 = add %2, %2",
            1,
            "an index leaves the range of 64 bits (CTA 0)",
        ),
        (
            "%2 = const f32 1.0\n store p1[%1] = %2",
            2,
            "writes `y`[0], which CTA 0 wrote, and nothing orders the two (CTA 1)",
        ),
        (
            "%2 = load p1[%1]\n store p1[%1] = %2",
            2,
            "reads `y`[0], which CTA 0 wrote, and nothing orders the two (CTA 1)",
        ),
        (
            "%2 = const index 1\n %3 = sub %2, %0\n %4 = load p1[%3]\n store p1[%0] = %4",
            2,
            "reads `y`[0], which CTA 0 wrote, and nothing orders the two (CTA 1)",
        ),
        (
            "%3 = const f32 0.5\n %2 = load p1[%1]\n %4 = const index 0\n %5 = gt %0, %4\n if %5 {\n store p1[%4] = %3\n }",
            2,
            "writes `y`[0], which CTA 0 read, and nothing orders the two (CTA 1)",
        ),
        (
            "map [8] (%2) {\n %3 = load p4[%2]\n %4 = cast %3 to index\n %5 = load p0[%2]\n scatter p1[%4] = %5\n }",
            1,
            "`scatter` stores to `y`[0] twice (CTA 0 was first) (CTA 0)",
        ),
        (
            "map [8] (%2) {\n %3 = load p4[%2]\n %4 = cast %3 to index\n %5 = load p0[%2]\n store t0[%4] = %5\n }",
            1,
            "two iterations of one `map` touch `t`[0], and at least one writes it (CTA 0)",
        ),
        (
            "copy t0[%1 :+ 8] <- p0[%1 :+ 8] oob never\n map [7] (%2) {\n %3 = const index 1\n %4 = add %2, %3\n %5 = load t0[%4]\n store t0[%2] = %5\n }",
            1,
            "two iterations of one `map` touch `t`[1], and at least one writes it (CTA 0)",
        ),
        (
            "%2 = const index 1\n copy t0[%1 :+ 8] <- p0[%2 :+ 8] oob error",
            1,
            "reads `x` at 8 of axis 0, whose extent is 8 (CTA 0)",
        ),
        (
            "%2 = const index 3\n wait p3[%2] >= %2",
            1,
            "deadlock: nobody can go on\n  CTA 0 waits for `f`[3] >= 3 (it is 0)",
        ),
    ] {
        assert_eq!(fails(&small(body, grid), small_args(8)), message, "{body}");
    }
    let mut few = small_args(8);
    few.pop();
    assert_eq!(
        fails(&small("", 1), few),
        "`k` takes 5 arguments, 4 are given"
    );
    let mut wrong = small_args(8);
    wrong[1] = zeros(DType::F32, &[7]);
    assert_eq!(
        fails(&small("", 1), wrong),
        "`y` has shape [7] instead of [8]"
    );
}

#[test]
fn guarded_loads_never_fault() {
    let body = "map [16] (%2) {
      %3 = dim d0
      %4 = lt %2, %3
      %5 = load p0[%2] if %4
      %6 = const f32 -1.0
      %7 = select %4, %5, %6
      store p1[%2] = %7 if %4
    }";
    for n in [0, 3, 8, 16] {
        let args = ok(&small(body, 1), small_args(n));
        assert_eq!(
            values(&args, 1),
            (0..n).map(|i| i as f64).collect::<Vec<_>>()
        );
    }
}

#[test]
fn flags_order_ctas() {
    // CTA 0 sums what the others wrote; they may run later.
    let body = "%2 = const index 0
      %3 = gt %0, %2
      %4 = const f32 2.0
      if %3 {
        store p1[%0] = %4
        signal p3[%2]
      } else {
        %5 = const index 3
        wait p3[%2] >= %5
        %6 = const index 1
        %7 = load p1[%6]
        %8 = const index 2
        %9 = load p1[%8]
        %10 = add %7, %9
        store p1[%2] = %10
      }";
    let args = ok(&small(body, 4), small_args(8));
    assert_eq!(values(&args, 1)[..4], [4.0, 2.0, 2.0, 2.0]);
    let without = body.replace("wait p3[%2] >= %5", "");
    let kernel = kernel(&small(&without, 4));
    let failed = (0..20).any(|seed| {
        let e = run(
            &kernel,
            &mut Args(small_args(8)),
            &Options {
                seed,
                persistent_ctas: 1,
            },
        );
        matches!(
            e,
            Err(InterpError {
                kind: ErrorKind::Race { .. },
                ..
            })
        )
    });
    assert!(failed);
}

const NETWORK: &str = include_str!("network.tile");

#[test]
fn networks_do_not_depend_on_order() {
    let x: Vec<f64> = (0..60).map(|i| (i % 7) as f64).collect();
    let args = ok(
        NETWORK,
        vec![
            tensor(DType::F32, &[5, 3, 4], x.clone()),
            zeros(DType::F32, &[5, 4]),
        ],
    );
    let expected: Vec<f64> = (0..20)
        .map(|e| {
            (0..3)
                .map(|j| 2.0 * x[e / 4 * 12 + j * 4 + e % 4].powi(2))
                .sum()
        })
        .collect();
    assert_eq!(values(&args, 1), expected);
}

#[test]
fn deadlocks_and_races_of_roles() {
    let args = || {
        vec![
            tensor(DType::F32, &[5, 3, 4], vec![1.0; 60]),
            zeros(DType::F32, &[5, 4]),
        ]
    };
    let hungry = NETWORK.replace("          put c1 <- t4[%0 :+ 4] oob never\n", "");
    let message = fails(&hungry, args());
    assert!(
        message.starts_with("deadlock: nobody can go on\n"),
        "{message}"
    );
    assert!(
        message.contains("role sum copy 1, item [0] waits for tile 0 of `mid`"),
        "{message}"
    );
    assert!(message.contains("role load, item [0] waits for a free slot of `in` (2 slots; 2 tiles are not given back)"), "{message}");
    let overlap = NETWORK.replace(
        "copy p1[%12, %14 :+ 2] <- t3[%14 :+ 2]",
        "copy p1[%12, %0 :+ 2] <- t3[%14 :+ 2]",
    );
    assert!(fails(&overlap, args()).contains("and nothing orders the two"));
    let late = NETWORK
        .replace(
            "            %21 = load t1[%19]",
            "            %21 = load t1[%19]\n",
        )
        .replace(
            "          map [2] (%18) {",
            "          release t1 part 0\n          map [2] (%18) {",
        );
    assert!(fails(&late, args()).contains("reads `s`[0] before it has a value"));
    // What one item leaves in a tile does not reach the next.
    let carried = NETWORK.replace(
        "        map [4] (%16) {\n          store t3[%16] = %15\n        }\n",
        "",
    );
    assert!(fails(&carried, args()).starts_with("reads `acc`["));
}

/// Every scalar op on columns equals the one on constants, for values at the edges of each type.
#[test]
fn columns_equal_constants() {
    let edge = |d: DType| -> Vec<u64> {
        let mut bits: Vec<u64> = (0..8).chain([0x3f, 0x40, 0x7f, 0x80, 0xff]).collect();
        for shift in [4, 8, 16, 24, 32, 52, 60] {
            bits.extend([
                1u64 << shift,
                (1 << shift) - 1,
                3 << shift,
                0xa5a5_a5a5_a5a5_a5a5 >> shift,
            ]);
        }
        for x in [
            1.0,
            -1.0,
            0.5,
            2.5,
            -2.5,
            448.0,
            1e-40,
            65504.0,
            3e38,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            -0.0,
        ] {
            bits.push(numeric::from_f64(x, d));
        }
        let mask = if d == DType::Bool {
            1
        } else {
            u64::MAX >> (64 - d.bits())
        };
        bits.iter_mut().for_each(|b| *b &= mask);
        bits.sort_unstable();
        bits.dedup();
        bits
    };
    use crate::tile::print::{BINARY, PREDICATES, UNARY};
    let mut compared = 0;
    for d in DType::ALL {
        let ty = Type::Scalar(d);
        let list = edge(d);
        let constant = |bits| scalar::from_bits(bits, ty);
        let single = |bits| Words::splat(ty, 1, bits);
        for &a in &list {
            for op in UNARY {
                if let Some(c) = scalar::unary(op, constant(a)) {
                    let got = words::unary(op, ty, &single(a)).unwrap();
                    assert_eq!(got.get(0), scalar::to_bits(c), "{op:?} {d} {a:#x}");
                    compared += 1;
                }
            }
            for to in DType::ALL {
                if let Some(c) = scalar::cast(constant(a), Type::Scalar(to)) {
                    // Both a short column and one long enough for tables.
                    for n in [1, 100] {
                        let got = words::cast(ty, Type::Scalar(to), &Words::splat(ty, n, a));
                        assert_eq!(
                            got.get(n - 1),
                            scalar::to_bits(c),
                            "cast {d} {a:#x} to {to}"
                        );
                    }
                    compared += 1;
                }
            }
            for &b in &list {
                for op in BINARY {
                    if d == DType::Bool || !d.has_arithmetic() {
                        continue;
                    }
                    let got = words::binary(op, ty, &single(a), &single(b));
                    match scalar::binary(op, constant(a), constant(b)) {
                        Some(c) => {
                            assert_eq!(
                                got.unwrap().get(0),
                                scalar::to_bits(c),
                                "{op:?} {d} {a:#x} {b:#x}"
                            );
                            compared += 1;
                        }
                        None if d.is_int() => assert!(got.is_err(), "{op:?} {d} {a:#x} {b:#x}"),
                        None => {}
                    }
                }
                for p in PREDICATES {
                    if let Some(c) =
                        scalar::compare(p, constant(a), constant(b)).filter(|_| d.has_arithmetic())
                    {
                        let got = words::compare(p, ty, &single(a), &single(b));
                        assert_eq!(got.get(0), c as u64, "{p:?} {d} {a:#x} {b:#x}");
                    }
                }
            }
        }
    }
    assert!(compared > 100_000, "{compared}");
}
