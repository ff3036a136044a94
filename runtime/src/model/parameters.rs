//! A model's weights in the form kernels read: matrices packed into panels, vectors in f32, expert tables in i32.
//!
//! Matrices that are stored as bf16 stay bf16, which halves what a token reads; kernels widen them, so the result has the bits that
//! widened weights give. f16 is widened here. Quantised weights stay codes with their scales (`codes.rs`); norms are bf16 then, as the
//! activations are.
//!
//! Needs: a checkpoint that was compared with the configuration, or a law for random values (`synthetic.rs`). Keeps: every conversion is a
//! kernel's work; nothing here looks at a value, but at how far FP4 experts' scales lie
//! apart.

use std::ops::Range;

use tessera_artifact::DType;
use tessera_device::{Device, Tensor, ViewMut};

use super::ModelError;
use super::codes;
use super::config::{Config, LayerKind, WeightFormat};
use super::kernels::{ConvertArgs, Kernels, PackPanelsArgs, SplitF32Args};
use super::synthetic::Synthetic;
use crate::weights::{self, Checkpoint, Draft, Mismatch, WeightsError};

/// Columns of a panel; the kernels of `linear.tl` are written for it.
pub(super) const PANEL: i64 = 64;

pub struct Parameters {
    /// `[V, D]`, f32 or bf16.
    pub embed: Tensor,
    pub layers: Vec<Layer>,
    pub hc_head: HcSite,
    /// `[D]`
    pub norm: Tensor,
    pub head: Linear,
    pub draft: Option<DraftBlock>,
    /// What the checkpoint has under `mtp.`, whether it is run or not.
    pub draft_kind: Draft,
    /// What all of it takes in memory.
    pub bytes: usize,
}

/// One block: attention and experts, each behind its hyper-connection.
pub struct Layer {
    pub kind: LayerKind,
    pub attn_hc: HcSite,
    pub attn_norm: Tensor,
    pub attn: Attention,
    pub ffn_hc: HcSite,
    pub ffn_norm: Tensor,
    pub moe: Moe,
}

/// Hyper-connection weights of one site.
pub struct HcSite {
    /// All streams to the raw coefficients.
    pub mix: Linear,
    pub base: Tensor,
    pub scale: Tensor,
}

pub struct Attention {
    /// Everything that multiplies the block's input.
    pub inputs: Inputs,
    pub wq_a: Part,
    pub q_norm: Tensor,
    pub wq_b: Linear,
    pub wkv: Part,
    pub kv_norm: Tensor,
    pub sink: Tensor,
    /// One map per output group.
    pub wo_a: Linear,
    pub wo_b: Linear,
    pub compressor: Option<Compressor>,
    pub indexer: Option<Indexer>,
}

pub struct Compressor {
    pub wkv: Part,
    pub wgate: Part,
    pub ape: Tensor,
    pub norm: Tensor,
}

pub struct Indexer {
    pub wq_b: Linear,
    pub weights_proj: Part,
    pub compressor: Compressor,
}

pub struct Moe {
    /// The shared expert's first two matrices, and the router's where it is among them.
    pub inputs: Inputs,
    pub gate: Gate,
    pub choice: Choice,
    pub w1: Experts,
    pub w3: Experts,
    pub w2: Experts,
    pub shared_w1: Part,
    pub shared_w3: Part,
    pub shared_w2: Linear,
}

/// The router's matrix.
pub enum Gate {
    /// Among the inputs'.
    Columns(Part),
    /// `[E, D]` bf16 of its own, in quantised models; products are f32 and in parts.
    Rows(Tensor),
}

/// How a layer chooses experts.
pub enum Choice {
    /// By score plus this bias, `[E]`.
    Scored { bias: Tensor },
    /// By token id, `[V, K]`.
    Table { experts: Tensor },
}

/// The multi-token-prediction block.
pub struct DraftBlock {
    pub layer: Layer,
    pub e_proj: Linear,
    pub h_proj: Linear,
    pub enorm: Tensor,
    pub hnorm: Tensor,
    pub norm: Tensor,
    pub hc_head: HcSite,
}

/// Matrices that multiply one block's input, stacked by the kind of their products: a launch or two.
pub struct Inputs {
    pub linear: Linear,
    /// In quantised models the matrices that are not: those of the compressors, the indexer's head weights and the router, whose
    /// products stay f32.
    pub wide: Option<Linear>,
}

/// G matrices of one shape; G is 1 but for grouped projections.
pub struct Linear {
    pub weights: Weights,
    pub outputs: usize,
}

/// What a linear map is multiplied with.
pub enum Weights {
    /// `[G, cdiv(N, 64), K, 64]`, f32 or bf16; products are f32.
    Panels(Tensor),
    /// `[G, N, K]` bf16; inputs are bf16, products bf16 or f32.
    Rows(Tensor),
    /// `[3, N, K]` bf16, whose sum are f32 weights; G = 1, inputs are bf16, products f32 and in parts.
    Parts(Tensor),
    /// G = 1; inputs are quantised, products are bf16.
    Codes(codes::Matrix),
    /// G matrices below each other, of a multiple of 128 rows each; inputs and products are bf16, and so are the weights while they are
    /// multiplied.
    GroupCodes(codes::Matrix),
}

/// One matrix of every routed expert.
pub enum Experts {
    /// `[E, cdiv(N, 64), K, 64]`, f32 or bf16.
    Panels(Tensor),
    Codes(codes::Experts),
    /// FP4 for tensor cores.
    Folded(codes::Folded),
}

/// Columns of a stacked product that belong to one of its matrices.
pub type Part = Range<i64>;

impl Parameters {
    /// Reads and packs all weights; `progress` is told how many of how many tensors are done.
    ///
    /// # Errors
    /// [`ModelError`]: the checkpoint does not fit the configuration, has sizes that are not run, or there is no memory.
    pub fn load(
        config: &Config,
        checkpoint: &Checkpoint,
        kernels: &Kernels,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Parameters, ModelError> {
        let draft = weights::check(config, checkpoint)?;
        let total = checkpoint.tensors().count();
        let source = Source::Checkpoint(checkpoint);
        Loader::new(config, source, kernels, progress, total)?.all(draft)
    }

    /// Makes random weights of the configured model on the device; `progress` as in [`load`](Self::load).
    ///
    /// # Errors
    /// [`ModelError`]: the model has sizes that are not run, or there is no memory.
    pub fn synthetic(
        config: &Config,
        seed: u32,
        kernels: &Kernels,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Parameters, ModelError> {
        let values = Synthetic::new(config, seed);
        let total = values.count();
        let draft = match config.num_nextn_predict_layers {
            0 => Draft::Absent,
            _ => Draft::Mtp,
        };
        let source = Source::Synthetic(values);
        Loader::new(config, source, kernels, progress, total)?.all(draft)
    }

    /// Columns of the widest stacked product.
    pub fn most_columns(&self) -> usize {
        let blocks = self
            .layers
            .iter()
            .chain(self.draft.as_ref().map(|d| &d.layer));
        let widths = blocks
            .flat_map(|b| [&b.attn.inputs, &b.moe.inputs])
            .flat_map(|inputs| [Some(&inputs.linear), inputs.wide.as_ref()]);
        widths.flatten().map(|w| w.outputs).max().unwrap_or(0)
    }
}

pub(super) struct Loader<'a> {
    pub device: &'a Device,
    pub config: &'a Config,
    source: Source<'a>,
    pub kernels: &'a Kernels,
    progress: &'a mut dyn FnMut(usize, usize),
    done: usize,
    total: usize,
    pub bytes: usize,
}

/// Where tensors come from.
enum Source<'a> {
    Checkpoint(&'a Checkpoint),
    Synthetic(Synthetic),
}

impl<'a> Loader<'a> {
    fn new(
        config: &'a Config,
        source: Source<'a>,
        kernels: &'a Kernels,
        progress: &'a mut dyn FnMut(usize, usize),
        total: usize,
    ) -> Result<Self, ModelError> {
        codes::check_sizes(config)?;
        Ok(Loader {
            device: kernels.library().device(),
            config,
            source,
            kernels,
            progress,
            done: 0,
            total,
            bytes: 0,
        })
    }

    fn all(&mut self, draft: Draft) -> Result<Parameters, ModelError> {
        let config = self.config;
        let embed = match self.panel_dtype(["embed.weight"])? {
            DType::BF16 => {
                let table = self.source("embed.weight")?;
                self.bytes += table.byte_count();
                table
            }
            dtype => self.converted("embed.weight", dtype)?,
        };
        let layers = (0..config.layers.len())
            .map(|index| {
                let at = format!("layers.{index}");
                self.layer(&at, config.layers[index], config.is_hash_layer(index))
            })
            .collect::<Result<_, _>>()?;
        Ok(Parameters {
            embed,
            layers,
            hc_head: self.hc_site("hc_head")?,
            norm: self.norm("norm.weight")?,
            head: match self.is_quantised() {
                true => self.rows("head.weight")?,
                false => self.packed("head.weight")?,
            },
            draft: (draft == Draft::Mtp)
                .then(|| self.draft("mtp.0"))
                .transpose()?,
            draft_kind: draft,
            bytes: self.bytes,
        })
    }

    fn layer(&mut self, at: &str, kind: LayerKind, hash: bool) -> Result<Layer, ModelError> {
        Ok(Layer {
            kind,
            attn_hc: self.hc_site(&format!("{at}.hc_attn"))?,
            attn_norm: self.norm(&format!("{at}.attn_norm.weight"))?,
            attn: self.attention(&format!("{at}.attn"), kind)?,
            ffn_hc: self.hc_site(&format!("{at}.hc_ffn"))?,
            ffn_norm: self.norm(&format!("{at}.ffn_norm.weight"))?,
            moe: self.moe(&format!("{at}.ffn"), hash)?,
        })
    }

    fn hc_site(&mut self, at: &str) -> Result<HcSite, ModelError> {
        Ok(HcSite {
            mix: match self.is_quantised() {
                true => self.split(&format!("{at}_fn"))?,
                false => self.packed(&format!("{at}_fn"))?,
            },
            base: self.vector(&format!("{at}_base"))?,
            scale: self.vector(&format!("{at}_scale"))?,
        })
    }

    fn attention(&mut self, at: &str, kind: LayerKind) -> Result<Attention, ModelError> {
        let groups = self.config.o_groups;
        let mut stacks = self.stacks();
        let wq_a = self.push_linear(&mut stacks, &format!("{at}.wq_a"))?;
        let wkv = self.push_linear(&mut stacks, &format!("{at}.wkv"))?;
        let compressor = kind
            .is_compressed()
            .then(|| self.compressor(&mut stacks, &format!("{at}.compressor")))
            .transpose()?;
        let indexer = matches!(kind, LayerKind::CompressedSparse { .. })
            .then(|| self.indexer(&mut stacks, &format!("{at}.indexer")))
            .transpose()?;
        Ok(Attention {
            inputs: self.stacked(stacks)?,
            wq_a,
            q_norm: self.norm(&format!("{at}.q_norm.weight"))?,
            wq_b: self.linear(&format!("{at}.wq_b"))?,
            wkv,
            kv_norm: self.norm(&format!("{at}.kv_norm.weight"))?,
            sink: self.vector(&format!("{at}.attn_sink"))?,
            wo_a: match self.is_quantised() {
                true => self.linear_groups(&format!("{at}.wo_a"), groups)?,
                false => self.grouped(&format!("{at}.wo_a.weight"), groups)?,
            },
            wo_b: self.linear(&format!("{at}.wo_b"))?,
            compressor,
            indexer,
        })
    }

    fn compressor(&mut self, stacks: &mut Stacks, at: &str) -> Result<Compressor, ModelError> {
        Ok(Compressor {
            wkv: self.push(&mut stacks.wide, &format!("{at}.wkv.weight"))?,
            wgate: self.push(&mut stacks.wide, &format!("{at}.wgate.weight"))?,
            ape: self.converted(&format!("{at}.ape"), DType::F32)?,
            norm: self.norm(&format!("{at}.norm.weight"))?,
        })
    }

    fn indexer(&mut self, stacks: &mut Stacks, at: &str) -> Result<Indexer, ModelError> {
        Ok(Indexer {
            wq_b: self.linear(&format!("{at}.wq_b"))?,
            weights_proj: self.push(&mut stacks.wide, &format!("{at}.weights_proj.weight"))?,
            compressor: self.compressor(stacks, &format!("{at}.compressor"))?,
        })
    }

    fn moe(&mut self, at: &str, hash: bool) -> Result<Moe, ModelError> {
        let mut stacks = self.stacks();
        let gate_name = format!("{at}.gate.weight");
        let gate = match self.is_quantised() {
            true => {
                let rows = self.source(&gate_name)?;
                self.bytes += rows.byte_count();
                Gate::Rows(rows)
            }
            false => Gate::Columns(self.push(&mut stacks.wide, &gate_name)?),
        };
        let shared_w1 = self.push_linear(&mut stacks, &format!("{at}.shared_experts.w1"))?;
        let shared_w3 = self.push_linear(&mut stacks, &format!("{at}.shared_experts.w3"))?;
        let [w1, w3, w2] = match codes::folds_experts(self.device, self.config) {
            true => {
                let [w1, w3] = self.folded_experts(at, ["w1", "w3"])?;
                let [w2] = self.folded_experts(at, ["w2"])?;
                [w1, w3, w2].map(Experts::Folded)
            }
            false => [
                self.experts(at, "w1", &["w1", "w3"])?,
                self.experts(at, "w3", &["w1", "w3"])?,
                self.experts(at, "w2", &["w2"])?,
            ],
        };
        Ok(Moe {
            inputs: self.stacked(stacks)?,
            gate,
            choice: if hash {
                Choice::Table {
                    experts: self.converted(&format!("{at}.gate.tid2eid"), DType::I32)?,
                }
            } else {
                Choice::Scored {
                    bias: self.vector(&format!("{at}.gate.bias"))?,
                }
            },
            w1,
            w3,
            w2,
            shared_w1,
            shared_w3,
            shared_w2: self.linear(&format!("{at}.shared_experts.w2"))?,
        })
    }

    fn draft(&mut self, at: &str) -> Result<DraftBlock, ModelError> {
        Ok(DraftBlock {
            layer: self.layer(at, LayerKind::Window, false)?,
            e_proj: self.linear(&format!("{at}.e_proj"))?,
            h_proj: self.linear(&format!("{at}.h_proj"))?,
            enorm: self.norm(&format!("{at}.enorm.weight"))?,
            hnorm: self.norm(&format!("{at}.hnorm.weight"))?,
            norm: self.norm(&format!("{at}.norm.weight"))?,
            hc_head: self.hc_site(&format!("{at}.hc_head"))?,
        })
    }

    /// Whether linear layers are codes with scales, and so activations bf16.
    pub fn is_quantised(&self) -> bool {
        self.config.weight_format != WeightFormat::Plain
    }

    fn stacks(&self) -> Stacks {
        Stacks {
            codes: self.is_quantised().then(codes::Stack::default),
            wide: Stack::default(),
        }
    }

    /// Puts a matrix that may be quantised below those of its kind; says which columns its product gets.
    fn push_linear(&mut self, stacks: &mut Stacks, at: &str) -> Result<Part, ModelError> {
        match &mut stacks.codes {
            Some(codes) => self.push_codes(codes, at),
            None => self.push(&mut stacks.wide, &format!("{at}.weight")),
        }
    }

    /// Puts a matrix below those already in the stack; says which columns its product gets.
    fn push(&mut self, stack: &mut Stack, name: &str) -> Result<Part, ModelError> {
        let weight = self.source(name)?;
        let start = stack.columns();
        let part = start..start + weight.shape()[0];
        stack.matrices.push(weight);
        Ok(part)
    }

    fn stacked(&mut self, stacks: Stacks) -> Result<Inputs, ModelError> {
        let wide = match (stacks.wide.matrices.is_empty(), &stacks.codes) {
            (true, _) => None,
            (false, None) => Some(self.stacked_panels(stacks.wide)?),
            (false, Some(_)) => Some(self.stacked_rows(stacks.wide)?),
        };
        match (stacks.codes, wide) {
            (Some(codes), wide) => Ok(Inputs {
                linear: self.stacked_codes(codes)?,
                wide,
            }),
            (None, Some(linear)) => Ok(Inputs { linear, wide: None }),
            (None, None) => unreachable!("every block multiplies its input with something"),
        }
    }

    /// One matrix of several with the same inputs, each from the start of a panel.
    fn stacked_panels(&mut self, stack: Stack) -> Result<Linear, ModelError> {
        let outputs = stack.columns();
        let inputs = stack.matrices.first().map_or(0, |m| m.shape()[1]);
        let is_bf16 = stack.matrices.iter().all(|m| m.dtype() == DType::BF16);
        let dtype = if is_bf16 { DType::BF16 } else { DType::F32 };
        let mut panels = self.panels(dtype, 1, outputs, inputs)?;
        let mut start = 0;
        for matrix in &stack.matrices {
            let end = start + panels_of(matrix.shape()[0]);
            self.kernels.pack_panels(PackPanelsArgs {
                w: matrix.view(),
                panels: panels.view_mut()?.select(0, 0)?.slice(0, start..end)?,
            })?;
            start = end;
        }
        Ok(Linear {
            weights: Weights::Panels(panels),
            outputs: outputs as usize,
        })
    }

    /// The same as rows of bf16, for inputs in bf16.
    fn stacked_rows(&mut self, stack: Stack) -> Result<Linear, ModelError> {
        let outputs = stack.columns();
        let inputs = stack.matrices.first().map_or(0, |m| m.shape()[1]);
        let mut rows = Tensor::zeros_on(self.device, DType::BF16, &[1, outputs, inputs])?;
        self.bytes += rows.byte_count();
        let mut start = 0;
        for matrix in &stack.matrices {
            let to = rows.view_mut()?.select(0, 0)?;
            self.kernels.convert(ConvertArgs {
                x: matrix.view(),
                y: to.slice(0, start..start + matrix.shape()[0])?,
            })?;
            start += panels_of(matrix.shape()[0]) * PANEL;
        }
        Ok(Linear {
            weights: Weights::Rows(rows),
            outputs: outputs as usize,
        })
    }

    /// A bf16 matrix of its own, for inputs in bf16.
    fn rows(&mut self, name: &str) -> Result<Linear, ModelError> {
        let weight = self.source(name)?;
        self.bytes += weight.byte_count();
        let (outputs, inputs) = (weight.shape()[0], weight.shape()[1]);
        Ok(Linear {
            weights: Weights::Rows(weight.reshape(&[1, outputs, inputs])?),
            outputs: outputs as usize,
        })
    }

    /// A matrix whose values are taken as f32, for inputs in bf16.
    fn split(&mut self, name: &str) -> Result<Linear, ModelError> {
        let weight = self.converted(name, DType::F32)?;
        self.bytes -= weight.byte_count();
        let (outputs, inputs) = (weight.shape()[0], weight.shape()[1]);
        let mut parts = Tensor::zeros_on(self.device, DType::BF16, &[3, outputs, inputs])?;
        self.bytes += parts.byte_count();
        self.kernels.split_f32(SplitF32Args {
            w: weight.view(),
            parts: parts.view_mut()?,
        })?;
        Ok(Linear {
            weights: Weights::Parts(parts),
            outputs: outputs as usize,
        })
    }

    /// A matrix that may be quantised.
    fn linear(&mut self, at: &str) -> Result<Linear, ModelError> {
        match self.is_quantised() {
            true => self.linear_codes(at),
            false => self.packed(&format!("{at}.weight")),
        }
    }

    /// A matrix that never is.
    fn packed(&mut self, name: &str) -> Result<Linear, ModelError> {
        self.grouped(name, 1)
    }

    /// A matrix `[G · N, K]` as G matrices.
    fn grouped(&mut self, name: &str, groups: usize) -> Result<Linear, ModelError> {
        let weight = self.source(name)?;
        let (rows, inputs) = (weight.shape()[0], weight.shape()[1]);
        let outputs = rows / groups as i64;
        let dtype = self.panel_dtype([name])?;
        let mut panels = self.panels(dtype, groups, outputs, inputs)?;
        let matrices = weight.view().reshape(&[groups as i64, outputs, inputs])?;
        for group in 0..groups as i64 {
            self.kernels.pack_panels(PackPanelsArgs {
                w: matrices.select(0, group)?,
                panels: panels.view_mut()?.select(0, group)?,
            })?;
        }
        Ok(Linear {
            weights: Weights::Panels(panels),
            outputs: outputs as usize,
        })
    }

    /// One matrix of every routed expert; `together`: the matrices that one launch reads, all of one type.
    fn experts(
        &mut self,
        at: &str,
        matrix: &str,
        together: &[&str],
    ) -> Result<Experts, ModelError> {
        if self.is_quantised() {
            return Ok(Experts::Codes(self.expert_codes(at, matrix)?));
        }
        let (hidden, inter) = (
            self.config.hidden_size as i64,
            self.config.moe_intermediate_size as i64,
        );
        let (outputs, inputs) = match matrix {
            "w2" => (hidden, inter),
            _ => (inter, hidden),
        };
        let count = self.config.n_routed_experts;
        let name = |expert: usize, matrix: &str| format!("{at}.experts.{expert}.{matrix}.weight");
        let all = (0..count).flat_map(|expert| together.iter().map(move |m| name(expert, m)));
        let dtype = self.panel_dtype(all)?;
        let mut panels = self.panels(dtype, count, outputs, inputs)?;
        for expert in 0..count {
            let weight = self.source(&name(expert, matrix))?;
            self.kernels.pack_panels(PackPanelsArgs {
                w: weight.view(),
                panels: panels.view_mut()?.select(0, expert as i64)?,
            })?;
        }
        Ok(Experts::Panels(panels))
    }

    /// A norm's weight, in the type of the activations.
    fn norm(&mut self, name: &str) -> Result<Tensor, ModelError> {
        if !self.is_quantised() {
            return self.vector(name);
        }
        let norm = self.source(name)?;
        self.bytes += norm.byte_count();
        Ok(norm)
    }

    fn vector(&mut self, name: &str) -> Result<Tensor, ModelError> {
        self.converted(name, DType::F32)
    }

    /// A tensor of rank 1 or 2 in the type that kernels read.
    pub fn converted(&mut self, name: &str, dtype: DType) -> Result<Tensor, ModelError> {
        let source = self.source(name)?;
        let mut target = Tensor::zeros_on(self.device, dtype, source.shape())?;
        self.bytes += target.byte_count();
        let columns = source.shape().last().copied().unwrap_or(1);
        let table = [source.elements() as i64 / columns.max(1), columns];
        self.kernels.convert(ConvertArgs {
            x: source.view().reshape(&table)?,
            y: target.view_mut()?.reshape(&table)?,
        })?;
        Ok(target)
    }

    fn panels(
        &mut self,
        dtype: DType,
        groups: usize,
        outputs: i64,
        inputs: i64,
    ) -> Result<Tensor, ModelError> {
        let shape = [groups as i64, panels_of(outputs), inputs, PANEL];
        let panels = Tensor::zeros_on(self.device, dtype, &shape)?;
        self.bytes += panels.byte_count();
        Ok(panels)
    }

    /// What panels of these matrices hold: bf16 where all of them are stored so.
    fn panel_dtype(
        &self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<DType, ModelError> {
        for name in names {
            let dtype = match &self.source {
                Source::Checkpoint(checkpoint) => checkpoint.tensor(name.as_ref())?.dtype,
                Source::Synthetic(values) => values.stored(name.as_ref()).0,
            };
            if dtype != weights::Dtype::BF16 {
                return Ok(DType::F32);
            }
        }
        Ok(DType::BF16)
    }

    /// A tensor as it is stored, on the device.
    pub fn source(&mut self, name: &str) -> Result<Tensor, ModelError> {
        let (dtype, shape) = self.stored(name)?;
        let tensor = match &self.source {
            Source::Checkpoint(checkpoint) => {
                let stored = checkpoint.tensor(name)?;
                if let Some(what) = weights::bad_code(&stored) {
                    return Err(ModelError::Weights(WeightsError::Mismatch {
                        path: checkpoint.path().to_path_buf(),
                        mismatches: vec![Mismatch::Value {
                            name: name.into(),
                            what,
                        }],
                    }));
                }
                Tensor::from_bytes_on(self.device, dtype, &shape, stored.bytes)?
            }
            Source::Synthetic(values) => {
                let mut tensor = Tensor::zeros_on(self.device, dtype, &shape)?;
                values.fill(self.kernels, name, tensor.view_mut()?)?;
                tensor
            }
        };
        self.count();
        Ok(tensor)
    }

    /// Puts a tensor of codes or scales in its place, as it is stored.
    pub fn place(&mut self, name: &str, to: ViewMut) -> Result<(), ModelError> {
        match &self.source {
            Source::Checkpoint(_) => {
                let source = self.source(name)?;
                self.kernels.convert(ConvertArgs {
                    x: source.view(),
                    y: to,
                })?;
            }
            Source::Synthetic(values) => {
                values.fill(self.kernels, name, to)?;
                self.count();
            }
        }
        Ok(())
    }

    /// The type and the shape of a tensor as it is stored.
    pub fn stored(&self, name: &str) -> Result<(DType, Vec<i64>), ModelError> {
        let (dtype, shape) = match &self.source {
            Source::Checkpoint(checkpoint) => {
                let stored = checkpoint.tensor(name)?;
                (stored.dtype, stored.shape)
            }
            Source::Synthetic(values) => values.stored(name),
        };
        let dtype = device_dtype(dtype, name)?;
        let mut shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        if let (DType::E2M1, Some(inputs)) = (dtype, shape.last_mut()) {
            // Two codes to a byte.
            *inputs *= 2;
        }
        Ok((dtype, shape))
    }

    fn count(&mut self) {
        self.done += 1;
        (self.progress)(self.done, self.total);
    }
}

fn panels_of(outputs: i64) -> i64 {
    (outputs + PANEL - 1) / PANEL
}

/// Matrices that multiply one input.
struct Stacks {
    /// In quantised models.
    codes: Option<codes::Stack>,
    /// Those that are not quantised.
    wide: Stack,
}

/// Matrices `[N, K]` of one K that are multiplied together.
#[derive(Default)]
struct Stack {
    matrices: Vec<Tensor>,
}

impl Stack {
    /// Columns of the product so far, each matrix filling its last panel.
    fn columns(&self) -> i64 {
        let panels: i64 = self.matrices.iter().map(|m| panels_of(m.shape()[0])).sum();
        panels * PANEL
    }
}

fn device_dtype(dtype: weights::Dtype, name: &str) -> Result<DType, ModelError> {
    use weights::Dtype;
    Ok(match dtype {
        Dtype::F32 => DType::F32,
        Dtype::BF16 => DType::BF16,
        Dtype::F16 => DType::F16,
        Dtype::I64 => DType::I64,
        Dtype::I32 => DType::I32,
        Dtype::F8E4M3 => DType::E4M3,
        Dtype::F8E8M0 => DType::UE8M0,
        // Checked against the configuration before: only packed experts are stored so.
        Dtype::I8 | Dtype::U8 => DType::E2M1,
        other => {
            return Err(ModelError::Unsupported(format!(
                "`{name}` is stored as {other}; this version runs F32, BF16, F16, F8_E4M3 and packed FP4 weights"
            )));
        }
    })
}
