//! What every command shares: the device, the kernels, loading a model, reading token ids.

use std::error::Error;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use tessera::model::config::Config;
use tessera::model::kernels::Kernels;
use tessera::model::{Model, ModelError, Session};
use tessera::weights::Draft;
use tessera_device::cuda::Cubins;
use tessera_device::{CpuOptions, CudaOptions, Device};

#[derive(Clone, clap::Args)]
pub struct Options {
    /// Where kernels run.
    #[arg(long, global = true, value_enum, default_value_t = DeviceKind::Cpu)]
    device: DeviceKind,
    /// Threads of the CPU device; all by default.
    #[arg(long, global = true)]
    threads: Option<std::num::NonZeroU16>,
    /// With --device cuda: which GPU, from 0.
    #[arg(long, global = true, default_value_t = 0, value_name = "NUMBER")]
    gpu: u32,
    /// With --device cuda: a kernel that runs longer is taken to hang.
    #[arg(long, global = true, default_value_t = 30, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    watchdog: u64,
    /// With --device cuda: launch every kernel of a decoding step, which shows the kernel that hangs, instead of replaying recorded steps.
    #[arg(long, global = true)]
    eager: bool,
    /// Print results as JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum DeviceKind {
    Cpu,
    Cuda,
}

impl Options {
    pub fn is_cpu(&self) -> bool {
        matches!(self.device, DeviceKind::Cpu)
    }

    /// The same on another device.
    pub fn on(&self, device: DeviceKind) -> Options {
        Options {
            device,
            ..self.clone()
        }
    }

    pub fn device(&self) -> Result<Device, Box<dyn Error>> {
        match self.device {
            DeviceKind::Cpu => Ok(Device::cpu_with(CpuOptions {
                threads: self.threads.map(NonZeroUsize::from),
                ..CpuOptions::default()
            })?),
            DeviceKind::Cuda => Ok(Device::cuda_with(CudaOptions {
                ordinal: self.gpu,
                watchdog: Duration::from_secs(self.watchdog),
                cubins: cubins(),
            })?),
        }
    }

    /// Memory of a model's calls, as the options want it.
    pub fn session(
        &self,
        model: &Model,
        sequences: usize,
        context: usize,
        most_tokens: usize,
    ) -> Result<Session, ModelError> {
        let mut session = model.session(sequences, context, most_tokens)?;
        if self.eager {
            session.replay_steps(false);
        }
        Ok(session)
    }

    pub fn kernels(&self) -> Result<Kernels, Box<dyn Error>> {
        Ok(Kernels::load(&self.device()?)?)
    }

    /// Loads the model in `folder`, with a progress bar on standard error.
    pub fn model(&self, folder: &Path) -> Result<Model, Box<dyn Error>> {
        let kernels = self.kernels()?;
        let bar = progress_bar("packing weights");
        let model = Model::load(folder, kernels, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        let model = model?;
        if model.draft_kind() == Draft::OtherKind {
            eprintln!(
                "v4: {} holds DSpark draft blocks under `mtp.`, which this version does not run; the main model is complete",
                folder.display()
            );
        }
        Ok(model)
    }

    /// A model with random weights, made on the device, with a progress bar on standard error.
    pub fn synthetic(&self, config: Config, seed: u32) -> Result<Model, Box<dyn Error>> {
        let kernels = self.kernels()?;
        let bar = progress_bar("making weights");
        let model = Model::synthetic(config, seed, kernels, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        Ok(model?)
    }
}

/// A released model, `flash` or `pro`, and the same with its first layers only.
pub fn released(name: &str, layers: usize) -> Result<(Config, Config), Box<dyn Error>> {
    let whole = match name {
        "pro" => Config::pro(),
        _ => Config::flash(),
    };
    let count = whole.layers.len();
    if !(1..=count).contains(&layers) {
        return Err(format!("--layers {layers}: {name} has {count}, so 1 to {count}").into());
    }
    let first = whole.first_layers(layers);
    Ok((whole, first))
}

/// Kept where there is a folder for it and a `ptxas` on `PATH`.
fn cubins() -> Option<Cubins> {
    let path = std::env::var_os("PATH")?;
    let mut programs = std::env::split_paths(&path).map(|folder| folder.join("ptxas"));
    Some(Cubins {
        folder: cache_folder()?.join("cubins"),
        ptxas: programs.find(|program| program.is_file())?,
    })
}

/// `$XDG_CACHE_HOME/tessera`, or `~/.cache/tessera`.
fn cache_folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    base.or_else(home).map(|base| base.join("tessera"))
}

pub fn progress_bar(what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}");
    let bar = ProgressBar::new(0).with_message(what.to_string());
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// `1,2,3` or `1 2 3`.
pub fn parse_ids(text: &str) -> Result<Vec<u32>, String> {
    let words = text.split([',', ' ']).filter(|word| !word.is_empty());
    let ids: Vec<u32> = words
        .map(|word| {
            word.parse()
                .map_err(|_| format!("`{word}` is no token id; write ids as in 1,2,3"))
        })
        .collect::<Result<_, _>>()?;
    match ids.is_empty() {
        true => Err("no token ids; write them as in 1,2,3".into()),
        false => Ok(ids),
    }
}
