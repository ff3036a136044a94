//! The multi-token-prediction block behind the forward pass.

use std::mem::swap;

use super::ModelError;
use super::kernels::{EmbedArgs, MtpMergeArgs};
use super::kv_cache::{KvCache, LayerCache, Parts, Shared};
use super::ops::{Done, linear, rms};
use super::parameters::{DraftBlock, Parameters};
use super::workspace::{DraftWorkspace, Rows};

use super::forward::{Pass, collapse};

impl Pass<'_, '_> {
    /// draft logits [T, V]: one more block over the streams and the next token's embedding, its own head norm, the shared head.
    pub(super) fn draft(
        &mut self,
        p: &Parameters,
        draft: &DraftBlock,
        cache: &mut KvCache,
    ) -> Done {
        let (c, k, t) = (self.c, self.k, self.t);
        let (n, hidden) = (c.hc_mult, c.hidden_size);
        let Parts {
            draft: Some(cache),
            mut shared,
            ..
        } = cache.parts()
        else {
            return Err(ModelError::Input("the session has no draft cache".into()));
        };
        let Some(mut d) = self.w.draft.take() else {
            return Err(ModelError::Input(
                "the session has no draft workspace".into(),
            ));
        };
        self.tracer.enter(|| "mtp.".into());
        let done = self.draft_block(p, draft, (cache, &mut shared), &mut d, [t, n, hidden]);
        let last = match done {
            Ok(()) => linear(
                k,
                self.w.head_norm.shaped(&[t, 1, hidden])?,
                &p.head,
                &mut d.logits,
                &mut None,
            )
            .and_then(|()| {
                self.tracer.record("head_norm", self.w.head_norm.rows(t)?)?;
                self.tracer.record("logits", d.logits.rows(t)?)
            }),
            Err(error) => Err(error),
        };
        self.w.draft = Some(d);
        last
    }

    fn draft_block(
        &mut self,
        p: &Parameters,
        draft: &DraftBlock,
        (cache, shared): (&mut LayerCache, &mut Shared),
        d: &mut DraftWorkspace,
        [t, n, hidden]: [usize; 3],
    ) -> Done {
        let (c, k) = (self.c, self.k);
        let w = &mut *self.w;
        // X = e_proj(rms(embedding)) in every stream + h_proj(rms(X)) stream by stream.
        k.embed(EmbedArgs {
            ids: w.next_ids.rows(t)?,
            table: p.embed.view(),
            x: d.embedded.rows_mut(t)?,
        })?;
        rms(
            k,
            d.embedded.shaped(&[t, hidden])?,
            &draft.enorm,
            &mut d.e,
            c,
        )?;
        linear(
            k,
            d.e.shaped(&[t, 1, hidden])?,
            &draft.e_proj,
            &mut d.e_proj,
            &mut w.quantised,
        )?;
        let streams = w.x.shaped(&[t * n, hidden])?;
        rms(k, streams, &draft.hnorm, &mut d.h, c)?;
        linear(
            k,
            d.h.shaped(&[t * n, 1, hidden])?,
            &draft.h_proj,
            &mut d.h_proj,
            &mut w.quantised,
        )?;
        k.mtp_merge(MtpMergeArgs {
            e: d.e_proj.rows(t)?,
            h: d.h_proj.rows(t)?,
            x: w.x.rows_mut(t)?,
        })?;
        self.tracer.watch("block_in", || w.x.rows_mut(t))?;
        self.block(&draft.layer, cache, shared, None)?;
        let w = &mut *self.w;
        self.tracer.watch("block_out", || w.x.rows_mut(t))?;
        swap(&mut w.x, &mut w.head_x);
        let collapsed = collapse(c, k, &draft.hc_head, &draft.norm, w, t);
        swap(&mut w.x, &mut w.head_x);
        collapsed
    }
}
