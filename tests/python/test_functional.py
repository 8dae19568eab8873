"""The operators of aft.functional against the equation computed densely, in equation.py, in float64."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import aft
import pytest
import torch
from torch import Tensor

from equation import DEVICE, dense, double, grid_weights, refused, window_weights

B, T, D, H = 2, 7, 6, 3
GATES = ("sigmoid", "relu", "none")
same = torch.testing.assert_close


def inputs(gate="sigmoid", key_channels=D, time=T, batch=B):
    q, k, v = double(batch, time, D), double(batch, time, key_channels), double(batch, time, D)
    return None if gate == "none" else q, k, v


class Case(NamedTuple):
    """An operator, its step, its weights by name, the positions in the ring of its state, and the w of the equation."""

    call: Callable
    step: Callable
    weights: dict[str, Tensor]
    left: int
    w: Tensor


def case_of(name, causal=True):
    left = 4 if causal else 2  # of a window of 5
    per_head = (partial(aft.simple, heads=H), partial(aft.simple_step, heads=H))
    factors = {"u": double(T, 2), "w": double(T + 2, 2)}
    bias, kernel, square = double(H, T + 2, 5), double(H, 5), double(H, T, T + 1)
    return {
        "simple": Case(*per_head, {}, 0, torch.zeros(1, 1, T, T, dtype=torch.float64)),
        "local": Case(aft.local, aft.local_step, {"bias": bias}, left, window_weights(bias, left, T)),
        "conv1d": Case(aft.conv1d, aft.conv1d_step, {"kernel": kernel}, left,
                       window_weights(kernel.unsqueeze(1).expand(H, T, 5), left, T)),
        "full, bias": Case(aft.full, aft.full_step, {"bias": square}, T, square[None, :, :, :T]),
        "full, factors": Case(partial(aft.full, heads=H), partial(aft.full_step, heads=H), factors, T,
                              (factors["u"] @ factors["w"][:T].T)[None, None]),
    }[name]


NAMES = ("simple", "local", "conv1d", "full, bias", "full, factors")


@pytest.mark.parametrize("key_channels", [D, H])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_equation(name, causal, gate, key_channels):
    case = case_of(name, causal)
    q, k, v = inputs(gate, key_channels)
    k[0, 3] = 300.0  # its weight is e^300 times the others': no clamp
    want = dense(q, k, v, case.w, causal, gate)
    same(case.call(q, k, v, **case.weights, causal=causal, gate=gate), want, rtol=1e-12, atol=1e-13)
    w = case.w.expand(B, H, T, T)
    same(aft.reference(q, k, v, w, causal=causal, gate=gate), want, rtol=1e-12, atol=1e-13)
    if name == "simple":
        same(aft.reference(q, k, v, causal=causal, gate=gate, heads=H), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("key_channels", [D, H])
def test_conv2d(gate, key_channels):
    kernel = double(H, 5, 5)
    for height, width in ((2, 4), (4, 2), (1, 7)):
        q, k, v = inputs(gate, key_channels, height * width)
        w = grid_weights(kernel, height, width)
        want = dense(q, k, v, w, False, gate)
        same(aft.conv2d(q, k, v, kernel, [height, width], gate=gate), want, rtol=1e-12, atol=1e-13)
        assert torch.equal(aft.conv2d_weights(kernel, (height, width)), w[0])


def test_defaults():
    """Causal, with a sigmoid, one head: of all operators."""
    q, k, v = inputs()
    bias, square, none = double(T, 3), double(T, T), torch.zeros(1, 1, T, T, dtype=torch.float64)
    tolerance = dict(rtol=1e-12, atol=1e-13)
    same(aft.simple(q, k, v), dense(q, k, v, none, True, "sigmoid"), **tolerance)
    same(aft.local(q, k, v, bias), dense(q, k, v, window_weights(bias[None], 2, T), True, "sigmoid"), **tolerance)
    same(aft.full(q, k, v, bias=square), dense(q, k, v, square[None, None], True, "sigmoid"), **tolerance)
    same(aft.reference(q, k, v), dense(q, k, v, none, True, "sigmoid"), **tolerance)
    same(aft.conv1d(q, k, v, bias[:1]),
         dense(q, k, v, window_weights(bias[:1].expand(1, T, 3), 2, T), True, "sigmoid"), **tolerance)


def test_two_lengths():
    q, k, v = inputs()
    u, w = double(3, 2), double(T, 2)
    none = torch.zeros(1, 1, 3, T, dtype=torch.float64)
    same(aft.simple(q[:, :3], k, v, causal=False), dense(q[:, :3], k, v, none, False, "sigmoid"), rtol=1e-12, atol=0)
    want = dense(None, k, v, (u @ w.T)[None, None], False, "none")
    same(aft.full(None, k, v, u=u, w=w, causal=False, gate="none"), want, rtol=1e-12, atol=1e-13)


def test_weights_of_windows():
    u, v, bias = double(T, 3), double(T, 3), double(H, T, 4)
    band = aft.local_bias(u, v, 2, 1)
    for t, j in itertools.product(range(T), range(4)):
        source = t - 2 + j
        want = u[t] @ v[source] if 0 <= source < T else torch.zeros((), dtype=torch.float64)
        same(band[t, j], want, rtol=1e-14, atol=1e-15)
    assert torch.equal(aft.local_weights(bias, T, 2, 1), window_weights(bias, 2, T)[0])
    assert aft.local_bias(u, v, 2).shape == (T, 3)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_key_mask(name, causal):
    """A masked source is one whose key is -inf, whatever its value is."""
    case = case_of(name, causal)
    q, k, v = inputs()
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 2] = mask[1, 0] = False
    want = dense(q, k.masked_fill(~mask.unsqueeze(2), -torch.inf), v, case.w, causal, "sigmoid")
    v = v.masked_fill(~mask.unsqueeze(2), torch.nan)
    same(case.call(q, k, v, **case.weights, causal=causal, key_mask=mask), want, rtol=1e-12, atol=1e-13)
    if causal:
        assert torch.equal(want[1, 0], torch.zeros(D, dtype=torch.float64))  # nothing to see
        y, _ = case.call(q, k, v, **case.weights, key_mask=mask, state=aft.initial_state(k, v, case.left))
        same(y, want, rtol=1e-12, atol=1e-13)
    same(aft.reference(q, k, v, case.w[0], causal=causal, heads=H, key_mask=mask), want, rtol=1e-12, atol=1e-13)


def test_key_mask_of_images():
    kernel, (q, k, v) = double(H, 3, 3), inputs(time=6)
    mask = torch.tensor([[True, False, True, True, True, True]] * B)
    want = dense(q, k.masked_fill(~mask.unsqueeze(2), -torch.inf), v, grid_weights(kernel, 2, 3), False, "sigmoid")
    same(aft.conv2d(q, k, v, kernel, [2, 3], key_mask=mask), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_are_what_each_is_alone(name):
    case = case_of(name)
    total = 12
    q, k, v = inputs(time=total, batch=1)
    ends = [0, 5, 5, 12]
    cu_seqlens = torch.tensor(ends)
    y = case.call(q, k, v, **case.weights, cu_seqlens=cu_seqlens)
    for begin, end in itertools.pairwise(ends):
        alone = [t[:, begin:end] for t in (q, k, v)]
        assert torch.equal(y[:, begin:end], case.call(*alone, **case.weights))
    if not name.startswith("full"):
        rows = torch.empty(3, 0, D, dtype=torch.float64)
        begin = aft.initial_state(rows, rows, case.left)
        y_with_state, state = case.call(q, k, v, **case.weights, cu_seqlens=cu_seqlens, state=begin)
        same(y_with_state, y, rtol=1e-12, atol=1e-13)
        assert state.position.tolist() == [5, 0, 7]


@pytest.mark.parametrize("key_channels", [D, H])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", NAMES)
def test_chunks_and_steps_are_the_whole(name, gate, key_channels):
    case = case_of(name)
    q, k, v = inputs(gate, key_channels)

    def part(begin, end):
        return [t if t is None else t[:, begin:end] for t in (q, k, v)]

    want = dense(q, k, v, case.w, True, gate)
    state = aft.initial_state(k, v, case.left)
    assert isinstance(state, aft.State)
    first, after = case.call(*part(0, 3), **case.weights, gate=gate, state=state)
    assert isinstance(after, aft.State)
    assert state.position.tolist() == [0, 0]  # the one given is left as it is
    assert after.position.tolist() == [3, 3]
    second, state = case.call(*part(3, 4), **case.weights, gate=gate, state=after)
    steps = [case.step(*part(t, t + 1), state=state, **case.weights, gate=gate) for t in range(4, T)]
    assert state.position.tolist() == [T, T]
    same(torch.cat([first, second, *steps], 1), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("key_channels", [D, H])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, causal, key_channels):
    case = case_of(name, causal)
    leaves = [t.requires_grad_() for t in (*inputs(key_channels=key_channels), *case.weights.values())]

    def run(q, k, v, *weights):
        return case.call(q, k, v, **dict(zip(case.weights, weights, strict=True)), causal=causal)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_through_a_state(name):
    """Those of q, k, v, the weights and the state before, towards y and the state after."""
    case = case_of(name)
    q, k, v = inputs()
    _, before = case.call(q[:, :3], k[:, :3], v[:, :3], **case.weights, state=aft.initial_state(k, v, case.left))

    def run(q, k, v, *rest):
        weights, carried = dict(zip(case.weights, rest[:-4], strict=True)), rest[-4:]
        y, after = case.call(q, k, v, **weights, state=aft.State(before.position, before.max, *carried))
        return y, *after[2:]

    leaves = [t.clone().requires_grad_() for t in (q[:, 3:], k[:, 3:], v[:, 3:], *case.weights.values(), *before[2:])]
    assert torch.autograd.gradcheck(run, leaves)


def test_gradients_of_the_others():
    q, k, v = (t.requires_grad_() for t in inputs(time=6))
    u, w, kernel = (t.requires_grad_() for t in (double(6, 2), double(6, 2), double(H, 3, 3)))
    assert torch.autograd.gradcheck(lambda *t: aft.conv2d(*t, [2, 3]), [q, k, v, kernel])
    assert torch.autograd.gradcheck(lambda *t: aft.local_bias(*t, 1, 1), [u, w])
    assert torch.autograd.gradgradcheck(aft.reference, [t[:1, :3, :2].detach().requires_grad_() for t in (q, k, v)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_16_bits_are_computed_in_32_and_rounded_once(name, dtype):
    case = case_of(name)
    q, k, v = (t.to(dtype) for t in inputs())
    weights = {name: t.to(dtype) for name, t in case.weights.items()}
    wide = {name: t.float() for name, t in weights.items()}
    want = case.call(q.float(), k.float(), v.float(), **wide).to(dtype)
    for given in (weights, wide):
        y = case.call(q, k, v, **given)
        assert y.dtype == dtype
        assert torch.equal(y, want)
        y, state = case.call(q, k, v, **given, state=aft.initial_state(k, v, case.left))
        assert y.dtype == dtype
        assert [t.dtype for t in state] == [torch.int64] + [torch.float32] * 5


@pytest.mark.parametrize("name", NAMES)
def test_autocast(name):
    case = case_of(name)
    q, k, v = (t.float() for t in inputs())
    weights = {name: t.float() for name, t in case.weights.items()}
    with torch.autocast(DEVICE, torch.bfloat16):
        y = case.call(q, k, v, **weights)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, case.call(q.bfloat16(), k.bfloat16(), v.bfloat16(), **weights))


@pytest.mark.parametrize("name", NAMES)
def test_compile(name):
    """In one graph: the whole, from a state, and a step that edits one."""
    case = case_of(name)
    q, k, v = inputs()

    def run(q, k, v, state):
        whole = case.call(q, k, v, **case.weights)
        y, state = case.call(q[:, :-1], k[:, :-1], v[:, :-1], **case.weights, state=state)
        last = case.step(q[:, -1:], k[:, -1:], v[:, -1:], state=state, **case.weights)
        return whole, torch.cat([y, last], 1), state

    got = torch.compile(run, fullgraph=True, backend="aot_eager")(q, k, v, aft.initial_state(k, v, case.left))
    want = run(q, k, v, aft.initial_state(k, v, case.left))
    assert isinstance(got[2], aft.State)
    for a, b in zip(got[:2] + got[2], want[:2] + want[2], strict=True):
        assert torch.equal(a, b)


def test_compiled_gradients():
    case = case_of("local")
    leaves = [t.requires_grad_() for t in (*inputs(), *case.weights.values())]
    compiled = torch.compile(aft.local, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*leaves).square().sum(), leaves)
    want = torch.autograd.grad(aft.local(*leaves).square().sum(), leaves)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_export(name):
    case = case_of(name)

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return case.call(q, k, v, **case.weights)

    q, k, v = inputs()
    program = torch.export.export(Module(), (q, k, v))
    other = inputs()
    assert torch.equal(program.module()(*other), case.call(*other, **case.weights))


def test_errors():
    q, k, v = inputs()
    bias, kernel, state = double(T, 3), double(H, 3), aft.initial_state(k, v)
    refused(RuntimeError, lambda: aft.simple(q.float(), k, v), "aft::simple: q must have the dtype of v", "got Float")
    refused(RuntimeError, lambda: aft.simple(q.int(), k.int(), v.int()), "v must be float32, float64", "got Int")
    refused(RuntimeError, lambda: aft.simple(q, k[..., :4], v), "aft::simple: k must have shape [2, 7, 6]", "[2, 7, 4]")
    refused(RuntimeError, lambda: aft.simple(None, k, v), 'q must be a tensor with gate "sigmoid"', "got none")
    refused(RuntimeError, lambda: aft.simple(q, k, v, gate="tanh"), "gate must be", 'got "tanh"')
    refused(RuntimeError, lambda: aft.simple(q, k, v, heads=4), "heads must divide the 6 channels of v, got 4")
    refused(RuntimeError, lambda: aft.local(q, k, v, bias[:5]), "aft::local: bias must have a row for each", "got 5")
    refused(RuntimeError, lambda: aft.local(q, k, v, bias[:, :2], causal=False), "aft::local: bias must", "odd")
    refused(RuntimeError, lambda: aft.conv1d(q, k, v, kernel[:, None]), "aft::conv1d: kernel must", "[3, 1, 3]")
    refused(RuntimeError, lambda: aft.conv2d(q, k, v, double(H, 3, 3), [2, 4]), "aft::conv2d: ", "[2, 4]")
    refused(RuntimeError, lambda: aft.full(q, k, v, u=bias), "aft::full: ", "w")
    refused(RuntimeError, lambda: aft.simple(q, k, v, key_mask=torch.ones(B, T)), "key_mask must be bool", "got Float")
    refused(RuntimeError, lambda: aft.simple(q, k, v, cu_seqlens=torch.tensor([0, T])), "with cu_seqlens", "[2, 7, 6]")
    refused(RuntimeError, lambda: aft.simple(q, k, v, state=state[:5]), "state must be the six tensors", "got 5")
    refused(RuntimeError, lambda: aft.local(q, k, v, bias, state=state), "ring_key must have shape [2, 2, 6]")
    refused(RuntimeError, lambda: aft.simple_step(q, k, v, state), "v must hold one position", "got [2, 7, 6]")
    refused(RuntimeError, lambda: aft.simple_step(q[:, :1].requires_grad_(), k[:, :1], v[:, :1], state), "no_grad()")

    full_of = aft.initial_state(k, v, 2)._replace(position=torch.full((B,), T))
    one = [t[:, :1] for t in (q, k, v)]
    refused(RuntimeError, lambda: aft.local_step(*one, bias, full_of), "position 7 + time 1", "got 7 rows; use a long")
    calls = {"simple": {}, "local": {"bias": bias}, "conv1d": {"kernel": kernel}, "full": {"bias": double(T, T)}}
    for name, weights in calls.items():
        call = partial(getattr(aft, name), q, k, v, **weights, state=state, causal=False)
        refused(ValueError, call, f"aft.{name}: a state needs causal=True, got False")
    refused(ValueError, lambda: aft.full(q, k, v, cu_seqlens=torch.tensor([0]), state=state), "cu_seqlens must be None")
