"""Where one operator of the family is another (published special cases), results and gradients.

`same_bits` where the same kernel runs the same numbers, else f64 agreement.
"""

import functools
import itertools
import unittest

import torch

from aft_testing import aft, inputs

F64 = dict(rtol=1e-11, atol=1e-13)


class SpecialCases(unittest.TestCase):
    def compare(self, one, other, tensors, same_bits=False):
        """Two operators of the same tensors: equal results and gradients."""
        present = [t for t in tensors if t is not None]
        y, z = one(*tensors), other(*tensors)
        grad = torch.randn_like(y)
        for a, b in zip((y, *torch.autograd.grad(y, present, grad)), (z, *torch.autograd.grad(z, present, grad)),
                        strict=True):
            if same_bits:
                self.assertTrue(torch.equal(a, b))
            else:
                torch.testing.assert_close(a, b, **F64)

    def options(self):
        for causal, gate, per_head in itertools.product((True, False), ("sigmoid", "relu", "none"), (True, False)):
            with self.subTest(causal=causal, gate=gate, per_head=per_head):
                yield dict(causal=causal, gate=gate), dict(gate=gate, key_channels=2 if per_head else 6,
                                                           requires_grad=True)

    def test_local_without_a_window_is_simple(self):
        for options, how in self.options():
            q, k, v = inputs(2, 41, 6, **how)
            none = k.new_zeros(2, 41, 0)
            simple = functools.partial(aft.simple, heads=2, **options)
            self.compare(lambda *t: aft.local(*t, none, **options), simple, (q, k, v), same_bits=True)
            self.compare(lambda *t: aft.conv1d(*t, none[:, 0], **options), simple, (q, k, v), same_bits=True)

    def test_weights_of_zero_are_simple(self):
        for options, how in self.options():
            tensors = inputs(2, 41, 6, **how)
            simple = functools.partial(aft.simple, heads=2, **options)
            table = torch.zeros(2, 41, 7, dtype=torch.float64)
            self.compare(lambda *t: aft.local(*t, table, **options), simple, tensors)
            self.compare(lambda *t: aft.conv1d(*t, table[:, 0], **options), simple, tensors)
            full = torch.zeros(2, 41, 41, dtype=torch.float64)
            self.compare(lambda *t: aft.full(*t, full, **options), simple, tensors)
            nothing = torch.zeros(41, 1, dtype=torch.float64)
            self.compare(lambda *t: aft.full(*t, None, nothing, nothing, heads=2, **options), simple, tensors)

    def test_conv1d_of_one_head_is_local_with_a_toeplitz_table(self):
        # w depends on t' - t alone; columns of a local table count just that.
        for causal, gate in itertools.product((True, False), ("sigmoid", "relu", "none")):
            q, k, v, table = inputs(2, 65, 6, span=9, gate=gate, requires_grad=True)
            kernel = table[:1].detach().clone().requires_grad_()
            self.compare(lambda *t: aft.conv1d(*t, causal=causal, gate=gate),
                         lambda q, k, v, w: aft.local(q, k, v, w.expand(65, 9), causal=causal, gate=gate),
                         (q, k, v, kernel))
            with torch.no_grad():
                y = aft.conv1d(q, k, v, kernel, causal=causal, gate=gate)
                z = aft.local(q, k, v, kernel.expand(65, 9), causal=causal, gate=gate)
                self.assertTrue(torch.equal(y, z))

    def test_local_whose_window_holds_everything_is_full(self):
        for options, how in self.options():
            for time in (1, 2, 17):
                q, k, v, w = inputs(2, time, 6, span=time, heads=2, rows=time, **how)  # w [2, target, source]

                def local(q, k, v, w):
                    # Row t of the band begins at source t - (time - 1).
                    span = time if options["causal"] else 2 * time - 1
                    rows = [torch.nn.functional.pad(w[:, t], (time - 1 - t, t))[:, :span] for t in range(time)]
                    return aft.local(q, k, v, torch.stack(rows, 1), **options)

                self.compare(local, lambda *t: aft.full(*t, **options), (q, k, v, w))

    def test_conv2d_on_one_row_or_column_is_conv1d(self):
        for _, how in self.options():
            gate = how["gate"]
            for time, span in ((1, 3), (5, 3), (12, 7), (4, 11)):
                q, k, v, table = inputs(2, time, 6, span=span, heads=2, **how)
                kernel = table[:, 0].detach().clone().requires_grad_()
                conv1d = functools.partial(aft.conv1d, causal=False, gate=gate)
                for grid, dim in (([1, time], 1), ([time, 1], 2)):
                    self.compare(lambda q, k, v, w: aft.reference(q, k, v, aft.conv2d_weights(w.unsqueeze(dim), grid),
                                                                  causal=False, gate=gate),
                                 conv1d, (q, k, v, kernel))
                    beside = torch.randn(2, span, span, dtype=torch.float64)

                    def conv2d(q, k, v, w):
                        # The middle row or column; what lies beside it meets nothing on a line.
                        middle = torch.arange(span) == span // 2
                        middle = middle.view(span, 1) if dim == 1 else middle.view(1, span)
                        return aft.conv2d(q, k, v, torch.where(middle, w.unsqueeze(dim), beside), grid, gate=gate)

                    self.compare(conv2d, conv1d, (q, k, v, kernel))

    def test_equal_keys_are_running_means(self):
        v = inputs(2, 23, 6, gate="none")[2]
        k = torch.full_like(v, 3.25)
        count = torch.arange(1, 24, dtype=torch.float64).view(1, 23, 1)
        torch.testing.assert_close(aft.simple(None, k, v, gate="none"), v.cumsum(1) / count, **F64)
        mean = v.mean(1, keepdim=True).expand_as(v)
        torch.testing.assert_close(aft.simple(None, k, v, gate="none", causal=False), mean, **F64)

    def test_one_position_sees_itself(self):
        q, k, v, bias = inputs(2, 1, 6, span=3, heads=2)
        for y in (aft.simple(q, k, v), aft.local(q, k, v, bias), aft.conv1d(q, k, v, bias[:, 0]),
                  aft.full(q, k, v, bias[:, :1, :1])):
            torch.testing.assert_close(y, torch.sigmoid(q) * v, **F64)

    def test_keys_and_weights_share_their_scale(self):
        # e^(k + w): a constant moves from every weight of a row to every key.
        q, k, v = inputs(2, 9, 6, requires_grad=True)
        w = torch.randn(9, 9, dtype=torch.float64)
        self.compare(lambda *t: aft.full(*t, w + 2), lambda q, k, v: aft.full(q, k + 2, v, w), (q, k, v))
        self.compare(lambda *t: aft.full(*t, w + 2), lambda *t: aft.full(*t, w), (q, k, v))


if __name__ == "__main__":
    unittest.main()
