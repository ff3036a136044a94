//! Matrix descriptors against layouts written down by another way: rows of so many bytes, whose 16-byte units change places with the row.

use super::machine::Launch;
use super::ptx::{self, SHARED_BASE};
use std::collections::BTreeMap;
use tessera_artifact::numeric;

const N: usize = 64;
const K: usize = 16;

/// Where the 16-byte unit `unit` of row `row` of a pattern goes that is so wide.
fn permuted(unit: usize, row: usize, width: usize) -> usize {
    match width {
        128 => unit ^ (row % 8),
        64 => unit ^ (row / 2 % 4),
        32 => unit ^ (row / 4 % 2),
        _ => unit,
    }
}

/// Byte of element (`row`, `k`) of an operand of 64 rows and 16 k, in bf16; and the leading and stride bytes of its descriptor.
fn place(width: usize, by_k: bool, row: usize, k: usize) -> usize {
    // Along the lines in memory, and across them.
    let (along, across, lines) = if by_k { (row, k, K) } else { (k, row, N) };
    let byte = 2 * along;
    if width == 0 {
        // Tiles of eight lines of 16 bytes; first along, then across.
        let tiles = if by_k { N / 8 } else { K / 8 };
        return (across / 8 * tiles + byte / 16) * 128 + across % 8 * 16 + byte % 16;
    }
    let (panel, byte) = (byte / width, byte % width);
    panel * lines * width + across * width + permuted(byte / 16, across, width) * 16 + byte % 16
}

fn descriptor(width: usize, by_k: bool, start: usize) -> u64 {
    let (leading, stride) = match (width, by_k) {
        // Along K, and along the rows.
        (0, false) => (128, K / 8 * 128),
        (0, true) => (N / 8 * 128, 128),
        (_, false) => (16, 8 * width),
        (_, true) => (K * width, 8 * width),
    };
    let mode = match width {
        128 => 1,
        64 => 2,
        32 => 3,
        _ => 0,
    };
    let field = |x: usize| (x >> 4) as u64;
    let start = SHARED_BASE as usize + start;
    field(start) | field(leading) << 16 | field(stride) << 32 | mode << 62
}

/// Copies 16 KiB to shared memory, multiplies, and gives register `i` of thread `t` as number `128 i + t`.
fn text(a_by_k: bool, b_by_k: bool) -> String {
    let sums: Vec<String> = (0..N / 2).map(|i| format!("%f{i}")).collect();
    let zeros: String = sums.iter().map(|r| format!("mov.b32 {r}, 0;\n")).collect();
    let stores: String = (sums.iter().enumerate())
        .map(|(i, r)| format!("st.global.b32 [%rd8+{}], {r};\n", 512 * i))
        .collect();
    let copies: String = (0..8)
        .map(|i| {
            format!(
                "ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd5+{0}];\nst.shared.v4.b32 [%rd6+{0}], {{%r1, %r2, %r3, %r4}};\n",
                2048 * i
            )
        })
        .collect();
    format!(
        ".extern .shared .align 1024 .b8 tile[];
.visible .entry k(
.param .align 8 .b8 p[32]
)
.reqntid 128, 1, 1
{{
ld.param.b64 %rd1, [p];
ld.param.b64 %rd2, [p+8];
ld.param.b64 %rd3, [p+16];
ld.param.b64 %rd4, [p+24];
mov.u32 %r9, %tid.x;
mul.wide.u32 %rd7, %r9, 16;
add.s64 %rd5, %rd1, %rd7;
mov.b64 %rd9, tile;
add.s64 %rd6, %rd9, %rd7;
{copies}{zeros}fence.proxy.async.shared::cta;
bar.sync 0;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n{N}k16.f32.bf16.bf16 {{{}}}, %rd3, %rd4, 1, 1, 1, {}, {};
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
mul.wide.u32 %rd7, %r9, 4;
add.s64 %rd8, %rd2, %rd7;
{stores}ret;
}}
",
        sums.join(", "),
        u32::from(a_by_k),
        u32::from(b_by_k)
    )
}

#[test]
fn every_layout_of_an_operand_is_read_as_it_is_written() {
    let a = |row: usize, k: usize| ((row * 3 + k * 5 + row * k) % 7) as f32 - 3.0;
    let b = |column: usize, k: usize| ((column * 2 + k + column * k) % 5) as f32 - 2.0;
    let widths = [0, 32, 64, 128];
    for (a_width, b_width) in widths.iter().flat_map(|a| widths.map(|b| (*a, b))) {
        for (a_by_k, b_by_k) in [(false, false), (false, true), (true, false), (true, true)] {
            let what = format!("{a_width} {a_by_k} {b_width} {b_by_k}");
            #[repr(align(256))]
            struct Aligned([u8; 16384]);
            let mut image = Aligned([0; 16384]);
            for k in 0..K {
                for row in 0..N {
                    for (start, at, value) in [
                        (0, place(a_width, a_by_k, row, k), a(row, k)),
                        (8192, place(b_width, b_by_k, row, k), b(row, k)),
                    ] {
                        let code = numeric::f32_to_bf16(value).to_le_bytes();
                        image.0[start + at..][..2].copy_from_slice(&code);
                    }
                }
            }
            let sums = vec![[0u64; 32]; N / 2 * 2 + 1];
            let start = (sums.as_ptr() as u64).next_multiple_of(64);
            let words = [
                image.0.as_ptr() as u64,
                start,
                descriptor(a_width, a_by_k, 0),
                descriptor(b_width, b_by_k, 8192),
            ];
            let program = ptx::parse(&text(a_by_k, b_by_k)).unwrap();
            let params: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let launch = Launch {
                program: &program,
                ctas: 1,
                shared_bytes: 16384,
                params: &params,
                allocations: &BTreeMap::from([(words[0], 16384), (start, N / 2 * 512)]),
                at_once: 1,
                waits: false,
                seed: 0,
            };
            launch.run().unwrap_or_else(|why| panic!("{what}: {why}"));
            for row in 0..64 {
                for column in 0..N {
                    let t = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
                    let i = column / 8 * 4 + row / 8 % 2 * 2 + column % 2;
                    // SAFETY: within the sums.
                    let got = unsafe { *((start + (i * 128 + t) as u64 * 4) as *const f32) };
                    let want: f32 = (0..K).map(|k| a(row, k) * b(column, k)).sum();
                    assert_eq!(got, want, "{what}: {row}, {column}");
                }
            }
        }
    }
}
