//! What a configuration costs: parameters, weight bytes, KV-cache bytes by part, and operations per decoded token.
//!
//! Everything follows from [`Config`] by arithmetic; the weights are counted from the same table that checkpoints are
//! checked against. The figures of DeepSeek-V3.2 that V4 is compared with are constants here.

use std::fmt;

use serde::Serialize;

use super::config::{Config, ExpertFormat, LayerKind, WeightFormat};
use crate::weights::{ExpectedTensor, expected_tensors};

/// The cost of one configuration at several context lengths.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub model: String,
    pub weights: WeightPlan,
    pub contexts: Vec<ContextPlan>,
}

/// Parameters and bytes of the weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightPlan {
    /// How the bytes were counted.
    pub format: &'static str,
    pub parts: Vec<WeightPart>,
    /// Of the main model, without the draft module.
    pub parameters: u64,
    pub bytes: u64,
    /// Parameters that one token is multiplied with: the head and the picked experts, not the embedding.
    pub activated_parameters: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightPart {
    pub name: &'static str,
    pub parameters: u64,
    pub bytes: u64,
}

/// Cache and work of one sequence of `context` tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ContextPlan {
    pub context: u64,
    pub kv: Vec<KvPlan>,
    pub flops: FlopPlan,
}

/// Cache bytes of one sequence in one format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvPlan {
    pub format: KvFormat,
    /// Compressed entries of layers with an indexer, its keys, and entries of the other compressing layers.
    pub sparse_entries: u64,
    pub index_keys: u64,
    pub heavy_entries: u64,
    /// The window of every main layer.
    pub window: u64,
    /// The four parts above.
    pub total: u64,
    /// Blocks that are not yet compressed, f32; not in `total`, as in the published figures.
    pub open_blocks: u64,
    /// The windows of the draft module; not in `total` either.
    pub draft_window: u64,
    /// Growth of `total` with each token, on average.
    pub bytes_per_token: f64,
    /// `total` over the cache of DeepSeek-V3.2 in the same format; `None` where it has none.
    pub ratio_to_v3_2: Option<f64>,
}

/// How cache entries are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum KvFormat {
    /// E4M3 with a scale per 64 channels, rotary dims bf16; indexer keys E2M1 with a scale per 32.
    Fp8Fp4,
    Bf16,
    F32,
}

/// Floating-point operations of one decode step after `context` tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlopPlan {
    pub linear: f64,
    pub core_attention: f64,
    pub indexer: f64,
    /// In units of FP8 work: linear + 2 core (bf16) + indexer / 2 (FP4).
    pub equivalent_fp8: f64,
    /// The same for DeepSeek-V3.2.
    pub v3_2_equivalent_fp8: f64,
    pub ratio_to_v3_2: f64,
}

/// DeepSeek-V3.2: what its decode step costs, from its published configuration.
mod v3_2 {
    pub const LAYERS: f64 = 61.0;
    pub const ACTIVATED: f64 = 37e9;
    pub const HEADS: f64 = 128.0;
    /// Key width (latent and rotary) plus value width.
    pub const KEY_AND_VALUE: f64 = 576.0 + 512.0;
    pub const TOPK: f64 = 2048.0;
    pub const INDEX_HEADS: f64 = 64.0;
    pub const INDEX_HEAD_DIM: f64 = 128.0;
    pub const FP8_BYTES_PER_TOKEN: f64 = 61.0 * 788.0;
    pub const BF16_BYTES_PER_TOKEN: f64 = 61.0 * 1408.0;

    pub fn equivalent_fp8(context: f64) -> f64 {
        let linear = 2.0 * ACTIVATED;
        let core = LAYERS * 2.0 * HEADS * KEY_AND_VALUE * context.min(TOPK);
        let indexer = LAYERS * 2.0 * INDEX_HEADS * INDEX_HEAD_DIM * context;
        linear + 2.0 * core + indexer
    }
}

/// The plan of `config` for each of `contexts` tokens.
pub fn plan(model: &str, config: &Config, contexts: &[u64]) -> Plan {
    let weights = weights(config);
    let contexts = contexts
        .iter()
        .map(|&context| ContextPlan {
            context,
            kv: [KvFormat::Fp8Fp4, KvFormat::Bf16, KvFormat::F32]
                .map(|format| kv(config, format, context))
                .into(),
            flops: flops(config, weights.activated_parameters, context),
        })
        .collect();
    Plan {
        model: model.into(),
        weights,
        contexts,
    }
}

/// Reads a context length: tokens, or with K or M for 2^10 or 2^20 tokens, as in `128K`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_context(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let (digits, unit) = match trimmed.char_indices().last() {
        Some((at, 'K' | 'k')) => (&trimmed[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&trimmed[..at], 1 << 20),
        _ => (trimmed, 1),
    };
    let tokens = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    match tokens {
        Some(tokens @ 1..=MAX_CONTEXT) => Ok(tokens),
        Some(_) => Err(format!(
            "the context `{text}` must be from 1 to {}M tokens",
            MAX_CONTEXT >> 20
        )),
        None => Err(format!(
            "`{text}` is no context length; write tokens as in 8192, 8K or 1M"
        )),
    }
}

/// Far beyond any model, and small enough that no sum here overflows.
const MAX_CONTEXT: u64 = 1 << 30;

// Weights.

const PARTS: [&str; 7] = [
    "embedding",
    "head",
    "attention",
    "router",
    "routed experts",
    "shared experts",
    "norms and hyper-connections",
];
const DRAFT: &str = "draft module";

fn part_of(name: &str) -> &'static str {
    let is = |part: &str| name.contains(part);
    match name {
        _ if name.starts_with("mtp.") => DRAFT,
        "embed.weight" => PARTS[0],
        "head.weight" => PARTS[1],
        _ if is(".attn.") => PARTS[2],
        _ if is(".gate.") => PARTS[3],
        _ if is(".experts.") => PARTS[4],
        _ if is(".shared_experts.") => PARTS[5],
        _ => PARTS[6],
    }
}

fn weights(config: &Config) -> WeightPlan {
    let names = PARTS.into_iter().chain([DRAFT]);
    let mut parts: Vec<_> = names
        .map(|name| WeightPart {
            name,
            parameters: 0,
            bytes: 0,
        })
        .collect();
    let part = |name: &str| {
        let at = parts.iter().position(|part| part.name == part_of(name));
        at.expect("`part_of` returns names of the list")
    };
    // Parameters are counted as if nothing were packed or scaled.
    let plain = Config {
        weight_format: WeightFormat::Plain,
        ..config.clone()
    };
    let mut parameters = vec![0; PARTS.len() + 1];
    for tensor in expected_tensors(&plain)
        .iter()
        .filter(|tensor| !is_table(tensor))
    {
        parameters[part(&tensor.name)] += elements(tensor);
    }
    let mut bytes = vec![0; PARTS.len() + 1];
    for tensor in &expected_tensors(config) {
        bytes[part(&tensor.name)] += elements(tensor) * stored_size(tensor, config.weight_format);
    }
    for (part, (parameters, bytes)) in parts.iter_mut().zip(parameters.into_iter().zip(bytes)) {
        (part.parameters, part.bytes) = (parameters, bytes);
    }
    let main = || parts.iter().filter(|part| part.name != DRAFT);
    let total = main().map(|part| part.parameters).sum();
    let of = |name: &str| {
        main()
            .filter(|part| part.name == name)
            .map(|part| part.parameters)
            .sum::<u64>()
    };
    let routed = of("routed experts");
    let picked = routed / config.n_routed_experts as u64 * config.num_experts_per_tok as u64;
    WeightPlan {
        format: match config.weight_format {
            WeightFormat::Plain => "f32",
            WeightFormat::Fp8 {
                experts: ExpertFormat::Fp4,
            } => "FP8 linears, FP4 experts",
            WeightFormat::Fp8 {
                experts: ExpertFormat::Fp8,
            } => "FP8 linears and experts",
        },
        parameters: total,
        bytes: main().map(|part| part.bytes).sum(),
        activated_parameters: total - of("embedding") - routed + picked,
        parts,
    }
}

fn elements(tensor: &ExpectedTensor) -> u64 {
    tensor.shape.iter().map(|&extent| extent as u64).product()
}

/// Expert numbers by token: data, not parameters.
fn is_table(tensor: &ExpectedTensor) -> bool {
    tensor.name.ends_with(".tid2eid")
}

/// Bytes of one element in the published checkpoints, or in an f32 one.
fn stored_size(tensor: &ExpectedTensor, format: WeightFormat) -> u64 {
    const F32_ENDINGS: [&str; 6] = ["_fn", "_base", "_scale", ".attn_sink", ".ape", ".gate.bias"];
    if is_table(tensor) {
        8
    } else if format == WeightFormat::Plain
        || F32_ENDINGS.iter().any(|end| tensor.name.ends_with(end))
    {
        4
    } else {
        tensor
            .dtypes
            .iter()
            .map(|dtype| dtype.size() as u64)
            .min()
            .unwrap_or(1)
    }
}

// Cache.

impl KvFormat {
    /// What the cache of a model of this configuration keeps.
    pub fn of(config: &Config) -> KvFormat {
        match config.weight_format {
            WeightFormat::Plain => KvFormat::F32,
            WeightFormat::Fp8 { .. } => KvFormat::Fp8Fp4,
        }
    }

    /// Bytes of one main entry.
    pub fn entry(self, config: &Config) -> u64 {
        let (width, rope) = (config.head_dim as u64, config.qk_rope_head_dim as u64);
        match self {
            // Scales, one per 64 channels, take a row of whole 8-byte words.
            KvFormat::Fp8Fp4 => {
                (width - rope) + 2 * rope + (width - rope).div_ceil(64).next_multiple_of(8)
            }
            KvFormat::Bf16 => 2 * width,
            KvFormat::F32 => 4 * width,
        }
    }

    /// Bytes of one indexer key.
    pub fn index_key(self, config: &Config) -> u64 {
        let width = config.index_head_dim as u64;
        match self {
            KvFormat::Fp8Fp4 => width.div_ceil(2) + width.div_ceil(32),
            KvFormat::Bf16 => 2 * width,
            KvFormat::F32 => 4 * width,
        }
    }

    fn v3_2_bytes(self, context: u64) -> Option<f64> {
        match self {
            KvFormat::Fp8Fp4 => Some(v3_2::FP8_BYTES_PER_TOKEN * context as f64),
            KvFormat::Bf16 => Some(v3_2::BF16_BYTES_PER_TOKEN * context as f64),
            KvFormat::F32 => None,
        }
    }
}

fn kv(config: &Config, format: KvFormat, context: u64) -> KvPlan {
    let (entry, key) = (format.entry(config), format.index_key(config));
    let (mut sparse_entries, mut index_keys, mut heavy_entries, mut open_blocks) = (0, 0, 0, 0);
    let mut bytes_per_token = 0.0;
    for layer in &config.layers {
        let ratio = layer.ratio() as u64;
        let open = |width: usize| {
            let blocks = layer.blocks_per_entry() as u64;
            // Keys and gate logits, f32.
            2 * 4 * (blocks * ratio) * (blocks * width as u64)
        };
        match layer {
            LayerKind::Window => {}
            LayerKind::CompressedSparse { .. } => {
                sparse_entries += context / ratio * entry;
                index_keys += context / ratio * key;
                open_blocks += open(config.head_dim) + open(config.index_head_dim);
                bytes_per_token += (entry + key) as f64 / ratio as f64;
            }
            LayerKind::HeavilyCompressed { .. } => {
                heavy_entries += context / ratio * entry;
                open_blocks += open(config.head_dim);
                bytes_per_token += entry as f64 / ratio as f64;
            }
        }
    }
    let one_window = config.sliding_window as u64 * entry;
    let window = one_window * config.layers.len() as u64;
    let total = sparse_entries + index_keys + heavy_entries + window;
    KvPlan {
        format,
        sparse_entries,
        index_keys,
        heavy_entries,
        window,
        total,
        open_blocks,
        draft_window: one_window * config.num_nextn_predict_layers as u64,
        bytes_per_token,
        ratio_to_v3_2: format.v3_2_bytes(context).map(|bytes| total as f64 / bytes),
    }
}

// Work.

fn flops(config: &Config, activated_parameters: u64, context: u64) -> FlopPlan {
    let n = context as f64;
    let heads_by_width = (config.num_attention_heads * config.head_dim) as f64;
    let index_heads_by_width = (config.index_n_heads * config.index_head_dim) as f64;
    let (mut core_attention, mut indexer) = (0.0, 0.0);
    for layer in &config.layers {
        let entries = if layer.is_compressed() {
            (context / layer.ratio() as u64) as f64
        } else {
            0.0
        };
        let mut keys = n.min(config.sliding_window as f64);
        match layer {
            LayerKind::Window => {}
            LayerKind::CompressedSparse { .. } => {
                keys += entries.min(config.index_topk as f64);
                indexer += 2.0 * index_heads_by_width * entries;
            }
            LayerKind::HeavilyCompressed { .. } => keys += entries,
        }
        core_attention += 4.0 * heads_by_width * keys;
    }
    let linear = 2.0 * activated_parameters as f64;
    let equivalent_fp8 = linear + 2.0 * core_attention + 0.5 * indexer;
    let v3_2_equivalent_fp8 = v3_2::equivalent_fp8(n);
    FlopPlan {
        linear,
        core_attention,
        indexer,
        equivalent_fp8,
        v3_2_equivalent_fp8,
        ratio_to_v3_2: equivalent_fp8 / v3_2_equivalent_fp8,
    }
}

// Tables.

/// Tokens as people write them: 128K, 1M.
struct Tokens(u64);

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            tokens if tokens >= 1 << 20 && tokens.is_multiple_of(1 << 20) => {
                format!("{}M", tokens >> 20)
            }
            tokens if tokens >= 1 << 10 && tokens.is_multiple_of(1 << 10) => {
                format!("{}K", tokens >> 10)
            }
            tokens => tokens.to_string(),
        };
        f.pad(&text)
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KvFormat::Fp8Fp4 => "FP8 + FP4",
            KvFormat::Bf16 => "BF16",
            KvFormat::F32 => "F32",
        })
    }
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

fn giga(number: f64) -> f64 {
    number / 1e9
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}: {:.2} B parameters, {:.2} B active per token",
            self.model,
            giga(self.weights.parameters as f64),
            giga(self.weights.activated_parameters as f64)
        )?;
        self.fmt_weights(f)?;
        self.fmt_kv(f)?;
        self.fmt_flops(f)
    }
}

impl Plan {
    fn fmt_weights(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nweights ({})", self.weights.format)?;
        writeln!(f, "  {:<28} {:>14} {:>10}", "part", "parameters (M)", "GB")?;
        for part in &self.weights.parts {
            let (parameters, bytes) = (part.parameters as f64 / 1e6, giga(part.bytes as f64));
            writeln!(f, "  {:<28} {parameters:>14.2} {bytes:>10.3}", part.name)?;
        }
        let (parameters, bytes) = (
            self.weights.parameters as f64 / 1e6,
            giga(self.weights.bytes as f64),
        );
        writeln!(
            f,
            "  {:<28} {parameters:>14.2} {bytes:>10.3}",
            "total without draft module"
        )
    }

    fn fmt_kv(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nKV cache of one sequence (GiB; open blocks and draft windows, MiB, not in the total)"
        )?;
        writeln!(
            f,
            "  {:>8} {:<10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11} {:>8} {:>11} {:>11}",
            "context",
            "format",
            "sparse",
            "index",
            "heavy",
            "window",
            "total",
            "B per token",
            "of V3.2",
            "open blocks",
            "draft"
        )?;
        for (context, kv) in self
            .contexts
            .iter()
            .flat_map(|at| at.kv.iter().map(|kv| (at.context, kv)))
        {
            let [sparse, index, heavy, window, total] = [
                kv.sparse_entries,
                kv.index_keys,
                kv.heavy_entries,
                kv.window,
                kv.total,
            ]
            .map(gib);
            let [open, draft] = [kv.open_blocks, kv.draft_window].map(|bytes| gib(bytes) * 1024.0);
            let ratio = kv
                .ratio_to_v3_2
                .map_or("-".into(), |ratio| format!("{:.1} %", 100.0 * ratio));
            writeln!(
                f,
                "  {:>8} {:<10} {sparse:>9.3} {index:>9.3} {heavy:>9.3} {window:>9.3} {total:>9.3} {:>11.0} {ratio:>8} {open:>11.2} {draft:>11.3}",
                Tokens(context),
                kv.format,
                kv.bytes_per_token
            )?;
        }
        Ok(())
    }

    fn fmt_flops(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\noperations of one decode step (G)")?;
        writeln!(
            f,
            "  {:>8} {:>10} {:>10} {:>10} {:>14} {:>10} {:>8}",
            "context", "linear", "core", "indexer", "equivalent FP8", "V3.2", "ratio"
        )?;
        for at in &self.contexts {
            let flops = &at.flops;
            let [linear, core, indexer, equivalent, v3_2] = [
                flops.linear,
                flops.core_attention,
                flops.indexer,
                flops.equivalent_fp8,
                flops.v3_2_equivalent_fp8,
            ]
            .map(giga);
            writeln!(
                f,
                "  {:>8} {linear:>10.1} {core:>10.1} {indexer:>10.1} {equivalent:>14.1} {v3_2:>10.1} {:>8.3}",
                Tokens(at.context),
                flops.ratio_to_v3_2
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: [u64; 4] = [8 << 10, 32 << 10, 128 << 10, 1 << 20];

    fn plans() -> [Plan; 2] {
        [
            plan("flash", &Config::flash(), &CONTEXTS),
            plan("pro", &Config::pro(), &CONTEXTS),
        ]
    }

    /// `value` printed with as many decimals as `printed` has.
    fn assert_prints(value: f64, printed: &str) {
        let decimals = printed
            .split_once('.')
            .map_or(0, |(_, decimals)| decimals.len());
        assert_eq!(format!("{value:.decimals$}"), printed);
    }

    #[test]
    fn parameters_are_the_published_ones() {
        let [flash, pro] = plans();
        assert_prints(giga(flash.weights.parameters as f64), "284.33");
        assert_prints(giga(flash.weights.activated_parameters as f64), "13.27");
        assert_prints(giga(pro.weights.parameters as f64), "1573.00");
        assert_prints(giga(pro.weights.activated_parameters as f64), "48.85");
        for (plan, draft, experts) in [(&flash, "6.61", "147.2"), (&pro, "25.84", "822.1")] {
            let part = |name| {
                plan.weights
                    .parts
                    .iter()
                    .find(|part| part.name == name)
                    .unwrap()
            };
            assert_prints(giga(part(DRAFT).parameters as f64), draft);
            assert_prints(giga(part("routed experts").bytes as f64), experts);
        }
    }

    #[test]
    fn kv_bytes_are_the_published_ones() {
        let [flash, pro] = plans();
        // Per context: Flash FP8 + FP4, Pro FP8 + FP4, Flash BF16, Pro BF16, in GiB.
        let printed = [
            ["0.030", "0.043", "0.058", "0.083"],
            ["0.110", "0.158", "0.215", "0.308"],
            ["0.432", "0.618", "0.845", "1.210"],
            ["3.435", "4.918", "6.724", "9.625"],
        ];
        for (context, row) in printed.iter().enumerate() {
            let columns = [(&flash, 0), (&pro, 0), (&flash, 1), (&pro, 1)];
            for ((plan, format), printed) in columns.into_iter().zip(row) {
                assert_prints(gib(plan.contexts[context].kv[format].total), printed);
            }
        }
        let per_token = [("3514", "5031"), ("6880", "9848")];
        for (format, (for_flash, for_pro)) in per_token.into_iter().enumerate() {
            assert_prints(flash.contexts[0].kv[format].bytes_per_token, for_flash);
            assert_prints(pro.contexts[0].kv[format].bytes_per_token, for_pro);
        }
        assert_prints(
            100.0 * flash.contexts[3].kv[0].ratio_to_v3_2.unwrap(),
            "7.3",
        );
        assert_prints(100.0 * pro.contexts[3].kv[0].ratio_to_v3_2.unwrap(), "10.5");
        assert_prints(
            flash.contexts[0].kv[0].open_blocks as f64 / (1 << 20) as f64,
            "11.6",
        );
        assert_prints(
            pro.contexts[0].kv[0].open_blocks as f64 / (1 << 20) as f64,
            "17.8",
        );
    }

    #[test]
    fn kv_bytes_of_v3_2_are_the_published_ones() {
        for (context, fp8, bf16) in [
            (0, "0.367", "0.655"),
            (1, "1.467", "2.621"),
            (2, "5.868", "10.48"),
            (3, "46.94", "83.88"),
        ] {
            let gib = |format: KvFormat| {
                format.v3_2_bytes(CONTEXTS[context]).unwrap() / (1u64 << 30) as f64
            };
            assert_prints(gib(KvFormat::Fp8Fp4), fp8);
            assert_prints(gib(KvFormat::Bf16), bf16);
        }
    }

    #[test]
    fn operations_are_the_published_ones() {
        let [flash, pro] = plans();
        // Linear, core, indexer, equivalent FP8, ratio: Flash then Pro; V3.2.
        let printed = [
            (
                ["26.5", "2.3", "0.7", "31.5", "0.21"],
                ["97.7", "10.6", "1.0", "119.4", "0.79"],
                "151.8",
            ),
            (
                ["26.5", "2.8", "2.8", "33.6", "0.19"],
                ["97.7", "12.2", "4.0", "124.1", "0.70"],
                "176.3",
            ),
            (
                ["26.5", "4.8", "11.3", "41.8", "0.15"],
                ["97.7", "18.4", "16.1", "142.6", "0.52"],
                "274.6",
            ),
            (
                ["26.5", "23.6", "90.2", "118.8", "0.100"],
                ["97.7", "76.7", "128.8", "315.5", "0.265"],
                "1191.6",
            ),
        ];
        for (context, (for_flash, for_pro, v3_2)) in printed.into_iter().enumerate() {
            for (plan, printed) in [(&flash, for_flash), (&pro, for_pro)] {
                let flops = &plan.contexts[context].flops;
                assert_prints(giga(flops.linear), printed[0]);
                assert_prints(giga(flops.core_attention), printed[1]);
                assert_prints(giga(flops.indexer), printed[2]);
                assert_prints(giga(flops.equivalent_fp8), printed[3]);
                assert_prints(flops.ratio_to_v3_2, printed[4]);
                assert_prints(giga(flops.v3_2_equivalent_fp8), v3_2);
            }
        }
    }

    #[test]
    fn contexts_are_read_and_refused() {
        assert_eq!(parse_context("8192"), Ok(8192));
        assert_eq!(parse_context("8K"), Ok(8192));
        assert_eq!(parse_context(" 1m "), Ok(1 << 20));
        for wrong in [
            "",
            "K",
            "0",
            "-1",
            "1.5K",
            "99999999999M",
            "18446744073709551615K",
            "8G",
            "1é",
        ] {
            assert!(parse_context(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_table_shows_every_part() {
        let text = plan("flash", &Config::flash(), &CONTEXTS).to_string();
        for piece in [
            "284.33 B",
            "routed experts",
            "draft module",
            "128K",
            "FP8 + FP4",
            "0.432",
            "118.8",
            "0.100",
        ] {
            assert!(text.contains(piece), "{piece} in\n{text}");
        }
    }
}
