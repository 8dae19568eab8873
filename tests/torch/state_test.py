"""The stateful forms: chunks equal the whole, steps equal both, gradients pass through den, num and the ring."""

import itertools
import unittest

import torch
from torch.autograd import gradcheck

from aft_testing import STATE_NAMES, aft, inputs

CASES = [
    dict(span=None, heads=None, key_channels=4, gate="sigmoid"),
    dict(span=None, heads=None, key_channels=2, gate="relu"),
    dict(span=1, heads=None, key_channels=4, gate="sigmoid"),
    dict(span=3, heads=None, key_channels=4, gate="sigmoid"),
    dict(span=3, heads=2, key_channels=2, gate="none"),
    dict(span=12, heads=2, key_channels=4, gate="sigmoid"),
    dict(span=3, heads=2, key_channels=2, gate="sigmoid", rows=1),
    dict(span=12, heads=2, key_channels=4, gate="none", rows=1),
]


class Form:
    """One of the three operators with its options, in all its forms. A table of one row is the kernel of conv1d."""

    def __init__(self, case):
        self.name = "simple" if case["span"] is None else "conv1d" if case.get("rows") == 1 else "local"
        self.gate = case["gate"]
        self.simple = case["span"] is None
        self.left = 0 if self.simple else max(case["span"] - 1, 0)
        self.options = dict(gate=self.gate, **(dict(heads=2) if self.simple else {}))

    def call(self, form, *arguments):
        if self.name == "conv1d":
            q, k, v, table, *state = arguments
            arguments = (q, k, v, table[:, 0], *state)
        return getattr(aft, self.name + form)(*arguments, **self.options)

    def whole(self, *tensors):
        return self.call("", *tensors)

    def chunk(self, tensors, state):
        y, *state = self.call("_with_state", *tensors, state)
        return y, state

    def step(self, tensors, state):
        return self.call("_step_", *tensors, state)

    def start(self, k, v):
        return list(aft.initial_state(k, v, self.left))


def part(tensors, begin, end):
    """Positions [begin, end) of q, k, v; the bias whole."""
    return [None if t is None else t[:, begin:end] for t in tensors[:3]] + tensors[3:]


class Chunks(unittest.TestCase):
    def test_neutral_state(self):
        for dtype in (torch.float32, torch.float64):
            state = aft.initial_state(torch.empty(3, 0, 2, dtype=dtype), torch.empty(3, 0, 4, dtype=dtype), 5)
            shapes = [(3,), (3, 2), (3, 2), (3, 4), (3, 5, 2), (3, 5, 4)]
            self.assertEqual([tuple(t.shape) for t in state], shapes)
            self.assertEqual(state[0].dtype, torch.int64)
            self.assertTrue((state[1] == torch.finfo(dtype).min).all())
            for t in (state[0], state[2], state[3]):
                self.assertEqual(float(t.abs().sum()), 0.0)

    def test_cuts(self):
        for case, cuts in itertools.product(CASES, ((0, 9), (0, 1, 9), (0, 4, 4, 5, 9), tuple(range(10)))):
            with self.subTest(case=case, cuts=cuts):
                form = Form(case)
                tensors = inputs(2, 9, 4, **case)
                whole, end = form.chunk(tensors, form.start(*tensors[1:3]))
                torch.testing.assert_close(whole, form.whole(*tensors), rtol=1e-12, atol=1e-13)
                state = form.start(*tensors[1:3])
                ys = []
                for begin, stop in itertools.pairwise(cuts):
                    y, state = form.chunk(part(tensors, begin, stop), state)
                    ys.append(y)
                torch.testing.assert_close(torch.cat(ys, 1), whole, rtol=1e-12, atol=1e-13)
                self.compare_states(state, end)

    def compare_states(self, got, want):
        for name, a, b in zip(STATE_NAMES, got, want, strict=True):
            if name in ("den", "num"):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
            else:
                self.assertTrue(torch.equal(a, b), name)

    def test_steps(self):
        for case in CASES:
            with self.subTest(case=case):
                form = Form(case)
                tensors = inputs(2, 9, 4, **case)
                whole, end = form.chunk(tensors, form.start(*tensors[1:3]))
                state = form.start(*tensors[1:3])
                addresses = [t.data_ptr() for t in state]
                y = torch.cat([form.step(part(tensors, t, t + 1), state) for t in range(9)], 1)
                torch.testing.assert_close(y, whole, rtol=1e-12, atol=1e-13)
                self.assertEqual([t.data_ptr() for t in state], addresses)
                self.compare_states(state, end)

    def test_rows_at_different_positions(self):
        form = Form(CASES[3])
        tensors = inputs(2, 9, 4, **CASES[3])
        rows = [[t[b : b + 1] for t in tensors[:3]] + tensors[3:] for b in range(2)]
        _, first = form.chunk(part(rows[0], 0, 2), form.start(*rows[0][1:3]))
        _, second = form.chunk(part(rows[1], 0, 5), form.start(*rows[1][1:3]))
        state = [torch.cat(pair) for pair in zip(first, second, strict=True)]
        together = [torch.cat([rows[0][i][:, 2:6], rows[1][i][:, 5:9]]) for i in range(3)] + tensors[3:]
        y, state = form.chunk(together, state)
        for b, (begin, before) in enumerate(((2, first), (5, second))):
            alone, after = form.chunk(part(rows[b], begin, begin + 4), before)
            self.assertTrue(torch.equal(y[b : b + 1], alone))
            for a, c in zip(state, after, strict=True):
                self.assertTrue(torch.equal(a[b : b + 1], c))

    def test_the_state_given_is_left_as_it_is(self):
        form = Form(CASES[3])
        tensors = inputs(2, 9, 4, **CASES[3])
        _, state = form.chunk(part(tensors, 0, 4), form.start(*tensors[1:3]))
        copy = [t.clone() for t in state]
        form.chunk(part(tensors, 4, 9), state)
        for a, b in zip(state, copy, strict=True):
            self.assertTrue(torch.equal(a, b))


class Gradients(unittest.TestCase):
    def test_two_chunks_equal_the_whole(self):
        for case in CASES:
            with self.subTest(case=case):
                form = Form(case)
                tensors = inputs(2, 9, 4, requires_grad=True, **case)
                leaves = [t for t in tensors if t is not None]
                want = torch.autograd.grad(form.whole(*tensors).square().sum(), leaves)
                a, state = form.chunk(part(tensors, 0, 4), form.start(*tensors[1:3]))
                b, _ = form.chunk(part(tensors, 4, 9), state)
                got = torch.autograd.grad(torch.cat([a, b], 1).square().sum(), leaves)
                for x, y in zip(got, want, strict=True):
                    torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)

    def test_finite_differences(self):
        # From inputs and state to y and the differentiable part of the state after, rows at positions 2 and 5.
        for case in CASES:
            with self.subTest(case=case):
                form = Form(case)
                history = inputs(2, 5, 4, **case)
                states = []
                for b, time in ((0, 2), (1, 5)):
                    row = [None if t is None else t[b : b + 1] for t in history[:3]] + history[3:]
                    states.append(form.chunk(part(row, 0, time), form.start(*row[1:3]))[1])
                state = [torch.cat(pair) for pair in zip(*states, strict=True)]
                tensors = inputs(2, 3, 4, seed=3, requires_grad=True, **{"rows": 8, **case})
                moving = [state[i].requires_grad_() for i in (2, 3, 4, 5)]

                def run(*arguments):
                    given = list(arguments[:-4])
                    if form.gate == "none":
                        given = [None, *given]
                    y, after = form.chunk(given, [state[0], state[1], *arguments[-4:]])
                    return (y, *after[2:])

                self.assertTrue(gradcheck(run, [*(t for t in tensors if t is not None), *moving]))

    def test_position_and_max_have_no_gradient(self):
        tensors = inputs(2, 4, 4, span=3, requires_grad=True)
        _, *state = aft.local_with_state(*tensors, list(aft.initial_state(tensors[1], tensors[2], 2)))
        self.assertEqual([t.requires_grad for t in state], [False, False, True, True, True, True])


if __name__ == "__main__":
    unittest.main()
