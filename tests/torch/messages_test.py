"""What the operators say of bad input, before they read or write anything, and where they draw the line."""

import unittest

import torch

from aft_testing import DEVICE, aft, inputs


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
        r(f"k must be on the device of v, {DEVICE}, got meta", lambda: aft.simple(q, k.to("meta"), v))
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
        self.refused("expected a row for every position up to 8 .* got 7 rows",
                     lambda: aft.local_with_state(q, k, v, bias, state))
        state[0] += 7
        copy[0] += 7
        self.refused("got 7 rows", lambda: aft.local_step_(q[:, :1], k[:, :1], v[:, :1], bias, state))
        for a, b in zip(state, copy, strict=True):
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
        saved = aft.window_forward(q, k, v, bias)[1]
        grad = torch.empty_like(v)
        r("grad_v must not share memory",
          lambda: aft.window_backward(v, q, k, v, bias, saved, grad_q=torch.empty_like(q), grad_k=grad, grad_v=grad,
                                      grad_band=torch.empty_like(bias)))
        r("saved must have 2 elements, got 42: pass what aft::window_forward gave",
          lambda: aft.window_backward(v, q, k, v, bias, torch.cat([saved, v.flatten()])))

    def test_gradients_into_memory_of_the_caller(self):
        for device in (DEVICE, torch.device("meta")):
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
                if device == DEVICE:
                    cases += [(f"{name} must not share memory", {name: other}) for name, other in (
                        ("grad_q", q), ("grad_k", v), ("grad_v", to["grad_k"]), (of, given))]
                for message, change in cases:
                    with self.subTest(weights=weights, device=device, change=list(change)):
                        self.refused(message, lambda: backward(**to | change))
                backward(**to)
                if device == DEVICE:  # with other strides than the kernel's
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
            want = backward()[3]
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

    @unittest.skipIf(DEVICE.type != "cpu", "threads of a CUDA device write while others read: states share no memory")
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
        stateful = aft.window_forward(q, k, v, band, local_state)[1]

        def full_backward(state, *ring):
            return aft.full_backward(v, q, k, v, square, None, None, full, state, ring)

        r = self.refused
        r(f"saved must be on the device of v, {DEVICE}, got meta",
          lambda: aft.window_backward(v, q, k, v, band, saved.to("meta")))
        r(f"saved must be on the device of v, {DEVICE}, got meta", lambda: aft.full_backward(
            v, q, k, v, square, None, None, full.to("meta"), state))
        r(f"saved must be on the device of v, {DEVICE}, got meta", lambda: aft.window_backward(
            v, q, k, v, band, stateful.to("meta"), local_state, local_state[2:]))
        for device in (DEVICE, torch.device("meta")):
            q, k, v, square, full, *state = (t.to(device) for t in (q, k, v, square, full, *state))
            r("grad_ring_key must have the shape of state ring_key", lambda: full_backward(state, k[:, :1], state[5]))
            r("grad_ring_value must have the dtype of state ring_value",
              lambda: full_backward(state, state[4], state[5].float()))
            r("grad_state must be the gradients of the last 2 tensors of a state, got 1",
              lambda: full_backward(state, state[4]))
            r("grad_state must be None without a state", lambda: full_backward(None, *state[4:]))

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
        # A CUDA device has a sum for each sequence, also for those without tokens.
        many = v.new_zeros(1 << (40 if DEVICE.type == "cpu" else 20), 0, 4).requires_grad_()
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
