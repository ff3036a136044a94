use crate::harness::compile;
use tessera_artifact::{DType, HostExpr, HostOp, ParamMode};
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::ir::*;

/// `y[i] = a * x[i] + i / x[i]` over blocks of 100, guarded.
#[test]
fn guarded_map_over_a_ragged_tensor() {
    let mut b = Builder::new("axpi", Default::default());
    let n = b.dim("N", 0, 1 << 20, 1);
    let x = b.tensor("x", ParamMode::In, DType::F32, vec![HostExpr::dim("N")]);
    let y = b.tensor("y", ParamMode::Out, DType::F32, vec![HostExpr::dim("N")]);
    let a = b.param("a", ParamKind::Scalar(DType::F32));
    b.grid(vec![HostExpr::op(
        HostOp::CeilDiv,
        [HostExpr::dim("N"), HostExpr::Int(100)],
    )]);
    let block = b.block_index(0);
    let hundred = b.index(100);
    let start = b.mul(block, hundred);
    let nv = b.dim_value(n);
    let av = b.scalar(a);
    b.map(&[100], |b, c| {
        let i = b.add(start, c[0]);
        let inside = b.compare(Predicate::Lt, i, nv);
        let v = b.load_global(x, &[i], Some(inside));
        let p = b.mul(v, av);
        let fi = b.cast(i, Type::Scalar(DType::F32));
        let q = b.div(fi, v);
        let q = b.unary(UnaryOp::Sqrt, q);
        let r = b.add(p, q);
        b.store_global(y, &[i], r, Some(inside));
    });
    let compiled = compile(&b.finish()).unwrap();
    assert_eq!(compiled.barriers, 0);
    assert_eq!(compiled.shared_bytes, 0);
    assert_eq!(compiled.scratch_bytes, 0);
    assert_eq!(compiled.threads, 128);
    // IEEE: no contraction, division and root correctly rounded, subnormals kept.
    for (exact, inexact) in [
        ("div.rn.f32", "div.full"),
        ("sqrt.rn.f32", "sqrt.approx"),
        ("mul.rn.f32", "mul.f32"),
        ("add.rn.f32", "add.f32"),
    ] {
        assert!(compiled.ptx.contains(exact), "{exact}\n{}", compiled.ptx);
        assert!(
            !compiled.ptx.contains(inexact),
            "{inexact}\n{}",
            compiled.ptx
        );
    }
    assert_eq!(compiled.count(".ftz"), 0);
    assert_eq!(compiled.count("fma"), 0);
    compiled.assemble_without_spills();
}

fn dims(names: &[&str]) -> Vec<HostExpr> {
    names.iter().map(|n| HostExpr::dim(*n)).collect()
}

fn cdiv(name: &str, by: i64) -> HostExpr {
    HostExpr::op(HostOp::CeilDiv, [HostExpr::dim(name), HostExpr::Int(by)])
}

fn span(b: &mut Builder, at: ValueId, len: u64) -> Slot {
    let _ = b;
    Slot::Span { start: at, len }
}

/// `c = a b` by tiles of `bm x bn x bk`, ragged edges filled with zeros.
fn gemm(dtype: DType, bm: u64, bn: u64, bk: u64) -> Kernel {
    let mut b = Builder::new("gemm", Default::default());
    b.dim("M", 0, 1 << 20, 1);
    b.dim("N", 0, 1 << 20, 1);
    let k = b.dim("K", 0, 1 << 20, 1);
    let a = b.tensor("a", ParamMode::In, dtype, dims(&["M", "K"]));
    let w = b.tensor("b", ParamMode::In, dtype, dims(&["K", "N"]));
    let c = b.tensor("c", ParamMode::Out, DType::F32, dims(&["M", "N"]));
    b.grid(vec![cdiv("N", bn as i64), cdiv("M", bm as i64)]);
    let at = b.tile("a_s", Space::Shared, dtype, &[bm, bk]);
    let bt = b.tile("b_s", Space::Shared, dtype, &[bk, bn]);
    let acc = b.tile("acc", Space::Reg, DType::F32, &[bm, bn]);
    let zero = b.zero(DType::F32);
    b.fill(acc, zero);
    let (bmv, bnv, bkv) = (b.index(bm as i64), b.index(bn as i64), b.index(bk as i64));
    let (col, row) = (b.block_index(0), b.block_index(1));
    let (col, row) = (b.mul(col, bnv), b.mul(row, bmv));
    let kv = b.dim_value(k);
    let steps = b.cdiv(kv, bkv);
    let lo = b.index(0);
    b.for_loop(lo, steps, LoopKind::Sequential, |b, i| {
        let k0 = b.mul(i, bkv);
        let src = View {
            base: Base::Param(a),
            slots: vec![span(b, row, bm), span(b, k0, bk)],
        };
        let dst = b.whole_view(at);
        b.copy(dst, src, Oob::Zero);
        let src = View {
            base: Base::Param(w),
            slots: vec![span(b, k0, bk), span(b, col, bn)],
        };
        let dst = b.whole_view(bt);
        b.copy(dst, src, Oob::Zero);
        let (acc_view, x, y) = (b.whole(acc), b.operand(at, false), b.operand(bt, false));
        b.dot(acc_view, x, y, true);
    });
    let dst = View {
        base: Base::Param(c),
        slots: vec![span(&mut b, row, bm), span(&mut b, col, bn)],
    };
    let src = b.whole_view(acc);
    b.copy(dst, src, Oob::Skip);
    b.finish()
}

#[test]
fn gemm_waits_twice_in_the_k_loop() {
    let compiled = compile(&gemm(DType::F32, 32, 32, 16)).unwrap();
    // Before the copies overwrite what the last `dot` reads, before the `dot`; and before the sums go out, since other threads made
    // them; and before the next item's zeros. The first copy of the second operand needs none.
    assert_eq!(compiled.barriers, 4, "{}", compiled.ptx);
    assert_eq!(compiled.shared_bytes, 4 * (32 * 16 * 2 + 32 * 32));
    assert_eq!(compiled.scratch_bytes, 0);
    assert!(compiled.count("fma.rn.f32") >= 8, "{}", compiled.ptx);
    compiled.assemble_without_spills();
}

/// Every operand type of `dot`, with edges that no block of elements divides.
#[test]
fn dot_of_every_type() {
    use DType::*;
    for (dtype, acc) in [
        (F64, F64),
        (F32, F32),
        (Tf32, F32),
        (BF16, F32),
        (F16, F32),
        (E4M3, F32),
        (E5M2, F32),
        (E2M1, F32),
        (I8, I32),
        (U8, I32),
    ] {
        let mut b = Builder::new("dots", Default::default());
        let out = b.tensor(
            "out",
            ParamMode::Out,
            acc,
            vec![HostExpr::Int(20), HostExpr::Int(36)],
        );
        let x = b.tile("x", Space::Shared, dtype, &[20, 7]);
        let y = b.tile("y", Space::Shared, dtype, &[36, 7]);
        let sum = b.tile("sum", Space::Reg, acc, &[20, 36]);
        let one = match dtype.is_float() {
            true => b.float(1.0, dtype),
            false => b.int(1, dtype),
        };
        b.fill(x, one);
        b.fill(y, one);
        let (view, p, q) = (b.whole(sum), b.operand(x, false), b.operand(y, true));
        b.dot(view, p, q, false);
        let zero = b.index(0);
        let dst = View {
            base: Base::Param(out),
            slots: vec![span(&mut b, zero, 20), span(&mut b, zero, 36)],
        };
        let src = b.whole_view(sum);
        b.copy(dst, src, Oob::Never);
        compile(&b.finish()).unwrap().assemble_without_spills();
    }
}

/// Folds in every order, scans and `topk`, on every type that folds.
#[test]
fn folds_scans_and_topk() {
    use DType::*;
    for dtype in [F64, F32, BF16, F16, I8, I16, I32, I64, U8, U16, U32, U64] {
        for order in [
            Order::Ascending,
            Order::Tree(8),
            Order::Tree(32),
            Order::Tree(256),
        ] {
            let mut b = Builder::new("folds", Default::default());
            let out = b.tensor("out", ParamMode::Out, dtype, vec![HostExpr::Int(5)]);
            let picked = b.tensor(
                "picked",
                ParamMode::Out,
                I32,
                vec![HostExpr::Int(5), HostExpr::Int(3)],
            );
            let src = b.tile("src", Space::Shared, dtype, &[5, 70]);
            let dst = b.tile("dst", Space::Reg, dtype, &[5]);
            let values = b.tile("values", Space::Reg, dtype, &[5, 3]);
            let indices = b.tile("indices", Space::Reg, I32, &[5, 3]);
            b.map(&[5, 70], |b, at| {
                let i = b.cast(at[1], Type::Scalar(dtype));
                b.store_tile(src, at, i);
            });
            b.effect(OpKind::Scan {
                dst: src,
                src,
                axis: 1,
                op: FoldOp::Max,
            });
            b.effect(OpKind::Reduce {
                dst,
                src,
                axis: 1,
                op: FoldOp::Sum,
                order,
            });
            b.effect(OpKind::TopK {
                values,
                indices,
                src,
                smallest: false,
            });
            b.map(&[5], |b, at| {
                let v = b.load_tile(dst, at);
                b.store_global(out, at, v, None);
            });
            b.map(&[5, 3], |b, at| {
                let v = b.load_tile(indices, at);
                b.store_global(picked, at, v, None);
            });
            let compiled = compile(&b.finish()).unwrap();
            let least = match order {
                Order::Tree(lanes) if lanes <= 32 => {
                    lanes.ilog2() as usize * (dtype.bits() as usize).div_ceil(32)
                }
                _ => 0,
            };
            // A multiple of it, where LLVM unrolled the loop over lines.
            let shuffles = compiled.count("shfl.sync.down.b32");
            assert!(
                shuffles >= least
                    && shuffles.is_multiple_of(least.max(1))
                    && (least > 0) == (shuffles > 0),
                "{dtype} {order:?}: {shuffles}"
            );
            compiled.assemble_without_spills();
        }
    }
}

/// Atomics on every type that has them; halves of bytes that two threads own.
#[test]
fn atomics_and_packed_stores() {
    use DType::*;
    for dtype in [F64, F32, BF16, F16, I16, I32, I64, U32, U64] {
        let mut b = Builder::new("counts", Default::default());
        let h = b.tensor("h", ParamMode::InOut, dtype, vec![HostExpr::Int(100)]);
        b.map(&[100], |b, at| {
            let one = match dtype.is_float() {
                true => b.float(1.0, dtype),
                false => b.int(1, dtype),
            };
            b.effect(OpKind::Atomic {
                op: FoldOp::Sum,
                param: h,
                index: at.to_vec(),
                value: one,
                guard: None,
            });
        });
        let compiled = compile(&b.finish()).unwrap();
        assert!(compiled.count("atom.") >= 1, "{}", compiled.ptx);
        // The addition of floats in global memory flushes subnormals.
        assert_eq!(compiled.count("add.f"), 0, "{}", compiled.ptx);
        compiled.assemble_without_spills();
    }
    let mut b = Builder::new("pack", Default::default());
    let x = b.tensor("x", ParamMode::In, F32, vec![HostExpr::Int(100)]);
    let y = b.tensor("y", ParamMode::Out, E2M1, vec![HostExpr::Int(100)]);
    b.map(&[100], |b, at| {
        let v = b.load_global(x, at, None);
        let v = b.cast(v, Type::Scalar(E2M1));
        b.store_global(y, at, v, None);
    });
    let compiled = compile(&b.finish()).unwrap();
    // Each half by atomics of its own, since the other may be another thread's.
    for op in ["atom.global.and.b32", "atom.global.or.b32"] {
        assert_eq!(compiled.count(op), 1, "{op}\n{}", compiled.ptx);
    }
    compiled.assemble_without_spills();
}

/// Tiles beyond shared memory go to global scratch, and scalar cells to registers.
#[test]
fn large_tiles_and_small_ones() {
    let mut b = Builder::new("large", Default::default());
    let out = b.tensor("out", ParamMode::Out, DType::F32, vec![HostExpr::Int(4096)]);
    let large = b.tile("large", Space::Shared, DType::F32, &[100_000]);
    let small = b.tile("small", Space::Shared, DType::F32, &[4096]);
    let cell = b.tile("s", Space::Reg, DType::F32, &[]);
    let one = b.float(1.0, DType::F32);
    b.fill(large, one);
    b.fill(small, one);
    b.store_tile(cell, &[], one);
    let (lo, hi) = (b.index(0), b.index(10));
    b.for_loop(lo, hi, LoopKind::Sequential, |b, i| {
        let v = b.load_tile(large, &[i]);
        let s = b.load_tile(cell, &[]);
        let s = b.add(s, v);
        b.store_tile(cell, &[], s);
    });
    b.map(&[4096], |b, at| {
        let v = b.load_tile(small, at);
        let s = b.load_tile(cell, &[]);
        let v = b.add(v, s);
        b.store_global(out, at, v, None);
    });
    let compiled = compile(&b.finish()).unwrap();
    assert_eq!(compiled.shared_bytes, 4096 * 4);
    assert_eq!(compiled.scratch_bytes, 400_000);
    assert_eq!(compiled.count(".local"), 0, "{}", compiled.ptx);
    // Between the fill and the loads of `large`, and before the next item fills it again.
    assert_eq!(compiled.barriers, 2, "{}", compiled.ptx);
    compiled.assemble_without_spills();
}

/// A check of scalar code, a copy that must stay inside, a gather, a flag that one CTA raises for another.
#[test]
fn checks_gathers_and_flags() {
    let mut b = Builder::new("checks", Default::default());
    let n = b.dim("N", 0, 1 << 20, 1);
    let x = b.tensor(
        "x",
        ParamMode::In,
        DType::BF16,
        vec![HostExpr::dim("N"), HostExpr::Int(64)],
    );
    let rows = b.tensor("rows", ParamMode::In, DType::I32, vec![HostExpr::Int(16)]);
    let y = b.tensor(
        "y",
        ParamMode::Out,
        DType::F32,
        vec![HostExpr::Int(16), HostExpr::Int(64)],
    );
    let ready = b.tensor(
        "ready",
        ParamMode::Flags,
        DType::U32,
        vec![HostExpr::Int(2)],
    );
    b.grid(vec![HostExpr::Int(2)]);
    let nv = b.dim_value(n);
    let zero = b.index(0);
    let some = b.compare(Predicate::Gt, nv, zero);
    b.assert(some, "no rows");
    let tile = b.tile("t", Space::Shared, DType::F32, &[16, 64]);
    let src = View {
        base: Base::Param(x),
        slots: vec![
            Slot::Gather {
                index: Box::new(View {
                    base: Base::Param(rows),
                    slots: vec![span(&mut b, zero, 16)],
                }),
                len: 16,
            },
            span(&mut b, zero, 64),
        ],
    };
    let dst = b.whole_view(tile);
    b.copy(dst, src, Oob::Error);
    let block = b.block_index(0);
    let is_first = b.compare(Predicate::Eq, block, zero);
    let one = b.int(1, DType::U32);
    b.if_else(
        is_first,
        |b| {
            let dst = View {
                base: Base::Param(y),
                slots: vec![span(b, zero, 16), span(b, zero, 64)],
            };
            let src = b.whole_view(tile);
            b.copy(dst, src, Oob::Never);
            b.effect(OpKind::Signal {
                param: ready,
                index: vec![zero],
            });
        },
        |b| {
            b.effect(OpKind::Wait {
                param: ready,
                index: vec![zero],
                at_least: one,
            });
        },
    );
    let compiled = compile(&b.finish()).unwrap();
    for published in ["fence.acq_rel.gpu", "ld.acquire.gpu"] {
        assert_eq!(
            compiled.count(published),
            1,
            "{published}\n{}",
            compiled.ptx
        );
    }
    compiled.assemble_without_spills();
}

#[test]
fn what_cannot_be_lowered_is_said_with_its_place() {
    let mut b = Builder::new("prints", Default::default());
    let v = b.index(3);
    b.effect(OpKind::Print {
        text: "v".into(),
        args: vec![PrintArg::Value(v)],
    });
    let problem = compile(&b.finish()).err().unwrap();
    assert_eq!(problem.code, "TL0902");
    assert!(problem.message.contains("`print`"), "{}", problem.message);

    let mut b = Builder::new("unexpanded", Default::default());
    let y = b.tensor("y", ParamMode::Out, DType::F32, vec![HostExpr::Int(1)]);
    let zero = b.index(0);
    let x = b.load_global(y, &[zero], None);
    let e = b.unary(UnaryOp::Exp, x);
    b.store_global(y, &[zero], e, None);
    let problem = compile(&b.finish()).err().unwrap();
    assert!(
        problem.message.contains("`Exp` of f32"),
        "{}",
        problem.message
    );

    let mut b = Builder::new("wide", Default::default());
    b.kernel.launch.warps = Some(64);
    let problem = compile(&b.finish()).err().unwrap();
    assert_eq!(problem.code, "TL0903");
    assert!(
        problem.message.contains("asks for 64 warps"),
        "{}",
        problem.message
    );
}
