"""What a measurement is: a value, how many samples it rests on, and an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Measured", "by_halves", "mean", "proportion"]

_Z = 1.959964


@dataclass(frozen=True)
class Measured:
    """A number with its evidence.

    Attributes:
        value: the number. n: samples it rests on.
        low, high: a 95 % interval. how: what was done, and where the interval comes from, in words.
        features: the space it was measured in, "" for the data's own or none.
        estimator: which of several estimates of one quantity. convention: which of several usages, units included.
    """

    value: float
    n: int
    low: float
    high: float
    how: str
    features: str = ""
    estimator: str = ""
    convention: str = ""

    def to_json(self) -> dict[str, Any]:
        """{"value", "n", "interval": [low, high], "how"}, and "features", "estimator", "convention" where said."""
        data: dict[str, Any] = {"value": self.value, "n": self.n, "interval": [self.low, self.high], "how": self.how}
        said = {"features": self.features, "estimator": self.estimator, "convention": self.convention}
        return data | {name: words for name, words in said.items() if words}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def proportion(hits: int, n: int, how: str, **said: str) -> Measured:
    """A share with its Wilson 95 % interval (Wilson 1927); `said` are further fields of `Measured`.

    Raises:
        ValueError: n < 1, or hits not in 0..n.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"a share needs 0 <= hits <= n and n >= 1, got {hits} of {n}")
    z, p = _Z, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Measured(p, n, max(0.0, centre - half), min(1.0, centre + half), f"{how}; Wilson interval", **said)


def mean(values: Tensor, how: str, **said: str) -> Measured:
    """The mean of (N,) values, with the normal interval of their standard error.

    Raises:
        ValueError: fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"a mean with an interval needs at least 2 values, got {len(values)}")
    values = values.double()
    value, half = values.mean().item(), _Z * values.std().item() / math.sqrt(len(values))
    if math.isinf(value):
        half = 0.0
    return Measured(value, len(values), value - half, value + half, f"{how}; interval from the standard error", **said)


def by_halves(
    statistic: Callable[..., float], sets: tuple[Tensor, ...], how: str, *, seed: int, times: int, **said: str
) -> Measured:
    """statistic(*sets), with an interval from random halves of every set without replacement.

    The spread of halves is that of the whole (Politis & Romano 1994). A bias by n is not removed: it is the same for
    all results of one n, which makes them comparable.
    """
    generator = torch.Generator().manual_seed(seed)

    def half(x: Tensor) -> Tensor:
        return x[torch.randperm(len(x), generator=generator)[: len(x) // 2]]

    value = statistic(*sets)
    spread = torch.tensor([statistic(*map(half, sets)) for _ in range(times)], dtype=torch.float64).std().item()
    how = f"{how}; interval from {times} random halves"
    return Measured(value, len(sets[0]), value - _Z * spread, value + _Z * spread, how, **said)


def two_sets(a: Tensor, b: Tensor, least: int, what: str) -> tuple[Tensor, Tensor]:
    """Both in float64, after a look at their shapes.

    Raises:
        ValueError: they are not (N, D) and (M, D), have fewer than `least` rows, or are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"{what} needs (N, D) and (M, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < least:
        raise ValueError(f"{what} needs at least {least} samples of each, got {len(a)} and {len(b)}")
    if not bool(a.isfinite().all() & b.isfinite().all()):
        raise ValueError(f"{what} needs finite samples")
    return a.detach().double(), b.detach().double()
