"""Draws tokens from logits by the numbers that `aft generate` and `aft sample` draw by."""

import dataclasses
import math

import torch

_BITS = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    """The first number of SplitMix64 (Steele, Lea, Flood 2014) seeded by x."""
    x = (x + _STEP) & _BITS
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _BITS
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _BITS
    return x ^ (x >> 31)


def uniform(seed: int, n: int) -> float:
    """The n-th number of the stream `seed`, uniform in [0, 1)."""
    return (_mix(_mix(seed) + n * _STEP) >> 11) * 2.0**-53


def nth_seed(seed: int, i: int) -> int:
    """The seed of the i-th of the images that go by one seed."""
    return _mix(_mix(seed) + i)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How tokens are drawn: from the top_k most likely (0: from all), of these from the fewest whose probabilities
    reach top_p; temperature divides the logits, and 0 always takes the most likely. ValueError: out of range."""

    temperature: float
    top_k: int
    top_p: float

    def __post_init__(self):
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature: expected a number >= 0, got {self.temperature}; 0 is the most likely token")
        if self.top_k < 0:
            raise ValueError(f"top_k: expected an integer >= 0, got {self.top_k}; 0 draws from all tokens")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a number in (0, 1], got {self.top_p}; 1 draws from all tokens")

    def draw(self, logits: torch.Tensor, numbers: list[float]) -> torch.Tensor:
        """int64 [B]: a token for each row of logits [B, V], by its number in [0, 1)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        logits, order = logits.double().cpu().sort(dim=-1, descending=True, stable=True)
        weights = ((logits - logits[:, :1]) / self.temperature).exp()
        if self.top_k > 0:
            weights[:, self.top_k:] = 0
        if self.top_p < 1:
            before = weights.cumsum(-1) - weights
            weights[before >= self.top_p * weights.sum(-1, keepdim=True)] = 0
        sums = weights.cumsum(-1)
        wanted = torch.tensor(numbers, dtype=torch.float64).unsqueeze(-1) * sums[:, -1:]
        place = torch.searchsorted(sums, wanted, right=True)
        place[place == sums.shape[-1]] = 0  # rounding left a crumb
        return order.gather(-1, place).squeeze(-1)
