//! The MLIR context of one compilation, and the way from the dialects that emission writes down to the `llvm` dialect.
//!
//! Needs: nothing. Keeps: only the dialects and passes in use are registered, which halves the binary and the start-up; what MLIR
//! has to say goes into the error instead of to stderr; one context is one thread, so kernels compile in parallel, each in its own.

use std::fmt;
use std::sync::{Arc, Mutex, Once, PoisonError};

use melior::Context;
use melior::dialect::DialectRegistry;
use melior::ir::Module;
use melior::ir::operation::OperationLike;
use melior::pass::PassManager;
use melior::utility::{parse_pass_pipeline, register_all_llvm_translations};
use mlir_sys::{
    MlirDialectHandle, mlirDialectHandleInsertDialect, mlirGetDialectHandle__arith__,
    mlirGetDialectHandle__cf__, mlirGetDialectHandle__func__, mlirGetDialectHandle__gpu__,
    mlirGetDialectHandle__llvm__, mlirGetDialectHandle__math__, mlirGetDialectHandle__memref__,
    mlirGetDialectHandle__nvvm__, mlirGetDialectHandle__scf__, mlirGetDialectHandle__ub__,
    mlirGetDialectHandle__vector__, mlirGetDialectHandle__x86vector__,
    mlirRegisterConversionArithToLLVMConversionPass,
    mlirRegisterConversionConvertControlFlowToLLVMPass,
    mlirRegisterConversionConvertFuncToLLVMPass, mlirRegisterConversionConvertMathToLLVMPass,
    mlirRegisterConversionConvertNVVMToLLVMPass, mlirRegisterConversionConvertVectorToLLVMPass,
    mlirRegisterConversionFinalizeMemRefToLLVMConversionPass,
    mlirRegisterConversionReconcileUnrealizedCastsPass, mlirRegisterConversionSCFToControlFlowPass,
    mlirRegisterConversionUBToLLVMConversionPass, mlirRegisterMemRefExpandStridedMetadataPass,
    mlirRegisterTransformsCSE, mlirRegisterTransformsCanonicalizer,
    mlirRegisterTransformsLoopInvariantCodeMotion,
};

/// A failure below the tile IR. The program was checked before, so this is a fault of the compiler, and says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodegenError {
    /// What was being done: `lowering to LLVM`, `optimisation`.
    pub stage: &'static str,
    pub message: String,
}

impl fmt::Display for CodegenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "fault in the compiler, in {}: {}",
            self.stage, self.message
        )
    }
}

impl std::error::Error for CodegenError {}

/// The last step of emission: which dialects are left, and so which conversions run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lowering {
    /// `vector`, `memref`, `x86vector`, `func`, `scf`, `arith`, `math` and `llvm`.
    Cpu,
    /// `nvvm`, `scf`, `arith`, `math`, `vector` and `llvm`, one `llvm.func` per kernel.
    Nvptx,
}

impl Lowering {
    fn pipeline(self) -> &'static str {
        match self {
            Lowering::Cpu => {
                "builtin.module(canonicalize,cse,loop-invariant-code-motion,convert-scf-to-cf,\
                 convert-vector-to-llvm{enable-x86vector=true},convert-math-to-llvm,convert-cf-to-llvm,\
                 convert-arith-to-llvm,expand-strided-metadata,convert-arith-to-llvm,finalize-memref-to-llvm,\
                 convert-func-to-llvm,convert-ub-to-llvm,reconcile-unrealized-casts)"
            }
            Lowering::Nvptx => {
                "builtin.module(canonicalize,cse,convert-scf-to-cf,convert-vector-to-llvm,convert-math-to-llvm,\
                 convert-cf-to-llvm,convert-arith-to-llvm,convert-nvvm-to-llvm,convert-ub-to-llvm,\
                 reconcile-unrealized-casts)"
            }
        }
    }
}

/// An MLIR context that knows the dialects in use and keeps MLIR's messages.
pub struct MlirContext {
    context: Context,
    messages: Arc<Mutex<Vec<String>>>,
}

impl MlirContext {
    pub fn new() -> Self {
        register_passes();
        let registry = DialectRegistry::new();
        for dialect in dialects() {
            // SAFETY: both are valid; the registry copies what it needs.
            unsafe { mlirDialectHandleInsertDialect(dialect, registry.to_raw()) };
        }
        let context = Context::new_with_registry(&registry, false);
        context.load_all_available_dialects();
        // After loading: this registers further dialects, which then stay unloaded.
        register_all_llvm_translations(&context);
        let messages = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&messages);
        context.attach_diagnostic_handler(move |diagnostic| {
            let place = diagnostic.location().to_string();
            lock(&sink).push(format!("{diagnostic} at {place}"));
            true
        });
        Self { context, messages }
    }

    /// What ops, types and attributes are built in.
    pub fn melior(&self) -> &Context {
        &self.context
    }

    /// Reads a module from its text.
    ///
    /// # Errors
    /// MLIR's messages.
    pub fn parse(&self, text: &str) -> Result<Module<'_>, CodegenError> {
        let module = Module::parse(&self.context, text);
        module.ok_or_else(|| self.error("reading MLIR", "the text is not a module"))
    }

    /// Brings a module down to the `llvm` dialect. The module is checked before, and what LLVM makes of it in `target::llvm`.
    ///
    /// # Errors
    /// MLIR's messages: an op that is malformed, or that no conversion handles.
    pub fn lower(&self, module: &mut Module<'_>, lowering: Lowering) -> Result<(), CodegenError> {
        self.verify(module)?;
        let passes = PassManager::new(&self.context);
        parse_pass_pipeline(passes.as_operation_pass_manager(), lowering.pipeline())
            .map_err(|error| self.error("lowering to LLVM", &error.to_string()))?;
        passes.enable_verifier(false);
        passes
            .run(module)
            .map_err(|error| self.error("lowering to LLVM", &error.to_string()))
    }

    /// Checks every op of a module.
    ///
    /// # Errors
    /// MLIR's messages.
    pub fn verify(&self, module: &Module<'_>) -> Result<(), CodegenError> {
        if module.as_operation().verify() {
            Ok(())
        } else {
            Err(self.error("MLIR verification", "the module is malformed"))
        }
    }

    /// An error with what MLIR said since the last one, or `otherwise` if it said nothing.
    pub(crate) fn error(&self, stage: &'static str, otherwise: &str) -> CodegenError {
        let messages = std::mem::take(&mut *lock(&self.messages));
        let message = if messages.is_empty() {
            otherwise.to_owned()
        } else {
            messages.join("; ")
        };
        CodegenError { stage, message }
    }
}

impl Default for MlirContext {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MlirContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MlirContext").finish_non_exhaustive()
    }
}

fn dialects() -> [MlirDialectHandle; 12] {
    // SAFETY: each returns a constant.
    unsafe {
        [
            mlirGetDialectHandle__arith__(),
            mlirGetDialectHandle__cf__(),
            mlirGetDialectHandle__func__(),
            mlirGetDialectHandle__gpu__(),
            mlirGetDialectHandle__llvm__(),
            mlirGetDialectHandle__math__(),
            mlirGetDialectHandle__memref__(),
            mlirGetDialectHandle__nvvm__(),
            mlirGetDialectHandle__scf__(),
            mlirGetDialectHandle__ub__(),
            mlirGetDialectHandle__vector__(),
            mlirGetDialectHandle__x86vector__(),
        ]
    }
}

/// The passes that [`Lowering::pipeline`] names. MLIR's list of passes is one for the process.
fn register_passes() {
    static ONCE: Once = Once::new();
    // SAFETY: once, so no pass is registered twice, and no other thread reads the list meanwhile.
    ONCE.call_once(|| unsafe {
        mlirRegisterTransformsCanonicalizer();
        mlirRegisterTransformsCSE();
        mlirRegisterTransformsLoopInvariantCodeMotion();
        mlirRegisterConversionSCFToControlFlowPass();
        mlirRegisterConversionConvertVectorToLLVMPass();
        mlirRegisterConversionConvertMathToLLVMPass();
        mlirRegisterConversionConvertControlFlowToLLVMPass();
        mlirRegisterConversionArithToLLVMConversionPass();
        mlirRegisterMemRefExpandStridedMetadataPass();
        mlirRegisterConversionFinalizeMemRefToLLVMConversionPass();
        mlirRegisterConversionConvertFuncToLLVMPass();
        mlirRegisterConversionConvertNVVMToLLVMPass();
        mlirRegisterConversionUBToLLVMConversionPass();
        mlirRegisterConversionReconcileUnrealizedCastsPass();
    });
}

fn lock(messages: &Mutex<Vec<String>>) -> std::sync::MutexGuard<'_, Vec<String>> {
    messages.lock().unwrap_or_else(PoisonError::into_inner)
}
