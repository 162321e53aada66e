"""FlowChef: steer a flow by the measurement's error at its predicted end, without a gradient through the network.

x_b <- x_b + scale A.T (y - A x0)

written as the x0 that makes an Euler step (`ddim`) go there.

Approximated: d x0/d x_t by the identity, and the likelihood's scale by `scale`. Cheap, one evaluation and no vjp a
step; what is not measured does not learn of what is, so seams show, and the spread is too small where y is informative.

Patel et al. 2024 (Steering rectified flow models in the vector field for controlled image generation).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, call, denoiser
from suffuse.inverse.measured import Stride, checked, gain, residual
from suffuse.operators import Operator
from suffuse.parameterize import Prediction

__all__ = ["flowchef"]


def flowchef(model: Any, A: Operator, y: Tensor, *, scale: float = 0.1, eta: float = 0.0) -> Composed:
    """Push each step by the error of what it would end at.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient. y: (1 or B, ...).
        scale: of the push; above 2 / (largest singular value of A)^2 it does not settle.
        eta: of the `ddim(eta)` it runs with; 0 is the paper's.
    Raises:
        TypeError: A has no gradient. ValueError: y has a NaN; when run, y does not fit A, or the next time is unknown.
    """
    A, y = checked("flowchef", A, y, linear=False, gradient=True)
    extra = {"A": A, "scale": scale, "eta": eta}
    return denoiser(_flowchef, parts=[model], name="flowchef", settings=extra, rows={"y": y}, extra=extra, state=Stride)


def _flowchef(
    x: Tensor, t: Any, to: Any, model: Any, *, y: Tensor, A: Operator, scale: float, eta: float, state: Stride
) -> Prediction:
    x0 = call(model, x, t, to).x0
    slope = gain(model.schedule, state.begin(t, to), to, eta, x, "flowchef")
    push = scale * A.vjp(x0, residual(A, x0, y)) / slope
    return Prediction(x, *model.schedule(t, like=x), x0=x0 + push)
