"""scripts/gpu-test: what it counts, without a GPU."""

import importlib.machinery
import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load():
    loader = importlib.machinery.SourceFileLoader("gpu_test", str(ROOT / "scripts" / "gpu-test"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_test", loader))
    loader.exec_module(module)
    return module


GOOGLE = """[ RUN      ] Independence/window_f32.SameBits
[  FAILED  ] Independence/window_f32.SameBits, where TypeParam = On (3 ms)
large_test.cc:3: Skipped
no CUDA device here

[  SKIPPED ] Large.Simple (0 ms)
[  PASSED  ] 5 tests.
[  SKIPPED ] 1 test, listed below:
[  SKIPPED ] Large.Simple
[  FAILED  ] 1 test, listed below:
[  FAILED  ] Independence/window_f32.SameBits, where TypeParam = On
"""
PYTHON = "{}\nRan 12 tests in 0.3s\n\n{}\n"


class GpuTest(unittest.TestCase):
    def counts(self, text, passed):
        result = load().Result()
        result.count_tests("it", text, passed)
        return (result.passed, result.failed, result.skipped), result

    def test_counts_of_test_programs(self):
        counts, result = self.counts(GOOGLE, False)
        self.assertEqual(counts, (5, 1, 1))
        self.assertEqual(result.failures, ["it: Independence/window_f32.SameBits"])
        self.assertEqual(result.notes, ["no CUDA device here"])
        self.assertEqual(self.counts(PYTHON.format("...", "OK"), True)[0], (12, 0, 0))
        self.assertEqual(self.counts(PYTHON.format(".F.", "FAILED (failures=1, errors=2, skipped=4)"), False)[0],
                         (5, 3, 4))

    def test_what_ends_otherwise_is_no_success(self):
        self.assertEqual(self.counts("Segmentation fault", False)[0], (0, 1, 0))
        self.assertEqual(self.counts("[  PASSED  ] 5 tests.\nstopped", False)[0], (5, 1, 0))

    def test_parts_are_merged(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "gpu-test.json"
            for part, record in (("ops", 1), ("torch", 2), ("ops", 3)):
                load().merge(path, part, record)
            self.assertEqual(json.loads(path.read_text(encoding="utf-8")), {"ops": 3, "torch": 2})


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    unittest.main()
