"""Runs aft-train in the tests of this folder: a small text, a small recipe, and readers of what a run leaves."""

import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import unittest

RECIPE = """
[model]
layers = 2
channels = 16
mlp_channels = 32
context = 24

[mixer]
name = "aft_local"
window = 4
factor_channels = 4

[data]
path = "text.txt"
split = [0.8, 0.1, 0.1]

[train]
steps = 20
batch = 3
lr = 1e-2
warmup = 4
eval_every = 8
checkpoint_every = 5
log_every = 1
threads = 1
"""


def program():
    return os.environ["AFT_TRAIN"]


def text(size=4000):
    generator = random.Random(1)
    words = ["the ", "king ", "speaks ", "and ", "walks.\n", "O ", "who?\n"]
    out = ""
    while len(out) < size:
        out += generator.choice(words)
    return out[:size]


def read_safetensors(path):
    """(tensors: name -> (dtype, shape, bytes), metadata)"""
    data = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    body = data[8 + size :]
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], tuple(entry["shape"]), body[begin:end])
    return tensors, metadata


class ProgramTest(unittest.TestCase):
    """Each test has a folder of its own with text.txt and recipe.toml."""

    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        (self.folder / "text.txt").write_text(text())
        (self.folder / "recipe.toml").write_text(RECIPE)

    def command(self, run, *arguments, sets=()):
        words = [program(), "train", "recipe.toml", "--set", f"run.folder={run}"]
        for item in sets:
            words += ["--set", item]
        return words + list(arguments)

    def call(self, words, code=0, **options):
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True, timeout=120, check=False,
                              **options)
        if code is not None:  # any will do
            self.assertEqual(done.returncode, code, f"{words}\n{done.stdout}\n{done.stderr}")
        return done

    def train(self, run, *arguments, sets=(), code=0, **options):
        return self.call(self.command(run, *arguments, sets=sets), code, **options)

    def metrics(self, run):
        lines = (self.folder / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def checkpoint(self, run):
        return read_safetensors(self.folder / run / "checkpoint.safetensors")

    def step(self, run):
        return json.loads(self.checkpoint(run)[1]["state"])["step"]

    def assert_same_run(self, a, b):
        """Weights, moments, generator and best model bit for bit, and every metric that is no time."""
        first, second = self.checkpoint(a), self.checkpoint(b)
        self.assertEqual(first[0].keys(), second[0].keys())
        for name in first[0]:
            self.assertEqual(first[0][name], second[0][name], name)
        states = [json.loads(metadata["state"]) for _, metadata in (first, second)]
        for state in states:
            del state["seconds"]
        self.assertEqual(states[0], states[1])
        models = [(self.folder / run / "model.safetensors").read_bytes() for run in (a, b)]
        self.assertEqual(models[0], models[1])
        times = "tokens_per_second", "seconds"
        timeless = [[{key: value for key, value in line.items() if key not in times} for line in self.metrics(run)]
                    for run in (a, b)]
        self.assertEqual(timeless[0], timeless[1])
