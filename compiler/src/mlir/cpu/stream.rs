//! Outputs that go past the caches.
//!
//! An ordinary store first reads the line that it writes, and the lines written push out what is still to be read. An output larger than
//! what the caches can keep for its reader anyway, of which the kernel reads nothing, is stored line by line around them instead. How
//! large it is shows when the kernel is launched.
//!
//! Keeps: what memory holds when a launch ends, since each thread's last act is to wait for its stores. Kernels that tell other CTAs of what
//! they have stored (`signal`) store in the ordinary way: such stores are ordered among themselves only by that wait.

use super::{Emitter, ParamPlace};
use crate::mlir::build::{IntCompare, Val};
use crate::tile::ir::*;
use crate::tile::visit::Access;
use tessera_artifact::ParamMode;

/// Smaller outputs stay in the caches.
const LEAST_BYTES: i64 = 16 << 20;

/// By parameter: whether it is large in this launch, where it may be streamed at all.
#[derive(Debug, Default)]
pub(super) struct Streams<'c> {
    large: Vec<Option<Val<'c>>>,
}

impl<'c> Streams<'c> {
    pub fn large(&self, param: ParamId) -> Option<Val<'c>> {
        self.large.get(param.index()).copied().flatten()
    }
}

/// The parameters that copies may stream to.
fn candidates(kernel: &Kernel) -> Vec<bool> {
    let mut may: Vec<bool> = kernel
        .params
        .iter()
        .map(|p| matches!(&p.kind, ParamKind::Tensor(t) if t.mode == ParamMode::Out))
        .collect();
    let mut copied = vec![false; may.len()];
    let mut signals = false;
    kernel.walk(kernel.body, &mut |_, op| {
        let kind = &kernel.op(op).kind;
        signals |= matches!(kind, OpKind::Signal { .. } | OpKind::Wait { .. });
        kind.for_each_tensor(&mut |param, access| {
            may[param.index()] &= access == Access::Write;
            copied[param.index()] |= matches!(kind, OpKind::Copy { .. });
        });
    });
    may.iter()
        .zip(copied)
        .map(|(&may, copied)| may && copied && !signals)
        .collect()
}

impl<'c> Emitter<'_, 'c> {
    /// Asks of each candidate how large it is, once per call.
    pub(super) fn find_streams(&mut self) {
        let mut large = Vec::new();
        for (param, may) in candidates(self.kernel).into_iter().enumerate() {
            let ParamPlace::Tensor { memory, extents } = &self.params[param] else {
                large.push(None);
                continue;
            };
            let (bytes, extents) = (memory.element_bytes() as i64, extents.clone());
            large.push(may.then(|| {
                let bytes = self.b.i64(bytes);
                let size = extents.iter().fold(bytes, |n, &e| self.b.muli(n, e));
                let least = self.b.i64(LEAST_BYTES);
                self.b.cmpi(IntCompare::Sge, size, least)
            }));
        }
        self.streams.large = large;
    }

    /// Waits until all streamed stores are to be seen.
    pub(super) fn end_streams(&mut self) {
        if self.streams.large.iter().any(Option::is_some) {
            self.b.intrinsic_call("llvm.x86.sse.sfence", &[]);
        }
    }
}
