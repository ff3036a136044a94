//! Pages of compressed entries and the requests that hold them.
//!
//! A page covers [`PAGE_TOKENS`] tokens of one sequence in every layer: page p of a layer is a run of rows of each of its tensors, and all layers
//! number their pages alike, so that a request has one list of pages. Kernels read the lists of all sequences from one table.
//!
//! Needs: one owner of the tensors that the pages number. Keeps: a page belongs to one sequence or is free; what it held is not erased, since nobody
//! reads an entry before its sequence has written it.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, View};

use super::ModelError;
use super::error::CacheFull;

/// Tokens of a page: a multiple of the 128 that layers of ratio 4 and of ratio 128 both close blocks at, and so many that a page of index keys of
/// ratio 4 is one block of 128 keys, which one box brings. What a sequence's last page wastes, 256 tokens on average, is some 3 % of a request's state
/// of fixed size in the released models.
pub const PAGE_TOKENS: usize = 512;

/// The pages of a cache.
pub(super) struct Pages {
    total: usize,
    /// Taken from the end.
    free: Vec<i32>,
    /// By sequence.
    held: Vec<Vec<i32>>,
    /// `[B, L]`: the pages of each sequence in the order of their tokens, -1 where it has none.
    table: Tensor,
    /// What the table will hold.
    numbers: Vec<i32>,
    is_stale: bool,
}

/// Pages that so many tokens of a sequence take.
pub(super) fn pages_of(tokens: usize) -> usize {
    tokens.div_ceil(PAGE_TOKENS)
}

impl Pages {
    /// `total` pages for sequences of up to `context` tokens.
    pub fn new(
        device: &Device,
        sequences: usize,
        context: usize,
        total: usize,
    ) -> Result<Pages, ModelError> {
        let columns = pages_of(context);
        Ok(Pages {
            total,
            free: (0..total as i32).rev().collect(),
            held: vec![Vec::new(); sequences],
            table: Tensor::zeros_on(device, DType::I32, &[sequences as i64, columns as i64])?,
            numbers: vec![-1; sequences * columns],
            is_stale: true,
        })
    }

    pub fn total(&self) -> usize {
        self.total
    }

    pub fn sequences(&self) -> usize {
        self.held.len()
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Those of a sequence, in the order of their tokens.
    pub fn of(&self, sequence: usize) -> &[i32] {
        self.held.get(sequence).map_or(&[], Vec::as_slice)
    }

    /// Gives sequences the pages that they lack to have so many tokens each; `wanted`: sequences of the cache, each once.
    ///
    /// # Errors
    /// [`CacheFull::Pages`]; then nobody gets any.
    pub fn reserve(&mut self, wanted: &[(usize, usize)]) -> Result<(), CacheFull> {
        let lacks = |&(sequence, tokens): &(usize, usize)| {
            pages_of(tokens).saturating_sub(self.held[sequence].len())
        };
        let needed: usize = wanted.iter().map(lacks).sum();
        if needed > self.free.len() {
            return Err(CacheFull::Pages {
                needed,
                free: self.free.len(),
                total: self.total,
            });
        }
        let columns = self.numbers.len() / self.held.len().max(1);
        for want in wanted {
            for _ in 0..lacks_of(&self.held, want) {
                let page = self.free.pop().expect("counted above");
                let held = &mut self.held[want.0];
                self.numbers[want.0 * columns + held.len()] = page;
                held.push(page);
                self.is_stale = true;
            }
        }
        Ok(())
    }

    /// Takes a sequence's pages back.
    pub fn release(&mut self, sequence: usize) {
        let columns = self.numbers.len() / self.held.len().max(1);
        let Some(held) = self.held.get_mut(sequence) else {
            return;
        };
        self.is_stale |= !held.is_empty();
        self.free.extend(held.drain(..).rev());
        self.numbers[sequence * columns..][..columns].fill(-1);
    }

    /// Tells the device what changed.
    pub fn upload(&mut self) -> Result<(), ModelError> {
        if self.is_stale {
            self.table.write_start(&self.numbers)?;
            self.is_stale = false;
        }
        Ok(())
    }

    /// `[B, L]`
    pub fn table(&self) -> View<'_> {
        self.table.view()
    }

    pub fn table_bytes(&self) -> usize {
        self.table.byte_count()
    }
}

fn lacks_of(held: &[Vec<i32>], &(sequence, tokens): &(usize, usize)) -> usize {
    pages_of(tokens).saturating_sub(held[sequence].len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> Pages {
        let device = Device::cpu().expect("a thread pool");
        Pages::new(&device, 3, 4 * PAGE_TOKENS, 5).expect("memory")
    }

    #[test]
    fn pages_go_to_one_sequence_each_and_come_back() {
        let mut pages = pages();
        pages
            .reserve(&[(0, 1), (2, PAGE_TOKENS + 1)])
            .expect("five are free");
        assert_eq!(
            (pages.of(0), pages.of(1), pages.of(2)),
            (&[0][..], &[][..], &[1, 2][..])
        );
        // The same tokens again, and then more.
        pages.reserve(&[(0, PAGE_TOKENS)]).expect("it has them");
        assert_eq!(pages.free(), 2);
        pages.release(0);
        pages
            .reserve(&[(1, 3 * PAGE_TOKENS)])
            .expect("three are free");
        assert_eq!(pages.of(1), [0, 3, 4]);
        pages.upload().expect("memory of the CPU");
        let table = pages.table().to_vec::<i32>().expect("memory of the CPU");
        assert_eq!(table, [-1, -1, -1, -1, 0, 3, 4, -1, 1, 2, -1, -1]);
    }

    #[test]
    fn too_few_pages_leave_all_as_it_was() {
        let mut pages = pages();
        pages
            .reserve(&[(0, 4 * PAGE_TOKENS)])
            .expect("five are free");
        let full = pages.reserve(&[(1, 1), (2, 1)]).unwrap_err();
        assert!(matches!(
            full,
            CacheFull::Pages {
                needed: 2,
                free: 1,
                total: 5
            }
        ));
        assert_eq!((pages.of(1), pages.free()), (&[][..], 1));
    }
}
