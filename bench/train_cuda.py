#!/usr/bin/env python3
"""Training on a GPU by the built aft-train: whether the quickstart learns as well there and in bf16 as on the CPU
(seeds), and how fast, and in how much memory, a larger model trains with every mixer (speed). bench/README.md."""

import argparse
import collections
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIXERS = "aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"
SETUPS = "cpu f32", "cuda f32", "cuda bf16"
WARM_LINES = 2  # train lines until memory and caches are as they stay
MB = 1e6

# Kinds of kernels by what their names hold, the first that fits.
KINDS = (("aft operators", ("aft::",)), ("attention", ("flash", "fmha", "sdpa", "cudnn")),
         ("matrix products", ("gemm", "cutlass", "nvjet", "cublas", "splitk")),
         ("optimiser", ("adam", "normtwo")), ("layer norm", ("layer_norm", "layernorm")),
         ("loss", ("softmax", "nll_loss")), ("embedding", ("embedding", "indexselect", "gather_kernel")),
         ("sums", ("reduce_kernel",)), ("copies and casts", ("memcpy", "memset", "copy", "catarray")),
         ("elementwise", ("elementwise",)))


class Failed(Exception):
    """aft-train ended with an error; its text."""


def train(args, recipe, folder, sets, *options):
    """(outcome, train lines of the metrics) of a run in a new `folder`."""
    words = [str(args.program), "train", str(ROOT / "recipes" / recipe), "--json", *options]
    for item in [f"run.folder={folder}", *sets, *args.set]:
        words += ["--set", item]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}")
    lines = [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return json.loads(done.stdout), [line for line in lines if line["split"] == "train"]


def seeds(args):
    """Best validation of the quickstart; what the results file has is not run again."""
    file = pathlib.Path(args.results)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(row["setup"], row["seed"]): row for row in rows}
    for setup in args.on:
        device, precision = setup.split()
        for seed in args.seeds:
            if (setup, seed) in known:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                sets = [f"train.device={device}", f"train.precision={precision}", f"train.seed={seed}"]
                outcome, lines = train(args, "quickstart.toml", f"{scratch}/run", sets)
            row = {"setup": setup, "seed": seed, "bits": outcome["valid_bits_per_byte"],
                   "seconds": round(lines[-1]["seconds"], 1)}
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(row) + "\n")
            known[setup, seed] = row
            print(f"# {setup}, seed {seed}: {row['bits']:.4f} in {row['seconds']:.0f} s", file=sys.stderr, flush=True)
    print(f"{'':<10} {'bits per byte':<32} {'mean':>8} {'spread':>8} {'seconds':>8}")
    means, spreads = {}, {}
    for setup in SETUPS:
        done = [row for (name, _), row in sorted(known.items()) if name == setup]
        if not done:
            continue
        bits = [row["bits"] for row in done]
        means[setup], spreads[setup] = statistics.mean(bits), max(bits) - min(bits)
        print(f"{setup:<10} {'  '.join(f'{x:.4f}' for x in bits):<32} {means[setup]:>8.4f} {spreads[setup]:>8.4f} "
              f"{statistics.median(row['seconds'] for row in done):>8.0f}")
    if len(means) > 1:
        difference = max(means.values()) - min(means.values())
        print(f"largest difference of means {difference:.4f}; spreads of the seeds from {min(spreads.values()):.4f} "
              f"to {max(spreads.values()):.4f}")


def kind_of(name):
    low = name.lower()
    return next((kind for kind, parts in KINDS if any(part in low for part in parts)), "other")


def read_trace(path):
    """Kernel -> [calls, milliseconds], and the milliseconds from the first to the end of the last, of all steps."""
    events = json.loads(pathlib.Path(path).read_text())["traceEvents"]
    events = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    kernels = collections.defaultdict(lambda: [0, 0.0])
    for event in events:
        kernels[event["name"]][0] += 1
        kernels[event["name"]][1] += event["dur"] / 1e3
    if not events:
        raise Failed(f"{path} holds no kernels")
    span = max(event["ts"] + event["dur"] for event in events) - min(event["ts"] for event in events)
    return kernels, span / 1e3


def print_profile(mixer, trace, top):
    kernels, span = read_trace(trace)
    steps = 5  # that aft-train --profile records
    busy = sum(ms for _, ms in kernels.values())
    kinds = collections.Counter()
    for name, (_, ms) in kernels.items():
        kinds[kind_of(name)] += ms
    print(f"\n{mixer}: {span / steps:.2f} ms a step, kernels {busy / steps:.2f} ms in "
          f"{sum(calls for calls, _ in kernels.values()) / steps:.0f} calls")
    for kind, ms in kinds.most_common():
        print(f"  {kind:<18} {ms / steps:>8.3f} ms {100 * ms / busy:>6.1f} %")
    print("  the longest:")
    for name, (calls, ms) in sorted(kernels.items(), key=lambda item: -item[1][1])[:top]:
        print(f"  {ms / steps:>8.3f} ms {100 * ms / busy:>6.1f} % {calls / steps:>6.0f} x  {name[:90]}")


def speed(args):
    rows = []
    for mixer in args.mixers:
        batch = args.batch
        while True:
            with tempfile.TemporaryDirectory() as scratch:
                sets = [f"mixer.name={mixer}", f"train.batch={batch}"]
                try:
                    outcome, lines = train(args, "bench-byte-24x256.toml", f"{scratch}/run", sets)
                except Failed as failure:
                    if "out of memory" not in str(failure) or batch == 1:
                        raise
                    batch //= 2
                    continue
            break
        rates = [line["tokens_per_second"] for line in lines[WARM_LINES:]]
        rows.append({"mixer": mixer, "batch": batch, "tokens_per_second": statistics.median(rates),
                     "slowest": min(rates), "fastest": max(rates), "device_bytes": outcome.get("device_bytes")})
        row = rows[-1]
        print(f"{mixer:<12} batch {batch:>4}  {row['tokens_per_second'] / 1e3:>9.1f} k tokens/s "
              f"({row['slowest'] / 1e3:.1f} to {row['fastest'] / 1e3:.1f})  "
              f"{batch * 1024 / row['tokens_per_second'] * 1e3:>7.1f} ms a step  "
              f"{(row['device_bytes'] or 0) / 1e9:>6.1f} GB", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    for mixer in args.profile:
        with tempfile.TemporaryDirectory() as scratch:
            batch = next((row["batch"] for row in rows if row["mixer"] == mixer), args.batch)
            sets = [f"mixer.name={mixer}", f"train.batch={batch}", "train.steps=16", "train.log_every=16",
                    "train.warmup=0"]
            trace = pathlib.Path(args.traces or scratch) / f"{mixer}.json"
            train(args, "bench-byte-24x256.toml", f"{scratch}/run", sets, "--profile", str(trace))
            print_profile(mixer, trace, args.top)


def main():
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: bench/train_cuda.py speed --batch 64")
    parser.add_argument("--program", default=ROOT / "build" / "bin" / "aft-train", type=pathlib.Path)
    parser.add_argument("--set", default=[], action="append", metavar="KEY=VALUE", help="override a key of the recipe")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("seeds", help="the quickstart's validation by device, precision and seed")
    command.add_argument("--on", nargs="+", choices=SETUPS, default=SETUPS, help="default: all three")
    command.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    command.add_argument("--results", default="seeds.jsonl", help="one object a run, added to (default seeds.jsonl)")
    command.set_defaults(run=seeds)
    command = commands.add_parser("speed", help="tokens a second and memory of each mixer, and where the time goes")
    command.add_argument("--mixers", nargs="*", choices=MIXERS, default=MIXERS, help="default: all five")
    command.add_argument("--batch", type=int, default=128, help="halved until it fits (default 128)")
    command.add_argument("--profile", nargs="*", choices=MIXERS, default=["aft_local", "attention"])
    command.add_argument("--top", type=int, default=12, help="kernels listed in a profile (default 12)")
    command.add_argument("--traces", help="folder to keep the traces in (JSON for Perfetto)")
    command.add_argument("--json", type=pathlib.Path, metavar="FILE", help="the table also as a JSON file")
    command.set_defaults(run=speed)
    args = parser.parse_args()
    if not args.program.exists():
        parser.error(f"{args.program} is missing: run `make build` first")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    try:
        args.run(args)
    except Failed as failure:
        sys.exit(f"train_cuda.py: {failure}")


if __name__ == "__main__":
    main()
