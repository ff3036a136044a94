//! One case, run in one way: in the interpreter, or as compiled code on a device. In: the inputs of a case; out: the tensors that the
//! kernel writes.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use tessera_artifact::{CpuVariant, ParamMode};
use tessera_device::{
    Arg, CpuOptions, Device, Kernel, LaunchError, Library, Place, Scalar, Tensor, TensorError,
    ViewMut, cpu::features,
};

use super::data::Data;
use super::plan::{Input, Inputs};
use crate::diag::catalogue::testing as say;
use crate::diag::{Diagnostic, Sink};
use crate::driver::{self, Options};
use crate::tile::{interp, ir};

/// The written tensors after a run in the interpreter.
pub(super) fn interpret(
    kernel: &ir::Kernel,
    inputs: &Inputs,
    seed: u64,
) -> Result<BTreeMap<String, Data>, interp::InterpError> {
    let mut args = arguments(inputs);
    interp::run(
        kernel,
        &mut args,
        &interp::Options {
            seed,
            ..interp::Options::default()
        },
    )?;
    Ok(outputs(inputs, &args))
}

pub(super) fn arguments(inputs: &Inputs) -> interp::Args {
    interp::Args(
        (inputs.params.iter())
            .map(|input| match input {
                Input::Tensor { data, .. } => interp::Arg::Tensor(data.to_buffer()),
                Input::Scalar { bits, .. } => interp::Arg::Scalar(*bits),
                Input::Index { value, .. } => interp::Arg::Index(*value),
                Input::Host => interp::Arg::Absent,
            })
            .collect(),
    )
}

pub(super) fn outputs(inputs: &Inputs, args: &interp::Args) -> BTreeMap<String, Data> {
    let mut outputs = BTreeMap::new();
    for (input, arg) in inputs.params.iter().zip(&args.0) {
        if let (Input::Tensor { name, mode, data }, interp::Arg::Tensor(buffer)) = (input, arg)
            && mode.is_written()
        {
            let mut data = data.clone();
            data.read_buffer(buffer);
            outputs.insert(name.clone(), data);
        }
    }
    outputs
}

/// As a test runs it in the interpreter, with a call for every tile that is written; the lines that it printed besides.
///
/// # Errors
/// What the interpreter found, at its place.
pub fn interpret_traced(
    kernel: &ir::Kernel,
    inputs: &Inputs,
    case: &str,
    trace: &mut dyn FnMut(&str, &str, &[u64], &[Option<f64>]),
) -> Result<(BTreeMap<String, Data>, Vec<String>), Box<Diagnostic>> {
    let mut args = arguments(inputs);
    let mut each = |event: &interp::TraceEvent<'_>| {
        trace(&event.place, event.name, event.shape, &event.values)
    };
    let report = interp::run_traced(kernel, &mut args, &interp::Options::default(), &mut each)
        .map_err(|error| blame(error, "the interpreter", case))?;
    Ok((outputs(inputs, &args), report.prints))
}

/// The kernel as compiled code of the best variant, on all threads.
pub fn compiled(kernel: &ir::Kernel, options: &Options, sink: &mut Sink) -> Option<Kernel> {
    let variant = match features::choose(options.cpu.iter().copied(), None) {
        Ok(variant) => variant,
        Err(error) => {
            sink.report(say::run_failed(
                kernel.span,
                "compiled code",
                "",
                &error.to_string(),
            ));
            return None;
        }
    };
    let options = Options {
        cpu: vec![variant],
        ptx: false,
        ..options.clone()
    };
    let archive = driver::compile(std::slice::from_ref(kernel), &options, sink)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    load(&archive, kernel, variant, threads, sink).map(|one| one.kernel)
}

/// A tensor of a launch, perhaps with unused columns at the end of its rows.
struct Held {
    name: String,
    mode: ParamMode,
    tensor: Tensor,
    shape: Vec<i64>,
}

/// The written tensors after a launch of compiled code. `gap`: how many times 4096 bits lie unused at the end of each row.
///
/// # Errors
/// The launch's.
pub fn launch(
    kernel: &Kernel,
    inputs: &Inputs,
    gap: i64,
) -> Result<BTreeMap<String, Data>, LaunchError> {
    let no_memory = |why: TensorError| LaunchError::Device {
        kernel: kernel.name().to_owned(),
        what: why.to_string(),
    };
    let mut held: Vec<Option<Held>> = vec![];
    for input in &inputs.params {
        held.push(match input {
            Input::Tensor { name, mode, data } => {
                let mut held = hold(name, *mode, data, gap).map_err(no_memory)?;
                if kernel.device().place() != Place::Host {
                    held.tensor = held.tensor.to_device(kernel.device()).map_err(no_memory)?;
                }
                Some(held)
            }
            _ => None,
        });
    }
    let mut args: Vec<Arg<'_>> = vec![];
    for (input, held) in inputs.params.iter().zip(&mut held) {
        match (input, held) {
            (Input::Tensor { mode, .. }, Some(held)) => {
                let view = rectangle(held).map_err(no_memory)?;
                args.push(if mode.is_written() {
                    view.into()
                } else {
                    Arg::TensorMut(view)
                });
            }
            (Input::Scalar { dtype, bits, .. }, _) => {
                let value = tessera_artifact::numeric::to_f64(*bits, *dtype);
                args.push(Arg::Scalar(Scalar {
                    dtype: *dtype,
                    bits: *bits,
                    value,
                }));
            }
            (Input::Index { value, .. }, _) => args.push(Arg::Index(*value)),
            _ => {}
        }
    }
    kernel.launch(&args)?;
    drop(args);
    let mut outputs = BTreeMap::new();
    for (input, held) in inputs.params.iter().zip(held) {
        if let (Input::Tensor { data, .. }, Some(mut held)) = (input, held)
            && held.mode.is_written()
        {
            if held.tensor.place() != Place::Host {
                held.tensor = held.tensor.to_host().map_err(no_memory)?;
            }
            let dense = rectangle(&mut held)
                .and_then(|v| v.to_tensor())
                .map_err(no_memory)?;
            let mut data = data.clone();
            data.read_tensor(&dense);
            outputs.insert(held.name, data);
        }
    }
    Ok(outputs)
}

fn hold(name: &str, mode: ParamMode, data: &Data, gap: i64) -> Result<Held, TensorError> {
    let mut wide = data.shape.clone();
    if let (Some(last), true) = (wide.last_mut(), data.shape.len() > 1) {
        *last += gap * 4096 / data.dtype.bits() as i64;
        // Rows stay aligned to whatever the parameter asks for.
        if gap > 0 {
            let step = 4096 / data.dtype.bits() as i64;
            *last = (*last + step - 1) / step * step;
        }
    }
    let mut held = Held {
        name: name.to_owned(),
        mode,
        tensor: Tensor::zeros(data.dtype, &wide)?,
        shape: data.shape.clone(),
    };
    let dense = data.to_tensor()?;
    rectangle(&mut held)?.copy_from(&dense.view())?;
    Ok(held)
}

/// The tensor that the kernel sees.
fn rectangle(held: &mut Held) -> Result<ViewMut<'_>, TensorError> {
    let view = held.tensor.view_mut()?;
    match held.shape.last() {
        Some(&extent) => view.slice(held.shape.len() - 1, 0..extent),
        None => Ok(view),
    }
}

pub(super) struct Compiled {
    /// `avx2, 1 thread`
    pub way: String,
    pub kernel: Kernel,
    /// Held to the interpreter's bits; otherwise to the references.
    pub exact: bool,
}

pub(super) fn load(
    archive: &[u8],
    kernel: &ir::Kernel,
    variant: CpuVariant,
    threads: usize,
    sink: &mut Sink,
) -> Option<Compiled> {
    let mut fault = |what: String| {
        sink.report(say::internal(kernel.span, &kernel.name, &what));
        None
    };
    let device = match Device::cpu_with(CpuOptions {
        threads: NonZeroUsize::new(threads),
        variant: Some(variant),
    }) {
        Ok(device) => device,
        Err(error) => return fault(format!("no threads: {error}")),
    };
    let way = format!(
        "{variant}, {threads} thread{}",
        if threads == 1 { "" } else { "s" }
    );
    load_on(archive, kernel, &device, sink).map(|kernel| Compiled {
        way,
        kernel,
        exact: true,
    })
}

pub(super) fn load_on(
    archive: &[u8],
    kernel: &ir::Kernel,
    device: &Device,
    sink: &mut Sink,
) -> Option<Kernel> {
    let loaded = Library::load(archive, device)
        .map_err(|error| error.to_string())
        .and_then(|library| match library.kernel(&kernel.name) {
            Ok(loaded) => Ok(loaded.clone()),
            Err(error) => Err(error.to_string()),
        });
    match loaded {
        Ok(loaded) => Some(loaded),
        Err(what) => {
            sink.report(say::internal(kernel.span, &kernel.name, &what));
            None
        }
    }
}

pub(super) fn blame(error: interp::InterpError, way: &str, case: &str) -> Box<Diagnostic> {
    let place = if error.place.is_empty() {
        String::new()
    } else {
        format!(" in {}", error.place)
    };
    Box::new(say::run_failed(
        error.span,
        way,
        case,
        &format!("{}{place}", error.kind),
    ))
}
