//! What is known about the integers of a kernel, and proofs from it.
//!
//! Every index value is a [`Linear`] form over atoms: dims, block coordinates, loop and map variables, quotients, products,
//! minima, values read from memory. An atom comes with the inequalities that define it; conditions in force add more. A goal
//! `e >= 0` is proved by replacing its newest atom by one of the bounds that speak of older ones, until only constants are
//! left; both cases of a minimum, maximum or select must hold. So the search follows the order of definition, which is how
//! the bounds of index arithmetic are made, and its steps are limited.

use super::linear::{Atom, Linear};
use std::collections::HashMap;

/// What a proof leaned on, for the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grounds {
    pub dims: bool,
    pub host_check: bool,
    pub guard: bool,
    pub assertion: bool,
}

impl Grounds {
    pub fn and(self, o: Grounds) -> Grounds {
        Grounds {
            dims: self.dims | o.dims,
            host_check: self.host_check | o.host_check,
            guard: self.guard | o.guard,
            assertion: self.assertion | o.assertion,
        }
    }
}

#[derive(Clone, Debug)]
struct Fact {
    /// `>= 0`.
    form: Linear,
    grounds: Grounds,
}

#[derive(Clone, Debug)]
enum Kind {
    Plain,
    /// Equal to one of both, and at least each.
    Max(Linear, Linear),
    Min(Linear, Linear),
    /// The first where the condition holds, else the second.
    Select(Vec<Linear>, Linear, Vec<Linear>, Linear),
    /// Product of two older atoms.
    Product,
}

struct AtomInfo {
    kind: Kind,
    lo: i128,
    hi: i128,
    /// Facts whose newest atom this is and that always hold.
    facts: Vec<Fact>,
    /// The same for those in force now.
    active: Vec<Fact>,
    interval_grounds: Grounds,
    /// What it is computed from.
    from: Vec<Linear>,
    /// Grows, or stays, when all of that grows.
    monotone: bool,
}

/// An unbounded end of an interval.
pub const INF: i128 = i128::MAX / 4;

#[derive(Default)]
pub struct Facts {
    atoms: Vec<AtomInfo>,
    products: HashMap<(Atom, Atom), Atom>,
    quotients: HashMap<(Linear, Linear), Atom>,
    remainders: HashMap<(Linear, Linear), Atom>,
    /// The lesser of two (`false`), and the larger.
    extremes: HashMap<(bool, Linear, Linear), Atom>,
    /// Atoms that got a fact in force, to take it back.
    trail: Vec<Atom>,
}

/// A point to go back to.
#[derive(Clone, Copy)]
pub struct Mark(usize);

/// Steps of one proof at most; real ones take a few dozen.
const STEPS: u32 = 1500;

impl Facts {
    // ---- atoms -------------------------------------------------------------------------------------

    pub fn fresh(&mut self, lo: i128, hi: i128) -> Linear {
        Linear::atom(self.new_atom(Kind::Plain, lo, hi))
    }

    /// A dim or another value whose interval the host checks.
    pub fn fresh_dim(&mut self, lo: i128, hi: i128) -> Linear {
        let a = self.new_atom(Kind::Plain, lo, hi);
        self.atoms[a.0 as usize].interval_grounds.dims = true;
        Linear::atom(a)
    }

    fn new_atom(&mut self, kind: Kind, lo: i128, hi: i128) -> Atom {
        self.atoms.push(AtomInfo {
            kind,
            lo: lo.max(-INF),
            hi: hi.min(INF),
            facts: vec![],
            active: vec![],
            interval_grounds: Grounds::default(),
            from: vec![],
            monotone: false,
        });
        Atom(self.atoms.len() as u32 - 1)
    }

    fn made_from(&mut self, a: Atom, from: &[&Linear], monotone: bool) {
        let info = &mut self.atoms[a.0 as usize];
        info.from = from.iter().map(|l| (*l).clone()).collect();
        info.monotone = monotone;
    }

    /// Whether the value of `e` is computed from `target`.
    pub fn depends(&self, e: &Linear, target: Atom) -> bool {
        e.terms.iter().any(|(a, _)| {
            *a == target
                || self.atoms[a.0 as usize]
                    .from
                    .iter()
                    .any(|f| self.depends(f, target))
        })
    }

    /// Whether `e` grows, or stays, when `target` grows.
    pub fn rises(&self, e: &Linear, target: Atom) -> bool {
        e.terms.iter().all(|(a, c)| {
            if *a == target {
                return *c > 0;
            }
            let info = &self.atoms[a.0 as usize];
            let from: Vec<&Linear> = info
                .from
                .iter()
                .filter(|f| self.depends(f, target))
                .collect();
            from.is_empty()
                || (*c > 0 && info.monotone && from.iter().all(|f| self.rises(f, target)))
        })
    }

    /// `form >= 0` always (while its atoms mean something).
    pub fn define(&mut self, form: Option<Linear>) {
        if let Some(form) = form {
            self.always(form, Grounds::default());
        }
    }

    fn always(&mut self, form: Linear, grounds: Grounds) {
        let form = form.tighten();
        if let Some((a, _)) = form.leading() {
            self.atoms[a.0 as usize].facts.push(Fact { form, grounds });
        }
    }

    pub fn mark(&self) -> Mark {
        Mark(self.trail.len())
    }

    pub fn back_to(&mut self, mark: Mark) {
        while self.trail.len() > mark.0 {
            if let Some(a) = self.trail.pop() {
                self.atoms[a.0 as usize].active.pop();
            }
        }
    }

    /// `form >= 0` until the mark before is restored. Also what follows from it with the facts about its newest atom, so that
    /// `q >= 1` says something about what `q` is a quotient of.
    pub fn assume(&mut self, form: &Linear, grounds: Grounds) {
        self.assume_deep(form, grounds, 3);
    }

    fn assume_deep(&mut self, form: &Linear, grounds: Grounds, depth: u32) {
        let form = form.clone().tighten();
        let Some((a, c)) = form.leading() else {
            return;
        };
        if depth > 0 {
            let info = &self.atoms[a.0 as usize];
            let others: Vec<Fact> = info
                .facts
                .iter()
                .chain(&info.active)
                .take(12)
                .cloned()
                .collect();
            for f in &others {
                let d = f.form.coefficient(a);
                if (d > 0) == (c > 0) {
                    continue;
                }
                let combined = form
                    .scale(d.abs())
                    .and_then(|e| e.add_scaled(&f.form, c.abs()));
                if let Some(e) = combined
                    && !e.terms.is_empty()
                    && e.terms.len() <= 6
                    && self.interval(&e).0 < 0
                {
                    self.assume_deep(&e, grounds.and(f.grounds), depth - 1);
                }
            }
        }
        self.atoms[a.0 as usize].active.push(Fact { form, grounds });
        self.trail.push(a);
    }

    // ---- arithmetic --------------------------------------------------------------------------------------

    pub fn product(&mut self, a: &Linear, b: &Linear) -> Option<Linear> {
        if let Some(c) = a.as_constant() {
            return b.scale(c);
        }
        if let Some(c) = b.as_constant() {
            return a.scale(c);
        }
        if a.terms.len() * b.terms.len() > 16 {
            return None;
        }
        let mut sum = Linear::constant(a.constant.checked_mul(b.constant)?);
        for &(x, cx) in &a.terms {
            sum = sum.add_scaled(&Linear::atom(x), cx.checked_mul(b.constant)?)?;
            for &(y, cy) in &b.terms {
                let p = self.atom_product(x, y, 3)?;
                sum = sum.add_scaled(&Linear::atom(p), cx.checked_mul(cy)?)?;
            }
        }
        for &(y, cy) in &b.terms {
            sum = sum.add_scaled(&Linear::atom(y), cy.checked_mul(a.constant)?)?;
        }
        Some(sum)
    }

    /// `x · y` as an atom of its own; bounds of one factor times the other, where that is not negative, are its facts.
    fn atom_product(&mut self, x: Atom, y: Atom, depth: u32) -> Option<Atom> {
        if depth == 0 {
            return None;
        }
        let key = (x.min(y), x.max(y));
        if let Some(&p) = self.products.get(&key) {
            return Some(p);
        }
        let (xl, xh, yl, yh) = {
            let (i, j) = (&self.atoms[x.0 as usize], &self.atoms[y.0 as usize]);
            (i.lo, i.hi, j.lo, j.hi)
        };
        let corners = [
            sat_mul(xl, yl),
            sat_mul(xl, yh),
            sat_mul(xh, yl),
            sat_mul(xh, yh),
        ];
        let lo = corners.into_iter().min().unwrap_or(-INF);
        let hi = corners.into_iter().max().unwrap_or(INF);
        // Facts first: they may need further products, which must be older than this one.
        let mut facts = vec![];
        for (f, g) in [(x, y), (y, x)] {
            if self.atoms[g.0 as usize].lo < 0 {
                continue;
            }
            let known: Vec<Fact> = self.atoms[f.0 as usize].facts.clone();
            for fact in known.iter().take(6) {
                let mut rest = Linear::atom(g).scale(fact.form.constant)?;
                let mut good = true;
                for &(a, c) in &fact.form.terms {
                    if a == f {
                        continue;
                    }
                    match self.atom_product(a, g, depth - 1) {
                        Some(p) => rest = rest.add_scaled(&Linear::atom(p), c)?,
                        None => good = false,
                    }
                }
                if good {
                    facts.push((fact.form.coefficient(f), rest, fact.grounds));
                }
            }
        }
        let p = self.new_atom(Kind::Product, lo, hi);
        self.made_from(p, &[&Linear::atom(x), &Linear::atom(y)], xl >= 0 && yl >= 0);
        self.products.insert(key, p);
        for (c, rest, grounds) in facts {
            if let Some(form) = rest.add_scaled(&Linear::atom(p), c) {
                self.always(form, grounds);
            }
        }
        Some(p)
    }

    /// Floor of `a / b`; `b` must not be 0.
    pub fn quotient(&mut self, a: &Linear, b: &Linear) -> Option<Linear> {
        let Some(d) = b.as_constant() else {
            return self.symbolic_quotient(a, b);
        };
        if d == 0 {
            return None;
        }
        if d < 0 {
            return self.quotient(&a.scale(-1)?, &Linear::constant(-d));
        }
        // a = d · whole + rest.
        let mut whole = Linear::constant(a.constant.div_euclid(d));
        let mut rest = Linear::constant(a.constant.rem_euclid(d));
        for &(x, c) in &a.terms {
            whole = whole.add_scaled(&Linear::atom(x), c.div_euclid(d))?;
            rest = rest.add_scaled(&Linear::atom(x), c.rem_euclid(d))?;
        }
        let (lo, hi) = self.interval(&rest);
        if lo.div_euclid(d) == hi.div_euclid(d) && hi < INF && lo > -INF {
            return whole.plus(lo.div_euclid(d));
        }
        let key = (rest.clone(), Linear::constant(d));
        let q = match self.quotients.get(&key) {
            Some(&q) => q,
            None => {
                let q = self.new_atom(Kind::Plain, lo.div_euclid(d), hi.div_euclid(d));
                self.quotients.insert(key, q);
                self.made_from(q, &[&rest], true);
                let q_times_d = Linear::atom(q).scale(d)?;
                self.define(rest.sub(&q_times_d));
                self.define(q_times_d.plus(d - 1)?.sub(&rest));
                q
            }
        };
        whole.add(&Linear::atom(q))
    }

    fn symbolic_quotient(&mut self, a: &Linear, b: &Linear) -> Option<Linear> {
        let key = (a.clone(), b.clone());
        if let Some(&q) = self.quotients.get(&key) {
            return Some(Linear::atom(q));
        }
        let (al, ah) = self.interval(a);
        let (bl, _) = self.interval(b);
        // b · q before q: the product's facts must be about q as the newest atom, so q is made first without them.
        let (lo, hi) = if bl >= 1 {
            (
                if al >= 0 { 0 } else { al },
                if ah >= 0 { ah.div_euclid(bl) } else { -1 },
            )
        } else {
            (-INF, INF)
        };
        let q = self.new_atom(Kind::Plain, lo, hi);
        self.quotients.insert(key, q);
        self.made_from(q, &[a, b], false);
        if bl >= 1 {
            let q = Linear::atom(q);
            if al >= 0 {
                self.define(a.sub(&q));
            }
            if let Some(p) = self.product(&q, b) {
                self.define(a.sub(&p));
                let upper = p.add(b).and_then(|e| e.plus(-1)).and_then(|e| e.sub(a));
                self.define(upper);
            }
        }
        Some(Linear::atom(q))
    }

    /// Floor modulo.
    pub fn remainder(&mut self, a: &Linear, b: &Linear) -> Option<Linear> {
        if let Some(d) = b.as_constant() {
            let q = self.quotient(a, &Linear::constant(d))?;
            return a.add_scaled(&q, d.checked_neg()?);
        }
        let (bl, bh) = self.interval(b);
        if bl < 1 {
            let r = self.new_atom(Kind::Plain, -INF, INF);
            self.made_from(r, &[a, b], false);
            return Some(Linear::atom(r));
        }
        let key = (a.clone(), b.clone());
        if let Some(&r) = self.remainders.get(&key) {
            return Some(Linear::atom(r));
        }
        let r = self.new_atom(Kind::Plain, 0, bh - 1);
        self.remainders.insert(key, r);
        self.made_from(r, &[a, b], false);
        let r = Linear::atom(r);
        self.define(b.plus(-1)?.sub(&r));
        Some(r)
    }

    pub fn min_max(&mut self, a: &Linear, b: &Linear, max: bool) -> Linear {
        if a == b {
            return a.clone();
        }
        let ((al, ah), (bl, bh)) = (self.interval(a), self.interval(b));
        // One is always the larger.
        if al >= bh {
            return if max { a.clone() } else { b.clone() };
        }
        if bl >= ah {
            return if max { b.clone() } else { a.clone() };
        }
        let key = (max, a.clone(), b.clone());
        if let Some(&m) = self.extremes.get(&key) {
            return Linear::atom(m);
        }
        let (kind, lo, hi) = if max {
            (Kind::Max(a.clone(), b.clone()), al.max(bl), ah.max(bh))
        } else {
            (Kind::Min(a.clone(), b.clone()), al.min(bl), ah.min(bh))
        };
        let m = self.new_atom(kind, lo, hi);
        self.made_from(m, &[a, b], true);
        self.extremes.insert(key, m);
        let m = Linear::atom(m);
        for x in [a, b] {
            self.define(if max { m.sub(x) } else { x.sub(&m) });
        }
        m
    }

    /// `positive` and `negative`: the inequalities that the condition and its opposite mean.
    pub fn select(
        &mut self,
        positive: Vec<Linear>,
        a: &Linear,
        negative: Vec<Linear>,
        b: &Linear,
    ) -> Linear {
        if a == b {
            return a.clone();
        }
        let ((al, ah), (bl, bh)) = (self.interval(a), self.interval(b));
        let mut from: Vec<&Linear> = vec![a, b];
        from.extend(&positive);
        from.extend(&negative);
        let kind = Kind::Select(positive.clone(), a.clone(), negative.clone(), b.clone());
        let s = self.new_atom(kind, al.min(bl), ah.max(bh));
        self.made_from(s, &from, false);
        Linear::atom(s)
    }

    // ---- questions -----------------------------------------------------------------------------------------

    /// Constant bounds from the atoms' own intervals.
    pub fn interval(&self, e: &Linear) -> (i128, i128) {
        let (mut lo, mut hi) = (e.constant, e.constant);
        for &(a, c) in &e.terms {
            let info = &self.atoms[a.0 as usize];
            let (x, y) = (sat_mul(info.lo, c), sat_mul(info.hi, c));
            lo = (lo + x.min(y)).max(-INF);
            hi = (hi + x.max(y)).min(INF);
        }
        (lo, hi)
    }

    /// Whether `e >= 0` follows, and from what.
    pub fn prove(&mut self, e: &Linear) -> Option<Grounds> {
        let mut steps = STEPS;
        self.search(e, &mut steps)
    }

    fn search(&mut self, e: &Linear, steps: &mut u32) -> Option<Grounds> {
        let (lo, hi) = self.interval(e);
        if lo >= 0 {
            let mut grounds = Grounds::default();
            for (a, _) in &e.terms {
                grounds = grounds.and(self.atoms[a.0 as usize].interval_grounds);
            }
            return Some(grounds);
        }
        if hi < 0 || *steps == 0 {
            return None;
        }
        *steps -= 1;
        let (a, c) = e.leading()?;
        let without = Linear {
            terms: e.terms[..e.terms.len() - 1].to_vec(),
            constant: e.constant,
        };
        let with = |x: &Linear| without.add_scaled(x, c);
        // Bounds in force are the most telling, so newest first.
        let (always, active) = {
            let info = &self.atoms[a.0 as usize];
            (info.facts.len(), info.active.len())
        };
        for i in (0..always + active).rev() {
            let info = &self.atoms[a.0 as usize];
            let fact = if i < always {
                &info.facts[i]
            } else {
                &info.active[i - always]
            };
            let d = fact.form.coefficient(a);
            if (d > 0) != (c > 0) {
                continue;
            }
            let grounds = fact.grounds;
            // |d| · e - |c| · fact has no a.
            let next = e
                .scale(d.abs())
                .and_then(|s| s.add_scaled(&fact.form, -c.abs()));
            if let Some(next) = next
                && let Some(g) = self.search(&next.tighten(), steps)
            {
                return Some(g.and(grounds));
            }
        }
        // What it is made of, case by case.
        let info = &self.atoms[a.0 as usize];
        let cases = match info.kind.clone() {
            Kind::Max(x, y) if c < 0 => self.both(with(&x)?, with(&y)?, steps),
            Kind::Min(x, y) if c > 0 => self.both(with(&x)?, with(&y)?, steps),
            Kind::Select(positive, x, negative, y) => self
                .under(&positive, &with(&x)?, steps)
                .and_then(|first| Some(first.and(self.under(&negative, &with(&y)?, steps)?))),
            _ => None,
        };
        if cases.is_some() {
            return cases;
        }
        let info = &self.atoms[a.0 as usize];
        let bound = if c > 0 { info.lo } else { info.hi };
        let grounds = info.interval_grounds;
        if bound > -INF && bound < INF {
            let next = without.plus(bound.checked_mul(c)?)?;
            return Some(self.search(&next, steps)?.and(grounds));
        }
        None
    }

    fn both(&mut self, x: Linear, y: Linear, steps: &mut u32) -> Option<Grounds> {
        let first = self.search(&x, steps)?;
        let second = self.search(&y, steps)?;
        Some(first.and(second))
    }

    /// A proof with more facts in force.
    fn under(&mut self, facts: &[Linear], e: &Linear, steps: &mut u32) -> Option<Grounds> {
        let mark = self.mark();
        let grounds = Grounds {
            guard: true,
            ..Grounds::default()
        };
        for f in facts {
            // A condition that cannot hold makes its case impossible.
            if self.interval(f).1 < 0 {
                self.back_to(mark);
                return Some(grounds);
            }
            self.assume(f, grounds);
        }
        let r = self.search(e, steps);
        self.back_to(mark);
        r
    }
}

fn sat_mul(a: i128, b: i128) -> i128 {
    a.checked_mul(b)
        .map_or(if (a < 0) == (b < 0) { INF } else { -INF }, |p| {
            p.clamp(-INF, INF)
        })
}
