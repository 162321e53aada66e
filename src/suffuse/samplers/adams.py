"""Adams rules: multistep integrators of x0 or eps, with and without a corrector.

    data:   x_b = (sigma_b/sigma_a) x_a + sum_j w_j x0_j
    noise:  x_b = DDIM's step + alpha_b sum_j w_j (eps_j - eps_a)

The weights integrate the polynomial through history exactly; the coordinate of that polynomial names the method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from suffuse.samplers import weights
from suffuse.samplers.rule import Level, Point, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["adams", "deis", "lms", "noise_adams", "plms", "sa_solver", "trig_adams"]


def _sum(w: Sequence[float], values: Sequence[Symbol]) -> Symbol:
    return sum((c * v for c, v in zip(w, values, strict=True)), Symbol({}))


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be at least {least:g}, got {value:g}")


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a positive number, got {value:g}")


def evaluated(step: Step) -> list[Point]:
    """The points whose predictions a predict-evaluate-correct rule may use, newest first: where it evaluated."""
    before = step.past(1)
    if before is not None and before.kept is not None:
        return before.kept
    return step.recent(8)


def _predict_correct(step: Step, through: Callable[[Sequence[Point]], Symbol], order: int, corrector: int) -> Symbol:
    """The state `through` the last `order` values; evaluated there, and made again with `corrector` values.

    The last step is not corrected: that would cost a call more.
    """
    known = evaluated(step)
    guess = through(known[:order])
    if corrector < 2 or step.k == step.n - 1:
        return guess
    known = [step.point(guess, step.b.t), *known]
    step.keep(known[:8])
    return through(known[:corrector])


def _data(
    step: Step, carried: Symbol, coordinate: weights.Coordinate, tau: float = 0.0
) -> Callable[[Sequence[Point]], Symbol]:
    """nodes -> carried + sum_j w_j x0_j."""

    def through(nodes: Sequence[Point]) -> Symbol:
        return carried + _sum(weights.data_weights(step.a, step.b, nodes, coordinate, tau=tau), [n.x0 for n in nodes])

    return through


def _adams_order(order: int, corrector: int, q: float, last: int) -> int:
    return order if corrector < 2 else min(corrector, order + 1)


def _adams_cold(order: int, corrector: int, q: float, last: int) -> int:
    return min(_adams_order(order, corrector, q, last), 2 if corrector < 2 else 3)


def _angle_order(order: int, corrector: int, spread: float, last: int) -> int:
    return _adams_order(order, corrector, spread, last)


def _angle_cold(order: int, corrector: int, spread: float, last: int) -> int:
    return _adams_cold(order, corrector, spread, last)


@sampler(order=_adams_order, cold_order=_adams_cold)
def adams(step: Step, order: int = 3, corrector: int = 4, q: float = 1.0, last: int = 1) -> Symbol:
    """Predict x_b through `order` values of x0, evaluate there, correct through `corrector` values with the new one.

    Args:
        order: values of x0 in the predictor, from 1. corrector: in the corrector, the new one included; 0 is none.
        q: the polynomial's coordinate is rho/(q + rho), rho = sigma/alpha: of the order of the data's spread.
        last: values used in a step to t = 0.
    Zhao et al. 2023 (UniPC), algorithm 1, with exact weights; Xue et al. 2023 (SA-Solver) at tau = 0.
    """
    _at_least("order", order, 1)
    _at_least("last", last, 1)
    _positive("q", q)
    a, b = step.a, step.b
    through = _data(step, b.sigma / a.sigma * a.x, weights.bounded(q))
    return _predict_correct(step, through, last if b.sigma == 0 else order, corrector)


@sampler(order=_angle_order, cold_order=_angle_cold, law="consistent")
def trig_adams(step: Step, order: int = 3, corrector: int = 4, spread: float = 1.0, last: int = 2) -> Symbol:
    """`adams` along the angle phi = arctan(sigma/(alpha s)), in which N(0, s^2) data stand still.

    x_b/q_b = x_a/q_a + integral of F over phi,   q^2 = alpha^2 s^2 + sigma^2,   F = (alpha s eps - (sigma/s) x0)/q

    F is a polynomial in phi through `order` values, and through `corrector` values after the guess was evaluated.
    Exact for N(0, s^2) at any step; near data that is one point only as steps become small.

    Args:
        order: values of F in the predictor, from 1. corrector: in the corrector, the new one included; 0 is none.
        spread: s, the standard deviation of the data.
        last: values used in a step to t = 0.
    Lu & Song 2025 (sCM), section 3 (TrigFlow); F is EDM's (Karras et al. 2022, table 1) with the sign turned.
    """
    _at_least("order", order, 1)
    _at_least("last", last, 1)
    _positive("spread", spread)
    a, b, s = step.a, step.b, spread

    def q(p: Level) -> float:
        return math.hypot(p.alpha * s, p.sigma)

    def through(nodes: Sequence[Point]) -> Symbol:
        slopes = [(n.alpha * s / q(n)) * n.eps - (n.sigma / (s * q(n))) * n.x0 for n in nodes]
        return q(b) / q(a) * a.x + q(b) * _sum(weights.angle_weights(a, b, nodes, s), slopes)

    return _predict_correct(step, through, last if b.sigma == 0 else order, corrector)


@sampler(order=lambda order, tau, corrector: 1)
def sa_solver(step: Step, order: int = 2, tau: float = 1.0, corrector: int = 0) -> Symbol:
    """`adams` on the SDE of strength tau: x_b = (sigma_b/sigma_a) e^(-tau^2 h) x_a + sum_j w_j x0_j + noise.

    Args:
        order, corrector: values of x0 used. tau: 0 is the flow, 1 the reverse SDE.
    Xue et al. 2023 (SA-Solver), algorithm 1.
    """
    _at_least("order", order, 1)
    _at_least("tau", tau, 0)
    a, b = step.a, step.b
    keep = (0.0 if a.alpha == 0 else (b.sigma * a.alpha / (a.sigma * b.alpha)) ** (tau * tau)) if tau else 1.0
    carried = b.sigma / a.sigma * keep * a.x + b.sigma * math.sqrt(1 - keep**2) * step.z
    through = _data(step, carried, weights.bounded(), tau)
    return _predict_correct(step, through, 1 if b.sigma == 0 else order, corrector)


def _noise_step(step: Step, nodes: Sequence[Point], coordinate: weights.Coordinate) -> Symbol:
    a, b = step.a, step.b
    first = b.alpha * a.x0 + b.sigma * a.eps
    if len(nodes) == 1 or not math.isfinite(a.rho):
        return first
    w = weights.noise_weights(a, b, nodes, coordinate)
    return first + b.alpha * _sum(w[1:], [n.eps - a.eps for n in nodes[1:]])


@sampler(order=lambda order, q: order, cold_order=lambda order, q: min(order, 2))
def noise_adams(step: Step, order: int = 3, q: float = 1.0) -> Symbol:
    """Adams in noise prediction, polynomial in rho/(q + rho).

    Args:
        order: values of eps used, 1 to 4. q: of the coordinate.
    Zhang & Chen 2023 (DEIS), section 3; Lu et al. 2022 (DPM-Solver), multistep form.
    """
    _at_least("order", order, 1)
    _positive("q", q)
    return _noise_step(step, step.recent(order), weights.bounded(q))


@sampler(order=lambda order: order + 1, cold_order=lambda order: min(order + 1, 2))
def deis(step: Step, order: int = 3) -> Symbol:
    """tAB-DEIS: eps is the polynomial in t through its values now and at `order` steps before.

    Args:
        order: 1, 2 or 3: earlier values used; 0 is DDIM.
    Zhang & Chen 2023 (DEIS), eq. 15.
    """
    _at_least("order", order, 0)
    return _noise_step(step, step.recent(order + 1), weights.time)


@sampler(order=lambda order: order, cold_order=lambda order: min(order, 2))
def lms(step: Step, order: int = 4) -> Symbol:
    """Linear multistep in rho = sigma/alpha: x/alpha changes by the integral of eps over rho, eps polynomial in rho.

    Args:
        order: values of eps used, 1 to 4.
    Karras et al. 2022, eq. 4 (the flow in sigma); Adams & Bashforth 1883.
    """
    _at_least("order", order, 1)
    return _noise_step(step, step.recent(order), weights.rho)


_BASHFORTH = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


@sampler(order=2, cold_order=2)
def plms(step: Step) -> Symbol:
    """DDIM with eps replaced by the Adams-Bashforth mean of up to four, whose weights are those of even steps.

    Liu et al. 2022 (PNDM), eq. 12 and 9.
    """
    a, b, nodes = step.a, step.b, step.recent(4)
    first = b.alpha * a.x0 + b.sigma * a.eps
    if not math.isfinite(a.rho):
        return first
    mean = _sum(_BASHFORTH[len(nodes)], [n.eps for n in nodes])
    return first + b.alpha * (b.rho - a.rho) * (mean - a.eps)
