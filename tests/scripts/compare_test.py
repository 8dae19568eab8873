"""scripts/compare: sizes, steps and results of a comparison of three mixers that trains next to nothing."""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import tomllib
import unittest

COMPARE = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "compare"
RECIPE = """
[model]
layers = 1
channels = 16
mlp_channels = 96
context = 24

[mixer]
name = "aft_local"
window = 5
factor_channels = 4

[data]
path = "text.txt"
split = [0.8, 0.2, 0.0]

[train]
steps = 6
batch = 2
warmup = 1
eval_every = 2
threads = 1
"""
OF_A_CLASSIFIER = '[model]\nmodel = "classifier"\n[data]\nformat = "idx"\npath = "none"\n'
OF_WIDTH = 2 * 16 + 1  # parameters of a channel of the MLP


class Compare(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        (self.folder / "recipe.toml").write_text(RECIPE)
        (self.folder / "text.txt").write_text("".join(random.Random(1).choices("to be or not", k=3000)))
        # A drawing takes gnuplot, and a second of every comparison.
        (self.folder / "trainer").write_text(f'#!/bin/sh\n[ "$1" = plot ] || exec {os.environ["AFT_TRAIN"]} "$@"\n')
        (self.folder / "trainer").chmod(0o755)

    def compare(self, *words, code=0):
        command = [sys.executable, COMPARE, "--recipe", "recipe.toml", "--out", "out", "--program", "./trainer",
                   "--timing-steps", "4", *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=300)
        self.assertEqual(done.returncode, code, done.stderr)
        return done

    def recipe(self, run):
        return tomllib.loads((self.folder / "out" / run / "recipe.toml").read_text())

    def test_size_time_and_results(self):
        mixers = ["aft_local", "aft_conv1d,heads=2", "synthesizer,weights=random"]
        words = ["--mixers", *mixers, "--rates", "1e-2", "1e-3"]
        summary = json.loads(self.compare(*words, "--json").stdout)
        self.assertEqual(summary, json.loads((self.folder / "out/summary.json").read_text()))
        self.assertEqual(list(summary), mixers)
        first = summary["aft_local"]
        self.assertEqual(first["steps"], 6)
        for mixer, row in summary.items():
            self.assertLessEqual(2 * abs(row["parameters"] - first["parameters"]), OF_WIDTH)
            # The same time: as many steps as the ratio of speeds says. Rates are printed to 0.001.
            self.assertAlmostEqual(row["steps"], 6 * row["steps_per_second"] / first["steps_per_second"], delta=0.51)
            bits = {}
            for rate in ("1e-2", "1e-3"):
                run = f"{mixer}-lr{rate}"
                lines = (self.folder / "out" / run / "metrics.jsonl").read_text().splitlines()
                bits[rate] = min(line["bits_per_byte"] for line in map(json.loads, lines) if line["split"] == "valid")
                self.assertEqual(self.recipe(run)["train"]["lr"], float(rate))
                self.assertEqual(self.recipe(run)["train"]["steps"], row["steps"])
            self.assertEqual(row["all_rates"], bits)
            self.assertEqual(row["bits_per_byte"], min(bits.values()))
            self.assertEqual(bits[row["best_rate"]], min(bits.values()))
        self.assertEqual(self.recipe("aft_local-lr1e-2")["model"]["mlp_channels"], 96)
        self.assertEqual(self.recipe(f"{mixers[1]}-lr1e-2")["mixer"],
                         {"name": "aft_conv1d", "heads": 2, "window": 5, "gate": "sigmoid"})
        self.assertEqual(self.recipe(f"{mixers[2]}-lr1e-2")["mixer"],
                         {"name": "synthesizer", "heads": 4, "weights": "random"})

        # Nothing of this is done again: the times, which no second run repeats, are the same.
        table = self.compare(*words, "--markdown").stdout.splitlines()
        self.assertEqual(summary, json.loads((self.folder / "out/summary.json").read_text()))
        self.assertEqual(table[0], "| mixer | parameters | steps | steps/s | best rate | bits per byte |")
        self.assertEqual(len(table), 5)
        self.assertTrue(table[2].startswith(f"| aft_local | {first['parameters']:,} | 6 |"), table[2])
        self.assertTrue(table[4].startswith("| synthesizer, weights=random |"), table[4])

    def test_every_causal_mixer_and_seconds(self):
        done = self.compare("--mixers", "--rates", "1e-2", "--seconds", "1e-6", "--set", "data.split=[0.5, 0.5, 0]")
        names = {line.split()[0]: line.split() for line in done.stdout.splitlines()[1:-1]}
        self.assertEqual(next(iter(names)), "aft_local")
        for name in ("aft_simple", "aft_conv1d", "aft_full", "attention", "linear_attention", "sliding_window",
                     "synthesizer"):
            self.assertEqual(names[name][2], "1")  # steps
        self.assertNotIn("linformer", names)
        self.assertNotIn("mlp_mixer", names)
        self.assertEqual(self.recipe("attention-lr1e-2")["data"]["split"], [0.5, 0.5, 0])

    def test_bad_input(self):
        self.assertIn("a causal mixer", self.compare("--mixers", "aft_local", "linformer", code=1).stderr)
        self.assertIn("no such option", self.compare("--mixers", "aft_local,heads=2", code=1).stderr)
        self.assertIn("expected KEY=VALUE", self.compare("--mixers", "aft_local,heads", code=2).stderr)
        without = self.compare("--set", "data.split=[1.0, 0.0, 0.0]", "--set", "train.eval_every=0", code=1)
        self.assertIn("validation data", without.stderr)
        (self.folder / "recipe.toml").write_text(OF_A_CLASSIFIER)
        self.assertIn("language model", self.compare(code=1).stderr)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main()
