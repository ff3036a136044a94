//! One layer: attention and experts, each between the two halves of a hyper-connection.

use tessera::model::config::LayerKind;

use super::math::rms_norm_rows;
use super::{Recorder, Reference};

impl Reference {
    /// Residual streams `[S, N, D]` in and out. `at` is the prefix of the layer's weights.
    pub(super) fn block(
        &self,
        at: &str,
        kind: LayerKind,
        hash: bool,
        x: &[f64],
        ids: &[u32],
        record: &mut Recorder,
    ) -> Vec<f64> {
        let shape = [ids.len(), self.config.hidden_size];
        let norm = |x: &[f64], name: &str| {
            rms_norm_rows(
                x,
                Some(self.weights.get(&format!("{at}.{name}.weight"))),
                self.config.rms_norm_eps,
            )
        };
        let (collapsed, mixing) = self.hc_pre(&format!("{at}.hc_attn"), x, record, "attn_hc");
        let normed = norm(&collapsed, "attn_norm");
        record.put("attn.in", &shape, &normed);
        let out = self.attention(&format!("{at}.attn"), kind, &normed, record);
        let x = self.hc_post(&out, x, &mixing);

        let (collapsed, mixing) = self.hc_pre(&format!("{at}.hc_ffn"), &x, record, "ffn_hc");
        let normed = norm(&collapsed, "ffn_norm");
        record.put("ffn.in", &shape, &normed);
        let out = self.moe(&format!("{at}.ffn"), hash, &normed, ids, record);
        self.hc_post(&out, &x, &mixing)
    }
}
