"""Distances of distributions from a kernel: KID, MMD with a Gaussian kernel, energy distance.

MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)                                 Gretton et al. 2012, eq. 3 (unbiased)
  KID:     k(x, y) = (x.y / D + 1)^3                                                           Binkowski et al. 2018
  mmd:     k(x, y) = exp(-|x - y|^2 / (2 h^2))
  energy:  k(x, y) = -|x - y|                                                                  Szekely & Rizzo 2013
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, two_sets

__all__ = ["energy_distance", "kid", "mmd"]

Kernel = Callable[[Tensor, Tensor], Tensor]


def _sums(k: Kernel, a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([k(part, b).sum(1) for part in a.split(1024)])


def _mmd(
    k: Kernel, own: Callable[[Tensor], Any], a: Tensor, b: Tensor, biased: bool, how: str, **said: str
) -> Measured:
    n, m = len(a), len(b)
    if biased:
        aa, bb = _sums(k, a, a) / n, _sums(k, b, b) / m
    else:  # own(x) = k(x, x), which is left out
        aa, bb = (_sums(k, a, a) - own(a)) / (n - 1), (_sums(k, b, b) - own(b)) / (m - 1)
    ab, ba = _sums(k, a, b) / m, _sums(k, b, a) / n
    value = (aa.mean() + bb.mean() - 2 * ab.mean()).item()
    spread = 2 * math.sqrt((aa - ab).var().item() / n + (bb - ba).var().item() / m)  # of its first projection
    said["estimator"] = "V statistic, biased" if biased else "U statistic, unbiased"
    how = f"{how}, {n} generated and {m} real samples; interval from the variance of its projection"
    return Measured(value, n, value - 1.96 * spread, value + 1.96 * spread, how, **said)


def kid(generated: Tensor, real: Tensor, *, features: str) -> Measured:
    """Kernel distance of features (N, D) and (M, D) over all pairs, unbiased at any n; may be below 0.

    Raises:
        ValueError: fewer than 2 samples, or shapes that do not fit.
    """
    a, b = two_sets(generated, real, 2, "KID")

    def k(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def own(x: Tensor) -> Tensor:
        return (x.square().mean(1) + 1) ** 3

    return _mmd(
        k, own, a, b, False, "KID", features=features, convention="squared, not times 1000; all pairs, no subsets"
    )


def mmd(
    generated: Tensor, real: Tensor, *, bandwidth: float | None = None, biased: bool = False, features: str
) -> Measured:
    """Squared maximum mean discrepancy of (N, D) and (M, D) with a Gaussian kernel.

    Args:
        generated, real: as above. features: what they are, for the record.
        bandwidth: h; by default the median distance between the first 1,000 real samples.
        biased: also count every sample with itself.
    Raises:
        ValueError: fewer than 2 samples, a bandwidth that is not above 0, or shapes that do not fit.
    """
    a, b = two_sets(generated, real, 2, "MMD")
    h = torch.pdist(b[:1000]).median().item() if bandwidth is None else bandwidth
    if not h > 0:
        raise ValueError(f"the bandwidth must be above 0, got {h:g}")

    def k(x: Tensor, y: Tensor) -> Tensor:
        return (torch.cdist(x, y).square() / (-2 * h * h)).exp()

    return _mmd(
        k, lambda x: 1.0, a, b, biased, "MMD", features=features, convention=f"squared; Gaussian kernel, h = {h:.6g}"
    )


def energy_distance(generated: Tensor, real: Tensor, *, biased: bool = False, features: str) -> Measured:
    """2 E|x - y| - E|x - x'| - E|y - y'| of (N, D) and (M, D), Euclidean; 0 for equal distributions only.

    Raises:
        ValueError: fewer than 2 samples, or shapes that do not fit.
    """
    a, b = two_sets(generated, real, 2, "the energy distance")

    def k(x: Tensor, y: Tensor) -> Tensor:
        return -torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")

    return _mmd(
        k, lambda x: 0.0, a, b, biased, "energy distance", features=features, convention="without the square root"
    )
