"""Denoising diffusion null-space model: what was measured comes from y, the rest from the model.

x0' = pinv(A) y + (x0 - pinv(A) A x0)

With a mask, known pixels are y to the last bit wherever a sampler ends on x0 (`ddim`, `ddpm`, `dpmpp`).

Approximated: y is taken without noise (see `ddnm_plus`), and x0 outside the range of A.T is not told about y except
through the state: at few steps the two parts do not match, which time travel (`grids.time_travel`) mends.

Wang et al. 2023 (DDNM), section 3.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, call, denoiser
from suffuse.inverse.measured import checked, residual
from suffuse.operators import LinearOperator, Operator
from suffuse.parameterize import Prediction

__all__ = ["ddnm"]


def ddnm(model: Any, A: Operator, y: Tensor) -> Composed:
    """What the model believes of x0, corrected to satisfy y = A x0.

    Args:
        model: the prior, a denoiser. A: linear. y: (1 or B, ...) the measurement, without noise.
    Raises:
        TypeError: A is not linear. ValueError: y has a NaN; or, when run, y does not fit A.
    """
    A, y = checked("ddnm", A, y)
    return denoiser(_ddnm, parts=[model], name="ddnm", settings={"A": A}, rows={"y": y}, extra={"A": A})


def _ddnm(x: Tensor, t: Any, to: Any, model: Any, *, y: Tensor, A: LinearOperator) -> Prediction:
    x0 = call(model, x, t, to).x0
    residual(A, x0, y)  # whether they fit
    return Prediction(x, *model.schedule(t, like=x), x0=A.pinv(y.to(x)) + (x0 - A.pinv(A(x0))))
