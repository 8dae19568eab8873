#!/usr/bin/env python3
"""Time per token of simple, local and conv1d against the length of the sequence, 1 Ki to 1 Mi tokens: B 1, causal, f32.
docs/benchmarks.md says what is measured; the bars are of medians over interleaved rounds."""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys

import chosen_python  # noqa: F401  (goes on in the Python whose torch the build uses)

import torch

import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
OPS = ("simple", "local", "conv1d")
PASSES = ("forward", "backward")
LENGTHS = [1 << n for n in range(10, 21)]
KI = 1024
FLAT = 64 * KI  # from here on the time per token is to be constant, within SPREAD
SPREAD = 0.15
WINDOW, HEADS = 32, 4
SWEEP = 64 * KI  # tokens a timed call takes at least, in sequences of T: too many for the caches


class Tensors:
    """Memory of all cases: as many tokens as the longest sequence has. A case works on slices of T tokens."""

    def __init__(self, tokens, d):
        self.q, self.k, self.v, self.grad_y = (self._filled(tokens, d) for _ in range(4))
        self.y = torch.zeros_like(self.q)
        self.grad_k, self.grad_v = torch.zeros_like(self.k), torch.zeros_like(self.v)
        self.table = self._filled(tokens, WINDOW).mul_(0.1)
        self.grad_table = torch.zeros_like(self.table)
        self.kernel = 0.1 * torch.randn(HEADS, WINDOW)
        self.grad_kernel = torch.zeros_like(self.kernel)

    @staticmethod
    def _filled(tokens, width):
        block = torch.randn(min(tokens, SWEEP), width)
        return block.repeat(-(-tokens // len(block)), 1)[:tokens].unsqueeze(0)


def call_of(tensors, op, pass_, T):
    """(a call, the tokens that it takes): SWEEP / T sequences one after another, or a single one of T >= SWEEP."""
    ops = torch.ops.aft
    steps = []
    for start in range(0, max(T, SWEEP), T):
        part = slice(start, start + T)
        q, k, v, grad_y, y, grad_k, grad_v = (x[:, part] for x in (
            tensors.q, tensors.k, tensors.v, tensors.grad_y, tensors.y, tensors.grad_k, tensors.grad_v))
        band = {"simple": None, "local": tensors.table[:, part], "conv1d": tensors.kernel}[op]
        grad_band = {"simple": None, "local": tensors.grad_table[:, part], "conv1d": tensors.grad_kernel}[op]
        if pass_ == "forward":
            steps.append((ops.window.out, (q, k, v, band), {"out": y}))
        else:
            saved = ops.window_forward(q, k, v, band)[1]
            steps.append((ops.window_backward.out, (grad_y, q, k, v, band, saved),
                          {"grad_q": y, "grad_k": grad_k, "grad_v": grad_v, "grad_band": grad_band}))

    def call():
        for function, args, kwargs in steps:
            function(*args, **kwargs)

    return call, T * len(steps)


def measure(args, health):
    """Rows of nanoseconds a token; all lengths of a pass take turns."""
    tensors = Tensors(max(args.lengths), args.channels)
    for op in args.op:
        for pass_ in args.passes:
            calls = {T: call_of(tensors, op, pass_, T) for T in args.lengths}
            times = timing.race({T: call for T, (call, _) in calls.items()}, health, args.rounds)
            for T, samples in times.items():
                ns = [1e6 * ms / calls[T][1] for ms in samples]
                yield {"op": op, "pass": pass_, "T": T, "d": args.channels, "ns_per_token": statistics.median(ns),
                       "ns_min": min(ns), "ns_max": max(ns)}


def bars(rows):
    """For each operator and pass, of the medians and of the best: largest over smallest time per token from 64 Ki
    tokens on, and the dearest length up to 64 Ki over 1 Ki."""
    for op in OPS:
        for pass_ in PASSES:
            mine = [row for row in rows if (row["op"], row["pass"]) == (op, pass_)]
            result = {"op": op, "pass": pass_}
            for kind, key in (("median", "ns_per_token"), ("best", "ns_min")):
                at = {row["T"]: row[key] for row in mine}
                long = [ns for T, ns in at.items() if T >= FLAT]
                if len(long) > 1:
                    result[f"flat_{kind}"] = max(long) / min(long)
                if KI in at and FLAT in at:
                    result[f"growth_{kind}"] = max(ns for T, ns in at.items() if KI < T <= FLAT) / at[KI]
            if len(result) > 2:
                yield result


def plot(rows, png):
    colors = dict(zip(OPS, ("#0072b2", "#d55e00", "#009e73"), strict=True))
    script = [f"set terminal pngcairo size 800,480 noenhanced font 'sans,10'\nset output '{png}'",
              "set logscale x 2\nset logscale y\nset grid\nset key outside right center",
              "set xlabel 'tokens in the sequence'\nset ylabel 'nanoseconds a token'",
              "set xtics (" + ", ".join(f"'{T // KI} Ki' {T}" if T < KI * KI else f"'{T // KI // KI} Mi' {T}"
                                        for T in LENGTHS) + ")"]
    curves = []
    for op in OPS:
        for pass_ in PASSES:
            mine = [row for row in rows if (row["op"], row["pass"]) == (op, pass_)]
            if not mine:
                continue
            name = f"${op}_{pass_}"
            lines = "\n".join(f"{row['T']} {row['ns_per_token']} {row['ns_min']} {row['ns_max']}" for row in mine)
            script.append(f"{name} << EOD\n{lines}\nEOD")
            dash = 1 if pass_ == "forward" else 2
            curves.append(f"{name} using 1:2:3:4 with yerrorlines lw 1.5 pt 7 ps 0.6 dt {dash} "
                          f"lc rgb '{colors[op]}' title '{op} {pass_}'")
    low = min(row["ns_min"] for row in rows)
    high = max(row["ns_max"] for row in rows)
    script.append(f"set yrange [{low / 1.5}:{high * 1.5}]\nplot " + ", ".join(curves))
    subprocess.run(["gnuplot"], input="\n".join(script) + "\n", text=True, check=True)


def percent(ratio):
    return "" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="example: bench/scaling.py --json > scaling.jsonl && "
                                    "bench/scaling.py --read scaling.jsonl --plot docs/scaling.png")
    parser.add_argument("--op", nargs="+", choices=OPS, default=OPS, help="only these operators")
    parser.add_argument("--pass", nargs="+", choices=PASSES, default=PASSES, dest="passes", help="only these passes")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, metavar="T", help="default: 1024 to 1048576")
    parser.add_argument("--channels", type=int, default=256, help="d (default 256; 1 Mi tokens then take 8 GiB)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--json", action="store_true", help="one object a line: the machine, the rows, the bars")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves as PNG (needs gnuplot)")
    parser.add_argument("--read", nargs="+", metavar="FILE", help="measure nothing: rows of earlier --json runs")
    parser.add_argument("--library", default=ROOT / "build" / "lib" / "libaft_torch.so", type=pathlib.Path)
    args = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly

    def show(text, **values):
        print(json.dumps(values) if args.json else text, flush=True)

    if args.read:
        lines = [json.loads(line) for name in args.read for line in pathlib.Path(name).read_text().splitlines()]
        source = [line for line in lines if "ns_per_token" in line]
        if not source:
            parser.error("--read: no line with ns_per_token; give what `bench/scaling.py --json` wrote")
    else:
        if not args.library.exists():
            parser.error(f"{args.library} is missing: run `make build` first")
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        torch.ops.load_library(str(args.library))
        health = timing.Health()
        mm, copy = max(health.measure() for _ in range(3))
        machine = timing.machine(args.threads)
        show(f"{machine['cpu']}, {machine['simd']}, {args.threads} threads, torch {machine['torch']}; "
             f"torch.mm {mm:.0f} GFLOP/s, copy {copy:.1f} GB/s", machine={**machine, "mm_gflops": round(mm, 1),
                                                       "copy_gb_per_s": round(copy, 1)})
        source = measure(args, health)

    rows = []
    for row in source:
        rows.append(row)
        show(f"{row['op']:<7} {row['pass']:<8} T {row['T']:>8}  {row['ns_per_token']:>8.1f} ns a token  "
             f"({row['ns_min']:.1f} to {row['ns_max']:.1f})",
             **{key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    for bar in bars(rows):
        show(f"{bar['op']:<7} {bar['pass']:<8} 64 Ki to 1 Mi: {percent(bar.get('flat_median'))} (best "
             f"{percent(bar.get('flat_best'))}; bar +{100 * SPREAD:.0f} %)   dearest up to 64 Ki over 1 Ki: "
             f"{percent(bar.get('growth_median'))} (best {percent(bar.get('growth_best'))}; bar 0)", bar=bar)
    if args.plot:
        plot(rows, args.plot)
        print(f"plot: {args.plot}", file=sys.stderr)


if __name__ == "__main__":
    main()
