"""ModelConfig: everything that decides the shape of a model, as a model file holds it (docs/model-file.md)."""

import dataclasses
import json
import math

# Far above any model, far below where a product of two of them overflows int64.
_LARGEST = 1 << 30

_IMAGE = ("height", "width", "colors")
_COMMON = ("layers", "channels", "mlp_channels", "dropout")
_OF_MODEL = {
    "byte_lm": ("vocabulary", "context"),
    "pixel_lm": ("vocabulary", *_IMAGE),
    "classifier": (*_IMAGE, "patch", "classes", "class_token", "position_embedding", "layer_scale", "norm_eps",
                   "stochastic_depth", "mean", "deviation", "resampling", "crop", "class_names"),
}
_OF_MIXER = {
    "aft_simple": ("gate",),
    "aft_local": ("window", "factor_channels", "gate"),
    "aft_conv1d": ("heads", "window", "gate"),
    "aft_conv2d": ("heads", "window", "gate", "global_", "reparameterised"),
    "aft_full": ("factor_channels", "gate"),
    "attention": ("heads",),
}
_COMPARED_WITH = ("linear_attention", "sliding_window", "linformer", "synthesizer", "mlp_mixer")
_OF_VERSION_1 = ("heads", "window", "factor_channels")  # options of all mixers stood beside the rest


def _fail(name, expected, got):
    shown = f'"{got}"' if isinstance(got, str) else got
    raise ValueError(f"model config: {name}: expected {expected}, got {shown}")


def _any_of(words):
    return "one of " + ", ".join(f'"{word}"' for word in words)


def _check_one_of(name, value, words):
    if not isinstance(value, str) or value not in words:
        _fail(name, _any_of(words), value)


def _integer(default, smallest=1):
    def check(name, value):
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= _LARGEST:
            _fail(name, f"an integer from {smallest} to {_LARGEST}", value)
        return value

    return dataclasses.field(default=default, metadata={"check": check})


def _number(default, includes_1=False):
    def check(name, value):
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        if not (number and (0 <= value < 1 or (includes_1 and value == 1))):
            _fail(name, f"a number in [0, 1{']' if includes_1 else ')'}", value)
        return float(value)

    return dataclasses.field(default=default, metadata={"check": check})


def _word(default, words):
    def check(name, value):
        _check_one_of(name, value, words)
        return value

    return dataclasses.field(default=default, metadata={"check": check})


def _boolean(default):
    def check(name, value):
        if not isinstance(value, bool):
            _fail(name, "true or false", value)
        return value

    return dataclasses.field(default=default, metadata={"check": check})


def _several(default, what, of_type):
    def check(name, value):
        if not isinstance(value, (list, tuple)):
            _fail(name, f"a list of {what}", value)
        for element in value:
            if isinstance(element, bool) or not isinstance(element, of_type):
                _fail(name, f"a list of {what}", element)
        return tuple(value)

    return dataclasses.field(default=default, metadata={"check": check})


def _check_fields(config, own, prefix, owner):
    """Every field of its own is in range; the others, which mean nothing to it, are as they were."""
    for field in dataclasses.fields(config):
        if "check" not in field.metadata:
            continue
        name, value = prefix + field.name.rstrip("_"), getattr(config, field.name)
        if field.name in own:
            object.__setattr__(config, field.name, field.metadata["check"](name, value))
        elif value != field.default:
            raise ValueError(f"model config: {name}: {owner} has none, got {value!r}; leave it out")


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """What mixes the positions of a layer; each has only options of its own.

    `name`: aft_simple, aft_local (window, factor_channels), aft_conv1d (heads, window), aft_conv2d (heads, window,
    global_, reparameterised), aft_full (factor_channels) or attention (heads); those of AFT have a gate. Raises
    ValueError, as ModelConfig does, naming the field, what was expected and what came.
    """

    name: str = "aft_local"
    heads: int = _integer(4)
    window: int = _integer(32, smallest=0)
    factor_channels: int = _integer(64)
    gate: str = _word("sigmoid", ("sigmoid", "relu", "none"))
    global_: bool = _boolean(True)  # "global" in the file
    reparameterised: bool = _boolean(True)

    def __post_init__(self):
        if self.name in _COMPARED_WITH:
            raise ValueError(f"model config: mixer.name: expected {_any_of(_OF_MIXER)}, got {self.name}, a mixer to "
                             "compare with; aft-train runs it")
        _check_one_of("mixer.name", self.name, _OF_MIXER)
        _check_fields(self, _OF_MIXER[self.name], "mixer.", self.name)
        if self.window == 0 and self.name != "aft_local":
            _fail("mixer.window", f"an integer from 1 to {_LARGEST}", 0)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of a model. Each model has only fields of its own; docs/model-file.md says what
    they mean. Raises ValueError naming the field, what was expected and what came."""

    model: str = "byte_lm"  # byte_lm, pixel_lm, classifier
    layers: int = _integer(4)
    channels: int = _integer(256)  # d
    mlp_channels: int = _integer(1024)
    dropout: float = _number(0.0)

    vocabulary: int = _integer(256)
    context: int = _integer(256)  # byte_lm: T
    height: int = _integer(32)  # of images: pixel_lm, classifier
    width: int = _integer(32)
    colors: int = _integer(3)

    # classifier
    patch: int = _integer(4)
    classes: int = _integer(10, smallest=0)  # 0: no head, the model gives features
    class_token: bool = _boolean(False)
    position_embedding: bool = _boolean(True)
    layer_scale: float = _number(0.0, includes_1=True)
    norm_eps: float = _number(1e-5)
    stochastic_depth: float = _number(0.0)
    mean: tuple[float, ...] = _several((0.5,), "numbers", (int, float))
    deviation: tuple[float, ...] = _several((0.5,), "numbers", (int, float))
    resampling: str = _word("bicubic", ("nearest", "bilinear", "bicubic"))
    crop: float = _number(1.0, includes_1=True)
    class_names: tuple[str, ...] = _several((), "names", str)

    mixer: MixerConfig = MixerConfig()

    def __post_init__(self):
        _check_one_of("model", self.model, _OF_MODEL)
        if not isinstance(self.mixer, MixerConfig):
            _fail("mixer", "a MixerConfig", self.mixer)
        _check_fields(self, (*_COMMON, *_OF_MODEL[self.model]), "", f"a {self.model}")
        if self.model == "classifier":
            self._check_classifier()
        elif self.vocabulary != 256:
            _fail("vocabulary", "256 (one token a byte)", self.vocabulary)
        if self.model != "byte_lm":
            self._check_image()
        self._check_mixer()

    def _check_image(self):
        for name in ("height", "width"):
            if getattr(self, name) > 4096:
                _fail(name, "at most 4096 pixels", getattr(self, name))
        if self.colors not in (1, 3):
            _fail("colors", "1 or 3", self.colors)

    def _check_classifier(self):
        for name in ("height", "width"):
            if getattr(self, name) % self.patch != 0:
                _fail("patch", f"a divisor of {name} = {getattr(self, name)}", self.patch)
        for name, values in (("mean", self.mean), ("deviation", self.deviation)):
            if len(values) not in (1, self.colors):
                _fail(name, f"one number, or one a colour, which are {self.colors}", len(values))
            for value in values:
                if not (math.isfinite(value) and abs(value) <= 1 and (name == "mean" or value > 0)):
                    _fail(name, "numbers of images whose values are in [0, 1]", value)
        if self.crop < 0.01:
            _fail("crop", "a number from 0.01 to 1", self.crop)
        if self.classes == 1:
            _fail("classes", "0 (features) or at least 2", self.classes)
        if len(self.class_names) not in (0, self.classes):
            _fail("class_names", f"none, or one for each of {self.classes} classes", len(self.class_names))
        if not self.norm_eps > 0:
            _fail("norm_eps", "a number above 0", self.norm_eps)

    def _check_mixer(self):
        mixer = self.mixer
        if self.causal and mixer.name == "aft_conv2d":
            _fail("mixer.name", f"a causal mixer, as a {self.model} predicts the next token", mixer.name)
        if "heads" in _OF_MIXER[mixer.name] and self.channels % mixer.heads != 0:
            _fail("mixer.heads", f"a divisor of channels = {self.channels}", mixer.heads)
        if mixer.name == "aft_conv1d" and not self.causal and mixer.window % 2 == 0:
            _fail("mixer.window", "an odd number where the model is not causal", mixer.window)
        if mixer.name == "aft_conv2d":
            if mixer.window % 2 == 0:
                _fail("mixer.window", "an odd number", mixer.window)
            if self.class_token:
                _fail("mixer.name", "another mixer where class_token is true", mixer.name)

    @property
    def causal(self) -> bool:
        """Whether the model predicts each token from those before it."""
        return self.model != "classifier"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a classifier's positions, the class token's apart."""
        return self.height // self.patch, self.width // self.patch

    @property
    def positions(self) -> int:
        """T, the longest sequence: rows of the tables of positions."""
        if self.model == "byte_lm":
            return self.context
        if self.model == "pixel_lm":
            return self.height * self.width * self.colors
        rows, columns = self.grid
        return rows * columns + int(self.class_token)

    def to_json(self) -> str:
        """The config as a model file has it: the model's own fields, and the mixer's own options."""
        mixer = {"name": self.mixer.name}
        mixer |= {name.rstrip("_"): getattr(self.mixer, name) for name in _OF_MIXER[self.mixer.name]}
        own = (*_COMMON, *_OF_MODEL[self.model])
        return json.dumps({"model": self.model} | {name: getattr(self, name) for name in own} | {"mixer": mixer})

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        """The config in a model file, of version 1 too. ValueError: not JSON, an unknown key, a value out of range."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"model config: expected a JSON object, got text that does not parse: {error}") from None
        if not isinstance(values, dict):
            _fail("the whole", "a JSON object", values)
        model = values.pop("model", cls.model)
        _check_one_of("model", model, _OF_MODEL)
        options = values.pop("mixer", MixerConfig.name)
        if isinstance(options, dict):
            name = options.pop("name", MixerConfig.name)
            options = {"global_" if key == "global" else key: value for key, value in options.items()}
        else:  # version 1: the name, and the options of all mixers beside the rest
            name, options = options, {key: values.pop(key) for key in _OF_VERSION_1 if key in values}
            options = {key: value for key, value in options.items() if key in _OF_MIXER[MixerConfig(name).name]}
        _check_keys(options, _OF_MIXER[MixerConfig(name).name], "mixer.")
        _check_keys(values, (*_COMMON, *_OF_MODEL[model]), "")
        return cls(model=model, mixer=MixerConfig(name, **options), **values)


def _check_keys(values, own, prefix):
    for key in values:
        if key not in own:
            raise ValueError(f'model config: unknown key "{prefix}{key}"; the file may come from a newer aft')
