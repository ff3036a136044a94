//! A row has one set of bits, whether the kernel for few rows computes it or the one for many, in whatever batch.
//!
//! On the emulated GPU, whose products add up in the order that it gives the instruction: what is tested is that both kernels hand the
//! hardware the same elements in the same steps, and do the same with its sums.

use crate::emulator;
use crate::kernels::sources;
use tessera_artifact::{DType, numeric};
use tessera_compiler::diag::Sink;
use tessera_compiler::driver::{self, Options};
use tessera_device::{Arg, Library, Tensor};

/// Random numbers as a tensor of this type, of bits that `seed` gives.
pub fn random(library: &Library, dtype: DType, shape: &[i64], mut seed: u64) -> Tensor {
    let bytes: Vec<u8> = (0..shape.iter().product::<i64>())
        .flat_map(|_| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let x = (seed >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
            let x = match dtype {
                // Scales: powers of two of either side of 1.
                DType::F32 => (4.0 * x).round().exp2(),
                _ => 3.0 * x,
            };
            let bits = numeric::from_f64(x, dtype).to_le_bytes();
            bits[..dtype.bits() as usize / 8].to_vec()
        })
        .collect();
    Tensor::from_bytes(dtype, shape, &bytes)
        .expect("as many bytes as the shape has")
        .to_device(library.device())
        .expect("the emulated device has memory for it")
}

/// The first `rows` rows of `y`, of which each is `columns` of 16 bits.
fn product(
    library: &Library,
    kernel: &str,
    operands: &[&Tensor],
    rows: i64,
    columns: i64,
) -> Vec<u8> {
    let mut y = Tensor::zeros_on(library.device(), DType::BF16, &[rows, columns])
        .expect("the emulated device has memory for it");
    let mut args: Vec<_> = operands.iter().map(|t| t.view().into()).collect();
    // Rows of x beyond those asked for are not this launch's.
    args[0] = operands[0]
        .view()
        .slice(0, 0..rows)
        .expect("no more rows than x has")
        .into();
    args.push(y.view_mut().unwrap().into());
    library
        .kernel(kernel)
        .unwrap()
        .launch(&args)
        .unwrap_or_else(|e| panic!("{kernel}: {e}"));
    y.to_host().unwrap().bytes().unwrap().to_vec()
}

/// The library's kernels whose names start so, compiled for the emulated device.
pub fn library_of(names: &[&str]) -> Library {
    let map = sources();
    let mut sink = Sink::default();
    let files = driver::parse(&map, &mut sink);
    let kernels = driver::front(&files, &mut sink).expect("the library is right");
    let kernels: Vec<_> = (kernels.into_iter())
        .filter(|k| names.iter().any(|name| k.name.starts_with(name)))
        .collect();
    let options = Options {
        cpu: vec![],
        ptx: true,
        threads: 1,
        ..Options::default()
    };
    let archive = driver::compile(&kernels, &options, &mut sink).expect("the library compiles");
    Library::load(&archive, &emulator::device()).unwrap()
}

#[test]
fn few_rows_have_the_bits_of_many() {
    let library = library_of(&["dsv4::gemm"]);
    let (many, columns) = (130, 200);
    for (dtype, few, half, name, depth) in [
        (DType::BF16, "gemm_few", "gemm_few", "gemm", 200),
        (DType::E4M3, "gemm_fp8_few", "gemm_fp8_64", "gemm_fp8", 272),
    ] {
        let x = random(&library, dtype, &[many, depth], 1);
        let w = random(&library, dtype, &[columns, depth], 2);
        let scales = (depth + 127) / 128;
        let xs = random(&library, DType::F32, &[scales, 132], 3);
        let ws = random(&library, DType::F32, &[scales, 4], 4);
        let operands = match dtype {
            DType::BF16 => vec![&x, &w],
            _ => vec![&x, &xs, &w, &ws],
        };
        let all = product(&library, name, &operands, many, columns);
        assert!(all.iter().any(|&b| b != 0), "{name} gives zeros");
        for (kernel, rows) in [
            (name, 1),
            (name, 65),
            (few, 1),
            (few, 8),
            (few, 13),
            (half, 1),
            (half, 64),
        ] {
            let some = product(&library, kernel, &operands, rows, columns);
            let differs = (some.chunks(2).zip(all.chunks(2))).position(|(a, b)| a != b);
            assert_eq!(
                differs, None,
                "{kernel} with {rows} rows: element of {columns} a row"
            );
        }
    }
}

/// On two levels of scales, with groups left out and codes of every magnitude.
#[test]
fn few_rows_have_the_bits_of_many_with_weights_of_4_bits() {
    let library = library_of(&["dsv4::gemm"]);
    let (many, columns, depth, levels) = (130, 200, 288, 2);
    let x = random(&library, DType::E4M3, &[many, depth], 1);
    let xs = random(&library, DType::F32, &[3, 132], 2);
    let r = random(&library, DType::F32, &[columns], 3);
    let mut state = 4u64;
    let mut bytes = |count: i64, mask: u8| -> Vec<u8> {
        let next = |_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 40) as u8 & mask
        };
        (0..count).map(next).collect()
    };
    let on_device = |dtype, shape: &[i64], bytes: &[u8]| {
        let host = Tensor::from_bytes(dtype, shape, bytes).expect("as many bytes as it has");
        (host.to_device(library.device())).expect("the emulated device has memory for it")
    };
    let codes = bytes(columns * depth / 2, 0xff);
    let w = on_device(DType::E2M1, &[columns, depth], &codes);
    let steps = bytes(levels * 3 * columns * 4, 0xf);
    let steps = on_device(DType::I32, &[levels, 3, columns], &steps);
    let shape = [levels, columns, depth];
    let mut wide = Tensor::zeros_on(library.device(), DType::E4M3, &shape)
        .expect("the emulated device has memory for it");
    let args = [
        w.view().into(),
        steps.view().into(),
        wide.view_mut().unwrap().into(),
    ];
    let widen = library.kernel("widen_e2m1").unwrap();
    widen.launch(&args).unwrap_or_else(|e| panic!("{e}"));

    let all = product(&library, "gemm_fp4", &[&x, &xs, &wide, &r], many, columns);
    assert!(all.iter().any(|&b| b != 0), "gemm_fp4 gives zeros");
    for (kernel, rows) in [
        ("gemm_fp4_few", 1),
        ("gemm_fp4_few", 8),
        ("gemm_fp4_few", 13),
        ("gemm_fp4_64", 1),
        ("gemm_fp4_64", 64),
    ] {
        let operands = [&x, &xs, &w, &steps, &r];
        let some = product(&library, kernel, &operands, rows, columns);
        let differs = (some.chunks(2).zip(all.chunks(2))).position(|(a, b)| a != b);
        assert_eq!(
            differs, None,
            "{kernel} with {rows} rows: element of {columns} a row"
        );
    }
}

/// Codes and steps of every kind, in the experts' products: what a row gets does not depend on how many rows its tile has.
#[test]
fn rows_of_experts_have_the_same_bits_in_tiles_of_any_size() {
    let library = library_of(&["dsv4::experts_"]);
    let (experts, depth, width) = (2, 288, 160);
    let tensor = |dtype, shape: &[i64], seed| random(&library, dtype, shape, seed);
    let ints = |shape: &[i64], value: &dyn Fn(i32) -> i32| {
        let count = shape.iter().product::<i64>() as i32;
        let values: Vec<i32> = (0..count).map(value).collect();
        let host = Tensor::from_slice(shape, &values).expect("as many values as it has");
        (host.to_device(library.device())).expect("the emulated device has memory for it")
    };
    // Steps of 0 to 15 in each of the four bytes of a word.
    let steps = |shape: &[i64]| {
        ints(shape, &|i| {
            i.wrapping_mul(0x9e37_79b1u32 as i32) & 0x0f0f_0f0f
        })
    };
    // Two codes to a byte, of bytes that mean something else.
    let codes = |shape: &[i64; 3], seed| {
        let pairs = tensor(DType::E4M3, &[shape.iter().product::<i64>() / 2], seed);
        let host = pairs.to_host().unwrap();
        let host = Tensor::from_bytes(DType::E2M1, shape, host.bytes().unwrap());
        host.unwrap().to_device(library.device()).unwrap()
    };
    let [w1, w3] = [1, 2].map(|seed| codes(&[experts, width, depth], seed));
    let w2 = codes(&[experts, depth, width], 3);
    let up_steps = steps(&[experts, 1, 3, width]);
    let down_steps = steps(&[experts, 1, 2, depth]);
    let up_factors = tensor(DType::F32, &[experts, width], 4);
    let down_factors = tensor(DType::F32, &[experts, depth], 5);
    let [tile_expert, tiles] = [ints(&[1], &|_| 1), ints(&[1], &|_| 1)];
    let mut first: Option<[Vec<u8>; 2]> = None;
    for rows in [8, 16, 32, 64, 128] {
        let x = tensor(DType::E4M3, &[rows, depth], 6);
        let xs = ints(&[3, rows], &|i| (120 + i / rows as i32 + i % 4) << 23);
        let xs = xs.to_host().unwrap();
        let xs = Tensor::from_bytes(DType::F32, &[3, rows], xs.bytes().unwrap());
        let xs = xs.unwrap().to_device(library.device()).unwrap();
        let route = tensor(DType::F32, &[rows], 7);
        let zeros = |dtype, shape: &[i64]| Tensor::zeros_on(library.device(), dtype, shape);
        let mut h = zeros(DType::E4M3, &[rows, width]).unwrap();
        let mut hs = zeros(DType::F32, &[2, rows]).unwrap();
        let mut y = zeros(DType::BF16, &[rows, depth]).unwrap();
        let args = [&x, &xs, &w1, &up_steps, &up_factors, &w3, &up_steps];
        let more = [&up_factors, &tile_expert, &tiles, &route];
        let mut args: Vec<_> = args.iter().chain(&more).map(|t| t.view().into()).collect();
        args.extend([
            h.view_mut().unwrap().into(),
            hs.view_mut().unwrap().into(),
            Arg::Index(rows),
            10.0f32.into(),
        ]);
        let names = match rows {
            128 => ["expert_up_wide", "expert_down_wide"],
            _ => ["expert_up_fp4", "expert_down_fp4"],
        };
        let [up, down] = names.map(|name| {
            library
                .kernel(name)
                .expect("the library has the experts' kernels")
        });
        up.launch(&args).unwrap_or_else(|e| panic!("{e}"));
        let args = [
            &h,
            &hs,
            &w2,
            &down_steps,
            &down_factors,
            &tile_expert,
            &tiles,
        ];
        let mut args: Vec<_> = args.iter().map(|t| t.view().into()).collect();
        args.extend([y.view_mut().unwrap().into(), Arg::Index(rows)]);
        down.launch(&args).unwrap_or_else(|e| panic!("{e}"));
        // The first eight rows of each.
        let start = |t: &Tensor, bytes: i64| {
            t.to_host().unwrap().bytes().unwrap()[..8 * bytes as usize].to_vec()
        };
        let own = [start(&h, width), start(&y, 2 * depth)];
        assert!(own.iter().all(|half| half.iter().any(|&b| b != 0)), "zeros");
        match &first {
            Some(first) => assert!(*first == own, "tiles of {rows} rows have other bits"),
            None => first = Some(own),
        }
    }
}
