"""Image classifiers from outside: aft-train eval at another size, aft classify, import, the figures of distance."""

import json
import math
import os
import pathlib
import random
import struct
import sys
import unittest

import images
from image_folder_test import RECIPE, STRIPES, write_folders
from program import ProgramTest, program, read_safetensors

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "image"))
import pictures

CONV = ("mixer.name=aft_conv2d", "mixer.window=3", "mixer.heads=4", "model.position_embedding=false")
VIT = ("mixer.name=attention", "mixer.heads=2", "model.class_token=true")


def write_safetensors(path, tensors):
    """tensors: name -> (shape, values)"""
    header, body = {}, b""
    for name, (shape, values) in tensors.items():
        data = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def timm_vit():
    """A vision transformer of one layer, d = 4, patches of 2, 3 x 3 of them, without a head."""
    numbers = random.Random(1)
    shapes = {"cls_token": [1, 1, 4], "pos_embed": [1, 10, 4], "patch_embed.proj.weight": [4, 3, 2, 2],
              "patch_embed.proj.bias": [4], "norm.weight": [4], "norm.bias": [4]}
    for name, rows, columns in (("attn.qkv", 12, 4), ("attn.proj", 4, 4), ("mlp.fc1", 8, 4), ("mlp.fc2", 4, 8)):
        shapes |= {f"blocks.0.{name}.weight": [rows, columns], f"blocks.0.{name}.bias": [rows]}
    for name in ("norm1", "norm2"):
        shapes |= {f"blocks.0.{name}.weight": [4], f"blocks.0.{name}.bias": [4]}
    return {name: (shape, [numbers.gauss(0, 1) for _ in range(math.prod(shape))]) for name, shape in shapes.items()}


class Classifier(ProgramTest):
    def setUp(self):
        super().setUp()
        write_folders(self.folder / "images")
        (self.folder / "recipe.toml").write_text(RECIPE)

    def learn(self, run, sets):
        # Of few steps: what matters here is that it says the same everywhere.
        self.train(run, sets=["train.steps=40", "train.batch=8", "train.eval_every=0", *sets])

    def run_json(self, *words, code=0):
        done = self.call(list(map(str, words)), code)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def classify(self, *words):
        return self.run_json(os.environ["AFT"], "classify", *words, "--json")

    def figure(self, name, *words, code=0):
        return self.call([program(), "figure", name, *map(str, words)], code)

    def numbers(self, name):
        return json.loads((self.folder / name).read_text())

    def test_classify_says_what_eval_measures(self):
        files = sorted((self.folder / "images/val").rglob("*.png"))
        for run, sets in (("conv", CONV), ("vit", VIT)):
            self.learn(run, sets)
            [measured] = self.run_json(program(), "eval", run, "--json")
            said = self.classify(run, *files)
            self.assertEqual([line["file"] for line in said], list(map(str, files)))
            right = [line["best"][0]["name"] == file.parent.name for line, file in zip(said, files, strict=True)]
            self.assertEqual(sum(right) / len(right), measured["top_1"])
            loss = 0
            for line, file in zip(said, files, strict=True):
                self.assertEqual(len(line["best"]), 3)
                self.assertAlmostEqual(sum(one["probability"] for one in line["best"]), 1)
                probability = {one["name"]: one["probability"] for one in line["best"]}[file.parent.name]
                loss -= math.log(probability) / len(files)
            self.assertAlmostEqual(loss, measured["loss"], delta=1e-4)
        text = self.call([os.environ["AFT"], "classify", "conv", files[0], "--top", "1"]).stdout
        self.assertRegex(text, rf"^{files[0]}\n +[\d.]+ %  ({'|'.join(STRIPES)})\n$")

    def test_the_size_of_images_is_free(self):
        self.learn("conv", CONV)
        self.learn("vit", VIT)
        file = next((self.folder / "images/val").rglob("*.png"))
        for run in ("conv", "vit"):
            [usual] = self.classify(run, file)
            [larger] = self.classify(run, file, "--size", 8)
            self.assertNotEqual(usual["logits"], larger["logits"])
            [measured] = self.run_json(program(), "eval", run, "--size", 8, "--json")
            self.assertEqual(measured["predicted"], 11)
        failed = self.call([program(), "eval", "vit", "--size", "7"], 2)
        self.assertIn("patch", failed.stderr)

    def test_idx_images_are_brought_to_size(self):
        images.write_images(self.folder / "idx")
        sets = ["data.format=idx", "data.path=idx", "model.height=8", "model.width=8"]
        self.train("run", sets=[*CONV, *sets, "data.holdout=10"])
        self.assertEqual(self.metrics("run")[-1]["split"], "test")

    def test_a_run_keeps_the_names_of_its_classes(self):
        self.learn("run", CONV)
        config = json.loads(read_safetensors(self.folder / "run/model.safetensors")[1]["config"])
        self.assertEqual(config["class_names"], sorted(STRIPES))

    def test_bad_pictures_are_named(self):
        self.learn("run", CONV)
        good = next((self.folder / "images/val").rglob("*.png"))
        for name, content in (("text.png", b"no picture"), ("half.png", good.read_bytes()[:-20]), ("empty.jpg", b"")):
            (self.folder / name).write_bytes(content)
            failed = self.call([os.environ["AFT"], "classify", "run", name], 2)
            self.assertIn(name, failed.stderr)
        failed = self.call([os.environ["AFT"], "classify", "run", "missing.png"], 2)
        self.assertIn("missing.png", failed.stderr)

    def test_import(self):
        write_safetensors(self.folder / "timm.safetensors", timm_vit())
        (self.folder / "names.txt").write_text("a\nb\n")
        command = [program(), "import", "timm.safetensors", "--out", "vit.safetensors", "--heads", "2"]
        self.call(command)
        self.assertIn("vit.safetensors", self.call(command, 2).stderr)  # it is there
        [line] = self.classify("vit.safetensors", next((self.folder / "images/val").rglob("*.png")))
        self.assertEqual(len(line["features"]), 4)
        failed = self.call([*command, "--force", "--class-names", "names.txt"], 2)
        self.assertIn("class_names", failed.stderr)
        for option, value in (("--mean", "0.5,0.5"), ("--mean", "1,x,2"), ("--norm-eps", ""), ("--crop", "2")):
            self.call([*command, "--force", option, value], 2)
        broken = {name: tensor for name, tensor in timm_vit().items() if name != "blocks.0.mlp.fc2.bias"}
        write_safetensors(self.folder / "timm.safetensors", broken)
        self.assertIn("blocks.0.mlp.fc2.bias is missing", self.call([*command, "--force"], 2).stderr)

    def test_a_new_head_on_imported_weights(self):
        write_safetensors(self.folder / "timm.safetensors", timm_vit())
        self.call([program(), "import", "timm.safetensors", "--out", "vit.safetensors", "--heads", "2"])
        sets = ["train.init=vit.safetensors", 'train.init_skip=["head.*"]', *VIT, "model.layers=1", "model.channels=4",
                "model.mlp_channels=8", "model.colors=3", "model.height=6", "model.width=6", "data.jitter=0"]
        self.train("run", sets=sets)
        self.assertEqual(self.metrics("run")[-1]["split"], "valid")

    def test_figures_of_distance(self):
        self.learn("conv", CONV)
        self.learn("vit", VIT)
        self.learn("full", ["mixer.name=aft_full", "mixer.factor_channels=3"])
        self.figure("attention-maps", "--weights", "vit", "--images", "images/val", "--all", "--out", "maps.png")
        maps = self.numbers("maps.json")
        self.assertEqual((maps["images"], maps["grid"], len(maps["maps"])), (11, [2, 3], 4))
        for one in maps["maps"]:  # rows of a softmax over seven positions, the class token's share left out
            pairs = [(2 - abs(y)) * (3 - abs(x)) for y in (-1, 0, 1) for x in (-2, -1, 0, 1, 2)]
            mass = sum(map(lambda count, weight: count * weight, pairs, one["map"])) / 6
            self.assertTrue(0 < mass < 1, mass)
        self.figure("position-bias", "--weights", "conv", "--all", "--out", "bias.png")
        bias = self.numbers("bias.json")
        self.assertEqual((bias["kind"], bias["rows"], len(bias["biases"])), ("kernels", 3, 8))
        self.figure("position-bias", "--weights", "full", "--out", "matrix.png")
        self.assertEqual((self.numbers("matrix.json")["kind"], self.numbers("matrix.json")["rows"]), ("matrices", 6))
        for run, words in (("conv", ()), ("full", ()), ("vit", ("--images", "images/val", "--every", 3))):
            done = self.figure("locality", "--weights", run, *words, "--radius", 1, "--out", f"{run}.png")
            found = self.numbers(f"{run}.json")
            # Of 2 x 3 places the corners have three within 1, the middle ones four.
            self.assertAlmostEqual(found["uniform"], (4 * 3 + 2 * 4) / 36)
            self.assertIn("of uniform weights: 0.556", done.stdout)
            self.assertTrue(all(0 < one["share"] < 1 for one in found["heads"]))
        self.assertEqual(pictures.SIGNATURE, (self.folder / "maps.png").read_bytes()[:8])

    def test_figures_refuse(self):
        self.learn("conv", CONV)
        self.learn("vit", VIT)
        (self.folder / "none").mkdir()
        for words, part in ((("attention-maps", "--weights", "conv", "--images", "images"), "attention"),
                            (("attention-maps", "--weights", "vit"), "--images"),
                            (("attention-maps", "--weights", "vit", "--images", "none"), "none"),
                            (("attention-maps", "--weights", "vit", "--images", "missing"), "missing"),
                            (("position-bias", "--weights", "vit"), "position biases"),
                            (("locality", "--weights", "text.txt"), "text.txt")):
            self.assertIn(part, self.figure(*words, "--out", "figure.png", code=2).stderr, words)
        self.assertFalse((self.folder / "figure.png").exists())
        (self.folder / "kept.json").write_text("mine")
        failed = self.figure("position-bias", "--weights", "conv", "--out", "kept.png", code=2)
        self.assertIn("kept.json", failed.stderr)
        self.assertEqual((self.folder / "kept.json").read_text(), "mine")


if __name__ == "__main__":
    unittest.main()
