//! Linear forms over integer atoms, with exact arithmetic.

/// An unknown integer of a kernel; numbered in the order of definition, so an atom's bounds speak of smaller ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Atom(pub u32);

/// `Σ coefficient · atom + constant`; terms in rising order of atoms, no coefficient 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Linear {
    pub terms: Vec<(Atom, i128)>,
    pub constant: i128,
}

impl Linear {
    pub fn constant(c: i128) -> Linear {
        Linear {
            terms: vec![],
            constant: c,
        }
    }

    pub fn atom(a: Atom) -> Linear {
        Linear {
            terms: vec![(a, 1)],
            constant: 0,
        }
    }

    pub fn as_constant(&self) -> Option<i128> {
        self.terms.is_empty().then_some(self.constant)
    }

    /// The newest atom and its coefficient.
    pub fn leading(&self) -> Option<(Atom, i128)> {
        self.terms.last().copied()
    }

    pub fn coefficient(&self, a: Atom) -> i128 {
        match self.terms.binary_search_by_key(&a, |t| t.0) {
            Ok(i) => self.terms[i].1,
            Err(_) => 0,
        }
    }

    /// `self + factor · other`; `None` past the range of i128 (coefficients of real programs stay tiny).
    pub fn add_scaled(&self, other: &Linear, factor: i128) -> Option<Linear> {
        let mut terms = Vec::with_capacity(self.terms.len() + other.terms.len());
        let (mut i, mut j) = (0, 0);
        while i < self.terms.len() || j < other.terms.len() {
            let a = self.terms.get(i).map(|t| t.0);
            let b = other.terms.get(j).map(|t| t.0);
            let (atom, c) = match (a, b) {
                (Some(a), Some(b)) if a == b => {
                    let c = other.terms[j].1.checked_mul(factor)?;
                    let c = self.terms[i].1.checked_add(c)?;
                    i += 1;
                    j += 1;
                    (a, c)
                }
                (Some(a), b) if b.is_none_or(|b| a < b) => {
                    i += 1;
                    (a, self.terms[i - 1].1)
                }
                (_, Some(b)) => {
                    j += 1;
                    (b, other.terms[j - 1].1.checked_mul(factor)?)
                }
                (_, None) => break,
            };
            if c != 0 {
                terms.push((atom, c));
            }
        }
        let constant = self
            .constant
            .checked_add(other.constant.checked_mul(factor)?)?;
        Some(Linear { terms, constant })
    }

    pub fn add(&self, other: &Linear) -> Option<Linear> {
        self.add_scaled(other, 1)
    }

    pub fn sub(&self, other: &Linear) -> Option<Linear> {
        self.add_scaled(other, -1)
    }

    pub fn scale(&self, factor: i128) -> Option<Linear> {
        Linear::default().add_scaled(self, factor)
    }

    pub fn plus(&self, c: i128) -> Option<Linear> {
        Some(Linear {
            terms: self.terms.clone(),
            constant: self.constant.checked_add(c)?,
        })
    }

    /// Divides `self >= 0` by the common divisor of its coefficients; the constant rounds down, which integers allow.
    pub fn tighten(mut self) -> Linear {
        let g = self.terms.iter().fold(0, |g, t| gcd(g, t.1.abs()));
        if g > 1 {
            for t in &mut self.terms {
                t.1 /= g;
            }
            self.constant = self.constant.div_euclid(g);
        }
        self
    }
}

pub fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_add_by_atom_and_drop_zero_terms() {
        let x = Linear::atom(Atom(1));
        let y = Linear::atom(Atom(2));
        let sum = x.add_scaled(&y, 3).and_then(|s| s.plus(5));
        let back = sum.as_ref().and_then(|s| s.add_scaled(&y, -3));
        assert_eq!(back, x.plus(5));
        assert_eq!(sum.map(|s| s.leading()), Some(Some((Atom(2), 3))));
    }

    #[test]
    fn tightening_rounds_the_constant_down() {
        // 4x - 6 >= 0 is x >= 2 for integers.
        let e = Linear::atom(Atom(0)).scale(4).and_then(|e| e.plus(-6));
        let want = Linear::atom(Atom(0)).plus(-2);
        assert_eq!(e.map(Linear::tighten), want);
    }
}
