#!/usr/bin/env python3
"""Peak memory of every operator and pass on the CPU at B 1, T 65536, d 512, f32, each in a process of its own: inputs,
outputs, and what the operator takes beside them (workspace and what the forward saves). docs/benchmarks.md explains."""

import argparse
import json
import multiprocessing
import os
import pathlib
import signal
import time

import chosen_python  # noqa: F401  (goes on in the Python whose torch the build uses)

import torch

import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIB = 1 << 20
WINDOW, HEADS = 32, 4
FACTOR_CHANNELS = 64
KERNEL = 11  # conv2d's, one for each channel; the grid is square
CASES = [(op, causal) for op in ("simple", "local", "conv1d") for causal in (True, False)]
CASES += [("conv2d", False), ("full", True)]


def weights_of(op, causal, T, d):
    columns = WINDOW if causal else 2 * WINDOW - 1
    shapes = {"simple": [], "local": [(1, T, columns)], "conv1d": [(HEADS, columns)], "conv2d": [(d, KERNEL, KERNEL)],
              "full": [(T, FACTOR_CHANNELS), (T, FACTOR_CHANNELS)]}[op]
    return [0.1 * torch.randn(shape) for shape in shapes]


def passes_of(op, causal, q, k, v, weights, grid):
    """forward() -> (y, saved or None), as in training, and backward(grad_y, saved) -> gradients."""
    ops = torch.ops.aft
    if op == "full":
        def forward():
            return ops.full_forward(q, k, v, None, *weights, [], causal=causal)[:2]

        def backward(grad_y, saved):
            return ops.full_backward(grad_y, q, k, v, None, *weights, saved, causal=causal)
    elif op == "conv2d":
        def forward():
            return ops.conv2d(q, k, v, *weights, grid), None

        def backward(grad_y, _):
            return ops.conv2d_backward(grad_y, q, k, v, *weights, grid)
    else:
        band = weights[0] if weights else None

        def forward():
            return ops.window_forward(q, k, v, band, causal=causal)[:2]

        def backward(grad_y, saved):
            return ops.window_backward(grad_y, q, k, v, band, saved, causal=causal)
    return forward, backward


def size(tensors):
    return sum(x.numel() * x.element_size() for x in tensors if x is not None)


def resident(key):
    """VmRSS or VmHWM, the largest VmRSS since the last reset, in bytes."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key + ":"))


def reset_peak():
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")  # VmHWM starts anew


def run(op, causal, T, d, args):
    """The rows of one operator, forward and backward, as a training step calls them; in a process of its own."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.ops.load_library(str(args.library))

    def prepare(time_, side, channels):
        q, k, v, grad_y = (torch.randn(1, time_, channels) for _ in range(4))
        weights = weights_of(op, causal, time_, channels)
        return [q, k, v, *weights], grad_y, passes_of(op, causal, q, k, v, weights, [side, side])

    _, grad_y, (forward, backward) = prepare(64, 8, 64)
    backward(grad_y, forward()[1])  # threads and code are there before anything counts
    inputs, grad_y, (forward, backward) = prepare(T, round(T**0.5), d)
    rows = []

    def row(pass_, outputs, seconds):
        beside = resident("VmHWM") - before - size(outputs)
        rows.append({"op": op, "causal": causal, "pass": pass_, "T": T, "d": d, "inputs": size(inputs),
                     "outputs": size(outputs), "beside": beside, "saved": size([saved]),
                     "share": round(beside / size(inputs), 4), "seconds": round(seconds, 3)})

    before = resident("VmRSS")
    reset_peak()
    start = time.perf_counter()
    y, saved = forward()
    row("forward", [y], time.perf_counter() - start)
    del y
    reset_peak()
    start = time.perf_counter()
    grads = backward(grad_y, saved)
    # Counted from before the forward: what that saved, and the buffers that its threads keep, are there too.
    row("backward", grads, time.perf_counter() - start)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: bench/memory.py --op simple conv2d")
    names = list(dict.fromkeys(op for op, _ in CASES))
    parser.add_argument("--op", nargs="+", choices=names, help="only these operators")
    parser.add_argument("--time", type=int, default=65536, help="T, for conv2d a square (default 65536)")
    parser.add_argument("--channels", type=int, default=512, help="d (default 512)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--json", action="store_true", help="one object a line: the machine, then the rows, in bytes")
    parser.add_argument("--library", default=ROOT / "build" / "lib" / "libaft_torch.so", type=pathlib.Path)
    args = parser.parse_args()
    if not args.library.exists():
        parser.error(f"{args.library} is missing: run `make build` first")
    if round(args.time**0.5) ** 2 != args.time:
        parser.error(f"--time must be a square, the side of conv2d's grid squared, got {args.time}: 65536 is one")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    machine = timing.machine(args.threads)
    if args.json:
        print(json.dumps({"machine": machine}), flush=True)
    else:
        print(f"{machine['cpu']}, {machine['simd']}, {args.threads} threads, torch {machine['torch']}; MiB at B 1, "
              f"T {args.time}, d {args.channels}")
        print(f"{'operator':<20} {'pass':<8} {'inputs':>8} {'outputs':>8} {'workspace':>10} {'of it':>8} "
              f"{'share of':>9}")
        print(f"{'':<20} {'':<8} {'':>8} {'':>8} {'and saved':>10} {'saved':>8} {'inputs':>9} {'seconds':>9}")
    processes = multiprocessing.get_context("spawn")
    for op, causal in CASES:
        if args.op and op not in args.op:
            continue
        with processes.Pool(1) as pool:
            rows = pool.apply(run, (op, causal, args.time, args.channels, args))
        for row in rows:
            if args.json:
                print(json.dumps(row), flush=True)
                continue
            name = op + ("" if causal or op == "conv2d" else " (not causal)")
            print(f"{name:<20} {row['pass']:<8} {row['inputs'] / MIB:>8.1f} {row['outputs'] / MIB:>8.1f} "
                  f"{row['beside'] / MIB:>10.1f} {row['saved'] / MIB:>8.1f} {100 * row['share']:>7.1f} % "
                  f"{row['seconds']:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
