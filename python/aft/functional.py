"""The operators, with keyword arguments: y[t, c] = gate(q[t, c]) N / D for target t and channel c of head h, where

    N = sum_t' e^(k[t', c] + w_h[t, t']) v[t', c]        D = sum_t' e^(k[t', c] + w_h[t, t'])

(Zhai et al. 2021, An Attention Free Transformer, Eq. 2 to 6). The sums run over t' <= t if `causal`, else over the
whole sequence; the operators differ in w alone. B batch, T time, d channels, H heads, K key channels: d, or H for one
key per head. In all of them

- q, k, v have one dtype: float32, float64, bfloat16 or float16. 16-bit tensors are computed in float32 and rounded
  once; their weights may be float32 too, and their state is. Else all tensors have the dtype of q, k, v. One device.
- `gate` is "sigmoid", "relu" or "none", without which y is N / D and q must be None.
- `key_mask`, bool `[B, T]`: a source where it is False is absent, whatever stands there.
- `cu_seqlens`, int64 `[N + 1]`: q, k, v `[1, total, d]` are N sequences one after another, sequence n at positions
  cu_seqlens[n] to cu_seqlens[n + 1]; each is bit for bit what it is alone, and states have N rows.
- `state`, causal only: the call goes on from it and returns (y, the state after); the one given is left as it is. Any
  cutting of a sequence into calls gives the outputs and gradients of the whole.
- Rows with nothing to see are 0, without gradient.
- Wrong arguments are a RuntimeError, of a form that does not exist a ValueError: it names the argument, what was
  expected, what came and the remedy.

First derivatives only; `reference` has all. Under torch.autocast q, k and v are taken in its dtype.
"""

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from ._library import ops
from .state import State

Gate = Literal["sigmoid", "relu", "none"]

# Overloads, since finding them at every call costs more than the call.
_simple, _simple_with_state, _simple_step = ops.simple.default, ops.simple_with_state.default, ops.simple_step_.default
_local, _local_with_state, _local_step = ops.local.default, ops.local_with_state.default, ops.local_step_.default
_conv1d, _conv1d_with_state, _conv1d_step = ops.conv1d.default, ops.conv1d_with_state.default, ops.conv1d_step_.default
_full, _full_with_state, _full_step = ops.full.default, ops.full_with_state.default, ops.full_step_.default
_conv2d = ops.conv2d.default


def _check_causal(name: str, causal: bool) -> None:
    if not causal:
        raise ValueError(f"aft.{name}: a state needs causal=True, got False: run the whole sequence at once")


@overload
def simple(
    q: Tensor | None, k: Tensor, v: Tensor, *, causal: bool = ..., gate: Gate = ..., heads: int = ...,
    key_mask: Tensor | None = ..., cu_seqlens: Tensor | None = ..., state: None = ...,
) -> Tensor: ...
@overload
def simple(
    q: Tensor | None, k: Tensor, v: Tensor, *, causal: bool = ..., gate: Gate = ..., heads: int = ...,
    key_mask: Tensor | None = ..., cu_seqlens: Tensor | None = ..., state: State,
) -> tuple[Tensor, State]: ...
def simple(q, k, v, *, causal=True, gate="sigmoid", heads=1, key_mask=None, cu_seqlens=None, state=None):
    """AFT-simple: w = 0, y[t] = gate(q[t]) sum_t' e^k[t'] v[t'] / sum_t' e^k[t'], in O(B T d).

    q, v, y `[B, T, d]`; k `[B, T, d]`, or `[B, T, heads]` with one key per head. Not causal, q and y may have another
    length than k and v. `state`: of `initial_state(k, v)`.

    >>> q, k, v = torch.randn(3, 2, 16, 8)
    >>> aft.simple(q, k, v).shape
    torch.Size([2, 16, 8])
    >>> first, state = aft.simple(q[:, :10], k[:, :10], v[:, :10], state=aft.initial_state(k, v))
    >>> rest, state = aft.simple(q[:, 10:], k[:, 10:], v[:, 10:], state=state)
    >>> torch.allclose(torch.cat([first, rest], 1), aft.simple(q, k, v), atol=1e-6)
    True
    """
    if state is None:
        return _simple(q, k, v, causal=causal, gate=gate, heads=heads, key_mask=key_mask, cu_seqlens=cu_seqlens)
    _check_causal("simple", causal)
    y, *after = _simple_with_state(q, k, v, state, gate=gate, heads=heads, key_mask=key_mask, cu_seqlens=cu_seqlens)
    return y, State(*after)


@overload
def local(
    q: Tensor | None, k: Tensor, v: Tensor, bias: Tensor, *, causal: bool = ..., gate: Gate = ...,
    key_mask: Tensor | None = ..., cu_seqlens: Tensor | None = ..., state: None = ...,
) -> Tensor: ...
@overload
def local(
    q: Tensor | None, k: Tensor, v: Tensor, bias: Tensor, *, causal: bool = ..., gate: Gate = ...,
    key_mask: Tensor | None = ..., cu_seqlens: Tensor | None = ..., state: State,
) -> tuple[Tensor, State]: ...
def local(q, k, v, bias, *, causal=True, gate="sigmoid", key_mask=None, cu_seqlens=None, state=None):
    """AFT-local: w learned inside a window around t, and 0, not -inf, outside it, in O(B T J d).

    w_h[t, t'] = bias[h, t, j] for t' = t - left + j. q, v, y `[B, T, d]`; k `[B, T, d]` or `[B, T, H]`; bias
    `[H, rows, J]`, or `[rows, J]` for H = 1. Causal: left = J - 1. Not causal: J is odd and left = (J - 1) / 2. Rows
    are indexed by absolute position: at least T of them, with a state position + T. -inf forbids a pair. `local_bias`
    makes the bias from factors. `state`: of `initial_state(k, v, left=J - 1)`.

    >>> q, k, v = torch.randn(3, 2, 16, 8)
    >>> bias = torch.randn(16, 4)
    >>> aft.local(q, k, v, bias).shape
    torch.Size([2, 16, 8])
    >>> y, state = aft.local(q, k, v, bias, state=aft.initial_state(k, v, left=3))
    """
    if state is None:
        return _local(q, k, v, bias, causal=causal, gate=gate, key_mask=key_mask, cu_seqlens=cu_seqlens)
    _check_causal("local", causal)
    y, *after = _local_with_state(q, k, v, bias, state, gate=gate, key_mask=key_mask, cu_seqlens=cu_seqlens)
    return y, State(*after)


@overload
def conv1d(
    q: Tensor | None, k: Tensor, v: Tensor, kernel: Tensor, *, causal: bool = ..., gate: Gate = ...,
    key_mask: Tensor | None = ..., cu_seqlens: Tensor | None = ..., state: None = ...,
) -> Tensor: ...
@overload
def conv1d(
    q: Tensor | None, k: Tensor, v: Tensor, kernel: Tensor, *, causal: bool = ..., gate: Gate = ...,
    key_mask: Tensor | None = ..., cu_seqlens: Tensor | None = ..., state: State,
) -> tuple[Tensor, State]: ...
def conv1d(q, k, v, kernel, *, causal=True, gate="sigmoid", key_mask=None, cu_seqlens=None, state=None):
    """AFT-conv, 1-D: as `local` with one row of weights a head that every position shares, in O(B T J d).

    w_h[t, t'] = kernel[h, j] for t' = t - left + j, 0 outside. q, v, y `[B, T, d]`, any T; k `[B, T, d]` or
    `[B, T, H]`; kernel `[H, J]`. Causal: left = J - 1. Not causal: J is odd and left = (J - 1) / 2. `state`: of
    `initial_state(k, v, left=J - 1)`.

    >>> q, v = torch.randn(2, 2, 16, 8)
    >>> k, kernel = torch.randn(2, 16, 4), torch.randn(4, 5)  # one key and one kernel for each of four heads
    >>> aft.conv1d(q, k, v, kernel).shape
    torch.Size([2, 16, 8])
    """
    if state is None:
        return _conv1d(q, k, v, kernel, causal=causal, gate=gate, key_mask=key_mask, cu_seqlens=cu_seqlens)
    _check_causal("conv1d", causal)
    y, *after = _conv1d_with_state(q, k, v, kernel, state, gate=gate, key_mask=key_mask, cu_seqlens=cu_seqlens)
    return y, State(*after)


def conv2d(
    q: Tensor | None, k: Tensor, v: Tensor, kernel: Tensor, grid: Sequence[int], *, gate: Gate = "sigmoid",
    key_mask: Tensor | None = None,
) -> Tensor:
    """AFT-conv, 2-D: positions are a grid read row by row, t = row * width + column; never causal, in O(B T s^2 d).

    w_h[t, t'] = kernel[h, r + dy, r + dx] where t' lies dy rows and dx columns from t, both within r = (s - 1) / 2, and
    0, not -inf, elsewhere. q, v, y `[B, T, d]`, T = height * width; k `[B, T, d]` or `[B, T, H]`; kernel `[H, s, s]`, s
    odd; grid `[height, width]`, of each call: a kernel trained on one serves any other.

    >>> q, k, v = torch.randn(3, 2, 4 * 6, 8)
    >>> aft.conv2d(q, k, v, torch.randn(8, 3, 3), [4, 6]).shape
    torch.Size([2, 24, 8])
    """
    return _conv2d(q, k, v, kernel, grid, gate=gate, key_mask=key_mask)


@overload
def full(
    q: Tensor | None, k: Tensor, v: Tensor, *, bias: Tensor | None = ..., u: Tensor | None = ...,
    w: Tensor | None = ..., causal: bool = ..., gate: Gate = ..., heads: int = ..., key_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., state: None = ...,
) -> Tensor: ...
@overload
def full(
    q: Tensor | None, k: Tensor, v: Tensor, *, bias: Tensor | None = ..., u: Tensor | None = ...,
    w: Tensor | None = ..., causal: bool = ..., gate: Gate = ..., heads: int = ..., key_mask: Tensor | None = ...,
    cu_seqlens: Tensor | None = ..., state: State,
) -> tuple[Tensor, State]: ...
def full(q, k, v, *, bias=None, u=None, w=None, causal=True, gate="sigmoid", heads=1, key_mask=None, cu_seqlens=None,
         state=None):
    """AFT-full: w of any value for every pair, in O(B T^2 d).

    w_h[t, t'] = bias[b, h, t, t'], or the product u_h[t] . w_h[t'] of factors, which is never laid out in memory. q, y
    `[B, Tq, d]`; k `[B, Tk, d]` or `[B, Tk, H]`; v `[B, Tk, d]`; Tq = Tk where causal. bias `[rows, columns]`,
    `[H, rows, columns]` or `[B or 1, H or 1, rows, columns]`, -inf forbids a pair; or u `[rows, d']` and w
    `[columns, d']`, both with a leading H or neither. Rows and columns are absolute positions, more than are used is
    allowed. `heads` counts where the weights have none. `state`: of `initial_state(k, v, left)`, which says by left how
    many positions fit; then there are no cu_seqlens.

    >>> q, k, v = torch.randn(3, 2, 16, 8)
    >>> u, w = torch.randn(2, 16, 4)
    >>> torch.allclose(aft.full(q, k, v, u=u, w=w), aft.full(q, k, v, bias=u @ w.T), atol=1e-5)
    True
    """
    if state is None:
        return _full(
            q, k, v, bias, u, w, causal=causal, gate=gate, heads=heads, key_mask=key_mask, cu_seqlens=cu_seqlens
        )
    _check_causal("full", causal)
    if cu_seqlens is not None:
        raise ValueError("aft.full: cu_seqlens must be None with a state, got a tensor: run each sequence by itself")
    y, *after = _full_with_state(q, k, v, bias, u, w, state, gate=gate, heads=heads, key_mask=key_mask)
    return y, State(*after)


def simple_step(
    q: Tensor | None, k: Tensor, v: Tensor, state: State, *, gate: Gate = "sigmoid", heads: int = 1
) -> Tensor:
    """One position of `simple`, q, v, y `[B, 1, d]`, with `state` edited in place, which makes no new memory.

    Without gradient: where a tensor requires one, call it under torch.no_grad(), or `simple` with its state. Steps take
    no mask; k = -inf is an absent source.

    >>> q, k, v = torch.randn(3, 2, 16, 8)
    >>> state = aft.initial_state(k, v)
    >>> steps = [aft.simple_step(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], state) for t in range(16)]
    >>> torch.allclose(torch.cat(steps, 1), aft.simple(q, k, v), atol=1e-6)
    True
    """
    return _simple_step(q, k, v, state, gate=gate, heads=heads)


def local_step(
    q: Tensor | None, k: Tensor, v: Tensor, bias: Tensor, state: State, *, gate: Gate = "sigmoid"
) -> Tensor:
    """One position of `local`, as `simple_step`; the row of the bias is the state's position.

    >>> q, k, v = torch.randn(3, 2, 1, 8)
    >>> aft.local_step(q, k, v, torch.randn(16, 4), aft.initial_state(k, v, left=3)).shape
    torch.Size([2, 1, 8])
    """
    return _local_step(q, k, v, bias, state, gate=gate)


def conv1d_step(
    q: Tensor | None, k: Tensor, v: Tensor, kernel: Tensor, state: State, *, gate: Gate = "sigmoid"
) -> Tensor:
    """One position of `conv1d`, as `simple_step`.

    >>> q, k, v = torch.randn(3, 2, 1, 8)
    >>> aft.conv1d_step(q, k, v, torch.randn(8, 4), aft.initial_state(k, v, left=3)).shape
    torch.Size([2, 1, 8])
    """
    return _conv1d_step(q, k, v, kernel, state, gate=gate)


def full_step(
    q: Tensor | None, k: Tensor, v: Tensor, state: State, *, bias: Tensor | None = None, u: Tensor | None = None,
    w: Tensor | None = None, gate: Gate = "sigmoid", heads: int = 1,
) -> Tensor:
    """One position of `full`, as `simple_step`; it costs O(B t d) at position t.

    >>> q, k, v = torch.randn(3, 2, 1, 8)
    >>> aft.full_step(q, k, v, aft.initial_state(k, v, left=16), bias=torch.randn(16, 16)).shape
    torch.Size([2, 1, 8])
    """
    return _full_step(q, k, v, bias, u, w, state, gate=gate, heads=heads)


def initial_state(k: Tensor, v: Tensor, left: int = 0) -> State:
    """The neutral state before position 0 for keys `[B, T, K]` and values `[B, T, d]` like these, whose T may be 0.

    left: J - 1 for `local` and `conv1d` with J columns, 0 for `simple`, the longest sequence for `full`.

    >>> k = v = torch.empty(2, 0, 8, dtype=torch.bfloat16)
    >>> aft.initial_state(k, v, left=3).ring_key.shape, aft.initial_state(k, v).max.dtype
    (torch.Size([2, 3, 8]), torch.float32)
    """
    return State(*ops.initial_state.default(k, v, left))


def local_bias(u: Tensor, v: Tensor, left: int, right: int = 0) -> Tensor:
    """The bias of `local` from factors: bias[h, t, j] = u[h, t] . v[h, t - left + j], 0 outside the table.

    u, v `[rows, d']` -> `[rows, left + 1 + right]`, or with a leading H `[H, rows, ...]`; float32 or float64.

    >>> u, v = torch.randn(2, 16, 4)
    >>> bias = aft.local_bias(u, v, 3)
    >>> torch.allclose(bias[5, 3], u[5] @ v[5], atol=1e-6)
    True
    """
    return ops.local_bias.default(u, v, left, right)


def reference(
    q: Tensor | None, k: Tensor, v: Tensor, w: Tensor | None = None, *, causal: bool = True, gate: Gate = "sigmoid",
    heads: int = 1, key_mask: Tensor | None = None,
) -> Tensor:
    """The equation itself in plain torch operations: slow, obvious, on any device, differentiable as often as wanted.

    q, y `[B, Tq, d]`; k `[B, Tk, d]` or `[B, Tk, H]`; v `[B, Tk, d]`; w `[Tq, Tk]`, `[H, Tq, Tk]` or `[B, H, Tq, Tk]`,
    0 where absent, -inf forbids a pair; H is `heads` where w does not say it. Causal needs Tq = Tk. It takes
    O(B Tq Tk d) memory. `local_weights` and `conv2d_weights` give the w of the other operators.

    >>> q, k, v = torch.randn(3, 2, 16, 8, dtype=torch.float64)
    >>> bias = torch.randn(16, 4, dtype=torch.float64)
    >>> torch.allclose(aft.local(q, k, v, bias), aft.reference(q, k, v, aft.local_weights(bias, 16, 3)))
    True
    """
    return ops.reference.default(q, k, v, w, causal=causal, gate=gate, heads=heads, key_mask=key_mask)


def local_weights(bias: Tensor, time: int, left: int, right: int = 0) -> Tensor:
    """The w of a window for `reference`, `[H, T, T]`: bias[h, t, t' - t + left] inside it, 0 outside.

    bias `[H, rows, J]` or `[rows, J]`, J = left + 1 + right, rows >= time, or 1 that all positions share: for `conv1d`
    that is kernel.unsqueeze(1).

    >>> aft.local_weights(torch.tensor([[[1.0, 2.0]]]), 3, 1)
    tensor([[[2., 0., 0.],
             [1., 2., 0.],
             [0., 1., 2.]]])
    """
    return ops.local_weights.default(bias, time, left, right)


def conv2d_weights(kernel: Tensor, grid: Sequence[int]) -> Tensor:
    """The w of `conv2d` for `reference`, `[H, T, T]` with T = height * width: kernel `[H, s, s]`, s odd.

    >>> aft.conv2d_weights(torch.arange(9.0).view(1, 3, 3), [1, 3])
    tensor([[[4., 5., 0.],
             [3., 4., 5.],
             [0., 3., 4.]]])
    """
    return ops.conv2d_weights.default(kernel, grid)
