"""Training that begins with the weights of another run: train.init and train.init_skip."""

import json
import struct
import tomllib
import unittest

from program import ProgramTest, program, read_safetensors


def floats(data):
    return [value for (value,) in struct.iter_unpack("<f", data)]


class InitFrom(ProgramTest):
    def start(self, out, sets, code=0):
        """The model as it is before training."""
        words = [program(), "init", "recipe.toml", "--out", out]
        for item in sets:
            words += ["--set", item]
        done = self.call(words, code)
        return read_safetensors(self.folder / out)[0] if code == 0 else done.stderr

    def test_begins_with_the_weights_of_the_run(self):
        self.train("base")
        base = read_safetensors(self.folder / "base/model.safetensors")[0]
        for source in ("base", "base/model.safetensors"):
            self.assertEqual(base, self.start(f"from-{source.replace('/', '-')}", [f"train.init={source}"]))
        checkpoint = self.checkpoint("base")[0]
        for name, value in self.start("last", ["train.init=base/checkpoint.safetensors"]).items():
            self.assertEqual(value, checkpoint["weights." + name])
        # The training itself begins there too: at a loss that it took the base 20 steps to reach.
        stderr = self.train("tuned", sets=["train.init=base"]).stderr
        self.assertIn("beginning with the weights of base", stderr)
        first = self.metrics("tuned")[0]["bits_per_byte"]
        self.assertLess(first, self.metrics("base")[9]["bits_per_byte"])
        recorded = tomllib.loads((self.folder / "tuned/recipe.toml").read_text())["train"]["init"]
        self.assertEqual(recorded, str(self.folder / "base"))

    def test_skipped_tensors_stay_as_they_are_initialised(self):
        self.train("base")
        base = read_safetensors(self.folder / "base/model.safetensors")[0]
        fresh = self.start("fresh", ["train.seed=7"])
        mixed = self.start("mixed", ["train.seed=7", "train.init=base", 'train.init_skip=["head.*", "*.mlp.up.*"]'])
        for name, value in mixed.items():
            skipped = name.startswith("head.") or ".mlp.up." in name
            self.assertEqual(value, (fresh if skipped else base)[name], name)

    def test_a_longer_context_extends_the_tables(self):
        self.train("base")
        base = read_safetensors(self.folder / "base/model.safetensors")[0]
        fresh = self.start("fresh", ["model.context=40"])
        longer = self.start("longer", ["model.context=40", "train.init=base"])
        extended = 0
        for name, (_, shape, data) in longer.items():
            known = base[name][2]
            self.assertEqual(data[: len(known)], known, name)
            self.assertEqual(data[len(known) :], fresh[name][2][len(known) :], name)
            extended += shape != base[name][1]
        self.assertEqual(extended, 5)  # the position embedding, and u and v of two layers
        self.assertIn("embedding.position.weight has shape [24, 16], expected [12, 16]",
                      self.start("shorter", ["model.context=12", "train.init=base"], 2))

    def test_what_does_not_fit_is_in_one_report_before_anything_is_written(self):
        self.train("base", sets=["mixer.name=aft_conv1d", "mixer.window=3"])
        stderr = self.train("run", sets=["train.init=base", "model.mlp_channels=48"], code=2).stderr
        self.assertIn("train.init: ", stderr)
        self.assertIn("blocks.0.mixer.u is missing", stderr)
        self.assertIn("blocks.0.mlp.up.weight has shape [32, 16], expected [48, 16]", stderr)
        self.assertIn("blocks.0.mixer.gamma does not belong to the model", self.train(
            "run", sets=["train.init=base", 'train.init_skip=["*.mlp.*", "*.u", "*.v", "*.qkv.*"]'], code=2).stderr)
        self.assertIn('"haed.*" matches no tensor', self.train(
            "run", sets=["train.init=base", 'train.init_skip=["haed.*"]'], code=2).stderr)
        self.assertIn("train.init: ", self.train("run", sets=["train.init=none"], code=2).stderr)
        self.assertIn("train.init_skip: expected", self.train(
            "run", sets=['train.init_skip=["head.*"]'], code=2).stderr)
        self.assertFalse((self.folder / "run").exists())

    def test_a_run_may_be_replaced_by_one_that_begins_with_its_weights(self):
        self.train("run")
        last = self.metrics("run")[-1]["bits_per_byte"]
        self.train("run", "--force", sets=["train.init=run"])
        self.assertLess(self.metrics("run")[-1]["bits_per_byte"], last)

    def test_resumes_without_the_model_it_began_with(self):
        self.train("base")
        sets = ["train.init=base", "model.dropout=0.1"]
        self.train("whole", sets=sets)
        self.train("parts", "--until", "9", sets=sets)
        (self.folder / "base").rename(self.folder / "moved")
        self.train("parts", "--resume", sets=sets)
        self.assert_same_run("whole", "parts")
        state = json.loads(self.checkpoint("parts")[1]["state"])
        self.assertEqual(state["step"], 20)


if __name__ == "__main__":
    unittest.main()
