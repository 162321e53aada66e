"""Precision, recall and memorisation by nearest neighbours.

A set's manifold is the union of balls around its points that reach to their k-th neighbour: precision is the share
of generated points in the real manifold, recall the share of real points in the generated one.
Kynkaanniemi et al. 2019, eq. 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, proportion

__all__ = ["memorised", "precision", "recall"]


def _covered(points: Tensor, manifold: Tensor, k: int) -> Tensor:
    if len(manifold) <= k:
        raise ValueError(f"a manifold by {k} neighbours needs more than {k} points, got {len(manifold)}")
    manifold, points = manifold.double(), points.double()
    radius = torch.cdist(manifold, manifold).kthvalue(k + 1, dim=1).values  # the first is the point itself
    return (torch.cdist(points, manifold) <= radius).any(1)


def precision(generated: Tensor, real: Tensor, *, k: int = 3, features: str) -> Measured:
    """Share of generated features (N, D) within the real manifold (M, D)."""
    inside = _covered(generated, real, k)
    return proportion(int(inside.sum()), len(generated), f"share of generated in the real manifold, k={k}, {features}")


def recall(generated: Tensor, real: Tensor, *, k: int = 3, features: str) -> Measured:
    """Share of real features (M, D) within the generated manifold (N, D)."""
    inside = _covered(real, generated, k)
    return proportion(int(inside.sum()), len(real), f"share of real in the generated manifold, k={k}, {features}")


def memorised(generated: Tensor, train: Tensor, held_out: Tensor, *, percentile: float = 1.0) -> Measured:
    """Share of samples closer to a training sample than `percentile` % of held-out real samples are.

    Distances are Euclidean in the data itself, (N, ...). A model that draws new data scores about percentile/100.
    """

    def nearest(x: Tensor) -> Tensor:
        return torch.cdist(x.flatten(1).double(), train.flatten(1).double()).min(1).values

    threshold = torch.quantile(nearest(held_out), percentile / 100)
    close = nearest(generated) < threshold
    return proportion(
        int(close.sum()),
        len(generated),
        f"share nearer to a training sample than the {percentile:g} % quantile of {len(held_out)} "
        f"real held-out samples ({threshold.item():.3f}), Euclidean in data space",
    )
