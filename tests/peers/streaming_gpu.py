"""Times the library's streaming kernels on a GPU against torch.compile, and both against the machine's speed of copying.

usage: streaming_gpu.py [--tlc target/release/tlc] [--sources kernels-src] [--rounds 3] [--launches 10] [--filter TEXT]

As gemm_gpu.py: ours is `tlc bench --device cuda --step`, each round runs both, a launch is timed by events after a read of 256 MiB that
empties the cache, and from both sides' times that of an empty launch is taken off. Bytes are those of all tensors that the kernel reads or
writes, each once. The copy is tlc's own measurement of one between two buffers, read and write counted; torch.copy_ of 1 GiB is printed
beside it. Nothing is checked here but the time.
"""
import argparse, re, statistics

import torch

from gpu import Ours, in_turn, spread, timed

BF16 = {"device": "cuda", "dtype": torch.bfloat16}
F32 = {"device": "cuda", "dtype": torch.float32}


def power_up(v):
    """The power of two at or above v."""
    return ((v.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def norm(d):
    x, w = torch.randn(d["R"], d["N"], **BF16), torch.randn(d["N"], **BF16)

    def f(x, w):
        v = x.float()
        return (v * torch.rsqrt(v.square().mean(-1, keepdim=True) + 1e-6) * w.float()).bfloat16()

    return f, (x, w), 4 * x.numel() + 2 * d["N"]


def e4m3(x):
    groups = x.float().view(x.shape[0], -1, 128)
    scale = power_up(groups.abs().amax(-1, keepdim=True).clamp(min=1e-4) * (1 / 448))
    return (groups / scale).to(torch.float8_e4m3fn).view_as(x), scale.squeeze(-1)


def quantise_e4m3(d):
    x = torch.randn(d["T"], d["K"], **BF16)
    return e4m3, (x,), 3 * x.numel() + x.numel() // 32


def quantise_e2m1(d):
    x = torch.randn(d["T"], d["G"], 32, **BF16)

    def f(x):
        v = x.float()
        scale = power_up(v.abs().amax(-1, keepdim=True).clamp(min=6 * 2.0**-126) * (1 / 6))
        m = v.abs() / scale
        code = torch.minimum(torch.minimum(2 * m, m + 2), m / 2 + 4).round().to(torch.uint8) | ((v < 0).to(torch.uint8) << 3)
        return code[..., 0::2] | (code[..., 1::2] << 4), (scale.view(torch.int32) >> 23).to(torch.uint8)

    return f, (x,), 2 * x.numel() + x.numel() // 2 + x.numel() // 32


def swiglu(d):
    gate, up = torch.randn(d["T"], d["I"], **BF16), torch.randn(d["T"], d["I"], **BF16)
    weight = torch.rand(d["T"], 1, **F32)

    def f(gate, up, weight):
        h = weight * torch.nn.functional.silu(gate.float().clamp(max=10)) * up.float().clamp(-10, 10)
        return e4m3(h.bfloat16())

    return f, (gate, up, weight), 5 * gate.numel() + gate.numel() // 32 + 4 * d["T"]


def softmax(d):
    x = torch.randn(d["R"], d["N"], **BF16)
    return lambda x: torch.softmax(x.float(), -1).bfloat16(), (x,), 4 * x.numel()


def turn(x, cosine, sine):
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    c, s = cosine[:, None], sine[:, None]
    return torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)


def norm_rotate(d):
    x = torch.randn(d["T"], d["H"], 512, **BF16)
    cosine, sine = torch.randn(d["T"], 32, **F32), torch.randn(d["T"], 32, **F32)

    def f(x, cosine, sine):
        v = x.float()
        v = v * torch.rsqrt(v.square().mean(-1, keepdim=True) + 1e-6)
        return torch.cat((v[..., :448], turn(v[..., 448:], cosine, sine)), -1).bfloat16()

    return f, (x, cosine, sine), 4 * x.numel() + 8 * cosine.numel()


def rotate(d):
    x = torch.randn(d["T"], d["H"], d["D"], **BF16)
    cosine, sine = torch.randn(d["T"], 32, **F32), torch.randn(d["T"], 32, **F32)

    def f(x, cosine, sine):
        x[..., -64:] = turn(x[..., -64:].float(), cosine, sine).bfloat16()

    return f, (x, cosine, sine), 4 * x.numel() * 64 // d["D"] + 8 * cosine.numel()


def hc_post(d):
    f, x = torch.randn(d["T"], d["D"], **BF16), torch.randn(d["T"], d["S"], d["D"], **BF16)
    post, comb = torch.randn(d["T"], d["S"], **F32), torch.randn(d["T"], d["S"], d["S"], **F32)

    def g(f, x, post, comb):
        mixed = (comb[..., None] * x.float()[:, :, None]).sum(1)
        return (post[..., None] * f.float()[:, None] + mixed).bfloat16()

    return g, (f, x, post, comb), 2 * f.numel() + 4 * x.numel() + 4 * (post.numel() + comb.numel())


PEERS = {
    "rmsnorm_bf16": norm,
    "quantise_e4m3": quantise_e4m3,
    "quantise_e2m1": quantise_e2m1,
    "swiglu_e4m3": swiglu,
    "softmax": softmax,
    "norm_rotate_bf16": norm_rotate,
    "rotate_bf16": rotate,
    "hc_post_bf16": hc_post,
}
FILES = ["norm", "quantise", "softmax", "rotary", "hyper_connection"]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tlc", default="target/release/tlc")
    p.add_argument("--sources", default="kernels-src")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--launches", type=int, default=10)
    p.add_argument("--filter", default="")
    a = p.parse_args()
    flush = torch.empty(256 << 20, device="cuda", dtype=torch.uint8)
    big = torch.empty(2, 1 << 30, device="cuda", dtype=torch.uint8)
    copy = (2 << 30) / statistics.median(timed(lambda: big[0].copy_(big[1]), 10, flush))
    del big
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, torch.copy_ {copy / 1e9:.0f} GB/s; µs, median [least..most] over {a.rounds} rounds of {a.launches} launches")
    print(f"{'kernel':60} {'ours':>26} {'GB/s':>6} {'of copy':>7}   {'torch.compile':>26} {'of copy':>7}")
    for file in FILES:
        ours = Ours(a.tlc, f"{a.sources}/{file}.tl", None)
        while (ready := ours.line()) is not None:
            ready = ready["ready"]
            kernel = ready["kernel"].rsplit("::")[-1]
            extents = {name: int(n) for name, n in re.findall(r"\b([A-Z]+) = (\d+)\b", ready["case"])}
            if kernel not in PEERS or a.filter not in kernel:
                ours.say("next")
                continue
            call, operands, moved = PEERS[kernel](extents)
            compiled = torch.compile(call)
            for _ in range(3):
                compiled(*operands)
            times, row = in_turn(ours, {"compiled": lambda: compiled(*operands)}, a.rounds, a.launches, flush)
            mine, theirs = times["ours"], times["compiled"]
            of_copy = lambda seconds: 100 * moved / statistics.median(seconds) / row["copy_bytes_per_s"]
            shape = ", ".join(f"{name} = {n}" for name, n in extents.items())
            print(f"{kernel + ' ' + shape:60.60} {spread(mine):>26} {moved / statistics.median(mine) / 1e9:6.0f} {of_copy(mine):5.0f} %   {spread(theirs):>26} {of_copy(theirs):5.0f} %", flush=True)
            del operands
            torch.cuda.empty_cache()
            ours.say("next")
        ours.end()


if __name__ == "__main__":
    main()
