"""What the Python tests share: the library, the device, a dense reference, inputs.

With AFT_TEST_DEVICE=cuda the tests make their tensors there, else on the CPU."""

import os
import sys

import torch

torch.ops.load_library(os.environ["AFT_TORCH_LIBRARY"])
aft = torch.ops.aft

SKIPPED = 77  # what ctest takes for "skipped", as a process ends


def why_not_on_cuda():
    """None where the operators run on a CUDA device, else what is missing."""
    if torch.version.cuda is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device"
    try:
        aft.simple(*torch.zeros(3, 1, 1, 1, device="cuda"))
    except RuntimeError as error:
        if "built without CUDA" in str(error):
            return "the operators are built without CUDA: take the preset cuda"
        raise
    return None


def require_cuda():
    """Ends the process as skipped, and says why, where the operators do not run on a CUDA device."""
    reason = why_not_on_cuda()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)


if "AFT_TEST_DEVICE" in os.environ:
    if os.environ["AFT_TEST_DEVICE"].startswith("cuda"):
        require_cuda()
    torch.set_default_device(os.environ["AFT_TEST_DEVICE"])
DEVICE = torch.empty(0).device  # with its index, as in messages

# Thousands of tiny calls: a second thread would only wait, long on a busy machine. The thread test asks for its own.
torch.set_num_threads(1)

# Operators that take no tensor: not for a device, a gradient or vmap to care about.
WITHOUT_TENSORS = {"redo_count", "cuda_architectures", "cuda_devices", "simd_targets", "library_path"}

STATE_NAMES = ("position", "max", "den", "num", "ring_key", "ring_value")


def seeded(seed):
    """A generator of random numbers on the device where tensors are made."""
    return torch.Generator(torch.empty(0).device).manual_seed(seed)


def one_rounding(dtype, exact):
    """Tolerance for `exact` computed in float32 and rounded to the dtype: that rounding, and some of the largest."""
    inside = 20 * torch.finfo(torch.float32).eps * float(exact.abs().max())
    return {"rtol": torch.finfo(dtype).eps, "atol": inside}


def check_rounded_once(test, got, wide):
    """That a 16-bit result is that of float32, `wide`, rounded once: on the CPU, the same bits. On a GPU kernels for 16
    bits form their sums in another order, which may turn a rounding."""
    if got.device.type == "cpu":
        test.assertTrue(torch.equal(got, wide.to(got.dtype)))
    else:
        torch.testing.assert_close(got.double(), wide.double(), **one_rounding(got.dtype, wide))


def dense(q, k, v, bias=None, causal=True, gate="sigmoid", heads=1):
    """The equation over every pair (t, t'), [B, T, T, d] at once, in differentiable torch operations."""
    batch, time, channels = v.shape
    if bias is not None:
        bias = bias if bias.dim() == 3 else bias.unsqueeze(0)
        heads = bias.size(0)
    if k.size(2) != channels:
        k = k.repeat_interleave(channels // heads, dim=2)
    x = k.unsqueeze(1).expand(batch, time, time, channels)  # [b, target, source, c]
    if bias is not None and bias.size(2) > 0:
        span = bias.size(2)
        left = span - 1 if causal else (span - 1) // 2
        rows = []
        for h in range(heads):
            w = [
                [bias[h, t, s - t + left] if 0 <= s - t + left < span else bias.new_zeros(()) for s in range(time)]
                for t in range(time)
            ]
            rows.append(torch.stack([torch.stack(r) for r in w]))
        w = torch.stack(rows).repeat_interleave(channels // heads, dim=0)  # [c, target, source]
        x = x + w.permute(1, 2, 0)
    if causal:
        future = torch.ones(time, time, dtype=torch.bool, device=x.device).triu(1)
        x = x.masked_fill(future[None, :, :, None], float("-inf"))
    y = torch.einsum("btsc,bsc->btc", torch.softmax(x, dim=2), v)
    return {"sigmoid": torch.sigmoid, "relu": torch.relu, "none": lambda _: 1.0}[gate](q) * y


def inputs(batch, time, channels, span=None, heads=None, key_channels=None, gate="sigmoid", dtype=torch.float64,
           rows=None, seed=0, requires_grad=False):
    """q, k, v and, with a span, the bias; q is None with gate none."""
    generator = seeded(seed)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_(requires_grad)

    q = None if gate == "none" else make(batch, time, channels)
    result = [q, make(batch, time, key_channels or channels), make(batch, time, channels)]
    if span is not None:
        table = (rows or time + 2, span)
        result.append(make(*table) if heads is None else make(heads, *table))
    return result
