"""conv2d against the dense equation and finite differences; what PyTorch asks of it; what it says of bad input."""

import itertools
import unittest

import torch
from torch.autograd import gradcheck

from aft_testing import DEVICE, aft, inputs, seeded


def dense(q, k, v, kernel, grid, key_mask=None, gate="sigmoid"):
    """The equation over every pair (t, t'), [B, T, T, d] at once, in differentiable torch operations."""
    height, width = grid
    heads, reach = kernel.size(0), kernel.size(1) // 2
    k = k if k.size(2) == v.size(2) else k.repeat_interleave(v.size(2) // heads, dim=2)
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    dy, dx = y[None] - y[:, None], x[None] - x[:, None]  # [target, source]
    inside = (dy.abs() <= reach) & (dx.abs() <= reach)
    w = kernel[:, (dy + reach).clamp(0, 2 * reach), (dx + reach).clamp(0, 2 * reach)] * inside
    logits = k[:, None] + w.repeat_interleave(v.size(2) // heads, dim=0).permute(1, 2, 0)
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, :, None], float("-inf"))
    ratio = torch.einsum("btsc,bsc->btc", torch.softmax(logits, dim=2), v)
    return {"sigmoid": torch.sigmoid, "relu": torch.relu, "none": lambda _: 1.0}[gate](q) * ratio


def sample(batch, grid, channels, heads, s, key_channels=None, gate="sigmoid", seed=0):
    """q, k, v and the kernel, all asking for their gradient."""
    q, k, v = inputs(batch, grid[0] * grid[1], channels, key_channels=key_channels, gate=gate, seed=seed,
                     requires_grad=True)
    generator = seeded(seed + 1)
    kernel = torch.randn(heads, s, s, generator=generator, dtype=torch.float64).requires_grad_()
    return q, k, v, kernel


class Values(unittest.TestCase):
    def test_against_the_equation(self):
        for grid, s, gate, (heads, key_channels) in itertools.product(
            ((1, 1), (1, 5), (4, 3)), (1, 3, 9), ("sigmoid", "relu", "none"), ((1, 6), (2, 2), (2, 6), (6, 6))
        ):
            with self.subTest(grid=grid, s=s, gate=gate, heads=heads, key_channels=key_channels):
                tensors = sample(2, grid, 6, heads, s, key_channels, gate)
                wanted = [t for t in tensors if t is not None]
                for mask in (None, torch.arange(2 * grid[0] * grid[1]).view(2, -1) % 4 != 1):
                    if grid == (1, 1) and mask is not None:
                        continue  # the dense form of a row with nothing to see is NaN
                    y = aft.conv2d(*tensors, grid, key_mask=mask, gate=gate)
                    expected = dense(*tensors, grid, mask, gate)
                    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
                    grad = torch.randn_like(y)
                    for got, want in zip(torch.autograd.grad(y, wanted, grad),
                                         torch.autograd.grad(expected, wanted, grad), strict=True):
                        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)

    def test_one_row_is_conv1d(self):
        q, k, v, kernel = sample(2, (1, 9), 6, 3, 5)
        y = aft.conv2d(q, k, v, kernel, (1, 9))
        torch.testing.assert_close(y, aft.conv1d(q, k, v, kernel[:, 2], causal=False), rtol=1e-12, atol=1e-12)

    def test_nothing_to_see_gives_zero(self):
        tensors = sample(2, (2, 3), 4, 2, 3)
        mask = torch.zeros(2, 6, dtype=torch.bool)
        y = aft.conv2d(*tensors, (2, 3), key_mask=mask)
        self.assertEqual(float(y.detach().abs().sum()), 0.0)
        for grad in torch.autograd.grad(y.sum(), tensors):
            self.assertEqual(float(grad.abs().sum()), 0.0)

    def test_empty_sizes(self):
        for batch, grid, channels in ((0, (2, 3), 4), (2, (0, 3), 4), (2, (2, 3), 0)):
            with self.subTest(batch=batch, grid=grid, channels=channels):
                tensors = sample(batch, grid, channels, 1, 3)
                y = aft.conv2d(*tensors, grid)
                self.assertEqual(y.shape, tensors[2].shape)
                y.sum().backward()
                self.assertEqual(float(tensors[3].grad.abs().sum()), 0.0)

    def test_any_strides(self):
        q, k, v, kernel = [t.detach() for t in sample(3, (2, 3), 4, 2, 3)]
        expected = aft.conv2d(q, k, v, kernel, (2, 3))
        mask = torch.ones(6, 3, dtype=torch.bool).t()
        for order in ([0, 2, 1], [1, 0, 2], [2, 1, 0]):
            inverse = [order.index(i) for i in range(3)]
            strange = [t.permute(order).contiguous().permute(inverse) for t in (q, k, v, kernel)]
            self.assertTrue(torch.equal(aft.conv2d(*strange, (2, 3), key_mask=mask), expected))

    def test_finite_differences(self):
        for grid, s, gate, key_channels in itertools.product(((2, 3), (1, 4)), (3, 5), ("sigmoid", "none"), (2, 4)):
            with self.subTest(grid=grid, s=s, gate=gate, key_channels=key_channels):
                tensors = sample(2, grid, 4, 2, s, key_channels, gate)
                self.assertTrue(gradcheck(lambda *t: aft.conv2d(*t, grid, gate=gate), tensors))

    def test_16_bit_tensors(self):
        for dtype in (torch.bfloat16, torch.float16):
            with self.subTest(dtype=dtype):
                q, k, v, kernel = [t.detach() for t in sample(2, (4, 3), 6, 2, 3)]
                tensors = [t.to(dtype).requires_grad_() for t in (q, k, v)] + [kernel.float().requires_grad_()]
                exact = [t.detach().double().requires_grad_() for t in tensors]
                y, expected = aft.conv2d(*tensors, (4, 3)), dense(*exact, (4, 3))
                grad = torch.randn_like(y)
                results = zip((y, *torch.autograd.grad(y, tensors, grad)),
                              (expected, *torch.autograd.grad(expected, exact, grad.double())),
                              (dtype, dtype, dtype, dtype, torch.float32), strict=True)
                for got, want, stored in results:
                    self.assertEqual(got.dtype, stored)
                    eps = torch.finfo(stored).eps  # f32 inside, one rounding at the end
                    torch.testing.assert_close(got.double(), want, rtol=eps, atol=20 * torch.finfo(torch.float32).eps)
                # A kernel of the tensors' own dtype is the same, and its gradient has that dtype.
                narrow = kernel.to(dtype).requires_grad_()
                wide = kernel.to(dtype).float().requires_grad_()
                for w in (narrow, wide):
                    aft.conv2d(*[t.detach() for t in tensors[:3]], w, (4, 3)).backward(grad)
                self.assertTrue(torch.equal(narrow.grad, wide.grad.to(dtype)))
                given = [t.detach() for t in (*tensors[:3], narrow)]
                out = [torch.empty_like(t) for t in given]
                aft.conv2d_backward(grad, *given, (4, 3), grad_q=out[0], grad_k=out[1], grad_v=out[2],
                                    grad_kernel=out[3])
                self.assertTrue(torch.equal(out[3], narrow.grad))
                with self.assertRaisesRegex(RuntimeError, f"kernel must be Float on {DEVICE}, since v is"):
                    aft.conv2d(*tensors[:3], kernel, (4, 3))

    def test_memory_of_the_caller(self):
        q, k, v, kernel = [t.detach() for t in sample(2, (2, 3), 4, 2, 3)]
        out = torch.full_like(v, float("nan"))
        aft.conv2d(q, k, v, kernel, (2, 3), out=out)
        self.assertTrue(torch.equal(out, aft.conv2d(q, k, v, kernel, (2, 3))))
        packed = torch.full((2, 6, 12), float("nan"), dtype=torch.float64)
        grads = dict(zip(("grad_q", "grad_k", "grad_v"), packed.chunk(3, -1), strict=True))
        grads["grad_kernel"] = torch.empty_like(kernel)
        aft.conv2d_backward(out, q, k, v, kernel, (2, 3), **grads)
        for got, want in zip(grads.values(), aft.conv2d_backward(out, q, k, v, kernel, (2, 3)), strict=True):
            self.assertTrue(torch.equal(got, want))


class PyTorch(unittest.TestCase):
    def test_compile(self):
        def layer(q, k, v, kernel, height):
            return aft.conv2d(q, k, v, kernel, (height, 3)) * 2

        for dynamic in (False, True):
            compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
            for height in (2, 4):
                with self.subTest(dynamic=dynamic, height=height):
                    tensors = sample(2, (height, 3), 4, 2, 3)
                    y, expected = compiled(*tensors, height), layer(*tensors, height)
                    self.assertTrue(torch.equal(y, expected))
                    grad = torch.randn_like(y)
                    for a, b in zip(torch.autograd.grad(y, tensors, grad),
                                    torch.autograd.grad(expected, tensors, grad), strict=True):
                        self.assertTrue(torch.equal(a, b))

    def test_export(self):
        class Layer(torch.nn.Module):
            def forward(self, q, k, v, kernel, mask):
                return torch.ops.aft.conv2d(q, k, v, kernel, (2, 3), key_mask=mask)

        tensors = [t.detach() for t in sample(2, (2, 3), 4, 2, 3)]
        mask = torch.arange(12).view(2, 6) % 5 != 1
        exported = torch.export.export(Layer(), (*tensors, mask))
        self.assertTrue(torch.equal(exported.module()(*tensors, mask), aft.conv2d(*tensors, (2, 3), key_mask=mask)))

    def test_double_backward_says_so(self):
        tensors = sample(2, (2, 3), 4, 2, 3)
        (grad,) = torch.autograd.grad(aft.conv2d(*tensors, (2, 3)).square().sum(), tensors[1], create_graph=True)
        with self.assertRaisesRegex(RuntimeError, "double backward through an aft operator is not supported"):
            grad.sum().backward()

    def test_messages(self):
        q, k, v, kernel = [t.detach() for t in sample(2, (2, 3), 4, 2, 3)]
        for message, call in (
            (r"v must have three dimensions .* got shape \[6, 4\]: flatten",
             lambda: aft.conv2d(q, k, v[0], kernel, (2, 3))),
            (r"grid must be \[height, width\] with height \* width = 6, the positions of v, got \[2, 2\]",
             lambda: aft.conv2d(q, k, v, kernel, (2, 2))),
            (r"kernel must have shape \[heads, s, s\] with s odd, got \[2, 2, 2\]",
             lambda: aft.conv2d(q, k, v, kernel[:, :2, :2], (2, 3))),
            (r"kernel must have shape \[heads, s, s\] with s odd, got \[2, 3, 1\]",
             lambda: aft.conv2d(q, k, v, kernel[:, :, :1], (2, 3))),
            (r"kernel must have the dtype of v, Double, got Float",
             lambda: aft.conv2d(q, k, v, kernel.float(), (2, 3))),
            (r"heads must divide the 4 channels of v, got 3",
             lambda: aft.conv2d(q, k, v, kernel[:1].expand(3, 3, 3), (2, 3))),
            (r"k must have shape \[2, 6, 4\] like v, or \[2, 6, 2\] with one key per head, got \[2, 6, 3\]",
             lambda: aft.conv2d(q, k[..., :3], v, kernel, (2, 3))),
            (rf"key_mask must be bool of shape \[2, 6\] on {DEVICE}, got Float of shape \[2, 6\]",
             lambda: aft.conv2d(q, k, v, kernel, (2, 3), key_mask=torch.ones(2, 6))),
            ('q must be a tensor with gate "sigmoid", got none', lambda: aft.conv2d(None, k, v, kernel, (2, 3))),
            ('q must be absent with gate "none"', lambda: aft.conv2d(q, k, v, kernel, (2, 3), gate="none")),
            ("out must not share memory", lambda: aft.conv2d(q, k, v, kernel, (2, 3), out=v)),
        ):
            with self.assertRaisesRegex(RuntimeError, "aft::conv2d: .*" + message):
                call()


if __name__ == "__main__":
    unittest.main()
