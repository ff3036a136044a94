"""Times the library's GEMMs on a GPU against cuBLAS (torch.matmul, torch._scaled_mm) and, where it can be imported, DeepGEMM:
y[M, N] = x[M, K] * w[N, K]^T in bf16, and in e4m3 with scales per 1 x 128 of x and 128 x 128 of w.

usage: gemm_gpu.py [--tlc target/release/tlc] [--bench kernels-src/gemm.tl] [--filter TEXT] [--rounds 5] [--launches 10]

Ours is `tlc bench --device cuda --step`: it waits while the peers run, and they while it does. Each round of a shape runs all of them, every
time one after another starting with the next; gpu.py says how a launch is timed. The ratio is that of the best peer's
time to ours, per round: above 1 ours is faster. Nothing is checked here but the time.
"""
import argparse, math, re, statistics, sys

import torch

from gpu import Ours, in_turn, spread


def extents(ready):
    """M, N, K of a case; None for one that is no product."""
    found = dict(re.findall(r"\b([MNK]) = (\d+)", ready["case"]))
    return tuple(int(found[name]) for name in "MNK") if set(found) == {"M", "N", "K"} else None


def quantised(x, rows):
    """e4m3 and power-of-two scales, one for `rows` x 128 elements."""
    m, k = x.shape
    parts = x.view(m // rows, rows, k // 128, 128)
    scale = torch.exp2(torch.ceil(torch.log2(parts.abs().amax(dim=(1, 3)).clamp(min=1e-4) / 448)))
    return (parts / scale[:, None, :, None]).view(m, k).to(torch.float8_e4m3fn), scale


def scaled_peers(m, n, k):
    a, a_scale = quantised(torch.randn(m, k, device="cuda"), 1)
    b, b_scale = quantised(torch.randn(n, k, device="cuda"), 128)
    c = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    by_column = a_scale.t().contiguous().t()
    calls = {"cuBLAS": lambda: torch._scaled_mm(a, b.t(), scale_a=by_column, scale_b=b_scale.t(), out_dtype=torch.bfloat16)}
    try:
        import deep_gemm
        aligned = deep_gemm.utils.layout.get_mn_major_tma_aligned_tensor(a_scale)
        calls["DeepGEMM"] = lambda: deep_gemm.fp8_gemm_nt((a, aligned), (b, b_scale), c)
    except ImportError:
        pass
    return calls


def bf16_peers(m, n, k):
    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    c = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    calls = {"cuBLAS": lambda: torch.matmul(a, b.t(), out=c)}
    try:
        import deep_gemm
        calls["DeepGEMM"] = lambda: deep_gemm.bf16_gemm_nt(a, b, c)
    except ImportError:
        pass
    return calls


def peers(kernel, m, n, k):
    """Calls by name, on operands of their own."""
    calls = (scaled_peers if "fp8" in kernel else bf16_peers)(m, n, k)
    for name in list(calls):
        try:
            for _ in range(3):
                calls[name]()
            torch.cuda.synchronize()
        except RuntimeError as why:
            print(f"{name} does not run M = {m}, N = {n}, K = {k}: {why}", file=sys.stderr)
            del calls[name]
    return calls


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tlc", default="target/release/tlc")
    p.add_argument("--bench", default="kernels-src/gemm.tl")
    p.add_argument("--filter")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--launches", type=int, default=10)
    a = p.parse_args()
    flush = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    ours = Ours(a.tlc, a.bench, a.filter)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; µs, median [least..most] over {a.rounds} rounds of {a.launches} launches")
    print(f"{'shape':36} {'ours':>28} {'TFLOP/s':>8} {'GB/s':>6} {'of copy':>7}   {'best peer':>38} {'ratio':>22}")
    ratios = {}
    while (ready := ours.line()) is not None:
        if (shape := extents(ready["ready"])) is None:
            ours.say("next")
            continue
        m, n, k = shape
        scaled = "fp8" in ready["ready"]["kernel"]
        calls = peers(ready["ready"]["kernel"], m, n, k)
        times, row = in_turn(ours, calls, a.rounds, a.launches, flush)
        mine = times.pop("ours")
        seconds = statistics.median(mine)
        moved = (1 if scaled else 2) * (m * k + n * k) + 2 * m * n
        text = f"{ready['ready']['bench'][:18]:18} {m} x {n} x {k}"
        text = f"{text:36} {spread(mine):>28} {2e-12 * m * n * k / seconds:8.1f} {moved / seconds / 1e9:6.0f} {100 * moved / seconds / row['copy_bytes_per_s']:5.0f} %"
        if times:
            best = min(times, key=lambda name: statistics.median(times[name]))
            each = [min(times[name][i] for name in times) / mine[i] for i in range(a.rounds)]
            ratio = statistics.median(each)
            ratios.setdefault(("e4m3, " if scaled else "bf16, ") + ("M <= 64" if m <= 64 else "large"), []).append(ratio)
            text += f"   {best + spread(times[best]):>38} {ratio:6.3f} [{min(each):.3f}..{max(each):.3f}]"
        print(text, flush=True)
        del calls
        torch.cuda.empty_cache()
        ours.say("next")
    code = ours.end()
    for name, all in ratios.items():
        mean = math.exp(statistics.mean(map(math.log, all)))
        print(f"{name}: geometric mean of the ratios {mean:.3f}, least {min(all):.3f}, of {len(all)} shapes")
    sys.exit(code)


if __name__ == "__main__":
    main()
