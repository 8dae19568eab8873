"""torch.func.vmap, many gradients at once, and the transforms that no operator supports: they say what to call."""

import unittest
import warnings

import torch
from torch.autograd import forward_ad

from aft_testing import WITHOUT_TENSORS, aft, inputs, seeded

B, T, D, H = 3, 5, 4, 2  # slices of vmap; positions; channels; heads


def forms():
    """(name, function of tensors, its tensors): every differentiable operator in its forms."""
    for gate in ("sigmoid", "none"):
        q, k, v, band = inputs(2, T, D, span=3, heads=H, rows=9, gate=gate)
        square = torch.randn(H, 9, 9, dtype=torch.float64, generator=seeded(1))
        factors = inputs(2, 9, 3, seed=2)[2]
        image = inputs(H, 3, 3, seed=3)[2]
        mask = torch.tensor([[True, False, True, True, True]] * 2)
        packing = torch.tensor([0, 2, T])

        def of(operator, gate=gate):
            """The operator of the tensors that there are, its results that have a gradient."""
            def call(*tensors):
                y = operator(*(None,) * (gate == "none"), *tensors, gate=gate)
                return (y[0], *y[3:]) if isinstance(y, tuple) else (y,)
            return call

        def state(k, v, left):
            return list(aft.initial_state(k, v, left))

        def full_with_state(q, k, v, w, **options):
            y, position, top, _, _, *ring = aft.full_with_state(q, k, v, w, None, None, state(k, v, 9), **options)
            return y, position, top, *ring

        qkv = [t for t in (q, k, v) if t is not None]
        row = [t[:1] for t in qkv]
        yield "simple", of(aft.simple), qkv
        yield "simple, masked", of(lambda *t, **o: aft.simple(*t, key_mask=mask, **o)), qkv
        yield "simple, packed", of(lambda *t, **o: aft.simple(*t, cu_seqlens=packing, **o)), row
        yield "local", of(aft.local), [*qkv, band]
        yield "conv1d", of(lambda *t, **o: aft.conv1d(*t, causal=False, **o)), [*qkv, band[:, 0]]
        yield "window", of(aft.window), [*qkv, band]
        yield "conv2d", of(lambda *t, **o: aft.conv2d(*t, [1, T], key_mask=mask, **o)), [*qkv, image]
        yield "full", of(lambda *t, **o: aft.full(*t, key_mask=mask, **o)), [*qkv, square]
        yield "full, factors", of(lambda q, k, v, u, w, **o: aft.full(q, k, v, None, u, w, **o)), [*qkv, *factors]
        yield "simple_with_state", of(lambda q, k, v, **o: aft.simple_with_state(q, k, v, state(k, v, 0), **o)), qkv
        yield ("local_with_state", of(lambda q, k, v, w, **o: aft.local_with_state(q, k, v, w, state(k, v, 2), **o)),
               [*qkv, band])
        yield ("conv1d_with_state", of(lambda q, k, v, w, **o: aft.conv1d_with_state(q, k, v, w, state(k, v, 2), **o)),
               [*qkv, band[:, 0]])
        yield "full_with_state", of(full_with_state), [*qkv, square]
    yield "local_bias", lambda u, v: (aft.local_bias(u, v, 2, 1),), list(factors)


def slices(tensors, seed=0):
    """B of each: the tensors and others like them."""
    generator = seeded(seed)
    return [torch.stack([t] + [t + torch.randn(t.shape, generator=generator, dtype=t.dtype) for _ in range(B - 1)])
            for t in tensors]


def one_by_one(function, batched):
    return [torch.stack(ys) for ys in zip(*(function(*(t[i] for t in batched)) for i in range(B)), strict=True)]


class Vmap(unittest.TestCase):
    def setUp(self):
        warnings.simplefilter("error")  # PyTorch warns of its own slow fallback
        self.addCleanup(warnings.resetwarnings)

    def same(self, got, want):
        for a, b in zip(got, want, strict=True):
            self.assertTrue(torch.equal(a, b))

    def test_every_operator_has_a_rule(self):
        for schema in torch._C._jit_get_all_schemas():
            name = schema.name + ("." + schema.overload_name if schema.overload_name else "")
            if schema.name.startswith("aft::") and schema.name.removeprefix("aft::") not in WITHOUT_TENSORS:
                self.assertTrue(torch._C._dispatch_has_kernel_for_dispatch_key(name, "FuncTorchBatched"), name)
                if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"):  # not made of others
                    self.assertTrue(torch._C._dispatch_has_kernel_for_dispatch_key(name, "Batched"), name)

    def test_is_the_slices_one_by_one(self):
        for name, function, tensors in forms():
            with self.subTest(name):
                batched = slices(tensors)
                want = one_by_one(function, batched)
                self.same(torch.func.vmap(function)(*batched), want)
                last = [t.movedim(0, -1) for t in batched]
                self.same(torch.func.vmap(function, in_dims=-1)(*last), want)
                for i in range(len(tensors)):  # one of them batched
                    where = tuple(0 if j == i else None for j in range(len(tensors)))
                    mixed = [b if j == i else t for j, (b, t) in enumerate(zip(batched, tensors, strict=True))]
                    alone = one_by_one(function, [b if j == i else t.expand(B, *t.shape)
                                                  for j, (b, t) in enumerate(zip(batched, tensors, strict=True))])
                    self.same(torch.func.vmap(function, in_dims=where)(*mixed), alone)

    def test_of_vmap(self):
        for name, function, tensors in forms():
            with self.subTest(name):
                outer = [torch.stack([t, 2 * t]) for t in slices(tensors)]
                each = (one_by_one(function, [t[i] for t in outer]) for i in range(2))
                want = [torch.stack(ys) for ys in zip(*each, strict=True)]
                self.same(torch.func.vmap(torch.func.vmap(function))(*outer), want)

    def test_gradients_pass_through(self):
        for name, function, tensors in forms():
            with self.subTest(name):
                batched = [t.requires_grad_() for t in slices(tensors)]
                y = torch.func.vmap(function)(*batched)[0]
                grad = torch.randn(y.shape, dtype=y.dtype, generator=seeded(9))
                want = torch.autograd.grad(one_by_one(function, batched)[0], batched, grad)
                self.same(torch.autograd.grad(y, batched, grad), want)

    def test_many_gradients_at_once(self):
        for name, function, originals in forms():
            with self.subTest(name):
                tensors = [t.detach().clone().requires_grad_() for t in originals]
                ys = [y for y in function(*tensors) if y.requires_grad]
                grads = slices([torch.ones_like(y) for y in ys])
                want = zip(*(torch.autograd.grad(ys, tensors, [g[i] for g in grads], retain_graph=True)
                             for i in range(B)), strict=True)
                self.same(torch.autograd.grad(ys, tensors, grads, is_grads_batched=True), map(torch.stack, want))

    def test_vectorized_jacobian(self):
        q, k, v, band = inputs(1, T, D, span=3)
        w = aft.local_weights(band, T, 2)
        jacobian = torch.autograd.functional.jacobian(lambda *t: aft.local(*t, band), (q, k, v), vectorize=True)
        reference = torch.func.jacrev(lambda *t: aft.reference(*t, w), argnums=(0, 1, 2))(q, k, v)
        for a, b in zip(jacobian, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)

    def test_steps(self):
        q, k, v, band = inputs(2, 1, D, span=3, heads=H, rows=9)
        square = inputs(9, 9, H)[2].permute(2, 0, 1).contiguous()
        for name, left, step in (
            ("simple", 0, aft.simple_step_),
            ("local", 2, lambda q, k, v, state: aft.local_step_(q, k, v, band, state)),
            ("conv1d", 2, lambda q, k, v, state: aft.conv1d_step_(q, k, v, band[:, 0], state)),
            ("window", 2, lambda q, k, v, state: aft.window_step_(q, k, v, band, state)),
            ("full", 9, lambda q, k, v, state: aft.full_step_(q, k, v, square, None, None, state)),
        ):
            with self.subTest(name):
                batched = slices((q, k, v))
                states = [list(aft.initial_state(k, v, left)) for _ in range(B)]
                together = [torch.stack(ts) for ts in zip(*states, strict=True)]
                want = torch.stack([step(*(t[i] for t in batched), states[i]) for i in range(B)])
                y = torch.func.vmap(lambda q, k, v, *state: step(q, k, v, list(state)))(*batched, *together)
                self.same([y, *together], [want, *(torch.stack(ts) for ts in zip(*states, strict=True))])

                inside = torch.func.vmap(lambda q, k, v: step(q, k, v, list(aft.initial_state(k, v, left))))
                self.same([inside(*batched)], [want])

                shared = list(aft.initial_state(k, v, left))
                before = [t.clone() for t in shared]
                with self.assertRaisesRegex(RuntimeError, "state is written, so vmap must batch it.*aft::reference"):
                    torch.func.vmap(lambda q, k, v: step(q, k, v, shared))(*batched)
                self.same(shared, before)

    def test_memory_of_the_caller(self):
        q, k, v = slices(inputs(2, T, D))
        out = torch.empty_like(v)
        want = torch.func.vmap(aft.window)(q, k, v)

        def write(q, k, v, out):
            aft.window(q, k, v, out=out)
            return out

        self.same([torch.func.vmap(write)(q, k, v, out), out], [want, want])
        with self.assertRaisesRegex(RuntimeError, "out is written, so vmap must batch it"):
            torch.func.vmap(lambda *t: write(*t, out[0]))(q, k, v)

    def test_no_slices_say_so(self):
        q, k, v = (t.expand(0, *t.shape) for t in inputs(2, T, D))
        with self.assertRaisesRegex(RuntimeError, "vmap must have at least one slice, got 0.*aft::reference"):
            torch.func.vmap(aft.simple)(q, k, v)


class Transforms(unittest.TestCase):
    """Derivatives that no operator has."""

    def test_say_what_to_call(self):
        for name, function, originals in forms():
            tensors = [t.detach() for t in originals]

            def scalar(*t):
                return function(*t)[0].square().sum()

            def of_first(t):
                return scalar(t, *tensors[1:])

            for transform, call in (
                ("grad", lambda: torch.func.grad(scalar)(*tensors)),
                ("vjp", lambda: torch.func.vjp(scalar, *tensors)),
                ("jacrev", lambda: torch.func.jacrev(scalar)(*tensors)),
                ("vmap of grad", lambda: torch.func.vmap(torch.func.grad(scalar))(*slices(tensors))),
                ("grad of vmap", lambda: torch.func.grad(
                    lambda t: torch.func.vmap(of_first)(t).sum())(slices(tensors)[0])),
                ("jvp", lambda: torch.func.jvp(of_first, (tensors[0],), (torch.ones_like(tensors[0]),))),
                ("jacfwd", lambda: torch.func.jacfwd(of_first)(tensors[0])),
                ("hessian", lambda: torch.func.hessian(of_first)(tensors[0])),
                ("linearize", lambda: torch.func.linearize(of_first, tensors[0])),
            ):
                with (self.subTest(name, transform=transform),
                      self.assertRaisesRegex(RuntimeError, "through an aft operator .*call aft::reference")):
                    call()

    def test_forward_mode_never_drops_a_tangent(self):
        for name, function, tensors in forms():
            for i in range(len(tensors)):
                for guard in (torch.enable_grad, torch.no_grad):
                    with self.subTest(name, argument=i, guard=guard.__name__), forward_ad.dual_level(), guard():
                        dual = [forward_ad.make_dual(t, torch.ones_like(t)) if j == i else t
                                for j, t in enumerate(tensors)]
                        with self.assertRaisesRegex(RuntimeError, "jvp.*call aft::reference"):
                            function(*dual)

    def test_the_reference_has_them(self):
        q, k, v, band = inputs(1, T, D, span=3)
        w = aft.local_weights(band, T, 2)

        def f(k):
            return aft.reference(q, k, v, w).square().sum()

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            hessian = torch.func.hessian(f)(k)
            tangent = torch.func.jvp(f, (k,), (torch.ones_like(k),))[1]
            grads = torch.func.vmap(torch.func.grad(f))(slices([k])[0])
            weights = torch.func.vmap(lambda b: aft.local_weights(b, T, 2))(slices([band])[0])
        torch.testing.assert_close(hessian, torch.autograd.functional.hessian(f, k))
        torch.testing.assert_close(tangent, torch.func.grad(f)(k).sum())
        for i, one in enumerate(slices([k])[0]):
            torch.testing.assert_close(grads[i], torch.autograd.functional.jacobian(f, one))
        self.assertTrue(torch.equal(weights[0], w))


if __name__ == "__main__":
    unittest.main()
