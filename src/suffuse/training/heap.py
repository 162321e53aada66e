"""Keep the memory of freed tensors for the next ones."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

import torch

__all__ = ["keeping_heap"]

TRIM, MMAP, MMAPS = -1, -3, -4
"""glibc's names: beyond how much its heap hands back, from what size and how often it asks for memory elsewhere."""
_lock, _inside = threading.Lock(), 0


@contextlib.contextmanager
def keeping_heap(device: torch.device) -> Iterator[None]:
    """Let glibc hand no freed memory back to the system in the block; for other devices or libraries do nothing.

    It hands back every tensor over 32 MB that is freed, and the next step takes it anew, with a fault for each of its
    pages. When the last block ends, what is free is handed back, and tensors of 32 MB are handed back again, which is
    what glibc comes to by itself. Whoever has told glibc otherwise in the environment is not overruled.
    """
    global _inside
    told = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    heap = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" and not told else None
    if heap is None or not (hasattr(heap, "mallopt") and hasattr(heap, "malloc_trim")):
        yield
        return
    with _lock:
        _inside += 1
        heap.mallopt(MMAPS, 0)
        heap.mallopt(TRIM, -1)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                heap.mallopt(MMAPS, 65536)
                heap.mallopt(MMAP, 1 << 25)
                heap.mallopt(TRIM, 1 << 26)
                heap.malloc_trim(0)
