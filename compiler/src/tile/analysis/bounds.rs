//! Whether every access to a tensor or tile stays inside it.
//!
//! Facts come from the ranges of dims, the launch grid, loop and map bounds, guards, branches, `assert`, `assume` and
//! `requires`. A copy whose two sides are proved gets `Oob::Never`; one without `@oob` that is not proved is an error with an
//! example, and so is an element access. Divisors that may be 0 are errors too.
//!
//! Needs: verified IR. Keeps: everything but the `oob` of proved copies.

use super::example;
use super::facts::Grounds;
use super::forms::{Forms, is_integer};
use crate::diag::Sink;
use crate::diag::catalogue::bounds as say;
use crate::source::Span;
use crate::tile::ir::*;
use tessera_artifact::HostExpr;

/// How an access is known to stay inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proof {
    /// From extents and loop bounds alone.
    Proved,
    /// From the ranges of dims, which the host checks at launch.
    ByDims,
    /// From `requires`.
    ByHostCheck,
    /// From a condition in the kernel.
    Guarded,
    /// From an `assert` or `assume`.
    Asserted,
    /// `@oob` says what happens outside.
    Oob,
    /// Reported as an error.
    Failed,
}

/// One access of a tensor.
#[derive(Clone, Debug)]
pub struct Entry {
    pub span: Span,
    /// `read of a`, `write of y`.
    pub what: String,
    pub proof: Proof,
}

#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub entries: Vec<Entry>,
}

impl Ledger {
    pub fn count(&self, proof: Proof) -> usize {
        self.entries.iter().filter(|e| e.proof == proof).count()
    }
}

/// Something around an op that bounds its variables.
#[derive(Clone, Debug)]
pub(super) enum Scope {
    For {
        var: ValueId,
        lo: ValueId,
        hi: ValueId,
    },
    Map {
        vars: Vec<ValueId>,
        extents: Vec<u64>,
    },
    Items {
        vars: Vec<ValueId>,
    },
    Copies {
        var: ValueId,
        copies: u32,
    },
    Holds(ValueId, bool),
}

pub fn check(k: &mut Kernel, sink: &mut Sink) -> Ledger {
    let mut b = Bounds {
        k,
        known: Forms::new(k),
        scopes: vec![],
        inside: vec![],
        ledger: Ledger::default(),
        sink,
    };
    b.block(k.body);
    let (inside, ledger) = (b.inside, b.ledger);
    for op in inside {
        match &mut k.ops[op.index()].kind {
            OpKind::Copy { oob, .. } | OpKind::Put { oob, .. } => *oob = Oob::Never,
            _ => {}
        }
    }
    ledger
}

struct Bounds<'k, 's> {
    k: &'k Kernel,
    known: Forms<'k>,
    scopes: Vec<Scope>,
    /// Copies that are proved.
    inside: Vec<OpId>,
    ledger: Ledger,
    sink: &'s mut Sink,
}

/// One axis of an access.
struct Range {
    base: Base,
    axis: usize,
    start: ValueId,
    len: u64,
}

impl Bounds<'_, '_> {
    // ---- the walk -----------------------------------------------------------------------------------------

    fn block(&mut self, b: BlockId) {
        let mark = self.known.facts.mark();
        let scopes = self.scopes.len();
        for &op in &self.k.block(b).ops {
            self.op(op);
        }
        self.known.facts.back_to(mark);
        self.scopes.truncate(scopes);
    }

    fn op(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        let span = op.span;
        // Atoms are made in the order of the text.
        if let Some(v) = op.result
            && is_integer(k.ty(v))
        {
            self.known.form(v);
        }
        match &op.kind {
            OpKind::Binary(BinaryOp::Div | BinaryOp::Rem, a, b) if is_integer(k.ty(*a)) => {
                self.divisor(*b, span)
            }
            OpKind::LoadTile { tile, index } => {
                self.element(Base::Tile(*tile), index, None, span, false)
            }
            OpKind::StoreTile { tile, index, .. } => {
                self.element(Base::Tile(*tile), index, None, span, true)
            }
            OpKind::LoadGlobal {
                param,
                index,
                guard,
            } => self.element(Base::Param(*param), index, *guard, span, false),
            OpKind::StoreGlobal {
                param,
                index,
                guard,
                ..
            }
            | OpKind::Atomic {
                param,
                index,
                guard,
                ..
            } => self.element(Base::Param(*param), index, *guard, span, true),
            OpKind::Signal { param, index } | OpKind::Wait { param, index, .. } => {
                self.element(Base::Param(*param), index, None, span, true)
            }
            OpKind::Copy { dst, src, oob } => {
                let to = self.view(dst, *oob, span, true);
                let from = self.view(src, *oob, span, false);
                if to && from && !has_gather(src) {
                    self.inside.push(id);
                }
            }
            OpKind::Put { src, oob, .. } => {
                if self.view(src, *oob, span, false) && !has_gather(src) {
                    self.inside.push(id);
                }
            }
            OpKind::Dot { acc, a, b, .. } => {
                for v in [acc, &a.view, &b.view] {
                    let view = View {
                        base: Base::Tile(v.tile),
                        slots: v.slots.clone(),
                    };
                    self.view(&view, Oob::Never, span, false);
                }
            }
            OpKind::Map { extents, body } => {
                let vars = k.block(*body).args.clone();
                for (v, n) in vars.iter().zip(extents) {
                    self.known.variable(*v, 0, *n as i128 - 1);
                }
                self.within(
                    Scope::Map {
                        vars,
                        extents: extents.clone(),
                    },
                    *body,
                );
            }
            OpKind::For { lo, hi, body, .. } => self.for_loop(*lo, *hi, *body),
            OpKind::ForItems { body } => {
                let vars = k.block(*body).args.clone();
                self.known.items(&vars);
                self.within(Scope::Items { vars }, *body);
            }
            OpKind::Role { copies, body, .. } => {
                if let [var] = k.block(*body).args[..] {
                    self.known.variable(var, 0, *copies as i128 - 1);
                    let copies = *copies;
                    self.within(Scope::Copies { var, copies }, *body);
                } else {
                    self.block(*body);
                }
            }
            OpKind::If {
                cond,
                then,
                otherwise,
            } => {
                self.branch(*cond, true, *then);
                if let Some(otherwise) = otherwise {
                    self.branch(*cond, false, *otherwise);
                }
            }
            // They hold for the rest of the block; `block` takes them back.
            OpKind::Assert { cond, .. } | OpKind::Assume { cond } => {
                let grounds = Grounds {
                    assertion: true,
                    ..Grounds::default()
                };
                self.known.assume(*cond, true, grounds);
                self.scopes.push(Scope::Holds(*cond, true));
            }
            _ => {}
        }
    }

    fn within(&mut self, scope: Scope, body: BlockId) {
        self.scopes.push(scope);
        self.block(body);
        self.scopes.pop();
    }

    fn for_loop(&mut self, lo: ValueId, hi: ValueId, body: BlockId) {
        let Some(&var) = self.k.block(body).args.first() else {
            return;
        };
        let mark = self.known.facts.mark();
        self.known.enter_loop(var, lo, hi);
        self.within(Scope::For { var, lo, hi }, body);
        self.known.facts.back_to(mark);
    }

    fn branch(&mut self, cond: ValueId, positive: bool, body: BlockId) {
        let mark = self.known.facts.mark();
        let grounds = Grounds {
            guard: true,
            ..Grounds::default()
        };
        self.known.assume(cond, positive, grounds);
        self.within(Scope::Holds(cond, positive), body);
        self.known.facts.back_to(mark);
    }

    // ---- obligations ------------------------------------------------------------------------------------------

    fn divisor(&mut self, b: ValueId, span: Span) {
        let f = self.known.form(b);
        let positive = f.plus(-1).and_then(|e| self.known.facts.prove(&e));
        if positive.is_some() {
            return;
        }
        let negative = f.scale(-1).and_then(|e| e.plus(-1));
        if negative.and_then(|e| self.known.facts.prove(&e)).is_none() {
            let name = self.k.value(b).name.clone();
            self.sink
                .report(say::divisor_may_be_zero(span, name.as_deref()));
        }
    }

    /// Both inequalities of one axis.
    fn prove(&mut self, r: &Range) -> Option<Grounds> {
        let start = self.known.form(r.start);
        let extent = self.known.extent(r.base, r.axis);
        let low = self.known.facts.prove(&start)?;
        let room = extent.sub(&start)?.plus(-(r.len as i128))?;
        let high = self.known.facts.prove(&room)?;
        Some(low.and(high))
    }

    fn element(
        &mut self,
        base: Base,
        index: &[ValueId],
        guard: Option<ValueId>,
        span: Span,
        write: bool,
    ) {
        let mark = self.known.facts.mark();
        if let Some(g) = guard {
            let grounds = Grounds {
                guard: true,
                ..Grounds::default()
            };
            self.known.assume(g, true, grounds);
        }
        let mut grounds = Some(Grounds::default());
        for (axis, &start) in index.iter().enumerate() {
            let r = Range {
                base,
                axis,
                start,
                len: 1,
            };
            match self.prove(&r) {
                Some(g) => grounds = grounds.map(|all| all.and(g)),
                None => {
                    grounds = None;
                    if let Some(g) = guard {
                        self.scopes.push(Scope::Holds(g, true));
                    }
                    self.failed(&r, span, write, None);
                    if guard.is_some() {
                        self.scopes.pop();
                    }
                }
            }
        }
        self.known.facts.back_to(mark);
        self.record(base, grounds.map_or(Proof::Failed, proof_of), span, write);
    }

    /// Whether the view is proved to be inside; reports what neither proof nor `@oob` covers.
    fn view(&mut self, v: &View, oob: Oob, span: Span, write: bool) -> bool {
        let mut grounds = Some(Grounds::default());
        let mut failed = false;
        for (axis, slot) in v.slots.iter().enumerate() {
            let (start, len) = match slot {
                Slot::At(i) => (*i, 1),
                Slot::Span { start, len } => (*start, *len),
                Slot::Gather { index, .. } => {
                    self.view(index, Oob::Never, span, false);
                    continue;
                }
            };
            let r = Range {
                base: v.base,
                axis,
                start,
                len,
            };
            match self.prove(&r) {
                Some(g) => grounds = grounds.map(|all| all.and(g)),
                None => {
                    grounds = None;
                    // `@oob` speaks of tensors; a tile is always whole.
                    if oob == Oob::Never || matches!(v.base, Base::Tile(_)) {
                        failed = true;
                        self.failed(&r, span, write, Some(oob));
                    }
                }
            }
        }
        let proof = match grounds {
            _ if failed => Proof::Failed,
            Some(g) => proof_of(g),
            None => Proof::Oob,
        };
        self.record(v.base, proof, span, write);
        grounds.is_some()
    }

    fn record(&mut self, base: Base, proof: Proof, span: Span, write: bool) {
        if let Base::Param(p) = base {
            let what = if write { "write" } else { "read" };
            self.ledger.entries.push(Entry {
                span,
                what: format!("{what} of `{}`", self.k.param(p).name),
                proof,
            });
        }
    }

    /// Reports an access of which nothing shows that it stays inside. `copy`: its `@oob`, for a copy.
    fn failed(&mut self, r: &Range, span: Span, write: bool, copy: Option<Oob>) {
        let (name, extent) = match r.base {
            Base::Tile(t) => {
                let t = self.k.tile(t);
                (t.name.clone(), t.shape[r.axis].to_string())
            }
            Base::Param(p) => {
                let p = self.k.param(p);
                let extent = match &p.kind {
                    ParamKind::Tensor(t) => plain(&t.shape[r.axis]),
                    _ => String::new(),
                };
                (p.name.clone(), extent)
            }
        };
        let found = example::find(self.k, &self.scopes, r.base, r.axis, r.start, r.len);
        let access = say::Access {
            name: &name,
            axis: r.axis,
            extent: &extent,
            len: r.len,
            is_tile: matches!(r.base, Base::Tile(_)),
            write,
        };
        self.sink.report(match copy {
            Some(_) => say::copy_may_leave(span, &access, &found),
            None => say::element_may_leave(span, &access, &found),
        });
    }
}

fn proof_of(g: Grounds) -> Proof {
    if g.assertion {
        Proof::Asserted
    } else if g.guard {
        Proof::Guarded
    } else if g.host_check {
        Proof::ByHostCheck
    } else if g.dims {
        Proof::ByDims
    } else {
        Proof::Proved
    }
}

fn has_gather(v: &View) -> bool {
    v.slots.iter().any(|s| matches!(s, Slot::Gather { .. }))
}

/// A host expression without its outer parentheses.
fn plain(e: &HostExpr) -> String {
    let text = e.to_string();
    match text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        Some(inner) if matches!(e, HostExpr::Op(..)) => inner.to_string(),
        _ => text,
    }
}
