//! What the CTAs of a cluster do for each other: each brings a part of the rows of shared boxes to all of them, and a slot of such a ring is empty
//! once all of them have given it back. Nobody leaves while another may still reach into its memory.

use super::{Emit, Emitter};
use crate::mlir::build::{Elem, Val};
use crate::schedule::SlotPlace;

impl<'c> Emitter<'_, 'c> {
    pub(super) fn cluster(&self) -> Emit<u32> {
        Ok(self.network()?.plan.cluster)
    }

    /// Of the CTA in its cluster, i32.
    pub(super) fn rank(&mut self) -> Emit<Val<'c>> {
        let rank = self.network()?.rank;
        Ok(self.b.resize(rank, Elem::I32, false))
    }

    /// Where the CTA's own part of the rows starts in a slot, in bytes from its start.
    pub(super) fn own_part(&mut self, place: SlotPlace) -> Emit<Val<'c>> {
        let bytes = place.rows * place.row_bytes / u64::from(self.cluster()?);
        let rank = self.rank()?;
        Ok(self.b.mul_const(rank, bytes as i64))
    }

    /// The slot whose empty barrier this is was given back here; the other CTA hears of it too.
    pub(super) fn give_back_across(&mut self, empty: Val<'c>) -> Emit {
        let rank = self.rank()?;
        let one = self.b.i32(1);
        let other = self.b.xori(rank, one);
        let far = self.b.map_shared(empty, other);
        self.b.mbarrier_arrive_across(far);
        Ok(())
    }
}
