"""Times the library's product of 4-bit weights and 8-bit activations for few rows on a GPU against a Triton kernel that does the same.

usage: fp4_gpu.py [--tlc target/release/tlc] [--bench kernels-src/gemm_fp4.tl] [--rounds 5] [--launches 10]

The Triton kernel widens the codes to f16 in registers, whose product with f16 activations is exact too as long as the scales of a row fit f16,
takes the checkpoint's layouts as they are, and splits k over CTAs where that is faster; its tiles are the best of a small table, tried for each
shape. As in gemm_gpu.py both sides take turns, each launch is timed by events after 256 MiB have been read, and the median of an empty launch is
taken off. The ratio is Triton's time to ours, per round: above 1 ours is faster. Nothing is checked here but the time.
"""
import argparse, math, re, statistics, sys

import torch
import triton
import triton.language as tl

from gpu import Ours, in_turn, spread, timed


@triton.jit
def product(a_ptr, as_ptr, w_ptr, ws_ptr, c_ptr, M, N, K, KPER,
            BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr):
    """The weights are the left operand: a tile of them takes no more rows of activations than there are."""
    pn, pm = tl.program_id(0), tl.program_id(1)
    rows = pm * BM + tl.arange(0, BM)
    ok = rows < M
    rn = pn * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    w = w_ptr + rn[:, None].to(tl.int64) * (K // 2) + tl.arange(0, BK // 2)[None, :]
    ws = ws_ptr + rn[:, None].to(tl.int64) * (K // 32) + tl.arange(0, BK // 32)[None, :]
    a = a_ptr + rows[None, :].to(tl.int64) * K + rk[:, None]
    scales = as_ptr + rows * (K // 128)
    acc = tl.zeros((BN, BM), tl.float32)
    k0 = tl.program_id(2) * KPER
    w += k0 // 2
    ws += k0 // 32
    a += k0
    for k in range(k0, k0 + KPER, BK):
        codes = tl.load(w).to(tl.uint16)
        low = ((codes & 7) << 9) | ((codes & 8) << 12)
        high = ((codes & 0x70) << 5) | ((codes & 0x80) << 8)
        wide = tl.join(low, high).reshape(BN, BK).to(tl.float16, bitcast=True)
        # The exponent field of 2^(s - 127 + 14) in f16, 14 for the distance between the two formats' biases.
        power = (((tl.load(ws).to(tl.uint16) - 98) & 31) << 10).to(tl.float16, bitcast=True)
        wide = (wide.reshape(BN, BK // 32, 32) * power[:, :, None]).reshape(BN, BK)
        x = tl.load(a, mask=ok[None, :], other=0.0).to(tl.float16)
        s = tl.load(scales + k // 128, mask=ok, other=0.0)
        acc += tl.dot(wide, x) * s[None, :]
        w += BK // 2
        ws += BK // 32
        a += BK
    if SPLIT:
        c = c_ptr + (tl.program_id(2) * M + rows[None, :].to(tl.int64)) * N + rn[:, None]
        tl.store(c, acc, mask=ok[None, :])
    else:
        c = c_ptr + rows[None, :].to(tl.int64) * N + rn[:, None]
        tl.store(c, acc.to(tl.bfloat16), mask=ok[None, :])


@triton.jit
def add_parts(p_ptr, c_ptr, MN, PARTS: tl.constexpr, B: tl.constexpr):
    o = tl.program_id(0) * B + tl.arange(0, B)
    ok = o < MN
    acc = tl.zeros((B,), tl.float32)
    for i in tl.static_range(PARTS):
        acc += tl.load(p_ptr + i * MN + o, mask=ok, other=0.0)
    tl.store(c_ptr + o, acc.to(tl.bfloat16), mask=ok)


# Rows, columns, k, warps, stages.
TILES = {
    16: [(16, 64, 128, 4, 4), (16, 128, 128, 4, 4), (16, 64, 256, 4, 3)],
    64: [(64, 64, 128, 4, 4), (64, 128, 128, 4, 4), (64, 128, 128, 8, 3)],
}


def peer(m, n, k, flush):
    """The fastest of the table, and which it is."""
    a = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
    scales = torch.exp2(torch.randint(-3, 3, (m, k // 128), device="cuda").float())
    w = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    ws = torch.randint(118, 124, (n, k // 32), dtype=torch.uint8, device="cuda")
    c = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)

    def call(tile, split):
        bm, bn, bk, warps, stages = tile
        out = c if split == 1 else torch.empty(split, m, n, device="cuda")
        grid = (n // bn, triton.cdiv(m, bm), split)

        def run():
            product[grid](a, scales, w, ws, out, m, n, k, k // split, bm, bn, bk, split > 1, num_warps=warps, num_stages=stages)
            if split > 1:
                add_parts[(triton.cdiv(m * n, 1024),)](out, c, m * n, split, 1024, num_warps=4)

        return run

    best = None
    for split in [1, 4, 8]:
        for tile in TILES[16 if m <= 16 else 64]:
            if k % (split * tile[2]):
                continue
            run = call(tile, split)
            for _ in range(3):
                run()
            seconds = statistics.median(timed(run, 5, flush))
            if best is None or seconds < best[0]:
                best = seconds, run, f"{tile} x {split}"
    return best[1], best[2]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tlc", default="target/release/tlc")
    p.add_argument("--bench", default="kernels-src/gemm_fp4.tl")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--launches", type=int, default=10)
    args = p.parse_args()
    flush = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    ours = Ours(args.tlc, args.bench, None)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; µs, median [least..most] over {args.rounds} rounds of {args.launches} launches")
    print(f"{'rows x outputs x k':24} {'ours':>24} {'GB/s':>6} {'of copy':>7}   {'Triton':>24} {'ratio':>22}  tile")
    ratios = []
    while (ready := ours.line()) is not None:
        case = ready["ready"]
        if not case["kernel"].endswith(("gemm_fp4_few", "gemm_fp4_64")):
            ours.say("next")
            continue
        m, n, k = (int(re.search(rf"\b{d} = (\d+)", case["case"])[1]) for d in "MNK")
        call, tile = peer(m, n, k, flush)
        times, row = in_turn(ours, {"Triton": call}, args.rounds, args.launches, flush)
        mine, theirs = times["ours"], times["Triton"]
        seconds = statistics.median(mine)
        moved = n * k // 2 + n * k // 32 + m * k + 2 * m * n
        each = [b / a for a, b in zip(mine, theirs)]
        ratios.append(statistics.median(each))
        print(f"{f'{m} x {n} x {k}':24} {spread(mine):>24} {moved / seconds / 1e9:6.0f} {100 * moved / seconds / row['copy_bytes_per_s']:5.0f} %   "
              f"{spread(theirs):>24} {ratios[-1]:6.3f} [{min(each):.3f}..{max(each):.3f}]  {tile}", flush=True)
        ours.say("next")
    code = ours.end()
    if ratios:
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        print(f"geometric mean of the ratios {mean:.3f}, least {min(ratios):.3f}, of {len(ratios)} shapes")
    sys.exit(code)


if __name__ == "__main__":
    main()
