//! Products of every type, orientation and ragged shape.

use crate::harness::{agree, compile, noise};
use tessera_artifact::{CpuVariant, DType, HostExpr, ParamMode};
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

const SHAPES: [[u64; 3]; 10] = [
    [1, 1, 1],
    [1, 64, 32],
    [1, 203, 7],
    [2, 40, 5],
    [3, 33, 16],
    [4, 16, 8],
    [5, 17, 3],
    [64, 48, 33],
    [13, 100, 24],
    [6, 3, 40],
];

fn check(dtype: DType, orientations: &[[bool; 2]]) {
    for shape @ [m, n, _] in SHAPES {
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
        check(dtype, &ALL[1..3]);
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
