"""The rows that scripts/same-bits compares, `all_cases`, and `run`, which gives a row's outputs. Every number is a
function of the row's name alone."""

import dataclasses
import itertools
import random
import zlib

import torch

DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}
STATE_NAMES = ("position", "max", "den", "num", "ring_key", "ring_value")
WEIGHT_NAMES = {"simple": [], "local": ["bias"], "conv1d": ["kernel"], "conv2d": ["kernel"], "full": ["bias", "u", "w"]}
DIFFERENTIABLE = slice(2, 6)  # of a state
PAIRS = "pairs redone, pairs in all"  # an output of every row


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. `numbers` is a class of key_values and weight_values, `weights` how these lie in memory (`full`: what
    they are), `extra` the rows and columns of a table beyond what a call uses."""

    op: str
    mode: str = "whole"  # whole: forward and gradients; chunks: with states, and gradients; steps
    batch: int = 2
    time: int = 65
    targets: int | None = None  # not causal: where the targets are not the sources
    channels: int = 24
    heads: int = 1
    head_key: bool = False
    columns: int = 0  # J, s, or the width of factors
    grid: tuple | None = None
    causal: bool = True
    gate: str = "sigmoid"
    dtype: str = "f32"
    weights_dtype: str = "own"
    numbers: str = "normal"
    weights: str = "plain"
    frozen: bool = False  # no gradient of the weights
    extra: int = 0
    mask: str = "none"
    packed: bool = False
    state: str = "neutral"
    layout: str = "plain"
    threads: int = 1
    simd: str = "best"
    seed: int = 0

    @property
    def name(self):
        words = [self.op, self.mode, "causal" if self.causal else "not-causal", self.dtype, self.numbers, self.gate]
        words += [f"B{self.batch}", f"T{self.time}" if self.grid is None else f"T{self.grid[0]}x{self.grid[1]}"]
        words += [] if self.targets is None else [f"Tq{self.targets}"]
        words += [f"d{self.channels}", f"H{self.heads}"] + ["head-key"] * self.head_key
        words += [f"{'s' if self.grid else 'J'}{self.columns}"] * (self.op != "simple")
        words += [f"weights-{self.weights}"] * (self.weights != "plain")
        words += ["weights-f32"] * (self.weights_dtype == "f32")
        words += ["frozen"] * self.frozen + [f"extra{self.extra}"] * (self.extra > 0)
        words += [f"mask-{self.mask}"] * (self.mask != "none") + ["packed"] * self.packed
        words += [f"state-{self.state}"] * (self.mode != "whole")
        words += [f"layout-{self.layout}"] * (self.layout != "plain")
        return " ".join([*words, f"threads{self.threads}", self.simd, f"seed{self.seed}"])


NUMBERS = ("normal", "wide", "offset", "large_keys", "large_weights", "large_both", "equal", "apart", "apart_large",
           "tiny", "absent", "falling", "falling_steep", "rising", "rising_steep", "not_finite")
COMMON = {
    "batch": (0, 1, 2, 3, 5), "channels": (0, 1, 3, 5, 8, 12, 17, 24, 33, 48, 64, 100, 130),
    "heads": (1, 2, 3, 4, 8, -1),  # -1: one for each channel
    "head_key": (False, True), "causal": (True, False), "gate": ("sigmoid", "relu", "none"), "dtype": tuple(DTYPES),
    "weights_dtype": ("own", "f32"), "numbers": NUMBERS, "frozen": (False, True), "extra": (0, 3),
    "mask": ("none", "random", "first", "row"),
    "layout": ("plain", "qkv", "inside", "time_first", "channels_first", "expanded"), "threads": (1, 2),
    "simd": ("best", "avx2", "scalar"), "packed": (False, True), "state": ("neutral", "moved"),
}
WINDOW = {**COMMON, "time": (0, 1, 2, 3, 5, 7, 31, 63, 64, 65, 97, 128, 129, 193, 256, 257, 300, 521),
          "columns": (0, 1, 2, 3, 4, 5, 8, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 193, 257, 300)}
AXES = {
    "simple": {**WINDOW, "columns": (0,), "targets": (None, None, 0, 1, 3, 70, 300),
               "channels": (*COMMON["channels"], 257)},
    "local": {**WINDOW, "weights": ("plain", "flat", "view", "expanded")},
    "conv1d": {**WINDOW, "weights": ("plain", "view")},
    "conv2d": {**COMMON, "causal": (False,), "packed": (False,), "weights": ("plain", "view"),
               "columns": (1, 3, 5, 7, 9, 11, 15, 21, 31),
               "grid": ((0, 3), (1, 1), (1, 7), (7, 1), (3, 4), (4, 3), (5, 9), (14, 14), (13, 17), (2, 50), (33, 6))},
    "full": {**COMMON, "time": (0, 1, 2, 5, 7, 12, 13, 31, 64, 65, 97, 191, 192, 193, 200, 257, 385, 400),
             "targets": (None, None, 0, 1, 12, 70, 193, 300), "columns": (0, 1, 3, 8, 16, 21, 64),
             "weights": ("plain", "heads", "rows", "rows_and_heads", "one_row", "view", "expanded", "transposed",
                         "factors", "factors_heads")},
}
# Drawn more often than others: numbers on which most of the code runs.
USUAL = {"numbers": "normal", "simd": "best", "mask": "none", "dtype": "f32", "packed": False, "layout": "plain",
         "frozen": False}


def drawn(draw, op, mode, **fixed):
    """A case whose parameters are `fixed` or else drawn from their axes, and are then made to fit each other."""
    p = {}
    for axis, values in AXES[op].items():
        usual = axis in USUAL and USUAL[axis] in values and draw.random() < 0.4
        p[axis] = USUAL[axis] if usual else draw.choice(values)
    p |= fixed
    if mode != "whole":
        p |= {"causal": True, "targets": None}
    if mode == "steps":
        p |= {"mask": "none", "packed": False, "frozen": False, "time": max(1, min(40, p["time"])), "threads": 1}
    if op == "full" and (mode != "whole" or p["weights"] in ("rows", "rows_and_heads")):
        p["packed"] = False
    if p["packed"] or p["causal"] or (op == "simple" and p["gate"] == "none"):
        p["targets"] = None
    if op == "full" and p["gate"] == "none" and not p["causal"]:
        p["extra"] = 0  # the rows of the weights say how many targets there are
    if op in ("local", "conv1d") and not p["causal"]:
        p["columns"] |= 1
    if op == "conv2d":
        p["time"] = p["grid"][0] * p["grid"][1]
    if p["simd"] == "scalar":  # slow
        p["time"] = p["time"] if op == "conv2d" else min(p["time"], 97)
        p["columns"] = p["columns"] if op in ("local", "conv1d") else min(p["columns"], 11)
        p["channels"] = min(p["channels"], 33)
    if p["dtype"] in ("f32", "f64"):
        p["weights_dtype"] = "own"
    heads = p["heads"] if p["heads"] > 0 else max(1, p["channels"])
    p |= {"heads": heads, "channels": -(-p["channels"] // heads) * heads}
    p["head_key"] = p["head_key"] and p["channels"] > 0
    if op == "local" and p["weights"] == "flat" and heads > 1:
        p["weights"] = "plain"
    return Case(op, mode, **p)


def listed():
    """Shapes that are cut into many chunks, stripes and tasks, each with one thread and with two."""
    shapes = []
    for causal, dtype in itertools.product((True, False), ("f32", "f64", "bf16")):
        form = {"causal": causal, "dtype": dtype}
        shapes += [Case("simple", batch=1, time=4099, channels=257, **form),
                   Case("simple", batch=5, time=2053, channels=96, heads=3, head_key=True, **form),
                   Case("local", batch=1, time=4099, channels=130, columns=33, **form),
                   Case("local", batch=9, time=1031, channels=40, heads=2, columns=7,
                        weights_dtype="f32" if dtype == "bf16" else "own", **form),
                   Case("conv1d", batch=3, time=2053, channels=192, heads=4, columns=33, **form),
                   Case("conv1d", batch=1, time=1999, channels=64, heads=2, head_key=True, columns=301, **form),
                   Case("full", batch=3, time=1021, channels=70, **form),
                   Case("full", batch=2, time=777, channels=64, heads=2, head_key=True, columns=16,
                        weights="factors_heads", **form)]
    for dtype in ("f32", "f64", "bf16"):
        form = {"dtype": dtype, "causal": False}
        shapes += [Case("conv2d", batch=17, time=196, grid=(14, 14), channels=192, heads=192, columns=11, **form),
                   Case("conv2d", batch=2, time=41 * 37, grid=(41, 37), channels=48, heads=3, columns=15, **form)]
    # Outputs that are written past the caches.
    shapes += [Case("simple", batch=8, time=2048, channels=256, causal=causal) for causal in (True, False)]
    shapes += [Case("local", time=2048, channels=256, columns=32, layout=layout) for layout in ("plain", "qkv")]
    shapes += [Case("full", batch=4, time=1024, channels=256)]
    for numbers in ("wide", "falling_steep", "apart_large"):
        shapes += [Case("simple", batch=2, time=3001, channels=64, numbers=numbers),
                   Case("local", batch=2, time=1501, channels=64, columns=33, numbers=numbers),
                   Case("local", batch=2, time=1501, channels=64, columns=33, numbers=numbers, causal=False),
                   Case("conv2d", batch=3, time=196, grid=(14, 14), channels=32, heads=4, columns=11, numbers=numbers,
                        causal=False),
                   Case("full", batch=2, time=600, channels=40, numbers=numbers)]
    for op in ("simple", "local", "conv1d"):
        shapes += [Case(op, "chunks", batch=2, time=3001, channels=64, columns=0 if op == "simple" else 65),
                   Case(op, batch=40, time=4000, channels=48, columns=0 if op == "simple" else 17, packed=True,
                        mask="random"),
                   Case(op, "steps", batch=3, time=700, channels=24, columns=0 if op == "simple" else 300)]
    shapes += [Case("full", "chunks", batch=2, time=901, channels=40), Case("full", "steps", batch=2, time=200),
               Case("full", batch=20, time=2000, channels=32, packed=True, mask="random")]
    return [dataclasses.replace(case, threads=threads) for case in shapes for threads in (1, 2)]


def all_cases(draws):
    """Every value of every axis with the rest drawn, `draws` times; then what is listed."""
    cases = []
    for op, axes in AXES.items():
        for mode in ("whole",) if op == "conv2d" else ("whole", "chunks", "steps"):
            draw = random.Random(f"{op} {mode}")
            for axis, values in axes.items():
                for value in dict.fromkeys(values):
                    cases += [dataclasses.replace(drawn(draw, op, mode, **{axis: value}), seed=len(cases) + i)
                              for i in range(draws if mode == "whole" else -(-draws // 3))]
    cases += listed()
    for dtype, sizes in itertools.product(("f32", "f64"), ((1, 1, 0), (5, 3, 2), (65, 17, 8), (700, 64, 31))):
        rows, width, left = sizes
        cases += [Case("local_bias", batch=right, time=rows, channels=width, columns=left, heads=heads, dtype=dtype)
                  for heads, right in itertools.product((1, 3), sorted({0, left}))]
    cases += [Case(op, causal=causal, dtype=dtype, time=9, channels=6, heads=3, columns=3, grid=(3, 3))
              for op in ("reference", "initial_state", "weights") for causal in (True, False) for dtype in DTYPES]
    return cases



def is_peak(position):
    return position % 5 == 2


def size_of(numbers):
    return 65504.0 if "large" in numbers else 200.0


def key_values(numbers, position, normal, uniform):
    """Keys of a class, shaped as `normal`; `position` spreads over it."""
    x, sign = size_of(numbers), torch.where(uniform < 0.5, -1.0, 1.0).double()
    if numbers in ("falling", "falling_steep", "rising", "rising_steep"):
        step = (300 if "steep" in numbers else 7) * (1 if "rising" in numbers else -1)
        return (normal + step * (position - 100)).clamp(-65504, 65504)
    if numbers == "absent":
        hidden = uniform < 0.3
        hidden[..., :1] = True  # a channel without a source
        return normal.masked_fill(hidden, -torch.inf)
    if numbers == "not_finite":
        return normal.masked_fill(uniform < 0.01, torch.nan).masked_fill(uniform > 0.995, torch.inf)
    if numbers in ("apart", "apart_large"):
        return torch.where(is_peak(position), x, normal)
    if numbers == "tiny":
        return torch.where(is_peak(position), 38.8 + 3.5 * uniform, 0.2 * normal)
    return {"wide": 30 * normal, "offset": 1e4 + normal, "large_keys": x * sign, "large_both": x * sign,
            "equal": torch.full_like(normal, 3.0)}.get(numbers, normal)


def weight_values(numbers, source, normal, uniform):
    """Weights of a class; `source` is where the sources lie."""
    x, sign = size_of(numbers), torch.where(uniform < 0.5, -1.0, 1.0).double()
    if numbers == "absent":
        return normal.masked_fill(uniform < 0.2, -torch.inf)
    if numbers in ("apart", "apart_large"):
        return torch.where(is_peak(source), -min(2 * x, 65504.0), normal)
    if numbers == "tiny":
        return torch.where(is_peak(source), -1e4, 0.2 * normal)
    return {"wide": 30 * normal, "large_weights": x * sign, "large_both": x * sign,
            "equal": torch.full_like(normal, -2.0)}.get(numbers, 0.5 * normal)


class Numbers:
    """Random tensors of a case, the same in every process."""

    def __init__(self, case):
        self.case = case
        self.generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
        self.dtype = DTYPES[case.dtype]
        self.sum_dtype = torch.float64 if case.dtype == "f64" else torch.float32
        self.weights_dtype = torch.float32 if case.weights_dtype == "f32" else self.dtype

    def normal(self, *shape, dtype=torch.float64):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def uniform(self, *shape):
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def integers(self, low, high, *shape):
        return torch.randint(low, high, shape, generator=self.generator)

    def values(self, *shape):
        """Of v, or a gradient of y."""
        x = self.normal(*shape)
        if self.case.numbers == "tiny" and self.case.dtype in ("f32", "f64"):
            x *= 2.0**-120 if self.case.dtype == "f32" else 2.0**-1000
        if self.case.numbers == "not_finite":
            x = x.masked_fill(self.uniform(*shape) < 0.005, torch.nan)
        return x.to(self.dtype)

    def keys(self, *shape):
        position = torch.arange(shape[1]).view(-1, 1)
        return key_values(self.case.numbers, position, self.normal(*shape), self.uniform(*shape)).to(self.dtype)

    def weights(self, source, *shape):
        x = weight_values(self.case.numbers, source, self.normal(*shape), self.uniform(*shape))
        return x.to(self.weights_dtype)

    def query_key_value(self, batch, sources, targets):
        """q (None where there is no gate), k and v, lying in memory as the case says."""
        case = self.case
        rows = 1 if case.layout == "expanded" else batch
        keys = case.heads if case.head_key else case.channels
        q = self.normal(rows, targets, case.channels, dtype=self.dtype)
        k, v = self.keys(rows, sources, keys), self.values(rows, sources, case.channels)
        if case.layout == "qkv" and targets == sources:
            q, k, v = torch.cat((q, k, v), 2).split((case.channels, keys, case.channels), 2)
        q, k, v = (laid_out(x, case.layout, batch) for x in (q, k, v))
        return [None if case.gate == "none" else q, k, v]

    def mask(self, batch, sources):
        if self.case.mask == "none":
            return None
        mask = self.uniform(batch, sources) < 0.7
        if self.case.mask == "first":  # the first rows see nothing
            mask[:, :4] = False
        elif self.case.mask == "row":
            mask[-1:] = False
        return mask

    def lengths(self, total):
        """Of packed sequences: uneven ones, some empty."""
        cuts = self.integers(0, total + 1, self.case.batch - 1 if self.case.batch else 0).sort()[0]
        return [b - a for a, b in itertools.pairwise([0, *cuts.tolist(), total])]


def laid_out(x, layout, batch):
    """The same values in other memory."""
    if layout == "inside":  # rows of a larger tensor that starts at an odd address
        room = x.new_zeros(x.size(0) * (x.size(1) + 2) * (x.size(2) + 1) + 1)
        room = room[1:].view(x.size(0), x.size(1) + 2, x.size(2) + 1)[:, 1:-1, 1:]
        return room.copy_(x)
    if layout == "time_first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "channels_first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.expand(batch, -1, -1) if layout == "expanded" else x



def make_weights(case, n, rows, columns):
    """The arguments after q, k, v: none, a table of `rows` rows, a kernel, or bias, u and w for rows x columns."""
    heads, J = case.heads, case.columns
    if case.op == "simple":
        return []
    if case.op in ("conv1d", "conv2d"):
        x = n.weights(torch.arange(J), heads, *(J,) * (case.op == "conv2d"), J)
        return [torch.cat((x, x), 1)[:, :J] if case.weights == "view" else x]
    if case.op == "local":
        left = J - 1 if case.causal else J // 2
        given = 1 if case.weights == "expanded" else rows
        x = n.weights(torch.arange(given).view(-1, 1) + torch.arange(J) - left, heads, given, J)
        if case.weights == "view":
            return [torch.cat((x, x), 2)[:, :, J // 2:J // 2 + J]]
        return [x[0] if case.weights == "flat" else x.expand(heads, rows, J)]
    if case.weights.startswith("factors"):
        lead = (heads,) if case.weights == "factors_heads" else ()
        u, w = (0.5 * n.normal(*lead, count, J, dtype=n.weights_dtype) for count in (rows, columns))
        return [None, 30 * u if case.numbers == "wide" else u, w]
    lead = {"heads": (heads,), "rows": (case.batch, 1), "rows_and_heads": (case.batch, heads), "one_row": (1, heads)}
    x = n.weights(torch.arange(columns), *lead.get(case.weights, ()), rows, columns)
    if case.weights == "view":
        x = torch.cat((x, x, x), 1)[:, columns // 2:columns // 2 + columns]
    elif case.weights == "expanded":
        x = x.expand(heads, rows, columns)
    elif case.weights == "transposed":
        x = x.T.contiguous().T
    return [x, None, None]


def make_state(case, n, k, v, first, rows):
    """The state to begin with, its rows at the positions `first`; for `full` with room for `rows`."""
    left = {"simple": 0, "full": rows}.get(case.op, max(0, case.columns - 1))
    one = [x.new_empty(len(first), 0, x.size(2)) for x in (k, v)]
    state = list(torch.ops.aft.initial_state(*one, left))
    if case.state == "moved":
        state[0] = first
        if case.op != "full":
            state[1] = n.integers(-20, 20, *state[1].shape).to(n.sum_dtype)
            state[2] = (n.uniform(*state[2].shape) + 0.5).to(n.sum_dtype)
            state[3] = n.normal(*state[3].shape, dtype=n.sum_dtype)
        state[4] = n.keys(*state[4].shape).to(n.sum_dtype)
        state[5] = n.values(*state[5].shape).to(n.sum_dtype)
    return state


def leaf(x):
    return None if x is None else x.detach().requires_grad_()


def zipped(names, values):
    return dict(zip(names, values, strict=True))


def gradients(names, tensors, ys, n):
    """name -> gradient of the sum of all `ys`, each times random numbers."""
    by = [(y, n.values(*y.shape).to(y.dtype)) for y in ys]
    ys, factors = zip(*((y, factor) for y, factor in by if y.requires_grad), strict=True)
    wanted = [(name, x) for name, x in zip(names, tensors, strict=True) if x is not None and x.requires_grad]
    grads = torch.autograd.grad(ys, [x for _, x in wanted], factors, allow_unused=True)
    return {"grad_" + name: grad for (name, _), grad in zip(wanted, grads, strict=True) if grad is not None}


def run_whole(case, n):
    aft = torch.ops.aft
    batch, rows, columns = case.batch, case.time if case.targets is None else case.targets, case.time
    q, k, v = n.query_key_value(1 if case.packed else batch, columns, rows)
    if case.packed:
        lengths = n.lengths(case.time)
        batch, rows, columns = 1, max(lengths), max(lengths)
    weights = make_weights(case, n, rows + case.extra, columns + case.extra)
    options = {"gate": case.gate, "key_mask": n.mask(batch, case.time)}
    if case.op != "conv2d":
        options |= {"causal": case.causal}
    if case.op in ("simple", "full"):
        options |= {"heads": case.heads}
    if case.packed:
        options |= {"cu_seqlens": torch.tensor([0, *itertools.accumulate(lengths)])}
    rest = [list(case.grid)] if case.op == "conv2d" else []
    call = getattr(aft, case.op)
    with torch.no_grad():
        alone = call(q, k, v, *weights, *rest, **options)
    leaves = [leaf(x) for x in (q, k, v)] + (weights if case.frozen else [leaf(x) for x in weights])
    y = call(*leaves, *rest, **options)
    return {"y without a gradient": alone, "y": y, **gradients(["q", "k", "v", *WEIGHT_NAMES[case.op]], leaves, [y], n)}


def run_stateful(case, n):
    """Chunks, with gradients through all of them, or steps."""
    aft = torch.ops.aft
    batch, states, rows = case.batch, case.batch, case.time
    cuts = [0, case.time // 3, case.time // 3, case.time]
    if case.packed:  # of each sequence a part, twice
        cuts = [0, case.time // 2, case.time]
        parts = [n.lengths(end - begin) for begin, end in itertools.pairwise(cuts)]
        batch, states, rows = 1, len(parts[0]), sum(max(part) for part in parts)
    first = torch.zeros(states, dtype=torch.int64)
    if case.state == "moved":
        first = n.integers(0, 2 * case.columns + 5, states)
        rows += max(first.tolist(), default=0)
    rows += case.extra
    q, k, v = n.query_key_value(batch, case.time, case.time)
    weights = make_weights(case, n, rows, rows)
    start = make_state(case, n, k, v, first, rows)
    options = {"gate": case.gate}
    if case.op in ("simple", "full"):
        options |= {"heads": case.heads}
    call = getattr(aft, case.op + ("_step_" if case.mode == "steps" else "_with_state"))

    if case.mode == "steps":
        state = [x.clone() for x in start]
        with torch.no_grad():
            ys = [call(*(None if x is None else x[:, t:t + 1] for x in (q, k, v)), *weights, state, **options)
                  for t in range(case.time)]
        return {"y": torch.cat(ys, 1), **zipped(STATE_NAMES, state)}

    mask = n.mask(batch, case.time)
    leaves = [leaf(x) for x in (q, k, v)] + (weights if case.frozen else [leaf(x) for x in weights])
    state = start[:2] + [leaf(x) for x in start[DIFFERENTIABLE]]
    moving = state[DIFFERENTIABLE]
    ys = []
    for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
        if mask is not None:
            options["key_mask"] = mask[:, begin:end]
        if case.packed:
            options["cu_seqlens"] = torch.tensor([0, *itertools.accumulate(parts[i])])
        y, *state = call(*(None if x is None else x[:, begin:end] for x in leaves[:3]), *leaves[3:], state, **options)
        ys.append(y)
    names = ["q", "k", "v", *WEIGHT_NAMES[case.op], *STATE_NAMES[DIFFERENTIABLE]]
    return {"y": torch.cat(ys, 1), **zipped(STATE_NAMES, state),
            **gradients(names, leaves + moving, [*ys, *state[DIFFERENTIABLE]], n)}


def run_other(case, n):
    """local_bias, and what is made of plain torch operations."""
    aft = torch.ops.aft
    if case.op == "local_bias":
        u, w = (leaf(n.normal(case.heads, case.time, case.channels, dtype=n.dtype)) for _ in range(2))
        bias = aft.local_bias(u, w, case.columns, case.batch)
        return {"bias": bias, **gradients(["u", "v"], [u, w], [bias], n)}
    q, k, v = n.query_key_value(case.batch, case.time, case.time)
    if case.op == "initial_state":
        return zipped(STATE_NAMES, aft.initial_state(k, v, case.columns))
    if case.op == "weights":
        band, kernel = (leaf(n.normal(case.heads, *shape, dtype=n.dtype)) for shape in ((case.time, 3), (3, 3)))
        ws = aft.local_weights(band, case.time, 1, 1), aft.conv2d_weights(kernel, case.grid)
        return {"local": ws[0], "conv2d": ws[1], **gradients(["band", "kernel"], [band, kernel], ws, n)}
    leaves = [leaf(x) for x in (q, k, v, n.normal(case.heads, case.time, case.time, dtype=n.dtype))]
    y = aft.reference(*leaves, causal=case.causal)
    return {"y": y, **gradients("qkvw", leaves, [y], n)}


def run(case):
    """name -> output of one row."""
    n = Numbers(case)
    before = torch.tensor(torch.ops.aft.redo_count())
    runner = run_other if case.op not in AXES else run_whole if case.mode == "whole" else run_stateful
    outputs = runner(case, n)
    outputs[PAIRS] = torch.tensor(torch.ops.aft.redo_count()) - before
    return {name: canonical(x.detach()) for name, x in outputs.items()}


def canonical(x):
    x = x.contiguous()
    return torch.where(x.isnan(), torch.nan, x).to(x.dtype) if x.is_floating_point() and x.isnan().any() else x
