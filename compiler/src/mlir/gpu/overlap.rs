//! Whether two stores to a tensor, or one store in two iterations of a loop, can meet in an element: told from the coordinates where
//! they start. Where it cannot be told, they meet.

use crate::tile::ir::*;

/// Whether copies `a` and `b` to the same tensor, the second after the first in the same item of the grid, may meet. They may be one op.
pub fn may_meet(kernel: &Kernel, a: OpId, b: OpId) -> bool {
    let views = (&kernel.op(a).kind, &kernel.op(b).kind);
    let (OpKind::Copy { dst: x, .. }, OpKind::Copy { dst: y, .. }) = views else {
        return true;
    };
    let slots = || x.slots.iter().zip(&y.slots);
    if a == b {
        return !slots().any(|(slot, _)| moves_on(kernel, a, slot));
    }
    !slots().any(|(x, y)| apart(kernel, x, y))
}

/// Start and length of a slot, if it has them.
fn span(slot: &Slot) -> Option<(ValueId, i64)> {
    match slot {
        Slot::At(at) => Some((*at, 1)),
        Slot::Span { start, len } => Some((*start, *len as i64)),
        Slot::Gather { .. } => None,
    }
}

/// Whether both start at constant distances from one value that no loop changes, and the first ends before the other starts.
fn apart(kernel: &Kernel, x: &Slot, y: &Slot) -> bool {
    let (Some((x, x_len)), Some((y, y_len))) = (span(x), span(y)) else {
        return false;
    };
    let ((from, a), (other, b)) = (offset(kernel, x), offset(kernel, y));
    let ends_before = |a: i64, len: i64, b: i64| a.checked_add(len).is_some_and(|end| end <= b);
    from == other
        && from.is_none_or(|v| !varies(kernel, v))
        && (ends_before(a, x_len, b) || ends_before(b, y_len, a))
}

/// Whether each iteration of the one loop around `op` starts past the end of the one before it.
fn moves_on(kernel: &Kernel, op: OpId, slot: &Slot) -> bool {
    let (Some((start, len)), Some(variable)) = (span(slot), only_loop(kernel, op)) else {
        return false;
    };
    let (Some(base), _) = offset(kernel, start) else {
        return false;
    };
    let (scaled, rest) = match kernel.def(base) {
        Some(&OpKind::Binary(BinaryOp::Add, a, b)) if varies(kernel, a) => (a, Some(b)),
        Some(&OpKind::Binary(BinaryOp::Add, a, b)) => (b, Some(a)),
        _ => (base, None),
    };
    let step = match kernel.def(scaled) {
        Some(&OpKind::Binary(BinaryOp::Mul, v, c)) if v == variable => kernel.const_index(c),
        Some(&OpKind::Binary(BinaryOp::Mul, c, v)) if v == variable => kernel.const_index(c),
        _ => (scaled == variable).then_some(1),
    };
    step.is_some_and(|step| step >= len) && rest.is_none_or(|v| !varies(kernel, v))
}

/// A value as another one and a constant.
fn offset(kernel: &Kernel, v: ValueId) -> (Option<ValueId>, i64) {
    if let Some(c) = kernel.const_index(v) {
        return (None, c);
    }
    if let Some(&OpKind::Binary(BinaryOp::Add, a, b)) = kernel.def(v) {
        for (value, constant) in [(a, b), (b, a)] {
            if let Some(c) = kernel.const_index(constant) {
                return (Some(value), c);
            }
        }
    }
    (Some(v), 0)
}

/// The variable of the loop around an op, if there is one and no more.
fn only_loop(kernel: &Kernel, op: OpId) -> Option<ValueId> {
    let mut around = vec![];
    for i in 0..kernel.ops.len() {
        if let OpKind::For { body, .. } = kernel.ops[i].kind {
            let mut inside = false;
            kernel.walk(body, &mut |_, o| inside |= o == op);
            if inside {
                around.push(kernel.block(body).args[0]);
            }
        }
    }
    match around[..] {
        [variable] => Some(variable),
        _ => None,
    }
}

/// Whether a value may differ from one iteration of a loop to the next: it is no function of the launch and the item alone.
fn varies(kernel: &Kernel, v: ValueId) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    let mut open = vec![v];
    while let Some(v) = open.pop() {
        if !seen.insert(v) || kernel.const_index(v).is_some() {
            continue;
        }
        match kernel.def(v) {
            Some(OpKind::Dim(_) | OpKind::Scalar(_) | OpKind::BlockIndex(_) | OpKind::Const(_)) => {
            }
            Some(kind) if kind.is_pure() && !matches!(kind, OpKind::LoadTile { .. }) => {
                kind.for_each_value(&mut |v| open.push(v));
            }
            _ => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tile::build::Builder;
    use tessera_artifact::{DType, HostExpr, ParamMode};

    /// Copies of 8 elements to rows of a tensor in a loop: to `row(i)`, from `column(i)` on.
    fn stores(
        at: &[(
            fn(&mut Builder, ValueId) -> ValueId,
            fn(&mut Builder, ValueId) -> ValueId,
        )],
    ) -> (Kernel, Vec<OpId>) {
        let mut b = Builder::new("k", Default::default());
        let n = b.dim("N", 0, 1 << 20, 1);
        let shape = vec![HostExpr::dim("N"), HostExpr::dim("N")];
        let y = b.tensor("y", ParamMode::Out, DType::F32, shape);
        let t = b.temp(DType::F32, &[8]);
        let (lo, hi) = (b.index(0), b.dim_value(n));
        let mut ops = vec![];
        b.for_loop(lo, hi, LoopKind::Sequential, |b, i| {
            for (row, column) in at {
                let (row, start) = (row(b, i), column(b, i));
                let slots = vec![Slot::At(row), Slot::Span { start, len: 8 }];
                let dst = View {
                    base: Base::Param(y),
                    slots,
                };
                let src = b.whole_view(t);
                ops.push(b.copy(dst, src, Oob::Skip));
            }
        });
        (b.finish(), ops)
    }

    fn block(b: &mut Builder, _: ValueId) -> ValueId {
        b.block_index(0)
    }

    fn block_after(b: &mut Builder, _: ValueId) -> ValueId {
        let (block, one) = (b.block_index(0), b.index(1));
        b.add(block, one)
    }

    fn by_eight(b: &mut Builder, i: ValueId) -> ValueId {
        let eight = b.index(8);
        b.mul(i, eight)
    }

    fn by_seven(b: &mut Builder, i: ValueId) -> ValueId {
        let seven = b.index(7);
        b.mul(i, seven)
    }

    #[test]
    fn a_store_that_moves_on_does_not_meet_itself() {
        let (kernel, ops) = stores(&[(block, by_eight), (block, by_seven), (block, block)]);
        assert!(!may_meet(&kernel, ops[0], ops[0]));
        assert!(may_meet(&kernel, ops[1], ops[1]));
        assert!(may_meet(&kernel, ops[2], ops[2]));
    }

    #[test]
    fn stores_to_rows_that_differ_do_not_meet() {
        let (kernel, ops) = stores(&[
            (block, by_eight),
            (block_after, by_seven),
            (by_eight, by_eight),
        ]);
        assert!(!may_meet(&kernel, ops[0], ops[1]));
        assert!(may_meet(&kernel, ops[0], ops[2]));
    }
}
