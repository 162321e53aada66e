"""Diffusion posterior sampling, and its manifold-constrained ancestor: a gradient step on the measurement's error.

x_b <- x_b - zeta d |y - A(x0(x_a))| / d x_a                                 (dps)

written as the x0 that makes `ddim(eta)` take that step: x0' = x0 - zeta gradient / (d x_b/d x0). With other samplers
the push is the same to first order; a stage or a corrector is pushed by what its whole step makes of an x0. mcg then
replaces what was measured: x0'' = x0' + pinv(A) (y - A x0').

Approximated: p(y | x_t) by p(y | x0(x_t)), as if x0 were known given x_t, and its scale by zeta. The push is too strong
at high noise and does not depend on sigma: samples are overconfident (spread too small), zeta wants tuning for each
operator and number of steps, and weights of modes are wrong. mcg keeps the noise of y in its samples.

Under Poisson noise dps divides the error by each count's standard deviation at y, scaled to a root mean square of 1.

Chung et al. 2023 (DPS), algorithm 1; Chung et al. 2022 (MCG), whose projection acts on the noised state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, denoiser
from suffuse.inverse.measured import Stride, checked, gain, residual, tweedie
from suffuse.operators import GaussianNoise, LinearOperator, Operator, PoissonNoise
from suffuse.parameterize import Prediction

__all__ = ["dps", "mcg"]


def dps(
    model: Any,
    A: Operator,
    y: Tensor,
    *,
    zeta: float = 1.0,
    eta: float = 1.0,
    noise: GaussianNoise | PoissonNoise | None = None,
) -> Composed:
    """Push each step towards smaller error of measurement; row by row, with a norm of its own.

    Args:
        model: the prior, a denoiser. A: any operator with a gradient. y: (1 or B, ...).
        zeta: length of the push, in units of the state.
        eta: of the `ddim(eta)` it runs with; 1 is the paper's.
        noise: of the measurement; only a `PoissonNoise` makes a difference.
    Raises:
        TypeError: A has no gradient; noise is no model of it. ValueError: y has a NaN; when run, y does not fit A, or
            the next time is unknown.
    """
    A, y = checked("dps", A, y, linear=False, gradient=True)
    if not (noise is None or isinstance(noise, GaussianNoise | PoissonNoise)):
        raise TypeError(f"noise is a model of it, such as operators.PoissonNoise(peak), got {noise!r}")
    extra = {"A": A, "zeta": zeta, "eta": eta}
    weigh = torch.ones_like(y[:, :1])
    if isinstance(noise, PoissonNoise):
        weigh = noise.variance(y).rsqrt()
        weigh = weigh / weigh.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (y.ndim - 1))
    rows = {"y": y, "weigh": weigh}
    return denoiser(_dps, parts=[model], name="dps", settings=extra, rows=rows, extra=extra, state=Stride)


def _pushed(
    x: Tensor,
    t: Any,
    to: Any,
    model: Any,
    y: Tensor,
    A: Operator,
    zeta: float,
    eta: float,
    state: Stride,
    weigh: Tensor | float = 1.0,
) -> Tensor:
    at = tweedie(model, x, t, to)
    if isinstance(weigh, Tensor):
        weigh = weigh.to(x)
    r = residual(A, at.x0, y) * weigh
    norm = r.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (r.ndim - 1))
    uphill = at.pull(A.vjp(at.x0, -weigh * r / norm))
    return at.x0 - zeta * uphill / gain(model.schedule, state.begin(t, to), to, eta, x, "dps")


def _dps(
    x: Tensor,
    t: Any,
    to: Any,
    model: Any,
    *,
    y: Tensor,
    weigh: Tensor,
    A: Operator,
    zeta: float,
    eta: float,
    state: Stride,
) -> Prediction:
    x0 = _pushed(x, t, to, model, y, A, zeta, eta, state, weigh)
    return Prediction(x, *model.schedule(t, like=x), x0=x0)


def mcg(model: Any, A: Operator, y: Tensor, *, zeta: float = 1.0, eta: float = 1.0) -> Composed:
    """The same push, after which x0 agrees with a noiseless y.

    Args:
        model, y, zeta, eta: as for `dps`. A: linear.
    Raises:
        TypeError: A is not linear. ValueError: as for `dps`.
    """
    A, y = checked("mcg", A, y)
    extra = {"A": A, "zeta": zeta, "eta": eta}
    return denoiser(_mcg, parts=[model], name="mcg", settings=extra, rows={"y": y}, extra=extra, state=Stride)


def _mcg(
    x: Tensor, t: Any, to: Any, model: Any, *, y: Tensor, A: LinearOperator, zeta: float, eta: float, state: Stride
) -> Prediction:
    x0 = _pushed(x, t, to, model, y, A, zeta, eta, state)
    return Prediction(x, *model.schedule(t, like=x), x0=A.pinv(y.to(x)) + (x0 - A.pinv(A(x0))))
