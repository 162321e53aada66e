"""The memory of freed tensors is kept while a model is trained, and handed back afterwards."""

import ctypes
import resource
import sys

import pytest
import torch

from suffuse.training.heap import keeping_heap

glibc = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")


def faults() -> int:
    """Pages that the system has handed out for a tensor of 128 MB that is made and freed three times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        torch.ones(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not glibc, reason="only glibc's heap can be told")
def test_a_large_tensor_takes_the_place_of_the_last():
    faults()
    loose = faults()
    with keeping_heap(torch.device("cpu")):
        faults()
        kept = faults()
    assert kept < 0.1 * loose
    assert faults() > 0.5 * loose


@pytest.mark.skipif(not glibc, reason="only glibc's heap can be told")
def test_it_is_handed_back_after_an_error_and_left_alone_for_other_devices():
    loose = faults()
    with pytest.raises(RuntimeError, match="stop"), keeping_heap(torch.device("cpu")):
        raise RuntimeError("stop")
    assert faults() > 0.5 * loose
    with keeping_heap(torch.device("cuda")):
        assert faults() > 0.5 * loose


@pytest.mark.skipif(not glibc, reason="only glibc's heap can be told")
def test_blocks_within_each_other_and_what_the_user_has_told_glibc(monkeypatch):
    cpu = torch.device("cpu")
    loose = faults()
    with keeping_heap(cpu):
        with keeping_heap(cpu):
            faults()
        faults()
        assert faults() < 0.1 * loose
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    with keeping_heap(cpu):
        faults()
        assert faults() > 0.5 * loose
