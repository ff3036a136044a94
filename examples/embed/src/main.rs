//! Runs a kernel that `build.rs` compiled from `kernels/softmax.tl`; neither this program nor its users need LLVM.

mod kernels {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

use kernels::{Kernels, SoftmaxArgs};
use tessera_device::{DType, Device, Tensor, View};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let kernels = Kernels::load(&Device::cpu()?)?;

    let scores = [1.0f32, 2.0, 3.0, 0.5, 0.5, 0.5];
    let x = View::over(&scores, &[2, 3])?;
    let mut y = Tensor::zeros(DType::F32, &[2, 3])?;
    kernels.softmax(SoftmaxArgs {
        x,
        y: y.view_mut()?,
    })?;
    for row in y.as_slice::<f32>()?.chunks(3) {
        println!("{row:.4?}");
    }

    // Wrong arguments are refused with a reason, before anything runs.
    let mut narrow = Tensor::zeros(DType::F32, &[2, 2])?;
    let refused = kernels.softmax(SoftmaxArgs {
        x,
        y: narrow.view_mut()?,
    });
    println!("{}", refused.expect_err("the shapes differ"));
    Ok(())
}
