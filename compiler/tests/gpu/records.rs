//! Attention has one set of bits, whether keys are widened on their way to its products or brought to rows first.

use crate::few_rows::{library_of, random};
use tessera_artifact::DType;
use tessera_device::{Arg, Library, Tensor};

const SEQUENCES: i64 = 2;
const SLOTS: i64 = 80;
const ENTRIES: i64 = 80;
const PER_PAGE: i64 = 20;
const WINDOW: i64 = 66;
const RATIO: i64 = 4;
const HEADS: i64 = 3;
const SCALE: f32 = 0.05;

fn tensor(library: &Library, dtype: DType, shape: &[i64], bytes: &[u8]) -> Tensor {
    Tensor::from_bytes(dtype, shape, bytes)
        .expect("as many bytes as the shape has")
        .to_device(library.device())
        .expect("the emulated device has memory for it")
}

fn integers(library: &Library, shape: &[i64], of: impl Fn(i32) -> i32) -> Tensor {
    let count = shape.iter().product::<i64>() as i32;
    let bytes: Vec<u8> = (0..count).flat_map(|i| of(i).to_le_bytes()).collect();
    tensor(library, DType::I32, shape, &bytes)
}

/// Codes, turned columns and scales.
fn records(library: &Library, shape: &[i64], seed: u64) -> [Tensor; 3] {
    let with = |columns: i64| [shape, &[columns]].concat();
    let count = with(8).iter().product::<i64>();
    // Powers of two of either side of 1.
    let scales: Vec<u8> = (0..count)
        .map(|i| 121 + ((i * 5 + seed as i64) % 11) as u8)
        .collect();
    [
        random(library, DType::E4M3, &with(448), seed),
        random(library, DType::BF16, &with(64), seed + 1),
        tensor(library, DType::UE8M0, &with(8), &scales),
    ]
}

fn launch(library: &Library, kernel: &str, args: &[Arg]) {
    let kernel = library.kernel(kernel).expect("the library has the kernel");
    kernel.launch(args).unwrap_or_else(|e| panic!("{e}"));
}

fn zeros(library: &Library, shape: &[i64]) -> Tensor {
    Tensor::zeros_on(library.device(), DType::BF16, shape)
        .expect("the emulated device has memory for it")
}

/// The bits of both, for entries that are picked, or all.
fn cores(library: &Library, picked: i64) -> [Vec<u8>; 2] {
    let (tokens, width) = (SEQUENCES, 448 + 64);
    let own = records(library, &[SEQUENCES, SLOTS], 1);
    let entries = records(library, &[ENTRIES], 7);
    let table = integers(library, &[SEQUENCES, 2], |i| (i * 3 + 1) % 4);
    let positions = [99, 41];
    let pos = integers(library, &[tokens], |t| positions[t as usize]);
    let seq = integers(library, &[tokens], |t| 1 - t);
    let most = i64::from(positions[0] + 1) / RATIO;
    let picks = integers(library, &[tokens, picked], |i| i * 7 % 10);
    let q = random(library, DType::BF16, &[tokens, HEADS, width], 11);
    let sink = random(library, DType::F32, &[HEADS], 12);

    let mut at_once = zeros(library, &[tokens, HEADS, width]);
    let mut args: Vec<Arg> = vec![q.view().into()];
    args.extend(own.iter().chain(&entries).map(|part| part.view().into()));
    args.extend([&table, &picks, &pos, &seq, &sink].map(|t| t.view().into()));
    args.push(at_once.view_mut().unwrap().into());
    args.extend([WINDOW, RATIO, PER_PAGE].map(Arg::Index));
    args.push(SCALE.into());
    launch(library, "attention_records", &args);

    let mut ring = zeros(library, &[SEQUENCES, SLOTS, width]);
    let mut rows = zeros(library, &[SEQUENCES, most, width]);
    let mut args: Vec<Arg> = (own.iter().chain(&entries))
        .map(|part| part.view().into())
        .collect();
    args.extend([&table, &picks, &pos, &seq].map(|t| t.view().into()));
    args.push(ring.view_mut().unwrap().into());
    args.push(rows.view_mut().unwrap().into());
    args.extend([PER_PAGE, WINDOW, RATIO, most].map(Arg::Index));
    launch(library, "widen_picked", &args);
    let order = integers(library, &[tokens, picked], |i| i % picked.max(1) as i32);
    let whole = integers(library, &[SEQUENCES, 1], |s| s);
    let mut by_rows = zeros(library, &[tokens, HEADS, width]);
    let flat = [SEQUENCES * most, width];
    let mut args: Vec<Arg> = vec![q.view().into(), ring.view().into()];
    args.push(rows.view().reshape(&flat).unwrap().into());
    args.extend([&whole, &order, &pos, &seq, &sink].map(|t| t.view().into()));
    args.push(by_rows.view_mut().unwrap().into());
    args.extend([WINDOW, RATIO, most].map(Arg::Index));
    args.push(SCALE.into());
    launch(library, "attention_wide", &args);
    [at_once, by_rows].map(|o| o.to_host().unwrap().bytes().unwrap().to_vec())
}

#[test]
fn records_have_the_bits_of_rows() {
    let library = library_of(&[
        "dsv4::records::widen_picked",
        "dsv4::attention_wide::",
        "dsv4::attention_records::",
    ]);
    for picked in [0, 17, 30] {
        let [at_once, by_rows] = cores(&library, picked);
        assert!(at_once.iter().any(|&b| b != 0), "zeros for {picked} picked");
        let differs = (at_once.chunks(2).zip(by_rows.chunks(2))).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{picked} picked");
    }
}
