//! Compiles a tile kernel to PTX and looks at what ptxas says of it.

use std::path::Path;
use tessera_compiler::diag::Diagnostic;
use tessera_compiler::mlir::{Lowering, MlirContext, gpu};
use tessera_compiler::schedule::{Network, Plan};
use tessera_compiler::target::llvm;
use tessera_compiler::target::nvptx::SM_90A;
use tessera_compiler::target::ptxas::{Ptxas, Usage};
use tessera_compiler::tile::ir::Kernel;

pub struct Compiled {
    pub ptx: String,
    pub symbol: String,
    pub threads: u32,
    pub shared_bytes: u32,
    pub scratch_bytes: u64,
    pub barriers: usize,
}

pub fn compile(kernel: &Kernel) -> Result<Compiled, Box<Diagnostic>> {
    compile_as_planned(kernel, None)
}

pub fn compile_network(network: &Network) -> Result<Compiled, Box<Diagnostic>> {
    compile_as_planned(&network.kernel, Some(&network.plan))
}

fn compile_as_planned(kernel: &Kernel, plan: Option<&Plan>) -> Result<Compiled, Box<Diagnostic>> {
    let mlir = MlirContext::new();
    let mut emitted = gpu::emit(mlir.melior(), kernel, plan, &SM_90A)?;
    mlir.lower(&mut emitted.module, Lowering::Nvptx)
        .unwrap_or_else(|e| panic!("{e}"));
    let ptx = llvm::ptx(&mlir, &emitted.module, &SM_90A).unwrap_or_else(|e| panic!("{e}"));
    if std::env::var("SHOW_PTX").is_ok() {
        println!("{ptx}");
    }
    Ok(Compiled {
        ptx,
        symbol: emitted.symbol,
        threads: emitted.threads,
        shared_bytes: emitted.shared_bytes,
        scratch_bytes: emitted.scratch_bytes,
        barriers: emitted.barriers,
    })
}

impl Compiled {
    /// What ptxas says; nothing where there is no ptxas (`make setup` installs one).
    pub fn assemble(&self) -> Option<Usage> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let ptxas = Ptxas::find(here, std::env::var_os("PATH").as_deref())?;
        let assembled = ptxas
            .assemble(&self.ptx, SM_90A.arch)
            .unwrap_or_else(|e| panic!("{e}\n{}", self.ptx));
        assert_eq!(assembled.report.warnings, Vec::<String>::new());
        Some(assembled.report.functions[&self.symbol])
    }

    /// Assembled, with nothing in memory that the kernel did not put there.
    pub fn assemble_without_spills(&self) {
        if let Some(usage) = self.assemble() {
            let spills = usage.spill_store_bytes + usage.spill_load_bytes + usage.stack_bytes;
            assert_eq!(spills, 0, "{}: {usage:?}", self.symbol);
        }
    }

    pub fn count(&self, what: &str) -> usize {
        self.ptx.matches(what).count()
    }
}
