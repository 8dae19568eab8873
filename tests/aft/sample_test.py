"""`aft sample` from outside: python3 sample_test.py AFT WRITE_MODEL. Standard library only."""

import json
import os
import pathlib
import pty
import struct
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "image"))
import pictures

AFT, WRITE_MODEL = map(os.path.abspath, sys.argv[1:3])
HEIGHT, WIDTH = 5, 3  # of the models that WRITE_MODEL writes


def cells(data):
    """The images of a grid, row by row, each as its values."""
    return pictures.cells(data, HEIGHT, WIDTH)


class SampleTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.model = self.write("aft_local", 3)

    def write(self, mixer, *colors, seed=1):
        path = self.folder / f"{mixer}{'-'.join(map(str, colors))}.safetensors"
        subprocess.run([WRITE_MODEL, mixer, path, str(seed), *map(str, colors)], check=True)
        return path

    def aft(self, *arguments, **options):
        return subprocess.run([AFT, *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, timeout=120,
                              check=False, cwd=self.folder, **options)

    def sample(self, *arguments, model=None):
        """The bytes of the picture."""
        done = self.aft("sample", model or self.model, "--out", "grid.png", "--force", *arguments)
        self.assertEqual((done.returncode, done.stderr), (0, b""), done)
        return (self.folder / "grid.png").read_bytes()

    def refused(self, *arguments):
        before = {path: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        done = self.aft(*arguments)
        self.assertEqual((done.returncode, done.stdout), (2, b""), done)
        after = {path: path.read_bytes() for path in self.folder.iterdir() if path.is_file()}
        self.assertEqual(before, after, "a refused command must leave all files as they are")
        return done.stderr.decode()

    def test_samples(self):
        for mixer in ("aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"):
            for colors in (1, 3):
                model = self.write(mixer, colors)
                first = self.sample("--seed", 5, model=model)
                images = cells(first)
                self.assertEqual([len(row) for row in images], [4] * 4)
                self.assertEqual(len({image for row in images for image in row}), 16)
                self.assertEqual(self.sample("--seed", 5, model=model), first)
                self.assertNotEqual(self.sample("--seed", 6, model=model), first)
                for others in (["--batch", 1], ["--batch", 3], ["--batch", 16, "--threads", 3], ["--batch", 1000]):
                    self.assertEqual(self.sample("--seed", 5, *others, model=model), first, others)

    def test_grid(self):
        sixteen = [image for row in cells(self.sample()) for image in row]
        # Image i is the same in any grid.
        self.assertEqual(cells(self.sample("--count", 5)), [sixteen[:3], [*sixteen[3:5], b"\xff" * 45]])
        self.assertEqual(cells(self.sample("--count", 5, "--columns", 1)), [[image] for image in sixteen[:5]])
        self.assertEqual(cells(self.sample("--count", 2, "--columns", 9)), [sixteen[:2]])
        self.assertEqual(cells(self.sample("--count", 1)), [sixteen[:1]])

    def test_options_of_the_sampler(self):
        greedy = cells(self.sample("--temperature", 0, "--count", 2))
        self.assertEqual(greedy[0][0], greedy[0][1])
        self.assertEqual(cells(self.sample("--top-k", 1, "--count", 2, "--seed", 9)), greedy)
        self.assertEqual(cells(self.sample("--top-p", 1e-6, "--count", 2, "--seed", 9)), greedy)

    def test_completions_of_a_picture(self):
        values = bytes(range(0, 225, 5))
        (self.folder / "in.png").write_bytes(pictures.png(WIDTH, HEIGHT, 3, values))
        (row,) = cells(self.sample("--complete", "in.png", "--count", 4))
        upper = values[:2 * WIDTH * 3]  # of five rows, two
        self.assertEqual(len(row), 6)
        self.assertEqual(row[0], upper + b"\x80" * (45 - len(upper)))
        self.assertEqual(row[5], values)
        for image in row[1:5]:
            self.assertEqual(image[:len(upper)], upper)
        self.assertEqual(len(set(row[1:5])), 4)
        self.assertEqual(cells(self.sample("--complete", "in.png")), [[*row[:4], row[5]]])
        # The most likely completion of the most likely image is itself.
        ((best,),) = cells(self.sample("--temperature", 0, "--count", 1))
        (self.folder / "in.png").write_bytes(pictures.png(WIDTH, HEIGHT, 3, best))
        (row,) = cells(self.sample("--temperature", 0, "--count", 1, "--complete", "in.png"))
        self.assertEqual(row[1:], [best, best])

    def write_idx(self, name, *shape, values):
        header = struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape)
        (self.folder / "set" / name).write_bytes(header + values)

    def test_completions_of_a_data_set(self):
        model = self.write("attention", 1)
        (self.folder / "set").mkdir()
        images = [bytes(range(15 * i, 15 * i + 15)) for i in range(12)]
        for prefix, part in (("train", images[:1]), ("t10k", images[1:])):
            self.write_idx(f"{prefix}-images-idx3-ubyte", len(part), HEIGHT, WIDTH, values=b"".join(part))
            self.write_idx(f"{prefix}-labels-idx1-ubyte", len(part), values=bytes(len(part)))
        rows = cells(self.sample("--complete", "set", "--count", 1, model=model))
        self.assertEqual([row[2] for row in rows], images[1:9])
        for row in rows:
            self.assertEqual(row[1][:6], row[2][:6])
            self.assertEqual(row[0], row[2][:6] + b"\x80" * 9)
        first = self.sample("--complete", "set", "--images", 2, model=model)
        self.assertEqual([row[:2] for row in cells(first)], [row[:2] for row in rows[:2]])
        self.assertEqual(self.sample("--complete", "set", "--images", 2, "--batch", 1, model=model), first)
        self.assertEqual(len(cells(self.sample("--complete", "set", "--images", 99, model=model))), 11)
        self.assertIn("set: expected images of 5 x 3 pixels of 3 values, as the model draws, got 5 x 3 pixels of 1 ",
                      self.refused("sample", self.model, "--out", "a.png", "--complete", "set"))

    def test_what_it_says(self):
        done = self.aft("sample", self.model, "--out", "a.png")
        self.assertEqual((done.returncode, done.stdout), (0, b"a.png\n"))
        done = self.aft("sample", self.model, "--out", "b.png", "--json", "--count", 3)
        said = json.loads(done.stdout)
        self.assertEqual([said[key] for key in ("file", "height", "width", "images", "values")],
                         ["b.png", 2 * 6 + 1, 2 * 4 + 1, 3, 3 * 45])
        self.assertGreater(said["values_per_second"], 0)
        done = self.aft("sample", self.model, "--out", "/dev/stdout", "--json", "--count", 3)
        self.assertEqual(done.stdout, (self.folder / "b.png").read_bytes())
        text = self.aft("sample", "--help").stdout.decode()
        for option in ("--out", "--force", "--count", "--columns", "--complete", "--images", "--temperature", "--top-p",
                       "--top-k", "--seed", "--batch", "--threads", "--json", "Example:\n  aft sample "):
            self.assertIn(option, text)

    def test_a_terminal_sees_a_bar(self):
        ours, theirs = pty.openpty()
        with subprocess.Popen([AFT, "sample", self.model, "--out", self.folder / "a.png", "--count", "400"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs) as process:
            os.close(theirs)
            seen = b""
            try:
                while block := os.read(ours, 1 << 16):
                    seen += block
            except OSError:  # the terminal's other end is closed
                pass
            self.assertEqual(process.wait(timeout=60), 0)
        os.close(ours)
        self.assertRegex(seen.decode(), r"\r\x1b\[K +\d+% \[#*\.*\] \d+/18000 values  [\d.k]+ values/s  ETA \d+:\d\d")
        self.assertTrue(seen.endswith(b"\r\x1b[K"), "no bar is left behind")

    def test_nothing_is_replaced_unasked(self):
        (self.folder / "a.png").write_bytes(b"mine")
        self.assertIn("--out: a.png exists; replace it with --force",
                      self.refused("sample", self.model, "--out", "a.png"))
        self.assertIn("no/a.png", self.refused("sample", self.model, "--out", "no/a.png"))
        self.assertIn("got a folder", self.refused("sample", self.model, "--out", "."))
        self.assertEqual(self.aft("sample", self.model, "--out", "a.png", "--force").returncode, 0)
        self.assertEqual(len(cells((self.folder / "a.png").read_bytes())), 4)

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_a_full_disk_is_a_failure(self):
        done = self.aft("sample", self.model, "--out", "/dev/full")
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"No space left", done.stderr)

    def test_refusals(self):
        text = self.write("aft_local")
        self.assertIn("expected a model of kind pixel_lm, got a byte_lm; aft generate writes its texts",
                      self.refused("sample", text, "--out", "a.png"))
        self.assertIn("got a pixel_lm; aft sample draws its images", self.refused("generate", self.model))
        self.assertIn("--out", self.refused("sample", self.model))
        for option, bad in (("--count", -1), ("--columns", "x"), ("--batch", 0), ("--batch", 1025), ("--images", 0),
                            ("--temperature", -1), ("--top-p", 0), ("--top-k", -1), ("--seed", -1), ("--threads", -1)):
            self.assertIn(f"{option}: expected", self.refused("sample", self.model, "--out", "a.png", option, bad))
        self.assertIn("--complete", self.refused("sample", self.model, "--out", "a.png", "--images", 3))
        self.assertIn("--complete",
                      self.refused("sample", self.model, "--out", "a.png", "--columns", 3, "--complete", "x"))
        bad = {
            "missing.png": None,
            "text.png": b"This is no picture.",
            "wide.png": pictures.png(WIDTH + 1, HEIGHT, 3, bytes(60)),
            "grey.png": pictures.png(WIDTH, HEIGHT, 1, bytes(15)),
            "cut.png": pictures.png(WIDTH, HEIGHT, 3, bytes(45))[:-9],
        }
        for name, data in bad.items():
            if data is not None:
                (self.folder / name).write_bytes(data)
            self.assertIn(name, self.refused("sample", self.model, "--out", "a.png", "--complete", name))
        (self.folder / "empty").mkdir()
        self.assertIn("data_batch_1.bin", self.refused("sample", self.model, "--out", "a.png", "--complete", "empty"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
