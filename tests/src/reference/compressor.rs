//! Pools blocks of tokens into single entries, each channel with its own softmax over the block.

use tessera::model::config::LayerKind;

use super::Reference;
use super::math::{linear, rms_norm, softmax};
use super::rope::rotate;

impl Reference {
    /// Input `[S, hidden]` to entries `[S / ratio, width]`, normed and rotated to the first token of their block.
    pub(super) fn compress(
        &self,
        at: &str,
        kind: LayerKind,
        width: usize,
        x: &[f64],
        angles: &[f64],
    ) -> Vec<f64> {
        let (ratio, blocks) = (kind.ratio(), kind.blocks_per_entry());
        let columns = blocks * width;
        let weight = |name: &str| self.weights.get(&format!("{at}.{name}"));
        let values = linear(x, weight("wkv.weight"), self.config.hidden_size);
        let mut gates = linear(x, weight("wgate.weight"), self.config.hidden_size);
        let ape = weight("ape");
        for (t, row) in gates.chunks_mut(columns).enumerate() {
            let ape = &ape[t % ratio * columns..][..columns];
            row.iter_mut().zip(ape).for_each(|(gate, ape)| *gate += ape);
        }

        let count = x.len() / self.config.hidden_size / ratio;
        let mut entries = vec![0.0; count * width];
        for (entry, out) in entries.chunks_mut(width).enumerate() {
            for (channel, out) in out.iter_mut().enumerate() {
                // The current block uses the last `width` columns; where blocks overlap, the one before uses the first.
                let current =
                    (entry * ratio..(entry + 1) * ratio).map(|t| (t, columns - width + channel));
                let before = (entry * ratio).saturating_sub((blocks - 1) * ratio)..entry * ratio;
                let slots: Vec<usize> = before
                    .map(|t| (t, channel))
                    .chain(current)
                    .map(|(t, column)| t * columns + column)
                    .collect();
                let mut weights: Vec<f64> = slots.iter().map(|&slot| gates[slot]).collect();
                softmax(&mut weights);
                *out = slots
                    .iter()
                    .zip(&weights)
                    .map(|(&slot, weight)| weight * values[slot])
                    .sum();
            }
            rms_norm(out, Some(weight("norm.weight")), self.config.rms_norm_eps);
            rotate(out, entry * ratio, angles);
        }
        entries
    }
}
