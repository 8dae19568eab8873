#!/usr/bin/env python3
"""Times every operator and pass on a CUDA device in bf16, causal, against PyTorch in the same process and against a
copy of the bytes that must move, and measures what memory training takes. bench/README.md says what is counted."""

import argparse
import datetime
import itertools
import json
import math
import pathlib
import shlex
import statistics
import subprocess
import sys
import time

import chosen_python  # noqa: F401  (goes on in the Python whose torch the build uses)

import torch
import torch._functorch.config
from torch.nn.attention import SDPBackend

import peers
import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent

SHAPES = [(128, 1024, 256), (64, 1024, 512), (32, 4096, 512), (48, 3072, 256), (8, 16384, 512)]  # B, T, d
LONGEST = (1, 1 << 20, 512)
LONGEST_FULL = 4096
IMAGES = (512, (14, 14), 384, 11)  # B, grid, d, kernel: one for each channel
WINDOW, HEADS = 32, 4
OPERATORS = ("simple", "local", "conv1d", "full", "conv2d")
ATTENTION = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
PASSES = ("forward", "backward")
DTYPE = torch.bfloat16


# ---- on the device


class Health:
    """A copy and two matrix products, the things that bound everything else: see timing.Health."""

    def __init__(self):
        self.products = {"bf16": self._square(8192, DTYPE), "f32": self._square(4096, torch.float32)}
        self.source, self.target = torch.zeros(2, 1 << 30, dtype=torch.uint8).unbind()
        self.best = [0.0, 0.0]

    @staticmethod
    def _square(side, dtype):
        return [torch.randn(side, side, dtype=dtype) for _ in range(3)]

    def rate(self, name):
        """TFLOP/s of torch.mm."""
        a, b, c = self.products[name]
        torch.mm(a, b, out=c)  # the first call of a type loads its kernels
        return 2 * a.size(0) ** 3 / sample(lambda: torch.mm(a, b, out=c)) / 1e9

    def measure(self):
        """(TFLOP/s of torch.mm in bf16, TB/s of a copy, read and written together)."""
        copy = 2 * self.source.numel() / sample(lambda: self.target.copy_(self.source)) / 1e9
        measured = self.rate("bf16"), copy
        self.best = [max(pair) for pair in zip(self.best, measured, strict=True)]
        return measured

    def share(self, measured):
        return min(now / best for now, best in zip(measured, self.best, strict=True))


def sample(call):
    """Milliseconds of a call on the device: the median of a few that are queued while the device sleeps, so that the
    host, which takes longer than a short kernel, is not timed. A long call is timed once."""
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    if first > 0.1:
        return 1e3 * first
    count = max(3, min(15, int(0.02 / first)))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    torch.cuda._sleep(int(1.5e9 * (2e-4 + 2 * host * count)))  # cycles
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(events))


def in_turns(make, size):
    """name -> call of make() over so many sets of tensors of `size` bytes each that none is in the cache when its turn
    comes."""
    sets = max(1, math.ceil(2 * torch.cuda.get_device_properties().L2_cache_size / size))
    made = [make() for _ in range(sets)]

    def turn(name):
        calls = itertools.cycle([one[name] for one in made])
        return lambda: next(calls)()

    return {name: turn(name) for name in made[0]}


def copy_of(moved):
    """A call that moves so many bytes, half read and half written."""
    source, target = torch.zeros(2, moved // 2, dtype=torch.uint8).unbind()
    return lambda: target.copy_(source)


class Operator:
    """One operator on tensors of its own: weights are float32, as autocast leaves them."""

    def __init__(self, op, B, T, d):
        self.op = op
        self.q, self.k, self.v, self.grad_y = (torch.randn(B, T, d, dtype=DTYPE) for _ in range(4))
        shape = {"simple": None, "local": (1, T, WINDOW), "conv1d": (HEADS, WINDOW), "full": (T, T),
                 "conv2d": (d, IMAGES[3], IMAGES[3])}[op]
        self.weights = [] if shape is None else [0.1 * torch.randn(shape)]

    def bytes_moved(self):
        """That must be read and written: forward, backward."""
        n, w = (sum(t.numel() * t.element_size() for t in tensors) for tensors in ([self.q], self.weights))
        return 4 * n + w, 7 * n + 2 * w

    def passes(self):
        ops, qkv, w = torch.ops.aft, (self.q, self.k, self.v), self.weights
        y = torch.zeros_like(self.q)
        grads = {f"grad_{name}": torch.zeros_like(t) for name, t in zip("qkv", qkv, strict=True)}
        grad_w = torch.zeros_like(w[0]) if w else None
        if self.op == "conv2d":
            return {"forward": lambda: ops.conv2d.out(*qkv, *w, IMAGES[1], out=y),
                    "backward": lambda: ops.conv2d_backward.out(self.grad_y, *qkv, *w, IMAGES[1], **grads,
                                                                grad_kernel=grad_w)}
        if self.op == "full":
            saved = ops.full_forward(*qkv, *w, None, None, [])[1]
            return {"forward": lambda: ops.full.out(*qkv, *w, out=y),
                    "backward": lambda: ops.full_backward.out(self.grad_y, *qkv, *w, None, None, saved, **grads,
                                                              grad_bias=grad_w, grad_u=None, grad_w=None)}
        band = w[0] if w else None
        saved = ops.window_forward(*qkv, band)[1]
        return {"forward": lambda: ops.window.out(*qkv, band, out=y),
                "backward": lambda: ops.window_backward.out(self.grad_y, *qkv, band, saved, **grads,
                                                            grad_band=grad_w)}

    def extra_memory(self):
        """What forward and backward take at their peak beside inputs, y and gradients, over q, k, v and y."""
        leaves = [t.detach().requires_grad_() for t in (self.q, self.k, self.v, *self.weights)]
        tensors = [*leaves[:3], *(w[0] if self.op == "local" else w for w in leaves[3:])]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        y = getattr(torch.ops.aft, self.op)(*tensors, *([IMAGES[1]] if self.op == "conv2d" else []))
        grads = torch.autograd.grad(y, leaves, self.grad_y)
        beside = sum(t.untyped_storage().nbytes() for t in (y, *grads))
        return (torch.cuda.max_memory_allocated() - before - beside) / (4 * self.q.numel() * self.q.element_size())


def multiply_adds(op, pass_, B, T, d):
    """T^2 B d of full, numerator and denominator of the causal half; twice that backward."""
    return T * T * B * d * (1 if pass_ == "forward" else 2) if op == "full" else None


def peers_of(B, T, d, compiled):
    """name -> function that makes the peer."""
    made = {"cumsum": lambda: peers.cumsum_simple(B, T, d, DTYPE)}
    if (B, T, d) == LONGEST:
        return made
    for (name, backend), width in itertools.product(ATTENTION.items(), (64, 128)):
        made[f"{name}_{width}"] = lambda b=backend, w=width: peers.sdpa(B, T, d, DTYPE, True, w, b)
    made["labml"] = lambda: peers.naive_full(B, T, d, DTYPE, True)
    if compiled:
        made["labml_compiled"] = lambda: peers.naive_full(B, T, d, DTYPE, True, compiled=True)
    return made


def try_peer(name, make, size):
    """Its calls, or none and a line that says why: a backend may not be there."""
    def passes():
        peer = make()
        return {f"{name} {pass_}": getattr(peer, pass_) for pass_ in PASSES}

    try:
        calls = in_turns(passes, size)
        for call in calls.values():
            call()
        torch.cuda.synchronize()
    except Exception as error:
        print(f"{name}: left out: {str(error).strip().splitlines()[0][:160]}", flush=True)
        return {}
    return calls


def run_shape(ops, B, T, d, health, args):
    """The rows of one shape, everything in turns."""
    calls, moved, memory = {}, {}, {}
    size = 4 * B * T * d * DTYPE.itemsize
    for op in ops:
        first = Operator(op, B, T, d)
        memory[op] = first.extra_memory()
        for pass_, count in zip(PASSES, first.bytes_moved(), strict=True):
            moved[op, pass_] = count
            calls[f"floor {count}"] = copy_of(count)
        made = in_turns(lambda op=op: Operator(op, B, T, d).passes(), size)
        calls |= {f"{op} {pass_}": call for pass_, call in made.items()}
    if ops == ["conv2d"]:
        wanted = {"conv2d_pair": lambda: peers.conv2d_pair(B, IMAGES[1], d, IMAGES[3], DTYPE)}
    else:
        wanted = peers_of(B, T, d, args.compile)
    for name, make in wanted.items():
        calls |= try_peer(name, make, size)
    times = timing.race(calls, health, args.rounds, sample=sample)
    floors = {name: statistics.median(ms) for name, ms in times.items() if name.startswith("floor ")}
    rows = []
    for name, ms in times.items():
        if name in floors:
            continue
        op, pass_ = name.rsplit(" ", 1)
        # A peer's is the smallest: that of q, k, v and y alone where simple is there.
        floor = floors[f"floor {moved.get((op, pass_), min(c for (_, p), c in moved.items() if p == pass_))}"]
        row = {"op": op, "pass": pass_, "peer": op not in ops, "B": B, "T": T, "d": d, "ms": statistics.median(ms),
               "ms_min": min(ms), "ms_max": max(ms), "floor_ms": floor, "floor_multiple": statistics.median(ms) / floor}
        if op in memory:
            row["extra_memory"] = memory[op]
        count = multiply_adds(op, pass_, B, T, d)
        if count:
            row["multiply_adds_per_s"] = 1e3 * count / row["ms"]
        rows.append(row)
    return rows


def machine():
    """What a figure must name."""
    card = torch.cuda.get_device_properties()
    ask = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
        driver, clock = answer.splitlines()[0].split(", ")
        # 128 lanes a multiprocessor, from sm_86 on and in sm_90; 64 in sm_80.
        lanes = 64 if (card.major, card.minor) == (8, 0) else 128
        peak = lanes * card.multi_processor_count * float(clock) * 1e6
    except (OSError, subprocess.CalledProcessError, ValueError, IndexError):
        driver, peak = "unknown", None
    return {"card": card.name, "driver": driver, "torch": torch.__version__, "f32_multiply_adds_per_s": peak,
            "date": datetime.datetime.now(datetime.UTC).strftime("%d %B %Y").lstrip("0"),
            "command": shlex.join(["bench/ops_cuda.py", *sys.argv[1:]])}


def measure(args):
    """Everything that was asked for, printed and written as it comes."""
    torch.set_default_device("cuda")
    torch.manual_seed(0)
    torch.ops.load_library(str(args.library))
    torch._functorch.config.donated_buffer = False  # the peers' graphs are kept
    health = Health()
    copy = max(health.measure()[1] for _ in range(3))
    results = {"machine": {**machine(), "copy_tb_per_s": copy, "bf16_tflops": health.rate("bf16"),
                           "f32_tflops": health.rate("f32")}, "rows": []}
    print(headline(results["machine"]), flush=True)
    shapes = [SHAPES[0]] if args.quick else [*SHAPES, LONGEST]
    groups = [([op for op in ("simple", "local", "conv1d", "full") if op in args.only
                and (op == "simple" or shape != LONGEST) and (op != "full" or shape[1] <= LONGEST_FULL)], shape)
              for shape in shapes]
    B, grid, d, _ = IMAGES
    groups.append(([op for op in ("conv2d",) if op in args.only], (B, math.prod(grid), d)))
    for ops, shape in groups:
        if not ops:
            continue
        torch._dynamo.reset()
        rows = run_shape(ops, *shape, health, args)
        results["rows"] += rows
        for row in rows:
            print(line_of(row, results["machine"]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        torch.cuda.empty_cache()


# ---- what is printed


def headline(m):
    lanes = m["f32_multiply_adds_per_s"]
    return (f"{m['card']}, driver {m['driver']}, PyTorch {m['torch']}, {m['date']}: "
            f"copy {m['copy_tb_per_s']:.2f} TB/s, torch.mm {m['bf16_tflops']:.0f} TFLOP/s in bf16, "
            f"{m['f32_tflops']:.1f} in f32"
            + (f", f32 lanes {lanes / 1e12:.1f} T multiply-adds/s" if lanes else "") + "\n" + m["command"])


def rate_of(row, m):
    """What the arithmetic of a row came to, or nothing."""
    if "multiply_adds_per_s" not in row:
        return ""
    rate, lanes = row["multiply_adds_per_s"], m["f32_multiply_adds_per_s"]
    return (f"{rate / 1e12:.1f} T multiply-adds/s, {2 * rate / 1e12 / m['f32_tflops']:.2f} of torch.mm in f32"
            + (f", {100 * rate / lanes:.0f} % of the f32 lanes" if lanes else ""))


def line_of(row, m):
    shape = f"{row['B']},{row['T']},{row['d']}"
    text = (f"{'  ' if row['peer'] else ''}{row['op']:<16} {row['pass']:<8} {shape:<15} {row['ms']:>9.3f} ms "
            f"({row['ms_min']:.3f}-{row['ms_max']:.3f}) {row['floor_multiple']:>7.2f} x the copy")
    if "extra_memory" in row and row["pass"] == "backward":
        text += f"   memory {100 * row['extra_memory']:.1f} %"
    rate = rate_of(row, m)
    return text + (f"   {rate}" if rate else "")


def table(columns, rows):
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]


def markdown(results):
    """The tables of docs/benchmarks.md from what --json wrote."""
    m, rows = results["machine"], results["rows"]
    by = {(row["op"], row["B"], row["T"], row["d"], row["pass"]): row for row in rows}
    shapes = list(dict.fromkeys((row["B"], row["T"], row["d"]) for row in rows))

    def pair(op, shape, key="ms", digits=3):
        both = [by.get((op, *shape, pass_)) for pass_ in PASSES]
        return "" if None in both else " / ".join(f"{row[key]:.{digits}f}" for row in both)

    ours = []
    for op, shape in itertools.product(OPERATORS, shapes):
        if pair(op, shape):
            row = by[op, *shape, "forward"]
            ours.append([op, "{}, {}, {}".format(*shape), pair(op, shape), pair(op, shape, "floor_multiple", 2),
                         f"{100 * row['extra_memory']:.1f} %", rate_of(row, m)])
    names = [name for name in ("cudnn_64", "cudnn_128", "flash_64", "flash_128", "labml", "labml_compiled", "cumsum",
                               "conv2d_pair") if any(row["op"] == name for row in rows)]
    titles = {"cudnn": "cuDNN attention, heads of ", "flash": "flash attention, heads of ", "labml": "labml AFT-full",
              "labml_compiled": "the same, compiled", "cumsum": "cumsum AFT-simple",
              "conv2d_pair": "two depth-wise convolutions"}
    heads = [titles[name] if name in titles else titles[name.split("_")[0]] + name.split("_")[1] for name in names]
    theirs = [["{}, {}, {}".format(*shape), *(pair(name, shape) for name in names)] for shape in shapes]
    return "\n".join([
        headline(m).replace("\n", "\n\n    "), "",
        *table(["operator", "B, T, d", "forward / backward, ms", "times the copy", "extra memory", "forward's rate"],
               ours), "",
        *table(["B, T, d", *heads], [cells for cells in theirs if any(cells[1:])])])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     epilog="example: bench/ops_cuda.py --only simple local --json ops.json; "
                                            "then bench/ops_cuda.py --markdown ops.json")
    parser.add_argument("--json", metavar="FILE", type=pathlib.Path, help="write what was measured there too")
    parser.add_argument("--only", nargs="+", choices=OPERATORS, default=OPERATORS, help="only these operators")
    parser.add_argument("--quick", action="store_true", help="one shape and the images, nothing compiled: two minutes")
    parser.add_argument("--rounds", type=int, help="rounds that count (default 5; --quick: 3)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out what torch.compile makes")
    parser.add_argument("--markdown", metavar="FILE", type=pathlib.Path,
                        help="measure nothing: print the tables of a file that --json wrote")
    parser.add_argument("--library", default=ROOT / "build" / "lib" / "libaft_torch.so", type=pathlib.Path)
    args = parser.parse_args()
    if args.markdown:
        print(markdown(json.loads(args.markdown.read_text(encoding="utf-8"))))
        return
    if not args.library.exists():
        parser.error(f"{args.library} is missing: build with the preset cuda first")
    if not torch.cuda.is_available():
        parser.error(f"PyTorch {torch.__version__} finds no CUDA device: run it where there is one")
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.compile = args.compile and not args.quick
    measure(args)


if __name__ == "__main__":
    main()
