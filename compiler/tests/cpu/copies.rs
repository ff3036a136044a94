//! Copies of every kind across the edges of tensors.

use crate::harness::{agree_compiled, compile, noise, variant};
use tessera_artifact::{DType, HostExpr, HostOp, ParamMode};
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::interp::{Arg, Args, Buffer};
use tessera_compiler::tile::ir::*;

fn cdiv(name: &str, by: i64) -> HostExpr {
    HostExpr::op(HostOp::CeilDiv, [HostExpr::dim(name), HostExpr::Int(by)])
}

/// `y = x` through tiles of `[BM, BN]`, the tensors' edges anywhere.
fn tiled(from: DType, to: DType, [bm, bn]: [u64; 2], oob: Oob) -> Kernel {
    let mut b = Builder::new("tiled", Default::default());
    b.dim("M", 0, 1 << 20, 1);
    b.dim("N", 0, 1 << 20, 1);
    let shape = || vec![HostExpr::dim("M"), HostExpr::dim("N")];
    let x = b.tensor("x", ParamMode::In, from, shape());
    let y = b.tensor("y", ParamMode::InOut, to, shape());
    let z = b.tensor(
        "z",
        ParamMode::InOut,
        to,
        vec![
            cdiv("M", bm as i64),
            cdiv("N", bn as i64),
            HostExpr::Int(bm as i64),
            HostExpr::Int(bn as i64),
        ],
    );
    b.grid(vec![cdiv("M", bm as i64), cdiv("N", bn as i64)]);
    let t = b.tile("t", Space::Shared, to, &[bm, bn]);
    let zero = b.zero(to);
    b.fill(t, zero);
    let starts: Vec<_> = [bm, bn]
        .iter()
        .enumerate()
        .map(|(axis, &e)| {
            let block = b.block_index(axis as u8);
            let e = b.index(e as i64);
            b.mul(block, e)
        })
        .collect();
    let window = |base| View {
        base,
        slots: vec![
            Slot::Span {
                start: starts[0],
                len: bm,
            },
            Slot::Span {
                start: starts[1],
                len: bn,
            },
        ],
    };
    let tile = b.whole_view(t);
    b.copy(tile.clone(), window(Base::Param(x)), oob);
    b.copy(window(Base::Param(y)), tile.clone(), oob);
    let (i, j, zero) = (b.block_index(0), b.block_index(1), b.index(0));
    let slots = vec![
        Slot::At(i),
        Slot::At(j),
        Slot::Span {
            start: zero,
            len: bm,
        },
        Slot::Span {
            start: zero,
            len: bn,
        },
    ];
    b.copy(
        View {
            base: Base::Param(z),
            slots,
        },
        tile,
        Oob::Never,
    );
    b.finish()
}

#[test]
fn tiles_cross_the_edges() {
    let pairs = [
        (DType::F32, DType::F32),
        (DType::BF16, DType::F32),
        (DType::U8, DType::U8),
        (DType::E4M3, DType::BF16),
        (DType::E2M1, DType::F32),
        (DType::E2M1, DType::E2M1),
        (DType::I8, DType::I64),
        (DType::Bool, DType::Bool),
    ];
    for (from, to) in pairs {
        for oob in [Oob::Zero, Oob::Skip] {
            for block in [[4u64, 32], [1, 70]] {
                let kernel = tiled(from, to, block, oob);
                let code = compile(&kernel, variant());
                for shape in [[1u64, 2], [4, 32], [8, 64], [7, 50], [9, 100]] {
                    let tiles = [
                        shape[0].div_ceil(block[0]),
                        shape[1].div_ceil(block[1]),
                        block[0],
                        block[1],
                    ];
                    let args = vec![
                        Arg::Tensor(noise(from, &shape, 1)),
                        Arg::Tensor(noise(to, &shape, 2)),
                        Arg::Tensor(noise(to, &tiles, 3)),
                    ];
                    agree_compiled(
                        &kernel,
                        &code,
                        &Args(args),
                        &format!("{from} to {to} {oob:?} {block:?} {shape:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn an_error_stops_the_kernel() {
    let kernel = tiled(DType::F32, DType::F32, [4, 32], Oob::Error);
    let code = compile(&kernel, variant());
    for shape in [[4u64, 32], [8, 64], [5, 32], [4, 33]] {
        let tiles = [shape[0].div_ceil(4), shape[1].div_ceil(32), 4, 32];
        let args = vec![
            Arg::Tensor(noise(DType::F32, &shape, 1)),
            Arg::Tensor(noise(DType::F32, &shape, 2)),
            Arg::Tensor(noise(DType::F32, &tiles, 3)),
        ];
        agree_compiled(&kernel, &code, &Args(args), &format!("{shape:?}"));
    }
}

/// Rows by index, some missing; single coordinates; windows before the start.
#[test]
fn gathered_rows_and_negative_starts() {
    for oob in [Oob::Zero, Oob::Skip] {
        let mut b = Builder::new("gathered", Default::default());
        b.dim("N", 0, 1 << 20, 1);
        let x = b.tensor(
            "x",
            ParamMode::In,
            DType::F32,
            vec![HostExpr::dim("N"), HostExpr::Int(40)],
        );
        let p = b.tensor("p", ParamMode::In, DType::I32, vec![HostExpr::Int(12)]);
        let y = b.tensor(
            "y",
            ParamMode::InOut,
            DType::F32,
            vec![HostExpr::Int(12), HostExpr::Int(40)],
        );
        let w = b.tensor(
            "w",
            ParamMode::InOut,
            DType::F32,
            vec![HostExpr::Int(8), HostExpr::Int(40)],
        );
        let t = b.tile("t", Space::Shared, DType::F32, &[12, 40]);
        let u = b.tile("u", Space::Shared, DType::F32, &[8, 40]);
        let one = b.float(1.0, DType::F32);
        b.fill(t, one);
        b.fill(u, one);
        let zero = b.index(0);
        let index = View {
            base: Base::Param(p),
            slots: vec![Slot::Span {
                start: zero,
                len: 12,
            }],
        };
        let rows = View {
            base: Base::Param(x),
            slots: vec![
                Slot::Gather {
                    index: Box::new(index),
                    len: 12,
                },
                Slot::Span {
                    start: zero,
                    len: 40,
                },
            ],
        };
        let tile = b.whole_view(t);
        b.copy(tile.clone(), rows, oob);
        let all = |base, n| View {
            base,
            slots: vec![
                Slot::Span {
                    start: zero,
                    len: n,
                },
                Slot::Span {
                    start: zero,
                    len: 40,
                },
            ],
        };
        b.copy(all(Base::Param(y), 12), tile, Oob::Never);
        let before = b.index(-5);
        let left = b.index(-3);
        let window = View {
            base: Base::Param(x),
            slots: vec![
                Slot::Span {
                    start: before,
                    len: 8,
                },
                Slot::Span {
                    start: left,
                    len: 40,
                },
            ],
        };
        let tile = b.whole_view(u);
        b.copy(tile.clone(), window, oob);
        b.copy(all(Base::Param(w), 8), tile, Oob::Never);
        let kernel = b.finish();
        let code = compile(&kernel, variant());
        for n in [1u64, 2, 20] {
            let rows = (0..12).map(|i| {
                if i % 4 == 3 {
                    -1.0
                } else {
                    (i as u64 * 7 % n) as f64
                }
            });
            let args = vec![
                Arg::Tensor(noise(DType::F32, &[n, 40], 1)),
                Arg::Tensor(Buffer::from_f64(DType::I32, &[12], rows)),
                Arg::Tensor(noise(DType::F32, &[12, 40], 2)),
                Arg::Tensor(noise(DType::F32, &[8, 40], 3)),
            ];
            agree_compiled(&kernel, &code, &Args(args), &format!("{oob:?} N = {n}"));
        }
    }
}

/// Rows of an output too large for the caches: whole lines at aligned addresses go past them, everything else does not.
#[test]
fn a_large_output_is_streamed() {
    const ROWS: u64 = 8;
    const COLUMNS: u64 = 256;
    let mut b = Builder::new("streamed", Default::default());
    b.dim("M", 0, 1 << 20, 1);
    b.dim("N", 0, 1 << 20, 1);
    let shape = || vec![HostExpr::dim("M"), HostExpr::dim("N")];
    let x = b.tensor("x", ParamMode::In, DType::BF16, shape());
    let y = b.tensor("y", ParamMode::Out, DType::F32, shape());
    b.grid(vec![cdiv("M", ROWS as i64), cdiv("N", COLUMNS as i64)]);
    let t = b.tile("t", Space::Shared, DType::F32, &[ROWS, COLUMNS]);
    let slots: Vec<_> = [ROWS, COLUMNS]
        .iter()
        .enumerate()
        .map(|(axis, &len)| {
            let block = b.block_index(axis as u8);
            let size = b.index(len as i64);
            let start = b.mul(block, size);
            Slot::Span { start, len }
        })
        .collect();
    let window = |base| View {
        base,
        slots: slots.clone(),
    };
    let tile = b.whole_view(t);
    b.copy(tile.clone(), window(Base::Param(x)), Oob::Zero);
    b.copy(window(Base::Param(y)), tile, Oob::Skip);
    let kernel = b.finish();
    let code = compile(&kernel, variant());
    // Every second row starts within a line. More than 16 MiB.
    let shape = [513, 8200];
    let args = Args(vec![
        Arg::Tensor(noise(DType::BF16, &shape, 1)),
        Arg::Tensor(noise(DType::F32, &shape, 2)),
    ]);
    agree_compiled(&kernel, &code, &args, "a large output");
}
