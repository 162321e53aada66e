"""Samplers that can be run back exactly: BDIA and EDICT."""

from __future__ import annotations

from suffuse.samplers.rule import Level, Point, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["bdia", "edict"]


def _ddim(a: Point, b: Level) -> Symbol:
    return b.alpha * a.x0 + b.sigma * a.eps


@sampler(order=lambda gamma: 2 if gamma == 1 else 1)
def bdia(step: Step, gamma: float = 1.0) -> Symbol:
    """x_b = DDIM from a to b + gamma (x_before - DDIM from a back to before): run back with 1/gamma, it is exact.

    Args:
        gamma: 0 is DDIM; 1 treats both directions alike.
    Zhang et al. 2024 (BDIA), eq. 16.
    """
    a, before = step.a, step.past(1)
    out = _ddim(a, step.b)
    return out if before is None else out + gamma * (before.x - _ddim(a, before))


@sampler(order=1, stages=2, law="consistent")
def edict(step: Step, p: float = 0.93) -> tuple[Symbol, Symbol]:
    """Two states that step by each other's prediction, and are then mixed; run backward, it is exact.

    x' = F(x; y),  y' = F(y; x'),  x_b = p x' + (1 - p) y',  y_b = p y' + (1 - p) x_b,
    F(x; y) = DDIM's step of x with what is predicted at y and t_a, in x/(alpha + sigma) against sigma/(alpha + sigma):
    the published step in eps alone grows without bound from alpha = 0.

    Start from one state (the two are then equal), or with `plan(..., partner=True)` from [x, y]; a run's steps have
    `.x` and `.partner`. Inversion is `plan(..., backward=True)`, from data to noise.

    Args:
        p: how much of itself a state keeps, in (0, 1]; 1 lets the two drift apart.
    Wallace et al. 2023 (EDICT).
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be in (0, 1], got {p:g}")
    a, b, y = step.a, step.b, step.partner
    qa, qb = a.alpha + a.sigma, b.alpha + b.sigma

    def moved(x: Symbol, by: Point) -> Symbol:
        return qb * (x / qa + (b.sigma / qb - a.sigma / qa) * (by.eps - by.x0))

    if b.t < a.t:
        x_mid = step.point(moved(a.x, y), a.t)
        y_mid = moved(y.x, x_mid)
        x = p * x_mid.x + (1 - p) * y_mid
        return x, p * y_mid + (1 - p) * x
    y_mid = (y.x - (1 - p) * a.x) / p
    x_mid = step.point((a.x - (1 - p) * y_mid) / p, b.t)
    y_b = step.point(moved(y_mid, x_mid), b.t)
    return moved(x_mid.x, y_b), y_b.x
