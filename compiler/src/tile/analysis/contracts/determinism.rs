//! `ensures det(bitwise)`: no op whose result is open, no element that one block writes and another reads.

use super::*;

pub(super) fn deterministic(k: &Kernel, contract: Span, sink: &mut Sink) {
    for op in &k.ops {
        if let OpKind::Atomic {
            op: fold, param, ..
        } = &op.kind
            && let Some(t) = k.tensor(*param)
            && t.dtype.is_float()
            && matches!(fold, FoldOp::Sum | FoldOp::Prod)
        {
            sink.report(say::float_atomic(
                contract,
                op.span,
                &k.param(*param).name,
                t.dtype,
            ));
        }
    }
    let mut accesses = Accesses {
        k,
        known: Forms::new(k),
        list: vec![],
    };
    accesses.block(k.body);
    let Accesses {
        mut known, list, ..
    } = accesses;
    for read in list.iter().filter(|a| !a.write) {
        let other = list
            .iter()
            .find(|w| w.write && w.param == read.param && !same_block(k, &mut known, read, w));
        if let Some(write) = other {
            let name = &k.param(read.param).name;
            sink.report(say::read_of_other_blocks(
                contract, read.span, write.span, name,
            ));
            break;
        }
    }
    for op in &k.ops {
        if let OpKind::ForItems { body } = &op.kind {
            for tile in init::carried(k, *body) {
                let t = k.tile(tile);
                sink.report(say::carried_between_items(
                    contract, t.span, &t.name, op.span,
                ));
            }
        }
    }
}

/// An access of a tensor: per axis the first coordinate and the length; `None` where data decides.
struct Access {
    param: ParamId,
    axes: Vec<Option<(Linear, i128)>>,
    write: bool,
    span: Span,
}

struct Accesses<'k> {
    k: &'k Kernel,
    known: Forms<'k>,
    list: Vec<Access>,
}

impl Accesses<'_> {
    pub(super) fn block(&mut self, b: BlockId) {
        for &op in &self.k.block(b).ops {
            self.op(op);
        }
    }

    pub(super) fn op(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        if let Some(v) = op.result
            && is_integer(k.ty(v))
        {
            self.known.form(v);
        }
        match &op.kind {
            OpKind::LoadGlobal { param, index, .. } => self.element(*param, index, false, op.span),
            OpKind::StoreGlobal { param, index, .. } => self.element(*param, index, true, op.span),
            // Integer atomics give one sum in any order, but their elements are not a block's own.
            OpKind::Atomic { param, index, .. } => {
                let axes = index.iter().map(|_| None).collect();
                self.list.push(Access {
                    param: *param,
                    axes,
                    write: true,
                    span: op.span,
                });
            }
            OpKind::Copy { dst, src, .. } => {
                self.view(src, false, op.span);
                self.view(dst, true, op.span);
            }
            OpKind::Put { src, .. } => self.view(src, false, op.span),
            OpKind::Map { extents, body } => {
                for (v, n) in k.block(*body).args.iter().zip(extents) {
                    self.known.variable(*v, 0, *n as i128 - 1);
                }
            }
            OpKind::For { lo, hi, body, .. } => {
                if let Some(&var) = k.block(*body).args.first() {
                    let mark = self.known.facts.mark();
                    self.known.enter_loop(var, *lo, *hi);
                    self.block(*body);
                    self.known.facts.back_to(mark);
                }
                return;
            }
            OpKind::ForItems { body } => self.known.items(&k.block(*body).args.clone()),
            OpKind::Role { copies, body, .. } => {
                for v in &k.block(*body).args {
                    self.known.variable(*v, 0, *copies as i128 - 1);
                }
            }
            _ => {}
        }
        for b in op.kind.blocks() {
            self.block(b);
        }
    }

    pub(super) fn element(&mut self, param: ParamId, index: &[ValueId], write: bool, span: Span) {
        let axes = index
            .iter()
            .map(|i| Some((self.known.form(*i), 1)))
            .collect();
        self.list.push(Access {
            param,
            axes,
            write,
            span,
        });
    }

    pub(super) fn view(&mut self, v: &View, write: bool, span: Span) {
        for s in &v.slots {
            if let Slot::Gather { index, .. } = s {
                self.view(index, false, span);
            }
        }
        let Base::Param(param) = v.base else {
            return;
        };
        let axes = v
            .slots
            .iter()
            .map(|s| match s {
                Slot::At(i) => Some((self.known.form(*i), 1)),
                Slot::Span { start, len } => Some((self.known.form(*start), *len as i128)),
                Slot::Gather { .. } => None,
            })
            .collect();
        self.list.push(Access {
            param,
            axes,
            write,
            span,
        });
    }
}

/// Whether two accesses of different blocks never meet: for every axis of the grid there is an axis of the tensor of which
/// each block has a slice of its own.
fn same_block(k: &Kernel, known: &mut Forms, a: &Access, b: &Access) -> bool {
    (0..k.launch.grid.len()).all(|axis| {
        let block = known.blocks[axis].clone();
        let Some((atom, _)) = block.leading() else {
            return true; // one block along this axis
        };
        if known.facts.interval(&block) == (0, 0) {
            return true;
        }
        (0..a.axes.len()).any(|i| match (&a.axes[i], b.axes.get(i)) {
            (Some(x), Some(Some(y))) => {
                let c = x.0.coefficient(atom);
                c > 0
                    && c == y.0.coefficient(atom)
                    && [x, y].into_iter().all(|(start, len)| {
                        let local = start.add_scaled(&block, -c);
                        let low = local.clone().and_then(|l| known.facts.prove(&l));
                        let room = local
                            .and_then(|l| Linear::constant(c - len).sub(&l))
                            .and_then(|r| known.facts.prove(&r));
                        low.is_some() && room.is_some()
                    })
            }
            _ => false,
        })
    })
}
