"""Times the library's top-k on a GPU against torch.topk(sorted=True): the K best of each of T rows of S float32 scores, by falling score.

usage: topk_gpu.py [--tlc target/release/tlc] [--bench kernels-src/indexer.tl] [--filter "top "] [--rounds 5] [--launches 10]

As gemm_gpu.py does: `tlc bench --device cuda --step` and torch take turns in each round, each launch is timed by events after a read of 256 MiB,
and the median of an empty launch is taken off on both sides. The ratio is torch's time to ours, per round: above 1 ours is faster. Scores are
normal(0, 1) on both sides, and torch gives values beside the places. Nothing is checked here but the time.
"""
import argparse, math, re, statistics, sys

import torch

from gpu import Ours, in_turn, spread


def extents(ready):
    """Rows, scores in a row, picks of a case: from a title `top .. of ..[, .. rows]` and `T = ..`."""
    title = re.fullmatch(r"top (\d+) of (\d+)(?:, (\d+) rows)?", ready["bench"])
    several = re.fullmatch(r"T = (\d+)", ready["case"])
    rows = several[1] if several else title and title[3]
    if not title or not rows:
        sys.exit(f"the case `{ready['case']}` of `{ready['bench']}` does not give rows, scores and picks")
    return int(rows), int(title[2]), int(title[1])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tlc", default="target/release/tlc")
    p.add_argument("--bench", default="kernels-src/indexer.tl")
    p.add_argument("--filter", default="top ")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--launches", type=int, default=10)
    a = p.parse_args()
    flush = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    ours = Ours(a.tlc, a.bench, a.filter)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; µs, median [least..most] over {a.rounds} rounds of {a.launches} launches")
    print(f"{'rows x scores, picks':24} {'ours':>28} {'GB/s':>6}   {'torch.topk':>28} {'ratio':>22}")
    ratios = []
    while (ready := ours.line()) is not None:
        t, s, k = extents(ready["ready"])
        x = torch.randn(t, s, device="cuda")
        values, places = torch.empty(t, k, device="cuda"), torch.empty(t, k, device="cuda", dtype=torch.int64)
        call = lambda: torch.topk(x, k, dim=1, sorted=True, out=(values, places))
        call()
        times, _ = in_turn(ours, {"torch": call}, a.rounds, a.launches, flush)
        mine, theirs = times["ours"], times["torch"]
        each = [theirs[i] / mine[i] for i in range(a.rounds)]
        ratios.append(statistics.median(each))
        speed = 4 * t * (s + k) / statistics.median(mine) / 1e9
        print(f"{f'{t} x {s}, {k}':24} {spread(mine):>28} {speed:6.0f}   {spread(theirs):>28} {ratios[-1]:7.2f} [{min(each):.2f}..{max(each):.2f}]", flush=True)
        del x, values, places
        torch.cuda.empty_cache()
        ours.say("next")
    code = ours.end()
    if ratios:
        mean = math.exp(statistics.mean(map(math.log, ratios)))
        print(f"geometric mean of the ratios {mean:.2f}, least {min(ratios):.2f}, of {len(ratios)} shapes")
    sys.exit(code)


if __name__ == "__main__":
    main()
