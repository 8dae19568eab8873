"""What the operators are measured against, each as a PyTorch user would write it. Every peer is built on inputs of its
own, on the default device, and gives two calls: forward() without a graph, and backward() alone over a graph that is
kept."""

import contextlib

import torch
import torch.nn.functional as F
from torch.nn.attention import sdpa_kernel


class Peer:
    def __init__(self, function, inputs):
        self.function = function
        self.inputs = inputs
        self.y = None

    def forward(self):
        with torch.no_grad():
            return self.function(*self.inputs)

    def backward(self):
        if self.y is None:
            for x in self.inputs:
                x.requires_grad_()
            self.y = self.function(*self.inputs)
            self.grad_y = torch.randn_like(self.y)
        return torch.autograd.grad(self.y, self.inputs, self.grad_y, retain_graph=True)


def naive_full(B, T, d, dtype, causal, compiled=False):
    """AFT-full in labml's form: time first, weights and keys each under their maximum, two dense products [T, T];
    as it is, or by torch.compile."""
    mask = torch.ones(T, T, dtype=torch.bool).triu(1) if causal else None

    def function(q, k, v, w):
        if mask is not None:
            w = w.masked_fill(mask, float("-inf"))
        weights = torch.exp(w - w.amax(dim=1, keepdim=True).detach())
        e = torch.exp(k - k.amax(dim=0, keepdim=True).detach())
        num = torch.einsum("ts,sbd->tbd", weights, e * v)
        den = torch.einsum("ts,sbd->tbd", weights, e)
        return torch.sigmoid(q) * num / den

    q, k, v = (torch.randn(T, B, d, dtype=dtype) for _ in range(3))
    if compiled:
        function = torch.compile(function, fullgraph=True, dynamic=False)
    return Peer(function, [q, k, v, 0.1 * torch.randn(T, T, dtype=dtype)])


def cumsum_simple(B, T, d, dtype):
    """Causal AFT-simple in three lines."""

    def function(q, k, v):
        e = torch.exp(k - k.amax(dim=1, keepdim=True).detach())
        return torch.sigmoid(q) * (torch.cumsum(e * v, dim=1) / torch.cumsum(e, dim=1))

    return Peer(function, [torch.randn(B, T, d, dtype=dtype) for _ in range(3)])


def conv2d_pair(B, grid, d, s, dtype):
    """AFT-conv 2-D as two depth-wise convolutions with e^w - 1 plus global sums, channels first as PyTorch's
    convolutions like them. What it subtracts, it may lose: fine for w of a few tenths, wrong for w very negative."""

    def function(q, k, v, w):
        e = torch.exp(k - k.amax(dim=(2, 3), keepdim=True).detach())
        weight = torch.expm1(w).unsqueeze(1)

        def weighted(x):
            return F.conv2d(x, weight, padding=s // 2, groups=d) + x.sum(dim=(2, 3), keepdim=True)

        return torch.sigmoid(q) * weighted(e * v) / weighted(e)

    q, k, v = (torch.randn(B, d, *grid, dtype=dtype) for _ in range(3))
    return Peer(function, [q, k, v, 0.1 * torch.randn(d, s, s, dtype=dtype)])


def sdpa(B, T, d, dtype, causal, width=64, backend=None):
    """Multi-head attention, heads 64 wide, q, k and v laid out as a projection leaves them. `backend`: one of
    torch.nn.attention.SDPBackend, else PyTorch's choice."""

    def function(q, k, v):
        q, k, v = (x.view(B, T, d // width, width).transpose(1, 2) for x in (q, k, v))
        with contextlib.nullcontext() if backend is None else sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    return Peer(function, [torch.randn(B, T, d, dtype=dtype) for _ in range(3)])
