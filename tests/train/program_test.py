"""aft-train as its user meets it: files of a run, exit codes, errors, evaluation, curves."""

import json
import math
import os
import pathlib
import pty
import resource
import shutil
import struct
import subprocess
import unittest

from program import ProgramTest, program, read_safetensors


class Train(ProgramTest):
    def test_run_folder_holds_what_it_should(self):
        self.train("run", "--json")
        metrics = self.metrics("run")
        self.assertEqual([line["step"] for line in metrics if line["split"] == "train"], list(range(1, 21)))
        self.assertEqual([line["step"] for line in metrics if line["split"] == "valid"], [8, 16, 20])
        self.assertEqual([line["step"] for line in metrics if line["split"] == "test"], [20])
        for line in metrics:
            for key in ("step", "split", "loss", "bits_per_byte", "tokens", "tokens_per_second", "lr", "seconds"):
                self.assertIn(key, line)
            self.assertEqual(line["tokens"], line["step"] * 3 * 24)
        self.assertLess(metrics[-1]["bits_per_byte"], 5)
        if shutil.which("gnuplot"):
            self.assertTrue((self.folder / "run/loss.png").read_bytes().startswith(b"\x89PNG"))
        tensors, metadata = read_safetensors(self.folder / "run/model.safetensors")
        self.assertEqual(metadata["format"], "aft")
        self.assertEqual(metadata["format_version"], "2")
        self.assertEqual(json.loads(metadata["config"])["channels"], 16)
        self.assertEqual(tensors["blocks.1.mixer.u"][:2], ("F32", (24, 4)))
        left = {path.name for path in (self.folder / "run").iterdir()} - {"loss.png"}
        self.assertEqual(left, {"recipe.toml", "metrics.jsonl", "checkpoint.safetensors", "model.safetensors"})

    def test_resolved_recipe_reproduces_the_run(self):
        self.train("run", sets=["train.lr=3e-3", "model.dropout=0.1"])
        words = [program(), "train", "run/recipe.toml", "--set", "run.folder=again"]
        self.call(words)
        self.assert_same_run("run", "again")

    def test_best_model_by_validation_is_kept(self):
        # A far too high rate after a good start: later validations are worse.
        self.train("run", sets=["train.schedule=constant", "train.lr=0.3", "train.warmup=18", "train.eval_every=2"])
        valid = [line["bits_per_byte"] for line in self.metrics("run") if line["split"] == "valid"]
        self.assertLess(min(valid), valid[-1])
        done = self.call([program(), "eval", "run", "--json"])
        self.assertAlmostEqual(json.loads(done.stdout)["bits_per_byte"], min(valid), places=6)

    def test_without_validation_the_last_model_is_kept(self):
        self.train("run", sets=["data.split=[1, 0, 0]", "train.eval_every=0"])
        model, _ = read_safetensors(self.folder / "run/model.safetensors")
        checkpoint, _ = self.checkpoint("run")
        for name, value in model.items():
            self.assertEqual(value, checkpoint["weights." + name])

    def test_existing_folder_needs_force_or_resume(self):
        self.train("run")
        (self.folder / "run/notes.txt").write_text("mine")
        before = (self.folder / "run/checkpoint.safetensors").read_bytes()
        failed = self.train("run", sets=["train.seed=2"], code=2)
        self.assertIn("--resume", failed.stderr)
        self.assertIn("--force", failed.stderr)
        self.assertEqual(before, (self.folder / "run/checkpoint.safetensors").read_bytes())
        self.train("run", "--force", sets=["train.seed=2"])
        self.assertNotEqual(before, (self.folder / "run/checkpoint.safetensors").read_bytes())
        self.assertEqual((self.folder / "run/notes.txt").read_text(), "mine")
        self.train("run", "--force", "--resume", code=2)

    def test_dry_run_trains_nothing(self):
        done = self.train("run", "--dry-run")
        self.assertIn("# parameters: ", done.stdout)
        self.assertIn("# memory: ", done.stdout)
        self.assertIn("warmup = 4", done.stdout)
        self.assertFalse((self.folder / "run").exists())
        (self.folder / "resolved.toml").write_text(done.stdout)
        again = self.call([program(), "train", "resolved.toml", "--dry-run"])
        self.assertEqual(done.stdout, again.stdout)
        outcome = json.loads(self.train("run", "--dry-run", "--json").stdout)
        self.train("run")
        tensors, _ = read_safetensors(self.folder / "run/model.safetensors")
        self.assertEqual(outcome["parameters"], sum(math.prod(shape) for _, shape, _ in tensors.values()))

    def test_profile_is_a_trace_of_five_steps(self):
        self.train("run", "--profile", "trace.json")
        names = [event["name"] for event in json.loads((self.folder / "trace.json").read_text())["traceEvents"]
                 if event.get("cat") == "cpu_op"]
        self.assertEqual(names.count("aten::cross_entropy_loss"), 5)
        self.assertGreater(len([name for name in names if name.startswith("aft::window")]), 0)
        before = (self.folder / "trace.json").read_bytes()
        failed = self.train("again", "--profile", "trace.json", code=2)
        self.assertIn("--profile: trace.json exists", failed.stderr)
        self.assertFalse((self.folder / "again").exists())
        self.assertEqual((self.folder / "trace.json").read_bytes(), before)
        self.train("plain")
        self.assert_same_run("run", "plain")

    def test_bad_input_is_exit_code_2(self):
        self.assertIn("did you mean train.steps?", self.train("run", sets=["train.step=3"], code=2).stderr)
        self.assertIn("train.lr: expected", self.train("run", sets=["train.lr=-1"], code=2).stderr)
        self.assertIn("no such file", self.train("run", sets=["data.path=none"], code=2).stderr)
        self.assertIn("context + 1", self.train("run", sets=["model.context=5000"], code=2).stderr)
        self.assertIn("run.folder", self.train("text.txt", code=2).stderr)
        self.call([program(), "train", "none.toml"], 2)
        self.call([program(), "train", "."], 2)
        self.call([program(), "train"], 2)
        self.call([program(), "trian"], 2)
        self.call([program(), "train", "recipe.toml", "--set"], 2)
        self.call([program()], 2)
        self.assertFalse((self.folder / "run").exists())

    def test_option_values_and_mistyped_words(self):
        self.assertIn("did you mean train?", self.call([program(), "trian"], 2).stderr)
        self.assertIn("did you mean --resume?", self.train("run", "--resum", code=2).stderr)
        self.assertIn("a b c", self.train("run", "a", "b", "c", code=2).stderr)
        for value in ("", "010x", "-1", "99999999999999999999", "1e3"):
            self.assertIn("--until: expected", self.train("run", "--until", value, code=2).stderr)
        self.assertIn("--split: expected", self.call([program(), "eval", "run", "--split", "validd"], 2).stderr)
        self.assertIn("--threads: expected", self.call([program(), "eval", "run", "--threads", "0x1"], 2).stderr)
        self.assertIn("--x: expected", self.call([program(), "plot", "run", "--x="], 2).stderr)
        self.assertFalse((self.folder / "run").exists())
        self.train("run", "--until=010")
        self.assertEqual(self.step("run"), 10)

    def test_exit_codes(self):
        """The table of docs/cli.md: 1 where the system fails, 2 for bad input."""

        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

        init = [program(), "init", "recipe.toml", "--out"]
        self.assertIn("File too large", self.call([*init, "m.safetensors"], 1, preexec_fn=small_files).stderr)
        self.assertEqual({path.name for path in self.folder.iterdir()}, {"text.txt", "recipe.toml"})
        self.call([*init, "none/m.safetensors"], 2)
        self.call([*init, "."], 2)
        if os.path.exists("/dev/full"):
            self.assertIn("No space left", self.call([*init, "/dev/full"], 1).stderr)
        if shutil.which("gnuplot"):
            self.train("run")
            self.call([program(), "plot", "run", "--out", "loss.png"], 1, preexec_fn=small_files)

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_lost_output_is_a_failure(self):
        self.train("run")
        commands = [["--help"], ["--version"], ["train", "--help"], ["eval", "run"],
                    ["init", "recipe.toml", "--out", "m", "--force"], ["train", "recipe.toml", "--dry-run"]]
        if shutil.which("gnuplot"):
            commands.append(["plot", "run", "--out", "loss.png", "--force"])
        for words in commands:
            with self.subTest(words=words), open("/dev/full", "wb") as full:
                done = subprocess.run([program(), *words], cwd=self.folder, stdout=full, stderr=subprocess.PIPE,
                                      timeout=120, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"standard output", done.stderr)
            with self.subTest(closed=words):
                done = subprocess.run([program(), *words], cwd=self.folder, stderr=subprocess.PIPE, timeout=120,
                                      check=False, preexec_fn=lambda: os.close(1))
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"standard output", done.stderr)
        # What was to be printed did not go to the file that took the place of the closed standard output.
        self.call([program(), "init", "recipe.toml", "--out", "again"])
        self.assertEqual((self.folder / "m").read_bytes(), (self.folder / "again").read_bytes())

    def test_out_is_written_through_links_and_into_streams(self):
        (self.folder / "sub").mkdir()
        (self.folder / "link").symlink_to("sub/model")
        self.call([program(), "init", "recipe.toml", "--out", "link"])
        self.assertTrue((self.folder / "link").is_symlink())
        self.assertIn("head.weight", read_safetensors(self.folder / "sub/model")[0])
        piped = subprocess.run([program(), "init", "recipe.toml", "--out", "/dev/stdout"], cwd=self.folder,
                               stdout=subprocess.PIPE, timeout=120, check=True).stdout
        self.assertEqual(piped, (self.folder / "sub/model").read_bytes())  # and nothing else
        with open(self.folder / "redirected", "wb") as file:
            subprocess.run([program(), "init", "recipe.toml", "--out", "/dev/stdout", "--force"], cwd=self.folder,
                           stdout=file, timeout=120, check=True)
        self.assertEqual(piped, (self.folder / "redirected").read_bytes())
        os.mkfifo(self.folder / "fifo")
        with subprocess.Popen(["cat", "fifo"], cwd=self.folder, stdout=subprocess.PIPE) as reader:
            self.call([program(), "init", "recipe.toml", "--out", "fifo"])
            self.assertEqual(reader.stdout.read(), (self.folder / "sub/model").read_bytes())
        self.assertTrue((self.folder / "fifo").is_fifo())
        self.call([program(), "init", "recipe.toml", "--out", "/dev/null"])
        self.assertFalse(os.path.isfile("/dev/null"))

    def test_help_has_examples(self):
        for name in ("train", "eval", "plot", "init"):
            self.assertIn("Example: aft-train " + name, self.call([program(), name, "--help"]).stdout)
        self.assertRegex(self.call([program(), "--version"]).stdout,
                         r"^aft-train \d+\.\d+\.\d+\n"
                         r"CUDA kernels: (none, built without CUDA|compiled for .+)\ndevices: cpu(, cuda:.+)?\n$")

    def test_non_finite_stops_and_leaves_the_last_good_checkpoint(self):
        sets = ["train.lr=1e30", "train.warmup=0", "train.schedule=constant", "train.clip=0", "train.eval_every=0",
                "train.weight_decay=0"]
        failed = self.train("run", sets=[*sets, "train.checkpoint_every=1"], code=1)
        self.assertRegex(failed.stderr, r"step \d+: .*not finite, first in ")
        self.assertIn("last good checkpoint is step", failed.stderr)
        tensors, _ = self.checkpoint("run")
        for name, (dtype, _, data) in tensors.items():
            if dtype == "F32":
                self.assertTrue(all(math.isfinite(x) for (x,) in struct.iter_unpack("<f", data)), name)

    def test_full_disk_ends_cleanly_and_keeps_the_checkpoint(self):
        self.train("run", "--until", "10")
        before = (self.folder / "run/checkpoint.safetensors").read_bytes()

        def small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

        failed = self.train("run", "--resume", code=1, preexec_fn=small_files)
        self.assertIn("aft-train: ", failed.stderr)
        self.assertEqual(before, (self.folder / "run/checkpoint.safetensors").read_bytes())
        names = {path.name for path in (self.folder / "run").iterdir()}
        self.assertLessEqual(names, {"recipe.toml", "metrics.jsonl", "checkpoint.safetensors", "model.safetensors"})
        self.train("run", "--resume")
        self.train("whole")
        self.assert_same_run("run", "whole")

    def test_two_processes_do_not_share_a_folder(self):
        sets = ["train.steps=100000"]
        first = subprocess.Popen(self.command("run", sets=sets), cwd=self.folder, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.PIPE, text=True)
        try:
            first.stderr.readline()
            failed = self.train("run", "--resume", sets=sets, code=1)
            self.assertIn("another process", failed.stderr)
        finally:
            first.kill()
            first.communicate()

    def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(self):
        lines = self.train("lines").stderr
        self.assertIn("step 20/20  train", lines)
        self.assertNotIn("\r", lines)
        leader, follower = pty.openpty()
        process = subprocess.Popen(self.command("bar"), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=follower)
        os.close(follower)
        shown = b""
        while True:
            try:
                part = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        os.close(leader)
        self.assertEqual(process.wait(timeout=60), 0)
        for word in (b"\r", b"bits/byte", b"tokens/s", b"ETA", b"step "):
            self.assertIn(word, shown)


class Eval(ProgramTest):
    def test_eval_agrees_with_the_run_and_ends_with_json(self):
        self.train("run", sets=["train.eval_every=0"])
        valid = [line for line in self.metrics("run") if line["split"] == "valid"][-1]
        test = [line for line in self.metrics("run") if line["split"] == "test"][-1]
        for split, line in (("valid", valid), ("test", test)):
            done = self.call([program(), "eval", "run", "--split", split, "--threads", "2"])
            last = json.loads(done.stdout.splitlines()[-1])
            self.assertAlmostEqual(last["bits_per_byte"], line["bits_per_byte"], places=9)
            self.assertEqual(last["bytes"], 400)
            self.assertEqual(last["predicted"], 400 - 17)
        (self.folder / "valid.txt").write_bytes((self.folder / "text.txt").read_bytes()[3200:3600])
        for source in ("run", "run/model.safetensors", "run/checkpoint.safetensors"):
            done = self.call([program(), "eval", source, "--data", "valid.txt", "--json"])
            self.assertEqual(len(done.stdout.splitlines()), 1)
            self.assertAlmostEqual(json.loads(done.stdout)["bits_per_byte"], valid["bits_per_byte"], places=6)

    def test_bad_input(self):
        (self.folder / "junk.safetensors").write_bytes(os.urandom(1000))
        (self.folder / "empty").write_bytes(b"")
        self.train("run")
        data = ["--data", "text.txt"]
        self.call([program(), "eval", "junk.safetensors", *data], 2)
        self.call([program(), "eval", "none", *data], 2)
        self.call([program(), "eval", ".", *data], 2)
        self.call([program(), "eval", "run/model.safetensors"], 2)
        self.call([program(), "eval", "run", "--data", "empty"], 2)
        self.call([program(), "eval", "run", "--data", "none"], 2)

    def test_agrees_with_the_torch_free_program(self):
        runtime = pathlib.Path(program()).parent / "aft"
        if not runtime.exists():
            self.skipTest("aft is not built")
        for mixer in ("aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"):
            self.train(mixer, sets=["mixer.name=" + mixer, "train.lr=3e-2"])
            model = f"{mixer}/model.safetensors"
            here = self.call([program(), "eval", model, "--data", "text.txt", "--json"])
            there = self.call([str(runtime), "eval", model, "text.txt", "--json"])
            ours, theirs = (json.loads(done.stdout.splitlines()[-1]) for done in (here, there))
            self.assertAlmostEqual(ours["bits_per_byte"], theirs["bits_per_byte"], delta=1e-4)
            self.assertEqual(ours["predicted"], theirs["predicted"])


class Init(ProgramTest):
    def test_writes_an_untrained_model(self):
        self.call([program(), "init", "recipe.toml", "--out", "fresh.safetensors"])
        tensors, metadata = read_safetensors(self.folder / "fresh.safetensors")
        self.assertEqual(json.loads(metadata["config"])["mixer"]["name"], "aft_local")
        self.assertIn("head.weight", tensors)
        done = self.call([program(), "eval", "fresh.safetensors", "--data", "text.txt", "--json"])
        self.assertAlmostEqual(json.loads(done.stdout)["bits_per_byte"], 8, delta=0.1)
        self.call([program(), "init", "recipe.toml", "--out", "none/fresh.safetensors"], 2)


@unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
class Plot(ProgramTest):
    def test_draws_one_and_several(self):
        self.train("one", sets=["train.steps=5", "train.eval_every=2"])
        self.train("it's \"two\"", sets=["train.steps=5", "train.warmup=0"])
        (self.folder / "one/loss.png").unlink()
        self.call([program(), "plot", "one"])
        self.assertTrue((self.folder / "one/loss.png").read_bytes().startswith(b"\x89PNG"))
        self.call([program(), "plot", "one", "it's \"two\"", "--out", "both.png", "--x", "seconds"])
        self.assertTrue((self.folder / "both.png").read_bytes().startswith(b"\x89PNG"))
        os.rename(self.folder / "one", self.folder / "[a,b]")  # a list to CLI11
        self.call([program(), "plot", "[a,b]"])
        self.call([program(), "plot", "."], 2)
        self.call([program(), "plot", "[a,b]", "--x", "days"], 2)


if __name__ == "__main__":
    unittest.main()
