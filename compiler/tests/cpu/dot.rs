//! Products of every type, orientation and ragged shape.

use crate::harness::{agree, agree_compiled, compile, noise, object, variant};
use tessera_artifact::{CpuVariant, DType, HostExpr, ParamMode};
use tessera_compiler::mlir::MlirContext;
use tessera_compiler::mlir::cpu::variant_of_code;
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::interp::{Arg, Args};
use tessera_compiler::tile::ir::*;

fn accumulator(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        d if d.is_int() => DType::I32,
        _ => DType::F32,
    }
}

fn shapes([m, n, k]: [u64; 3], transposed: [bool; 2]) -> [[u64; 2]; 2] {
    let turn = |x, y, t| if t { [y, x] } else { [x, y] };
    [turn(m, k, transposed[0]), turn(k, n, transposed[1])]
}

/// `c (+)= a · b`, the operands through tiles.
pub fn product(
    dtype: DType,
    shape @ [m, n, _]: [u64; 3],
    transposed: [bool; 2],
    accumulate: bool,
) -> Kernel {
    let mut b = Builder::new("product", Default::default());
    let host = |s: [u64; 2]| {
        s.iter()
            .map(|&e| HostExpr::Int(e as i64))
            .collect::<Vec<_>>()
    };
    let [a_shape, b_shape] = shapes(shape, transposed);
    let acc = accumulator(dtype);
    let tensors = [
        (
            b.tensor("a", ParamMode::In, dtype, host(a_shape)),
            a_shape,
            dtype,
        ),
        (
            b.tensor("b", ParamMode::In, dtype, host(b_shape)),
            b_shape,
            dtype,
        ),
        (
            b.tensor("c", ParamMode::InOut, acc, host([m, n])),
            [m, n],
            acc,
        ),
    ];
    let zero = b.index(0);
    let whole = |base, s: [u64; 2]| View {
        base,
        slots: s
            .iter()
            .map(|&len| Slot::Span { start: zero, len })
            .collect(),
    };
    let tiles = tensors.map(|(param, s, d)| {
        let tile = b.tile("t", Space::Shared, d, &s);
        b.copy(
            whole(Base::Tile(tile), s),
            whole(Base::Param(param), s),
            Oob::Never,
        );
        tile
    });
    let (acc, oa, ob) = (
        b.whole(tiles[2]),
        b.operand(tiles[0], transposed[0]),
        b.operand(tiles[1], transposed[1]),
    );
    b.dot(acc, oa, ob, accumulate);
    b.copy(
        whole(Base::Param(tensors[2].0), [m, n]),
        whole(Base::Tile(tiles[2]), [m, n]),
        Oob::Never,
    );
    b.finish()
}

const SHAPES: [[u64; 3]; 11] = [
    [1, 1, 1],
    [1, 64, 32],
    [1, 203, 7],
    [2, 40, 5],
    [3, 33, 16],
    [4, 16, 8],
    [5, 17, 3],
    [8, 64, 36],
    [64, 48, 33],
    [13, 100, 24],
    [6, 3, 40],
];

fn check(dtype: DType, orientations: &[[bool; 2]]) {
    check_shapes(dtype, orientations, &SHAPES);
}

fn check_shapes(dtype: DType, orientations: &[[bool; 2]], shapes_of: &[[u64; 3]]) {
    for &shape @ [m, n, _] in shapes_of {
        for &transposed in orientations {
            let kernel = product(dtype, shape, transposed, m != 4);
            let [a, b] = shapes(shape, transposed);
            let args = [
                (dtype, a, 1),
                (dtype, b, 2),
                (accumulator(dtype), [m, n], 3),
            ]
            .map(|(d, s, seed)| Arg::Tensor(noise(d, &s, seed)));
            agree(
                &kernel,
                &Args(args.into()),
                &format!("{dtype} {shape:?} {transposed:?}"),
            );
        }
    }
}

const ALL: [[bool; 2]; 4] = [[false, false], [true, false], [false, true], [true, true]];

#[test]
fn f32_products() {
    check(DType::F32, &ALL);
}

#[test]
fn bf16_products() {
    check(DType::BF16, &ALL);
}

#[test]
fn products_of_other_types() {
    for dtype in [
        DType::F64,
        DType::Tf32,
        DType::F16,
        DType::E4M3,
        DType::E5M2,
        DType::E2M1,
        DType::I8,
        DType::U8,
    ] {
        check_shapes(dtype, &ALL[1..3], &SHAPES[5..8]);
    }
}

/// Tiles that may be read in the tensor: rows end to end, rows apart, rectangles across the edge; widened by the product or not.
#[test]
fn operands_read_in_place() {
    for (dtype, cast) in [
        (DType::F32, false),
        (DType::BF16, true),
        (DType::E4M3, true),
        (DType::BF16, false),
    ] {
        for m in [1u64, 8, 20] {
            let (kd, nd, bk) = (HostExpr::dim("K"), HostExpr::dim("N"), 40u64);
            let mut b = Builder::new("in_place", Default::default());
            let k = b.dim("K", 1, 1 << 20, 1);
            b.dim("N", 1, 1 << 20, 1);
            let operand = if cast { DType::F32 } else { dtype };
            let x = b.tensor(
                "x",
                ParamMode::In,
                operand,
                vec![HostExpr::Int(m as i64), kd.clone()],
            );
            let w = b.tensor("w", ParamMode::In, dtype, vec![kd, nd]);
            let y = b.tensor(
                "y",
                ParamMode::Out,
                DType::F32,
                vec![HostExpr::Int(m as i64), HostExpr::Int(32)],
            );
            let sx = b.tile("sx", Space::Shared, operand, &[m, bk]);
            let sw = b.tile("sw", Space::Shared, dtype, &[bk, 32]);
            let wide = b.tile("wide", Space::Reg, DType::F32, &[bk, 32]);
            let acc = b.tile("acc", Space::Reg, DType::F32, &[m, 32]);
            let zero_f = b.float(0.0, DType::F32);
            b.fill(acc, zero_f);
            let (zero, step) = (b.index(0), b.index(bk as i64));
            let kv = b.dim_value(k);
            let trips = b.cdiv(kv, step);
            b.for_loop(zero, trips, LoopKind::Sequential, |b, i| {
                let k0 = b.mul(i, step);
                let span = |start, len| Slot::Span { start, len };
                let to = b.whole_view(sx);
                b.copy(
                    to,
                    View {
                        base: Base::Param(x),
                        slots: vec![span(zero, m), span(k0, bk)],
                    },
                    Oob::Zero,
                );
                let to = b.whole_view(sw);
                b.copy(
                    to,
                    View {
                        base: Base::Param(w),
                        slots: vec![span(k0, bk), span(zero, 32)],
                    },
                    Oob::Zero,
                );
                let b_tile = if cast {
                    b.map(&[bk, 32], |b, c| {
                        let v = b.load_tile(sw, c);
                        let v = b.cast(v, Type::Scalar(DType::F32));
                        b.store_tile(wide, c, v);
                    });
                    wide
                } else {
                    sw
                };
                let (c, p, q) = (b.whole(acc), b.operand(sx, false), b.operand(b_tile, false));
                b.dot(c, p, q, true);
            });
            let slots = vec![
                Slot::Span {
                    start: zero,
                    len: m,
                },
                Slot::Span {
                    start: zero,
                    len: 32,
                },
            ];
            let from = b.whole_view(acc);
            b.copy(
                View {
                    base: Base::Param(y),
                    slots,
                },
                from,
                Oob::Never,
            );
            let kernel = b.finish();
            let code = compile(&kernel, variant());
            for (k, n) in [(40u64, 32u64), (80, 32), (95, 32), (80, 50), (33, 20)] {
                let args = vec![
                    Arg::Tensor(noise(operand, &[m, k], 1)),
                    Arg::Tensor(noise(dtype, &[k, n], 2)),
                    Arg::Tensor(noise(DType::F32, &[m, 32], 3)),
                ];
                agree_compiled(
                    &kernel,
                    &code,
                    &Args(args),
                    &format!("{dtype} M = {m} K = {k} N = {n}"),
                );
            }
        }
    }
}

/// Not run on a machine without them: that the code for 512-bit vectors builds.
#[test]
fn wide_variants_compile() {
    for variant in [CpuVariant::Avx512, CpuVariant::Avx512Bf16] {
        for dtype in [DType::F32, DType::BF16, DType::E4M3] {
            for transposed in [false, true] {
                compile(
                    &product(dtype, [13, 100, 33], [false, transposed], true),
                    variant,
                );
            }
        }
    }
}

/// What the driver compiles once for both.
#[test]
fn only_products_of_bf16_tell_the_wide_variants_apart() {
    for dtype in [DType::F32, DType::BF16, DType::E4M3, DType::I8] {
        let kernel = product(dtype, [13, 100, 33], [false, true], true);
        let objects = [CpuVariant::Avx512, CpuVariant::Avx512Bf16].map(|variant| {
            let mlir = MlirContext::new();
            object(&mlir, &kernel, variant).1
        });
        let made = variant_of_code(&kernel, CpuVariant::Avx512Bf16);
        let alike = made == CpuVariant::Avx512;
        assert_eq!(alike, dtype != DType::BF16, "{dtype}");
        assert_eq!(alike, objects[0] == objects[1], "{dtype}");
    }
}
