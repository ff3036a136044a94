//! Manifold-constrained hyper-connections: `N` residual streams, mixed into a block's input and updated by its output.

use super::math::{dot, inverse_rms, linear, sigmoid, softmax};
use super::{Recorder, Reference};

/// The coefficients of one site for every position.
pub(super) struct Mixing {
    /// `[S, N]`.
    post: Vec<f64>,
    /// `[S, N, N]`, after Sinkhorn.
    comb: Vec<f64>,
}

impl Reference {
    /// The input of a block, `[S, D]`, and how its output will update the streams `x` `[S, N, D]`.
    pub(super) fn hc_pre(
        &self,
        site: &str,
        x: &[f64],
        record: &mut Recorder,
        name: &str,
    ) -> (Vec<f64>, Mixing) {
        let (hidden, n) = (self.config.hidden_size, self.config.hc_mult);
        let weight = |part: &str| self.weights.get(&format!("{site}_{part}"));
        let (function, base, scale) = (weight("fn"), weight("base"), weight("scale"));
        let (mut pre, mut post, mut comb, mut collapsed) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for streams in x.chunks(n * hidden) {
            let factor = inverse_rms(streams, self.config.rms_norm_eps);
            let mixed: Vec<f64> = linear(streams, function, n * hidden)
                .iter()
                .map(|value| value * factor)
                .collect();
            let weights: Vec<f64> = (0..n)
                .map(|j| sigmoid(mixed[j] * scale[0] + base[j]) + self.config.hc_eps)
                .collect();
            collapsed.extend(weighted_sum(&weights, streams, hidden));
            pre.extend(weights);
            post.extend((n..2 * n).map(|j| 2.0 * sigmoid(mixed[j] * scale[1] + base[j])));
            let raw: Vec<f64> = (2 * n..n * (2 + n))
                .map(|j| mixed[j] * scale[2] + base[j])
                .collect();
            comb.extend(self.sinkhorn(raw));
        }
        let positions = collapsed.len() / hidden;
        record.put(&format!("{name}.pre"), &[positions, n], &pre);
        record.put(&format!("{name}.post"), &[positions, n], &post);
        record.put(&format!("{name}.comb"), &[positions, n, n], &comb);
        record.put(
            &format!("{name}.collapsed"),
            &[positions, hidden],
            &collapsed,
        );
        (collapsed, Mixing { post, comb })
    }

    /// `X'[k] = post[k] out + Σ_j C[j, k] X[j]`.
    pub(super) fn hc_post(&self, out: &[f64], x: &[f64], mixing: &Mixing) -> Vec<f64> {
        let (hidden, n) = (self.config.hidden_size, self.config.hc_mult);
        let mut next = Vec::with_capacity(x.len());
        for (t, streams) in x.chunks(n * hidden).enumerate() {
            let (post, comb) = (
                &mixing.post[t * n..][..n],
                &mixing.comb[t * n * n..][..n * n],
            );
            for k in 0..n {
                let column: Vec<f64> = (0..n).map(|j| comb[j * n + k]).collect();
                let kept = weighted_sum(&column, streams, hidden);
                let new = &out[t * hidden..][..hidden];
                next.extend(kept.iter().zip(new).map(|(kept, new)| post[k] * new + kept));
            }
        }
        next
    }

    /// The streams collapsed once more, before the final norm.
    pub(super) fn hc_head(&self, prefix: &str, x: &[f64]) -> Vec<f64> {
        let (hidden, n) = (self.config.hidden_size, self.config.hc_mult);
        let weight = |part: &str| self.weights.get(&format!("{prefix}hc_head_{part}"));
        let (function, base, scale) = (weight("fn"), weight("base"), weight("scale"));
        let mut collapsed = Vec::new();
        for streams in x.chunks(n * hidden) {
            let factor = inverse_rms(streams, self.config.rms_norm_eps);
            let weights: Vec<f64> = (0..n)
                .map(|j| {
                    dot(streams, &function[j * n * hidden..][..n * hidden]) * factor * scale[0]
                        + base[j]
                })
                .map(|value| sigmoid(value) + self.config.hc_eps)
                .collect();
            collapsed.extend(weighted_sum(&weights, streams, hidden));
        }
        collapsed
    }

    /// Row softmax and column step, then the remaining (row, column) pairs. Columns are last, so they sum to 1.
    fn sinkhorn(&self, mut c: Vec<f64>) -> Vec<f64> {
        let (n, eps) = (self.config.hc_mult, self.config.hc_eps);
        for row in c.chunks_mut(n) {
            softmax(row);
            row.iter_mut().for_each(|value| *value += eps);
        }
        normalise_columns(&mut c, n, eps);
        for _ in 1..self.config.hc_sinkhorn_iters {
            for row in c.chunks_mut(n) {
                let sum: f64 = row.iter().sum::<f64>() + eps;
                row.iter_mut().for_each(|value| *value /= sum);
            }
            normalise_columns(&mut c, n, eps);
        }
        c
    }
}

fn normalise_columns(c: &mut [f64], n: usize, eps: f64) {
    for k in 0..n {
        let sum: f64 = (0..n).map(|j| c[j * n + k]).sum::<f64>() + eps;
        (0..n).for_each(|j| c[j * n + k] /= sum);
    }
}

/// `Σ_j weights[j] rows[j]`.
fn weighted_sum(weights: &[f64], rows: &[f64], width: usize) -> Vec<f64> {
    let mut sum = vec![0.0; width];
    for (weight, row) in weights.iter().zip(rows.chunks(width)) {
        sum.iter_mut()
            .zip(row)
            .for_each(|(sum, value)| *sum += weight * value);
    }
    sum
}
