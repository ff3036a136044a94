//! CPU variants as data: what scheduling may count on, and how LLVM is told.

use tessera_artifact::CpuVariant;

/// What code for a variant may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFacts {
    pub variant: CpuVariant,
    pub vector_bytes: u32,
    pub vector_registers: u32,
    /// `vdpbf16ps`: pairs of bf16 multiplied and added into f32.
    pub has_bf16_dot: bool,
    /// Comparisons give mask registers, and every vector op takes one.
    pub has_mask_registers: bool,
    /// LLVM's name of the processor.
    pub llvm_cpu: &'static str,
    /// Features beyond those of `llvm_cpu`.
    pub llvm_features: &'static str,
}

impl CpuFacts {
    pub const fn of(variant: CpuVariant) -> Self {
        match variant {
            CpuVariant::Avx2 => Self {
                variant,
                vector_bytes: 32,
                vector_registers: 16,
                has_bf16_dot: false,
                has_mask_registers: false,
                llvm_cpu: "x86-64-v3",
                llvm_features: "",
            },
            CpuVariant::Avx512 => Self {
                variant,
                vector_bytes: 64,
                vector_registers: 32,
                has_bf16_dot: false,
                has_mask_registers: true,
                llvm_cpu: "x86-64-v4",
                llvm_features: "",
            },
            CpuVariant::Avx512Bf16 => Self {
                has_bf16_dot: true,
                llvm_features: "+avx512bf16",
                variant,
                ..Self::of(CpuVariant::Avx512)
            },
        }
    }

    /// Elements of `element_bytes` in one register.
    pub const fn lanes(&self, element_bytes: u32) -> u32 {
        self.vector_bytes / element_bytes
    }
}

/// Bytes of a cache line, and the alignment of scratch memory.
pub const CACHE_LINE_BYTES: u32 = 64;
