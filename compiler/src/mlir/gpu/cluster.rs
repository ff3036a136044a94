//! What the CTAs of a cluster do for each other: each fills a part of the rows of a shared ring's slots in all of them, and a slot is empty once
//! all of them have given it back.
//!
//! Boxes are brought to all by the hardware. What threads store they store twice, to the CTA's own slot and to the other's, whose barrier counts
//! the bytes that come so. Nobody leaves while another may still reach into its memory.

use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Val};
use crate::schedule::{Ring, SlotPlace};

impl<'c> Emitter<'_, 'c> {
    pub(super) fn cluster(&self) -> Emit<u32> {
        Ok(self.network()?.plan.cluster)
    }

    /// Where the CTA's own part of the rows starts in a slot, in bytes from its start.
    pub(super) fn own_part(&mut self, place: SlotPlace) -> Emit<Val<'c>> {
        let bytes = place.rows * place.row_bytes / u64::from(self.cluster()?);
        let rank = self.rank_i32()?;
        Ok(self.b.mul_const(rank, bytes as i64))
    }

    pub(super) fn rank_i32(&mut self) -> Emit<Val<'c>> {
        let rank = self.network()?.rank;
        Ok(self.b.resize(rank, Elem::I32, false))
    }

    /// The same place in the other CTA's shared memory.
    fn across(&mut self, address: Val<'c>) -> Emit<Val<'c>> {
        let rank = self.rank_i32()?;
        let one = self.b.i32(1);
        let other = self.b.xori(rank, one);
        Ok(self.b.map_shared(address, other))
    }

    /// The slot whose empty barrier this is was given back here; the others hear of it too.
    pub(super) fn give_back_across(&mut self, empty: Val<'c>) -> Emit {
        let far = self.across(empty)?;
        self.b.mbarrier_arrive_across(far);
        Ok(())
    }

    /// Where the CTA's part of a slot goes in the other CTA, and the barrier there that counts its bytes; of a ring that is not shared nowhere.
    pub(super) fn far_part(
        &mut self,
        ring: &Ring,
        slot: Val<'c>,
        start: Val<'c>,
    ) -> Emit<Option<Far<'c>>> {
        if !ring.shared {
            return Ok(None);
        }
        let full = self.barrier_of(ring, slot, false)?;
        Ok(Some(Far {
            start: self.across(start)?,
            full: self.across(full)?,
        }))
    }

    /// A thread of each warp says that the warp has filled its part of a slot, one that as many bytes come from the other CTA.
    pub(super) fn publish_part(&mut self, number: usize, ring: &Ring, slot: Val<'c>) -> Emit {
        let first = self.first_of_warp();
        let one = self.is_first_thread();
        let full = self.barrier_of(ring, slot, false)?;
        let open = self.b.begin_if(one);
        let cluster = u64::from(self.cluster()?);
        self.b
            .mbarrier_expect(full, ring.bytes / cluster * (cluster - 1));
        self.b.end_if(open);
        let others = self.b.xori(first, one);
        let open = self.b.begin_if(others);
        self.b.mbarrier_arrive(full);
        self.b.end_if(open);
        self.advance(number);
        Ok(())
    }
}

/// In the other CTA of a cluster.
#[derive(Clone, Copy)]
pub(super) struct Far<'c> {
    pub start: Val<'c>,
    pub full: Val<'c>,
}
