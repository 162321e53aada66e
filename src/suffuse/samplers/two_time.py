"""Two-time networks, which are told where a step goes: which plans they can run, and how they become one-time.

Told `to` = s, the (x0, eps) of such a network is the pair for which alpha_s x0 + sigma_s eps is where the flow is at s.
It is no estimate of the data and of the noise, so no row may mix it with anything else: `ddim` runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from suffuse.denoise import Composed, Denoiser, call, denoiser
from suffuse.parameterize import Prediction

if TYPE_CHECKING:
    from suffuse.samplers.plan import Plan

__all__ = ["check", "endpoint"]


def endpoint(model: Any) -> Composed:
    """A two-time network asked for the end of its flow only: x0 is where it lands, for `samplers.consistency`.

    Args:
        model: a denoiser that reads `to`.
    """
    return denoiser(_at_the_end, parts=[model], name="endpoint")


def _at_the_end(x: Tensor, t: Any, to: Any, part: Any) -> Prediction:
    return call(part, x, t, 0.0)


def check(plan: Plan, model: Any) -> None:
    """Refuse to run a two-time network by a plan with any other row than x_b = alpha_b x0_a + sigma_b eps_a.

    Raises:
        ValueError: it uses a prediction twice, in stages, with noise, or to another time than it was asked for.
    """
    if not _two_time(model):
        return
    for k, row in enumerate(plan.rows):
        if row.terms is None:
            continue
        at = plan.rows[k - 1]
        x, x0, eps = (row.terms.get((kind, k - 1), 0.0) for kind in ("x", "x0", "eps"))
        off = max(abs(x * at.alpha + x0 - row.alpha), abs(x * at.sigma + eps - row.sigma))
        if not row.main or off > 1e-9 * max(1.0, row.sigma):
            raise ValueError(
                f"{plan.name} cannot run a two-time network, whose answer holds for the one step it was asked about: "
                "use sf.samplers.ddim(), or sf.samplers.endpoint(model) with sf.samplers.consistency()"
            )


def _two_time(model: Any) -> bool:
    if isinstance(model, Composed):
        return model.fn is not _at_the_end and any(_two_time(part) for part in model.parts)
    return isinstance(model, Denoiser) and "to" in model.conditions
