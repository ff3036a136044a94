//! Streams and their products have one set of bits, whether one launch makes both or two.

use crate::few_rows::{library_of, random};
use tessera_artifact::DType;
use tessera_device::{Arg, Library, Tensor};

const TOKENS: i64 = 66;
const WIDTH: i64 = 1024;
/// Of a stream.
const PARTS: i64 = WIDTH / 512;
const COEFFICIENTS: i64 = 24;

fn zeros(library: &Library, dtype: DType, shape: &[i64]) -> Tensor {
    Tensor::zeros_on(library.device(), dtype, shape).expect("the emulated device has memory for it")
}

fn out(tensor: &mut Tensor) -> Arg<'_> {
    let view = tensor.view_mut();
    view.expect("a tensor of its own can be written").into()
}

fn launch(library: &Library, kernel: &str, args: Vec<Arg>) {
    let kernel = library.kernel(kernel).expect("the library has the kernel");
    kernel.launch(&args).expect("the arguments fit");
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let on_host = tensor.to_host().expect("the host has memory for it");
    let bytes = on_host.bytes().expect("a tensor on the host has its bytes");
    bytes.to_vec()
}

#[test]
fn streams_and_products_have_the_same_bits_together_and_apart() {
    let library = library_of(&[
        "dsv4::hyper_connection::hc_post_bf16",
        "dsv4::hyper_connection_bf16::hc_mix",
        "dsv4::hyper_connection_post::hc_post_mix",
    ]);
    let f = random(&library, DType::BF16, &[TOKENS, WIDTH], 1);
    let x = random(&library, DType::BF16, &[TOKENS, 4, WIDTH], 2);
    let post = random(&library, DType::F32, &[TOKENS, 4], 3);
    let comb = random(&library, DType::F32, &[TOKENS, 4, 4], 4);
    let w = random(&library, DType::BF16, &[3, COEFFICIENTS, 4 * WIDTH], 5);
    let given = || [&f, &x, &post, &comb].map(|t| Arg::from(t.view()));

    let mut apart = zeros(&library, DType::BF16, &[TOKENS, 4, WIDTH]);
    let mut args = Vec::from(given());
    args.push(out(&mut apart));
    launch(&library, "hc_post_bf16", args);
    let mut parts_apart = zeros(&library, DType::F32, &[TOKENS, 4 * PARTS, COEFFICIENTS]);
    let streams = apart.view().reshape(&[TOKENS, 4 * WIDTH]);
    let streams = streams.expect("streams lie side by side");
    let args = vec![streams.into(), w.view().into(), out(&mut parts_apart)];
    launch(&library, "hc_mix", args);

    let mut together = zeros(&library, DType::BF16, &[TOKENS, 4, WIDTH]);
    let mut parts_together = zeros(&library, DType::F32, &[TOKENS, 4, PARTS, COEFFICIENTS]);
    let mut args = Vec::from(given());
    args.push(w.view().into());
    args.push(out(&mut together));
    args.push(out(&mut parts_together));
    launch(&library, "hc_post_mix", args);

    assert!(bytes(&parts_apart).iter().any(|&b| b != 0), "no products");
    assert!(bytes(&apart) == bytes(&together), "the streams differ");
    assert!(
        bytes(&parts_apart) == bytes(&parts_together),
        "the products differ"
    );
}

#[test]
fn experts_are_added_up_to_the_same_bits_apart_and_on_their_way_into_the_streams() {
    const CHOICES: i64 = 6;
    let library = library_of(&[
        "dsv4::experts_fp4::combine_places",
        "dsv4::hyper_connection_post::hc_post_places",
        "dsv4::hyper_connection::hc_post_bf16",
    ]);
    let rows = TOKENS * CHOICES;
    let given = random(&library, DType::BF16, &[rows, WIDTH], 1);
    let shared = random(&library, DType::BF16, &[TOKENS, WIDTH], 2);
    let x = random(&library, DType::BF16, &[TOKENS, 4, WIDTH], 3);
    let post = random(&library, DType::F32, &[TOKENS, 4], 4);
    let comb = random(&library, DType::F32, &[TOKENS, 4, 4], 5);
    // No two pairs have one row: 7 does not divide their number.
    let places: Vec<i32> = (0..rows).map(|pair| (pair * 7 % rows) as i32).collect();
    let place = Tensor::from_slice(&[TOKENS, CHOICES], &places)
        .and_then(|place| place.to_device(library.device()))
        .expect("the emulated device has memory for it");
    let summed = || [&given, &place, &shared].map(|t| Arg::from(t.view()));
    let mixed = || [&x, &post, &comb].map(|t| Arg::from(t.view()));

    let mut sum = zeros(&library, DType::BF16, &[TOKENS, WIDTH]);
    let mut args = Vec::from(summed());
    args.push(out(&mut sum));
    launch(&library, "combine_places", args);
    let mut apart = zeros(&library, DType::BF16, &[TOKENS, 4, WIDTH]);
    let mut args = vec![Arg::from(sum.view())];
    args.extend(mixed());
    args.push(out(&mut apart));
    launch(&library, "hc_post_bf16", args);

    let mut together = zeros(&library, DType::BF16, &[TOKENS, 4, WIDTH]);
    let mut args = Vec::from(summed());
    args.extend(mixed());
    args.push(out(&mut together));
    launch(&library, "hc_post_places", args);

    assert!(bytes(&apart).iter().any(|&b| b != 0), "no streams");
    assert!(bytes(&apart) == bytes(&together), "the streams differ");
}
