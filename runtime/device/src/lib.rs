//! Devices that run compiled kernels. Needs: a verified archive. Knows nothing of models, weights or the compiler.

pub mod cpu;
