"""Rows with nothing to see: y = 0 and no gradient, whatever q and the gradient of y hold there, in every form."""

import itertools
import unittest

import torch

from aft_testing import aft, seeded

T, D, H = 70, 6, 2
INF = float("inf")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def randn(*shape, seed, dtype):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


class Case:
    """One call: `operator(q, k, v, *weights, gate=...)`, the rows that see nothing and the sources that are absent."""

    def __init__(self, name, dtype, operator, weights=(), batch=2, targets=T):
        self.name, self.operator = name, operator
        self.q, self.gy = (randn(batch, targets, D, seed=s, dtype=dtype) for s in (1, 2))
        self.k, self.v = (randn(batch, T, D, seed=s, dtype=dtype) for s in (3, 4))
        self.weights = [w.to(dtype) for w in weights]
        self.empty = torch.zeros(batch, targets, D, dtype=torch.bool)  # rows of y
        self.masked = torch.zeros(batch, T, dtype=torch.bool)

    def mask(self, *places):
        self.masked[places] = True
        return self

    def sees_nothing(self, *places):
        self.empty[places] = True
        return self

    def run(self, gate, q, k, v, gy):
        """y, then the gradients of q (0 where there is none), k, v and the weights."""
        tensors = [t.detach().clone().requires_grad_() for t in (q, k, v, *self.weights)]
        q, *rest = tensors
        if gate == "none":
            tensors = rest
        y = self.operator(None if gate == "none" else q, *rest, gate=gate)
        grads = torch.autograd.grad(y, tensors, gy)
        return y.detach(), torch.zeros_like(q) if gate == "none" else grads[0], *grads[gate != "none":]


def cases(dtype):
    """The operators in every form."""
    def case(name, *args, **kwargs):
        return Case(name, dtype, *args, **kwargs)

    table, kernel = (0.3 * torch.randn(*s, generator=seeded(5)) for s in ((H, T, 5), (H, 5)))
    square, image = (0.3 * torch.randn(*s, generator=seeded(6)) for s in ((H, T, T), (H, 3, 3)))
    factors = 0.3 * torch.randn(2, T, 3, generator=seeded(7))

    def state(k, v, left):
        return list(aft.initial_state(k.detach(), v.detach(), left))

    def mask_of(case):
        return dict(key_mask=~case.masked)

    causal = {
        "simple": ((), lambda c, *t, **o: aft.simple(*t, **mask_of(c), **o)),
        "local": ((table,), lambda c, *t, **o: aft.local(*t, **mask_of(c), **o)),
        "conv1d": ((kernel,), lambda c, *t, **o: aft.conv1d(*t, **mask_of(c), **o)),
        "full": ((square,), lambda c, *t, **o: aft.full(*t, **mask_of(c), **o)),
        "full of factors": (factors, lambda c, q, k, v, u, w, **o: aft.full(q, k, v, None, u, w, **mask_of(c), **o)),
        "reference": ((square,), lambda c, *t, **o: aft.reference(*t, **mask_of(c), **o)),
        "simple_with_state": ((), lambda c, q, k, v, **o: aft.simple_with_state(
            q, k, v, state(k, v, 0), **mask_of(c), **o)[0]),
        "local_with_state": ((table,), lambda c, q, k, v, w, **o: aft.local_with_state(
            q, k, v, w, state(k, v, 4), **mask_of(c), **o)[0]),
        "conv1d_with_state": ((kernel,), lambda c, q, k, v, w, **o: aft.conv1d_with_state(
            q, k, v, w, state(k, v, 4), **mask_of(c), **o)[0]),
        "full_with_state": ((square,), lambda c, q, k, v, w, **o: aft.full_with_state(
            q, k, v, w, None, None, state(k, v, T), **mask_of(c), **o)[0]),
    }
    for name, (weights, operator) in causal.items():
        one = case(name, None, weights).mask(slice(None), slice(4)).sees_nothing(slice(None), slice(4))
        one.operator = lambda *t, c=one, f=operator, **o: f(c, *t, **o)
        yield one

    packing = torch.tensor([0, 30, 30, T])
    for name in ("simple", "local", "conv1d", "full"):
        weights, operator = causal[name]
        one = case(name + ", packed", None, weights, batch=1)
        for begin in (0, 30):
            one.mask(0, slice(begin, begin + 3)).sees_nothing(0, slice(begin, begin + 3))
        one.operator = lambda *t, c=one, f=operator, **o: f(c, *t, cu_seqlens=packing, **o)
        yield one

    # Not causal: a batch row without a source.
    for name in ("simple", "local", "conv1d", "full", "full of factors", "reference"):
        weights, operator = causal[name]
        one = case(name + ", not causal", None, weights).mask(1).sees_nothing(1)
        one.operator = lambda *t, c=one, f=operator, **o: f(c, *t, causal=False, **o)
        yield one
    one = case("conv2d", None, (image,)).mask(1).sees_nothing(1)
    one.operator = lambda *t, c=one, **o: aft.conv2d(*t, [7, 10], **mask_of(c), **o)
    yield one
    one = case("simple, 5 targets", None, targets=5).mask(1).sees_nothing(1)
    one.operator = lambda *t, c=one, **o: aft.simple(*t, causal=False, **mask_of(c), **o)
    yield one

    # Pairs that the weights forbid: one row, while others see the same sources.
    forbidden = square.clone()
    forbidden[:, 11] = -INF
    forbids_first = table.clone()
    forbids_first[:, 0, -1] = -INF
    yield case("full, a row forbidden", lambda *t, **o: aft.full(*t, **o), (forbidden,)).sees_nothing(slice(None), 11)
    yield case("full, a row forbidden, not causal", lambda *t, **o: aft.full(*t, causal=False, **o),
               (forbidden,)).sees_nothing(slice(None), 11)
    yield case("reference, a row forbidden", lambda *t, **o: aft.reference(*t, **o),
               (forbidden,)).sees_nothing(slice(None), 11)
    yield case("local, a row forbidden", lambda *t, **o: aft.local(*t, **o),
               (forbids_first,)).sees_nothing(slice(None), 0)
    centre = image.clone()
    centre[:, 1, 1] = -INF
    one = case("conv2d, a target forbidden", None, (centre,)).mask(slice(None), slice(1, None))
    one.sees_nothing(slice(None), 0)  # it would see itself alone
    one.operator = lambda *t, c=one, **o: aft.conv2d(*t, [7, 10], **mask_of(c), **o)
    yield one

    # Rows that are redone: the largest key of a window under its smallest weight.
    apart = 0.3 * torch.randn(H, T, 5, generator=seeded(8))
    apart[:, 40, 4] = -2e4
    wide_apart = square.clone()
    wide_apart[:, 40, 40] = -2e4
    beside = image.clone()
    beside[:, 1, 1] = -2e4
    redone = {
        "local": ((apart,), lambda c, *t, **o: aft.local(*t, **mask_of(c), **o)),
        "local, not causal": ((apart,), lambda c, *t, **o: aft.local(*t, causal=False, **mask_of(c), **o)),
        "full": ((wide_apart,), lambda c, *t, **o: aft.full(*t, **mask_of(c), **o)),
        "conv2d": ((beside,), lambda c, *t, **o: aft.conv2d(*t, [7, 10], **mask_of(c), **o)),
    }
    for name, (weights, operator) in redone.items():
        one = case(name + ", redone", None, weights)
        if name in ("local", "full"):
            one.mask(slice(None), slice(4)).sees_nothing(slice(None), slice(4))
        else:
            one.mask(1).sees_nothing(1)
        one.k[:, 40] = 1e4
        one.operator = lambda *t, c=one, f=operator, **o: f(c, *t, **o)
        yield one


class UndefinedRows(unittest.TestCase):
    def test_hold_anything(self):
        for dtype in DTYPES:
            for case, gate in itertools.product(cases(dtype), ("sigmoid", "relu", "none")):
                if gate == "none" and case.q.size(1) != T:
                    continue  # without a query there are as many targets as sources
                with self.subTest(case.name, dtype=dtype, gate=gate):
                    before = aft.redo_count()[0]
                    want = case.run(gate, case.q, case.k, case.v, case.gy)
                    if "redone" in case.name:
                        self.assertGreater(aft.redo_count()[0], before)
                    y, dq = want[:2]
                    self.assertTrue((y[case.empty] == 0).all() and (dq[case.empty] == 0).all())
                    self.assertTrue(all(t.isfinite().all() for t in want))
                    self.assertTrue((y != 0).any() or case.empty.all())
                    for bad in (torch.nan, INF, -INF):
                        q, gy = (t.masked_fill(case.empty, bad) for t in (case.q, case.gy))
                        k, v = (t.masked_fill(case.masked[..., None], bad) for t in (case.k, case.v))
                        for a, b in zip(case.run(gate, q, k, v, gy), want, strict=True):
                            self.assertTrue(torch.equal(a, b), f"{bad}: {(a != b).nonzero()[:3].tolist()}")

    def test_absent_keys_hold_any_value(self):
        for dtype in DTYPES:
            for case in cases(dtype):
                with self.subTest(case.name, dtype=dtype):
                    case.masked, absent = torch.zeros_like(case.masked), case.masked[..., None]
                    k = case.k.masked_fill(absent, -INF)
                    want = case.run("sigmoid", case.q, k, case.v, case.gy)
                    q, gy = (t.masked_fill(case.empty, torch.nan) for t in (case.q, case.gy))
                    got = case.run("sigmoid", q, k, case.v.masked_fill(absent, torch.nan), gy)
                    for a, b in zip(got, want, strict=True):
                        self.assertTrue(torch.equal(a, b))

    def test_steps(self):
        for dtype, gate in itertools.product(DTYPES, ("sigmoid", "relu")):
            k, v = torch.full((2, 1, D), -INF, dtype=dtype), torch.full((2, 1, D), torch.nan, dtype=dtype)
            table, square = torch.randn(9, 5).to(dtype), torch.randn(9, 9).to(dtype)
            for bad in (torch.nan, INF, -INF):
                q = torch.full_like(v, bad)
                states = {left: list(aft.initial_state(k, v, left)) for left in (0, 4, 9)}
                for name, y in (
                    ("simple", aft.simple_step_(q, k, v, states[0], gate=gate)),
                    ("local", aft.local_step_(q, k, v, table, states[4], gate=gate)),
                    ("conv1d", aft.conv1d_step_(q, k, v, table[:1], list(aft.initial_state(k, v, 4)), gate=gate)),
                    ("full", aft.full_step_(q, k, v, square, None, None, states[9], gate=gate)),
                ):
                    with self.subTest(name, dtype=dtype, gate=gate, q=bad):
                        self.assertTrue(torch.equal(y, torch.zeros_like(y)))

    def test_no_sources_at_all(self):
        for dtype, gate, operator in itertools.product(DTYPES, ("sigmoid", "relu"), (aft.simple, aft.reference)):
            q = torch.full((2, 5, D), torch.nan, dtype=dtype).requires_grad_()
            none = torch.zeros(2, 0, D, dtype=dtype)
            y = operator(q, none, none, causal=False, gate=gate)
            self.assertTrue(torch.equal(y, torch.zeros_like(y)))
            self.assertTrue(torch.equal(torch.autograd.grad(y.sum(), q)[0], torch.zeros_like(y)))

    def test_no_channels(self):
        for operator in (aft.simple, aft.reference):
            y = operator(torch.zeros(2, 5, 0), *torch.zeros(2, 2, 7, 0), causal=False)
            self.assertEqual(y.shape, (2, 5, 0))

    def test_one_key_per_head(self):
        v = randn(2, T, D, seed=2, dtype=torch.float64)
        k = randn(2, T, H, seed=3, dtype=torch.float64)
        k[:, :, 1] = -INF  # the channels of head 1 have no source
        for targets in (5, T):
            q = randn(2, targets, D, seed=1, dtype=torch.float64)
            q[:, :, D // H:] = torch.nan
            q.requires_grad_()
            for operator in (aft.simple, aft.reference):
                y = operator(q, k, v, causal=False, heads=H)
                (dq,) = torch.autograd.grad(y.sum(), q)
                for t in (y, dq):
                    self.assertTrue((t[:, :, D // H:] == 0).all() and (t[:, :, :D // H] != 0).all())

    def test_the_gradient_of_a_gradient(self):
        q, k, v = (randn(1, 5, D, seed=s, dtype=torch.float64).requires_grad_() for s in (1, 2, 3))
        mask = torch.tensor([[False, False, True, True, True]])

        def second(q):
            grads = torch.autograd.grad(aft.reference(q, k, v, key_mask=mask).square().sum(), (q, k, v),
                                        create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in grads), (q, k, v))

        spoiled = q.detach().clone()
        spoiled[:, :2] = torch.nan
        for a, b in zip(second(spoiled.requires_grad_()), second(q), strict=True):
            self.assertTrue(torch.equal(a, b))

    def test_a_row_that_sees_something_keeps_its_nan(self):
        for dtype in DTYPES:
            q, k, v = (randn(1, 5, D, seed=s, dtype=dtype).requires_grad_() for s in (1, 2, 3))
            q = q.detach().clone()
            q[:, 2] = torch.nan
            q.requires_grad_()
            for operator in (aft.simple, aft.reference, lambda *t: aft.full(*t, torch.zeros(5, 5, dtype=dtype)),
                             lambda *t: aft.local(*t, torch.zeros(5, 3, dtype=dtype)),
                             lambda *t: aft.conv2d(*t, torch.zeros(1, 3, 3, dtype=dtype), [1, 5])):
                y = operator(q, k, v)
                (dq,) = torch.autograd.grad(y.sum(), q)
                for t in (y, dq):
                    self.assertTrue(t[:, 2].isnan().all() and t[:, [0, 1, 3, 4]].isfinite().all())


if __name__ == "__main__":
    unittest.main()
