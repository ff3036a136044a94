//! Quantised weights in the form kernels read: the checkpoint's codes, one matrix or several below each other, with their scales.
//!
//! E4M3 matrices have one scale for each 128 x 128 block; routed experts may be E2M1 with one for each 32 inputs of an output. Codes stay as
//! they are stored; scales of blocks are put in the order in which products read them, in f32.
//!
//! Needs: a checkpoint that was compared with the configuration. Keeps: every conversion is a kernel's work.

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, ViewMut};

use super::ModelError;
use super::config::{Config, ExpertFormat, WeightFormat};
use super::kernels::{
    ConvertArgs, DequantiseE4m3Args, E2m1RangeArgs, E2m1StepsArgs, Kernels, ScalesByKArgs,
};
use super::parameters::{Linear, Loader, Part, Weights};

/// Rows and columns that share a scale.
const BLOCK: i64 = 128;
/// Scales of one block of inputs come in a row whose length is a multiple of this.
const SCALES_STEP: i64 = 4;

/// An E4M3 matrix.
pub struct Matrix {
    /// `[N, K]`
    pub codes: Tensor,
    /// `[cdiv(K, 128), Q]`, Q at least `cdiv(N, 128)` and a multiple of four.
    pub scales: Tensor,
}

impl Matrix {
    /// y `[N, K]` in bf16: codes times scales.
    pub(super) fn widen(&self, k: &Kernels, y: ViewMut) -> Result<(), ModelError> {
        k.dequantise_e4m3(DequantiseE4m3Args {
            w: self.codes.view(),
            scales: self.scales.view(),
            y,
        })?;
        Ok(())
    }
}

/// One matrix of every routed expert.
pub struct Experts {
    /// `[E, N, K]`, E2M1 or E4M3.
    pub codes: Tensor,
    /// `[E, N, cdiv(K, 32)]` UE8M0 for E2M1, `[E, cdiv(N, 128), cdiv(K, 128)]` f32 for E4M3.
    pub scales: Tensor,
}

/// One FP4 matrix of every routed expert as the products on tensor cores take it: a weight is its code times `2^(step - 9)` times the factor
/// of its row (`gemm_fp4.tl`).
pub struct Folded {
    /// `[E, N, K]` E2M1, as the checkpoint has them.
    pub codes: Tensor,
    /// `[E, L, cdiv(K, 128), Q]`, Q at least N and a multiple of four: in the place of the scales.
    pub steps: Tensor,
    /// `[E, N]`
    pub factors: Tensor,
}

/// Scales this far apart share a level of steps.
const LEVEL: i32 = 15;

/// Whether the experts' scales are folded into steps: for GPUs, whose products sum 128 of k at a time. CPUs sum in groups of 32, as the published
/// code does.
pub(super) fn folds_experts(device: &Device, config: &Config) -> bool {
    let is_fp4 = config.weight_format
        == WeightFormat::Fp8 {
            experts: ExpertFormat::Fp4,
        };
    is_fp4 && matches!(device, Device::Cuda(_))
}

/// Whether the groups of a projection, which are multiplied in bf16, stay codes: for GPUs, where few rows read half as much so, and where blocks
/// of scales end with groups.
pub(super) fn keeps_groups(device: &Device, config: &Config) -> bool {
    config.o_lora_rank.is_multiple_of(BLOCK as usize) && matches!(device, Device::Cuda(_))
}

/// Matrices of one K that are multiplied together, each from the start of a block.
#[derive(Default)]
pub(super) struct Stack {
    matrices: Vec<(Tensor, Tensor)>,
}

impl Stack {
    fn rows(&self) -> i64 {
        let blocks = self.matrices.iter().map(|(w, _)| blocks(w.shape()[0]));
        blocks.sum::<i64>() * BLOCK
    }
}

fn blocks(extent: i64) -> i64 {
    (extent + BLOCK - 1) / BLOCK
}

/// Kernels for quantised models are written for the released models' heads and streams.
///
/// # Errors
/// [`ModelError::Unsupported`] with all sizes that differ.
pub(super) fn check_sizes(config: &Config) -> Result<(), ModelError> {
    if config.weight_format == WeightFormat::Plain {
        return Ok(());
    }
    let has_indexer = config
        .layers
        .iter()
        .any(|kind| kind.blocks_per_entry() == 2);
    let fixed = [
        ("head_dim", config.head_dim, 512),
        ("qk_rope_head_dim", config.qk_rope_head_dim, 64),
        ("hc_mult", config.hc_mult, 4),
        (
            "index_head_dim",
            if has_indexer {
                config.index_head_dim
            } else {
                128
            },
            128,
        ),
    ];
    let mut problems: Vec<String> = fixed
        .iter()
        .filter(|(_, found, runs)| found != runs)
        .map(|(key, found, runs)| format!("`{key}` is {found} and must be {runs}"))
        .collect();
    let groups = [
        ("hidden_size", config.hidden_size),
        ("moe_intermediate_size", config.moe_intermediate_size),
    ];
    for (key, width) in groups {
        if config.weight_format
            == (WeightFormat::Fp8 {
                experts: ExpertFormat::Fp4,
            })
            && !width.is_multiple_of(32)
        {
            problems.push(format!(
                "`{key}` is {width} and must be a multiple of 32, the inputs that share a scale of an FP4 expert"
            ));
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(ModelError::Unsupported(format!(
            "quantised checkpoints run at the released models' sizes only: {}",
            problems.join("; ")
        ))),
    }
}

impl Loader<'_> {
    /// Puts an E4M3 matrix below those already in the stack; says which columns its product gets.
    pub fn push_codes(&mut self, stack: &mut Stack, at: &str) -> Result<Part, ModelError> {
        let weight = self.source(&format!("{at}.weight"))?;
        let scales = self.converted(&format!("{at}.scale"), DType::F32)?;
        let start = stack.rows();
        let part = start..start + weight.shape()[0];
        stack.matrices.push((weight, scales));
        Ok(part)
    }

    /// One matrix of all in the stack.
    pub fn stacked_codes(&mut self, stack: Stack) -> Result<Linear, ModelError> {
        let (rows, inputs) = (
            stack.rows(),
            stack.matrices.first().map_or(0, |m| m.0.shape()[1]),
        );
        let mut codes = self.zeros(DType::E4M3, &[rows, inputs])?;
        let columns = (rows / BLOCK + SCALES_STEP - 1) / SCALES_STEP * SCALES_STEP;
        let mut scales = self.zeros(DType::F32, &[blocks(inputs), columns])?;
        let mut start = 0;
        for (weight, by_n) in &stack.matrices {
            let outputs = weight.shape()[0];
            self.kernels.convert(ConvertArgs {
                x: weight.view(),
                y: codes.view_mut()?.slice(0, start..start + outputs)?,
            })?;
            let first = start / BLOCK;
            self.kernels.scales_by_k(ScalesByKArgs {
                scales: by_n.view(),
                by_k: scales
                    .view_mut()?
                    .slice(1, first..first + blocks(outputs))?,
            })?;
            start += blocks(outputs) * BLOCK;
        }
        Ok(Linear {
            weights: Weights::Codes(Matrix { codes, scales }),
            outputs: rows as usize,
        })
    }

    /// An E4M3 matrix of its own.
    pub fn linear_codes(&mut self, at: &str) -> Result<Linear, ModelError> {
        let codes = self.source(&format!("{at}.weight"))?;
        let by_n = self.converted(&format!("{at}.scale"), DType::F32)?;
        self.bytes += codes.byte_count();
        let (outputs, inputs) = (codes.shape()[0], codes.shape()[1]);
        let columns = (blocks(outputs) + SCALES_STEP - 1) / SCALES_STEP * SCALES_STEP;
        let mut scales = self.zeros(DType::F32, &[blocks(inputs), columns])?;
        self.kernels.scales_by_k(ScalesByKArgs {
            scales: by_n.view(),
            by_k: scales.view_mut()?,
        })?;
        Ok(Linear {
            weights: Weights::Codes(Matrix { codes, scales }),
            outputs: outputs as usize,
        })
    }

    /// An E4M3 matrix `[G · N, K]` as G matrices that are multiplied in bf16. Tensor cores take the codes and widen them as they go.
    pub fn linear_groups(&mut self, at: &str, groups: usize) -> Result<Linear, ModelError> {
        let linear = self.linear_codes(at)?;
        let Weights::Codes(matrix) = linear.weights else {
            unreachable!("made so");
        };
        let outputs = linear.outputs / groups;
        let weights = match keeps_groups(self.device, self.config) {
            true => Weights::GroupCodes(matrix),
            false => {
                let &[rows, inputs] = matrix.codes.shape() else {
                    unreachable!("a matrix has two axes");
                };
                let mut wide = self.zeros(DType::BF16, &[rows, inputs])?;
                matrix.widen(self.kernels, wide.view_mut()?)?;
                self.bytes -= matrix.codes.byte_count() + matrix.scales.byte_count();
                Weights::Rows(wide.reshape(&[groups as i64, outputs as i64, inputs])?)
            }
        };
        Ok(Linear { weights, outputs })
    }

    /// One matrix of every routed expert.
    pub fn expert_codes(&mut self, at: &str, matrix: &str) -> Result<Experts, ModelError> {
        let count = self.config.n_routed_experts;
        let is_fp4 = self.config.weight_format
            == WeightFormat::Fp8 {
                experts: ExpertFormat::Fp4,
            };
        let name = |expert: usize, part: &str| format!("{at}.experts.{expert}.{matrix}.{part}");
        let (dtype, shape) = self.stored(&name(0, "weight"))?;
        let (_, scales_shape) = self.stored(&name(0, "scale"))?;
        let of_all = |one: &[i64]| [&[count as i64], one].concat();
        let scales_dtype = if is_fp4 { DType::UE8M0 } else { DType::F32 };
        let mut all = Experts {
            codes: self.zeros(dtype, &of_all(&shape))?,
            scales: self.zeros(scales_dtype, &of_all(&scales_shape))?,
        };
        for expert in 0..count {
            let codes = all.codes.view_mut()?.select(0, expert as i64)?;
            self.place(&name(expert, "weight"), codes)?;
            let scales = all.scales.view_mut()?.select(0, expert as i64)?;
            match is_fp4 {
                true => self.place(&name(expert, "scale"), scales)?,
                false => {
                    let source = self.converted(&name(expert, "scale"), DType::F32)?;
                    self.kernels.convert(ConvertArgs {
                        x: source.view(),
                        y: scales,
                    })?;
                }
            }
        }
        Ok(all)
    }

    /// FP4 matrices of every routed expert, which one launch reads, with their scales folded.
    pub fn folded_experts<const M: usize>(
        &mut self,
        at: &str,
        matrices: [&str; M],
    ) -> Result<[Folded; M], ModelError> {
        let mut ranged = vec![];
        let mut spread = 0;
        for matrix in matrices {
            let Experts { codes, scales } = self.expert_codes(at, matrix)?;
            let &[experts, outputs, groups] = scales.shape() else {
                unreachable!("scales are stacked by expert");
            };
            let mut top = self.zeros(DType::I32, &[experts, outputs])?;
            let mut spreads = self.zeros(DType::I32, &[experts, outputs])?;
            let mut factors = self.zeros(DType::F32, &[experts, outputs])?;
            let rows = [experts * outputs];
            self.kernels.e2m1_range(E2m1RangeArgs {
                scales: scales.view().reshape(&[rows[0], groups])?,
                top: top.view_mut()?.reshape(&rows)?,
                spread: spreads.view_mut()?.reshape(&rows)?,
                r: factors.view_mut()?.reshape(&rows)?,
            })?;
            // How many levels there are is a shape, which the host must know.
            let most = spreads.to_host()?.as_slice::<i32>()?.iter().max().copied();
            spread = spread.max(most.unwrap_or(0));
            self.bytes -= spreads.byte_count();
            ranged.push((codes, scales, top, factors));
        }
        let levels = i64::from(spread / LEVEL + 1);
        let mut folded = vec![];
        for (codes, scales, top, factors) in ranged {
            let &[experts, outputs, groups] = scales.shape() else {
                unreachable!("as above");
            };
            let columns = (outputs + SCALES_STEP - 1) / SCALES_STEP * SCALES_STEP;
            let shape = [experts, levels, (groups + 3) / 4, columns];
            let mut steps = self.zeros(DType::I32, &shape)?;
            for expert in 0..experts {
                self.kernels.e2m1_steps(E2m1StepsArgs {
                    scales: scales.view().select(0, expert)?,
                    top: top.view().select(0, expert)?,
                    steps: steps.view_mut()?.select(0, expert)?,
                })?;
            }
            self.bytes -= scales.byte_count() + top.byte_count();
            folded.push(Folded {
                codes,
                steps,
                factors,
            });
        }
        Ok(<[Folded; M]>::try_from(folded).unwrap_or_else(|_| unreachable!("one for each matrix")))
    }

    fn zeros(&mut self, dtype: DType, shape: &[i64]) -> Result<Tensor, ModelError> {
        let tensor = Tensor::zeros_on(self.device, dtype, shape)?;
        self.bytes += tensor.byte_count();
        Ok(tensor)
    }
}
