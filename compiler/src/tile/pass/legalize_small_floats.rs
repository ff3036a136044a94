//! Arithmetic on bf16 and f16 becomes one f32 op and one rounding, for back ends that have no such arithmetic.
//!
//! `min`, `max`, `neg`, `abs` and comparisons go through f32 too (exactly). Needs: nothing. Keeps: bits; loads, stores, selects and
//! casts as they are. Folds, scans and `dot` of such tiles are the emitter's.

use super::rewrite::{Replacement, replace_ops};
use crate::tile::build::Builder;
use crate::tile::ir::*;
use tessera_artifact::DType;

pub fn legalize_small_floats(kernel: &mut Kernel) {
    replace_ops(kernel, &mut |b, kind| {
        let wide = Type::Scalar(DType::F32);
        let narrow = match *kind {
            OpKind::Unary(_, a)
            | OpKind::Binary(_, a, _)
            | OpKind::Fma(a, ..)
            | OpKind::Compare(_, a, _) => b.kernel.ty(a),
            _ => return None,
        };
        if !matches!(narrow, Type::Scalar(DType::BF16 | DType::F16)) {
            return None;
        }
        let up = |b: &mut Builder, v| b.cast(v, wide);
        let result = match *kind {
            OpKind::Unary(op, a) => {
                let a = up(b, a);
                b.unary(op, a)
            }
            OpKind::Binary(op, x, y) => {
                let (x, y) = (up(b, x), up(b, y));
                b.binary(op, x, y)
            }
            OpKind::Fma(x, y, z) => {
                let (x, y, z) = (up(b, x), up(b, y), up(b, z));
                b.fma(x, y, z)
            }
            OpKind::Compare(p, x, y) => {
                let (x, y) = (up(b, x), up(b, y));
                b.compare(p, x, y)
            }
            _ => return None,
        };
        let result = if b.kernel.ty(result) == wide {
            b.cast(result, narrow)
        } else {
            result
        };
        Some(Replacement::Value(result))
    });
}
