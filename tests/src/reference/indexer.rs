//! The lightning indexer: scores every compressed entry for every position and picks the best.

use tessera::model::config::LayerKind;

use super::math::{dot, linear, top_k};
use super::rope::rotate;
use super::{Recorder, Reference};

/// A product this far below 0 is below 0 in float32 too.
const CLEARLY: f64 = 1e-4;

impl Reference {
    /// For each position the picked entries, best first.
    #[expect(
        clippy::too_many_arguments,
        reason = "the inputs of the formula, each under its own name"
    )]
    pub(super) fn pick_entries(
        &self,
        at: &str,
        kind: LayerKind,
        ratio: usize,
        x: &[f64],
        q_residual: &[f64],
        angles: &[f64],
        record: &mut Recorder,
    ) -> Vec<Vec<usize>> {
        let c = &self.config;
        let (heads, width) = (c.index_n_heads, c.index_head_dim);
        let positions = x.len() / c.hidden_size;
        let mut q = linear(
            q_residual,
            self.weights.get(&format!("{at}.wq_b.weight")),
            c.q_lora_rank,
        );
        q.chunks_mut(width)
            .enumerate()
            .for_each(|(row, head)| rotate(head, row / heads, angles));
        let keys = self.compress(&format!("{at}.compressor"), kind, width, x, angles);
        let count = keys.len() / width;
        let mut head_weights = linear(
            x,
            self.weights.get(&format!("{at}.weights_proj.weight")),
            c.hidden_size,
        );
        head_weights
            .iter_mut()
            .for_each(|weight| *weight *= 1.0 / (heads as f64).sqrt());

        let scale = 1.0 / (width as f64).sqrt();
        let (mut scores, mut zero) = (Vec::new(), Vec::new());
        for (q, head_weights) in q.chunks(heads * width).zip(head_weights.chunks(heads)) {
            for key in keys.chunks(width) {
                let products: Vec<f64> = q.chunks(width).map(|q| dot(q, key)).collect();
                let of_head = products.iter().zip(head_weights);
                let score: f64 = of_head
                    .map(|(product, weight)| product.max(0.0) * weight)
                    .sum();
                scores.push(score * scale);
                zero.push(products.iter().all(|product| product * scale < -CLEARLY));
            }
        }

        let mut picked = Vec::with_capacity(positions);
        let mut listed = Vec::new();
        for t in 0..positions {
            let visible = ((t + 1) / ratio).min(count);
            let is_zero = |entry: usize| zero[t * count + entry];
            let (best, gap) = top_k(&scores[t * count..][..visible], is_zero, c.index_topk);
            record.gaps.indexer = record.gaps.indexer.min(gap);
            let row: Vec<f64> = best.iter().map(|&entry| entry as f64).collect();
            listed.extend(
                row.into_iter()
                    .chain(std::iter::repeat(-1.0))
                    .take(c.index_topk.min(count)),
            );
            picked.push(best);
        }
        record.put("idx.q", &[positions, heads, width], &q);
        record.put("idx.k", &[count, width], &keys);
        record.put("idx.head_w", &[positions, heads], &head_weights);
        record.put("idx.scores", &[positions, count], &scores);
        record.put("idx.topk", &[positions, c.index_topk.min(count)], &listed);
        picked
    }
}
