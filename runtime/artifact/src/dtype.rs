//! Element types.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of one element of a tensor or tile, or of a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F64,
    F32,
    /// Held as f32; `dot` may round its operands to 10 mantissa bits.
    Tf32,
    BF16,
    F16,
    /// 1-4-3, no infinity, largest 448.
    E4M3,
    /// 1-5-2, IEEE-like.
    E5M2,
    /// 1-2-1, two to a byte, element 2i in the low nibble.
    E2M1,
    /// A power of two: byte b is 2^(b - 127), 255 is NaN.
    UE8M0,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Bool,
}

impl DType {
    pub const ALL: [DType; 18] = [
        DType::F64,
        DType::F32,
        DType::Tf32,
        DType::BF16,
        DType::F16,
        DType::E4M3,
        DType::E5M2,
        DType::E2M1,
        DType::UE8M0,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::Bool,
    ];

    pub fn bits(self) -> u32 {
        match self {
            DType::F64 | DType::I64 | DType::U64 => 64,
            DType::F32 | DType::Tf32 | DType::I32 | DType::U32 => 32,
            DType::BF16 | DType::F16 | DType::I16 | DType::U16 => 16,
            DType::E4M3 | DType::E5M2 | DType::UE8M0 | DType::I8 | DType::U8 | DType::Bool => 8,
            DType::E2M1 => 4,
        }
    }

    /// Bytes that `elements` consecutive elements take; an odd e2m1 count takes its last half byte whole.
    pub fn bytes_for(self, elements: u64) -> u64 {
        (elements * self.bits() as u64).div_ceil(8)
    }

    pub fn is_float(self) -> bool {
        matches!(
            self,
            DType::F64
                | DType::F32
                | DType::Tf32
                | DType::BF16
                | DType::F16
                | DType::E4M3
                | DType::E5M2
                | DType::E2M1
                | DType::UE8M0
        )
    }

    pub fn is_int(self) -> bool {
        self.is_signed_int() || matches!(self, DType::U8 | DType::U16 | DType::U32 | DType::U64)
    }

    pub fn is_signed_int(self) -> bool {
        matches!(self, DType::I8 | DType::I16 | DType::I32 | DType::I64)
    }

    /// May stand in `+ - * /` without a cast.
    pub fn has_arithmetic(self) -> bool {
        self.is_int()
            || matches!(
                self,
                DType::F64 | DType::F32 | DType::Tf32 | DType::BF16 | DType::F16
            )
    }

    /// Every value of `self` is a value of `to`, so that `copy` and assignment may convert in silence.
    #[allow(
        clippy::match_like_matches_macro,
        reason = "a table, one row per source"
    )]
    pub fn widens_to(self, to: DType) -> bool {
        use DType::*;
        if self == to {
            return true;
        }
        match (self, to) {
            (E2M1, E4M3 | E5M2 | F16 | BF16 | F32 | Tf32 | F64) => true,
            (E4M3, F16 | BF16 | F32 | Tf32 | F64) | (E5M2, F16 | BF16 | F32 | Tf32 | F64) => true,
            (UE8M0, BF16 | F32 | Tf32 | F64) => true,
            (BF16 | F16, F32 | Tf32 | F64) => true,
            (Tf32, F32 | F64) | (F32, F64) => true,
            (I8, I16 | I32 | I64) | (I16, I32 | I64) | (I32, I64) => true,
            (U8, U16 | U32 | U64 | I16 | I32 | I64) => true,
            (U16, U32 | U64 | I32 | I64) | (U32, U64 | I64) => true,
            _ => false,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::Tf32 => "tf32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
            DType::E4M3 => "e4m3",
            DType::E5M2 => "e5m2",
            DType::E2M1 => "e2m1",
            DType::UE8M0 => "ue8m0",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::Bool => "bool",
        }
    }

    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
