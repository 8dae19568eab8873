"""run_examples.py FILE...: runs the ```python blocks of each Markdown file, in order and in one namespace.

Paths in the examples are those of a fresh build in the repository; AFT_TORCH_LIBRARY is the library that was built. A
failure is shown with the line of the file it stands in.
"""

import os
import re
import sys
import tempfile
import traceback
from pathlib import Path

BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text):
    """(line of the first statement, code) of each block."""
    return [(text.count("\n", 0, found.start(1)) + 1, found.group(1)) for found in BLOCK.finditer(text)]


def run(file):
    text = file.read_text()
    found = blocks(text)
    if not found:
        print(f"{file}: no python block: has it moved?", file=sys.stderr)
        return False
    namespace = {"__name__": "__main__"}
    for line, code in found:
        try:
            # As many empty lines before it as in the file, so that tracebacks name its lines.
            exec(compile("\n" * (line - 1) + code, str(file), "exec"), namespace)
        except Exception as error:
            own = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
            at = own[-1] if own else getattr(error, "lineno", None) or line
            statement = text.splitlines()[at - 1].strip()
            print(f"{file}:{at}: {type(error).__name__}: {error}\n    {statement}", file=sys.stderr)
            return False
    print(f"{file}: {len(found)} blocks")
    return True


def main():
    files = [Path(name).resolve() for name in sys.argv[1:]]
    if not files:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        if library := os.environ.get("AFT_TORCH_LIBRARY"):
            (Path(folder) / "build").mkdir()
            (Path(folder) / "build/lib").symlink_to(Path(library).resolve().parent)
        os.chdir(folder)
        failed = sum(not run(file) for file in files)
        sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
