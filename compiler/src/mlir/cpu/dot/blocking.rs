//! How a product is cut: the arithmetic, the tile of accumulators, and which operands are read as they lie. Plain data.

use super::*;

/// Up to this many rows count as few.
const FEW_ROWS: u64 = 8;
const MANY_ROWS: u64 = 24;

/// Whether the product is better computed turned.
pub(super) fn turn(m: u64, b_strides: [i64; 2]) -> bool {
    m <= FEW_ROWS && b_strides[0] == 1 && b_strides[1] != 1
}

/// What the micro-kernel computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arithmetic {
    F32,
    F64,
    I32,
    /// f32 on swapped pairs of bf16 with subnormals flushed.
    FlushedPairs,
    /// `vdpbf16ps`.
    DotPairs,
}

impl Arithmetic {
    pub(super) fn of(operand: DType, facts: &CpuFacts) -> Arithmetic {
        match operand {
            DType::F64 => Arithmetic::F64,
            DType::BF16 if facts.has_bf16_dot => Arithmetic::DotPairs,
            DType::BF16 => Arithmetic::FlushedPairs,
            d if d.is_float() => Arithmetic::F32,
            _ => Arithmetic::I32,
        }
    }

    /// Element of the accumulators.
    pub(super) fn elem(self) -> Elem {
        match self {
            Arithmetic::F64 => Elem::F64,
            Arithmetic::I32 => Elem::I32,
            _ => Elem::F32,
        }
    }

    /// Element of packed operands; a pair of bf16 is an i32.
    pub(super) fn packed(self) -> Elem {
        match self {
            Arithmetic::DotPairs => Elem::I32,
            other => other.elem(),
        }
    }

    pub(super) fn pairs(self) -> bool {
        matches!(self, Arithmetic::FlushedPairs | Arithmetic::DotPairs)
    }

    /// Steps of the micro-kernel's loop.
    pub(super) fn steps(self, k: u64) -> u64 {
        match self {
            Arithmetic::DotPairs => k.div_ceil(2),
            Arithmetic::FlushedPairs => k.next_multiple_of(2),
            _ => k,
        }
    }
}

/// Extents of a product and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocking {
    pub m: u64,
    pub n: u64,
    pub steps: u64,
    pub rows: u64,
    /// Lanes of one vector.
    pub lanes: u32,
    /// Vectors of one row of accumulators.
    pub vectors: u32,
    pub arithmetic: Arithmetic,
}

impl Blocking {
    pub(super) fn new(
        m: u64,
        n: u64,
        k: u64,
        arithmetic: Arithmetic,
        facts: &CpuFacts,
    ) -> Blocking {
        let full = facts.lanes(arithmetic.elem().bits() / 8);
        let lanes = full.min(1 << n.max(1).ilog2());
        let per_row = (n / lanes as u64).max(1) as u32;
        let wide = facts.vector_registers >= 32;
        let most_vectors = match m {
            0 | 1 => 8,
            2 | 3 => 4,
            _ => 2,
        };
        let vectors = most_vectors.min(1 << per_row.ilog2());
        // Latency times throughput of a fused operation is eight to ten: at least that many accumulators, and registers left for operands.
        let (least, most) = match (vectors, wide) {
            (1, false) => (8, 12),
            (1, true) => (12, 24),
            (2, false) => (4, 6),
            (2, true) => (8, 12),
            (4, false) => (2, 3),
            (4, true) => (4, 6),
            (_, _) => (1, 1),
        };
        Blocking {
            m,
            n,
            steps: arithmetic.steps(k),
            rows: best_rows(m, vectors as u64, least, most),
            lanes,
            vectors,
            arithmetic,
        }
    }

    /// Columns of one panel.
    pub(super) fn width(&self) -> u64 {
        (self.lanes * self.vectors) as u64
    }
}

/// Accumulators that hide the latency of a fused operation, some to spare: a step late once is made good.
const ACCUMULATORS: u64 = 10;

/// The count between `least` and `most` that takes the fewest steps for `m` rows, the greater one among equals.
fn best_rows(m: u64, vectors: u64, least: u64, most: u64) -> u64 {
    if m <= most {
        return m;
    }
    let block = |rows: u64| match rows {
        0 => 0,
        rows => (rows * vectors).max(ACCUMULATORS),
    };
    (least..=most)
        .min_by_key(|&rows| {
            let steps = m / rows * block(rows) + block(m % rows);
            (steps, std::cmp::Reverse(rows))
        })
        .unwrap_or(least)
}

/// How an operand reaches the micro-kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// As it lies, widened in registers if it is narrow.
    InPlace,
    Packed,
}

pub(super) fn feed_a(dtype: DType, arithmetic: Arithmetic, strides: [i64; 2], k: u64) -> Feed {
    match arithmetic {
        Arithmetic::F32 if dtype == DType::F32 => Feed::InPlace,
        Arithmetic::F64 => Feed::InPlace,
        // Pairs are read as they lie.
        Arithmetic::DotPairs if strides[1] == 1 && k.is_multiple_of(2) && strides[0] % 2 == 0 => {
            Feed::InPlace
        }
        _ => Feed::Packed,
    }
}

pub(super) fn feed_b(dtype: DType, blocking: &Blocking, strides: [i64; 2], k: u64) -> Feed {
    let few = blocking.m <= FEW_ROWS;
    // Many rows pass over B: its panels then pay for being packed, as rows far apart fall into few cache sets.
    let far = blocking.m >= MANY_ROWS && strides[0] > blocking.width() as i64;
    match blocking.arithmetic {
        _ if strides[1] != 1 || far => Feed::Packed,
        Arithmetic::F32 if dtype == DType::F32 || few => Feed::InPlace,
        Arithmetic::F64 => Feed::InPlace,
        Arithmetic::I32 if few => Feed::InPlace,
        Arithmetic::FlushedPairs if few && k.is_multiple_of(2) => Feed::InPlace,
        _ => Feed::Packed,
    }
}
