//! From MLIR's `llvm` dialect through LLVM to machine code: a relocatable object for a CPU variant, or PTX text.
//!
//! Needs: a module that `MlirContext::lower` brought down. Keeps: the same module gives the same bytes on every machine (no host
//! detection); IEEE arithmetic as written: no op is reassociated, and no multiplication and addition become one fused op, which the
//! promise of equal bits rests on.

use std::sync::Once;

use inkwell::OptimizationLevel;
use inkwell::context::{AsContextRef, Context};
use inkwell::module::Module as LlvmModule;
use inkwell::passes::PassBuilderOptions;
use inkwell::targets::{
    CodeModel, FileType, InitializationConfig, RelocMode, Target, TargetMachine, TargetTriple,
};
use melior::ir::Module;
use mlir_sys::mlirTranslateModuleToLLVMIR;
use tessera_artifact::CpuVariant;

use super::cpu::CpuFacts;
use super::nvptx::GpuFacts;
use crate::mlir::{CodegenError, MlirContext};

/// A relocatable ELF object of position-independent code, which the runtime's loader places in memory.
///
/// # Errors
/// [`CodegenError`]: the module holds something that has no translation, or LLVM found it malformed.
pub fn cpu_object(
    mlir: &MlirContext,
    module: &Module<'_>,
    variant: CpuVariant,
) -> Result<Vec<u8>, CodegenError> {
    generate(mlir, module, &cpu_machine(variant)?, FileType::Object)
}

/// The same code as [`cpu_object`] as assembly, for people.
///
/// # Errors
/// As [`cpu_object`].
pub fn cpu_assembly(
    mlir: &MlirContext,
    module: &Module<'_>,
    variant: CpuVariant,
) -> Result<String, CodegenError> {
    generate(mlir, module, &cpu_machine(variant)?, FileType::Assembly).map(text)
}

/// PTX text.
///
/// # Errors
/// As [`cpu_object`].
pub fn ptx(
    mlir: &MlirContext,
    module: &Module<'_>,
    gpu: &GpuFacts,
) -> Result<String, CodegenError> {
    generate(mlir, module, &gpu_machine(gpu)?, FileType::Assembly).map(text)
}

fn generate(
    mlir: &MlirContext,
    module: &Module<'_>,
    machine: &TargetMachine,
    kind: FileType,
) -> Result<Vec<u8>, CodegenError> {
    let context = Context::create();
    let module = translate(mlir, module, &context)?;
    module.set_triple(&machine.get_triple());
    module.set_data_layout(&machine.get_target_data().get_data_layout());
    module
        .verify()
        .map_err(|e| error("LLVM verification", &e.to_string()))?;
    module
        .run_passes("default<O3>", machine, PassBuilderOptions::create())
        .map_err(|e| error("optimisation", &e.to_string()))?;
    let code = machine
        .write_to_memory_buffer(&module, kind)
        .map_err(|e| error("code generation", &e.to_string()))?;
    Ok(code.as_slice().to_vec())
}

/// The LLVM module lives in inkwell's context, so inkwell owns it.
fn translate<'c>(
    mlir: &MlirContext,
    module: &Module<'_>,
    context: &'c Context,
) -> Result<LlvmModule<'c>, CodegenError> {
    // SAFETY: both are valid; mlir-sys and inkwell name the same LLVM type, there being one LLVM in the program.
    let raw = unsafe {
        mlirTranslateModuleToLLVMIR(module.as_operation().to_raw(), context.as_ctx_ref().cast())
    };
    if raw.is_null() {
        return Err(mlir.error("translation to LLVM", "an op has no translation"));
    }
    // SAFETY: just made in `context`, owned by nobody else.
    Ok(unsafe { LlvmModule::new(raw.cast()) })
}

fn cpu_machine(variant: CpuVariant) -> Result<TargetMachine, CodegenError> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| Target::initialize_x86(&InitializationConfig::default()));
    let facts = CpuFacts::of(variant);
    machine(
        "x86_64-unknown-linux-gnu",
        facts.llvm_cpu,
        facts.llvm_features,
        RelocMode::PIC,
    )
}

fn gpu_machine(gpu: &GpuFacts) -> Result<TargetMachine, CodegenError> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| Target::initialize_nvptx(&InitializationConfig::default()));
    machine(
        "nvptx64-nvidia-cuda",
        gpu.arch,
        gpu.llvm_features,
        RelocMode::Default,
    )
}

/// LLVM's default is to fuse only what asks for it, and nothing that we emit asks.
fn machine(
    triple: &str,
    cpu: &str,
    features: &str,
    relocations: RelocMode,
) -> Result<TargetMachine, CodegenError> {
    let triple = TargetTriple::create(triple);
    let target =
        Target::from_triple(&triple).map_err(|e| error("target set-up", &e.to_string()))?;
    target
        .create_target_machine(
            &triple,
            cpu,
            features,
            OptimizationLevel::Aggressive,
            relocations,
            CodeModel::Default,
        )
        .ok_or_else(|| {
            error(
                "target set-up",
                &format!("LLVM has no `{cpu}` for {triple}"),
            )
        })
}

fn error(stage: &'static str, message: &str) -> CodegenError {
    CodegenError {
        stage,
        message: message.to_owned(),
    }
}

/// LLVM writes assembly in ASCII, but for names, which come from identifiers of ours.
fn text(bytes: Vec<u8>) -> String {
    // Assembly comes with a closing zero byte, which is not part of the text.
    String::from_utf8_lossy(&bytes)
        .trim_end_matches('\0')
        .to_owned()
}

/// The version of the LLVM that is linked in: `22.1.8`.
pub fn version() -> String {
    let (major, minor, patch) = inkwell::support::get_llvm_version();
    format!("{major}.{minor}.{patch}")
}
