#!/usr/bin/env python3
"""Times every operator and pass on the CPU against PyTorch in the same process and against a copy of the bytes that
must move. bench/README.md says what is counted and how."""

import argparse
import json
import math
import os
import pathlib
import signal
import statistics

import chosen_python  # noqa: F401  (goes on in the Python whose torch the build uses)

import torch

import peers
import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent

# B, T, d: those of the published comparison, then one of 32 MiB a tensor.
SHAPES = [(4, 1024, 256), (2, 2048, 512), (1, 4096, 512), (1, 16384, 256), (8, 2048, 512)]
# B, grid, d and the kernels of conv2d: the paper's image classifier, a kernel per channel.
IMAGES = (32, (14, 14), 384, (11, 15))
TWO_LONG = (2, 8192, 256)  # the bytes of 1,16384,256, as 2,2048,512 has those of 1,4096,512: one sequence beside two
WINDOW = 32
HEADS = {"conv1d": 4}
BIAS = {"local": "table", "conv1d": "kernel", "conv2d": "kernel", "full": "table"}
FACTOR_CHANNELS = 64  # width of u and v, the factors of the weights
LONGEST_DENSE = 8192  # naive AFT-full needs several matrices [T, T]
MM_SIDE = 1024  # of the matrices that torch.mm, the measure of arithmetic, multiplies


def copy_of(moved, dtype):
    """A call that moves `moved` elements, half read and half written, in memory that has been written."""
    source = torch.ones(4, max(1, moved // 4), dtype=dtype)
    target = torch.zeros_like(source)
    return lambda: target[:2].copy_(source[:2])


def matrix_product(dtype):
    a, b, c = (torch.randn(MM_SIDE, MM_SIDE, dtype=dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=c)


class Case:
    """One row of the table: an operator and pass at one shape."""

    def __init__(self, op, pass_, B, T, d, causal=True, dtype="f32", key_std=1.0, grid=None, kernel=None,
                 bias=None):
        self.op, self.pass_, self.B, self.T, self.d = op, pass_, B, T, d
        self.causal, self.dtype, self.key_std = causal, dtype, key_std
        self.s = kernel or (0 if op in ("simple", "full") else WINDOW)
        self.bias = bias or BIAS.get(op)
        self.grid = grid
        self.heads = d if op == "conv2d" else HEADS.get(op, 1)
        self.torch_dtype = {"f32": torch.float32, "f64": torch.float64}[dtype]

    def build(self):
        """Sets self.call, self.moved (elements that must move) and self.peers (name -> call)."""
        self.peers = {}
        if self.op == "local_bias":
            self._build_local_bias()
        elif self.op == "conv2d":
            self._build_conv2d()
        elif self.op == "full":
            self._build_full()
        else:
            self._build_window(self.key_std)
            self._build_peers()

    def _randn(self, *shape):
        return torch.randn(*shape, dtype=self.torch_dtype)

    def _band(self):
        """Weights as trained ones look: a few tenths, entries before the sequence unused. conv1d: a row a head."""
        columns = self.s if self.causal else 2 * self.s - 1
        return 0.1 * (self._randn(self.heads, columns) if self.op == "conv1d" else self._randn(1, self.T, columns))

    def _multiply_adds(self):
        """Of the window or the factors; what all operators do once an element is left out."""
        columns = self.s if self.causal else max(0, 2 * self.s - 1)
        if self.op == "local_bias":
            return self.T * self.s * self.d * (1 if self.pass_ == "forward" else 2)
        if self.op == "conv2d":  # pairs of a target and a source of its kernel in the grid
            reach = self.s // 2
            pairs = math.prod(sum(min(n - 1, t + reach) - max(0, t - reach) + 1 for t in range(n)) for n in self.grid)
            return self.B * self.d * pairs * (2 if self.pass_ == "forward" else 6)
        if self.op == "full":  # of the pairs that are seen
            return self.B * self.d * self.T**2 * (1 if self.causal else 2) * (1 if self.pass_ == "forward" else 2)
        return self.B * self.T * self.d * columns * (2 if self.pass_ == "forward" else 6)

    def mm_share(self):
        """The share of torch.mm's rate at which the bound takes the multiply-adds."""
        return 0.4 if (self.op, self.pass_) == ("conv2d", "forward") else 0.6

    def _window_call(self, key_std):
        ops = torch.ops.aft
        q, k, v, grad_y = (self._randn(self.B, self.T, self.d) for _ in range(4))
        k *= key_std
        y, grad_q, grad_k, grad_v = (torch.zeros_like(q) for _ in range(4))
        n = q.numel()
        if self.op == "simple":
            if self.pass_ == "forward":
                return lambda: ops.window.out(q, k, v, causal=self.causal, out=y), 4 * n
            saved = ops.window_forward(q, k, v, causal=self.causal)[1]
            return (lambda: ops.window_backward.out(grad_y, q, k, v, None, saved, causal=self.causal, grad_q=grad_q,
                                                    grad_k=grad_k, grad_v=grad_v, grad_band=None)), 7 * n
        band = self._band()
        if self.pass_ == "forward":
            return lambda: ops.window.out(q, k, v, band, causal=self.causal, out=y), 4 * n + band.numel()
        saved = ops.window_forward(q, k, v, band, causal=self.causal)[1]
        grad_band = torch.zeros_like(band)
        return (lambda: ops.window_backward.out(grad_y, q, k, v, band, saved, causal=self.causal, grad_q=grad_q,
                                               grad_k=grad_k, grad_v=grad_v, grad_band=grad_band)), \
            7 * n + 2 * band.numel()

    def _build_window(self, key_std):
        self.call, self.moved = self._window_call(key_std)
        if key_std != 1.0:
            self.peers["normal"] = self._window_call(1.0)[0]

    def _build_peers(self):
        if self.key_std != 1.0:
            return
        shape = self.B, self.T, self.d, self.torch_dtype
        entrants = {}
        if self.T <= LONGEST_DENSE:
            entrants["naive_full"] = peers.naive_full(*shape, self.causal)
        if self.causal:
            entrants["cumsum_simple"] = peers.cumsum_simple(*shape)
        entrants["sdpa"] = peers.sdpa(*shape, self.causal)
        self.peers = {name: getattr(peer, self.pass_) for name, peer in entrants.items()}

    def _build_local_bias(self):
        left = WINDOW - 1
        u, v, grad_u, grad_v = (self._randn(1, self.T, FACTOR_CHANNELS) for _ in range(4))
        band, grad_band = (self._randn(1, self.T, WINDOW) for _ in range(2))
        if self.pass_ == "forward":
            self.call = lambda: torch.ops.aft.local_bias.out(u, v, left, out=band)
            self.moved = 2 * u.numel() + band.numel()
        else:
            self.call = lambda: torch.ops.aft.local_bias_backward.out(grad_band, u, v, left, grad_u=grad_u,
                                                                      grad_v=grad_v)
            self.moved = 4 * u.numel() + band.numel()

    def _build_conv2d(self):
        ops = torch.ops.aft
        q, k, v, grad_y = (self._randn(self.B, self.T, self.d) for _ in range(4))
        kernel = 0.1 * self._randn(self.heads, self.s, self.s)
        y, grad_q, grad_k, grad_v, grad_kernel = (torch.zeros_like(x) for x in (q, q, k, v, kernel))
        if self.pass_ == "forward":
            self.call = lambda: ops.conv2d.out(q, k, v, kernel, self.grid, out=y)
            self.moved = 4 * q.numel() + kernel.numel()
        else:
            self.call = lambda: ops.conv2d_backward.out(grad_y, q, k, v, kernel, self.grid, grad_q=grad_q,
                                                        grad_k=grad_k, grad_v=grad_v, grad_kernel=grad_kernel)
            self.moved = 7 * q.numel() + 2 * kernel.numel()
        peer = peers.conv2d_pair(self.B, self.grid, self.d, self.s, self.torch_dtype)
        self.peers = {"conv2d_pair": getattr(peer, self.pass_)}

    def _full_call(self, key_std):
        ops = torch.ops.aft
        q, k, v, grad_y = (self._randn(self.B, self.T, self.d) for _ in range(4))
        k *= key_std
        if self.bias == "factors":
            u, w = (0.1 * self._randn(self.T, FACTOR_CHANNELS) for _ in range(2))
            weights = None, u, w
            size = 2 * u.numel()
        else:
            weights = 0.1 * self._randn(self.T, self.T), None, None
            size = self.T**2
        if self.pass_ == "forward":
            y = torch.zeros_like(q)
            return lambda: ops.full.out(q, k, v, *weights, causal=self.causal, out=y), 4 * q.numel() + size
        saved = ops.full_forward(q, k, v, *weights, [], causal=self.causal)[1]
        inputs = zip(("q", "k", "v", "bias", "u", "w"), (q, k, v, *weights), strict=True)
        grads = {"grad_" + name: None if x is None else torch.zeros_like(x) for name, x in inputs}
        return (lambda: ops.full_backward.out(grad_y, q, k, v, *weights, saved, causal=self.causal, **grads)), \
            7 * q.numel() + 2 * size

    def _build_full(self):
        self.call, self.moved = self._full_call(self.key_std)
        if self.key_std != 1.0:
            self.peers["normal"] = self._full_call(1.0)[0]
        elif self.bias == "factors":
            self.bias = "table"
            self.peers["table"] = self._full_call(1.0)[0]
            self.bias = "factors"
        else:
            self._build_peers()

    def run(self, health, rounds):
        """The row as an object of the --json output."""
        self.build()
        before = torch.ops.aft.redo_count()
        self.call()
        redone, total = (now - then for now, then in zip(torch.ops.aft.redo_count(), before, strict=True))
        times = timing.race({"op": self.call, "floor": copy_of(self.moved, self.torch_dtype),
                             "mm": matrix_product(self.torch_dtype), **self.peers}, health, rounds)
        ms, floor, mm = (statistics.median(times[name]) for name in ("op", "floor", "mm"))
        arithmetic = mm * self._multiply_adds() / MM_SIDE**3
        row = {"op": self.op, "pass": self.pass_, "B": self.B, "T": self.T, "d": self.d, "s": self.s,
               "heads": self.heads, "bias": self.bias, "grid": self.grid,
               "causal": self.causal, "dtype": self.dtype, "threads": torch.get_num_threads(), "ms": ms,
               "ms_min": min(times["op"]), "ms_max": max(times["op"]), "floor_ms": floor, "floor_multiple": ms / floor,
               "gflops": 2 * self._multiply_adds() / ms / 1e6, "mm_gflops": 2 * MM_SIDE**3 / mm / 1e6,
               "bound_multiple": ms / (floor + arithmetic / self.mm_share()),
               "gb_per_s": self.moved * torch.finfo(self.torch_dtype).bits / 8 / ms / 1e6,
               "redone_share": redone / total if total else 0.0, "key_std": self.key_std,
               "peers": {name: statistics.median(times[name]) for name in self.peers if name != "normal"}}
        if "normal" in self.peers:
            row["normal_ms"] = statistics.median(times["normal"])
        del self.call, self.peers  # and with them their tensors
        return row


def all_cases():
    passes = ("forward", "backward")
    cases = [Case(op, p, *shape) for shape in SHAPES for op in ("simple", "local", "conv1d") for p in passes]
    cases += [Case("local_bias", p, 1, T, FACTOR_CHANNELS) for T in sorted({T for _, T, _ in SHAPES}) for p in passes]
    cases += [Case(op, p, *SHAPES[0], causal=False) for op in ("simple", "local", "conv1d") for p in passes]
    # simple as it is split by channels (one sequence) and by sequences, and not causal beside causal.
    cases += [Case("simple", p, *TWO_LONG) for p in passes]
    cases += [Case("simple", p, *shape, causal=False) for shape in (*SHAPES[1:], TWO_LONG) for p in passes]
    cases += [Case(op, p, *SHAPES[0], dtype="f64") for op in ("simple", "local") for p in passes]
    cases += [Case("full", p, *shape) for shape in SHAPES[:4] for p in passes]
    cases += [Case("full", p, *SHAPES[0], causal=False) for p in passes]
    cases += [Case("full", p, *SHAPES[0], bias="factors") for p in passes]
    cases += [Case("full", p, *SHAPES[0], key_std=30.0) for p in passes]
    B, grid, d, kernels = IMAGES
    cases += [Case("conv2d", p, B, math.prod(grid), d, causal=False, grid=grid, kernel=s)
              for s in kernels for p in passes]
    # Keys so spread that the fast path's certificate fails and rows are redone.
    cases += [Case("local", p, *shape, key_std=30.0) for shape in (SHAPES[0], SHAPES[4]) for p in passes]
    return cases


def print_row(row):
    name = row["op"] + ("" if row["causal"] or row["grid"] else " (not causal)")
    name += " f64" if row["dtype"] == "f64" else ""
    shape = f"{row['B']},{row['T']},{row['d']}" + (f" s={row['s']}" if row["s"] else "")
    ratios = {name: ms / row["ms"] for name, ms in row["peers"].items()}
    columns = [f"{ratios[p]:>8.1f}x" if p in ratios else f"{'':>9}" for p in ("naive_full", "cumsum_simple", "sdpa")]
    line = (f"{name:<20} {row['pass']:<8} {shape:<17} {row['ms']:>9.3f} {row['ms_min']:>9.3f}-{row['ms_max']:<9.3f}"
            f"{columns[0]} {columns[1]} {columns[2]} {row['gb_per_s']:>7.1f} {row['floor_multiple']:>6.2f}x")
    if "conv2d_pair" in ratios:
        line += f"   {ratios['conv2d_pair']:.1f} x as fast as the pair of convolutions, {row['gflops']:.0f} GFLOP/s"
    if row["op"] == "full":
        line += f"   {row['gflops']:.0f} GFLOP/s, {row['gflops'] / row['mm_gflops']:.2f} x torch.mm's"
    if row["s"]:
        line += f"   {row['bound_multiple']:.2f} x the bound"
    if "table" in ratios:
        line += f", {1 / ratios['table']:.2f} x the time of a table"
    if "normal_ms" in row:
        line += (f"   keys N(0, {row['key_std']:g}^2): {row['ms'] / row['normal_ms']:.2f} x its normal time, "
                 f"{100 * row['redone_share']:.0f} % redone")
    print(line, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     epilog="example: bench/ops_cpu.py --op local --shape 4,1024,256")
    parser.add_argument("--json", action="store_true", help="one object a line: the machine's health, then the rows")
    parser.add_argument("--op", choices=("simple", "local", "conv1d", "conv2d", "full", "local_bias"),
                        help="only this operator")
    parser.add_argument("--shape", metavar="B,T,d", help="only this shape of the list")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count for a row (default 7)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all")
    parser.add_argument("--library", default=ROOT / "build" / "lib" / "libaft_torch.so", type=pathlib.Path)
    args = parser.parse_args()
    if not args.library.exists():
        parser.error(f"{args.library} is missing: run `make build` first")
    cases = [case for case in all_cases() if args.op in (None, case.op)
             and args.shape in (None, f"{case.B},{case.T},{case.d}")]
    if not cases:
        shapes = " ".join(",".join(map(str, shape)) for shape in (*SHAPES, TWO_LONG))
        parser.error(f"--shape {args.shape} is none of: {shapes}")

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it quietly
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.ops.load_library(str(args.library))
    health = timing.Health()
    mm, copy = max(health.measure() for _ in range(3))
    line = {"mm_gflops": round(mm, 1), "copy_gb_per_s": round(copy, 1), **timing.machine(args.threads)}
    if args.json:
        print(json.dumps({"health": line}), flush=True)
    else:
        print(f"health: torch.mm {mm:.0f} GFLOP/s, copy {copy:.1f} GB/s; {line['cpu']}, {line['simd']}, "
              f"{args.threads} threads, torch {torch.__version__}")
        print(f"{'':<20} {'':<8} {'':<17} {'median':>9} {'':<19}  times as fast as           {'':>12}{'of the':>7}")
        print(f"{'operator':<20} {'pass':<8} {'B,T,d':<17} {'ms':>9} {'min-max':^19}{'naive':>9} {'cumsum':>9} "
              f"{'sdpa':>9} {'GB/s':>7} {'floor':>7}")
    for case in cases:
        row = case.run(health, args.rounds)
        if args.json:
            print(json.dumps({key: round(value, 5) if isinstance(value, float) else value
                              for key, value in row.items()}), flush=True)
        else:
            print_row(row)


if __name__ == "__main__":
    main()
