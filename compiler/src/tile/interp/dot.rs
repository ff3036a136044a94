//! Matrix products in the declared order: k ascending for every output element, whatever else is blocked.

use super::words::vectorised;

/// Output columns per panel of `b`.
const PANEL: usize = 16;
/// Output rows per step.
const ROWS: usize = 4;

/// `b`, `[k, n]` row-major, as panels `[n / PANEL][k][PANEL]`, the last one padded with zeros.
fn panels<T: Copy + Default>(b: &[T], k: usize, n: usize) -> Vec<T> {
    let mut out = vec![T::default(); n.div_ceil(PANEL) * k * PANEL];
    for (p, panel) in out.chunks_exact_mut((k * PANEL).max(1)).enumerate() {
        let columns = PANEL.min(n - p * PANEL);
        for (row, to) in panel.chunks_exact_mut(PANEL).enumerate() {
            to[..columns].copy_from_slice(&b[row * n + p * PANEL..][..columns]);
        }
    }
    out
}

/// One block of outputs for all k: `c[r][j] = step(a[r][k], panel[k][j], c[r][j])`, k ascending.
#[inline(always)]
fn block<T: Copy>(
    c: &mut [[T; PANEL]; ROWS],
    a: [&[T]; ROWS],
    panel: &[[T; PANEL]],
    step: impl Fn(T, T, T) -> T,
) {
    for (k, b_row) in panel.iter().enumerate() {
        for (row, a) in c.iter_mut().zip(a) {
            for (out, &b) in row.iter_mut().zip(b_row) {
                *out = step(a[k], b, *out);
            }
        }
    }
}

/// Calls `block` for every block of `ROWS` x `PANEL` outputs; all matrices row-major.
#[inline(always)]
fn blocked<T: Copy + Default>(
    acc: &mut [T],
    a: &[T],
    b: &[T],
    (m, n, k): (usize, usize, usize),
    block: impl Fn(&mut [[T; PANEL]; ROWS], [&[T]; ROWS], &[[T; PANEL]]),
) {
    let packed = panels(b, k, n);
    for p in 0..n.div_ceil(PANEL) {
        let panel = packed[p * k * PANEL..][..k * PANEL].as_chunks::<PANEL>().0;
        let columns = PANEL.min(n - p * PANEL);
        for m0 in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - m0);
            let mut c = [[T::default(); PANEL]; ROWS];
            for r in 0..rows {
                c[r][..columns].copy_from_slice(&acc[(m0 + r) * n + p * PANEL..][..columns]);
            }
            // Rows past the end repeat the last one and are dropped.
            let lines = std::array::from_fn(|r: usize| &a[(m0 + r.min(rows - 1)) * k..][..k]);
            block(&mut c, lines, panel);
            for r in 0..rows {
                acc[(m0 + r) * n + p * PANEL..][..columns].copy_from_slice(&c[r][..columns]);
            }
        }
    }
}

/// [`block`] for f32 and fma, in registers; `FLUSH`: subnormal results become zeros of their sign.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn block_avx2<const FLUSH: bool>(
    c: &mut [[f32; PANEL]; ROWS],
    a: [&[f32]; ROWS],
    panel: &[[f32; PANEL]],
) {
    use std::arch::x86_64::*;
    let a = a.map(|line| &line[..panel.len()]);
    let least = _mm256_set1_ps(f32::MIN_POSITIVE);
    let sign = _mm256_set1_ps(-0.0);
    let step = |x, y, z| {
        let sum = _mm256_fmadd_ps(x, y, z);
        if !FLUSH {
            return sum;
        }
        // All bits of what is not below the least normal number (or is NaN), else the sign.
        let kept = _mm256_cmp_ps::<_CMP_NLT_UQ>(_mm256_andnot_ps(sign, sum), least);
        _mm256_and_ps(sum, _mm256_or_ps(kept, sign))
    };
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for (sums, row) in sums.iter_mut().zip(c.iter()) {
        // SAFETY: a row holds two vectors of eight.
        *sums = unsafe {
            [
                _mm256_loadu_ps(row.as_ptr()),
                _mm256_loadu_ps(row.as_ptr().add(8)),
            ]
        };
    }
    for (k, b_row) in panel.iter().enumerate() {
        // SAFETY: as above.
        let b = unsafe {
            [
                _mm256_loadu_ps(b_row.as_ptr()),
                _mm256_loadu_ps(b_row.as_ptr().add(8)),
            ]
        };
        for r in 0..ROWS {
            let x = _mm256_set1_ps(a[r][k]);
            sums[r] = [step(x, b[0], sums[r][0]), step(x, b[1], sums[r][1])];
        }
    }
    for (sums, row) in sums.iter().zip(c.iter_mut()) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(row.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(row.as_mut_ptr().add(8), sums[1]);
        }
    }
}

fn dot_f32_any<const FLUSH: bool>(
    acc: &mut [f32],
    a: &[f32],
    b: &[f32],
    size: (usize, usize, usize),
) {
    #[cfg(target_arch = "x86_64")]
    if super::words::has_avx2() {
        // SAFETY: the features were found on this machine.
        return blocked(acc, a, b, size, |c, a, panel| unsafe {
            block_avx2::<FLUSH>(c, a, panel)
        });
    }
    blocked(acc, a, b, size, |c, a, panel| {
        block(c, a, panel, |x: f32, y, z| {
            let sum = x.mul_add(y, z);
            if FLUSH { flush(sum) } else { sum }
        })
    });
}

/// `acc[m, n] = fma(a[m, k], b[k, n], acc[m, n])`, k ascending; all row-major.
pub fn dot_f32(acc: &mut [f32], a: &[f32], b: &[f32], m: usize, n: usize, k: usize) {
    dot_f32_any::<false>(acc, a, b, (m, n, k));
}

vectorised! {
    pub fn dot_f64(acc: &mut [f64], a: &[f64], b: &[f64], m: usize, n: usize, k: usize) {
        blocked(acc, a, b, (m, n, k), |c, a, panel| block(c, a, panel, |x: f64, y, z| x.mul_add(y, z)))
    }
}

vectorised! {
    pub fn dot_i32(acc: &mut [i32], a: &[i32], b: &[i32], m: usize, n: usize, k: usize) {
        blocked(acc, a, b, (m, n, k), |c, a, panel| {
            block(c, a, panel, |x: i32, y, z: i32| x.wrapping_mul(y).wrapping_add(z))
        })
    }
}

/// A subnormal becomes a zero of its sign.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        f32::from_bits(x.to_bits() & (1 << 31))
    } else {
        x
    }
}

/// bf16 operands, widened: pairs ascending in k, in a pair first the odd k then the even one, subnormals flushed
/// (`vdpbf16ps`). The flush is of the rounded result.
pub fn dot_bf16(acc: &mut [f32], a: &[f32], b: &[f32], m: usize, n: usize, k: usize) {
    let even = k.next_multiple_of(2);
    let mut a_pairs = vec![0.0; m * even];
    for (to, from) in a_pairs
        .chunks_exact_mut(even.max(1))
        .zip(a.chunks_exact(k.max(1)))
    {
        for (i, &x) in from.iter().enumerate() {
            to[i ^ 1] = flush(x);
        }
    }
    let mut b_pairs = vec![0.0; even * n];
    for (i, from) in b.chunks_exact(n.max(1)).enumerate() {
        for (to, &y) in b_pairs[(i ^ 1) * n..].iter_mut().zip(from) {
            *to = flush(y);
        }
    }
    acc.iter_mut().for_each(|c| *c = flush(*c));
    dot_f32_any::<true>(acc, &a_pairs, &b_pairs, (m, n, even));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| {
                ((i.wrapping_mul(2654435761).wrapping_add(seed) >> 7) % 2001) as f32 / 97.0 - 10.0
            })
            .collect()
    }

    #[test]
    fn blocks_keep_the_declared_order() {
        for (m, n, k) in [
            (1, 1, 1),
            (4, 16, 8),
            (5, 17, 3),
            (3, 33, 0),
            (7, 1, 64),
            (0, 4, 4),
        ] {
            let (a, b, c) = (data(m * k, 1), data(k * n, 2), data(m * n, 3));
            let mut plain = c.clone();
            let mut pairs: Vec<f32> = c.iter().map(|&x| flush(x)).collect();
            for i in 0..m {
                for j in 0..n {
                    for l in 0..k {
                        plain[i * n + j] = a[i * k + l].mul_add(b[l * n + j], plain[i * n + j]);
                    }
                    for pair in 0..k.div_ceil(2) {
                        for l in [2 * pair + 1, 2 * pair] {
                            let (x, y) = if l < k {
                                (a[i * k + l], b[l * n + j])
                            } else {
                                (0.0, 0.0)
                            };
                            pairs[i * n + j] = flush(x.mul_add(y, pairs[i * n + j]));
                        }
                    }
                }
            }
            let mut got = c.clone();
            dot_f32(&mut got, &a, &b, m, n, k);
            assert_eq!(got, plain);
            let mut got = c;
            dot_bf16(&mut got, &a, &b, m, n, k);
            assert_eq!(got, pairs);
        }
    }

    #[test]
    fn bf16_flushes_subnormals() {
        let tiny = f32::from_bits(1 << 16);
        let mut acc = [tiny];
        dot_bf16(&mut acc, &[tiny], &[1.0], 1, 1, 1);
        assert_eq!(acc[0].to_bits(), 0);
        let mut acc = [0.0];
        dot_bf16(&mut acc, &[-1e-20], &[1e-20], 1, 1, 1);
        // The odd k of the pair is 0 * 0 and comes first; then -1e-40 is flushed to -0.
        assert_eq!(acc[0].to_bits(), 1 << 31);
    }
}
