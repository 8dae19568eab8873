"""scripts/setup: which torch it takes, with made-up Pythons that install nothing."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A Python with a torch of some version and all else; it writes down what pip is asked for.
PYTHON = """#!/bin/sh
case "$2" in
  torch) echo "{torch}" ;;
  pip) shift 3; echo "$@" >> pip.txt ;;
  pytest) echo "{pytest}" ;;
  *) echo 1.0 ;;
esac
"""


class Setup(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = pathlib.Path(scratch.name)
        for file in ("scripts/setup", "cmake/AftDependencies.cmake"):
            (self.folder / file).parent.mkdir()
            shutil.copy(ROOT / file, self.folder / file)
        # Every Debian package is installed.
        self.program("bin/dpkg-query", '#!/bin/sh\nshift 3\nfor p; do echo "$p install ok installed"; done\n')
        self.program("bin/apt-get", "#!/bin/sh\nexit 1\n")
        self.make_python(".venv", "2.13.0")

    def program(self, name, text):
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)

    def make_python(self, environment, torch, pytest="8.0"):
        self.program(f"{environment}/bin/python", PYTHON.format(torch=torch, pytest=pytest))

    def run_setup(self, active=True):
        environment = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PIP_ARGS": "--index-url x",
                       "CONDA_PREFIX": "", "VIRTUAL_ENV": str(self.folder / "mine") if active else ""}
        done = subprocess.run([self.folder / "scripts/setup"], capture_output=True, text=True, check=False,
                              env=environment)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout, (self.folder / ".cache/python").read_text().strip()

    def test_active_torch(self):
        mine, fallback = (str(self.folder / name / "bin/python") for name in ("mine", ".venv"))
        taken = f"LibTorch VERSION of {mine}\n"
        new = taken + "Note: torch VERSION is newer than 2.14, the newest tested with\n"
        instead = (f"The active environment {self.folder}/mine has {{}}: using .venv instead\n"
                   f"LibTorch 2.13.0 of {fallback}\n")
        for torch, chosen, said in (
                ("2.11.0", mine, taken), ("2.13.1", mine, taken), ("2.14.1", mine, taken),
                ("2.100.0", mine, new), ("3.0.0", mine, new),
                ("2.9.1", fallback, instead.format("torch VERSION, older than 2.11")),
                ("", fallback, instead.format("no torch"))):
            with self.subTest(torch=torch):
                (self.folder / ".cache/python").unlink(missing_ok=True)
                self.make_python("mine", torch)
                self.assertEqual(self.run_setup(), (said.replace("VERSION", torch), chosen))

    def test_nothing_the_second_time(self):
        self.make_python("mine", "2.14.1")
        first = self.run_setup()
        # The choice is kept, without the environment too.
        self.assertEqual(self.run_setup(active=False), ("", first[1]))

    def test_installs_what_the_tests_need(self):
        self.make_python("mine", "2.14.1", pytest="")
        said, python = self.run_setup()
        self.assertTrue(said.startswith(f"Installing pytest>=8,<10 for the tests, into {python}\n"), said)
        self.assertEqual((self.folder / "pip.txt").read_text(), "-q --index-url x pytest>=8,<10\n")


if __name__ == "__main__":
    unittest.main()
