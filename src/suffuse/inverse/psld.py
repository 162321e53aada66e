"""Posterior sampling with latent diffusion: DPS through the decoder, and latents that encode what was decoded.

x_b <- x_b - zeta d |y - A D(z0)|/d x_a - gamma d |z0 - E(pinv(A) y + D(z0) - pinv(A) A D(z0))|/d x_a,    z0 = z0(x_a)

written as the x0 that makes `ddim(eta)` take that step, as `dps` is. The second term asks for latents of pictures that
agree with y: many latents decode to much the same picture, and the decoder's own errors are not to be explained.

Approximated: as `dps`; and the paper's A.T is pinv(A) here, which is the same for masks and any A with A A.T = I. What
the codec loses cannot be restored, and shows as y met less closely than its noise; gamma trades that against pictures
the codec knows.

Rout et al. 2023 (Solving linear inverse problems provably via posterior sampling with latent diffusion models).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from suffuse.denoise import Composed, denoiser
from suffuse.inverse.measured import Stride, checked, gain, residual, tweedie
from suffuse.operators import LinearOperator, Operator
from suffuse.parameterize import Prediction

__all__ = ["psld"]


def psld(
    model: Any,
    A: Operator,
    y: Tensor,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    *,
    zeta: float = 1.0,
    gamma: float = 0.1,
    eta: float = 1.0,
) -> Composed:
    """Push each step of a latent model towards pictures that explain y; row by row.

    Args:
        model: the prior of latents, a denoiser. A: linear, of pictures. y: (1 or B, ...) measured of a picture.
        decode: latents (B, ...) to pictures, differentiable. encode: pictures to latents, differentiable and without
            noise of its own, such as `lambda x: codec.encode(x, 0)` of a codec without variance.
        zeta: length of the push towards y; gamma: of that towards latents of pictures; in units of the state.
        eta: of the `ddim(eta)` it runs with.
    Raises:
        TypeError: A is not linear. ValueError: y has a NaN; when run, y does not fit A, or the next time is unknown.
    """
    A, y = checked("psld", A, y)
    extra = {"A": A, "decode": decode, "encode": encode, "zeta": zeta, "gamma": gamma, "eta": eta}
    settings = {"A": A, "zeta": zeta, "gamma": gamma, "eta": eta}
    return denoiser(_psld, parts=[model], name="psld", settings=settings, rows={"y": y}, extra=extra, state=Stride)


def _norms(x: Tensor) -> Tensor:
    """|x| of each row, (B,), with a slope of 0 where it is 0."""
    return x.flatten(1).square().sum(1).clamp(min=1e-24).sqrt()


def _psld(
    x: Tensor,
    t: Any,
    to: Any,
    model: Any,
    *,
    y: Tensor,
    A: LinearOperator,
    decode: Callable[[Tensor], Tensor],
    encode: Callable[[Tensor], Tensor],
    zeta: float,
    gamma: float,
    eta: float,
    state: Stride,
) -> Prediction:
    at = tweedie(model, x, t, to)
    with torch.enable_grad():
        z0 = at.x0 if at.x0.requires_grad else at.x0.detach().requires_grad_()
        picture = decode(z0)
        told = zeta * _norms(residual(A, picture, y))
        glued = gamma * _norms(z0 - encode(A.pinv(y.to(picture)) + picture - A.pinv(A(picture))))
        (uphill,) = torch.autograd.grad((told + glued).sum(), z0, create_graph=at.x0.requires_grad)
    push = at.pull(uphill) / gain(model.schedule, state.begin(t, to), to, eta, x, "psld")
    return Prediction(x, *model.schedule(t, like=x), x0=at.x0 - push)
