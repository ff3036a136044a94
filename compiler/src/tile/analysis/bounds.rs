//! Whether every access to a tensor or tile stays inside it.
//!
//! Facts come from the ranges of dims, the launch grid, loop and map bounds, guards, branches, `assert`, `assume` and
//! `requires`. A copy whose two sides are proved gets `Oob::Never`; one without `@oob` that is not proved is an error with an
//! example, and so is an element access. Divisors that may be 0 are errors too.
//!
//! Needs: verified IR. Keeps: everything but the `oob` of proved copies.

use super::example;
use super::facts::{Facts, Grounds, INF};
use super::linear::Linear;
use crate::diag::Sink;
use crate::diag::catalogue::bounds as say;
use crate::source::Span;
use crate::tile::ir::*;
use std::collections::HashMap;
use tessera_artifact::{HostExpr, HostOp, ParamMode};

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
        facts: Facts::default(),
        forms: vec![None; k.values.len()],
        loads: HashMap::new(),
        dims: vec![],
        blocks: vec![],
        scopes: vec![],
        inside: vec![],
        ledger: Ledger::default(),
        sink,
    };
    b.launch();
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
    facts: Facts,
    forms: Vec<Option<Linear>>,
    /// Equal reads of memory that nothing writes are equal.
    loads: HashMap<(ParamId, Vec<Linear>), Linear>,
    dims: Vec<Linear>,
    blocks: Vec<Linear>,
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
    // ---- what the launch gives ------------------------------------------------------------------------

    fn launch(&mut self) {
        for d in &self.k.dims {
            let (lo, hi, step) = (d.lo as i128, d.hi as i128, d.step.max(1) as i128);
            let form = if lo == hi {
                Linear::constant(lo)
            } else if step > 1 {
                let units = self
                    .facts
                    .fresh_dim(lo.div_euclid(step), hi.div_euclid(step));
                units.scale(step).unwrap_or_default()
            } else {
                self.facts.fresh_dim(lo, hi)
            };
            self.dims.push(form);
        }
        for extent in &self.k.launch.grid {
            let extent = self.host(extent);
            let (_, hi) = self.facts.interval(&extent);
            let block = self.facts.fresh(0, hi - 1);
            self.facts
                .define(extent.plus(-1).and_then(|e| e.sub(&block)));
            // A block runs, so the grid is not empty.
            if let Some(e) = extent.plus(-1) {
                let grounds = Grounds::default();
                self.facts.assume(&e, grounds);
            }
            self.blocks.push(block);
        }
        for r in &self.k.requires {
            let grounds = Grounds {
                host_check: true,
                ..Grounds::default()
            };
            for f in self.host_condition(&r.cond, true) {
                self.facts.assume(&f, grounds);
            }
        }
    }

    fn host(&mut self, e: &HostExpr) -> Linear {
        let opaque = |b: &mut Self| b.facts.fresh(-INF, INF);
        match e {
            HostExpr::Int(i) => Linear::constant(*i as i128),
            HostExpr::Dim(name) => match self.k.dims.iter().position(|d| d.name == *name) {
                Some(i) => self.dims[i].clone(),
                None => opaque(self),
            },
            HostExpr::Op(op, args) => {
                if *op == HostOp::Select {
                    let positive = self.host_condition(&args[0], true);
                    let negative = self.host_condition(&args[0], false);
                    let (a, b) = (self.host(&args[1]), self.host(&args[2]));
                    return self.facts.select(positive, &a, negative, &b);
                }
                let forms: Vec<Linear> = args.iter().map(|a| self.host(a)).collect();
                let made = match (op, forms.as_slice()) {
                    (HostOp::Add, [a, b]) => a.add(b),
                    (HostOp::Sub, [a, b]) => a.sub(b),
                    (HostOp::Neg, [a]) => a.scale(-1),
                    (HostOp::Mul, [a, b]) => self.facts.product(a, b),
                    (HostOp::FloorDiv, [a, b]) => self.facts.quotient(a, b),
                    (HostOp::CeilDiv, [a, b]) => a
                        .add(b)
                        .and_then(|s| s.plus(-1))
                        .and_then(|s| self.facts.quotient(&s, b)),
                    (HostOp::FloorMod, [a, b]) => self.facts.remainder(a, b),
                    (HostOp::Min, [a, b]) => Some(self.facts.min_max(a, b, false)),
                    (HostOp::Max, [a, b]) => Some(self.facts.min_max(a, b, true)),
                    _ => None,
                };
                match made {
                    Some(f) => f,
                    None => opaque(self),
                }
            }
            HostExpr::Float(_) | HostExpr::Bool(_) | HostExpr::Scalar(_) => opaque(self),
        }
    }

    /// The inequalities (`>= 0`) that a host condition, or its opposite, means; fewer than it says is fine.
    fn host_condition(&mut self, e: &HostExpr, positive: bool) -> Vec<Linear> {
        let HostExpr::Op(op, args) = e else {
            return vec![];
        };
        match (op, args.as_slice()) {
            (HostOp::And, [a, b]) if positive => {
                let mut out = self.host_condition(a, true);
                out.extend(self.host_condition(b, true));
                out
            }
            (HostOp::Or, [a, b]) if !positive => {
                let mut out = self.host_condition(a, false);
                out.extend(self.host_condition(b, false));
                out
            }
            (HostOp::Not, [a]) => self.host_condition(a, !positive),
            (op, [a, b]) if is_int_host(a) && is_int_host(b) => {
                let predicate = match op {
                    HostOp::Eq => Predicate::Eq,
                    HostOp::Ne => Predicate::Ne,
                    HostOp::Lt => Predicate::Lt,
                    HostOp::Le => Predicate::Le,
                    HostOp::Gt => Predicate::Gt,
                    HostOp::Ge => Predicate::Ge,
                    _ => return vec![],
                };
                let (a, b) = (self.host(a), self.host(b));
                compare(predicate, &a, &b, positive)
            }
            _ => vec![],
        }
    }

    // ---- forms of values ----------------------------------------------------------------------------------

    fn form(&mut self, v: ValueId) -> Linear {
        if let Some(f) = &self.forms[v.index()] {
            return f.clone();
        }
        let f = self.make_form(v);
        self.forms[v.index()] = Some(f.clone());
        f
    }

    fn make_form(&mut self, v: ValueId) -> Linear {
        let k = self.k;
        let Some(def) = k.def(v) else {
            // Variables get theirs when their block is entered.
            return self.facts.fresh(-INF, INF);
        };
        let ty = k.ty(v);
        let made = match (def, ty) {
            (OpKind::Const(Const::Index(i)), _) => Some(Linear::constant(*i as i128)),
            (OpKind::Const(Const::Int(i, _)), _) => Some(Linear::constant(*i)),
            (OpKind::Dim(d), _) => Some(self.dims[d.index()].clone()),
            (OpKind::BlockIndex(axis), _) => self.blocks.get(*axis as usize).cloned(),
            (OpKind::Cast(a, _), Type::Index) => Some(self.form(*a)),
            (OpKind::Cast(a, _), Type::Scalar(d)) if d.is_int() && is_integer(k.ty(*a)) => {
                let f = self.form(*a);
                let (lo, hi) = self.facts.interval(&f);
                let (min, max) = int_range(d);
                // It may wrap otherwise.
                (lo >= min && hi <= max).then_some(f)
            }
            (OpKind::LoadGlobal { param, index, .. }, Type::Scalar(d)) if d.is_int() => {
                let index: Vec<Linear> = index.iter().map(|i| self.form(*i)).collect();
                let read_only = k.tensor(*param).is_some_and(|t| t.mode == ParamMode::In);
                let (lo, hi) = int_range(d);
                if read_only {
                    let key = (*param, index);
                    Some(match self.loads.get(&key) {
                        Some(f) => f.clone(),
                        None => {
                            let f = self.facts.fresh(lo, hi);
                            self.loads.insert(key, f.clone());
                            f
                        }
                    })
                } else {
                    None
                }
            }
            (OpKind::Select(c, a, b), _) if is_integer(ty) => {
                let positive = self.condition(*c, true);
                let negative = self.condition(*c, false);
                let (a, b) = (self.form(*a), self.form(*b));
                Some(self.facts.select(positive, &a, negative, &b))
            }
            (OpKind::Unary(UnaryOp::Neg, a), Type::Index) => self.form(*a).scale(-1),
            (OpKind::Unary(UnaryOp::Abs, a), Type::Index) => {
                let f = self.form(*a);
                f.scale(-1).map(|n| self.facts.min_max(&f, &n, true))
            }
            (OpKind::Binary(op, a, b), Type::Index) => {
                let (a, b) = (self.form(*a), self.form(*b));
                match op {
                    BinaryOp::Add => a.add(&b),
                    BinaryOp::Sub => a.sub(&b),
                    BinaryOp::Mul => self.facts.product(&a, &b),
                    BinaryOp::Div => self.facts.quotient(&a, &b),
                    BinaryOp::Rem => self.facts.remainder(&a, &b),
                    BinaryOp::Min => Some(self.facts.min_max(&a, &b, false)),
                    BinaryOp::Max => Some(self.facts.min_max(&a, &b, true)),
                    _ => None,
                }
            }
            // The smaller or larger of two machine integers cannot wrap.
            (OpKind::Binary(BinaryOp::Min, a, b), _) if is_integer(ty) => {
                let (a, b) = (self.form(*a), self.form(*b));
                Some(self.facts.min_max(&a, &b, false))
            }
            (OpKind::Binary(BinaryOp::Max, a, b), _) if is_integer(ty) => {
                let (a, b) = (self.form(*a), self.form(*b));
                Some(self.facts.min_max(&a, &b, true))
            }
            _ => None,
        };
        made.unwrap_or_else(|| {
            let (lo, hi) = match ty {
                Type::Scalar(d) if d.is_int() => int_range(d),
                _ => (-INF, INF),
            };
            self.facts.fresh(lo, hi)
        })
    }

    /// The inequalities that a condition, or its opposite, means.
    fn condition(&mut self, v: ValueId, positive: bool) -> Vec<Linear> {
        let k = self.k;
        match k.def(v) {
            Some(OpKind::Compare(p, a, b)) if is_integer(k.ty(*a)) => {
                let (p, a, b) = (*p, self.form(*a), self.form(*b));
                compare(p, &a, &b, positive)
            }
            Some(OpKind::Binary(BinaryOp::And, a, b)) if positive => {
                let mut out = self.condition(*a, true);
                out.extend(self.condition(*b, true));
                out
            }
            Some(OpKind::Binary(BinaryOp::Or, a, b)) if !positive => {
                let mut out = self.condition(*a, false);
                out.extend(self.condition(*b, false));
                out
            }
            Some(OpKind::Unary(UnaryOp::Not, a)) => self.condition(*a, !positive),
            Some(OpKind::Const(Const::Bool(b))) if *b != positive => vec![Linear::constant(-1)],
            _ => vec![],
        }
    }

    fn assume(&mut self, cond: ValueId, positive: bool, grounds: Grounds) {
        for f in self.condition(cond, positive) {
            self.facts.assume(&f, grounds);
        }
    }

    // ---- the walk -----------------------------------------------------------------------------------------

    fn block(&mut self, b: BlockId) {
        let mark = self.facts.mark();
        let scopes = self.scopes.len();
        for &op in &self.k.block(b).ops {
            self.op(op);
        }
        self.facts.back_to(mark);
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
            self.form(v);
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
                    let f = self.facts.fresh(0, *n as i128 - 1);
                    self.forms[v.index()] = Some(f);
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
                for (v, f) in vars.iter().zip(self.blocks.clone()) {
                    self.forms[v.index()] = Some(f);
                }
                self.within(Scope::Items { vars }, *body);
            }
            OpKind::Role { copies, body, .. } => {
                if let [var] = k.block(*body).args[..] {
                    let f = self.facts.fresh(0, *copies as i128 - 1);
                    self.forms[var.index()] = Some(f);
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
                self.assume(*cond, true, grounds);
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
        let (l, h) = (self.form(lo), self.form(hi));
        let Some(&var) = self.k.block(body).args.first() else {
            return;
        };
        let (least, most) = (self.facts.interval(&l).0, self.facts.interval(&h).1);
        let f = self.facts.fresh(least, (most - 1).max(least));
        self.facts.define(f.sub(&l));
        self.facts.define(h.plus(-1).and_then(|h| h.sub(&f)));
        self.forms[var.index()] = Some(f);
        let mark = self.facts.mark();
        // The body runs, so there is at least one trip.
        if let Some(e) = h.sub(&l).and_then(|e| e.plus(-1)) {
            self.facts.assume(&e, Grounds::default());
        }
        self.within(Scope::For { var, lo, hi }, body);
        self.facts.back_to(mark);
    }

    fn branch(&mut self, cond: ValueId, positive: bool, body: BlockId) {
        let mark = self.facts.mark();
        let grounds = Grounds {
            guard: true,
            ..Grounds::default()
        };
        self.assume(cond, positive, grounds);
        self.within(Scope::Holds(cond, positive), body);
        self.facts.back_to(mark);
    }

    // ---- obligations ------------------------------------------------------------------------------------------

    fn divisor(&mut self, b: ValueId, span: Span) {
        let f = self.form(b);
        let positive = f.plus(-1).and_then(|e| self.facts.prove(&e));
        if positive.is_some() {
            return;
        }
        let negative = f.scale(-1).and_then(|e| e.plus(-1));
        if negative.and_then(|e| self.facts.prove(&e)).is_none() {
            let name = self.k.value(b).name.clone();
            self.sink
                .report(say::divisor_may_be_zero(span, name.as_deref()));
        }
    }

    fn extent(&mut self, base: Base, axis: usize) -> Linear {
        match base {
            Base::Tile(t) => Linear::constant(self.k.tile(t).shape[axis] as i128),
            Base::Param(p) => match self.k.tensor(p).and_then(|t| t.shape.get(axis)) {
                Some(e) => self.host(e),
                None => Linear::constant(0),
            },
        }
    }

    /// Both inequalities of one axis.
    fn prove(&mut self, r: &Range) -> Option<Grounds> {
        let start = self.form(r.start);
        let extent = self.extent(r.base, r.axis);
        let low = self.facts.prove(&start)?;
        let room = extent.sub(&start)?.plus(-(r.len as i128))?;
        let high = self.facts.prove(&room)?;
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
        let mark = self.facts.mark();
        if let Some(g) = guard {
            let grounds = Grounds {
                guard: true,
                ..Grounds::default()
            };
            self.assume(g, true, grounds);
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
        self.facts.back_to(mark);
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

fn is_integer(ty: Type) -> bool {
    match ty {
        Type::Index => true,
        Type::Scalar(d) => d.is_int(),
    }
}

fn is_int_host(e: &HostExpr) -> bool {
    match e {
        HostExpr::Int(_) | HostExpr::Dim(_) => true,
        HostExpr::Op(op, args) => {
            matches!(
                op,
                HostOp::Add
                    | HostOp::Sub
                    | HostOp::Mul
                    | HostOp::FloorDiv
                    | HostOp::CeilDiv
                    | HostOp::FloorMod
                    | HostOp::Min
                    | HostOp::Max
                    | HostOp::Neg
            ) && args.iter().all(is_int_host)
        }
        HostExpr::Float(_) | HostExpr::Bool(_) | HostExpr::Scalar(_) => false,
    }
}

fn int_range(d: tessera_artifact::DType) -> (i128, i128) {
    let bits = d.bits();
    if d.is_signed_int() {
        (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
    } else {
        (0, (1i128 << bits) - 1)
    }
}

/// `a p b`, or its opposite, as forms `>= 0`.
fn compare(p: Predicate, a: &Linear, b: &Linear, positive: bool) -> Vec<Linear> {
    use Predicate::*;
    let p = match (p, positive) {
        (p, true) => p,
        (Eq, false) => Ne,
        (Ne, false) => Eq,
        (Lt, false) => Ge,
        (Le, false) => Gt,
        (Gt, false) => Le,
        (Ge, false) => Lt,
    };
    let at_least = |x: &Linear, y: &Linear, gap: i128| x.sub(y).and_then(|e| e.plus(-gap));
    let forms = match p {
        Eq => vec![at_least(a, b, 0), at_least(b, a, 0)],
        Ne => vec![],
        Lt => vec![at_least(b, a, 1)],
        Le => vec![at_least(b, a, 0)],
        Gt => vec![at_least(a, b, 1)],
        Ge => vec![at_least(a, b, 0)],
    };
    forms.into_iter().flatten().collect()
}

/// A host expression without its outer parentheses.
fn plain(e: &HostExpr) -> String {
    let text = e.to_string();
    match text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        Some(inner) if matches!(e, HostExpr::Op(..)) => inner.to_string(),
        _ => text,
    }
}
