"""What bench/ops_cuda.py says without a CUDA device: its tables from a file, and why it measures nothing."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "bench" / "ops_cuda.py"


def row(op, pass_, shape, ms, peer=False, **more):
    B, T, d = shape
    return {"op": op, "pass": pass_, "peer": peer, "B": B, "T": T, "d": d, "ms": ms, "ms_min": ms, "ms_max": ms,
            "floor_ms": 0.1, "floor_multiple": ms / 0.1, **more}


RESULTS = {
    "machine": {"card": "Card", "driver": "1.2", "torch": "2.11", "f32_multiply_adds_per_s": 40e12,
                "date": "1 May 2026", "command": "bench/ops_cuda.py", "copy_tb_per_s": 4.125, "bf16_tflops": 700,
                "f32_tflops": 50},
    "rows": [row("simple", "forward", (8, 64, 32), 0.25, extra_memory=0.0123),
             row("simple", "backward", (8, 64, 32), 0.5, extra_memory=0.0123),
             row("full", "forward", (8, 64, 32), 2, extra_memory=1.5, multiply_adds_per_s=10e12),
             row("full", "backward", (8, 64, 32), 4, extra_memory=1.5, multiply_adds_per_s=10e12),
             row("cudnn_64", "forward", (8, 64, 32), 1, peer=True),
             row("cudnn_64", "backward", (8, 64, 32), 3, peer=True)],
}
TABLES = """Card, driver 1.2, PyTorch 2.11, 1 May 2026: copy 4.12 TB/s, torch.mm 700 TFLOP/s in bf16, 50.0 in f32, f32 \
lanes 40.0 T multiply-adds/s

    bench/ops_cuda.py

| operator | B, T, d | forward / backward, ms | times the copy | extra memory | forward's rate |
| --- | --- | --- | --- | --- | --- |
| simple | 8, 64, 32 | 0.250 / 0.500 | 2.50 / 5.00 | 1.2 % |  |
| full | 8, 64, 32 | 2.000 / 4.000 | 20.00 / 40.00 | 150.0 % | 10.0 T multiply-adds/s, 0.40 of torch.mm in f32, 25 % \
of the f32 lanes |

| B, T, d | cuDNN attention, heads of 64 |
| --- | --- |
| 8, 64, 32 | 1.000 / 3.000 |
"""


class OpsCuda(unittest.TestCase):
    def run_program(self, *arguments):
        return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False,
                              env={"CUDA_VISIBLE_DEVICES": "", "AFT_CHOSEN_PYTHON": sys.executable})

    def test_tables(self):
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(RESULTS, file)
            file.flush()
            run = self.run_program("--markdown", file.name)
        self.assertEqual((run.stdout, run.returncode), (TABLES, 0), run.stderr)

    def test_needs_a_device(self):
        run = self.run_program("--library", __file__)
        self.assertEqual(run.returncode, 2)
        self.assertIn("finds no CUDA device", run.stderr)


if __name__ == "__main__":
    unittest.main()
