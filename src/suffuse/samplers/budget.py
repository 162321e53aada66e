"""Counting what a run really costs: every row that goes through a network, not what the sampler says it asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from suffuse.denoise import networks

__all__ = ["Spent", "budget"]


@dataclass
class Spent:
    """What was spent within `budget`: `calls` of networks, and `rows` through them; `nfe` a sample of a batch."""

    calls: int = 0
    rows: int = 0
    batch: int = 1

    @property
    def nfe(self) -> float:
        """Rows through the network for each sample: a guided evaluation counts 2, also where it is one call."""
        return self.rows / self.batch


@contextlib.contextmanager
def budget(denoiser: Any, n: int, nfe: float = float("inf")) -> Iterator[Spent]:
    """Count the network evaluations within, and stop the one that is too many.

    with samplers.budget(model, len(noise), nfe=4) as spent:
        x = sample(model, noise, nfe=4)

    Args:
        denoiser: made of torch modules. n: how many samples are made. nfe: the most that each may cost.
    Raises:
        ValueError: an evaluation goes over it; there is no network to count.
    """
    nets = {id(net): net for net in networks(denoiser)}.values()
    if not nets:
        raise ValueError(f"nothing to count: {denoiser!r} holds no torch module")
    spent = Spent(batch=n)

    def count(net: Any, args: tuple[Any, ...]) -> None:
        spent.calls += 1
        spent.rows += len(args[0])
        if spent.rows > nfe * n:
            raise ValueError(f"over budget: evaluation {spent.nfe:g} a sample, where {nfe:g} were allowed")

    hooks = [net.register_forward_pre_hook(count) for net in nets]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()
