"""Finds and loads libaft_torch.so, which registers the operators torch.ops.aft.*.

It is the file in the package's folder lib/, or the one that the environment variable AFT_LIBRARY names. Beside it lies
libaft_torch.json, which says what it was built for. Importing this module raises ImportError, in one sentence, where
there is no library, where torch is another than it was built for, and where the process holds another copy of it.
"""

import json
import os
import re
import sys

__all__ = ["__version__", "built_for", "cmake_prefix_path", "loaded_torch", "ops", "path"]


def _find():
    """The path of the library: package folders may be several where the package is installed as editable."""
    given = os.environ.get("AFT_LIBRARY")
    if given:
        if not os.path.isfile(given):
            raise ImportError(f"aft: expected the path of libaft_torch.so in AFT_LIBRARY, got {given!r}, which is no "
                              "file: correct or unset the variable")
        return os.path.abspath(given)
    folders = sys.modules[__package__].__path__
    for folder in folders:
        file = os.path.join(folder, "lib", "libaft_torch.so")
        if os.path.isfile(file):
            return file
    raise ImportError(f"aft: there is no lib/libaft_torch.so in {' or '.join(folders)}: install the package by "
                      "`pip install .`, or name a built library by the environment variable AFT_LIBRARY")


def _read_stamp(library):
    """What the library was built for: the keys version (of aft), torch and torch_build ("cpu" or the CUDA version)."""
    file = os.path.join(os.path.dirname(library), "libaft_torch.json")
    try:
        with open(file, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError) as error:
        raise ImportError(f"aft: expected {file}, which the build writes beside the library, got {error}: build or "
                          "install aft again") from error


def _import_torch():
    try:
        import torch  # noqa: PLC0415  # after the stamp, which says which torch to install
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError(f"aft: expected torch {built_for['torch']}, which aft was built for, got no torch in "
                          f"{sys.executable}: `pip install torch=={built_for['torch']}`") from error
    return torch


def _check_torch_version():
    if loaded_torch != built_for["torch"]:
        raise ImportError(f"aft: expected torch {built_for['torch']}, which {path} was built for, got torch "
                          f"{torch.__version__}: install aft again beside this torch (`pip install --force-reinstall "
                          f"--no-deps .` in its sources), or torch {built_for['torch']}")


def _check_one_copy():
    """Before loading: a second copy of the operators would have to be refused by the library itself."""
    try:
        loaded = torch.ops.aft.library_path()
    except AttributeError:
        return
    if not os.path.samefile(loaded, path):
        raise ImportError(f"aft: expected one copy of the library in a process, got {path} after {loaded}, which was "
                          "loaded before `import aft`: load one of the two (AFT_LIBRARY may name it)")


def _load():
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(f"aft: {path} could not be loaded ({error.__cause__ or error}): install what it needs, or "
                          "build aft again") from error


path = _find()
built_for = _read_stamp(path)
torch = _import_torch()
loaded_torch = re.match(r"\d+\.\d+\.\d+", torch.__version__)[0]
_check_torch_version()
_check_one_copy()
_load()

__version__ = built_for["version"]

ops = torch.ops.aft

# CMAKE_PREFIX_PATH for find_package(AFT COMPONENTS torch): where the library is installed to.
cmake_prefix_path = os.path.dirname(os.path.dirname(path))
