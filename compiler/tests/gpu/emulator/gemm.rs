//! Whole matrix products as a compiler makes them for Hopper: `C = A * Bᵀ`, one warpgroup that loads and two that multiply and store.
//! The texts in `data` come from hand-written MLIR through LLVM's back end. Data are small integers, so that every order of sums is exact.

use super::machine::Launch;
use super::ptx::{self, Program};
use super::tensor_map;
use std::collections::BTreeMap;
use tessera_artifact::{DType, numeric};
use tessera_device::cuda::driver::TiledTensor;

const BF16: &str = include_str!("data/gemm_bf16.ptx");
const BF16_CLUSTER: &str = include_str!("data/gemm_bf16_cluster.ptx");
const FP8: &str = include_str!("data/gemm_fp8.ptx");

/// A matrix in memory, aligned as an allocation is.
struct Matrix {
    words: Vec<[u64; 32]>,
    dtype: DType,
    rows: u64,
    columns: u64,
}

impl Matrix {
    fn new(dtype: DType, rows: u64, columns: u64, of: impl Fn(u64, u64) -> f32) -> Self {
        let bytes = dtype.bytes_for(rows * columns);
        let matrix = Matrix {
            words: vec![[0x5a5a_5a5a_5a5a_5a5a; 32]; (bytes / 256 + 2) as usize],
            dtype,
            rows,
            columns,
        };
        for row in 0..rows {
            for column in 0..columns {
                let code = numeric::from_f64(f64::from(of(row, column)), dtype);
                let width = u64::from(dtype.bits() / 8);
                for byte in 0..width {
                    let at = matrix.address() + (row * columns + column) * width + byte;
                    // SAFETY: within the words.
                    unsafe { *(at as *mut u8) = (code >> (8 * byte)) as u8 };
                }
            }
        }
        matrix
    }

    /// A multiple of 16, at least.
    fn address(&self) -> u64 {
        (self.words.as_ptr() as u64).next_multiple_of(128)
    }

    fn value(&self, row: u64, column: u64) -> f64 {
        let width = u64::from(self.dtype.bits() / 8);
        let at = self.address() + (row * self.columns + column) * width;
        let code = (0..width).map(|b| {
            // SAFETY: within the words.
            u64::from(unsafe { *((at + b) as *const u8) }) << (8 * b)
        });
        numeric::to_f64(code.sum(), self.dtype)
    }

    fn map(&self, boxes: [u32; 2]) -> [u64; 16] {
        let width = u64::from(self.dtype.bits() / 8);
        let tensor = TiledTensor {
            address: self.address(),
            dtype: self.dtype,
            rank: 2,
            extents: [self.columns, self.rows, 1, 1, 1],
            strides: [0, self.columns * width, 0, 0, 0],
            boxes: [boxes[0], boxes[1], 1, 1, 1],
            swizzle: 128,
        };
        tensor_map::encode(&tensor).unwrap()
    }
}

struct Case {
    dtype: DType,
    /// Rows of B that one load brings.
    rows_of_b: u32,
    m: u64,
    n: u64,
    k: u64,
    ctas: u32,
}

/// Whether C is right; or what the machine found.
fn run(text: &str, case: &Case, seed: u64) -> Result<(), String> {
    let program: Program = ptx::parse(text)?;
    let small = |row: u64, column: u64| ((row * 7 + column * 5 + row * column) % 3) as f32 - 1.0;
    let a = Matrix::new(case.dtype, case.m, case.k, small);
    let b = Matrix::new(case.dtype, case.n, case.k, |row, column| {
        small(column + 1, row)
    });
    let c = Matrix::new(DType::BF16, case.m, case.n, |_, _| 99.0);
    let per_row = 128 / (case.dtype.bits() / 8);
    let mut params: Vec<u8> = vec![];
    for map in [
        a.map([per_row, 128]),
        b.map([per_row, case.rows_of_b]),
        c.map([64, 64]),
    ] {
        params.extend(map.iter().flat_map(|w| w.to_le_bytes()));
    }
    for extent in [case.m, case.n, case.k] {
        params.extend((extent as u32).to_le_bytes());
    }
    params.extend(1f32.to_le_bytes());
    let allocations =
        [&a, &b, &c].map(|m| (m.address(), m.dtype.bytes_for(m.rows * m.columns) as usize));
    Launch {
        program: &program,
        ctas: case.ctas,
        shared_bytes: 227 * 1024,
        params: &params,
        allocations: &BTreeMap::from(allocations),
        at_once: 4,
        waits: false,
        seed,
    }
    .run()?;
    for row in 0..case.m {
        for column in 0..case.n {
            let want: f64 = (0..case.k)
                .map(|k| a.value(row, k) * b.value(column, k))
                .sum();
            let got = c.value(row, column);
            if want != got {
                return Err(format!("C[{row}, {column}] is {got} instead of {want}"));
            }
        }
    }
    Ok(())
}

const ONE: Case = Case {
    dtype: DType::BF16,
    rows_of_b: 128,
    m: 256,
    n: 256,
    k: 192,
    ctas: 2,
};

#[test]
fn bf16_in_any_order_of_warps() {
    for seed in 0..4 {
        assert_eq!(run(BF16, &ONE, seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn bf16_in_clusters_with_multicast() {
    let case = Case {
        rows_of_b: 64,
        ctas: 4,
        ..ONE
    };
    for seed in 0..3 {
        assert_eq!(run(BF16_CLUSTER, &case, seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn fp8() {
    let case = Case {
        dtype: DType::E4M3,
        k: 256,
        ..ONE
    };
    for seed in 0..2 {
        assert_eq!(run(FP8, &case, seed), Ok(()), "seed {seed}");
    }
}

/// Each change takes out, or spoils, one thing that the program needs; none may give right results.
#[test]
fn what_is_missing_is_found() {
    let all = |text: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replace(from, to)
    };
    let waits = |at: &str| format!("mbarrier.try_wait.parity.shared.b64 P1, [{at}], ");
    let no_wait = "setp.eq.b32 P1, 0, 0; //";
    let expect = "mbarrier.arrive.expect_tx.shared.b64 %rd57, [%rd56+-16], %r200";
    for (from, to, said) in [
        (
            "fence.proxy.async.shared::cta;",
            "",
            "without fence.proxy.async between",
        ),
        (
            "fence.mbarrier_init.release.cluster;",
            "",
            "without fence.mbarrier_init after it",
        ),
        (
            &waits("%r54"),
            no_wait,
            "nobody has waited for|asynchronous work that reads",
        ),
        (
            &waits("%r76"),
            no_wait,
            "nobody has waited for|asynchronous work that reads",
        ),
        (
            &waits("%r197"),
            no_wait,
            "more than the 1 arrivals|asynchronous copy that wrote",
        ),
        ("wgmma.fence.sync.aligned;", "", "no wgmma.fence before it"),
        (
            "wgmma.wait_group.sync.aligned 0;",
            "",
            "a register of a product under way",
        ),
        ("wgmma.wait_group.sync.aligned \t1;", "", "reads them"),
        (
            "wgmma.commit_group.sync.aligned;",
            "",
            "a register of a product under way|asynchronous work that reads",
        ),
        (
            "setmaxnreg.dec.sync.aligned.u32 \t40;",
            "",
            "registers left",
        ),
        (
            "setmaxnreg.inc.sync.aligned.u32 \t232;",
            "setmaxnreg.inc.sync.aligned.u32 \t240;",
            "7168 registers left",
        ),
        ("bar.sync \t0;", "", "may not be initialised yet"),
        ("bar.sync \t%r2, 128;", "", "without a barrier since"),
        ("cp.async.bulk.wait_group.read \t0;", "", "reads them"),
        (
            "cp.async.bulk.commit_group;",
            "",
            "asynchronous work that reads",
        ),
        ("mbarrier.arrive.shared.b64", "//", "wait for ever"),
        (
            expect,
            "mbarrier.arrive.shared.b64 %rd57, [%rd56+-16]",
            "bytes come to the barrier|nobody has waited for",
        ),
        ("setp.ne.b32 p, 0, 0;", "setp.ne.b32 p, 1, 0;", "instead of"),
    ] {
        for seed in 0..2 {
            let found = run(&all(BF16, from, to), &ONE, seed);
            let why = found.expect_err(&format!("`{from}` with seed {seed}"));
            println!("{from}\n    {why}");
            assert!(
                said.split('|').any(|said| why.contains(said)),
                "{from}\n{why}"
            );
        }
    }
}
