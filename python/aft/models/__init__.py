"""The models of aft-train as torch.nn.Module: they read its runs and model files, and `aft` reads what they save.

Their state_dict is the file's tensors, name by name (docs/model-file.md).
"""

from .classifier import Classifier
from .config import MixerConfig, ModelConfig
from .language_model import ByteLM, ModelState, PixelLM

__all__ = ["ByteLM", "Classifier", "MixerConfig", "ModelConfig", "ModelState", "PixelLM"]
