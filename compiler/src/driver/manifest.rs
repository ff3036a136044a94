//! What the host must know of a kernel, from its tile IR.

use tessera_artifact::{ContractEntry, DimEntry, KernelEntry, ParamEntry, ParamKind, Requirement};

use crate::tile::ir::{self, Contract, GenericValue};

/// The manifest entry without code.
pub fn entry(kernel: &ir::Kernel, key: &str) -> KernelEntry {
    KernelEntry {
        name: kernel.name.clone(),
        generics: kernel
            .generics
            .iter()
            .map(|(name, value)| (name.clone(), generic(value)))
            .collect(),
        docs: kernel.docs.clone(),
        params: kernel.params.iter().map(param).collect(),
        dims: (kernel.dims.iter())
            .map(|d| DimEntry {
                name: d.name.clone(),
                lo: d.lo,
                hi: d.hi,
                step: d.step,
                scalar: d.scalar.is_some(),
            })
            .collect(),
        requires: (kernel.requires.iter())
            .map(|r| Requirement {
                cond: r.cond.clone(),
                text: r.text.clone(),
                message: r.message.clone(),
            })
            .collect(),
        grid: kernel.launch.grid.clone(),
        contracts: kernel
            .contracts
            .iter()
            .map(|c| contract(kernel, c))
            .collect(),
        cpu: vec![],
        ptx: vec![],
        key: key.to_owned(),
    }
}

pub fn generic(value: &GenericValue) -> String {
    match value {
        GenericValue::Int(i) => i.to_string(),
        GenericValue::Bool(b) => b.to_string(),
        GenericValue::DType(d) => d.to_string(),
    }
}

fn param(param: &ir::Param) -> ParamEntry {
    let kind = match &param.kind {
        ir::ParamKind::Tensor(t) => ParamKind::Tensor {
            mode: t.mode,
            dtype: t.dtype,
            shape: t.shape.clone(),
            align: t.align.max(t.dtype.bits().div_ceil(8)),
            contiguous: t.contiguous,
        },
        ir::ParamKind::Scalar(dtype) => ParamKind::Scalar { dtype: *dtype },
        ir::ParamKind::Index => ParamKind::Index,
    };
    ParamEntry {
        name: param.name.clone(),
        kind,
    }
}

fn contract(kernel: &ir::Kernel, contract: &Contract) -> ContractEntry {
    let text = match contract {
        Contract::Deterministic(_) => "det(bitwise)".to_owned(),
        Contract::BatchInvariant(dim, _) => {
            format!("batch_invariant({})", kernel.dims[dim.index()].name)
        }
    };
    ContractEntry { text }
}
