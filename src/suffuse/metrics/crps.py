"""Continuous ranked probability score of an ensemble: a proper score of a forecast, in the units of the data.

CRPS(F, y) = E|X - y| - E|X - X'| / 2                                          Gneiting & Raftery 2007, eq. 21
"""

from __future__ import annotations

import torch
from torch import Tensor

from suffuse.metrics.result import Measured, mean

__all__ = ["crps"]


def crps(ensemble: Tensor, observed: Tensor, *, fair: bool = True) -> Measured:
    """The mean score of N forecasts; smaller is better, and for one exact member it is the absolute error.

    Args:
        ensemble: (N, M, ...) members. observed: (N, ...).
        fair: count pairs of different members only, which is unbiased in M; else the ensemble is taken as it is.
    Raises:
        ValueError: shapes that do not fit, N < 2, or M < 2 where it is fair.
    """
    if ensemble.ndim < 2 or ensemble.shape[:1] + ensemble.shape[2:] != observed.shape:
        raise ValueError(f"crps needs (N, M, ...) and (N, ...), got {tuple(ensemble.shape)}, {tuple(observed.shape)}")
    m = ensemble.shape[1]
    if m < 1 + fair:
        raise ValueError(f"crps needs at least {1 + fair} members, got {m}")
    x, y = ensemble.detach().double().sort(1).values, observed.detach().double()
    error = (x - y[:, None]).abs().mean(1)
    weights = 2 * torch.arange(1, m + 1, dtype=torch.float64, device=x.device) - m - 1  # sum of |x_i - x_j| = 2 w.x
    spread = (x * weights.reshape(1, m, *[1] * (x.ndim - 2))).sum(1) * (2 / (m * (m - 1 if fair else m)))
    each = (error - spread / 2).reshape(len(y), -1).mean(1)
    return mean(
        each,
        f"mean CRPS of {m} members over {observed[0].numel()} values a forecast",
        estimator="fair, unbiased in M" if fair else "of the ensemble as it is, biased in M",
        convention="units of the data; smaller is better",
    )
