"""Importing this goes on in the Python whose torch the build uses (scripts/setup wrote it down), whatever called it."""

import os
import pathlib
import sys

_file = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "python"
if _file.exists():
    _python = _file.read_text().strip()
    # The variable stops a second turn, as sys.executable may be another name of the same interpreter.
    if os.path.exists(_python) and sys.executable != _python and os.environ.get("AFT_CHOSEN_PYTHON") != _python:
        os.execve(_python, [_python, *sys.argv], {**os.environ, "AFT_CHOSEN_PYTHON": _python})
