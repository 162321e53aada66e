"""Moment matching posterior sampling.

x0' = x0 + V A.T (sigma^2 I + A V A.T)^-1 (y - A x0),    V = Cov[x0 | x_t] = (sigma_t^2/alpha) d x0/d x_t

solved by conjugate gradients, each iteration one vector-Jacobian product. Under Poisson noise sigma^2 is the variance
of each count at A x0, which is its mean under p(x0 | x_t): the moments matched are still those of (x0, y).

Approximated: p(x0 | x_t) by a Gaussian with its true mean and covariance: exact for Gaussian data. Where p(x0 | x_t)
has several modes, at middle noise levels, the weights of modes come out wrong. A network's Jacobian is not quite
symmetric, and few iterations leave part of the residual: both show as y being met less closely than sigma.

Rozet et al. 2024 (Learning diffusion priors from observations by expectation maximization).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from suffuse.denoise import Composed, denoiser
from suffuse.inverse.measured import checked, checked_noise, residual, tweedie
from suffuse.operators import GaussianNoise, LinearOperator, Operator, PoissonNoise, conjugate_gradients
from suffuse.parameterize import Prediction

__all__ = ["mmps"]


def mmps(
    model: Any,
    A: Operator,
    y: Tensor,
    sigma: float | GaussianNoise | PoissonNoise,
    *,
    iterations: int = 3,
    tolerance: float = 1e-4,
) -> Composed:
    """What the model believes of x0, given also y = A x0 + sigma n, or photons counted of A x0.

    Args:
        model: the prior, a denoiser. A: linear. y: (1 or B, ...) the measurement.
        sigma: standard deviation of its noise, positive; or a `PoissonNoise`.
        iterations: of conjugate gradients at most; an evaluation costs one vjp more than that.
        tolerance: relative residual at which a row is done.
    Raises:
        TypeError: A is not linear. ValueError: y has a NaN; sigma is not positive; or, when run, y does not fit A.
    """
    whole, (A, y) = A, checked("mmps", A, y)
    noise = checked_noise("mmps", sigma)
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    settings = {"A": A, "noise": noise, "iterations": iterations, "tolerance": tolerance}
    extra = settings | {"whole": whole}
    return denoiser(_mmps, parts=[model], name="mmps", settings=settings, rows={"y": y}, extra=extra)


def _mmps(
    x: Tensor,
    t: Any,
    to: Any,
    model: Any,
    *,
    y: Tensor,
    A: LinearOperator,
    whole: Operator,
    noise: GaussianNoise | PoissonNoise,
    iterations: int,
    tolerance: float,
) -> Prediction:
    at = tweedie(model, x, t, to)
    gap, var = residual(A, at.x0, y), noise.variance(whole(at.x0))  # of an affine A with its offset
    u, _ = conjugate_gradients(
        lambda v: var * v + A(at.covariance(A.adjoint(v))),
        gap,
        tolerance=tolerance,
        limit=iterations,
    )
    return Prediction(x, *model.schedule(t, like=x), x0=at.x0 + at.covariance(A.adjoint(u)))
