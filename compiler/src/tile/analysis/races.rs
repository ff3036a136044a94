//! Two writes of one element that no order separates: iterations of a map, blocks of the grid, copies of a pipeline.
//!
//! A map is sound if its stores are injective: from the coordinates of a store the map variables can be told. They are told
//! axis by axis, as digits of a mixed radix number: `16 * i + j` with `j` in `0..16` tells both. `scatter` and `atomic` are the author's
//! promise and are left out.
//!
//! Needs: verified IR whose accesses are in bounds. Keeps: everything.

use super::facts::Facts;
use super::forms::{Forms, is_integer};
use super::linear::{Atom, Linear, gcd};
use crate::diag::Sink;
use crate::diag::catalogue::init as say;
use crate::source::Span;
use crate::tile::ir::*;

pub fn check(k: &Kernel, sink: &mut Sink) {
    let mut r = Races {
        k,
        known: Forms::new(k),
        conditions: vec![],
        data: vec![],
        sink,
    };
    r.block(k.body);
    pipelines(k, sink);
}

struct Races<'k, 's> {
    k: &'k Kernel,
    known: Forms<'k>,
    /// Conditions of the branches around.
    conditions: Vec<ValueId>,
    /// Loop variables whose bounds speak of a block.
    data: Vec<ValueId>,
    sink: &'s mut Sink,
}

/// A store or load of a map.
struct Touch {
    base: Base,
    at: Vec<Linear>,
    span: Span,
    guard: Option<ValueId>,
}

impl Races<'_, '_> {
    fn block(&mut self, b: BlockId) {
        let mark = self.known.facts.mark();
        for &op in &self.k.block(b).ops {
            self.op(op);
        }
        self.known.facts.back_to(mark);
    }

    fn op(&mut self, id: OpId) {
        let k = self.k;
        let op = k.op(id);
        if let Some(v) = op.result
            && is_integer(k.ty(v))
        {
            self.known.form(v);
        }
        match &op.kind {
            OpKind::Map { extents, body } => self.map(extents, *body),
            OpKind::For { lo, hi, body, .. } => {
                if let Some(&var) = k.block(*body).args.first() {
                    let mark = self.known.facts.mark();
                    self.known.enter_loop(var, *lo, *hi);
                    self.data.push(*lo);
                    self.data.push(*hi);
                    self.block(*body);
                    self.data.truncate(self.data.len() - 2);
                    self.known.facts.back_to(mark);
                }
            }
            OpKind::If {
                cond,
                then,
                otherwise,
            } => {
                self.conditions.push(*cond);
                for (b, positive) in [(Some(*then), true), (*otherwise, false)] {
                    if let Some(b) = b {
                        let mark = self.known.facts.mark();
                        self.known.assume(*cond, positive, Default::default());
                        self.block(b);
                        self.known.facts.back_to(mark);
                    }
                }
                self.conditions.pop();
            }
            OpKind::ForItems { body } => {
                self.known.items(&k.block(*body).args.clone());
                self.block(*body);
            }
            OpKind::Role { copies, body, .. } => {
                for v in &k.block(*body).args {
                    self.known.variable(*v, 0, *copies as i128 - 1);
                }
                self.block(*body);
            }
            OpKind::Copy { dst, .. } => {
                if let Base::Param(p) = dst.base {
                    let gathers = dst.slots.iter().any(|s| matches!(s, Slot::Gather { .. }));
                    let at = dst.slots.iter().map(|s| match s {
                        Slot::At(v) | Slot::Span { start: v, .. } => self.known.form(*v),
                        Slot::Gather { .. } => Linear::default(),
                    });
                    let at: Vec<Linear> = at.collect();
                    if !gathers {
                        self.blocks_apart(p, &at, None, op.span);
                    }
                }
            }
            OpKind::StoreGlobal {
                param,
                index,
                guard,
                scatter: false,
                ..
            } => {
                let at: Vec<Linear> = index.iter().map(|i| self.known.form(*i)).collect();
                self.blocks_apart(*param, &at, *guard, op.span);
            }
            _ => {}
        }
    }

    // ---- blocks ----------------------------------------------------------------------------------------------

    /// Every axis of the grid must have a say in where, or whether, a store lands; else all its blocks write the same elements.
    fn blocks_apart(&mut self, param: ParamId, at: &[Linear], guard: Option<ValueId>, span: Span) {
        for axis in 0..self.known.blocks.len() {
            let Some((block, _)) = self.known.blocks[axis].leading() else {
                continue;
            };
            let interval = self.known.facts.interval(&self.known.blocks[axis]);
            if interval == (0, 0) {
                continue;
            }
            let mentions = at.iter().any(|e| self.known.facts.depends(e, block));
            let decides = self
                .conditions
                .iter()
                .chain(&self.data)
                .chain(&guard)
                .any(|c| self.known.reads_block(*c, axis as u8));
            // Where the coordinates come from data, nothing can be said.
            let from_data = at.iter().any(|e| self.known.is_opaque(e));
            if !mentions && !decides && !from_data {
                let name = &self.k.param(param).name;
                self.sink.report(say::blocks_write_same(
                    span,
                    name,
                    axis,
                    self.k.launch.persistent,
                ));
                return;
            }
        }
    }

    // ---- maps --------------------------------------------------------------------------------------------------

    fn map(&mut self, extents: &[u64], body: BlockId) {
        let k = self.k;
        let mut vars = vec![];
        for (v, n) in k.block(body).args.iter().zip(extents) {
            let f = self.known.variable(*v, 0, *n as i128 - 1);
            if let Some((a, _)) = f.leading() {
                vars.push((a, *n, k.value(*v).name.clone().unwrap_or_default()));
            }
        }
        let mut stores: Vec<Touch> = vec![];
        let mut loads: Vec<Touch> = vec![];
        for &id in &k.block(body).ops {
            self.op(id);
            let op = k.op(id);
            let (base, index, guard) = match &op.kind {
                OpKind::StoreTile { tile, index, .. } => (Base::Tile(*tile), index, None),
                OpKind::StoreGlobal {
                    param,
                    index,
                    guard,
                    scatter: false,
                    ..
                } => (Base::Param(*param), index, *guard),
                OpKind::LoadTile { tile, index } => (Base::Tile(*tile), index, None),
                OpKind::LoadGlobal {
                    param,
                    index,
                    guard,
                } => (Base::Param(*param), index, *guard),
                _ => continue,
            };
            let at = index.iter().map(|i| self.known.form(*i)).collect();
            let touch = Touch {
                base,
                at,
                span: op.span,
                guard,
            };
            if op.result.is_some() {
                loads.push(touch);
            } else {
                stores.push(touch);
            }
        }
        for (i, s) in stores.iter().enumerate() {
            if !self.injective(s, &vars) {
                continue; // reported
            }
            for other in &stores[..i] {
                if other.base == s.base && other.at != s.at && !self.apart(&other.at, &s.at, &vars)
                {
                    let name = self.name(s.base);
                    self.sink
                        .report(say::stores_may_meet(s.span, other.span, &name));
                }
            }
        }
        for l in &loads {
            let meets = stores
                .iter()
                .find(|s| s.base == l.base && s.at != l.at && !self.apart(&s.at, &l.at, &vars));
            if let Some(s) = meets {
                let name = self.name(l.base);
                self.sink
                    .report(say::reads_neighbour(l.span, s.span, &name));
            }
        }
    }

    fn name(&self, base: Base) -> String {
        match base {
            Base::Tile(t) => self.k.tile(t).name.clone(),
            Base::Param(p) => self.k.param(p).name.clone(),
        }
    }

    fn injective(&mut self, s: &Touch, vars: &[(Atom, u64, String)]) -> bool {
        let depends = |facts: &Facts, a: Atom| {
            vars.iter()
                .any(|(v, ..)| facts.depends(&Linear::atom(a), *v))
        };
        let mut told: Vec<Atom> = vec![];
        loop {
            let mut more = false;
            for e in &s.at {
                let mut open: Vec<(i128, Atom)> = e
                    .terms
                    .iter()
                    .filter(|(a, _)| !told.contains(a) && depends(&self.known.facts, *a))
                    .map(|(a, c)| (c.abs(), *a))
                    .collect();
                if open.is_empty() {
                    continue;
                }
                open.sort();
                // Each digit's weight is more than all smaller digits together.
                let mut reach = 0;
                let mut good = true;
                for (c, a) in &open {
                    good &= *c > reach;
                    let (lo, hi) = self.known.facts.interval(&Linear::atom(*a));
                    reach += c.saturating_mul(hi - lo);
                }
                if good {
                    told.extend(open.iter().map(|(_, a)| *a));
                    more = true;
                }
            }
            if !more {
                break;
            }
        }
        let lost = vars.iter().find(|(v, n, _)| *n > 1 && !told.contains(v));
        let Some((v, _, name)) = lost else {
            return true;
        };
        // A guard that lets one value of the variable through is as good.
        if s.guard.is_some_and(|g| {
            self.known
                .condition(g, true)
                .iter()
                .any(|f| self.known.facts.depends(f, *v))
        }) {
            return true;
        }
        let from_data = s.at.iter().any(|e| self.known.is_opaque(e));
        let base = self.name(s.base);
        self.sink
            .report(say::map_writes_twice(s.span, &base, name, from_data));
        false
    }

    /// Whether two accesses never meet in different iterations.
    fn apart(&mut self, a: &[Linear], b: &[Linear], vars: &[(Atom, u64, String)]) -> bool {
        a.iter().zip(b).any(|(x, y)| {
            // The second iteration has variables of its own.
            let mut y = y.clone();
            for (v, n, _) in vars {
                let c = y.coefficient(*v);
                if c != 0 {
                    let other = self.known.facts.fresh(0, *n as i128 - 1);
                    let swapped = y
                        .add_scaled(&Linear::atom(*v), -c)
                        .and_then(|y| y.add_scaled(&other, c));
                    match swapped {
                        Some(s) => y = s,
                        None => return false,
                    }
                }
            }
            // 2 i and 2 j + 1 are never equal.
            if let Some(d) = x.sub(&y) {
                let g = d.terms.iter().fold(0, |g, t| gcd(g, t.1.abs()));
                if g > 1 && d.constant % g != 0 {
                    return true;
                }
            }
            let more = x.sub(&y).and_then(|d| d.plus(-1));
            let less = y.sub(x).and_then(|d| d.plus(-1));
            [more, less]
                .into_iter()
                .flatten()
                .any(|e| self.known.facts.prove(&e).is_some())
        })
    }
}

/// A tile that the body of a pipeline declares has one copy per stage in flight: filling all of it twice in one iteration
/// would need two.
fn pipelines(k: &Kernel, sink: &mut Sink) {
    for op in &k.ops {
        if let OpKind::For {
            kind: LoopKind::Pipeline { .. },
            body,
            ..
        } = &op.kind
        {
            let mut filled = vec![];
            fills(k, *body, &mut filled, sink);
        }
    }
}

fn fills(k: &Kernel, b: BlockId, filled: &mut Vec<(TileId, Span)>, sink: &mut Sink) {
    for &id in &k.block(b).ops {
        let op = k.op(id);
        match &op.kind {
            OpKind::Copy { dst, src, .. }
                if matches!(src.base, Base::Param(_)) && super::init::covers_view(k, dst) =>
            {
                if let Base::Tile(t) = dst.base {
                    if let Some((_, first)) = filled.iter().find(|(f, _)| *f == t) {
                        sink.report(say::filled_twice(op.span, *first, &k.tile(t).name));
                    } else {
                        filled.push((t, op.span));
                    }
                }
            }
            OpKind::If {
                then, otherwise, ..
            } => {
                let mut both = vec![];
                for side in [Some(*then), *otherwise].into_iter().flatten() {
                    let mut mine = filled.clone();
                    fills(k, side, &mut mine, sink);
                    both.extend(mine);
                }
                for f in both {
                    if !filled.contains(&f) {
                        filled.push(f);
                    }
                }
            }
            _ => {}
        }
    }
}
