//! From MLIR text to code that runs: the whole way below emission, on small kernels.

use std::path::Path;
use std::sync::Arc;

use tessera_artifact::CpuVariant;
use tessera_device::cpu::features;
use tessera_device::cpu::loader::CodeObject;

use super::llvm;
use super::nvptx::SM_90A;
use super::ptxas::{Ptxas, Usage, parse_report};
use crate::mlir::{Lowering, MlirContext};

const VARIANTS: [CpuVariant; 3] = features::VARIANTS;

/// A memref of `extent` elements at the address in word `word` of the arguments.
fn memref(name: &str, word: u32, extent: &str) -> String {
    format!(
        "
        %{name}_slot = llvm.getelementptr %args[{word}] : (!llvm.ptr) -> !llvm.ptr, i64
        %{name}_at = llvm.load %{name}_slot : !llvm.ptr -> !llvm.ptr
        %{name}_0 = llvm.mlir.poison : !llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>
        %{name}_1 = llvm.insertvalue %{name}_at, %{name}_0[0] : !llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>
        %{name}_2 = llvm.insertvalue %{name}_at, %{name}_1[1] : !llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>
        %{name}_3 = llvm.insertvalue %zero, %{name}_2[2] : !llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>
        %{name}_4 = llvm.insertvalue {extent}, %{name}_3[3, 0] : !llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>
        %{name}_5 = llvm.insertvalue %one, %{name}_4[4, 0] : !llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)>
        %{name} = builtin.unrealized_conversion_cast %{name}_5
            : !llvm.struct<(ptr, ptr, i64, array<1 x i64>, array<1 x i64>)> to memref<?xf32>"
    )
}

/// `y[i] = a * x[i] + y[i]` for the CTAs' vectors, fused; the last vector masked at `n`. Words: x, y, n, a (f32 bits).
fn axpy(lanes: u32) -> String {
    let (x, y) = (memref("x", 0, "%n"), memref("y", 1, "%n"));
    format!(
        "
func.func @axpy(%args: !llvm.ptr, %scratch: !llvm.ptr, %cta_begin: i64, %cta_end: i64) {{
    %zero = llvm.mlir.constant(0 : i64) : i64
    %one = llvm.mlir.constant(1 : i64) : i64
    %n_slot = llvm.getelementptr %args[2] : (!llvm.ptr) -> !llvm.ptr, i64
    %n = llvm.load %n_slot : !llvm.ptr -> i64
    %a_slot = llvm.getelementptr %args[3] : (!llvm.ptr) -> !llvm.ptr, i64
    %a = llvm.load %a_slot : !llvm.ptr -> f32
    {x}{y}
    %begin = arith.index_cast %cta_begin : i64 to index
    %end = arith.index_cast %cta_end : i64 to index
    %extent = arith.index_cast %n : i64 to index
    %c1 = arith.constant 1 : index
    %lanes = arith.constant {lanes} : index
    %av = vector.broadcast %a : f32 to vector<{lanes}xf32>
    %pad = arith.constant dense<0.0> : vector<{lanes}xf32>
    scf.for %cta = %begin to %end step %c1 {{
        %i = arith.muli %cta, %lanes : index
        %next = arith.addi %i, %lanes : index
        %whole = arith.cmpi sle, %next, %extent : index
        scf.if %whole {{
            %xv = vector.load %x[%i] : memref<?xf32>, vector<{lanes}xf32>
            %yv = vector.load %y[%i] : memref<?xf32>, vector<{lanes}xf32>
            %r = vector.fma %av, %xv, %yv : vector<{lanes}xf32>
            vector.store %r, %y[%i] : memref<?xf32>, vector<{lanes}xf32>
        }} else {{
            %left = arith.subi %extent, %i : index
            %mask = vector.create_mask %left : vector<{lanes}xi1>
            %xv = vector.maskedload %x[%i], %mask, %pad
                : memref<?xf32>, vector<{lanes}xi1>, vector<{lanes}xf32> into vector<{lanes}xf32>
            %yv = vector.maskedload %y[%i], %mask, %pad
                : memref<?xf32>, vector<{lanes}xi1>, vector<{lanes}xf32> into vector<{lanes}xf32>
            %r = vector.fma %av, %xv, %yv : vector<{lanes}xf32>
            vector.maskedstore %y[%i], %mask, %r : memref<?xf32>, vector<{lanes}xi1>, vector<{lanes}xf32>
        }}
    }}
    return
}}"
    )
}

/// `y[0] = x[0] * x[1] + x[2]`, a multiplication and an addition; `y[1]` the same fused.
fn mul_then_add() -> String {
    let (x, y) = (memref("x", 0, "%one"), memref("y", 1, "%one"));
    format!(
        "
func.func @mul_then_add(%args: !llvm.ptr, %scratch: !llvm.ptr, %cta_begin: i64, %cta_end: i64) {{
    %zero = llvm.mlir.constant(0 : i64) : i64
    %one = llvm.mlir.constant(1 : i64) : i64
    {x}{y}
    %c0 = arith.constant 0 : index
    %c1 = arith.constant 1 : index
    %c2 = arith.constant 2 : index
    %p = memref.load %x[%c0] : memref<?xf32>
    %q = memref.load %x[%c1] : memref<?xf32>
    %r = memref.load %x[%c2] : memref<?xf32>
    %m = arith.mulf %p, %q : f32
    %s = arith.addf %m, %r : f32
    memref.store %s, %y[%c0] : memref<?xf32>
    %f = math.fma %p, %q, %r : f32
    memref.store %f, %y[%c1] : memref<?xf32>
    return
}}"
    )
}

/// The GPU's form of the same, one thread.
const GPU_KERNEL: &str = "
llvm.func @mul_then_add(%x: !llvm.ptr<1>, %y: !llvm.ptr<1>) attributes {nvvm.kernel, nvvm.reqntid = array<i32: 128, 1, 1>} {
    %tid = nvvm.read.ptx.sreg.tid.x : i32
    %xi = llvm.getelementptr %x[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, f32
    %yi = llvm.getelementptr %y[%tid] : (!llvm.ptr<1>, i32) -> !llvm.ptr<1>, f32
    %p = llvm.load %xi : !llvm.ptr<1> -> f32
    %q = llvm.load %yi : !llvm.ptr<1> -> f32
    %m = arith.mulf %p, %q : f32
    %s = arith.addf %m, %p : f32
    llvm.store %s, %yi : f32, !llvm.ptr<1>
    llvm.return
}";

fn cpu_object(text: &str, variant: CpuVariant) -> Vec<u8> {
    let mlir = MlirContext::new();
    let mut module = mlir.parse(text).expect("the text is a module");
    mlir.lower(&mut module, Lowering::Cpu)
        .expect("every op has a conversion");
    llvm::cpu_object(&mlir, &module, variant).expect("LLVM takes it")
}

fn cpu_assembly(text: &str, variant: CpuVariant) -> String {
    let mlir = MlirContext::new();
    let mut module = mlir.parse(text).expect("the text is a module");
    mlir.lower(&mut module, Lowering::Cpu)
        .expect("every op has a conversion");
    llvm::cpu_assembly(&mlir, &module, variant).expect("LLVM takes it")
}

fn gpu_code(text: &str) -> String {
    let mlir = MlirContext::new();
    let mut module = mlir.parse(text).expect("the text is a module");
    mlir.lower(&mut module, Lowering::Nvptx)
        .expect("every op has a conversion");
    llvm::ptx(&mlir, &module, &SM_90A).expect("LLVM takes it")
}

fn lanes(variant: CpuVariant) -> u32 {
    super::cpu::CpuFacts::of(variant).lanes(4)
}

#[test]
fn a_vector_kernel_runs_on_every_variant_of_this_cpu() {
    for variant in VARIANTS.into_iter().filter(|&v| features::is_supported(v)) {
        let lanes = lanes(variant) as usize;
        let code = CodeObject::load(&cpu_object(&axpy(lanes as u32), variant)).expect("it loads");
        let kernel = Arc::new(code).kernel("axpy").expect("it has the kernel");
        for n in [0, 1, lanes - 1, lanes, lanes + 1, 5 * lanes + 3] {
            let x: Vec<f32> = (0..n).map(|i| 1.0 / (i as f32 + 3.0)).collect();
            // Two guards behind, which the mask must spare.
            let mut y: Vec<f32> = (0..n + 2).map(|i| (i as f32).sqrt()).collect();
            let mut expected = y.clone();
            for (y, x) in expected.iter_mut().zip(&x) {
                *y = 0.3f32.mul_add(*x, *y);
            }
            let args = [
                x.as_ptr() as u64,
                y.as_mut_ptr() as u64,
                n as u64,
                u64::from(0.3f32.to_bits()),
            ];
            // SAFETY: the kernel reads `n` of x, reads and writes `n` of y, and uses no scratch.
            unsafe { kernel.call(&args, std::ptr::null_mut(), 0, n.div_ceil(lanes) as i64) };
            let bits = |v: &[f32]| v.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&y), bits(&expected), "{n} elements on {variant:?}");
        }
    }
}

#[test]
fn every_variant_uses_its_registers() {
    for variant in VARIANTS {
        let assembly = cpu_assembly(&axpy(lanes(variant)), variant);
        assert!(assembly.contains("vfmadd"), "{variant:?}: {assembly}");
        assert_eq!(
            assembly.contains("%zmm"),
            variant != CpuVariant::Avx2,
            "{variant:?}"
        );
        assert_eq!(
            assembly.contains("%k1"),
            variant != CpuVariant::Avx2,
            "{variant:?}"
        );
        // Compiled anywhere, run nowhere but where it may; loading touches no instruction.
        let code = CodeObject::load(&cpu_object(&axpy(lanes(variant)), variant)).expect("it loads");
        assert_eq!(code.names().collect::<Vec<_>>(), ["axpy"]);
    }
}

#[test]
fn the_bf16_dot_product_is_there_where_the_variant_has_it() {
    let text = "
func.func @dot(%acc: vector<16xf32>, %a: vector<32xbf16>, %b: vector<32xbf16>) -> vector<16xf32> {
    %r = x86vector.avx512.dot %acc, %a, %b : vector<32xbf16> -> vector<16xf32>
    return %r : vector<16xf32>
}";
    assert!(cpu_assembly(text, CpuVariant::Avx512Bf16).contains("vdpbf16ps"));
}

#[test]
fn equal_modules_give_equal_bytes() {
    for variant in VARIANTS {
        let text = axpy(lanes(variant));
        assert_eq!(
            cpu_object(&text, variant),
            cpu_object(&text, variant),
            "{variant:?}"
        );
    }
    assert_eq!(gpu_code(GPU_KERNEL), gpu_code(GPU_KERNEL));
}

/// Rounded twice, the product's low bits are gone; fused, they are not.
#[test]
fn a_multiplication_and_an_addition_are_never_fused() {
    for variant in VARIANTS {
        let assembly = cpu_assembly(&mul_then_add(), variant);
        assert!(
            assembly.contains("vmulss") && assembly.contains("vaddss"),
            "{variant:?}: {assembly}"
        );
        assert_eq!(
            assembly.matches("vfmadd").count(),
            1,
            "only the one asked for, {variant:?}: {assembly}"
        );
    }
    if features::is_supported(CpuVariant::Avx2) {
        let code =
            CodeObject::load(&cpu_object(&mul_then_add(), CpuVariant::Avx2)).expect("it loads");
        let kernel = Arc::new(code)
            .kernel("mul_then_add")
            .expect("it has the kernel");
        let small = 1.0 + f32::EPSILON;
        let x = [small, small, -(1.0 + 2.0 * f32::EPSILON)];
        let mut y = [7.0f32; 2];
        // SAFETY: reads three elements of x, writes two of y.
        unsafe {
            kernel.call(
                &[x.as_ptr() as u64, y.as_mut_ptr() as u64],
                std::ptr::null_mut(),
                0,
                1,
            )
        };
        assert_eq!(y, [0.0, f32::EPSILON * f32::EPSILON]);
    }
    // With `.rn` ptxas leaves them apart as well.
    let ptx = gpu_code(GPU_KERNEL);
    assert!(
        ptx.contains("mul.rn.f32") && ptx.contains("add.rn.f32") && !ptx.contains("fma"),
        "{ptx}"
    );
}

#[test]
fn ptx_names_its_kernel_and_target_and_assembles() {
    let ptx = gpu_code(GPU_KERNEL);
    for part in [
        ".version 8.6",
        ".target sm_90a",
        ".entry mul_then_add",
        ".reqntid 128",
    ] {
        assert!(ptx.contains(part), "no `{part}` in {ptx}");
    }
    let path = std::env::var_os("PATH");
    let Some(ptxas) = Ptxas::find(Path::new(env!("CARGO_MANIFEST_DIR")), path.as_deref()) else {
        println!(
            "no ptxas here: `make setup` installs one; the assembler's part of this test did not run"
        );
        return;
    };
    let assembled = ptxas.assemble(&ptx, SM_90A.arch).expect("ptxas takes it");
    assert!(assembled.cubin.starts_with(b"\x7fELF"));
    assert_eq!(assembled.report.warnings, Vec::<String>::new());
    let usage = assembled.report.functions["mul_then_add"];
    assert!((1..=32).contains(&usage.registers), "{usage:?}");
    assert_eq!(
        (
            usage.spill_store_bytes,
            usage.spill_load_bytes,
            usage.stack_bytes
        ),
        (0, 0, 0)
    );

    let refused = ptxas.assemble(".version 8.6\n.target sm_90a\nnonsense", SM_90A.arch);
    let words = refused.expect_err("this is no PTX").to_string();
    assert!(
        words.starts_with("ptxas refused the code: ") && words.contains("nonsense"),
        "{words}"
    );
}

#[test]
fn what_ptxas_reports_is_read() {
    let report = parse_report(
        "ptxas info    : 0 bytes gmem\n\
         ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in function 'k'\n\
         ptxas info    : Compiling entry function 'k' for 'sm_90a'\n\
         ptxas info    : Function properties for k\n    \
         48 bytes stack frame, 36 bytes spill stores, 40 bytes spill loads\n\
         ptxas info    : Used 168 registers, used 3 barriers, 4096 bytes smem, 380 bytes cmem[0]\n\
         ptxas info    : Compile time = 3.1 ms\n",
    );
    let usage = Usage {
        registers: 168,
        stack_bytes: 48,
        spill_store_bytes: 36,
        spill_load_bytes: 40,
        barriers: 3,
        shared_bytes: 4096,
    };
    assert_eq!(
        report.functions.into_iter().collect::<Vec<_>>(),
        [("k".to_owned(), usage)]
    );
    assert_eq!(report.warnings.len(), 1);
    assert!(report.warnings[0].contains("C7510"));
}

#[test]
fn faults_below_emission_say_what_mlir_said() {
    let mlir = MlirContext::new();
    let outcome = mlir.parse("func.func @f() { return %x : f32 }").map(drop);
    let error = outcome.expect_err("%x is undefined");
    assert_eq!(error.stage, "reading MLIR");
    assert!(error.message.contains("undeclared SSA value"), "{error}");

    // A dialect that the pipeline for GPUs does not convert.
    let mut module = mlir
        .parse("func.func @f(%m: memref<4xf32>) { return }")
        .expect("sound");
    let outcome = mlir
        .lower(&mut module, Lowering::Nvptx)
        .and_then(|()| llvm::ptx(&mlir, &module, &SM_90A).map(drop));
    let error = outcome.expect_err("memref stays");
    assert!(
        error.to_string().starts_with("fault in the compiler, in "),
        "{error}"
    );
}
