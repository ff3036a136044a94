//! Speeds of compiled code and of compiling, on one thread, printed:
//! `cargo test --release -p tessera-compiler --test cpu speed -- --ignored --nocapture --test-threads 1`.

use crate::harness::{compile, variant};
use std::time::Instant;
use tessera_artifact::{DType, HostExpr, HostOp, ParamMode};
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::interp::{Arg, Args, Buffer};
use tessera_compiler::tile::ir::*;

/// `c = a · b` (`b` stored `[N, K]` where `transposed`), a CTA for every `[bm, bn]` of `c`, `bk` of k at a time.
pub fn gemm(dtype: DType, [bm, bn, bk]: [u64; 3], transposed: bool) -> Kernel {
    let mut b = Builder::new("gemm", Default::default());
    let [m, n, k] = ["M", "N", "K"].map(|d| b.dim(d, 1, 1 << 20, 1));
    let dim = |d: &str| HostExpr::dim(d);
    let a = b.tensor("a", ParamMode::In, dtype, vec![dim("M"), dim("K")]);
    let b_shape = if transposed { ["N", "K"] } else { ["K", "N"] };
    let w = b.tensor("b", ParamMode::In, dtype, b_shape.map(dim).to_vec());
    let c = b.tensor("c", ParamMode::Out, DType::F32, vec![dim("M"), dim("N")]);
    let cdiv = |d: &str, by: u64| HostExpr::op(HostOp::CeilDiv, [dim(d), HostExpr::Int(by as i64)]);
    b.grid(vec![cdiv("M", bm), cdiv("N", bn)]);
    let _ = (m, n);
    let a_s = b.tile("a_s", Space::Shared, dtype, &[bm, bk]);
    let b_s = b.tile(
        "b_s",
        Space::Shared,
        dtype,
        &if transposed { [bn, bk] } else { [bk, bn] },
    );
    let acc = b.tile("acc", Space::Reg, DType::F32, &[bm, bn]);
    let zero_f = b.float(0.0, DType::F32);
    b.fill(acc, zero_f);
    let (block_m, block_n) = (b.block_index(0), b.block_index(1));
    let (bm_v, bn_v, bk_v, zero) = (
        b.index(bm as i64),
        b.index(bn as i64),
        b.index(bk as i64),
        b.index(0),
    );
    let (row, column) = (b.mul(block_m, bm_v), b.mul(block_n, bn_v));
    let kv = b.dim_value(k);
    let trips = b.cdiv(kv, bk_v);
    b.for_loop(zero, trips, LoopKind::Pipeline { stages: None }, |b, i| {
        let k0 = b.mul(i, bk_v);
        let span = |start, len| Slot::Span { start, len };
        let (to, from) = (
            b.whole_view(a_s),
            View {
                base: Base::Param(a),
                slots: vec![span(row, bm), span(k0, bk)],
            },
        );
        b.copy(to, from, Oob::Zero);
        let slots = if transposed {
            vec![span(column, bn), span(k0, bk)]
        } else {
            vec![span(k0, bk), span(column, bn)]
        };
        let to = b.whole_view(b_s);
        b.copy(
            to,
            View {
                base: Base::Param(w),
                slots,
            },
            Oob::Zero,
        );
        let (acc, x, y) = (
            b.whole(acc),
            b.operand(a_s, false),
            b.operand(b_s, transposed),
        );
        b.dot(acc, x, y, true);
    });
    let from = b.whole_view(acc);
    let slots = vec![
        Slot::Span {
            start: row,
            len: bm,
        },
        Slot::Span {
            start: column,
            len: bn,
        },
    ];
    b.copy(
        View {
            base: Base::Param(c),
            slots,
        },
        from,
        Oob::Zero,
    );
    b.finish()
}

/// Processor time of this thread in seconds: other programs on the machine count less than by the clock.
fn processor_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux has it");
    let nanoseconds = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    nanoseconds.expect("the first field is the time on the processor") as f64 * 1e-9
}

fn best_of(runs: usize, mut f: impl FnMut()) -> f64 {
    (0..runs)
        .map(|_| {
            let start = processor_seconds();
            f();
            processor_seconds() - start
        })
        .fold(f64::INFINITY, f64::min)
}

fn measure_gemm(dtype: DType, size: [u64; 3], block: [u64; 3], transposed: bool) {
    let [m, n, k] = size;
    let kernel = gemm(dtype, block, transposed);
    let start = processor_seconds();
    let code = compile(&kernel, variant());
    let compiled = processor_seconds() - start;
    let ramp = |count: u64| (0..count).map(|i| (i * 7 % 31) as f64 / 16.0 - 1.0);
    let b_shape = if transposed { [n, k] } else { [k, n] };
    let mut args = Args(vec![
        Arg::Tensor(Buffer::from_f64(dtype, &[m, k], ramp(m * k))),
        Arg::Tensor(Buffer::from_f64(dtype, &b_shape, ramp(n * k))),
        Arg::Tensor(Buffer::zeros(DType::F32, &[m, n])),
    ]);
    let seconds = best_of(5, || assert_eq!(code.run(&kernel, &mut args), None));
    let flops = 2.0 * (m * n * k) as f64;
    println!(
        "{dtype} {size:?} blocks {block:?}{}: {:.1} GFLOP/s, {:.2} ms; compiled in {:.0} ms",
        if transposed { " b^T" } else { "" },
        flops / seconds / 1e9,
        seconds * 1e3,
        compiled * 1e3
    );
}

/// What the micro-kernel reaches on operands in the first-level cache.
#[test]
#[ignore]
fn product_in_cache() {
    for (dtype, m, n, k) in [
        (DType::F32, 48, 16, 64),
        (DType::F32, 64, 64, 64),
        (DType::F32, 8, 64, 64),
        (DType::BF16, 64, 64, 64),
    ] {
        let mut b = Builder::new("cached", Default::default());
        let c = b.tensor(
            "c",
            ParamMode::Out,
            DType::F32,
            vec![HostExpr::Int(m), HostExpr::Int(n)],
        );
        let [m, n, k] = [m, n, k].map(|e| e as u64);
        let (x, y) = (
            b.tile("x", Space::Shared, dtype, &[m, k]),
            b.tile("y", Space::Shared, dtype, &[k, n]),
        );
        let acc = b.tile("acc", Space::Reg, DType::F32, &[m, n]);
        let (one, zero) = (b.float(1.0, dtype), b.float(0.0, DType::F32));
        b.fill(x, one);
        b.fill(y, one);
        b.fill(acc, zero);
        let (lo, hi) = (b.index(0), b.index(20_000));
        b.for_loop(lo, hi, LoopKind::Sequential, |b, _| {
            let (c, p, q) = (b.whole(acc), b.operand(x, false), b.operand(y, false));
            b.dot(c, p, q, true);
        });
        let from = b.whole_view(acc);
        let slots = vec![
            Slot::Span { start: lo, len: m },
            Slot::Span { start: lo, len: n },
        ];
        b.copy(
            View {
                base: Base::Param(c),
                slots,
            },
            from,
            Oob::Never,
        );
        let kernel = b.finish();
        let code = compile(&kernel, variant());
        let mut args = Args(vec![Arg::Tensor(Buffer::zeros(DType::F32, &[m, n]))]);
        let seconds = best_of(5, || assert_eq!(code.run(&kernel, &mut args), None));
        println!(
            "{dtype} [{m}, {n}, {k}] in cache: {:.1} GFLOP/s",
            2e4 * 2.0 * (m * n * k) as f64 / seconds / 1e9
        );
    }
}

#[test]
#[ignore]
fn gemm_speed() {
    for transposed in [false, true] {
        for block in [
            [64, 64, 64],
            [128, 128, 64],
            [128, 128, 128],
            [96, 128, 256],
        ] {
            measure_gemm(DType::F32, [2048, 2048, 2048], block, transposed);
        }
    }
    for block in [[64, 64, 64], [128, 128, 128]] {
        measure_gemm(DType::BF16, [2048, 2048, 2048], block, true);
        measure_gemm(DType::E4M3, [2048, 2048, 2048], block, true);
    }
    for block in [[1, 64, 512], [1, 256, 128], [1, 128, 1024]] {
        for transposed in [false, true] {
            measure_gemm(DType::F32, [1, 4096, 4096], block, transposed);
            measure_gemm(DType::BF16, [1, 4096, 4096], block, transposed);
        }
    }
}

/// `y = x` and `y = f(x)` through tiles: bytes read and written a second.
#[test]
#[ignore]
fn streaming_speed() {
    for (from, to) in [
        (DType::F32, DType::F32),
        (DType::BF16, DType::F32),
        (DType::F32, DType::BF16),
    ] {
        let mut b = Builder::new("stream", Default::default());
        b.dim("M", 1, 1 << 20, 1);
        let columns = 4096;
        let shape = || vec![HostExpr::dim("M"), HostExpr::Int(columns)];
        let x = b.tensor("x", ParamMode::In, from, shape());
        let y = b.tensor("y", ParamMode::Out, to, shape());
        b.grid(vec![HostExpr::dim("M")]);
        let row = b.block_index(0);
        b.map(&[columns as u64], |b, c| {
            let v = b.load_global(x, &[row, c[0]], None);
            let v = b.cast(v, Type::Scalar(DType::F32));
            let two = b.float(2.0, DType::F32);
            let v = b.mul(v, two);
            let v = b.cast(v, Type::Scalar(to));
            b.store_global(y, &[row, c[0]], v, None);
        });
        let kernel = b.finish();
        let code = compile(&kernel, variant());
        let rows = 8192;
        let mut args = Args(vec![
            Arg::Tensor(Buffer::zeros(from, &[rows, columns as u64])),
            Arg::Tensor(Buffer::zeros(to, &[rows, columns as u64])),
        ]);
        let seconds = best_of(5, || assert_eq!(code.run(&kernel, &mut args), None));
        let bytes = (rows * columns as u64) as f64 * (from.bits() + to.bits()) as f64 / 8.0;
        println!("{from} to {to}: {:.1} GB/s", bytes / seconds / 1e9);
    }
    let n = 32 << 20;
    let (x, mut y) = (vec![1u8; n * 4], vec![0u8; n * 4]);
    let seconds = best_of(5, || y.copy_from_slice(&x));
    println!("memcpy: {:.1} GB/s", n as f64 * 8.0 / seconds / 1e9);
}

/// Where the time of compiling goes, over random programs and a product.
#[test]
#[ignore]
fn compile_speed() {
    use tessera_compiler::mlir::{Lowering, MlirContext, cpu};
    use tessera_compiler::target::llvm;
    use tessera_compiler::tile::{generate, pass};
    let mut kernels = vec![
        gemm(DType::F32, [64, 64, 64], false),
        gemm(DType::BF16, [64, 64, 64], true),
    ];
    let mut state = 7u64;
    for _ in 0..20 {
        let choices: Vec<u8> = (0..100)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u8
            })
            .collect();
        let mut kernel = generate::program(&choices, generate::Features::ALL).kernel;
        pass::pipeline_code(&mut kernel).unwrap();
        kernels.push(kernel);
    }
    let mut totals = [0.0; 4];
    for (number, kernel) in kernels.iter().enumerate() {
        let mut times = Vec::new();
        let mut lap = Instant::now();
        let mut next = || {
            let now = Instant::now();
            times.push(
                now.duration_since(std::mem::replace(&mut lap, now))
                    .as_secs_f64()
                    * 1e3,
            );
        };
        let mlir = MlirContext::new();
        next();
        let mut emitted = cpu::emit(mlir.melior(), kernel, variant()).unwrap();
        next();
        mlir.lower(&mut emitted.module, Lowering::Cpu).unwrap();
        next();
        if let Ok(folder) = std::env::var("DUMP") {
            std::fs::write(
                format!("{folder}/{number}.mlir"),
                emitted.module.as_operation().to_string(),
            )
            .unwrap();
        }
        llvm::cpu_object(&mlir, &emitted.module, variant()).unwrap();
        next();
        for (total, t) in totals.iter_mut().zip(&times) {
            *total += t;
        }
        println!(
            "{} ops: context {:.1} emit {:.1} lower {:.1} llvm {:.1} ms",
            kernel.live_ops().len(),
            times[0],
            times[1],
            times[2],
            times[3]
        );
    }
    println!(
        "total: context {:.0} emit {:.0} lower {:.0} llvm {:.0} ms",
        totals[0], totals[1], totals[2], totals[3]
    );
}
