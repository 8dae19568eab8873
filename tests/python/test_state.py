"""aft.State: what it carries, how its rows are taken, and files of it."""

import copy
import json
import os
import pickle

import aft
import pytest
import safetensors.torch
import torch
from torch.utils.checkpoint import checkpoint

B, T, D, LEFT = 3, 9, 4, 2
BIAS = torch.randn(T, LEFT + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def inputs(batch=B, time=T):
    return torch.randn(3, batch, time, D, dtype=torch.float64)


def state_after(q, k, v, **options):
    return aft.local(q, k, v, BIAS, **options, state=aft.initial_state(k, v, LEFT))[1]


def assert_same(got, want):
    assert isinstance(got, aft.State)
    for name, a, b in zip(aft.State._fields, got, want, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


def test_fields():
    """The sums of the equation, by hand: of the sources before the ring, and the ring itself."""
    _, k, v = inputs()
    state = state_after(None, k, v, gate="none")
    assert state._fields == ("position", "max", "den", "num", "ring_key", "ring_value")
    assert state.position.tolist() == [T] * B
    scale = torch.exp2(state.max)
    torch.testing.assert_close(state.den * scale, k[:, :-LEFT].exp().sum(1), rtol=1e-13, atol=0)
    weighted = k[:, :-LEFT].exp() * v[:, :-LEFT]
    torch.testing.assert_close(state.num * scale, weighted.sum(1), rtol=1e-12, atol=1e-14)
    for source in (T - 2, T - 1):
        assert torch.equal(state.ring_key[:, source % LEFT], k[:, source])
        assert torch.equal(state.ring_value[:, source % LEFT], v[:, source])


def test_detach_cuts_the_graph_and_clone_does_not():
    qkv = [t.requires_grad_() for t in inputs()]
    state = state_after(*qkv)
    assert [t.requires_grad for t in state] == [False, False, True, True, True, True]
    assert_same(state.detach(), state)
    assert not any(t.requires_grad for t in state.detach())
    copied = state.clone()
    assert_same(copied, state)
    assert copied.num.requires_grad
    later = inputs(time=1)
    before = [t.clone() for t in state.detach()]
    with torch.no_grad():
        aft.local_step(*later, torch.randn(T + 1, LEFT + 1, dtype=torch.float64), copied)
    assert copied.position.tolist() == [T + 1] * B
    assert_same(state, before)


def test_truncated_backpropagation():
    """Of two chunks: with the state detached, the second loss has no gradient in the first chunk; else that of all."""
    qkv = [t.requires_grad_() for t in inputs()]
    first = [t[:, :5] for t in qkv]
    second = [t[:, 5:] for t in qkv]
    y, _ = aft.local(*second, BIAS, state=state_after(*first))
    whole = torch.autograd.grad(aft.local(*qkv, BIAS)[:, 5:].square().sum(), qkv)
    for got, want in zip(torch.autograd.grad(y.square().sum(), qkv), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    y, _ = aft.local(*second, BIAS, state=state_after(*first).detach())
    for name, got in zip("qkv", torch.autograd.grad(y.square().sum(), qkv), strict=True):
        assert not got[:, :5].any(), name
        assert got[:, 5:].any(), name


def test_to():
    state = state_after(*inputs())
    for small in (state.to(torch.float32), state.to("cpu", torch.float32), state.to(dtype=torch.float32)):
        assert_same(small, [state.position, *(t.float() for t in state[1:])])
    assert_same(state.to("cpu"), state)
    assert [t.device.type for t in state.to("meta")] == ["meta"] * 6
    with pytest.raises(ValueError, match=r"State\.to: dtype must be torch\.float32 or .*, got torch\.bfloat16"):
        state.to(torch.bfloat16)


def test_repeat_then_reorder_is_a_beam_search():
    """Each hypothesis gives what it gives alone, from its first position on, whoever its neighbours were."""
    beams, steps = 3, 4
    prompt, draws = inputs(batch=2, time=4), inputs(batch=2 * beams, time=steps)
    weights = torch.randn(4 + steps, LEFT + 1, dtype=torch.float64)
    _, state = aft.local(*prompt, weights, state=aft.initial_state(*prompt[1:], LEFT))
    state = state.repeat(beams)
    assert state.position.shape == (2 * beams,)
    history = [[t[b // beams] for t in prompt] for b in range(2 * beams)]  # q, k, v that each hypothesis has seen
    for i in range(steps):
        y = aft.local_step(*draws[:, :, i : i + 1], weights, state)
        history = [[torch.cat([t, new[b, i : i + 1]]) for t, new in zip(h, draws, strict=True)]
                   for b, h in enumerate(history)]
        for b, own in enumerate(history):
            alone = aft.local(*(t.unsqueeze(0) for t in own), weights)
            torch.testing.assert_close(y[b], alone[0, -1:], rtol=1e-12, atol=1e-14)
        # The kept ones, in another order: some twice, some never, each within its own prompt.
        index = torch.tensor([2, 2, 0, 4, 3, 4] if i % 2 == 0 else [1, 0, 1, 5, 5, 3])
        state = state.reorder(index)
        history = [history[b] for b in index.tolist()]


def test_reorder_copies_and_has_gradients():
    qkv = [t.requires_grad_() for t in inputs()]
    state = state_after(*qkv).reorder(torch.tensor([1, 1]))
    got = torch.autograd.grad(state.num.sum(), qkv[2])[0]
    assert got[1].any()
    assert not got[0].any()
    plain = state_after(*inputs())
    same_rows = plain.reorder(torch.arange(B))
    assert_same(same_rows, plain)
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(same_rows, plain, strict=True))


def test_pytree_copy_and_pickle():
    state = state_after(*inputs())
    leaves, spec = torch.utils._pytree.tree_flatten(state)
    assert len(leaves) == 6
    assert_same(torch.utils._pytree.tree_unflatten(leaves, spec), state)
    assert_same(copy.deepcopy(state), state)
    assert_same(pickle.loads(pickle.dumps(state)), state)


def test_methods_compile_in_one_graph():
    def run(q, k, v, state, index):
        y, state = aft.local(q, k, v, BIAS, state=state.detach().clone())
        return y, state.reorder(index).repeat(2).to(torch.float32)

    q, k, v = inputs()
    arguments = q, k, v, aft.initial_state(k, v, LEFT), torch.tensor([2, 0])
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(*arguments)
    want = run(*arguments)
    assert torch.equal(got[0], want[0])
    assert_same(got[1], want[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant):
    """Recomputed in the backward, state in and out: the gradients are the same bits."""

    def run(q, k, v, *state):
        y, after = aft.local(q, k, v, BIAS, state=aft.State(*state))
        return y, *after

    def gradients(call, qkv):
        q, k, v = (t.clone().requires_grad_() for t in qkv)
        y1, *state = call(q[:, :5], k[:, :5], v[:, :5], *aft.initial_state(k, v, LEFT))
        y2, *state = call(q[:, 5:], k[:, 5:], v[:, 5:], *state)
        (y1.square().sum() + y2.square().sum() + state[3].square().sum()).backward()
        return q.grad, k.grad, v.grad

    qkv = inputs()
    again = gradients(lambda *t: checkpoint(run, *t, use_reentrant=use_reentrant), qkv)
    for got, want in zip(again, gradients(run, qkv), strict=True):
        assert torch.equal(got, want)


def test_save_and_load(tmp_path):
    path = tmp_path / "state.safetensors"
    for state in (
        state_after(*(t.requires_grad_() for t in inputs())),
        aft.initial_state(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4)),  # an empty ring
        state_after(*inputs()).to(torch.float32).reorder(torch.tensor([0]))._replace(position=torch.tensor([2**40])),
    ):
        state.save(path)  # over what is there
        assert os.listdir(tmp_path) == [path.name]
        again = aft.State.load(str(path))
        assert_same(again, state)
        assert not any(t.requires_grad for t in again)
    with safetensors.safe_open(path, framework="pt") as file:  # what another program sees
        assert file.metadata() == {"format": "aft-state", "format_version": "1"}
        assert set(file.keys()) == set(aft.State._fields)


def test_saves_what_is_not_contiguous_or_shares_memory(tmp_path):
    row = state_after(*inputs(batch=1))
    state = aft.State(*(t.expand(3, *t.shape[1:]) for t in row))
    state.save(tmp_path / "state")
    assert_same(aft.State.load(tmp_path / "state"), state)


def test_a_loaded_state_goes_on(tmp_path):
    q, k, v = inputs()
    state_after(q[:, :5], k[:, :5], v[:, :5]).save(tmp_path / "state")
    y, _ = aft.local(q[:, 5:], k[:, 5:], v[:, 5:], BIAS, state=aft.State.load(tmp_path / "state"))
    torch.testing.assert_close(y, aft.local(q, k, v, BIAS)[:, 5:], rtol=1e-12, atol=1e-14)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state"
    state = state_after(*inputs())
    state.save(path)

    def fail(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        aft.initial_state(torch.zeros(2, 0, 4), torch.zeros(2, 0, 4)).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    monkeypatch.undo()
    assert_same(aft.State.load(path), state)


def test_foreign_and_broken_files(tmp_path):
    path = tmp_path / "state"
    state = state_after(*inputs())
    state.save(path)
    good = path.read_bytes()
    tensors, metadata = dict(state._asdict()), {"format": "aft-state", "format_version": "1"}

    def refused(data, *words):
        path.write_bytes(data)
        with pytest.raises(ValueError) as caught:
            aft.State.load(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        for word in words:
            assert word in message, message

    for size in (0, 7, 8, 100, len(good) - 1):
        refused(good[:size], "broken")
    refused(b"\xff" * 64, "broken")
    refused(json.dumps(metadata).encode(), "broken")
    refused(safetensors.torch.save(tensors), 'format "aft-state" was expected, got none')
    refused(safetensors.torch.save(tensors, {"format": "aft"}), 'format "aft-state" was expected, got "aft"')
    refused(safetensors.torch.save(tensors, metadata | {"format_version": "2"}), "format_version 1 was expected, got 2")

    def changed(**changes):
        return safetensors.torch.save({**tensors, **changes}, metadata)

    refused(changed(extra=torch.zeros(1)), "extra")
    refused(safetensors.torch.save({"max": state.max}, metadata), "position, max, den, num", "got max:")
    refused(changed(position=state.position.int()), "position was expected as torch.int64 of shape [3]", "torch.int32")
    refused(changed(position=torch.tensor(3)), "position was expected", "of shape []")
    refused(changed(den=state.den[:, 1:].contiguous()), "den was expected as torch.float64 of shape [3, 4]", "[3, 3]")
    refused(changed(max=state.max.bfloat16()), "max was expected as torch.float32", "torch.bfloat16")
    refused(changed(ring_value=state.ring_value[:, 1:].clone()), "ring_value was expected", "[3, 2, 4]", "[3, 1, 4]")
    refused(changed(num=torch.zeros((), dtype=torch.float64)), "num was expected", "of shape []")
    with pytest.raises(FileNotFoundError):
        aft.State.load(tmp_path / "nothing")
