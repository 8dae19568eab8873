"""cmake/ptxas.py: what it reads of ptxas, and which spills it refuses."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "cmake" / "ptxas.py"
ENTRY = """ptxas info    : Compiling entry function '{0}' for 'sm_80'
ptxas info    : Function properties for {0}
    8 bytes stack frame, {1} bytes spill stores, {1} bytes spill loads
ptxas info    : Used {2} registers, used 1 barriers{3}, 456 bytes cmem[0]
ptxas info    : Compile time = 8.539 ms
"""
FLOAT, DOUBLE = "_ZN3aft3sumIfEEvNS_4RowsIT_EE", "_ZN3aft3sumIdEEvNS_4RowsIT_EE"  # void aft::sum<T>(aft::Rows<T>)


class Ptxas(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def call(self, *words):
        return subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)

    def table(self, unit, *entries):
        """Compiles a unit (a program that says so) and collects."""
        compiled = self.folder / "window" / f"{unit}.cu.o"
        compiled.parent.mkdir(exist_ok=True)
        said = "warning: mind this\n" + "".join(ENTRY.format(*entry) for entry in entries)
        done = self.call("compile", sys.executable, "-c", f"import sys; sys.stderr.write({said!r})", "-o", compiled)
        self.assertEqual((done.returncode, done.stderr), (0, "warning: mind this\n"))
        table = self.folder / "ptxas.tsv"
        self.assertEqual(self.call("collect", table, compiled, self.folder / "plain.cc.o").returncode, 0)
        return table

    def test_a_line_a_kernel(self):
        table = self.table("cuda_forward", (FLOAT, 0, 72, ", 9216 bytes smem"), (DOUBLE, 4, 128, ""))
        lines = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
        self.assertEqual(lines[1:], [
            ["aft::sum<double>", "window/cuda_forward.cu", "sm_80", "128", "0", "8", "4", "4"],
            ["aft::sum<float>", "window/cuda_forward.cu", "sm_80", "72", "9216", "8", "0", "0"],
        ])

    def test_forward_kernels_do_not_spill(self):
        for unit, kernel, spills, code in (("cuda_forward", FLOAT, 4, 1), ("cuda_forward", FLOAT, 0, 0),
                                           ("cuda_forward", DOUBLE, 4, 0), ("cuda_backward", FLOAT, 4, 0)):
            with self.subTest(unit=unit, kernel=kernel, spills=spills):
                done = self.call("check", self.table(unit, (kernel, spills, 72, "")))
                self.assertEqual(done.returncode, code)
                self.assertEqual("aft::sum<float> spills 4 bytes" in done.stderr, code == 1)
        self.assertEqual(self.call("check", self.table("cuda_forward")).returncode, 1)

    def test_a_failed_compilation_fails(self):
        done = self.call("compile", sys.executable, "-c", "raise SystemExit(3)", "-o", self.folder / "x.o")
        self.assertEqual(done.returncode, 3)
        self.assertFalse((self.folder / "x.o.ptxas").exists())


if __name__ == "__main__":
    unittest.main()
