//! `v4 plan`: what a configuration costs.

use std::path::Path;

use tessera::model::ModelError;
use tessera::model::Room;
use tessera::model::config::Config;
use tessera::model::kv_cache::{CacheBytes, KvCache};
use tessera::model::plan::{KvFormat, Plan, parse_context, plan};
use tessera_device::Device;

use super::setup::Options;
use super::{CommandResult, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// `flash`, `pro`, or a config.json or the folder of one.
    #[arg(long, default_value = "flash")]
    config: String,
    /// Tokens of context, as in 8192, 8K or 1M.
    #[arg(long, value_delimiter = ',', default_value = "8K,32K,128K,1M", value_parser = parse_context)]
    context: Vec<u64>,
    /// Also make the cache of one sequence on the device, for each context, and show what it takes there.
    #[arg(long)]
    allocate: bool,
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let config = match args.config.as_str() {
        "flash" => Config::flash(),
        "pro" => Config::pro(),
        path => Config::read(Path::new(path))?,
    };
    let plan = plan(&args.config, &config, &args.context);
    let device = args.allocate.then(|| options.device()).transpose()?;
    let allocated = device
        .as_ref()
        .map(|device| allocate(args, &config, device));
    let allocated = allocated.transpose()?;
    match (options.json, allocated) {
        (true, None) => println!("{}", serde_json::to_string_pretty(&plan)?),
        (true, Some(allocated)) => {
            let values: Vec<_> = allocated
                .iter()
                .map(|(n, bytes)| as_json(*n, bytes))
                .collect();
            let both = serde_json::json!({ "plan": plan, "allocated": values });
            println!("{}", serde_json::to_string_pretty(&both)?);
        }
        (false, allocated) => {
            print!("{plan}");
            if let (Some(allocated), Some(device)) = (allocated, device) {
                let format = KvFormat::of(&config);
                print_allocated(&plan, &allocated, format, &device.to_string());
            }
        }
    }
    Ok(Outcome::Fine)
}

/// Makes the caches of one sequence, one after another.
fn allocate(
    args: &Args,
    config: &Config,
    device: &Device,
) -> Result<Vec<(u64, CacheBytes)>, ModelError> {
    let of = |&context: &u64| {
        let room = Room {
            sequences: 1,
            context: context as usize,
            most_tokens: 1,
            pages: None,
        };
        let cache = KvCache::new(device, config, room)?;
        Ok((context, cache.bytes_by_use(config)))
    };
    args.context.iter().map(of).collect()
}

fn as_json(context: u64, bytes: &CacheBytes) -> serde_json::Value {
    serde_json::json!({
        "context": context, "sparse_entries": bytes.sparse_entries, "index_keys": bytes.index_keys,
        "heavy_entries": bytes.heavy_entries, "window": bytes.window, "call_rows": bytes.call_rows,
        "open_blocks": bytes.open_blocks, "draft": bytes.draft, "padding": bytes.padding,
        "tables": bytes.tables, "widened": bytes.widened,
    })
}

/// Bytes of the payload beside those of the plan in the format that the cache keeps, then what the cache takes besides.
fn print_allocated(plan: &Plan, allocated: &[(u64, CacheBytes)], format: KvFormat, device: &str) {
    println!(
        "\ncache of one sequence as allocated on {device}, one token a call (bytes; keys as {format})"
    );
    println!(
        "  {:>8} {:>14} {:>14} {:>7} {:>9} {:>12} {:>10} {:>9} {:>8} {:>11}",
        "context",
        "payload",
        "planned",
        "ratio",
        "padding",
        "open blocks",
        "call rows",
        "draft",
        "tables",
        "widened"
    );
    for ((context, bytes), planned) in allocated.iter().zip(&plan.contexts) {
        let found = bytes.payload();
        let kv = planned.kv.iter().find(|kv| kv.format == format);
        let total = kv.map_or(0, |kv| kv.total);
        println!(
            "  {context:>8} {found:>14} {total:>14} {:>7.4} {:>9} {:>12} {:>10} {:>9} {:>8} {:>11}",
            found as f64 / total as f64,
            bytes.padding,
            bytes.open_blocks,
            bytes.call_rows,
            bytes.draft,
            bytes.tables,
            bytes.widened
        );
    }
}
