"""ByteLM and PixelLM: they predict the next byte of a text, the next value of an image."""

import contextlib
import dataclasses

import torch

from .blocks import Block, Model
from .config import ModelConfig
from .sampling import Sampler, nth_seed, uniform


@dataclasses.dataclass
class ModelState:
    """What a language model remembers: positions seen, and of each layer its aft.State or keys and values."""

    position: int
    layers: list

    def detach(self) -> "ModelState":
        """The same values, cut off the graph: what truncated back-propagation through time carries on."""
        return ModelState(self.position, [layer.detach() for layer in self.layers])


@contextlib.contextmanager
def _evaluating(model):
    """In eval mode, and after that in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class LanguageModel(Model):
    """head(norm(blocks(token + position))), causal."""

    def __init__(self, config: ModelConfig, *, device=None, dtype=None):
        super().__init__(config)
        where = {"device": device, "dtype": dtype}
        d, tokens = config.channels, config.vocabulary + (self.kind == "pixel_lm")
        self.embedding = torch.nn.ModuleDict({"token": torch.nn.Embedding(tokens, d, **where),
                                              "position": torch.nn.Embedding(config.positions, d, **where)})
        self.blocks = torch.nn.ModuleList(Block(config, layer, **where) for layer in range(config.layers))
        self.norm = torch.nn.LayerNorm(d, eps=config.norm_eps, **where)
        self.head = torch.nn.Linear(d, config.vocabulary, bias=False, **where)
        self._initialise()

    def _embed(self, tokens, begin):
        if tokens.dim() != 2 or tokens.dtype not in {torch.int64, torch.int32, torch.uint8}:
            raise ValueError(f"tokens: expected integers [B, T], got {tokens.dtype} {list(tokens.shape)}; a text is "
                             "torch.tensor([list(text)])")
        end, context = begin + tokens.shape[1], self.config.positions
        if end > context:
            raise ValueError(f"tokens: expected positions below the context {context}, got up to {end - 1}; cut the "
                             f"text into windows of at most {context}")
        x = self.embedding["token"](tokens.long()) + self.embedding["position"].weight[begin:end]
        return torch.nn.functional.dropout(x, self.config.dropout, self.training)

    def forward(self, tokens: torch.Tensor, *, state: ModelState | None = None):
        """Logits [B, T, 256] of the token after each of `tokens`, integers [B, T]; with `state`, of initial_state() or
        of the call before, (logits, the state after). ValueError: past the context."""
        if state is None:
            x = self._embed(tokens, 0)
            for block in self.blocks:
                x = block(x)
            return self.head(self.norm(x))
        x, layers = self._embed(tokens, state.position), []
        for block, layer in zip(self.blocks, state.layers, strict=True):
            x, after = block(x, state=layer)
            layers.append(after)
        return self.head(self.norm(x)), ModelState(state.position + tokens.shape[1], layers)

    @torch.no_grad()
    def step(self, tokens: torch.Tensor, state: ModelState) -> torch.Tensor:
        """Logits [B, 1, 256] after one more token, integers [B, 1]; `state` is edited in place. Without gradient."""
        x = self._embed(tokens, state.position)
        for block, layer in zip(self.blocks, state.layers, strict=True):
            x = block.step(x, layer)
        state.position += 1
        return self.head(self.norm(x))

    def initial_state(self, batch: int) -> ModelState:
        """The state before position 0, of `batch` rows."""
        return ModelState(0, [block.mixer.initial_state(batch) for block in self.blocks])

    def _read(self, tokens):
        """Logits [B, 256] after the last of `tokens` from position 0 on, and the state."""
        logits, state = self(tokens, state=self.initial_state(tokens.shape[0]))
        return logits[:, -1], state


class ByteLM(LanguageModel):
    """A language model of bytes, `model` "byte_lm".

    >>> model = aft.models.ByteLM(aft.models.ModelConfig(layers=1, channels=32, mlp_channels=64, context=16))
    >>> model(torch.tensor([list(b"attention")])).shape
    torch.Size([1, 9, 256])
    """

    kind = "byte_lm"

    @torch.no_grad()
    def generate(self, prompt: bytes = b"", length: int = 256, *, temperature: float = 0.8, top_k: int = 0,
                 top_p: float = 1.0, seed: int = 0) -> bytes:
        """`length` bytes after `prompt`, as `aft generate` with these options and their defaults (docs/cli.md).

        A byte takes constant time and memory, but for attention. An empty prompt is the start of a line. When the
        context is full, its last half is read again. The mode of the model is eval meanwhile.
        """
        if not isinstance(prompt, (bytes, bytearray)):
            raise TypeError(f"prompt: expected bytes, got {type(prompt).__name__}; a str has .encode()")
        sampler = Sampler(temperature, top_k, top_p)
        context, device = self.config.context, self.head.weight.device
        with _evaluating(self):
            window, written, state = bytearray(prompt or b"\n"), bytearray(), None
            for n in range(length):
                if len(window) > context:
                    stride = context - context // 2
                    del window[: -(-(len(window) - context) // stride) * stride]
                    state = None
                if state is None:
                    logits, state = self._read(torch.tensor([list(window)], device=device))
                else:
                    logits = self.step(torch.tensor([[window[-1]]], device=device), state)[:, -1]
                byte = int(sampler.draw(logits, [uniform(seed, n)]))
                window.append(byte)
                written.append(byte)
            return bytes(written)


class PixelLM(LanguageModel):
    """A model of images [height, width, colors], value after value, `model` "pixel_lm".

    >>> config = aft.models.ModelConfig("pixel_lm", layers=1, channels=32, mlp_channels=64, height=4, width=6, colors=1)
    >>> model = aft.models.PixelLM(config)
    >>> images = torch.randint(256, (2, 4, 6, 1), dtype=torch.uint8)
    >>> logits = model(model.tokens(images))
    >>> loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), images.flatten().long())
    """

    kind = "pixel_lm"

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """int64 [B, T], what stands before each value of the images, uint8 or int64 [B, height, width, colors]: the
        start token, then all values but the last."""
        c = self.config
        if images.shape[1:] != (c.height, c.width, c.colors) or images.dtype not in {torch.uint8, torch.int64}:
            raise ValueError(f"images: expected uint8 or int64 [B, {c.height}, {c.width}, {c.colors}], got "
                             f"{images.dtype} {list(images.shape)}; bring them to the model's size")
        values = images.flatten(1).long()
        return torch.cat([torch.full_like(values[:, :1], c.vocabulary), values[:, :-1]], 1)

    @torch.no_grad()
    def sample(self, count: int = 1, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
               seed: int = 0) -> torch.Tensor:
        """Images uint8 [count, height, width, colors], as `aft sample` draws them with these options. The mode of the
        model is eval meanwhile."""
        sampler = Sampler(temperature, top_k, top_p)
        c, device = self.config, self.head.weight.device
        seeds = [nth_seed(seed, i) for i in range(count)]
        with _evaluating(self):
            token = torch.full((count, 1), c.vocabulary, device=device)
            state, values = self.initial_state(count), []
            for n in range(c.positions):
                logits = self.step(token, state)[:, -1]
                token = sampler.draw(logits, [uniform(own, n) for own in seeds]).unsqueeze(1).to(device)
                values.append(token)
            return torch.cat(values, 1).to("cpu", torch.uint8).view(count, c.height, c.width, c.colors)
