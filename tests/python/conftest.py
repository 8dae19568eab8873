"""What the tests of the Python package share."""

import os

import pytest
import torch

torch.set_num_threads(1)  # thousands of tiny calls: a second thread would only wait


def pytest_sessionstart():
    """AFT_TEST_DEVICE: where tensors are made that name no device (CMakeLists.txt)."""
    device = os.environ.get("AFT_TEST_DEVICE", "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.exit("skipped: no CUDA device here", returncode=77)
    if device != "cpu":
        torch.set_default_device(device)


@pytest.fixture(autouse=True)
def alone():
    """Every test draws the same numbers and compiles anew, run alone or with the others."""
    torch.manual_seed(7)
    torch.compiler.reset()
