"""What the tests of the Python package share."""

import pytest
import torch

torch.set_num_threads(1)  # thousands of tiny calls: a second thread would only wait


@pytest.fixture(autouse=True)
def alone():
    """Every test draws the same numbers and compiles anew, run alone or with the others."""
    torch.manual_seed(7)
    torch.compiler.reset()
