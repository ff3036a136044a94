"""Times GEMM 2048^3 (f32, bf16) against PyTorch and the streaming kernels of the library against a memory copy, interleaved.

usage: gemm_cpu.py [--threads 1 2] [--rounds 5] [--tlc target/release/tlc]

Ours is `tlc bench` on tests/peers/gemm.tl and kernels-src; each round runs ours, then the peer. Prints medians, minimum and maximum over the
rounds. PyTorch's product is `a @ b.T`; its copy is `y.copy_(x)` of 128 MiB, bytes read and written counted, as `tlc bench` counts them.
"""
import argparse, json, statistics, subprocess, time

STREAMING = ["rmsnorm", "rmsnorm_plain", "norm_rotate", "rotate", "swiglu", "combine", "hc_pre", "hc_post", "hc_head", "mtp_merge"]


def bench(tlc, path, threads, seconds):
    out = subprocess.run([tlc, "bench", path, "--threads", str(threads), "--seconds", str(seconds), "--message-format=json"],
                         check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def spread(xs, unit=1e9):
    return f"{statistics.median(xs) / unit:7.1f} [{min(xs) / unit:.1f} .. {max(xs) / unit:.1f}]"


def best_of(run, amount, times=3):
    best = 0.0
    for _ in range(times):
        t = time.perf_counter()
        run()
        best = max(best, amount / (time.perf_counter() - t))
    return best


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--tlc", default="target/release/tlc")
    a = p.parse_args()
    import torch
    print("torch", torch.__version__, torch.backends.cpu.get_cpu_capability())
    for threads in a.threads:
        torch.set_num_threads(threads)
        ours, theirs, rates, copies = {}, {}, {}, []
        source, target = torch.zeros(32 << 20), torch.zeros(32 << 20)
        for _ in range(a.rounds):
            for row in bench(a.tlc, "tests/peers/gemm.tl", threads, 0.6):
                # The least time of the run, as of the peer.
                ours.setdefault(row["bench"].split()[0], []).append(row["flops"] / row["low_s"])
            for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
                x, w = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
                x @ w.t()
                theirs.setdefault(name, []).append(best_of(lambda: x @ w.t(), 2 * 2048**3))
            for row in bench(a.tlc, "kernels-src", threads, 0.15):
                kernel = row["kernel"].split("::")[-1]
                if kernel in STREAMING:
                    rates.setdefault(kernel, []).append(row["bytes"] / row["median_s"])
            copies.append(best_of(lambda: target.copy_(source), 8 * (32 << 20), 5))
        for name, mine in ours.items():
            peer = theirs[name]
            print(f"{threads} threads  {name:5} 2048^3  ours {spread(mine)} GFLOP/s   torch {spread(peer)}   ratio {statistics.median(mine) / statistics.median(peer):.2f}")
        print(f"{threads} threads  copy of 128 MiB {spread(copies)} GB/s")
        for kernel in STREAMING:
            mine = rates[kernel]
            print(f"{threads} threads  {kernel:14} ours {spread(mine)} GB/s   of the copy {100 * statistics.median(mine) / statistics.median(copies):.0f} %")


if __name__ == "__main__":
    main()
