"""Gradient checkpointing: blocks forget their activations and compute them again on the way back.

Memory for n blocks of m numbers falls from n m to about n + m; the forward pass of every block is paid twice.

Chen et al. 2016. torch.utils.checkpoint does the work, and puts the generator back for dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["blocks", "recomputed"]


def blocks(net: nn.Module) -> list[nn.Module]:
    """The members of every `nn.ModuleList` that is not inside another one's member."""
    found: list[nn.Module] = []
    for child in net.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return found


@contextmanager
def recomputed(net: nn.Module, on: bool, again: Callable[[], Any] = nullcontext) -> Iterator[None]:
    """While inside, the blocks of a network keep only what goes into them.

    Args:
        on: False changes nothing. again: makes the context in which they are computed again.
    Raises:
        ValueError: the network has no blocks.
    """
    found = blocks(net) if on else []
    if on and not found:
        raise ValueError(f"{type(net).__name__} has no nn.ModuleList whose members could be recomputed")
    for block in found:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=lambda: (nullcontext(), again())
        )
    try:
        yield
    finally:
        for block in found:
            del block.__dict__["forward"]
