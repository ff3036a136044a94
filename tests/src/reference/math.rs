//! What every part needs: products, norms, activations, softmax, top-k.

/// `a · b`, summed in eight interleaved partial sums.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let tail: f64 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + tail
}

/// `y = x Wᵀ`: `x` `[rows, inputs]`, `weight` `[outputs, inputs]`, result `[rows, outputs]`.
pub(super) fn linear(x: &[f64], weight: &[f64], inputs: usize) -> Vec<f64> {
    assert!(x.len().is_multiple_of(inputs) && weight.len().is_multiple_of(inputs));
    x.chunks(inputs)
        .flat_map(|row| weight.chunks(inputs).map(move |weight| dot(row, weight)))
        .collect()
}

/// The factor `1 / sqrt(mean(v²) + eps)`.
pub(super) fn inverse_rms(v: &[f64], eps: f64) -> f64 {
    1.0 / (dot(v, v) / v.len() as f64 + eps).sqrt()
}

pub(super) fn rms_norm(v: &mut [f64], weight: Option<&[f64]>, eps: f64) {
    let factor = inverse_rms(v, eps);
    v.iter_mut().for_each(|value| *value *= factor);
    if let Some(weight) = weight {
        v.iter_mut()
            .zip(weight)
            .for_each(|(value, weight)| *value *= weight);
    }
}

/// RMSNorm of rows as long as the weight.
pub(super) fn rms_norm_rows(x: &[f64], weight: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let mut out = x.to_vec();
    let width = weight.map_or(x.len(), <[f64]>::len);
    out.chunks_mut(width)
        .for_each(|row| rms_norm(row, weight, eps));
    out
}

pub(super) fn sigmoid(v: f64) -> f64 {
    1.0 / (1.0 + (-v).exp())
}

pub(super) fn silu(v: f64) -> f64 {
    v * sigmoid(v)
}

/// `ln(1 + eᵛ)`, without overflow.
pub(super) fn softplus(v: f64) -> f64 {
    v.max(0.0) + (-v.abs()).exp().ln_1p()
}

/// In place, with the largest value subtracted. Entries of -inf become 0.
pub(super) fn softmax(v: &mut [f64]) {
    let largest = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    v.iter_mut()
        .for_each(|value| *value = (*value - largest).exp());
    let sum: f64 = v.iter().sum();
    v.iter_mut().for_each(|value| *value /= sum);
}

/// Indices of the `count` largest scores, falling, ties to the smaller index; and how clear the choice is: the gap between the last
/// picked and the first rejected score (infinite if none was rejected).
///
/// `zero` says which scores are 0 in every arithmetic. Where only such ones compete for the last places the order of their indices
/// decides, and the choice is as clear as the others are far from 0.
pub(super) fn top_k(
    scores: &[f64],
    zero: impl Fn(usize) -> bool,
    count: usize,
) -> (Vec<usize>, f64) {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    // Not `total_cmp`: 0 and -0 are equal.
    order.sort_by(|&a, &b| {
        let falling = scores[b].partial_cmp(&scores[a]);
        falling.expect("scores are numbers").then(a.cmp(&b))
    });
    let gap = match (count.checked_sub(1), order.get(count)) {
        (Some(last), Some(&rejected)) if zero(order[last]) && zero(rejected) => {
            let others = (0..scores.len()).filter(|&i| !zero(i));
            others
                .map(|i| scores[i].abs())
                .fold(f64::INFINITY, f64::min)
        }
        (Some(last), Some(&rejected)) => scores[order[last]] - scores[rejected],
        _ => f64::INFINITY,
    };
    order.truncate(count);
    (order, gap)
}
