"""Every operator in its forms: one list for tests that hold one thing against another, on any device."""

import copy
import dataclasses
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from aft_testing import aft, seeded

BATCH, HEADS = 2, 3
GRID = (10, 15)
NARROW = (torch.bfloat16, torch.float16)


@dataclasses.dataclass
class Form:
    """An operator in one of its forms, and its w in plain torch operations."""

    name: str
    op: str
    tensors: list  # float64 and on the CPU as forms() gives them; None where absent
    matrix: Callable | None = None  # w for so many sources, from the weights
    extra: tuple = ()  # arguments behind the tensors
    options: dict = dataclasses.field(default_factory=dict)
    others: dict = dataclasses.field(default_factory=dict)  # key_mask, cu_seqlens

    def on(self, device, dtype=torch.float64, requires_grad=True):
        """The form with copies of its tensors; weights of 16-bit q, k and v are float32."""
        types = [dtype] * 3 + [torch.float32 if dtype in NARROW else dtype] * 3
        moved = copy.copy(self)
        moved.tensors = [None if t is None else t.detach().to(device, to, copy=True).requires_grad_(requires_grad)
                         for t, to in zip(self.tensors, types, strict=False)]
        moved.others = {name: t.to(device, copy=True) for name, t in self.others.items()}
        return moved

    @property
    def leaves(self):
        return [t for t in self.tensors if t is not None]

    @property
    def takes(self):
        """The dtypes of the operator beside float64."""
        return (torch.float32,) if self.op == "local_bias" else (torch.float32, *NARROW)

    def call(self, *tensors):
        """The operator of other tensors: all of them, or those that are there."""
        if len(tensors) < len(self.tensors):
            given = iter(tensors)
            tensors = [None if t is None else next(given) for t in self.tensors]
        return getattr(aft, self.op)(*tensors, *self.extra, **self.options, **self.others)

    def plain(self, *tensors):
        """The same by aft::reference, packed sequences one by one."""
        if self.op == "local_bias":
            u, v = tensors
            left, right = self.extra
            index = torch.arange(u.size(-2), device=u.device)[:, None] + torch.arange(left + 1 + right, device=u.device)
            return F.pad(u @ v.mT, (left, right)).gather(-1, index.expand(*u.shape[:-1], -1))
        q, k, v, *weights = tensors
        options = {"causal": self.op != "conv2d", **self.options, **self.others}
        ends = options.pop("cu_seqlens", torch.tensor([0, v.size(1)])).tolist()

        def one(begin, end):
            w = [] if self.matrix is None else [self.matrix(end - begin, *weights)]
            return aft.reference(*(None if t is None else t[:, begin:end] for t in (q, k, v)), *w, **options)

        return torch.cat([one(begin, end) for begin, end in itertools.pairwise(ends)], 1)

    def results(self, grad_y=None, plainly=False):
        """y, and the gradients of all tensors."""
        y = (self.plain if plainly else self.call)(*self.tensors)
        return [y.detach(), *torch.autograd.grad(y, self.leaves, gradient_like(y) if grad_y is None else grad_y)]


def gradient_like(y):
    """The same numbers on every device."""
    with torch.device("cpu"):
        return torch.randn(y.shape, generator=seeded(1), dtype=torch.float64).to(y)


def forms(grid=GRID, width=4):
    """Every operator in the forms that go other ways; channels are HEADS * width."""
    time, d = grid[0] * grid[1], HEADS * width
    with torch.device("cpu"):
        generator = seeded(0)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        q, k, v = randn(3, BATCH, time, d)
        few, head_key = randn(BATCH, time // 2, d), randn(BATCH, time, HEADS)
        band, symmetric, kernel = randn(HEADS, time + 3, 5), randn(1, time, 7), randn(HEADS, 9)
        image, each = randn(HEADS, 3, 3), randn(d, 5, 5)
        square, own = randn(HEADS, time, time), randn(BATCH, 1, time // 2, time)
        factors = [randn(time, 5), randn(time, 5)]
        masked = dict(key_mask=torch.rand(BATCH, time, generator=generator) < 0.7)
        packed = dict(cu_seqlens=torch.tensor([0, time // 3, time // 3, time - 1, time]))
    row = [t[:1] for t in (q, k, v)]
    both = dict(causal=False)

    def window(left, right=0):
        return lambda n, w: aft.local_weights(w if w.dim() == 3 else w.unsqueeze(1), n, left, right)

    def on_grid(n, w):
        return aft.conv2d_weights(w, grid)

    def first(n, w):
        return w[:, :n, :n]

    return [
        Form("simple", "simple", [q, k, v]),
        Form("simple, relu", "simple", [q, k, v], options=dict(gate="relu")),
        Form("simple, masked", "simple", [q, head_key, v], options=dict(heads=HEADS), others=masked),
        Form("simple, not causal", "simple", [None, k, v], options=dict(gate="none", **both)),
        Form("simple, other targets", "simple", [few, k, v], options=both, others=masked),
        Form("simple, packed", "simple", row, others=packed),
        Form("local", "local", [q, k, v, band], window(4), others=masked),
        Form("local, not causal", "local", [q, k, v, symmetric], window(3, 3), options=both),
        Form("local, packed", "local", [None, *row[1:], band], window(4), options=dict(gate="none"), others=packed),
        Form("conv1d", "conv1d", [q, head_key, v, kernel], window(8)),
        Form("conv1d, not causal", "conv1d", [q, k, v, kernel], window(4, 4), options=both, others=masked),
        Form("conv2d", "conv2d", [q, head_key, v, image], on_grid, (list(grid),), others=masked),
        Form("conv2d, a kernel a channel", "conv2d", [q, k, v, each], on_grid, (list(grid),)),
        Form("full", "full", [q, head_key, v, square], first, others=masked),
        Form("full, other targets", "full", [few, k, v, own], lambda n, w: w, options=both),
        Form("full, factors", "full", [q, k, v, None, *factors], lambda n, _, u, w: u @ w.mT),
        Form("full, packed", "full", [*row, square], first, others=packed),
        Form("reference", "reference", [q, k, v, square], first, others=masked),
        Form("local_bias", "local_bias", factors, extra=(3, 1)),
        Form("local_bias of heads", "local_bias", [square, square.mT], extra=(3, 1)),
    ]


def of_ours(grid=GRID, width=4):
    """The forms that have kernels here: the reference is made of PyTorch's."""
    return [form for form in forms(grid, width) if form.op != "reference"]


@dataclasses.dataclass
class Stateful:
    """A causal operator with its state."""

    op: str
    tensors: list  # q, k, v and perhaps weights
    left: int
    absent: tuple = ()  # arguments behind the weights

    def on(self, device, dtype=torch.float64):
        moved = copy.copy(self)
        moved.tensors = [t.to(device, dtype) for t in self.tensors]
        return moved

    def start(self):
        return [t.clone() for t in aft.initial_state(*self.tensors[1:3], self.left)]

    def at(self, begin, end):
        """Tensors of these positions, weights whole."""
        return [t[:, begin:end] for t in self.tensors[:3]] + self.tensors[3:]

    def chunk(self, tensors, state):
        """y, and the state after."""
        y, *after = getattr(aft, self.op + "_with_state")(*tensors, *self.absent, state)
        return y, after

    def step(self, tensors, state):
        return getattr(aft, self.op + "_step_")(*tensors, *self.absent, state)


STEPS = 12


def stateful():
    with torch.device("cpu"):
        generator = seeded(2)
        q, k, v = torch.randn(3, BATCH, STEPS, 12, generator=generator, dtype=torch.float64)
        band, square = (torch.randn(HEADS, STEPS, n, generator=generator, dtype=torch.float64) for n in (5, STEPS))
    return [Stateful("simple", [q, k, v], 0), Stateful("local", [q, k, v, band], 4),
            Stateful("conv1d", [q, k, v, band[:, 0]], 4), Stateful("full", [q, k, v, square], STEPS, (None, None))]
