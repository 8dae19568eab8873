"""kill -9 at random moments loses at most one checkpoint interval, and the final weights are the same."""

import os
import random
import re
import subprocess
import time
import unittest

import images
from program import ProgramTest

KILLS = int(os.environ.get("AFT_KILLS", "20"))
INTERVAL = 20


class Kill(ProgramTest):
    kills = KILLS
    sets = (
        f"train.steps={INTERVAL * (4 * KILLS + 4)}",
        f"train.checkpoint_every={INTERVAL}",
        "train.eval_every=70",
        "train.accumulate=2",
        "model.dropout=0.1",
    )

    def stamp(self):
        """Changes with every checkpoint."""
        try:
            info = (self.folder / "run" / "checkpoint.safetensors").stat()
            return info.st_ino, info.st_mtime_ns
        except FileNotFoundError:
            return None

    def live_and_die(self, after_checkpoint, delay):
        """Starts or resumes the run and kills it; returns what it printed and whether it was killed."""
        before = self.stamp()
        output = self.folder / "output"
        with output.open("w") as stderr:  # a pipe that nobody reads would stop the run
            process = subprocess.Popen(
                self.command("run", "--resume", sets=self.sets),
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
            )
        while after_checkpoint and self.stamp() == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        killed = process.poll() is None
        process.kill()
        process.wait()
        return output.read_text(), killed

    def last_logged_step(self):
        try:
            metrics = (self.folder / "run" / "metrics.jsonl").read_text()
            steps = re.findall(r'^\{"step":(\d+),.*\}$', metrics, re.MULTILINE)
            return int(steps[-1]) if steps else 0
        except FileNotFoundError:
            return 0

    def resumed_at(self, stderr):
        found = re.search(r"resumed at step (\d+)", stderr)
        return int(found.group(1)) if found else 0

    def test_random_kills(self):
        generator = random.Random(os.environ.get("AFT_KILL_SEED", "3"))
        killed = 0
        reached = 0
        for number in range(self.kills):
            after_checkpoint = number % 5 != 4  # else at any moment, starting up included
            delay = generator.uniform(0, 0.08 if after_checkpoint else 1)
            stderr, was_killed = self.live_and_die(after_checkpoint, delay)
            killed += was_killed
            if "step" in stderr:
                self.assertLessEqual(reached - self.resumed_at(stderr), INTERVAL, "work of more than one interval lost")
                reached = max(reached, self.last_logged_step())
        self.assertEqual(killed, self.kills)
        last = self.train("run", "--resume", sets=self.sets)
        self.assertGreater(self.resumed_at(last.stderr), 0)
        self.assertLessEqual(reached - self.resumed_at(last.stderr), INTERVAL)
        self.train("whole", sets=self.sets)
        self.assert_same_run("whole", "run")


class KillWithImages(Kill):
    """Augmented, and read by threads."""

    kills = max(1, KILLS // 4)
    sets = (
        f"train.steps={INTERVAL * (KILLS + 4)}",
        f"train.checkpoint_every={INTERVAL}",
        "train.eval_every=70",
        "train.loaders=3",
        "model.dropout=0.1",
    )

    def setUp(self):
        super().setUp()
        images.write_images(self.folder / "images")
        (self.folder / "recipe.toml").write_text(images.PIXELS)


if __name__ == "__main__":
    unittest.main()
