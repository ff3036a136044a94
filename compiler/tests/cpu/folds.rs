//! Folds, scans and top-k over every axis, in every order.

use crate::harness::{agree, noise};
use tessera_artifact::{DType, HostExpr, ParamMode};
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::interp::{Arg, Args, Buffer};
use tessera_compiler::tile::ir::*;

fn host(shape: &[u64]) -> Vec<HostExpr> {
    shape.iter().map(|&e| HostExpr::Int(e as i64)).collect()
}

fn whole(b: &mut Builder, base: Base, shape: &[u64]) -> View {
    let start = b.index(0);
    View {
        base,
        slots: shape.iter().map(|&len| Slot::Span { start, len }).collect(),
    }
}

/// Copies the input into a tile, runs `op` on it, and copies its results out.
fn around(
    dtype: DType,
    shape: &[u64],
    results: &[(DType, Vec<u64>)],
    op: impl FnOnce(&mut Builder, TileId, &[TileId]),
) -> (Kernel, Args) {
    let mut b = Builder::new("around", Default::default());
    let x = b.tensor("x", ParamMode::In, dtype, host(shape));
    let src = b.tile("src", Space::Shared, dtype, shape);
    let (to, from) = (
        whole(&mut b, Base::Tile(src), shape),
        whole(&mut b, Base::Param(x), shape),
    );
    b.copy(to, from, Oob::Never);
    let outs: Vec<_> = results
        .iter()
        .enumerate()
        .map(|(i, (d, s))| b.tensor(format!("y{i}"), ParamMode::Out, *d, host(s)))
        .collect();
    let tiles: Vec<_> = results
        .iter()
        .enumerate()
        .map(|(i, (d, s))| b.tile(format!("t{i}"), Space::Reg, *d, s))
        .collect();
    op(&mut b, src, &tiles);
    for ((&tile, &out), (_, shape)) in tiles.iter().zip(&outs).zip(results) {
        let (to, from) = (
            whole(&mut b, Base::Param(out), shape),
            whole(&mut b, Base::Tile(tile), shape),
        );
        b.copy(to, from, Oob::Never);
    }
    let mut args = vec![Arg::Tensor(noise(dtype, shape, 11))];
    args.extend(
        results
            .iter()
            .map(|(d, s)| Arg::Tensor(Buffer::zeros(*d, s))),
    );
    (b.finish(), Args(args))
}

#[test]
fn folds_in_every_order() {
    let shapes: [&[u64]; 7] = [
        &[1],
        &[5],
        &[100],
        &[3, 37],
        &[9, 64],
        &[4, 9, 20],
        &[17, 3, 1],
    ];
    let orders = [
        Order::Ascending,
        Order::Tree(1),
        Order::Tree(2),
        Order::Tree(8),
        Order::Tree(32),
        Order::Tree(128),
    ];
    for dtype in [DType::F32, DType::BF16, DType::I32, DType::F64] {
        let shapes = if dtype == DType::F32 {
            &shapes[..]
        } else {
            &shapes[4..6]
        };
        for &shape in shapes {
            for axis in 0..shape.len() {
                let mut reduced = shape.to_vec();
                reduced.remove(axis);
                let mut cases = Vec::new();
                for op in [FoldOp::Sum, FoldOp::Prod, FoldOp::Max, FoldOp::Min] {
                    for order in orders {
                        if op == FoldOp::Sum
                            || dtype == DType::F32
                                && matches!(order, Order::Ascending | Order::Tree(8))
                        {
                            cases.push((op, order));
                        }
                    }
                }
                let results = vec![(dtype, reduced); cases.len()];
                let (kernel, args) = around(dtype, shape, &results, |b, src, tiles| {
                    for (&(op, order), &dst) in cases.iter().zip(tiles) {
                        b.effect(OpKind::Reduce {
                            dst,
                            src,
                            axis: axis as u32,
                            op,
                            order,
                        });
                    }
                });
                agree(
                    &kernel,
                    &args,
                    &format!("{dtype} {shape:?} axis {axis}: {cases:?}"),
                );
            }
        }
    }
}

#[test]
fn a_sum_of_negative_zeros() {
    for order in [Order::Ascending, Order::Tree(4)] {
        let (kernel, mut args) = around(
            DType::F32,
            &[2, 6],
            &[(DType::F32, vec![2])],
            |b, src, tiles| {
                b.effect(OpKind::Reduce {
                    dst: tiles[0],
                    src,
                    axis: 1,
                    op: FoldOp::Sum,
                    order,
                });
            },
        );
        args.0[0] = Arg::Tensor(Buffer::from_f64(DType::F32, &[2, 6], [-0.0; 12]));
        agree(&kernel, &args, &format!("{order:?}"));
    }
}

#[test]
fn bools_fold() {
    for shape in [&[40u64][..], &[3, 19], &[19, 3]] {
        for axis in 0..shape.len() {
            let mut reduced = shape.to_vec();
            reduced.remove(axis);
            let results = vec![(DType::Bool, reduced); 2];
            let (kernel, args) = around(DType::Bool, shape, &results, |b, src, tiles| {
                for (op, &dst) in [FoldOp::And, FoldOp::Or].into_iter().zip(tiles) {
                    b.effect(OpKind::Reduce {
                        dst,
                        src,
                        axis: axis as u32,
                        op,
                        order: Order::Ascending,
                    });
                }
            });
            agree(&kernel, &args, &format!("{shape:?} axis {axis}"));
        }
    }
}

#[test]
fn scans_along_every_axis() {
    for dtype in [DType::F32, DType::I32, DType::BF16] {
        for shape in [&[70u64][..], &[19, 5], &[4, 9, 20]] {
            for axis in 0..shape.len() {
                let ops = [FoldOp::Sum, FoldOp::Max];
                let results = vec![(dtype, shape.to_vec()); 2];
                let (kernel, args) = around(dtype, shape, &results, |b, src, tiles| {
                    for (op, &dst) in ops.into_iter().zip(tiles) {
                        b.effect(OpKind::Scan {
                            dst,
                            src,
                            axis: axis as u32,
                            op,
                        });
                    }
                });
                agree(&kernel, &args, &format!("{dtype} {shape:?} axis {axis}"));
            }
        }
    }
}

#[test]
fn topk_breaks_ties_by_index() {
    for dtype in [
        DType::F32,
        DType::BF16,
        DType::I32,
        DType::U32,
        DType::U8,
        DType::F64,
        DType::I64,
    ] {
        for (rows, n, k) in [
            (1u64, 1u64, 1u64),
            (3, 7, 2),
            (2, 40, 40),
            (1, 300, 17),
            (2, 256, 6),
            (1, 1024, 512),
        ] {
            if (dtype.bits() == 64 && n > 300) || (dtype.bits() < 32 && n != 40) {
                continue;
            }
            for smallest in [false, true] {
                let results = [(dtype, vec![rows, k]), (DType::I32, vec![rows, k])];
                let (kernel, mut args) = around(dtype, &[rows, n], &results, |b, src, tiles| {
                    b.effect(OpKind::TopK {
                        values: tiles[0],
                        indices: tiles[1],
                        src,
                        smallest,
                    });
                });
                agree(&kernel, &args, &format!("{dtype} {k} of {n}"));
                // Many ties.
                let few = (0..rows * n).map(|i| {
                    ((i * 7 + i / 5) % 5) as f64
                        - if dtype == DType::U8 || dtype == DType::U32 {
                            0.0
                        } else {
                            2.0
                        }
                });
                args.0[0] = Arg::Tensor(Buffer::from_f64(dtype, &[rows, n], few));
                agree(&kernel, &args, &format!("{dtype} {k} of {n}, ties"));
            }
        }
    }
}
