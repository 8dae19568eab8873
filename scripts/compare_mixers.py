#!/usr/bin/env python3
"""Trains one recipe with several mixers, each for the same time and at each of the same learning rates.

Same size: where a mixer has parameters of its own (the position factors of aft_local), the others get as many more in
their MLP. Same time: each mixer's speed is measured first, and its number of steps chosen so that a run takes --seconds;
the schedule so fits every run. Prints a table and draws the best run of each mixer in one plot.

    scripts/compare_mixers.py recipes/quickstart.toml --seconds 200
"""

import argparse
import json
import pathlib
import subprocess
import sys


def run(words):
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"failed with exit code {done.returncode}: {' '.join(map(str, words))}")
    return done.stdout


def set_options(values):
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


class Comparison:
    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = pathlib.Path(arguments.out)

    def train(self, name, values, *options):
        """Trains into a folder of that name and returns its metrics."""
        values = dict(values, **{"run.folder": self.folder / name})
        run([self.arguments.program, "train", self.arguments.recipe, "--force", *set_options(values), *options])
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]

    def dry_run(self, values):
        """Parameters and resolved recipe, without training."""
        words = [self.arguments.program, "train", self.arguments.recipe, "--dry-run", "--json"]
        return json.loads(run(words + set_options(values)))

    def sizes(self):
        """For each mixer the keys that make all models the same size, and the size."""
        counts = {mixer: self.dry_run({"model.mixer": mixer})["parameters"] for mixer in self.arguments.mixers}
        values = {}
        for mixer, count in counts.items():
            recipe = self.dry_run({"model.mixer": mixer})["recipe"]
            width = int(next(line for line in recipe.splitlines() if line.startswith("mlp_channels")).split("=")[1])
            wider = {"model.mixer": mixer, "model.mlp_channels": width + 1}
            per_channel = self.dry_run(wider)["parameters"] - count
            values[mixer] = dict(wider, **{"model.mlp_channels": width + round((max(counts.values()) - count) / per_channel)})
        return {mixer: (keys, self.dry_run(keys)["parameters"]) for mixer, keys in values.items()}

    def steps_per_second(self, name, keys):
        """Steps per second of training alone, after a warm-up; evaluation is not counted."""
        short = dict(keys, **{"train.steps": 200, "train.log_every": 20, "train.eval_every": 0, "train.warmup": 0})
        metrics = self.train(f"{name}-speed", short, "--until", 100)
        rates = sorted(line["tokens_per_second"] for line in metrics if line["split"] == "train")[1:]
        tokens_per_step = metrics[-1]["tokens"] / metrics[-1]["step"]
        return rates[len(rates) // 2] / tokens_per_step

    def compare(self):
        best = {}
        print(f"{'mixer':<12} {'parameters':>10} {'lr':>8} {'steps':>7} {'steps/s':>8} {'bits/byte':>10}")
        for mixer, (keys, parameters) in self.sizes().items():
            rate = self.steps_per_second(mixer, keys)
            steps = max(10, int(self.arguments.seconds * rate))
            for lr in self.arguments.lrs:
                name = f"{mixer}-{lr}"
                every = {"train.steps": steps, "train.lr": lr, "train.eval_every": max(1, steps // 8)}
                metrics = self.train(name, dict(keys, **every))
                bits = min(line["bits_per_byte"] for line in metrics if line["split"] == "valid")
                print(f"{mixer:<12} {parameters:>10} {lr:>8} {steps:>7} {rate:>8.2f} {bits:>10.4f}", flush=True)
                if mixer not in best or bits < best[mixer][0]:
                    best[mixer] = (bits, lr, self.folder / name)
        for mixer, (bits, lr, _) in best.items():
            print(f"best {mixer}: {bits:.4f} bits per byte at lr {lr}")
        png = self.folder / "compare.png"
        runs = [folder for _, _, folder in best.values()]
        run([self.arguments.program, "plot", *runs, "--x", "seconds", "--out", png])
        print(png)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--mixers", nargs="+", default=["aft_local", "attention"])
    parser.add_argument("--lrs", nargs="+", default=["1e-3", "3e-3", "6e-3"], help="the same for every mixer")
    parser.add_argument("--seconds", type=float, default=200, help="training time of each run")
    parser.add_argument("--out", default="runs/compare", help="folder for the runs and the plot")
    parser.add_argument("--program", default="build/bin/aft-train")
    Comparison(parser.parse_args()).compare()


if __name__ == "__main__":
    main()
