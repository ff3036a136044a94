//! Compiles a tile kernel for this machine and runs it on arguments, beside the interpreter.

use std::collections::HashMap;
use std::sync::Arc;
use tessera_artifact::{CpuVariant, DType, HostExpr};
use tessera_compiler::mlir::{Lowering, MlirContext, cpu};
use tessera_compiler::target::llvm;
use tessera_compiler::tile::interp::{self, Arg, Args, Buffer, ErrorKind, Options};
use tessera_compiler::tile::ir::{Kernel, ParamKind};
use tessera_compiler::tile::{print, verify};
use tessera_device::cpu::{features, loader::CodeObject};

/// The best variant that this machine runs.
pub fn variant() -> CpuVariant {
    features::choose(CpuVariant::ALL, None).expect("the machine has AVX2")
}

pub struct Compiled {
    object: Arc<CodeObject>,
    symbol: String,
    scratch_bytes: u64,
    pub traps: Vec<String>,
}

pub fn compile(kernel: &Kernel, variant: CpuVariant) -> Compiled {
    let mlir = MlirContext::new();
    let (emitted, object) = object(&mlir, kernel, variant);
    let object = match CodeObject::load(&object) {
        Ok(object) => Arc::new(object),
        Err(e) => panic!(
            "the loader refuses this kernel's code: {e}\n{}",
            print::print(kernel)
        ),
    };
    Compiled {
        object,
        symbol: emitted.symbol,
        scratch_bytes: emitted.scratch_bytes,
        traps: emitted.traps.into_iter().map(|t| t.message).collect(),
    }
}

pub fn object<'c>(
    mlir: &'c MlirContext,
    kernel: &Kernel,
    variant: CpuVariant,
) -> (cpu::Emitted<'c>, Vec<u8>) {
    if let Err(broken) = verify::after("the test", kernel) {
        panic!("{broken}");
    }
    let mut emitted = match cpu::emit(mlir.melior(), kernel, variant) {
        Ok(emitted) => emitted,
        Err(d) => panic!(
            "{}: {} {:?}\n{}",
            d.code,
            d.message,
            d.notes,
            print::print(kernel)
        ),
    };
    if std::env::var("SHOW").is_ok() {
        println!("{}", emitted.module.as_operation());
    }
    let fail = |what: String| -> String { format!("{what}\n{}", print::print(kernel)) };
    mlir.lower(&mut emitted.module, Lowering::Cpu)
        .unwrap_or_else(|e| panic!("{}", fail(e.to_string())));
    if std::env::var("ASM").is_ok() {
        println!(
            "{}",
            llvm::cpu_assembly(mlir, &emitted.module, variant)
                .unwrap_or_else(|e| panic!("{}", fail(e.to_string())))
        );
    }
    let object = llvm::cpu_object(mlir, &emitted.module, variant)
        .unwrap_or_else(|e| panic!("{}", fail(e.to_string())));
    (emitted, object)
}

/// What a launch of the whole grid passes: the words, and how many CTAs there are. `Absent` arguments are allocated.
fn words(kernel: &Kernel, args: &mut Args) -> (Vec<u64>, i64) {
    let mut words: Vec<u64> = Vec::new();
    let mut dims: HashMap<String, i64> = HashMap::new();
    for (param, arg) in kernel.params.iter().zip(&mut args.0) {
        match (&param.kind, arg) {
            (ParamKind::Tensor(t), Arg::Tensor(buffer)) => {
                assert_eq!(t.dtype, buffer.dtype, "{}", param.name);
                let offset = buffer.dtype.bytes_for(buffer.offset);
                words.push(buffer.bytes.as_mut_ptr() as u64 + offset);
                words.extend(buffer.strides.iter().map(|&s| s as u64));
                for (extent, &n) in t.shape.iter().zip(&buffer.shape) {
                    if let HostExpr::Dim(name) = extent {
                        dims.insert(name.clone(), n as i64);
                    }
                }
            }
            (ParamKind::Index, Arg::Index(i)) => {
                dims.insert(param.name.clone(), *i);
                words.push(*i as u64);
            }
            (_, Arg::Scalar(bits)) => words.push(*bits),
            (_, arg) => panic!("{arg:?} for `{}`", param.name),
        }
    }
    for dim in kernel.dims.iter().filter(|d| d.scalar.is_none()) {
        words.push(dims[&dim.name] as u64);
    }
    let get = |name: &str| dims.get(name).copied();
    let mut ctas = 1;
    for axis in 0..3 {
        let extent = kernel.launch.grid.get(axis);
        let extent = extent.map_or(1, |e| e.eval_int(&get, &|_| None).unwrap());
        words.push(extent as u64);
        ctas *= extent;
    }
    (words, ctas)
}

impl Compiled {
    /// Runs the whole grid on this thread; gives the message of the trap that stopped it, if one did.
    pub fn run(&self, kernel: &Kernel, args: &mut Args) -> Option<String> {
        let (mut words, ctas) = words(kernel, args);
        let mut record = [0u64; 2];
        words.push(record.as_mut_ptr() as u64);
        let mut scratch = vec![0xa5u8; self.scratch_bytes as usize + 64];
        let aligned = scratch.as_mut_ptr().align_offset(64);
        let code = self.object.kernel(&self.symbol).unwrap();
        // SAFETY: the words are laid out as the launch ABI says, from buffers that live through the call.
        unsafe { code.call(&words, scratch.as_mut_ptr().add(aligned), 0, ctas) };
        let trap = (record[0] as usize).checked_sub(1)?;
        Some(self.traps[trap].clone())
    }
}

/// The compiled kernel gives the interpreter's bits, or stops where the interpreter reports a failed check.
pub fn agree(kernel: &Kernel, args: &Args, what: &str) {
    agree_compiled(kernel, &compile(kernel, variant()), args, what);
}

pub fn agree_compiled(kernel: &Kernel, code: &Compiled, args: &Args, what: &str) {
    let mut expected = args.clone();
    let report = interp::run(kernel, &mut expected, &Options::default());
    let mut got = args.clone();
    let trap = code.run(kernel, &mut got);
    match report {
        Ok(_) => assert_eq!(trap, None, "{what}: trapped"),
        Err(e) => match e.kind {
            ErrorKind::Assert(_) | ErrorKind::OutOfBounds { .. } => {
                assert!(trap.is_some(), "{what}: the interpreter stops: {}", e.kind);
                return;
            }
            kind => panic!("{what}: {kind}\n{}", print::print(kernel)),
        },
    }
    for (param, (e, g)) in kernel.params.iter().zip(expected.0.iter().zip(&got.0)) {
        if let (Arg::Tensor(e), Arg::Tensor(g)) = (e, g) {
            compare(e, g, &format!("{what}: `{}`", param.name), kernel);
        }
    }
}

fn compare(expected: &Buffer, got: &Buffer, what: &str, kernel: &Kernel) {
    let (e, g) = (expected.canonical_bits(), got.canonical_bits());
    if e == g {
        return;
    }
    let bad: Vec<_> = (0..e.len()).filter(|&i| e[i] != g[i]).collect();
    let shown: Vec<_> = bad
        .iter()
        .take(8)
        .map(|&i| format!("[{i}] {:#x} expected, {:#x} found", e[i], g[i]))
        .collect();
    panic!(
        "{what}: {} of {} differ: {}\n{}",
        bad.len(),
        e.len(),
        shown.join(", "),
        print::print(kernel)
    );
}

/// Values of every kind: small and large numbers, zeros of both signs, subnormals, infinities, NaN, codes of all sorts.
pub fn noise(dtype: DType, shape: &[u64], seed: u64) -> Buffer {
    let mut buffer = Buffer::zeros(dtype, shape);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let count: u64 = shape.iter().product();
    if dtype.is_float() && dtype.bits() > 8 {
        let width = (dtype.bits() / 8) as usize;
        for i in 0..count as usize {
            let r = next();
            let uniform = (r >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
            let x = match r % 16 {
                0 => [
                    0.0,
                    -0.0,
                    f64::INFINITY,
                    f64::NEG_INFINITY,
                    f64::NAN,
                    1.0,
                    -1.0,
                    0.5,
                ][(r >> 8) as usize % 8],
                1 => uniform * 1e30,
                2 => uniform * 1e-30,
                3 => uniform * 1e-38,
                4 => (uniform * 100.0).round(),
                _ => uniform * 4.0,
            };
            let bits = tessera_artifact::numeric::from_f64(x, dtype);
            buffer.bytes[i * width..][..width].copy_from_slice(&bits.to_le_bytes()[..width]);
        }
    } else {
        for byte in buffer.bytes.iter_mut() {
            *byte = (next() >> 20) as u8;
        }
        if dtype == DType::Bool {
            buffer.bytes.iter_mut().for_each(|b| *b &= 1);
        }
    }
    buffer
}
