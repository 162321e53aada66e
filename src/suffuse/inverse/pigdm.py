"""Pseudoinverse-guided diffusion.

x0' = x0 + (sigma_t^2/alpha) J.T A.T (r^2 A A.T + sigma^2 I)^-1 (y - A x0),    J = d x0/d x_t,
r^2 = s^2 sigma_t^2/(s^2 alpha^2 + sigma_t^2)

Approximated: Cov[x0 | x_t] = r^2 I inside the likelihood, which is right for data N(m, s^2 I). Where the data have
structure, early steps trust the measurement too little in some directions and too much in others: modes get wrong
weights, and the spread along directions that y does not see is too small or too large. Along a direction in which the
true covariance is L > r^2 + sigma^2 the push is L/(r^2 + sigma^2) times too long: pictures with large flat areas come
out overdriven, most of all with few steps and holes to fill. `mmps` solves for what is guessed here.

Song et al. 2023 (Pseudoinverse-guided diffusion models); one vjp an evaluation.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, denoiser
from suffuse.inverse.measured import against, checked, checked_sigma, residual, tweedie
from suffuse.operators import LinearOperator, Operator
from suffuse.parameterize import Prediction

__all__ = ["pigdm"]


def pigdm(model: Any, A: Operator, y: Tensor, sigma: float, *, spread: float = 1.0) -> Composed:
    """What the model believes of x0, given also y = A x0 + sigma n.

    Args:
        model: the prior, a denoiser. A: linear. y: (1 or B, ...) the measurement.
        sigma: standard deviation of its noise, at least 0.
        spread: s, the standard deviation of the data.
    Raises:
        TypeError: A is not linear. ValueError: y has a NaN; a negative sigma; or, when run, y does not fit A.
    """
    A, y = checked("pigdm", A, y)
    sigma = checked_sigma("pigdm", sigma)
    if not spread > 0:
        raise ValueError(f"spread, the standard deviation of the data, must be positive, got {spread:g}")
    extra = {"A": A, "sigma": sigma, "spread": spread}
    return denoiser(_pigdm, parts=[model], name="pigdm", settings=extra, rows={"y": y}, extra=extra)


def _pigdm(
    x: Tensor, t: Any, to: Any, model: Any, *, y: Tensor, A: LinearOperator, sigma: float, spread: float
) -> Prediction:
    at = tweedie(model, x, t, to)
    towards = A.ridge(residual(A, at.x0, y), against(sigma, at.variance(spread)))
    length = ((spread * at.alpha) ** 2 + at.sigma**2) / (spread**2 * at.alpha)  # sigma_t^2/(alpha r^2), finite at t = 0
    return Prediction(x, *model.schedule(t, like=x), x0=at.x0 + length * at.pull(towards))
