"""State: what a causal layer remembers of the positions that it has seen."""

import json
import os
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors

from ._files import write_whole

FORMAT, FORMAT_VERSION = "aft-state", "1"


class State(NamedTuple):
    """What a causal layer remembers of the positions that it has seen, one state for each row of the batch.

    Six tensors, with K key channels (d, or H with one key per head) and `left` positions in the ring: J - 1 for local
    and conv1d with J columns, 0 for simple, the longest sequence for full.

    | field | dtype, shape | |
    | --- | --- | --- |
    | `position` | int64 `[B]` | positions seen; rows may stand at different places |
    | `max` | `[B, K]` | exponent that den and num are scaled by, an integer kept as a float |
    | `den` | `[B, K]` | sum of e^k 2^-max over the sources before the ring |
    | `num` | `[B, d]` | sum of e^k v 2^-max over the same |
    | `ring_key` | `[B, left, K]` | raw keys of the last `left` positions, source t' in slot t' mod left |
    | `ring_value` | `[B, left, d]` | their values |

    All but position are float64 where q, k and v are, else float32. Gradients flow through den, num and the ring;
    position and max are constants. `aft.initial_state` or a layer's `initial_state` makes the first one; no state is
    changed but by a step.

    >>> q, k, v = torch.randn(3, 2, 16, 8)
    >>> y, state = aft.simple(q, k, v, state=aft.initial_state(k, v))
    >>> state.position
    tensor([16, 16])
    """

    position: torch.Tensor
    max: torch.Tensor
    den: torch.Tensor
    num: torch.Tensor
    ring_key: torch.Tensor
    ring_value: torch.Tensor

    def detach(self) -> "State":
        """The same values, cut off the graph: what truncated back-propagation through time carries on."""
        return State(*(t.detach() for t in self))

    def clone(self) -> "State":
        """A copy with memory of its own, which steps of the other do not change. Gradients flow through it."""
        return State(*(t.clone() for t in self))

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> "State":
        """On another device, in another dtype, or both: `to(device)`, `to(dtype)`, `to(device, dtype)`.

        dtype is float32 or float64, what the operators take; position stays int64. As of `Tensor.to`, what is there
        already is not copied. Raises ValueError for another dtype.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if dtype not in {None, torch.float32, torch.float64}:
            raise ValueError(
                f"aft.State.to: dtype must be torch.float32 or torch.float64, got {dtype}: the state of 16-bit tensors"
                " is float32"
            )
        position = self.position.to(device=device, non_blocking=non_blocking)
        return State(position, *(t.to(device=device, dtype=dtype, non_blocking=non_blocking) for t in self[1:]))

    def reorder(self, index: torch.Tensor) -> "State":
        """The rows `index`, int64 `[N]` on the state's device: row n is row index[n] of this state, copied.

        A beam search keeps with it the hypotheses that go on, in their new order, however often each is taken.

        >>> state = aft.initial_state(torch.zeros(3, 0, 8), torch.zeros(3, 0, 8))
        >>> state.reorder(torch.tensor([2, 0, 0, 1])).position.shape
        torch.Size([4])
        """
        return State(*(t.index_select(0, index) for t in self))

    def repeat(self, n: int) -> "State":
        """Each row n times, one after another: row b becomes rows b n to b n + n - 1, as a beam search begins."""
        return State(*(t.repeat_interleave(n, dim=0) for t in self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file of the six tensors under their names.

        Its metadata are `format` "aft-state" and `format_version` "1". It is written to `path` + ".tmp", synced and
        renamed: a reader sees the old file or the whole new one.
        """
        tensors = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in self._asdict().items()}
        metadata = {"format": FORMAT, "format_version": FORMAT_VERSION}
        write_whole(path, safetensors.save(tensors, metadata))

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "State":
        """The state that `save` wrote, on the CPU.

        Raises ValueError where the file is another or broken, OSError where it cannot be read.

        >>> import tempfile
        >>> state = aft.initial_state(torch.zeros(3, 0, 8), torch.zeros(3, 0, 8), left=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state.save(f"{folder}/state.safetensors")
        ...     again = aft.State.load(f"{folder}/state.safetensors")
        >>> all(torch.equal(a, b) for a, b in zip(state, again))
        True
        """
        with open(path, "rb") as file:
            data = file.read()
        name = os.fspath(path)
        try:
            tensors = safetensors.load(data)
            # The header, which `load` has found sound.
            metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{name}: a safetensors file was expected, got one that is broken ({error})") from error
        found = metadata.get("format")
        if found != FORMAT:
            got = f'"{found}"' if found else "none"
            raise ValueError(f'{name}: a file of format "{FORMAT}" was expected, got {got}: State.save writes them')
        if metadata.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{name}: format_version {FORMAT_VERSION} was expected, got {metadata.get('format_version')}: read it"
                " with the version of aft that wrote it, or a later one"
            )
        if set(tensors) != set(State._fields):
            raise ValueError(
                f"{name}: the tensors {', '.join(State._fields)} were expected, got {', '.join(sorted(tensors))}:"
                " write it again with State.save"
            )
        state = State(**tensors)
        state._check(name)
        return state

    def _check(self, name: str) -> None:
        """That the tensors of a file go together; an operator compares them with its q, k and v."""

        def size(tensor: torch.Tensor, dim: int) -> int:
            return tensor.shape[dim] if tensor.dim() > dim else 0

        batch, left = size(self.position, 0), size(self.ring_key, 1)
        keys, channels = size(self.max, 1), size(self.num, 1)
        sums = torch.float64 if self.max.dtype == torch.float64 else torch.float32
        expected = (
            (torch.int64, [batch]),
            (sums, [batch, keys]),
            (sums, [batch, keys]),
            (sums, [batch, channels]),
            (sums, [batch, left, keys]),
            (sums, [batch, left, channels]),
        )
        for field, tensor, (dtype, shape) in zip(State._fields, self, expected, strict=True):
            if tensor.dtype != dtype or list(tensor.shape) != shape:
                raise ValueError(
                    f"{name}: {field} was expected as {dtype} of shape {shape}, got {tensor.dtype} of shape"
                    f" {list(tensor.shape)}: write it again with State.save"
                )
