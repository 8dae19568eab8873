"""aft::reference and the weights it takes: against the equation written out, finite differences twice, the kernels."""

import itertools
import math
import unittest

import torch
import torch._dynamo.testing
from torch.autograd import gradcheck, gradgradcheck

from aft_testing import DEVICE, aft, dense, inputs, seeded

F64 = dict(rtol=1e-11, atol=1e-13)


def by_hand(q, k, v, w=None, causal=True, gate="sigmoid", heads=1, key_mask=None):
    """One number after another, in Python floats."""
    batch, sources, channels = v.shape
    if w is not None:
        w = w.detach().expand(batch, heads if w.dim() < 3 or w.size(-3) == 1 else w.size(-3), *w.shape[-2:])
        heads = w.size(1)
    targets = w.size(2) if w is not None else sources if q is None else q.size(1)
    y = torch.zeros(batch, targets, channels, dtype=torch.float64)
    for b, t, c in itertools.product(range(batch), range(targets), range(channels)):
        h = c // (channels // heads)
        num = den = 0.0
        for s in range(sources):
            if (causal and s > t) or (key_mask is not None and not key_mask[b, s]):
                continue
            key = float(k[b, s, c if k.size(2) == channels else h])
            e = math.exp(key + (0.0 if w is None else float(w[b, h, t, s])))
            num += e * float(v[b, s, c])
            den += e
        g = 1.0
        if gate == "sigmoid":
            g = 1 / (1 + math.exp(-float(q[b, t, c])))
        elif gate == "relu":
            g = max(float(q[b, t, c]), 0.0)
        y[b, t, c] = g * num / den if den > 0 else 0.0
    return y


def forbid(w, part=0.3, seed=5):
    """w with some entries -inf, among them all of the second target."""
    w = w.detach().clone()
    w[torch.rand(w.shape, generator=seeded(seed)) < part] = -math.inf
    w[..., 1, :] = -math.inf
    return w.requires_grad_()


class Values(unittest.TestCase):
    def test_against_the_equation(self):
        for causal, gate, key_channels, shape in itertools.product(
            (True, False), ("sigmoid", "relu", "none"), (6, 2),
            (None, (4, 4), (2, 4, 4), (1, 2, 4, 4), (3, 2, 4, 4), (3, 1, 4, 4)),
        ):
            with self.subTest(causal=causal, gate=gate, key_channels=key_channels, shape=shape):
                q, k, v = inputs(3, 4, 6, key_channels=key_channels, gate=gate)
                w = None if shape is None else forbid(torch.randn(shape, dtype=torch.float64))
                mask = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
                for key_mask in (None, mask):
                    options = dict(causal=causal, gate=gate, heads=2, key_mask=key_mask)
                    y = aft.reference(q, k, v, w, **options)
                    torch.testing.assert_close(y, by_hand(q, k, v, w, **options), **F64)

    def test_other_targets_than_sources(self):
        q = torch.randn(2, 3, 4, dtype=torch.float64)
        k, v = torch.randn(2, 2, 5, 4, dtype=torch.float64)
        for w in (None, torch.randn(2, 3, 5, dtype=torch.float64)):
            y = aft.reference(q, k, v, w, causal=False)
            torch.testing.assert_close(y, by_hand(q, k, v, w, causal=False), **F64)

    def test_empty_sizes(self):
        for batch, time, channels in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
            q, k, v = inputs(batch, time, channels, requires_grad=True)
            y = aft.reference(q, k, v, torch.zeros(time, time, dtype=torch.float64))
            self.assertEqual(y.shape, v.shape)
            y.sum().backward()
        q, k, v = torch.randn(2, 3, 4), torch.randn(2, 0, 4), torch.randn(2, 0, 4)
        self.assertTrue(torch.equal(aft.reference(q, k, v, causal=False), torch.zeros(2, 3, 4)))

    def test_maxima_far_apart(self):
        # The largest weight and the largest key sit on different sources, far beyond what f32 spans.
        k = torch.tensor([300.0, 0.0]).view(1, 2, 1)
        v = torch.tensor([2.0, 5.0]).view(1, 2, 1)
        w = torch.tensor([[0.0, 0.0], [-300.0, 0.0]])
        y = aft.reference(None, k, v, w, gate="none")
        self.assertEqual(y.flatten().tolist(), [2.0, 3.5])
        y = aft.reference(None, 65504 * k / 300, v, -65504.0 * (w != 0), gate="none")
        self.assertEqual(y.flatten().tolist(), [2.0, 3.5])

    def test_what_a_row_does_not_see_never_reaches_it(self):
        q, k, v = inputs(1, 4, 3, requires_grad=True)
        mask = torch.tensor([[True, False, True, True]])
        clean = aft.reference(q, k, v, key_mask=mask)

        def spoiled(source):
            bad_k, bad_v = k.detach().clone(), v.detach().clone()
            bad_k[0, source], bad_v[0, source] = math.nan, math.inf
            return bad_k.requires_grad_(), bad_v.requires_grad_()

        y = aft.reference(q, *spoiled(3), key_mask=mask)  # the future of the first three rows
        self.assertTrue(torch.equal(y[:, :3], clean[:, :3]))
        self.assertTrue(y[:, 3].isnan().all())
        hidden = (q, *spoiled(1))
        y = aft.reference(*hidden, key_mask=mask)
        self.assertTrue(torch.equal(y, clean))
        for a, b in zip(torch.autograd.grad(y.sum(), hidden), torch.autograd.grad(clean.sum(), (q, k, v)), strict=True):
            self.assertTrue(torch.equal(a, b))

    def test_small_types_are_rounded_once(self):
        q, k, v = inputs(2, 5, 4, dtype=torch.float32)
        w = torch.randn(5, 5)
        for dtype in (torch.bfloat16, torch.float16):
            small = [t.to(dtype) for t in (q, k, v)]
            y = aft.reference(*small, w)
            self.assertEqual(y.dtype, dtype)
            self.assertTrue(torch.equal(y, aft.reference(*[t.float() for t in small], w).to(dtype)))


class Derivatives(unittest.TestCase):
    def check(self, call, *tensors):
        self.assertTrue(gradcheck(call, tensors))
        self.assertTrue(gradgradcheck(call, tensors))

    def test_twice(self):
        for causal, gate, key_channels in itertools.product((True, False), ("sigmoid", "relu", "none"), (4, 2)):
            q, k, v = inputs(2, 3, 4, key_channels=key_channels, gate=gate, requires_grad=True)
            w = forbid(torch.randn(2, 3, 3, dtype=torch.float64))
            tensors = [t for t in (q, k, v, w) if t is not None]
            options = dict(causal=causal, gate=gate)
            with self.subTest(causal=causal, gate=gate, key_channels=key_channels):
                self.check(lambda *t: aft.reference(*([None] if q is None else []), *t, **options), *tensors)

    def test_twice_with_a_mask_and_absent_keys(self):
        q, k, v = inputs(2, 3, 2, requires_grad=True)
        mask = torch.tensor([[True, False, True], [False, False, False]])
        k.data[0, 2, 1] = -math.inf
        for w in (torch.randn(3, 3, dtype=torch.float64), forbid(torch.randn(2, 1, 3, 3, dtype=torch.float64))):
            self.check(lambda *t: aft.reference(*t, key_mask=mask), q, k, v, w.detach().requires_grad_())

    def test_rows_with_nothing_to_see(self):
        q, k, v = inputs(1, 3, 2, requires_grad=True)
        w = torch.full((3, 3), -math.inf, dtype=torch.float64, requires_grad=True)
        y = aft.reference(q, k, v, w)
        self.assertTrue(torch.equal(y, torch.zeros_like(y)))
        first = torch.autograd.grad(y.sum(), (q, k, v, w), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (q, k, v, w))
        for g in (*first, *second):
            self.assertTrue(torch.equal(g, torch.zeros_like(g)))

    def test_the_weights_of_windows(self):
        bias = forbid(torch.randn(2, 4, 3, dtype=torch.float64))
        kernel = forbid(torch.randn(2, 3, 3, dtype=torch.float64))
        q, k, v = inputs(1, 4, 2, requires_grad=True)
        self.check(lambda b: aft.local_weights(b, 4, 2).exp(), bias)
        self.check(lambda x: aft.conv2d_weights(x, (2, 2)).exp(), kernel)
        self.check(lambda b: aft.reference(q, k, v, aft.local_weights(b, 4, 2)), bias)
        self.check(lambda x: aft.reference(q, k, v, aft.conv2d_weights(x, (2, 2)), causal=False), kernel)


class Weights(unittest.TestCase):
    def test_local(self):
        for time, left, right, heads in itertools.product((0, 1, 5), (0, 2, 6), (0, 1, 6), (None, 2)):
            shape = (time + 2, left + 1 + right)
            bias = torch.randn(shape if heads is None else (heads, *shape))
            w = aft.local_weights(bias, time, left, right)
            self.assertEqual(w.shape, (heads or 1, time, time))
            for h, t, s in itertools.product(range(heads or 1), range(time), range(time)):
                inside = -left <= s - t <= right
                row = bias.view(-1, *shape)[h, t]
                self.assertEqual(float(w[h, t, s]), float(row[s - t + left]) if inside else 0.0)

    def test_one_row_for_all_positions(self):
        kernel = torch.randn(3, 4)
        w = aft.local_weights(kernel.unsqueeze(1), 6, 3)
        self.assertTrue(torch.equal(w, aft.local_weights(kernel.unsqueeze(1).expand(3, 6, 4), 6, 3)))

    def test_conv2d(self):
        grids = ((1, 1), (1, 5), (4, 3), (0, 3), (3, 0))
        for (rows, columns), height, width in itertools.product(grids, (1, 3, 7), (1, 5)):
            kernel = torch.randn(2, height, width)
            w = aft.conv2d_weights(kernel, (rows, columns))
            places = list(itertools.product(range(rows), range(columns)))
            self.assertEqual(w.shape, (2, len(places), len(places)))
            for (t, (y, x)), (s, (z, u)) in itertools.product(enumerate(places), enumerate(places)):
                j, i = z - y + height // 2, u - x + width // 2
                inside = 0 <= j < height and 0 <= i < width
                self.assertTrue(torch.equal(w[:, t, s], kernel[:, j, i] if inside else torch.zeros(2)))


class Kernels(unittest.TestCase):
    """The operators against the reference, in f64: results and gradients."""

    def compare(self, tensors, operator, reference):
        y, expected = operator(*tensors), reference(*tensors)
        torch.testing.assert_close(y, expected, **F64)
        grad = torch.randn_like(y)
        present = [t for t in tensors if t is not None]
        for a, b in zip(torch.autograd.grad(y, present, grad), torch.autograd.grad(expected, present, grad),
                        strict=True):
            torch.testing.assert_close(a, b, **F64)

    def test_simple_local_conv1d(self):
        for time, causal, gate, heads, per_head in itertools.product(
            (1, 7, 33), (True, False), ("sigmoid", "none"), (1, 2), (True, False)
        ):
            reach = (4, 0) if causal else (2, 2)
            options = dict(causal=causal, gate=gate)
            q, k, v, bias = inputs(2, time, 6, span=5, heads=heads, key_channels=heads if per_head else 6, gate=gate,
                                   requires_grad=True)
            with self.subTest(time=time, causal=causal, gate=gate, heads=heads, per_head=per_head):
                self.compare((q, k, v), lambda *t: aft.simple(*t, heads=heads, **options),
                             lambda *t: aft.reference(*t, heads=heads, **options))
                self.compare((q, k, v, bias), lambda *t: aft.local(*t, **options),
                             lambda q, k, v, b: aft.reference(q, k, v, aft.local_weights(b, time, *reach), **options))
                kernel = bias[:, 0].detach().clone().requires_grad_()
                self.compare((q, k, v, kernel), lambda *t: aft.conv1d(*t, **options),
                             lambda q, k, v, x: aft.reference(q, k, v, aft.local_weights(x.unsqueeze(1), time, *reach),
                                                              **options))

    def test_forbidden_pairs(self):
        q, k, v, bias = inputs(2, 7, 4, span=3, requires_grad=True)
        self.compare((q, k, v, forbid(bias)), aft.local,
                     lambda q, k, v, b: aft.reference(q, k, v, aft.local_weights(b, 7, 2)))

    def test_factors(self):
        q, k, v = inputs(2, 7, 4, requires_grad=True)
        u, w = torch.randn(2, 7, 3, dtype=torch.float64).unbind()
        self.compare((q, k, v, u.requires_grad_(), w.requires_grad_()),
                     lambda q, k, v, u, w: aft.local(q, k, v, aft.local_bias(u, w, 3)),
                     lambda q, k, v, u, w: aft.reference(q, k, v, aft.local_weights(aft.local_bias(u, w, 3), 7, 3)))

    def test_the_test_s_own_dense_form(self):
        q, k, v, bias = inputs(2, 6, 4, span=3, heads=2)
        y = aft.reference(q, k, v, aft.local_weights(bias, 6, 2))
        torch.testing.assert_close(y, dense(q, k, v, bias), **F64)


class Traced(unittest.TestCase):
    @staticmethod
    def layer(q, k, v, bias, kernel, mask):
        time = v.size(1)
        y = aft.reference(q, k, v, aft.local_weights(bias, time, 2), key_mask=mask)
        return y + aft.reference(q, k, v, aft.conv2d_weights(kernel, (2, 3)), causal=False)

    def sample(self, batch=2):
        q, k, v, bias = inputs(batch, 6, 4, span=3, requires_grad=True)
        kernel = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
        return q, k, v, bias, kernel, torch.rand(batch, 6) > 0.3

    def test_compile(self):
        compiled = torch.compile(self.layer, fullgraph=True, backend="aot_eager")
        tensors = self.sample()
        torch.testing.assert_close(compiled(*tensors), self.layer(*tensors), **F64)

    def test_any_length(self):
        def layer(q, k, v, bias):
            return aft.reference(q, k, v, aft.local_weights(bias, v.size(1), 2))

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
        for time in (5, 6, 9):
            tensors = inputs(2, time, 4, span=3, rows=9, requires_grad=True)
            torch.testing.assert_close(compiled(*tensors), layer(*tensors), **F64)

    def test_any_grid(self):
        def layer(k, v, kernel, rows, columns):
            return aft.reference(None, k, v, aft.conv2d_weights(kernel, (rows, columns)), causal=False, gate="none")

        once = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(layer, fullgraph=True, backend=once, dynamic=True)
        kernel = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
        for rows, columns in ((3, 4), (5, 2), (4, 7)):
            _, k, v = inputs(2, rows * columns, 4, requires_grad=True)
            y, expected = compiled(k, v, kernel, rows, columns), layer(k, v, kernel, rows, columns)
            torch.testing.assert_close(y, expected, **F64)
            grads = (torch.autograd.grad(x.square().sum(), (k, v, kernel)) for x in (y, expected))
            for a, b in zip(*grads, strict=True):
                torch.testing.assert_close(a, b, **F64)
        self.assertEqual(once.frame_count, 1)


class Messages(unittest.TestCase):
    def refused(self, message, call):
        with self.assertRaisesRegex(RuntimeError, message):
            call()

    def test_messages(self):
        q, k, v = inputs(2, 5, 4)
        w = torch.zeros(5, 5, dtype=torch.float64)
        r = self.refused
        r("v must hold floating point numbers, got Long", lambda: aft.reference(q, k, v.long()))
        r(r"v must have three dimensions", lambda: aft.reference(q, k, v[0]))
        r(r"w must have shape \[Tq, Tk\], .* got \[5\]", lambda: aft.reference(q, k, v, w[0]))
        r(r"w must spread over \[2, 1, 5, 5\] .* got shape \[5, 4\]", lambda: aft.reference(q, k, v, w[:, :4]))
        r(r"w must spread over \[2, 2, 5, 5\] .* got shape \[4, 5, 5\]",
          lambda: aft.reference(q, k, v, w.expand(4, 5, 5), heads=2))
        r("q must be absent with gate \"none\"", lambda: aft.reference(q, k, v, gate="none"))
        r("q must be a tensor with gate \"relu\"", lambda: aft.reference(None, k, v, gate="relu"))
        r("q must have shape", lambda: aft.reference(q[:, :4], k, v, w))
        r("k must have shape", lambda: aft.reference(q, k[:, :4], v, w))
        r("causal needs as many targets as sources, got 4 and 5", lambda: aft.reference(q[:, :4], k, v))
        r("heads must divide the 4 channels of v, got 3", lambda: aft.reference(q, k, v, w.expand(3, 5, 5)))
        r(rf"key_mask must be bool of shape \[2, 5\] on {DEVICE}, got Double",
          lambda: aft.reference(q, k, v, key_mask=v[..., 0]))
        r(r"local_weights: bias must have shape .* got \[5, 5\] with left = 2 and right = 0",
          lambda: aft.local_weights(w, 5, 2))
        r("local_weights: bias must have a row for each of the 6 positions, or one for all, got 5 rows",
          lambda: aft.local_weights(w, 6, 4))
        r(r"conv2d_weights: kernel must have shape \[heads, s, s\] with s odd, got \[1, 2, 3\]",
          lambda: aft.conv2d_weights(w[None, :2, :3], (2, 2)))
        r("conv2d_weights: grid must be the two sizes", lambda: aft.conv2d_weights(w[None], (-1, 2)))


if __name__ == "__main__":
    unittest.main()
