"""torch.autocast: q, k and v in its dtype, weights and state untouched."""

import unittest

import torch

from aft_testing import DEVICE, aft, inputs, seeded


def calls(dtype=torch.float32, gate="sigmoid"):
    """(name, operator of q, k, v, the three) for every public operator that has q, k and v."""
    q, k, v, bias = inputs(2, 5, 4, span=3, rows=9, gate=gate, dtype=torch.float32)
    bias = bias.to(dtype)
    kernel = bias[:1].contiguous()
    square = torch.randn(5, 5, generator=seeded(1)).to(dtype)
    states = {left: [t.clone() for t in aft.initial_state(k.to(dtype), v.to(dtype), left)] for left in (0, 2, 5)}

    def state(left):
        return [t.clone() for t in states[left]]

    def step(operator, left, *weights):
        def call(q, k, v):
            after = state(left)
            one = [t if t is None else t[:, :1] for t in (q, k, v)]
            return operator(*one, *weights, after, gate=gate), *after
        return call

    return (q, k, v), {
        "simple": lambda q, k, v: aft.simple(q, k, v, gate=gate),
        "simple_with_state": lambda q, k, v: aft.simple_with_state(q, k, v, state(0), gate=gate),
        "simple_step_": step(aft.simple_step_, 0),
        "local": lambda q, k, v: aft.local(q, k, v, bias, gate=gate),
        "local_with_state": lambda q, k, v: aft.local_with_state(q, k, v, bias, state(2), gate=gate),
        "local_step_": step(aft.local_step_, 2, bias),
        "conv1d": lambda q, k, v: aft.conv1d(q, k, v, kernel, gate=gate),
        "conv1d_with_state": lambda q, k, v: aft.conv1d_with_state(q, k, v, kernel, state(2), gate=gate),
        "conv1d_step_": step(aft.conv1d_step_, 2, kernel),
        "conv2d": lambda q, k, v: aft.conv2d(q, k, v, bias[None, :3], [1, 5], gate=gate),
        "full": lambda q, k, v: aft.full(q, k, v, square, gate=gate),
        "full_with_state": lambda q, k, v: aft.full_with_state(q, k, v, square, None, None, state(5), gate=gate),
        "full_step_": step(aft.full_step_, 5, square, None, None),
    }


def bits(result):
    return [t.detach() for t in (result if isinstance(result, tuple) else (result,))]


class Casts(unittest.TestCase):
    def test_every_public_operator_is_cast_for(self):
        # Those whose arguments begin with q, k, v and that are not the pieces behind the gradient.
        public = {s.name.split("::")[1] for s in torch._C._jit_get_all_schemas()
                  if s.name.startswith("aft::") and [a.name for a in s.arguments[:3]] == ["q", "k", "v"]}
        public = {name for name in public if not name.startswith(("window", "reference"))
                  and not name.endswith(("_forward", "_backward"))}
        self.assertEqual(public, set(calls()[1]))
        for name in public:
            for key in ("AutocastCPU", "AutocastCUDA"):
                self.assertTrue(torch._C._dispatch_has_kernel_for_dispatch_key("aft::" + name, key), name)

    def test_the_operator_gets_the_dtype_of_autocast(self):
        for dtype in (torch.bfloat16, torch.float16):
            for gate in ("sigmoid", "none"):
                tensors, operators = calls(gate=gate)
                for name, operator in operators.items():
                    with self.subTest(name=name, dtype=dtype, gate=gate), torch.no_grad():
                        with torch.autocast(DEVICE.type, dtype=dtype):
                            got = operator(*tensors)
                        want = operator(*[t if t is None else t.to(dtype) for t in tensors])
                        self.assertEqual(bits(got)[0].dtype, dtype)
                        for a, b in zip(bits(got), bits(want), strict=True):
                            self.assertTrue(torch.equal(a, b))
                        for t in bits(got)[1:]:
                            self.assertIn(t.dtype, (torch.float32, torch.int64))

    def test_gradients_come_back_in_the_dtype_of_the_inputs(self):
        for dtype in (torch.bfloat16, torch.float16):
            for name, operator in (
                ("local", lambda q, k, v, w: aft.local(q, k, v, w[0])),
                ("conv2d", lambda q, k, v, w: aft.conv2d(q, k, v, w[:, :3, :3], [1, 5])),
                ("full", lambda q, k, v, w: aft.full(q, k, v, w)),
            ):
                with self.subTest(name=name, dtype=dtype):
                    tensors = inputs(2, 5, 4, span=5, heads=2, rows=5, dtype=torch.float32, requires_grad=True)
                    with torch.autocast(DEVICE.type, dtype=dtype):
                        y = operator(*tensors)
                    self.assertEqual(y.dtype, dtype)
                    small = [t.detach().to(dtype).requires_grad_() for t in tensors[:3]]
                    weights = tensors[3].detach().requires_grad_()
                    grad = torch.randn_like(y)
                    got = torch.autograd.grad(y, tensors, grad)
                    want = torch.autograd.grad(operator(*small, weights), (*small, weights), grad)
                    for a, b in zip(got, want, strict=True):
                        self.assertEqual(a.dtype, torch.float32)
                        self.assertTrue(torch.equal(a, b.float()))

    def test_compiles(self):
        tensors, operators = calls()
        for name in ("simple", "local", "conv1d", "conv2d", "full"):
            compiled = torch.compile(operators[name], fullgraph=True, backend="aot_eager")
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                self.assertTrue(torch.equal(compiled(*tensors), operators[name](*tensors)))

    def test_double_stays_double(self):
        tensors, operators = calls(dtype=torch.float64)
        tensors = [t.double() for t in tensors]
        for name, operator in operators.items():
            with self.subTest(name=name), torch.no_grad():
                want = operator(*tensors)
                with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                    got = operator(*tensors)
                for a, b in zip(bits(got), bits(want), strict=True):
                    self.assertTrue(torch.equal(a, b))

    def test_switched_off_inside(self):
        tensors, operators = calls()
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16), torch.autocast(DEVICE.type, enabled=False):
            self.assertEqual(operators["simple"](*tensors).dtype, torch.float32)


if __name__ == "__main__":
    unittest.main()
