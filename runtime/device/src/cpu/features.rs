//! Which of the compiled variants this machine can run.
//!
//! Needs: nothing; asks the processor. Keeps: no state, and no environment variable is read: whoever wants another variant than
//! the best passes it in.

use std::fmt;

use tessera_artifact::CpuVariant;

/// Every variant, the best first.
pub const VARIANTS: [CpuVariant; 3] =
    [CpuVariant::Avx512Bf16, CpuVariant::Avx512, CpuVariant::Avx2];

/// The wanted variant cannot run here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedCpu {
    /// What was asked for; `None`: any.
    pub wanted: Option<CpuVariant>,
    /// What a kernel was compiled for.
    pub compiled: Vec<CpuVariant>,
}

impl fmt::Display for UnsupportedCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |variants: &[CpuVariant]| {
            variants
                .iter()
                .map(|&v| name(v))
                .collect::<Vec<_>>()
                .join(", ")
        };
        match (self.wanted, best()) {
            (_, None) => write!(
                f,
                "this CPU lacks AVX2 and its companions (x86-64-v3), which compiled kernels need"
            ),
            (Some(wanted), Some(_)) if !is_supported(wanted) => {
                write!(f, "this CPU cannot run {} code", name(wanted))
            }
            (Some(wanted), Some(_)) => write!(
                f,
                "the kernel has no {} code, only {}",
                name(wanted),
                names(&self.compiled)
            ),
            (None, Some(best)) => write!(
                f,
                "the kernel has code for {}; this CPU runs {} and below",
                names(&self.compiled),
                name(best)
            ),
        }
    }
}

impl std::error::Error for UnsupportedCpu {}

/// The name that users write and read.
pub fn name(variant: CpuVariant) -> &'static str {
    match variant {
        CpuVariant::Avx2 => "avx2",
        CpuVariant::Avx512 => "avx512",
        CpuVariant::Avx512Bf16 => "avx512bf16",
    }
}

/// The inverse of [`name`].
pub fn by_name(text: &str) -> Option<CpuVariant> {
    VARIANTS.into_iter().find(|&variant| name(variant) == text)
}

/// Whether this machine runs code compiled for the variant.
pub fn is_supported(variant: CpuVariant) -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        let v3 = || {
            has!("avx2")
                && has!("fma")
                && has!("f16c")
                && has!("bmi1")
                && has!("bmi2")
                && has!("lzcnt")
                && has!("movbe")
                && has!("popcnt")
        };
        let v4 = || {
            v3() && has!("avx512f")
                && has!("avx512bw")
                && has!("avx512cd")
                && has!("avx512dq")
                && has!("avx512vl")
        };
        match variant {
            CpuVariant::Avx2 => v3(),
            CpuVariant::Avx512 => v4(),
            CpuVariant::Avx512Bf16 => v4() && has!("avx512bf16"),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = variant;
        false
    }
}

/// The best variant that this machine runs.
pub fn best() -> Option<CpuVariant> {
    VARIANTS.into_iter().find(|&variant| is_supported(variant))
}

/// The variant to use of those a kernel was compiled for: `wanted`, or the best that runs here.
///
/// # Errors
/// [`UnsupportedCpu`] if none of them runs here, or `wanted` doesn't.
pub fn choose(
    compiled: impl IntoIterator<Item = CpuVariant>,
    wanted: Option<CpuVariant>,
) -> Result<CpuVariant, UnsupportedCpu> {
    let compiled: Vec<CpuVariant> = compiled.into_iter().collect();
    VARIANTS
        .into_iter()
        .filter(|variant| compiled.contains(variant) && wanted.is_none_or(|w| w == *variant))
        .find(|&variant| is_supported(variant))
        .ok_or(UnsupportedCpu { wanted, compiled })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_inverse() {
        for variant in VARIANTS {
            assert_eq!(by_name(name(variant)), Some(variant));
        }
        assert_eq!(by_name("avx"), None);
    }

    #[test]
    fn the_best_supported_variant_is_chosen() {
        // A CPU that runs a variant runs every lesser one.
        let supported: Vec<bool> = VARIANTS.map(is_supported).into();
        assert!(supported.is_sorted());
        assert_eq!(choose(VARIANTS, None).ok(), best());
        for variant in VARIANTS {
            assert_eq!(
                choose(VARIANTS, Some(variant)).is_ok(),
                is_supported(variant)
            );
            assert_eq!(choose([variant], None).is_ok(), is_supported(variant));
        }
    }

    #[test]
    fn a_kernel_without_code_for_this_cpu_is_an_error() {
        let error = choose([], None).expect_err("there is nothing to choose");
        assert_eq!(error.compiled, []);
        if let Some(best) = best() {
            assert_eq!(
                choose([], Some(best))
                    .expect_err("nothing to choose")
                    .to_string(),
                format!("the kernel has no {} code, only ", name(best))
            );
        }
    }
}
