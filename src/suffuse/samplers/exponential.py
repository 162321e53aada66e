"""DPM-Solver++: exponential integrators in data prediction, multistep, single-step and stochastic.

    x_b / sigma_b = x_a / sigma_a + integral of x0 over alpha/sigma from a to b

with x0 replaced by the polynomial through its recent values.
"""

from __future__ import annotations

import math

from suffuse.samplers import weights as integrals
from suffuse.samplers.rule import Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["dpmpp", "dpmpp_2s", "dpmpp_multistep_sde", "dpmpp_sde"]


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
            published finite-difference form in log(alpha/sigma), whose order 3 measures as order 2. A step to t = 0
            is of order 1 in both.
    Lu et al. 2022 (DPM-Solver++), algorithm 2 and appendix B.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"dpmpp has order 1, 2 or 3, got {order}")
    if weights == "paper":
        return _paper(step, order)
    if weights != "exact":
        raise ValueError(f"weights must be 'exact' or 'paper', got {weights!r}")
    a, b = step.a, step.b
    nodes = step.recent(order if b.sigma > 0 else 1)  # extrapolating to t = 0 would amplify the network's errors
    w = integrals.data_weights(a, b, nodes, integrals.bounded())
    return b.sigma / a.sigma * a.x + sum((c * n.x0 for c, n in zip(w, nodes, strict=True)), Symbol({}))


def _finite(step: Step) -> bool:
    return math.isfinite(step.a.logsnr) and math.isfinite(step.b.logsnr)


def _first(step: Step) -> Symbol:
    """The exact step of order 1, also at the ends of a schedule."""
    return step.b.alpha * step.a.x0 + step.b.sigma * step.a.eps


@sampler(order=2, stages=2)
def dpmpp_2s(step: Step, r: float = 0.5) -> Symbol:
    """x_b = (sigma_b/sigma_a) x_a - alpha_b (e^-h - 1) [(1 - 1/2r) x0_a + 1/2r x0_s],  s at lambda_a + r h.

    Args:
        r: where the inner stage lies, in (0, 1].
    Lu et al. 2022 (DPM-Solver++), algorithm 1.
    """
    if not _finite(step):
        return _first(step)
    a, b, s = step.a, step.b, step.between(r)
    inner = step.point(s.sigma / a.sigma * a.x + (s.alpha - a.alpha * s.sigma / a.sigma) * a.x0, s.t)
    weight = b.alpha - a.alpha * b.sigma / a.sigma
    return b.sigma / a.sigma * a.x + weight * ((1 - 0.5 / r) * a.x0 + 0.5 / r * inner.x0)


@sampler(order=2, stages=2)
def dpmpp_sde(step: Step, r: float = 0.5, eta: float = 1.0) -> Symbol:
    """The two-stage step of `dpmpp_2s` on the reverse SDE: contraction e^-h(1 + eta^2), noise of both parts.

    Args:
        r: where the inner stage lies. eta: 1 is the reverse SDE, 0 the flow.
    Lu et al. 2022 (DPM-Solver++), section 5 and appendix; Gonzalez et al. 2023 (SEEDS-2, data prediction).
    """
    if not _finite(step):
        return _first(step)
    a, b, s = step.a, step.b, step.between(r)
    rate = eta * eta

    def shrink(p: float, q: float) -> float:
        return math.exp(-(q - p) / 2 * rate)

    inner_keep = s.sigma / a.sigma * shrink(a.logsnr, s.logsnr)
    inner_noise = s.sigma * math.sqrt(1 - shrink(a.logsnr, s.logsnr) ** 2) * step.noise(a.t, s.t)
    inner = step.point(inner_keep * a.x + (s.alpha - a.alpha * inner_keep) * a.x0 + inner_noise, s.t)
    keep = b.sigma / a.sigma * shrink(a.logsnr, b.logsnr)
    early = b.sigma * math.sqrt(shrink(s.logsnr, b.logsnr) ** 2 - shrink(a.logsnr, b.logsnr) ** 2)
    late = b.sigma * math.sqrt(1 - shrink(s.logsnr, b.logsnr) ** 2)
    mean = keep * a.x + (b.alpha - a.alpha * keep) * ((1 - 0.5 / r) * a.x0 + 0.5 / r * inner.x0)
    return mean + early * step.noise(a.t, s.t) + late * step.noise(s.t, b.t)


@sampler(order=lambda order, eta: min(order, 2))
def dpmpp_multistep_sde(step: Step, order: int = 2, eta: float = 1.0) -> Symbol:
    """x_b = (sigma_b/sigma_a) e^(-eta^2 h) x_a + sum_j w_j x0_j + sigma_b sqrt(1 - e^(-2 eta^2 h)) z.

    Args:
        order: values of x0 used, 1 to 3. eta: 1 is the reverse SDE, 0 the flow.
    Lu et al. 2022 (DPM-Solver++), eq. 18; Xue et al. 2023 (SA-Solver) for the weights at any eta.
    """
    a, b, nodes = step.a, step.b, step.recent(order)
    if b.sigma == 0:
        return _first(step)
    w = integrals.data_weights(a, b, nodes, integrals.bounded(), tau=eta)
    keep = 0.0 if a.alpha == 0 else (b.sigma * a.alpha / (a.sigma * b.alpha)) ** (eta * eta)
    if a.alpha == 0 and eta == 0:
        keep = 1.0
    mean = b.sigma / a.sigma * keep * a.x + sum((c * n.x0 for c, n in zip(w, nodes, strict=True)), Symbol({}))
    return mean + b.sigma * math.sqrt(1 - keep**2) * step.z
