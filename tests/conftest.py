"""Shared by all tests: one seed and one thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are small; tests run side by side instead
    yield
