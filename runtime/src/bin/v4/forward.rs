//! `v4 forward`: logits of token sequences, and every intermediate value, into a safetensors file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tessera::model::{Logits, ModelError, Run, Trace};
use tessera::weights::{Dtype, SafetensorsFile, TensorSpec, Writer};
use tessera_artifact::DType;
use tessera_device::View;

use super::setup::{Options, parse_ids};
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the model.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Token ids as in 1,2,3, or a safetensors file with `input_ids` [B, S].
    #[arg(long, value_name = "IDS|FILE")]
    ids: String,
    /// The file to write: `logits` [B, S, V], `hidden.N`, `head_collapsed`.
    #[arg(long, value_name = "OUT.safetensors")]
    dump: PathBuf,
    /// Also write every component, as `L0.attn.q`.
    #[arg(long)]
    trace: bool,
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let ids = read_ids(&args.ids)?;
    let model = options.model(&args.model)?;
    let length = ids[0].len();
    let mut session = model.session(ids.len(), length, ids.len() * length)?;
    let runs: Vec<Run> = ids
        .iter()
        .enumerate()
        .map(|(sequence, ids)| Run {
            sequence,
            ids,
            next_ids: None,
        })
        .collect();
    let mut dump = Dump {
        batch: [ids.len(), length],
        components: args.trace,
        tensors: BTreeMap::new(),
    };
    model.forward(&mut session, &runs, Logits::All, Some(&mut dump))?;
    dump.write(&args.dump)?;
    if options.json {
        let names: Vec<&String> = dump.tensors.keys().collect();
        println!(
            "{}",
            serde_json::json!({ "file": args.dump, "tensors": names })
        );
    } else {
        println!("{} tensors in {}", dump.tensors.len(), args.dump.display());
    }
    Ok(Outcome::Fine)
}

/// Sequences of one length.
fn read_ids(text: &str) -> Result<Vec<Vec<u32>>, Box<dyn std::error::Error>> {
    if !text.ends_with(".safetensors") {
        return Ok(vec![parse_ids(text)?]);
    }
    let file = SafetensorsFile::open(Path::new(text))?;
    let tensor = file.tensor("input_ids")?;
    let (&[batch, length] | &[1, batch, length]) = tensor.shape else {
        return Err(format!(
            "{text}: `input_ids` has shape {:?}; it must be [B, S]",
            tensor.shape
        )
        .into());
    };
    if batch == 0 || length == 0 {
        return Err(format!("{text}: `input_ids` is empty").into());
    }
    let ids = tensor
        .to_i64()?
        .into_iter()
        .map(|id| u32::try_from(id).map_err(|_| format!("{text}: {id} is no token id")))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ids.chunks(length).map(<[u32]>::to_vec).collect())
}

struct Dump {
    /// B, S
    batch: [usize; 2],
    components: bool,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Trace for Dump {
    fn record(&mut self, name: &str, value: View) -> Result<(), ModelError> {
        let name = match name {
            "head.collapsed" if !self.components => "head_collapsed",
            _ => name,
        };
        let end_to_end =
            name == "logits" || name == "head_collapsed" || name.starts_with("hidden.");
        if !end_to_end && !self.components {
            return Ok(());
        }
        let shape: Vec<usize> = value.shape().iter().map(|&n| n as usize).collect();
        let [batch, length] = self.batch;
        let shape = match name.ends_with("comp.kv") || name.ends_with("idx.k") {
            true => shape,
            false => [&[batch, length], &shape[1..]].concat(),
        };
        let dtype = match value.dtype() {
            DType::I32 => Dtype::I32,
            DType::BF16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let bytes = value.to_tensor()?.bytes()?.to_vec();
        self.tensors.insert(name.into(), (dtype, shape, bytes));
        Ok(())
    }
}

impl Dump {
    fn write(&self, path: &Path) -> Result<(), ModelError> {
        let specs = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, _))| TensorSpec {
                name: name.clone(),
                dtype: *dtype,
                shape: shape.clone(),
            })
            .collect();
        let mut writer = Writer::create(path, specs)?;
        for (name, (_, _, bytes)) in &self.tensors {
            writer.tensor(name, bytes)?;
        }
        Ok(writer.finish()?)
    }
}
