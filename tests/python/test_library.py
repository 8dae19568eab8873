"""Which libaft_torch.so `import aft` loads, and what it refuses. Each case is a process of its own."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

LIBRARY = pathlib.Path(os.environ["AFT_LIBRARY"])
SIMPLE = "torch.ops.aft.simple(None, torch.zeros(1, 2, 3), torch.ones(1, 2, 3), gate='none').sum().item() == 6"


def run(code, library=LIBRARY):
    """stderr of a Python process; what must hold in it are assertions."""
    environment = {**os.environ, "AFT_LIBRARY": str(library)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment,
                          timeout=120)
    assert done.returncode in {0, 1}, f"ended by signal {-done.returncode}: {done.stderr}"
    return done.returncode, done.stderr


def refusal(code, library=LIBRARY):
    """The sentence of the ImportError that the code ends with."""
    returned, stderr = run(code, library)
    last = stderr.strip().splitlines()[-1] if stderr else ""
    assert returned == 1 and last.startswith("ImportError: aft: "), stderr
    return last.removeprefix("ImportError: ")


@pytest.fixture
def copy(tmp_path):
    """A copy of the library and of what lies beside it."""
    for file in (LIBRARY, LIBRARY.with_suffix(".json")):
        shutil.copy(file, tmp_path / file.name)
    return tmp_path / LIBRARY.name


def test_the_same_file_again_is_nothing_new(tmp_path):
    link = tmp_path / "link.so"
    link.symlink_to(LIBRARY)
    returned, stderr = run(f"""
import torch
torch.ops.load_library({str(LIBRARY)!r})
import aft
torch.ops.load_library({str(LIBRARY)!r})
torch.ops.load_library({str(link)!r})
assert {SIMPLE}
""")
    assert (returned, stderr) == (0, "")


def test_a_copy_loaded_before_is_refused(copy):
    message = refusal(f"import torch; torch.ops.load_library({str(copy)!r}); import aft")
    assert message.startswith(f"aft: expected one copy of the library in a process, got {LIBRARY} after {copy}")


def test_a_copy_loaded_after_registers_nothing_and_says_so(copy):
    returned, stderr = run(f"""
import torch, aft
torch.ops.load_library({str(copy)!r})
assert torch.ops.aft.library_path() == {str(LIBRARY)!r}
assert {SIMPLE}
""")
    assert returned == 0, stderr
    assert stderr.count("\n") == 1, stderr
    assert f"aft: expected one copy of the library in a process, got {copy} after {LIBRARY}, whose operators " in stderr


def test_another_torch_than_built_for_is_refused_before_loading(copy):
    stamp = copy.with_suffix(".json")
    built_for = json.loads(stamp.read_text())
    stamp.write_text(json.dumps({**built_for, "torch": "2.7.1"}))
    copy.write_bytes(b"not loaded")
    message = refusal("import aft", copy)
    assert f"expected torch 2.7.1, which {copy} was built for, got torch {built_for['torch']}" in message
    # A patch release is another version.
    stamp.write_text(json.dumps({**built_for, "torch": built_for["torch"] + "1"}))
    assert f"expected torch {built_for['torch']}1, " in refusal("import aft", copy)


def test_no_torch(copy):
    built_for = json.loads(copy.with_suffix(".json").read_text())["torch"]
    message = refusal("import sys; sys.modules['torch'] = None; import aft", copy)
    assert message.endswith(f"got no torch in {sys.executable}: `pip install torch=={built_for}`")


def test_no_library(copy):
    copy.write_bytes(b"no library")
    assert f"{copy} could not be loaded ({copy}: " in refusal("import aft", copy)
    copy.with_suffix(".json").unlink()
    assert f"expected {copy.with_suffix('.json')}, which the build writes beside" in refusal("import aft", copy)
    copy.unlink()
    assert f"in AFT_LIBRARY, got {str(copy)!r}, which is no file" in refusal("import aft", copy)
    # Unset: that of the package, which has none here, in the sources.
    assert "there is no lib/libaft_torch.so in " in refusal("import aft", "")


def test_import_needs_little_beyond_torch():
    returned, stderr = run("""
import sys, torch
before = set(sys.modules)
import aft
more = {name.partition(".")[0] for name in set(sys.modules) - before} - {"aft", "safetensors"}
assert more <= sys.stdlib_module_names, more
""")
    assert returned == 0, stderr
