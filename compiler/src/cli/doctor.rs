//! `tlc doctor`: what this machine has and lacks. Each check tries the thing itself rather than ask what is installed.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use tessera_device::cpu::features;
use tessera_device::cuda;

use super::MessageFormat;
use crate::target::nvptx::SM_90A;
use crate::target::ptxas::Ptxas;

/// One thing that was looked at.
struct Check {
    what: &'static str,
    /// What it is for, said where it is missing.
    purpose: &'static str,
    /// Without it, tlc cannot do its work.
    needed: bool,
    /// What was found, or what is missing.
    outcome: Result<String, String>,
    remedy: &'static str,
}

pub(super) fn run(format: MessageFormat) -> ExitCode {
    let checks = [llvm(), cpu(), prefix(), ptxas(), cuda()];
    super::print(&render(&checks, format));
    if checks
        .iter()
        .any(|check| check.needed && check.outcome.is_err())
    {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Compiles a kernel, loads it and runs it.
fn llvm() -> Check {
    Check {
        what: "code generation",
        purpose: "to compile kernels and to run them here",
        needed: true,
        outcome: probe(),
        remedy: "if the machine forbids executable memory, allow it for this program; otherwise this is a fault in tlc, please report it",
    }
}

#[cfg(feature = "llvm")]
fn probe() -> Result<String, String> {
    use std::sync::Arc;

    use tessera_artifact::CpuVariant;
    use tessera_device::cpu::loader::CodeObject;

    use crate::mlir::{Lowering, MlirContext};
    use crate::target::llvm;

    const STORE_42: &str = "
func.func @probe(%args: !llvm.ptr, %scratch: !llvm.ptr, %cta_begin: i64, %cta_end: i64) {
    %place = llvm.load %args : !llvm.ptr -> !llvm.ptr
    %value = llvm.mlir.constant(42 : i64) : i64
    llvm.store %value, %place : i64, !llvm.ptr
    return
}";
    let mlir = MlirContext::new();
    let variant = features::best().unwrap_or(CpuVariant::Avx2);
    let object = mlir
        .parse(STORE_42)
        .and_then(|mut module| {
            mlir.lower(&mut module, Lowering::Cpu)?;
            llvm::cpu_object(&mlir, &module, variant)
        })
        .map_err(|e| e.to_string())?;
    let code = CodeObject::load(&object).map_err(|e| e.to_string())?;
    let kernel = Arc::new(code).kernel("probe").map_err(|e| e.to_string())?;
    let version = llvm::version();
    if features::best().is_none() {
        return Ok(format!("LLVM {version}; a kernel compiles and loads"));
    }
    let mut value = 0i64;
    // SAFETY: the kernel above writes one word, to `value`, and this CPU runs the variant that it was compiled for.
    unsafe { kernel.call(&[&raw mut value as u64], std::ptr::null_mut(), 0, 1) };
    if value == 42 {
        Ok(format!("LLVM {version}; a kernel compiles, loads and runs"))
    } else {
        Err(format!("a kernel ran and stored {value} instead of 42"))
    }
}

#[cfg(not(feature = "llvm"))]
fn probe() -> Result<String, String> {
    Err("this tlc was built without LLVM".to_owned())
}

fn cpu() -> Check {
    let outcome = match features::best() {
        Some(best) => Ok(format!("runs {} code", features::name(best))),
        None => Err("lacks AVX2 and its companions (x86-64-v3)".to_owned()),
    };
    Check {
        what: "CPU",
        purpose: "to run compiled kernels here",
        needed: true,
        outcome,
        remedy: "use an x86-64 machine from 2015 or later, and a virtual machine that passes AVX2 on",
    }
}

/// LLVM is linked into tlc; the packages matter to whoever builds it again.
fn prefix() -> Check {
    // The one place where it is set is `.cargo/config.toml`.
    let prefix = option_env!("MLIR_SYS_220_PREFIX").unwrap_or("/usr/lib/llvm-22");
    let parts = [
        "bin/llvm-config",
        "lib/libMLIRIR.a",
        "lib/libLLVMCore.a",
        "include/mlir-c/IR.h",
    ];
    let missing: Vec<&str> = parts
        .into_iter()
        .filter(|part| !Path::new(prefix).join(part).exists())
        .collect();
    Check {
        what: "LLVM and MLIR 22",
        purpose: "only to build tlc itself",
        needed: false,
        outcome: if missing.is_empty() {
            Ok(format!("development files in {prefix}"))
        } else {
            Err(format!("{prefix} has no {}", missing.join(", ")))
        },
        remedy: "make setup",
    }
}

fn ptxas() -> Check {
    let here = std::env::current_dir().unwrap_or_default();
    let path = std::env::var_os("PATH");
    let outcome = match Ptxas::find(&here, path.as_deref()) {
        None => Err("neither in .venv here or above nor on PATH".to_owned()),
        Some(ptxas) => {
            let program = ptxas.program().display();
            let probe = format!(
                ".version 8.6\n.target {}\n.address_size 64\n.visible .entry probe() {{ ret; }}\n",
                SM_90A.arch
            );
            match ptxas.assemble(&probe, SM_90A.arch) {
                Ok(_) => Ok(format!(
                    "{} at {program} assembles for {}",
                    ptxas.version().unwrap_or_else(|| "?".to_owned()),
                    SM_90A.arch
                )),
                Err(error) => Err(format!("{program}: {error}")),
            }
        }
    };
    Check {
        what: "ptxas",
        purpose: "only to check PTX without a GPU, and to assemble it ahead of time",
        needed: false,
        outcome,
        remedy: "make setup, or put the ptxas of a CUDA toolkit, 12.8 or newer, on PATH",
    }
}

fn cuda() -> Check {
    let outcome = cuda::find().map_err(|e| e.to_string()).map(|driver| {
        let gpus: Vec<String> = driver
            .gpus
            .iter()
            .map(|gpu| {
                format!(
                    "{} (sm_{}{})",
                    gpu.name, gpu.compute_capability.0, gpu.compute_capability.1
                )
            })
            .collect();
        format!(
            "CUDA {}.{}: {}",
            driver.cuda.0,
            driver.cuda.1,
            gpus.join(", ")
        )
    });
    Check {
        what: "CUDA driver",
        purpose: "only to run kernels on a GPU",
        needed: false,
        outcome,
        remedy: "on a machine with an NVIDIA GPU, install its driver",
    }
}

fn render(checks: &[Check], format: MessageFormat) -> String {
    let mut text = String::new();
    for check in checks {
        let (state, found) = match &check.outcome {
            Ok(found) => ("ok", found),
            Err(missing) if check.needed => ("missing", missing),
            Err(missing) => ("absent", missing),
        };
        // Writing to a string does not fail.
        let _ = match (format, check.outcome.is_ok()) {
            (MessageFormat::Json, ok) => {
                let object = json!({
                    "check": check.what, "state": state, "needed": check.needed, "found": found,
                    "purpose": check.purpose, "remedy": if ok { None } else { Some(check.remedy) },
                });
                writeln!(text, "{object}")
            }
            (MessageFormat::Short, _) | (MessageFormat::Human, true) => {
                writeln!(text, "{state:<8} {:<17} {found}", check.what)
            }
            (MessageFormat::Human, false) => writeln!(
                text,
                "{state:<8} {:<17} {found}\n{:26} = note: needed {}\n{:26} = help: {}",
                check.what, "", check.purpose, "", check.remedy
            ),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(needed: bool, outcome: Result<&str, &str>) -> Check {
        Check {
            what: "anvil",
            purpose: "to shoe horses",
            needed,
            outcome: outcome.map(str::to_owned).map_err(str::to_owned),
            remedy: "ask the smith",
        }
    }

    #[test]
    fn what_is_missing_comes_with_its_purpose_and_remedy() {
        let checks = [
            check(true, Ok("two")),
            check(false, Err("none")),
            check(true, Err("none")),
        ];
        assert_eq!(
            render(&checks[..2], MessageFormat::Human),
            "ok       anvil             two\n\
             absent   anvil             none\n\
             \x20                          = note: needed to shoe horses\n\
             \x20                          = help: ask the smith\n"
        );
        assert_eq!(
            render(&checks, MessageFormat::Short),
            "ok       anvil             two\n\
             absent   anvil             none\n\
             missing  anvil             none\n"
        );
        let json = render(&checks, MessageFormat::Json);
        let states: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is an object"))
            .collect();
        assert_eq!(states[2]["state"], "missing");
        assert_eq!(states[2]["remedy"], "ask the smith");
        assert_eq!(states[0]["remedy"], serde_json::Value::Null);
    }

    /// The tests of compiled kernels rest on this machine being able to run them.
    #[cfg(feature = "llvm")]
    #[test]
    fn a_kernel_compiles_loads_and_runs_here() {
        assert_eq!(llvm().outcome.map(drop), Ok(()));
    }
}
