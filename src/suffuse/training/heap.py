"""Keep the memory of freed tensors for the next ones."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch

__all__ = ["keeping_heap"]

TRIM, MMAP, MMAPS = -1, -3, -4
"""glibc's names: beyond how much its heap hands back, from what size and how often it asks for memory elsewhere."""


@contextlib.contextmanager
def keeping_heap(device: torch.device) -> Iterator[None]:
    """Let glibc hand no freed memory back to the system in the block; for other devices or libraries do nothing.

    It hands back every tensor over 32 MB that is freed, and the next step takes it anew, a fault for each of its
    pages: a sixth of a CPU's training time. At the end of the block what is free is handed back, and blocks of 32 MB
    are again what is asked for elsewhere (the most that glibc comes to by itself).
    """
    heap = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" else None
    if not hasattr(heap, "mallopt"):
        yield
        return
    assert heap is not None
    heap.mallopt(MMAPS, 0)
    heap.mallopt(TRIM, -1)
    try:
        yield
    finally:
        heap.mallopt(MMAPS, 65536)
        heap.mallopt(MMAP, 1 << 25)
        heap.mallopt(TRIM, 1 << 26)
        heap.malloc_trim(0)
