//! A small program with the copies that are no tensor boxes: `cp.async` in groups and at a barrier, bulk loads and stores, `ldmatrix`; and
//! what is found when one of its waits is taken out.

use super::machine::Launch;
use super::ptx;
use std::collections::BTreeMap;

/// `x` holds 4096 bytes. The first half comes by `cp.async` (its last 16 bytes cut to 4), a group waited for by each thread; the second by
/// one that arrives at a barrier, and again, 2048 bytes further on, by a bulk load. All of it goes to `y` by a bulk store. Then each lane
/// of the first warp gives what `ldmatrix` has of the first four matrices, 6144 bytes into `y`.
const TEXT: &str = "
.extern .shared .align 128 .b8 tile[];
.visible .entry k(
.param .u64 .ptr .global .align 16 k_param_0,
.param .u64 k_param_1
)
.reqntid 128, 1, 1
{
	ld.param.b64 %rd1, [k_param_0];
	ld.param.b64 %rd2, [k_param_1];
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd3, %r1, 16;
	add.s64 %rd4, %rd1, %rd3;
	mov.b64 %rd5, tile;
	add.s64 %rd6, %rd5, %rd3;
	setp.ne.b32 %p1, %r1, 0;
	setp.eq.b32 %p2, %r1, 127;
	selp.b32 %r2, 4, 16, %p2;
	@%p1 bra $ready;
	mbarrier.init.shared.b64 [tile+8192], 129;
	mbarrier.init.shared.b64 [tile+8200], 1;
	fence.mbarrier_init.release.cluster;
$ready:
	griddepcontrol.wait;
	bar.sync 0;
	cp.async.cg.shared.global [%rd6], [%rd4], 16, %r2;
	cp.async.commit_group;
	cp.async.cg.shared.global [%rd6+2048], [%rd4+2048], 16;
	cp.async.mbarrier.arrive.noinc.shared.b64 [tile+8192];
	cp.async.wait_group 0;
	@%p1 bra $loaded;
	mbarrier.arrive.expect_tx.shared.b64 _, [tile+8200], 2048;
	cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile+4096], [%rd1+2048], 2048, [tile+8200];
	mbarrier.arrive.shared.b64 _, [tile+8192];
$loaded:
	{
	.reg .pred p;
	one:
	mbarrier.try_wait.parity.shared.b64 p, [tile+8192], 0;
	@!p bra one;
	two:
	mbarrier.try_wait.parity.shared.b64 p, [tile+8200], 0;
	@!p bra two;
	}
	fence.proxy.async.shared::cta;
	bar.sync 1, 128;
	@%p1 bra $stored;
	cp.async.bulk.global.shared::cta.bulk_group [%rd2], [tile], 6144;
	cp.async.bulk.commit_group;
	cp.async.bulk.wait_group 0;
$stored:
	setp.ge.u32 %p3, %r1, 32;
	@%p3 bra $end;
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r3, %r4, %r5, %r6}, [%rd6];
	add.s64 %rd7, %rd2, %rd3;
	st.global.v4.b32 [%rd7+6144], {%r3, %r4, %r5, %r6};
$end:
	ret;
}
";

#[repr(align(128))]
struct Aligned([u8; 6144 + 512]);

fn run(text: &str, seed: u64) -> Result<(), String> {
    let program = ptx::parse(text)?;
    let (mut x, y) = (Aligned([0; 6656]), Aligned([0; 6656]));
    for (i, byte) in x.0.iter_mut().enumerate() {
        *byte = (i * 31 % 251) as u8;
    }
    let [from, to] = [&x, &y].map(|m| m.0.as_ptr() as u64);
    let params: Vec<u8> = [from, to].iter().flat_map(|w| w.to_le_bytes()).collect();
    Launch {
        program: &program,
        ctas: 1,
        shared_bytes: 8208,
        params: &params,
        allocations: &BTreeMap::from([(from, 4096), (to, 6656)]),
        at_once: 1,
        waits: true,
        seed,
    }
    .run()?;
    // It was written behind the compiler's back.
    let got = |i: usize| unsafe { std::ptr::read_volatile((to + i as u64) as *const u8) };
    for i in 0..6144 {
        let want = match i {
            2036..2048 => 0,
            i if i >= 4096 => x.0[i - 2048],
            i => x.0[i],
        };
        if got(i) != want {
            return Err(format!("byte {i} is {} instead of {want}", got(i)));
        }
    }
    for lane in 0..32 {
        for matrix in 0..4 {
            for byte in 0..4 {
                let want = x.0[matrix * 128 + lane / 4 * 16 + lane % 4 * 4 + byte];
                let at = 6144 + lane * 16 + matrix * 4 + byte;
                if got(at) != want {
                    return Err(format!(
                        "lane {lane}, matrix {matrix}: {} instead of {want}",
                        got(at)
                    ));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn copies_of_every_kind_arrive() {
    // The arrival at the barrier waits for the copies of the group too.
    let without = TEXT.replace("cp.async.wait_group 0;", "");
    for seed in 0..6 {
        assert_eq!(run(TEXT, seed), Ok(()), "seed {seed}");
        assert_eq!(run(&without, seed), Ok(()), "seed {seed}");
    }
}

#[test]
fn a_wait_that_is_missing_is_found() {
    for (from, to, said) in [
        (
            "cp.async.mbarrier.arrive.noinc.shared.b64 [tile+8192];\n\tcp.async.wait_group 0;",
            "cp.async.wait_group 1; mbarrier.arrive.shared.b64 _, [tile+8192];",
            "under way|before its copies",
        ),
        (
            "cp.async.mbarrier.arrive.noinc.shared.b64 [tile+8192];",
            "",
            "wait for ever",
        ),
        (
            "cp.async.mbarrier.arrive.noinc",
            "cp.async.mbarrier.arrive",
            "wait for ever",
        ),
        ("@!p bra two;", "", "under way|without waiting"),
        ("[tile+8200], 0;\n", "[tile+8192], 0;\n", "under way"),
        ("_, [tile+8200], 2048", "_, [tile+8200], 2064", "2064 bytes"),
        (
            "fence.proxy.async.shared::cta;",
            "",
            "without fence.proxy.async",
        ),
        ("bar.sync 0;", "", "may not be initialised|no barrier is at"),
        (
            "bar.sync 1, 128;",
            "bar.sync 1, 96;",
            "wait for ever|wait at different barriers",
        ),
        (
            "cp.async.bulk.wait_group 0;",
            "",
            "before its stores have read",
        ),
        ("griddepcontrol.wait;", "", "before griddepcontrol.wait"),
        (
            "[tile+4096], [%rd1+2048], 2048,",
            "[tile+4104], [%rd1+2048], 2048,",
            "no multiple of 16",
        ),
        (
            "[%rd1+2048], 2048,",
            "[%rd1+4096], 2048,",
            "in no allocation",
        ),
        ("[tile], 6144;", "[tile+4096], 6144;", "of 8208 shared ones"),
    ] {
        assert!(TEXT.contains(from), "{from}");
        let text = TEXT.replace(from, to);
        // Where it takes an order of warps that is not each seed's, one finds it.
        let found: Vec<String> = (0..6).filter_map(|seed| run(&text, seed).err()).collect();
        assert!(!found.is_empty(), "{from}");
        for why in found {
            assert!(
                said.split('|').any(|said| why.contains(said)),
                "{from}\n{why}"
            );
        }
    }
}
