"""Sets of points, and sets of such sets: Chamfer distance, and what Achlioptas et al. 2018 measure with it.

chamfer:  sum over a of min_b |a - b|^2 + sum over b of min_a |a - b|^2         (or both as means)
COV:      share of references that are the nearest one of some generated cloud
MMD:      mean over references of the distance to the nearest generated cloud  (minimum matching; no kernel)
JSD:      Jensen-Shannon divergence of where in space the points of all clouds lie
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, by_halves, mean, proportion, two_sets

__all__ = ["chamfer", "cloud_coverage", "jsd", "minimum_matching"]


def chamfer(generated: Tensor, reference: Tensor, *, reduce: str) -> Measured:
    """Chamfer distance of two sets of points (N, D) and (M, D): squared Euclidean, both directions added.

    Args:
        generated, reference: as above.
        reduce: "sum" adds over points (the KAIST diffusion course's), "mean" takes the mean of each direction.
    Raises:
        ValueError: another way to reduce, fewer than 2 points, or shapes that do not fit.
    """
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce must be 'sum' or 'mean', the two differ by n times: got {reduce!r}")
    a, b = two_sets(generated, reference, 2, "the Chamfer distance")
    there, back = _nearest(a, b), _nearest(b, a)
    value, variance = 0.0, 0.0
    for d in (there, back):
        n, times = len(d), len(d) if reduce == "sum" else 1
        value += d.mean().item() * times
        variance += d.var().item() / n * times**2
    half = 1.959964 * math.sqrt(variance)
    how = f"Chamfer distance of {len(a)} generated and {len(b)} reference points; interval from the points' spread"
    return Measured(
        value, len(a), value - half, value + half, how, convention=f"squared distances, {reduce}, both ways"
    )


def _nearest(a: Tensor, b: Tensor) -> Tensor:
    exact = "donot_use_mm_for_euclid_dist"
    return torch.cat([torch.cdist(part, b, compute_mode=exact).min(1).values for part in a.split(1024)]).square()


def _pairs(generated: Tensor, reference: Tensor) -> Tensor:
    """Mean Chamfer distances (N, M) of clouds (N, P, D) and (M, Q, D)."""
    if generated.ndim != 3 or reference.ndim != 3 or generated.shape[2] != reference.shape[2]:
        shapes = f"{tuple(generated.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"sets of clouds must be (N, P, D) and (M, Q, D), got {shapes}")
    if min(len(generated), len(reference)) < 2:
        raise ValueError(f"sets of clouds need at least 2 each, got {len(generated)} and {len(reference)}")
    rows, b = [], reference.detach().double()
    for cloud in generated.detach().double():
        d = torch.cdist(cloud.expand(len(b), -1, -1), b, compute_mode="donot_use_mm_for_euclid_dist").square()
        rows.append(d.min(2).values.mean(1) + d.min(1).values.mean(1))
    return torch.stack(rows)


_MEAN = "Chamfer distance, squared, mean of each way, added"


def cloud_coverage(generated: Tensor, reference: Tensor) -> Measured:
    """COV: share of reference clouds (M, Q, D) that are the nearest one of some generated cloud (N, P, D)."""
    hit = _pairs(generated, reference).argmin(1).unique()
    how = f"share of references that are nearest to one of {len(generated)} generated clouds"
    return proportion(len(hit), len(reference), how, convention=_MEAN)


def minimum_matching(generated: Tensor, reference: Tensor) -> Measured:
    """MMD of clouds: mean over references (M, Q, D) of the distance to the nearest generated cloud (N, P, D)."""
    how = f"distance from a reference to the nearest of {len(generated)} generated clouds"
    return mean(_pairs(generated, reference).min(0).values, how, convention=_MEAN)


def jsd(generated: Tensor, reference: Tensor, *, cells: int = 28, seed: int = 0) -> Measured:
    """JSD: how differently points of clouds (N, P, D) and (M, Q, D) fill the cube [-1, 1]^D, in bits: 0 to 1.

    Raises:
        ValueError: points outside of the cube, fewer than 4 clouds, shapes that do not fit.
    """
    if generated.ndim != 3 or reference.ndim != 3 or generated.shape[2] != reference.shape[2]:
        shapes = f"{tuple(generated.shape)} and {tuple(reference.shape)}"
        raise ValueError(f"sets of clouds must be (N, P, D) and (M, Q, D), got {shapes}")
    if min(len(generated), len(reference)) < 4:
        raise ValueError(f"jsd needs at least 4 clouds each, got {len(generated)} and {len(reference)}")
    far = max(generated.abs().max().item(), reference.abs().max().item())
    if not far <= 1:
        raise ValueError(f"jsd needs clouds in [-1, 1], got a coordinate of size {far:g}: scale them alike")
    d = generated.shape[2]

    def filled(clouds: Tensor) -> Tensor:
        at = ((clouds.detach().double() + 1) / 2 * cells).long().clamp(max=cells - 1).reshape(-1, d)
        flat = (at * cells ** torch.arange(d)).sum(1)
        return torch.bincount(flat, minlength=cells**d).double() / len(flat)

    def divergence(a: Tensor, b: Tensor) -> float:
        p, q = filled(a), filled(b)
        entropy = torch.special.entr
        return (entropy((p + q) / 2).sum() - (entropy(p).sum() + entropy(q).sum()) / 2).item() / math.log(2)

    how = f"Jensen-Shannon divergence of occupancy in {cells}^{d} cells"
    return by_halves(
        divergence,
        (generated, reference),
        how,
        seed=seed,
        times=50,
        estimator="plug-in, biased upwards by n",
        convention="in bits, not its root",
    )
