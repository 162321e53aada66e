"""Multistep exponential integrators in data prediction: DPM-Solver++.

    x_b / sigma_b = x_a / sigma_a + integral of x0 over alpha/sigma from a to b

with x0 replaced by the polynomial through its recent values.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from suffuse.samplers.rule import Level, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["dpmpp"]


@cache
def _gauss(nodes: int = 48) -> tuple[np.ndarray, np.ndarray]:
    s, w = np.polynomial.legendre.leggauss(nodes)
    return (s + 1) / 2, w / 2


def lagrange(nodes: list[float], at: np.ndarray) -> np.ndarray:
    """The values at `at` of the polynomials that are 1 at one node and 0 at the others: (nodes, at)."""
    return np.stack(
        [
            np.prod([(at - m) / (n - m) for j, m in enumerate(nodes) if j != i], axis=0) * np.ones_like(at)
            for i, n in enumerate(nodes)
        ]
    )


def bounded(alpha: np.ndarray | float, sigma: np.ndarray | float) -> np.ndarray:
    """The coordinate that polynomials through history use: sigma/(alpha + sigma), in [0, 1]."""
    return np.asarray(sigma / (alpha + sigma))


def exponential_weights(a: Level, b: Level, nodes: list[Level]) -> list[float]:
    """sigma_b times the integral over alpha/sigma from a to b of each node's Lagrange polynomial; they sum to
    alpha_b - alpha_a sigma_b / sigma_a.
    """
    total = b.alpha - a.alpha * b.sigma / a.sigma
    if len(nodes) == 1:
        return [total]
    at = [float(bounded(n.alpha, n.sigma)) for n in nodes]
    if b.sigma == 0:
        return [float(w) for w in lagrange(at, np.array([0.0]))[:, 0] * b.alpha]
    # alpha/sigma = e^u runs over decades, so integrate in u; below e^-40 of the end nothing is left
    end = b.logsnr / 2
    start = max(a.logsnr / 2, end - 40.0)
    s, w = _gauss()
    u = start + (end - start) * s
    rho = np.exp(-u)
    weight = b.alpha * (end - start) * w * np.exp(u - end)
    raw = (lagrange(at, bounded(1.0, rho)) * weight).sum(1)
    return [float(r) for r in raw * (total / raw.sum())]


def _paper(step: Step, order: int) -> Symbol:
    """The finite differences of the paper in lambda = log(alpha/sigma), which other libraries ship."""
    a, b = step.a, step.b
    nodes = [p for p in step.recent(order) if math.isfinite(p.logsnr)]
    if b.sigma == 0 or len(nodes) < 2 or not math.isfinite(a.logsnr):
        return b.sigma / a.sigma * a.x + (b.alpha - a.alpha * b.sigma / a.sigma) * a.x0
    h = (b.logsnr - a.logsnr) / 2
    gaps = [(n.logsnr - m.logsnr) / 2 for n, m in zip(nodes, nodes[1:], strict=False)]
    drop = math.expm1(-h)
    out = b.sigma / a.sigma * a.x - b.alpha * drop * a.x0
    first = (nodes[0].x0 - nodes[1].x0) / (gaps[0] / h)
    if len(nodes) == 2:
        return out - 0.5 * b.alpha * drop * first
    r0, r1 = gaps[0] / h, gaps[1] / h
    second = (nodes[1].x0 - nodes[2].x0) / r1
    d1 = first + (r0 / (r0 + r1)) * (first - second)
    d2 = (first - second) / (r0 + r1)
    return out + b.alpha * (drop / h + 1) * d1 - b.alpha * ((drop + h) / h**2 - 0.5) * d2


def _order(order: int, weights: str) -> int:
    """The published third-order formula gives the second difference half its weight: it measures as order 2."""
    return min(order, 2) if weights == "paper" else order


@sampler(order=_order, cold_order=lambda order, weights: min(order, 2))
def dpmpp(step: Step, order: int = 2, weights: str = "exact") -> Symbol:
    """x_b = (sigma_b/sigma_a) x_a + sigma_b * integral over alpha/sigma of the polynomial through recent x0.

    Args:
        order: 1, 2 or 3: how many values of x0 the polynomial uses. The first steps have fewer.
        weights: "exact" integrates the polynomial in sigma/(alpha + sigma) exactly on any grid; "paper" is the
            published finite-difference form in log(alpha/sigma), with a last step of order 1; its order 3 measures
            as order 2.
    Lu et al. 2022 (DPM-Solver++), algorithm 2 and appendix B.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpmpp has order 1, 2 or 3, got {order}")
    if weights == "paper":
        return _paper(step, order)
    if weights != "exact":
        raise ValueError(f"weights must be 'exact' or 'paper', got {weights!r}")
    a, b = step.a, step.b
    nodes = step.recent(order)
    return b.sigma / a.sigma * a.x + sum(
        (w * n.x0 for w, n in zip(exponential_weights(a, b, list(nodes)), nodes, strict=True)), Symbol({})
    )
