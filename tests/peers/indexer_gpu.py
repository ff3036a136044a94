"""Times the library's FP8 indexer scores on a GPU against DeepGEMM's (fp8_mqa_logits, fp8_paged_mqa_logits): 64 heads of 128.

usage: indexer_gpu.py [--tlc target/release/tlc] [--bench kernels-src/index_scores.tl] [--rounds 5] [--launches 10]

Prefill: T queries against S keys of one sequence. Decode: T queries, each against E keys of its own (DeepGEMM's in pages of 64).
As in gemm_gpu.py both sides take turns, each launch is timed by events after 256 MiB have been read, and the median of an empty launch is taken off.
The ratio is DeepGEMM's time to ours, per round: above 1 ours is faster. Nothing is checked here but the time.
"""
import argparse, math, re, statistics, sys

import deep_gemm
import torch

from gpu import Ours, in_turn, spread

HEADS, DIM, PAGE = 64, 128, 64


def quantised(k):
    scales = (k.abs().amax(-1).clamp_min(1e-4) / 448).float()
    return (k / scales[..., None]).to(torch.float8_e4m3fn), scales


def prefill(t, s):
    q = torch.randn(t, HEADS, DIM, device="cuda").to(torch.float8_e4m3fn)
    k, scales = quantised(torch.randn(s, DIM, device="cuda", dtype=torch.bfloat16))
    w = torch.randn(t, HEADS, device="cuda")
    starts = torch.zeros(t, dtype=torch.int32, device="cuda")
    ends = torch.full((t,), s, dtype=torch.int32, device="cuda")
    return lambda: deep_gemm.fp8_mqa_logits(q, (k, scales), w, starts, ends, False)


def decode(t, e):
    q = torch.randn(t, 1, HEADS, DIM, device="cuda").to(torch.float8_e4m3fn)
    k, scales = quantised(torch.randn(t, e, DIM, device="cuda", dtype=torch.bfloat16))
    w = torch.randn(t, HEADS, device="cuda")
    pages = t * e // PAGE
    cache = torch.empty(pages, PAGE * (DIM + 4), dtype=torch.uint8, device="cuda")
    cache[:, :PAGE * DIM] = k.view(torch.uint8).reshape(pages, PAGE * DIM)
    cache[:, PAGE * DIM:] = scales.reshape(pages, PAGE).contiguous().view(torch.uint8)
    cache = cache.view(pages, PAGE, 1, DIM + 4)
    lengths = torch.full((t, 1), e, dtype=torch.int32, device="cuda")
    table = torch.arange(pages, dtype=torch.int32, device="cuda").view(t, e // PAGE)
    plan = deep_gemm.get_paged_mqa_logits_metadata(lengths, PAGE, deep_gemm.get_num_sms())
    return lambda: deep_gemm.fp8_paged_mqa_logits(q, cache, w, lengths, table, plan, e, False)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tlc", default="target/release/tlc")
    p.add_argument("--bench", default="kernels-src/index_scores.tl")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--launches", type=int, default=10)
    a = p.parse_args()
    flush = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    ours = Ours(a.tlc, a.bench, None)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; µs, median [least..most] over {a.rounds} rounds of {a.launches} launches")
    print(f"{'queries x keys':28} {'ours':>28} {'TFLOP/s':>8} {'of copy':>7}   {'DeepGEMM':>28} {'ratio':>22}")
    ratios = []
    while (ready := ours.line()) is not None:
        case = dict(re.findall(r"\b([TSE]) = (\d+)", ready["ready"]["case"]))
        each = "E" in case
        t, s = int(case["T"]), int(case["E" if each else "S"])
        call = (decode if each else prefill)(t, s)
        for _ in range(3):
            call()
        times, row = in_turn(ours, {"DeepGEMM": call}, a.rounds, a.launches, flush)
        mine, theirs = times["ours"], times["DeepGEMM"]
        seconds = statistics.median(mine)
        moved = t * HEADS * DIM + (t if each else 1) * s * (DIM + 4) + 4 * t * s
        each_round = [b / m for b, m in zip(theirs, mine)]
        ratios.append(statistics.median(each_round))
        text = f"{'decode' if each else 'prefill'} {t} x {s}"
        print(f"{text:28} {spread(mine):>28} {2e-12 * t * s * HEADS * DIM / seconds:8.1f} {100 * moved / seconds / row['copy_bytes_per_s']:5.0f} %"
              f"   {spread(theirs):>28} {ratios[-1]:6.3f} [{min(each_round):.3f}..{max(each_round):.3f}]", flush=True)
        del call
        torch.cuda.empty_cache()
        ours.say("next")
    code = ours.end()
    if ratios:
        print(f"geometric mean of the ratios {math.exp(statistics.mean(map(math.log, ratios))):.3f}, least {min(ratios):.3f}, of {len(ratios)} shapes")
    sys.exit(code)


if __name__ == "__main__":
    main()
