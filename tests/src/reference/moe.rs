//! The mixture of experts: a router by score or by token id, clamped SwiGLU experts, one shared expert.

use super::math::{linear, silu, softplus, top_k};
use super::{Recorder, Reference};

impl Reference {
    /// Normed input `[S, D]` to the block's output `[S, D]`.
    pub(super) fn moe(
        &self,
        at: &str,
        hash: bool,
        x: &[f64],
        ids: &[u32],
        record: &mut Recorder,
    ) -> Vec<f64> {
        let c = &self.config;
        let (hidden, experts, k) = (c.hidden_size, c.n_routed_experts, c.num_experts_per_tok);
        let logits = linear(x, self.weights.get(&format!("{at}.gate.weight")), hidden);
        let scores: Vec<f64> = logits.iter().map(|&logit| softplus(logit).sqrt()).collect();

        let (mut picked, mut weights, mut routed, mut shared) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for ((x, scores), &id) in x.chunks(hidden).zip(scores.chunks(experts)).zip(ids) {
            let chosen = if hash {
                let table = self.weights.expert_ids(&format!("{at}.gate.tid2eid"));
                table[id as usize * k..][..k]
                    .iter()
                    .map(|&expert| expert as usize)
                    .collect()
            } else {
                self.best_experts(at, scores, record)
            };
            let sum: f64 = chosen.iter().map(|&expert| scores[expert]).sum();
            let mut total = vec![0.0; hidden];
            for &expert in &chosen {
                let weight = scores[expert] / sum * c.routed_scaling_factor;
                let out = self.expert(&format!("{at}.experts.{expert}"), x);
                total
                    .iter_mut()
                    .zip(&out)
                    .for_each(|(total, out)| *total += weight * out);
                picked.push(expert as f64);
                weights.push(weight);
            }
            routed.extend(total);
            shared.extend(self.expert(&format!("{at}.shared_experts"), x));
        }
        let out: Vec<f64> = routed
            .iter()
            .zip(&shared)
            .map(|(routed, shared)| routed + shared)
            .collect();

        let positions = ids.len();
        record.put("gate.logits", &[positions, experts], &logits);
        record.put("gate.scores", &[positions, experts], &scores);
        record.put("gate.topk_idx", &[positions, k], &picked);
        record.put("gate.topk_w", &[positions, k], &weights);
        record.put("moe.routed", &[positions, hidden], &routed);
        record.put("moe.shared", &[positions, hidden], &shared);
        record.put("moe.out", &[positions, hidden], &out);
        out
    }

    /// The bias takes part in the choice, not in the weights.
    fn best_experts(&self, at: &str, scores: &[f64], record: &mut Recorder) -> Vec<usize> {
        let bias = self.weights.get(&format!("{at}.gate.bias"));
        let biased: Vec<f64> = scores
            .iter()
            .zip(bias)
            .map(|(score, bias)| score + bias)
            .collect();
        let (best, gap) = top_k(&biased, |_| false, self.config.num_experts_per_tok);
        record.gaps.router = record.gaps.router.min(gap);
        best
    }

    /// `w2 (silu(min(w1 x, limit)) · clamp(w3 x, ±limit))`.
    fn expert(&self, at: &str, x: &[f64]) -> Vec<f64> {
        let weight = |name: &str| self.weights.get(&format!("{at}.{name}.weight"));
        let limit = self.config.swiglu_limit;
        let gate = linear(x, weight("w1"), x.len());
        let up = linear(x, weight("w3"), x.len());
        let inner: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(gate, up)| silu(gate.min(limit)) * up.clamp(-limit, limit))
            .collect();
        linear(&inner, weight("w2"), inner.len())
    }
}
