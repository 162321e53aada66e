"""Shared by all tests: one seed, one thread, and where real data lies."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_every_time():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the tensors are small; tests run side by side instead
    yield


@pytest.fixture
def real_data() -> Path:
    """The folder SUFFUSE_DATA, or a skip."""
    folder = os.environ.get("SUFFUSE_DATA")
    if not folder:
        pytest.skip("SUFFUSE_DATA is not set")
    return Path(folder)
