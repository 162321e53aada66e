"""UniPC: a unified predictor and corrector in data prediction, in lambda = log(alpha/sigma).

    x_b = (sigma_b/sigma_a) x_a - alpha_b (e^-h - 1) x0_a - alpha_b B(h) sum_k c_k (x0_k - x0_a)/r_k,
    r_k = (lambda_k - lambda_a)/h,   sum_k r_k^(i-1) c_k = i! phi_(i+1)(-h) (-h)^i ... / B(h)   for i = 1, 2, ...

Zhao et al. 2023, eq. 3, 5 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from suffuse.samplers.adams import evaluated
from suffuse.samplers.rule import Level, Point, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["unipc"]


def _coefficients(h: float, r: Sequence[float], b_h: float) -> list[float]:
    """c_k that match the Taylor terms; a single one is 1/2, as published."""
    if len(r) == 1:
        return [0.5]
    target, phi, factorial = [], math.expm1(-h) / -h - 1, 1.0
    for i in range(1, len(r) + 1):
        factorial *= i
        target.append(phi * factorial / b_h)
        phi = phi / -h - 1 / (factorial * (i + 1))
    powers = np.array([[x ** (i - 1) for x in r] for i in range(1, len(r) + 1)])
    return [float(c) for c in np.linalg.solve(powers, np.array(target))]


def _step(a: Point, anchor: Point, b: Level, others: Sequence[Point], variant: str) -> Symbol:
    h = (b.logsnr - a.logsnr) / 2
    b_h = math.expm1(-h) if variant == "bh2" else -h
    out = b.sigma / a.sigma * a.x + (b.alpha - a.alpha * b.sigma / a.sigma) * anchor.x0
    r = [(p.logsnr - anchor.logsnr) / 2 / h for p in others]
    for c, gap, p in zip(_coefficients(h, r, b_h) if r else [], r, others, strict=True):
        out = out - b.alpha * b_h * c / gap * (p.x0 - anchor.x0)
    return out


@sampler(
    order=lambda order, variant: order + 1, cold_order=lambda order, variant: min(order + 1, 3 if order > 1 else 2)
)
def unipc(step: Step, order: int = 2, variant: str = "bh2") -> Symbol:
    """Predict with `order` values of x0, evaluate at the guess, correct with that value too.

    Args:
        order: 1, 2 or 3; the order of accuracy is one more. variant: "bh1" is B(h) = h, "bh2" is e^h - 1.
    Zhao et al. 2023 (UniPC), algorithm 1.
    """
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant must be 'bh1' or 'bh2', got {variant!r}")
    a, b = step.a, step.b
    known = [p for i, p in enumerate(evaluated(step)) if i == 0 or math.isfinite(p.logsnr)]
    if not math.isfinite(a.logsnr) or b.sigma == 0:
        guess = b.sigma / a.sigma * a.x + (b.alpha - a.alpha * b.sigma / a.sigma) * known[0].x0
        if step.k < step.n - 1:
            step.keep([step.point(guess, b.t), *known][:4])
        return guess
    guess = _step(a, known[0], b, known[1:order], variant)
    if step.k == step.n - 1:
        return guess
    new = step.point(guess, b.t)
    step.keep([new, *known][:4])
    return _step(a, known[0], b, [*known[1:order], new], variant)
