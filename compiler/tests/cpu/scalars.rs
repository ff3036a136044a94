//! Every scalar op at every type, in vector lanes and in the ragged rest.

use crate::harness::{agree, agree_compiled, compile, noise, variant};
use tessera_artifact::{DType, HostExpr, ParamMode};
use tessera_compiler::tile::build::Builder;
use tessera_compiler::tile::interp::{Arg, Args, Buffer};
use tessera_compiler::tile::ir::*;

/// 37 lanes: full vectors, a narrower one, single elements.
const N: u64 = 37;

/// `out_i[j] = f_i(x[j], y[j], z[j])` for every op.
fn elementwise(
    dtype: DType,
    ops: &[(
        String,
        Type,
        Box<dyn Fn(&mut Builder, [ValueId; 3]) -> ValueId>,
    )],
) -> Kernel {
    let mut b = Builder::new("elementwise", Default::default());
    b.dim("N", 0, 1 << 20, 1);
    let shape = || vec![HostExpr::dim("N")];
    let inputs: Vec<_> = ["x", "y", "z"]
        .map(|n| b.tensor(n, ParamMode::In, dtype, shape()))
        .into();
    let outputs: Vec<_> = ops
        .iter()
        .map(|(name, ty, _)| {
            let dtype = match ty {
                Type::Scalar(d) => *d,
                Type::Index => DType::I64,
            };
            b.tensor(name.clone(), ParamMode::Out, dtype, shape())
        })
        .collect();
    b.map(&[N], |b, c| {
        let v = [0, 1, 2].map(|i| b.load_global(inputs[i], c, None));
        for ((_, ty, op), &out) in ops.iter().zip(&outputs) {
            let mut r = op(b, v);
            if *ty == Type::Index {
                r = b.cast(r, Type::Scalar(DType::I64));
            }
            b.store_global(out, c, r, None);
        }
    });
    b.finish()
}

fn run(
    dtype: DType,
    ops: Vec<(
        String,
        Type,
        Box<dyn Fn(&mut Builder, [ValueId; 3]) -> ValueId>,
    )>,
    inputs: [Buffer; 3],
) {
    let kernel = elementwise(dtype, &ops);
    let mut args: Vec<_> = inputs.into_iter().map(Arg::Tensor).collect();
    for (_, ty, _) in &ops {
        let d = match ty {
            Type::Scalar(d) => *d,
            Type::Index => DType::I64,
        };
        args.push(Arg::Tensor(Buffer::zeros(d, &[N])));
    }
    agree(&kernel, &Args(args), &format!("{dtype}"));
}

type Op = (
    String,
    Type,
    Box<dyn Fn(&mut Builder, [ValueId; 3]) -> ValueId>,
);

fn op(
    name: impl Into<String>,
    ty: Type,
    f: impl Fn(&mut Builder, [ValueId; 3]) -> ValueId + 'static,
) -> Op {
    (name.into(), ty, Box::new(f))
}

const PREDICATES: [Predicate; 6] = [
    Predicate::Eq,
    Predicate::Ne,
    Predicate::Lt,
    Predicate::Le,
    Predicate::Gt,
    Predicate::Ge,
];

#[test]
fn float_arithmetic() {
    for dtype in [DType::F64, DType::F32, DType::Tf32, DType::BF16, DType::F16] {
        let ty = Type::Scalar(dtype);
        let mut ops = Vec::new();
        for u in [
            UnaryOp::Neg,
            UnaryOp::Abs,
            UnaryOp::Sqrt,
            UnaryOp::Floor,
            UnaryOp::Ceil,
            UnaryOp::RoundEven,
        ] {
            ops.push(op(format!("{u:?}"), ty, move |b, [x, ..]| b.unary(u, x)));
        }
        ops.push(op("nan", Type::BOOL, |b, [x, ..]| {
            b.unary(UnaryOp::IsNan, x)
        }));
        for o in [
            BinaryOp::Add,
            BinaryOp::Sub,
            BinaryOp::Mul,
            BinaryOp::Div,
            BinaryOp::Min,
            BinaryOp::Max,
        ] {
            ops.push(op(format!("{o:?}"), ty, move |b, [x, y, _]| {
                b.binary(o, x, y)
            }));
        }
        ops.push(op("fma", ty, |b, [x, y, z]| b.fma(x, y, z)));
        for p in PREDICATES {
            ops.push(op(format!("{p:?}"), Type::BOOL, move |b, [x, y, _]| {
                b.compare(p, x, y)
            }));
        }
        ops.push(op("select", ty, |b, [x, y, z]| {
            let c = b.compare(Predicate::Lt, x, y);
            b.select(c, y, z)
        }));
        run(dtype, ops, [1, 2, 3].map(|s| noise(dtype, &[N], s)));
    }
}

#[test]
fn integer_arithmetic() {
    use DType::*;
    for dtype in [I8, I16, I32, I64, U8, U16, U32, U64] {
        let ty = Type::Scalar(dtype);
        let mut ops = Vec::new();
        for u in [UnaryOp::Neg, UnaryOp::Abs, UnaryOp::Not] {
            ops.push(op(format!("{u:?}"), ty, move |b, [x, ..]| b.unary(u, x)));
        }
        use BinaryOp::*;
        for o in [Add, Sub, Mul, Min, Max, And, Or, Xor] {
            ops.push(op(format!("{o:?}"), ty, move |b, [x, y, _]| {
                b.binary(o, x, y)
            }));
        }
        // Not 0, and with the sign: z | 1.
        for o in [Div, Rem] {
            ops.push(op(format!("{o:?}"), ty, move |b, [x, _, z]| {
                let one = b.int(1, dtype);
                let z = b.or(z, one);
                b.binary(o, x, z)
            }));
        }
        for o in [Shl, Shr] {
            ops.push(op(format!("{o:?}"), ty, move |b, [x, y, _]| {
                let width = b.int(dtype.bits() as i128 - 1, dtype);
                let by = b.and(y, width);
                b.binary(o, x, by)
            }));
        }
        for p in PREDICATES {
            ops.push(op(format!("{p:?}"), Type::BOOL, move |b, [x, y, _]| {
                b.compare(p, x, y)
            }));
        }
        run(dtype, ops, [1, 2, 3].map(|s| noise(dtype, &[N], s)));
    }
}

#[test]
fn casts_between_all_types() {
    for from in DType::ALL {
        let mut ops = Vec::new();
        for to in DType::ALL {
            if to != from {
                ops.push(op(
                    format!("to_{to}"),
                    Type::Scalar(to),
                    move |b, [x, ..]| b.cast(x, Type::Scalar(to)),
                ));
            }
        }
        if from.is_int() && from != DType::U64 || from == DType::Bool {
            ops.push(op("to_index", Type::Index, |b, [x, ..]| {
                b.cast(x, Type::Index)
            }));
        }
        for seed in [1, 9] {
            let ops = std::mem::take(&mut ops);
            if ops.is_empty() {
                continue;
            }
            run(from, ops, [0, 1, 2].map(|s| noise(from, &[N], seed + s)));
        }
    }
}

/// Values on the boundaries of the narrow formats, which noise seldom meets.
#[test]
fn narrowing_rounds_ties_to_even() {
    for to in [
        DType::BF16,
        DType::F16,
        DType::E4M3,
        DType::E5M2,
        DType::E2M1,
        DType::UE8M0,
    ] {
        for from in [DType::F32, DType::F64] {
            let mut values = Vec::new();
            let codes = if to.bits() >= 16 {
                1 << 16
            } else {
                1 << to.bits()
            };
            for code in (0..codes).step_by(if to.bits() >= 16 { 97 } else { 1 }) {
                let x = tessera_artifact::numeric::to_f64(code, to);
                let next = tessera_artifact::numeric::to_f64(code + 1, to);
                let middle = x + (next - x) / 2.0;
                values.extend([
                    x,
                    middle,
                    middle.next_up(),
                    middle.next_down(),
                    (middle as f32).next_up() as f64,
                ]);
            }
            let n = values.len() as u64;
            let mut b = Builder::new("narrow", Default::default());
            b.dim("N", 0, 1 << 20, 1);
            let x = b.tensor("x", ParamMode::In, from, vec![HostExpr::dim("N")]);
            let y = b.tensor("y", ParamMode::Out, to, vec![HostExpr::dim("N")]);
            b.map(&[n], |b, c| {
                let v = b.load_global(x, c, None);
                let v = b.cast(v, Type::Scalar(to));
                b.store_global(y, c, v, None);
            });
            let args = vec![
                Arg::Tensor(Buffer::from_f64(from, &[n], values)),
                Arg::Tensor(Buffer::zeros(to, &[n])),
            ];
            agree(&b.finish(), &Args(args), &format!("{from} to {to}"));
        }
    }
}

#[test]
fn bitcasts_keep_bits() {
    for (from, to) in [
        (DType::F32, DType::U32),
        (DType::BF16, DType::I16),
        (DType::F16, DType::U16),
        (DType::E4M3, DType::U8),
        (DType::U8, DType::UE8M0),
        (DType::F64, DType::I64),
        (DType::U8, DType::E5M2),
    ] {
        let ops = vec![op("bits", Type::Scalar(to), move |b, [x, ..]| {
            b.bitcast(x, to)
        })];
        run(from, ops, [1, 2, 3].map(|s| noise(from, &[N], s)));
    }
}

/// Index arithmetic inside and outside a map: floor division, remainders, min and max, guards.
#[test]
fn index_arithmetic_floors() {
    let mut b = Builder::new("indices", Default::default());
    let n = b.dim("N", 0, 1 << 20, 1);
    let out = b.tensor("out", ParamMode::Out, DType::I64, vec![HostExpr::dim("N")]);
    let more = b.tensor(
        "more",
        ParamMode::InOut,
        DType::I64,
        vec![HostExpr::dim("N")],
    );
    b.grid(vec![HostExpr::Int(3)]);
    let block = b.block_index(0);
    let nv = b.dim_value(n);
    let [c7, c8, c64, c100, c3] = [7, 8, 64, 100, 3].map(|i| b.index(i));
    let start = b.mul(block, c100);
    b.map(&[100], |b, c| {
        let i = b.add(start, c[0]);
        let shifted = b.sub(i, c64);
        let d7 = b.div(shifted, c7);
        let r7 = b.rem(shifted, c7);
        let d8 = b.div(c[0], c8);
        let r64 = b.rem(c[0], c64);
        let by_n = b.div(shifted, nv);
        let mod_n = b.rem(shifted, nv);
        let tripled = b.mul(c[0], c3);
        let low = b.min(tripled, c64);
        let high = b.max(low, d8);
        let mut sum = b.add(d7, r7);
        for v in [d8, r64, by_n, mod_n, high] {
            let k = b.index(31);
            sum = b.mul(sum, k);
            sum = b.add(sum, v);
        }
        let inside = b.compare(Predicate::Lt, i, nv);
        let as_int = b.cast(sum, Type::Scalar(DType::I64));
        b.store_global(out, &[i], as_int, Some(inside));
        let even = b.rem(c[0], c8);
        let zero = b.index(0);
        let first = b.compare(Predicate::Eq, even, zero);
        let both = b.and(first, inside);
        let x = b.load_global(more, &[i], Some(both));
        let y = b.add(x, as_int);
        b.store_global(more, &[i], y, Some(both));
    });
    let kernel = b.finish();
    for n in [1u64, 63, 100, 257, 300] {
        let args = [1, 2].map(|s| Arg::Tensor(noise(DType::I64, &[n], s)));
        agree(&kernel, &Args(args.into()), &format!("N = {n}"));
    }
}

/// Guards that are decided once per vector: prefixes, windows, rows, narrow elements, conditions that are no guard.
#[test]
fn guards_across_vectors() {
    for dtype in [DType::F32, DType::BF16, DType::U8] {
        let mut b = Builder::new("guards", Default::default());
        let n = b.dim("N", 0, 1 << 20, 1);
        let m = b.index_param("m", -50, 300);
        let x = b.tensor("x", ParamMode::In, dtype, vec![HostExpr::dim("N")]);
        let y = b.tensor("y", ParamMode::InOut, dtype, vec![HostExpr::dim("N")]);
        let z = b.tensor(
            "z",
            ParamMode::Out,
            dtype,
            vec![HostExpr::Int(3), HostExpr::Int(90)],
        );
        let (nv, mv, zero) = (b.dim_value(n), b.dim_value(m), b.index(0));
        let pad = b.zero(dtype);
        b.map(&[3, 90], |b, c| {
            let thirty = b.index(30);
            let row = b.mul(c[0], thirty);
            let i = b.add(row, c[1]);
            let i = b.sub(i, mv);
            let low = b.compare(Predicate::Ge, i, zero);
            let high = b.compare(Predicate::Lt, i, nv);
            let inside = b.and(low, high);
            let v = b.load_global(x, &[i], Some(inside));
            let v = b.select(inside, v, pad);
            b.store_global(z, c, v, None);
        });
        b.map(&[150], |b, c| {
            let high = b.compare(Predicate::Lt, c[0], nv);
            let late = b.compare(Predicate::Gt, c[0], mv);
            let both = b.and(high, late);
            let v = b.load_global(x, c, Some(high));
            b.store_global(y, c, v, Some(both));
        });
        let kernel = b.finish();
        let code = compile(&kernel, variant());
        for (n, m) in [
            (0u64, 0i64),
            (1, 0),
            (16, 3),
            (90, 0),
            (150, -20),
            (200, 64),
            (47, 100),
        ] {
            let args = vec![
                Arg::Index(m),
                Arg::Tensor(noise(dtype, &[n], 1)),
                Arg::Tensor(noise(dtype, &[n], 2)),
                Arg::Tensor(Buffer::zeros(dtype, &[3, 90])),
            ];
            agree_compiled(
                &kernel,
                &code,
                &Args(args),
                &format!("{dtype} N = {n} m = {m}"),
            );
        }
    }
}

/// Joined axes, strided and transposed accesses, ops at outer levels, tiles on the stack and in scratch.
#[test]
fn maps_of_many_shapes() {
    for extents in [
        [1u64, 1, 1],
        [2, 3, 4],
        [5, 1, 17],
        [3, 16, 1],
        [1, 7, 33],
        [4, 4, 2],
        [2, 40, 16],
    ] {
        let mut b = Builder::new("maps", Default::default());
        let host: Vec<_> = extents.iter().map(|&e| HostExpr::Int(e as i64)).collect();
        let x = b.tensor("x", ParamMode::In, DType::F32, host.clone());
        let y = b.tensor("y", ParamMode::Out, DType::F32, host.clone());
        let z = b.tensor("z", ParamMode::Out, DType::BF16, host);
        let t = b.tile("t", Space::Shared, DType::F32, &extents);
        let turned = b.tile(
            "turned",
            Space::Shared,
            DType::F32,
            &[extents[2], extents[1], extents[0]],
        );
        let row = b.tile("row", Space::Reg, DType::F32, &[extents[0]]);
        let cell = b.tile("cell", Space::Reg, DType::F32, &[]);
        let two = b.float(2.0, DType::F32);
        b.store_tile(cell, &[], two);
        b.map(&extents, |b, c| {
            let v = b.load_global(x, c, None);
            let s = b.load_tile(cell, &[]);
            let v = b.mul(v, s);
            b.store_tile(t, c, v);
        });
        b.map(&[extents[0]], |b, c| {
            let zero = b.index(0);
            let v = b.load_tile(t, &[c[0], zero, zero]);
            b.store_tile(row, c, v);
        });
        b.map(&extents, |b, c| {
            let v = b.load_tile(t, c);
            let r = b.load_tile(row, &[c[0]]);
            let v = b.add(v, r);
            b.store_tile(turned, &[c[2], c[1], c[0]], v);
        });
        b.map(&extents, |b, c| {
            let v = b.load_tile(turned, &[c[2], c[1], c[0]]);
            b.store_global(y, c, v, None);
            let w = b.load_tile(t, c);
            let w = b.cast(w, Type::Scalar(DType::BF16));
            b.store_global(z, c, w, None);
        });
        let args = vec![
            Arg::Tensor(noise(DType::F32, &extents, 5)),
            Arg::Tensor(Buffer::zeros(DType::F32, &extents)),
            Arg::Tensor(Buffer::zeros(DType::BF16, &extents)),
        ];
        agree(&b.finish(), &Args(args), &format!("{extents:?}"));
    }
}

/// Gathers by data, scatters to a permutation, sums into cells by atomics.
#[test]
fn indices_from_data() {
    let n = 53u64;
    let mut b = Builder::new("data", Default::default());
    b.dim("N", 0, 1 << 20, 1);
    let shape = || vec![HostExpr::dim("N")];
    let p = b.tensor("p", ParamMode::In, DType::I32, shape());
    let x = b.tensor("x", ParamMode::In, DType::F32, shape());
    let y = b.tensor("y", ParamMode::Out, DType::F32, shape());
    let z = b.tensor("z", ParamMode::Out, DType::F32, shape());
    let h = b.tensor("h", ParamMode::InOut, DType::I32, vec![HostExpr::Int(7)]);
    let seven = b.index(7);
    b.map(&[n], |b, c| {
        let i = b.load_global(p, c, None);
        let i = b.cast(i, Type::Index);
        let v = b.load_global(x, &[i], None);
        b.store_global(y, c, v, None);
        b.effect(OpKind::StoreGlobal {
            param: z,
            index: vec![i],
            value: v,
            guard: None,
            scatter: true,
        });
    });
    b.map(&[n], |b, c| {
        let i = b.load_global(p, c, None);
        let i = b.cast(i, Type::Index);
        let cell = b.rem(i, seven);
        let three = b.int(3, DType::I32);
        b.effect(OpKind::Atomic {
            op: FoldOp::Sum,
            param: h,
            index: vec![cell],
            value: three,
            guard: None,
        });
    });
    let permutation = (0..n).map(|i| (i * 20 % n) as f64);
    let args = vec![
        Arg::Tensor(Buffer::from_f64(DType::I32, &[n], permutation)),
        Arg::Tensor(noise(DType::F32, &[n], 3)),
        Arg::Tensor(Buffer::zeros(DType::F32, &[n])),
        Arg::Tensor(Buffer::zeros(DType::F32, &[n])),
        Arg::Tensor(Buffer::zeros(DType::I32, &[7])),
    ];
    agree(&b.finish(), &Args(args), "indices from data");
}

/// Loops, branches and checks between tile ops.
#[test]
fn control_flow() {
    let mut b = Builder::new("control", Default::default());
    let n = b.index_param("n", 0, 100);
    let out = b.tensor("out", ParamMode::InOut, DType::F32, vec![HostExpr::Int(16)]);
    let t = b.tile("t", Space::Reg, DType::F32, &[16]);
    let zero_f = b.zero(DType::F32);
    b.fill(t, zero_f);
    let (zero, nv) = (b.index(0), b.dim_value(n));
    b.for_loop(zero, nv, LoopKind::Sequential, |b, i| {
        let three = b.index(3);
        let r = b.rem(i, three);
        let is = b.compare(Predicate::Eq, r, zero);
        b.if_else(
            is,
            |b| {
                b.map(&[16], |b, c| {
                    let v = b.load_tile(t, c);
                    let f = b.cast(i, Type::Scalar(DType::F32));
                    let v = b.add(v, f);
                    b.store_tile(t, c, v);
                });
            },
            |b| {
                b.map(&[16], |b, c| {
                    let v = b.load_tile(t, c);
                    let f = b.cast(c[0], Type::Scalar(DType::F32));
                    let v = b.sub(v, f);
                    b.store_tile(t, c, v);
                });
            },
        );
        let limit = b.index(50);
        let ok = b.compare(Predicate::Lt, i, limit);
        b.assert(ok, "i stays below fifty");
    });
    b.map(&[16], |b, c| {
        let v = b.load_tile(t, c);
        b.store_global(out, c, v, None);
    });
    let kernel = b.finish();
    for n in [0, 1, 2, 7, 50, 51, 100] {
        let args = vec![Arg::Index(n), Arg::Tensor(Buffer::zeros(DType::F32, &[16]))];
        agree(&kernel, &Args(args), &format!("n = {n}"));
    }
}
