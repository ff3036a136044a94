//! Which tensors a configured model has: one table, and the comparison of a checkpoint with it.

use std::collections::BTreeSet;

use super::{Checkpoint, Dtype, Mismatch, Tensor, WeightsError};
use crate::model::config::{Config, ExpertFormat, LayerKind, WeightFormat};

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtypes: &'static [Dtype],
}

/// What a checkpoint has under `mtp.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draft {
    /// Nothing: the configuration asks for no draft module, or the checkpoint was saved without it.
    Absent,
    /// The multi-token-prediction block of the configuration.
    Mtp,
    /// The block drafts of later releases (`mtp.0.main_proj`), which are not run; the main model is complete.
    OtherKind,
}

const FLOAT: &[Dtype] = &[Dtype::F32, Dtype::BF16, Dtype::F16];
const BF16: &[Dtype] = &[Dtype::BF16];
const E4M3: &[Dtype] = &[Dtype::F8E4M3];
const PACKED_E2M1: &[Dtype] = &[Dtype::I8, Dtype::U8];
const SCALE: &[Dtype] = &[Dtype::F8E8M0, Dtype::F32];
const POWER_OF_TWO: &[Dtype] = &[Dtype::F8E8M0];
const EXPERT_IDS: &[Dtype] = &[Dtype::I64, Dtype::I32];

/// Copies of shared tables that some releases carry.
const IGNORED: [&str; 2] = ["mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"];

/// Every tensor of the configured model under the names of the published checkpoints, the draft module's last.
pub fn expected_tensors(config: &Config) -> Vec<ExpectedTensor> {
    let mut table = Table {
        config,
        tensors: Vec::new(),
    };
    table.float("embed.weight", &[config.vocab_size, config.hidden_size]);
    for (index, kind) in config.layers.iter().enumerate() {
        table.block(
            &format!("layers.{index}"),
            *kind,
            config.is_hash_layer(index),
        );
    }
    table.hc_head("");
    table.float("norm.weight", &[config.hidden_size]);
    table.float("head.weight", &[config.vocab_size, config.hidden_size]);
    if config.num_nextn_predict_layers > 0 {
        table.draft("mtp.0");
    }
    table.tensors
}

struct Table<'a> {
    config: &'a Config,
    tensors: Vec<ExpectedTensor>,
}

impl Table<'_> {
    fn block(&mut self, at: &str, kind: LayerKind, hash: bool) {
        let hidden = self.config.hidden_size;
        self.hc_site(&format!("{at}.hc_attn"));
        self.float(&format!("{at}.attn_norm.weight"), &[hidden]);
        self.attention(&format!("{at}.attn"), kind);
        self.hc_site(&format!("{at}.hc_ffn"));
        self.float(&format!("{at}.ffn_norm.weight"), &[hidden]);
        self.moe(&format!("{at}.ffn"), hash);
    }

    fn attention(&mut self, at: &str, kind: LayerKind) {
        let c = self.config;
        self.linear(&format!("{at}.wq_a"), c.q_lora_rank, c.hidden_size);
        self.float(&format!("{at}.q_norm.weight"), &[c.q_lora_rank]);
        self.linear(
            &format!("{at}.wq_b"),
            c.num_attention_heads * c.head_dim,
            c.q_lora_rank,
        );
        self.linear(&format!("{at}.wkv"), c.head_dim, c.hidden_size);
        self.float(&format!("{at}.kv_norm.weight"), &[c.head_dim]);
        self.float(&format!("{at}.attn_sink"), &[c.num_attention_heads]);
        self.linear(
            &format!("{at}.wo_a"),
            c.o_groups * c.o_lora_rank,
            c.o_group_width(),
        );
        self.linear(
            &format!("{at}.wo_b"),
            c.hidden_size,
            c.o_groups * c.o_lora_rank,
        );
        if kind.is_compressed() {
            self.compressor(&format!("{at}.compressor"), kind, c.head_dim);
        }
        if let LayerKind::CompressedSparse { .. } = kind {
            self.linear(
                &format!("{at}.indexer.wq_b"),
                c.index_n_heads * c.index_head_dim,
                c.q_lora_rank,
            );
            self.float(
                &format!("{at}.indexer.weights_proj.weight"),
                &[c.index_n_heads, c.hidden_size],
            );
            self.compressor(&format!("{at}.indexer.compressor"), kind, c.index_head_dim);
        }
    }

    fn compressor(&mut self, at: &str, kind: LayerKind, width: usize) {
        let (ratio, columns) = (kind.ratio(), kind.blocks_per_entry() * width);
        self.float(&format!("{at}.ape"), &[ratio, columns]);
        self.float(
            &format!("{at}.wkv.weight"),
            &[columns, self.config.hidden_size],
        );
        self.float(
            &format!("{at}.wgate.weight"),
            &[columns, self.config.hidden_size],
        );
        self.float(&format!("{at}.norm.weight"), &[width]);
    }

    fn moe(&mut self, at: &str, hash: bool) {
        let c = self.config;
        let (hidden, inter) = (c.hidden_size, c.moe_intermediate_size);
        self.float(&format!("{at}.gate.weight"), &[c.n_routed_experts, hidden]);
        if hash {
            self.add(
                &format!("{at}.gate.tid2eid"),
                vec![c.vocab_size, c.num_experts_per_tok],
                EXPERT_IDS,
            );
        } else {
            self.float(&format!("{at}.gate.bias"), &[c.n_routed_experts]);
        }
        for expert in 0..c.n_routed_experts {
            for (weight, outputs, inputs) in [
                ("w1", inter, hidden),
                ("w2", hidden, inter),
                ("w3", inter, hidden),
            ] {
                self.expert_linear(&format!("{at}.experts.{expert}.{weight}"), outputs, inputs);
            }
        }
        for (weight, outputs, inputs) in [
            ("w1", inter, hidden),
            ("w2", hidden, inter),
            ("w3", inter, hidden),
        ] {
            self.linear(&format!("{at}.shared_experts.{weight}"), outputs, inputs);
        }
    }

    fn draft(&mut self, at: &str) {
        let hidden = self.config.hidden_size;
        self.block(at, LayerKind::Window, false);
        self.linear(&format!("{at}.e_proj"), hidden, hidden);
        self.linear(&format!("{at}.h_proj"), hidden, hidden);
        for norm in ["enorm", "hnorm", "norm"] {
            self.float(&format!("{at}.{norm}.weight"), &[hidden]);
        }
        self.hc_head(&format!("{at}."));
    }

    fn hc_site(&mut self, at: &str) {
        let (coefficients, inputs) = (
            self.config.hc_coefficients(),
            self.config.hc_mult * self.config.hidden_size,
        );
        self.float(&format!("{at}_fn"), &[coefficients, inputs]);
        self.float(&format!("{at}_base"), &[coefficients]);
        self.float(&format!("{at}_scale"), &[3]);
    }

    fn hc_head(&mut self, prefix: &str) {
        let (streams, hidden) = (self.config.hc_mult, self.config.hidden_size);
        self.float(&format!("{prefix}hc_head_fn"), &[streams, streams * hidden]);
        self.float(&format!("{prefix}hc_head_base"), &[streams]);
        self.float(&format!("{prefix}hc_head_scale"), &[1]);
    }

    /// A linear layer that FP8 checkpoints quantise in 128 x 128 tiles.
    fn linear(&mut self, at: &str, outputs: usize, inputs: usize) {
        match self.config.weight_format {
            WeightFormat::Plain => self.float(&format!("{at}.weight"), &[outputs, inputs]),
            WeightFormat::Fp8 { .. } => {
                self.add(&format!("{at}.weight"), vec![outputs, inputs], E4M3);
                self.add(
                    &format!("{at}.scale"),
                    vec![outputs.div_ceil(128), inputs.div_ceil(128)],
                    SCALE,
                );
            }
        }
    }

    fn expert_linear(&mut self, at: &str, outputs: usize, inputs: usize) {
        match self.config.weight_format {
            WeightFormat::Plain
            | WeightFormat::Fp8 {
                experts: ExpertFormat::Fp8,
            } => {
                self.linear(at, outputs, inputs);
            }
            WeightFormat::Fp8 {
                experts: ExpertFormat::Fp4,
            } => {
                self.add(
                    &format!("{at}.weight"),
                    vec![outputs, inputs.div_ceil(2)],
                    PACKED_E2M1,
                );
                self.add(
                    &format!("{at}.scale"),
                    vec![outputs, inputs.div_ceil(32)],
                    POWER_OF_TWO,
                );
            }
        }
    }

    /// A tensor that is never quantised. Beside quantised ones, matrices and norms are what activations are.
    fn float(&mut self, name: &str, shape: &[usize]) {
        let dtypes = match self.config.weight_format {
            WeightFormat::Fp8 { .. } if name.ends_with(".weight") => BF16,
            _ => FLOAT,
        };
        self.add(name, shape.to_vec(), dtypes);
    }

    fn add(&mut self, name: &str, shape: Vec<usize>, dtypes: &'static [Dtype]) {
        self.tensors.push(ExpectedTensor {
            name: name.into(),
            shape,
            dtypes,
        });
    }
}

/// Compares names, shapes and dtypes with [`expected_tensors`], and the expert numbers of hash layers with the number
/// of experts.
///
/// # Errors
/// [`WeightsError::Mismatch`] with every difference.
pub fn check(config: &Config, checkpoint: &Checkpoint) -> Result<Draft, WeightsError> {
    let draft = draft_kind(config, checkpoint);
    let mut expected = expected_tensors(config);
    expected.retain(|tensor| draft == Draft::Mtp || !is_draft(&tensor.name));
    expected.sort_unstable_by(|a, b| a.name.cmp(&b.name));

    let mut mismatches = Vec::new();
    let has_codes = |tensor: Tensor| tensor.dtype == Dtype::F8E4M3;
    if config.weight_format == WeightFormat::Plain && checkpoint.tensors().any(has_codes) {
        // First, since all that follows is its consequence.
        mismatches.push(Mismatch::Value {
            name: "quantization_config".into(),
            what: "config.json has none, and the weights are quantised; use the config.json that came with them".into(),
        });
    }
    for tensor in checkpoint.tensors() {
        let ignored =
            IGNORED.contains(&tensor.name) || (draft == Draft::OtherKind && is_draft(tensor.name));
        let known = |name: &str| {
            expected
                .binary_search_by(|tensor| tensor.name.as_str().cmp(name))
                .is_ok()
        };
        if !ignored && !known(tensor.name) {
            mismatches.push(Mismatch::Unexpected {
                name: tensor.name.into(),
            });
        }
    }
    for tensor in expected {
        match checkpoint.get(&tensor.name) {
            None => mismatches.push(Mismatch::Missing {
                name: tensor.name,
                shape: tensor.shape,
            }),
            Some(found) => mismatches.extend(compare(&tensor, &found, config)),
        }
    }
    if mismatches.is_empty() {
        Ok(draft)
    } else {
        Err(WeightsError::Mismatch {
            path: checkpoint.path().to_path_buf(),
            mismatches,
        })
    }
}

fn is_draft(name: &str) -> bool {
    name.starts_with("mtp.")
}

fn draft_kind(config: &Config, checkpoint: &Checkpoint) -> Draft {
    let mut names = checkpoint
        .tensors()
        .map(|tensor| tensor.name)
        .filter(|name| !IGNORED.contains(name));
    if checkpoint.get("mtp.0.main_proj.weight").is_some() {
        Draft::OtherKind
    } else if config.num_nextn_predict_layers > 0 && names.any(is_draft) {
        Draft::Mtp
    } else {
        Draft::Absent
    }
}

fn compare(expected: &ExpectedTensor, found: &Tensor, config: &Config) -> Option<Mismatch> {
    let name = || expected.name.clone();
    if found.shape != expected.shape {
        return Some(Mismatch::Shape {
            name: name(),
            found: found.shape.to_vec(),
            expected: expected.shape.clone(),
        });
    }
    if !expected.dtypes.contains(&found.dtype) {
        return Some(Mismatch::Dtype {
            name: name(),
            found: found.dtype,
            allowed: expected.dtypes.to_vec(),
        });
    }
    if expected.dtypes == EXPERT_IDS {
        return bad_expert_row(found, config).map(|what| Mismatch::Value { name: name(), what });
    }
    None
}

/// The first code of a quantised tensor, or of its scales, that is no number: such a value would spread through every sum.
pub fn bad_code(tensor: &Tensor) -> Option<String> {
    let is_bad = match tensor.dtype {
        Dtype::F8E4M3 => |byte: u8| byte & 0x7f == 0x7f,
        Dtype::F8E8M0 => |byte: u8| byte == 0xff,
        _ => return None,
    };
    let at = tensor.bytes.iter().position(|&byte| is_bad(byte))?;
    Some(format!(
        "element {at} has the code {:#04x}, which is no number; the file is damaged, fetch it again",
        tensor.bytes[at]
    ))
}

/// Each row of a hash layer's table must name distinct experts that exist: the router indexes with them.
fn bad_expert_row(table: &Tensor, config: &Config) -> Option<String> {
    let ids = table.to_i64().ok()?;
    let experts = config.n_routed_experts;
    for (token, row) in ids.chunks_exact(config.num_experts_per_tok).enumerate() {
        if let Some(id) = row.iter().find(|id| !(0..experts as i64).contains(id)) {
            return Some(format!(
                "token {token} is sent to expert {id}; there are experts 0 to {}",
                experts - 1
            ));
        }
        if row.iter().collect::<BTreeSet<_>>().len() < row.len() {
            return Some(format!(
                "token {token} is sent twice to one expert: {row:?}"
            ));
        }
    }
    None
}
