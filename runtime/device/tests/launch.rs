//! Launches of hand-made code: checks, instances, overlap, scratch and flags, threads.
#![cfg(target_arch = "x86_64")]

use std::num::NonZeroUsize;

use object::write::{Object, StandardSection, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope};
use tessera_artifact::*;
use tessera_device::{Arg, CpuOptions, Device, LaunchError, Library, Tensor, View};

/// `for (i = begin * 64; i < end * 64 && i < N; i++) y[i * y_stride] += a * x[i * x_stride];`
/// over the words `x, x_stride, y, y_stride, a, N, grid`.
const AXPY: &str = "\
    4889fe4c8b074c8b4f10660f6e4f20488b7f284889d048c1e0064989ca49c1e2064839c77e3a4839ca7d354c39d7490f\
    4ffa4889c2480faf5618498d14914889c1480faf4e080f28c1f3410f590488f30f5802f30f11024883c0014839c77fd2\
    c3";

/// For each CTA: fills 64 bytes of scratch memory with the CTA's number, sets `tmp[i] = flags[i]`, `flags[i] = 7`,
/// `out[i] = tmp[i] + 1 + how many of the 64 bytes have changed`, over the words `tmp, 1, flags, 1, out, 1, N, grid`.
const STAGE: &str = "\
    415455534889f84889d7488b10488b6810488b58204839cf7d6f4989f24989cb4c8d0cba488d4e404829d54829d34c89\
    d24c89d04189f84088384883c0014839c875f44a8d440d004d89cc8b30418931c70007000000b800000000443802400f\
    95c6400fb6f601f04883c2014839ca75ea4103042483c0014289040b4883c7014983c1044939fb75a55b5d415cc3";

fn code(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn object(functions: &[(&str, &str)]) -> Vec<u8> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
    let text = object.section_id(StandardSection::Text);
    for (name, hex) in functions {
        let id = object.add_symbol(Symbol {
            name: name.as_bytes().to_vec(),
            value: 0,
            size: 0,
            kind: SymbolKind::Text,
            scope: SymbolScope::Linkage,
            weak: false,
            section: SymbolSection::Undefined,
            flags: SymbolFlags::None,
        });
        object.add_symbol_data(id, text, &code(hex), 16);
    }
    object.write().unwrap()
}

fn tensor(name: &str, mode: ParamMode, dtype: DType, shape: Vec<HostExpr>) -> ParamEntry {
    ParamEntry {
        name: name.into(),
        kind: ParamKind::Tensor {
            mode,
            dtype,
            shape,
            align: dtype.bits().div_ceil(8),
            contiguous: false,
        },
    }
}

fn entry(
    name: &str,
    symbol: &str,
    params: Vec<ParamEntry>,
    n: (i64, i64, i64),
    grid: HostExpr,
) -> KernelEntry {
    KernelEntry {
        name: name.into(),
        generics: vec![],
        docs: String::new(),
        params,
        dims: vec![DimEntry {
            name: "N".into(),
            lo: n.0,
            hi: n.1,
            step: n.2,
            scalar: false,
        }],
        requires: vec![],
        grid: vec![grid],
        contracts: vec![],
        cpu: vec![CpuCode {
            variant: CpuVariant::Avx2,
            blob: 0,
            symbol: symbol.into(),
            scratch_bytes: 64,
            traps: vec![],
        }],
        ptx: vec![],
        key: String::new(),
    }
}

fn axpy(n: (i64, i64, i64)) -> KernelEntry {
    let vector = || vec![HostExpr::dim("N")];
    let mut entry = entry(
        "blas::axpy",
        "axpy",
        vec![
            tensor("x", ParamMode::In, DType::F32, vector()),
            tensor("y", ParamMode::InOut, DType::F32, vector()),
            ParamEntry {
                name: "a".into(),
                kind: ParamKind::Scalar { dtype: DType::F32 },
            },
        ],
        n,
        HostExpr::op(HostOp::CeilDiv, [HostExpr::dim("N"), HostExpr::Int(64)]),
    );
    entry.requires = vec![Requirement {
        cond: HostExpr::op(
            HostOp::Ne,
            [HostExpr::Scalar("a".into()), HostExpr::Float(0.0)],
        ),
        text: "a != 0.0".into(),
        message: Some("nothing to add".into()),
    }];
    entry
}

fn stage() -> KernelEntry {
    let vector = || vec![HostExpr::dim("N")];
    entry(
        "test::stage",
        "stage",
        vec![
            tensor("tmp", ParamMode::Scratch, DType::I32, vector()),
            tensor("flags", ParamMode::Flags, DType::I32, vector()),
            tensor("out", ParamMode::Out, DType::I32, vector()),
        ],
        (0, 1 << 20, 1),
        HostExpr::dim("N"),
    )
}

fn library(kernels: Vec<KernelEntry>, threads: usize) -> Library {
    let manifest = Manifest {
        compiler: "test".into(),
        kernels,
    };
    let bytes = write_archive(&manifest, &[object(&[("axpy", AXPY), ("stage", STAGE)])]).unwrap();
    // One byte off, as `include_bytes!` may be.
    let shifted = [&[0u8][..], &bytes].concat();
    let device = Device::cpu_with(CpuOptions {
        threads: NonZeroUsize::new(threads),
        variant: None,
    })
    .unwrap();
    Library::load(&shifted[1..], &device).unwrap()
}

fn numbers(n: i64) -> Tensor {
    Tensor::from_slice(&[n], &(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_launch_runs_every_cta_once() {
    for threads in [1, 2, 5] {
        let library = library(vec![axpy((0, 1 << 40, 1))], threads);
        let kernel = library.kernel("axpy").unwrap();
        for n in [0, 1, 63, 64, 65, 1000, 100_000] {
            let (x, mut y) = (numbers(n), numbers(n));
            kernel
                .launch(&[x.view().into(), y.view_mut().unwrap().into(), 2.0f32.into()])
                .unwrap();
            let expected: Vec<f32> = (0..n).map(|i| 3.0 * i as f32).collect();
            assert_eq!(y.as_slice::<f32>().unwrap(), expected);
        }
    }
}

#[test]
fn strided_columns_and_named_arguments() {
    let library = library(vec![axpy((0, 1 << 40, 1))], 2);
    let kernel = library.kernel("blas::axpy").unwrap();
    let mut matrix = Tensor::from_slice(&[3, 2], &[1f32, 10.0, 2.0, 20.0, 3.0, 30.0]).unwrap();
    let (left, right) = matrix.view_mut().unwrap().split_at(1, 1).unwrap();
    let (left, right) = (left.select(1, 0).unwrap(), right.select(1, 0).unwrap());
    kernel
        .launch_named(vec![
            ("a", (-1.0f32).into()),
            ("y", right.into()),
            ("x", left.as_view().into()),
        ])
        .unwrap();
    assert_eq!(
        matrix.as_slice::<f32>().unwrap(),
        [1.0, 9.0, 2.0, 18.0, 3.0, 27.0]
    );

    let named = |args: Vec<(&str, Arg<'_>)>| kernel.launch_named(args).unwrap_err().to_string();
    assert_eq!(
        named(vec![("z", 1.0f32.into())]),
        "kernel `blas::axpy` has no parameter `z`; it takes `x`, `y`, `a`"
    );
    assert_eq!(
        named(vec![("a", 1.0f32.into())]),
        "kernel `blas::axpy` needs an argument for `x`"
    );
    assert_eq!(
        named(vec![("a", 1.0f32.into()), ("a", 1.0f32.into())]),
        "kernel `blas::axpy` was given `a` twice"
    );
}

#[test]
fn host_memory_is_private_and_flags_start_at_zero() {
    let library = library(vec![stage()], 3);
    for n in [1, 64, 5000] {
        for _ in 0..3 {
            let mut out = Tensor::zeros(DType::I32, &[n]).unwrap();
            library
                .kernel("stage")
                .unwrap()
                .launch(&[out.view_mut().unwrap().into()])
                .unwrap();
            assert!(out.as_slice::<i32>().unwrap().iter().all(|&v| v == 1));
        }
    }
}

#[test]
fn the_first_instance_that_takes_the_arguments_runs() {
    let mut small = axpy((0, 64, 1));
    small.generics = vec![("B".into(), "64".into())];
    small.cpu[0].symbol = "stage".into(); // would crash on these words if it ran
    small.requires.clear();
    small.dims[0].lo = 65;
    small.dims[0].hi = 66;
    let library = library(vec![small, axpy((0, 1000, 8))], 1);
    let kernel = library.kernel("axpy").unwrap();
    let (x, mut y) = (numbers(16), numbers(16));
    kernel
        .launch(&[x.view().into(), y.view_mut().unwrap().into(), 1.0f32.into()])
        .unwrap();
    let (x, mut y) = (numbers(12), numbers(12));
    let error = kernel
        .launch(&[x.view().into(), y.view_mut().unwrap().into(), 1.0f32.into()])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "no instance of kernel `blas::axpy` takes these arguments (given x: f32[12], y: f32[12], a = 1):\n\
         \x20 blas::axpy<B = 64>: N is 12 (axis 0 of `x`), and it takes 65..=66\n\
         \x20 blas::axpy: N is 12 (axis 0 of `x`), and it must be a multiple of 8"
    );
}

#[test]
fn refused_launches_say_why() {
    let library = library(vec![axpy((1, 1000, 1))], 1);
    let kernel = library.kernel("axpy").unwrap();
    let refuse =
        |x: Arg<'_>, y: Arg<'_>, a: Arg<'_>| kernel.launch(&[x, y, a]).unwrap_err().to_string();
    let x = numbers(8);
    let mut y = numbers(8);
    macro_rules! y {
        () => {
            y.view_mut().unwrap().into()
        };
    }
    assert_eq!(
        refuse(numbers(7).view().into(), y!(), 1.0f32.into()),
        "kernel `blas::axpy`: axis 0 of `y` has 8 elements and needs 7 = N, with N = 7 (axis 0 of `x`) (given x: f32[7], y: f32[8], a = 1)"
    );
    assert_eq!(
        refuse(x.view().into(), y!(), 0.0f32.into()),
        "kernel `blas::axpy`: it requires `a != 0.0` (nothing to add) (given x: f32[8], y: f32[8], a = 0)"
    );
    assert_eq!(
        refuse(x.view().into(), y!(), 1.0f64.into()),
        "kernel `blas::axpy`: `a` holds f32, and a f64 argument was given (given x: f32[8], y: f32[8], a = 1)"
    );
    assert_eq!(
        refuse(x.view().into(), x.view().into(), 1.0f32.into()),
        "kernel `blas::axpy`: `y` is an `inout` tensor of f32, and a read-only f32 tensor of shape [8] was given"
    );
    assert_eq!(
        refuse(x.view().into(), y!(), 3i64.into()),
        "kernel `blas::axpy`: `a` holds f32, and a i64 argument was given (given x: f32[8], y: f32[8], a = 3)"
    );
    assert_eq!(
        refuse(x.view().into(), 1.0f32.into(), 1.0f32.into()),
        "kernel `blas::axpy`: `y` is an `inout` tensor of f32, and the f32 scalar 1 was given"
    );
    assert_eq!(
        refuse(
            x.view().reshape(&[2, 4]).unwrap().into(),
            y!(),
            1.0f32.into()
        ),
        "kernel `blas::axpy`: `x` has shape [N], and a tensor of rank 2 was given (given x: f32[2, 4], y: f32[8], a = 1)"
    );
    assert_eq!(
        kernel.launch(&[]).unwrap_err().to_string(),
        "kernel `blas::axpy` takes 3 arguments (`x`, `y`, `a`), and 0 were given"
    );
    assert_eq!(
        library.kernel("axpi").unwrap_err().to_string(),
        "no kernel `axpi`; the library has `blas::axpy`"
    );
    assert_eq!(
        y.as_slice::<f32>().unwrap(),
        numbers(8).as_slice::<f32>().unwrap(),
        "a refused launch writes nothing"
    );
}

#[test]
fn overlap_of_what_is_written_is_refused() {
    let library = library(vec![axpy((1, 1000, 1))], 1);
    let kernel = library.kernel("axpy").unwrap();
    let mut memory = vec![0f32; 64];
    let start = memory.as_mut_ptr();
    // SAFETY: inside `memory`, which outlives them; the launch is refused or the two are disjoint.
    let launch = |x: (isize, i64), y: (isize, i64), n: i64| unsafe {
        let x = View::from_raw(start.offset(x.0).cast(), DType::F32, &[n], &[x.1]).unwrap();
        let y =
            tessera_device::ViewMut::from_raw(start.offset(y.0).cast(), DType::F32, &[n], &[y.1])
                .unwrap();
        kernel.launch(&[x.into(), y.into(), 1.0f32.into()])
    };
    assert_eq!(launch((0, 2), (1, 2), 20), Ok(()));
    assert_eq!(launch((0, 1), (20, 1), 20), Ok(()));
    let error = launch((0, 1), (19, 1), 20).unwrap_err();
    assert_eq!(
        error,
        LaunchError::Overlap {
            kernel: "blas::axpy".into(),
            written: "y".into(),
            other: "x".into()
        }
    );
    assert!(matches!(
        launch((40, 1), (0, 0), 4),
        Err(LaunchError::SelfOverlap { .. })
    ));
}

#[test]
fn code_for_another_cpu_is_refused_at_the_launch() {
    let mut entry = axpy((0, 8, 1));
    entry.cpu.clear();
    let library = library(vec![entry], 1);
    let (x, mut y) = (numbers(8), numbers(8));
    let error = library.kernel("axpy").unwrap().launch(&[
        x.view().into(),
        y.view_mut().unwrap().into(),
        1.0f32.into(),
    ]);
    assert!(
        matches!(error, Err(LaunchError::NoCode { .. })),
        "{error:?}"
    );
}

/// Decoding launches hundreds of kernels a token; the bound is far above what a quiet machine shows, so that a busy one passes.
#[test]
fn a_small_launch_costs_little() {
    let library = library(vec![axpy((0, 1000, 8)), axpy((0, 1 << 40, 1))], 2);
    let kernel = library.kernel("axpy").unwrap();
    let (x, mut y) = (numbers(33), numbers(33));
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            kernel
                .launch(&[x.view().into(), y.view_mut().unwrap().into(), 1.0f32.into()])
                .unwrap();
        }
        best = best.min(start.elapsed().as_secs_f64() / 1000.0);
    }
    println!("{:.0} ns per launch", best * 1e9);
    assert!(best < 10e-6, "{best}");
}
