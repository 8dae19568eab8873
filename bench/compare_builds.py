#!/usr/bin/env python3
"""Is one build of the operators slower than another? Times the rows of bench/ops_cpu.py in two checkouts, in turns.

OLD and NEW are checkouts that are built. Each runs its own bench/ops_cpu.py in a process of its own, so the operators
that this calls may differ; one process works at a time. A row is timed in rounds, old and new in turns; what counts
is the ratio of the two within a round. Some processes are a tenth slower than others from their start to their end, so
the rounds are spread over several pairs of them: compare a build with itself to see how far a ratio can be trusted.

Ends with 0, or 2 if it could not compare: whether a ratio is good is for the reader to say.
"""

import argparse
import functools
import importlib
import json
import os
import pathlib
import re
import signal
import statistics
import sys
import time

from worker import Died, Worker

BAR = 1.05
CALLS = 2000  # of a sample of the overhead
WARM_SECONDS = 0.01  # before a sample
# The threads of the process whose turn is over sleep soon, not after twenty milliseconds.
SPIN, SPIN_SECONDS = {"GOMP_SPINCOUNT": "20000"}, 0.005


# What a process runs. Its torch is that of the checkout's bench, which is imported here and not above.


def row_name(case):
    """Of a Case of either checkout."""
    words = [case.op, case.pass_, f"{case.B},{case.T},{case.d}"]
    words += [f"s={case.s}"] * (case.s > 0)
    words += ["not causal"] * (not case.causal and case.grid is None) + [case.dtype] * (case.dtype != "f32")
    words += ["factors"] * (case.bias == "factors") + [f"keys N(0, {case.key_std:g}^2)"] * (case.key_std != 1)
    return " ".join(words)


def overhead_calls(torch):
    """Name -> (function that prepares, call): calls whose work is next to nothing, in microseconds."""
    aft = torch.ops.aft
    q, k, v = torch.randn(3, 1, 1, 8)
    bias = torch.randn(CALLS + 1, 4)
    state = list(aft.initial_state(k, v, 3))
    return {"overhead of simple, 1,1,8": (lambda: None, lambda: aft.simple(q, k, v)),
            "overhead of local_step_, d 8, window 4": (state[0].zero_, lambda: aft.local_step_(q, k, v, bias, state))}


def sample(call):
    """Milliseconds of one call: the median of some after some that warm up; a long call is timed once."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > 0.1:
        return 1e3 * first
    while time.perf_counter() - start < WARM_SECONDS:
        call()
    times = []
    for _ in range(max(5, min(25, int(0.03 / first)))):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def sample_overhead(torch, prepare, call):
    """Microseconds of one call, the mean of many."""
    prepare()
    with torch.no_grad():
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        return 1e6 * (time.perf_counter() - start) / CALLS


def serve(checkout, threads):
    """Answers `build ROW`, `time` and `health`; begins with the names of its rows."""
    sys.path.insert(0, str(checkout / "bench"))
    ops_cpu, timing, torch = map(importlib.import_module, ("ops_cpu", "timing", "torch"))
    torch.set_num_threads(threads)
    torch.ops.load_library(str(library_of(checkout)))
    all_cases = ops_cpu.all_cases()
    cases = {row_name(case): case for case in all_cases}
    if len(cases) < len(all_cases):
        raise ValueError("two rows of bench/ops_cpu.py have one name: mend row_name of bench/compare_builds.py")
    overheads = overhead_calls(torch)
    health = timing.Health()
    answer = {"rows": list(cases), "overheads": list(overheads), **timing.machine(threads)}
    timed = case = None
    while True:
        print(json.dumps(answer), flush=True)
        command, _, name = sys.stdin.readline().rstrip("\n").partition(" ")
        answer = {}
        if command == "build":
            timed = None
            if case is not None:
                del case.call  # and with it the tensors of the last row
            case = cases.get(name)
            if case is None:
                timed = functools.partial(sample_overhead, torch, *overheads[name])
            else:
                torch.manual_seed(0)
                case.build()
                case.peers.clear()
                timed = functools.partial(sample, case.call)
            timed()
        elif command == "time":
            answer = {"time": timed()}
        elif command == "health":
            mm, copy = health.measure()
            answer = {"mm_gflops": round(mm, 1), "copy_gb_per_s": round(copy, 1)}
        else:
            return


def library_of(checkout):
    return checkout / "build" / "lib" / "libaft_torch.so"


class Builds:
    """A pair of processes, of the old build and of the new, which take turns in that order or in the other."""

    def __init__(self, args, new_first):
        self.order = (1, 0) if new_first else (0, 1)
        command = [sys.executable, __file__, "--threads", str(args.threads), "--worker"]
        self.workers = [Worker([*command, checkout], SPIN) for checkout in (args.old, args.new)]

    def health(self):
        return [worker.ask("health") for worker in self.workers]

    def time(self, row, rounds):
        """A list of pairs of times."""
        for worker in self.workers:
            worker.ask("build " + row)
        times = []
        for _ in range(rounds):
            pair = [0.0, 0.0]
            for i in self.order:
                time.sleep(SPIN_SECONDS)
                pair[i] = self.workers[i].ask("time")["time"]
            times.append(pair)
        return times

    def close(self):
        for worker in self.workers:
            worker.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: bench/compare_builds.py ../before . --rows '^simple' --rounds 9")
    parser.add_argument("old", metavar="OLD", type=pathlib.Path, nargs="?")
    parser.add_argument("new", metavar="NEW", type=pathlib.Path, nargs="?")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows whose name has this expression in it")
    parser.add_argument("--rounds", type=int, default=9, help="pairs of samples of a row (default 9)")
    parser.add_argument("--processes", type=int, default=3, help="pairs of processes that share them (default 3)")
    parser.add_argument("--overhead", action="store_true",
                        help="instead: what a call costs where there is next to nothing to do, in microseconds")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--json", action="store_true", help="one object a line: the machine, the rows, the summary")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    if args.worker:
        serve(args.worker, args.threads)
        return 0
    if args.old is None or args.new is None:
        parser.error("OLD and NEW are missing: two checkouts that are built")
    if not 1 <= args.processes <= args.rounds:
        parser.error(f"--processes must be 1 to the number of rounds, {args.rounds}, got {args.processes}")
    for checkout in (args.old, args.new):
        if not library_of(checkout).exists():
            parser.error(f"{library_of(checkout)} is missing: build {checkout} first")
    try:
        run(args)
    except Died as error:
        print(f"compare_builds.py: a process {error}", file=sys.stderr)
        return 2
    return 0


def result(row, times):
    """The row as an object of the --json output."""
    ratios = [new / old for old, new in times]
    old, new = (statistics.median(column) for column in zip(*times, strict=True))
    values = {"old": old, "new": new, "ratio": statistics.median(ratios), "ratio_min": min(ratios),
              "ratio_max": max(ratios)}
    return {"row": row, "unit": "us" if row.startswith("overhead") else "ms",
            **{name: round(value, 4) for name, value in values.items()}}


def run(args):
    def show(text, **values):
        print(json.dumps(values) if args.json else text, flush=True)

    times = {}  # row -> pairs
    for process in range(args.processes):
        builds = Builds(args, new_first=process % 2 == 1)
        old, new = builds.health()
        machine = {**builds.workers[0].greeting}
        names = [worker.greeting["overheads" if args.overhead else "rows"] for worker in builds.workers]
        names = [[name for name in mine if re.search(args.rows, name)] for mine in names]
        show("{cpu}, {simd}, {threads} threads, torch {torch}".format(**machine) +
             f"; torch.mm {old['mm_gflops']:.0f} and {new['mm_gflops']:.0f} GFLOP/s, "
             f"copy {old['copy_gb_per_s']:.1f} and {new['copy_gb_per_s']:.1f} GB/s", health=[old, new],
             **{key: machine[key] for key in ("cpu", "simd", "threads", "torch")})
        for row in names[0]:
            if row in names[1]:
                rounds = (process + 1) * args.rounds // args.processes - process * args.rounds // args.processes
                times.setdefault(row, []).extend(builds.time(row, rounds))
        builds.close()

    results = [result(row, pairs) for row, pairs in times.items()]
    for r in results:
        show("{row:<48} {old:>9.3f} {new:>9.3f} {unit} {ratio:>7.3f}  ({ratio_min:.3f} to {ratio_max:.3f})".format(**r),
             **r)
    for label, mine, other in (("OLD", *names), ("NEW", *reversed(names))):
        for row in mine:
            if row not in other:
                show(f"only in {label}: {row}", only_in=label, row=row)
    if results:
        mean = statistics.geometric_mean(r["ratio"] for r in results)
        above = [r["row"] for r in results if r["ratio"] > BAR]
        show(f"{len(results)} rows, geometric mean {mean:.4f}; {len(above)} above {BAR}" +
             "".join(f"\n  {row}" for row in above), rows=len(results), geometric_mean=round(mean, 4), above=above)


if __name__ == "__main__":
    sys.exit(main())
