"""Where and in what precision a run computes: train.device, train.precision and eval --device.

The CUDA half needs a GPU and an aft built for it; without them it is skipped and says why."""

import json
import math
import os
import re
import shutil
import struct
import unittest

from program import ProgramTest, program

MIXERS = "aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"
WINDOWED = "aft_local", "aft_conv1d"


def floats(data):
    return [value for (value,) in struct.iter_unpack("<f", data)]


class DeviceTest(ProgramTest):
    def eval(self, run, *arguments, code=0):
        done = self.call([program(), "eval", run, "--json", *arguments], code)
        return json.loads(done.stdout)["bits_per_byte"] if code == 0 else done.stderr

    def losses(self, run, split="train"):
        return [line["bits_per_byte"] for line in self.metrics(run) if line["split"] == split]

    def assert_learns(self, run):
        losses = self.losses(run)
        self.assertLess(losses[-1], losses[0] - 1.5, run)
        for name, (dtype, _, data) in self.checkpoint(run)[0].items():
            if name == "generator":
                continue
            self.assertEqual(dtype, "F32", name)  # whatever the precision
            self.assertTrue(all(map(math.isfinite, floats(data))), name)

    def check_resume(self, sets, mixers=MIXERS):
        """A run in two parts is the whole run."""
        for mixer in mixers:
            both = [*sets, f"mixer.name={mixer}"]
            self.train(f"{mixer}-whole", sets=both)
            self.train(f"{mixer}-parts", "--until", "7", sets=both)
            self.train(f"{mixer}-parts", "--resume", sets=both)
            self.assert_same_run(f"{mixer}-whole", f"{mixer}-parts")
            self.assert_learns(f"{mixer}-whole")


class Refusals(DeviceTest):
    """A device that is not there is an error before anything is written."""

    def test_names(self):
        for name in ("gpu", "auto", "cuda:x", "cuda:128"):
            failed = self.train("run", sets=[f"train.device={name}"], code=2)
            self.assertIn(f"train.device: expected cpu, cuda or cuda:N with N from 0 to 127, got {name}", failed.stderr)
        failed = self.train("run", sets=["train.precision=f16"], code=2)
        self.assertIn("train.precision: expected f32 or bf16, got f16", failed.stderr)
        self.assertFalse((self.folder / "run").exists())

    def test_a_device_that_is_not_there(self):
        # Nowhere are there 128 of them. Which of the reasons holds depends on the machine.
        failed = self.train("run", sets=["train.device=cuda:127"], code=2)
        self.assertRegex(failed.stderr, r"train\.device: expected cpu.*, as .*, got cuda:127; set ")
        self.assertFalse((self.folder / "run").exists())
        self.train("run")
        before = {path.name: path.read_bytes() for path in (self.folder / "run").iterdir()}
        for option in ("--resume", "--force"):
            self.train("run", option, sets=["train.device=cuda:127"], code=2)
        self.assertEqual(before, {path.name: path.read_bytes() for path in (self.folder / "run").iterdir()})
        failed = self.eval("run", "--device", "cuda:127", code=2)
        self.assertRegex(failed, r"--device: expected cpu.*, as .*, got cuda:127; set ")
        self.assertIn("--device: expected cpu, cuda or cuda:N", self.eval("run", "--device", "gpu", code=2))

    def test_what_needs_no_device(self):
        sets = ["train.device=cuda:127"]
        self.assertIn("on cuda:127", self.train("run", "--dry-run", sets=sets).stdout)
        words = [program(), "init", "recipe.toml", "--out"]
        self.call([*words, "there.safetensors", "--set", *sets])
        self.call([*words, "here.safetensors"])
        self.assertEqual(*((self.folder / f"{name}.safetensors").read_bytes() for name in ("there", "here")))


class Bf16(DeviceTest):
    def test_resume(self):
        self.check_resume(["train.precision=bf16", "model.dropout=0.1", "train.accumulate=2"])

    def test_resume_in_chunks(self):
        self.check_resume(["train.precision=bf16", "train.chunk=7"])

    def test_it_is_another_run_than_f32_and_its_model_is_f32(self):
        self.train("wide")
        self.train("narrow", sets=["train.precision=bf16"])
        self.assertNotEqual(self.losses("wide"), self.losses("narrow"))
        for a, b in zip(self.losses("wide"), self.losses("narrow"), strict=True):
            self.assertAlmostEqual(a, b, delta=0.05)
        failed = self.train("narrow", "--resume", code=2)
        self.assertIn('train.precision: the run to resume has "bf16", the recipe says "f32"', failed.stderr)
        # What the validation measures is what the model file gives to whoever reads it.
        self.assertAlmostEqual(self.eval("narrow"), min(self.losses("narrow", "valid")), places=6)


def why_no_cuda():
    """Why there is no CUDA device to train on, as aft-train gives it; nothing if there is one, or must be one."""
    test = DeviceTest()
    test.setUp()
    try:
        failed = test.train("run", sets=["train.device=cuda", "train.steps=4"], code=None)
    finally:
        test.doCleanups()
    refused = failed.returncode == 2 and "train.device: expected" in failed.stderr
    return failed.stderr.strip() if refused and os.environ.get("AFT_TEST_BACKEND") != "cuda" else ""


WHY_NO_CUDA = why_no_cuda()


@unittest.skipIf(WHY_NO_CUDA, WHY_NO_CUDA)
class Cuda(DeviceTest):
    CUDA = ("train.device=cuda",)

    def test_resume_in_f32(self):
        self.check_resume([*self.CUDA, "model.dropout=0.1", "train.accumulate=2"])

    def test_resume_in_bf16(self):
        self.check_resume([*self.CUDA, "train.precision=bf16", "model.dropout=0.1", "train.log_every=3"])

    def test_resume_in_chunks(self):
        self.check_resume([*self.CUDA, "train.chunk=9", "train.accumulate=2"])
        shutil.rmtree(self.folder / "aft_local-whole")
        shutil.rmtree(self.folder / "aft_local-parts")
        self.check_resume([*self.CUDA, "train.chunk=9", "train.precision=bf16"], ["aft_local"])

    def test_resume_of_larger_batches(self):
        # Above the sizes at which LibTorch's kernels work in one block.
        sets = [*self.CUDA, "train.batch=64", "model.channels=64", "model.context=128"]
        for mixer in MIXERS:
            window = ["mixer.window=32"] if mixer in WINDOWED else []
            for precision in "f32", "bf16":
                self.check_resume([*sets, *window, f"train.precision={precision}"], [mixer])
                for run in self.folder.glob("*-*"):
                    shutil.rmtree(run)

    def test_it_trains_as_the_cpu_does(self):
        for mixer in MIXERS:
            for sets in ([], ["train.chunk=9"]):
                self.train("cpu", "--force", sets=[f"mixer.name={mixer}", *sets])
                self.train("gpu", "--force", sets=[f"mixer.name={mixer}", *sets, *self.CUDA])
                cpu, gpu = self.losses("cpu"), self.losses("gpu")
                self.assertAlmostEqual(cpu[0], gpu[0], places=4, msg=mixer)  # the same weights, the same windows
                for a, b in zip(cpu, gpu, strict=True):
                    self.assertAlmostEqual(a, b, delta=0.02, msg=mixer)
                self.assertAlmostEqual(self.losses("cpu", "test")[0], self.losses("gpu", "test")[0], delta=0.02)

    def test_how_often_it_logs_changes_no_bit(self):
        self.train("often", sets=[*self.CUDA, "train.log_every=1"])
        self.train("seldom", sets=[*self.CUDA, "train.log_every=7"])
        self.assertEqual(self.checkpoint("often")[0], self.checkpoint("seldom")[0])
        often = self.losses("often")
        for line in self.metrics("seldom"):
            if line["split"] == "train":
                since = often[(line["step"] - 1) // 7 * 7 : line["step"]]
                self.assertAlmostEqual(line["bits_per_byte"], sum(since) / len(since), places=12)

    def test_checkpoints_move_between_devices(self):
        for mixer in MIXERS:
            for first, then in (("cpu", "cuda"), ("cuda", "cpu")):
                sets = [f"mixer.name={mixer}", "train.schedule=constant"]
                self.train("run", "--force", "--until", "10", sets=[*sets, f"train.device={first}"])
                shutil.rmtree(self.folder / "stays", ignore_errors=True)
                shutil.copytree(self.folder / "run", self.folder / "stays")
                for run, device in (("stays", first), ("run", then)):
                    self.train(run, "--resume", "--until", "11", sets=[*sets, f"train.device={device}"])
                # One step later the two differ by rounding alone, moments and weights.
                stays, moved = self.checkpoint("stays")[0], self.checkpoint("run")[0]
                self.assertEqual({"cpu": 5056, "cuda": 16}[then], len(moved["generator"][2]))
                for part, bound in (("first_moment.", 1e-5), ("second_moment.", 1e-6), ("weights.", 1e-2)):
                    names = [name for name in stays if name.startswith(part)]
                    largest = max(abs(a - b) for name in names
                                  for a, b in zip(floats(stays[name][2]), floats(moved[name][2]), strict=True))
                    self.assertLess(largest, bound, f"{mixer} {first} {then} {part}")
                self.train("run", "--resume", sets=[*sets, f"train.device={then}"])
                self.assertEqual(self.step("run"), 20)
                self.assert_learns("run")

    def test_dropout_draws_anew_after_a_move(self):
        sets = ["model.dropout=0.1"]
        self.train("run", "--until", "10", sets=sets)
        note = self.train("run", "--resume", sets=[*sets, *self.CUDA]).stderr
        self.assertIn("dropout draws other numbers", note)

    def test_eval_on_either_device(self):
        for mixer in MIXERS:
            # Contexts above 32,768 are walked in chunks there.
            self.train("run", "--force", sets=[f"mixer.name={mixer}", "train.steps=4"])
            self.assertAlmostEqual(self.eval("run"), self.eval("run", "--device", "cuda:0"), places=5, msg=mixer)

    def test_not_finite_is_named_and_not_saved(self):
        sets = [*self.CUDA, "train.lr=1e30", "train.warmup=0", "train.schedule=constant", "train.clip=0",
                "train.eval_every=0", "train.weight_decay=0"]
        often = self.train("often", sets=[*sets, "train.checkpoint_every=1"], code=1).stderr
        self.assertRegex(often, r"step \d+: .*not finite, first in ")
        self.assertIn("last good checkpoint is step", often)
        for name, (dtype, _, data) in self.checkpoint("often")[0].items():
            self.assertTrue(dtype != "F32" or all(map(math.isfinite, floats(data))), name)
        # Read much later, it is still the first step that went wrong, and the same tensor.
        seldom = self.train("seldom", sets=[*sets, "train.checkpoint_every=0", "train.log_every=20"], code=1).stderr
        self.assertEqual(*(re.search(r"aft-train: train: (step \d+: [^;]*)", text)[1] for text in (often, seldom)))
        self.assertFalse((self.folder / "seldom/model.safetensors").exists())

    def test_out_of_memory_names_the_device_and_the_keys_to_lower(self):
        failed = self.train("run", sets=[*self.CUDA, "train.batch=1000000", "model.context=3000"], code=1)
        self.assertIn("out of memory on cuda:0", failed.stderr)
        for key in ("train.batch", 'train.precision = "bf16"'):
            self.assertIn(key, failed.stderr)
        self.assertLess(len(failed.stderr.splitlines()), 5)

    def test_the_outcome_says_how_much_memory_it_took(self):
        outcome = json.loads(self.train("run", "--json", sets=self.CUDA).stdout)
        state = json.loads(self.train("run", "--dry-run", "--json", sets=self.CUDA).stdout)["state_bytes"]
        self.assertGreater(outcome["device_bytes"], state)
        self.assertLess(outcome["device_bytes"], 1 << 30)


if __name__ == "__main__":
    if WHY_NO_CUDA:
        print(f"no CUDA tests: {WHY_NO_CUDA}")
    unittest.main()
