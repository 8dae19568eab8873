"""aft.info() and `python -m aft`."""

import dataclasses
import json
import os
import pathlib
import platform
import re
import subprocess
import sys

import aft
import torch

ROOT = pathlib.Path(__file__).parents[2]
NUMBER = re.search(r"^project\(aft VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)[1]


def program(*words, code=0):
    done = subprocess.run([sys.executable, "-m", "aft", *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_versions_and_library():
    found = aft.info()
    assert found.aft == aft.__version__ == NUMBER
    assert found.torch == torch.__version__
    assert found.built_for.partition(" ")[0] == torch.__version__.partition("+")[0]
    assert found.python == platform.python_version()
    assert os.path.samefile(found.library, os.environ["AFT_LIBRARY"])
    assert found.threads == torch.get_num_threads()


def test_cpu_targets_against_what_linux_says_of_the_cpu():
    flags = set(re.search(r"^flags\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    found = aft.info()
    assert found.cpu_target in found.cpu_targets
    assert len(set(found.cpu_targets)) == len(found.cpu_targets)
    assert {"AVX2", "AVX3"} <= set(found.cpu_targets)
    if not {"avx2", "fma", "bmi2", "f16c"} <= flags:
        assert not found.cpu_target.startswith("AVX")
    elif not {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        assert found.cpu_target == "AVX2"
    else:
        assert found.cpu_target.startswith("AVX3")


def test_cuda():
    found = aft.info()
    assert found.cuda_architectures == torch.ops.aft.cuda_architectures()
    assert found.devices[0] == "cpu"
    assert len(found.devices) == 1 + len(torch.ops.aft.cuda_devices())


def test_table():
    found = aft.info()
    lines = str(found).splitlines()
    assert repr(found) == str(found)
    names = [line.split(":")[0] for line in lines]
    assert names == ["aft", "torch", "Python", "library", "CPU kernels", "CUDA kernels", "devices"]
    assert lines[0].split() == ["aft:", NUMBER]
    assert lines[1].split()[1:] == [torch.__version__ + ",", "built", "for", *found.built_for.split()]
    if not found.cuda_architectures:
        assert lines[5].endswith("none, built without CUDA")


def test_program():
    there = json.loads(program("--json"))
    here = dataclasses.asdict(aft.info()) | {"threads": there["threads"]}  # the tests have one
    assert there == json.loads(json.dumps(here))
    assert program().splitlines()[:4] == str(aft.info()).splitlines()[:4]
    assert "example: python -m aft --json" in program("--help")
    assert "unrecognized arguments: --jsn" in program("--jsn", code=2)
