"""The functions of docs/python.md that take weights of two public modules, against what these modules compute.

Their formulas are written out here from their published sources, in f64, with numbers small enough for them.
"""

import pathlib
import sys

import aft
import pytest
import torch
from torch.nn.functional import linear

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "docs"))
import run_examples

same = torch.testing.assert_close
EXACT = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def page():
    """What the section on other code defines."""
    names = {"aft": aft, "torch": torch}
    text = (pathlib.Path(__file__).parents[2] / "docs/python.md").read_text()
    _, section = text.split("## Coming from other code")
    for _, code in run_examples.blocks(section):
        exec(code, names)
    return names


def random_state(shapes):
    return {name: torch.randn(shape, dtype=torch.float64) / 2 for name, shape in shapes.items()}


def linears(names, outputs, inputs):
    return {f"{name}.{part}": shape for name in names
            for part, shape in (("weight", (outputs, inputs)), ("bias", (outputs,)))}


def labml_state(table, d):
    return random_state(linears(("query", "key", "value", "output"), d, d) | {"pos_bias": (table, table)})


def labml_formula(state, x, s):
    """sigmoid(q_i) sum_j e^(k_j - max k) e^(w_ij - max_i w_ij) v_j / the same sum without v: x [T, B, d]."""
    time = len(x)
    q, k, v = (linear(x, state[f"{name}.weight"], state.get(f"{name}.bias")) for name in ("query", "key", "value"))
    target, source = torch.arange(time)[:, None], torch.arange(time)
    w = state["pos_bias"][:time, :time] * ((source <= target) & (target - source < s))
    w[source > target] = -torch.inf
    e_w = torch.exp(w - w.amax(0))
    e_k = torch.exp(k - k.amax(0))
    num, den = (torch.einsum("ij,jbd->ibd", e_w, t) for t in (e_k * v, e_k))
    return linear(torch.sigmoid(q) * num / den, state["output.weight"], state["output.bias"])


@pytest.mark.parametrize("window", [1, 4, 11, 20])
@pytest.mark.parametrize("time", [1, 7, 11])
def test_labml_by_aft_local(page, window, time):
    state, x = labml_state(11, 6), torch.randn(time, 3, 6, dtype=torch.float64)
    same(page["labml_local"](state, x, window), labml_formula(state, x, window), **EXACT)
    without = {name: value for name, value in state.items() if name.startswith(("output", "pos")) or "weight" in name}
    same(page["labml_local"](without, x, window), labml_formula(without, x, window), **EXACT)


def test_labml_layer_is_the_module_where_its_shift_is_none(page):
    state, x = labml_state(11, 6), torch.randn(9, 3, 6, dtype=torch.float64)
    layer = page["labml_layer"](state, 4)
    difference = (layer(x.transpose(0, 1)) - labml_formula(state, x, 4).transpose(0, 1)).abs().max()
    assert difference > 1e-3  # of m, which the layer does not have
    # With 0 on the diagonal and less elsewhere the largest value over the targets is 0 for every source.
    state["pos_bias"] = -state["pos_bias"].abs().fill_diagonal_(0)
    same(page["labml_layer"](state, 4)(x.transpose(0, 1)).transpose(0, 1), labml_formula(state, x, 4), **EXACT)
    without = {name: value for name, value in state.items() if name.startswith(("output", "pos")) or "weight" in name}
    same(page["labml_layer"](without, 4)(x.transpose(0, 1)).transpose(0, 1), labml_formula(without, x, 4), **EXACT)


def aft_pytorch_state(table, d, hidden):
    shapes = linears(("to_q", "to_k", "to_v"), hidden, d) | linears(("project",), d, hidden)
    return random_state(shapes | ({"wbias": (table, table)} if table else {}))


def aft_pytorch_formula(state, x, s=None):
    """project(sigmoid(q) (e^w (e^k v)) / (e^w e^k)), w 0 outside |i - j| < s where there is an s: x [B, T, d]."""
    time = x.shape[1]
    q, k, v = (linear(x, state[f"to_{name}.weight"], state[f"to_{name}.bias"]) for name in "qkv")
    w = state["wbias"][:time, :time] if "wbias" in state else torch.zeros(time, time, dtype=torch.float64)
    if s is not None:
        w = w * ((torch.arange(time)[:, None] - torch.arange(time)).abs() < s)
    y = torch.sigmoid(q) * (w.exp() @ (k.exp() * v)) / (w.exp() @ k.exp())
    return linear(y, state["project.weight"], state["project.bias"])


@pytest.mark.parametrize("time", [1, 7, 11])
def test_aft_pytorch_by_the_operators(page, time):
    x = torch.randn(3, time, 6, dtype=torch.float64)
    for hidden in (6, 4):
        state = aft_pytorch_state(11, 6, hidden)
        same(page["aft_pytorch"](state, x), aft_pytorch_formula(state, x), **EXACT)
        for window in (1, 4, 11, 20):
            same(page["aft_pytorch"](state, x, window), aft_pytorch_formula(state, x, window), **EXACT)
        state = aft_pytorch_state(None, 6, hidden)
        same(page["aft_pytorch"](state, x), aft_pytorch_formula(state, x), **EXACT)
    state = aft_pytorch_state(11, 6, 6)
    same(page["aft_pytorch_layer"](state)(x), aft_pytorch_formula(state, x), **EXACT)
