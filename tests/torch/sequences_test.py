"""16-bit tensors, the key mask and packed sequences of simple, local and conv1d."""

import itertools
import unittest

import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from aft_testing import DEVICE, aft, check_rounded_once, inputs, seeded

LENGTHS = (5, 0, 70, 1, 9)


def packing(lengths=LENGTHS):
    return torch.tensor([0, *itertools.accumulate(lengths)])


def mask_of(batch, time, seed=3):
    return torch.rand(batch, time, generator=seeded(seed)) < 0.7


def calls(weights):
    """The three operators as functions of q, k, v; `weights` [1, rows, J]."""
    return {
        "simple": lambda *t, **o: aft.simple(*t, **o),
        "local": lambda *t, **o: aft.local(*t, weights, **o),
        "conv1d": lambda *t, **o: aft.conv1d(*t, weights[:, 0], **o),
    }


def gradients(y, tensors, seed=1):
    grad = torch.randn(y.shape, generator=seeded(seed), dtype=y.dtype)
    return torch.autograd.grad(y, tensors, grad)


class SixteenBits(unittest.TestCase):
    def test_as_float32_rounded_once(self):
        for dtype, causal, name in itertools.product(
            (torch.bfloat16, torch.float16), (True, False), ("simple", "local", "conv1d")
        ):
            with self.subTest(dtype=dtype, causal=causal, name=name):
                q, k, v, bias = (t.to(dtype) for t in inputs(2, 90, 12, span=7, heads=1))
                bias = bias.float()
                tensors = [t.requires_grad_() for t in (q, k, v, bias)]
                wide = [t.detach().float().requires_grad_() for t in tensors]
                y = calls(tensors[3])[name](*tensors[:3], causal=causal)
                expected = calls(wide[3])[name](*wide[:3], causal=causal)
                self.assertEqual(y.dtype, dtype)
                check_rounded_once(self, y, expected)
                used = 3 if name == "simple" else 4
                grad = torch.randn(y.shape, generator=seeded(1)).to(dtype)
                got = torch.autograd.grad(y, tensors[:used], grad)
                want = torch.autograd.grad(expected, wide[:used], grad.float())
                for a, b, t in zip(got, want, tensors[:used], strict=True):
                    self.assertEqual(a.dtype, t.dtype)
                    check_rounded_once(self, a, b)

    def test_weights_of_the_same_dtype(self):
        q, k, v, bias = (t.to(torch.bfloat16).requires_grad_() for t in inputs(2, 20, 6, span=5))
        y = aft.local(q, k, v, bias)
        self.assertTrue(torch.equal(y, aft.local(q, k, v, bias.float())))
        grad = torch.ones_like(y)
        (narrow,) = torch.autograd.grad(y, bias, grad)
        wide = bias.detach().float().requires_grad_()
        (expected,) = torch.autograd.grad(aft.local(q, k, v, wide), wide, grad)
        self.assertEqual(narrow.dtype, torch.bfloat16)
        self.assertTrue(torch.equal(narrow, expected.to(torch.bfloat16)))
        saved = aft.window_forward(q, k, v, bias.unsqueeze(0))[1]
        out = [torch.empty_like(t) for t in (q, k, v, bias.unsqueeze(0))]
        with torch.no_grad():
            aft.window_backward.out(grad, q, k, v, bias.unsqueeze(0), saved, grad_q=out[0], grad_k=out[1],
                                    grad_v=out[2], grad_band=out[3])
        self.assertTrue(torch.equal(out[3][0], narrow))

    def test_state_is_float32(self):
        q, k, v, bias = (t.to(torch.float16) for t in inputs(2, 20, 6, span=5))
        state = aft.initial_state(k, v, 4)
        self.assertEqual([t.dtype for t in state], [torch.int64] + 5 * [torch.float32])
        first = aft.local_with_state(q[:, :12], k[:, :12], v[:, :12], bias, list(state))
        self.assertEqual([t.dtype for t in first[1:]], [torch.int64] + 5 * [torch.float32])
        state = [t.clone() for t in first[1:]]
        parts = [first[0]]
        parts += [aft.local_step_(q[:, t : t + 1], k[:, t : t + 1], v[:, t : t + 1], bias, state)
                  for t in range(12, 20)]
        whole = aft.local(q, k, v, bias)
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=2e-3, atol=2e-3)
        with self.assertRaisesRegex(RuntimeError, "state max must be Float.*since v is Half"):
            aft.local_with_state(q, k, v, bias, [state[0]] + [t.half() for t in state[1:]])

    def test_refused_dtypes(self):
        q, k, v, bias = inputs(1, 4, 2, span=3)
        with self.assertRaisesRegex(RuntimeError, "float32, float64, bfloat16 or float16"):
            aft.simple(q.int(), k.int(), v.int())
        with self.assertRaisesRegex(RuntimeError, "bias must have the dtype of v, Double"):
            aft.local(q, k, v, bias.float())
        with self.assertRaisesRegex(RuntimeError, f"bias must be Float on {DEVICE}, since v is BFloat16"):
            aft.local(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias.half())


class KeyMask(unittest.TestCase):
    def test_as_an_infinitely_small_key(self):
        q, k, v, bias = inputs(3, 40, 6, span=9, heads=1, requires_grad=True)
        mask = mask_of(3, 40)
        mask[0] = False  # nothing to see
        for (name, call), causal in itertools.product(calls(bias).items(), (True, False)):
            with self.subTest(name=name, causal=causal):
                y = call(q, k, v, causal=causal, key_mask=mask)
                expected = call(q, torch.where(mask[:, :, None], k, float("-inf")), v, causal=causal)
                self.assertTrue(torch.equal(y, expected))
                self.assertTrue((y[0] == 0).all())
                for got, want in zip(gradients(y, (q, k, v)), gradients(expected, (q, k, v)), strict=True):
                    self.assertTrue(torch.equal(got, want))
                    self.assertTrue((got[0] == 0).all())

    def test_with_state(self):
        q, k, v, bias = inputs(2, 30, 4, span=6, requires_grad=True)
        mask = mask_of(2, 30)
        whole = aft.local(q, k, v, bias, key_mask=mask)
        state = list(aft.initial_state(k, v, 5))
        parts = []
        for begin, end in ((0, 13), (13, 30)):
            y, *state = aft.local_with_state(q[:, begin:end], k[:, begin:end], v[:, begin:end], bias, state,
                                             key_mask=mask[:, begin:end])
            parts.append(y)
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        tensors = q, k, v, bias
        for got, want in zip(gradients(torch.cat(parts, 1), tensors), gradients(whole, tensors), strict=True):
            torch.testing.assert_close(got, want)

    def test_gradcheck(self):
        q, k, v, bias = inputs(2, 7, 3, span=3, heads=1, requires_grad=True)
        mask = mask_of(2, 7)
        for causal in (True, False):
            self.assertTrue(gradcheck(lambda *t: aft.simple(*t, causal=causal, key_mask=mask), (q, k, v)))
            self.assertTrue(gradcheck(lambda *t: aft.local(*t, causal=causal, key_mask=mask), (q, k, v, bias)))

    def test_refused(self):
        q, k, v = inputs(2, 7, 3)
        for mask in (torch.ones(2, 7), mask_of(2, 6), mask_of(14, 1)):
            with self.assertRaisesRegex(RuntimeError, "key_mask must be bool of shape"):
                aft.simple(q, k, v, key_mask=mask)


class Packed(unittest.TestCase):
    def test_each_sequence_alone(self):
        total = sum(LENGTHS)
        cu = packing()
        for dtype, causal in itertools.product((torch.float64, torch.float32, torch.bfloat16), (True, False)):
            tensors = [t.to(dtype) for t in inputs(1, total, 6, span=9, heads=1)]
            q, k, v, bias = [t.requires_grad_() for t in tensors]
            mask = mask_of(1, total)
            for name, call in calls(bias).items():
                with self.subTest(dtype=dtype, causal=causal, name=name):
                    y = call(q, k, v, causal=causal, key_mask=mask, cu_seqlens=cu)
                    got = gradients(y, (q, k, v))
                    grad_y = torch.randn(y.shape, generator=seeded(1), dtype=y.dtype)
                    for begin, end in itertools.pairwise(cu):
                        one = [t[:, begin:end].detach().requires_grad_() for t in (q, k, v)]
                        alone = call(*one, causal=causal, key_mask=mask[:, begin:end])
                        self.assertTrue(torch.equal(y[:, begin:end], alone))
                        want = torch.autograd.grad(alone, one, grad_y[:, begin:end])
                        for a, b in zip(got, want, strict=True):
                            self.assertTrue(torch.equal(a[:, begin:end], b))

    def test_with_state(self):
        q, k, v, bias = inputs(1, 24, 4, span=6, requires_grad=True)
        cu = packing((10, 0, 14))
        state = list(aft.initial_state(torch.empty(3, 0, 4).double(), torch.empty(3, 0, 4).double(), 5))
        y, *after = aft.local_with_state(q, k, v, bias, state, cu_seqlens=cu)
        self.assertEqual(after[0].tolist(), [10, 0, 14])
        more = aft.local_with_state(q[:, :6], k[:, :6], v[:, :6], bias, after, cu_seqlens=packing((2, 4, 0)))[0]
        for begin, stop, more_begin, more_stop in ((0, 10, 0, 2), (10, 10, 2, 6), (10, 24, 6, 6)):
            alone = aft.local(*(torch.cat((t[:, begin:stop], t[:, more_begin:more_stop]), 1) for t in (q, k, v)), bias)
            both = torch.cat((y[:, begin:stop], more[:, more_begin:more_stop]), 1)
            torch.testing.assert_close(both, alone)
        grads = gradients(torch.cat((y, more), 1), (q, k, v, bias))
        self.assertTrue(all(torch.isfinite(g).all() for g in grads))

    def test_gradcheck(self):
        q, k, v, bias = inputs(1, 8, 3, span=3, heads=1, requires_grad=True)
        cu = packing((3, 0, 5))
        for causal in (True, False):
            self.assertTrue(gradcheck(lambda *t: aft.simple(*t, causal=causal, cu_seqlens=cu), (q, k, v)))
            self.assertTrue(gradcheck(lambda *t: aft.local(*t, causal=causal, cu_seqlens=cu), (q, k, v, bias)))

    def test_rows_of_the_table_count_per_sequence(self):
        q, k, v, bias = inputs(1, 8, 3, span=3, rows=5)
        aft.local(q, k, v, bias, cu_seqlens=packing((3, 5)))
        with self.assertRaisesRegex(RuntimeError, "band: expected a row for every position"):
            aft.local(q, k, v, bias, cu_seqlens=packing((2, 6)))

    def test_refused(self):
        q, k, v = inputs(1, 8, 3)
        for cu, message in (
            (torch.tensor([0, 8], dtype=torch.int32), "cu_seqlens must be int64"),
            (torch.tensor([[0, 8]]), "cu_seqlens must be int64"),
            (torch.tensor([1, 8]), r"cu_seqlens\[0\]: expected 0"),
            (torch.tensor([0, 7]), r"cu_seqlens\[1\]: expected all 8 tokens"),
            (torch.tensor([0, 9, 8]), r"cu_seqlens\[2\]"),
        ):
            with self.assertRaisesRegex(RuntimeError, message):
                aft.simple(q, k, v, cu_seqlens=cu)
        two = [t.expand(2, -1, -1) for t in (q, k, v)]
        with self.assertRaisesRegex(RuntimeError, r"v must have shape \[1, tokens, channels\]"):
            aft.simple(*two, cu_seqlens=torch.tensor([0, 8]))


class Traced(unittest.TestCase):
    def test_opcheck(self):
        q, k, v, bias = inputs(1, 150, 6, span=5, heads=1, requires_grad=True)
        for options in (dict(key_mask=mask_of(1, 150)), dict(cu_seqlens=packing((70, 0, 80)))):
            opcheck(aft.window.default, (q, k, v, bias), options)
            opcheck(aft.local.default, (q, k, v, bias), options)
            plain = [t.detach() for t in (q, k, v, bias)]
            opcheck(aft.window_forward.default, tuple(plain), options)
            y, saved, _ = aft.window_forward(*plain, **options)
            opcheck(aft.window_backward.default, (y, *plain, saved), options)
        narrow = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
        opcheck(aft.window.default, (*narrow, bias.detach().float().requires_grad_()), {})

    def test_compile(self):
        q, k, v, bias = inputs(1, 30, 4, span=5, requires_grad=True)
        mask, cu = mask_of(1, 30), packing((20, 10))

        def f(q, k, v, bias):
            return aft.local(q, k, v, bias, key_mask=mask, cu_seqlens=cu)

        compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
        self.assertTrue(torch.equal(compiled(q, k, v, bias), f(q, k, v, bias)))
        tensors = q, k, v, bias
        for got, want in zip(gradients(compiled(*tensors), tensors), gradients(f(*tensors), tensors), strict=True):
            self.assertTrue(torch.equal(got, want))
        narrow = [t.detach().bfloat16() for t in (q, k, v, bias)]
        compiled = torch.compile(lambda *t: aft.local(*t), fullgraph=True, backend="aot_eager")
        self.assertTrue(torch.equal(compiled(*narrow), aft.local(*narrow)))


if __name__ == "__main__":
    unittest.main()
