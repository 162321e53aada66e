"""Frechet distance between the Gaussians that fit two sets of features.

FD = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)          Heusel et al. 2017, eq. 6
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, by_halves

__all__ = ["frechet", "frechet_ratio"]

_CONVENTION = "squared distance; covariances over n - 1"


def _moments(features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    n, d = features.shape
    if n <= d:
        raise ValueError(f"a covariance of {d} features needs more than {d} samples, {name} has {n}")
    return features.mean(0), torch.cov(features.T).reshape(d, d)


def _root(c: Tensor) -> Tensor:
    values, basis = torch.linalg.eigh(c)
    return (basis * values.clamp(min=0).sqrt()) @ basis.T


def _distance(a: Tensor, b: Tensor) -> float:
    (ma, ca), (mb, cb) = _moments(a.double(), "the first set"), _moments(b.double(), "the second set")
    root = _root(ca)
    cross = torch.linalg.eigvalsh(root @ cb @ root).clamp(min=0).sqrt().sum()
    return ((ma - mb).square().sum() + ca.trace() + cb.trace() - 2 * cross).item()


def frechet(generated: Tensor, real: Tensor, *, features: str, seed: int = 0) -> Measured:
    """Frechet distance of features (N, D) and (M, D), in float64. It is biased upwards by n: compare equal n.

    Raises:
        ValueError: half of N or of M, which the interval rests on, is not larger than D.
    """
    d = generated.shape[1]
    if min(len(generated), len(real)) // 2 <= d:
        n = f"{len(generated)} and {len(real)}"
        raise ValueError(f"a Frechet distance of {d} features needs at least {2 * d + 2} samples of each, got {n}")
    how = f"Frechet distance of {len(generated)} generated to {len(real)} real samples"
    return by_halves(_distance, (generated, real), how, seed=seed, times=100, features=features, convention=_CONVENTION)


def frechet_ratio(generated: Tensor, real: Tensor, held_out: Tensor, *, features: str, seed: int = 0) -> Measured:
    """FD(generated, held out) / FD(real, held out): 1 is as close to unseen data as real data is.

    The distance is biased by n, so the interval is by subsampling: halves without replacement, whose spread is that
    of the whole (Politis & Romano 1994), and generated and real should have the same n.

    Args:
        generated, real, held_out: features (N, D), (N, D), (M, D).
        features: what they are features of, for the record.
    Raises:
        ValueError: a set, or half of the generated, has no more than D samples, where a covariance has no full rank.
    """
    base = _distance(real, held_out)
    value = _distance(generated, held_out) / base
    generator = torch.Generator().manual_seed(seed)
    n = len(generated)
    halves = torch.tensor(
        [_distance(generated[torch.randperm(n, generator=generator)[: n // 2]], held_out) / base for _ in range(100)],
        dtype=torch.float64,
    )
    half = 1.96 * halves.std().item()
    how = (
        f"Frechet distance in {features} over that of {len(real)} real training samples, both to {len(held_out)} "
        "held-out real samples; interval from 100 random halves"
    )
    return Measured(value, n, value - half, value + half, how, features=features, convention=_CONVENTION)
