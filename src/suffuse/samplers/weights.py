"""Weights of exponential integrators: integrals of the polynomials through history, on any grid.

Data prediction:   x_b = (sigma_b/sigma_a) e^(-tau^2 h) x_a + sum_j w_j x0_j + noise,
                   w_j = (1 + tau^2) alpha_b integral of e^(-(1 + tau^2)(lambda_b - lambda)) L_j over lambda
Noise prediction:  x_b / alpha_b = x_a / alpha_a + sum_j w_j eps_j,   w_j = integral of L_j over rho = sigma/alpha

Angle:             x_b / q_b = x_a / q_a + sum_j w_j F_j,   w_j = integral of L_j over arctan(sigma / (alpha s))

with lambda = log(alpha/sigma), h = lambda_b - lambda_a, and L_j the Lagrange polynomials in a coordinate of choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from suffuse.samplers.rule import Level

__all__ = ["Coordinate", "angle", "angle_weights", "bounded", "data_weights", "lagrange", "logsnr", "noise_weights"]
__all__ += ["rho", "time"]

Coordinate = Callable[[Level, np.ndarray | None], np.ndarray]
"""(level, None) -> its coordinate; (any level, lambdas) -> the coordinates at these lambdas."""


@cache
def _gauss(nodes: int = 48) -> tuple[np.ndarray, np.ndarray]:
    s, w = np.polynomial.legendre.leggauss(nodes)
    return (s + 1) / 2, w / 2


def lagrange(nodes: Sequence[float], at: np.ndarray) -> np.ndarray:
    """The values at `at` of the polynomials that are 1 at one node and 0 at the others: (nodes, at)."""
    return np.stack(
        [
            np.prod([(at - m) / (n - m) for j, m in enumerate(nodes) if j != i], axis=0) * np.ones_like(at)
            for i, n in enumerate(nodes)
        ]
    )


def bounded(q: float = 1.0) -> Coordinate:
    """rho/(q + rho), in [0, 1]: finite at both ends of every schedule."""

    def coordinate(level: Level, at: np.ndarray | None) -> np.ndarray:
        if at is None:
            return np.asarray(level.sigma / (q * level.alpha + level.sigma))
        return 1 / (1 + q * np.exp(at))

    return coordinate


def logsnr(level: Level, at: np.ndarray | None) -> np.ndarray:
    """lambda itself; infinite at the ends, where history has to be left out."""
    return np.asarray(level.logsnr / 2) if at is None else at


def rho(level: Level, at: np.ndarray | None) -> np.ndarray:
    """sigma/alpha."""
    return np.asarray(level.rho) if at is None else np.exp(-at)


def time(level: Level, at: np.ndarray | None) -> np.ndarray:
    """t."""
    if at is None:
        return np.asarray(level.t)
    return np.array([level._schedule.time(2 * float(v)) for v in at])


def _nodes(nodes: Sequence[Level], coordinate: Coordinate) -> list[float] | None:
    values = [float(coordinate(n, None)) for n in nodes]
    return values if all(math.isfinite(v) for v in values) else None


def data_weights(
    a: Level, b: Level, nodes: Sequence[Level], coordinate: Coordinate, *, tau: float = 0.0
) -> list[float]:
    """w_j for each node, newest first; they sum to alpha_b - alpha_a (sigma_b/sigma_a) e^(-tau^2 h).

    Nodes whose coordinate is not finite get weight 0.
    """
    rate = 1 + tau * tau
    decay = 0.0 if b.sigma == 0 or a.alpha == 0 else (b.sigma * a.alpha / (a.sigma * b.alpha)) ** rate
    total = b.alpha * (1 - decay)
    if len(nodes) > 1 and _nodes(nodes, coordinate) is None:
        return [*data_weights(a, b, nodes[:-1], coordinate, tau=tau), 0.0]
    if len(nodes) == 1:
        return [total]
    at = _nodes(nodes, coordinate)
    assert at is not None
    if b.sigma == 0:
        end = float(coordinate(b, None))
        if not math.isfinite(end):
            return [total] + [0.0] * (len(nodes) - 1)
        return [float(w) for w in lagrange(at, np.array([end]))[:, 0] * b.alpha]
    # below e^-40 of the end nothing is left
    end = b.logsnr / 2
    start = max(a.logsnr / 2, end - 40.0 / rate)
    s, w = _gauss()
    u = start + (end - start) * s
    raw = (lagrange(at, coordinate(a, u)) * (w * np.exp(rate * (u - end)))).sum(1)
    return [float(r) for r in raw * (total / raw.sum())]


def noise_weights(a: Level, b: Level, nodes: Sequence[Level], coordinate: Coordinate) -> list[float]:
    """w_j for each node, newest first; they sum to rho_b - rho_a. rho_a must be finite."""
    total = b.rho - a.rho
    at = _nodes(nodes, coordinate)
    if len(nodes) > 1 and at is None:
        return [*noise_weights(a, b, nodes[:-1], coordinate), 0.0]
    if len(nodes) == 1:
        return [total]
    assert at is not None
    high = math.log(a.rho)
    low = math.log(b.rho) if b.sigma > 0 else high - 40.0
    s, w = _gauss()
    u = high + (low - high) * s
    raw = (lagrange(at, coordinate(a, -u)) * (w * np.exp(u - high))).sum(1)
    return [float(r) for r in raw * (total / raw.sum())]


def angle(level: Level, spread: float) -> float:
    """arctan(sigma / (alpha spread)): 0 at the data, pi/2 at pure noise."""
    return math.atan2(level.sigma, level.alpha * spread)


def angle_weights(a: Level, b: Level, nodes: Sequence[Level], spread: float) -> list[float]:
    """w_j for each node, newest first: the integral over the angle of polynomials in it; they sum to its change."""
    start, end = angle(a, spread), angle(b, spread)
    s, w = _gauss(8)
    values = lagrange([angle(n, spread) for n in nodes], start + (end - start) * s)
    return [float(v) for v in (values * w).sum(1) * (end - start)]
