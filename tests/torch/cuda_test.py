"""What a CUDA device must show beside the other tests of this folder, which run there too (AFT_TEST_DEVICE=cuda): the
CPU's results, the same bits on every run, streams, graphs, devices; and in short what PyTorch asks of an operator."""

import contextlib
import dataclasses
import importlib.util
import os
import subprocess
import sys
import sysconfig
import unittest

os.environ.setdefault("AFT_TEST_DEVICE", "cuda")

import torch
from torch.autograd import gradcheck
from torch.library import opcheck

from aft_testing import DEVICE, STATE_NAMES, aft, one_rounding, seeded
from forms import BATCH, GRID, STEPS, forms, gradient_like, of_ours, stateful

F64 = dict(rtol=1e-11, atol=1e-12)
SLEEP = 100_000_000  # cycles of the GPU: about 0.05 s


@contextlib.contextmanager
def memory_filled():
    """PyTorch fills what it allocates with NaN and the largest integers, workspaces too."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Case(unittest.TestCase):
    def same_bits(self, got, want):
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            self.assertTrue(torch.equal(a, b), f"result {i}")

    def close(self, got, want, **tolerance):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a.cpu(), b.cpu(), **(tolerance or F64))


class Results(Case):
    def test_double(self):
        for form in forms():
            with self.subTest(form.name):
                one = form.on(DEVICE)
                got = one.results()
                self.assertEqual({t.device for t in got}, {DEVICE})
                self.close(got, form.on("cpu").results())
                self.close(got, one.results(plainly=True))

    def test_other_types(self):
        # In float32 inside, rounded once: one rounding of the result, and some of the largest number there.
        for form in forms():
            for dtype in form.takes:
                with self.subTest(form.name, dtype=dtype):
                    one = form.on(DEVICE, dtype)
                    y = one.call(*one.tensors)
                    grad = gradient_like(y.detach())
                    exact = one.on("cpu").results(grad.cpu().double())
                    for a, b, like in zip(one.results(grad), exact, [y, *one.leaves], strict=True):
                        self.assertEqual((a.dtype, a.device), (like.dtype, DEVICE))
                        torch.testing.assert_close(a.cpu().double(), b, **one_rounding(a.dtype, b))

    def test_states(self):
        for case in stateful():
            for dtype, tolerance in ((torch.float64, F64), (torch.float32, dict(rtol=1e-5, atol=1e-5))):
                with self.subTest(case.op, dtype=dtype):
                    here, there = case.on(DEVICE, dtype), case.on("cpu", dtype)
                    y, state = here.chunk(here.at(0, 7), here.start())
                    expected, expected_state = there.chunk(there.at(0, 7), there.start())
                    # From here on each goes on from the other's state: they have one format.
                    state, expected_state = [t.to(DEVICE) for t in expected_state], [t.cpu() for t in state]
                    ys = [y, *(here.step(here.at(t, t + 1), state) for t in range(7, STEPS))]
                    expected = [expected, *(there.step(there.at(t, t + 1), expected_state) for t in range(7, STEPS))]
                    self.close(ys, expected, **tolerance)
                    self.assertEqual(state[0].tolist(), [STEPS] * BATCH)
                    self.close(state, expected_state, **tolerance)

    def test_gradients_through_states(self):
        for case in stateful():
            with self.subTest(case.op):
                grads = []
                for device in (DEVICE, "cpu"):
                    one = case.on(device)
                    one.tensors = [t.detach().requires_grad_() for t in one.tensors]
                    first, state = one.chunk(one.at(0, 5), one.start())
                    second, state = one.chunk(one.at(5, STEPS), state)
                    sums = sum(t.square().sum() for t in (first, second, *state) if t.requires_grad)
                    grads.append(torch.autograd.grad(sums, one.tensors))
                self.close(*grads)

    def test_strides(self):
        # Slices of one projection that begin at odd places, so that loads of several channels are not aligned; time
        # before batch; channels that are not side by side.
        changes = {
            "odd": lambda t: torch.cat((t[..., :1], t, t[..., :2]), -1)[..., 1:-2],
            "time first": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
            "channels first": lambda t: t.mT.contiguous().mT,
        }
        for form in of_ours():
            for dtype in form.takes:
                one = form.on(DEVICE, dtype, requires_grad=False)
                want = one.call(*one.tensors)
                for name, change in changes.items():
                    with self.subTest(form.name, dtype=dtype, strides=name):
                        strange = [t if t is None or i > 2 else change(t) for i, t in enumerate(one.tensors)]
                        torch.testing.assert_close(one.call(*strange), want)

    def test_an_image_with_its_channels_last(self):
        form = next(form for form in forms() if form.name == "conv2d, a kernel a channel")
        one = form.on(DEVICE, torch.float32, requires_grad=False)
        q, k, v = (t.mT.unflatten(2, GRID).contiguous(memory_format=torch.channels_last) for t in one.tensors[:3])
        y = one.call(*(t.flatten(2).mT for t in (q, k, v)), one.tensors[3])
        self.same_bits([y], [one.call(*one.tensors)])


class Contract(Case):
    def test_finite_differences(self):
        for form in of_ours(grid=(2, 3), width=2):
            with self.subTest(form.name):
                one = form.on(DEVICE)
                self.assertTrue(gradcheck(one.call, one.leaves))

    def test_opcheck(self):
        for form in forms(grid=(2, 3), width=2):
            with self.subTest(form.name):
                one = form.on(DEVICE)
                opcheck(getattr(aft, form.op).default, (*one.tensors, *one.extra), {**one.options, **one.others})

    def compile(self, backend, chosen):
        for form in chosen:
            with self.subTest(form.name, backend=backend):
                torch._dynamo.reset()
                one = form.on(DEVICE, torch.float32)
                op, extra, options = getattr(aft, form.op), one.extra, {**one.options, **one.others}
                compiled = torch.compile(lambda *t, op=op, extra=extra, options=options: 2 * op(*t, *extra, **options),
                                         fullgraph=True, backend=backend)
                y = compiled(*one.tensors)
                want, *grads = one.results(torch.full_like(y, 2))
                torch.testing.assert_close(y, 2 * want)
                for a, b in zip(torch.autograd.grad(y, one.leaves, torch.ones_like(y)), grads, strict=True):
                    torch.testing.assert_close(a, b)

    def test_compile(self):
        self.compile("aot_eager", forms())

    def test_compile_by_inductor(self):
        if importlib.util.find_spec("triton") is None:
            self.skipTest("triton is not there")
        if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
            self.skipTest("triton needs the headers of Python")
        names = ("simple", "local", "conv1d", "conv2d", "full, factors")
        self.compile("inductor", [form for form in forms() if form.name in names])

    def test_export(self):
        class Layer(torch.nn.Module):
            def __init__(self, call):
                super().__init__()
                self.call = call

            def forward(self, *tensors):
                return self.call(*tensors)

        for form in forms():
            with self.subTest(form.name):
                one = form.on(DEVICE, torch.float32, requires_grad=False)
                program = torch.export.export(Layer(one.call), tuple(one.leaves)).module()
                self.same_bits([program(*one.leaves)], [one.call(*one.tensors)])

    def test_autocast(self):
        for form in of_ours():
            for dtype in form.takes[1:]:
                with self.subTest(form.name, dtype=dtype):
                    one, small = form.on(DEVICE, torch.float32), form.on(DEVICE, dtype)
                    with torch.autocast(DEVICE.type, dtype=dtype):
                        y = one.call(*one.tensors)
                    self.assertEqual(y.dtype, dtype)
                    grad = gradient_like(y.detach())
                    want, *grads = small.results(grad)
                    self.same_bits([y], [want])
                    for a, b in zip(torch.autograd.grad(y, one.leaves, grad), grads, strict=True):
                        self.assertEqual(a.dtype, torch.float32)
                        self.same_bits([a], [b.float()])

    def test_redone_rows_are_counted(self):
        for form in forms():
            if form.name in ("local", "conv2d", "full"):
                one = form.on(DEVICE, torch.float32, requires_grad=False)
                before = aft.redo_count()[1]
                y = one.call(*one.tensors)
                self.assertEqual(aft.redo_count()[1] - before, y.numel(), form.name)


class Determinism(Case):
    def test_the_same_bits_on_every_run(self):
        for form in of_ours():
            for dtype in form.takes:
                with self.subTest(form.name, dtype=dtype):
                    one = form.on(DEVICE, dtype)
                    want = one.results()
                    for _ in range(5):
                        self.same_bits(one.results(), want)
                    with memory_filled():
                        self.same_bits(one.results(), want)

    def test_weights_spelled_out(self):
        # An entry of the kernel or the band is in many of the weights, whose gradients are added up.
        for name, spell, shape in (("local", lambda w: aft.local_weights(w, 96, 3, 2), (4, 1, 6)),
                                   ("conv2d", lambda w: aft.conv2d_weights(w, (8, 12)), (4, 5, 5))):
            with self.subTest(name):
                leaf = torch.randn(shape, dtype=torch.float32, device=DEVICE, requires_grad=True)
                grad = torch.randn(4, 96, 96, dtype=torch.float32, device=DEVICE)
                want = torch.autograd.grad(spell(leaf), leaf, grad)
                for _ in range(20):
                    self.same_bits(torch.autograd.grad(spell(leaf), leaf, grad), want)

    def test_states(self):
        for case in stateful():
            with self.subTest(case.op):
                one = case.on(DEVICE, torch.float32)
                y, after = one.chunk(one.at(0, STEPS), one.start())
                with memory_filled():
                    again, state = one.chunk(one.at(0, STEPS), one.start())
                    self.same_bits([again, *state], [y, *after])
                    state = one.start()
                    steps = [one.step(one.at(t, t + 1), state) for t in range(STEPS)]
                torch.testing.assert_close(torch.cat(steps, 1), y)

    def test_a_row_is_the_same_in_any_batch(self):
        for form in of_ours():
            if form.op == "local_bias" or "cu_seqlens" in form.others:
                continue
            with self.subTest(form.name):
                one = form.on(DEVICE, torch.bfloat16, requires_grad=False)
                y = one.call(*one.tensors)
                last = [t if t is None or t.dim() < 3 or t.size(0) != BATCH else t[1:] for t in one.tensors]
                one.others = {name: t[1:] for name, t in one.others.items()}
                self.same_bits([one.call(*last)], [y[1:]])


class Streams(Case):
    """Inputs are zeros at first and written late, so that a call on another stream would have other results."""

    def late(self, form):
        one = form.on(DEVICE, torch.float32)
        want = one.results()
        late = one.on(DEVICE, torch.float32)
        with torch.no_grad():
            for t in late.leaves:
                t.zero_()
        grad = gradient_like(want[0])

        def write():
            torch.cuda._sleep(SLEEP)
            with torch.no_grad():
                for to, t in zip(late.leaves, one.leaves, strict=True):
                    to.copy_(t)

        torch.cuda.synchronize()
        return want, write, lambda: late.results(grad)

    def test_the_current_stream(self):
        for form in forms():
            with self.subTest(form.name):
                want, write, call = self.late(form)
                stream = torch.cuda.Stream()
                with torch.cuda.stream(stream):
                    write()
                    got = call()
                stream.synchronize()
                self.same_bits(got, want)

    def test_one_stream_after_another(self):
        for form in forms():
            with self.subTest(form.name):
                want, write, call = self.late(form)
                write()
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    got = call()
                torch.cuda.current_stream().wait_stream(stream)
                self.same_bits(got, want)

    def test_no_call_waits_for_the_device(self):
        def expect_no_wait(call):
            for _ in range(2):
                call()  # then there is memory
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                torch.cuda._sleep(4 * SLEEP)
                slept = torch.cuda.Event()
                slept.record()
                call()
                self.assertFalse(slept.query(), "the call waited until the device had slept")
            finally:
                torch.cuda.set_sync_debug_mode("default")

        for form in forms():
            with self.subTest(form.name):
                one = form.on(DEVICE, torch.float32)
                grad = gradient_like(one.results()[0])
                expect_no_wait(lambda one=one, grad=grad: one.results(grad))
        for case in stateful():
            with self.subTest(case.op):
                one = case.on(DEVICE, torch.float32)
                state = one.start()
                expect_no_wait(lambda one=one: one.chunk(one.at(0, 5), one.start()))
                expect_no_wait(lambda one=one, state=state: one.step(one.at(0, 1), state))


class Graphs(Case):
    def captured(self, call):
        """A graph of a call, and what it gives."""
        stream = torch.cuda.Stream()  # calls before the capture, as PyTorch asks
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        return graph, results

    def test_training(self):
        for form in forms():
            for dtype in form.takes[:2]:
                with self.subTest(form.name, dtype=dtype):
                    one = form.on(DEVICE, dtype)
                    grad = gradient_like(one.results()[0])
                    graph, results = self.captured(lambda one=one, grad=grad: one.results(grad))
                    for seed in range(3):
                        for i, t in enumerate(one.leaves):
                            t.data.copy_(torch.randn(t.shape, generator=seeded(10 * seed + i)))
                        if "key_mask" in one.others:
                            mask = one.others["key_mask"]
                            mask.copy_(torch.rand(mask.shape, generator=seeded(seed)) < 0.5)
                        if "cu_seqlens" in one.others and seed > 0:  # other lengths, which the host never reads
                            one.others["cu_seqlens"][1:4] += torch.tensor([7, 20, -9])
                        graph.replay()
                        self.same_bits(results, one.results(grad))

    def test_steps(self):
        for case in stateful():
            with self.subTest(case.op):
                one = case.on(DEVICE, torch.float32)
                state, given = one.start(), [t.clone() for t in one.at(0, 1)]
                graph, y = self.captured(lambda one=one, given=given, state=state: one.step(given, state))
                for to, t in zip(state, one.start(), strict=True):
                    to.copy_(t)
                expected = one.start()
                for t in range(STEPS):
                    for to, now in zip(given, one.at(t, t + 1), strict=True):
                        to.copy_(now)
                    graph.replay()
                    self.same_bits([y], [one.step(one.at(t, t + 1), expected)])
                self.assertEqual(state[0].tolist(), [STEPS] * BATCH)
                self.same_bits(state, expected)


class Devices(Case):
    @unittest.skipIf(torch.cuda.device_count() < 2, "needs two CUDA devices")
    def test_the_device_of_the_tensors(self):
        other = torch.device("cuda", 1 - DEVICE.index)
        for form in forms():
            with self.subTest(form.name):
                got = form.on(other).results()
                self.assertEqual({t.device for t in got}, {other})
                self.close(got, form.on("cpu").results())
        for case in stateful():
            with self.subTest(case.op):
                results = []
                for device in (other, "cpu"):
                    one = case.on(device)
                    y, state = one.chunk(one.at(0, 7), one.start())
                    results.append([y, one.step(one.at(7, 8), state), *state])
                self.assertEqual({t.device for t in results[0]}, {other})
                self.close(*results)
        self.assertEqual(torch.cuda.current_device(), DEVICE.index)
        q, k, v = forms()[0].on(DEVICE).tensors
        with self.assertRaisesRegex(RuntimeError, f"k must be on the device of v, {DEVICE}, got {other}: move it"):
            aft.simple(q, k.to(other), v)

    def test_errors_name_the_argument_on_another_device(self):
        weights = {"local": ["bias"], "conv1d": ["kernel"], "conv2d": ["kernel"], "full": ["bias", "u", "w"]}
        for form in of_ours(grid=(2, 3), width=2):
            names = ["u", "v"] if form.op == "local_bias" else ["q", "k", "v", *weights.get(form.op, [])]
            # All are held against this one: where it lies elsewhere the others are named.
            head = "u" if form.op == "local_bias" else "v"
            for dtype in (torch.float64, *form.takes):
                one = form.on(DEVICE, dtype, requires_grad=False)
                for i, (name, t) in enumerate(zip(names, one.tensors, strict=False)):
                    if t is None:
                        continue
                    mixed = [*one.tensors[:i], t.cpu(), *one.tensors[i + 1:]]
                    named, here, there = (r"\w+", "cpu", DEVICE) if name == head else (name, DEVICE, "cpu")
                    message = f"aft::{form.op}: {named} must be .*{here}.* got .*{there}"
                    with (self.subTest(form.name, dtype=dtype, argument=name),
                          self.assertRaisesRegex(RuntimeError, message)):
                        one.call(*mixed)
                for name, t in form.others.items():
                    mixed = dataclasses.replace(one, others={name: t})
                    message = f"aft::{form.op}: {name} must be .* on {DEVICE}, got .*cpu"
                    with (self.subTest(form.name, dtype=dtype, argument=name),
                          self.assertRaisesRegex(RuntimeError, message)):
                        mixed.call(*mixed.tensors)
        for case in stateful():
            one = case.on(DEVICE)
            for i, name in enumerate(STATE_NAMES):
                for call, end in ((one.chunk, 3), (one.step, 1)):
                    state = [t.cpu() if j == i else t for j, t in enumerate(one.start())]
                    with (self.subTest(case.op, state=name),
                          self.assertRaisesRegex(RuntimeError, f"state {name} must be .*{DEVICE}, got .*cpu")):
                        call(one.at(0, end), state)


class Values(unittest.TestCase):
    """Past the end of a table, which the host learns only if it is asked to look."""

    PROGRAM = """
import torch
from aft_testing import aft
q = torch.ones(1, 1, 2)
state = [t.clone() for t in aft.initial_state(q, q, 2)]
state[0] += 5
print(aft.local_step_(q, q, q, torch.zeros(5, 3), state).isnan().all().item(), state[0].item())
"""

    def run_program(self, checks):
        return subprocess.run([sys.executable, "-c", self.PROGRAM], text=True, capture_output=True, check=False,
                              cwd=os.path.dirname(os.path.abspath(__file__)),
                              env={**os.environ, "AFT_CHECK_VALUES": checks})

    def test_a_row_past_the_table_is_nan(self):
        run = self.run_program("0")
        self.assertEqual(run.stdout.split(), ["True", "6"], run.stderr)

    def test_a_row_past_the_table_is_an_error_for_debugging(self):
        run = self.run_program("1")
        self.assertNotEqual(run.returncode, 0)
        self.assertIn("band: expected a row for every position up to 6", run.stderr)


if __name__ == "__main__":
    unittest.main()
