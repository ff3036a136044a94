//! Checking a launch before anything runs: arguments against the manifest, dims from shapes, the instance to take, the words of the
//! launch ABI.
//!
//! Needs: a manifest that passed its check. Keeps: a launch that is refused has touched no memory; one that is accepted reads and
//! writes only what its arguments cover. The common case allocates nothing: names are slots, a refusal is a small value, and its text
//! is written only for a launch that no instance takes.

mod error;
mod overlap;
mod resolve;

pub use error::{LaunchError, Refusal};
pub(crate) use resolve::{Request, Signature, TensorWords, argument_names, describe_all};

use half::{bf16, f16};
use tessera_artifact::DType;

use crate::tensor::{Raw, View, ViewMut};

/// One argument of a launch.
#[derive(Debug)]
pub enum Arg<'a> {
    /// For `in` parameters.
    Tensor(View<'a>),
    /// For `out` and `inout` parameters; also taken for `in`.
    TensorMut(ViewMut<'a>),
    /// For `index` parameters.
    Index(i64),
    Scalar(Scalar),
}

/// A scalar argument: its type and its bits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalar {
    pub dtype: DType,
    pub bits: u64,
    /// The value, as far as f64 holds it, for `requires` conditions.
    pub value: f64,
}

impl Arg<'_> {
    pub(crate) fn tensor(&self) -> Option<&Raw> {
        match self {
            Arg::Tensor(view) => Some(&view.raw),
            Arg::TensorMut(view) => Some(&view.raw),
            Arg::Index(_) | Arg::Scalar(_) => None,
        }
    }
}

impl<'a> From<View<'a>> for Arg<'a> {
    fn from(view: View<'a>) -> Self {
        Arg::Tensor(view)
    }
}

impl<'a> From<ViewMut<'a>> for Arg<'a> {
    fn from(view: ViewMut<'a>) -> Self {
        Arg::TensorMut(view)
    }
}

/// `block(0)`, `block(1)`, `block(2)` of a CTA.
pub(crate) fn coordinates(cta: u64, grid: &[i64; 3]) -> [i64; 3] {
    let (cta, width, height) = (cta as i64, grid[0].max(1), grid[1].max(1));
    [cta % width, cta / width % height, cta / width / height]
}

macro_rules! scalars {
    ($($ty:ty => $dtype:ident, $bits:expr, $value:expr;)*) => {$(
        impl From<$ty> for Scalar {
            fn from(x: $ty) -> Self {
                Scalar { dtype: DType::$dtype, bits: $bits(x), value: $value(x) }
            }
        }
        impl From<$ty> for Arg<'_> {
            fn from(x: $ty) -> Self {
                Arg::Scalar(x.into())
            }
        }
    )*};
}

scalars! {
    f64 => F64, f64::to_bits, |x| x;
    f32 => F32, |x: f32| x.to_bits() as u64, f64::from;
    bf16 => BF16, |x: bf16| x.to_bits() as u64, f64::from;
    f16 => F16, |x: f16| x.to_bits() as u64, f64::from;
    i8 => I8, |x| x as u8 as u64, f64::from;
    i16 => I16, |x| x as u16 as u64, f64::from;
    i32 => I32, |x| x as u32 as u64, f64::from;
    i64 => I64, |x| x as u64, |x| x as f64;
    u8 => U8, |x| x as u64, f64::from;
    u16 => U16, |x| x as u64, f64::from;
    u32 => U32, |x| x as u64, f64::from;
    u64 => U64, |x| x, |x| x as f64;
    bool => Bool, |x| x as u64, |x| x as u8 as f64;
}
