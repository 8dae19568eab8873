"""What all models are made of: residual blocks of a mixer and an MLP, and reading, writing and initial values."""

import dataclasses
import math
import os

import torch
from torch.nn import functional as F

from .. import nn
from .config import ModelConfig
from .file import check_tensors, find_model, read_model, write_model


@dataclasses.dataclass
class KeysAndValues:
    """The state of attention: keys and values [B, heads, positions so far, d / heads]."""

    key: torch.Tensor
    value: torch.Tensor

    def append(self, key, value) -> "KeysAndValues":
        return KeysAndValues(torch.cat([self.key, key], 2), torch.cat([self.value, value], 2))

    def detach(self) -> "KeysAndValues":
        return KeysAndValues(self.key.detach(), self.value.detach())


class Attention(torch.nn.Module):
    """Softmax attention, with the interface of the layers of aft.nn; its state grows with the position."""

    def __init__(self, channels, heads, causal, device=None, dtype=None):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = torch.nn.Linear(channels, 3 * channels, device=device, dtype=dtype)
        self.output = torch.nn.Linear(channels, channels, device=device, dtype=dtype)

    def _project(self, x):
        """q, k, v [B, heads, T, d / heads]"""
        return (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2))

    def _attend(self, q, k, v, **order):
        return self.output(F.scaled_dot_product_attention(q, k, v, **order).transpose(1, 2).flatten(2))

    def forward(self, x, *, state=None):
        q, k, v = self._project(x)
        if state is None:
            return self._attend(q, k, v, is_causal=self.causal)
        before, time = state.key.shape[2], x.shape[1]
        state = state.append(k, v)
        # Row t sees what was there before and its own chunk to t.
        mask = torch.ones(time, before + time, dtype=torch.bool, device=x.device).tril(before)
        return self._attend(q, state.key, state.value, attn_mask=mask), state

    @torch.no_grad()
    def step(self, x, state):
        q, k, v = self._project(x)
        longer = state.append(k, v)
        state.key, state.value = longer.key, longer.value
        return self._attend(q, state.key, state.value)

    def initial_state(self, batch):
        width = self.qkv.in_features // self.heads
        empty = self.qkv.weight.new_empty(batch, self.heads, 0, width)
        return KeysAndValues(empty, empty)

    def extra_repr(self):
        return f"heads={self.heads}, causal={self.causal}"


def make_mixer(config: ModelConfig, device=None, dtype=None) -> torch.nn.Module:
    """The layer that the config names."""
    mixer, d, causal = config.mixer, config.channels, config.causal
    where = {"device": device, "dtype": dtype}
    if mixer.name == "attention":
        return Attention(d, mixer.heads, causal, **where)
    where["gate"] = mixer.gate
    if mixer.name == "aft_simple":
        return nn.AFTSimple(d, causal=causal, **where)
    if mixer.name == "aft_local":
        return nn.AFTLocal(d, config.positions, window=mixer.window, factor_channels=mixer.factor_channels,
                           causal=causal, **where)
    if mixer.name == "aft_full":
        return nn.AFTFull(d, config.positions, factor_channels=mixer.factor_channels, causal=causal, **where)
    if mixer.name == "aft_conv1d":
        return nn.AFTConv1d(d, heads=mixer.heads, kernel=mixer.window, causal=causal, **where)
    return nn.AFTConv2d(d, heads=mixer.heads, kernel=mixer.window, grid=config.grid, global_=mixer.global_,
                        reparameterised=mixer.reparameterised, **where)


class MLP(torch.nn.Module):
    """down(gelu(up(x)))"""

    def __init__(self, channels, hidden, device=None, dtype=None):
        super().__init__()
        self.up = torch.nn.Linear(channels, hidden, device=device, dtype=dtype)
        self.down = torch.nn.Linear(hidden, channels, device=device, dtype=dtype)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Block(torch.nn.Module):
    """x += mixer(norm(x)); x += mlp(norm(x)), each branch with dropout, LayerScale and stochastic depth."""

    def __init__(self, config: ModelConfig, layer: int, device=None, dtype=None):
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.dropout = config.dropout
        # The branches of layer 0 always stay; those of the last are left out as often as the config says.
        self.left_out = config.stochastic_depth * layer / max(config.layers - 1, 1)
        self.mixer_norm = torch.nn.LayerNorm(config.channels, eps=config.norm_eps, **where)
        self.mixer = make_mixer(config, **where)
        self.mlp_norm = torch.nn.LayerNorm(config.channels, eps=config.norm_eps, **where)
        self.mlp = MLP(config.channels, config.mlp_channels, **where)
        scaled = config.layer_scale > 0
        for name in ("mixer_scale", "mlp_scale"):
            start = torch.full((config.channels,), config.layer_scale, **where) if scaled else None
            self.register_parameter(name, torch.nn.Parameter(start) if scaled else None)

    def _branch(self, y, scale):
        y = F.dropout(y, self.dropout, self.training)
        if scale is not None:
            y = y * scale
        if self.training and self.left_out > 0:
            stays = 1 - self.left_out
            y = y * y.new_empty(y.shape[0], 1, 1).bernoulli_(stays).div_(stays)
        return y

    def _finish(self, x, mixed):
        x = x + self._branch(mixed, self.mixer_scale)
        return x + self._branch(self.mlp(self.mlp_norm(x)), self.mlp_scale)

    def forward(self, x, *, state=None):
        if state is None:
            return self._finish(x, self.mixer(self.mixer_norm(x)))
        mixed, state = self.mixer(self.mixer_norm(x), state=state)
        return self._finish(x, mixed), state

    @torch.no_grad()
    def step(self, x, state):
        return self._finish(x, self.mixer.step(self.mixer_norm(x), state))


class Model(torch.nn.Module):
    """What ByteLM, PixelLM and Classifier have in common."""

    kind: str  # `model` of the configs that it takes

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.model != self.kind:
            raise ValueError(f'config: expected one of model="{self.kind}" for {type(self).__name__}, got one of '
                             f'"{config.model}"; change ModelConfig.model, or take the class of that model')
        self.config = config

    @torch.no_grad()
    def _initialise(self) -> None:
        """The initial values of aft-train, where they are not those that the layers of aft.nn gave themselves."""
        for module in self.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                module.weight.normal_(0, 0.02)
            if isinstance(module, torch.nn.Linear) and module.bias is not None:
                module.bias.zero_()
        for block in self.blocks:
            for end in (block.mixer.output, block.mlp.down):
                end.weight.normal_(0, 0.02 / math.sqrt(2 * self.config.layers))

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Model":
        """The model in a run folder of aft-train, a model file or a checkpoint, in f32 on the CPU and in eval mode.

        Raises ValueError where the file is damaged, of a newer version, of another model, or where its tensors do not
        fit its config: what is missing, extra and of another shape in one message.
        """
        path = find_model(path)
        config, tensors = read_model(path)
        if config.model != cls.kind:
            raise ValueError(f"{path}: expected a {cls.kind} for {cls.__name__}, got a {config.model}; take the class "
                             "of that model")
        return cls._of(path, config, tensors)

    @classmethod
    def _of(cls, path, config, tensors):
        with torch.device("meta"):
            model = cls(config)
        check_tensors(path, tensors, model.state_dict())
        model.load_state_dict(tensors, assign=True)
        return model.eval()

    def save(self, path: str | os.PathLike) -> None:
        """Writes a model file, in f32, that `aft`, aft-train and from_file read. A file that is there is replaced at
        once by the complete new one. Raises IsADirectoryError for a folder."""
        write_model(path, self.config, self.state_dict())
