"""Model files: a safetensors file whose metadata hold the config (docs/model-file.md)."""

import pathlib

import safetensors
import safetensors.torch
import torch

from .. import __version__
from .._files import write_whole
from .config import ModelConfig

_MOST_NAMED = 8  # a foreign file may hold thousands of tensors


def find_model(path) -> pathlib.Path:
    """The file that is the model: `path`, or that of a run folder."""
    path = pathlib.Path(path)
    if not path.is_dir():
        return path
    for name in ("model.safetensors", "checkpoint.safetensors"):
        if (path / name).exists():
            return path / name
    raise FileNotFoundError(f"{path}: expected a model file or a run folder, found no model.safetensors in this folder")


def read_model(path: pathlib.Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """The config and the tensors of a model file or a checkpoint, not yet compared with each other.

    Of a checkpoint they are the averages of the weights where the run keeps them, else the weights.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config, is_checkpoint = _read_metadata(path, file.metadata() or {})
            names = list(file.keys())
            prefix = ""
            if is_checkpoint:
                prefix = "average." if any(name.startswith("average.") for name in names) else "weights."
            names = [name for name in names if name.startswith(prefix)]
            if config.layers > len(names):
                raise ValueError(f"{path}: expected a model of {config.layers} layers, but the file holds only "
                                 f"{len(names)} tensors")
            # Cloned, not mapped: what becomes of the file later does not reach the model.
            return config, {name[len(prefix):]: file.get_tensor(name).clone() for name in names}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got one that is damaged or none: {error}") from None


def _read_metadata(path, metadata):
    def entry(key):
        if key not in metadata:
            raise ValueError(f'{path}: a safetensors file, but not a model of aft (no "{key}" in its metadata)')
        return metadata[key]

    if entry("format") not in ("aft", "aft-checkpoint"):
        raise ValueError(f"{path}: a safetensors file, but not a model of aft")
    version = entry("format_version")
    if version not in ("1", "2"):
        raise ValueError(f'{path}: its format version is "{version[:40]}", this aft reads 1 and 2; use a newer version '
                         "of aft")
    text = entry("config")
    try:
        return ModelConfig.from_json(text), metadata["format"] == "aft-checkpoint"
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def check_tensors(path, tensors, expected) -> None:
    """Whether the tensors of a file are those that the model has: all that is wrong, in one ValueError."""
    problems = []
    for name, parameter in sorted(expected.items()):
        if name not in tensors:
            problems.append(f"{name} is missing")
        elif tensors[name].dtype != torch.float32:
            problems.append(f"{name} has type {tensors[name].dtype}, expected torch.float32")
        elif tensors[name].shape != parameter.shape:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, expected {list(parameter.shape)}")
    problems += [f"{name} does not belong to the model" for name in sorted(tensors) if name not in expected]
    if problems:
        more = f"; and {len(problems) - _MOST_NAMED} more" if len(problems) > _MOST_NAMED else ""
        raise ValueError(f"{path}: its tensors do not fit the model: {'; '.join(problems[:_MOST_NAMED])}{more}")


def write_model(path, config, tensors) -> None:
    """Writes a model file that `aft` reads: whoever reads `path` sees the old file or the whole new one."""
    path = pathlib.Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path: expected the name of a file, got the folder {path}; add model.safetensors")
    metadata = {"format": "aft", "format_version": "2", "library_version": __version__, "config": config.to_json()}
    values = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
    write_whole(path, safetensors.torch.save(values, metadata))
