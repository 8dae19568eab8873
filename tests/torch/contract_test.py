"""What PyTorch asks of an operator (opcheck, meta tensors, torch.compile) and what the operators say of bad input."""

import unittest

import torch
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from aft_testing import aft, dense, inputs


def samples():
    """Arguments for every operator: (overload, args, kwargs)."""
    for gate, requires_grad in (("sigmoid", True), ("sigmoid", False), ("none", True)):
        q, k, v, bias = inputs(2, 5, 4, span=3, heads=2, gate=gate, requires_grad=requires_grad)
        for causal in (True, False):
            yield aft.simple.default, (q, k, v), dict(gate=gate, causal=causal)
            yield aft.local.default, (q, k, v, bias), dict(gate=gate, causal=causal)
            yield aft.conv1d.default, (q, k, v, bias[:, 0]), dict(gate=gate, causal=causal)
            yield aft.window.default, (q, k, v, bias), dict(gate=gate, causal=causal)
            yield aft.window.default, (q, k, v), dict(gate=gate, causal=causal, heads=2)
        simple_state = [t.clone() for t in aft.initial_state(k, v)]
        local_state = [torch.randn_like(t) if i > 3 else t for i, t in enumerate(aft.initial_state(k, v, 2))]
        local_state[0] = torch.tensor([2, 3])
        yield aft.simple_with_state.default, (q, k, v, simple_state), dict(gate=gate)
        table = inputs(2, 5, 4, span=3, rows=9)[3]
        yield aft.local_with_state.default, (q, k, v, table, local_state), dict(gate=gate)
        yield aft.conv1d_with_state.default, (q, k, v, bias[:, 0], local_state), dict(gate=gate)
        yield aft.window_with_state.default, (q, k, v, table[None], local_state), dict(gate=gate)
        yield aft.window_with_state.default, (q, k, v, None, simple_state), dict(gate=gate)

        square = torch.randn(2, 7, 7, dtype=torch.float64, requires_grad=requires_grad)
        factors = [torch.randn(7, 3, dtype=torch.float64, requires_grad=requires_grad) for _ in range(2)]
        ring = [torch.randn_like(t) if i > 3 else t for i, t in enumerate(aft.initial_state(k, v, 7))]
        ring[0] = torch.tensor([2, 1])
        few = inputs(2, 7, 4, gate=gate, requires_grad=requires_grad)[0]
        yield aft.full.default, (q, k, v, square), dict(gate=gate)
        yield aft.full.default, (few, k, v, square), dict(gate=gate, causal=False)
        yield aft.full.default, (q, k, v, None, *factors), dict(gate=gate)
        yield aft.full_with_state.default, (q, k, v, square, None, None, ring), dict(gate=gate)
        yield aft.full_with_state.default, (q, k, v, None, *factors, ring), dict(gate=gate)

        grid = inputs(2, 6, 4, gate=gate, requires_grad=requires_grad)
        kernel = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=requires_grad)
        mask = torch.arange(12).view(2, 6) % 5 != 1
        yield aft.conv2d.default, (*grid, kernel, [2, 3]), dict(gate=gate)
        yield aft.conv2d.default, (*grid, kernel, [6, 1]), dict(gate=gate, key_mask=mask)

        if gate == "sigmoid" and not requires_grad:
            continue  # the rest takes no gradient anyway
        q, k, v, bias = [t if t is None else t.detach() for t in (q, k, v, bias)]
        out = dict(grad_q=None if q is None else torch.empty_like(q), grad_k=torch.empty_like(k),
                   grad_v=torch.empty_like(v))
        for band in (None, bias, bias[:, 0].contiguous()):
            _, saved = aft.window_forward(q, k, v, band, gate=gate)
            yield aft.window_forward.default, (q, k, v, band), dict(gate=gate)
            yield aft.window_backward.default, (v, q, k, v, band, saved), dict(gate=gate)
            grad_band = None if band is None else torch.empty_like(band)
            yield aft.window_backward.out, (v, q, k, v, band, saved), dict(gate=gate, **out, grad_band=grad_band)
            yield aft.window.out, (q, k, v, band), dict(gate=gate, out=torch.empty_like(v))
        frozen = dict(gate=gate, weights_gradient=False)
        yield aft.window_backward.default, (v, q, k, v, band, saved), frozen
        yield aft.window_backward.out, (v, q, k, v, band, saved), dict(gate=gate, **out, grad_band=None)
        grid = [t if t is None else t.detach() for t in (*grid, kernel)]
        packed = [t if t is None else torch.empty_like(t) for t in grid]
        packed = dict(zip(("grad_q", "grad_k", "grad_v", "grad_kernel"), packed))
        yield aft.conv2d.out, (*grid, [2, 3]), dict(gate=gate, out=torch.empty_like(grid[2]))
        yield aft.conv2d_backward.default, (grid[2], *grid, [2, 3]), dict(gate=gate, key_mask=mask)
        yield aft.conv2d_backward.out, (grid[2], *grid, [2, 3]), dict(gate=gate, **packed)
        yield aft.conv2d_backward.default, (grid[2], *grid, [2, 3]), frozen
        yield aft.conv2d_backward.out, (grid[2], *grid, [2, 3]), dict(gate=gate, **packed | dict(grad_kernel=None))
        one = [None if t is None else t[:, :1] for t in (q, k, v)]
        yield aft.simple_step_.default, (*one, simple_state), dict(gate=gate)
        yield aft.local_step_.default, (*one, bias, local_state), dict(gate=gate)
        yield aft.conv1d_step_.default, (*one, bias[:, 0], local_state), dict(gate=gate)
        yield aft.window_step_.default, (*one, bias, local_state), dict(gate=gate)
        square, factors = square.detach(), [t.detach() for t in factors]
        for weights, state in (((square, None, None), []), ((None, *factors), []), ((square, None, None), ring)):
            yield aft.full_forward.default, (q, k, v, *weights, state), dict(gate=gate)
            saved = aft.full_forward(q, k, v, *weights, state, gate=gate)[1]
            after = state[4:] or (None, None)
            yield aft.full_backward.default, (v, *after, q, k, v, *weights, state, saved), dict(gate=gate)
            if state:
                continue
            yield aft.full.out, (q, k, v, *weights), dict(gate=gate, out=torch.empty_like(v))
            into = [t if t is None else torch.empty_like(t) for t in weights]
            into = dict(zip(("grad_bias", "grad_u", "grad_w"), into))
            yield aft.full_backward.out, (v, q, k, v, *weights, saved), dict(gate=gate, **out, **into)
        yield aft.full_backward.default, (v, *after, q, k, v, *weights, state, saved), frozen
        no_weights = dict.fromkeys(("grad_bias", "grad_u", "grad_w"))
        saved = aft.full_forward(q, k, v, square, None, None, [], gate=gate)[1]
        yield aft.full_backward.out, (v, q, k, v, square, None, None, saved), dict(gate=gate, **out, **no_weights)
        yield aft.full_step_.default, (*one, square, None, None, ring), dict(gate=gate)
        for b, state in ((None, simple_state), (bias[:, :, :], [t.clone() for t in aft.initial_state(k, v, 2)])):
            yield aft.window_with_state_forward.default, (q, k, v, b, state), dict(gate=gate)
            *_, saved = aft.window_with_state_forward(q, k, v, b, state, gate=gate)
            yield aft.window_with_state_backward.default, (v, *state[2:], q, k, v, b, state, saved), dict(gate=gate)
        yield aft.window_with_state_backward.default, (v, *state[2:], q, k, v, b, state, saved), frozen
    for requires_grad in (True, False):
        q, k, v, bias = inputs(2, 5, 4, span=3, heads=2, requires_grad=requires_grad)
        w = bias.new_zeros(2, 5, 5).requires_grad_(requires_grad)
        yield aft.reference.default, (q, k, v, w), {}
        yield aft.reference.default, (q, k, v), dict(causal=False, key_mask=torch.rand(2, 5) > 0.5)
        yield aft.local_weights.default, (bias, 5, 1, 1), {}
        yield aft.conv2d_weights.default, (bias[:, :3], (2, 3)), {}
    k, v = inputs(2, 5, 4, key_channels=2)[1:]
    yield aft.initial_state.default, (k, v, 3), {}
    for requires_grad in (True, False):
        u, v = torch.randn(2, 2, 6, 3, dtype=torch.float64)
        yield (
            aft.local_bias.default,
            (u.clone().requires_grad_(requires_grad), v.clone().requires_grad_(requires_grad), 2, 1),
            {},
        )
    bias = aft.local_bias(u, v, 2, 1)
    yield aft.local_bias.out, (u, v, 2, 1), dict(out=torch.empty_like(bias))
    yield aft.local_bias_backward.default, (bias, u, v, 2, 1), {}
    yield (
        aft.local_bias_backward.out,
        (bias, u, v, 2, 1),
        dict(grad_u=torch.empty_like(u), grad_v=torch.empty_like(v)),
    )


class PyTorch(unittest.TestCase):
    def test_every_operator_has_a_sample(self):
        # The overloads of the library, by their schemas.
        names = {s.name + ("." + s.overload_name if s.overload_name else ".default")
                 for s in torch._C._jit_get_all_schemas() if s.name.startswith("aft::")}
        sampled = {op.name() if "." in op.name() else op.name() + ".default" for op, _, _ in samples()}
        self.assertEqual(names - sampled, {"aft::redo_count.default"})

    def test_opcheck(self):
        for op, args, kwargs in samples():
            with self.subTest(op=str(op), gate=kwargs.get("gate"), causal=kwargs.get("causal")):
                opcheck(op, args, kwargs)

    def test_meta(self):
        def meta(value):
            if isinstance(value, torch.Tensor):
                return value.detach().to("meta")
            return [meta(t) for t in value] if isinstance(value, list) else value

        for op, args, kwargs in samples():
            with self.subTest(op=str(op)):
                real = op(*[a.detach() if isinstance(a, torch.Tensor) else a for a in args], **kwargs) \
                    if "_" != op._opname[-1] and op._overloadname != "out" else None
                got = op(*[meta(a) for a in args], **{name: meta(a) for name, a in kwargs.items()})
                if real is None:
                    continue
                pairs = zip(got, real) if isinstance(real, tuple) else [(got, real)]
                for a, b in pairs:
                    self.assertEqual(a.device.type, "meta")
                    self.assertEqual((a.shape, a.dtype, a.stride()), (b.shape, b.dtype, b.stride()))

    def test_memory_of_the_caller_takes_the_same_bits(self):
        for op, args, kwargs in samples():
            if op._overloadname != "out":
                continue
            with self.subTest(op=str(op), gate=kwargs.get("gate"), empty=[k for k, v in kwargs.items() if v is None]):
                into = {k: v for k, v in kwargs.items() if k == "out" or k.startswith("grad_")}
                for t in into.values():
                    if t is not None:
                        t.fill_(torch.nan)
                op(*args, **kwargs)
                if op._opname == "full_backward":  # the plain one has a state's arguments too
                    args = (args[0], None, None, *args[1:7], [], args[7])
                plain = getattr(aft, op._opname).default
                results = plain(*args, **{k: v for k, v in kwargs.items() if k not in into})
                names = [r.name for r in plain._schema.returns]
                results = dict(zip(names, results)) if len(names) > 1 else {"out": results}
                for name, t in into.items():
                    if t is not None:
                        self.assertTrue(torch.equal(t, results[name]), name)

    def test_compile(self):
        def layer(q, k, v, u, w):
            y = aft.local(q, k, v, aft.local_bias(u, w, 2)) + aft.simple(q, k, v)
            return y + aft.conv1d(q, k, v, u[:2])

        for dynamic in (False, True):
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
            for time in (5, 7):
                with self.subTest(dynamic=dynamic, time=time):
                    q, k, v = inputs(2, time, 4, requires_grad=True)
                    u, w = [torch.randn(9, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
                    tensors = (q, k, v, u, w)
                    y = compiled(*tensors)
                    expected = layer(*tensors)
                    self.assertTrue(torch.equal(y, expected))
                    grad = torch.randn_like(y)
                    for a, b in zip(torch.autograd.grad(y, tensors, grad), torch.autograd.grad(expected, tensors, grad)):
                        torch.testing.assert_close(a, b, rtol=0, atol=0)

    def test_compiled_batch_stays_a_symbol(self):
        compiled = torch.compile(lambda q, k, v, b: aft.local(q, k, v, b), fullgraph=True, backend="aot_eager")
        torch._dynamo.reset()
        for batch in (2, 3, 5):
            tensors = inputs(batch, 5, 4, span=3, requires_grad=True)
            for t in tensors[:3]:
                torch._dynamo.mark_dynamic(t, 0)  # an operator that made it a number would be refused
            y = compiled(*tensors)
            self.assertTrue(torch.equal(y, aft.local(*tensors)))
            y.sum().backward()

    def test_redo_count(self):
        redone, total = aft.redo_count()
        self.assertGreaterEqual(total, redone)
        self.assertGreaterEqual(redone, 0)
        q, k, v, bias = inputs(2, 6, 4, span=3)
        for call in (lambda: aft.local(q, k, v, bias), lambda: aft.full(q, k, v, torch.zeros(6, 6, dtype=v.dtype)),
                     lambda: aft.conv2d(q, k, v, torch.zeros(1, 3, 3, dtype=v.dtype), (2, 3))):
            before = aft.redo_count()[1]
            call()
            self.assertEqual(aft.redo_count()[1] - before, v.numel())


class Backwards(TorchDispatchMode):
    """Which backwards ran, each with whether it was asked for the gradient of its weights."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "aft" and op._opname.endswith("_backward"):
            self.calls.append((op._opname, (kwargs or {}).get("weights_gradient", True)))
        return op(*args, **(kwargs or {}))


class FrozenWeights(unittest.TestCase):
    def samples(self):
        """(name, backward, call, q, k, v, weights) over the operators, 200 positions long: more than a chunk."""
        for gate, keys in (("sigmoid", 4), ("none", 4), ("relu", 2)):
            *qkv, bias = inputs(2, 200, 4, span=5, heads=2, key_channels=keys, gate=gate)
            square = inputs(200, 200, 2, seed=1)[2].permute(2, 0, 1)
            factors = [inputs(2, 200, 3, seed=seed)[2] for seed in (2, 3)]
            kernel = inputs(2, 3, 3, seed=4)[2]
            mask = torch.rand(2, 200, generator=torch.Generator().manual_seed(3)) < 0.9
            short = list(aft.initial_state(*qkv[1:], 4))
            long = list(aft.initial_state(*qkv[1:], 200))
            for causal in (True, False):
                options = dict(gate=gate, causal=causal, key_mask=mask)
                yield "local", "window_backward", lambda q, k, v, b, o=options: aft.local(q, k, v, b, **o), qkv, [bias]
                yield ("conv1d", "window_backward", lambda q, k, v, b, o=options: aft.conv1d(q, k, v, b, **o), qkv,
                       [bias[:, 0]])
                yield "full", "full_backward", lambda q, k, v, b, o=options: aft.full(q, k, v, b, **o), qkv, [square]
                yield ("full of factors", "full_backward",
                       lambda q, k, v, u, w, o=options: aft.full(q, k, v, None, u, w, **o), qkv, factors)
            options = dict(gate=gate)
            yield ("conv2d", "conv2d_backward", lambda q, k, v, b, o=options: aft.conv2d(q, k, v, b, (10, 20), **o), qkv,
                   [kernel])
            yield ("local_with_state", "window_with_state_backward",
                   lambda q, k, v, b, s=short, o=options: aft.local_with_state(q, k, v, b, s, **o)[0], qkv, [bias])
            yield ("full_with_state", "full_backward",
                   lambda q, k, v, b, s=long, o=options: aft.full_with_state(q, k, v, b, None, None, s, **o)[0], qkv,
                   [square])

    def test_other_gradients_are_the_same(self):
        def ask(call, qkv, weights, of_weights):
            leaves = [None if t is None else t.detach().requires_grad_() for t in qkv]
            weights = [t.detach().requires_grad_(of_weights is not None) for t in weights]
            wanted = [t for t in leaves if t is not None] + (weights if of_weights else [])
            with Backwards() as seen:
                grads = torch.autograd.grad(call(*leaves, *weights).square().sum(), wanted)
            return grads, seen.calls

        for name, backward, call, qkv, weights in self.samples():
            with self.subTest(name):
                whole, calls = ask(call, qkv, weights, True)
                self.assertEqual(calls, [(backward, True)])
                for of_weights in (None, False):  # frozen; not frozen, but not asked for
                    grads, calls = ask(call, qkv, weights, of_weights)
                    self.assertEqual(calls, [(backward, False)])
                    self.assertTrue(all(torch.equal(a, b) for a, b in zip(grads, whole)))

    def test_a_frozen_bias_has_none(self):
        q, k, v, bias = inputs(2, 5, 4, span=3, requires_grad=True)
        bias = bias.detach()
        aft.local(q, k, v, bias).sum().backward()
        self.assertIsNone(bias.grad)
        self.assertIsNotNone(q.grad)

    def test_one_factor_alone(self):
        q, k, v = inputs(2, 5, 4)
        u, w = [torch.randn(5, 3, dtype=torch.float64).requires_grad_() for _ in range(2)]
        both = torch.autograd.grad(aft.full(q, k, v, None, u, w).sum(), (u, w))
        for i, (a, b) in enumerate(((u, w.detach()), (u.detach(), w))):
            (one,) = torch.autograd.grad(aft.full(q, k, v, None, a, b).sum(), (u, w)[i])
            self.assertTrue(torch.equal(one, both[i]))

    def test_the_backward_alone(self):
        for gate in ("sigmoid", "none"):
            q, k, v, bias = inputs(2, 70, 4, span=3, heads=2, gate=gate)
            _, saved = aft.window_forward(q, k, v, bias, gate=gate)
            *whole, _ = aft.window_backward(v, q, k, v, bias, saved, gate=gate)
            *grads, none = aft.window_backward(v, q, k, v, bias, saved, gate=gate, weights_gradient=False)
            self.assertEqual(none.shape, (0,))
            written = [None if q is None else torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)]
            aft.window_backward(v, q, k, v, bias, saved, gate=gate, grad_q=written[0], grad_k=written[1],
                                grad_v=written[2], grad_band=None)
            for a, b, c in list(zip(whole, grads, written))[q is None:]:
                self.assertTrue(torch.equal(a, b) and torch.equal(a, c))

    def test_compile(self):
        compiled = torch.compile(lambda *t: aft.local(*t[:4]) + aft.full(*t[:3], t[4]), fullgraph=True,
                                 backend="aot_eager")
        q, k, v, bias = inputs(2, 7, 4, span=3, requires_grad=True)
        tensors = (q, k, v, bias.detach(), torch.randn(7, 7, dtype=torch.float64))
        expected = torch.autograd.grad((aft.local(*tensors[:4]) + aft.full(*tensors[:3], tensors[4])).sum(), (q, k, v))
        for a, b in zip(torch.autograd.grad(compiled(*tensors).sum(), (q, k, v)), expected):
            self.assertTrue(torch.equal(a, b))

    def test_double_backward_says_so(self):
        q, k, v, bias = inputs(2, 5, 4, span=3, requires_grad=True)
        bias = bias.detach()
        (grad,) = torch.autograd.grad(aft.local(q, k, v, bias).square().sum(), k, create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "double backward .* is not supported.* call aft::reference"):
            grad.sum().backward()


class Derivatives(unittest.TestCase):
    def test_double_backward_says_so(self):
        q, k, v, bias = inputs(2, 5, 4, span=3, requires_grad=True)
        state = list(aft.initial_state(k, v, 2))
        u = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
        for y, x in (
            (aft.simple(q, k, v), k),
            (aft.local(q, k, v, bias), bias),
            (aft.local_with_state(q, k, v, bias, state)[0], v),
            (aft.local_bias(u, u * 2, 2).square(), u),
        ):
            (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)  # no error yet
            with self.assertRaisesRegex(RuntimeError, "double backward .* is not supported.* call aft::reference"):
                grad.sum().backward()

    def test_create_graph_gives_the_same_gradients(self):
        q, k, v, bias = inputs(2, 5, 4, span=3, requires_grad=True)
        y = aft.local(q, k, v, bias)
        first = torch.autograd.grad(y.sum(), (q, k, v, bias), retain_graph=True)
        second = torch.autograd.grad(y.sum(), (q, k, v, bias), create_graph=True)
        for a, b in zip(first, second):
            self.assertTrue(torch.equal(a, b))

    def test_pieces_say_what_to_call(self):
        q, k, v = inputs(2, 5, 4, requires_grad=True)
        with self.assertRaisesRegex(RuntimeError, "aft::window_forward has no derivative: call aft::window"):
            aft.window_forward(q, k, v)[0].sum().backward()

    def test_writing_operators_refuse_gradients(self):
        q, k, v, bias = inputs(2, 1, 4, span=3, requires_grad=True)
        state = list(aft.initial_state(k, v, 2))
        for call in (
            lambda: aft.window(q, k, v, out=torch.empty_like(v)),
            lambda: aft.local_step_(q, k, v, bias, state),
        ):
            with self.assertRaisesRegex(RuntimeError, "has no gradient.*torch.no_grad"):
                call()
            with torch.no_grad():
                call()

    def test_forward_mode_says_so(self):
        q, k, v = inputs(2, 5, 4)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(v, torch.ones_like(v))
            with self.assertRaisesRegex(RuntimeError, "jvp"):
                aft.simple(q, k, dual)


class Messages(unittest.TestCase):
    def refused(self, message, call):
        with self.assertRaisesRegex(RuntimeError, message):
            call()

    def test_shapes_and_types(self):
        q, k, v, bias = inputs(2, 5, 4, span=3)
        r = self.refused
        r(r"aft::simple: v must have three dimensions .* got shape \[5, 4\]: add", lambda: aft.simple(q, k, v[0]))
        r(r"aft::simple: q must have the shape of v, \[2, 5, 4\], got \[2, 4, 4\]",
          lambda: aft.simple(q[:, :4], k, v))
        r(r"aft::local: k must have shape \[2, 5, 4\] like v, or \[2, 5, 1\] with one key per head, got \[2, 5, 3\]",
          lambda: aft.local(q, k[..., :3], v, bias))
        r(r"aft::local: bias must have shape \[heads, rows, J\] or \[rows, J\], got \[4\]",
          lambda: aft.local(q, k, v, bias[0, :1].expand(4)))
        r(r"aft::local: bias must have a row for each of the 5 positions, got 4 rows",
          lambda: aft.local(q, k, v, bias[:4]))
        r(r"aft::local: bias must have an odd number of columns .* got 2",
          lambda: aft.local(q, k, v, bias[:, :2], causal=False))
        r(r"aft::conv1d: kernel must have shape \[heads, J\], got \[3\]", lambda: aft.conv1d(q, k, v, bias[0]))
        r(r"aft::conv1d: kernel must have an odd number of columns .* got 2",
          lambda: aft.conv1d(q, k, v, bias[:2, :2], causal=False))
        r(r"aft::window: band must have shape \[heads, rows, J\], or \[heads, J\] for one row, got \[3\]",
          lambda: aft.window(q, k, v, bias[0]))
        r(r"the number of heads must divide the 4 channels of v, got 3", lambda: aft.simple(q, k, v, heads=3))
        r(r"the number of heads must divide the 4 channels of v, got 0", lambda: aft.simple(q, k, v, heads=0))
        r(r"v must be float32, float64, bfloat16 or float16, got Int: convert",
          lambda: aft.simple(q.int(), k.int(), v.int()))
        r(r"k must have the dtype of v, Double, got Float", lambda: aft.simple(q, k.float(), v))
        r(r"k must be on the device of v, cpu, got meta", lambda: aft.simple(q, k.to("meta"), v))
        r(r"v must have the shape of u", lambda: aft.local_bias(bias, bias[:4], 1))
        r(r"left must be between 0 and 2\^40, got -1", lambda: aft.local_bias(bias, bias, -1))

    def test_what_does_not_apply_is_refused(self):
        # The table of docs/ops.md that holds the operators against each other.
        q, k, v, bias = inputs(2, 6, 4, span=3)
        state, cu = list(aft.initial_state(k, v, 6)), torch.tensor([0, 6])
        square, kernel = torch.zeros(6, 6, dtype=torch.float64), bias[:3].expand(1, 3, 3)
        for name, call in (("simple", lambda q: aft.simple(q, k, v)),
                           ("simple", lambda q: aft.simple(q[:1], k[:1], v[:1], causal=False, cu_seqlens=cu)),
                           ("local", lambda q: aft.local(q, k, v, bias, causal=False)),
                           ("conv1d", lambda q: aft.conv1d(q, k, v, bias[:1], causal=False)),
                           ("conv2d", lambda q: aft.conv2d(q, k, v, kernel, (2, 3)))):
            self.refused(f"aft::{name}: q must have the shape of v", lambda: call(q[:, :3]))
        self.refused(r"aft::full: q must have shape \[2, time of v, 4\], got .*: causal=False takes other",
                     lambda: aft.full(q[:, :3], k, v, square))
        for argument, name, call in (
            ("causal", "conv2d", lambda: aft.conv2d(q, k, v, kernel, (2, 3), causal=True)),
            ("cu_seqlens", "conv2d", lambda: aft.conv2d(q, k, v, kernel, (2, 3), cu_seqlens=cu)),
            ("grid", "simple", lambda: aft.simple(q, k, v, grid=(2, 3))),
            ("grid", "local", lambda: aft.local(q, k, v, bias, grid=(2, 3))),
            ("grid", "full", lambda: aft.full(q, k, v, square, grid=(2, 3))),
            ("cu_seqlens", "full_with_state",
             lambda: aft.full_with_state(q, k, v, square, None, None, state, cu_seqlens=cu)),
            ("causal", "simple_with_state", lambda: aft.simple_with_state(q, k, v, state, causal=False)),
            ("key_mask", "full_step_",
             lambda: aft.full_step_(q, k, v, square, None, None, state, key_mask=torch.ones(2, 1, dtype=torch.bool))),
        ):
            self.refused(f"Unknown keyword argument '{argument}' for operator 'aft::{name}'", call)
        for name in ("conv2d_with_state", "conv2d_step_"):
            with self.assertRaisesRegex(AttributeError, f"no attribute '{name}'"):
                getattr(aft, name)

    def test_gate(self):
        q, k, v = inputs(2, 5, 4)
        self.refused('gate must be "sigmoid", "relu" or "none", got "tanh"', lambda: aft.simple(q, k, v, gate="tanh"))
        self.refused("q must be absent with gate", lambda: aft.simple(q, k, v, gate="none"))
        self.refused('q must be a tensor with gate "sigmoid", got none', lambda: aft.simple(None, k, v))

    def test_state(self):
        q, k, v, bias = inputs(2, 5, 4, span=3)
        state = list(aft.initial_state(k, v, 2))
        r = self.refused
        r("state must be the six tensors .* got 5: make it with aft::initial_state",
          lambda: aft.local_with_state(q, k, v, bias, state[:5]))
        r(r"state ring_key must have shape \[2, 2, 4\], got \[2, 0, 4\]",
          lambda: aft.local_with_state(q, k, v, bias, list(aft.initial_state(k, v))))
        r(r"state position must be int64 of shape \[2\]",
          lambda: aft.local_with_state(q, k, v, bias, [state[0].int(), *state[1:]]))
        r("state den must have the dtype of v",
          lambda: aft.local_with_state(q, k, v, bias, [*state[:2], state[2].float(), *state[3:]]))
        r("position: expected at least 0, got -1",
          lambda: aft.local_with_state(q, k, v, bias, [state[0] - 1, *state[1:]]))
        r("v must hold one position", lambda: aft.local_step_(q, k, v, bias, state))
        wide = [t.repeat_interleave(2, -1)[..., ::2] for t in state]
        r("the state is edited in place and must be contiguous",
          lambda: aft.local_step_(q[:, :1], k[:, :1], v[:, :1], bias, wide))

    def test_past_the_table(self):
        q, k, v, bias = inputs(2, 5, 4, span=3, rows=7)
        state = list(aft.initial_state(k, v, 2))
        state[0] += torch.tensor([0, 3])
        copy = [t.clone() for t in state]
        self.refused("expected a row for every position up to 8 .* got 7 rows", lambda: aft.local_with_state(q, k, v, bias, state))
        state[0] += 7
        copy[0] += 7
        self.refused("got 7 rows", lambda: aft.local_step_(q[:, :1], k[:, :1], v[:, :1], bias, state))
        for a, b in zip(state, copy):
            self.assertTrue(torch.equal(a, b))

    def test_out(self):
        q, k, v, bias = inputs(2, 5, 4, span=3)
        r = self.refused
        r("out must have the shape of v", lambda: aft.window(q, k, v, out=v.new_empty(2, 5, 3)))
        r("out must not share memory with another argument", lambda: aft.window(q, k, v, out=v))
        r("out must have its last dimension contiguous",
          lambda: aft.window(q, k, v, out=v.new_empty(2, 4, 5).transpose(1, 2)))
        r("out must own each of its elements", lambda: aft.window(q, k, v, out=v.new_empty(1, 5, 4).expand(2, 5, 4)))
        bias = bias[None]
        _, saved = aft.window_forward(q, k, v, bias)
        grad = torch.empty_like(v)
        r("grad_v must not share memory",
          lambda: aft.window_backward(v, q, k, v, bias, saved, grad_q=torch.empty_like(q), grad_k=grad, grad_v=grad,
                                      grad_band=torch.empty_like(bias)))
        r("saved must have shape", lambda: aft.window_backward(v, q, k, v, bias, torch.cat([saved, v.flatten()])))

    def test_gradients_into_memory_of_the_caller(self):
        for device in ("cpu", "meta"):
            q, k, v, band = (t.to(device) for t in inputs(2, 6, 4, span=3))
            band, table, kernel = band[None], v.new_ones(6, 6), v.new_ones(2, 3, 3)
            window_saved = aft.window_forward(q, k, v, band)[1]
            full_saved = aft.full_forward(q, k, v, table, None, None, [])[1]
            for weights, given, backward in (
                ("band", band, lambda q=q, w=band, **to: aft.window_backward.out(v, q, k, v, w, window_saved, **to)),
                ("bias", table, lambda q=q, w=table, **to: aft.full_backward.out(
                    v, q, k, v, w, None, None, full_saved, grad_u=None, grad_w=None, **to)),
                ("kernel", kernel,
                 lambda q=q, w=kernel, **to: aft.conv2d_backward.out(v, q, k, v, w, (2, 3), **to)),
            ):
                of = f"grad_{weights}"
                to = dict(grad_q=torch.empty_like(q), grad_k=torch.empty_like(k), grad_v=torch.empty_like(v),
                          **{of: torch.empty_like(given)})
                cases = [
                    ("grad_q must be a tensor where q is one, got None: pass one", dict(grad_q=None)),
                    ("grad_q must be None where q is, got a tensor: leave it out", dict(q=None, gate="none")),
                    ("grad_q must have the shape of q", dict(grad_q=to["grad_q"][:1])),
                    ("grad_k must have the dtype of k", dict(grad_k=to["grad_k"].float())),
                    (f"{of} must have the shape of {weights}", {of: to[of][..., :2]}),
                ]
                if weights == "band":
                    cases.append(("grad_band must be None where band is, got a tensor: leave it out", dict(w=None)))
                if device == "cpu":
                    cases += [(f"{name} must not share memory", {name: other}) for name, other in (
                        ("grad_q", q), ("grad_k", v), ("grad_v", to["grad_k"]), (of, given))]
                for message, change in cases:
                    with self.subTest(weights=weights, device=device, change=list(change)):
                        self.refused(message, lambda: backward(**to | change))
                backward(**to)
                if device == "cpu":  # with other strides than the kernel's
                    apart = {of: torch.full((*given.shape[:-1], 2 * given.shape[-1]), torch.nan,
                                            dtype=v.dtype)[..., :given.shape[-1]]}
                    backward(**to | apart)
                    self.assertTrue(torch.equal(apart[of], to[of]))

    def test_16_bit_gradients_with_other_strides(self):
        q, k, v, band = (t.to(torch.bfloat16) for t in inputs(2, 6, 4, span=3))
        band, kernel = band[None], v.new_ones(2, 3, 3)
        saved = aft.window_forward(q, k, v, band)[1]
        for weights, of, backward in (
            (band, "grad_band", lambda **to: aft.window_backward(v, q, k, v, band, saved, **to)),
            (kernel, "grad_kernel", lambda **to: aft.conv2d_backward(v, q, k, v, kernel, (2, 3), **to)),
        ):
            *_, want = backward()
            got = v.new_full((*weights.shape[:-1], 8), torch.nan)[..., 2:5]
            backward(grad_q=torch.empty_like(q), grad_k=torch.empty_like(k), grad_v=torch.empty_like(v), **{of: got})
            self.assertTrue(torch.equal(got, want))

    def test_memory_of_its_own(self):
        packed = torch.randn(3, 6, 24, dtype=torch.float64)[:2]
        q, k, v, free = packed[..., :4], packed[..., 5:9], packed[..., 9:13], packed[..., 13:17]
        want = aft.simple(q, k, v)
        aft.window(q, k, v, out=free)
        self.assertTrue(torch.equal(free, want))
        turned = torch.randn(6, 2, 8, dtype=torch.float64).transpose(0, 1)  # batch innermost
        aft.window(turned[..., :4], k, v, out=turned[..., 4:])
        self.assertTrue(torch.equal(turned[..., 4:], aft.simple(turned[..., :4].clone(), k, v)))
        halves = torch.randn(2, 12, 4, dtype=torch.float64)  # one after another in time
        want = aft.simple(halves[:, :6], k, v)
        aft.window(halves[:, :6], k, v, out=halves[:, 6:])
        self.assertTrue(torch.equal(halves[:, 6:], want))
        ragged = torch.randn(2, 150, dtype=torch.float64)[:, :144].view(2, 6, 24)  # batches no multiple of rows apart
        aft.window(ragged[..., :4], k, v, out=ragged[..., 4:8])
        self.assertTrue(torch.equal(ragged[..., 4:8], aft.simple(ragged[..., :4].clone(), k, v)))
        turns = torch.randn(2, 13, 4, dtype=torch.float64)
        want = aft.simple(turns[:, :12:2], k, v)
        aft.window(turns[:, :12:2], k, v, out=turns[:, 1:13:2])
        self.assertTrue(torch.equal(turns[:, 1:13:2], want))
        wraps = packed.as_strided((2, 6, 4), (144, 24, 1), 21)  # three columns of a row and the first of the next
        for out in (packed[..., 8:12], packed[..., 10:14], packed[..., 2:6], wraps, ragged[..., 2:6]):
            q = ragged[..., :4] if out.stride(0) == 150 else packed[..., :4]
            self.refused("out must not share memory", lambda out=out: aft.window(q, k, v, out=out))
        for strides in ((144, 3, 1), (10, 4, 1), (4, 4, 1)):
            out = torch.empty(400, dtype=torch.float64).as_strided((2, 6, 4), strides)
            self.refused("out must own each of its elements", lambda out=out: aft.window(q, k, v, out=out))

    def test_a_step_reads_positions_before_it_writes(self):
        memory = torch.zeros(4, dtype=torch.float64)
        position = memory[:1].view(torch.int64).fill_(2)
        rest = [t.double() for t in aft.initial_state(memory.view(1, 1, 4), memory.view(1, 1, 4), 2)[2:]]
        rest[2].fill_(10)
        aft.local_step_(*(torch.ones(3, 1, 1, 4).double()), torch.zeros(2, 8, 3).double(),
                        [position, memory.view(1, 4), *rest])
        self.assertEqual(position.item(), 3)

    def test_backwards_are_handed_what_the_forward_saved(self):
        q, k, v, band = inputs(2, 5, 4, span=3)
        square = torch.randn(5, 5, dtype=v.dtype)
        band = band[None]
        saved = aft.window_forward(q, k, v, band)[1]
        state = list(aft.initial_state(k, v, 5))
        full = aft.full_forward(q, k, v, square, None, None, state)[1]
        local_state = list(aft.initial_state(k, v, 2))
        stateful = aft.window_with_state_forward(q, k, v, band, local_state)[-1]

        def full_backward(key=None, value=None):
            return aft.full_backward(v, key, value, q, k, v, square, None, None, state, full)

        r = self.refused
        r("saved must be on the device of v, cpu, got meta", lambda: aft.window_backward(v, q, k, v, band, saved.to("meta")))
        r("saved must be on the device of v, cpu, got meta", lambda: aft.full_backward(
            v, None, None, q, k, v, square, None, None, state, full.to("meta")))
        r("saved must be on the device of v, cpu, got meta", lambda: aft.window_with_state_backward(
            v, *local_state[2:], q, k, v, band, local_state, stateful.to("meta")))
        for device in ("cpu", "meta"):
            q, k, v, square, full, *state = (t.to(device) for t in (q, k, v, square, full, *state))
            r("grad_ring_key must have the shape of state ring_key", lambda: full_backward(k[:, :1]))
            r("grad_ring_value must have the dtype of state ring_value", lambda: full_backward(None, state[5].float()))
            r("grad_ring_key must be None without a state", lambda: aft.full_backward(
                v, state[4], None, q, k, v, square, None, None, [], full))

    def test_sizes_of_nothing(self):
        q, k, v = inputs(1, 1, 4)
        none = v[..., :0]
        self.refused("row for every target up to 1, got 0 rows", lambda: aft.full(none, none, none, v.new_zeros(0, 0)))
        wide = v.new_zeros(1, 300, 0)
        self.refused("row for every target up to 300, got 1", lambda: aft.full(wide, wide, wide, v.new_zeros(1, 1)))
        self.assertEqual(aft.full(wide, wide, wide, v.new_zeros(300, 300)).shape, wide.shape)
        table = v.new_ones(300, 300).requires_grad_()
        aft.full(wide, wide, wide, table).sum().backward()
        self.assertTrue(torch.equal(table.grad, torch.zeros_like(table)))
        for call in (aft.simple, lambda *t: aft.full(*t, v.new_zeros(1, 1)),
                     lambda *t: aft.conv2d(*t, v.new_zeros(1, 3, 3), (1, 1))):
            self.refused("no channel needs a key", lambda call=call: call(none, k[..., :1], none))
        q, k, v = inputs(2, 5, 4, requires_grad=True)
        factors = [v.new_zeros(5, 0).requires_grad_() for _ in range(2)]
        y = aft.full(q, k, v, None, *factors)
        torch.testing.assert_close(y, aft.simple(q, k, v))
        torch.autograd.grad(y.sum(), (q, k, v, *factors))
        many = v.new_zeros(1 << 40, 0, 4).requires_grad_()
        for y in (aft.simple(many, many, many), aft.full(many, many, many, v.new_zeros(0, 0))):
            self.assertEqual(y.shape, many.shape)
            self.assertEqual(torch.autograd.grad(y.sum(), many)[0].shape, many.shape)
        heads = dict(heads=1 << 62)
        aft.full_step_(none, none, none, v.new_zeros(1, 1), None, None, aft.initial_state(none, none, 1), **heads)
        self.refused("height . width = 2, the positions of v", lambda: aft.conv2d(
            *(v[:1, :2] for _ in range(3)), v.new_zeros(1, 1, 1), (3, 6148914691236517206)))
        state = list(aft.initial_state(k, v, 3))
        state[0].fill_(2**63 - 1)
        self.refused("state.position: expected at most 2\\^62",
                     lambda: aft.conv1d_with_state(q, k, v, v.new_zeros(1, 4), state))


if __name__ == "__main__":
    unittest.main()
