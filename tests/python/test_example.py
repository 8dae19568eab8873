"""examples/train_aft_local.py, a few steps of it: alone, and by torchrun in two processes on the CPU."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from aft.models import ByteLM

PROGRAM = pathlib.Path(__file__).parents[2] / "examples" / "train_aft_local.py"
SMALL = ["--steps", "60", "--layers", "1", "--channels", "32", "--context", "32", "--window", "8", "--lr", "1e-2"]
LAUNCHERS = {"alone": [], "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}


def run(launcher, *words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, *LAUNCHERS[launcher], str(PROGRAM), *SMALL, *words]
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_loss_falls(launcher, tmp_path):
    done = run(launcher, "--save", str(tmp_path / "model.safetensors"))
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(rb"^step +\d+  loss ([\d.]+)$", done.stdout, re.MULTILINE)]
    assert len(losses) == 3  # of steps 1, 50 and 60, by one process
    assert 5.3 < losses[0] < 5.8 and losses[-1] < 3.4  # ln 256 = 5.55
    text = ByteLM.from_file(tmp_path).generate(b"ROMEO:", 200)
    assert text.decode(errors="replace").encode() in done.stdout


def test_a_batch_that_does_not_divide_is_refused():
    done = run("torchrun", "--batch", "3")
    assert done.returncode != 0
    assert b"--batch: expected a multiple of the 2 processes, got 3" in done.stderr
