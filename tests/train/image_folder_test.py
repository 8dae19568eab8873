"""aft-train on folders of image files, from outside: whole ones, and such as break in the middle of a run."""

import json
import pathlib
import sys
import unittest

import images
from program import ProgramTest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "image"))
import pictures

RECIPE = images.CLASSES.replace('format = "idx"', 'format = "folder"').replace("holdout = 10\n", "")
STRIPES = ("narrow", "wide", "wider")


def write_folders(folder, train=40, val=11):
    for part, count in (("train", train), ("val", val)):
        examples = images.random.Random(3)
        for i in range(count):
            values, label = images.example(examples)
            place = folder / part / STRIPES[label]
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.png").write_bytes(pictures.png(images.WIDTH, images.HEIGHT, 1, bytes(values)))


class ImageFolder(ProgramTest):
    def setUp(self):
        super().setUp()
        write_folders(self.folder / "images")
        (self.folder / "recipe.toml").write_text(RECIPE)

    def files(self, part):
        return sorted((self.folder / "images" / part).rglob("*.png"))

    def test_trains_and_resumes_with_any_number_of_loaders(self):
        sets = ["model.dropout=0.1", "train.batch=7"]
        self.train("whole", sets=[*sets, "train.loaders=1"])
        self.train("parts", "--until", "7", sets=[*sets, "train.loaders=3"])
        self.train("parts", "--resume", sets=[*sets, "train.loaders=0"])
        self.assert_same_run("whole", "parts")
        self.assertEqual([line["split"] for line in self.metrics("whole")].count("valid"), 3)

    def test_learns_the_classes(self):
        sets = ["train.steps=150", "train.batch=8", "data.jitter=0", "data.flip=false"]
        self.train("run", sets=sets)
        self.assertGreater(self.metrics("run")[-1]["top_1"], 0.8)

    def check_broken(self, broken, part, sets):
        """A file that breaks stops the run with a checkpoint; put right, the run goes on as if nothing had been."""
        sets = [*sets, "train.checkpoint_every=0"]
        self.train("whole", sets=sets)
        self.train("run", "--until", "4", sets=sets)
        content = broken.read_bytes()
        broken.write_bytes(content[:-20] + bytes(20))  # of the same size
        failed = self.train("run", "--resume", sets=sets, code=1)
        self.assertIn(f"{broken.relative_to(self.folder)}: expected a PNG file, got one that is corrupt", failed.stderr)
        self.assertIn("data.broken", failed.stderr)
        step = self.step("run")
        self.assertIn(f"the last good checkpoint is step {step} in", failed.stderr)
        self.assertIn(f"train: step {step + 1}: ", failed.stderr)
        if part == "val":
            self.assertEqual(step, 8)
        broken.write_bytes(content)
        self.train("run", "--resume", sets=sets)
        self.assert_same_run("whole", "run")

    def test_a_broken_file_stops_the_run_and_loses_nothing(self):
        for loaders, index in ((0, 17), (2, 5), (1, 30)):
            with self.subTest(loaders=loaders):
                sets = ["model.dropout=0.1", "train.accumulate=3", f"train.loaders={loaders}"]
                for run in ("whole", "run"):
                    self.call(["rm", "-rf", run])
                self.check_broken(self.files("train")[index], "train", sets)

    def test_a_broken_file_of_validation_too(self):
        self.check_broken(self.files("val")[3], "val", [])

    def test_broken_files_are_skipped_by_an_option(self):
        for part, index in (("train", 17), ("train", 18), ("val", 3)):
            self.files(part)[index].write_bytes(b"no image")
        failed = self.train("run", sets=["train.steps=100"], code=1)
        self.assertIn("no image", failed.stderr)
        # The run that stopped may go on without them.
        done = self.train("run", "--resume", sets=["train.steps=100", "data.broken=skip"])
        self.assertEqual(done.stderr.count("skipped image"), 3)
        for part, index in (("train", 17), ("train", 18), ("val", 3)):
            self.assertEqual(done.stderr.count(str(self.files(part)[index].relative_to(self.folder))), 1, done.stderr)
        for loaders in (0, 3):
            sets = ["data.broken=skip", f"train.loaders={loaders}"]
            self.train(f"run{loaders}", sets=sets)
        self.assert_same_run("run0", "run3")
        scored = self.call([self.command("x")[0], "eval", "run0", "--json"])
        self.assertEqual(json.loads(scored.stdout)["predicted"], 11)
        self.assertEqual(scored.stderr.count("skipped image"), 1)

    def test_folders_that_are_none_are_refused(self):
        self.assertIn("expected a folder for each of at least two classes",
                      self.train("run", sets=["data.path=images/train/wide"], code=2).stderr)
        self.assertIn("model.classes: expected at least the 3",
                      self.train("run", sets=["model.classes=2"], code=2).stderr)
        self.assertIn("data.holdout: expected nothing", self.train("run", sets=["data.holdout=4"], code=2).stderr)
        self.assertIn("data.broken: expected", self.train("run", sets=["data.broken=perhaps"], code=2).stderr)
        self.assertFalse((self.folder / "run").exists())


if __name__ == "__main__":
    unittest.main()
