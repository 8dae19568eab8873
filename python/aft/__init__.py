"""Attention-free transformers for PyTorch: operators (`aft.local`), layers (`aft.nn`), models (`aft.models`)."""

import importlib

from ._library import __version__, cmake_prefix_path  # first: it says what is wrong with torch or the library

# isort: split
from . import nn
from ._info import Info, info
from .functional import (
    conv1d,
    conv1d_step,
    conv2d,
    conv2d_weights,
    full,
    full_step,
    initial_state,
    local,
    local_bias,
    local_step,
    local_weights,
    reference,
    simple,
    simple_step,
)
from .state import State

__all__ = [
    "Info",
    "State",
    "__version__",
    "cmake_prefix_path",
    "conv1d",
    "conv1d_step",
    "conv2d",
    "conv2d_weights",
    "full",
    "full_step",
    "info",
    "initial_state",
    "local",
    "local_bias",
    "local_step",
    "local_weights",
    "nn",
    "reference",
    "simple",
    "simple_step",
]


def __getattr__(name: str) -> object:
    # The models on first use: `import aft` stays cheap.
    if name == "models":
        return importlib.import_module(".models", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
