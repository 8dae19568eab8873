"""aft.models against the programs that write and read its files: aft-train, and `aft`, which shares no code with it."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import aft
import pytest
import safetensors.torch
import torch
from aft.models import ByteLM, Classifier, MixerConfig, ModelConfig, PixelLM
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "train"))
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "image"))
import images as image_data
import pictures
import program

ROOT = pathlib.Path(__file__).parents[2]
TEXT = program.text(1001).encode()
SMALL = {"layers": 2, "channels": 24, "mlp_channels": 40}
CAUSAL = {
    "simple": MixerConfig("aft_simple"),
    "local": MixerConfig("aft_local", window=5, factor_channels=4),
    "local_0": MixerConfig("aft_local", window=0, factor_channels=4),
    "conv1d": MixerConfig("aft_conv1d", heads=4, window=6, gate="relu"),
    "full": MixerConfig("aft_full", factor_channels=3, gate="none"),
    "attention": MixerConfig("attention", heads=2),
}


def run(name, *words, cwd=None):
    """The standard output of `aft` or `aft-train`, and its last line as JSON if it is."""
    path = os.environ.get({"aft": "AFT", "aft-train": "AFT_TRAIN"}[name], str(ROOT / "build/bin" / name))
    if not os.access(path, os.X_OK):
        pytest.skip(f"{path} is not there: build the programs, or set AFT and AFT_TRAIN")
    done = subprocess.run([path, *map(str, words)], cwd=cwd, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def run_json(*words, **options):
    return json.loads(run(*words, **options).splitlines()[-1])


def as_words(options):
    """Keyword arguments as options of a program."""
    return [word for name, value in options.items() for word in ("--" + name.replace("_", "-"), value)]


def far_from_the_start(model, spread=0.3):
    """With weights among which every one matters."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=spread)
    return model.eval()


def byte_model(mixer, **fields):
    return far_from_the_start(ByteLM(ModelConfig(**SMALL | {"context": 37, "mixer": mixer} | fields)))


def bits_per_byte(model, text=TEXT):
    """As `aft eval`: disjoint windows of the context, every byte after the first predicted once."""
    nats, count = 0.0, 0
    with torch.no_grad():
        for begin in range(0, len(text) - 1, model.config.context):
            window = torch.tensor([list(text[begin : begin + model.config.context])])
            nats += F.cross_entropy(model(window[:, :-1])[0].double(), window[0, 1:], reduction="sum").item()
            count += window.shape[1] - 1
    return nats / count / math.log(2)


# ---- language models of bytes


@pytest.mark.parametrize("mixer", CAUSAL)
def test_aft_reads_what_is_saved_and_says_the_same(mixer, tmp_path):
    model = byte_model(CAUSAL[mixer])
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "text").write_bytes(TEXT)
    said = run_json("aft", "eval", tmp_path, tmp_path / "text", "--json")
    assert bits_per_byte(model) == pytest.approx(said["bits_per_byte"], rel=1e-6)
    for options in ({"temperature": 0}, {"seed": 3}, {"temperature": 1.1, "top_k": 20, "top_p": 0.7, "seed": 2**63}):
        # 120 bytes pass the context of 37 thrice.
        written = run("aft", "generate", tmp_path, "--prompt", "To be", "--tokens", 120, *as_words(options))
        assert model.generate(b"To be", 120, **options) == written, options


def test_defaults_of_generate_are_those_of_aft(tmp_path):
    model = byte_model(CAUSAL["local"])
    model.save(tmp_path / "model.safetensors")
    assert model.generate() == run("aft", "generate", tmp_path, "--prompt", "")
    long = program.text(200)
    assert model.generate(long.encode(), 9) == run("aft", "generate", tmp_path, "--prompt", long, "--tokens", 9)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of aft-train: one that is done, one that has only a checkpoint, one that averages its weights."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(program.text())
    (folder / "recipe.toml").write_text(program.RECIPE)
    for name, words in (("done", []), ("stopped", ["--until", "6"]),
                        ("averaged", ["--until", "6", "--set", "train.ema=0.9"])):
        run("aft-train", "train", "recipe.toml", "--set", f"run.folder={name}", *words, cwd=folder)
    return folder


@pytest.mark.parametrize(("name", "file", "prefix"), [
    ("done", "model", ""), ("stopped", "checkpoint", "weights."), ("averaged", "checkpoint", "average.")])
def test_reads_runs_of_aft_train(trained, name, file, prefix):
    model = ByteLM.from_file(trained / name)
    tensors = safetensors.torch.load_file(trained / name / f"{file}.safetensors")
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    assert model.state_dict().keys() == own.keys()
    assert all(torch.equal(model.state_dict()[key], own[key]) for key in own)
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())
    measured = run_json("aft-train", "eval", trained / name, "--data", trained / "text.txt", "--json")
    assert bits_per_byte(model, program.text().encode()) == pytest.approx(measured["bits_per_byte"], rel=1e-6)


def test_state_in_chunks_and_steps_is_the_whole():
    tokens = torch.tensor([list(TEXT[:37]), list(TEXT[100:137])])
    for mixer in CAUSAL.values():
        model = byte_model(mixer).double()
        whole = model(tokens)
        first, state = model(tokens[:, :20], state=model.initial_state(2))
        kept = state.detach()
        second, state = model(tokens[:, 20:33], state=state)
        assert kept.position == 20 and state.position == 33
        steps = [model.step(tokens[:, t : t + 1], state) for t in range(33, 37)]
        assert state.position == 37
        torch.testing.assert_close(torch.cat([first, second, *steps], 1), whole, rtol=1e-11, atol=1e-11)
        with pytest.raises(ValueError, match=r"tokens: expected positions below the context 37, got up to 37; cut"):
            model.step(tokens[:, :1], state)
        # Through the state as well: the second chunk's gradient reaches what only the first one saw.
        seen = model.embedding["position"].weight
        in_chunks, = torch.autograd.grad(torch.cat([first, second], 1).square().sum(), seen)
        torch.testing.assert_close(in_chunks, torch.autograd.grad(whole[:, :33].square().sum(), seen)[0],
                                   rtol=1e-10, atol=1e-10)
        assert in_chunks[:20].abs().min() > 0


def test_trains(trained):
    model = ByteLM.from_file(trained / "stopped").train()
    text = torch.tensor(list(program.text().encode())).unfold(0, 25, 24)[:16]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# ---- models of images


def test_pixels_say_what_the_programs_say(tmp_path):
    image_data.write_images(tmp_path / "images", train=20, test=5)
    for mixer in (CAUSAL["local"], CAUSAL["conv1d"], CAUSAL["attention"]):
        config = ModelConfig("pixel_lm", **SMALL, height=4, width=6, colors=1, mixer=mixer)
        model = far_from_the_start(PixelLM(config))
        model.save(tmp_path / "model.safetensors")
        measured = run_json("aft-train", "eval", tmp_path, "--data", "images", "--format", "idx", "--split", "test",
                            "--json", cwd=tmp_path)
        raw = (tmp_path / "images/t10k-images-idx3-ubyte").read_bytes()[16:]
        images = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(5, 4, 6, 1)
        with torch.no_grad():
            logits = model(model.tokens(images))
        loss = F.cross_entropy(logits.double().flatten(0, 1), images.flatten().long()).item()
        assert loss / math.log(2) == pytest.approx(measured["bits_per_dimension"], rel=1e-6)
        for options in ({}, {"temperature": 0.7, "top_k": 9, "top_p": 0.8, "seed": 4}):
            grid = tmp_path / "grid.png"
            run("aft", "sample", tmp_path, "--out", grid, "--force", "--count", 3, "--columns", 3, *as_words(options))
            [drawn] = pictures.cells(grid.read_bytes(), 4, 6)
            assert [bytes(image.flatten().tolist()) for image in model.sample(3, **options)] == drawn
    with pytest.raises(ValueError, match=r"images: expected uint8 or int64 \[B, 4, 6, 1\], got .* \[5, 6, 4, 1\]"):
        model.tokens(images.transpose(1, 2))


IMAGE = {"height": 8, "width": 8, "patch": 2, "classes": 3}
CLASSIFIERS = {
    "conv2d": {"mixer": MixerConfig("aft_conv2d", heads=3, window=3), "position_embedding": False},
    "conv2d_not_global": {"mixer": MixerConfig("aft_conv2d", heads=2, window=3, global_=False, gate="relu")},
    "conv2d_plain": {"mixer": MixerConfig("aft_conv2d", heads=4, window=5, reparameterised=False), "layer_scale": 0.1},
    "simple": {"mixer": MixerConfig("aft_simple", gate="none"), "mean": (0.4, 0.5, 0.3), "deviation": (0.2, 0.3, 0.25)},
    "local": {"mixer": MixerConfig("aft_local", window=3, factor_channels=4), "class_token": True, "deviation": (0.1,),
              "mean": (0.4, 0.5, 0.3)},
    "conv1d": {"mixer": MixerConfig("aft_conv1d", heads=4, window=5), "class_token": True},
    "full": {"mixer": MixerConfig("aft_full", factor_channels=3), "class_token": True, "colors": 1},
    "attention": {"mixer": MixerConfig("attention", heads=3), "class_token": True, "layer_scale": 1.0, "norm_eps": 0.1},
    "features": {"mixer": MixerConfig("attention", heads=3), "classes": 0},
}


def picture(side, colors, seed):
    return torch.randint(256, (side, side, colors), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_say_what_aft_says(name, tmp_path):
    model = far_from_the_start(Classifier(ModelConfig("classifier", **SMALL | IMAGE | CLASSIFIERS[name])))
    model.save(tmp_path / "model.safetensors")
    for side, words in ((8, []), (12, ["--size", 12])):
        images = torch.stack([picture(side, model.config.colors, seed) for seed in range(3)])
        files = [tmp_path / f"{i}.png" for i in range(3)]
        for file, image in zip(files, images, strict=True):
            file.write_bytes(pictures.png(side, side, model.config.colors, bytes(image.flatten().tolist())))
        lines = run("aft", "classify", tmp_path, *files, *words, "--json").splitlines()
        said = torch.tensor([json.loads(line)["logits" if model.head else "features"] for line in lines])
        here = Classifier.from_file(tmp_path, size=side if words else None)
        with torch.no_grad():
            torch.testing.assert_close(here(images), said, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(here(images / 255), said, rtol=1e-5, atol=1e-5)
        # The pictures differ, and their answers by far more than the tolerance.
        assert (said[0] - said[1]).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"images: expected uint8, .* \[B, 8, 8, \d\], got .* \[3, 12, 12, \d\]"):
        model(images)


def test_whole_classifier_learns():
    """Dropout, stochastic depth and LayerScale among it: in eval mode they are not seen, in training they are."""
    torch.manual_seed(1)
    config = ModelConfig("classifier", **SMALL | IMAGE, class_token=True, dropout=0.1, stochastic_depth=0.5,
                         layer_scale=0.5, mixer=MixerConfig("aft_full", factor_channels=4))
    model = Classifier(config)
    examples = [image_data.example(image_data.random.Random(seed)) for seed in range(60)]
    images = torch.tensor([values for values, _ in examples], dtype=torch.uint8).view(60, 4, 6, 1)
    images = F.pad(images, (0, 0, 0, 2, 0, 4)).expand(60, 8, 8, 3)
    labels = torch.tensor([label for _, label in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert (model(images).argmax(1) == labels).float().mean() > 0.9


def test_stochastic_depth_leaves_out_branches_of_the_last_layer_as_often_as_it_says():
    config = ModelConfig("classifier", **SMALL | IMAGE | {"layers": 3}, stochastic_depth=0.6)
    model = Classifier(config)
    x = torch.randn(3000, 16, 24)
    for block, left_out in zip(model.blocks, (0, 0.3, 0.6), strict=True):
        torch.nn.init.zeros_(block.mlp.down.weight)
        whole = block.eval()(x) - x
        part = block.train()(x) - x
        gone = (part == 0).flatten(1).all(1)
        assert gone.float().mean() == pytest.approx(left_out, abs=0.045)  # five standard deviations
        torch.testing.assert_close(part[~gone], whole[~gone] / (1 - left_out), rtol=1e-3, atol=1e-4)


# ---- files


@pytest.mark.parametrize("kind", ["byte_lm", "classifier"])
def test_new_models_begin_as_those_of_aft_train(kind, tmp_path):
    if kind == "byte_lm":
        recipe = program.RECIPE.replace("channels = 16", "channels = 96").replace("context = 24", "context = 64")
        (tmp_path / "text.txt").write_text(program.text())
    else:
        recipe = image_data.CLASSES.replace("channels = 16", "channels = 96").replace("classes = 3", "classes = 3\n"
                 "class_token = true\nlayer_scale = 0.25").replace('"aft_full"', '"aft_conv1d"\nwindow = 7')
        image_data.write_images(tmp_path / "images")
    (tmp_path / "recipe.toml").write_text(recipe)
    run("aft-train", "init", "recipe.toml", "--out", "model.safetensors", cwd=tmp_path)
    model_class = {"byte_lm": ByteLM, "classifier": Classifier}[kind]
    theirs = model_class.from_file(tmp_path)
    torch.manual_seed(3)
    ours = model_class(theirs.config)
    for (name, mine), wanted in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        spread = wanted.std(correction=0).item()
        if spread == 0:
            assert torch.equal(mine, wanted), name
        else:
            # Of n normal numbers each spread has the standard error 1 / sqrt(2 n), and the mean 1 / sqrt(n).
            assert mine.std(correction=0).item() == pytest.approx(spread, rel=5 / math.sqrt(mine.numel())), name
            assert mine.mean().abs().item() < 5 * spread / math.sqrt(mine.numel()), name
    other = model_class(theirs.config, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}


def write(path, tensors, **metadata):
    safetensors.torch.save_file(tensors, path, {"format": "aft", "format_version": "2", "library_version": "0.1.0"}
                                | metadata)


def test_reads_version_1(tmp_path):
    model = byte_model(CAUSAL["conv1d"])
    config = {"mixer": "aft_conv1d", "layers": 2, "channels": 24, "mlp_channels": 40, "context": 37, "dropout": 0.1,
              "vocabulary": 256, "heads": 4, "window": 6, "factor_channels": 99}
    write(tmp_path / "model.safetensors", model.state_dict(), format_version="1", config=json.dumps(config))
    old = ByteLM.from_file(tmp_path)
    expected = dataclasses.replace(model.config, dropout=0.1, mixer=MixerConfig("aft_conv1d", heads=4, window=6))
    assert old.config == expected
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in old.state_dict().items())


def test_files_that_do_not_fit_are_refused_in_one_sentence(tmp_path):
    model, path = byte_model(CAUSAL["local"]), tmp_path / "model.safetensors"
    tensors, config = model.state_dict(), model.config.to_json()

    def refuses(sentence, load=ByteLM, error=ValueError):
        with pytest.raises(error) as caught:
            load.from_file(path)
        assert str(caught.value) == f"{path}: {sentence}"

    wrong = {name: value for name, value in tensors.items() if name != "norm.bias"}
    wrong |= {"extra": torch.ones(1), "head.weight": tensors["head.weight"].T.contiguous(),
              "blocks.1.mixer.u": tensors["blocks.1.mixer.u"].double()}
    write(path, wrong, config=config)
    refuses("its tensors do not fit the model: blocks.1.mixer.u has type torch.float64, expected torch.float32; "
            "head.weight has shape [24, 256], expected [256, 24]; norm.bias is missing; extra does not belong to the "
            "model")
    write(path, {f"tensor.{i}": torch.ones(1) for i in range(20)}, config=config)
    with pytest.raises(ValueError, match=r"(.* is missing; ){8}and 45 more$"):
        ByteLM.from_file(path)
    write(path, tensors, config=ModelConfig(layers=1000).to_json())
    refuses(f"expected a model of 1000 layers, but the file holds only {len(tensors)} tensors")
    write(path, tensors, config=config, format_version="3")
    refuses('its format version is "3", this aft reads 1 and 2; use a newer version of aft')
    write(path, tensors, config=config, format="pt")
    refuses("a safetensors file, but not a model of aft")
    write(path, tensors)
    refuses('a safetensors file, but not a model of aft (no "config" in its metadata)')
    write(path, tensors, config="{")
    with pytest.raises(ValueError, match="model config: expected a JSON object, got text that does not parse"):
        ByteLM.from_file(path)
    write(path, tensors, config=config)
    refuses("expected a classifier for Classifier, got a byte_lm; take the class of that model", Classifier)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="expected a safetensors file, got one that is damaged or none"):
        ByteLM.from_file(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a model file or a run folder, found no model\.safetensors"):
        ByteLM.from_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        ByteLM.from_file(path)


def test_save_replaces_at_once(tmp_path):
    model, path = byte_model(CAUSAL["simple"]), tmp_path / "model.safetensors"
    path.write_text("old")
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    model.double().save(link)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640
    assert sorted(tmp_path.iterdir()) == [link, path]
    info = run_json("aft", "info", path, "--json")
    assert info["config"] == json.loads(model.config.to_json()) and info["format_version"] == 2
    assert info["library_version"] == aft.__version__
    loaded = ByteLM.from_file(path)
    assert all(torch.equal(value, model.float().state_dict()[name]) for name, value in loaded.state_dict().items())
    # What becomes of the file later does not reach the model.
    before = loaded.head.weight.sum().item()
    path.write_bytes(bytes(path.stat().st_size))
    assert loaded.head.weight.sum().item() == before

    broken = byte_model(CAUSAL["simple"])
    broken.state_dict = lambda: {"head.weight": None}
    path.write_text("old")
    with pytest.raises(AttributeError):
        broken.save(path)
    assert path.read_text() == "old" and sorted(tmp_path.iterdir()) == [link, path]
    with pytest.raises(IsADirectoryError, match=r"path: expected the name of a file, got the folder .*; add model"):
        model.save(tmp_path)


# ---- configs


def test_config_is_that_of_the_file():
    for config in (ModelConfig(), ModelConfig("pixel_lm", height=7, width=3, mixer=CAUSAL["conv1d"], dropout=0.25),
                   *(ModelConfig("classifier", **SMALL | IMAGE | fields) for fields in CLASSIFIERS.values())):
        assert ModelConfig.from_json(config.to_json()) == config
    assert ModelConfig.from_json("{}") == ModelConfig()
    assert json.loads(ModelConfig(mixer=CAUSAL["simple"]).to_json()) == {
        "model": "byte_lm", "layers": 4, "channels": 256, "mlp_channels": 1024, "dropout": 0.0, "vocabulary": 256,
        "context": 256, "mixer": {"name": "aft_simple", "gate": "sigmoid"}}


@pytest.mark.parametrize(("text", "sentence"), [
    ('{"layers": 0}', "layers: expected an integer from 1 to 1073741824, got 0"),
    ('{"layers": 2.0}', "layers: expected an integer from 1 to 1073741824, got 2.0"),
    ('{"layers": true}', "layers: expected an integer from 1 to 1073741824, got True"),
    ('{"dropout": 1}', "dropout: expected a number in [0, 1), got 1"),
    ('{"dropout": NaN}', "dropout: expected a number in [0, 1), got nan"),
    ('{"vocabulary": 255}', "vocabulary: expected 256 (one token a byte), got 255"),
    ('{"model": "lm"}', 'model: expected one of "byte_lm", "pixel_lm", "classifier", got "lm"'),
    ('{"height": 4}', 'unknown key "height"; the file may come from a newer aft'),
    ('{"mixer": {"name": "aft_simple", "window": 32}}',
     'unknown key "mixer.window"; the file may come from a newer aft'),
    ('{"mixer": {"name": "aft_simple", "gate": "tanh"}}',
     'mixer.gate: expected one of "sigmoid", "relu", "none", got "tanh"'),
    ('{"mixer": {"name": "aft_conv2d", "window": 3}}',
     "mixer.name: expected a causal mixer, as a byte_lm predicts the next token, got \"aft_conv2d\""),
    ('{"mixer": {"name": "attention", "heads": 3}}', "mixer.heads: expected a divisor of channels = 256, got 3"),
    ('{"mixer": {"name": "aft_conv1d", "window": 0}}',
     "mixer.window: expected an integer from 1 to 1073741824, got 0"),
    ('{"mixer": {"name": "linformer", "rank": 3}}',
     'mixer.name: expected one of "aft_simple", "aft_local", "aft_conv1d", "aft_conv2d", "aft_full", "attention", got '
     "linformer, a mixer to compare with; aft-train runs it"),
    ('{"mixer": ["aft_simple"]}', 'mixer.name: expected one of "aft_simple", "aft_local", "aft_conv1d", "aft_conv2d", '
     "\"aft_full\", \"attention\", got ['aft_simple']"),
    ('{"model": "pixel_lm", "height": 4097}', "height: expected at most 4096 pixels, got 4097"),
    ('{"model": "pixel_lm", "colors": 2}', "colors: expected 1 or 3, got 2"),
    ('{"model": "classifier", "patch": 5}', "patch: expected a divisor of height = 32, got 5"),
    ('{"model": "classifier", "classes": 1}', "classes: expected 0 (features) or at least 2, got 1"),
    ('{"model": "classifier", "mean": 0.5}', "mean: expected a list of numbers, got 0.5"),
    ('{"model": "classifier", "mean": [0.1, 0.2]}',
     "mean: expected one number, or one a colour, which are 3, got 2"),
    ('{"model": "classifier", "deviation": [0]}',
     "deviation: expected numbers of images whose values are in [0, 1], got 0"),
    ('{"model": "classifier", "norm_eps": 0}', "norm_eps: expected a number above 0, got 0.0"),
    ('{"model": "classifier", "crop": 0}', "crop: expected a number from 0.01 to 1, got 0.0"),
    ('{"model": "classifier", "class_names": ["a"]}',
     "class_names: expected none, or one for each of 10 classes, got 1"),
    ('{"model": "classifier", "class_token": 1}', "class_token: expected true or false, got 1"),
    ('{"model": "classifier", "resampling": "cubic"}',
     'resampling: expected one of "nearest", "bilinear", "bicubic", got "cubic"'),
    ('{"model": "classifier", "mixer": {"name": "aft_conv1d"}}',
     "mixer.window: expected an odd number where the model is not causal, got 32"),
    ('{"model": "classifier", "class_token": true, "mixer": {"name": "aft_conv2d", "window": 3}}',
     'mixer.name: expected another mixer where class_token is true, got "aft_conv2d"'),
    ("[]", "the whole: expected a JSON object, got []"),
])
def test_configs_out_of_range_are_refused(text, sentence):
    with pytest.raises(ValueError) as caught:
        ModelConfig.from_json(text)
    assert str(caught.value) == "model config: " + sentence


def test_arguments_out_of_range_are_refused():
    model = ByteLM(ModelConfig(**SMALL))
    for call, sentence in (
        (lambda: MixerConfig("aft_simple", window=4), r"mixer.window: aft_simple has none, got 4; leave it out"),
        (lambda: ModelConfig(height=4), r"height: a byte_lm has none, got 4; leave it out"),
        (lambda: PixelLM(ModelConfig()), r'config: expected one of model="pixel_lm" for PixelLM, got one of "byte_lm"'),
        (lambda: model.generate("text"), r"prompt: expected bytes, got str; a str has \.encode"),
        (lambda: model.generate(temperature=-1), r"temperature: expected a number >= 0, got -1"),
        (lambda: model.generate(top_k=-1), r"top_k: expected an integer >= 0, got -1"),
        (lambda: model.generate(top_p=0), r"top_p: expected a number in \(0, 1\], got 0"),
        (lambda: model(torch.zeros(3, dtype=torch.int64)), r"expected integers \[B, T\], got torch.int64 \[3\]"),
        (lambda: model(torch.zeros(1, 3)), r"tokens: expected integers \[B, T\], got torch.float32 \[1, 3\]"),
        (lambda: model(torch.zeros(1, 257, dtype=torch.uint8)), r"below the context 256, got up to 256; cut the text"),
    ):
        with pytest.raises((ValueError, TypeError), match=sentence):
            call()


def test_import_of_aft_does_not_import_the_models():
    code = "import sys, aft; assert 'aft.models' not in sys.modules; aft.models.ByteLM"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
