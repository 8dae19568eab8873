"""The examples of docs/python.md, one after another."""

import pathlib
import sys

from aft.models import ByteLM, ModelConfig

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "docs"))
import run_examples

ROOT = pathlib.Path(__file__).parents[2]


def test_examples_of_the_page_run(tmp_path, monkeypatch):
    run = tmp_path / "runs/quickstart"  # where the page has a trained one
    run.mkdir(parents=True)
    ByteLM(ModelConfig(layers=1, channels=16, mlp_channels=32, context=64)).save(run / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert run_examples.run(ROOT / "docs/python.md")
    assert ByteLM.from_file("mine.safetensors").config.context == 64


def test_a_failing_example_is_seen(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 1\n```\n\n```python\n\nassert 1 == 2\n```\n")
    assert not run_examples.run(page)
    assert f"{page}:7: AssertionError" in capsys.readouterr().err
