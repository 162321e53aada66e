"""What a measurement is: a value, how many samples it rests on, and an interval."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Measured", "proportion"]


@dataclass(frozen=True)
class Measured:
    """A number with its evidence.

    Attributes:
        value: the number. n: samples it rests on.
        low, high: a 95 % interval. how: the estimator, the features and the interval, in words.
    """

    value: float
    n: int
    low: float
    high: float
    how: str

    def to_json(self) -> dict[str, Any]:
        """{"value", "n", "interval": [low, high], "how"}."""
        data = asdict(self)
        return {"value": data["value"], "n": data["n"], "interval": [data["low"], data["high"]], "how": data["how"]}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] (n={self.n})"


def proportion(hits: int, n: int, how: str) -> Measured:
    """A share with its Wilson 95 % interval (Wilson 1927).

    Raises:
        ValueError: n < 1, or hits not in 0..n.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"a share needs 0 <= hits <= n and n >= 1, got {hits} of {n}")
    z, p = 1.959964, hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Measured(p, n, max(0.0, centre - half), min(1.0, centre + half), f"{how}; Wilson interval")
