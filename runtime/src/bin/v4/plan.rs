//! `v4 plan`: what a configuration costs.

use std::path::Path;

use tessera::model::config::Config;
use tessera::model::plan::{parse_context, plan};

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
}

pub fn run(args: &Args, options: &Options) -> CommandResult {
    let config = match args.config.as_str() {
        "flash" => Config::flash(),
        "pro" => Config::pro(),
        path => Config::read(Path::new(path))?,
    };
    let plan = plan(&args.config, &config, &args.context);
    match options.json {
        true => println!("{}", serde_json::to_string_pretty(&plan)?),
        false => print!("{plan}"),
    }
    Ok(Outcome::Fine)
}
