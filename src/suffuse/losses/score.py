"""Score matching without the score: three losses with one minimum, the score of the data.

    implicit     tr(ds/dx) + |s|^2 / 2                      Hyvarinen 2005, theorem 1
    sliced       v.(ds/dx) v + |s|^2 / 2,  E v v^T = I      Song et al. 2019 (variance reduced)
    denoising    |sigma s(x + sigma z) + z|^2 / 2           Vincent 2011; Song & Ermon 2019, eq. 5 times sigma^2

The first two want the density of the data itself to be smooth, and differ from |s - score|^2 / 2 by a constant. The
third learns the score of the data under noise. Over many noise levels it is NCSN's loss, which here is
`partial(denoising, weight=weights.eps)` for a `Denoiser` on `schedules.VE`, and `samplers.langevin` is the annealed
Langevin dynamics that goes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["denoising_score", "implicit_score", "sliced_score"]

Score = Callable[[Tensor], Tensor]


def implicit_score(score: Score, batch: Mapping[str, Tensor]) -> Tensor:
    """tr(ds/dx) + |s|^2 / 2, by row: exact, at one backward pass for each number of a row.

    Args:
        score: x -> s like x, rows apart from each other. batch: "x", (B, ...).
    Returns:
        (B,).
    """
    with torch.enable_grad():
        x = batch["x"].detach().requires_grad_()
        s = score(x).flatten(1)
        trace = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        for i in range(s.shape[1]):
            (slope,) = torch.autograd.grad(s[:, i].sum(), x, create_graph=True)
            trace = trace + slope.flatten(1)[:, i]
    return trace + s.square().sum(1) / 2


def sliced_score(score: Score, batch: Mapping[str, Tensor], *, slices: int = 1) -> Tensor:
    """v.(ds/dx) v + |s|^2 / 2, by row, with the entries of v +-1 at random.

    Args:
        score, batch: as for `implicit_score`. slices: draws of v a row; one backward pass each.
    Returns:
        (B,).
    Raises:
        ValueError: slices < 1.
    """
    if slices < 1:
        raise ValueError(f"slices must be at least 1, got {slices}")
    with torch.enable_grad():
        x = batch["x"].detach().requires_grad_()
        s = score(x)
        total = torch.zeros(len(x), device=x.device, dtype=x.dtype)
        for _ in range(slices):
            v = torch.randint_like(x, 2) * 2 - 1
            (slope,) = torch.autograd.grad((s * v).sum(), x, create_graph=True)
            total = total + (slope * v).flatten(1).sum(1)
    return total / slices + s.flatten(1).square().sum(1) / 2


def denoising_score(score: Score, batch: Mapping[str, Tensor], *, sigma: float) -> Tensor:
    """|sigma s(x + sigma z) + z|^2 / 2, by row.

    Args:
        score, batch: as for `implicit_score`. sigma: standard deviation of the noise, positive.
    Returns:
        (B,).
    Raises:
        ValueError: sigma is not positive.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, got {sigma:g}")
    x = batch["x"]
    z = torch.randn_like(x)
    return (sigma * score(x + sigma * z) + z).flatten(1).square().sum(1) / 2
