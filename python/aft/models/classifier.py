"""Classifier: what an image shows."""

import dataclasses
import os

import torch
from torch.nn import functional as F

from .blocks import Block, Model
from .config import ModelConfig


class Embedding(torch.nn.Module):
    """Squares of an image [B, T, patch^2 colors] to positions [B, T, d], the class token's first."""

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__()
        where = {"device": device, "dtype": dtype}
        self.patch = torch.nn.Linear(config.patch**2 * config.colors, config.channels, **where)
        # Its name in the file, "class", is a word of Python.
        first = torch.nn.Parameter(torch.empty(config.channels, **where)) if config.class_token else None
        self.register_parameter("class", first)
        self.position = None
        if config.position_embedding:
            self.position = torch.nn.Embedding(config.positions, config.channels, **where)

    def forward(self, squares):
        x = self.patch(squares)
        first = getattr(self, "class")
        if first is not None:
            x = torch.cat([first.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
        return x if self.position is None else x + self.position.weight


class Classifier(Model):
    """A classifier of images, `model` "classifier": AFT or attention over squares of patch x patch pixels.

    >>> config = aft.models.ModelConfig("classifier", layers=1, channels=32, mlp_channels=64, classes=3)
    >>> aft.models.Classifier(config)(torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)).shape
    torch.Size([2, 3])
    """

    kind = "classifier"

    def __init__(self, config: ModelConfig, *, device=None, dtype=None):
        super().__init__(config)
        where = {"device": device, "dtype": dtype}
        self.embedding = Embedding(config, **where)
        self.blocks = torch.nn.ModuleList(Block(config, layer, **where) for layer in range(config.layers))
        self.norm = torch.nn.LayerNorm(config.channels, eps=config.norm_eps, **where)
        self.head = torch.nn.Linear(config.channels, config.classes, **where) if config.classes > 0 else None
        self._initialise()

    def _initialise(self):
        super()._initialise()
        if self.config.class_token:
            with torch.no_grad():
                getattr(self.embedding, "class").normal_(0, 0.02)

    @classmethod
    def from_file(cls, path: str | os.PathLike, *, size: int | None = None) -> "Classifier":
        """The model in a run folder of aft-train, a model file or a checkpoint, as ByteLM.from_file reads it.

        `size`, pixels on a side, a multiple of the patch: the same classifier for images of size x size, its tables of
        positions interpolated as `aft classify --size` does.
        """
        model = super().from_file(path)
        if size is None:
            return model
        config = dataclasses.replace(model.config, height=size, width=size)
        tensors = {name: _fit(name, tensor, model.config, config) for name, tensor in model.state_dict().items()}
        return cls._of(path, config, tensors)

    def _normal(self, images):
        """(v - mean) / deviation of values v in [0, 1]"""
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        c = self.config
        if len(c.mean) == len(c.deviation) == 1:
            return (values - c.mean[0]) / c.deviation[0]
        mean, deviation = (list(numbers) * (c.colors // len(numbers)) for numbers in (c.mean, c.deviation))
        return torch.stack([(values[..., i] - mean[i]) / deviation[i] for i in range(c.colors)], -1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes], or features [B, d] where classes is 0, of images [B, height, width, colors]: uint8, or
        floats in [0, 1]. ValueError: another size."""
        c, (rows, columns) = self.config, self.config.grid
        numbers = images.dtype == torch.uint8 or images.is_floating_point()
        if images.shape[1:] != (c.height, c.width, c.colors) or not numbers:
            raise ValueError(f"images: expected uint8, or floats in [0, 1], [B, {c.height}, {c.width}, {c.colors}], "
                             f"got {images.dtype} {list(images.shape)}; bring them to this size, or load with size=")
        values = self._normal(images).to(self.norm.weight.dtype)
        squares = values.unflatten(1, (rows, c.patch)).unflatten(3, (columns, c.patch)).transpose(2, 3)
        x = self.embedding(squares.flatten(3).flatten(1, 2))
        x = F.dropout(x, c.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        x = x[:, 0] if c.class_token else x.mean(1)
        return x if self.head is None else self.head(x)


def _fit(name, tensor, old: ModelConfig, new: ModelConfig):
    """A table whose rows are places of the old grid, of those of the new one; other tensors as they are."""
    if not (name == "embedding.position.weight" or name.endswith((".mixer.u", ".mixer.v"))) or old.grid == new.grid:
        return tensor
    first, places = tensor.tensor_split([int(old.class_token)])
    image = places.T.unflatten(1, old.grid).unsqueeze(0)  # [1, d, rows, columns]
    fitted = F.interpolate(image, size=new.grid, mode="bicubic", antialias=True)[0].flatten(1).T
    return torch.cat([first, fitted])
