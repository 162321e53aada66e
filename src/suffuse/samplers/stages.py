"""Runge-Kutta rules in coordinates where every schedule is a flow.

    y = x / (alpha + sigma),  tau = sigma / (alpha + sigma):    y = (1 - tau) x0 + tau eps,   dy/dtau = eps - x0

so a step is exact for data that is one point, on every schedule, and finite at both ends.
"""

from __future__ import annotations

from suffuse.samplers.rule import Point, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["heun"]


def _slope(p: Point) -> Symbol:
    return p.eps - p.x0


@sampler(order=2, stages=2)
def heun(step: Step) -> Symbol:
    """y_b = y_a + (tau_b - tau_a) (u_a + u_b')/2,  u_b' at the Euler step; a last step to t = 0 is Euler's.

    Karras et al. 2022, algorithm 1 (there in x/alpha against sigma/alpha).
    """
    a, b = step.a, step.b
    qa, qb = a.alpha + a.sigma, b.alpha + b.sigma
    h = b.sigma / qb - a.sigma / qa
    euler = qb * (a.x / qa + h * _slope(a))
    if b.sigma == 0:
        return euler
    end = step.point(euler, b.t)
    return qb * (a.x / qa + h / 2 * (_slope(a) + _slope(end)))
