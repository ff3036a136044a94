//! A launch at which an access goes outside, for the error that says nothing rules it out.
//!
//! Tries dims at the ends of their ranges and at a few odd values, every block, loop and map variable at either end, and
//! evaluates the index arithmetic. Values read from memory can be anything, so they end the search: the message says so.

use super::bounds::Scope;
use crate::tile::ir::*;
use tessera_artifact::HostExpr;

/// What the search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Example {
    /// Names with their values, then first and last coordinate and the extent.
    Found {
        values: Vec<(String, i64)>,
        first: i64,
        last: i64,
        extent: i64,
    },
    /// The index depends on data of this tensor or tile.
    Memory(String),
    NotFound,
}

const TRIES: u32 = 600;

pub(super) fn find(
    k: &Kernel,
    scopes: &[Scope],
    base: Base,
    axis: usize,
    start: ValueId,
    len: u64,
) -> Example {
    if let Some(source) = memory_source(k, start) {
        return Example::Memory(source);
    }
    let mut best: Option<(i64, Example)> = None;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for _ in 0..TRIES {
        let mut point = Point::new(k, &mut random);
        let Some(true) = point.enter(scopes, &mut random) else {
            continue;
        };
        let Some(first) = point.value(start) else {
            continue;
        };
        let extent = match base {
            Base::Tile(t) => Some(k.tile(t).shape[axis] as i64),
            Base::Param(p) => k
                .tensor(p)
                .and_then(|t| t.shape.get(axis))
                .and_then(|e| point.host(e)),
        };
        let Some(extent) = extent else { continue };
        let last = first + len as i64 - 1;
        if first >= 0 && last < extent {
            continue;
        }
        // The smallest launch tells the most.
        let size = point.dims.iter().sum::<i64>();
        if best.as_ref().is_none_or(|(s, _)| size < *s) {
            let values = point.names(start, base, axis);
            best = Some((
                size,
                Example::Found {
                    values,
                    first,
                    last,
                    extent,
                },
            ));
        }
    }
    best.map_or(Example::NotFound, |(_, e)| e)
}

/// The tensor or tile that a value is computed from.
fn memory_source(k: &Kernel, v: ValueId) -> Option<String> {
    match k.def(v)? {
        OpKind::LoadGlobal { param, .. } => Some(k.param(*param).name.clone()),
        OpKind::LoadTile { tile, .. } => Some(match k.tile(*tile).name.as_str() {
            "%tmp" => String::new(),
            name => name.to_string(),
        }),
        OpKind::Cast(a, _) | OpKind::Unary(_, a) => memory_source(k, *a),
        OpKind::Binary(_, a, b) => memory_source(k, *a).or_else(|| memory_source(k, *b)),
        OpKind::Select(_, a, b) => memory_source(k, *a).or_else(|| memory_source(k, *b)),
        _ => None,
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        // xorshift; the tries are the same in every run.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }

    /// Mostly an end of `lo..=hi`.
    fn pick(&mut self, lo: i64, hi: i64) -> i64 {
        match self.below(4) {
            0 => lo,
            1 | 2 => hi,
            _ => lo + self.below((hi - lo + 1).clamp(1, 1 << 20) as u64) as i64,
        }
    }
}

/// One choice of everything that an index may depend on.
struct Point<'k> {
    k: &'k Kernel,
    dims: Vec<i64>,
    grid: Vec<i64>,
    blocks: Vec<i64>,
    variables: Vec<(ValueId, i64)>,
}

impl<'k> Point<'k> {
    fn new(k: &'k Kernel, random: &mut Random) -> Self {
        let dims = k.dims.iter().map(|d| {
            const ODD: [i64; 8] = [0, 1, 2, 3, 7, 33, 100, 257];
            let wanted = match random.below(10) {
                i @ 0..8 => ODD[i as usize],
                8 => d.lo,
                _ => d.hi,
            };
            let step = d.step.max(1);
            wanted
                .div_euclid(step)
                .saturating_mul(step)
                .clamp(d.lo, d.hi)
        });
        let mut p = Point {
            k,
            dims: dims.collect(),
            grid: vec![],
            blocks: vec![],
            variables: vec![],
        };
        for e in &k.launch.grid {
            let n = p.host(e).unwrap_or(0);
            p.grid.push(n);
            p.blocks.push(if n > 0 { random.pick(0, n - 1) } else { 0 });
        }
        p
    }

    /// Chooses the variables of the scopes; `Some(true)` if the place is reached.
    fn enter(&mut self, scopes: &[Scope], random: &mut Random) -> Option<bool> {
        if self.grid.iter().any(|&n| n < 1) {
            return Some(false);
        }
        for r in &self.k.requires {
            let dims = |name: &str| self.dim(name);
            if r.cond.eval_bool(&dims, &|_| None) == Ok(false) {
                return Some(false);
            }
        }
        for s in scopes {
            match s {
                Scope::For { var, lo, hi } => {
                    let (lo, hi) = (self.value(*lo)?, self.value(*hi)?);
                    if lo >= hi {
                        return Some(false);
                    }
                    self.variables.push((*var, random.pick(lo, hi - 1)));
                }
                Scope::Map { vars, extents } => {
                    for (v, n) in vars.iter().zip(extents) {
                        self.variables.push((*v, random.pick(0, *n as i64 - 1)));
                    }
                }
                Scope::Items { vars } => {
                    for (v, b) in vars.iter().zip(self.blocks.clone()) {
                        self.variables.push((*v, b));
                    }
                }
                Scope::Copies { var, copies } => {
                    self.variables
                        .push((*var, random.pick(0, *copies as i64 - 1)));
                }
                Scope::Holds(cond, positive) => {
                    // A condition on data may hold, as far as this goes.
                    if self.holds(*cond).is_some_and(|c| c != *positive) {
                        return Some(false);
                    }
                }
            }
        }
        Some(true)
    }

    fn dim(&self, name: &str) -> Option<i64> {
        let i = self.k.dims.iter().position(|d| d.name == name)?;
        self.dims.get(i).copied()
    }

    fn host(&self, e: &HostExpr) -> Option<i64> {
        e.eval_int(&|n| self.dim(n), &|_| None).ok()
    }

    fn value(&self, v: ValueId) -> Option<i64> {
        if let Some((_, x)) = self.variables.iter().rev().find(|(w, _)| *w == v) {
            return Some(*x);
        }
        match self.k.def(v)? {
            OpKind::Const(Const::Index(i)) => Some(*i),
            OpKind::Const(Const::Int(i, _)) => i64::try_from(*i).ok(),
            OpKind::Dim(d) => self.dims.get(d.index()).copied(),
            OpKind::BlockIndex(axis) => self.blocks.get(*axis as usize).copied(),
            OpKind::Cast(a, _) => self.value(*a),
            OpKind::Unary(UnaryOp::Neg, a) => self.value(*a)?.checked_neg(),
            OpKind::Unary(UnaryOp::Abs, a) => self.value(*a)?.checked_abs(),
            OpKind::Select(c, a, b) => self.value(if self.holds(*c)? { *a } else { *b }),
            OpKind::Binary(op, a, b) => {
                let (a, b) = (self.value(*a)?, self.value(*b)?);
                match op {
                    BinaryOp::Add => a.checked_add(b),
                    BinaryOp::Sub => a.checked_sub(b),
                    BinaryOp::Mul => a.checked_mul(b),
                    BinaryOp::Div => floor_div(a, b),
                    BinaryOp::Rem => a.checked_sub(floor_div(a, b)?.checked_mul(b)?),
                    BinaryOp::Min => Some(a.min(b)),
                    BinaryOp::Max => Some(a.max(b)),
                    BinaryOp::And => Some(a & b),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn holds(&self, v: ValueId) -> Option<bool> {
        match self.k.def(v)? {
            OpKind::Const(Const::Bool(b)) => Some(*b),
            OpKind::Compare(p, a, b) => {
                let (a, b) = (self.value(*a)?, self.value(*b)?);
                Some(match p {
                    Predicate::Eq => a == b,
                    Predicate::Ne => a != b,
                    Predicate::Lt => a < b,
                    Predicate::Le => a <= b,
                    Predicate::Gt => a > b,
                    Predicate::Ge => a >= b,
                })
            }
            OpKind::Unary(UnaryOp::Not, a) => self.holds(*a).map(|b| !b),
            OpKind::Binary(BinaryOp::And, a, b) => match (self.holds(*a), self.holds(*b)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            OpKind::Binary(BinaryOp::Or, a, b) => match (self.holds(*a), self.holds(*b)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// The values that the index and the extent depend on.
    fn names(&self, start: ValueId, base: Base, axis: usize) -> Vec<(String, i64)> {
        let mut out: Vec<(String, i64)> = vec![];
        if let Base::Param(p) = base
            && let Some(e) = self.k.tensor(p).and_then(|t| t.shape.get(axis))
        {
            self.host_names(e, &mut out);
        }
        self.value_names(start, &mut out);
        out
    }

    fn host_names(&self, e: &HostExpr, out: &mut Vec<(String, i64)>) {
        match e {
            HostExpr::Dim(n) => add(out, n.clone(), self.dim(n)),
            HostExpr::Op(_, args) => args.iter().for_each(|a| self.host_names(a, out)),
            _ => {}
        }
    }

    fn value_names(&self, v: ValueId, out: &mut Vec<(String, i64)>) {
        let name = self.k.value(v).name.clone();
        match self.k.def(v) {
            None => add(out, name.unwrap_or_default(), self.value(v)),
            Some(OpKind::Dim(d)) => {
                let name = self.k.dims[d.index()].name.clone();
                add(out, name, self.value(v));
            }
            Some(OpKind::BlockIndex(axis)) => {
                add(out, format!("block({axis})"), self.value(v));
            }
            Some(OpKind::Binary(_, a, b)) => {
                self.value_names(*a, out);
                self.value_names(*b, out);
            }
            Some(OpKind::Select(_, a, b)) => {
                self.value_names(*a, out);
                self.value_names(*b, out);
            }
            Some(OpKind::Cast(a, _) | OpKind::Unary(_, a)) => self.value_names(*a, out),
            _ => {}
        }
    }
}

fn add(out: &mut Vec<(String, i64)>, name: String, value: Option<i64>) {
    if let Some(value) = value
        && !name.is_empty()
        && !out.iter().any(|(n, _)| *n == name)
    {
        out.push((name, value));
    }
}

fn floor_div(a: i64, b: i64) -> Option<i64> {
    let q = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) {
        q - 1
    } else {
        q
    })
}
