"""Runge-Kutta rules in coordinates where every schedule is a flow.

    y = x / (alpha + sigma),  tau = sigma / (alpha + sigma):    y = (1 - tau) x0 + tau eps,   dy/dtau = eps - x0

so a step is exact for data that is one point, on every schedule, and finite at both ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from suffuse.samplers.rule import Point, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["heun", "kutta3", "midpoint", "rk4"]

Table = Sequence[tuple[float, Sequence[float]]]
"""A Butcher table: (share of the step, weights of the slopes so far) for each further stage."""


def _slope(p: Point) -> Symbol:
    return p.eps - p.x0


def _runge_kutta(step: Step, table: Table, weights: Sequence[float]) -> Symbol:
    a, b = step.a, step.b
    qa, qb = a.alpha + a.sigma, b.alpha + b.sigma
    start, h = a.sigma / qa, b.sigma / qb - a.sigma / qa
    slopes = [_slope(a)]

    def moved(q: float, w: Sequence[float]) -> Symbol:
        return q * (a.x / qa + h * sum((c * u for c, u in zip(w, slopes, strict=True)), Symbol({})))

    for share, w in table:
        tau = start + share * h
        level = b if share == 1 else step.at_rho(tau / (1 - tau))
        slopes.append(_slope(step.point(moved(level.alpha + level.sigma, w), level.t)))
    return moved(qb, weights)


_MIDPOINT: Table = [(0.5, [0.5])]


@sampler(order=2, stages=2)
def heun(step: Step) -> Symbol:
    """y_b = y_a + (tau_b - tau_a) (u_a + u_b')/2,  u_b' at the Euler step; a last step to t = 0 is Euler's.

    Karras et al. 2022, algorithm 1 (there in x/alpha against sigma/alpha).
    """
    if step.b.sigma == 0:
        return _runge_kutta(step, [], [1.0])
    return _runge_kutta(step, [(1.0, [1.0])], [0.5, 0.5])


@sampler(order=2, stages=2)
def midpoint(step: Step) -> Symbol:
    """y_b = y_a + (tau_b - tau_a) u_s,  s half way by Euler.

    Runge 1895.
    """
    return _runge_kutta(step, _MIDPOINT, [0.0, 1.0])


@sampler(order=3, stages=3)
def kutta3(step: Step) -> Symbol:
    """Slopes at a, half way and b, weighted 1/6, 4/6, 1/6; a last step to t = 0 is the midpoint's.

    Kutta 1901.
    """
    if step.b.sigma == 0:
        return _runge_kutta(step, _MIDPOINT, [0.0, 1.0])
    return _runge_kutta(step, [(0.5, [0.5]), (1.0, [-1.0, 2.0])], [1 / 6, 4 / 6, 1 / 6])


@sampler(order=4, stages=4)
def rk4(step: Step) -> Symbol:
    """The classical four slopes, weighted 1/6, 2/6, 2/6, 1/6; a last step to t = 0 is the midpoint's.

    Kutta 1901.
    """
    if step.b.sigma == 0:
        return _runge_kutta(step, _MIDPOINT, [0.0, 1.0])
    return _runge_kutta(step, [(0.5, [0.5]), (0.5, [0.0, 0.5]), (1.0, [0.0, 0.0, 1.0])], [1 / 6, 2 / 6, 2 / 6, 1 / 6])
