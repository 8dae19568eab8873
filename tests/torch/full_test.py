"""full against aft::reference and finite differences; its state; what PyTorch asks of it; what it says of bad input."""

import itertools
import unittest

import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from aft_testing import DEVICE, STATE_NAMES, aft, check_rounded_once, inputs, seeded

F64 = dict(rtol=1e-10, atol=1e-12)
HEADS = 2
# Where the weights come from: dimensions before [rows, columns], or factors with these before [positions, width].
BIAS = {"bias": (), "bias of heads": (HEADS,), "bias of rows": (2, 1), "bias of rows and heads": (2, HEADS),
        "bias of one row": (1, HEADS)}
FACTORS = {"factors": (), "factors of heads": (HEADS,)}
FORMS = (*BIAS, *FACTORS)


def weights(form, rows, columns, dtype=torch.float64, requires_grad=False, seed=7):
    """bias, u and w, the absent ones None."""
    generator = seeded(seed)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)

    if form in BIAS:
        return make(*BIAS[form], rows, columns), None, None
    return None, make(*FACTORS[form], rows, 3), make(*FACTORS[form], columns, 3)


def query_key_value(targets, sources, channels=6, batch=2, key_channels=None, gate="sigmoid", dtype=torch.float64,
                    requires_grad=False):
    k, v = (t.to(dtype) for t in inputs(batch, sources, channels, key_channels=key_channels)[1:])
    q = None if gate == "none" else inputs(batch, targets, channels, seed=1)[0].to(dtype)
    return [t if t is None else t.requires_grad_(requires_grad) for t in (q, k, v)]


def dense(bias, u, w, targets, sources):
    """The matrix that the weights stand for, cut to size."""
    return (bias if bias is not None else u @ w.mT)[..., :targets, :sources]


def reference(q, k, v, bias, u, w, targets, **options):
    return aft.reference(q, k, v, dense(bias, u, w, targets, v.size(1)), **options)


def mask_of(batch, time):
    return torch.rand(batch, time, generator=seeded(3)) < 0.7


def given(tensors):
    return [t for t in tensors if t is not None]


def gradients(y, tensors, **options):
    grad = torch.randn(y.shape, generator=seeded(2), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, given(tensors), grad, **options)


class Values(unittest.TestCase):
    def samples(self, shapes):
        """(name, tensors that ask for gradients, targets, options) over all that a call can be."""
        for form, gate, keys, masked, shape in itertools.product(
            FORMS, ("sigmoid", "relu", "none"), (6, HEADS), (False, True), shapes
        ):
            causal, targets, sources = shape
            # Weights for more positions than there are; without a gate their rows are the targets.
            beyond = 0 if gate == "none" and not causal else 2
            tensors = (*query_key_value(targets, sources, 6, 2, keys, gate, requires_grad=True),
                       *weights(form, targets + beyond, sources + 1, requires_grad=True))
            mask = mask_of(2, sources) if masked else None
            yield (dict(form=form, gate=gate, keys=keys, masked=masked, shape=shape), tensors, targets,
                   dict(causal=causal, gate=gate, heads=HEADS, key_mask=mask))

    def test_against_the_reference(self):
        shapes = ((True, 1, 1), (True, 7, 7), (True, 70, 70), (False, 7, 7), (False, 3, 70), (False, 33, 5))
        for name, tensors, targets, options in self.samples(shapes):
            with self.subTest(**name):
                y, expected = aft.full(*tensors, **options), reference(*tensors, targets, **options)
                torch.testing.assert_close(y, expected, **F64)
                for got, want in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
                    torch.testing.assert_close(got, want, **F64)

    def test_finite_differences(self):
        for name, tensors, _, options in self.samples(((True, 4, 4), (False, 3, 5))):
            def call(*present):
                left = iter(present)
                return aft.full(*[t if t is None else next(left) for t in tensors], **options)

            with self.subTest(**name):
                self.assertTrue(gradcheck(call, given(tensors)))

    def test_forbidden_pairs(self):
        for causal, gate in itertools.product((True, False), ("sigmoid", "none")):
            with self.subTest(causal=causal, gate=gate):
                tensors = [*query_key_value(9, 9, gate=gate, requires_grad=True), *weights("bias of heads", 9, 9)]
                tensors[3][:, 2] = float("-inf")  # nothing to see
                tensors[3][0, 5:, :4] = float("-inf")
                tensors[3].requires_grad_()
                y, expected = (call(causal=causal, gate=gate) for call in (
                    lambda **o: aft.full(*tensors, **o), lambda **o: reference(*tensors, 9, **o)))
                self.assertEqual(float(y[:, 2].detach().abs().sum()), 0.0)
                torch.testing.assert_close(y, expected, **F64)
                for got, want in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
                    self.assertTrue(torch.isfinite(got).all())
                    torch.testing.assert_close(got, want, **F64)

    def test_nothing_to_see_gives_zero(self):
        tensors = (*query_key_value(6, 6, requires_grad=True), *weights("bias", 6, 6, requires_grad=True))
        for causal in (True, False):
            y = aft.full(*tensors, causal=causal, key_mask=torch.zeros(2, 6, dtype=torch.bool))
            self.assertEqual(float(y.detach().abs().sum()), 0.0)
            for grad in gradients(y, tensors):
                self.assertEqual(float(grad.abs().sum()), 0.0)

    def test_empty_sizes(self):
        for batch, targets, sources, channels in ((0, 3, 3, 4), (2, 0, 0, 4), (2, 3, 0, 4), (2, 0, 3, 4), (2, 3, 3, 0)):
            with self.subTest(batch=batch, targets=targets, sources=sources, channels=channels):
                tensors = (*query_key_value(targets, sources, channels, batch, requires_grad=True),
                           *weights("bias", 3, 3, requires_grad=True))
                y = aft.full(*tensors, causal=False)
                self.assertEqual(y.shape, (batch, targets, channels))
                self.assertEqual(float(y.detach().abs().sum()), 0.0)
                self.assertEqual(float(gradients(y, tensors)[3].abs().sum()), 0.0)

    def test_hard_numbers(self):
        # Far outside of what e^x holds.
        q, k, v = query_key_value(40, 40, dtype=torch.float64)
        bias = weights("bias", 40, 40)[0] * 300
        y = aft.full(q.float(), 1e4 * k.float(), v.float(), bias.float())
        want = aft.reference(q.float().double(), (1e4 * k.float()).double(), v.float().double(), bias.float().double())
        torch.testing.assert_close(y.double(), want, rtol=1e-5, atol=1e-6)

    def test_many_rows_of_a_batch(self):
        # More than the weights' gradient takes side by side, and keys that serve heads.
        for form, keys, causal in itertools.product(FORMS, (6, HEADS), (True, False)):
            if form in ("bias of rows", "bias of rows and heads"):
                continue  # their batch is 2
            with self.subTest(form=form, keys=keys, causal=causal):
                tensors = (*query_key_value(9, 9, 6, 70, keys, requires_grad=True),
                           *weights(form, 9, 9, requires_grad=True))
                y = aft.full(*tensors, causal=causal, heads=HEADS)
                expected = reference(*tensors, 9, causal=causal, heads=HEADS)
                for a, b in zip((y, *gradients(y, tensors)), (expected, *gradients(expected, tensors)), strict=True):
                    torch.testing.assert_close(a, b, **F64)

    def test_what_nothing_sees_may_be_infinite(self):
        tensors = (*query_key_value(5, 5, requires_grad=True), torch.zeros(5, 5, dtype=torch.float64))
        with torch.no_grad():
            tensors[2][:, 3] = torch.inf
            tensors[3][:, 3] = -torch.inf
        for causal in (True, False):
            y = aft.full(*tensors, causal=causal)
            for gradient in gradients(y, tensors[:3]):
                self.assertTrue(torch.isfinite(gradient).all())

    def test_views_are_read_in_place(self):
        # q, k, v of one projection; a bias that is part of a larger table, that is expanded, that is transposed.
        packed = torch.randn(2, 12, 18, dtype=torch.float64).requires_grad_()
        table = torch.randn(3, 20, 31, dtype=torch.float64).requires_grad_()
        for bias in (lambda t: t[0, 4:16, 7:19], lambda t: t[1:, 3:15, 5:17], lambda t: t[None, :1, :12, :12],
                     lambda t: t[:1, :12, :12].expand(2, -1, -1), lambda t: t[0, :12, :12].expand(2, 2, -1, -1),
                     lambda t: t[0, :1, :12].expand(12, 12), lambda t: t[0, :12, :12].T):
            results = []
            for copied in (False, True):
                tensors = [*packed.chunk(3, -1), bias(table)]
                y = aft.full(*[t.contiguous() if copied else t for t in tensors])
                results.append((y, *gradients(y, (packed, table))))
            (y, grad_packed, grad_table), (expected, want_packed, want_table) = results
            self.assertTrue(torch.equal(y, expected))
            self.assertTrue(torch.equal(grad_packed, want_packed))
            torch.testing.assert_close(grad_table, want_table, **F64)  # an expanded one is summed in another order

    def test_sixteen_bits_are_float32_rounded_once(self):
        for dtype, form, causal in itertools.product((torch.bfloat16, torch.float16), ("bias of heads", "factors"),
                                                     (True, False)):
            for narrow_weights in (False, True):
                with self.subTest(dtype=dtype, form=form, causal=causal, narrow_weights=narrow_weights):
                    narrow = [t.detach().to(dtype) for t in query_key_value(40, 40)]
                    own = [t if t is None else t.to(dtype).to(dtype if narrow_weights else torch.float32)
                           for t in weights(form, 40, 40)]
                    tensors = [t if t is None else t.requires_grad_() for t in (*narrow, *own)]
                    wide = [t if t is None else t.detach().float().requires_grad_() for t in tensors]
                    y, expected = aft.full(*tensors, causal=causal), aft.full(*wide, causal=causal)
                    self.assertEqual(y.dtype, dtype)
                    check_rounded_once(self, y, expected)
                    grad = torch.randn(y.shape, generator=seeded(1)).to(dtype)
                    got = torch.autograd.grad(y, given(tensors), grad)
                    want = torch.autograd.grad(expected, given(wide), grad.float())
                    for a, b, t in zip(got, want, given(tensors), strict=True):
                        self.assertEqual(a.dtype, t.dtype)
                        check_rounded_once(self, a, b)


class Packed(unittest.TestCase):
    LENGTHS = (5, 0, 40, 1, 9)

    def test_many_short_sequences(self):
        # As rows of a batch: their number costs what their tokens do.
        count, length = 100_000, 2
        for causal, keys in itertools.product((True, False), (6, HEADS)):
            tensors = (*query_key_value(length, length, 6, count, keys), *weights("bias of heads", length, length))
            tensors = [t if t is None else t.float().requires_grad_() for t in tensors]
            packed = [t.detach().reshape(1, count * length, -1).requires_grad_() for t in tensors[:3]]
            packed += tensors[3:]
            cu_seqlens = torch.arange(0, length * count + 1, length)
            y = aft.full(*packed, causal=causal, cu_seqlens=cu_seqlens)
            expected = aft.full(*tensors, causal=causal)
            self.assertTrue(torch.equal(y.view_as(expected), expected))
            for a, b in zip(gradients(y, packed), gradients(expected, tensors), strict=True):
                torch.testing.assert_close(a.view_as(b), b, rtol=1e-4, atol=1e-3)

    def test_each_sequence_alone(self):
        cu = torch.tensor([0, *itertools.accumulate(self.LENGTHS)])
        total = sum(self.LENGTHS)
        for dtype, form, causal in itertools.product(
            (torch.float64, torch.float32, torch.bfloat16),
            ("bias", "bias of heads", "bias of one row", *FACTORS), (True, False),
        ):
            with self.subTest(dtype=dtype, form=form, causal=causal):
                tensors = query_key_value(total, total, batch=1, dtype=dtype, requires_grad=True)
                own = weights(form, 40, 40, dtype, requires_grad=True)
                mask = mask_of(1, total)
                options = dict(causal=causal, heads=HEADS)
                y = aft.full(*tensors, *own, cu_seqlens=cu, key_mask=mask, **options)
                grad = torch.randn(y.shape, generator=seeded(1)).to(dtype)
                got = torch.autograd.grad(y, tensors, grad)
                for begin, end in itertools.pairwise(cu):
                    one = [t[:, begin:end].detach().requires_grad_() for t in tensors]
                    alone = aft.full(*one, *own, key_mask=mask[:, begin:end], **options)
                    self.assertTrue(torch.equal(y[:, begin:end], alone))
                    for a, b in zip(got, torch.autograd.grad(alone, one, grad[:, begin:end]), strict=True):
                        self.assertTrue(torch.equal(a[:, begin:end], b))

    def test_finite_differences(self):
        cu = torch.tensor([0, 3, 3, 8])
        for form, causal in itertools.product(("bias", "factors of heads"), (True, False)):
            tensors = given((*query_key_value(8, 8, batch=1, requires_grad=True),
                             *weights(form, 5, 5, requires_grad=True)))
            rest = [] if form == "bias" else [None]
            self.assertTrue(gradcheck(lambda q, k, v, *w: aft.full(q, k, v, *rest, *w, causal=causal, cu_seqlens=cu),
                                      tensors))

    def test_refused(self):
        q, k, v = query_key_value(8, 8, batch=1)
        bias = weights("bias", 8, 8)[0]
        for cu, message in (
            (torch.tensor([0, 8], dtype=torch.int32), "cu_seqlens must be int64"),
            (torch.tensor([[0, 8]]), "cu_seqlens must be int64"),
            (torch.tensor([1, 8]), "cu_seqlens: expected 0 first, got 1"),
            (torch.tensor([0, 7]), "cu_seqlens: expected the number of tokens, 8, last, got 7"),
            (torch.tensor([0, 9, 8]), "cu_seqlens: expected no element below the one before, got 8"),
        ):
            with self.assertRaisesRegex(RuntimeError, message):
                aft.full(q, k, v, bias, cu_seqlens=cu)
        cu = torch.tensor([0, 3, 8])
        with self.assertRaisesRegex(RuntimeError, r"v must have shape \[1, tokens, channels\] with cu_seqlens"):
            aft.full(*[t.expand(2, -1, -1) for t in (q, k, v)], bias, cu_seqlens=cu)
        with self.assertRaisesRegex(RuntimeError, "bias must have a batch of 1 with cu_seqlens, got 2: share it"):
            aft.full(q, k, v, bias.expand(2, 1, 8, 8), cu_seqlens=cu)
        with self.assertRaisesRegex(RuntimeError, "a row for every target up to 5, got 4 rows"):
            aft.full(q, k, v, bias[:4], cu_seqlens=cu)
        with self.assertRaisesRegex(RuntimeError, "as many sources as targets, got 8"):
            aft.full(q[:, :6], k, v, bias, causal=False, cu_seqlens=cu)


def part(tensors, begin, end):
    """Positions [begin, end) of q, k, v; the weights whole."""
    return [None if t is None else t[:, begin:end] for t in tensors[:3]] + list(tensors[3:])


class State(unittest.TestCase):
    TIME = 9

    def expect_the_whole(self, y, whole):
        """The whole's bits; on a CUDA device, where a chunk's sums are scaled by all its sources, but for rounding."""
        if DEVICE.type == "cpu":
            self.assertTrue(torch.equal(y, whole))
        else:
            torch.testing.assert_close(y, whole, rtol=1e-12, atol=1e-13)

    def samples(self, capacities=(9, 12), **how):
        for form, (gate, keys), capacity in itertools.product(
            FORMS, (("sigmoid", 6), ("relu", HEADS), ("none", 6)), capacities
        ):
            tensors = (*query_key_value(self.TIME, self.TIME, 6, 2, keys, gate, **how), *weights(form, 12, 12, **how))
            start = list(aft.initial_state(tensors[1], tensors[2], capacity))
            yield (dict(form=form, gate=gate, keys=keys, capacity=capacity), tensors, start,
                   dict(gate=gate, heads=HEADS))

    def test_chunks_are_the_whole(self):
        for name, tensors, start, options in self.samples():
            whole = aft.full(*tensors, **options)
            for cuts in ((0, 9), (0, 1, 9), (0, 4, 4, 5, 9), tuple(range(10))):
                with self.subTest(**name, cuts=cuts):
                    state, ys = start, []
                    for begin, end in itertools.pairwise(cuts):
                        y, *state = aft.full_with_state(*part(tensors, begin, end), state, **options)
                        ys.append(y)
                    self.expect_the_whole(torch.cat(ys, 1), whole)
                    self.expect_all_seen(tensors, start, state)

    def test_long_chunks(self):
        tensors = (*query_key_value(200, 200), *weights("bias", 200, 200))
        whole = aft.full(*tensors)
        for cuts in ((0, 63, 200), (0, 64, 65, 200), (0, 1, 130, 199, 200)):
            with self.subTest(cuts=cuts):
                state, ys = list(aft.initial_state(tensors[1], tensors[2], 200)), []
                for begin, end in itertools.pairwise(cuts):
                    y, *state = aft.full_with_state(*part(tensors, begin, end), state)
                    ys.append(y)
                self.expect_the_whole(torch.cat(ys, 1), whole)

    def test_steps_are_the_whole(self):
        for name, tensors, start, options in self.samples():
            with self.subTest(**name):
                state = [t.clone() for t in start]
                ys = [aft.full_step_(*part(tensors, t, t + 1), state, **options) for t in range(self.TIME)]
                torch.testing.assert_close(torch.cat(ys, 1), aft.full(*tensors, **options), rtol=1e-12, atol=1e-13)
                self.expect_all_seen(tensors, start, state)

    def expect_all_seen(self, tensors, start, state):
        """The ring holds the keys and values of all positions, and the sums stay as they were."""
        self.assertEqual(state[0].tolist(), [self.TIME] * 2)
        for name, before, after in list(zip(STATE_NAMES, start, state, strict=True))[1:4]:
            self.assertTrue(torch.equal(before, after), name)
        self.assertTrue(torch.equal(state[4][:, : self.TIME], tensors[1]))
        self.assertTrue(torch.equal(state[5][:, : self.TIME], tensors[2]))

    def test_a_mask_is_kept_in_the_state(self):
        tensors = (*query_key_value(9, 9), *weights("bias of heads", 9, 9))
        mask = mask_of(2, 9)
        state, ys = list(aft.initial_state(tensors[1], tensors[2], 9)), []
        for begin, end in ((0, 4), (4, 9)):
            y, *state = aft.full_with_state(*part(tensors, begin, end), state, key_mask=mask[:, begin:end])
            ys.append(y)
        self.expect_the_whole(torch.cat(ys, 1), aft.full(*tensors, key_mask=mask))
        self.assertTrue((state[4][~mask] == float("-inf")).all())
        self.assertTrue((state[5][~mask] == 0).all())

    def test_no_gradient_reaches_what_was_masked_through_the_state(self):
        q, k, v = [t.requires_grad_() for t in query_key_value(9, 9)]
        mask = mask_of(2, 9)
        state = aft.initial_state(k.detach(), v.detach(), 9)
        y, _, _, _, _, ring_key, ring_value = aft.full_with_state(
            q, k, v, *weights("bias of heads", 9, 9), list(state), key_mask=mask)
        sums = ring_value.sum() + torch.where(mask[:, :, None], ring_key, 0).sum()
        for grad in torch.autograd.grad(y.sum() + sums, (k, v)):
            self.assertTrue((grad[~mask] == 0).all())
            self.assertTrue((grad[mask] != 0).all())

    def test_sixteen_bits(self):
        tensors = (*query_key_value(9, 9, dtype=torch.bfloat16), *weights("factors", 9, 9, torch.float32))
        state = [t.clone() for t in aft.initial_state(tensors[1], tensors[2], 9)]
        self.assertEqual([t.dtype for t in state], [torch.int64] + 5 * [torch.float32])
        y, *state = aft.full_with_state(*part(tensors, 0, 5), state)
        ys = [y] + [aft.full_step_(*part(tensors, t, t + 1), state) for t in range(5, 9)]
        torch.testing.assert_close(torch.cat(ys, 1), aft.full(*tensors))

    def test_gradients_through_the_ring(self):
        for name, tensors, start, options in self.samples(capacities=(12,), requires_grad=True):
            want = gradients(aft.full(*tensors, **options), tensors)
            for cuts in ((0, 4, 9), (0, 1, 5, 9)):
                with self.subTest(**name, cuts=cuts):
                    state, ys = start, []
                    for begin, end in itertools.pairwise(cuts):
                        y, *state = aft.full_with_state(*part(tensors, begin, end), state, **options)
                        ys.append(y)
                    self.assertEqual([t.requires_grad for t in state], [False] * 4 + [True] * 2)
                    for got, expected in zip(gradients(torch.cat(ys, 1), tensors), want, strict=True):
                        torch.testing.assert_close(got, expected, **F64)

    def test_finite_differences(self):
        # From inputs and ring to y and the ring after, rows at positions 2 and 4.
        for form in FORMS:
            with self.subTest(form=form):
                q, k, v = query_key_value(3, 3, 4, requires_grad=True)
                own = weights(form, 7, 7, requires_grad=True)
                state = list(aft.initial_state(k, v, 7))
                state[0] = torch.tensor([2, 4])
                ring = [torch.randn(2, 7, 4, dtype=torch.float64).requires_grad_() for _ in range(2)]
                present = [t is not None for t in own]

                def run(q, k, v, ring_key, ring_value, *w):
                    w = iter(w)
                    w = [next(w) if there else None for there in present]
                    y, *after = aft.full_with_state(q, k, v, *w, [*state[:4], ring_key, ring_value])
                    return y, after[4], after[5]

                self.assertTrue(gradcheck(run, [q, k, v, *ring, *given(own)]))

    def test_rows_at_different_positions(self):
        tensors = (*query_key_value(9, 9), *weights("bias of rows", 12, 12))
        whole = aft.full(*tensors)
        start = list(aft.initial_state(tensors[1], tensors[2], 9))
        _, *early = aft.full_with_state(*part(tensors, 0, 3), start)
        _, *late = aft.full_with_state(*part(tensors, 0, 6), start)
        state = [torch.cat((a[:1], b[1:])) for a, b in zip(early, late, strict=True)]
        rows = [None if t is None else torch.cat((t[:1, 3:6], t[1:, 6:9])) for t in tensors[:3]]
        y, *after = aft.full_with_state(*rows, *tensors[3:], state)
        self.assertEqual(after[0].tolist(), [6, 9])
        self.expect_the_whole(y, torch.cat((whole[:1, 3:6], whole[1:, 6:9])))

    def test_past_the_ring_throws_before_anything_is_written(self):
        tensors = (*query_key_value(9, 9), *weights("bias", 12, 12))
        _, *state = aft.full_with_state(*part(tensors, 0, 6), list(aft.initial_state(tensors[1], tensors[2], 7)))
        message = "state.position: expected room for 3 more in a ring of 7, got 6 .*; make the state with more"
        with self.assertRaisesRegex(RuntimeError, message):
            aft.full_with_state(*part(tensors, 6, 9), state)
        aft.full_step_(*part(tensors, 6, 7), state)
        before = [t.clone() for t in state]
        with self.assertRaisesRegex(RuntimeError, "expected room for 1 more in a ring of 7, got 7 .* start anew"):
            aft.full_step_(*part(tensors, 7, 8), state)
        for a, b in zip(state, before, strict=True):
            self.assertTrue(torch.equal(a, b))
        state = list(aft.initial_state(tensors[1], tensors[2], 12))
        with self.assertRaisesRegex(RuntimeError, "a row for every target up to 9, got 8 rows; use a larger table"):
            aft.full_with_state(*tensors[:3], tensors[3][:8], None, None, state)


class PyTorch(unittest.TestCase):
    def test_opcheck(self):
        # Those without mask and sequences are in contract_test.
        q, k, v = query_key_value(8, 8, batch=1, requires_grad=True)
        own = weights("bias of heads", 8, 8, requires_grad=True)
        for options in (dict(key_mask=mask_of(1, 8)), dict(cu_seqlens=torch.tensor([0, 3, 3, 8]))):
            opcheck(aft.full.default, (q, k, v, *own), options)
        narrow = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
        opcheck(aft.full.default, (*narrow, own[0].detach().float().requires_grad_()), {})
        opcheck(aft.full.default, (*narrow, own[0].detach().bfloat16().requires_grad_()), {})

    def test_compile(self):
        def layer(q, k, v, bias, u, w):
            return aft.full(q, k, v, bias) * 2 + aft.full(q, k, v, None, u, w, causal=False)

        for dynamic in (False, True):
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
            for time in (5, 7):
                with self.subTest(dynamic=dynamic, time=time):
                    tensors = (*query_key_value(time, time, requires_grad=True),
                               weights("bias of heads", 9, 9, requires_grad=True)[0],
                               *weights("factors", 9, 9, requires_grad=True)[1:])
                    y, expected = compiled(*tensors), layer(*tensors)
                    self.assertTrue(torch.equal(y, expected))
                    for a, b in zip(gradients(y, tensors), gradients(expected, tensors), strict=True):
                        self.assertTrue(torch.equal(a, b))

    def test_double_backward_says_so(self):
        tensors = (*query_key_value(5, 5, requires_grad=True), *weights("bias", 5, 5, requires_grad=True))
        (grad,) = torch.autograd.grad(aft.full(*tensors).square().sum(), tensors[3], create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "double backward .* is not supported.* call aft::reference"):
            grad.sum().backward()

    def test_pieces_say_what_to_call(self):
        tensors = (*query_key_value(5, 5, requires_grad=True), *weights("bias", 5, 5))
        with self.assertRaisesRegex(RuntimeError, "aft::full_forward has no derivative: call aft::full"):
            aft.full_forward(*tensors, [])[0].sum().backward()
        with self.assertRaisesRegex(RuntimeError, "has no gradient.*torch.no_grad"):
            aft.full_step_(*part(tensors, 0, 1), list(aft.initial_state(tensors[1], tensors[2], 5)))


class Messages(unittest.TestCase):
    def test_each_names_argument_expectation_find_and_remedy(self):
        q, k, v = query_key_value(5, 5)
        bias, u, w = *weights("bias", 5, 5)[:1], *weights("factors", 5, 5)[1:]
        state = list(aft.initial_state(k, v, 5))
        for message, call in (
            (r"v must be float32, float64, bfloat16 or float16, got Int: convert",
             lambda: aft.full(q.int(), k.int(), v.int(), bias)),
            (r"v must have three dimensions \[batch, time, channels\], got shape \[5, 6\]: add the missing ones",
             lambda: aft.full(q, k, v[0], bias)),
            (r"q must have shape \[2, time of v, 6\], got \[2, 4, 6\]: causal=False takes other lengths",
             lambda: aft.full(q[:, :4], k, v, bias)),
            (r"q must have shape \[2, targets, 6\], got \[2, 5, 5\]: reshape it",
             lambda: aft.full(q[..., :5], k, v, bias, causal=False)),
            (r'q must be absent with gate "none", got a tensor of shape \[2, 5, 6\]: pass None, or another gate',
             lambda: aft.full(q, k, v, bias, gate="none")),
            (r'q must be a tensor with gate "sigmoid", got none: pass one', lambda: aft.full(None, k, v, bias)),
            (r'gate must be "sigmoid", "relu" or "none", got "tanh": choose',
             lambda: aft.full(q, k, v, bias, gate="tanh")),
            (r"k must have the dtype of v, Double, got Float: convert", lambda: aft.full(q, k.float(), v, bias)),
            (r"k must have shape \[2, 5, 6\] like v, or \[2, 5, 2\] with one key per head, got \[2, 5, 3\]: reshape",
             lambda: aft.full(q, k[..., :3], v, bias, heads=2)),
            (r"the number of heads must divide the 6 channels of v, got 4: change",
             lambda: aft.full(q, k, v, bias, heads=4)),
            (r"the number of heads must divide the 6 channels of v, got 0: change",
             lambda: aft.full(q, k, v, bias, heads=0)),
            (r"heads must be those of the weights, 2, or 1, got 3: drop the argument",
             lambda: aft.full(q, k, v, bias.expand(2, 5, 5), heads=3)),
            (r"weights must be either bias or both factors u and w, got none: pass one", lambda: aft.full(q, k, v)),
            (r"weights must be either bias or both factors u and w, got bias and factors",
             lambda: aft.full(q, k, v, bias, u, w)),
            (r"weights must be either bias or both factors u and w, got one factor",
             lambda: aft.full(q, k, v, None, u)),
            (r"bias must have the dtype of v, Double", lambda: aft.full(q, k, v, bias.float())),
            (f"bias must be on the device of v, {DEVICE}, got meta: move it",
             lambda: aft.full(q, k, v, bias.to("meta"))),
            (f"bias must be Float on {DEVICE}, since v is BFloat16",
             lambda: aft.full(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias.half())),
            (r"bias must have shape \[rows, columns\], \[heads, rows, columns\] or "
             r"\[batch, heads, rows, .*, got \[5\]: reshape",
             lambda: aft.full(q, k, v, bias[0])),
            (r"bias must have a batch of 1 or of v's, 2, got 3: share it or repeat it",
             lambda: aft.full(q, k, v, bias.expand(3, 1, 5, 5))),
            (r"u must have shape \[positions, width\] or \[heads, positions, width\], got \[5\]: reshape",
             lambda: aft.full(q, k, v, None, u[:, 0], w)),
            (r"w must have the heads and width of u, \[1, 5, 3\], got \[1, 5, 2\]: make both alike",
             lambda: aft.full(q, k, v, None, u, w[:, :2])),
            (rf"key_mask must be bool of shape \[2, 5\] on {DEVICE}, got Float of shape \[2, 5\] on {DEVICE}: True",
             lambda: aft.full(q, k, v, bias, key_mask=torch.ones(2, 5))),
            (r"key_mask must be bool of shape \[2, 5\]", lambda: aft.full(q, k, v, bias, key_mask=mask_of(2, 4))),
        ):
            with self.subTest(message), self.assertRaisesRegex(RuntimeError, "aft::full: .*" + message):
                call()
        # Under the operator's own name where there are gradients too.
        v.requires_grad_()
        with self.assertRaisesRegex(RuntimeError, "aft::full: k must have shape"):
            aft.full(q, k[..., :3], v, bias)
        with self.assertRaisesRegex(RuntimeError, "aft::full_with_state: state ring_key must have shape"):
            aft.full_with_state(q, k, v, bias, None, None, [*state[:4], state[4][..., :5], state[5]])
        v = v.detach()
        for message, call in (
            (r"a row for every target up to 5, got 4 rows; use a larger table or a shorter sequence",
             lambda: aft.full(q, k, v, bias[:4])),
            (r"a column for every source up to 5, got 4 columns; use a larger table",
             lambda: aft.full(q, k, v, bias[:, :4])),
            (r"state must be the six tensors .* got 5: make it with aft::initial_state",
             lambda: aft.full_with_state(q, k, v, bias, None, None, state[:5])),
            (r"state ring_value must have shape \[2, 5, 6\], got \[2, 4, 6\]: make it with aft::initial_state",
             lambda: aft.full_with_state(q, k, v, bias, None, None, [*state[:5], state[5][:, :4]])),
            (rf"state position must be int64 of shape \[2\] on {DEVICE}, got Int of shape \[2\] on {DEVICE}: make it",
             lambda: aft.full_with_state(q, k, v, bias, None, None, [state[0].int(), *state[1:]])),
            (r"state.position: expected at least 0, got -1",
             lambda: aft.full_with_state(q, k, v, bias, None, None, [state[0] - 1, *state[1:]])),
            (r"v must hold one position", lambda: aft.full_step_(q, k, v, bias, None, None, state)),
            (r"saved must have 180 elements, got 1: pass what aft::full_forward gave",
             lambda: aft.full_backward(v, q, k, v, bias, None, None, v[0, 0, :1])),
            (r"grad_y must have shape \[2, 5, 6\], got \[2, 4, 6\]",
             lambda: aft.full_backward(v[:, :4], q, k, v, bias, None, None, v)),
            (r"state needs causal=True, got False",
             lambda: aft.full_forward(q, k, v, bias, None, None, state, causal=False)),
        ):
            with self.subTest(message), self.assertRaisesRegex(RuntimeError, message):
                call()

    def test_memory_of_the_caller(self):
        torch.manual_seed(3)
        for dtype, weights_dtype, causal in ((torch.bfloat16, torch.float32, True), (torch.float16, None, True),
                                             (torch.float32, None, False)):
            with self.subTest(dtype=dtype, weights=weights_dtype, causal=causal):
                few = 5 if causal else 3
                q, k, v = (torch.randn(2, n, 6, dtype=dtype) for n in (few, 5, 5))
                bias = torch.randn(2, 5, 5, dtype=weights_dtype or dtype)
                options = dict(causal=causal)
                y, saved = aft.full_forward(q, k, v, bias, None, None, [], **options)[:2]
                out = torch.full((2, 9, 6), torch.nan, dtype=dtype)[:, 2:2 + few]  # rows of a larger tensor
                aft.full.out(q, k, v, bias, **options, out=out)
                self.assertTrue(torch.equal(out, y))
                expected = aft.full_backward(y, q, k, v, bias, None, None, saved, **options)[:4]
                table = torch.full((2, 7, 5), torch.nan, dtype=bias.dtype)[:, 1:6]
                grads = dict(grad_q=torch.empty_like(q), grad_k=torch.empty_like(k), grad_v=torch.empty_like(v),
                             grad_bias=table)
                aft.full_backward.out(y, q, k, v, bias, None, None, saved, **options, **grads, grad_u=None, grad_w=None)
                for (name, got), wanted in zip(grads.items(), expected, strict=True):
                    self.assertTrue(torch.equal(got, wanted), name)

    def test_memory_of_the_caller_is_checked(self):
        q, k, v = inputs(2, 5, 6)
        bias = torch.randn(5, 5, dtype=v.dtype)
        u, w = torch.randn(2, 5, 3, dtype=v.dtype)
        saved = aft.full_forward(q, k, v, bias, None, None, [])[1]
        grads = dict(grad_q=torch.empty_like(q), grad_k=torch.empty_like(k), grad_v=torch.empty_like(v), grad_bias=None,
                     grad_u=None, grad_w=None)

        def backward(weights=(bias, None, None), k=k, **changes):
            aft.full_backward.out(v, q, k, v, *weights, saved, **grads | changes)

        transposed = torch.randn(2, 6, 5, dtype=v.dtype).mT  # the operator reads a copy of it
        for message, call in (
            (r"out must have shape \[2, 5, 6\], got \[2, 4, 6\]: allocate",
             lambda: aft.full.out(q, k, v, bias, out=v[:, :4])),
            (r"out must not share memory", lambda: aft.full.out(q, k, v, bias, out=v)),
            (r"grad_q must be a tensor where q is one, got None", lambda: backward(grad_q=None)),
            (r"grad_k must have its last dimension contiguous", lambda: backward(k=transposed, grad_k=transposed)),
            (r"grad_v must not share memory", lambda: backward(grad_v=grads["grad_k"])),
            (r"grad_u must be None where u is, got a tensor", lambda: backward(grad_u=u, grad_w=w)),
            (r"grad_u and grad_w must both be tensors or both None", lambda: backward((None, u, w), grad_u=u.clone())),
            (r"grad_bias must have the shape of bias", lambda: backward(grad_bias=bias[:4])),
            (r"grad_bias must not share memory", lambda: backward(grad_bias=bias)),
        ):
            with self.subTest(message), self.assertRaisesRegex(RuntimeError, message):
                call()


if __name__ == "__main__":
    unittest.main()
