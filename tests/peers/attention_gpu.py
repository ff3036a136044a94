"""Times the library's decode attention on records of 584 bytes on a GPU against FlashMLA's (`flash_mla_with_kvcache`, FP8 cache of that layout).

usage: attention_gpu.py [--tlc target/release/tlc] [--bench kernels-src/attention_records.tl] [--rounds 8] [--launches 20]

As in gemm_gpu.py both sides take turns, each launch is timed by events after 256 MiB have been read, and the median of an empty launch is taken off.
The ratio is FlashMLA's time to ours: above 1 ours is faster. Nothing is checked here but the time.
"""
import argparse, re, statistics, sys

import flash_mla
import torch

from gpu import Ours, in_turn, spread

WINDOW, ENTRIES, PAGE, DIM, CODES = 128, 4096, 64, 512, 448


def cache(rows):
    """Of so many blocks of rows: codes and turned columns of each row, then the powers of two of all."""
    blocks, size, _ = rows.shape
    record = CODES + 2 * (DIM - CODES) + 8
    out = torch.zeros(blocks, (size * record + 575) // 576 * 576, dtype=torch.uint8, device="cuda")
    groups = rows[..., :CODES].float().view(blocks, size, CODES // 64, 64)
    powers = torch.exp2(torch.ceil(torch.log2(groups.abs().amax(-1).clamp_min(1e-4) / 448)))
    codes = (groups / powers[..., None]).to(torch.float8_e4m3fn)
    body = out[:, :size * (record - 8)].view(blocks, size, record - 8)
    body[..., :CODES] = codes.view(blocks, size, CODES).view(torch.uint8)
    body[..., CODES:] = rows[..., CODES:].contiguous().view(torch.uint8)
    tail = out[:, size * (record - 8):size * record].view(blocks, size, 8)
    tail[..., :CODES // 64] = powers.to(torch.float8_e8m0fnu).view(torch.uint8)
    return out[:, :size * record].view(torch.float8_e4m3fn).view(blocks, size, 1, record)


def flashmla(tokens, heads, picked):
    rows = lambda *shape: torch.randn(*shape, DIM, device="cuda", dtype=torch.bfloat16)
    q, sink = rows(tokens, 1, heads), torch.randn(heads, device="cuda")
    ring, entries = cache(rows(tokens, WINDOW)), cache(rows(tokens * ENTRIES // PAGE, PAGE))
    of = torch.arange(tokens, device="cuda")[:, None]
    seen = (torch.arange(WINDOW, device="cuda")[None] + of * WINDOW).int()[:, None].contiguous()
    picks = torch.rand(tokens, ENTRIES, device="cuda").topk(picked, 1)[1]
    picks = (picks + of * ENTRIES).int()[:, None].contiguous()
    plan, _ = flash_mla.get_mla_metadata()
    return lambda: flash_mla.flash_mla_with_kvcache(
        q, ring, None, None, DIM, plan, None, 0.044, False, True, seen, sink, entries, picks, use_legacy=True)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tlc", default="target/release/tlc")
    p.add_argument("--bench", default="kernels-src/attention_records.tl")
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--launches", type=int, default=20)
    a = p.parse_args()
    flush = torch.zeros(256 << 20, device="cuda", dtype=torch.uint8)
    ours = Ours(a.tlc, a.bench, None)
    print(f"{torch.cuda.get_device_name()}; µs, median [least..most] over {a.rounds} rounds of {a.launches} launches")
    while (ready := ours.line()) is not None:
        title = ready["ready"]["bench"]
        tokens, picked = (int(re.search(what, title)[1]) for what in (r"(\d+) tokens?", r"(\d+) picked"))
        heads = 128 if title.startswith("Pro") else 64
        times, _ = in_turn(ours, {"FlashMLA": flashmla(tokens, heads, picked)}, a.rounds, a.launches, flush)
        ratio = statistics.median(times["FlashMLA"]) / statistics.median(times["ours"])
        print(f"{title:56} {spread(times['ours'])}   FlashMLA {spread(times['FlashMLA'])}   {ratio:.2f}", flush=True)
        torch.cuda.empty_cache()
        ours.say("next")
    return ours.end()


if __name__ == "__main__":
    sys.exit(main())
