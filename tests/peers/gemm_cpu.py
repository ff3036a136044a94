"""Times GEMM 2048^3 (f32, bf16) and a streaming kernel against PyTorch and a memory copy, interleaved.

usage: gemm_cpu.py [--threads 1 2] [--rounds 5] [--tlc target/release/tlc]

Ours is `tlc bench tests/peers/gemm_cpu.tl --message-format=json`; each round runs ours, then the peer. Prints medians, minimum and maximum.
"""
import argparse, json, statistics, subprocess, time


def ours(tlc, threads):
    out = subprocess.run([tlc, "bench", "kernels-src/linear.tl", "--threads", str(threads), "--message-format=json"], check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {r["title"]: r for r in rows}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--tlc", default="target/release/tlc")
    a = p.parse_args()
    import torch
    for threads in a.threads:
        torch.set_num_threads(threads)
        peer, mine = {}, {}
        for _ in range(a.rounds):
            for title, row in ours(a.tlc, threads).items():
                mine.setdefault(title, []).append(row["gflops"])
            for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
                x, w = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
                x @ w.t()
                t = time.perf_counter()
                x @ w.t()
                peer.setdefault(name, []).append(2 * 2048**3 / (time.perf_counter() - t) / 1e9)
        for title, values in mine.items():
            name = "bf16" if "bf16" in title else "f32"
            q = peer[name]
            print(f"{threads} threads  {title:28} ours {statistics.median(values):8.1f} GFLOP/s [{min(values):.1f} .. {max(values):.1f}]   "
                  f"torch {name} {statistics.median(q):8.1f} [{min(q):.1f} .. {max(q):.1f}]   ratio {statistics.median(values) / statistics.median(q):.2f}")


if __name__ == "__main__":
    main()
