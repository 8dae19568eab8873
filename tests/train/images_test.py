"""aft-train on images: pixel_lm and the classifier, from outside."""

import json
import math
import struct
import unittest

import images
from program import ProgramTest, read_safetensors


class Images(ProgramTest):
    def setUp(self):
        super().setUp()
        images.write_images(self.folder / "images")
        self.use(images.PIXELS)

    def use(self, recipe):
        (self.folder / "recipe.toml").write_text(recipe)

    def lines(self, run, split):
        return [line for line in self.metrics(run) if line["split"] == split]

    def eval(self, *words):
        return json.loads(self.call([*self.eval_command, *words, "--json"]).stdout)

    @property
    def eval_command(self):
        return [self.command("x")[0], "eval"]

    def test_bits_per_dimension(self):
        self.train("run", sets=["train.steps=80", "train.eval_every=40", "data.jitter=0"])
        for line in self.metrics("run"):
            self.assertAlmostEqual(line["bits_per_dimension"], line["loss"] / math.log(2), places=12)
        self.assertEqual([len(self.lines("run", split)) for split in ("train", "valid", "test")], [80, 2, 1])
        self.assertEqual(self.lines("run", "train")[-1]["tokens"], 80 * 3 * 24)
        self.assertLess(self.lines("run", "valid")[-1]["bits_per_dimension"], 6)
        best = min(line["bits_per_dimension"] for line in self.lines("run", "valid"))
        valid, test = self.eval("run"), self.eval("run", "--split", "test")
        self.assertAlmostEqual(valid["bits_per_dimension"], best, places=6)
        self.assertEqual(test["predicted"], 11 * 24)
        self.assertAlmostEqual(test["bits_per_dimension"], self.lines("run", "test")[0]["bits_per_dimension"], places=6)
        # Elsewhere too, and without the run folder.
        (self.folder / "images").rename(self.folder / "moved")
        (self.folder / "model").write_bytes((self.folder / "run" / "model.safetensors").read_bytes())
        again = self.eval("model", "--data", "moved", "--format", "idx", "--split", "test")
        self.assertEqual(again["bits_per_dimension"], test["bits_per_dimension"])

    def test_an_untrained_model_gives_every_value_the_same_chance(self):
        self.call([self.command("x")[0], "init", "recipe.toml", "--out", "model"])
        score = self.eval("model", "--data", "images", "--format", "idx", "--split", "test")
        self.assertAlmostEqual(score["bits_per_dimension"], 8, delta=0.05)

    def test_classes(self):
        self.use(images.CLASSES)
        sets = ["train.steps=150", "train.batch=8", "train.eval_every=50", "data.jitter=0", "data.flip=false"]
        outcome = json.loads(self.train("run", "--json", sets=sets).stdout)
        valid, test = self.lines("run", "valid"), self.lines("run", "test")
        for line in valid:
            self.assertEqual(line["top_1"] * 10, round(line["top_1"] * 10))  # ten images
            self.assertEqual(line["top_5"], 1)  # of three classes
        self.assertEqual(self.lines("run", "train")[-1]["tokens"], 150 * 8)
        self.assertGreater(test[0]["top_1"], 0.8)
        self.assertEqual(outcome["valid_top_1"], max(line["top_1"] for line in valid))
        self.assertEqual(outcome["test_top_1"], test[0]["top_1"])
        self.assertEqual(self.eval("run", "--split", "test")["predicted"], 11)

    def test_resume_is_bit_for_bit_with_any_number_of_loaders(self):
        for recipe in (images.PIXELS, images.CLASSES):
            self.use(recipe)
            sets = ["model.dropout=0.1", "train.batch=7"]  # 40 images: batches cross the ends of epochs
            self.train("whole", "--force", sets=[*sets, "train.loaders=1"])
            for loaders in (0, 3):
                self.train("parts", "--force", "--until", "7", sets=[*sets, f"train.loaders={loaders}"])
                for until in (13, 20):
                    self.train("parts", "--resume", "--until", str(until), sets=[*sets, f"train.loaders={3 - loaders}"])
                self.assert_same_run("whole", "parts")

    def test_resume_with_mixing_and_averages_is_bit_for_bit(self):
        self.use(images.CLASSES)
        sets = ["model.dropout=0.1", "train.batch=7", "data.mixup=0.8", "data.cutmix=1.0", "data.mix_probability=0.9",
                "train.label_smoothing=0.1", "train.ema=0.9"]
        for more in ([], ["data.holdout=0", "train.eval_every=0"]):  # the best model, the last
            self.train("whole", "--force", sets=[*sets, *more, "train.loaders=1"])
            for loaders in (0, 3):
                self.train("parts", "--force", "--until", "7", sets=[*sets, *more, f"train.loaders={loaders}"])
                for until in (13, 20):
                    self.train("parts", "--resume", "--until", str(until),
                               sets=[*sets, *more, f"train.loaders={3 - loaders}"])
                self.assert_same_run("whole", "parts")
        failed = self.train("parts", "--resume", sets=[*sets[:-1], "train.ema=0.8", *more], code=2)
        self.assertIn("train.ema: the run to resume has 0.9", failed.stderr)
        failed = self.train("parts", "--resume", sets=[*sets[1:], "data.mixup=0.7", "model.dropout=0.1", *more], code=2)
        self.assertIn("data.mixup: the run to resume has 0.8", failed.stderr)

    def test_the_average_is_that_of_every_step_and_what_is_measured_and_saved(self):
        self.use(images.CLASSES)
        steps, decay = 12, 0.6
        sets = [f"train.ema={decay}", "train.steps=12", "train.eval_every=6", "train.warmup=0"]

        def numbers(tensors, prefix):
            values = []
            for name in sorted(tensors):
                if name.startswith(prefix):
                    values += struct.unpack(f"<{len(tensors[name][2]) // 4}f", tensors[name][2])
            return values

        self.call([self.command("x")[0], "init", "recipe.toml", "--out", "fresh"])
        average = numbers(read_safetensors(self.folder / "fresh")[0], "")
        for step in range(1, steps + 1):
            self.train("run", "--resume", "--until", str(step), sets=sets)
            tensors, _ = self.checkpoint("run")
            weights = numbers(tensors, "weights.")
            share = min(decay, (1 + step) / (10 + step))
            average = [share * a + (1 - share) * w for a, w in zip(average, weights, strict=True)]
            largest = max(map(abs, weights + average))
            for got, expected in zip(numbers(tensors, "average."), average, strict=True):
                self.assertAlmostEqual(got, expected, delta=step * 4 * largest * 2**-23)
        self.assertGreater(max(abs(a - w) for a, w in zip(average, weights, strict=True)), 1e-3)
        # Validation is of the averages, and so is a checkpoint that is read as a model.
        valid = self.lines("run", "valid")
        self.assertEqual([line["step"] for line in valid], [6, 12])
        best = max(valid, key=lambda line: line["top_1"])  # the first of equals
        self.assertAlmostEqual(self.eval("run")["loss"], best["loss"], places=6)
        (self.folder / "run/model.safetensors").unlink()
        self.assertAlmostEqual(self.eval("run")["loss"], valid[-1]["loss"], places=6)
        # Without validation the last averages are the model.
        self.train("last", sets=[*sets[:2], "data.holdout=0", "train.eval_every=0"])
        model, _ = read_safetensors(self.folder / "last/model.safetensors")
        self.assertEqual(numbers(model, ""), numbers(self.checkpoint("last")[0], "average."))
        self.assertNotEqual(numbers(model, ""), numbers(self.checkpoint("last")[0], "weights."))

    def test_what_the_train_loss_is_with_smoothed_labels(self):
        self.use(images.CLASSES)
        once = ["train.steps=1", "train.warmup=0", "train.lr=1e-30"]
        self.train("plain", sets=once)
        self.train("smoothed", sets=[*once, "train.label_smoothing=0.5"])
        self.assertNotEqual(*[self.lines(run, "train")[0]["loss"] for run in ("plain", "smoothed")])
        for split in ("valid", "test"):  # are not smoothed
            self.assertEqual(*[self.lines(run, split)[0]["loss"] for run in ("plain", "smoothed")])

    def test_augmentation_is_of_training_alone(self):
        self.train("with", sets=["train.steps=1", "train.warmup=0", "train.lr=1e-30"])
        self.train("without", sets=["train.steps=1", "train.warmup=0", "train.lr=1e-30", "data.flip=false",
                                    "data.jitter=0"])
        first, second = self.lines("with", "train")[0]["loss"], self.lines("without", "train")[0]["loss"]
        self.assertNotEqual(first, second)
        for split in ("valid", "test"):
            self.assertEqual(self.lines("with", split)[0]["loss"], self.lines("without", split)[0]["loss"])

    def test_chunks_of_an_image(self):
        self.train("whole", sets=["train.steps=1", "train.warmup=0"])
        self.train("chunks", sets=["train.steps=1", "train.warmup=0", "train.chunk=7"])
        losses = [self.lines(run, "train")[0]["loss"] for run in ("whole", "chunks")]
        self.assertAlmostEqual(*losses, places=5)
        self.use(images.CLASSES)
        self.assertIn("train.chunk", self.train("run", sets=["train.chunk=2"], code=2).stderr)

    def test_broken_and_foreign_data_are_refused_by_name(self):
        self.assertIn("data.path: expected images of 4 x 6 pixels of 3",
                      self.train("run", sets=["model.colors=3"], code=2).stderr)
        for key in ("data.mixup", "data.cutmix", "train.label_smoothing"):
            self.assertIn(f'{key}: expected 0 with model.model = "pixel_lm"',
                          self.train("run", sets=[f"{key}=0.5"], code=2).stderr)
        for mixer in ("linformer", "mlp_mixer"):
            self.assertIn("mixer.name: expected a causal mixer, as pixel_lm predicts the next token",
                          self.train("run", sets=[f"mixer.name={mixer}"], code=2).stderr)
        self.use(images.CLASSES)
        self.assertIn("data.mixup: expected 0 (off) or 0.001 to 1000, got -1",
                      self.train("run", sets=["data.mixup=-1"], code=2).stderr)
        self.assertIn("model.classes: expected at least the 3",
                      self.train("run", sets=["model.classes=2"], code=2).stderr)
        file = self.folder / "images" / "train-images-idx3-ubyte"
        whole = file.read_bytes()
        for broken in (whole[:-1], whole[:10], b"", whole + b"x", b"text"):
            file.write_bytes(broken)
            failed = self.train("run", code=2)
            self.assertIn("train-images-idx3-ubyte", failed.stderr)
            self.assertFalse((self.folder / "run").exists())

    def test_a_data_set_of_another_kind_cannot_resume(self):
        self.train("run")
        file = self.folder / "images" / "t10k-labels-idx1-ubyte"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 3]))
        self.assertIn("the test data are not those of the run", self.train("run", "--resume", code=2).stderr)


if __name__ == "__main__":
    unittest.main()
