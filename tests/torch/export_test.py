"""torch.export: each operator and its layer as a program that was saved, loaded and run."""

import io
import unittest

import torch
from torch.export import Dim, export, load, save

from aft_testing import aft


class Call(torch.nn.Module):
    """A bare operator, so that what is exported is the call alone."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, *tensors):
        return self.call(*tensors)


class Mixer(torch.nn.Module):
    """An operator between projections, as the layers of aft/torch.h: q, k and v are views of one tensor."""

    def __init__(self, channels=6, keys=6):
        super().__init__()
        self.sizes = [channels, keys, channels]
        self.qkv = torch.nn.Linear(channels, sum(self.sizes))
        self.output = torch.nn.Linear(channels, channels)

    def mix(self, q, k, v):
        return aft.simple(q, k, v)

    def forward(self, x):
        return self.output(self.mix(*self.qkv(x).split(self.sizes, -1)))


class Local(Mixer):
    def __init__(self, causal=True):
        super().__init__()
        self.causal = causal
        self.u, self.v = (torch.nn.Parameter(torch.randn(16, 3)) for _ in range(2))

    def mix(self, q, k, v):
        bias = aft.local_bias(self.u, self.v, 3, 0 if self.causal else 3)
        return aft.local(q, k, v, bias, causal=self.causal)


class Conv1d(Mixer):
    def __init__(self):
        super().__init__(keys=2)
        self.weight = torch.nn.Parameter(torch.randn(2, 5))
        self.gamma, self.beta = (torch.nn.Parameter(torch.rand(2, 1)) for _ in range(2))

    def mix(self, q, k, v):
        w = self.weight
        normal = (w - w.mean(1, keepdim=True)) / (w.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return aft.conv1d(q, k, v, self.gamma * normal + self.beta)


class Conv2d(Mixer):
    def __init__(self):
        super().__init__(keys=2)
        self.kernel = torch.nn.Parameter(torch.randn(2, 3, 3))

    def mix(self, q, k, v):
        return aft.conv2d(q, k, v, self.kernel, [2, 5])


class Full(Mixer):
    def __init__(self, causal=True):
        super().__init__()
        self.causal = causal
        self.u, self.v = (torch.nn.Parameter(torch.randn(16, 3)) for _ in range(2))

    def mix(self, q, k, v):
        return aft.full(q, k, v, None, self.u, self.v, causal=self.causal)


class Reference(Mixer):
    def __init__(self):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.randn(2, 3, 3))

    def mix(self, q, k, v):
        return aft.reference(q, k, v, aft.conv2d_weights(self.kernel, (2, 5)), causal=False)


def again(program):
    file = io.BytesIO()
    save(program, file)
    file.seek(0)
    return load(file)


def sample(batch=2, time=10, channels=6):
    return [torch.randn(batch, time, channels) for _ in range(3)]


class Export(unittest.TestCase):
    def expect_same(self, module, tensors, others=(), **options):
        """The exported program gives the module's bits: on the tensors it was traced with, and on others."""
        module.eval()
        program = again(export(module, tuple(tensors), **options)).module()
        for case in (tensors, *others):
            got, want = program(*case), module(*case)
            pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
            for a, b in pairs:
                self.assertTrue(torch.equal(a, b))

    def test_operators(self):
        bias, kernel = torch.randn(12, 3), torch.randn(2, 3)
        state = [t.clone() for t in aft.initial_state(*sample()[1:], 2)]
        square, ring = torch.randn(2, 10, 10), [t.clone() for t in aft.initial_state(*sample()[1:], 10)]
        flat = [t.clone() for t in aft.initial_state(*sample()[1:])]
        factors = [torch.randn(10, 4) for _ in range(2)]
        qkv = sample()
        for name, call, tensors in (
            ("simple", lambda *t: aft.simple(*t), qkv),
            ("simple, no gate", lambda k, v: aft.simple(None, k, v, gate="none", causal=False), qkv[1:]),
            ("local", lambda *t: aft.local(*t), [*qkv, bias]),
            ("conv1d", lambda *t: aft.conv1d(*t, causal=False), [*qkv, kernel]),
            ("simple_with_state", lambda q, k, v, *s: aft.simple_with_state(q, k, v, list(s)), [*qkv, *flat]),
            ("local_with_state", lambda q, k, v, b, *s: aft.local_with_state(q, k, v, b, list(s)),
             [*qkv, bias, *state]),
            ("conv1d_with_state", lambda q, k, v, w, *s: aft.conv1d_with_state(q, k, v, w, list(s)),
             [*qkv, kernel, *state]),
            ("conv2d", lambda *t: aft.conv2d(*t, [2, 5]), [*qkv, torch.randn(2, 3, 3)]),
            ("full", lambda *t: aft.full(*t), [*qkv, square]),
            ("full, factors", lambda q, k, v, u, w: aft.full(q, k, v, None, u, w, causal=False), [*qkv, *factors]),
            ("full_with_state", lambda q, k, v, b, *s: aft.full_with_state(q, k, v, b, None, None, list(s)),
             [*qkv, square, *ring]),
            ("initial_state", lambda k, v: aft.initial_state(k, v, 3), qkv[1:]),
            ("local_bias", lambda u, w: aft.local_bias(u, w, 2, 1), factors),
            ("reference", lambda *t: aft.reference(*t), qkv),
            ("local_weights", lambda b: aft.local_weights(b, 7, 2), [bias]),
            ("conv2d_weights", lambda w: aft.conv2d_weights(w, (2, 3)), [torch.randn(2, 3, 3)]),
        ):
            with self.subTest(name):
                self.expect_same(Call(call), tensors)

    def test_step_edits_the_state_given(self):
        q, k, v = sample(time=1)
        for name, call in (
            ("simple", lambda q, k, v, _, s: aft.simple_step_(q, k, v, s)),
            ("local", lambda q, k, v, w, s: aft.local_step_(q, k, v, w, s)),
            ("conv1d", lambda q, k, v, w, s: aft.conv1d_step_(q, k, v, w[:1], s)),
            ("full", lambda q, k, v, w, s: aft.full_step_(q, k, v, w, None, None, s)),
        ):
            with self.subTest(name), torch.no_grad():
                left = {"simple": 0, "full": 3}.get(name, 2)
                start = [t.clone() for t in aft.initial_state(k, v, left)]
                module = Call(lambda q, k, v, w, *s, call=call: call(q, k, v, w, list(s)))
                tensors = (q, k, v, torch.randn(4, 3))
                program = again(export(module, (*tensors, *[t.clone() for t in start]))).module()
                got, want = [t.clone() for t in start], [t.clone() for t in start]
                for _ in range(3):
                    self.assertTrue(torch.equal(program(*tensors, *got), module(*tensors, *want)))
                self.assertEqual(want[0].tolist(), [3, 3])
                for a, b in zip(got, want, strict=True):
                    self.assertTrue(torch.equal(a, b))

    def test_layers(self):
        for layer in (Mixer(), Local(), Local(causal=False), Conv1d(), Conv2d(), Full(), Full(causal=False),
                      Reference()):
            with self.subTest(type(layer).__name__):
                self.expect_same(layer, [torch.randn(2, 10, 6)])

    def test_any_batch_and_length(self):
        # Without gradients: with them the length is a number, as what the forward saves depends on it.
        shapes = {"tensors": ({0: Dim("batch"), 1: Dim("time", max=16)},)}
        sizes = [(2, 10), (3, 7), (5, 16)]
        for layer in (Mixer(), Local(), Conv1d(), Full(), Full(causal=False)):
            with self.subTest(type(layer).__name__), torch.no_grad():
                first, *others = [[torch.randn(batch, time, 6)] for batch, time in sizes]
                self.expect_same(Call(layer), first, others, dynamic_shapes=shapes)

    def test_the_operator_stays_one_node(self):
        program = export(Local(), (torch.randn(2, 10, 6),))
        called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
        self.assertIn("aft.local.default", called)


if __name__ == "__main__":
    unittest.main()
