//! Launches that are queued and recorded: who learns of their failures, and what replaying does.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::emulator;
use crate::launches::{PLAIN, code, entry, library, library_on};
use tessera_artifact::*;
use tessera_device::cuda::Cubins;
use tessera_device::{CudaError, Device, Kernel, LaunchError, Library, Tensor, TensorError};

/// Block c fails check 2 if `x[0] = c`, else adds 1 to `y[0]`. The words: x, its strides, y, its strides, M, N, grid, record, scratch.
const CHECK: &str = "
.visible .entry check(
	.param .align 8 .b8 check_param_0[104]
)
.reqntid 32, 1, 1
{
	mov.u32 %r1, %tid.x;
	setp.ne.b32 %p1, %r1, 0;
	@%p1 bra $end;
	ld.param.b64 %rd1, [check_param_0];
	ld.param.b64 %rd2, [check_param_0+24];
	ld.param.b64 %rd3, [check_param_0+88];
	mov.u32 %r2, %ctaid.x;
	ld.global.b32 %r3, [%rd1];
	setp.eq.b32 %p2, %r2, %r3;
	@%p2 bra $fail;
	red.global.add.u32 [%rd2], 1;
	bra $end;
$fail:
	cvt.u64.u32 %rd4, %r2;
	st.global.b64 [%rd3], 2;
	st.global.b64 [%rd3+8], %rd4;
$end:
	ret;
}
";

fn checked() -> Library {
    let check = PtxCode {
        traps: vec!["one".into(), "the other".into()],
        ..code(0, "check", vec![])
    };
    library(entry(DType::U32, vec![check]), &[CHECK])
}

/// As many blocks as columns / 16.
fn tensor(device: &Device, first: u32, columns: usize) -> Tensor {
    let mut values = vec![0u32; columns];
    values[0] = first;
    let tensor = Tensor::from_slice(&[1, columns as i64], &values).unwrap();
    tensor.to_device(device).unwrap()
}

fn queue(kernel: &Kernel, x: &Tensor, y: &mut Tensor) -> Result<(), LaunchError> {
    kernel.queue(&[x.view().into(), y.view_mut().unwrap().into()])
}

fn first(y: &Tensor) -> u32 {
    y.view().to_vec::<u32>().unwrap()[0]
}

const NONE: u32 = 1000;

#[test]
fn a_failed_check_is_told_once_to_whoever_reads() {
    let library = checked();
    let (kernel, device) = (library.kernel("k").unwrap(), library.device());
    let good = tensor(device, NONE, 48);
    let bad = tensor(device, 1, 48);
    let mut y = tensor(device, 0, 48);
    queue(kernel, &good, &mut y).unwrap();
    queue(kernel, &bad, &mut y).unwrap();
    queue(kernel, &good, &mut y).unwrap();
    match y.view().to_vec::<u32>() {
        Err(TensorError::Device(CudaError::Launch(why))) => assert_eq!(
            *why,
            LaunchError::Check {
                kernel: "m::k".into(),
                what: "the other".into(),
                block: [0, 1, 0],
            }
        ),
        other => panic!("{other:?}"),
    }
    // The others ran.
    assert_eq!(first(&y), 3 + 2 + 3);
    queue(kernel, &good, &mut y).unwrap();
    assert_eq!(device.finish(), Ok(()));
    assert_eq!(first(&y), 11);
}

/// A launch that waits is told of what was queued before it; memory that goes away keeps the failure for who asks.
#[test]
fn a_failure_is_not_lost_with_the_memory_it_concerns() {
    let library = checked();
    let (kernel, device) = (library.kernel("k").unwrap(), library.device());
    let good = tensor(device, NONE, 16);
    let mut y = tensor(device, 0, 16);
    {
        let bad = tensor(device, 0, 16);
        queue(kernel, &bad, &mut y).unwrap();
    }
    let waits = kernel.launch(&[good.view().into(), y.view_mut().unwrap().into()]);
    assert!(matches!(waits, Err(LaunchError::Check { .. })), "{waits:?}");
    assert_eq!(first(&y), 1);
}

#[test]
fn more_launches_than_the_queue_holds() {
    let library = checked();
    let (kernel, device) = (library.kernel("k").unwrap(), library.device());
    let good = tensor(device, NONE, 16);
    let mut y = tensor(device, 0, 16);
    for _ in 0..5000 {
        queue(kernel, &good, &mut y).unwrap();
    }
    assert_eq!(first(&y), 5000);
}

fn record(device: &Device, work: impl FnOnce() -> Result<(), LaunchError>) -> Recorded {
    let Device::Cuda(gpu) = device else {
        panic!("a GPU")
    };
    gpu.record(|| work().map_err(CudaError::from))
}

type Recorded = Result<tessera_device::cuda::CudaRecording, CudaError>;

#[test]
fn a_recording_runs_when_it_is_replayed_and_not_before() {
    let library = checked();
    let (kernel, device) = (library.kernel("k").unwrap(), library.device());
    let mut x = tensor(device, NONE, 48);
    let mut y = tensor(device, 0, 48);
    let recording = record(device, || {
        queue(kernel, &x, &mut y)?;
        queue(kernel, &x, &mut y)
    });
    let recording = recording.unwrap();
    assert_eq!(first(&y), 0);
    for round in 1..=3 {
        // SAFETY: both tensors live on.
        unsafe { recording.replay() }.unwrap();
        assert_eq!(first(&y), 6 * round);
    }
    // It reads what is there when it runs, and its failures have names.
    x.write_start(&[2u32]).unwrap();
    // SAFETY: as above.
    unsafe { recording.replay() }.unwrap();
    match device.finish() {
        Err(CudaError::Launch(why)) => {
            assert!(why.to_string().contains("m::k"), "{why}");
            assert!(why.to_string().contains("the other"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(first(&y), 18 + 4);
}

#[test]
fn a_recording_that_fails_leaves_the_device_as_it_was() {
    let library = checked();
    let (kernel, device) = (library.kernel("k").unwrap(), library.device());
    let x = tensor(device, NONE, 48);
    let mut y = tensor(device, 0, 48);
    let narrow = tensor(device, NONE, 32);
    let refused = record(device, || {
        queue(kernel, &x, &mut y)?;
        queue(kernel, &narrow, &mut y)
    });
    assert!(matches!(refused, Err(CudaError::Launch(_))));
    queue(kernel, &x, &mut y).unwrap();
    assert_eq!(first(&y), 3);
}

/// What does not fit is refused with what there is; nothing stays allocated, and the device goes on.
#[test]
fn a_full_gpu_is_an_error_and_nothing_leaks() {
    let device = emulator::device_with(Some(1 << 20));
    let ask = |bytes| Tensor::zeros_on(&device, DType::U8, &[bytes]);
    let held = ask(400_000).unwrap();
    for _ in 0..3 {
        match ask(800_000) {
            Err(TensorError::Device(CudaError::OutOfMemory { bytes, free, total })) => {
                assert_eq!((bytes, total), (800_000, 1 << 20));
                assert!(free < 800_000 && free > 400_000, "{free}");
            }
            other => panic!("{other:?}"),
        }
    }
    drop(held);
    ask(800_000).unwrap();
}

/// Code for `sm_90a` runs on no other GPU, and a kernel without PTX on none.
#[test]
fn a_gpu_that_there_is_no_code_for_is_an_error() {
    let without = entry(DType::F32, vec![]);
    let library = library(without, &[PLAIN]);
    let device = library.device();
    let x = Tensor::zeros_on(device, DType::F32, &[1, 16]).unwrap();
    let mut y = Tensor::zeros_on(device, DType::F32, &[1, 16]).unwrap();
    let kernel = library.kernel("k").unwrap();
    let refused = kernel.queue(&[x.view().into(), y.view_mut().unwrap().into()]);
    let why = refused.unwrap_err();
    assert!(matches!(why, LaunchError::NoPtx { .. }), "{why}");

    let older = emulator::device_of((8, 0));
    match older {
        Err(CudaError::Architecture { capability, .. }) => assert_eq!(capability, (8, 0)),
        other => panic!("{other:?}"),
    }
}

/// Translated code is kept; an entry that was damaged, or that holds no code, is made again; without a folder or a program that works the
/// driver translates.
#[test]
fn translated_code_is_kept_and_never_trusted() {
    let folder = std::env::temp_dir().join(format!("tessera-cubins-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (count, ptxas) = (folder.join("count"), folder.join("ptxas"));
    // Called with `--version`, or with `-arch=… -o CUBIN PTX`.
    let script = format!(
        "#!/bin/sh\nif [ $# = 1 ]; then echo 1; exit; fi\necho >>{count:?}\n{{ printf cubin; cat \"$4\"; }} >\"$3\"\n"
    );
    std::fs::write(&ptxas, script).unwrap();
    std::fs::set_permissions(&ptxas, std::fs::Permissions::from_mode(0o755)).unwrap();
    // How often code was translated for it.
    let run = |kept: &Path, ptxas: &Path| {
        let device = emulator::device_keeping(Cubins {
            folder: kept.to_owned(),
            ptxas: ptxas.to_owned(),
        });
        let plain = entry(DType::F32, vec![code(0, "plain", vec![])]);
        let library = library_on(&device, plain, &[PLAIN]);
        let x = Tensor::zeros_on(&device, DType::F32, &[1, 16]).unwrap();
        let mut y = Tensor::zeros_on(&device, DType::F32, &[1, 16]).unwrap();
        let kernel = library.kernel("k").unwrap();
        kernel
            .launch(&[x.view().into(), y.view_mut().unwrap().into()])
            .unwrap();
        assert_eq!(y.view().to_vec::<f32>().unwrap()[0], 1.0);
        let counted = std::fs::read(&count).unwrap_or_default().len();
        let _ = std::fs::remove_file(&count);
        counted
    };
    let kept = folder.join("kept");
    assert_eq!(run(&kept, &ptxas), 1);
    assert_eq!(run(&kept, &ptxas), 0);
    let entries: Vec<_> = std::fs::read_dir(&kept).unwrap().collect();
    let [Ok(one)] = &entries[..] else {
        panic!("{entries:?}")
    };
    let good = std::fs::read(one.path()).unwrap();
    for at in [0, 31, 32, 40, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        for bad in [&damaged[..], &good[..at]] {
            std::fs::write(one.path(), bad).unwrap();
            assert_eq!(run(&kept, &ptxas), 1, "byte {at}");
            assert_eq!(std::fs::read(one.path()).unwrap(), good);
        }
    }
    // Well kept, but no code.
    let nonsense = [blake3::hash(b"nonsense").as_bytes(), &b"nonsense"[..]].concat();
    std::fs::write(one.path(), nonsense).unwrap();
    assert_eq!(run(&kept, &ptxas), 1);
    assert_eq!(run(&kept, &ptxas), 0);
    assert_eq!(run(Path::new("/dev/null/cubins"), &ptxas), 1);
    assert_eq!(run(&kept, Path::new("/dev/null/ptxas")), 0);
    // A program that does something else.
    assert_eq!(run(&kept, Path::new("/bin/false")), 0);
    std::fs::remove_dir_all(&folder).unwrap();
}

/// A column of a tensor in the GPU's memory, written from the host's.
#[test]
fn a_part_of_a_tensor_is_overwritten_and_the_rest_stays() {
    let device = emulator::device();
    let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
    let mut tensor = Tensor::from_slice(&[3, 4], &values)
        .unwrap()
        .to_device(&device)
        .unwrap();
    let column = Tensor::from_slice(&[3, 2], &[50.0f32, 51.0, 52.0, 53.0, 54.0, 55.0]).unwrap();
    let mut part = tensor.view_mut().unwrap().slice(1, 1..3).unwrap();
    part.copy_from(&column.view()).unwrap();
    let found = tensor.view().to_vec::<f32>().unwrap();
    assert_eq!(
        found,
        [
            0.0, 50.0, 51.0, 3.0, 4.0, 52.0, 53.0, 7.0, 8.0, 54.0, 55.0, 11.0
        ]
    );
    let mut none = tensor.view_mut().unwrap().slice(0, 1..1).unwrap();
    none.copy_from(&Tensor::zeros(DType::F32, &[0, 4]).unwrap().view())
        .unwrap();
    assert_eq!(tensor.view().to_vec::<f32>().unwrap(), found);
}

/// Of several launches under way the first that is not done has the blame, and the device is of no more use.
#[test]
fn the_kernel_that_hangs_is_named() {
    let device = emulator::device_stuck(1);
    let named = |name: &str| KernelEntry {
        name: format!("m::{name}"),
        ..entry(DType::F32, vec![code(0, "plain", vec![])])
    };
    let manifest = Manifest {
        compiler: String::new(),
        kernels: vec![named("a"), named("b"), named("c")],
    };
    let archive = write_archive(&manifest, &[PLAIN]).unwrap();
    let library = Library::load(&archive, &device).unwrap();
    let x = Tensor::zeros_on(&device, DType::F32, &[1, 16]).unwrap();
    let mut y = Tensor::zeros_on(&device, DType::F32, &[1, 16]).unwrap();
    for name in ["a", "b", "c"] {
        queue(library.kernel(name).unwrap(), &x, &mut y).unwrap();
    }
    match y.view().to_vec::<f32>() {
        Err(TensorError::Device(CudaError::Launch(why))) => {
            assert_eq!(
                *why,
                LaunchError::Device {
                    kernel: "m::b".into(),
                    what: "it has not ended after 0.05 s".into(),
                }
            );
        }
        other => panic!("{other:?}"),
    }
    let later = queue(library.kernel("a").unwrap(), &x, &mut y).unwrap_err();
    assert!(later.to_string().contains("m::b"), "{later}");
}
