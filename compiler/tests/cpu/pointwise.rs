use crate::harness::{Arg, Array, compile};
use tessera_artifact::{CpuVariant, DType, HostExpr, HostOp, ParamMode};
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::ir::*;

/// `y[i] = a * x[i] + i` over blocks of 100, guarded.
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
    let body = b.nested(&[Type::Index], |b, c| {
        let i = b.add(start, c[0]);
        let inside = b.compare(Predicate::Lt, i, nv);
        let v = b.load_global(x, &[i], Some(inside));
        let p = b.mul(v, av);
        let fi = b.cast(i, Type::Scalar(DType::F32));
        let r = b.add(p, fi);
        b.store_global(y, &[i], r, Some(inside));
    });
    b.effect(OpKind::Map {
        extents: vec![100],
        body,
    });
    let kernel = b.finish();
    let code = compile(&kernel, CpuVariant::Avx2);
    for n in [0u64, 1, 7, 99, 100, 101, 163, 1000] {
        let mut x = Array::f32(&[n], |i| i as f32 * 0.5 - 3.0);
        let mut y = Array::zeros(DType::F32, &[n]);
        let trap = code.run(
            &kernel,
            &mut [
                Arg::Tensor(&mut x),
                Arg::Tensor(&mut y),
                Arg::Scalar(3.5f32.to_bits() as u64),
            ],
        );
        assert_eq!(trap, None);
        let expected: Vec<f32> = x
            .as_f32()
            .iter()
            .enumerate()
            .map(|(i, v)| v * 3.5 + i as f32)
            .collect();
        assert_eq!(y.as_f32(), expected, "n = {n}");
    }
}

/// Tiles, copies with zero fill, a loop, a widening copy.
#[test]
fn copies_and_loops() {
    let mut b = Builder::new("m::copies", Default::default());
    let m = b.dim("M", 1, 1 << 20, 1);
    let n = b.dim("N", 1, 1 << 20, 1);
    let x = b.tensor(
        "x",
        ParamMode::In,
        DType::F32,
        vec![HostExpr::dim("M"), HostExpr::dim("N")],
    );
    let y = b.tensor(
        "y",
        ParamMode::Out,
        DType::F32,
        vec![HostExpr::dim("M"), HostExpr::dim("N")],
    );
    b.grid(vec![HostExpr::op(
        HostOp::CeilDiv,
        [HostExpr::dim("M"), HostExpr::Int(4)],
    )]);
    let block = b.block_index(0);
    let four = b.index(4);
    let row = b.mul(block, four);
    let nv = b.dim_value(n);
    let _ = m;
    let tile = b.tile("t", Space::Shared, DType::F32, &[4, 50]);
    let acc = b.tile("acc", Space::Reg, DType::F32, &[4]);
    let fifty = b.index(50);
    let zero = b.index(0);
    let trips = b.cdiv(nv, fifty);
    let init = b.nested(&[Type::Index], |b, c| {
        let z = b.zero(DType::F32);
        b.store_tile(acc, &[c[0]], z);
    });
    b.effect(OpKind::Map {
        extents: vec![4],
        body: init,
    });
    let body = b.nested(&[Type::Index], |b, c| {
        let col = b.mul(c[0], fifty);
        let view = View {
            base: Base::Param(x),
            slots: vec![
                Slot::Span { start: row, len: 4 },
                Slot::Span {
                    start: col,
                    len: 50,
                },
            ],
        };
        let whole = View {
            base: Base::Tile(tile),
            slots: vec![
                Slot::Span {
                    start: zero,
                    len: 4,
                },
                Slot::Span {
                    start: zero,
                    len: 50,
                },
            ],
        };
        b.effect(OpKind::Copy {
            dst: whole.clone(),
            src: view.clone(),
            oob: Oob::Zero,
        });
        let double = b.nested(&[Type::Index, Type::Index], |b, c| {
            let v = b.load_tile(tile, c);
            let first = b.load_tile(tile, &[c[0], zero]);
            let s = b.add(v, v);
            let _ = first;
            b.store_tile(tile, c, s);
        });
        b.effect(OpKind::Map {
            extents: vec![4, 50],
            body: double,
        });
        let out = View {
            base: Base::Param(y),
            ..view
        };
        b.effect(OpKind::Copy {
            dst: out,
            src: whole,
            oob: Oob::Zero,
        });
    });
    b.effect(OpKind::For {
        lo: zero,
        hi: trips,
        kind: LoopKind::Sequential,
        body,
    });
    let kernel = b.finish();
    let code = compile(&kernel, CpuVariant::Avx2);
    for (m, n) in [(1u64, 1u64), (4, 50), (5, 49), (9, 163), (64, 100)] {
        let mut x = Array::f32(&[m, n], |i| i as f32 * 0.5 - 3.0);
        let mut y = Array::zeros(DType::F32, &[m, n]);
        let trap = code.run(&kernel, &mut [Arg::Tensor(&mut x), Arg::Tensor(&mut y)]);
        assert_eq!(trap, None);
        let expected: Vec<f32> = x.as_f32().iter().map(|v| v * 2.0).collect();
        assert_eq!(y.as_f32(), expected, "{m} x {n}");
    }
}
