"""Times the routed experts with 4-bit weights on a GPU against Triton kernels in the manner of fused_moe that compute the same.

usage: moe_gpu.py [--tlc target/release/tlc] [--kernels kernels-src] [--rounds 3] [--launches 10] [--tokens 1,64,512,4096] [--rows 8,8,16,128]

Sizes of DeepSeek-V4-Flash: 256 experts of width 2048, six for each of the tokens, hidden 4096. A random routing is cut into tiles for both sides, for
ours as `group_pairs` does. Ours: the rows of tiles (`rows_of_tiles`), both halves (`expert_up_fp4`, `expert_down_fp4`, in tiles of 128 rows `expert_up_wide`, `expert_down_wide`), written as benches into a copy of
the kernels; theirs: the first product with gathered rows, SwiGLU with quantisation, the second product, on weights widened to f16 in registers, with the
best of a small table of tiles. As in gemm_gpu.py both take turns, each launch is timed by events after 256 MiB have been read, and the median of an
empty launch is taken off. Parts are timed one by one, ours and theirs, and added up. Nothing is checked here but the time.
"""
import argparse, pathlib, shutil, statistics, sys, tempfile

import torch
import triton
import triton.language as tl

from gpu import Ours, in_turn, spread, timed

EXPERTS, CHOICES, HIDDEN, WIDTH = 256, 6, 4096, 2048


@triton.jit
def product(a_ptr, as_ptr, w_ptr, ws_ptr, c_ptr, rows_ptr, expert_ptr, N, K, NROWS, SHARE,
            BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The weights are the left operand; row r of a tile reads row `rows[r] // SHARE` of a."""
    pn, pm = tl.program_id(0), tl.program_id(1)
    e = tl.load(expert_ptr + pm).to(tl.int64)
    rows = tl.load(rows_ptr + pm * BM + tl.arange(0, BM))
    ok = rows < NROWS
    arow = (rows // SHARE).to(tl.int64)
    rn = pn * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    w = w_ptr + e * N * (K // 2) + rn[:, None].to(tl.int64) * (K // 2) + tl.arange(0, BK // 2)[None, :]
    ws = ws_ptr + e * N * (K // 32) + rn[:, None].to(tl.int64) * (K // 32) + tl.arange(0, BK // 32)[None, :]
    a = a_ptr + arow[None, :] * K + rk[:, None]
    scales = as_ptr + arow * (K // 128)
    acc = tl.zeros((BN, BM), tl.float32)
    for k in range(0, K, BK):
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
    c = c_ptr + rows[None, :].to(tl.int64) * N + rn[:, None]
    tl.store(c, acc.to(tl.bfloat16), mask=ok[None, :])


@triton.jit
def swiglu(x_ptr, y_ptr, s_ptr, I, LIMIT, GROUPS: tl.constexpr):
    r = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    o = g[:, None] * 128 + tl.arange(0, 128)[None, :]
    a = tl.minimum(tl.load(x_ptr + r * 2 * I + o).to(tl.float32), LIMIT)
    b = tl.load(x_ptr + r * 2 * I + I + o).to(tl.float32)
    b = tl.minimum(tl.maximum(b, -LIMIT), LIMIT)
    h = a * tl.sigmoid(a) * b
    m = tl.maximum(tl.max(tl.abs(h), 1), 1e-4) / 448.0
    tl.store(y_ptr + r * I + o, (h / m[:, None]).to(tl.float8e4nv))
    tl.store(s_ptr + r * (I // 128) + g, m)


# Rows, columns, k, warps, stages.
TILES = [(16, 64, 128, 4, 4), (16, 128, 128, 4, 4), (64, 128, 128, 4, 4), (128, 128, 128, 8, 3)]


def tiles_of(experts, rows):
    """Pairs by row of a tile (past the end: their number), the expert of each tile, where its run of sorted pairs starts and ends."""
    flat = experts.flatten().cpu()
    order = torch.argsort(flat, stable=True)
    count = torch.bincount(flat, minlength=EXPERTS)
    pairs, of, first, end, start = [], [], [], [], 0
    for e, n in enumerate(count.tolist()):
        for at in range(0, n, rows):
            of.append(e)
            first.append(start + at)
            end.append(start + min(at + rows, n))
            part = order[first[-1]:end[-1]].tolist()
            pairs += part + [flat.numel()] * (rows - len(part))
        start += n
    return pairs, of, first, end, order.tolist()


class Peer:
    def __init__(self):
        def codes(*shape):
            return torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")

        def scales(*shape):
            return torch.randint(118, 124, shape, dtype=torch.uint8, device="cuda")

        self.w13, self.s13 = codes(EXPERTS, 2 * WIDTH, HIDDEN // 2), scales(EXPERTS, 2 * WIDTH, HIDDEN // 32)
        self.w2, self.s2 = codes(EXPERTS, HIDDEN, WIDTH // 2), scales(EXPERTS, HIDDEN, WIDTH // 32)

    def halves(self, experts, flush):
        """The two halves with the fastest tiles, and which they are."""
        tokens = experts.shape[0]
        n = tokens * CHOICES
        x = torch.randn(tokens, HIDDEN, device="cuda").to(torch.float8_e4m3fn)
        xs = torch.exp2(torch.randint(-3, 3, (tokens, HIDDEN // 128), device="cuda").float())
        h = torch.empty(n, 2 * WIDTH, device="cuda", dtype=torch.bfloat16)
        q, qs = torch.zeros(n, WIDTH, device="cuda", dtype=torch.float8_e4m3fn), torch.ones(n, WIDTH // 128, device="cuda")
        y = torch.empty(n, HIDDEN, device="cuda", dtype=torch.bfloat16)
        best = [None, None]
        each = n / EXPERTS
        for tile in TILES:
            bm, bn, bk, warps, stages = tile
            if (bm == 16) != (each <= 32) and not (bm == 64 and each > 8):
                continue
            pairs, of, *_ = tiles_of(experts, bm)
            rows, of = torch.tensor(pairs, dtype=torch.int32, device="cuda"), torch.tensor(of, dtype=torch.int32, device="cuda")

            def up(bm=bm, bn=bn, bk=bk, rows=rows, of=of, warps=warps, stages=stages):
                product[(2 * WIDTH // bn, len(of))](x, xs, self.w13, self.s13, h, rows, of, 2 * WIDTH, HIDDEN, n, CHOICES, bm, bn, bk, num_warps=warps, num_stages=stages)
                swiglu[(n, WIDTH // 1024)](h, q, qs, WIDTH, 10.0, 8, num_warps=4)

            def down(bm=bm, bn=bn, bk=bk, rows=rows, of=of, warps=warps, stages=stages):
                product[(HIDDEN // bn, len(of))](q, qs, self.w2, self.s2, y, rows, of, HIDDEN, WIDTH, n, 1, bm, bn, bk, num_warps=warps, num_stages=stages)

            for i, call in enumerate([up, down]):
                call()
                seconds = statistics.median(timed(call, 3, flush))
                if best[i] is None or seconds < best[i][0]:
                    best[i] = seconds, call, tile
        return best


def benches(experts, rows):
    """Files and the three kernels' benches in them for a routing."""
    _, of, first, end, order = tiles_of(experts, rows)
    pairs = experts.numel()
    most = min(pairs, -(-pairs // rows) + EXPERTS)

    def fill(name, values):
        return f"    fill {name} ~ values({', '.join(map(str, values))});\n"

    def constants(**values):
        return "".join(f"    fill {name} ~ constant({v});\n" for name, v in values.items())

    title = f"routing of {experts.shape[0]} tokens"
    tiles = constants(tiles=len(of))
    sizes = f"D = {HIDDEN}, E = {EXPERTS}, I = {WIDTH}, L = 1, N = {most}, rows = {rows}, BM = {rows}"
    form = "wide" if rows == 128 else "fp4"
    steps = 0x08080808
    gather = (
        f'bench "{title}" for rows_of_tiles {{\n    with T = {experts.shape[0]}, D = {HIDDEN}, L = {-(-experts.shape[0] // 4) * 4}, R = {pairs}, N = {most}, choices = {CHOICES}, rows = {rows}, BM = {rows};\n'
        + fill("pair", order) + fill("tile_first", first) + fill("tile_end", end) + tiles + "}\n"
    )
    halves = (
        f'bench "{title}" for expert_up_{form} {{\n    with {sizes}, Q = {WIDTH}, limit = 10.0;\n'
        + constants(xs=0.01, f1=steps, f3=steps, r1=0.02, r3=0.02, route=0.2) + fill("tile_expert", of) + tiles + "}\n"
        + f'bench "{title}" for expert_down_{form} {{\n    with {sizes}, Q = {HIDDEN};\n'
        + constants(hs=0.01, f2=steps, r2=0.02) + fill("tile_expert", of) + tiles + "}\n"
    )
    return [("experts_fp4.tl", gather), (f"experts_{form}.tl", halves)]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tlc", default="target/release/tlc")
    p.add_argument("--kernels", default="kernels-src")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--launches", type=int, default=10)
    p.add_argument("--tokens", default="1,64,512,4096")
    p.add_argument("--rows", default="8,8,16,128", help="of our tiles, for each number of tokens")
    args = p.parse_args()
    torch.manual_seed(4)
    flush = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    peer = Peer()
    cases = list(zip(map(int, args.tokens.split(",")), map(int, args.rows.split(","))))
    routings = {tokens: torch.rand(tokens, EXPERTS, device="cuda").topk(CHOICES, 1)[1] for tokens, _ in cases}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}; µs, median [least..most] over {args.rounds} rounds of {args.launches} launches")
    print(f"{'tokens':>6} {'rows':>4} {'experts':>7} {'rows of tiles':>22} {'first half':>28} {'second half':>28} {'all':>9} {'GB/s':>6} {'of copy':>7} {'Triton':>9} {'ratio':>22}  tiles")
    for tokens, rows in cases:
        experts = routings[tokens]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name in ["experts_fp4.tl", "experts_wide.tl", "gemm_fp4.tl", "quantise.tl"]:
                shutil.copy(pathlib.Path(args.kernels) / name, folder)
            for name, text in benches(experts, rows):
                with open(folder / name, "a") as file:
                    file.write("\n" + text)
            up, down = peer.halves(experts, flush)
            ours = Ours(args.tlc, str(folder), f"routing of {tokens} tokens")
            mine, theirs, copy = [], [], 0
            while (ready := ours.line()) is not None:
                kernel = ready["ready"]["kernel"]
                calls = {"Triton": up[1]} if "_up_" in kernel else {"Triton": down[1]} if "_down_" in kernel else {}
                times, row = in_turn(ours, calls, args.rounds, args.launches, flush)
                mine.append(times["ours"])
                theirs += [times["Triton"]] if calls else []
                copy = row["copy_bytes_per_s"]
                ours.say("next")
            code = ours.end()
        if len(mine) != 3:
            sys.exit(code or f"{len(mine)} benches ran, and not three")
        touched = experts.unique().numel()
        moved = touched * 3 * WIDTH * HIDDEN * 17 // 32 + experts.numel() * (HIDDEN + 2 * WIDTH + 2 * HIDDEN)
        seconds = sum(statistics.median(t) for t in mine)
        peers = sum(statistics.median(t) for t in theirs)
        each = [sum(b) / sum(a) for a, b in zip(zip(*mine), zip(*theirs))]
        print(f"{tokens:6} {rows:4} {touched:7} {spread(mine[0]):>22} {spread(mine[1]):>28} {spread(mine[2]):>28} {seconds * 1e6:9.1f} {moved / seconds / 1e9:6.0f} {100 * moved / seconds / copy:5.0f} % "
              f"{peers * 1e6:9.1f} {statistics.median(each):6.3f} [{min(each):.3f}..{max(each):.3f}]  {up[2]} {down[2]}", flush=True)


if __name__ == "__main__":
    main()
