"""What earlier versions of aft-train left (format 1): eval and plot read it, and resuming it is refused."""

import json
import re
import struct
import unittest

from program import ProgramTest, read_safetensors


def write_safetensors(path, tensors, metadata):
    header, body = {"__metadata__": metadata}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


class OldRun(ProgramTest):
    def setUp(self):
        super().setUp()
        self.train("run")
        run = self.folder / "run"
        for file in ("model.safetensors", "checkpoint.safetensors"):
            tensors, metadata = read_safetensors(run / file)
            config = json.loads(metadata["config"])
            mixer = config.pop("mixer")
            metadata["config"] = json.dumps({**config, "mixer": mixer["name"], "heads": 2, "window": mixer["window"],
                                             "factor_channels": mixer["factor_channels"]})
            metadata["format_version"] = "1"
            if file == "checkpoint.safetensors":
                state = json.loads(metadata["state"])
                state = {key: value for key, value in state.items() if not key.startswith("logged")}
                metadata["state"] = json.dumps({**state, "loss_sum": 0.0, "loss_count": 0})
            write_safetensors(run / file, tensors, metadata)
        recipe = (run / "recipe.toml").read_text()
        recipe = re.sub(r"\[mixer\]\n(.*\n)+?\n", "", recipe)
        options = 'mixer = "aft_local"\nheads = 2\nwindow = 4\nfactor_channels = 4\n'
        recipe = recipe.replace("[model]\n", "[model]\n" + options)
        (run / "recipe.toml").write_text(re.sub(r"loaders = .*\n", "", recipe))
        lines = [{key: value for key, value in line.items() if key != "loss"} for line in self.metrics("run")]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def test_eval_and_plot_read_it(self):
        best = min(line["bits_per_byte"] for line in self.metrics("run") if line["split"] == "valid")
        done = self.call([self.command("x")[0], "eval", "run", "--json"])
        self.assertAlmostEqual(json.loads(done.stdout)["bits_per_byte"], best, places=6)
        (self.folder / "run" / "loss.png").unlink(missing_ok=True)
        self.call([self.command("x")[0], "plot", "run"])
        self.assertTrue((self.folder / "run" / "loss.png").read_bytes().startswith(b"\x89PNG"))

    def test_its_weights_begin_another_run(self):
        done = self.train("next", sets=["train.init=run"])
        self.assertIn("beginning with the weights of run", done.stderr)

    def test_resuming_it_is_refused_with_the_reason(self):
        before = {path.name: path.read_bytes() for path in (self.folder / "run").iterdir()}
        failed = self.train("run", "--resume", sets=["train.steps=40"], code=2)
        self.assertIn("begun by an earlier version of aft", failed.stderr)
        self.assertIn("train.init", failed.stderr)
        self.assertEqual({path.name: path.read_bytes() for path in (self.folder / "run").iterdir()}, before)


if __name__ == "__main__":
    unittest.main()
