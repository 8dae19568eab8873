"""The equation of all operators, dense and in plain torch, and what the tests share beside it."""

import itertools

import pytest
import torch

DEVICE = torch.get_default_device().type  # where tensors are made that name none: conftest.py


def dense(q, k, v, w, causal, gate):
    """The equation: w [B or 1, H or 1, Tq, Tk], -inf where a pair is forbidden; k [B, Tk, d or H]."""
    k, w = k.repeat_interleave(v.shape[2] // k.shape[2], 2), w.repeat_interleave(v.shape[2] // w.shape[1], 1)
    exponent = k.transpose(1, 2).unsqueeze(2) + w  # [B, d, Tq, Tk]
    if causal:
        time = torch.arange(v.shape[1])
        exponent = exponent.masked_fill(time[None, :] > time[:, None], -torch.inf)
    mean = torch.einsum("bdtu,bud->btd", exponent.softmax(-1).nan_to_num(0), v)
    if gate == "none":
        return mean
    return mean * (q.sigmoid() if gate == "sigmoid" else q.clamp(min=0))


def window_weights(bias, left, time):
    """[1, H, T, T] of a bias [H, rows, J], one entry after another."""
    w = torch.zeros(1, bias.shape[0], time, time, dtype=bias.dtype)
    for h, t, j in itertools.product(range(bias.shape[0]), range(time), range(bias.shape[2])):
        if 0 <= t - left + j < time:
            w[0, h, t, t - left + j] = bias[h, t, j]
    return w


def grid_weights(kernel, height, width):
    """[1, H, T, T] of a kernel [H, s, s], one pair of positions after another."""
    heads, s, _ = kernel.shape
    r = s // 2
    w = torch.zeros(1, heads, height * width, height * width, dtype=kernel.dtype)
    for y, x, dy, dx in itertools.product(range(height), range(width), range(-r, r + 1), range(-r, r + 1)):
        if 0 <= y + dy < height and 0 <= x + dx < width:
            w[0, :, y * width + x, (y + dy) * width + x + dx] = kernel[:, r + dy, r + dx]
    return w


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def refused(kind, call, *words):
    """The call is refused in one sentence that has these words."""
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
