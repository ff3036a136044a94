//! Attention with one shared key/value vector per position, a sink per head, and three kinds of layer.

use tessera::model::config::LayerKind;

use super::math::{dot, linear, rms_norm, rms_norm_rows};
use super::rope::{frequencies, rotate, unrotate};
use super::{Recorder, Reference};

impl Reference {
    /// Normed input `[S, D]` to the block's output `[S, D]`.
    pub(super) fn attention(
        &self,
        at: &str,
        kind: LayerKind,
        x: &[f64],
        record: &mut Recorder,
    ) -> Vec<f64> {
        let c = &self.config;
        let (heads, width, eps) = (c.num_attention_heads, c.head_dim, c.rms_norm_eps);
        let positions = x.len() / c.hidden_size;
        let angles = frequencies(c, kind.is_compressed());
        let weight = |name: &str| self.weights.get(&format!("{at}.{name}"));

        let q_residual = linear(x, weight("wq_a.weight"), c.hidden_size);
        let q_residual = rms_norm_rows(&q_residual, Some(weight("q_norm.weight")), eps);
        let mut q = linear(&q_residual, weight("wq_b.weight"), c.q_lora_rank);
        for (row, head) in q.chunks_mut(width).enumerate() {
            rms_norm(head, None, eps);
            rotate(head, row / heads, &angles);
        }
        let kv = linear(x, weight("wkv.weight"), c.hidden_size);
        let mut kv = rms_norm_rows(&kv, Some(weight("kv_norm.weight")), eps);
        kv.chunks_mut(width)
            .enumerate()
            .for_each(|(t, kv)| rotate(kv, t, &angles));
        record.put("attn.q_residual", &[positions, c.q_lora_rank], &q_residual);
        record.put("attn.q", &[positions, heads, width], &q);
        record.put("attn.kv", &[positions, width], &kv);

        let (entries, visible) = self.compressed_keys(at, kind, x, &q_residual, &angles, record);
        let mut core = self.core(&q, &kv, &entries, &visible, weight("attn_sink"));
        record.put("attn.core", &[positions, heads, width], &core);
        for (row, head) in core.chunks_mut(width).enumerate() {
            unrotate(head, row / heads, &angles);
        }
        record.put("attn.core_derot", &[positions, heads * width], &core);
        self.output(at, &core, record)
    }

    /// Compressed entries `[T, D]`, and for each position those it may attend to.
    fn compressed_keys(
        &self,
        at: &str,
        kind: LayerKind,
        x: &[f64],
        q_residual: &[f64],
        angles: &[f64],
        record: &mut Recorder,
    ) -> (Vec<f64>, Vec<Vec<usize>>) {
        let width = self.config.head_dim;
        let positions = x.len() / self.config.hidden_size;
        if kind == LayerKind::Window {
            return (Vec::new(), vec![Vec::new(); positions]);
        }
        let entries = self.compress(&format!("{at}.compressor"), kind, width, x, angles);
        let count = entries.len() / width;
        let visible = match kind {
            LayerKind::CompressedSparse { ratio } => self.pick_entries(
                &format!("{at}.indexer"),
                kind,
                ratio,
                x,
                q_residual,
                angles,
                record,
            ),
            // An entry is visible to the token that closes its block, and later.
            _ => (0..positions)
                .map(|t| (0..(t + 1) / kind.ratio()).collect())
                .collect(),
        };
        let mut mask = vec![0.0; positions * count];
        for (t, picked) in visible.iter().enumerate() {
            picked
                .iter()
                .for_each(|entry| mask[t * count + entry] = 1.0);
        }
        record.put("comp.kv", &[count, width], &entries);
        record.put("comp.visible", &[positions, count], &mask);
        (entries, visible)
    }

    /// `[S, H, D]`: softmax over the window and the visible entries; the sink takes part in the denominator only.
    fn core(
        &self,
        q: &[f64],
        kv: &[f64],
        entries: &[f64],
        visible: &[Vec<usize>],
        sink: &[f64],
    ) -> Vec<f64> {
        let (heads, width) = (self.config.num_attention_heads, self.config.head_dim);
        let scale = 1.0 / (width as f64).sqrt();
        let mut core = vec![0.0; q.len()];
        for (row, (q, out)) in q.chunks(width).zip(core.chunks_mut(width)).enumerate() {
            let (t, head) = (row / heads, row % heads);
            let window = (t + 1).saturating_sub(self.config.sliding_window)..t + 1;
            let raw = window.map(|position| &kv[position * width..][..width]);
            let keys: Vec<&[f64]> = raw
                .chain(
                    visible[t]
                        .iter()
                        .map(|entry| &entries[entry * width..][..width]),
                )
                .collect();
            let scores: Vec<f64> = keys.iter().map(|key| dot(q, key) * scale).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let mut denominator = (sink[head] - largest).exp();
            for (key, score) in keys.iter().zip(&scores) {
                let weight = (score - largest).exp();
                denominator += weight;
                out.iter_mut()
                    .zip(*key)
                    .for_each(|(out, key)| *out += weight * key);
            }
            out.iter_mut().for_each(|out| *out /= denominator);
        }
        core
    }

    /// The grouped low-rank output projection: `[S, H * D]` to `[S, hidden]`.
    fn output(&self, at: &str, core: &[f64], record: &mut Recorder) -> Vec<f64> {
        let c = &self.config;
        let (width, rank) = (c.o_group_width(), c.o_lora_rank);
        let wo_a = self.weights.get(&format!("{at}.wo_a.weight"));
        let mut low = Vec::new();
        for (row, group) in core.chunks(width).enumerate() {
            let weight = &wo_a[row % c.o_groups * rank * width..][..rank * width];
            low.extend(linear(group, weight, width));
        }
        let out = linear(
            &low,
            self.weights.get(&format!("{at}.wo_b.weight")),
            c.o_groups * rank,
        );
        let positions = out.len() / c.hidden_size;
        record.put("attn.o_a", &[positions, c.o_groups * rank], &low);
        record.put("attn.out", &[positions, c.hidden_size], &out);
        out
    }
}
