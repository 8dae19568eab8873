"""Nothing a user does loses a result or invents one."""

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
import unittest

from program import ProgramTest, program


class Results(ProgramTest):
    """What is there is only replaced when asked for."""

    def test_resume_never_begins_anew_where_a_model_is_trained(self):
        self.train("run")
        (self.folder / "run/checkpoint.safetensors").unlink()
        before = {path.name: path.read_bytes() for path in (self.folder / "run").iterdir()}
        failed = self.train("run", "--resume", code=2)
        self.assertIn("holds a trained model but no checkpoint", failed.stderr)
        self.assertEqual(before, {path.name: path.read_bytes() for path in (self.folder / "run").iterdir()})
        self.train("run", "--force")

    def test_resume_begins_again_after_a_kill_before_the_first_checkpoint(self):
        self.train("run")
        for name in ("checkpoint.safetensors", "model.safetensors", "loss.png"):
            (self.folder / "run" / name).unlink(missing_ok=True)
        self.assertIn("beginning at step 0", self.train("run", "--resume").stderr)
        self.train("whole")
        self.assert_same_run("run", "whole")

    def test_resume_leaves_files_that_are_no_runs_alone(self):
        (self.folder / "mine").mkdir()
        (self.folder / "mine/sample.txt").write_text("mine")
        (self.folder / "mine/loss.png").write_text("mine")
        self.train("mine", "--resume", "--until", "3")
        self.assertEqual((self.folder / "mine/sample.txt").read_text(), "mine")
        self.assertEqual((self.folder / "mine/loss.png").read_text(), "mine")

    def test_a_trained_model_is_never_without_a_checkpoint(self):
        # A kill right after the first validation: the checkpoint is there before the model is.
        process = subprocess.Popen(
            self.command("run", sets=["train.steps=1000000", "train.eval_every=1", "train.checkpoint_every=0"]),
            cwd=self.folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while not (self.folder / "run/model.safetensors").exists():
            self.assertIsNone(process.poll())
            time.sleep(0.001)
        process.kill()
        process.wait()
        self.assertTrue((self.folder / "run/checkpoint.safetensors").exists())

    def test_the_recipe_given_is_not_replaced_by_the_run(self):
        (self.folder / "recipe.toml").write_text("# mine\n" + (self.folder / "recipe.toml").read_text())
        before = (self.folder / "recipe.toml").read_text()
        for option in ("--force", "--resume"):
            self.assertIn("would replace the recipe given", self.train(".", option, code=2).stderr)
        self.assertEqual(before, (self.folder / "recipe.toml").read_text())
        # The run's own recipe is another matter, unchanged or of a run that goes on.
        self.train("run", "--until", "3")
        self.call([program(), "train", "run/recipe.toml", "--resume", "--set", "train.log_every=2"])
        self.call([program(), "train", "run/recipe.toml", "--force"])

    def test_out_replaces_nothing_without_force(self):
        self.train("run")
        model = (self.folder / "run/model.safetensors").read_bytes()
        failed = self.call([program(), "init", "recipe.toml", "--out", "run/model.safetensors"], 2)
        self.assertIn("run/model.safetensors exists; replace it with --force", failed.stderr)
        if shutil.which("gnuplot"):
            self.call([program(), "plot", "run", "--out", "run/model.safetensors"], 2)
            self.call([program(), "plot", "run"])
            self.call([program(), "plot", "run", "run"])
            self.call([program(), "plot", "run", "run"], 2)
            self.call([program(), "plot", "run", "run", "--force"])
        self.assertEqual(model, (self.folder / "run/model.safetensors").read_bytes())
        self.call([program(), "init", "recipe.toml", "--out", "run/model.safetensors", "--force"])
        self.assertNotEqual(model, (self.folder / "run/model.safetensors").read_bytes())


class Scores(ProgramTest):
    """Nothing measured is no score."""

    def test_data_in_which_nothing_is_predicted_is_refused_before_training(self):
        (self.folder / "text.txt").write_text("abcdefghijklmnopqrstuvwxyz0123")
        sets = ["model.context=16", "data.split=[0.97, 0.03, 0.0]", "train.eval_every=10"]
        failed = self.train("run", sets=sets, code=2)
        self.assertIn("data.split: expected valid data of at least 2 bytes", failed.stderr)
        self.assertFalse((self.folder / "run").exists())
        sets = [*sets[:1], "data.split=[0.97, 0.0, 0.03]", "train.eval_every=0"]
        self.assertIn("test data", self.train("run", sets=sets, code=2).stderr)
        (self.folder / "one").write_text("x")
        sets = ["model.context=16", "data.path=", "data.train=text.txt", "data.valid=one"]
        self.assertIn("data.valid: expected", self.train("run", sets=sets, code=2).stderr)

    def test_windows_of_one_byte_predict_nothing(self):
        sets = ["model.context=1", "mixer.window=1"]
        self.assertIn("model.context = 1", self.train("run", sets=sets, code=2).stderr)
        sets += ["data.split=[1, 0, 0]", "train.eval_every=0"]
        self.train("run", sets=sets)
        failed = self.call([program(), "eval", "run", "--data", "text.txt"], 2)
        self.assertIn("expected at least 2 bytes in a window", failed.stderr)

    def test_a_split_the_recipe_does_not_have(self):
        self.train("run", sets=["data.split=[0.9, 0.1, 0]"])
        failed = self.call([program(), "eval", "run", "--split", "test"], 2)
        self.assertIn("--split test: the data of run have none", failed.stderr)


class Values(ProgramTest):
    """What cannot work is refused at the start, with both values where two do not fit."""

    def test_values_that_vanish_in_f32(self):
        for key in ("lr", "eps", "clip"):
            failed = self.train("run", sets=[f"train.{key}=1e-46"], code=2)
            self.assertIn(f"train.{key}: expected a finite number above 0, also as a float", failed.stderr)
        self.assertIn("train.lr", self.train("run", sets=["train.lr=1e39"], code=2).stderr)
        for key in ("beta1", "beta2"):
            failed = self.train("run", sets=[f"train.{key}=0.999999999"], code=2)
            self.assertIn(f"train.{key}: expected a number in [0, 1), also as a float", failed.stderr)
        failed = self.train("run", sets=["train.weight_decay=1e9"], code=2)
        self.assertIn("train.weight_decay: expected", failed.stderr)
        self.assertFalse((self.folder / "run").exists())

    def test_a_schedule_that_does_not_fit_says_both_values(self):
        failed = self.train("run", sets=["train.steps=7", "train.warmup=9"], code=2)
        self.assertIn("train.warmup: expected 0 to train.steps = 7, got 9", failed.stderr)
        failed = self.train("run", sets=["train.chunk=25"], code=2)
        self.assertIn("train.chunk: expected 0 (whole sequences) to the 24 positions", failed.stderr)

    def test_names_that_are_not_utf8(self):
        recipe = (self.folder / "recipe.toml").read_bytes()
        name = os.fsencode(self.folder) + b"/caf\xe9.toml"
        with open(name, "wb") as file:
            file.write(recipe)
        done = subprocess.run([program(), "train", name], cwd=self.folder, capture_output=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 2, done)
        self.assertIn(b"run.folder: expected UTF-8", done.stderr)
        self.assertFalse((self.folder / "runs").exists())
        words = [program(), "train", name, "--set", "run.folder=run"]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 0, done)


class Surroundings(ProgramTest):
    """Files, memory and signals as they come."""

    def run_until(self, run, *, sets, lines, **options):
        process = subprocess.Popen(
            self.command(run, sets=sets), cwd=self.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            **options
        )
        metrics = self.folder / run / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") > lines):
            self.assertIsNone(process.poll(), process.stderr.read() if process.poll() is not None else "")
            time.sleep(0.005)
        return process

    def test_data_that_shrink_during_training_are_an_error(self):
        sets = ["train.steps=1000000", "train.log_every=5", "train.eval_every=0"]
        process = self.run_until("run", sets=sets, lines=4)
        os.truncate(self.folder / "text.txt", 30)
        stderr = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 1, stderr)
        self.assertIn("text.txt: it has become shorter", stderr)
        self.assertGreater(self.step("run"), 0)
        (self.folder / "text.txt").write_text("restored".join(["x"] * 500)[:4000])
        resumed = self.train("run", "--resume", sets=["train.steps=1000000"], code=2)
        self.assertIn("not those of the run", resumed.stderr)

    def test_signals_write_a_checkpoint_and_are_in_the_exit_code(self):
        sets = ["train.steps=1000000", "train.checkpoint_every=0", "train.eval_every=0"]
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            run = f"run{int(number)}"
            process = self.run_until(run, sets=sets, lines=3)
            process.send_signal(number)
            stderr = process.communicate(timeout=60)[1]
            self.assertEqual(process.returncode, 128 + number, stderr)
            self.assertGreater(self.step(run), 3)

    def test_a_signal_ignored_from_the_start_stays_ignored(self):
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

        def ignore():  # as nohup does, and a shell without job control for what runs in the background
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)

        process = self.run_until("run", sets=["train.steps=300", "train.eval_every=0"], lines=3, preexec_fn=ignore)
        for number in numbers:
            process.send_signal(number)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)
        self.assertEqual(self.step("run"), 300)

    def test_the_command_that_goes_on_can_be_pasted(self):
        name = "re 'cipe\".toml"
        (self.folder / "recipe.toml").rename(self.folder / name)
        words = [program(), "train", name, "--set", "run.folder=a run's $(touch no)", "--until", "3"]
        stderr = self.call(words).stderr
        command = stderr.split("go on with: ")[1].splitlines()[0]
        self.assertEqual(shlex.split(command)[0], program())
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("resumed at step 3", done.stderr)
        self.assertFalse((self.folder / "no").exists())

    def test_out_of_memory_names_the_keys_to_lower(self):
        def little_memory():
            resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

        failed = self.train("run", sets=["train.batch=1000000"], code=1, preexec_fn=little_memory)
        self.assertIn("out of memory", failed.stderr)
        self.assertIn("train.batch", failed.stderr)
        self.assertNotIn("frame #", failed.stderr)
        self.assertLess(len(failed.stderr.splitlines()), 5)

    def test_eval_of_a_run_works_from_any_directory(self):
        self.train("run")
        here = self.call([program(), "eval", "run", "--json"])
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        there = subprocess.run([program(), "eval", self.folder / "run", "--json"], cwd=elsewhere, capture_output=True,
                               text=True, timeout=60, check=False)
        self.assertEqual(there.returncode, 0, there.stderr)
        scores = [json.loads(done.stdout)["bits_per_byte"] for done in (here, there)]
        self.assertEqual(*scores)

    @unittest.skipUnless(shutil.which("gnuplot"), "gnuplot is not installed")
    def test_plots_of_runs_with_one_name_are_told_apart(self):
        for parent in ("a", "b"):
            self.train(f"{parent}/run", sets=["train.steps=4"])
        fake = self.folder / "bin"
        fake.mkdir()
        # A gnuplot that keeps its script.
        script = f'cp "$1" {self.folder}/script.gp\nexec {shutil.which("gnuplot")} "$1"\n'
        (fake / "gnuplot").write_text("#!/bin/sh\n" + script)
        (fake / "gnuplot").chmod(0o755)
        environment = dict(os.environ, PATH=f"{fake}:{os.environ['PATH']}")
        self.call([program(), "plot", "a/run", "b/run/"], env=environment)
        script = (self.folder / "script.gp").read_text()
        self.assertIn('title "a/run train"', script)
        self.assertIn('title "b/run train"', script)


if __name__ == "__main__":
    unittest.main()
