"""The layers of aft.nn: against the equation, composed by hand from their parameters, and as modules of PyTorch."""

import copy
import json
import os
import pickle
import subprocess
from pathlib import Path

import aft
import pytest
import safetensors.torch
import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from equation import DEVICE, dense, double, grid_weights, refused, window_weights

B, T, D, H, CONTEXT, GRID = 2, 6, 6, 3, 9, (2, 3)
GATES = ("sigmoid", "relu", "none")
TOLERANCE = dict(rtol=1e-12, atol=1e-13)
same = torch.testing.assert_close
on_the_cpu = pytest.mark.skipif(DEVICE != "cpu", reason="numbers of the CPU's own")

# name: (class, what the constructor takes, causal or not as an argument).
LAYERS = {
    "simple": (aft.nn.AFTSimple, (D,), {}),
    "local": (aft.nn.AFTLocal, (D, CONTEXT), {"window": 3, "factor_channels": 4}),
    "local without a window": (aft.nn.AFTLocal, (D, CONTEXT), {"window": 0, "factor_channels": 4}),
    "conv1d": (aft.nn.AFTConv1d, (D,), {"heads": H, "kernel": 5}),
    "conv1d, a key a channel": (aft.nn.AFTConv1d, (D,), {"heads": H, "kernel": 5, "key_per_head": False}),
    "full": (aft.nn.AFTFull, (D, CONTEXT), {"factor_channels": 4}),
}
IMAGES = {
    "conv2d": {"heads": H},
    "conv2d, a key a channel": {"heads": H, "key_per_head": False},
    "conv2d, one head": {},
    "conv2d, not reparameterised": {"heads": H, "reparameterised": False},
    "conv2d, not global": {"heads": H, "global_": False},
    "conv2d, neither": {"heads": H, "reparameterised": False, "global_": False, "key_per_head": False},
}
ALL = (*LAYERS, *IMAGES)
FORMS = [(name, True) for name in LAYERS] + [(name, False) for name in ALL]


def layer_of(name, causal=True, scale=1.0, **options):
    """With weights that matter, where new ones would be near zero."""
    if name in IMAGES:
        layer = aft.nn.AFTConv2d(D, kernel=3, grid=GRID, **IMAGES[name], **options)
    else:
        kind, sizes, of_kind = LAYERS[name]
        layer = kind(*sizes, causal=causal, **of_kind, **options)
    with torch.no_grad():
        for parameter in layer.parameters(recurse=False):
            parameter.normal_(std=scale)
    return layer


def normalised(layer):
    """The kernel of section 3.2 of the paper, one head after another."""
    kernel = []
    for weight, gamma, beta in zip(layer.weight.double(), layer.gamma.double(), layer.beta.double(), strict=True):
        mean = weight.sum() / weight.numel()
        variance = (weight - mean).square().sum() / weight.numel()
        kernel.append(gamma * (weight - mean) / (variance + 1e-5).sqrt() + beta)
    return torch.stack(kernel)


def weights_of(layer, causal, time=T, grid=GRID):
    """The w of the equation, [1, 1 or H, T, T], in float64, from the parameters alone."""
    if isinstance(layer, aft.nn.AFTConv2d):
        kernel = normalised(layer) if layer.gamma is not None else layer.weight.double()
        w = grid_weights(kernel, *grid)
        if not layer.global_:
            outside = grid_weights(torch.ones_like(kernel), *grid) == 0
            w = w.masked_fill(outside, -torch.inf)
        return w
    if isinstance(layer, aft.nn.AFTConv1d):
        left = 4 if causal else 2
        return window_weights(normalised(layer).unsqueeze(1).expand(H, time, 5), left, time)
    if isinstance(layer, aft.nn.AFTSimple):
        return torch.zeros(1, 1, time, time, dtype=torch.float64)
    products = layer.u.double()[:time] @ layer.v.double()[:time].T
    if isinstance(layer, aft.nn.AFTLocal):
        apart = torch.arange(time).unsqueeze(1) - torch.arange(time)
        products = products.where(apart.abs() < layer.window, 0)
    return products[None, None]


def operator_of(layer, x, causal, gate, w):
    """gate(q) N / D of the layer's projection, by the dense equation, in float64."""
    qkv = F.linear(x, layer.qkv.weight, layer.qkv.bias).double()
    key = qkv.shape[-1] - D * (1 if gate == "none" else 2)
    q, k, v = qkv.split([qkv.shape[-1] - key - D, key, D], dim=-1)
    return dense(None if gate == "none" else q, k, v, w, causal, gate)


def assert_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_equation(name, causal, gate):
    layer = layer_of(name, causal, gate=gate, dtype=torch.float64)
    x = double(B, T, D)
    want = operator_of(layer, x, causal, gate, weights_of(layer, causal))
    same(layer(x), F.linear(want, layer.output.weight, layer.output.bias), **TOLERANCE)


@pytest.mark.parametrize(("name", "causal"), FORMS)
def test_gradients(name, causal):
    """Those of the input and every parameter, against the dense equation's."""
    layer = layer_of(name, causal, dtype=torch.float64)
    x = double(B, T, D).requires_grad_()
    leaves = {"x": x, **dict(layer.named_parameters())}
    if name == "local without a window":
        del leaves["u"], leaves["v"]
    want = operator_of(layer, x, causal, "sigmoid", weights_of(layer, causal))
    want = F.linear(want, layer.output.weight, layer.output.bias)
    target = torch.randn_like(want)
    got = torch.autograd.grad(layer(x), leaves.values(), target)
    expected = torch.autograd.grad(want, leaves.values(), target)
    for leaf, a, b in zip(leaves, got, expected, strict=True):
        assert b.any(), leaf
        same(a, b, rtol=1e-10, atol=1e-12, msg=lambda text, leaf=leaf: f"{leaf}: {text}")


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", LAYERS)
def test_chunks_and_steps_are_the_whole(name, gate):
    layer = layer_of(name, gate=gate, dtype=torch.float64)
    x = double(B, T, D)
    state = layer.initial_state(B)
    first, after = layer(x[:, :3], state=state)
    assert isinstance(after, aft.State)
    assert state.position.tolist() == [0] * B
    second, state = layer(x[:, 3:4], state=after)
    with torch.no_grad():
        steps = [layer.step(x[:, t : t + 1], state) for t in range(4, T)]
    assert state.position.tolist() == [T] * B
    same(torch.cat([first, second, *steps], 1), layer(x), **TOLERANCE)


@pytest.mark.parametrize("rows", [3, CONTEXT])
@pytest.mark.parametrize("name", LAYERS)
def test_steps_of_rows_at_different_places(name, rows):
    """Fewer of them than the positions of a layer, the last of which is among them, and as many."""
    layer = layer_of(name, dtype=torch.float64)
    x = double(rows, CONTEXT, D)
    seen = [0, CONTEXT - 1, 4] * (rows // 3)
    states = [layer(x[b : b + 1, :n], state=layer.initial_state(1))[1] for b, n in enumerate(seen)]
    state = aft.State(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    places = torch.arange(rows), torch.tensor(seen)
    with torch.no_grad():
        y = layer.step(x[places].unsqueeze(1), state)
    same(y.squeeze(1), layer(x)[places], **TOLERANCE)
    assert state.position.tolist() == [n + 1 for n in seen]
    full_up = {"local": "(position 9 + time 1, sequence 1), got 9 rows", "full": "a ring of 9, got 9 (batch row 1)"}
    if name in full_up:
        before = state.clone()
        with torch.no_grad():
            refused(RuntimeError, lambda: layer.step(x[:, :1], state), full_up[name])
        assert_equal(state, before)


def test_a_local_step_reads_the_rows_of_its_positions_alone():
    """Those are what AFTLocal.step makes."""
    seen = torch.tensor([0, 4, 6])
    q, k, v = torch.randn(3, 3, 1, D)
    bias = torch.randn(7, 3)
    state = aft.initial_state(k, v, left=2)
    state = aft.State(seen, *map(torch.ones_like, state[1:3]), *map(torch.randn_like, state[3:]))
    want = state.clone()
    holes = torch.full_like(bias, torch.nan).index_copy(0, seen, bias[seen])
    assert torch.equal(aft.local_step(q, k, v, holes, state), aft.local_step(q, k, v, bias, want))
    assert_equal(state, want)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_chunks_are_those_of_the_whole(name):
    layer = layer_of(name, dtype=torch.float64)
    x = double(B, T, D)
    first, state = layer(x[:, :4], state=layer.initial_state(B))
    second, _ = layer(x[:, 4:], state=state)
    loss = first.square().sum() + second.square().sum()
    got = torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True)
    want = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()), allow_unused=True)
    for a, b in zip(got, want, strict=True):
        if b is not None or a is not None:
            same(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_key_mask(name):
    layer = layer_of(name, dtype=torch.float64)
    x = double(B, T, D)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = False
    causal = name not in IMAGES
    w = weights_of(layer, causal).expand(B, -1, -1, -1).masked_fill(~mask[:, None, None, :], -torch.inf)
    want = F.linear(operator_of(layer, x, causal, "sigmoid", w), layer.output.weight, layer.output.bias)
    same(layer(x, key_mask=mask), want, **TOLERANCE)
    if causal:
        same(layer(x, state=layer.initial_state(B), key_mask=mask)[0], want, **TOLERANCE)


@pytest.mark.parametrize("name", LAYERS)
def test_packed_sequences(name):
    """More tokens than the context; each sequence is what it is alone."""
    layer = layer_of(name, dtype=torch.float64)
    x = double(1, 12, D)
    y = layer(x, cu_seqlens=torch.tensor([0, 5, 5, 12]))
    same(y[:, :5], layer(x[:, :5]), **TOLERANCE)
    same(y[:, 5:], layer(x[:, 5:]), **TOLERANCE)
    if name != "full":
        with_state, state = layer(x, cu_seqlens=torch.tensor([0, 5, 12]), state=layer.initial_state(2))
        same(with_state, y, **TOLERANCE)
        assert state.position.tolist() == [5, 7]


def test_any_grid():
    layer = layer_of("conv2d", dtype=torch.float64)
    x = double(B, 20, D)
    for grid in ((4, 5), [20, 1], (2, 10)):
        w = weights_of(layer, False, grid=grid)
        want = F.linear(operator_of(layer, x, False, "sigmoid", w), layer.output.weight, layer.output.bias)
        same(layer(x, grid), want, **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_16_bits_are_rounded_once(name, dtype):
    """Of the numbers that the 16-bit projection gives; an output projection of 1 shows what the operator gave."""
    layer = layer_of(name, scale=2.0, dtype=dtype)
    with torch.no_grad():
        layer.output.weight.copy_(torch.eye(D))
        layer.output.bias.zero_()
    x = double(B, T, D).to(dtype)
    causal = name not in IMAGES
    want = operator_of(layer, x, causal, "sigmoid", weights_of(layer, causal))
    y = layer(x)
    assert y.dtype == dtype
    # Half a unit in the last place, and the error of float32 sums before it.
    half_ulp = torch.finfo(dtype).eps / 2
    same(y.double(), want, rtol=half_ulp * 1.001 + 1e-5, atol=1e-6)
    y.sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is None or parameter.grad.dtype == dtype, key
    if causal:
        state = layer.initial_state(B)
        assert [t.dtype for t in state] == [torch.int64] + [torch.float32] * 5
        assert torch.equal(layer(x, state=state)[0], y) or name == "full"
        with torch.no_grad():
            assert layer.step(x[:, :1], state).dtype == dtype


@pytest.mark.parametrize("name", ALL)
def test_autocast(name):
    """The projections and the operator run in its dtype, factors and kernels stay wide."""
    layer = layer_of(name)
    x = torch.randn(B, T, D)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = layer(x)
        q, k, v = layer._project(x)
        assert k.dtype == torch.bfloat16
        kernel = layer.kernel() if hasattr(layer, "kernel") else None
        assert kernel is None or kernel.dtype == torch.float32
        causal = name not in IMAGES
        want = layer.output(aft.full(q, k, v, bias=weights_of(layer, causal).float(), causal=causal))
    assert y.dtype == torch.bfloat16
    same(y, want, rtol=2**-7, atol=2**-9)
    if causal:
        with torch.autocast(DEVICE, torch.bfloat16):
            chunk, state = layer(x, state=layer.initial_state(B))
        assert chunk.dtype == torch.bfloat16
        assert state.num.dtype == torch.float32
    y.float().sum().backward()
    assert layer.qkv.weight.grad.dtype == torch.float32


def test_parameters():
    """Names, shapes and order, those of include/aft/torch.h."""
    projections = {"qkv.weight": (18, 6), "qkv.bias": (18,), "output.weight": (6, 6), "output.bias": (6,)}
    per_head = {**projections, "qkv.weight": (15, 6), "qkv.bias": (15,)}
    factors, scales = {"u": (9, 4), "v": (9, 4)}, {"gamma": (3,), "beta": (3,)}
    image = {"weight": (3, 3, 3)}
    wanted = {
        "simple": projections,
        "local": {**factors, **projections},
        "local without a window": {**factors, **projections},
        "conv1d": {"weight": (3, 5), **scales, **per_head},
        "conv1d, a key a channel": {"weight": (3, 5), **scales, **projections},
        "full": {**factors, **projections},
        "conv2d": {**image, **scales, **per_head},
        "conv2d, a key a channel": {**image, **scales, **projections},
        "conv2d, one head": {"weight": (1, 3, 3), "gamma": (1,), "beta": (1,), **projections,
                             "qkv.weight": (13, 6), "qkv.bias": (13,)},
        "conv2d, not reparameterised": {**image, **per_head},
        "conv2d, not global": {**image, **scales, **per_head},
        "conv2d, neither": {**image, **projections},
    }
    for name in ALL:
        layer = layer_of(name)
        assert {key: tuple(t.shape) for key, t in layer.state_dict().items()} == wanted[name], name
        without = layer_of(name, gate="none").qkv.weight.shape
        assert tuple(without) == (wanted[name]["qkv.weight"][0] - D, D), name


@pytest.mark.parametrize("name", ALL)
def test_initial_values(name):
    """The draws of the C++ modules in their order: qkv, output, then what is the layer's own."""
    kind, sizes, options = LAYERS.get(name, (aft.nn.AFTConv2d, (D,), {"kernel": 3, **IMAGES.get(name, {})}))
    torch.manual_seed(5)
    layer = kind(*sizes, **options)
    after = torch.randn(2)
    torch.manual_seed(5)
    qkv, output = torch.nn.Linear(D, layer.qkv.out_features), torch.nn.Linear(D, D)
    assert_equal([*layer.qkv.parameters(), *layer.output.parameters()], [*qkv.parameters(), *output.parameters()])
    own = dict(layer.named_parameters(recurse=False))
    if "u" in own:
        assert_equal([own["u"], own["v"]], [torch.randn(CONTEXT, 4) * 0.01, torch.randn(CONTEXT, 4) * 0.01])
    elif "gamma" in own:
        assert_equal([own["weight"]], [torch.randn(own["weight"].shape)])
        assert not own["gamma"].any()
        assert not own["beta"].any()
    elif own:
        assert not own["weight"].any()
    assert torch.equal(after, torch.randn(2))
    torch.manual_seed(5)
    again = layer_of(name)
    torch.manual_seed(5)
    again.reset_parameters()
    assert_equal(again.parameters(), layer.parameters())


@on_the_cpu
def test_the_numbers_of_the_cpp_modules():
    """The last value of each parameter as aft::nn draws it after torch::manual_seed(5)."""
    layers = {
        "local": (aft.nn.AFTLocal(D, CONTEXT, window=3, factor_channels=4), {
            "u": -0.00310026482, "v": -0.00114944857, "qkv.weight": 0.0905165151, "qkv.bias": 0.370306998,
            "output.weight": 0.234242588, "output.bias": -0.165647537,
        }),
        "conv2d": (aft.nn.AFTConv2d(D, heads=H, kernel=3), {
            "weight": 0.406130701, "gamma": 0.0, "beta": 0.0, "qkv.weight": -0.158474609, "qkv.bias": -0.0387354195,
            "output.weight": -0.332675278, "output.bias": 0.0314046629,
        }),
    }
    for name, (layer, numbers) in layers.items():
        torch.manual_seed(5)
        layer.reset_parameters()
        drawn = {key: p.flatten()[-1].item() for key, p in layer.named_parameters()}
        assert drawn == pytest.approx(numbers, rel=1e-6), name


@pytest.mark.parametrize("name", ALL)
def test_meta_device(name):
    layer = layer_of(name, device="meta", dtype=torch.float64)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    layer.to_empty(device=DEVICE)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(torch.nan)
    layer.reset_parameters()
    assert all(p.isfinite().all() for p in layer.parameters())
    assert layer(double(B, T, D)).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_copies(name, tmp_path):
    """deepcopy, pickle, torch.save, state_dict, functional_call: the same outputs, memory of their own."""
    layer = layer_of(name)
    x = torch.randn(B, T, D)
    y = layer(x)
    torch.save(layer, tmp_path / "layer")
    torch.save(layer.state_dict(), tmp_path / "state_dict")
    loaded = layer_of(name)
    loaded.load_state_dict(torch.load(tmp_path / "state_dict"))
    values = {key: t.detach().clone() for key, t in layer.named_parameters()}
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)),
              torch.load(tmp_path / "layer", weights_only=False), loaded]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert not layer(x).any()
    for other in copies:
        assert repr(other) == repr(layer)
        assert torch.equal(other(x), y)
    assert torch.equal(torch.func.functional_call(layer, values, (x,)), y)
    assert not layer(x).any()


@pytest.mark.parametrize("name", ALL)
def test_compile(name):
    """In one graph, with gradients; from a state and a step where there are."""
    layer = layer_of(name)
    x = torch.randn(B, T, D)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    got, want = compiled(x), layer(x)
    assert torch.equal(got, want)
    parameters = list(layer.parameters())
    same(*(torch.autograd.grad(y.square().sum(), parameters, allow_unused=True) for y in (got, want)))
    if name in IMAGES:
        return
    got, want = compiled(x, state=layer.initial_state(B)), layer(x, state=layer.initial_state(B))
    assert isinstance(got[1], aft.State)
    assert_equal((got[0], *got[1]), (want[0], *want[1]))
    with torch.no_grad():
        step = torch.compile(layer.step, fullgraph=True, backend="aot_eager")
        assert torch.equal(step(x[:, :1], got[1]), layer.step(x[:, :1], want[1]))
    assert_equal(got[1], want[1])


@pytest.mark.parametrize("name", ALL)
def test_export(name):
    """Of any batch size, and of any length up to the context where there is no grid."""
    layer = layer_of(name).eval()
    dynamic = {0: torch.export.Dim("batch")}
    if name not in IMAGES:
        dynamic[1] = torch.export.Dim("time", max=CONTEXT)
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(B, T, D),), dynamic_shapes=(dynamic,))
        x = torch.randn(B + 3, T if name in IMAGES else T + 2, D)
        assert torch.equal(program.module()(x), layer(x))


@pytest.mark.parametrize("name", ALL)
def test_gradient_checkpointing(name):
    layer = layer_of(name)
    x = torch.randn(B, T, D)
    parameters = [p for key, p in layer.named_parameters() if name != "local without a window" or key not in "uv"]
    got = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), parameters)
    assert_equal(got, torch.autograd.grad(layer(x).square().sum(), parameters))


def test_repr():
    """extra_repr shows the arguments by name."""
    for name in ALL:
        layer = layer_of(name)
        kind = type(layer).__name__
        text = layer.extra_repr()
        again = eval(f"aft.nn.{kind}({text})")  # the words are those of the constructor
        assert again.extra_repr() == text
        assert repr(layer).startswith(f"{kind}(\n  {text}\n")
    local = aft.nn.AFTLocal(6, 9, window=3, factor_channels=4)
    assert local.extra_repr() == "channels=6, context=9, window=3, factor_channels=4, causal=True, gate='sigmoid'"


def test_errors():
    nn = aft.nn
    x = torch.randn(B, T, D)
    for options, words in (
        ((0, 9), "AFTLocal: channels must be at least 1, got 0"),
        ((6, 0), "AFTLocal: context must be at least 1, got 0"),
    ):
        refused(ValueError, lambda options=options: nn.AFTLocal(*options), f"aft.nn.{words}: set it")
    refused(ValueError, lambda: nn.AFTLocal(6, 9, window=-1), "aft.nn.AFTLocal: window must be at least 0, got -1")
    refused(ValueError, lambda: nn.AFTFull(6, 9, factor_channels=0), "factor_channels must be at least 1, got 0")
    refused(ValueError, lambda: nn.AFTSimple(6, gate="tanh"), 'AFTSimple: gate must be "sigmoid"', "got 'tanh'")
    refused(ValueError, lambda: nn.AFTConv1d(6, heads=4), "AFTConv1d: heads must divide channels = 6, got 4")
    refused(ValueError, lambda: nn.AFTConv1d(6, kernel=4, causal=False), "kernel must be odd if causal is False, got 4")
    refused(ValueError, lambda: nn.AFTConv2d(6, kernel=4), "aft.nn.AFTConv2d: kernel must be odd, got 4")
    refused(ValueError, lambda: nn.AFTConv2d(6)(x), "AFTConv2d: grid must be [height, width], got None: pass it")
    refused(RuntimeError, lambda: nn.AFTConv2d(6, grid=(2, 4))(x), "aft::conv2d: grid must be", "got [2, 4]")
    for name in ALL:
        layer = layer_of(name)
        kind = f"aft.nn.{type(layer).__name__}: "
        refused(ValueError, lambda layer=layer: layer(torch.randn(T, D)), kind + "x must have shape", "got [6, 6]")
        refused(ValueError, lambda layer=layer: layer(torch.randn(1, T, 5)), "[batch, time, 6], got [1, 6, 5]: reshape")
        refused(RuntimeError, lambda layer=layer: layer(x, key_mask=torch.ones(B, T)), "key_mask must be bool")
    for name in LAYERS:
        layer = layer_of(name, causal=False)
        kind = f"aft.nn.{type(layer).__name__}: a state needs causal=True, got False"
        state = layer_of(name).initial_state(B)
        for call in (lambda: layer.initial_state(B), lambda: layer(x, state=state), lambda: layer.step(x, state)):
            refused(ValueError, call, kind)
        causal = layer_of(name)
        refused(RuntimeError, lambda: causal(x, state=causal.initial_state(3)), "state position", "shape [2]")
        refused(RuntimeError, lambda: causal.step(x[:, :1], causal.initial_state(B)), "torch.no_grad()")
    for name in ("local", "full"):
        layer = layer_of(name)
        text = f"aft.nn.{type(layer).__name__}: x must hold at most context = 9 positions, got 10: shorten it"
        refused(ValueError, lambda layer=layer: layer(torch.randn(B, 10, D)), text)
        _, state = layer(x, state=layer.initial_state(B))
        refused(RuntimeError, lambda layer=layer, state=state: layer(x, state=state), "position", "9")


def byte_model(tensors, config, mixers, text):
    """What docs/model-file.md says that a model of bytes computes, with these mixers: bits per byte of the text."""
    t = {key: value.double() for key, value in tensors.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    nats, predicted = 0.0, 0
    for begin in range(0, len(text), config["context"]):
        tokens = torch.tensor(list(text[begin : begin + config["context"]]))
        x = (t["embedding.token.weight"][tokens] + t["embedding.position.weight"][: len(tokens)]).unsqueeze(0)
        for i, mixer in enumerate(mixers):
            x = x + mixer(norm(x, f"blocks.{i}.mixer_norm"))
            up = linear(norm(x, f"blocks.{i}.mlp_norm"), f"blocks.{i}.mlp.up")
            x = x + linear(F.gelu(up), f"blocks.{i}.mlp.down")
        logits = norm(x, "norm") @ t["head.weight"].T
        nats += F.cross_entropy(logits[0, :-1], tokens[1:], reduction="sum").item()
        predicted += len(tokens) - 1
    return nats / predicted / torch.tensor(2.0).log().item()


@on_the_cpu
@pytest.mark.parametrize("mixer", ["aft_simple", "aft_local", "aft_conv1d", "aft_full"])
def test_model_file_of_the_programs(mixer, tmp_path):
    """The tensors under blocks.i.mixer. of a model file are a state_dict: with them `aft eval` is repeated."""
    aft_program = os.environ.get("AFT")
    write_model = aft_program and Path(aft_program).parent / "write_model"
    if not (write_model and write_model.exists()):
        pytest.skip("AFT is not set to a build's `aft` with write_model beside it")
    path, text = tmp_path / "model.safetensors", tmp_path / "text"
    text.write_bytes(bytes(range(32, 127)) * 2 + b"\x00\xff")
    subprocess.run([write_model, mixer, path, "11"], check=True)
    run = subprocess.run([aft_program, "eval", path, text, "--json"], check=True, capture_output=True, text=True)
    said = json.loads(run.stdout)
    with safetensors.safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    options, d, context = config["mixer"], config["channels"], config["context"]
    make = {
        "aft_simple": lambda: aft.nn.AFTSimple(d, dtype=torch.float64),
        "aft_local": lambda: aft.nn.AFTLocal(
            d, context, window=options["window"], factor_channels=options["factor_channels"], dtype=torch.float64),
        "aft_conv1d": lambda: aft.nn.AFTConv1d(
            d, heads=options["heads"], kernel=options["window"], dtype=torch.float64),
        "aft_full": lambda: aft.nn.AFTFull(
            d, context, factor_channels=options["factor_channels"], dtype=torch.float64),
    }[mixer]
    mixers = []
    for i in range(config["layers"]):
        prefix = f"blocks.{i}.mixer."
        mixers.append(make())
        mixers[-1].load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    with torch.no_grad():
        bits = byte_model(tensors, config, mixers, text.read_bytes())
    assert bits == pytest.approx(said["bits_per_byte"], rel=1e-6)
