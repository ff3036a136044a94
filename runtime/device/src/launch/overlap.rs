//! Whether two strided rectangles of memory share a byte, exactly.
//!
//! Both are sums of `i_k * stride_k` with `0 <= i_k < extent_k`; they meet where one linear equation with bounded unknowns has a
//! solution. That is found by search, largest coefficient first, with bounds and common divisors cutting it short; tensors lead to
//! few steps. A search that grows beyond [`MAX_STEPS`] counts as an overlap, so that the answer errs on the safe side.

use crate::tensor::Raw;
use tessera_artifact::MAX_RANK;

const MAX_STEPS: u32 = 20_000;

/// `Σ stride * i` over `0..=last`, stride > 0.
#[derive(Clone, Copy, Default)]
struct Term {
    stride: i128,
    last: i128,
}

/// The memory of a tensor as bytes: `start + Σ terms + 0..run`.
struct Bytes {
    start: i128,
    terms: [Term; MAX_RANK],
    count: usize,
    run: i128,
}

/// Do two tensors share a byte? Empty ones share none.
pub(super) fn overlap(a: &Raw, b: &Raw) -> bool {
    if a.place != b.place || a.shape.contains(&0) || b.shape.contains(&0) {
        return false;
    }
    let (a, b) = (Bytes::of(a), Bytes::of(b));
    if a.end() <= b.start || b.end() <= a.start {
        return false;
    }
    // a.start + Σa + x = b.start + Σb + y with 0 <= x < a.run, 0 <= y < b.run. Turning b's unknowns round (i -> last - i) makes
    // every coefficient positive: Σa + Σb' + x + y' = b.start - a.start + b's reach.
    let mut terms = [Term::default(); 2 * MAX_RANK + 2];
    let mut count = 0;
    let bytes = [
        Term {
            stride: 1,
            last: a.run - 1,
        },
        Term {
            stride: 1,
            last: b.run - 1,
        },
    ];
    for term in a.terms[..a.count]
        .iter()
        .chain(&b.terms[..b.count])
        .chain(&bytes)
    {
        if term.last > 0 {
            terms[count] = *term;
            count += 1;
        }
    }
    let target = b.end() - 1 - a.start;
    let terms = &mut terms[..count];
    terms.sort_unstable_by_key(|t| std::cmp::Reverse(t.stride));
    solvable(terms, target, &mut MAX_STEPS.clone())
}

/// Do two elements of one tensor share a byte? (A stride of 0, or rows that run into each other.)
pub(super) fn overlaps_itself(raw: &Raw) -> bool {
    if raw.shape.contains(&0) {
        return false;
    }
    let mut bytes = Bytes::of_unmerged(raw);
    let terms = &mut bytes.terms[..bytes.count];
    terms.sort_unstable_by_key(|t| t.stride);
    // Nested boxes: each stride passes everything below it. Other arrangements without overlap exist, but no tensor library makes them.
    let mut reach = bytes.run;
    for term in terms {
        if term.stride < reach {
            return true;
        }
        reach += term.stride * term.last;
    }
    false
}

impl Bytes {
    fn of_unmerged(raw: &Raw) -> Bytes {
        let bits = raw.dtype.bits() as i128;
        let mut start = raw.address as i128 * 8;
        let mut terms = [Term::default(); MAX_RANK];
        let mut count = 0;
        for (&extent, &stride) in raw.shape.iter().zip(raw.strides.iter()) {
            let (stride, last) = (stride as i128 * bits, extent as i128 - 1);
            if last > 0 {
                start += (stride * last).min(0);
                terms[count] = Term {
                    stride: stride.abs(),
                    last,
                };
                count += 1;
            }
        }
        // Bits, so that half bytes count; the caller turns to bytes.
        Bytes {
            start,
            terms,
            count,
            run: bits,
        }
        .in_bytes()
    }

    /// Innermost axes without gaps become one run.
    fn of(raw: &Raw) -> Bytes {
        let mut bytes = Self::of_unmerged(raw);
        bytes.terms[..bytes.count].sort_unstable_by_key(|t| t.stride);
        let mut merged = 0;
        for term in &bytes.terms[..bytes.count] {
            if term.stride > bytes.run {
                break;
            }
            bytes.run += term.stride * term.last;
            merged += 1;
        }
        bytes.terms.copy_within(merged..bytes.count, 0);
        bytes.count -= merged;
        bytes
    }

    /// 4-bit elements lie along one axis of stride 1; that axis becomes part of the run, and whatever is left is whole bytes or is
    /// rounded to them, outwards.
    fn in_bytes(mut self) -> Bytes {
        if self.run % 8 != 0 {
            let inner = (0..self.count).find(|&i| self.terms[i].stride == self.run);
            if let Some(i) = inner {
                self.run += self.terms[i].stride * self.terms[i].last;
                self.terms.copy_within(i + 1..self.count, i);
                self.count -= 1;
            }
        }
        let end = (self.start + self.run + 7).div_euclid(8);
        self.start = self.start.div_euclid(8);
        self.run = end - self.start;
        for term in &mut self.terms[..self.count] {
            term.stride /= 8;
        }
        self
    }

    /// One past the last byte.
    fn end(&self) -> i128 {
        self.start
            + self.terms[..self.count]
                .iter()
                .map(|t| t.stride * t.last)
                .sum::<i128>()
            + self.run
    }
}

/// Is `Σ stride * i = target` for some `0 <= i <= last`? `terms` fall by stride.
fn solvable(terms: &[Term], target: i128, steps: &mut u32) -> bool {
    let Some((first, rest)) = terms.split_first() else {
        return target == 0;
    };
    let reach: i128 = rest.iter().map(|t| t.stride * t.last).sum();
    if target < 0 || target > reach + first.stride * first.last {
        return false;
    }
    let divisor = terms.iter().fold(0, |g, t| gcd(g, t.stride));
    if divisor != 0 && target % divisor != 0 {
        return false;
    }
    if first.stride == 0 {
        return solvable(rest, target, steps);
    }
    // The values of this unknown that leave the rest a target within its reach.
    let lowest = (target - reach + first.stride - 1)
        .div_euclid(first.stride)
        .max(0);
    let highest = target.div_euclid(first.stride).min(first.last);
    let mut i = highest;
    while i >= lowest {
        if *steps == 0 {
            return true;
        }
        *steps -= 1;
        if solvable(rest, target - first.stride * i, steps) {
            return true;
        }
        i -= 1;
    }
    false
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Place, View};
    use tessera_artifact::DType;

    fn raw(dtype: DType, address: u64, shape: &[i64], strides: &[i64]) -> Raw {
        // SAFETY: never read.
        let view = unsafe { View::from_raw(address as *const u8, dtype, shape, strides) }.unwrap();
        assert_eq!(view.raw.place, Place::Host);
        view.raw
    }

    /// Every byte of the tensor, one by one.
    fn bytes(raw: &Raw) -> Vec<i64> {
        let mut starts = vec![raw.address as i64 * 8];
        for (&n, &s) in raw.shape.iter().zip(raw.strides.iter()) {
            starts = starts
                .iter()
                .flat_map(|&at| (0..n).map(move |i| at + i * s * raw.dtype.bits() as i64))
                .collect();
        }
        starts
            .iter()
            .flat_map(|&at| at.div_euclid(8)..(at + raw.dtype.bits() as i64 + 7).div_euclid(8))
            .collect()
    }

    #[test]
    fn columns_of_one_matrix_do_not_overlap() {
        let left = raw(DType::F32, 4096, &[1000, 4], &[8, 1]);
        let right = raw(DType::F32, 4096 + 16, &[1000, 4], &[8, 1]);
        let wide = raw(DType::F32, 4096 + 16, &[1000, 5], &[8, 1]);
        assert!(!overlap(&left, &right));
        assert!(overlap(&left, &wide));
        assert!(overlap(&left, &left));
        assert!(!overlap(&left, &raw(DType::F32, 4096, &[0, 4], &[8, 1])));
    }

    #[test]
    fn agrees_with_listing_every_byte() {
        let mut state = 7u64;
        let mut random = move |n: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % n
        };
        let types = [DType::U8, DType::F32, DType::BF16, DType::F64];
        let mut seen = [0; 2];
        for _ in 0..5000 {
            let mut one = || {
                let dtype = types[random(4) as usize];
                let rank = random(4) as usize;
                let shape: Vec<i64> = (0..rank).map(|_| random(5) as i64).collect();
                let strides: Vec<i64> = (0..rank).map(|_| random(40) as i64 - 12).collect();
                raw(dtype, 100_000 + random(160), &shape, &strides)
            };
            let (a, b) = (one(), one());
            let (in_a, in_b) = (bytes(&a), bytes(&b));
            let expected = in_a.iter().any(|x| in_b.contains(x));
            assert_eq!(overlap(&a, &b), expected, "{a:?} {b:?}");
            seen[expected as usize] += 1;
            let mut unique = in_a.clone();
            unique.sort_unstable();
            unique.dedup();
            // Errs on the safe side only.
            assert!(overlaps_itself(&a) || unique.len() == in_a.len(), "{a:?}");
        }
        assert!(seen[0] > 500 && seen[1] > 500, "{seen:?}");
    }

    #[test]
    fn dense_and_padded_tensors_do_not_overlap_themselves() {
        assert!(!overlaps_itself(&raw(
            DType::F32,
            4096,
            &[3, 5, 7],
            &[35, 7, 1]
        )));
        assert!(!overlaps_itself(&raw(DType::E2M1, 4096, &[3, 5], &[6, 1])));
        assert!(!overlaps_itself(&raw(DType::F32, 4096, &[5, 3], &[1, 8])));
        assert!(overlaps_itself(&raw(DType::F32, 4096, &[5, 3], &[0, 1])));
        assert!(overlaps_itself(&raw(DType::F32, 4096, &[5, 3], &[2, 1])));
    }
}
