"""RES: exponential Runge-Kutta and Adams steps in data prediction that meet the stiff order conditions.

    x_b = (sigma_b/sigma_a) x_a + alpha_b h sum_i b_i x0_i,    h = lambda_b - lambda_a,   lambda = log(alpha/sigma)
    phi_1 = (1 - e^-h)/h,   phi_2 = (1 - phi_1)/h,   phi_k,i the same at c_i h

`dpmpp_2s` has phi_1/2r where order two of `res` has phi_2/c2: equal as h goes to 0, and only the second integrates x0
that is linear in lambda exactly. At the ends of a schedule, where lambda is infinite, a step is DDIM's.
"""

from __future__ import annotations

import math

from suffuse.samplers import weights
from suffuse.samplers.rule import Level, Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["res", "res_multistep"]


def _phi_2(h: float) -> float:
    return (1 + math.expm1(-h) / h) / h


@sampler(order=lambda order, c2, c3: order, stages=lambda order, c2, c3: order)
def res(step: Step, order: int = 2, c2: float = 0.5, c3: float = 1.0) -> Symbol:
    """x_b = (sigma_b/sigma_a) x_a + alpha_b h sum_i b_i x0_i from two or three stages, the inner ones at c_i h.

    b_2 = phi_2/c2;  or b_2 = g b_3, b_3 = phi_2/(g c2 + c3);  b_1 is what they leave of phi_1.
    a_32 = g c2 phi_2,2 + (c3^2/c2) phi_2,3,   g = (3 c3^2 - 2 c3)/(c2 (2 - 3 c2)).

    Args:
        order: 2 or 3, with as many stages.
        c2, c3: where the inner stages lie, as shares of h in (0, 1]; with order 3 they are not 2/3 and not equal.
    Zhang et al. 2023 (RES); the conditions are those of Hochbruck & Ostermann 2005.
    """
    a, b = step.a, step.b
    if order not in (2, 3):
        raise ValueError(f"res has order 2 or 3, got {order}; order 1 is ddim")
    if not 0 < c2 <= 1 or not 0 < c3 <= 1:
        raise ValueError(f"c2 and c3 must be in (0, 1], got {c2:g} and {c3:g}")
    if order == 3 and (math.isclose(c2, 2 / 3) or c2 == c3):
        raise ValueError(f"with order 3, c2 is neither 2/3 nor c3, got c2={c2:g} and c3={c3:g}")
    if not (math.isfinite(a.logsnr) and math.isfinite(b.logsnr)):
        return b.alpha * a.x0 + b.sigma * a.eps
    h = (b.logsnr - a.logsnr) / 2

    def first(s: Level) -> Symbol:
        return s.sigma / a.sigma * a.x + (s.alpha - a.alpha * s.sigma / a.sigma) * a.x0

    s2 = step.between(c2)
    u2 = step.point(first(s2), s2.t)
    if order == 2:
        return first(b) + b.alpha * h * _phi_2(h) / c2 * (u2.x0 - a.x0)
    s3 = b if c3 == 1 else step.between(c3)
    g = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))
    a32 = g * c2 * _phi_2(c2 * h) + c3**2 / c2 * _phi_2(c3 * h)
    u3 = step.point(first(s3) + s3.alpha * h * a32 * (u2.x0 - a.x0), s3.t)
    return first(b) + b.alpha * h * _phi_2(h) / (g * c2 + c3) * (g * (u2.x0 - a.x0) + (u3.x0 - a.x0))


@sampler(order=lambda order: order, cold_order=lambda order: min(order, 2))
def res_multistep(step: Step, order: int = 2) -> Symbol:
    """x_b = (sigma_b/sigma_a) x_a + sum_j w_j x0_j: x0 the polynomial in lambda through recent values, in full.

    `dpmpp` with exact weights has the polynomial in sigma/(alpha + sigma) instead, `dpmpp(weights="paper")` other
    differences.

    Args:
        order: values of x0 used, 1 to 3. A step to t = 0 is of order 1.
    Zhang et al. 2023 (RES), multistep form.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"res_multistep has order 1, 2 or 3, got {order}")
    a, b = step.a, step.b
    nodes = step.recent(order if b.sigma > 0 else 1)
    w = weights.data_weights(a, b, nodes, weights.logsnr)
    return sum((c * n.x0 for c, n in zip(w, nodes, strict=True)), b.sigma / a.sigma * a.x)
