"""Values and gradients of simple, local, conv1d and local_bias against the dense equation and finite differences."""

import itertools
import unittest

import torch
from torch.autograd import gradcheck

from aft_testing import aft, dense, inputs, seeded

TOLERANCE = {torch.float32: dict(rtol=2e-5, atol=2e-6), torch.float64: dict(rtol=1e-10, atol=1e-12)}


def gradients(y, tensors, seed=1):
    grad = torch.randn(y.shape, generator=seeded(seed), dtype=y.dtype)
    return torch.autograd.grad(y, [t for t in tensors if t is not None], grad)


class Values(unittest.TestCase):
    def compare(self, tensors, operator, **options):
        y = operator(*tensors)
        expected = dense(*tensors, **options)
        tolerance = TOLERANCE[y.dtype]
        torch.testing.assert_close(y, expected, **tolerance)
        for got, want in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
            torch.testing.assert_close(got, want, **tolerance)

    def test_simple(self):
        for time, causal, gate, dtype in itertools.product(
            (1, 2, 7), (True, False), ("sigmoid", "relu", "none"), (torch.float32, torch.float64)
        ):
            with self.subTest(time=time, causal=causal, gate=gate, dtype=dtype):
                self.compare(
                    inputs(2, time, 5, gate=gate, dtype=dtype, requires_grad=True),
                    lambda *t: aft.simple(*t, causal=causal, gate=gate),
                    causal=causal,
                    gate=gate,
                )

    def test_local(self):
        for time, span, causal, gate, dtype in itertools.product(
            (1, 2, 7), (1, 3, 9), (True, False), ("sigmoid", "relu", "none"), (torch.float32, torch.float64)
        ):
            with self.subTest(time=time, span=span, causal=causal, gate=gate, dtype=dtype):
                self.compare(
                    inputs(2, time, 5, span=span, gate=gate, dtype=dtype, requires_grad=True),
                    lambda *t: aft.local(*t, causal=causal, gate=gate),
                    causal=causal,
                    gate=gate,
                )

    def test_conv1d(self):
        for time, span, causal, gate, key_channels in itertools.product(
            (1, 2, 7), (1, 3, 9), (True, False), ("sigmoid", "none"), (2, 6)
        ):
            with self.subTest(time=time, span=span, causal=causal, gate=gate, key_channels=key_channels):
                q, k, v, table = inputs(2, time, 6, span=span, heads=2, key_channels=key_channels, gate=gate,
                                        requires_grad=True)
                kernel = table[:, 0].detach().clone().requires_grad_()
                y = aft.conv1d(q, k, v, kernel, causal=causal, gate=gate)
                # The same row in every position of a table.
                expected = dense(q, k, v, kernel[:, None].expand(-1, time, -1), causal=causal, gate=gate)
                torch.testing.assert_close(y, expected, **TOLERANCE[y.dtype])
                tensors = q, k, v, kernel
                for got, want in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
                    torch.testing.assert_close(got, want, **TOLERANCE[y.dtype])

    def test_conv1d_is_local_with_one_row(self):
        q, k, v, table = inputs(2, 300, 6, span=9, heads=3)
        kernel = table[:, 0].contiguous()
        for causal in (True, False):
            y = aft.local(q, k, v, kernel[:, None].expand(-1, 300, -1), causal=causal)
            self.assertTrue(torch.equal(aft.conv1d(q, k, v, kernel, causal=causal), y))

    def test_heads(self):
        for causal, key_channels in itertools.product((True, False), (2, 6)):
            with self.subTest(causal=causal, key_channels=key_channels):
                self.compare(
                    inputs(2, 5, 6, span=3, heads=2, key_channels=key_channels, requires_grad=True),
                    lambda *t: aft.local(*t, causal=causal),
                    causal=causal,
                )
                self.compare(
                    inputs(2, 5, 6, key_channels=key_channels, requires_grad=True),
                    lambda *t: aft.simple(*t, causal=causal, heads=2),
                    causal=causal,
                    heads=2,
                )

    def test_no_columns_is_simple(self):
        q, k, v, bias = inputs(2, 5, 4, span=0, requires_grad=True)
        y = aft.local(q, k, v, bias)
        self.assertTrue(torch.equal(y, aft.simple(q, k, v)))
        y.sum().backward()
        self.assertEqual(bias.grad.shape, bias.shape)

    def test_hand_values(self):
        # One channel, keys ln 1 and ln 3, values 1 and 5: row 1 is (1 * 1 + 3 * 5) / 4; a bias of ln 2 on the later
        # source makes it (1 + 30) / 7.
        k = torch.tensor([1.0, 3.0], dtype=torch.float64).log().view(1, 2, 1)
        v = torch.tensor([1.0, 5.0], dtype=torch.float64).view(1, 2, 1)
        y = aft.simple(None, k, v, gate="none").flatten().tolist()
        self.assertAlmostEqual(y[0], 1.0, places=14)
        self.assertAlmostEqual(y[1], 4.0, places=14)
        y = aft.local(None, k, v, torch.full((2, 1), 2.0, dtype=torch.float64).log(), gate="none").flatten().tolist()
        self.assertAlmostEqual(y[0], 1.0, places=14)
        self.assertAlmostEqual(y[1], 31 / 7, places=14)

    def test_empty_sizes(self):
        for batch, time, channels in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
            with self.subTest(batch=batch, time=time, channels=channels):
                q, k, v, bias = inputs(batch, time, channels, span=2, requires_grad=True)
                for y in (aft.simple(q, k, v), aft.local(q, k, v, bias)):
                    self.assertEqual(y.shape, v.shape)
                    y.sum().backward()
                self.assertEqual(float(bias.grad.abs().sum()), 0.0)

    def test_rows_beyond_the_sequence_get_no_gradient(self):
        q, k, v, bias = inputs(2, 4, 3, span=3, rows=9, requires_grad=True)
        bias.grad = torch.zeros_like(bias)
        aft.local(q, k, v, bias).sum().backward()
        self.assertEqual(float(bias.grad[4:].abs().sum()), 0.0)
        self.assertEqual(float(bias.grad[0, :2].abs().sum()), 0.0)  # sources before the sequence
        self.assertGreater(float(bias.grad[1:4].abs().sum()), 0.0)


class Strides(unittest.TestCase):
    def test_views_of_one_tensor(self):
        qkv = torch.randn(2, 6, 12, dtype=torch.float64, requires_grad=True)
        bias = inputs(1, 6, 4, span=3, requires_grad=True)[3]
        q, k, v = qkv.chunk(3, -1)
        dense_views = [t.detach().clone().requires_grad_() for t in (q, k, v)]
        y = aft.local(q, k, v, bias)
        expected = aft.local(*dense_views, bias)
        self.assertTrue(torch.equal(y, expected))
        y.square().sum().backward()
        expected.square().sum().backward()
        self.assertTrue(torch.equal(qkv.grad, torch.cat([t.grad for t in dense_views], -1)))

    def test_any_strides(self):
        q, k, v, bias = inputs(3, 5, 4, span=3, heads=2)

        def strange(t, order):
            inverse = [order.index(i) for i in range(t.dim())]
            return t.permute(order).contiguous().permute(inverse)

        expected = aft.local(q, k, v, bias)
        for order in ([0, 2, 1], [1, 0, 2], [2, 1, 0]):
            with self.subTest(order=order):
                y = aft.local(*[strange(t, order) for t in (q, k, v, bias)])
                self.assertTrue(torch.equal(y, expected))

    def test_expanded(self):
        q, k, v, bias = inputs(1, 5, 4, span=3)
        wide = [t.expand(3, -1, -1) for t in (q, k, v)]
        self.assertTrue(torch.equal(aft.local(*wide, bias)[2:], aft.local(q, k, v, bias)))
        one_row = bias[:1].expand(7, -1).detach().requires_grad_()
        dense_rows = one_row.detach().clone().requires_grad_()
        grad = []
        for b in (one_row, dense_rows):
            y = aft.local(q, k, v, b)
            grad.append(torch.autograd.grad(y.square().sum(), b)[0])
        torch.testing.assert_close(grad[0], grad[1], rtol=0, atol=0)

    def test_gradient_of_any_strides(self):
        q, k, v, bias = inputs(2, 5, 4, span=3, requires_grad=True)
        y = aft.local(q, k, v, bias)
        grad = torch.randn(4, 5, 2, dtype=torch.float64)
        a = torch.autograd.grad(y, (q, k, v, bias), grad.permute(2, 1, 0), retain_graph=True)
        b = torch.autograd.grad(y, (q, k, v, bias), grad.permute(2, 1, 0).contiguous())
        for left, right in zip(a, b, strict=True):
            self.assertTrue(torch.equal(left, right))


class FiniteDifferences(unittest.TestCase):
    def test_simple(self):
        for causal, gate, key_channels in itertools.product((True, False), ("sigmoid", "relu", "none"), (4, 2)):
            with self.subTest(causal=causal, gate=gate, key_channels=key_channels):
                tensors = inputs(2, 5, 4, gate=gate, key_channels=key_channels, requires_grad=True)
                self.assertTrue(gradcheck(lambda *t: aft.simple(*t, causal=causal, gate=gate, heads=2), tensors))

    def test_local(self):
        for causal, heads, gate in itertools.product((True, False), (None, 2), ("sigmoid", "none")):
            with self.subTest(causal=causal, heads=heads, gate=gate):
                tensors = inputs(2, 5, 4, span=3, heads=heads, key_channels=heads, gate=gate, requires_grad=True)
                self.assertTrue(gradcheck(lambda *t: aft.local(*t, causal=causal, gate=gate), tensors))

    def test_conv1d(self):
        for causal, key_channels in itertools.product((True, False), (2, 4)):
            with self.subTest(causal=causal, key_channels=key_channels):
                q, k, v, table = inputs(2, 5, 4, span=3, heads=2, key_channels=key_channels, requires_grad=True)
                kernel = table[:, 0].detach().clone().requires_grad_()
                self.assertTrue(gradcheck(lambda *t: aft.conv1d(*t, causal=causal), (q, k, v, kernel)))

    def test_local_bias(self):
        for shape, (left, right) in itertools.product(((6, 3), (2, 6, 3)), ((0, 0), (2, 0), (2, 2), (8, 7))):
            with self.subTest(shape=shape, left=left, right=right):
                u = torch.randn(shape, dtype=torch.float64, requires_grad=True)
                v = torch.randn(shape, dtype=torch.float64, requires_grad=True)
                self.assertTrue(gradcheck(lambda a, b: aft.local_bias(a, b, left, right), (u, v)))

    def test_local_through_its_factors(self):
        q, k, v = inputs(2, 5, 4, requires_grad=True)
        u, w = [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        for left, right in ((2, 0), (2, 2)):
            with self.subTest(left=left, right=right):
                self.assertTrue(
                    gradcheck(
                        lambda q, k, v, u, w: aft.local(
                            q, k, v, aft.local_bias(u, w, left, right), causal=right == 0
                        ),
                        (q, k, v, u, w),
                    )
                )


class LocalBias(unittest.TestCase):
    def test_values(self):
        u = torch.randn(2, 5, 3, dtype=torch.float64)
        v = torch.randn(2, 5, 3, dtype=torch.float64)
        full = u @ v.transpose(1, 2)
        bias = aft.local_bias(u, v, 2, 1)
        self.assertEqual(bias.shape, (2, 5, 4))
        for t, j in itertools.product(range(5), range(4)):
            s = t - 2 + j
            want = full[:, t, s] if 0 <= s < 5 else torch.zeros(2, dtype=torch.float64)
            torch.testing.assert_close(bias[:, t, j], want)
        self.assertTrue(torch.equal(aft.local_bias(u[0], v[0], 2, 1), bias[0]))


class Memory(unittest.TestCase):
    """The overloads that write into memory the caller gives equal the others."""

    def test_out(self):
        q, k, v, bias = inputs(2, 5, 4, span=3)
        for band in (None, bias[None], bias[:1].contiguous()):
            out = torch.full_like(v, float("nan"))
            aft.window(q, k, v, band, out=out)
            self.assertTrue(torch.equal(out, aft.window(q, k, v, band)))
        u, w = torch.randn(2, 5, 3)
        out = torch.full((5, 3), float("nan"))
        aft.local_bias(u, w, 2, out=out)
        self.assertTrue(torch.equal(out, aft.local_bias(u, w, 2)))
        grads = [torch.full_like(u, float("nan")) for _ in range(2)]
        aft.local_bias_backward(out, u, w, 2, grad_u=grads[0], grad_v=grads[1])
        for got, want in zip(grads, aft.local_bias_backward(out, u, w, 2), strict=True):
            self.assertTrue(torch.equal(got, want))

    def test_backward_out_into_slices(self):
        q, k, v, bias = inputs(2, 5, 4, span=3)
        names = ("grad_q", "grad_k", "grad_v")
        for band in (None, bias[None], bias[:1].contiguous()):
            with self.subTest(band=None if band is None else band.shape):
                y, saved, _ = aft.window_forward(q, k, v, band)
                self.assertTrue(torch.equal(y, aft.window(q, k, v, band)))
                grad_y = torch.randn_like(y)
                packed = torch.full((2, 5, 12), float("nan"), dtype=torch.float64)
                out = dict(zip(names, packed.chunk(3, -1), strict=True))
                out["grad_band"] = None if band is None else torch.full_like(band, float("nan"))
                *want, _ = aft.window_backward(grad_y, q, k, v, band, saved)
                aft.window_backward(grad_y, q, k, v, band, saved, **out)
                for got, expected in zip(out.values(), want, strict=True):
                    self.assertTrue(got is None or torch.equal(got, expected))

    def test_backward_without_query(self):
        _, k, v = inputs(2, 5, 4)
        y, saved, _ = aft.window_forward(None, k, v, gate="none")
        want = aft.window_backward(y, None, k, v, None, saved, gate="none")
        self.assertEqual(want[0].shape, (0,))
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        aft.window_backward(y, None, k, v, None, saved, gate="none", grad_q=None, grad_k=grad_k, grad_v=grad_v,
                            grad_band=None)
        self.assertTrue(torch.equal(grad_k, want[1]))
        self.assertTrue(torch.equal(grad_v, want[2]))

    def test_simple_takes_other_targets_without_causal(self):
        for targets, sources, keys, gate in ((3, 7, 6, "sigmoid"), (7, 2, 3, "relu"), (4, 0, 6, "sigmoid")):
            q = torch.randn(2, targets, 6, dtype=torch.float64, requires_grad=True)
            k = torch.randn(2, sources, keys, dtype=torch.float64, requires_grad=True)
            v = torch.randn(2, sources, 6, dtype=torch.float64, requires_grad=True)
            mask = torch.rand(2, sources) < 0.7
            options = {"causal": False, "gate": gate, "heads": 3, "key_mask": mask}
            y = aft.simple(q, k, v, **options)
            expected = aft.reference(q, k, v, **options)
            torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
            for a, b in zip(gradients(y, (q, k, v)), gradients(expected, (q, k, v)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
            with torch.no_grad():
                half = aft.simple(q.bfloat16(), k.bfloat16(), v.bfloat16(), **options)
                wide = aft.simple(q.bfloat16().float(), k.bfloat16().float(), v.bfloat16().float(), **options)
                self.assertTrue(torch.equal(half, wide.bfloat16()))

    def test_writing_is_seen_by_autograd(self):
        q, k, v = inputs(2, 5, 4)
        out = torch.zeros_like(v)
        before = out._version
        aft.window(q, k, v, out=out)
        self.assertEqual(out._version, before + 1)

    def test_threads_do_not_change_a_bit(self):
        q, k, v, bias = inputs(3, 65, 24, span=5, dtype=torch.float32, requires_grad=True)
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                y = aft.local(q, k, v, bias)
                results.append((y, *gradients(y, (q, k, v, bias))))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                self.assertTrue(torch.equal(a, b))


if __name__ == "__main__":
    unittest.main()
