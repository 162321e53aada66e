"""Precision, recall and memorisation by nearest neighbours.

A set's manifold is the union of balls around its points that reach to their k-th neighbour: precision is the share
of generated points in the real manifold, recall the share of real points in the generated one.
Kynkaanniemi et al. 2019, eq. 1 and 2. Density counts how many real balls a generated point lies in, over k; coverage
is the share of real balls with a generated point in them. Naeem et al. 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, mean, proportion

__all__ = ["coverage", "density", "memorised", "precision", "recall"]


def _radius(manifold: Tensor, k: int) -> Tensor:
    if k < 1 or len(manifold) <= k:
        raise ValueError(f"a manifold by {k} neighbours needs more than {k} points, got {len(manifold)}")
    parts = [torch.cdist(part, manifold).kthvalue(k + 1, dim=1).values for part in manifold.split(1024)]
    return torch.cat(parts)  # the first neighbour is the point itself


def _balls(points: Tensor, manifold: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """In how many balls of the manifold each point lies (N,), and how many points lie in each ball (M,)."""
    manifold, points = manifold.double(), points.double()
    radius = _radius(manifold, k)
    inside = [torch.cdist(part, manifold) <= radius for part in points.split(1024)]
    return torch.cat([part.sum(1) for part in inside]), torch.stack([part.sum(0) for part in inside]).sum(0)


def precision(generated: Tensor, real: Tensor, *, k: int = 3, features: str) -> Measured:
    """Share of generated features (N, D) within the real manifold (M, D)."""
    inside = _balls(generated, real, k)[0] > 0
    how = f"share of generated in the real manifold, k={k}, {features}"
    return proportion(int(inside.sum()), len(generated), how, features=features)


def recall(generated: Tensor, real: Tensor, *, k: int = 3, features: str) -> Measured:
    """Share of real features (M, D) within the generated manifold (N, D)."""
    inside = _balls(real, generated, k)[0] > 0
    how = f"share of real in the generated manifold, k={k}, {features}"
    return proportion(int(inside.sum()), len(real), how, features=features)


def density(generated: Tensor, real: Tensor, *, k: int = 5, features: str) -> Measured:
    """Mean number of real balls (M, D) that a generated point (N, D) lies in, over k; about 1 for real data."""
    inside = _balls(generated, real, k)[0].double() / k
    return mean(
        inside, f"real balls around a generated point, over k={k}", features=features, convention="about 1 is real"
    )


def coverage(generated: Tensor, real: Tensor, *, k: int = 5, features: str) -> Measured:
    """Share of real balls (M, D) that hold a generated point (N, D); 1 - 2^-k for real data of equal n."""
    held = _balls(generated, real, k)[1] > 0
    return proportion(
        int(held.sum()), len(real), f"share of real balls with a generated point, k={k}", features=features
    )


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
