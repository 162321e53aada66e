"""Weights as functions of logsnr, each of which means the same whatever the network predicts.

At a given x, errors of every prediction are multiples of one another: with output = a x0 + b eps,

    |error of output|^2 = ((alpha b - sigma a) / sigma)^2 |error of x0|^2,    |error of eps|^2 = snr |error of x0|^2.

The common unit is the squared error of v on a variance preserving schedule, because it is regular at both ends. With
p = sigmoid(logsnr) = alpha^2 and q = sigmoid(-logsnr) = sigma^2 there,

    |error of v|^2 = |error of eps|^2 / p = |error of x0|^2 / q = (alpha^2 + sigma^2) / (alpha b - sigma a)^2 |error of output|^2

where the last holds on any schedule. A weight is a callable (logsnr) -> what multiplies |error of v|^2:

    name                in its paper                            here
    eps                 1 on eps                                p
    x0                  1 on x0                                 q
    v                   1 on v, or snr + 1 on x0                1
    velocity            1 on eps - x0 of the linear flow        (sqrt p + sqrt q)^2
    edm(s)              snr + 1/s^2 on x0                       p + q/s^2
    min_snr(g)          min(snr, g) on x0                       min(p, g q)
    soft_min_snr(g)     snr g / (snr + g) on x0                 p g q / (p + g q)
    sigmoid(b)          sigmoid(b - logsnr) on eps              p sigmoid(b - logsnr)

Salimans & Ho 2022; Karras et al. 2022, table 1; Hang et al. 2023; Crowson et al. 2024; Kingma & Gao 2023.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Weight", "edm", "eps", "min_snr", "on_output", "sigmoid", "soft_min_snr", "v", "velocity", "x0"]

Weight = Callable[[Tensor], Tensor]


def eps(logsnr: Tensor) -> Tensor:
    """1 on the squared error of eps: DDPM's "simple" loss, and NCSN's sigma^2 on that of the score."""
    return logsnr.sigmoid()


def x0(logsnr: Tensor) -> Tensor:
    """1 on the squared error of x0."""
    return logsnr.neg().sigmoid()


def v(logsnr: Tensor) -> Tensor:
    """1 on the squared error of v on a variance preserving schedule, that is snr + 1 on that of x0."""
    return torch.ones_like(logsnr)


def velocity(logsnr: Tensor) -> Tensor:
    """1 on the squared error of eps - x0 at the same logsnr of the linear flow."""
    return (eps(logsnr).sqrt() + x0(logsnr).sqrt()) ** 2


def edm(data_std: float = 0.5) -> Weight:
    """snr + 1/s^2 on the squared error of x0: 1 on EDM's F.

    Args:
        data_std: s, positive.
    """
    _positive("data_std", data_std)
    return lambda logsnr: eps(logsnr) + x0(logsnr) / data_std**2


def min_snr(gamma: float = 5.0) -> Weight:
    """min(snr, gamma) on the squared error of x0.

    Args:
        gamma: positive.
    """
    _positive("gamma", gamma)
    return lambda logsnr: torch.minimum(eps(logsnr), gamma * x0(logsnr))


def soft_min_snr(gamma: float = 4.0) -> Weight:
    """snr gamma / (snr + gamma) on the squared error of x0: `min_snr` without the corner.

    Args:
        gamma: positive.
    """
    _positive("gamma", gamma)
    return lambda logsnr: eps(logsnr) * gamma * x0(logsnr) / (eps(logsnr) + gamma * x0(logsnr))


def sigmoid(bias: float = 0.0) -> Weight:
    """sigmoid(bias - logsnr) on the squared error of eps, as written for times that are uniform in logsnr.

    Args:
        bias: the logsnr above which detail stops to count.
    """
    return lambda logsnr: eps(logsnr) * (bias - logsnr).sigmoid()


def on_output(weight: Weight, logsnr: Tensor, alpha: Tensor, sigma: Tensor, row: tuple[Any, Any]) -> Tensor:
    """What multiplies the squared error of an output that is read with this row: the one conversion.

    weight(logsnr) (alpha^2 + sigma^2) / (alpha b - sigma a)^2. Where the row says nothing (eps at alpha = 0, x0 at
    sigma = 0) the divisor is held at 1e-30, so that a drawn time that rounds to an end harms no run.
    """
    a, b = row
    return weight(logsnr) * (alpha**2 + sigma**2) / (alpha * b - sigma * a).square().clamp(min=1e-30)


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number, got {value:g}")
