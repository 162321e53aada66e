"""Samplers that can be run back exactly: BDIA."""

from __future__ import annotations

from suffuse.samplers.rule import Level, Point, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["bdia"]


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
