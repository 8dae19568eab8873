"""The package as a user gets it: an sdist, built by pip in a fresh virtual environment beside its torch, used there."""

import email
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
VERSION = re.search(r"^project\(aft VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)[1]
# As a user's: nothing that points to the build of these tests.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in {"AFT_LIBRARY", "PYTHONPATH"}}


def call(*command, code=0, **more):
    """stdout and stderr of a command together."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, timeout=1500, **{"env": ENVIRONMENT, **more})
    assert done.returncode == code, f"{command}: exit code {done.returncode}\n{done.stdout}"
    return done.stdout


def pip(python, *words):
    return call(python, "-m", "pip", *words[:1], *shlex.split(os.environ.get("PIP_ARGS", "")), *words[1:])


class Installed:
    """The steps from the sources to an installed package, and what each left."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "environment" / "bin" / "python"
        call(sys.executable, "-m", "venv", folder / "environment")
        # The torch of the tests, by a path file: torch is large, and never installed by this project's package.
        self.site = pathlib.Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (self.site / "torch_of_the_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")

        backend = folder / "backend"
        try:
            pip(self.python, "install", "-q", "--target", backend, "scikit-build-core>=1.1")
        except AssertionError as error:
            if "No matching distribution found" in str(error):
                pytest.skip("pip finds no scikit-build-core here")
            raise
        call(self.python, "-c", f"import scikit_build_core.build as b; b.build_sdist({str(folder)!r})", cwd=ROOT,
             env={**ENVIRONMENT, "PYTHONPATH": str(backend)})
        self.sdist = folder / f"aft-{VERSION}.tar.gz"
        with tarfile.open(self.sdist) as archive:
            archive.extractall(folder, filter="data")
        self.sources = folder / f"aft-{VERSION}"

        self.log = pip(self.python, "wheel", "-v", "--no-deps", "-w", folder / "wheels", self.sources)
        self.wheel, = (folder / "wheels").iterdir()
        pip(self.python, "install", "-q", self.wheel)

    def run(self, program, **more):
        """What a Python program prints, outside of all sources."""
        return call(self.python, "-c", program, cwd=self.folder, **more)


@pytest.fixture(scope="module")
def installed():
    # Not pytest's folder, of which three stay: the precompiled header alone is half a gigabyte.
    with tempfile.TemporaryDirectory() as folder:
        yield Installed(pathlib.Path(folder).resolve())


def test_sdist(installed):
    with tarfile.open(installed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.partition("/")[0] for name in names} == {
        "CHANGELOG.md", "CMakeLists.txt", "LICENSE", "PKG-INFO", "README.md", "cmake", "include", "pyproject.toml",
        "python", "src", "tests"}
    assert {name.split("/")[1] for name in names if name.startswith("src/")} == {"ops", "torch"}
    assert {name.split("/")[1] for name in names if name.startswith("tests/")} == {"consumer", "python"}
    assert installed.sdist.stat().st_size < 2**20


def test_wheel(installed):
    assert installed.wheel.name == f"aft-{VERSION}-py3-none-linux_x86_64.whl"
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {info.filename for info in archive.infolist() if not info.is_dir()}
        metadata = email.message_from_bytes(archive.read(f"aft-{VERSION}.dist-info/METADATA"))
        library = archive.read("aft/lib/libaft_torch.so")
    package = {f"aft/{file.relative_to(ROOT / 'python/aft')}" for file in (ROOT / "python/aft").rglob("*")
               if file.suffix == ".py" or file.name == "py.typed"}
    headers = {f"aft/include/aft/{name}" for name in ("error.h", "torch.h")}
    headers |= {f"aft/include/aft/ops/{file.name}" for file in (ROOT / "include/aft/ops").iterdir()}
    cmake = {f"aft/lib/cmake/AFT/{name}" for name in ("AFTConfig.cmake", "AFTConfigVersion.cmake", "AFT_torch.cmake",
                                                      "AFT_torch-release.cmake", "FindAftTorch.cmake")}
    about = {f"aft-{VERSION}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    assert names == package | headers | cmake | about | {"aft/lib/libaft_torch.so", "aft/lib/libaft_torch.json"}
    required = {text for text in metadata.get_all("Requires-Dist") if "extra ==" not in text}
    assert required == {"numpy", "safetensors"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert b".symtab" not in library, "not stripped"


def test_says_which_kernels_it_builds(installed):
    if '"torch_build": "cpu"' not in (installed.site / "aft/lib/libaft_torch.json").read_text():
        pytest.skip("this torch is a build for CUDA, for which the package is built here with AFT_CUDA=OFF")
    assert "AFT_CUDA=AUTO: no CUDA kernels, since LibTorch is a CPU build" in installed.log


def test_example_of_the_readme(installed):
    section = (ROOT / "README.md").read_text().partition("\n## Python\n")[2].partition("\n## ")[0]
    example, = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    installed.run(example)


def test_info(installed):
    found = json.loads(call(installed.python, "-m", "aft", "--json", cwd=installed.folder))
    assert found["aft"] == VERSION
    assert found["library"] == str(installed.site / "aft/lib/libaft_torch.so")


def test_find_package(installed):
    prefix = installed.run("import aft; print(aft.cmake_prefix_path)").strip()
    assert prefix == str(installed.site / "aft")
    build = installed.folder / "consumer"
    launcher = shutil.which("ccache")
    call("cmake", "-G", "Ninja", "-S", installed.sources / "tests/consumer/torch", "-B", build,
         f"-DCMAKE_PREFIX_PATH={prefix}",
         *([f"-DCMAKE_CXX_COMPILER_LAUNCHER={launcher}"] if launcher else []))
    call("cmake", "--build", build, env={**ENVIRONMENT, "CCACHE_BASEDIR": str(installed.folder)})
    call(build / "consumer")


def test_another_torch(installed):
    stamp = installed.site / "aft/lib/libaft_torch.json"
    built_for = stamp.read_text()
    try:
        stamp.write_text(built_for.replace(json.loads(built_for)["torch"], "2.7.1"))
        message = installed.run("import aft", code=1).splitlines()[-1]
    finally:
        stamp.write_text(built_for)
    assert re.match(r"ImportError: aft: expected torch 2\.7\.1, which .* was built for, got torch 2\.\d+", message)


def configure(installed, *words, **more):
    """What the sources say, in one line, when pip configures them for a Python, and they stop."""
    shutil.rmtree(installed.folder / "configured", ignore_errors=True)
    said = call("cmake", "-G", "Ninja", "-S", installed.sources, "-B", installed.folder / "configured", "-DSKBUILD=2",
                "-DAFT_PROGRAMS=OFF", "-DAFT_TORCH=ON", *words, code=1, **more)
    return re.sub(r"\s+", " ", said)


def test_no_torch(installed):
    call(sys.executable, "-m", "venv", "--without-pip", installed.folder / "empty")
    python = installed.folder / "empty/bin/python"
    said = configure(installed, f"-DPython_EXECUTABLE={python}")
    assert f"{python} has no torch: run `pip install torch` first" in said


def test_no_highway(installed):
    said = configure(installed, f"-DPython_EXECUTABLE={installed.python}",
                     env={**ENVIRONMENT, "PKG_CONFIG_LIBDIR": "/nowhere", "PKG_CONFIG_PATH": ""})
    assert "Needed to build but not found: install with `apt-get install libhwy-dev`. " in said


def test_editable(installed):
    """Last: it takes the place of the wheel."""
    pip(installed.python, "install", "-q", "--no-deps", "-e", installed.sources)
    file, library, prefix = installed.run(
        "import aft; print(aft.__file__, aft.info().library, aft.cmake_prefix_path, sep='\\n')").split()
    assert file == str(installed.sources / "python/aft/__init__.py")
    assert library == str(installed.site / "aft/lib/libaft_torch.so")
    assert (pathlib.Path(prefix) / "lib/cmake/AFT/AFTConfig.cmake").is_file()
