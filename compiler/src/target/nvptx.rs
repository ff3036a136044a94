//! NVIDIA GPUs as data. Source: CUDA C++ Programming Guide, "Compute Capabilities"; PTX ISA.

/// What code for a GPU may use, and how LLVM and ptxas are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuFacts {
    /// `sm_90a`, as LLVM and ptxas write it.
    pub arch: &'static str,
    /// LLVM's name of the PTX version; without it, LLVM writes one that is too old for the instructions.
    pub llvm_features: &'static str,
    pub threads_per_warp: u32,
    pub max_threads_per_block: u32,
    pub max_threads_per_sm: u32,
    pub registers_per_sm: u32,
    pub max_registers_per_thread: u32,
    /// With the opt-in that a launch asks for.
    pub max_shared_bytes_per_block: u32,
    pub shared_bytes_per_sm: u32,
    pub shared_banks: u32,
    pub sms: u32,
    /// Named barriers of a block.
    pub barriers: u32,
}

/// H100 and H200, SXM.
pub const SM_90A: GpuFacts = GpuFacts {
    arch: "sm_90a",
    llvm_features: "+ptx86",
    threads_per_warp: 32,
    max_threads_per_block: 1024,
    max_threads_per_sm: 2048,
    registers_per_sm: 65_536,
    max_registers_per_thread: 255,
    max_shared_bytes_per_block: 227 * 1024,
    shared_bytes_per_sm: 228 * 1024,
    shared_banks: 32,
    sms: 132,
    barriers: 16,
};
