//! Compiles a tile kernel for this machine and runs it on buffers.

use std::collections::HashMap;
use std::sync::Arc;
use tessera_artifact::{CpuVariant, DType};
use tessera_compiler::mlir::{Lowering, MlirContext, cpu};
use tessera_compiler::target::llvm;
use tessera_compiler::tile::ir::{Kernel, ParamKind};
use tessera_device::cpu::loader::CodeObject;

/// A tensor argument: bytes in row-major order, packed.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub bytes: Vec<u8>,
}

impl Array {
    pub fn zeros(dtype: DType, shape: &[u64]) -> Array {
        let count: u64 = shape.iter().product();
        Array {
            dtype,
            shape: shape.to_vec(),
            bytes: vec![0; dtype.bytes_for(count) as usize],
        }
    }

    pub fn f32(shape: &[u64], f: impl FnMut(usize) -> f32) -> Array {
        let count: u64 = shape.iter().product();
        let bytes = (0..count as usize)
            .map(f)
            .flat_map(f32::to_le_bytes)
            .collect();
        Array {
            dtype: DType::F32,
            shape: shape.to_vec(),
            bytes,
        }
    }

    pub fn i32(shape: &[u64], f: impl FnMut(usize) -> i32) -> Array {
        let count: u64 = shape.iter().product();
        let bytes = (0..count as usize)
            .map(f)
            .flat_map(i32::to_le_bytes)
            .collect();
        Array {
            dtype: DType::I32,
            shape: shape.to_vec(),
            bytes,
        }
    }

    pub fn as_f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, DType::F32);
        self.bytes
            .chunks_exact(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    }

    pub fn as_i32(&self) -> Vec<i32> {
        self.bytes
            .chunks_exact(4)
            .map(|c| i32::from_le_bytes(c.try_into().unwrap()))
            .collect()
    }
}

/// An argument of a launch.
pub enum Arg<'a> {
    Tensor(&'a mut Array),
    /// The bits of a scalar, or the value of an `index`.
    Scalar(u64),
}

pub struct Compiled {
    object: Arc<CodeObject>,
    symbol: String,
    scratch_bytes: u64,
    pub traps: Vec<String>,
}

pub fn compile(kernel: &Kernel, variant: CpuVariant) -> Compiled {
    let mlir = MlirContext::new();
    let mut emitted = match cpu::emit(mlir.melior(), kernel, variant) {
        Ok(emitted) => emitted,
        Err(d) => panic!("{}: {} {:?}", d.code, d.message, d.notes),
    };
    if std::env::var("SHOW").is_ok() {
        use melior::ir::operation::OperationLike;
        let _ = emitted.module.as_operation().verify();
        println!("{}", emitted.module.as_operation());
    }
    mlir.lower(&mut emitted.module, Lowering::Cpu)
        .unwrap_or_else(|e| panic!("{e}"));
    if std::env::var("ASM").is_ok() {
        println!(
            "{}",
            llvm::cpu_assembly(&mlir, &emitted.module, variant).unwrap()
        );
    }
    let object =
        llvm::cpu_object(&mlir, &emitted.module, variant).unwrap_or_else(|e| panic!("{e}"));
    Compiled {
        object: Arc::new(CodeObject::load(&object).unwrap_or_else(|e| panic!("{e}"))),
        symbol: emitted.symbol,
        scratch_bytes: emitted.scratch_bytes,
        traps: emitted.traps.into_iter().map(|t| t.message).collect(),
    }
}

impl Compiled {
    /// Runs the whole grid on this thread; gives the message of the trap that stopped it, if one did.
    pub fn run(&self, kernel: &Kernel, args: &mut [Arg<'_>]) -> Option<String> {
        let mut words: Vec<u64> = Vec::new();
        let mut dims: HashMap<String, i64> = HashMap::new();
        for (param, arg) in kernel.params.iter().zip(args.iter_mut()) {
            match (&param.kind, arg) {
                (ParamKind::Tensor(t), Arg::Tensor(array)) => {
                    assert_eq!(t.dtype, array.dtype, "{}", param.name);
                    words.push(array.bytes.as_mut_ptr() as u64);
                    let mut stride = 1;
                    let mut strides = vec![0; array.shape.len()];
                    for axis in (0..array.shape.len()).rev() {
                        strides[axis] = stride;
                        stride *= array.shape[axis];
                    }
                    words.extend(strides);
                    for (extent, &n) in t.shape.iter().zip(&array.shape) {
                        if let tessera_artifact::HostExpr::Dim(name) = extent {
                            let old = dims.insert(name.clone(), n as i64);
                            assert!(old.is_none_or(|o| o == n as i64), "dim {name}");
                        }
                    }
                }
                (ParamKind::Index, Arg::Scalar(bits)) => {
                    dims.insert(param.name.clone(), *bits as i64);
                    words.push(*bits);
                }
                (_, Arg::Scalar(bits)) => words.push(*bits),
                _ => panic!("argument of another kind for {}", param.name),
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
        let mut record = [0u64; 2];
        words.push(record.as_mut_ptr() as u64);
        let mut scratch = vec![0xa5u8; self.scratch_bytes as usize + 64];
        let aligned = scratch.as_mut_ptr().align_offset(64);
        let code = self.object.kernel(&self.symbol).unwrap();
        // SAFETY: the words are laid out as the launch ABI says, from arrays that live through the call.
        unsafe { code.call(&words, scratch.as_mut_ptr().add(aligned), 0, ctas) };
        let trap = (record[0] as usize).checked_sub(1)?;
        Some(self.traps[trap].clone())
    }
}
