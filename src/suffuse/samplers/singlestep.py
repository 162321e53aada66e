"""DPM-Solver: single-step exponential integrators in noise prediction; and their stochastic cousin SEEDS.

    x_b = (alpha_b/alpha_a) x_a - alpha_b * integral of e^-lambda eps over lambda,   lambda = log(alpha/sigma)

At the ends of a schedule, where lambda is infinite, a step is DDIM's.
"""

from __future__ import annotations

import math

from suffuse.samplers.rule import Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["dpm_solver", "seeds"]


@sampler(order=lambda order: order, stages=lambda order: order)
def dpm_solver(step: Step, order: int = 2) -> Symbol:
    """x_b = (alpha_b/alpha_a) x_a - sigma_b (e^h - 1) eps + corrections from `order` - 1 inner stages.

    Args:
        order: 1 (DDIM), 2 (stage at 1/2) or 3 (stages at 1/3 and 2/3).
    Lu et al. 2022 (DPM-Solver), algorithms 1 and 2.
    """
    a, b = step.a, step.b
    if order not in (1, 2, 3):
        raise ValueError(f"dpm_solver has order 1, 2 or 3, got {order}")
    if order == 1 or not (math.isfinite(a.logsnr) and math.isfinite(b.logsnr)):
        return b.alpha * a.x0 + b.sigma * a.eps
    h = (b.logsnr - a.logsnr) / 2

    def base(share: float) -> Symbol:
        s = b if share == 1 else step.between(share)
        return s.alpha * a.x0 + s.sigma * a.eps  # the same by x = alpha x0 + sigma eps, without the cancellation

    if order == 2:
        s = step.point(base(0.5), step.between(0.5).t)
        return base(1) - b.sigma * math.expm1(h) * (s.eps - a.eps)
    r1, r2 = 1 / 3, 2 / 3
    s1, s2 = step.between(r1), step.between(r2)
    u1 = step.point(base(r1), s1.t)
    bend = math.expm1(r2 * h) / (r2 * h) - 1  # phi_2
    u2 = step.point(base(r2) - s2.sigma * r2 / r1 * bend * (u1.eps - a.eps), s2.t)
    return base(1) - b.sigma / r2 * (math.expm1(h) / h - 1) * (u2.eps - a.eps)


@sampler(order=1, stages=lambda order: order, law="consistent")
def seeds(step: Step, order: int = 2) -> Symbol:
    """x_b = (alpha_b/alpha_a) x_a - 2 sigma_b (e^h - 1) eps + noise: the reverse SDE in noise prediction.

    Args:
        order: 1 (exponential Euler-Maruyama) or 2 (a stage at h/2, its noise reused).
    Gonzalez et al. 2023 (SEEDS), algorithms 1 and 2.
    """
    a, b = step.a, step.b
    if order not in (1, 2):
        raise ValueError(f"seeds has order 1 or 2, got {order}")
    if not (math.isfinite(a.logsnr) and math.isfinite(b.logsnr)):
        return b.alpha * a.x0 + b.sigma * a.eps
    h = (b.logsnr - a.logsnr) / 2
    if order == 1:
        mean = b.alpha / a.alpha * a.x - 2 * b.sigma * math.expm1(h) * a.eps
        return mean + b.sigma * math.sqrt(math.expm1(2 * h)) * step.z
    s = step.between(0.5)
    first, second = step.noise(a.t, s.t), step.noise(s.t, b.t)
    inner = s.alpha / a.alpha * a.x - 2 * s.sigma * math.expm1(h / 2) * a.eps
    u = step.point(inner + s.sigma * math.sqrt(math.expm1(h)) * first, s.t)
    mean = b.alpha / a.alpha * a.x - 2 * b.sigma * math.expm1(h) * u.eps
    spread = math.sqrt(math.exp(2 * h) - math.exp(h)) * first + math.sqrt(math.expm1(h)) * second
    return mean + b.sigma * spread
