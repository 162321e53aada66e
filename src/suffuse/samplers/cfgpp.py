"""CFG++: guided data, noised again with what the negative saw as noise.

x_b = alpha_b x0 + sigma_b eps_neg        x0 = x0_neg + w (x0_pos - x0_neg), usually with 0 <= w <= 1

A step moves by alpha_b w (x0_pos - x0_neg) off the negative's own path, however short it is: this is no flow in the
limit, twice the steps guide about twice as hard. w = 1 is x0_pos, still noised with eps_neg, and not the same as no
guidance.
"""

from __future__ import annotations

from suffuse.samplers import weights
from suffuse.samplers.rule import Step, sampler
from suffuse.samplers.symbols import Symbol

__all__ = ["cfgpp"]


@sampler(order=lambda order: order)
def cfgpp(step: Step, order: int = 1) -> Symbol:
    """x_b = alpha_b x0 + sigma_b eps_neg, or alpha_b (x0 - x0_neg) + the negative's own step of order 2.

    Args:
        order: 1, or 2: the negative's step is that of `dpmpp(order=2)`, also in its exact weights.
    Chung et al. 2024 (CFG++); order 2 as in the authors' DPM++ 2M CFG++.
    """
    a, b = step.a, step.b
    if order not in (1, 2):
        raise ValueError(f"cfgpp has order 1 or 2, got {order}")
    nodes = step.recent(order if b.sigma > 0 else 1)
    if len(nodes) == 1:
        return b.alpha * a.x0 + b.sigma * a.negative.eps
    w = weights.data_weights(a, b, nodes, weights.bounded())
    path = sum((c * n.negative.x0 for c, n in zip(w, nodes, strict=True)), b.sigma / a.sigma * a.x)
    return path + b.alpha * (a.x0 - a.negative.x0)
