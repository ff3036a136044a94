//! Both outcomes of the proofs, on kernels as they are written.

use super::Proof;
use crate::diag::Sink;
use crate::sema;
use crate::source::SourceMap;
use crate::syntax;

/// The codes that are reported, and how the accesses of the first kernel are known to stay inside.
fn check(text: &str) -> (Vec<&'static str>, Vec<Proof>) {
    let mut map = SourceMap::default();
    let id = map.add("test.tl", text);
    let mut sink = Sink::default();
    let file = syntax::parse(&mut sink, id, text);
    let mut kernels = sema::program(std::slice::from_ref(&file), &mut sink);
    let mut proofs = vec![];
    for k in &mut kernels {
        if let Some(ledger) = sema::check(k, &mut sink) {
            proofs.extend(ledger.entries.iter().map(|e| e.proof));
        }
    }
    let codes = sink.finish().iter().map(|d| d.code).collect();
    (codes, proofs)
}

fn accepted(text: &str) -> Vec<Proof> {
    let (codes, proofs) = check(text);
    assert!(codes.is_empty(), "{codes:?} for\n{text}");
    proofs
}

fn refused(code: &str, text: &str) {
    let (codes, _) = check(text);
    assert!(
        codes.contains(&code),
        "{codes:?} without {code} for\n{text}"
    );
}

/// A kernel over rows with the given head and body.
fn rows(ensures: &str, grid: &str, body: &str) -> String {
    format!(
        "kernel k(x: in [M, 8] f32, y: out [M, 8] f32)\ndims M in 0..=64\nlaunch grid({grid})\nensures {ensures}\n{{\n{body}\n}}\n"
    )
}

#[test]
fn whole_pieces_are_proved_by_the_step_of_a_dim() {
    let kernel = |step: &str| {
        format!(
            "kernel k(x: in [M] f32, y: out [M] f32)\ndims M in 0..=4096 step {step}\nlaunch grid(cdiv(M, 64))\n{{
                reg t: [64] f32;
                copy t <- x[block(0) * 64 :+ 64];
                copy y[block(0) * 64 :+ 64] <- t;
            }}"
        )
    };
    accepted(&kernel("64"));
    accepted(&kernel("128"));
    refused("TL0301", &kernel("32"));
}

#[test]
fn loops_and_nonlinear_extents_are_proved() {
    accepted(
        "kernel k(x: in [T, H * D] f32, y: out [T, H * D] f32, z: in [H] f32, w: in [D] f32)
        dims T in 0..=64, H in 1..=16, D in 1..=512
        launch grid(T)
        {
            for h in 0..H {
                for d in 0..D { y[block(0), h * D + d] = x[block(0), h * D + d] * z[h] * w[d]; }
            }
        }",
    );
}

#[test]
fn guards_minima_and_remainders_are_followed() {
    accepted(
        "kernel k(x: in [M] f32, y: out [N] f32)
        dims M in 1..=64, N in 0..=1024
        launch grid(cdiv(N, 8))
        {
            map i in [8] {
                let n = block(0) * 8 + i;
                y[n] = n < M ? x[n] : x[min(n, M - 1)] + x[n % M] @oob(skip);
            }
        }",
    );
}

#[test]
fn a_check_of_data_is_a_fact_afterwards() {
    let kernel = |check: &str| {
        format!(
            "kernel k(x: in [M] f32, p: in [N] i32, y: out [N] f32)
            dims M in 1..=64, N in 0..=1024
            launch grid(N)
            {{
                let i = index(p[block(0)]);
                {check}
                y[block(0)] = x[i];
            }}"
        )
    };
    let proofs = accepted(&kernel("assert i >= 0 && i < M;"));
    assert!(proofs.contains(&Proof::Asserted));
    accepted(&kernel("assume i >= 0 && i < M;"));
    refused("TL0302", &kernel("assert i < M;"));
    refused("TL0302", &kernel("assert i >= 0 && i <= M;"));
}

#[test]
fn a_requirement_is_a_fact() {
    let kernel = |requires: &str| {
        format!(
            "kernel k(x: in [M] f32, y: out [N] f32)
            dims M in 0..=64, N in 0..=64
            {requires}
            launch grid(N)
            {{ y[block(0)] = x[block(0)]; }}"
        )
    };
    let proofs = accepted(&kernel("requires N <= M \"one row each\""));
    assert!(proofs.contains(&Proof::ByHostCheck));
    refused("TL0302", &kernel(""));
}

#[test]
fn rows_masked_by_their_own_validity_are_batch_invariant() {
    accepted(&rows(
        "det(bitwise), batch_invariant(M)",
        "cdiv(M, 4)",
        "reg t: [4, 8] f32;
        copy t <- x[block(0) * 4 :+ 4, :] @oob(zero);
        let s = rowsum(t);
        map (i, j) in [4, 8] { t[i, j] = t[i, j] / s[i]; }
        copy y[block(0) * 4 :+ 4, :] <- t @oob(skip);",
    ));
    accepted(&rows(
        "batch_invariant(M)",
        "cdiv(M, 4)",
        "map (i, j) in [4, 8] {
            let m = block(0) * 4 + i;
            y[m, j] = m < M ? x[m, j] * 2.0 : 0.0 @oob(skip);
        }",
    ));
    accepted(&rows(
        "batch_invariant(M)",
        "cdiv(M, 4)",
        "for i in 0..4 {
            let m = block(0) * 4 + i;
            if m < M { copy y[m, :] <- x[m, :]; }
        }",
    ));
}

#[test]
fn absolute_positions_may_be_read() {
    accepted(&rows(
        "batch_invariant(M)",
        "M",
        "let p = block(0);
        reg acc: [8] f32 = 0.0;
        for m in max(p - 3, 0)..p + 1 { acc += x[m, :]; }
        copy y[p, :] <- acc;",
    ));
}

#[test]
fn products_keep_rows_apart() {
    let kernel = |store: &str| {
        rows(
            "batch_invariant(M)",
            "cdiv(M, 4)",
            &format!(
                "reg t: [4, 8] f32;
                copy t <- x[block(0) * 4 :+ 4, :] @oob(zero);
                reg w: [8, 8] f32 = 0.5;
                reg c: [4, 8] f32 = 0.0;
                c += dot(t, w);
                {store}"
            ),
        )
    };
    accepted(&kernel("copy y[block(0) * 4 :+ 4, :] <- c @oob(skip);"));
    // Each row's sum over all rows of the piece.
    refused(
        "TL0504",
        &kernel(
            "reg s: [8, 8] f32 = dot(t.t(), c);
            map (i, j) in [4, 8] { c[i, j] = c[i, j] + s[j, j]; }
            copy y[block(0) * 4 :+ 4, :] <- c @oob(skip);",
        ),
    );
}

#[test]
fn what_depends_on_the_batch_is_refused() {
    for body in [
        "reg acc: [8] f32 = 0.0;
        for m in 0..M { acc += x[m, :]; }
        copy y[block(0), :] <- acc;",
        "map i in [8] { y[block(0), i] = x[block(0), i] / f32(M); }",
        "copy y[block(0), :] <- x[M - 1 - block(0), :];",
        "let r = M > 32 ? 2.0 : 3.0;
        map i in [8] { y[block(0), i] = x[block(0), i] * r; }",
        "if M > 32 { copy y[block(0), :] <- x[block(0), :]; }",
        "reg t: [8] f32;
        copy t <- x[block(0) + 1, :] @oob(zero);
        copy y[block(0), :] <- t;",
    ] {
        refused("TL0504", &rows("batch_invariant(M)", "M", body));
    }
}

#[test]
fn own_parts_may_be_updated_in_place() {
    accepted(
        "kernel k(y: inout [M, 8] f32)
        dims M in 0..=64
        launch grid(M)
        ensures det(bitwise), batch_invariant(M)
        { map i in [8] { y[block(0), i] *= 2.0; } }",
    );
}

#[test]
fn integer_atomics_are_deterministic_and_float_ones_are_not() {
    let kernel = |dtype: &str, one: &str| {
        format!(
            "kernel k(p: in [M] i32, h: inout [16] {dtype})
            dims M in 0..=64
            launch grid(M)
            ensures det(bitwise)
            {{ atomic h[index(p[block(0)])] += {one} @oob(skip); }}"
        )
    };
    accepted(&kernel("i32", "1"));
    refused("TL0501", &kernel("f32", "1.0"));
}

#[test]
fn injective_maps_are_told_by_their_digits() {
    let kernel = |index: &str, extents: &str| {
        format!(
            "kernel k(y: out [M, 64] f32)
            dims M in 0..=64
            launch grid(M)
            {{ map (i, j) in {extents} {{ y[block(0), {index}] = 1.0; }} }}"
        )
    };
    accepted(&kernel("i * 8 + j", "[8, 8]"));
    accepted(&kernel("63 - i - 8 * j", "[8, 8]"));
    accepted(&kernel("i / 2 * 16 + i % 2 * 8 + j", "[8, 8]"));
    refused("TL0410", &kernel("i * 7 + j", "[8, 8]"));
    refused("TL0410", &kernel("i / 2 * 8 + j", "[8, 8]"));
}

/// The kernel of the language page that has every part of the network of roles.
#[test]
fn a_network_of_roles_is_accepted() {
    accepted(
        "kernel k(q: in [T, 4, 8] bf16, kv: in [N, 8] bf16, idx: in [T, K] i32, o: out [T, 4, 8] bf16)
        dims T in 0..=64, N in 1..=64, K in 16..=64 step 16
        launch persistent(T)
        ensures det(bitwise), batch_invariant(T)
        {
            channel key: [16, 8] bf16 @slots(3) @parts(2);
            channel wgt: [4, 16] bf16 @slots(2);
            role load {
                for t in items {
                    for j in 0..K / 16 { put key <- kv[gather idx[t, j * 16 :+ 16], :] @missing(zero); }
                }
            }
            role score {
                for t in items {
                    reg qr: [4, 8] bf16;
                    copy qr <- q[t, :, :];
                    for j in 0..K / 16 {
                        get key as k;
                        reg s: [4, 16] f32 = dot(qr, k.t());
                        put wgt <- s.cast(bf16);
                    }
                }
            }
            role value {
                for t in items {
                    reg acc: [4, 8] f32 = 0.0;
                    for j in 0..K / 16 {
                        get wgt as w;
                        get key as k;
                        acc += dot(w, k);
                        release k[0 :+ 8];
                    }
                    copy o[t, :, :] <- acc.cast(bf16);
                }
            }
        }",
    );
}
