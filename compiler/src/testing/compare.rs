//! The verdict on one tensor: what a kernel computed against what it should be.

use tessera_artifact::{DType, numeric};

use super::data::Data;

/// How far an element may be from the truth. It is close enough if any of the three allows it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tolerance {
    /// Together: `|got - want| <= abs + rel * |want|`.
    pub rel: f64,
    pub abs: f64,
    /// Units in the last place of the wanted value in the tensor's type.
    pub ulp: f64,
    /// Share of the elements that may be off by one code besides.
    pub mismatch: f64,
}

/// The outcome over one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub elements: usize,
    pub wrong: usize,
    /// The element that is farthest, by its share of what is allowed.
    pub worst: Option<Worst>,
    /// Elements that [`Tolerance::mismatch`] let pass.
    pub off_by_one: usize,
    pub passed: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Worst {
    pub at: Vec<usize>,
    pub got: f64,
    pub want: f64,
    pub error: f64,
    /// Error over what is allowed; above 1 is wrong.
    pub share: f64,
}

/// Compares `got` with the f64 truth.
pub fn compare(got: &Data, want: &[f64], tolerance: &Tolerance) -> Verdict {
    let mut verdict = Verdict {
        elements: got.len(),
        wrong: 0,
        worst: None,
        off_by_one: 0,
        passed: true,
    };
    for (i, &want) in want.iter().enumerate().take(got.len()) {
        let value = got.value(i);
        let (error, share) = share(value, want, got.dtype, tolerance);
        if share > 1.0 {
            if tolerance.mismatch > 0.0 && code_distance(got.bits[i], want, got.dtype) <= 1 {
                verdict.off_by_one += 1;
                continue;
            }
            verdict.wrong += 1;
        }
        if verdict.worst.as_ref().is_none_or(|w| share > w.share) {
            verdict.worst = Some(Worst {
                at: got.coordinates(i),
                got: value,
                want,
                error,
                share,
            });
        }
    }
    let too_many = verdict.off_by_one as f64 > tolerance.mismatch * got.len() as f64;
    verdict.passed = verdict.wrong == 0 && !too_many;
    verdict
}

/// The error, and its share of what is allowed.
fn share(got: f64, want: f64, dtype: DType, tolerance: &Tolerance) -> (f64, f64) {
    // The closest that the type can hold is always right: the truth has more digits.
    let nearest = match dtype.is_float() {
        true => numeric::to_f64(numeric::from_f64(want, dtype), dtype),
        false => want,
    };
    if got == want || got == nearest || (got.is_nan() && want.is_nan()) {
        return (0.0, 0.0);
    }
    let error = (got - want).abs();
    if error.is_nan() || error.is_infinite() {
        return (f64::INFINITY, f64::INFINITY);
    }
    let allowed =
        (tolerance.abs + tolerance.rel * want.abs()).max(tolerance.ulp * spacing(want, dtype));
    (
        error,
        if allowed > 0.0 {
            error / allowed
        } else {
            f64::INFINITY
        },
    )
}

/// The distance from `x`, rounded to the type, to the next value away from zero.
fn spacing(x: f64, dtype: DType) -> f64 {
    let (mantissa, least) = match dtype {
        DType::F64 => (52, -1074),
        DType::F32 => (23, -149),
        DType::Tf32 => (10, -136),
        DType::BF16 => (7, -133),
        DType::F16 => (10, -24),
        DType::E4M3 => (3, -9),
        DType::E5M2 => (2, -16),
        DType::E2M1 => (1, -1),
        DType::UE8M0 => (0, -127),
        _ => return 1.0,
    };
    let x = numeric::to_f64(numeric::from_f64(x, dtype), dtype).abs();
    if x == 0.0 || !x.is_finite() {
        return 2f64.powi(least);
    }
    let exponent = ((x.to_bits() >> 52) & 0x7FF) as i32 - 1023;
    2f64.powi((exponent - mantissa).max(least))
}

/// How many codes lie between.
fn code_distance(got: u64, want: f64, dtype: DType) -> u64 {
    // Sign and magnitude to a line; integers are one already.
    let place = |bits: u64| -> i128 {
        if !dtype.is_float() {
            return numeric::to_i128(bits, dtype);
        }
        if dtype == DType::UE8M0 {
            return bits as i128;
        }
        let sign = 1u64 << (dtype.bits() - 1);
        let magnitude = (bits & (sign - 1)) as i128;
        if bits & sign != 0 {
            -magnitude
        } else {
            magnitude
        }
    };
    let want = match dtype.is_float() {
        true => numeric::from_f64(want, dtype),
        false => numeric::from_i128(want as i128, dtype),
    };
    place(got).abs_diff(place(want)).min(u64::MAX as u128) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Data {
        Data {
            dtype: DType::F32,
            shape: vec![values.len() as i64],
            bits: values.iter().map(|x| x.to_bits() as u64).collect(),
        }
    }

    #[test]
    fn each_tolerance_allows_what_it_says() {
        let one_off = f32s(&[1.0 + f32::EPSILON]);
        let exact = Tolerance::default();
        assert!(!compare(&one_off, &[1.0], &exact).passed);
        assert!(compare(&one_off, &[1.0], &Tolerance { ulp: 1.0, ..exact }).passed);
        assert!(
            compare(
                &one_off,
                &[1.0],
                &Tolerance {
                    rel: 1.2e-7,
                    ..exact
                }
            )
            .passed
        );
        assert!(
            !compare(
                &one_off,
                &[1.0],
                &Tolerance {
                    rel: 1.1e-7,
                    ..exact
                }
            )
            .passed
        );
        assert!(
            compare(
                &one_off,
                &[1.0],
                &Tolerance {
                    abs: 1.2e-7,
                    ..exact
                }
            )
            .passed
        );
        assert!(
            compare(&f32s(&[0.1]), &[0.1], &exact).passed,
            "the nearest f32 is right"
        );
    }

    #[test]
    fn nan_and_infinity_match_only_themselves() {
        let loose = Tolerance {
            abs: 1e30,
            rel: 1.0,
            ..Tolerance::default()
        };
        let verdict = |got: f32, want: f64| compare(&f32s(&[got]), &[want], &loose).passed;
        assert!(verdict(f32::NAN, f64::NAN) && verdict(f32::INFINITY, f64::INFINITY));
        assert!(!verdict(f32::NAN, 1.0) && !verdict(1.0, f64::NAN));
        assert!(!verdict(f32::INFINITY, 1.0) && !verdict(f32::NEG_INFINITY, f64::INFINITY));
        assert!(verdict(f32::INFINITY, 1e39), "it rounds to infinity");
    }

    #[test]
    fn a_share_of_codes_may_be_off_by_one() {
        let bits: Vec<u64> = (0..100).map(|i| if i < 2 { 0x39 } else { 0x38 }).collect();
        let got = Data {
            dtype: DType::E4M3,
            shape: vec![100],
            bits,
        };
        let want = vec![1.0; 100];
        let allow = |mismatch| {
            compare(
                &got,
                &want,
                &Tolerance {
                    mismatch,
                    ..Tolerance::default()
                },
            )
        };
        assert!(allow(0.02).passed);
        assert_eq!(allow(0.02).off_by_one, 2);
        assert!(!allow(0.01).passed);
        let far = Data {
            bits: vec![0x3A; 1],
            shape: vec![1],
            dtype: DType::E4M3,
        };
        assert!(
            !compare(
                &far,
                &[1.0],
                &Tolerance {
                    mismatch: 1.0,
                    ..Tolerance::default()
                }
            )
            .passed
        );
    }

    #[test]
    fn the_worst_element_is_named() {
        let got = Data {
            shape: vec![2, 2],
            ..f32s(&[1.0, 2.0, 3.5, 4.1])
        };
        let verdict = compare(
            &got,
            &[1.0, 2.0, 3.0, 4.0],
            &Tolerance {
                abs: 0.2,
                ..Tolerance::default()
            },
        );
        assert_eq!((verdict.wrong, verdict.worst.unwrap().at), (1, vec![1, 0]));
    }
}
