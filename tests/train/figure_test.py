"""aft-train figure from outside: pictures of runs."""

import pathlib
import shutil
import sys
import unittest

import images
from program import ProgramTest, program

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "image"))
import pictures

SIZE = images.HEIGHT * images.WIDTH


class Figure(ProgramTest):
    def setUp(self):
        super().setUp()
        images.write_images(self.folder / "images")
        (self.folder / "recipe.toml").write_text(images.PIXELS)
        for run, seed in (("one", 1), ("two", 2)):
            self.train(run, sets=["train.steps=3", "train.warmup=0", "train.eval_every=0", f"train.seed={seed}"])

    def figure(self, *words, code=0):
        return self.call([program(), "figure", *map(str, words)], code)

    def cells(self, name):
        return pictures.cells((self.folder / name).read_bytes(), images.HEIGHT, images.WIDTH)

    def test_samples(self):
        done = self.figure("samples", "one", "two", "--count", 3, "--columns", 3, "--out", "a.png")
        self.assertEqual(done.stdout, "a.png\n")
        one, two = self.cells("a.png")
        self.assertEqual(len(set(one + two)), 6)
        self.figure("samples", "two", "--count", 3, "--columns", 3, "--batch", 1, "--out", "b.png")
        self.assertEqual(self.cells("b.png"), [two])
        # Of a model file too, and in the usual number.
        self.figure("samples", "two/model.safetensors", "--out", "b.png", "--force")
        self.assertEqual([image for row in self.cells("b.png") for image in row][:3], two)
        self.assertEqual([len(row) for row in self.cells("b.png")], [4] * 4)
        self.figure("samples", "two", "--count", 3, "--columns", 3, "--seed", 1, "--out", "c.png")
        self.assertFalse(set(self.cells("c.png")[0]) & set(two))

    def test_completions(self):
        test = (self.folder / "images/t10k-images-idx3-ubyte").read_bytes()[16:]
        self.figure("completions", "one", "two", "--count", 2, "--images", 3, "--out", "a.png")
        rows = self.cells("a.png")
        self.assertEqual([len(row) for row in rows], [6] * 3)
        half = SIZE // 2
        for i, row in enumerate(rows):
            original = test[i * SIZE:(i + 1) * SIZE]
            self.assertEqual(row[0], original[:half] + b"\x80" * half)
            self.assertEqual([image[:half] for image in row], [original[:half]] * 6)
            self.assertEqual(row[5], original)
        # The run's data, or others; here those of the run, elsewhere.
        (self.folder / "images").rename(self.folder / "moved")
        self.figure("completions", "one", "--out", "b.png", code=2)
        self.figure("completions", "one", "--count", 2, "--data", "moved", "--out", "b.png")
        again = self.cells("b.png")
        self.assertEqual(len(again), 8)
        self.assertEqual([row[:3] for row in again[:3]], [row[:3] for row in rows])
        (self.folder / "in.png").write_bytes(pictures.png(images.WIDTH, images.HEIGHT, 1, test[:SIZE]))
        self.figure("completions", "one/model.safetensors", "--count", 2, "--data", "in.png", "--out", "c.png")
        self.assertEqual(self.cells("c.png"), again[:1])

    @unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
    def test_curves_are_those_of_plot(self):
        self.figure("curves", "one", "two", "--x", "tokens", "--out", "a.png")
        self.call([program(), "plot", "one", "two", "--x", "tokens", "--out", "b.png"])
        self.assertEqual((self.folder / "a.png").read_bytes(), (self.folder / "b.png").read_bytes())
        self.assertIn("--out: a.png exists", self.figure("curves", "one", "--out", "a.png", code=2).stderr)

    def test_refusals(self):
        (self.folder / "mine.png").write_bytes(b"mine")
        for words, message in (
            ([], "subcommand"),
            (["samplse", "one"], "did you mean samples?"),
            (["samples", "one"], "--out"),
            (["samples", "--out", "a.png"], "RUN"),
            (["samples", "one", "--out", "mine.png"], "--out: mine.png exists; replace it with --force"),
            (["samples", "one", "--out", "none/a.png"], "none/a.png"),
            (["samples", "one", "--out", "a.png", "--cuont", 3], "did you mean --count?"),
            (["samples", "one", "--out", "a.png", "--images", 3], "unknown option --images"),
            (["completions", "one", "--out", "a.png", "--columns", 3], "unknown option --columns"),
            (["completions", "one/model.safetensors", "--out", "a.png"], "--data: expected a JPEG or PNG file"),
            (["completions", "one", "--data", "mine.png", "--out", "a.png"], "mine.png: expected a JPEG or PNG file"),
            (["samples", "none", "--out", "a.png"], "none"),
        ):
            with self.subTest(words=words):
                self.assertIn(message, self.figure(*words, code=2).stderr)
        self.assertEqual((self.folder / "mine.png").read_bytes(), b"mine")
        self.assertFalse((self.folder / "a.png").exists())
        # No pixel_lm.
        (self.folder / "recipe.toml").write_text(images.CLASSES)
        self.train("classes", sets=["train.steps=3", "train.warmup=0"])
        self.assertIn("classifier", self.figure("samples", "classes", "--out", "a.png", code=2).stderr)

    def test_help_has_examples(self):
        self.assertIn("Example: aft-train figure", self.figure("--help").stdout)
        for kind, options in (("curves", ["--x"]), ("samples", ["--count", "--columns", "--seed"]),
                              ("completions", ["--data", "--images", "--count", "--batch"])):
            text = self.figure(kind, "--help").stdout
            for option in ("RUN", "--out", "--force", *options):
                self.assertIn(option, text)


if __name__ == "__main__":
    unittest.main()
