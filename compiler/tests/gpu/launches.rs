//! What a launch makes of a manifest's PTX entries: the code it takes, the tensor maps, the number of blocks.

use crate::emulator;
use tessera_artifact::*;
use tessera_device::{Device, Library, Tensor};

/// Copies boxes of 8 by 16 through shared memory; the words behind the maps: x, its strides, y, its strides, M, N, grid, record, scratch.
const BY_MAPS: &str = "
.extern .shared .align 128 .b8 tile[];
.visible .entry by_maps(
	.param .align 64 .b8 by_maps_param_0[360]
)
.reqntid 32, 1, 1
{
	mov.u32 %r1, %tid.x;
	setp.ne.b32 %p1, %r1, 0;
	@%p1 bra $end;
	mov.b64 %rd1, by_maps_param_0;
	cvta.param.u64 %rd2, %rd1;
	add.s64 %rd3, %rd2, 128;
	ld.param.b64 %rd4, [by_maps_param_0+320];
	cvt.u32.u64 %r2, %rd4;
	mov.u32 %r3, %ctaid.x;
	rem.u32 %r4, %r3, %r2;
	div.u32 %r5, %r3, %r2;
	shl.b32 %r6, %r4, 3;
	shl.b32 %r7, %r5, 4;
	mbarrier.init.shared.b64 [tile+512], 1;
	fence.mbarrier_init.release.cluster;
	mbarrier.arrive.expect_tx.shared.b64 _, [tile+512], 512;
	cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [tile], [%rd2, {%r7, %r6}], [tile+512];
	{
	.reg .pred done;
	again:
	mbarrier.try_wait.parity.shared.b64 done, [tile+512], 0;
	@done bra ready;
	bra again;
	ready:
	}
	cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd3, {%r7, %r6}], [tile];
	cp.async.bulk.commit_group;
	cp.async.bulk.wait_group 0;
$end:
	ret;
}
";

/// One element a block: `y = 1`, so that one sees which code ran. The words as above, without maps; one block per box.
pub const PLAIN: &str = "
.visible .entry plain(
	.param .align 8 .b8 plain_param_0[104]
)
.reqntid 32, 1, 1
{
	ld.param.b64 %rd1, [plain_param_0+24];
	st.global.b32 [%rd1], 1065353216;
	ret;
}
";

/// Counts the blocks in `y`.
const COUNT: &str = "
.visible .entry count(
	.param .align 8 .b8 count_param_0[104]
)
.reqntid 32, 1, 1
.reqnctapercluster 2, 1, 1
{
	mov.u32 %r1, %tid.x;
	setp.ne.b32 %p1, %r1, 0;
	@%p1 bra $end;
	ld.param.b64 %rd1, [count_param_0+24];
	red.global.add.u32 [%rd1], 1;
$end:
	ret;
}
";

pub fn entry(dtype: DType, ptx: Vec<PtxCode>) -> KernelEntry {
    let tensor = |name: &str, mode| ParamEntry {
        name: name.into(),
        kind: ParamKind::Tensor {
            mode,
            dtype,
            shape: vec![HostExpr::dim("M"), HostExpr::dim("N")],
            align: 4,
            contiguous: true,
        },
    };
    let dim = |name: &str| DimEntry {
        name: name.into(),
        lo: 0,
        hi: 1 << 20,
        step: 1,
        scalar: false,
    };
    let boxes =
        |name: &str, n| HostExpr::op(HostOp::CeilDiv, [HostExpr::dim(name), HostExpr::Int(n)]);
    KernelEntry {
        name: "m::k".into(),
        generics: vec![],
        docs: String::new(),
        params: vec![tensor("x", ParamMode::In), tensor("y", ParamMode::InOut)],
        dims: vec![dim("M"), dim("N")],
        requires: vec![],
        grid: vec![boxes("M", 8), boxes("N", 16)],
        contracts: vec![],
        cpu: vec![],
        ptx,
        key: String::new(),
    }
}

pub fn code(blob: u32, symbol: &str, tensor_maps: Vec<TensorMap>) -> PtxCode {
    PtxCode {
        blob,
        symbol: symbol.into(),
        threads: 32,
        shared_bytes: if tensor_maps.is_empty() { 0 } else { 1024 },
        scratch_bytes: 0,
        tensor_maps,
        persistent: false,
        cluster: 1,
        waits: false,
        tensor_cores: false,
        traps: vec![],
    }
}

pub fn library(entry: KernelEntry, texts: &[&str]) -> Library {
    library_on(&emulator::device(), entry, texts)
}

pub fn library_on(device: &Device, entry: KernelEntry, texts: &[&str]) -> Library {
    let manifest = Manifest {
        compiler: String::new(),
        kernels: vec![entry],
    };
    let archive = write_archive(&manifest, texts).unwrap();
    Library::load(&archive, device).unwrap()
}

fn maps() -> Vec<TensorMap> {
    let map = |param| TensorMap {
        param,
        extents: vec![8, 16],
        swizzle: 0,
    };
    vec![map(0), map(1)]
}

/// `y` after a launch with `x[i, j] = 100 i + j`.
fn run(library: &Library, rows: i64, columns: i64) -> Result<Vec<f32>, String> {
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| (i / columns * 100 + i % columns) as f32)
        .collect();
    let device = library.device();
    let x = Tensor::from_slice(&[rows, columns], &values)
        .unwrap()
        .to_device(device)
        .unwrap();
    let mut y = Tensor::zeros_on(device, DType::F32, &[rows, columns]).unwrap();
    let args = [x.view().into(), y.view_mut().unwrap().into()];
    library
        .kernel("k")
        .unwrap()
        .launch(&args)
        .map_err(|e| e.to_string())?;
    let bytes = y.to_host().unwrap().bytes().unwrap().to_vec();
    Ok(bytes
        .chunks(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect())
}

#[test]
fn the_first_code_is_taken_whose_maps_can_be_made() {
    let both = vec![code(0, "by_maps", maps()), code(1, "plain", vec![])];
    let library = library(entry(DType::F32, both), &[BY_MAPS, PLAIN]);
    // Boxes at the edges are clipped.
    let y = run(&library, 21, 36).unwrap();
    for (i, y) in y.iter().enumerate() {
        assert_eq!(*y, (i / 36 * 100 + i % 36) as f32, "element {i}");
    }
    // Rows of 37 elements start at no multiple of 16 bytes.
    let y = run(&library, 21, 37).unwrap();
    assert_eq!((y[0], y[1]), (1.0, 0.0));
}

#[test]
fn arguments_that_no_code_takes_are_refused_with_the_reason() {
    let library = library(
        entry(DType::F32, vec![code(0, "by_maps", maps())]),
        &[BY_MAPS],
    );
    let why = run(&library, 21, 37).unwrap_err();
    assert!(why.contains("none of its codes"), "{why}");
    assert!(why.contains("axis 0 has stride 37"), "{why}");
}

#[test]
fn persistent_grids_have_whole_clusters_and_no_more_than_run_at_once() {
    let count = PtxCode {
        persistent: true,
        cluster: 2,
        ..code(0, "count", vec![])
    };
    // Four blocks run on the emulated GPU at once.
    for (persistent, boxes, blocks) in [
        (true, 2, Some(2)),
        (true, 4, Some(4)),
        (true, 8, Some(4)),
        (false, 8, Some(8)),
        (false, 2, Some(2)),
        // No other code would take it.
        (true, 3, None),
        (false, 1, None),
    ] {
        let count = PtxCode {
            persistent,
            ..count.clone()
        };
        let library = library(entry(DType::U32, vec![count]), &[COUNT]);
        let device = library.device();
        let zeros = || {
            let made = Tensor::zeros_on(device, DType::U32, &[8 * boxes, 16]);
            made.expect("the emulated GPU has room for some hundred words")
        };
        let (x, mut y) = (zeros(), zeros());
        let args = [x.view().into(), y.view_mut().unwrap().into()];
        let kernel = library.kernel("k").expect("the library has this one");
        let launched = kernel.launch(&args);
        let Some(blocks) = blocks else {
            let refused = launched.unwrap_err().to_string();
            assert!(
                refused.contains(&format!("{boxes}, is no multiple of its clusters of 2")),
                "{refused}"
            );
            continue;
        };
        launched.expect("its clusters fill the grid");
        let first = y.to_host().unwrap().bytes().unwrap()[..4].to_vec();
        assert_eq!(first, [blocks, 0, 0, 0], "{boxes} boxes");
    }
}
