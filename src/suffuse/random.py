"""Noise that depends on (seed, item, step, coordinates) and on nothing else.

Philox 4x32-10 (Salmon et al. 2011) in integer tensor operations: the same bits on every device, in every batch size
and under any padding, since a coordinate is hashed in axis by axis instead of being counted in the padded whole.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["BrownianPath", "noise"]

_LOW = 0xFFFFFFFF
_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85

Word = Any  # an int or an int64 tensor holding 32 bits


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[Word, Word]) -> tuple[Word, Word, Word, Word]:
    """Four words of 32 random bits from four of counter and two of key, ten rounds. Inputs broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2  # int64 wraps around, which leaves the low 64 bits right
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = k0 + _W0 & _LOW, k1 + _W1 & _LOW
    return c0, c1, c2, c3


def bits(
    shape: tuple[int, ...], seed: int, *, stream: int = 0, step: int = 0, first: int = 0, device: Any = None
) -> Tensor:
    """Random 32-bit words (as int64) of this shape; the first axis is the item, the last runs along the counter."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an integer in 0..2^64 - 1, got {seed!r}")
    if len(shape) < 1:
        raise ValueError("noise needs a shape with at least the batch axis")
    axes = len(shape) - 1

    def index(size: int, axis: int, start: int = 0) -> Tensor:  # axis counted in (item, *rest)
        return torch.arange(start, start + size, device=device).reshape(-1, *[1] * (axes - axis))

    items = index(shape[0], 0, first)
    key = philox((items & _LOW, items >> 32, step, stream), (seed & _LOW, seed >> 32))[:2]
    for axis in range(1, axes):
        key = philox((index(shape[axis], axis), 0, axis, 1), key)[:2]  # type: ignore[arg-type]
    if axes == 0:
        return key[0].expand(shape)
    last = shape[-1]
    words = philox((torch.arange((last + 3) // 4, device=device), 0, 0, 2), key)  # type: ignore[arg-type]
    return torch.stack(torch.broadcast_tensors(*words), -1).flatten(-2)[..., :last]


def _normal(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Box-Muller on pairs of words: (B, ..., L) words, L even, to as many normals."""
    exact = torch.float32 if words.device.type == "mps" else torch.float64
    u = (words.to(exact) + 0.5) * 2.0**-32
    radius = (-2 * u[..., 0::2].log()).sqrt()
    angle = (2 * math.pi) * u[..., 1::2]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(-2).to(dtype)


def noise(
    shape: tuple[int, ...],
    seed: int,
    *,
    step: int = 0,
    stream: int = 0,
    first: int = 0,
    device: Any = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise in which item i depends on (seed, i) only.

    Args:
        shape: (B, ...); the value at [i, c, h, w] depends on (seed, i, c, h, w), not on the sizes.
        seed: 0 to 2^64 - 1.
        step, stream: further counters, for several draws of one seed.
        first: number of the first item, so that a batch may be a part of a larger one.
    Raises:
        ValueError: the seed is not an integer in range.
    """
    shape = tuple(shape)
    if len(shape) == 1:
        return noise((*shape, 1), seed, step=step, stream=stream, first=first, device=device, dtype=dtype)[..., 0]
    even = (*shape[:-1], shape[-1] + shape[-1] % 2)
    words = bits(even, seed, step=step, stream=stream, first=first, device=device)
    return _normal(words, dtype)[..., : shape[-1]]


class BrownianPath:
    """The noise of stochastic steps: increments of one Brownian motion in the clock q = alpha^2 / sigma^2.

    Each item's path is fixed by (seed, item) alone, so 20 and 40 steps follow the same path and differ by
    discretisation only. W is refined by Brownian bridges on a fixed dyadic tree over log q, keyed by node; inside a
    leaf (0.01 in log q) it is bridged from the last query.

    Args:
        shape: of the state, (B, ...).
        seed, first, device, dtype: as for `noise`.
    """

    depth, low, high = 12, -20.0, 20.0

    def __init__(
        self,
        shape: tuple[int, ...],
        seed: int,
        *,
        first: int = 0,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape, self.seed, self.first, self.device, self.dtype = tuple(shape), seed, first, device, dtype
        self._turn = self._drawn = 0
        self.renew()
        bits((1,), seed)  # an unfit seed is an error here, not at the first step

    def renew(self) -> None:
        """Begin a new motion, independent of the one so far: after a rise, or a jump."""
        self._turn += 1
        self._last: tuple[float, Any] = (0.0, 0.0)
        self._nodes: dict[int, Any] = {}  # W at the nodes between the root and the last query

    def resize(self, rows: int) -> None:
        """Go on with another number of rows: a new motion, by place in the batch."""
        self.shape = (rows, *self.shape[1:])
        self.renew()

    def _noise(self, kind: int, number: int) -> Tensor:
        stream = kind + 4 * self._turn
        return noise(
            self.shape, self.seed, stream=stream, step=number, first=self.first, device=self.device, dtype=self.dtype
        )

    def _fresh(self) -> Tensor:
        self._drawn += 1
        return self._noise(3, self._drawn)

    def increment(self, a: float, b: float) -> Tensor:
        """(W(q_b) - W(q_a)) / sqrt(q_b - q_a): standard normal, for a step from logsnr a to logsnr b.

        A step towards more noise, or to logsnr beyond 20, draws independent noise; after a rise the motion is new.
        """
        if b <= a:
            self.renew()
            return self._fresh()
        if b > self.high:
            return self._fresh()
        start, end = math.exp(a), math.exp(b)
        before = self._value(start)
        after = self._value(end)
        return (after - before) / math.sqrt(end - start)

    def _clock(self, node: int) -> float:
        """q at node 0, where W = 0, and at nodes 1 to 2^depth, where log q runs evenly from low to high."""
        return 0.0 if node == 0 else math.exp(self.low + (node - 1) * (self.high - self.low) / (2**self.depth - 1))

    def _value(self, q: float) -> Any:
        """W(q), by descending the tree; 0.0 at q = 0."""
        if q == self._last[0]:
            return self._last[1]
        root = 2**self.depth
        place = (math.log(q) - self.low) * (root - 1) / (self.high - self.low) + 1
        path: dict[int, Any] = {0: 0.0, root: self._nodes.get(root)}
        if path[root] is None:
            path[root] = self._noise(0, root) * math.sqrt(self._clock(root))
        left, right = 0, root
        while right - left > 1:
            middle = (left + right) // 2
            value = self._nodes.get(middle)
            if value is None:
                value = self._bridge(left, path[left], right, path[right], self._clock(middle), self._noise(0, middle))
            path[middle] = value
            left, right = (middle, right) if middle <= place else (left, middle)
        self._nodes = path
        at, w, xi = self._clock(left), path[left], None
        if at < self._last[0] < q:  # two queries in one leaf
            (at, w), xi = self._last, self._fresh()
        w = self._between(at, w, self._clock(right), path[right], q, self._noise(1, left) if xi is None else xi)
        self._last = (q, w)
        return w

    def _bridge(self, left: int, wa: Any, right: int, wb: Any, q: float, xi: Tensor) -> Tensor:
        return self._between(self._clock(left), wa, self._clock(right), wb, q, xi)

    @staticmethod
    def _between(qa: float, wa: Any, qb: float, wb: Any, q: float, xi: Tensor) -> Tensor:
        """W(q) between W(qa) and W(qb): mean linear in q, variance (q - qa)(qb - q)/(qb - qa)."""
        share = (q - qa) / (qb - qa)
        return wa + (wb - wa) * share + xi * math.sqrt((q - qa) * (1 - share))
