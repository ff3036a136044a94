//! Neighbours that share a register: what the hardware does to two at a time. A map computes one element after the other; what is noted of each says
//! which of them go together.

use super::Emitter;
use crate::mlir::build::{Elem, IntCompare, Val};
use tessera_artifact::DType;

/// Of the elements of a map over registers.
#[derive(Default)]
pub(super) struct Noted<'c> {
    /// Values rounded to a shorter float, and what they were.
    pub narrowed: Vec<(Val<'c>, Val<'c>)>,
    /// Codes of e4m3 that were loaded: each with the two that it is one of, and which one.
    paired: Vec<(Val<'c>, Val<'c>, u32)>,
    /// Such codes as f32.
    widened: Vec<Val<'c>>,
    /// Powers of two as f32, and their codes.
    pub powers: Vec<(Val<'c>, Val<'c>)>,
    /// Products of one of either: the first and the code of the other.
    scaled: Vec<(Val<'c>, [Val<'c>; 2])>,
}

impl<'c> Emitter<'_, 'c> {
    /// Codes of e4m3 are widened by two: which word an element is part of.
    pub(super) fn note_pair(&mut self, dtype: DType, own: Val<'c>, all: Val<'c>, part: u32) {
        if dtype == DType::E4M3 && self.here.is_some() && self.network.is_some() {
            let pair = self.b.shr(all, part / 2 * 16);
            let pair = self.b.resize(pair, Elem::I16, false);
            self.noted.paired.push((own, pair, part % 2));
        }
    }

    /// An e4m3 code as f32, by the hardware's conversion, which gives another NaN than the interpreter's, and else the same.
    pub(super) fn widened_by_two(&mut self, code: Val<'c>) -> Option<Val<'c>> {
        let found = self
            .noted
            .paired
            .iter()
            .find(|(own, ..)| own.raw == code.raw);
        let &(_, pair, half) = found?;
        let halves = self.b.widen_pair_of_e4m3(pair);
        let half = self.b.extract(halves, half);
        let wide = self.b.convert("arith.extf", half, Elem::F32);
        self.noted.widened.push(wide);
        Some(wide)
    }

    /// Notes a product of what bf16 holds exactly and a power of two: rounded to bf16 it is the product of the two there, subnormal, infinite and
    /// no number alike, since f32 holds it exactly or both overflow.
    pub(super) fn note_scaled(&mut self, product: Val<'c>, factors: [Val<'c>; 2]) {
        for (value, by) in [(factors[0], factors[1]), (factors[1], factors[0])] {
            let power = self
                .noted
                .powers
                .iter()
                .find(|(wide, _)| wide.raw == by.raw);
            if let Some(&(_, code)) = power
                && self.noted.widened.iter().any(|wide| wide.raw == value.raw)
            {
                self.noted.scaled.push((product, [value, code]));
                return;
            }
        }
    }

    /// Two f32 rounded to bf16 in a register.
    fn rounded_pair(&mut self, parts: [Val<'c>; 2]) -> Val<'c> {
        let found = parts.map(|part| {
            let found = self.noted.scaled.iter().find(|(p, _)| p.raw == part.raw);
            found.map(|&(_, factors)| factors)
        });
        let [Some([low, low_code]), Some([high, high_code])] = found else {
            return self.b.round_pair_to_bf16(parts[0], parts[1]);
        };
        let values = self.b.round_pair_to_bf16(low, high);
        let [low, high] = [low_code, high_code].map(|code| self.power_in_bf16(code));
        let high = self.b.shl(high, 16);
        let powers = self.b.ori(low, high);
        self.b.multiply_pairs_of_bf16(values, powers)
    }

    /// The bits in bf16 of the power of two with this code, in the lower half of a word.
    fn power_in_bf16(&mut self, code: Val<'c>) -> Val<'c> {
        let code = self.b.resize(code, Elem::I32, false);
        let bits = self.b.shl(code, 7);
        // 2^-127 is subnormal, and 255 no number.
        let smallest = self.b.i32(0x40);
        let bits = self.b.binary("arith.maxui", bits, smallest);
        let (all, nan) = (self.b.i32(255), self.b.i32(0x7fff));
        let is_nan = self.b.cmpi(IntCompare::Eq, code, all);
        self.b.select(is_nan, nan, bits)
    }

    /// Two values of 16 bits, four of 8 or eight of 4 in one register. The hardware rounds two f32 at once.
    pub(super) fn word_of(&mut self, dtype: DType, parts: &[Val<'c>]) -> Val<'c> {
        let source = |v: &Val<'c>| {
            let found = self
                .noted
                .narrowed
                .iter()
                .find(|(narrow, _)| narrow.raw == v.raw);
            found.map(|&(_, wide)| wide)
        };
        let wide = parts.iter().map(source).collect::<Option<Vec<_>>>();
        match (dtype, wide.as_deref()) {
            (DType::BF16, Some(&[low, high])) => self.rounded_pair([low, high]),
            (DType::E4M3, Some(&[a, b, c, d])) => {
                let low = self.b.round_pair_to_e4m3(a, b);
                let high = self.b.round_pair_to_e4m3(c, d);
                self.joined(&[low, high])
            }
            (DType::E2M1, _) => {
                let mut word = self.b.zero(Elem::I32, 1);
                for (i, &part) in parts.iter().enumerate() {
                    let part = self.masked(part, 4);
                    let part = self.b.resize(part, Elem::I32, false);
                    let part = self.b.shl(part, 4 * i as u32);
                    word = self.b.ori(word, part);
                }
                word
            }
            _ => self.joined(parts),
        }
    }

    fn joined(&mut self, parts: &[Val<'c>]) -> Val<'c> {
        let mut all = self.b.zero(parts[0].elem, parts.len() as u32);
        for (i, part) in parts.iter().enumerate() {
            all = self.b.insert(*part, all, i as u32);
        }
        let all = self.b.vector_bitcast(all, Elem::I32);
        self.b.extract_only(all)
    }
}
