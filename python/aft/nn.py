"""The layers: an operator of aft between two projections, y = output(operator(qkv(x))).

Parameters, initial values and results are those of the C++ modules aft::nn, so a `state_dict` serves both, and the
tensors of a model file under `blocks.i.mixer.` are one. In a layer of 16 bits the factors and kernels are widened to
float32 and rounded once; states are float32, or float64 in a float64 layer.

Arguments that all share: `channels`, d; `gate` of the query, "sigmoid", "relu" or "none" (without a query); `causal`,
whether a position sees only itself and those before it; `device` and `dtype` of the parameters. Wrong ones are a
ValueError that names the argument, what was expected, what came and the remedy.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from . import functional
from .functional import Gate
from .state import State

__all__ = ["AFTConv1d", "AFTConv2d", "AFTFull", "AFTLocal", "AFTSimple"]

Device = torch.device | str | int | None


def _wide(parameter: Tensor) -> Tensor:
    """In the dtype of the sums, so that 16 bits are rounded once; the gradient comes back in the parameter's own."""
    return parameter.to(torch.float64 if parameter.dtype == torch.float64 else torch.float32)


class _Layer(torch.nn.Module):
    """The projections. `_options` names the attributes that extra_repr shows, in the order of the constructor."""

    _options: ClassVar[tuple[str, ...]]

    def __init__(self, channels: int, key_channels: int, gate: Gate, device: Device, dtype: torch.dtype | None) -> None:
        super().__init__()
        if gate not in {"sigmoid", "relu", "none"}:
            self._refuse(f'gate must be "sigmoid", "relu" or "none", got {gate!r}: choose one of the three')
        self.channels, self.key_channels, self.gate = channels, key_channels, gate
        query = 0 if gate == "none" else channels
        self.qkv = torch.nn.Linear(channels, query + key_channels + channels, device=device, dtype=dtype)
        self.output = torch.nn.Linear(channels, channels, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws all parameters anew, those of the projections too: what follows `to_empty` of the meta device."""
        self.qkv.reset_parameters()
        self.output.reset_parameters()
        self._reset_weights()

    def extra_repr(self) -> str:
        return ", ".join(f"{name.removesuffix('_size')}={getattr(self, name)!r}" for name in self._options)

    def _reset_weights(self) -> None:
        """Draws what is not of the projections."""

    def _project(self, x: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """The parts of qkv(x) in the order of its rows: query (none where there is no gate), key, value."""
        if x.dim() != 3 or x.shape[2] != self.channels:
            self._refuse(
                f"x must have shape [batch, time, {self.channels}], got {list(x.shape)}: reshape it, or set channels"
            )
        if self.gate == "none":
            return None, *self.qkv(x).split([self.key_channels, self.channels], dim=-1)
        return self.qkv(x).split([self.channels, self.key_channels, self.channels], dim=-1)

    def _check_positive(self, **options: int) -> None:
        for name, value in options.items():
            if value < 1:
                self._refuse(f"{name} must be at least 1, got {value}: set it")

    def _check_heads(self, heads: int, channels: int) -> None:
        self._check_positive(channels=channels, heads=heads)
        if channels % heads != 0:
            self._refuse(f"heads must divide channels = {channels}, got {heads}: change one of them")

    def _refuse(self, message: str) -> NoReturn:
        raise ValueError(f"aft.nn.{type(self).__name__}: {message}")


class _SequenceLayer(_Layer):
    """Of sequences, causal or not: `_operator` between the projections, and `_operator_step` of it.

    `_left` positions are in the ring of its state, and `context` is the longest sequence, where there is one.
    """

    _operator: ClassVar[Callable[..., Any]]
    _operator_step: ClassVar[Callable[..., Tensor]]
    _left = 0
    context: int | None = None

    def __init__(
        self, channels: int, key_channels: int, causal: bool, gate: Gate, device: Device, dtype: torch.dtype | None
    ) -> None:
        super().__init__(channels, key_channels, gate, device, dtype)
        self.causal = causal

    def forward(
        self,
        x: Tensor,
        *,
        state: State | None = None,
        key_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """x `[B, T, d]` -> y `[B, T, d]`; with a state (causal only) it goes on from it: (y, the state after).

        key_mask, bool `[B, T]`: False where a source is absent. cu_seqlens, int64 `[N + 1]`: x `[1, total, d]` is N
        sequences one after another.
        """
        options = {"causal": self.causal, "gate": self.gate, "key_mask": key_mask, "cu_seqlens": cu_seqlens}
        if state is None:
            q, k, v = self._project(x)
            rows = None
            if cu_seqlens is None and self.context is not None:
                rows = x.shape[1]
                if rows > self.context:
                    self._refuse(
                        f"x must hold at most context = {self.context} positions, got {rows}: shorten it, or train with"
                        " a longer context"
                    )
            return self.output(self._operator(q, k, v, **self._weights(rows), **options))
        self._check_causal()
        q, k, v = self._project(x)
        y, after = self._operator(q, k, v, **self._weights(), **options, state=state)
        return self.output(y), after

    def step(self, x: Tensor, state: State) -> Tensor:
        """One position, causal only: x `[B, 1, d]` -> y `[B, 1, d]`, with `state` edited in place.

        Without gradient: call it under torch.no_grad(), or the layer with its state.
        """
        self._check_causal()
        q, k, v = self._project(x)
        return self.output(self._operator_step(q, k, v, state=state, **self._step_weights(state), gate=self.gate))

    def initial_state(self, batch: int) -> State:
        """The neutral state of `batch` rows before position 0, on the layer's device; causal only."""
        self._check_causal()
        weight = self.qkv.weight
        k = torch.empty(batch, 0, self.key_channels, device=weight.device, dtype=weight.dtype)
        v = torch.empty(batch, 0, self.channels, device=weight.device, dtype=weight.dtype)
        return functional.initial_state(k, v, self._left)

    def _weights(self, rows: int | None = None) -> dict[str, Tensor]:
        """The arguments of the operator that stand for w: of the first `rows` positions, or of all that there are."""
        return {}

    def _step_weights(self, state: State) -> dict[str, Tensor]:
        """The same for one position, that of `state`."""
        return self._weights()

    def _check_causal(self) -> None:
        if not self.causal:
            self._refuse("a state needs causal=True, got False: run the whole sequence at once")


class AFTSimple(_SequenceLayer):
    """AFT-simple: y = gate(q) sum_t' e^k[t'] v[t'] / sum_t' e^k[t'], and output(y), in O(B T d).

    Parameters: qkv.weight `[3 d, d]` and .bias `[3 d]`, the rows of query, key and value (without a gate `[2 d, d]`,
    key and value); output.weight `[d, d]` and .bias `[d]`; initialised as those of torch.nn.Linear.

    >>> layer = aft.nn.AFTSimple(8)
    >>> layer(torch.randn(2, 16, 8)).shape
    torch.Size([2, 16, 8])
    >>> y, state = layer(torch.randn(2, 16, 8), state=layer.initial_state(2))
    >>> with torch.no_grad():
    ...     y = layer.step(torch.randn(2, 1, 8), state)
    >>> state.position
    tensor([17, 17])
    """

    _options = ("channels", "causal", "gate")
    _operator = staticmethod(functional.simple)
    _operator_step = staticmethod(functional.simple_step)

    def __init__(
        self,
        channels: int,
        *,
        causal: bool = True,
        gate: Gate = "sigmoid",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._check_positive(channels=channels)
        super().__init__(channels, channels, causal, gate, device, dtype)


class _FactorLayer(_SequenceLayer):
    """With w[t, t'] = u[t] . v[t']: factors u and v `[context, factor_channels]`."""

    def __init__(
        self,
        channels: int,
        context: int,
        factor_channels: int,
        causal: bool,
        gate: Gate,
        device: Device,
        dtype: torch.dtype | None,
    ) -> None:
        self._check_positive(channels=channels, context=context, factor_channels=factor_channels)
        super().__init__(channels, channels, causal, gate, device, dtype)
        self.context, self.factor_channels = context, factor_channels
        self.u = torch.nn.Parameter(torch.empty(context, factor_channels, device=device, dtype=dtype))
        self.v = torch.nn.Parameter(torch.empty(context, factor_channels, device=device, dtype=dtype))
        self._reset_weights()

    def _reset_weights(self) -> None:
        torch.nn.init.normal_(self.u, std=0.01)
        torch.nn.init.normal_(self.v, std=0.01)


class AFTLocal(_FactorLayer):
    """AFT-local: w[t, t'] = u[t] . v[t'] inside a window and 0 outside it, in O(B T window d).

    The window is t - window < t' <= t, not causal |t - t'| < window; 0 is AFT-simple. Sequences, with what their state
    has seen, hold at most `context` positions. Parameters: those of AFTSimple and u, v `[context, factor_channels]`,
    initialised N(0, 0.01^2), which are there with window = 0 too.

    >>> layer = aft.nn.AFTLocal(8, 64, window=4)
    >>> layer(torch.randn(2, 16, 8)).shape
    torch.Size([2, 16, 8])
    """

    _options = ("channels", "context", "window", "factor_channels", "causal", "gate")
    _operator = staticmethod(functional.local)
    _operator_step = staticmethod(functional.local_step)

    def __init__(
        self,
        channels: int,
        context: int,
        *,
        window: int = 32,
        factor_channels: int = 64,
        causal: bool = True,
        gate: Gate = "sigmoid",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if window < 0:
            self._refuse(f"window must be at least 0, got {window}: 0 is AFT-simple")
        super().__init__(channels, context, factor_channels, causal, gate, device, dtype)
        self.window = window
        self._left = max(window - 1, 0)

    def _weights(self, rows: int | None = None) -> dict[str, Tensor]:
        u, v = (_wide(t if rows is None else t.narrow(0, 0, rows)) for t in (self.u, self.v))
        if self.window == 0:
            return {"bias": u.new_empty(u.shape[0], 0)}
        return {"bias": functional.local_bias(u, v, self._left, 0 if self.causal else self._left)}

    def _step_weights(self, state: State) -> dict[str, Tensor]:
        # The rows of the table that the step reads, O(B window): all rows would cost more than the step itself. The
        # others hold anything.
        if self.window == 0 or state.position.shape[0] >= self.u.shape[0]:
            return self._weights()
        rows = state.position.clamp(0, self.u.shape[0] - 1)  # past the table: the operator says so
        sources = (rows.unsqueeze(1) + torch.arange(-self._left, 1, device=rows.device)).clamp(min=0)
        weights = (_wide(self.u[rows]).unsqueeze(1) * _wide(self.v[sources])).sum(2)
        return {"bias": weights.new_empty(self.u.shape[0], self.window).index_copy_(0, rows, weights)}


class AFTFull(_FactorLayer):
    """AFT-full: w[t, t'] = u[t] . v[t'] for every pair, in O(B T^2 d).

    Sequences, with what their state has seen, hold at most `context` positions. Parameters: those of AFTSimple and u, v
    `[context, factor_channels]`, initialised N(0, 0.01^2). Its state holds every key and value; with one there are no
    cu_seqlens.

    >>> layer = aft.nn.AFTFull(8, 64)
    >>> layer(torch.randn(2, 16, 8)).shape
    torch.Size([2, 16, 8])
    """

    _options = ("channels", "context", "factor_channels", "causal", "gate")
    _operator = staticmethod(functional.full)
    _operator_step = staticmethod(functional.full_step)

    def __init__(
        self,
        channels: int,
        context: int,
        *,
        factor_channels: int = 64,
        causal: bool = True,
        gate: Gate = "sigmoid",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, context, factor_channels, causal, gate, device, dtype)
        self._left = context

    def _weights(self, rows: int | None = None) -> dict[str, Tensor]:
        # Without a gate and a causal order the operator takes its targets from the rows of u.
        return {"u": _wide(self.u if rows is None else self.u.narrow(0, 0, rows)), "w": _wide(self.v)}


def _normalised(weight: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """gamma (weight - mean) / sqrt(var + 1e-5) + beta for each head, var biased: weight `[H, ...]`, others `[H]`."""
    flat = _wide(weight).flatten(1)
    variance = flat.var(dim=1, correction=0, keepdim=True)
    scaled = _wide(gamma).unsqueeze(1) * (flat - flat.mean(dim=1, keepdim=True)) * (variance + 1e-5).rsqrt()
    return (scaled + _wide(beta).unsqueeze(1)).view(weight.shape)


class AFTConv1d(_SequenceLayer):
    """AFT-conv, 1-D: w_h[t, t'] is one kernel for all positions, 0 outside it, in O(B T kernel d); any T.

    The kernel is normalised and scaled for each head, w = gamma (weight - mean) / sqrt(var + 1e-5) + beta over the
    `kernel` weights of the head (section 3.2 of the paper). Weight j stands for t' = t - kernel + 1 + j; not causal,
    kernel is odd and centred on t. `heads` divides channels; `key_per_head`: one key channel a head, as in the paper,
    else one a channel. Parameters: those of AFTSimple (qkv of 2 d + heads rows with one key a head), weight
    `[heads, kernel]` ~ N(0, 1), gamma and beta `[heads]`, 0: it starts as AFT-simple.

    >>> layer = aft.nn.AFTConv1d(8, heads=4, kernel=5)
    >>> layer(torch.randn(2, 16, 8)).shape
    torch.Size([2, 16, 8])
    """

    _options = ("channels", "heads", "kernel_size", "key_per_head", "causal", "gate")
    _operator = staticmethod(functional.conv1d)
    _operator_step = staticmethod(functional.conv1d_step)

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        kernel: int = 32,
        key_per_head: bool = True,
        causal: bool = True,
        gate: Gate = "sigmoid",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._check_heads(heads, channels)
        self._check_positive(kernel=kernel)
        if not causal and kernel % 2 == 0:
            self._refuse(f"kernel must be odd if causal is False, got {kernel}: a centred kernel has a middle")
        super().__init__(channels, heads if key_per_head else channels, causal, gate, device, dtype)
        self.heads, self.kernel_size, self.key_per_head = heads, kernel, key_per_head
        self._left = kernel - 1
        self.weight = torch.nn.Parameter(torch.empty(heads, kernel, device=device, dtype=dtype))
        self.gamma = torch.nn.Parameter(torch.empty(heads, device=device, dtype=dtype))
        self.beta = torch.nn.Parameter(torch.empty(heads, device=device, dtype=dtype))
        self._reset_weights()

    def kernel(self) -> Tensor:
        """The plain kernel w `[heads, kernel]` that the operator sees; of a layer in 16 bits it is float32."""
        return _normalised(self.weight, self.gamma, self.beta)

    def _weights(self, rows: int | None = None) -> dict[str, Tensor]:
        return {"kernel": self.kernel()}

    def _reset_weights(self) -> None:
        torch.nn.init.normal_(self.weight)
        torch.nn.init.zeros_(self.gamma)
        torch.nn.init.zeros_(self.beta)


class AFTConv2d(_Layer):
    """AFT-conv, 2-D, over images: w_h[t, t'] is one kernel over the grid, 0 outside it, in O(B T kernel^2 d).

    Positions are a grid read row by row, T = height * width, and every one sees all others. The kernel is normalised
    and scaled as that of AFTConv1d, over its kernel x kernel weights; kernel is odd. `grid`, `[height, width]`, is that
    of calls that do not say theirs: any other will do too. Two ablations of the paper: `reparameterised=False`, weight
    is w itself, 0 at the start, without gamma and beta; `global_=False`, w is -inf outside the kernel, in O(T^2 d).
    Parameters: those of AFTSimple (qkv of 2 d + heads rows with one key a head), weight `[heads, kernel, kernel]` ~
    N(0, 1), gamma and beta `[heads]`, 0: it starts as AFT-simple.

    >>> layer = aft.nn.AFTConv2d(8, heads=4, kernel=3, grid=[4, 6])
    >>> layer(torch.randn(2, 24, 8)).shape, layer(torch.randn(2, 15, 8), [5, 3]).shape
    (torch.Size([2, 24, 8]), torch.Size([2, 15, 8]))
    """

    _options = ("channels", "heads", "kernel_size", "key_per_head", "gate", "grid", "reparameterised", "global_")
    gamma: torch.nn.Parameter | None
    beta: torch.nn.Parameter | None

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        kernel: int = 11,
        key_per_head: bool = True,
        gate: Gate = "sigmoid",
        grid: Sequence[int] | None = None,
        reparameterised: bool = True,
        global_: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._check_heads(heads, channels)
        self._check_positive(kernel=kernel)
        if kernel % 2 == 0:
            self._refuse(f"kernel must be odd, got {kernel}: a centred kernel has a middle")
        super().__init__(channels, heads if key_per_head else channels, gate, device, dtype)
        self.heads, self.kernel_size, self.key_per_head = heads, kernel, key_per_head
        self.grid = None if grid is None else list(grid)
        self.reparameterised, self.global_ = reparameterised, global_
        self.weight = torch.nn.Parameter(torch.empty(heads, kernel, kernel, device=device, dtype=dtype))
        for name in ("gamma", "beta"):
            scale = torch.nn.Parameter(torch.empty(heads, device=device, dtype=dtype)) if reparameterised else None
            self.register_parameter(name, scale)
        self._reset_weights()

    def forward(self, x: Tensor, grid: Sequence[int] | None = None, *, key_mask: Tensor | None = None) -> Tensor:
        """x `[B, T, d]` -> y `[B, T, d]`, T = height * width positions row by row of `grid` `[height, width]`.

        key_mask, bool `[B, T]`: False where a source is absent.
        """
        grid = self.grid if grid is None else grid
        if grid is None:
            self._refuse("grid must be [height, width], got None: pass it to the call, or to the constructor for all")
        q, k, v = self._project(x)
        w = self.kernel()
        if self.global_:
            return self.output(functional.conv2d(q, k, v, w, grid, gate=self.gate, key_mask=key_mask))
        inside = functional.conv2d_weights(torch.ones_like(w), grid) > 0
        bias = functional.conv2d_weights(w, grid).masked_fill(~inside, float("-inf"))
        y = functional.full(q, k, v, bias=bias, causal=False, gate=self.gate, heads=self.heads, key_mask=key_mask)
        return self.output(y)

    def kernel(self) -> Tensor:
        """The plain kernel w `[heads, kernel, kernel]` that the operator sees; of a layer in 16 bits it is float32."""
        if self.gamma is None or self.beta is None:
            return _wide(self.weight)
        return _normalised(self.weight, self.gamma, self.beta)

    def _reset_weights(self) -> None:
        if self.gamma is None or self.beta is None:
            torch.nn.init.zeros_(self.weight)
        else:
            torch.nn.init.normal_(self.weight)
            torch.nn.init.zeros_(self.gamma)
            torch.nn.init.zeros_(self.beta)
