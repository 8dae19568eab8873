"""Timing on a machine that swings: contestants take turns, every round is judged by the machine's health around it, and
what ran in a bad minute is run again."""

import statistics
import time

import torch


def machine(threads):
    """What a figure must name: CPU, instructions that torch uses, threads, torch's version."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return {"cpu": names[0] if names else "unknown", "simd": torch.backends.cpu.get_cpu_capability(),
            "threads": threads, "torch": torch.__version__}


class Health:
    """torch.mm at 1024^3 and a copy, the two things that bound everything else."""

    def __init__(self):
        self.a, self.b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        self.c = torch.empty(1024, 1024)
        self.source, self.target = torch.ones(32 << 20), torch.zeros(32 << 20)  # 128 MiB each, written
        self.best_mm = 0.0
        self.best_copy = 0.0

    def measure(self):
        """(GFLOP/s of torch.mm, GB/s of a copy, read and written together), each the best of three."""
        mm = 2 * 1024**3 / min(self._seconds(lambda: torch.mm(self.a, self.b, out=self.c)) for _ in range(3)) / 1e9
        moved = 2 * self.source.numel() * self.source.element_size()
        copy = moved / min(self._seconds(lambda: self.target.copy_(self.source)) for _ in range(3)) / 1e9
        self.best_mm, self.best_copy = max(self.best_mm, mm), max(self.best_copy, copy)
        return mm, copy

    def share(self, measured):
        """How near the best seen so far, 0 to 1."""
        return min(measured[0] / self.best_mm, measured[1] / self.best_copy)

    @staticmethod
    def _seconds(call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def sample(call):
    """Milliseconds of one call: the median of a few after one that warms the caches; a long call is timed once."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > 0.1:
        return 1e3 * first
    times = []
    for _ in range(max(3, min(15, int(0.02 / first)))):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def race(contestants, health, rounds, good=0.8, sample=sample):
    """contestants: name -> call. Each round times all of them in turn, by sample(call). A round counts if the health
    before and after it is at least `good` of the best seen; others are repeated, at most 2 * rounds times, after which
    the healthiest count. Returns name -> list of `rounds` samples in milliseconds."""
    for call in contestants.values():
        call()  # graphs are built and pages written before anything is timed
    ran = []
    before = health.measure()
    while True:
        times = {name: sample(call) for name, call in contestants.items()}
        after = health.measure()
        ran.append((min(before, after), times))
        before = after
        ran.sort(key=lambda entry: -health.share(entry[0]))
        best = ran[:rounds]
        if len(ran) >= rounds and (health.share(best[-1][0]) >= good or len(ran) >= 3 * rounds):
            return {name: [times[name] for _, times in best] for name in contestants}
