//! Rotary embedding of interleaved pairs in the last dims of a head.

use std::f64::consts::PI;

use tessera::model::config::Config;

/// Angle per position of each pair: `rope / 2` of them. Layers that compress have their own base, with YaRN.
pub(super) fn frequencies(config: &Config, compressed: bool) -> Vec<f64> {
    let dims = config.qk_rope_head_dim;
    let theta = if compressed {
        config.compress_rope_theta
    } else {
        config.rope_theta
    };
    let plain = (0..dims / 2).map(|i| theta.powf(-2.0 * i as f64 / dims as f64));
    let Some(yarn) = config.yarn.filter(|_| compressed) else {
        return plain.collect();
    };

    // The pair that turns `rotations` times over the original context.
    let pair = |rotations: f64| {
        let original = yarn.original_max_position_embeddings as f64;
        dims as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
    };
    let low = pair(yarn.beta_fast).floor().max(0.0);
    let high = pair(yarn.beta_slow).ceil().min(dims as f64 - 1.0);
    // Where both are the same pair the ramp is a step.
    let width = if high == low { 0.001 } else { high - low };
    plain
        .enumerate()
        .map(|(i, frequency)| {
            let ramp = ((i as f64 - low) / width).clamp(0.0, 1.0);
            frequency / yarn.factor * ramp + frequency * (1.0 - ramp)
        })
        .collect()
}

/// Turns the last `2 * frequencies.len()` values of `head` to `position`.
pub(super) fn rotate(head: &mut [f64], position: usize, frequencies: &[f64]) {
    turn(head, position as f64, frequencies);
}

/// Undoes [`rotate`].
pub(super) fn unrotate(head: &mut [f64], position: usize, frequencies: &[f64]) {
    turn(head, -(position as f64), frequencies);
}

fn turn(head: &mut [f64], position: f64, frequencies: &[f64]) {
    let start = head.len() - 2 * frequencies.len();
    for (pair, frequency) in head[start..]
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(frequencies)
    {
        let (sin, cos) = (position * frequency).sin_cos();
        let [a, b] = *pair;
        *pair = [a * cos - b * sin, a * sin + b * cos];
    }
}
