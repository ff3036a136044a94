//! The network that sorts what a selection (`select`) leaves: 64-bit keys that all differ, each thread holding some, partners in one warp
//! by shuffles, in one thread directly, others through shared memory.
//!
//! Needs: the keys in the first of two arrays of shared memory, a barrier later than they were written is made here. Keeps: one order,
//! whatever the number of threads.

use super::Emitter;
use super::access::Memory;
use super::ops::Shuffle;
use super::select::{Line, WARP, columns, slots};
use crate::mlir::build::{Elem, IntCompare, Val};

impl<'c> Emitter<'_, 'c> {
    /// Sorts the k keys that lie in the first array and delivers what they stand for.
    pub(super) fn sort(&mut self, line: &Line<'c>, to: &(Memory<'c>, Memory<'c>)) {
        let columns = columns(self.threads);
        let slots = slots(line.k, columns);
        let mask = self.b.i64(columns as i64 - 1);
        // Threads that are too many do as another one does, and write nothing.
        let column = self.b.andi(self.thread, mask);
        let bound = self.b.i64(columns as i64);
        let works = (columns < self.threads as u64)
            .then(|| self.b.cmpi(IntCompare::Slt, self.thread, bound));
        let places: Vec<_> = (0..slots / columns)
            .map(|r| self.b.add_const(column, (r * columns) as i64))
            .collect();
        let k = self.b.i64(line.k as i64);
        for &place in &places[(line.k / columns) as usize..] {
            let empty = self.b.cmpi(IntCompare::Sge, place, k);
            let writes = match works {
                Some(works) => self.b.andi(empty, works),
                None => empty,
            };
            let open = self.b.begin_if(writes);
            let at = self.b.gep(line.keys[0], place, Elem::I64);
            let last = self.b.i64(-1);
            self.b.store(last, at, 8, None);
            self.b.end_if(open);
        }
        self.barrier();
        let mut keys: Vec<_> = places
            .iter()
            .map(|&place| self.key_in(line.keys[0], place))
            .collect();
        let mut side = 1;
        let mut run = 2;
        while run <= line.k.next_power_of_two() {
            let mut distance = run / 2;
            while distance > 0 {
                let others = if distance >= columns {
                    let by = (distance / columns) as usize;
                    (0..keys.len()).map(|r| keys[r ^ by]).collect()
                } else if distance >= WARP {
                    let through = line.keys[side];
                    side ^= 1;
                    self.through_memory(through, &places, &keys, distance, works)
                } else {
                    let shuffle = |&key| self.shuffled(Shuffle::Xor, key, distance as u32);
                    keys.iter().map(shuffle).collect::<Vec<_>>()
                };
                for (r, other) in others.into_iter().enumerate() {
                    let first = self.takes_the_less(places[r], run, distance);
                    let less = self.b.cmpi(IntCompare::Ult, keys[r], other);
                    let keeps = self.b.cmpi(IntCompare::Eq, less, first);
                    keys[r] = self.b.select(keeps, keys[r], other);
                }
                distance /= 2;
            }
            run *= 2;
        }
        for (&place, key) in places.iter().zip(keys) {
            let wanted = self.b.cmpi(IntCompare::Slt, place, k);
            let writes = match works {
                Some(works) => self.b.andi(wanted, works),
                None => wanted,
            };
            let open = self.b.begin_if(writes);
            let index = self.b.resize(key, Elem::I32, false);
            let wide = self.b.resize(index, Elem::I64, false);
            let from = self.b.addi(line.start, wide);
            let value = self.load(&line.memory, from);
            let at = self.b.addi(line.out, place);
            self.store(&to.0, at, value);
            self.store(&to.1, at, index);
            self.b.end_if(open);
        }
    }

    /// Whether the lower of two partners, or the place itself if it is the upper one, gets the lesser key: runs rise and fall in turn.
    fn takes_the_less(&mut self, place: Val<'c>, run: u64, distance: u64) -> Val<'c> {
        let bit = |e: &mut Self, bit: u64| {
            let mask = e.b.i64(bit as i64);
            let v = e.b.andi(place, mask);
            let zero = e.b.i64(0);
            e.b.cmpi(IntCompare::Eq, v, zero)
        };
        let lower = bit(self, distance);
        let rising = bit(self, run);
        self.b.cmpi(IntCompare::Eq, lower, rising)
    }

    pub(super) fn key_in(&mut self, array: Val<'c>, place: Val<'c>) -> Val<'c> {
        let at = self.b.gep(array, place, Elem::I64);
        self.b.load(at, (Elem::I64, 1), 8, None)
    }

    /// The partners' keys. The two arrays are taken in turn, so that one barrier a step is enough.
    fn through_memory(
        &mut self,
        array: Val<'c>,
        places: &[Val<'c>],
        keys: &[Val<'c>],
        distance: u64,
        works: Option<Val<'c>>,
    ) -> Vec<Val<'c>> {
        let open = works.map(|works| self.b.begin_if(works));
        for (&place, &key) in places.iter().zip(keys) {
            let at = self.b.gep(array, place, Elem::I64);
            self.b.store(key, at, 8, None);
        }
        if let Some(open) = open {
            self.b.end_if(open);
        }
        self.barrier();
        let bit = self.b.i64(distance as i64);
        (places.iter())
            .map(|&place| {
                let partner = self.b.xori(place, bit);
                self.key_in(array, partner)
            })
            .collect()
    }
}
