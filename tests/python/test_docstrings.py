"""Every example in the package's docstrings runs as it stands, what is public has one, docs/python-api.md is theirs."""

import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import aft
import pytest
import torch

MODULES = ["aft", *(m.name for m in pkgutil.walk_packages(aft.__path__, "aft.") if m.name != "aft.__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    names = {"aft": aft, "torch": torch}
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs=names):
        torch.manual_seed(3)
        said = []
        result = doctest.DocTestRunner().run(test, out=said.append)
        assert result.failed == 0, "".join(said)


def test_what_is_public_is_documented():
    things = [getattr(aft, name) for name in aft.__all__] + [getattr(aft.nn, name) for name in aft.nn.__all__]
    for thing in things:
        assert inspect.getdoc(thing), thing
    for thing in things:
        is_layer = inspect.isclass(thing) and issubclass(thing, torch.nn.Module)
        if is_layer or thing is aft.State or inspect.getmodule(thing) is aft.functional:
            assert ">>> " in inspect.getdoc(thing), f"{thing} has no example"


def test_api_reference():
    script = Path(__file__).parents[2] / "scripts" / "python-api"
    if not script.exists():
        pytest.skip("scripts/python-api is not beside the tests")
    run = subprocess.run([sys.executable, script, "--check"], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
