"""Plug-and-play restoration by half-quadratic splitting.

x0' = argmin_u |y - A u|^2/(2 sigma^2) + lambda |u - x0|^2 / (2 rho^2)
    = x0 + A.T (A A.T + lambda sigma^2/rho^2 I)^-1 (y - A x0),        rho = sigma_t/alpha

Approximated: Cov[x0 | x_t] = rho^2/lambda I, without the derivative of x0: directions that y does not see learn nothing
of it within a step. The spread is too small where y is informative, and lambda trades that against meeting y.

Zhu et al. 2023 (DiffPIR). Run it with `ddim(eta)`; eta is their sqrt(zeta), in effect.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, call, denoiser
from suffuse.inverse.measured import against, checked, checked_sigma, near, residual
from suffuse.operators import LinearOperator, Operator
from suffuse.parameterize import Prediction

__all__ = ["diffpir"]


def diffpir(model: Any, A: Operator, y: Tensor, sigma: float, *, lam: float = 7.0) -> Composed:
    """What the model believes of x0, moved as far towards y as its noise allows.

    Args:
        model: the prior, a denoiser. A: linear. y: (1 or B, ...) the measurement.
        sigma: standard deviation of its noise, at least 0; at 0 this is `ddnm`.
        lam: trust in the model, positive; 1 is what the noise level says.
    Raises:
        TypeError: A is not linear. ValueError: y has a NaN; a negative sigma; or, when run, y does not fit A.
    """
    A, y = checked("diffpir", A, y)
    sigma = checked_sigma("diffpir", sigma)
    if not lam > 0:
        raise ValueError(f"lam must be positive, got {lam:g}")
    extra = {"A": A, "sigma": sigma, "lam": lam}
    return denoiser(_diffpir, parts=[model], name="diffpir", settings=extra, rows={"y": y}, extra=extra)


def _diffpir(
    x: Tensor, t: Any, to: Any, model: Any, *, y: Tensor, A: LinearOperator, sigma: float, lam: float
) -> Prediction:
    x0 = call(model, x, t, to).x0
    alpha, sigma_t = model.schedule(near(model.schedule, t), like=x)
    c = lam * against(sigma, (sigma_t / alpha) ** 2)
    return Prediction(x, *model.schedule(t, like=x), x0=x0 + A.ridge(residual(A, x0, y), c))
