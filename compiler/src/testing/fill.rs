//! Inputs of tests: counter-based random numbers, so that an element depends on the seed and its position alone.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Not kernel work: tests need inputs that do not
//! come from what they test.

use tessera_artifact::{DType, numeric};

use crate::diag::Diagnostic;
use crate::diag::catalogue::testing as say;
use crate::syntax::ast::{Expr, ExprKind};

#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    Normal {
        mean: f64,
        deviation: f64,
    },
    /// `low..high`.
    Uniform {
        low: f64,
        high: f64,
    },
    Constant(f64),
    /// `low..=high`.
    Integers {
        low: i64,
        high: i64,
    },
    /// 0, 1, 2, … in order of memory.
    Iota,
    /// 0..n in some order.
    Permutation,
    /// These in order of memory, from the start again at their end.
    Values(Vec<f64>),
}

impl Distribution {
    /// What an unfilled input holds.
    pub const DEFAULT: Distribution = Distribution::Normal {
        mean: 0.0,
        deviation: 1.0,
    };

    /// `normal(0, 1)` and so on; `constant` gives the value of an argument.
    ///
    /// # Errors
    /// An unknown distribution, wrong arguments.
    pub fn parse(
        e: &Expr,
        constant: &dyn Fn(&Expr) -> Option<f64>,
    ) -> Result<Distribution, Box<Diagnostic>> {
        let wrong = |what: &str| Box::new(say::bad_distribution(e.span, what));
        let ExprKind::Call { callee, args } = &e.kind else {
            return Err(wrong("this is no distribution"));
        };
        let ExprKind::Name(path) = &callee.kind else {
            return Err(wrong("this is no distribution"));
        };
        let name = path.segments.last().map_or("", |s| s.name.as_str());
        let values = args
            .iter()
            .map(|a| {
                constant(&a.value)
                    .ok_or_else(|| Box::new(say::bad_distribution(a.span, "this is no number")))
            })
            .collect::<Result<Vec<f64>, _>>()?;
        match (name, &values[..]) {
            ("normal", [mean, deviation]) => Ok(Distribution::Normal {
                mean: *mean,
                deviation: *deviation,
            }),
            ("uniform", [low, high]) if low <= high => Ok(Distribution::Uniform {
                low: *low,
                high: *high,
            }),
            ("constant", [c]) => Ok(Distribution::Constant(*c)),
            ("integers", [low, high])
                if low <= high && low.fract() == 0.0 && high.fract() == 0.0 =>
            {
                Ok(Distribution::Integers {
                    low: *low as i64,
                    high: *high as i64,
                })
            }
            ("iota", []) => Ok(Distribution::Iota),
            ("permutation", []) => Ok(Distribution::Permutation),
            ("values", [_, ..]) => Ok(Distribution::Values(values)),
            (
                "normal" | "uniform" | "constant" | "integers" | "iota" | "permutation" | "values",
                _,
            ) => Err(wrong(&format!("`{name}` takes other arguments"))),
            _ => Err(wrong(&format!("no distribution is called `{name}`"))),
        }
    }

    /// The elements of a dense tensor, each rounded to `dtype`, as the bits of their codes. A random element depends on its coordinates
    /// alone, so it stays the same when an extent changes.
    pub fn fill(&self, dtype: DType, shape: &[i64], seed: u64) -> Vec<u64> {
        let count = shape.iter().product::<i64>() as usize;
        let round = |x: f64| match dtype.is_float() {
            true => numeric::from_f64(x, dtype),
            false if dtype == DType::Bool => (x != 0.0) as u64,
            false => numeric::from_i128(x.round_ties_even() as i128, dtype),
        };
        match *self {
            Distribution::Constant(c) => vec![round(c); count],
            Distribution::Values(ref values) => values
                .iter()
                .cycle()
                .take(count)
                .map(|&x| round(x))
                .collect(),
            Distribution::Iota => (0..count).map(|i| round(i as f64)).collect(),
            Distribution::Permutation => {
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by_key(|&i| (random_bits(seed, [i as u32, (i >> 32) as u32, 0, 0]), i));
                order.into_iter().map(|i| round(i as f64)).collect()
            }
            Distribution::Uniform { low, high } => at_each(shape, |at| {
                round(low + (high - low) * unit(random_bits(seed, at)))
            }),
            Distribution::Integers { low, high } => at_each(shape, |at| {
                let span = (high as i128 - low as i128 + 1) as u128;
                let value = low as i128 + ((random_bits(seed, at) as u128 * span) >> 64) as i128;
                if dtype.is_float() {
                    numeric::from_f64(value as f64, dtype)
                } else {
                    numeric::from_i128(value, dtype)
                }
            }),
            // Integers from a normal are 0 and ±1 mostly; a test that wants others says so.
            Distribution::Normal { mean, deviation } => at_each(shape, |at| {
                let bits = random_bits(seed, at);
                // Box and Muller, one of the two numbers.
                let (u, v) = (unit(bits & 0xFFFF_FFFF_0000_0000), unit(bits << 32));
                let radius = (-2.0 * (u + 0.5 / 4_294_967_296.0).ln()).sqrt();
                round(mean + deviation * radius * (2.0 * std::f64::consts::PI * v).cos())
            }),
        }
    }
}

/// Calls `f` for every element in order, with its three last coordinates and the number made of the others.
fn at_each(shape: &[i64], mut f: impl FnMut([u32; 4]) -> u64) -> Vec<u64> {
    let mut extents = [1usize; 4];
    for (i, &n) in shape.iter().rev().enumerate() {
        extents[i.min(3)] *= n as usize;
    }
    let mut out = Vec::with_capacity(extents.iter().product());
    for a in 0..extents[3] {
        for b in 0..extents[2] {
            for c in 0..extents[1] {
                out.extend((0..extents[0]).map(|d| f([d as u32, c as u32, b as u32, a as u32])));
            }
        }
    }
    out
}

/// The seed of an input that no test gives one.
pub fn seed_of_name(name: &str) -> u64 {
    u64::from_le_bytes(
        blake3::hash(name.as_bytes()).as_bytes()[..8]
            .try_into()
            .expect("eight of thirty-two bytes"),
    )
}

fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn random_bits(seed: u64, counter: [u32; 4]) -> u64 {
    let [a, b, _, _] = philox(counter, [seed as u32, (seed >> 32) as u32]);
    a as u64 | (b as u64) << 32
}

/// Ten rounds of Philox4x32.
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..10 {
        if round > 0 {
            key = [
                key[0].wrapping_add(0x9E37_79B9),
                key[1].wrapping_add(0xBB67_AE85),
            ];
        }
        let (p0, p1) = (
            0xD251_1F53u64 * counter[0] as u64,
            0xCD9E_8D57u64 * counter[2] as u64,
        );
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' Random123 library.
    #[test]
    fn philox_gives_the_published_numbers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    fn floats(d: Distribution, n: usize) -> Vec<f64> {
        d.fill(DType::F64, &[n as i64], 7)
            .into_iter()
            .map(f64::from_bits)
            .collect()
    }

    #[test]
    fn distributions_have_their_moments() {
        let n = 100_000;
        let x = floats(
            Distribution::Normal {
                mean: 3.0,
                deviation: 2.0,
            },
            n,
        );
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(
            (mean - 3.0).abs() < 0.03 && (variance - 4.0).abs() < 0.1,
            "{mean} {variance}"
        );
        let x = floats(
            Distribution::Uniform {
                low: -1.0,
                high: 3.0,
            },
            n,
        );
        assert!(x.iter().all(|&x| (-1.0..3.0).contains(&x)));
        assert!((x.iter().sum::<f64>() / n as f64 - 1.0).abs() < 0.03);
        let x = floats(Distribution::Integers { low: -2, high: 2 }, n);
        for k in -2..=2 {
            let share = x.iter().filter(|&&v| v == k as f64).count() as f64 / n as f64;
            assert!((share - 0.2).abs() < 0.01, "{k}: {share}");
        }
    }

    #[test]
    fn a_permutation_has_every_number_once() {
        let mut p = Distribution::Permutation.fill(DType::I32, &[1000], 3);
        assert_ne!(p[..4], [0, 1, 2, 3]);
        p.sort_unstable();
        assert_eq!(p, (0..1000).collect::<Vec<u64>>());
    }

    #[test]
    fn given_values_come_in_order_and_again() {
        let values = Distribution::Values(vec![3.0, -1.5, 7.0]);
        assert_eq!(floats(values.clone(), 5), [3.0, -1.5, 7.0, 3.0, -1.5]);
        assert_eq!(floats(values.clone(), 2), [3.0, -1.5]);
        assert_eq!(values.fill(DType::I32, &[0], 1), [0; 0]);
    }

    #[test]
    fn other_seeds_give_other_numbers() {
        let one = Distribution::DEFAULT.fill(DType::F32, &[8], seed_of_name("a"));
        assert_eq!(
            one,
            Distribution::DEFAULT.fill(DType::F32, &[8], seed_of_name("a"))
        );
        assert_ne!(
            one,
            Distribution::DEFAULT.fill(DType::F32, &[8], seed_of_name("b"))
        );
    }

    #[test]
    fn an_element_keeps_its_value_when_extents_change() {
        let small = Distribution::DEFAULT.fill(DType::F32, &[2, 3, 2, 4], 1);
        let large = Distribution::DEFAULT.fill(DType::F32, &[2, 5, 3, 7], 1);
        assert_eq!(small[(2 * 2 + 1) * 4 + 3], large[(2 * 3 + 1) * 7 + 3]);
        assert_ne!(small[0], small[1]);
        assert_ne!(small[0], small[4]);
    }
}
