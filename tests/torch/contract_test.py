"""What PyTorch asks of an operator: opcheck, meta tensors, torch.compile."""

import pathlib
import re
import unittest

import torch
import torch._dynamo.testing
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from aft_testing import WITHOUT_TENSORS, aft, inputs, seeded


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
            saved = aft.window_forward(q, k, v, band, gate=gate)[1]
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
        packed = dict(zip(("grad_q", "grad_k", "grad_v", "grad_kernel"), packed, strict=True))
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
            yield aft.full_backward.default, (v, q, k, v, *weights, saved, state, state[4:]), dict(gate=gate)
            if state:
                continue
            yield aft.full.out, (q, k, v, *weights), dict(gate=gate, out=torch.empty_like(v))
            into = [t if t is None else torch.empty_like(t) for t in weights]
            into = dict(zip(("grad_bias", "grad_u", "grad_w"), into, strict=True))
            yield aft.full_backward.out, (v, q, k, v, *weights, saved), dict(gate=gate, **out, **into)
        yield aft.full_backward.default, (v, q, k, v, *weights, saved, state), frozen
        no_weights = dict.fromkeys(("grad_bias", "grad_u", "grad_w"))
        saved = aft.full_forward(q, k, v, square, None, None, [], gate=gate)[1]
        yield aft.full_backward.out, (v, q, k, v, square, None, None, saved), dict(gate=gate, **out, **no_weights)
        yield aft.full_step_.default, (*one, square, None, None, ring), dict(gate=gate)
        for b, state in ((None, simple_state), (bias[:, :, :], [t.clone() for t in aft.initial_state(k, v, 2)])):
            yield aft.window_forward.default, (q, k, v, b, state), dict(gate=gate)
            saved = aft.window_forward(q, k, v, b, state, gate=gate)[1]
            yield aft.window_backward.default, (v, q, k, v, b, saved, state, state[2:]), dict(gate=gate)
        yield aft.window_backward.default, (v, q, k, v, b, saved, state), frozen
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
        self.assertEqual(names - sampled, {f"aft::{name}.default" for name in WITHOUT_TENSORS})

    def test_the_table_of_the_page_is_what_is_registered(self):
        page = (pathlib.Path(__file__).parents[2] / "docs" / "ops.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| `(\w+)\((.*?)\) -> (.*?)` \|", page, re.MULTILINE)
        state = re.search(r"^\| `simple_with_state\(.* -> (\(.*?\))` \|", page, re.MULTILINE)[1]
        registered = {s.name: str(s) for s in torch._C._jit_get_all_schemas() if s.name.startswith("aft::")}
        for name, arguments, results in rows:
            with self.subTest(name):
                text = f"aft::{name}({arguments}) -> {results.replace('(the same)', state)}"
                self.assertEqual(str(torch._C.parse_schema(text)), str(getattr(aft, name).default._schema))
        # Those behind the gradient and the forms that write into memory of the caller are described in words.
        behind = {name for name in registered
                  if name.startswith("aft::window") or name.endswith(("_forward", "_backward"))}
        self.assertEqual({f"aft::{name}" for name, _, _ in rows}, set(registered) - behind)

    def test_opcheck(self):
        for op, args, kwargs in samples():
            with self.subTest(op=str(op), gate=kwargs.get("gate"), causal=kwargs.get("causal")):
                opcheck(op, args, kwargs)

    def test_meta(self):
        def meta(value):
            if isinstance(value, torch.Tensor):
                return value.detach().to("meta")
            return [meta(t) for t in value] if isinstance(value, list) else value

        def flat(results):
            return [t for r in results for t in flat(r)] if isinstance(results, (tuple, list)) else [results]

        for op, args, kwargs in samples():
            with self.subTest(op=str(op)):
                real = op(*[a.detach() if isinstance(a, torch.Tensor) else a for a in args], **kwargs) \
                    if op._opname[-1] != "_" and op._overloadname != "out" else None
                got = op(*[meta(a) for a in args], **{name: meta(a) for name, a in kwargs.items()})
                if real is None:
                    continue
                for a, b in zip(flat(got), flat(real), strict=True):
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
                plain = getattr(aft, op._opname).default
                results = plain(*args, **{k: v for k, v in kwargs.items() if k not in into})
                names = [r.name for r in plain._schema.returns]
                results = dict(zip(names, results, strict=True)) if len(names) > 1 else {"out": results}
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
                    for a, b in zip(torch.autograd.grad(y, tensors, grad),
                                    torch.autograd.grad(expected, tensors, grad), strict=True):
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

    def test_a_new_length_does_not_compile_anew(self):
        def layer(q, k, v, bias, square, cu_seqlens):
            y = aft.simple(q, k, v) + aft.local(q, k, v, bias, causal=False) + aft.full(q, k, v, square)
            packed = aft.local(q[:1], k[:1], v[:1], bias, cu_seqlens=cu_seqlens)
            state = list(aft.initial_state(k, v, 2))
            return y + packed, aft.local_with_state(q, k, v, bias, state)

        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(layer, fullgraph=True, backend=counter, dynamic=True)
        for batch, time in ((2, 5), (2, 70), (3, 64), (2, 65), (5, 400)):
            with self.subTest(batch=batch, time=time):
                q, k, v, bias = inputs(batch, time, 4, span=3, rows=500, requires_grad=True)
                square = torch.randn(500, 500, dtype=torch.float64, requires_grad=True)
                tensors = (q, k, v, bias, square, torch.tensor([0, time // 2, time]))
                results = [[ys[0], *ys[1][:1], *ys[1][3:]] for ys in (compiled(*tensors), layer(*tensors))]
                for a, b in zip(*results, strict=True):
                    self.assertTrue(torch.equal(a, b))
                sums = [sum(y.square().sum() for y in ys) for ys in results]
                for a, b in zip(*(torch.autograd.grad(s, tensors[:5]) for s in sums), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        self.assertEqual(counter.frame_count, 1)

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


class Cuda(unittest.TestCase):
    def test_architectures_and_devices(self):
        # Numbers of machine code, then of PTX; without any, no kernel runs on a device.
        compiled = aft.cuda_architectures()
        self.assertRegex(compiled, r"^(((PTX )?\d+[af]?)(, (PTX )?\d+[af]?)*)?$")
        for name in aft.cuda_devices():
            self.assertRegex(name, r".+ \(\d+\)$")
            self.assertTrue(compiled)


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
            mask = torch.rand(2, 200, generator=seeded(3)) < 0.9
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
            yield ("conv2d", "conv2d_backward",
                   lambda q, k, v, b, o=options: aft.conv2d(q, k, v, b, (10, 20), **o), qkv, [kernel])
            yield ("local_with_state", "window_backward",
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
                    same = zip(grads, whole[:len(grads)], strict=True)  # whole has those of the weights behind them
                    self.assertTrue(all(torch.equal(a, b) for a, b in same))

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
            saved = aft.window_forward(q, k, v, bias, gate=gate)[1]
            *whole, _, _ = aft.window_backward(v, q, k, v, bias, saved, gate=gate)
            *grads, none, _ = aft.window_backward(v, q, k, v, bias, saved, gate=gate, weights_gradient=False)
            self.assertEqual(none.shape, (0,))
            written = [None if q is None else torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)]
            aft.window_backward(v, q, k, v, bias, saved, gate=gate, grad_q=written[0], grad_k=written[1],
                                grad_v=written[2], grad_band=None)
            for a, b, c in list(zip(whole, grads, written, strict=True))[q is None:]:
                self.assertTrue(torch.equal(a, b) and torch.equal(a, c))

    def test_compile(self):
        compiled = torch.compile(lambda *t: aft.local(*t[:4]) + aft.full(*t[:3], t[4]), fullgraph=True,
                                 backend="aot_eager")
        q, k, v, bias = inputs(2, 7, 4, span=3, requires_grad=True)
        tensors = (q, k, v, bias.detach(), torch.randn(7, 7, dtype=torch.float64))
        expected = torch.autograd.grad((aft.local(*tensors[:4]) + aft.full(*tensors[:3], tensors[4])).sum(), (q, k, v))
        for a, b in zip(torch.autograd.grad(compiled(*tensors).sum(), (q, k, v)), expected, strict=True):
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
        for a, b in zip(first, second, strict=True):
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


if __name__ == "__main__":
    unittest.main()
