//! Products against the definition, written out.

use crate::harness::{Arg, Array, compile};
use tessera_artifact::{CpuVariant, DType, HostExpr, ParamMode};
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::ir::*;

fn dot_kernel(
    dtype: DType,
    [m, n, k]: [u64; 3],
    transposed: [bool; 2],
    accumulate: bool,
) -> Kernel {
    let mut b = Builder::new("product", Default::default());
    let shape = |x: u64, y: u64, t: bool| if t { [y, x] } else { [x, y] };
    let host = |s: [u64; 2]| {
        s.iter()
            .map(|&e| HostExpr::Int(e as i64))
            .collect::<Vec<_>>()
    };
    let (a_shape, b_shape) = (shape(m, k, transposed[0]), shape(k, n, transposed[1]));
    let acc_dtype = if dtype.is_int() {
        DType::I32
    } else if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    };
    let a = b.tensor("a", ParamMode::In, dtype, host(a_shape));
    let w = b.tensor("b", ParamMode::In, dtype, host(b_shape));
    let c = b.tensor("c", ParamMode::InOut, acc_dtype, host([m, n]));
    let ta = b.tile("ta", Space::Shared, dtype, &a_shape);
    let tb = b.tile("tb", Space::Shared, dtype, &b_shape);
    let tc = b.tile("tc", Space::Reg, acc_dtype, &[m, n]);
    let zero = b.index(0);
    let whole = |shape: [u64; 2]| {
        shape
            .iter()
            .map(|&len| Slot::Span { start: zero, len })
            .collect::<Vec<_>>()
    };
    for (tile, param, shape) in [(ta, a, a_shape), (tb, w, b_shape), (tc, c, [m, n])] {
        let (dst, src) = (
            View {
                base: Base::Tile(tile),
                slots: whole(shape),
            },
            View {
                base: Base::Param(param),
                slots: whole(shape),
            },
        );
        b.copy(dst, src, Oob::Never);
    }
    let (acc, oa, ob) = (
        b.whole(tc),
        b.operand(ta, transposed[0]),
        b.operand(tb, transposed[1]),
    );
    b.dot(acc, oa, ob, accumulate);
    let (dst, src) = (
        View {
            base: Base::Param(c),
            slots: whole([m, n]),
        },
        View {
            base: Base::Tile(tc),
            slots: whole([m, n]),
        },
    );
    b.copy(dst, src, Oob::Never);
    b.finish()
}

const SHAPES: [[u64; 3]; 9] = [
    [1, 1, 1],
    [1, 64, 32],
    [1, 203, 7],
    [2, 40, 5],
    [3, 33, 16],
    [4, 16, 8],
    [5, 17, 3],
    [64, 48, 33],
    [13, 100, 24],
];

fn noise(i: usize, seed: u32) -> i32 {
    (((i as u32)
        .wrapping_mul(2654435761)
        .wrapping_add(seed.wrapping_mul(97))
        >> 7)
        % 2001) as i32
        - 1000
}

fn at(x: &[f32], rows: u64, columns: u64, transposed: bool, i: u64, j: u64) -> f32 {
    if transposed {
        x[(j * rows + i) as usize]
    } else {
        x[(i * columns + j) as usize]
    }
}

#[test]
fn f32_products_fuse_with_k_ascending() {
    for shape @ [m, n, k] in SHAPES {
        for transposed in [[false, false], [true, false], [false, true], [true, true]] {
            let accumulate = m != 4;
            let kernel = dot_kernel(DType::F32, shape, transposed, accumulate);
            let mut a = Array::f32(&if transposed[0] { [k, m] } else { [m, k] }, |i| {
                noise(i, 1) as f32 / 97.0
            });
            let mut b = Array::f32(&if transposed[1] { [n, k] } else { [k, n] }, |i| {
                noise(i, 2) as f32 / 89.0
            });
            let mut c = Array::f32(&[m, n], |i| noise(i, 3) as f32);
            let (av, bv, mut expected) = (a.as_f32(), b.as_f32(), c.as_f32());
            for i in 0..m {
                for j in 0..n {
                    let out = &mut expected[(i * n + j) as usize];
                    if !accumulate {
                        *out = 0.0;
                    }
                    for l in 0..k {
                        *out = at(&av, m, k, transposed[0], i, l)
                            .mul_add(at(&bv, k, n, transposed[1], l, j), *out);
                    }
                }
            }
            let code = compile(&kernel, CpuVariant::Avx2);
            code.run(
                &kernel,
                &mut [
                    Arg::Tensor(&mut a),
                    Arg::Tensor(&mut b),
                    Arg::Tensor(&mut c),
                ],
            );
            assert_eq!(c.as_f32(), expected, "{shape:?} {transposed:?}");
        }
    }
}

fn bf16(x: f32) -> u16 {
    half::bf16::from_f32(x).to_bits()
}

fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0.0f32.copysign(x)
    } else {
        x
    }
}

#[test]
fn bf16_products_sum_in_pairs() {
    for shape @ [m, n, k] in SHAPES {
        for transposed in [[false, false], [true, false], [false, true], [true, true]] {
            let kernel = dot_kernel(DType::BF16, shape, transposed, true);
            let make = |s: [u64; 2], seed: u32| {
                let mut x = Array::zeros(DType::BF16, &s);
                for (i, bytes) in x.bytes.chunks_exact_mut(2).enumerate() {
                    // Some products are subnormal, some operands too.
                    let scale = [1.0, 1.0, 1e-20, 1.0, 1e-39][i % 5];
                    bytes
                        .copy_from_slice(&bf16(noise(i, seed) as f32 / 97.0 * scale).to_le_bytes());
                }
                x
            };
            let mut a = make(if transposed[0] { [k, m] } else { [m, k] }, 1);
            let mut b = make(if transposed[1] { [n, k] } else { [k, n] }, 2);
            let mut c = Array::f32(&[m, n], |i| {
                noise(i, 3) as f32 * if i % 3 == 0 { 1e-41 } else { 1.0 }
            });
            let wide = |x: &Array| -> Vec<f32> {
                x.bytes
                    .chunks_exact(2)
                    .map(|c| {
                        flush(f32::from_bits(
                            (u16::from_le_bytes([c[0], c[1]]) as u32) << 16,
                        ))
                    })
                    .collect()
            };
            let (av, bv, mut expected) = (wide(&a), wide(&b), c.as_f32());
            for i in 0..m {
                for j in 0..n {
                    let out = &mut expected[(i * n + j) as usize];
                    *out = flush(*out);
                    for pair in 0..k.div_ceil(2) {
                        for l in [2 * pair + 1, 2 * pair] {
                            let (x, y) = if l < k {
                                (
                                    at(&av, m, k, transposed[0], i, l),
                                    at(&bv, k, n, transposed[1], l, j),
                                )
                            } else {
                                (0.0, 0.0)
                            };
                            *out = flush(x.mul_add(y, *out));
                        }
                    }
                }
            }
            let code = compile(&kernel, CpuVariant::Avx2);
            code.run(
                &kernel,
                &mut [
                    Arg::Tensor(&mut a),
                    Arg::Tensor(&mut b),
                    Arg::Tensor(&mut c),
                ],
            );
            let bits = |x: &[f32]| x.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(
                bits(&c.as_f32()),
                bits(&expected),
                "{shape:?} {transposed:?}"
            );
        }
    }
}

#[test]
fn integer_products_are_exact() {
    for shape @ [m, n, k] in SHAPES {
        let kernel = dot_kernel(DType::I8, shape, [false, true], true);
        let make = |s: [u64; 2], seed: u32| {
            let mut x = Array::zeros(DType::I8, &s);
            for (i, byte) in x.bytes.iter_mut().enumerate() {
                *byte = noise(i, seed) as u8;
            }
            x
        };
        let (mut a, mut b) = (make([m, k], 1), make([n, k], 2));
        let mut c = Array::i32(&[m, n], |i| noise(i, 3));
        let mut expected = c.as_i32();
        for i in 0..m {
            for j in 0..n {
                for l in 0..k {
                    expected[(i * n + j) as usize] += a.bytes[(i * k + l) as usize] as i8 as i32
                        * b.bytes[(j * k + l) as usize] as i8 as i32;
                }
            }
        }
        let code = compile(&kernel, CpuVariant::Avx2);
        code.run(
            &kernel,
            &mut [
                Arg::Tensor(&mut a),
                Arg::Tensor(&mut b),
                Arg::Tensor(&mut c),
            ],
        );
        assert_eq!(c.as_i32(), expected, "{shape:?}");
    }
}

/// Not run here: that the code for processors with 512-bit vectors builds.
#[test]
fn wide_variants_compile() {
    for variant in [CpuVariant::Avx512, CpuVariant::Avx512Bf16] {
        for dtype in [DType::F32, DType::BF16, DType::E4M3] {
            for transposed in [false, true] {
                compile(
                    &dot_kernel(dtype, [13, 100, 33], [false, transposed], true),
                    variant,
                );
            }
        }
    }
}
