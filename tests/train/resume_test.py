"""A run that was stopped and resumed is the run that was not, bit for bit."""

import signal
import subprocess
import time
import unittest

from program import ProgramTest, program


class Resume(ProgramTest):
    def check(self, sets, cuts=(10,)):
        self.train("whole", sets=sets)
        for cut in cuts:
            self.train("parts", "--resume", "--until", str(cut), sets=sets)
            self.assertEqual(self.step("parts"), cut)
        self.train("parts", "--resume", sets=sets)
        self.assertEqual(self.step("parts"), 20)
        self.assert_same_run("whole", "parts")

    def test_plain(self):
        self.check(["train.eval_every=0", "train.threads=2"])

    def test_accumulation_and_dropout(self):
        self.check(["train.accumulate=3", "model.dropout=0.2"])

    def test_mid_epoch_and_over_its_end(self):
        # 3200 training bytes are 134 windows: 20 steps of 7 cross the end of the epoch; the cuts lie inside both.
        self.check(["train.batch=7", "mixer.name=aft_simple", "model.dropout=0.1", "train.threads=2"],
                   cuts=(7, 13, 19))

    def test_attention_in_chunks(self):
        self.check(["mixer.name=attention", "train.chunk=9", "train.log_every=3"])

    def test_resume_of_a_finished_run_changes_nothing(self):
        self.train("run")
        before = self.checkpoint("run")
        self.train("run", "--resume")
        self.assertEqual(before, self.checkpoint("run"))
        self.assertEqual([line["split"] for line in self.metrics("run")].count("test"), 1)

    def test_a_longer_run_may_follow(self):
        self.train("run", sets=["train.schedule=constant"])
        self.train("run", "--resume", sets=["train.schedule=constant", "train.steps=30"])
        self.train("whole", sets=["train.schedule=constant", "train.steps=30"])
        self.assertEqual(self.checkpoint("run")[0], self.checkpoint("whole")[0])

    def test_another_recipe_or_data_is_refused(self):
        self.train("run")
        for override, key in (("model.channels=32", "model.channels"), ("train.seed=2", "train.seed")):
            failed = self.train("run", "--resume", sets=[override], code=2)
            self.assertIn(key + ": the run to resume has", failed.stderr)
        failed = self.train("run", "--resume", sets=["train.steps=10", "train.eval_every=0"], code=2)
        self.assertIn("train.steps: expected at least 20", failed.stderr)
        # The values are compared, not their first digits.
        failed = self.train("run", "--resume", sets=["train.lr=1.0000004e-2"], code=2)
        self.assertIn("train.lr: the run to resume has 0.01, the recipe says 0.010000004", failed.stderr)
        whole = (self.folder / "text.txt").read_text()
        for name, begin in (("training", 0), ("validation", 3200), ("test", 3600)):
            (self.folder / "text.txt").write_text(whole[:begin] + "#" + whole[begin + 1 :])
            failed = self.train("run", "--resume", code=2)
            self.assertIn(f"the {name} data are not those of the run", failed.stderr)

    def test_a_moved_run_goes_on(self):
        self.train("whole")
        self.train("run", "--until", "9")
        (self.folder / "text.txt").rename(self.folder / "book.txt")
        (self.folder / "run").rename(self.folder / "moved")
        self.train("moved", "--resume", sets=["data.path=book.txt"])
        self.assert_same_run("whole", "moved")

    def test_the_best_model_must_be_there(self):
        self.train("run", "--until", "10")
        (self.folder / "run/model.safetensors").rename(self.folder / "away")
        failed = self.train("run", "--resume", code=2)
        self.assertIn("the best model of the run to resume cannot be used", failed.stderr)
        self.call([program(), "init", "recipe.toml", "--out", "run/model.safetensors", "--set", "model.channels=8"])
        failed = self.train("run", "--resume", code=2)
        self.assertIn("its tensors do not fit the model", failed.stderr)
        (self.folder / "away").rename(self.folder / "run/model.safetensors")
        self.train("run", "--resume")
        self.train("whole")
        self.assert_same_run("whole", "run")

    def test_without_validation_the_model_follows_the_checkpoint(self):
        sets = ["data.split=[1, 0, 0]", "train.eval_every=0"]
        self.train("run", sets=sets)
        (self.folder / "run/model.safetensors").unlink()  # as after a kill between checkpoint and model
        self.train("run", "--resume", sets=sets)
        self.train("whole", sets=sets)
        self.assert_same_run("run", "whole")

    def test_data_that_hold_the_folder_of_runs(self):
        for run, cuts in (("runs/whole", ()), ("runs/parts", (7, 13))):
            for cut in cuts:
                self.train(run, "--resume", "--until", str(cut), sets=["data.path=."])
            self.train(run, "--resume", sets=["data.path=."])
        self.assert_same_run("runs/whole", "runs/parts")

    def test_interrupt_writes_a_checkpoint_and_says_how_to_go_on(self):
        sets = ["train.steps=4000", "train.checkpoint_every=0", "train.eval_every=0"]
        process = subprocess.Popen(self.command("run", sets=sets), cwd=self.folder, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)
        metrics = self.folder / "run" / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") > 5):
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stderr = process.communicate(timeout=60)[1]
        self.assertEqual(process.returncode, 130)
        self.assertIn(f"go on with: {program()} train recipe.toml", stderr)
        self.assertIn("--resume", stderr)
        step = self.step("run")
        self.assertEqual(self.metrics("run")[-1]["step"], step)
        self.assertLess(step, 4000)
        self.train("run", "--resume", "--until", str(step + 3), sets=sets)
        self.train("whole", "--until", str(step + 3), sets=sets)
        self.assertEqual(self.checkpoint("run")[0], self.checkpoint("whole")[0])


if __name__ == "__main__":
    unittest.main()
