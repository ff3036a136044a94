"""Times our forward pass against transformers' deepseek_v4 (eager, float32) on the same weights, interleaved.

usage: forward_cpu.py MODEL_DIR [--threads 1 2] [--prefill 1024] [--decode 16] [--rounds 3] [--v4 target/release/v4]

MODEL_DIR holds config.json and model.safetensors (`cargo run --release -p tessera-tests --bin write-benchmark-model MODEL_DIR` writes the one of docs/performance.md).
A round is: ours prefill + decode in a process of its own, then the peer's. Prints medians, minimum and maximum, and the ratios.
"""
import argparse, json, statistics, subprocess, time


def ours(v4, model, threads, prefill, decode):
    out = subprocess.run([v4, "bench", "--model", model, "--threads", str(threads), "--prompt", str(prefill), "--decode", str(decode), "--json"],
                         check=True, capture_output=True, text=True).stdout
    r = json.loads(out)
    return r["prefill_tokens_per_s"], r["decode_tokens_per_s"]


class Peer:
    def __init__(self, model):
        import torch
        from transformers import AutoModelForCausalLM
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
        self.vocab = self.model.config.vocab_size

    def run(self, threads, prefill, decode):
        torch = self.torch
        torch.set_num_threads(threads)
        ids = torch.randint(0, self.vocab, (1, prefill), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            t = time.perf_counter()
            out = self.model(ids, use_cache=True)
            prefill_s = time.perf_counter() - t
            cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)
            t = time.perf_counter()
            for _ in range(decode):
                out = self.model(token, past_key_values=cache, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            decode_s = time.perf_counter() - t
        return prefill / prefill_s, decode / decode_s


def spread(xs):
    return f"{statistics.median(xs):9.2f}  [{min(xs):.2f} .. {max(xs):.2f}]"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--prefill", type=int, default=1024)
    p.add_argument("--decode", type=int, default=8)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--v4", default="target/release/v4")
    a = p.parse_args()
    peer = Peer(a.model)
    for threads in a.threads:
        rows = {"ours": [], "peer": []}
        for _ in range(a.rounds):
            rows["ours"].append(ours(a.v4, a.model, threads, a.prefill, a.decode))
            rows["peer"].append(peer.run(threads, a.prefill, a.decode))
        for i, what in enumerate(["prefill tokens/s", "decode tokens/s"]):
            o, q = [r[i] for r in rows["ours"]], [r[i] for r in rows["peer"]]
            print(f"{threads} threads  {what:17} ours {spread(o)}   transformers {spread(q)}   ratio {statistics.median(o) / statistics.median(q):.1f}x")


if __name__ == "__main__":
    main()
