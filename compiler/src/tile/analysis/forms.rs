//! The index values of a kernel as linear forms, and the facts about their atoms.
//!
//! Shared by the analyses: each walks the kernel and calls [`Forms::enter_loop`], [`Forms::variable`] and [`Forms::assume`] where
//! a loop, a map or a condition starts to hold.

use super::facts::{Facts, Grounds, INF};
use super::linear::{Atom, Linear};
use crate::tile::ir::*;
use std::collections::{HashMap, HashSet};
use tessera_artifact::{HostExpr, HostOp, ParamMode};

pub(super) struct Forms<'k> {
    k: &'k Kernel,
    pub facts: Facts,
    forms: Vec<Option<Linear>>,
    /// Equal reads of memory that nothing writes are equal.
    loads: HashMap<(ParamId, Vec<Linear>), Linear>,
    pub dims: Vec<Linear>,
    pub blocks: Vec<Linear>,
    /// Atoms whose value comes from data.
    opaque: HashSet<Atom>,
    /// Atoms that stand for map variables.
    pub map_variables: HashSet<Atom>,
}

impl<'k> Forms<'k> {
    pub fn new(k: &'k Kernel) -> Self {
        let mut f = Forms {
            k,
            facts: Facts::default(),
            forms: vec![None; k.values.len()],
            loads: HashMap::new(),
            dims: vec![],
            blocks: vec![],
            opaque: HashSet::new(),
            map_variables: HashSet::new(),
        };
        f.launch();
        f
    }

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

    pub fn host(&mut self, e: &HostExpr) -> Linear {
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

    pub fn form(&mut self, v: ValueId) -> Linear {
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
                            let f = self.fresh_opaque(lo, hi);
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
            // Bits of a mask leave at most the mask.
            (OpKind::Binary(BinaryOp::And, a, b), _) if is_integer(ty) => {
                let masks = [*a, *b].map(|v| self.form(v));
                let masks = masks.iter().map(|f| self.facts.interval(f));
                let most = masks.filter(|(lo, _)| *lo >= 0).map(|(_, hi)| hi).min();
                most.map(|most| self.fresh_opaque(0, most))
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
            self.fresh_opaque(lo, hi)
        })
    }

    fn fresh_opaque(&mut self, lo: i128, hi: i128) -> Linear {
        let f = self.facts.fresh(lo, hi);
        if let Some((a, _)) = f.leading() {
            self.opaque.insert(a);
        }
        f
    }

    /// As [`Forms::condition`], but `None` unless the inequalities say all that the condition says.
    pub fn exact_condition(&mut self, v: ValueId, positive: bool) -> Option<Vec<Linear>> {
        let k = self.k;
        match k.def(v)? {
            OpKind::Compare(p, a, b) if is_integer(k.ty(*a)) => {
                let equal = matches!(
                    (p, positive),
                    (Predicate::Ne, true) | (Predicate::Eq, false)
                );
                let (p, a, b) = (*p, self.form(*a), self.form(*b));
                (!equal).then(|| compare(p, &a, &b, positive))
            }
            OpKind::Binary(BinaryOp::And, a, b) if positive => {
                let mut out = self.exact_condition(*a, true)?;
                out.extend(self.exact_condition(*b, true)?);
                Some(out)
            }
            OpKind::Binary(BinaryOp::Or, a, b) if !positive => {
                let mut out = self.exact_condition(*a, false)?;
                out.extend(self.exact_condition(*b, false)?);
                Some(out)
            }
            OpKind::Unary(UnaryOp::Not, a) => self.exact_condition(*a, !positive),
            _ => None,
        }
    }

    /// The inequalities that a condition, or its opposite, means.
    pub fn condition(&mut self, v: ValueId, positive: bool) -> Vec<Linear> {
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

    pub fn assume(&mut self, cond: ValueId, positive: bool, grounds: Grounds) {
        for f in self.condition(cond, positive) {
            self.facts.assume(&f, grounds);
        }
    }

    // ---- variables ------------------------------------------------------------------------------------------

    /// A variable of a map or role.
    pub fn variable(&mut self, v: ValueId, lo: i128, hi: i128) -> Linear {
        let f = self.facts.fresh(lo, hi);
        if let Some((a, _)) = f.leading() {
            self.map_variables.insert(a);
        }
        self.forms[v.index()] = Some(f.clone());
        f
    }

    /// The coordinates of a persistent item are those of a block.
    pub fn items(&mut self, vars: &[ValueId]) {
        for (v, f) in vars.iter().zip(self.blocks.clone()) {
            self.forms[v.index()] = Some(f);
        }
    }

    /// The variable of a loop, and until the mark before is restored that the loop runs at least once.
    pub fn enter_loop(&mut self, var: ValueId, lo: ValueId, hi: ValueId) -> Linear {
        let (l, h) = (self.form(lo), self.form(hi));
        let (least, most) = (self.facts.interval(&l).0, self.facts.interval(&h).1);
        let f = self.facts.fresh(least, (most - 1).max(least));
        self.facts.define(f.sub(&l));
        self.facts.define(h.plus(-1).and_then(|h| h.sub(&f)));
        self.forms[var.index()] = Some(f.clone());
        if let Some(e) = h.sub(&l).and_then(|e| e.plus(-1)) {
            self.facts.assume(&e, Grounds::default());
        }
        f
    }

    /// Whether a value is computed from the block's coordinate on `axis`.
    pub fn reads_block(&self, v: ValueId, axis: u8) -> bool {
        let k = self.k;
        match k.def(v) {
            Some(OpKind::BlockIndex(a)) => *a == axis,
            Some(kind) => {
                let mut found = false;
                kind.for_each_value(&mut |o| found |= self.reads_block(o, axis));
                found
            }
            // The coordinates of an item stand for those of a block.
            None => match (&self.forms[v.index()], self.blocks.get(axis as usize)) {
                (Some(f), Some(block)) => match block.leading() {
                    Some((atom, _)) => self.facts.depends(f, atom),
                    None => false,
                },
                _ => false,
            },
        }
    }

    /// Whether `e` has a part that comes from data or from arithmetic that forms do not follow.
    pub fn is_opaque(&self, e: &Linear) -> bool {
        e.terms.iter().any(|(a, _)| self.opaque.contains(a))
    }

    pub fn extent(&mut self, base: Base, axis: usize) -> Linear {
        match base {
            Base::Tile(t) => Linear::constant(self.k.tile(t).shape[axis] as i128),
            Base::Param(p) => match self.k.tensor(p).and_then(|t| t.shape.get(axis)) {
                Some(e) => self.host(e),
                None => Linear::constant(0),
            },
        }
    }
}

pub(super) fn is_integer(ty: Type) -> bool {
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
