"""What the scripts that time a GPU share: launches timed by events, `tlc bench --step` beside them, and rounds in which all take turns.

A launch is timed after 256 MiB have been read, which empties the cache and hides what the host takes; from both sides' times the median of an
empty launch, timed the same way, is taken off. (Filling instead of reading leaves a cache full of what still has to go to memory, and costs
whatever comes next up to 10 µs.)
"""
import json, os, statistics, subprocess, sys

import torch


def timed(work, launches, flush):
    """Seconds of each of so many calls."""
    pairs = []
    for _ in range(launches):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.view(torch.float32).sum()
        torch.cuda._sleep(100_000)
        start.record()
        work()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in pairs]


class Ours:
    """`tlc bench --step`, case by case."""

    def __init__(self, tlc, bench, filter):
        # Kernels may use modules beside theirs.
        library = bench if os.path.isdir(bench) else os.path.dirname(bench) or "."
        command = [tlc, "bench", bench, "--lib", library, "--device", "cuda", "--step"] + (["--filter", filter] if filter else [])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def line(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return None

    def say(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()

    def end(self):
        self.process.stdin.close()
        return self.process.wait()


def in_turn(ours, calls, rounds, launches, flush):
    """Seconds per round of "ours" (the case that is ready) and of each call by name, every round starting with the next of them; and our last
    line. Ends the script if ours stops."""

    def launched(count):
        ours.say(count)
        row = ours.line()
        if row is None:
            sys.exit(ours.end() or "tlc stopped")
        return row

    times = {name: [] for name in ["ours", *calls]}
    names, row = list(times), launched(3)  # warm
    for turn in range(rounds):
        for i in range(len(names)):
            name = names[(turn + i) % len(names)]
            if name == "ours":
                row = launched(launches)
                times[name].append(row["median_s"])
            else:
                empty = statistics.median(timed(lambda: torch.cuda._sleep(0), launches, flush))
                times[name].append(max(statistics.median(timed(calls[name], launches, flush)) - empty, 1e-9))
    return times, row


def spread(seconds):
    return f"{statistics.median(seconds) * 1e6:8.1f} [{min(seconds) * 1e6:.1f}..{max(seconds) * 1e6:.1f}]"
