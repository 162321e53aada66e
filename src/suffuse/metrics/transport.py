"""Wasserstein distances: exact by assignment, and averaged over lines.

W_p = (min over matchings of the mean of |x_i - y_pi(i)|^p)^(1/p)
SW_p = (E over directions u of W_p(u.x, u.y)^p)^(1/p)                                              Bonneel et al. 2015
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, by_halves, two_sets
from suffuse.random import noise

__all__ = ["sliced_wasserstein", "wasserstein"]


def wasserstein(generated: Tensor, real: Tensor, *, p: int = 2, features: str, seed: int = 0) -> Measured:
    """The exact distance of two sets of N points (N, D). Large for its n: compare equal n, and print real to real.

    Args:
        generated, real: as above. p: 1 or 2. features: what they are, for the record. seed: of the halves.
    Raises:
        ValueError: different N, N < 4, or p.
    """
    _order(p)
    a, b = two_sets(generated, real, 4, f"W{p}")
    if len(a) != len(b):
        raise ValueError(f"W{p} by assignment needs as many generated as real samples, got {len(a)} and {len(b)}")
    try:
        from scipy.optimize import linear_sum_assignment
    except ModuleNotFoundError:
        raise ModuleNotFoundError("W by assignment needs scipy: pip install 'suffuse[metrics]'") from None

    def distance(a: Tensor, b: Tensor) -> float:
        cost = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** p
        rows, columns = linear_sum_assignment(cost.numpy())
        return cost[rows, columns].mean().item() ** (1 / p)

    return by_halves(
        distance,
        (a, b),
        f"exact W{p} by assignment",
        seed=seed,
        times=20,
        features=features,
        estimator="plug-in, biased upwards by n",
        convention=f"W{p} itself, not its power; Euclidean ground distance",
    )


def sliced_wasserstein(
    generated: Tensor, real: Tensor, *, p: int = 2, directions: int = 512, seed: int = 0, features: str
) -> Measured:
    """The mean over random directions of the distance on a line, of (N, D) and (M, D).

    Args:
        generated, real: as above. p: 1 or 2. directions: how many. seed: of the directions and the halves.
        features: what they are, for the record.
    Raises:
        ValueError: fewer than 4 samples, p, or directions < 1.
    """
    _order(p)
    a, b = two_sets(generated, real, 4, f"sliced W{p}")
    if directions < 1:
        raise ValueError(f"directions must be at least 1, got {directions}")
    u = torch.nn.functional.normalize(noise((directions, a.shape[1]), seed, dtype=torch.float64), dim=1)

    def distance(a: Tensor, b: Tensor) -> float:
        total = sum(_on_lines(a @ part.T, b @ part.T, p).sum().item() for part in u.split(64))
        return (total / directions) ** (1 / p)

    return by_halves(
        distance,
        (a, b),
        f"sliced W{p} over {directions} directions",
        seed=seed,
        times=50,
        features=features,
        estimator="plug-in, biased upwards by n",
        convention=f"the {'root of the ' if p == 2 else ''}mean over unit directions of W{p}^{p}, not times D",
    )


def _on_lines(a: Tensor, b: Tensor, p: int) -> Tensor:
    """W_p^p of the columns of (N, K) and (M, K): the integral of |F_a^-1 - F_b^-1|^p over the levels in (0, 1)."""
    a, b = a.sort(0).values, b.sort(0).values
    n, m = len(a), len(b)
    if n == m:
        return (a - b).abs().pow(p).mean(0)
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()  # levels times n m
    widths = steps.diff(prepend=steps.new_zeros(1)).double() / (n * m)
    upto = steps - 1
    return (widths[:, None] * (a[upto // m] - b[upto // n]).abs().pow(p)).sum(0)


def _order(p: int) -> None:
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
